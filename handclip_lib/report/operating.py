"""Thresholds from other persons than those they are tried on, and the errors that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.data.check import quantity
from handclip_lib.evaluate import slices
from handclip_lib.evaluate.pairs import select_pairs
from handclip_lib.evaluate.rates import supported
from handclip_lib.evaluate.verification import (
    TooFewPairs,
    cross_thresholds,
    operating_intervals,
    operating_point,
    threshold_at,
)
from handclip_lib.report.answers import Verified
from handclip_lib.report.lineup import Contender
from handclip_lib.report.spaces import Space
from handclip_lib.schema import Params


@dataclass(frozen=True)
class Chosen:
    """Thresholds for a false match rate. at: (n,) of each pair; origin: on whom, in words."""

    at: np.ndarray
    origin: str


def thresholds(
    models: Sequence[Contender],
    spaces: Mapping[str, Space],
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    found: Verified,
    p: Params,
) -> dict[str, Chosen]:
    """{model: thresholds of its pairs for `comparison.fmr`}, chosen on persons of no pair.

    On training persons who are held out, where they have as many pairs as the rule of 30 asks for,
    then none for a model that was taught some of them; else on the test persons, crosswise
    (`verification.cross_thresholds`, `comparison.folds`). A model for which these are too few, too,
    has none; either is printed.
    """
    chosen = {}
    held = manifest[manifest["split"] == "select"]
    suffice = _suffice(held, p.comparison.fmr)
    for one in models:
        if suffice and one.met(table, manifest, "select"):
            print(f"no threshold for {one.name}: it was taught persons that are held out here")
            continue
        pairs, space = found.pairs[one.name], spaces[one.name]
        try:
            chosen[one.name] = (
                _held_out(space, manifest, pairs, p) if suffice else _crossed(pairs, held, p)
            )
        except TooFewPairs as error:
            print(f"no threshold for {one.name}: {error}; raise comparison.fmr")
        except ValueError as error:  # of scores that are all alike
            print(f"no threshold for {one.name}: {error}")
    return chosen


def operating_points(
    found: Verified, chosen: Mapping[str, Chosen], p: Params
) -> dict[str, dict[str, Any]]:
    """{model: `operating_point` of its pairs, their `ci95`, its FMR `aim`, whom `chosen_on`}."""
    points, boots, aim = {}, (p.evaluation.bootstrap, p.seed), p.comparison.fmr
    for name, told in chosen.items():
        pairs = found.pairs[name]
        at = pairs["similarity"], pairs["genuine"], told.at
        spans = operating_intervals(*at, pairs["query_person"], pairs["gallery_person"], *boots)
        points[name] = operating_point(*at) | {"ci95": spans, "chosen_on": told.origin, "aim": aim}
    return points


def group_errors(
    pairs: pd.DataFrame, groups: slices.Groups, chosen: Chosen | None, p: Params
) -> dict[str, Any]:
    """`slices.group_errors` at the thresholds that were chosen; nothing where there are none."""
    if chosen is None:
        return {}
    boots = {"bootstrap": p.evaluation.bootstrap, "seed": p.seed}
    return slices.group_errors(pairs, groups, chosen.at, **boots)


def _suffice(held: pd.DataFrame, fmr: float) -> bool:
    """Whether photographs of persons held out make pairs enough, of both kinds, to choose on."""
    pids = held["pid"].to_numpy()
    first, second = np.triu_indices(len(pids), 1)
    genuine = pids[first] == pids[second]
    return bool(genuine.any()) and supported(fmr, int((~genuine).sum()))


def _held_out(space: Space, manifest: pd.DataFrame, pairs: pd.DataFrame, p: Params) -> Chosen:
    held = select_pairs(space.z, space.images, manifest)
    at = threshold_at(held["similarity"], held["genuine"], p.comparison.fmr)
    persons = quantity(held["query_person"].nunique(), "person")
    return Chosen(np.full(len(pairs), at), f"{persons} held out of training")


def _crossed(pairs: pd.DataFrame, held: pd.DataFrame, p: Params) -> Chosen:
    """held: rows of those who are held out, too few to choose; perhaps none."""
    told = p.comparison
    at = cross_thresholds(pairs, told.fmr, told.folds)
    persons = np.unique(pairs[["query_person", "gallery_person"]]).size
    why = f" (the {held['pid'].nunique()} held out have too few pairs)" if len(held) else ""
    return Chosen(at, f"cross-fitted over {persons} test persons in {told.folds} folds{why}")
