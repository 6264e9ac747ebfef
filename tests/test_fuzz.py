"""Nothing but SeriesError ever escapes, and no order or angle changes the volume."""

import random
import struct
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from broken import SPACING, make_enhanced, make_planes, save_planes, truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from test_breaks import compress

from questlib.series import SeriesError
from questlib.volume import load_series

SHAPE = 3, 4, 5


@pytest.fixture(scope="module", params=["explicit", "implicit", "deflated", "enhanced"])
def mutated_plane(request, tmp_path_factory):
    """Return a folder with a clean tiny series, and the plane to mutate."""
    planes = make_planes(*SHAPE)
    if request.param == "enhanced":
        planes = [make_enhanced(planes)]
    for ds in planes:
        if request.param == "implicit":
            compress(ds, ImplicitVRLittleEndian)
        if request.param == "deflated":
            compress(ds, DeflatedExplicitVRLittleEndian)
    folder = save_planes(tmp_path_factory.mktemp(request.param), planes)
    return folder / f"IM{len(planes) // 2:04}.dcm"


def mutate(data, rng):
    """Return `data` with a few bytes changed, removed, repeated or swapped."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            extreme = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
            data[place : place + 4] = struct.pack("<I", extreme)
        elif kind == 3:
            del data[place : place + rng.randrange(1, 40)]
        elif kind == 4:
            data[place:place] = data[place : place + rng.randrange(1, 40)]
        else:
            del data[place:]
        data = data or bytearray(1)
    return bytes(data)


def test_mutated_bytes_never_surprise(mutated_plane):
    """1,000 mutations of each form: right geometry, or SeriesError, or a warning."""
    rng = random.Random(20261122)
    clean = mutated_plane.read_bytes()
    outcomes = {"same": 0, "pixels": 0, "warned": 0, "refused": 0}
    tracemalloc.start()
    for _ in range(1000):
        mutated_plane.write_bytes(mutate(clean, rng))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                volume = load_series(mutated_plane.parent)
            except SeriesError as error:
                outcomes["refused"] += 1
                assert "CANARY" not in str(error)
                continue
        if caught:
            outcomes["warned"] += 1
        elif np.array_equal(volume.array, truth(*SHAPE)):
            outcomes["same"] += 1
            np.testing.assert_allclose(volume.spacing, SPACING, rtol=0.03)
        else:  # bytes of the pixels themselves carry no check sum
            outcomes["pixels"] += 1
            assert volume.shape == SHAPE
            assert np.array_equal(volume.array[0], truth(*SHAPE)[0]) or (
                "enhanced" in str(mutated_plane)
            )
    mutated_plane.write_bytes(clean)
    print(outcomes)
    assert outcomes["refused"] > 700 and outcomes["same"] > 50
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak < 700, f"{peak:.0f} MB"


def test_mutated_compressed_frames_never_surprise(tmp_path):
    """20 mutations of a plane that helper processes decode."""
    planes = make_planes(*SHAPE)
    for ds in planes:
        compress(ds, RLELossless)
    path = save_planes(tmp_path, planes) / "IM0001.dcm"
    clean, rng = path.read_bytes(), random.Random(1)
    for _ in range(20):
        path.write_bytes(mutate(clean, rng))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                assert load_series(tmp_path).shape == SHAPE or caught
            except SeriesError:
                continue


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(order=st.permutations(range(5)), numbers=st.permutations(range(5)))
def test_order_never_changes_the_volume(order, numbers):
    planes = make_planes(5, 4, 5)
    for ds, number in zip(planes, numbers, strict=True):
        ds.InstanceNumber = number
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{order[index]}.dcm" for index in range(5)]
        volume = load_series(save_planes(folder, planes, names))
    np.testing.assert_array_equal(volume.array, truth(5, 4, 5))


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    flip=st.booleans(),
)
def test_affine_puts_each_voxel_at_its_place(angles, origin, flip):
    (a, b, c), rotation = angles, np.eye(3)
    for i, j, angle in ((0, 1, a), (0, 2, b), (1, 2, c)):
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    row, column = rotation[0], rotation[1]
    planes = make_planes(4, 4, 5, orientation=[*row, *column], origin=origin)
    if flip:  # the files run the other way
        planes.reverse()
    with tempfile.TemporaryDirectory() as folder:
        volume = load_series(save_planes(folder, planes))
    for index, voxel in ((0, (0, 0, 0)), (3, (3, 2, 4)), (1, (1, 3, 0))):
        normal = np.cross(row, column)
        place = np.array(origin) + 2.5 * index * normal
        place = place + 0.8 * voxel[1] * column + 0.7 * voxel[2] * row
        np.testing.assert_allclose((volume.affine @ (*voxel, 1))[:3], place, atol=1e-3)
        assert volume.array[voxel] == truth(4, 4, 5)[voxel]
    assert np.linalg.det(volume.direction) == pytest.approx(-1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_random_bytes_are_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "IM0").write_bytes(bytes(128) + b"DICM" + data)
        with pytest.raises(SeriesError):
            load_series(folder)
