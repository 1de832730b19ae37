"""Features of parts of a hand, beside those of the whole: PCB, MGN and JPM on CLIP's towers.

Each reads the map of the tower's last stage, or what enters that stage, and leaves the tower as
it is. `Features.pool` then holds the tower's own (by the name of `whole`) and the parts.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from handclip_lib.models.mba import take_strides
from handclip_lib.models.towers import Features
from handclip_lib.schema_train import Adapt

_REDUCED = 256  # width of a part's feature in PCB and MGN
_STRIPES = (2, 3)  # of MGN's second and third branch
_SHIFT, _SHUFFLED, _GROUPS = 5, 2, 4  # of JPM
_SCALE = {"pcb": 1.0, "mgn": 1.0, "jpm": 1 / _GROUPS}  # as their tests weigh a part


def part_widths(told: Adapt, pool: int) -> dict[str, int]:
    """Width of each feature that parts bring or change, by name; empty where none are told.

    pool: width of the tower's own. `pool`: the tower's own, then all of `told` that
    `in_retrieval` names; `whole`: the tower's own alone; further names as the parts' own classes
    have them.
    """
    found: dict[str, int] = {}
    if told.parts == "pcb":
        count = told.part_grid[0] * told.part_grid[1]
        found = {f"part{k + 1}": _REDUCED for k in range(count)}
    elif told.parts == "mgn":
        found = {f"global{k + 1}": _REDUCED for k in range(1 + len(_STRIPES))}
        found |= {f"part{k + 1}": _REDUCED for k in range(sum(_STRIPES))}
        found |= {f"stripes{k}": k * _REDUCED for k in _STRIPES}
    elif told.parts == "jpm":
        found = {f"part{k + 1}": pool for k in range(_GROUPS)}
    if not found:
        return {}
    whole = pool + sum(width for name, width in found.items() if in_retrieval(name))
    return {"pool": whole, "whole": pool} | found


def part_names(told: Adapt) -> tuple[str, ...]:
    """The features that losses may name besides the tower's; none where no parts are told."""
    return tuple(name for name in part_widths(told, 1) if name != "pool")


def in_retrieval(name: str) -> bool:
    """Whether `pool` holds a part: all but MGN's stripes side by side, which it has one by one."""
    return not name.startswith("stripes")


def make_parts(told: Adapt, visual: nn.Module) -> "Pcb | Mgn | Jpm":
    """What gives the parts that are told, on this tower: a ViT of open_clip's own, or a ResNet.

    Copies of the tower's last stage are in its `copies`. Call it before anything is hooked on the
    tower: copies would have the hooks, too.
    """
    if told.parts == "pcb":
        return Pcb(_width(visual), told.part_grid)
    return Mgn(visual) if told.parts == "mgn" else Jpm(visual)


def with_parts(told: Features, parts: Mapping[str, torch.Tensor], adapt: Adapt) -> Features:
    """The same features, with the parts: in `parts`, and in `pool` behind the tower's own.

    In `pool` a part is scaled by `adapt.part_scale`, None: as its paper tests it.
    """
    scale = _SCALE[adapt.parts] if adapt.part_scale is None else adapt.part_scale
    behind = [scale * z.to(told.pool.dtype) for name, z in parts.items() if in_retrieval(name)]
    pool = torch.cat([told.pool, *behind], dim=1)
    return told._replace(pool=pool, parts={"whole": told.pool, **parts})


class Pcb(nn.Module):
    """Part1, part2, … (B, 256): means over the cells of a grid (rows, columns), row by row.

    Each through Linear, BatchNorm and ReLU of its own. Cells share a row of the map where the map
    cannot be divided (adaptive pooling). Tested side by side as they are.
    Sun et al. 2018, arXiv:1711.09349, sections 3.1 and 3.2 (its descriptor H); rows and columns for
    hands: Baisa 2021, arXiv:2101.05260.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.copies = grid, nn.ModuleList()
        self.heads = nn.ModuleList(_reduce(width) for _ in range(grid[0] * grid[1]))

    def forward(self, entered: torch.Tensor, told: Features) -> dict[str, torch.Tensor]:
        """entered: what went into the tower's last stage; told: its features."""
        cells = [cell.mean((2, 3)) for cell in _cells(_map(told.tokens, told.grid), *self.grid)]
        both = zip(self.heads, cells, strict=True)
        return {f"part{k}": head(cell) for k, (head, cell) in enumerate(both, 1)}


class Mgn(nn.Module):
    """Eight features of three branches, (B, 256) each; branches 2 and 3 copy the last stage.

    Branch 1 is the tower: `global1`. Branch 2: `global2` and two stripes, `part1` and `part2`;
    branch 3: `global3` and three, `part3` to `part5`. All are maxima over a branch's map, but a
    ViT's globals, which are its class token; each through Linear, BatchNorm and ReLU. `stripes2`
    and `stripes3` (B, 512 and 768) have a branch's stripes side by side, for triplets. A ResNet's
    copies keep the map as large as it enters (stride 1); a ViT's are the last block with `ln_post`.
    Tested: the eight side by side as they are.
    Wang et al. 2018, arXiv:1804.01438, section 3; on a ViT as He et al. 2021, arXiv:2102.04378,
    copy a block.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        width = _width(visual)
        self.copies = nn.ModuleList(_copied(visual) for _ in _STRIPES)
        names = [f"global{k + 1}" for k in range(1 + len(_STRIPES))]
        names += [f"part{k + 1}" for k in range(sum(_STRIPES))]
        self.heads = nn.ModuleDict({name: _reduce(width) for name in names})

    def forward(self, entered: torch.Tensor, told: Features) -> dict[str, torch.Tensor]:
        """entered: what went into the tower's last stage; told: its features."""
        vit = entered.ndim == 3
        wholes = [told.pool if vit else _map(told.tokens, told.grid).amax((2, 3))]
        parts: list[torch.Tensor] = []
        for stage, stripes in zip(self.copies, _STRIPES, strict=True):
            seen = stage(entered)
            fmap = _map(_patches(seen, told), told.grid) if vit else seen
            wholes.append(seen[:, 0] if vit else seen.amax((2, 3)))
            parts += [cell.amax((2, 3)) for cell in _cells(fmap, stripes, 1)]
        both = zip(self.heads.items(), [*wholes, *parts], strict=True)
        found = {name: head(z) for (name, head), z in both}
        own = [found[f"part{k + 1}"] for k in range(len(parts))]
        for stripes in _STRIPES:
            found[f"stripes{stripes}"] = torch.cat(own[:stripes], dim=1)
            own = own[stripes:]
        return found


class Jpm(nn.Module):
    """Part1 to part4 (B, W): the class token after it has met one group of patches alone.

    The patches are shifted by five places, dealt out to two piles that are read in turn, and cut
    into four groups; each goes with the class token (and visual prompts) through one copy of the
    last block with `ln_post`. Groups may differ by a patch: none is dropped. Tested: each divided
    by four, beside the whole. He et al. 2021, arXiv:2102.04378, section 3.2.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.copies = nn.ModuleList([_copied(visual)])

    def forward(self, entered: torch.Tensor, told: Features) -> dict[str, torch.Tensor]:
        """entered: (B, 1 + N + n, W) into the last block, n prompts at its end; told: features."""
        count = told.tokens.shape[1]
        groups = jigsaw(count, entered.device)
        whole, prompts = entered[:, :1], entered[:, 1 + count :]
        patches = _patches(entered, told)
        (stage,) = self.copies
        found = {}
        for k, group in enumerate(groups, 1):
            row = torch.cat([whole, patches[:, group], prompts], dim=1)
            found[f"part{k}"] = stage(row)[:, 0]
        return found


def jigsaw(count: int, device: torch.device | None = None) -> tuple[torch.Tensor, ...]:
    """JPM's four groups of the indices 0 … count - 1, each index in one; few may leave some empty.

    The first five go to the end; then the first and the second half are read in turn.
    """
    shifted = torch.arange(count, device=device).roll(-_SHIFT)
    pile = -(-count // _SHUFFLED)  # indices in a pile, rounded up
    in_turn = (torch.arange(count, device=device) % max(pile, 1)).argsort(stable=True)
    return shifted[in_turn].tensor_split(_GROUPS)


def _reduce(width: int) -> nn.Sequential:
    linear = nn.Linear(width, _REDUCED, bias=False)  # the BatchNorm has a bias
    return nn.Sequential(linear, nn.BatchNorm1d(_REDUCED), nn.ReLU())


def _map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, N, W), row by row -> (B, W, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _patches(sequence: torch.Tensor, told: Features) -> torch.Tensor:
    """(B, N, W) of a ViT's sequence, without class token and prompts."""
    return sequence[:, 1 : 1 + told.tokens.shape[1]]


def _cells(fmap: torch.Tensor, rows: int, columns: int) -> list[torch.Tensor]:
    """The cells of adaptive pooling, row by row: slices, whose gradient is deterministic."""
    height, width = fmap.shape[2:]
    return [
        fmap[:, :, _within(r, rows, height), _within(c, columns, width)]
        for r in range(rows)
        for c in range(columns)
    ]


def _within(part: int, parts: int, size: int) -> slice:
    return slice(part * size // parts, -(-(part + 1) * size // parts))


def _width(visual: Any) -> int:
    """Channels of the last stage's map."""
    if isinstance(visual, VisionTransformer):
        return int(visual.class_embedding.shape[0])
    return int(visual.attnpool.k_proj.in_features)


def _copied(visual: Any) -> nn.Module:
    """A copy of the last stage: a ViT's last block and `ln_post`, a ResNet's layer4, stride 1."""
    if isinstance(visual, VisionTransformer):
        return copy.deepcopy(nn.Sequential(visual.transformer.resblocks[-1], visual.ln_post))
    assert isinstance(visual, ModifiedResNet)
    layer = copy.deepcopy(visual.layer4)
    take_strides(layer)
    return layer
