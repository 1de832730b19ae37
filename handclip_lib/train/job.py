"""What one training is: its parts, what identifies it, and whom its weights have been taught."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning_fabric as lf
import pandas as pd
import torch

from handclip_lib.data import splits
from handclip_lib.data.check import listed
from handclip_lib.data.splits import SplitError
from handclip_lib.data.store import Store, open_store
from handclip_lib.device import make_fabric, seed_step
from handclip_lib.models.checkpoint import (
    find_checkpoint,
    is_ours,
    load_weights,
    read_checkpoint,
)
from handclip_lib.models.clip import Encoder, encoder_of, load_comparator, sha256_of
from handclip_lib.schema import Comparator, Params
from handclip_lib.schema_train import Loop
from handclip_lib.train.classes import Classes, classes_of
from handclip_lib.train.guide import Guide
from handclip_lib.train.retain import Retain
from handclip_lib.train.taught import Taught, also_taught, persons_taught

# What decides trained weights: the kit's files, and what computes beneath them
_CODE = (
    *("aspects.py", "device.py", "data/*.py", "models/*.py", "losses/*.py", "train/*.py"),
    *("evaluate/embed.py", "evaluate/protocol.py", "evaluate/retrieval.py"),  # they select
)
_NOT_LEARNT = {"save_seconds", "variant", "resume_from", "variants", "save_dir", "pretrain"}
_PACKAGES = (
    *("torch", "torchvision", "timm"),
    *("open_clip_torch", "kornia", "pytorch-metric-learning"),
)


Settings = TypeVar("Settings", bound=Loop)


@dataclass(frozen=True)
class Trained:
    """What a stage leaves. history: a row an epoch; checkpoint: its weights file.

    facts: plain values: `images`, `persons`, `epochs` gone, `chosen_epoch`, `selected_by` (a
    history column, or empty: the last weights), `trained_parameters`, `seconds` of training;
    beside `images`, `shown_again` and `identities`, which are its classes. `Job.pretrained_on`
    where there is one.
    """

    encoder: Encoder
    history: pd.DataFrame
    checkpoint: Path
    facts: dict[str, Any]
    guide: Guide | None = None  # where texts guided it


@dataclass(frozen=True)
class Past:
    """What a training brings from those before it, beside the weights it starts from.

    classes: those of all steps, None: its own alone; inherits: its heads go on from those in the
    file it starts from; lenient: persons that it tests may have been taught before, which is said
    and not refused; remedy: what describes `retain`, and what is shown again, for the key; retain:
    makes what holds it to the weights before.
    """

    classes: Classes | None = None
    inherits: bool = False
    lenient: bool = False
    remedy: str = ""
    retain: Callable[[], Retain] | None = None


@dataclass(frozen=True)
class Job(Generic[Settings]):
    """One training: what, with what, on what, and where its files go."""

    name: str
    settings: Settings
    p: Params
    encoder: Encoder
    table: pd.DataFrame
    manifest: pd.DataFrame
    fabric: lf.Fabric
    folder: Path
    start: Path | None = None  # the weights file that the encoder was filled from
    guide: Guide | None = None  # losses between images and texts
    words: str = ""  # hash of the prompts that a stage starts to learn from
    parent: str = ""  # hash of the weights before an adapter came on them; empty: it has none new
    past: Past = Past()
    again: "Callable[[], Job[Any]] | None" = None  # makes the same in another process

    @property
    def classes(self) -> Classes:
        """What its classifier tells apart."""
        return self.past.classes or classes_of(self.p.split.identity, [self.manifest])

    @property
    def store(self) -> Store:
        """Pixels as the encoder sees them."""
        return open_store(self.table, self.encoder.preprocess)

    @property
    def dims(self) -> dict[str, int]:
        """Width of every feature that losses may read, before necks and heads."""
        more = self.guide.dims(self.encoder.dims["proj"]) if self.guide is not None else {}
        return self.encoder.dims | more

    def codes(self, images: list[str]) -> torch.Tensor | None:
        """(N,) what the encoder's adapter is told of these images."""
        return self.encoder.codes_of(self.table.set_index("image").loc[images])

    @property
    def heads(self) -> dict[str, Any] | None:
        """The checkpoint whose heads it goes on with."""
        return read_checkpoint(self.start) if self.past.inherits and self.start else None

    @property
    def pretrained_on(self) -> str:
        """Digest of what pre-training learnt from, where these weights go back to one; or empty."""
        told = read_checkpoint(self.start)["facts"] if self.start and is_ours(self.start) else {}
        return str(told.get("pretrained_on") or told.get("manifest_sha256", ""))

    @property
    def key(self) -> str:
        """Hash of all that decides the trained weights, code included, and of nothing else."""
        used = self.manifest[self.manifest["split"].isin(("train", "val", "select", "replay"))]
        codes = self.codes(used["image"].tolist())
        parts = {
            "settings": self.settings.model_dump(mode="json", exclude=_NOT_LEARNT),
            "seed": self.p.seed,
            "device": self.p.device.model_dump(mode="json", exclude={"precision"}),
            "feature": self.p.evaluation.feature,
            "manifest": splits.sha256(used),
            "pixels": self.store.digest(used["image"].unique().tolist()),
            "preprocess": self.encoder.preprocess.as_dict(),
            "model": self.encoder.model_cfg,
            "start": self.encoder.weights_sha256,
            "pretrained_on": self.pretrained_on,  # it is told with the results
            "guide": None if self.guide is None else sha256_of(self.guide),
            "words": self.words,
            "classes": self.classes.names,
            "heads": self.heads["key"] if self.heads else None,
            "remedy": self.past.remedy,
            "views": None if codes is None else codes.tolist(),
            "code": _code_sha256(),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def study_encoder(p: Params) -> Encoder:
    """The encoder that the study names, before any training: `random` weights come by `p.seed`."""
    seed_step(p.seed, 0)
    return encoder_of(p.model)


def encoder_from(p: Params, path: Path | None) -> Encoder:
    """The study's encoder with the weights of a file; None: as it is before any training."""
    encoder = study_encoder(p)
    if path is not None:
        load_weights(encoder, path)
    return encoder


def job_of(
    name: str,
    settings: Settings,
    p: Params,
    start: Path | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
    past: Past | None = None,
) -> Job[Settings]:
    """A training of the study's tower, filled from `start` where there is one."""
    encoder, fabric = encoder_from(p, start), make_fabric(p, training=True)
    told = past or Past()
    again = partial(job_of, name, settings, p, start, table, manifest, folder, told)
    return Job(
        name, settings, p, encoder, table, manifest, fabric, folder, start, past=told, again=again
    )


def comparator_job(
    name: str,
    settings: Settings,
    p: Params,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Job[Settings]:
    """A training of MBA-Net, as `p.comparator` describes it."""
    seed_step(p.seed, 0)
    encoder, fabric = load_comparator(p.comparator), make_fabric(p, training=True)
    again = partial(comparator_job, name, settings, p, table, manifest, folder)
    return Job(name, settings, p, encoder, table, manifest, fabric, folder, again=again)


def home_of(job: Job[Any], folders: Sequence[Path]) -> Path:
    """Which of these run folders holds what the job would make; else where it belongs.

    That is the last one, the study's own, unless that has other weights by this name.
    """
    paths = [folder / "checkpoints" / f"{job.name}.pth" for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if path.is_file() and read_checkpoint(path)["key"] == job.key:
            return folder
    return folders[0] if paths[-1].is_file() else folders[-1]


def check_start(job: Job[Any]) -> Taught:
    """Persons that the weights have been taught when the job is done, by data set.

    Raises SplitError that names the persons, where the weights it starts from were taught persons
    who are to be found or held out here. Of a foreign file nobody can tell, which is said.
    """
    manifest = job.manifest
    start, taught = _before(job)
    asked = manifest.loc[manifest["split"].isin(("query", "gallery", "select")), "pid"]
    both = sorted(persons_taught(taught, job.table) & set(asked.tolist()))
    if both:
        words = (
            f"{start} was taught persons who are tested or held out here:"
            f" {', '.join(listed([str(pid) for pid in both], 20))}"
        )
        if not job.past.lenient:
            raise SplitError(
                f"{words}; start from weights of this aspect, or set split.mode person_disjoint for"
                " both"
            )
        warnings.warn(words, stacklevel=2)
    mine = manifest.loc[manifest["split"] == "train", "pid"].unique()
    return also_taught(taught, job.table, mine.tolist())


def _before(job: Job[Any]) -> tuple[str, Taught]:
    """What a training starts from, and whom that was taught, by data set, as far as is recorded."""
    if job.start is None:
        told = job.p.comparator if "mba" in job.encoder.model_cfg else job.p.model
        name = told.backbone if isinstance(told, Comparator) else told.name
        held = find_checkpoint(name, told.pretrained)
        return told.pretrained or name, held["taught"] if held else {}
    if not is_ours(job.start):
        print(f"{job.start.name}: whom these weights were taught is not recorded")
        return str(job.start), {}
    return str(job.start), read_checkpoint(job.start)["taught"]


def _code_sha256() -> str:
    """Hash of the code that decides trained weights: what draws figures is not part of it."""
    library = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    files = {file for part in _CODE for file in library.glob(part)}
    for path in sorted(files - {library / "data" / "spoil.py"}):  # it is for test photographs
        digest.update(f"{path.relative_to(library).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
