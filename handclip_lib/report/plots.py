"""Figures of results: every function goes from arrays to a Figure of fixed size."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.canvas import (
    BAD,
    INK,
    PALETTE,
    QUIET,
    canvas,
    grid_lines,
    identity_marks,
    key,
    styled,
    whole_numbers,
)
from handclip_lib.report.page import GALLERIES, WORDS

_BARS = 12  # side by side in a panel; the numbers above more of them run into each other
_MARKS = {"own": (PALETTE[0], "o"), "all": (PALETTE[5], "s")}


@styled
def retrieval_bars(
    variants: Mapping[str, Mapping[str, Any]],
    title: str,
    metrics: Sequence[str] = ("rank1", "rank5", "map", "minp"),
) -> Figure:
    """Means with 95 % person-level intervals, a panel a gallery, a colour a variant.

    Where there are too many for bars with numbers, a row a variant, a panel a metric and a colour a
    gallery. variants: {name: {"own" | "all": {metric: {"mean", "ci95"}}}} as in metrics.json, 0–1.
    """
    shown = [g for g in GALLERIES if any(g in v for v in variants.values())]
    if len(variants) * len(metrics) > _BARS:
        return _variant_rows(variants, title, metrics, shown)
    fig, axes = canvas(title, 1, len(shown), (9.0, 4.2))
    for ax, gallery in zip(axes[0], shown, strict=True):
        _variant_bars(ax, {n: v[gallery] for n, v in variants.items() if gallery in v}, metrics)
        ax.set_title(f"{GALLERIES[gallery]}{_counted(variants, gallery)}")
    key(fig, axes[0, 0])
    return fig


def _variant_bars(
    ax: Axes, scores: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]
) -> None:
    width = 0.8 / len(scores)
    for i, (name, values) in enumerate(scores.items()):
        at = np.arange(len(metrics)) + (i - (len(scores) - 1) / 2) * width
        mean = np.array([values[m]["mean"] for m in metrics])
        low, high = np.array([values[m]["ci95"] for m in metrics]).T
        ax.bar(at, mean, width * 0.92, color=PALETTE[i % len(PALETTE)], label=name)
        _whiskers(ax, at, mean, (mean - low, high - mean), "y")
        for x, value, top in zip(at, mean, high, strict=True):
            ax.text(x, top + 0.015, f"{100 * value:.0f}", ha="center", fontsize=9)
    ax.set_xticks(range(len(metrics)), [WORDS[m] for m in metrics])
    _percent(ax)
    ax.set_ylim(0, 1.1)
    grid_lines(ax)


def _variant_rows(
    variants: Mapping[str, Mapping[str, Any]],
    title: str,
    metrics: Sequence[str],
    galleries: Sequence[str],
) -> Figure:
    """A row a variant: a dot with its interval and, at the right, the number of each gallery."""
    size = 10.0, 1.6 + 0.19 * len(galleries) * len(variants)
    fig, axes = canvas(title, 1, len(metrics), size)
    for ax, metric in zip(axes[0], metrics, strict=True):
        for i, gallery in enumerate(galleries):
            colour, marker = _MARKS[gallery]
            found = [(at, v[gallery]) for at, v in enumerate(variants.values()) if gallery in v]
            at = np.array([row for row, _ in found]) + 0.4 * (i - (len(galleries) - 1) / 2)
            mean = np.array([scores[metric]["mean"] for _, scores in found])
            ends = np.array([scores[metric]["ci95"] for _, scores in found]).T
            ax.hlines(at, *ends, color=colour, linewidth=2)
            label = f"{GALLERIES[gallery]}{_counted(variants, gallery)}".replace("\n", ": ")
            ax.plot(mean, at, marker, color=colour, markersize=5.5, label=label, clip_on=False)
            look: Any = {"color": colour, "fontsize": 8.5, "ha": "right", "va": "center"}
            for y, value in zip(at, mean, strict=True):
                place: Any = {"xytext": (26, 0), "textcoords": "offset points"}
                ax.annotate(f"{100 * value:.0f}", (1, y), **place, **look)
        ax.hlines(np.arange(1, len(variants)) - 0.5, 0, 1, color="#E4E7EB", linewidth=0.8, zorder=0)
        ax.set(xlim=(0, 1), ylim=(len(variants) - 0.45, -0.55), title=WORDS[metric])
        ax.set_xticks(np.linspace(0, 1, 6 if len(metrics) < 3 else 3))
        ax.set_yticks(range(len(variants)), variants if ax is axes[0, 0] else [""] * len(variants))
        _percent(ax, "x")
        grid_lines(ax, "x")
    key(fig, axes[0, 0])
    return fig


def _counted(variants: Mapping[str, Mapping[str, Any]], gallery: str) -> str:
    first = next(v[gallery] for v in variants.values() if gallery in v)
    names = [name for name in ("queries", "gallery", "persons") if name in first]
    words = {"queries": "queries", "gallery": "in the gallery", "persons": "persons"}
    return "\n" + ", ".join(f"{first[n]} {words[n]}" for n in names) if names else ""


def _percent(ax: Axes, axis: str = "y") -> None:
    (ax.yaxis if axis == "y" else ax.xaxis).set_major_formatter(PercentFormatter(1.0, 0, " %"))


@styled
def cmc(queries: Mapping[str, pd.DataFrame], title: str, top: int = 20) -> Figure:
    """Cumulative match curves: how often the right person is among the first k, k = 1 … top.

    queries: {label: rows draw, rank (of the first match)} as `evaluate.protocol.per_query` gives
    them; a curve is the mean of its draws.
    """
    fig, axes = canvas(title, size=(7.0, 4.2))
    ax = axes[0, 0]
    ranks = np.arange(1, top + 1)
    low = 1.0
    for i, (label, frame) in enumerate(queries.items()):
        hits = frame["rank"].to_numpy()[:, None] <= ranks  # (Q, top)
        rates = pd.DataFrame(hits).groupby(frame["draw"].to_numpy()).mean().mean().to_numpy()
        name = f"{label}: rank-1 {100 * rates[0]:.1f} %"
        style = {"color": PALETTE[i % len(PALETTE)], "ls": ("-", "--", ":")[i // len(PALETTE) % 3]}
        ax.plot(ranks, rates, marker="o", markersize=3.5, linewidth=1.8, label=name, **style)
        low = min(low, rates[0])
    ax.set_ylim(max(0.0, np.floor(10 * low - 0.5) / 10), 1.02)
    whole_numbers(ax, "x")
    ax.set_xlabel("rank k")
    ax.set_ylabel("queries answered by rank k")
    _percent(ax)
    grid_lines(ax)
    ax.legend(loc="lower right")
    return fig


@styled
def similarity_distributions(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str
) -> Figure:
    """Cosine similarity of genuine and impostor pairs, a panel a gallery.

    scores: {gallery: (genuine (n,), impostor (m,))}. Both kinds are drawn to the same area: there
    are far more impostor pairs. d' is (difference of means) / sqrt(mean of variances).
    """
    fig, axes = canvas(title, 1, len(scores), (9.0 if len(scores) > 1 else 6.5, 3.8))
    low = min(float(min(g.min(), i.min())) for g, i in scores.values())
    for ax, (name, (genuine, impostor)) in zip(axes[0], scores.items(), strict=True):
        kinds = {
            f"genuine ({len(genuine):,} pairs)": (genuine, PALETTE[0]),
            f"impostor ({len(impostor):,} pairs)": (impostor, BAD),
        }
        for label, (values, colour) in kinds.items():
            sns.histplot(
                x=values, bins=np.linspace(low, 1, 41), stat="density", kde=len(values) > 5,
                color=colour, alpha=0.35, edgecolor="none", label=label, ax=ax,
            )  # fmt: skip
        spread = np.sqrt((genuine.var() + impostor.var()) / 2)
        distance = (genuine.mean() - impostor.mean()) / spread if spread > 0 else float("inf")
        ax.set_title(f"{name}: d′ = {distance:.2f}")
        ax.set_xlabel("cosine similarity")
        ax.set_ylabel("density")
        ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
        ax.legend(loc="upper left")
        grid_lines(ax)
    return fig


@styled
def feature_space(
    panels: Mapping[str, np.ndarray],
    pids: Sequence[Hashable] | np.ndarray,
    title: str,
    identities: int = 20,
) -> Figure:
    """The same images projected in several ways or by several models, side by side.

    panels: {label: (N, 2)}; pids: (N,). Up to `identities` persons have a colour and marker of
    their own, the same in every panel, the rest are grey.
    """
    people = np.asarray(pids)
    fig, axes = canvas(title, 1, len(panels), (max(4.5, min(12.0, 3.6 * len(panels))), 4.4))
    for ax, (label, points) in zip(axes[0], panels.items(), strict=True):
        scatter(ax, points, people, identities)
        ax.set_title(label)
    fig.supxlabel(space_note(people, identities, list(panels)), fontsize=9, x=0.01, ha="left")
    return fig


def scatter(ax: Axes, points: np.ndarray, people: np.ndarray, identities: int) -> None:
    """Photographs (N, 2) on square axes without numbers; up to `identities` persons coloured."""
    marks = identity_marks(people.tolist(), identities)
    rest = ~np.isin(people, np.asarray(list(marks)))
    ax.scatter(points[rest, 0], points[rest, 1], s=9, color=QUIET, linewidths=0, rasterized=True)
    for pid, (colour, marker) in marks.items():
        mine = points[people == pid]
        dots = ax.scatter(mine[:, 0], mine[:, 1], s=22, color=colour, marker=marker)
        dots.set(linewidths=0.3, edgecolors="w")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#D5DAE1")
    ax.set_box_aspect(1)


def space_note(people: np.ndarray, identities: int, labels: Sequence[str]) -> str:
    """How many photographs and persons a feature space shows, and what its distances are worth."""
    shown, total = len(identity_marks(people.tolist(), identities)), len(set(people.tolist()))
    note = f"n = {len(people)} photographs; {shown} of {total} persons coloured"
    if any(name in label for label in labels for name in ("t-SNE", "UMAP")):
        note += "; distances of t-SNE and UMAP are not to scale"
    return note


@styled
def zero_shot_bars(result: Mapping[str, Any], title: str) -> Figure:
    """Zero-shot accuracy of each prompt template and of all together, with the line of chance.

    result: what `evaluate.zeroshot.zero_shot` gives.
    """
    scores = {t["template"]: t for t in result["templates"]}
    scores["all templates together"] = result["ensemble"]
    fig, axes = canvas(title, size=(9.0, 1.8 + 0.42 * len(scores)))
    ax = axes[0, 0]
    mean = np.array([s["accuracy"] for s in scores.values()])
    low, high = np.array([s["ci95"] for s in scores.values()]).T
    at = np.arange(len(scores))
    ax.barh(at, mean, 0.7, color=[PALETTE[0]] * (len(scores) - 1) + [PALETTE[1]])
    _whiskers(ax, mean, at, (mean - low, high - mean), "x")
    for y, value, end in zip(at, mean, high, strict=True):
        ax.text(end + 0.012, y, f"{100 * value:.1f} %", va="center", fontsize=9)
    ax.axvline(result["chance"], color=INK, linestyle="--", linewidth=1)
    ax.text(result["chance"], -0.6, f" chance {100 * result['chance']:.0f} %", fontsize=9)
    ax.set_yticks(at, list(scores))
    ax.set_ylim(len(scores) - 0.4, -1.1)
    ax.set_xlim(0, 1.08)
    ax.set_xlabel("accuracy (95 % interval over persons)")
    ax.set_title(f"n = {result['images']} photographs of {result['persons']} persons")
    _percent(ax, "x")
    grid_lines(ax, "x")
    return fig


def _whiskers(
    ax: Axes, x: np.ndarray, y: np.ndarray, error: tuple[np.ndarray, np.ndarray], axis: str
) -> None:
    xerr, yerr = (error, None) if axis == "x" else (None, error)
    ax.errorbar(x, y, yerr, xerr, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)


@styled
def confusion(
    counts: np.ndarray | Sequence[Sequence[int]], labels: Sequence[str], title: str
) -> Figure:
    """Confusion matrix. counts: (C, C), rows the truth; shaded by the share of the row."""
    counts = np.asarray(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [ASPECTS[name].title if name in ASPECTS else name for name in labels]
    words = [f"{100 * s:.0f} %\n{n}" for s, n in zip(share.flat, counts.flat, strict=True)]
    side = 1.1 * len(names)
    fig, axes = canvas(title, size=(min(9.0, 3.2 + side), 1.6 + 0.8 * side))
    ax = axes[0, 0]
    sns.heatmap(
        pd.DataFrame(share, index=names, columns=names), annot=np.reshape(words, share.shape),
        fmt="", cmap="Blues", vmin=0, vmax=1, linewidths=1.5, ax=ax,
        cbar_kws={"label": "share of the row", "format": PercentFormatter(1.0, 0, " %")},
    )  # fmt: skip
    total = int(counts.sum())
    right = 100 * np.trace(counts) / max(1, total)
    ax.set_title(f"accuracy {right:.1f} %, n = {total}")
    ax.set_xlabel("answered")
    ax.set_ylabel("truth")
    ax.tick_params(length=0, rotation=0)
    return fig
