"""Scores of groups of persons, as the data's metadata makes them, and what lies between them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.rates import supported, upper_bound
from handclip_lib.evaluate.statistics import percentiles, person_bootstrap

TRAITS = ("gender", "age", "skinColor", "nailPolish", "irregularities")
METRICS = {"rank1": "rank1", "map": "ap"}  # metric -> column of `protocol.per_query`
AGES = (21, 25, 40)  # a band begins at each; most persons of 11k Hands are from 20 to 23
PERSONS = 5  # fewer make no group
_FLAGS = {"0": "no", "1": "yes"}

Groups = Mapping[str, Mapping[int, str]]  # trait -> person -> group


def groups_of(
    table: pd.DataFrame,
    images: Sequence[str],
    traits: Sequence[str] = TRAITS,
    ages: Sequence[int] = AGES,
) -> dict[str, dict[int, str]]:
    """{trait: {person: group}} of the persons whom the images show.

    table: the data set's; a trait without a column, or of one value, is left out. A person is in
    one group whatever their photographs say: that of most of the images named, of the first name
    where two are as many. 0 and 1 are told as no and yes; ages in bands that begin at `ages`.
    Groups are in order. Who has no value of a trait is in none of its groups.
    """
    rows = table[table["image"].isin(set(images))].drop_duplicates("image")
    found = {}
    for trait in (t for t in traits if t in rows):
        values = _banded(rows[trait], ages) if trait == "age" else _words(rows[trait])
        told = pd.DataFrame({"pid": rows["pid"], "group": values}).dropna()
        count = told.groupby(["pid", "group"], observed=True).size().reset_index(name="n")
        most = count.sort_values(["n", "group"], ascending=[False, True]).drop_duplicates("pid")
        if most["group"].nunique() > 1:
            pairs = most.sort_values(["group", "pid"])
            who = [int(pid) for pid in pairs["pid"]]
            found[trait] = dict(zip(who, pairs["group"].astype(str), strict=True))
    return found


def sliced(
    frame: pd.DataFrame,
    groups: Groups,
    minimum: int = PERSONS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Rank-1 and mAP of every group, plain values 0–1: {trait: {"groups": …, "between": …}}.

    frame: `protocol.per_query`, whose queries belong to the group of the person they show; groups:
    `groups_of`. `groups`: {group: {"persons", "queries", "rank1", "map"}}, a metric `mean` over
    queries with `ci95` over persons, or None in a group of fewer persons than `minimum` (at least
    2). `between`: {metric: {"best", "worst", "difference", "ci95"}} of the groups with a number,
    None where fewer than two have one: best less worst, persons resampled within each group. Which
    two they are was seen in these data, so that of many groups chance alone makes a difference: it
    is no test.
    """
    found = {}
    for trait, of in groups.items():
        rows = {g: frame[frame["pid"].map(of) == g] for g in dict.fromkeys(of.values())}
        scores = {g: _score(part, minimum, bootstrap, seed) for g, part in rows.items()}
        between = {m: _between(rows, scores, m, bootstrap, seed) for m in METRICS}
        found[trait] = {"groups": scores, "between": between}
    return found


def group_errors(
    pairs: pd.DataFrame, groups: Groups, threshold: npt.ArrayLike, minimum: int = PERSONS
) -> dict[str, dict[str, dict[str, Any]]]:
    """False match and non-match rates of every group at a threshold: {trait: {group: rates}}.

    pairs: `evaluate.pairs.pairs_of`; threshold: learned on other persons, one, or (n,) of each
    pair; at or above it a pair passes for one hand. Both persons of a pair are of the group, as an
    impostor would choose who to pass for. Rates: `persons` asked for, `n_genuine`, `n_impostor`
    pairs, `fnmr` and `fmr` (0–1); a rate is None where its pairs are fewer than 30, of which no 30
    errors can be expected (the rule of 30), or show fewer than `minimum` persons. `fnmr_upper, fmr_upper`: 3 / n where none of n
    pairs failed, else None, as in `verification.operating_point`.
    """
    wrong = (pairs["similarity"] >= np.asarray(threshold)) != pairs["genuine"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for trait, of in groups.items():
        asked, met = (pairs[side].map(of) for side in ("query_person", "gallery_person"))
        inside = {g: (asked == g) & (met == g) for g in dict.fromkeys(of.values())}
        found[trait] = {g: _rates(pairs[at], wrong[at], minimum) for g, at in inside.items()}
    return found


def _rates(pairs: pd.DataFrame, wrong: pd.Series, minimum: int) -> dict[str, Any]:
    """Error rates of one group's pairs, with their counts."""
    rates: dict[str, Any] = {"persons": pairs["query_person"].nunique()}
    kinds = (("genuine", "fnmr", pairs["genuine"]), ("impostor", "fmr", ~pairs["genuine"]))
    for kind, name, chosen in kinds:
        errors, of_kind = wrong[chosen], pairs[chosen]
        people = {*of_kind["query_person"], *of_kind["gallery_person"]}
        enough = len(people) >= minimum and supported(1.0, len(errors))
        rate = float(errors.mean()) if enough else None
        upper = None if rate is None else upper_bound(rate, len(errors))
        rates |= {f"n_{kind}": len(errors), name: rate, f"{name}_upper": upper}
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
        return score | dict.fromkeys(METRICS)
    columns = part[list(METRICS.values())]
    low, high = person_bootstrap(columns, part["pid"], bootstrap, seed)
    means = columns.mean().to_numpy()
    for i, metric in enumerate(METRICS):
        score[metric] = {"mean": float(means[i]), "ci95": [float(low[i]), float(high[i])]}
    return score


def _between(
    rows: Mapping[str, pd.DataFrame],
    scores: Mapping[str, Mapping[str, Any]],
    metric: str,
    bootstrap: int,
    seed: int,
) -> dict[str, Any] | None:
    """Best group less worst, with its interval; of equals the first group in order."""
    means = {group: s[metric]["mean"] for group, s in scores.items() if s[metric] is not None}
    if len(means) < 2:
        return None
    best = max(means, key=lambda g: means[g])
    worst = min((g for g in means if g != best), key=lambda g: means[g])
    column = METRICS[metric]
    draws = [
        _resampled(rows[group][column], rows[group]["pid"], bootstrap, (seed, side))
        for side, group in enumerate((best, worst))
    ]
    fewest = min(scores[group]["persons"] for group in (best, worst))
    low, high = np.quantile(draws[0] - draws[1], percentiles(fewest))
    return {
        "best": best,
        "worst": worst,
        "difference": means[best] - means[worst],
        "ci95": [float(low), float(high)],
    }


def _resampled(
    values: pd.Series, persons: pd.Series, samples: int, seed: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Means (B,) of queries of resampled persons, who bring all of theirs."""
    code = np.unique(persons, return_inverse=True)[1]
    sums, count = np.bincount(code, values), np.bincount(code)
    size = len(count)
    times = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), samples)
    means: npt.NDArray[np.float64] = (times @ sums) / (times @ count)
    return means
