"""DICOM Quest: from a folder of CT planes to a lung mask you can trust.

The public names stand in the order of the journey; a module is imported when one
of its names is first used, so that ``import questlib`` stays light.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_NAMES = {
    "series": "Series SeriesError SeriesWarning find_series",
    "volume": "Volume load_series load_volume save_volume to_hounsfield",
    "resample": "fit_shape resample",
    "phantom": "Phantom make_phantom",
    "data": "DataError choose_scan fetch_patient",
    "display": "WINDOWS apply_window show_histogram show_montage show_pair show_plane "
    "show_stages show_three_planes use_style",
    "surface": "explore_surface extract_surface render_surface render_volume "
    "save_stl show_surface",
    "lungs": "LungMask PlaneMask mask_plane mask_plane_2017 segment_lungs",
    "export": "save_dicom_seg save_nifti",
    "cohort": "Cohort build_cohort join_npy open_cohort",
    "widgets": "explore_mask explore_planes explore_window",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name in _HOME:
        value = getattr(import_module(f"questlib.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'questlib' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)


class _Package(ModuleType):
    """Keep the module `resample` from hiding the function of the same name."""

    def __setattr__(self, name, value):
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
