"""Figures and tables of models on other data sets, and of the weights between two models there."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.canvas import INK, PALETTE, canvas, grid_lines, key, saying, styled
from handclip_lib.report.others import HOME, There, WiseFT
from handclip_lib.report.page import SHOWN, p_text, signed_span
from handclip_lib.report.summary import percent
from handclip_lib.train.states import Task

_LEVEL = 0.05


def places_table(places: Mapping[str, Task]) -> pd.DataFrame:
    """A row a data set: photographs, aspect, and the size of its test.

    Persons are those asked for; entries those of the largest gallery, distractors among them.
    """
    rows = {}
    for name, place in places.items():
        query, entries = (
            place.manifest[place.manifest["split"] == s] for s in ("query", "gallery")
        )
        rows[name] = {
            "photographs": place.table.attrs["title"],
            "aspect": ASPECTS[place.p.aspect].title,
            "persons": query["pid"].nunique(),
            "queries of a draw": int(query["draw"].value_counts().max()),
            "gallery entries": int(entries["draw"].value_counts().max()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def there_table(there: Mapping[str, There], reference: str) -> pd.DataFrame:
    """A row a data set and model, of the own gallery there: scores, and against the reference.

    Per cent and points with 95 % intervals; p of the paired tests there, by Holm over the models of
    that data set. Empty without other data sets.
    """
    rows = {}
    for name, found in there.items():
        for model, scores in found.scores.items():
            row = rows[name, model] = dict[str, str]()
            for metric, words in SHOWN.items():
                test = found.tests.get(metric, {}).get(model)
                row[f"{words} (%)"] = percent(scores[metric])
                row[f"{words}, above {reference}"] = _points(test)
                row[f"{words}, p (Holm)"] = p_text(test["holm"]) if test else "–"
    return _by_place(rows)


def lost_table(there: Mapping[str, There]) -> pd.DataFrame:
    """A row a data set and model: at home, there, and the change, in galleries of one size.

    That is the smaller of the two. Per cent and points with 95 % intervals. Empty without other
    data sets.
    """
    rows = {}
    for name, found in there.items():
        for model, equal in found.equal.items():
            row = rows[name, model] = {"entries": str(found.size)}
            for metric, words in SHOWN.items():
                row[f"{words}, home (%)"] = percent(equal[metric][HOME])
                row[f"{words}, there (%)"] = percent(equal[metric]["there"])
                row[f"{words}, change (points)"] = _points(equal[metric])
    return _by_place(rows)


def _by_place(rows: Mapping[tuple[str, str], Mapping[str, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).T
    return frame.rename_axis(["data set", "model"]) if rows else frame


def _points(told: Mapping[str, Any] | None) -> str:
    return signed_span(told["difference"], told["ci95"]) if told else "–"


@styled
def wise_curves(found: WiseFT, title: str) -> Figure:
    """Rank-1 and mAP from the frozen tower to the model, a line and 95 % band a data set.

    A full dot differs for sure from the model (p by Holm over the alphas). Dashed: the alpha that
    held-out training persons choose, whose mAP is dotted.
    """
    if found.why:
        return saying(title, found.why)
    fig, axes = canvas(title, 1, 2, (10.0, 4.4))
    for ax, (metric, words) in zip(axes[0], SHOWN.items(), strict=True):
        for i, (name, scores) in enumerate(found.scores.items()):
            look = {"color": PALETTE[i % len(PALETTE)], "label": name}
            _curve(ax, scores, found.tests[name], metric, look)
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
    look: Mapping[str, Any],
) -> None:
    at, colour = np.array([float(alpha) for alpha in scores]), look["color"]
    mean = np.array([of[metric]["mean"] for of in scores.values()])
    low, high = np.array([of[metric]["ci95"] for of in scores.values()]).T
    ax.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
    ax.plot(at, mean, marker="o", markersize=5, mfc="white", **look)
    sure = np.array([a in tests[metric] and tests[metric][a]["holm"] <= _LEVEL for a in scores])
    ax.plot(at[sure], mean[sure], ls="", marker="o", markersize=5, color=colour)
