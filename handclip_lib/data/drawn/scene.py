"""The table, the shadow on it, and the camera."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from handclip_lib.data.drawn.pose import Shot
from handclip_lib.data.drawn.shape import Frame


def compose(
    rgb: np.ndarray, alpha: np.ndarray, frame: Frame, shot: Shot, rng: np.random.Generator
) -> np.ndarray:
    """(H, W, 3) float32: the cut-out rgb (h, w, 3) with alpha (h, w) laid on a white table."""
    width, height = frame.size
    x0, y0, x1, y1 = frame.box
    full = np.zeros((height, width), np.float32)
    full[y0:y1, x0:x1] = alpha
    out = _table(frame.size, rng)
    out *= 1 - _shadow(full, frame, shot, rng)[..., None] * np.array([1.0, 0.96, 0.9], np.float32)
    part = out[y0:y1, x0:x1]
    part += (rgb - part) * alpha[..., None]
    return out


def _table(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A white surface with a gradient, darker tinted corners and faint unevenness."""
    w, h = 40, 30
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    x, y = x / w - 0.5, y / h - 0.5
    direction = rng.uniform(-np.pi, np.pi)
    slope = rng.uniform(0, 0.14) * (np.cos(direction) * x + np.sin(direction) * y)
    cx, cy = rng.uniform(-0.3, 0.3, 2)
    corner = np.clip(np.hypot(x - cx, y - cy) - rng.uniform(0.35, 0.7), 0, 1)
    uneven = gaussian_filter(rng.standard_normal((h, w)), 3) * 0.05
    level = rng.uniform(1.1, 1.6) + slope + uneven - rng.uniform(0, 0.6) * corner
    tint = rng.uniform(-0.03, 0.03, 3) * np.array([1.2, 0.3, 1.0])
    cool = rng.uniform(0, 0.35) * np.array([0.5, 0.1, 0.0])
    small = level[..., None] * (1 + tint) - corner[..., None] * cool
    planes = [
        np.asarray(
            Image.fromarray(small[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        )
        for c in range(3)
    ]
    return np.stack(planes, axis=-1)


def _shadow(alpha: np.ndarray, frame: Frame, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """(H, W) 0..1: a close dark contact shadow and a wide soft one away from the light."""
    height, width = alpha.shape
    small = alpha[::4, ::4]
    unit = frame.scale / 4
    move = -shot.light[:2][::-1] * unit
    near = gaussian_filter(shift(small, move * rng.uniform(2, 6), order=1), 1.6 * unit)
    far = gaussian_filter(
        shift(small, move * rng.uniform(10, 30), order=1), rng.uniform(5, 11) * unit
    )
    both = rng.uniform(0.15, 0.42) * near + rng.uniform(0.04, 0.26) * far
    picture = Image.fromarray(both.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def photograph(scene: np.ndarray, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: exposure, white balance, tone curve, blur and sensor noise."""
    height, width = scene.shape[:2]
    blur = float(rng.uniform(0.25, 0.95)) * height / 480
    smear = blur + (float(rng.uniform(1, 2.2)) * height / 480 if rng.random() < 0.08 else 0.0)
    sigma = (blur, smear) if rng.random() < 0.5 else (smear, blur)
    contrast = np.float32(1.6 * rng.uniform(0.08, 0.42))
    grain = np.float32(rng.uniform(0.004, 0.014))
    noise = grain * rng.standard_normal((height + 14, width + 14), dtype=np.float32)
    out = np.empty(scene.shape, np.uint8)
    for c in range(3):
        plane = scene[..., c] * np.float32(shot.exposure * shot.white[c])
        knee = np.maximum(plane - 0.82, 0)
        plane = np.minimum(plane, 0.82) + 0.25 * knee / (knee + 0.16)
        plane = plane + contrast * (plane - 0.5) * plane * (1 - plane)
        plane = gaussian_filter(plane, sigma, truncate=2.5)
        plane += noise[7 * c : 7 * c + height, 7 * c : 7 * c + width]
        out[..., c] = np.clip(plane * 255 + 0.5, 0, 255)
    return out
