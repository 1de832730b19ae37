"""Pictures of the explorer: photographs as points, a search's answers, thumbnails."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from handclip_lib.aspects import ASPECTS, OFFSETS
from handclip_lib.report.canvas import BAD, GOOD, INK, PALETTE, QUIET, canvas, styled
from handclip_lib.report.explain import map_grid
from handclip_lib.report.explorer import Answer
from handclip_lib.report.galleries import person_name
from handclip_lib.report.groups import trait_name

_TOOLBAR = 0.08  # of a live figure's width: ipympl's buttons lie on its left
_WIDTH = 6.0  # inches of the photographs of a sheet: two of them fit side by side
_NAMED = 14  # categories that a legend lists
_FAINT = 0.18  # of points outside a selection


@styled
def plane(points: np.ndarray, values: pd.Series, title: str, onto: Figure | None = None) -> Figure:
    """Photographs as points, coloured by a column; distances of t-SNE and UMAP are not to scale.

    points: (N, 2); values: (N,) of one column, whose name says what it is; onto: a live figure that
    is cleared and drawn on anew.
    """
    fig = canvas(title, size=(7.6, 5.2))[0] if onto is None else _cleared(onto, title)
    ax = fig.axes[0]
    rgba, named = colours(values)
    size = float(np.clip(6000 / len(points), 14, 46))
    ax.scatter(points[:, 0], points[:, 1], s=size, c=rgba, edgecolors="w", linewidths=0.4)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color="#D5DAE1")
    ax.margins(0.06)
    handles = [
        Line2D([], [], color=colour, label=name, ls="", marker="o", markersize=6)
        for name, colour in named.items()
    ]
    if handles:
        fig.legend(handles=handles, loc="outside right upper", title=column_title(values.name))
    count = f"n = {len(points)} photographs"
    if not handles:
        count += f", {values.nunique()} colours, one for each {column_title(values.name)}"
    ax.set_xlabel(count, loc="left", fontsize=9)
    if onto is not None:  # once, since it takes longer than all drawing while a line is drawn
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
    return fig


def _cleared(fig: Figure, title: str) -> Figure:
    """A live figure with new axes, room for its buttons and a title."""
    fig.clear()
    fig.set_layout_engine("constrained", rect=(_TOOLBAR, 0, 1 - _TOOLBAR, 1))
    fig.suptitle(title, x=_TOOLBAR, ha="left", fontsize=10, fontweight="bold")
    fig.add_subplot()
    return fig


def faint(fig: Figure, chosen: np.ndarray | None) -> None:
    """Make the points of `plane` faint that are not chosen; None: none of them."""
    dots = fig.axes[0].collections[0]
    rgba = np.array(dots.get_facecolor())
    rgba[:, 3] = 1.0
    if chosen is not None:
        rgba[:, 3] = _FAINT
        rgba[chosen, 3] = 1.0
    dots.set(facecolor=rgba)


def column_title(column: Any) -> str:
    """What a column of a table is called."""
    return "person" if column == "pid" else trait_name(str(column))


def colours(values: pd.Series) -> tuple[np.ndarray, dict[str, Any]]:
    """(N, 4) RGBA of values, and {name: colour} for a legend, empty where there are too many.

    Numbers of many values, but persons', lie on a scale from dark to light, its legend names its
    ends and middle; anything else has a colour a value; what is missing is grey.
    """
    missing = values.isna() | (values.astype(str) == "")
    rgba = np.tile(to_rgba(QUIET), (len(values), 1))
    known = values[~missing]
    if known.empty:
        return rgba, {"–": QUIET}
    if values.name != "pid" and pd.api.types.is_numeric_dtype(known) and known.nunique() > 7:
        scale, low, high = colormaps["viridis"], float(known.min()), float(known.max())
        rgba[~missing] = scale((known.to_numpy(dtype=float) - low) / (high - low))
        ends = {f"{low + share * (high - low):g}": scale(share) for share in (0.0, 0.5, 1.0)}
        return rgba, ends | ({"–": QUIET} if missing.any() else {})
    names = sorted(known.unique())
    marks = dict(zip(names, _apart(len(names)), strict=True))
    rgba[~missing] = [to_rgba(marks[value]) for value in known]
    if len(names) > _NAMED:
        return rgba, {}
    named = {ASPECTS[n].title if n in ASPECTS else str(n): marks[n] for n in names}
    return rgba, named | ({"–": QUIET} if missing.any() else {})


def _apart(count: int) -> Sequence[Any]:
    """Colours that differ, as far as that many can."""
    if count <= 7:
        return PALETTE[:count]
    hues = np.linspace(0, 1, count, endpoint=False)
    depth = np.resize([0.95, 0.6, 0.8], count)
    return [tuple(c) for c in hsv_to_rgb(np.stack([hues, np.resize([0.9, 0.6], count), depth], 1))]


def answer_sheet(found: Answer, title: str) -> Figure:
    """A query and its first answers, what the model looks at in each below them.

    Green frame: the right person; red: another; grey: who is in the query is not known. Above a
    photograph is its person, below it the similarity; below the query the rank of the first right
    answer.
    """
    rows = found.ranking.to_dict("records")
    frames: list[tuple[str, float] | None] = [None]
    for row in rows:
        known = not pd.isna(row["correct"])
        right = (GOOD, 3.0) if known and row["correct"] else (BAD, 1.4)
        frames.append(right if known else (QUIET, 1.4))
    unknown = pd.isna(rows[0]["correct"])
    first = int(rows[0]["rank_of_first_match"])
    names = ["yours" if unknown else f"query {person_name(rows[0]['pid'])}"]
    below = ["" if unknown else f"match: {first or 'none'}"]
    names += [person_name(row["gallery_pid"]) for row in rows]
    below += [f"{row['similarity']:.3f}".replace("-", "−") for row in rows]
    starred = any(row["gallery_pid"] >= min(OFFSETS) for row in rows)
    title += " (* hand of another aspect)" if starred else ""
    fig = map_grid(found.pixels, found.maps, title, names, below, frames, _WIDTH)
    note = "; ".join([found.note, *found.left_out.values()])
    fig.supxlabel(note, fontsize=8, x=0.01, ha="left", color=INK)
    return fig


def thumbnails(pixels: np.ndarray, side: int = 84) -> list[bytes]:
    """JPEG files of pictures (N, H, W, 3) uint8, `side` pixels on the longer side."""
    files = []
    for picture in pixels:
        image = Image.fromarray(picture)
        image.thumbnail((side, side))
        files.append(_file(image, "JPEG"))
    return files


def png(fig: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=fig.dpi)
    return file.getvalue()


def _file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, quality=85)
    return file.getvalue()
