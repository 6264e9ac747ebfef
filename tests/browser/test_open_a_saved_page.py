"""The plane browser in a page of its own, without Jupyter and without a network."""

import re

import numpy as np

from questlib.volume import AXIAL, Volume
from questlib.widgets import explore_planes


def test_a_saved_page_moves_without_a_kernel(page, drag, shoot, tmp_path):
    hu = np.full((10, 64, 64), -1000)
    hu[:, 8:56, 8:56] = np.arange(-100, 100, 20)[:, None, None]  # plane 5 is water
    hu[5, 20, 40] = 300
    volume = Volume(hu, (5, 2, 2), (-64, -64, 100), AXIAL)
    explore_planes(volume, hu == 300).save_html(tmp_path / "planes.html")
    page.goto((tmp_path / "planes.html").as_uri())
    widget = page.get_by_role("group", name="Plane browser")
    where, pointed = widget.locator(".quest-where"), widget.locator(".quest-pointed")
    canvas = widget.locator("canvas").first
    canvas.wait_for()
    assert where.inner_text() == "axial, plane 5 (0–9), z = 125.0 mm"

    def point(row, column, rows=64, columns=64):
        box = canvas.bounding_box()
        page.mouse.move(
            box["x"] + (column + 0.5) / columns * box["width"],
            box["y"] + (row + 0.5) / rows * box["height"],
        )
        return pointed.inner_text()

    assert point(20, 40) == "300 HU at LPS 16.0, -24.0, 125.0 mm · mask"
    assert point(20, 41) == "0 HU at LPS 18.0, -24.0, 125.0 mm"
    assert point(0, 0) == "≤ -1000 HU at LPS -64.0, -64.0, 125.0 mm"
    point(30, 30)
    page.mouse.wheel(0, 100)
    assert pointed.inner_text().startswith("20 HU")
    canvas.press("Home")
    assert where.inner_text() == "axial, plane 0 (0–9), z = 100.0 mm"
    drag(widget.get_by_label("axial plane"), 1.0)
    assert where.inner_text() == "axial, plane 9 (0–9), z = 145.0 mm"

    widget.get_by_role("button", name="coronal").click()
    assert re.match("coronal, row 32 .* y = 0.0 mm", where.inner_text())
    drag(widget.get_by_label("coronal plane"), 0.3)
    number = int(re.search(r"row (\d+)", where.inner_text())[1])
    # the head is up: the last plane is in the first line
    assert point(0, 40, rows=10).startswith(f"80 HU at LPS 16.0, {2 * number - 64:.1f}")
    letters = [widget.locator(f".quest-{side}") for side in ("left", "right", "top")]
    assert [letter.inner_text() for letter in letters] == ["R", "L", "H"]
    shoot("saved_page", page)
