"""A scan as one array with its place in the patient (built in notebooks 02 and 03)."""

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from questlib.header import CT_CLASSES
from questlib.pixels import AIR, MAX_SERIES, read_planes, to_hounsfield
from questlib.series import (
    SAME_POSITION,
    SeriesError,
    check_mixture,
    check_spacing,
    choose_series,
    find_series,
    sort_planes,
    warn,
)

__all__ = [
    "AXIAL",
    "Volume",
    "load_series",
    "load_volume",
    "save_volume",
    "to_hounsfield",
]


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Voxels together with the geometry that places them in the patient.

    Parameters
    ----------
    array : (plane, row, column) ndarray
        int16 where HU are whole numbers, else float32.
    spacing : 3 floats
        Distance of neighboring voxel centers in mm along (plane, row, column).
    origin : 3 floats
        LPS position in mm of the center of voxel (0, 0, 0).
    direction : (3, 3) ndarray of float
        Orthonormal; its columns are the plane, row and column axes in LPS.

    Raises
    ------
    ValueError
        If a part has the wrong shape, is not finite, or the axes are not orthonormal.

    References
    ----------
    DICOM PS3.3, C.7.6.2.1.1 (Image Position and Orientation).

    Examples
    --------
    >>> volume = Volume(np.zeros((4, 3, 2), np.int16), (5, 1, 1), (0, 0, 100), AXIAL)
    >>> volume
    Volume(4 x 3 x 2 int16, spacing 5.000 x 1.000 x 1.000 mm, 0 to 0 HU)
    >>> volume.affine @ (3, 0, 1, 1)  # plane 3, row 0, column 1
    array([  1.,   0., 115.,   1.])

    Built in notebook 02.
    """

    array: np.ndarray
    spacing: tuple
    origin: tuple
    direction: np.ndarray

    def __post_init__(self):
        array, direction = np.asarray(self.array), np.array(self.direction, float)
        spacing = tuple(float(value) for value in self.spacing)
        origin = tuple(float(value) for value in self.origin)
        if array.ndim != 3 or 0 in array.shape:
            raise ValueError(f"a volume is (plane, row, column), not {array.shape}")
        if len(spacing) != 3 or not all(np.isfinite(spacing)) or min(spacing) <= 0:
            raise ValueError(f"spacing must be 3 positive numbers in mm, not {spacing}")
        if len(origin) != 3 or not all(np.isfinite(origin)):
            raise ValueError(f"origin must be 3 finite numbers in mm, not {origin}")
        if direction.shape != (3, 3) or not np.allclose(
            direction.T @ direction, np.eye(3), atol=1e-3
        ):
            raise ValueError("direction must be 3 x 3 with orthogonal unit columns")
        for name, value in zip(
            ("array", "spacing", "origin", "direction"),
            (array, spacing, origin, direction),
            strict=True,
        ):
            object.__setattr__(self, name, value)

    @property
    def shape(self):
        """Number of (planes, rows, columns)."""
        return self.array.shape

    @property
    def affine(self):
        """4 x 4 matrix from (plane, row, column, 1) to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * self.spacing
        affine[:3, 3] = self.origin
        return affine

    def __repr__(self):
        shape = " x ".join(str(size) for size in self.shape)
        spacing = " x ".join(f"{value:.3f}" for value in self.spacing)
        low, high = self.array.min(), self.array.max()
        return (
            f"Volume({shape} {self.array.dtype}, spacing {spacing} mm, "
            f"{low:g} to {high:g} HU)"
        )


# The usual axial scan, head first and supine: planes go to the head, rows to the
# back, columns to the patient's left.
AXIAL = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def load_series(
    folder: str | os.PathLike,
    *,
    series_uid: str | None = None,
    regularize: bool = False,
) -> Volume:
    """Load the CT series of a folder as a volume in Hounsfield units.

    Parameters
    ----------
    folder : path
    series_uid : str, optional
        Which series, where the folder holds several: ``find_series(folder)[0].uid``.
    regularize : bool
        Resample planes that are unevenly spaced, missing, or tilted against their stack
        by their true position, instead of refusing them.

    Returns
    -------
    volume : Volume
        Array (plane, row, column) in HU, int16 where HU are whole numbers, else
        float32; padding is -1024 HU.

    Raises
    ------
    SeriesError
        If the planes do not form one volume of Hounsfield units. The message names the
        file, the attribute, its value, the likely cause, and what to do.

    Warns
    -----
    SeriesWarning
        If files, planes or bits were left out, or values may not be what they seem.

    Notes
    -----
    Planes are sorted and spaced by the projection of *Image Position (Patient)*
    (0020,0032) on their normal only; *Instance Number*, *Slice Location*, *Slice
    Thickness* and file names are not used. Everything is checked before it is stacked.

    References
    ----------
    DICOM PS3.3, C.7.6.2 (Image Plane) and C.8.2.1 (CT Image).

    Built in notebook 02, tested in notebook 12.
    """
    found = find_series(folder)
    series = choose_series(found, series_uid)
    check_suspects(found.suspects, series.uid)
    if series.dropped:
        warn(
            "localizers, captures or reports in the same series, left out: "
            f"{len(series.dropped)}",
            series.dropped[0].file,
        )
    stack = drop_duplicates(sort_planes(series.headers))
    check_mixture(stack)
    if len(stack.planes) == 1:
        spacing = thickness(stack.planes[0])
    elif regularize and not is_regular(stack):
        return straighten(stack, read_planes(stack.planes))
    else:
        spacing = check_spacing(stack)
    array = read_planes(stack.planes)
    return Volume(array, (spacing, *stack.pixel_spacing), stack.origin, stack.direction)


def check_suspects(suspects, uid):
    """Refuse a series one of whose files is damaged; warn of files that may be."""
    for path, reason in suspects:
        try:
            with path.open("rb") as file:
                head = file.read(1 << 20)
        except OSError:
            continue
        if uid.encode() in head or any(mark in head for mark in CT_CLASSES):
            raise SeriesError(
                f"{reason}; it may hold a plane of this series: export it again, or "
                "move the file out of the folder",
                path,
            )
    if suspects:
        path, reason = suspects[0]
        warn(
            f"{reason}; {len(suspects)} such file(s) left out, maybe lost planes", path
        )


def drop_duplicates(stack):
    """Drop planes that repeat the one before; refuse others at one position."""
    kept = [0]
    for index in range(1, len(stack.planes)):
        last = kept[-1]
        if stack.steps[index] - stack.steps[last] > SAME_POSITION:
            kept.append(index)
            continue
        pair = [stack.planes[last], stack.planes[index]]
        aside = np.abs(stack.shifts[index] - stack.shifts[last]).max()
        if aside > SAME_POSITION or not np.array_equal(*read_planes(pair, quiet=True)):
            here = stack.steps - stack.steps[last]
            raise SeriesError(
                f"{np.sum(np.abs(here) <= SAME_POSITION)} planes with different pixels "
                "at one position: two phases, kernels or reconstructions share the "
                "series; move one of them into a folder of its own",
                stack.planes[index].file,
            )
    doubles = sorted(set(range(len(stack.planes))) - set(kept))
    if doubles:
        file = stack.planes[doubles[0]].file
        warn(f"planes that are copies of others, left out: {len(doubles)}", file)
    return stack.take(kept)


def thickness(header):
    """Return Slice Thickness in mm as the spacing of a single plane, and warn."""
    why = "a single plane has no spacing, and this cannot stand in for it"
    value = header.numbers("SliceThickness", 1, why)[0]
    if not 0 < value < 100:
        raise header.error("SliceThickness", why)
    warn(
        "a single plane: its spacing along the normal is unknown, Slice Thickness "
        f"(0018,0050), {value:g} mm, stands in for it",
        header.file,
    )
    return value


def is_regular(stack):
    """Tell whether planes are evenly spaced and stand behind one another."""
    try:
        return bool(check_spacing(stack))
    except SeriesError:
        return False


def straighten(stack, array):
    """Resample irregular planes to a regular grid by their true positions.

    Parameters
    ----------
    stack : Stack
    array : (plane, row, column) ndarray
        HU of the planes of `stack`.

    Returns
    -------
    volume : Volume
        Spaced by the median gap, linear between planes, -1024 HU where no plane is.
    """
    steps = stack.steps - stack.steps[0]
    spacing = float(np.median(np.diff(steps)))
    count = math.floor(steps[-1] / spacing + 1e-6) + 1
    offsets = stack.shifts / stack.pixel_spacing
    low, high = np.floor(offsets.min(0) + 1e-6), np.ceil(offsets.max(0) - 1e-6)
    shape = tuple(np.array(array.shape[1:]) + (high - low).astype(int))
    size = count * math.prod(shape)
    if size > 8 * array.size:
        raise SeriesError(
            f"gaps of up to {np.diff(steps).max():.1f} mm and shifts of up to "
            f"{np.abs(stack.shifts).max():.1f} mm are too large to interpolate; "
            "move the planes that do not belong here into another folder",
            stack.planes[0].file,
        )

    def place(index):
        plane = np.full(shape, AIR, np.float32)
        plane[: array.shape[1], : array.shape[2]] = array[index]
        return ndimage.shift(plane, offsets[index] - low, order=1, cval=AIR)

    regular = np.empty((count, *shape), array.dtype)
    before, planes = -1, (None, None)
    for target in range(count):
        step = min(target * spacing, steps[-1])
        index = min(int(np.searchsorted(steps, step, "right")) - 1, len(steps) - 2)
        if index != before:
            before, planes = index, (place(index), place(index + 1))
        weight = (step - steps[index]) / (steps[index + 1] - steps[index])
        plane = (1 - weight) * planes[0] + weight * planes[1]
        regular[target] = plane if array.dtype == np.float32 else np.rint(plane)
    warn(
        f"irregular planes (gaps {np.diff(steps).min():.3f} to "
        f"{np.diff(steps).max():.3f} mm, up to {np.abs(stack.shifts).max():.1f} mm "
        f"aside) were interpolated to {count} planes every {spacing:.3f} mm",
        stack.planes[0].file,
    )
    origin = stack.origin + stack.direction[:, 1:] @ (low * stack.pixel_spacing)
    return Volume(regular, (spacing, *stack.pixel_spacing), origin, stack.direction)


def save_volume(path: str | os.PathLike, volume: Volume) -> None:
    """Save a volume's array and geometry, and nothing else, as an ``.npz`` file.

    Parameters
    ----------
    path : path
        Written through a temporary neighbor, so that no half file is left behind.
    volume : Volume

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> volume = Volume(np.zeros((4, 3, 2), np.int16), (5, 1, 1), (0, 0, 100), AXIAL)
    >>> with TemporaryDirectory() as folder:
    ...     save_volume(Path(folder, "scan.npz"), volume)
    ...     load_volume(Path(folder, "scan.npz"))
    Volume(4 x 3 x 2 int16, spacing 5.000 x 1.000 x 1.000 mm, 0 to 0 HU)

    Built in notebook 02.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **{name: getattr(volume, name) for name in PARTS})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


PARTS = {  # dtypes and number of axes of a saved volume
    "array": (("<i2", "<f4"), 3),
    "spacing": (("<f8",), 1),
    "origin": (("<f8",), 1),
    "direction": (("<f8",), 2),
}


def load_volume(path: str | os.PathLike) -> Volume:
    """Load a volume that `save_volume` wrote; nothing is unpickled.

    Parameters
    ----------
    path : path

    Returns
    -------
    volume : Volume

    Raises
    ------
    SeriesError
        If the file is something else, or its header claims more than it holds.

    Built in notebook 02.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in PARTS):
                raise ValueError("it has other members")
            return Volume(**{name: read_part(archive, name) for name in PARTS})
    # zipfile and numpy raise a dozen kinds of errors on a damaged file
    except Exception as error:
        raise SeriesError(
            f"is not a volume that save_volume wrote: {type(error).__name__}; "
            "load the DICOM series again",
            path,
        ) from None


def read_part(archive, name):
    """Return one array of a saved volume after comparing its header with its size."""
    info = archive.getinfo(f"{name}.npy")
    dtypes, axes = PARTS[name]
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("unknown version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
        held = min(info.file_size, info.compress_size) - file.tell()
        if dtype.str not in dtypes or len(shape) != axes or fortran:
            raise ValueError("unknown form")
        if size != held or size > min(
            MAX_SERIES, Path(archive.filename).stat().st_size
        ):
            raise ValueError("it claims another size than it has")
        array = np.empty(shape, dtype)
        if file.readinto(array.data.cast("B")) != size:
            raise ValueError("it is cut off")
    return array
