"""A study's index.html and results.csv: made of metrics.json files and what lies beside them."""

import html
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.headline import headline
from handclip_lib.report.index_curves import curves
from handclip_lib.report.index_facts import hashes, parameters
from handclip_lib.report.index_heat import heat
from handclip_lib.report.index_runs import galleries, reports_table, run_blocks, unfinished
from handclip_lib.report.page import banner, contents, page, percent_cell
from handclip_lib.report.pooled import pooled, pooled_table
from handclip_lib.report.results import Finished, finished_runs, results, seed_means, write_results
from handclip_lib.report.runs import replace_text, reports_root
from handclip_lib.report.significance import significance, tested
from handclip_lib.report.sweeps import comparison
from handclip_lib.report.transfers import pooled_transfers, transfers_table
from handclip_lib.schema import Params


def write_index(p: Params) -> Path:
    """Write a study's index.html and its tables as CSV; returns index.html's path.

    results.csv: a row a model of a run; numbers.csv: a row a number, with tests between the runs of
    a sweep; means.csv: means over seeds, where there are several; pooled.csv:
    paired tests over all aspects and seeds together; transfers.csv: chains over all seeds. Every
    number comes from a metrics.json; ValueError when the study has no finished run.
    """
    root = reports_root(p) / p.study
    runs = finished_runs(root)
    if not runs:
        raise ValueError(f"no finished run in {root}; make some: handclip study {p.study}")
    numbers = results(runs)
    means = seed_means(numbers, runs)
    together, transfers = pooled(runs), pooled_transfers(runs)
    write_results(p)
    _write(root / "numbers.csv", numbers)
    _write(root / "means.csv", means[means["seeds"] > 1])
    _write(root / "pooled.csv", together)
    _write(root / "transfers.csv", transfers)
    sections = {
        "Retrieval": headline(means, runs),
        "Methods by aspect": heat(means, runs),
        "Significance": pooled_table(together) + significance(tested(runs), len(together) > 0),
        "Variants": comparison(numbers),
        "Chains": transfers_table(transfers),
        "Aspect by words": _zero_shot(runs),
        "Training": curves(runs),
        "Galleries": galleries(runs, root),
        "Reports": reports_table(runs, root),
        "Not finished": unfinished(root),
        "Parameters": parameters(runs),
        "Runs": run_blocks(runs, root),
        "Provenance": hashes(runs),
    }
    titles = list(dict.fromkeys(run.metrics["data"] for run in runs))
    body = _head(p.study, p.experiment, titles, runs) + contents(sections)
    replace_text(root / "index.html", page(f"{p.study} · {', '.join(titles)}", body))
    return root / "index.html"


def _write(path: Path, table: pd.DataFrame) -> None:
    """Write the table; one that has become empty leaves no earlier file behind."""
    if len(table) or path.name == "numbers.csv":
        replace_text(path, table.to_csv(index=False, lineterminator="\n"))
    else:
        path.unlink(missing_ok=True)


def _head(study: str, experiment: str, titles: list[str], runs: list[Finished]) -> str:
    aspects = list(dict.fromkeys(_aspect(run.metrics["aspect"]) for run in runs))
    seeds = len({run.metrics["seed"] for run in runs})
    told = f" · {html.escape(experiment)}" if experiment else ""
    variants = [name for run in runs for name in run.metrics["variants"]]
    counts = f"{len(runs)} finished runs, {seeds} seed{'s' if seeds > 1 else ''}"
    return (
        f'<p class="over">HandCLIP · study {html.escape(study)}{told}</p>'
        f"<h1>{html.escape(', '.join(titles))}</h1>"
        + "".join(banner(title, variants) for title in titles)
        + f'<p class="soft">{counts}: {html.escape(", ".join(aspects))}. Who is this hand? Each '
        "query is ranked against a gallery with one photograph of each person; rank-1 is how often "
        "the right person comes first.</p>"
    )


def _zero_shot(runs: list[Finished]) -> str:
    found: dict[tuple[str, str], list[Finished]] = {}  # of the same photographs: said once
    for run in runs:
        for tower, answer in run.metrics.get("zero_shot", {}).items():
            found.setdefault((tower, _accuracy(answer)), []).append(run)
    rows = [
        f'<tr><td class="name">{html.escape(tower)}'
        f"<small>{html.escape(_whose(same))}</small></td>{accuracy}</tr>"
        for (tower, accuracy), same in found.items()
    ]
    if not rows:
        return ""
    return (
        '<div class="scroll"><table id="zero-shot"><thead><tr>'
        '<th class="name">tower</th><th>accuracy</th><th>chance</th>'
        f"<th>photographs</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p><small>Per cent of photographs whose side and surface the nearest text names right,"
        " all templates together.</small></p>"
    )


def _whose(runs: list[Finished]) -> str:
    """The aspects, and the seeds and tags, of runs."""
    names = [_aspect(run.metrics["aspect"]) for run in runs], [run.which for run in runs]
    return "; ".join(", ".join(dict.fromkeys(words)) for words in names)


def _accuracy(answer: dict[str, Any]) -> str:
    cell = percent_cell(answer["ensemble"]["accuracy"], answer["ensemble"]["ci95"])
    return f"{cell}<td>{100 * answer['chance']:.1f}</td><td>{answer['images']}</td>"


def _aspect(name: str) -> str:
    return ASPECTS[name].title
