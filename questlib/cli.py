"""The command line: list, mask or run a scan, many scans, phantom and patient."""

import argparse
import logging
import signal
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from questlib import __version__


def _list(options):
    from questlib.series import find_series

    found = find_series(options.folder)
    rows = [("no.", "modality", "planes", "rows x columns", "spacing in mm")]
    for number, one in enumerate(found, start=1):
        shape = " x ".join(str(size) for size in one.shape or ()) or "mixed"
        spacing = " x ".join(f"{mm:.3f}" for mm in one.spacing or ()) or "no volume"
        rows.append((f"{number}", one.modality, f"{one.planes}", shape, spacing))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else ():
        cells = zip(row, widths, strict=True)
        print(_plain("  ".join(cell.ljust(width) for cell, width in cells).rstrip()))
    for name, reason in found.skipped:
        print(f"skipped {_plain(name)}: {_plain(reason)}")
    if not found:
        raise _no_series(options.folder)


def _no_series(folder):
    name = folder.name or "this folder"
    return ValueError(
        f"no DICOM series in {name}: give the folder with the scan's files"
    )


def _mask(options):
    from questlib.report import write_mask

    summary = write_mask(
        options.folder,
        options.out,
        series_uid=_find_uid(options),
        overwrite=options.overwrite,
        regularize=options.regularize,
        keep_identity=options.keep_identity,
    )
    _say(summary, options.out)


def _run(options):
    from questlib.report import write_report

    summary = write_report(
        options.folder,
        options.out,
        series_uid=_find_uid(options),
        overwrite=options.overwrite,
    )
    _say(summary, options.out)
    print(f"open {options.out / 'index.html'}")


def _cohort(options):
    from questlib.cohort import build_cohort, name_scans

    folders = name_scans(_find_scans(options.root, options.out))
    grid = {"spacing": options.spacing, "shape": options.shape and tuple(options.shape)}
    try:
        with _open_cluster(options) as client:
            cohort = build_cohort(
                folders, options.out, client=client, workers=1, **grid
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "what is done is kept, the same command goes on"
        ) from None
    rows = [row for row in cohort.manifest if row["key"] in folders]
    refused = [row for row in rows if row["status"] != "done"]
    for row in refused:
        name = _plain(Path(folders[row["key"]]).name)
        print(f"refused {name} ({row['key']}): {_plain(row['error'])}")
    done = len(rows) - len(refused)
    scans = "1 scan" if len(rows) == 1 else f"{len(rows)} scans"
    print(f"{scans}: {done} done, {len(refused)} refused (see manifest.csv)")
    return int(done == 0)


def _find_scans(root, out):
    """Give the folders of `root`, or `root` itself where it holds one series."""
    from questlib.series import check_folder, find_series

    root, out = check_folder(root), out.resolve()
    if root.resolve() == out:
        raise ValueError("--out is the folder of the scans: give the cohort its own")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    folders = [
        path for path in folders if path.name[0] != "." and path.resolve() != out
    ]
    if folders:
        return folders
    found = find_series(root)
    if not found:
        raise _no_series(root)
    if len(found) > 1:
        raise ValueError(f"{_number(found)}; give each scan a folder of its own")
    return [root]


@contextmanager
def _open_cluster(options):
    """Give a client of the cluster that was asked for, or None for this process."""
    if options.scheduler is None and options.workers == 1:
        yield None
        return
    from distributed import Client, LocalCluster

    if options.scheduler is not None:
        with Client(options.scheduler, timeout=20) as client:
            yield client
        return
    size = {"n_workers": options.workers, "threads_per_worker": 1}
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    # a Ctrl-C reaches the workers too: this process alone shall answer it
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster = LocalCluster(**size, **quiet)
    finally:
        signal.signal(signal.SIGINT, answer)
    with cluster, Client(cluster) as client:
        yield client


def _count(text):
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError("a number from 1 to 1024")
    return int(text)


def _phantom(options):
    from questlib.phantom import make_phantom

    if options.folder.exists() and any(options.folder.iterdir()):
        raise ValueError(
            f"{options.folder.name} is not empty: give the phantom a folder of its own"
        )
    phantom = make_phantom(options.folder, seed=options.seed)
    print(f"phantom written: {phantom.volume}")


def _fetch(options):
    from questlib.data import fetch_patient

    files = [path for path in Path(fetch_patient()).rglob("*") if path.is_file()]
    print(f"the patient is ready: {len(files)} files, checked against their sha256")


def _find_uid(options):
    """Turn a number of ``questlib list`` into its Series Instance UID."""
    if options.folder is None:
        return options.series
    from questlib.series import SeriesError, choose_series, find_series

    found, choice = find_series(options.folder), options.series
    if not found:
        raise _no_series(options.folder)
    if choice is not None and choice.isdecimal():
        if not 1 <= int(choice) <= len(found):
            raise ValueError(f"no series {choice}: {_number(found)}")
        return found[int(choice) - 1].uid
    try:
        return choose_series(found, choice).uid
    except SeriesError:
        if choice is not None or sum(one.planes > 0 for one in found) < 2:
            raise
        raise ValueError(f"{_number(found)}; choose one with --series N") from None


def _number(found):
    series = "; ".join(f"{number}: {one}" for number, one in enumerate(found, start=1))
    return f"the folder holds {len(found)} series: {series}"


def _say(summary, out):
    volumes = summary["volumes_ml"]
    parts = ", ".join(f"{name} {ml:,.0f} mL" for name, ml in volumes.items())
    print(f"{parts}; {summary['seconds']['total']:.1f} s")
    for finding in summary["findings"]:
        print(f"- {finding}")


def _plain(text):
    """Put a message on one line, without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text)).strip()


def _library(error):
    """Name the DICOM library whose error this is: its messages quote values."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    package = frames[-1].f_globals.get("__name__", "").split(".")[0]
    return package if package in ("pydicom", "highdicom") else None


def _refuse(error):
    if isinstance(error, OSError) and error.strerror:
        name = Path(error.filename).name if isinstance(error.filename, str) else ""
        text = f"{error.strerror}{name and ': ' + name}"
    elif isinstance(error, MemoryError):
        text = "not enough memory for this scan"
    elif package := _library(error):
        text = f"{package} refused this scan; its reason may quote the header"
    elif (
        isinstance(error, (ValueError, OSError)) or type(error).__name__ == "DataError"
    ):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}; please report it as a bug"
    print(f"questlib: {_plain(text)}", file=sys.stderr)
    return 1


def _show_warning(message, *_):
    print(f"questlib: note: {_plain(message)}", file=sys.stderr)


def _parser():
    parser = argparse.ArgumentParser(
        prog="questlib",
        description="From a folder of CT planes to a lung mask. Not for diagnosis.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(function, name, text):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=function)
        return command

    listing = add(_list, "list", "show the series in a folder, without identifiers")
    listing.add_argument("folder", type=Path, metavar="FOLDER")
    mask = add(_mask, "mask", "write the lung mask of a scan, and its volumes")
    mask.add_argument("folder", type=Path, metavar="FOLDER")
    run = add(_run, "run", "take a scan through the whole lesson and write a report")
    run.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="default: the patient"
    )
    mask.add_argument("--out", type=Path, required=True, metavar="DIR")
    run.add_argument("--out", type=Path, default=Path("build/quest"), metavar="DIR")
    number = "number in `questlib list`, or a series UID"
    again = "replace an earlier result"
    for command in (mask, run):
        command.add_argument("--series", metavar="N", help=number)
        command.add_argument("--overwrite", action="store_true", help=again)
    mask.add_argument(
        "--regularize", action="store_true", help="resample unevenly spaced planes"
    )
    mask.add_argument(
        "--keep-identity",
        action="store_true",
        help="lungs.seg.dcm keeps the patient's name and ID (default: removed)",
    )
    _add_cohort(add)
    phantom = add(_phantom, "phantom", "compute a chest with known truth as DICOM")
    phantom.add_argument("folder", type=Path, metavar="DIR")
    phantom.add_argument("--seed", type=int, default=0, metavar="N")
    add(_fetch, "fetch", "download the tutorial's patient once")
    return parser


def _add_cohort(add):
    cohort = add(
        _cohort, "cohort", "bring a folder of scans to one shape, in one store"
    )
    cohort.epilog = (
        "A scan's key in manifest.csv: s and the first 12 hex digits of the sha256 of "
        "its folder's full path."
    )
    cohort.add_argument(
        "root", type=Path, metavar="ROOT", help="each of its folders is one scan"
    )
    cohort.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the same again goes on"
    )
    place = cohort.add_mutually_exclusive_group()
    place.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes (default: 1)"
    )
    place.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, tcp://HOST:PORT"
    )
    cohort.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="default: 1 mm"
    )
    cohort.add_argument(
        "--shape",
        type=_count,
        nargs=3,
        metavar=("P", "R", "C"),
        help="planes, rows, columns; default: 320 x 320 x 400 mm",
    )


def main(arguments=None):
    """Run the command line; return its exit status (0 done, 1 refused, 2 wrong usage).

    Examples
    --------
    >>> main(["list", "no-such-folder"])  # one line on stderr, no traceback
    1
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=_series_warning())
            warnings.showwarning = _show_warning
            return options.run(options) or 0
    except KeyboardInterrupt as stop:
        text = str(stop) or "nothing was kept"
        print(f"questlib: stopped; {text}", file=sys.stderr)
        return 130
    except Exception as error:
        if sys.flags.dev_mode:  # python -X dev -m questlib.cli: show where
            raise
        return _refuse(error)


def _series_warning():
    from questlib.series import SeriesWarning

    return SeriesWarning


if __name__ == "__main__":
    sys.exit(main())
