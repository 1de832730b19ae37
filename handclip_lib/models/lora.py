"""LoRA: a weight and a product of two thin matrices that learns in its place."""

import math
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrize

from handclip_lib.params import ParamError


class Lora(nn.Module):
    """Weight (out, in) -> weight + b @ a, with a (rank, in) Kaiming-uniform and b (out, rank) zero.

    Hu et al. 2022, arXiv:2106.09685, section 4.1, with alpha equal to the rank; queries, keys and
    values, which are one weight here, share their a. Its matrices are float32 under autocast, too.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the tower computes with."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.b @ self.a


def add_lora(visual: nn.Module, rank: int) -> None:
    """Put LoRA on every weight of a ViT's attention and MLP, or of a ResNet's attention pool.

    The tower's function stays; the weights themselves are named `...parametrizations.*.original`
    from here on. Raises ParamError on other towers.
    """
    for module, name in _places(visual):
        lora = Lora(getattr(module, name), rank)
        parametrize.register_parametrization(module, name, lora)


def fold_lora(visual: nn.Module) -> None:
    """Add LoRA to the weights, which are plain parameters by their own names afterwards.

    A copy of the tower keeps its own: torch's `remove_parametrizations` would take the weights'
    names from the class that a module shares with its deep copies.
    """
    for module in [m for m in visual.modules() if parametrize.is_parametrized(m)]:
        held: Any = module.parametrizations
        before = parametrize.type_before_parametrizations(module)
        merged = {name: getattr(module, name).detach() for name in held}
        del module.parametrizations
        module.__class__ = before
        for name, weight in merged.items():
            plain = nn.Parameter(weight, requires_grad=held[name].original.requires_grad)
            module.register_parameter(name, plain)


def is_lora(name: str) -> bool:
    """Whether a parameter of a tower, by its name, is one of LoRA's."""
    return ".parametrizations." in name and not name.endswith(".original")


def _places(visual: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules that hold the weights, and the weights' names in them."""
    if isinstance(visual, VisionTransformer):
        inner: nn.Module = visual.transformer.resblocks
    elif isinstance(visual, ModifiedResNet):
        inner = visual.attnpool
    else:
        raise ParamError(
            f"adapt.lora: for open_clip's own ViT and ResNet towers, not {type(visual).__name__}"
        )
    found = []
    for module in inner.modules():
        if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
            found.append((module, "in_proj_weight"))
        if isinstance(module, nn.Linear):
            found.append((module, "weight"))
    return found
