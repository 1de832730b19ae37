"""How well spoiled photographs are found: the same queries at every level, the gallery as it is."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.protocol import per_query
from handclip_lib.evaluate.retrieval import HEADLINE
from handclip_lib.evaluate.statistics import person_bootstrap

_QUERY = "query "  # before a photograph's name where it asks: in another draw it may answer
_KEYS = ["draw", "image", "pid"]


def asked(manifest: pd.DataFrame, photographs: int) -> pd.DataFrame:
    """The manifest's queries and galleries of all draws, with few queries a person.

    photographs: the most of a person; which ones they are is hashed from their names. In a draw
    that has one of them in the gallery, the others ask.
    """
    queries = manifest[manifest["split"] == "query"]
    each = queries.drop_duplicates("image")[["pid", "image"]]
    each = each.assign(key=[sha256(name.encode()).hexdigest() for name in each["image"]])
    few = each.sort_values(["pid", "key"]).groupby("pid").head(photographs)
    kept = queries[queries["image"].isin(few["image"])]
    return pd.concat([kept, manifest[manifest["split"] == "gallery"]], ignore_index=True)


def answers(
    asked: pd.DataFrame,
    gallery_of: Callable[[list[str]], npt.NDArray[np.floating]],
    names: Sequence[str],
    features: npt.NDArray[np.floating],
    found: Sequence[bool] | None = None,
) -> pd.DataFrame:
    """`protocol.per_query` of some of the queries of `asked`, as they are now.

    gallery_of: unit rows of the gallery's photographs, as they are; names: (N,) query photographs;
    features: (N, D) unit rows of what was made of them; found: (N,) whether a hand was found in
    that, which is a column `hand_found` then.
    """
    is_query = asked["split"] == "query"
    entries = asked.loc[~is_query, "image"].unique().tolist()
    rows = asked[~is_query | asked["image"].isin(set(names))]
    label = np.where(rows["split"] == "query", _QUERY + rows["image"], rows["image"])
    images = [*entries, *(_QUERY + name for name in names)]
    z = np.concatenate([gallery_of(entries), features])
    frame = per_query(z, images, rows.assign(image=label))
    frame["image"] = frame["image"].str.removeprefix(_QUERY)
    if found is not None:
        frame["hand_found"] = frame["image"].map(dict(zip(names, found, strict=True)))
    return frame


def level_scores(
    clean: pd.DataFrame, frame: pd.DataFrame, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """{"rank1" | "map": {"mean", "ci95", "change": {"mean", "ci95"}}, "queries", "persons"}.

    clean, frame: `answers` before and after, 0–1; `change` is after less before of the same
    queries, its interval a paired one. Means are over the queries of all draws, intervals over
    persons. `hand_found`, where the answers tell: in which share of the photographs of `frame`.
    Raises ValueError where the queries are others, and with one person.
    """
    if not clean[_KEYS].reset_index(drop=True).equals(frame[_KEYS].reset_index(drop=True)):
        raise ValueError("before and after did not answer the same queries in one order")
    columns = list(HEADLINE.values())
    after = frame[columns].to_numpy(dtype=float)  # (Q, 2)

    def spans(values: npt.NDArray[np.float64], bounded: bool) -> list[dict[str, Any]]:
        low, high = person_bootstrap(values, frame["pid"], bootstrap, seed, bounded=bounded)
        ends = np.stack([low, high], axis=1).tolist()
        means = values.mean(axis=0).tolist()
        return [{"mean": mean, "ci95": ci} for mean, ci in zip(means, ends, strict=True)]

    changes = spans(after - clean[columns].to_numpy(dtype=float), bounded=False)
    pairs = zip(HEADLINE, spans(after, bounded=True), changes, strict=True)
    scores: dict[str, Any] = {metric: score | {"change": change} for metric, score, change in pairs}
    counts = {"queries": frame["image"].nunique(), "persons": frame["pid"].nunique()}
    scores |= {name: int(n) for name, n in counts.items()}
    if "hand_found" in frame:
        scores["hand_found"] = float(frame.drop_duplicates("image")["hand_found"].mean())
    return scores


def curve(
    frames: Mapping[int, pd.DataFrame], bootstrap: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """`level_scores` of every level of a kind, from 0, the photographs as they are.

    frames: {level: `answers`}. Level 0 keeps the queries that the others have: where a photograph
    could not be spoiled, it counts at no level.
    """
    first = frames[max(frames)]
    clean = frames[0][frames[0]["image"].isin(set(first["image"]))]
    return [
        {"level": level} | level_scores(clean, frame if level else clean, bootstrap, seed)
        for level, frame in sorted(frames.items())
    ]
