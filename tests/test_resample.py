"""Resampling: every expectation is arithmetic, or scipy's own interpolation."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from questlib.resample import fit_shape, interpolation_matrix, resample
from questlib.volume import AXIAL, Volume

OBLIQUE = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix()
ORIENTATIONS = {
    "axial": AXIAL,
    "feet first": AXIAL * [-1, 1, -1],
    "sagittal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": OBLIQUE,
}


def positions(volume):
    """LPS position of each voxel center: (3, plane, row, column)."""
    index = np.indices(volume.shape).reshape(3, -1)
    lps = volume.affine @ np.vstack([index, np.ones(index.shape[1])])
    return lps[:3].reshape(3, *volume.shape)


def volume_of(array, spacing=(1, 1, 1), origin=(0, 0, 0), direction=AXIAL):
    return Volume(np.asarray(array), spacing, origin, direction)


@pytest.mark.parametrize("direction", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("spacing", [1.0, (0.7, 2.9, 1.1), (6.3, 0.5, 0.9)])
def test_each_voxel_stays_at_its_place_in_the_patient(direction, order, spacing):
    grid = volume_of(
        np.zeros((24, 30, 26), np.float32), (2.5, 0.9, 1.3), (-80, 33, 410), direction
    )
    for axis in range(3):
        ramp = positions(grid)[axis].astype(np.float32)
        new = resample(
            Volume(ramp, grid.spacing, grid.origin, direction), spacing, order=order
        )
        # voxels whose kernel does not reach beyond the outermost centers
        reach = 2 * np.array(grid.spacing) + np.array(new.spacing)
        trim = np.ceil(reach / new.spacing).astype(int)
        inner = tuple(slice(t, n - t) for t, n in zip(trim, new.shape, strict=True))
        assert new.array[inner].size
        truth = positions(new)[axis]
        np.testing.assert_allclose(new.array[inner], truth[inner], atol=2e-3)


def test_spacing_is_exactly_as_asked_and_the_grid_keeps_its_center():
    ct = volume_of(np.zeros((126, 10, 11), np.int16), (2.5, 0.7, 0.7), (5, 6, 7))
    new = resample(ct, (1.0, 0.3, 2.0))
    assert new.spacing == (1.0, 0.3, 2.0)
    assert new.shape == (315, 23, 4)  # 315.0, 23.3 and 3.85 voxels
    for volume in (ct, new):
        middle = volume.affine @ [*((np.array(volume.shape) - 1) / 2), 1]
        np.testing.assert_allclose(middle[:3], [5 + 3.5, 6 + 3.15, 7 + 156.25])
    # 126 planes of 2.5 mm: no drift, plane 0 and plane 314 are 314 mm apart
    assert positions(new)[2, 314, 0, 0] - positions(new)[2, 0, 0, 0] == 314.0


def test_shape_wins_over_spacing_and_keeps_the_edges():
    ct = volume_of(np.zeros((10, 20, 30), np.int16), (5, 1, 1))
    new = resample(ct, 1.0, shape=(20, 15, 45))
    assert new.shape == (20, 15, 45)
    np.testing.assert_allclose(new.spacing, (2.5, 20 / 15, 30 / 45))
    np.testing.assert_allclose(new.origin, (1 / 3 - 0.5, 2 / 3 - 0.5, -1.25))


def test_known_matrices():
    linear = interpolation_matrix(5, 8).toarray()
    np.testing.assert_allclose(linear[0], [1, 0, 0, 0, 0])  # center -0.1875: clamped
    np.testing.assert_allclose(linear[1], [0.5625, 0.4375, 0, 0, 0])  # 0.4375
    np.testing.assert_allclose(linear[-2], [0, 0, 0, 0.4375, 0.5625])
    cubic = interpolation_matrix(6, 12, order=3).toarray()
    # position 2.25: Keys' weights for the fraction 1/4 are (-9, 111, 29, -3) / 128
    np.testing.assert_allclose(cubic[5] * 128, [0, -9, 111, 29, -3, 0])
    nearest = interpolation_matrix(4, 2, order=0).toarray()
    np.testing.assert_array_equal(nearest, [[0, 1, 0, 0], [0, 0, 0, 1]])
    for order in (0, 1, 3):
        same = interpolation_matrix(7, 7, order=order).toarray()
        np.testing.assert_array_equal(same, np.eye(7))


@pytest.mark.parametrize("order", [1, 3])
def test_a_coarser_row_averages_the_interpolated_curve_under_a_tent(order):
    row = interpolation_matrix(16, 8, order=order).toarray()[4]  # centered on 8.5
    offset = np.sqrt(3) * (np.arange(-20_000, 20_001) / 20_000)
    tent = 1 - abs(offset) / np.sqrt(3)
    t = abs(8.5 + offset[:, None] - np.arange(16))
    curve = np.maximum(0, 1 - t)
    if order == 3:
        far = np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0)
        curve = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, far)
    np.testing.assert_allclose(row, tent @ curve / tent.sum(), atol=1e-6)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("sizes", [(1, 7), (7, 1), (9, 4), (4, 9), (512, 37)])
def test_rows_sum_to_one(order, sizes):
    for step in (None, sizes[0] / sizes[1] * 1.03):
        matrix = interpolation_matrix(*sizes, step, order)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
        assert order == 3 or matrix.min() >= 0


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("spacing", [0.6, 1.0, 4.0])
def test_a_constant_stays_constant_up_to_the_border(order, spacing):
    new = resample(volume_of(np.full((5, 9, 8), -731, np.int16), (3, 1, 2)), spacing)
    assert new.array.dtype == np.int16
    assert np.unique(new.array).tolist() == [-731]


@pytest.mark.parametrize("shape", [(9, 5, 20), (31, 40, 7)])  # blend first, or last
@pytest.mark.parametrize("order", [1, 3])
def test_equals_the_three_dense_matrices(shape, order):
    array = np.random.default_rng(1).normal(0, 300, (17, 12, 14)).astype(np.float32)
    dense = [
        interpolation_matrix(n, m, order=order).toarray()
        for n, m in zip(array.shape, shape, strict=True)
    ]
    expected = np.einsum("pi,rj,ck,ijk->prc", *dense, array)
    new = resample(volume_of(array), shape=shape, order=order)
    assert new.array.dtype == np.float32
    np.testing.assert_allclose(new.array, expected, atol=1e-2)


def test_linear_equals_scipy():
    array = np.random.default_rng(2).integers(-1024, 3000, (12, 20, 16), np.int16)
    new = resample(volume_of(array, (2.5, 1.3, 1.1)), (1.0, 0.9, 1.0))
    to_index = np.linalg.inv(volume_of(array, (2.5, 1.3, 1.1)).affine) @ new.affine
    expected = ndimage.affine_transform(
        array.astype(float), to_index, output_shape=new.shape, order=1, mode="nearest"
    )
    assert abs(new.array - expected).max() <= 0.5 + 1e-3


def test_overshoot_is_none_for_linear_and_known_for_cubic():
    edge = np.full((3, 3, 20), -1000, np.int16)
    edge[..., 10:] = 40
    linear = resample(volume_of(edge), (1, 1, 0.1)).array
    assert (linear.min(), linear.max()) == (-1000, 40)
    cubic = resample(volume_of(edge), (1, 1, 0.1), order=3).array
    # Keys overshoots a step by t (1 - t)**2 / 2 of its height: 7.4 % at t = 1/3
    assert (cubic.min(), cubic.max()) == (-1077, 117)


def test_integers_are_rounded_and_never_wrap():
    array = np.zeros((1, 1, 2), np.int16)
    array[..., 1] = 1
    assert resample(volume_of(array), shape=(1, 1, 4)).array.ravel().tolist() == [
        *(0, 0),
        *(1, 1),
    ]
    extreme = np.array([-32768, 32767, -32768, 32767], np.int16).reshape(1, 1, 4)
    new = resample(volume_of(extreme), (1, 1, 0.1), order=3).array
    assert (new.min(), new.max()) == (-32768, 32767)
    assert new[0, 0, 14] > 32000  # just beside the peak: a wrapped value is negative


def test_fine_stripes_do_not_come_back_as_a_false_pattern():
    stripes = np.zeros((2, 2, 302), np.float32)
    stripes[..., ::2] = 1000
    for order in (1, 3):
        new = resample(volume_of(stripes), (1, 1, 2.7), order=order).array
        assert abs(new[..., 2:-2] - 500).max() < 25
    picked = resample(volume_of(stripes), (1, 1, 2.7), order=0).array
    assert np.unique(picked).tolist() == [0, 1000]  # what skipping voxels gives


def test_labels_keep_their_values_and_dtype():
    labels = np.random.default_rng(3).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    new = resample(volume_of(labels), 0.5, order=0)
    expected = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert new.array.dtype == np.uint8
    np.testing.assert_array_equal(new.array, expected)
    mask = resample(volume_of(labels > 1), 0.5, order=0)
    assert mask.array.dtype == bool


def test_a_mask_becomes_the_fraction_inside():
    mask = np.zeros((1, 1, 14), bool)
    mask[..., 7:] = True
    share = resample(volume_of(mask), (1, 1, 2))
    assert share.array.dtype == np.float32
    assert share.array[0, 0, [0, 1, 5, 6]].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(share.array[0, 0, 3], 0.5)
    np.testing.assert_allclose(share.array.sum() * 2, 7)  # its 7 mm


def test_memory_is_input_output_and_a_few_planes():
    ct = volume_of(np.zeros((40, 256, 256), np.int16), (2.5, 1, 1))
    tracemalloc.start()
    for spacing in (1.0, (10.0, 1, 1)):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        new = resample(ct, spacing)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < new.array.nbytes + 12e6
        del new
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spacing": 0}, "positive mm, not 0"),
        ({"spacing": -1.0}, "positive mm, not -1.0"),
        ({"spacing": np.nan}, "positive mm"),
        ({"spacing": (1, np.inf, 1)}, "positive mm"),
        ({"spacing": (1, 1)}, "positive mm"),
        ({"spacing": 1e-4}, r"80000 x 40000 x 40000 voxels would need 256000\.0 GB"),
        ({"shape": (3, 0, 3)}, "whole numbers"),
        ({"shape": (3, 3)}, "whole numbers"),
        ({"shape": (3.5, 3, 3)}, "whole numbers"),
        ({"order": 2}, "order must be 0, 1 or 3, not 2"),
    ],
)
def test_bad_input_is_refused_with_its_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        resample(volume_of(np.zeros((4, 4, 4), np.int16), (2, 1, 1)), **options)


def test_voxels_that_are_not_finite_are_refused():
    array = np.zeros((2, 2, 2), np.float32)
    array[1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        resample(volume_of(array), 0.5)


@pytest.mark.parametrize("direction", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("shape", [(3, 20, 7), (8, 9, 12), (5, 6, 11)])
def test_fit_shape_moves_no_voxel(direction, shape):
    array = np.arange(5 * 9 * 12, dtype=np.int16).reshape(5, 9, 12)
    ct = volume_of(array, (5, 0.7, 0.8), (-10, 20, 30), direction)
    new = fit_shape(ct, shape)
    assert new.shape == shape
    assert new.spacing == ct.spacing
    kept = new.array >= 0  # the rest is air, -1000
    assert kept.sum() == np.minimum(shape, array.shape).prod()
    old_place = np.unravel_index(new.array[kept], array.shape)
    np.testing.assert_allclose(
        positions(new)[:, kept], positions(ct)[(slice(None), *old_place)], atol=1e-9
    )


def test_cropping_undoes_padding():
    ct = volume_of(np.random.default_rng(4).integers(0, 9, (4, 5, 6)), (2, 1, 1))
    back = fit_shape(fit_shape(ct, (9, 8, 6)), ct.shape)
    np.testing.assert_array_equal(back.array, ct.array)
    assert back.origin == ct.origin


def test_fit_shape_refuses_a_fill_that_would_wrap():
    labels = volume_of(np.ones((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="labels want fill=0"):
        fit_shape(labels, (4, 4, 4))
    with pytest.raises(ValueError, match="labels want fill=0"):
        fit_shape(volume_of(labels.array > 0), (4, 4, 4))
    assert fit_shape(labels, (4, 4, 4), fill=0).array.sum() == 8
    with pytest.raises(ValueError, match="whole numbers"):
        fit_shape(labels, (4, 4), fill=0)
