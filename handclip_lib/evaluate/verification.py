"""Verification: is this pair one hand or two? Error rates, thresholds, intervals over persons."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.pairs import folded
from handclip_lib.evaluate.rates import (
    Floats,
    Ladder,
    area,
    at_levels,
    equal_error,
    error_rates,
    first_at,
    intervals,
    ladder,
    merged,
    resampled,
    resampled_means,
    supported,
    tally,
    upper_bound,
)

LEVELS = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}  # false match rates reported


class TooFewPairs(ValueError):
    """Not enough impostor pairs to learn a threshold from; the message says how many there are."""


def verification_metrics(scores: npt.ArrayLike, is_genuine: npt.ArrayLike) -> dict[str, Any]:
    """Verification errors of pairs: scores (n,), higher is more alike; is_genuine (n,) bool.

    A pair is accepted where its score is at or above the threshold. Rates are 0–1:

    * `eer`: where FMR and FNMR cross, on the line between operating points; `auc`; `d_prime`:
      difference of means over the root of the mean variance (None where nothing varies);
    * `fnmr_at_fmr`: {"1e-1" … "1e-4": FNMR at the lowest threshold whose FMR is that at most}; None
      where fewer than 30 / FMR impostor pairs there are (the rule of 30), for then the threshold
      hangs on a handful of pairs;
    * `eer_upper`, `fnmr_upper` (by level): 3 / n where no pair failed, else None (the rule of 3);
    * `n_genuine, n_impostor`; `thresholds, fmr, fnmr`: (T + 1,) the curves, thresholds ascending.

    ISO/IEC 19795-1. Raises ValueError on NaN, shapes that do not agree, and one kind only.
    """
    at = _finite(scores, is_genuine)
    genuine, impostor = tally(at)
    fmr, fnmr = error_rates(genuine, impostor)
    n = {"n_genuine": int(genuine.sum()), "n_impostor": int(impostor.sum())}
    eer, missed = equal_error(fmr, fnmr), at_levels(fmr, fnmr, LEVELS, n["n_impostor"])
    return {
        "eer": eer,
        "auc": area(genuine, impostor),
        "d_prime": _d_prime(at.thresholds[:-1], genuine, impostor),
        "fnmr_at_fmr": missed,
        "eer_upper": upper_bound(eer, min(n.values())),
        "fnmr_upper": {
            level: None if rate is None else upper_bound(rate, n["n_genuine"])
            for level, rate in missed.items()
        },
        **n,
        "thresholds": at.thresholds,
        "fmr": fmr,
        "fnmr": fnmr,
    }


def person_intervals(
    scores: npt.ArrayLike,
    is_genuine: npt.ArrayLike,
    query_persons: npt.ArrayLike,
    gallery_persons: npt.ArrayLike,
    samples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """95 % intervals of `eer, auc, fnmr_at_fmr`, [low, high]: expanded percentiles over persons.

    Arguments (n,), a pair an entry; persons: whose photographs they are, another hand of a person
    being the same person. Persons are drawn with replacement, once for both sides: a pair of two
    persons counts as often as both were drawn, multiplied, a pair of one as often as that one. So
    neither a query's photographs nor a gallery entry that resembles everybody pass for independent
    evidence. A sample without genuine or impostor pairs is left out. An interval [0, 0] says that
    nothing failed, not that nothing can: see `fnmr_upper`. `persons`: how many have genuine pairs,
    for whose number `statistics.percentiles` allows; with fewer than some 20, read intervals as
    rough ones. Bolle et al. 2004; Owen 2007.

    Raises ValueError as `verification_metrics` does, and where fewer than two persons have
    genuine pairs.
    """
    at = merged(_finite(scores, is_genuine))
    query, gallery, persons = _coded(query_persons, gallery_persons, at)
    asked = len(np.unique(query[at.genuine]))
    known = [name for name in LEVELS if supported(LEVELS[name], int((~at.genuine).sum()))]
    second = np.where(query == gallery, persons, gallery)  # of one person there is no second one
    drawn = []
    for times in resampled(persons, samples, seed):
        genuine, impostor = tally(at, times[query] * np.append(times, 1.0)[second])
        if genuine.any() and impostor.any():
            fmr, fnmr = error_rates(genuine, impostor)
            rates = [float(fnmr[first_at(fmr, LEVELS[name])]) for name in known]
            drawn.append([equal_error(fmr, fnmr), area(genuine, impostor), *rates])
    eer, auc, *rest = intervals(drawn, asked)
    found = dict(zip(known, rest, strict=True))
    rates_at = {name: found.get(name) for name in LEVELS}
    return {"eer": eer, "auc": auc, "fnmr_at_fmr": rates_at, "persons": asked}


def threshold_at(scores: npt.ArrayLike, is_genuine: npt.ArrayLike, fmr: float) -> float:
    """The lowest threshold at which these pairs' false match rate is `fmr` at most.

    Learn it on pairs of `select` persons and hand it to `operating_point` with others' pairs: a
    threshold chosen on the pairs it is tried on promises too much. Raises TooFewPairs where fewer
    than 30 / fmr impostor pairs there are (the rule of 30), ValueError as `verification_metrics`
    does, where fmr is not in 0–1, and where so many of them tie at the highest score that no
    threshold serves.
    """
    if not 0 < fmr < 1:
        raise ValueError(f"fmr={fmr} must lie between 0 and 1")
    n = int((~np.asarray(is_genuine, dtype=bool)).sum())
    if not supported(fmr, n):
        raise TooFewPairs(
            f"a false match rate of {100 * fmr:g} % needs {round(30 / fmr):,} impostor pairs to"
            f" choose it on; there are {n:,}"
        )
    at = _finite(scores, is_genuine)
    chosen = float(at.thresholds[first_at(error_rates(*tally(at))[0], fmr)])
    if not np.isfinite(chosen):
        raise ValueError(f"no threshold has FMR {fmr:g} at most: too many pairs share one score")
    return chosen


def cross_thresholds(pairs: pd.DataFrame, fmr: float, folds: int = 5, seed: int = 0) -> Floats:
    """A threshold (n,) for each pair, learned as `threshold_at` does, but on other persons' pairs.

    For data of which nobody is held out. pairs: `pairs.pairs_of`; folds, seed: of persons, as
    `pairs.folded` deals them. Raises as `threshold_at` does on what is left of the pairs.
    """
    scores, genuine = pairs["similarity"].to_numpy(), pairs["genuine"].to_numpy()
    chosen = np.full(len(pairs), np.nan)
    for mine, known in folded(pairs, folds, seed):
        chosen[mine] = threshold_at(scores[known], genuine[known], fmr)
    return chosen


def operating_point(
    scores: npt.ArrayLike, is_genuine: npt.ArrayLike, threshold: npt.ArrayLike
) -> dict[str, Any]:
    """`fmr` and `fnmr` (0–1) of pairs under a threshold that was chosen on other persons.

    threshold: one, or (n,) of each pair. With `fmr_upper, fnmr_upper` (3 / n where no pair failed,
    else None), `n_genuine, n_impostor`, `threshold` (the median) and `threshold_span` (the lowest
    and the highest). A pair is accepted at or above it. Raises ValueError as `verification_metrics`
    does, and on a threshold that is NaN.
    """
    at, chosen = _finite(scores, is_genuine), np.asarray(threshold, dtype=np.float64)
    if np.isnan(chosen).any():
        raise ValueError("the threshold is NaN")
    accepted = at.thresholds[at.step] >= chosen
    n_genuine, n_impostor = int(at.genuine.sum()), int((~at.genuine).sum())
    fmr, fnmr = float(accepted[~at.genuine].mean()), float((~accepted[at.genuine]).mean())
    return {
        "threshold": float(np.median(chosen)),
        "threshold_span": [float(chosen.min()), float(chosen.max())],
        "fmr": fmr,
        "fnmr": fnmr,
        "fmr_upper": upper_bound(fmr, n_impostor),
        "fnmr_upper": upper_bound(fnmr, n_genuine),
        "n_genuine": n_genuine,
        "n_impostor": n_impostor,
    }


def operating_intervals(
    scores: npt.ArrayLike,
    is_genuine: npt.ArrayLike,
    threshold: npt.ArrayLike,
    query_persons: npt.ArrayLike,
    gallery_persons: npt.ArrayLike,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % intervals [low, high] of the `fmr` and `fnmr` of an `operating_point`.

    Persons are resampled on both sides, as in `person_intervals`, which says what is asked of
    arguments; the threshold stays, so that they say nothing of how well it was chosen.
    """
    at = _finite(scores, is_genuine)
    query, gallery, persons = _coded(query_persons, gallery_persons, at)
    wrong = ((at.thresholds[at.step] >= np.asarray(threshold)) != at.genuine).astype(np.float64)
    times, found = np.array(list(resampled(persons, samples, seed))), {}
    for name, kind in (("fmr", ~at.genuine), ("fnmr", at.genuine)):
        drawn = resampled_means(times, wrong[kind], query[kind], gallery[kind])
        asked = min(len(np.unique(side[kind])) for side in (query, gallery))
        (found[name],) = intervals(drawn[np.isfinite(drawn), None].tolist(), asked)
    return found


def _coded(
    query_persons: npt.ArrayLike, gallery_persons: npt.ArrayLike, at: Ladder
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int]:
    """Persons of both sides of pairs as numbers 0 … P - 1, and P; ValueError where they fail."""
    sides = np.asarray(query_persons), np.asarray(gallery_persons)
    if any(side.shape != at.step.shape for side in sides):
        shapes = " and ".join(str(side.shape) for side in sides)
        raise ValueError(f"one person a side and score: got {shapes} for {at.step.shape} scores")
    names, codes = np.unique(np.concatenate(sides), return_inverse=True)
    query, gallery = codes[: len(at.step)], codes[len(at.step) :]
    if (query != gallery)[at.genuine].any():
        raise ValueError("a genuine pair has two persons")
    asked = len(np.unique(query[at.genuine]))
    if asked < 2:
        raise ValueError(f"an interval over persons needs two with genuine pairs, got {asked}")
    return query, gallery, len(names)


def _finite(scores: npt.ArrayLike, is_genuine: npt.ArrayLike) -> Ladder:
    at = ladder(scores, is_genuine)
    if not np.isfinite(at.thresholds[0]):
        raise ValueError("scores hold NaN or infinity")
    return at


def _d_prime(scores: Floats, genuine: Floats, impostor: Floats) -> float | None:
    """Of distinct scores (T,) and how often each kind has them."""
    means = [np.average(scores, weights=w) for w in (genuine, impostor)]
    variances = [
        np.average((scores - m) ** 2, weights=w)
        for m, w in zip(means, (genuine, impostor), strict=True)
    ]
    spread = float(np.sqrt(np.mean(variances)))
    return float((means[0] - means[1]) / spread) if spread > 0 else None
