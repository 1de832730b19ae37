"""Every model of a study that can be compared: what its runs have left, and further towers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.aspects import CHAIN
from handclip_lib.data import splits
from handclip_lib.data.check import listed
from handclip_lib.data.manifest import TooFew
from handclip_lib.models.checkpoint import find_checkpoint, is_ours, read_checkpoint
from handclip_lib.models.clip import Encoder, encoder_of
from handclip_lib.models.weights import find_source
from handclip_lib.params import ParamError, resolve
from handclip_lib.report.results import Finished, finished_runs
from handclip_lib.report.runs import Run, reports_root
from handclip_lib.report.summary import CHAINED, STAGE1, losses_of
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model, did_you_mean
from handclip_lib.train import chain, pretrain, stages
from handclip_lib.train.taught import Taught, persons_taught

ZERO_SHOT = "zero_shot"
_TRAINED = ("02_stage1", "03_stage2_losses", "04_prompt_learning")
_FURTHER = "comparison.models"


@dataclass(frozen=True)
class Contender:
    """A model that is compared. tower: what loads it, None: the study's own before any training;
    source: the run that made it, in words; losses: those that taught it, in words; weights: sha256,
    empty where it is not ours; taught: data set -> persons, None: not recorded.

    Of its own training, None where it had none here, and without what it started from: images that
    passed, seconds (validation included), parameters that learned, the epoch that was kept;
    memory_mb: the most that its run took, on the device where that was counted.
    """

    name: str
    tower: Model | None = None
    source: str = ""
    losses: str = "–"
    weights: str = ""
    taught: Taught | None = None
    image_passes: int | None = None
    seconds: float | None = None
    trained_parameters: int | None = None
    kept_epoch: int | None = None
    memory_mb: float | None = None

    @property
    def cost(self) -> dict[str, float]:
        """What is known of its own training, for metrics.json."""
        names = ("image_passes", "seconds", "trained_parameters", "kept_epoch")
        told = {name: getattr(self, name) for name in names}
        return {key: value for key, value in told.items() if value is not None}

    def encoder(self, p: Params) -> Encoder:
        """Its tower, as its weights were used in training."""
        if self.tower is None:
            return stages.study_encoder(p)
        path = Path(self.tower.name)
        if path.is_file() and not is_ours(path):  # of another's stage 1
            return stages.encoder_from(p, path)
        return encoder_of(self.tower)

    def met(self, table: pd.DataFrame, manifest: pd.DataFrame, *parts: str) -> list[int]:
        """Whom of these parts of a manifest it was taught, as far as that is recorded."""
        if not self.taught:
            return []
        asked = set(manifest.loc[manifest["split"].isin(parts), "pid"].tolist())
        return sorted(persons_taught(self.taught, table) & asked)


def lineup(run: Run, table: pd.DataFrame, manifest: pd.DataFrame) -> list[Contender]:
    """The models of a study for one aspect and seed, in the order of the notebooks.

    Those of `finished_models`; where no run trained stage 1, that is done now, and kept where
    notebook 02 would have left it. Raises ParamError where two have one name, and where
    `comparison.reference` is none of them; of `comparison.models` what `find_source` does.
    """
    p, found = run.params, _there(run.params)
    for one in found:
        _check_source(one)  # before stage 1 is trained for hours
    if STAGE1 not in {one.name for one in found}:
        path = stages.stage1_weights(p, table, manifest, run.beside("02_stage1"))
        found.insert(1, _of_file(STAGE1, path, "02_stage1"))
    kept = _testable(found, table, manifest)
    _check_names([p.comparison.reference], kept, "comparison.reference")
    return kept


def finished_models(p: Params, table: pd.DataFrame, manifest: pd.DataFrame) -> list[Contender]:
    """What there is for an aspect and seed without training anything.

    The tower as it is comes first, then what finished runs have left (with the tag of a run that
    has one), the chain's last step, the pre-trained towers, and `comparison.models`. A model that
    was taught a person who is tested here is left out, which is printed, as is whose training is
    not recorded. Raises ParamError where two have one name.
    """
    return _testable(_there(p), table, manifest)


def _there(p: Params) -> list[Contender]:
    held = find_checkpoint(p.model.name, p.model.pretrained)
    found = [Contender(ZERO_SHOT, taught=held["taught"] if held else {})]
    runs = [r for r in finished_runs(reports_root(p) / p.study) if r.metrics["seed"] == p.seed]
    mine = [r for r in runs if r.metrics["aspect"] == p.aspect]
    for one in (r for r in mine if r.metrics["notebook"] in _TRAINED):
        found += _trained(one)
    for one in _of_all_aspects(runs, chain.NOTEBOOK, p.aspect):
        found += _chained(one)
    for one in _of_all_aspects(runs, pretrain.NOTEBOOK, p.aspect):
        found += _trained(one)
    return found + [_further(told, p) for told in p.comparison.models]


def _of_all_aspects(runs: Sequence[Finished], notebook: str, aspect: str) -> list[Finished]:
    """The runs of a notebook that is of all aspects: those for this one, else for the first."""
    made = [run for run in runs if run.metrics["notebook"] == notebook]
    shown = [run.metrics["aspect"] for run in made]
    one = aspect if aspect in shown else next(iter(shown), "")
    return [run for run in made if run.metrics["aspect"] == one]


def _testable(
    found: Sequence[Contender], table: pd.DataFrame, manifest: pd.DataFrame
) -> list[Contender]:
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParamError(f"two models would be called {twice[0]}; rename a tag or a weights file")
    return [one for one in found if _may_be_tested(one, table, manifest)]


def looked_at(models: Sequence[Contender], p: Params) -> list[Contender]:
    """The models that `comparison.shown` names, with any tag, and the reference, in their order.

    Which were chosen before any score was seen. A name that none of them has is printed.
    """
    names = (*p.comparison.shown, p.comparison.reference)
    there = {one.name.partition(", ")[0] for one in models} | {one.name for one in models}
    for name in (name for name in p.comparison.shown if name not in there):
        print(f"comparison.shown: no model '{name}' is there{did_you_mean(name, there)}")
    return [one for one in models if one.name in names or one.name.partition(", ")[0] in names]


def distinct(models: Sequence[Contender], p: Params) -> list[Contender]:
    """The models without those whose weights an earlier one has, which is printed.

    Where held-out persons choose an epoch before the tower opened, variants end as they began, as
    the study's tower perhaps.
    """
    start = stages.study_encoder(p).weights_sha256
    first: dict[str, str] = {}
    kept = []
    for one in models:
        weights = start if one.tower is None else one.weights
        same = first.setdefault(weights or one.name, one.name)
        if same == one.name:
            kept.append(one)
        else:
            print(f"{one.name} has the very weights of {same}: kept from epoch {one.kept_epoch}")
    return kept


def _check_names(names: Sequence[str], models: Sequence[Contender], where: str) -> None:
    there = [one.name for one in models]
    for name in (name for name in names if name not in there):
        raise ParamError(
            f"{where}: there is no model '{name}'{did_you_mean(name, there)}; there are"
            f" {', '.join(there)}"
        )


def _trained(run: Finished) -> list[Contender]:
    """The weights of a run's image towers, by the names of its variants."""
    made = []
    for name, facts in run.metrics["training"].items():
        file = run.folder / "checkpoints" / f"{name}.pth"
        if name not in run.metrics["variants"]:
            continue  # words, and no tower
        if file.is_file():
            made.append(_of_run(name, file, run, [facts]))
        else:
            print(f"{name} of {run.metrics['notebook']} is left out: there is no {file} any more")
    return made


def _chained(run: Finished) -> list[Contender]:
    """The chain's weights after its last step."""
    trainings = run.metrics["training"][CHAINED]  # by the names of their files, in order
    file = run.folder / "checkpoints" / f"{list(trainings)[-1]}.pth"
    return [_of_run(CHAINED, file, run, list(trainings.values()))] if file.is_file() else []


def _of_run(
    name: str, file: Path, run: Finished, trainings: Sequence[Mapping[str, Any]]
) -> Contender:
    tag, memory = run.metrics["tag"], run.stamp["peak_memory_mb"]
    more, peak = f", {tag}" if tag else "", memory.get("device", memory["host"])
    return _of_file(name, file, run.metrics["notebook"] + more, more, trainings, peak)


def _of_file(
    name: str,
    file: Path,
    source: str,
    more: str = "",
    trainings: Sequence[Mapping[str, Any]] = (),
    memory: float | None = None,
) -> Contender:
    """A weights file as a contender; trainings: their facts, by default those in the file."""
    tower = Model(name=str(file), pretrained="")
    if not is_ours(file):
        return Contender(name, tower, str(file), memory_mb=memory)
    held = read_checkpoint(file)
    facts = trainings or [held["facts"]]
    return Contender(
        name + more,
        tower,
        source,
        losses_of(Params.model_validate(held["params"]), name),
        held["sha256"],
        held["taught"],
        sum((t["images"] + t.get("shown_again", 0)) * t["epochs"] for t in facts),
        sum(t["seconds"] for t in facts),
        max(t["trained_parameters"] for t in facts),
        facts[-1]["chosen_epoch"],
        memory,
    )


def _further(told: Model, p: Params) -> Contender:
    """A tower that `comparison.models` names; it sees photographs as the study's, unless told."""
    held = find_checkpoint(told.name, told.pretrained)
    usual = {"fit": p.model.fit, "mirror_left": p.model.mirror_left} if held is None else {}
    own = {key: value for key, value in told.model_dump().items() if value is not None}
    tower = Model.model_validate(usual | own)
    name = Path(told.name).name.removesuffix(".pth")
    if held is not None:
        weights, taught = held["sha256"], held["taught"]
        return Contender(name, tower, _FURTHER, weights=weights, taught=taught)
    words = [word for word in (told.name, told.pretrained) if word]
    foreign = any(path.exists() for word in words for path in (Path(word), resolve(word)))
    return Contender(name, tower, _FURTHER, taught=None if foreign else {})


def _check_source(one: Contender) -> None:
    """Fail where a tower that `comparison.models` names can't be had."""
    if one.tower and one.source == _FURTHER and not one.weights:
        find_source(one.tower.name, one.tower.pretrained)


def _may_be_tested(one: Contender, table: pd.DataFrame, manifest: pd.DataFrame) -> bool:
    if one.taught is None:
        print(f"{one.name}: whom these weights were taught is not recorded")
    both = one.met(table, manifest, "query", "gallery")
    if both:
        who = ", ".join(listed([str(pid) for pid in both], 10))
        print(f"{one.name} is left out: it was taught persons who are tested here: {who}")
    return not both


def manifests(p: Params, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The manifest of each aspect that the data has, by `p.split`; an imported tree is one alone.

    Where the study's aspect has no side, or none is known, it is that one alone. Another aspect
    with too few persons is left out, which is printed.
    """
    known = [aspect for aspect in CHAIN if (table["aspect"] == aspect).any()]
    if p.split.legacy_tree or p.aspect not in known:
        known = [p.aspect]
    found = {}
    for aspect in known:
        try:
            found[aspect] = splits.manifest_for(p.model_copy(update={"aspect": aspect}), table)
        except TooFew as error:
            if aspect == p.aspect:
                raise
            print(f"{aspect} is left out: {error}")
    return found


def model_table(models: Sequence[Contender]) -> pd.DataFrame:
    """A row a model: the run that made it, by what losses, the epoch that was kept, its weights."""
    rows = {
        one.name: {
            "from": one.source or "the study's tower",
            "losses": one.losses,
            "kept from epoch": "–" if one.kept_epoch is None else str(one.kept_epoch),
            "weights": one.weights[:16] or "–",
        }
        for one in models
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
