"""Make the book from the built notebooks: an HTML site and one PDF, without a network.

    python tools/build_book.py            build/book/html/index.html
    python tools/build_book.py --pdf      build/book/dicom-quest.pdf as well

The pages are the notebooks. Only what a book has by other means is changed: the
navigation line goes, links to files of the project go to its repository, and a plotly
figure becomes a script for HTML and a picture for the PDF. SOURCE_DATE_EPOCH dates the
book; without it, its date is the release's. A warning of Sphinx or LaTeX is an error.
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
from datetime import datetime
from pathlib import Path

import matplotlib
import nbformat
import plotly
import plotly.io
from PIL import Image, ImageChops

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_notebooks import FOLDER, NAVIGATION

ROOT = FOLDER.parent
BOOK = ROOT / "build" / "book"
SOURCE = BOOK / "source"
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")
REPOSITORY = re.search(r"repository-code: (\S+)", CITATION)[1] + "/blob/HEAD/"
PLOTLY = "application/vnd.plotly.v1+json"
DEBIAN = (
    "apt-get install latexmk texlive-xetex texlive-latex-recommended "
    "texlive-latex-extra texlive-fonts-recommended fonts-freefont-otf chromium"
)
STYLE = """/* a dark page leaves the gray of a CT alone */
html[data-theme="dark"] .bd-content .bd-article img { filter: none; }
"""
STILL = """```{only} latex
*On paper this view stands still. In the notebook and on the site it turns.*
```"""
UNIT = re.compile(r"(\d) (%|HU|mm|cm|mL|L|kB|MB|GB|TB)(?![\w/])")
WRONG = re.compile(
    r"^(?:Missing character|LaTeX Warning: (?:Ref|Hyper ref|There were)|! ).*"
    r"|^Overfull \\hbox \((?:[5-9]|\d\d+)\..*",
    re.MULTILINE,
)


def find_browser():
    """Find the Chromium that turns a plotly figure into a picture."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = (shutil.which(name) for name in names)
    return os.environ.get("BROWSER_PATH") or next(filter(None, found), None)


def draw(figure, number, picture):
    """Turn a stored plotly figure into HTML for the site, and a PNG for the PDF."""
    html = plotly.io.to_html(
        figure, include_plotlyjs=False, full_html=False, div_id=f"plotly-{number}"
    )
    if not picture:
        return {"text/html": html}
    png = plotly.io.to_image(figure, "png", width=560, height=420, scale=2)
    png = size_picture(png, 200)
    return {"text/html": html, "image/png": base64.b64encode(png).decode()}


def size_picture(data, dots=110, inches=4.6):
    """Cut the white margin off; tell LaTeX how many pixels make an inch."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        white = Image.new("RGB", image.size, "white")
        box = ImageChops.difference(image.convert("RGB"), white).getbbox()
        image = image.crop(box)
        dots = max(dots, image.height / inches)
        image.save(out, format="PNG", dpi=(dots, dots))
    return out.getvalue()


def edit_prose(text):
    """Lead links to the repository, and keep a number and its unit together."""
    text = re.sub(r"\]\(\.\./", f"]({REPOSITORY}", text)
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    parts[::2] = [UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", part) for part in parts[::2]]
    return "".join(parts)


def lay_out(path, pictures=True):
    """Write one notebook as a page of the book."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = NAVIGATION.sub(r"\1", notebook.cells[0].source)
    for number, cell in enumerate(list(notebook.cells)):
        if cell.cell_type == "markdown":
            cell.source = edit_prose(cell.source)
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                figure = plotly.io.from_json(json.dumps(output.data[PLOTLY]))
                output.data = draw(figure, f"{path.stem[:2]}-{number}", pictures)
                place = notebook.cells.index(cell) + 1
                notebook.cells.insert(place, nbformat.v4.new_markdown_cell(STILL))
            elif "image/png" in output.get("data", {}):
                picture = size_picture(base64.b64decode(output.data["image/png"]))
                output.data["image/png"] = base64.b64encode(picture).decode()
    nbformat.write(notebook, SOURCE / path.name)


def lay_out_all(pictures):
    """Write every page, and the files that the site needs from this machine."""
    shutil.rmtree(BOOK, ignore_errors=True)
    (SOURCE / "_static").mkdir(parents=True)
    for name in ("conf.py", "index.md"):
        shutil.copy(ROOT / "docs" / name, SOURCE / name)
    (SOURCE / "_static" / "book.css").write_text(STYLE, encoding="utf-8")
    (SOURCE / "images").mkdir()
    for picture in (FOLDER / "images").glob("*.png"):
        (SOURCE / "images" / picture.name).write_bytes(
            size_picture(picture.read_bytes())
        )
    (SOURCE / "fonts").mkdir()
    for font in Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVuSansMono*"):
        shutil.copy(font, SOURCE / "fonts" / font.name)
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copy(script, SOURCE / "_static" / "plotly.min.js")
    for path in sorted(FOLDER.glob("*.ipynb")):
        lay_out(path, pictures)


def run(*command, **options):
    """Run a command; its failure is ours."""
    subprocess.run([str(part) for part in command], check=True, **options)


def date_the_book():
    """Date the book from the release, unless SOURCE_DATE_EPOCH says otherwise."""
    day = re.search(r'date-released: "(.+)"', CITATION)[1]
    seconds = datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(int(seconds)))
    os.environ["FORCE_SOURCE_DATE"] = "1"


def make_pdf(sphinx):
    """Let LaTeX set the pages; print what it complains of, and say whether it did."""
    run(*sphinx, "-b", "latex", "-d", BOOK / "pages", SOURCE, BOOK / "latex")
    latexmk = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-silent"]
    try:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run(*latexmk, "dicom-quest.tex", cwd=BOOK / "latex", **silent)
        log = (BOOK / "latex" / "dicom-quest.log").read_text("utf-8", "replace")
        if wrong := [match[0] for match in WRONG.finditer(log)]:
            print("LaTeX:", *wrong, sep="\n  ", file=sys.stderr)
            return False
    except subprocess.CalledProcessError:
        print(
            "LaTeX failed; build/book/latex/dicom-quest.log says why. "
            f"If a package or a font is missing: {DEBIAN}",
            file=sys.stderr,
        )
        return False
    shutil.copy(BOOK / "latex" / "dicom-quest.pdf", BOOK / "dicom-quest.pdf")
    return True


def main(arguments=None):
    """Build what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdf", action="store_true", help="the PDF, too (xelatex)")
    options = parser.parse_args(arguments)
    browser = find_browser()
    programs = {name: shutil.which(name) for name in ("latexmk", "xelatex")}
    missing = [
        name for name, path in (programs | {"chromium": browser}).items() if not path
    ]
    if browser:
        os.environ["BROWSER_PATH"] = browser
    date_the_book()
    lay_out_all(pictures=options.pdf and not missing)
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    try:
        run(*sphinx, "-b", "html", "-d", BOOK / "pages", SOURCE, BOOK / "html")
        print("build/book/html/index.html")
        if options.pdf and missing:
            names = ", ".join(missing)
            print(f"No PDF without {names}. On Debian: {DEBIAN}", file=sys.stderr)
            return 1
        if options.pdf and not make_pdf(sphinx):
            return 1
    except subprocess.CalledProcessError as error:
        print(f"Sphinx failed with status {error.returncode}", file=sys.stderr)
        return 1
    if options.pdf:
        print("build/book/dicom-quest.pdf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
