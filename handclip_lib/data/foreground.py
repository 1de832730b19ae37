"""Where the hand is in a photograph on a plain background: colour distance, Otsu, one blob."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

_WORK = 160  # pixels of the longer side at which the search works: 1 ms, and fingers stay apart
_AREA = (0.03, 0.95)  # believable share of the picture
_CONTRAST = 20.0  # grey levels between the two classes; noise and JPEG blocks stay below
_FAR = 60.0  # grey levels; farther is no more foreground: a dark sleeve must not outweigh pale skin


@dataclass(frozen=True)
class Found:
    """Box (left, top, right, bottom) in pixels of the picture, and the background's colour."""

    box: tuple[float, float, float, float]
    background: tuple[int, int, int]


def find_hand(picture: Image.Image) -> Found | None:
    """The largest thing that differs from the border's colour; None when nothing is believable.

    The wrist crosses the border, so the background is a robust plane through the border's pixels
    (colour = a + b·x + c·y): it follows uneven light and drops the pixels that do not fit.
    Threshold: Otsu 1979 on the distance from that plane.
    """
    seen = _blob(picture)
    if seen is None:
        return None
    blob, background = seen
    rows, columns = ndimage.find_objects(blob)[0]
    x, y = picture.width / blob.shape[1], picture.height / blob.shape[0]
    box = (columns.start * x, rows.start * y, columns.stop * x, rows.stop * y)
    return Found(box, background)


def hand_mask(picture: Image.Image) -> np.ndarray | None:
    """(h, w) float32, 0 to 1: `find_hand`'s blob at the picture's size, edges soft by its pixels.

    Arm and sleeve are part of it. None where `find_hand` finds nothing.
    """
    seen = _blob(picture)
    if seen is None:
        return None
    small = Image.fromarray(seen[0].astype(np.float32))
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def _blob(picture: Image.Image) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """The foreground as 0 and 1, int (h, w) at the working size, and the background's colour."""
    scale = min(1.0, _WORK / max(picture.size))
    small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    rgb = np.asarray(picture.resize(small, Image.Resampling.BOX), dtype=np.float64)  # (h, w, 3)
    height, width = rgb.shape[:2]
    if min(height, width) < 8:
        return None
    distance = np.linalg.norm(rgb - _background_plane(rgb), axis=2).clip(max=_FAR)  # (h, w)
    threshold, contrast = otsu(distance)
    if contrast < _CONTRAST:
        return None
    differs = ndimage.binary_opening(distance > threshold)
    if not differs.any():
        return None
    # a ring as bright as the background must not cost the finger's tip: label what nearly touches
    blobs = np.where(differs, ndimage.label(ndimage.binary_dilation(differs, iterations=2))[0], 0)
    sizes = np.bincount(blobs.ravel())[1:]
    if not _AREA[0] <= sizes.max() / blobs.size <= _AREA[1]:
        return None
    largest = (blobs == sizes.argmax() + 1).astype(int)
    return largest, _rounded(np.median(rgb[distance <= threshold], axis=0))


def border_colour(picture: Image.Image) -> tuple[int, int, int]:
    """Median colour of the picture's outermost pixels."""
    rgb = np.asarray(picture)
    edges = (rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1])
    return _rounded(np.median(np.concatenate(edges), axis=0))


def otsu(values: np.ndarray) -> tuple[float, float]:
    """Threshold with the largest between-class variance, and the distance of the class means."""
    counts, edges = np.histogram(values, bins=128)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]  # (127,) values left of each inner edge
    above = values.size - below
    total = np.cumsum(counts * middles)
    low = total[:-1] / np.maximum(below, 1)
    high = (total[-1] - total[:-1]) / np.maximum(above, 1)
    best = int(np.argmax(below * above * (high - low) ** 2))
    return float(edges[best + 1]), float(high[best] - low[best])


def _background_plane(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) background colour, from the border pixels that lie on one plane of colour."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y], axis=2)  # (h, w, 3)
    border = np.ones((height, width), dtype=bool)
    border[2:-2, 2:-2] = False
    known, colour = terms[border], rgb[border]  # (n, 3) both
    plane = np.zeros((3, 3))
    plane[0] = np.median(colour, axis=0)
    for _ in range(3):
        error = np.linalg.norm(colour - known @ plane, axis=1)
        keep = error <= max(2.5 * float(np.median(error)), 6.0)
        plane = np.linalg.lstsq(known[keep], colour[keep], rcond=None)[0]
    return terms @ plane


def _rounded(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(round(float(c))) for c in colour)
    return red, green, blue
