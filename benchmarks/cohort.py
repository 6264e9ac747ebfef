"""Measure a cohort: memory and speed by number of scans and workers, and the resume.

    python benchmarks/cohort.py           small phantoms, about two minutes
    python benchmarks/cohort.py --full    one of 160 x 512 x 512 voxels, to 1 mm

A worker is a process with one thread, bound to one core where the system allows it.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster

import questlib
from questlib.cohort import build_cohort


def bind(core):
    """Bind this worker to one core: a scan alone would use them all."""
    if hasattr(os, "sched_setaffinity"):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core % os.cpu_count()})


def peak():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(scans, workers, spacing):
    """Build a cohort on so many workers; return seconds and MB of the largest."""
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with (
        tempfile.TemporaryDirectory() as out,
        LocalCluster(**local) as cluster,
        Client(cluster) as client,
    ):
        for core, worker in enumerate(client.scheduler_info()["workers"]):
            client.run(bind, core, workers=[worker])
        build_cohort(scans[:workers], f"{out}/warm", spacing=spacing, client=client)
        start = time.perf_counter()
        cohort = build_cohort(scans, f"{out}/store", spacing=spacing, client=client)
        seconds = time.perf_counter() - start
        assert {row["status"] for row in cohort.manifest} == {"done"}
        start = time.perf_counter()
        build_cohort(scans, f"{out}/store", spacing=spacing, client=client)
        again = time.perf_counter() - start
        return seconds, max(client.run(peak).values()), again


def make_scans(folder, count, **size):
    """Write one phantom, and so many copies of it."""
    questlib.make_phantom(folder / "0", **size)
    for number in range(1, count):
        shutil.copytree(folder / "0", folder / str(number))
    return sorted(folder.iterdir())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as folder:
        if options.full:
            size = {"shape": (160, 512, 512), "spacing": (2, 0.7, 0.7)}
            scans = make_scans(Path(folder) / "scans", 1, **size)
            start = time.process_time()  # of all threads, so that load does not count
            build_cohort(scans, Path(folder) / "out", workers=1)
            seconds = time.process_time() - start
            print(f"full size: {seconds:.1f} s of one core a scan, {peak()} MB")
            return
        size = {"shape": (48, 160, 160), "spacing": (6.25, 2.2, 2.2)}
        scans = make_scans(Path(folder), 32, **size)
        ratios = []
        for number in range(options.rounds):
            order = (1, 2) if number % 2 == 0 else (2, 1)
            took = {workers: run(scans[:8], workers, 2.0)[0] for workers in order}
            ratios.append(took[1] / took[2])
            print(f"8 scans: {took[1]:.1f} s on 1 worker, {took[2]:.1f} s on 2")
        print(f"two workers do {statistics.median(ratios):.2f} times the work of one")
        for count in (8, 32):
            _, memory, again = run(scans[:count], 2, 2.0)
            print(f"{count} scans: {memory} MB a worker; nothing to do: {again:.2f} s")
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
