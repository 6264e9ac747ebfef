# %% [markdown]
# # 02 · Stack a series

# %% [markdown]
# **What you'll do**: turn a folder of files into one volume in which every voxel knows
# its place in the patient.
#
# **What you'll learn**
#
# - Group files by series, whatever their names
# - Sort planes by their position along the normal
# - Measure the spacing instead of reading it
# - Build the affine that leads from voxel to millimetre
# - Check a stack before you trust it
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | data elements and tags | [01](01_dig_into_a_dicom_file.ipynb) | necessary |
# | cross and dot product | any textbook | helpful |
#
# **Time** 20 minutes · **memory** 300 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![A coronal cut through planes in the wrong and the right order](images/02_stack_a_series.png)

# %%
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pydicom
from pydicom.misc import is_dicom

import questlib
from questlib.display import apply_window, edge_letters, use_style

use_style()

# %% [markdown]
# ## Which files belong together?
#
# A hospital CD is a heap: scans, a localizer, a dose report, a viewer program. Take every
# file and keep what has the letters `DICM` at byte 128. The name proves nothing.

# %%
scan = questlib.choose_scan()
files = [file for file in sorted(scan.rglob("*")) if file.is_file()]
headers = [
    pydicom.dcmread(file, stop_before_pixels=True) for file in files if is_dicom(file)
]
print(len(files), "files,", len(headers), "of them DICOM")

# %% [markdown]
# Files of one series share one *Series Instance UID* (0020,000E; DICOM PS3.3, C.7.3.1).
# Group by it. The UID points to a patient's examination, so you use it and never print it.
# A CD's table of contents, the DICOMDIR, has none and drops out.

# %%
groups = defaultdict(list)
for ds in headers:
    if "SeriesInstanceUID" in ds:
        groups[ds.SeriesInstanceUID].append(ds)
for group in groups.values():
    print(f"{group[0].get('Modality')}: {len(group)} files")

# %% [markdown]
# Take the largest group. From here on you work with headers only: a few kilobytes of
# each file. The pixels come last, when everything else is known to fit.

# %%
planes = max(groups.values(), key=len)
sizes = {(ds.Rows, ds.Columns) for ds in planes}
print(len(planes), "planes, rows and columns:", sizes)

# %% [markdown]
# One size for all planes is the first check. A set that holds two sizes would end the
# story here.

# %% [markdown]
# ## Where does a plane lie?
#
# Two attributes place a plane in the patient (PS3.3, C.7.6.2.1.1):
#
# - *Image Position (Patient)* (0020,0032): where the center of its first voxel is, in mm
# - *Image Orientation (Patient)* (0020,0037): two unit vectors, the direction along a row
#   and the direction down a column
#
# The axes are L, P and S: +x to the patient's left, +y to the back (posterior), +z to the
# head (superior).

# %%
ds = planes[0]
position = np.array(ds.ImagePositionPatient, float)
orientation = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
along_row, down_column = orientation
print("position", position, "mm")
print("along a row", along_row, "down a column", down_column)

# %% [markdown]
# Both must have length 1 and stand at a right angle. If they do, their cross product is
# the third axis: the **normal** of the plane. Planes are stacked along it.

# %%
assert np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-3)
normal = np.cross(along_row, down_column)
print("normal", np.round(normal, 3))

# %% [markdown]
# The dot product with the normal turns a position into one number: how far along the
# stack the plane lies. For an axial scan this is z. For a coronal, sagittal or oblique one
# it is not, so never sort by z.

# %%
steps = np.array([normal @ np.array(ds.ImagePositionPatient, float) for ds in planes])
print(f"from {steps.min():.1f} to {steps.max():.1f} mm along the normal")

# %% [markdown]
# ## Which order is right?
#
# Three orders are at hand, and two of them mislead. *Instance Number* (0020,0013) counts
# images the way the scanner numbers them. Does it run with the normal?

# %%
numbers = np.array([int(ds.InstanceNumber or 0) for ds in planes])
by_number = steps[np.argsort(numbers, kind="stable")]
print("rises with Instance Number:", bool((np.diff(by_number) > 0).all()))
print("falls with Instance Number:", bool((np.diff(by_number) < 0).all()))

# %% [markdown] tags=["patient"]
# On this patient Instance Number 1 is the plane nearest to the head, so the number falls
# as the position rises. A loader that takes the number for the way up stacks the patient
# upside down: each axial plane looks as it should, and the tumor of the upper left chest
# is reported in the lower chest. Other scanners count the other way, or start anew for
# each acquisition.

# %% [markdown]
# File names are worse. Text sorts letter by letter, so 10 comes before 2.

# %%
names = [f"IM{number}" for number in range(1, 13)]
print(sorted(names))

# %% [markdown]
# The position depends on no name and no count: it says where the plane was reconstructed.
# Sort by it.

# %%
order = np.argsort(steps)
planes = [planes[index] for index in order]
steps = steps[order]
assert (np.diff(steps) > 0).all()

# %% [markdown]
# The last line is a check, too. Two planes at one position would give a difference of
# zero: two phases of contrast, or a copied file.

# %% [markdown]
# ## How far apart are the planes?
#
# Now measure. The distance of neighbors is the difference of their positions along the
# normal.

# %%
gaps = np.diff(steps)
print(f"gaps between {gaps.min():.3f} and {gaps.max():.3f} mm")
print("Slice Thickness says", planes[0].get("SliceThickness"), "mm")

# %% [markdown]
# *Slice Thickness* (0018,0050) is how thick a slab each plane averages (PS3.3, C.7.6.2),
# not how far the planes stand apart. Reconstructions often overlap: 5 mm thick, one every
# 2.5 mm. Take the thickness for the distance and the patient becomes twice as tall.
#
# If one plane is missing, one gap is twice as wide. A mean would hide that. So check each
# gap against the median, within 2 % or 0.02 mm, whichever is more.


# %%
def measure_spacing(steps):
    """Return the distance of planes in mm, or refuse."""
    gaps = np.diff(steps)
    typical = np.median(gaps)
    odd = np.abs(gaps - typical) > max(0.02 * typical, 0.02)
    if odd.any():
        raise ValueError(f"a gap of {gaps[odd][0]:.2f} mm, not {typical:.2f} mm")
    return (steps[-1] - steps[0]) / len(gaps)


print(f"{measure_spacing(steps):.3f} mm")

# %% [markdown]
# Does the check bite? Take one plane out of the middle, as a failed transfer would.

# %% tags=["raises-exception"]
measure_spacing(np.delete(steps, len(steps) // 2))

# %% [markdown]
# It does. Read what the message gives you: the gap that is there, and the one that should
# be. Without it you would have got a volume, one plane too short, and everything beyond
# the gap in the wrong place.
#
# Within a plane, *Pixel Spacing* (0028,0030) gives two distances: between rows first, then
# between columns (PS3.3, 10.7.1.3). Together that makes three numbers in the order (plane,
# row, column).

# %%
row_spacing, column_spacing = map(float, planes[0].PixelSpacing)
spacing = (measure_spacing(steps), row_spacing, column_spacing)
print("spacing {:.3f} x {:.3f} x {:.3f} mm".format(*spacing))

# %% [markdown]
# ## What does the right order change?
#
# Only now read the pixels, each plane with its own slope and intercept
# ([03](03_convert_to_hounsfield.ipynb) explains them), into one array. Values below -1024
# mostly mean that nothing was measured there, and become air.

# %%
hu = np.empty((len(planes), planes[0].Rows, planes[0].Columns), np.float32)
for index, head in enumerate(planes):
    ds = pydicom.dcmread(head.filename)
    hu[index] = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
np.maximum(hu, -1024, out=hu)
print(hu.shape, f"{hu.min():g} to {hu.max():g} HU")

# %% [markdown]
# Cut the stack at the middle row, with the last plane on top. On the left the planes stand
# as if they were named 0, 1, 2 and so on and sorted as text, on the right by position. The
# letters come from the vectors that you computed, not from what the picture looks like.

# %% tags=["cover"]
text_order = sorted(range(len(planes)), key=str)
letters = [edge_letters(v) for v in (-along_row, along_row, normal, -normal)]
corners = [(0.03, 0.5), (0.97, 0.5), (0.5, 0.95), (0.5, 0.05)]
style = {"color": "w", "ha": "center", "va": "center", "backgroundcolor": "k"}
fig, axes = plt.subplots(1, 2, figsize=(9, 4))
for ax, stack, title in zip(
    axes, (hu[text_order], hu), ("sorted by name", "sorted by position"), strict=True
):
    cut = apply_window(stack[::-1, stack.shape[1] // 2], -600, 1500)
    ax.imshow(cut, cmap="gray", aspect=spacing[0] / spacing[2])
    ax.set(title=title, xticks=[], yticks=[])
    for place, letter in zip(corners, letters, strict=True):
        ax.text(*place, letter, transform=ax.transAxes, **style)
plt.show()

# %% [markdown]
# Left, planes from elsewhere run through the chest as bands. That you would notice.
# **What would fool you here is a stack that looks like a chest:** turned upside down and
# leafed through plane by plane, or with a single plane lost. Numbers notice it, eyes may
# not.

# %% [markdown]
# ## Where in the patient is a voxel?
#
# Three steps lead from a voxel to its place: so many planes along the normal, so many rows
# down, so many columns along. Each is an axis times its spacing. Written as one matrix
# with the position of the first voxel, this is the **affine** (PS3.3, C.7.6.2.1.1, gives
# the same mapping for one plane).

# %%
affine = np.eye(4)
affine[:3, 0] = normal * spacing[0]
affine[:3, 1] = down_column * spacing[1]
affine[:3, 2] = along_row * spacing[2]
affine[:3, 3] = planes[0].ImagePositionPatient
print(np.round(affine, 3))

# %% [markdown]
# Multiply it with (plane, row, column, 1). Here is the voxel in the middle of the scan.

# %%
middle = np.array(hu.shape) // 2
place = affine @ (*middle, 1)
print("voxel", *middle, "lies at", np.round(place[:3], 1), "mm (L, P, S)")

# %% [markdown]
# The inverse asks the other question: which voxel holds a point that a report names in
# millimetres? It must lead back.

# %%
back = np.linalg.inv(affine) @ place
assert np.allclose(back[:3], middle)

# %% [markdown]
# ## Does questlib do the same?
#
# `find_series` groups and describes; `load_series` checks, sorts and stacks. It never
# prints a UID.

# %%
from questlib import find_series, load_series

found = find_series(scan)
for series in found:
    print(series)

# %% [markdown]
# Load the largest one, as you did by hand, and prove that the two agree.

# %%
volume = load_series(scan, series_uid=found[0].uid)
assert volume.shape == hu.shape and np.allclose(volume.affine, affine, atol=1e-2)
share = np.mean(volume.array == hu)
assert share > 0.75
print(f"{100 * share:.2f} % of the voxels are equal")
print(volume)

# %% [markdown]
# Where a scan names a padding value above air, the loader makes it air and your short loop
# keeps it: then fewer voxels agree, and those that differ were never measured.

# %% [markdown]
# A `Volume` holds four things: array, spacing, origin, direction. No name, no date, no
# identifier comes along. `volume.affine` is the matrix that you have just built.
#
# The loader has asked more than you have. Each question has a file behind it that somebody
# once exported:
#
# | check | what it stops |
# |---|---|
# | one modality, CT | a PET scan read as HU |
# | equal rows, columns, Pixel Spacing | two reconstructions in one series |
# | equal orientation | a localizer among the planes |
# | one plane at each position | two phases interleaved |
# | even gaps | a lost plane |
# | planes behind one another | gantry tilt, a sheared patient |
# | pixels as many as claimed | a file cut off |

# %% [markdown]
# ## Check yourself
#
# 1. Predict the gap that `measure_spacing` would find if every second plane were lost. Would
#    it refuse? Then try.
# 2. How tall is the scanned part of the patient, from the center of the first plane to
#    the center of the last?
# 3. Which voxel lies 30 mm further to the patient's left than the middle one?

# %% [markdown]
# ## Summary
#
# - A series is what shares a Series Instance UID; names and folders prove nothing.
# - Planes are sorted by the projection of their position on the normal.
# - Spacing is measured from positions; Slice Thickness is something else.
# - The affine leads from (plane, row, column) to millimetres, its inverse back.
# - Checks come before stacking: a wrong stack looks like a chest.

# %% [markdown]
# ## In practice
#
# Two planes may differ by micrometers in position, because decimal strings are rounded;
# that is why each check has a tolerance. A gantry that is tilted for a head scan gives
# planes that lean against their stack; `load_series(folder, regularize=True)` resamples
# them, and says so. Enhanced CT puts all planes into one file and their places into
# sequences. *Spacing Between Slices* (0018,0088) is optional; where it disagrees with the
# positions, the positions decide. Planes missing *at the end* leave no gap: compare the
# count with the scanner's if it matters. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# The array holds Hounsfield units already. Where they come from is the story of
# [03 · Convert to Hounsfield units](03_convert_to_hounsfield.ipynb).

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.3.1: Series Instance UID; C.7.6.1: Instance Number.
# - DICOM PS3.3, C.7.6.2: Slice Thickness; C.7.6.2.1.1: Image Position and Image
#   Orientation (Patient), the axes L, P and S, and the mapping to millimetres.
# - DICOM PS3.3, 10.7.1.3: Pixel Spacing, rows first; C.8.2.1: the CT Image module.
# - DICOM PS3.10, 7.1: preamble and `DICM`, by which a file is known.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Every gap doubles, and all are equal: the check is content. Even loss leaves no trace
#    in the gaps, only in the count of planes.

# %%
half = measure_spacing(steps[::2])
assert np.isclose(half, 2 * spacing[0], rtol=0.02)
print(f"{half:.2f} mm, accepted")

# %% [markdown]
# 2. One gap less than there are planes.

# %%
height = (len(planes) - 1) * spacing[0]
assert np.isclose(height, steps[-1] - steps[0])
print(f"{height:.1f} mm")

# %% [markdown]
# 3. Left is +x. Add 30 mm to the place, go back to voxels, and round. The affine says how
#    far you really came: to the nearest voxel.

# %%
voxel = np.round(np.linalg.inv(affine) @ (place + np.array([30, 0, 0, 0])))
moved = (affine @ voxel - place)[0]
assert abs(moved - 30) <= max(spacing)
print("plane, row, column:", *voxel[:3].astype(int), f"is {moved:.1f} mm further left")
