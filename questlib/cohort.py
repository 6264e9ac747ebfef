"""Many scans to one store that a network can read (built in notebook 11).

Each scan is one task: load, mask, resample, fit, write its own region. A task that is
run twice writes the same, so a killed worker or an interrupted run costs only time.
"""

import csv
import hashlib
import json
import math
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from tqdm import tqdm

from questlib.lungs import orient, segment_lungs
from questlib.resample import fit_shape, resample
from questlib.series import SeriesWarning
from questlib.volume import Volume, load_series

FIELD_MM = 320, 320, 400  # the box around the chest that is kept: plane, row, column
LARGEST_VOXELS = 2_000_000_000  # of one scan: 4 GB of HU
COLUMNS = (
    *("index", "key", "status", "error", "seconds"),
    *("planes", "rows", "columns", "plane_mm", "row_mm", "column_mm"),
    *("right_ml", "left_ml", "airway_ml", "findings"),
)


_LOADING = threading.Lock()  # what is warned of is caught for all threads at once


class Cohort(NamedTuple):
    """Scans of one shape and spacing, on disk.

    `image` is a Zarr array of int16 HU and `mask` of uint8 (0 background, 1 right lung,
    2 left lung, 3 airway), both (scan, plane, row, column), planes to the head, rows to
    the back, columns to the patient's left. `manifest` has one dict a scan, in the same
    order, with the columns of manifest.csv; where its `status` is "failed" the arrays
    hold air and background.
    """

    image: zarr.Array
    mask: zarr.Array
    manifest: list


def build_cohort(
    folders,
    out,
    *,
    spacing: float = 1.0,
    shape: tuple | None = None,
    client=None,
    workers: int = 2,
) -> Cohort:
    """Bring many scans to one spacing and shape, with their lung masks, in one store.

    Parameters
    ----------
    folders : iterable of path, or dict of key to path
        One folder a scan. Without keys of yours, a key is a hash of the path.
    out : path
        Folder for ``cohort.zarr`` and ``manifest.csv``. If an earlier run left them
        there, only what is missing or failed is done.
    spacing : float or 3 floats
        In mm.
    shape : 3 ints, optional
        Default: 320 x 320 x 400 mm.
    client : distributed.Client, optional
        Runs the scans on its cluster, whose workers must see the same folders.
        Default: threads of this process.
    workers : int
        How many threads, without `client`.

    Returns
    -------
    Cohort

    Raises
    ------
    ValueError
        If `out` holds a cohort of another spacing or shape, a folder is given twice, or
        spacing or shape make no sense.

    Notes
    -----
    A scan that cannot be used becomes a row with its reason and stops nobody. Rows and
    store name no file, path or patient. Whoever guesses a path can check the guess by
    its hash: choose keys of your own for a store that you give away.

    Built in notebook 11.
    """
    spacing, shape = _check_grid(spacing, shape)
    folders = name_scans(folders)
    out = Path(out).absolute()
    keys = _prepare_store(out, list(folders), spacing, shape)
    done = {row["key"] for row in _read_rows(out) if row["status"] == "done"}
    tasks = [
        (key, str(Path(folder).absolute()), keys.index(key), str(out), spacing, shape)
        for key, folder in folders.items()
        if key not in done
    ]
    rows = {}
    try:
        with closing(_run_all(tasks, client, workers)) as running:
            for row in tqdm(running, total=len(tasks), unit="scan", disable=None):
                rows[row["key"]] = row
    finally:
        _write_manifest(out, keys, rows)
    return open_cohort(out)


def open_cohort(out) -> Cohort:
    """Open what `build_cohort` wrote, without reading a voxel.

    Parameters
    ----------
    out : path

    Returns
    -------
    Cohort

    Built in notebook 11.
    """
    group = zarr.open_group(Path(out) / "cohort.zarr", mode="r")
    with (Path(out) / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return Cohort(group["image"], group["mask"], list(csv.DictReader(file)))


def name_scans(folders) -> dict:
    """Give each folder the key under which `build_cohort` stores its scan.

    Parameters
    ----------
    folders : iterable of path, or dict of key to path
        A dict keeps its keys.

    Returns
    -------
    folders : dict of str to path
        Without keys: ``s`` and 12 hex digits of the sha256 of the full path.

    Raises
    ------
    ValueError
        If a folder is given twice.

    Examples
    --------
    >>> name_scans({1: "first", 2: "second"})
    {'1': 'first', '2': 'second'}

    Built in notebook 11.
    """
    if isinstance(folders, dict):
        return {str(key): folder for key, folder in folders.items()}
    paths = [str(Path(folder).resolve()) for folder in folders]
    # "s": a spreadsheet would take 12e456789012 for a number
    keys = ["s" + hashlib.sha256(path.encode()).hexdigest()[:12] for path in paths]
    if len(set(keys)) < len(keys):
        raise ValueError("a folder is given twice")
    return dict(zip(keys, paths, strict=True))


def _check_grid(spacing, shape):
    """Return 3 spacings and 3 sizes, or refuse."""
    lengths = np.broadcast_to(np.asarray(spacing, float), 3)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"spacing must be positive mm, not {spacing}")
    if shape is None:
        shape = [round(field / mm) for field, mm in zip(FIELD_MM, lengths, strict=True)]
    voxels = math.prod(map(int, shape))
    if len(shape) != 3 or min(shape) < 1 or voxels > LARGEST_VOXELS:
        raise ValueError(
            f"a scan of {' x '.join(map(str, shape))} voxels: 3 numbers from 1, and "
            f"{LARGEST_VOXELS / 1e9:.0f} billion voxels at most"
        )
    return tuple(lengths.tolist()), tuple(map(int, shape))


def _prepare_store(out, keys, spacing, shape):
    """Make or open the store, with a place for every key; return all keys."""
    (out / "rows").mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(out / "cohort.zarr", mode="a")
    made = {"spacing_mm": list(spacing), "shape": list(shape)}
    old = dict(group.attrs)
    if old and {name: old[name] for name in made} != made:
        raise ValueError(
            f"this store has spacing {old['spacing_mm']} mm and shape {old['shape']}: "
            "ask for the same, or take another folder"
        )
    keys = list(dict.fromkeys([*old.get("keys", []), *keys]))
    for name, dtype, fill in (("image", "int16", -1000), ("mask", "uint8", 0)):
        if name in group:
            group[name].resize((len(keys), *shape))
        else:
            group.create_array(
                name,
                shape=(len(keys), *shape),
                chunks=(1, min(64, shape[0]), *shape[1:]),
                dtype=dtype,
                fill_value=fill,
            )
    group.attrs.update(made | {"keys": keys})
    return keys


def _run_all(tasks, client, workers):
    """Yield the row of each scan as it is done."""
    if client is None:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(process_scan, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
        return
    from distributed import as_completed as completed

    # `pure=False`: the result is a file, so equal arguments are no reason to skip
    futures = [client.submit(process_scan, *task, pure=False) for task in tasks]
    keys = {future.key: task[0] for future, task in zip(futures, tasks, strict=True)}
    try:
        for future in completed(futures):
            error = future.exception()  # of the cluster: a scan's own is in its row
            yield _failed(keys[future.key], error) if error else future.result()
    finally:
        client.cancel(futures)


def process_scan(key, folder, index, out, spacing, shape) -> dict:
    """Do one scan: load, mask, resample, fit, and write its region of the store.

    Parameters
    ----------
    key, folder : str
    index : int
        Its place in the store.
    out, spacing, shape
        As in `build_cohort`.

    Returns
    -------
    row : dict
        Its line of the manifest, which is also saved when all voxels are written.

    Built in notebook 11.
    """
    start = time.perf_counter()
    try:
        row = _write_scan(folder, index, Path(out), spacing, shape)
    except Exception as error:
        row = _failed(key, error)
    row |= {"key": key, "seconds": round(time.perf_counter() - start, 2)}
    path = _row_path(Path(out), key)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps(row), encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # the row still reaches the caller
    return row


def _write_scan(folder, index, out, spacing, shape):
    volume, findings = _load(folder)
    sizes = dict(zip(("planes", "rows", "columns"), volume.shape, strict=True))
    lengths = zip(("plane_mm", "row_mm", "column_mm"), volume.spacing, strict=True)
    volume = _turn(volume)
    lungs = segment_lungs(volume)
    labels = np.where(lungs.airway, 3, lungs.labels).astype(np.uint8)
    labels = resample(
        Volume(labels, lungs.spacing, lungs.origin, lungs.direction), spacing, order=0
    )
    mask = fit_shape(labels, shape, fill=0)
    findings += lungs.findings
    inside, kept = np.count_nonzero(labels.array), np.count_nonzero(mask.array)
    if kept < inside:
        findings.append(f"{100 * (1 - kept / inside):.1f} % of the mask is cut off")
    image = fit_shape(resample(volume, spacing), shape)
    group = zarr.open_group(out / "cohort.zarr", mode="r+")
    group["image"][index] = np.rint(image.array).clip(-32768, 32767).astype(np.int16)
    group["mask"][index] = mask.array
    return (
        {"status": "done", "findings": "; ".join(findings), "error": ""}
        | sizes
        | {name: round(float(mm), 4) for name, mm in lengths}
        | {f"{name}_ml": round(float(ml), 1) for name, ml in lungs.volumes_ml.items()}
    )


def _turn(volume):
    """Turn a scan by right angles: planes to the head, rows to the back, columns left.

    A store keeps no direction, so that all its scans must lie the same way.
    """
    array, spacing, order, flip = orient(volume)
    corner = np.zeros(3)
    corner[order] = [
        n - 1 if turned else 0 for n, turned in zip(array.shape, flip, strict=True)
    ]
    origin = (volume.affine @ [*corner, 1])[:3]
    direction = volume.direction[:, order] * np.where(flip, -1, 1)
    return Volume(array, spacing, origin, direction)


def _load(folder):
    """Load a scan; return it with the loader's warnings, without the files' names."""
    with _LOADING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SeriesWarning)
        volume = load_series(folder)
    notes = [note.message for note in caught if note.category is SeriesWarning]
    return volume, list(dict.fromkeys(note.reason for note in notes))


def _failed(key, error):
    """Return the row of a scan that could not be used, without its file's name."""
    words = getattr(error, "reason", None) or getattr(error, "strerror", None)
    if not words and isinstance(error, ValueError):  # others might quote a path
        words = str(error)
    words = words or type(error).__name__
    return {"key": key, "status": "failed", "error": words}


def _row_path(out, key):
    name = hashlib.sha256(key.encode()).hexdigest()[:16]  # a key may be any text
    return out / "rows" / f"{name}.json"


def _read_rows(out):
    paths = sorted((out / "rows").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _write_manifest(out, keys, fresh):
    """Write manifest.csv from saved and fresh rows, in the order of the store."""
    rows = {row["key"]: row for row in _read_rows(out)} | fresh
    part = out / "manifest.csv.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        for index, key in enumerate(keys):
            row = rows.get(key, {"status": "missing"}) | {"key": key, "index": index}
            table.writerow({name: _plain(value) for name, value in row.items()})
    part.replace(out / "manifest.csv")


def _plain(value):
    """Keep a spreadsheet from taking a text for a formula."""
    text = " ".join(str(value).split())
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def join_npy(folder, out) -> tuple:
    """Join the ``.npy`` files of a folder into one array, without loading them all.

    Parameters
    ----------
    folder : path
        Holds one array a patient, as the tutorial of 2017 saved them.
    out : path
        The joined ``.npy`` file to write; it must not exist.

    Returns
    -------
    joined : (n, ...) memory map
        The arrays of the most frequent shape, in the order of their file names.
    names : list of str
        The files that are in it.
    left_out : list of (name, shape)
        The files that do not fit; bring them to one shape with `fit_shape`.

    Raises
    ------
    ValueError
        If no file holds an array.
    FileExistsError
        If `out` exists.

    Built in notebook 11.
    """
    out, arrays = Path(out), {}
    if out.exists():
        raise FileExistsError(f"{out.name} exists already: choose another name")
    for path in sorted(Path(folder).glob("*.npy")):
        arrays[path.name] = np.load(path, mmap_mode="r", allow_pickle=False)
    if not arrays:
        raise ValueError("no .npy file in this folder")
    shapes = [array.shape for array in arrays.values()]
    shape = max(dict.fromkeys(shapes), key=shapes.count)
    names = [name for name, array in arrays.items() if array.shape == shape]
    dtype = np.result_type(*(arrays[name].dtype for name in names))
    out.parent.mkdir(parents=True, exist_ok=True)
    joined = np.lib.format.open_memmap(out, "w+", dtype, (len(names), *shape))
    for place, name in zip(joined, names, strict=True):
        place[...] = arrays[name]
    joined.flush()
    return joined, names, [(n, a.shape) for n, a in arrays.items() if n not in names]
