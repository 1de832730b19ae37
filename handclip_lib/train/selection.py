"""What a stage is scored by while it trains: held-out training persons, never test persons."""

from collections.abc import Callable, Sequence
from functools import cache

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.data.splits import pick
from handclip_lib.data.store import Store
from handclip_lib.evaluate.embed import evaluating, retrieval_features
from handclip_lib.evaluate.protocol import per_query
from handclip_lib.schema import Params
from handclip_lib.train.classes import Classes
from handclip_lib.train.learner import Codes, Learner, Pictures, encode, pictures

SELECT = "select_map"  # the history column that chooses a checkpoint
DRAWS = 10


def held_manifest(manifest: pd.DataFrame) -> pd.DataFrame | None:
    """The held-out training persons as queries and galleries, as test persons are in the test.

    None where there are no two such persons, one of whom has two images: nothing can be searched.
    """
    held = manifest[manifest["split"] == "select"].sort_values("image")
    people = {int(part["pid"].iloc[0]): part for _, part in held.groupby("pid")}
    if len(people) < 2 or not any(len(part) > 1 for part in people.values()):
        return None
    draws = []
    for draw in range(DRAWS):
        for pid, part in people.items():
            chosen = pick(f"select|run{draw}|{pid}", part["image"].tolist())
            kind = (part["image"] == chosen).map({True: "gallery", False: "query"})
            draws.append(part.assign(split=kind, draw=draw))
    return pd.concat(draws, ignore_index=True)


def scorer(
    p: Params,
    manifest: pd.DataFrame,
    store: Store,
    fabric: lf.Fabric,
    classes: Classes,
    codes: Codes | None = None,
) -> tuple[Callable[[Learner], dict[str, float]], str]:
    """(function of a learner that gives a history row's values, the column that selects or "").

    `val_accuracy`: closed-set accuracy on the training persons' `val` images; it selects nothing.
    `select_rank1`, `select_map`: retrieval among the held-out training persons (split `select`),
    in the protocol of the test: one gallery image a person, several hashed draws, each aspect on
    its own. Without two such persons who can be searched for nothing is selected, and the last
    weights are taken.
    """
    val, held = (
        pictures(manifest, split, store, fabric, classes, codes) for split in ("val", "select")
    )
    searched = held_manifests(manifest)
    size = p.evaluation.batch_size
    if held.images and not searched:
        _say(
            f"held out: {len(set(held.pids))} of the training persons, too few to search among;"
            " nothing chooses an epoch and the last weights are taken"
        )

    def validate(learner: Learner) -> dict[str, float]:
        values = _accuracy(learner, val, store, fabric, size)
        if searched:
            z = encode(learner, held, store.preprocess, fabric, size)
            unit = retrieval_features(
                {name: block.cpu().numpy() for name, block in z.items()}, p.evaluation.feature
            )
            values |= held_scores(unit, held.images, searched)
        return values

    return validate, SELECT if searched else ""


@cache
def _say(words: str) -> None:
    """Print, once a process: a notebook's trainings follow each other on the same persons."""
    print(words)


def held_scores(
    unit: np.ndarray, images: Sequence[str], searched: Sequence[pd.DataFrame]
) -> dict[str, float]:
    """`select_rank1` and `select_map` of (N, D) unit rows: means over some manifests' own means."""
    each = [per_query(unit, images, rows)[["rank1", "ap"]].mean() for rows in searched]
    scores = pd.DataFrame(each).mean()
    return {"select_rank1": float(scores["rank1"]), SELECT: float(scores["ap"])}


def held_manifests(manifest: pd.DataFrame) -> list[pd.DataFrame]:
    """`held_manifest` of each aspect on its own, where there is one."""
    held = manifest[manifest["split"] == "select"]
    found = [held_manifest(part) for _, part in held.groupby("aspect")]
    return [rows for rows in found if rows is not None]


def _accuracy(
    learner: Learner, val: Pictures, store: Store, fabric: lf.Fabric, size: int
) -> dict[str, float]:
    known = val.labels >= 0
    if not known.any():
        return {}
    z = encode(learner, val, store.preprocess, fabric, size)
    with evaluating(learner.criterion), torch.no_grad():
        logits = learner.criterion.logits(z)
    if logits is None:
        return {}
    right = logits.argmax(1) == val.labels
    return {"val_accuracy": float(right[known].float().mean())}
