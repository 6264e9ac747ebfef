"""The scans that many tests share, and the table that ends a run."""

import pytest

import questlib


@pytest.fixture(scope="session")
def phantom():
    """Give the default phantom: a volume and its truth."""
    return questlib.make_phantom()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """Give a folder that holds a smaller phantom as a DICOM series."""
    folder = tmp_path_factory.mktemp("phantom")
    questlib.make_phantom(folder, shape=(60, 128, 128), spacing=(5.0, 2.8, 2.8))
    return folder


def pytest_terminal_summary(terminalreporter):
    """Print what the form test measured, when it ran."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports(
        "failed"
    )
    if any("test_notebooks.py" in report.nodeid for report in reports):
        from test_notebooks import table

        terminalreporter.section("form of the notebooks")
        for line in table():
            terminalreporter.write_line(line)
