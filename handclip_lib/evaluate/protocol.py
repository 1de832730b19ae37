"""The retrieval protocol: every draw and gallery of a manifest, with intervals over persons."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.retrieval import METRICS, rank_gallery, retrieval_metrics
from handclip_lib.evaluate.statistics import person_bootstrap

# From unit rows (Q, D) and (G, D) of a draw to similarities (Q, G), higher is closer
Compare = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]
GALLERIES = {"own": "gallery", "all": "gallery_all"}  # name in tables -> split in manifests


def cosine(
    query: npt.NDArray[np.floating], gallery: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Cosine similarity (Q, G) of unit rows (Q, D) and (G, D), in float64 and to six decimals.

    Copies of a photograph that went through a tower in different batches differ by some 1e-8, and
    would be ranked by chance. Rounded, they tie and the tie rule decides, but for about one pair
    in a hundred that a rounding step parts.
    """
    return np.round(query.astype(np.float64) @ gallery.astype(np.float64).T, 6)


def evaluate(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    bootstrap: int = 2000,
    seed: int = 0,
    compare: Compare = cosine,
) -> dict[str, dict[str, object]]:
    """Scores of a manifest: `{"own": …, "all": …}`, ready for metrics.json.

    features: (N, D) unit rows that follow `images`; images not in the manifest are left alone.
    `own` ranks the aspect's own gallery, `all` the one with the other aspects' hands as distractors
    (only when the manifest has gallery_all rows). compare: how a draw's queries are held against
    its gallery, `evaluate.ways` has some. Each metric (`rank1, rank5, rank10, map,
    map_trapezoid, minp`, 0–1) holds `mean` over draws, `ci95` [low, high] and `per_draw`; beside
    them `queries` and `gallery` (entries of a draw; the largest where draws differ) and `persons`.
    The interval resamples persons with their queries of all draws together (`bootstrap` times):
    draws share persons, so that their spread says little about other persons.
    """
    splits = set(manifest["split"])
    scored = [name for name, split in GALLERIES.items() if name == "own" or split in splits]
    return {
        name: _summary(
            per_query(features, images, manifest, name, compare), manifest, name, bootstrap, seed
        )
        for name in scored
    }


def per_query(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
    compare: Compare = cosine,
) -> pd.DataFrame:
    """One row for each query of each draw: what means, intervals and paired tests are made of.

    Columns `draw, image, pid, rank` (1-based, of the first match) and `rank1, rank5, rank10, ap,
    ap_trapezoid, inp`. Arguments as in `evaluate`; gallery: `own` or `all`.
    """
    parts = []
    for draw, query, entries, sim in similarities(features, images, manifest, gallery, compare):
        scores = retrieval_metrics(sim, query["pid"], entries["pid"])["per_query"]
        parts.append(query[["image", "pid"]].assign(draw=draw, **scores))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["draw", *(c for c in frame.columns if c != "draw")]]


def ranking(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    draw: int,
    gallery: str = "own",
    top: int = 10,
) -> pd.DataFrame:
    """The first `top` gallery entries of every query of one draw, for pictures of ranked lists.

    Columns `query, pid, rank` (1-based), `gallery` (image), `gallery_pid, similarity, correct,
    rank_of_first_match`; a query's rows follow each other. Raises ValueError on an unknown draw,
    and as `retrieval_metrics`.
    """
    found = [part for part in _draws(manifest, gallery) if part[0] == draw]
    if not found:
        raise ValueError(f"the manifest has no queries of draw {draw}")
    _, query, entries = found[0]
    sim = _similarity(features, _index(features, images), query, entries)  # (Q, G)
    retrieval_metrics(sim, query["pid"], entries["pid"])  # refuses a query without a match
    return first_answers(query, entries, sim, top)


def first_answers(
    query: pd.DataFrame, entries: pd.DataFrame, sim: npt.NDArray[np.floating], top: int
) -> pd.DataFrame:
    """The first `top` entries of each query, with the columns of `ranking`.

    query, entries: columns `image, pid`; sim: (Q, G). `rank_of_first_match` is 0 without a match.
    """
    order = rank_gallery(sim)  # (Q, G)
    right = entries["pid"].to_numpy()[order] == query["pid"].to_numpy()[:, None]
    first = np.where(right.any(axis=1), right.argmax(axis=1) + 1, 0)
    order = order[:, :top]  # (Q, k)
    k, taken = order.shape[1], order.ravel()
    return pd.DataFrame(
        {
            "query": np.repeat(query["image"].to_numpy(), k),
            "pid": np.repeat(query["pid"].to_numpy(), k),
            "rank": np.tile(np.arange(1, k + 1), len(query)),
            "gallery": entries["image"].to_numpy()[taken],
            "gallery_pid": entries["pid"].to_numpy()[taken],
            "similarity": np.take_along_axis(sim, order, axis=1).ravel(),
            "rank_of_first_match": np.repeat(first, k),
            "correct": right[:, :top].ravel(),
        }
    )


def similarities(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
    compare: Compare = cosine,
) -> Iterator[tuple[int, pd.DataFrame, pd.DataFrame, npt.NDArray[np.float64]]]:
    """Draw by draw: its number, its query rows, its gallery rows, their similarities (Q, G).

    Arguments as in `evaluate`; gallery: `own` or `all`. Nothing is said of matches: a query may
    have none.
    """
    index = _index(features, images)
    for draw, query, entries in _draws(manifest, gallery):
        yield draw, query, entries, _similarity(features, index, query, entries, compare)


def within(
    features: npt.NDArray[np.floating], images: Sequence[str], rows: pd.DataFrame
) -> npt.NDArray[np.float64]:
    """Similarities (N, N) among the images of manifest rows. features, images: as in `evaluate`."""
    return _similarity(features, _index(features, images), rows, rows)


def pair_scores(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Similarities of all genuine (n,) and all impostor (m,) pairs of the first draw.

    A pair is a query and a gallery entry; under `all` the other hands of a person are impostors.
    """
    _, query, entries, sim = next(similarities(features, images, manifest, gallery))
    genuine = query["pid"].to_numpy()[:, None] == entries["pid"].to_numpy()
    return sim[genuine], sim[~genuine]


def best_and_worst(frame: pd.DataFrame, n: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The n best and the n worst rows of a `per_query` frame, each of n different persons.

    By AP, then rank; equals in the order of draw and image name, so that the choice is the same on
    every machine. Fewer than n rows where there are fewer persons.
    """

    def first(ascending: bool) -> pd.DataFrame:
        keys = ["ap", "rank", "draw", "image"]
        ranked = frame.sort_values(keys, ascending=[ascending, not ascending, True, True])
        return ranked.drop_duplicates("pid").head(n).reset_index(drop=True)

    return first(ascending=False), first(ascending=True)


def _index(features: npt.NDArray[np.floating], images: Sequence[str]) -> pd.Index:
    """Where each image's feature row is, after checking that rows are unit and one an image."""
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(f"features of shape {features.shape} do not follow {len(images)} images")
    off = np.flatnonzero(~(np.abs(np.linalg.norm(features, axis=1) - 1) < 1e-3))  # NaN too
    if off.size:
        raise ValueError(
            f"the feature of '{images[off[0]]}' is not of unit length "
            f"({off.size} of {len(images)}); make features with embed.retrieval_features"
        )
    index = pd.Index(images)
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise ValueError(f"image '{twice}' has more than one feature")
    return index


def _similarity(
    features: npt.NDArray[np.floating],
    index: pd.Index,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    compare: Compare = cosine,
) -> npt.NDArray[np.float64]:
    """Similarities (Q, G) of manifest rows; ValueError names an image without a feature."""
    wanted = pd.concat([query["image"], gallery["image"]])
    place = index.get_indexer(pd.Index(wanted))
    missing = wanted.to_numpy()[place < 0]
    if missing.size:
        raise ValueError(
            f"no feature of image '{missing[0]}' ({missing.size} of {len(wanted)} missing); "
            "embed every query and gallery image of the manifest"
        )
    return compare(features[place[: len(query)]], features[place[len(query) :]])


def _draws(manifest: pd.DataFrame, gallery: str) -> list[tuple[int, pd.DataFrame, pd.DataFrame]]:
    """(draw, query rows, gallery rows) of every draw, in order."""
    if gallery not in GALLERIES:
        raise ValueError(f"unknown gallery '{gallery}'; one of {', '.join(GALLERIES)}")
    queries = manifest[manifest["split"] == "query"]
    entries = manifest[manifest["split"] == GALLERIES[gallery]]
    draws = sorted(set(queries["draw"]))
    if not draws:
        raise ValueError("the manifest has no query rows: there is nothing to evaluate")
    missing = sorted(set(draws) - set(entries["draw"]))
    if missing:
        raise ValueError(
            f"draw {missing[0]} has queries but no {GALLERIES[gallery]} rows in the manifest"
        )
    return [(int(d), queries[queries["draw"] == d], entries[entries["draw"] == d]) for d in draws]


def _summary(
    frame: pd.DataFrame, manifest: pd.DataFrame, gallery: str, bootstrap: int, seed: int
) -> dict[str, object]:
    """Means of draws, intervals and counts of one gallery's `per_query` frame."""
    columns = list(METRICS.values())
    per_draw = frame.groupby("draw")[columns].mean()
    low, high = person_bootstrap(frame[columns], frame["pid"], bootstrap, seed)
    scores: dict[str, object] = {
        metric: {
            "mean": float(per_draw[column].mean()),
            "ci95": [float(low[i]), float(high[i])],
            "per_draw": [float(v) for v in per_draw[column]],
        }
        for i, (metric, column) in enumerate(METRICS.items())
    }
    entries = manifest.loc[manifest["split"] == GALLERIES[gallery], "draw"]
    counts = {
        "queries": int(frame["draw"].value_counts().max()),
        "gallery": int(entries[entries.isin(per_draw.index)].value_counts().max()),
        "persons": int(frame["pid"].nunique()),
    }
    return {**scores, **counts}
