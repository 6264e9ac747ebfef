"""Masks for the next program: NIfTI and DICOM SEG (built in notebook 10)."""

import gzip
import os
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import RAISE, disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.uid import CTImageStorage, UID_dictionary, generate_uid
from pydicom.valuerep import validate_value
from scipy import ndimage

from questlib import __version__
from questlib.series import (
    SeriesError,
    choose_series,
    find_series,
    read_position,
    sort_planes,
)

# Segment, its SNOMED CT code and what the code means, in the order of the labels.
SEGMENTS = (
    ("Right lung", "3341006", "Right lung"),
    ("Left lung", "44029006", "Left lung"),
    ("Airway", "110726009", "Trachea and bronchus"),
)
# What a SEG takes over from its source: the geometry, and the identity.
_GEOMETRY = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
_UIDS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"),
    "FrameOfReferenceUID",
)
_IDENTITY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


@contextmanager
def _new_file(path, overwrite):
    """Give a temporary neighbor that takes the place of `path` when all went well."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path.name} exists: overwrite=True would replace it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def nifti_affine(rows: int, affine: np.ndarray) -> np.ndarray:
    """Turn our affine into that of a NIfTI file with the same voxels.

    Parameters
    ----------
    rows : int
        Number of rows of a plane: NIfTI counts them from the last one.
    affine : (4, 4) ndarray
        From (plane, row, column, 1) to LPS mm, as `Volume.affine`.

    Returns
    -------
    affine : (4, 4) ndarray
        From (i, j, k, 1) to RAS mm: i is the column, j counts the rows backwards and
        k is the plane. Patient left and posterior change sign.

    Examples
    --------
    >>> nifti_affine(10, np.eye(4)) @ (2, 9, 1, 1)  # column 2, row 0, plane 1
    array([-1.,  0.,  2.,  1.])

    Built in notebook 10.
    """
    to_index = np.array(
        [[0, 0, 1, 0], [0, -1, 0, rows - 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    )
    return np.diag([-1, -1, 1, 1]) @ affine @ to_index


def save_nifti(path, array: np.ndarray, like, *, overwrite: bool = False) -> None:
    """Write an array as NIfTI, so that each voxel keeps its place in the patient.

    Parameters
    ----------
    path : path
        Ends in ``.nii`` or ``.nii.gz``.
    array : (plane, row, column) ndarray
        HU, labels or a mask; bool is stored as uint8, float64 as float32.
    like : Volume or LungMask
        Gives the geometry.
    overwrite : bool
        Replace a file that exists.

    Raises
    ------
    ValueError
        If `array` has another shape than `like`, or the path another ending.
    FileExistsError
        If the file exists and `overwrite` is not set.

    Notes
    -----
    Index order and direction are those of dcm2niix: (column, row from the last,
    plane). The file holds voxels and geometry, no name, date or text; equal input
    gives equal bytes. A failed write leaves nothing behind.

    References
    ----------
    NIfTI-1.1 data format, methods 2 (qform) and 3 (sform); both are written, with
    code 1 (scanner coordinates).

    Built in notebook 10.
    """
    import nibabel

    array = np.asarray(array)
    shape = like.labels.shape if hasattr(like, "labels") else like.shape
    if array.shape != shape:
        raise ValueError(f"the array is {array.shape}, but its geometry is for {shape}")
    name = Path(path).name
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{name} must end in .nii or .nii.gz")
    narrow = {"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        narrow = np.result_type(*map(np.min_scalar_type, (array.min(), array.max())))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = like.direction * like.spacing, like.origin
    affine = nifti_affine(shape[1], affine)
    voxels = array[:, ::-1].T.astype(narrow, copy=False)
    image = nibabel.Nifti1Image(voxels, affine, dtype=narrow)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with _new_file(path, overwrite) as part, part.open("wb") as file:
        if name.endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def save_dicom_seg(
    path,
    lung_mask,
    source,
    *,
    deidentify: bool = False,
    series_uid: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a lung mask as a DICOM Segmentation of the scan it was made from.

    **The file carries the patient's identity**: name, ID, birth date, study and the
    references to each plane belong to the format. Share it like the scan itself, or
    set `deidentify`.

    Parameters
    ----------
    path : path
        Usually ends in ``.dcm``.
    lung_mask : LungMask
        On the grid of the scan or any other, for example resampled to 1 mm.
    source : path
        Folder with the series that the mask belongs to.
    deidentify : bool
        Write a dummy name and ID, no dates and new UIDs everywhere. The references
        then lead to no file, and what is left to tie mask and scan is geometry.
    series_uid : str, optional
        Which series, if the folder has several.
    overwrite : bool
        Replace a file that exists.

    Raises
    ------
    ValueError
        If most of the mask lies outside the source: they do not belong together.
    SeriesError
        If the source has no series that can be stacked.
    FileExistsError
        If the file exists and `overwrite` is not set.

    Notes
    -----
    A mask on another grid is brought back by linear interpolation of each label's
    share; the largest share wins. One frame a segment and plane, empty ones left out.

    References
    ----------
    DICOM PS3.3, A.51 (Segmentation IOD), C.8.20; PS3.15, E (de-identification).

    Built in notebook 10.
    """
    from highdicom.seg import Segmentation

    # the warnings of pydicom and highdicom would quote the patient's name
    with (
        _new_file(path, overwrite) as part,
        disable_value_validation(),
        warnings.catch_warnings(action="ignore"),
    ):
        series = choose_series(find_series(source), series_uid)
        stack = sort_planes(series.headers)
        single = np.append(True, np.diff(stack.steps) > 1e-3)  # no plane twice
        stack = stack.take(np.flatnonzero(single))
        labels = labels_on_planes(lung_mask, stack)
        seg = Segmentation(
            _describe_planes(stack, deidentify),
            labels,
            segmentation_type="BINARY",
            segment_descriptions=_describe_segments(),
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="DICOM Quest",
            manufacturer_model_name="questlib",
            software_versions=__version__,
            device_serial_number="none",
            content_label="LUNGS",
            content_description="Lungs and airway, computed, for education",
            series_description="Lungs",
        )
        if deidentify:
            _mark_deidentified(seg)
        seg.save_as(part)


def labels_on_planes(lung_mask, stack) -> np.ndarray:
    """Bring the labels of a mask to the voxels of a series.

    Parameters
    ----------
    lung_mask : LungMask
    stack : Stack
        From `questlib.series.sort_planes`; unevenly spaced planes are welcome.

    Returns
    -------
    labels : (plane, row, column) ndarray of uint8
        1 right lung, 2 left lung, 3 airway, in the order of the planes.

    Raises
    ------
    ValueError
        If most of the mask lies outside the planes.

    Built in notebook 10.
    """
    labels = lung_mask.labels.astype(np.uint8)
    labels[lung_mask.airway & (labels == 0)] = 3
    rows, columns = (stack.planes[0].integer(name) for name in ("Rows", "Columns"))
    to_index = np.linalg.inv(lung_mask.direction * lung_mask.spacing)
    starts = np.array([read_position(plane) for plane in stack.planes])
    starts = (starts - lung_mask.origin) @ to_index.T  # in voxels of the mask
    row_step, column_step = (to_index @ stack.direction[:, 1:]).T * np.reshape(
        stack.pixel_spacing, (2, 1)
    )
    if labels.shape == (len(starts), rows, columns):
        drift = starts - np.arange(len(starts))[:, None] * [1, 0, 0]
        turn = rows * (row_step - [0, 1, 0]), columns * (column_step - [0, 0, 1])
        if max(abs(drift).max(), np.abs(turn).max()) < 0.02:  # voxels: the same grid
            return labels
    found = np.zeros((len(starts), rows, columns), np.uint8)
    if not labels.any():
        return found
    box = ndimage.find_objects((labels > 0).view(np.uint8))[0]
    starts -= [side.start for side in box]
    parts = [labels[box] == label for label in (1, 2, 3)]
    grid = np.multiply.outer(row_step, np.arange(rows))[:, :, None]
    grid = grid + np.multiply.outer(column_step, np.arange(columns))[:, None]

    def fill(index):
        places = grid + starts[index, :, None, None]
        # beyond the outermost centers the share falls to 1/2 at the voxel's edge
        shares = np.stack(
            [
                ndimage.map_coordinates(
                    part, places, np.float32, order=1, mode="grid-constant"
                )
                for part in parts
            ]
        )
        largest = shares.argmax(axis=0)
        outside = 1 - shares.sum(axis=0)
        found[index] = np.where(shares.max(axis=0) >= outside, largest + 1, 0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(starts))))
    _check_belongs(labels, lung_mask, found, stack)
    return found


def _check_belongs(labels, lung_mask, found, stack):
    """Refuse a mask of which more than a fifth is lost on the planes of the source."""
    widths = np.gradient(stack.steps) if len(found) > 1 else lung_mask.spacing[0]
    area = np.prod(stack.pixel_spacing)
    here = (np.count_nonzero(found, axis=(1, 2)) * widths).sum() * area / 1000
    all_of_it = np.count_nonzero(labels) * np.prod(lung_mask.spacing) / 1000
    if all_of_it - here > max(1, all_of_it / 5):
        raise ValueError(
            f"the mask holds {all_of_it:.0f} mL, of which {here:.0f} mL lie on the "
            "planes of the source: is it the scan that the mask was made from?"
        )


def _describe_planes(stack, deidentify):
    """Return one dataset a plane with what highdicom reads from its source."""
    fresh, planes = defaultdict(generate_uid), []
    tags = [*_UIDS, *_IDENTITY, "SOPClassUID", "Modality"]
    for header in stack.planes:
        ds = pydicom.dcmread(header.file, specific_tags=tags, force=True)
        plane = pydicom.Dataset()
        plane.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
        for keyword in tags:
            setattr(plane, keyword, _keep_valid(keyword, str(ds.get(keyword) or "")))
        for keyword in _GEOMETRY:
            setattr(plane, keyword, header.text(keyword).split("\\"))
        plane.SliceThickness = None
        with suppress(SeriesError):
            plane.SliceThickness = header.numbers("SliceThickness", 1)[0]
        plane.Rows, plane.Columns = header.integer("Rows"), header.integer("Columns")
        if deidentify:
            for keyword in _IDENTITY:
                setattr(plane, keyword, "")
            plane.PatientName, plane.PatientID = "ANONYMOUS^", "ANONYMOUS"
        if plane.SOPClassUID not in UID_dictionary:  # private, or missing
            plane.SOPClassUID = CTImageStorage
        for keyword in _UIDS:
            if deidentify or not plane[keyword].value:
                setattr(plane, keyword, fresh[plane[keyword].value])
        planes.append(plane)
    return planes


def _keep_valid(keyword, text):
    """Return the text, or nothing where highdicom would refuse it."""
    try:
        validate_value(dictionary_VR(keyword), text, RAISE)
    except ValueError:
        return ""
    return "" if keyword == "PatientSex" and text not in ("M", "F", "O") else text


def _describe_segments():
    """Return highdicom's description of the three segments."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    how = AlgorithmIdentificationSequence(
        "questlib.segment_lungs", codes.cid7162.MorphologicalOperations, __version__
    )
    return [
        SegmentDescription(
            number,
            label,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=Code(code, "SCT", meaning),
            algorithm_type="AUTOMATIC",
            algorithm_identification=how,
        )
        for number, (label, code, meaning) in enumerate(SEGMENTS, start=1)
    ]


def _mark_deidentified(seg):
    """Say how the identity was removed, and take out when the file was made."""
    from pydicom.sr.codedict import codes

    for element in seg:  # the dates that highdicom adds; two of them must have a value
        if element.VR in ("DA", "TM") and element.value:
            element.value = "19000101" if element.VR == "DA" else "000000"
    seg.PatientIdentityRemoved = "YES"
    seg.LongitudinalTemporalInformationModified = "REMOVED"
    method, code = (
        codes.cid7050.BasicApplicationConfidentialityProfile,
        pydicom.Dataset(),
    )
    code.CodeValue, code.CodeMeaning = method.value, method.meaning
    code.CodingSchemeDesignator = method.scheme_designator
    seg.DeidentificationMethodCodeSequence = [code]
