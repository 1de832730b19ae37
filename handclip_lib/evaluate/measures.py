"""Ranking measures beside `retrieval.METRICS`: at k, by identity, and who is taken for whom."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.data.leaks import persons
from handclip_lib.evaluate.protocol import similarities
from handclip_lib.evaluate.retrieval import rank_gallery
from handclip_lib.evaluate.statistics import person_bootstrap

KS = (1, 5, 10)
AT_K = ("precision", "recall", "f1", "ndcg")
_NORMAL = 1.959963984540054  # 97.5 % of the standard normal


def precision_recall_at(
    similarity: npt.ArrayLike,
    query_pids: npt.ArrayLike,
    gallery_pids: npt.ArrayLike,
    ks: Sequence[int] = KS,
) -> dict[str, npt.NDArray[np.float64]]:
    """Each query's `precision`, `recall`, `f1` and `ndcg` at every k: arrays (Q, K), 0–1.

    similarity: (Q, G), higher is closer, ties in the gallery's order; identities as in
    `retrieval_metrics`. Precision: matches among the first k over k (over the gallery where it is
    smaller); recall: over all matches that the gallery holds; f1: their harmonic mean, 0 where both
    are; ndcg: gain 1 of a match, discounted by log2(rank + 1), over that of the best order
    (Järvelin & Kekäläinen 2002). Raises ValueError on shapes that do not agree, NaN or infinity, a
    query without a match, and ks below 1.
    """
    sim, query, gallery = map(np.asarray, (similarity, query_pids, gallery_pids))
    if sim.shape != (len(query), len(gallery)) or not np.isfinite(sim).all():
        raise ValueError(
            f"need finite similarities ({len(query)}, {len(gallery)}), got {sim.shape}"
        )
    match = gallery[rank_gallery(sim)] == query[:, None]  # (Q, G), nearest first
    relevant = match.sum(axis=1)[:, None]  # (Q, 1)
    if not (relevant > 0).all():
        raise ValueError(f"query {int((relevant == 0).argmax())} has no match in the gallery")
    if min(ks) < 1:
        raise ValueError(f"ks count ranks from 1: {list(ks)}")
    last = np.minimum(ks, match.shape[1])  # (K,)
    hits = match.cumsum(axis=1)[:, last - 1]  # (Q, K)
    discount = 1 / np.log2(np.arange(match.shape[1]) + 2)  # rank 1 has log2(2)
    best = discount.cumsum()[np.minimum(relevant, last) - 1]
    return {
        "precision": hits / last,
        "recall": hits / relevant,
        "f1": 2 * hits / (last + relevant),
        "ndcg": (match * discount).cumsum(axis=1)[:, last - 1] / best,
    }


def at_ranks(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
    ks: Sequence[int] = KS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """`precision_recall_at` over the draws of a manifest: a row a k and measure.

    Arguments as in `protocol.evaluate`. Index (k, measure); columns `mean` over the queries of all
    draws, and `low`, `high`, its 95 % interval over persons. With one match a query recall at k is
    rank-k, and precision can't pass 1 / k.
    """
    values, who = [], []
    for _, query, entries, sim in similarities(features, images, manifest, gallery):
        found = precision_recall_at(sim, query["pid"], entries["pid"], ks)
        values.append(np.stack([found[name] for name in AT_K], axis=2))  # (Q, K, 4)
        who.append(query["pid"].to_numpy())
    scores = np.concatenate(values).reshape(-1, len(ks) * len(AT_K))
    low, high = person_bootstrap(scores, np.concatenate(who), bootstrap, seed, bounded=False)
    index = pd.MultiIndex.from_product([ks, AT_K], names=["k", "measure"])
    return pd.DataFrame({"mean": scores.mean(axis=0), "low": low, "high": high}, index)


def per_identity_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """How often each person is found first: a row a person, the hardest first.

    frame: `protocol.per_query`. Index `pid`; `rank1` (mean over the queries of all draws), `low`
    and `high` (95 % interval of Wilson 1927), `photographs`: how many different ones were asked
    for. A photograph that ten draws ask for counts once in the interval: draws are no new evidence.
    """
    groups = frame.groupby("pid")
    mean, n = groups["rank1"].mean(), groups["image"].nunique()
    low, high = wilson(mean, n)
    table = pd.DataFrame({"rank1": mean, "low": low, "high": high, "photographs": n})
    return table.sort_values(["rank1", "photographs"], ascending=[True, False], kind="stable")


def wilson(
    share: npt.ArrayLike, n: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """95 % interval (low, high) of a share of n independent trials. Wilson 1927, equation 5."""
    p, trials = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64)
    z2 = _NORMAL**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(p * (1 - p) * z2 / trials + z2**2 / (4 * trials**2)) / (1 + z2 / trials)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def confused(lists: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The n pairs of identities that are confused most: who was asked for, who was found instead.

    lists: rows of `protocol.ranking`, of one draw or several. Columns `pid`, `found` (the identity
    at rank 1), `same_person` (another hand of the same person), `count` (queries), `share` (of
    those asked for that person), `similarity` (their mean to what was found). The most frequent
    first, then the most alike.
    """
    first = lists[lists["rank"] == 1]
    asked = first.groupby("pid").size()
    wrong = first[~first["correct"]].rename(columns={"gallery_pid": "found"})
    told = wrong.groupby(["pid", "found"], as_index=False).agg(
        count=("similarity", "size"), similarity=("similarity", "mean")
    )
    told = told.assign(
        same_person=persons(told["found"]) == told["pid"],
        share=told["count"] / told["pid"].map(asked),
    )
    keys = ["count", "similarity", "pid", "found"]
    told = told.sort_values(keys, ascending=[False, False, True, True]).head(n)
    columns = ["pid", "found", "same_person", "count", "share", "similarity"]
    return told[columns].reset_index(drop=True)
