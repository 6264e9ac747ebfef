"""The way from source to notebook: the same bytes twice, and drift is seen."""

import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import build_notebooks as builder

FIRST = """# %% [markdown]
# # 00 · Begin

# %% [markdown] tags=["patient"]
# A sentence.

# %% tags=["cover"]
import matplotlib.pyplot as plt

plt.imshow([[0, 1], [2, 3]], cmap="gray")
plt.show()

# %% [markdown]
# Prints arrive in pieces; sets depend on the hash seed.

# %%
for word in {"lung", "bone", "air"}:
    print(word, flush=True)

# %%
for word in {"lung", "bone", "air"}:
    print(word, flush=True)

# %% tags=["nbval-ignore-output"]
from ipywidgets import IntSlider

IntSlider()

# %% tags=["raises-exception"]
Path = __import__("pathlib").Path
Path("/nowhere/at/all").read_bytes()
"""
SECOND = "# %% [markdown]\n# # 01 · Go on\n\n# %%\n1 + 1\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build two small notebooks; give the first source and its notebook's bytes."""
    folder = tmp_path_factory.mktemp("project") / "notebooks"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "00_begin.py").write_text(FIRST, encoding="utf-8")
    (folder / "src" / "01_go_on.py").write_text(SECOND, encoding="utf-8")
    sources = builder.find_sources(folder)
    for source in sources:
        builder.build(source)
    return sources[0], builder.built_path(sources[0]).read_bytes()


def test_second_build_gives_the_same_bytes(built):
    source, first = built
    builder.build(source)
    assert builder.built_path(source).read_bytes() == first


def test_only_what_lasts_is_stored(built):
    notebook = nbformat.reads(built[1].decode(), as_version=4)
    assert list(notebook.metadata) == ["kernelspec"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert len(code[1].outputs) == 1, "pieces of one stream are joined"
    assert code[3].outputs == [], "a widget's view dies with its kernel"
    assert code[4].outputs[0].ename == "FileNotFoundError"
    assert "pathlib.py" not in str(code[4].outputs[0].traceback)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_navigation_and_cover(built):
    source, data = built
    title = nbformat.reads(data.decode(), as_version=4).cells[0].source
    assert title == (
        "# 00 · Begin\n\n[contents](00_start_here.ipynb) | [01 Go on >](01_go_on.ipynb)"
    )
    picture = source.parent.parent / "images" / "00_begin.png"
    with Image.open(picture) as image:
        assert image.mode == "L" and image.info == {}


def test_a_change_is_seen_until_it_is_built(built):
    source, _ = built
    assert builder.compare(source) == []
    source.write_text(FIRST.replace("A sentence.", "Another."), encoding="utf-8")
    assert builder.compare(source) == ["differs from its source from cell 1 on"]
    builder.build_prose(source)
    assert builder.compare(source) == []
    source.write_text(FIRST.replace('"gray"', '"bone"'), encoding="utf-8")
    with pytest.raises(ValueError, match="code cell changed"):
        builder.build_prose(source)
    source.write_text(FIRST, encoding="utf-8")
    builder.build_prose(source)
    assert builder.built_path(source).read_bytes() == built[1]


def test_cleared_outputs_and_a_missing_notebook_are_seen(built):
    source, data = built
    path = builder.built_path(source)
    notebook = nbformat.reads(data.decode(), as_version=4)
    notebook.cells[-1].execution_count = None
    nbformat.write(notebook, path)
    assert builder.compare(source) == ["was not stored from one run, top to bottom"]
    path.unlink()
    assert builder.compare(source) == ["is not built"]
    path.write_bytes(data)


def test_back_to_the_source(built):
    source, _ = built
    builder.write_back(source)
    assert source.read_text("utf-8") == FIRST


@pytest.mark.parametrize(
    ("colors", "mode", "worst"),
    [("gray", "L", 0), ("few", "P", 0), ("lines on gray", "P", 3), ("many", "RGB", 0)],
)
def test_pictures_shrink_without_a_visible_change(colors, mode, worst):
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if colors == "few":
        values = values // 64 * 64
    elif colors != "many":
        values[:] = values[..., :1]
    if colors == "lines on gray":
        values[::16] = (255, 255, 0)
    data = io.BytesIO()
    Image.fromarray(values).convert("RGBA").save(data, "PNG", dpi=(80, 80))
    small = builder.shrink_png(data.getvalue())
    with Image.open(io.BytesIO(small)) as image:
        assert image.mode == mode
        found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - values).max() <= worst


def test_a_plotly_figure_is_stored_once():
    data = {"text/html": "<script>", "application/vnd.plotly.v1+json": {}}
    pixel = base64.b64encode(builder.shrink_png(png())).decode()
    output = nbformat.v4.new_output("display_data", data | {"image/png": pixel})
    kept = builder.clean_outputs([output])[0].data
    assert set(kept) == {"application/vnd.plotly.v1+json", "image/png"}


def png():
    """Give a picture of one pixel."""
    data = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(data, "PNG")
    return data.getvalue()
