"""What a stage trains: an image tower and its losses, fed from pixels that are on the device."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from handclip_lib.schema_base import did_you_mean

_NAMES = ("penult", "pool", "proj")


class Learner(nn.Module):
    """An encoder's image tower and a criterion: all state that trains, and nothing of the text.

    neighbours: (C, C - 1) for each identity the others, nearest first, as last looked at (hard
    batches only; a buffer, so that a killed run goes on with the same ones).
    """

    neighbours: torch.Tensor

    def __init__(
        self, encoder: Encoder, criterion: Criterion, num_ids: int, compiled: bool = False
    ) -> None:
        super().__init__()
        self.visual, self.criterion = encoder.visual, criterion
        self.features = _compiled() if compiled else towers.features
        nearest = torch.arange(num_ids - 1).repeat(num_ids, 1)
        self.register_buffer("neighbours", nearest + (nearest >= torch.arange(num_ids)[:, None]))

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        soft: torch.Tensor | None = None,
        clean: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Normalised images (B, 3, H, W), labels (B,) -> {loss: unweighted scalar}."""
        terms: dict[str, torch.Tensor] = self.criterion(
            self.features(self.visual, images), labels, soft, clean
        )
        return terms


def _compiled() -> Callable[[nn.Module, torch.Tensor], towers.Features]:
    """The tower's forward, compiled anew for each set of layers that opens, however many."""
    torch._dynamo.config.recompile_limit = 64
    made: Callable[[nn.Module, torch.Tensor], towers.Features] = torch.compile(
        towers.features, dynamic=False
    )
    return made


@dataclass(frozen=True)
class Pictures:
    """Photographs of a split on the device. pids: whose (N,); labels: (N,) int, 0 … C - 1."""

    images: tuple[str, ...]
    pixels: torch.Tensor  # uint8 (N, H, W, 3)
    pids: np.ndarray
    aspects: np.ndarray
    labels: torch.Tensor


def pictures(
    manifest: pd.DataFrame, split: str, store: Store, fabric: lf.Fabric, classes: Mapping[int, int]
) -> Pictures:
    """The rows of one split; `classes` says which class a person is (others get -1)."""
    rows = manifest[manifest["split"] == split]
    names = rows["image"].tolist()
    labels = torch.tensor([classes.get(int(pid), -1) for pid in rows["pid"]], dtype=torch.long)
    empty = torch.zeros((0, *store.preprocess.size, 3), dtype=torch.uint8)
    pixels = store.pixels(names) if names else empty
    return Pictures(
        tuple(names),
        pixels.to(fabric.device),
        rows["pid"].to_numpy(),
        rows["aspect"].to_numpy(),
        labels.to(fabric.device),
    )


@torch.no_grad()
def encode(
    learner: Learner, pixels: torch.Tensor, preprocess: Preprocess, fabric: lf.Fabric, size: int
) -> dict[str, torch.Tensor]:
    """Raw float32 features {penult, pool, proj} (N, W) of uint8 pixels (N, H, W, 3), no augmenting.

    In eval mode; nothing is kept on disk.
    """
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in _NAMES}
    with evaluating(learner):
        for batch in pixels.split(size):
            with fabric.autocast():
                told = towers.features(learner.visual, preprocess.normalise(batch))
            for name in _NAMES:
                parts[name].append(getattr(told, name).float())
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
