"""Time questlib beside the method of 2017 and the usual tools, on the same files.

    python benchmarks/run.py                          all, into benchmarks/RESULTS.md
    python benchmarks/run.py --planes 16 --rounds 1   a quick look, printed only

A round runs every contestant once, in turn, and every other round backwards; the table
gives medians. A whole way runs in a fresh process, which also gives its peak memory.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom

import questlib
from questlib.data import PATIENT_UID

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
EVERY = 8  # the 2017 masks of a volume are timed on every 8th plane and multiplied
PACKAGES = (
    "numpy scipy scikit-image scikit-learn pydicom SimpleITK dicom-numpy highdicom"
)


def files_of(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def read_sitk(folder):
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def read_dicom_numpy(folder):
    from dicom_numpy import combine_slices

    return combine_slices([pydicom.dcmread(path) for path in files_of(folder)])


def read_highdicom(folder):
    from highdicom import get_volume_from_series

    return get_volume_from_series([pydicom.dcmread(p) for p in files_of(folder)])


def resample_sitk(image, interpolator):
    import SimpleITK as sitk

    pairs = zip(image.GetSize(), image.GetSpacing(), strict=True)
    size = [round(count * mm) for count, mm in pairs]
    filled = (sitk.Transform(), interpolator, image.GetOrigin(), (1.0, 1.0, 1.0))
    return sitk.Resample(image, size, *filled, image.GetDirection(), -1024)


def segment_sitk(image):
    """Threshold, drop what touches the border, two largest, close over 5 mm."""
    import SimpleITK as sitk

    dark = sitk.BinaryThreshold(image, -2000, -400)
    pad = sitk.ConstantPad(dark, (1, 1, 0), (1, 1, 0), 1)
    corners = [(0, 0, plane) for plane in range(pad.GetDepth())]
    air = sitk.ConnectedThreshold(pad, corners, lower=1, upper=1)
    inside = dark & ~sitk.Crop(air, (1, 1, 0), (1, 1, 0))
    opened = sitk.BinaryMorphologicalOpening(inside, (2, 2, 1))
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(opened), 10_000)
    lungs = (parts == 1) | (parts == 2)
    radius = [max(1, round(5 / mm)) for mm in image.GetSpacing()]
    return sitk.BinaryMorphologicalClosing(lungs, radius, sitk.sitkBall)


def masks_2017(array):
    import legacy_2017

    return [legacy_2017.mask_plane(plane) for plane in array[::EVERY]]


def whole_questlib(folder):
    volume = questlib.load_series(folder)
    fine = questlib.resample(volume, 1.0)
    return questlib.segment_lungs(volume), questlib.extract_surface(fine, 350)


def whole_2017(folder):
    import legacy_2017

    planes, spacing = legacy_2017.load(folder)
    image = legacy_2017.to_hounsfield(planes)
    fine = legacy_2017.resample(image, spacing)
    return masks_2017(image), legacy_2017.find_bones(fine)


def whole_sitk(folder):
    import SimpleITK as sitk
    from skimage.measure import marching_cubes

    image = read_sitk(folder)
    fine = resample_sitk(image, sitk.sitkLinear)
    lungs = segment_sitk(image)
    return lungs, marching_cubes(sitk.GetArrayViewFromImage(fine), 350)


WHOLE = {"questlib": whole_questlib, "2017": whole_2017, "SimpleITK": whole_sitk}


def steps(folder):
    """For each step the contestants: name -> function without arguments."""
    import legacy_2017
    import SimpleITK as sitk
    from scipy import ndimage
    from skimage.measure import marching_cubes

    volume, image = questlib.load_series(folder), read_sitk(folder)
    fine = questlib.resample(volume, 1.0)
    planes, spacing = legacy_2017.load(folder)
    stored = np.stack([ds.pixel_array for ds in planes])
    slope, intercept = planes[0].RescaleSlope, planes[0].RescaleIntercept
    middle, zoom = volume.array[volume.shape[0] // 2], np.array(volume.spacing)
    return {
        "read series": {
            "questlib": lambda: questlib.load_series(folder),
            "2017": lambda: legacy_2017.to_hounsfield(legacy_2017.load(folder)[0]),
            "SimpleITK": lambda: read_sitk(folder),
            "dicom-numpy": lambda: read_dicom_numpy(folder),
            "highdicom": lambda: read_highdicom(folder),
        },
        "stored values to HU": {
            "questlib": lambda: questlib.to_hounsfield(stored, slope, intercept),
            "2017": lambda: legacy_2017.to_hounsfield(planes),
        },
        "resample to 1 mm, linear": {
            "questlib": lambda: questlib.resample(volume, 1.0),
            "SimpleITK": lambda: resample_sitk(image, sitk.sitkLinear),
            "scipy zoom": lambda: ndimage.zoom(volume.array, zoom, order=1),
        },
        "resample to 1 mm, cubic": {
            "questlib": lambda: questlib.resample(volume, 1.0, order=3),
            "2017": lambda: legacy_2017.resample(volume.array, spacing),
            "SimpleITK": lambda: resample_sitk(image, sitk.sitkBSpline),
        },
        "one plane, method of 2017": {
            "questlib": lambda: questlib.mask_plane_2017(middle),
            "2017": lambda: legacy_2017.mask_plane(middle),
        },
        "all lungs": {
            "questlib": lambda: questlib.segment_lungs(volume),
            "2017": lambda: masks_2017(volume.array),
            "SimpleITK": lambda: segment_sitk(image),
        },
        "bone surface at 1 mm": {
            "questlib": lambda: questlib.extract_surface(fine, 350),
            "scikit-image": lambda: marching_cubes(fine.array, 350),
        },
    }


def clock(function):
    """Seconds of one call; what is quick is called until 0.2 s have passed."""
    start, calls = time.perf_counter(), 0
    while not calls or (time.perf_counter() - start) < 0.2:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


def race(contestants, rounds):
    """Median seconds of each contestant; the order turns round every time."""
    seconds = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            seconds[name].append(clock(contestants[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def profile(function):
    """Say in which functions the time goes, with shares, all threads together."""
    spent, done = Counter(), threading.Event()

    def watch():
        last = time.perf_counter()
        while not done.wait(0.002):
            now = time.perf_counter()
            for thread, frame in sys._current_frames().items():
                if thread != threading.get_ident() and is_working(frame):
                    code = frame.f_code
                    spent[f"{Path(code.co_filename).stem}.{code.co_name}"] += now - last
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    total = sum(spent.values())
    return ", ".join(f"{n} {s / total:.0%}" for n, s in spent.most_common(4))


def is_working(frame):
    """A thread that waits for another one stands in the standard library."""
    return Path(frame.f_code.co_filename).stem not in ("threading", "thread", "_base")


def alone(name, folder):
    """Run a whole way in this fresh process; print its seconds and peak memory."""
    WHOLE[name](phantom(16, 64))  # libraries are imported before the clock starts
    seconds = clock(lambda: WHOLE[name](folder))
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}))


def peak_memory():
    """MB; Linux's ru_maxrss would count the parent, of which this is a fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def race_alone(names, folder, rounds):
    """Median seconds and largest peak (MB) of whole ways, a fresh process each."""
    found = {name: [] for name in names}
    for number in range(rounds):
        for name in list(names)[:: -1 if number % 2 else 1]:
            command = [sys.executable, __file__, "--alone", name, str(folder)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(shown.stdout))
    return {
        name: (
            statistics.median(run["seconds"] for run in runs),
            max(run["peak"] for run in runs),
        )
        for name, runs in found.items()
    }


def dice(mask, truth):
    return 2 * np.count_nonzero(mask & truth) / (mask.sum() + truth.sum())


def profiles(folder):
    """Markdown: where the time goes in the method of 2017, and in ours."""
    lines = ["| step | 2017 | questlib |", "|---|---|---|"]
    all_steps = steps(folder)
    for before, after in (
        ("read series", "read series"),
        ("resample to 1 mm, cubic", "resample to 1 mm, linear"),
        ("all lungs", "all lungs"),
    ):
        old = profile(all_steps[before]["2017"])
        lines.append(f"| {after} | {old} | {profile(all_steps[after]['questlib'])} |")
    return "\n".join(lines)


def score(folder, truth):
    """Overlap of each lung mask with the truth; planes where both 2017 masks agree."""
    import SimpleITK as sitk

    volume = questlib.load_series(folder)
    lungs = (truth == 1) | (truth == 2)
    ours = questlib.segment_lungs(volume).labels > 0
    sitk_mask = sitk.GetArrayFromImage(segment_sitk(read_sitk(folder))) > 0
    old = np.array(masks_2017(volume.array)) > 0
    planes = volume.array[::EVERY]
    again = [questlib.mask_plane_2017(plane).mask for plane in planes]
    same = sum(map(np.array_equal, again, old))
    overlap = {
        "questlib": dice(ours, lungs),
        "2017": dice(old, lungs[::EVERY]),
        "SimpleITK": dice(sitk_mask, lungs),
    }
    return overlap, f"{same} of {len(planes)}"


def phantom(planes, size=512, step=2.0):
    """Folder of a phantom series, planes `step` mm apart, 358 mm wide; made once."""
    folder, spacing = BUILD / f"phantom-{planes}-{size}-{step}", 358.4 / size
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shape, spacing = (planes, size, size), (step, spacing, spacing)
        made = questlib.make_phantom(part, shape=shape, spacing=spacing)
        np.save(truth_of(folder), made.truth)
        part.rename(folder)
    return folder


def truth_of(folder):
    return folder.with_name(f"{folder.name}.truth.npy")


def copy_speed():
    """Bytes a second that this memory reads and writes again, one core."""
    block = np.ones(128 * 2**20, np.uint8)
    return 2 * block.nbytes / min(clock(block.copy) for _ in range(9))


def import_seconds(rounds):
    code = "from time import perf_counter as now; start = now(); import questlib; "
    command = [sys.executable, "-c", f"{code} print(now() - start)"]
    runs = [float(subprocess.check_output(command)) for _ in range(max(rounds, 3))]
    return statistics.median(runs)


def measure(folder, rounds):
    """Medians of all steps and whole ways on one scan."""
    for contestants in steps(phantom(16, 64)).values():  # import all libraries first
        race(contestants, 1)
    planes = questlib.find_series(folder)[0].planes
    part = planes / len(range(0, planes, EVERY))
    table = {}
    for step, contestants in steps(folder).items():
        table[step] = race(contestants, rounds)
        print(step, {k: round(v, 3) for k, v in table[step].items()}, flush=True)
    sampled = table["all lungs"]["2017"]
    table["all lungs"]["2017"] = sampled * part
    whole = race_alone(WHOLE, folder, rounds)
    table["the whole way"] = {name: seconds for name, (seconds, _) in whole.items()}
    table["the whole way"]["2017"] += sampled * (part - 1)
    print("whole", whole, flush=True)
    return table, {name: peak for name, (_, peak) in whole.items()}


def limits(folder, speed):
    """Seconds to read a step's input and write its output once."""
    volume = questlib.load_series(folder)
    scan = volume.array.nbytes
    fine = questlib.resample(volume, 1.0).array.nbytes
    plane = scan / volume.shape[0]
    labels = scan / volume.array.itemsize
    moved = {
        "read series": 2 * scan,
        "stored values to HU": 2 * scan,
        "resample to 1 mm, linear": scan + fine,
        "resample to 1 mm, cubic": scan + fine,
        "one plane, method of 2017": 1.5 * plane,
        "all lungs": scan + labels,
        "bone surface at 1 mm": fine,
    }
    return {step: bytes_ / speed for step, bytes_ in moved.items()}


def print_table(table, limit):
    """Markdown: a row a step; beside each rival how many times we are faster."""
    others = [
        "2017",
        "SimpleITK",
        "dicom-numpy",
        "highdicom",
        "scipy zoom",
        "scikit-image",
    ]
    lines = [
        f"| step | questlib | x memory limit | {' | '.join(others)} |",
        "|---" * (len(others) + 3) + "|",
    ]
    for step, row in table.items():
        ours = row["questlib"]
        cells = [
            f"{row[n]:.3g} s ({row[n] / ours:.3g}x)" if n in row else "" for n in others
        ]
        far = f"{ours / limit[step]:.0f}" if step in limit else ""
        lines.append(f"| {step} | {ours:.3g} s | {far} | {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_machine():
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = next(
            line.split(": ")[1] for line in text.splitlines() if "model name" in line
        )
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        machine = f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB"
    except (OSError, StopIteration, ValueError):
        machine = f"{platform.processor()}, {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES.split())
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{machine}; {system}; {versions}"


def write_results(planes, rounds, patient):
    """Run everything and give RESULTS.md."""
    speed, scan = copy_speed(), phantom(planes)
    table, peak = measure(scan, rounds)
    truth = np.load(truth_of(scan))
    overlap, same = score(scan, truth)
    growth = {
        n: race_alone(["questlib"], phantom(n), rounds)["questlib"]
        for n in (planes, 2 * planes)
    }
    thin = race_alone(["questlib", "2017"], phantom(planes * 15 // 8, step=0.7), 1)
    text = (HERE / "RESULTS.in.md").read_text()
    parts = {
        "DATE": date.today().isoformat(),
        "MACHINE": describe_machine(),
        "COMMAND": " ".join(["python benchmarks/run.py", *sys.argv[1:]]),
        "ROUNDS": str(rounds),
        "PLANES": str(planes),
        "EVERY": str(EVERY),
        "SPEED": f"{speed / 1e9:.1f}",
        "PHANTOM": print_table(table, limits(scan, speed)),
        "PEAKS": ", ".join(f"{name} {mb:.0f} MB" for name, mb in peak.items()),
        "DICE": ", ".join(f"{name} {value:.3f}" for name, value in overlap.items()),
        "PROFILE": profiles(scan),
        "SAME": same,
        "GROWTH": "; ".join(
            f"{n} planes {seconds:.2f} s, peak {mb:.0f} MB"
            for n, (seconds, mb) in growth.items()
        ),
        "THIN": ", ".join(f"{name} {mb:.0f} MB" for name, (_, mb) in thin.items()),
        "IMPORT": f"{import_seconds(rounds):.3f}",
    }
    if patient:
        rows, peaks = measure(patient, rounds)
        parts["PATIENT"] = print_table(rows, limits(patient, speed))
        parts["PATIENT"] += "\n\nPeak memory of the whole way: " + ", ".join(
            f"{name} {mb:.0f} MB" for name, mb in peaks.items()
        )
    for name, value in parts.items():
        text = text.replace(f"{{{name}}}", value)
    return text.replace("{PATIENT}", "Not measured: the patient was not fetched.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planes", type=int, default=160, help="of the phantom")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        return alone(*options.alone)
    BUILD.mkdir(parents=True, exist_ok=True)
    os.environ.pop("QUEST_SCAN", None)
    scan = questlib.choose_scan()
    found = questlib.find_series(scan)
    patient = scan if found[0].uid == PATIENT_UID else None
    text = write_results(options.planes, options.rounds, patient)
    if options.rounds >= 5 and options.planes == 160:
        (HERE / "RESULTS.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
