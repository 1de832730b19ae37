"""The one way from a photograph to a model's input: training, evaluation and export share it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from handclip_lib.data.foreground import Found, border_colour, find_hand

FITS = ("squash", "pad", "hand")
MARGIN = 0.05  # of the hand's longer side, on each side of the crop
_FILTERS = {  # those that open_clip knows
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Preprocess:
    """Size (height, width), how a picture is fitted to it, and the model's mean and std (0–1).

    fit: `squash` resizes straight to the size; `pad` keeps proportions and fills up with the
    border's median colour; `hand` crops around the foreground and falls back to `pad` where no
    believable foreground is found. Resizing is Pillow's, which smooths when it shrinks.
    mirror_left: photographs known to show a left hand are mirrored (by the store, which knows the
    aspects), so that both hands share one orientation.
    Raises ValueError on a fit, size, filter or mean/std that cannot be.
    """

    size: tuple[int, int]
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    mirror_left: bool = False

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit: '{self.fit}' is not one of {', '.join(FITS)}")
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"interpolation: '{self.interpolation}' is not one of {', '.join(_FILTERS)}"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: expected (height, width) in pixels, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected 3 values, std > 0: {self.mean}, {self.std}")

    def fit_image(self, image: Image.Image) -> tuple[np.ndarray, bool]:
        """uint8 (H, W, 3) RGB, and whether the hand was found (True for the other fits)."""
        picture = to_rgb(image)
        place = self._place(picture)
        if place is None:
            return self._resized(picture), True
        found, margin = place
        window = _window(picture, found.box, found.background, self.size, margin)
        return self._resized(window), self.fit == "pad" or margin > 0  # around a found hand

    def fit_mask(self, image: Image.Image, mask: np.ndarray) -> np.ndarray:
        """(H, W) float32, 0 to 1: a mask of the photograph, moved as `fit_image` moves it.

        mask: (h, w), 0 to 1, over the upright photograph; what lies outside the photograph is 0.
        Raises ValueError on a mask of another size.
        """
        picture = to_rgb(image)
        if mask.shape != (picture.height, picture.width):
            raise ValueError(
                f"mask: {mask.shape} over a photograph of {(picture.height, picture.width)}"
            )
        layer = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
        place = self._place(picture)
        if place is not None:
            layer = _window(layer, place[0].box, 0, self.size, place[1])
        return self._resized(layer).clip(0, 1)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) with the model's mean and std, any device."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(
                f"pixels: expected uint8 (B, H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        mean, std = (  # a copy that nothing waits for
            torch.tensor(value).view(3, 1, 1).to(pixels.device, non_blocking=True)
            for value in (self.mean, self.std)
        )
        return pixels.permute(0, 3, 1, 2).contiguous().float().div(255).sub(mean).div(std)

    def pixel_spec(self) -> dict[str, Any]:
        """What decides the stored pixels (mean and std come later, on the device)."""
        names = ("size", "fit", "interpolation", "mirror_left")
        return {name: value for name, value in self.as_dict().items() if name in names}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and JSON; `from_dict` takes them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Preprocess":
        """The object that `as_dict` described; without `mirror_left` nothing is mirrored.

        Raises ValueError on missing or unknown keys.
        """
        known = {f.name for f in fields(cls)}
        if set(told) | {"mirror_left"} != known:
            raise ValueError(f"preprocess: expected the keys {sorted(known)}, got {sorted(told)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return cls(**plain)

    def _place(self, picture: Image.Image) -> tuple[Found, float] | None:
        """What the input shows, and the margin around it: 0 for all; None: squash, as it is."""
        if self.fit == "squash":
            return None
        found = find_hand(picture) if self.fit == "hand" else None
        if found is not None:
            return found, MARGIN
        return Found((0, 0, picture.width, picture.height), border_colour(picture)), 0.0

    def _resized(self, picture: Image.Image) -> np.ndarray:
        height, width = self.size
        return np.array(picture.resize((width, height), _FILTERS[self.interpolation]))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, upright by its EXIF tag; transparency lies on white, 16-bit grey is scaled to 8 bits.

    Raises ValueError on floating-point images, whose range nobody states.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("floating-point image: its range is unknown; save it as 8- or 16-bit")
    if upright.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it to white
        return Image.fromarray(
            (np.asarray(upright).clip(0, 65535) // 257).astype(np.uint8)
        ).convert("RGB")
    if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        top = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", top.size, "white"), top).convert("RGB")
    return upright.convert("RGB")


def _window(
    picture: Image.Image,
    box: tuple[float, float, float, float],
    background: tuple[int, int, int] | int,
    size: tuple[int, int],
    margin: float,
) -> Image.Image:
    """The smallest window of the size's proportions around `box` (left, top, right, bottom).

    What lies outside the frame is filled with the background: a hand is never cut.
    """
    left, top, right, bottom = box
    room = 2 * margin * max(right - left, bottom - top)
    scale = max((right - left + room) / size[1], (bottom - top + room) / size[0])
    width, height = max(1, round(scale * size[1])), max(1, round(scale * size[0]))
    x, y = round((left + right - width) / 2), round((top + bottom - height) / 2)
    canvas = Image.new(picture.mode, (width, height), background)
    inside = (max(x, 0), max(y, 0), min(x + width, picture.width), min(y + height, picture.height))
    canvas.paste(picture.crop(inside), (inside[0] - x, inside[1] - y))
    return canvas
