"""Figures and tables of scenarios, of groups of persons, and of single persons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import quantity
from handclip_lib.report.canvas import INK, PALETTE, QUIET, canvas, grid_lines, key, saying, styled
from handclip_lib.report.errors import share
from handclip_lib.report.page import SHOWN
from handclip_lib.report.summary import percent, spanned

_TRAITS = {"skinColor": "skin tone", "nailPolish": "nail polish"}
_SCENARIOS = {
    "own": "own gallery",
    "all": "all aspects",
    "multi_shot": "many photographs a person",
    "person_level": "any hand of the person",
    "accessories": "with accessories",
}
_FEW = "no number"


def scenario_name(name: str) -> str:
    """A scenario in words: `cross_dorsal_l` is "in dorsal left"."""
    other = name.removeprefix("cross_")
    return f"in {ASPECTS[other].title}" if other in ASPECTS else _SCENARIOS.get(name, name)


@styled
def intervals(
    of: Mapping[str, Mapping[str, Mapping[str, Any]]],
    title: str,
    empty: str = "no scenario could be scored",
) -> Figure:
    """Rank-1 and mAP with 95 % intervals over persons: a colour a key of `of`, a row a key below.

    of: {model: `evaluate.scenarios.evaluate_all`'s} or `others.by_place`. Beside a row stand the
    persons and the gallery that all its dots are of: rows that differ there cannot be compared.
    empty: what the figure says where nothing was scored.
    """
    names = list(dict.fromkeys(name for scores in of.values() for name in scores))
    if not names:
        return saying(title, empty)
    fig, axes = canvas(title, 1, 2, (10.5, 1.7 + (0.34 + 0.14 * len(of)) * len(names)))
    fig.set_layout_engine("constrained", wspace=0.06)
    labels = [_row_name(name, [s[name] for s in of.values() if name in s]) for name in names]
    for ax, (metric, words) in zip(axes[0], SHOWN.items(), strict=True):
        for i, (told, scores) in enumerate(of.items()):
            shift = 0.5 * (i / max(1, len(of) - 1) - 0.5) * (len(of) > 1)
            for name, score in scores.items():
                label = told * (name == next(iter(scores)))
                _dot(ax, names.index(name) + shift, score[metric], PALETTE[i % len(PALETTE)], label)
        _rows(ax, labels, words, ax is axes[0, 0])
    if len(of) > 1:
        key(fig, axes[0, 0], "lines: 95 % intervals over persons")
    return fig


def _row_name(name: str, scores: Sequence[Mapping[str, Any]]) -> str:
    counts = {f"\n{s['persons']} persons, gallery of {s['gallery']:,}" for s in scores}
    return scenario_name(name) + (counts.pop() if len(counts) == 1 else "")


@styled
def slice_intervals(slices: Mapping[str, Any], title: str) -> Figure:
    """Rank-1 and mAP of every group with 95 % intervals over persons, group by group of a trait.

    slices: `evaluate.slices.sliced`. Beside a trait stands how far its best group lies above its
    worst, in points; a group of too few persons shows their number alone.
    """
    if not slices:
        return saying(title, "the data says nothing of its persons by which to form groups")
    rows = [row for trait, found in slices.items() for row in _lines(trait, found)]
    labels = [label for label, _, _ in rows]
    fig, axes = canvas(title, 1, 2, (10.5, 1.3 + 0.27 * len(rows)))
    fig.set_layout_engine("constrained", wspace=0.06)
    for ax, (metric, words) in zip(axes[0], SHOWN.items(), strict=True):
        for at, (_, scores, between) in enumerate(rows):
            if between is not None:
                _write(ax, at, gap(between[metric]), INK)
            elif scores[metric] is None:
                _write(ax, at, _FEW, "#7B8794")
            else:
                _dot(ax, at, scores[metric], PALETTE[0])
        _rows(ax, labels, words, ax is axes[0, 0])
    for label, (_, scores, _) in zip(axes[0, 0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if scores else "bold")
    return fig


@styled
def identity_accuracy(table: pd.DataFrame, title: str) -> Figure:
    """How often each person is found first, the hardest at the left, with Wilson's 95 % interval.

    table: `evaluate.measures.per_identity_accuracy`. The dot grows with the person's photographs.
    """
    fig, axes = canvas(title, size=(9.0, 3.8))
    ax, at = axes[0, 0], np.arange(len(table))
    ax.vlines(at, table["low"], table["high"], color=QUIET, linewidth=2)
    size = 8 + 40 * table["photographs"] / table["photographs"].max()
    ax.scatter(at, table["rank1"], s=size, color=PALETTE[0], zorder=3, linewidths=0, clip_on=False)
    mean = float(np.average(table["rank1"], weights=table["photographs"]))
    ax.axhline(mean, color=INK, linestyle="--", linewidth=1, zorder=0.5)
    note = f"{len(table)} persons (dashed: mean of their photographs, {100 * mean:.1f} %)"
    ax.set(xticks=[], ylim=(-0.02, 1.02), ylabel="found first", xlabel=note)
    ax.margins(x=0.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    grid_lines(ax)
    return fig


def slice_table(slices: Mapping[str, Any]) -> pd.DataFrame:
    """A row a group: persons, queries, rank-1 and mAP in per cent with 95 % intervals.

    After a trait's groups, how far the best lies above the worst, in points. A group of too few
    persons has no number.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for trait, found in slices.items():
        for group, scores in _inhabited(found):
            shown = {w: percent(scores[m]) if scores[m] else _FEW for m, w in SHOWN.items()}
            counts = {"persons": scores["persons"], "queries": f"{scores['queries']:,}"}
            rows[trait_name(trait), group] = counts | shown
        gaps = {SHOWN[m]: gap(b) or "–" for m, b in found["between"].items()}
        rows[trait_name(trait), "difference"] = {"persons": "", "queries": ""} | gaps
    return _indexed(rows)


def error_table(errors: Mapping[str, Any]) -> pd.DataFrame:
    """A row a group: pairs, and error rates at one threshold in per cent with 95 % intervals.

    errors: `evaluate.slices.group_errors`. `0.0 (< x)`: none of the pairs failed, and x is the
    bound of the rule of three. After a trait's groups, how far the worst lies above the best.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for trait, found in errors.items():
        apart: dict[str, Any] = {"persons": ""}
        for rate, kind in (("fnmr", "genuine"), ("fmr", "impostor")):
            apart[f"{kind} pairs"] = ""
            apart[f"{rate.upper()} (%)"] = gap(found["between"][rate], errors=True) or "–"
        for group, rates in _inhabited(found):
            row: dict[str, Any] = {"persons": rates["persons"]}
            for rate, kind in (("fnmr", "genuine"), ("fmr", "impostor")):
                row[f"{kind} pairs"] = f"{rates[f'n_{kind}']:,}"
                row[f"{rate.upper()} (%)"] = _rate(rates, rate)
            rows[trait_name(trait), group] = row
        rows[trait_name(trait), "difference"] = apart
    return _indexed(rows)


def confusions(pairs: pd.DataFrame) -> pd.DataFrame:
    """`evaluate.measures.confused` for readers: who is taken for whom, and how often."""
    if pairs.empty:
        return pd.DataFrame({"taken for another": ["nobody: each query found its person first"]})
    told = {
        "asked for": pairs["pid"],
        "found": pairs["found"],
        "the same person's other hand": pairs["same_person"].map({True: "yes", False: "no"}),
        "queries": pairs["count"],
        "of that person's (%)": (100 * pairs["share"]).round(0).astype(int),
        "mean cosine": pairs["similarity"].round(3),
    }
    return pd.DataFrame(told)


def at_ranks_table(found: pd.DataFrame) -> pd.DataFrame:
    """`evaluate.measures.at_ranks` for readers: a row a k, per cent with 95 % intervals."""
    values = found[["mean", "low", "high"]].to_numpy(dtype=float)
    shown = [spanned(mean, (low, high)) for mean, low, high in values]
    frame = pd.Series(shown, index=found.index).unstack("measure")
    return frame[["precision", "recall", "f1", "ndcg"]].rename(columns={"f1": "F1", "ndcg": "nDCG"})


def gap(between: Mapping[str, Any] | None, errors: bool = False) -> str:
    """`yes over no: 3.1 [−0.4, 6.0] points`: best group over worst, with its 95 % interval.

    errors: of rates of errors, of which the worst group has more.
    """
    if between is None:
        return ""
    low, high = between["ci95"]
    text = f"{100 * between['difference']:.1f} [{100 * low:.1f}, {100 * high:.1f}] points"
    more, less = ("worst", "best") if errors else ("best", "worst")
    return f"{between[more]} over {between[less]}: {text.replace('-', '−')}"


def _rate(rates: Mapping[str, Any], name: str) -> str:
    if rates[name] is None:
        return _FEW
    return share(rates[name], rates["ci95"][name], rates[f"{name}_upper"])


def trait_name(name: str) -> str:
    """A metadata column in words: `skinColor` is "skin tone"."""
    return _TRAITS.get(name, name)


def _inhabited(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A trait's groups, without those of whom nobody was asked for."""
    return [(group, told) for group, told in found["groups"].items() if told["persons"]]


def _indexed(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(list(rows.values()))
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=["trait", "group"])
    return frame


def _lines(trait: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(label, scores, between): the trait's own line, then one of each group."""
    yield trait_name(trait), None, found["between"]
    for group, scores in _inhabited(found):
        yield f"{group} ({quantity(scores['persons'], 'person')})", scores, None


def _dot(ax: Axes, at: float, score: Mapping[str, Any], colour: str, label: str = "") -> None:
    """A mean with its interval, at a height of the axis."""
    ax.plot(score["ci95"], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
    ax.plot(score["mean"], at, "o", color=colour, markersize=6, label=label or None, clip_on=False)


def _write(ax: Axes, at: float, words: str, colour: str) -> None:
    ax.text(0.01, at, words, fontsize=9, color=colour, va="center")


def _rows(ax: Axes, labels: list[str], metric: str, named: bool) -> None:
    """The axis of a panel whose rows have names, at the left panel only."""
    ax.set_yticks(range(len(labels)), labels if named else [""] * len(labels))
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_title(metric)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    grid_lines(ax, "x")
