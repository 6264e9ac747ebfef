"""Widgets that move a scan in the notebook (notebooks 03, 06 and 08).

Each is one small JavaScript module in ``static/``; nothing comes from a network.
"""

import base64
import json
import time
import zlib
from dataclasses import replace
from pathlib import Path

import anywidget
import numpy as np
import traitlets as t

from questlib.display import LABELS, OKABE_ITO, VIEWS, WINDOWS, apply_window, cut_plane
from questlib.lungs import orient
from questlib.plane import RULES_2017, RULES_MENDED, mask_plane, mask_plane_2017
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


METHODS = {"2017": (mask_plane_2017, RULES_2017), "mended": (mask_plane, RULES_MENDED)}


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
    view = t.Enum(list(VIEWS), "axial").tag(sync=True)
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
    corner = volume.affine @ (0, (factor - 1) / 2, (factor - 1) / 2, 1)
    spacing = np.multiply(volume.spacing, (1, factor, factor))
    codes = _encode(volume.array, factor)
    sent = Volume(codes, spacing, corner[:3], volume.direction)
    voxels, _, order, flip = orient(sent)
    overlay = {}
    if labels is not None:
        labels = _check_labels(labels, volume)
        fewer = _blocks(labels.astype(np.uint8), factor)[:, :, 0, :, 0]
        packed = zlib.compress(orient(replace(sent, array=fewer))[0].tobytes())
        overlay = {"labels": packed, "palette": _palette(labels)}
    return PlaneBrowser(
        **overlay,
        voxels=zlib.compress(voxels.tobytes()),
        geometry=_describe(volume, sent, order, flip),
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
    origin = (volume.affine @ (middle, 0, 0, 1))[:3]
    plane = replace(volume, array=volume.array[middle : middle + 1], origin=origin)
    edges = np.r_[-1100:1601:20] - 0.5
    browser = explore_planes(plane)
    browser.counts = sum(np.histogram(one, edges)[0] for one in volume.array).tolist()
    return browser


class MaskTuner(anywidget.AnyWidget):
    """The one-plane mask under sliders; `explore_mask` makes it.

    `index` (the plane), `method` ("2017" or "mended") and `rules` (what differs from
    the preset) can be read and set; `answer` has the verdicts, the Dice and the code.
    """

    _esm = STATIC / "mask_tuner.js"
    _css = STATIC / "widgets.css"
    index = t.Int().tag(sync=True)
    method = t.Enum(list(METHODS), "2017").tag(sync=True)
    rules = t.Dict().tag(sync=True)
    presets = t.Dict({name: rules for name, (_, rules) in METHODS.items()}).tag(
        sync=True
    )
    grid = t.Dict().tag(sync=True)
    original = t.Bytes().tag(sync=True)
    stages = t.Bytes().tag(sync=True)
    answer = t.Dict().tag(sync=True)

    def __init__(self, volume, truth, index):
        self.volume, self.truth, self._done = volume, truth, None
        planes, *shape = volume.shape
        super().__init__(
            index=index,
            grid={"planes": planes, "shape": shape, "spacing": volume.spacing[1:]},
        )

    @t.observe("index", "method", "rules")
    def _answer(self, change=None):
        """Mask the plane anew; the browser asks again only when this has arrived."""
        mask, preset = METHODS[self.method]
        rules = {name: self.rules[name] for name in preset if name in self.rules}
        if self._done == (self.index, self.method, rules):
            return
        start = time.perf_counter()
        hu, spacing = self.volume.array[self.index], self.volume.spacing[1:]
        found = mask(hu, spacing=spacing, rules=rules)
        bits = found.stages["threshold"] + 2 * found.stages["cleaned"] + 4 * found.mask
        answer = {
            "regions": [_plain(region) for region in found.regions],
            "code": _code(mask.__name__, self.index, rules),
        }
        if self.truth is not None:
            truth = self.truth[self.index]
            bits += 8 * truth
            answer["dice"] = _dice(found.mask, truth)
        pixels = np.stack([bits, found.stages["regions"] % 251]).astype(np.uint8)
        with self.hold_sync():
            self.stages = zlib.compress(pixels.tobytes(), 1)
            if self._done is None or self._done[0] != self.index:
                self.original = zlib.compress(
                    apply_window(hu, *WINDOWS["lung"]).tobytes()
                )
            answer["seconds"] = time.perf_counter() - start
            self.answer = answer
        self._done = self.index, self.method, rules


def explore_mask(
    volume: Volume, *, truth: np.ndarray | None = None, index: int | None = None
) -> MaskTuner:
    """Move the rules of the one-plane mask and see every region's fate.

    Parameters
    ----------
    volume : Volume
        In HU, of axial planes.
    truth : (plane, row, column) ndarray of bool or int, optional
        The lungs are 1 and 2 (or True); each picture is scored against them by Dice.
    index : int, optional
        The plane to begin with; default: the middle.

    Returns
    -------
    MaskTuner
        A widget: show it as the last line of a cell.

    Raises
    ------
    ValueError
        If `volume` is no Volume, has no plane `index` or holds values that are not
        finite, or if `truth` has another shape or is not whole numbers from 0 to 255.

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> hu = np.full((1, 100, 100), -1000)
    >>> hu[0, 10:90, 5:95] = 40  # a body, with two lungs
    >>> hu[0, 30:60, 20:45] = hu[0, 30:60, 55:80] = -850
    >>> hu[0, 0, 0] = 1000
    >>> volume = Volume(hu, (5, 2, 2), (0, 0, 100), AXIAL)
    >>> tuner = explore_mask(volume, truth=hu == -850)
    >>> round(tuner.answer["dice"], 2)
    0.63
    >>> tuner.method = "mended"
    >>> tuner.answer["dice"]
    1.0

    Built in notebook 08.
    """
    _check(volume)
    planes = volume.shape[0]
    index = planes // 2 if index is None else index
    if not 0 <= index < planes:
        raise ValueError(f"no plane {index}: this scan has {planes}, 0 to {planes - 1}")
    if truth is not None:
        truth = np.isin(_check_labels(truth, volume), (1, 2))
    return MaskTuner(volume, truth, index)


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
    """Name and color of each label, as `show_plane` has them."""
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


def _describe(volume, sent, order, flip):
    """What the browser must know to place the voxels that it is sent."""
    signs, last = (
        np.where(flip, -1, 1),
        np.where(flip, np.take(sent.shape, order) - 1, 0),
    )
    first = np.ones(4)
    first[order] = last
    affine = sent.affine.copy()
    affine[:3, :3] = sent.affine[:3, order] * signs
    affine[:, 3] = sent.affine @ first
    return {
        "shape": [sent.shape[axis] for axis in order],
        "spacing": [sent.spacing[axis] for axis in order],
        "affine": affine.tolist(),
        "letters": {view: cut_plane(volume, view=view).letters for view in VIEWS},
        "axes": [
            {
                "name": ("plane", "row", "column")[axis],
                "size": volume.shape[axis],
                "factor": round(sent.spacing[axis] / volume.spacing[axis]),
                "reversed": bool(flipped),
            }
            for axis, flipped in zip(order, flip, strict=True)
        ],
    }


def _plain(region):
    """A region for JSON."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in region._asdict().items()
    }


def _dice(mask, truth):
    """Twice what two masks share over what they hold; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def _code(name, index, rules):
    """The choice as lines to paste into a cell."""
    chosen = ", ".join(f'"{rule}": {value:g}' for rule, value in rules.items())
    return (
        f"from questlib import {name}\n\n"
        f"rules = {{{chosen}}}  # what differs from the preset\n"
        f"{name}(volume.array[{index}], spacing=volume.spacing[1:], rules=rules)"
    )
