"""Numbers beside the pictures of a feature space: how close, how spread, how many directions."""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import silhouette_score


def geometry(
    features: npt.NDArray[np.floating], persons: npt.ArrayLike, limit: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Six figures of a feature space with known persons.

    features: (N, D) unit rows; persons: (N,). Of more than `limit` rows a seeded sample is taken
    (pairs grow with N squared). Over pairs of different photographs:

    * `intra_cosine`, `inter_cosine`: mean similarity of one person's pairs, and of two persons';
    * `alignment`: mean squared distance of one person's pairs (0 is perfect), and `uniformity`: log
      of the mean of exp(-2 · squared distance) of all pairs (lower is more even). Wang & Isola
      2020, arXiv:2005.10242;
    * `silhouette`: -1 to 1, with cosine distance. Rousseeuw 1987;
    * `effective_rank`: exp of the entropy of the singular values, 1 to min(N, D). RankMe, Garrido
      et al. 2023, arXiv:2210.02885.

    Raises ValueError where there are no two persons or no person with two photographs.
    """
    z, who = _sample(features, persons, limit, seed)
    upper = np.triu_indices(len(z), k=1)
    cosine = (z @ z.T)[upper]  # every pair once
    same = (who[:, None] == who[None, :])[upper]
    if same.all() or not same.any():
        raise ValueError(
            "need two persons and a person with two photographs; got "
            f"{len(np.unique(who))} persons in {len(who)} photographs"
        )
    squared = 2 - 2 * cosine
    sigma = np.linalg.svd(z, compute_uv=False)
    share = sigma[sigma > 0] / sigma.sum()
    return {
        "intra_cosine": float(cosine[same].mean()),
        "inter_cosine": float(cosine[~same].mean()),
        "alignment": float(squared[same].mean()),
        "uniformity": float(np.log(np.exp(-2 * squared).mean())),
        "silhouette": float(silhouette_score(z, who, metric="cosine")),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
    }


def knn_accuracy(
    train_rows: npt.NDArray[np.floating],
    train_labels: npt.ArrayLike,
    rows: npt.NDArray[np.floating],
    labels: npt.ArrayLike,
    k: int = 5,
) -> float:
    """Share of rows, 0 to 1, whose k nearest training rows are mostly of their own label.

    train_rows (N, D), rows (M, D): unit rows, near by cosine; labels (N,) and (M,), whole numbers.
    Of labels with as many votes the one that has the nearest row counts; of fewer than k training
    rows all vote. Raises ValueError where there are no rows, or shapes do not agree.
    """
    known, mine = np.asarray(train_labels), np.asarray(labels)
    shapes = train_rows.shape[:1] == known.shape and rows.shape[:1] == mine.shape
    if not shapes or not len(known) or not len(mine) or k < 1:
        raise ValueError(
            f"k {k}: {train_rows.shape} rows with labels {known.shape} cannot answer for"
            f" {rows.shape} with labels {mine.shape}"
        )
    nearest = np.argsort(-(rows @ train_rows.T), axis=1, kind="stable")[:, :k]
    votes = known[nearest]  # (M, k), nearest first
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
    answers = votes[np.arange(len(votes)), counts.argmax(axis=1)]  # of equals the first
    return float((answers == mine).mean())


def _sample(
    features: npt.NDArray[np.floating], persons: npt.ArrayLike, limit: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.generic]]:
    """At most `limit` unit rows and their persons, after checking both."""
    z, who = np.asarray(features, dtype=np.float64), np.asarray(persons)
    if z.ndim != 2 or who.shape != z.shape[:1]:
        raise ValueError(f"features {z.shape} and persons {who.shape} do not agree")
    if not (np.abs(np.linalg.norm(z, axis=1) - 1) < 1e-3).all():
        raise ValueError("features must be unit rows; make them with embed.retrieval_features")
    if len(z) > limit:
        keep = np.sort(np.random.default_rng(seed).choice(len(z), limit, replace=False))
        z, who = z[keep], who[keep]
    return z, who
