"""Which differences between models of a study hold, by the tests that its runs have made."""

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import quantity
from handclip_lib.report.page import SHOWN, p_text, signed
from handclip_lib.report.results import Finished

LEVEL = 0.05  # a corrected p of this at most holds


def tested(runs: list[Finished]) -> pd.DataFrame:
    """One row a run, variant and metric: `difference` to its reference, `low`, `high`, `p_holm`.

    The paired tests of the notebooks over persons, in the own gallery, corrected by Holm over the
    variants of a run. What 06 has compared again with the same reference is told by 06 alone.
    """
    rows = [row for run in runs for row in _of(run)]
    again = {_which(row) for row in rows if row["notebook"].startswith("06")}
    kept = [
        row
        for row in rows
        if not row["notebook"].startswith(("02", "03", "04")) or _which(row) not in again
    ]
    return pd.DataFrame(kept)


def _of(run: Finished) -> list[dict[str, Any]]:
    m = run.metrics
    head = {key: m[key] for key in ("notebook", "aspect", "seed", "tag")}
    head |= {"anchor": run.anchor, "reference": m.get("paired", {}).get("reference")}
    return [
        head
        | {"variant": variant, "metric": metric, "difference": test["difference"]}
        | {"low": test["ci95"][0], "high": test["ci95"][1], "p_holm": test["holm"]}
        for metric in SHOWN
        for variant, test in m.get("paired", {}).get("own", {}).get(metric, {}).items()
    ]


def _which(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("aspect", "seed", "tag", "variant", "reference", "metric"))


def significance(table: pd.DataFrame, is_summed_up: bool = False) -> str:
    """HTML of `tested`: what holds, and folded away what doesn't; "" where nothing was tested.

    is_summed_up: all seeds and aspects were tested together, so that single runs are folded away.
    """
    if table.empty:
        return ""
    held = int((table["p_holm"] <= LEVEL).sum())
    rows: dict[bool, list[str]] = {True: [], False: []}
    for _, two in table.groupby(["anchor", "variant"], sort=False):
        rows[bool((two["p_holm"] <= LEVEL).any())].append(_row(two))
    held_at = f"{held} of {len(table)} comparisons hold at {LEVEL:g}"
    words = f"Run by run, {held_at}, by Holm within each run and metric"
    found = _table("holds", rows[True])
    if is_summed_up and found:
        found = f"<details><summary>those that hold</summary>{found}</details>"
    if rows[False]:
        open_ = "" if found or is_summed_up else " open"
        which = f"{quantity(len(rows[False]), 'comparison')} of which neither metric is sure"
        more = _table("open", rows[False])
        found += f"<details{open_}><summary>{which}</summary>{more}</details>"
    return (
        f"<p>{words}.</p>{found}"
        "<p><small>Points of per cent in the own gallery, 95 % interval over persons, p of a "
        "sign-flip test over persons, corrected by Holm over the variants of a run. <b>★</b> holds."
        " What doesn't hold is not shown to be equal: few persons see large differences only."
        " A model that began from another tower than the reference, as MBA-Net does, differs by"
        " that tower as well: 06 holds the two against each other.</small></p>"
    )


def star(p_holm: float) -> str:
    """A mark on a difference that holds."""
    return "★ " if p_holm <= LEVEL else ""


def _table(name: str, rows: list[str]) -> str:
    if not rows:
        return ""
    heads = "".join(f"<th>{words}</th>" for words in SHOWN.values())
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr><th class="name">comparison</th>{heads}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(two: pd.DataFrame) -> str:
    first = two.iloc[0]
    of = f"{ASPECTS[first['aspect']].title}, seed {first['seed']}"
    of += (f", {first['tag']}" if first["tag"] else "") + f" · {first['notebook']}"
    name = html.escape(f"{first['variant']} against {first['reference']}")
    link = f'<a href="#{html.escape(first["anchor"])}">{name}</a>'
    told: Mapping[Any, Any] = two.set_index("metric").to_dict("index")
    cells = "".join(_cell(told.get(metric)) for metric in SHOWN)
    return f'<tr><td class="name">{link}<small>{html.escape(of)}</small></td>{cells}</tr>'


def _cell(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "<td>–</td>"
    value, mark = signed(test["difference"]), star(test["p_holm"])
    shown = f"<b>{mark}{value}</b>" if mark else value
    bounds = f"{signed(test['low'])} to {signed(test['high'])}, p {p_text(test['p_holm'])}"
    return f"<td>{shown}<small>{bounds}</small></td>"
