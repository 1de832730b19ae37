"""Tables of a study's page that set runs side by side: variants of a sweep."""

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.page import SHOWN, p_text, percent_cell, signed

_EMPTY = "<td>–</td>"


def comparison(numbers: pd.DataFrame) -> str:
    """HTML of tagged runs beside the run without a tag, in the aspect's own gallery; "" for none.

    numbers: `results.results`. One block for each notebook, aspect, variant and seed.
    """
    own = _headline(numbers)
    keys = ["notebook", "aspect", "variant", "seed"]
    blocks = []
    for key, block in own.groupby(keys, sort=False):
        if not (block["tag"] != "").any():
            continue
        notebook, aspect, variant, seed = map(str, key)
        name = f"{ASPECTS[aspect].title} · {variant}"
        blocks.append(
            f'<tr><th class="name" colspan="5">{html.escape(name)}'
            f" <small>{html.escape(f'{notebook}, seed {seed}')}</small></th></tr>"
        )
        for tag, run in block.groupby("tag", sort=False):
            blocks.append(_compared(str(tag), run.set_index("metric").to_dict("index")))
    if not blocks:
        return ""
    names = "".join(f"<th>{words}</th>" for words in SHOWN.values())
    changes = "".join(f"<th>{words} against it</th>" for words in SHOWN.values())
    return (
        '<div class="scroll"><table id="variants"><thead>'
        f'<tr><th class="name">run</th>{names}{changes}</tr></thead>'
        f"<tbody>{''.join(blocks)}</tbody></table></div>"
        "<p><small>Per cent, own gallery: mean over draws, below it the 95 % interval over "
        "persons. Differences are to the study itself with the same aspect and seed; below them "
        "their 95 % interval and the p of a sign-flip test over persons with Holm's correction, "
        "where both runs scored the same persons.</small></p>"
    )


def _headline(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["gallery"] == "own") & table["metric"].isin(list(SHOWN))]


def _compared(tag: str, run: Mapping[Any, Any]) -> str:
    """A row of the sweep's table. run: metric -> its row of the results."""
    numbers = [run[metric] for metric in SHOWN]
    cells = "".join(percent_cell(n["mean"], (n["ci95_low"], n["ci95_high"])) for n in numbers)
    name = html.escape(tag) if tag else "the study itself"
    changes = "".join(map(_change, numbers))
    return f'<tr><td class="name">{name}</td>{cells}{changes}</tr>'


def _change(number: Mapping[str, Any]) -> str:
    if math.isnan(number["difference"]):
        return _EMPTY
    below = ""
    if not math.isnan(number["p_holm"]):
        low, high = (signed(number[k]) for k in ("difference_low", "difference_high"))
        below = f"<small>{low} to {high}, p {p_text(number['p_holm'])}</small>"
    return f"<td>{signed(number['difference'])}{below}</td>"
