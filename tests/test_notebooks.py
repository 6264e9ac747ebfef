"""The form of the notebooks, measured: what CONTRIBUTING.md asks, one test a rule."""

import ast
import getpass
import itertools
import json
import re
import statistics
import sys
from functools import cache
from pathlib import Path

import pytest
import spylls.hunspell

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402

JOURNEY = (
    "00_start_here",
    "01_dig_into_a_dicom_file",
    "02_stack_a_series",
    "03_convert_to_hounsfield",
    "04_resample_to_millimetres",
    "05_read_the_histogram",
    "06_look_at_planes",
    "07_see_surfaces",
    "08_mask_one_plane",
    "09_mask_the_lungs",
    "10_hand_over_the_mask",
    "11_build_a_cohort",
    "12_break_the_scan",
)
ENDING = [
    "Check yourself",
    "Summary",
    "In practice",
    "What's next",
    "References",
    "Solutions",
]
LICENCES = "Code: BSD-3-Clause. Text and figures: CC BY 4.0."
TAGS = {"cover", "patient", "raises-exception", "nbval-ignore-output"}
PROPER = {"DICOM", "HU", "CT", "Hounsfield", "NIfTI"}
PLOTLY = "application/vnd.plotly.v1+json"
MACHINE = re.compile(
    r"/home/|/root\b|/Users/|/tmp/|/work/|/usr/|/opt/|[A-Z]:\\|site-packages|\.venv"
)
IDENTIFIER = re.compile(
    r"\w\^\w"  # Name^Given
    r"|Lung_Dx|Patient(?:'s)? ?(?:Name|ID)\b *[:=]"
    r"|\b(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\b"  # a DICOM date
    r"|\b(?:1\.3\.6|1\.2\.(?!840\.10008)|2\.25\.)[\d.]{16,}"  # an instance's UID
)
NUMBER = re.compile(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)?(?![\w,]*\d|\.\d|-D)")
KNOWN = {"-1000", "1000", "-1024", "2017"}  # air, mL, 12 bits, the first tutorial
STEMS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@cache
def read(stem):
    """Read the cells of one built notebook, sources and texts as one string each."""
    cells = json.loads((FOLDER / f"{stem}.ipynb").read_text("utf-8"))["cells"]
    for number, cell in enumerate(cells):
        cell["number"], cell["source"] = number, "".join(cell["source"])
        cell["tags"] = cell["metadata"].get("tags", [])
        cell["lines"] = [line for line in cell["source"].splitlines() if line.strip()]
    return cells


def code(stem):
    """Give the code cells."""
    return [cell for cell in read(stem) if cell["cell_type"] == "code"]


def prose(stem):
    """Give the Markdown cells."""
    return [cell for cell in read(stem) if cell["cell_type"] == "markdown"]


def words(text):
    """Count the words that a reader sees."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


@cache
def dictionaries():
    """Give the American dictionary, and the words of our field (tests/words.txt)."""
    american = Path(spylls.hunspell.__file__).parent / "data" / "en" / "en_US"
    field = (ROOT / "tests" / "words.txt").read_text("utf-8").lower().split()
    return spylls.hunspell.Dictionary.from_files(str(american)), set(field)


def misspelled(text):
    """List the words that no dictionary knows, outside code, formulas and links."""
    formulas = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|DOI \S+|dcm2niix"
    text = re.sub(formulas, " ", text, flags=re.DOTALL)
    text = text.replace("**", "")  # **L**eft is one word
    american, field = dictionaries()
    found = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text)
    found = {word.removesuffix("'s") for word in found}
    return {w for w in found if w.lower() not in field and not american.lookup(w)}


def headings(stem):
    """List the second-level headings."""
    text = "\n".join(cell["source"] for cell in prose(stem))
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def section(stem, heading):
    """Give the cells from one second-level heading to the next."""
    found, inside = [], False
    for cell in read(stem):
        if title := re.match(r"## (.+)", cell["source"]):
            inside = cell["cell_type"] == "markdown" and title[1] == heading
        if inside:
            found.append(cell)
    return found


def printed(cell):
    """Give the text that a code cell stored: streams, results and errors."""
    parts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        parts += ["".join(output.get("text", "")), "".join(data.get("text/plain", ""))]
        parts += ["".join(data.get("text/html", "")), output.get("evalue", "")]
        parts += output.get("traceback", [])
    return "\n".join(parts)


def pictures(cell, kind="image/png"):
    """Give the stored outputs of one kind."""
    data = [output.get("data", {}) for output in cell["outputs"]]
    return ["".join(one[kind]) for one in data if kind in one]


def numbers(text):
    """List the numbers that prose quotes: a decimal point, or four digits at least.

    Tags, links, licenses, code and formulas are no quotations.
    """
    noise = (
        r"\([0-9A-F]{4},[0-9A-F]{4}\)|\]\([^)]*\)|`[^`]*`|\$[^$]*\$"
        r"|DOI \S+|CC BY [34]\.0|BSD-3"
    )
    found = NUMBER.findall(re.sub(noise, " ", text))
    return {n for n in found if "." in n or sum(map(str.isdigit, n)) >= 4}


def as_shown(text):
    """List every number in outputs or code, with and without thousands separators."""
    found = set(re.findall(r"-?\d[\d,_]*(?:\.\d+)?", text))
    return found | {re.sub("[,_]", "", number) for number in found}


def measure(stem):
    """Measure one notebook: the row of the table that pytest prints."""
    lines = sorted(len(cell["lines"]) for cell in code(stem))
    total = sum(words(cell["source"]) for cell in prose(stem))
    ignored = sum("nbval-ignore-output" in cell["tags"] for cell in code(stem))
    return {
        "cells": len(lines),
        "median": statistics.median(lines),
        "p90": lines[int(0.9 * (len(lines) - 1))],
        "max": lines[-1],
        "words": total,
        "words/cell": round(total / len(lines)),
        "ignored": ignored,
        "kB": round((FOLDER / f"{stem}.ipynb").stat().st_size / 1024),
    }


def table():
    """Lay the measurements of all notebooks out as lines of text."""
    rows = {stem: measure(stem) for stem in STEMS}
    if not rows:
        return []
    heads = list(next(iter(rows.values())))
    lines = [f"{'notebook':28}" + "".join(f"{head:>11}" for head in heads)]
    for stem, row in rows.items():
        lines.append(f"{stem:28}" + "".join(f"{row[head]:>11g}" for head in heads))
    total = sum(row["cells"] - row["ignored"] for row in rows.values())
    return [*lines, f"{total} code cells have outputs that nbval compares"]


each = pytest.mark.parametrize("stem", STEMS)


def test_the_journey_is_complete():
    assert set(JOURNEY[:10]) <= set(STEMS) <= set(JOURNEY)
    assert [path.stem for path in build_notebooks.find_sources(FOLDER)] == STEMS


def test_enough_cells_are_compared():
    assert sum(measure(s)["cells"] - measure(s)["ignored"] for s in STEMS) >= 120


@each
def test_notebook_is_its_source(stem):
    assert build_notebooks.compare(FOLDER / "src" / f"{stem}.py") == []


@each
def test_title_and_navigation(stem):
    title, blank, navigation, *rest = read(stem)[0]["source"].split("\n")
    assert re.fullmatch(
        rf"# {stem[:2]} · [A-Z][\w' -]+", title
    ) and not blank + "".join(rest)
    later = re.findall(r"\b[A-Z][A-Za-z]+", title.split(" · ")[1])[1:]
    assert set(later) <= PROPER, "sentence case"
    at = STEMS.index(stem)
    neighbors = [*STEMS[max(at - 1, 0) : at], STEMS[0], *STEMS[at + 1 : at + 2]]
    assert re.findall(r"\((\w+)\.ipynb\)", navigation) == neighbors
    others = "\n".join(cell["source"] for cell in prose(stem)[1:])
    assert not re.search(r"^# ", others, flags=re.MULTILINE)


@each
def test_opening(stem):
    first = code(stem)[0]["number"]
    text = "\n".join(cell["source"] for cell in read(stem)[1:first])
    parts = ["do", "learn", "need"]
    places = [text.find(f"**What you'll {part}**") for part in parts]
    assert places == sorted(places) and -1 not in places
    bullets = re.findall(r"^- (\w+)", text, flags=re.MULTILINE)
    assert 3 <= len(bullets) <= 5
    assert not {"About", "How", "The", "What", "Why", "A", "An"} & set(bullets)
    assert "| You need | Where | |" in text
    line = (
        r"\*\*Time\*\* \d+ minutes · \*\*memory\*\* [\d,.]+ [MG]B · \*\*download\*\* "
    )
    assert re.search(line + r".+ · \*\*data and licence\*\* ", text.replace("\n", " "))
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", text) == [f"images/{stem}.png"]
    assert words(text) <= 150


@each
def test_sections_and_ending(stem):
    found = headings(stem)
    assert found[-6:] == ENDING
    assert 3 <= len(found[:-6]) <= 7
    for cell in prose(stem):
        parts = re.split(r"^## .+$", cell["source"], flags=re.MULTILINE)[1:]
        assert all(words(part) for part in parts), "a section begins with prose"


@each
def test_exercises_have_solutions(stem):
    exercise = re.compile(r"^(\d)\. ", flags=re.MULTILINE)
    asked = exercise.findall(section(stem, "Check yourself")[0]["source"])
    solutions = section(stem, "Solutions")
    solved = exercise.findall("\n".join(c["source"] for c in solutions))
    assert 2 <= len(asked) <= 3 and solved == asked == sorted(asked)
    assert sum(cell["cell_type"] == "code" for cell in solutions) >= len(asked)
    summary = section(stem, "Summary")[0]["source"]
    assert 1 <= len(re.findall(r"^- ", summary, flags=re.MULTILINE)) <= 5
    assert len(re.findall(r"\]\(", section(stem, "What's next")[0]["source"])) == 1
    assert section(stem, "References")[-1]["source"].endswith(LICENCES)


@each
def test_cells_are_small(stem):
    sizes = measure(stem)
    assert 12 <= sizes["cells"] <= 35
    assert sizes["median"] <= 4 and sizes["p90"] <= 10
    long = [c for c in code(stem)[1:] if len(c["lines"]) > 20]
    assert len(long) <= 1 and sizes["max"] <= 25
    wide = [line for c in code(stem) for line in c["lines"] if len(line) > 88]
    assert not wide


@each
def test_words(stem):
    assert 800 <= measure(stem)["words"] <= 2500
    assert 40 <= measure(stem)["words/cell"] <= 100
    counts = {cell["number"]: words(cell["source"]) for cell in prose(stem)}
    assert {n: count for n, count in counts.items() if count > 120} == {}


@each
def test_spelling(stem):
    wrong = {cell["number"]: misspelled(cell["source"]) for cell in prose(stem)}
    assert {n: found for n, found in wrong.items() if found} == {}, "or tests/words.txt"


def test_the_list_of_words_holds_no_needless_ones():
    text = " ".join(cell["source"] for stem in STEMS for cell in prose(stem)).lower()
    assert dictionaries()[1] <= set(re.findall(r"[^\W\d_]+", text))
    assert misspelled("A voxell of the lugn, `lugn`") == {"voxell", "lugn"}


@each
def test_prose_stands_between_code_cells(stem):
    cells = read(stem)
    bare = [
        after["number"]
        for before, after in itertools.pairwise(cells)
        if before["cell_type"] == after["cell_type"] == "code"
        and "nbval-ignore-output" not in after["tags"]
    ]
    assert bare == []


@each
def test_code_reads_well(stem):
    for cell in code(stem):
        source = cell["source"]
        assert not re.search(r";\s*$", source, flags=re.MULTILINE)
        assert not re.search(r"^\s*[%!]|import \*|NBVAL_", source, flags=re.MULTILINE)
        assert not re.search(r"\b(array|files|hu|planes?)\[\d{2,}\]", source), (
            "assumes this scan"
        )
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15
    lines = [line.strip() for cell in code(stem) for line in cell["lines"]]
    comments = [line for line in lines if line.startswith("#")]
    assert len(comments) <= len(lines) / 6
    assert not [line for line in comments if re.match(r"#+\s*[-=*#]{3}", line)]


@each
def test_imports_stand_in_the_setup_cell(stem):
    setup, *others = code(stem)
    assert setup["source"].rstrip().endswith("use_style()")
    late = set()
    for cell in others:
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Import):
                late |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                late.add(node.module.split(".")[0])
    assert late <= {"questlib"}


@each
def test_tags(stem):
    assert {tag for cell in read(stem) for tag in cell["tags"]} <= TAGS
    assert all(set(cell["tags"]) <= {"patient"} for cell in prose(stem))
    assert not [cell for cell in code(stem) if "patient" in cell["tags"]]
    covers = [cell for cell in code(stem) if "cover" in cell["tags"]]
    assert len(covers) == 1 and len(pictures(covers[0])) == 1
    errors = {
        kind: [cell["number"] for cell in code(stem) if test(cell)]
        for kind, test in {
            "tagged": lambda cell: "raises-exception" in cell["tags"],
            "stored": lambda cell: any("ename" in o for o in cell["outputs"]),
        }.items()
    }
    assert errors["tagged"] == errors["stored"] and len(errors["tagged"]) <= 2


@each
def test_interactive_cells_have_a_still_twin(stem):
    cells = code(stem)
    ignored = [n for n, c in enumerate(cells) if "nbval-ignore-output" in c["tags"]]
    assert len(ignored) <= 0.1 * len(cells)
    for at in ignored:
        assert len(cells[at]["lines"]) <= 6
        twin = next(c for c in reversed(cells[:at]) if c["number"] and pictures(c))
        assert at - cells.index(twin) <= len(ignored)


@each
def test_outputs_are_stored(stem):
    cells = code(stem)
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        if "nbval-ignore-output" in cell["tags"]:
            continue
        body = ast.parse(cell["source"]).body
        calls = [ast.unparse(n) for n in body if isinstance(n, ast.Expr)]
        if any(call.startswith("print(") for call in calls):
            assert printed(cell), f"cell {cell['number']} printed nothing"
        if "plt.show()" in calls:
            assert pictures(cell), f"cell {cell['number']} drew nothing"
            assert calls[-1] == "plt.show()"
        elif pictures(cell):
            assert "Axes" not in printed(cell), "end a plot with plt.show()"


@each
def test_outputs_are_small(stem):
    assert (FOLDER / f"{stem}.ipynb").stat().st_size <= 1024**2
    assert (FOLDER / "images" / f"{stem}.png").stat().st_size <= 150 * 1024
    for cell in code(stem):
        assert all(len(png) * 3 / 4 <= 150 * 1024 for png in pictures(cell))
        for output in cell["outputs"]:
            figure = output.get("data", {}).get(PLOTLY)
            assert len(json.dumps(figure)) <= 200 * 1024


@each
def test_outputs_say_nothing_of_machine_or_person(stem):
    user = getpass.getuser()
    for cell in code(stem):
        text, where = printed(cell), f"cell {cell['number']}"
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"], where
        assert not MACHINE.search(text + cell["source"]), where
        assert not IDENTIFIER.search(text), where
        assert not re.search(r"\b0x[0-9a-f]{6,}|<\w+\.\w+.* at ", text), where
        assert len(user) < 5 or user not in text, where


@each
def test_numbers_of_the_patient_are_marked(stem):
    """A number that only an output shows belongs to this scan, not to every scan."""
    source = as_shown("\n".join(cell["source"] for cell in code(stem)))
    outputs, unmarked, unproved = set(), {}, {}
    for cell in read(stem):
        if cell["cell_type"] == "code":
            outputs |= as_shown(printed(cell))
        elif "patient" in cell["tags"]:
            if loose := numbers(cell["source"]) - outputs - source - KNOWN:
                unproved[cell["number"]] = loose
        elif loose := (numbers(cell["source"]) & outputs) - source - KNOWN:
            unmarked[cell["number"]] = loose
    assert unmarked == {}, "quoted from an output in a cell without the tag `patient`"
    assert unproved == {}, "no output above shows it"


@each
def test_links_and_pictures(stem):
    for cell in prose(stem):
        for bang, text, target in re.findall(
            r"(!?)\[([^]]*)\]\(([^)\s]+)\)", cell["source"]
        ):
            assert text.strip().lower() not in ("", "here", "this", "link")
            assert not bang or words(text) >= 3, "alt text says what is seen"
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            path = FOLDER / file if file else FOLDER / f"{stem}.ipynb"
            assert path.exists(), target
            if anchor:
                assert anchor.replace("-", " ") in headings(path.stem), target


@each
def test_markdown_is_safe_on_github(stem):
    for cell in prose(stem):
        text = re.sub(r"```.*?```|`[^`]*`", "", cell["source"], flags=re.DOTALL)
        assert not re.search(r"^:::|\{\w+\}`", text, flags=re.MULTILINE)
        assert not re.search(r"<(?!img\b)/?[a-z][^>]*>", text)
