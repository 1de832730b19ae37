"""Pairs of photographs with their similarity: what verification and evidence are made from."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.data.leaks import persons
from handclip_lib.evaluate.protocol import similarities, within

KINDS = ("same hand", "other hand of the person", "other person")


def pairs_of(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
    draws: int | None = None,
) -> pd.DataFrame:
    """Every query with every gallery entry of its draw, a row a pair.

    Arguments as in `protocol.evaluate`; gallery: `own` or `all`; draws: how many of the first ones,
    all by default (they share photographs: see `distinct`). Columns `draw`,
    `query, gallery` (images), `query_pid, gallery_pid`, `query_person, gallery_person` (another
    hand of a person is the same person), `similarity`, and `genuine`: whether the pids are equal.
    """
    found = islice(similarities(features, images, manifest, gallery), draws)
    parts = []
    for draw, query, entries, sim in found:
        asked = query.iloc[np.repeat(np.arange(len(query)), len(entries))]
        others = entries.iloc[np.tile(np.arange(len(entries)), len(query))]
        parts.append(_frame(draw, sim.ravel(), asked, others, images))
    return pd.concat(parts, ignore_index=True)


def select_pairs(
    features: npt.NDArray[np.floating], images: Sequence[str], manifest: pd.DataFrame
) -> pd.DataFrame:
    """Every two photographs of the `select` persons, once, as `pairs_of` gives pairs.

    These persons neither trained the encoder nor are tested: thresholds and calibrations may be
    learned from them. Raises ValueError where the manifest holds out no person.
    """
    rows = manifest[manifest["split"] == "select"]
    if rows.empty:
        raise ValueError("the manifest has no select rows: set split.select persons, or cross-fit")
    sim = within(features, images, rows)  # (N, N)
    first, second = np.triu_indices(len(rows), 1)
    return _frame(0, sim[first, second], rows.iloc[first], rows.iloc[second], images)


def distinct(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs without those whose two photographs, either way round, came before in another draw.

    Pairs of all draws hold many twice: what counts trials must not take those for two.
    """
    sides = np.stack([pairs[side].cat.codes.to_numpy(np.int64) for side in ("query", "gallery")])
    size = len(pairs["query"].cat.categories)
    both = pd.Series(sides.min(axis=0) * size + sides.max(axis=0))
    return pairs[~both.duplicated().to_numpy()].reset_index(drop=True)


def folded(
    pairs: pd.DataFrame, folds: int, seed: int = 0
) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Pairs (n,) in turn, and those of other persons, (n,), from which something may be learned.

    Persons are dealt to folds in the order of the sha256 of `{seed}|fold|{person}`. For every two
    folds, and each with itself: the pairs of a person of the one with a person of the other, and
    the pairs with both persons in the remaining folds. Raises ValueError on fewer than three folds.
    """
    if folds < 3:
        raise ValueError(f"folds={folds}: pairs of two folds need a third one to be fitted on")
    sides = pairs[["query_person", "gallery_person"]].to_numpy()
    fold_of = pd.Series(_dealt(np.unique(sides).tolist(), folds, seed))
    query, gallery = (fold_of.loc[side].to_numpy() for side in sides.T)
    for a, b in combinations_with_replacement(range(folds), 2):
        mine = ((query == a) & (gallery == b)) | ((query == b) & (gallery == a))
        if mine.any():
            yield mine, ~np.isin(query, (a, b)) & ~np.isin(gallery, (a, b))


def by_kind(pairs: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    """Similarities of pairs by kind, `KINDS`: same hand, other hand of the person, other person.

    A kind without pairs is not among them.
    """
    one = pairs["query_person"] == pairs["gallery_person"]
    masks = (pairs["genuine"], one & ~pairs["genuine"], ~one)
    found = zip(KINDS, masks, strict=True)
    return {kind: pairs.loc[mask, "similarity"].to_numpy() for kind, mask in found if mask.any()}


def _dealt(persons: list[Any], folds: int, seed: int) -> dict[Any, int]:
    """Each person's fold, folds differing by one person at most."""
    ranked = sorted(persons, key=lambda p: hashlib.sha256(f"{seed}|fold|{p}".encode()).hexdigest())
    return {person: place % folds for place, person in enumerate(ranked)}


def _frame(
    draw: int,
    sim: npt.NDArray[np.float64],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    images: Sequence[str],
) -> pd.DataFrame:
    """A row a pair, of similarities (n,) and the manifest rows (n) of both sides."""
    asked, found = query["pid"].to_numpy(), gallery["pid"].to_numpy()
    names = pd.CategoricalDtype(list(images))  # of millions of pairs, one table of names
    return pd.DataFrame(
        {
            "draw": draw,
            "query": query["image"].astype(names).array,
            "gallery": gallery["image"].astype(names).array,
            "query_pid": asked,
            "gallery_pid": found,
            "query_person": persons(query["pid"]).to_numpy(),
            "gallery_person": persons(gallery["pid"]).to_numpy(),
            "similarity": sim,
            "genuine": asked == found,
        }
    )
