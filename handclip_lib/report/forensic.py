"""Figures of verification, evidence and open-set search; models keep their colours by position."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from scipy.stats import norm

from handclip_lib.evaluate.calibration import tippett as tippett_curves
from handclip_lib.evaluate.rates import RULE_OF_30
from handclip_lib.report.canvas import (
    BAD,
    INK,
    PALETTE,
    QUIET,
    canvas,
    grid_lines,
    key,
    saying,
    styled,
)

_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
_DASHES = ("-", "--", ":")
_POINTS = 2000  # of a curve that are drawn


@styled
def det(models: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Detection error trade-off: FNMR over FMR on probit axes, a dot at the equal error rate.

    models: {name: `verification_metrics`}. On these axes Gaussian scores give straight lines
    (Martin et al. 1997). Faint where fewer than 30 false matches are to be expected.
    """
    fig, axes = canvas(title, size=(7.0, 5.6))
    ax, seen = axes[0, 0], [0.05]
    for i, (name, told) in enumerate(models.items()):
        fmr, fnmr = told["fmr"], told["fnmr"]
        inside = (fmr > 0) & (fmr < 1) & (fnmr > 0) & (fnmr < 1)
        x, y, style = norm.ppf(fmr[inside]), norm.ppf(fnmr[inside]), _style(i)
        weak = fmr[inside] < RULE_OF_30 / told["n_impostor"]
        _trace(ax, x, y, weak, style, f"{name}: EER {_share(told['eer'])}")
        shown = inside & (fmr >= RULE_OF_30 / told["n_impostor"]) & (np.maximum(fmr, fnmr) < 0.6)
        seen += [*fmr[shown], *fnmr[shown]]
        if 0 < told["eer"] < 1:
            seen.append(told["eer"])
            at = norm.ppf(told["eer"])
            ax.plot(at, at, "o", color=style["color"], markersize=6, markeredgecolor="white")
    low = max(t for t in _TICKS if t <= max(min(seen), _TICKS[0]))
    ticks = [t for t in _TICKS if low <= t <= 0.6]
    ax.plot(norm.ppf([low, 0.6]), norm.ppf([low, 0.6]), color=QUIET, linewidth=1, zorder=0)
    for axis, limits in ((ax.xaxis, ax.set_xlim), (ax.yaxis, ax.set_ylim)):
        axis.set_major_locator(FixedLocator(norm.ppf(ticks)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: _share(norm.cdf(v), 2)))
        limits(norm.ppf(low) - 0.05, norm.ppf(0.6))
    ax.set(xlabel="false match rate", ylabel="false non-match rate", box_aspect=1)
    _finish(fig, ax, "dots: equal error rates; faint: fewer than 30 false matches to be expected")
    return fig


@styled
def roc(models: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """True match rate over false match rate, the latter's axis logarithmic.

    models: {name: `verification_metrics`}. Faint where fewer than 30 false matches are to be
    expected; the grey line is chance.
    """
    fig, axes = canvas(title, size=(7.5, 4.8))
    ax = axes[0, 0]
    low = min(1 / told["n_impostor"] for told in models.values())
    for i, (name, told) in enumerate(models.items()):
        fmr, tmr = np.maximum(told["fmr"], low / 2), 1 - told["fnmr"]
        weak = fmr < RULE_OF_30 / told["n_impostor"]
        _trace(ax, fmr, tmr, weak, _style(i), f"{name}: AUC {_share(told['auc'], 4)}", steps=True)
    chance = np.geomspace(low, 1, 200)
    ax.plot(chance, chance, color=QUIET, linewidth=1, zorder=0)
    ax.set(xscale="log", xlim=(low, 1), ylim=(0, 1.02))
    ax.set(xlabel="false match rate", ylabel="true match rate (1 − FNMR)")
    _log_percent(ax)
    _finish(fig, ax, "faint: fewer than 30 false matches to be expected; grey: chance")
    return fig


@styled
def tippett(
    ratios: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    costs: Mapping[str, float] | None = None,
) -> Figure:
    """Share of genuine and of impostor pairs whose log10 likelihood ratio is a value or more.

    ratios: {model: (genuine (n,), impostor (m,))}; costs: {model: Cllr in bits}, for the legend.
    Evidence misleads left of 0 in genuine (solid) and right of it in impostor (dashed) pairs.
    """
    if not ratios:
        return saying(title, "no likelihood ratios: too few persons to calibrate on")
    fig, axes = canvas(title, size=(7.5, 4.8))
    ax = axes[0, 0]
    for i, (name, (genuine, impostor)) in enumerate(ratios.items()):
        curve, colour = tippett_curves(genuine, impostor), PALETTE[i % len(PALETTE)]
        cost = f": Cllr {costs[name]:.2f}" if costs and name in costs else ""
        for kind, dashes in (("genuine", "-"), ("impostor", "--")):
            told = f"{name}{cost}" if kind == "genuine" else None
            x, y = np.append(curve["llr"], curve["llr"][-1]), np.append(curve[kind], 0.0)
            ax.step(*_thin(x, y), where="pre", color=colour, ls=dashes, linewidth=1.8, label=told)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set(xlabel="log₁₀ likelihood ratio", ylabel="pairs with that ratio or a higher one")
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    _finish(fig, ax, "solid: genuine pairs (misleading left of 0); dashed: impostor (right of 0)")
    return fig


@styled
def score_histograms(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """Similarities by kind of pair, a panel a model, each kind drawn to the same area.

    scores: {model: {kind: (n,)}} as `pairs.by_kind` gives them; thresholds: {model: the threshold
    chosen on other persons}, drawn as a line.
    """
    if not scores:
        return saying(title, "there are no pairs")
    fig, axes = canvas(title, 1, len(scores), (max(6.5, min(12.0, 4.4 * len(scores))), 4.2))
    most = sorted(scores.values(), key=len, reverse=True)  # its order, where some lack a kind
    kinds = list(dict.fromkeys(kind for of in most for kind in of))
    paint = (PALETTE[0], BAD) if len(kinds) == 2 else (*PALETTE[:2], BAD, *PALETTE[2:5])
    colours = dict(zip(kinds, paint, strict=False))
    for ax, (name, of) in zip(axes[0], scores.items(), strict=True):
        values = np.concatenate(list(of.values()))
        bins = np.linspace(values.min(), values.max() + 1e-9, 41)
        for kind, found in of.items():
            style: dict[str, Any] = {"density": True, "color": colours[kind]}
            ax.hist(found, bins, histtype="stepfilled", alpha=0.28, **style)
            ax.hist(found, bins, histtype="step", linewidth=1.6, **style)
        if thresholds and name in thresholds:
            ax.axvline(thresholds[name], color=INK, ls="--", linewidth=1.2)
        ax.set(title=name, xlabel="cosine similarity", yticks=[])
    axes[0, 0].set_ylabel("density")
    lines = [Line2D([], [], color=c, label=_counted(k, scores)) for k, c in colours.items()]
    if thresholds:
        lines.append(Line2D([], [], color=INK, ls="--", label="threshold from other persons"))
    key(fig, lines)
    return fig


@styled
def fpir_fnir(models: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Open-set search: how many mates are missed, over how many strangers are named.

    models: {name: `open_set_metrics`}. FNIR counts a mate below the threshold or not at rank 1, so
    that it does not fall below 1 - rank-1. Faint where fewer than 30 false positives are expected.
    """
    fig, axes = canvas(title, size=(7.5, 4.8))
    ax = axes[0, 0]
    low = min(1 / told["n_non_mated"] for told in models.values())
    for i, (name, told) in enumerate(models.items()):
        fpir = np.maximum(told["fpir"], low / 2)
        weak = fpir < RULE_OF_30 / told["n_non_mated"]
        label = f"{name}: rank-1 {_share(told['rank1'])}"
        _trace(ax, fpir, told["fnir"], weak, _style(i), label, steps=True)
    ax.set(xscale="log", xlim=(low, 1), ylim=(0, 1.02))
    ax.set(xlabel="strangers for whom somebody is named (FPIR)")
    ax.set_ylabel("mates missed (FNIR, rank 1)")
    _log_percent(ax)
    _finish(fig, ax, "faint: fewer than 30 false positives to be expected")
    return fig


def _style(place: int) -> dict[str, Any]:
    dashes = _DASHES[place // len(PALETTE) % len(_DASHES)]
    return {"color": PALETTE[place % len(PALETTE)], "ls": dashes, "linewidth": 1.8}


def _trace(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    weak: np.ndarray,
    style: Mapping[str, Any],
    label: str,
    steps: bool = False,
) -> None:
    """A curve, faint where it is weak: the part that thresholds reach last."""
    how = {**style, "drawstyle": "steps-pre" if steps else "default"}
    ends = int(np.argmax(weak)) if weak.any() else len(x)
    ax.plot(*_thin(x[:ends], y[:ends]), label=label, **how)
    ax.plot(*_thin(x[max(ends - 1, 0) :], y[max(ends - 1, 0) :]), alpha=0.35, **how)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Few enough points of a curve to draw, at even distances along it, its ends among them."""
    if len(x) <= _POINTS:
        return x, y
    width = np.hypot(np.diff(x) / (np.ptp(x) or 1), np.diff(y) / (np.ptp(y) or 1))
    along = np.append(0, np.cumsum(width))
    at = np.searchsorted(along, np.linspace(0, along[-1], _POINTS))
    at = np.unique(np.append(np.minimum(at, len(x) - 1), [0, len(x) - 1]))
    return x[at], y[at]


def _log_percent(ax: Axes) -> None:
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _share(v, 1)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))


def _share(value: float, digits: int = 3) -> str:
    return f"{100 * float(f'{value:.{digits}g}'):.10g} %"


def _counted(kind: str, scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """The kind's name, with its number of pairs where all models have that many."""
    sizes = {len(of[kind]) for of in scores.values() if kind in of}
    return f"{kind} ({sizes.pop():,} pairs)" if len(sizes) == 1 else kind


def _finish(fig: Figure, ax: Axes, note: str) -> None:
    grid_lines(ax)
    key(fig, ax, note)
