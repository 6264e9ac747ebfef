"""The command line: exit status, one line for bad input, nothing half-written."""

import csv
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pydicom
import pytest
from test_lesson import mark

import questlib
from questlib import cohort
from questlib.cli import main


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two series in one folder: 24 and 12 planes; one file is no DICOM."""
    folder = tmp_path_factory.mktemp("small")
    questlib.make_phantom(folder / "a", shape=(24, 64, 64), spacing=(12, 5.6, 5.6))
    questlib.make_phantom(
        folder / "b", shape=(12, 64, 64), spacing=(24, 5.6, 5.6), seed=1
    )
    (folder / "notes.txt").write_text("nothing")
    return folder


def refuse(capsys, *arguments, status=1):
    """Run a command that must fail, and give its one line."""
    assert main([str(argument) for argument in arguments]) == status
    lines = [
        line for line in capsys.readouterr().err.split("\n") if "questlib:" in line
    ]
    assert len(lines) == 1
    return lines[0]


def test_list_shows_series_and_what_was_skipped(small, capsys):
    assert main(["list", str(small)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 +CT +24 +64 x 64 +12\.000 x 5\.600 x 5\.600", lines[1])
    assert re.fullmatch(r"2 +CT +12 +64 x 64 +24\.000 x 5\.600 x 5\.600", lines[2])
    assert lines[3] == "skipped notes.txt: not a DICOM file"


def test_list_shows_no_identifier(small, tmp_path, capsys):
    folder = mark(tmp_path / "CANARY", list((small / "a").rglob("*.dcm")))
    assert main(["list", str(folder)]) == 0
    uid = pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID
    out = capsys.readouterr().out
    assert "CANARY" not in out
    assert uid not in out


def test_bad_folders_are_refused_in_one_line(tmp_path, capsys):
    empty, text = tmp_path / "empty", tmp_path / "text.txt"
    empty.mkdir()
    text.write_text("no scan")
    for command in ("list", "mask", "run"):
        extra = () if command == "list" else ("--out", tmp_path / "out")
        assert "text.txt: is a file, not a folder" in refuse(
            capsys, command, text, *extra
        )
        assert "no-such" in refuse(capsys, command, tmp_path / "no-such", *extra)
        assert "empty: give the folder" in refuse(capsys, command, empty, *extra)
    assert not (tmp_path / "out").exists()


def test_two_series_are_listed_and_one_can_be_chosen(small, tmp_path, capsys):
    out = tmp_path / "out"
    line = refuse(capsys, "mask", small, "--out", out)
    assert "2 series" in line
    assert "--series" in line
    assert "holds 2 series" in refuse(
        capsys, "mask", small, "--out", out, "--series", 3
    )
    assert main(["mask", str(small), "--out", str(out), "--series", "2"]) == 0
    assert '"planes": 12' in (out / "summary.json").read_text()


def test_mask_says_volumes_and_findings(small, tmp_path, capsys):
    assert main(["mask", str(small / "a"), "--out", str(tmp_path / "out")]) == 0
    streams = capsys.readouterr()
    assert re.match(r"right [\d,]+ mL, left [\d,]+ mL, airway [\d,]+ mL; ", streams.out)
    assert "segment" in streams.err  # the progress bar


def test_out_that_cannot_be_a_folder_is_refused(small, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "file" in refuse(capsys, "mask", small / "a", "--out", tmp_path / "file")
    line = refuse(capsys, "mask", small / "a", "--out", tmp_path / "file" / "out")
    assert "Not a directory" in line


def test_full_disk_leaves_nothing_behind(small, tmp_path, capsys, monkeypatch):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/place/x.npz")

    monkeypatch.setattr("numpy.savez_compressed", fill)
    line = refuse(capsys, "mask", small / "a", "--out", tmp_path / "out")
    assert line == "questlib: No space left on device: x.npz"
    assert not (tmp_path / "out").exists()


def test_control_c_stops_with_130_and_leaves_nothing(
    small, tmp_path, capsys, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("questlib.report.segment_lungs", stop)
    line = refuse(capsys, "mask", small / "a", "--out", tmp_path / "out", status=130)
    assert "stopped" in line
    assert not (tmp_path / "out").exists()


def test_messages_cannot_steer_the_terminal(tmp_path, capsys, monkeypatch):
    def shout(*_, **__):
        raise ValueError("red \x1b[31m\nsecond\u202eline")

    monkeypatch.setattr("questlib.series.find_series", shout)
    assert refuse(capsys, "list", tmp_path) == "questlib: red  [31m second line"


def test_reasons_of_libraries_are_not_shown(tmp_path, capsys, monkeypatch):
    def read(*_, **__):
        return pydicom.valuerep.DSfloat("CANARY")

    monkeypatch.setattr("questlib.series.find_series", read)
    line = refuse(capsys, "list", tmp_path)
    assert "pydicom refused this scan" in line
    assert "CANARY" not in line


def test_warnings_are_one_line_each(small, capsys, monkeypatch):
    def warn(*_, **__):
        warnings.warn(questlib.SeriesWarning("look\nhere", "1.dcm"), stacklevel=1)
        warnings.warn("noise of a library", stacklevel=1)
        raise ValueError("end")

    monkeypatch.setattr("questlib.series.find_series", warn)
    assert main(["list", str(small)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "questlib: note: 1.dcm: look here",
        "questlib: end",
    ]


def test_phantom_writes_a_series_once(tmp_path, capsys, monkeypatch):
    make = questlib.make_phantom
    tiny = {"shape": (12, 48, 48), "spacing": (24, 8, 8)}
    monkeypatch.setattr(
        "questlib.phantom.make_phantom", lambda folder, **kw: make(folder, **kw, **tiny)
    )
    assert main(["phantom", str(tmp_path / "new")]) == 0
    assert questlib.find_series(tmp_path / "new")[0].planes == 12
    assert "not empty" in refuse(capsys, "phantom", tmp_path / "new")


def test_wrong_usage_is_status_2_and_help_is_quick_to_import(small):
    run = [sys.executable, "-m", "questlib.cli"]
    wrong = subprocess.run([*run, "mask", small], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "--out" in wrong.stderr
    heavy = "numpy|pydicom|scipy|matplotlib|plotly|nbclient|tqdm"
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "questlib.cli", "--help"],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0
    assert not re.search(rf"\| +({heavy})$", shown.stderr, re.MULTILINE)


def test_the_installed_command_is_this_one(small):
    command = shutil.which("questlib", path=str(Path(sys.executable).parent))
    done = subprocess.run(
        [command, "list", small / "a"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "24" in done.stdout


GRID = ["--spacing", "8", "--shape", "36", "40", "44"]


@pytest.fixture
def root(small, tmp_path):
    """Twelve scans under one name each, and a folder without any."""
    root = tmp_path / "root"
    for number in range(12):
        shutil.copytree(small / "a", root / f"DOE_JANE_{number:02}")
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("nothing")
    return root


def read_manifest(out):
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cohort_takes_each_folder_and_says_which_were_refused(root, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["cohort", str(root), "--out", str(out), *GRID]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"refused empty \(s\w{12}\): no CT series .*", lines[0])
    assert lines[1:] == ["13 scans: 12 done, 1 refused (see manifest.csv)"]
    store = cohort.open_cohort(out)
    assert store.image.shape == (13, 36, 40, 44)
    assert [row["status"] for row in store.manifest] == ["done"] * 12 + ["failed"]
    text = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    uid = pydicom.dcmread(next((root / "DOE_JANE_00").glob("*"))).SeriesInstanceUID
    for word in ("DOE_JANE", tmp_path.name, uid):
        assert word.encode() not in text

    shutil.copytree(root / "DOE_JANE_00", root / "new")
    written = {path: path.stat().st_mtime_ns for path in out.glob("rows/*.json")}
    assert main(command) == 0
    assert "14 scans: 13 done" in capsys.readouterr().out
    again = [p for p, t in written.items() if p.stat().st_mtime_ns == t]
    assert len(again) == 12  # all but the one that was refused


def test_cohort_of_one_scan_of_none_and_of_two_in_one_folder(small, tmp_path, capsys):
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert main(["cohort", str(small / "a"), "--out", str(out), *GRID]) == 0
    assert "1 scan: 1 done, 0 refused" in capsys.readouterr().out

    (alone / "empty").mkdir(parents=True)
    assert main(["cohort", str(alone), "--out", str(tmp_path / "none"), *GRID]) == 1
    assert "1 scan: 0 done, 1 refused" in capsys.readouterr().out

    two = tmp_path / "two"
    shutil.copytree(small / "a", two)
    for path in (small / "b").iterdir():
        shutil.copy(path, two / f"b_{path.name}")
    line = refuse(capsys, "cohort", two, "--out", out)
    assert "holds 2 series" in line and "a folder of its own" in line


def test_cohort_refuses_what_makes_no_sense(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert "positive" in refuse(capsys, "cohort", small, "--out", out, "--spacing", 0)
    assert "--out is" in refuse(capsys, "cohort", small, "--out", small)
    assert "no-such" in refuse(capsys, "cohort", tmp_path / "no-such", "--out", out)
    assert "give the" in refuse(capsys, "cohort", tmp_path, "--out", tmp_path / "small")
    assert not out.exists()
    for wrong in (["--workers", "0"], ["--shape", "1", "2", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["cohort", str(small), "--out", str(out), *wrong])


def test_a_cohort_on_a_cluster_is_the_same(small, tmp_path, capsys):
    from distributed import LocalCluster

    command = ["cohort", str(small), *GRID, "--out"]
    assert main([*command, str(tmp_path / "here")]) == 0
    quiet = {"dashboard_address": None, "processes": False}
    with LocalCluster(n_workers=1, threads_per_worker=1, **quiet) as cluster:
        place = ["--scheduler", cluster.scheduler_address]
        assert main([*command, str(tmp_path / "there"), *place]) == 0
    assert "2 scans: 2 done" in capsys.readouterr().out
    here, there = (cohort.open_cohort(tmp_path / name) for name in ("here", "there"))
    assert (here.image[:] == there.image[:]).all()
    assert (here.mask[:] == there.mask[:]).all()
    assert here.mask[:].any()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_control_c_leaves_a_cohort_that_goes_on(root, tmp_path, capsys, workers):
    out = tmp_path / "out"
    command = ["cohort", root, "--out", out, *GRID]
    run = subprocess.Popen(
        [sys.executable, "-m", "questlib.cli", *command, "--workers", workers],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(out.glob("rows/*.json")):
        assert run.poll() is None
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: workers get it too
    lines = run.communicate()[1].splitlines()
    assert lines == [
        "questlib: stopped; what is done is kept, the same command goes on"
    ]
    assert run.returncode == 130
    states = [row["status"] for row in read_manifest(out)]
    assert {"done", "missing"} <= set(states)
    assert main([str(word) for word in command]) == 0
    assert "13 scans: 12 done, 1 refused" in capsys.readouterr().out
    images = cohort.open_cohort(out).image[:12]
    assert (images == images[0]).all() and images[0].max() > 0
