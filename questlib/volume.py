"""A scan as one array with its place in the patient (built in notebooks 02 and 03)."""

from dataclasses import dataclass

import numpy as np


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
