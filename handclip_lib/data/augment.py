"""Random changes of training images, each image by itself, on whatever device they lie."""

import math
from dataclasses import dataclass

import kornia.augmentation.random_generator as draw
import torch
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor
from torch.nn import functional

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.schema_train import Augment

_GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
# Random Erasing (Zhong et al. 2020, arXiv:1708.04896): share of the image and height to width; at
# most a fifth, where persons lose up to 0.4, since a third hides all of a hand that fills little
_BOX_AREA, _BOX_SHAPE = (0.02, 0.2), (0.3, 3.3)
# Sigma of the blur as a share of the height: SimCLR's 0.1 to 2 pixels of 224 (arXiv:2002.05709)
_SIGMA = (0.1 / 224, 2 / 224)
# Red, green, blue to luma and two axes of colour (NTSC's YIQ): a turn of these two is one of hue
_YIQ = (_GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Augmenter:
    """Augmentation followed by `preprocess.normalise`; with everything off it is only that.

    Affine maps and boxes are drawn by kornia for each image, on the CPU, so that every device sees
    the same ones. All that moves pixels is one `grid_sample` (one container each would blur twice)
    and all that colours them, grey and hue included, with mean and std, one matrix product;
    kornia's RandomErasing knows no noise. What comes in from outside the frame repeats the border.
    Only `flip` turns a hand into one of the other side.
    """

    settings: Augment
    preprocess: Preprocess

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), any device -> float32 (B, 3, H, W), normalised.

        All chance comes from torch's global generators. Raises ValueError on other pixels.
        """
        told, usual = self.settings, self.preprocess.normalise
        moves = told.degrees or told.translate or told.crop or told.flip or told.scale != (1, 1)
        colours = told.colour or told.hue or told.grey
        if not (moves or colours or told.blur or told.erasing) or not len(pixels):
            return usual(pixels)
        usual(pixels[:0])  # its checks
        with torch.autocast(pixels.device.type, enabled=False):
            images = pixels.permute(0, 3, 1, 2).contiguous().float()  # 0..255
            if moves:
                images = _moved(images, told)
            if told.blur:
                images = _blurred(images, told.blur)
            middle = images.mean(dim=(2, 3))  # (B, 3)
            if told.erasing:
                _erase(images, told.erasing)
            return self._coloured(images, middle)

    def _coloured(self, images: Tensor, middle: Tensor) -> Tensor:
        """Brightness, then contrast, then saturation and hue, cut to 0..255, with mean and std.

        images: (B, 3, H, W) and their means (B, 3), 0..255. All are linear: one matrix.
        """
        count, device = len(images), images.device
        mean, std = (
            torch.tensor(v).view(3, 1) for v in (self.preprocess.mean, self.preprocess.std)
        )
        factors = 1 + self.settings.colour * (2 * torch.rand(3, count, 1, 1) - 1)
        bright, contrast, saturation = factors
        if self.settings.grey:
            chosen = torch.rand(count, 1, 1) < self.settings.grey
            saturation = saturation.masked_fill(chosen, 0)
        grey = torch.tensor(_GREY).expand(3, 3)  # each row
        matrix = bright * contrast * (saturation * torch.eye(3) + (1 - saturation) * grey)
        if self.settings.hue:
            matrix = _turned_hue(count, self.settings.hue) @ matrix  # grey has none and stays
        level = (1 - contrast) * bright * grey  # (B, 3, 3), of the image's mean colour
        scale = 1 / (255 * std)  # (3, 1)
        parts = (level * scale, matrix * scale, mean / std, (0 - mean) / std, (1 - mean) / std)
        level, matrix, shift, black, white = (v.to(device, non_blocking=True) for v in parts)
        offset = level @ middle.unsqueeze(2) - shift
        flat = torch.baddbmm(offset, matrix, images.flatten(2))
        return flat.clamp_(black, white).view_as(images)


def mix(
    images: Tensor,
    labels: Tensor,
    num_ids: int,
    settings: Augment,
    first: int = 0,
) -> tuple[Tensor, Tensor] | None:
    """Mixup or CutMix of the rows from `first` on among themselves, or None: this batch is not.

    images: (B, 3, H, W); labels: (B,) int in 0..num_ids-1. Returns images and targets
    (B, num_ids) with rows of sum 1; the rows before `first`, which metric losses may see, are as
    they were. Each row has its own share, lambda from Beta(alpha, alpha), and another row as
    partner; CutMix counts the pixels of its box.
    Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """
    count = len(images) - first
    alphas = {"mixup": settings.mixup, "cutmix": settings.cutmix}
    on = [name for name, alpha in alphas.items() if alpha]
    if not on or count < 2 or float(torch.rand(())) >= settings.mix:
        return None
    name = on[int(torch.randint(len(on), ()))]
    alpha = torch.full((count,), alphas[name])
    share = torch.distributions.Beta(alpha, alpha).sample()
    circle = torch.randperm(count)
    partner = torch.empty_like(circle)
    partner[circle] = circle.roll(1)  # nobody is his own
    partner = partner.to(images.device)
    mine, other = images[first:], images[first:][partner]
    if name == "mixup":
        weight = share.to(images.device, images.dtype).view(-1, 1, 1, 1)
        mixed = weight * mine + (1 - weight) * other
    else:
        box, area = _boxes((1 - share).sqrt(), *images.shape[2:])
        mixed = torch.where(_inside(box, images), other, mine)
        share = 1 - area / (images.shape[2] * images.shape[3])
    soft = functional.one_hot(labels, num_ids).float()
    weight = share.to(soft.device).view(-1, 1)
    blended = weight * soft[first:] + (1 - weight) * soft[first:][partner]
    return torch.cat([images[:first], mixed]), torch.cat([soft[:first], blended])


def _moved(images: Tensor, told: Augment) -> Tensor:
    """Rotation, shift, zoom, crop and flip of (B, 3, H, W) as one resampling, bilinear."""
    count, _, height, width = images.shape
    turn, shift = (-told.degrees, told.degrees), (told.translate, told.translate)
    drawn = draw.AffineGenerator(turn, shift, told.scale)(images.shape)
    names = ("translations", "center", "scale", "angle")
    there = get_affine_matrix2d(*(drawn[name] for name in names))  # (B, 3, 3), pixels to pixels
    to_pixels = torch.tensor(
        [[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]]
    )
    back = to_pixels.inverse() @ there.inverse() @ to_pixels  # in -1..1, from result to source
    cut = told.crop * torch.rand(count)  # share of both sides
    window = torch.diag_embed(torch.stack([1 - cut, 1 - cut, torch.ones(count)], dim=1))
    window[:, :2, 2] = cut[:, None] * (2 * torch.rand(count, 2) - 1)
    if told.flip:
        window[:, :2, 0] *= torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    theta = (back @ window)[:, :2].to(images.device, non_blocking=True)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _blurred(images: Tensor, probability: float) -> Tensor:
    """Some of (B, 3, H, W) blurred, each by a Gaussian of its own."""
    chosen = torch.rand(len(images)) < probability
    low, high = (share * images.shape[2] for share in _SIGMA)
    sigma = low + (high - low) * torch.rand(len(images))
    rows = chosen.nonzero().squeeze(1)
    if not len(rows):
        return images
    size = 2 * math.ceil(3 * high) + 1
    both = sigma[rows, None].expand(-1, 2).to(images.device)
    blurred: Tensor = gaussian_blur2d(images[rows.to(images.device)], (size, size), both)
    return images.index_copy(0, rows.to(images.device), blurred)


def _turned_hue(count: int, most: float) -> Tensor:
    """(count, 3, 3) on red, green, blue: turns of the hue by up to `most` of its circle."""
    angle = 2 * math.pi * most * (2 * torch.rand(count) - 1)
    cos, sin, to_yiq = angle.cos(), angle.sin(), torch.tensor(_YIQ)
    turn = torch.eye(3).repeat(count, 1, 1)
    turn[:, 1, 1], turn[:, 1, 2] = cos, -sin
    turn[:, 2, 1], turn[:, 2, 2] = sin, cos
    return to_yiq.inverse() @ turn @ to_yiq


def _erase(images: Tensor, probability: float) -> None:
    """Fill a box of some images (B, 3, H, W; 0..255) with noise, in place."""
    drawn = draw.RectangleEraseGenerator(_BOX_AREA, _BOX_SHAPE)(images.shape)
    chosen = torch.rand(len(images)) < probability
    left, top, width, height = (
        drawn[name].round().long() for name in ("xs", "ys", "widths", "heights")
    )
    box = torch.stack([left, top, left + width * chosen, top + height], dim=1)
    left, top, right, bottom = box.unbind(1)
    noise = 255 * torch.rand(3 * int(((right - left) * height).sum()), device=images.device)
    images.masked_scatter_(_inside(box, images), noise)


def _boxes(side: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4: left, top, right, bottom) around random centres, and their areas in pixels.

    side: (B,) share of both sides; what would lie outside the image is cut off.
    """
    size = torch.tensor([width, height])
    half = (side[:, None] * size / 2).round()
    centre = torch.rand(len(side), 2) * size
    low, high = (centre - half).long().clamp(min=0), (centre + half).long().minimum(size)
    return torch.cat([low, high], dim=1), (high - low).prod(dim=1)


def _inside(box: Tensor, images: Tensor) -> Tensor:
    """bool (B, 1, H, W): which pixels of the images lie in their box (B, 4)."""
    left, top, right, bottom = box.to(images.device, non_blocking=True).view(-1, 4, 1, 1).unbind(1)
    across = torch.arange(images.shape[3], device=images.device)
    down = torch.arange(images.shape[2], device=images.device)[:, None]
    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
    return inside.unsqueeze(1)
