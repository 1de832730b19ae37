"""By what parameters, data and code the numbers of a study's page came about."""

import html
import json
from typing import Any

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import quantity
from handclip_lib.report.page import facts, provenance
from handclip_lib.report.results import Finished
from handclip_lib.report.runs import HEADER, read_json
from handclip_lib.schema import leaves

_NAMES = (*HEADER, "reports")  # say whose a run is and where it lies, not what it does
_MOST = 40  # rows that are shown at once


def parameters(runs: list[Finished]) -> str:
    """HTML: what differs between the runs' params.json, then what they share, folded away."""
    settings = _settings(runs)
    trees = [dict(tree) for tree in settings]
    keys = sorted({key for tree in trees for key in tree})
    differing = [k for k in keys if len({tree.get(k, "nothing") for tree in trees}) > 1]
    shared = {k: trees[0][k] for k in keys if k not in differing}
    heads = "".join(f"<th>{_told(of)}</th>" for of in settings.values())
    body = "".join(
        f'<tr><td class="name"><code>{html.escape(key)}</code></td>'
        + "".join(f"<td><code>{html.escape(t.get(key, 'nothing'))}</code></td>" for t in trees)
        + "</tr>"
        for key in differing
    )
    table = (
        f'<div class="scroll"><table id="parameters"><thead><tr><th class="name">parameter</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        if differing
        else "<p>All runs have the same parameters, but for aspect, seed and tag.</p>"
    )
    if len(differing) > _MOST:
        words = f"{len(differing)} parameters that differ between runs"
        table = f"<details><summary>{words}</summary>{table}</details>"
    words = f"{len(shared)} parameters that all runs share"
    return f"{table}<details><summary>{words}</summary>{facts(shared)}</details>"


def _settings(runs: list[Finished]) -> dict[tuple[tuple[str, str], ...], list[Finished]]:
    """{the parameters, without those that name a run: the runs that have them}."""
    found: dict[tuple[tuple[str, str], ...], list[Finished]] = {}
    for run in runs:
        path = run.folder / "params.json"
        tree = dict(leaves(read_json(path))) if path.is_file() else {}
        told = tuple((key, _value(v)) for key, v in tree.items() if key not in _NAMES)
        found.setdefault(told, []).append(run)
    return found


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _told(runs: list[Finished]) -> str:
    """Whose a column is: the tags of its runs, and how many they are."""
    tags = dict.fromkeys(run.metrics["tag"] or "no tag" for run in runs)
    words = html.escape(", ".join(tags))
    first = html.escape(runs[0].anchor)
    return f'<a href="#{first}">{words}</a><small>{quantity(len(runs), "run")}</small>'


def hashes(runs: list[Finished]) -> str:
    """HTML: the manifests, the library, the code and the machines behind all numbers."""
    told = [(run, provenance(run.stamp)) for run in runs]
    manifests = dict.fromkeys(
        f"{ASPECTS[run.metrics['aspect']].title} {str(run.metrics['manifest_sha256'])[:16]}"
        for run in runs
        if run.metrics["manifest_sha256"]
    )
    libraries = dict.fromkeys(str(run.stamp.get("library_sha256", "?"))[:16] for run in runs)
    rows = {
        "manifests": ", ".join(manifests) or "none written",
        "library": ", ".join(libraries),
        **{
            key: "; ".join(dict.fromkeys(rows[key] for _, rows in told))
            for key in ("code", "versions", "machine")
        },
        "time": f"{sum(run.stamp['seconds'] for run in runs):,.0f} s in all runs together",
    }
    return facts(rows)
