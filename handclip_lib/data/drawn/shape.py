"""Geometry: the outline of a posed hand as a signed distance, and its height above the table."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from handclip_lib.data.drawn.person import Hand
from handclip_lib.data.drawn.pose import Shot

KNOTS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # in bones, from the root of a finger


@dataclass(frozen=True, eq=False)
class Frame:
    """Where the hand's millimetres fall in the picture: px = origin + matrix @ mm."""

    size: tuple[int, int]
    matrix: np.ndarray  # (2, 2)
    origin: np.ndarray  # (2,)
    scale: float  # px per mm
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of the part that holds the hand

    def to_px(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) mm to (n, 2) px."""
        return points @ self.matrix.T + self.origin

    def grid(self, box: tuple[int, int, int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """x and y in mm of the pixel centres of the box, each (h, w) float32."""
        x0, y0, x1, y1 = box or self.box
        inverse = np.linalg.inv(self.matrix).astype(np.float32)
        u = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - self.origin[0])
        v = np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - self.origin[1])
        x = inverse[0, 0] * u[None, :] + inverse[0, 1] * v[:, None]
        y = inverse[1, 0] * u[None, :] + inverse[1, 1] * v[:, None]
        return x, y


@dataclass(frozen=True, eq=False)
class Shape:
    """Fields over the frame's box, (h, w) float32, mm: distance (negative inside) and height.

    owner 0 is palm, back and arm, 1..5 are thumb..little; along and across are coordinates on
    the owning finger, across as a share of its radius. free (0..1) is 1 where a finger stands
    clear of the palm and fades towards its root; seam (0..1) is 1 where two fingers touch.
    """

    distance: np.ndarray
    height: np.ndarray
    owner: np.ndarray
    along: np.ndarray
    across: np.ndarray
    free: np.ndarray
    seam: np.ndarray


def make_frame(joints: list[np.ndarray], shot: Shot, thumb: int, size: tuple[int, int]) -> Frame:
    """Places the hand: arm from above, tips below; thumb is +1 (right in the picture) or -1."""
    width, height = size
    scale = shot.px_per_mm * height / 480
    cos, sin = np.cos(shot.angle), np.sin(shot.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = turn @ np.diag([thumb * scale * shot.stretch[0], scale * shot.stretch[1]])
    points = np.concatenate(joints) @ matrix.T
    middle = matrix @ np.array([4.0, 80.0])
    lowest = points[:, 1].max() + 8 * scale
    origin = np.array([shot.centre[0] * width - middle[0], shot.centre[1] * height - lowest])
    reach = np.concatenate([points, np.array([[-46.0, 20], [46, 20]]) @ matrix.T]) + origin
    arm = np.array([[-34.0, -160], [34, -160], [-34, 0], [34, 0]]) @ matrix.T + origin
    arm = arm[arm[:, 1] > -60] if (arm[:, 1] > -60).any() else reach
    pad = 16 * scale
    xs = np.concatenate([reach[:, 0], arm[:, 0]])
    x0, x1 = int(max(0, xs.min() - pad)), int(min(width, xs.max() + pad))
    y1 = int(min(height, reach[:, 1].max() + pad))
    return Frame(size, matrix, origin, float(scale), (x0, 0, x1, y1))


def knots_of(joints: np.ndarray) -> np.ndarray:
    """(7,) arc lengths, mm, of the radius knots of a chain: joints and middles of its bones."""
    ends = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(joints, axis=0), axis=1))])
    return np.interp(KNOTS, np.arange(4), ends)


def build(frame: Frame, hand: Hand, joints: list[np.ndarray], shot: Shot) -> Shape:
    """The signed distance of the whole hand, its rounded height, and who owns each pixel."""
    x, y = frame.grid()
    palm = _palm(x, y, hand, joints, shot)
    fingers, second = np.full_like(palm, 99.0), np.full_like(palm, 99.0)
    owner = np.zeros(palm.shape, np.int8)
    along, across = np.zeros_like(palm), np.zeros_like(palm)
    round_up, body, web = np.zeros_like(palm), palm.copy(), 8.0 * hand.palm[3]
    for f in range(5):
        window = _window(frame, joints[f], (2.3 if f else 3.2) * hand.radii[f])
        dist, s, v, radius = chain_field(x[window], y[window], joints[f], hand, f)
        d = dist - radius
        nearer = d < fingers[window]
        bulge = np.sqrt(np.maximum(radius * radius - dist * dist, 0))
        bulge = bulge * (0.55 + 0.45 * np.clip(1.6 * s / knots_of(joints[f])[2], 0, 1))
        round_up[window] = np.maximum(round_up[window], bulge)
        second[window] = np.minimum(second[window], np.maximum(d, fingers[window]))
        fingers[window] = np.where(nearer, d, fingers[window])
        along[window] = np.where(nearer, s, along[window])
        across[window] = np.where(nearer, v / radius, across[window])
        owner[window] = np.where(nearer, f + 1, owner[window])
        if f == 0:
            ends = knots_of(joints[0])
            fade = np.clip((s - 0.55 * ends[2]) / (0.6 * ends[2]), 0, 1)
            body[window] = smooth_min(palm[window], d, 20 - 18.5 * fade)
        else:
            body[window] = np.minimum(body[window], smooth_min(palm[window], d, web))
    owner = np.where((fingers < palm + 1) & (fingers < 6), owner, 0).astype(np.int8)
    free = np.clip((palm - fingers) / 9, 0, 1)
    free = free * free * (3 - 2 * free)
    height = -smooth_min(-inflate(palm, 10.0), -round_up, 7.0)
    height = np.maximum(height, inflate(body, 6.0)) * (body < 0)
    height = gaussian_filter(height, 0.45 * frame.scale, truncate=3)
    keep = np.maximum(free, np.clip(1.3 + body / 6, 0, 1))
    height = height * keep + (1 - keep) * blurred(height, 2.2 * frame.scale)
    seam = np.clip(1.25 - (second - fingers) / 1.4, 0, 1) * np.clip(1 - second / 1.4, 0, 1) * free
    return Shape(body, height - 1.8 * seam, owner, along, across, free, seam)


def inflate(distance: np.ndarray, depth: float = 11.0) -> np.ndarray:
    """A round edge: height in mm over a signed distance in mm, flat deeper than `depth`."""
    t = np.clip(-distance / depth, 0.0, 1.0)
    return depth * np.sqrt(t * (2 - t))


def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """A wide Gaussian blur of an (h, w) plane, done at a quarter of its size; sigma in px."""
    return enlarged(gaussian_filter(plane[1::4, 1::4], sigma / 4), 4, plane.shape)


def enlarged(small: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """A plane sampled at every factor-th pixel (from the second on) back at full (h, w)."""
    size = small.shape[1] * factor, small.shape[0] * factor
    picture = Image.fromarray(np.ascontiguousarray(small, np.float32))
    full = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    short = [(0, max(0, want - have)) for want, have in zip(shape, full.shape, strict=True)]
    return np.pad(full, short, mode="edge")[: shape[0], : shape[1]]


def smooth_min(a: np.ndarray, b: np.ndarray, k: np.ndarray | float) -> np.ndarray:
    """Polynomial smooth minimum; k is the width of the blend in mm."""
    h = np.maximum(k - np.abs(a - b), 0.0) / k
    return np.minimum(a, b) - h * h * k * 0.25


def chain_field(
    x: np.ndarray, y: np.ndarray, joints: np.ndarray, hand: Hand, f: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the axis of finger f, arc length (runs on past the tip), offset, radius: mm."""
    best, s, v = np.full_like(x, np.inf), np.zeros_like(x), np.zeros_like(x)
    start = 0.0
    for k in range(3):
        a, step = joints[k], joints[k + 1] - joints[k]
        length = float(np.hypot(*step))
        ux, uy = np.float32(step[0] / length), np.float32(step[1] / length)
        px, py = x - np.float32(a[0]), y - np.float32(a[1])
        t = px * ux + py * uy
        side = px * uy - py * ux
        beyond = t - np.clip(t, 0, length)
        gap = side * side + beyond * beyond
        place = start + (t if k == 2 else np.minimum(t, length))
        nearer = gap < best
        best = np.where(nearer, gap, best)
        s, v = np.where(nearer, place, s), np.where(nearer, side, v)
        start += length
    fine = np.linspace(0, 3, 31)
    knots = np.interp(fine, KNOTS, knots_of(joints))
    radius = hand.radii[f] * np.interp(s, knots, CubicSpline(KNOTS, hand.profile[f])(fine))
    return np.sqrt(best), s, v, radius.astype(np.float32)


def _window(frame: Frame, joints: np.ndarray, margin: float) -> tuple[slice, slice]:
    """The part of the box (rows, columns) that a chain can reach."""
    x0, y0, x1, y1 = frame.box
    points = frame.to_px(joints) - np.array([x0, y0])
    low = np.floor(points.min(axis=0) - margin * frame.scale).astype(int)
    high = np.ceil(points.max(axis=0) + margin * frame.scale).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, [x1 - x0, y1 - y0])
    return slice(low[1], max(high[1], low[1])), slice(low[0], max(high[0], low[0]))


def _capsule(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float
) -> np.ndarray:
    """Signed distance to a stroke from a to b whose radius runs from ra to rb."""
    step = np.asarray(b, np.float32) - np.asarray(a, np.float32)
    px, py = x - np.float32(a[0]), y - np.float32(a[1])
    t = np.clip((px * step[0] + py * step[1]) / np.float32(step @ step), 0, 1)
    dx, dy = px - t * step[0], py - t * step[1]
    return np.sqrt(dx * dx + dy * dy) - (np.float32(ra) + t * np.float32(rb - ra))


def _palm(
    x: np.ndarray, y: np.ndarray, hand: Hand, joints: list[np.ndarray], shot: Shot
) -> np.ndarray:
    """Signed distance of arm and metacarpus with the webs between the fingers."""
    wrist = 25.5 * hand.palm[0] ** 0.6 * hand.radii[2] / 9.6
    elbow = np.array([260 * np.sin(shot.forearm), -260.0])
    out = _capsule(x, y, np.array([-1.0, 6.0]), elbow, wrist, 1.4 * wrist)
    roots = np.array([[11.0, 16], [4, 14], [-5, 14], [-12, 17]])
    for f in range(1, 5):
        radius = 1.05 * hand.radii[f]
        out = smooth_min(
            out, _capsule(x, y, roots[f - 1], hand.heads[f], 1.4 * radius, radius), 9.0
        )
    edge = hand.heads[4] + np.array([0.5, -8.0])
    heel = np.array([-19.5 * hand.palm[2], 30.0])
    out = smooth_min(out, _capsule(x, y, heel, edge, 12.0, 10.5), 16.0)
    for f in range(1, 4):
        middle = (hand.heads[f] + hand.heads[f + 1]) / 2
        ahead = (joints[f][1] - joints[f][0]) + (joints[f + 1][1] - joints[f + 1][0])
        ahead = ahead / np.hypot(*ahead)
        reach = 8.5 * hand.palm[3]
        out = smooth_min(
            out, _capsule(x, y, middle - 8 * ahead, middle + reach * ahead, 8.0, 4.0), 7.0
        )
    return out
