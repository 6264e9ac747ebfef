"""Score `segment_lungs` on phantoms, on the patient and on a labeled scan.

    python benchmarks/lungs_table.py                          phantoms and the patient
    python benchmarks/lungs_table.py SCAN LABELS.npy          and a labeled scan

SCAN is a folder of DICOM files, LABELS its lungs (nonzero) on the same (plane, row,
column) grid as `questlib.load_series` gives, saved with `numpy.save`.
"""

import sys

import numpy as np

import questlib

COARSE = {"shape": (110, 180, 190), "spacing": (2.8, 2.0, 2.0)}
THICK = {"shape": (38, 256, 256), "spacing": (8.0, 1.4, 1.4)}
CASES = {
    "default": {},
    "offset 40 back": COARSE | {"offset": (40, 0)},
    "offset -40, -30": COARSE | {"offset": (-40, -30)},
    "offset 40 left": COARSE | {"offset": (0, 40)},
    "field 300 mm": COARSE | {"shape": (110, 220, 220), "field_of_view": 300},
    "field 500 mm": COARSE | {"shape": (110, 256, 256), "field_of_view": 500},
    "planes 0.7 mm": {"shape": (420, 128, 128), "spacing": (0.7, 2.8, 2.8)},
    "planes 8 mm": THICK,
    "noise 60 HU": COARSE | {"noise": 60},
    "touching": COARSE | {"touching": True},
    "touching, noise": COARSE | {"touching": True, "noise": 60},
    "45 mm on pleura": COARSE | {"nodules": ((45, "pleura"),)},
    "consolidation": COARSE | {"consolidation": 60},
}


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def score(phantom, result):
    truth, labels = phantom.truth, result.labels
    lungs = np.isin(truth, (1, 2))
    area = lungs.sum((1, 2)) * np.prod(phantom.volume.spacing[1:])
    lost = np.count_nonzero((area > 300) & ~labels.any((1, 2)))
    swapped = np.count_nonzero((labels == 3 - truth.astype(int)) & lungs) / lungs.sum()
    nodules = phantom.parts["nodules"] & lungs
    kept = (labels[nodules] > 0).mean() if nodules.any() else 1.0
    both = [(labels == side, truth == side) for side in (1, 2)]
    lungs = [f"{dice(a, b):.4f} {a.sum() / b.sum() - 1:+6.2%}" for a, b in both]
    trachea = (labels[truth == 3] > 0).mean()
    return "  ".join(lungs) + f"  {trachea:6.2%}  {kept:7.1%}  {swapped:7.2%}  {lost}"


def show(name, numbers, findings):
    print(f"{name:16} {numbers}", *findings, sep="\n    ", flush=True)


print(f"{'':16} right Dice, volume left Dice, vol. trachea nodules swapped planes lost")
for name, knobs in CASES.items():
    phantom = questlib.make_phantom(**knobs)
    result = questlib.segment_lungs(phantom.volume)
    show(name, score(phantom, result), result.findings)
result = questlib.segment_lungs(questlib.load_series(questlib.fetch_patient()))
show("patient", {k: round(v) for k, v in result.volumes_ml.items()}, result.findings)
if len(sys.argv) == 3:
    labels = np.load(sys.argv[2]) > 0
    result = questlib.segment_lungs(questlib.load_series(sys.argv[1]))
    numbers = f"Dice of both lungs {dice(result.labels > 0, labels):.4f}"
    show("labeled scan", numbers, result.findings)
