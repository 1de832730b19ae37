"""A word for each image: what is seen becomes a token of the prompt, whose text guides the image.

After PromptSG (Yang et al. 2024, "A Pedestrian is Worth One Prompt", CVPR, section 3), and the
inversion network of CLIP-HandID.
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn
from torch.nn import functional

from handclip_lib.models.clip import Encoder
from handclip_lib.models.joint import joint_tokens
from handclip_lib.models.prompts import find_slots
from handclip_lib.models.text import TextTower
from handclip_lib.models.towers import Features

Style = Literal["promptsg", "clip_handid"]
_HIDDEN, _BLOCKS = 512, 2  # as in the paper


class Inversion(nn.Module):
    """Image features (B, width_in) of any length to pseudo-words (B, width_out), the s* of prompts.

    promptsg: three layers, 512 wide between, BatchNorm last; clip_handid: two layers of four times
    width_in with LayerNorm, GELU and dropout 0.5, then one to width_out, LayerNorm last. Either
    norm is followed by a factor that gives rows about the length of real words, `typical_norm`:
    longer ones would drown the rest of the prompt. Textual inversion: Gal et al. 2022,
    arXiv:2208.01618.
    """

    def __init__(self, width_in: int, width_out: int, typical_norm: float, style: Style) -> None:
        super().__init__()
        self.length_in = width_in**0.5  # of each row, so that entries are about 1
        self.scale = typical_norm / width_out**0.5
        layers = _promptsg if style == "promptsg" else _clip_handid
        self.layers = layers(width_in, width_out)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z: (B, width_in) raw or unit rows -> (B, width_out) float32."""
        words: torch.Tensor = self.layers(self.length_in * functional.normalize(z, dim=1))
        return self.scale * words.float()


def _promptsg(width_in: int, width_out: int) -> nn.Sequential:
    """Kaiming's start: entries are about 1 throughout, as BatchNorm's first statistics have it."""
    widths = (width_in, _HIDDEN, _HIDDEN, width_out)
    linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for linear in linears:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
    first, second, last = linears
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last, nn.BatchNorm1d(width_out))


def _clip_handid(width_in: int, width_out: int) -> nn.Sequential:
    wide = 4 * width_in
    hidden = [
        layer
        for width in (width_in, wide)
        for layer in (nn.Linear(width, wide), nn.LayerNorm(wide), nn.GELU(), nn.Dropout(0.5))
    ]
    return nn.Sequential(*hidden, nn.Linear(wide, width_out), nn.LayerNorm(width_out))


class Interaction(nn.Module):
    """A text looks at the places of its image; what it finds is added to the image's feature.

    Cross-attention, then two transformer blocks over [what was found + feature; places]. All that
    is added comes out of projections that start at zero: at first the image's own feature comes
    out, bit for bit. Each image attends to its own places, never to its batch mates. Yang et al.
    2024, section 3, with normalised inputs.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        heads = max(n for n in range(1, heads + 1) if width % n == 0)
        self.ln_text, self.ln_places = nn.LayerNorm(width), nn.LayerNorm(width)
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        blocks = [ResidualAttentionBlock(width, heads, act_layer=QuickGELU) for _ in range(_BLOCKS)]
        self.blocks = nn.ModuleList(blocks)
        ends = [end for block in blocks for end in (block.attn.out_proj, block.mlp[-1])]
        for gate in (self.look.out_proj, *ends):
            for value in gate.parameters():
                nn.init.zeros_(value)

    def forward(self, text: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        """text: (B, E); joint: (B, 1 + N, E) as `joint_tokens` gives it -> (B, E), raw."""
        whole, places = joint[:, :1], joint[:, 1:]
        seen = self.ln_places(places)
        found, _ = self.look(self.ln_text(text)[:, None], seen, seen, need_weights=False)
        row = torch.cat([whole + found, places], dim=1)  # (B, 1 + N, E)
        for block in self.blocks:
            row = block(row)
        return row[:, 0]


class Composer(nn.Module):
    """Writes each image's pseudo-word into a prompt and encodes it with the frozen text tower.

    template: with `{person}`, where the pseudo-word goes; style: of the inversion network;
    interact: whether the text then looks at the image's places; unit: texts of length 1. Only
    `inversion` and `interaction` are its parameters: the towers stay the encoder's.
    """

    slots: torch.Tensor
    tokens: torch.Tensor
    plain: torch.Tensor

    def __init__(
        self, encoder: Encoder, template: str, style: Style, interact: bool, unit: bool = True
    ) -> None:
        super().__init__()
        self.tower, self.unit = TextTower(encoder), unit
        width = encoder.dims["proj"]
        self.inversion = Inversion(width, self.tower.width, self.tower.typical_norm, style)
        self.interaction = Interaction(width) if interact else None
        self.joint = partial(joint_tokens, encoder.visual)  # no submodule, yet copied along
        found = find_slots(self.tower, template, 1)
        self.end = found.end
        self.register_buffer("tokens", found.tokens, persistent=False)  # (L,)
        self.register_buffer("slots", found.at, persistent=False)  # (1,)
        words = self.tower.tokens([template.replace("{person}", "person")])
        self.register_buffer("plain", words, persistent=False)  # (1, context)

    def forward(
        self, features: Features, composed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of B images: text features (B, E), and what their texts found in them (B, E), raw.

        The second is None without interaction. composed: False for one text of all images, with
        the word `person` (PromptSG's faster inference). Gradient flows through the text tower.
        """
        count = len(features.proj)
        text = self._compose(features.proj) if composed else self.fixed().expand(count, -1)
        if self.interaction is None:
            return text, None
        return text, self.interaction(text, self.joint(features))

    def fixed(self) -> torch.Tensor:
        """(1, E) text feature of the template with the word `person`."""
        embedded = self.tower.embed(self.plain)
        return self._scaled(self.tower.encode(embedded, self.tower.end(self.plain)))

    def _scaled(self, text: torch.Tensor) -> torch.Tensor:
        return functional.normalize(text, dim=1) if self.unit else text

    def _compose(self, proj: torch.Tensor) -> torch.Tensor:
        words = self.inversion(proj)  # (B, W)
        embedded = self.tower.embed(self.tokens[None]).repeat(len(words), 1, 1)  # (B, L, W)
        embedded[:, self.slots] = words[:, None].to(embedded.dtype)
        ends = torch.full((len(words),), self.end, device=words.device)
        return self._scaled(self.tower.encode(embedded, ends))
