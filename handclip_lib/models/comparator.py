"""MBA-Net as a model without texts, from the description that its checkpoints keep."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
import torchvision
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from handclip_lib import params
from handclip_lib.models.mba import make_mba
from handclip_lib.models.weights import RANDOM, WeightsError
from handclip_lib.schema import Comparator

RESNET50: Final = "resnet50"
IMAGENET = "imagenet"
USUAL = {  # of torchvision's weights
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
}


class ImageModel(nn.Module):
    """An image tower alone, by the name that it has in open_clip's models."""

    visual: nn.Module

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


def described(told: Comparator, vision_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What `build` needs, as plain values; vision_cfg: open_clip's of a tower as the backbone."""
    own = {"backbone": told.backbone, "rpe": told.rpe, "share_layer4": told.share_layer4}
    return {"mba": own, "vision_cfg": {**vision_cfg, "image_size": told.image_size}}


def build(cfg: Mapping[str, Any], backbone: nn.Module | None = None) -> ImageModel:
    """MBA-Net as `described`; backbone: with its weights, None: one with random weights."""
    told, vision = cfg["mba"], cfg["vision_cfg"]
    if backbone is None and "layers" in vision:
        heads = vision["width"] * 32 // vision.get("head_width", 64)
        backbone = ModifiedResNet(vision["layers"], 1, heads, width=vision["width"])
    start: Literal["resnet50"] | nn.Module = RESNET50 if backbone is None else backbone
    size = vision["image_size"]
    return ImageModel(make_mba(start, size, told["rpe"], told["share_layer4"]))


def resnet50(pretrained: str) -> nn.Module:
    """torchvision's ResNet-50 with the weights `imagenet`, `random`, or those of a file.

    Raises ConnectionError on weights that are not here and cannot be fetched, FileNotFoundError and
    WeightsError on a file that is missing or of another network.
    """
    net: nn.Module = torchvision.models.resnet50(weights=None)
    if pretrained == RANDOM:
        return net
    if pretrained == IMAGENET:
        state = _fetched()
    else:
        path = params.resolve(pretrained)
        if not path.is_file():
            raise FileNotFoundError(
                f"comparator.pretrained: no weights file {path}; or say {IMAGENET}, or {RANDOM}"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise WeightsError(f"{pretrained} is not of torchvision's {RESNET50}: {error}") from None
    return net


def _fetched() -> Mapping[str, torch.Tensor]:
    weights = torchvision.models.ResNet50_Weights.DEFAULT
    try:
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ConnectionError(
            f"torchvision's weights of {RESNET50} are not on this machine and cannot be fetched"
            f" ({error}).\nFetch {weights.url} elsewhere and put it into"
            f" {torch.hub.get_dir()}/checkpoints, or pass its path as comparator.pretrained;"
            f" {RANDOM} tries things out untrained, and comparator.backbone RN50 stands on CLIP's"
        ) from error
    return state
