"""Method by aspect, on one look: a table whose cells are coloured by what they hold."""

import html
from collections.abc import Mapping

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.headline import SAME
from handclip_lib.report.page import SHOWN
from handclip_lib.report.results import Finished

_LEAST = 0.1  # what the scale spans at least: no deep colour for small differences
_ACROSS = "by_aspect"  # what a notebook found in the aspects that it was not asked for

Cells = dict[str, dict[str, float]]  # aspect -> metric -> mean over seeds, 0–1
Row = tuple[tuple[str, ...], str, str]  # the numbers of the notebooks, tag, variant


def heat_rows(means: pd.DataFrame, runs: list[Finished]) -> dict[Row, Cells]:
    """{(notebooks, tag, variant): {aspect: {metric: mean over seeds}}} in own galleries.

    means: `results.seed_means`. A chain counts in every aspect that it was scored in. Rows of one
    tag and variant whose numbers agree wherever both have some are one row.
    """
    own = means[(means["gallery"] == "own") & means["metric"].isin(list(SHOWN))]
    found: dict[tuple[str, str, str], Cells] = {}
    for table in (_across(runs), own):
        for _, row in table.iterrows():
            key = str(row["notebook"]), str(row["tag"]), str(row["variant"])
            cell = found.setdefault(key, {}).setdefault(str(row["aspect"]), {})
            cell[str(row["metric"])] = float(row["mean"])
    merged: dict[Row, Cells] = {}
    for (notebook, tag, variant), cells in sorted(found.items(), key=lambda item: item[0][0]):
        number = notebook.partition("_")[0]
        alike = [k for k, of in merged.items() if k[1:] == (tag, variant) and _agree(of, cells)]
        numbers = (*alike[0][0], number) if alike else (number,)
        row_key = alike[0] if alike else (numbers, tag, variant)
        both = merged.get(row_key, {}) | cells
        merged = {(numbers, tag, variant) if k == row_key else k: v for k, v in merged.items()}
        merged[numbers, tag, variant] = both
    return merged


def _across(runs: list[Finished]) -> pd.DataFrame:
    """Rows like those of the means, of what runs found in further aspects."""
    rows = [
        {"notebook": run.metrics["notebook"], "tag": run.metrics["tag"], "variant": variant}
        | {"aspect": aspect, "metric": metric, "mean": galleries["own"][metric]["mean"]}
        for run in runs
        for aspect, variants in run.metrics.get(_ACROSS, {}).items()
        for variant, galleries in variants.items()
        for metric in SHOWN
    ]
    keys = ["notebook", "tag", "variant", "aspect", "metric"]
    table = pd.DataFrame(rows, columns=[*keys, "mean"])
    return table.groupby(keys, sort=False, as_index=False).agg(mean=("mean", "mean"))


def _agree(one: Cells, other: Cells) -> bool:
    shared = one.keys() & other.keys()
    return bool(shared) and all(
        abs(one[aspect][metric] - other[aspect][metric]) < SAME
        for aspect in shared
        for metric in one[aspect].keys() & other[aspect].keys()
    )


def heat(means: pd.DataFrame, runs: list[Finished]) -> str:
    """HTML of `heat_rows`: rank-1 and mAP of every aspect; "" where nothing was scored."""
    rows = heat_rows(means, runs)
    aspects = [a for a in ASPECTS if any(a in cells for cells in rows.values())]
    if not aspects:
        return ""
    scales = {metric: _scale(rows, metric) for metric in SHOWN}
    top = "".join(f'<th colspan="{len(aspects)}">{words}</th>' for words in SHOWN.values())
    names = "".join(f"<th>{html.escape(_short(a))}</th>" for _ in SHOWN for a in aspects)
    body = "".join(_row(key, cells, aspects, scales) for key, cells in rows.items())
    return (
        '<div class="scroll"><table id="heat"><thead><tr><th class="name"></th>'
        f'{top}</tr><tr><th class="name">method</th>{names}</tr></thead><tbody>{body}</tbody>'
        "</table></div><p><small>Per cent, own gallery, mean over seeds; the deeper, the higher, "
        "from the least to the largest of a metric. n/a: not run for this aspect. Below a method "
        "the notebooks that scored it.</small></p>"
    )


def _row(
    key: Row, cells: Cells, aspects: list[str], scales: Mapping[str, tuple[float, float]]
) -> str:
    numbers, tag, variant = key
    below = html.escape(", ".join(numbers) + (f" · {tag}" if tag else ""))
    shown = "".join(
        _cell(cells.get(aspect, {}).get(metric), *scales[metric])
        for metric in SHOWN
        for aspect in aspects
    )
    name = html.escape(variant)
    return f'<tr><td class="name">{name}<small>{below}</small></td>{shown}</tr>'


def _cell(value: float | None, low: float, high: float) -> str:
    if value is None:
        return '<td class="none">n/a</td>'
    depth = (value - low) / (high - low)
    return f'<td class="heat" style="--v:{depth:.2f}">{100 * value:.1f}</td>'


def _scale(rows: Mapping[Row, Cells], metric: str) -> tuple[float, float]:
    values = [cell[metric] for cells in rows.values() for cell in cells.values() if metric in cell]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return max(0.0, min(low, high - _LEAST)), max(high, _LEAST)


def _short(aspect: str) -> str:
    return ASPECTS[aspect].title
