"""Find the lungs in a whole scan (built in notebook 09; one plane: notebook 08)."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from questlib.plane import (
    IN_PLANE,
    RULES_2017,
    RULES_MENDED,
    PlaneMask,
    Region,
    find_gray_levels,
    find_outside,
    find_padding,
    mask_plane,
    mask_plane_2017,
)
from questlib.volume import Volume

__all__ = [
    "RULES_2017",
    "RULES_MENDED",
    "LungMask",
    "PlaneMask",
    "Region",
    "mask_plane",
    "mask_plane_2017",
    "segment_lungs",
]
RIGHT, LEFT = 1, 2
GRID_MM = 2.0  # the coarse grid on which everything but the boundary is settled
LEVEL = 0.53  # the threshold, on the way from air (0) to soft tissue (1)
PURE = 0.06  # darker than this is air without lung around it
EVERY_WAY = np.ones((3, 3, 3), bool)


class LungMask(NamedTuple):
    """The lungs of a scan, on its own grid.

    `labels` is uint8 (plane, row, column): 0 background, 1 right lung, 2 left lung, by
    patient coordinates. `airway` is bool: trachea and main bronchi. `volumes_ml` has
    the keys right, left and airway. `findings` says in words what a reader should
    look at before she trusts the mask. `spacing`, `origin` and `direction` are those
    of the `Volume`.
    """

    labels: np.ndarray
    airway: np.ndarray
    volumes_ml: dict
    findings: list
    spacing: tuple
    origin: tuple
    direction: np.ndarray


def segment_lungs(volume: Volume) -> LungMask:
    """Label the right and the left lung of a CT scan.

    Parameters
    ----------
    volume : Volume
        A scan in any orientation; HU, or numbers in which air is dark.

    Returns
    -------
    LungMask
        Labels, airway, volumes in mL and findings; empty labels and a finding where
        the scan shows no lungs.

    Raises
    ------
    ValueError
        If a voxel is NaN or infinite.

    Built in notebook 09.
    """
    if not np.isfinite(volume.array).all():
        raise ValueError("the scan holds values that are not finite (NaN or infinity)")
    array, spacing, order, flip = orient(volume)
    factor = [max(1, round(GRID_MM / step)) for step in spacing]
    coarse = shrink(array, factor)
    step = tuple(n * mm for n, mm in zip(factor, spacing, strict=True))
    findings = []
    padding = ndimage.binary_dilation(find_padding(coarse), IN_PLANE)
    air, tissue, clear = find_gray_levels(
        coarse[~padding][:: max(1, coarse.size // 500_000)]
    )
    if not clear:
        return _empty(volume, "no lungs in this scan: no air beside soft tissue")
    if padding.any() or not (-1100 < air < -900 and -200 < tissue < 150):
        findings.append("padding or uncalibrated values")
    scale = (coarse - np.float32(air)) / np.float32(tissue - air)
    below = (scale < LEVEL) & ~padding
    inside = below & ~find_outside(below, padding, scale < 2 * PURE)
    wall = ndimage.binary_opening(~below, _disk(3.0, step))
    inside &= ~find_outside(~wall, padding, scale < 2 * PURE)
    airway = grow_airway(inside, scale, step)
    lungs = pick_lungs(
        inside & ~ndimage.binary_dilation(airway, EVERY_WAY), scale, step
    )
    if not lungs.any():
        return _empty(volume, "no lungs in this scan")
    position = _positions(volume, order, flip, factor)
    labels = split_lungs(lungs, step, position)
    labels = close_lungs(labels, step, inside & ~lungs)
    full = refine(array, labels, airway, below, factor, air + LEVEL * (tissue - air))
    labels, airway = (restore(part, order, flip) for part in full)
    voxel = np.prod(volume.spacing) / 1000
    names = {"right": labels == RIGHT, "left": labels == LEFT, "airway": airway}
    volumes = {name: float(part.sum() * voxel) for name, part in names.items()}
    geometry = volume.spacing, volume.origin, volume.direction
    return LungMask(labels, airway, volumes, findings, *geometry)


def orient(volume):
    """View the array with planes to the head, rows to the back, columns to the left."""
    axis = np.abs(volume.direction)
    order = max(
        ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]),
        key=lambda order: sum(
            axis[i, j] for i, j in zip((2, 1, 0), order, strict=True)
        ),
    )
    flip = [volume.direction[i, j] < 0 for i, j in zip((2, 1, 0), order, strict=True)]
    view = volume.array.transpose(order)[
        tuple(slice(None, None, -1 if f else 1) for f in flip)
    ]
    return view, tuple(volume.spacing[j] for j in order), order, flip


def restore(array, order, flip):
    """Undo `orient`."""
    array = array[tuple(slice(None, None, -1 if f else 1) for f in flip)]
    return np.ascontiguousarray(array.transpose(np.argsort(order)))


def shrink(array, factor):
    """Mean of blocks of voxels, as float32."""
    starts = [
        np.arange(0, size, n) for size, n in zip(array.shape, factor, strict=True)
    ]
    weight = [np.diff([*s, size]) for s, size in zip(starts, array.shape, strict=True)]
    weight = np.multiply.outer(weight[1], weight[2]).astype(np.float32)
    kind = np.int32 if array.dtype.kind in "iu" else np.float64

    def one(start):
        block = array[start : start + factor[0]]
        total = block.sum(0, dtype=kind)
        total = np.add.reduceat(np.add.reduceat(total, starts[1], 0), starts[2], 1)
        return total / (weight * len(block))

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(one, starts[0]))).astype(np.float32)


def _disk(radius, step):
    """In-plane disk of the given radius in mm, at least one voxel."""
    size = [max(1, round(radius / mm)) for mm in step[1:]]
    row, column = np.ogrid[-size[0] : size[0] + 1, -size[1] : size[1] + 1]
    return ((row / size[0]) ** 2 + (column / size[1]) ** 2 <= 1.01)[None]


def _positions(volume, order, flip, factor):
    """LPS x in mm of each coarse column block, ignoring small obliquity."""
    corner = np.array(
        [
            size - 1 if f else 0
            for size, f in zip(np.array(volume.shape)[order], flip, strict=True)
        ]
    )
    axes = (volume.affine[:3, :3])[:, order] * np.where(flip, -1, 1)
    origin = volume.affine[:3, :3][:, order] @ corner + volume.affine[:3, 3]
    return axes * factor, origin + axes @ ((np.array(factor) - 1) / 2)


def grow_airway(inside, scale, step):
    """Follow the trachea from above, plane by plane, until it enters the lungs."""
    area = step[1] * step[2]
    labels, count = ndimage.label(inside & (scale < 0.35), IN_PLANE)
    airway = np.zeros(inside.shape, bool)
    if count == 0:
        return airway
    size = np.bincount(labels.ravel()) * area
    boxes = ndimage.find_objects(labels)
    tall = np.array([0.0] + [(b[1].stop - b[1].start) * step[1] for b in boxes])
    wide = np.array([1.0] + [(b[2].stop - b[2].start) * step[2] for b in boxes])
    round_ = (tall / wide > 0.45) & (wide / np.maximum(tall, 1e-6) > 0.45)
    good = (size > 40) & (size < 700) & round_ & (size > 0.5 * tall * wide)
    good[0] = False
    tubes, count = ndimage.label(good[labels], EVERY_WAY)
    if count == 0:
        return airway
    body = np.flatnonzero(inside.any((0, 1)))
    middle, width = (body[0] + body[-1]) / 2, body[-1] - body[0] + 1
    best, score = 0, 0.0
    for tube, box in enumerate(ndimage.find_objects(tubes), 1):
        length = (box[0].stop - box[0].start) * step[0]
        center = np.mean(np.nonzero(tubes[box] == tube)[2]) + box[2].start
        off = abs(center - middle) / width
        value = length * (off < 0.25)
        if value > score:
            best, score = tube, value
    if score < min(20.0, 0.5 * len(inside) * step[0]):
        return airway
    top = np.flatnonzero((tubes == best).any((1, 2)))[-1]
    airway[top] = tubes[top] == best
    for plane in range(top - 1, -1, -1):
        airway[plane] = _next_section(
            airway[plane + 1], inside[plane], scale[plane], area
        )
        if not airway[plane].any():
            break
    return airway


def _next_section(above, inside, scale, area):
    """The airway one plane further down; empty where it has become lung."""
    section = np.zeros(above.shape, bool)
    pieces, count = ndimage.label(above)
    for piece in range(1, count + 1):
        start = pieces == piece
        limit = 1.5 * start.sum() * area + 150
        for level in (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1):
            labels, _ = ndimage.label(inside & (scale < level))
            touched = np.setdiff1d(labels[start], 0)
            grown = np.isin(labels, touched)
            if touched.size and grown.sum() * area < limit:
                ring = ndimage.binary_dilation(
                    grown, iterations=3
                ) & ~ndimage.binary_dilation(grown)
                if inside[ring].mean() < 0.6:
                    section |= grown
                break
    return section


def pick_lungs(inside, scale, step):
    """Keep what is large enough, and not as dark as pure air."""
    labels, count = ndimage.label(inside)
    if count == 0:
        return inside
    voxel_ml = np.prod(step) / 1000
    size = np.bincount(labels.ravel()) * voxel_ml
    size[0] = 0
    keep = np.zeros(count + 1, bool)
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero(size > 2.0):
        own = labels[boxes[label - 1]] == label
        dark = np.percentile(scale[boxes[label - 1]][own], 25)
        largest = own.sum((1, 2)).max() * step[1] * step[2]
        keep[label] = (dark > PURE or size[label] > 1000) and largest > 300
    if not keep.any() or size[keep].max() < 50:
        return np.zeros_like(inside)
    keep &= size > 0.01 * size[keep].max()
    return keep[labels]


def split_lungs(lungs, step, position):
    """Label the right lung 1 and the left lung 2, also where they touch."""
    box = ndimage.find_objects(lungs.view(np.uint8))[0]
    crop = lungs[box]
    depth = ndimage.distance_transform_edt(np.pad(crop, 1), sampling=step)[
        1:-1, 1:-1, 1:-1
    ]
    labels = np.zeros(lungs.shape, np.uint8)
    axes, origin = position
    for radius in (0, 2, 4, 6, 8, 10, 13, 16, 20, 25):
        parts, count = ndimage.label(depth > radius)
        size = np.bincount(parts.ravel())
        size[0] = 0
        if count < 2:
            continue
        first, second = np.argsort(size)[-2:][::-1]
        centers = [
            np.array(ndimage.center_of_mass(parts == k)) for k in (first, second)
        ]
        x = [(axes @ (c + [side.start for side in box]) + origin)[0] for c in centers]
        if size[second] > 0.1 * size[first] and abs(x[0] - x[1]) > 50:
            break
    else:
        labels[lungs] = RIGHT
        return labels
    right, left = (first, second) if x[0] < x[1] else (second, first)
    seeds = np.zeros(crop.shape, np.uint8)
    seeds[parts == right], seeds[parts == left] = RIGHT, LEFT
    if radius:
        for _ in range(int(1.5 * radius / min(step)) + 2):
            grown = ndimage.grey_dilation(
                seeds, footprint=ndimage.generate_binary_structure(3, 1)
            )
            seeds = np.where((seeds == 0) & crop, grown, seeds)
    rest = crop & (seeds == 0)
    if rest.any():
        near = ndimage.distance_transform_edt(
            seeds == 0, sampling=step, return_distances=False, return_indices=True
        )
        seeds = np.where(rest, seeds[tuple(near)], seeds)
    labels[box] = seeds
    return labels


def close_lungs(labels, step, forbidden):
    """Close each lung over its vessels and fill its holes."""
    closed = labels.copy()
    for side in (RIGHT, LEFT):
        if not (labels == side).any():
            continue
        box = ndimage.find_objects((labels == side).view(np.uint8))[0]
        box = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in box)
        lung = labels[box] == side
        grown = ndimage.distance_transform_edt(~lung, sampling=step) <= 6.0
        shut = (
            ndimage.distance_transform_edt(
                np.pad(grown, 1, mode="edge"), sampling=step
            )[1:-1, 1:-1, 1:-1]
            > 6.0
        )
        shut = ndimage.binary_fill_holes(shut | lung)
        closed[box][shut & (closed[box] == 0) & ~forbidden[box]] = side
    return closed


def refine(array, labels, airway, below, factor, level):
    """Settle the boundary of the coarse labels on the voxels of the scan."""
    near = ndimage.grey_dilation(labels, footprint=EVERY_WAY)
    near = np.where(labels, labels, near)
    core = ndimage.binary_erosion(labels > 0, EVERY_WAY, border_value=1)
    fill = core | ((labels > 0) & ~below)
    tube = ndimage.binary_dilation(airway, EVERY_WAY) & (labels == 0)
    index = [np.arange(size) // n for size, n in zip(array.shape, factor, strict=True)]
    full = np.zeros(array.shape, np.uint8)
    tubes = np.zeros(array.shape, bool)

    def one(plane):
        k = index[0][plane]
        at = np.ix_(index[1], index[2])
        dark = array[plane] < level
        full[plane] = np.where(fill[k][at] | dark & ~tube[k][at], near[k][at], 0)
        tubes[plane] = tube[k][at] & dark

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(len(array))))
    return full, tubes


def _empty(volume, finding):
    """A mask without lungs, and why."""
    shape = volume.shape
    volumes = {"right": 0.0, "left": 0.0, "airway": 0.0}
    geometry = volume.spacing, volume.origin, volume.direction
    return LungMask(
        np.zeros(shape, np.uint8), np.zeros(shape, bool), volumes, [finding], *geometry
    )
