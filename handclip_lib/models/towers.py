"""One forward through an open_clip image tower gives all features that losses and metrics use."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from handclip_lib.models import resize
from handclip_lib.models.mba import BRANCHES, MBANet


class Features(NamedTuple):
    """Of B images, raw (not normalised).

    penult (B, W'): one stage before the last, for triplet losses; pool (B, W): the last stage
    pooled; proj (B, E): the joint space with text, equal to the tower's own output; tokens
    (B, N, W): the last stage's map, row by row; grid: its (height, width), N = height · width;
    parts: by name (B, W') what `models.parts` adds to `pool`, or MBA-Net's branches; else empty.
    Choice of the three: CLIP-ReID, Li et al. 2023, arXiv:2211.13977.
    """

    penult: torch.Tensor
    pool: torch.Tensor
    proj: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    parts: Mapping[str, torch.Tensor] = MappingProxyType({})


def features(visual: nn.Module, images: torch.Tensor) -> Features:
    """images: (B, 3, H, W) normalised. Raises TypeError on a tower that open_clip has not."""
    if isinstance(visual, VisionTransformer):
        return _vit(visual, images)
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual, images)
    if isinstance(visual, TimmModel):
        return _timm(visual, images)
    if isinstance(visual, MBANet):
        return _mba(visual, images)
    raise TypeError(f"unknown kind of tower: {type(visual).__name__}")


def widths(visual: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Width of penult, pool and proj, and of MBA-Net's branches by name.

    size: (height, width), for towers that must be tried.
    """
    if isinstance(visual, VisionTransformer):
        width = visual.class_embedding.shape[0]
        pool = visual.ln_post.normalized_shape[0]
        return {"penult": width, "pool": pool, "proj": visual.output_dim}
    if isinstance(visual, ModifiedResNet):
        pool = visual.attnpool.k_proj.in_features
        return {"penult": pool // 2, "pool": pool, "proj": visual.output_dim}
    if isinstance(visual, MBANet):
        both = visual.dims["spatial"] + visual.dims["channel"]
        own = {"penult": visual.dims["layer3"], "pool": visual.dims["global"], "proj": both}
        return own | {name: visual.dims[name] for name in BRANCHES}
    with torch.inference_mode():
        tried = features(visual, torch.zeros(1, 3, *size))
    return {name: getattr(tried, name).shape[1] for name in ("penult", "pool", "proj")}


def _vit(visual: VisionTransformer, images: torch.Tensor) -> Features:
    """penult: the class token after the last block but one, before `ln_post`."""
    last = len(visual.transformer.resblocks) - 1
    out = visual.forward_intermediates(
        images,
        indices=sorted({max(last - 1, 0), last}),
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    prefix, patches = out["image_intermediates_prefix"], out["image_intermediates"]
    sequence = torch.cat([prefix[-1], patches[-1]], dim=1)  # (B, 1 + N, W)
    pool, tokens = visual._pool(sequence)  # class token, mean or attention: the tower knows
    count = patches[-1].shape[1]  # before the last block there may be visual prompts behind them
    penult = prefix[0][:, 0] if visual.pool_type == "tok" else patches[0][:, :count].mean(dim=1)
    if visual.attn_pool is not None:
        tokens = patches[-1]  # what it calls tokens are CoCa's queries, which have no place
    grid = resize.places(visual, (images.shape[2], images.shape[3]))
    return Features(penult, pool, out["image_features"], tokens, grid)


def _resnet(visual: ModifiedResNet, images: torch.Tensor) -> Features:
    """penult and pool: spatial means of layer3 and layer4; proj: the attention pool."""
    third = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
    fourth = visual.layer4(third)  # (B, W, h, w)
    grid = (fourth.shape[2], fourth.shape[3])
    tokens = fourth.flatten(2).transpose(1, 2)
    proj = visual.attnpool(fourth)
    return Features(third.mean((2, 3)), fourth.mean((2, 3)), proj, tokens, grid)


def _timm(visual: TimmModel, images: torch.Tensor) -> Features:
    """pool: the trunk's pooled features; penult: the spatial mean of the stage before the last."""
    trunk = visual.trunk
    final, stages = trunk.forward_intermediates(images, indices=2, output_fmt="NCHW")
    pool = trunk.forward_head(final, pre_logits=True)
    proj = visual.head(trunk.forward_head(final))
    last = stages[-1]  # (B, W, h, w)
    grid = (last.shape[2], last.shape[3])
    tokens = last.flatten(2).transpose(1, 2)
    return Features(stages[0].mean((2, 3)), pool.flatten(1), proj, tokens, grid)


def _mba(net: MBANet, images: torch.Tensor) -> Features:
    """pool: the global branch; proj: the spatial and the channel branch, side by side."""
    told = net(images)
    last = told["map"]  # (B, W, h, w)
    proj = torch.cat([told["spatial"], told["channel"]], dim=1)
    parts = {name: told[name] for name in BRANCHES}
    grid = (last.shape[2], last.shape[3])
    tokens = last.flatten(2).transpose(1, 2)
    return Features(told["layer3"], told["global"], proj, tokens, grid, parts)
