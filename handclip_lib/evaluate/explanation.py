"""What a model looks at in some photographs, and whether that matters to it, in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.data.masks import hand_masks
from handclip_lib.data.store import Store
from handclip_lib.evaluate.embed import evaluating
from handclip_lib.evaluate.faithfulness import agreement, deletion, faithfulness, randomised
from handclip_lib.evaluate.saliency import (
    cells,
    on_hand,
    pair_evidence,
    rollout,
    similarity_cam,
)
from handclip_lib.models.clip import Encoder

ROLLOUT, CAM = "attention", "raises the cosine"


@dataclass(frozen=True)
class Explanation:
    """Maps of N photographs. pixels: (N, H, W, 3) uint8; maps: {kind: (N, h, w)}; masks: (N, H, W)
    how much of a pixel is hand, NaN where that is not known; on_hand: {kind: (N,)} share of the
    map's mass that lies there, with `hand` its share of the picture; blanked: {kind:
    `faithfulness`}; left_out: {kind: why this tower has none}.
    """

    images: tuple[str, ...]
    persons: tuple[int, ...]
    pixels: np.ndarray
    maps: Mapping[str, np.ndarray]
    masks: np.ndarray
    on_hand: Mapping[str, np.ndarray]
    blanked: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]


def explanation(
    encoder: Encoder,
    store: Store,
    queries: pd.DataFrame,
    references: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
    share: float = 0.1,
    seed: int = 0,
) -> Explanation:
    """Maps of query photographs, each against its reference, and what blanking them does.

    queries: manifest rows (`image`, `pid`) of two persons or more; references: (N, D) retrieval
    features, such as those of the gallery photographs of the same persons; share: of the places
    that are blanked, on the hand where it is known. A tower that has no attention to show, or no
    map, is no error: `left_out` tells why.
    """
    images = queries["image"].tolist()
    pixels, inputs, told = _given(encoder, store, images, fabric)
    maps, left_out = {}, {}
    with evaluating(encoder):
        for kind in (ROLLOUT, CAM):
            try:
                maps[kind] = (
                    rollout(encoder, inputs, codes=told)
                    if kind == ROLLOUT
                    else similarity_cam(encoder, inputs, references, feature, codes=told)
                )
            except TypeError as error:
                left_out[kind] = str(error)
        masks = hand_masks(store, images)
        blanked = {
            kind: _blanked(encoder, inputs, references, found, masks, queries["pid"], told,
                           feature, share, seed)
            for kind, found in maps.items()
        }  # fmt: skip
    shares = {kind: on_hand(found, masks) for kind, found in maps.items()}
    shares["hand"] = masks.mean(axis=(1, 2))
    who = tuple(map(int, queries["pid"]))
    return Explanation(tuple(images), who, pixels.numpy(), maps, masks, shares, blanked, left_out)


def _given(
    encoder: Encoder, store: Store, images: Sequence[str], fabric: lf.Fabric
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Pixels (N, H, W, 3) of images, the tower's input, and the codes of its adapter, if any."""
    fabric.to_device(encoder)
    pixels = store.pixels(images)
    codes = encoder.codes_of(store.table.set_index("image", drop=False).loc[list(images)])
    inputs = encoder.preprocess.normalise(pixels.to(fabric.device))
    return pixels, inputs, None if codes is None else codes.to(fabric.device)


def _blanked(
    encoder: Encoder,
    inputs: torch.Tensor,
    references: np.ndarray,
    maps: np.ndarray,
    masks: np.ndarray,
    persons: pd.Series,
    codes: torch.Tensor | None,
    feature: Sequence[str],
    share: float,
    seed: int,
) -> dict[str, Any]:
    grid = (maps.shape[1], maps.shape[2])
    known = np.isfinite(masks).all(axis=(1, 2))
    inside = cells(np.where(known[:, None, None], masks, 1.0), grid) >= 0.5
    allowed = inside | ~inside.any(axis=(1, 2), keepdims=True)  # a hand smaller than a place
    frame = deletion(
        encoder, inputs, references, maps, share, among=allowed, seed=seed, feature=feature,
        codes=codes,
    )  # fmt: skip
    return faithfulness(frame, persons, seed=seed)


def agreements(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    references: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """{kind of map: {stage: (N,)}}: how alike maps stay while the tower loses its weights.

    Rank correlations with the maps of the whole tower, stages from the output to the pixels; a map
    that stays the same was not made by what was learned. references: (N, D) as in `explanation`.
    Raises TypeError on a tower of which the order of stages is not known.
    """
    fabric.to_device(encoder)
    inputs = encoder.preprocess.normalise(store.pixels(images).to(fabric.device))
    told = _codes(encoder, store, images, fabric)
    with evaluating(encoder):
        whole, _ = _maps(encoder, inputs, references, feature, told)
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in whole}
    for stage, other in randomised(encoder, seed):
        with evaluating(other):
            lost, _ = _maps(other, inputs, references, feature, told)
        for kind, maps in lost.items():
            found[kind][stage] = agreement(whole[kind], maps)
    return found


def _codes(
    encoder: Encoder, store: Store, images: Sequence[str], fabric: lf.Fabric
) -> torch.Tensor | None:
    codes = encoder.codes_of(store.table.set_index("image", drop=False).loc[list(images)])
    return None if codes is None else codes.to(fabric.device)


def _maps(
    encoder: Encoder,
    inputs: torch.Tensor,
    references: np.ndarray,
    feature: Sequence[str],
    codes: torch.Tensor | None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps of each kind that the tower has, and why it has no others."""
    makers = {
        ROLLOUT: lambda: rollout(encoder, inputs, codes=codes),
        CAM: lambda: similarity_cam(encoder, inputs, references, feature, codes=codes),
    }
    maps, left_out = {}, {}
    for kind, make in makers.items():
        try:
            maps[kind] = make()
        except TypeError as error:
            left_out[kind] = str(error)
    return maps, left_out


def faced(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    features: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Two photographs held against each other: pixels (2, H, W, 3), maps (2, h, w), places.

    features: (2, D) of these images; each map shows what raises the cosine with the other one;
    places: `saliency.pair_evidence`. Raises TypeError on a tower without maps.
    """
    pixels, inputs, told = _given(encoder, store, images, fabric)
    masks = hand_masks(store, images)
    with evaluating(encoder):
        maps = similarity_cam(encoder, inputs, features[[1, 0]], feature, codes=told)
        known = list(masks) if np.isfinite(masks).all() else None
        places = pair_evidence(encoder, inputs[0], inputs[1], masks=known, codes=told)
    return pixels.numpy(), maps, places
