"""Models on other data sets than the one that taught them: what of a gain travels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from handclip_lib.aspects import ASPECTS
from handclip_lib.data import splits, tables
from handclip_lib.data.check import listed
from handclip_lib.evaluate.protocol import evaluate, per_query
from handclip_lib.evaluate.scenarios import in_smaller_gallery
from handclip_lib.params import ParamError, other_data
from handclip_lib.report.between import HOME, Between, between, colours, key, means, wise_curves
from handclip_lib.report.canvas import canvas, grid_lines, saying, styled
from handclip_lib.report.compare import paired_tests
from handclip_lib.report.lineup import Contender
from handclip_lib.report.page import p_text
from handclip_lib.report.published import published_across, published_table
from handclip_lib.report.spaces import space_of
from handclip_lib.report.summary import percent
from handclip_lib.report.sweeps import SHOWN, signed
from handclip_lib.schema import Params
from handclip_lib.train.job import persons_taught
from handclip_lib.train.states import Task

__all__ = [
    "HOME",
    "NONE",
    "There",
    "answered",
    "between",
    "change",
    "kept",
    "lost_table",
    "named",
    "places",
    "places_table",
    "published_across",
    "published_table",
    "side_by_side",
    "there_table",
    "wise_curves",
]

NONE = "No other data set was asked for: comparison.others names some."


@dataclass(frozen=True)
class There:
    """What models answered on another data set.

    title: of its photographs; manifest_sha256: of its queries and galleries; scores: {model: those
    of the own gallery there}; tests: `paired_tests` there, empty where the reference was left out;
    left_out: {model: persons of that data set whom it was taught}; size: entries of the smaller of
    the galleries at home and there; equal: {model: {metric: `change` with what it is of, `home` and
    `there`}}, both in galleries of that size.
    """

    title: str
    manifest_sha256: str
    scores: Mapping[str, dict[str, Any]]
    tests: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: Mapping[str, Sequence[int]]
    size: int
    equal: Mapping[str, Mapping[str, Mapping[str, Any]]]


def places(
    p: Params, table: pd.DataFrame, manifest: pd.DataFrame, taken: Sequence[str]
) -> dict[str, Task]:
    """The study's own test, by the name HOME, and that of each data set in `comparison.others`.

    table, manifest: the study's own, whole. Of another data set only queries and own galleries
    are taken, in the study's protocol; nobody is held out there, since nothing is chosen there.
    taken: names of further tests; ParamError where a data set has one of them, or is the study's.
    """
    found = {HOME: Task(HOME, p, table, manifest)}
    for name, there in other_data(p).items():
        if name in (HOME, *taken):
            raise ParamError(f"comparison.others.{name}: a test is called that already; rename it")
        if there.data == p.data:
            raise ParamError(f"comparison.others.{name}: these are the study's own photographs")
        split = there.split.model_copy(update={"select": "none", "legacy_tree": ""})
        there = there.model_copy(update={"split": split})
        photographs = tables.read(there)
        rows = splits.manifest_for(there, photographs)
        tested = rows[rows["split"].isin(("query", "gallery"))]
        found[name] = Task(name, there, photographs, tested)
    return found


def named(place: Task) -> str:
    """A data set's aspect and photographs in words, as titles have them."""
    return f"{ASPECTS[place.p.aspect].title}, {place.table.attrs['title']}"


def answered(
    models: Sequence[Contender],
    places: Mapping[str, Task],
    queries: Mapping[str, pd.DataFrame],
    fabric: lf.Fabric,
) -> dict[str, There]:
    """{data set: what the models answered there}, HOME not among them.

    Each model is searched in the own gallery there, distractors included. One that was taught
    persons of that data set, tested or not, is left out, which is printed with them: to it the
    place is none of others. queries: {model: its
    `per_query` at home, own gallery}.
    """
    own = places[HOME].manifest
    return {n: _there(models, t, own, queries, fabric) for n, t in places.items() if n != HOME}


def _there(
    models: Sequence[Contender],
    place: Task,
    own: pd.DataFrame,
    queries: Mapping[str, pd.DataFrame],
    fabric: lf.Fabric,
) -> There:
    """What the models answered at one place. own: the manifest at home, which `queries` are of."""
    p, images, manifest = place.p, place.images, place.manifest
    left_out = _left_out(models, place)
    able = [one for one in models if one.name not in left_out]
    z = {one.name: space_of(one, p, place.table, images, fabric).z for one in able}
    rows = {name: per_query(z[name], images, manifest) for name in z}
    boots = (p.evaluation.bootstrap, p.seed)
    reference = p.comparison.reference
    size = min(_smallest(own), _smallest(manifest))
    return There(
        str(place.table.attrs["title"]),
        splits.sha256(manifest),
        {name: evaluate(z[name], images, manifest, *boots)["own"] for name in z},
        paired_tests(rows, reference, p.seed) if reference in rows else {},
        left_out,
        size,
        {n: _equal((queries[n], own), (rows[n], manifest), size, p) for n in rows},
    )


def _left_out(models: Sequence[Contender], place: Task) -> dict[str, list[int]]:
    taught = {one.name: persons_taught({"taught": one.taught or {}}, place.table) for one in models}
    found = {model: sorted(people) for model, people in taught.items() if people}
    for model, people in found.items():
        who = ", ".join(listed(people, 10))
        print(f"{model} is left out of {place.name}: it was taught persons of it: {who}")
    return found


def _smallest(manifest: pd.DataFrame) -> int:
    """Entries of the own gallery, of the draw that has fewest."""
    return int(manifest.loc[manifest["split"] == "gallery", "draw"].value_counts().min())


def _equal(
    home: tuple[pd.DataFrame, pd.DataFrame],
    there: tuple[pd.DataFrame, pd.DataFrame],
    size: int,
    p: Params,
) -> dict[str, dict[str, Any]]:
    """{metric: `change`, and what of} between (queries, manifest) at home and there."""
    before, after = (means(in_smaller_gallery(*both, size), p) for both in (home, there))
    return {
        metric: {HOME: before[metric], "there": after[metric]}
        | change(before[metric], after[metric])
        for metric, _ in SHOWN
    }


def change(home: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """{difference, ci95}: a metric there less the same at home, of persons who are others.

    home, there: {mean, ci95} of one metric, 0–1. The interval of a difference of two independent
    means is put together from those of the two. Zou & Donner 2008, doi:10.1002/sim.3095, section 2.
    """
    (low, high), (there_low, there_high) = home["ci95"], there["ci95"]
    before, after = home["mean"], there["mean"]
    down = float(np.hypot(after - there_low, high - before))
    up = float(np.hypot(there_high - after, before - low))
    difference = after - before
    return {"difference": difference, "ci95": [difference - down, difference + up]}


def kept(there: Mapping[str, There], wise: Between) -> dict[str, Any]:
    """The answers on other data sets as metrics.json holds them, plain values: abroad, wise_ft."""
    return {
        "abroad": {name: asdict(found) for name, found in there.items()},
        "wise_ft": asdict(wise),
    }


def places_table(places: Mapping[str, Task]) -> pd.DataFrame:
    """A row a data set: photographs, aspect, and the size of its test.

    Persons are those asked for; entries those of the largest gallery, distractors among them.
    """
    rows = {}
    for name, place in places.items():
        query, entries = (
            place.manifest[place.manifest["split"] == s] for s in ("query", "gallery")
        )
        rows[name] = {
            "photographs": place.table.attrs["title"],
            "aspect": ASPECTS[place.p.aspect].title,
            "persons": query["pid"].nunique(),
            "queries of a draw": int(query["draw"].value_counts().max()),
            "gallery entries": int(entries["draw"].value_counts().max()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def there_table(there: Mapping[str, There], reference: str) -> pd.DataFrame:
    """A row a data set and model, of the own gallery there: scores, and against the reference.

    Per cent and points with 95 % intervals; p of the paired tests there, by Holm over the models of
    that data set. Empty without other data sets.
    """
    rows = {}
    for name, found in there.items():
        for model, scores in found.scores.items():
            row = rows[name, model] = dict[str, str]()
            for metric, words in SHOWN:
                test = found.tests.get(metric, {}).get(model)
                row[f"{words} (%)"] = percent(scores[metric])
                row[f"{words}, above {reference}"] = _points(test)
                row[f"{words}, p (Holm)"] = p_text(test["holm"]) if test else "–"
    return _by_place(rows)


def lost_table(there: Mapping[str, There]) -> pd.DataFrame:
    """A row a data set and model: at home, there, and the change, in galleries of one size.

    That is the smaller of the two. Per cent and points with 95 % intervals. Empty without other
    data sets.
    """
    rows = {}
    for name, found in there.items():
        for model, equal in found.equal.items():
            row = rows[name, model] = {"entries": str(found.size)}
            for metric, words in SHOWN:
                row[f"{words}, home (%)"] = percent(equal[metric][HOME])
                row[f"{words}, there (%)"] = percent(equal[metric]["there"])
                row[f"{words}, change (points)"] = _points(equal[metric])
    return _by_place(rows)


def _by_place(rows: Mapping[tuple[str, str], Mapping[str, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).T
    return frame.rename_axis(["data set", "model"]) if rows else frame


def _points(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "–"
    low, high = told["ci95"]
    return f"{signed(told['difference'])} [{signed(low)}, {signed(high)}]"


@styled
def side_by_side(
    own: Mapping[str, Mapping[str, Any]], there: Mapping[str, There], title: str
) -> Figure:
    """Rank-1 and mAP of every model at home and on each other data set, with 95 % intervals.

    own: {model: {"own": scores at home}}. A row a model, a colour a data set.
    """
    if not there:
        return saying(title, NONE)
    of = {HOME: {model: galleries["own"] for model, galleries in own.items()}}
    of |= {name: dict(found.scores) for name, found in there.items()}
    fig, axes = canvas(title, 1, 2, (10.0, 1.6 + (0.12 + 0.11 * len(of)) * len(own)))
    for ax, (metric, words) in zip(axes[0], SHOWN, strict=True):
        for i, (name, colour) in enumerate(colours(list(of)).items()):
            told = [(k, of[name][m][metric]) for k, m in enumerate(own) if m in of[name]]
            at = np.array([k for k, _ in told]) + (i - (len(of) - 1) / 2) * 0.6 / len(of)
            ends = np.array([score["ci95"] for _, score in told]).reshape(-1, 2).T
            ax.hlines(at, *ends, color=colour, linewidth=2)
            ax.plot([s["mean"] for _, s in told], at, "o", color=colour, markersize=5, label=name)
        for edge in range(1, len(own)):
            ax.axhline(edge - 0.5, color="#E4E7EB", linewidth=0.8, zorder=0)
        ax.set(ylim=(len(own) - 0.5, -0.5), title=words)
        ax.set_xlim(left=0)
        ax.set_yticks(range(len(own)), own if ax is axes[0, 0] else [""] * len(own))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
        grid_lines(ax, "x")
    key(fig, axes[0, 0], "tested on (lines: 95 % intervals over persons)")
    return fig
