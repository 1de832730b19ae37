"""Figures of a data set before anything is learnt: how much there is, of whom, and overlaps."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.canvas import (
    INK,
    PALETTE,
    blank,
    canvas,
    grid_lines,
    styled,
    whole_numbers,
)

_USES = {"train": "training", "select": "selection", "test": "test"}
_USE_OF = {
    "train": "train",
    "val": "train",
    "select": "select",
    "query": "test",
    "gallery": "test",
}
_TRAITS = ("gender", "age", "skinColor", "accessories", "nailPolish", "irregularities")
_WORDS = {"skinColor": "skin colour", "nailPolish": "nail polish"}
_MARKS = ("accessories", "nailPolish", "irregularities")  # 0/1 a photograph


@styled
def images_per_identity(manifests: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """How many photographs the identities of each use have, a panel an aspect.

    manifests: {aspect: rows split, draw, pid, image}. Validation images count with training,
    query and gallery with test; an image counts once however many draws use it.
    """
    columns = min(2, len(manifests))
    rows = -(-len(manifests) // columns)
    fig, axes = canvas(title, rows, columns, (9.0, 0.6 + 2.5 * rows))
    counts = {aspect: _counts(manifest) for aspect, manifest in manifests.items()}
    low = min(int(c["images"].min()) for c in counts.values())
    high = max(int(c["images"].max()) for c in counts.values())
    for ax, (aspect, frame) in zip(axes.flat, counts.items(), strict=False):
        _stacked(ax, frame, low, high)
        ax.set_title(_aspect(aspect))
        ax.set_ylabel("identities")
    for ax in axes[-1]:
        ax.set_xlabel("photographs per identity")
    blank(axes.flat[len(counts) :])
    return fig


def _counts(manifest: pd.DataFrame) -> pd.DataFrame:
    rows = manifest.assign(use=manifest["split"].map(_USE_OF)).dropna(subset="use")
    rows = rows.drop_duplicates(["use", "pid", "image"])
    return rows.groupby(["use", "pid"]).size().rename("images").reset_index()


def _stacked(ax: Axes, frame: pd.DataFrame, low: int, high: int) -> None:
    steps = min(30, high - low + 1)
    edges = np.linspace(low - 0.5, high + 0.5, steps + 1).tolist()
    parts = {use: frame.loc[frame["use"] == use, "images"] for use in _USES}
    shown = {use: images for use, images in parts.items() if len(images)}
    labels = [
        f"{_USES[use]}: {len(images)} identities, {int(images.sum())} photographs"
        for use, images in shown.items()
    ]
    colours = [PALETTE[list(_USES).index(use)] for use in shown]
    ax.hist(list(shown.values()), edges, stacked=True, color=colours, label=labels, rwidth=0.85)
    ax.set_ylim(0, ax.get_ylim()[1] * (1.12 + 0.13 * len(shown)))  # room for the legend
    ax.legend(loc="upper left")
    whole_numbers(ax, "xy")
    grid_lines(ax)


@styled
def metadata(table: pd.DataFrame, title: str) -> Figure:
    """Persons by gender, age and skin colour, photographs by aspect and by what they show.

    table: rows as `data.tables` reads them; columns it lacks are left out. A person counts in
    the class of most of their photographs.
    """
    traits = [t for t in _TRAITS if t in table and table[t].notna().any()]
    panels = [t for t in traits if t not in _MARKS]
    marks = [t for t in traits if t in _MARKS]
    number = 1 + len(panels) + bool(marks)
    columns = min(3, number)
    rows = -(-number // columns)
    fig, axes = canvas(title, rows, columns, (9.0, 0.5 + 2.4 * rows))
    spots = iter(axes.flat)
    aspects = table["aspect"].value_counts()
    known = [a for a in ASPECTS if a in aspects.index]
    _bars(next(spots), aspects[known].rename(_aspect), "photographs by aspect", PALETTE[0])
    for trait in panels:
        _person_panel(next(spots), table, trait)
    if marks:
        shown = pd.Series({_WORDS.get(t, t): int((table[t] == 1).sum()) for t in marks})
        _bars(next(spots), shown, "photographs with", PALETTE[3])
    blank(spots)
    return fig


def _person_panel(ax: Axes, table: pd.DataFrame, trait: str) -> None:
    persons = table.dropna(subset=trait).groupby("pid")[trait].agg(lambda v: v.mode().iloc[0])
    name = _WORDS.get(trait, trait)
    if pd.api.types.is_numeric_dtype(persons):
        ax.hist(persons, bins=min(20, max(5, persons.nunique())), color=PALETTE[2], rwidth=0.9)
        ax.set_title(f"persons by {name}")
        ax.set_xlabel(f"{name} (median {persons.median():.0f})")
        whole_numbers(ax, "y")
        grid_lines(ax)
    else:
        _bars(ax, persons.value_counts(), f"persons by {name}", PALETTE[2])


def _bars(ax: Axes, counts: pd.Series, title: str, colour: str) -> None:
    bars = ax.barh([str(name) for name in counts.index], counts.to_numpy(), 0.72, color=colour)
    ax.bar_label(bars, [f"{int(n):,}" for n in counts], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set_title(title)
    ax.set_xlim(0, max(1, counts.max()) * 1.22)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(length=0)


@styled
def overlap(shared: pd.DataFrame, title: str) -> Figure:
    """Heat map of persons who train an aspect's model and are test persons of another's.

    shared: counts, index the training aspect, columns the test aspect. Zeros are green: none of
    the tested persons was seen in training.
    """
    values = shared.to_numpy(dtype=float)
    size = 3.4 + 1.1 * shared.shape[1], 1.6 + 0.7 * shared.shape[0]
    fig, axes = canvas(title, size=size)
    ax = axes[0, 0]
    top = max(1.0, values.max())
    leaking = np.ma.masked_equal(values, 0)
    ax.imshow(np.ones_like(values), cmap="Greens", vmin=0, vmax=6, aspect="auto")
    ax.imshow(leaking, cmap="Oranges", vmin=-0.35 * top, vmax=1.25 * top, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.75 * top else INK
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=12)
    ax.set_xticks(range(values.shape[1]), [_aspect(str(a)) for a in shared.columns])
    ax.set_yticks(range(values.shape[0]), [_aspect(str(a)) for a in shared.index])
    ax.set_xlabel("tested on")
    ax.set_ylabel("trained on")
    ax.set_title("test persons of one aspect who are training persons of another")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def _aspect(name: str) -> str:
    return ASPECTS[name].title if name in ASPECTS else str(name)
