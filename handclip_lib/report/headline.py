"""The first table of a study's page: every model once, over its seeds, with its intervals."""

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.report.charts import MARKS, Interval, interval_bar
from handclip_lib.report.page import GALLERIES, SHOWN, signed
from handclip_lib.report.results import Finished, runs_of

SAME = 5e-7  # of two scores: the same photographs ranked by the same model
_KEYS = ["aspect", "notebook", "tag", "variant", "data"]
_EMPTY = "<td>–</td>"

Numbers = Mapping[tuple[str, str], Mapping[str, Any]]  # (gallery, metric) -> a row of the means
Line = tuple[str, str, str, str, str]  # aspect, notebook, tag, variant, data


def lines(means: pd.DataFrame) -> dict[Line, Numbers]:
    """{(aspect, notebook, tag, variant, data): its numbers}, by aspect, notebook and tag.

    means: `results.seed_means`. A model that several notebooks score with the same result stands
    once: with 06, which scores them all together, else with the first of them.
    """
    told: dict[Any, Any] = {
        tuple(map(str, key)): part.set_index(["gallery", "metric"]).to_dict("index")
        for key, part in means.groupby(_KEYS, sort=False)
    }
    order = list(ASPECTS)

    def first(key: Any) -> tuple[int, int, str, str]:
        aspect, notebook, tag, *_ = key
        return order.index(aspect), not notebook.startswith("06"), notebook, tag

    kept: dict[Line, Numbers] = {}
    for key in sorted(told, key=first):
        alike = [of for k, of in kept.items() if (k[0], *k[2:]) == (key[0], *key[2:])]
        if not any(_are_same(of, told[key]) for of in alike):
            kept[key] = told[key]
    return dict(sorted(kept.items(), key=lambda item: (order.index(item[0][0]), item[0][1:3])))


def headline(means: pd.DataFrame, runs: list[Finished]) -> str:
    """HTML of `lines`, an aspect after the other; a number leads to the run that it comes from."""
    shown = lines(means)
    if not shown:
        return ""
    changed = any(_known(of.get(("own", "rank1")), "difference") for of in shown.values())
    seeds = any(of["own", "rank1"]["seeds"] > 1 for of in shown.values())
    body, aspect, end = [], "", _end(shown)
    for key, numbers in shown.items():
        if key[0] != aspect:
            aspect = key[0]
            name = html.escape(ASPECTS[aspect].title)
            body.append(f'<tr class="group"><th class="name">{name}</th><td colspan="9"></td></tr>')
        body.append(_row(key, numbers, _of(key, runs), changed, end))
    top = "".join(
        f'<th colspan="2">{_dot(i)}{words}</th>' for i, words in enumerate(GALLERIES.values())
    )
    names = "".join(f"<th>{words}</th>" for _ in GALLERIES for words in SHOWN.values())
    extra = '<th colspan="2">against the study</th>' if changed else ""
    below = "".join(f"<th>{words}</th>" for words in SHOWN.values()) if changed else ""
    return (
        '<div class="scroll"><table id="headline"><thead><tr><th class="name"></th>'
        f"{top}<th></th>{extra}<th></th><th></th></tr>"
        f'<tr><th class="name">variant</th>{names}<th class="axis"><span>0</span><span>rank-1'
        f"</span><span>{100 * end:.0f} %</span></th>{below}<th>persons</th><th>runs by seed</th>"
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"{_note(seeds, changed)}{_alike(shown)}"
    )


def _alike(shown: Mapping[Line, Numbers]) -> str:
    """Which models of an aspect have the same scores to the last digit, and what that means."""
    groups: dict[tuple[Any, ...], dict[str, None]] = {}
    for (aspect, *_, variant, data), of in shown.items():
        numbers = [round(of["own", m]["mean"] / SAME) for m in SHOWN]
        groups.setdefault((aspect, data, of["own", "rank1"]["seeds"], *numbers), {})[variant] = None
    told = [
        f"{ASPECTS[aspect].title}: {html.escape(', '.join(names))}"
        for (aspect, _, _, *scores), names in groups.items()
        if len(names) > 1 and scores[-1] * SAME < 1 - SAME  # who finds everybody is no sign of it
    ]
    if not told:
        return ""
    return (
        "<p><small>The same to the last digit, and so most likely the same weights:"
        f" {'; '.join(told)}. Either one model has several names, or held-out persons kept an epoch"
        " before anything in the tower had moved: that says nothing of what losses or texts can"
        " do.</small></p>"
    )


def _note(seeds: bool, changed: bool) -> str:
    text = "Per cent: mean over draws, below it the 95 % interval over persons"
    if seeds:
        text = (
            "Per cent: mean over seeds, below it the 95 % interval over persons, each with the"
            " queries of all seeds (where the runs hold the scores of persons), and in brackets the"
            " lowest and the highest seed"
        )
    if changed:
        text += "; differences in points, to the run of the study itself, mean over seeds"
    files = '<a href="results.csv">results.csv</a> (a row a model of a run)'
    files += ', <a href="numbers.csv">numbers.csv</a> (a row a number)'
    files += ', <a href="means.csv">means.csv</a> (over seeds)' if seeds else ""
    return (
        f"<p><small>{text}. <em>Own gallery</em> holds this aspect; <em>all aspects</em> adds the"
        f" other aspects' hands as distractors. More in {files}.</small></p>"
    )


def _row(key: Line, numbers: Numbers, runs: list[Finished], changed: bool, top: float) -> str:
    _, notebook, tag, variant, _ = key
    to = f"#{html.escape(runs[0].anchor)}"
    of = html.escape(notebook + (f", {tag}" if tag else ""))
    cells = [_cell(numbers.get((gallery, metric)), to) for gallery in GALLERIES for metric in SHOWN]
    bar = interval_bar(_intervals(numbers), top)
    changes = [_change(numbers.get(("own", metric))) for metric in SHOWN] if changed else []
    seeds = " ".join(
        f'<a href="#{html.escape(run.anchor)}">{run.metrics["seed"]}</a>' for run in runs
    )
    return (
        f'<tr><td class="name"><a href="{to}">{html.escape(variant)}</a><small>{of}</small></td>'
        f'{"".join(cells)}<td class="axis">{bar}</td>{"".join(changes)}'
        f"<td>{numbers['own', 'rank1']['persons']}</td><td>{seeds}</td></tr>"
    )


def _cell(number: Mapping[str, Any] | None, to: str) -> str:
    if number is None:
        return _EMPTY
    below = ""
    if _known(number, "ci95_low"):
        below = f"<small>{100 * number['ci95_low']:.1f}–{100 * number['ci95_high']:.1f}</small>"
    if number["lowest"] < number["highest"]:
        low, high = 100 * number["lowest"], 100 * number["highest"]
        below += f"<small>({low:.1f}–{high:.1f})</small>"
    return f'<td><a class="quiet" href="{to}">{100 * number["mean"]:.1f}</a>{below}</td>'


def _change(number: Mapping[str, Any] | None) -> str:
    if number is None or not _known(number, "difference"):
        return _EMPTY
    return f"<td>{signed(number['difference'])}</td>"


def _intervals(numbers: Numbers) -> list[Interval]:
    """Rank-1 in each gallery."""
    told = [numbers[g, "rank1"] for g in GALLERIES if (g, "rank1") in numbers]
    return [(of["mean"], of["ci95_low"], of["ci95_high"]) for of in told]


def _end(shown: Mapping[Line, Numbers]) -> float:
    """Where a scale ends that takes all intervals: 0.1, 0.2, … 1."""
    ends = [x for of in shown.values() for told in _intervals(of) for x in told if x == x]
    return min(1.0, math.ceil(max(ends, default=1.0) * 10 + 0.01) / 10)


def _known(number: Mapping[str, Any] | None, key: str) -> bool:
    return number is not None and not math.isnan(number[key])


def _of(key: Line, runs: list[Finished]) -> list[Finished]:
    aspect, notebook, tag, variant, data = key
    return runs_of(runs, aspect, notebook, tag, variant, data)


def _are_same(one: Numbers, other: Numbers) -> bool:
    """Whether the same seeds found the same in the own gallery."""
    keys = [("own", metric) for metric in SHOWN]
    return all(
        one[k]["seeds"] == other[k]["seeds"] and abs(one[k]["mean"] - other[k]["mean"]) < SAME
        for k in keys
    )


def _dot(place: int) -> str:
    return f'<span class="dot" style="background:{MARKS[place]}"></span>'
