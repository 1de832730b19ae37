"""Texts of identities: how alike they are, which images and words they lie near, what they cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from handclip_lib.report.canvas import BAD, GOOD, INK, QUIET, canvas, saying, styled

_MOST_LABELS = 30  # that can be read beside a matrix


@styled
def cosine_matrices(
    before: np.ndarray, after: np.ndarray, labels: Sequence[str], title: str
) -> Figure:
    """Cosine of every identity's text with every other's, before | after learning, on one scale.

    before, after: (C, E) unit rows; labels: (C,). The diagonal is 1 and left grey. Each panel's
    title holds the mean and the range of what is off the diagonal.
    """
    if len(labels) < 2:
        return saying(title, "one identity has no other to be like")
    sims = {"before": _cosines(before, before), "after": _cosines(after, after)}
    apart = {name: sim[~np.eye(len(sim), dtype=bool)] for name, sim in sims.items()}
    scale = _scale(np.concatenate(list(apart.values())))
    fig, axes = canvas(title, 1, 2, (10.0, 4.9))
    for ax, (name, sim) in zip(axes[0], sims.items(), strict=True):
        np.fill_diagonal(sim, np.nan)
        shown = _matrix(ax, sim, labels, scale)
        off = apart[name]
        words = f"between two identities {off.mean():.3f} ({off.min():.3f} to {off.max():.3f})"
        ax.set_title(f"{name} learning\n{words}".replace("-", "−"))
    axes[0, 1].tick_params(labelleft=False)
    fig.colorbar(shown, ax=axes[0].tolist(), label="cosine of two identities' texts", shrink=0.9)
    return fig


@styled
def text_image_matrix(
    text: np.ndarray, images: np.ndarray, labels: Sequence[str], title: str
) -> Figure:
    """Cosine of each identity's text with each identity's mean image feature.

    text, images: (C, E), any length of rows; labels: (C,). Boxes mark the diagonal; in each row a
    dot is at the nearest image, green on the diagonal, red elsewhere. The title above the matrix
    counts the rows whose diagonal is larger than all others, and says what chance would give.
    """
    if len(labels) < 2:
        return saying(title, "one identity has no other to be told from")
    sim = _cosines(text, images)
    count = len(sim)
    others = np.where(np.eye(count, dtype=bool), -np.inf, sim).max(axis=1)
    right = np.diag(sim) > others
    fig, axes = canvas(title, size=(6.8, 5.8))
    ax = axes[0, 0]
    shown = _matrix(ax, sim, labels, _scale(sim))
    at = np.arange(count)
    cell = 300 / count  # points, a little less than a cell is wide
    edge = min(1.0, cell / 12)
    ax.scatter(
        at, at, s=(0.95 * cell) ** 2, marker="s", facecolors="none", edgecolors=INK, linewidths=edge
    )
    nearest, colours = sim.argmax(axis=1), np.where(right, GOOD, BAD)
    size = min(9.0, max(2.5, 0.45 * cell)) ** 2
    ax.scatter(nearest, at, s=size, c=colours, edgecolors="white", linewidths=edge, zorder=3)
    share = f"{right.sum()} of {count} texts ({100 * right.mean():.0f} %)"
    ax.set_title(f"nearest to the own images: {share}; by chance {100 / count:.0f} %")
    ax.set_xlabel("mean image feature of")
    ax.set_ylabel("text of")
    fig.colorbar(shown, ax=ax, label="cosine of text and images", shrink=0.8)
    return fig


def words_table(words: Sequence[Sequence[Sequence[str]]], labels: Sequence[str]) -> pd.DataFrame:
    """A row an identity, a column a slot: the vocabulary's words nearest to the learned token.

    words: of each identity and slot, nearest first; labels: (C,). Raises ValueError where they are
    not one list an identity, each of as many slots.
    """
    slots = {len(of) for of in words}
    if len(words) != len(labels) or len(slots) > 1:
        raise ValueError(f"words: {len(words)} lists of {slots} slots for {len(labels)} identities")
    columns = [f"slot {i + 1}" for i in range(max(slots, default=0))]
    rows = [[", ".join(near) for near in of] for of in words]
    return pd.DataFrame(rows, pd.Index(labels, name="identity"), columns)


def cost_table(facts: Mapping[str, Mapping[str, Any]], tower: int) -> pd.DataFrame:
    """A row a method: what it trained, what that is of the image tower, how long, to which epoch.

    facts: {method: those of `train.job.Trained`}; tower: parameters of the whole image tower. More
    than 100 % is possible: heads and inversion networks are no part of the tower.
    """
    rows = {
        name: {
            "trained parameters": f"{told['trained_parameters']:,}",
            "as % of the image tower": f"{100 * told['trained_parameters'] / tower:.2f}",
            "seconds": f"{told['seconds']:.1f}",
            "chosen epoch": str(told["chosen_epoch"]),
        }
        for name, told in facts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) cosines in float64; a row of zeros is like nothing."""
    x, y = (np.asarray(rows, dtype=np.float64) for rows in (a, b))
    x, y = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (x, y))
    sim: np.ndarray = x @ y.T
    return sim


def _scale(values: np.ndarray) -> Normalize:
    """From the least to the largest, at least a hundredth apart: no colour for rounding errors."""
    low, high = float(values.min()), float(values.max())
    return Normalize(min(low, high - 0.01), high)


def _matrix(ax: Axes, sim: np.ndarray, labels: Sequence[str], scale: Normalize) -> AxesImage:
    ax.set_facecolor(QUIET)
    shown = ax.imshow(sim, cmap="Blues", norm=scale, interpolation="nearest")
    every = -(-len(labels) // _MOST_LABELS)
    at, names = range(len(labels))[::every], list(labels)[::every]
    size = min(9.0, 200 / len(at))
    ax.set_xticks(at, names, rotation=90, fontsize=size)
    ax.set_yticks(at, names, fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return shown
