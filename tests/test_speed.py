"""Slips of speed and memory: ratios in one run, at half the bars of the benchmarks."""

import re
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import marching_cubes

import questlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import legacy_2017


@pytest.fixture(scope="module")
def chest():
    return questlib.make_phantom(shape=(40, 256, 256), spacing=(4, 1.4, 1.4)).volume


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A series with planes as large as a scanner's, and its folder."""
    folder = tmp_path_factory.mktemp("full_size")
    grid = {"shape": (32, 512, 512), "spacing": (10.0, 0.7, 0.7)}
    return folder, questlib.make_phantom(folder, **grid).volume


def race(ours, theirs, rounds=3):
    """How many times faster ours is: the best of each, run in turn."""
    best = [np.inf, np.inf]
    for _ in range(rounds):
        for index, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[1] / best[0]


def peak(function):
    """Most bytes held at once while the function ran, beyond what was there before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_import_brings_no_heavy_library():
    code = "import sys, questlib; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    heavy = {"numpy", "scipy", "matplotlib", "plotly", "pyvista", "dask", "highdicom"}
    assert not heavy & set(loaded)


def test_reading_beats_the_naive_loader(full_size):
    folder, volume = full_size

    def naive():
        return legacy_2017.to_hounsfield(legacy_2017.load(folder)[0])

    np.testing.assert_array_equal(naive()[::-1], volume.array)  # it begins at the head
    assert race(lambda: questlib.load_series(folder), naive, rounds=5) > 1.5


def test_resampling_beats_zoom(chest):
    ratio = race(
        lambda: questlib.resample(chest, 2.0),
        lambda: ndimage.zoom(chest.array, np.array(chest.spacing) / 2, order=3),
        rounds=2,
    )
    assert ratio > 15


def test_one_plane_beats_the_original(full_size):
    plane = full_size[1].array[16]
    ratio = race(
        lambda: questlib.mask_plane_2017(plane), lambda: legacy_2017.mask_plane(plane)
    )
    assert ratio > 15


def test_all_lungs_beat_the_masks_of_2017(full_size):
    volume, every = full_size[1], 8
    ratio = race(
        lambda: questlib.segment_lungs(volume),
        lambda: [legacy_2017.mask_plane(plane) for plane in volume.array[::every]],
    )
    assert every * ratio > 25


def test_surface_is_no_slower_than_marching_cubes(chest):
    questlib.extract_surface(chest, 350)  # imports VTK where it is installed
    ratio = race(
        lambda: questlib.extract_surface(chest, 350),
        lambda: marching_cubes(chest.array, 350),
    )
    assert ratio > (1.5 if find_spec("vtkmodules") else 0.5)


def test_reading_and_resampling_keep_no_float_copy(chest, phantom_folder):
    scan = questlib.load_series(phantom_folder).array.nbytes  # int16
    assert peak(lambda: questlib.load_series(phantom_folder)) < 1.5 * scan + 2e6
    out = questlib.resample(chest, 1.0).array.nbytes
    assert peak(lambda: questlib.resample(chest, 1.0)) < 1.5 * out


def test_twice_the_planes_need_twice_the_time_and_memory(full_size):
    once = full_size[1]
    twice = replace(once, array=once.array.repeat(2, axis=0), spacing=(5.0, 0.7, 0.7))
    ratio = race(
        lambda: questlib.segment_lungs(twice), lambda: questlib.segment_lungs(once)
    )
    assert ratio > 1 / 4
    needed = [peak(lambda v=v: questlib.segment_lungs(v)) for v in (once, twice)]
    assert needed[1] - needed[0] < 2 * once.array.nbytes  # input and output


def test_readme_quotes_the_benchmarks():
    root = Path(__file__).resolve().parent.parent
    results = (root / "benchmarks" / "RESULTS.md").read_text("utf-8")
    section = (root / "README.md").read_text("utf-8").split("## How fast")[1]
    ratios = re.findall(r"([\d.]+) x \|", section.split("\n## ")[0])
    assert len(ratios) >= 10
    assert [ratio for ratio in ratios if f"({ratio}x)" not in results] == []
