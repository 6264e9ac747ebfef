# %% [markdown]
# # 05 · Read the histogram

# %% [markdown]
# **What you'll do**: count how often each HU occurs, name the tissues behind the peaks,
# and find the threshold between air and body in four ways.
#
# **What you'll learn**
#
# - Count whole HU in honest bins
# - Name tissues by their range, and see where ranges fail
# - Spot padding before it spoils a statistic
# - Compute a threshold by rule, by Otsu, by 2-means, and at the valley
# - Measure what the choice of a threshold costs, in mL
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | HU | [03](03_convert_to_hounsfield.ipynb) | necessary |
# | spacing | [04](04_resample_to_millimetres.ipynb) | helpful |
#
# **Time** 20 minutes · **memory** 300 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Histogram of a chest CT with tissue bands and four thresholds](images/05_read_the_histogram.png)

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

import questlib
from questlib.display import AXES_MM, TISSUES, show_plane, use_style

use_style()

# %% [markdown]
# ## What does a histogram count?
#
# Load the scan of the quest. From here on it is one array in HU with its geometry.

# %%
volume = questlib.load_series(questlib.choose_scan())
hu = volume.array
print(volume)

# %% [markdown]
# A histogram forgets where each voxel lies and keeps only how often each value occurs.
# That is its strength, millions of voxels in one line, and its weakness: it cannot tell
# the air in a lung from the air beside the patient.
#
# First decision: how wide is a bin? HU are whole numbers. Try a bin of 2.5 HU and count
# only around the soft tissues.

# %%
uneven = np.arange(0, 101, 2.5)
counts, _ = np.histogram(hu, uneven)
print(counts[:8])

# %% [markdown]
# The counts swing up and down, and no tissue is the reason. A bin of 2.5 HU holds three
# whole numbers, the next only two. **What would fool you here is a comb that looks like
# signal.** A bin that is a whole number of HU wide, with its edges at halves, always
# holds equally many values.

# %%
width = 10
edges = np.arange(-1100, 1501, width) - 0.5
counts, _ = np.histogram(hu, edges)
middles = (edges[:-1] + edges[1:]) / 2
print(len(counts), "bins,", width, "HU each, from", edges[0], "to", edges[-1], "HU")

# %% [markdown]
# ## Which tissues are the peaks?
#
# Draw the counts.

# %%
plt.stairs(counts / 1e6, edges, fill=True, color="0.3")
plt.xlabel("radiodensity (HU)")
plt.ylabel(f"million voxels in each {width} HU bin")
plt.show()

# %% [markdown]
# A tower of air near -1000 HU, and a low, broad hill near zero. A linear axis is honest
# about amounts and useless for rare tissues: bone is there, but you cannot see it. A
# logarithmic axis shows all of it. Remember then that one step up means ten times as many
# voxels.
#
# `TISSUES` holds usual ranges. They are for reading, not for segmenting: contrast medium
# and tube voltage move them, a sharp kernel widens them, and sources differ. Work on body
# composition, for example, counts -190 to -30 HU as fat.

# %%
for name, (low, high) in TISSUES.items():
    share = 100 * np.mean((hu >= low) & (hu <= high))
    print(f"{name:12} {low:6} to {high:5} HU: {share:5.1f} % of the voxels")

# %% [markdown]
# `show_histogram` draws the counts on a logarithmic axis, with these ranges behind them.
# What falls outside the axis is not swept under it: the label says how much.

# %%
from questlib.display import show_histogram

ax = show_histogram(volume)
assert np.array_equal(ax.patches[-1].get_data().values, counts)
plt.show()

# %% [markdown]
# Same bins, same counts: the assertion holds. Read the picture from left to right: air,
# the slope of the lungs, fat and soft tissue side by side, and the long tail of bone.
# The valley between lung and fat is low, because few tissues of a healthy chest are half
# air. What lies there is mostly *partial volume*: voxels on a border that average air and
# tissue.

# %% [markdown]
# ## What hides in the tallest peak?
#
# Look at the lowest values one by one, without bins.

# %%
values, counts = np.unique(hu, return_counts=True)
for value, count in zip(values[:4], counts[:4], strict=True):
    print(f"{value} HU: {100 * count / hu.size:5.2f} % of the voxels")

# %% [markdown]
# Noise spreads; a spike of one single value was *written*. By whom? Padding outside the
# round field of view holds that value in every plane. Count those voxels.

# %%
floor = values[0]
always = (hu == floor).all(axis=0).mean()
print(f"{floor} HU in every plane: {100 * always:5.2f} % of the voxels")

# %% [markdown] tags=["patient"]
# A fifth of this scan, 20.50 %, holds exactly -1024 HU, the stored value 0 of notebook 03.
# About half of that, 10.52 %, does so in every plane: the corners outside the circle. The
# rest is air that measured lower still, by noise or beside an edge that the sharp kernel
# overshoots, and was cut off at this value.

# %% [markdown]
# A spike at the lowest value is no measurement. *Pixel Padding Value* (0028,0120) may name
# it, if the file holds one. Leave the spike out before you compute a mean, a spread, or a
# threshold.

# %%
measured = hu[hu > floor]
print(f"mean with the spike:    {hu.mean():7.1f} HU")
print(f"mean without the spike: {measured.mean():7.1f} HU")

# %% [markdown]
# ## Does one plane look like the whole scan?
#
# The neck has no lungs and the belly has little air. Count each plane by itself and lay
# the histograms under each other, head on top: a picture of the patient with HU from
# left to right.

# %%
rows = np.stack([np.histogram(plane, edges)[0] for plane in hu])
step = volume.affine[:3, 0]
lps = int(np.abs(step).argmax())
place = volume.origin[lps] + step[lps] * np.arange(len(hu))
rows = rows[np.argsort(place)]
print(rows.shape, "(plane, bin)")

# %% [markdown]
# The counts differ by powers of ten, so color shows their logarithm.

# %%
half = volume.spacing[0] / 2
extent = (edges[0], edges[-1], place.min() - half, place.max() + half)
options = {"extent": extent, "aspect": "auto", "origin": "lower", "cmap": "viridis"}
plt.imshow(np.log10(rows + 1), **options)
plt.colorbar(label="voxels in a bin (power of ten)")
plt.xlabel("radiodensity (HU)")
plt.ylabel(f"{AXES_MM[lps]} (mm)")
plt.show()

# %% [markdown]
# Two bright columns run through all planes: air on the left, soft tissue with its
# shoulder of fat on the right. Beside the air, the haze of lung comes and goes with the
# height. Bone is the faint veil on the right.
#
# Which plane has most lung? Count the lung range in each. This rule works for any chest,
# so no plane number needs to be typed in.

# %%
low, high = TISSUES["lung"]
shares = [100 * np.mean((plane >= low) & (plane <= high)) for plane in hu]
best = int(np.argmax(shares))
print(f"plane {best} of 0 to {len(hu) - 1}: {shares[best]:.1f} % in the lung range")

# %% [markdown]
# Is that really lung? Let the air of this plane fall into connected regions, and drop
# those that touch the border of the picture.

# %%
regions, count = ndimage.label(hu[best] < -400)
frame = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
inside = (regions > 0) & ~np.isin(regions, frame)
print(
    f"{inside.sum()} voxels of air inside, median {np.median(hu[best][inside]):.0f} HU"
)

# %% [markdown]
# Now compare the air inside the body with the air around it.

# %%
outside = (hu[best] < -400) & ~inside & (hu[best] > floor)
plt.hist(hu[best][outside], edges, color="0.7", label="outside the body")
measured_inside = hu[best][inside & (hu[best] > floor)]
plt.hist(measured_inside, edges, color="#0072B2", alpha=0.7, label="inside the body")
plt.xlim(-1100, -400)
plt.xlabel("radiodensity (HU)")
plt.ylabel(f"voxels in each {width} HU bin")
plt.legend()
plt.show()

# %% [markdown]
# There is the lung's own hill, right of the air. In the histogram of the scan you could
# not see it: it drowned in the flank of the air around the patient. One dimension is not
# enough to separate the two; place has to help, as it just did. Notebooks 08 and 09 live
# on this idea.

# %% [markdown]
# ## Where does air end?
#
# A threshold cuts the voxels into *air and lung* below and *body* above.
#
# **By rule.** Lung is below -500 HU, fat above -150 HU. Take something between: this
# quest takes -400 HU. It needs calibrated HU, and it never adapts.

# %%
thresholds = {"rule": -400.0}

# %% [markdown]
# **By Otsu.** Try every value as a threshold. Keep the one for which the means of the
# two groups lie farthest apart, weighted by the groups' sizes. Cumulative sums over the
# histogram make it a few lines for all thresholds at once.

# %%
values, counts = np.unique(measured, return_counts=True)
below, total = np.cumsum(counts), np.cumsum(counts * values.astype(float))
above = below[-1] - below[:-1]
low_mean = total[:-1] / below[:-1]
high_mean = (total[-1] - total[:-1]) / above
spread = below[:-1] * above * (high_mean - low_mean) ** 2
thresholds["Otsu"] = float(values[spread.argmax()])

# %% [markdown]
# The library does the same, so both must agree.

# %%
assert threshold_otsu(hist=(counts, values)) == thresholds["Otsu"]
print(f"Otsu: {thresholds['Otsu']:.0f} HU")

# %% [markdown]
# **By 2-means.** Start anywhere, take the mean of each group, move the threshold half
# way between the means, and repeat until nothing moves. On the histogram a step adds up a
# few thousand counts instead of millions of voxels, and no start is random. The tutorial of
# 2017 let a general clustering program do this on the pixels, from random starts.

# %%
print(len(values), "counts stand for", measured.size, "voxels")
threshold, before = -200.0, np.nan
while threshold != before:
    low = values < threshold
    means = [np.average(values[part], weights=counts[part]) for part in (low, ~low)]
    threshold, before = sum(means) / 2, threshold
thresholds["2-means"] = threshold
print(f"means {means[0]:.1f} and {means[1]:.1f} HU, threshold {threshold:.1f} HU")

# %% [markdown]
# **By the valley.** Smooth the counts a little and go to the lowest bin between the hill
# of air and the hill of soft tissue.

# %%
counts, _ = np.histogram(measured, edges)
smooth = ndimage.gaussian_filter1d(counts.astype(float), 2)
air = np.where(middles < -500, smooth, 0).argmax()
tissue = np.where(middles > -200, smooth, 0).argmax()
valley = air + smooth[air:tissue].argmin()
thresholds["valley"] = float(middles[valley])
print(f"valley: {thresholds['valley']:.1f} HU")

# %% [markdown]
# Draw all of them where they lie.

# %% tags=["cover"]
ax = show_histogram(volume, hu_range=(-1100, 500))
styles = zip(thresholds, ("-", "--", ":", "-."), strict=True)
for name, style in styles:
    label = f"{name} {thresholds[name]:.0f} HU"
    ax.axvline(thresholds[name], color="#D55E00", ls=style, lw=2, label=label)
ax.legend(loc="upper right")
plt.show()

# %% [markdown] tags=["patient"]
# Otsu at -447 HU and 2-means at -446.8 HU are twins: both look for two groups with the
# least spread inside, so they stop at the same cut. The valley at -365.5 HU follows
# another idea and lies higher.

# %% [markdown]
# Otsu and 2-means also depend on the *amount* of air around the patient, because amounts
# weigh the means. The valley does not, but it wanders where the floor is flat. None of
# them knows anatomy.

# %% [markdown]
# ## What does the choice cost?
#
# Half of the answer is arithmetic: count the voxels between the lowest and the highest
# threshold, and turn them into mL.

# %%
lowest, highest = min(thresholds.values()), max(thresholds.values())
between = np.count_nonzero((hu > lowest) & (hu <= highest))
voxel_ml = np.prod(volume.spacing) / 1000
print(f"{lowest:.0f} to {highest:.0f} HU: {between * voxel_ml:.0f} mL in dispute")

# %% [markdown]
# The other half is a look at the picture. Color the voxels in dispute on the plane with
# most lung.

# %%
dispute = (hu > lowest) & (hu <= highest)
ax = plt.subplots(figsize=(5, 5))[1]
show_plane(volume, best, labels=dispute, overlay="both", ax=ax)
ax.get_legend().get_texts()[0].set_text("in dispute")
plt.show()

# %% [markdown]
# You have to look twice: rims around vessels and along the heart, a line at the skin, and
# the table. Between lung and wall HU rise so steeply that any sensible threshold cuts at
# nearly the same place. The choice of the threshold is *not* what makes lung masks good or
# bad. Vessels, the air outside, and disease are.

# %% [markdown]
# ## Can a threshold find a tumor?
#
# Measure two boxes, about 10 mm wide, placed by rule: three quarters of the way up, 65 % to the
# left, and 70 % or 85 % to the back. In a usual axial scan that is the upper left chest,
# and the muscles of the back behind it.


# %%
def cut_box(*place, half=5):
    center = (np.array(hu.shape) * place).astype(int)
    reach = np.maximum(half // np.array(volume.spacing), 1).astype(int)
    ends = zip(center - reach, center + reach + 1, strict=True)
    return hu[tuple(slice(*pair) for pair in ends)].ravel()


boxes = {"inner": cut_box(0.75, 0.70, 0.65), "outer": cut_box(0.75, 0.85, 0.65)}
for name, box in boxes.items():
    print(f"{name:5} box: mean {box.mean():4.0f} HU, spread {box.std():3.0f} HU")

# %% [markdown]
# Lay their histograms over each other.

# %%
for (name, box), style in zip(boxes.items(), ("-", "--"), strict=True):
    plt.hist(box, edges[::3], histtype="step", lw=2, ls=style, label=f"{name} box")
plt.xlim(-300, 400)
plt.xlabel("radiodensity (HU)")
plt.ylabel(f"voxels in each {3 * width} HU bin")
plt.legend()
plt.show()

# %% [markdown]
# If the two hills lie on top of each other, no cut can part them. Try all cuts, and count
# how many voxels the best one puts on the wrong side. Guessing would be wrong for 50 %.

# %%
inner, outer = boxes.values()
cuts = np.arange(-300, 400)
share = np.array([np.mean(np.append(inner > t, outer <= t)) for t in cuts])
wrong = 100 * np.minimum(share, 1 - share)  # whichever box lies higher
print(f"best cut at {cuts[wrong.argmin()]} HU: {wrong.min():.0f} % on the wrong side")

# %% [markdown] tags=["patient"]
# The inner box lies in the tumor: 17 HU, among the soft tissues. The muscle behind it has
# 45 HU, and single voxels of both scatter by more than 60 HU. The two hills overlap almost
# everywhere, and the best cut is wrong for 38 % of the voxels. So no threshold draws a
# border between tumor and chest wall, and every mask in this notebook leaves the tumor out.
# **What would fool you here is a histogram that looks healthy.** It knows amounts, not
# places.

# %% [markdown]
# A mean over many voxels tells more than one voxel: that is why you draw a region of
# interest. But someone has to know where to put it.

# %% [markdown]
# One more trap. A broken scan may hold values that are not numbers. A histogram would
# drop them without a word; `show_histogram` refuses.

# %% tags=["raises-exception"]
broken = hu[best].astype(np.float32)
broken[:2] = np.nan
show_histogram(broken)

# %% [markdown]
# The message counts them, which is the first thing you want to know.

# %% [markdown]
# ## Check yourself
#
# 1. The lung range holds more than lung. Predict whether its volume in this scan is
#    above or below the volume of the air *inside* the body, then compute both for the
#    plane with most lung, in mL.
# 2. Crop the plane to its central half and compute Otsu's threshold again. Does it move?
# 3. Predict which of the bins in `edges` are empty, then count them.

# %% [markdown]
# ## Summary
#
# - Bins are a whole number of HU wide, with edges at halves.
# - A logarithmic axis shows rare tissues; say how much lies outside of it.
# - A spike of one value is padding or clipping: leave it out.
# - Otsu and 2-means ask the same question; on a histogram neither needs chance.
# - A histogram knows no place: lung and room air overlap, and so do mass and muscle.

# %% [markdown]
# ## In practice
#
# Hospital software rarely thresholds a whole scan: it finds the body first, then looks
# inside. Tissue ranges are conventions, and shift with tube voltage, contrast medium and
# age. Emphysema is reported as the share of *lung* voxels below -950 HU, on thin planes and
# a soft kernel; from this histogram you could not read it. Noise of a sharp kernel widens
# every peak. Education and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# You have counted voxels without seeing where they lie. Now
# [06 · Look at planes](06_look_at_planes.ipynb) puts them back into place.

# %% [markdown]
# ## References
#
# - N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions
#   on Systems, Man, and Cybernetics 9 (1979), 62-66.
# - S. P. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information
#   Theory 28 (1982), 129-137: the iteration behind 2-means.
# - P. A. Gevenois et al., "Comparison of computed density and microscopic morphometry in
#   pulmonary emphysema", American Journal of Respiratory and Critical Care Medicine 154
#   (1996), 187-192: the limit of -950 HU.
# - DICOM PS3.3, C.7.5.1.1.2: Pixel Padding Value (0028,0120) and Pixel Padding Range Limit
#   (0028,0121).

# %% [markdown]
# The ranges of `TISSUES` are rounded from such sources:
#
# - M. Prokop and M. Galanski, *Spiral and Multislice Computed Tomography of the Body*,
#   Thieme (2003): HU of tissues.
# - L. Gattinoni et al., "What has computed tomography taught us about the acute respiratory
#   distress syndrome?", American Journal of Respiratory and Critical Care Medicine 164
#   (2001), 1701-1711: -900 to -500 HU as normally aerated lung.
# - N. Mitsiopoulos et al., "Cadaver validation of skeletal muscle measurement by magnetic
#   resonance imaging and computerized tomography", Journal of Applied Physiology 85 (1998),
#   115-122: the wider range of fat.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. The lung range also holds noisy air around the patient and every border between air
#    and tissue; but inside, air below -950 HU does not count as lung range.

# %%
lung_range = (hu[best] >= -950) & (hu[best] <= -500)
parts = {"lung range": lung_range, "air inside": inside, "both": lung_range & inside}
for name, part in parts.items():
    print(f"{name}: {part.sum() * voxel_ml:.0f} mL")

# %% [markdown] tags=["patient"]
# Here the lung range is larger. Of its 213 mL, 138 mL are air inside the body; the rest is
# noisy air outside, and borders.

# %% [markdown]
# 2. It moves, because there is less air around the patient to weigh the lower mean.

# %%
quarter, third = hu.shape[1] // 4, hu.shape[2] // 4
center = hu[best][quarter:-quarter, third:-third]
print(f"whole plane {threshold_otsu(hu[best])} HU, center {threshold_otsu(center)} HU")

# %% [markdown]
# 3. Those below the lowest value of the scan. There may be more in a small scan, or above
#    its highest value.

# %%
counts, _ = np.histogram(hu, edges)
below = edges[1:] < floor
assert not counts[below].any()
print((counts == 0).sum(), "bins are empty,", below.sum(), "of them below", floor, "HU")
