"""Figures of what a model looks at, and of the pairs of photographs that decide an evaluation."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from handclip_lib.evaluate.explanation import Explanation
from handclip_lib.report.canvas import (
    BAD,
    GOOD,
    INK,
    PALETTE,
    Frame,
    blank,
    canvas,
    grid_lines,
    key,
    photograph,
    saying,
    styled,
    tight,
)
from handclip_lib.report.galleries import Pixels

_COLOURS = "inferno"
_VEIL = 0.62  # of a map over its photograph


@styled
def map_grid(
    pixels: npt.ArrayLike,
    maps: Mapping[str, npt.NDArray[np.floating]],
    title: str,
    names: Sequence[str] = (),
    below: Sequence[str] = (),
    frames: Sequence[Frame | None] = (),
    width: float = 9.0,
) -> Figure:
    """Photographs in the first row, below them a row a kind of map, laid over them in grey.

    pixels: (N, H, W, 3) uint8; maps: {kind: (N, h, w)} >= 0, each map coloured from 0 to its own
    largest value: colours of two photographs are not on one scale. names, below: above and below
    each photograph; frames: around it, colour and width in points; width: of all, in inches.
    """
    pictures = np.asarray(pixels)
    count = len(pictures)
    cell = min(1.7, width / count)
    tall = cell * pictures.shape[1] / pictures.shape[2]
    height = 0.6 + (tall + 0.02) * (len(maps) + 1) + (0.2 if below else 0)
    size = (max(5.0, cell * count + 0.5), height)
    fig, axes = canvas(title, len(maps) + 1, count, size)
    for at, ax in enumerate(axes[0]):
        photograph(ax, pictures[at], frames[at] if frames else None)
        ax.set_title(names[at] if len(names) else "", fontsize=8, pad=3, loc="center")
        ax.set_xlabel(below[at] if below else "", fontsize=8, labelpad=2)
    for line, values in zip(axes[1:], maps.values(), strict=True):
        for at, ax in enumerate(line):
            _veiled(ax, pictures[at], values[at])
    for ax, word in zip(axes[:, 0], ("photograph", *maps), strict=True):
        ax.set_ylabel(word, fontsize=9)
    tight(fig)
    return fig


@styled
def pair_board(
    facing: tuple[np.ndarray, np.ndarray, pd.DataFrame, str] | None, title: str, why: str = ""
) -> Figure:
    """Two photographs with the places that answer each other joined by lines, and both maps.

    facing: as `evaluate.explanation.faced` gives it: pixels (2, H, W, 3) uint8; maps (2, h, w) >= 0
    of each photograph with the other as its reference; places on their grid; a line set below.
    None: `why` is said instead.
    """
    if facing is None:
        return saying(title, why)
    pixels, maps, evidence, note = facing
    pictures = np.asarray(pixels)
    tall = 2.5 * pictures.shape[1] / pictures.shape[2]
    fig, axes = canvas(title, 1, 4, (10.2, tall + 1.05))
    grid = (maps.shape[1], maps.shape[2])
    for k, name in enumerate(("query", "gallery")):
        photograph(axes[0, k], pictures[k])
        axes[0, k].set_title(name, fontsize=9, pad=3)
        _veiled(axes[0, 2 + k], pictures[k], maps[k])
        axes[0, 2 + k].set_title(f"what raises the cosine: {name}", fontsize=9, pad=3)
    for at, row in enumerate(evidence.to_dict("records")):
        _join(axes[0, 0], axes[0, 1], row, grid, pictures.shape[1:3], PALETTE[at % 7])
    axes[0, 0].set_xlabel(_counted(evidence["similarity"]), fontsize=8, loc="left")
    fig.supxlabel(note, fontsize=9, x=0.01, ha="left")
    tight(fig)
    return fig


@styled
def hardest_pairs(
    pairs: pd.DataFrame,
    pixels: Pixels,
    title: str,
    most: int = 5,
    threshold: float | npt.NDArray[np.floating] | None = None,
) -> Figure:
    """The most alike photographs of different persons, and the least alike ones of one person.

    pairs: columns `query, pid, gallery, gallery_pid, similarity`, a row a pair; pixels: e.g.
    `store.pixels`, called once with what is shown. Each person (each two, where they differ) is
    shown once, by the worst pair. threshold: the similarity from which a pair is taken for one
    person, one for all or (n,) of each pair; pairs on its wrong side have a red frame.
    """
    same = pairs["pid"] == pairs["gallery_pid"]
    wrong = False if threshold is None else (pairs["similarity"] >= threshold) != same
    pairs = pairs.assign(wrong=wrong)
    rows = {
        "different persons,\nmost alike": _worst(pairs[~same], most, falling=True),
        "same person,\nleast alike": _worst(pairs[same], most, falling=False),
    }
    shown = pd.concat(rows.values())
    images = list(dict.fromkeys([*shown["query"], *shown["gallery"]]))
    pictures = dict(zip(images, np.asarray(pixels(images)), strict=True))
    count = max(len(part) for part in rows.values())
    height, width = next(iter(pictures.values())).shape[:2]
    tall = 0.93 * height / width
    fig, axes = canvas(title, 2, max(1, count), (max(6.0, 1.9 * count + 0.5), 1.3 + 2 * tall))
    for line, (word, part) in zip(axes, rows.items(), strict=True):
        for ax, row in zip(line, part.to_dict("records"), strict=False):
            _face(ax, row, [pictures[row["query"]], pictures[row["gallery"]]])
        line[0].set_ylabel(word, fontsize=9)
        blank(line[max(1, len(part)) :])
        if part.empty:
            photograph(line[0], np.full((height, 2 * width, 3), 255, np.uint8))
    tight(fig)
    return fig


@styled
def randomisation(
    agreements: Mapping[str, Mapping[str, npt.NDArray[np.floating]]] | None,
    title: str,
    why: str = "",
) -> Figure:
    """How alike maps stay while the tower's weights are lost, from the output to the pixels.

    agreements: {kind of map: {stage lost last: (N,) rank correlations with the map of the whole
    tower}}, of `evaluate.explanation.agreements`. Lines are means, dots images. None: `why` is
    said instead.
    """
    if agreements is None:
        return saying(title, why)
    fig, axes = canvas(title, 1, 1, (7.5, 3.6))
    ax = axes[0, 0]
    stages = list(next(iter(agreements.values())))
    for at, (kind, of) in enumerate(agreements.items()):
        values = [np.asarray(of[stage], dtype=float) for stage in stages]
        means = [float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for v in values]
        place = np.arange(1, len(stages) + 1) + 0.12 * (at - (len(agreements) - 1) / 2)
        for x, dots in zip(place, values, strict=True):
            ax.plot(np.full(len(dots), x), dots, ".", color=PALETTE[at], alpha=0.35, markersize=4)
        ax.plot([0, *place], [1, *means], "o-", color=PALETTE[at], markersize=5, label=kind)
    ax.axhline(0, color=INK, linewidth=1)
    ax.set_xticks(range(len(stages) + 1), ["as\nlearned", *(s.replace(" ", "\n") for s in stages)])
    ax.set(ylim=(-1.05, 1.05), ylabel="rank correlation", xlabel="weights in random order up to")
    grid_lines(ax)
    ax.legend(loc="lower left")
    return fig


@styled
def deletions(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str, share: float
) -> Figure:
    """Change of the cosine when a map's top places are blanked, beside random and lowest ones.

    scores: {kind of map: what `evaluate.faithfulness.faithfulness` gives}; a name may have lines,
    and long ones are wrapped; share: of the places that were blanked. Bars are means with 95 %
    intervals over persons.
    """
    fig, axes = canvas(title, 1, 1, (max(7.0, 1.0 + 1.4 * len(scores)), 3.6))
    ax, names = axes[0, 0], ("top", "random", "lowest")
    for at, name in enumerate(names):
        place = np.arange(len(scores)) + 0.27 * (at - 1)
        mean = np.array([of[name]["mean"] for of in scores.values()])
        low, high = np.array([of[name]["ci95"] for of in scores.values()]).T
        colour = (BAD, PALETTE[6], GOOD)[at]
        ax.bar(place, mean, 0.25, color=colour, label=f"{name} {100 * share:.0f} %")
        # an interval of few persons need not hold the mean
        error = np.maximum([mean - low, high - mean], 0)
        ax.errorbar(place, mean, error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    ax.axhline(0, color=INK, linewidth=1)
    ax.set_xticks(range(len(scores)), [_wrapped(name) for name in scores])
    ax.set_ylabel("change of the cosine")
    grid_lines(ax)
    key(fig, ax)
    return fig


def hand_table(shown: Mapping[str, Explanation]) -> pd.DataFrame:
    """A row a model and map: how much lies on the hand, and what blanking its top places does.

    `hand`: the hand's share of the picture, which a map of looking nowhere in particular would
    score. Per cent, means over the photographs of which the hand is known; changes of the cosine
    with 95 % intervals over persons.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, told in shown.items():
        for kind, blanked in told.blanked.items():
            low, high = blanked["top_less_random"]["ci95"]
            change = f"{blanked['top_less_random']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows[name, kind] = {
                "on the hand (%)": _mean(told.on_hand[kind]),
                "hand (%)": _mean(told.on_hand["hand"]),
                "top less random": change.replace("-", "−"),
            }
        for kind, why in told.left_out.items():
            rows[name, kind] = {"note": why}
    frame = pd.DataFrame(list(rows.values())).fillna("–")
    frame.index = pd.MultiIndex.from_tuples(list(rows), names=["model", "map"])
    return frame


def _wrapped(name: str) -> str:
    """A name whose lines fit below a group of bars."""
    return "\n".join(textwrap.fill(line, 18) for line in name.split("\n"))


def _mean(shares: np.ndarray) -> str:
    known = shares[np.isfinite(shares)]
    return f"{100 * known.mean():.0f}" if len(known) else "–"


def _counted(found: pd.Series) -> str:
    if found.empty:
        return "no place agrees"
    span = sorted({f"{value:.2f}".replace("-", "−") for value in (found.min(), found.max())})
    return f"{len(found)} place{'s agree' if len(found) > 1 else ' agrees'}, cosine " + (
        " to ".join(span)
    )


def _face(ax: Axes, row: Mapping[Any, Any], both: Sequence[np.ndarray]) -> None:
    """The two photographs of a pair, red where it is taken for what it is not."""
    pixels = np.concatenate([both[0], np.full_like(both[0][:, :3], 255), both[1]], 1)
    photograph(ax, pixels, (BAD, 2) if row["wrong"] else None)
    who = " and ".join(dict.fromkeys(str(row[side]) for side in ("pid", "gallery_pid")))
    ax.set_title(who, fontsize=8, pad=3, loc="center")
    ax.set_xlabel(f"{row['similarity']:.3f}".replace("-", "−"), fontsize=8, labelpad=3)


def _worst(pairs: pd.DataFrame, most: int, falling: bool) -> pd.DataFrame:
    """The first pair of each one or two persons; equals in the order of names, on any machine."""
    keys = ["similarity", "query", "gallery"]
    ranked = pairs.sort_values(keys, ascending=[not falling, True, True])
    low, high = (
        ranked[["pid", "gallery_pid"]].min(axis=1),
        ranked[["pid", "gallery_pid"]].max(axis=1),
    )
    return ranked[~pd.DataFrame({"low": low, "high": high}).duplicated()].head(most)


def _veiled(ax: Axes, picture: np.ndarray, values: npt.NDArray[np.floating]) -> None:
    """A map, smoothed between its places, over the photograph in grey."""
    height, width = picture.shape[:2]
    layer = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    smooth = np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)).clip(min=0)
    photograph(ax, np.asarray(Image.fromarray(picture).convert("L").convert("RGB")))
    ax.imshow(smooth, cmap=_COLOURS, alpha=_VEIL, vmin=0, vmax=max(float(smooth.max()), 1e-12))


def _join(
    left: Axes,
    right: Axes,
    row: Mapping[Any, Any],
    grid: tuple[int, int],
    size: tuple[int, int],
    colour: str,
) -> None:
    """Frame a place on each photograph, and a line between the two."""
    tall, wide = size[0] / grid[0], size[1] / grid[1]
    middles = []
    for ax, side in ((left, "query"), (right, "gallery")):
        x, y = row[f"{side}_column"] * wide - 0.5, row[f"{side}_row"] * tall - 0.5
        ax.add_patch(Rectangle((x, y), wide, tall, fill=False, edgecolor=colour, linewidth=1.6))
        middles.append((x + wide / 2, y + tall / 2))
    line = ConnectionPatch(
        middles[0], middles[1], "data", "data", axesA=left, axesB=right, color=colour, linewidth=1.1
    )
    line.set_in_layout(False)
    right.add_artist(line)
