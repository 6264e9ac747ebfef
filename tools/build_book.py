"""Make the book from the built notebooks: an HTML site and one PDF, without a network.

    python tools/build_book.py            build/book/html/index.html
    python tools/build_book.py --pdf      build/book/dicom-quest.pdf as well

The pages are the notebooks. Only what a book has by other means is changed: the
navigation line goes, links to files of the project go to its repository, and a plotly
figure becomes a script for HTML and a picture for the PDF.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import plotly
import plotly.io
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_notebooks import FOLDER, NAVIGATION

ROOT = FOLDER.parent
BOOK = ROOT / "build" / "book"
SOURCE = BOOK / "source"
REPOSITORY = "https://github.com/dicom-quest/dicom-quest/blob/HEAD/"
PLOTLY = "application/vnd.plotly.v1+json"


def draw(figure, number):
    """Turn a stored plotly figure into HTML for the site and a PNG for the PDF."""
    html = plotly.io.to_html(
        figure, include_plotlyjs=False, full_html=False, div_id=f"plotly-{number}"
    )
    png = plotly.io.to_image(figure, "png", width=560, height=420, scale=2)
    return {"text/html": html, "image/png": base64.b64encode(png).decode()}


def size_picture(data):
    """Tell LaTeX how large a picture is meant: 110 pixels an inch."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(out, format="PNG", dpi=(110, 110))
    return out.getvalue()


def lay_out(path):
    """Write one notebook as a page of the book."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = NAVIGATION.sub(r"\1", notebook.cells[0].source)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(\.\./", f"]({REPOSITORY}", cell.source)
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                figure = plotly.io.from_json(json.dumps(output.data[PLOTLY]))
                output.data = draw(figure, f"{path.stem[:2]}-{number}")
            elif "image/png" in output.get("data", {}):
                picture = size_picture(base64.b64decode(output.data["image/png"]))
                output.data["image/png"] = base64.b64encode(picture).decode()
    nbformat.write(notebook, SOURCE / path.name)


def lay_out_all():
    """Write every page, and the files that the site needs from this machine."""
    shutil.rmtree(BOOK, ignore_errors=True)
    (SOURCE / "_static").mkdir(parents=True)
    for name in ("conf.py", "index.md"):
        shutil.copy(ROOT / "docs" / name, SOURCE / name)
    (SOURCE / "images").mkdir()
    for picture in (FOLDER / "images").glob("*.png"):
        (SOURCE / "images" / picture.name).write_bytes(
            size_picture(picture.read_bytes())
        )
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copy(script, SOURCE / "_static" / "plotly.min.js")
    for path in sorted(FOLDER.glob("*.ipynb")):
        lay_out(path)


def run(*command, cwd=ROOT):
    """Run a command; its failure is ours."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def main(arguments=None):
    """Build what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdf", action="store_true", help="the PDF, too (xelatex)")
    options = parser.parse_args(arguments)
    if chromium := shutil.which("chromium"):
        os.environ.setdefault("BROWSER_PATH", chromium)
    lay_out_all()
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    try:
        run(*sphinx, "-b", "html", "-d", BOOK / "pages", SOURCE, BOOK / "html")
        if options.pdf:
            run(*sphinx, "-b", "latex", "-d", BOOK / "pages", SOURCE, BOOK / "latex")
            latexmk = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-silent"]
            run(*latexmk, "dicom-quest.tex", cwd=BOOK / "latex")
            shutil.copy(BOOK / "latex" / "dicom-quest.pdf", BOOK / "dicom-quest.pdf")
    except subprocess.CalledProcessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
