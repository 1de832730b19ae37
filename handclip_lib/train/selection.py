"""What a stage is scored by while it trains: held-out training persons, never test persons."""

from collections.abc import Callable

import lightning_fabric as lf
import pandas as pd
import torch

from handclip_lib.data.splits import pick
from handclip_lib.data.store import Store
from handclip_lib.evaluate.embed import evaluating, retrieval_features
from handclip_lib.evaluate.protocol import per_query
from handclip_lib.schema import Params
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
    classes: dict[int, int],
    codes: Codes | None = None,
) -> tuple[Callable[[Learner], dict[str, float]], str]:
    """(function of a learner that gives a history row's values, the column that selects or "").

    `val_accuracy`: closed-set accuracy on the training persons' `val` images; it selects nothing.
    `select_rank1`, `select_map`: retrieval among the held-out training persons (split `select`),
    in the protocol of the test: one gallery image a person, several hashed draws. Without two such
    persons who can be searched for nothing is selected, and the last weights are taken.
    """
    val, held = (
        pictures(manifest, split, store, fabric, classes, codes) for split in ("val", "select")
    )
    rows = held_manifest(manifest)
    size = p.evaluation.batch_size
    if held.images and rows is None:
        print(
            f"{len(set(held.pids))} training persons are held out: too few to be searched among, so"
            " nothing chooses an epoch and the last weights are taken"
        )

    def validate(learner: Learner) -> dict[str, float]:
        values = _accuracy(learner, val, store, fabric, size)
        if rows is not None:
            z = encode(learner, held, store.preprocess, fabric, size)
            unit = retrieval_features(
                {name: block.cpu().numpy() for name, block in z.items()}, p.evaluation.feature
            )
            scores = per_query(unit, held.images, rows)[["rank1", "ap"]].mean()
            values |= {"select_rank1": float(scores["rank1"]), SELECT: float(scores["ap"])}
        return values

    return validate, SELECT if rows is not None else ""


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
