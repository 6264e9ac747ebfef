"""Volumes: geometry, Hounsfield units, straightened stacks, files."""

import pickle
import threading
import warnings
import zipfile

import numpy as np
import pytest
from broken import get_pixels, make_planes, save_planes, set_pixels, truth

from questlib.pixels import to_hounsfield
from questlib.series import SeriesError, SeriesWarning
from questlib.volume import AXIAL, Volume, load_series, load_volume, save_volume


@pytest.fixture
def volume():
    rng = np.random.default_rng(0)
    array = rng.integers(-1024, 3000, (4, 5, 6)).astype(np.int16)
    return Volume(array, (2.5, 0.8, 0.7), (-3, -4, 100), AXIAL)


def test_affine_by_hand(volume):
    place = volume.affine @ (3, 2, 1, 1)
    np.testing.assert_allclose(place, (-3 + 0.7, -4 + 1.6, 100 + 7.5, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"array": np.zeros((2, 2))},
        {"array": np.zeros((0, 2, 2))},
        {"spacing": (1, 1)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, np.nan, 1)},
        {"origin": (0, 0)},
        {"origin": (0, 0, np.inf)},
        {"direction": np.eye(2)},
        {"direction": np.ones((3, 3))},
    ],
)
def test_volume_refuses_nonsense(volume, change):
    parts = {name: getattr(volume, name) for name in ("array", "spacing", "origin")}
    with pytest.raises(ValueError):
        Volume(**(parts | {"direction": AXIAL} | change))


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected", "dtype"),
    [
        (np.array([0, 1024, 4095], np.uint16), 1, -1024, [-1024, 0, 3071], np.int16),
        (np.array([-1024, 0], np.int16), 1, 0, [-1024, 0], np.int16),
        (np.array([40000], np.uint16), 1, -40000, [0], np.int16),
        (np.array([40000], np.uint16), 1, -1024, [38976], np.float32),
        (np.array([0, 100], np.uint8), 8, -800, [-800, 0], np.int16),
        (np.array([20000], np.int16), 2, 0, [40000], np.float32),
        (np.array([3], np.uint16), 0.5, -1000, [-998.5], np.float32),
        (np.array([100], np.int16), -1, 0, [-100], np.int16),
        (np.array([70000], np.uint32), 1, -70000, [0], np.int16),
    ],
)
def test_hounsfield_by_arithmetic(stored, slope, intercept, expected, dtype):
    hu = to_hounsfield(stored, slope, intercept)
    assert hu.dtype == dtype
    np.testing.assert_array_equal(hu, expected)


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (np.nan, 0), (1, np.inf)])
def test_hounsfield_refuses(slope, intercept):
    with pytest.raises(ValueError, match="Rescale Slope"):
        to_hounsfield(np.zeros(3, np.int16), slope, intercept)


def test_anisotropic_series_keeps_each_voxel(tmp_path):
    volume = load_series(save_planes(tmp_path, make_planes()))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, truth())
    np.testing.assert_allclose(
        (volume.affine @ (5, 31, 39, 1))[:3], (24.3, 20.8, 112.5)
    )


def test_air_is_the_floor_with_a_falling_slope_too(tmp_path):
    planes = make_planes()
    for ds in planes:
        set_pixels(ds, np.full((32, 40), 3000), bits=16)
        ds.RescaleSlope, ds.RescaleIntercept = "-1", "0"
    assert (load_series(save_planes(tmp_path, planes)).array == -1024).all()


def test_a_single_plane_takes_slice_thickness_and_says_so(tmp_path):
    save_planes(tmp_path, make_planes(1))
    with pytest.warns(SeriesWarning, match="Slice Thickness .*5 mm"):
        volume = load_series(tmp_path)
    assert volume.spacing == (5, 0.8, 0.7)


def test_a_single_plane_without_thickness_is_refused(tmp_path):
    (ds,) = make_planes(1)
    del ds.SliceThickness
    with pytest.raises(SeriesError, match=r"Slice Thickness .* is missing"):
        load_series(save_planes(tmp_path, [ds]))


def test_two_planes_make_a_volume(tmp_path):
    assert load_series(save_planes(tmp_path, make_planes(2))).spacing[0] == 2.5


def ramp(planes):
    """Let HU rise along the patient: 10 HU a mm of z, 3 a mm of y."""
    for ds in planes:
        _, y, z = (float(mm) for mm in ds.ImagePositionPatient)
        rows = y + 0.8 * np.arange(32)
        set_pixels(
            ds, np.round(1000 + 10 * (z - 100) + 3 * rows)[:, None] + np.zeros(40)
        )


def test_a_missing_plane_is_interpolated_in_its_place(tmp_path):
    planes = make_planes(7)
    ramp(planes)
    complete = load_series(save_planes(tmp_path / "whole", planes))
    del planes[3]
    save_planes(tmp_path / "less", planes)
    with pytest.warns(SeriesWarning, match="2.500 to 5.000 mm.*7 planes every 2.500"):
        volume = load_series(tmp_path / "less", regularize=True)
    np.testing.assert_allclose(volume.affine, complete.affine)
    assert np.abs(volume.array - complete.array).max() <= 1


@pytest.mark.parametrize("degrees", [20, -20])
def test_a_tilted_stack_is_straightened_to_true_positions(tmp_path, degrees):
    planes = make_planes(9)
    for index, ds in enumerate(planes):
        ds.ImagePositionPatient[1] += 2.5 * index * np.tan(np.radians(degrees))
    ramp(planes)
    save_planes(tmp_path, planes)
    with pytest.warns(SeriesWarning, match="mm aside"):
        volume = load_series(tmp_path, regularize=True)
    inside = np.argwhere(volume.array > -1024)
    places = (volume.affine @ np.c_[inside, np.ones(len(inside))].T).T
    expected = 1000 - 1024 + 10 * (places[:, 2] - 100) + 3 * places[:, 1]
    error = np.abs(volume.array[tuple(inside.T)] - expected)
    assert np.median(error) < 1 and len(inside) > 0.9 * 9 * 32 * 40


def test_uneven_planes_are_resampled_by_position(tmp_path):
    planes = make_planes(6)
    for ds, extra in zip(planes, [0, 0, 0, 1, 1, 1], strict=True):
        ds.ImagePositionPatient[2] += extra
    ramp(planes)
    with pytest.warns(SeriesWarning, match="2.500 to 3.500 mm"):
        volume = load_series(save_planes(tmp_path, planes), regularize=True)
    expected = -24 + 10 * 2.5 * np.arange(6) + 3 * -4
    np.testing.assert_allclose(volume.array[:, 0, 0], expected, atol=1)


def test_regularize_leaves_a_regular_series_alone(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = load_series(save_planes(tmp_path, make_planes()), regularize=True)
    np.testing.assert_array_equal(volume.array, truth())


def test_regularize_does_not_fill_a_gap_of_a_kilometer(tmp_path):
    planes = make_planes()
    planes[5].ImagePositionPatient[2] = 99_999
    with pytest.raises(SeriesError, match="too large to interpolate"):
        load_series(save_planes(tmp_path, planes), regularize=True)


def test_regularize_does_not_blend_two_phases(tmp_path):
    planes = make_planes()
    planes += [set_pixels(ds, get_pixels(ds) + 1) for ds in make_planes()]
    with pytest.raises(SeriesError, match="different pixels"):
        load_series(save_planes(tmp_path, planes), regularize=True)


def test_no_thread_or_process_is_left_behind(tmp_path):
    before = threading.active_count()
    load_series(save_planes(tmp_path, make_planes()))
    assert threading.active_count() == before


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_saved_volume_comes_back(volume, dtype, tmp_path):
    volume = Volume(
        volume.array.astype(dtype), volume.spacing, volume.origin, volume.direction
    )
    save_volume(tmp_path / "v.npz", volume)
    again = load_volume(tmp_path / "v.npz")
    assert again.array.dtype == dtype
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.affine, volume.affine)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]


def test_a_failed_save_leaves_nothing(volume, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_volume(tmp_path / "v.npz", volume)
    assert list(tmp_path.iterdir()) == []


def lie(path, old, new):
    """Change the array's header in a saved volume, and its check sums with it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert old in members["array.npy"] and len(old) == len(new)
    members["array.npy"] = members["array.npy"].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_header_that_claims_4_terabytes_is_refused(volume, tmp_path):
    path = tmp_path / "v.npz"
    save_volume(path, volume)
    lie(path, b"(4, 5, 6), }        ", b"(40000, 10000, 5000)")
    with pytest.raises(SeriesError, match=r"v.npz: is not a volume"):
        load_volume(path)
    save_volume(path, volume)
    lie(path, b"(4, 5, 6), }              ", b"(40000, 10000, 5000), }   ")
    with pytest.raises(SeriesError, match=r"v.npz: is not a volume"):
        load_volume(path)


class Bomb:
    def __reduce__(self):
        raise AssertionError("it was unpickled")


def forms(volume):
    good = {name: getattr(volume, name) for name in ("array", "spacing", "origin")}
    good["direction"] = volume.direction
    yield "missing part", {k: v for k, v in good.items() if k != "origin"}
    yield "further part", good | {"name": np.array("CANARY")}
    yield "objects", good | {"array": np.array([[[{}]]], object)}
    yield "doubles", good | {"array": volume.array.astype(float)}
    yield "Fortran order", good | {"array": np.asfortranarray(volume.array)}
    yield "two axes", good | {"array": volume.array[0]}
    yield "negative spacing", good | {"spacing": np.array([1.0, -1.0, 1.0])}


def test_only_our_own_form_is_accepted(volume, tmp_path):
    for index, (_, parts) in enumerate(forms(volume)):
        path = tmp_path / f"{index}.npz"
        np.savez(path, **parts)
        with pytest.raises(SeriesError, match="is not a volume that save_volume wrote"):
            load_volume(path)
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **{n: getattr(volume, n) for n in volume.__dict__})
    with pytest.raises(SeriesError):
        load_volume(path)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", pickle.dumps([1]), b"\x93NUMPY" * 9])
def test_foreign_bytes_are_refused(data, tmp_path):
    (tmp_path / "v.npz").write_bytes(data)
    with pytest.raises(SeriesError):
        load_volume(tmp_path / "v.npz")
    with pytest.raises(SeriesError):
        load_volume(tmp_path / "gone.npz")


def test_damaged_volumes_are_refused_or_equal(volume, tmp_path):
    path, rng = tmp_path / "v.npz", np.random.default_rng(1)
    save_volume(path, volume)
    clean = path.read_bytes()
    for _ in range(300):
        data = bytearray(clean)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        try:
            again = load_volume(path)
        except SeriesError:
            continue
        np.testing.assert_array_equal(again.array, volume.array)


def test_a_scratched_disc_is_a_refusal(tmp_path, monkeypatch):
    import questlib.pixels

    def fail(header):
        raise OSError(5, "Input/output error")

    save_planes(tmp_path, make_planes())
    monkeypatch.setattr(questlib.pixels, "open_pixels", fail)
    with pytest.raises(SeriesError, match=r"IM0000.dcm: .*Input/output error"):
        load_series(tmp_path)


def test_too_little_memory_is_a_refusal(tmp_path, monkeypatch):
    import questlib.pixels

    def fail(planes, array):
        raise MemoryError

    save_planes(tmp_path, make_planes())
    monkeypatch.setattr(questlib.pixels, "fill", fail)
    with pytest.raises(SeriesError, match="memory"):
        load_series(tmp_path)


def test_a_crashing_decoder_is_a_refusal(tmp_path, monkeypatch):
    import questlib.decoder

    real = questlib.decoder.start

    def start():
        helper = real()
        helper.kill()
        helper.wait()
        return helper

    from test_breaks import RLELossless, compress

    planes = make_planes(3)
    for ds in planes:
        compress(ds, RLELossless)
    save_planes(tmp_path, planes)
    monkeypatch.setattr(questlib.decoder, "start", start)
    with pytest.raises(SeriesError, match="decoder crashed, or took too long"):
        load_series(tmp_path)
