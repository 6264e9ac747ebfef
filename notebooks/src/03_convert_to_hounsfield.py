# %% [markdown]
# # 03 · Convert to Hounsfield units

# %% [markdown]
# **What you'll do**: turn the numbers that a scanner stores into Hounsfield units, for
# every plane of a scan, and look at them through three windows.
#
# **What you'll learn**
#
# - Apply slope and intercept plane by plane, and see what one pair for all costs
# - Read signed, unsigned and 12-bit values without a slip
# - Tell padding from air
# - Choose int16 or float32 by what you need
# - Compute a window as the standard defines it
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | stored value, slope, intercept | [01](01_dig_into_a_dicom_file.ipynb) | necessary |
# | planes in order | [02](02_stack_a_series.ipynb) | helpful |
#
# **Time** 20 minutes · **memory** 200 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![One plane in lung, mediastinum and bone window](images/03_convert_to_hounsfield.png)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pydicom

import questlib
from questlib.display import use_style

use_style()

# %% [markdown]
# ## What does the scanner store?
#
# Open one file of the largest series, the middle one of the list (a list of files is
# not in the patient's order: see notebook 02). `pixel_array` gives the stored values,
# decoded and otherwise untouched.

# %%
scan = questlib.choose_scan()
series = max(questlib.find_series(scan), key=lambda one: one.planes)
ds = pydicom.dcmread(series.files[len(series.files) // 2])
stored = ds.pixel_array
print(stored.dtype, "from", stored.min(), "to", stored.max())

# %% [markdown]
# A CT number can be as low as -1000, so a scanner that stores unsigned values has to
# lift them first. Two attributes say how to get back:
#
# - *Rescale Slope* (0028,1053): HU per stored unit
# - *Rescale Intercept* (0028,1052): the HU of stored value 0

# %%
slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
print(f"HU = stored x {slope:g} + ({intercept:g})")

# %% [markdown]
# Apply them, and ask for whole numbers where they are whole: CT numbers nearly always
# are.

# %%
whole = slope.is_integer() and intercept.is_integer()
hu = (stored * slope + intercept).astype(np.int16 if whole else np.float32)
print(hu.dtype, "from", hu.min(), "to", hu.max(), "HU")

# %% [markdown]
# Is it right? Two materials fix the scale by definition: water is 0 HU, air at standard
# temperature and pressure is -1000 HU. Water is rare in a chest, but there is air above
# every patient. Measure a patch near the upper edge, and look into a corner.

# %%
middle = hu.shape[1] // 2
air = hu[8:24, middle - 8 : middle + 8]
print(f"above the patient: mean {air.mean():.0f} HU; in the corner: {hu[8, 8]} HU")

# %% [markdown]
# The patch should be near -1000. The corner proves nothing: it lies outside the circle
# that the scanner sees, and its value was written, not measured. More about that
# further down.

# %% [markdown]
# ## Does one slope serve all planes?
#
# Each plane is a file with its own pair. The tutorial of 2017 took the pair of the
# first plane for all. Collect every pair of this scan.

# %%
pairs = set()
for file in series.files:
    head = pydicom.dcmread(file, stop_before_pixels=True)
    pairs.add((float(head.RescaleSlope), float(head.RescaleIntercept)))
print(len(series.files), "planes, pairs of slope and intercept:", sorted(pairs))

# %% [markdown]
# Where all planes share one pair, the shortcut does no harm. But nothing in the standard
# promises it. PET scanners stretch each plane to the full range of its bits and write a
# new pair every time; CT seldom does, yet nothing forbids it. Make such a scan from this
# plane.

# %%
own_slope, own_intercept = 0.5, -1100.0
clean = np.maximum(hu, -1024)
restored = np.round((clean - own_intercept) / own_slope).astype(np.uint16)
print("stored values now run from", restored.min(), "to", restored.max())

# %% [markdown]
# Read it back twice: with its own pair, and with the pair of its neighbor.

# %%
right = restored * own_slope + own_intercept
wrong = restored * slope + intercept
print("largest error with its own pair:     ", np.abs(right - clean).max(), "HU")
print("median error with the neighbor's pair:", np.median(np.abs(wrong - clean)), "HU")

# %% [markdown]
# The picture would still look like a chest, with another brightness. Every number in it
# would be false. **What would fool you here is an image that looks right.** So
# questlib scales each plane with its own pair.

# %% [markdown]
# ## Signed or unsigned?
#
# The same 16 bits mean two numbers. *Pixel Representation* (0028,0103) decides (PS3.3,
# C.7.6.3), and a reader that ignores it turns fat into something denser than any bone.

# %%
fat = np.array([-100], dtype=np.int16)
print("signed:  ", fat[0])
print("unsigned:", fat.view(np.uint16)[0])

# %% [markdown]
# It gets finer. Many scanners use 12 of the 16 bits: *Bits Stored* (0028,0101) is 12. What
# the four high bits hold is undefined: zeros, copies of the sign, or anything else (PS3.5,
# 8.1.1). Here is -100 in 12 bits, with dirt above.

# %%
twelve = (-100 & 0x0FFF) | 0xA000
print(f"as stored: {twelve:016b}, read as 16 bits: {twelve}")

# %% [markdown]
# The cure takes two steps: cut the dirt away with a mask, then let bit 11, the sign bit,
# count as negative. From version 3 on, pydicom's `pixel_array` does this for you; a
# reader that takes the bytes as they come has to do it itself.

# %%
value = twelve & 0x0FFF
value = value - 4096 if value & 0x0800 else value
assert value == -100
print("mended:", value)

# %% [markdown]
# ## Is it air, or nothing at all?
#
# A CT image is square, but the scanner sees a circle. What lies outside was never
# measured, and many vendors write a number there that no tissue can have. *Pixel
# Padding Value* (0028,0120) should name it (PS3.3, C.7.5.1.1.2). Often nothing does.

# %%
print("Pixel Padding Value:", ds.get("PixelPaddingValue", "not given"))
print("voxels below -1024 HU:", np.count_nonzero(hu < -1024))

# %% [markdown]
# Whatever your scan does, draw the usual case: a circle, and -2000 outside of it.

# %%
row, column = np.indices(hu.shape)
half = (np.array(hu.shape) - 1) / 2
radius = np.hypot(row - half[0], column - half[1])
padded = np.where(radius > half.min(), -2000, hu)
print(f"mean before {hu.mean():.0f} HU, after {padded.mean():.0f} HU")

# %% [markdown]
# The mean of the plane has moved although the patient has not: each statistic that you
# compute later (a z-score, a histogram, an automatic threshold) would move with it.
#
# Padding belongs to the air around the patient. Put it at -1024, the lowest value that
# 12 bits with an intercept of -1024 can hold.

# %%
mended = np.maximum(padded, -1024)
print("lowest value now:", mended.min(), "HU")
print(f"mean {mended.mean():.0f} HU")

# %% [markdown]
# Most of the harm is undone. What is left of it lay outside the circle and is gone, such
# as the corners of the table.
#
# `load_series` does the same: the named value, a named range, and bare sentinels
# below -1024 all become air. Never 0, which would be water: a bright ring round the
# patient that the next threshold takes for tissue.

# %% [markdown]
# ## Which type should hold it?
#
# Whole numbers between -32,768 and 32,767 fit into int16: two bytes a voxel. Count what
# the whole scan would take in each type.

# %%
voxels = len(series.files) * hu.size
for kind in (np.int16, np.float32, np.float64):
    print(f"{np.dtype(kind).name:8}{voxels * np.dtype(kind).itemsize / 1e6:7.1f} MB")

# %% [markdown]
# The tutorial of 2017 worked in float64, four times what is needed. int16 is exact here,
# and every step of this series that can keep it does. It has one trap: when a result
# does not fit, it wraps round without a word. Square 200 HU, as a variance does:

# %%
one = np.array([200], dtype=np.int16)
print("200 x 200 in int16:      ", (one * one)[0])
print("the same, widened first: ", (one.astype(np.int32) * one)[0])
assert (one.astype(np.int32) * one)[0] == 40_000

# %% [markdown]
# That is why the conversion above multiplies first, in float64, and narrows at the end.
# When slope or intercept are not whole, float32 is the honest type: it holds seven
# digits, and CT has four.
#
# You now know what the helper does. Import it, and prove that it does the same.

# %%
from questlib.volume import to_hounsfield

assert np.array_equal(to_hounsfield(stored, slope, intercept), hu)
assert to_hounsfield(stored, slope, intercept).dtype == hu.dtype
assert np.allclose(to_hounsfield(restored, own_slope, own_intercept), right)

# %% [markdown]
# A slope of 0 would make every voxel the same. Some exports do hold one, so the helper
# does not guess:

# %% tags=["raises-exception"]
to_hounsfield(stored, 0, intercept)

# %% [markdown]
# The message names both attributes, with their tags and the values that it found. You
# would look into the file next, as in notebook 01.

# %% [markdown]
# ## How do 4,000 values become 256 grays?
#
# A common screen shows 256 grays. A *window* picks the range that matters: *Window
# Center* (0028,1050), *c*, and *Window Width* (0028,1051), *w*. For 8 bits, DICOM gives
# this formula (PS3.3, C.11.2.1.2.1):
#
# $$y = \left(\frac{x - (c - 0.5)}{w - 1} + 0.5\right) \cdot 255$$
#
# and everything outside becomes black or white.

# %%
center, width = -600, 1500
gray = ((hu - (center - 0.5)) / (width - 1) + 0.5) * 255
gray = np.clip(gray, 0, 255).round().astype(np.uint8)
print("black below about", center - width // 2, "HU")
print("white above about", center + width // 2, "HU")

# %% [markdown]
# Do it for the three windows of a chest reading room. `WINDOWS` holds the presets: common
# choices, not a standard. Departments and guidelines differ by 100 HU and more.

# %%
from questlib.display import WINDOWS, apply_window, edge_letters

for name, (center, width) in WINDOWS.items():
    print(f"{name:12} center {center:5} HU, width {width:5} HU")
assert np.array_equal(apply_window(hu, -600, 1500), gray)

# %% [markdown]
# The assertion is the proof that the helper holds the formula above. Now look.

# %% tags=["cover"]
along_row = np.array(ds.ImageOrientationPatient[:3], float)
style = {"color": "w", "ha": "center", "backgroundcolor": "k"}
fig, axes = plt.subplots(1, 3, figsize=(9, 3.4))
for ax, (name, window) in zip(axes, WINDOWS.items(), strict=True):
    gray = apply_window(hu, *window)
    ax.imshow(gray, vmin=0, vmax=255, interpolation="antialiased")
    ax.set(title=f"{name}\n{window[0]} / {window[1]} HU", xticks=[], yticks=[])
    ax.text(0.05, 0.48, edge_letters(-along_row), transform=ax.transAxes, **style)
    ax.text(0.95, 0.48, edge_letters(along_row), transform=ax.transAxes, **style)
plt.show()

# %% [markdown]
# Three pictures of the same numbers; the titles give center / width. In the lung window
# you see vessels, and the mediastinum is one white block. In the mediastinal window fat is
# darker than muscle and blood, and the lungs are black; without contrast medium, muscle and
# blood are nearly the same gray. In the bone window mostly calcium stands out.
#
# A window is for the eye. Compute with HU, never with grays.

# %% [markdown] tags=["patient"]
# This plane cuts the tumor, the large mass in the left lung at your right. In the lung
# window it is as white as the chest wall; in the mediastinal window it has nearly the gray
# of muscle. No window draws a line between them. **What would fool you here is a border
# that you believe in.**

# %% [markdown]
# ## Check yourself
#
# 1. Predict the HU of stored value 0, then compute it with `to_hounsfield`.
# 2. Which stored value is water in this scan?
# 3. Narrow the lung window to a width of 400. Predict whether more or fewer voxels
#    become pure black or white, then count.

# %% [markdown]
# ## Summary
#
# - HU = stored value x slope + intercept, with each plane's own pair.
# - Signed or unsigned, and how many bits: the header says it, the bytes do not.
# - Padding becomes air at -1024 HU, never water.
# - int16 where HU are whole, float32 where not; widen before you multiply.
# - A window maps HU to grays for the eye; arithmetic stays in HU.

# %% [markdown]
# ## In practice
#
# The reconstruction kernel changes noise and edges: a sharp lung kernel moves single
# voxels far more than the mean of a region. Contrast medium lifts blood by 100 HU and
# more, into the range of spongy bone. Many cone-beam exports and derived images hold no HU
# at all. *Rescale Type* (0028,1054) may be missing where the unit is HU (PS3.3, C.8.2.1);
# where it says another unit, `load_series` refuses. Education and research, not for
# diagnosis.

# %% [markdown]
# ## What's next
#
# Voxels are boxes, not cubes.
# [04 · Resample to millimetres](04_resample_to_millimetres.ipynb) makes them even.

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.11.1: Modality LUT; C.8.2.1: the CT Image module, whose unit is HU;
#   C.7.5.1.1.2: Pixel Padding Value and Range; C.7.6.3: Pixel Representation;
#   C.11.2.1.2.1: the linear window. PS3.5, 8.1.1: unused bits.
# - *European Guidelines on Quality Criteria for Computed Tomography*, EUR 16262 (1999):
#   windows for chest CT.
# - K. T. Bae et al., Radiology 236 (2005), 677-684: how far readers move a mediastinal
#   window.
# - M. Prokop and M. Galanski, *Spiral and Multislice Computed Tomography of the Body*,
#   Thieme (2003): HU of tissues, kernels, contrast medium.
# - G. N. Hounsfield, "Computerized transverse axial scanning (tomography)", British
#   Journal of Radiology 46 (1973), 1016-1022: the scale's origin.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Stored value 0 is the intercept.

# %%
zero = to_hounsfield(np.array([0]), slope, intercept)[0]
assert np.isclose(zero, intercept)
print("stored 0 is", zero, "HU")

# %% [markdown]
# 2. Solve the line for 0 HU.

# %%
water = (0 - intercept) / slope
assert np.isclose(to_hounsfield(np.array([water]), slope, intercept)[0], 0)
print(f"water is stored as {water:g}")

# %% [markdown]
# 3. More: the narrower the window, the more voxels lie outside of it.

# %%
shares = {}
for width in (1500, 400):
    gray = apply_window(hu, -600, width)
    shares[width] = 100 * np.mean((gray == 0) | (gray == 255))
    print(f"width {width:4}: {shares[width]:.1f} % pure black or white")
assert shares[400] > shares[1500]
