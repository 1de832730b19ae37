"""The table or cloth, the shadow on it, and the camera."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from handclip_lib.data.drawn.laboratory import Laboratory
from handclip_lib.data.drawn.pose import Shot
from handclip_lib.data.drawn.shape import Frame


def compose(
    rgb: np.ndarray,
    alpha: np.ndarray,
    frame: Frame,
    shot: Shot,
    rng: np.random.Generator,
    there: Laboratory,
) -> np.ndarray:
    """(H, W, 3) float32: the cut-out rgb (h, w, 3) with alpha (h, w) laid where `there` says."""
    width, height = frame.size
    x0, y0, x1, y1 = frame.box
    full = np.zeros((height, width), np.float32)
    full[y0:y1, x0:x1] = alpha
    out = _table(frame.size, rng) if there.cloth is None else _cloth(frame, shot, rng, there.cloth)
    out *= 1 - _shadow(full, frame, shot, rng, there)[..., None] * np.array(
        [1.0, 0.96, 0.9], np.float32
    )
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
    return np.stack([_enlarged(small[..., c], size) for c in range(3)], axis=-1)


def _cloth(
    frame: Frame, shot: Shot, rng: np.random.Generator, colour: tuple[float, float, float]
) -> np.ndarray:
    """A woven cloth of this colour, with soft folds, lit from the lamp's side."""
    width, height = frame.size
    y, x = np.mgrid[-0.5:0.5:30j, -0.5:0.5:40j]
    fall = rng.uniform(0.3, 0.55) * (shot.light[0] * x + shot.light[1] * y)
    turn = rng.uniform(-np.pi, np.pi)
    waves = np.sin((np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(9, 16) + rng.uniform(0, 6))
    folds = 0.05 * gaussian_filter(waves * rng.standard_normal((30, 40)), 2.5) / 0.15
    level = 1 + fall + folds + 0.05 * gaussian_filter(rng.standard_normal((30, 40)), 3)
    threads = rng.standard_normal((2, height, width), dtype=np.float32)
    run = 1.6 * frame.scale
    weave = gaussian_filter(threads[0], (run, 0.2)) + gaussian_filter(threads[1], (0.2, run))
    light = _enlarged(level, frame.size) * (1 + 0.1 * weave / weave.std())
    return (light[..., None] * np.array(colour, np.float32)).astype(np.float32)


def _enlarged(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(plane.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def _shadow(
    alpha: np.ndarray, frame: Frame, shot: Shot, rng: np.random.Generator, there: Laboratory
) -> np.ndarray:
    """(H, W) 0..1: a close dark contact shadow and a wide soft one away from the light."""
    height, width = alpha.shape
    small = alpha[::4, ::4]
    unit = frame.scale / 4
    move = -shot.light[:2][::-1] * unit
    near = gaussian_filter(shift(small, move * rng.uniform(2, 6), order=1), 1.6 * unit)
    far = gaussian_filter(
        shift(small, move * rng.uniform(10, 30), order=1), rng.uniform(5, 11) * unit
    )
    both = rng.uniform(*there.contact) * near + rng.uniform(*there.cast) * far
    picture = Image.fromarray(both.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def photograph(
    scene: np.ndarray, shot: Shot, rng: np.random.Generator, there: Laboratory
) -> np.ndarray:
    """(H, W, 3) uint8: exposure, white balance, tone curve, blur and sensor noise."""
    height, width = scene.shape[:2]
    scene = _through_lens(scene, there)
    blur = float(rng.uniform(*there.blur)) * height / 480
    smear = blur + (float(rng.uniform(1, 2.2)) * height / 480 if rng.random() < 0.08 else 0.0)
    sigma = (blur, smear) if rng.random() < 0.5 else (smear, blur)
    contrast = np.float32(1.6 * rng.uniform(0.08, 0.42))
    grain = np.float32(rng.uniform(*there.grain))
    noise = grain * rng.standard_normal((height + 14, width + 14), dtype=np.float32)
    out = np.empty(scene.shape, np.uint8)
    for c in range(3):
        plane = scene[..., c] * np.float32(shot.exposure * shot.white[c])
        knee = np.maximum(plane - 0.82, 0)
        plane = np.minimum(plane, 0.82) + 0.25 * knee / (knee + 0.16)
        plane = plane + contrast * (plane - 0.5) * plane * (1 - plane)
        plane = gaussian_filter(plane, sigma, truncate=2.5)
        if there.sharpen:
            plane += there.sharpen * (plane - gaussian_filter(plane, 1.5 * blur, truncate=2.5))
        plane += noise[7 * c : 7 * c + height, 7 * c : 7 * c + width]
        out[..., c] = np.clip(plane * 255 + 0.5, 0, 255)
    return out


def _through_lens(scene: np.ndarray, there: Laboratory) -> np.ndarray:
    """The scene as it falls on the sensor: darker corners, and the sensor's own colours."""
    if there.vignette:
        y, x = np.ogrid[-1 : 1 : scene.shape[0] * 1j, -1 : 1 : scene.shape[1] * 1j]
        lost = np.float32(there.vignette / 2) * (x * x + y * y).astype(np.float32)
        scene = scene * (np.float32(1) - lost)[..., None]
    return scene if there.mix is None else scene @ np.array(there.mix, np.float32).T
