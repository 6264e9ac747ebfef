# %% [markdown]
# # 09 · Mask the lungs

# %% [markdown]
# **What you'll do**: mask both lungs of a whole scan, step by step on a coarse grid, then
# measure the mask against truth and on the patient.
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
from questlib.display import apply_window, show_three_planes, use_style

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
# Air is dark. Half-way between air and soft tissue lies the border of a voxel that is
# half lung, half wall; -450 HU serves well.

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
# Look at it in a coronal view, through the middle of that air: two lungs, the trachea,
# and gas in the abdomen. The scanner's table can hold air as well.

# %%
row = round(ndimage.center_of_mass(inside)[1])
fig, axes = plt.subplots(1, 2, figsize=(9, 4))
axes[0].imshow(apply_window(hu[::-1, row], -600, 1500), aspect=step[0] / step[2])
axes[1].imshow(inside[::-1, row], aspect=step[0] / step[2])
plt.show()

# %% [markdown]
# ## Where does the airway end?
#
# The trachea enters from above: a small, round, dark disk near the middle. Start in the
# highest plane with air inside, and take its region.

# %%
top = np.flatnonzero(inside.any((1, 2)))[-1]
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
# ## Which lung is which?
#
# Not the left of the picture, but the left of the **patient**: in LPS coordinates x
# grows to the left. So compare the centers in millimeters.

# %%
lungs = np.zeros(hu.shape, np.uint8)
centers = [ndimage.center_of_mass(labels == label) for label in order[:2] + 1]
x = [(phantom.volume.affine @ [*center, 1])[0] for center in centers]
for label, side in zip(order[:2] + 1, np.argsort(np.argsort(x)) + 1, strict=True):
    lungs[labels == label] = side
print("x of right and left:", *(f"{value:.0f} mm" for value in sorted(x)))

# %% [markdown]
# Where lungs touch in front of the heart, there is one region instead of two. Then
# `segment_lungs` cuts: in every plane it looks for the cheapest path from front to back,
# and pays for each lung voxel that it crosses, the darker the more. The path runs along
# the thin bright line between the lungs.

# %% [markdown]
# ## What about vessels and nodules?
#
# A vessel is a hole that reaches the mediastinum, so filling holes is not enough. Close
# by a ball: everything nearer than a radius joins, then shrinks back. Distances are in
# millimeters, whatever the voxel.


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

# %% [markdown]
# Read every row. The new mask is better where a mask matters most, and worse in one: on
# these large voxels it cuts a nodule on the pleura, while the old one, grown far beyond
# the lungs, cannot miss it. A mask of everything keeps every nodule.

# %% [markdown]
# One phantom is one point. A **dose-response curve** turns one knob and watches the
# score: how far off-center, how large a nodule, how thick a plane.

# %%
doses = {
    "offset": [(mm, {"offset": (mm, 0)}) for mm in (0, 15, 30)],
    "nodule": [(mm, {"nodules": ((mm, "pleura"),)}) for mm in (10, 20, 30)],
    "plane": [(mm, {"shape": (int(300 / mm), 128, 128)}) for mm in (3, 5, 8)],
}
print({knob: [mm for mm, _ in settings] for knob, settings in doses.items()})

# %% [markdown]
# For each dose: a phantom, two masks, two scores.

# %%
curves = {knob: [] for knob in doses}
for knob, (mm, knobs) in (
    (k, dose) for k, doses_k in doses.items() for dose in doses_k
):
    spacing = (mm if knob == "plane" else 5.0, 2.8, 2.8)
    scan = questlib.make_phantom(**(grid | knobs | {"spacing": spacing}))
    masks = np.stack([questlib.mask_plane_2017(p).mask for p in scan.volume.array])
    pair = score(masks, scan), score(segment_lungs(scan.volume).labels, scan)
    curves[knob].append((mm, *pair))
print(sum(len(points) for points in curves.values()), "phantoms scored")

# %% [markdown]
# Draw Dice for both methods. Flat and high is what you hope for.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
for ax, (knob, points) in zip(axes, curves.items(), strict=True):
    for number, name in ((1, "2017"), (2, "3-D")):
        ax.plot(
            [p[0] for p in points],
            [p[number]["Dice"] for p in points],
            "o-",
            label=name,
        )
    ax.set(xlabel=f"{knob} in mm", ylim=(0, 1.02))
axes[0].set_ylabel("Dice")
axes[0].legend()
plt.show()

# %% [markdown]
# Dice hardly notices a nodule, even a lost one. So print what it costs:

# %%
for mm, before, after in curves["nodule"]:
    kept = f"2017 {before['nodules kept']:.0%}, 3-D {after['nodules kept']:.0%}"
    print(f"{mm} mm nodule on the pleura kept: {kept}")

# %% [markdown]
# ## And the patient?
#
# Here there is no truth, so look, and read the findings. `segment_lungs` says in words
# what it could not settle.

# %%
volume = questlib.load_series(questlib.choose_scan())
print(f"{volume.shape[0]} planes")

# %% [markdown]
# It takes a second or two, and needs no number from you. One finding needs an idea: a
# solid region cannot be told from chest wall by its HU, but the *other* lung can tell.
# Mirror it; where the mirror image has lung and this side has solid tissue, ask why.

# %%
mask = segment_lungs(volume)
for name, volume_ml in mask.volumes_ml.items():
    print(f"{name:6} {volume_ml:.0f} mL")
print("findings:", mask.findings or "none")

# %% [markdown]
# Both lungs in three planes, with their own colors. Check the letters, the trachea, the
# bases, and the border to the heart.

# %% tags=["cover"]
show_three_planes(volume, labels=mask.labels)
plt.show()

# %% [markdown]
# Two lungs are rarely equal. Where one is much smaller or flattened, ask why: the mask
# holds *aerated* lung, and what touches it. Compare the sides, plane by plane.

# %%
area = [(mask.labels == side).sum((1, 2)) for side in (1, 2)]
area_cm2 = np.array(area) * np.prod(volume.spacing[1:]) / 100
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.plot(area_cm2.T, label=["right", "left"])
ax.set(xlabel="plane", ylabel="lung area in cm2")
ax.legend()
plt.show()

# %% [markdown] tags=["patient"]
# In this patient the left lung is the smaller one, by more than the heart explains. A
# large mass lies against the posterior pleura of the left upper chest. The mask leaves
# most of it **out**: it is solid, open to the chest wall, and larger than what a nodule
# may be. Look for the dent in the left lung, in the upper planes: it is the solid region
# that the findings name. Its 54 mL are a lower bound.

# %% [markdown]
# A scan without lungs must not get any. Take the lowest planes of the phantom, below the
# diaphragm, with gas in the bowel:

# %%
abdomen = replace(phantom.volume, array=hu[:4])
empty = segment_lungs(abdomen)
print(np.count_nonzero(empty.labels), "voxels;", empty.findings)

# %% [markdown]
# ## Check yourself
#
# 1. Predict what a large consolidation does to Dice, to the volumes and to the findings;
#    then try a phantom with 60 mm of it.
# 2. Do the volumes change when all HU are shifted by 200?

# %% [markdown]
# ## Summary
#
# - Settle connectivity on a coarse grid, and only the boundary at full resolution.
# - Grow the airway downwards, and stop where its section leaks into lung.
# - Right and left come from patient coordinates, never from the side of the picture.
# - A pocket that lung wraps is kept; one that opens to the mediastinum is not.
# - Dice, volume, surface, trachea and nodules: no single number tells all.

# %% [markdown]
# ## In practice
#
# What fails: a large mass, consolidation or effusion on the pleura is left out, because
# by its HU it is no different from chest wall. The mirror image of the other lung finds
# it from about 20 mL, but not when both lungs are ill, not next to the heart, and not
# in a lung that the field of view cuts. Small bronchi inside the lungs stay in.
# On planes of 8 mm a nodule at the dome may be cut. Motion, metal and lungs at the edge
# of the field of view need your eyes. Hospital software uses trained networks for such
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
# - DICOM PS3.3, C.7.6.2.1.1: position and orientation, the source of left and right.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Solid lung is not air: it is left out, and Dice falls with the share it takes. The
#    findings name it, and a second one on the left: the central mass, which is lost on
#    voxels as large as these.

# %%
solid = questlib.make_phantom(**grid, consolidation=60)
found = segment_lungs(solid.volume)
missing = solid.parts["consolidation"] & (found.labels == 0)
print(f"{missing.sum() * np.prod(grid['spacing']) / 1000:.0f} mL left out")
print(*found.findings)

# %% [markdown]
# 2. No: the threshold lies between the air and the tissue of the scan, and the findings
#    say that the values are not calibrated. They name the lost mass as before.

# %%
shifted = replace(fine.volume, array=fine.volume.array + 200)
again = segment_lungs(shifted)
print(np.array_equal(again.labels, new), again.findings)
