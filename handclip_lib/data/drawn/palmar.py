"""Lines of the palm side: life, head and heart line, flexion creases, wrist and fine lines."""

import numpy as np

from handclip_lib.data.drawn.person import Hand, Person, choice, trait
from handclip_lib.data.drawn.shape import knots_of
from handclip_lib.data.drawn.strokes import Stroke, along, curve

MAIN = (  # control points, mm, before the person's own habits
    ((-41.0, 73), (-28, 82), (-13, 85), (2, 87), (14, 96), (17, 103)),  # heart
    ((37.0, 74), (24, 71), (8, 66), (-8, 58), (-25, 47)),  # head
    ((37.0, 77), (25, 73), (14, 62), (6, 47), (1, 30), (3, 10)),  # life
    ((-3.0, 12), (-2, 32), (0, 52), (2, 74)),  # fate
)


def palmar_strokes(person: Person, side: str, hand: Hand, joints: list[np.ndarray]) -> list[Stroke]:
    """All lines of the palm side of a posed hand; joints: five (4, 2) chains in mm."""
    out = _main_lines(person, side, hand) + _fine_lines(person, side, hand)
    out += _wrist_lines(person, side) + _thumb_folds(person, side, joints[0])
    for f in range(5):
        out += _flexion(person, side, f, joints[f], hand)
    return out


def _scale(hand: Hand) -> np.ndarray:
    """(2,) how much wider and longer this palm is than the one of the constants."""
    return np.array([np.ptp(hand.heads[1:, 0]) / 57.5, hand.heads[2, 1] / 91.5])


def _main_lines(person: Person, side: str, hand: Hand) -> list[Stroke]:
    """Heart, head and life line, perhaps a fate line, each with forks and islands of its own."""
    out = []
    for k, base in enumerate(MAIN):
        points = np.array(base)
        z = trait(person, f"line{k}", side, 2 * len(points) + 6, 0.88)
        if k == 3 and z[-1] < -0.1:
            continue
        moved = points + (2.5, 3.4, 3.4, 3.6)[k] * z[: 2 * len(points)].reshape(-1, 2)
        moved[:, 1] += 3.6 * z[-2] + 0.09 * z[-3] * points[:, 0]
        moved[0, 0] = points[0, 0]
        path = curve(moved * _scale(hand), 26)
        ends = 26 - int(np.clip(4 * (z[-3] + 0.6), 0, 9))
        strength = np.clip((0.9, 0.9, 0.95, 0.5)[k] + 0.1 * z[-4], 0.3, 1)
        wave = 0.5 * np.sin(np.linspace(0, 9 + 4 * z[-5], 26))[:, None] * np.array([0.3, 1.0])
        path = path + wave
        out.append(Stroke(path[:ends], 1.25 if k < 3 else 0.8, float(strength)))
        fork = path[ends - 9 : ends] + np.linspace(0, 1, 9)[:, None] ** 1.3 * np.array(
            [1.5 * z[-5], 6.5 * z[-6]]
        )
        out.append(Stroke(fork, 0.8, float(0.62 * strength)))
        out.append(Stroke(path[3:15] + np.array([0.8, -1.5]), 0.5, float(0.3 * strength)))
    return out


def _fine_lines(person: Person, side: str, hand: Hand) -> list[Stroke]:
    """Thin lines all over the palm, and a few longer ones between the main lines."""
    n = choice(person, "fine lines", 26, 46)
    z = trait(person, "fine", side, 7 * n, 0.8).reshape(n, 7)
    out = []
    for k in range(n):
        long = k % 5 == 0
        middle = np.array([0.0, 54.0]) + z[k, :2] * np.array([18, 26])
        angle = 0.9 * z[k, 2] + (0.5 if middle[0] > 5 else -0.3)
        half = (9.0 if long else 5.5) * (1 + 0.3 * z[k, 3])
        step = np.array([np.cos(angle), np.sin(angle)]) * half
        bow = np.array([-step[1], step[0]]) * 0.22 * z[k, 4]
        path = curve(np.array([middle - step, middle + bow, middle + step]) * _scale(hand), 8)
        strength = (0.5 if long else 0.32) * (1 + 0.3 * z[k, 5]) * person.wrinkles
        out.append(Stroke(path, 0.62 if long else 0.5, float(np.clip(strength, 0.08, 0.75))))
    return out


def _wrist_lines(person: Person, side: str) -> list[Stroke]:
    """Two or three bracelets across the wrist."""
    out = []
    for k in range(choice(person, "wrist", 2, 3)):
        z = trait(person, f"wrist{k}", side, 5, 0.85)
        y = -1.0 - 7.5 * k + 1.5 * z[0]
        ends = np.array([[-24.0, y + 3 + z[1]], [-6, y], [8, y - 0.5 * z[2]], [23, y + 3 + z[3]]])
        out.append(Stroke(curve(ends, 14), 0.9, float(np.clip(0.6 - 0.12 * k + 0.1 * z[4], 0, 1))))
    return out


def _thumb_folds(person: Person, side: str, joints: np.ndarray) -> list[Stroke]:
    """Folds fanning out of the web of the thumb."""
    out = []
    n = choice(person, "thumb folds", 3, 6)
    reach = float(np.linalg.norm(joints[1] - joints[0]))
    for k in range(n):
        z = trait(person, f"fold{k}", side, 4, 0.85)
        s = reach * np.array([0.98 - 0.11 * k, 0.9 - 0.12 * k, 0.72 - 0.14 * k]) + 1.5 * z[0]
        v = np.array([-12.5, -6.0 - 1.5 * z[1], 3.0 + 3 * z[2]])
        strength = float(np.clip(0.5 - 0.05 * k + 0.12 * z[3], 0.1, 0.8))
        out.append(Stroke(curve(along(joints, s, v), 10), 0.8, strength))
    return out


def _flexion(person: Person, side: str, f: int, joints: np.ndarray, hand: Hand) -> list[Stroke]:
    """The creases across one finger at its root and its joints."""
    knots = knots_of(joints)
    places = (knots[2], knots[4]) if f == 0 else (0.53 * knots[2], knots[2], knots[4])
    out = []
    for j, place in enumerate(places):
        lines = choice(person, f"crease{f}{j}", 1, 3 if j == len(places) - 2 else 2)
        tilt = 1.6 * trait(person, f"tilt{f}{j}", side, 1, 0.88)[0]
        shift = 1.5 * trait(person, f"place{f}{j}", side, 1, 0.88)[0]
        gap = 2.3 + 0.5 * trait(person, f"gap{f}{j}", side, 1, 0.88)[0]
        for k in range(lines):
            z = trait(person, f"crease{f}{j}{k}", side, 6, 0.85)
            u = np.linspace(-0.94 + 0.12 * abs(z[0]), 0.94 - 0.12 * abs(z[1]), 11)
            s = place + shift + gap * (k - (lines - 1) / 2) + tilt * u + 0.8 * z[2] * u * u
            s = s + 0.35 * np.sin(7 * u + 3 * z[3])
            strength = float(np.clip((0.95 if k == 0 else 0.62) + 0.15 * z[4], 0.25, 1))
            path = along(joints, s, u * hand.radii[f] * 0.98)
            out.append(Stroke(path, 1.15 if k == 0 else 0.8, strength))
        out += _minor(person, side, f"minor{f}{j}", joints, place + shift, hand.radii[f])
    return out


def _minor(
    person: Person, side: str, name: str, joints: np.ndarray, place: float, radius: float
) -> list[Stroke]:
    """Short thin lines around a crease."""
    z = trait(person, name, side, 20, 0.8).reshape(5, 4)
    out = []
    for k in range(5):
        u = np.linspace(-0.3, 0.3, 5) + 0.35 * z[k, 0]
        s = place + 3.6 * z[k, 1] + 3.0 * z[k, 2] * u
        strength = float(np.clip(0.3 + 0.1 * z[k, 3], 0.05, 0.6) * person.wrinkles)
        out.append(Stroke(along(joints, s, np.clip(u, -0.9, 0.9) * radius), 0.5, strength))
    return out
