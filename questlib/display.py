"""Pictures in one and two dimensions, laid out as a radiologist reads them.

Built in notebooks 03 (windows), 05 (histogram) and 06 (planes).
"""

from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from questlib.volume import Volume

# center and width in HU
WINDOWS = {"lung": (-600, 1500), "mediastinum": (40, 400), "bone": (400, 1800)}

# HU ranges for reading a histogram, not for segmenting: neighbors overlap in life
TISSUES = {
    "air": (-1050, -950),
    "lung": (-950, -500),
    "fat": (-150, -50),
    "soft tissue": (0, 100),
    "bone": (300, 1500),
}

# Okabe and Ito's palette, told apart with every kind of color vision
OKABE_ITO = {
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
LABELS = {1: ("right lung", "sky"), 2: ("left lung", "orange"), 3: ("airway", "green")}

# which LPS axis, and which way along it, points right and down on the screen
VIEWS = {
    "axial": ((0, 1), (1, 1)),
    "coronal": ((0, 1), (2, -1)),
    "sagittal": ((1, 1), (2, -1)),
}
AXES_MM = ("x, to the left", "y, to the back", "z, to the head")
_OUTLINE = withStroke(linewidth=2.5, foreground="black")
_ON_GRAY = {"color": "white", "weight": "bold", "path_effects": [_OUTLINE]}


def use_style() -> None:
    """Give every figure the house style; data are never touched.

    Examples
    --------
    >>> use_style()
    >>> plt.rcParams["image.cmap"], plt.rcParams["image.interpolation"]
    ('gray', 'none')

    Built in notebook 00.
    """
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.figsize": (8, 4.5),
            "figure.constrained_layout.use": True,
            "image.cmap": "gray",
            "image.interpolation": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.prop_cycle": plt.cycler(color=list(OKABE_ITO.values())[::-1]),
            "legend.frameon": False,
        }
    )


def apply_window(hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Turn HU into the 256 grays of a screen.

    Parameters
    ----------
    hu : ndarray
        Radiodensity in HU.
    center, width : float
        *Window Center* (0028,1050) and *Window Width* (0028,1051) in HU.

    Returns
    -------
    gray : ndarray of uint8, same shape as `hu`
        0 (black) to 255 (white).

    Raises
    ------
    ValueError
        If `width` is below 1, or `hu` holds NaN.

    References
    ----------
    DICOM PS3.3, C.11.2.1.2.1 (default LINEAR function, with its halves and ones).

    Examples
    --------
    >>> apply_window(np.array([-200, -160, 40, 239, 300]), 40, 400)
    array([  0,   0, 128, 255, 255], dtype=uint8)

    Built in notebook 03.
    """
    low, high = window_ends((center, width))
    hu = np.asarray(hu)
    refuse_nan(hu)
    if width == 1:
        return np.where(hu > low, 255, 0).astype(np.uint8)
    scaled = (np.clip(hu, low, high) - low) / np.float32(high - low)
    return np.rint(scaled * 255).astype(np.uint8)


class Cut(NamedTuple):
    """One plane taken out of a volume and turned for the screen."""

    plane: np.ndarray  # (row, column) of the screen, a view of the volume's array
    extent: tuple  # left, right, bottom, top edge in mm
    letters: tuple  # what lies beyond the left, right, bottom and top edge
    index: int  # along the array axis that was cut
    position: str  # where the plane lies, in words


def cut_plane(volume: Volume, index: int | None = None, *, view: str = "axial") -> Cut:
    """Cut the plane of a view out of a volume of any orientation.

    Parameters
    ----------
    volume : Volume
    index : int, optional
        Which plane along the array axis nearest to the view's normal; default: middle.
    view : {"axial", "coronal", "sagittal"}
        Axial has the front of the body on top, coronal and sagittal the head; the
        patient's left is at your right; sagittal is seen from the patient's left.

    Returns
    -------
    Cut
        Nothing is interpolated: an oblique scan keeps its oblique planes, and the
        letters say so (``"LP"``: mostly left, and posterior). Millimetres are LPS
        coordinates, in an oblique scan those along its own axes.

    Raises
    ------
    ValueError
        If the view is unknown or the scan has no plane `index`.

    References
    ----------
    DICOM PS3.3, C.7.6.1.1.1 (Patient Orientation) and C.7.6.2.1.1 (Image Plane).

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> volume = Volume(np.zeros((4, 3, 2)), (5, 2, 1), (0, 0, 100), AXIAL)
    >>> cut = cut_plane(volume, 0, view="coronal")
    >>> cut.plane.shape, cut.extent, cut.letters
    ((4, 2), (-0.5, 1.5, 97.5, 117.5), ('R', 'L', 'F', 'H'))

    Built in notebook 06.
    """
    if not isinstance(volume, Volume):
        raise ValueError("give a Volume: its geometry decides size and orientation")
    if view not in VIEWS:
        raise ValueError(f"no view {view!r}: choose one of {', '.join(VIEWS)}")
    (x_lps, x_sign), (y_lps, y_sign) = VIEWS[view]
    lps = 3 - x_lps - y_lps
    x_axis, y_axis, normal = (_axis(volume, k)[0] for k in (x_lps, y_lps, lps))
    count = volume.shape[normal]
    index = count // 2 if index is None else index
    if not 0 <= index < count:
        raise ValueError(
            f"no {view} plane {index}: this scan has {count}, 0 to {count - 1}"
        )
    x_step, left, right, to_right = _screen_axis(volume, x_lps, x_sign)
    y_step, top, bottom, to_bottom = _screen_axis(volume, y_lps, y_sign)
    plane = volume.array.take(index, axis=normal)
    plane = (plane.T if y_axis > x_axis else plane)[::y_step, ::x_step]
    aligned = abs(volume.direction[lps, normal]) > 0.9999
    position = f"{_place(volume, lps, index):.1f} mm".replace("-0.0 mm", "0.0 mm")
    position = f"{'xyz'[lps]} = {position}" if aligned else f"at {position}"
    letters = tuple(map(edge_letters, (-to_right, to_right, to_bottom, -to_bottom)))
    return Cut(plane, (left, right, bottom, top), letters, index, position)


def _axis(volume, lps):
    """The array axis nearest to an LPS axis, and its unit vector towards plus."""
    axes = max(
        permutations(range(3)),
        key=lambda axes: sum(abs(volume.direction[k, axes[k]]) for k in range(3)),
    )
    unit = volume.direction[:, axes[lps]]
    return axes[lps], unit * np.sign(unit[lps])


def _place(volume, lps, index):
    """Where voxel `index` of the array axis nearest to an LPS axis lies, in mm."""
    axis, unit = _axis(volume, lps)
    step = volume.direction[:, axis] * volume.spacing[axis]
    return float(unit @ (volume.origin + step * index))


def _screen_axis(volume, lps, sign):
    """Step through the array, first and last edge in mm, unit vector on the screen."""
    axis, unit = _axis(volume, lps)
    ends = [_place(volume, lps, index) for index in (0, volume.shape[axis] - 1)]
    step = 1 if volume.direction[lps, axis] * sign > 0 else -1
    half = sign * volume.spacing[axis] / 2
    start, end = ends[::step]
    return step, start - half, end + half, unit * sign


def edge_letters(vector: np.ndarray) -> str:
    """Name a direction in the patient by letters, the strongest first.

    Parameters
    ----------
    vector : (3,) ndarray of float
        Unit vector in LPS.

    Returns
    -------
    letters : str
        From R L A P H F; a part that turns away by less than 15 degrees is left out.

    References
    ----------
    DICOM PS3.3, C.7.6.1.1.1 (Patient Orientation).

    Examples
    --------
    >>> edge_letters(np.array([0, 0, -1])), edge_letters(np.array([0.6, 0.8, 0]))
    ('F', 'PL')

    Built in notebook 06.
    """
    pairs = zip(np.abs(vector), ("RL", "AP", "FH"), vector, strict=True)
    strongest = sorted(pairs, key=lambda pair: -pair[0])
    limit = np.sin(np.deg2rad(15))
    return "".join(
        pair[int(value > 0)] for size, pair, value in strongest if size > limit
    )


def show_plane(
    volume: Volume,
    index: int | None = None,
    *,
    view: str = "axial",
    window: str | tuple[float, float] = "lung",
    labels: np.ndarray | None = None,
    overlay: str = "contour",
    ax: Axes | None = None,
) -> Axes:
    """Draw one plane in mm, with orientation letters and a scale bar.

    Parameters
    ----------
    volume : Volume
        In HU.
    index, view
        As in `cut_plane`.
    window : str or (center, width)
        A key of `WINDOWS`, or two numbers in HU.
    labels : (plane, row, column) ndarray of bool or int, optional
        0 is background; 1, 2, 3 are right lung, left lung, airway. A bool mask is
        drawn in one color.
    overlay : {"contour", "color", "both"}
    ax : Axes, optional

    Returns
    -------
    Axes
        Its first image holds the HU of the plane; its clim is the window.

    Raises
    ------
    ValueError
        As `cut_plane`; if the plane holds NaN; if `labels` have another shape.

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> volume = Volume(np.zeros((4, 30, 20)), (5, 2, 2), (0, 0, 100), AXIAL)
    >>> show_plane(volume, 3).get_title()
    'axial plane 3, z = 115.0 mm'

    Built in notebook 06.
    """
    cut = cut_plane(volume, index, view=view)
    low, high = window_ends(window)
    refuse_nan(cut.plane)
    labels = None if labels is None else _same_grid(labels, volume)
    if overlay not in ("contour", "color", "both"):
        raise ValueError(f"no overlay {overlay!r}: contour, color or both")
    ax = ax or plt.subplots(figsize=(6, 6))[1]
    shrinks = all(np.array(cut.plane.shape) > ax.bbox.size[::-1])
    smooth = "antialiased" if shrinks else "none"  # noise, not moire; or true voxels
    ax.imshow(cut.plane, "gray", extent=cut.extent, interpolation=smooth).set_clim(
        low, high
    )
    _write_letters(ax, cut.letters)
    _draw_scale_bar(ax, cut.extent)
    if labels is not None:
        _draw_labels(ax, cut_plane(labels, cut.index, view=view).plane, cut, overlay)
    (x_lps, _), (y_lps, _) = VIEWS[view]
    ax.set(xlabel=f"{AXES_MM[x_lps]} (mm)", ylabel=f"{AXES_MM[y_lps]} (mm)")
    ax.set_title(f"{view} plane {cut.index}, {cut.position}")
    return ax


def show_three_planes(
    volume: Volume,
    position: tuple[int, int, int] | None = None,
    *,
    axes: np.ndarray | None = None,
    **options,
) -> np.ndarray:
    """Draw the axial, coronal and sagittal plane through one voxel, at one scale.

    Parameters
    ----------
    volume : Volume
    position : (plane, row, column) of int, optional
        The voxel; default: the middle. Dashed lines show where the planes cross.
    axes : (3,) ndarray of Axes, optional
    **options
        `window`, `labels` and `overlay` of `show_plane`; it raises.

    Returns
    -------
    axes : (3,) ndarray of Axes

    Built in notebook 06.
    """
    position = tuple(n // 2 for n in volume.shape) if position is None else position
    index = [position[_axis(volume, lps)[0]] for lps in range(3)]
    cuts = [cut_plane(volume, index[2 - k], view=v) for k, v in enumerate(VIEWS)]
    if axes is None:
        axes = _row_of_axes([cut.extent for cut in cuts])
    for ax, cut, view in zip(axes, cuts, VIEWS, strict=True):
        show_plane(volume, cut.index, view=view, ax=ax, **options)
        ax.set_axis_off()
        (x_lps, _), (y_lps, _) = VIEWS[view]
        line = {"color": OKABE_ITO["yellow"], "lw": 0.8, "ls": (0, (4, 6))}
        ax.axvline(_place(volume, x_lps, index[x_lps]), **line)
        ax.axhline(_place(volume, y_lps, index[y_lps]), **line)
    _share_legend(axes)
    return axes


def show_montage(
    volume: Volume, *, count: int = 20, view: str = "axial", **options
) -> np.ndarray:
    """Draw evenly spaced planes, head (or front, or right) first, each with its place.

    Parameters
    ----------
    volume : Volume
    count : int
        At most so many planes, five in a row.
    view : {"axial", "coronal", "sagittal"}
    **options
        `window`, `labels` and `overlay` of `show_plane`; it raises.

    Returns
    -------
    axes : (count,) ndarray of Axes

    Built in notebook 06.
    """
    lps = 3 - sum(lps for lps, _ in VIEWS[view])
    total = volume.shape[_axis(volume, lps)[0]]
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    places = [_place(volume, lps, index) for index in chosen]
    chosen = chosen[np.argsort(places)][:: -1 if lps == 2 else 1]
    rows = -(-len(chosen) // 5)
    _, axes = plt.subplots(rows, 5, figsize=(8, 1.8 * rows), squeeze=False)
    for ax in axes.flat[len(chosen) :]:
        ax.remove()
    for index, ax in zip(chosen, axes.flat, strict=False):
        show_plane(volume, int(index), view=view, ax=ax, **options)
        ax.set_axis_off()
        ax.set_title(ax.get_title().removeprefix(f"{view} plane "), fontsize="x-small")
    _share_legend(axes.flat[: len(chosen)])
    return axes.flat[: len(chosen)]


def show_pair(
    before: Volume,
    after: Volume,
    index: int | None = None,
    *,
    view: str = "axial",
    titles: tuple[str, str] = ("before", "after"),
    labels: tuple = (None, None),
    axes: np.ndarray | None = None,
    **options,
) -> np.ndarray:
    """Draw one place of the patient in two volumes, side by side at one scale.

    Parameters
    ----------
    before, after : Volume
        Their grids may differ; in `after` the nearest plane to that of `before`.
    index, view
        The plane of `before`, as in `show_plane`.
    titles : 2 str
    labels : 2 arrays or None
        One for each volume.
    axes : (2,) ndarray of Axes, optional
    **options
        `window` and `overlay` of `show_plane`; it raises.

    Returns
    -------
    axes : (2,) ndarray of Axes

    Built in notebook 04.
    """
    cut = cut_plane(before, index, view=view)
    lps = 3 - sum(lps for lps, _ in VIEWS[view])
    place = _place(before, lps, cut.index)
    count = after.shape[_axis(after, lps)[0]]
    nearest = min(range(count), key=lambda k: abs(_place(after, lps, k) - place))
    if axes is None:
        extents = [v.extent for v in (cut, cut_plane(after, nearest, view=view))]
        axes = _row_of_axes(extents)
    for k, (volume, at) in enumerate(((before, cut.index), (after, nearest))):
        show_plane(volume, at, view=view, labels=labels[k], ax=axes[k], **options)
        axes[k].set_title(f"{titles[k]}: {axes[k].get_title()}")
    return axes


def show_histogram(
    volume: Volume,
    *,
    bin_width: int = 10,
    hu_range: tuple[int, int] = (-1100, 1500),
    log: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many voxels have which HU, with the tissues' usual ranges.

    Parameters
    ----------
    volume : Volume or ndarray
        In HU; a whole scan or one plane of it.
    bin_width : int
        HU; a whole number, so that each bin holds equally many integer values.
    hu_range : (low, high)
        HU; what lies outside is counted and written below the axis.
    log : bool
        A count axis in powers of ten, which also shows rare tissues.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is NaN, or `bin_width` is below 1 HU.

    Examples
    --------
    >>> show_histogram(np.array([[-1000, 40, 45]])).get_ylabel()
    'voxels in each 10 HU bin (log scale)'

    Built in notebook 05.
    """
    hu = np.asarray(getattr(volume, "array", volume))
    refuse_nan(hu)
    if bin_width < 1:
        raise ValueError(f"a bin of {bin_width} HU is finer than the values: take 1")
    low, high = hu_range
    edges = np.arange(low, high + bin_width, bin_width)
    counts, _ = np.histogram(hu, edges - 0.5)
    ax = ax or plt.subplots()[1]
    for k, (name, tissue) in enumerate(TISSUES.items()):
        start, end = np.clip(tissue, edges[0], edges[-1])
        if start < end:
            ax.axvspan(start, end, color=list(OKABE_ITO.values())[k], alpha=0.35, lw=0)
            place = ((start + end) / 2, 1.01 + 0.05 * (k % 2))
            ax.text(*place, name, transform=ax.get_xaxis_transform(), ha="center")
    ax.stairs(counts, edges - 0.5, fill=True, color="0.3")
    outside = 100 * (1 - counts.sum() / hu.size)
    ax.set(xlim=(edges[0], edges[-1]), yscale="log" if log else "linear")
    least = counts[counts > 0].min() if counts.any() else 1
    ax.set_ylim(bottom=10 ** np.floor(np.log10(least)) if log else 0)
    ax.set_xlabel(f"radiodensity (HU); {outside:.2f} % of the voxels lie outside")
    ax.set_ylabel(f"voxels in each {bin_width} HU bin" + " (log scale)" * log)
    return ax


def show_stages(
    plane_mask, *, spacing: tuple[float, float] = (1.0, 1.0), axes=None
) -> np.ndarray:
    """Draw the six stages of a one-plane mask, and the fate of each region.

    Parameters
    ----------
    plane_mask : PlaneMask
        What `mask_plane` or `mask_plane_2017` returns.
    spacing : 2 floats
        mm between rows and between columns.
    axes : (6,) ndarray of Axes, optional

    Returns
    -------
    axes : (6,) ndarray of Axes
        In the fourth, kept regions have a color and a solid box, dropped ones are
        gray in a dotted box.

    Built in notebook 08.
    """
    if axes is None:
        axes = plt.subplots(2, 3, figsize=(10, 7))[1].ravel()
    low, high = window_ends("lung")
    for k, (ax, (name, stage)) in enumerate(
        zip(axes, plane_mask.stages.items(), strict=True)
    ):
        limits = {"vmin": low, "vmax": high} if name in ("original", "applied") else {}
        if name == "regions":
            stage = _color_regions(stage, plane_mask.regions)
        ax.imshow(stage, aspect=spacing[0] / spacing[1], **limits)
        ax.set_title(f"{k + 1} {name}")
        ax.set_axis_off()
    for region in plane_mask.regions:
        color, style = ("white", "-") if region.kept else ("0.6", ":")
        corner = (region.left - 0.5, region.top - 0.5)
        size = (region.right - region.left, region.bottom - region.top)
        box = Rectangle(corner, *size, fill=False, ec=color, ls=style, lw=1.5)
        axes[3].add_patch(box)
    return axes


def _color_regions(labels, regions):
    """Paint kept regions in colors and dropped ones gray, on black."""
    palette = np.zeros((labels.max() + 1, 3))
    palette[1:] = 0.45
    kept = [region.label for region in regions if region.kept]
    for k, label in enumerate(kept):
        palette[label] = to_rgb(list(OKABE_ITO.values())[k % len(OKABE_ITO)])
    return palette[labels]


def window_ends(window: str | tuple[float, float]) -> tuple[float, float]:
    """The HU that become black and white: center - width/2, center + width/2 - 1.

    >>> window_ends("lung"), window_ends((40, 400))
    ((-1350.0, 149.0), (-160.0, 239.0))
    """
    if isinstance(window, str) and window not in WINDOWS:
        raise ValueError(
            f"no window {window!r}: {', '.join(WINDOWS)} or (center, width)"
        )
    center, width = WINDOWS[window] if isinstance(window, str) else window
    if not width >= 1:
        raise ValueError(
            f"a window's width is 1 HU or more (PS3.3 C.11.2.1.2), not {width}"
        )
    return center - width / 2, center + width / 2 - 1


def refuse_nan(hu):
    """Raise ValueError when an array holds values that are not numbers."""
    if hu.dtype.kind == "f" and np.isnan(hu).any():
        count = np.isnan(hu).sum()
        raise ValueError(f"{count} values are not numbers (NaN): give them a HU first")


def _same_grid(labels, volume):
    labels = np.asarray(labels)
    if labels.shape != volume.shape:
        raise ValueError(
            f"labels are {labels.shape}, the volume is {volume.shape}: (plane, row, "
            "column) must agree; were the labels made on another grid?"
        )
    return replace(volume, array=labels)


def _row_of_axes(extents):
    """Axes side by side, one scale for all."""
    widths = [abs(right - left) for left, right, _, _ in extents]
    height = max(abs(top - bottom) for _, _, bottom, top in extents)
    size = (9, min(8, 9 * height / sum(widths) + 0.5))
    return plt.subplots(1, len(widths), figsize=size, width_ratios=widths)[1]


def _write_letters(ax, letters):
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    size = _font_size(ax)
    sides = (("left", "center"), ("right", "center"), ("center", "bottom"))
    for text, place, (ha, va) in zip(
        letters, places, (*sides, ("center", "top")), strict=True
    ):
        ax.text(
            *place, text, transform=ax.transAxes, ha=ha, va=va, size=size, **_ON_GRAY
        )


def _draw_scale_bar(ax, extent):
    left, right, bottom, top = extent
    width, height = right - left, top - bottom
    length = max(n for n in (1, 2, 5, 10, 20, 50, 100) if n <= abs(width) / 3 or n == 1)
    end = right - 0.04 * width
    start = end - length * np.sign(width)
    y = bottom + 0.04 * height
    ax.plot([start, end], [y, y], color="white", lw=2, path_effects=[_OUTLINE])
    y += 0.015 * height
    ax.text(
        end, y, f"{length} mm", ha="right", va="bottom", size=_font_size(ax), **_ON_GRAY
    )


def _font_size(ax):
    return 10 if ax.bbox.width > 200 else 7


def _share_legend(axes):
    """Put one legend for all planes below them, where it covers no anatomy."""
    shared = {}
    for legend in filter(None, (ax.get_legend() for ax in axes)):
        names = (text.get_text() for text in legend.get_texts())
        shared |= zip(names, legend.legend_handles, strict=True)
        legend.remove()
    if shared:
        place = {"loc": "outside lower center", "ncols": len(shared)}
        axes[0].figure.legend(shared.values(), shared.keys(), **place)


def _draw_labels(ax, plane, cut, overlay):
    """Draw the labels' borders, or fill them, and add a legend."""
    left, right, bottom, top = cut.extent
    rows, columns = plane.shape
    half = np.array([(right - left) / columns, (bottom - top) / rows]) / 2
    x = np.linspace(left - half[0], right + half[0], columns + 2)
    y = np.linspace(top - half[1], bottom + half[1], rows + 2)
    handles = []
    for value in np.unique(plane[plane != 0]):
        name, color = (
            ("mask", "vermillion")
            if plane.dtype == bool
            else LABELS.get(int(value), (f"label {value}", "purple"))
        )
        color = OKABE_ITO[color]
        if overlay != "contour":
            shown = np.ma.masked_where(plane != value, plane)
            ax.imshow(shown, cmap=ListedColormap([color]), alpha=0.4, extent=cut.extent)
        if overlay != "color":
            ax.contour(
                x, y, np.pad(plane == value, 1), [0.5], colors=[color], linewidths=1.2
            )
        handles.append(Patch(color=color, label=name))
    if handles:
        legend = ax.legend(handles=handles, loc="upper left", labelcolor="white")
        legend.set(frame_on=True)
        legend.get_frame().set(facecolor="black", alpha=0.6, linewidth=0)
