"""What a stage trains: an image tower and its losses, fed from pixels that are on the device."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.store import Store
from handclip_lib.evaluate.embed import evaluating
from handclip_lib.losses import Criterion
from handclip_lib.models import towers
from handclip_lib.models.clip import Encoder
from handclip_lib.models.towers import Features
from handclip_lib.schema_base import did_you_mean
from handclip_lib.train.classes import Classes
from handclip_lib.train.guide import Guide
from handclip_lib.train.ranks import spread
from handclip_lib.train.retain import Retain

_NAMES = ("penult", "pool", "proj")
Codes = Callable[[list[str]], torch.Tensor | None]  # images -> what the adapter is told of them


class Learner(nn.Module):
    """An encoder's image tower with its adapter, a criterion and a guide: all state that trains.

    Nothing of the text tower is in it. guide: losses between images and texts, or None; retain:
    what holds it to earlier weights, or None;
    neighbours: (C, C - 1) for each identity the others, nearest first, as last looked at (hard
    batches only; a buffer, so that a killed run goes on with the same ones).
    """

    neighbours: torch.Tensor

    def __init__(
        self,
        encoder: Encoder,
        criterion: Criterion,
        num_ids: int,
        compiled: bool = False,
        guide: Guide | None = None,
        retain: Retain | None = None,
    ) -> None:
        super().__init__()
        self.visual, self.adapter = encoder.visual, encoder.adapter
        self.criterion, self.guide, self.retain = criterion, guide, retain
        self.features = compiled_features() if compiled else towers.features
        nearest = torch.arange(num_ids - 1).repeat(num_ids, 1)
        self.register_buffer("neighbours", nearest + (nearest >= torch.arange(num_ids)[:, None]))

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        soft: torch.Tensor | None = None,
        clean: int | None = None,
        codes: torch.Tensor | None = None,
        fabric: lf.Fabric | None = None,
    ) -> dict[str, torch.Tensor]:
        """Normalised images (B, 3, H, W), labels (B,) -> {loss: unweighted scalar}.

        soft, clean: as the criterion takes them; codes: (B,) what the adapter is told of them;
        fabric: of several ranks, each of which is given the whole batch, and shares the tower.
        """
        composes = self.guide is not None and self.guide.composes
        told = spread(self.tower, images, codes, fabric, tokens=composes)
        features: dict[str, Any] = told._asdict() | dict(told.parts)
        terms: dict[str, torch.Tensor] = {}
        if self.guide is not None:
            more, terms = self.guide(told, labels, clean)
            features |= more
        if self.retain is not None:
            kept = self.retain.terms.items()
            terms |= {name: term(self.visual, images, told, fabric) for name, term in kept}
        by_image: dict[str, torch.Tensor] = self.criterion(features, labels, soft, clean)
        return by_image | terms

    def tower(self, images: torch.Tensor, codes: torch.Tensor | None = None) -> Features:
        """The tower's features of normalised images (B, 3, H, W)."""
        forward = self.features if self.training else towers.features  # one compiled mode is enough
        if self.adapter is not None:
            return self.adapter.features(self.visual, images, codes, forward)
        return forward(self.visual, images)

    @property
    def heads(self) -> nn.Module:
        """All that learns beside the tower and its adapter."""
        return nn.ModuleList([self.criterion, *([self.guide] if self.guide is not None else [])])

    @property
    def weights(self) -> dict[str, torch.Tensor | float]:
        """What each term weighs in the total."""
        weights = dict(self.criterion.weights)
        for part in (self.guide, self.retain):
            weights |= {} if part is None else part.weights
        return weights


def compiled_features() -> Callable[[nn.Module, torch.Tensor], towers.Features]:
    """The tower's forward, compiled anew for each set of layers that opens, however many."""
    torch._dynamo.config.recompile_limit = 64
    made: Callable[[nn.Module, torch.Tensor], towers.Features] = torch.compile(
        towers.features, dynamic=False
    )
    return made


@dataclass(frozen=True)
class Pictures:
    """Photographs on the device. pids: whose (N,); labels: (N,) int, 0 … C - 1, -1 for others.

    old: how many of them, the last ones, are shown again.
    """

    images: tuple[str, ...]
    pixels: torch.Tensor  # uint8 (N, H, W, 3)
    pids: np.ndarray
    aspects: np.ndarray
    labels: torch.Tensor
    codes: torch.Tensor | None = None  # (N,) int: what the encoder's adapter is told of them
    old: int = 0


def pictures(
    manifest: pd.DataFrame,
    split: str,
    store: Store,
    fabric: lf.Fabric,
    classes: Classes,
    codes: Codes | None = None,
) -> Pictures:
    """The rows of one split, after those of `train` what is shown again (split `replay`).

    codes: None where the encoder has no adapter that wants them.
    """
    rows = manifest[manifest["split"] == split]
    again = manifest[(manifest["split"] == "replay") & (split == "train")]
    rows = pd.concat([rows, again]) if len(again) else rows
    names = rows["image"].tolist()
    labels = torch.from_numpy(classes.labels(rows))
    empty = torch.zeros((0, *store.preprocess.size, 3), dtype=torch.uint8)
    pixels = store.pixels(names) if names else empty
    told = codes(names) if codes else None
    return Pictures(
        tuple(names),
        pixels.to(fabric.device),
        rows["pid"].to_numpy(),
        rows["aspect"].to_numpy(),
        labels.to(fabric.device),
        None if told is None else told.to(fabric.device),
        len(again),
    )


@torch.no_grad()
def encode(
    learner: Learner,
    data: Pictures,
    preprocess: Preprocess,
    fabric: lf.Fabric,
    size: int,
) -> dict[str, torch.Tensor]:
    """Raw float32 features {penult, pool, proj, …} (N, W) of pictures, no augmenting.

    In eval mode; nothing is kept on disk.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    with evaluating(learner):
        for at in torch.arange(len(data.pixels), device=data.pixels.device).split(size):
            codes = None if data.codes is None else data.codes[at]
            with fabric.autocast():
                told = learner.tower(preprocess.normalise(data.pixels[at]), codes)
                more = {} if learner.guide is None else learner.guide.more(told)
            found = {n: getattr(told, n) for n in _NAMES} | dict(told.parts) | more
            for name, z in found.items():
                parts.setdefault(name, []).append(z.float())
    return {name: torch.cat(blocks) for name, blocks in parts.items()}


def class_means(
    features: Mapping[str, torch.Tensor], labels: torch.Tensor, num_ids: int
) -> dict[str, torch.Tensor]:
    """Mean feature of each class, (C, W) by feature name; NaN where a class has no image."""
    member = functional.one_hot(labels, num_ids).T  # a product: scattered sums differ by run
    return {
        name: member.to(z.dtype) @ z / member.sum(dim=1, keepdim=True)
        for name, z in features.items()
    }


def check_losses(criterion: Criterion, dims: Mapping[str, int], num_ids: int) -> None:
    """Every loss must pull at every feature it names.

    Tried on random features of four images an identity, with a copy, so that nothing is changed.
    Raises RuntimeError with the loss and the feature that gets no gradient from it.
    """
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(min(num_ids, 4)).repeat_interleave(4)
    tried = copy.deepcopy(criterion).cpu().train()
    features = {n: torch.randn(len(labels), w, generator=rng) for n, w in dims.items()}
    for z in features.values():
        z.requires_grad_()
    terms = tried(features, labels)
    missing = set(terms) ^ set(tried.weights)
    if missing:
        raise RuntimeError(f"losses without a weight, or weights without a loss: {sorted(missing)}")
    for name, reads in tried.needs.items():
        for feature in dict.fromkeys(_source(told, dims) for told in reads):
            (grad,) = torch.autograd.grad(
                terms[name], features[feature], retain_graph=True, allow_unused=True
            )
            if grad is None or not grad.abs().sum() > 0:
                raise RuntimeError(f"loss {name} gives no gradient to {feature}, which it names")


def _source(told: str, dims: Mapping[str, int]) -> str:
    """The tower's feature behind a loss's `pool_bn` or `head`."""
    name = "proj" if told == "head" else told.removesuffix("_bn")
    if name not in dims:
        raise RuntimeError(f"no feature '{told}'{did_you_mean(name, dims)}")
    return name
