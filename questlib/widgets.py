"""Widgets that move a scan in the notebook (notebooks 03, 06 and 08).

Each is one small JavaScript module in ``static/``; nothing comes from a network.
"""

import base64
import json
import zlib
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import anywidget
import numpy as np
import traitlets as t

from questlib.display import LABELS, OKABE_ITO, VIEWS, WINDOWS, cut_plane
from questlib.volume import Volume

STATIC = Path(__file__).parent / "static"
BUDGET = 9_500_000  # bytes of voxels that a browser is sent

# The HU for which one byte of display data stands: fine where tissues lie close.
LEVELS = np.r_[-1000:-200:16, -200:300:5, 300:1600:20]
HIGHEST = 1600
CODES = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, np.r_[LEVELS[0] : HIGHEST])
CODES = CODES.astype(np.uint8)
NOTE = (
    "Values are for display, in steps of 5 HU in soft tissue, 16 in air and lung, "
    "20 in bone{blocks}. Not for diagnosis."
)


class PlaneBrowser(anywidget.AnyWidget):
    """A scan in the browser; `explore_planes` and `explore_window` make it.

    `view`, `index`, `center`, `width` and `opacity` can be read, set and linked.
    """

    _esm = STATIC / "plane_browser.js"
    _css = STATIC / "widgets.css"
    voxels = t.Bytes().tag(sync=True)
    labels = t.Bytes().tag(sync=True)
    geometry = t.Dict().tag(sync=True)
    levels = t.List(LEVELS.tolist()).tag(sync=True)
    counts = t.List().tag(sync=True)
    windows = t.Dict(WINDOWS).tag(sync=True)
    palette = t.Dict().tag(sync=True)
    note = t.Unicode().tag(sync=True)
    view = t.Enum(list(VIEWS)).tag(sync=True)
    index = t.Int().tag(sync=True)
    center = t.Float(WINDOWS["lung"][0]).tag(sync=True)
    width = t.Float(WINDOWS["lung"][1]).tag(sync=True)
    opacity = t.Float(0.3, min=0, max=1).tag(sync=True)

    def save_html(self, path) -> None:
        """Save a page that shows the scan offline, without a kernel.

        Parameters
        ----------
        path : str or Path
            The file to write. It holds the voxels, the labels and the script, and asks
            no network for anything; jupyter's own export asks a CDN for its widgets.
        """
        state = {
            name: {"base64": base64.b64encode(value).decode()}
            if isinstance(value, bytes)
            else value
            for name, value in self.get_state().items()
            if not name.startswith("_")
        }
        page = (STATIC / "page.html").read_text("utf-8")
        for mark, text in {
            "/*css*/": str(self._css),
            "/*script*/": str(self._esm),
            "/*state*/": json.dumps(state).replace("<", "\\u003c"),
        }.items():
            page = page.replace(mark, text)
        Path(path).write_text(page, "utf-8")


def explore_planes(volume: Volume, labels: np.ndarray | None = None) -> PlaneBrowser:
    """Browse the axial, coronal and sagittal planes of a scan in the browser.

    Parameters
    ----------
    volume : Volume
        In HU; any orientation and spacing.
    labels : (plane, row, column) ndarray of bool or int, optional
        0 is background, at most 255; drawn over the scan.

    Returns
    -------
    PlaneBrowser
        A widget: show it as the last line of a cell. `save_html` keeps it for later.

    Raises
    ------
    ValueError
        If `volume` is no Volume or holds values that are not finite, or if `labels`
        have another shape or are not whole numbers from 0 to 255.

    Notes
    -----
    The browser gets the scan once, a byte a voxel and less than 10 MB: means of 2 x 2
    (or 4 x 4) voxels where the scan is larger. What it shows is for display: take
    measurements from the volume.

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> volume = Volume(np.zeros((4, 30, 20)), (5, 2, 2), (0, 0, 100), AXIAL)
    >>> browser = explore_planes(volume)
    >>> browser.view, browser.index, len(browser.voxels) < volume.array.nbytes
    ('axial', 2, True)

    Built in notebook 06.
    """
    _check(volume)
    for factor in (1, 2, 4, 8):
        tenth = zlib.compress(_encode(volume.array[::10], factor).tobytes())
        if len(tenth) * len(volume.array) < BUDGET * len(volume.array[::10]):
            break
    codes = _encode(volume.array, factor)
    order, steps = _canonical(volume.direction)

    def pack(array):
        return zlib.compress(array.transpose(order)[steps].tobytes())

    packed, palette = b"", {}
    if labels is not None:
        labels = _check_labels(labels, volume)
        packed = pack(_blocks(labels.astype(np.uint8), factor)[:, :, 0, :, 0])
        palette = _palette(labels)
    return PlaneBrowser(
        voxels=pack(codes),
        labels=packed,
        palette=palette,
        geometry=_describe(volume, order, steps, codes.shape),
        note=NOTE.format(
            blocks=f", means of {factor} x {factor} voxels" * (factor > 1)
        ),
        view=list(VIEWS)[order.index(0)],
        index=volume.shape[0] // 2,
    )


def explore_window(volume: Volume) -> PlaneBrowser:
    """Move the window's center and width over the histogram of a scan.

    Parameters
    ----------
    volume : Volume
        In HU. The middle plane is shown, the histogram counts every voxel.

    Returns
    -------
    PlaneBrowser

    Raises
    ------
    ValueError
        As `explore_planes`.

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> volume = Volume(np.zeros((4, 30, 20)), (5, 2, 2), (0, 0, 100), AXIAL)
    >>> explore_window(volume).counts[55]  # 0 to 19 HU
    2400

    Built in notebook 03.
    """
    _check(volume)
    middle = volume.shape[0] // 2
    origin = tuple((volume.affine @ (middle, 0, 0, 1))[:3])
    plane = replace(volume, array=volume.array[middle : middle + 1], origin=origin)
    edges = np.r_[-1100:1601:20] - 0.5
    counts = sum(np.histogram(plane, edges)[0] for plane in volume.array)
    browser = explore_planes(plane)
    browser.counts = counts.tolist()
    return browser


def _check(volume):
    if not isinstance(volume, Volume):
        raise ValueError(
            "give a Volume (load_series makes one): sizes in mm are needed"
        )
    for number, plane in enumerate(volume.array):
        bad = plane.size - np.isfinite(plane).sum()
        if bad:
            raise ValueError(
                f"plane {number} has {bad} values that are NaN or infinite: "
                "give them a HU first, for instance -1000 (air)"
            )


def _check_labels(labels, volume):
    labels = np.asarray(labels)
    if labels.shape != volume.shape:
        raise ValueError(
            f"labels are {labels.shape}, the volume is {volume.shape}: (plane, row, "
            "column) must agree; were the labels made on another grid?"
        )
    if labels.dtype.kind not in "biu" or labels.min() < 0 or labels.max() > 255:
        raise ValueError(
            f"labels must be bool or whole numbers from 0 to 255, not {labels.dtype} "
            f"from {labels.min():g} to {labels.max():g}"
        )
    return labels


def _palette(labels):
    """Name and colour of each label, as `show_plane` has them."""
    if labels.dtype == bool:
        return {"1": ("mask", OKABE_ITO["vermillion"])}
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=2))
    named = {value: LABELS.get(value, (f"label {value}", "purple")) for value in values}
    return {
        str(value): (name, OKABE_ITO[color]) for value, (name, color) in named.items()
    }


def _whole(plane):
    """HU as whole numbers, within what the display data can say."""
    return np.rint(np.clip(plane, LEVELS[0], HIGHEST - 1)).astype(np.intp)


def _blocks(array, factor):
    """(plane, row, column) seen as (plane, row, factor, column, factor)."""
    planes, rows, columns = array.shape
    fill = ((0, 0), (0, -rows % factor), (0, -columns % factor))
    array = np.pad(array, fill, mode="edge")
    return array.reshape(planes, array.shape[1] // factor, factor, -1, factor)


def _encode(array, factor):
    """One byte a voxel (an index into LEVELS) of in-plane means."""
    planes = (array[k : k + 1] for k in range(len(array)))
    means = (_blocks(plane, factor).mean(axis=(2, 4)) for plane in planes)
    return np.concatenate([CODES[_whole(plane) - LEVELS[0]] for plane in means])


def _canonical(direction):
    """Array axes nearest to head, back and left, and the step that leads there."""
    order = max(
        permutations(range(3)),
        key=lambda order: sum(abs(direction[2 - k, order[k]]) for k in range(3)),
    )
    signs = [direction[2 - k, order[k]] < 0 for k in range(3)]
    return order, tuple(slice(None, None, -1 if sign else 1) for sign in signs)


def _describe(volume, order, steps, sent):
    """What the browser must know to place the voxels that it is sent."""
    factors = np.ceil(np.divide(volume.shape, sent))
    matrix = volume.affine @ np.diag([*factors, 1])
    matrix[:3, 3] += volume.affine[:3, :3] @ ((factors - 1) / 2)
    affine = np.eye(4)
    for k, (axis, step) in enumerate(zip(order, steps, strict=True)):
        affine[:3, k] = matrix[:3, axis] * step.step
        matrix[:3, 3] += matrix[:3, axis] * (sent[axis] - 1) * (step.step < 0)
    affine[:3, 3] = matrix[:3, 3]
    return {
        "shape": [sent[axis] for axis in order],
        "spacing": [float(volume.spacing[axis] * factors[axis]) for axis in order],
        "affine": affine.tolist(),
        "letters": {view: cut_plane(volume, view=view).letters for view in VIEWS},
        "axes": [
            {
                "name": ("plane", "row", "column")[axis],
                "size": volume.shape[axis],
                "factor": int(factors[axis]),
                "reversed": step.step < 0,
            }
            for axis, step in zip(order, steps, strict=True)
        ],
    }
