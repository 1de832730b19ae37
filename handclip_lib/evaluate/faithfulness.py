"""Whether a map tells the truth: what its places do to the score, and what the weights do to it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from scipy import stats
from torch.nn import functional

from handclip_lib.evaluate.embed import evaluating
from handclip_lib.evaluate.saliency import Held, Maps
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.models.clip import Encoder
from handclip_lib.models.mba import MBANet

BLANKED = ("top", "random", "lowest")
_DRAWS = 8  # of random places, whose changes are averaged
_PUT_ON = "adapter "  # before the names of what an adapter brought, which is lost with the output


def deletion(
    held: Held,
    maps: Maps,
    share: float = 0.1,
    among: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How the cosine with the reference changes when places of a photograph are blanked.

    maps: (B, h, w), of the same images. One row an image: `cosine` as it is, and the change (below
    0: less alike) when `share` of its places is blanked: the map's `top` ones, as many at `random`
    (the mean of several seeded draws), its `lowest`. Places of equal value are taken in random
    order. among: (B, h, w) the places that may be blanked, None all; give those on the hand, or
    random places are mostly empty table. They get the median colour of the picture's outermost
    pixels. Deletion: Samek et al. 2017, arXiv:1509.06321.

    Raises ValueError on a share that is not above 0 to 1, and where an image has no place to blank.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie above 0 and be 1 at most")
    chosen = _choices(maps, among, share, seed)
    colour = _border(held.images)

    def score(places: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        other = replace(held, images=_blanked(held.images, places, colour))
        return other.cosines(other.features()).double().cpu().numpy()

    with torch.no_grad(), evaluating(held.encoder):
        before = score(np.zeros(maps.shape, bool))
        after = {name: np.mean([score(p) for p in sets], axis=0) for name, sets in chosen.items()}
    return pd.DataFrame({"cosine": before} | {name: after[name] - before for name in BLANKED})


def faithfulness(
    deleted: pd.DataFrame, persons: Sequence[Any] | pd.Series, samples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{"top", "random", "lowest", "top_less_random": {"mean", "ci95"}} of `deletion`'s frame.

    persons: (N,) whom each image shows; intervals resample persons. A map is faithful where
    `top_less_random` is below 0 with its whole interval. Raises ValueError with one person.
    """
    table = deleted[list(BLANKED)].assign(top_less_random=deleted["top"] - deleted["random"])
    who = np.asarray(persons)
    low, high = person_bootstrap(table.to_numpy(), who, samples, seed, bounded=False)
    return {
        name: {"mean": float(table[name].mean()), "ci95": [float(low[i]), float(high[i])]}
        for i, name in enumerate(table.columns)
    }


def randomised(encoder: Encoder, seed: int = 0) -> Iterator[tuple[str, Encoder]]:
    """A copy of the encoder whose weights are lost from the output on, and what was lost last.

    Each parameter's values stay, in random order. The same copy is given each time, with one more
    stage of its tower lost: the output, the blocks or layers from the last to the first, then what
    enters them. A map that stays the same did not come from what was learned.
    Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation). Raises TypeError on towers of
    which the order of stages is not known.
    """
    other = copy.deepcopy(encoder)
    left = dict(other.visual.named_parameters())
    if other.adapter is not None:
        left |= {f"{_PUT_ON}{name}": own for name, own in other.adapter.named_parameters()}
    draw = torch.Generator().manual_seed(seed)
    for name, beginnings in _stages(encoder):
        for key in [k for k in left if k.startswith(beginnings)]:
            values = left.pop(key).data
            order = torch.randperm(values.numel(), generator=draw).to(values.device)
            values.copy_(values.flatten()[order].view_as(values))
        yield name, other


def agreement(maps: Maps, others: Maps) -> npt.NDArray[np.float64]:
    """(B,) Spearman's rank correlation of two maps of each image, -1 to 1; NaN for a flat map."""
    flat = zip(maps.reshape(len(maps), -1), others.reshape(len(others), -1), strict=True)
    pairs = [(a, b) if np.ptp(a) and np.ptp(b) else None for a, b in flat]
    return np.array([np.nan if p is None else stats.spearmanr(*p).statistic for p in pairs])


def _stages(encoder: Encoder) -> list[tuple[str, tuple[str, ...]]]:
    """(name, how the names of its parameters begin), from the output to the pixels."""
    visual = encoder.visual
    if isinstance(visual, VisionTransformer):
        depths = range(len(visual.transformer.resblocks) - 1, -1, -1)
        blocks = [(f"block {k + 1}", (f"transformer.resblocks.{k}.",)) for k in depths]
        return [("output", ("ln_post.", "proj", "attn_pool.", _PUT_ON)), *blocks, ("input", ("",))]
    if isinstance(visual, ModifiedResNet):
        layers = [(f"layer {k}", (f"layer{k}.",)) for k in (4, 3, 2, 1)]
        return [("output", ("attnpool.", _PUT_ON)), *layers, ("input", ("",))]
    if isinstance(visual, MBANet):
        layers = [(f"layer {k}", (f"layer{k}.",)) for k in (4, 3, 2, 1)]
        return [("attention", ("attention.",)), *layers, ("input", ("",))]
    raise TypeError(f"the order of stages of a {type(visual).__name__} is not known")


def _choices(
    maps: Maps, among: npt.NDArray[np.bool_] | None, share: float, seed: int
) -> dict[str, list[npt.NDArray[np.bool_]]]:
    """The places of each image that are blanked, (B, h, w), once or in several draws."""
    allowed = np.ones(maps.shape, bool) if among is None else among
    if allowed.shape != maps.shape or not allowed.any(axis=(1, 2)).all():
        raise ValueError(f"among: a place of each of {maps.shape}, got {allowed.shape}")
    rng = np.random.default_rng(seed)
    return {
        "top": [_chosen(maps, allowed, share, rng)],
        "random": [_chosen(np.zeros_like(maps), allowed, share, rng) for _ in range(_DRAWS)],
        "lowest": [_chosen(-maps, allowed, share, rng)],
    }


def _chosen(
    values: Maps, allowed: npt.NDArray[np.bool_], share: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """(B, h, w): the allowed places of the largest values, at least one an image."""
    taken = np.zeros(values.shape, bool)
    for one, mine, out in zip(values, allowed, taken, strict=True):
        places = np.flatnonzero(mine)
        order = np.lexsort((rng.random(len(places)), -one.ravel()[places]))
        out.ravel()[places[order[: max(1, round(share * len(places)))]]] = True
    return taken


def _border(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 1, 1) the median colour of each image's outermost pixels."""
    edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return torch.cat(edges, dim=2).median(dim=2).values[:, :, None, None]


def _blanked(
    images: torch.Tensor, places: npt.NDArray[np.bool_], colour: torch.Tensor
) -> torch.Tensor:
    """The images with the colour at some places of their grid (B, h, w)."""
    grid = torch.as_tensor(places, device=images.device).unsqueeze(1).to(images.dtype)
    pixels = functional.interpolate(grid, size=images.shape[2:], mode="nearest")
    return torch.where(pixels > 0, colour.expand_as(images), images)
