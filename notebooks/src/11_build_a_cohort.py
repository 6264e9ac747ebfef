# %% [markdown]
# # 11 · Build a cohort

# %% [markdown]
# **What you'll do**: turn a dozen chests into one array with their lung masks, train a
# first classifier on it, and run the same on a cluster.
#
# **What you'll learn**
#
# - Bring many scans into one store that survives failures
# - Join the `.npy` files of the old tutorial
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
# **Time** 30 minutes · **memory** 600 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Coronal planes of twelve phantoms and one scan, lungs only](images/11_build_a_cohort.png)

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from distributed import Client, LocalCluster
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
from questlib.display import use_style

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
# You know each step: load, mask, resample, fit. Take 5 mm, to be quick, and a box of 320
# x 320 x 400 mm. Do one scan by hand.

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
print(cohort.manifest[-1]["error"])

# %% [markdown]
# The broken folder is a row with its reason. **What would fool you here is a row of
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
masked = np.where((inside == 1) | (inside == 2), hu, -1000)
print(masked.shape, f"{masked.nbytes / 1e6:.0f} MB")

# %% [markdown]
# Small enough to draw, every scan in its own frame.

# %% tags=["cover"]
fig, axes = plt.subplots(2, 7, figsize=(10, 3))
for ax in axes.flat:
    ax.set_axis_off()
for ax, one, name in zip(axes.flat, masked, names):
    ax.imshow(one[::-1, shape[1] // 2], vmin=-1000, vmax=-500)
    ax.set_title(name.replace("phantom_", ""), fontsize=9)
plt.show()

# %% [markdown]
# Odd numbers have emphysema: dark holes in the gray. Thousands of voxels a scan are too
# many for an eye, and for a small learner. Principal component analysis (PCA) finds the
# few directions in which the scans differ most.

# %%
flat = masked.reshape(len(masked), -1).astype(np.float32)
pca = PCA(2, svd_solver="full").fit(flat[: len(sick)])
share = 100 * pca.explained_variance_ratio_
print(f"two components hold {share.sum():.0f} % of the variance")

# %% [markdown]
# Draw each scan at its place.

# %%
places = pca.transform(flat)
fig, ax = plt.subplots(figsize=(6, 3.6))
groups = (("healthy", ~sick, "o"), ("emphysema", sick, "s"))
for name, chosen, marker in groups:
    ax.scatter(*places[: len(sick)][chosen].T, marker=marker, label=name)
ax.scatter(*places[len(sick) :].T, marker="*", s=120, label="your scan")
ax.set(xlabel="first component", ylabel="second component")
ax.legend()
plt.show()

# %% [markdown]
# The first component parts the two groups, though PCA was never told of them: emphysema
# is what differs most here. Your scan is only placed among the phantoms. A larger lung
# or another scanner moves it just as well, so its place is no diagnosis.

# %% [markdown]
# ## Can an SVM find the emphysema?
#
# Emphysema shows in the histogram of the lung (notebook 05): more voxels are nearly
# air. So describe each phantom by eight numbers, the shares of its lung voxels in eight
# bins of HU.

# %%
bins = np.linspace(-1000, -600, 9)
lung = np.isin(inside[: len(sick)], (1, 2))
print("lung voxels of the first:", lung[0].sum())

# %% [markdown]
# Dividing by their number makes large and small lungs comparable.

# %%
features = [
    np.histogram(one[here], bins)[0] / here.sum() for one, here in zip(hu, lung)
]
print(np.round(features[:2], 2))

# %% [markdown]
# First a healthy phantom, then one with emphysema: the second bin differs. Before you
# train, look at the balance. What would a program score that always says "healthy"? Any
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

# %% [markdown]
# Read the table by rows: first the healthy, then those with emphysema; columns are what
# the SVM said. Phantoms make it easy. Real emphysema is not so clean.
#
# Twelve examples are few. Many papers cut the patients into planes and have hundreds at
# once. Try it: a row for each plane, its features the voxels themselves, every fourth.

# %%
used = lung.sum(axis=(2, 3)) >= 50
owner = np.nonzero(used)[0]
planes = masked[: len(sick)][used].reshape(len(owner), -1)[:, ::4]
print(planes.shape, "planes and features")

# %% [markdown]
# Now test the *test*. Give the patients their labels by lot, so that there is nothing to
# learn. Split once by planes, once by patients.

# %%
lot = np.random.default_rng(0).permutation(sick)[owner]
splits = {
    "planes mixed": KFold(4, shuffle=True, random_state=0).split(planes),
    "patients apart": GroupKFold(4).split(planes, lot, owner),
}
for name, split in splits.items():
    said = cross_val_predict(SVC(C=10), planes, lot, cv=split)
    print(f"{name:14} {100 * np.mean(said == lot):.0f} % right")

# %% [markdown]
# Nothing can be learned here, so an honest score is one half or below. With the planes
# mixed it is far above: the SVM has seen the neighbors of every test plane, and knows
# the *patient* again, not the disease. That is *leakage*, the commonest error in this
# field. Split by patient, always.

# %% [markdown]
# ## What does a network take?
#
# A 3-D network wants (scan, channel, plane, row, column), as small floats. Scale a range
# of HU to 0 to 1, and let the mask be a channel of its own.


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
# Only these four scans were read from the disk. For PyTorch, `torch.from_numpy(batch)` is
# all that is missing; deep belief networks and SVMs take the flat rows from above.
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
# one of them with another shape, and join them.

# %%
from questlib.cohort import join_npy

old = folder / "npy"
old.mkdir()
for name, one in zip(names, masked):
    np.save(old / f"{name}.npy", one[:60] if name == "yours" else one)

# %% [markdown]
# All through one memory map:

# %%
joined, files, left_out = join_npy(old, folder / "joined.npy")
print(joined.shape, "left out:", left_out)

# %% [markdown]
# `joined` lives on the disk and is read as you touch it. What does not fit is named, not
# squeezed: bring it to the shape with `fit_shape`.

# %% [markdown]
# ## What if there are thousands?
#
# The same call takes a Dask cluster. Here are two workers on this machine; a `Client` of
# a cluster in your hospital or in a cloud would do the same, as long as its workers see
# the folders.

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
for count, workers in ((10, 2), (1_000, 8), (194_327, 200)):
    hours = count * seconds / workers / 3600
    terabytes = count * megabytes / 1e6
    print(f"{count:7} scans, {workers:3} workers: {hours:5.2f} h, {terabytes:6.3f} TB")

# %% [markdown]
# The last line is every public chest CT series of the National Lung Screening Trial.
# Computing is an afternoon; moving the DICOM files takes longer. Send the workers to the
# data.

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
# - Split by patient, or the score is a dream.
# - A network takes (scan, channel, plane, row, column), read batch by batch.

# %% [markdown]
# ## In practice
#
# Twelve phantoms prove that the plumbing works, nothing more. A real study needs hundreds
# of patients from several scanners, a test set that nobody has looked at, and confidence
# intervals. Scanner, kernel and dose leave traces that a network reads more easily than
# disease. Check consent and licence of every scan. Education and research, not for
# diagnosis.

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
#   machine-learning-based science", Patterns 4 (2023), 100804.
# - National Lung Screening Trial, NCI Imaging Data Commons: 194,327 chest CT series.
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
# 3. Two bytes of HU and one of labels a voxel.

# %%
size = 320 * 320 * 400 * (2 + 1)
print(f"{size / 1e6:.0f} MB")
