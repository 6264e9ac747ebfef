"""The method of 2017, typed anew from the facts of its page, to time and score it.

Howard Chen, "DICOM Processing and Segmentation in Python" (Radiology Data Quest, 2017);
after G. Zuidhof's Kaggle preprocessing tutorial and Booz Allen's DSB3 tutorial. The
constants and the order of the steps are theirs; names that have gone from the libraries
since are replaced by today's.
"""

from pathlib import Path

import numpy as np
import pydicom
from scipy import ndimage
from skimage import measure, morphology
from sklearn.cluster import KMeans


def load(folder):
    """Every entry of the folder, by Instance Number; spacing from the first two."""
    planes = [pydicom.dcmread(path) for path in Path(folder).iterdir()]
    planes.sort(key=lambda ds: int(ds.InstanceNumber))
    first, second = (ds.ImagePositionPatient[2] for ds in planes[:2])
    spacing = [abs(second - first), *planes[0].PixelSpacing]
    return planes, np.array(spacing, float)


def to_hounsfield(planes):
    """Slope and intercept of the first plane for all; raw -2000 counts as 0."""
    image = np.stack([ds.pixel_array for ds in planes]).astype(np.int16)
    image[image == -2000] = 0
    slope, intercept = planes[0].RescaleSlope, planes[0].RescaleIntercept
    if slope != 1:
        image = (slope * image.astype(np.float64)).astype(np.int16)
    return image + np.int16(intercept)


def resample(image, spacing, order=3):
    """To 1 mm, with a cubic spline, on the grid that `zoom` makes."""
    shape = np.round(image.shape * spacing)
    return ndimage.zoom(image, shape / image.shape, order=order, mode="nearest")


def mask_plane(plane):
    """Two clusters, three square kernels, four rules for the bounding box."""
    rows, columns = plane.shape
    plane = (plane - plane.mean()) / plane.std()
    inner = [slice(int(size / 5), int(size / 5 * 4)) for size in (rows, columns)]
    middle = plane[*inner]
    mean, low, high = middle.mean(), plane.min(), plane.max()
    plane[(plane == low) | (plane == high)] = mean
    two = KMeans(n_clusters=2, n_init=10).fit(middle.reshape(-1, 1))
    below = np.where(plane < two.cluster_centers_.mean(), 1.0, 0.0)
    eroded = morphology.erosion(below, np.ones((3, 3)))
    dilated = morphology.dilation(eroded, np.ones((8, 8)))
    labels = measure.label(dilated)
    mask = np.zeros(plane.shape, np.int8)
    for region in measure.regionprops(labels):
        top, left, bottom, right = region.bbox
        small = bottom - top < rows * 0.9 and right - left < columns * 0.9
        if small and top > rows / 5 and bottom < columns / 5 * 4:
            mask += labels == region.label
    return morphology.dilation(mask, np.ones((10, 10)))


def find_bones(image):
    """The surface of the bones at 350 HU, on the transposed image."""
    return measure.marching_cubes(image.transpose(2, 1, 0), 350)
