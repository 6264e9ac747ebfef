"""Break questlib on purpose, one fault at a time: the tests must notice each one.

    python tools/mutants.py             all, some minutes on two cores
    python tools/mutants.py series 12   those of one module, or by number

Each fault is a change of text in a copy of the tree. First the module's own tests run,
then all unit tests, then the notebooks (nbval). What nobody notices is printed.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("questlib", "tests", "tools", "notebooks")
FILES = ("conftest.py", "pyproject.toml", "README.md", "DATA.md")
NOT_FOR_MUTANTS = {
    *("environment", "package", "notebooks", "build_notebooks"),  # form, not sense
    *("fuzz", "speed"),  # chance and time
}
TESTED_BY = {"pixels": "breaks"}  # else by the test of its name
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
NBVAL = [
    *("--nbval", "--nbval-current-env", "--nbval-cell-timeout", "120"),
    *("--nbval-sanitize-with", "tests/nbval_sanitize.cfg"),
]


class Fault(NamedTuple):
    """A line of tools/faults.tsv: the module, what is wrong, the change of text."""

    module: str
    what: str
    text: str
    becomes: str


def read_faults():
    """Read the list of faults."""
    lines = (ROOT / "tools" / "faults.tsv").read_text("utf-8").splitlines()
    return [Fault(*line.split("\t")) for line in lines[1:]]


def copy_tree(folder):
    """Copy what the tests need; Python must not trust bytecode of the last fault."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def stages(folder, module):
    """Give the runs of pytest, quickest first, until one of them fails."""
    tests = folder / "tests"
    name = TESTED_BY.get(module, module)
    own = [f"questlib/{module}.py"]
    if (tests / f"test_{name}.py").exists():
        own.append(f"tests/test_{name}.py")
    yield own
    skipped = {f"test_{other}" for other in NOT_FOR_MUTANTS | {name}}
    rest = [p for p in sorted(tests.glob("test_*.py")) if p.stem not in skipped]
    yield [str(path.relative_to(folder)) for path in rest]
    yield [*NBVAL, "notebooks"]


def judge(folder, fault):
    """Run the tests on a broken copy; give what noticed, and the seconds it took."""
    path, start = folder / "questlib" / f"{fault.module}.py", time.perf_counter()
    whole = path.read_text("utf-8")
    path.write_text(whole.replace(fault.text, fault.becomes), "utf-8")
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env["MPLBACKEND"] = "agg"
    noticed = None
    try:
        for arguments in stages(folder, fault.module):
            done = subprocess.run(
                [*PYTEST, *arguments],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=1800,
            )
            if done.returncode not in (0, 5):  # 5: a module without examples
                found = re.search(
                    r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M
                )
                noticed = found[1] if found else done.stdout[-300:] + done.stderr[-300:]
                break
    finally:
        path.write_text(whole, "utf-8")
    return noticed, time.perf_counter() - start


def choose(names):
    """Pick faults by number or module; refuse those whose text is not there once."""
    chosen, stale = [], []
    for number, fault in enumerate(read_faults(), start=1):
        if names and str(number) not in names and fault.module not in names:
            continue
        chosen.append((number, fault))
        path = ROOT / "questlib" / f"{fault.module}.py"
        if (found := path.read_text("utf-8").count(fault.text)) != 1:
            stale.append(f"{number} {fault.module}: {fault.what} ({found} times)")
    if stale:
        raise SystemExit("these faults need their text renewed:\n" + "\n".join(stale))
    return chosen


def main(arguments=None):
    """Try the faults; return 1 if one of them survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="modules or numbers; default: all")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen, copies = choose(options.names), queue.SimpleQueue()

    with tempfile.TemporaryDirectory() as base:
        for number in range(options.workers):
            folder = Path(base) / str(number)
            copy_tree(folder)
            copies.put(folder)
        noticed, _ = judge(folder, Fault("__init__", "none", "import", "import"))
        if noticed:
            raise SystemExit(f"the tests fail without a fault: {noticed}")

        def work(task):
            folder = copies.get()
            try:
                return task, judge(folder, task[1])
            finally:
                copies.put(folder)

        alive = 0
        with ThreadPoolExecutor(options.workers) as pool:
            for (number, fault), (noticed, seconds) in pool.map(work, chosen):
                alive += noticed is None
                print(
                    f"{number:2} {fault.module:9} {fault.what:42} {seconds:5.0f} s  "
                    f"{noticed or 'SURVIVED'}",
                    flush=True,
                )
    print(f"{len(chosen)} faults, {len(chosen) - alive} noticed, {alive} survived")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
