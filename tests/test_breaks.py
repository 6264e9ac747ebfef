"""Each way to break a series: questlib loads the right volume, or says what is wrong.

A break is a function that edits the datasets of a clean series. It may be a generator:
what stands behind its ``yield`` edits the files in the folder. Its return value is the
volume to expect, where that is not the clean one.
"""

import inspect
import os
import re
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from broken import (
    SPACING,
    get_pixels,
    make_enhanced,
    make_planes,
    save_planes,
    set_pixels,
    truth,
)
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from questlib.header import TEXTS
from questlib.series import SeriesError, SeriesWarning, find_series
from questlib.volume import load_series

REFUSED, LOADED = [], []
FIRST = {"MediaStorageSOPClassUID", "TransferSyntaxUID"}  # of file meta information


def refused(pattern):
    """Register a break that must be refused with a message that matches `pattern`."""

    def register(function):
        REFUSED.append(pytest.param(function, pattern, id=function.__name__))
        return function

    return register


def loaded(warns=None):
    """Register a break that must load, with one warning that matches, or with none."""

    def register(function):
        LOADED.append(pytest.param(function, warns, id=function.__name__))
        return function

    return register


def run(function, folder):
    """Apply a break, save the series, and return the volume to expect."""
    planes = make_planes()
    result = function(planes)
    if not inspect.isgenerator(result):
        save_planes(folder, planes)
        return truth() if result is None else result
    next(result)
    save_planes(folder, planes)
    try:
        result.send(folder)
    except StopIteration as stop:
        return truth() if stop.value is None else stop.value
    raise AssertionError("a break yields once")


@pytest.mark.parametrize(("function", "pattern"), REFUSED)
def test_refused(function, pattern, tmp_path):
    run(function, tmp_path)
    with pytest.raises(SeriesError, match=pattern) as caught:
        load_series(tmp_path)
    message = str(caught.value)
    assert "CANARY" not in message and str(tmp_path) not in message
    assert "1.2.3" not in message and "1.2.826" not in message  # UIDs identify, too
    assert caught.value.file is None or message.startswith(caught.value.file)
    assert len(message) < 600 and "\n" not in message


@pytest.mark.parametrize(("function", "warns"), LOADED)
def test_loaded(function, warns, tmp_path):
    expected = run(function, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = load_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.spacing, SPACING)
    messages = [str(one.message) for one in caught]
    assert len(messages) == (warns is not None), messages
    if warns:
        assert re.search(warns, messages[0]), messages
        assert issubclass(caught[0].category, SeriesWarning)
        assert "CANARY" not in messages[0]


def each(planes, **values):
    """Set attributes of every plane."""
    for ds in planes:
        for keyword, value in values.items():
            setattr(ds, keyword, value)


def put_raw(planes, keyword, value):
    """Set an element to raw bytes that pydicom would refuse to write."""
    for ds in planes:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag)
        raw = value + b" " * (len(value) % 2)
        ds[tag] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), vr, len(raw), raw, 0, False, True
        )


# 1. Find ------------------------------------------------------------------------------


@loaded()
def names_that_sort_wrongly(planes):
    folder = yield
    for index in range(6):
        (folder / f"IM{index:04}.dcm").rename(folder / f"{(7 * index) % 13}.x")


@loaded()
def planes_in_sub_folders(planes):
    folder = yield
    for index in range(6):
        (folder / f"{index % 2}" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / f"IM{index:04}.dcm").rename(folder / f"{index % 2}/deep/{index}")


@loaded()
def clutter_beside_the_planes(planes):
    folder = yield
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._IM0001.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "README.txt").write_text("how to view this CD")
    (folder / "empty.txt").touch()
    (folder / "autorun.exe").write_bytes(b"MZ" + bytes(500))


@loaded()
def a_zip_beside_the_planes(planes):
    folder = yield
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "IM0001.dcm")


@loaded()
def a_folder_called_dcm(planes):
    folder = yield
    (folder / "x.dcm").mkdir()


@loaded()
def a_named_pipe(planes):
    folder = yield
    os.mkfifo(folder / "IM9999.dcm")


@loaded()
def a_loop_of_folder_links(planes):
    folder = yield
    (folder / "again").symlink_to(folder, target_is_directory=True)


@loaded("IM9999.dcm: .*cannot be read")
def a_link_that_leads_nowhere(planes):
    folder = yield
    (folder / "IM9999.dcm").symlink_to(folder / "gone.dcm")


@loaded()
def a_dicomdir_that_points_elsewhere(planes):
    folder = yield
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    record = pydicom.Dataset()
    record.ReferencedFileID = ["..", "..", "etc", "passwd"]
    ds.DirectoryRecordSequence = [record]
    ds.save_as(folder / "DICOMDIR", enforce_file_format=True)


@loaded("IM9999.dcm: empty file")
def a_zero_byte_plane(planes):
    folder = yield
    (folder / "IM9999.dcm").touch()


@refused("IM9999.dcm: .*truncated.*may hold a plane of this series")
def a_plane_cut_before_its_series_uid(planes):
    folder = yield
    data = (folder / "IM0000.dcm").read_bytes()
    (folder / "IM9999.dcm").write_bytes(data[:400])


@refused("IM0005.dcm: .*truncated.*may hold a plane")
def the_last_plane_cut_in_its_header(planes):
    folder = yield
    data = (folder / "IM0005.dcm").read_bytes()
    (folder / "IM0005.dcm").write_bytes(data[: data.index(b"HU")])


@refused("IM0005.dcm: not a DICOM file.*may hold a plane")
def the_last_plane_without_magic_word(planes):
    folder = yield
    claim(folder / "IM0005.dcm", b"DICM", b"DXCM")


@loaded()
def files_without_preamble(planes):
    folder = yield
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])


@loaded()
def implicit_without_meta(planes):
    for ds in planes:
        compress(ds, ImplicitVRLittleEndian)
    folder = yield
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\x08\0\x08\0") :])


@refused("no CT series.*not a DICOM file")
def text_files_only(planes):
    folder = yield
    for path in folder.iterdir():
        path.write_text("nothing to see")


@refused("no CT series.*no file")
def empty_folder(planes):
    folder = yield
    for path in folder.iterdir():
        path.unlink()


@refused("no CT series.*unpack")
def zip_only(planes):
    folder = yield
    for path in folder.iterdir():
        path.unlink()
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        archive.writestr("IM0", bytes(200))


# 2. Choose ----------------------------------------------------------------------------


@refused(r"2 image series.*\[0\] CT, 3 planes.*series_uid")
def two_series(planes):
    each(planes[3:], SeriesInstanceUID="1.2.3")


@refused("2 image series.*MR")
def another_modality_beside(planes):
    each(planes[3:], SeriesInstanceUID="1.2.3", Modality="MR")


@refused("two patients or studies share one Series Instance UID")
def two_patients_under_one_uid(planes):
    each(planes[3:], PatientID="OTHER", PatientName="CANARY^OTHER")


@refused("two patients or studies share one Series Instance UID")
def two_studies_under_one_uid(planes):
    each(planes[3:], StudyInstanceUID="1.2.3")


@loaded()
def a_localizer_series_beside(planes):
    planes.append(localizer(planes[0], SeriesInstanceUID="1.2.3"))


@loaded("IM0006.dcm: localizers, captures or reports.*: 1")
def a_localizer_in_the_series(planes):
    planes.append(localizer(planes[0]))


def localizer(plane, **values):
    ds = make_planes(1, 20, 30, orientation=[1, 0, 0, 0, 0, -1])[0]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@refused("no CT series.*0 planes")
def nothing_but_a_localizer(planes):
    planes[:] = [localizer(planes[0])]


@loaded()
def a_dose_report_beside(planes):
    planes.append(report(planes[0], SeriesInstanceUID="1.2.3"))


@loaded("IM0006.dcm: localizers, captures or reports.*: 1")
def a_dose_report_in_the_series(planes):
    planes.append(report(planes[0]))


def report(plane, **values):
    ds = make_planes(1)[0]
    ds.Modality = "SR"
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient"):
        del ds[keyword]
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@loaded("IM0006.dcm: localizers, captures or reports.*: 1")
def a_color_capture_in_the_series(planes):
    ds = make_planes(1)[0]
    set_pixels(ds, np.zeros((32, 120)), np.uint8, bits=8)
    ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 40, 3, "RGB"
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    del ds.ImagePositionPatient, ds.RescaleSlope
    planes.append(ds)


# 3. Check, then stack -----------------------------------------------------------------


@loaded()
def shuffled_instance_numbers(planes):
    for ds, number in zip(planes, [4, 1, 6, 2, 5, 3], strict=True):
        ds.InstanceNumber = number


@loaded()
def lying_slice_locations_and_thickness(planes):
    for index, ds in enumerate(planes):
        ds.SliceLocation, ds.SliceThickness = str(-index), "0.6"
        ds.SpacingBetweenSlices = "-7"


@loaded()
def descending_files(planes):
    planes.reverse()


@refused("Modality .*'MR'.*not Hounsfield")
def magnetic_resonance(planes):
    each(planes, Modality="MR")


@refused("Modality .*'PT'.*not Hounsfield")
def positron_emission(planes):
    each(planes, Modality="PT")


@refused("no CT series|Modality .* missing")
def modality_missing(planes):
    for ds in planes:
        del ds.Modality


@refused("Modality .*'MR'")
def one_plane_of_another_modality(planes):
    planes[2].Modality = "MR"


@refused(r"Samples per Pixel \(0028,0002\) is 3")
def color_planes(planes):
    for ds in planes:
        set_pixels(ds, np.zeros((32, 120)), np.uint8, bits=8)
        ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 40, 3, "RGB"


@refused(r"IM0003.dcm: Rows \(0028,0010\) is 33")
def one_plane_with_more_rows(planes):
    set_pixels(planes[3], np.zeros((33, 40)))


@refused(r"IM0001.dcm: Columns \(0028,0011\) is 42")
def one_plane_with_more_columns(planes):
    set_pixels(planes[1], np.zeros((32, 42)))


@refused(r"IM0002.dcm: Pixel Spacing \(0028,0030\) is '0.9\\0.7'")
def one_plane_with_other_pixel_spacing(planes):
    planes[2].PixelSpacing = [0.9, 0.7]


def spacing_break(name, raw, pattern):
    def function(planes):
        put_raw(planes, "PixelSpacing", raw)

    function.__name__ = f"pixel_spacing_{name}"
    refused(rf"Pixel Spacing \(0028,0030\) is {pattern}")(function)


spacing_break("missing", b"", "missing; it must be 2 numbers")
spacing_break("of_one_value", b"0.8", "'0.8'; it must be 2 numbers")
spacing_break("of_three_values", b"1\\1\\1", "'1.*2 numbers")
spacing_break("zero", b"0\\0", "'0.*between 0 and 100 mm")
spacing_break("negative", b"-1\\1", "'-1.*between 0 and 100 mm")
spacing_break("huge", b"800\\800", "'800.*between 0 and 100 mm")
spacing_break("not_a_number", b"nan\\nan", "'nan.*2 numbers")
spacing_break("infinite", b"inf\\inf", "'inf.*2 numbers")
spacing_break("with_comma", b"0,8\\0,7", "'0,8.*2 numbers")
spacing_break("with_underscore", b"1_0\\1_0", "'1_0.*2 numbers")


@loaded()
def numbers_in_spaces(planes):
    put_raw(planes, "PixelSpacing", b" 0.8 \\ 7e-1\0")
    put_raw(planes, "RescaleIntercept", b" -1024.0 ")


@refused(r"IM0004.dcm: Image Orientation \(Patient\) \(0020,0037\) is missing")
def orientation_missing_on_one(planes):
    del planes[4].ImageOrientationPatient


@refused("Image Orientation.*two orthogonal unit vectors")
def orientation_not_unit(planes):
    each(planes, ImageOrientationPatient=[2, 0, 0, 0, 2, 0])


@refused("Image Orientation.*two orthogonal unit vectors")
def orientation_not_orthogonal(planes):
    each(planes, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])


@loaded()
def orientation_slightly_noisy(planes):
    planes[1].ImageOrientationPatient = [1, 1e-4, 0, 0, 1, -1e-4]


@refused("IM0005.dcm: Image Orientation.*other planes of the series")
def orientation_flipped_on_one(planes):
    planes[5].ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]


@refused("IM0002.dcm: Image Position.*missing; it must be 3 numbers")
def position_missing_on_one(planes):
    del planes[2].ImagePositionPatient


def position_break(name, raw, pattern):
    def function(planes):
        put_raw(planes[2:3], "ImagePositionPatient", raw)

    function.__name__ = f"position_{name}"
    refused(rf"IM0002.dcm: Image Position \(Patient\) \(0020,0032\) is {pattern}")(
        function
    )


position_break("not_finite", b"0\\0\\nan", "'0.*3 numbers")
position_break("short", b"0\\5", "'0.*3 numbers")
position_break("huge", b"0\\0\\1e30", "'0.*within 100 m")


@refused("all planes lie at one position|different pixels")
def position_identical_on_all(planes):
    each(planes, ImagePositionPatient=[0, 0, 0])


@refused(r"Frame of Reference UID \(0020,0052\) differs; other planes")
def two_frames_of_reference(planes):
    each(planes[3:], FrameOfReferenceUID="1.2.3")


@loaded("IM0006.dcm: planes that are copies of others, left out: 1")
def an_identical_copy(planes):
    planes.append(planes[2])


@loaded("copies of others, left out: 2")
def copies_with_another_sop_uid(planes):
    for index in (1, 4):
        ds = make_planes()[index]
        ds.SOPInstanceUID = f"1.2.3.{index}"
        planes.append(ds)


@refused("2 planes with different pixels at one position")
def two_phases(planes):
    for ds in make_planes():
        planes.append(set_pixels(ds, get_pixels(ds) + 1))


@refused("3 planes with different pixels at one position")
def three_gated_phases(planes):
    for shift in (5, 9):
        for ds in make_planes():
            planes.append(set_pixels(ds, get_pixels(ds) + shift))


@refused(r"Acquisition Number \(0020,0012\) is '2'.*alternate")
def two_phases_interleaved(planes):
    for index, ds in enumerate(planes):
        ds.AcquisitionNumber = 1 + index % 2


@refused(r"Convolution Kernel \(0018,1210\).*alternate")
def two_kernels_interleaved(planes):
    for index, ds in enumerate(planes):
        ds.ConvolutionKernel = "BL"[index % 2]


@loaded()
def an_acquisition_number_for_each_table_position(planes):
    for index, ds in enumerate(planes):
        ds.AcquisitionNumber = 1 + index // 2


@refused("IM0002.dcm: .*5.000 mm to the next plane, elsewhere 2.500 mm.*1 missing")
def a_missing_plane(planes):
    folder = yield
    (folder / "IM0003.dcm").unlink()


@refused("IM0001.dcm: .*10.000 mm.*2.500 mm.*3 missing")
def three_missing_planes(planes):
    planes += make_planes(12)[6:]
    folder = yield
    for index in (2, 3, 4):
        (folder / f"IM{index:04}.dcm").unlink()


@refused("not evenly spaced: 2.800 mm")
def an_uneven_gap(planes):
    for ds in planes[4:]:
        ds.ImagePositionPatient[2] += 0.3


@refused("not evenly spaced.*5.000 mm")
def a_change_of_spacing(planes):
    for index, ds in enumerate(planes[3:]):
        ds.ImagePositionPatient[2] += 2.5 * (index + 1)


@loaded()
def jitter_within_tolerance(planes):
    for ds, jitter in zip(planes, [0, 0.02, -0.02, 0.02, -0.02, 0], strict=True):
        ds.ImagePositionPatient[2] += jitter


@refused("leans 15.0 degrees.*gantry tilt")
def gantry_tilt(planes):
    for index, ds in enumerate(planes):
        ds.ImagePositionPatient[1] += 2.5 * index * np.tan(np.radians(15))


@refused("IM0003.dcm: the plane lies 9.0 mm beside")
def a_plane_shifted_aside(planes):
    planes[3].ImagePositionPatient[0] += 9


@refused(r"Number of Frames \(0028,0008\) is '2'")
def multi_frame_without_positions(planes):
    each(planes, NumberOfFrames=2)


# 4. Pixels ----------------------------------------------------------------------------


@loaded()
def slope_and_intercept_of_each_plane(planes):
    for index, ds in enumerate(planes):
        stored = get_pixels(ds).astype(int) - 1024
        set_pixels(ds, (stored + 900 + 100 * index) * 2, bits=16)
        ds.RescaleSlope, ds.RescaleIntercept = "0.5", str(-900 - 100 * index)


def rescale_break(keyword, name, raw, pattern):
    def function(planes):
        put_raw(planes[3:4], keyword, raw)

    function.__name__ = f"{keyword}_{name}"
    refused(rf"IM0003.dcm: Rescale \w+ \(0028,105.\) is {pattern}")(function)


for _keyword in ("RescaleSlope", "RescaleIntercept"):
    rescale_break(_keyword, "missing", b"", "missing.*not Hounsfield")
    rescale_break(_keyword, "not_a_number", b"abc", "a text that.*not Hounsfield")
    rescale_break(_keyword, "nan", b"NaN", "'NaN'.*not Hounsfield")
    rescale_break(_keyword, "infinite", b"1e999", "'1e999'.*not Hounsfield")
    rescale_break(_keyword, "of_two_values", b"1\\1", "'1.*not Hounsfield")
    rescale_break(_keyword, "with_comma", b"0,7", "'0,7'.*not Hounsfield")
rescale_break("RescaleSlope", "zero", b"0", "'0'.*not Hounsfield")


@refused(r"Rescale Type \(0028,1054\) is 'US'; the numbers are not Hounsfield")
def unspecified_rescale_type(planes):
    each(planes, RescaleType="US")


@refused("Rescale Type.*'OD'.*not Hounsfield")
def optical_density(planes):
    each(planes, RescaleType="OD")


@loaded()
def rescale_type_missing(planes):
    for ds in planes:
        del ds.RescaleType


@loaded()
def monochrome1(planes):
    each(planes, PhotometricInterpretation="MONOCHROME1")


@refused("Photometric Interpretation.*'PALETTE COLOR'")
def palette_color(planes):
    each(planes, PhotometricInterpretation="PALETTE COLOR")


@loaded()
def signed_pixels(planes):
    for ds in planes:
        set_pixels(ds, get_pixels(ds).astype(int) - 1024, np.int16, bits=16)
    each(planes, RescaleIntercept="0")


@loaded("bits above Bits Stored.*6 of 6")
def signed_12_bits_with_dirty_high_bits(planes):
    for ds in planes:
        stored = (get_pixels(ds).astype(int) - 1024) & 0x0FFF
        stored |= 0x1000 * (np.arange(1280).reshape(32, 40) % 7)
        set_pixels(ds, stored)
        ds.PixelRepresentation = 1
    each(planes, RescaleIntercept="0")


@loaded("bits above Bits Stored.*1 of 6 planes")
def an_overlay_in_an_unused_bit(planes):
    stored = get_pixels(planes[2])
    stored[2:6, 3:7] |= 0x8000
    set_pixels(planes[2], stored)


@loaded()
def high_bit_15_of_12_stored(planes):
    for ds in planes:
        set_pixels(ds, get_pixels(ds).astype(int) << 4)
        ds.HighBit = 15


@refused("High Bit.*is 20")
def high_bit_out_of_range(planes):
    each(planes, HighBit=20)


@refused("Bits Stored.*is 17")
def more_bits_stored_than_allocated(planes):
    each(planes, BitsStored=17)


@refused("Bits Allocated.*is 1;")
def one_bit_allocated(planes):
    each(planes, BitsAllocated=1)


@loaded()
def bits_32(planes):
    for ds in planes:
        set_pixels(ds, get_pixels(ds), np.uint32, bits=32)


@loaded()
def bits_8(planes):
    hu = truth() - truth() % 8
    for ds, plane in zip(planes, hu, strict=True):
        set_pixels(ds, (plane + 904) // 8, np.uint8, bits=8)
        ds.RescaleSlope, ds.RescaleIntercept = "8", "-904"
    return hu


@loaded()
def metal_beyond_int16(planes):
    stored = get_pixels(planes[2])
    stored[4, 4] = 60000
    set_pixels(planes[2], stored)
    each(planes, BitsStored=16, HighBit=15)
    expected = truth().astype(np.float32)
    expected[2, 4, 4] = 60000 - 1024
    return expected


@loaded()
def fractional_slope(planes):
    each(planes, RescaleSlope="0.25")
    return ((truth() + 1024) * 0.25 - 1024).astype(np.float32)


@loaded()
def slope_of_two_beyond_int16(planes):
    each(planes, RescaleSlope="40", RescaleIntercept="0")
    return ((truth() + 1024) * 40).astype(np.float32)


def pad(planes, value, tag=None, *, limit=None, vr="US"):
    """Put `value` (raw 16 bits) into a corner of every plane."""
    for ds in planes:
        stored = get_pixels(ds)
        stored[:4, :5] = value
        set_pixels(ds, stored, np.uint16, bits=16)
        if tag is not None:
            ds.add_new("PixelPaddingValue", vr, tag)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)
    expected = truth()
    expected[:, :4, :5] = -1024
    return expected


@loaded()
def padding_of_unsigned_pixels(planes):
    return pad(planes, 65535, 65535)


@loaded()
def padding_of_minus_2000(planes):
    expected = pad(planes, 63536, -2000, vr="SS")
    each(planes, PixelRepresentation=1)
    return expected


@loaded()
def padding_with_the_wrong_vr(planes):
    expected = pad(planes, 63536, 63536, vr="US")
    each(planes, PixelRepresentation=1)
    return expected


@loaded()
def padding_without_a_tag(planes):
    expected = pad(planes, 63536)
    each(planes, PixelRepresentation=1)
    return expected


@loaded()
def padding_above_the_bits_stored(planes):
    expected = pad(planes, 63536)
    each(planes, BitsStored=12, HighBit=11)
    return expected


@loaded()
def a_range_of_padding(planes):
    value = 60000 + np.arange(20).reshape(4, 5)
    return pad(planes, value, 60000, limit=60100)


@loaded("among tissue values")
def padding_among_tissue_values(planes):
    expected = pad(planes, 1064, 1064)
    inside = get_pixels(planes[3])
    inside[5, 5] = 1064
    set_pixels(planes[3], inside, bits=16)
    expected[3, 5, 5] = 40
    return expected


@loaded("Rescale Intercept.*'-24', on most planes")
def the_odd_intercept(planes):
    planes[4].RescaleIntercept = "-24"
    expected = truth()
    expected[4] += 1000
    return expected


@loaded("Pixel Representation.*is 1, on most planes")
def the_odd_pixel_representation(planes):
    set_pixels(planes[1], get_pixels(planes[1]).astype(int) - 1024, np.int16, bits=12)
    planes[1].RescaleIntercept = "0"
    planes[1].BitsStored, planes[1].HighBit = 12, 11
    for ds in planes[2:5]:  # so that the intercept is no oddity of its own
        stored = get_pixels(ds).astype(int) - 10 + 1024 - 1024
        set_pixels(ds, stored)
        ds.RescaleIntercept = "-1014"


@refused("no integer Pixel Data")
def float_pixels(planes):
    for ds in planes:
        ds.FloatPixelData = get_pixels(ds).astype(np.float32).tobytes()
        del ds.PixelData


# Transfer syntaxes --------------------------------------------------------------------


def in_syntax(name, uid):
    def function(planes):
        yield save_in(planes, uid)

    def save_in(planes, uid):
        for ds in planes:
            compress(ds, uid)

    function.__name__ = f"syntax_{name}"
    loaded()(function)


def compress(ds, uid):
    """Convert a dataset to a transfer syntax, in place."""
    if uid in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        ds.compress(uid, generate_instance_uid=False)
    elif uid == ExplicitVRBigEndian:
        stored = np.frombuffer(ds.PixelData, "<u2")
        ds.PixelData = stored.astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = uid
    ds._read_implicit = ds._read_little = None


in_syntax("implicit", ImplicitVRLittleEndian)
in_syntax("big_endian", ExplicitVRBigEndian)
in_syntax("deflated", DeflatedExplicitVRLittleEndian)
in_syntax("rle", RLELossless)
in_syntax("jpeg_2000", JPEG2000Lossless)
in_syntax("jpeg_ls", JPEGLSLossless)


@loaded()
def mixed_transfer_syntaxes(planes):
    for ds, uid in zip(
        planes,
        (
            ImplicitVRLittleEndian,
            DeflatedExplicitVRLittleEndian,
            RLELossless,
            JPEG2000Lossless,
            JPEGLSLossless,
            ExplicitVRLittleEndian,
        ),
        strict=True,
    ):
        compress(ds, uid)
    yield


@refused("JPEG Full Progression.*cannot be decoded here")
def a_syntax_without_decoder(planes):
    for ds in planes:
        compress(ds, JPEG2000Lossless)
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.55"
    yield


@refused("cannot be decoded|damaged")
def a_syntax_that_lies_about_its_codec(planes):
    for ds in planes:
        compress(ds, JPEG2000Lossless)
        ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    yield


@loaded()
def explicit_files_that_claim_to_be_implicit(planes):
    folder = yield
    for path in folder.iterdir():
        claim(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")


@refused("Transfer Syntax UID.*little endian")
def little_endian_files_that_claim_to_be_big(planes):
    folder = yield
    for path in folder.iterdir():
        claim(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")


@refused("Transfer Syntax UID.*Pixel Data is stored otherwise")
def raw_pixels_that_claim_to_be_jpeg(planes):
    folder = yield
    for path in folder.iterdir():
        claim(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")


def claim(path, old, new):
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


@loaded()
def frames_in_several_fragments(planes):
    for ds in planes:
        compress(ds, JPEG2000Lossless)
        frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
        ds.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)
    yield


@refused("truncated")
def a_compressed_frame_cut_off(planes):
    for uid in (JPEG2000Lossless,):
        compress(planes[2], uid)
    frame = next(
        pydicom.encaps.generate_frames(planes[2].PixelData, number_of_frames=1)
    )
    planes[2].PixelData = encapsulate([frame[: len(frame) // 2 & ~1]])
    yield


@refused("cannot be decoded")
def an_rle_frame_cut_off(planes):
    compress(planes[2], RLELossless)
    frame = next(
        pydicom.encaps.generate_frames(planes[2].PixelData, number_of_frames=1)
    )
    planes[2].PixelData = encapsulate([frame[: len(frame) // 2 & ~1]])
    yield


@refused("compressed pixels are 32 x 40 x 1 where Rows.*30 x 40")
def a_codestream_of_another_size(planes):
    for ds in planes:
        compress(ds, JPEG2000Lossless)
        ds.Rows = 30
    yield


@loaded()
def enhanced_frames_shuffled_in_space(planes):
    planes[:] = [make_enhanced([planes[index] for index in (3, 0, 5, 1, 4, 2)])]


@loaded()
def enhanced_with_shared_groups(planes):
    shared = (
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    planes[:] = [make_enhanced(planes, shared=shared)]


@loaded()
def enhanced_and_compressed(planes):
    ds = make_enhanced(planes)
    compress(ds, RLELossless)
    planes[:] = [ds]
    yield


@refused("Number of Frames.*6 frames are described")
def enhanced_with_too_few_groups(planes):
    ds = make_enhanced(planes)
    ds.NumberOfFrames = 7
    planes[:] = [ds]


# 5. Limits ----------------------------------------------------------------------------


@refused("IM0002.dcm: .*truncated")
def pixels_cut_off(planes):
    folder = yield
    data = (folder / "IM0002.dcm").read_bytes()
    (folder / "IM0002.dcm").write_bytes(data[:-50])


@refused(r"Pixel Data \(7FE0,0010\) holds 2558 bytes.*claim 2560")
def pixel_data_too_short(planes):
    for ds in planes:
        ds.PixelData = ds.PixelData[:-2]


@refused(r"Pixel Data \(7FE0,0010\) holds 2600 bytes.*claim 2560")
def pixel_data_too_long(planes):
    for ds in planes:
        ds.PixelData = ds.PixelData + bytes(40)


@refused("Rows.*one plane would take 8590 MB")
def a_plane_that_claims_8_gigabytes(planes):
    each(planes, Rows=65535, Columns=65535)


@refused("Rows.*cannot come from")
def a_compressed_plane_that_claims_too_much(planes):
    for ds in planes:
        compress(ds, RLELossless)
        ds.Rows, ds.Columns = 4096, 4096
    yield


@loaded()
def junk_behind_the_pixels(planes):
    folder = yield
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + b"junk" * 50)


@refused("no CT series.*inflates to more than 96 MB")
def a_deflate_bomb(planes):
    planes[:] = planes[:1]
    compress(planes[0], DeflatedExplicitVRLittleEndian)
    folder = yield
    data = (folder / "IM0000.dcm").read_bytes()
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(wbits=-15)
    bomb = [packer.compress(bytes(1 << 20)) for _ in range(200)]
    bomb = b"".join([data[:start], *bomb, packer.flush()])
    (folder / "IM0000.dcm").write_bytes(bomb)


@refused("no CT series.*nested more than 32 deep")
def sequences_nested_10_000_deep(planes):
    folder = yield
    opening = (
        b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    )
    for path in folder.iterdir():
        insert(path, opening * 10_000)


@refused("no CT series.*more than 500000 elements")
def a_million_empty_items(planes):
    planes[:] = planes[:1]
    folder = yield
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_000
    insert(folder / "IM0000.dcm", b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + items)


@refused("no CT series.*truncated")
def an_element_that_claims_4_gigabytes(planes):
    folder = yield
    for path in folder.iterdir():
        insert(path, b"\x08\0\x40\x11OB\0\0\xfe\xff\xff\xff")


def insert(path, element):
    """Put raw bytes in front of group 0010."""
    data = path.read_bytes()
    place = data.index(b"\x10\0\x10\0PN")
    path.write_bytes(data[:place] + element + data[place:])


@loaded()
def a_nested_sequence_of_undefined_length(planes):
    folder = yield
    item = b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    inner = b"\x08\0\x50\x11UI\x02\0" + b"1\0" + b"\xfe\xff\x0d\xe0\0\0\0\0"
    close = b"\xfe\xff\xdd\xe0\0\0\0\0"
    sequence = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff"
    for path in folder.iterdir():
        insert(path, sequence + item + inner + close)


@loaded()
def private_elements_and_group_lengths(planes):
    for ds in planes:
        ds.add_new(0x00090010, "LO", "CANARY")
        ds.add_new(0x00091001, "UN", b"CANARY" * 100)
        ds.add_new(0x00280000, "UL", 12)


@loaded()
def names_in_other_characters(planes):
    each(planes, SpecificCharacterSet=["", "ISO 2022 IR 87"])
    put_raw(planes, "PatientName", b"CANARY=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")


@refused("twice")
def an_element_that_is_there_twice(planes):
    folder = yield
    for path in folder.iterdir():
        insert(path, b"\x28\0\x30\0DS\x04\x001\\1 ")


@refused("IM0000.dcm: Modality.*is a text that is not shown")
def html_in_a_code(planes):
    put_raw(planes, "Modality", b"<script>alert(1)</script>\x1b[31m" + b"A" * 500)


@pytest.mark.parametrize("keyword", sorted(TEXTS - FIRST))
def test_no_message_quotes_a_text(keyword, tmp_path):
    planes = make_planes()
    some = planes[:2] if keyword == "ConvolutionKernel" else planes
    put_raw(some, keyword, b"CANARIES")  # 8 bytes: a number may have as many
    save_planes(tmp_path, planes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        messages = [str(series) for series in find_series(tmp_path)]
        try:
            load_series(tmp_path)
        except SeriesError as error:
            messages.append(str(error))
    assert "CANAR" not in " ".join([*messages, *(str(note.message) for note in said)])


def test_enough_breaks():
    assert len(REFUSED) + len(LOADED) >= 60


def test_clean_series_does_not_warn(tmp_path):
    shutil.rmtree(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = load_series(save_planes(tmp_path, make_planes()))
    assert volume.array.dtype == np.int16
    assert isinstance(tmp_path, Path)
