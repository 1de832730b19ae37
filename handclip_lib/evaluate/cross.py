"""Hands asked for in one aspect and found in another: galleries across aspects, by person."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.data.manifest import TooFew
from handclip_lib.evaluate.protocol import per_query
from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import person_bootstrap


def cross_manifest(query: pd.DataFrame, gallery: pd.DataFrame) -> pd.DataFrame:
    """The queries of one manifest against the own gallery of another, draw by draw.

    Both of one data set, where a pid is a person in every aspect. Who is not in that gallery is not
    asked for; persons who are only in the gallery stay, as distractors. attrs: `left_out`, the
    number of persons no longer asked for. A manifest with itself gives its own queries and gallery.
    Raises TooFew, a SplitError, where fewer than two persons are in both.
    """
    asked = query[query["split"] == "query"]
    entries = gallery[gallery["split"] == "gallery"]
    key = ["draw", "pid"]
    known = pd.MultiIndex.from_frame(entries[key])
    kept = asked[pd.MultiIndex.from_frame(asked[key]).isin(known)]
    before, both = asked["pid"].nunique(), kept["pid"].nunique()
    if both < 2:
        raise TooFew(f"{both} of the {before} persons asked for are in the other gallery too")
    entries = entries[entries["draw"].isin(kept["draw"])]
    manifest = pd.concat([kept, entries], ignore_index=True)
    manifest.attrs = {"left_out": before - both}
    return manifest


def cross_scores(
    features_of: Callable[[list[str]], npt.NDArray[np.floating]],
    manifests: Mapping[str, pd.DataFrame],
    metric: str,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, npt.NDArray[Any]]:
    """Every aspect asked for in every aspect's gallery: arrays (A, A), query by gallery aspect.

    features_of: unit rows (N, D) of the images named, in their order; called once. manifests: of
    one data set by aspect; metric: a key of `retrieval.METRICS`. Returns `mean` over queries with
    the 95 % interval over persons, `low` and `high`, all 0–1, and `persons`, the number asked for.
    A pair with fewer than two persons in both is NaN with 0 persons, and printed.
    """
    used = [m.loc[m["split"].isin(("query", "gallery")), "image"] for m in manifests.values()]
    images = list(dict.fromkeys(pd.concat(used)))
    features, size = features_of(images), len(manifests)
    mean, low, high = (np.full((size, size), np.nan) for _ in range(3))
    persons = np.zeros((size, size), dtype=np.int64)
    for i, (asked, query) in enumerate(manifests.items()):
        for j, (found, gallery) in enumerate(manifests.items()):
            try:
                manifest = cross_manifest(query, gallery)
            except TooFew as error:
                print(f"{asked} in {found} is left out: {error}")
                continue
            frame = per_query(features, images, manifest)
            score = frame[METRICS[metric]]
            mean[i, j], persons[i, j] = score.mean(), frame["pid"].nunique()
            low[i, j], high[i, j] = person_bootstrap(score, frame["pid"], bootstrap, seed)
    return {"mean": mean, "low": low, "high": high, "persons": persons}
