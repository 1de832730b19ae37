"""A study's index.html and results.csv: made of metrics.json files and what lies beside them."""

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.charts import interval_chart
from handclip_lib.report.page import banner, facts, page, percent_cell, provenance
from handclip_lib.report.pooled import pooled, pooled_table
from handclip_lib.report.results import Finished, finished_runs, results, seed_means, write_results
from handclip_lib.report.runs import replace_text, reports_root
from handclip_lib.report.sweeps import comparison, over_seeds
from handclip_lib.report.transfers import pooled_transfers, transfers_table
from handclip_lib.schema import Params

_SHOWN = (("rank1", "rank-1"), ("map", "mAP"))
_GALLERIES = (("own", "own gallery"), ("all", "all aspects"))
_THUMB = (380, 260)  # pixels: twice what is shown, for dense screens


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
    means = seed_means(numbers)
    write_results(p)
    replace_text(root / "numbers.csv", _csv(numbers))
    if len(means):
        replace_text(root / "means.csv", _csv(means))
    together = pooled(runs)
    if len(together):
        replace_text(root / "pooled.csv", _csv(together))
    transfers = pooled_transfers(runs)
    if len(transfers):
        replace_text(root / "transfers.csv", _csv(transfers))
    titles = list(dict.fromkeys(run.metrics["data"] for run in runs))
    parts = [_head(p.study, p.experiment, titles, runs), _headline(runs)]
    parts += [pooled_table(together), transfers_table(transfers)]
    parts += [comparison(numbers), over_seeds(means)]
    parts += [_zero_shot(runs), _unfinished(root), _runs(runs, root), _provenance(runs)]
    title = f"{p.study} · {', '.join(titles)}"
    replace_text(root / "index.html", page(title, "\n".join(filter(None, parts))))
    return root / "index.html"


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


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


def _headline(runs: list[Finished]) -> str:
    scored = [run for run in runs if run.metrics["variants"]]
    if not scored:
        return ""
    several = len({run.which for run in scored}) > 1
    points, shown = [], _each_once(scored)
    for run, variant, galleries in shown:
        label = f"{_aspect(run.metrics['aspect'])} · {variant}"
        label += f", {run.which}" if several else ""
        values = {g: s["rank1"] for g, s in galleries.items()}
        points.append((label, {g: (v["mean"], *v["ci95"]) for g, v in values.items()}))
    chart = interval_chart(points, dict(_GALLERIES))
    top = "".join(f'<th colspan="2">{words}</th>' for _, words in _GALLERIES)
    names = "".join(f"<th>{words}</th>" for _ in _GALLERIES for _, words in _SHOWN)
    rows = [_row(*one) for one in shown]
    return (
        f'<h2>Retrieval</h2>{chart}<div class="scroll"><table id="headline"><thead>'
        f'<tr><th class="name"></th>{top}<th></th></tr>'
        f'<tr><th class="name">aspect · variant</th>{names}<th>persons</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p><small>Per cent: mean over draws, below it the 95 % interval over persons. "
        "<em>Own gallery</em> holds this aspect; <em>all aspects</em> adds the other aspects' "
        'hands as distractors. More in <a href="results.csv">results.csv</a> '
        '(a row a model) and <a href="numbers.csv">numbers.csv</a> (a row a number).</small></p>'
    )


def _each_once(runs: list[Finished]) -> list[tuple[Finished, str, dict[str, Any]]]:
    """(run, variant, its galleries): what 06 has scored again is shown there alone."""
    every = [(run, name, told) for run in runs for name, told in run.metrics["variants"].items()]
    again = {
        (run.metrics["aspect"], run.which, name)
        for run, name, _ in every
        if run.metrics["notebook"].startswith("06")
    }
    return [
        (run, name, told)
        for run, name, told in every
        if not run.metrics["notebook"].startswith(("02", "03", "04"))
        or (run.metrics["aspect"], run.which, name) not in again
    ]


def _row(run: Finished, variant: str, galleries: dict[str, Any]) -> str:
    cells = "".join(
        percent_cell(galleries[gallery][metric]["mean"], galleries[gallery][metric]["ci95"])
        if gallery in galleries
        else "<td>–</td>"
        for gallery, _ in _GALLERIES
        for metric, _ in _SHOWN
    )
    name = f"{_aspect(run.metrics['aspect'])} · {variant}"
    link = f'<a href="#{html.escape(run.anchor)}">{html.escape(name)}</a>'
    of = html.escape(f"{run.metrics['notebook']}, {run.which}")
    persons = galleries["own"]["persons"]
    return f'<tr><td class="name">{link}<small>{of}</small></td>{cells}<td>{persons}</td></tr>'


def _zero_shot(runs: list[Finished]) -> str:
    rows = [
        f'<tr><td class="name">{html.escape(_aspect(run.metrics["aspect"]))} · '
        f"{html.escape(tower)}<small>{html.escape(run.which)}</small></td>"
        f"{percent_cell(answer['ensemble']['accuracy'], answer['ensemble']['ci95'])}"
        f"<td>{100 * answer['chance']:.1f}</td><td>{answer['images']}</td></tr>"
        for run in runs
        if "zero_shot" in run.metrics
        for tower, answer in run.metrics["zero_shot"].items()
    ]
    if not rows:
        return ""
    return (
        '<h2>Aspect by words</h2><div class="scroll"><table id="zero-shot"><thead><tr>'
        '<th class="name">aspect · tower</th><th>accuracy</th><th>chance</th>'
        f"<th>photographs</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "<p><small>Per cent of photographs whose side and surface the nearest text names right,"
        " all templates together.</small></p>"
    )


def _unfinished(root: Path) -> str:
    started = {
        f.parent for depth in ("*/*/*", "*/*/*/*") for f in root.glob(f"{depth}/params.json")
    }
    items = []
    for folder in sorted(f for f in started if not (f / "metrics.json").is_file()):
        kept = folder / "report.ipynb"
        name = html.escape(folder.relative_to(root).as_posix())
        link = _href(kept, root)
        items.append(
            f'<li><a href="{link}">{name}</a></li>' if kept.is_file() else f"<li>{name}</li>"
        )
    if not items:
        return ""
    return f"<h2>Not finished</h2><p>These runs left no numbers:</p><ul>{''.join(items)}</ul>"


def _runs(runs: list[Finished], root: Path) -> str:
    parts = ["<h2>Reports</h2>"]
    for run in runs:
        report = run.folder / "report.html"
        name = f"{html.escape(run.metrics['notebook'])} · {html.escape(run.name)}"
        link = f'<a href="{_href(report, root)}">{name}</a>' if report.is_file() else name
        parts.append(f'<h3 id="{html.escape(run.anchor)}">{link}</h3>')
        figures = sorted((run.folder / "figures").glob("*.png"))
        thumbs = "".join(_thumbnail(path, root) for path in figures)
        parts.append(f'<div class="thumbs">{thumbs}</div>' if thumbs else "")
        parts.append(
            f"<details><summary>provenance</summary>{facts(provenance(run.stamp))}</details>"
        )
    return "\n".join(parts)


def _thumbnail(path: Path, root: Path) -> str:
    """A small copy inside the page that leads to the figure itself."""
    with Image.open(path) as figure:
        small = figure.convert("RGB")
    small.thumbnail((_THUMB[0], 4 * _THUMB[1]))
    buffer = io.BytesIO()
    small.crop((0, 0, small.width, min(small.height, _THUMB[1]))).save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    name = html.escape(path.stem.replace("_", " "))
    return (
        f'<a href="{_href(path, root)}"><img alt="{name}" src="data:image/jpeg;base64,{data}">'
        f"<span>{name}</span></a>"
    )


def _provenance(runs: list[Finished]) -> str:
    stamps = [run.stamp for run in runs]
    hashes = {run.metrics["aspect"]: str(run.metrics["manifest_sha256"])[:16] for run in runs}
    rows = {
        "manifests": ", ".join(f"{_aspect(a)} {digest}" for a, digest in hashes.items()),
        "code": "; ".join(dict.fromkeys(provenance(s)["code"] for s in stamps)),
        "versions": "; ".join(dict.fromkeys(provenance(s)["versions"] for s in stamps)),
        "machine": "; ".join(dict.fromkeys(provenance(s)["machine"] for s in stamps)),
        "time": f"{sum(s['seconds'] for s in stamps):.0f} s in all runs together",
    }
    return f"<footer>{facts(rows)}</footer>"


def _href(path: Path, root: Path) -> str:
    return html.escape(Path(os.path.relpath(path, root)).as_posix())


def _aspect(name: str) -> str:
    return ASPECTS[name].title
