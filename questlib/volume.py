"""A scan as one array with its place in the patient (built in notebooks 02 and 03)."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from questlib.pixels import check_pixels, read_rescale, read_stored
from questlib.series import (
    check_spacing,
    choose_series,
    find_series,
    sort_planes,
)


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Voxels together with the geometry that places them in the patient.

    Parameters
    ----------
    array : (plane, row, column) ndarray
        int16 where HU are whole numbers, else float32.
    spacing : 3 floats
        Distance of neighbouring voxel centres in mm along (plane, row, column).
    origin : 3 floats
        LPS position in mm of the centre of voxel (0, 0, 0).
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
        ends = [int(stored.min()) * int(slope) + int(intercept)]
        ends.append(int(stored.max()) * int(slope) + int(intercept))
        if min(ends) >= -32768 and max(ends) <= 32767:
            hu = stored.astype(np.int32) * int(slope) + int(intercept)
            return hu.astype(np.int16)
    return (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)


def load_series(folder, *, series_uid=None, regularize=False):
    """Load the CT series of a folder as a volume in Hounsfield units.

    TODO
    """
    series = choose_series(find_series(folder), series_uid)
    stack = sort_planes(series.headers)
    for header in stack.planes:
        check_pixels(header)
    spacing = check_spacing(stack)
    array = read_planes(stack.planes)
    return Volume(array, (spacing, *stack.pixel_spacing), stack.origin, stack.direction)


def read_planes(planes):
    """Return the planes as one array in HU."""
    shape = len(planes), planes[0].integer("Rows"), planes[0].integer("Columns")
    array = np.empty(shape, np.int16)

    def read(index):
        hu = read_plane(planes[index])
        whole = hu.dtype == np.int16
        if whole or array.dtype == np.float32:
            array[index] = hu
        return whole or array.dtype == np.float32

    with ThreadPoolExecutor(2) as pool:
        if not all(pool.map(read, range(len(planes)))):
            array = np.empty(shape, np.float32)
            list(pool.map(read, range(len(planes))))
    return array


def read_plane(header):
    """Return one plane in HU, padding as air."""
    stored, padding, _ = read_stored(header)
    slope, intercept = read_rescale(header)
    if padding is not None and padding.any():
        stored = np.where(padding, 0, stored)
    hu = to_hounsfield(stored, slope, intercept)
    np.maximum(hu, -1024, out=hu)
    if padding is not None:
        hu[padding] = -1024
    return hu


def save_volume(path, volume):
    """Save a volume's array and geometry as one ``.npz`` file, and nothing else.

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
            np.savez_compressed(
                file,
                array=volume.array,
                spacing=volume.spacing,
                origin=volume.origin,
                direction=volume.direction,
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_volume(path):
    """Load a volume that `save_volume` wrote; never unpickles anything.

    Parameters
    ----------
    path : path

    Returns
    -------
    volume : Volume

    Raises
    ------
    SeriesError
        If the file is not such a file, or claims more than it holds.

    Built in notebook 02.
    """
    with np.load(path, allow_pickle=False) as parts:
        return Volume(**{name: parts[name] for name in parts.files})
