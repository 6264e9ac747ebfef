"""The lung masks against answers known by arithmetic, and against scikit-image."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure, morphology

from questlib.lungs import RULES_2017, mask_plane, mask_plane_2017, segment_lungs
from questlib.phantom import make_phantom
from questlib.plane import split_in_two
from questlib.volume import AXIAL, Volume

SMALL = {"shape": (75, 128, 140), "spacing": (4.0, 2.8, 2.8)}


def dice(a, b):
    """Overlap of two masks, 1 when they are equal."""
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def surface_distance(a, b, spacing):
    """95th percentile in mm of the distances between two surfaces, both ways."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    far = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return np.percentile(np.r_[far[0][edges[1]], far[1][edges[0]]], 95)


def body(lungs=((-60, 45), (60, 45)), *, height=60, shift=0, rng=None):
    """Give a water body of ellipses with two lungs; x of each and its radius in mm."""
    plane, row, column = (2 * axis for axis in np.ogrid[:height, :128, :160])
    row, column = row - 128, column - 160
    hu = np.full((height, 128, 160), -1000.0)
    hu[np.broadcast_to((row / 95) ** 2 + (column / 130) ** 2 < 1, hu.shape)] = 40
    truth = np.zeros(hu.shape, np.uint8)
    for label, (x, radius) in enumerate(lungs, 1):
        ball = (plane - height) ** 2 + row**2 + (column - x) ** 2 < radius**2
        truth[ball] = label
    hu[truth > 0] = -850
    if rng is not None:
        hu += rng.normal(0, 20, hu.shape)
    return Volume(
        (hu + shift).astype(np.int16), (2, 2, 2), (-160, -128, 0), AXIAL
    ), truth


def original(plane):
    """The rules of 2017 typed again, with scikit-image and a brute-force 2-means."""
    rows, columns = plane.shape
    image = (plane - plane.mean()) / plane.std()
    middle = image[rows // 5 : int(rows / 5 * 4), columns // 5 : int(columns / 5 * 4)]
    mean, ends = middle.mean(), (image.max(), image.min())
    image[(image == ends[0]) | (image == ends[1])] = mean
    values = np.sort(middle, axis=None)
    cuts = np.flatnonzero(np.diff(values)) + 1
    loss = [values[:k].var() * k + values[k:].var() * (values.size - k) for k in cuts]
    best = cuts[np.argmin(loss)]
    threshold = (values[:best].mean() + values[best:].mean()) / 2
    mask = np.where(image < threshold, 1.0, 0.0)
    mask = morphology.erosion(mask, np.ones((3, 3)))
    labels = measure.label(morphology.dilation(mask, np.ones((8, 8))))
    good = np.zeros(plane.shape)
    for region in measure.regionprops(labels):
        top, left, bottom, right = region.bbox
        slim = bottom - top < rows / 10 * 9 and right - left < columns / 10 * 9
        if slim and top > rows / 5 and bottom < columns / 5 * 4:
            good[labels == region.label] = 1
    return morphology.dilation(good, np.ones((10, 10))) > 0


@pytest.mark.parametrize("index", [30, 42, 52])
def test_the_2017_mask_is_the_original(index):
    plane = make_phantom(**SMALL).volume.array[index]
    assert np.array_equal(mask_plane_2017(plane).mask, original(plane.astype(float)))


def test_two_clusters_are_exact_on_values_and_on_a_histogram():
    assert split_in_two(np.array([0, 1, 2, 10, 11])) == 5.75
    assert split_in_two(np.array([0, 10]), np.array([3, 1])) == 5
    assert split_in_two(np.array([7, 7])) == 7


def test_every_dropped_region_names_its_rule_and_its_distance():
    hu = np.full((100, 100), 40)
    hu[10:40, 30:60] = -850
    hu[0, :2] = -1000, 1000
    (region,) = mask_plane_2017(hu, spacing=(0.5, 0.7)).regions
    # eroded by 1, then 8 x 8 reaches 4 up and 3 down: rows 7 to 42, 13 above row 20
    assert (region.top, region.bottom, region.kept) == (7, 42, False)
    assert region.reason == "top above 20% of the rows"
    assert region.missed_by_mm == pytest.approx(6.5)
    assert mask_plane_2017(hu, rules={"top": 0.05}).regions[0].kept
    with pytest.raises(ValueError, match="unknown rule 'botom'"):
        mask_plane_2017(hu, rules={"botom": 0.9})
    assert RULES_2017["top"] == 0.2


@pytest.mark.parametrize("shift", [0, 200, -200])
def test_the_mended_plane_finds_lungs_that_lie_low_in_any_units(shift):
    volume, truth = body()
    plane = np.roll(volume.array[30], 20, axis=0) + shift
    moved = np.roll(truth[30], 20, axis=0) > 0
    assert dice(mask_plane(plane, spacing=(2, 2)).mask, moved) > 0.995
    assert dice(mask_plane(plane * 0.1 + 7, spacing=(2, 2)).mask, moved) > 0.995


def test_the_mended_plane_is_empty_without_lungs():
    volume, _ = body(lungs=())
    assert not mask_plane(volume.array[0], spacing=(2, 2)).mask.any()
    noise = np.random.default_rng(0).normal(0, 60, (64, 64))
    assert not mask_plane(noise).mask.any()


def test_two_balls_keep_their_volume_and_their_sides():
    volume, truth = body(rng=np.random.default_rng(1))
    result = segment_lungs(volume)
    ball_ml = 4 / 3 * np.pi * 45**3 / 1000
    assert result.volumes_ml["right"] == pytest.approx(ball_ml, rel=0.015)
    assert result.volumes_ml["left"] == pytest.approx(ball_ml, rel=0.015)
    assert np.all(result.labels[truth == 1] != 2) and np.all(
        result.labels[truth == 2] != 1
    )


def test_a_trachea_that_opens_into_a_lung_is_no_lung():
    """A tube without a wall runs down into the right ball, which it meets at 92 mm."""
    volume, truth = body()
    plane, row, column = np.indices(volume.shape) * 2
    tube = ((row - 128) ** 2 + (column - 140) ** 2 < 9**2) & (plane > 60)
    array = np.where(tube, -990, volume.array).astype(np.int16)
    result = segment_lungs(replace(volume, array=array))
    above = tube & (plane > 96)
    assert not result.labels[above].any()
    assert result.airway[above].mean() > 0.95
    assert dice(result.labels == 1, (truth == 1) & ~tube) > 0.98


def test_the_answer_does_not_depend_on_how_the_scan_is_stored():
    phantom = make_phantom(**SMALL)
    volume = phantom.volume
    straight = segment_lungs(volume).labels
    corner = volume.affine @ [74, 127, 139, 1]
    turned = Volume(
        volume.array[::-1, ::-1, ::-1].transpose(2, 0, 1),
        tuple(volume.spacing[axis] for axis in (2, 0, 1)),
        corner[:3],
        -volume.direction[:, [2, 0, 1]],
    )
    labels = segment_lungs(turned).labels
    assert np.array_equal(labels.transpose(1, 2, 0)[::-1, ::-1, ::-1], straight)
    shifted = replace(volume, array=volume.array + np.int16(200))
    result = segment_lungs(shifted)
    assert np.array_equal(result.labels, straight)
    assert any("uncalibrated" in finding for finding in result.findings)


def test_the_default_phantom_is_measured(phantom):
    result, truth = segment_lungs(phantom.volume), phantom.truth
    for label in (1, 2):
        found, true = result.labels == label, truth == label
        assert dice(found, true) >= 0.99
        assert abs(found.sum() / true.sum() - 1) < 0.015
        assert surface_distance(found, true, phantom.volume.spacing) <= 2.5
    assert np.mean(result.labels[truth == 3] > 0) < 0.01
    inside = phantom.parts["nodules"] & np.isin(truth, (1, 2))
    assert np.mean(result.labels[inside] > 0) >= 0.98
    assert dice(result.airway, truth == 3) > 0.95
    assert result.findings == []


@pytest.mark.parametrize(
    "knobs",
    [
        {"offset": (40, 0)},
        {"noise": 60},
        {"touching": True},
        {"padding": True, "arms": "down"},
        {"shape": (38, 128, 140), "spacing": (8.0, 2.8, 2.8)},
    ],
    ids=["offset", "noise", "touching", "padding", "thick"],
)
def test_harder_phantoms_keep_both_lungs_and_every_plane(knobs):
    phantom = make_phantom(**(SMALL | knobs))
    labels, truth = segment_lungs(phantom.volume).labels, phantom.truth
    lungs = np.isin(truth, (1, 2))
    swapped = (labels == 3 - truth.astype(int)) & lungs
    assert swapped.sum() < 0.005 * lungs.sum()
    assert dice(labels == 1, truth == 1) > 0.98
    assert dice(labels == 2, truth == 2) > 0.975
    area = lungs.sum((1, 2)) * np.prod(phantom.volume.spacing[1:])
    assert np.all(labels.any((1, 2))[area > 300])


@pytest.mark.parametrize(
    ("edge", "cut"),
    [
        ("right", np.s_[:, :, 38:]),
        ("left", np.s_[:, :, :100]),
        ("front", np.s_[:, 37:]),
        ("back", np.s_[:, :85]),
    ],
)
def test_a_field_of_view_that_cuts_a_lung_loses_no_more_and_says_so(edge, cut):
    phantom = make_phantom(**SMALL, touching=True)
    volume = replace(phantom.volume, array=phantom.volume.array[cut])
    result, truth = segment_lungs(volume), phantom.truth[cut]
    assert dice(result.labels == 1, truth == 1) > 0.98
    assert dice(result.labels == 2, truth == 2) > 0.975
    assert result.findings == [f"lungs cut by the {edge} of the field of view"]


def test_lobes_that_do_not_meet_stay_on_their_side():
    phantom = make_phantom(**SMALL, touching=True)
    array = phantom.volume.array.copy()
    array[50:53][phantom.truth[50:53] == 1] = 40  # as a thick fissure would
    labels = segment_lungs(replace(phantom.volume, array=array)).labels
    lungs = np.isin(phantom.truth, (1, 2))
    swapped = (labels == 3 - phantom.truth.astype(int)) & lungs
    assert swapped.sum() < 0.005 * lungs.sum()


def test_findings_are_said_in_words():
    volume, _ = body(lungs=((-60, 45),), rng=np.random.default_rng(2))
    result = segment_lungs(volume)
    assert any(finding == "one lung only: the right one" for finding in result.findings)
    cut, _ = body(lungs=((-60, 60), (60, 60)), height=20, rng=np.random.default_rng(3))
    findings = segment_lungs(cut).findings
    assert "lungs cut by the upper end of the scan" in findings
    assert "lungs cut by the lower end of the scan" in findings


@pytest.mark.parametrize(
    "knobs",
    [{"nodules": ((45, "pleura"),)}, {"consolidation": 60}],
    ids=["mass", "consolidation"],
)
def test_a_solid_part_left_out_is_reported(knobs):
    phantom = make_phantom(**SMALL, **knobs)
    result = segment_lungs(phantom.volume)
    (finding,) = result.findings
    volume_ml = int(re.match(r"a solid region of (\d+) mL or more", finding)[1])
    out = (phantom.truth == 1) & (result.labels == 0)
    assert 15 < volume_ml < 1.1 * out.sum() * np.prod(SMALL["spacing"]) / 1000
    assert "part of the right lung is not in the mask" in finding


@pytest.mark.parametrize("kind", ["noise", "air", "water", "one voxel", "gas"])
def test_a_scan_without_lungs_gives_none_and_says_so(kind):
    rng = np.random.default_rng(4)
    hu = body(lungs=(), height=20)[0].array.copy()
    if kind == "gas":
        hu[5:12, 60:80, 70:100] = -1000
    if kind in ("noise", "air"):
        hu[:] = {"noise": 0, "air": -1000}[kind] + rng.normal(0, 40, hu.shape)
    if kind == "one voxel":
        hu = hu[:1, :1, :1]
    result = segment_lungs(Volume(hu, (2, 2, 2), (0, 0, 0), AXIAL))
    assert not result.labels.any() and sum(result.volumes_ml.values()) == 0
    assert any("no lungs in this scan" in finding for finding in result.findings)


def test_nan_is_refused():
    hu = np.zeros((3, 8, 8), np.float32)
    hu[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        segment_lungs(Volume(hu, (1, 1, 1), (0, 0, 0), AXIAL))
    with pytest.raises(ValueError, match="not finite"):
        mask_plane(hu[1])
