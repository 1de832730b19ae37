"""Lines of the back of the hand: knuckle wrinkles, veins, tendons; and moles of both sides."""

import numpy as np

from handclip_lib.data.drawn.person import Hand, Person, choice, stream, trait
from handclip_lib.data.drawn.shape import knots_of
from handclip_lib.data.drawn.strokes import Stroke, along, curve


def dorsal_strokes(person: Person, side: str, hand: Hand, joints: list[np.ndarray]) -> list[Stroke]:
    """Wrinkles over the knuckles and fine lines of the back; joints: five (4, 2) chains in mm."""
    out = _back_lines(person, side)
    for f in range(5):
        knots = knots_of(joints[f])
        radius = hand.radii[f]
        out += _knuckle(person, side, f"pip{f}", joints[f], knots[2 if f else 4], radius, 7)
        if f:
            out += _knuckle(person, side, f"dip{f}", joints[f], knots[4], 0.85 * radius, 4)
        else:
            out += _knuckle(person, side, "mcp0", joints[0], knots[2], 0.8 * radius, 3)
    return out


def _knuckle(
    person: Person, side: str, name: str, joints: np.ndarray, place: float, radius: float, top: int
) -> list[Stroke]:
    """Wavy wrinkles that open like an eye around a joint; `top` is the most there can be."""
    n = choice(person, name, max(2, top - 3), top)
    shared = trait(person, name, side, 4, 0.9)
    height = (0.30 + 0.05 * shared[0]) * radius * min(1.0, n / 5 + 0.15)
    out = []
    for k in range(n):
        z = trait(person, f"{name}{k}", side, 8, 0.86)
        level = (k + 0.5) / n * 2 - 1 + 0.09 * z[0]
        half = (0.8 - 0.22 * abs(level)) * (1 + 0.12 * z[1])
        u = np.linspace(-half, half, 12) + 0.08 * z[2]
        eye = np.sqrt(np.clip(1 - (u / 0.98) ** 2, 0.05, 1))
        opening = 0.62 + 0.38 * eye
        s = place + 0.7 * shared[1] + level * height * 1.75 * opening + 1.1 * shared[2] * u
        s = s + 0.45 * np.sin(7 * u + 3 * shared[3] + 0.5 * z[3]) * (0.7 + 0.3 * abs(z[4]))
        strength = 0.92 - 0.34 * abs(level) + 0.14 * z[5]
        strength = float(np.clip(strength * (0.55 + 0.45 * person.wrinkles), 0.15, 1))
        width = 0.95 if abs(level) < 0.5 else 0.7
        out.append(Stroke(along(joints, s, u * radius), width, strength))
    return out


def _back_lines(person: Person, side: str) -> list[Stroke]:
    """Faint short lines across the back of the hand, more of them with age."""
    n = choice(person, "back lines", 26, 40)
    z = trait(person, "back", side, 5 * n, 0.8).reshape(n, 5)
    out = []
    for k in range(n):
        middle = np.array([-2.0, 52.0]) + z[k, :2] * np.array([17, 27])
        angle = 0.35 * z[k, 2] + 0.2
        step = np.array([np.cos(angle), np.sin(angle)]) * (4.5 + 1.5 * z[k, 3])
        bow = np.array([0.0, 0.9 * z[k, 4]])
        path = curve(np.array([middle - step, middle + bow, middle + step]), 6)
        out.append(Stroke(path, 0.5, float(np.clip(0.17 * person.wrinkles, 0.04, 0.35))))
    return out


def vein_strokes(person: Person, side: str, hand: Hand) -> list[Stroke]:
    """Veins from the wrist to the valleys between the knuckles, with links between them."""
    valleys = (hand.heads[1:4] + hand.heads[2:5]) / 2 + np.array([0.0, 2.0])
    n = choice(person, "veins", 3, 5)
    paths = []
    for k in range(n):
        z = trait(person, f"vein{k}", side, 12, 0.88)
        goal = valleys[k % 3] + np.array([6.0 if k > 2 else 0.0, 0]) + 2.2 * z[:2]
        start = np.array([18.0 - 36 * (k + 0.5) / n, -14.0]) + np.array([5, 0]) * z[2]
        t = np.linspace(0, 1, 6)[:, None]
        path = start + (goal - start) * t
        path[1:-1] += 4.2 * z[3:11].reshape(4, 2)
        paths.append((curve(path, 26), float(np.clip(0.75 + 0.25 * z[11], 0.2, 1))))
    out = [Stroke(path, 2.3, strength * min(1.0, person.veins)) for path, strength in paths]
    for k in range(n - 1):
        z = trait(person, f"link{k}", side, 4, 0.88)
        a = paths[k][0][int(np.clip(13 + 5 * z[0], 3, 23))]
        b = paths[k + 1][0][int(np.clip(16 + 5 * z[1], 3, 23))]
        bend = (a + b) / 2 + 3.0 * z[2:]
        out.append(Stroke(curve(np.array([a, bend, b]), 14), 1.9, 0.75 * min(1.0, person.veins)))
    return out


def tendon_strokes(person: Person, side: str, hand: Hand) -> list[Stroke]:
    """Ridges of the extensor tendons towards the four knuckles."""
    z = trait(person, "tendons", side, 8, 0.9)
    out = []
    for f in range(1, 5):
        start = np.array([5.0 - 3.5 * f + 4, 8.0])
        middle = (start + hand.heads[f]) / 2 + np.array([0.8 * z[f - 1], 0])
        path = curve(np.array([start, middle, hand.heads[f]]), 14)
        out.append(Stroke(path, 3.0, float(np.clip(0.5 + 0.25 * z[f + 3], 0.1, 1))))
    return out


def moles(
    person: Person, surface: str, side: str, hand: Hand, joints: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 2) mm, radii (n,) mm and strengths (n,) of moles: each hand has its own."""
    rng = stream(person.seed, "moles", surface, side)
    n = int(rng.poisson(2.6 if surface == "dorsal" else 0.8))
    places = np.zeros((n, 2))
    for k in range(n):
        finger = int(rng.integers(0, 8))
        if finger < 5:
            s = rng.uniform(0.45, 2.3) * knots_of(joints[finger])[2]
            v = rng.uniform(-0.6, 0.6) * hand.radii[finger]
            places[k] = along(joints[finger], np.array([s]), np.array([v]))[0]
        else:
            places[k] = rng.uniform((-28, -8), (26, 80))
    return places, rng.uniform(0.55, 1.35, n), rng.uniform(0.45, 0.95, n)
