"""Tables of a chain: its steps, what they cost, and its last model on every aspect."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from handclip_lib.report.heats import task_name
from handclip_lib.report.summary import percent
from handclip_lib.train.chain import file_names, ordered
from handclip_lib.train.states import Task

_SCORES = (("rank1", "rank-1"), ("map", "mAP"))
_GALLERIES = ("own", "all")


def steps_table(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """A row a step: what it teaches, how, on how many images and persons, and its file."""
    p = next(iter(tasks.values())).p
    steps = ordered(p)
    rows = []
    for step, name in zip(steps, file_names(steps), strict=True):
        manifest, settings = tasks[step.name].manifest, step.settings
        mine = manifest[manifest["split"] == "train"]
        blocks = "all" if settings.unfreeze_blocks is None else f"last {settings.unfreeze_blocks}"
        rows.append(
            {
                "teaches": task_name(step.name),
                "recipe": step.kind,
                "losses": " + ".join(loss.type for loss in settings.losses) or "texts",
                "epochs": settings.epochs,
                "lr": f"{settings.lr:g}",
                "blocks": "gradually" if settings.gradual else blocks,
                "images": len(mine),
                "persons": mine["pid"].nunique(),
                "file": f"{name}.pth",
            }
        )
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="step"))


def effort_table(facts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """A row a chain: trainings, image passes, parameters that learnt (at most), seconds.

    facts: {chain: {training: its facts}}; a chain without trainings made its weights of others'.
    """
    rows = {}
    for name, trained in facts.items():
        told = list(trained.values())
        rows[name] = {
            "trainings": len(told),
            "image passes": sum(one["images"] * one["epochs"] for one in told),
            "of them shown again": "yes" if any(one["shown_again"] for one in told) else "",
            "parameters": max((one["trained_parameters"] for one in told), default=0),
            "seconds": round(sum(one["seconds"] for one in told), 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("chain")
    return frame.astype({"image passes": int, "parameters": int, "trainings": int})


def aspect_table(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], models: Sequence[str]
) -> pd.DataFrame:
    """Rank-1 and mAP of some models on every task, a row a task and gallery, in per cent.

    scores: {task: {model: what `protocol.evaluate` gives}}.
    """
    rows: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for task, by_model in scores.items():
        for gallery in _GALLERIES:
            if gallery in by_model[models[0]]:
                rows[task_name(task), gallery] = {
                    (words, model): percent(by_model[model][gallery][metric])
                    for metric, words in _SCORES
                    for model in models
                }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=["aspect", "gallery"])
    frame.columns = pd.MultiIndex.from_tuples([tuple(name) for name in frame.columns])
    return frame
