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
#
# **Time** 20 minutes · **memory** 300 MB · **download** none · **data and licence** the
# phantom, computed here
#
# ![What a trusting loader makes of six broken series](images/12_break_the_scan.png)

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pydicom

from questlib import SeriesError, load_series, make_phantom
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
# Start with three things that are allowed: the order of files, of Instance Numbers, and a
# false Slice Thickness.


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
# Many viewers fill the rest with stored zeros: air where the intercept is -1024, but water
# where it is 0.

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
# was merely copied twice is harmless:


# %%
def copy_one(planes):
    planes.append(planes[5])


try_it(copy_one)

# %% [markdown]
# Same position, same pixels: dropped, with a warning. The two cases differ only in their
# pixels, so the loader looks at the pixels.
#
# Now the worst mixture. Two patients, one Series Instance UID: it happens when a test
# patient's number is used again.


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
# The gantry leans for a head or spine scan. Each plane is fine and evenly spaced; each
# starts a little further back than the last.


# %%
def tilt(planes):
    for number, ds in enumerate(planes):
        ds.ImagePositionPatient[1] += 12.5 * number * np.tan(np.radians(12))


try_it(tilt)

# %% [markdown]
# Stacked as a block, this patient would be sheared, and every oblique distance wrong. The
# next one is quieter: one plane belongs to another coordinate system, since the patient got
# up between two scans.


# %%
def new_frame(planes):
    for ds in planes[12:]:
        ds.FrameOfReferenceUID = pydicom.uid.generate_uid()


try_it(new_frame)

# %% [markdown]
# ## What if the numbers are no Hounsfield units?
#
# An anonymizer emptied an element too many. Guess: is a missing slope 1?


# %%
def drop_the_slope(planes):
    for ds in planes:
        del ds.RescaleSlope


try_it(drop_the_slope)

# %% [markdown]
# It is not. A guess of 1 is right on most scanners; on the others every number is false.
#
# Now a case that is nobody's fault: the scanner marks what lies outside its field of view with -2000, and writes that value in the wrong number format.


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
# Loaded: 63536 and -2000 are the same 16 bits, and the sign of the pixels decides. Those
# voxels are now air, at -1024 HU.

# %% [markdown]
# ## What if a file means harm?
#
# A header is a claim. This one claims planes of 65,535 x 65,535, which is 8 GB each. A
# loader that believes it asks for the memory first and reads afterwards.


# %%
def claim_too_much(planes):
    for ds in planes:
        ds.Rows = ds.Columns = 65535


try_it(claim_too_much)

# %% [markdown]
# Every claim is compared with what the file really holds before a byte is
# allocated. Last, without the net: this is how a refusal meets you in your own code.

# %% tags=["raises-exception"]
load_series(write_broken(lose_one))

# %% [markdown]
# `SeriesError` is a `ValueError`; its attribute `file` holds the base name alone, for
# programs that go through many scans.

# %% [markdown]
# ## What would a trusting loader have shown?
#
# It sorts by file name, takes the slope of 1 for granted, and asks nothing. Build it, and
# look at six of your breaks from the front.


# %%
def trust(break_it):
    """Stack what is there, as a careless script would."""
    planes = [
        pydicom.dcmread(file) for file in sorted(write_broken(break_it).iterdir())
    ]
    return np.array([ds.pixel_array.astype(float) - 1024 for ds in planes])


# %% [markdown]
# Cut each stack at the middle row and draw it as the viewer of such a script would.

# %% tags=["cover"]
breaks = [shuffle, lose_one, add_a_phase, tilt, new_frame, pad]
fig, axes = plt.subplots(2, 3, figsize=(9, 7.5))
for ax, break_it in zip(axes.flat, breaks, strict=True):
    stack = trust(break_it)
    cut = apply_window(stack[::-1, stack.shape[1] // 2], -600, 1500)
    ax.imshow(cut, extent=(0, 4 * 96, 0, 12.5 * len(stack)))
    ax.set(title=break_it.__name__.replace("_", " "), ylim=(0, 600), xticks=[])
axes[0, 0].set_ylabel("mm")
plt.show()

# %% [markdown]
# Two of the six look broken: the shuffled one and the doubled one. The other four look like
# a chest: one is a plane short, one is sheared (from the front you cannot see it), one is
# two scans, and one has a number for air that is not air. **What would fool you here is the
# picture that looks right.** How short is the second?

# %%
short = trust(lose_one).shape[0]
print(f"{short} planes instead of 24: {12.5 * (24 - short):.1f} mm of the patient gone")

# %% [markdown]
# A nodule of 10 mm fits into that gap.

# %% [markdown]
# ## Check yourself
#
# 1. Predict: the *last* plane is lost, not a middle one. Refused, warned, or loaded? Try it.
# 2. Take every second plane away. What spacing does the loader find, and is that right?
# 3. Write a break of your own: one plane with *Modality* (0008,0060) MR.

# %% [markdown]
# ## Summary
#
# - A healthy loader is silent about what does not matter: names, numbers, order.
# - It refuses what would give a wrong volume: a gap, a mixture, a tilt, a missing slope.
# - It warns where the volume is right but something was left out.
# - A message says which file, which attribute, which value, why, and what to do.
# - Most broken stacks look like a chest; the check is in the numbers.

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
# This was the last stop. Go back to [00 · Start here](00_start_here.ipynb) and run the quest
# on a scan of your own.

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.6.2 (Image Plane), C.7.4.1 (Frame of Reference), C.8.2.1 (CT Image):
#   what a plane must say of itself.
# - DICOM PS3.3, C.7.5.1.1.2: Pixel Padding Value, and its number format.
# - DICOM PS3.5, 7.1 and 8.2: what lengths and pixels a file may claim.
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


volume = load_series(write_broken(thin_out))
assert np.isclose(volume.spacing[0], 2 * healthy.spacing[0])
print(f"{volume.spacing[0]:.1f} mm")

# %% [markdown]
# 3. One stranger is enough for a refusal.


# %%
def one_stranger(planes):
    planes[4].Modality = "MR"


try_it(one_stranger)
