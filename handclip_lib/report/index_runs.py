"""What a study's page shows of its runs: links to all reports, galleries, figures, provenance."""

import base64
import html
import io
import os
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from handclip_lib.aspects import ASPECTS
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.weights import WeightsError
from handclip_lib.report.page import facts, provenance
from handclip_lib.report.results import Finished

_THUMB = (300, 205)  # pixels: half as much again as is shown
_GALLERY = 640  # pixels across
_RANKED = ("ranked", "answer", "best_and_worst")  # figures of ranked galleries, the best one first
_MOST_THUMBS, _MOST_GALLERIES = 300, 16  # inside the page; some 5 MB


def reports_table(runs: list[Finished], root: Path) -> str:
    """HTML: a row a notebook and tag, a column an aspect, in it each seed's report."""
    aspects = [a for a in ASPECTS if any(run.metrics["aspect"] == a for run in runs)]
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for run in runs:
        m = run.metrics
        row = cells.setdefault((m["notebook"], m["tag"]), {aspect: [] for aspect in aspects})
        row[m["aspect"]].append(_report_link(run, root, f"seed {m['seed']}"))
    heads = "".join(f"<th>{html.escape(ASPECTS[aspect].title)}</th>" for aspect in aspects)
    body = []
    for (notebook, tag), row in sorted(cells.items()):
        below = f"<small>{html.escape(tag)}</small>" if tag else ""
        links = "".join(f"<td>{' '.join(row[aspect]) or '–'}</td>" for aspect in aspects)
        body.append(f'<tr><td class="name">{html.escape(notebook)}{below}</td>{links}</tr>')
    return (
        '<div class="scroll"><table id="reports"><thead><tr><th class="name">notebook</th>'
        f"{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _report_link(run: Finished, root: Path, words: str) -> str:
    report = run.folder / "report.html"
    words = html.escape(words)
    return f'<a href="{href(report, root)}">{words}</a>' if report.is_file() else words


def unfinished(root: Path) -> str:
    """HTML: a list of runs without numbers, with their notebooks where they left some."""
    started = {
        f.parent for depth in ("*/*/*", "*/*/*/*") for f in root.glob(f"{depth}/params.json")
    }
    items = []
    for folder in sorted(f for f in started if not (f / "metrics.json").is_file()):
        kept = folder / "report.ipynb"
        name = html.escape(folder.relative_to(root).as_posix())
        link = f'<a href="{href(kept, root)}">{name}</a>' if kept.is_file() else name
        items.append(f"<li>{link}</li>")
    return f"<p>These runs left no numbers:</p><ul>{''.join(items)}</ul>" if items else ""


def galleries(runs: list[Finished], root: Path) -> str:
    """HTML: a picture of ranked galleries of each run that has one; of the first ones, if many."""
    found = [(run, files[0]) for run in runs if (files := _ranked(run))]
    shown = found[:_MOST_GALLERIES]
    if len(found) > _MOST_GALLERIES:
        first = min(run.metrics["seed"] for run, _ in found)
        plain = [p for p in found if p[0].metrics["seed"] == first and not p[0].metrics["tag"]]
        shown = (plain or found)[:_MOST_GALLERIES]
    if not shown:
        return ""
    items = [
        f'<figure><a href="{href(path, root)}">{_picture(path, _GALLERY)}</a><figcaption>'
        f'<a href="#{html.escape(run.anchor)}">{html.escape(run.metrics["notebook"])}</a> · '
        f"{html.escape(run.name)}</figcaption></figure>"
        for run, path in shown
    ]
    less = f" Of {len(found)} runs, {len(shown)} are shown." if len(shown) < len(found) else ""
    return (
        "<p>A query on the left, then its gallery from the most similar on; framed green: the same"
        f" person, red: another.{less}</p>"
        f'<div class="galleries">{"".join(items)}</div>'
    )


def _ranked(run: Finished) -> list[Path]:
    files = (run.folder / "figures" / f"{name}.png" for name in _RANKED)
    return [path for path in files if path.is_file()]


def run_blocks(runs: list[Finished], root: Path) -> str:
    """HTML: a block a run, where its numbers lead to: report, figures, parameters and hashes."""
    figures = {run.anchor: sorted((run.folder / "figures").glob("*.png")) for run in runs}
    many = sum(map(len, figures.values())) > _MOST_THUMBS
    first = min(run.metrics["seed"] for run in runs)
    parts = []
    for run in runs:
        name = f"{run.metrics['notebook']} · {run.name}"
        parts.append(f'<h3 id="{html.escape(run.anchor)}">{_report_link(run, root, name)}</h3>')
        is_small = many and (run.metrics["seed"] != first or run.metrics["tag"] != "")
        shown = figures[run.anchor]
        if is_small and shown:
            links = ", ".join(f'<a href="{href(f, root)}">{_words(f)}</a>' for f in shown)
            parts.append(f"<p><small>figures: {links}</small></p>")
        elif shown:
            thumbs = "".join(_thumbnail(path, root) for path in shown)
            parts.append(f'<div class="thumbs">{thumbs}</div>')
        parts.append(_behind(run, root))
    return "\n".join(parts)


def _behind(run: Finished, root: Path) -> str:
    """Parameters and hashes of a run, folded away."""
    rows = provenance(run.stamp) | weights_of(run)
    rows["library sha256"] = str(run.stamp.get("library_sha256", "not recorded"))
    files = [run.folder / name for name in ("params.json", "manifest.csv", "metrics.json")]
    links = ", ".join(
        f'<a href="{href(path, root)}">{path.name}</a>' for path in files if path.is_file()
    )
    return f"<details><summary>parameters and hashes</summary><p>{links}</p>{facts(rows)}</details>"


def weights_of(run: Finished) -> dict[str, str]:
    """{"weights stage1": "1a2b… from 3c4d…"}: first 16 of the sha256 of a run's checkpoints."""
    rows = {}
    for path in sorted((run.folder / "checkpoints").glob("*.pth")):
        try:
            held = read_checkpoint(path)
        except WeightsError as error:
            rows[f"weights {path.stem}"] = str(error)
        else:
            parent = f" from {held['parent'][:16]}" if held["parent"] else ""
            rows[f"weights {path.stem}"] = f"{held['sha256'][:16]}{parent}"
    return rows


def _thumbnail(path: Path, root: Path) -> str:
    """A small copy inside the page that leads to the figure itself."""
    picture = _picture(path, *_THUMB)
    return f'<a href="{href(path, root)}">{picture}<span>{_words(path)}</span></a>'


def _picture(path: Path, width: int, height: int | None = None) -> str:
    """A JPEG of this width inside the page; what is lower than `height` is cut away."""
    with Image.open(path) as figure:
        small = figure.convert("RGB")
    small.thumbnail((width, 4 * (height or width)))
    if height is not None:
        small = small.crop((0, 0, small.width, min(small.height, height)))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="{_words(path)}" {size} src="data:image/jpeg;base64,{data}">'


def _words(path: Path) -> str:
    return html.escape(path.stem.replace("_", " "))


def href(path: Path, root: Path) -> str:
    """A file of the study as its page links to it."""
    return quote(Path(os.path.relpath(path, root)).as_posix())
