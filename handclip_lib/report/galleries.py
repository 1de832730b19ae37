"""Figures made of photographs: identities row by row, and what retrieval answered."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from handclip_lib.aspects import OFFSETS
from handclip_lib.data.augment import Augmenter
from handclip_lib.device import seed_step
from handclip_lib.report.canvas import BAD, GOOD, INK, blank, canvas, photograph, styled, tight

Pixels = Callable[[Sequence[str]], Any]  # images -> (N, H, W, 3) uint8 array or tensor


@styled
def identity_grid(
    images: Sequence[str] | pd.Series,
    pids: Sequence[int] | pd.Series | np.ndarray,
    pixels: Pixels,
    title: str,
    rows: int = 6,
    columns: int = 8,
) -> Figure:
    """A row of photographs for each of the first `rows` identities that occur.

    images, pids: (N,) in one order; at most `columns` photographs a row. pixels: e.g.
    `store.pixels`, called once with the images that are shown.
    """
    given = pd.DataFrame({"image": np.asarray(images), "pid": np.asarray(pids)})
    few = given[given["pid"].isin(given["pid"].unique()[:rows])].groupby("pid").head(columns)
    people = few["pid"].to_numpy()
    shown = few["pid"].unique()
    width = int(few["pid"].value_counts().max())
    pictures = np.asarray(pixels(few["image"].tolist()))
    cell = min(1.3, 8.4 / width)
    tall = cell * pictures.shape[1] / pictures.shape[2] + 0.05
    size = (max(6.0, cell * width + 0.6), 0.6 + tall * len(shown))
    fig, axes = canvas(title, len(shown), width, size)
    for line, pid in zip(axes, shown, strict=True):
        mine = np.flatnonzero(people == pid)
        for ax, at in zip(line, mine, strict=False):
            photograph(ax, pictures[at])
        blank(line[len(mine) :])
        line[0].set_ylabel(f"{pid}", rotation=0, ha="right", va="center", fontsize=9)
    tight(fig)
    return fig


@styled
def augmented(
    images: Sequence[str] | pd.Series,
    pids: Sequence[int] | pd.Series | np.ndarray,
    pixels: Pixels,
    augmenter: Augmenter,
    title: str,
    times: int = 7,
    seed: int = 0,
) -> Figure:
    """A row a photograph: as it is, then `times` times as training sees it, by chance of `seed`.

    images, pids: (N,) in one order, few; pixels: e.g. `store.pixels`; augmenter: the training's,
    whose normalisation is undone for the picture.
    """
    given = torch.as_tensor(np.asarray(pixels(list(images))))
    seed_step(seed, 0)
    seen = augmenter(given.repeat_interleave(times, dim=0))  # (N * times, 3, H, W)
    told = augmenter.preprocess
    mean, std = (torch.tensor(v)[:, None, None] for v in (told.mean, told.std))
    shown = ((seen * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    cell = 8.4 / (times + 1)
    tall = cell * given.shape[1] / given.shape[2] + 0.05
    fig, axes = canvas(title, len(given), times + 1, (9.0, 0.65 + tall * len(given)))
    for i, (line, pid) in enumerate(zip(axes, pids, strict=True)):
        photograph(line[0], given[i].numpy(), (INK, 1.2))
        line[0].set_ylabel(f"{pid}", rotation=0, ha="right", va="center", fontsize=9)
        for k, ax in enumerate(line[1:]):
            photograph(ax, shown[i * times + k].numpy())
    axes[0, 0].set_title("as it is", fontsize=9, pad=3)
    axes[0, 1].set_title("as training sees it", fontsize=9, pad=3)
    tight(fig)
    return fig


@styled
def ranked(
    ranking: pd.DataFrame,
    pixels: Pixels,
    title: str,
    queries: int | Sequence[str] = 5,
    top: int = 10,
) -> Figure:
    """Queries, each followed by the first `top` of its gallery: green frame right, red wrong.

    ranking: rows as `evaluate.protocol.ranking` gives them (of one draw); queries: which images,
    or how many, spread evenly over all. pixels: e.g. `store.pixels`, called once with the images
    that are shown. Above a photograph is its person, below it the similarity; below a query the
    rank of the first right answer.
    """
    known = list(dict.fromkeys(ranking["query"]))
    if isinstance(queries, int):
        at = np.linspace(0, len(known) - 1, min(queries, len(known))).round().astype(int)
        queries = [known[i] for i in at]
    fig, axes, pictures = _sheet(ranking, [queries], pixels, title, top)
    for line, query in zip(axes, queries, strict=True):
        _ranked_row(line, _of(ranking, query, top), pictures, "query")
    return fig


@styled
def best_and_worst(
    ranking: pd.DataFrame,
    best: Sequence[str] | pd.Series,
    worst: Sequence[str] | pd.Series,
    pixels: Pixels,
    title: str,
    top: int = 5,
) -> Figure:
    """The ranked lists of the best queries beside those of the worst, as `ranked` draws them.

    best, worst: query images, of the ranking's draw: the column `image` of what
    `evaluate.protocol.best_and_worst` gives for the rows of that draw.
    """
    sides = [list(best), list(worst)]
    fig, axes, pictures = _sheet(ranking, sides, pixels, title, top)
    middle = axes.shape[1] // 2
    blank(axes[:, middle])
    for queries, first, word in zip(sides, (0, middle + 1), ("best", "worst"), strict=True):
        for line, query in zip(axes[:, first : first + middle], queries, strict=False):
            _ranked_row(line, _of(ranking, query, top), pictures, word)
        blank(axes[len(queries) :, first : first + middle].flat)
    return fig


def person_name(pid: int) -> str:
    """The person's number; a star marks the hand of another aspect, a distractor's label."""
    taken = max((offset for offset in OFFSETS if pid >= offset), default=0)
    return f"{pid - taken}*" if taken else f"{pid}"


def _sheet(
    ranking: pd.DataFrame,
    sides: Sequence[Sequence[str]],
    pixels: Pixels,
    title: str,
    top: int,
) -> tuple[Figure, np.ndarray, dict[str, np.ndarray]]:
    """Axes for lists side by side (an empty column between them) and the pictures they show."""
    queries = list(dict.fromkeys(query for side in sides for query in side))
    missing = [query for query in queries if query not in set(ranking["query"])]
    if missing or not queries:
        raise ValueError(f"the ranking has no query {missing[0] if missing else 'at all'}")
    rows = ranking[ranking["query"].isin(queries) & (ranking["rank"] <= top)]
    if (rows["gallery_pid"] >= min(OFFSETS)).any():
        title += " (* hand of another aspect)"
    images = list(dict.fromkeys([*queries, *rows["gallery"]]))
    pictures = dict(zip(images, np.asarray(pixels(images)), strict=True))
    width = (int(rows["rank"].max()) + 1) * len(sides) + len(sides) - 1
    height = max(len(side) for side in sides)
    cell = min(1.5, 9.0 / width)
    fig, axes = canvas(title, height, width, (cell * width, 0.5 + height * (cell + 0.36)))
    tight(fig)
    return fig, axes, pictures


def _of(ranking: pd.DataFrame, query: str, top: int) -> list[dict[Hashable, Any]]:
    rows = ranking[(ranking["query"] == query) & (ranking["rank"] <= top)]
    return rows.sort_values("rank").to_dict("records")


def _ranked_row(
    line: np.ndarray, rows: list[dict[Hashable, Any]], pictures: dict[str, np.ndarray], word: str
) -> None:
    rank = int(rows[0]["rank_of_first_match"])
    photograph(line[0], pictures[rows[0]["query"]])
    line[0].set_title(f"{word} {rows[0]['pid']}", fontsize=8, pad=3, loc="center")
    line[0].set_xlabel(f"match: {rank}", fontsize=8, labelpad=2, color=GOOD if rank == 1 else BAD)
    for ax, row in zip(line[1:], rows, strict=False):
        photograph(ax, pictures[row["gallery"]], (GOOD, 3.0) if row["correct"] else (BAD, 1.2))
        ax.set_title(person_name(row["gallery_pid"]), fontsize=8, pad=3, loc="center")
        ax.set_xlabel(f"{row['similarity']:.2f}", fontsize=8, labelpad=2)
    blank(line[1 + len(rows) :])
