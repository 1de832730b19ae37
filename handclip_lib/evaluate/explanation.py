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
class Look:
    """Photographs as a model gets them. pixels: (N, H, W, 3) uint8; masks: (N, H, W) how much of a
    pixel is hand, NaN where that is not known; held: against their references.
    """

    pixels: np.ndarray
    masks: np.ndarray
    held: Held


@dataclass(frozen=True)
class Explanation:
    """Maps of N photographs, their pixels and masks as of `Look`. maps: {kind: (N, h, w)};
    on_hand: {kind: (N,)} share of the map's mass that lies on the hand, with `hand` its share of
    the picture; blanked: {kind: `faithfulness`}; left_out: {kind: why this tower has none}.
    """

    images: tuple[str, ...]
    persons: tuple[int, ...]
    pixels: np.ndarray
    maps: Mapping[str, np.ndarray]
    masks: np.ndarray
    on_hand: Mapping[str, np.ndarray]
    blanked: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]


def held_against(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    references: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
) -> tuple[np.ndarray, Held]:
    """Pixels (N, H, W, 3) uint8 of images, and what they are against references (N, D), retrieval
    features, on the fabric's device.
    """
    fabric.to_device(encoder)
    pixels = store.pixels(images)
    codes = encoder.codes_of(store.table.set_index("image", drop=False).loc[list(images)])
    codes = None if codes is None else codes.to(fabric.device)
    inputs = encoder.preprocess.normalise(pixels.to(fabric.device))
    return pixels.numpy(), Held(encoder, inputs, references, feature, codes)


def look(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    references: np.ndarray,
    fabric: lf.Fabric,
    feature: Sequence[str] = ("pool", "proj"),
) -> Look:
    """`held_against`, and where the hands are."""
    pixels, held = held_against(encoder, store, images, references, fabric, feature)
    return Look(pixels, hand_masks(store, images), held)


def explanation(
    seen: Look, queries: pd.DataFrame, share: float = 0.1, seed: int = 0
) -> Explanation:
    """Maps of query photographs, each against its reference, and what blanking them does.

    queries: manifest rows (`image`, `pid`) of two persons or more, as they were looked at, e.g.
    against the gallery photographs of the same persons; share: of the places that are blanked, on
    the hand where it is known. A tower that has no attention to show, or no map, is no error:
    `left_out` tells why.
    """
    maps, left_out = maps_of(seen.held)
    shares = {kind: on_hand(found, seen.masks) for kind, found in maps.items()}
    shares["hand"] = seen.masks.mean(axis=(1, 2))
    blanked = {}
    for kind, found in maps.items():
        frame = deletion(seen.held, found, share, _among(seen.masks, found), seed)
        blanked[kind] = faithfulness(frame, queries["pid"], seed=seed)
    names = tuple(queries["image"]), tuple(map(int, queries["pid"]))
    return Explanation(*names, seen.pixels, maps, seen.masks, shares, blanked, left_out)


def agreements(seen: Look, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """{kind of map: {stage: (N,)}}: how alike maps stay while the tower loses its weights.

    Rank correlations with the maps of the whole tower, stages from the output to the pixels; a map
    that stays the same was not made by what was learned. Raises TypeError on a tower of which the
    order of stages is not known.
    """
    whole, _ = maps_of(seen.held)
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in whole}
    for stage, other in randomised(seen.held.encoder, seed):
        lost, _ = maps_of(replace(seen.held, encoder=other))
        for kind, maps in lost.items():
            found[kind][stage] = agreement(whole[kind], maps)
    return found


def faced(seen: Look, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, str]:
    """Two photographs held against each other: pixels (2, H, W, 3), maps (2, h, w), places, note.

    The reference of each is the other one. places: `saliency.pair_evidence`; note: a line with the
    cosine, and its change when those places are blanked in the first photograph, and as many random
    ones on its hand (of the whole picture where a hand is not known). Raises TypeError on a tower
    without maps.
    """
    maps, held = similarity_cam(seen.held), seen.held
    known = bool(np.isfinite(seen.masks).all())
    masks = seen.masks if known else np.ones_like(seen.masks)
    query, gallery = held.images
    places = pair_evidence(held.encoder, query, gallery, masks=masks, codes=held.codes)
    note = _checked(held, places, _among(masks, maps), "its hand" if known else "the picture", seed)
    return seen.pixels, maps, places, note


def maps_of(held: Held) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps {kind: (N, h, w)} that the tower has, and {kind: why it has none}."""
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


def _checked(held: Held, places: pd.DataFrame, among: np.ndarray, where: str, seed: int) -> str:
    """Words on the first of two photographs: its cosine, and what blanking places does to it."""
    maps = np.zeros(among.shape, np.float32)
    maps[0, places["query_row"], places["query_column"]] = 1
    share = max(len(places), 1) / among[0].sum()
    changes = deletion(held, maps, share, among, seed).iloc[0]
    told = f"cosine {changes['cosine']:.3f}"
    if len(places):
        told += f"; with these places of the query blanked {changes['top']:+.3f}"
        told += f", with as many random ones of {where} {changes['random']:+.3f}"
    return told.replace("-", "−")
