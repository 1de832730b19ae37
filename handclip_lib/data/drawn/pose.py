"""What one shot adds: where the hand lies, how it is spread, and the camera's own ways."""

from dataclasses import dataclass

import numpy as np

from handclip_lib.data.drawn.laboratory import LABORATORIES, Laboratory
from handclip_lib.data.drawn.person import Hand, Person, split_aspect, stream


@dataclass(frozen=True, eq=False)
class Shot:
    """Nuisances of a picture. Angles in radians, px at 480 rows, colours as factors around 1."""

    angle: float
    px_per_mm: float
    centre: tuple[float, float]  # of the hand's axis, and of the longest tip, as shares of size
    stretch: tuple[float, float]
    fingers: np.ndarray  # (5,) direction of each finger against the axis of the hand
    bends: np.ndarray  # (5, 2) sideways bend at the two outer joints
    shorten: np.ndarray  # (5, 3) foreshortening of each bone
    forearm: float
    light: np.ndarray  # (3,) unit vector towards the light
    ambient: float
    exposure: float
    white: np.ndarray  # (3,) white balance
    sleeve: float  # mm above the wrist crease where it ends; far below 0: out of the picture
    ring: str  # none | plain | stone
    band: str  # none | watch | bracelet


def make_shot(
    person: Person,
    aspect: str,
    shot: int,
    accessories: bool,
    there: Laboratory = LABORATORIES["white_table"],
) -> Shot:
    """The nuisances of this shot: fixed by person seed, aspect, shot number and laboratory."""
    surface, _ = split_aspect(aspect)
    rng = stream(person.seed, aspect, shot, "shot")
    ring, band = _worn(rng) if accessories else ("none", "none")
    direction = rng.uniform(*there.direction)
    tilt = rng.uniform(*there.tilt)
    zoom = rng.uniform(1.78, 2.0) if band != "none" else rng.uniform(1.95, 2.4)
    return Shot(
        angle=float(np.radians(np.clip(rng.normal(0, 8), -16, 16))),
        px_per_mm=float(zoom / there.distance),
        centre=(float(rng.uniform(0.36, 0.64)), float(rng.uniform(0.82, 0.955))),
        stretch=(float(rng.normal(1, 0.025)), float(rng.normal(1, 0.025))),
        fingers=_spread(rng, surface),
        bends=np.clip(rng.normal(0, 0.04, (5, 2)), -0.09, 0.09),
        shorten=1 - np.abs(rng.normal(0, 0.03, (5, 3))) - abs(rng.normal(0, 0.02)),
        forearm=float(rng.normal(0, 0.11)),
        light=np.array([np.cos(direction) * tilt, np.sin(direction) * tilt, np.sqrt(1 - tilt**2)]),
        ambient=float(rng.uniform(*there.ambient)),
        exposure=float(np.exp(np.clip(rng.normal(0.01, 0.095), -0.22, 0.13))),
        white=np.exp(np.clip(rng.normal(0, 0.042, 3), -0.075, 0.075) * np.array([1, 0.4, 1]))
        * there.tint,
        sleeve=float(rng.uniform(-75, -12)) if rng.random() < 0.55 else -400.0,
        ring=ring,
        band=band,
    )


def _worn(rng: np.random.Generator) -> tuple[str, str]:
    """Which ring and which band an accessory shot shows; never neither."""
    ring = str(rng.choice(["none", "plain", "stone"], p=[0.3, 0.4, 0.3]))
    band = str(rng.choice(["none", "watch", "bracelet"], p=[0.5, 0.25, 0.25]))
    return ("plain", band) if ring == band == "none" else (ring, band)


def _spread(rng: np.random.Generator, surface: str) -> np.ndarray:
    """(5,) finger directions: from held together to fanned out, as people do when asked."""
    fan = rng.beta(0.75, 0.9)
    closed = np.array([0.2, -0.06, 0.0, 0.065, 0.14])
    opened = np.array([0.86, 0.2, 0.02, -0.17, -0.42])
    angles = closed + (opened - closed) * fan + rng.normal(0, 0.025, 5)
    thumb = 0.55 * fan + 0.45 * rng.random()
    low, high = (0.13, 0.82) if surface == "dorsal" else (0.16, 0.92)
    angles[0] = low + (high - low) * thumb
    return angles


def chains(hand: Hand, shot: Shot) -> list[np.ndarray]:
    """Five (4, 2) joint chains in mm: root, two joints, and the centre of the rounded tip."""
    out = []
    for f in range(5):
        bones = hand.bones[f] * shot.shorten[f]
        bones[2] -= hand.radii[f] * hand.profile[f, 6]
        turns = np.cumsum([shot.fingers[f], *shot.bends[f]])
        if f == 0:
            turns = turns + np.array([0.16, -0.05, -0.16])
        steps = bones[:, None] * np.stack([np.sin(turns), np.cos(turns)], axis=1)
        out.append(hand.heads[f] + np.vstack([np.zeros(2), np.cumsum(steps, axis=0)]))
    return out
