"""How Sphinx makes the book; tools/build_book.py lays the pages out and calls it."""

import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

PROJECT = Path(__file__).resolve().parents[3]  # this is a copy in build/book/source

project = "DICOM Quest"
author = "The DICOM Quest developers"
project_copyright = "2026, the DICOM Quest developers, CC BY 4.0"
today = "2026"
release = re.search(
    r'__version__ = "(.+)"', (PROJECT / "questlib" / "__init__.py").read_text("utf-8")
)[1]

extensions = ["myst_nb"]
exclude_patterns = ["conf.py"]
nb_execution_mode = "off"  # the notebooks are built and compared elsewhere
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
language = "en"

html_theme = "sphinx_book_theme"
html_title = "DICOM Quest"
html_theme_options = {
    "repository_url": "https://github.com/dicom-quest/dicom-quest",
    "use_download_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field is enough
}
html_static_path = ["_static"]
html_js_files = ["plotly.min.js"]
html_show_sourcelink = False
html_math_renderer = "mathml"

latex_engine = "xelatex"
latex_logo = "images/09_mask_the_lungs.png"
latex_documents = [("index", "dicom-quest.tex", project, author, "manual")]
latex_elements = {
    "papersize": "a4paper",
    "pointsize": "10pt",
    "extraclassoptions": "openany,oneside",
    "figure_align": "H",
    "fncychap": "",
    "preamble": r"\setcounter{secnumdepth}{-1}",  # the chapters have their numbers
    "sphinxsetup": "verbatimwithframe=false, VerbatimColor={rgb}{0.96,0.96,0.96}",
}
latex_show_urls = "no"


def write_mathml(translator, node):
    """Write a formula as MathML: every browser draws it, without a script."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app):
    """Register the formula writer."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(write_mathml, None),
        block_renderers=(write_mathml, None),
    )
