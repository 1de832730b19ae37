"""The soft forms that the outline doesn't give: knuckles, pads, mounds, veins, creases."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from handclip_lib.data.drawn.dorsal import (
    dorsal_strokes,
    moles,
    tendon_strokes,
    vein_strokes,
)
from handclip_lib.data.drawn.palmar import palmar_strokes
from handclip_lib.data.drawn.person import Hand, Person, trait
from handclip_lib.data.drawn.shape import Frame, Shape, enlarged, knots_of
from handclip_lib.data.drawn.strokes import Stroke, ink, spots

PADS = np.array([0.0, 1.0, 0.0, 1.2, 0.1, 1.2, 0.9])  # mm at the knots, palm side
KNUCKLES = np.array([0.8, 0.0, 0.9, 0.0, 0.35, 0.1, 0.0])  # back


@dataclass(frozen=True, eq=False)
class Skin:
    """Layers over the frame's box, (h, w) float32: relief in mm, the others 0..1."""

    relief: np.ndarray
    lines: np.ndarray
    veins: np.ndarray
    flush: np.ndarray
    spots: np.ndarray


@dataclass(frozen=True, eq=False)
class Subject:
    """Everything that is drawn: whose hand, which side of it, and how it lies."""

    person: Person
    surface: str
    side: str
    hand: Hand
    joints: list[np.ndarray]
    frame: Frame


def layers(subject: Subject, shape: Shape) -> Skin:
    """Lines, veins, moles and soft forms of the hand's back or palm."""
    one, scale = subject, subject.frame.scale
    hand_args = (one.person, one.side, one.hand)
    if one.surface == "dorsal":
        lines = _soft_ink(one.frame, dorsal_strokes(*hand_args, one.joints), 0.16)
        veins = _soft_ink(one.frame, vein_strokes(*hand_args), 0.8)
        tendons = _soft_ink(one.frame, tendon_strokes(*hand_args), 2.0)
        relief = 0.7 * veins + 1.3 * tendons + _bumps(one, _knuckle_bumps(one))
    else:
        lines = _soft_ink(one.frame, palmar_strokes(*hand_args, one.joints), 0.16)
        veins = np.zeros_like(lines)
        relief = _bumps(one, _palm_bumps(one))
    table = PADS if one.surface == "palmar" else KNUCKLES
    relief = relief + on_fingers(shape, one.joints, [table] * 5)
    relief = relief - 0.42 * lines - 0.35 * gaussian_filter(lines, 0.9 * scale)
    dark = _spots(one)
    return Skin(relief + 0.12 * dark, lines, veins, _flush(one, shape), dark)


def on_fingers(shape: Shape, joints: list[np.ndarray], tables: list[np.ndarray]) -> np.ndarray:
    """(h, w) float32: a value that runs along each finger by its (7,) table; 0 on the palm."""
    out = np.zeros_like(shape.height)
    for f in range(5):
        mine = shape.owner == f + 1
        out[mine] = np.interp(shape.along[mine], knots_of(joints[f]), tables[f])
    fade = np.clip(2.0 - np.abs(shape.across), 0, 1) * shape.free
    return gaussian_filter(out * fade, 1.5)


def _soft_ink(frame: Frame, strokes: list[Stroke], blur_mm: float) -> np.ndarray:
    """Strokes as a layer, softened by a Gaussian of blur_mm."""
    return gaussian_filter(ink(frame, strokes), blur_mm * frame.scale, truncate=3)


def _bumps(one: Subject, table: np.ndarray) -> np.ndarray:
    """Sum of Gaussian mounds; rows of the table: x, y, height, width in x, width in y, mm."""
    x, y = one.frame.grid()
    x, y = x[1::4, 1::4], y[1::4, 1::4]
    out = np.zeros_like(x)
    for cx, cy, tall, wide, long in table.astype(np.float32):
        out += tall * np.exp(-0.5 * (((x - cx) / wide) ** 2 + ((y - cy) / long) ** 2))
    x0, y0, x1, y1 = one.frame.box
    return enlarged(out, 4, (y1 - y0, x1 - x0))


def _knuckle_bumps(one: Subject) -> np.ndarray:
    """The heads of the metacarpals, the hollows between them, and the arch of the back."""
    heads = one.hand.heads[1:]
    z = trait(one.person, "knuckles", one.side, 4, 0.9)
    tall = np.clip(2.0 + 0.5 * z, 0.8, 3.2)
    rows = [(x, y, t, 5.2, 6.5) for (x, y), t in zip(heads, tall, strict=True)]
    middles = (heads[:-1] + heads[1:]) / 2
    rows += [(x, y + 5, -1.4, 3.5, 8.0) for x, y in middles]
    rows.append((-2.0, 45.0, 4.0, 24.0, 45.0))
    rows.append((23.0, -6.0 + 0 * z[0], 1.2, 6.0, 7.0))
    return np.array(rows)


def _palm_bumps(one: Subject) -> np.ndarray:
    """Ball of the thumb, edge of the hand, hollow of the palm, cushions under the fingers."""
    heads = one.hand.heads[1:]
    ball = one.hand.palm
    rows = [
        (24.0, 40.0, 5.5 * ball[1], 11.0, 20.0),
        (-23.0, 38.0, 4.0 * ball[2], 10.0, 22.0),
        (1.0, 55.0, -3.2, 13.0, 22.0),
        (3.0, 12.0, -1.5, 5.0, 16.0),
    ]
    rows += [(x, y + 4.0, 1.7, 6.5, 6.5) for x, y in heads]
    return np.array(rows)


def _spots(one: Subject) -> np.ndarray:
    """Moles."""
    places, radii, strength = moles(one.person, one.surface, one.side, one.hand, one.joints)
    return gaussian_filter(spots(one.frame, places, radii, strength), 0.22 * one.frame.scale)


def _flush(one: Subject, shape: Shape) -> np.ndarray:
    """Where blood shows: tips, cushions and mounds of the palm side, knuckles of the back."""
    z = trait(one.person, f"flush {one.surface}", one.side, 8, 0.9)
    if one.surface == "palmar":
        table = np.array([0.3, 0.35, 0.2, 0.4, 0.35, 0.7, 0.9]) + 0.06 * z[:7]
        heads = one.hand.heads[1:]
        rows = [(x, y + 3, 0.5, 8.0, 8.0) for x, y in heads]
        rows += [(25.0, 40.0, 0.55, 12.0, 18.0), (-25.0, 38.0, 0.6, 10.0, 22.0)]
        rows.append((0.0, 55.0, 0.25, 20.0, 25.0))
    else:
        table = np.array([0.2, 0.05, 0.75, 0.1, 0.55, 0.35, 0.6]) + 0.06 * z[:7]
        rows = [(x, y, 0.6, 6.0, 7.0) for x, y in one.hand.heads[1:]]
    flush = on_fingers(shape, one.joints, [table] * 5)
    on_palm = _bumps(one, np.array(rows)) * np.clip(1 - flush, 0, 1)
    return np.clip(flush + on_palm, 0, 1).astype(np.float32)
