"""Surfaces in mm and patient axes: found, drawn, turned and printed (notebook 07)."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from scipy import ndimage, sparse
from skimage.measure import marching_cubes

from questlib.display import AXES_MM, refuse_nan
from questlib.volume import Volume

BONE = "#E3D8C5"
LIGHT = np.array([-0.35, -0.75, 0.55])  # over the viewer's left shoulder, in LPS

# HU, opacity per mm^-1 scale of the picture, color: what a ray through the CT sees
PRESETS = {
    "bones": [
        (130, 0.0, "#6B2F22"),
        (220, 0.15, "#B5725A"),
        (400, 0.6, "#E8DCC8"),
        (1200, 0.9, "#FFFFFF"),
    ],
    "skin": [
        (-500, 0.0, "#8C5A46"),
        (-250, 0.5, "#D9A68C"),
        (0, 0.8, "#E8BFA8"),
        (300, 0.9, "#FFF4EA"),
    ],
    "lungs": [
        (-950, 0.0, "#1F4E79"),
        (-800, 0.02, "#56B4E9"),
        (-500, 0.08, "#9FD3F2"),
        (-200, 0.5, "#D55E00"),
        (200, 0.8, "#FFD9B3"),
    ],
}


def extract_surface(
    volume: Volume, level: float = 0.5, *, step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the surface where a volume passes through a level, in mm.

    Parameters
    ----------
    volume : Volume
        HU, or a mask (bool or uint8) in ``dataclasses.replace(volume, array=mask)``.
    level : float
        HU of the surface; 0.5 for a mask.
    step : int
        Take every `step`-th voxel of each axis: coarser, and `step` cubed times faster.

    Returns
    -------
    vertices : (n, 3) ndarray of float32
        LPS in mm.
    faces : (m, 3) ndarray of int
        Vertices of each triangle, anticlockwise seen from outside, where values are
        below the level. The surface is closed: what the scan's border cuts open gets
        a cap on the outer side of the last voxels.

    Raises
    ------
    ValueError
        If there is NaN, or no voxel above the level.

    Notes
    -----
    Where VTK is installed its flying edges do the work, several times faster. The two
    differ in ambiguous corners only: 0.2 % of the enclosed volume on a smooth scan, up
    to 3 % where the surface is mostly noise.

    References
    ----------
    Lewiner et al., J. Graphics Tools 8 (2003), in scikit-image; Schroeder et al.,
    IEEE LDAV (2015), in VTK.

    Examples
    --------
    >>> from questlib.volume import AXIAL
    >>> cube = Volume(np.ones((10, 5, 5), bool), (2, 4, 4), (0, 0, 0), AXIAL)
    >>> vertices, faces = extract_surface(cube)
    >>> print(vertices.min(axis=0), vertices.max(axis=0))
    [-2. -2. -1.] [18. 18. 19.]

    Built in notebook 07.
    """
    array = volume.array[::step, ::step, ::step]
    array = array.view(np.uint8) if array.dtype == bool else array
    refuse_nan(array)
    box = _find_box(array, level)
    array = array[tuple(slice(first, last) for first, last in box)]
    if array.dtype.kind in "iu" and float(level).is_integer():
        level += 1e-3  # no voxel lies on the surface: no triangle without an area
    find = _flying_edges if find_spec("vtkmodules") else _marching_cubes
    corners, faces = find(_close_border(array, level), level)
    matrix = volume.direction * volume.spacing * step
    # the border came before the box's first voxel
    start = volume.origin + matrix @ (box[:, 0] - 1)
    # for three columns quicker than a matrix product with all its threads
    vertices = np.einsum("nj,ij->ni", np.float32(corners), np.float32(matrix))
    vertices += np.float32(start)
    inside_out = np.linalg.det(volume.direction) > 0
    return vertices, faces[:, ::-1] if inside_out else faces


def _find_box(array, level):
    """First and last (plane, row, column) around what is above the level, one wider."""
    seen = array.max(axis=0) > level  # from the end of the stack
    if not seen.any():
        raise ValueError(
            f"no surface at {level:g}: values run from {array.min():g} to "
            f"{array.max():g}"
        )
    above = array.max(axis=(1, 2)) > level, seen.any(axis=1), seen.any(axis=0)
    ends = [np.flatnonzero(axis)[[0, -1]] + (-1, 2) for axis in above]
    return np.clip(ends, 0, np.transpose([array.shape]))


def _close_border(array, level):
    """Add one voxel around, mirrored at the level: the cap lies half a voxel out."""
    padded = np.zeros(np.add(array.shape, 2), array.dtype)
    padded[1:-1, 1:-1, 1:-1] = array
    whole = array.dtype.kind in "iu"
    least = np.iinfo(array.dtype).min if whole else -np.inf
    for axis in range(3):
        layers = np.moveaxis(padded, axis, 0)
        for outer, last in ((0, 1), (-1, -2)):
            values = layers[last].astype(float)
            mirrored = 2 * level - values
            mirrored = np.floor(mirrored) if whole else mirrored
            layers[outer] = np.maximum(np.minimum(values, mirrored), least)
    return padded


def _marching_cubes(array, level):
    corners, faces, _, _ = marching_cubes(array, level)
    return corners, faces


def _flying_edges(array, level):
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    image = vtkImageData(dimensions=array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel()))
    edges = vtkFlyingEdges3D(compute_normals=False, compute_scalars=False)
    edges.SetInputData(image)
    edges.SetValue(0, level)
    edges.Update()
    mesh = edges.GetOutput()
    corners = vtk_to_numpy(mesh.GetPoints().GetData())[:, ::-1]
    faces = vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    return corners, faces


def simplify_surface(
    vertices: np.ndarray, faces: np.ndarray, *, cell: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Melt all vertices that share a cell of space into one, for a lighter surface.

    Parameters
    ----------
    vertices, faces
        As `extract_surface` returns them.
    cell : float
        Edge of a cubic cell in mm: about the smallest detail that is left.

    Returns
    -------
    vertices, faces
        Each vertex is the mean of its cell; triangles that collapsed are gone.

    References
    ----------
    Rossignac and Borrel, Modeling in Computer Graphics (1993).

    Built in notebook 07.
    """
    cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    keys = np.ravel_multi_index(cells.T, cells.max(axis=0) + 1)
    _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
    means = [np.bincount(group, axis) / count for axis in vertices.T]
    faces = group[faces]
    first, second, third = faces.T
    faces = faces[(first != second) & (second != third) & (third != first)]
    return np.stack(means, axis=1).astype(np.float32), faces


def smooth_surface(
    vertices: np.ndarray, faces: np.ndarray, *, passes: int = 10
) -> np.ndarray:
    """Iron out the voxel steps of a surface without shrinking it.

    Parameters
    ----------
    vertices, faces
        As `extract_surface` returns them.
    passes : int
        Each goes half a way to the neighbours' mean, and a little more back.

    Returns
    -------
    vertices : (n, 3) ndarray of float32

    References
    ----------
    Taubin, SIGGRAPH (1995).

    Built in notebook 07.
    """
    start, end = faces.T.ravel(), np.roll(faces, -1, axis=1).T.ravel()
    size = (len(vertices), len(vertices))
    near = sparse.csr_array((np.ones(len(start), np.float32), (start, end)), size)
    near = sparse.diags_array(1 / np.maximum(near.sum(axis=1), 1)) @ near
    for factor in (0.5, -0.53) * passes:
        vertices = vertices + factor * (near @ vertices - vertices)
    return vertices.astype(np.float32)


def show_surface(
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    color: str = BONE,
    azimuth: float = 20.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a lit surface from the patient's front, head up, axes in mm.

    Parameters
    ----------
    vertices, faces
        As `extract_surface` returns them; thinned to 30,000 triangles.
    color : str
    azimuth : float
        Degrees by which you step round towards the patient's left.
    ax : 3-D Axes, optional

    Returns
    -------
    Axes

    Built in notebook 07.
    """
    import matplotlib.pyplot as plt
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    vertices, faces = _thin_out(vertices, faces, 30_000)
    ax = ax or plt.subplots(figsize=(6, 6), subplot_kw={"projection": "3d"})[1]
    triangles = vertices[faces]
    light = np.clip(_normals(triangles) @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    shades = np.outer(0.3 + 0.7 * light, to_rgb(color))
    ax.add_collection3d(Poly3DCollection(triangles, facecolors=shades))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    ax.set(**{f"{k}label": f"{n} (mm)" for k, n in zip("xyz", AXES_MM, strict=True)})
    ax.set_box_aspect(high - low, zoom=0.85)  # one scale for all axes
    ax.locator_params(nbins=4)
    ax.yaxis.labelpad = ax.zaxis.labelpad = 12
    ax.view_init(elev=10, azim=azimuth - 90)
    return ax


def explore_surface(
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    color: str = BONE,
    max_kb: float = 200,
):
    """Make a surface that you turn with the mouse, seen from the patient's front.

    Parameters
    ----------
    vertices, faces
        As `extract_surface` returns them.
    color : str
    max_kb : float
        The surface is thinned out until its JSON is no larger than so many kB.

    Returns
    -------
    plotly.graph_objects.Figure
        Works without a network and in a saved page.

    Built in notebook 07.
    """
    import plotly.graph_objects as go

    vertices, faces = _thin_out(vertices, faces, (max_kb - 10) * 1000 / 16)
    x, y, z = np.ascontiguousarray(vertices.T.astype(np.float32))
    i, j, k = np.ascontiguousarray(faces.T.astype(np.min_scalar_type(len(vertices))))
    mesh = go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, color=color)
    mesh.lighting = {"ambient": 0.35, "diffuse": 0.8, "specular": 0.15}
    mesh.lightposition = dict(zip("xyz", (LIGHT * 1e4).tolist(), strict=True))
    mesh.hovertemplate = "x %{x:.0f}, y %{y:.0f}, z %{z:.0f} mm<extra></extra>"
    titles = zip("xyz", AXES_MM, strict=True)
    scene = {f"{axis}axis_title_text": f"{name} (mm)" for axis, name in titles}
    camera = {"eye": {"x": 0.5, "y": -2.1, "z": 0.4}, "up": {"x": 0, "y": 0, "z": 1}}
    camera["center"] = {"x": 0, "y": 0, "z": -0.1}
    figure = go.Figure(mesh)
    figure.update_scenes(aspectmode="data", camera=camera, **scene)
    margin = {"l": 0, "r": 0, "t": 0, "b": 0}
    return figure.update_layout(template="none", height=500, margin=margin)


def _normals(triangles):
    """Unit normals; 0 for a triangle without area."""
    first, second, third = np.moveaxis(triangles, 1, 0)
    normals = np.cross(second - first, third - first)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _thin_out(vertices, faces, count):
    """Leave at most `count` triangles: growing cells, then quadrics where VTK is."""
    quadrics = find_spec("vtkmodules") is not None
    edges = np.diff(vertices[faces], axis=1)
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).sum() / 2
    limit = 8 * count if quadrics else count
    cell, (thin, few) = np.sqrt(area / limit), (vertices, faces)
    while len(few) > limit:
        thin, few = simplify_surface(vertices, faces, cell=cell)
        cell *= max(1.05, np.sqrt(len(few) / limit))
    if len(few) <= count:
        return thin, few
    mesh = _need_pyvista().PolyData.from_regular_faces(thin, few)
    mesh = mesh.decimate(1 - count / len(few), volume_preservation=True)
    return np.asarray(mesh.points), mesh.regular_faces


def render_surface(
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    color: str = BONE,
    opacity: float = 1.0,
    others: tuple = (),
    azimuth: float = 20.0,
    size: tuple[int, int] = (560, 560),
) -> np.ndarray:
    """Render surfaces with VTK, off screen, from the patient's front.

    Parameters
    ----------
    vertices, faces
        As `extract_surface` returns them.
    color, opacity : str, float
    others : sequence of (vertices, faces, color, opacity)
        Further surfaces in the same scene.
    azimuth : float
        Degrees by which you step round towards the patient's left.
    size : (width, height)
        Of the picture in pixels.

    Returns
    -------
    picture : (height, width, 3) ndarray of uint8

    Raises
    ------
    ImportError
        If VTK is not installed: it is an optional extra.

    Built in notebook 07.
    """
    meshes = ((vertices, faces, color, opacity), *others)

    def fill(pyvista, plotter):
        for points, triangles, tint, alpha in meshes:
            mesh = pyvista.PolyData.from_regular_faces(points, triangles)
            plotter.add_mesh(mesh, color=tint, opacity=alpha, smooth_shading=True)

    return _photograph(fill, azimuth, size, "white")


def render_volume(
    volume: Volume,
    *,
    preset: str = "bones",
    azimuth: float = 20.0,
    size: tuple[int, int] = (560, 560),
) -> np.ndarray:
    """Render the voxels themselves with VTK: color and opacity follow the HU.

    Parameters
    ----------
    volume : Volume
        In HU. Blank what shall not be seen with -1024 HU.
    preset : {"bones", "skin", "lungs"}
        A transfer function of `PRESETS`.
    azimuth, size
        As in `render_surface`.

    Returns
    -------
    picture : (height, width, 3) ndarray of uint8

    Raises
    ------
    ImportError
        If VTK is not installed: it is an optional extra.
    ValueError
        If there is no such preset, NaN, or no voxel that the preset shows.

    Built in notebook 07.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    refuse_nan(volume.array)
    points, opacity, colors = zip(*PRESETS[preset], strict=True)
    found = ndimage.find_objects((volume.array > points[0]).view(np.uint8))
    if not found:
        raise ValueError(f"nothing to see in {preset!r}: no voxel above {points[0]} HU")
    array, affine = volume.array[found[0]], volume.affine
    affine[:, 3] = affine @ (*(part.start for part in found[0]), 1)
    if np.linalg.det(affine) > 0:  # VTK counts column first, in right-handed axes
        affine[:, 3] = affine @ (len(array) - 1, 0, 0, 1)
        array, affine[:, 0] = array[::-1], -affine[:, 0]
    affine = affine[:, [2, 1, 0, 3]]
    ramp = np.linspace(points[0], points[-1], 256)
    rgb = np.transpose([to_rgb(color) for color in colors])
    tints = np.transpose([np.interp(ramp, points, channel) for channel in rgb])

    def fill(pyvista, plotter):
        grid = pyvista.ImageData(dimensions=array.shape[::-1])
        grid.point_data["hu"] = array.ravel()
        actor = plotter.add_volume(
            grid,
            clim=(points[0], points[-1]),
            cmap=ListedColormap(tints),
            opacity=np.interp(ramp, points, opacity) * 255,
            opacity_unit_distance=1.0,
            shade=True,
            show_scalar_bar=False,
        )
        actor.user_matrix = affine

    return _photograph(fill, azimuth, size, "black")


def _need_pyvista():
    try:
        import pyvista
    except ImportError as error:
        raise ImportError(
            "this picture is drawn by VTK, an optional extra: install it with "
            "`pip install pyvista`, or in the project's folder `uv sync --extra vtk`"
        ) from error
    return pyvista


def _photograph(fill, azimuth, size, background):
    """Fill a scene, look at it from the patient's front, head up; return RGB."""
    pyvista = _need_pyvista()
    angle = np.deg2rad(azimuth)
    with pyvista.vtk_verbosity("error"):  # VTK first looks for a screen, and says so
        plotter = pyvista.Plotter(off_screen=True, window_size=size)
        fill(pyvista, plotter)
        plotter.background_color = background
        toward = (np.sin(angle), -np.cos(angle), 0.15)
        plotter.view_vector(toward, viewup=(0, 0, 1))
        plotter.camera.zoom(1.3)
        picture = plotter.screenshot(return_img=True)
        plotter.close()
    return np.array(picture)


def save_stl(
    path: str | os.PathLike,
    vertices: np.ndarray,
    faces: np.ndarray,
    *,
    overwrite: bool = False,
) -> None:
    """Write a surface as a binary STL in mm, for a printer or a viewer.

    Parameters
    ----------
    path : str or path
        Appears whole or not at all.
    vertices, faces
        As `extract_surface` returns them. STL has no field for units or for the
        patient's axes: these numbers are LPS in mm.
    overwrite : bool
        Replace a file that is already there.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is False.
    ValueError
        If a face names a vertex that does not exist.

    Notes
    -----
    84 bytes, then 50 for each triangle: normal, three corners, two unused bytes.

    Built in notebook 07.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path.name} exists: choose a new name or overwrite=True"
        )
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"faces name vertices beyond the {len(vertices)} there are")
    fields = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")]
    triangles = np.zeros(len(faces), fields)
    triangles["corners"] = vertices[faces]
    triangles["normal"] = _normals(triangles["corners"])
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(b"surface in mm, patient axes LPS".ljust(80))
        file.write(np.uint32(len(faces)).astype("<u4").tobytes())
        file.write(triangles.tobytes())
    Path(file.name).replace(path)
