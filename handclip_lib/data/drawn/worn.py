"""What hides parts of a hand: rings, watch, bracelet, sleeve, pen marks."""

import numpy as np
from scipy.ndimage import gaussian_filter

from handclip_lib.data.drawn.pose import Shot
from handclip_lib.data.drawn.relief import Subject
from handclip_lib.data.drawn.shape import Shape, knots_of
from handclip_lib.data.drawn.skin import light
from handclip_lib.data.drawn.strokes import Stroke, curve, ink

CLOTH = (
    (22, 22, 26), (28, 32, 52), (90, 92, 98), (214, 210, 204), (150, 26, 40), (96, 24, 36),
    (40, 74, 58), (172, 152, 120), (58, 82, 126), (196, 92, 120), (70, 52, 44), (120, 130, 150),
)  # fmt: skip
METALS = ((214, 172, 92), (206, 206, 210), (222, 178, 150), (190, 150, 70))


def add_rings(
    rgb: np.ndarray, subject: Subject, shape: Shape, shot: Shot, rng: np.random.Generator
) -> None:
    """Paints the shot's ring, if any, into rgb (h, w, 3) 0..1 in place."""
    if shot.ring == "none":
        return
    f = int(rng.choice([1, 2, 3, 3, 3]))
    metal = np.array(METALS[int(rng.integers(len(METALS)))]) / 255
    place = knots_of(subject.joints[f])[2] * rng.uniform(0.64, 0.74)
    half = rng.uniform(1.0, 2.3)
    across = shape.across
    s = np.where(shape.owner == f + 1, shape.along - place + 0.9 * across**2, 99.0)
    band = np.clip((half - np.abs(s)) * subject.frame.scale + 0.5, 0, 1)[..., None]
    glints = 0.62 + 0.5 * np.exp(-(((across - 0.4 * shot.light[0] * 2) / 0.22) ** 2))
    glints = glints + 0.18 * np.sin(9 * across + rng.uniform(0, 6)) - 0.4 * np.abs(across) ** 3
    rgb *= 1 - 0.4 * np.exp(-(((np.abs(s) - half) / 0.7) ** 2))[..., None]
    rgb += (metal * glints[..., None] - rgb) * band
    if shot.ring == "stone" and subject.surface == "dorsal":
        size = rng.uniform(2.6, 5.0)
        v = across * subject.hand.radii[f]
        gap = np.sqrt(s * s + v * v)
        gem = np.clip((size - gap) * subject.frame.scale + 0.5, 0, 1)[..., None]
        facets = 0.55 + 0.45 * np.sin(2.4 * v + 1.0) * np.sin(2.1 * s + rng.uniform(0, 6))
        colour = metal if rng.random() < 0.6 else rng.uniform(0.2, 1.0, 3)
        rgb *= 1 - 0.45 * np.exp(-(((gap - size) / 0.8) ** 2))[..., None]
        rgb += (colour * (0.5 + 0.6 * facets[..., None]) - rgb) * gem


def add_pen(rgb: np.ndarray, subject: Subject, rng: np.random.Generator) -> None:
    """Scribbles with a blue or black pen on rgb (h, w, 3) 0..1, in place."""
    strokes = []
    for _ in range(int(rng.integers(2, 6))):
        start = rng.uniform((-25, 10), (20, 75))
        steps = np.cumsum(rng.normal(0, 4, (5, 2)), axis=0)
        strokes.append(Stroke(curve(start + steps, 24), 0.7, 0.8))
    colour = np.array([0.12, 0.14, 0.42]) if rng.random() < 0.6 else np.array([0.1, 0.1, 0.12])
    rgb += (colour - rgb) * (0.85 * ink(subject.frame, strokes))[..., None]


def add_band(
    rgb: np.ndarray,
    alpha: np.ndarray,
    subject: Subject,
    shape: Shape,
    shot: Shot,
    rng: np.random.Generator,
) -> None:
    """Paints the shot's watch or bracelet over rgb and alpha (h, w) in place."""
    if shot.band == "none":
        return
    x, y = subject.frame.grid()
    centre = rng.uniform(-24, -15)
    slant = rng.normal(0, 0.08)
    off = y - centre - slant * x
    watch = shot.band == "watch"
    half = rng.uniform(7, 10) if watch else rng.uniform(1.6, 4.0)
    bow = off + (0.004 if watch else 0.008) * x * x
    soft = subject.frame.scale
    mask = np.clip((half - np.abs(bow)) * soft + 0.5, 0, 1)
    mask = mask * np.clip((1.6 - shape.distance) * soft, 0, 1) * (np.abs(x) < 44)
    metal = np.array(METALS[int(rng.integers(len(METALS)))]) / 255
    dark = np.array(CLOTH[int(rng.choice([0, 1, 10]))]) / 255
    base = dark if watch and rng.random() < 0.5 else metal
    links = 0.75 + 0.25 * np.sign(np.sin(x * (1.3 if watch else 2.2)))
    depth = np.clip(1 - (bow / half) ** 2, 0, 1)
    edge = np.clip(-shape.distance / 9, 0, 1) ** 0.5
    shade = (0.35 + 0.65 * depth) * (0.45 + 0.55 * edge) * links
    rgb *= 1 - 0.5 * np.exp(-(((bow - half) / 1.5) ** 2))[..., None]
    rgb += (base * (0.3 + 0.9 * shade[..., None]) - rgb) * mask[..., None]
    np.maximum(alpha, mask, out=alpha)
    if watch and subject.surface == "dorsal":
        _dial(rgb, alpha, np.hypot(x, off), rng.uniform(12, 17), metal, soft, rng)


def _dial(
    rgb: np.ndarray,
    alpha: np.ndarray,
    gap: np.ndarray,
    radius: float,
    metal: np.ndarray,
    scale: float,
    rng: np.random.Generator,
) -> None:
    """A round watch face with a metal rim, in place; gap is the distance to its middle, mm."""
    disc = np.clip((radius - gap) * scale + 0.5, 0, 1)
    face = np.clip((radius * 0.78 - gap) * scale + 0.5, 0, 1)
    colour = np.array([0.93, 0.93, 0.9]) if rng.random() < 0.6 else np.array([0.1, 0.11, 0.14])
    rim = metal * (0.75 + 0.35 * np.cos(gap * 1.7))[..., None]
    rgb += (rim - rgb) * disc[..., None]
    marks = 1 - 0.5 * (np.abs(gap - radius * 0.65) < 0.5) - 0.5 * (gap < 0.9)
    rgb += (colour * marks[..., None] - rgb) * face[..., None]
    np.maximum(alpha, disc, out=alpha)


def add_sleeve(
    rgb: np.ndarray, alpha: np.ndarray, subject: Subject, shot: Shot, rng: np.random.Generator
) -> None:
    """Paints the shot's sleeve over rgb and alpha in place."""
    colour = np.array(CLOTH[int(rng.integers(len(CLOTH)))]) / 255 * rng.uniform(0.85, 1.15)
    waves, knit = rng.uniform(0, 6, 3), rng.random()
    edge = min(shot.sleeve, -38.0) if shot.band != "none" else shot.sleeve
    if edge < -200:
        return
    x0, y0, x1, y1 = subject.frame.box
    ends = subject.frame.to_px(np.array([[-46.0, edge + 12], [46, edge + 12]]))
    rows = int(np.clip(ends[:, 1].max() - y0, 0, y1 - y0))
    if rows < 8:
        return
    x, y = subject.frame.grid((x0, y0, x1, y0 + rows))
    x = x + np.float32(np.tan(shot.forearm)) * y
    rim = edge + 2.2 * np.sin(x / 9 + np.float32(waves[0])) + 0.05 * x + 0.003 * x * x
    inside = rim - y
    wide = 34.0 + float(rng.uniform(0, 5)) + 0.10 * inside
    wide = wide + 1.2 * np.sin(y / 6 + np.float32(waves[1]))
    gap = np.maximum(np.abs(x) - wide, -inside)
    mask = np.clip(0.5 - gap * subject.frame.scale, 0, 1)
    bulge = np.sqrt(np.clip(1 - (x / (wide + 1)) ** 2, 0, 1)) * 16
    folds = gaussian_filter(rng.standard_normal(x.shape, dtype=np.float32), (6, 14)) * 60
    ribs = np.sin(x * 2.6) if knit < 0.4 else np.zeros_like(x)
    height = bulge + 0.35 * folds + 0.35 * ribs - 0.48 * np.clip(3 - inside, 0, 3)
    shade, _ = light(height, subject.frame.scale, shot)
    grain = 1 + 0.05 * rng.standard_normal(x.shape, dtype=np.float32)
    seam = 1 - 0.3 * np.exp(-(((inside - 7) / 0.5) ** 2)) - 0.25 * np.exp(-((inside / 0.8) ** 2))
    shade = shade * grain * seam + 0.014 * ribs
    dark = 1 - 0.45 * np.exp(-np.clip(-inside, 0, 60) / 3.0)
    for c in range(3):
        plane = rgb[:rows, :, c] * dark
        rgb[:rows, :, c] = plane + (np.float32(colour[c]) * shade + 0.015 - plane) * mask
    np.maximum(alpha[:rows], mask, out=alpha[:rows])
