"""Scores as evidence: calibrated likelihood ratios, what they cost, and folds by person.

A likelihood ratio says how much more often such a score comes from two photographs of one hand than
from two hands. Here it is log10, so that +2 is a hundred times more often, and 0 says nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from handclip_lib.evaluate.pairs import folded
from handclip_lib.evaluate.rates import Floats, ladder

MIN_PERSONS = 5  # with genuine pairs; fewer say nothing about other persons
_PRIOR = 10.0  # how far from 0 the slope is expected, per standard deviation of the scores
_LN10 = float(np.log(10))


class TooFewPersons(ValueError):
    """Not enough persons to calibrate with; the message says how many there are."""


@dataclass(frozen=True)
class Calibration:
    """From score to log10 likelihood ratio, and the population that it holds for.

    llr = slope · score + offset; low, high: the bounds that no llr passes; population: what it was
    made of, in words; persons: with genuine pairs; genuine, impostor: pairs.
    """

    slope: float
    offset: float
    population: str
    persons: int
    genuine: int
    impostor: int
    low: float
    high: float


def fit_logistic(
    scores: npt.ArrayLike, is_genuine: npt.ArrayLike, query_persons: npt.ArrayLike, population: str
) -> Calibration:
    """Logistic calibration of pairs (n,): both kinds count alike, whatever their numbers.

    So the prior odds are even, and the log odds are the llr (Brümmer & du Preez 2006).
    A normal prior on the slope (of 10 per standard deviation of the scores), against as many pairs
    as the rarer kind has, keeps it finite where kinds do not overlap. Llrs stay between minus log10
    of (genuine pairs + 1) and log10 of (impostor pairs + 1): more has not been seen, and as pairs
    share persons, even that is generous. query_persons: whose pairs they are; population: what they
    were made of, in words. Raises TooFewPersons where fewer than MIN_PERSONS have genuine pairs,
    ValueError as `verification_metrics` does and where all scores are equal.
    """
    values, genuine, told = _described(scores, is_genuine, query_persons, population)
    centre, spread = values.mean(), values.std()
    if spread == 0:
        raise ValueError("all scores are equal: nothing can be calibrated")
    pull = _PRIOR**2 * min(told["genuine"], told["impostor"])
    model = LogisticRegression(C=pull, solver="newton-cholesky", tol=1e-10)
    model.fit(((values - centre) / spread)[:, None], genuine, sample_weight=_even(genuine))
    slope = float(model.coef_[0, 0]) / spread / _LN10
    offset = float(model.intercept_[0]) / _LN10 - slope * centre
    return Calibration(slope=float(slope), offset=float(offset), **told)


def apply(calibration: Calibration, scores: npt.ArrayLike) -> Floats:
    """log10 likelihood ratios of scores (any shape), within the calibration's bounds."""
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("scores hold NaN")
    llr = calibration.slope * values + calibration.offset
    return np.clip(llr, calibration.low, calibration.high)


def cllr(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> float:
    """Cost of log10 likelihood ratios of genuine (n,) and impostor (m,) pairs, in bits.

    0 is certainty, and right; 1 is what ratios of 1 cost, which say nothing; misleading ones cost
    more. Brümmer & du Preez 2006. Raises ValueError on NaN and where a kind is missing.
    """
    same, other = _checked(genuine), _checked(impostor)
    costs = np.logaddexp(0, -_LN10 * same).mean() + np.logaddexp(0, _LN10 * other).mean()
    return float(costs / (2 * np.log(2)))


def cllr_min(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> float:
    """The least cost, in bits, that any rising map of these scores or llrs could have.

    By pool adjacent violators; `cllr` less this is the calibration loss. It knows the answers: a
    bound, not a forecast. Brümmer & du Preez 2006.
    """
    same, other = _checked(genuine), _checked(impostor)
    values, is_genuine = np.append(same, other), np.repeat([True, False], [same.size, other.size])
    model = IsotonicRegression()
    odds = model.fit_transform(values, is_genuine, sample_weight=_even(is_genuine))
    with np.errstate(divide="ignore"):  # 0 and 1 are certainty, and right
        llr = np.log10(odds) - np.log10(1 - odds)
    return cllr(llr[is_genuine], llr[~is_genuine])


def tippett(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> dict[str, Any]:
    """Tippett curves of log10 likelihood ratios, and how much evidence misleads.

    `llr` (T,) ascending; `genuine, impostor` (T,): share of pairs whose llr is that or more;
    `misleading_genuine`: share of genuine pairs with llr < 0; `misleading_impostor`: of impostor
    pairs with llr > 0. Meuwly 2001.
    """
    same, other = np.sort(_checked(genuine)), np.sort(_checked(impostor))
    llr = np.unique(np.append(same, other))
    return {
        "llr": llr,
        "genuine": 1 - np.searchsorted(same, llr) / len(same),
        "impostor": 1 - np.searchsorted(other, llr) / len(other),
        "misleading_genuine": float((same < 0).mean()),
        "misleading_impostor": float((other > 0).mean()),
    }


def cross_fit(
    pairs: pd.DataFrame, population: str, folds: int = 5, seed: int = 0
) -> tuple[Floats, list[Calibration]]:
    """log10 likelihood ratios (n,) of pairs, each by a calibration that knows neither person.

    pairs: `pairs.pairs_of`; folds, seed: of persons, as `pairs.folded` deals them. Returns the
    ratios and the calibrations, each with the number of its persons. Raises TooFewPersons where
    MIN_PERSONS are not left to fit on, and ValueError on fewer than three folds.
    """
    scores, genuine = pairs["similarity"].to_numpy(), pairs["genuine"].to_numpy()
    persons, llr, made = pairs["query_person"].to_numpy(), np.full(len(pairs), np.nan), []
    for mine, known in folded(pairs, folds, seed):
        made.append(fit_logistic(scores[known], genuine[known], persons[known], population))
        llr[mine] = apply(made[-1], scores[mine])
    return llr, made


def evidence(
    pairs: pd.DataFrame, population: str, folds: int = 5
) -> tuple[dict[str, Any], Floats | None]:
    """What pairs are worth as evidence: plain values, for metrics.json, and their log10 ratios.

    The ratios (n,) are those of `cross_fit`, None where they are withheld. The values:
    `cllr, cllr_min, loss` (their difference), in bits; `misleading_genuine, misleading_impostor`
    (0–1); `strongest`: the bound [low, high] of the log10 ratios; `population, persons, fitted_on`
    (the fewest persons of a calibration), `n_genuine, n_impostor`; `withheld`: "" or, where there
    are too few persons, why all measures are None.
    """
    genuine = pairs["genuine"].to_numpy()
    persons = int(pairs.loc[genuine, "query_person"].nunique())
    names = ("cllr", "cllr_min", "loss", "misleading_genuine", "misleading_impostor")
    measures: dict[str, Any] = dict.fromkeys((*names, "strongest", "fitted_on"))
    withheld, llr = "", None
    try:
        llr, made = cross_fit(pairs, population, folds)
    except TooFewPersons as error:
        withheld = str(error)
    else:
        same, other = llr[genuine], llr[~genuine]
        cost, least, shares = cllr(same, other), cllr_min(same, other), tippett(same, other)
        measures |= {"cllr": cost, "cllr_min": least, "loss": cost - least}
        measures |= {name: shares[name] for name in names[3:]}
        measures["strongest"] = [max(c.low for c in made), min(c.high for c in made)]
        measures["fitted_on"] = min(c.persons for c in made)
    counts = {"n_genuine": int(genuine.sum()), "n_impostor": int((~genuine).sum())}
    told = {"population": population, "persons": persons, **counts, "withheld": withheld}
    return measures | told, llr


def _described(
    scores: npt.ArrayLike, is_genuine: npt.ArrayLike, persons: npt.ArrayLike, population: str
) -> tuple[Floats, npt.NDArray[np.bool_], dict[str, Any]]:
    """Scores, labels, and the fields of a Calibration that tell of its population."""
    genuine, who = np.asarray(is_genuine), np.asarray(persons)
    if who.shape != genuine.shape:
        raise ValueError(f"one person for each score is needed: got {who.shape}, {genuine.shape}")
    known = len(np.unique(who[genuine.astype(bool)]))
    if known < MIN_PERSONS:
        raise TooFewPersons(
            f"{known} persons with genuine pairs to calibrate on; {MIN_PERSONS} are needed"
        )
    at = ladder(scores, genuine)
    values = at.thresholds[at.step]
    if not np.isfinite(values).all():
        raise ValueError("scores hold NaN or infinity")
    same, other = int(at.genuine.sum()), int((~at.genuine).sum())
    told = {"population": population, "persons": known, "genuine": same, "impostor": other}
    bounds = {"low": -float(np.log10(same + 1)), "high": float(np.log10(other + 1))}
    return values, at.genuine, told | bounds


def _even(genuine: npt.NDArray[np.bool_]) -> Floats:
    """Weights (n,) under which both kinds have one half."""
    return np.where(genuine, 0.5 / genuine.sum(), 0.5 / (~genuine).sum())


def _checked(llr: npt.ArrayLike) -> Floats:
    values = np.asarray(llr, dtype=np.float64)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ValueError("likelihood ratios of both kinds are needed, one-dimensional, without NaN")
    return values
