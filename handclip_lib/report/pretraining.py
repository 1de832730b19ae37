"""Pre-training in a report: whom it learns from, what was kept of it, and what that knows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from handclip_lib.evaluate.geometry import geometry, knn_accuracy
from handclip_lib.report.canvas import PALETTE, canvas, grid_lines, key, saying, styled
from handclip_lib.report.heats import task_name
from handclip_lib.schema_train import Pretrain
from handclip_lib.train.classes import classes_of

_USES = {"train": "learnt from", "val": "kept back", "select": "held out"}
_SETTINGS = ("labelled", "keys", "momentum", "queue", "predictor", "temperature")
_SHOWN = ("alignment", "uniformity", "effective_rank")


def pool_table(pool: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """A row an aspect and one for all: persons and photographs by what they are for.

    pool: `train.pretrain.pretrain_manifest`'s; table: the data's, whose column `accessories` says
    how many of those that are learnt from show rings, watches or sleeves.
    """
    worn = table.loc[table["accessories"] != 0, "image"] if "accessories" in table else ()
    aspects = list(dict.fromkeys(pool["aspect"]))
    parts = {task_name(a): pool[pool["aspect"] == a] for a in aspects} | {"all": pool}
    rows = []
    for part in parts.values():
        row: dict[tuple[str, str], int] = {}
        for use, words in _USES.items():
            mine = part[part["split"] == use]
            row[words, "persons"], row[words, "photographs"] = mine["pid"].nunique(), len(mine)
            if use == "train":
                row[words, "with accessories"] = int(mine["image"].isin(worn).sum())
        rows.append(row)
    columns = pd.MultiIndex.from_tuples(list(rows[0]), names=["", "aspect"])
    return pd.DataFrame([list(row.values()) for row in rows], list(parts), columns)


def methods_table(variants: Mapping[str, Pretrain]) -> pd.DataFrame:
    """A row a variant: the settings of `pretrain` in which the methods differ."""
    rows = {
        name: {key: str(value) for key, value in told.model_dump(include={*_SETTINGS}).items()}
        for name, told in variants.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")[[*_SETTINGS]]


def known_persons(
    spaces: Mapping[str, np.ndarray], pool: pd.DataFrame, kind: str, k: int = 5
) -> dict[str, dict[str, float]]:
    """What models' features know of the pool's persons, by photographs that trained nothing.

    spaces: {model: (N, D) unit rows} in the pool's order; kind: `split.identity`. `knn`: share of
    the `val` photographs whose k nearest `train` photographs are mostly of the same identity; of
    `val` and `select` together `alignment`, `uniformity` and `effective_rank`, as
    `evaluate.geometry` has them, where an identity has two photographs there.
    """
    labels = classes_of(kind, [pool.assign(split="train")]).labels(pool)
    train, val = (pool["split"].to_numpy() == split for split in ("train", "val"))
    paired = pd.Series(labels[~train]).duplicated().any()
    found: dict[str, dict[str, float]] = {}
    for name, z in spaces.items():
        found[name] = {"knn": knn_accuracy(z[train], labels[train], z[val], labels[val], k)}
        if paired:
            measured = geometry(z[~train], labels[~train])
            found[name] |= {key: measured[key] for key in _SHOWN}
    return found


def known_table(known: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """`known_persons` as a row a model."""
    rows = {
        name: {"nearest neighbours right (%)": f"{100 * of['knn']:.1f}"}
        | {key.replace("_", " "): f"{of[key]:.3f}".replace("-", "−") for key in _SHOWN if key in of}
        for name, of in known.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


@styled
def share_curves(facts: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """mAP of held-out training persons between the start and the kept epoch of each training.

    facts: {variant: those of `train.pretrain.pretrain`}, of which `alpha` is the share that is
    kept, a ring on its curve, and `held` the scores by share; where nobody is held out, the figure
    says which share was taken.
    """
    told = {name: of for name, of in facts.items() if of["held"]}
    if not told:
        shares = ", ".join(f"{name} {of['alpha']:g}" for name, of in facts.items())
        return saying(title, f"nobody is held out to choose a share; taken beforehand: {shares}")
    fig, axes = canvas(title, size=(8.5, 4.0))
    ax = axes[0, 0]
    for (name, of), colour in zip(told.items(), PALETTE, strict=False):
        held = {float(share): score for share, score in of["held"].items()}
        x, y = np.array(sorted(held.items())).T
        ax.plot(x, y, color=colour, marker=".", linewidth=1.6, label=name)
        ax.plot(
            of["alpha"], held[of["alpha"]], ls="", marker="o", color=colour, markersize=8,
            markerfacecolor="white", markeredgewidth=1.6, zorder=5, clip_on=False,
        )  # fmt: skip
    ax.set_xlabel("α: 0 is the start, 1 the epoch that was kept")
    ax.set_ylabel("mAP, held-out training persons")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{100 * value:g} %"))
    grid_lines(ax)
    key(fig, ax, "a ring marks the share that is kept")
    return fig
