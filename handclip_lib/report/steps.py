"""A chain in numbers: its steps, what they cost, what was kept, its last model on every aspect."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from handclip_lib.evaluate import transfer
from handclip_lib.evaluate.protocol import GALLERIES
from handclip_lib.report.chains import wise_curve
from handclip_lib.report.heats import task_name
from handclip_lib.report.page import SHOWN
from handclip_lib.report.summary import percent
from handclip_lib.schema import Params
from handclip_lib.train.blends import Sweep
from handclip_lib.train.chain import ordered
from handclip_lib.train.states import Task

Frames = Mapping[str, Mapping[str, pd.DataFrame]]  # state, task


def steps_table(p: Params, tasks: Mapping[str, Task]) -> pd.DataFrame:
    """A row a step: what it teaches, how, on how many images and persons."""
    rows = []
    for step in ordered(p):
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
            "old ones among them": "yes" if any(one["shown_again"] for one in told) else "",
            "parameters": max((one["trained_parameters"] for one in told), default=0),
            "seconds": round(sum(one["seconds"] for one in told), 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("chain")
    return frame.astype({"image passes": int, "parameters": int, "trainings": int})


def aspect_table(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], models: Sequence[str]
) -> pd.DataFrame:
    """Some models on every task, a row a task, gallery and metric, in per cent.

    scores: {task: {model: what `protocol.evaluate` gives}}.
    """
    rows = {
        (task_name(task), gallery, words): [percent(of[m][gallery][metric]) for m in models]
        for task, of in scores.items()
        for gallery in GALLERIES
        for metric, words in SHOWN.items()
        if gallery in of[models[0]]
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["aspect", "gallery", "metric"])
    return pd.DataFrame(list(rows.values()), index, list(models))


def cells_of(frames: Mapping[str, Frames], tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """{chain: {metric: `transfer.cells`}} of what `states.answered` gives."""
    known = list(dict.fromkeys(task.dataset for task in tasks.values()))
    several = {n: f"set {known.index(t.dataset) + 1}" for n, t in tasks.items()}
    sets = several if len(known) > 1 else None
    return {
        name: {metric: transfer.cells(of, metric, sets) for metric in SHOWN}
        for name, of in frames.items()
    }


def sweep_curve(
    sweep: Sweep, tasks: Mapping[str, Task], samples: int, seed: int, title: str
) -> Figure:
    """mAP of every task over WiSE-FT's alpha, with the mean's interval."""
    of = cells_of({"": sweep.answers}, tasks)[""]["map"]
    r = transfer.matrix(of)
    low, high = transfer.intervals(of, [(1, 1)] * len(tasks), samples, seed)["averages"].T
    by_task = {task: r[:, j] for j, task in enumerate(of.tasks)}
    values = [float(alpha) for alpha in sweep.answers]
    return wise_curve(
        values, by_task, r.mean(axis=1), low, high, sweep.alpha, title, "mAP", sweep.how
    )


def plain_cross(crosses: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """`states.across` of several ways to look, for JSON: None where a pair has no number."""
    return {
        words: {
            name: [[None if np.isnan(v) else v for v in row] for row in values.tolist()]
            for name, values in cross.items()
        }
        for words, cross in crosses.items()
    }


def plain_sweep(sweep: Sweep) -> dict[str, Any]:
    """What chose WiSE-FT's alpha, for JSON."""
    held = {alpha: None if np.isnan(v) else v for alpha, v in sweep.held.items()}
    return {"alpha": sweep.alpha, "how": sweep.how, "held": held}
