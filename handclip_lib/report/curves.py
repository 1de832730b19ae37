"""How a training went: a small panel for every quantity of the history, a colour a variant."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.report.canvas import (
    PALETTE,
    blank,
    canvas,
    grid_lines,
    key,
    saying,
    styled,
    whole_numbers,
)

_NOT_DRAWN = ("variant", "epoch", "step", "select_rank1")
# Column -> (title, whether it is a share of 0 to 1). What is not named here is a loss.
_SCORES = {
    "train_i2t": ("nearest text is the owner's (train)", True),
    "val_i2t": ("nearest text is the owner's (val)", True),
    "val_accuracy": ("accuracy, known persons (val)", True),
    "select_map": ("mAP, held-out persons (select)", True),
}
_DIAGNOSTICS = {
    "valid_triplets": ("anchors with a triplet", True),
    "spread": ("spread of unit features", False),
    "target_cosine": ("cosine with the own class", False),
    "confidence": ("confidence in the own class", True),
    "margin": ("ArcFace's margin (radians)", False),
    "top1": ("nearest key is a match (train)", True),
    "momentum": ("share that the keys' tower keeps", False),
}
_STYLES = ("-", "--", ":")


@styled
def training_curves(
    histories: Sequence[pd.DataFrame], title: str, chosen: Mapping[str, int] | None = None
) -> Figure:
    """Total, each loss before its weight, scores, diagnostics and learning rate, by epoch.

    histories: one a variant, as `train.fit.fit` gives them (columns `variant`, `epoch`, then one
    a quantity); where there is none, the figure says so. chosen: {variant: epoch whose weights
    were kept}, a ring on each of its curves; the others' are not marked.
    """
    if not histories:
        return saying(title, "nothing was trained")
    history = pd.concat(histories, ignore_index=True)
    panels = _panels(history)
    rows, _, columns = min((-(-len(panels) // c), -len(panels) % c, c) for c in (3, 4))
    fig, axes = canvas(title, rows, columns, (10.5, 2.3 * rows + 0.8))
    names = list(dict.fromkeys(history["variant"]))
    for ax, (column, (words, is_share)) in zip(axes.flat, panels.items(), strict=False):
        for i, name in enumerate(names):
            mine = history[history["variant"] == name]
            _curve(ax, mine[["epoch", column]].dropna(), i, name, (chosen or {}).get(name))
        _dress(ax, words, is_share, column)
    blank(axes.flat[len(panels) :])
    _key(fig, axes[0, 0], names, bool(chosen), _hidden(history[["variant", "epoch", *panels]]))
    return fig


def _hidden(history: pd.DataFrame) -> list[str]:
    """Variants that lie under each other, curve for curve: the same training by several names."""
    alike: dict[bytes, list[str]] = {}
    for name, part in history.groupby("variant", sort=False):
        alike.setdefault(part.iloc[:, 1:].to_numpy(float).tobytes(), []).append(str(name))
    return [" = ".join(names) for names in alike.values() if len(names) > 1]


def _panels(history: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """Columns to draw and their titles: total, losses, scores, diagnostics, learning rate."""
    filled = [c for c in history.columns if c not in _NOT_DRAWN and history[c].notna().any()]
    named = {"total": ("total loss", False), "lr": ("learning rate, last layers", False)}
    losses = [c for c in filled if c not in {**named, **_SCORES, **_DIAGNOSTICS}]
    if len(losses) == 1 and np.allclose(history["total"], history[losses[0]]):
        filled.remove("total")  # the same curve
    known = named | {c: (c.replace("_", " "), False) for c in losses} | _SCORES | _DIAGNOSTICS
    order = ["total", *losses, *_SCORES, *_DIAGNOSTICS, "lr"]
    return {column: known[column] for column in order if column in filled}


def _curve(ax: Axes, points: pd.DataFrame, place: int, name: str, kept: int | None) -> None:
    x, y = points.to_numpy(dtype=float).T
    colour, style = PALETTE[place % 7], _STYLES[place // 7 % len(_STYLES)]
    dots = "." if len(x) <= 12 else None
    ax.plot(x, y, color=colour, ls=style, linewidth=1.6, marker=dots, markersize=6, label=name)
    at = x == (-1 if kept is None else kept)
    (ring,) = ax.plot(x[at], y[at], ls="", marker="o", color=colour, zorder=5, clip_on=False)
    ring.set(markersize=7, markerfacecolor="white", markeredgewidth=1.6, in_layout=False)


def _dress(ax: Axes, words: str, is_share: bool, column: str) -> None:
    ax.set_title(words, fontsize=9.5)
    ax.set_xlabel("epoch")
    whole_numbers(ax, "x")
    grid_lines(ax)
    if is_share:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    elif column == "lr":
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        low, high = ax.get_ylim()
        low = min(0.0, low)
        ax.set_ylim(low, high + 0.08 * (high - low))  # from 0, even a flat line is below the edge


def _key(fig: Figure, ax: Axes, names: list[str], is_marked: bool, hidden: list[str]) -> None:
    note = "Losses are shown before their weights."
    note += " A ring marks the epoch whose weights were kept." if is_marked else ""
    note += "\n" + fill(f"Equal curves: {', '.join(hidden)}.", 130) if hidden else ""
    if len(names) == 1:
        fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    else:
        key(fig, ax, note)
