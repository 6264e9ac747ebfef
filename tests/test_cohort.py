"""Cohorts: nothing lost, nothing mixed, whoever is killed."""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

import questlib
from questlib import cohort
from questlib.cohort import build_cohort, join_npy, open_cohort
from questlib.resample import fit_shape, resample
from questlib.volume import AXIAL

SPACING, SHAPE = 8.0, (36, 40, 44)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Give five scans, one of them of another shape; and one folder without any."""
    root = tmp_path_factory.mktemp("scans")
    first = root / "CANARY_0"
    questlib.make_phantom(first, shape=(20, 48, 48), spacing=(15, 7.5, 7.5))
    for number in range(1, 5):
        folder = root / f"CANARY_{number}"
        folder.mkdir()
        series = generate_uid()
        for path in first.iterdir():
            ds = pydicom.dcmread(path)
            ds.SeriesInstanceUID, ds.SOPInstanceUID = series, generate_uid()
            ds.PatientID = ds.PatientName = "CANARY"
            ds.RescaleIntercept = float(ds.RescaleIntercept) + number
            if number < 4 or ds.ImagePositionPatient[2] < 100:  # 17 planes
                ds.save_as(folder / path.name)
    (root / "CANARY_bad").mkdir()
    (root / "CANARY_bad" / "CANARY.dcm").write_text("no scan")
    return sorted(root.iterdir())


@pytest.fixture(scope="session")
def built(scans, tmp_path_factory):
    """Give the folder of the cohort of all scans, keyed 0 to 5."""
    out = tmp_path_factory.mktemp("cohort")
    build_cohort(dict(enumerate(scans)), out, spacing=SPACING, shape=SHAPE)
    return out


def test_a_prone_and_a_supine_scan_lie_the_same_way(scans, tmp_path):
    prone = tmp_path / "prone"
    prone.mkdir()
    for path in scans[0].iterdir():
        ds = pydicom.dcmread(path)
        x, y, z = ds.ImagePositionPatient
        (between_rows, between_columns), size = ds.PixelSpacing, (ds.Rows, ds.Columns)
        far = (x + (size[1] - 1) * between_columns, y + (size[0] - 1) * between_rows)
        ds.ImagePositionPatient = [*far, z]
        ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        ds.PixelData = ds.pixel_array[::-1, ::-1].tobytes()
        ds.save_as(prone / path.name)
    assert questlib.load_series(prone).direction[0, 2] == -1
    both = {"supine": scans[0], "prone": prone}
    store = build_cohort(both, tmp_path / "out", spacing=SPACING, shape=SHAPE)
    np.testing.assert_array_equal(store.image[0], store.image[1])
    np.testing.assert_array_equal(store.mask[0], store.mask[1])
    # in LPS the right lung comes first along the columns
    columns = [np.argwhere(store.mask[1] == side)[:, 2].mean() for side in (1, 2)]
    assert columns[0] < columns[1]


def test_turning_a_scan_moves_no_voxel():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for order, signs in (((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))):
        direction = AXIAL[:, order] * signs
        volume = questlib.Volume(array, (5, 2, 1), (-3, 20, 100), direction)
        turned = cohort._turn(volume)
        np.testing.assert_array_equal(turned.direction, AXIAL)
        for voxel in np.ndindex(array.shape):
            (found,) = np.argwhere(turned.array == array[voxel])
            place = volume.affine @ (*voxel, 1)
            np.testing.assert_allclose(turned.affine @ (*found, 1), place)


def test_the_box_is_in_millimeters():
    assert cohort._check_grid((2, 1, 0.8), None)[1] == (160, 320, 500)


def build_again(built, scans, tmp_path, **options):
    """Build in a copy of the folder."""
    out = tmp_path / "again"
    if not out.exists():
        shutil.copytree(built, out)
    folders = dict(enumerate(scans))
    return out, build_cohort(folders, out, spacing=SPACING, shape=SHAPE, **options)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.image[:], other.image[:])
    np.testing.assert_array_equal(one.mask[:], other.mask[:])
    drop = {"seconds": ""}
    assert [row | drop for row in one.manifest] == [
        row | drop for row in other.manifest
    ]


def test_store_holds_what_the_steps_give_one_by_one(built, scans):
    store = open_cohort(built)
    assert store.image.shape == store.mask.shape == (6, *SHAPE)
    assert (store.image.dtype, store.mask.dtype) == (np.int16, np.uint8)
    for index in (0, 4):
        volume = questlib.load_series(scans[index])
        lungs = questlib.segment_lungs(volume)
        image = fit_shape(resample(volume, SPACING), SHAPE)
        np.testing.assert_array_equal(store.image[index], image.array)
        row, ml = store.manifest[index], SPACING**3 / 1000
        assert row["status"] == "done"
        assert int(row["planes"]) == volume.shape[0]
        assert float(row["plane_mm"]) == volume.spacing[0]
        assert float(row["right_ml"]) == round(lungs.volumes_ml["right"], 1)
        for label, name in ((1, "right"), (2, "left")):
            here = np.count_nonzero(store.mask[index] == label) * ml
            assert here == pytest.approx(lungs.volumes_ml[name], rel=0.1)


def test_one_bad_scan_is_one_row_and_stops_nobody(built):
    store = open_cohort(built)
    states = [row["status"] for row in store.manifest]
    assert states == ["done"] * 5 + ["failed"]
    assert store.manifest[5]["error"].startswith("no CT series in this folder")
    assert (store.image[5] == -1000).all()
    assert (store.mask[5] == 0).all()


def test_nothing_names_a_patient_a_file_or_a_path(built, scans, tmp_path):
    build_cohort(scans[4:], tmp_path / "hashed", spacing=SPACING, shape=SHAPE)
    for out in (built, tmp_path / "hashed"):
        for path in out.rglob("*"):
            assert "CANARY" not in str(path.relative_to(out))
            if path.is_file():
                assert b"CANARY" not in path.read_bytes()


def test_a_second_run_does_only_what_is_missing(built, scans, tmp_path, monkeypatch):
    called, work = [], cohort.process_scan

    def spy(key, *rest):
        called.append(key)
        return work(key, *rest)

    monkeypatch.setattr(cohort, "process_scan", spy)
    mended = [*scans[:5], scans[1]]
    out, store = build_again(built, mended, tmp_path)
    assert called == ["5"]
    np.testing.assert_array_equal(store.image[5], store.image[1])
    assert store.manifest[5]["status"] == "done"

    called.clear()
    folders = {"new": scans[2]} | dict(enumerate(mended))
    store = build_cohort(folders, out, spacing=SPACING, shape=SHAPE)
    assert called == ["new"]
    assert [row["key"] for row in store.manifest] == [*"012345", "new"]
    np.testing.assert_array_equal(store.image[6], store.image[2])
    np.testing.assert_array_equal(store.image[:5], open_cohort(built).image[:5])


def test_another_spacing_is_refused(built, scans, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(built, out)
    with pytest.raises(ValueError, match=r"has spacing \[8\.0, 8\.0, 8\.0\] mm"):
        build_cohort(scans, out, spacing=4.0, shape=SHAPE)
    with pytest.raises(ValueError, match=r"shape \[36, 40, 44\]"):
        build_cohort(scans, out, spacing=SPACING)


def test_ctrl_c_leaves_a_store_that_resumes(built, scans, tmp_path, monkeypatch):
    work, out = cohort.process_scan, tmp_path / "again"
    folders = dict(enumerate(scans))

    def interrupted(key, *rest):
        if key == "2":
            raise KeyboardInterrupt
        return work(key, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "process_scan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_cohort(folders, out, spacing=SPACING, shape=SHAPE, workers=1)
    states = [row["status"] for row in open_cohort(out).manifest]
    assert states[2] == "missing" and "done" in states
    assert_equal(build_again(built, scans, tmp_path)[1], open_cohort(built))


def test_a_full_disk_is_a_row_and_the_next_run_mends_it(
    built, scans, tmp_path, monkeypatch
):
    write, out = cohort._write_scan, tmp_path / "again"

    def full(folder, index, *rest):
        if index == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/CANARY")
        return write(folder, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "_write_scan", full)
        store = build_cohort(dict(enumerate(scans)), out, spacing=SPACING, shape=SHAPE)
    assert store.manifest[3]["error"] == "No space left on device"
    assert_equal(build_again(built, scans, tmp_path)[1], open_cohort(built))


def start(*words):
    command = [Path(sysconfig.get_path("scripts"), "dask"), *words]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet)


def kill_after_first_row(out, process):
    while not list(out.glob("rows/*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)


def test_a_killed_worker_of_a_running_cluster_loses_nothing(built, scans, tmp_path):
    from distributed import Client

    out, address = tmp_path / "again", tmp_path / "scheduler.json"
    common = ("--scheduler-file", address, "--host", "127.0.0.1", "--no-dashboard")
    alone = ("--nthreads", "1", "--no-nanny", "--local-directory", tmp_path / "work")
    processes = [start("scheduler", "--port", "0", *common)]
    processes += [start("worker", *common, *alone) for _ in range(2)]
    try:
        with Client(scheduler_file=str(address), timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
            killer = Thread(target=kill_after_first_row, args=(out, processes[1]))
            killer.start()
            folders = dict(enumerate(scans))
            store = build_cohort(
                folders, out, spacing=SPACING, shape=SHAPE, client=client
            )
            killer.join()
            assert processes[1].wait() == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert_equal(store, open_cohort(built))


def test_a_spreadsheet_takes_no_cell_for_a_formula(tmp_path, scans):
    keys = ("=1+1", "+cmd|' /C calc'!A0", "-2", "@sum", "plain,\n=1")
    folders = dict.fromkeys(keys, scans[5])
    build_cohort(folders, tmp_path / "out", spacing=SPACING, shape=SHAPE)
    text = (tmp_path / "out" / "manifest.csv").read_text()
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert len(cells) == 6 * len(cohort.COLUMNS)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    assert "'=1+1" in cells and "plain, =1" in cells


def test_the_same_folder_twice_is_refused(tmp_path, scans):
    with pytest.raises(ValueError, match="given twice"):
        build_cohort([scans[0], scans[0]], tmp_path / "out", shape=SHAPE)


def test_join_npy_stacks_one_shape_and_names_the_others(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"p{number}.npy", np.full((2, 3, 4), number, np.int16))
    np.save(tmp_path / "odd.npy", np.zeros((2, 3, 5), np.int16))
    joined, names, left_out = join_npy(tmp_path, tmp_path / "all" / "joined.npy")
    assert joined.shape == (3, 2, 3, 4)
    assert joined.dtype == np.int16
    assert names == ["p0.npy", "p1.npy", "p2.npy"]
    assert left_out == [("odd.npy", (2, 3, 5))]
    again = np.load(tmp_path / "all" / "joined.npy", mmap_mode="r")
    assert again[:, 1, 2, 3].tolist() == [0, 1, 2]
    with pytest.raises(FileExistsError, match=r"joined\.npy exists"):
        join_npy(tmp_path, tmp_path / "all" / "joined.npy")


def test_join_npy_never_unpickles(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"[Pp]ickle|object"):
        join_npy(tmp_path, tmp_path / "joined.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.npy file"):
        join_npy(tmp_path / "empty", tmp_path / "joined.npy")


def test_what_the_loader_warns_of_is_a_finding(scans, tmp_path):
    folder = shutil.copytree(scans[0], tmp_path / "CANARY")
    path = next(folder.iterdir())
    shutil.copy(path, folder / "CANARY_twice")
    store = build_cohort({"a": folder}, tmp_path / "o", spacing=SPACING, shape=SHAPE)
    assert store.manifest[0]["status"] == "done"
    with pytest.warns(questlib.SeriesWarning) as caught:
        questlib.load_series(folder)
    assert caught[0].message.reason in store.manifest[0]["findings"]
    assert "CANARY" not in store.manifest[0]["findings"]


def test_no_grid_without_sense(scans, tmp_path):
    for spacing, shape in ((0, None), (float("nan"), None), (1, (1, 2)), (0.01, None)):
        with pytest.raises(ValueError, match=r"spacing must|a scan of"):
            build_cohort(scans, tmp_path / "o", spacing=spacing, shape=shape)
    assert not (tmp_path / "o").exists()
