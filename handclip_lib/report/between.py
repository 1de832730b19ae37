"""Fine-tuned against frozen: weights between a model and the tower that it began as, everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ParamError
from handclip_lib.report.canvas import INK, PALETTE, canvas, grid_lines, saying, styled
from handclip_lib.report.compare import Tests, paired_tests
from handclip_lib.report.lineup import Contender
from handclip_lib.report.sweeps import SHOWN
from handclip_lib.schema import Params
from handclip_lib.train import blends
from handclip_lib.train.states import State, Task

HOME = "home"  # the study's own data, in figures and files
_LEVEL = 0.05


@dataclass(frozen=True)
class Between:
    """Weights between the study's tower as it is (alpha 0) and a model (1); nothing is trained.

    model: its name; scores: {data set: {alpha: {metric: {mean, ci95}}}} in own galleries, home
    first; tests: {data set: `paired_tests` of every alpha against the model}; held: {alpha: mAP of
    held-out training persons}, empty without; chosen: the alpha that they prefer, of equals the
    larger, None without; why: in words, where there are no such weights.
    """

    model: str
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    tests: Mapping[str, Tests]
    held: Mapping[str, float]
    chosen: float | None
    why: str = ""


def between(one: Contender, places: Mapping[str, Task], fabric: lf.Fabric) -> Between:
    """A model's WiSE-FT curve on the study's own test and on those of other data sets.

    places: as `abroad.places` has them; a data set is left alone where the model was taught persons
    who are tested there. The alphas are `chain.wise_ft`. At home are the training persons, of whom
    those held out choose. Wortsman et al. 2022, arXiv:2109.01903.
    """
    if one.tower is None or not one.weights:
        return _none(one, f"{one.name} was not trained here: nothing lies between it and a start")
    tasks = {
        name: place
        for name, place in places.items()
        if name == HOME or not one.met(place.table, place.manifest, "query", "gallery")
    }
    p = places[HOME].p
    states = State("start"), State(one.name, HOME, Path(one.tower.name))
    try:
        with TemporaryDirectory() as folder:
            _, sweep = blends.wise_ft(p, tasks, states, Path(folder), fabric)
    except (ParamError, WeightsError) as error:  # of a tower of another kind
        return _none(one, f"{one.name} has no weights between it and the study's tower: {error}")
    last = max(sweep.answers, key=float)
    frames = {name: {a: of[name] for a, of in sweep.answers.items()} for name in tasks}
    told = bool(np.isfinite(list(sweep.held.values())).all())
    return Between(
        one.name,
        {n: {a: means(f, p) for a, f in of.items()} for n, of in frames.items()},
        {name: paired_tests(of, last, p.seed) for name, of in frames.items()},
        sweep.held if told else {},
        sweep.alpha if told else None,
    )


def _none(one: Contender, why: str) -> Between:
    return Between(one.name, {}, {}, {}, None, why)


def means(frame: pd.DataFrame, p: Params) -> dict[str, dict[str, Any]]:
    """{metric: {mean, ci95}} of rank-1 and mAP of a `per_query` frame, over its draws."""
    columns = [METRICS[metric] for metric, _ in SHOWN]
    middle = frame.groupby("draw")[columns].mean().mean()
    low, high = person_bootstrap(frame[columns], frame["pid"], p.evaluation.bootstrap, p.seed)
    return {
        metric: {"mean": float(middle[column]), "ci95": [float(low[i]), float(high[i])]}
        for i, ((metric, _), column) in enumerate(zip(SHOWN, columns, strict=True))
    }


@styled
def wise_curves(found: Between, title: str) -> Figure:
    """Rank-1 and mAP from the frozen tower to the model, a line and 95 % band a data set.

    A full dot differs for sure from the model (p by Holm over the alphas). Dashed: the alpha that
    held-out training persons choose, whose mAP is dotted.
    """
    if found.why:
        return saying(title, found.why)
    fig, axes = canvas(title, 1, 2, (10.0, 4.4))
    for ax, (metric, words) in zip(axes[0], SHOWN, strict=True):
        for name, colour in colours(list(found.scores)).items():
            _curve(ax, found.scores[name], found.tests[name], metric, (name, colour))
        if found.chosen is not None:
            ax.axvline(found.chosen, color=INK, linewidth=1, ls="--", zorder=1)
        if found.held and metric == "map":
            at, held = [float(a) for a in found.held], list(found.held.values())
            ax.plot(at, held, ls=":", color="#7B8794", label="held-out training persons")
        ax.set(title=words, xlabel=f"α: 0 is the tower as it is, 1 is {found.model}")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
        grid_lines(ax)
    if found.chosen is None:
        chose = "no training persons are held out, so that nothing chooses an α"
    else:
        chose = f"dashed: α = {found.chosen:g}, chosen by held-out training persons"
    key(
        fig, axes[0, 1], f"tested on (shaded: 95 %; full dot: differs from α = 1, by Holm); {chose}"
    )
    return fig


def _curve(
    ax: Axes,
    scores: Mapping[str, Any],
    tests: Mapping[str, Any],
    metric: str,
    look: tuple[str, str],
) -> None:
    (name, colour), at = look, np.array([float(alpha) for alpha in scores])
    mean = np.array([of[metric]["mean"] for of in scores.values()])
    low, high = np.array([of[metric]["ci95"] for of in scores.values()]).T
    ax.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
    ax.plot(at, mean, color=colour, marker="o", markersize=5, mfc="white", label=name)
    sure = np.array([a in tests[metric] and tests[metric][a]["holm"] <= _LEVEL for a in scores])
    ax.plot(at[sure], mean[sure], ls="", marker="o", markersize=5, color=colour)


def colours(places: Sequence[str]) -> dict[str, str]:
    """A colour for each data set, home's being the text's."""
    return {name: PALETTE[(i - 1) % len(PALETTE)] if i else INK for i, name in enumerate(places)}


def key(fig: Figure, ax: Axes, note: str) -> None:
    """What the colours of `ax` stand for, below the figure."""
    handles, words = ax.get_legend_handles_labels()
    fig.legend(
        handles, words, loc="outside lower left", ncols=min(4, len(words)),
        title=note, title_fontsize=9, alignment="left",
    )  # fmt: skip
