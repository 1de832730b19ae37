"""All aspects and seeds of a study as one comparison: the person is the unit, whatever runs saw."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.evaluate.statistics import holm, paired_test, person_bootstrap
from handclip_lib.report.page import SHOWN, p_text, percent_cell, signed
from handclip_lib.report.results import PLACE, Finished, persons_of, place
from handclip_lib.report.significance import star

_COLUMNS = (
    *("notebook", "tag", "variant", "reference", "metric", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
    *("detectable", "runs", "persons"),
)


def pooled(runs: list[Finished]) -> pd.DataFrame:
    """A row a notebook, variant and metric; of a sweep, a row a tag, too. Of two runs or more.

    Without a tag a variant is set against the `reference` that the notebook tests against; the
    variants of a run with a tag, as a sweep has them, against the same of the study itself, over
    the aspects and seeds in which both answered the same queries. All in the aspect's own gallery:
    `mean` over the queries of all aspects and seeds with `low` and `high`, `difference` with
    `difference_low`, `difference_high`, `p`, `p_holm` (over the notebook's variants, or tags) and
    `detectable`. Intervals and tests resample persons: a person brings what all runs asked about
    all his hands, so that neither seeds nor aspects pass for further persons. Means over persons'
    queries, as `evaluate.statistics.paired_test` has them.
    """
    rows: list[dict[str, Any]] = []
    for notebook in dict.fromkeys(run.metrics["notebook"] for run in runs):
        mine = [r for r in runs if r.metrics["notebook"] == notebook]
        tested = [r for r in mine if "reference" in r.metrics.get("paired", {})]
        tested = [r for r in tested if not r.metrics["tag"]]
        if len(tested) > 1:
            rows += _of_notebook(notebook, tested)
        rows += _of_sweep(notebook, mine)
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def pooled_table(table: pd.DataFrame) -> str:
    """HTML of `pooled`; "" where there is nothing to pool."""
    if table.empty:
        return ""
    names = "".join(f"<th>{words}</th><th>difference</th>" for words in SHOWN.values())
    body = []
    for (notebook, reference), part in table.groupby(["notebook", "reference"], sort=False):
        head = f"{notebook}, {_most(part['runs'])} runs, {_most(part['persons'])} persons"
        body.append(
            f'<tr><th class="name" colspan="5">against {html.escape(str(reference))}'
            f" <small>{html.escape(head)}</small></th></tr>"
        )
        for (tag, variant), two in part.groupby(["tag", "variant"], sort=False):
            cells = "".join(_cells(row) for _, row in two.iterrows())
            name = ", ".join(filter(None, (str(variant), str(tag))))
            body.append(f'<tr><td class="name">{html.escape(name)}</td>{cells}</tr>')
    return (
        '<h3>All aspects and seeds together</h3><div class="scroll"><table id="pooled"><thead>'
        f'<tr><th class="name">variant</th>{names}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        "<p><small>Per cent, own galleries, over the queries of all runs; 95 % intervals and the p "
        "of a sign-flip test (Holm's correction over the rows of one "
        "heading) are over persons, each with all "
        "his hands and all seeds. <b>★</b> holds: p at most 0.05. More in "
        '<a href="pooled.csv">pooled.csv</a>.</small></p>'
    )


def _most(counts: pd.Series) -> str:
    return f"{'up to ' if counts.nunique() > 1 else ''}{counts.max()}"


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
    pairs = {v: [((run, reference), (run, v)) for run in runs] for v in variants}
    return _rows({"notebook": notebook, "tag": "", "reference": reference}, "variant", pairs)


def _of_sweep(notebook: str, runs: list[Finished]) -> list[dict[str, Any]]:
    plain = {place(run): run for run in runs if not run.metrics["tag"]}
    known = [(plain[place(run)], run) for run in runs if run.metrics["tag"] and place(run) in plain]
    rows = []
    for variant in dict.fromkeys(v for _, run in known for v in run.metrics.get("per_person", {})):
        pairs: dict[str, list[Any]] = {}
        for base, run in known:
            asked = _queries(base, variant)
            if asked and asked == _queries(run, variant):
                pairs.setdefault(run.metrics["tag"], []).append(((base, variant), (run, variant)))
        several = {tag: of for tag, of in pairs.items() if len(of) > 1}
        head = {"notebook": notebook, "variant": variant}
        if any(persons_of(*a) != persons_of(*b) for of in several.values() for a, b in of):
            rows += _rows(head | {"reference": f"{variant} of the study itself"}, "tag", several)
    return rows


def _queries(run: Finished, variant: str) -> dict[str, int]:
    return {pid: told[2] for pid, told in persons_of(run, variant).items()}


def _rows(
    head: Mapping[str, str], column: str, pairs: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Rows of models that are tested together, their names in a column.

    pairs: {name: of each run, before and after, a run and what the model is called there}.
    """
    rows = []
    for metric in SHOWN:
        told = {
            name: [_scores(side, metric) for side in zip(*of, strict=True)]
            for name, of in pairs.items()
        }
        tests = {name: paired_test(before[0], *after) for name, (before, after) in told.items()}
        corrected = holm({name: test["p"] for name, test in tests.items()})
        for name, test in tests.items():
            after, persons = told[name][1]
            low, high = person_bootstrap(after, persons)
            rows.append(
                {
                    **head,
                    **{column: name, "metric": metric},
                    **{"mean": after.mean(), "low": low, "high": high},
                    "difference": test["difference"],
                    "difference_low": test["ci95"][0],
                    "difference_high": test["ci95"][1],
                    **{"p": test["p"], "p_holm": corrected[name]},
                    **{"detectable": test["detectable"], "runs": len(pairs[name])},
                    "persons": len(np.unique(persons)),
                }
            )
    order = {name: place for place, name in enumerate(pairs)}
    return sorted(rows, key=lambda row: order[row[column]])


def _scores(models: Sequence[tuple[Finished, str]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) a person's mean score for each of his queries in each run, and whose it is."""
    values: list[np.ndarray] = []
    persons: list[np.ndarray] = []
    for run, variant in models:
        for pid, told in persons_of(run, variant).items():
            values.append(np.full(int(told[2]), told[PLACE[metric]]))
            persons.append(np.full(int(told[2]), int(pid)))
    return np.concatenate(values), np.concatenate(persons)
