"""A scan's lung mask in three formats, and a report of the whole lesson on it."""

import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from tqdm import tqdm

from questlib import __version__
from questlib.data import PATIENT_UID, REGISTRY, choose_scan
from questlib.lungs import segment_lungs
from questlib.resample import resample
from questlib.series import choose_series, find_series
from questlib.volume import Volume, load_series

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SURFACE_MM = 2.0
COLORS = {1: "#56B4E9", 2: "#E69F00"}


def write_mask(
    folder,
    out,
    *,
    series_uid: str | None = None,
    overwrite: bool = False,
    regularize: bool = False,
    keep_identity: bool = False,
) -> dict:
    """Segment the lungs of a scan and write the mask in three formats.

    Parameters
    ----------
    folder : path
        Folder with a CT series.
    out : path
        Folder to write into: lungs.nii.gz, lungs.npz, lungs.seg.dcm (needs
        highdicom), preview.png and summary.json.
    series_uid, regularize
        As in `questlib.load_series`.
    overwrite : bool
        Replace what an earlier run wrote.
    keep_identity : bool
        lungs.seg.dcm keeps the patient's name and ID, as an archive wants it.

    Returns
    -------
    summary : dict
        What summary.json holds: planes, shape, spacing_mm, volumes_ml, findings,
        seconds.

    Raises
    ------
    SeriesError
        If there is no right volume to be had from `folder`.
    ValueError
        If `out` is not empty or lies in `folder`.

    Built for the command ``questlib mask``.
    """
    with _staging(out, folder, overwrite) as stage, _Steps(4) as step:
        volume, lungs = _segment(folder, step, series_uid, regularize=regularize)
        with step("write"):
            _write_products(volume, lungs, stage)
        with step("write DICOM SEG"):
            _write_seg(stage, lungs, folder, series_uid, keep_identity=keep_identity)
        return _write_summary(stage, volume, lungs, step)


def write_report(
    folder,
    out,
    *,
    series_uid: str | None = None,
    overwrite: bool = False,
    notebooks=None,
) -> dict:
    """Take a scan through all notebooks and write a report that opens offline.

    Parameters
    ----------
    folder : path or None
        Folder with a CT series; None takes `questlib.choose_scan`.
    out : path
        Folder to write into: index.html, notebooks/*.html, lungs.nii.gz, lungs.npz,
        preview.png and summary.json.
    series_uid, overwrite
        As in `write_mask`.
    notebooks : path, optional
        Folder with the built notebooks; default: those of this checkout.

    Returns
    -------
    summary : dict
        As `write_mask`.

    Raises
    ------
    SeriesError, ValueError
        As `write_mask`; also when there are no notebooks, or none runs.

    Notes
    -----
    A cell that fails on this scan is marked in the report and the rest goes on.

    Built for the command ``questlib run``.
    """
    from questlib.lesson import copy_without_identity, run_notebooks, write_pages

    paths = sorted(Path(notebooks or NOTEBOOKS).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(
            "the notebooks are not here: run this in a checkout of DICOM Quest, "
            "installed with `uv sync` or `pip install -e .`, or use `questlib mask`"
        )
    chosen = folder is None and not os.environ.get("QUEST_SCAN")
    folder = choose_scan() if folder is None else folder
    with _staging(out, folder, overwrite) as stage, _Steps(5 if chosen else 6) as step:
        volume, lungs = _segment(folder, step, series_uid)
        with step("write"):
            _write_products(volume, lungs, stage)
        series = choose_series(find_series(folder), series_uid)
        public = series.uid == PATIENT_UID
        patient = public and _is_patient(series.files)
        with tempfile.TemporaryDirectory(prefix="questlib-") as work:
            scan = None if chosen else Path(work) / "scan"
            if scan:
                with step("copy without names"):
                    copy_without_identity(series.files, scan)
            runs = run_notebooks(paths, Path(work), scan)
        step.seconds |= {run["name"]: run["seconds"] for run in runs}
        with step("pages"):
            write_pages(runs, stage / "notebooks", patient=patient)
        with step("surface"):
            surface = _draw_surface(lungs)
        summary = _write_summary(stage, volume, lungs, step)
        kind = "patient" if patient else "phantom" if chosen else "own"
        _write_index(stage, surface, runs, summary, kind=kind, public=public)
        return summary


@contextmanager
def _staging(out, folder, overwrite):
    """Collect a run's files in a hidden folder; move them to `out` when all is well."""
    out, folder = Path(out).resolve(), Path(folder).resolve()
    if out == folder or folder in out.parents:
        raise ValueError("--out lies in the folder of the scan: choose another place")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        if any(out.iterdir()) and not overwrite:
            raise ValueError(
                f"{out.name} is not empty: choose another folder, or pass --overwrite "
                "to replace what an earlier run left there"
            )
        with tempfile.TemporaryDirectory(prefix=".questlib-", dir=out) as stage:
            yield Path(stage)
            for path in Path(stage).iterdir():
                shutil.rmtree(out / path.name, ignore_errors=True)  # an old folder
                path.replace(out / path.name)
    finally:
        if new:
            with suppress(OSError):  # only an empty folder can be removed
                out.rmdir()


class _Steps:
    """Time the steps of a run and show them on a progress bar (stderr)."""

    def __init__(self, total):
        self.seconds, self.start = {}, time.perf_counter()
        self.bar = tqdm(total=total, bar_format="{desc:20} |{bar:30}| {elapsed}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    @contextmanager
    def __call__(self, name):
        self.bar.set_description_str(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.bar.update()


def _is_patient(files):
    """Tell the tutorial's patient by every pixel: some planes, or a UID, may lie."""
    planes = (pydicom.dcmread(file, force=True).PixelData for file in files)
    found = [hashlib.sha256(pixels).hexdigest() for pixels in planes]
    return sorted(found) == sorted(REGISTRY["patient"]["pixels"].values())


def _segment(folder, step, series_uid, *, regularize=False):
    with step("load"):
        volume = load_series(folder, series_uid=series_uid, regularize=regularize)
    with step("segment"):
        return volume, segment_lungs(volume)


def _write_products(volume, lungs, stage):
    import matplotlib.pyplot as plt

    from questlib.display import show_three_planes, use_style
    from questlib.export import save_nifti

    save_nifti(stage / "lungs.nii.gz", lungs.labels, like=volume)
    place = {name: getattr(lungs, name) for name in ("spacing", "origin", "direction")}
    np.savez_compressed(stage / "lungs.npz", array=lungs.labels, **place)
    plt.switch_backend("agg")
    middle = None
    if lungs.labels.any():
        middle = np.argwhere(lungs.labels).mean(axis=0).astype(int)
        across = np.argmax(np.abs(volume.direction[0]))  # the sagittal cut: one lung
        one = np.bincount(lungs.labels.ravel(), minlength=3)[1:].argmax() + 1
        middle[across] = np.argwhere(lungs.labels == one)[:, across].mean()
    with plt.rc_context():
        use_style()
        labels = np.where(lungs.airway & (lungs.labels == 0), 3, lungs.labels)
        axes = show_three_planes(volume, middle, labels=labels)
        figure = axes[0].figure
        figure.savefig(stage / "preview.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def _like(lungs, array):
    return Volume(array, lungs.spacing, lungs.origin, lungs.direction)


def _write_seg(stage, lungs, folder, series_uid, *, keep_identity):
    try:
        import highdicom  # noqa: F401
    except ImportError:
        tqdm.write(
            "lungs.seg.dcm needs highdicom: pip install questlib[seg]", sys.stderr
        )
        return
    from questlib.export import save_dicom_seg

    path = stage / "lungs.seg.dcm"
    options = {"series_uid": series_uid, "deidentify": not keep_identity}
    save_dicom_seg(path, lungs, folder, **options)


def _write_summary(stage, volume, lungs, step):
    seconds = step.seconds | {"total": time.perf_counter() - step.start}
    names = ("right", "left", "airway")
    summary = {
        "planes": volume.shape[0],
        "shape": list(volume.shape),
        "spacing_mm": [round(mm, 4) for mm in volume.spacing],
        "volumes_ml": {name: round(lungs.volumes_ml[name], 1) for name in names},
        "findings": list(lungs.findings),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    (stage / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return summary


def _draw_surface(lungs):
    """Give the lungs' surface twice: to turn on the screen (HTML), and still (PNG)."""
    import matplotlib.pyplot as plt

    from questlib.lesson import plotly_html
    from questlib.surface import (
        explore_surface,
        extract_surface,
        show_surface,
        simplify_surface,
        smooth_surface,
    )

    if not lungs.labels.any():
        return "", ""
    figure, corners = None, []
    still, ax = plt.subplots(figsize=(6, 6), subplot_kw={"projection": "3d"})
    for label, color in COLORS.items():
        part = np.where(lungs.labels == label, np.int16(100), np.int16(0))
        if not part.any():
            continue
        vertices, faces = extract_surface(resample(_like(lungs, part), SURFACE_MM), 50)
        vertices = smooth_surface(vertices, faces)
        surface = simplify_surface(vertices, faces, cell=2 * SURFACE_MM)
        one = explore_surface(*surface, color=color)
        figure = one if figure is None else figure.add_traces(one.data)
        show_surface(*surface, color=color, ax=ax)
        corners += [surface[0].min(axis=0), surface[0].max(axis=0)]
    for axis, low, high in zip(
        "xyz", np.min(corners, 0), np.max(corners, 0), strict=True
    ):
        ax.set(**{f"{axis}lim": (low, high)})
    ax.set_aspect("equal")
    picture = io.BytesIO()
    still.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(still)
    figure.layout.height = None
    figure.update_scenes(
        camera={"eye": {"x": 0.4, "y": -1.9, "z": 0.3}, "center": {"z": -0.1}}
    )
    return plotly_html(json.loads(figure.to_json()), "lungs"), _embed(
        picture.getvalue()
    )


def _embed(data):
    return base64.b64encode(data).decode()


def _write_index(stage, surface, runs, summary, *, kind, public):
    from questlib.lesson import plotly_js, template

    titles = {"patient": "The tutorial's patient", "phantom": "The phantom"}
    volumes = summary["volumes_ml"]
    both = {"both": volumes["right"] + volumes["left"]}
    page = template("index.html").render(
        title=titles.get(kind, "Your scan"),
        kind=kind,
        public=public,
        summary=summary,
        volumes=volumes | both,
        preview=_embed((stage / "preview.png").read_bytes()),
        surface=surface[0],
        still=surface[1],
        plotly_js=plotly_js(),
        runs=runs,
        versions=_versions(),
    )
    (stage / "index.html").write_text(page, "utf-8")


def _versions():
    names = ("numpy", "scipy", "scikit-image", "pydicom", "matplotlib", "plotly")
    parts = [f"questlib {__version__}", f"Python {sys.version.split()[0]}"]
    return ", ".join(parts + [f"{name} {version(name)}" for name in names])
