"""Find the series of a folder, and put a series' planes in order (notebook 02)."""

import os
import stat
import warnings
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from questlib.header import (
    TERMS,
    NotDicomError,
    SeriesError,
    SeriesWarning,
    read_header,
)

__all__ = ["Series", "SeriesError", "SeriesWarning", "find_series"]

DICOMDIR = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NOT_SCANS = {"", "DOC", "KO", "OT", "PR", "REG", "RTDOSE", "RTIMAGE", "SC", "SEG", "SR"}
MAX_POSITION = 1e5  # mm; nobody is 100 m tall
SAME_POSITION = 0.02  # mm along the normal
SHARED_UID = "two patients or studies share one Series Instance UID (0020,000E)"
MIXED = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "ConvolutionKernel",
    "KVP",
)


@dataclass(frozen=True)
class Series:
    """One series of a folder, described without identifiers.

    Parameters
    ----------
    uid : str
        *Series Instance UID* (0020,000E); left out of the text form.
    modality : str
    planes : int
        Number of image planes; localizers, captures and reports are not counted.
    shape : None or (rows, columns)
    spacing : None or 3 floats
        mm along (plane, row, column); None where the planes do not form a volume.
    files : tuple of Path
        The files that hold the planes.
    headers, dropped : tuple of Header
        What the headers of the planes say; and of what else has the same UID.

    Built in notebook 02.
    """

    uid: str = field(repr=False)
    modality: str
    planes: int
    shape: tuple | None
    spacing: tuple | None
    files: tuple = field(repr=False)
    headers: tuple = field(repr=False, compare=False)
    dropped: tuple = field(repr=False, compare=False)

    def __str__(self):
        text = f"{self.modality or 'no modality'}, {self.planes} planes"
        if self.shape:
            text += " of {} x {}".format(*self.shape)
        if self.spacing:
            text += ", {:.3f} x {:.3f} x {:.3f} mm".format(*self.spacing)
        return text


class SeriesList(list):
    """A list of Series that knows what was left out.

    Attributes
    ----------
    skipped : list of (str, str)
        Base name and reason of each file that is in no series.
    suspects : list of (Path, str)
        Those of them that may be lost planes: empty, unreadable, cut off, damaged.
    """

    skipped: list
    suspects: list


def find_series(folder: str | os.PathLike) -> SeriesList:
    """List the DICOM series in a folder and its sub-folders.

    Parameters
    ----------
    folder : path
        Links to folders are not followed; only regular files are opened.

    Returns
    -------
    found : list of Series
        Largest first; ``found.skipped`` lists (base name, reason) of what is left out.

    Raises
    ------
    SeriesError
        If `folder` is not a folder, or cannot be listed.

    Notes
    -----
    A file is judged by its content, never by its name. Planes belong to one series when
    series, study and patient agree.

    References
    ----------
    DICOM PS3.10, 7.1 (File Meta Information); PS3.3, C.7.3.1 (General Series).

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     find_series(folder)
    []

    Built in notebook 02.
    """
    groups, suffixes, skipped = {}, set(), []
    for path in list_files(check_folder(folder)):
        try:
            headers = read_header(path)
        except SeriesError as error:
            skipped.append((path, error))
            continue
        if headers[0].text("MediaStorageSOPClassUID") != DICOMDIR:
            suffixes.add(path.suffix)
            groups.setdefault(group_key(headers[0]), []).extend(headers)
    found = SeriesList(describe_series(headers) for headers in groups.values())
    found.sort(key=lambda series: -series.planes)
    found.skipped = [(path.name, error.reason) for path, error in skipped]
    found.suspects = [
        (path, error.reason)
        for path, error in skipped
        if not isinstance(error, NotDicomError)
        or (path.suffix in suffixes and path.name[0] != "." and error.binary)
    ]
    return found


def check_folder(folder):
    """Return `folder` as a Path, or raise a SeriesError that says what it is."""
    if not isinstance(folder, str | os.PathLike):
        raise SeriesError(f"a folder is wanted, not {type(folder).__name__}")
    folder = Path(folder)
    try:
        is_file = stat.S_ISREG(folder.stat().st_mode)
        if not is_file:
            os.scandir(folder).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SeriesError(
            f"cannot be opened as a folder: {reason}; check the path", folder
        ) from None
    if is_file:
        packed = folder.suffix.lower() in (".zip", ".gz", ".7z", ".rar", ".tar")
        hint = "unpack it and give the folder" if packed else "give the scan's folder"
        raise SeriesError(f"is a file, not a folder; {hint}", folder)
    return folder


def list_files(folder):
    """Return the regular files below `folder`, in an order that is always the same."""
    files = []
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError:  # a link that leads nowhere
                regular = path.is_symlink()
            if regular:
                files.append(path)
    return sorted(files)


def group_key(header):
    """Return what the planes of one series of one patient have in common."""
    name = header.text("PatientName").upper().rstrip("^ ")
    keywords = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")
    return (*(header.text(keyword) for keyword in keywords), name)


def tell_kind(header):
    """Return "plane", "localizer", "capture" or "report"."""
    image_type = f"{header.text('ImageType')}\\{header.text('FrameType')}".upper()
    if not header.pixels:
        return "report"
    if "LOCALIZER" in image_type.split("\\"):
        return "localizer"
    placed = header.text("ImagePositionPatient") and header.text("RescaleSlope")
    if header.text("SOPClassUID").startswith(SECONDARY_CAPTURE) and not placed:
        return "capture"
    if "SCREEN SAVE" in image_type:
        return "capture"
    return "plane"


def describe_series(headers):
    """Return the Series that a group of headers forms."""
    kinds = [tell_kind(header) for header in headers]
    planes = tuple(h for h, kind in zip(headers, kinds, strict=True) if kind == "plane")
    rest = tuple(h for h, kind in zip(headers, kinds, strict=True) if kind != "plane")
    shape = spacing = None
    try:
        if planes:
            shape = planes[0].integer("Rows"), planes[0].integer("Columns")
            stack = sort_planes(planes)
            spacing = (check_spacing(stack), *stack.pixel_spacing)
    except SeriesError:
        pass  # listed all the same; load_series says what is wrong
    modality = headers[0].text("Modality")
    if modality and modality not in TERMS:
        modality = "unknown modality"
    return Series(
        uid=headers[0].text("SeriesInstanceUID"),
        modality=modality,
        planes=len(planes),
        shape=shape,
        spacing=spacing,
        files=tuple(dict.fromkeys(header.file for header in planes)),
        headers=planes,
        dropped=rest,
    )


def choose_series(found, series_uid=None):
    """Return the one series to load, or raise a SeriesError that lists them."""
    listing = "; ".join(f"[{number}] {one}" for number, one in enumerate(found))
    if series_uid is not None:
        chosen = [series for series in found if series.uid == str(series_uid)]
        if len(chosen) > 1:
            raise SeriesError(
                f"{SHARED_UID}: {listing}; put them into separate folders"
            )
        if not chosen:
            raise SeriesError(f"no series has this UID; found: {listing or 'none'}")
        return chosen[0]
    scans = [s for s in found if s.planes and s.modality not in NOT_SCANS]
    if len(scans) > len({series.uid for series in scans}):
        raise SeriesError(f"{SHARED_UID}: {listing}; put them into separate folders")
    if len(scans) > 1:
        raise SeriesError(
            f"{len(scans)} image series in this folder: {listing}; choose one: "
            "load_series(folder, series_uid=find_series(folder)[0].uid)"
        )
    if not scans:
        raise SeriesError(f"no CT series in this folder; found: {explain(found)}")
    return scans[0]


def explain(found):
    """Return in a few words what a folder without a scan holds."""
    parts = [str(series) for series in found]
    for _, reason in found.skipped:
        parts.append(reason)
    counts = {part: parts.count(part) for part in parts[:200]}
    shown = [f"{count} x {part}" for part, count in counts.items()][:4]
    return "; ".join(shown) or "no file at all"


@dataclass(frozen=True)
class Stack:
    """Planes in order along their common normal.

    Parameters
    ----------
    planes : list of Header
    steps : (n,) ndarray of float
        Projection of each plane's position on the normal, in mm.
    shifts : (n, 2) ndarray of float
        Where each plane starts beside the first, in mm along (row, column) axis.
    pixel_spacing : 2 floats
        mm between rows, between columns.
    origin : 3 floats
        LPS position in mm of the first plane's first voxel.
    direction : (3, 3) ndarray of float
        Columns are the plane, row and column axes in LPS.
    """

    planes: list
    steps: np.ndarray
    shifts: np.ndarray
    pixel_spacing: tuple
    origin: tuple
    direction: np.ndarray

    def take(self, indices):
        """Return the stack of some of the planes; the first one must be among them."""
        planes = [self.planes[index] for index in indices]
        steps, shifts = self.steps[indices], self.shifts[indices]
        return replace(self, planes=planes, steps=steps, shifts=shifts)


def sort_planes(headers):
    """Check that planes fit together and sort them along their normal.

    Parameters
    ----------
    headers : sequence of Header

    Returns
    -------
    stack : Stack
        By increasing projection of *Image Position (Patient)* on the normal, which is
        the cross product of the row and column cosines.

    Raises
    ------
    SeriesError
        If a plane is not CT, has no valid place, or does not match the others.

    References
    ----------
    DICOM PS3.3, C.7.6.2.1.1 (Image Position and Orientation), C.7.4.1 (Frame of
    Reference), 10.7.1.3 (Pixel Spacing).

    Built in notebook 02.
    """
    for header in headers:
        check_plane(header)
    for keyword in ("Rows", "Columns"):
        check_same(headers, keyword, "two reconstructions share one series")
    check_same(
        headers,
        "FrameOfReferenceUID",
        "the patient was placed anew in between; load the parts from separate folders",
    )
    orientations = np.array([read_orientation(header) for header in headers])
    positions = np.array([read_position(header) for header in headers])
    spacings = np.array([read_pixel_spacing(header) for header in headers])
    check_close(headers, "ImageOrientationPatient", orientations, 1e-3)
    check_close(headers, "PixelSpacing", spacings, 1e-4 * np.median(spacings))
    middle = np.median(orientations, axis=0)
    column_axis = middle[:3] / np.linalg.norm(middle[:3])
    row_axis = middle[3:] - (middle[3:] @ column_axis) * column_axis
    row_axis /= np.linalg.norm(row_axis)
    direction = np.column_stack(
        [np.cross(column_axis, row_axis), row_axis, column_axis]
    )
    places = positions @ direction
    order = np.argsort(places[:, 0], kind="stable")
    return Stack(
        planes=[headers[index] for index in order],
        steps=places[order, 0],
        shifts=places[order, 1:] - places[order[0], 1:],
        pixel_spacing=tuple(np.median(spacings, axis=0).tolist()),
        origin=tuple(positions[order[0]].tolist()),
        direction=direction,
    )


def check_close(headers, keyword, values, limit):
    """Raise a SeriesError when a plane's numbers differ from the middle ones."""
    off = np.abs(values - np.median(values, axis=0)).max(axis=1) > limit
    if off.any():
        other = headers[int((~off).argmax())].show(keyword)
        raise headers[int(off.argmax())].error(
            keyword,
            f"other planes of the series say {other}: two scans, or a localizer, share "
            "one series; move the odd files out of the folder",
        )


def check_plane(header):
    """Raise a SeriesError unless one plane is a single gray CT image."""
    if header.text("Modality") != "CT":
        raise header.error(
            "Modality", "its numbers are not Hounsfield units; questlib reads CT only"
        )
    if header.integer("SamplesPerPixel", 1) != 1:
        raise header.error(
            "SamplesPerPixel", "a color picture, not CT numbers; move the file away"
        )
    for keyword in ("Rows", "Columns"):
        if not header.integer(keyword):
            raise header.error(keyword, "the image is empty; export it again")
    frames = header.text("NumberOfFrames")
    if not header.frames and frames.strip("0") not in ("", "1"):
        raise header.error(
            "NumberOfFrames", "a multi-frame file without a position for each frame"
        )


def check_same(headers, keyword, why):
    """Raise a SeriesError when an attribute differs between planes."""
    values = [header.values.get(keyword, b"") for header in headers]
    common = max(set(values), key=values.count)
    for header, value in zip(headers, values, strict=True):
        if value != common:
            raise header.error(keyword, f"other planes have another one: {why}")


def read_orientation(header):
    """Return the row and column cosines (6 floats) of a plane, checked."""
    keyword = "ImageOrientationPatient"
    cosines = np.array(header.numbers(keyword, 6)).reshape(2, 3)
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > 2e-3:
        raise header.error(keyword, "it must be two orthogonal unit vectors")
    return cosines.ravel()


def read_position(header):
    """Return the LPS position in mm of a plane's first pixel, checked."""
    position = header.numbers("ImagePositionPatient", 3)
    if max(map(abs, position)) > MAX_POSITION:
        raise header.error("ImagePositionPatient", "it must lie within 100 m")
    return position


def read_pixel_spacing(header):
    """Return the distances in mm between rows and between columns, checked."""
    spacing = header.numbers("PixelSpacing", 2)
    if not 0 < min(spacing) <= max(spacing) < 100:
        raise header.error("PixelSpacing", "both must be between 0 and 100 mm")
    return spacing


def check_spacing(stack):
    """Return the spacing along the normal in mm; refuse gaps, tilt and shifts.

    Parameters
    ----------
    stack : Stack
        Two planes or more.

    Raises
    ------
    SeriesError
        If gaps differ from their median by more than 2 % and 0.02 mm, or if the planes
        do not stand behind one another.
    """
    gaps = np.diff(stack.steps)
    real = gaps[gaps > SAME_POSITION]
    if not real.size:
        raise SeriesError("all planes lie at one position", stack.planes[0].file)
    check_tilt(stack)
    for typical in (float(real.mean()), float(np.median(real))):
        off = np.abs(gaps - typical) > max(0.02 * typical, 0.02)
        off &= gaps > SAME_POSITION
        if not off.any():
            return float(real.mean())
    index = int(off.argmax())
    missing = round(gaps[index] / typical) - 1
    whole = missing > 0 and abs(gaps[index] / typical - missing - 1) < 0.05
    cause = f"{missing} missing" if whole else "two scans in one series, or lost planes"
    raise SeriesError(
        f"planes are not evenly spaced: {gaps[index]:.3f} mm to the next plane, "
        f"elsewhere {typical:.3f} mm (between planes {index + 1} and {index + 2} of "
        f"{len(stack.steps)}; odd gaps: {off.sum()}); likely cause: {cause}; "
        "export the series again, or pass regularize=True to interpolate",
        stack.planes[index].file,
    )


def check_tilt(stack):
    """Raise a SeriesError when planes do not stand behind one another."""
    steps = stack.steps - stack.steps[0]
    aside = np.linalg.norm(stack.shifts, axis=1)
    if aside.max() <= max(0.5 * min(stack.pixel_spacing), 1e-3 * steps[-1]):
        return
    slope = steps @ stack.shifts / (steps @ steps)
    rest = np.abs(stack.shifts - np.outer(steps, slope)).max()
    if rest < 0.1 * aside.max():
        angle = np.degrees(np.arctan(np.linalg.norm(slope)))
        raise SeriesError(
            f"the stack leans {angle:.1f} degrees against its planes' normal "
            f"({aside.max():.1f} mm over {steps[-1]:.1f} mm): gantry tilt; "
            "pass regularize=True to straighten it",
            stack.planes[0].file,
        )
    index = int(aside.argmax())
    raise SeriesError(
        f"the plane lies {aside[index]:.1f} mm beside the first one: another field of "
        "view, or two scans; pass regularize=True to resample by position",
        stack.planes[index].file,
    )


def check_mixture(stack):
    """Raise a SeriesError when planes of two acquisitions alternate along the stack."""
    for keyword in MIXED:
        values = [h.text(keyword) for h in stack.planes if h.text(keyword)]
        changes = [
            index for index, pair in enumerate(pairwise(values)) if len(set(pair)) > 1
        ]
        if len(changes) >= max(len(set(values)), 1):
            raise stack.planes[changes[0] + 1].error(
                keyword,
                "other planes have another one, and they alternate: two scans share "
                "the series; move one of them into a folder of its own",
            )


def warn(message, file=None):
    """Issue a SeriesWarning on behalf of whoever called questlib."""
    warnings.warn(SeriesWarning(message, file), stacklevel=4)
