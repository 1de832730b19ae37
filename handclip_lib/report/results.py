"""The numbers of a study's finished runs, as tables: each run, and means over seeds."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.evaluate.statistics import holm, paired_test, person_bootstrap
from handclip_lib.report.runs import REMOVE, read_json, replace_text, reports_root
from handclip_lib.schema import Params

_COLUMNS = (
    "study", "seed", "aspect", "notebook", "tag", "data", "variant", "gallery", "metric", "mean",
    "ci95_low", "ci95_high", "queries", "entries", "persons", "manifest_sha256", "commit",
    "difference", "difference_low", "difference_high", "p",
)  # fmt: skip
_OVER = ["study", "aspect", "notebook", "tag", "data", "variant", "gallery", "metric"]
PLACE = {"rank1": 0, "map": 1}  # in a person's [mean rank-1, mean AP, number of queries]


@dataclass(frozen=True)
class Finished:
    """A finished run as its folder tells it."""

    folder: Path
    metrics: dict[str, Any]
    stamp: dict[str, Any]

    @property
    def name(self) -> str:
        """Aspect, seed and tag in words."""
        return f"{ASPECTS[self.metrics['aspect']].title}, {self.which}"

    @property
    def which(self) -> str:
        """Seed and tag in words."""
        m = self.metrics
        return f"seed {m['seed']}" + (f", {m['tag']}" if m["tag"] else "")

    @property
    def anchor(self) -> str:
        """Where the index page shows it."""
        m = self.metrics
        return "-".join(str(m[k]) for k in ("notebook", "aspect", "seed", "tag") if m[k] != "")


def finished_runs(root: Path) -> list[Finished]:
    """The finished runs of a study's folder, by notebook, aspect, seed and tag (none first)."""
    paths = [*root.glob("seed*/*/*/metrics.json"), *root.glob("seed*/*/*/*/metrics.json")]
    paths = [f for f in paths if not f.parent.name.startswith(".")]  # put aside by a re-run
    runs = [Finished(f.parent, read_json(f), read_json(f.with_name("stamp.json"))) for f in paths]
    for run in runs:
        if lost := {"notebook", "aspect", "seed", "tag"} - run.metrics.keys():
            file = run.folder / "metrics.json"
            raise ValueError(f"{file} has no {', '.join(sorted(lost))}; {REMOVE}")
    order = list(ASPECTS)

    def key(run: Finished) -> tuple[str, int, int, str]:
        m = run.metrics
        return m["notebook"], order.index(m["aspect"]), m["seed"], m["tag"]

    return sorted(runs, key=key)


def one_row_each(runs: list[Finished]) -> pd.DataFrame:
    """One row a model of a run: whose it is, its scores in both galleries, what training it took.

    Scores are 0–1: `rank1` … `minp` and their `_low`, `_high` in the own gallery, with `all_` in
    front among all aspects and `on_<name>_` on another data set of `comparison.others`;
    `training_…` the facts of its training; `space_…` those of its features; empty where the run
    says nothing of them.
    """
    rows = []
    for run in runs:
        m = run.metrics
        head = {k: m[k] for k in ("study", "seed", "aspect", "notebook", "tag", "data")}
        tail = {"manifest_sha256": m["manifest_sha256"], "commit": run.stamp["git"]["commit"]}
        for variant, galleries in m["variants"].items():
            row = head | {"variant": variant}
            for gallery, scores in galleries.items():
                row |= _flat(scores, "" if gallery == "own" else f"{gallery}_")
            for name, there in m.get("abroad", {}).items():
                row |= _flat(there["scores"].get(variant, {}), f"on_{name}_")
            told = {"training": m.get("training", {}), "space": m.get("geometry", {})}
            for word, of_variant in told.items():
                facts = of_variant.get(variant, {})
                plain = {k: v for k, v in facts.items() if not isinstance(v, dict)}
                row |= {f"{word}_{key}": value for key, value in plain.items()}
            rows.append(row | tail)
    return pd.DataFrame(rows)


def write_results(p: Params) -> None:
    """Write a study's results.csv, `one_row_each` of its finished runs."""
    root = reports_root(p) / p.study
    text = one_row_each(finished_runs(root)).to_csv(index=False, lineterminator="\n")
    replace_text(root / "results.csv", text)


def _flat(scores: dict[str, Any], before: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            row[f"{before}{name}"] = value["mean"]
            row[f"{before}{name}_low"], row[f"{before}{name}_high"] = value["ci95"]
        else:
            row[f"{before}{name}"] = value
    return row


def results(runs: list[Finished]) -> pd.DataFrame:
    """One row for each number: study, seed, aspect, notebook, tag, variant, gallery, metric, mean …

    A run with a tag is set against the one without, of the same notebook, aspect, seed and
    variant: `difference` (its mean less that one's) and, where both runs hold the scores of the
    same persons, its 95 % interval, the sign-flip test's `p`, and `p_holm` among all tags.
    """
    plain = {place(run): run for run in runs if not run.metrics["tag"]}
    rows = []
    for run in runs:
        m = run.metrics
        base = plain.get(place(run)) if m["tag"] else None
        head = [m[k] for k in ("study", "seed", "aspect", "notebook", "tag", "data")]
        tail = [m["manifest_sha256"], run.stamp["git"]["commit"]]
        for variant, gallery, metric, value, scores in _numbers(m):
            counts = [scores[k] for k in ("queries", "gallery", "persons")]
            row = [*head, variant, gallery, metric, value["mean"], *value["ci95"], *counts, *tail]
            rows.append([*row, *_against(run, base, variant, gallery, metric)])
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    frame["p_holm"] = math.nan
    keys = ["aspect", "seed", "notebook", "variant", "gallery", "metric"]
    for _, group in frame.dropna(subset="p").groupby(keys):
        told = holm({str(index): p for index, p in group["p"].items()})
        frame.loc[group.index, "p_holm"] = list(told.values())
    return frame


def seed_means(frame: pd.DataFrame, runs: list[Finished]) -> pd.DataFrame:
    """Means over seeds of `results(runs)`, of one seed or more.

    Columns after the run's: mean, sd (over seeds), lowest, highest, difference (mean of those to
    the run without a tag), seeds, persons, ci95_low, ci95_high. The interval is over persons, who
    bring their queries of all seeds, so that seeds do not pass for further persons: of rank-1 and
    mAP in the own gallery where all seeds hold the scores of the same persons, and of a number that
    is the same with every seed; NaN else.
    """
    table = frame.groupby(_OVER, sort=False, as_index=False).agg(
        mean=("mean", "mean"),
        sd=("mean", "std"),
        lowest=("mean", "min"),
        highest=("mean", "max"),
        difference=("difference", "mean"),
        seeds=("seed", "nunique"),
        persons=("persons", "max"),
        ci95_low=("ci95_low", "first"),
        ci95_high=("ci95_high", "first"),
    )
    alone = table["lowest"] == table["highest"]
    table.loc[~alone, ["ci95_low", "ci95_high"]] = math.nan
    several = table[~alone & (table["gallery"] == "own") & table["metric"].isin(PLACE)]
    for key, part in several.groupby(["aspect", "notebook", "tag", "variant", "data"], sort=False):
        intervals = _over_seeds(runs_of(runs, *map(str, key)), str(key[3]))
        for index, metric in part["metric"].items():
            if intervals is not None:
                low, high = (bound[PLACE[metric]] for bound in intervals)
                table.loc[index, ["ci95_low", "ci95_high"]] = low, high
    return table


def runs_of(
    runs: list[Finished], aspect: str, notebook: str, tag: str, variant: str, data: str
) -> list[Finished]:
    """Those of all seeds that scored this model on this data."""
    place = {"aspect": aspect, "notebook": notebook, "tag": tag, "data": data}
    return [
        run
        for run in runs
        if place.items() <= {k: run.metrics[k] for k in place}.items()
        and variant in run.metrics["variants"]
    ]


def _over_seeds(runs: list[Finished], variant: str) -> tuple[Any, Any] | None:
    """(low, high), each (2,) of rank-1 and mAP, all seeds together; None where it can't be told."""
    told = [persons_of(run, variant) for run in runs]
    counts = [{pid: of[2] for pid, of in persons.items()} for persons in told]
    if len(counts[0]) < 2 or any(count != counts[0] for count in counts):
        return None
    scores = [of[:2] for persons in told for of in persons.values()]
    times = [int(of[2]) for persons in told for of in persons.values()]
    who = [int(pid) for persons in told for pid in persons]
    return person_bootstrap(np.repeat(scores, times, axis=0), np.repeat(who, times))


def place(run: Finished) -> tuple[Any, ...]:
    """What a run with a tag and the study's own must agree in, to be set against each other."""
    return tuple(run.metrics[k] for k in ("notebook", "aspect", "seed", "data"))


def _numbers(metrics: dict[str, Any]) -> list[tuple[str, str, str, Any, Any]]:
    return [
        (variant, gallery, metric, value, scores)
        for variant, galleries in metrics["variants"].items()
        for gallery, scores in galleries.items()
        for metric, value in scores.items()
        if isinstance(value, dict)
    ]


def _against(
    run: Finished, base: Finished | None, variant: str, gallery: str, metric: str
) -> list[float]:
    """[difference, low, high, p] of a number and the plain run's; NaN where it can't be told."""
    unknown = [math.nan] * 4
    if base is None or variant not in base.metrics["variants"]:
        return unknown
    old = base.metrics["variants"][variant].get(gallery, {}).get(metric)
    if old is None:
        return unknown
    before, after = (persons_of(r, variant) for r in (base, run))
    same = {pid: told[2] for pid, told in before.items()} == {k: v[2] for k, v in after.items()}
    if same and len(before) > 1 and gallery == "own" and metric in PLACE:
        times = [int(before[pid][2]) for pid in before]
        a, b = (
            np.repeat([told[pid][PLACE[metric]] for pid in before], times)
            for told in (before, after)
        )
        tested = paired_test(a, b, np.repeat(np.arange(len(times)), times))
        return [tested["difference"], *tested["ci95"], tested["p"]]
    new = run.metrics["variants"][variant][gallery][metric]
    return [new["mean"] - old["mean"], *unknown[1:]]


def persons_of(run: Finished, variant: str) -> dict[str, Any]:
    """{person: [mean rank-1, mean AP, queries]} in their own gallery; empty: not told."""
    told = run.metrics.get("per_person", {})
    return dict(told.get(variant, {}))
