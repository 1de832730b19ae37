"""Every model of a study that can be compared: what its runs have left, and further towers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.aspects import CHAIN
from handclip_lib.data import splits
from handclip_lib.data.check import listed
from handclip_lib.data.store import open_store
from handclip_lib.evaluate import embed
from handclip_lib.evaluate.ways import both_ways
from handclip_lib.models.checkpoint import is_ours, read_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.params import ParamError
from handclip_lib.report.results import Finished, finished_runs
from handclip_lib.report.runs import Run, reports_root
from handclip_lib.schema import Params
from handclip_lib.schema_base import did_you_mean
from handclip_lib.train import stages
from handclip_lib.train.job import persons_taught

ZERO_SHOT, STAGE1, CHAINED = "zero_shot", "stage1", "chain"
_TRAINED = ("02_stage1", "03_stage2_losses", "04_prompt_learning")


@dataclass(frozen=True)
class Contender:
    """A model that is compared. file: its weights, or a name that `load_encoder` knows; empty: the
    study's tower before any training; source: the run that made it, in words.

    Of its training, None where it had none here: images that passed, seconds, parameters that
    learned; memory_mb: the most that its run took, on the device where that was counted.
    """

    name: str
    file: str = ""
    source: str = ""
    images: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    memory_mb: float | None = None

    @property
    def cost(self) -> dict[str, float]:
        """What is known of its training, for metrics.json."""
        told = {"images": self.images, "seconds": self.seconds, "parameters": self.parameters}
        return {key: value for key, value in told.items() if value is not None}

    def encoder(self, p: Params) -> Encoder:
        """Its tower, as its weights were used in training."""
        return load_encoder(self.file) if self.file else stages.study_encoder(p)


def lineup(run: Run, table: pd.DataFrame, manifest: pd.DataFrame) -> list[Contender]:
    """The models of a study for one aspect and seed, in the order of the notebooks.

    The tower as it is comes first, then what finished runs have left (with the tag of a run that
    has one), the chain's last step, and `comparison.models`. Where no run trained stage 1, that is
    done now, and kept where notebook 02 would have left it. A model that was taught a person who is
    tested here is left out, which is printed. Raises ParamError where two have one name, and where
    `comparison.reference` is none of them.
    """
    p = run.params
    found = [Contender(ZERO_SHOT)]
    runs = [r for r in finished_runs(reports_root(p) / p.study) if r.metrics["seed"] == p.seed]
    mine = [r for r in runs if r.metrics["aspect"] == p.aspect]
    for one in (r for r in mine if r.metrics["notebook"] in _TRAINED):
        found += _trained(one)
    if STAGE1 not in {one.name for one in found}:
        path = stages.stage1_weights(p, table, manifest, run.beside("02_stage1"))
        cost = _cost([read_checkpoint(path)["facts"]]) if is_ours(path) else {}
        found.insert(1, Contender(STAGE1, str(path), "02_stage1", **cost))
    for one in (r for r in runs if r.metrics["notebook"] == "05_sequential_chain"):
        found += _chained(one)
    found += [Contender(Path(name).stem, name, "comparison.models") for name in p.comparison.models]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParamError(f"two models would be called {twice[0]}; rename a tag or a weights file")
    kept = [one for one in found if _may_be_tested(one, table, manifest)]
    there = [one.name for one in kept]
    if p.comparison.reference not in there:
        near = did_you_mean(p.comparison.reference, there)
        raise ParamError(
            f"comparison.reference: there is no model '{p.comparison.reference}'{near}; there are"
            f" {', '.join(there)}"
        )
    return kept


def _trained(run: Finished) -> list[Contender]:
    """The weights of a run's image towers, by the names of its variants."""
    made = []
    for name, facts in run.metrics["training"].items():
        file = run.folder / "checkpoints" / f"{name}.pth"
        if file.is_file() and name in run.metrics["variants"]:
            made.append(_contender(name, file, run, [facts]))
    return made


def _chained(run: Finished) -> list[Contender]:
    """The chain's weights after its last step."""
    trainings = run.metrics["training"][CHAINED]  # by the names of their files, in order
    file = run.folder / "checkpoints" / f"{list(trainings)[-1]}.pth"
    return [_contender(CHAINED, file, run, list(trainings.values()))] if file.is_file() else []


def _contender(
    name: str, file: Path, run: Finished, trainings: Sequence[Mapping[str, Any]]
) -> Contender:
    tag, memory = run.metrics["tag"], run.stamp["peak_memory_mb"]
    more = f", {tag}" if tag else ""
    source, peak = run.metrics["notebook"] + more, memory.get("device", memory["host"])
    return Contender(name + more, str(file), source, memory_mb=peak, **_cost(trainings))


def _cost(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What trainings, one after the other, took."""
    return {
        "images": sum((t["images"] + t.get("shown_again", 0)) * t["epochs"] for t in trainings),
        "seconds": sum(t["seconds"] for t in trainings),
        "parameters": max(t["trained_parameters"] for t in trainings),
    }


def _may_be_tested(one: Contender, table: pd.DataFrame, manifest: pd.DataFrame) -> bool:
    file = Path(one.file)
    if not one.file or not file.is_file() or not is_ours(file):
        return True
    tested = manifest.loc[manifest["split"].isin(("query", "gallery")), "pid"]
    both = sorted(persons_taught(read_checkpoint(file), table) & set(tested.tolist()))
    if both:
        who = ", ".join(listed([str(pid) for pid in both], 10))
        print(f"{one.name} is left out: it was taught persons who are tested here: {who}")
    return not both


def manifests(p: Params, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The manifest of each aspect that the data has, by `p.split`; an imported tree is one alone.

    Where the study's aspect has no side, or none is known, it is that one alone.
    """
    known = [aspect for aspect in CHAIN if (table["aspect"] == aspect).any()]
    if p.split.legacy_tree or p.aspect not in known:
        known = [p.aspect]
    told = {aspect: p.model_copy(update={"aspect": aspect}) for aspect in known}
    return {aspect: splits.manifest_for(q, table) for aspect, q in told.items()}


def images_of(*manifests: pd.DataFrame) -> list[str]:
    """Every photograph that manifests name, each once."""
    names: list[str] = pd.concat([m["image"] for m in manifests]).unique().tolist()
    return names


def model_table(models: Sequence[Contender]) -> pd.DataFrame:
    """A row a model: the run that made it, and its weights file."""
    rows = {
        one.name: {"from": one.source or "the study's tower", "weights": Path(one.file).name or "–"}
        for one in models
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


@dataclass(frozen=True)
class Space:
    """A model's features. images: in order; z: (N, D) unit rows; flipped: as z, with those of the
    mirror images added.
    """

    images: tuple[str, ...]
    z: np.ndarray
    flipped: np.ndarray

    def of(self, images: Sequence[str]) -> np.ndarray:
        """Rows (n, D) of some of the images."""
        place = pd.Index(self.images).get_indexer(pd.Index(images))
        if (place < 0).any():
            raise ValueError(f"no feature of {images[int(np.argmin(place))]}")
        rows: np.ndarray = self.z[place]
        return rows


def space_of(
    one: Contender, p: Params, table: pd.DataFrame, images: Sequence[str], fabric: lf.Fabric
) -> Space:
    """A model's retrieval features of images of a table, as `p.evaluation` has them."""
    encoder, told = one.encoder(p), p.evaluation
    store = open_store(table, encoder.preprocess)
    raw = embed.embed(encoder, store, images, fabric, told.batch_size)
    other = embed.embed(encoder, store, images, fabric, told.batch_size, mirrored=True)
    z = embed.retrieval_features(raw, told.feature)
    return Space(tuple(images), z, embed.retrieval_features(both_ways(raw, other), told.feature))
