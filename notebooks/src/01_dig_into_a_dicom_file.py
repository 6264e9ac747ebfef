# %% [markdown]
# # 01 · Dig into a DICOM file

# %% [markdown]
# **What you'll do**: take one CT file apart, byte by byte, until you hold the two
# bytes of a single voxel and know its Hounsfield value; then you flip one bit.
#
# **What you'll learn**
#
# - Recognize a DICOM file by its first 132 bytes
# - Decode a data element by hand: tag, VR, length, value
# - Find where the pixels begin, and the bytes of one voxel among them
# - Turn two bytes into a stored value, and the stored value into HU
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | the environment, a scan | [00](00_start_here.ipynb) | necessary |
# | binary and hexadecimal numbers | any textbook | helpful |
#
# **Time** 20 minutes · **memory** 200 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![One voxel of a CT plane, its neighborhood in HU](images/01_dig_into_a_dicom_file.png)

# %%
import hashlib
import io

import matplotlib.pyplot as plt
import numpy as np
import pydicom
from matplotlib.patches import Rectangle

import questlib
from questlib.display import use_style

use_style()

# %% [markdown]
# ## What does the file look like from outside?
#
# You begin with a folder. `choose_scan` says which scan it holds, `find_series` lists
# the series in it, and you take the file in the middle of the largest one.

# %%
scan = questlib.choose_scan()
series = max(questlib.find_series(scan), key=lambda one: one.planes)
path = series.files[len(series.files) // 2]

# %% [markdown]
# To Python, a file is a row of bytes and each byte is a number from 0 to 255. You read
# all of them at once; nothing has interpreted them yet.

# %%
raw = path.read_bytes()
print(f"{len(raw)} bytes; the first 16:", raw[:16].hex(" "))

# %% [markdown]
# The first 128 bytes are the *preamble* (DICOM PS3.10, 7.1). The standard leaves them
# free, so that the same file can also be, say, a TIFF; a file that makes no use of them
# holds zeros. Four letters follow, the signature of every DICOM file: `DICM`.

# %%
print("bytes in the preamble that are not zero:", 128 - raw[:128].count(0))
print("bytes 128 to 131:", raw[128:132])

# %% [markdown]
# A file's name and its extension say nothing about what is inside. These four letters
# do, and that is how `find_series` tells a CT plane from the clutter of a CD.

# %% [markdown]
# ## How is a data element written?
#
# After the signature comes one *data element* after another (PS3.5, 7.1). Each one has
# four parts:
#
# | part | bytes | what it is |
# |---|---|---|
# | tag | 2 + 2 | group and element: which attribute this is |
# | VR | 2 letters | value representation: how to read the value |
# | length | 2 or 4 | how many bytes the value takes |
# | value | as many | the value itself |
#
# Here is the first one, raw, 12 bytes from byte 132 on.

# %%
first = raw[132:144]
print(first.hex(" "))

# %% [markdown]
# The bytes of a number stand with the *smallest first* (little endian; PS3.5, 7.3):
# `02 00` is 2, and `00 02` is 512. So you read the tag in two steps of two bytes.

# %%
group = int.from_bytes(first[0:2], "little")
element = int.from_bytes(first[2:4], "little")
print(f"tag ({group:04X},{element:04X})")

# %% [markdown]
# Next come the two letters of the VR, then a length, then the value. `UL` means
# *unsigned long*: a whole number of four bytes.

# %%
vr = first[4:6].decode()
length = int.from_bytes(first[6:8], "little")
value = int.from_bytes(first[8:12], "little")
print(f"VR {vr}, length {length}, value {value}")

# %% [markdown]
# You have just decoded *File Meta Information Group Length* (0002,0000). Its value
# tells how many bytes the rest of group 2 takes, so you know where group 2 ends. Ask
# pydicom for the same element, and compare.

# %%
ds = pydicom.dcmread(path)
assert ds.file_meta.FileMetaInformationGroupLength == value
end = 144 + value
print("group 2 ends before byte", end)

# %% [markdown]
# ## What does group 2 tell?
#
# Group 2 describes the file, not the patient. It is small and always written the same
# way, with VR and little endian, whatever follows it (PS3.10, 7.1). So a short loop can
# read all of it. A few VRs (`OB` among them) have two spare bytes and then a length of
# four; the others have a length of two (PS3.5, 7.1.2).


# %%
def read_group_2(raw, end):
    """Yield (tag, VR, value bytes) of each element before byte `end`."""
    at = 132
    while at < end:
        tag = f"({raw[at + 1]:02X}{raw[at]:02X},{raw[at + 3]:02X}{raw[at + 2]:02X})"
        vr = raw[at + 4 : at + 6].decode()
        start, size = (at + 12, 4) if vr in ("OB", "UN", "UR", "UT") else (at + 8, 2)
        length = int.from_bytes(raw[start - size : start], "little")
        yield tag, vr, raw[start : start + length]
        at = start + length


# %% [markdown]
# Print what it finds. The UIDs are long, so only the VR and the size are shown.

# %%
elements = list(read_group_2(raw, end))
for tag, vr, data in elements:
    print(tag, vr, len(data), "bytes")

# %% [markdown]
# The one that matters now is (0002,0010), the *Transfer Syntax UID*: how everything
# after group 2 is encoded (PS3.5, Annex A). A UID of odd length gets one zero byte, to
# make it even (PS3.5, 6.2); strip it.

# %%
syntax = next(data for tag, vr, data in elements if tag == "(0002,0010)")
syntax = pydicom.uid.UID(syntax.rstrip(b"\0").decode())
assert syntax == ds.file_meta.TransferSyntaxUID
print(syntax, "=", syntax.name)

# %% [markdown]
# *Explicit VR* means that the two letters stand in the file. With *Implicit VR* they
# are left out, and the reader looks each tag up in a dictionary. Other transfer
# syntaxes compress the pixels or turn the byte order round.
#
# If yours is one of those, the next cell makes a plain copy in memory, so that you can
# go on digging. It does nothing to a plain file.

# %%
if syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    ds.add_new("PixelData", "OW", ds.pixel_array.astype(kind).tobytes())
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    form = {"implicit_vr": False, "little_endian": True, "force_encoding": True}
    pydicom.dcmwrite(plain := io.BytesIO(), ds, **form)
    raw = plain.getvalue()
    ds = pydicom.dcmread(io.BytesIO(raw))
print("implicit VR:", ds.original_encoding[0])

# %% [markdown]
# ## Where do the pixels begin?
#
# The dataset that follows has dozens of elements, or hundreds, some with sequences
# inside. You could walk them with the same loop; instead you ask pydicom where the value of *Rows*
# (0028,0010) lies, and read the two bytes there yourself.

# %%
at = pydicom.dcmread(io.BytesIO(raw)).get_item("Rows").value_tell
rows = int.from_bytes(raw[at : at + 2], "little")
assert rows == ds.Rows
print("bytes", raw[at : at + 2].hex(" "), "are", rows, "rows")

# %% [markdown]
# *Pixel Data* (7FE0,0010) is nearly always the last element, and by far the largest.
# Its header takes 8 bytes with implicit VR and 12 with explicit VR.

# %%
pixels = pydicom.dcmread(io.BytesIO(raw)).get_item("PixelData")
start, size = pixels.value_tell, pixels.length
header = 8 if ds.original_encoding[0] else 12
print("tag:", raw[start - header : start - header + 4].hex(" "))
print(f"pixels: {size} bytes, from byte {start} to {start + size}")

# %% [markdown]
# Read the tag with the smallest byte first: `e0 7f` is 7FE0, `10 00` is 0010. Now see
# how many bytes there should be: rows times columns times the bytes of one voxel. *Bits
# Allocated* (0028,0100) tells those; for CT it is 16 (PS3.3, C.8.2.1), two bytes.

# %%
assert ds.BitsAllocated == 16
expected = ds.Rows * ds.Columns * 2
assert size == expected
share = 100 * size / len(raw)
print(f"{ds.Rows} x {ds.Columns} x 2 = {expected} bytes")
print(f"{share:.1f} % of the file are pixels")

# %% [markdown]
# questlib's own reader walks the file by the same rules, and stops where a broken file
# would lead it astray. Import it and compare.

# %%
from questlib.header import read_header

found = read_header(path)[0]
assert found.integer("Rows") == rows
if raw == path.read_bytes():  # not where a plain copy was made above
    assert found.pixels[2:] == (start, size)

# %% [markdown]
# All that the scanner says *about* the image (spacing, position, patient, dose) is in
# the small rest in front. Draw the file to scale.

# %%
fig, ax = plt.subplots(figsize=(8, 1.3))
ax.barh(0, start, color="#D55E00", label="header")
ax.barh(0, size, left=start, color="#0072B2", label="Pixel Data")
ax.set(xlabel="byte", yticks=[], xlim=(0, len(raw)))
ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
plt.show()

# %% [markdown]
# The thin orange edge at the left is the whole header. Everything blue is image.

# %% [markdown]
# ## Which two bytes are one voxel?
#
# The pixels stand row after row, and in each row column after column. To reach a voxel
# you skip whole rows first, then columns. Take the voxel in the middle of the plane.

# %%
row, column = ds.Rows // 2, ds.Columns // 2
offset = start + 2 * (row * ds.Columns + column)
two = raw[offset : offset + 2]
print(f"row {row}, column {column}: byte {offset} holds", two.hex(" "))

# %% [markdown]
# Those two bytes are the voxel: nothing else in this file belongs to it. Write them as
# 16 bits, the highest first, and add the low byte to 256 times the high byte.

# %%
low, high = two
print(f"bits {high:08b} {low:08b}")
print(f"{low} + 256 x {high} = {low + 256 * high}")

# %% [markdown]
# One question is left: can the number be negative? *Pixel Representation* (0028,0103)
# answers it: 0 is unsigned, 1 is signed (two's complement). And *Bits Stored*
# (0028,0101) says how many of the 16 bits carry the value (PS3.5, 8.1.1).

# %%
signed = ds.PixelRepresentation == 1
stored = int.from_bytes(two, "little", signed=signed)
print("signed:", signed, "· bits stored:", ds.BitsStored, "· value:", stored)
assert stored == ds.pixel_array[row, column]

# %% [markdown]
# The last line is the proof: pydicom decodes the whole plane and finds the same value.
#
# A *stored value* is not yet a Hounsfield unit. Two more attributes make it one:
# *Rescale Slope* (0028,1053) and *Rescale Intercept* (0028,1052); PS3.3, C.11.1.

# %%
slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
hu = stored * slope + intercept
print(f"{stored} x {slope:g} + ({intercept:g}) = {hu:g} HU")
assert hu == pydicom.pixels.apply_modality_lut(ds.pixel_array, ds)[row, column]

# %% [markdown] tags=["patient"]
# This patient's middle voxel lies in soft tissue; water would read 0 HU and air
# -1000 HU. [Notebook 03](03_convert_to_hounsfield.ipynb) is about this one line.

# %% [markdown]
# Look at the voxel where it lives, and at its neighbors as numbers.


# %%
def show_voxel(plane, row, column, axes):
    """Draw a plane with a box round one voxel, and the HU about that voxel."""
    axes[0].imshow(plane, vmin=-160, vmax=240, interpolation="antialiased")
    axes[0].add_patch(
        Rectangle((column - 14, row - 14), 28, 28, fill=False, color="#E69F00", lw=2)
    )
    near = plane[row - 2 : row + 3, column - 2 : column + 3]
    axes[1].imshow(near, vmin=-160, vmax=240)
    for (i, j), value in np.ndenumerate(near):
        color = "black" if value > 40 else "white"
        axes[1].text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
    axes[1].add_patch(Rectangle((1.5, 1.5), 1, 1, fill=False, color="#E69F00", lw=3))


# %% [markdown]
# Give it the plane in HU.

# %% tags=["cover"]
plane = ds.pixel_array * slope + intercept
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
show_voxel(plane, row, column, axes)
axes[0].set(title="one plane, soft-tissue window", xlabel="column", ylabel="row")
axes[1].set(title="the voxel and its neighbors, HU", xticks=[], yticks=[])
near = plane[row - 2 : row + 3, column - 2 : column + 3]
print(f"{near.min():g} to {near.max():g} HU, standard deviation {near.std():.1f} HU")
plt.show()

# %% [markdown]
# Left, the plane in a window of -160 to 240 HU; your voxel is in the middle of the box,
# which is 28 voxels wide. Right, five rows and five columns about it. Where one tissue
# fills these 25 voxels, the standard deviation is noise: a single voxel says little, and
# every threshold in this series has to live with it.

# %% [markdown] tags=["patient"]
# In the left picture, low at your right, the gray mass at the back of the lung is the tumor
# of notebook 00. To the file it is more pairs of bytes: no tag says that it is there.

# %% [markdown]
# ## What if one bit flips?
#
# A worn disk or a bad cable can turn a single 0 into a 1. Flip bit 11 of your voxel in
# a copy of the file: that is bit 3 of its high byte, worth 2048.

# %%
broken = bytearray(raw)
broken[offset + 1] ^= 0b0000_1000
print("before:", raw[offset : offset + 2].hex(" "))
print("after: ", broken[offset : offset + 2].hex(" "))

# %% [markdown]
# pydicom opens the broken copy without a word. Why should it complain? Every number is
# a legal number.

# %%
bad = pydicom.dcmread(io.BytesIO(broken))
bad_plane = bad.pixel_array * slope + intercept
print("voxels that differ:", np.count_nonzero(bad_plane != plane))
print(f"HU before {plane[row, column]:g}, after {bad_plane[row, column]:g}")

# %% [markdown]
# One voxel has changed by 2048 times the slope. On the screen it is a single dot, and
# in the lung it could pass for a tiny calcified granuloma. Look closely.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
show_voxel(bad_plane, row, column, axes)
axes[0].set(title="after the flip, magnified", xlabel="column", ylabel="row")
axes[0].set(xlim=(column - 40, column + 40), ylim=(row + 40, row - 40))
axes[1].set(title="HU, one bit later", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Left, one white dot in the middle of the box; right, its number. Nothing says that it is
# false. What does is a *checksum* that somebody wrote down while the file was whole:
# change one bit, and the checksum is another one altogether.

# %%
for name, data in (("whole ", raw), ("broken", broken)):
    digest = hashlib.sha256(data[start : start + size]).hexdigest()
    print(name, digest[:16], "...")

# %% [markdown]
# That is why `fetch_patient` compares the pixel bytes of each file of the tutorial's
# patient with a list of checksums before it lets you work with them.

# %% [markdown]
# ## What if the file is cut short?
#
# A copy that stopped too early loses its end. Take away the last 1,000 bytes, and ask
# for the pixels.

# %% tags=["raises-exception"]
pydicom.dcmread(io.BytesIO(raw[:-1000])).pixel_array

# %% [markdown]
# Read the last line with care: it names both numbers, the bytes that are there and the
# bytes that *Rows* and *Columns* promise. A missing end is easy to notice. A flipped bit
# is not: **what would fool you here is a file that is wrong and complete.**

# %% [markdown]
# ## Check yourself
#
# 1. Predict the byte at which the voxel one row *below* yours begins, then read it.
# 2. Which bit must flip to change a stored value by 64?
# 3. Predict what your two bytes give when they are read with the *largest* byte first.

# %% [markdown]
# ## Summary
#
# - 128 free bytes, then `DICM`: that, and not the name, makes a DICOM file.
# - An element is tag, VR, length, value; group 2 says how the rest is encoded.
# - Voxel (row, column) begins at: start of Pixel Data + 2 x (row x columns + column).
# - HU = stored value x Rescale Slope + Rescale Intercept.
# - One flipped bit passes every reader; only a checksum finds it.

# %% [markdown]
# ## In practice
#
# Hospital archives hold compressed files, big-endian ones, and some without preamble;
# `questlib.load_series` reads or refuses each of them by name. *Pixel Data* may end with
# a byte of padding, and unused high bits may hold graphics from the 1990s. Editing
# bytes is for learning: never put an altered file back into an archive. This series is
# for education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# One plane is not a patient. [02 · Stack a series](02_stack_a_series.ipynb) puts
# the planes in order.

# %% [markdown]
# ## References
#
# - DICOM PS3.10, 7.1: the preamble, the prefix, and File Meta Information.
# - DICOM PS3.5, 6.2: the VRs; 7.1: the structure of a data element; 7.3: byte order;
#   Annex A: transfer syntaxes.
# - DICOM PS3.5, 8.1.1, PS3.3, C.7.6.3 and, for CT, C.8.2.1: how voxels are encoded.
# - DICOM PS3.3, C.11.1: the Modality LUT, stored value to HU. Where HU come from:
#   [03](03_convert_to_hounsfield.ipynb) and its references.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. A row below means one row of columns further, two bytes each.

# %%
below = offset + 2 * ds.Columns
value = int.from_bytes(raw[below : below + 2], "little", signed=signed)
assert value == ds.pixel_array[row + 1, column]
print("byte", below, "holds the stored value", value)

# %% [markdown]
# 2. Bit 6, since two to the power of 6 is 64; it lies in the low byte.

# %%
flipped = bytes([two[0] ^ 0b0100_0000, two[1]])
change = int.from_bytes(flipped, "little", signed=signed) - stored
assert abs(change) == 64
print("the stored value changes by", change)

# %% [markdown]
# 3. The bytes change places, so the low byte is multiplied by 256. This is what a
# reader with the wrong byte order shows: noise where the patient was.

# %%
swapped = int.from_bytes(two, "big", signed=signed)
assert swapped % 65536 == high + 256 * low
print(f"{high} + 256 x {low} =", swapped)
