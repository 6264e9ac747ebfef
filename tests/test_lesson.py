"""The notebooks on somebody's scan: no identifier, nothing foreign, no network."""

import base64
import warnings

import nbformat
import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from questlib import load_series
from questlib.lesson import (
    GROUPS,
    NUMBERS,
    TEXTS,
    clean,
    copy_without_identity,
    run_notebooks,
    write_pages,
)

CANARY = "CANARY<b>=1+1"
VALUES = {"AS": "066Y", "DA": "19660606", "DT": "19660606060906", "TM": "060906"}
VALUES |= {"PN": "CANARY^Anna", "UI": "1.2.3.666", "UR": "https://canary.example"}
v4 = nbformat.v4


def notebook(*cells):
    """A notebook of (kind, source, tags), with stored outputs of another scan."""
    made = []
    for kind, source, *tags in cells:
        cell = getattr(v4, f"new_{kind}_cell")(source, metadata={"tags": tags})
        if kind == "code":
            stored = v4.new_output("stream", name="stdout", text="ANOTHER PATIENT")
            cell.outputs, cell.execution_count = [stored], 1
        made.append(cell)
    kernel = {"name": "no-such-kernel", "display_name": "x", "language": "python"}
    return v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def raw(tag, vr, text):
    """An element as a file holds it, whatever pydicom thinks of its value."""
    value = text.encode().ljust(len(text) + len(text) % 2)
    return RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


def mark(folder, source):
    """Copy DICOM files with a canary in every kind of text, and in their names."""
    folder.mkdir()
    for number, path in enumerate(sorted(source)):
        ds = pydicom.dcmread(path)
        keep = {"SpecificCharacterSet", "TransferSyntaxUID", "SOPClassUID", "ImageType"}
        keep |= {"Modality", "PhotometricInterpretation", "RescaleType"}
        for element in ds:
            if element.VR in TEXTS and element.keyword not in keep:
                element.value = VALUES.get(element.VR, "CANARY")
        ds.PatientComments, ds.ReferringPhysicianName = CANARY, "CANARY^Doctor"
        ds.InstitutionName, ds.StudyTime, ds.PatientAge = CANARY, "060906", "066Y"
        item = Dataset()
        item.PatientName = "CANARY^Nested"
        ds.RequestAttributesSequence = [item]
        ds[0x00181150] = raw(0x00181150, "IS", "CANARY")  # Exposure Time
        ds.OtherStudyNumbers = 19660606
        ds.file_meta.ImplementationVersionName = "CANARY"
        ds.file_meta.SourceApplicationEntityTitle = "CANARY"
        ds.add_new(0x00091010, "LO", CANARY)
        ds.add_new(0x00090010, "LO", "CANARY MAKER")
        ds.preamble = b"CANARY preamble".ljust(128)
        ds.save_as(folder / f"CANARY_{number}.dcm")
    return folder


def test_copy_keeps_the_volume_and_its_geometry(phantom_folder, tmp_path):
    files = [path for path in phantom_folder.rglob("*") if path.is_file()]
    copy_without_identity(files, tmp_path / "copy")
    before, after = load_series(phantom_folder), load_series(tmp_path / "copy")
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_allclose(after.affine, before.affine)


def test_copy_stands_in_for_missing_uids(phantom_folder, tmp_path):
    files = [path for path in phantom_folder.rglob("*") if path.is_file()][:3]
    for path, edit in zip(files, ("lost", "empty", "own"), strict=True):
        ds = pydicom.dcmread(path)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ""
        ds.SOPClassUID = "1.2.3.666" if edit == "own" else ""
        if edit == "lost":
            del ds.SOPInstanceUID, ds.SOPClassUID
        ds.save_as(tmp_path / path.name, enforce_file_format=False)
    copy_without_identity(list(tmp_path.iterdir()), tmp_path / "copy")
    copies = [pydicom.dcmread(path) for path in (tmp_path / "copy").iterdir()]
    assert {ds.SOPClassUID for ds in copies} == {pydicom.uid.CTImageStorage}
    assert len({ds.SOPInstanceUID for ds in copies}) == 3


def test_copy_holds_no_canary(phantom_folder, tmp_path):
    files = [path for path in phantom_folder.rglob("*") if path.is_file()][:3]
    marked = mark(tmp_path / "CANARY", files)
    copy_without_identity(list(marked.iterdir()), tmp_path / "copy")
    copies = sorted((tmp_path / "copy").iterdir())
    assert [path.name for path in copies] == ["0001.dcm", "0002.dcm", "0003.dcm"]
    for path in copies:
        data = path.read_bytes()
        for canary in (b"CANARY", b"19660606", b"060906", b"066Y", b"=1+1"):
            assert canary not in data


def test_copy_empties_every_text_of_the_dictionary(phantom_folder, tmp_path):
    path = next(path for path in phantom_folder.rglob("*") if path.is_file())
    ds, nested = pydicom.dcmread(path), Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in TEXTS | {"UI"} and tag >> 16 > 8 and tag not in ds:
            ds.add_new(tag, vr, VALUES.get(vr, "CANARY"))
            nested.add_new(tag, vr, VALUES.get(vr, "CANARY"))
        elif vr in NUMBERS and tag >> 16 == 0x0010:
            ds.add_new(tag, vr, 66)
    ds.ReferencedImageSequence = [nested]
    ds.save_as(tmp_path / "marked.dcm")
    copy_without_identity([tmp_path / "marked.dcm"], tmp_path / "copy")
    data = (tmp_path / "copy" / "0001.dcm").read_bytes()
    for value in ("CANARY", *VALUES.values()):
        assert value.encode() not in data, value
    assert "PatientWeight" not in pydicom.dcmread(tmp_path / "copy" / "0001.dcm")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_copy_keeps_numbers_and_no_text_in_their_place(phantom_folder, tmp_path):
    path = next(path for path in phantom_folder.rglob("*") if path.is_file())
    ds, nested = pydicom.dcmread(path), Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in ("IS", "DS") and tag >> 16 in GROUPS and tag not in ds:
            ds[tag] = nested[tag] = raw(tag, vr, "7\\CANARY" if tag % 2 else "CANARY")
    ds.OtherStudyNumbers, ds.ReportNumber = 19660606, 19660606
    ds.XRayTubeCurrent, ds.RelatedSeriesSequence = 123, [nested]
    ds.SynchronizationFrameOfReferenceUID = "1.2.840.10008.19660606"  # no such UID
    ds.save_as(tmp_path / "marked.dcm")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy_without_identity([tmp_path / "marked.dcm"], tmp_path / "copy")
    assert not caught  # pydicom's warnings quote values
    data = (tmp_path / "copy" / "0001.dcm").read_bytes()
    assert b"CANARY" not in data
    assert b"19660606" not in data
    assert pydicom.dcmread(tmp_path / "copy" / "0001.dcm").XRayTubeCurrent == 123


def test_same_uid_gets_same_new_uid(phantom_folder, tmp_path):
    files = [path for path in phantom_folder.rglob("*") if path.is_file()][:2]
    copy_without_identity(files, tmp_path / "copy")
    old = pydicom.dcmread(files[0])
    one, two = (pydicom.dcmread(path) for path in sorted((tmp_path / "copy").iterdir()))
    assert one.SeriesInstanceUID == two.SeriesInstanceUID != old.SeriesInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
    assert one.SOPClassUID == old.SOPClassUID


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two notebooks that ran: one with a cover, one in which steps fail."""
    folder = tmp_path_factory.mktemp("notebooks")
    png = base64.b64encode(b"this run's picture").decode()
    show = f"display({{'image/png': '{png}'}}, raw=True)"
    works = notebook(
        ("markdown", "# 00 · Start here"),
        ("code", "import os, sys\nprint(os.environ['QUEST_SCAN'], sys.executable)"),
        ("code", show, "cover"),
        ("code", "open('/home/anna smith/CANARY')", "raises-exception"),
    )
    fails = notebook(
        ("markdown", "# 01 · Fail"),
        ("code", "size = 1 / 0"),
        ("code", "print(size)"),
        ("code", "print('goes on')"),
        ("code", "import os\nos._exit(1)"),
        ("code", "print('never')"),
    )
    nbformat.write(works, folder / "00_start_here.ipynb")
    nbformat.write(fails, folder / "01_fail.ipynb")
    scan = folder / "scan"
    return run_notebooks(sorted(folder.glob("*.ipynb")), folder, scan)


def test_a_failing_step_is_counted_and_the_rest_goes_on(runs):
    works, fails = runs
    assert (works["cells"], works["failed"], works["title"]) == (
        3,
        0,
        "00 · Start here",
    )
    assert (fails["cells"], fails["failed"]) == (5, 4)
    assert base64.b64decode(works["cover"]) == b"this run's picture"


def test_pages_explain_failures_and_hide_paths(runs, tmp_path):
    write_pages(runs, tmp_path / "pages", patient=False)
    works, fails = (path.read_text() for path in sorted((tmp_path / "pages").iterdir()))
    assert "[path] [path]" in works
    assert "No such file or directory: " in works
    assert "smith/" not in works.split("</code>")[-1].split("<pre>")[-1]
    assert "This step does not work on this scan. ZeroDivisionError" in fails
    assert "needs an earlier one that did not work" in fails
    assert "goes on" in fails
    assert "the kernel stopped" in fails
    assert "This step was not reached" in fails
    assert "4 of 5 steps did not work" in fails
    for page in (works, fails):
        assert "ANOTHER PATIENT" not in page
        assert "Traceback" not in page


def test_patient_prose_is_marked_on_another_scan_only():
    for patient, marks in ((True, 0), (False, 1)):
        made = notebook(("markdown", "12 mm", "patient"), ("markdown", "general"))
        clean(made, {}, patient=patient)
        marked = [cell for cell in made.cells if "not your scan" in cell.source]
        assert len(marked) == marks
        assert all(cell.source.endswith("12 mm") for cell in marked)


def test_pictures_come_from_this_run_or_not_at_all():
    text = (
        "![one](images/00_a.png) ![two](images/01_b.png) [![badge](https://x.org/b.svg)]"
        "(https://x.org) [next](01_b.ipynb#part) [other](05_z.ipynb) [file](../DATA.md)"
    )
    made = notebook(("markdown", text))
    clean(made, {"00_a": "cGljdHVyZQ==\n", "01_b": None}, patient=True)
    assert made.cells[0].source == (
        "![one](attachment:00_a.png) *two* [*badge*](https://x.org) "
        "[next](01_b.html#part) other file"
    )
    assert made.cells[0].attachments == {"00_a.png": {"image/png": "cGljdHVyZQ=="}}


def test_formulas_are_drawn_without_a_script():
    made = notebook(("markdown", "so $y = \\frac{1}{2}$, `$HOME` and $$x^2$$"))
    made.metadata["widgets"] = {"state": "large"}
    clean(made, {}, patient=True)
    source = made.cells[0].source
    assert (
        source.count('<img alt="') == source.count("data:image/png;base64,iVBOR") == 2
    )
    assert 'alt="y = \\frac{1}{2}"' in source
    assert "`$HOME`" in source
    assert not made.metadata
