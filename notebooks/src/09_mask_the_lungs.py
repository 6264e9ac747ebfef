# %% [markdown]
# # 09 · Mask the lungs

# %% [markdown]
# **What you'll do**: mask both lungs of a whole scan, step by step on a coarse grid,
# measure the mask against truth, and learn what became of the patient's tumor.
#
# **What you'll learn**
#
# - Find air inside the body in three dimensions
# - Follow the trachea until it becomes lung
# - Separate left from right, also where they touch
# - Keep nodules without swallowing the heart
# - Score a mask with five numbers
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | the mended mask of one plane | [08](08_mask_one_plane.ipynb) | necessary |
# | resampling | [04](04_resample_to_millimetres.ipynb) | helpful |
#
# **Time** 25 minutes · **memory** 600 MB · **download** none · **data and licence** see
# [00](00_start_here.ipynb)
#
# ![Right and left lung in three planes](images/09_mask_the_lungs.png)

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

import questlib
from questlib.display import show_plane, show_three_planes, use_style

use_style()

# %% [markdown]
# ## Where is air inside the body?
#
# Connectivity is a question of centimeters, so a coarse grid answers it: 2 mm here, to
# be quick and easy to see. Build every step on the phantom, whose truth you know.

# %%
phantom = questlib.make_phantom(shape=(75, 170, 180), spacing=(4.0, 2.0, 2.0))
hu, step = phantom.volume.array, phantom.volume.spacing
truth = np.isin(phantom.truth, (1, 2))
print(f"{hu.shape} voxels, both lungs {truth.sum() * np.prod(step) / 1e6:.2f} L")

# %% [markdown]
# Air is dark. A voxel that is half air (-1000 HU), half wall (about 40 HU) has -480 HU;
# one that is half lung (about -850 HU), half wall has some -400 HU. Between the two,
# -450 HU serves well.

# %%
air = hu < -450
print(f"{air.mean():.0%} of the voxels are air")

# %% [markdown]
# Outside air reaches the border of its plane. Label plane by plane, so that an open
# mouth or a cut skin fold in one plane cannot drain the others.

# %%
in_plane = np.zeros((3, 3, 3), bool)
in_plane[1] = ndimage.generate_binary_structure(2, 1)
labels, count = ndimage.label(air, in_plane)
print(f"{count} regions in {len(hu)} planes")

# %% [markdown]
# The border of all planes is a frame. What carries a label of the frame is outside.

# %%
frame = np.ones(hu.shape, bool)
frame[:, 1:-1, 1:-1] = False
inside = air & ~np.isin(labels, labels[frame])
print(f"{inside.sum() * np.prod(step) / 1e6:.2f} L of air inside")

# %% [markdown]
# Look at it in a coronal view. The highest plane with air inside holds the trachea, so
# cut there.

# %%
top = np.flatnonzero(inside.any((1, 2)))[-1]
row = round(ndimage.center_of_mass(inside[top])[0])
axes = plt.subplots(1, 2, figsize=(9, 4.2))[1]
options = {"labels": inside, "overlay": "color"}
for ax, overlay in zip(axes, ({}, options), strict=True):
    show_plane(phantom.volume, row, view="coronal", ax=ax, **overlay)
axes[1].set_title("the air inside the body")
plt.show()

# %% [markdown]
# Two lungs, the trachea above, and gas in the stomach below the left lung: three kinds of
# air, one color. Vessels, a nodule in the right lung, and the round mass beside the left
# hilum are not air, so they are missing.

# %% [markdown]
# ## Where does the airway end?
#
# The trachea enters from above: a small, round, dark disk near the middle. Start in the
# highest plane, and take its air.

# %%
airway = np.zeros(hu.shape, bool)
airway[top], limit = inside[top], 2.2 * inside[top].sum()
print(f"{airway.sum() * step[1] * step[2]:.0f} mm2 in the highest plane")

# %% [markdown]
# Now walk down. In each plane, keep the dark regions that overlap the airway above.
# Where such a region is suddenly large, the airway has opened into lung: a **leak**. Try
# a darker threshold; when none helps, stop.

# %%
for plane in range(top - 1, -1, -1):
    for level in (-500, -600, -700, -800):
        labels, _ = ndimage.label(inside[plane] & (hu[plane] < level))
        grown = np.isin(labels, np.setdiff1d(labels[airway[plane + 1]], 0))
        if grown.sum() <= limit:
            airway[plane] = grown
            break
print(f"{airway.sum() * np.prod(step) / 1000:.0f} mL of airway")

# %% [markdown]
# `segment_lungs` adds two checks: it judges each bronchus by itself, and a bronchus that
# lung surrounds belongs to the lung. Take the airway and its wall away.

# %%
rest = inside & ~ndimage.binary_dilation(airway, np.ones((3, 3, 3)))
print(f"{rest.sum() * np.prod(step) / 1e6:.2f} L left")

# %% [markdown]
# Label what is left, in three dimensions now.

# %%
labels, count = ndimage.label(rest)
size_ml = np.bincount(labels.ravel())[1:] * np.prod(step) / 1000
order = np.argsort(size_ml)[::-1]
print("largest regions in mL:", *(f"{size_ml[k]:.0f}" for k in order[:4]))

# %% [markdown]
# Two are lungs; the others are gas. Size tells them apart here. A large colon needs a
# better reason: gas is as dark as room air, lung is not, because it holds blood.

# %%
for label in order[:4] + 1:
    dark = np.percentile(hu[labels == label], 25)
    print(f"{size_ml[label - 1]:6.0f} mL, darkest quarter below {dark:.0f} HU")

# %% [markdown]
# **What would fool you here is emphysema.** Destroyed lung holds little blood: below
# -950 HU it is counted as emphysema, and a bulla is nearly as dark as gas. So
# `segment_lungs` keeps a region of more than one liter, however dark it is.

# %% [markdown]
# ## Which lung is which?
#
# Not the left of the picture, but the left of the **patient**: in LPS coordinates x
# grows to the left. So compare the centers in millimetres.

# %%
lungs = np.zeros(hu.shape, np.uint8)
centers = [ndimage.center_of_mass(labels == label) for label in order[:2] + 1]
x = [(phantom.volume.affine @ [*center, 1])[0] for center in centers]
for label, side in zip(order[:2] + 1, np.argsort(np.argsort(x)) + 1, strict=True):
    lungs[labels == label] = side
print("x of right and left:", *(f"{value:.0f} mm" for value in sorted(x)))

# %% [markdown]
# Behind the sternum the lungs may touch, with little but pleura between them: the
# *anterior junction line*. Thick voxels blur it away, and there is one region instead of
# two. Then `segment_lungs` cuts: in every plane it looks for the cheapest path from front
# to back, and pays for each lung voxel that it crosses, the darker the more. The path
# runs along the thin bright line.

# %% [markdown]
# ## What about vessels and nodules?
#
# A vessel is a hole that reaches the mediastinum, so filling holes is not enough. Close
# by a ball: everything nearer than a radius joins, then shrinks back. Distances are in
# millimetres, whatever the voxel.


# %%
def close(mask, radius):
    near = ndimage.distance_transform_edt(~mask, sampling=step) <= radius
    return mask | (ndimage.distance_transform_edt(near, sampling=step) > radius)


tight = close(lungs == 1, 6) | close(lungs == 2, 6)
wide = close(lungs == 1, 16) | close(lungs == 2, 16)
for name, mask in (("threshold", lungs > 0), ("6 mm", tight), ("16 mm", wide)):
    print(f"{name:9} {mask.sum() / truth.sum() - 1:+.1%} volume")

# %% [markdown]
# A small ball misses large nodules; a large ball takes part of the heart. The way out is
# to *ask* each pocket that the large ball adds: how much of your surface is lung? A
# nodule is wrapped; the mediastinum is open.

# %%
from questlib.lungs import find_wrapped, segment_lungs

pockets = ndimage.binary_fill_holes(wide) & ~tight
print(f"pockets {pockets.sum() * np.prod(step) / 1000:.0f} mL")

# %% [markdown]
# `find_wrapped` counts the faces of each pocket, and how many of them look at lung.
# Three quarters must.

# %%
kept = find_wrapped(pockets, tight, np.array(step))
print(f"kept {kept.sum() * np.prod(step) / 1000:.0f} mL")

# %% [markdown]
# Now the whole function, on the same scan. It works on a grid of about 2 mm, adds the
# checks named above, and settles the boundary on the voxels of the scan.

# %%
result = segment_lungs(phantom.volume)
print({name: round(volume_ml) for name, volume_ml in result.volumes_ml.items()})

# %% [markdown]
# Does it agree with your steps? Not to the voxel, since it knows more; but nearly.

# %%
mine = tight | kept
both = np.count_nonzero(mine & (result.labels > 0))
agree = 2 * both / (mine.sum() + np.count_nonzero(result.labels))
print(f"your steps and segment_lungs agree: Dice {agree:.3f}")

# %% [markdown]
# ## How good is it?
#
# Five numbers, because each is blind to something. Dice does not see a lost nodule, and
# volume does not see two errors that cancel. The **surface distance** tells how far
# apart two borders lie: 95 of 100 border voxels are nearer.


# %%
def score(labels, scan):
    found, true = labels > 0, np.isin(scan.truth, (1, 2))
    edge = [mask & ~ndimage.binary_erosion(mask) for mask in (found, true)]
    far = ndimage.distance_transform_edt(~edge[1], sampling=scan.volume.spacing)
    nodules = scan.parts["nodules"] & true
    return {
        "Dice": 2 * (found & true).sum() / (found.sum() + true.sum()),
        "volume error": found.sum() / true.sum() - 1,
        "surface mm": np.percentile(far[edge[0]], 95),
        "trachea inside": found[scan.truth == 3].mean(),
        "nodules kept": found[nodules].mean() if nodules.any() else 1.0,
    }


# %% [markdown]
# Score the plane-by-plane mask of 2017 and the new one on the same phantom, now on a
# finer grid.

# %%
grid = {"shape": (60, 128, 128), "spacing": (5.0, 2.8, 2.8)}
fine = questlib.make_phantom(**grid)
old = np.stack([questlib.mask_plane_2017(p).mask for p in fine.volume.array])
print(f"2017 masks {old.any((1, 2)).sum()} of {len(old)} planes")

# %% [markdown]
# That a plane has a mask says nothing yet about what the mask covers.

# %%
new = segment_lungs(fine.volume).labels
table = score(old, fine), score(new, fine)
for name in table[0]:
    print(f"{name:15} 2017 {table[0][name]:6.3f}   3-D {table[1][name]:6.3f}")
lost = fine.parts["mass"] & (new == 0)
print(f"lost of the 40 mm mass: {lost.sum() * np.prod(grid['spacing']) / 1000:.0f} mL")

# %% [markdown]
# Read every row. The new mask is better in four, and worse in one: on these large voxels
# it cuts the 16 mm nodule on the pleura, while the old one, grown far beyond the lungs,
# cannot miss it. A mask of everything keeps every nodule.
#
# **What would fool you here is a Dice of 0.99.** The mass of 40 mm beside the left hilum
# is lost, and four of the five numbers hardly move; the fifth does not ask for it.

# %% [markdown]
# One phantom is one point. A **dose-response curve** turns one knob and watches the
# score: how far off-center, how large a nodule, how far apart the planes.

# %%
doses = {
    "offset": [(mm, {"offset": (mm, 0)}) for mm in (15, 30)],
    "nodule": [(mm, {"nodules": ((mm, "pleura"),)}) for mm in (10, 20, 30)],
    "plane": [(mm, {"shape": (int(300 / mm), 128, 128)}) for mm in (3, 8)],
}
print({knob: [mm for mm, _ in settings] for knob, settings in doses.items()})

# %% [markdown]
# For each dose: a phantom, two masks, two scores. The phantom with an offset of 0 and
# planes of 5 mm has its scores already.

# %%
curves = {"offset": [(0, *table)], "nodule": [], "plane": [(5, *table)]}
for knob, (mm, knobs) in (
    (k, dose) for k, doses_k in doses.items() for dose in doses_k
):
    spacing = (mm if knob == "plane" else 5.0, 2.8, 2.8)
    scan = questlib.make_phantom(**(grid | knobs | {"spacing": spacing}))
    masks = np.stack([questlib.mask_plane_2017(p).mask for p in scan.volume.array])
    pair = score(masks, scan), score(segment_lungs(scan.volume).labels, scan)
    curves[knob].append((mm, *pair))
for number, name in ((1, "2017"), (2, "3-D")):
    values = [point[number]["Dice"] for points in curves.values() for point in points]
    print(f"{name:4} {len(values)} times Dice, {min(values):.3f} to {max(values):.3f}")

# %% [markdown]
# Draw Dice for both methods. Flat and high is what you hope for.

# %%
titles = "patient lies lower by", "diameter of the nodule", "distance of the planes"
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
for ax, title, points in zip(axes, titles, curves.values(), strict=True):
    points.sort(key=lambda point: point[0])
    for number, name in ((1, "2017"), (2, "3-D")):
        ax.plot(
            [p[0] for p in points],
            [p[number]["Dice"] for p in points],
            "o-",
            label=name,
        )
    ax.set(xlabel=f"{title} (mm)", ylim=(0, 1.02))
axes[0].set_ylabel("Dice")
axes[0].legend()
plt.show()

# %% [markdown]
# The 3-D mask is flat and high in all three. The 2017 mask is never high, and falls when
# the patient lies 30 mm lower. In the middle panel both are flat: Dice hardly notices a
# nodule, even a lost one. So print what is kept of it:

# %%
for mm, before, after in curves["nodule"]:
    kept = f"2017 {before['nodules kept']:.0%}, 3-D {after['nodules kept']:.0%}"
    print(f"{mm} mm nodule on the pleura kept: {kept}")

# %% [markdown]
# These three are kept, and the one of 16 mm was cut. Whether three quarters of a pocket
# look at lung depends on how it lies on the grid: near its limit a rule flips. Three good
# points are no proof.

# %% [markdown]
# ## And the patient?
#
# Here there is no truth, so look, and read the findings. `segment_lungs` says in words
# what it could not settle. It needs no number from you. **Why is it fast?** All shapes
# are settled on a grid of about 2 mm; only the border is decided voxel by voxel.

# %%
volume = questlib.load_series(questlib.choose_scan())
factor = [max(1, round(2 / mm)) for mm in volume.spacing]
coarse = [-(-size // n) for size, n in zip(volume.shape, factor, strict=True)]
print(f"{volume.array.size} voxels in the scan, {np.prod(coarse)} on the grid")

# %% [markdown]
# The thinner the voxels, the larger the gain. Measured times stand in
# [the benchmarks](../benchmarks/RESULTS.md). Now the lungs.

# %%
mask = segment_lungs(volume)
for name, volume_ml in mask.volumes_ml.items():
    print(f"{name:6} {volume_ml:.0f} mL")
both_ml = max(mask.volumes_ml["right"] + mask.volumes_ml["left"], 1)
print(f"the left lung holds {mask.volumes_ml['left'] / both_ml:.1%} of both")
print("findings:", mask.findings or "none")

# %% [markdown]
# In 32 healthy volunteers who lay in a CT, the left lung held 46 % on average, and from
# 43 to 49 %. It is smaller than the right one, because the heart takes its room.
#
# Both lungs in three planes, with their own colors. Check the letters, the trachea, the
# bases, and the border to the heart.

# %% tags=["cover"]
show_three_planes(volume, labels=mask.labels)
plt.show()

# %% [markdown]
# Blue is the right lung, orange the left one; trachea and heart lie in neither. Where a
# lung is much smaller or flattened, ask why: the mask holds *aerated* lung, and what
# touches it. Compare the sides, plane by plane.

# %%
z = [(volume.affine @ [plane, 0, 0, 1])[2] for plane in range(len(volume.array))]
fig, ax = plt.subplots(figsize=(8, 3.2))
for side, name, color in ((1, "right", "#56B4E9"), (2, "left", "#E69F00")):
    area_cm2 = (mask.labels == side).sum((1, 2)) * np.prod(volume.spacing[1:]) / 100
    ax.plot(z, area_cm2, color=color, label=f"{name} lung")
ax.set(xlabel="z, to the head (mm)", ylabel="lung area (cm2)")
ax.legend()
plt.show()

# %% [markdown] tags=["patient"]
# This left lung holds 41.9 %, less than in any of the 32. The widest gap lies low, beside the heart. The
# tumor of notebook 00 lies higher, where the gap is smaller. **What would fool you here
# is a volume, and even a curve of areas**: they say that something is missing, not where.

# %% [markdown]
# A solid region cannot be told from chest wall by its HU, but the *other* lung can tell.
# Mirror the labels left to right. The mirror stands half-way between the outer walls of
# both lungs, in the median plane. Every second row and column is enough.

# %%
labels, values = mask.labels[:, ::2, ::2], volume.array[:, ::2, ::2]
size_mm, width = np.multiply(volume.spacing, (1, 2, 2)), labels.shape[2]
seen = (labels > 0).any(1)
walls = seen.argmax(1) + width - 1 - seen[:, ::-1].argmax(1)
middle = round(np.median(walls[seen.any(1)] if seen.any() else walls)) / 2
mirror = np.roll(labels[..., ::-1], int(2 * middle) + 1 - width, axis=2)
print(f"mirror at column {2 * middle:.0f} of {volume.shape[2]}")

# %% [markdown]
# Where the mirror image is 8 mm deep in lung, and this side is solid, ask why. Leave out
# what has a reason: the mediastinum, and the heart, in front of the middle of the lungs.

# %%
deep = ndimage.distance_transform_edt(mirror > 0, sampling=size_mm) > 8
solid = deep & (labels == 0) & (values > -200)
solid[..., abs(np.arange(width) - middle) * size_mm[2] < 30] = False
rows = (labels > 0).sum((0, 2)).cumsum()
solid[:, : rows.searchsorted(rows[-1] / 2)] = False
parts, count = ndimage.label(solid)
part_ml = np.bincount(parts.ravel(), minlength=2)[1:] * np.prod(size_mm) / 1000
print(f"the largest solid region holds {part_ml.max():.0f} mL")

# %% [markdown]
# Go there, with three planes through its middle.

# %%
place = ndimage.center_of_mass(parts == part_ml.argmax() + 1 if count else labels + 1)
position = [round(at) * n for at, n in zip(place, (1, 2, 2), strict=True)]
show_three_planes(volume, tuple(position), labels=mask.labels)
plt.show()

# %% [markdown]
# Look at the crossing of the dashed lines: is it lung, vessel or mass? `segment_lungs`
# asks the same question with more care, drops thin rims, and reports what is larger than
# 15 mL. So its number is smaller than yours: a lower bound.

# %% [markdown] tags=["patient"]
# The fate of the tumor of notebook 00: it is **out**. It is solid, it lies open to the
# posterior pleura and the mediastinum, and it is larger than what a nodule may be. The
# mask runs around it, in the upper left chest, as in notebooks 07 and 08. But it is not
# lost in silence: it is the solid region of 54 mL or more that the findings name. Whoever
# counts the lung without reading them has lost it.
#
# The gap between 3164 and 2284 mL is far larger than the tumor. A lung can also lose
# volume behind a tumor: the mask cannot say it, a radiologist can.

# %% [markdown]
# A scan without lungs must not get any. Take the lowest planes of the phantom, below the
# diaphragm, with gas in the bowel:

# %%
abdomen = replace(phantom.volume, array=hu[:4])
empty = segment_lungs(abdomen)
print(np.count_nonzero(empty.labels), "voxels;", empty.findings)

# %% [markdown]
# And a voxel without a number belongs to neither side of a threshold. One is enough:

# %% tags=["raises-exception"]
values = hu.astype(np.float32)
values[0, 0, 0] = np.nan
segment_lungs(replace(phantom.volume, array=values))

# %% [markdown]
# The function refuses, instead of calling it tissue.

# %% [markdown]
# ## Check yourself
#
# 1. Predict how many mL are left out when the right base holds a consolidation of 60 mm
#    (a ball of that size has 113 mL), and what the findings say.
# 2. Do the labels change when all HU are shifted by 200?

# %% [markdown]
# ## Summary
#
# - Settle connectivity on a grid of 2 mm, and only the boundary at full resolution.
# - Grow the airway downwards, and stop where its section leaks into lung.
# - Right and left come from patient coordinates, never from the side of the picture.
# - A pocket of which three quarters look at lung is kept; a mass on the chest wall is not.
# - No single number tells all: five scores, the findings, and the other lung do.

# %% [markdown]
# ## In practice
#
# What fails: a large mass, consolidation or effusion on the pleura is left out, because
# by its HU it is no different from chest wall. The mirror image of the other lung finds
# it where more than 15 mL lie deep in it, but not when both lungs are ill, not next to
# the heart, and not in a lung that the field of view cuts. Small bronchi stay in. On
# planes of 8 mm a nodule at the dome may be cut. Motion, metal and lungs at the edge of
# the field of view need your eyes. Hospital software uses trained networks for such
# cases, and people check them. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# A mask is worth something when others can open it:
# [10 · Hand over the mask](10_hand_over_the_mask.ipynb).

# %% [markdown]
# ## References
#
# - S. Hu, E. A. Hoffman and J. M. Reinhardt, "Automatic lung segmentation for accurate
#   quantitation of volumetric X-ray CT images", IEEE Transactions on Medical Imaging 20
#   (2001), 490-498: threshold, airways, and the cut between touching lungs.
# - J. M. Kuhnigk et al., "Morphological segmentation and partial volume analysis for
#   volumetry of solid pulmonary lesions", IEEE Transactions on Medical Imaging 25 (2006):
#   nodules on the pleura.

# %% [markdown]
# - Y. Yamada et al., "Differences in lung and lobe volumes between supine and standing
#   positions", Respiration 99 (2020), 598-605, DOI 10.1159/000507265: table 3, the share
#   of the left lung.
# - D. M. Hansell et al., "Fleischner Society: glossary of terms for thoracic imaging",
#   Radiology 246 (2008), 697-722, DOI 10.1148/radiol.2462070712: anterior junction line,
#   bulla, consolidation, mass.
# - P. A. Gevenois et al., American Journal of Respiratory and Critical Care Medicine 152
#   (1995), 653-657: emphysema below -950 HU.
# - DICOM PS3.3, C.7.6.2.1.1: position and orientation, the source of left and right.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. The density is lumpy and smaller than a ball; solid lung is not air, so most of it is
#    left out. The findings name it, and a second one on the left: the central mass, which
#    is lost on voxels as large as these. Both numbers are lower bounds.

# %%
solid = questlib.make_phantom(**grid, consolidation=60)
found = segment_lungs(solid.volume)
voxel_ml = np.prod(grid["spacing"]) / 1000
whole_ml = solid.parts["consolidation"].sum() * voxel_ml
lost_ml = (solid.parts["consolidation"] & (found.labels == 0)).sum() * voxel_ml
assert 0.8 * whole_ml < lost_ml < whole_ml < 113
print(f"{lost_ml:.0f} of {whole_ml:.0f} mL left out")
print(*found.findings, sep="\n")

# %% [markdown]
# 2. No: the threshold lies between the air and the tissue of the scan, and the findings
#    say that the values are not calibrated. They name the lost mass as before.

# %%
shifted = replace(fine.volume, array=fine.volume.array + 200)
again = segment_lungs(shifted)
assert np.array_equal(again.labels, new)
print(*again.findings, sep="\n")
