"""Figures and a table of how well spoiled photographs are found, and what was done to them."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.data.spoil import KINDS, Kind
from handclip_lib.report.canvas import (
    PALETTE,
    blank,
    canvas,
    grid_lines,
    key,
    photograph,
    saying,
    styled,
    tight,
)
from handclip_lib.report.page import WORDS, signed_span
from handclip_lib.report.summary import percent

WORN = "accessories"  # the scenario that stands beside what is done to photographs
_COLUMNS = 5
Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # model -> kind -> levels


@styled
def sheet(shown: Mapping[str, Sequence[np.ndarray | None]], title: str) -> Figure:
    """One photograph spoiled in every way: a column a kind, from its weakest level down.

    shown: `examples`. The first column has the photograph as it is, and kinds of one level.
    """
    single = [kind for kind in shown if len(KINDS[kind].levels) == 1]
    columns = [kind for kind in shown if kind not in single]
    rows = max(len(KINDS[kind].levels) for kind in columns)
    fig, axes = canvas(title, rows, len(columns) + 1, (11.0, 0.75 + 1.02 * rows))
    blank(axes.flat)
    _picture(axes[0, 0], shown[columns[0]][0], "as it is")
    for at, kind in enumerate(single, start=1):
        _picture(axes[at, 0], shown[kind][1], KINDS[kind].words)
    for column, kind in enumerate(columns, start=1):
        told = KINDS[kind]
        for row, level in enumerate(told.levels):
            words = f"{told.words}\n" * (row == 0) + told.label(level)
            _picture(axes[row, column], shown[kind][row + 1], words)
    units = "; ".join(f"{KINDS[kind].words}: {KINDS[kind].unit}" for kind in columns)
    fig.supxlabel(textwrap.fill(units, 150), fontsize=8, x=0.01, ha="left")
    tight(fig)
    return fig


def _picture(ax: Axes, pixels: np.ndarray | None, words: str) -> None:
    if pixels is not None:
        ax.axis("on")
        ax.set_anchor("N")
        photograph(ax, pixels, ("#D5DAE1", 0.6))
    ax.set_title(words, fontsize=8, pad=2, loc="center")


@styled
def robustness_curves(
    curves: Curves,
    worn: Mapping[str, Mapping[str, Mapping[str, Any]]],
    title: str,
    metric: str = "rank1",
) -> Figure:
    """A panel a kind: the metric at every level with 95 % intervals over persons, a line a model.

    curves: `spoiled`; worn: {model: {scenario: scores}}, whose `accessories` stand in the last
    panel beside kinds of one level: other photographs of the same persons. Bands are each level's
    own, not the change's: a change is sure sooner than two bands part. Where some photographs
    could not be spoiled, the panel says how many were.
    """
    kinds = list(dict.fromkeys(kind for of in curves.values() for kind in of))
    if not kinds:
        return saying(title, "nothing could be spoiled")
    single = [kind for kind in kinds if len(KINDS[kind].levels) == 1]
    several = [kind for kind in kinds if kind not in single]
    count = len(several) + 1
    rows = -(-count // _COLUMNS)
    fig, axes = canvas(title, rows, min(count, _COLUMNS), (11.0, 0.9 + 2.15 * rows))
    for i, (model, of) in enumerate(curves.items()):
        style = {"color": PALETTE[i % len(PALETTE)], "label": model}
        for ax, kind in zip(axes.flat, several, strict=False):
            _line(ax, [level[metric] for level in of[kind]], style)
        alone = [of[single[0]][0], *(of[kind][1] for kind in single)] if single else []
        alone += [worn[model][WORN]] if WORN in worn.get(model, {}) else []
        shift = 0.16 * (i - (len(curves) - 1) / 2)
        _dots(axes.flat[len(several)], [scores[metric] for scores in alone], shift, style)
    of = next(iter(curves.values()))
    most = max(levels[0]["queries"] for levels in of.values())
    for ax, kind in zip(axes.flat, several, strict=False):
        _dress(ax, KINDS[kind], of[kind][0]["queries"], most)
    _dress_single(axes.flat[len(several)], single, worn)
    blank(axes.flat[count:])
    _scale(axes, count)
    key(fig, axes[0, 0], f"{WORDS[metric]} of {most} photographs, in all draws")
    return fig


def _line(ax: Axes, scores: Sequence[Mapping[str, Any]], style: Mapping[str, Any]) -> None:
    at = np.arange(len(scores))
    low, high = np.array([score["ci95"] for score in scores]).T
    ax.fill_between(at, low, high, color=style["color"], alpha=0.13, linewidth=0)
    ax.plot(at, [s["mean"] for s in scores], marker="o", markersize=4, linewidth=1.7, **style)


def _dots(
    ax: Axes, scores: Sequence[Mapping[str, Any]], shift: float, style: Mapping[str, Any]
) -> None:
    for at, score in enumerate(scores):
        ax.plot([at + shift] * 2, score["ci95"], color=style["color"], linewidth=1.7)
        ax.plot(at + shift, score["mean"], "o", markersize=4.5, color=style["color"])


def _dress(ax: Axes, kind: Kind, queries: int, most: int) -> None:
    ticks = ["as is", *map(kind.label, kind.levels)]
    few = f" ({queries} of {most})" * (queries < most)
    _axis(ax, kind.words + few, ticks)
    ax.set_xlabel(kind.unit, fontsize=8)


def _dress_single(ax: Axes, kinds: Sequence[str], worn: Mapping[str, Mapping[str, Any]]) -> None:
    words = ["as is"] * bool(kinds) + [KINDS[kind].words for kind in kinds]
    words += ["with\naccessories"] * any(WORN in scores for scores in worn.values())
    _axis(ax, "of one level", words)


def _axis(ax: Axes, title: str, ticks: Sequence[str]) -> None:
    ax.set_title(title)
    ax.set_xticks(range(len(ticks)), ticks, fontsize=8)
    ax.set_xlim(-0.4, len(ticks) - 0.6)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    grid_lines(ax)


def _scale(axes: np.ndarray, count: int) -> None:
    """One scale from 0 for all panels, of which `count` hold data; numbers at the left alone."""
    top = np.ceil(4 * max(ax.dataLim.y1 for ax in axes.flat[:count])) / 4
    for ax in axes.flat:
        ax.set_ylim(-0.02 * top, 1.02 * top)
    for ax in axes[:, 1:].flat:
        ax.tick_params(labelleft=False)


def change_table(curves: Curves, metric: str = "rank1") -> pd.DataFrame:
    """A row a kind and model: the score as the photographs are, and what levels change.

    The largest loss of all levels, in points of the metric with the 95 % interval of the paired
    change; the weakest level from which on every one lies below 0 with its whole interval, not
    corrected for the number of levels; how often `fit: hand` still found a hand where the loss is.
    """
    rows = {}
    for model, of in curves.items():
        for kind, levels in of.items():
            told, spoiled = KINDS[kind], levels[1:]
            worst = min(spoiled, key=lambda level: level[metric]["change"]["mean"])
            change = worst[metric]["change"]
            at = f" at {told.label(told.levels[spoiled.index(worst)])}" * (len(told.levels) > 1)
            rows[told.words, model] = {
                f"{WORDS[metric]}, as it is (%)": percent(levels[0][metric]),
                "largest loss (points)": signed_span(change["mean"], change["ci95"]) + at,
                "sure from": _sure_from(told, [level[metric]["change"] for level in spoiled]),
                "unit": told.unit or "–",
                "hand found (%)": f"{100 * worst['hand_found']:.0f}",
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    if rows:
        frame.index = pd.MultiIndex.from_tuples(rows, names=["spoiled", "model"])
        frame = frame.loc[list(dict.fromkeys(kind for kind, _ in rows))]
    return frame


def _sure_from(told: Kind, changes: Sequence[Mapping[str, Any]]) -> str:
    """The weakest level from which on every change's interval is below 0; a dash: none."""
    sure = [change["ci95"][1] < 0 for change in changes]
    from_ = next((at for at in range(len(sure)) if all(sure[at:])), None)
    if from_ is None:
        return "–"
    return told.label(told.levels[from_]) if len(told.levels) > 1 else "yes"
