"""Models side by side on the same queries: tests, tables, and figures of what changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from handclip_lib.evaluate.retrieval import HEADLINE, METRICS
from handclip_lib.evaluate.statistics import holm, paired_test
from handclip_lib.report.canvas import (
    BAD,
    GOOD,
    INK,
    QUIET,
    blank,
    canvas,
    grid_lines,
    points_tick,
    saying,
    styled,
)
from handclip_lib.report.page import GALLERIES, WORDS, in_points, p_text, signed_span
from handclip_lib.report.plots import scatter, space_note
from handclip_lib.report.summary import percent

_BETTER = {
    "intra_cosine": "higher",
    "inter_cosine": "lower",
    "alignment": "lower",
    "uniformity": "lower",
    "silhouette": "higher",
    "effective_rank": "higher",
}
Tests = Mapping[str, Mapping[str, Mapping[str, float | list[float]]]]  # metric, variant, values


def paired_tests(
    queries: Mapping[str, pd.DataFrame], reference: str, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """{metric: {variant: test}} of rank-1 and mAP: each variant less the reference.

    queries: {variant: `evaluate.protocol.per_query` of it}, all of one gallery and manifest. A
    test is what `paired_test` gives and `holm`, its p among the variants of that metric. Raises
    ValueError where two variants did not answer the same queries.
    """
    base = queries[reference]
    keys = ["draw", "image", "pid"]
    for name, frame in queries.items():
        if not frame[keys].equals(base[keys]):
            raise ValueError(f"{name} and {reference} did not answer the same queries in one order")
    tests: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, column in HEADLINE.items():
        found = {
            name: paired_test(base[column], frame[column], base["pid"], seed=seed)
            for name, frame in queries.items()
            if name != reference
        }
        adjusted = holm({name: test["p"] for name, test in found.items()})
        tests[metric] = {name: test | {"holm": adjusted[name]} for name, test in found.items()}
    return tests


def per_person(frame: pd.DataFrame) -> dict[str, list[float]]:
    """{person: [mean rank-1, mean AP, queries]} of a `per_query` frame, for metrics.json.

    Means are over the queries of all draws, whose number is the third value: with them, runs can
    be compared person by person afterwards.
    """
    groups = frame.groupby("pid")
    means, counts = groups[list(HEADLINE.values())].mean().round(6), groups.size()
    return {
        str(pid): [*pair, int(n)]
        for pid, pair, n in zip(means.index, means.to_numpy().tolist(), counts, strict=True)
    }


def comparison_table(
    scores: Mapping[str, Mapping[str, Any]], tests: Mapping[str, Tests]
) -> pd.DataFrame:
    """A row a gallery, metric and variant: its score and its test against the reference.

    scores: {variant: {gallery: `evaluate`'s}}; tests: {gallery: what `paired_tests` gives}. Per
    cent and points, with 95 % intervals; a variant without a test (the reference) shows dashes.
    """
    rows = {}
    for gallery, of_metric in tests.items():
        for metric, found in of_metric.items():
            for name, galleries in scores.items():
                row = {"score (%)": percent(galleries[gallery][metric])}
                key = (GALLERIES[gallery], WORDS[metric], name)
                rows[key] = row | _tested(found.get(name))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(rows, names=["gallery", "metric", "variant"])
    return frame


def _tested(test: Mapping[str, Any] | None) -> dict[str, str]:
    names = ("difference (points)", "p", "p (Holm)", "detectable (points)")
    if test is None:
        return dict.fromkeys(names, "–")
    shown = signed_span(test["difference"], test["ci95"])
    reach = f"{100 * test['detectable']:.1f}" if test["detectable"] else "–"
    values = (shown, p_text(test["p"]), p_text(test["holm"]), reach)
    return dict(zip(names, values, strict=True))


def geometry_table(spaces: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """What `evaluate.geometry.geometry` measured, a column a model; which way is better beside."""
    frame = pd.DataFrame(spaces).round(3)
    frame["better"] = [_BETTER[name] for name in frame.index]
    frame.index = frame.index.str.replace("_", " ")
    return frame


@styled
def difference_forest(tests: Tests, reference: str, title: str) -> Figure:
    """Differences to the reference with 95 % intervals, a panel a metric, a row a variant.

    tests: what `paired_tests` gives. Green and red where the Holm-corrected p is below 0.05. The
    grey bar spans what the test would have missed one time in five or oftener.
    """
    names = list(next(iter(tests.values())))
    if not names:
        return saying(title, "nothing to compare")
    fig, axes = canvas(title, 1, len(tests), (10.0, 1.9 + 0.42 * len(names)))
    for ax, (metric, found) in zip(axes[0], tests.items(), strict=True):
        for at, test in enumerate(found.values()):
            _forest_row(ax, at, test)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_title(WORDS[metric])
        ax.set_xlabel(f"points above {reference}")
        ax.xaxis.set_major_formatter(FuncFormatter(points_tick))
        grid_lines(ax, "x")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    note = "95 % intervals over persons; p by Holm; grey: differences that would often be missed"
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


def _forest_row(ax: Axes, at: int, test: Mapping[str, Any]) -> None:
    low, high = test["ci95"]
    mean, reach = test["difference"], test["detectable"]
    sure = test["holm"] <= 0.05
    colour = (GOOD if mean > 0 else BAD) if sure else INK
    (band,) = ax.barh(at, 2 * reach, 0.55, left=-reach, color="#E9ECF0", zorder=0)
    band.sticky_edges.x.clear()  # else the axis could end where the bar does
    ax.plot([low, high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
    ax.plot(mean, at, marker="o", color=colour, markersize=6)
    words = f"{in_points(mean)}, p {'' if test['holm'] < 0.001 else '= '}{p_text(test['holm'])}"
    ax.annotate(words, (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)


@styled
def person_changes(
    queries: Mapping[str, pd.DataFrame], before: str, after: str, title: str, metric: str = "map"
) -> Figure:
    """Each person's mean before and after, and the changes in order: many persons, or a few?

    queries: {model: `evaluate.protocol.per_query`}, the same queries in each. Left a dot a person,
    its area the number of queries; above the diagonal the person is found more readily.
    """
    means = {name: queries[name].groupby("pid")[METRICS[metric]].mean() for name in (before, after)}
    change = (means[after] - means[before]).sort_values(kind="stable")
    colours = np.where(change > 1e-9, GOOD, np.where(change < -1e-9, BAD, QUIET))
    counts = queries[after].groupby("pid").size()[change.index]
    fig, axes = canvas(title, 1, 2, (10.0, 4.2))
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color=INK, linewidth=1)
    size = 20 + 60 * counts / counts.max()
    at = change.index
    left.scatter(
        means[before][at], means[after][at], s=size, c=colours, alpha=0.75, linewidths=0,
        clip_on=False, zorder=3,
    )  # fmt: skip
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=before, ylabel=after, box_aspect=1)
    left.set_title(f"{WORDS[metric]} of each person")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    right.bar(range(len(change)), change, 0.85, color=colours)
    right.axhline(0, color=INK, linewidth=1)
    right.set_xlabel("persons, in order of their change")
    right.set_xticks([])
    right.set_ylabel("change in points")
    right.yaxis.set_major_formatter(FuncFormatter(points_tick))
    up, down = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    right.set_title(f"{up} better, {len(change) - up - down} the same, {down} worse")
    for ax in (left, right):
        grid_lines(ax)
    return fig


@styled
def feature_spaces(
    planes: Mapping[str, Mapping[str, np.ndarray]],
    pids: Sequence[int] | np.ndarray | pd.Series,
    title: str,
    identities: int = 20,
) -> Figure:
    """The same photographs by several models on the same axes: a row a projection, a panel a model.

    planes: {projection: {model: (N, 2)}} as `projections.project_together` gives them; pids: (N,).
    A person keeps colour and marker throughout. With one projection, up to four models a row.
    """
    people = np.asarray(pids)
    models = list(next(iter(planes.values())))
    panels = [(f"{m}, {way}", p, way) for way, of in planes.items() for m, p in of.items()]
    columns = min(4, len(models)) if len(planes) == 1 else len(models)
    rows = -(-len(panels) // columns)
    side = min(3.6, 11.6 / columns)
    fig, axes = canvas(title, rows, columns, (side * columns + 0.2, (side + 0.25) * rows + 0.6))
    for ax, (label, points, way) in zip(axes.flat, panels, strict=False):
        scatter(ax, points, people, identities)
        ax.set_title(label)
        _frame(ax, np.concatenate(list(planes[way].values())))
    blank(axes.flat[len(panels) :])
    note = space_note(people, identities, list(planes))
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


def _frame(ax: Axes, points: np.ndarray) -> None:
    """The limits of all models' points together."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.04 * np.maximum(high - low, 1e-9)
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])
