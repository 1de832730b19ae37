"""Every place of an image in the space that images and texts share, not the whole image alone."""

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from handclip_lib.models.towers import Features


def joint_tokens(visual: nn.Module, features: Features) -> torch.Tensor:
    """(B, 1 + N, E): at 0 `features.proj`, then the N places of the map in the joint space.

    ViT: each patch takes the class token's way out, `ln_post` and `proj`. ResNet: the attention
    pool's value and output projections of each place, without the table of positions (MaskCLIP,
    Zhou et al. 2022, arXiv:2112.01071, section 3). Raw, with gradient. Raises TypeError on towers
    whose places have no such way: timm's, and ViTs that pool by attention.
    """
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        tokens = visual.ln_post(features.tokens) if visual.final_ln_after_pool else features.tokens
        places = tokens if visual.proj is None else tokens @ visual.proj
    elif isinstance(visual, ModifiedResNet):
        places = visual.attnpool.c_proj(visual.attnpool.v_proj(features.tokens))
    else:
        raise TypeError(
            f"the places of a {type(visual).__name__}'s map have no way into the space of texts;"
            " take CLIP's ViT or ResNet"
        )
    return torch.cat([features.proj[:, None], places], dim=1)
