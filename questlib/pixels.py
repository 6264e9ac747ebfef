"""Read the stored values of CT planes and turn them into Hounsfield units (03, 12)."""

import struct

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from questlib.header import UNDEFINED, SeriesError, open_dataset

MAX_PLANE = 1 << 27  # bytes
MAX_SERIES = 1 << 33  # bytes
MAX_RATIO = 2000  # a constant plane shrinks to a few hundred bytes
NATIVE = {"", *(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))}
AIR = -1024


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
        raise header.error("Rows", f"one plane would take {size >> 20} MB")
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
    if kind not in ("", "HU", "HU_MOD", "US"):
        raise header.error("RescaleType", "the numbers are not Hounsfield units")
    return slope, intercept


def list_frames(stream, header):
    """Return for each frame of encapsulated Pixel Data its [(start, length), ...]."""
    stream.seek(header.pixels[2])
    fragments = []
    while True:
        group, element, length = struct.unpack("<HHI", stream.read(8).ljust(8, b"\0"))
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        start = stream.tell()
        if (group, element) != (0xFFFE, 0xE000) or start + length > header.size:
            raise SeriesError(
                "compressed Pixel Data (7FE0,0010) is cut off or damaged; "
                "copy or export the file again",
                header.file,
            )
        fragments.append((start, length))
        stream.seek(length, 1)
    table, fragments = fragments[:1], fragments[1:]
    frames = max(header.frames, 1)
    if frames == 1:
        return [fragments]
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    if not fragments:
        raise SeriesError("its compressed frames are missing", header.file)
    stream.seek(table[0][0])
    offsets = np.frombuffer(stream.read(table[0][1] & ~3), "<u4").tolist()
    first = fragments[0][0] - 8
    marks = [start - 8 - first for start, _ in fragments]
    if len(offsets) != frames or offsets != sorted(set(offsets) & set(marks)):
        raise SeriesError("its compressed frames cannot be told apart", header.file)
    ends = [*offsets[1:], UNDEFINED]
    return [
        [f for f, mark in zip(fragments, marks, strict=True) if low <= mark < high]
        for low, high in zip(offsets, ends, strict=True)
    ]


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
    if header.text("TransferSyntaxUID") == "1.2.840.10008.1.2.5":
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
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise SeriesError(
            "its compressed pixels are cut off (truncated); export it again",
            header.file,
        )


def decode_frame(stream, header):
    """Return one plane's decoded pixels from encapsulated Pixel Data."""
    uid = UID(header.text("TransferSyntaxUID"))
    parts = []
    for start, length in list_frames(stream, header)[header.frame]:
        stream.seek(start)
        parts.append(stream.read(length))
    frame = b"".join(parts)
    bits = header.integer("BitsAllocated")
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        name = uid.name if uid.is_transfer_syntax else "an unknown compression"
        raise header.error(
            "TransferSyntaxUID",
            f"{name} cannot be decoded here; export the series uncompressed "
            "(Explicit VR Little Endian)",
        ) from None
    check_codestream(header, frame)
    try:
        return decoder.as_array(
            encapsulate([frame]),
            index=0,
            raw=True,
            rows=header.integer("Rows"),
            columns=header.integer("Columns"),
            number_of_frames=1,
            samples_per_pixel=1,
            bits_allocated=bits,
            bits_stored=header.integer("BitsStored"),
            pixel_representation=header.integer("PixelRepresentation"),
            photometric_interpretation=header.text("PhotometricInterpretation"),
            pixel_keyword="PixelData",
        )[0]
    # decoders are foreign code on foreign bytes: whatever they raise is a refusal
    except Exception as error:
        raise SeriesError(
            f"its pixels ({uid.name}) cannot be decoded "
            f"({type(error).__name__}); export the series uncompressed",
            header.file,
        ) from None


def read_raw(header):
    """Return the pixels of one plane as they are stored, bits untouched.

    Returns
    -------
    raw : (row, column) ndarray of uint8, uint16 or uint32
        Writable.
    """
    shape = header.integer("Rows"), header.integer("Columns")
    bits = header.integer("BitsAllocated")
    dtype = np.dtype(f"{header.order}u{bits // 8}")
    with open_dataset(header.file)[0] as stream:
        if header.pixels[3] == UNDEFINED:
            raw = decode_frame(stream, header)
            return raw.view(f"u{raw.dtype.itemsize}").copy()
        raw = np.empty(shape, dtype)
        stream.seek(header.pixels[2] + header.frame * raw.nbytes)
        if stream.readinto(raw.data.cast("B")) != raw.nbytes:
            raise SeriesError("changed while it was read; load it again", header.file)
    return raw.astype(dtype.newbyteorder("="), copy=False)


def read_stored(header):
    """Return the stored values of one plane, and where they are padding.

    Parameters
    ----------
    header : Header
        Checked by `check_pixels`.

    Returns
    -------
    stored : (row, column) ndarray of int
        Signed or unsigned as the header says, unused bits cleared.
    padding : None or (row, column) ndarray of bool
    dirty : bool
        Whether unused bits were set.

    References
    ----------
    DICOM PS3.5, 8.1.1 (Pixel Data encoding); PS3.3, C.7.5.1.1.2 (Pixel Padding Value).
    """
    raw = read_raw(header)
    bits, stored = raw.dtype.itemsize * 8, header.integer("BitsStored")
    signed = header.integer("PixelRepresentation")
    kind = f"{'i' if signed else 'u'}{bits // 8}"
    padding = find_padding(header, raw.view(kind))
    up, down = bits - header.integer("HighBit") - 1, bits - stored
    if not up and not down:
        return raw.view(kind), padding, False
    values = (raw << up).view(kind) >> down
    dirty = values.view(raw.dtype) != raw if up == down else np.zeros(0, bool)
    if dirty.any():
        sentinels = np.unique(raw[dirty])
        overflow = raw.view(f"i{bits // 8}")[dirty][0] < 0
        if len(sentinels) == 1 and overflow and dirty.sum() >= 16:
            return values, dirty if padding is None else padding | dirty, False
    return values, padding, bool(dirty.any())


def find_padding(header, raw):
    """Return where a plane holds its Pixel Padding Value or range, or None.

    The two values are read with the sign of the pixels: scanners write them with the
    wrong value representation.
    """
    if not header.values.get("PixelPaddingValue"):
        return None
    wrap = np.dtype(raw.dtype.str.replace("i", "u"))
    ends = [
        np.array(header.integer(keyword) & 0xFFFF, "u4").astype(wrap).view(raw.dtype)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        if header.values.get(keyword)
    ]
    low, high = min(ends), max(ends)
    if low == high:
        return raw == low
    return (raw >= low) & (raw <= high)
