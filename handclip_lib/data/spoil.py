"""What happens to photographs outside a laboratory: each kind of spoiling, level by level."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from handclip_lib.data.foreground import border_colour, hand_mask
from handclip_lib.data.preprocess import to_rgb

SIDE = 512  # pixels of the longer side of every photograph before it is spoiled
Picture = Image.Image
_ARM = 0.1  # of the longer side: narrower than nearly all arms, broader than two fingertips


@dataclass(frozen=True)
class Kind:
    """A way to spoil a picture. words: its name; unit: what `levels` count, weakest first.

    spoil: picture, a value of `levels`, a random generator -> the spoiled picture; None where it
    cannot be done to this one.
    """

    words: str
    unit: str
    levels: tuple[float, ...]
    spoil: Callable[[Picture, float, np.random.Generator], Picture | None]

    def label(self, level: float) -> str:
        """A value of `levels` as it is written."""
        return f"{level:g}".replace("-", "−")


def common(image: Picture) -> Picture:
    """RGB, upright, `SIDE` pixels long, so that a level means the same for every camera."""
    picture = to_rgb(image)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def spoil(picture: Picture, kind: str, level: int, name: str) -> Picture | None:
    """A picture of `common` at a level of a kind of `KINDS`: 0 as it is, 1 the weakest.

    name: the photograph's. It and the kind decide what is random, the same way at all levels: the
    grain of the noise, and to which side the picture turns. None where nothing shows which end of
    the hand is to be cut off. Raises ValueError on a level that there is not.
    """
    told = KINDS[kind]
    if not 0 <= level <= len(told.levels):
        raise ValueError(f"{kind}: level {level}; there are 0 to {len(told.levels)}")
    if not level:
        return picture
    seed = int(sha256(f"{kind}|{name}".encode()).hexdigest()[:16], 16)
    return told.spoil(picture, told.levels[level - 1], np.random.default_rng(seed))


def wrist_edge(picture: Picture) -> tuple[int, float] | None:
    """Where the arm enters, and how much of the picture lies between that edge and the fingertips.

    The edge of the frame that the foreground touches most: 0 bottom, 1 left, 2 top, 3 right, as
    many quarter turns against the clock as bring it to the bottom. The length, above 0 to 1, is a
    share of the picture's extent across that edge, with what is seen of the arm. None where this
    is not sure: no hand is found, it touches no edge as broadly as an arm does but with its
    fingertips, or it touches another edge half as much.
    """
    mask = hand_mask(picture)
    if mask is None:
        return None
    hand = mask > 0.5
    touched = [int(edge.sum()) for edge in (hand[-1], hand[:, 0], hand[0], hand[:, -1])]
    second, first = sorted(touched)[-2:]
    if first < _ARM * max(hand.shape) or second >= first / 2:
        return None
    edge = touched.index(first)
    rows = np.flatnonzero(np.rot90(hand, edge).any(axis=1))
    extent = hand.shape[edge % 2]
    return edge, (extent - int(rows[0])) / extent


def _blur(picture: Picture, percent: float, _rng: np.random.Generator) -> Picture:
    return picture.filter(ImageFilter.GaussianBlur(percent / 100 * max(picture.size)))


def _noise(picture: Picture, spread: float, rng: np.random.Generator) -> Picture:
    grain = rng.standard_normal((picture.height, picture.width, 3), dtype=np.float32)
    noisy = np.asarray(picture) + np.float32(spread) * grain
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _jpeg(picture: Picture, quality: float, _rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


def _low_resolution(picture: Picture, pixels: float, _rng: np.random.Generator) -> Picture:
    scale = pixels / max(picture.size)
    small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shrunk = picture.resize(small, Image.Resampling.BICUBIC)  # Pillow smooths when it shrinks
    return shrunk.resize(picture.size, Image.Resampling.BICUBIC)


def _exposed(picture: Picture, stops: float, _rng: np.random.Generator) -> Picture:
    """So many times twice the light, or half of it, clipped. Transfer curve: IEC 61966-2-1."""
    value = np.arange(256) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = (light * 2**stops).clip(0, 1)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return picture.point((value * 255).round().astype(int).tolist() * 3)


def _turned(picture: Picture, degrees: float, rng: np.random.Generator) -> Picture:
    """To either side; the frame grows, so that nothing is lost, in the border's colour."""
    angle = degrees if rng.random() < 0.5 else -degrees
    colour = border_colour(picture)
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=colour)


def _fingers_cut(picture: Picture, percent: float, _rng: np.random.Generator) -> Picture | None:
    return _cut(picture, percent / 100, fingers=True)


def _wrist_cut(picture: Picture, percent: float, _rng: np.random.Generator) -> Picture | None:
    return _cut(picture, percent / 100, fingers=False)


def _cut(picture: Picture, share: float, fingers: bool) -> Picture | None:
    """The picture framed anew, without a share of the hand's length at one of its ends."""
    place = wrist_edge(picture)
    if place is None:
        return None
    edge, length = place
    upright = np.rot90(np.asarray(picture), edge)  # the arm enters at the bottom
    height = len(upright)
    tip = height - length * height
    lost = share * length * height
    kept = upright[round(tip + lost) :] if fingers else upright[: round(height - lost)]
    return Image.fromarray(np.ascontiguousarray(np.rot90(kept, -edge)))


def _mirrored(picture: Picture, _level: float, _rng: np.random.Generator) -> Picture:
    return ImageOps.mirror(picture)


KINDS = {
    "blur": Kind("blur", "sd, % of the longer side", (0.5, 1, 2, 4), _blur),
    "noise": Kind("sensor noise", "sd, grey levels of 255", (10, 20, 40, 80), _noise),
    "jpeg": Kind("JPEG", "quality", (50, 20, 10, 5), _jpeg),
    "low_resolution": Kind(
        "low resolution", "pixels of the longer side", (128, 64, 32, 16), _low_resolution
    ),
    "darker": Kind("darker", "stops of exposure", (-1, -2, -3, -4), _exposed),
    "lighter": Kind("lighter", "stops of exposure", (0.5, 1, 1.5, 2), _exposed),
    "rotation": Kind("turned", "degrees", (15, 45, 90, 180), _turned),
    "fingers_cut": Kind(
        "fingers cut off", "% of the hand's length", (10, 20, 35, 50), _fingers_cut
    ),
    "wrist_cut": Kind("wrist cut off", "% of the hand's length", (10, 20, 35, 50), _wrist_cut),
    "mirrored": Kind("mirrored", "", (1,), _mirrored),
}
