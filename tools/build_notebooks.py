"""Turn notebooks/src/NN_name.py into the notebooks that people read.

    python tools/build_notebooks.py              build all: run, clean, write
    python tools/build_notebooks.py 03 05        build these two
    python tools/build_notebooks.py --prose 03   text changed, code did not: no run
    python tools/build_notebooks.py --check      is each notebook its source? (no run)
    python tools/build_notebooks.py --back 03    notebook edited in JupyterLab -> source

The source is what people edit and review, the notebook is what they read; the way
is source -> notebook, and a second build gives the same bytes.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import time
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # 1.3 s of grammar, for URIs only

import jupytext  # noqa: E402
import nbformat  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CONTENTS = "00_start_here.ipynb"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
NAVIGATION = re.compile(r"\A(#[^\n]*)\n\n(?:\[[^\n]*\]\([^\n]*\.ipynb\))[^\n]*")
WIDGET = "application/vnd.jupyter.widget-view+json"
MEGABYTE = 1024 * 1024
MEMORY = """try:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
except ImportError:
    import psutil
    print(psutil.Process().memory_info().peak_wset // 1024**2)"""


def kernel_environment(environ=None):
    """Give the variables under which a notebook says the same on every machine."""
    env = dict(os.environ if environ is None else environ)
    for name in ("QUEST_SCAN", "MPLBACKEND"):
        env.pop(name, None)
    return env | {"PYTHONHASHSEED": "0", "PLOTLY_RENDERER": "plotly_mimetype"}


def find_sources(folder=FOLDER):
    """List notebooks/src/NN_*.py in the order of the journey."""
    return sorted((Path(folder) / "src").glob("[0-9][0-9]_*.py"))


def read_title(source):
    """Read "03 Convert to Hounsfield units" from the line "# # 03 · Convert ..."."""
    text = Path(source).read_text(encoding="utf-8")
    title = re.search(r"^# # (.+)$", text, flags=re.MULTILINE)
    return title[1].replace(" · ", " ").strip() if title else Path(source).stem


def navigate(source):
    """Write the line that links a notebook with its neighbors."""
    source = Path(source)
    sources = find_sources(source.parent.parent)
    here = sources.index(source)
    links = [f"[contents]({CONTENTS})"]
    if here > 0:
        before = sources[here - 1]
        links.insert(0, f"[< {read_title(before)}]({before.stem}.ipynb)")
    if here + 1 < len(sources):
        after = sources[here + 1]
        links.append(f"[{read_title(after)} >]({after.stem}.ipynb)")
    return " | ".join(links)


def read_source(source):
    """Convert one percent source into a notebook without outputs.

    Cell ids come from the text, so that a change to one cell changes one id.
    """
    parsed = jupytext.reads(Path(source).read_text(encoding="utf-8"), fmt="py:percent")
    cells, seen = [], set()
    for cell in parsed.cells:
        text, salt = cell.source.strip("\n"), 0
        while (
            key := hashlib.sha1(f"{text}{salt or ''}".encode()).hexdigest()[:8]
        ) in seen:
            salt += 1
        seen.add(key)
        make = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        tags = cell.metadata.get("tags")
        metadata = {"tags": list(tags)} if tags else {}
        cells.append(make(text, id=key, metadata=metadata))
    if cells and cells[0].source.startswith("# "):
        title, _, rest = cells[0].source.partition("\n")
        cells[0].source = f"{title}\n\n{navigate(source)}{rest and chr(10) + rest}"
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": dict(KERNEL)})


def execute(notebook, *, cwd=FOLDER, env=None, timeout=600):
    """Run a notebook in a fresh kernel, in place; return the kernel's peak in MB."""
    from nbclient import NotebookClient

    probe = nbformat.v4.new_code_cell(MEMORY)
    notebook.cells.append(probe)
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL["name"],
        timeout=timeout,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(cwd)}},
    )
    try:
        client.execute(env=kernel_environment() if env is None else env)
    finally:
        notebook.cells.pop()
    return int(probe.outputs[0].text)


def shrink_png(data):
    """Store a picture in one byte a pixel where no gray moves by more than 3 of 255."""
    from PIL import Image, ImageChops

    image = Image.open(io.BytesIO(data))
    if image.mode in ("L", "P"):  # small already, by an earlier build
        return data
    image = image.convert("RGBA")
    if image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
        few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        for small in (image.convert("L"), image.quantize(256), few):
            change = ImageChops.difference(small.convert("RGB"), image).getextrema()
            if max(high for _, high in change) <= 3:
                image = small
                break
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def clean_output(output):
    """Keep what a reader can see in a stored output and a second run gives again."""
    if output.output_type == "error":
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", frame) for frame in output.traceback]
        output.traceback = [line for line in plain if not line.startswith("File ")]
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        data.pop("text/html", None)
    if "image/png" in data:
        picture = shrink_png(base64.b64decode(data["image/png"]))
        data["image/png"] = base64.b64encode(picture).decode() + "\n"
    output.pop("execution_count", None)
    return output


def clean_outputs(outputs):
    """Clean a cell's outputs; streams that were cut in pieces become one."""
    kept = []
    for output in outputs:
        if WIDGET in output.get("data", {}):
            continue
        if kept and output.get("name", "display") == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(clean_output(output))
    return kept


def normalize(notebook):
    """Drop from an executed notebook all that differs from run to run, in place."""
    notebook.metadata = nbformat.from_dict({"kernelspec": dict(KERNEL)})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.metadata.pop("execution", None)
        cell.outputs = clean_outputs(cell.outputs)
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return notebook


def find_cover(notebook):
    """Give the PNG bytes of the cell tagged `cover`, or None."""
    for cell in notebook.cells:
        if "cover" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return None


def write(notebook, built):
    """Write a notebook and its cover picture; return the notebook's size in bytes."""
    nbformat.validate(notebook)
    data = (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode()
    built.write_bytes(data)
    if cover := find_cover(notebook):
        picture = built.parent / "images" / f"{built.stem}.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(cover)
    return len(data)


def built_path(source):
    """Give the notebook's place: one folder above its source."""
    return source.parent.parent / f"{source.stem}.ipynb"


def build(source):
    """Build one notebook from its source; print its time, memory and size."""
    notebook, start = read_source(source), time.perf_counter()
    memory = execute(notebook, cwd=source.parent.parent)
    seconds = time.perf_counter() - start
    size = write(normalize(notebook), built_path(source))
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(
        f"{source.stem:28} {cells:3} code cells {seconds:6.1f} s "
        f"{memory:5} MB {size / 1024:6.0f} kB",
        flush=True,
    )


def build_prose(source):
    """Renew the text of a built notebook whose code cells are still the same."""
    notebook, built = read_source(source), built_path(source)
    old = [c for c in nbformat.read(built, as_version=4).cells if c.cell_type == "code"]
    new = [c for c in notebook.cells if c.cell_type == "code"]
    if [c.source.strip("\n") for c in old] != [c.source for c in new]:
        raise ValueError("a code cell changed: build it without --prose")
    for before, after in zip(old, new, strict=True):
        after.outputs = before.outputs
    write(normalize(notebook), built)


def compare(source):
    """Say how a built notebook differs from its source; an empty list if not."""
    built = built_path(source)
    if not built.exists():
        return ["is not built"]
    wanted, found = read_source(source), nbformat.read(built, as_version=4)
    facts = [
        [(c.cell_type, c.id, c.source, c.metadata.get("tags", [])) for c in nb.cells]
        for nb in (wanted, found)
    ]
    problems = []
    if facts[0] != facts[1]:
        pairs = enumerate(zip(*facts, strict=False))
        first = next((n for n, (a, b) in pairs if a != b), min(map(len, facts)))
        problems.append(f"differs from its source from cell {first} on")
    counts = [c.execution_count for c in found.cells if c.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        problems.append("was not stored from one run, top to bottom")
    cover, picture = find_cover(found), built.parent / "images" / f"{built.stem}.png"
    if cover and not (picture.exists() and picture.read_bytes() == cover):
        problems.append(f"images/{picture.name} is not its cover")
    return problems


def check(sources):
    """Print what drifted; return how many notebooks did."""
    orphans = {p.stem for p in FOLDER.glob("*.ipynb")} - {
        s.stem for s in find_sources()
    }
    drifted = {stem: ["has no source"] for stem in sorted(orphans)}
    drifted |= {source.stem: found for source in sources if (found := compare(source))}
    for stem, problems in drifted.items():
        print(f"{stem}.ipynb {'; '.join(problems)}", file=sys.stderr)
    print(f"{len(sources)} sources, {len(drifted)} notebooks drifted (make notebooks)")
    return len(drifted)


def write_back(source):
    """Write the source anew from a notebook that was edited in JupyterLab."""
    notebook = nbformat.read(built_path(source), as_version=4)
    notebook.cells[0].source = NAVIGATION.sub(r"\1", notebook.cells[0].source)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    hide = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}
    notebook.metadata = nbformat.from_dict({"jupytext": hide})
    text = jupytext.writes(notebook, fmt="py:percent")
    source.write_text(text, encoding="utf-8", newline="\n")


def choose(names):
    """Pick the sources whose number or name is asked for; all when none is."""
    sources = find_sources()
    chosen = [s for s in sources if not names or {s.stem, s.stem[:2]} & set(names)]
    if not chosen or len(chosen) < len(set(names)):
        raise SystemExit(f"no such notebook among {[s.stem for s in sources]}")
    return chosen


def main(arguments=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NN", help="default: all")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--check", action="store_true", help="compare only, run nothing")
    ways.add_argument("--prose", action="store_true", help="keep the stored outputs")
    ways.add_argument("--back", action="store_true", help="notebook -> source")
    options = parser.parse_args(arguments)
    sources = choose(options.names)
    if options.check:
        return int(check(sources) > 0)
    work = write_back if options.back else build_prose if options.prose else build
    failed = 0
    for source in sources:
        try:
            work(source)
        except Exception as error:
            failed += 1
            print(f"{source.stem} failed: {error}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
