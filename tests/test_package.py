"""The package as a whole: its names, its weight, and which way its imports flow."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import questlib

PACKAGE = Path(questlib.__file__).parent
MODULES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem[0] != "_"}
PUBLIC = (
    "find_series load_series Series SeriesError SeriesWarning Volume save_volume "
    "load_volume to_hounsfield resample fit_shape mask_plane mask_plane_2017 "
    "segment_lungs extract_surface save_nifti save_dicom_seg save_stl make_phantom "
    "fetch_patient choose_scan show_plane explore_planes explore_mask explore_window"
)
HEAVY = (
    "matplotlib plotly dask pyvista pydicom scipy skimage nibabel highdicom ipywidgets"
)
RIGHTWARDS = (
    "series volume resample phantom data display surface lungs export cohort widgets "
    "report cli"
)
# they need a screen, a disk, a network or half a minute
WITHOUT_EXAMPLE = (
    "show_",
    "render_",
    "explore_",
    "save_",
    "load_",
    "choose_",
    "segment_",
    "build_",
    "open_",
    "join_",
)
SIGNATURES = {  # name: positional parameters, then those that are keyword-only
    "load_series": ("folder", "series_uid regularize"),
    "resample": ("volume spacing", "shape order"),
    "fit_shape": ("volume shape", "fill"),
    "mask_plane": ("hu", "spacing rules"),
    "mask_plane_2017": ("hu", "rules"),
    "extract_surface": ("volume level", "step"),
    "to_hounsfield": ("stored slope intercept", ""),
    "make_phantom": ("folder", "shape spacing seed"),
}


def imports(path):
    """List the questlib modules that a module imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [f"questlib.{node.module}"] if node.module else []
            names = base or [f"questlib.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("questlib.")}
    return found & set(MODULES)


def run(code):
    """Run code in a fresh interpreter and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_imports_never_form_a_circle():
    waiting = {name: imports(path) for name, path in MODULES.items()}
    while ready := {
        name for name, needs in waiting.items() if not needs & set(waiting)
    }:
        for name in ready:
            del waiting[name]
    assert waiting == {}, "these import one another"


def test_imports_flow_one_way():
    place = {name: number for number, name in enumerate(RIGHTWARDS.split())}
    wrong = [
        f"{name} imports {other}"
        for name in place.keys() & MODULES.keys()
        for other in imports(MODULES[name]) & place.keys()
        if place[other] >= place[name]
    ]
    assert wrong == []


def test_nobody_imports_the_command_line():
    users = {name for name, path in MODULES.items() if "cli" in imports(path)}
    assert users == set()
    users = {name for name, path in MODULES.items() if "report" in imports(path)}
    assert users <= {"cli"}


def test_import_questlib_is_light():
    code = f"import sys, questlib; print(*set({HEAVY!r}.split()) & set(sys.modules))"
    assert run(code) == ""


def test_a_function_wins_over_the_module_of_its_name():
    code = "import questlib.resample; print(callable(questlib.resample))"
    assert run(code) == "True"


def test_public_names_are_there():
    assert set(PUBLIC.split()) <= set(questlib.__all__) <= set(dir(questlib))
    for name in questlib.__all__:
        assert getattr(questlib, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        questlib.nothing  # noqa: B018


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures(name):
    parameters = inspect.signature(getattr(questlib, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert positional == SIGNATURES[name][0].split()
    assert set(SIGNATURES[name][1].split()) <= set(keywords)


def public_functions():
    """List the public functions by name."""
    found = {name: getattr(questlib, name) for name in sorted(questlib.__all__)}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def test_public_functions_are_documented():
    poor = {}
    for name, function in public_functions().items():
        text, signature = inspect.getdoc(function), inspect.signature(function)
        wanted = ["Built in notebook"]
        if signature.parameters:
            wanted.append("Parameters")
        if signature.return_annotation not in (None, signature.empty):
            wanted.append("Returns" if name != "choose_scan" else "")
        if not name.startswith(WITHOUT_EXAMPLE):
            wanted += ["Examples", ">>>"]
        if not text.partition("\n")[0].endswith("."):
            wanted.append("(a first line that ends with a full stop)")
        if missing := [part for part in wanted if part not in text]:
            poor[name] = missing
    assert poor == {}


def test_functions_are_small():
    large = {}
    for name, path in MODULES.items():
        source = path.read_text("utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            code = lines[body[0].lineno - 1 : node.end_lineno] if body else []
            if (count := sum(bool(line.strip()) for line in code)) > 40:
                large[f"{name}.{node.name}"] = count
    for name, function in public_functions().items():
        if function.__code__.co_argcount > 4:
            large[name] = f"{function.__code__.co_argcount} positional parameters"
    assert large == {}


def test_modules_say_where_they_are_built():
    for path in MODULES.values():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path.name


def test_no_module_hides_its_function():
    """`questlib.resample` is the function, also once the module was imported."""
    code = "import questlib.resample, questlib; print(questlib.resample.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "resample", done.stderr
