"""The scans that many tests share; both are computed, none is downloaded."""

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
