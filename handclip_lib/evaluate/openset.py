"""Open-set identification: what happens when the person asked for may not be in the gallery."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.protocol import GALLERIES, similarities
from handclip_lib.evaluate.rates import (
    Ladder,
    at_levels,
    error_rates,
    first_at,
    intervals,
    ladder,
    merged,
    resampled,
    supported,
    tally,
)
from handclip_lib.evaluate.statistics import without_error

LEVELS = {"1e-1": 1e-1, "1e-2": 1e-2}  # false positive identification rates reported


def leave_out(manifest: pd.DataFrame, share: float = 0.3, split_seed: int = 0) -> pd.DataFrame:
    """The manifest without a share of the identities asked for in each draw's galleries.

    Their queries stay, and become searches without a mate. In a draw the round(share · n) of its n
    identities asked for whose sha256 of `{split_seed}|{aspect}|open|run{draw}|{pid}` comes first
    are left out of gallery and gallery_all, so that the choice is the same on every machine and
    changes from draw to draw; at least one is left out and one stays. Another hand of the person
    stays in gallery_all: it is another identity. attrs: those of the manifest.

    Raises ValueError where share is not in 0–1 and where a draw asks for fewer than two.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must lie between 0 and 1")
    asked = manifest[manifest["split"] == "query"].drop_duplicates(["draw", "pid"])
    if asked.empty:
        raise ValueError("the manifest has no query rows: nobody can be left out")
    absent = []
    for draw, part in asked.groupby("draw"):
        aspects = dict(zip(part["pid"].tolist(), part["aspect"], strict=True))
        keys = {p: f"{split_seed}|{aspect}|open|run{draw}|{p}" for p, aspect in aspects.items()}
        if len(keys) < 2:
            raise ValueError(f"draw {draw} asks for one identity: it can't be left out and stay")
        ranked = sorted(keys, key=lambda p: hashlib.sha256(keys[p].encode()).hexdigest())
        number = min(max(round(share * len(ranked)), 1), len(ranked) - 1)
        absent += [(draw, pid) for pid in ranked[:number]]
    places = pd.MultiIndex.from_frame(manifest[["draw", "pid"]])
    gone = manifest["split"].isin(list(GALLERIES.values())) & places.isin(absent)
    return manifest[~gone].reset_index(drop=True)


def searches(
    features: npt.NDArray[np.floating],
    images: Sequence[str],
    manifest: pd.DataFrame,
    gallery: str = "own",
) -> pd.DataFrame:
    """One row for each query of each draw of a manifest that `leave_out` made.

    Columns `draw, image, pid`, `mated` (is its identity in the gallery?), `similarity` (the highest
    in the gallery), `found` (whose that is; the earlier entry among equals) and `correct`.
    Arguments as in `protocol.evaluate`; gallery: `own` or `all`.
    """
    parts = []
    for draw, query, entries, sim in similarities(features, images, manifest, gallery):
        best = sim.argmax(axis=1)  # (Q,)
        found = entries["pid"].to_numpy()[best]
        told = {
            "draw": draw,
            "mated": query["pid"].isin(entries["pid"]),
            "similarity": sim.max(axis=1),
            "found": found,
            "correct": query["pid"].to_numpy() == found,
        }
        parts.append(query[["image", "pid"]].assign(**told))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["draw", *(c for c in frame.columns if c != "draw")]]


def open_set_metrics(found: pd.DataFrame) -> dict[str, Any]:
    """Open-set errors of `searches`, all draws together, 0–1.

    At threshold t, FPIR is the share of searches without a mate that return anybody (a similarity
    of t or more), FNIR the share of searches with one whose mate is not at rank 1 or is below t;
    DIR = 1 - FNIR.

    * `dir_at_fpir`: {"1e-1", "1e-2": DIR at the lowest threshold whose FPIR is that at most}; None
      where fewer than 30 / FPIR photographs are searched without a mate (the rule of 30);
    * `rank1`: share of mated searches with the mate at rank 1, whatever its similarity;
    * `n_mated, n_non_mated`: photographs that are searched with a mate, and without: one that is
      searched in several draws is one trial, though each of its searches counts in the rates;
    * `thresholds, fpir, fnir`: (T + 1,), thresholds ascending.

    ISO/IEC 19795-1; Grother, Ngan & Hanaoka 2019 (NISTIR 8271). Raises ValueError where all
    searches or none have a mate.
    """
    at = _ladder(found)
    fpir, fnir = error_rates(*tally(at))
    n_mated, n_non_mated = _photographs(found, at.genuine), _photographs(found, ~at.genuine)
    shown = np.isfinite(at.thresholds) | (at.thresholds > 0)  # -inf is no threshold
    return {
        "dir_at_fpir": at_levels(fpir, 1 - fnir, LEVELS, n_non_mated),
        "rank1": float(found.loc[found["mated"], "correct"].mean()),
        "n_mated": n_mated,
        "n_non_mated": n_non_mated,
        "thresholds": at.thresholds[shown],
        "fpir": fpir[shown],
        "fnir": fnir[shown],
    }


def open_set_intervals(found: pd.DataFrame, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of `rank1` and `dir_at_fpir`, [low, high]: expanded percentiles over persons.

    found: `searches`. Persons asked for come with their searches of all draws, mated or not; the
    galleries stay as they are. Samples without a search of either kind are left out. `persons`: how
    many. Raises ValueError as `open_set_metrics` does and with fewer than two persons.
    """
    at = merged(_ladder(found))
    names, who = np.unique(found["pid"], return_inverse=True)
    known = [n for n in LEVELS if supported(LEVELS[n], _photographs(found, ~at.genuine))]
    wrong = at.genuine & ~found["correct"].to_numpy(dtype=bool)

    def rates(times: npt.NDArray[np.float64]) -> list[float]:
        weights = times[who]
        genuine, impostor = tally(at, weights)
        if not (genuine.any() and impostor.any()):
            return []
        fpir, fnir = error_rates(genuine, impostor)
        of_level = [float(1 - fnir[first_at(fpir, LEVELS[name])]) for name in known]
        return [float(1 - weights[wrong].sum() / genuine.sum()), *of_level]

    drawn = [got for times in resampled(len(names), samples, seed) if (got := rates(times))]
    mated = found.loc[found["mated"], "pid"].nunique()
    spans = np.transpose(intervals(drawn, len(names)))
    ends = without_error(rates(np.ones(len(names))), mated, *spans)
    rank1, *rest = np.transpose(ends).tolist()
    of_level = dict(zip(known, rest, strict=True))
    rates_at = {name: of_level.get(name) for name in LEVELS}
    return {"rank1": rank1, "dir_at_fpir": rates_at, "persons": len(names)}


def _photographs(found: pd.DataFrame, which: npt.NDArray[np.bool_]) -> int:
    """How many photographs these searches are of."""
    return int(found.loc[which, "image"].nunique())


def _ladder(found: pd.DataFrame) -> Ladder:
    """Searches by similarity, mated ones genuine; a mate not at rank 1 is never accepted."""
    mated = found["mated"].to_numpy(dtype=bool)
    if mated.all() or not mated.any():
        raise ValueError("searches with and without a mate are needed: see leave_out")
    right = found["correct"].to_numpy(dtype=bool)
    return ladder(np.where(mated & ~right, -np.inf, found["similarity"]), mated)
