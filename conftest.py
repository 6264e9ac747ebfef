"""What pytest needs at the root: notebooks run as they were built (nbval's hooks)."""

import os

NOT_COMPARED = (
    "text/html",  # a table is compared as text/plain
    "application/vnd.plotly.v1+json",  # floats; its still twin's facts are printed
)

# no modules with doctests: scripts that become notebooks; fixtures, all of one name
collect_ignore_glob = ["notebooks/src/*", "*conftest.py"]

# the kernels inherit this: the same as tools/build_notebooks.py gives
for name in ("QUEST_SCAN", "MPLBACKEND"):
    os.environ.pop(name, None)
os.environ |= {"PYTHONHASHSEED": "0", "PLOTLY_RENDERER": "plotly_mimetype"}


def pytest_collectstart(collector):
    """Tell nbval which kinds of output say nothing when they differ."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED
