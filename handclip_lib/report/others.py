"""Models on other data sets than the one that taught them: what of a gain travels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.data import splits, tables
from handclip_lib.data.check import listed, source_of
from handclip_lib.evaluate.protocol import evaluate, per_query
from handclip_lib.evaluate.retrieval import HEADLINE
from handclip_lib.evaluate.scenarios import in_smaller_gallery
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ParamError, other_data
from handclip_lib.report.compare import Tests, paired_tests
from handclip_lib.report.lineup import Contender
from handclip_lib.report.page import SHOWN
from handclip_lib.report.spaces import space_of
from handclip_lib.schema import Params
from handclip_lib.train import blends
from handclip_lib.train.states import Task
from handclip_lib.train.taught import persons_taught

HOME = "home"  # the study's own data, in figures and files
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


@dataclass(frozen=True)
class WiseFT:
    """Weights between the study's tower as it is (alpha 0) and a model (1); nothing is trained.

    model: its name; scores: {data set: {alpha: {metric: {mean, ci95}}}} in own galleries, home
    first; tests: {data set: `paired_tests` of every alpha against the model}; held: {alpha: mAP of
    held-out training persons}, empty without; chosen: the alpha that they prefer, of equals the
    larger, None without; why: in words, where there are no such weights.
    """

    model: str
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    tests: Mapping[str, Tests]
    held: Mapping[str, float]
    chosen: float | None
    why: str = ""


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
        split = there.split.model_copy(update={"select": "none", "legacy_tree": ""})
        there = there.model_copy(update={"split": split})
        photographs = tables.read(there)
        if source_of(photographs) == source_of(table):
            raise ParamError(f"comparison.others.{name}: these are the study's own photographs")
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
    place is none of others. queries: {model: its `per_query` at home, own gallery}.
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
    taught = {one.name: persons_taught(one.taught or {}, place.table) for one in models}
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
        for metric in SHOWN
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


def means(frame: pd.DataFrame, p: Params) -> dict[str, dict[str, Any]]:
    """{metric: {mean, ci95}} of rank-1 and mAP of a `per_query` frame, over its draws."""
    columns = list(HEADLINE.values())
    middle = frame.groupby("draw")[columns].mean().mean()
    low, high = person_bootstrap(frame[columns], frame["pid"], p.evaluation.bootstrap, p.seed)
    return {
        metric: {"mean": float(middle[column]), "ci95": [float(low[i]), float(high[i])]}
        for i, (metric, column) in enumerate(HEADLINE.items())
    }


def by_place(
    own: Mapping[str, Mapping[str, Any]], there: Mapping[str, There]
) -> dict[str, Mapping[str, Any]]:
    """{data set: {model: scores in the own gallery}}, home first; empty without other data sets.

    own: {model: {"own": scores at home}}.
    """
    home = {model: galleries["own"] for model, galleries in own.items()}
    return {HOME: home} | {name: found.scores for name, found in there.items()} if there else {}


def wise_ft(one: Contender, places: Mapping[str, Task], fabric: lf.Fabric) -> WiseFT:
    """A model's WiSE-FT curve on the study's own test and on those of other data sets.

    places: as of `places`; a data set is left alone where the model was taught persons
    who are tested there. The alphas are `chain.wise_ft`. At home are the training persons, of whom
    those held out choose. Wortsman et al. 2022, arXiv:2109.01903.
    """
    if one.tower is None or not one.weights:
        return _none(one, f"{one.name} was not trained here: nothing lies between it and a start")
    tasks = {
        name: place
        for name, place in places.items()
        if name == HOME or not one.met(place.table, place.manifest, "query", "gallery")
    }
    p = places[HOME].p
    try:
        sweep = blends.sweep(p, tasks, Path(one.tower.name), fabric)
    except (ParamError, WeightsError) as error:  # of a tower of another kind
        return _none(one, f"{one.name} has no weights between it and the study's tower: {error}")
    last = max(sweep.answers, key=float)
    frames = {name: {a: of[name] for a, of in sweep.answers.items()} for name in tasks}
    told = bool(np.isfinite(list(sweep.held.values())).all())
    if told and one.met(places[HOME].table, places[HOME].manifest, "select"):
        print(f"{one.name} was taught persons who are held out here: none of them choose a share")
        told = False
    return WiseFT(
        one.name,
        {n: {a: means(f, p) for a, f in of.items()} for n, of in frames.items()},
        {name: paired_tests(of, last, p.seed) for name, of in frames.items()},
        sweep.held if told else {},
        sweep.alpha if told else None,
    )


def _none(one: Contender, why: str) -> WiseFT:
    return WiseFT(one.name, {}, {}, {}, None, why)


def kept(there: Mapping[str, There], wise: WiseFT) -> dict[str, Any]:
    """The answers on other data sets as metrics.json holds them, plain values: abroad, wise_ft."""
    return {
        "abroad": {name: asdict(found) for name, found in there.items()},
        "wise_ft": asdict(wise),
    }
