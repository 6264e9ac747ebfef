"""The phantom by arithmetic, and its DICOM by dciodvfy, an independent judge."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from questlib.phantom import ARMS, PARTS, PLACES, _ball, _oval, _tube, make_phantom
from questlib.volume import load_series

COARSE = {"shape": (60, 90, 90), "spacing": (5, 4, 4)}


def position(phantom, mask):
    """Centroid in mm: (plane, row, column) axis, i.e. to the head, back and left."""
    center = np.append(np.argwhere(mask).mean(0), 1)
    return (phantom.volume.affine @ center)[[2, 1, 0]]


def millilitres(phantom, mask):
    return mask.sum() * np.prod(phantom.volume.spacing) / 1000


@pytest.fixture(scope="module")
def coarse():
    return make_phantom(**COARSE)


def axes(half):
    return [np.arange(-half, half + 0.1, 1, dtype=np.float32)] * 3


def test_the_distance_to_a_ball_is_exact():
    distance = _ball((1, 2, 3), 5, 0, "x").distance(axes(10))
    z, y, x = np.mgrid[-10:11, -10:11, -10:11]
    radius = np.sqrt((z - 1) ** 2 + (y - 2) ** 2 + (x - 3) ** 2)
    assert np.allclose(distance, radius - 5, atol=0.02)


def test_the_distance_to_a_tapered_tube_is_exact_beside_and_beyond_it():
    tube = _tube((0, 0, -4), (0, 0, 4), (3, 1), 0, "x")
    distance = tube.distance(axes(10))
    at = {"middle": (10, 17, 10), "wide end": (10, 10, 0), "thin end": (10, 10, 20)}
    values = {name: float(distance[index]) for name, index in at.items()}
    assert values == pytest.approx(
        {"middle": 7 - 2, "wide end": 6 - 3, "thin end": 6 - 1}, abs=0.01
    )


def test_the_oval_has_the_asked_half_axes():
    row, column = np.array([0, 5.0]), np.array([8.0, 2.0])
    edge = _oval(row, column, flat=3, half_width=8, half_depth=5)
    assert np.allclose(edge, 0, atol=1e-4)


@pytest.mark.parametrize("thickness", [0.7, 2.5, 8])
@pytest.mark.parametrize("size", [12, 30])
def test_a_nodule_holds_four_thirds_pi_r_cubed(size, thickness):
    planes = int(60 / thickness)
    phantom = make_phantom(
        shape=(planes + 20, 128, 256),
        spacing=(thickness, 1, 1),
        nodules=[(size, (0, -5, -85))],
    )
    wanted = np.pi / 6 * size**3 / 1000
    tolerance = 0.03 if thickness < 8 else 0.2  # 12 mm are 1.5 planes of 8 mm
    measured = millilitres(phantom, phantom.parts["nodules"])
    assert measured == pytest.approx(wanted, rel=tolerance)


@pytest.mark.parametrize("place", PLACES)
def test_nodules_lie_within_their_lung(place):
    phantom = make_phantom(**COARSE, nodules=[(24, place)])
    found = phantom.truth[phantom.parts["nodules"]]
    side = 1 if PLACES[place][0][2] < 0 else 2
    assert found.size and np.all(found == side)
    whole = np.pi / 6 * 24**3 / 1000
    assert millilitres(phantom, found > 0) == pytest.approx(whole, rel=0.15)


def test_the_lungs_hold_four_to_six_litres_the_right_one_more(coarse):
    right, left, airway = (millilitres(coarse, coarse.truth == n) for n in (1, 2, 3))
    assert 4000 < right + left < 6000
    assert left < right < 1.3 * left
    assert 30 < airway < 80


def test_the_volume_does_not_depend_on_the_grid(coarse):
    fine = make_phantom(shape=(210, 150, 150), spacing=(1.5, 2.4, 2.4))
    for label in (1, 2):
        a, b = (millilitres(p, p.truth == label) for p in (coarse, fine))
        assert a == pytest.approx(b, rel=0.01)


def test_whole_lungs_fit_between_neck_and_abdomen(phantom):
    present = np.isin(phantom.truth, (1, 2))
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(present.any(axis=others))
        assert where[0] > 0 and where[-1] < present.shape[axis] - 1


def test_each_lung_and_the_airway_are_in_one_piece(phantom):
    from scipy import ndimage

    for label in (1, 2, 3):
        assert ndimage.label(phantom.truth == label)[1] == 1


def test_sides_are_those_of_the_patient(coarse):
    lung = [position(coarse, coarse.truth == n) for n in (1, 2)]
    assert lung[0][2] < -40 and lung[1][2] > 40  # x grows to the patient's left
    assert position(coarse, coarse.parts["heart"])[2] > 5
    assert position(coarse, coarse.parts["liver"])[2] < -20
    assert position(coarse, coarse.parts["gas"])[2] > 20
    liver, heart = (position(coarse, coarse.parts[n])[0] for n in ("liver", "heart"))
    assert liver < heart  # planes go to the head
    assert position(coarse, coarse.parts["bones"])[1] > 0  # the spine: to the back


def test_the_lungs_contain_what_lies_within_the_pleura():
    phantom = make_phantom(**COARSE, consolidation=60)
    lungs = np.isin(phantom.truth, (1, 2))
    for name in ("vessels", "bronchi", "nodules", "mass", "consolidation"):
        part = phantom.parts[name]
        assert part.any() and not np.any(part & ~lungs & (phantom.truth != 3)), name
    assert not np.any(lungs & (phantom.parts["heart"] | phantom.parts["bones"]))
    assert not np.any(lungs & ~phantom.parts["body"])
    assert set(phantom.parts) == set(PARTS)


def test_hounsfield_units_are_those_of_the_tissues():
    phantom = make_phantom(**COARSE, noise=0)
    hu, parts = phantom.volume.array, phantom.parts
    wanted = {"heart": 42, "liver": 58, "gas": -988, "mass": 38}
    for name, value in wanted.items():
        assert np.median(hu[parts[name]]) == pytest.approx(value, abs=4), name
    outside = ~parts["body"]
    assert np.median(hu[outside]) == -1000 and hu.min() == -1000
    assert 300 < np.percentile(hu[parts["bones"]], 90) < 1200
    air = np.isin(phantom.truth, (1, 2)) & (hu < -700)
    row = np.argwhere(air)[:, 1]
    front, back = (hu[air][sel] for sel in (row < 40, row > 55))
    assert back.mean() - front.mean() > 15  # gravity
    assert -900 < np.median(hu[air]) < -820


def test_noise_has_the_asked_deviation_and_is_grain():
    quiet, loud = (make_phantom(**COARSE, noise=n) for n in (0, 30))
    noise = loud.volume.array.astype(float) - quiet.volume.array
    noise = np.where(loud.parts["liver"], noise, 0)[10:20, 30:60, 20:40]
    noise = noise[noise != 0]
    assert noise.std() == pytest.approx(30, rel=0.1)
    plane = loud.volume.array[15].astype(float) - quiet.volume.array[15]
    neighbors = np.corrcoef(plane[30:60, 20:39].ravel(), plane[30:60, 21:40].ravel())
    assert 0.2 < neighbors[0, 1] < 0.8


def test_the_seed_decides_everything():
    first, again, other = (make_phantom(**COARSE, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.volume.array, again.volume.array)
    assert np.array_equal(first.truth, again.truth)
    assert not np.array_equal(first.volume.array, other.volume.array)


def test_offset_moves_the_patient_by_these_millimetres(coarse):
    moved = make_phantom(**COARSE, offset=(8, -12))  # 2 rows, -3 columns
    assert np.array_equal(moved.truth[:, 2:, :-3], coarse.truth[:, :-2, 3:])
    shift = position(moved, moved.truth == 1) - position(coarse, coarse.truth == 1)
    assert np.allclose(shift, (0, 8, -12), atol=1e-6)


def test_the_grid_is_centered_and_field_of_view_sets_its_spacing():
    phantom = make_phantom(shape=(3, 50, 100), spacing=(5, 9, 9), field_of_view=300)
    assert phantom.volume.spacing == (5, 6, 3)
    assert np.allclose(phantom.volume.affine @ (1, 24.5, 49.5, 1), (0, 0, 0, 1))


def test_consolidation_and_emphysema_change_what_they_say(coarse):
    sick = make_phantom(**COARSE, consolidation=60, emphysema=0.25, mass=0, nodules=())
    assert position(sick, sick.parts["consolidation"])[2] < -40
    volume = millilitres(sick, sick.parts["consolidation"])
    assert volume == pytest.approx(np.pi / 6 * 60**3 / 1000, rel=0.35)
    assert not sick.parts["mass"].any() and not sick.parts["nodules"].any()
    empty = [
        np.mean(p.volume.array[np.isin(p.truth, (1, 2))] < -940) for p in (coarse, sick)
    ]
    assert empty[0] < 0.05 and empty[1] - empty[0] > 0.1


def test_touching_lungs_lie_closer():
    apart, near = (make_phantom(**COARSE, touching=t, noise=0) for t in (False, True))
    gap = (apart.truth == 0) & (near.truth > 0)
    assert not np.any((apart.truth > 0) & (near.truth == 0))
    assert gap.any() or near.volume.array[35, 20, 44:47].max() < -100


def test_bowel_gas_can_be_left_out():
    assert not make_phantom(**COARSE, bowel_gas=False).parts["gas"].any()


def test_arms_change_the_body_not_the_lungs(coarse):
    wide = {**COARSE, "field_of_view": 500}
    volumes = [
        millilitres(p, p.parts["body"])
        for p in (make_phantom(**wide, arms=arms) for arms in ARMS)
    ]
    up, down, none = volumes
    assert none < up < down
    with pytest.raises(ValueError, match="'left' is not one of up, down, none"):
        make_phantom(**COARSE, arms="left")
    with pytest.raises(ValueError, match="'brain' is not one of inside"):
        make_phantom(**COARSE, nodules=[(8, "brain")])


@pytest.mark.parametrize("padding", [False, True])
def test_the_series_passes_dciodvfy_and_loads_as_the_same_volume(tmp_path, padding):
    few = {"shape": (12, 90, 90), "spacing": (5, 4, 4)}
    phantom = make_phantom(tmp_path, **few, seed=3, padding=padding)
    judge = Path(sys.executable).with_name("dciodvfy")
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 12
    for path in paths:
        done = subprocess.run([judge, path], capture_output=True, text=True)
        assert "Error" not in done.stdout + done.stderr and "CTImage" in done.stderr
    volume = load_series(tmp_path)
    assert np.array_equal(volume.array, phantom.volume.array)
    assert volume.array.dtype == np.int16
    assert np.allclose(volume.affine, phantom.volume.affine)
    assert np.all(volume.array[:, 0, 0] == -1024) == padding
    heights = [float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths]
    assert heights != sorted(heights)


def test_the_same_scan_has_the_same_uids_and_another_one_has_others(tmp_path):
    small = {"shape": (2, 16, 16), "spacing": (5, 20, 20)}
    uids = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_phantom(tmp_path / name, **small, seed=seed)
        planes = [pydicom.dcmread(path) for path in sorted((tmp_path / name).iterdir())]
        uids.append([ds.SOPInstanceUID for ds in planes])
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids[-1])
        assert len({ds.SeriesInstanceUID for ds in planes}) == 1
    assert uids[0] == uids[1]
    assert not set(uids[0]) & set(uids[2])
