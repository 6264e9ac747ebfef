# %% [markdown]
# # 00 · Start here

# %% [markdown]
# **What you'll do**: check that your machine is ready, choose a scan, and look at two
# lungs; then you see the whole quest on one map.
#
# **What you'll learn**
#
# - Check the environment in one cell
# - Choose the scan that all notebooks use
# - Name the axes of a CT volume, and the sides of the patient
# - Find your way through the notebooks
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | the environment (`make lab`) | [README](../README.md) | necessary |
# | some Python, some CT | your daily work | helpful |
#
# **Time** 5 minutes · **memory** 300 MB · **download** 20 MB, once, with `questlib
# fetch` · **data and licence** Lung-PET-CT-Dx, CC BY 4.0
#
# ![Three orthogonal planes of a chest CT](images/00_start_here.png)

# %%
import os
import sys
from importlib.metadata import version

import matplotlib.pyplot as plt
import numpy as np

import questlib
from questlib.display import show_montage, show_plane, show_three_planes, use_style

use_style()

# %% [markdown]
# ## Is your machine ready?
#
# Ask Python first: the quest runs on 3.11, 3.12 and 3.13.

# %%
ready = (3, 11) <= sys.version_info[:2] <= (3, 13)
print("Python is ready" if ready else "please use Python 3.11, 3.12 or 3.13")

# %% [markdown]
# Then the packages that do the work. Each one must be at least as new as the number
# beside it.

# %%
needs = {"pydicom": "3.0", "numpy": "2.1", "scipy": "1.14", "scikit-image": "0.25"}
for name, least in needs.items():
    have = [int(part) for part in version(name).split(".")[:2]]
    verdict = "ready" if have >= [int(part) for part in least.split(".")] else "too old"
    print(f"{name:13} {least:>5} or newer: {verdict}")

# %% [markdown]
# Does a line say *too old*? Then run `make setup` in the project's folder once more.

# %% [markdown]
# ## Which scan will you use?
#
# All notebooks ask the same function. It takes, in this order: the folder that you name
# in `QUEST_SCAN`, the tutorial's patient if you have fetched it, or a computed
# phantom, which needs no network at all.

# %%
scan = questlib.choose_scan()

# %% [markdown]
# **The patient** is a real chest CT of a person with lung cancer, published without
# name or dates: *Lung-PET-CT-Dx*, subject Lung_Dx-A0001 (P. Li and others, The Cancer
# Imaging Archive, 2020, DOI 10.7937/TCIA.2020.NNC2-0461, CC BY 4.0). Fetch it once with
# `questlib fetch`.
#
# **The phantom** is a chest made of formulas. Its truth is known to the voxel, so it
# is the ruler wherever a notebook measures.
#
# **Your own scan**: write the folder between the quotes and run the cell again. Leave
# it empty to keep the scan above.

# %%
my_folder = ""
if my_folder:
    os.environ["QUEST_SCAN"] = my_folder
    scan = questlib.choose_scan()

# %% [markdown]
# This holds for this notebook. To move the whole quest to your scan, start JupyterLab
# with `QUEST_SCAN` set, or run `questlib run FOLDER`.
#
# What is in the folder? `find_series` opens every file, whatever its name, and lists
# the series. It shows nothing that a patient could be known by.

# %%
for series in questlib.find_series(scan):
    print(series.modality, "·", series.planes, "planes of", *series.shape)

# %% [markdown]
# ## What do two lungs look like?
#
# One line loads the scan. What it checks on the way fills notebooks 02 and 12; for
# now, read what it returns.

# %%
volume = questlib.load_series(scan)
print(volume)

# %% [markdown]
# A volume is an array of Hounsfield units with three axes, always in this order:
# *plane, row, column*. The spacing says how far neighboring voxels are apart along
# each of them, in millimetres.

# %%
size = np.array(volume.shape) * volume.spacing
for axis, length in zip(("planes", "rows", "columns"), size):
    print(f"{axis:8} cover {length:5.0f} mm")

# %% [markdown]
# Now look at it from three sides, in the lung window (notebook 03 computes it).

# %% tags=["cover"]
show_three_planes(volume)
plt.show()

# %% [markdown]
# Read it as you read a workstation. In the axial plane you look from the feet,
# whichever way the patient lies: **R**, the patient's right, is at your left; **A**nterior is
# up. In the coronal plane you face the patient. In the sagittal plane you stand at the
# patient's left: A is at your left. In both, **H**, the head, is up. The dashed lines show
# where the planes cross. The large dark spaces inside the chest are the lungs.
#
# The letters are computed from the header, never guessed from the anatomy: a heart on the
# wrong side is then a finding, or a header to doubt.
#
# Leaf through the scan, from the head to the feet.

# %%
show_montage(volume, count=15)
plt.show()

# %% [markdown]
# Each picture carries its plane's number and its position in the patient, in
# millimetres. Vessels are the white branches in the lungs; the round dark hole in the
# upper planes is the trachea.

# %% [markdown] tags=["patient"]
# This patient has a large tumor in the upper left chest, against the posterior pleura:
# look at the fourth and fifth picture, at your right, where the other lung is dark.
# **What would fool you here is one picture alone:** the three middle planes further up
# miss the tumor, and show two lungs without it.
#
# It is the thread of the quest. A threshold calls it "not lung" and drops it. What
# becomes of it, and how would you notice?

# %% [markdown]
# ## The map of the quest
#
# | notebook | what you hold at its end |
# |---|---|
# | [01 · Dig into a file](01_dig_into_a_dicom_file.ipynb) | two bytes: one voxel |
# | [02 · Stack](02_stack_a_series.ipynb) | a volume with geometry |
# | [03 · Convert to HU](03_convert_to_hounsfield.ipynb) | HU, windows |
# | [04 · Resample](04_resample_to_millimetres.ipynb) | cubes, not boxes |
# | [05 · Histogram](05_read_the_histogram.ipynb) | tissue peaks, thresholds |
# | [06 · Planes](06_look_at_planes.ipynb) | montage, three planes, browser |
# | [07 · Surfaces](07_see_surfaces.ipynb) | bones in 3-D, a file to print |
# | [08 · Mask one plane](08_mask_one_plane.ipynb) | the mask of 2017, and a better one |
# | [09 · Mask the lungs](09_mask_the_lungs.ipynb) | both lungs in 3-D, in mL |
# | [10 · Hand over the mask](10_hand_over_the_mask.ipynb) | NIfTI, DICOM SEG |
# | [11 · Build a cohort](11_build_a_cohort.ipynb) | one store, many patients |
# | [12 · Break the scan](12_break_the_scan.ipynb) | refusals explained |
#
# Go from top to bottom the first time. Each runs alone, too.

# %% [markdown]
# ## Check yourself
#
# 1. Predict how many millilitres one voxel of this scan holds, then compute it.
# 2. Show the plane in the middle of the volume in the mediastinal window.

# %% [markdown]
# ## Summary
#
# - `choose_scan` names the scan; `load_series` makes it a volume in HU.
# - Axes are plane, row, column; spacing is in mm in the same order.
# - The patient's right is at your left, anterior is up, the head is up.

# %% [markdown]
# ## In practice
#
# **For education and research, not for diagnosis.** Nothing here has been validated for
# the care of patients. Work with public or de-identified scans, or with the permission
# that your hospital asks for: a CT of a head can be turned into a face.
#
# This series re-makes "DICOM Processing and Segmentation in Python" by Howard Chen
# (Radiology Data Quest, 2017), which itself built on G. Zuidhof's Kaggle preprocessing
# tutorial and on the DSB3 tutorial of Booz Allen Hamilton. The idea and the journey are
# theirs; code and text are new.

# %% [markdown]
# ## What's next
#
# Take a jackhammer, then a toothbrush:
# [01 · Dig into a DICOM file](01_dig_into_a_dicom_file.ipynb).

# %% [markdown]
# ## References
#
# - P. Li, S. Wang, T. Li, J. Lu, Y. HuangFu, D. Wang: *A Large-Scale CT and PET/CT
#   Dataset for Lung Cancer Diagnosis (Lung-PET-CT-Dx)*. The Cancer Imaging Archive, 2020.
#   DOI 10.7937/TCIA.2020.NNC2-0461. CC BY 4.0.
# - DICOM PS3.3, C.7.6.2.1.1: the patient-based coordinate system (LPS).
# - DICOM PS3.3, C.7.6.1.1.1: Patient Orientation, the letters R L A P H F.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. Multiply the three spacings; 1 mL is 1,000 cubic millimetres.

# %%
voxel_ml = np.prod(volume.spacing) / 1000
print(f"one voxel holds {voxel_ml:.5f} mL")
assert np.isclose(voxel_ml * volume.array.size, np.prod(size) / 1000)

# %% [markdown]
# 2. The presets are named after what they show. This one has its center at 40 HU and is
#    400 HU wide. The drawing function returns the Axes, so you can ask what was drawn.

# %%
ax = show_plane(volume, window="mediastinum")
low, high = ax.images[0].get_clim()
assert (low, high) == (40 - 400 / 2, 40 + 400 / 2 - 1)
print(f"black up to {low:g} HU, white from {high:g} HU")
plt.show()

# %% [markdown]
# Now the lungs are black. Fat is dark gray, muscle and heart are lighter, bone is white.
