"""An executed notebook as a page to send: prose and results, no code, nothing fetched."""

import base64
import html
import os
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets.config import Config

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.page import banner, facts, page, provenance
from handclip_lib.report.runs import read_json, replace_text
from handclip_lib.schema import Params

_SCALE = 0.8  # figures have 130 dots an inch, and a page fewer
_WIDGET = "application/vnd.jupyter.widget-view+json"
_BAR = re.compile(r"^.*\d+%\|.*\|.*(\n|$)|^.*\d+(it|img|file)? \[\d\d:\d\d.*\](\n|$)", re.MULTILINE)
_REWRITTEN = re.compile(r"[^\n]*\r(?!\n)")


def export_html(folder: Path, p: Params) -> Path:
    """Write report.html of a finished run from its report.ipynb, metrics.json and stamp.json."""
    notebook = nbformat.read(folder / "report.ipynb", as_version=4)
    metrics, stamp = read_json(folder / "metrics.json"), read_json(folder / "stamp.json")
    heading, cells = _without_title(notebook.cells)
    notebook.cells = [_tidy(cell) for cell in cells]
    notebook.metadata.pop("widgets", None)
    title = f"{heading} · {ASPECTS[p.aspect].title} · {metrics['data']}"
    top = Path(os.path.relpath(folder.parents[3 if p.tag else 2], folder)) / "index.html"
    seed = f"seed {p.seed}{f', {p.tag}' if p.tag else ''}"
    body = (
        f'<p class="over"><a href="{html.escape(top.as_posix())}">study {html.escape(p.study)}</a>'
        f" · {html.escape(ASPECTS[p.aspect].title)} · {html.escape(seed)}</p>"
        f"<h1>{html.escape(heading)}</h1>{banner(metrics['data'], metrics['variants'])}"
        f"{_body(notebook)}<footer>{facts(provenance(stamp))}</footer>"
    )
    report = folder / "report.html"
    replace_text(report, page(title, body))
    return report


def _body(notebook: NotebookNode) -> str:
    settings = Config()
    settings.CoalesceStreamsPreprocessor.enabled = True
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
        config=settings,
    )
    # pandas' own style sheets say "scoped", which no browser heeds: the last one would rule all
    return re.sub(
        r"<style scoped.*?</style>", "", exporter.from_notebook_node(notebook)[0], flags=re.S
    )


def _without_title(cells: list[NotebookNode]) -> tuple[str, list[NotebookNode]]:
    """The first heading, and the cells without it: the page has it above the data's name."""
    for cell in cells:
        found = re.search(r"^#\s+(.+)\n?", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            cell.source = cell.source.replace(found.group(0), "", 1)
            return found.group(1).strip(), cells
    return "Notebook", cells


def _tidy(cell: NotebookNode) -> NotebookNode:
    """Without progress bars, whose last state is all that a page could show, and widgets.

    Of a widget that brings a still picture, that is kept.
    """
    if cell.cell_type != "code":
        return cell
    kept = []
    for output in cell.outputs:
        if output.output_type == "stream":
            output.text = _BAR.sub("", _REWRITTEN.sub("", output.text))
            if not output.text.strip():
                continue
        if _WIDGET in output.get("data", {}):
            del output.data[_WIDGET]
            if "image/png" not in output.data:
                continue
        if "image/png" in output.get("data", {}):
            output.metadata["image/png"] = {"width": _width(output.data["image/png"])}
        kept.append(output)
    cell.outputs = kept
    return cell


def _width(png: str) -> int:
    """Shown width in pixels, so that text has one size in figures of all sizes."""
    header = base64.b64decode(png[:64])  # the width is in bytes 16 to 19
    return round(_SCALE * int.from_bytes(header[16:20], "big"))
