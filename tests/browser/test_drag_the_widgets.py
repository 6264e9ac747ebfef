"""The widgets, dragged with the mouse in a real JupyterLab and in a saved page."""

import re
from statistics import median

import nbformat
import pytest

CELLS = (
    """\
import questlib as q
small = q.make_phantom(shape=(40, 128, 128), spacing=(7.5, 2.8, 2.8))
array, truth = (a.repeat(4, 1).repeat(4, 2) for a in (small.volume.array, small.truth))
volume = q.Volume(array, (7.5, 0.7, 0.7), small.volume.origin, small.volume.direction)
q.explore_planes(volume, truth)""",
    """\
tuner = q.explore_mask(volume, truth=truth)
answers = []
tuner.observe(lambda change: answers.append(change.new), "answer")
tuner""",
    "q.explore_window(volume)",
)
HASH = """(canvas) => {
  const [wide, high] = [canvas.width, canvas.height];
  const { data } = canvas.getContext("2d").getImageData(0, 0, wide, high);
  let hash = 0;
  for (let at = 0; at < data.length; at += 4) hash = (hash * 31 + data[at]) | 0;
  return hash;
}"""
# From a user's event (by its own clock) to the first frame that shows another picture.
STOPWATCH = (
    """(canvas) => {
  const hash = """
    + HASH
    + """;
  let last = hash(canvas), since = null;
  window.laps = [];
  addEventListener("input", (event) => { since ??= event.timeStamp; }, true);
  const frame = () => {
    const now = hash(canvas);
    if (now !== last && since !== null) {
      window.laps.push(performance.now() - since);
      since = null;
    }
    last = now;
    requestAnimationFrame(frame);
  };
  frame();
}"""
)


@pytest.fixture(scope="module")
def notebook(lab):
    """Run a notebook with the three widgets; give its page."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, lab.folder / "scratch.ipynb")
    cells = lab.run("scratch.ipynb")
    errors = [out for cell in cells for out in cell["outputs"] if "ename" in out]
    assert not errors, errors
    yield lab.page
    lab.close()


def test_drag_the_planes(notebook, drag, shoot, latencies):
    page = notebook
    widget = page.get_by_role("group", name="Plane browser").first
    canvas = widget.locator("canvas").first
    where = widget.locator(".quest-where")
    before = canvas.evaluate(HASH)
    assert where.inner_text().startswith("axial, plane 20 (0–39), z = ")

    canvas.evaluate(STOPWATCH)
    plane = widget.get_by_label("axial plane")
    drag(plane, 0.9, steps=30)
    drag(plane, 0.1, steps=30)
    drag(plane, 0.8, steps=30)
    assert canvas.evaluate(HASH) != before
    number = int(re.search(r"plane (\d+)", where.inner_text())[1])
    assert 29 <= number <= 33
    laps = page.evaluate("window.laps")
    assert len(laps) > 20
    latencies["explore_planes, 512 x 512 and labels: slider to pixel"] = median(laps)

    drag(widget.get_by_label("Overlay opacity"), 0.0)
    plain = canvas.evaluate(HASH)
    drag(widget.get_by_label("Overlay opacity"), 0.9)
    assert canvas.evaluate(HASH) != plain
    drag(widget.get_by_label("Overlay opacity"), 0.3)
    shoot("planes_axial", widget)

    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 250)
    page.mouse.wheel(0, 120)
    assert f"plane {number + 1} " in where.inner_text()
    assert re.match(
        r".*-?\d+ HU at LPS .* mm", widget.locator(".quest-pointed").inner_text()
    )
    page.keyboard.press("Tab")
    canvas.focus()
    page.keyboard.press("ArrowDown")
    assert f"plane {number} " in where.inner_text()

    window = widget.locator(".quest-level")
    page.mouse.move(box["x"] + 200, box["y"] + 250)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 150, box["y"] + 300, steps=5)
    page.mouse.up(button="right")
    assert "black at -1150, white at 149" in window.inner_text()  # 100 up, 200 narrower
    widget.get_by_role("button", name="mediastinum").click()
    assert "black at -160, white at 239" in window.inner_text()

    for view, name in (("coronal", "row"), ("sagittal", "column")):
        widget.get_by_role("button", name=view).click()
        before = canvas.evaluate(HASH)
        drag(widget.get_by_label(f"{view} plane"), 0.4)
        assert f"{view}, {name} 20" in where.inner_text()  # 0.4 of 511, about 204
        assert canvas.evaluate(HASH) != before
        shoot(f"planes_{view}", widget)


def test_drag_the_rules(notebook, drag, shoot, latencies):
    page = notebook
    widget = page.get_by_role("group", name="Mask tuner")
    verdict, table = widget.locator(".quest-verdict"), widget.locator("tbody")
    widget.scroll_into_view_if_needed()
    shoot("mask_2017", widget)

    def settle():
        page.wait_for_timeout(600)
        return verdict.inner_text(), table.inner_text()

    first = settle()
    assert re.search(r"Dice 0\.\d{3}", first[0])
    top = widget.get_by_role("slider", name="top not above")
    drag(top, 0.95)  # 57 % of the rows: no lung begins so low
    second = settle()
    assert second[0].startswith("0 of") and "Dice 0.000" in second[0]
    assert "top above 57% of the rows" in second[1]
    asked = top.evaluate("(s) => Number(s.value)")
    assert f'"top": {asked:g}' in widget.get_by_label("code").input_value()
    shoot("mask_dropped", widget)

    widget.get_by_role("button", name="mended").click()
    third = settle()
    assert float(re.search(r"Dice (0\.\d{3})", third[0])[1]) > 0.97
    shoot("mask_mended", widget)
    widget.get_by_role("button", name="2017").click()
    assert settle() == first

    widget.get_by_role("button", name="Copy as code").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from questlib import mask_plane_2017")

    code = widget.get_by_label("code")
    for preset in ("mended", "2017"):
        widget.get_by_role("button", name=preset).click()
        settle()
        _, *rules = widget.get_by_role("slider").all()  # the first one is the plane
        assert len(rules) == 7
        for rule in rules:
            before = code.input_value()
            drag(rule, 0.62)
            settle()
            assert code.input_value() != before, rule.get_attribute("aria-label")

    regions = widget.get_by_role("img", name="regions")
    regions.evaluate(STOPWATCH)
    for name in ("height less than", "top not above", "erosion", "dilation"):
        slider = widget.get_by_role("slider", name=name, exact=True)
        slider.focus()
        for key in ["ArrowLeft"] * 6:
            page.keyboard.press(key)
            page.wait_for_timeout(350)
    laps = page.evaluate("window.laps")
    assert len(laps) > 8
    latencies["explore_mask, 512 x 512: key to picture, through Python"] = median(laps)
