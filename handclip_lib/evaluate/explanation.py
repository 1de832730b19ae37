"""What a model looks at in some photographs, and whether that matters to it, in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.data.masks import hand_masks
from handclip_lib.data.store import Store
from handclip_lib.evaluate.faithfulness import agreement, deletion, faithfulness, randomised
from handclip_lib.evaluate.saliency import (
    Held,
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
    pixels, held = _held(encoder, store, images, references, fabric, feature)
    maps, left_out = _maps(held)
    masks = hand_masks(store, images)
    shares = {kind: on_hand(found, masks) for kind, found in maps.items()}
    shares["hand"] = masks.mean(axis=(1, 2))
    blanked = {}
    for kind, found in maps.items():
        frame = deletion(held, found, share, among=_among(masks, found), seed=seed)
        blanked[kind] = faithfulness(frame, queries["pid"], seed=seed)
    who = tuple(map(int, queries["pid"]))
    return Explanation(tuple(images), who, pixels, maps, masks, shares, blanked, left_out)


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
    _, held = _held(encoder, store, images, references, fabric, feature)
    whole, _ = _maps(held)
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in whole}
    for stage, other in randomised(encoder, seed):
        lost, _ = _maps(replace(held, encoder=other))
        for kind, maps in lost.items():
            found[kind][stage] = agreement(whole[kind], maps)
    return found


def faced(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    features: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, str]:
    """Two photographs held against each other: pixels (2, H, W, 3), maps (2, h, w), places, note.

    features: (2, D) of these images; each map shows what raises the cosine with the other one;
    places: `saliency.pair_evidence`; note: a line with the cosine, and its change when those
    places are blanked in the first photograph, and as many random ones on its hand (of the whole
    picture where a hand is not known). Raises TypeError on a tower without maps.
    """
    pixels, held = _held(encoder, store, images, features[[1, 0]], fabric, feature)
    maps = similarity_cam(held)
    masks = hand_masks(store, images)
    known = masks if np.isfinite(masks).all() else None
    query, gallery = held.images
    places = pair_evidence(encoder, query, gallery, masks=known, codes=held.codes)
    codes = None if held.codes is None else held.codes[:1]
    first = replace(held, images=held.images[:1], references=held.references[:1], codes=codes)
    among = np.ones((1, *maps.shape[1:]), bool) if known is None else _among(known[:1], maps[:1])
    return pixels, maps, places, _checked(first, places, among, known is not None, seed)


def _held(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    references: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str],
) -> tuple[np.ndarray, Held]:
    """Pixels (N, H, W, 3) of images, and what the encoder gets of them, on the fabric's device."""
    fabric.to_device(encoder)
    pixels = store.pixels(images)
    codes = encoder.codes_of(store.table.set_index("image", drop=False).loc[list(images)])
    codes = None if codes is None else codes.to(fabric.device)
    inputs = encoder.preprocess.normalise(pixels.to(fabric.device))
    return pixels.numpy(), Held(encoder, inputs, references, feature, codes)


def _maps(held: Held) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps of each kind that the tower has, and why it has no others."""
    makers = {
        ROLLOUT: lambda: rollout(held.encoder, held.images, codes=held.codes),
        CAM: lambda: similarity_cam(held),
    }
    maps, left_out = {}, {}
    for kind, make in makers.items():
        try:
            maps[kind] = make()
        except TypeError as error:
            left_out[kind] = str(error)
    return maps, left_out


def _among(masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(N, h, w) places of maps that lie half on the hand; all where no hand is known, or none."""
    known = np.isfinite(masks).all(axis=(1, 2), keepdims=True)
    inside = cells(np.where(known, masks, 1.0), (maps.shape[1], maps.shape[2])) >= 0.5
    return inside | ~inside.any(axis=(1, 2), keepdims=True)  # a hand smaller than a place


def _checked(
    held: Held, places: pd.DataFrame, among: np.ndarray, on_a_hand: bool, seed: int
) -> str:
    """Words on one photograph: its cosine, and what blanking the places of a pair does to it."""
    maps = np.zeros(among.shape, np.float32)
    maps[0, places["query_row"], places["query_column"]] = 1
    share = max(len(places), 1) / among.sum()
    changes = deletion(held, maps, share, among=among, seed=seed).iloc[0]
    told = f"cosine {changes['cosine']:.3f}"
    if len(places):
        where = "of its hand" if on_a_hand else "of the picture"
        told += f"; with these places of the query blanked {changes['top']:+.3f}"
        told += f", with as many random ones {where} {changes['random']:+.3f}"
    return told.replace("-", "−")
