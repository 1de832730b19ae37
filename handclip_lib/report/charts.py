"""Charts as SVG inside a page: they follow its colours, light or dark, and need no picture."""

import html
from collections.abc import Mapping, Sequence

_ROW, _PLOT, _TOP, _LETTER = 26, 670, 34, 8  # user units, which the page scales
_MARKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")

Interval = tuple[float, float, float]  # mean, low, high, all 0–1


def interval_chart(
    rows: Sequence[tuple[str, Mapping[str, Interval]]], series: Mapping[str, str]
) -> str:
    """Dots with 95 % intervals on one axis of 0–100 %, a row a run.

    rows: (label, {series key: (mean, low, high)}); series: key -> words, in the order drawn.
    """
    height = _TOP + _ROW * len(rows) + 26
    left = 24 + _LETTER * max((len(label) for label, _ in rows), default=0)
    width = left + _PLOT + 40
    parts = [_legend(series), _axis(height)]
    for number, (label, values) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        parts.append(f'<text x="-12" y="{y + 4.5}" text-anchor="end">{html.escape(label)}</text>')
        shown = [(i, values[key]) for i, key in enumerate(series) if key in values]
        for place, (i, interval) in enumerate(shown):
            offset = 8 * (place - (len(shown) - 1) / 2)
            parts.append(_mark(y + offset, interval, _MARKS[i % len(_MARKS)]))
    return (
        f'<div class="scroll"><svg viewBox="{-left} 0 {width} {height}" role="img" width="100%"'
        f' style="min-width:560px;max-width:{width}px" font-size="13.5" fill="currentColor">'
        f"<title>rank-1 with 95 % intervals</title>{''.join(parts)}</svg></div>"
    )


def _x(value: float) -> float:
    return round(value * _PLOT, 1)


def _legend(series: Mapping[str, str]) -> str:
    parts, x = ['<text x="0" y="16">rank-1:</text>'], 62.0
    for i, words in enumerate(series.values()):
        parts.append(f'<circle cx="{x}" cy="11.5" r="4.5" fill="{_MARKS[i % len(_MARKS)]}"/>')
        parts.append(f'<text x="{x + 10}" y="16">{html.escape(words)}</text>')
        x += 30 + 7.2 * len(words)
    return "".join(parts)


def _axis(height: int) -> str:
    lines = []
    for tick in range(0, 101, 20):
        x = _x(tick / 100)
        lines.append(
            f'<path d="M{x} {_TOP - 6}V{height - 24}" stroke="currentColor" opacity=".16"/>'
            f'<text x="{x}" y="{height - 8}" text-anchor="middle" opacity=".7">{tick} %</text>'
        )
    return "".join(lines)


def _mark(y: float, interval: Interval, colour: str) -> str:
    mean, low, high = (_x(value) for value in interval)
    return (
        f'<path d="M{low} {y}H{high}" stroke="{colour}" stroke-width="2.4" stroke-linecap="round"/>'
        f'<circle cx="{mean}" cy="{y}" r="4.5" fill="{colour}"/>'
    )
