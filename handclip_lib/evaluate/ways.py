"""Ways to hold queries against a gallery other than by cosine, and to make features fit for it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from handclip_lib.evaluate.expansion import augment_gallery, expand_queries
from handclip_lib.evaluate.protocol import Compare, cosine
from handclip_lib.evaluate.rerank import inductive, k_reciprocal
from handclip_lib.schema_eval import Comparison, Reranking

Array = npt.NDArray[Any]


def ways(told: Comparison) -> dict[str, Compare]:
    """By name, what `protocol.evaluate` takes as `compare`: cosine, re-ranking, expansion.

    `re-ranked k1/k2` (with lambda, where that is not the usual one) sees all queries of a draw
    together, as the literature has it; `…, one by one` knows one query and the gallery, as a search
    in practice does. Expansion and augmentation use the gallery alone.
    """
    found: dict[str, Compare] = {"cosine": cosine}
    for one in told.reranking:
        apart = f", lambda {one.lam:g}" if one.lam != Reranking().lam else ""
        name = f"re-ranked {one.k1}/{one.k2}{apart}"
        found[name] = partial(_near, k_reciprocal, one)
        found[f"{name}, one by one"] = partial(_near, inductive, one)
    k, alpha = told.expand, told.expand_alpha
    found[f"query expansion {k}"] = partial(_expanded, k, 0.0)
    found[f"query expansion {k}, alpha {alpha:g}"] = partial(_expanded, k, alpha)
    found[f"gallery augmented {k}, alpha {alpha:g}"] = partial(_augmented, k, alpha)
    return found


def _near(distance: Any, told: Reranking, query: Array, gallery: Array) -> Array:
    nearness: Array = -distance(query, gallery, told.k1, told.k2, told.lam)
    return nearness


def _expanded(k: int, alpha: float, query: Array, gallery: Array) -> Array:
    return cosine(expand_queries(query, gallery, k, alpha), gallery)


def _augmented(k: int, alpha: float, query: Array, gallery: Array) -> Array:
    return cosine(query, augment_gallery(gallery, k, alpha))


def both_ways(features: Mapping[str, Array], mirrored: Mapping[str, Array]) -> dict[str, Array]:
    """Features of photographs and of their mirror images, added: flip summing.

    Both: {name: (N, W)} raw. As MBA-Net is tested: Baisa et al. 2022, arXiv:2108.02234.
    """
    return {name: np.add(z, mirrored[name]) for name, z in features.items()}
