"""Charts as SVG inside a page: they follow its colours, light or dark, and need no picture."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

MARKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A7F00", "#7F7F7F")
_BAR, _BAR_HEIGHT = 150, 26  # user units, which the page scales
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 250, 150, 40, 22, 22
_POINTS = 80  # of a curve: more are not seen at this size
_STYLES = ("", "5 3", "1.5 2.5")

Interval = tuple[float, float, float]  # mean, low, high, all 0–1; low, high NaN: not known


@dataclass(frozen=True)
class Curve:
    """A line of `panel`. x, y: of equal length; place: which colour and stroke it has."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    place: int


def interval_bar(intervals: Sequence[Interval], top: float = 1.0) -> str:
    """Dots with 95 % intervals, one below the other, to stand in a row of a table.

    top: where the scale from 0 ends.
    """
    across = _BAR / top
    parts = [
        f'<path d="M{_BAR * at} 1V{_BAR_HEIGHT - 1}" stroke="currentColor" opacity=".18"/>'
        for at in (0, 0.25, 0.5, 0.75, 1)
    ]
    for place, (mean, low, high) in enumerate(intervals):
        y = _BAR_HEIGHT * (place + 1) / (len(intervals) + 1)
        colour = MARKS[place]
        if not math.isnan(low):
            parts.append(
                f'<path d="M{across * low:.1f} {y:.1f}H{across * high:.1f}" stroke="{colour}"'
                ' stroke-width="2" stroke-linecap="round"/>'
            )
        parts.append(f'<circle cx="{across * mean:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"/>')
    told = ", ".join(f"{100 * mean:.1f} %" for mean, _, _ in intervals)
    return (
        f'<svg class="bar" viewBox="-5 0 {_BAR + 10} {_BAR_HEIGHT}" role="img" width="{_BAR + 10}"'
        f' height="{_BAR_HEIGHT}"><title>{told}</title>{"".join(parts)}</svg>'
    )


def panel(words: str, curves: Sequence[Curve], is_share: bool = False) -> str:
    """A small diagram of quantities by epoch. words: its title; is_share: 0 to 1, in per cent.

    Curves of one place share a colour. Values that are not finite are left out.
    """
    kept = [(curve, _points(curve)) for curve in curves]
    found = [point for _, points in kept for point in points]
    if not found:
        return ""
    x_low, x_high = min(x for x, _ in found), max(x for x, _ in found)
    y_low, y_high = _range([y for _, y in found], is_share)
    across = (_WIDTH - _LEFT - 8) / ((x_high - x_low) or 1)
    up = (_HEIGHT - _TOP - _BOTTOM) / (y_high - y_low)
    parts = [_frame(words, (x_low, x_high), (y_low, y_high), is_share)]
    for curve, points in kept:
        at = [
            (_LEFT + (x - x_low) * across, _HEIGHT - _BOTTOM - (y - y_low) * up) for x, y in points
        ]
        parts.append(_line(curve, at))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="10.5" fill="currentColor">'
        f"<title>{html.escape(words)}</title>{''.join(parts)}</svg>"
    )


def _range(values: Sequence[float], is_share: bool) -> tuple[float, float]:
    """Of an axis: shares from ten to ten per cent, else from 0."""
    low, high = min(values), max(values)
    if not is_share:
        return min(0.0, low), high if high > 0 else 1.0
    ends = math.floor(low * 10 + 1e-9) / 10, math.ceil(high * 10 - 1e-9) / 10
    return ends if ends[1] - ends[0] > 0.15 else (max(0.0, ends[1] - 0.2), max(0.2, ends[1]))


def legend(names: Sequence[str]) -> str:
    """What the colours and strokes of places 0, 1, … stand for."""
    items = (
        f'<span><svg viewBox="0 0 26 8" width="26" height="8">{_stroke("M1 4H25", place)}</svg>'
        f" {html.escape(name)}</span>"
        for place, name in enumerate(names)
    )
    return f'<p class="legend">{" ".join(items)}</p>'


def _points(curve: Curve) -> list[tuple[float, float]]:
    """Its finite points, thinned to some _POINTS with the last among them."""
    known = [
        (float(x), float(y))
        for x, y in zip(curve.x, curve.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    step = max(1, len(known) // _POINTS)
    return known[(len(known) - 1) % step :: step] if known else []


def _frame(words: str, x: tuple[float, float], y: tuple[float, float], is_share: bool) -> str:
    """Title, three lines across with their values, and the first and the last epoch."""
    parts = [f'<text x="{_LEFT}" y="12" font-weight="600">{html.escape(words)}</text>']
    for part in (0, 0.5, 1):
        height = round(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM), 1)
        value = y[0] + part * (y[1] - y[0])
        told = f"{100 * value:.0f} %" if is_share else f"{value:.3g}"
        parts.append(
            f'<path d="M{_LEFT} {height}H{_WIDTH - 8}" stroke="currentColor" opacity=".18"/>'
            f'<text x="{_LEFT - 5}" y="{height + 3.5}" text-anchor="end" opacity=".75">'
            f"{told}</text>"
        )
    for at, value in {_LEFT: x[0], _WIDTH - 8: x[1]}.items():
        anchor = "start" if at == _LEFT else "end"
        told = f"{value:g}" + (" epochs" if anchor == "end" else "")
        parts.append(
            f'<text x="{at}" y="{_HEIGHT - 8}" text-anchor="{anchor}" opacity=".75">{told}</text>'
        )
    return "".join(parts)


def _line(curve: Curve, points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:
        x, y = points[0]
        colour = MARKS[curve.place % len(MARKS)]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""
    return _stroke(path, curve.place, curve.name)


def _stroke(path: str, place: int, name: str = "") -> str:
    dashes = _STYLES[place // len(MARKS) % len(_STYLES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    told = f"<title>{html.escape(name)}</title>" if name else ""
    return (
        f'<path d="{path}" fill="none" stroke="{MARKS[place % len(MARKS)]}" stroke-width="1.5"'
        f' stroke-linejoin="round"{dashed}>{told}</path>'
    )
