"""Tables of chains: what is kept, lost and handed on, of one run and of a study's seeds."""

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from handclip_lib.evaluate.transfer import (
    Cells,
    Learned,
    compare,
    from_plain,
    intervals,
    matrix,
    pool,
    transfer,
)
from handclip_lib.report.page import SHOWN, percent_cell, signed
from handclip_lib.report.results import Finished
from handclip_lib.train.chain import NOTEBOOK

SCALARS = ("average", "backward", "forward", "forgetting")  # the first a mean, the others changes
_REFERENCE = "chain"
_AGAINST = ("average", "forgetting")
_EMPTY = "<td>–</td>"


def scalar(told: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """(value, low, high) of one of SCALARS, 0–1; None where a chain has none.

    told: {"transfer": {scalar: value}, "transfer_ci95": {scalar: [low, high]}}, one metric's.
    """
    value = told["transfer"][name]
    if value is None:
        return None
    low, high = told["transfer_ci95"][name]
    return float(value), float(low), float(high)


def transfer_table(chains: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """A row a chain and metric; average, backward, forward and forgetting.

    chains: {name: {"rank1" | "map": told}}, told as `scalar` takes it. The average in per cent,
    `31.2 (25.0–38.1)`, the others in points, `+3.1 (−0.4 to +6.0)`: value and 95 % interval;
    a dash where a chain has no such number.
    """
    rows = {
        (name, words): [_shown(scalar(of[metric], column), column) for column in SCALARS]
        for name, of in chains.items()
        for metric, words in SHOWN.items()
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["chain", "metric"])
    columns = [f"{c} ({'%' if c == SCALARS[0] else 'points'})" for c in SCALARS]
    return pd.DataFrame(list(rows.values()), index, columns)


def _shown(told: tuple[float, float, float] | None, column: str) -> str:
    if told is None:
        return "–"
    value, low, high = told
    if column == SCALARS[0]:
        return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    return f"{signed(value)} ({signed(low)} to {signed(high)})"


def pooled_transfers(runs: list[Finished]) -> pd.DataFrame:
    """One row a chain and metric over all seeds of notebook 05 without a tag, of two or more.

    A chain covers all its aspects, so one run of each seed counts, whichever aspect it was asked
    for. Average, backward, forward and forgetting with `…_low` and `…_high`, and
    `average_difference` and `forgetting_difference`, with theirs, against the plain chain. Queries
    of all seeds are pooled and persons resampled, so that seeds do not pass for further persons;
    NaN where a chain has no such number. Only chains that all seeds have, with the same steps.
    """
    mine = [run.metrics for run in runs if run.metrics["notebook"] == NOTEBOOK]
    told = {m["seed"]: m for m in mine if not m["tag"] and "cells" in m}
    if len(told) < 2:
        return pd.DataFrame()
    first, *others = told.values()
    names = [n for n in first["cells"] if all(_steps(m, n) == _steps(first, n) for m in others)]
    rows = []
    for metric in SHOWN:
        cells = {n: pool([from_plain(m["cells"][n][metric]) for m in told.values()]) for n in names}
        for name, of in cells.items():
            learned = first["learned"][name]
            row = {"chain": name, "metric": metric, **_numbers(of, learned)}
            if _REFERENCE in cells:
                plain = cells[_REFERENCE], first["learned"][_REFERENCE]
                row |= _differences(name, *plain, of, learned)
            rows.append(row | {"seeds": len(told), "persons": len(of.persons)})
    return pd.DataFrame(rows)


def _steps(metrics: Mapping[str, Any], name: str) -> Any:
    """What must agree where seeds are pooled: steps, tasks and who taught them; None: no chain."""
    if name not in metrics["cells"]:
        return None
    of = metrics["cells"][name][next(iter(SHOWN))]
    return of["rows"], of["tasks"], metrics["learned"][name]


def _numbers(cells: Cells, learned: Learned) -> dict[str, float]:
    values, bounds = transfer(matrix(cells), learned), intervals(cells, learned)
    told = {"transfer": values, "transfer_ci95": bounds}
    row: dict[str, float] = {}
    for name in SCALARS:
        row |= _spread(name, scalar(told, name))
    return row


def _differences(
    name: str, plain: Cells, plain_learned: Learned, cells: Cells, learned: Learned
) -> dict[str, float]:
    change = {} if name == _REFERENCE else compare(plain, cells, plain_learned, learned)
    row: dict[str, float] = {}
    for column in _AGAINST:
        told = change.get(column, {"difference": None})
        value = told["difference"]
        row |= _spread(f"{column}_difference", None if value is None else (value, *told["ci95"]))
    return row


def _spread(name: str, told: tuple[float, float, float] | None) -> dict[str, float]:
    """{name: value, name_low, name_high}."""
    keys = (name, f"{name}_low", f"{name}_high")
    return dict(zip(keys, told or [math.nan] * 3, strict=True))


def transfers_table(table: pd.DataFrame) -> str:
    """HTML of `pooled_transfers`; "" where there is nothing to pool."""
    if table.empty:
        return ""
    compared = [c for c in _AGAINST if f"{c}_difference" in table]
    heads = [h for c in SCALARS for h in [c] + ["against chain"] * (c in compared)]
    names = "".join(f"<th>{words}</th>" for words in heads)
    counts = f"{table['seeds'].iloc[0]} seeds, {table['persons'].iloc[0]} persons"
    body = []
    for metric, words in SHOWN.items():
        body.append(
            f'<tr><th class="name" colspan="{len(heads) + 1}">{words}'
            f" <small>{counts}</small></th></tr>"
        )
        for _, row in table[table["metric"] == metric].iterrows():
            cells = "".join(_cells(row, column, column in compared) for column in SCALARS)
            body.append(f'<tr><td class="name">{html.escape(row["chain"])}</td>{cells}</tr>')
    return (
        '<div class="scroll"><table id="transfers"><thead>'
        f'<tr><th class="name">chain</th>{names}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        "<p><small>Average over the aspects at the end in per cent; what later steps changed "
        "(backward), what earlier ones gave beforehand (forward) and what of the best score was "
        "lost (forgetting) in points. Own galleries, over the queries of all seeds; 95 % intervals "
        'are over persons, all cells together. More in <a href="transfers.csv">transfers.csv</a>.'
        "</small></p>"
    )


def _cells(row: "pd.Series[Any]", column: str, compared: bool) -> str:
    value, low, high = (row[c] for c in (column, f"{column}_low", f"{column}_high"))
    mean = percent_cell(value, (low, high)) if column == SCALARS[0] else _change(row, column)
    return mean + (_change(row, f"{column}_difference") if compared else "")


def _change(row: "pd.Series[Any]", name: str) -> str:
    if math.isnan(row[name]):
        return _EMPTY
    low, high = signed(row[f"{name}_low"]), signed(row[f"{name}_high"])
    return f"<td>{signed(row[name])}<small>{low} to {high}</small></td>"
