# %% [markdown]
# # 11 · Build a cohort

# %% [markdown]
# **What you'll do**: turn a dozen chests into one array with their lung masks, train a
# first classifier on it, and run the same on a cluster.
#
# **What you'll learn**
#
# - Bring many scans into one store that survives failures
# - Join the `.npy` files of the 2017 tutorial
# - Look at a cohort with PCA, and classify it with an SVM
# - Split patients so that nothing leaks
# - Shape the tensor that a 3-D network takes
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | equal shapes and what they cost | [04](04_resample_to_millimetres.ipynb) | necessary |
# | the lung mask | [09](09_mask_the_lungs.ipynb) | helpful |
#
# **Time** 30 minutes · **memory** 1 GB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Coronal planes of twelve phantoms and one scan, lungs only](images/11_build_a_cohort.png)

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from distributed import Client, LocalCluster
from matplotlib.colors import ListedColormap
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import questlib
from questlib.display import OKABE_ITO, edge_letters, use_style

use_style()

# %% [markdown]
# ## Who is in the cohort?
#
# Twelve phantoms with a truth that you know: six with healthy lungs, six with
# emphysema, which are holes in the lung. No two have the same vessels and nodules.

# %%
workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
sick = np.arange(12) % 2 == 1
for number, emphysema in enumerate(np.where(sick, 0.15, 0.0)):
    questlib.make_phantom(
        folder / f"phantom_{number:02}",
        shape=(30, 64, 64),
        spacing=(10, 5.6, 5.6),
        seed=number,
        emphysema=float(emphysema),
    )
print(sick.sum(), "of", len(sick), "have emphysema")

# %% [markdown]
# Add your scan. And add a folder that holds no scan at all: in a hundred folders there
# is always one, and it must not end the night's work.

# %%
scan = questlib.choose_scan()
(folder / "broken").mkdir()
(folder / "broken" / "readme.txt").write_text("the scan is on the other disk")
scans = {path.name: path for path in sorted(folder.glob("phantom_*"))}
scans |= {"yours": scan, "broken": folder / "broken"}
print(len(scans), "folders")

# %% [markdown]
# The names on the left are *keys*: they are all that the store will know of a patient.
# Choose them yourself, never take a name or an ID from the header.

# %% [markdown]
# ## How does a scan become a row?
#
# Readers of the 2017 tutorial asked how every patient can have the same shape. The answer
# is that of notebook 04: one spacing for all, then crop or pad to one box, so that a
# millimetre stays a millimetre. What does not fit into the box is lost, and you will be
# told how much.
#
# So: load, mask, resample, fit. Take 5 mm, to be quick, and a box of 320 x 320 x 400 mm.
# Do one scan by hand.

# %%
from questlib.resample import fit_shape, resample

spacing, shape = 5.0, (64, 64, 80)
volume = questlib.load_series(scans["phantom_00"])

# %% [markdown]
# Four calls, which you have met one by one:

# %%
lungs = questlib.segment_lungs(volume)
image = fit_shape(resample(volume, spacing), shape)
print(volume.shape, "to", image.shape)

# %% [markdown]
# The labels follow, with the nearest voxel instead of a blend.

# %%
labels = np.where(lungs.airway, 3, lungs.labels).astype(np.uint8)
labels = questlib.Volume(labels, volume.spacing, volume.origin, volume.direction)
mask = fit_shape(resample(labels, spacing, order=0), shape, fill=0)
print("voxels by label:", np.bincount(mask.array.ravel()))

# %% [markdown]
# Now all of them. `build_cohort` gives each scan to one worker, which writes its own
# region of a [Zarr](https://zarr.dev) store. No worker waits for another, and no array
# of all scans ever stands in memory.

# %%
from questlib.cohort import build_cohort

out = folder / "cohort"
cohort = build_cohort(scans, out, spacing=spacing)

# %% [markdown]
# Is the first row what you made by hand?

# %%
assert np.array_equal(cohort.image[0], image.array)
assert np.array_equal(cohort.mask[0], mask.array)
print(cohort.image.shape, cohort.image.dtype, "and", cohort.mask.dtype)

# %% [markdown]
# It is. `manifest.csv` says what became of each scan.

# %%
for row in cohort.manifest[:2] + cohort.manifest[-2:]:
    print(f"{row['key']:11} {row['status']:7} {row['right_ml']:>7} {row['left_ml']:>7}")
print("broken:", cohort.manifest[-1]["error"])
print("yours:", cohort.manifest[-2]["findings"] or "no findings")

# %% [markdown]
# The broken folder is a row with its reason, and the findings of a mask (notebook 09) stay
# with its row. **What would fool you here is a row of
# air**: the store keeps a place for the failed scan, so that numbers do not shift, and
# whoever ignores the manifest trains on emptiness. Keep what is done.

# %%
done = [row["status"] == "done" for row in cohort.manifest]
names = [row["key"] for row in cohort.manifest if row["status"] == "done"]
print(sum(done), "of", len(done), "scans can be used")

# %% [markdown]
# A second call does only what is missing or failed. Ask for something else, and it
# refuses to mix:

# %% tags=["raises-exception"]
build_cohort(scans, out, spacing=2.0)

# %% [markdown]
# ## What can a learner see?
#
# Blank everything but the lungs, as the tutorial of 2017 did for its networks. Then look
# at the middle coronal plane of everyone.

# %%
hu, inside = cohort.image[done], cohort.mask[done]
lung = np.isin(inside, (1, 2))
masked = np.where(lung, hu, -1000)
print(masked.shape, f"{masked.nbytes / 1e6:.0f} MB")

# %% [markdown]
# Emphysema has the HU of air. How much of each lung lies below -900 HU, in percent?

# %%
low = np.array([100 * np.mean(one[here] < -900) for one, here in zip(hu, lung)])
print("healthy  ", low[: len(sick)][~sick].round(1))
print("emphysema", low[: len(sick)][sick].round(1))
print("your scan", low[len(sick) :].round(1))

# %% [markdown]
# Draw every scan in its own frame, and those voxels in orange.

# %% tags=["cover"]
orange = ListedColormap([OKABE_ITO["orange"]])
kinds = ["healthy", "emphysema"] * 6 + [""]
fig, axes = plt.subplots(2, 7, figsize=(10, 3.2))
for ax in axes.flat:
    ax.set_axis_off()
for ax, one, name, kind in zip(axes.flat, masked, names, kinds):
    cut = one[::-1, shape[1] // 2]
    ax.imshow(cut, vmin=-1000, vmax=-500)
    ax.imshow(np.ma.masked_outside(cut, -999, -900), cmap=orange)
    ax.set_title(f"{name.replace('phantom_', '')} {kind}", fontsize=9)
for column, sign in ((2, -1), (72, 1)):
    letter = edge_letters(sign * image.direction[:, 2])
    axes[0, 0].text(column, 60, letter, color="white", fontsize=8)
plt.show()

# %% [markdown]
# The window goes from -1000 HU (black) to -500 HU (white). Phantoms with emphysema are full
# of orange holes, the healthy ones have hardly any. The spot below the left lung, in
# healthy phantoms too, is gas under the diaphragm: on planes of 10 mm the mask takes it for
# lung. White rims are voxels that lung and chest wall share; black dots are vessels that
# the mask leaves out.

# %% [markdown] tags=["patient"]
# The last frame is the patient, with a share between the two groups. Noise pushes single
# voxels below -900 HU as well, so the share is no diagnosis. And the tumor? It is not in
# the mask, so blanking took it away together with the chest wall: 54 mL or more, says the
# manifest. **A network trained on masked lungs never sees this tumor**, however good its
# score.

# %% [markdown]
# Thousands of voxels a scan are too many for an eye, and for a small learner. Principal
# component analysis (PCA) finds the few directions in which the scans differ most.

# %%
flat = masked.reshape(len(masked), -1).astype(np.float32)
pca = PCA(2, svd_solver="full").fit(flat[: len(sick)])
share, even = 100 * pca.explained_variance_ratio_, 200 / (len(sick) - 1)
print(f"two components hold {share.sum():.0f} % of the variance")
print(f"two of {len(sick) - 1} equal ones would hold {even:.0f} %")

# %% [markdown]
# Twelve scans differ in eleven directions at most. Two of them hold little more than two
# of eleven equal ones would: each phantom has vessels of its own. Draw each scan at its
# place.

# %%
places = pca.transform(flat)
fig, ax = plt.subplots(figsize=(6, 3.6))
groups = (("healthy", ~sick, "o"), ("emphysema", sick, "s"))
for name, chosen, marker in groups:
    first, second = places[: len(sick)][chosen].T
    ax.scatter(first, second, marker=marker, label=name)
    print(f"{name}: first component {first.min():.0f} to {first.max():.0f} HU")
ax.scatter(*places[len(sick) :].T, marker="*", s=120, label="your scan")
ax.set(xlabel="first component in HU", ylabel="second component in HU")
ax.legend()
plt.show()

# %% [markdown]
# The first component parts the two groups, though PCA was never told of them. Your scan is
# only placed among the phantoms. A larger lung or another scanner moves it just as well, so
# its place is no diagnosis. PCA saw all phantoms, which is fine for a look. In front of a
# classifier it belongs into the pipeline, or the test part leaks into the training.

# %% [markdown]
# ## Can an SVM find the emphysema?
#
# Emphysema shows in the histogram of the lung (notebook 05): more voxels are nearly
# air. So describe each phantom by eight numbers, the shares of its lung voxels in eight
# bins of 50 HU, from -1000 HU up.

# %%
bins = np.linspace(-1000, -600, 9)
lung = lung[: len(sick)]
print("lung voxels of the first:", lung[0].sum())

# %% [markdown]
# Dividing by their number makes large and small lungs comparable.

# %%
features = [
    np.histogram(one[here], bins)[0] / here.sum() for one, here in zip(hu, lung)
]
print(np.round(features[:2], 2))

# %% [markdown]
# First a healthy phantom, then one with emphysema: the second bin (-950 to -900 HU)
# differs most. Before you train, look at the balance. What would a program score that always says "healthy"? Any
# result has to be compared with that.

# %%
print(f"always healthy: {100 * np.mean(~sick):.0f} % right")

# %% [markdown]
# A support vector machine (SVM) draws the border with the widest margin. Scale and SVM
# stand in one pipeline, so that even the scaling is learned from the training part only.
# Every phantom is judged by an SVM that has not seen it.

# %%
model = make_pipeline(StandardScaler(), SVC())
split = StratifiedKFold(4, shuffle=True, random_state=0)
said = cross_val_predict(model, np.array(features), sick, cv=split)
print(confusion_matrix(sick, said))
raw = cross_val_predict(SVC(), flat[: len(sick)], sick, cv=split)
print(f"on all voxels instead: {100 * np.mean(raw == sick):.0f} % right")
rate = 100 * (1 - 0.05 ** (1 / len(sick)))
print(f"wrong in {rate:.0f} %, and yet all {len(sick)} right: one time in 20")

# %% [markdown]
# Read the table by rows: first the healthy, then those with emphysema; columns are what
# the SVM said. All right with eight good features, and useless with all voxels: too many
# for twelve scans. Phantoms make it easy, and twelve are few. The last line says how few: a
# program that errs that often would still get all of them right one time in 20.
#
# Some studies cut the patients into planes and have hundreds of examples at once. Try it: a
# row for each plane, its features the voxels themselves, every fourth.

# %%
used = lung.sum(axis=(2, 3)) >= 50
owner = np.nonzero(used)[0]
planes = masked[: len(sick)][used].reshape(len(owner), -1)[:, ::4]
print(planes.shape, "planes and features")

# %% [markdown]
# Now test the *test*. Give the patients their labels by lot, so that there is nothing to
# learn. Split once by planes, once by patients. One lot may be luck, so draw three.

# %%
rng = np.random.default_rng(0)
scores = {"planes mixed": [], "patients apart": []}
for _ in range(3):
    lot = rng.permutation(sick)[owner]
    mixed = KFold(4, shuffle=True, random_state=0).split(planes)
    apart = GroupKFold(4).split(planes, lot, owner)
    for split, kept in zip((mixed, apart), scores.values()):
        said = cross_val_predict(SVC(C=10), planes, lot, cv=split)
        kept.append(f"{100 * np.mean(said == lot):.0f} %")
print(scores)

# %% [markdown]
# Nothing can be learned here, so an honest score lies near one half or below: the more of
# one kind are in the test part, the fewer are left to learn from. With the planes mixed
# it is far above. The SVM has seen the neighbors of every test plane, and knows the
# *patient* again, not the disease. That is *leakage*. **What would fool you here is a good
# score.** Split by patient, always.

# %% [markdown]
# ## What does a network take?
#
# A 3-D network wants (scan, channel, plane, row, column), as small floats. Scale a range
# of HU to 0 to 1. Leave the scan whole, and let the mask be a channel of its own: what the
# mask missed, such as a tumor on the pleura, is then still there to be seen.


# %%
def make_batch(index):
    hu = np.clip(cohort.image.oindex[index], -1000, 400)
    inside = np.isin(cohort.mask.oindex[index], (1, 2))
    return np.stack([(hu + 1000) / 1400, inside], axis=1).astype(np.float32)


# %% [markdown]
# Ask for four scans.

# %%
batch = make_batch([0, 1, 2, 3])
print(batch.shape, batch.dtype, f"{batch.nbytes / 1e6:.0f} MB")

# %% [markdown]
# Only these four scans were read from the disk. Which learners can use the result? A
# convolutional network (CNN) takes this batch as it is; in PyTorch,
# `torch.from_numpy(batch)` is all that is missing. A deep belief network (DBN) takes one
# flat row a scan, like `flat`, scaled to 0 to 1. An SVM takes such rows too, but with few
# scans it needs few features, as you saw.
#
# Patches come from the same store. Draw their corners so that they hold lung.

# %%
edge, rng = 32, np.random.default_rng(0)
centers = np.argwhere(np.isin(cohort.mask[0], (1, 2)))
corners = rng.choice(centers, 6) - edge // 2
corners = np.clip(corners, 0, np.array(shape) - edge)
print(corners[:3])

# %% [markdown]
# A patch is a region of the store, and no more than that is read.

# %%
patches = np.stack(
    [cohort.image[(0, *(slice(c, c + edge) for c in corner))] for corner in corners]
)
print(patches.shape)

# %% [markdown]
# And the `.npy` files that readers of 2017 had on their disks, one a patient? Write some,
# one of them with another shape.

# %%
old = folder / "npy"
old.mkdir()
for name, one in zip(names, masked):
    np.save(old / f"{name}.npy", one[:60] if name == "yours" else one)

# %% [markdown]
# While they fit into memory, `np.stack` joins those of one shape:

# %%
paths = sorted(old.glob("phantom_*.npy"))
stacked = np.stack([np.load(path) for path in paths])
print(stacked.shape)

# %% [markdown]
# `join_npy` writes the same through a memory map, file by file, and finds the odd ones:

# %%
from questlib.cohort import join_npy

joined, files, left_out = join_npy(old, folder / "joined.npy")
assert np.array_equal(joined, stacked)
assert np.array_equal(joined.reshape(len(joined), -1), flat[: len(joined)])
print(joined.shape, "left out:", left_out)

# %% [markdown]
# `joined` lives on the disk and is read as you touch it. `joined.reshape(len(joined), -1)`
# is the very table that PCA took above; `joined[:, None]` has the channel that a network
# wants. What does not fit is named, not squeezed: bring it to the shape with `fit_shape`.

# %% [markdown]
# ## What if there are thousands?
#
# The same call takes a Dask cluster. Here are two workers on this machine, each a program
# with memory of its own; a `Client` of a cluster in your hospital or in a cloud would do
# the same, as long as its workers see the folders.

# %%
local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
with LocalCluster(**local) as cluster, Client(cluster) as client:
    again = build_cohort(scans, folder / "again", spacing=spacing, client=client)

# %% [markdown]
# A worker that dies takes nothing along: its scan is given to another, which writes the
# same region again. Without Python it is `questlib cohort FOLDER --out DIR --workers 2`.
# Is the store the same?

# %%
assert np.array_equal(again.image[:], cohort.image[:])
assert np.array_equal(again.mask[:], cohort.mask[:])
print("equal:", again.image.shape)

# %% [markdown]
# What would more cost? Compute it, with the assumptions in view. Our
# `benchmarks/cohort.py --full` measured 3.3 seconds of one core for a phantom of 160
# planes of 512 x 512. Double that, for reading and unpacking files over a network (the
# column `seconds` of your manifest has yours). Voxels of 1 mm in the same box, and half
# of the bytes left after compression.

# %%
seconds = 3.3 * 2
megabytes = 320 * 320 * 400 * (2 + 1) / 2 / 1e6
for count, workers in ((10, 2), (1_000, 8), (200_000, 200)):
    hours = count * seconds / workers / 3600
    terabytes = count * megabytes / 1e6
    print(f"{count:7} scans, {workers:3} workers: {hours:5.2f} h, {terabytes:6.3f} TB")
print(f"11 TB through 1 gigabit a second: {11e12 * 8 / 1e9 / 3600:.0f} h")

# %% [markdown]
# The third line has the size of the National Lung Screening Trial: about 200,000 CT
# series, more than 11 TB of DICOM. Computing takes two hours; moving the files to your
# workers takes a day. Send the workers to the data.

# %% [markdown]
# ## Check yourself
#
# 1. Predict how many scans a second call would work on, and find them in the manifest.
# 2. Mean HU of the lungs, one number a phantom: does it tell healthy from sick?
# 3. How many bytes does one scan take at 1 mm without compression?

# %% [markdown]
# ## Summary
#
# - One scan is one task and one region; failures are rows, and a second run resumes.
# - Keys are yours; the store holds no name.
# - PCA shows what differs most, which need not be the disease.
# - Split by patient: with planes mixed, an SVM scored far above one half on labels drawn
#   by lot.
# - A network takes (scan, channel, plane, row, column), read batch by batch. Whatever the
#   mask left out, a network on masked lungs cannot learn.

# %% [markdown]
# ## In practice
#
# Twelve phantoms prove that the plumbing works, nothing more. A real study needs hundreds
# of patients from several scanners, a test set that nobody has looked at, and confidence
# intervals. Scanner, kernel and dose leave traces that a network reads more easily than
# disease. The store turns every scan by right angles, planes to the head and columns to
# the patient's left, but a tilted stack stays tilted. Check consent and licence of every
# scan. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# Everything worked because the scans were sound. Now break one:
# [12 · Break the scan](12_break_the_scan.ipynb)

# %% [markdown]
# ## References
#
# - Zarr specification, version 3: chunks, regions, compression.
# - Dask documentation, "Distributed": clients, clusters, resilience.
# - F. Pedregosa et al., "Scikit-learn", Journal of Machine Learning Research 12 (2011).
# - S. Kapoor, A. Narayanan, "Leakage and the reproducibility crisis in
#   machine-learning-based science", Patterns 4 (2023), 100804: found in 17 fields.
# - National Cancer Institute, "NLST CT Images" (Cancer Data Access System): about 200,000
#   series; The Cancer Imaging Archive, collection NLST: more than 11 TB.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. The failed one, and no other.

# %%
missing = [row["key"] for row in cohort.manifest if row["status"] != "done"]
assert missing == ["broken"]
print(missing)

# %% [markdown]
# 2. It does here: holes pull the mean down.

# %%
means = np.array([one[here].mean() for one, here in zip(hu, lung)])
assert means[sick].max() < means[~sick].min()
print(
    f"sick below {means[sick].max():.0f} HU, healthy above {means[~sick].min():.0f} HU"
)

# %% [markdown]
# 3. Two bytes of HU and one of labels a voxel; and 5 x 5 x 5 times the voxels of 5 mm.

# %%
size = 320 * 320 * 400 * (2 + 1)
assert size == 5**3 * (cohort.image[0].nbytes + cohort.mask[0].nbytes)
print(f"{size / 1e6:.0f} MB")
