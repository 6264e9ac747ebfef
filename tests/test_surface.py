"""Surfaces have the size, place and side that arithmetic demands."""

import struct
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from questlib import surface
from questlib.surface import (
    explore_surface,
    extract_surface,
    render_surface,
    render_volume,
    save_stl,
    show_surface,
    simplify_surface,
    smooth_surface,
)
from questlib.volume import AXIAL, Volume

CENTER = np.array([12.0, -7.0, 101.0])  # LPS mm
TURN = np.linalg.qr([[1.0, 0.3, -0.2], [-0.4, 1.0, 0.1], [0.2, 0.1, 1.0]])[0]
DIRECTIONS = {
    "axial": AXIAL,
    "feet first": AXIAL * (-1, 1, -1),
    "mirrored": AXIAL * (-1, 1, 1),
    "sagittal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": TURN,
    "oblique, mirrored": TURN * (1, 1, -1),
}


def ball(direction, spacing=(2.5, 1.0, 1.4), radius=20.0, center=CENTER):
    """A ball around `center` whose HU fall by 10 a mm and pass 0 at its radius."""
    shape = np.ceil(56 / np.array(spacing)).astype(int)
    empty = Volume(np.zeros(shape), spacing, (0, 0, 0), direction)
    middle = empty.affine[:3, :3] @ ((shape - 1) / 2)
    volume = Volume(empty.array, spacing, CENTER - middle, direction)
    index = np.indices(shape).reshape(3, -1)
    places = volume.affine[:3, :3] @ index + volume.affine[:3, 3:]
    distance = np.linalg.norm(places - np.c_[center], axis=0).reshape(shape)
    return replace(volume, array=(10 * (radius - distance)).astype(np.float32))


def enclosed_volume(vertices, faces):
    """By the divergence theorem; positive when faces look outward."""
    first, second, third = np.moveaxis(vertices[faces].astype(float), 1, 0)
    return np.einsum("ij,ij->", first, np.cross(second, third)) / 6


def is_closed(faces):
    """Each edge is walked once in each direction."""
    start, end = faces.T.ravel().astype(np.int64), np.roll(faces, -1, 1).T.ravel()
    there, back = start << 32 | end, end.astype(np.int64) << 32 | start
    return np.array_equal(np.sort(there), np.sort(back))


@pytest.mark.parametrize("engine", ["_flying_edges", "_marching_cubes"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_ball_keeps_radius_center_and_outside(name, engine, monkeypatch):
    if engine == "_marching_cubes":
        monkeypatch.setattr(surface, "find_spec", lambda name: None)
    vertices, faces = extract_surface(ball(DIRECTIONS[name]), 0)
    radii = np.linalg.norm(vertices - CENTER, axis=1)
    assert abs(radii - 20).max() < 0.1
    np.testing.assert_allclose(
        (vertices.min(0) + vertices.max(0)) / 2, CENTER, atol=0.1
    )
    assert enclosed_volume(vertices, faces) == pytest.approx(
        4 / 3 * np.pi * 20**3, rel=0.01
    )
    assert is_closed(faces)


def test_both_engines_find_one_surface(phantom):
    padded = surface._close_border(phantom.volume.array, 300.001)
    fast, slow = (
        find(padded, 300.001)
        for find in (surface._flying_edges, surface._marching_cubes)
    )
    assert len(fast[0]) == pytest.approx(len(slow[0]), rel=0.01)
    assert enclosed_volume(*fast) == pytest.approx(enclosed_volume(*slow), rel=0.005)
    assert is_closed(fast[1])
    assert is_closed(slow[1])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32])
def test_what_the_border_cuts_gets_a_cap_half_a_voxel_out(dtype):
    full = Volume(np.ones((5, 4, 3), dtype), (5, 2, 1), (100, 200, 300), AXIAL)
    vertices, faces = extract_surface(full)
    np.testing.assert_allclose(vertices.min(0), [99.5, 199, 297.5])
    np.testing.assert_allclose(vertices.max(0), [102.5, 207, 322.5])
    assert is_closed(faces)
    cut = ball(AXIAL, center=CENTER + np.array([28, 0, 0]))
    vertices, faces = extract_surface(cut, 0)
    assert is_closed(faces)
    assert enclosed_volume(vertices, faces) == pytest.approx(
        2 / 3 * np.pi * 20**3, rel=0.03
    )


def test_one_plane_is_a_slab():
    one = Volume(np.ones((1, 10, 10), bool), (5, 1, 1), (0, 0, 0), AXIAL)
    vertices, _ = extract_surface(one)
    assert np.ptp(vertices[:, 2]) == pytest.approx(5)


def test_a_step_is_coarser_in_the_same_place():
    volume = ball(AXIAL, spacing=(1, 1, 1))
    fine, coarse = (extract_surface(volume, 0, step=step) for step in (1, 2))
    assert len(coarse[1]) < 0.3 * len(fine[1])
    assert abs(np.linalg.norm(coarse[0] - CENTER, axis=1) - 20).max() < 0.2


def test_no_surface_says_what_the_values_are():
    volume = Volume(np.arange(8).reshape(2, 2, 2), (1, 1, 1), (0, 0, 0), AXIAL)
    with pytest.raises(ValueError, match="at 7: values run from 0 to 7"):
        extract_surface(volume, 7)


def test_nan_is_refused():
    volume = Volume(np.full((3, 3, 3), np.nan), (1, 1, 1), (0, 0, 0), AXIAL)
    with pytest.raises(ValueError, match="27 values are not numbers"):
        extract_surface(volume, 0)


def test_simplify_is_lighter_and_stays_on_the_ball():
    vertices, faces = extract_surface(ball(AXIAL), 0)
    thin, few = simplify_surface(vertices, faces, cell=4)
    assert len(few) < 0.3 * len(faces)
    assert few.max() < len(thin)
    assert abs(np.linalg.norm(thin - CENTER, axis=1) - 20).max() < 0.6
    assert enclosed_volume(thin, few) == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.06)


def test_smoothing_irons_voxel_steps_and_keeps_the_volume():
    volume = ball(AXIAL, spacing=(2, 2, 2))
    vertices, faces = extract_surface(replace(volume, array=volume.array > 0))
    smooth = smooth_surface(vertices, faces)
    rough, ironed = (
        np.std(np.linalg.norm(points - CENTER, axis=1)) for points in (vertices, smooth)
    )
    assert ironed < 0.6 * rough
    before, after = enclosed_volume(vertices, faces), enclosed_volume(smooth, faces)
    assert after == pytest.approx(before, rel=0.01)


def test_stl_is_binary_in_mm_with_normals_outward(tmp_path):
    vertices, faces = extract_surface(ball(TURN), 0)
    path = tmp_path / "ball.stl"
    save_stl(path, vertices, faces)
    data = path.read_bytes()
    assert len(data) == 84 + 50 * len(faces)
    assert not data.startswith(b"solid")
    assert struct.unpack("<I", data[80:84]) == (len(faces),)
    first = np.array(struct.unpack("<12f", data[84:132])).reshape(4, 3)
    assert first[0] @ (first[1:].mean(axis=0) - CENTER) > 19
    import pyvista

    mesh = pyvista.read(path)
    assert mesh.n_cells == len(faces)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)
    np.testing.assert_allclose(mesh.center, CENTER, atol=0.1)


def test_stl_overwrites_only_when_told_and_leaves_no_half_file(tmp_path):
    vertices, faces = extract_surface(ball(AXIAL), 0)
    path = tmp_path / "ball.stl"
    with pytest.raises(ValueError, match="beyond the 3"):
        save_stl(path, vertices[:3], faces)
    assert list(tmp_path.iterdir()) == []
    save_stl(path, vertices, faces)
    with pytest.raises(FileExistsError, match=r"ball\.stl exists"):
        save_stl(path, vertices, faces[:1])
    save_stl(path, vertices, faces[:1], overwrite=True)
    assert path.stat().st_size == 134
    assert [file.name for file in tmp_path.iterdir()] == ["ball.stl"]


def test_show_surface_looks_from_the_front_with_one_scale():
    vertices, faces = extract_surface(ball(AXIAL), 0)
    ax = show_surface(vertices, faces, azimuth=0)
    assert (ax.azim, ax.roll) == (-90, 0)
    assert ax.get_xlabel() == "x, to the left (mm)"
    assert ax.get_zlabel() == "z, to the head (mm)"
    spans = [np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim()), np.ptp(ax.get_zlim())]
    ratios = ax._box_aspect
    np.testing.assert_allclose(ratios / ratios[0], spans / spans[0], rtol=1e-6)
    assert len(ax.collections[0].get_facecolor()) == len(faces)
    plt.close()


@pytest.mark.parametrize("with_vtk", [True, False])
def test_explore_surface_fits_and_looks_from_the_front(with_vtk, monkeypatch):
    if not with_vtk:
        monkeypatch.setattr(surface, "find_spec", lambda name: None)
    vertices, faces = extract_surface(ball(AXIAL, spacing=(0.8, 0.8, 0.8)), 0)
    figure = explore_surface(vertices, faces, max_kb=60)
    assert len(figure.to_json()) <= 60_000
    mesh, scene = figure.data[0], figure.layout.scene
    points = np.stack([mesh.x, mesh.y, mesh.z], axis=1)
    assert abs(np.linalg.norm(points - CENTER, axis=1) - 20).max() < 0.5
    assert len(mesh.i) > 1500
    assert max(mesh.i.max(), mesh.j.max(), mesh.k.max()) < len(points)
    assert scene.camera.eye.y < -1
    assert scene.camera.up.z == 1
    assert scene.aspectmode == "data"
    assert scene.yaxis.title.text == "y, to the back (mm)"


def lean(picture):
    """Where the bright part of a picture lies: -1 left or top, 1 right or bottom."""
    bright = picture.mean(axis=2) - np.median(picture)
    rows, columns = np.nonzero(abs(bright) > 20)
    height, width = bright.shape
    return 2 * rows.mean() / height - 1, 2 * columns.mean() / width - 1


@pytest.mark.parametrize("name", DIRECTIONS)
def test_vtk_shows_the_patients_left_at_the_right_and_the_head_up(name):
    far = ball(DIRECTIONS[name], radius=8, center=CENTER + np.array([15, 0, 15]))
    array = np.clip(40 * far.array, 131, 1000)  # 131 HU: within the scene, unseen
    corner = np.clip(ball(DIRECTIONS[name], radius=24).array, -1024, 0)
    picture = render_volume(replace(far, array=array), azimuth=0, size=(120, 100))
    assert picture.shape == (100, 120, 3)
    row, column = lean(picture)
    assert row < -0.2
    assert column > 0.2
    small, large = (
        extract_surface(far, 0),
        extract_surface(replace(far, array=corner), -5),
    )
    picture = render_surface(
        *small,
        color="black",
        others=((*large, "white", 0.01),),
        azimuth=0,
        size=(120, 100),
    )
    row, column = lean(picture)
    assert row < -0.2
    assert column > 0.2


def test_without_vtk_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvista", None)
    with pytest.raises(ImportError, match="pip install pyvista"):
        render_surface(np.zeros((3, 3)), np.array([[0, 1, 2]]))


def test_render_volume_refuses_unknown_presets_and_nan():
    volume = ball(AXIAL)
    with pytest.raises(ValueError, match="bones, skin, lungs"):
        render_volume(volume, preset="bone")
    with pytest.raises(ValueError, match="no voxel above 130 HU"):
        render_volume(replace(volume, array=volume.array * 0))
    with pytest.raises(ValueError, match="not numbers"):
        render_volume(replace(volume, array=volume.array * np.nan))
