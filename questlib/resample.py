"""Voxels of another size, or volumes of another shape (built in notebook 04).

Interpolation is linear in the values, so along one axis it is a small matrix, and a
volume is resampled by three of them: columns, rows, planes. They are sparse, no voxel
is ever held in double precision, and planes are worked on side by side.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.interpolate import PPoly

from questlib.volume import Volume

LARGEST_BYTES = 4e9  # a finer grid than this is far more likely a slip of the pen


# The weight of a voxel by its distance in voxels, piece by piece: 0 far away, between
# them the tent of linear interpolation, or cubic convolution.
_FAR = 1e6
_KERNELS = {
    1: PPoly([[0, 1, -1, 0], [0, 0, 1, 0]], [-_FAR, -1, 0, 1, _FAR]),
    3: PPoly(
        [
            [0, 0.5, -1.5, 1.5, -0.5, 0],
            [0, -0.5, 2, -2.5, 1, 0],
            [0, 0, 0.5, 0, -0.5, 0],
            [0, 0, 0, 1, 0, 0],
        ],
        [-_FAR, -2, -1, 0, 1, 2, _FAR],
    ),
}


def interpolation_matrix(
    size_in: int, size_out: int, step: float | None = None, order: int = 1
) -> sparse.csr_array:
    """Build the matrix that resamples one axis: ``new = matrix @ old``.

    Parameters
    ----------
    size_in, size_out : int
        Number of voxels before and after.
    step : float, optional
        New spacing in old voxels; by default ``size_in / size_out``: the first and
        last edges stay where they are. Both grids always share their middle.
    order : {1, 0, 3}
        0 nearest voxel; 1 linear; 3 cubic convolution, through 4 voxels.

    Returns
    -------
    matrix : (size_out, size_in) sparse array of float32
        Each row sums to 1. A position beyond the last voxel takes its value.

    Notes
    -----
    A grid that becomes coarser (`step` > 1) is smoothed first, or finer structure
    would come back as a false pattern (aliasing): the interpolated curve is averaged
    under a tent of half width ``sqrt(step**2 - 1)``, which makes the tent of one voxel
    as wide (in variance) as one of `step` voxels. A straight ramp stays exact.

    References
    ----------
    R. Keys, Cubic convolution interpolation for digital image processing, IEEE
    Trans. ASSP 29 (1981), with a = -1/2.

    Examples
    --------
    >>> print(interpolation_matrix(2, 4).toarray())
    [[1.   0.  ]
     [0.75 0.25]
     [0.25 0.75]
     [0.   1.  ]]

    Built in notebook 04.
    """
    step = size_in / size_out if step is None else step
    positions = (size_in - 1) / 2 + (np.arange(size_out) - (size_out - 1) / 2) * step
    if order == 0:
        # 1e-9: a tie goes to the later voxel whatever the rounding of `positions`
        nearest = np.floor(positions + 0.5 + 1e-9).astype(int)
        voxels, weights = nearest[:, None], np.ones((size_out, 1))
    else:
        width, kernel = np.sqrt(max(step**2 - 1, 0)), _KERNELS[order]
        reach = (order + 1) // 2 + width
        first = np.floor(positions - reach).astype(int)
        voxels = first[:, None] + np.arange(int(2 * reach) + 3)
        distance = voxels - positions[:, None]
        if width < 1e-3:
            weights = kernel(distance)
        else:  # the kernel averaged over a tent: a second difference of its integrals
            twice = kernel.antiderivative(2)
            weights = twice(distance - width) + twice(distance + width)
            weights = (weights - 2 * twice(distance)) / width**2
            weights[abs(weights) < 1e-9] = 0  # what rounding leaves of a zero
    rows = np.repeat(np.arange(size_out), voxels.shape[1])
    places = (rows, np.clip(voxels, 0, size_in - 1).ravel())
    matrix = sparse.csr_array((weights.ravel(), places), shape=(size_out, size_in))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix.astype(np.float32)


def resample(
    volume: Volume,
    spacing: float | tuple = 1.0,
    *,
    shape: tuple | None = None,
    order: int = 1,
) -> Volume:
    """Give a volume voxels of another size, at the same place in the patient.

    Parameters
    ----------
    volume : Volume
    spacing : float or 3 floats
        Wanted spacing in mm along (plane, row, column): the result has exactly this.
    shape : 3 ints, optional
        Wanted shape. It wins over `spacing`; the result says the spacing it got.
    order : {1, 0, 3}
        1 linear (never leaves the range of the input); 3 cubic (sharper, overshoots
        at edges); 0 nearest voxel, for labels.

    Returns
    -------
    volume : Volume
        Integers stay integers (rounded), floats become float32, a mask (bool) becomes
        the float32 fraction of the voxel inside; `order` 0 keeps every dtype.

    Raises
    ------
    ValueError
        If spacing, shape or order make no sense, the result would not fit into 4 GB,
        or a voxel is not finite.

    Notes
    -----
    Both grids share their center. The new one has ``round(extent / spacing)`` voxels
    along an axis, which moves its two edges by at most a quarter of a new voxel;
    with `shape` they stay. Beyond the outermost voxel centers, values repeat.

    Examples
    --------
    >>> ct = Volume(np.zeros((126, 8, 8), np.int16), (2.5, 1, 1), (0, 0, 0), np.eye(3))
    >>> resample(ct, 1.0)
    Volume(315 x 8 x 8 int16, spacing 1.000 x 1.000 x 1.000 mm, 0 to 0 HU)
    >>> resample(ct, 1.0).origin  # the first 1 mm voxel lies 0.75 mm nearer the edge
    (-0.75, 0.0, 0.0)

    Built in notebook 04.
    """
    if order not in (0, 1, 3):
        raise ValueError(f"order must be 0, 1 or 3, not {order!r}")
    array = volume.array
    shape, spacing = _new_grid(volume, spacing, shape)
    steps = spacing / volume.spacing
    matrices = [
        interpolation_matrix(*sizes, order)
        for sizes in zip(array.shape, shape, steps, strict=True)
    ]
    old, new = np.subtract([volume.shape, shape], 1)
    margin = (old * volume.spacing - new * spacing) / 2
    origin = volume.origin + volume.direction @ margin
    if order == 0:
        array = array[np.ix_(*(matrix.indices for matrix in matrices))]
    else:
        array = _blend(array, matrices, order)
    return Volume(array, spacing, origin, volume.direction)


def _check_shape(shape):
    sizes = np.asarray(shape)
    if sizes.shape != (3,) or sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ValueError(f"shape must be 3 whole numbers from 1, not {shape!r}")
    return sizes


def _new_grid(volume, spacing, shape):
    """Return shape and spacing of the new grid, or refuse with the numbers."""
    extent = np.multiply(volume.shape, volume.spacing)
    if shape is None:
        asked = np.asarray(spacing, float)
        good = asked.shape in ((), (3,)) and np.isfinite(asked).all()
        if not good or (asked <= 0).any():
            raise ValueError(f"spacing must be 1 or 3 positive mm, not {spacing!r}")
        spacing = np.broadcast_to(asked, 3)
        counts = np.maximum(1, np.floor(extent / spacing + 0.5))
    else:
        counts = _check_shape(shape)
        spacing = extent / counts
    size = counts.prod(dtype=float) * volume.array.itemsize
    if not size <= LARGEST_BYTES:
        raise ValueError(
            " x ".join(f"{count:.0f}" for count in counts)
            + f" voxels would need {size / 1e9:.1f} GB, the limit is "
            f"{LARGEST_BYTES / 1e9:.0f} GB: is the spacing or shape a slip?"
        )
    return tuple(int(count) for count in counts), spacing


def _blend(array, matrices, order):
    """Apply the three matrices, with the planes shared out to all cores."""
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("some voxels are not finite (NaN or infinity)")
    dtype = array.dtype if np.issubdtype(array.dtype, np.integer) else np.float32
    if order == 3:  # it may overshoot, but not beyond what the dtype can hold
        info = np.iinfo(dtype) if dtype != np.float32 else np.finfo(dtype)
        low, high = info.min, info.max
    out = np.empty([matrix.shape[0] for matrix in matrices], dtype)
    cores = os.cpu_count() or 1

    def work(planes):
        for new, plane in _blended_planes(array, matrices, planes):
            if dtype != np.float32:
                np.rint(plane, out=plane)
            out[new] = np.clip(plane, low, high, out=plane)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, np.array_split(np.arange(len(out)), cores)))
    return out


def _blended_planes(array, matrices, planes):
    """Yield (index, new plane); the buffer is used again for the next one."""
    along, rows, columns = matrices
    # made once: fresh memory for each plane costs more time than the sums
    wide = np.empty(array.shape[1:], np.float32)
    half = np.empty((rows.shape[0], array.shape[2] + 16), np.float32)[:, :-16]
    turned = np.empty(half.T.shape, np.float32)

    def flatten(plane):
        wide[...] = plane
        half[...] = rows @ wide
        turned[...] = half.T
        return np.ascontiguousarray((columns @ turned).T)

    # whichever leaves fewer planes to flatten: flatten first, or blend first
    if along.shape[0] > along.shape[1]:
        old, finish = lru_cache(4)(lambda index: flatten(array[index])), np.asarray
        total = np.empty((rows.shape[0], columns.shape[0]), np.float32)
    else:
        old, finish, total = array.__getitem__, flatten, wide
    part = np.empty_like(total)
    for new in planes:
        total[...] = 0
        for tap in range(*along.indptr[new : new + 2]):
            total += np.multiply(along.data[tap], old(along.indices[tap]), out=part)
        yield new, finish(total)


def fit_shape(volume: Volume, shape: tuple, *, fill: float = -1000) -> Volume:
    """Crop or pad each axis about its center until the volume has `shape`.

    Parameters
    ----------
    volume : Volume
    shape : 3 ints
        Wanted number of (planes, rows, columns).
    fill : float
        Value of new voxels: -1000 HU is air; take 0 for labels and masks.

    Returns
    -------
    volume : Volume
        Same spacing; `origin` moved along, so that each voxel stays where it was.

    Raises
    ------
    ValueError
        If `shape` is not 3 whole positive numbers, or the dtype cannot hold `fill`.

    Examples
    --------
    >>> ct = Volume(np.ones((3, 4, 4), np.int16), (2, 1, 1), (0, 0, 0), np.eye(3))
    >>> small = fit_shape(ct, (5, 2, 4))
    >>> small.shape, small.origin
    ((5, 2, 4), (-2.0, 1.0, 0.0))

    Built in notebook 04.
    """
    old, new = np.array(volume.shape), _check_shape(shape)
    if np.asarray(fill).astype(volume.array.dtype) != fill:
        raise ValueError(f"{volume.array.dtype} cannot hold {fill}: labels want fill=0")
    start = old // 2 - new // 2  # so that cropping undoes padding
    array = np.full(tuple(new), fill, volume.array.dtype)
    size = np.minimum(old, new)
    source, target = (
        tuple(slice(at, at + n) for at, n in zip(corner, size, strict=True))
        for corner in (np.maximum(start, 0), np.maximum(-start, 0))
    )
    array[target] = volume.array[source]
    origin = volume.origin + volume.direction @ (start * volume.spacing)
    return Volume(array, volume.spacing, origin, volume.direction)
