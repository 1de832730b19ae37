"""Scores of groups, as the data's metadata makes them, and what lies between them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.rates import (
    intervals,
    resampled,
    resampled_means,
    supported,
    upper_bound,
)
from handclip_lib.evaluate.retrieval import HEADLINE
from handclip_lib.evaluate.statistics import person_bootstrap

TRAITS = ("gender", "age", "skinColor", "nailPolish", "irregularities")
AGES = (21, 25, 40)  # a band begins at each; most persons of 11k Hands are from 20 to 23
OF_PHOTOGRAPHS = ("nailPolish", "irregularities")  # a person may have some with and some without
PERSONS = 5  # fewer make no group
_KINDS = {"fnmr": "genuine", "fmr": "impostor"}  # rate -> of which pairs
_FLAGS = {"0": "no", "1": "yes"}

Groups = Mapping[str, Mapping[str, str]]  # trait -> image -> group


def groups_of(
    table: pd.DataFrame,
    images: Sequence[str],
    traits: Sequence[str] = TRAITS,
    ages: Sequence[int] = AGES,
) -> dict[str, dict[str, str]]:
    """{trait: {image: group}} of the images named.

    table: the data set's; a trait without a column, or of one value, is left out. Polish and
    irregularities are a photograph's own (`OF_PHOTOGRAPHS`). By other traits a person is in one
    group whatever their photographs say: that of most of the images named, of the first name where
    two are as many. 0 and 1 are told as no and yes; ages in bands that begin at `ages`. Groups are
    in order. What has no value of a trait is in none of its groups.
    """
    rows = table[table["image"].isin(set(images))].drop_duplicates("image")
    found = {}
    for trait in (t for t in traits if t in rows):
        values = _banded(rows[trait], ages) if trait == "age" else _words(rows[trait])
        told = rows[["image", "pid"]].assign(group=values).dropna()
        if trait not in OF_PHOTOGRAPHS:
            count = told.groupby(["pid", "group"], observed=True).size().reset_index(name="n")
            most = count.sort_values(["n", "group"], ascending=[False, True]).drop_duplicates("pid")
            told = rows[["image", "pid"]].merge(most, on="pid")
        if told["group"].nunique() > 1:
            told = told.sort_values(["group", "image"])
            found[trait] = dict(zip(told["image"], told["group"].astype(str), strict=True))
    return found


def sliced(
    frame: pd.DataFrame,
    groups: Groups,
    minimum: int = PERSONS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Rank-1 and mAP of every group, plain values 0–1: {trait: {"groups": …, "between": …}}.

    frame: `protocol.per_query`, a query in the group of its image; groups: `groups_of`. `groups`:
    {group: {"persons", "queries", "rank1", "map"}}, a metric `mean` over queries with `ci95` over
    persons, or None in a group of fewer persons than `minimum` (at least 2). `between`: {metric:
    {"best", "worst", "difference", "ci95"}} of the groups with a number, None where fewer than two
    have one: best less worst, persons resampled within each group, or over both where somebody has
    photographs in both. Which two they are was seen in these data, so that of many groups chance
    alone makes a difference: it is no test.
    """
    found = {}
    for trait, of in groups.items():
        rows = {g: frame[frame["image"].map(of) == g] for g in dict.fromkeys(of.values())}
        scores = {g: _score(part, minimum, bootstrap, seed) for g, part in rows.items()}
        between = {}
        for metric, column in HEADLINE.items():
            known = [g for g, score in scores.items() if score[metric] is not None]
            between[metric] = _between({g: _of(rows[g], column) for g in known}, bootstrap, seed)
        found[trait] = {"groups": scores, "between": between}
    return found


def group_errors(
    pairs: pd.DataFrame,
    groups: Groups,
    threshold: npt.ArrayLike,
    minimum: int = PERSONS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """False match and non-match rates of every group: {trait: {"groups": …, "between": …}}.

    pairs: `evaluate.pairs.pairs_of`; threshold: learned on other persons, one, or (n,) of each
    pair; at or above it a pair passes for one hand. A genuine pair is in the group of its query; of
    an impostor pair both sides are, as an impostor would choose who to pass for. `groups`: {group:
    {"persons" asked for, "n_genuine", "n_impostor" pairs, "fnmr", "fmr" (0–1), "fnmr_upper",
    "fmr_upper", "ci95" of both}}. A rate is None where its pairs are fewer than 30, of which no 30
    errors can be expected (the rule of 30), or show fewer than `minimum` persons; upper bounds as
    in `verification.operating_point`; intervals resample persons on both sides, the threshold
    staying as it is. `between`: {rate: {"best", "worst", "difference", "ci95"}} as in `sliced`, but
    worst less best.
    """
    wrong = ((pairs["similarity"] >= np.asarray(threshold)) != pairs["genuine"]).to_numpy()
    found: dict[str, Any] = {}
    for trait, of in groups.items():
        names = dict.fromkeys(of.values())
        cases = {name: _cases(pairs, wrong, of, name) for name in names}
        rates = {name: _rates(of_kind, minimum, bootstrap, seed) for name, of_kind in cases.items()}
        between = {
            rate: _between(
                {g: cases[g][rate] for g in names if rates[g][rate] is not None},
                bootstrap,
                seed,
                errors=True,
            )
            for rate in _KINDS
        }
        found[trait] = {"groups": rates, "between": between}
    return found


class _Cases(NamedTuple):
    """Scores or errors (n,), and whose they are: both persons of a pair, one twice of a query."""

    values: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]

    @property
    def persons(self) -> npt.NDArray[np.int64]:
        """Who they are, each once, ascending."""
        return np.union1d(self.first, self.second)


def _of(part: pd.DataFrame, column: str) -> _Cases:
    """A group's scores of queries."""
    who = part["pid"].to_numpy()
    return _Cases(part[column].to_numpy(dtype=float), who, who)


def _cases(
    pairs: pd.DataFrame, wrong: npt.NDArray[np.bool_], of: Mapping[str, str], group: str
) -> dict[str, _Cases]:
    """Errors of a group's genuine pairs, and of its impostor pairs, by the names of their rates."""
    sides = [pairs[side].to_numpy() for side in ("query_person", "gallery_person")]
    asked, met = ((pairs[side].map(of) == group).to_numpy() for side in ("query", "gallery"))
    genuine, errors = pairs["genuine"].to_numpy(), wrong.astype(float)
    kinds = {"fnmr": asked & genuine, "fmr": asked & met & ~genuine}
    return {rate: _Cases(errors[at], sides[0][at], sides[1][at]) for rate, at in kinds.items()}


def _rates(cases: Mapping[str, _Cases], minimum: int, bootstrap: int, seed: int) -> dict[str, Any]:
    """Error rates of one group, with their counts and intervals."""
    asked = np.union1d(*(of_kind.first for of_kind in cases.values()))
    rates: dict[str, Any] = {"persons": len(asked), "ci95": {}}
    for rate, kind in _KINDS.items():
        found, n = cases[rate], len(cases[rate].values)
        enough = len(found.persons) >= max(2, minimum) and supported(1.0, n)
        mean = float(found.values.mean()) if enough else None
        upper = None if mean is None else upper_bound(mean, n)
        rates |= {f"n_{kind}": n, rate: mean, f"{rate}_upper": upper}
        rates["ci95"][rate] = _interval(found, bootstrap, seed) if enough else None
    return rates


def _banded(values: pd.Series, ages: Sequence[int]) -> pd.Series:
    """Bands of ages in words that sort as the ages do; what is no number is missing."""
    years = pd.to_numeric(values, errors="coerce")
    edges = [-np.inf, *sorted(ages), np.inf]
    names = [f"below {edges[1]}"]
    names += [f"{low} to {high - 1}" for low, high in zip(edges[1:-2], edges[2:-1], strict=True)]
    names.append(f"from {edges[-2]}")
    return pd.cut(years, edges, right=False, labels=names)


def _words(values: pd.Series) -> pd.Series:
    texts = values.astype("string").str.strip()
    flags = bool(texts.dropna().isin(list(_FLAGS)).all())
    return texts.map(_FLAGS) if flags else texts.mask(texts == "")


def _score(part: pd.DataFrame, minimum: int, bootstrap: int, seed: int) -> dict[str, Any]:
    """Counts and scores of one group's queries; the scores None where persons are too few."""
    persons = part["pid"].nunique()
    score: dict[str, Any] = {"persons": persons, "queries": len(part)}
    if persons < max(2, minimum):
        return score | dict.fromkeys(HEADLINE)
    columns = part[list(HEADLINE.values())]
    low, high = person_bootstrap(columns, part["pid"], bootstrap, seed)
    means = columns.mean().to_numpy()
    for i, metric in enumerate(HEADLINE):
        score[metric] = {"mean": float(means[i]), "ci95": [float(low[i]), float(high[i])]}
    return score


def _between(
    cases: Mapping[str, _Cases], bootstrap: int, seed: int, errors: bool = False
) -> dict[str, Any] | None:
    """How far two groups lie apart, with its interval; of equals the first group in order."""
    if len(cases) < 2:
        return None
    means = {group: float(found.values.mean()) for group, found in cases.items()}
    high = max(means, key=lambda g: means[g])
    low = min((g for g in means if g != high), key=lambda g: means[g])
    both = [cases[high], cases[low]]
    names, seeds = [of.persons for of in both], [(seed, 0), (seed, 1)]
    fewest = min(map(len, names))
    if np.intersect1d(names[0], names[1]).size:  # who is in both is drawn for both
        names, seeds = [np.union1d(names[0], names[1])] * 2, seeds[:1] * 2
    drawn = zip(both, names, seeds, strict=True)
    first, second = (_drawn(of, who, bootstrap, at) for of, who, at in drawn)
    span = _span(first - second, fewest)
    best, worst = (low, high) if errors else (high, low)
    return {"best": best, "worst": worst, "difference": means[high] - means[low], "ci95": span}


def _interval(of: _Cases, bootstrap: int, seed: int) -> list[float]:
    """[low, high] of the mean, persons being resampled."""
    return _span(_drawn(of, of.persons, bootstrap, seed), len(of.persons))


def _drawn(
    of: _Cases, names: npt.NDArray[np.int64], samples: int, seed: int | tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Means (B,) when the persons named, ascending, are resampled; NaN where none has a case."""
    times = np.array(list(resampled(len(names), samples, seed)))
    sides = (np.searchsorted(names, side) for side in (of.first, of.second))
    return resampled_means(times, of.values, *sides)


def _span(draws: npt.NDArray[np.float64], persons: int) -> list[float]:
    """The 95 % interval [low, high] of draws, those without a case left out."""
    return intervals(draws[np.isfinite(draws), None].tolist(), persons)[0]
