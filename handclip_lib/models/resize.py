"""A tower at another image size: its table of positions is resampled on its true grid."""

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn import functional as F

_RESNET_STRIDE = 32


def native_size(visual: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that a tower was built for."""
    size: Any = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def set_image_size(visual: nn.Module, size: tuple[int, int]) -> None:
    """Make the tower take images of `size` (height, width); nothing changes at its own size.

    A ViT's table is resampled by timm, a ResNet's attention pool in two dimensions (bicubic),
    both from the grid that the tower has now, square or not. Raises ValueError on a size that
    the tower's stride does not divide.
    """
    if size == native_size(visual):
        return
    if isinstance(visual, VisionTransformer):
        _resize_vit(visual, size)
    elif isinstance(visual, ModifiedResNet):
        _resize_resnet(visual, size)
    elif isinstance(visual, TimmModel):
        visual.set_input_size(size)
    else:
        raise TypeError(f"unknown kind of tower: {type(visual).__name__}")


def resample_grid(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """(1 + h·w, C) table with one leading token -> (1 + h'·w', C), bicubic in two dimensions."""
    lead, cells = table[:1], table[1:]
    image = cells.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, C, h, w)
    image = F.interpolate(image.float(), size=new, mode="bicubic", antialias=True)
    cells = image.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1).to(table.dtype)
    return torch.cat([lead, cells])


def _resize_vit(visual: VisionTransformer, size: tuple[int, int]) -> None:
    grid = _grid(size, visual.patch_size)
    with torch.no_grad():
        table = resample_abs_pos_embed(
            visual.positional_embedding.unsqueeze(0),
            new_size=list(grid),
            old_size=list(visual.grid_size),
            num_prefix_tokens=1,
        ).squeeze(0)
    visual.positional_embedding = nn.Parameter(
        table.contiguous(), requires_grad=visual.positional_embedding.requires_grad
    )
    visual.grid_size, visual.image_size = grid, size


def _resize_resnet(visual: ModifiedResNet, size: tuple[int, int]) -> None:
    stride = (_RESNET_STRIDE, _RESNET_STRIDE)
    old, new = _grid(native_size(visual), stride), _grid(size, stride)
    pool = visual.attnpool
    with torch.no_grad():
        table = resample_grid(pool.positional_embedding, old, new)
    pool.positional_embedding = nn.Parameter(table)
    visual.image_size = size


def _grid(size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    if size[0] % stride[0] or size[1] % stride[1]:
        raise ValueError(f"image size {size} is not a multiple of the tower's stride {stride}")
    return size[0] // stride[0], size[1] // stride[1]
