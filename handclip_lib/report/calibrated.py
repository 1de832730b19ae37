"""The calibration that a study has left for a model, its population, and ratios in words."""

import filecmp
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.data.manifest import read_manifest
from handclip_lib.evaluate.calibration import Calibration, fit_logistic
from handclip_lib.params import resolve
from handclip_lib.report.lineup import ZERO_SHOT
from handclip_lib.report.results import Finished, finished_runs
from handclip_lib.report.runs import read_json

NOTEBOOK = "06_eval_rerank"
# Upper ends of log10 ratios. European Network of Forensic Science Institutes, Guideline for
# Evaluative Reporting in Forensic Science, version 3.0, 2015: its example of a verbal scale
ENFSI = (
    (1.0, "weak support"),
    (2.0, "moderate support"),
    (3.0, "moderately strong support"),
    (4.0, "strong support"),
    (6.0, "very strong support"),
    (float("inf"), "extremely strong support"),
)
_NOTHING = 0.3010299956639812  # log10 of 2, where that scale begins
_TRAINING = ("train", "val", "select")


@dataclass(frozen=True)
class Met:
    """A photograph that a study knows: by training, else by calibration; certain: by its bytes."""

    trained: bool
    certain: bool


@dataclass(frozen=True)
class Population:
    """A calibration and whose it is: a model's, by its name in 06, on an aspect and data.

    scores: lowest and highest of its pairs; cllr: bits that ratios cost which know neither person;
    misleading: share of genuine and of impostor pairs on the wrong side of 1; run: whose folder.
    """

    calibration: Calibration
    aspect: str
    data: str
    scores: tuple[float, float]
    cllr: float
    misleading: tuple[float, float]
    model: str
    run: Path

    def words(self) -> str:
        """Of how many persons and pairs it was made, and of what photographs."""
        told = self.calibration
        return (
            f"{told.persons} persons, {told.genuine:,} pairs of one hand and {told.impostor:,} of"
            f" two persons' hands ({told.population}; queries against the own gallery)"
        )

    def worth(self) -> str:
        """How good its ratios were for persons of the population that they did not know."""
        same, other = self.misleading
        return (
            f"Cllr {self.cllr:.2f} bits (0 is certain and right, 1 is worth nothing); pointed the"
            f" wrong way in {100 * same:.1f} % of the pairs of one hand and {100 * other:.1f} % of"
            " the others, each by a calibration that knew neither person"
        )

    def met(self, photographs: Sequence[Path]) -> dict[Path, Met]:
        """Which of these photographs the study knows, whatever they are called now.

        Files are compared where its own are still on this machine; of those that are not, names.
        """
        rows = read_manifest(self.run / "manifest.csv")
        told = read_json(self.run / "params.json")["data"]["root"]
        root = resolve(told) if told else None
        root = root.parent if root is not None and root.is_file() else root
        files = {image: root / image for image in rows["image"]} if root else {}
        here = {image: file for image, file in files.items() if file.is_file()}
        sizes = {image: file.stat().st_size for image, file in here.items()}
        names = rows["image"].map(lambda image: Path(image).name).where(~rows["image"].isin(here))
        found = {}
        for path in photographs:
            size = path.stat().st_size
            alike = [image for image, its_size in sizes.items() if its_size == size]
            same = [image for image in alike if filecmp.cmp(here[image], path, shallow=False)]
            there = rows[rows["image"].isin(same) if same else names == path.name]
            if len(there):
                trained = bool(there["split"].isin(_TRAINING).any())
                found[path] = Met(trained and self.model != ZERO_SHOT, bool(same))
        return found


def calibrated(pairs: pd.DataFrame, population: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration by all persons of these pairs, for photographs of others, in plain values.

    pairs: `pairs.pairs_of`; population: in words; made_by: `spaces.maker` of their features. The
    fields of a Calibration, `scores` (lowest, highest), and made_by's.
    """
    scores = pairs["similarity"].to_numpy()
    whole = fit_logistic(scores, pairs["genuine"], pairs["query_person"], population)
    return asdict(whole) | {"scores": [float(scores.min()), float(scores.max())], **made_by}


def find_population(
    made_by: Mapping[str, Any], study: Path, aspect: str
) -> tuple[Population | None, str]:
    """The calibration of a model in a study's runs, or None and why there is none.

    made_by: `spaces.maker` of the model; study: the study's folder under reports; aspect: that of
    the photographs, empty where it is not known.
    """
    runs = [r for r in finished_runs(study) if r.metrics["notebook"] == NOTEBOOK]
    found = [p for run in runs if (p := _of_run(run, made_by)) is not None]
    mine = [p for p in found if p.aspect == aspect]
    if mine or len({p.aspect for p in found}) == 1:
        return (mine or found)[0], ""
    if found:
        names = ", ".join(sorted({p.aspect for p in found}))
        return None, f"there are calibrations for {names}: --aspect says what the photographs show"
    if not runs:
        command = f"`handclip run 06 --study {study.name} --aspect ASPECT`"
        return None, f"study {study.name} has no calibration yet: {command} makes one"
    return None, f"study {study.name} has no calibration of this model: " + "; ".join(
        dict.fromkeys(_lack(run, made_by) for run in runs)
    )


def read_population(folder: Path, made_by: Mapping[str, Any]) -> Population:
    """The calibration of a model in one run folder of notebook 06.

    Raises FileNotFoundError without a finished run, ValueError on a run that has none for these
    weights, photographs fitted so, and this feature, naming what it has.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no finished run in {folder}: --calibration names a run folder of notebook 06, such as"
            f" reports/demo/seed0/dorsal_r/{NOTEBOOK}"
        )
    run = Finished(folder, read_json(file), {})
    found = _of_run(run, made_by)
    if found is not None:
        return found
    raise ValueError(f"{folder} holds no calibration of this model: {_lack(run, made_by)}")


def verbal(llr: float) -> str:
    """A log10 ratio in words by ENFSI's scale of 2015: which proposition, how strongly."""
    if abs(llr) < _NOTHING:
        return "support for neither: one hand and two persons' hands explain it about as well"
    strength = next(word for end, word in ENFSI if abs(llr) < end)
    sides = ("one hand", "hands of two persons")
    first, second = sides if llr > 0 else sides[::-1]
    return f"{strength} for {first} rather than {second}"


def factor(llr: float) -> str:
    """How many times, of a log10 ratio or its inverse: `about 200` of 2.31, and of −2.31."""
    return f"about {two_digits(10 ** abs(llr))}"


def two_digits(value: float) -> str:
    """`230` of 234.5: more digits would promise what no population gives."""
    return f"{float(f'{value:.2g}'):,.10g}"


def signed(value: float, digits: int = 2) -> str:
    """`+2.31` or `−0.40`."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _calibrations(run: Finished) -> dict[str, dict[str, Any]]:
    told = run.metrics.get("evidence", {}) if run.metrics.get("notebook") == NOTEBOOK else {}
    return {name: e["calibration"] for name, e in told.items() if e.get("calibration")}


def _lack(run: Finished, made_by: Mapping[str, Any]) -> str:
    """What a run has instead of a calibration of this model, and what makes one."""
    if run.metrics.get("notebook") != NOTEBOOK:
        return f"it is a run of {run.metrics.get('notebook')}, and calibrations are made by 06"
    held, told = _calibrations(run), run.metrics["evidence"]
    if not held:
        reasons = dict.fromkeys(e["withheld"] for e in told.values() if e["withheld"])
        return "; ".join(reasons) or "its 06 was run by an older kit: run it again with --force"
    differ = ", ".join(f"{name} ({_difference(of, made_by)})" for name, of in held.items())
    whose = f"--study {run.metrics['study']} --aspect {run.metrics['aspect']}"
    return (
        f"its 06 calibrated {differ}; `handclip run 06 {whose} --tag NAME --set"
        " comparison.shown=[MODEL]` makes one, of a file of your own with --set"
        " comparison.models=[FILE], too"
    )


def _of_run(run: Finished, made_by: Mapping[str, Any]) -> Population | None:
    for name, held in _calibrations(run).items():
        if _difference(held, made_by):
            continue
        told, names = run.metrics["evidence"][name], [f.name for f in fields(Calibration)]
        return Population(
            Calibration(**{key: held[key] for key in names}),
            run.metrics["aspect"],
            run.metrics["data"],
            (held["scores"][0], held["scores"][1]),
            told["cllr"],
            (told["misleading_genuine"], told["misleading_impostor"]),
            name,
            run.folder,
        )
    return None


def _difference(held: Mapping[str, Any], made_by: Mapping[str, Any]) -> str:
    """What the features of a calibration were made by otherwise, in words; empty: nothing."""
    plain = json.loads(json.dumps(dict(made_by)))
    words = {"weights_sha256": "weights", "preprocess": "preprocessing", "feature": "feature"}
    differ = [word for key, word in words.items() if held.get(key) != plain[key]]
    return f"other {' and '.join(differ)}" if differ else ""
