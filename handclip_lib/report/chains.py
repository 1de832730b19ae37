"""Figures of chains: what each step taught, what later ones lost, and what held it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from handclip_lib.aspects import CHAIN
from handclip_lib.evaluate.transfer import Learned
from handclip_lib.report.canvas import (
    BAD,
    GOOD,
    INK,
    PALETTE,
    QUIET,
    canvas,
    grid_lines,
    key,
    points_tick,
    saying,
    styled,
)
from handclip_lib.report.heats import task_name, ticked
from handclip_lib.report.page import in_points
from handclip_lib.report.plots import scatter, space_note
from handclip_lib.report.transfers import SCALARS, scalar

_PERCENT = PercentFormatter(1.0, 0, " %")
_MEANING = {
    "average": "average after the last step",
    "backward": "backward: added by later steps",
    "forward": "forward: gained before its step",
    "forgetting": "forgetting: best less last",
}


@styled
def forgetting_curves(
    r: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    rows: Sequence[str],
    tasks: Sequence[str],
    learned: Learned,
    title: str,
    metric: str,
) -> Figure:
    """A line a task over the steps, with 95 % intervals; a large dot where it was taught.

    r, low, high: (R, T), 0–1; rows, tasks, learned as in `matrix_heat`; metric: its words.
    """
    fig, axes = canvas(title, size=(max(7.5, min(12.0, 3.2 + 1.1 * len(rows))), 4.2))
    ax = axes[0, 0]
    apart = (np.arange(len(tasks)) - (len(tasks) - 1) / 2) * min(0.08, 0.4 / len(tasks))
    colours = _colours(tasks)
    for j, task in enumerate(tasks):
        at, colour = np.arange(len(rows)) + apart[j], colours[task]
        error = np.clip([r[:, j] - low[:, j], high[:, j] - r[:, j]], 0, None)
        ax.errorbar(
            at, r[:, j], error, color=colour, elinewidth=1, capsize=2.5, label=task_name(task)
        )
        ax.plot(at, r[:, j], ls="", marker=".", color=colour)
        own = sorted(set(learned[j]))
        dots = {"marker": "o", "markersize": 9, "markeredgecolor": "white"}
        ax.plot(at[own], r[own, j], ls="", color=colour, zorder=4, **dots)
    ax.set_xticks(range(len(rows)), [ticked(row) for row in rows])
    ax.set_xlabel("after the step")
    _score_axis(ax, metric)
    note = "tested on (a large dot: after its own step; whiskers: 95 % intervals over persons)"
    key(fig, ax, note)
    return fig


@styled
def transfer_forest(chains: Mapping[str, Mapping[str, Any]], title: str, metric: str) -> Figure:
    """Average, backward and forward transfer, and forgetting: a panel each, a row a chain.

    chains: {name: told} as `transfers.scalar` takes it; metric: its words, "rank-1". A dotted line
    is at the average of the first. Green and red where the interval of a change excludes
    zero; not of forgetting, a maximum less a number, which chance alone lifts above it.
    """
    if not chains:
        return saying(title, "no chain was taught")
    fig, axes = canvas(title, 1, len(SCALARS), (12.0, 2.0 + 0.34 * len(chains)))
    for ax, name in zip(axes[0], SCALARS, strict=True):
        found = [scalar(told, name) for told in chains.values()]
        for at, spread in enumerate(found):
            _forest_row(ax, at, spread, name)
        reference = found[0] and found[0][0] if name == SCALARS[0] else 0.0
        if reference is not None:
            ax.axvline(reference, color=INK, linewidth=1, ls=":" if name == SCALARS[0] else "-")
        ax.set_yticks(range(len(chains)), list(chains))
        ax.set_ylim(len(chains) - 0.4, -0.6)
        ax.set_title(_MEANING[name], fontsize=9.5)
        ax.set_xlabel(metric if name == SCALARS[0] else f"points of {metric}")
        ax.xaxis.set_major_formatter(_PERCENT if name == SCALARS[0] else FuncFormatter(points_tick))
        ax.locator_params("x", nbins=4)
        grid_lines(ax, "x")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    note = "95 % intervals over persons; green and red: transfer whose interval excludes zero;"
    note += " –: no such number"
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


def _forest_row(ax: Axes, at: int, told: tuple[float, float, float] | None, name: str) -> None:
    words, colour = "–", QUIET
    if told is not None:
        value, low, high = told
        is_change = name != SCALARS[0]
        sure = is_change and name != "forgetting" and low * high > 0
        colour = (GOOD if value > 0 else BAD) if sure else INK
        ax.plot([low, high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot(value, at, marker="o", color=colour, markersize=6)
        words = in_points(value) if is_change else f"{100 * value:.1f} %"
    ax.annotate(words, (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)


@styled
def wise_curve(
    alphas: Sequence[float],
    by_task: Mapping[str, np.ndarray],
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    chosen: float,
    title: str,
    metric: str,
    how: str,
) -> Figure:
    """Test scores of the weights between start (alpha 0) and end (alpha 1), and the alpha chosen.

    alphas: (K,); by_task: {task: (K,)}; mean, low, high: (K,), over the tasks, 0–1; metric: its
    words; how: what chose alpha, e.g. "by mAP of held-out training persons".
    """
    fig, axes = canvas(title, size=(8.5, 4.4))
    ax = axes[0, 0]
    ax.axvline(chosen, color=INK, linewidth=1, ls="--", zorder=1)
    ax.set_title(f"dashed: α = {chosen:g}, chosen {how}")
    colours = _colours(list(by_task))
    for task, values in by_task.items():
        ax.plot(
            alphas, values, color=colours[task], marker=".", label=task_name(task), linewidth=1.4
        )
    ax.fill_between(alphas, low, high, color=INK, alpha=0.1, linewidth=0)
    ax.plot(alphas, mean, color=INK, marker="o", markersize=4, linewidth=2.4, label="mean")
    ax.set_xlabel("α: 0 is the start, 1 the end of training")
    _score_axis(ax, metric)
    note = "tested on (shaded: 95 % interval of the mean over persons)"
    key(fig, ax, note)
    return fig


@styled
def all_aspects(
    planes: Mapping[str, Mapping[str, np.ndarray]],
    pids: Sequence[int] | np.ndarray,
    aspects: Sequence[str] | np.ndarray,
    title: str,
    identities: int = 20,
) -> Figure:
    """Photographs of all aspects by several models on the same axes, by person and by aspect.

    planes: {projection: {model: (N, 2)}} as `projections.project_together` gives them, a column
    each; pids, aspects: (N,). Up to `identities` persons are coloured.
    """
    people, views = np.asarray(pids), np.asarray(aspects)
    models = list(next(iter(planes.values())))
    side = min(4.0, 11.6 / (len(planes) * len(models)))
    size = max(6.5, side * len(planes) * len(models) + 0.2), 2 * (side + 0.2) + 1.0
    fig, axes = canvas(title, 2, len(planes) * len(models), size)
    colours = _colours(list(dict.fromkeys(views.tolist())))
    paint = np.array([colours[view] for view in views])
    for group, (way, of) in zip(np.split(axes, len(planes), 1), planes.items(), strict=True):
        for ax in group.ravel()[1:]:
            ax.sharex(group[0, 0])
            ax.sharey(group[0, 0])
        for (person, aspect), (model, points) in zip(group.T, of.items(), strict=True):
            scatter(person, points, people, identities)
            _painted(aspect, points, paint)
            person.set_title(f"{model}, {way}: by person")
            aspect.set_title(f"{model}, {way}: by aspect")
    dots: list[Artist] = [
        Line2D([], [], ls="", marker="o", color=colour, label=task_name(view))
        for view, colour in colours.items()
    ]
    key(fig, dots, space_note(people, identities, list(planes)))
    return fig


def _painted(ax: Axes, points: np.ndarray, paint: np.ndarray) -> None:
    """Photographs in given colours, in no order: none lies always on top of another."""
    mixed = np.random.default_rng(0).permutation(len(points))
    x, y = points[mixed].T
    ax.scatter(x, y, s=16, c=paint[mixed], linewidths=0.3, edgecolors="w")
    ax.set(xticks=[], yticks=[], box_aspect=1)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#D5DAE1")


def _colours(tasks: Sequence[str]) -> dict[str, str]:
    """An aspect of the usual chain has the same colour in every figure."""
    order = [*CHAIN, *(task for task in tasks if task not in CHAIN)]
    return {task: PALETTE[order.index(task) % len(PALETTE)] for task in tasks}


def _score_axis(ax: Axes, metric: str) -> None:
    ax.set_ylabel(metric)
    ax.yaxis.set_major_formatter(_PERCENT)
    grid_lines(ax)
