"""What find_series lists, and what it leaves out."""

import os

import numpy as np
import pytest
from broken import make_planes, save_planes, set_pixels

from questlib.header import quote, read_header
from questlib.series import (
    SeriesError,
    SeriesWarning,
    check_spacing,
    find_series,
    sort_planes,
)
from questlib.volume import load_series


@pytest.fixture
def folder(tmp_path):
    return save_planes(tmp_path, make_planes())


def test_series_says_what_it_is_and_no_identifier(folder):
    (series,) = found = find_series(folder)
    assert (series.modality, series.planes, series.shape) == ("CT", 6, (32, 40))
    np.testing.assert_allclose(series.spacing, (2.5, 0.8, 0.7))
    assert [file.name for file in series.files] == [f"IM{i:04}.dcm" for i in range(6)]
    assert str(series) == "CT, 6 planes of 32 x 40, 2.500 x 0.800 x 0.700 mm"
    for text in (str(series), repr(series), repr(found)):
        assert "CANARY" not in text and "1.2." not in text and str(folder) not in text
    assert found.skipped == []


def test_other_modalities_are_listed(tmp_path):
    planes = make_planes(5)
    for number, modality in enumerate(["MR", "PT", "SR"]):
        planes[number].Modality = modality
        planes[number].SeriesInstanceUID = f"1.2.{number}"
    found = find_series(save_planes(tmp_path, planes))
    assert sorted(series.modality for series in found) == ["CT", "MR", "PT", "SR"]
    assert found[0].modality == "CT" and found[0].planes == 2  # the largest first


def test_a_broken_series_is_listed_without_spacing(tmp_path):
    planes = make_planes()
    del planes[3]
    (series,) = find_series(save_planes(tmp_path, planes))
    assert series.planes == 5 and series.spacing is None


def test_skipped_files_have_reasons(folder):
    (folder / "notes.txt").write_text("hello")
    (folder / "IM9.dcm").touch()
    (folder / "scan.zip").write_bytes(b"PK\3\4" + bytes(100))
    data = (folder / "IM0000.dcm").read_bytes()
    (folder / "IM8.dcm").write_bytes(data[:300])
    reasons = dict(find_series(folder).skipped)
    assert reasons["notes.txt"] == "not a DICOM file"
    assert reasons["IM9.dcm"] == "empty file"
    assert "unpack" in reasons["scan.zip"]
    assert "truncated" in reasons["IM8.dcm"]


def test_an_unreadable_file_is_reported(folder, monkeypatch):
    from pathlib import Path

    real = Path.open

    def refuse(path, *args, **kwargs):
        if path.name == "IM0005.dcm":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert dict(find_series(folder).skipped)["IM0005.dcm"].endswith("Permission denied")
    with pytest.warns(SeriesWarning, match="IM0005.dcm: cannot be read"):
        assert load_series(folder).shape[0] == 5


@pytest.mark.parametrize("kind", ["file", "zip", "nowhere", "number", "nul"])
def test_what_is_no_folder(kind, tmp_path):
    path = {
        "file": tmp_path / "a.txt",
        "zip": tmp_path / "a.zip",
        "nowhere": tmp_path / "gone",
        "number": 3,
        "nul": "a\0b",
    }[kind]
    for name in ("a.txt", "a.zip"):
        (tmp_path / name).write_bytes(b"PK")
    patterns = {"file": "is a file, not", "zip": "unpack it", "number": "not int"}
    pattern = patterns.get(kind, "cannot be opened")
    with pytest.raises(SeriesError, match=pattern) as caught:
        find_series(path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SeriesError, match="Permission denied"):
        find_series(tmp_path)


def test_choose_by_uid(tmp_path):
    planes = make_planes(6)
    for ds in planes[4:]:
        ds.SeriesInstanceUID = "1.2.3.4"
    save_planes(tmp_path, planes)
    assert load_series(tmp_path, series_uid="1.2.3.4").shape[0] == 2
    with pytest.raises(SeriesError, match="no series has this UID"):
        load_series(tmp_path, series_uid="1.2.3")


@pytest.mark.parametrize(
    ("orientation", "normal"),
    [
        ([1, 0, 0, 0, 1, 0], (0, 0, 1)),  # axial, supine
        ([-1, 0, 0, 0, -1, 0], (0, 0, 1)),  # axial, prone
        ([1, 0, 0, 0, 0, -1], (0, 1, 0)),  # coronal
        ([0, 1, 0, 0, 0, -1], (-1, 0, 0)),  # sagittal
        ([-1, 0, 0, 0, 1, 0], (0, 0, -1)),  # axial, feet first
    ],
)
def test_planes_rise_along_the_normal(tmp_path, orientation, normal):
    planes = make_planes(orientation=orientation)
    volume = load_series(save_planes(tmp_path, planes[::-1]))
    np.testing.assert_allclose(volume.direction[:, 0], normal, atol=1e-9)
    np.testing.assert_allclose(volume.direction[:, 1], orientation[3:], atol=1e-9)
    np.testing.assert_allclose(volume.origin, (-3, -4, 100))


def test_rows_come_first_in_pixel_spacing(folder):
    assert load_series(folder).spacing[1:] == (0.8, 0.7)


def test_spacing_is_measured_over_the_whole_stack(folder):
    headers = [read_header(file)[0] for file in sorted(folder.iterdir())]
    assert check_spacing(sort_planes(headers)) == pytest.approx(2.5)


def test_errors_and_warnings_carry_the_base_name():
    for kind in (SeriesError, SeriesWarning):
        assert kind("why", "/secret/IM1").file == "IM1"
        assert str(kind("why", "/secret/IM1")) == "IM1: why"
        assert kind("why").file is None
    assert issubclass(SeriesError, ValueError)


def test_quoted_text_is_short_and_printable():
    assert quote("a\x1b[31m\nb") == r"a\x1b[31m\nb"
    assert len(quote("x" * 1000)) == 48


def test_large_files_are_not_read_to_be_listed(tmp_path, monkeypatch):
    planes = make_planes(2)
    for ds in planes:
        set_pixels(ds, np.zeros((2000, 2000)))
    save_planes(tmp_path, planes)
    from questlib.header import Walker

    read = []
    real = Walker.read

    def spy(walker):
        result = real(walker)
        read.append(walker.stream.tell())
        return result

    monkeypatch.setattr(Walker, "read", spy)
    find_series(tmp_path)
    assert max(read) < 50_000  # of 8 million bytes
