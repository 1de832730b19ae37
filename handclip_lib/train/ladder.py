"""An image tower's parameters by depth, from its images to its features."""

import re
from dataclasses import dataclass

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models import group_parameters
from torch import nn

from handclip_lib.models.mba import MBANet


@dataclass(frozen=True)
class Ladder:
    """An image tower from its images to its features. depth: of each parameter; steps: names.

    new: the steps that no pre-training has seen.
    """

    depth: dict[str, int]
    steps: list[str]
    new: tuple[str, ...] = ()

    @property
    def top(self) -> int:
        """The last step's depth."""
        return len(self.steps) - 1


def ladder_of(visual: nn.Module) -> Ladder:
    """The depth of every parameter of a tower.

    ViT 0 = stem and tables, 1 … L = blocks, L + 1 = ln_post and proj; ResNet 0 = stem, 1 … 4, 5 =
    attention pool; MBA-Net as that, its attention, which is new, 5; timm towers by their own
    stages, or one where they name none. Raises TypeError on other towers.
    """
    names = [name for name, _ in visual.named_parameters()]
    if isinstance(visual, VisionTransformer):
        blocks = len(visual.transformer.resblocks)
        depth = {name: _vit_depth(name, blocks + 1) for name in names}
        steps = ["stem", *(f"block {i + 1}" for i in range(blocks)), "projection"]
    elif isinstance(visual, ModifiedResNet):
        depth = {name: _resnet_depth(name) for name in names}
        steps = ["stem", *(f"layer {i}" for i in range(1, 5)), "attention pool"]
    elif isinstance(visual, TimmModel):
        depth = _timm_depths(visual)
        steps = [f"stage {i}" for i in range(max(depth.values()) + 1)]
    elif isinstance(visual, MBANet):
        steps = ["stem", *(f"layer{i}" for i in range(1, 5)), "attention"]
        depth = {name: steps.index(step) for name, step in visual.steps().items()}
        return Ladder(depth, steps, new=("attention",))
    else:
        raise TypeError(f"unknown kind of tower: {type(visual).__name__}")
    return Ladder(depth, steps)


def _vit_depth(name: str, top: int) -> int:
    block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    stem = name.startswith(("conv1.", "class_embedding", "positional_embedding", "ln_pre."))
    return 0 if stem else top


def _resnet_depth(name: str) -> int:
    layer = re.match(r"layer(\d)\.", name)
    if layer:
        return int(layer[1])
    return 5 if name.startswith("attnpool.") else 0


def _timm_depths(visual: TimmModel) -> dict[str, int]:
    """The trunk's own stages; the projection belongs to the last. One stage if it names none."""
    matcher = getattr(visual.trunk, "group_matcher", None)
    found: dict[str, int] = (
        group_parameters(visual.trunk, matcher(coarse=True), reverse=True) if matcher else {}
    )
    last = max(found.values(), default=0)
    told = {f"trunk.{name}": depth for name, depth in found.items()}
    return {name: told.get(name, last) for name, _ in visual.named_parameters()}
