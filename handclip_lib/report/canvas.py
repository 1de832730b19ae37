"""What all figures share: size, type, colours that colour-blind readers tell apart."""

import textwrap
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DPI = 130
# Okabe & Ito's palette (jfly.uni-koeln.de/color), yellow last for its weak contrast on white
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#F0E442")
MARKERS = ("o", "^", "s")
GOOD, BAD, QUIET, INK = "#009E73", "#C62828", "#C9CED6", "#1F2933"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#7B8794",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.titlelocation": "left",
}
Frame = tuple[str, float]  # colour, width in points
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the kit's style: matplotlib asks for its settings while it draws, not before."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def canvas(
    title: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (9.0, 4.0)
) -> tuple[Figure, np.ndarray]:
    """A figure of fixed size (inches) and its axes (rows, columns), title set at the left.

    The figure is already closed in pyplot, which would otherwise show it a second time at the
    end of the notebook's cell.
    """
    fig, axes = plt.subplots(
        rows, columns, figsize=size, dpi=DPI, layout="constrained", squeeze=False
    )
    lines = textwrap.fill(title, int(9 * size[0]))  # bold 11.5 points: about 9 letters an inch
    words = fig.suptitle(lines, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    words.set_parse_math(False)  # a $ in the name of a photograph is a $
    plt.close(fig)
    return fig, axes


def grid_lines(ax: Axes, axis: str = "y") -> None:
    """Faint lines behind the marks, along which values are read off."""
    ax.grid(axis="x" if axis == "x" else "y", color="#E4E7EB", linewidth=0.8)
    ax.tick_params(length=0)


def key(fig: Figure, of: Axes | Sequence[Artist], note: str = "") -> None:
    """What marks stand for, below the figure: those of `of` that have names, under a note.

    As many stand side by side as the figure has room for.
    """
    marks = of.get_legend_handles_labels()[0] if isinstance(of, Axes) else list(of)
    longest = max((len(str(mark.get_label())) for mark in marks), default=0)
    columns = int(fig.get_figwidth() / (0.075 * longest + 0.55))  # inches of letters and line
    fig.legend(
        handles=marks, loc="outside lower left", ncols=max(1, min(columns, len(marks))),
        title=note or None, title_fontsize=9, alignment="left",
    )  # fmt: skip


def points_tick(value: float, _place: int) -> str:
    """A tick of an axis of differences of 0–1 metrics, in points: `+2.5`, `−10`, `0`."""
    return f"{100 * value:+.3g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def whole_numbers(ax: Axes, axes: str) -> None:
    """Ticks at whole numbers only, on the axes named: "x", "y" or "xy"."""
    for name in axes:
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_locator(MaxNLocator("auto", integer=True))


def blank(axes: Iterable[Axes]) -> None:
    """Take away everything of the axes that hold no data."""
    for ax in axes:
        ax.axis("off")


def photograph(ax: Axes, pixels: np.ndarray, frame: Frame | None = None) -> None:
    """A photograph (H, W, 3) uint8 without ticks, in a frame of a colour and a width in points."""
    ax.imshow(pixels)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(frame is not None)
    if frame is not None:
        ax.spines[:].set(color=frame[0], linewidth=frame[1])


def tight(fig: Figure) -> None:
    """Little room between axes, for sheets of photographs."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.03, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[call-arg]


def saying(title: str, words: str) -> Figure:
    """A figure without data, and the reason."""
    fig, axes = canvas(title, size=(6.0, 1.2))
    blank(axes.flat)
    fig.supxlabel(words, fontsize=9, x=0.01, ha="left")
    return fig


def identity_marks(pids: Sequence[Hashable], limit: int) -> dict[Hashable, tuple[str, str]]:
    """(colour, marker) of up to `limit` identities, the same for the same set of identities.

    Those shown are spread evenly over the sorted identities; colours repeat after seven with
    another marker. ValueError when `limit` asks for more marks than there are.
    """
    colours = PALETTE[:7]
    most = len(colours) * len(MARKERS)
    if not 1 <= limit <= most:
        raise ValueError(f"identities: {limit}; 1 to {most} can be told apart")
    known = sorted(set(pids))  # type: ignore[type-var]
    at = np.unique(np.linspace(0, len(known) - 1, min(limit, len(known))).round().astype(int))
    return {
        known[k]: (colours[i % len(colours)], MARKERS[i // len(colours)]) for i, k in enumerate(at)
    }
