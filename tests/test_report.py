"""The report of a scan: complete, offline, and without a trace of who it is."""

import gzip
import hashlib
import io
import json
import re
import warnings
import zipfile
from html.parser import HTMLParser

import nbformat
import numpy as np
import pydicom
import pytest
from PIL import Image
from test_lesson import CANARY, VALUES, mark, notebook

from questlib import load_series, segment_lungs
from questlib.cli import main
from questlib.data import PATIENT_UID, REGISTRY
from questlib.report import write_mask, write_report

SCRATCH = (
    ("markdown", "# 00 · Start here\n\n[next](01_next.ipynb) ![all](images/00_a.png)"),
    ("markdown", "The tumour measures 12 mm.", "patient"),
    ("code", "import os, pydicom\nfrom pathlib import Path\nimport questlib"),
    (
        "code",
        "scan = Path(os.environ['QUEST_SCAN'])\nquestlib.load_series(scan)",
    ),
    (
        "code",
        "path = sorted(scan.iterdir())[0]\nds = pydicom.dcmread(path)\nprint(path, ds)",
    ),
    ("code", "print(path.read_bytes())"),
    ("code", "import matplotlib.pyplot as plt\nplt.imshow(ds.pixel_array)", "cover"),
    ("code", "raise ValueError(f'{path} of {ds.PatientName}')"),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    nbformat.write(notebook(*SCRATCH), folder / "00_a.ipynb")
    nbformat.write(
        notebook(("markdown", "# 01 · Next"), ("code", "1")), folder / "01_next.ipynb"
    )
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory, phantom_folder):
    """A scan with canaries in every header and name, among clutter."""
    files = [path for path in phantom_folder.rglob("*") if path.is_file()]
    folder = mark(tmp_path_factory.mktemp("scan") / "CANARY_annasmith", files)
    (folder / "CANARY.txt").write_text("CANARY")
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory, marked, scratch):
    out = tmp_path_factory.mktemp("out") / "report"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = write_report(marked, out, notebooks=scratch)
    return out, summary


def read_everything(folder):
    """All bytes of all files, compressed ones also opened; picture metadata too."""
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        yield path.name, path.name.encode() + data
        if path.name.endswith(".gz"):
            yield path.name, gzip.decompress(data)
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                yield path.name, b"".join(map(file.read, file.namelist()))
        elif path.suffix == ".png":
            yield path.name, str(Image.open(io.BytesIO(data)).info).encode()


def find_uids(folder):
    """The UIDs of a scan that are its own."""
    ds = pydicom.dcmread(next(folder.glob("*.dcm")))
    kinds = "StudyInstance", "SeriesInstance", "SOPInstance", "FrameOfReference"
    return {ds[f"{kind}UID"].value for kind in kinds}


def test_report_holds_no_identifier(report, marked):
    out, _ = report
    canaries = {CANARY, "CANARY", "annasmith", "=1+1", str(marked.parent), str(out)}
    canaries |= set(VALUES.values()) - {"060906"} | find_uids(marked)
    found = [
        (name, canary)
        for name, data in read_everything(out)
        for canary in canaries
        if canary.encode() in data and name != "plotly.min.js"
    ]
    assert not found


def test_report_names_no_place_of_this_machine(report):
    for path in [report[0] / "index.html", *(report[0] / "notebooks").glob("*.html")]:
        assert not re.search(r"(/tmp/|/home/|/root/|site-packages)", path.read_text())


class Links(HTMLParser):
    """Collects what a page loads, and what it links to."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.linked = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.linked.append(attributes["href"])
        elif address := attributes.get("src") or attributes.get("href"):
            self.loaded.append(address)


def test_report_opens_offline_and_its_links_lead_somewhere(report):
    out, _ = report
    for path in [out / "index.html", *(out / "notebooks").glob("*.html")]:
        links = Links(path.read_text())
        for address in links.loaded:
            assert address.startswith("data:") or (path.parent / address).is_file()
        local = [link for link in links.linked if not link.startswith(("https:", "#"))]
        assert local
        assert all((path.parent / link).is_file() for link in local)


def test_report_says_whose_scan_and_what_failed(report):
    out, _ = report
    index = (out / "index.html").read_text()
    page = (out / "notebooks" / "00_a.html").read_text()
    assert "not for diagnosis" in index
    assert "Lung_Dx" not in index
    assert "1 of 6 steps did not work on this scan" in index
    assert "This step does not work on this scan. ValueError" in page
    assert page.index("not your scan") < page.index("The tumour measures")
    assert "ANOTHER PATIENT" not in page


def test_summary_is_what_the_mask_says(report, marked):
    out, summary = report
    assert json.loads((out / "summary.json").read_text()) == summary
    volume = load_series(marked)
    lungs = segment_lungs(volume)
    assert list(summary) == [
        "planes", "shape", "spacing_mm", "volumes_ml", "findings", "seconds"
    ]  # fmt: skip
    assert summary["planes"] == summary["shape"][0] == 60
    assert summary["spacing_mm"] == [5.0, 2.8, 2.8]
    voxel_ml = 5.0 * 2.8 * 2.8 / 1000
    right = np.count_nonzero(lungs.labels == 1) * voxel_ml
    assert summary["volumes_ml"]["right"] == pytest.approx(right, abs=0.05)
    assert summary["seconds"]["total"] >= summary["seconds"]["00_a"]
    with np.load(out / "lungs.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["array"], lungs.labels)
        np.testing.assert_allclose(saved["spacing"], volume.spacing)
        np.testing.assert_allclose(saved["origin"], volume.origin)
        np.testing.assert_allclose(saved["direction"], volume.direction)


@pytest.mark.parametrize("lost", [0, 1])
def test_public_patient_is_attributed_and_marked_unless_whole(
    marked, tmp_path, monkeypatch, lost
):
    files = sorted(path for path in marked.iterdir() if path.suffix == ".dcm")
    public = tmp_path / "public"
    public.mkdir()
    sums = {}
    for path in files:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = PATIENT_UID
        ds.save_as(public / path.name)
        sums[ds.SOPInstanceUID] = hashlib.sha256(ds.PixelData).hexdigest()
    monkeypatch.setitem(REGISTRY["patient"], "pixels", sums)
    first = min(files, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    for path in [first][:lost]:
        (public / path.name).unlink()
    pages = tmp_path / "pages"
    pages.mkdir()
    nbformat.write(
        notebook(("markdown", "12 mm", "patient"), ("code", "1")), pages / "00_a.ipynb"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_report(public, tmp_path / "out", notebooks=pages)
    index = (tmp_path / "out" / "index.html").read_text()
    assert "10.7937/TCIA.2020.NNC2-0461" in index
    assert "CC BY 4.0" in index
    page = (tmp_path / "out" / "notebooks" / "00_a.html").read_text()
    assert ("not your scan" in page) == ("Your scan" in index) == bool(lost)
    assert "CANARY" not in index + page  # a public UID is no reason to trust a header


def test_report_without_notebooks_is_refused(phantom_folder, tmp_path):
    with pytest.raises(ValueError, match="questlib mask"):
        write_report(phantom_folder, tmp_path / "out", notebooks=tmp_path)
    assert not (tmp_path / "out").exists()


def test_mask_replaces_only_when_asked(phantom_folder, tmp_path):
    write_mask(phantom_folder, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "lungs.nii.gz", "lungs.npz", "lungs.seg.dcm", "preview.png", "summary.json"
    }  # fmt: skip
    (tmp_path / "out" / "summary.json").write_text("old")
    with pytest.raises(ValueError, match="--overwrite"):
        write_mask(phantom_folder, tmp_path / "out")
    write_mask(phantom_folder, tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["planes"] == 60
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_mask_holds_no_identifier(marked, tmp_path, capsys):
    assert main(["mask", str(marked), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    canaries = {"CANARY", "19660606", "=1+1", str(marked)} | find_uids(marked)
    everything = [*read_everything(tmp_path / "out"), ("console", (out + err).encode())]
    assert len(everything) == 9  # 5 files, 3 of them opened
    assert not [
        (name, canary)
        for name, data in everything
        for canary in canaries
        if canary.encode() in data
    ]


def test_mask_never_writes_into_the_scan(phantom_folder):
    before = sorted(phantom_folder.rglob("*"))
    for out in (phantom_folder, phantom_folder / "masks"):
        with pytest.raises(ValueError, match="another place"):
            write_mask(phantom_folder, out)
    assert sorted(phantom_folder.rglob("*")) == before
