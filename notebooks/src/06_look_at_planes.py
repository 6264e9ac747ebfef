# %% [markdown]
# # 06 · Look at planes

# %% [markdown]
# **What you'll do**: draw planes of a scan in millimetres, the right way round, and put
# a mask over them; then you browse the scan with your mouse.
#
# **What you'll learn**
#
# - Draw any plane with its true shape
# - Derive the letters R L A P H F from the header
# - Choose the window for the question
# - Find the same place in three planes
# - Draw a mask that every eye can read
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | geometry of a volume | [02](02_stack_a_series.ipynb) | necessary |
# | windows | [03](03_convert_to_hounsfield.ipynb) | helpful |
#
# **Time** 20 minutes · **memory** 600 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Axial, coronal and sagittal plane with colored lungs](images/06_look_at_planes.png)

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import questlib
from questlib.display import OKABE_ITO, WINDOWS, apply_window, use_style
from questlib.volume import AXIAL

use_style()

# %% [markdown]
# ## What shape has a plane?
#
# Load the scan, and cut it from front to back half way: a coronal plane.

# %%
volume = questlib.load_series(questlib.choose_scan())
hu = volume.array
middle = hu.shape[1] // 2
coronal = hu[:, middle]
print(coronal.shape, "(plane, column), spacing", np.round(volume.spacing, 3), "mm")

# %% [markdown]
# Hand it to `imshow` as it is.

# %%
plt.imshow(coronal, vmin=-1350, vmax=149)
plt.xlabel("column")
plt.ylabel("plane")
plt.show()

# %% [markdown]
# Two things are wrong. The voxels are drawn as squares, but they are not: the distance
# between planes differs from the distance between columns. And the first plane is drawn
# on top, wherever it lies in the patient.
#
# Tell `imshow` where the picture lies in millimetres. The edges of the picture are half
# a voxel beyond the centers of the outermost voxels.

# %%
x, z = volume.origin[0], volume.origin[2]
dz, _, dx = volume.spacing
left, right = x - dx / 2, x + (hu.shape[2] - 0.5) * dx
bottom, top = z - dz / 2, z + (hu.shape[0] - 0.5) * dz
print(f"{right - left:.1f} mm wide, {top - bottom:.1f} mm high")

# %% [markdown]
# Planes are stacked towards the head in the usual axial scan, so the last one belongs on
# top: turn the array over.

# %%
plt.imshow(coronal[::-1], vmin=-1350, vmax=149, extent=(left, right, bottom, top))
plt.xlabel("x, to the left (mm)")
plt.ylabel("z, to the head (mm)")
plt.show()

# %% [markdown]
# Now a chest has the shape of a chest, and you could measure on the picture with a
# ruler. Steps in the vertical direction are the planes: honest, since nothing was
# measured between them.
#
# `show_plane` does the same, and adds letters and a scale bar. Prove it, for a usual
# axial scan, on the numbers behind the picture and not on its looks.

# %%
from questlib.display import show_plane

ax = show_plane(volume, middle, view="coronal")
if np.allclose(volume.direction, AXIAL):
    assert np.array_equal(ax.images[0].get_array(), coronal[::-1])
    assert np.allclose(ax.images[0].get_extent(), (left, right, bottom, top))
plt.show()

# %% [markdown]
# ## Which side is which?
#
# By convention you look at an axial plane from the feet, and at a coronal plane from the
# front, as if the patient faced you. In both, the patient's left is at your right. For
# sagittal planes programs differ; here you look from the patient's left. The letters say
# it on every picture: **R** and **L** for right and left, **A** and **P** for anterior and
# posterior, **H** and **F** for head and feet.
#
# They come from *Image Orientation (Patient)* (0020,0037), which notebook 02 turned into
# `direction`. Each of its columns says where one axis of the array points in LPS: x grows
# to the patient's left, y to the back, z to the head.

# %%
for name, unit in zip(("plane", "row", "column"), volume.direction.T, strict=True):
    axis = np.argmax(np.abs(unit))
    letter = ("RL", "AP", "FH")[axis][int(unit[axis] > 0)]
    print(f"the {name} index grows towards {letter}")

# %% [markdown]
# Would a wrong letter hurt? Store the same scan the other way round: last column first.
# The header then says so, and every program must turn the picture back.

# %%
corner = volume.affine @ (0, 0, hu.shape[2] - 1, 1)
mirrored = replace(
    volume,
    array=hu[:, :, ::-1],
    origin=corner[:3],
    direction=volume.direction * (1, 1, -1),
)

# %% [markdown]
# Draw the array as it is stored, then by its geometry.

# %%
axes = plt.subplots(1, 2, figsize=(8, 4))[1]
index = hu.shape[0] // 3
stored = mirrored.array[index]
axes[0].imshow(stored, vmin=-160, vmax=239, interpolation="antialiased")
axes[0].set(title="as stored", xlabel="column", ylabel="row")
show_plane(mirrored, index, window="mediastinum", ax=axes[1])
plt.show()

# %% [markdown]
# Both pictures look like a chest. In the left one the heart points to the wrong side,
# which a tired reader takes for dextrocardia, or does not notice at all. **What would
# fool you here is a mirror image without letters.** An operation on the wrong side is
# the worst that a picture can cause.

# %%
shown = [show_plane(v, index).images[0].get_array() for v in (volume, mirrored)]
plt.close("all")
print("same picture from both:", np.array_equal(*shown))

# %% [markdown]
# ## Which window for which question?
#
# One plane, three windows. Choose the plane by a rule that fits every chest: the one
# that holds most voxels in the range of lung.

# %%
in_range = (hu > -950) & (hu < -500)
best = int(in_range.sum(axis=(1, 2)).argmax())
axes = plt.subplots(1, 3, figsize=(9, 3.2))[1]
for ax, (name, (center, width)) in zip(axes, WINDOWS.items(), strict=True):
    show_plane(volume, best, window=name, ax=ax).set_axis_off()
    ax.set_title(f"{name} {center}/{width}")
plt.show()

# %% [markdown]
# Same plane, same numbers. The *lung* window shows vessels, fissures and nodules; soft
# tissue is nearly white. The *mediastinum* window shows fat darker than fluid, and fluid a
# little darker than muscle; lung is black. The *bone* window tells the cortex from what lies
# inside. None is *the* picture: each one answers one question, and hides the rest.

# %% [markdown]
# ## Where in the scan are you?
#
# A montage gives the overview: evenly spaced planes, head first, each with its number
# and its position in the patient. The number belongs to the array; the millimetres
# belong to the patient, and stay the same after resampling.

# %%
from questlib.display import show_montage

show_montage(volume, count=15)
plt.show()

# %% [markdown] tags=["patient"]
# Follow the lungs from the top. In the last two pictures of the first row, planes 50 and
# 45, a mass lies in the upper left chest, against the posterior chest wall. The tumor goes
# with you through the next notebooks: remember where it is.

# %% [markdown]
# ## How do three planes meet?
#
# Every voxel lies on one axial, one coronal and one sagittal plane. Which voxel is worth
# a look? Borrow the lungs from `segment_lungs`: notebook 09 builds it, step by step. It
# gives each voxel a label: 0 background, 1 right lung, 2 left lung. Right and left are
# the *patient's*, whatever the order of the array.

# %%
lungs = questlib.segment_lungs(volume)
labels = lungs.labels
for name in ("right", "left"):
    print(f"{name:5} lung: {lungs.volumes_ml[name] / 1000:.2f} L")

# %% [markdown] tags=["patient"]
# The left lung is normally a little smaller, because the heart takes its room. A gap like
# this one, 2.28 L against 3.16 L, is a reason to look for what is missing.

# %% [markdown]
# Take the voxel in the middle of the left lung, and let the three planes meet in it.

# %%
from questlib.display import show_three_planes

where = np.argwhere(labels == 2)
middle = np.median(where, axis=0) if len(where) else np.array(hu.shape) // 2
position = tuple(middle.astype(int))
show_three_planes(volume, position)
plt.show()

# %% [markdown]
# One scale for all three, so sizes compare. The dashed lines show where the other two
# planes cut. Check it on a landmark: go along the horizontal line of the coronal plane,
# and you walk through the axial plane.

# %% [markdown]
# ## How do you draw a mask?
#
# As a *contour* where you judge its border, since a contour hides nothing inside. As a
# *translucent color* where you want to see at a glance what belongs to it.
#
# Choose colors that many eyes can tell apart: up to one man in twelve confuses red with
# green. The palette of Okabe and Ito avoids such pairs.
#
# By hand, a translucent color is a mixture: here 60 % of the gray and 40 % of the color.

# %%
gray = apply_window(hu[best], *WINDOWS["lung"])[..., None]
paint = [int(OKABE_ITO["sky"][k : k + 2], 16) for k in (1, 3, 5)]
right = labels[best, ..., None] == 1
mixed = np.where(right, 0.6 * gray + 0.4 * np.array(paint), gray)

# %% [markdown]
# `contour` at level 0.5 draws the border of what is True. Put both on one picture, and
# beside it what `show_plane` draws.

# %%
axes = plt.subplots(1, 3, figsize=(9, 3.2))[1]
axes[0].imshow(mixed.astype(np.uint8), interpolation="antialiased")
axes[0].contour(labels[best] == 2, [0.5], colors=[OKABE_ITO["orange"]])
axes[0].set(title="by hand", xlabel="column", ylabel="row")
for ax, overlay in zip(axes[1:], ("contour", "color"), strict=True):
    show_plane(volume, best, labels=labels, overlay=overlay, ax=ax).set_axis_off()
    ax.set_title(overlay)
plt.show()

# %% [markdown]
# Blue is right and orange is left, here and in every notebook that follows. A contour runs
# half way between the last voxel inside and the first one outside. Is each color laid over
# its own label, at 40 %? Ask the picture.

# %%
for image in axes[2].images[1:]:
    painted = ~image.get_array().mask
    assert image.get_alpha() == 0.4
    if np.allclose(volume.direction, AXIAL):
        assert np.array_equal(painted, labels[best] == image.get_array().max())

# %% [markdown]
# How different are the two colors for an eye without color? Compare their lightness, by
# the weights that television chose for gray (ITU-R BT.601).

# %%
for name in ("sky", "orange"):
    red, green, blue = (int(OKABE_ITO[name][k : k + 2], 16) for k in (1, 3, 5))
    print(f"{name:6} lightness {0.299 * red + 0.587 * green + 0.114 * blue:.0f} of 255")

# %% [markdown]
# They are nearly the same in gray, so color alone does not carry the message: the legend
# names them and the letters R and L say where they are. A figure that must survive a
# black-and-white printer needs a second cue such as a dashed line.

# %% [markdown]
# A mask belongs to *one* grid. Forget that, and the picture would show it in the wrong
# place; the drawing refuses instead.

# %% tags=["raises-exception"]
show_plane(volume, best, labels=labels[::2])

# %% [markdown]
# The message names both shapes and the usual cause: the mask was made on a resampled
# volume, and must be brought back first.

# %% [markdown]
# ## How do you browse?
#
# All together: three planes, the mask, one place.

# %% tags=["cover"]
show_three_planes(volume, position, labels=labels, overlay="color")
plt.show()

# %% [markdown] tags=["patient"]
# Look high at the back of the sagittal plane: the white notch in the orange is the tumor,
# left out of the mask. The axial plane looks complete. **What would fool you here is one
# plane.**

# %% [markdown]
# A still picture shows what its author chose. Now choose for yourself: the mouse wheel
# or the arrow keys go through the planes, a drag changes the window, and the pointer
# reads HU and millimetres. The planes live in your browser, so nothing waits for Python.

# %% tags=["nbval-ignore-output"]
from questlib.widgets import explore_planes

explore_planes(volume, labels)

# %% [markdown]
# Without a running kernel you see no browser of planes here; the picture above is its
# twin. Values are reduced for display: measure on the volume, not on the screen.

# %% [markdown]
# ## Check yourself
#
# 1. Predict how many planes the sagittal view has, then ask `questlib.display.cut_plane` for
#    one too many.
# 2. Which letters stand at the four edges of the sagittal view? Predict, then print.
# 3. How far apart, in mm, are the planes of a montage with 15 pictures?

# %% [markdown]
# ## Summary
#
# - An extent in mm gives every plane its true shape; edges lie half a voxel outside.
# - Letters come from the direction cosines, never from the order of the array.
# - Windows are questions: lung -600/1500, mediastinum 40/400, bone 400/1800.
# - Contours judge borders, colors give overviews, legends name what they mean.
# - A mask fits one grid only.

# %% [markdown]
# ## In practice
#
# A workstation interpolates between planes, shows several series side by side and
# links their positions through the *Frame of Reference UID* (0020,0052). Its screens are
# calibrated (DICOM PS3.14), yours may not be. Oblique scans keep oblique planes here
# and get two letters, such as `AF`; a workstation would cut new planes. Education and
# research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# Planes are cuts. [07 · See surfaces](07_see_surfaces.ipynb) puts them together into
# something that you can turn, and print.

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.6.2.1.1: Image Position and Image Orientation (Patient); C.7.6.1.1.1:
#   Patient Orientation, the letters; C.7.4.1: Frame of Reference; C.11.2.1.2: window center
#   and width.
# - NiBabel documentation, "Radiological vs neurological conventions": who looks from the
#   feet, and who from the head.
# - *European Guidelines on Quality Criteria for Computed Tomography*, EUR 16262 (1999):
#   ranges for the windows of a chest CT; the presets here are common choices.
# - M. Okabe and K. Ito, "Color Universal Design" (2008): the palette.
# - B. Wong, "Color blindness", Nature Methods 8 (2011), 441: how many men it concerns.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. As many as the array has voxels from side to side: in an axial scan its columns. The
#    last index is one less.

# %%
from questlib.display import cut_plane

sides = int(np.abs(volume.direction[0]).argmax())
try:
    cut_plane(volume, volume.shape[sides], view="sagittal")
except ValueError as error:
    print(error)

# %% [markdown]
# 2. You look from the patient's left: the front is at your left, the head on top.

# %%
letters = cut_plane(volume, view="sagittal").letters
print("left, right, bottom, top:", *letters)
assert [letter[0] for letter in letters] == ["A", "P", "F", "H"]

# %% [markdown]
# 3. The planes that are shown divide the scan evenly, rounded to whole planes.

# %%
shown = np.unique(np.linspace(0, len(hu) - 1, min(15, len(hu))).round())
steps = np.diff(shown) * volume.spacing[0]
print(f"{steps.min():.1f} to {steps.max():.1f} mm")
assert np.ptp(steps) < 1.01 * volume.spacing[0]
