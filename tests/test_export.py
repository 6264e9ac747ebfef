"""Export: what we write, other programs read at the same place in the patient."""

import errno
import gzip
import subprocess
import sysconfig
import warnings
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from questlib.export import SEGMENTS, save_dicom_seg, save_nifti
from questlib.lungs import LungMask
from questlib.resample import resample
from questlib.volume import AXIAL, Volume, load_series

SCRIPTS = Path(sysconfig.get_path("scripts"))
# How the patient is turned: a matrix on LPS coordinates.
TURNS = {
    "axial": np.eye(3),
    "feet first": np.diag([-1.0, 1, -1]),
    "prone": np.diag([-1.0, -1, 1]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix(),
}


def lps(affine, index):
    return (affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="session", params=TURNS)
def turned(request, phantom_folder, tmp_path_factory):
    """Give the phantom's series in another orientation, and numbered backwards."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    turn = TURNS[request.param]
    for path in phantom_folder.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        axes = turn @ np.reshape(ds.ImageOrientationPatient, (2, 3)).T
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in axes.T.ravel()]
        place = turn @ ds.ImagePositionPatient
        ds.ImagePositionPatient = [f"{v:.6f}" for v in place]
        ds.InstanceNumber = 1000 - ds.InstanceNumber
        ds.save_as(folder / path.name)
    return folder


def lung_mask(volume):
    """Return two ellipsoids and a tube, as a mask on the grid of `volume`."""
    shape = np.array(volume.shape)
    index = np.indices(volume.shape).reshape(3, -1).T / (shape - 1) - 0.5

    def ball(center):
        inside = (((index - center) / (0.38, 0.28, 0.17)) ** 2).sum(axis=1) < 1
        return inside.reshape(volume.shape)

    labels = np.zeros(volume.shape, np.uint8)
    labels[ball((0, 0.05, -0.19))] = 1
    labels[ball((0.02, 0.04, 0.2))] = 2
    airway = (index[:, 0] > 0) & (((index[:, 1:]) ** 2).sum(axis=1) < 0.06**2)
    airway = airway.reshape(volume.shape) & (labels == 0)
    geometry = volume.spacing, volume.origin, volume.direction
    return LungMask(labels, airway, {}, [], *geometry)


def on_grid(mask, spacing):
    """Return the mask on a grid of other voxels, as segmenting there would give it."""

    def again(array):
        volume = Volume(array, mask.spacing, mask.origin, mask.direction)
        return resample(volume, spacing)

    right, left, airway = (
        again(part) for part in (mask.labels == 1, mask.labels == 2, mask.airway)
    )
    labels = np.where(right.array > 0.5, 1, 0) + np.where(left.array > 0.5, 2, 0)
    geometry = right.spacing, right.origin, right.direction
    return LungMask(labels.astype(np.uint8), airway.array > 0.5, {}, [], *geometry)


def expected_labels(mask):
    return np.where(mask.airway, 3, mask.labels)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32])
def test_nifti_is_read_at_the_same_place_by_two_libraries(tmp_path, turn, dtype):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 200, (4, 5, 6)) > 99
    if dtype is not bool:
        array = rng.integers(0, 200, (4, 5, 6)).astype(dtype)
    ct = Volume(array, (5.0, 0.7, 0.9), (-120.5, 33.25, 410.0), turn @ AXIAL)
    save_nifti(tmp_path / "scan.nii.gz", array, like=ct)
    index = np.indices(ct.shape).reshape(3, -1)

    image = nibabel.load(tmp_path / "scan.nii.gz")
    for affine in (image.get_sform(), image.get_qform()):
        voxel = lps(np.linalg.inv(affine) @ np.diag([-1, -1, 1, 1]) @ ct.affine, index)
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        stored = np.asarray(image.dataobj)[tuple(voxel.round().astype(int))]
        np.testing.assert_array_equal(stored, array.ravel())
    assert image.get_data_dtype() == (np.uint8 if dtype is bool else dtype)

    other = sitk.ReadImage(tmp_path / "scan.nii.gz")
    for voxel, place in zip(index.T, lps(ct.affine, index).T, strict=True):
        i, j, k = other.TransformPhysicalPointToIndex(place)
        assert other[i, j, k] == array[tuple(voxel)]
        there = other.TransformIndexToPhysicalPoint((i, j, k))
        np.testing.assert_allclose(there, place, atol=1e-3)


def test_nifti_equals_what_dcm2niix_makes_of_the_dicom(turned, tmp_path):
    ct = load_series(turned)
    save_nifti(tmp_path / "ours.nii", ct.array, like=ct)
    command = [SCRIPTS / "dcm2niix", "-z", "n", "-b", "n", "-f", "theirs"]
    subprocess.run([*command, "-o", tmp_path, turned], check=True, capture_output=True)
    ours, theirs = (
        nibabel.load(tmp_path / f"{name}.nii") for name in ("ours", "theirs")
    )
    index = np.indices(ours.shape).reshape(3, -1)
    voxel = lps(np.linalg.inv(theirs.affine) @ ours.affine, index)
    np.testing.assert_allclose(voxel, voxel.round(), atol=2e-3)
    there = np.asarray(theirs.dataobj)[tuple(voxel.round().astype(int))]
    np.testing.assert_array_equal(there, np.asarray(ours.dataobj).ravel())
    if turned.name.startswith("axial"):
        np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_nifti_holds_no_text_and_equal_input_gives_equal_bytes(tmp_path):
    ct = Volume(np.zeros((2, 3, 4), np.int16), (5, 1, 1), (0, 0, 0), AXIAL)
    for name in ("a.nii.gz", "b.nii.gz"):
        save_nifti(tmp_path / name, ct.array, like=ct)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert packed == (tmp_path / "b.nii.gz").read_bytes()
    assert packed[3] == 0  # gzip stores no file name,
    assert packed[4:8] == bytes(4)  # and no time
    header = nibabel.load(tmp_path / "a.nii.gz").header
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        assert bytes(header[field]).strip(b"\0") == b""
    assert header.get_xyzt_units()[0] == "mm"
    assert (header["qform_code"], header["sform_code"]) == (1, 1)
    assert len(gzip.decompress(packed)) == 352 + 24 * 2


def test_nifti_narrows_what_numpy_made_wide(tmp_path):
    labels = np.arange(24).reshape(2, 3, 4)  # int64
    ct = Volume(labels.astype(np.int16), (5, 1, 1), (0, 0, 0), AXIAL)
    for array, dtype in ((labels, np.uint8), (labels / 2, np.float32)):
        save_nifti(tmp_path / "x.nii", array, like=ct, overwrite=True)
        assert nibabel.load(tmp_path / "x.nii").get_data_dtype() == dtype


def test_nifti_takes_its_place_from_a_lung_mask_too(tmp_path):
    ct = Volume(np.zeros((6, 8, 8), np.int16), (5, 1, 2), (1, 2, 3), TURNS["oblique"])
    mask = lung_mask(ct)
    for name, like in (("a.nii", ct), ("b.nii", mask)):
        save_nifti(tmp_path / name, mask.labels, like=like)
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


def test_bad_input_is_refused(tmp_path):
    ct = Volume(np.zeros((2, 3, 4), np.int16), (5, 1, 1), (0, 0, 0), AXIAL)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*\(2, 3, 4\)"):
        save_nifti(tmp_path / "x.nii", np.zeros((2, 4, 3)), like=ct)
    with pytest.raises(ValueError, match=r"x\.nrrd must end in \.nii"):
        save_nifti(tmp_path / "x.nrrd", ct.array, like=ct)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_told(tmp_path, phantom_folder):
    ct = load_series(phantom_folder)
    for name in ("mask.nii.gz", "mask.seg.dcm"):
        path = tmp_path / name
        path.write_bytes(b"precious")

        def save(path=path, **options):
            if path.suffix == ".gz":
                save_nifti(path, ct.array, like=ct, **options)
            else:
                save_dicom_seg(path, lung_mask(ct), source=phantom_folder, **options)

        with pytest.raises(FileExistsError, match=f"{name} exists: overwrite=True"):
            save()
        assert path.read_bytes() == b"precious"
        save(overwrite=True)
        assert path.stat().st_size > 1000


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    ct = Volume(np.zeros((2, 3, 4), np.int16), (5, 1, 1), (0, 0, 0), AXIAL)
    (tmp_path / "mask.nii").write_bytes(b"precious")

    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_stream", full)
    with pytest.raises(OSError, match="No space left"):
        save_nifti(tmp_path / "mask.nii", ct.array, like=ct, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii"]
    assert (tmp_path / "mask.nii").read_bytes() == b"precious"


def read_seg(path, affine, shape):
    """Read a SEG element by element: labels on the grid of `affine`."""
    ds = pydicom.dcmread(path)
    size = ds.Rows * ds.Columns
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
    shared = ds.SharedFunctionalGroupsSequence[0]
    labels = np.zeros(shape, np.uint8)
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(axes[:3], affine[:3, 2] / np.linalg.norm(affine[:3, 2]))
    np.testing.assert_allclose(axes[3:], affine[:3, 1] / np.linalg.norm(affine[:3, 1]))
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    np.testing.assert_allclose(spacing, np.linalg.norm(affine[:3, 1:3], axis=0))
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        plane, row, column = lps(np.linalg.inv(affine), np.reshape(place, (3, 1)))[:, 0]
        assert abs(plane - round(plane)) < 1e-3 > max(abs(row), abs(column))
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        inside = bits[number * size : (number + 1) * size].reshape(ds.Rows, ds.Columns)
        labels[round(plane)][inside > 0] = segment
    return ds, labels


def find_errors(path):
    done = subprocess.run([SCRIPTS / "dciodvfy", path], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines  # it has read the file
    return [line for line in lines if line.startswith("Error")]


def test_seg_is_read_at_the_same_place_and_names_its_planes(turned, tmp_path):
    ct = load_series(turned)
    mask = lung_mask(ct)
    save_dicom_seg(tmp_path / "lungs.seg.dcm", mask, source=turned)
    assert find_errors(tmp_path / "lungs.seg.dcm") == []

    ds, labels = read_seg(tmp_path / "lungs.seg.dcm", ct.affine, ct.shape)
    np.testing.assert_array_equal(labels, expected_labels(mask))
    segments = [
        (item.SegmentLabel, code.CodeValue, code.CodingSchemeDesignator)
        for item in ds.SegmentSequence
        for code in item.SegmentedPropertyTypeCodeSequence
    ]
    assert segments == [
        ("Right lung", "3341006", "SCT"),
        ("Left lung", "44029006", "SCT"),
        ("Airway", "110726009", "SCT"),
    ]
    sources = {}
    for path in turned.iterdir():
        plane = pydicom.dcmread(path, stop_before_pixels=True)
        sources[plane.SOPInstanceUID] = plane.ImagePositionPatient
    for frame in ds.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert sources[source.ReferencedSOPInstanceUID] == place
    assert ds.FrameOfReferenceUID == plane.FrameOfReferenceUID
    assert ds.PatientName == plane.PatientName

    seg = highdicom.seg.segread(tmp_path / "lungs.seg.dcm")  # the second reader
    theirs = seg.get_volume(combine_segments=True, skip_overlap_checks=True)
    index = np.argwhere(theirs.array).T
    ours = lps(np.linalg.inv(ct.affine) @ theirs.affine, index).round().astype(int)
    np.testing.assert_array_equal(theirs.array[tuple(index)], labels[tuple(ours)])
    assert len(index.T) == np.count_nonzero(labels)


@pytest.mark.parametrize("spacing", [1.0, (2.5, 1.0, 1.7)])
def test_seg_from_another_grid_comes_back_to_the_source(turned, tmp_path, spacing):
    ct = load_series(turned)
    mask = lung_mask(ct)
    path = tmp_path / "lungs.seg.dcm"
    save_dicom_seg(path, on_grid(mask, spacing), source=turned)
    _, labels = read_seg(path, ct.affine, ct.shape)
    for label in (1, 2, 3):
        assert dice(labels == label, expected_labels(mask) == label) >= 0.99


def test_seg_of_a_series_with_a_plane_missing(phantom_folder, tmp_path):
    ct = load_series(phantom_folder)
    for path in phantom_folder.iterdir():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if abs(ds.ImagePositionPatient[2] - ct.origin[2] - 30 * ct.spacing[0]) > 1:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    mask = lung_mask(ct)  # on the full grid, as regularize=True would make it
    save_dicom_seg(tmp_path / "x.seg.dcm", mask, source=tmp_path)
    _, labels = read_seg(tmp_path / "x.seg.dcm", ct.affine, ct.shape)
    expected = expected_labels(mask)
    assert expected[30].any()
    expected[30] = 0
    np.testing.assert_array_equal(labels, expected)


def test_a_mask_cropped_to_its_lungs_is_whole_on_the_source(phantom_folder, tmp_path):
    ct = load_series(phantom_folder)
    mask = lung_mask(ct)
    lower = (5, 20, 12)
    origin = tuple((ct.affine @ [*lower, 1])[:3])
    box = tuple(slice(start, -2) for start in lower)
    parts = mask.labels[box], mask.airway[box]
    cropped = LungMask(*parts, {}, [], mask.spacing, origin, mask.direction)
    save_dicom_seg(tmp_path / "x.dcm", cropped, source=phantom_folder)
    _, labels = read_seg(tmp_path / "x.dcm", ct.affine, ct.shape)
    expected = np.zeros_like(labels)
    expected[box] = expected_labels(mask)[box]
    np.testing.assert_array_equal(labels, expected)


def test_a_mask_of_another_place_is_refused(phantom_folder, tmp_path):
    mask = lung_mask(load_series(phantom_folder))
    x, y, z = mask.origin
    moved = mask._replace(origin=(x, y, z + 200))
    with pytest.raises(ValueError, match=r"the mask holds \d+ mL, of which \d+ mL"):
        save_dicom_seg(tmp_path / "x.dcm", moved, source=phantom_folder)
    assert not list(tmp_path.iterdir())


def test_an_empty_mask_is_written(phantom_folder, tmp_path):
    mask = lung_mask(load_series(phantom_folder))
    empty = mask._replace(labels=mask.labels * 0, airway=mask.airway & False)
    save_dicom_seg(tmp_path / "x.dcm", empty, source=phantom_folder)
    assert find_errors(tmp_path / "x.dcm") == []
    seg = highdicom.seg.segread(tmp_path / "x.dcm")
    assert seg.number_of_segments == len(SEGMENTS)
    assert not seg.pixel_array.any()


TEXTS = (
    *("PatientName", "PatientID", "PatientComments", "OtherPatientNames"),
    *("StudyID", "AccessionNumber", "StudyDescription", "SeriesDescription"),
    *("InstitutionName", "ReferringPhysicianName", "OperatorsName", "StationName"),
    *("DeviceSerialNumber", "ImageComments", "ProtocolName"),
)
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


@pytest.fixture(scope="module")
def canaries(phantom_folder, tmp_path_factory):
    """Give a series with a canary in every text and date, and the UIDs it uses."""
    folder, uids = tmp_path_factory.mktemp("canaries"), set()
    for path in phantom_folder.iterdir():
        ds = pydicom.dcmread(path)
        for keyword in TEXTS:
            setattr(ds, keyword, "Canary^Käthe" if keyword in TEXTS[:1] else "CANARY")
        for keyword in (*DATES, "PatientBirthDate"):
            setattr(ds, keyword, "19771231")
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.private_block(0x99, "CANARY", create=True).add_new(1, "LO", "CANARY")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        uids.update(element.value for element in ds if element.VR == "UI")
        ds.save_as(folder / f"canary_{path.name}")
    return folder, uids - {ds.SOPClassUID}


def test_seg_keeps_the_identity_unless_told(canaries, tmp_path):
    folder, _ = canaries
    mask = lung_mask(load_series(folder))
    save_dicom_seg(tmp_path / "x.dcm", mask, source=folder)
    assert find_errors(tmp_path / "x.dcm") == []
    ds = pydicom.dcmread(tmp_path / "x.dcm")
    assert str(ds.PatientName) == "Canary^Käthe"
    assert (ds.PatientID, ds.StudyDate) == ("CANARY", "19771231")


def test_deidentified_seg_holds_no_name_no_date_and_no_uid(canaries, tmp_path, capfd):
    folder, uids = canaries
    mask = lung_mask(load_series(folder))
    save_dicom_seg(tmp_path / "x.dcm", mask, source=folder, deidentify=True)
    assert find_errors(tmp_path / "x.dcm") == []
    data = (tmp_path / "x.dcm").read_bytes()
    for word in ("canary", "käthe", "19771231", *uids):
        assert word.encode("latin-1") not in data.lower()
        assert word.encode() not in data.lower()
    assert "anary" not in "".join(capfd.readouterr())
    ds = pydicom.dcmread(tmp_path / "x.dcm")
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert ds.ContentDate == "19000101"  # the standard demands a value
    _, labels = read_seg(
        tmp_path / "x.dcm", load_series(folder).affine, mask.labels.shape
    )
    np.testing.assert_array_equal(labels, expected_labels(mask))


@pytest.mark.filterwarnings("ignore")  # pydicom's, while this test writes
def test_headers_that_highdicom_dislikes_are_left_out(phantom_folder, tmp_path, caplog):
    folder = tmp_path / "odd"
    folder.mkdir()
    for path in phantom_folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientName = "CANARY" * 20
        del ds.PatientID, ds.StudyID, ds.AccessionNumber, ds.FrameOfReferenceUID
        ds.PatientSex = "UNKNOWN"
        ds["StudyDate"]._value = "CANARY"
        ds.save_as(folder / path.name)
    mask = lung_mask(load_series(folder))
    caplog.clear()
    for deidentify in (True, False):
        path = tmp_path / f"{deidentify}.dcm"
        with warnings.catch_warnings(action="error"):
            save_dicom_seg(path, mask, source=folder, deidentify=deidentify)
        assert b"CANARY" not in path.read_bytes()
        assert pydicom.dcmread(path).Modality == "SEG"
    assert "CANARY" not in caplog.text
