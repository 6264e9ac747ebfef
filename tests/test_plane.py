"""The mended mask of one plane: pictures whose lungs are known to the voxel."""

import numpy as np
import pytest
from scipy import ndimage

from questlib.plane import _grow, _shrink, mask_plane

ROW, COLUMN = np.mgrid[:256, :256]
AIR, TISSUE, LUNG = -1000, 40, -850


def disk(row, column, height, width):
    """A full ellipse with these half axes."""
    return ((ROW - row) / height) ** 2 + ((COLUMN - column) / width) ** 2 < 1


RIGHT, LEFT = disk(128, 78, 55, 34), disk(128, 178, 55, 34)
BODY = disk(128, 128, 90, 115)


def chest(*extra):
    """A body with two lungs, then what (where, value) say."""
    hu = np.where(BODY, TISSUE, AIR)
    for where, value in ((RIGHT | LEFT, LUNG), *extra):
        hu[where] = value
    return hu


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def reasons(hu, **options):
    return {region.reason for region in mask_plane(hu, **options).regions}


def test_two_empty_lungs_are_found_to_the_voxel():
    assert np.array_equal(mask_plane(chest()).mask, RIGHT | LEFT)


def test_vessels_and_nodules_belong_to_the_lung():
    vessel, nodule = disk(120, 80, 3, 3), disk(140, 175, 12, 12)
    at_pleura = disk(128, 212, 3, 3)
    hu = chest((vessel | nodule | at_pleura, TISSUE))
    mask = mask_plane(hu).mask
    assert mask[vessel | nodule].all()
    assert dice(mask, RIGHT | LEFT) > 0.999


def test_a_hole_larger_than_a_mass_stays_a_hole():
    heart = disk(128, 178, 28, 20)  # 1759 mm2
    hu = chest((heart, TISSUE))
    assert not mask_plane(hu).mask[128, 178]
    assert mask_plane(hu, rules={"hole_mm2": 2000.0}).mask[128, 178]
    assert mask_plane(hu, spacing=(0.9, 0.9)).mask[128, 178]


def test_closing_does_not_join_the_lungs():
    near = disk(128, 96, 55, 30) | disk(128, 160, 55, 30)  # 3 voxels apart
    hu = np.where(near, LUNG, np.where(BODY, TISSUE, AIR))
    mask = mask_plane(hu).mask
    assert ndimage.label(mask)[1] == 2
    assert np.array_equal(mask, near)


def test_the_trachea_is_an_airway_and_bubbles_are_gas():
    trachea, stomach = disk(120, 128, 9, 9), disk(128, 206, 25, 12)
    hu = np.where(stomach, -995, chest((trachea, -990)))
    hu[disk(128, 178, 90, 60) & (COLUMN > 128) & ~stomach] = TISSUE
    hu[trachea] = -990
    result = mask_plane(hu)
    assert np.array_equal(result.mask, RIGHT & (hu == LUNG))
    assert {
        "an airway: round, central, dark",
        "gas: as dark as outside air",
    } <= reasons(hu)


def test_a_stomach_bubble_larger_than_the_lung_is_still_gas():
    lung, bubble = disk(170, 60, 12, 8), disk(90, 150, 20, 25)
    hu = np.where(BODY, TISSUE, AIR)
    hu[lung], hu[bubble] = LUNG, -998
    assert np.array_equal(mask_plane(hu).mask, lung)


def test_a_small_bubble_with_a_blurred_border_is_gas():
    bubble = disk(205, 128, 10, 10)
    hu = chest((bubble, -900), (disk(205, 128, 6.5, 6.5), -998))
    assert np.array_equal(mask_plane(hu, rules={"airway_mm2": 0}).mask, RIGHT | LEFT)


def test_two_dark_lungs_with_emphysema_stay():
    hu = np.where(RIGHT | LEFT, -960, chest())
    assert np.array_equal(mask_plane(hu).mask, RIGHT | LEFT)


def test_a_thin_table_does_not_make_a_lung_of_the_air_above_it():
    across = (abs(ROW - 223) < 2) & (abs(COLUMN - 128) <= 100)
    up = (abs(abs(COLUMN - 128) - 100) < 2) & (ROW > 128) & (ROW < 224)
    hu = chest(((across | up) & ~BODY, -100))
    hu += np.random.default_rng(0).integers(-20, 21, hu.shape)
    assert "air outside the body" in reasons(hu)
    assert np.array_equal(mask_plane(hu).mask, RIGHT | LEFT)


def test_foam_under_a_sheet_is_outside_in_large_voxels_too():
    """Sheet and foam are 2 mm each: the body wall (2.5 mm) must not grow over them."""
    hu = np.full((100, 100), AIR)
    hu[10:90, 5:95] = hu[90:92, 19:81] = TISSUE
    hu[90, 20:80] = -900  # 240 mm2, enclosed, less dark than air
    hu[50:85, 20:45] = hu[50:85, 55:80] = LUNG
    result = mask_plane(hu, spacing=(2, 2))
    assert [r.reason for r in result.regions if r.top == 90] == ["air outside the body"]
    assert np.array_equal(result.mask, hu == LUNG)


@pytest.mark.parametrize("shift", [-200, 200, 1024])
def test_a_shift_changes_no_voxel(shift):
    hu = chest((disk(120, 80, 3, 3), 0))
    noisy = hu + np.random.default_rng(0).integers(-40, 41, hu.shape)
    expected = mask_plane(noisy).mask
    assert np.array_equal(mask_plane(noisy + shift).mask, expected)
    assert dice(expected, RIGHT | LEFT) > 0.999


@pytest.mark.parametrize("kind", ["tenth", "bytes", "unsigned", "float"])
def test_the_units_do_not_matter(kind):
    noise = np.random.default_rng(0).integers(-20, 21, BODY.shape)
    hu = chest((disk(128, 128, 20, 8), 700)) + noise
    other = {
        "tenth": hu * 0.1 + 7,
        "bytes": (np.clip((hu + 1000) / 1400, 0, 1) * 255).astype(np.uint8),
        "unsigned": (hu + 2000).astype(np.uint16),
        "float": hu.astype(np.float32),
    }[kind]
    assert np.array_equal(mask_plane(other).mask, RIGHT | LEFT)


@pytest.mark.parametrize("value", [0, -2000, -3024])
@pytest.mark.parametrize("radius", [128, 118])
def test_padding_of_any_value_around_the_circle_is_not_looked_at(value, radius):
    hu = np.where(disk(127.5, 127.5, radius, radius), chest(), value)
    assert np.array_equal(mask_plane(hu).mask, RIGHT | LEFT)


def test_air_below_the_table_ends_at_padding_and_is_no_lung():
    hu = chest()
    hu[ROW > 225] = -900  # foam between the padding left and right
    hu[ROW > 245] = TISSUE  # the shell of the table
    hu = np.where(disk(127.5, 127.5, 126, 126), hu, -2000)
    assert np.array_equal(mask_plane(hu).mask, RIGHT | LEFT)


def test_a_field_of_view_within_the_body_keeps_its_lungs():
    seen = disk(127.5, 127.5, 85, 85)
    hu = np.where(seen, chest(), -2000)
    assert np.array_equal(mask_plane(hu).mask, (RIGHT | LEFT) & seen)


def test_a_small_lung_counts_where_no_other_air_is_in_view():
    lung = disk(128, 78, 20, 10)  # 2 % of what is seen
    noise = np.random.default_rng(0).normal(0, 60, BODY.shape)
    hu = np.where(lung, LUNG, np.where(ROW < 50, -100, TISSUE)) + noise
    assert dice(mask_plane(hu).mask, lung) > 0.98


@pytest.mark.parametrize("hu", [np.where(BODY, TISSUE, AIR), np.full((64, 64), 40)])
def test_a_plane_without_lungs_gives_an_empty_mask(hu):
    assert not mask_plane(hu).mask.any()


def test_noise_alone_gives_an_empty_mask():
    noise = np.random.default_rng(0).normal(0, 50, (128, 128))
    assert not mask_plane(noise).mask.any()


def test_lengths_are_in_millimeters_along_each_axis():
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    row, column = np.nonzero(_grow(mask, 6.0, (2.0, 1.0)))
    assert np.ptp(row) == 6 and np.ptp(column) == 12  # twice 3 rows, 6 columns


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.7), (2.0, 0.8)])
@pytest.mark.parametrize("radius", [0, 2.5, 4.1, 100])
def test_the_disk_agrees_with_a_distance_transform(radius, spacing):
    mask = np.random.default_rng(3).random((30, 25)) < 0.03
    away = ndimage.distance_transform_edt(~mask, sampling=spacing)
    assert np.array_equal(_grow(mask, radius, spacing), away <= radius)
    assert np.array_equal(_shrink(~mask, radius, spacing), away > radius)


@pytest.mark.parametrize("wrong", [np.zeros((3, 9, 9)), np.zeros((2, 9))])
def test_what_is_no_plane_is_refused(wrong):
    with pytest.raises(ValueError, match="a plane is"):
        mask_plane(wrong)


def test_values_that_are_not_finite_are_refused():
    hu = chest().astype(float)
    hu[5, 5] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        mask_plane(hu)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'closing'"):
        mask_plane(chest(), rules={"closing": 3})


def test_areas_are_square_millimeters():
    """35 x 25 voxels of 0.5 x 0.8 mm are 350 mm2."""
    hu = np.full((100, 100), -1000)
    hu[10:90, 5:95] = 40
    hu[50:85, 20:45] = hu[50:85, 55:80] = -850
    regions = mask_plane(hu, spacing=(0.5, 0.8)).regions
    assert [region.area_mm2 for region in regions if region.kept] == [350, 350]
