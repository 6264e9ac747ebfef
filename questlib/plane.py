"""Find the lungs in one plane: the method of 2017, and the mended one (notebook 08)."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

RULES_2017 = {
    "height": 0.9,  # a region is lower than this fraction of the rows,
    "width": 0.9,  # narrower than this fraction of the columns,
    "top": 0.2,  # begins below this fraction of the rows,
    "bottom": 0.8,  # and ends above this fraction of the columns (as published)
    "erosion": 3,  # voxels
    "dilation": 8,  # voxels
    "final_dilation": 10,  # voxels
}
RULES_MENDED = {
    "level": 0.53,  # the threshold, on the way from air (0) to soft tissue (1)
    "pure": 0.06,  # darker than this is air without lung around it
    "wall_mm": 2.5,  # what is thinner is no body wall, but a table or a blanket
    "closing_mm": 4.0,  # radius of the disk that closes over vessels
    "hole_mm2": 1500.0,  # a hole up to this area is a vessel, nodule or mass
    "lung_mm2": 100.0,  # a smaller region is no lung
    "airway_mm2": 900.0,  # a round central region up to this area is an airway
}

BUBBLE_MM2 = 4000.0  # gas in the stomach or the bowel is smaller
IN_PLANE = np.zeros((3, 3, 3), bool)  # neighbors within the same plane
IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


class Region(NamedTuple):
    """One region of a plane, its box (last row and column excluded) and verdict."""

    label: int
    top: int
    bottom: int
    left: int
    right: int
    height_mm: float
    width_mm: float
    area_mm2: float
    kept: bool
    reason: str
    missed_by_mm: float


class PlaneMask(NamedTuple):
    """The lungs of one plane and how they were found.

    `mask` is bool (row, column). `stages` maps, in order, "original", "threshold",
    "cleaned", "regions", "mask" and "applied" to (row, column) arrays. `regions` has a
    `Region` for every label of the stage "regions".
    """

    mask: np.ndarray
    stages: dict
    regions: list


def mask_plane_2017(
    hu: np.ndarray, *, spacing: tuple = (1.0, 1.0), rules: dict | None = None
) -> PlaneMask:
    """Mask the lungs of one plane with the method that was published in 2017.

    Parameters
    ----------
    hu : (row, column) ndarray
        One plane; any real numbers, in HU or not.
    spacing : 2 floats, optional
        Distance of (rows, columns) in mm. Used for the verdicts only: the method
        itself counts in voxels.
    rules : dict, optional
        Values that replace those of `RULES_2017`.

    Returns
    -------
    PlaneMask
        The mask, the six stages and the verdict of every region. `missed_by_mm` is
        the largest distance by which a dropped region breaks a rule.

    Raises
    ------
    ValueError
        If `hu` is not a plane of finite numbers, or a rule is unknown.

    Notes
    -----
    Extreme values become the mean of the middle (the central 3/5 of rows and columns);
    two clusters of the middle give the threshold; erosion, dilation, labels; the box
    rules; a last dilation. The clusters are exact (no random start) and the z-score
    is left out: it moves the threshold along, and no voxel changes sides. Windows
    with an even size reach one voxel further down and right, as in scikit-image.

    References
    ----------
    H. Chen, "DICOM Processing and Segmentation in Python", Radiology Data Quest, 2017,
    after G. Zuidhof and the Data Science Bowl 2017 tutorials on Kaggle.

    Examples
    --------
    >>> hu = np.full((100, 100), 40)
    >>> hu[30:60, 20:45] = hu[30:60, 55:80] = -850
    >>> hu[0, 0], hu[0, 1] = -1000, 1000  # it flattens the extreme values
    >>> result = mask_plane_2017(hu)
    >>> [(region.kept, region.reason) for region in result.regions]
    [(True, 'kept'), (True, 'kept')]
    >>> int(result.mask.sum()), int((hu < -400).sum())  # it grows the lungs
    (3256, 1501)

    Built in notebook 08.
    """
    hu, rules = _check_plane(hu), _merge(RULES_2017, rules)
    rows, columns = hu.shape
    middle = np.s_[rows // 5 : int(rows / 5 * 4), columns // 5 : int(columns / 5 * 4)]
    level, count = count_levels(hu[middle])
    flat, low, high = hu[middle].mean(), hu.min(), hu.max()
    extreme = (level == low) | (level == high)
    split = split_in_two(np.where(extreme, flat, level), count)
    below = np.where((hu == low) | (hu == high), flat < split, hu < split)
    eroded = ~_spread(~below, int(rules["erosion"]))
    cleaned = _spread(eroded, int(rules["dilation"]))
    labels, _ = ndimage.label(cleaned, np.ones((3, 3)))
    regions = []
    for label, (row, column) in enumerate(ndimage.find_objects(labels), 1):
        over = {
            f"taller than {rules['height']:.0%} of the rows": spacing[0]
            * (row.stop - row.start - rows * rules["height"]),
            f"wider than {rules['width']:.0%} of the columns": spacing[1]
            * (column.stop - column.start - columns * rules["width"]),
            f"top above {rules['top']:.0%} of the rows": spacing[0]
            * (rows * rules["top"] - row.start),
            f"bottom below {rules['bottom']:.0%} of the columns": spacing[0]
            * (row.stop - columns * rules["bottom"]),
        }
        broken = {rule: miss for rule, miss in over.items() if miss >= 0}
        reason, missed = ", ".join(broken), max(broken.values(), default=0.0)
        regions.append(_describe(labels, label, (row, column), spacing, reason, missed))
    good = np.array([False, *(region.kept for region in regions)])
    mask = _spread(good[labels], int(rules["final_dilation"]))
    return _finish(hu, below, cleaned, labels, mask, regions)


def split_in_two(values: np.ndarray, count: np.ndarray | None = None) -> float:
    """Give the threshold between two clusters of numbers, exactly.

    Parameters
    ----------
    values : ndarray of any shape
        Finite real numbers.
    count : ndarray, same shape, optional
        How often each of the values occurs; by default once.

    Returns
    -------
    float
        The mean of the two cluster centers for which the summed squared distance to
        the nearer center is smallest; the value itself when all are equal.

    Notes
    -----
    In one dimension a cluster is a stretch of the sorted values, so it is enough to
    try every place to cut the histogram: cumulative sums give both means at once. The
    cut that makes the variance between the clusters largest makes the one within
    them smallest (Otsu).

    References
    ----------
    N. Otsu, IEEE Trans. Syst. Man Cybern. 9 (1979) 62-66,
    doi:10.1109/TSMC.1979.4310076.

    Examples
    --------
    >>> split_in_two(np.array([0, 1, 2, 10, 11]))  # centers 1 and 10.5
    5.75

    Built in notebook 08.
    """
    if count is None:
        level, count = count_levels(values)
    else:
        order = np.argsort(values, axis=None)
        level, count = np.ravel(values)[order], np.ravel(count)[order]
    if level[0] == level[-1]:
        return float(level[0])
    weight, moment = np.cumsum(count), np.cumsum(count * level.astype(float))
    low = moment[:-1] / weight[:-1]
    high = (moment[-1] - moment[:-1]) / (weight[-1] - weight[:-1])
    between = weight[:-1] * (weight[-1] - weight[:-1]) * (high - low) ** 2.0
    best = np.argmax(between)
    return float(low[best] + high[best]) / 2


def count_levels(values: np.ndarray) -> tuple:
    """Give the different values, in order, and how often each of them occurs.

    Parameters
    ----------
    values : ndarray of any shape
        Whole numbers in a narrow range, as HU are, are counted without sorting.

    Returns
    -------
    level, count : 1-D ndarrays
        As ``np.unique(values, return_counts=True)``.

    Examples
    --------
    >>> count_levels(np.array([40, -850, 40], np.int16))
    (array([-850,   40]), array([1, 2]))

    Built in notebook 08.
    """
    if values.dtype.kind in "iu" and values.size:
        low = int(values.min())
        if int(values.max()) - low < 1 << 16:
            count = np.bincount(values.ravel().astype(np.int64) - low)
            level = np.flatnonzero(count)
            return level + low, count[level]
    return np.unique(values, return_counts=True)


def mask_plane(
    hu: np.ndarray, *, spacing: tuple = (1.0, 1.0), rules: dict | None = None
) -> PlaneMask:
    """Mask the lungs of one plane, wherever the patient lies in it.

    Parameters
    ----------
    hu : (row, column) ndarray
        One axial plane; any real numbers in which air is dark and tissue bright.
    spacing : 2 floats, optional
        Distance of (rows, columns) in mm.
    rules : dict, optional
        Values that replace those of `RULES_MENDED`; lengths in mm, areas in mm2.

    Returns
    -------
    PlaneMask
        The mask, empty where the plane holds no lung; six stages; the verdict of
        every region. `missed_by_mm` is 0: these rules have no single length.

    Raises
    ------
    ValueError
        If `hu` is not a plane of finite numbers, or a rule is unknown.

    Notes
    -----
    The threshold lies between the air and the soft tissue of this plane, so that a
    shift or another scale of the values changes nothing. Then: padding and the air
    around the body wall go; airways, gas and specks go; each lung is closed over its
    vessels, and its holes are filled.

    Examples
    --------
    >>> hu = np.full((100, 100), -1000)
    >>> hu[10:90, 5:95] = 40  # a body, with two lungs that lie low
    >>> hu[50:85, 20:45] = hu[50:85, 55:80] = -850
    >>> result = mask_plane(hu + 200)  # no need to be calibrated
    >>> np.array_equal(result.mask, hu == -850)
    True

    Built in notebook 08.
    """
    hu, rules = _check_plane(hu), _merge(RULES_MENDED, rules)
    padding = find_padding(hu[None])[0]
    thin = np.s_[:: 1 + hu.shape[0] // 200, :: 1 + hu.shape[1] // 200]
    air, tissue, clear = find_gray_levels(hu[thin][~padding[thin]])
    scale = (hu - air) / max(tissue - air, 1e-6)  # air 0, soft tissue 1
    below = (scale < rules["level"]) & ~padding
    below &= clear or _apart(scale[thin][~padding[thin]], rules["level"])
    pure = scale < rules["pure"]
    outside = _find_around(below, padding, pure)
    cleaned = below & ~outside
    shell = _shrink(~below | padding, rules["wall_mm"], spacing)
    wall = _grow(shell, rules["wall_mm"], spacing)
    beyond = _find_around(~wall, padding, pure)
    labels, _ = ndimage.label(cleaned)
    regions = _judge_regions(labels, scale, beyond, outside & ~padding, spacing, rules)
    mask = np.zeros(hu.shape, bool)
    for region in regions:
        if region.kept:
            mask |= _close_region(labels == region.label, spacing, rules)
    return _finish(hu, below, cleaned, labels, mask & ~outside, regions)


def find_gray_levels(values: np.ndarray) -> tuple:
    """Find what air and soft tissue look like in a scan, calibrated or not.

    Parameters
    ----------
    values : ndarray of any shape
        The voxels without the padding; a million of them are enough.

    Returns
    -------
    air, tissue : float
        The darkest peak of the histogram, and the median of its bright cluster.
    clear : bool
        Whether the values really are two clusters, air and tissue.

    Notes
    -----
    In a scan of a body two clusters hold more than nine tenths of the variance; noise
    alone leaves 64 %, evenly spread values 75 %. Below 80 % there is nothing to find.

    Built in notebook 08.
    """
    values = np.asarray(values, float).ravel()
    if values.size < 2:
        return 0.0, 0.0, False
    values = np.clip(values, *np.percentile(values, [0.1, 99.5]))
    split = split_in_two(values)
    dark, bright = values[values < split], values[values >= split]
    if dark.size == 0:
        return float(split), float(split), False
    count, edge = np.histogram(dark, 100)
    smooth = np.pad(ndimage.gaussian_filter1d(count.astype(float), 2.0), 1)
    peak = (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:])
    air = edge[:-1][peak & (count > 0.1 * smooth.max())][:1]
    air = float(air[0]) if air.size else float(dark.min())
    gap = (bright.mean() - dark.mean()) ** 2 * dark.size * bright.size
    return (
        air,
        float(np.median(bright)),
        bool(gap > 0.8 * values.var() * values.size**2),
    )


def find_padding(array: np.ndarray) -> np.ndarray:
    """Find the voxels outside the field of view that hold no measurement.

    Parameters
    ----------
    array : (plane, row, column) ndarray
        A scan or a single plane.

    Returns
    -------
    padding : (plane, row, column) ndarray of bool
        What is connected, in its plane, to the border and holds the one value that
        the corners share; nothing where that value is plainly air.

    Built in notebook 08.
    """
    padding = np.zeros(array.shape, bool)
    corners = array[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    value, count = np.unique(corners, return_counts=True)
    if array[0].size < 4 or count.max() < 0.7 * corners.size:
        return padding
    value = value[count.argmax()]
    same = array == value
    rest = array[~same]
    rest = rest[:: max(1, rest.size // 100_000)]
    if rest.size < 2:
        return padding
    darkest, brightest = np.percentile(rest, [0.5, 90])
    if (
        darkest - 0.15 * (brightest - darkest)
        < value
        < darkest + 0.1 * (brightest - darkest)
    ):
        return padding  # the scanner's own value for air
    labels, count = ndimage.label(same, IN_PLANE)
    padding = np.isin(labels, np.setdiff1d(labels[_frame(labels)], 0))
    return padding


def find_outside(air: np.ndarray, padding: np.ndarray, pure: np.ndarray) -> np.ndarray:
    """Find the air around the patient, plane by plane.

    Parameters
    ----------
    air, padding, pure : (plane, row, column) ndarray of bool
        Dark voxels; voxels without a measurement; voxels as dark as air itself.

    Returns
    -------
    outside : (plane, row, column) ndarray of bool
        Padding, and the air that touches the first or last row, or elsewhere the edge
        of the field of view where it is mostly pure. A lung that the edge cuts at the
        side is not: it is less dark.

    Built in notebook 08.
    """
    labels, outside = label_air(air & ~padding, padding, pure)
    return outside[labels] | padding


def label_air(air, padding, pure):
    """Number the air, plane by plane; tell of each number whether it is outside."""
    labels, count = ndimage.label(air, IN_PLANE)
    edge = _frame(padding)
    if padding.any():
        edge |= padding
        edge[:, 1:] |= padding[:, :-1]
        edge[:, :-1] |= padding[:, 1:]
        edge[..., 1:] |= padding[..., :-1]
        edge[..., :-1] |= padding[..., 1:]
    touching = np.bincount(labels[edge], minlength=count + 1)
    dark = np.bincount(labels[edge & pure], minlength=count + 1)
    outside = dark > 0.5 * touching
    outside[labels[:, [0, -1]]] = True
    outside[0] = False
    return labels, outside


def _check_plane(hu):
    hu = np.asarray(hu)
    if hu.ndim != 2 or min(hu.shape) < 5:
        raise ValueError(f"a plane is (row, column), 5 x 5 or more, not {hu.shape}")
    if not np.isfinite(hu).all():
        raise ValueError("the plane holds values that are not finite (NaN or infinity)")
    return hu


def _merge(defaults, rules):
    unknown = sorted(set(rules or ()) - set(defaults))
    if unknown:
        raise ValueError(
            f"unknown rule {unknown[0]!r}; there are {', '.join(defaults)}"
        )
    return defaults | (rules or {})


def _frame(array):
    """True on the border rows and columns of every plane."""
    frame = np.ones(array.shape, bool)
    frame[..., 1:-1, 1:-1] = False
    return frame


def _spread(mask, size):
    """Dilate with a window of size x size voxels, as scikit-image places it."""
    rows, columns = mask.shape
    before = (size - 1) // 2
    wide = np.zeros((rows + size - 1, columns + size - 1), bool)
    wide[before : before + rows, before : before + columns] = mask
    tall, out = wide[:rows].copy(), np.zeros_like(mask)
    for shift in range(1, size):
        tall |= wide[shift : shift + rows]
    for shift in range(size):
        out |= tall[:, shift : shift + columns]
    return out


def _describe(labels, label, box, spacing, reason, missed=0.0):
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    area = np.count_nonzero(labels[box] == label) * spacing[0] * spacing[1]
    height, width = (bottom - top) * spacing[0], (right - left) * spacing[1]
    return Region(
        *(label, top, bottom, left, right, height, width, float(area)),
        *(not reason, reason or "kept", float(missed)),
    )


def _judge_regions(labels, scale, beyond, outside, spacing, rules):
    """Say for every region of the mended method whether it is lung, and why not."""
    body = np.flatnonzero((~beyond).any(0))
    regions, dark = [], []
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        region, quartiles = _describe(labels, label, box, spacing, ""), (1.0, 1.0)
        reason = "smaller than a lung"
        if region.area_mm2 >= rules["lung_mm2"]:
            own = labels[box] == label
            quartiles = np.percentile(scale[box][own], [25, 50])
            reason = "air outside the body" if beyond[box][own].mean() > 0.5 else ""
            if not reason and quartiles[0] < 0.2 and _is_airway(region, body, rules):
                reason = "an airway: round, central, dark"
        dark.append(quartiles)
        regions.append(region._replace(kept=not reason, reason=reason or "kept"))
    if outside.mean() < 0.01:  # no outside air to compare with
        return regions
    return _drop_gas(regions, dark, rules["pure"])


def _is_airway(region, body, rules):
    """Whether a region is small, round and near the middle of the body's columns."""
    middle = (region.left + region.right - 1 - body[0] - body[-1]) / 2
    short, long = sorted((region.height_mm, region.width_mm))
    return (
        region.area_mm2 < rules["airway_mm2"]
        and abs(middle) < 0.12 * (body[-1] - body[0] + 1)
        and short > 0.5 * long
        and region.area_mm2 > 0.6 * short * long
    )


def _drop_gas(regions, dark, pure):
    """Drop regions as dark as outside air; the largest that is not is surely lung.

    A bubble in the stomach may exceed a lung that just begins: then it is the middle
    value that tells them apart.
    """
    kept = [
        (r.area_mm2, mid) for r, (_, mid) in zip(regions, dark, strict=True) if r.kept
    ]
    lungs = [row for row in kept if row[1] >= pure]
    lung, typical = max(lungs, default=(4 * BUBBLE_MM2, 0.0))
    for i, (region, (low, mid)) in enumerate(zip(regions, dark, strict=True)):
        gas = region.area_mm2 < lung / 4 and low < pure
        gas |= region.area_mm2 < BUBBLE_MM2 and mid < min(pure, typical / 2)
        if region.kept and gas:
            regions[i] = region._replace(
                kept=False, reason="gas: as dark as outside air"
            )
    return regions


def _find_around(air, padding, pure):
    """`find_outside` for a plane whose first and last rows may be padding.

    Where no air lies above or below the body, none is in view: then nothing is pure.
    """
    rows = np.flatnonzero(~padding.all(1))
    cap = len(rows) // 20 if padding.any() else 0  # a circle is narrow there
    seen = slice(rows[0] + cap, rows[-1] + 1 - cap)
    outside = air | padding
    above_below = (air & ~padding)[seen][[0, -1]]
    planes = air[None, seen], padding[None, seen], pure[None, seen] & above_below.any()
    outside[seen] = find_outside(*planes)[0]
    return outside


def _close_region(region, spacing, rules):
    """Close one lung over its vessels and fill its holes up to the given area."""
    (box,) = ndimage.find_objects(region.view(np.uint8))
    reach = [int(rules["closing_mm"] / step) + 2 for step in spacing]
    box = tuple(
        slice(max(side.start - size, 0), side.stop + size)
        for side, size in zip(box, reach, strict=True)
    )
    grown = _grow(region[box], rules["closing_mm"], spacing)
    closed = _shrink(grown, rules["closing_mm"], spacing)
    holes, _ = ndimage.label(~closed)
    small = np.bincount(holes.ravel()) * spacing[0] * spacing[1] <= rules["hole_mm2"]
    small[holes[_frame(holes)]] = False  # what reaches the frame is no hole
    small[0] = True
    out = np.zeros(region.shape, bool)
    out[box] = small[holes]
    return out


def _apart(scale, level):
    """Whether two clusters are apart, even when one of them is small."""
    dark, bright = scale[scale < level], scale[scale >= level]
    if min(dark.size, bright.size) < 2:
        return False
    return bright.mean() - dark.mean() > 2 * (bright.std() + dark.std())


def _grow(mask, radius, spacing):
    """Dilate with a disk in mm: its rows are segments, widened step by step."""
    rows, columns = mask.shape
    out, wide, half = mask.copy(), mask.copy(), 0
    for row in range(int(radius / spacing[0]), -1, -1):
        reach = np.sqrt(radius**2 - (row * spacing[0]) ** 2) / spacing[1]
        while half < min(int(reach), columns - 1):
            half += 1
            wide[:, half:] |= mask[:, :-half]
            wide[:, :-half] |= mask[:, half:]
        out[row:] |= wide[: max(rows - row, 0)]
        out[: max(rows - row, 0)] |= wide[row:]
    return out


def _shrink(mask, radius, spacing):
    """Erode with a disk in mm; the edge of the plane does not eat."""
    return ~_grow(~mask, radius, spacing)


def _finish(hu, below, cleaned, labels, mask, regions):
    applied = np.where(mask, hu, hu.min())
    names = ("original", "threshold", "cleaned", "regions", "mask", "applied")
    stages = dict(zip(names, (hu, below, cleaned, labels, mask, applied), strict=True))
    return PlaneMask(mask, stages, regions)
