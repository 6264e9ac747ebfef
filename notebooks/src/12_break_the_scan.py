# %% [markdown]
# # 12 · Break the scan

# %% [markdown]
# **What you'll do**: break a healthy series in a dozen ways that real exports show,
# guess what becomes of it, and read what the loader says.
#
# **What you'll learn**
#
# - Recognize lost, mixed, tilted and mislabeled planes
# - Tell a break that eyes notice from one that only numbers notice
# - Read a refusal and know what to do next
# - Decide when to resample and when to ask for the scan again
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | planes, normal, spacing | [02](02_stack_a_series.ipynb) | necessary |
# | slope, intercept, padding | [03](03_convert_to_hounsfield.ipynb) | helpful |
# | the lung mask | [09](09_mask_the_lungs.ipynb) | helpful |
#
# **Time** 20 minutes · **memory** 310 MB · **download** none · **data and licence** the
# phantom, computed here; your scan from [00](00_start_here.ipynb)
#
# ![What a trusting loader makes of six broken series](images/12_break_the_scan.png)

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pydicom

from questlib import (
    SeriesError,
    choose_scan,
    load_series,
    make_phantom,
    segment_lungs,
)
from questlib.display import apply_window, use_style

use_style()

# %% [markdown]
# ## What does a healthy series look like?
#
# The phantom is a computed chest, so nobody is harmed. Write a small one as DICOM: few
# planes, coarse voxels, quick to break.

# %%
home = tempfile.TemporaryDirectory()
folder = Path(home.name)
phantom = make_phantom(folder / "clean", shape=(24, 96, 96), spacing=(12.5, 4.0, 4.0))
healthy = load_series(folder / "clean")
print(healthy)

# %% [markdown]
# Three small functions make the gallery. The first reads the clean planes anew, so that
# each break starts from health.


# %%
def read_planes():
    """Return the clean datasets, from the feet to the head."""
    planes = [pydicom.dcmread(file) for file in (folder / "clean").iterdir()]
    return sorted(planes, key=lambda ds: ds.ImagePositionPatient[2])


# %% [markdown]
# The second breaks them and writes what is left into a folder of its own.


# %%
def write_broken(break_it):
    """Break a clean series, save it, and return the folder."""
    planes = read_planes()
    break_it(planes)
    place = Path(tempfile.mkdtemp(dir=folder))
    for number, ds in enumerate(planes):
        ds.save_as(place / f"IM{number:03}.dcm")
    return place


# %% [markdown]
# The third loads it and prints the loader's words: a refusal, a warning, or the volume.


# %%
def try_it(break_it, **how):
    """Say what load_series makes of a break."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            verdict = f"loaded: {load_series(write_broken(break_it), **how)}"
        except SeriesError as error:
            verdict = f"refused: {error}"
    print(*[f"warned: {one.message}" for one in caught], verdict, sep="\n")


# %% [markdown]
# Before each cell, **guess**: is it refused, loaded with a warning, or simply loaded?
# Start with three things that are allowed: files in any order, any *Instance Number*
# (0020,0013), and a false *Slice Thickness* (0018,0050).


# %%
def shuffle(planes):
    for number, ds in enumerate(planes):
        ds.InstanceNumber, ds.SliceThickness = (7 * number) % 24, "1.0"
    planes.sort(key=lambda ds: ds.InstanceNumber)


try_it(shuffle)

# %% [markdown]
# Loaded, without a word, and rightly so: nothing that counts has changed. A loader that
# cries at every oddity teaches you to stop listening.

# %% [markdown]
# ## What if a plane is lost?
#
# A transfer breaks off and comes back, and one file of 24 is gone. Guess.


# %%
def lose_one(planes):
    del planes[len(planes) // 2]


try_it(lose_one)

# %% [markdown]
# Refused. The message says where (the file in front of the gap), how much, and the likely
# cause. The cure comes last: export again. If you cannot, interpolate, knowingly.

# %%
try_it(lose_one, regularize=True)

# %% [markdown]
# Now 24 planes again, one of them invented from its neighbors. The warning belongs in
# your methods section.
#
# Next: the copy stopped in the middle of a file. The header is whole, the pixels are not.


# %%
def cut_the_pixels(planes):
    ds = planes[3]
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]


try_it(cut_the_pixels)

# %% [markdown]
# A program that fills the rest with stored zeros makes air of it where the intercept is
# -1024, but water where it is 0.

# %% [markdown]
# ## What if two things are mixed?
#
# Contrast arrives twice: a phase before, a phase after, exported as one series. Each
# position has two planes. Guess what a loader does that only counts files.


# %%
def add_a_phase(planes):
    for ds in read_planes():
        later = ds.pixel_array + np.uint16(60)
        ds.PixelData = later.astype(np.uint16).tobytes()
        planes.append(ds)


try_it(add_a_phase)

# %% [markdown]
# A trusting loader makes a volume of 48 planes, of a patient twice as tall. But a file that
# was merely copied is harmless:


# %%
def copy_one(planes):
    planes.append(planes[5])


try_it(copy_one)

# %% [markdown]
# Same position, same pixels: dropped, with a warning. The two cases differ only in their
# pixels, so the loader looks at the pixels.
#
# Now the worst mixture: two patients with one *Series Instance UID* (0020,000E), as a
# careless anonymizer may leave them.


# %%
def mix_patients(planes):
    for ds in planes[12:]:
        ds.PatientID = "someone else"


try_it(mix_patients)

# %% [markdown]
# They are listed apart, and the message names neither of them. That is on purpose:
# messages end up in logs and e-mails.

# %% [markdown]
# ## What if the geometry is bent?
#
# The gantry may lean, for a head or spine scan. Each plane is fine, and all are evenly
# spaced; each starts a little further back than the last.


# %%
def tilt(planes):
    for number, ds in enumerate(planes):
        ds.ImagePositionPatient[1] += 12.5 * number * np.tan(np.radians(12))


try_it(tilt)

# %% [markdown]
# Stacked as a block, this patient would be sheared, and oblique distances wrong. The next
# break is quieter: the upper half of the planes belongs to another coordinate system, since
# the patient got up between two scans. Only *Frame of Reference UID* (0020,0052) tells.


# %%
def new_frame(planes):
    for ds in planes[12:]:
        ds.FrameOfReferenceUID = pydicom.uid.generate_uid()


try_it(new_frame)

# %% [markdown]
# Refused: equal coordinates mean one place in the patient only within one frame of
# reference (PS3.3, C.7.4.1).

# %% [markdown]
# ## What if the numbers are no Hounsfield units?
#
# An anonymizer removed an element too many, *Rescale Slope* (0028,1053). Guess: is a missing
# slope 1?


# %%
def drop_the_slope(planes):
    for ds in planes:
        del ds.RescaleSlope


try_it(drop_the_slope)

# %% [markdown]
# It is not: a CT image must have one (PS3.3, C.8.2.1). A guess of 1 is often right; where it
# is not, every number is false.
#
# Now an oddity that does no harm. The scanner marks what lies outside its field of
# view with -2000, and says so in *Pixel Padding Value* (0028,0120), but writes it as a
# number without sign.


# %%
def pad(planes):
    for ds in planes:
        pixels = ds.pixel_array.astype(np.int16)
        pixels[:10] = -2000
        ds.PixelData, ds.PixelRepresentation = pixels.tobytes(), 1
        ds.BitsStored, ds.HighBit = 16, 15
        ds.add_new("PixelPaddingValue", "US", 63536)


try_it(pad)

# %% [markdown]
# Loaded: 63536 and -2000 are the same 16 bits, and *Pixel Representation* (0028,0103)
# decides: these pixels have a sign. Those voxels are now air; the lowest number is -1024
# HU, as before.

# %% [markdown]
# ## What if a file means harm?
#
# A header is a claim. In this one, *Rows* (0028,0010) and *Columns* (0028,0011) claim
# 65,535 x 65,535 pixels. A loader that believes it asks for the memory first and reads
# afterwards.


# %%
def claim_too_much(planes):
    for ds in planes:
        ds.Rows = ds.Columns = 65535


try_it(claim_too_much)

# %% [markdown]
# The claim is checked before any memory is asked for. Last, without the net: this is how a
# refusal meets you in your own code.

# %% tags=["raises-exception"]
load_series(write_broken(lose_one))

# %% [markdown]
# `SeriesError` is a `ValueError`; its attribute `file` holds the base name alone, for
# programs that go through many scans.

# %% [markdown]
# ## What would a trusting loader have shown?
#
# It sorts by file name, takes a slope of 1 and an intercept of -1024 for granted, and asks
# nothing. Build it. On the healthy series it agrees with `load_series`:


# %%
def trust(break_it):
    """Stack what is there, as a careless script would."""
    planes = [
        pydicom.dcmread(file) for file in sorted(write_broken(break_it).iterdir())
    ]
    return np.array([ds.pixel_array.astype(float) - 1024 for ds in planes])


assert np.array_equal(trust(lambda planes: None), healthy.array)

# %% [markdown]
# Now six of your breaks, seen from the front. Cut each stack at the middle row and draw it
# in the lung window, as the viewer of such a script would.

# %% tags=["cover"]
breaks = [shuffle, lose_one, add_a_phase, tilt, new_frame, pad]
fig, axes = plt.subplots(2, 3, figsize=(9, 7.5))
for ax, break_it in zip(axes.flat, breaks, strict=True):
    stack = trust(break_it)
    cut = apply_window(stack[::-1, stack.shape[1] // 2], -600, 1500)
    ax.imshow(cut, extent=(0, 4 * 96, 0, 12.5 * len(stack)))
    ax.set(title=break_it.__name__.replace("_", " "), ylim=(0, 600), xticks=[])
    for x, letter in ((12, "R"), (372, "L")):
        ax.text(x, 140, letter, color="yellow", ha="center", fontsize=9)
for ax in axes[:, 0]:
    ax.set_ylabel("mm from the lowest plane")
plt.show()

# %% [markdown]
# Two of the six look broken: the shuffled one, which `load_series` put right, and the
# doubled one. The other four look like a chest. One is a plane short. One is sheared from
# front to back, which no view from the front shows. One is two scans. One has a number for
# air that is not air, in front of this cut. **What would fool you here is the picture that
# looks right.** Ask for numbers:

# %%
short = trust(lose_one).shape[0]
print(f"{short} planes instead of 24: {12.5 * (24 - short):.1f} mm of the patient gone")
print(f"lowest number with padding: {trust(pad).min():.0f} HU")

# %% [markdown]
# A nodule of 10 mm fits into that gap, and air is never below -1024 HU here.
#
# And a scan that loads without complaint? Load yours, and mask its lungs.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    volume = load_series(choose_scan())
mask = segment_lungs(volume)
print("warnings of the loader:", len(caught))
print("findings of the mask:", *(mask.findings or ["none"]))

# %% [markdown]
# The loader vouches that each voxel stands at its place and is in HU. What lies there it
# does not know: a sound scan can still get a mask that is wrong.

# %% [markdown] tags=["patient"]
# No warning, and rightly so. The mask lacks the tumor all the same, 54 mL or more. One
# finding says so, because `segment_lungs` looks for such a gap; no check of the files
# could. **What would fool you here is a scan without a fault.**

# %% [markdown]
# ## Check yourself
#
# 1. Predict: the *last* plane is lost, not a middle one. Refused, warned, or loaded? Try it.
# 2. Take every second plane away. Predict the spacing in millimetres that the loader finds.
#    Is it right?
# 3. Write a break of your own: one plane with *Modality* (0008,0060) MR.

# %% [markdown]
# ## Summary
#
# - A good loader is silent about what does not matter: names, numbers, order.
# - It refuses what would give a wrong volume: a gap, a mixture, a tilt, a missing slope.
# - It warns where the volume is right but something was left out.
# - A message says which file, what is wrong with which numbers, and what to do.
# - Most broken stacks look like a chest; the check is in the numbers. And a sound scan says
#   nothing about the mask made from it.

# %% [markdown] tags=["patient"]
# **What became of the tumor?** You saw it in 00, white where the other lung is dark. No
# threshold could tell it from muscle (05). The surface had a crater (07). The mask left it
# out, and a finding said so (09). A valid file passed the mask on without that word (10),
# and a network on masked lungs would never have met it (11). In the scan it was always
# there: keep the scan beside the mask.

# %% [markdown]
# ## In practice
#
# Ask for the scan again before you mend it: an export costs minutes, a wrong volume costs
# a study. Keep the warnings with the results. No reader can notice everything: pixels
# carry no checksum, so a flipped byte passes, and planes lost at the end leave no gap.
# A PACS knows how many images a series should have; compare. Education and
# research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# This was the last stop. You took a file apart to its bits, stacked planes into a volume in
# HU and millimetres, looked at it in one, two and three dimensions, masked the lungs,
# handed the mask over, built a cohort, and broke a scan on purpose.
#
# Three things would have fooled you on the way: **a picture that looks right, a file that
# is valid, a score that is good**. A number, a second view or a second program told each
# time.
#
# Go back to [00 · Start here](00_start_here.ipynb) and run the quest on a scan of your own.

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.6.2 (Image Plane), C.7.4.1 (Frame of Reference), C.8.2.1 (CT Image):
#   what a plane must say of itself; C.7.6.3 (Image Pixel): rows, columns, sign.
# - DICOM PS3.3, C.7.5.1.1.2: Pixel Padding Value, and its number format.
# - DICOM PS3.5, 7.1 and 8: lengths of elements, and how pixels are encoded.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Loaded, in silence: the planes that are left form a perfect, shorter volume. Only the
#    count can tell.


# %%
def lose_the_last(planes):
    del planes[-1]


assert load_series(write_broken(lose_the_last)).shape[0] == healthy.shape[0] - 1
try_it(lose_the_last)

# %% [markdown]
# 2. 25 mm, and it is right: these planes do stand 25 mm apart.


# %%
def thin_out(planes):
    del planes[1::2]


thin = load_series(write_broken(thin_out))
assert np.isclose(thin.spacing[0], 2 * healthy.spacing[0])
print(f"{thin.spacing[0]:.1f} mm")

# %% [markdown]
# 3. One stranger is enough for a refusal, which names its file.


# %%
def one_stranger(planes):
    planes[4].Modality = "MR"


try:
    load_series(write_broken(one_stranger))
except SeriesError as error:
    assert error.file == "IM004.dcm"
    print(error)
