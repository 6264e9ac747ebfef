"""Every notebook, run from top to bottom in a real JupyterLab."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PAINTED = """(canvas) => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const brush = copy.getContext("2d");
  brush.drawImage(canvas, 0, 0);
  const { data } = brush.getImageData(0, 0, copy.width, copy.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_cells(lab, page, path):
    cells = [c for c in lab.run(page, path.name) if c["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    for cell in cells:
        names = [output["ename"] for output in cell["outputs"] if "ename" in output]
        expected = "raises-exception" in cell["metadata"].get("tags", [])
        assert bool(names) == expected, "".join(cell["source"])
    lab.close(page)
