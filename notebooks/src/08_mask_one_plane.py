# %% [markdown]
# # 08 · Mask one plane

# %% [markdown]
# **What you'll do**: rebuild the lung mask of 2017 stage by stage, ask every region why
# it was kept or dropped, and then mend the method.
#
# **What you'll learn**
#
# - Split a histogram in two without chance
# - Clean a mask with erosion and dilation
# - Read the verdict of every region in millimetres
# - Measure a mask against truth
# - Replace a rule about places by one about anatomy
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | the histogram | [05](05_read_the_histogram.ipynb) | necessary |
# | planes and overlays | [06](06_look_at_planes.ipynb) | helpful |
#
# **Time** 25 minutes · **memory** 400 MB · **download** none · **data and licence** see
# [00](00_start_here.ipynb)
#
# ![Six stages of a lung mask in one chest plane](images/08_mask_one_plane.png)

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage import measure, morphology

import questlib
from questlib.display import apply_window, show_stages, use_style

use_style()

# %% [markdown]
# ## What does the method see?
#
# One plane is enough. Take the one that holds most voxels in the range of lung; the
# rule finds a good plane in any scan.

# %%
volume = questlib.load_series(questlib.choose_scan())
lung_like = (volume.array > -950) & (volume.array < -600)
plane = volume.array[lung_like.sum((1, 2)).argmax()]
spacing = volume.spacing[1:]
print(f"{plane.shape[0]} rows, {plane.shape[1]} columns, {spacing[0]:.2f} mm apart")

# %% [markdown]
# The method of 2017 looks at the **middle**: the central three fifths of the rows and
# columns. Lungs and mediastinum fill it, so that air around the patient has little to
# say.

# %%
rows, columns = plane.shape
middle = np.s_[rows // 5 : int(rows / 5 * 4), columns // 5 : int(columns / 5 * 4)]
print(f"mean of the middle: {plane[middle].mean():.0f} HU")

# %% [markdown]
# Metal and padding would pull the clusters apart. So every voxel that equals the
# largest or the smallest value becomes the mean of the middle. The original computed
# a z-score first; that moves all values and the threshold together, and no voxel
# changes sides.

# %%
ends = (plane == plane.min()) | (plane == plane.max())
flat = np.where(ends, plane[middle].mean(), plane)
print(f"{np.count_nonzero(ends)} voxels were flattened")

# %% [markdown]
# Now two clusters: air and tissue. The original started at random and iterated. In one
# dimension you can try *every* cut of the sorted values and keep the best, thanks to
# cumulative sums: exact, and the same each time.

# %%
values, count = np.unique(flat[middle], return_counts=True)
weight, moment = np.cumsum(count), np.cumsum(count * values)
low = moment[:-1] / weight[:-1]
high = (moment[-1] - moment[:-1]) / (weight[-1] - weight[:-1])
best = (weight[:-1] * (weight[-1] - weight[:-1]) * (high - low) ** 2).argmax()
threshold = (low[best] + high[best]) / 2
print(f"centers {low[best]:.0f} and {high[best]:.0f} HU, threshold {threshold:.0f} HU")

# %% [markdown]
# The threshold lies half-way between the two centers. `questlib` holds the same lines:

# %%
from questlib.plane import split_in_two

assert np.isclose(split_in_two(flat[middle]), threshold)
below = flat < threshold

# %% [markdown]
# ## How do voxels become regions?
#
# Below the threshold lie lungs, airways, bowel gas and the room, with specks of noise.
# An **erosion** takes away whatever is thinner than its window; a **dilation** grows
# what is left, and closes over vessels.

# %%
eroded = morphology.erosion(below, np.ones((3, 3)))
grown = morphology.dilation(eroded, np.ones((8, 8)))
for name, stage in (("below", below), ("eroded", eroded), ("grown", grown)):
    print(f"{name:7} {np.count_nonzero(stage):7} voxels")

# %% [markdown]
# Notice the sizes: three voxels, then eight. The mask grows by more than it lost, and a
# window with an even size has no center, so it also shifts. And they are counted in
# *voxels*: the same code does something else at another field of view. Now give each
# connected region a number.

# %%
labels = measure.label(grown)
print(labels.max(), "regions")

# %% [markdown]
# ## Which regions stay?
#
# The rules of 2017 know only the **bounding box**. A lung is not too tall, not too
# wide, does not begin in the upper fifth and does not end in the lowest fifth. As
# published, the last rule compares with the *columns*; in a square plane nobody notices.

# %%
good = []
for region in measure.regionprops(labels):
    top, left, bottom, right = region.bbox
    slim = bottom - top < rows * 0.9 and right - left < columns * 0.9
    if slim and top > rows * 0.2 and bottom < columns * 0.8:
        good.append(region.label)
mask = morphology.dilation(np.isin(labels, good), np.ones((10, 10)))
print(
    f"{len(good)} regions stay, {np.count_nonzero(mask)} voxels after the last growth"
)

# %% [markdown]
# That was the whole method. `mask_plane_2017` is the same, fast enough for a slider,
# and keeps the stages and a verdict for every region.

# %%
from questlib.lungs import mask_plane, mask_plane_2017

old = mask_plane_2017(plane, spacing=spacing)
assert np.array_equal(old.mask, mask)

# %% [markdown]
# Here are its six stages. Kept regions are in color; a dropped one is gray, in a dotted
# box.

# %% tags=["cover"]
axes = plt.subplots(2, 3, figsize=(8, 5.8))[1].ravel()
show_stages(old, spacing=spacing, axes=axes)
plt.show()

# %% [markdown]
# Look at the fourth panel, then ask the verdicts. `missed_by_mm` says how far a region
# lies on the wrong side of its worst rule: a learner who "tries other numbers" can now
# see which number, and by how much.

# %%
for region in sorted(old.regions, key=lambda region: -region.area_mm2)[:5]:
    print(
        f"{region.area_mm2:7.0f} mm2, missed by {region.missed_by_mm:5.1f} mm:", end=" "
    )
    print(region.reason)

# %% [markdown] tags=["patient"]
# In this patient the right lung stays and the left lung goes: its box ends 2.0 mm too
# low. Half of the chest is lost to a rule about the edge of a picture.

# %% [markdown]
# ## Is it right?
#
# An opinion needs a ruler. In the phantom every voxel's truth is known. **Dice** is
# twice the overlap over the sum of both areas: one for a perfect mask, zero for no
# overlap.

# %%
grid = {"shape": (38, 180, 180), "spacing": (8.0, 2.0, 2.0)}
phantom = questlib.make_phantom(**grid)
truth = np.isin(phantom.truth, (1, 2))


def dice(a, b):
    return (
        2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
    )


# %% [markdown]
# Mask the plane that holds most lung, and compare areas as well: Dice alone does not
# say whether a mask is too large or too small.

# %%
index = truth.sum((1, 2)).argmax()
found = mask_plane_2017(phantom.volume.array[index]).mask
print(f"Dice {dice(found, truth[index]):.3f}")
print(f"area {found.sum() / truth[index].sum() - 1:+.0%}")

# %% [markdown]
# ## Why does it lose planes?
#
# A box rule is a rule about the *table*, not about the patient. Lower the table by 25
# mm, as happens every day, and mask all planes again.

# %%
lowered = questlib.make_phantom(**grid, offset=(25, 0))
scores = {}
for name, scan in (("centered", phantom), ("lowered", lowered)):
    lungs = np.isin(scan.truth, (1, 2))
    masks = [mask_plane_2017(hu).mask for hu in scan.volume.array]
    scores[name] = [
        dice(*pair) for pair in zip(masks, lungs, strict=True) if pair[1].any()
    ]
    print(f"{name}: {np.sum(np.array(scores[name]) < 0.5)} of {len(scores[name])} lost")

# %% [markdown]
# A plane counts as lost below a Dice of one half. Draw the score along the body, from
# the abdomen to the neck.

# %%
fig, ax = plt.subplots(figsize=(8, 3.5))
for name, values in scores.items():
    ax.plot(values, "o-", label=name)
ax.set(xlabel="lung plane, from the abdomen up", ylabel="Dice", ylim=(0, 1))
ax.legend()
plt.show()

# %% [markdown]
# The phantom is the same in both; only its place differs. Moving the limits would lose
# other patients. The rule itself has to go.

# %% [markdown]
# ## How is it mended?
#
# What tells a lung from the room? The room reaches the **border** of the plane; a lung
# is wrapped by the body. Label the dark regions, and drop those that touch the border.

# %%
dark = plane < threshold
labels, _ = ndimage.label(dark)
border = np.r_[labels[0], labels[-1], labels[:, 0], labels[:, -1]]
inside = dark & ~np.isin(labels, border)
print(f"{np.count_nonzero(dark)} dark voxels, {np.count_nonzero(inside)} inside")

# %% [markdown]
# Vessels are still missing. A **closing** (grow, then shrink by the same) with a disk
# bridges them, and filling holes does the rest. An odd disk has a center: nothing
# shifts, and its radius is in millimetres.

# %%
closed = morphology.isotropic_closing(inside, 4, spacing=spacing)
filled = ndimage.binary_fill_holes(closed)
print(f"inside {inside.sum()}, closed {closed.sum()}, filled {filled.sum()} voxels")

# %% [markdown]
# `mask_plane` does this with more care. It takes its threshold from air and tissue *of
# this plane*, so that a shift by 200 HU changes nothing; it opens the body wall to find
# the table; it drops round central airways, and gas as dark as the room; it fills no
# hole larger than a mass. A plane without lungs gives an empty mask.

# %%
new = mask_plane(plane, spacing=spacing)
assert np.array_equal(new.mask, mask_plane(plane + np.int16(200), spacing=spacing).mask)
print([region.reason for region in new.regions if region.area_mm2 > 100])

# %% [markdown]
# Side by side, on the same plane: the old mask in the left panel, the mended one in
# the right.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
for ax, name, result in zip(axes, ("2017", "mended"), (old, new), strict=True):
    ax.imshow(apply_window(plane, -600, 1500), aspect=spacing[0] / spacing[1])
    ax.contour(result.mask, [0.5], colors="orange")
    ax.set_title(f"{name}: {result.mask.sum() * np.prod(spacing) / 100:.0f} cm2")
    ax.set_axis_off()
plt.show()

# %% [markdown]
# And against truth, for the patient in the middle and 25 mm lower:

# %%
for name, scan in (("centered", phantom), ("lowered", lowered)):
    lungs = np.isin(scan.truth, (1, 2))
    found = [mask_plane(hu, spacing=(2.0, 2.0)).mask for hu in scan.volume.array]
    pairs = zip(found, lungs, strict=True)
    score = np.array([dice(*pair) for pair in pairs if pair[1].any()])
    print(f"{name}: median Dice {np.median(score):.3f}, {np.sum(score < 0.5)} lost")

# %% [markdown]
# A rule that does not exist is refused, so that a typing error cannot hide:

# %% tags=["raises-exception"]
mask_plane_2017(plane, rules={"botom": 0.92})

# %% [markdown]
# The message names the rule it does not know, and those it does. With the numbers of an
# ancestor of the method, more regions pass:

# %%
wider = mask_plane_2017(plane, spacing=spacing, rules={"top": 0.08, "bottom": 0.92})
axes = plt.subplots(2, 3, figsize=(8, 5.8))[1].ravel()
show_stages(wider, spacing=spacing, axes=axes)
plt.show()

# %% [markdown]
# Now with sliders: move a rule and watch a region change its verdict.

# %% tags=["nbval-ignore-output"]
questlib.explore_mask(volume)

# %% [markdown]
# ## Check yourself
#
# 1. Predict whether a larger first erosion makes the 2017 mask smaller or larger, then
#    try sizes of three and seven.
# 2. Switch closing and hole filling off. How much of the mended mask is vessels?

# %% [markdown]
# ## Summary
#
# - Two clusters of one variable need no iteration: the best cut of a histogram is exact.
# - The method of 2017 grows the lungs, because it dilates more than it erodes.
# - Its box rules are about the table, and lose planes when the patient lies lower.
# - Border-connected air, disks in millimetres and limited hole filling mend it.
# - Every region deserves a verdict; without one you can only guess at numbers.

# %% [markdown]
# ## In practice
#
# One plane cannot know everything. It sees a bronchus as part of the lung, cannot follow
# the trachea, and may take a stomach bubble next to the lung for lung; where a lung
# touches the edge of the field of view it has to guess. Hospital software works in
# three dimensions, and mostly with trained networks. Education and research, not for
# diagnosis.

# %% [markdown]
# ## What's next
#
# Planes know their neighbors: [09 · Mask the lungs](09_mask_the_lungs.ipynb) takes the
# whole scan at once.

# %% [markdown]
# ## References
#
# - H. Chen, "DICOM Processing and Segmentation in Python", Radiology Data Quest, 2017:
#   the method rebuilt here; after G. Zuidhof's and Booz Allen's tutorials on Kaggle.
# - N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions
#   on Systems, Man, and Cybernetics 9 (1979): two clusters as one cut.
# - L. R. Dice, "Measures of the amount of ecologic association between species",
#   Ecology 26 (1945): the overlap score.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. A larger erosion removes thin bridges and specks; the dilation stays, so the mask is
#    smaller, or regions fall apart and pass the rules one by one.

# %%
for size in (3, 7):
    tried = mask_plane_2017(plane, rules={"erosion": size})
    print(f"erosion {size}: {tried.mask.sum()} voxels")

# %% [markdown]
# 2. What the threshold alone leaves out, inside of the lungs, is mostly vessels.

# %%
bare = mask_plane(plane, spacing=spacing, rules={"closing_mm": 0, "hole_mm2": 0}).mask
print(
    f"{1 - bare.sum() / new.mask.sum():.1%} of the mended mask is vessels and the like"
)
