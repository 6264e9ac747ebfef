"""Read one DICOM header, within limits, whatever the file claims (notebook 12)."""

import re
import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from math import isfinite
from pathlib import Path

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.uid import UID_dictionary

# Far above what scanners write, far below what would exhaust a laptop.
MAX_ELEMENTS = 500_000
MAX_DEPTH = 32
MAX_VALUE = 1 << 26  # bytes of one header element that is kept
MAX_INFLATED = 96 << 20  # bytes of one deflated file
MAX_FRAMES = 10_000
WINDOW = 1 << 14  # bytes that are read at once
UNDEFINED = 0xFFFFFFFF
BIG_ENDIAN, DEFLATED = b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
CT_CLASSES = {b"1.2.840.10008.5.1.4.1.1.2" + end for end in (b"", b".1", b".2")}

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
VRS = LONG_VRS.union(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
WHOLE = """SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit"""
TEXTS = """TransferSyntaxUID MediaStorageSOPClassUID SOPClassUID ImageType FrameType
    Modality PatientName PatientID StudyInstanceUID SeriesInstanceUID
    FrameOfReferenceUID SliceThickness KVP ConvolutionKernel AcquisitionNumber
    TemporalPositionIdentifier NominalPercentageOfCardiacPhase ImagePositionPatient
    ImageOrientationPatient PhotometricInterpretation NumberOfFrames PixelSpacing
    LossyImageCompression RescaleIntercept RescaleSlope RescaleType"""
GROUPS = """CTImageFrameTypeSequence FrameContentSequence PixelMeasuresSequence
    PixelValueTransformationSequence PlaneOrientationSequence PlanePositionSequence"""
IDENTIFIERS = """PatientName PatientID StudyInstanceUID SeriesInstanceUID
    FrameOfReferenceUID"""
FRAMES = "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
IDENTIFIERS, FRAMES = set(IDENTIFIERS.split()), set(FRAMES.split())
WHOLE, TEXTS, GROUPS = set(WHOLE.split()), set(TEXTS.split()), set(GROUPS.split())
TAGS = {tag_for_keyword(word): word for word in WHOLE | TEXTS | GROUPS | FRAMES}
# The words that a message may quote: none can name a person.
TERMS = """AU BI CR CT DOC DX ECG ES GM IO KO MG MR NM OP OT PR PT PX REG RF RG RTDOSE
    RTIMAGE RTPLAN RTSTRUCT SC SEG SM SR US XA XC MONOCHROME1 MONOCHROME2 RGB YBR_FULL
    YBR_FULL_422 HU HU_MOD OD HGML ED 00 01"""
TERMS = frozenset((*TERMS.split(), "PALETTE COLOR"))
NUMBERS = re.compile(r"(?:[\d+\-.,_eE\\ ]|nan|inf)*", re.IGNORECASE | re.ASCII)
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _name_file(self, message, file):
    self.file = Path(file).name if file is not None else None
    self.reason = message
    return f"{quote(self.file, 255)}: {message}" if self.file else message


class SeriesError(ValueError):
    """A scan that questlib refuses to load.

    Parameters
    ----------
    message : str
    file : None or path
        Its base name stands before the message and is kept as ``error.file``.
    """

    def __init__(self, message, file=None):
        super().__init__(_name_file(self, message, file))


class SeriesWarning(UserWarning):
    """Something about a loaded scan that you should know; like SeriesError."""

    def __init__(self, message, file=None):
        super().__init__(_name_file(self, message, file))


class NotDicomError(SeriesError):
    """The file is something else, not a damaged DICOM file."""

    binary = False  # whether the file looks like data, not like text


def quote(text, limit=48):
    """Return text from a file in a form that is short and safe to print."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def name_tag(keyword):
    """Return an attribute's name and tag: ``Pixel Spacing (0028,0030)``."""
    tag = tag_for_keyword(keyword)
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


@dataclass(frozen=True, slots=True)
class Header:
    """What one image plane's header says: raw values by keyword, and its pixels' place.

    Parameters
    ----------
    file : Path
    values : dict of str to bytes
        Raw element values by keyword; of a multi-frame file, this frame's own.
    order : "<" or ">"
        Byte order.
    implicit : bool
        Whether value representations are left out.
    pixels : None or (tag, VR, start, length)
        Pixel Data; start and length in bytes, of the inflated file if it is deflated.
    size : int
        Bytes of the file, inflated.
    frame, frames : int
        Index of the plane in its file; number of frames, 0 in a single-frame file.
    """

    file: Path
    values: dict
    order: str
    implicit: bool
    pixels: tuple | None
    size: int
    frame: int = 0
    frames: int = 0

    def text(self, keyword):
        """Return a value as text without padding; empty where it is missing."""
        return self.values.get(keyword, b"").decode("latin-1").strip(" \0\t\r\n")

    def numbers(self, keyword, count, why=""):
        """Return `count` finite numbers of a decimal string, or raise SeriesError."""
        text = self.text(keyword)
        try:
            numbers = [float(part) for part in text.split("\\")]
        except ValueError:
            numbers = []
        if len(numbers) != count or not all(map(isfinite, numbers)) or "_" in text:
            wanted = "a number" if count == 1 else f"{count} numbers"
            raise self.error(keyword, why or f"it must be {wanted}")
        return numbers

    def integer(self, keyword, default=None):
        """Return an unsigned 16- or 32-bit value, or raise SeriesError."""
        value = self.values.get(keyword, b"")
        if not value and default is not None:
            return default
        if len(value) not in (2, 4):
            raise self.error(keyword, "it must be one whole number")
        return int.from_bytes(value, "little" if self.order == "<" else "big")

    def show(self, keyword):
        """Return a value as a message may show it: a number, or a known term."""
        value = self.values.get(keyword, b"")
        if not value:
            return "missing"
        if keyword in WHOLE and len(value) in (2, 4):
            return str(self.integer(keyword))
        text = self.text(keyword)
        number = dictionary_VR(keyword) in ("DS", "IS") and NUMBERS.fullmatch(text)
        if number or text in TERMS or text in UID_dictionary:
            return f"'{quote(text)}'"
        return "a text that is not shown, as it may name somebody"

    def error(self, keyword, why):
        """Return a SeriesError that names file, attribute and value (no identifier)."""
        what = "differs" if keyword in IDENTIFIERS else f"is {self.show(keyword)}"
        return SeriesError(f"{name_tag(keyword)} {what}; {why}", self.file)


class Walker:
    """Step through the elements of a data set, within limits.

    Parameters
    ----------
    stream : seekable binary stream, at the first element
    file : Path
        For messages.
    order : "<" or ">"
    implicit : bool
    stop : int
        The first group that is no longer read.
    """

    def __init__(self, stream, file, *, order="<", implicit=False, stop=0x10000):
        self.stream, self.file, self.stop = stream, file, stop
        self.order, self.implicit = order, implicit
        self.head, self.long = struct.Struct(order + "HHI"), struct.Struct(order + "I")
        self.short = struct.Struct(order + "H")
        self.left = MAX_ELEMENTS
        self.at = stream.tell()  # of the next element
        self.size = stream.seek(0, 2)
        self.begin, self.window = 0, b""

    def damaged(self, why):
        return SeriesError(f"{why}; the file is damaged: export it again", self.file)

    def reach(self, start, length):
        """Read on until bytes of the stream lie in the window; return where."""
        here = start - self.begin
        if here < 0 or here + length > len(self.window):
            self.stream.seek(start)
            self.begin, here = start, 0
            self.window = self.stream.read(max(length, WINDOW))
        return here

    def fetch(self, start, length):
        """Return bytes of the stream; fewer at its end."""
        here = self.reach(start, length)
        return self.window[here : here + length]

    def read_head(self, implicit):
        """Step over the next element's tag, VR and length, and return them.

        None at the end, and before the group `stop`.
        """
        here = self.reach(self.at, 12)
        left = len(self.window) - here
        group, element, length = (
            self.head.unpack_from(self.window, here) if left >= 8 else (0, 0, 0)
        )
        if not (group or element or length):
            if self.fetch(self.at, 1 << 16).strip(b"\0"):
                raise self.damaged("its header is cut off (truncated)")
            return None
        self.left -= 1
        if not self.left:
            raise self.damaged(f"it has more than {MAX_ELEMENTS} elements")
        if group >= self.stop:
            return None
        self.at += 8
        vr = b""
        if not implicit and group != 0xFFFE:
            vr = self.window[here + 4 : here + 6]
            if vr in LONG_VRS:
                if left < 12:
                    raise self.damaged("its header is cut off (truncated)")
                length = self.long.unpack_from(self.window, here + 8)[0]
                self.at += 4
            elif vr in VRS:
                length = self.short.unpack_from(self.window, here + 6)[0]
            else:
                raise self.damaged(f"({group:04X},{element:04X}) has no valid VR")
        return group << 16 | element, vr, length

    def skip_items(self, implicit):
        """Go behind a sequence or item of undefined length."""
        nested = [implicit]
        while nested:
            if len(nested) > MAX_DEPTH:
                raise self.damaged(f"sequences are nested more than {MAX_DEPTH} deep")
            tag, vr, length = self.read_head(nested[-1]) or (0, b"", UNDEFINED)
            if not tag:
                raise self.damaged("a sequence never ends (truncated?)")
            if tag in (0xFFFEE00D, 0xFFFEE0DD):
                nested.pop()
            elif length == UNDEFINED:
                nested.append(nested[-1] or vr == b"UN")
            else:
                self.at += length

    def read(self):
        """Return the kept values of one data set by keyword, and its Pixel Data.

        Pixel Data is (tag, VR, start, length), or None; nothing behind it is read.
        """
        values = {}
        while head := self.read_head(self.implicit):
            tag, vr, length = head
            start = self.at
            if tag in PIXEL_TAGS:
                return values, (tag, vr, start, length)
            if length == UNDEFINED:
                self.skip_items(self.implicit or vr == b"UN")
                length = self.at - start
            self.at = start + length
            if self.at > self.size:
                raise self.damaged("its header is cut off (truncated)")
            if keyword := TAGS.get(tag):
                if length > MAX_VALUE:
                    raise self.damaged(f"{name_tag(keyword)} claims {length} bytes")
                value = self.fetch(start, length)
                if values.setdefault(keyword, value) != value:
                    raise self.damaged(f"{name_tag(keyword)} is there twice")
        return values, None

    def items(self, value):
        """Return the data sets of a sequence's items, each as a dict of values."""
        how = {"order": self.order, "implicit": self.implicit}
        inner = Walker(BytesIO(value), self.file, **how)
        found = []
        while (head := inner.read_head(self.implicit)) and head[0] == 0xFFFEE000:
            start, length = inner.at, head[2]
            if length == UNDEFINED:
                inner.skip_items(self.implicit)
                length = inner.at - 8 - start
            part = BytesIO(value[start : start + length])
            found.append(Walker(part, self.file, **how).read()[0])
            inner.at = start + length + (8 if head[2] == UNDEFINED else 0)
        if value and not found:
            raise self.damaged("a sequence of functional groups has no items")
        return found


def open_dataset(path):
    """Open a DICOM file behind its preamble and file meta information.

    Parameters
    ----------
    path : Path

    Returns
    -------
    stream : seekable binary stream at the first element, inflated if it was deflated
    meta : dict of str to bytes

    Raises
    ------
    NotDicomError
        If the content is not DICOM.
    SeriesError
        If it is, but damaged.
    OSError
        If the file cannot be read.
    """
    stream = path.open("rb")
    head = stream.read(140)
    start = 132 if head[128:132] == b"DICM" else 0
    group, element = struct.unpack("<HH", head[start : start + 4].ljust(4, b"\xff"))
    known = group in (2, 4, 8) or (group, element >> 8) == (0x0800, 0)
    if not (start or known):
        stream.close()
        kind = "empty file" if not head else "not a DICOM file"
        if head[:2] == b"PK":
            kind = "a zip archive: unpack it first"
        error = NotDicomError(kind, path)
        error.binary = b"\0" in head or not head
        raise error
    stream.seek(start)
    meta = {}
    if head[start : start + 2] == b"\2\0":
        walker = Walker(stream, path, stop=3)
        meta = walker.read()[0]
        stream.seek(walker.at)
    syntax = meta.get("TransferSyntaxUID", b"").strip(b" \0")
    if syntax == DEFLATED:
        with stream:
            return inflate(stream, path), meta
    return stream, meta


def open_pixels(header):
    """Open what ``header.pixels`` counts in: the file, or what it inflates to."""
    if header.values.get("TransferSyntaxUID", b"").strip(b" \0") == DEFLATED:
        return open_dataset(header.file)[0]
    return header.file.open("rb")


def inflate(stream, path):
    """Return the rest of a deflated file as a stream, never more than 96 MB."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(stream.read(MAX_INFLATED), MAX_INFLATED)
    except zlib.error as error:
        raise SeriesError(
            "its deflated data set is damaged; export it again", path
        ) from error
    if not inflater.eof:
        full = len(data) >= MAX_INFLATED
        why = "inflates to more than 96 MB" if full else "its deflated data set is cut"
        raise SeriesError(f"{why}; export it again without compression", path)
    return BytesIO(data)


def read_header(path):
    """Read what one DICOM file says about its image planes.

    Parameters
    ----------
    path : Path

    Returns
    -------
    planes : list of Header
        One a plane: more than one for a multi-frame file.

    Raises
    ------
    NotDicomError
        If the content is not DICOM.
    SeriesError
        If it is DICOM but cut off, damaged, or beyond the limits of this module.

    References
    ----------
    DICOM PS3.5, 7.1 (Data Elements), 7.5 (Nesting), A.4 and A.5 (Transfer Syntaxes);
    PS3.10, 7.1 (File Meta Information).

    Built in notebook 01, tested in notebook 12.
    """
    try:
        return read_planes_of(path)
    except OSError as error:  # a scratched disc
        raise SeriesError(f"cannot be read: {error.strerror}", path) from None


def read_planes_of(path):
    """Do what `read_header` promises, except that an OSError may escape."""
    stream, meta = open_dataset(path)
    with stream:
        start = stream.tell()
        head = stream.read(8).ljust(8, b"\0")
        stream.seek(start)
        # the first group is small, so the smaller reading of its two bytes is right
        order = min("<>", key=lambda order: struct.unpack(order + "H", head[:2]))
        walker = Walker(stream, path, order=order, implicit=head[4:6] not in VRS)
        values, pixels = walker.read()
        big = meta.get("TransferSyntaxUID", b"").strip(b" \0") == BIG_ENDIAN
        if meta and big != (order == ">"):
            here = "little" if order == "<" else "big"
            raise walker.damaged(
                f"{name_tag('TransferSyntaxUID')} does not fit {here} endian elements"
            )
        kinds = {values.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")}
        kinds = {kind.strip(b" \0") for kind in kinds if kind}
        if not pixels and (kinds & CT_CLASSES or not kinds):
            raise walker.damaged("an image without Pixel Data (7FE0,0010): truncated")
        size = walker.size
        header = Header(path, meta | values, order, walker.implicit, pixels, size)
        if "PerFrameFunctionalGroupsSequence" not in values:
            return [header]
        return split_frames(header, walker)


def split_frames(header, walker):
    """Return one Header a frame of an enhanced multi-frame file."""

    def merge(item):
        merged = {}
        for keyword in GROUPS & item.keys():
            for values in walker.items(item[keyword])[:1]:
                merged |= values
        return merged

    shared = walker.items(header.values.get("SharedFunctionalGroupsSequence", b""))
    frames = walker.items(header.values["PerFrameFunctionalGroupsSequence"])
    common = header.values | (merge(shared[0]) if shared else {})
    common = {key: value for key, value in common.items() if "Sequence" not in key}
    count = len(frames)
    if header.text("NumberOfFrames") != str(count) or count > MAX_FRAMES:
        raise header.error("NumberOfFrames", f"but {count} frames are described")
    return [
        replace(header, values=common | merge(frame), frame=index, frames=count)
        for index, frame in enumerate(frames)
    ]
