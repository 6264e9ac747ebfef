"""A chest CT computed from formulas, with its truth (the ruler of the notebooks).

All shapes are signed distances in mm (negative inside), so that the share of a voxel
which a shape covers follows from the distance of its center to the surface. Points are
(plane, row, column) in mm around the isocenter: to the head, to the back, to the left.
"""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from questlib.volume import AXIAL, Volume

APEX = 126.0  # mm: top of the lungs
LUNG_BOX = ((-150, 130), (-102, 92), (-144, 144))
FAR = (-1e4, 1e4)
LABELS = {"right lung": 1, "left lung": 2, "airway": 3}
PARTS = ("body", "bones", "heart", "liver", "gas", "vessels", "bronchi", "nodules")
PARTS += ("mass", "consolidation")
IN_LUNG = {*PARTS[5:], "emphysema", "fissure"}  # painted within the pleura only
ARMS = {  # shoulder and elbow of the left side, radius in mm
    "up": ((98, 16, 120), (330, -20, 132), 42),
    "down": ((98, 22, 156), (-330, 18, 198), 44),
    "none": None,
}
PLACES = {  # where the search starts, and its way to the pleura
    "inside": ((20, -12, -88), None),
    "pleura": ((45, 5, -70), (0.1, 0.25, -1)),
    "apex": ((60, 10, 60), (1, 0, 0.1)),
    "base": ((-10, 45, 75), (-1, 0.3, 0.1)),
}
TRACHEA = [(170, 8, 0), (46, 20, 2)]
BRONCHI = {
    "right lung": [(46, 20, 2), (22, 24, -32), (12, 26, -46)],
    "left lung": [(46, 20, 2), (20, 26, 34), (13, 29, 52)],
}
HEART = [  # points, radii
    ([(2, -18, -6), (-36, -42, 48)], (36, 31)),
    ([(-2, -8, -28), (-32, -8, -28)], (26, 25)),
    ([(4, 8, 6), (-20, 2, 20)], (27, 30)),
]
GREAT_VESSELS = [
    ([(12, -26, -8), (55, -28, -12)], (16, 16)),  # ascending aorta, arch, descending
    ([(55, -28, -12), (72, -14, -2), (75, 10, 14), (60, 34, 26)], (16, 15, 14, 13)),
    ([(60, 34, 26), (40, 40, 25), (-60, 40, 20), (-200, 34, 8)], (13, 12, 12, 11)),
    ([(74, -16, -6), (90, -8, -16), (165, -2, -28)], (7, 6, 5)),  # its three branches
    ([(78, 0, 8), (165, 0, 24)], (5, 4.5)),
    ([(80, 16, 18), (106, 16, 32), (116, 0, 90)], (6, 5, 5)),
    ([(5, -34, 14), (26, -18, 18), (32, 8, 36)], (14, 13, 10)),  # pulmonary trunk
    ([(24, -14, 14), (24, 4, -18), (18, 10, -40)], (12, 11, 9)),
    ([(0, -12, -28), (60, -14, -24), (92, -22, -26)], (9, 9, 8)),  # superior vena cava
    ([(96, -30, 32), (80, -38, 6), (70, -20, -22)], (6, 6.5, 7)),
    ([(-200, 8, -24), (-30, 0, -24)], (12, 12)),  # inferior vena cava
]


class Phantom(NamedTuple):
    """A computed scan.

    Parameters
    ----------
    volume : Volume
        int16, HU.
    truth : (plane, row, column) ndarray of uint8
        0 background, 1 right lung, 2 left lung, 3 trachea and main bronchi.
    parts : dict of str to (plane, row, column) ndarray of bool
        "body" (all within the skin), "bones", "heart", "liver", "gas" (stomach and
        bowel), and within the lungs "vessels", "bronchi", "nodules", "mass",
        "consolidation". Where two of these meet, a voxel belongs to the later one.
    """

    volume: Volume
    truth: np.ndarray
    parts: dict


class Shape(NamedTuple):
    """What is painted: its box in mm, the distance to its surface, its HU, its part."""

    box: tuple
    distance: object
    hu: object
    part: str


def _open(points):
    plane, row, column = points
    return plane[:, None, None], row[None, :, None], column[None, None, :]


def _crop(points, box):
    """Index ranges of the coordinates within the box, and the coordinates there."""
    cut = tuple(
        slice(*axis.searchsorted(ends)) for axis, ends in zip(points, box, strict=True)
    )
    return cut, [axis[part] for axis, part in zip(points, cut, strict=True)]


def _tube(start, end, radii, hu, part, *, scale=(1, 1, 1)):
    """A tapered tube with round ends; a `scale` below 1 widens it along that axis."""
    start, end, scale = (np.array(value, np.float32) for value in (start, end, scale))
    reach = np.max(radii) / scale + 2
    box = np.stack([np.minimum(start, end) - reach, np.maximum(start, end) + reach], 1)
    along = (end - start) * scale
    length2 = max(float(along @ along), 1e-6)

    def distance(points):
        steps = [
            (axis - s) * k for axis, s, k in zip(points, start, scale, strict=True)
        ]
        z, y, x = _open([axis * a for axis, a in zip(steps, along, strict=True)])
        dot = z + y + x
        share = np.clip(dot / length2, 0, 1)
        z, y, x = _open([axis * axis for axis in steps])
        square = z + y + x - share * (2 * dot - share * length2)
        return np.sqrt(np.maximum(square, 0)) - (
            radii[0] + share * (radii[1] - radii[0])
        )

    return Shape(box, distance, hu, part)


def _ball(center, radii, hu, part):
    """A ball, or an ellipsoid with three semi-axes."""
    small = float(np.min(radii))
    scale = small / np.broadcast_to(radii, 3)
    return _tube(center, center, (small, small), hu, part, scale=scale)


def _path(points, radii, layers, part, *, scale=(1, 1, 1)):
    """Tubes through the points; `layers` are (depth in mm, HU) from the outside in."""
    radii = np.broadcast_to(radii, len(points))
    return [
        _tube(*points[n : n + 2], radii[n : n + 2] - depth, hu, part, scale=scale)
        for depth, hu in layers
        for n in range(len(points) - 1)
    ]


def _smooth_min(a, b, width):
    blend = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - blend * blend * (0.25 / width)


def _add(out, points, shapes, width):
    """Join shapes smoothly to the distances `out`, each within its box."""
    for shape in shapes:
        cut, near = _crop(points, shape.box + np.array([-10, 10]))
        if out[cut].size:
            out[cut] = _smooth_min(out[cut], shape.distance(near), width)
    return out


def _oval(row, column, *, flat, half_width, half_depth):
    """Distance to an ellipse whose front and back run flat for `flat` mm a side."""
    column = np.maximum(np.abs(column) - flat, 0)
    a, b = np.maximum(half_width - flat, 1), np.maximum(half_depth, 1)
    level = np.sqrt((column / a) ** 2 + (row / b) ** 2) + 1e-6
    slope = np.sqrt((column / a**2) ** 2 + (row / b**2) ** 2) + 1e-6
    return level * (level - 1) / slope


def _trunk(points, arms=()):
    """Distance to the skin."""
    z, y, x = _open(points)
    rise = np.sqrt(1 - np.clip((z - 88) / 72, 0, 0.97) ** 2)
    waist = 1 - 0.04 * np.clip((-60 - z) / 90, 0, 1)
    half_width, half_depth = 162 * rise * waist, 60 + 59 * rise
    out = _oval(y - 8, x, flat=60 * rise, half_width=half_width, half_depth=half_depth)
    out = out + 4.5 * np.exp(-((x / 20) ** 2))  # furrow of the back and the breastbone
    neck = np.sqrt((y - 14) ** 2 + x * x) - 60 + np.maximum(112 - z, 0)
    return _add(_smooth_min(out, neck, 25), points, arms, 18)


def _muscle(points, arms):
    """Under the fat, which is thicker here and thinner there."""
    z, y, x = _open(points)
    wave = np.sin(x / 27 + z / 60) * np.cos(y / 23) + 0.6 * np.cos(x / 11 - z / 40)
    return _trunk(points, arms) + 13 + 2.2 * wave


def _chest_size(z):
    """Half width and half depth in mm of the chest's inside at the height z."""
    taper = np.clip((z + 25) / (APEX + 25), 0, 1)
    size = np.sqrt(np.maximum(1 - taper**2.6, 0))
    size = size * (1 - 0.06 * np.clip((-60 - z) / 60, 0, 1))
    return 40 + 90 * size, 88 * size


def _cavity(points):
    """Distance to the inner side of the ribs; it closes above each lung's apex."""
    z, y, x = _open(points)
    inner = np.maximum(1 - np.abs(x) / 54, 0)
    half_width, half_depth = _chest_size(z + 16 * inner)
    return _oval(y + 5, x, flat=40, half_width=half_width, half_depth=half_depth)


def _below_dome(points):
    """Distance to the diaphragm's upper face, negative in the lungs."""
    z, y, x = _open(points)
    left = np.clip(x / 60 + 0.5, 0, 1)
    side = (np.abs(x) - 62) / 64
    fall = np.where(side < 0, 0.06, 1.0) * side**2
    depth = (y + 8) / 90
    fall = 72 * (fall + np.where(depth > 0, 1.0, 0.6) * depth**2)
    height = -45 - 10 * left * left * (3 - 2 * left) - fall
    return (height - z) / np.sqrt(1 + fall / 33)


def _table():
    def distance(points, inset):
        _, y, x = _open(points)
        return np.abs(y + x * x / 900 - 143) - 13 + inset + 0 * points[0][:, None, None]

    layers = ((0, -80), (2.5, -900), (8, -1000))  # shell, foam, a slot of air
    return [
        Shape((FAR, FAR, (-215, 215)), lambda p, i=inset: distance(p, i), hu, "table")
        for inset, hu in layers
    ]


def _rib(number, side):
    """An oblique hoop from the spine down and forward, with cartilage in front."""
    top = 114 - 21.5 * number
    last = -60 if number < 7 else (-35 if number < 10 else 5)
    angles = np.radians(np.linspace(88, last, 15))
    height = top - (22 + 13 * min(number, 3)) * np.linspace(0, 1, 15) ** 1.1
    half_width, half_depth = _chest_size(height + 4)
    column = 40 + (half_width - 34) * np.cos(angles)
    arc = np.stack([height, -5 + (half_depth + 6) * np.sin(angles), side * column], 1)
    arc = np.concatenate([[(top + 2, 68, side * 19)], arc])
    flat = (0.7, 1, 1)
    shapes = _path(arc, 5.2, ((0, 850), (2, 200)), "bones", scale=flat)
    if number < 7:
        front = [arc[-1], (max(arc[-1][0] + 6, -40), -99, side * 14)]
        shapes += _path(front, 5, ((0, 110),), "body", scale=flat)
    return shapes


def _bones(arms):
    shell, shapes = ((0, 850), (2.2, 220)), []
    for side in (-1, 1):
        if arms:
            bone = [np.multiply(point, (1, 1, side)) for point in arms[:2]]
            shapes += _path(bone, (14, 11), ((0, 1000), (3.5, 60)), "bones")
        collar = [(84, -93, side * 14), (98, -80, side * 55), (108, -20, side * 112)]
        shapes += _path(collar, 6, shell, "bones")
        box = ((0, 108), (15, 125), (-132, -66) if side < 0 else (66, 132))
        for depth, hu in ((2.6, 750), (0.8, 250)):
            blade = lambda p, d=depth: np.abs(_trunk(p) + 24) - d  # noqa: E731
            shapes.append(Shape(box, blade, hu, "bones"))
        for number in range(12):
            shapes += _rib(number, side)
    breastbone = [(66, -98, 0), (-45, -98, 0)]
    return shapes + _path(
        breastbone, 12, ((0, 650), (2.5, 200)), "bones", scale=(1, 2.4, 1)
    )


def _spine():
    shapes = _path([(-400, 58, 0), (400, 58, 0)], 15, ((0, 90),), "disc")
    for z in np.arange(-166, 190, 24.0):
        body, arch = [(z - 6, 58, 0), (z + 6, 58, 0)], [(z - 5, 82, 0), (z + 6, 82, 0)]
        process = [(z, 94, 0), (z - 18, 113, 0)]
        shapes += _path(body, 17.5, ((0, 650), (2, 210)), "bones", scale=(3, 1, 1))
        shapes += _path(arch, 14, ((0, 600),), "bones", scale=(2, 1, 1))
        shapes += _path(process, (4.5, 3.5), ((0, 500),), "bones")
        for side in (-1, 1):
            wing = [(z, 84, side * 9), (z + 3, 90, side * 33)]
            shapes += _path(wing, (5.5, 4.5), ((0, 600), (2, 250)), "bones")
    canal = [(-400, 82, 0), (400, 82, 0)]
    return shapes + _path(canal, 10, ((0, -20), (1.5, 12), (4.5, 35)), "canal")


def _abdomen(bowel_gas):
    inside = ((-1e4, 40), (-100, 90), (-140, 140))

    def below(points, depth):
        return np.maximum(_cavity(points), -_below_dome(points)) + depth

    def liver(points):
        z, y, x = _open(points)
        edge = (x - 32 + 0.7 * (y + 20) + 0.35 * (z + 60)) / 1.3
        return -_smooth_min(-below(points, 4), -edge, 25)

    def gas(points):  # lies on the fluid: supine, it rises to the front
        bubble = _ball((-98, -30, 62), (26, 27, 33), 0, "gas").distance(points)
        return np.maximum(bubble, points[1][None, :, None] + 28)

    shapes = [
        Shape(inside, lambda p: below(p, 0), 45, "diaphragm"),
        Shape(inside, lambda p: below(p, 3.5), -100, "fat"),
        Shape(inside, liver, 58, "liver"),
        _ball((-112, 46, 80), (40, 36, 25), 52, "spleen"),
        _ball((-102, -20, 62), (34, 40, 38), 45, "stomach"),
        _ball((-102, -20, 62), (31, 37, 35), 20, "stomach"),
    ]
    if bowel_gas:
        shapes.append(Shape(inside, gas, -990, "gas"))
        for center, radii in (
            ((-122, 5, 104), (17, 14, 12)),
            ((-142, -62, 0), (14, 15, 40)),
            ((-140, -58, -62), (12, 14, 22)),
        ):
            shapes.append(_ball(center, np.add(radii, 2.5), 30, "bowel"))
            shapes.append(_ball(center, radii, -985, "gas"))
    return shapes


def _mediastinum():
    """Heart, great vessels, gullet, and the walls of the large airways."""
    blood, shapes = ((0, 42),), []
    for points, radii in HEART:
        shapes += _path(points, radii, blood, "heart")
    for points, radii in GREAT_VESSELS:
        shapes += _path(points, radii, blood, "great vessels")
    gullet = [(170, 26, 4), (20, 42, 6), (-70, 22, 16)]
    return shapes + _path(gullet, 7.5, ((0, 38),), "gullet")


def _airway(extra=0.0, layers=((0, -1000),), part="airway"):
    shapes = _path(TRACHEA, 9 + extra, layers, part)
    for name, radius in (("right lung", 7.5), ("left lung", 6.5)):
        shapes += _path(BRONCHI[name], radius + extra, layers, part)
    return shapes


def _lungs(touching):
    """Both lungs: inside the ribs, above the diaphragm, around the mediastinum."""
    around = _mediastinum() + _airway(2.5)
    fat = {"hu": 0, "part": "fat"}
    around += [
        _tube((-400, 62, 0), (400, 62, 0), (22, 22), **fat),
        _tube((-80, 30, 4), (120, 20, 0), (17, 17), **fat),
        _tube((84, -25, 0), (150, -5, 0), (25, 27), scale=(1, 0.42, 1), **fat),
        _tube((15, -88, 2), (75, -88, 0), (9, 14), **fat),
        _tube((64, 0, -4), (52, 10, 8), (17, 15), **fat),
        _tube((44, -16, 2), (44, 0, 2), (13, 13), **fat),
        _tube((-48, -10, -6), (-50, 8, 6), (17, 17), **fat),
        _tube((-46, -26, -10), (-50, -40, 25), (15, 15), **fat),
    ]
    around = [s._replace(distance=lambda p, s=s: s.distance(p) - 3) for s in around]
    septum = 1.0 if touching else 3.0

    def lung(points, side):
        z, _, x = _open(points)
        out = np.maximum(_cavity(points) + 1.5, _below_dome(points))
        middle = _add(np.full_like(out, 20), points, around, 6)
        out = -_smooth_min(-out, middle, 5)
        return np.maximum(out, septum / 2 - side * (x - 5 * np.sin(z / 35)))

    return {
        name: Shape(
            (*LUNG_BOX[:2], sorted((-8 * side, 144 * side))),
            lambda p, s=side: lung(p, s),
            lambda row: -868 + 0.4 * row,  # gravity: denser towards the back
            name,
        )
        for name, side in (("right lung", -1), ("left lung", 1))
    }


def _grow_tree(inside, root, rng, count):
    """Grow a branching tree from the root to `count` points of the lung.

    Each point joins the branch that keeps both the new piece and the way to the root
    short. A branch that feeds n ends has the radius 0.8 n^(1/2.6) mm (Murray's law).
    """
    ends = inside[rng.choice(len(inside), count)] + rng.uniform(-2, 2, (count, 3))
    ends = ends[np.argsort(np.linalg.norm(ends - root, axis=1))]
    nodes, way, parent = np.array([root], float), np.zeros(1), [0]
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
    feeds = np.bincount(parent, minlength=len(nodes)) == 0
    feeds = feeds.astype(float)
    for node in range(len(nodes) - 1, 0, -1):
        feeds[parent[node]] += feeds[node]
    return nodes, parent, 0.8 * feeds ** (1 / 2.6)


def _vessels(inside, root, rng):
    """Arteries with the bronchi behind them, and veins to the left atrium."""
    vessels, walls, lumens = [], [], []
    vein = (6, 10, 30 * np.sign(root[2]))
    for start, count in ((root - np.array([0, 9, 0]), 420), (vein, 220)):
        nodes, parent, radii = _grow_tree(inside, np.array(start), rng, count)
        for node in range(1, len(nodes)):
            ends = nodes[[parent[node], node]]
            wide = np.minimum(radii[[parent[node], node]], 1.2 * radii[node])
            vessels.append(_tube(*ends, wide, 40, "vessels"))
            if count > 400 and radii[node] > 2:
                beside = ends + np.outer(1.8 * wide + 0.5, (0, 1, 0))
                walls.append(_tube(*beside, 0.8 * wide + 0.7, 0, "bronchi"))
                lumens.append(_tube(*beside, 0.8 * wide - 0.2, -960, "bronchi"))
    return vessels, walls, lumens


def _fissure(height, slope, box):
    def distance(points):
        z, y, x = _open(points)
        bend = 4 * np.sin(x / 25) * np.sin(y / 40)
        return np.abs(z - height + slope * y + bend) / np.hypot(1, slope) - 0.1

    return Shape(box, distance, -600, "fissure")


def _lung_contents(lungs, rng, *, nodules, mass, consolidation, emphysema):
    """All that lies within the pleura, in the order of painting."""
    shapes, late = [], []
    for name, lung in lungs.items():
        axes = [np.arange(*ends, 4, dtype=np.float32) for ends in LUNG_BOX]
        depth = lung.distance(axes)
        inside = np.argwhere(depth < -4) * 4.0 + [axis[0] for axis in axes]
        shapes.append(_fissure(-2, -0.8, LUNG_BOX[:2] + lung.box[2:]))
        if name == "right lung":
            shapes.append(_fissure(12, 0.06, ((-30, 40), (-100, 5), (-140, -30))))
        vessels, walls, lumens = _vessels(inside, np.array(BRONCHI[name][-1]), rng)
        upper = inside[inside[:, 0] > 10]
        count = int(emphysema * 64 * np.sum(depth < 0) / 400)  # one hole: 400 mm3
        for center in upper[rng.integers(len(upper), size=count)]:
            shapes.append(_ball(center, rng.uniform(3, 5.5), -975, "emphysema"))
        shapes, late = shapes + vessels + walls, late + lumens
    for share in np.linspace(0, 1, 40) if consolidation else ():  # from haze to dense
        shift = rng.normal(0, consolidation * (0.24 - 0.1 * share), 3)
        center, hu = np.add(shift, (-50, 45, -80)), -450 + 490 * share
        shapes.append(_ball(center, consolidation / 5, hu, "consolidation"))
    if mass:
        late.append(_ball((52, 5, 51), mass / 2, 38, "mass"))
    for size, place in nodules:
        center = _nodule_center(lungs, size, place)
        late.append(_ball(center, size / 2, 35, "nodules"))
    return shapes + late


def _nodule_center(lungs, size, place):
    """Where a nodule lies: given in mm, or found on the way to the pleura."""
    if not isinstance(place, str):
        return np.array(place, float)
    start, way = PLACES[place]
    if way is None:
        return np.array(start, float)
    lung = lungs["right lung" if start[2] < 0 else "left lung"]
    way, near, far = way / np.linalg.norm(way), 0.0, 150.0
    for _ in range(20):
        point = np.float32(start + (near + far) / 2 * way)
        deep = lung.distance(point[:, None]).item() < -0.425 * size
        near, far = ((near + far) / 2, far) if deep else (near, (near + far) / 2)
    return start + near * way


def _anatomy(rng, *, arms, touching, bowel_gas, **contents):
    """All shapes in the order of painting: what comes later lies over what was."""
    left = ARMS[arms]
    limbs = (
        []
        if left is None
        else [
            _tube(
                *[np.multiply(end, (1, 1, side)) for end in left[:2]],
                left[2:] * 2,
                0,
                "",
            )
            for side in (-1, 1)
        ]
    )
    lungs = _lungs(touching)
    return [
        *_table(),
        Shape((FAR,) * 3, lambda p: _trunk(p, limbs), 15, "body"),
        Shape((FAR,) * 3, lambda p: _trunk(p, limbs) + 1.8, -105, "body"),
        Shape((FAR,) * 3, lambda p: _muscle(p, limbs), 52, "body"),
        *_bones(left),
        Shape(((-1e4, APEX), *LUNG_BOX[1:]), _cavity, -95, "fat"),
        *_abdomen(bowel_gas),
        *_spine(),
        *_mediastinum(),
        *_airway(1.5, ((0, 30),), "wall"),
        *lungs.values(),
        *_lung_contents(lungs, rng, **contents),
        *_airway(),
    ]


def _noise(shape, rng):
    """One plane of CT-like grain, standard deviation about 1."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fine, coarse = (ndimage.gaussian_filter(white, s, truncate=3) for s in (0.75, 2.2))
    return 3.2 * (fine - 0.75 * coarse)


def _sample(shapes, points, times, ramp):
    """Paint one slab: HU, truth, body, and the number of the part painted last."""
    size = len(points[0]) // times, len(points[1]), len(points[2])
    hu, lung = np.full(size, -1000, np.float32), np.zeros(size, np.float32)
    truth = np.zeros(size, np.uint8)
    body, tissue = np.zeros(size, bool), np.zeros(size, np.uint8)
    number = {name: n for n, name in enumerate(PARTS)}
    for shape in shapes:
        cut, near = _crop(points, shape.box)
        if not all(len(axis) for axis in near):
            continue
        low, high = cut[0].start // times, -(-cut[0].stop // times)
        near[0] = points[0][low * times : high * times]
        cut = (slice(low, high), *cut[1:])
        cover = np.clip(0.5 - shape.distance(near) / ramp, 0, 1)
        if times > 1:
            cover = cover.reshape(high - low, times, *cover.shape[1:]).mean(1)
        if shape.part in IN_LUNG:
            cover = np.minimum(cover, lung[cut])
        if shape.part in LABELS:
            truth[cut][cover >= 0.5] = LABELS[shape.part]
            lung[cut] += cover
        body[cut] |= (cover >= 0.5) & (shape.part == "body")
        tissue[cut][cover >= 0.5] = number.get(shape.part, 0)
        value = shape.hu(near[1])[:, None] if callable(shape.hu) else shape.hu
        hu[cut] += cover * (value - hu[cut])
    return hu, truth, body, tissue


def make_phantom(
    folder: str | Path | None = None,
    *,
    shape: tuple = (120, 256, 256),
    spacing: tuple = (2.5, 1.4, 1.4),
    seed: int = 0,
    offset: tuple = (0.0, 0.0),
    field_of_view: float | None = None,
    noise: float = 15.0,
    nodules: tuple = ((12, "inside"), (16, "pleura")),
    mass: float = 40.0,
    consolidation: float = 0.0,
    emphysema: float = 0.02,
    touching: bool = False,
    bowel_gas: bool = True,
    arms: str = "up",
    padding: bool = False,
) -> Phantom:
    """Compute a chest CT whose truth is known to the voxel.

    Parameters
    ----------
    folder : path, optional
        Where to write the scan as a DICOM series, one file a plane.
    shape, spacing : 3 int, 3 float
        Planes, rows, columns and their distances in mm; the grid is centered on the
        chest. A grid that is smaller than 300 x 358 x 358 mm shows a part of it.
    seed : int
        Of the vessels, the holes and the noise: same seed, same scan.
    offset : 2 floats
        How far in mm the patient lies towards the back and the left.
    field_of_view : float, optional
        Width of a plane in mm; wins over the last two spacings.
    noise : float
        Standard deviation in HU.
    nodules : sequence of (diameter in mm, place)
        A place is "inside", "pleura", "apex", "base" (the last three touch the
        pleura), or 3 floats in mm (plane, row, column) from the center of the chest.
    mass, consolidation : float
        Diameter in mm of a ball beside the left hilum, and of a lumpy density at the
        right base; 0 for none.
    emphysema : float
        Share of the lungs that is replaced by holes, 0 to 0.3.
    touching : bool
        Only 1 mm between the lungs at the anterior junction, else 3 mm.
    bowel_gas : bool
        Gas in stomach and bowel.
    arms : {"up", "down", "none"}
    padding : bool
        Pixels outside the round field of view are padding: -1024 HU in the volume,
        stored as *Pixel Padding Value* (0028,0120).

    Returns
    -------
    Phantom
        `volume` (int16 HU), `truth` (uint8) and `parts` (bool masks), all of `shape`.

    Raises
    ------
    ValueError
        If `arms` or a nodule's place is not one of the words above.

    Notes
    -----
    Fat, muscle, bones, organs, lungs and vessels are painted one over the other, each
    with the share of the voxel that it covers. Planes thicker than 3 mm are the mean of
    thinner ones. A voxel belongs to what covers at least half of it. The lungs
    hold all that lies within the pleura, the mass too, but not the main bronchi.

    References
    ----------
    Smooth unions of signed distances: I. Quilez, "Distance functions".
    Tree radii: C. D. Murray, Proc Natl Acad Sci USA 12 (1926) 207.
    DICOM PS3.3, A.3 (CT Image IOD) for the written series.

    Examples
    --------
    >>> phantom = make_phantom(shape=(12, 64, 64), spacing=(25, 5.6, 5.6))
    >>> phantom.volume.shape, phantom.truth.dtype
    ((12, 64, 64), dtype('uint8'))
    >>> ml = np.bincount(phantom.truth.ravel()) * 25 * 5.6 * 5.6 / 1000
    >>> bool(4000 < ml[1] + ml[2] < 6000)
    True

    Built in notebook 04.
    """
    words = [place for _, place in nodules if isinstance(place, str)]
    for word, known in ((arms, ARMS), *((word, PLACES) for word in words)):
        if word not in known:
            raise ValueError(f"{word!r} is not one of {', '.join(known)}")
    if field_of_view:
        spacing = (spacing[0], field_of_view / shape[1], field_of_view / shape[2])
    rng = np.random.default_rng(seed)
    inside = {"nodules": nodules, "mass": mass, "consolidation": consolidation}
    inside["emphysema"] = emphysema
    shapes = _anatomy(rng, arms=arms, touching=touching, bowel_gas=bowel_gas, **inside)
    times = max(1, round(spacing[0] / 2))
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step - shift).astype(np.float32)
        for n, step, shift in zip(
            (shape[0] * times, *shape[1:]),
            (spacing[0] / times, *spacing[1:]),
            (0, *offset),
            strict=True,
        )
    ]
    array, truth = np.empty(shape, np.int16), np.empty(shape, np.uint8)
    body, tissue = np.empty(shape, bool), np.empty(shape, np.uint8)
    slab = max(1, 2**20 // (shape[1] * shape[2] * times))
    for first in range(0, shape[0], slab):
        planes = slice(first, min(first + slab, shape[0]))
        points = (axes[0][planes.start * times : planes.stop * times], *axes[1:])
        hu, truth[planes], body[planes], tissue[planes] = _sample(
            shapes, points, times, np.mean(spacing[1:])
        )
        hu += noise * np.stack([_noise(shape[1:], rng) for _ in hu])
        array[planes] = np.clip(np.rint(hu), -1024, 3071)
    if padding:
        array[:, _outside_view(shape[1:])] = -1024
    origin = [-(n - 1) / 2 * step for n, step in zip(shape, spacing, strict=True)]
    volume = Volume(array, spacing, origin[::-1], AXIAL)
    if folder is not None:
        _write_series(Path(folder), volume, padding)
    parts = {name: tissue == n for n, name in enumerate(PARTS)}
    return Phantom(volume, truth, {**parts, "body": body})


def _outside_view(shape):
    """True where a pixel lies outside the scanner's round field of view."""
    row, column = (np.linspace(-1, 1, n) for n in shape)
    return row[:, None] ** 2 + column**2 > 1


def _header(volume):
    """What all planes of the series share (PS3.3, A.3 CT Image IOD)."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.PatientName, ds.PatientID = "Phantom^Quest", "QUEST-PHANTOM"
    ds.PatientBirthDate = ds.PatientSex = ds.ReferringPhysicianName = ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20170101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ds.PositionReferenceIndicator = ""
    ds.Manufacturer, ds.ManufacturerModelName = "DICOM Quest", "make_phantom"
    ds.StudyDescription = ds.SeriesDescription = "Computed chest"
    ds.DerivationDescription = "Computed from formulas; no patient was scanned"
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.KVP = "1", 1, 1, 120
    ds.PatientPosition, ds.BodyPartExamined = "HFS", "CHEST"
    ds.SliceThickness = f"{volume.spacing[0]:.10g}"
    ds.PixelSpacing = [f"{value:.10g}" for value in volume.spacing[1:]]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = volume.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.WindowCenter, ds.WindowWidth = [-600, 40], [1500, 400]
    return ds


def _write_series(folder, volume, padding):
    """Write CT Image Storage; the file names are in no useful order.

    The UIDs follow from the pixels: the same scan has the same UIDs everywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = sha256(volume.array.tobytes() + volume.affine.tobytes()).hexdigest()
    uid = [f"2.25.{uuid5(NAMESPACE_OID, f'{name} {n}').int}" for n in range(3)]
    ds, planes = _header(volume), volume.shape[0]
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for plane, place in enumerate(np.random.default_rng(0).permutation(planes)):
        ds.SOPInstanceUID = f"2.25.{uuid5(NAMESPACE_OID, f'{name} plane {plane}').int}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.InstanceNumber = planes - plane  # counted from the head, as scanners do
        position = volume.affine @ (plane, 0, 0, 1)
        ds.ImagePositionPatient = [f"{value:.10g}" for value in position[:3]]
        stored = volume.array[plane] + 1024
        if padding:
            ds.add_new("PixelPaddingValue", "SS", -2000)
            stored[_outside_view(stored.shape)] = -2000
        ds.PixelData = stored.astype("<i2").tobytes()
        ds.save_as(folder / f"IM{place:05d}.dcm", enforce_file_format=True)
