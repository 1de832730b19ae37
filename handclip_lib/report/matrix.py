"""All models of a study in one table, what each cost, and which of them really differ."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import holm, paired_test
from handclip_lib.report.canvas import INK, PALETTE, canvas, grid_lines, saying, styled
from handclip_lib.report.lineup import Contender
from handclip_lib.report.page import GALLERIES, SHOWN, WORDS, in_points
from handclip_lib.report.plots import retrieval_bars
from handclip_lib.report.published import elsewhere, published
from handclip_lib.report.summary import percent

Scores = Mapping[str, Mapping[str, Any]]  # model -> gallery -> `evaluate.protocol.evaluate`'s
PAIRS = tuple[str, str]
_REACH = 0.05  # the difference that has the full colour where none is larger


def matrix_table(
    contenders: Sequence[Contender],
    scores: Scores,
    geometry: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """A row a model. `scores (%)`: in both galleries; `training and features`: its losses, what its
    training cost, and how good its features are.

    scores: per cent with 95 % intervals in the own gallery, mAP by both definitions, and mAP among
    all aspects; geometry: {model: `evaluate.geometry.geometry`}. Images a second are those of the
    training; memory is the most that the whole run took.
    """
    rows = {}
    for one in contenders:
        own, others = scores[one.name]["own"], scores[one.name].get("all")
        found = {label: percent(own[key]) for key, label in WORDS.items()}
        found["mAP, all aspects"] = percent(others["map"]) if others else "–"
        quality = geometry[one.name]
        more = {"losses": one.losses} | _cost(one)
        more |= {name: f"{quality[name]:.3f}" for name in ("silhouette", "alignment")}
        rows[one.name] = {("scores (%)", key): value for key, value in found.items()}
        rows[one.name] |= {("training and features", key): value for key, value in more.items()}
    return pd.DataFrame(rows).T.rename_axis("model")


def _cost(one: Contender) -> dict[str, str]:
    def told(value: float | None, form: str = ",.0f") -> str:
        return "–" if value is None else format(value, form)

    rate = one.image_passes / one.seconds if one.image_passes and one.seconds else None
    return {
        "own training (s)": told(one.seconds, ",.1f"),
        "image passes": told(one.image_passes),
        "images/s": told(rate),
        "parameters trained": told(one.trained_parameters),
        "memory of the run (MB)": told(one.memory_mb),
    }


def pairwise(
    queries: Mapping[str, pd.DataFrame], metric: str = "map", seed: int = 0, samples: int = 10_000
) -> dict[PAIRS, dict[str, Any]]:
    """{(a, b): test} of every two models on the same queries: b less a, Holm over all pairs.

    queries: {model: `evaluate.protocol.per_query`}; a test is what `paired_test` gives and `holm`.
    """
    column = METRICS[metric]
    found = {
        (a, b): paired_test(
            queries[a][column], queries[b][column], queries[a]["pid"], samples, seed
        )
        for a, b in combinations(queries, 2)
    }
    adjusted = holm({f"{a}\n{b}": test["p"] for (a, b), test in found.items()})
    return {pair: test | {"holm": adjusted["\n".join(pair)]} for pair, test in found.items()}


@styled
def pairwise_heat(tests: Mapping[PAIRS, Mapping[str, Any]], title: str, metric: str) -> Figure:
    """Every model against every other: points that the row's is above the column's.

    tests: of `pairwise`. Bold, with a star, where the p of all pairs, corrected by Holm, is 0.05 at
    most.
    """
    names = list(dict.fromkeys(name for pair in tests for name in pair))
    if not names:
        return saying(title, "there is one model alone: nothing to compare")
    place = {name: i for i, name in enumerate(names)}
    points, sure = np.full((len(names),) * 2, np.nan), np.zeros((len(names),) * 2, dtype=bool)
    for (a, b), test in tests.items():
        i, j = place[a], place[b]
        points[j, i], points[i, j] = test["difference"], -test["difference"]
        sure[i, j] = sure[j, i] = test["holm"] <= 0.05
    fig, axes = canvas(title, 1, 1, (max(7.0, 3.2 + 0.6 * len(names)), 2.0 + 0.46 * len(names)))
    ax, reach = axes[0, 0], max(_REACH, float(np.nanmax(np.abs(points))))
    shown = ax.imshow(points, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (i, j), value in np.ndenumerate(points):
        if i != j:
            words = in_points(value) + "*" * bool(sure[i, j])
            colour = "white" if abs(value) > 0.65 * reach else INK
            weight = "bold" if sure[i, j] else "normal"
            ax.text(
                j, i, words, ha="center", va="center", fontsize=8, color=colour, fontweight=weight
            )
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.spines[:].set_visible(False)
    fig.colorbar(shown, ax=ax, format=PercentFormatter(1.0, None, ""), pad=0.02).set_label("points")
    note = f"{metric}: row less column, in points. Bold and *: p of all pairs (Holm) 0.05 at most"
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    return fig


def bars(scores: Scores, title: str) -> Figure:
    """Rank-1 and mAP of every model in both galleries."""
    return retrieval_bars(scores, title, metrics=tuple(SHOWN))


def ways_table(
    scores: Mapping[str, Scores], gallery: str = "own", metric: str = "map"
) -> pd.DataFrame:
    """A row a way to rank, a column a model: per cent with 95 % intervals.

    scores: {model: {way: {gallery: scores}}}; a gallery that nobody was asked in gives no column.
    """
    frame = pd.DataFrame(
        {
            name: {
                way: percent(found[gallery][metric])
                for way, found in of_way.items()
                if gallery in found
            }
            for name, of_way in scores.items()
        }
    )
    return frame.rename_axis(index=f"{WORDS[metric]}, {GALLERIES[gallery]}")


@styled
def ways_change(scores: Mapping[str, Scores], title: str, gallery: str = "own") -> Figure:
    """What each way to rank adds to cosine, in points of rank-1 and mAP, a dot a model.

    scores: {model: {way: {gallery: scores}}}, the first way being cosine.
    """
    first, *ways = next(iter(scores.values()))
    fig, axes = canvas(title, 1, 2, (10.0, 1.7 + 0.42 * len(ways)))
    for ax, (metric, words) in zip(axes[0], SHOWN.items(), strict=True):
        for i, (name, of_way) in enumerate(scores.items()):
            base = of_way[first][gallery][metric]["mean"]
            gains = [of_way[way][gallery][metric]["mean"] - base for way in ways]
            at = np.arange(len(ways)) + 0.5 * (i / max(1, len(scores) - 1) - 0.5)
            colour = PALETTE[i % len(PALETTE)]
            ax.plot(gains, at, "o", color=colour, markersize=6, label=name, alpha=0.9)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set_yticks(range(len(ways)), ways)
        ax.set_ylim(len(ways) - 0.5, -0.5)
        ax.set_title(words)
        ax.set_xlabel(f"points above {first}")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, 0, ""))
        grid_lines(ax, "x")
    axes[0, 1].tick_params(labelleft=False)
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def published_table(dataset: str, aspect: str) -> pd.DataFrame:
    """Published results for readers: a row a method, by gallery, the best rank-1 first, per cent.

    Below them what was trained on that data set and tested on another, any aspect. An mAP that was
    derived is in brackets. Of a method with versions (`… v5, …`) the best stands for all, with
    their number and their range in the notes.
    """
    both = (
        part.sort_values(["gallery", "rank1"], ascending=[True, False], kind="stable")
        for part in (published(dataset, aspect), elsewhere(dataset))
    )
    frame = pd.concat(both)
    frame["family"] = frame["method"].str.replace(r" v\d+", "", regex=True)
    rows = []
    for _, versions in frame.groupby(["dataset", "gallery", "trained", "family"], sort=False):
        row: dict[Any, Any] = versions.iloc[0].to_dict()
        away = f"{row['dataset']}, " * (row["dataset"] != dataset)
        rows.append(
            {
                "gallery": f"{away}{GALLERIES[row['gallery']]} ({row['entries']:,})",
                "method": row["method"],
                "trained on": row["trained"] or "–",
                **{f"rank-{k}": _printed(row[f"rank{k}"]) for k in (1, 5, 10)},
                "mAP": _printed(row["map"], row["ap"] != "standard"),
                "mAP (trapezoid)": _printed(row["map_trapezoid"], row["ap"] == "standard"),
                "source": row["source"],
                "notes": _versions(versions["rank1"]) + row["notes"] or "–",
            }
        )
    return pd.DataFrame(rows).set_index(["gallery", "method"]) if rows else pd.DataFrame()


def _versions(rank1: pd.Series) -> str:
    if len(rank1) == 1:
        return ""
    low, high = _printed(rank1.min()), _printed(rank1.max())
    return f"best of {len(rank1)} versions, rank-1 from {low} to {high}; "


def _printed(value: float, derived: bool = False) -> str:
    if np.isnan(value):
        return "–"
    return f"[{100 * value:.2f}]" if derived else f"{100 * value:.2f}"
