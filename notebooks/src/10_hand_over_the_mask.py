# %% [markdown]
# # 10 · Hand over the mask

# %% [markdown]
# **What you'll do**: write the lung mask as NIfTI and as DICOM SEG, and prove with other
# people's libraries that every voxel arrives at its place.
#
# **What you'll learn**
#
# - Turn patient axes from LPS to RAS, and an array into a NIfTI file
# - Bring a mask from cubes back to the planes of the scanner
# - Read a DICOM SEG: segments, codes, frames, references
# - Find out which file carries the patient's identity
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | a mask of both lungs | [09](09_mask_the_lungs.ipynb) | necessary |
# | grids and origins | [04](04_resample_to_millimetres.ipynb) | necessary |
#
# **Time** 25 minutes · **memory** 700 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Lungs and airway in three planes, read back from a DICOM SEG](images/10_hand_over_the_mask.png)

# %%
import tempfile
from pathlib import Path

import highdicom
import matplotlib.pyplot as plt
import nibabel
import numpy as np
import pydicom
from scipy import ndimage

import questlib
from questlib.display import show_three_planes, use_style
from questlib.resample import resample

use_style()

# %% [markdown]
# ## What do you hand over?
#
# Segment the scan as in notebook 09. You hold three things: the labels, the airway, and
# the geometry that places them in the patient.

# %%
scan = questlib.choose_scan()
volume = questlib.load_series(scan)
mask = questlib.segment_lungs(volume)
labels = np.where(mask.airway, 3, mask.labels).astype(np.uint8)
print({name: f"{ml:.0f} mL" for name, ml in mask.volumes_ml.items()})
print(mask.findings or "no findings")

# %% [markdown]
# The second line holds the findings (notebook 09). Keep it in mind: will it reach
# whoever gets the mask?
#
# The array alone is worth little. A program that opens it needs to know where voxel
# (0, 0, 0) lies, how large a voxel is, and which way the axes run. Each format says this
# in its own way, and that is where masks get mirrored.
#
# Choose one voxel to follow through all formats: the very first of the right lung. It
# lies on the border, so that a shift by one voxel can show.

# %%
voxel = np.unravel_index(np.argmax(labels == 1), labels.shape)
place = volume.affine @ [*voxel, 1]
print("label", labels[voxel], "at LPS", place[:3].round(1), "mm")

# %% [markdown]
# LPS means: x grows to the patient's **l**eft, y to **p**osterior (the back), z to
# **s**uperior (the head). DICOM says it so (PS3.3, C.7.6.2.1.1). Smaller x is the right
# side.

# %% [markdown]
# ## How does NIfTI say where a voxel is?
#
# NIfTI measures to the **r**ight, to **a**nterior and to superior: RAS. The same point
# has the first two signs flipped.

# %%
to_ras = np.diag([-1, -1, 1, 1])
print("RAS in mm:", (to_ras @ place)[:3].round(1))

# %% [markdown]
# And NIfTI counts (column, row, plane), the column first. The converter dcm2niix also
# counts the rows from the last one, so that they grow towards anterior. Do both, and your
# array has the order of its files.

# %%
nifti_array = labels[:, ::-1].T
rows = labels.shape[1]
to_index = np.array([[0, 0, 1, 0], [0, -1, 0, rows - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
print("from", labels.shape, "to", nifti_array.shape)

# %% [markdown]
# `to_index` takes a NIfTI index (i, j, k) to ours: the plane is k, the row is counted
# back from the last, the column is i. Chain the three steps, from right to left: NIfTI
# index, our index, LPS, RAS. That chain is the file's affine.

# %%
affine = to_ras @ volume.affine @ to_index
print(affine.round(2))

# %% [markdown]
# Write it through the helper, and open the file with nibabel, which knows nothing of
# us. It must find your affine.

# %%
workplace = tempfile.TemporaryDirectory()
out = Path(workplace.name)
questlib.save_nifti(out / "lungs.nii.gz", labels, like=volume)
image = nibabel.load(out / "lungs.nii.gz")
assert np.allclose(image.affine, affine, atol=1e-3)
assert np.array_equal(image.dataobj, nifti_array)
print(nibabel.aff2axcodes(image.affine), image.shape)

# %% [markdown]
# The three letters say where i, j and k grow to. Now the only proof that counts. Ask
# nibabel where your voxel went: from RAS millimetres back to an index.

# %%
ijk = np.linalg.inv(image.affine) @ to_ras @ place
ijk = tuple(ijk[:3].round().astype(int))
assert image.dataobj[ijk] == labels[voxel]
print("label", image.dataobj[ijk], "at", tuple(map(int, ijk)))

# %% [markdown]
# Would a mistake show? Leave out the sign flip, which is easily forgotten, and look up the
# same place.

# %%
careless = (np.linalg.inv(image.affine) @ place)[:3].round()
within = np.all((careless >= 0) & (careless < image.shape))
print("index:", careless, "within the grid:", bool(within))

# %% [markdown]
# If that lies outside of the grid, you are lucky: a viewer shows nothing, and you
# search. **What would fool you here is a scan that is centered on the scanner's axis:**
# then the mask, turned by half a circle about the long axis of the body, lies on the
# other lung, and a coronal plane looks quite right.

# %% [markdown]
# ## How does a mask come back from cubes?
#
# A network that works on cubes of 1.5 mm gives you its mask on them, and the archive
# wants it on the planes of the scanner. Play it through with the right lung: first to
# cubes. Each cube is lung to some percent; it counts as lung from 50 % on.

# %%
right = labels == 1
geometry = volume.spacing, volume.origin, volume.direction
percent = questlib.Volume(right * np.uint8(100), *geometry)
cubes = resample(percent, 1.5)
there = cubes.array >= 50
print(percent.shape, "to", there.shape)

# %% [markdown]
# Now back. Where does a voxel of the scanner lie among the cubes? The two affines
# answer it: ours to millimetres, millimetres to the index of a cube.

# %%
to_cube = np.linalg.inv(cubes.affine) @ volume.affine
print(to_cube.round(3))

# %% [markdown]
# Interpolate *how much* of a voxel is lung, a number from 0 to 1, and take one half as
# the border.

# %%
share = ndimage.affine_transform(
    there,
    to_cube,
    output_shape=volume.shape,
    output=np.float32,
    order=1,
    mode="grid-constant",
)
back = share >= 0.5
del share
dice = 2 * np.sum(back & right) / max(1, back.sum() + right.sum())
print(f"Dice of the round trip: {dice:.4f}")

# %% [markdown]
# Dice 1 would be voxel for voxel the same. What is missing sits on the border, where a
# cube holds both lung and wall and had to be one of them. `save_dicom_seg` does the same
# with all labels at once; you will prove it below.

# %% [markdown]
# ## What does a DICOM SEG hold?
#
# NIfTI is for computing. A hospital's archive is made for DICOM, whose form for masks is
# the Segmentation object (SEG; PS3.3, A.51). It needs the scan, because it points to
# each plane. *Number of Frames* (0028,0008) counts what is in it.

# %%
questlib.save_dicom_seg(out / "lungs.seg.dcm", mask, source=scan)
seg = pydicom.dcmread(out / "lungs.seg.dcm")
print(seg.Modality, "with", seg.NumberOfFrames, "frames of", seg.Rows, "x", seg.Columns)

# %% [markdown]
# *Segment Sequence* (0062,0002) lists the segments. Each says what it is with a code of
# SNOMED CT, in *Segmented Property Type Code Sequence* (0062,000F), so that no program
# has to guess from a name.

# %%
for segment in seg.SegmentSequence:
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    print(segment.SegmentNumber, code.CodeMeaning, code.CodeValue)

# %% [markdown]
# A frame is one plane of one segment; empty ones are left out. *Per-Frame Functional
# Groups Sequence* (5200,9230) has an item for each frame. Open the one in the middle:
# which segment (0062,000B), where (0020,0032), and which image it was drawn on
# (0008,2112).

# %%
frame = seg.PerFrameFunctionalGroupsSequence[seg.NumberOfFrames // 2]
number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
source = frame.DerivationImageSequence[0].SourceImageSequence[0]
position = frame.PlanePositionSequence[0].ImagePositionPatient
print("segment", number, "at", [round(float(mm), 1) for mm in position], "mm")

# %% [markdown]
# The reference is a *SOP Instance UID* (0008,0018). Follow it: the plane with that UID
# must lie at the same position.

# %%
for file in max(questlib.find_series(scan), key=lambda one: one.planes).files:
    ds = pydicom.dcmread(file, stop_before_pixels=True)
    if ds.SOPInstanceUID == source.ReferencedSOPInstanceUID:
        found = ds
assert np.allclose(found.ImagePositionPatient, position)
print("instance number of that plane:", found.InstanceNumber)

# %% [markdown]
# Now the second reader. highdicom puts the frames together by their positions and gives
# an affine in LPS, like ours.

# %%
reader = highdicom.seg.segread(out / "lungs.seg.dcm")
theirs = reader.get_volume(combine_segments=True, skip_overlap_checks=True)
print(theirs.array.shape, theirs.array.dtype)

# %% [markdown]
# Its planes may run the other way, and empty ones are missing. highdicom itself can lay
# them on another geometry by position in the patient. Give it ours. If a single voxel
# were mirrored, shifted or lost, the assertion would stop you:

# %%
target = highdicom.Volume(labels, volume.affine, coordinate_system="PATIENT")
returned = theirs.match_geometry(target, tol=1e-3).array.astype(np.uint8)
assert np.array_equal(returned, labels)
print(np.count_nonzero(returned), "voxels, all at their place")
del reader, theirs, percent

# %% [markdown]
# Every voxel arrived. That says nothing about whether the mask was right. Where would
# a careful reader look? Where the lungs have a dent. Bridge dents with a ball of 30 mm
# (a closing, as in notebook 09), on coarse cubes, and find the deepest one.

# %%
step = 4.0
lungs = resample(questlib.Volume(labels, *geometry), step, order=0)
solid = np.isin(lungs.array, (1, 2))
near = ndimage.distance_transform_edt(~solid) * step <= 30
bridged = (ndimage.distance_transform_edt(near) * step > 30) & ~solid
deepest = np.argmax(ndimage.distance_transform_edt(bridged))
spot = np.unravel_index(deepest, solid.shape)
dent = (lungs.affine @ [*spot, 1])[:3]
print("deepest dent at LPS", dent.round(), "mm")

# %% [markdown]
# Draw what came back over the scan, through that place, where the yellow lines cross.

# %% tags=["cover"]
here = np.linalg.inv(volume.affine) @ [*dent, 1]
here = np.clip(here[:3].round().astype(int), 0, np.array(volume.shape) - 1)
show_three_planes(volume, tuple(here), labels=returned, window="mediastinum")
plt.show()

# %% [markdown] tags=["patient"]
# The gray mass at the cross, at the back of the left chest, is the tumor. The orange line
# goes round it: the segment called Left lung does not hold it. The finding at the top
# named 54 mL or more, and nothing in the file says so. Every check above was passed:
# **what would fool the receiver is a valid file.** Say what a mask leaves out, in words,
# to whoever gets it.

# %% [markdown]
# Does a mask that was made on cubes arrive as well? Hand it to the helper.

# %%
of_cubes = mask._replace(
    labels=there.view(np.uint8),
    airway=np.zeros_like(there),
    spacing=cubes.spacing,
    origin=cubes.origin,
)
questlib.save_dicom_seg(out / "cubes.seg.dcm", of_cubes, source=scan)

# %% [markdown]
# Let highdicom read it, and compare voxel by voxel with what you computed by hand.

# %%
theirs = highdicom.seg.segread(out / "cubes.seg.dcm").get_volume(combine_segments=True)
arrived = theirs.match_geometry(target, tol=1e-3).array > 0
differ = np.count_nonzero(arrived != back)
print(np.count_nonzero(arrived), "voxels;", differ, "differ from yours")
assert differ <= 1e-4 * back.sum()
del theirs, target

# %% [markdown]
# ## Who is in the file?
#
# Before you share a mask, search it for the patient. Three traces will do: the name, the
# ID, and the UID of one plane. Write two more files first: the `.npz` of questlib, and a
# SEG without identity.

# %%
questlib.save_volume(out / "lungs.npz", questlib.Volume(labels, *geometry))
questlib.save_dicom_seg(out / "anonymous.seg.dcm", mask, source=scan, deidentify=True)
traces = [str(found.get(key, "")) for key in ("PatientName", "PatientID")]
traces = [text.encode() for text in (*traces, found.SOPInstanceUID) if text]

# %% [markdown]
# Compressed files have to be opened before you search them, or you would find nothing
# and feel safe.

# %%
contents = {path.name: path.read_bytes() for path in sorted(out.glob("*.dcm"))}
contents["lungs.nii.gz"] = image.header.binaryblock + bytes(nifti_array)
with np.load(out / "lungs.npz") as parts:
    contents["lungs.npz"] = b"".join(part.tobytes() for part in parts.values())
for name, data in contents.items():
    print(f"{name:18} holds {sum(trace in data for trace in traces)} of {len(traces)}")

# %% [markdown]
# A SEG carries the patient's identity by nature: *Patient's Name* (0010,0010), *Patient
# ID* (0010,0020), birth date, study, and the UID of each plane. An archive needs them to
# file it. Treat it like the scan itself.
#
# As written here, NIfTI and `.npz` hold numbers only. NIfTI has free-text header fields:
# look before you share somebody else's file. `deidentify=True` gives a SEG in which none
# of the three is found: a dummy name, dummy dates, and every UID new. It says so in the
# way of the standard, in *Patient Identity Removed* (0012,0062) and *De-identification
# Method Code Sequence* (0012,0064).

# %%
anonymous = pydicom.dcmread(out / "anonymous.seg.dcm")
print("Patient Identity Removed:", anonymous.PatientIdentityRemoved)
print("method:", anonymous.DeidentificationMethodCodeSequence[0].CodeMeaning)

# %% [markdown]
# The price: its references lead nowhere. Mask and scan now belong together by geometry
# alone. And the shape of a body is still there; a face in a head scan can be recognized.

# %% [markdown]
# ## What if the file is there already?
#
# Masks take time and are corrected by hand. So nothing is overwritten in silence:

# %% tags=["raises-exception"]
questlib.save_nifti(out / "lungs.nii.gz", labels, like=volume)

# %% [markdown]
# With `overwrite=True` the new file is written beside the old one and takes its place
# when it is complete. A full disk or a killed program leaves the old file as it was.

# %% [markdown]
# ## Check yourself
#
# 1. Predict the sign of the mean RAS x of the left lung, minus that of the right lung.
# 2. Predict the number of frames in the SEG from `labels` alone, then compare with the
#    file.
# 3. Write the HU of the scan as NIfTI and read them back. Are they the same numbers?

# %% [markdown]
# ## Summary
#
# - An array without its geometry is no mask: the affine goes with it.
# - DICOM counts in LPS, NIfTI in RAS: two signs differ.
# - A mask returns from cubes by shares of lung, with its border at one half.
# - A SEG has segments with codes, and frames that point to planes.
# - A SEG carries the patient's identity; NIfTI and `.npz`, as written here, hold numbers
#   only. A valid file can still hold a mask that leaves something out.

# %% [markdown]
# ## In practice
#
# Archives, viewers and planning systems differ in what they accept: some want RT
# Structure Sets, that is contours, some do not show SEG at all. Test with your own
# archive before you promise anything. Real de-identification is a process with a policy
# and a second reader, not one option of a function. A file that goes into a clinical
# archive must be marked as what it is. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# One mask is handed over. Now a hundred patients:
# [11 · Build a cohort](11_build_a_cohort.ipynb)

# %% [markdown]
# ## References
#
# - DICOM PS3.3, C.7.6.2.1.1: positions and orientations are LPS millimetres.
# - DICOM PS3.3, A.51 and C.8.20: the Segmentation object; C.7.6.16: frames and their
#   functional groups.
# - DICOM PS3.15, E: de-identification profiles; PS3.16, CID 7050: their codes.
# - NIfTI-1.1 data format: qform, sform, and RAS.
# - X. Li et al., "The first step for neuroimaging data analysis: DICOM to NIfTI
#   conversion", Journal of Neuroscience Methods 264 (2016), 47-56: dcm2niix.
# - C. P. Bridge et al., "Highdicom", Journal of Digital Imaging 35 (2022), 1719-1737.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Negative: RAS x grows to the right, and the left lung is on the left.

# %%
centers = {}
for label in set(np.unique(labels)) & {1, 2}:
    index = np.argwhere(labels[:, ::4, ::4] == label).mean(axis=0) * [1, 4, 4]
    centers[{1: "right", 2: "left"}[label]] = (to_ras @ volume.affine @ [*index, 1])[0]
assert centers.get("left", -np.inf) < centers.get("right", np.inf)
print({name: f"{mm:.0f} mm" for name, mm in centers.items()})

# %% [markdown]
# 2. One for each plane that a label touches.

# %%
frames = sum((labels == label).any(axis=(1, 2)).sum() for label in (1, 2, 3))
assert frames == seg.NumberOfFrames or frames == 0
print(frames, "frames")

# %% [markdown]
# 3. They are, in the same type.

# %%
questlib.save_nifti(out / "scan.nii.gz", volume.array, like=volume)
scan_image = nibabel.load(out / "scan.nii.gz")
assert np.array_equal(scan_image.dataobj, volume.array[:, ::-1].T)
print(scan_image.get_data_dtype())
