"""Ranking and its numbers, once: CMC, both average precisions and mINP from a similarity matrix."""

from typing import Any

import numpy as np
import numpy.typing as npt

# metric -> the per-query column whose mean it is
METRICS = {
    "rank1": "rank1",
    "rank5": "rank5",
    "rank10": "rank10",
    "map": "ap",
    "map_trapezoid": "ap_trapezoid",
    "minp": "inp",
}
HEADLINE = {metric: METRICS[metric] for metric in ("rank1", "map")}  # tested, and shown first
_CELLS = 1 << 22  # similarities sorted at a time: 32 MB of float64, whatever the gallery's size


def rank_gallery(similarity: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Gallery positions of every query, nearest first: (Q, G) similarities to (Q, G) positions.

    This is the kit's one rule for ties: among equals the earlier gallery entry comes first.
    """
    return np.argsort(-np.asarray(similarity), axis=1, kind="stable")


def retrieval_metrics(
    similarity: npt.ArrayLike, query_pids: npt.ArrayLike, gallery_pids: npt.ArrayLike
) -> dict[str, Any]:
    """Closed-set retrieval scores, each the mean over queries.

    similarity: (Q, G), higher is closer, finite; query_pids (Q,), gallery_pids (G,): whole numbers
    or names. Entries of equal similarity keep the gallery's order. Returns floats in 0–1:
    `rank1, rank5, rank10` (share of queries with a match among the first k; a gallery smaller than
    k counts whole), `map` (AP = mean precision at each match), `map_trapezoid` (AP of Oxford and
    Market-1501: precision averaged before and after each match), `minp` (matches over the rank of
    the last one; Ye et al. 2021, arXiv:2001.04193), and `per_query`: arrays (Q,) `rank` (1-based,
    of the first match), `rank1, rank5, rank10, ap, ap_trapezoid, inp`. With one match per query at
    rank r: ap = inp = 1/r, and map_trapezoid = (rank1 + map) / 2.

    Raises ValueError on wrong shapes, nothing to rank, NaN or infinity, and on a query whose
    identity is not in the gallery: a score of such a query has no meaning in a closed set.
    """
    sim, query, gallery = _checked(similarity, query_pids, gallery_pids)
    rows = max(1, _CELLS // len(gallery))
    blocks = [
        _score(sim[start : start + rows], query[start : start + rows], gallery, start)
        for start in range(0, len(query), rows)
    ]
    per_query = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    means = {metric: float(per_query[column].mean()) for metric, column in METRICS.items()}
    return {**means, "per_query": per_query}


def _score(
    sim: npt.NDArray[np.floating],
    query: npt.NDArray[np.intp],
    gallery: npt.NDArray[np.intp],
    start: int,
) -> dict[str, npt.NDArray[np.generic]]:
    """Per-query columns of one block of queries, the first of which is number `start`."""
    bad = np.flatnonzero(~np.isfinite(sim).all(axis=1))
    if bad.size:
        raise ValueError(f"similarity of query {start + bad[0]} holds NaN or infinity")
    match = gallery[rank_gallery(sim)] == query[:, None]  # (b, G), nearest first
    n = match.sum(axis=1)  # matches of each query, >= 1
    row, place = np.nonzero(match)  # every match: its query and its 0-based rank, in order
    first = np.cumsum(n) - n
    found = np.arange(len(row)) - first[row]  # matches ranked before this one
    after = (found + 1) / (place + 1)
    before = np.where(place == 0, 1.0, found / np.maximum(place, 1))
    rank = place[first] + 1
    hits = {f"rank{k}": (rank <= k).astype(np.float64) for k in (1, 5, 10)}
    return {
        "rank": rank,
        **hits,
        "ap": np.bincount(row, after) / n,
        "ap_trapezoid": np.bincount(row, (before + after) / 2) / n,
        "inp": n / (place[first + n - 1] + 1),
    }


def _checked(
    similarity: npt.ArrayLike, query_pids: npt.ArrayLike, gallery_pids: npt.ArrayLike
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The matrix as floats and both sides' identities as codes, or a ValueError."""
    sim = np.asarray(similarity)
    query, gallery = _identities(query_pids, "query"), _identities(gallery_pids, "gallery")
    if sim.shape != (len(query), len(gallery)):
        raise ValueError(
            f"similarity has shape {sim.shape}, but there are {len(query)} queries and "
            f"{len(gallery)} gallery entries"
        )
    if sim.size == 0:
        raise ValueError(f"nothing to rank: similarity has shape {sim.shape}")
    if sim.dtype not in (np.float32, np.float64):
        sim = sim.astype(np.float64)
    if (query.dtype.kind in "iu") != (gallery.dtype.kind in "iu"):
        raise ValueError("query and gallery identities differ in kind: numbers against names")
    alone = np.flatnonzero(~np.isin(query, gallery))
    if alone.size:
        raise ValueError(
            f"query {alone[0]}: identity {query[alone[0]]} has no match in the gallery "
            f"({len(np.unique(query[alone]))} identities without one); "
            "leave such queries out of the manifest"
        )
    codes = np.unique(np.concatenate([query, gallery]), return_inverse=True)[1]
    return sim, codes[: len(query)], codes[len(query) :]


def _identities(pids: npt.ArrayLike, side: str) -> npt.NDArray[np.generic]:
    values = np.asarray(pids)
    if values.ndim != 1:
        raise ValueError(f"{side} identities must be one-dimensional, got shape {values.shape}")
    if values.dtype.kind == "O":
        values = np.asarray(values.tolist())  # pandas' names
    if values.size and values.dtype.kind not in "iuU":  # 1.0 or NaN is no person
        raise ValueError(f"{side} identities must be whole numbers or names, got {values.dtype}")
    return values
