"""A tower at another image size: its table of positions is resampled on its true grid."""

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch import nn

_RESNET_STRIDE = 32


def native_size(visual: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that a tower was built for."""
    size: Any = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def grid_of(visual: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the places in a tower's table of positions; None where it has no table."""
    if isinstance(visual, VisionTransformer):
        height, width = visual.grid_size
        return int(height), int(width)
    if isinstance(visual, ModifiedResNet):
        return _grid(native_size(visual), (_RESNET_STRIDE, _RESNET_STRIDE))
    trunk: Any = getattr(visual, "trunk", None)
    if getattr(trunk, "pos_embed", None) is None or not hasattr(trunk, "patch_embed"):
        return None
    height, width = trunk.patch_embed.grid_size
    return int(height), int(width)


def set_image_size(visual: nn.Module, size: tuple[int, int]) -> None:
    """Make the tower take images of `size` (height, width); nothing changes at its own size.

    The table of a ViT, or of a ResNet's attention pool, is resampled from the grid that the tower
    has now, square or not. Raises ValueError on a size that the tower's stride does not divide.
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


def set_stride(visual: VisionTransformer, stride: int) -> None:
    """Take a ViT's patches every `stride` pixels, below their size: they overlap.

    The table of positions is resampled on the finer grid. Li et al. 2023, arXiv:2211.13977 (OLP);
    He et al. 2021, arXiv:2102.04378, section 3.2.
    """
    visual.conv1.stride = (stride, stride)
    _resize_vit(visual, native_size(visual))


def places(visual: VisionTransformer, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the grid of patches that a ViT sees at an image size."""
    patch, stride = visual.conv1.kernel_size, visual.conv1.stride
    return (size[0] - patch[0]) // stride[0] + 1, (size[1] - patch[1]) // stride[1] + 1


def _resampled(table: nn.Parameter, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """(1 + h·w, C) table with one leading token -> (1 + h'·w', C), bicubic in two dimensions."""
    with torch.no_grad():
        there = resample_abs_pos_embed(table.unsqueeze(0), list(new), list(old)).squeeze(0)
    return nn.Parameter(there.contiguous(), requires_grad=table.requires_grad)


def _resize_vit(visual: VisionTransformer, size: tuple[int, int]) -> None:
    if visual.conv1.stride == visual.conv1.kernel_size:
        _grid(size, visual.patch_size)  # raises where patches would leave pixels out
    grid = places(visual, size)
    table = visual.positional_embedding
    visual.positional_embedding = _resampled(table, visual.grid_size, grid)
    visual.grid_size, visual.image_size = grid, size


def _resize_resnet(visual: ModifiedResNet, size: tuple[int, int]) -> None:
    stride = (_RESNET_STRIDE, _RESNET_STRIDE)
    old, new = _grid(native_size(visual), stride), _grid(size, stride)
    pool = visual.attnpool
    pool.positional_embedding = _resampled(pool.positional_embedding, old, new)
    visual.image_size = size


def _grid(size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    if size[0] % stride[0] or size[1] % stride[1]:
        raise ValueError(f"image size {size} is not a multiple of the tower's stride {stride}")
    return size[0] // stride[0], size[1] // stride[1]
