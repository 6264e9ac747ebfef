"""Break questlib on purpose, one fault at a time: the tests must notice each one.

    python tools/mutants.py             all 75 of tools/faults.tsv: 6 minutes on two
                                        cores that other work shared
    python tools/mutants.py series 12   those of one module, or by number

Each fault is a change of text in a copy of the tree. The tests that its line names run
first. Nobody noticed? Then the module's own tests, all unit tests, and the notebooks
that use the module (nbval). What survives all of them is printed, and the status is 1.

Only a failed test counts as noticed. A fault that keeps pytest from working (code 2 and
above, or no test that failed) is printed as a crash, and the status is 1, too.
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
TESTED_BY = {"pixels": "breaks", "header": "breaks", "decoder": "breaks"}
GUARD = "only_this_copy"  # a plugin of pytest: no other questlib is tested
GUARD_TEXT = """from importlib.util import find_spec
from pathlib import Path

found = Path(find_spec("questlib").origin).parent
if found != Path(__file__).resolve().parent / "questlib":
    raise RuntimeError(f"the tests would import another questlib: {found}")
"""
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
NBVAL = (
    *("-p", "nbval.plugin", "--nbval", "--nbval-current-env"),
    *("--nbval-cell-timeout", "120"),
    *("--nbval-sanitize-with", "tests/nbval_sanitize.cfg"),
)
STAGES = ("named tests", "own tests", "all unit tests", "notebooks")


class Fault(NamedTuple):
    """A line of tools/faults.tsv: what is wrong, the change, the tests to run first."""

    module: str
    what: str
    text: str
    becomes: str
    tests: str


class Verdict(NamedTuple):
    """What became of a fault: "noticed", "CRASHED" or "survived"; and by whom."""

    kind: str
    by: str
    seconds: float


def read_faults():
    """Read the list of faults."""
    lines = (ROOT / "tools" / "faults.tsv").read_text("utf-8").splitlines()
    return [Fault(*line.split("\t")) for line in lines[1:]]


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
        elif fault.text == fault.becomes:
            stale.append(f"{number} {fault.module}: {fault.what} (no change)")
    if stale:
        raise SystemExit("these faults need their text renewed:\n" + "\n".join(stale))
    if not chosen:
        raise SystemExit("no such fault")
    return chosen


def copy_tree(folder):
    """Copy what the tests need; Python must not trust bytecode of the last fault."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    (folder / f"{GUARD}.py").write_text(GUARD_TEXT, "utf-8")


def arguments(stage, fault):
    """Give what pytest runs in a stage of a fault."""
    if stage == "named tests":
        return [f"tests/test_{name}" for name in fault.tests.split(" ")]
    if stage == "own tests":
        name = TESTED_BY.get(fault.module, fault.module)
        return [f"questlib/{fault.module}.py", f"tests/test_{name}.py"]
    if stage == "all unit tests":
        names = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
        skipped = {f"test_{name}.py" for name in NOT_FOR_MUTANTS}
        return [f"tests/{name}" for name in names if name not in skipped]
    module = (ROOT / "questlib" / f"{fault.module}.py").read_text("utf-8")
    names = re.findall(r"^(?:def|class) ([A-Za-z]\w+)", module, re.M)
    uses = re.compile(rf"questlib\.{fault.module}\b|\b(?:{'|'.join(names)})\b")
    users = [
        f"notebooks/{path.stem}.ipynb"
        for path in sorted((ROOT / "notebooks" / "src").glob("[0-9][0-9]_*.py"))
        if uses.search(path.read_text("utf-8"))
    ]
    return [*NBVAL, *(users or ["notebooks"])]


def run_tests(folder, tests):
    """Run pytest in a copy; give the verdict on what the copy holds."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"MPLBACKEND": "agg", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # seconds each
    command, start = [*PYTEST, "-p", GUARD, *tests], time.perf_counter()
    options = {"cwd": folder, "env": env, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, **options, timeout=1800)
    except subprocess.TimeoutExpired:
        return Verdict("CRASHED", "no answer in 30 minutes", 1800.0)
    seconds = time.perf_counter() - start
    failed = re.search(r"^(FAILED|ERROR) (\S+::.+?)(?: - |$)", done.stdout, re.M)
    if done.returncode == 0:
        return Verdict("survived", "", seconds)
    if done.returncode == 1 and failed:
        return Verdict("noticed", failed[2], seconds)
    last = " ".join((done.stdout + done.stderr).split())[-300:]
    return Verdict("CRASHED", f"pytest ended with {done.returncode}: {last}", seconds)


def judge(folder, fault, stage):
    """Break a copy, run the tests of a stage, and mend it."""
    path = folder / "questlib" / f"{fault.module}.py"
    whole = path.read_text("utf-8")
    path.write_text(whole.replace(fault.text, fault.becomes), "utf-8")
    try:
        return run_tests(folder, arguments(stage, fault))
    finally:
        path.write_text(whole, "utf-8")


def check_whole(folders, tests, what):
    """Refuse to go on when tests fail, or are not found, without any fault."""
    print(f"without a fault: {what} ...", flush=True)
    parts, start = [tests], time.perf_counter()
    if len(folders) > 1:  # shared out by files, for the sake of their fixtures
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        turn = {file: number % len(folders) for number, file in enumerate(files)}
        parts = [
            [test for test in tests if turn[test.partition("::")[0]] == number]
            for number in range(min(len(folders), len(files)))
        ]
    with ThreadPoolExecutor(len(folders)) as pool:
        for verdict in pool.map(run_tests, folders, parts):
            if verdict.kind != "survived":
                raise SystemExit(f"the tests fail without a fault: {verdict.by}")
    seconds = time.perf_counter() - start
    print(f"without a fault: all pass, {seconds:.0f} s", flush=True)


def ask_others(folder, fault, checked):
    """Run the wider stages on a fault that its named tests did not notice."""
    for stage in STAGES[1:]:
        tests = arguments(stage, fault)
        if tests not in checked:
            check_whole([folder], tests, f"{stage} of {fault.module}")
            checked.append(tests)
        verdict = judge(folder, fault, stage)
        if verdict.kind != "survived":
            break
    return verdict


def tell(number, fault, verdict):
    """Print one line of the table."""
    by = verdict.by if verdict.kind == "noticed" else f"{verdict.kind} {verdict.by}"
    line = f"{number:2} {fault.module:9} {fault.what:44} {verdict.seconds:4.0f} s  {by}"
    print(line, flush=True)


def main(arguments_given=None):
    """Try the faults; return 1 if one of them survives or crashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="modules or numbers; default: all")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments_given)
    start, chosen = time.perf_counter(), choose(options.names)
    copies, verdicts, checked = queue.SimpleQueue(), {}, []

    with tempfile.TemporaryDirectory() as base:
        folders = [Path(base).resolve() / str(n) for n in range(options.workers)]
        for folder in folders:
            copy_tree(folder)
            copies.put(folder)
        named = {test: 0 for _, fault in chosen for test in arguments(STAGES[0], fault)}
        check_whole(folders, list(named), f"{len(named)} tests that the faults name")

        def work(task):
            folder = copies.get()
            try:
                return task, judge(folder, task[1], STAGES[0])
            finally:
                copies.put(folder)

        with ThreadPoolExecutor(options.workers) as pool:
            for task, verdict in pool.map(work, chosen):
                verdicts[task] = verdict
                tell(*task, verdict)
        for task, verdict in verdicts.items():
            if verdict.kind == "survived":
                verdicts[task] = ask_others(folder, task[1], checked)
                tell(*task, verdicts[task])
    kinds = [verdict.kind for verdict in verdicts.values()]
    counts = (f"{kinds.count(k)} {k}" for k in ("noticed", "survived", "CRASHED"))
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(kinds)} faults: {', '.join(counts)}; {minutes:.1f} minutes")
    return int(kinds.count("noticed") < len(kinds))


if __name__ == "__main__":
    sys.exit(main())
