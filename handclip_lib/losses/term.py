"""Every loss by name, and one entry of the list: a loss on the features that it names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handclip_lib.losses import by_name, metric, settings
from handclip_lib.losses.by_name import ByName
from handclip_lib.losses.center import Center
from handclip_lib.losses.classify import CrossEntropy
from handclip_lib.losses.guards import TripletGuard
from handclip_lib.losses.margin import ArcFace
from handclip_lib.losses.memory import Memory
from handclip_lib.params import ParamError
from handclip_lib.schema_base import Whole, did_you_mean
from handclip_lib.schema_train import LossSpec


class Kind(NamedTuple):
    """A type of loss: what makes it, the features it usually reads, its usual weight.

    make: a function of (z, y, bank) or a module built from (num_ids, width); the keyword-only
    arguments are its settings. compares: whether it compares images with each other: then it needs
    pairs, and may take a memory of earlier ones.
    """

    make: Callable[..., Any]
    on: tuple[str, ...]
    weight: float = 1.0
    compares: bool = False


LOSSES = {
    "cross_entropy": Kind(CrossEntropy, ("pool_bn", "proj_bn")),
    "triplet": Kind(metric.triplet, ("penult", "pool", "proj"), compares=True),
    "center": Kind(Center, ("proj",), weight=0.1),
    "arcface": Kind(ArcFace, ("proj_bn",)),
    "supcon": Kind(metric.supcon, ("proj",), weight=0.5, compares=True),
    "contrastive": Kind(metric.contrastive, ("proj",), compares=True),
    "pml": Kind(ByName, ("proj",), compares=True),
}


_MEMORY: tuple[str, ...] = ("memory", "memory_start")


class Term(nn.Module):
    """A loss on each of its features with settings of its own for all; the term is their sum.

    The sum is CLIP-ReID's (Li et al. 2023, arXiv:2211.13977): cross-entropy on two features starts
    at 2 · ln C. widths: of the features that may be read, by name; alone: it is the only loss of
    the list.
    """

    def __init__(
        self, spec: LossSpec, where: str, num_ids: int, widths: Mapping[str, int], alone: bool
    ) -> None:
        super().__init__()
        kind, given = _kind(spec, where)
        self.on = tuple(dict.fromkeys(kind.on if spec.on is None else spec.on))
        _check_features(self.on, widths, where)
        self.weight = kind.weight if spec.weight is None else spec.weight
        size, start = _memory(given, where) if kind.compares else (0, 0)
        self.told = settings.of(kind.make, given, where, _MEMORY if kind.compares else ())
        self.make, self.compares = kind.make, kind.compares
        self.parts, self.memories = nn.ModuleDict(), nn.ModuleDict()
        self.guards = nn.ModuleDict()
        for name in self.on:
            if isinstance(kind.make, type):
                self.parts[name] = _within(where, kind.make, num_ids, widths[name], self.told)
            if size:
                self.memories[name] = Memory(size, widths[name], start)
            if kind.make is metric.triplet:
                what = f"loss 'triplet' on {name}"
                self.guards[name] = TripletGuard(what, self.told["margin"], alone)
        if size and kind.make is ByName and not by_name.remembers(self.told["name"]):
            raise ParamError(f"{where}.memory: {self.told['name']} takes none")

    def forward(
        self, features: Mapping[str, Tensor], y: Tensor, soft: Tensor | None, clean: int
    ) -> Tensor:
        """features: (B, W) by name; y: (B,); soft: (B, C); clean: rows of the metric losses."""
        values = [self._on(name, features[name], y, soft, clean) for name in self.on]
        return torch.stack(values).sum()

    def _on(self, name: str, z: Tensor, y: Tensor, soft: Tensor | None, clean: int) -> Tensor:
        if self.make is CrossEntropy:
            value: Tensor = self.parts[name](z, y, soft)
            return value
        z, y = z[:clean], y[:clean]
        if not clean:
            return z.sum() * 0.0
        memory = cast(Memory, self.memories[name]) if self.memories else None
        bank = memory() if memory else None
        if not isinstance(self.make, type):
            value = self.make(z, y, bank, **self.told)
        elif bank:
            value = self.parts[name](z, y, bank)
        else:
            value = self.parts[name](z, y)
        if self.training and name in self.guards:
            seen = F.normalize(z) if self.told["normalize"] else z
            self.guards[name](value.detach(), seen.detach())
        if self.training and memory:
            memory.push(z, y)
        return value


def _kind(spec: LossSpec, where: str) -> tuple[Kind, dict[str, Any]]:
    """What makes the loss, and its own settings; a PML loss may be named as the type itself."""
    given = dict(spec.model_extra or {})
    if spec.type in LOSSES:
        return LOSSES[spec.type], given
    known = by_name.names()
    if spec.type not in (*known, *by_name.UNFIT):
        near = did_you_mean(spec.type, (*LOSSES, *known))
        raise ParamError(
            f"{where}.type: no loss '{spec.type}'{near}; there are {', '.join(LOSSES)}"
        )
    memory = {key: given.pop(key) for key in _MEMORY if key in given}
    return LOSSES["pml"], {"name": spec.type, "args": given, **memory}


def _memory(given: dict[str, Any], where: str) -> tuple[int, int]:
    """Takes `memory` and `memory_start` out of the settings; (0, …) is none."""

    def keys(*, memory: Whole = 0, memory_start: Whole = 1) -> None:
        """Only its signature is read."""

    told = {key: given.pop(key) for key in _MEMORY if key in given}
    checked = settings.of(keys, told, where)
    return checked["memory"], checked["memory_start"]


def _check_features(on: tuple[str, ...], widths: Mapping[str, int], where: str) -> None:
    if not on:
        raise ParamError(f"{where}.on: names no feature")
    for name in on:
        if name == "head" and "head" not in widths:
            raise ParamError(f"{where}.on: 'head' needs `projection`, the width of that head")
        if name not in widths:
            near = did_you_mean(name, widths)
            raise ParamError(
                f"{where}.on: no feature '{name}'{near}; there are {', '.join(widths)}"
            )


def _within(
    where: str, make: type[nn.Module], num_ids: int, width: int, told: dict[str, Any]
) -> nn.Module:
    try:
        return make(num_ids, width, **told)
    except ParamError as error:
        raise ParamError(f"{where}.{error}") from None
