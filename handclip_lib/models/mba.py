"""MBA-Net, the convolutional network that CLIP is compared with: a ResNet in three branches."""

import copy
from collections import OrderedDict
from typing import Literal, cast

import torch
import torchvision
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torchvision.models import ResNet

from handclip_lib.models.attention import ChannelAttention, Rpe, SpatialAttention

BRANCHES = ("global", "spatial", "channel")  # the published feature: theirs, one after the other


class MBANet(nn.Module):
    """Three branches on a ResNet's layer3, each with layer4 at stride 1, averaged over the places.

    global: layer4; spatial: SpatialAttention, layer4, SpatialAttention; channel: ChannelAttention,
    layer4, ChannelAttention. At the start all attention is the identity, and the three are equal.
    backbone: torchvision's ResNet or open_clip's image tower ModifiedResNet, less what follows its
    layer4; it is copied, and stays as it was. image_size: (height, width) in pixels; the tables of
    positions are for the map that it gives. rpe: as in SpatialAttention. share_layer4: one layer4
    for the three, as in the published code (its BatchNorms then see the maps of all three), else a
    copy for each. dims: width of each feature that `forward` returns.
    Raises TypeError on another kind of backbone, ValueError on `released` with maps that are not
    square. Baisa et al. 2022, arXiv:2108.02234, section 3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: tuple[int, int],
        rpe: Rpe = "released",
        share_layer4: bool = True,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.stem = _stem(backbone)
        layers = [copy.deepcopy(getattr(backbone, f"layer{i}")) for i in range(1, 5)]
        self.layer1, self.layer2, self.layer3, last = layers
        take_strides(last)
        copies = 1 if share_layer4 else len(BRANCHES)
        self.layer4 = nn.ModuleList([last, *(copy.deepcopy(last) for _ in range(1, copies))])
        below = nn.Sequential(self.stem, self.layer1, self.layer2, self.layer3)
        third = _shape(below, (3, *image_size))
        fourth = _shape(last, third)
        self.dims = {"layer3": third[0]} | dict.fromkeys(BRANCHES, fourth[0])
        self.attention = nn.ModuleDict(
            {
                "spatial3": SpatialAttention(third[0], third[1:], rpe),
                "spatial4": SpatialAttention(fourth[0], fourth[1:], rpe),
                "channel3": ChannelAttention(),
                "channel4": ChannelAttention(),
            }
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """images: float (B, 3, H, W), normalised, of `image_size`. Raw features, not normalised.

        `layer3` (B, C3), `global`, `spatial`, `channel` (B, C4): means over the places; `map`
        (B, C4, h, w): the last map of the global branch. Raises ValueError on another size.
        """
        if images.shape[1:] != (3, *self.image_size):
            expected = ("B", 3, *self.image_size)
            raise ValueError(f"images: expected {expected}, got {tuple(images.shape)}")
        third = self.layer3(self.layer2(self.layer1(self.stem(images))))
        maps = {"layer3": third}
        for i, branch in enumerate(BRANCHES):
            before, after = f"{branch}3", f"{branch}4"
            x = self.attention[before](third) if before in self.attention else third
            x = self.layer4[i % len(self.layer4)](x)
            maps[branch] = self.attention[after](x) if after in self.attention else x
        means = {name: x.mean(dim=(2, 3)) for name, x in maps.items()}
        return means | {"map": maps["global"]}

    def steps(self) -> dict[str, str]:
        """Of each parameter, by name: `stem`, `layer1` … `layer4`, or `attention`, which is new."""
        return {name: name.partition(".")[0] for name, _ in self.named_parameters()}


def make_mba(
    backbone: Literal["resnet50"] | nn.Module,
    image_size: int | tuple[int, int],
    rpe: Rpe = "released",
    share_layer4: bool = True,
) -> MBANet:
    """An MBANet for images of `image_size` pixels, or (height, width).

    backbone: `resnet50` for torchvision's with random weights, or a module as MBANet takes it,
    which brings its weights along. The published network: ResNet-50 with ImageNet weights, 324
    pixels, `released`, shared. Raises ValueError on another name, else as MBANet.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(backbone, nn.Module):
        return MBANet(backbone, size, rpe, share_layer4)
    if backbone == "resnet50":
        return MBANet(torchvision.models.resnet50(weights=None), size, rpe, share_layer4)
    raise ValueError(f"backbone: 'resnet50' or a module, not {backbone!r}")


def _stem(backbone: nn.Module) -> nn.Sequential:
    """A copy of what stands before layer1."""
    if isinstance(backbone, ModifiedResNet):
        each = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn", "act")] + ["avgpool"]
    elif isinstance(backbone, ResNet):
        each = ["conv1", "bn1", "relu", "maxpool"]
    else:
        kind = type(backbone).__name__
        raise TypeError(f"backbone: torchvision's ResNet or open_clip's ModifiedResNet, not {kind}")
    parts = OrderedDict((name, copy.deepcopy(getattr(backbone, name))) for name in each)
    return nn.Sequential(parts)


def take_strides(layer: nn.Module) -> None:
    """Take a ResNet layer's strides away, in place: its map stays as large as it enters.

    In torchvision's ResNet convolutions have them, in open_clip's average pools.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d):
            module.kernel_size = module.stride = 1


def _shape(layers: nn.Module, maps: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, h, w) of what layers make of maps of such a shape; nothing is computed."""
    probe = copy.deepcopy(layers).to("meta").eval()
    with torch.no_grad():
        shape = probe(torch.zeros(1, *maps, device="meta")).shape
    return cast(tuple[int, int, int], tuple(shape[1:]))
