"""Every notebook, run from top to bottom in a real JupyterLab."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def see_surface(page, drag, shoot):
    """The surface that plotly drew is there, and turns under the mouse."""
    plot = page.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    plot.locator("canvas").first.wait_for(timeout=30_000)
    page.wait_for_timeout(2000)
    shoot("surface", plot)
    front = colors(plot)
    assert len(front) > 100
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 210, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    assert colors(plot) != front


def colors(element):
    """How often each color occurs in what the browser shows."""
    picture = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
    return dict(picture.getcolors(1 << 24))


def drag_planes(page, drag, shoot):
    widget = page.get_by_role("group", name="Plane browser").first
    where = widget.locator(".quest-where")
    canvas = widget.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    shown = where.inner_text(), colors(canvas)
    drag(widget.locator("input[type=range]").first, 0.8)
    page.wait_for_timeout(200)
    assert where.inner_text() != shown[0] and colors(canvas) != shown[1]
    shoot("notebook_06", widget)


def drag_window(page, drag, shoot):
    widget = page.get_by_role("group", name="Plane browser").first
    level = widget.locator(".quest-level")
    canvas = widget.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    for name in ("Window center in HU", "Window width in HU"):
        shown = level.inner_text(), colors(canvas)
        drag(widget.get_by_label(name), 0.5)
        page.wait_for_timeout(200)
        assert level.inner_text() != shown[0] and colors(canvas) != shown[1]
    shoot("notebook_03", widget)


def drag_rules(page, drag, shoot):
    widget = page.get_by_role("group", name="Mask tuner").first
    verdict, table = widget.locator(".quest-verdict"), widget.locator("tbody")
    widget.scroll_into_view_if_needed()
    before = table.inner_text()
    shoot("notebook_08", widget)
    drag(widget.get_by_role("slider", name="top not above"), 0.98)
    expect(verdict).to_have_text(re.compile("^0 of"))
    assert table.inner_text() != before


LOOK = {
    "explore_window(": drag_window,
    "explore_planes(": drag_planes,
    "explore_surface(": see_surface,
    "explore_mask(": drag_rules,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_cells(lab, drag, shoot, path):
    cells = [cell for cell in lab.run(path.name) if cell["cell_type"] == "code"]
    for cell in cells:
        names = [output["ename"] for output in cell["outputs"] if "ename" in output]
        expected = "raises-exception" in cell["metadata"].get("tags", [])
        assert bool(names) == expected, (names, "".join(cell["source"]))
    unrun = [cell["source"] for cell in cells if not cell["execution_count"]]
    assert not unrun, unrun
    code = "".join(cell["source"] for cell in cells)
    for name, look in LOOK.items():
        if name in code:
            look(lab.page, drag, shoot)
    lab.close()
