"""From notebook to page of the book, without Sphinx and LaTeX."""

import base64
import io
import sys
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import build_book as book


def make_png(width, height, margin):
    """Make a black picture on white paper."""
    image = Image.new("RGB", (width + 2 * margin, height + 2 * margin), "white")
    image.paste("black", (margin, margin, margin + width, margin + height))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def show(kind, data):
    """Make a cell that shows something."""
    return new_code_cell("show()", outputs=[new_output("display_data", {kind: data})])


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Lay a small notebook out without pictures of plotly; give its page."""
    picture = base64.b64encode(make_png(40, 20, margin=9)).decode()
    figure = go.Figure(go.Scatter(y=[1, 2])).to_plotly_json()
    head = "# 03 · Go\n\n[< 02](02_a.ipynb) | [contents](00_b.ipynb)\n\n"
    cells = [
        new_markdown_cell(head + "Loses 5 % of `5 %`."),
        new_markdown_cell("See [README](../README.md) and [04](04_c.ipynb)."),
        show("image/png", picture),
        show(book.PLOTLY, figure),
    ]
    path = tmp_path / "03_go.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    monkeypatch.setattr(book, "SOURCE", tmp_path / "out")
    (tmp_path / "out").mkdir()
    book.lay_out(path, pictures=False)
    return nbformat.read(tmp_path / "out" / path.name, as_version=4)


def test_prose_loses_its_navigation_and_keeps_numbers_with_their_units(page):
    assert page.cells[0].source == "# 03 · Go\n\nLoses 5\N{NO-BREAK SPACE}% of `5 %`."


def test_links_to_the_project_lead_to_its_repository(page):
    address = f"{book.REPOSITORY}README.md"
    assert page.cells[1].source == f"See [README]({address}) and [04](04_c.ipynb)."


def test_a_picture_loses_its_margin_and_knows_its_size(page):
    data = base64.b64decode(page.cells[2].outputs[0].data["image/png"])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (40, 20)
        assert image.info["dpi"] == pytest.approx((110, 110), abs=0.1)


def test_a_tall_picture_leaves_room_on_its_page():
    with Image.open(io.BytesIO(book.size_picture(make_png(100, 920, 0)))) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)  # 4.6 inches


def test_a_plotly_figure_becomes_a_script_that_loads_nothing(page):
    data = page.cells[3].outputs[0].data
    assert list(data) == ["text/html"]
    assert 'id="plotly-03-3"' in data["text/html"] and "src=" not in data["text/html"]
    assert "only} latex" in page.cells[4].source  # paper says that it stands still


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("Missing character: There is no ≤ in font FreeSerif", True),
        ("LaTeX Warning: Reference `x' on page 1 undefined on input line 3.", True),
        ("Overfull \\hbox (12.3pt too wide) in paragraph at lines 1--2", True),
        ("Overfull \\hbox (0.8pt too wide) in paragraph at lines 1--2", False),
        ("Package cmap Warning: pdftex not detected - exiting.", False),
    ],
)
def test_what_latex_complains_of(line, wrong):
    assert bool(book.WRONG.search(f"before\n{line}\nafter")) == wrong


def test_without_latex_the_site_is_built_and_one_line_says_what_to_install(
    monkeypatch, capsys
):
    ran = []
    monkeypatch.setattr(book, "lay_out_all", lambda pictures: ran.append(pictures))
    monkeypatch.setattr(book, "run", lambda *command, **_: ran.append(command))
    monkeypatch.setattr(book.shutil, "which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    monkeypatch.setenv("FORCE_SOURCE_DATE", "1")
    assert book.main(["--pdf"]) == 1
    assert ran[0] is False and len(ran) == 2 and "html" in ran[1]
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and "latexmk" in says and "apt-get install" in says
