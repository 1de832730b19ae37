"""Lines on the skin as strokes in mm, and drawing them as one smooth layer."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from handclip_lib.data.drawn.shape import Frame


@dataclass(frozen=True, eq=False)
class Stroke:
    """A line: points (n, 2) mm, width in mm at its middle, strength 0..1; it tapers off."""

    points: np.ndarray
    width: float
    strength: float


def curve(points: np.ndarray, n: int = 16) -> np.ndarray:
    """(n, 2) points of a Catmull-Rom curve through the given (m, 2) ones."""
    ends = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.linspace(0, len(points) - 1 - 1e-9, n)
    k = t.astype(int)
    u = (t - k)[:, None]
    a, b, c, d = ends[k], ends[k + 1], ends[k + 2], ends[k + 3]
    return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def along(joints: np.ndarray, s: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(n, 2) mm: the places at arc length s and offset v (both (n,), mm) beside a chain."""
    steps = np.diff(joints, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    k = np.clip(np.searchsorted(starts, s, side="right") - 1, 0, len(steps) - 1)
    unit = steps[k] / lengths[k, None]
    normal = np.stack([unit[:, 1], -unit[:, 0]], axis=1)
    return joints[k] + (s - starts[k])[:, None] * unit + v[:, None] * normal


def ink(frame: Frame, strokes: list[Stroke]) -> np.ndarray:
    """(h, w) float32 0..1 over the frame's box: the strokes, the strongest on top."""
    x0, y0, x1, y1 = frame.box
    fine = max(2, round(960 / frame.size[1]))
    canvas = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine))
    pen = ImageDraw.Draw(canvas)
    for stroke in sorted(strokes, key=lambda one: one.strength):
        points = (frame.to_px(stroke.points) - np.array([x0, y0])) * fine
        n = len(points) - 1
        taper = np.sin(np.pi * (np.arange(n) + 0.7) / (n + 0.4)) ** 0.6
        width = stroke.width * frame.scale * fine
        flat = [tuple(point) for point in points.tolist()]
        for k in range(n):
            pen.line(
                (flat[k], flat[k + 1]),
                fill=int(255 * stroke.strength * taper[k]),
                width=max(1, round(width * (0.45 + 0.55 * taper[k]))),
            )
    return np.asarray(canvas.reduce(fine), np.float32) / 255.0


def spots(frame: Frame, places: np.ndarray, radii: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """(h, w) float32 0..1 over the box: round spots; places (n, 2) mm, radii (n,) mm."""
    x0, y0, x1, y1 = frame.box
    fine = max(2, round(960 / frame.size[1]))
    canvas = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine))
    pen = ImageDraw.Draw(canvas)
    centres = (frame.to_px(places) - np.array([x0, y0])) * fine
    for (cx, cy), r, value in zip(centres, radii * frame.scale * fine, strength, strict=True):
        pen.ellipse((cx - r, cy - 0.85 * r, cx + r, cy + 0.85 * r), fill=int(255 * value))
    return np.asarray(canvas.reduce(fine), np.float32) / 255.0
