"""Nails, bare or painted, over the tips of the fingers seen from the back."""

import numpy as np

from handclip_lib.data.drawn.person import trait
from handclip_lib.data.drawn.pose import Shot
from handclip_lib.data.drawn.relief import Subject
from handclip_lib.data.drawn.shape import Shape, knots_of

POLISH = (
    (150, 12, 30), (196, 20, 40), (90, 10, 40), (40, 20, 40), (230, 120, 150), (20, 22, 30),
    (240, 180, 190), (60, 90, 170), (40, 130, 120), (200, 90, 60), (170, 130, 190),
)  # fmt: skip


def add_nails(
    rgb: np.ndarray, subject: Subject, shape: Shape, shot: Shot, polish: int | None
) -> None:
    """Paints five nails into rgb (h, w, 3) 0..1 in place; polish is an index of POLISH or None."""
    z = subject.hand.nail
    own = 0.04 * trait(subject.person, "nails", subject.side, 5, 0.9)
    for f in range(5):
        knots = knots_of(subject.joints[f])
        mine = np.argwhere((shape.owner == f + 1) & (shape.along > knots[4]))
        if len(mine) == 0:
            continue
        low, high = mine.min(axis=0), mine.max(axis=0) + 1
        window = slice(low[0], high[0]), slice(low[1], high[1])
        radius = subject.hand.radii[f]
        end = knots[6] + radius * subject.hand.profile[f, 6]
        length = radius * (1.32 + 0.16 * z[0] + own[f])
        length = min(length, 0.66 * (end - knots[4]))
        middle = end - 0.9 - length / 2
        p = (shape.along[window] - middle) / (length / 2)
        half = np.clip(0.74 + 0.06 * z[1] + own[f], 0.56, 0.9) * (0.8 if f == 0 else 1.0)
        q = (shape.across[window] - (0.22 if f == 0 else 0.0)) / half
        q = q * (1 + 0.07 * np.clip(-p, -1, 1))
        q = np.where(shape.owner[window] == f + 1, q, 9.0)
        power = float(np.clip(2.9 + 0.7 * z[2], 2.1, 4.5))
        _nail(rgb[window], p, q, power, subject, shot, polish)


def _nail(
    rgb: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    power: float,
    subject: Subject,
    shot: Shot,
    polish: int | None,
) -> None:
    """One nail in place; p runs -1..1 from root to edge, q -1..1 across."""
    level = np.abs(p) ** power + np.abs(q) ** power
    inside = np.clip((1 - level) * 2.2 + 0.1, 0, 1)[..., None]
    rim = np.exp(-(((level - 1.0) / 0.22) ** 2))[..., None]
    tone = rgb.copy()
    bulge = (1 - 0.22 * np.clip(np.abs(q), 0, 1) ** 2.5)[..., None]
    if polish is None:
        pink = np.array([238, 184, 174]) / 255
        bed = tone * 0.3 + 0.7 * pink * (0.62 + 0.5 * tone.mean(axis=-1, keepdims=True))
        moon = np.clip((-0.52 - p - 0.3 * q * q) * 5, 0, 1)[..., None]
        edge = np.clip((p - 0.74 + 0.16 * q * q) * 7, 0, 1)[..., None]
        bed = bed * (1 - 0.55 * moon - 0.6 * edge)
        bed = bed + np.array([0.92, 0.84, 0.8]) * 0.55 * moon * 0.92
        bed = bed + np.array([0.95, 0.92, 0.87]) * 0.6 * edge * 0.95
        gloss = 0.16
    else:
        bed = np.array(POLISH[polish]) / 255 * np.ones_like(tone)
        gloss = 0.5
    where = (q - 0.35 * np.sign(shot.light[0])) / 0.2
    shine = np.exp(-(where**2) - (p / 0.55) ** 4)[..., None]
    nail = bed * bulge * (1.0 if polish is None else 0.9) + gloss * shine
    rgb *= 1 - 0.34 * rim * (p < 0.75)[..., None]
    rgb += (nail - rgb) * inside * 0.93
