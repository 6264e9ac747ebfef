"""One environment for laptop, CI and Binder: four files that must say the same."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"matplotlib": "matplotlib-base"}
CHECKERS = {"jupytext", "nbval"}  # from the group `dev`
BINDER = "https://mybinder.org/v2/gh/dicom-quest/dicom-quest/HEAD"
HOST = re.compile(r"https?://|--(?:extra-)?index-url|--find-links")


@cache
def load(name):
    """Read a TOML file of the repository."""
    return tomllib.loads((ROOT / name).read_text("utf-8"))


def asked():
    """Give what pyproject.toml asks for on conda-forge's names: name -> bounds."""
    project = load("pyproject.toml")["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    lines += [
        line
        for line in load("pyproject.toml")["dependency-groups"]["dev"]
        if Requirement(line).name in CHECKERS
    ]
    found = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        found[CONDA_NAMES.get(name, name)] = requirement.specifier
    return found


def environment():
    """Give environment.yml's lines: those for conda, those for pip."""
    data = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    lines = data["dependencies"]
    (pip,) = [line["pip"] for line in lines if isinstance(line, dict)]
    return [line for line in lines if isinstance(line, str)], pip


def locked():
    """Give uv.lock's packages: name -> list of entries (versions may differ)."""
    found = {}
    for package in load("uv.lock")["package"]:
        found.setdefault(package["name"], []).append(package)
    return found


def exported():
    """Give requirements.lock: (name, version) -> set of hashes."""
    text = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([\w.-]+)==(\S+)", line):
            hashes = set(re.findall(r"--hash=(sha256:[0-9a-f]{64})", line))
            found.setdefault((match[1], match[2]), set()).update(hashes)
    return found


def needed():
    """Walk uv.lock from questlib and its group `dev` to every package they need."""
    packages, waiting, seen = locked(), [("questlib", "dev")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for package in packages[name]:
            needs = list(package.get("dependencies", []))
            needs += package.get("optional-dependencies", {}).get(extra, [])
            needs += package.get("dev-dependencies", {}).get(extra, [])
            for need in needs:
                waiting += [(need["name"], e) for e in need.get("extra", [""])]
    return {name for name, _ in seen} - {"questlib"}


def test_environment_asks_for_what_pyproject_asks():
    conda, pip = environment()
    lines = [Requirement(line) for line in (*conda, *pip) if line != "python=3.11"]
    found = {canonicalize_name(line.name): line.specifier for line in lines}
    assert found == asked()
    assert len(found) == len(lines), "a package is named twice"


def test_locked_versions_lie_within_the_bounds():
    names = {conda: pip for pip, conda in CONDA_NAMES.items()}
    for name, bounds in asked().items():
        for package in locked()[names.get(name, name)]:
            assert package["version"] in bounds, name


def test_environment_lines_are_conda_specs():
    from rattler import MatchSpec, Version

    for line in environment()[0]:
        spec = MatchSpec(line, strict=True)
        assert spec.name is not None and spec.version
    spec = MatchSpec("python=3.11", strict=True)
    assert "3.11" in str(spec.version) and Version("3.11") < Version("3.12")


def test_binder_has_the_same_environment():
    wanted = (ROOT / "environment.yml").read_bytes()
    assert (ROOT / "binder" / "environment.yml").read_bytes() == wanted
    steps = (ROOT / "binder" / "postBuild").read_text("utf-8")
    assert "pip install --no-cache-dir --no-deps -e ." in steps
    assert "questlib fetch" in steps
    assert (ROOT / "binder" / "postBuild").stat().st_mode & 0o111


def test_binder_builds_in_a_dry_run():
    tool = Path(sys.executable).parent / "jupyter-repo2docker"
    options = ["--no-build", "--debug", "--user-id=1000", "--user-name=reader"]
    done = subprocess.run(
        [tool, *options, "."], cwd=ROOT, capture_output=True, text=True, check=True
    )
    recipe = done.stdout + done.stderr
    assert 'binder/environment.yml"' in recipe and "binder/postBuild" in recipe
    assert "libegl1" in recipe


def test_readme_has_a_badge_for_each_notebook_and_shows_what_is_there():
    text = (ROOT / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        number, row = path.stem[:2], f"(notebooks/{path.name}) "
        (line,) = [line for line in text.splitlines() if row in line]
        assert f"[![Run {number} on Binder][run]][{number}]" in line
        assert f"[{number}]: {BINDER}?urlpath=lab/tree/notebooks/{path.name}\n" in text
    for app in (
        "lab/tree/notebooks/00_start_here.ipynb",
        "voila/render/app/sliders.ipynb",
    ):
        assert f"]({BINDER}?urlpath={app})" in text
        assert (
            ROOT / app.removeprefix("lab/tree/").removeprefix("voila/render/")
        ).exists()
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
    assert all(p.stat().st_size < 2e6 for p in (ROOT / "docs").iterdir())


def test_requirements_are_the_lock_in_another_form():
    packages, lines = locked(), exported()
    assert {name for name, _ in lines} == needed()
    for (name, version), hashes in lines.items():
        (entry,) = [p for p in packages[name] if p["version"] == version]
        files = [*entry.get("wheels", []), entry.get("sdist")]
        assert hashes == {file["hash"] for file in files if file}, name


@pytest.mark.parametrize(
    "name", ["requirements.lock", "environment.yml", "pyproject.toml", "Makefile"]
)
def test_no_package_host_is_named(name):
    text = (ROOT / name).read_text("utf-8")
    text = text.replace(load("pyproject.toml")["project"]["urls"]["Repository"], "")
    assert not HOST.search(text)


def test_hooks_run_the_locked_tools():
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    revisions = {
        hook["repo"]: hook.get("rev") for hook in yaml.safe_load(text)["repos"]
    }
    for tool in ("ruff", "codespell"):
        (found,) = [rev for repo, rev in revisions.items() if tool in repo]
        assert found == "v" + locked()[tool][0]["version"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem
)
def test_forms_and_workflows_are_yaml(path):
    data = yaml.safe_load(path.read_text("utf-8"))
    if path.parent.name == "workflows":
        assert set(data["jobs"]) == {"strict", "lax", "weekly"}
        assert data["jobs"]["strict"]["steps"][-1]["run"] == "bash .ci/run"
    elif path.stem != "config":
        assert all(part["attributes"] for part in data["body"])


def test_citation_names_version_and_data():
    import questlib

    data = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert data["version"] == questlib.__version__
    assert data["references"][0]["doi"] == "10.7937/TCIA.2020.NNC2-0461"
