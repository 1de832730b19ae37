"""Matrices of scores as heat maps: steps by tasks, and query aspect by gallery aspect."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from handclip_lib.aspects import ASPECTS
from handclip_lib.evaluate.transfer import Learned
from handclip_lib.report.canvas import INK, PALETTE, QUIET, canvas, styled

Cross = Mapping[str, np.ndarray]  # mean, low, high, persons: (A, A)
_PERCENT = PercentFormatter(1.0, 0, " %")


def task_name(name: str) -> str:
    """A task or step in words: `HD dorsal_r` is HD dorsal right."""
    *data, last = name.split(" ")
    return " ".join([*data, ASPECTS[last].title if last in ASPECTS else last.replace("_", "-")])


def ticked(name: str) -> str:
    """`task_name` on short lines, for a tick below an axis."""
    return textwrap.fill(task_name(name), 9, break_long_words=False, break_on_hyphens=False)


@styled
def matrix_heat(
    matrices: Mapping[str, np.ndarray],
    rows: Sequence[str],
    tasks: Sequence[str],
    learned: Learned,
    title: str,
) -> Figure:
    """Scores on every task after every step, a panel a metric, all on one scale.

    matrices: {"rank-1": (R, T), …}, 0–1; rows: (R,) names, the first the start; learned: (T,) the
    first and the last row in which a task was taught. Its cells there are framed.
    """
    cell = min(1.0, 9.6 / (len(matrices) * len(tasks)))
    width = 1.9 + (cell * len(tasks) + 0.15) * len(matrices)
    fig, axes = canvas(title, 1, len(matrices), (max(6.0, width), 1.9 + 0.45 * len(rows)))
    scale = _scale(list(matrices.values()))
    for ax, (metric, values) in zip(axes[0], matrices.items(), strict=True):
        shown = _heat(ax, values, tasks, scale)
        ax.set_title(metric)
        ax.set_xlabel("tested on")
        ax.set_yticks(range(len(rows)), [task_name(row) for row in rows])
        for (i, j), value in np.ndenumerate(values):
            ax.text(j, i, _words(value), ha="center", va="center", color=_on(value, scale))
        ax.axhline(0.5, color=INK, linewidth=1.5)
        for j, steps in enumerate(learned):
            for i in set(steps):
                box = Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, zorder=3)
                ax.add_patch(box).set(edgecolor=PALETTE[1], linewidth=2.2)
    axes[0, 0].set_ylabel("after the step")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    fig.colorbar(shown, ax=axes[0].tolist(), format=_PERCENT, pad=0.01)
    note = "Per cent. Framed: the step that taught the task. Above the rule: before the first step"
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


@styled
def cross_heat(
    before: Mapping[str, Cross],
    after: Mapping[str, Cross],
    aspects: Sequence[str],
    title: str,
    metric: str,
) -> Figure:
    """Queries of one aspect in the gallery of another, before and after, all on one scale.

    before, after: {"as they are": what `evaluate.cross.cross_scores` gives, "left hands mirrored":
    …}, a column each, the same in both; aspects: (A,) in the order of their rows; metric: its
    words, "rank-1". Below a cell's score half the width of its 95 % interval. A pair without score
    is left grey.
    """
    models = {"before": before, "after": after}
    side = min(max(2.8, 0.95 * len(aspects)), 9.6 / len(before))
    size = max(6.5, 2.3 + (side + 0.2) * len(before)), 3.2 + 1.1 * len(aspects)
    fig, axes = canvas(title, 2, len(before), size)
    scale = _scale([cross["mean"] for model in models.values() for cross in model.values()])
    for row, (when, model) in zip(axes, models.items(), strict=True):
        for ax, (kind, cross) in zip(row, model.items(), strict=True):
            shown = _cross(ax, cross, aspects, scale)
            ax.set_title(f"{when}, {kind}\n{_persons(cross)}")
            ax.label_outer()
    for ax in axes[1]:
        ax.set_xlabel("gallery of")
    for ax in axes[:, 0]:
        ax.set_ylabel("queries of")
    fig.colorbar(shown, ax=axes.ravel().tolist(), format=_PERCENT, label=metric, pad=0.01)
    note = "Per cent, below it half the width of the 95 % interval over persons"
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


def _cross(ax: Axes, cross: Cross, aspects: Sequence[str], scale: Normalize) -> AxesImage:
    shown = _heat(ax, cross["mean"], aspects, scale)
    ax.set_yticks(range(len(aspects)), [task_name(aspect) for aspect in aspects])
    half = (np.asarray(cross["high"]) - np.asarray(cross["low"])) / 2
    for (i, j), value in np.ndenumerate(cross["mean"]):
        colour, empty = _on(value, scale), np.isnan(value)
        ax.text(j, i - 0.16 * (not empty), _words(value), ha="center", va="center", color=colour)
        if not empty:
            words = f"± {100 * half[i, j]:.1f}"
            ax.text(j, i + 0.24, words, ha="center", va="center", color=colour, fontsize=7.5)
    return shown


def _persons(cross: Cross) -> str:
    counts = np.asarray(cross["persons"])
    known = counts[counts > 0]
    low, high = (int(known.min()), int(known.max())) if len(known) else (0, 0)
    return f"n = {low} persons" if low == high else f"n = {low} to {high} persons"


def _heat(ax: Axes, values: np.ndarray, columns: Sequence[str], scale: Normalize) -> AxesImage:
    ax.set_facecolor(QUIET)
    shown = ax.imshow(values, cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
    ax.set_xticks(range(len(columns)), [ticked(name) for name in columns])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return shown


def _scale(matrices: Sequence[np.ndarray]) -> Normalize:
    """From the least to the largest, at least ten points apart: no colour for small differences."""
    values = np.concatenate([np.ravel(matrix) for matrix in matrices])
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return Normalize(max(0.0, min(low, high - 0.1)), max(high, 0.1))


def _on(value: float, scale: Normalize) -> str:
    """The colour of words on a cell."""
    return "white" if scale(value) > 0.6 else INK


def _words(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"
