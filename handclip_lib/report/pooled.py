"""All aspects and seeds of a study as one comparison: the person is the unit, whatever runs saw."""

import html
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.evaluate.statistics import holm, paired_test, person_bootstrap
from handclip_lib.report.page import SHOWN, p_text, percent_cell, signed
from handclip_lib.report.results import PLACE, Finished, persons_of
from handclip_lib.report.significance import star


def pooled(runs: list[Finished]) -> pd.DataFrame:
    """One row a notebook, variant and metric over all its runs without a tag, of two or more runs.

    A variant is set against the reference that the notebook tests against, in the aspect's own
    gallery: `mean` over the queries of all aspects and seeds with `low` and `high`, `difference`
    with `difference_low`, `difference_high`, `p`, `p_holm` (over the notebook's variants) and
    `detectable`. Intervals and tests resample persons: a person brings what all runs asked about
    all his hands, so that neither seeds nor aspects pass for further persons. Means over persons'
    queries, as `evaluate.statistics.paired_test` has them.
    """
    rows: list[dict[str, Any]] = []
    for notebook in dict.fromkeys(run.metrics["notebook"] for run in runs):
        mine = [r for r in runs if r.metrics["notebook"] == notebook and not r.metrics["tag"]]
        tested = [r for r in mine if "reference" in r.metrics.get("paired", {})]
        if len(tested) > 1:
            rows += _of_notebook(notebook, tested)
    return pd.DataFrame(rows)


def pooled_table(table: pd.DataFrame) -> str:
    """HTML of `pooled`; "" where there is nothing to pool."""
    if table.empty:
        return ""
    names = "".join(f"<th>{words}</th><th>difference</th>" for words in SHOWN.values())
    body = []
    for notebook, part in table.groupby("notebook", sort=False):
        reference, runs = part["reference"].iloc[0], part["runs"].iloc[0]
        head = f"{notebook}, {runs} runs, {part['persons'].iloc[0]} persons"
        body.append(
            f'<tr><th class="name" colspan="5">against {html.escape(reference)}'
            f" <small>{html.escape(head)}</small></th></tr>"
        )
        for variant, two in part.groupby("variant", sort=False):
            cells = "".join(_cells(row) for _, row in two.iterrows())
            body.append(f'<tr><td class="name">{html.escape(str(variant))}</td>{cells}</tr>')
    return (
        '<h3>All aspects and seeds together</h3><div class="scroll"><table id="pooled"><thead>'
        f'<tr><th class="name">variant</th>{names}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        "<p><small>Per cent, own galleries, over the queries of all runs; 95 % intervals and the p "
        "of a sign-flip test (Holm's correction over the variants) are over persons, each with all "
        "his hands and all seeds. <b>★</b> holds: p at most 0.05. More in "
        '<a href="pooled.csv">pooled.csv</a>.</small></p>'
    )


def _cells(row: "pd.Series[Any]") -> str:
    mark, value = star(row["p_holm"]), signed(row["difference"])
    change = f"<b>{mark}{value}</b><small>" if mark else f"{value}<small>"
    change += (
        f"{signed(row['difference_low'])} to {signed(row['difference_high'])},"
        f" p {p_text(row['p_holm'])}</small>"
    )
    return percent_cell(row["mean"], (row["low"], row["high"])) + f"<td>{change}</td>"


def _of_notebook(notebook: str, runs: list[Finished]) -> list[dict[str, Any]]:
    reference = runs[0].metrics["paired"]["reference"]
    known = [set(r.metrics["paired"].get("own", {}).get("map", {})) for r in runs]
    variants = [v for v in runs[0].metrics["paired"]["own"]["map"] if all(v in k for k in known)]
    rows = []
    for metric in SHOWN:
        before, persons = _scores(runs, reference, metric)
        told = {v: _scores(runs, v, metric)[0] for v in variants}
        tests = {v: paired_test(before, after, persons) for v, after in told.items()}
        corrected = holm({v: test["p"] for v, test in tests.items()})
        for variant, test in tests.items():
            low, high = person_bootstrap(told[variant], persons)
            rows.append(
                {
                    **{"notebook": notebook, "variant": variant, "reference": reference},
                    **{"metric": metric, "mean": told[variant].mean(), "low": low, "high": high},
                    "difference": test["difference"],
                    "difference_low": test["ci95"][0],
                    "difference_high": test["ci95"][1],
                    **{"p": test["p"], "p_holm": corrected[variant]},
                    **{"detectable": test["detectable"], "runs": len(runs)},
                    "persons": len(np.unique(persons)),
                }
            )
    order = {variant: place for place, variant in enumerate(variants)}
    return sorted(rows, key=lambda row: order[row["variant"]])


def _scores(runs: list[Finished], variant: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) a person's mean score for each of his queries in each run, and whose it is."""
    values: list[np.ndarray] = []
    persons: list[np.ndarray] = []
    for run in runs:
        for pid, told in persons_of(run, variant).items():
            values.append(np.full(int(told[2]), told[PLACE[metric]]))
            persons.append(np.full(int(told[2]), int(pid)))
    return np.concatenate(values), np.concatenate(persons)
