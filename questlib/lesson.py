"""The notebooks, run on any scan and shown as pages that need no network.

No identifier gets in by construction: the notebooks never see the reader's files, but
a copy whose text is emptied and whose UIDs and file names are made up.
"""

import base64
import html
import io
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from subprocess import DEVNULL

import jinja2
import nbformat
import pydicom
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from pydicom.multival import MultiValue
from tqdm import tqdm

KERNELS = 2  # at once; each stays below 1 GB
CELL_SECONDS = 300
PLOTLY = "application/vnd.plotly.v1+json"

# the only words that the copy of a scan keeps; none can name a person
WORDS = """ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER REFORMATTED VOLUME CT HU
    US RESAMPLED AVERAGE MPR MIN_IP MAX_IP NONE MIXED HELIX HELICAL SPIRAL SEQUENCED YES
    NO MONOCHROME1 MONOCHROME2 HFS HFP HFDR HFDL FFS FFP FFDR FFDL 00 01 CHEST"""
TERMS = frozenset(WORDS.split())
NUMBERS = frozenset(("US", "SS", "UL", "SL", "FL", "FD", "AT", "IS", "DS", "UV", "SV"))
TEXTS = frozenset(
    ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
)
GROUPS = {0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x5200}
PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
STUDY_NUMBERS = {0x002000AA, 0x00201070}  # of a report, of other studies


def copy_without_identity(files, folder: Path) -> None:
    """Copy the planes of a series under neutral names, without what identifies.

    Parameters
    ----------
    files : list of Path
        DICOM files of one series.
    folder : Path
        Where to write 0001.dcm, 0002.dcm, ... in the order of the old names.

    Notes
    -----
    What stays is chosen, not what goes: numbers about the image, standard terms, and
    the pixels, bit for bit. Text and dates are emptied; private, overlay and unknown
    elements go; UIDs are made up anew, the same one for the same one.

    References
    ----------
    DICOM PS3.15, annex E (attribute confidentiality profiles).

    Built for the command ``questlib run``.
    """
    folder.mkdir()
    secret = secrets.token_hex()
    with warnings.catch_warnings(action="ignore"):  # pydicom's would quote the header
        for number, path in enumerate(sorted(files), start=1):
            _copy(path, folder / f"{number:04}.dcm", secret)


def _copy(path, copy, secret):
    ds = pydicom.dcmread(path, force=True)
    syntax = ds.file_meta.get("TransferSyntaxUID")
    _empty(ds, secret)
    # what a file must have, also where the scanner left it out
    if ds.get("SOPClassUID") not in pydicom.uid.UID_dictionary:
        ds.SOPClassUID = pydicom.uid.CTImageStorage
    ds.SOPInstanceUID = ds.get("SOPInstanceUID") or pydicom.uid.generate_uid()
    ds.preamble = bytes(128)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    if syntax:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(copy, enforce_file_format=bool(syntax))


def _empty(ds, secret):
    for tag in set(ds.keys()) - PIXELS:
        try:
            known = tag.group in GROUPS and not tag.is_private
            vr = ds[tag].VR if known and tag not in STUDY_NUMBERS else "UN"
            if vr == "SQ":
                for item in ds[tag].value:
                    _empty(item, secret)
            elif vr == "UI":
                ds[tag].value = _rename(ds[tag].value, secret)
            elif vr in TEXTS and ds[tag].keyword != "SpecificCharacterSet":
                ds[tag].value = _keep_terms(ds[tag].value)
            elif tag.group == 0x0010 or not _are_numbers(vr, ds[tag].value):
                del ds[tag]
        except Exception:  # a value that pydicom cannot read does not travel
            del ds[tag]


def _rename(value, secret):
    """Replace a UID by a made-up one, unless the standard itself defines it."""
    if isinstance(value, MultiValue):
        return [_rename(one, secret) for one in value]
    if not value or value in pydicom.uid.UID_dictionary:
        return value
    return pydicom.uid.generate_uid(entropy_srcs=[secret, value])


def _are_numbers(vr, value):
    """Tell numbers from the text that pydicom leaves where a number should stand."""
    if vr not in NUMBERS:
        return False
    values = value if isinstance(value, MultiValue | list) else [value]
    return all(not one or isinstance(one, int | float | Decimal) for one in values)


def _keep_terms(value):
    values = value if isinstance(value, MultiValue) else [value]
    kept = [one if str(one).replace(" ", "_") in TERMS else "" for one in values]
    return kept if any(kept) else ""


def run_notebooks(paths, work: Path, scan: Path | None) -> list[dict]:
    """Execute notebooks on a scan, two kernels at once, with a progress bar.

    Parameters
    ----------
    paths : list of Path
        Built notebooks; their stored outputs are dropped first.
    work : Path
        The folder in which the kernels run.
    scan : Path or None
        The scan; None lets each notebook choose.

    Returns
    -------
    runs : list of dict
        For each notebook its name, title, executed notebook, seconds, number of cells
        and of failed ones, and its cover picture (PNG in base64, or None).

    Raises
    ------
    ValueError
        If no kernel starts.

    Built for the command ``questlib run``.
    """
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    total = sum(len(_code(notebook)) for notebook in notebooks)
    form, stop = "{desc:20} |{bar:30}| {n}/{total} cells {elapsed}", threading.Event()
    with tqdm(total=total, bar_format=form) as bar, ThreadPoolExecutor(KERNELS) as pool:

        def run(path, notebook):
            def before(cell, cell_index):
                if stop.is_set():
                    raise RuntimeError("stopped")
                bar.set_description_str(path.stem[:20])
                cell.execution_count = 0  # reached

            hooks = {
                "on_cell_execute": before,
                "on_cell_executed": lambda **_: bar.update(),
            }
            start = time.perf_counter()
            _execute(notebook, work, scan, hooks)
            return _describe(notebook, path.stem, time.perf_counter() - start)

        jobs = [pool.submit(run, *pair) for pair in zip(paths, notebooks, strict=True)]
        try:
            runs = [job.result() for job in jobs]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if all(run["failed"] == run["cells"] for run in runs):
        raise ValueError("no notebook runs: the Jupyter kernel does not start")
    return runs


class _ThisPython(AsyncKernelManager):
    """The kernel of the Python that runs now, whatever kernels are registered."""

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
    )


def _execute(notebook, work, scan, hooks):
    for cell in _code(notebook):  # the stored outputs may show another patient
        cell.outputs, cell.execution_count = [], None
    env = {k: v for k, v in os.environ.items() if k not in ("QUEST_SCAN", "MPLBACKEND")}
    env |= {"PYTHONHASHSEED": "0", "PLOTLY_RENDERER": "plotly_mimetype"}
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        interrupt_on_timeout=True,
        allow_errors=True,
        coalesce_streams=True,
        kernel_manager_class=_ThisPython,
        resources={"metadata": {"path": str(work)}},
        **hooks,
    )
    env |= {"QUEST_SCAN": str(scan)} if scan else {}
    try:
        client.execute(env=env, stdout=DEVNULL, stderr=DEVNULL)
    except (DeadKernelError, RuntimeError):
        why = {
            "ename": "MemoryError",
            "evalue": "the kernel stopped; too little memory?",
        }
        reached = [cell for cell in _code(notebook) if cell.execution_count is not None]
        for cell in reached[-1:]:
            cell.outputs.append(nbformat.v4.new_output("error", traceback=[], **why))


def _describe(notebook, name, seconds):
    code = _code(notebook)
    covers = [
        output.data["image/png"]
        for cell in code
        for output in cell.outputs
        if "cover" in _tags(cell) and "image/png" in output.get("data", {})
    ]
    return {
        "name": name,
        "title": notebook.cells[0].source.split("\n")[0].lstrip("# "),
        "notebook": notebook,
        "seconds": seconds,
        "cells": len(code),
        "failed": sum(_has_failed(cell) for cell in code),
        "cover": covers[0] if covers else None,
    }


def _code(notebook):
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [cell for cell in cells if cell.source.strip()]


def _tags(cell):
    return cell.metadata.get("tags", [])


def _has_failed(cell):
    if "raises-exception" in _tags(cell):
        return False
    error = any(output.output_type == "error" for output in cell.outputs)
    return error or cell.execution_count is None


def write_pages(runs: list[dict], folder: Path, *, patient: bool) -> None:
    """Write executed notebooks as HTML pages that need no network.

    Parameters
    ----------
    runs : list of dict
        From `run_notebooks`; the notebooks in it are cleaned in place.
    folder : Path
        A new folder for NN_name.html and, where needed, plotly.min.js.
    patient : bool
        The scan is the tutorial's patient. If not, the cells tagged ``patient`` are
        marked as written about somebody else.

    Built for the command ``questlib run``.
    """
    from nbconvert import HTMLExporter

    folder.mkdir()
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    covers = {run["name"]: run["cover"] for run in runs}
    for run in runs:
        clean(run["notebook"], covers, patient=patient)
        body, _ = exporter.from_notebook_node(run["notebook"])
        page = template("notebook.html").render(run=run, body=body, patient=patient)
        (folder / f"{run['name']}.html").write_text(page, "utf-8")
        if "Plotly.newPlot" in body:
            (folder / "plotly.min.js").write_text(plotly_js(), "utf-8")


def template(name: str) -> jinja2.Template:
    """Give a page template of this package; it escapes what is put in."""
    loader = jinja2.PackageLoader("questlib", "static")
    return jinja2.Environment(loader=loader, autoescape=True).get_template(name)


def plotly_js() -> str:
    """Give plotly's own JavaScript, without the address of its map server."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("https://cdn.plot.ly/", "")


def plotly_html(figure: dict, name: str) -> str:
    """Write a plotly figure as HTML that draws itself where plotly.min.js is loaded.

    Examples
    --------
    >>> print(plotly_html({"data": ["</script>"], "layout": {}}, "a"))
    <div class="plot" id="a"></div><script>Plotly.newPlot("a", ["<\\/script>"], {},
    {displaylogo: false, responsive: true})</script>
    """
    data, layout = (
        json.dumps(figure[part]).replace("</", "<\\/") for part in ("data", "layout")
    )
    options = "{displaylogo: false, responsive: true}"
    draw = f'Plotly.newPlot("{name}", {data}, {layout}, {options})'
    return f'<div class="plot" id="{name}"></div><script>{draw}</script>'


ANOTHER = (
    "> **Written about the tutorial's patient, not your scan.** Numbers and findings "
    "in the next lines are another person's.\n\n"
)
WIDGET_NOTE = '<p class="note">An interactive view: it moves in JupyterLab.</p>'


def clean(notebook, covers: dict, *, patient: bool) -> None:
    """Make an executed notebook fit to show, in place: no paths, no foreign pictures.

    Parameters
    ----------
    notebook : NotebookNode
    covers : dict
        Name of a notebook -> its cover picture from this run (base64), or None.
    patient : bool
        As in `write_pages`.

    Built for the command ``questlib run``.
    """
    lost, notebook.metadata = False, nbformat.from_dict({})  # no state of widgets
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            _relink(cell, covers)
            cell.source = re.sub(FORMULA, _typeset, cell.source)
            if "patient" in _tags(cell) and not patient:
                cell.source = ANOTHER + cell.source
        elif cell.cell_type == "code":
            failed = bool(cell.source.strip()) and _has_failed(cell)
            cell.metadata["alt"] = "What the code above shows"
            cell.outputs = [
                _clean_output(output, f"plot-{number}-{at}", failed, lost)
                for at, output in enumerate(cell.outputs)
            ]
            if failed and cell.execution_count is None:
                cell.outputs = [_explain("This step was not reached.")]
            lost = lost or failed


def _relink(cell, covers):
    """Take pictures from this run, link pages instead of notebooks, drop the rest."""
    cell.attachments = {}

    def picture(match):
        name = Path(match["to"]).stem
        if not covers.get(name):
            return f"*{match['text']}*" if match["text"] else ""
        cell.attachments[f"{name}.png"] = {"image/png": covers[name].strip()}
        return f"![{match['text']}](attachment:{name}.png)"

    def link(match):
        address, _, anchor = match["to"].partition("#")
        if Path(address).stem in covers and address.endswith(".ipynb"):
            anchor = anchor and f"#{anchor}"
            return f"[{match['text']}]({Path(address).stem}.html{anchor})"
        outside = match["to"].startswith(("https://", "http://", "#", "mailto:"))
        return match[0] if outside else match["text"]

    target = r"\[(?P<text>[^\[\]]*)\]\((?P<to>[^()\s]+(?:\([^()]*\))?)[^()]*\)"
    cell.source = re.sub("!" + target, picture, cell.source)
    cell.source = re.sub("(?<!!)" + target, link, cell.source)


FORMULA = r"`[^`]*`|(?P<block>\$\$)(?P<a>.+?)\$\$|\$(?P<b>[^\s$][^$\n]*)\$"


def _typeset(match):
    """Draw a formula as a picture: the usual JavaScript would come from the network."""
    from matplotlib.mathtext import math_to_image

    formula, picture = match["a"] or match["b"], io.BytesIO()
    if formula is None:  # code
        return match[0]
    try:
        depth = math_to_image(f"${formula}$", picture, dpi=288) / 10  # in em
    except ValueError:
        return f"`{formula}`"
    data = picture.getvalue()
    height = int.from_bytes(data[20:24], "big") / 40  # 288 dots an inch, 10 points
    style = "display: block; margin: 1rem auto" if match["block"] else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f'<img alt="{html.escape(formula)}" src="{source}" '
        f'style="height: {height:.2f}em; vertical-align: {-depth:.2f}em; {style}">'
    )


def _clean_output(output, name, failed, lost):
    if output.output_type == "stream":
        output.text = scrub(output.text)
    elif output.output_type == "error":
        if failed and lost and output.ename == "NameError":
            return _explain("This step needs an earlier one that did not work.")
        output.evalue = f"{output.ename}: {scrub(output.evalue)}"
        if failed:
            return _explain(f"This step does not work on this scan. {output.evalue}")
        output.traceback = [output.evalue]
    else:
        kept = {
            k: v for k, v in output.data.items() if k in ("image/png", "image/jpeg")
        }
        if PLOTLY in output.data:
            kept = {"text/html": plotly_html(output.data[PLOTLY], name)}
        elif any("widget-view" in kind for kind in output.data):
            kept = {"text/html": WIDGET_NOTE}
        elif not kept and "text/plain" in output.data:
            kept = {"text/plain": scrub(output.data["text/plain"])}
        output.data = nbformat.from_dict(kept)
    return output


def _explain(text):
    note = f'<p class="failed">{html.escape(text)}</p>'
    return nbformat.v4.new_output("display_data", {"text/html": note})


def scrub(text: str) -> str:
    """Replace paths of this machine in a text.

    Examples
    --------
    >>> scrub("No such file: '/home/anna b/1.dcm'; 2 mL/min and 3/4 stay")
    "No such file: '[path]'; 2 mL/min and 3/4 stay"
    """
    text = re.sub(r"(['\"])(?:/|[A-Za-z]:\\)[^'\"\n]+\1", r"\1[path]\1", text)
    known = {str(Path.home()), tempfile.gettempdir(), sys.prefix, str(Path.cwd())}
    known = "|".join(map(re.escape, sorted(known - {"/"}, key=len, reverse=True)))
    tail = r"[^\s'\"<>:,;)]*"
    return re.sub(rf"(?:{known}|(?<![\w.:/])/(?=[^\s/]+/)){tail}", "[path]", text)
