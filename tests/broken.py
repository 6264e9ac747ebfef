"""A small CT series with known voxels, written as DICOM, to be broken in tests."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SPACING = (2.5, 0.8, 0.7)
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def make_planes(
    count=6, rows=32, columns=40, *, orientation=None, origin=(-3, -4, 100)
):
    """Return `count` datasets that form one clean axial (or given) series.

    Stored values are unsigned, 12 of 16 bits; HU = stored - 1024.
    """
    orientation = orientation or [1, 0, 0, 0, 1, 0]
    normal = np.cross(orientation[:3], orientation[3:])
    hu = truth(count, rows, columns)
    series, study, frame = (generate_uid(entropy_srcs=[name]) for name in "abc")
    planes = []
    for index in range(count):
        ds = FileDataset("", {}, preamble=bytes(128))
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CT
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(index)])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Modality, ds.PatientName, ds.PatientID = "CT", "CANARY^NAME", "CANARY-ID"
        ds.StudyDate, ds.StudyDescription = "19991231", "CANARY<b>text</b>"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID = frame
        ds.SliceThickness, ds.InstanceNumber = "5", index + 1
        position = np.array(origin) + SPACING[0] * index * normal
        ds.ImagePositionPatient = [f"{mm:.6f}" for mm in position]
        ds.ImageOrientationPatient = [f"{cosine:.8f}" for cosine in orientation]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns, ds.PixelSpacing = rows, columns, list(SPACING[1:])
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
        set_pixels(ds, hu[index] + 1024)
        planes.append(ds)
    return planes


def truth(count=6, rows=32, columns=40):
    """Return the HU of a clean series: -900 to 1092, every plane and row another."""
    return (
        np.arange(count * rows * columns).reshape(count, rows, columns) % 997 * 2 - 900
    )


def set_pixels(ds, stored, dtype=np.uint16, *, bits=12):
    """Put stored values into a dataset, with the attributes that describe them."""
    stored = np.asarray(stored).astype(dtype)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(np.issubdtype(dtype, np.signedinteger))
    ds.Rows, ds.Columns = stored.shape
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def get_pixels(ds):
    """Return the stored values of an uncompressed 16-bit dataset, writable."""
    stored = np.frombuffer(ds.PixelData, np.uint16).reshape(ds.Rows, ds.Columns)
    return stored.copy()


def save_planes(folder, planes, names=None):
    """Write datasets as IM0000.dcm, IM0001.dcm, ... and return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"IM{index:04}.dcm" for index in range(len(planes))]
    for ds, name in zip(planes, names, strict=True):
        ds.save_as(folder / name, enforce_file_format=True)
    return folder


def make_enhanced(planes, *, shared=()):
    """Return one enhanced multi-frame dataset that holds the frames of `planes`."""
    ds = FileDataset("", {}, preamble=bytes(128))
    ds.update(planes[0])
    ds.file_meta = planes[0].file_meta
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = ENHANCED_CT
    ds.NumberOfFrames = len(planes)
    ds.SharedFunctionalGroupsSequence = [Dataset()]
    ds.PerFrameFunctionalGroupsSequence = [Dataset() for _ in planes]
    for sequence, keywords in {
        "PlanePositionSequence": ["ImagePositionPatient"],
        "PlaneOrientationSequence": ["ImageOrientationPatient"],
        "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
        "PixelValueTransformationSequence": [
            "RescaleIntercept",
            "RescaleSlope",
            "RescaleType",
        ],
    }.items():
        for frame, plane in zip(
            ds.PerFrameFunctionalGroupsSequence, planes, strict=True
        ):
            group = Dataset()
            for keyword in keywords:
                setattr(group, keyword, plane[keyword].value)
            home = ds.SharedFunctionalGroupsSequence[0] if sequence in shared else frame
            setattr(home, sequence, [group])
        for keyword in keywords:
            if keyword in ds:
                del ds[keyword]
    ds.PixelData = b"".join(plane.PixelData for plane in planes)
    ds["PixelData"].VR = "OW"
    return ds
