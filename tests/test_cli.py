"""The command line: exit status, one line for bad input, nothing half-written."""

import errno
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pydicom
import pytest
from test_lesson import mark

import questlib
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
