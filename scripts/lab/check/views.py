"""Small pictures of a case for the page: three slices with the label map as overlay."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from numpy.typing import NDArray
from scipy import ndimage
from scripts.evaluation.montage import percentile_limits, structure_colour, upright
from scripts.lab.check.coarse import resample

__all__ = ["draw_views"]

_Array = NDArray[Any]

# Longer edge of a picture.
PIXELS = 300

# Opacity of an area inside its outline; JPEG quality.
FILL, QUALITY = 0.22, 85


def draw_views(image: _Array, classes: _Array | None, turn: _Array, spacing_mm: Sequence[float]) -> list[str]:
    """The axial, coronal and sagittal slices with most labelled voxels, as JPEG data URIs.

    Pixels are square in mm, so that a wrong spacing is visible. Without a label the middle slices are drawn. Image and
    class ids are (H, W, D) as stored; ``turn`` is for ``nibabel.orientations.apply_orientation``.
    """
    limits = percentile_limits(image)
    shown = nib.orientations.apply_orientation(image, turn)
    labels = None if classes is None else nib.orientations.apply_orientation(classes, turn)
    edges = [spacing_mm[axis] for axis in np.argsort(turn[:, 0])]
    views = []
    for axis in (2, 1, 0):
        across = tuple(other for other in range(3) if other != axis)
        index = shown.shape[axis] // 2
        if labels is not None and labels.any():
            index = int(np.count_nonzero(labels, axis=across).argmax())
        plane = [edges[other] for other in across]
        cut = None if labels is None else np.take(labels, index, axis)
        views.append(_data_uri(_picture(np.take(shown, index, axis), cut, plane, limits)))
    return views


def _picture(
    image: _Array, labels: _Array | None, spacing_mm: Sequence[float], limits: tuple[float, float]
) -> NDArray[np.uint8]:
    pixel = max(size * edge for size, edge in zip(image.shape, spacing_mm, strict=True)) / PIXELS
    grey = resample(image, spacing_mm, (pixel, pixel))
    grey = np.clip((grey - limits[0]) / max(limits[1] - limits[0], 1e-6), 0, 1)
    colour = np.repeat(upright(grey)[..., None], 3, 2)
    if labels is not None:
        places = [
            np.minimum(((np.arange(out) + 0.5) * size / out).astype(int), size - 1)
            for out, size in zip(grey.shape, labels.shape, strict=True)
        ]
        _lay_over(colour, upright(labels[np.ix_(*places)]))
    return (colour * 255).round().astype(np.uint8)


def _lay_over(colour: _Array, labels: _Array) -> None:
    for class_id in np.unique(labels[labels > 0]):
        area = labels == class_id
        outline = area & ~ndimage.binary_erosion(area, iterations=2)
        paint = np.array(to_rgb(structure_colour(int(class_id))))
        colour[area] += FILL * (paint - colour[area])
        colour[outline] = paint


def _data_uri(picture: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    imsave(stream, picture, format="jpg", pil_kwargs={"quality": QUALITY, "subsampling": 0})
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
