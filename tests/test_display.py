"""What is drawn: the data, their place in mm, letters, windows; never pixels."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from questlib.display import (
    VIEWS,
    apply_window,
    cut_plane,
    edge_letters,
    show_histogram,
    show_montage,
    show_pair,
    show_plane,
    show_stages,
    show_three_planes,
    use_style,
)
from questlib.volume import AXIAL, Volume


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def chest():
    """An axial scan of 4 x 6 x 8 voxels; each voxel's value tells where it is."""
    plane, row, column = np.indices((4, 6, 8))
    array = (100 * plane + 10 * row + column).astype(np.int16)
    return Volume(array, (5, 2, 1), (-3, 20, 100), AXIAL)


def reordered(volume, axes, flips):
    """The same voxels at the same places, stored in another order."""
    array, direction = volume.array, volume.direction.copy()
    origin = np.array(volume.origin)
    for axis in flips:
        origin += volume.affine[:3, axis] * (array.shape[axis] - 1)
        direction[:, axis] *= -1
        array = np.flip(array, axis)
    spacing = [volume.spacing[axis] for axis in axes]
    return Volume(array.transpose(axes), spacing, origin, direction[:, axes])


STORED = {
    "axial": ((0, 1, 2), ()),
    "feet first, prone": ((0, 1, 2), (0, 1)),
    "descending": ((0, 1, 2), (0,)),
    "coronal": ((1, 0, 2), (1,)),
    "sagittal": ((2, 0, 1), (0, 2)),
    "mirrored": ((2, 1, 0), (1,)),
}
EXPECTED = {
    "axial": ((-3.5, 4.5, 31, 19), ("R", "L", "P", "A")),
    "coronal": ((-3.5, 4.5, 97.5, 117.5), ("R", "L", "F", "H")),
    "sagittal": ((19, 31, 97.5, 117.5), ("A", "P", "F", "H")),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_the_same_patient_however_it_is_stored(view, stored):
    index = {"axial": 1, "coronal": 2, "sagittal": 3}
    picture = {
        "axial": chest().array[1],
        "coronal": chest().array[::-1, 2],
        "sagittal": chest().array[::-1, :, 3],
    }
    axes, flips = STORED[stored]
    lps = {"axial": 0, "coronal": 1, "sagittal": 2}[view]
    at = chest().shape[lps] - 1 - index[view] if lps in flips else index[view]
    cut = cut_plane(reordered(chest(), list(axes), flips), at, view=view)
    extent, letters = EXPECTED[view]
    np.testing.assert_array_equal(cut.plane, picture[view])
    np.testing.assert_allclose(cut.extent, extent)
    assert cut.letters == letters
    assert cut.position == f"{'zyx'[lps]} = {(105.0, 24.0, 0.0)[lps]:.1f} mm"


def test_letters_of_an_oblique_scan_name_both_directions():
    cos, sin = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    tilted = np.array([[0, 0, 1], [-sin, cos, 0], [cos, sin, 0]])
    cut = cut_plane(replace(chest(), direction=tilted))
    assert cut.letters == ("R", "L", "PH", "AF")
    assert cut.position.startswith("at ")
    assert edge_letters(np.array([0.97, -0.24, 0])) == "L"


def test_a_plane_is_drawn_untouched_in_mm_and_in_its_window():
    ax = show_plane(chest(), 3, window="mediastinum")
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), chest().array[3])
    assert image.get_clim() == (-160, 239)  # 40 - 400 / 2, 40 + 400 / 2 - 1
    np.testing.assert_allclose(image.get_extent(), (-3.5, 4.5, 31, 19))
    assert ax.get_aspect() == 1  # mm are even, voxels need not be
    assert ax.get_title() == "axial plane 3, z = 115.0 mm"
    assert ax.get_xlabel() == "x, to the left (mm)"
    texts = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(texts) == {"R", "L", "A", "P", "2 mm"}
    assert texts["R"][0] < 0.1
    assert texts["L"][0] > 0.9
    assert texts["A"][1] > 0.9


def test_the_scale_bar_is_as_long_as_it_says():
    volume = Volume(np.zeros((9, 30, 40)), (5, 10, 10), (0, 0, 0), AXIAL)
    for view, length in (("axial", 100), ("coronal", 100)):
        ax = show_plane(volume, view=view)
        assert np.ptp(ax.lines[0].get_xdata()) == length
        assert f"{length} mm" in {text.get_text() for text in ax.texts}


def test_windows_follow_the_standard():
    hu = np.array([[-161, -160, 39, 40, 239, 240]], np.int16)
    gray = apply_window(hu, 40, 400)  # y = ((x - 39.5) / 399 + 0.5) * 255
    np.testing.assert_array_equal(gray, [[0, 0, 127, 128, 255, 255]])
    assert gray.dtype == np.uint8
    np.testing.assert_array_equal(apply_window(np.array([39, 40]), 40, 1), [0, 255])
    with pytest.raises(ValueError, match="1 HU or more"):
        apply_window(hu, 40, 0.5)
    with pytest.raises(ValueError, match="1 values are not numbers"):
        apply_window(np.array([np.nan]), 40, 400)
    with pytest.raises(ValueError, match="no window 'lungs'"):
        show_plane(chest(), window="lungs")


def test_labels_have_their_colors_names_and_place():
    labels = np.zeros(chest().shape, np.uint8)
    labels[1, 1:3, 0:2], labels[1, 1:3, 5:7] = 1, 2
    ax = show_plane(chest(), 1, labels=labels, overlay="both")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["right lung", "left lung"]
    right = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(right.min(0), [-3.5, 21])  # half way to the neighbors
    np.testing.assert_allclose(right.max(0), [-1.5, 25])
    shown = ax.images[2].get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), labels[1] == 2)
    colors = {tuple(c.get_edgecolor()[0].round(2)) for c in ax.collections}
    assert len(colors) == 2
    assert show_plane(chest(), 0, labels=labels).get_legend() is None
    mask = show_plane(chest(), 1, labels=labels > 0)
    assert [text.get_text() for text in mask.get_legend().get_texts()] == ["mask"]


def test_three_planes_meet_in_one_voxel():
    axes = show_three_planes(chest(), (1, 2, 3))
    drawn = [ax.images[0].get_array() for ax in axes]
    np.testing.assert_array_equal(drawn[0], chest().array[1])
    np.testing.assert_array_equal(drawn[1], chest().array[::-1, 2])
    np.testing.assert_array_equal(drawn[2], chest().array[::-1, :, 3])
    lines = [[line for line in ax.lines if len(line.get_xdata()) == 2] for ax in axes]
    cross = [
        (vertical.get_xdata()[0], level.get_ydata()[0]) for _, vertical, level in lines
    ]
    np.testing.assert_allclose(cross, [(0, 24), (0, 105), (24, 105)])


def test_a_montage_goes_from_head_to_feet_with_the_place_of_each_plane():
    for volume in (chest(), reordered(chest(), [0, 1, 2], (0,))):
        axes = show_montage(volume, count=3)
        places = [ax.get_title().split(", ")[1] for ax in axes]
        assert places[0] == "z = 115.0 mm"
        assert places[-1] == "z = 100.0 mm"
        np.testing.assert_array_equal(axes[0].images[0].get_array(), chest().array[3])
    assert len(show_montage(chest(), count=99)) == 4


def test_a_pair_shows_one_place_in_two_grids():
    thin = Volume(
        np.arange(9)[:, None, None] * np.ones((9, 6, 8)), (1, 2, 2), (0, 0, 0), AXIAL
    )
    thick = replace(thin, array=thin.array[::4], spacing=(4, 2, 2))
    flipped = reordered(thick, [0, 1, 2], (0,))
    for after in (thick, flipped):
        left, right = show_pair(thin, after, 7)
        assert left.images[0].get_array().max() == 7
        assert right.images[0].get_array().max() == 8  # z = 8 mm is nearest to 7 mm
    one = replace(thin, array=thin.array[:1])
    assert len(show_pair(thin, one, 7)) == 2


def test_one_plane_and_uneven_voxels_keep_their_shape():
    one = Volume(np.zeros((1, 6, 8), np.int16), (5, 2, 1), (0, 0, 0), AXIAL)
    coronal = show_three_planes(one)[1].images[0]
    left, right, bottom, top = coronal.get_extent()
    assert (right - left, top - bottom) == (8, 5)
    assert len(show_montage(one)) == 1


def test_the_histogram_counts_whole_bins_and_says_what_it_leaves_out():
    hu = np.array([[-1005, -1000, -991, -2000, 40, 49, 50, 1500]], np.int16)
    ax = show_histogram(hu)
    counts, edges, _ = ax.patches[-1].get_data()
    found = dict(zip(edges[:-1] + 0.5, counts, strict=True))
    assert (found[-1010], found[-1000], found[40], found[50]) == (1, 2, 2, 1)
    assert ax.get_ylabel() == "voxels in each 10 HU bin (log scale)"
    assert "25.00 % of the voxels" in ax.get_xlabel()  # 2 of 8
    assert ax.get_yscale() == "log"
    assert show_histogram(hu, log=False).get_ylim()[0] == 0
    with pytest.raises(ValueError, match="finer than the values"):
        show_histogram(hu, bin_width=0.5)


def test_stages_show_six_panels_and_the_fate_of_each_region():
    labels = np.zeros((6, 8), int)
    labels[1:3, 1:4], labels[4:6, 2:8] = 1, 2
    names = ("original", "threshold", "cleaned", "regions", "mask", "applied")
    stages = dict.fromkeys(names, np.zeros((6, 8))) | {"regions": labels}
    box = {"top": 1, "bottom": 3, "left": 1, "right": 4}
    kept = SimpleNamespace(label=1, kept=True, **box)
    dropped = SimpleNamespace(label=2, kept=False, **(box | {"bottom": 6}))
    plane_mask = SimpleNamespace(stages=stages, regions=[kept, dropped])
    axes = show_stages(plane_mask, spacing=(2, 1))
    assert [ax.get_title() for ax in axes][::5] == ["1 original", "6 applied"]
    assert all(ax.get_aspect() == 2 for ax in axes)
    assert axes[0].images[0].get_clim() == (-1350, 149)
    colors = axes[3].images[0].get_array()
    assert np.ptp(colors[1, 1]) > 0.3  # kept: a color
    assert np.ptp(colors[4, 2]) == 0  # dropped: gray
    first, second = axes[3].patches
    assert (first.get_xy(), first.get_width(), first.get_height()) == ((0.5, 0.5), 3, 2)
    assert first.get_linestyle() != second.get_linestyle()


@pytest.mark.parametrize("show", [show_plane, show_montage, show_three_planes])
def test_bad_input_is_named(show):
    holes = replace(chest(), array=np.full((4, 6, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="values are not numbers"):
        show(holes)
    with pytest.raises(ValueError, match=r"labels are \(4, 6, 7\)"):
        show(chest(), labels=np.zeros((4, 6, 7)))


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="no axial plane 4: this scan has 4, 0 to 3"):
        show_plane(chest(), 4)
    with pytest.raises(ValueError, match="axial, coronal, sagittal"):
        show_plane(chest(), view="frontal")
    with pytest.raises(ValueError, match="give a Volume"):
        show_plane(chest().array)
    with pytest.raises(ValueError, match="contour, color or both"):
        show_plane(chest(), labels=chest().array, overlay="fill")
    assert plt.get_fignums() == []


def test_every_drawing_takes_the_axes_it_is_given():
    axes = plt.subplots(1, 6)[1]
    assert show_plane(chest(), ax=axes[0]) is axes[0]
    assert show_histogram(chest(), ax=axes[1]) is axes[1]
    assert show_three_planes(chest(), axes=axes[:3])[2] is axes[2]
    assert show_pair(chest(), chest(), axes=axes[4:])[1] is axes[5]


def test_the_style_leaves_data_alone():
    use_style()
    assert plt.rcParams["figure.dpi"] == plt.rcParams["savefig.dpi"] == 80
    ax = show_plane(chest())
    assert ax.images[0].get_interpolation() == "none"
    np.testing.assert_array_equal(ax.images[0].get_array(), chest().array[2])
