"""The widgets' Python side: what the browser is sent, and what is refused."""

import json
import re
import zlib

import numpy as np
import pytest

from questlib.volume import AXIAL, Volume
from questlib.widgets import (
    LEVELS,
    METHODS,
    STATIC,
    explore_mask,
    explore_planes,
    explore_window,
)


def volume_of(array, spacing=(5, 2, 1), direction=AXIAL):
    return Volume(np.asarray(array), spacing, (10, 20, 30), direction)


def sent(browser, trait="voxels"):
    """The voxels as the browser unpacks them: (to head, to back, to left)."""
    shape = browser.geometry["shape"]
    return np.frombuffer(zlib.decompress(getattr(browser, trait)), np.uint8).reshape(
        shape
    )


def test_the_browser_gets_the_scan_within_half_a_step():
    hu = np.random.default_rng(0).integers(-1000, 1590, (6, 40, 50), dtype=np.int16)
    shown = LEVELS[sent(explore_planes(volume_of(hu)))]
    step = np.where(hu < -200, 16, np.where(hu < 300, 5, 20))
    assert (np.abs(shown - hu) <= step / 2).all()


def test_what_lies_beyond_the_levels_is_shown_as_the_last():
    shown = LEVELS[sent(explore_planes(volume_of([[[-3024.0, 3071], [0, 40]]])))]
    assert shown.ravel().tolist() == [-1000, 1580, 0, 40]


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (2, 0, 1)])
def test_every_orientation_shows_the_same_patient(order, flip):
    """A voxel that was marked is found at its place in the patient."""
    hu = np.full((5, 6, 7), -1000)
    hu[1, 2, 3] = 40
    labels = hu == 40
    volume = volume_of(hu, direction=AXIAL[:, order] * flip)
    browser = explore_planes(volume, labels)
    voxel = np.argwhere(LEVELS[sent(browser)] == 40)
    assert np.array_equal(voxel, np.argwhere(sent(browser, "labels")))
    place = np.array(browser.geometry["affine"]) @ (*voxel[0], 1)
    assert np.allclose(place, volume.affine @ (1, 2, 3, 1))
    # toward head, back and left
    directions = np.array(browser.geometry["affine"])[2::-1, :3]
    assert (np.diag(directions) > 0).all()
    into = ["axial", "coronal", "sagittal"][
        2 - int(np.argmax(abs(volume.direction[:, 0])))
    ]
    assert (browser.view, browser.index) == (into, 2)
    axis = browser.geometry["axes"][["axial", "coronal", "sagittal"].index(into)]
    assert axis["name"] == "plane" and axis["size"] == 5


def test_letters_follow_the_direction():
    head_first = explore_planes(volume_of(np.zeros((3, 3, 3)))).geometry["letters"]
    assert head_first["axial"] == ("R", "L", "P", "A")  # left, right, bottom, top
    assert head_first["sagittal"] == ("A", "P", "F", "H")
    angle = np.deg2rad(30)
    turned = np.array(
        [
            [0, 0, 1],
            [-np.sin(angle), np.cos(angle), 0],
            [np.cos(angle), np.sin(angle), 0],
        ]
    )
    oblique = explore_planes(volume_of(np.zeros((3, 3, 3)), direction=turned))
    assert oblique.geometry["letters"]["axial"][3] == "AF"


def test_a_large_scan_is_reduced_below_10_mb():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 60, (12, 1000, 999)).astype(np.int16)
    browser = explore_planes(
        volume_of(np.concatenate([noise] * 2)), np.ones((24, 1000, 999), bool)
    )
    assert len(browser.voxels) + len(browser.labels) < 10e6
    assert browser.geometry["shape"] == [24, 500, 500]
    assert browser.geometry["spacing"] == [5, 4, 2]
    # the first of the means lies between the first two voxels
    assert np.allclose(np.array(browser.geometry["affine"])[:3, 3], (10.5, 21, 30))
    assert "means of 2 x 2 voxels" in browser.note
    assert sent(browser, "labels").all()


def test_the_browser_opens_in_the_lung_window():
    browser = explore_planes(volume_of(np.zeros((2, 3, 4))))
    assert (browser.center, browser.width) == (-600, 1500)


def test_one_plane_and_one_column():
    assert explore_planes(volume_of(np.zeros((1, 9, 8)))).index == 0
    assert explore_planes(volume_of(np.zeros((4, 9, 1)))).geometry["shape"] == [4, 9, 1]


@pytest.mark.parametrize(
    ("volume", "labels", "message"),
    [
        (np.zeros((2, 2, 2)), None, "give a Volume"),
        (volume_of([[[np.nan, 0]], [[0, 0]]]), None, "plane 0 has 1 values .* NaN"),
        (volume_of([[[0, 0]], [[np.inf, 0.0]]]), None, "plane 1 has 1 values"),
        (
            volume_of(np.zeros((2, 2, 2))),
            np.zeros((2, 2, 3), int),
            r"\(2, 2, 3\), the volume is \(2, 2, 2\)",
        ),
        (
            volume_of(np.zeros((2, 2, 2))),
            np.full((2, 2, 2), 0.5),
            "whole numbers from 0 to 255, not float64",
        ),
        (volume_of(np.zeros((2, 2, 2))), np.full((2, 2, 2), 300), "300"),
    ],
)
def test_bad_input_is_refused(volume, labels, message):
    with pytest.raises(ValueError, match=message):
        explore_planes(volume, labels)
    with pytest.raises(ValueError, match=message):
        explore_mask(volume, truth=labels)


def test_the_saved_page_is_whole_and_asks_nobody(tmp_path):
    hu = np.full((3, 4, 5), 40, np.int16)
    browser = explore_planes(volume_of(hu), hu > 0)
    browser.save_html(tmp_path / "planes.html")
    page = (tmp_path / "planes.html").read_text("utf-8")
    assert not re.search(r"https?://", page) and "default-src 'none'" in page
    state = json.loads(re.search(r'id="state">(.*?)</script>', page)[1])
    assert state["geometry"] == json.loads(json.dumps(browser.geometry))
    assert "base64" in state["voxels"]


def test_the_histogram_counts_each_voxel_once():
    hu = np.array([[[-1100, -1081, -1080], [0, 19, 1599]]], np.int16)
    counts = explore_window(volume_of(hu)).counts
    assert sum(counts) == 6 and len(counts) == 135
    assert (counts[0], counts[1], counts[55], counts[-1]) == (2, 1, 2, 1)


def body():
    """A plane of 100 x 100 with two lungs of 30 x 25 voxels."""
    hu = np.full((2, 100, 100), -1000)
    hu[:, 10:90, 5:95] = 40
    hu[:, 30:60, 20:45] = hu[:, 30:60, 55:80] = -850
    hu[:, 0, 0] = 1000
    return hu


def test_a_rule_changes_the_verdict_the_code_and_the_dice():
    tuner = explore_mask(volume_of(body()), truth=body() == -850)
    kept = [region for region in tuner.answer["regions"] if region["kept"]]
    assert len(kept) == 2 and tuner.answer["dice"] > 0.6
    tuner.rules = {"top": 0.5}
    assert not any(region["kept"] for region in tuner.answer["regions"])
    assert tuner.answer["dice"] == 0
    missed = {region["missed_by_mm"] for region in tuner.answer["regions"]}
    # row 30 is eroded to 31 and dilated to 27; the rule says 50; a row is 2 mm
    assert 46 in missed
    assert 'rules = {"top": 0.5}' in tuner.answer["code"]


def test_each_plane_is_scored_by_its_own_truth():
    truth = body() == -850
    truth[0] = False
    tuner = explore_mask(volume_of(body()), truth=truth, index=0)
    assert tuner.answer["dice"] == 0
    tuner.index = 1
    assert tuner.answer["dice"] > 0.6


def test_the_code_gives_the_mask_that_is_shown():
    volume = volume_of(body())
    tuner = explore_mask(volume)
    for method, rules in (("2017", {"erosion": 5}), ("mended", {"closing_mm": 6})):
        tuner.rules, tuner.method = {}, method
        tuner.rules = rules
        scope = {"volume": volume}
        *setup, last = tuner.answer["code"].splitlines()
        exec("\n".join(setup), scope)
        pixels = np.frombuffer(zlib.decompress(tuner.stages), np.uint8)
        shown = pixels[:10_000].reshape(100, 100) & 4 > 0
        assert shown.any() and np.array_equal(eval(last, scope).mask, shown)


def test_one_move_is_computed_once(monkeypatch):
    calls = []
    mask, preset = METHODS["2017"]
    monkeypatch.setitem(
        METHODS,
        "2017",
        (lambda hu, **rest: calls.append(1) or mask(hu, **rest), preset),
    )
    tuner = explore_mask(volume_of(body()))
    assert len(calls) == 1
    with tuner.hold_trait_notifications():
        tuner.index, tuner.rules = 0, {"top": 0.1}
    assert len(calls) == 2


def test_the_scan_has_no_such_plane():
    with pytest.raises(ValueError, match="no plane 2: this scan has 2, 0 to 1"):
        explore_mask(volume_of(body()), index=2)


def test_every_rule_has_its_slider():
    script = (STATIC / "mask_tuner.js").read_text("utf-8")
    table = re.search(r"const SLIDERS = \{(.*?)\n\};", script, re.S)[1]
    sliders = {
        name: (float(low), float(high))
        for name, low, high in re.findall(
            r'(\w+): \["[^"]+", ([\d.]+), ([\d.]+)', table
        )
    }
    rules = {**METHODS["2017"][1], **METHODS["mended"][1]}
    assert sliders.keys() == rules.keys()
    for name, value in rules.items():
        assert sliders[name][0] <= value <= sliders[name][1]
