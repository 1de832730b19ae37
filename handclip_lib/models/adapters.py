"""What is put on an image tower and learns in its stead: side information, prompts, LoRA, overlap.

SIE tells the tower how a photograph was taken (its aspect or camera), visual prompts are tokens
that no image gave, LoRA is in `models.lora`, overlapping patches have a stride below their size.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from handclip_lib.models import resize
from handclip_lib.models.lora import add_lora, fold_lora, is_lora
from handclip_lib.params import ParamError
from handclip_lib.schema_train import Adapt

if TYPE_CHECKING:
    from handclip_lib.models.clip import Encoder

_SHOWN = 5  # values in a message


class Adapter(nn.Module):
    """Parameters that a ViT's forward picks up by hooks; none of them for LoRA and overlap.

    told: what was asked for; views: what each row of `sie` stands for; sie: (V, W) zeros, or None,
    added to the class token before `ln_pre`, times `view_scale`; prompts: (layers or 1, n, W), or
    None, at the end of the sequence, those of the first block before `ln_pre`; codes: (B,) int,
    the view of each image of the next forward, None: unknown, the mean of the table.
    SIE: He et al. 2021, arXiv:2102.04378, section 3.3, on the class token as in CLIP-ReID, Li et
    al. 2023, arXiv:2211.13977. Prompts: Jia et al. 2022, arXiv:2203.12119, section 3.2.
    """

    sie: nn.Parameter | None
    prompts: nn.Parameter | None

    def __init__(self, told: Adapt, views: Sequence[str], visual: nn.Module) -> None:
        super().__init__()
        self.told, self.views = told, tuple(views)
        self.codes: torch.Tensor | None = None
        self.register_parameter("sie", None)
        self.register_parameter("prompts", None)
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
    finer grid of overlapping patches, the tower's function is what it was. Prompts and LoRA's
    matrices are drawn from torch's generator. Raises ParamError as `attach`, and where an adapter
    is there already.
    """
    if encoder.adapter is not None:
        raise ParamError("adapt: this encoder has an adapter; start from one that has none")
    encoder.adapter = attach(encoder.visual, told, views)


def attach(visual: nn.Module, told: Adapt, views: Sequence[str] = ()) -> Adapter | None:
    """As `adapt`, for a tower alone; returns the adapter.

    Raises ParamError on what the tower cannot take: all but LoRA asks for a ViT of open_clip's
    own, LoRA for that or a ResNet; and on a view without `views`. The tower is then as it was.
    """
    views = tuple(map(str, views)) if told.view != "none" else ()
    if not _asks(told):
        return None
    _check(visual, told, views)
    if told.lora:
        add_lora(visual, told.lora)
    if told.stride and isinstance(visual, VisionTransformer):
        resize.set_stride(visual, told.stride)
    device = next(visual.parameters()).device
    return Adapter(told, views, visual).to(device)


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
    """Every parameter that an adapter brought: its own, then LoRA's; none without an adapter."""
    own = [] if encoder.adapter is None else list(encoder.adapter.parameters())
    return own + [p for name, p in encoder.visual.named_parameters() if is_lora(name)]


def _asks(told: Adapt) -> bool:
    return told.view != "none" or bool(told.prompts or told.lora or told.stride)


def _check(visual: nn.Module, told: Adapt, views: tuple[str, ...]) -> None:
    """Raise ParamError where the tower cannot take what is told."""
    asked = {"view": told.view != "none", "prompts": told.prompts, "stride": told.stride}
    wanted = [f"adapt.{name}" for name, value in asked.items() if value]
    if wanted and not isinstance(visual, VisionTransformer):
        raise ParamError(
            f"{', '.join(wanted)}: for open_clip's own ViT towers, whose tokens it works on; this"
            f" is a {type(visual).__name__}"
        )
    if told.view != "none" and (not views or len(set(views)) < len(views)):
        raise ParamError(f"adapt.view {told.view}: its values, each once, must be given: {views}")
    if isinstance(visual, VisionTransformer) and (told.stride or 0) > min(visual.patch_size):
        raise ParamError(
            f"adapt.stride {told.stride}: patches of {visual.patch_size} would leave pixels out"
        )
