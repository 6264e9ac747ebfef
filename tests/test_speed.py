"""Slips of speed and memory: ratios in one run, at half the bar of the benchmarks."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from skimage.measure import marching_cubes

import questlib


@pytest.fixture(scope="module")
def chest():
    return questlib.make_phantom(shape=(40, 256, 256), spacing=(4, 1.4, 1.4)).volume


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


def test_reading_is_not_much_slower_than_the_naive_loader(phantom_folder):
    # small files: the bar of 3 x belongs to benchmarks/run.py, at full size
    files = [path for path in phantom_folder.rglob("*") if path.is_file()]

    def naive():
        planes = sorted(map(pydicom.dcmread, files), key=lambda ds: ds.InstanceNumber)
        return np.stack([ds.pixel_array for ds in planes]).astype(np.float64)

    naive()
    assert race(lambda: questlib.load_series(phantom_folder), naive, rounds=5) > 0.8


def test_resampling_beats_zoom(chest):
    ratio = race(
        lambda: questlib.resample(chest, 2.0),
        lambda: ndimage.zoom(chest.array, np.array(chest.spacing) / 2, order=3),
        rounds=2,
    )
    assert ratio > 15


def test_surface_is_no_slower_than_marching_cubes(chest):
    questlib.extract_surface(chest, 350)  # imports VTK where it is installed
    ratio = race(
        lambda: questlib.extract_surface(chest, 350),
        lambda: marching_cubes(chest.array, 350),
    )
    assert ratio > 0.5


def test_reading_and_resampling_keep_no_float_copy(chest, phantom_folder):
    scan = questlib.load_series(phantom_folder).array.nbytes  # int16
    assert peak(lambda: questlib.load_series(phantom_folder)) < 1.5 * scan + 2e6
    out = questlib.resample(chest, 1.0).array.nbytes
    assert peak(lambda: questlib.resample(chest, 1.0)) < 1.5 * out
