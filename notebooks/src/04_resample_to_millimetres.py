# %% [markdown]
# # 04 · Resample to millimetres

# %% [markdown]
# **What you'll do**: turn the boxes of a scan into cubes of 1 mm, with every voxel at
# its true place in the patient.
#
# **What you'll learn**
#
# - Lay a new grid over the patient without drift
# - Write interpolation as one small matrix an axis
# - Measure what a sharper kernel overshoots, and what skipping voxels invents
# - Give all patients one shape, and know what each way costs
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | a volume with its geometry | [02](02_stack_a_series.ipynb) | necessary |
# | Hounsfield units | [03](03_convert_to_hounsfield.ipynb) | helpful |
#
# **Time** 25 minutes · **memory** 700 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![A coronal plane of the scan, drawn voxel by voxel and in millimetres](images/04_resample_to_millimetres.png)

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

import questlib
from questlib.display import apply_window, show_plane, use_style

use_style()

# %% [markdown]
# ## How big is a voxel?
#
# Load the scan and ask for its spacing: the distance of neighboring voxel centers along
# plane, row and column. Within a plane it is *Pixel Spacing* (0028,0030); between planes
# `load_series` measured it from *Image Position (Patient)* (0020,0032).

# %%
scan = questlib.choose_scan()
volume = questlib.load_series(scan)
print(volume)

# %% [markdown]
# A voxel is a box, not a cube. How long is its longest side, compared with the
# shortest? And how large is the whole grid, in millimetres?

# %%
spacing = np.array(volume.spacing)
extent = volume.shape * spacing
print(f"longest side / shortest side: {spacing.max() / spacing.min():.1f}")
print("extent in mm:", extent.round(1))

# %% [markdown] tags=["patient"]
# Five millimetres along the patient, less than one within a plane. A program that counts
# voxels instead of millimetres sees this patient pressed flat.

# %% [markdown]
# Look for yourself. Cut a coronal plane by rule: through a place three quarters of the way
# up, 70 % of the way to the back and 65 % to the left. In a usual axial scan that is the
# upper left chest.

# %%
place = (np.array(volume.shape) * (0.75, 0.70, 0.65)).astype(int)
level, row, column = place
print("plane, row, column:", place)

# %% [markdown]
# Draw it twice: voxel by voxel, and in millimetres.

# %% tags=["cover"]
coronal = apply_window(volume.array[::-1, row], -600, 1500)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
axes[0].imshow(coronal)
axes[0].set(title="one voxel, one pixel", xlabel="column", ylabel="plane, from above")
show_plane(volume, row, view="coronal", ax=axes[1])
axes[1].set(title="in millimetres")
plt.show()

# %% [markdown]
# Left, each voxel is one square pixel; right, each voxel has its true size (the left
# picture assumes a usual axial scan). Both show the same numbers. A round nodule is a
# pancake on the left, and so it is for every filter, every "3 x 3 x 3 voxels" and every
# network that you apply to the raw grid.

# %% [markdown] tags=["patient"]
# The white ball high in the left lung, at your right, is the tumor. In the left picture it
# is a flat smear: nobody would call it round, or guess its size.

# %% [markdown]
# ## Where does the new grid lie?
#
# You want cubes of 1 mm. How many fit into the extent? Round to the nearest whole
# number, because a grid has no half voxels.

# %%
step = 1.0
count = np.floor(extent / step + 0.5).astype(int)
print("voxels:", count)
print("left over, in mm:", (extent - count * step).round(2))

# %% [markdown]
# What is left over is less than one voxel. Share it out to both ends: old and new grid
# then have the same center. From there you walk back to the first voxel, half the way
# from first to last center:

# %%
half_old = (np.array(volume.shape) - 1) / 2 * spacing
half_new = (count - 1) / 2 * step
origin = volume.origin + volume.direction @ (half_old - half_new)
print("old origin:", np.round(volume.origin, 2), "mm")
print("new origin:", np.round(origin, 2), "mm")

# %% [markdown]
# The origin moves, although the patient does not: it is the *center* of the first voxel,
# and a smaller voxel at the same edge has its center nearer to that edge. Forget this
# and everything is shifted by up to half an old voxel.
#
# The tutorial of 2017 called `zoom`, which puts the first and last *centers* of both
# grids on top of each other. Feed it the positions of 126 planes, 2.5 mm apart.

# %%
old = np.arange(126) * 2.5
new = ndimage.zoom(old, 315 / 126, order=1)
print(f"{len(new)} planes, said to be 1 mm apart, in truth {new[1] - new[0]:.3f} mm")
print(f"the last one is {len(new) - 1 - new[-1]:.1f} mm from where it is said to be")

# %% [markdown]
# The error grows from plane to plane and nobody sees it in a picture. A volume in mL
# comes out too large, and a mask that is handed back lies beside its lung.

# %% [markdown]
# ## What is interpolation?
#
# Now the values. Take five voxels on a line and ask for eight: where do the new centers
# lie, counted in old voxels?

# %%
positions = (5 - 1) / 2 + (np.arange(8) - (8 - 1) / 2) * 5 / 8
positions = positions.clip(0, 5 - 1)
print(positions.round(3))

# %% [markdown]
# Between two old centers, linear interpolation weighs both by their nearness: a weight
# is 1 at distance 0 and falls to 0 at distance 1, like a tent. Beyond the last center
# the last value goes on, which is what `clip` does. All weights make one matrix, one row
# for each new voxel:

# %%
tent = 1 - np.abs(positions[:, None] - np.arange(5))
matrix = np.maximum(0, tent)
print(matrix.round(2))

# %% [markdown]
# Each row sums to 1, so a constant stays constant. Resampling is multiplication:

# %%
values = np.array([-1000, -1000, -850, 40, 40])
print((matrix @ values).round(0))

# %% [markdown]
# That is the whole idea. A volume has three axes, so it takes three matrices: columns,
# rows, planes. The helper builds the same matrix, and stores only what is not zero.

# %%
from questlib.resample import interpolation_matrix, resample

assert np.allclose(interpolation_matrix(5, 8).toarray(), matrix)
share = interpolation_matrix(512, 358).nnz / (512 * 358)
print(f"512 to 358 voxels: {100 * share:.1f} % of the matrix is not zero")

# %% [markdown]
# Prove the rest on the coronal plane. One matrix works on the planes, one on the
# columns; the rows stay as they are.

# %%
sheet = volume.array[:, row].astype(np.float32)
planes, columns = (
    interpolation_matrix(volume.shape[axis], count[axis], step / spacing[axis])
    for axis in (0, 2)
)
flat = planes @ sheet @ columns.T

# %% [markdown]
# And the same through the helper, which takes a volume that is one row thick:

# %%
slab = questlib.Volume(
    volume.array[:, row : row + 1], spacing, volume.origin, volume.direction
)
fine = resample(slab, (step, spacing[1], step))
assert np.abs(fine.array[:, 0] - flat).max() <= 0.51

# %% [markdown]
# The two differ by half a unit at most: HU came in as whole numbers, so the helper
# rounds them on the way out. Here is the whole scan, with the origin from above.

# %%
cube = resample(volume, step)
assert np.allclose(cube.origin, origin)
assert cube.shape == tuple(count)
print(cube)

# %% [markdown]
# Compare the coronal planes. Left the scan as it is, right the cubes.

# %%
from questlib.display import show_pair

show_pair(volume, cube, row, view="coronal", titles=("boxes", "cubes of 1 mm"))
plt.show()

# %% [markdown]
# The steps along the patient are gone, the detail is not better: interpolation draws
# between the planes, it cannot know what lies there.
#
# What does that do to a border? Go down from the place of the cut, averaging five columns
# against the noise, to the steepest step from lung to soft tissue. Print the two planes
# beside it, then the new voxels from the one to the other.

# %%
line = sheet[:, column - 2 : column + 3].mean(axis=1)
k = np.diff(line[: level + 1]).argmax()
mm = half_old[0] - half_new[0] + np.arange(count[0]) * step
between = (mm >= k * spacing[0]) & (mm <= (k + 1) * spacing[0])
pair, new = line[k : k + 2], (planes @ line)[between]
print(f"planes {k} and {k + 1} lie {spacing[0]:.1f} mm apart")
print("two planes:", pair.round().astype(int), "HU")
print("new voxels:", new.round().astype(int), "HU")

# %% [markdown] tags=["patient"]
# This is the lower border of the tumor. One plane holds lung at -741 HU, the next tumor at
# -12 HU, and where the border lies in these 5 mm nobody knows. The four new values between
# them, from -595 to -158 HU, were never measured. **What would fool you here is a soft rim
# that looks like ground glass.**
#
# Where the tumor touches the chest wall, soft tissue lies on both sides: there is no step in
# HU, and no kernel draws a border there. Notebook 05 measures that.

# %% [markdown]
# ## What does a sharper curve cost?
#
# A cubic kernel looks at four voxels instead of two and draws a smoother curve. Try it
# on the hardest edge of a chest: air beside soft tissue, resampled ten times finer.

# %%
edge = np.full(14, -1000.0)
edge[7:] = 40
curves = {
    "linear": interpolation_matrix(14, 140, order=1) @ edge,
    "cubic": interpolation_matrix(14, 140, order=3) @ edge,
    "spline of 2017": ndimage.zoom(edge, 10, order=3, mode="nearest", grid_mode=True),
}

# %% [markdown]
# Nothing in the input is below -1000 or above 40 HU. Does it stay so?

# %%
for name, curve in curves.items():
    beyond = 100 * (curve.max() - 40) / (40 - -1000)
    ends = f"from {curve.min():6.0f} to {curve.max():4.0f} HU"
    print(f"{name:15} {ends}, {beyond:2.0f} % of the edge too far")

# %% [markdown]
# Look at where it happens.

# %%
place = (np.arange(140) + 0.5) / 10 - 0.5
fig, ax = plt.subplots(figsize=(8, 3.2))
for (name, curve), line in zip(curves.items(), ("-", "--", ":")):
    ax.plot(place, curve, line, label=name)
ax.plot(edge, "k.", label="old voxels")
ax.set(xlim=(3.5, 9.5), xlabel="position in old voxels", ylabel="HU")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Dots are the old voxels, and all curves pass through them. The cubic curve swings out on
# both sides of the edge by 7 % of its height; the spline by 11 %, and goes on swinging.
# Below -1000 HU there is no tissue and no gas: **what would fool you here is a dark rim
# around every vessel that the patient does not have.** Linear never leaves the range of its
# two neighbors. It blurs a little instead.
#
# questlib takes linear unless you ask for `order=3`. For pictures cubic is fine. For
# labels take `order=0`, the nearest voxel: half of label 1 and half of label 3 is not
# label 2.

# %% [markdown]
# ## Why is this fast?
#
# `zoom` works on one new voxel at a time. A cubic kernel takes 4 neighbors along each axis,
# so 4 x 4 x 4 = 64, and `zoom` puts the weight of each together from three, anew for every
# voxel.
#
# But along one axis all lines of voxels share the same weights. So three matrices hold them
# all. Count the multiplications: each number in a matrix that is not zero (`nnz`) costs one
# for every line of voxels. Rows and columns come first, then planes.

# %%
cubic = [
    interpolation_matrix(old, new, ratio, order=3)
    for old, new, ratio in zip(volume.shape, count, step / spacing)
]
shape, products = np.array(volume.shape), 0
for axis in (1, 2, 0):
    products += cubic[axis].nnz * (shape.prod() / shape[axis])
    shape[axis] = count[axis]
print(f"voxel by voxel: {4**3} multiplications for each new voxel")
print(f"three matrices: {products / shape.prod():.1f}")

# %% [markdown]
# A product became a sum: 4 + 4 + 4 instead of 4 x 4 x 4. It is even less where planes
# become more, because rows and columns are then done on the few old planes. An axis that
# becomes coarser takes a few more (next section). And the 64 leave out how each weight is
# made.
#
# Multiplications are not seconds; memory and the number of cores count too. What a stopwatch
# says, beside other programs, is in [the benchmarks](../benchmarks/RESULTS.md).

# %% [markdown]
# ## What happens to fine detail?
#
# So far voxels became smaller. Now make them larger: stripes of 1 mm, sampled every
# 2.7 mm. First by taking the nearest voxel and skipping the others, then with the
# helper, which averages as it goes. (The three voxels at each end, where values repeat, are
# left out of the swing.)

# %%
stripes = np.where(np.arange(300) % 2, 0.0, 1000.0)
skipped = interpolation_matrix(300, 111, 2.7, order=0) @ stripes
smooth = interpolation_matrix(300, 111, 2.7, order=1) @ stripes
for name, line in (("skipped", skipped), ("averaged", smooth)):
    print(f"{name:9} mean {line.mean():3.0f}, swings by {np.ptp(line[3:-3]):4.0f}")

# %% [markdown]
# Draw the first half.

# %%
fig, axes = plt.subplots(3, 1, figsize=(8, 3.2), sharex=True)
for ax, line, name in zip(
    axes, (stripes, skipped, smooth), ("1 mm", "skipped", "averaged")
):
    ax.imshow([line], aspect="auto", extent=(0, 300, 0, 1), vmin=0, vmax=1000)
    ax.set(yticks=[], xlim=(0, 150), ylabel=name)
axes[-1].set(xlabel="mm")
plt.show()

# %% [markdown]
# The middle row shows stripes that are broader than the true ones. They are invented:
# *aliasing*. In a chest the same thing turns fine vessels into beads and noise into
# grain. The lower row is nearly even: the gray that a thick voxel really sees.
#
# A tent that is just as broad as the new voxel does both jobs at once, and the matrix
# only gets more numbers in each row. `resample` does this whenever an axis becomes
# coarser.

# %% [markdown]
# ## How do all patients get one shape?
#
# A network wants equal arrays, and patients are not equal. Many readers of 2017 asked
# for both at once: equal voxels *and* equal shapes. The size of a patient is in
# millimetres, so one of the two has to give. There are three ways.
#
# **Pad or crop.** Voxels stay 1 mm. What is missing becomes air, what is too much is cut
# off, half of it at each end. Take 384 voxels an axis as the goal.

# %%
goal = np.array([384, 384, 384])
front = goal // 2 - np.array(cube.shape) // 2
back = goal - cube.shape - front
pads = np.maximum([front, back], 0).T
cut = tuple(slice(-f, -f + n) if f < 0 else slice(n) for f, n in zip(front, goal))
by_hand = np.pad(cube.array[cut], pads, constant_values=-1000)

# %% [markdown]
# The helper does the same, and moves the origin along: no voxel leaves its place in the
# patient.

# %%
fitted = questlib.fit_shape(cube, goal)
assert np.array_equal(fitted.array, by_hand)
assert np.allclose(fitted.origin, cube.affine[:3] @ (*-front, 1))
print(fitted)

# %% [markdown]
# Count what was cut off: everything denser than -500 HU, table included.

# %%
dense = np.count_nonzero(cube.array > -500)
kept = np.count_nonzero(fitted.array > -500)
print(f"cut off: {100 * (1 - kept / dense):.1f} % of what is not air")
print(f"new air: {100 * (1 - np.minimum(cube.shape, goal).prod() / goal.prod()):.1f} %")

# %% [markdown]
# What is cut off is gone. Arms and table are no loss, a lung would be: look at which
# voxels went before you choose the size.
#
# **Stretch.** Nothing is lost and nothing is added, but a voxel now has the size of this
# patient. The result says it honestly: look at the spacing.

# %%
stretched = resample(volume, shape=(128, 128, 128))
print("spacing in mm:", np.round(stretched.spacing, 2))

# %% [markdown]
# Two patients of different height get different voxels. Cut this scan to the middle half
# of its height, stretch again, and measure a nodule of 20 mm in both.

# %%
half = questlib.fit_shape(volume, (volume.shape[0] // 2, *volume.shape[1:]))
other = resample(half, shape=(128, 128, 128))
for name, one in (("whole scan", stretched), ("half scan", other)):
    print(name, "20 mm are", (20 / np.array(one.spacing)).round(1), "voxels")

# %% [markdown]
# The same nodule, twice as many voxels along the patient. A network can learn this, but
# it can no longer measure.
#
# **Patches.** Cut blocks of one shape out of the 1 mm volume, with some overlap, and
# join the answers afterwards. Voxels stay equal, nothing is lost. The network sees less
# at a time, and you run it more often.

# %%
patch, overlap = 128, 16
blocks = np.ceil((np.array(cube.shape) - overlap) / (patch - overlap)).astype(int)
print(f"{blocks.prod()} patches of {patch} voxels an axis ({blocks})")
print(f"{patch**3 * 4 / 1e6:.0f} MB each as float32")
print(f"{cube.array.size * 4 / 1e6:.0f} MB for the whole volume")

# %% [markdown]
# Which one? To measure, pad or crop. To say yes or no about a whole patient, stretching
# may do. To mark voxels, take patches. And keep the spacing with the array, whichever
# you choose. One thing is refused, a grid that no machine here can hold:

# %% tags=["raises-exception"]
resample(volume, 0.01)

# %% [markdown]
# The message says how many voxels that would be, and what they would weigh. Most often
# it is a slip between centimetres, millimetres and metres.

# %% [markdown]
# ## Check yourself
#
# 1. Predict the shape of this scan at 2 mm, then resample.
# 2. Let every voxel hold its own position along the patient in mm. Resample: does each
#    new voxel still hold its own position?
# 3. Make a mask of everything denser than -500 HU and resample it with `order=0`. Is the
#    volume in mL the same?

# %% [markdown]
# ## Summary
#
# - A voxel is a box. Work in millimetres, not in voxels.
# - Old and new grid share their center, and the origin moves with the voxel size.
# - Interpolation is one small matrix an axis; each row sums to 1.
# - Cubic overshoots an edge by 7 %, linear never; skipping voxels invents stripes.
# - Equal voxels or equal shapes: you cannot have both for free.

# %% [markdown]
# ## In practice
#
# Thin planes are better than interpolated thick ones: no kernel brings back what a 5 mm
# plane has averaged. Workstations resample on the fly for coronal and sagittal views and
# keep the original. Measure on the original grid where you can, and say which kernel and
# spacing you used. Gantry tilt and missing planes are no case for `resample`;
# `load_series` handles or refuses them. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# The grid is even. What do the numbers on it say?
# [05 · Read the histogram](05_read_the_histogram.ipynb)

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.6.2.1.1: Image Position (Patient) is the center of the first voxel.
# - DICOM PS3.3, 10.7.1.3: Pixel Spacing, the distance between rows first.
# - R. Keys, "Cubic convolution interpolation for digital image processing", IEEE
#   Transactions on ASSP 29 (1981), 1153-1160: the cubic kernel used here.
# - P. Thévenaz, T. Blu, M. Unser, "Interpolation revisited", IEEE Transactions on
#   Medical Imaging 19 (2000), 739-758: kernels compared, and why splines swing.
# - `scipy.ndimage.zoom`: its `grid_mode` option decides between centers and edges. Its C
#   source, `ni_interpolation.c`, shows the loop over all neighbors of a voxel.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Extent divided by 2, rounded.

# %%
coarse = resample(volume, 2.0)
assert coarse.shape == tuple(np.floor(extent / 2 + 0.5).astype(int))
print(coarse.shape)

# %% [markdown]
# 2. It does, but for the outermost voxels, where values repeat. One line of voxels along
#    the first axis is enough to see it.

# %%
along = np.arange(volume.shape[0], dtype=np.float32) * spacing[0]
ramp = questlib.Volume(along[:, None, None], spacing, (0, 0, 0), np.eye(3))
moved = resample(ramp, (step, *spacing[1:]))
truth = moved.origin[0] + np.arange(moved.shape[0]) * step
error = np.abs(moved.array[:, 0, 0] - truth)
inner = (truth >= 0) & (truth <= along[-1])
print(f"largest error within the old centers: {error[inner].max():.3f} mm")
assert error[inner].max() < 0.01

# %% [markdown]
# 3. Nearly: the nearest voxel moves each border by less than half an old voxel, now
#    outwards, now inwards.

# %%
mask = questlib.Volume(volume.array > -500, spacing, volume.origin, volume.direction)
ml = [
    np.count_nonzero(one.array) * np.prod(one.spacing) / 1000
    for one in (mask, resample(mask, step, order=0))
]
print(f"{ml[0]:.0f} mL before, {ml[1]:.0f} mL after")
assert abs(ml[1] / ml[0] - 1) < 0.01
