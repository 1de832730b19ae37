"""What a tower does inside while it computes its features, seen without changing them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from handclip_lib.models.mba import MBANet


@contextmanager
def attention_weights(visual: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The attention of the forwards made inside, in a list that they fill.

    ViT: (B, heads, L, L) a block, rows sum to 1, row i what token i takes from each; the class
    token is 0, then the places, then prompts. ResNet: one (B, heads, 1, 1 + N), the attention
    pool's query, whose column 0 is the map's mean. Without gradient. Each is computed beside the
    tower's own attention, which keeps its fused kernel: outputs are the same to the bit. Raises
    TypeError on towers without such attention.
    """
    taken: list[torch.Tensor] = []
    if isinstance(visual, ModifiedResNet):
        handles = [visual.attnpool.register_forward_pre_hook(_pool_watcher(taken))]
    else:
        handles = [
            attn.register_forward_hook(_watcher(taken), with_kwargs=True)
            for attn in _attentions(visual)
        ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def last_stage(visual: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What the features of the forwards made inside depend on, in a list that they fill.

    ViT: (B, L, W), the input of the last block (of its `ln_1`): behind that block nobody reads the
    places where the class token is read, and their gradient is zero. ResNet: (B, C, h, w),
    layer4's output; MBA-Net: layer3's, which its three branches share. With its graph, for
    `torch.autograd.grad`. Raises TypeError on other towers.
    """
    taken: list[torch.Tensor] = []
    if isinstance(visual, ModifiedResNet | MBANet):
        layer = visual.layer4 if isinstance(visual, ModifiedResNet) else visual.layer3
        handle = layer.register_forward_hook(lambda _, args, out: taken.append(out))
    elif isinstance(visual, VisionTransformer):
        first = visual.transformer.resblocks[-1].ln_1
        handle = first.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    else:
        raise TypeError(_unknown(visual, "last stage"))
    try:
        yield taken
    finally:
        handle.remove()


def _attentions(visual: nn.Module) -> list[nn.MultiheadAttention]:
    """The self-attention of each block of a ViT, in the order of the blocks."""
    blocks = visual.transformer.resblocks if isinstance(visual, VisionTransformer) else []
    known = [b.attn for b in blocks if isinstance(b, ResidualAttentionBlock)]
    if not known or len(known) < len(blocks):
        raise TypeError(_unknown(visual, "attention"))
    return known


def _unknown(visual: nn.Module, what: str) -> str:
    return (
        f"the {what} of a {type(visual).__name__} cannot be shown; take a ViT of open_clip's own"
        " or CLIP's ResNet"
    )


def _watcher(taken: list[torch.Tensor]) -> Any:
    @torch.no_grad()
    def watch(attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        asked = kwargs | {"need_weights": True, "average_attn_weights": False}
        taken.append(attn.forward(*args, **asked)[1])  # not a call: hooks would see it too

    return watch


def _pool_watcher(taken: list[torch.Tensor]) -> Any:
    @torch.no_grad()
    def watch(pool: AttentionPool2d, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(2).transpose(1, 2)  # (B, N, W)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + pool.positional_embedding.to(x.dtype)
        query, key = (
            side.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)  # (B, heads, 1 or 1 + N, d)
            for side in (pool.q_proj(x[:, :1]), pool.k_proj(x))
        )
        taken.append((query @ key.transpose(2, 3) / key.shape[3] ** 0.5).softmax(dim=3))

    return watch
