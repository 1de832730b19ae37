"""What is put on an image tower and learns beside it, or in its stead.

Side information (SIE) tells the tower how a photograph was taken (its aspect or camera), visual
prompts are tokens that no image gave, LoRA is in `models.lora`, overlapping patches have a stride
below their size, attention is in `models.attention`, features of parts are in `models.parts`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from handclip_lib.models import resize, towers
from handclip_lib.models.attention import ChannelAttention, SelfAttention, SpatialAttention
from handclip_lib.models.lora import add_lora, fold_lora, is_lora
from handclip_lib.models.parts import Jpm, Mgn, Pcb, make_parts, with_parts
from handclip_lib.models.towers import Features
from handclip_lib.params import ParamError
from handclip_lib.schema_train import Adapt

if TYPE_CHECKING:
    from handclip_lib.models.clip import Encoder


class Adapter(nn.Module):
    """Parameters that a tower's forward picks up by hooks; none of them for LoRA and overlap.

    told: what was asked for; views: what each row of `sie` stands for; sie: (V, W) zeros, or None,
    added to the class token before `ln_pre`, times `view_scale`; prompts: (layers or 1, n, W), or
    None, at the end of the sequence, those of the first block before `ln_pre`; codes: (B,) int,
    the view of each image of the next forward, None: unknown, the mean of the table; attention:
    on the map that enters the last stage (of a ViT the patches, not the class token or prompts);
    parts: what makes features of parts of what enters that stage and of the tower's features.
    SIE: He et al. 2021, arXiv:2102.04378, section 3.3, on the class token as in CLIP-ReID, Li et
    al. 2023, arXiv:2211.13977. Prompts: Jia et al. 2022, arXiv:2203.12119, section 3.2.
    """

    sie: nn.Parameter | None
    prompts: nn.Parameter | None
    attention: nn.Module | None
    parts: Pcb | Mgn | Jpm | None

    def __init__(self, told: Adapt, views: Sequence[str], visual: nn.Module) -> None:
        super().__init__()
        self.told, self.views = told, tuple(views)
        self.codes: torch.Tensor | None = None
        self.register_parameter("sie", None)
        self.register_parameter("prompts", None)
        self._watching, self._entered = False, torch.empty(0)
        self.parts = make_parts(told, visual) if told.parts != "none" else None
        self.attention = _attention(told, visual)
        if isinstance(visual, VisionTransformer):
            width = visual.class_embedding.shape[0]
            if self.views:
                self.sie = nn.Parameter(torch.zeros(len(self.views), width))
            if told.prompts:
                layers = len(visual.transformer.resblocks) if told.deep else 1
                bound = math.sqrt(6 / (3 * math.prod(visual.patch_size) + width))
                table = torch.empty(layers, told.prompts, width).uniform_(-bound, bound)
                self.prompts = nn.Parameter(table)
            self._hook(visual)
        if told.attention != "none" or told.parts != "none":
            self._hook_last(visual)

    @property
    def settings(self) -> dict[str, Any]:
        """`told` and `views` as plain values, for files and the keys of caches."""
        return {"told": self.told.model_dump(mode="json"), "views": list(self.views)}

    def codes_of(self, rows: pd.DataFrame) -> torch.Tensor | None:
        """(N,) int: the row of `sie` for each row of a table; None where no view is told.

        A value that was not seen in training is the number after the last: the mean of the views.
        Raises ParamError on a table without the column.
        """
        view = self.told.view
        if view == "none":
            return None
        if view not in rows:
            columns = ", ".join(map(str, rows.columns))
            raise ParamError(f"adapt.view {view}: the table has no column {view}, but {columns}")
        known = {name: code for code, name in enumerate(self.views)}
        codes = [known.get(value, len(known)) for value in rows[view].astype(str)]
        return torch.tensor(codes, dtype=torch.long)

    def features(
        self,
        visual: nn.Module,
        images: torch.Tensor,
        codes: torch.Tensor | None = None,
        forward: Callable[[nn.Module, torch.Tensor], Features] = towers.features,
    ) -> Features:
        """The tower's features, with those of parts, as `Encoder.features`; forward runs it."""
        self.codes = codes
        if self.parts is None:
            return forward(visual, images)
        self._watching = True
        try:
            told = forward(visual, images)
            return with_parts(told, self.parts(self._entered, told), self.told)
        finally:  # nothing of a batch is kept
            self._watching, self._entered = False, torch.empty(0)

    def _hook_last(self, visual: nn.Module) -> None:
        """Attention before the last stage, then a look at what enters it."""
        vit = visual if isinstance(visual, VisionTransformer) else None
        last: Any = visual.layer4 if vit is None else vit.transformer.resblocks[-1]
        if self.attention is not None:
            last.register_forward_pre_hook(partial(self._attend, vit))
        if self.parts is not None:
            last.register_forward_pre_hook(self._watch)

    def _hook(self, visual: VisionTransformer) -> None:
        if self.sie is not None or self.prompts is not None:
            visual.ln_pre.register_forward_pre_hook(self._enter)
        if self.prompts is not None:
            blocks = visual.transformer.resblocks
            for depth in range(1, len(self.prompts)):
                blocks[depth].register_forward_pre_hook(partial(self._replace, depth))
            blocks[-1].register_forward_hook(self._leave)

    def _enter(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]  # (B, 1 + N, W)
        if self.sie is not None:
            first = x[:, :1] + self.told.view_scale * self._side(self.sie, len(x)).to(x.dtype)
            x = torch.cat([first, x[:, 1:]], dim=1)
        if self.prompts is not None:
            x = torch.cat([x, self._prompts(0, x)], dim=1)  # (B, 1 + N + n, W)
        return (x, *args[1:])

    def _replace(self, depth: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        x = torch.cat([x[:, : -self.told.prompts], self._prompts(depth, x)], dim=1)
        return (x, *args[1:])

    def _leave(self, _: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return out[:, : -self.told.prompts]

    def _attend(
        self, vit: VisionTransformer | None, _: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        x, attention = args[0], self.attention
        assert attention is not None
        if vit is None:
            return (attention(x), *args[1:])
        height, width = vit.grid_size
        end = 1 + height * width
        fmap = x[:, 1:end].transpose(1, 2).unflatten(2, (height, width))  # (B, W, h, w)
        patches = attention(fmap).flatten(2).transpose(1, 2)
        return (torch.cat([x[:, :1], patches, x[:, end:]], dim=1), *args[1:])

    def _watch(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._watching:
            self._entered = args[0]

    def _prompts(self, depth: int, x: torch.Tensor) -> torch.Tensor:
        """(B, n, W) prompts before a block, with the dropout of each image's own."""
        assert self.prompts is not None
        each = self.prompts[depth].to(x.dtype).expand(len(x), -1, -1)
        return functional.dropout(each, self.told.prompt_dropout, self.training)

    def _side(self, table: torch.Tensor, images: int) -> torch.Tensor:
        """(B, 1, W) what is told of each image."""
        unknown = table.mean(dim=0, keepdim=True)
        if self.codes is None:
            return unknown.expand(images, 1, -1)
        if len(self.codes) != images:
            raise ValueError(f"codes: {len(self.codes)} views for {images} images")
        return functional.embedding(self.codes, torch.cat([table, unknown])).unsqueeze(1)


def adapt(encoder: "Encoder", told: Adapt, views: Sequence[str] = ()) -> None:
    """Put on an encoder's image tower what is `told`; `encoder.adapter` is None for nothing.

    views: the values of column `told.view` that training has. But for the prompts, and for the
    finer grid of overlapping patches, the tower's function is what it was; with parts
    `Features.pool` is wider. What is new is drawn from torch's generator. Raises ParamError as
    `attach`, and where an adapter is there already.
    """
    if encoder.adapter is not None:
        raise ParamError("adapt: this encoder has an adapter; start from one that has none")
    encoder.adapter = attach(encoder.visual, told, views)


def attach(visual: nn.Module, told: Adapt, views: Sequence[str] = ()) -> Adapter | None:
    """As `adapt`, for a tower alone; returns the adapter.

    Raises ParamError on what the tower cannot take: LoRA, attention and parts ask for a ViT of
    open_clip's own or a ResNet, the rest, and JPM, for such a ViT; and on a view without `views`.
    The tower is then as it was.
    """
    views = tuple(map(str, views)) if told.view != "none" else ()
    if not _asks(told):
        return None
    _check(visual, told, views)
    if told.stride and isinstance(visual, VisionTransformer):
        resize.set_stride(visual, told.stride)
    device = next(visual.parameters()).device
    adapter = Adapter(told, views, visual).to(device)  # before LoRA, of which copies have none
    if told.lora:
        add_lora(visual, told.lora)
    return adapter


def merge_lora(encoder: "Encoder") -> None:
    """Add LoRA to the tower's weights: the same function, of plain open_clip parameters.

    `encoder.adapter` keeps what else was told, or is None. Optimisers must be made anew.
    """
    if encoder.adapter is None or not encoder.adapter.told.lora:
        return
    fold_lora(encoder.visual)
    left = encoder.adapter.told.model_copy(update={"lora": 0})
    encoder.adapter.told = left
    if not _asks(left):
        encoder.adapter = None


def adapter_parameters(encoder: "Encoder") -> list[nn.Parameter]:
    """Every parameter that an adapter brought: its own, then LoRA's; none without an adapter.

    Those of `copies_of` are not new, and not among them.
    """
    copied = {id(p) for p in copies_of(encoder).parameters()}
    brought = [] if encoder.adapter is None else list(encoder.adapter.parameters())
    own = [p for p in brought if id(p) not in copied]
    return own + [p for name, p in encoder.visual.named_parameters() if is_lora(name)]


def copies_of(encoder: "Encoder") -> nn.Module:
    """The copies of the tower's last stage that parts have, which learn as that does, or none."""
    parts = None if encoder.adapter is None else encoder.adapter.parts
    return nn.ModuleList() if parts is None else parts.copies


def _asks(told: Adapt) -> bool:
    named = {told.view, told.attention, told.parts} != {"none"}
    return named or bool(told.prompts or told.lora or told.stride)


def _attention(told: Adapt, visual: Any) -> nn.Module | None:
    """The attention that is told, for the map that enters the tower's last stage."""
    if told.attention == "none":
        return None
    if told.attention == "channel":
        return ChannelAttention()
    if isinstance(visual, VisionTransformer):
        width, size = visual.class_embedding.shape[0], visual.grid_size
    else:
        height, across = resize.native_size(visual)
        width, size = visual.layer4[0].conv1.in_channels, (height // 16, across // 16)
    if told.attention == "self":
        return SelfAttention(width)
    return SpatialAttention(width, (int(size[0]), int(size[1])), rpe="axial")


def _check(visual: nn.Module, told: Adapt, views: tuple[str, ...]) -> None:
    """Raise ParamError where the tower cannot take what is told."""
    asked = {"view": told.view != "none", "prompts": told.prompts, "stride": told.stride}
    asked |= {"parts jpm": told.parts == "jpm"}
    wanted = [f"adapt.{name}" for name, value in asked.items() if value]
    if wanted and not isinstance(visual, VisionTransformer):
        raise ParamError(
            f"{', '.join(wanted)}: for open_clip's own ViT towers, whose tokens it works on; this"
            f" is a {type(visual).__name__}"
        )
    _check_map(visual, told)
    if told.view != "none" and (not views or len(set(views)) < len(views)):
        raise ParamError(f"adapt.view {told.view}: its values, each once, must be given: {views}")
    if isinstance(visual, VisionTransformer) and (told.stride or 0) > min(visual.patch_size):
        raise ParamError(
            f"adapt.stride {told.stride}: patches of {visual.patch_size} would leave pixels out"
        )


def _check_map(visual: nn.Module, told: Adapt) -> None:
    """Raise ParamError where attention or parts are told, and the tower has no map for them."""
    both = {"attention": told.attention, "parts": told.parts}
    wanted = ", ".join(f"adapt.{name} {word}" for name, word in both.items() if word != "none")
    if not wanted or isinstance(visual, ModifiedResNet):
        return
    if not isinstance(visual, VisionTransformer):
        raise ParamError(
            f"{wanted}: for open_clip's own ViT and ResNet towers, not {type(visual).__name__}"
        )
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise ParamError(f"{wanted}: this ViT drops patches in training, so they have no places")
    if told.parts != "none" and visual.attn_pool is not None:
        raise ParamError(f"{wanted}: this ViT's features are made by an attention pool")
    if told.parts in ("mgn", "jpm") and visual.pool_type != "tok":
        raise ParamError(f"{wanted}: for ViTs that are pooled by their class token; take pcb")
