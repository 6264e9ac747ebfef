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
    label_air,
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
TUBE = np.uint8(3)  # airway, while the boundary is settled
GRID_MM = 2.0  # the coarse grid on which everything but the boundary is settled
LEVEL = 0.53  # the threshold, on the way from air (0) to soft tissue (1)
PURE = 0.06  # darker than this is air without lung around it
HILUM = 0.55  # an airway with so much lung around it belongs to the lung
VESSEL_MM = 5.0  # radius of the ball that closes over vessels at the hilum
NODULE_MM = 16.0  # radius of the ball that finds nodules and masses
WRAPPED = 0.75  # they have so much of their surface in the lung,
HOLE_MM2 = 2000.0  # a hole of one plane that is filled at most
LARGEST_ML = 50.0  # and are no larger
CORE_MM = 2.0  # radius of the disk that a pocket holds
CUT_MM = 60.0  # how far from the middle the two lungs may meet
CROSSING = 0.05  # so little of a part beyond the cut does not divide it
WALL_MM = 3.0  # a wall without a disk of this radius is a blanket, not a body
DEPTH_MM = 40.0  # a lung that the first or last row cuts is deeper
SOLID = 0.6  # what the mask leaves out is brighter,
MARGIN_MM = 8.0  # lies so deep in the other lung's mirror image,
MIDDLE_MM = 30.0  # so far from the mirror,
REGION_MM = 6.0  # is as thick as a disk of this radius,
DEEP_MM = 30.0  # has so much mirrored lung below it when it has no own lung there,
REPORT_ML = 15.0  # and is larger
EDGES = (
    ("lower end of the scan", "upper end of the scan"),
    ("front of the field of view", "back of the field of view"),
    ("right of the field of view", "left of the field of view"),
)
CROSS = ndimage.generate_binary_structure(3, 1)
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

    Notes
    -----
    On a grid of about 2 mm: threshold half-way between air and soft tissue of this
    scan; air around the body goes; the airway is followed from the trachea down, and
    stops where it leaks; regions as dark as room air are gas; touching lungs are cut
    along the brightest path from front to back; pockets that a lung wraps (vessels,
    nodules, masses up to 50 mL) are kept. The boundary is settled on the voxels of the
    scan. Solid lung that lies open to the chest wall or mediastinum is left out;
    a finding says so where the mirror image of the other lung shows it.

    References
    ----------
    S. Hu, E. A. Hoffman, J. M. Reinhardt, IEEE Trans. Med. Imaging 20 (2001) 490-498,
    doi:10.1109/42.929615 (threshold, airways, cut between touching lungs).

    Examples
    --------
    >>> from questlib.phantom import make_phantom
    >>> phantom = make_phantom(shape=(60, 90, 100), spacing=(5, 4, 4))
    >>> result = segment_lungs(phantom.volume)
    >>> true = np.isin(phantom.truth, (1, 2)).sum()
    >>> bool(abs((result.labels > 0).sum() - true) < 0.03 * true)
    True

    Built in notebook 09.
    """
    whole = volume.array.dtype.kind in "iub"
    if not whole and not all(np.isfinite(plane).all() for plane in volume.array):
        raise ValueError("the scan holds values that are not finite (NaN or infinity)")
    array, spacing, order, flip = orient(volume)
    factor = [max(1, round(GRID_MM / step)) for step in spacing]
    step = np.multiply(factor, spacing)
    coarse = shrink(array, factor)
    padding = find_padding(coarse)
    if padding.any():
        padding = _dilate(padding, EVERY_WAY[:1])
    air, tissue, findings = measure_levels(coarse, padding)
    if air is None:
        return _finish(volume, findings=findings)
    scale = (coarse - np.float32(air)) / np.float32(tissue - air)
    inside, below = find_inside(scale, padding, step)
    box = _box(inside, 2)
    if box is None:
        return _finish(volume, findings=[*findings, "no lungs in this scan"])
    inside, below, scale = inside[box], below[box], scale[box]
    airway, leak = grow_airway(inside, scale, step)
    parts = pick_lungs(inside & ~_grow(airway), scale, step)
    if not parts.any():
        return _finish(volume, findings=[*findings, "no lungs in this scan"])
    middle = _mean_column(airway if airway.any() else parts > 0)
    labels = split_lungs(parts, scale, step, middle)
    labels = close_lungs(labels, step, inside & (parts == 0))
    findings += describe_findings(labels, airway, leak)
    findings += describe_left_out(labels, scale, step)
    del coarse, inside, parts, scale  # the full grid needs the room
    level = air + LEVEL * (tissue - air)
    full = refine(array, (labels, airway, below), box, factor, level)
    return _finish(volume, *(restore(part, order, flip) for part in full), findings)


def measure_levels(coarse, padding):
    """Measure air and soft tissue; `air` is None where a scan does not show both."""
    every = max(1, coarse.size // 500_000)
    some = np.flatnonzero(~padding)[::every] if padding.any() else np.s_[::every]
    air, tissue, clear = find_gray_levels(coarse.ravel()[some])
    if not clear:
        return None, tissue, ["no lungs in this scan: no air beside tissue"]
    if -950 < air < -600 and 0 < tissue < 100:
        air = -1000.0  # the field of view holds no air but that of the lungs
    findings = []
    if padding.any():
        findings.append("padding: voxels outside the field of view hold no HU")
    if not (-1100 < air < -850 and -200 < tissue < 150):
        findings.append(
            f"uncalibrated values: air is {air:.0f} and soft tissue {tissue:.0f}, "
            "not -1000 and 0 to 60 HU"
        )
    return air, tissue, findings


def find_inside(scale, padding, step):
    """Find the air inside the body; `below` is all air."""
    below = (scale < LEVEL) & ~padding
    pure = scale < PURE
    wall = ~below
    if int(WALL_MM / step[1]):  # a coarser grid shows no sheet thin enough
        disk = _disk(WALL_MM, step)
        wall = _dilate(_erode(wall | padding, disk), disk)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(label_air, below, padding, pure)
        behind = pool.submit(find_outside, ~wall, padding, pure)
    numbers, outside = first.result()
    inside = below & ~outside[numbers]
    sure = inside & ~behind.result()  # no blanket is taken for a wall
    cut = find_cut_by_edge(numbers, outside, pure, step)
    if cut.any():
        labels, count = ndimage.label(cut | inside)
        share = np.bincount(labels[sure], minlength=count + 1) / np.bincount(
            labels.ravel()
        )
        share[np.setdiff1d(labels, labels[cut])] = 0
        sure |= (share > 0.02)[labels]
    return sure, below


def find_cut_by_edge(numbers, outside, pure, step):
    """Find what the first or last row cuts like a lung: deep, not as dark as air.

    `numbers` and `outside` are those of `label_air`.
    """
    ends = [np.s_[:, [0, -1]], np.s_[..., [0, -1]]]
    on = np.concatenate([numbers[end].ravel() for end in ends])
    dark = np.concatenate([pure[end].ravel() for end in ends])
    touching = np.bincount(on, minlength=outside.size)
    cut = outside & (np.bincount(on, dark, outside.size) <= 0.5 * touching)
    cut &= np.isin(np.arange(outside.size), numbers[ends[0]])
    if not cut.any():
        return np.zeros(numbers.shape, bool)
    cut &= np.bincount(numbers.ravel()) * step[1] > DEPTH_MM * touching
    return cut[numbers]


def _box(mask, margin):
    """Slices around what is True, with a margin in voxels; None where nothing is."""
    sides = []
    for axis, n in enumerate(np.broadcast_to(margin, mask.ndim)):
        seen = np.flatnonzero(mask.any(tuple({*range(mask.ndim)} - {axis})))
        if not seen.size:
            return None
        sides.append(
            slice(max(seen[0] - n, 0), min(seen[-1] + 1 + n, mask.shape[axis]))
        )
    return tuple(sides)


def _dilate(mask, structure, outside=False):
    """`ndimage.binary_dilation` by shifted copies: the same, several times faster.

    `structure` is symmetrical and without gaps along its rows.
    """
    half = [n // 2 for n in structure.shape]
    padded = np.pad(mask, [(n, n) for n in half], constant_values=outside)
    planes, rows, columns = mask.shape
    out = np.zeros(mask.shape, bool)
    wide = padded[:, :, half[2] : half[2] + columns].copy()
    width = structure.sum(2) // 2
    for n in range(half[2] + 1):  # rows of the structure that reach n to each side
        for start in (half[2] - n, half[2] + n) if n else ():
            wide |= padded[:, :, start : start + columns]
        for plane, row in np.argwhere((width == n) & structure.any(2)):
            out |= wide[plane : plane + planes, row : row + rows]
    return out


def _erode(mask, structure, outside=False):
    return ~_dilate(~mask, structure, not outside)


def _grow(mask):
    return _dilate(mask, EVERY_WAY)


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
    shape = [-(-size // n) for size, n in zip(array.shape, factor, strict=True)]
    count = [
        np.minimum(size - np.arange(0, size, n), n)
        for size, n in zip(array.shape, factor, strict=True)
    ]
    weight = np.multiply.outer(count[1], count[2]).astype(np.float32)
    coarse = np.empty(shape, np.float32)
    kind = np.int32 if array.dtype.kind in "iu" else float

    def one(at):
        start = at * factor[0]
        block = array[start : start + factor[0]]
        total = block.sum(0, dtype=kind) if len(block) > 1 else block[0].astype(kind)
        total = _add_blocks(_add_blocks(total, factor[1]).T, factor[2]).T
        coarse[at] = total / (weight * len(block))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(shape[0])))
    return coarse


def _add_blocks(rows, n):
    total = rows[::n].copy()
    for k in range(1, n):
        part = rows[k::n]
        total[: len(part)] += part
    return total


def _disk(radius, step):
    """In-plane disk of the given radius in mm, at least one voxel."""
    size = [max(1, round(radius / mm)) for mm in step[1:]]
    row, column = np.ogrid[-size[0] : size[0] + 1, -size[1] : size[1] + 1]
    return ((row / size[0]) ** 2 + (column / size[1]) ** 2 <= 1.01)[None]


def find_trachea(inside, scale, step):
    """Find the longest round, dark tube near the middle; None where there is none."""
    labels, count = ndimage.label(inside & (scale < 0.35), IN_PLANE)
    if count == 0:
        return None
    size = np.bincount(labels.ravel()) * step[1] * step[2]
    boxes = ndimage.find_objects(labels)
    tall = np.array([0.0] + [(b[1].stop - b[1].start) * step[1] for b in boxes])
    wide = np.array([1.0] + [(b[2].stop - b[2].start) * step[2] for b in boxes])
    round_ = (tall / wide > 0.45) & (wide / np.maximum(tall, 1e-6) > 0.45)
    good = (size > 40) & (size < 700) & round_ & (size > 0.5 * tall * wide)
    good[0] = False
    round_ = good[labels]
    around = _box(round_, 0)
    if around is None:
        return None
    tubes, _ = ndimage.label(round_[around], EVERY_WAY)
    body = np.flatnonzero(inside.any((0, 1)))
    middle, width = (body[0] + body[-1]) / 2, body[-1] - body[0] + 1
    best, score = 0, 0.0
    for tube, box in enumerate(ndimage.find_objects(tubes), 1):
        length = (box[0].stop - box[0].start) * step[0]
        start = box[2].start + around[2].start
        center = np.mean(np.nonzero(tubes[box] == tube)[2]) + start
        if length > score and abs(center - middle) / width < 0.25:
            best, score = tube, length
    if score < min(20.0, 0.5 * len(inside) * step[0]) or not best:
        return None
    round_[around] = tubes == best
    return round_


def grow_airway(inside, scale, step):
    """Follow the trachea from above, plane by plane, until it enters the lungs."""
    airway = np.zeros(inside.shape, bool)
    trachea = find_trachea(inside, scale, step)
    if trachea is None:
        return airway, False
    planes = np.flatnonzero(trachea.any((1, 2)))
    limit = 2.2 * np.median(trachea[planes].sum((1, 2)))
    airway[planes[-1]] = trachea[planes[-1]]
    disks = _disk(3.0, step)[0], _disk(5.0, step)[0]
    for plane in range(planes[-1] - 1, -1, -1):
        box = _box(airway[plane + 1], [int(40 / mm) for mm in step[1:]])
        above = airway[plane + 1][box]
        pieces = ndimage.label(above)[1]
        section, leak = _next_section(
            above,
            inside[plane][box],
            scale[plane][box],
            (limit, 0.6 * limit)[pieces > 1],
            disks,
        )
        airway[plane][box] = section
        if not section.any():
            return airway, leak and pieces < 2
    return airway, False


def _next_section(above, inside, scale, limit, disks):
    """The airway one plane further down; empty where it has become lung."""
    section, rest, leak = np.zeros(above.shape, bool), inside.copy(), False
    for level in (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1):
        labels, _ = ndimage.label(rest & (scale < level))
        found = np.unique(labels[above])
        found = found[found > 0]
        if not found.size:  # nor at a darker level
            break
        for grown in (labels == label for label in found):
            leak = grown.sum() > limit
            if leak:
                continue
            rest &= ~grown
            near = ndimage.binary_dilation(grown, disks[0])
            ring = ndimage.binary_dilation(near, disks[1]) & ~near
            if inside[ring].mean() < HILUM:
                section |= grown
    return section, leak


def pick_lungs(inside, scale, step):
    """Number the parts that are large enough, and not as dark as pure air; else 0."""
    labels, count = ndimage.label(inside)
    if count == 0:
        return labels
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
        return np.zeros_like(labels)
    keep &= size > 0.01 * size[keep].max()
    return np.where(keep, np.arange(count + 1, dtype=labels.dtype), 0)[labels]


def split_lungs(parts, scale, step, middle):
    """Label the right lung 1 and the left lung 2, also where they touch.

    A cut from front to back near the column `middle` divides each plane. A part that
    lies almost wholly on one side of it stays whole, as lobes and lungs mostly do.
    """
    lungs = parts > 0
    left = np.arange(lungs.shape[2]) >= _find_cut(lungs, scale, step, middle)[..., None]
    parts = parts[lungs]
    share = np.bincount(parts, left[lungs]) / np.maximum(np.bincount(parts), 1)
    whole = np.abs(share - 0.5) > 0.5 - CROSSING
    labels = np.zeros(lungs.shape, np.uint8)
    labels[lungs] = np.where(
        np.where(whole[parts], share[parts] > 0.5, left[lungs]), LEFT, RIGHT
    )
    count = np.bincount(labels.ravel(), minlength=3)[1:]
    if count.min() > 0.05 * count.max():
        return labels
    solid = (scale > LEVEL)[lungs.any((1, 2))]  # one lung: on which side of the body?
    side = LEFT if _mean_column(lungs) > _mean_column(solid) else RIGHT
    return lungs * np.uint8(side)


def _mean_column(mask):
    count = mask.sum((0, 1))
    return count @ np.arange(count.size) / count.sum()


def _find_cut(lungs, scale, step, middle):
    """Column of the cheapest cut from front to back of every plane.

    A cut pays for the lung that it crosses, the darker the more, so that it runs along
    the bright line where two lungs touch (dynamic programming, row by row).
    """
    half = int(CUT_MM / step[2])
    low = max(round(middle) - half, 0)
    band = np.s_[:, :, low : low + 2 * half + 1]
    cost = 10 * lungs[band] * np.maximum(LEVEL - scale[band], 0) ** 2
    cost = ndimage.uniform_filter1d(cost, 3, axis=0)
    cost += 0.01 + 0.02 * ((np.arange(cost.shape[2]) + low - middle) / half) ** 2
    total, moves = cost[:, 0], []
    for row in range(1, cost.shape[1]):
        reach = np.pad(total, ((0, 0), (2, 2)), constant_values=np.inf)
        reach = np.stack([reach[:, k : k + cost.shape[2]] for k in range(5)])
        moves.append(reach.argmin(0) - 2)
        total = cost[:, row] + reach.min(0)
    planes, cut = np.arange(len(cost)), [total.argmin(1)]
    for move in reversed(moves):
        cut.append(cut[-1] + move[planes, cut[-1]])
    return np.stack(cut[::-1], 1) + low


def close_lungs(labels, step, forbidden):
    """Close each lung over its vessels, nodules and masses, and fill its holes."""
    closed = labels.copy()
    margin, ball = [int(NODULE_MM / mm) + 2 for mm in step], _ball(VESSEL_MM, step)
    inner = tuple(slice(n, -n) for n in margin)

    def one(side):
        box = _box(labels == side, 1)
        if box is None:
            return None
        lung = np.pad(labels[box] == side, [(n, n) for n in margin], mode="edge")
        lung |= _erode(_dilate(lung, ball), ball)
        lung |= find_wrapped(find_holes(lung, step) & ~lung, lung, step)
        lung |= find_wrapped(_close_wide(lung, step) & ~lung, lung, step)
        return box, side, lung[inner]

    with ThreadPoolExecutor(2) as pool:
        for box, side, lung in filter(None, pool.map(one, (RIGHT, LEFT))):
            closed[box][lung & (labels[box] == 0) & ~forbidden[box]] = side
    return closed


def _close_wide(lung, step):
    """Close by the radius of a large nodule, on half the grid where that is fine."""
    half = [2 if mm < 3 else 1 for mm in step]
    small = np.pad(lung, [(0, -n % k) for n, k in zip(lung.shape, half, strict=True)])
    for axis in np.flatnonzero(np.equal(half, 2)):
        layers = np.moveaxis(small, axis, 0)
        small = np.moveaxis(layers[::2] | layers[1::2], 0, axis)
    mm = np.multiply(step, half)
    far = ndimage.distance_transform_edt(~small, sampling=mm) <= NODULE_MM
    small |= ndimage.distance_transform_edt(far, sampling=mm) > NODULE_MM
    wide = ndimage.binary_fill_holes(small)
    for axis, n in enumerate(half):
        wide = np.repeat(wide, n, axis)
    return wide[tuple(slice(size) for size in lung.shape)]


def find_holes(lung, step):
    """Fill what the lung surrounds in an axial plane, up to the size of a mass."""
    labels, _ = ndimage.label(~lung, IN_PLANE)
    hole = np.bincount(labels.ravel()) * step[1] * step[2] < HOLE_MM2
    hole[labels[:, [0, -1]]] = hole[labels[:, :, [0, -1]]] = hole[0] = False
    return hole[labels] | lung


def find_wrapped(pockets, lung, step):
    """Keep the pockets which the lung wraps: nodules do, the mediastinum is open."""
    disk = _disk(CORE_MM, step)
    core, count = ndimage.label(_dilate(_erode(pockets, disk), disk))
    core, solid = np.pad(core, 1), np.pad(lung, 1).ravel()
    flat = core.ravel()
    at = np.flatnonzero(flat)
    own = flat[at]
    inner, total = np.zeros(count + 1), np.zeros(count + 1)
    for axis, stride in enumerate(core.strides):
        for other in (at + stride // core.itemsize, at - stride // core.itemsize):
            edge = flat[other] != own
            face = np.prod(step) / step[axis] * edge
            total += np.bincount(own, face, count + 1)
            inner += np.bincount(own, face * solid[other], count + 1)
    size = np.bincount(own, minlength=count + 1) * np.prod(step) / 1000
    keep = (inner > WRAPPED * total) & (size < LARGEST_ML)
    return _dilate(keep[core[1:-1, 1:-1, 1:-1]], CROSS) & ~lung


def refine(array, found, box, factor, level):
    """Settle the boundary of the coarse labels on the voxels of the scan."""
    labels, airway, below = found
    near = np.maximum(_grow(labels == RIGHT), np.uint8(LEFT) * _grow(labels == LEFT))
    near = np.where(labels, labels, near)
    core = _erode(labels > 0, EVERY_WAY, outside=True)
    bright = near * (core | ((labels > 0) & ~below))
    dark = np.where(_grow(airway) & (labels == 0), TUBE, near)
    full, tubes = np.zeros(array.shape, np.uint8), np.zeros(array.shape, bool)
    fine = tuple(
        slice(side.start * n, min(side.stop * n, size))
        for side, n, size in zip(box, factor, array.shape, strict=True)
    )
    rows, columns = (
        np.arange(side.stop - side.start) // n
        for side, n in zip(fine[1:], factor[1:], strict=True)
    )

    if array.dtype.kind in "iu":
        level = int(np.ceil(level))  # the same voxels, compared without a float copy

    def one(plane):
        at = (plane - fine[0].start) // factor[0]
        if not dark[at].any():
            return
        cut = (plane, *fine[1:])
        if_dark, if_bright = (part[at][:, columns][rows] for part in (dark, bright))
        found = np.where(array[cut] < level, if_dark, if_bright)
        if np.equal(found, TUBE, out=tubes[cut]).any():
            found[tubes[cut]] = 0
        full[cut] = found

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(fine[0].start, fine[0].stop)))
    return full, tubes


def describe_findings(labels, airway, leak):
    """Say in words what a reader should look at."""
    found = []
    size = np.bincount(labels.ravel(), minlength=3)[1:]
    names = ("right", "left")
    if not size.all():
        found.append(f"one lung only: the {names[int(size[1] > 0)]} one")
    elif max(size) > 1.8 * min(size):
        small = names[int(np.argmin(size))]
        found.append(
            f"the {small} lung has {min(size) / max(size):.0%} of the other's volume: "
            "consolidation, effusion, collapse or resection?"
        )
    for axis, ends in enumerate(EDGES):
        area = np.count_nonzero(labels, axis=tuple({0, 1, 2} - {axis}))
        for name, count in zip(ends, area[[0, -1]], strict=True):
            if count > 0.02 * area.max():  # the box ends there only where the scan does
                found.append(f"lungs cut by the {name}")
    if not airway.any():
        found.append("no trachea found: airways may be part of the mask")
    if leak:
        found.append("airway leak stopped: the airway is cut short")
    return found


def describe_left_out(labels, scale, step):
    """Say which lung seems to miss a solid part."""
    return [
        f"a solid region of {volume_ml:.0f} mL or more beside the {part} part of the "
        f"{side} lung is not in the mask: mass, consolidation or effusion?"
        for side, volume_ml, part in find_left_out(labels, scale, step)
    ]


def find_left_out(labels, scale, step):
    """Find solid regions where the mirror image of the other lung has lung.

    Left out of the search: the margin, what lies near the middle or has neither own
    lung nor deep mirrored lung below it (the liver), and the heart's side in front.
    Returns rows of (name, volume in mL, part of the lung).
    """
    column, row = np.arange(labels.shape[2]), (labels > 0).sum((0, 2))
    back = np.arange(len(row)) > row @ np.arange(len(row)) / row.sum()
    right, left = (labels == RIGHT).any(1), (labels == LEFT).any(1)
    both = right.any(1) & left.any(1)
    if not both.any() or labels[..., [0, -1]].any():  # a cut lung is no mirror image
        return []
    ends = right[both].argmax(1) + labels.shape[2] - 1 - left[both, ::-1].argmax(1)
    axis = round(np.median(ends))  # twice the column of the mirror
    seen = slice(max(axis - column[-1], 0), min(axis, column[-1]) + 1)
    near = np.abs(column - axis / 2) * step[2] <= MIDDLE_MM
    found, deep = [], max(1, int(DEEP_MM / step[0]))
    disk, margin = _disk(REGION_MM, step), _disk(MARGIN_MM, step)
    for side, name in ((RIGHT, "right"), (LEFT, "left")):
        mirror = np.zeros(labels.shape, bool)
        mirror[..., seen] = labels[..., seen][..., ::-1] == 3 - side
        mirror[..., near] = False
        solid = (labels == 0) & (scale > SOLID)
        if side == LEFT:
            solid[:, ~back] = False
        box = _box(solid & mirror, margin.shape)  # with room for the disks
        if box is None:
            continue
        box = np.s_[:, box[1], box[2]]
        mirror = _erode(mirror[box], margin)
        below = np.maximum.accumulate(labels[box] == side, axis=0)
        below[deep:] |= mirror[:-deep]
        region = mirror & below & solid[box]
        region, count = ndimage.label(_dilate(_erode(region, disk), disk))
        if not count:
            continue
        size = np.bincount(region.ravel())[1:] * np.prod(step) / 1000
        if size.max() > REPORT_ML:
            height = np.nonzero(region == size.argmax() + 1)[0].mean()
            lung = np.flatnonzero((labels == side).any((1, 2)))
            third = int(3 * (height - lung[0]) / len(lung))
            part = ("lower", "middle", "upper")[min(max(third, 0), 2)]
            found.append((name, float(size.max()), part))
    return found


def _ball(radius, step):
    """Ball of the given radius in mm on the grid."""
    size = [int(radius / mm) for mm in step]
    at = np.ogrid[tuple(slice(-n, n + 1) for n in size)]
    return sum((i * mm) ** 2 for i, mm in zip(at, step, strict=True)) <= radius**2


def _finish(volume, labels=None, airway=None, findings=()):
    """Put the parts together; without labels the scan has no lungs."""
    if labels is None:
        labels = np.zeros(volume.shape, np.uint8)
        airway = np.zeros(volume.shape, bool)
    both, left = np.count_nonzero(labels), 0
    for plane in labels:
        left += np.count_nonzero(plane == LEFT)
    count = [both - left, left, np.count_nonzero(airway)]
    voxel_ml = np.prod(volume.spacing) / 1000
    volumes = [float(n * voxel_ml) for n in count]
    volumes_ml = dict(zip(("right", "left", "airway"), volumes, strict=True))
    geometry = volume.spacing, volume.origin, volume.direction
    return LungMask(labels, airway, volumes_ml, list(findings), *geometry)
