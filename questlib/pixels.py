"""Read the stored values of CT planes and turn them into Hounsfield units (03, 12)."""

import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import UID
from scipy import ndimage

from questlib.decoder import DecodeError, Decoders
from questlib.header import UNDEFINED, SeriesError, name_tag, open_pixels
from questlib.series import warn

MAX_PLANE = 1 << 26  # bytes
MAX_SERIES = 1 << 33  # bytes
MAX_RATIO = 2000  # a constant plane shrinks to a few hundred bytes
NATIVE = {"", *(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))}
RLE = "1.2.840.10008.1.2.5"
LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
AIR = -1024  # HU
TISSUE = -950, 2000  # HU between which padding may be meant as tissue


def to_hounsfield(stored, slope, intercept):
    """Turn stored pixel values into Hounsfield units.

    Parameters
    ----------
    stored : (..., row, column) ndarray of int
        Pixel values as decoded, before any scaling (``ds.pixel_array``).
    slope, intercept : float
        *Rescale Slope* (0028,1053) and *Rescale Intercept* (0028,1052).

    Returns
    -------
    hu : ndarray, same shape as `stored`
        Radiodensity in HU; water is 0, air about -1000. int16 where every HU is a
        whole number and fits, else float32.

    Raises
    ------
    ValueError
        If `slope` is 0 (every pixel would become `intercept`) or not finite.

    Notes
    -----
    Scale before windowing; scale each plane with its own pair, they may differ.

    References
    ----------
    DICOM PS3.3, C.11.1 (Modality LUT) and C.8.2.1 (CT Image).

    Examples
    --------
    >>> to_hounsfield(np.array([[0, 1024]], dtype=np.uint16), 1.0, -1024.0)
    array([[-1024,     0]], dtype=int16)

    Built in notebook 03.
    """
    stored = np.asarray(stored)
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ValueError(
            f"Rescale Slope (0028,1053) is {slope:g} and Rescale Intercept (0028,1052) "
            f"is {intercept:g}: both must be finite and the slope not 0"
        )
    whole = float(slope).is_integer() and float(intercept).is_integer()
    if whole and np.issubdtype(stored.dtype, np.integer) and stored.size:
        slope, intercept = int(slope), int(intercept)
        ends = [int(end) * slope + intercept for end in (stored.min(), stored.max())]
        if min(ends) >= -32768 and max(ends) <= 32767:
            if slope == 1 and stored.itemsize == 2 and abs(intercept) < 32768:
                return stored.astype(np.int16, copy=False) + np.int16(intercept)
            return (stored.astype(np.int64) * slope + intercept).astype(np.int16)
    return (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)


def read_planes(planes, *, quiet=False):
    """Read CT planes into one array in HU.

    Parameters
    ----------
    planes : list of Header
        In order, all of one shape.
    quiet : bool
        Whether to keep warnings back.

    Returns
    -------
    array : (plane, row, column) ndarray
        int16 where every plane's HU are whole numbers and fit, else float32; padding
        and anything below is -1024 HU.

    Raises
    ------
    SeriesError
        If a plane's pixels are missing, damaged, cannot be decoded, or are not HU.

    Notes
    -----
    Every claim is checked before anything is allocated. Each plane is rescaled with its
    own slope and intercept, straight into its place.

    Built in notebook 03.
    """
    if sum(check_pixels(header) for header in planes) > MAX_SERIES:
        raise SeriesError(f"the series would take more than {MAX_SERIES >> 30} GB")
    shape = len(planes), planes[0].integer("Rows"), planes[0].integer("Columns")
    for dtype in (np.int16, np.float32):
        try:
            array, notes = fill(planes, np.empty(shape, dtype))
        except MemoryError:
            raise SeriesError(
                "the series does not fit into this machine's memory"
            ) from None
        if None not in notes:
            break
    if not quiet:
        warn_of_pixels(planes, notes)
    return array


def fill(planes, array):
    """Read planes into `array` on two threads; return it and each plane's notes."""
    with Decoders() as decoders, ThreadPoolExecutor(2) as pool:
        tasks = zip(planes, array, strict=True)
        read = [pool.submit(read_plane, *task, decoders) for task in tasks]
        try:
            return array, [future.result() for future in read]
        finally:
            pool.shutdown(cancel_futures=True)


def warn_of_pixels(planes, notes):
    """Warn once of each thing that is odd about the pixels of a series."""
    for keyword, message in NOTES.items():
        files = [
            h.file for h, note in zip(planes, notes, strict=True) if keyword in note
        ]
        if files:
            warn(f"{message} ({len(files)} of {len(planes)} planes)", files[0])
    for keywords in (
        ("RescaleSlope", "RescaleIntercept"),
        ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    ):
        kinds = [tuple(map(h.show, keywords)) for h in planes]
        (common, count), *others = Counter(kinds).most_common()
        if others and count >= 0.75 * len(planes):
            odd = next(
                h for h, kind in zip(planes, kinds, strict=True) if kind != common
            )
            keyword = next(
                k for k, c in zip(keywords, common, strict=True) if odd.show(k) != c
            )
            warn(
                f"{name_tag(keyword)} is {odd.show(keyword)}, on most planes of the "
                "series it is another; each plane was read with its own: look at it",
                odd.file,
            )


NOTES = {
    "dirty": "bits above Bits Stored (0028,0101) were set, and cleared: an overlay, "
    "or a damaged file; compare with another viewer",
    "tissue": "Pixel Padding Value (0028,0120) lies among tissue values: only padding "
    "that touches the image's border became air; look at the pictures",
    "lossy": "lossy compression: HU are approximate; export uncompressed to measure",
}


def check_pixels(header):
    """Check what a plane claims about its pixels before anything is allocated.

    Parameters
    ----------
    header : Header

    Returns
    -------
    size : int
        Bytes of the decoded plane.

    Raises
    ------
    SeriesError
        If pixels are missing, cut off, too many, or not Hounsfield units.
    """
    if not header.pixels or header.pixels[0] != 0x7FE00010:
        raise SeriesError("has no integer Pixel Data (7FE0,0010)", header.file)
    if header.text("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise header.error("PhotometricInterpretation", "it must be MONOCHROME2")
    bits = header.integer("BitsAllocated")
    if bits not in (8, 16, 32):
        raise header.error("BitsAllocated", "it must be 8, 16 or 32")
    stored = header.integer("BitsStored")
    if not 1 <= stored <= bits:
        raise header.error("BitsStored", f"it must be between 1 and {bits}")
    if not stored - 1 <= header.integer("HighBit") < bits:
        raise header.error("HighBit", f"it does not fit {stored} bits stored")
    if header.integer("PixelRepresentation") not in (0, 1):
        raise header.error("PixelRepresentation", "it must be 0 or 1")
    read_rescale(header)
    size = header.integer("Rows") * header.integer("Columns") * bits // 8
    if size > MAX_PLANE:
        raise header.error("Rows", f"one plane would take {size / 1e6:.0f} MB")
    check_length(header, size)
    return size


def check_length(header, size):
    """Compare the length of Pixel Data with what the header claims."""
    _, _, start, length = header.pixels
    claimed = size * max(header.frames, 1)
    native = header.text("TransferSyntaxUID") in NATIVE
    if native != (length != UNDEFINED):
        raise header.error("TransferSyntaxUID", "but Pixel Data is stored otherwise")
    if native and length not in (claimed, claimed + claimed % 2):
        raise SeriesError(
            f"Pixel Data (7FE0,0010) holds {length} bytes where Rows, Columns and bits "
            f"claim {claimed}: the header is wrong or the file cut; export it again",
            header.file,
        )
    if native and start + length > header.size + claimed % 2:
        raise SeriesError(
            f"Pixel Data (7FE0,0010) is cut off (truncated): {header.size - start} of "
            f"{length} bytes are there; copy or export the file again",
            header.file,
        )
    if not native and claimed > MAX_RATIO * header.size:
        raise header.error("Rows", f"{claimed} bytes cannot come from {header.size}")


def read_rescale(header):
    """Return slope and intercept, or raise a SeriesError: not Hounsfield units."""
    why = "without a usable value the numbers are not Hounsfield units"
    slope, intercept = (
        header.numbers(keyword, 1, why)[0]
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if not 1e-6 < abs(slope) < 1e6 or abs(intercept) > 1e6:
        raise header.error(
            "RescaleSlope" if abs(intercept) <= 1e6 else "RescaleIntercept", why
        )
    kind = header.text("RescaleType")
    if kind not in ("", "HU", "HU_MOD"):
        raise header.error("RescaleType", "the numbers are not Hounsfield units")
    return slope, intercept


def read_plane(header, out, decoders):
    """Write one plane's HU into `out`.

    Returns
    -------
    notes : None or set of str
        Keys of `NOTES`; None if `out` is int16 and the plane does not fit.
    """
    notes = {"lossy"} if is_lossy(header) else set()
    slope, intercept = read_rescale(header)
    raw = read_raw(header, decoders)
    padding = find_padding(header, raw)
    if padding is not None:
        hu = raw[padding] * slope + intercept
        if ((hu > TISSUE[0]) & (hu < TISSUE[1])).any():
            notes.add("tissue")
            padding = touching_border(padding)
    stored, dirty = clear_unused_bits(header, raw)
    if dirty is not None and is_sentinel(raw[dirty]):
        padding = dirty if padding is None else padding | dirty
    elif dirty is not None and (padding is None or (dirty & ~padding).any()):
        notes.add("dirty")
    limits = np.iinfo(stored.dtype)
    floor = -(-(AIR - intercept) // slope) if slope > 0 else limits.min
    floor = int(min(max(floor, limits.min), limits.max))
    if padding is not None:
        stored[padding] = floor
    if stored.min() < floor:
        np.maximum(stored, floor, out=stored)
    hu = to_hounsfield(stored, slope, intercept)
    if hu.dtype != out.dtype and out.dtype == np.int16:
        return None
    np.maximum(hu, AIR, out=out)
    if padding is not None:
        out[padding] = AIR
    return notes


def is_lossy(header):
    """Tell whether a plane's pixels were compressed with loss."""
    flag = header.text("LossyImageCompression")
    return flag == "01" or header.text("TransferSyntaxUID") in LOSSY


def touching_border(mask):
    """Return the parts of a (row, column) mask that touch the image's border."""
    labels, _ = ndimage.label(mask)
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, edges[edges > 0])


def read_codestream(frame):
    """Return (rows, columns, samples, tiles) of a JPEG or JPEG 2000 codestream."""
    start = frame.find(b"\xff\x4f\xff\x51")  # also behind a JP2 box header
    if 0 <= start < 256:
        size = struct.unpack_from(">8I", frame, start + 8)
        rows, columns = size[1] - size[3], size[0] - size[2]
        tiles = -(-rows // max(size[5], 1)) * -(-columns // max(size[4], 1))
        return rows, columns, struct.unpack_from(">H", frame, start + 40)[0], tiles
    position = 2
    while frame[position] == 0xFF:
        kind, length = struct.unpack_from(">xBH", frame, position)
        if (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)) or kind == 0xF7:
            _, rows, columns, samples = struct.unpack_from(">BHHB", frame, position + 4)
            return rows, columns, samples, 1
        position += 2 + length
    raise ValueError("no frame header")


def check_codestream(header, frame):
    """Compare what a compressed frame says of itself with the DICOM header.

    A decoder believes the codestream and would allocate whatever that claims.
    """
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if header.text("TransferSyntaxUID") == RLE:
        return
    try:
        inner = read_codestream(frame)
    except (struct.error, IndexError, ValueError):
        raise SeriesError("its compressed pixels are damaged", header.file) from None
    if inner[:3] != (rows, columns, 1) or inner[3] > 4096:
        raise SeriesError(
            f"its compressed pixels are {inner[0]} x {inner[1]} x {inner[2]} where "
            f"Rows and Columns say {rows} x {columns}; export it again",
            header.file,
        )
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise SeriesError(
            "its compressed pixels are cut off (truncated); export it again",
            header.file,
        )


def check_fragments(stream, header):
    """Step through encapsulated Pixel Data; refuse it when it does not end properly."""
    start = stream.seek(header.pixels[2])
    while True:
        group, element, length = struct.unpack("<HHI", stream.read(8).ljust(8, b"\0"))
        end = stream.seek(length, 1)
        if (group, element) != (0xFFFE, 0xE000) or end > header.size:
            break
    if (group, element, length) != (0xFFFE, 0xE0DD, 0):
        raise SeriesError(
            "compressed Pixel Data (7FE0,0010) is cut off (truncated) or damaged; "
            "copy or export the file again",
            header.file,
        )
    stream.seek(start)


def read_frame(stream, header):
    """Return the bytes of one compressed frame."""
    stream.seek(header.pixels[2])
    if header.frame == 0:  # once a file
        check_fragments(stream, header)
    frames = max(header.frames, 1)
    try:
        return get_frame(stream, header.frame, number_of_frames=frames)
    except (ValueError, struct.error, StopIteration, EOFError):
        raise SeriesError(
            "its compressed frames cannot be told apart; export it again", header.file
        ) from None


def decode_plane(stream, header, decoders):
    """Return one plane's decoded pixels from encapsulated Pixel Data."""
    uid = UID(header.text("TransferSyntaxUID"))
    name = uid.name if uid.is_transfer_syntax else "unknown compression"
    hint = f"{name} cannot be decoded here; export the series uncompressed"
    try:
        if not get_decoder(uid).is_available:
            hint += ', or pip install "pylibjpeg-libjpeg"'
            raise NotImplementedError
    except NotImplementedError:
        raise header.error("TransferSyntaxUID", hint) from None
    frame = read_frame(stream, header)
    check_codestream(header, frame)
    options = {
        "syntax": str(uid),
        "rows": header.integer("Rows"),
        "columns": header.integer("Columns"),
        "bits_allocated": header.integer("BitsAllocated"),
        "bits_stored": header.integer("BitsStored"),
        "pixel_representation": header.integer("PixelRepresentation"),
    }
    try:
        return decoders.decode(frame, options)
    except DecodeError as error:
        raise SeriesError(
            f"its pixels ({name}) cannot be decoded: {error}; the file is damaged, "
            "export it again",
            header.file,
        ) from None


def read_raw(header, decoders):
    """Return one plane as it is stored, signed or unsigned, unused bits untouched."""
    bits = header.integer("BitsAllocated")
    kind = f"{'i' if header.integer('PixelRepresentation') else 'u'}{bits // 8}"
    shape = header.integer("Rows"), header.integer("Columns")
    try:
        with open_pixels(header) as stream:
            if header.pixels[3] == UNDEFINED:
                return decode_plane(stream, header, decoders).view(kind)
            raw = np.empty(shape, header.order + kind)
            stream.seek(header.pixels[2] + header.frame * raw.nbytes)
            if stream.readinto(raw.data.cast("B")) != raw.nbytes:
                raise OSError("it changed while it was read")
    except OSError as error:
        why = error.strerror or error
        raise SeriesError(
            f"cannot be read: {why}; load it again", header.file
        ) from None
    return raw.astype(kind, copy=False)


def clear_unused_bits(header, raw):
    """Clear the bits outside Bits Stored, and extend the sign over them.

    Returns
    -------
    stored : ndarray like `raw`
    dirty : None or ndarray of bool
        Where unused bits said something else.

    References
    ----------
    DICOM PS3.5, 8.1.1 (Pixel Data encoding of related data elements).
    """
    above = raw.itemsize * 8 - header.integer("HighBit") - 1
    unused = raw.itemsize * 8 - header.integer("BitsStored")
    if not unused:
        return raw, None
    stored = (raw << above) >> unused
    dirty = stored != raw
    return stored, dirty if above == unused and dirty.any() else None


def is_sentinel(values):
    """Tell whether unused bits are set only because of one negative padding value."""
    signed = values.view(values.dtype.str.replace("u", "i"))
    return len(values) >= 16 and signed[0] < 0 and bool((values == values[0]).all())


def find_padding(header, raw):
    """Return where a plane holds its Pixel Padding Value or range, or None.

    Scanners write the two values with the wrong VR: the pixels' sign decides.

    References
    ----------
    DICOM PS3.3, C.7.5.1.1.2 (Pixel Padding Value and Pixel Padding Range Limit).
    """
    if not header.values.get("PixelPaddingValue"):
        return None
    ends = [
        np.array(header.integer(keyword) & 0xFFFF, "u4").astype(raw.dtype)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if header.values.get(keyword)
    ]
    low, high = min(ends), max(ends)
    padding = raw == low if low == high else (raw >= low) & (raw <= high)
    return padding if padding.any() else None
