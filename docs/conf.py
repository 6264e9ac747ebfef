"""How Sphinx makes the book; tools/build_book.py lays the pages out and calls it."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import yaml
from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).resolve().parent  # a copy in build/book/source
PROJECT = HERE.parents[2]
CITATION = yaml.safe_load((PROJECT / "CITATION.cff").read_text("utf-8"))
REPOSITORY = CITATION["repository-code"]
TITLE, SUBTITLE = CITATION["title"].split(": ")
DAY = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)

project = TITLE
author = CITATION["authors"][0]["name"]
project_copyright = f"{DAY.year}, {author}, CC BY 4.0"
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
pygments_style = "a11y-high-contrast-light"  # what the site takes, too

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_download_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field is enough
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]
NO_FETCH = "DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== 'file:'"
html_js_files = ["plotly.min.js", (None, {"body": NO_FETCH})]  # no file fetches a file
html_show_sourcelink = False
html_math_renderer = "mathml"

TITLE_PAGE = r"""
\thispagestyle{empty}
{\sffamily\raggedright
\vspace*{8mm}
{\fontsize{44}{50}\selectfont\bfseries\color{TitleColor}@TITLE@\par}
\vspace{5mm}
{\LARGE @SUBTITLE@\par}
\vspace{16mm}
\includegraphics[width=\linewidth]{09_mask_the_lungs.png}\par
\vspace{2mm}
{\small What chapter 09 arrives at: both lungs of a chest CT, found in three dimensions.
The patient is subject Lung\_Dx-A0001 of \textit{Lung-PET-CT-Dx} (P.~Li and others, The
Cancer Imaging Archive, 2020, DOI 10.7937/TCIA.2020.NNC2-0461, CC BY 4.0).\par}
\vfill
{\Large\bfseries @AUTHOR@\par}
\vspace{3mm}
{\large Version @RELEASE@, @DAY@\par}
\vspace{10mm}
{\large\bfseries For education and research, not for diagnosis.\par}
\vspace{5mm}
Text and figures: CC BY 4.0. Code: BSD-3-Clause.\par
\url{@REPOSITORY@}\par}
\clearpage
"""
PREAMBLE = r"""
\setcounter{secnumdepth}{-1}  % the chapters have their numbers in their titles
\hypersetup{pdftitle={@TITLE@: @SUBTITLE@}, pdfauthor={@AUTHOR@}, pdflang={en},
  pdfsubject={@SUBTITLE@}, pdfkeywords={@KEYWORDS@}}
\titleformat{\chapter}[hang]{\sffamily\bfseries\Huge\color{TitleColor}}{}{0pt}{}
\titlespacing*{\chapter}{0pt}{0pt}{14pt}
\raggedbottom
\widowpenalty=500 \clubpenalty=500
% a new page where less than this is left; unlike \needspace it tempts nobody else
\newcommand{\wantspace}[1]{\par\penalty0\begingroup
  \dimen0=\pagegoal \advance\dimen0 by -\pagetotal
  \ifdim\pagetotal>0pt \ifdim#1>\dimen0 \vfil\break\fi\fi\endgroup}
\fancypagestyle{plain}{\fancyhf{}\renewcommand{\headrulewidth}{0pt}%
  \fancyfoot[L]{\sffamily\footnotesize @TITLE@ @RELEASE@, for education and research,
    not for diagnosis}%
  \fancyfoot[R]{\sffamily\bfseries\thepage}}
\fancypagestyle{normal}[plain]{\renewcommand{\headrulewidth}{0.4pt}%
  \fancyhead[L]{\sffamily\bfseries\footnotesize\nouppercase{\leftmark}}%
  \fancyhead[R]{\sffamily\footnotesize\nouppercase{\rightmark}}}
% code stands on gray, what it gave beside a rule; a red rule is an error
\definecolor{given}{rgb}{0.55,0.65,0.75}
\newenvironment{sphinxclasscell_output}{\sphinxsetup{VerbatimColor={rgb}{1,1,1},
  pre_border-left-width=2pt, pre_border-right-width=0pt, pre_border-top-width=0pt,
  pre_border-bottom-width=0pt, pre_border-radius=0pt,
  VerbatimBorderColor={named}{given}, verbatimwithframe=true}}{}
\newenvironment{sphinxclasstag_raises-exception}{%
  \definecolor{given}{rgb}{0.75,0.15,0.15}}{}
"""
FONTS = r"""
\setmainfont{FreeSerif}[Extension=.otf, UprightFont=*, ItalicFont=*Italic,
  BoldFont=*Bold, BoldItalicFont=*BoldItalic]
\setsansfont{FreeSans}[Extension=.otf, UprightFont=*, ItalicFont=*Oblique,
  BoldFont=*Bold, BoldItalicFont=*BoldOblique]
\setmonofont{DejaVuSansMono}[Path=./, Extension=.ttf, Scale=0.84, UprightFont=*,
  ItalicFont=*-Oblique, BoldFont=*-Bold, BoldItalicFont=*-BoldOblique]
"""


def fill(template):
    """Write what is known about the book into a piece of LaTeX."""
    known = {"TITLE": TITLE, "SUBTITLE": SUBTITLE[0].upper() + SUBTITLE[1:]}
    known |= {"AUTHOR": author, "RELEASE": release, "REPOSITORY": REPOSITORY}
    known["DAY"] = f"{DAY.day} {DAY:%B %Y}"
    known["KEYWORDS"] = ", ".join(CITATION["keywords"])
    return re.sub("@([A-Z]+)@", lambda match: known[match[1]], template)


latex_engine = "xelatex"
latex_documents = [("index", "dicom-quest.tex", project, author, "manual")]
latex_additional_files = ["images/09_mask_the_lungs.png"]
latex_additional_files += sorted(
    f"fonts/{path.name}" for path in (HERE / "fonts").glob("*.ttf")
)
latex_elements = {
    "papersize": "a4paper",
    "pointsize": "10pt",
    "extraclassoptions": "openany,oneside",
    "figure_align": "H",
    "fncychap": "",
    "fontpkg": FONTS,
    "fvset": r"\fvset{fontsize=\small}",
    "maketitle": fill(TITLE_PAGE),
    "tableofcontents": r"\tableofcontents\clearpage",
    "makeindex": "",
    "printindex": "",
    "preamble": fill(PREAMBLE),
    "sphinxsetup": r"verbatimwithframe=false, VerbatimColor={rgb}{0.95,0.95,0.95},"
    r"verbatimvisiblespace={}, verbatimcontinued={\textcolor{gray}"
    r"{\llap{\tiny$\hookrightarrow$\,}}}",
}
latex_show_urls = "footnote"
latex_show_pagerefs = True


def write_mathml(translator, node):
    """Write a formula as MathML: every browser draws it, without a script."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def insert_latex(node, text):
    """Put a line of LaTeX before a node."""
    node.parent.insert(node.parent.index(node), nodes.raw("", text, format="latex"))


LEADS = (nodes.paragraph, nodes.enumerated_list)  # what stands before a cell


def count_lines(block):
    """Count the printed lines of a block of code or output."""
    return sum(1 + len(line) // 96 for line in block.astext().splitlines())


def keep_together(app, doctree):
    """Ask for room where a page would end in a cell, or between it and its lead."""
    for cell in list(doctree.findall(nodes.container)):
        blocks = [count_lines(one) for one in cell.findall(nodes.literal_block)]
        if "cell" not in cell["classes"] or not blocks:
            continue
        lines = sum(min(count, 25) for count in blocks) + 2 * len(blocks) + 2
        start, before = cell, cell.parent[cell.parent.index(cell) - 1]
        picture = next(before.findall(nodes.image), None)
        if isinstance(before, LEADS) and len(before.astext()) < 400 and not picture:
            start, lines = before, lines + 1 + len(before.astext()) // 90
        if isinstance(start.parent[start.parent.index(start) - 1], nodes.title):
            start, lines = start.parent, lines + 3
        if start.parent is not None:
            insert_latex(start, rf"\wantspace{{{11 * min(lines, 36)}pt}}")


def choose_contents(app, doctree):
    """List a chapter's questions in the contents, not the sections that all have."""
    for section in list(doctree.findall(nodes.section)):
        title = section[0].astext()
        depth = 0 if title == "Check yourself" else 1 if title.endswith("?") else None
        if depth is not None:
            insert_latex(
                section,
                rf"\addtocontents{{toc}}{{\protect\setcounter{{tocdepth}}{{{depth}}}}}",
            )


def setup(app):
    """Register the formula writer, and what the printed page needs."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(write_mathml, None),
        block_renderers=(write_mathml, None),
    )
    app.connect("doctree-read", keep_together)
    app.connect("doctree-read", choose_contents)
