"""A chest CT computed from formulas, with its truth (the ruler of all notebooks)."""

from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from questlib.volume import AXIAL, Volume

APEX = 122.0  # mm: top of the lungs
LUNG_BOX = ((-150, 126), (-100, 92), (-140, 140))  # mm: plane, row, column axis
PARTS = "body bones heart liver gas vessels bronchi nodules mass consolidation".split()
CLIPPED = {"vessels", "bronchi", "nodules", "mass", "consolidation", "emphysema"}
KNOBS = dict(
    offset=(0, 0),
    field_of_view=None,
    noise=15,
    nodules=((12, "inside"), (16, "pleura")),
    mass=40,
    consolidation=0,
    emphysema=0.02,
    touching=False,
    bowel_gas=True,
    arms="up",
    padding=False,
)
PLACES = {  # start of the search in mm (plane, row, column axis) and its direction
    "inside": ((18, 30, -78), None),
    "pleura": ((45, 5, -70), (0.1, 0.25, -1)),
    "apex": ((60, 10, 60), (1, 0, 0.1)),
    "base": ((-10, 45, 75), (-1, 0.3, 0.1)),
}


class Phantom(NamedTuple):
    """A computed scan: `volume`, `truth` (labels) and `parts` (name -> bool mask)."""

    volume: Volume
    truth: np.ndarray
    parts: dict


class Shape(NamedTuple):
    """One painted thing: its box in mm, distance to its surface, HU and part."""

    box: tuple
    distance: object
    hu: float
    part: str


def _grid(points):
    plane, row, column = points
    return plane[:, None, None], row[None, :, None], column[None, None, :]


def _cut(points, box):
    """Index ranges of the 1-D coordinates that lie in the box."""
    return tuple(
        slice(*np.searchsorted(axis, ends))
        for axis, ends in zip(points, box, strict=True)
    )


def _tube(start, end, radii, hu=40.0, part="heart", *, scale=(1.0, 1.0, 1.0)):
    """A tapered tube with round ends; `scale` < 1 stretches it along that axis."""
    start, end, scale = (np.array(value, np.float32) for value in (start, end, scale))
    radii = (radii, radii) if np.isscalar(radii) else radii
    low, high = np.minimum(start, end), np.maximum(start, end)
    box = np.stack([low - max(radii) / scale - 2, high + max(radii) / scale + 2], 1)
    along = (end - start) * scale
    length2 = max(float(along @ along), 1e-6)

    def distance(points):
        step = [(axis - s) * k for axis, s, k in zip(points, start, scale, strict=True)]
        dot = sum(_grid([axis * a for axis, a in zip(step, along, strict=True)]))
        share = np.clip(dot / length2, 0, 1)
        square = sum(_grid([axis * axis for axis in step]))
        square = square - share * (2 * dot - share * length2)
        radius = radii[0] + share * (radii[1] - radii[0])
        return np.sqrt(np.maximum(square, 0)) - radius

    return Shape(box, distance, hu, part)


def _ball(center, radii, hu, part):
    """An ellipsoid with the semi-axes `radii` (plane, row, column) in mm."""
    scale = np.min(radii) / np.broadcast_to(radii, 3)
    return _tube(center, center, float(np.min(radii)), hu, part, scale=scale)


def _path(points, radii, hu, part, **options):
    """A chain of tubes through the points."""
    radii = np.broadcast_to(radii, len(points))
    return [
        _tube(a, b, (ra, rb), hu, part, **options)
        for a, b, ra, rb in zip(points, points[1:], radii, radii[1:], strict=False)
    ]


def _smooth_min(a, b, width):
    blend = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - blend * blend * (0.25 / width)


def _union(points, shapes, width=6.0):
    """Signed distance to the smooth union of shapes, at most 20 mm."""
    out = np.full([len(axis) for axis in points], 20, np.float32)
    for shape in shapes:
        cut = _cut(points, np.add(shape.box, (-10, 10)))
        near = [axis[c] for axis, c in zip(points, cut, strict=True)]
        if all(len(axis) for axis in near):
            out[cut] = _smooth_min(out[cut], shape.distance(near), width)
    return out


def _oval(row, column, *, flat, half_width, half_depth):
    """Distance to an ellipse whose front and back run flat for `flat` mm each side."""
    column = np.maximum(np.abs(column) - flat, 0)
    a, b = np.maximum(half_width - flat, 1), np.maximum(half_depth, 1)
    level = np.sqrt((column / a) ** 2 + (row / b) ** 2) + 1e-6
    slope = np.sqrt((column / a**2) ** 2 + (row / b**2) ** 2) + 1e-6
    return level * (level - 1) / slope


def _trunk(points, inset=0.0):
    """Distance to the skin, moved inwards by `inset` mm."""
    z, y, x = _grid(points)
    rise = np.sqrt(1 - np.clip((z - 92) / 70, 0, 0.96) ** 2)
    sides = _oval(
        y - 8, x, flat=60 * rise, half_width=160 * rise, half_depth=70 + 46 * rise
    )
    neck = np.sqrt((y - 12) ** 2 + x * x) - 62 + np.maximum(110 - z, 0)
    return _smooth_min(sides, neck, 20) + inset


def _chest_size(z):
    """Half width and half depth in mm of the chest's inside at the height z."""
    taper = np.clip((z + 25) / (APEX + 25), 0, 1)
    size = np.sqrt(np.maximum(1 - taper**2.6, 0))
    size = size * (1 - 0.06 * np.clip((-60 - z) / 60, 0, 1))
    return 40 + 86 * size, 86 * size


def _cavity(points):
    """Distance to the inner side of the ribs; it closes at the apex."""
    z, y, x = _grid(points)
    half_width, half_depth = _chest_size(z)
    return _oval(y + 4, x, flat=40, half_width=half_width, half_depth=half_depth)


def _dome(points):
    """Height in mm of the lungs' lower face above each voxel: below it is abdomen."""
    z, y, x = _grid(points)
    top = np.where(x < 0, -38.0, -50.0)
    side = (np.abs(x) - 62) / 64
    side = np.where(side < 0, 0.15, 1.0) * side**2
    depth = (y + 8) / 90
    depth = np.where(depth > 0, 1.0, 0.6) * depth**2
    fall = 72 * (side + depth)
    return (top - fall - z) / np.sqrt(1 + 1.2 * fall / 40)


def _chest_wall(arms):
    """Skin, fat, muscle and bones outside the ribs' inner side, painted in this order."""
    everywhere = ((-1e4, 1e4),) * 3
    layers = [
        Shape(everywhere, lambda p, i=inset: _trunk(p, i), hu, "body")
        for inset, hu in ((0, 20), (2.0, -105), (15, 52), (23, -60), (25, 52))
    ]
    shapes = [*_table(), *layers]
    for side in (-1, 1):
        if arms == "up":
            shoulder, elbow = (88, 22, side * 138), (330, -25, side * 150)
        else:
            shoulder, elbow = (98, 25, side * 160), (-330, 20, side * 196)
        if arms:
            for radius, hu in ((46, 20), (44, -105), (38, 52)):
                shapes.append(_tube(shoulder, elbow, radius, hu, "body"))
            shapes.append(_tube(shoulder, elbow, (13, 11), 900, "bones"))
            shapes.append(_tube(shoulder, elbow, (10, 7), 80, "bones"))
        collar = [(84, -92, side * 14), (98, -80, side * 55), (112, -30, side * 115)]
        shapes += _path(collar, 6.5, 650, "bones") + _path(collar, 4, 250, "bones")
        blade = (
            (-20, 112),
            (15, 125),
            (-150, -62) if side < 0 else (62, 150),
        )
        shapes.append(Shape(blade, lambda p: np.abs(_trunk(p, 24)) - 2.5, 600, "bones"))
        for number in range(12):
            shapes += _rib(number, side)
    shapes.append(
        _tube((64, -99, 0), (-45, -99, 0), 13, 500, "bones", scale=(1, 2.4, 1))
    )
    shapes.append(
        _tube((64, -99, 0), (-45, -99, 0), 10, 180, "bones", scale=(1, 2.8, 1))
    )
    return shapes


def _table():
    def top(p, inset):
        z, y, x = _grid(p)
        return np.abs(y + x * x / 900 - 140 + 0 * z) - 13 + inset

    wide = ((-1e4, 1e4), (-1e4, 1e4), (-215, 215))
    return [
        Shape(wide, lambda p, i=inset: top(p, i), hu, "table")
        for inset, hu in ((0, -80), (2.5, -900), (8, -1000))
    ]


def _rib(number, side):
    """Oblique hoop from the spine down and forward, cartilage up to the sternum."""
    top = 114 - 21.5 * number
    last = -60 if number < 7 else (-35 if number < 10 else 5)
    angles = np.radians(np.linspace(88, last, 15))
    share = np.linspace(0, 1, 15)
    height = top - (22 + 38 * min(number, 3) / 3) * share**1.1
    half_width, half_depth = _chest_size(height + 4)
    column = 40 + (half_width - 34) * np.cos(angles)
    row = -4 + (half_depth + 6) * np.sin(angles)
    arc = np.stack([height, row, side * column], 1)
    head = np.array([[top + 2, 68, side * 19]])
    arc = np.concatenate([head, arc])
    shapes = _path(arc, 5.2, 600, "bones", scale=(0.7, 1, 1))
    shapes += _path(arc, 3.0, 180, "bones", scale=(0.7, 1, 1))
    if number < 7:
        front = np.stack([arc[-1], (max(arc[-1][0] + 6, -40), -99, side * 14)])
        shapes += _path(front, 5.0, 110, "body", scale=(0.7, 1, 1))
    return shapes


def _abdomen(bowel_gas):
    inside = ((-1e4, 40), (-100, 90), (-135, 135))

    def below(gap):
        return lambda p: np.maximum(_cavity(p), gap - _dome(p))

    def liver(p):
        z, y, x = _grid(p)
        edge = x - 35 + 0.6 * (y + 20) + 0.4 * (z + 60)
        return np.maximum(np.maximum(_cavity(p) + 3, 4 - _dome(p)), edge)

    shapes = [
        Shape(inside, below(0), 45, "body"),
        Shape(inside, below(3.5), -100, "body"),
        Shape(inside, liver, 58, "liver"),
        _ball((-112, 48, 78), (38, 34, 26), 52, "spleen"),
        _ball((-100, -18, 62), (34, 42, 40), 35, "stomach"),
    ]
    if bowel_gas:
        gas = [((-96, -38, 62), (25, 16, 28)), ((-118, 10, 98), (18, 14, 14))]
        gas += [((-142, -60, 0), (14, 15, 40)), ((-140, -55, -60), (12, 14, 22))]
        shapes += [_ball(c, np.add(r, 2.5), 30, "bowel") for c, r in gas[1:]]
        shapes += [_ball(c, r, -990, "gas") for c, r in gas]
    return shapes


def _spine():
    shapes = []
    for z in np.arange(-166, 190, 24.0):
        body = _ball((z, 58, 0), (10.5, 16, 19), 420, "bones")
        shapes += [_tube((z - 6, 58, 0), (z + 6, 58, 0), 17, 420, "bones")]
        shapes += [_tube((z - 5, 58, 0), (z + 5, 58, 0), 14, 190, "bones")]
        shapes += [_tube((z - 5, 82, 0), (z + 6, 82, 0), 14, 480, "bones")]
        shapes += _path([(z, 92, 0), (z - 16, 114, 0)], (4.5, 4), 420, "bones")
        for side in (-1, 1):
            wing = [(z, 84, side * 9), (z + 3, 90, side * 33)]
            shapes += _path(wing, (5.5, 4.5), 380, "bones")
    shapes.append(_tube((-400, 82, 0), (400, 82, 0), 9.5, 25, "canal"))
    return shapes


TRACHEA = [(170, 8, 0), (46, 20, 2)]
BRONCHI = {
    1: [(46, 20, 2), (22, 24, -32), (12, 26, -46)],
    2: [(46, 20, 2), (20, 26, 34), (13, 29, 52)],
}


def _mediastinum():
    """Heart and great vessels (mm: plane, row, column axis)."""
    heart = [
        _tube((2, -18, -6), (-36, -42, 48), (36, 31), 42),
        _tube((0, -8, -28), (-28, -6, -30), (26, 24), 42),
        _tube((4, 8, 6), (-20, 2, 20), (27, 30), 42),
    ]
    vessels = _path([(12, -26, -8), (55, -28, -12)], 16, 42, "aorta")
    vessels += _path(
        [(55, -28, -12), (72, -14, -2), (75, 10, 14), (60, 34, 26), (40, 40, 25)],
        (16, 14.5, 13.5, 13, 12.5),
        42,
        "aorta",
    )
    vessels += _path([(40, 40, 25), (-60, 40, 20), (-200, 34, 8)], 12, 42, "aorta")
    vessels += _path([(5, -34, 14), (26, -18, 18), (32, 8, 36)], (14, 13, 10), 42, "pa")
    vessels += _path(
        [(24, -14, 14), (24, 4, -18), (18, 10, -40)], (12, 11, 9), 42, "pa"
    )
    vessels += _path([(0, -12, -28), (60, -14, -24), (88, -22, -26)], 9, 42, "veins")
    vessels += _path([(82, -40, 30), (74, -38, 0), (66, -20, -22)], 6.5, 42, "veins")
    vessels += _path([(-200, 8, -24), (-30, 0, -24)], 12, 42, "veins")
    for start, end in (
        ((78, -16, -6), (165, -2, -28)),
        ((82, 0, 8), (165, 0, 24)),
        ((80, 18, 18), (120, 16, 40)),
    ):
        vessels.append(_tube(start, end, (6, 4.5), 42, "aorta"))
    gullet = _path([(170, 26, 4), (20, 42, 6), (-70, 22, 16)], 7.5, 35, "gullet")
    return heart, vessels, gullet


def _keep_out():
    """What the lungs lie around: their sum is the mediastinum's outline."""
    heart, vessels, gullet = _mediastinum()
    shapes = [*heart, *vessels, *gullet]
    shapes += [s for side in (1, 2) for s in _path(BRONCHI[side], 9, 0, "hilum")]
    shapes += _path(TRACHEA, 10, 0, "airway")
    shapes.append(_tube((-400, 62, 0), (400, 62, 0), 22, 0, "spine"))
    shapes.append(_tube((-80, 30, 4), (120, 20, 0), 17, 0, "core"))
    shapes.append(_tube((75, -30, 0), (140, -10, 0), 26, 0, "core"))
    return [s._replace(distance=lambda p, d=s.distance: d(p) - 3) for s in shapes]


def _lungs(septum):
    around = _keep_out()

    def lung(points, side):
        z, y, x = _grid(points)
        out = np.maximum(_cavity(points) + 1.5, _dome(points))
        out = -_smooth_min(-out, _union(points, around), 5)
        middle = 5 * np.sin(z / 35)
        return np.maximum(out, septum / 2 - side * (x - middle))

    half = {-1: (-140, 8), 1: (-8, 140)}
    return {
        label: Shape(
            (*LUNG_BOX[:2], half[side]),
            lambda p, s=side: lung(p, s),
            -865,
            "lung",
        )
        for label, side in ((1, -1), (2, 1))
    }


def _grow_tree(inside, root, rng, *, count=320):
    """Grow a branching tree from the root to `count` random points of the lung.

    Each point joins the branch that keeps both the new piece and the way to the root
    short; a branch that feeds n ends has the radius 0.55 n^(1/2.6) mm (Murray's law).
    """
    ends = inside[rng.choice(len(inside), count, replace=False)]
    ends = ends + rng.uniform(-2, 2, ends.shape)
    ends = ends[np.argsort(np.linalg.norm(ends - root, axis=1))]
    nodes, way, parent = np.array([root], float), np.zeros(1), [-1]
    for end in ends:
        gap = np.linalg.norm(nodes - end, axis=1)
        start = int(np.argmin(gap + 0.5 * way))
        steps = max(int(gap[start] // 9), 1)
        share = np.arange(1, steps + 1)[:, None] / steps
        piece = nodes[start] + share * (end - nodes[start])
        piece[:-1] += rng.normal(0, 0.8, piece[:-1].shape)
        parent += [start, *range(len(nodes), len(nodes) + steps - 1)]
        way = np.append(way, way[start] + share[:, 0] * gap[start])
        nodes = np.concatenate([nodes, piece])
    feeds = np.zeros(len(nodes))
    feeds[np.setdiff1d(np.arange(len(nodes)), parent)] = 1
    for node in range(len(nodes) - 1, 0, -1):
        feeds[parent[node]] += feeds[node]
    radii = 0.55 * feeds ** (1 / 2.6)
    return nodes, parent, radii


def _lung_contents(lungs, rng, knobs):
    shapes = []
    walls, lumens = [], []
    axes = [np.arange(lo, hi, 4.0, dtype=np.float32) for lo, hi in LUNG_BOX]
    for label, side in ((1, -1), (2, 1)):
        depth = lungs[label].distance(axes)
        inside = np.argwhere(depth < -3) * 4.0 + [axis[0] for axis in axes]
        root = np.array(BRONCHI[label][-1])
        nodes, parent, radii = _grow_tree(inside, root - (0, 9, 0), rng)
        for node in range(1, len(nodes)):
            a, b, r = nodes[parent[node]], nodes[node], radii[[parent[node], node]]
            r = np.minimum(r, 1.25 * r[1])
            shapes.append(_tube(a, b, r, 40, "vessels"))
            if r[1] > 1.6:
                beside = [(0, 1.8 * r[0] + 0.5, 0), (0, 1.8 * r[1] + 0.5, 0)]
                a, b = a + beside[0], b + beside[1]
                walls.append(_tube(a, b, 0.8 * r + 0.6, -50, "bronchi"))
                lumens.append(_tube(a, b, 0.8 * r - 0.3, -950, "bronchi"))
        holes = inside[inside[:, 0] > 0]
        volume = 64 * len(inside) * knobs["emphysema"]
        for center in holes[rng.integers(len(holes), size=int(volume / 400))]:
            shapes.append(_ball(center, rng.uniform(3, 5.5), -975, "emphysema"))
    shapes += walls
    if knobs["consolidation"]:
        reach = knobs["consolidation"] / 2
        for _ in range(14):
            center = (-55, 45, -80) + rng.normal(0, reach / 3, 3)
            shapes.append(_ball(center, reach / 2, 25, "consolidation"))
    shapes += lumens
    if knobs["mass"]:
        shapes.append(_ball((52, 5, 50), knobs["mass"] / 2, 38, "mass"))
    for size, place in knobs["nodules"]:
        shapes.append(
            _ball(_nodule_center(lungs, size, place), size / 2, 35, "nodules")
        )
    return shapes


def _nodule_center(lungs, size, place):
    """Where a nodule lies: given in mm, or found along a line towards the pleura."""
    if not isinstance(place, str):
        return np.array(place, float)
    start, way = (np.array(value) if value else None for value in PLACES[place])
    if way is None:
        return start
    lung, near, far = lungs[1 if start[2] < 0 else 2], 0.0, 150.0
    for _ in range(20):
        middle = (near + far) / 2
        point = (start + middle * way / np.linalg.norm(way)).astype(np.float32)
        deep = lung.distance(point[:, None]).item() < -0.425 * size
        near, far = (middle, far) if deep else (near, middle)
    return start + near * way / np.linalg.norm(way)


def _paint(shape, points, times, ramp):
    """Cut of the slab that a shape touches, and the share of each voxel it covers."""
    cut = _cut(points, shape.box)
    low, high = cut[0].start // times, -(-cut[0].stop // times)
    near = (points[0][low * times : high * times], points[1][cut[1]], points[2][cut[2]])
    if not all(len(axis) for axis in near):
        return None, None
    cover = np.clip(0.5 - shape.distance(near) / ramp, 0, 1)
    if times > 1:
        cover = cover.reshape(high - low, times, *cover.shape[1:]).mean(1)
    return (slice(low, high), cut[1], cut[2]), cover


def _noise(shape, rng):
    """One plane of CT-like noise, standard deviation 1: grain, not white."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fine, coarse = (ndimage.gaussian_filter(white, s, truncate=3) for s in (0.75, 2.2))
    return 4.0 * (fine - 0.8 * coarse)


def make_phantom(
    folder: str | Path | None = None,
    *,
    shape: tuple = (120, 256, 256),
    spacing: tuple = (2.5, 1.4, 1.4),
    seed: int = 0,
    **knobs,
) -> Phantom:
    """Compute a chest CT."""
    knobs = {**KNOBS, **knobs}
    if knobs["field_of_view"]:
        view = knobs["field_of_view"]
        spacing = (spacing[0], view / shape[1], view / shape[2])
    rng = np.random.default_rng(seed)
    lungs = _lungs(1.0 if knobs["touching"] else 3.0)
    trachea = [*_path(TRACHEA, 9, -1000, "airway")]
    for side, radius in ((1, 7.5), (2, 6.5)):
        trachea += _path(BRONCHI[side], radius, -1000, "airway")
    heart, vessels, gullet = _mediastinum()
    cavity = Shape(((-1e4, APEX), *LUNG_BOX[1:]), _cavity, -95, "fat")
    walls = [
        s._replace(distance=lambda p, d=s.distance: d(p) - 1.5, hu=30, part="wall")
        for s in trachea
    ]
    shapes = [
        *_chest_wall(knobs["arms"]),
        cavity,
        *_abdomen(knobs["bowel_gas"]),
        *_spine(),
        *heart,
        *vessels,
        *gullet,
        *walls,
        *lungs.values(),
        *_lung_contents(lungs, rng, knobs),
        *trachea,
    ]
    times = max(1, round(spacing[0] / 2))
    fine = (spacing[0] / times, *spacing[1:])
    z, y, x = (
        ((np.arange(n * t) - (n * t - 1) / 2) * s - o).astype(np.float32)
        for n, t, s, o in zip(
            shape, (times, 1, 1), fine, (0, *knobs["offset"]), strict=True
        )
    )
    array = np.empty(shape, np.int16)
    truth = np.zeros(shape, np.uint8)
    parts = {name: np.zeros(shape, bool) for name in PARTS}
    step = max(1, 2**20 // (shape[1] * shape[2] * times))
    labels = {id(s): n for n, s in lungs.items()}
    for first in range(0, shape[0], step):
        planes = slice(first, min(first + step, shape[0]))
        points = (z[planes.start * times : planes.stop * times], y, x)
        hu = np.full((planes.stop - first, *shape[1:]), -1000, np.float32)
        lung = np.zeros_like(hu)
        for s in shapes:
            cut, cover = _paint(s, points, times, np.float32(np.mean(spacing[1:])))
            if cut is None:
                continue
            if s.part in CLIPPED:
                cover = np.minimum(cover, lung[cut])
            h = s.hu
            if s.part == "lung":
                lung[cut] += cover
                truth[planes][cut][cover >= 0.5] = labels[id(s)]
                h = -865 + 0.4 * y[cut[1]][:, None]
            hu[cut] += cover * (h - hu[cut])
            if s.part == "airway":
                truth[planes][cut][cover >= 0.5] = 3
            elif s.part in parts:
                parts[s.part][planes][cut] |= cover >= 0.5
        for n in range(planes.stop - first):
            hu[n] += knobs["noise"] * _noise(shape[1:], rng)
        array[planes] = np.clip(np.rint(hu), -1024, 3071)
        if knobs["padding"]:
            array[planes][:, _outside_view(shape[1:])] = -1024
    origin = np.array([x[0], y[0], z.reshape(-1, times)[0].mean()]) + (
        *knobs["offset"][::-1],
        0,
    )
    volume = Volume(array, spacing, origin, AXIAL)
    if folder is not None:
        _write_series(Path(folder), volume, seed=seed, knobs=knobs)
    return Phantom(volume, truth, parts)


def _outside_view(shape):
    """True where a pixel lies outside the scanner's round field of view."""
    row, column = (np.linspace(-1, 1, n) for n in shape)
    return row[:, None] ** 2 + column**2 > 1


def _header(volume, uids):
    """What all planes of the series share (PS3.3, A.3 CT Image IOD)."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
    ds.PatientName, ds.PatientID = "Phantom^Quest", "QUEST-PHANTOM"
    ds.PatientBirthDate = ds.PatientSex = ds.ReferringPhysicianName = ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20170101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ds.PositionReferenceIndicator = ""
    ds.StudyID = "1"
    ds.Manufacturer, ds.ManufacturerModelName = "DICOM Quest", "make_phantom"
    ds.StudyDescription = ds.SeriesDescription = "Computed chest, no patient"
    ds.DerivationDescription = "Computed from formulas; no patient was scanned"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.KVP = 1, 1, 120
    ds.PatientPosition, ds.BodyPartExamined, ds.ConvolutionKernel = "HFS", "CHEST", "-"
    ds.SliceThickness = round(volume.spacing[0], 6)
    ds.PixelSpacing = [round(value, 6) for value in volume.spacing[1:]]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = volume.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.WindowCenter, ds.WindowWidth = [-600, 40], [1500, 400]
    return ds


def _write_series(folder, volume, *, seed, knobs):
    """Write the planes as CT Image Storage; file names are in no useful order."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"questlib {volume.shape} {volume.spacing} {seed} {sorted(knobs.items())}"
    uids = [f"2.25.{uuid5(NAMESPACE_URL, f'{name} {kind}').int}" for kind in "abc"]
    ds, planes = _header(volume, uids), volume.shape[0]
    order = np.random.default_rng(seed).permutation(planes)
    for plane, place in enumerate(order):
        ds.SOPInstanceUID = f"2.25.{uuid5(NAMESPACE_URL, f'{name} {plane}').int}"
        ds.InstanceNumber = planes - plane
        position = volume.origin + volume.direction[:, 0] * volume.spacing[0] * plane
        ds.ImagePositionPatient = [round(float(value), 6) for value in position]
        stored = volume.array[plane] + 1024
        if knobs["padding"]:
            ds.add_new("PixelPaddingValue", "SS", -2000)
            stored[_outside_view(stored.shape)] = -2000
        ds.PixelData = stored.astype("<i2").tobytes()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"IM{place:05d}.dcm", enforce_file_format=True)
