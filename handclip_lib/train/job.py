"""One training from encoder to weights file: what both stages do, and how it is found again."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from handclip_lib.data import splits
from handclip_lib.data.augment import Augmenter, mix
from handclip_lib.data.samplers import make_sampler, nearest_identities
from handclip_lib.data.store import Store, open_store
from handclip_lib.device import seed_step
from handclip_lib.evaluate.embed import retrieval_features
from handclip_lib.losses import build_loss
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder, encoder_of
from handclip_lib.schema import Params
from handclip_lib.schema_train import Training
from handclip_lib.train.fit import Recipe, fit, read_history
from handclip_lib.train.learner import (
    Learner,
    Pictures,
    check_losses,
    class_means,
    encode,
    pictures,
)
from handclip_lib.train.optim import make_optimizer, open_layers
from handclip_lib.train.selection import scorer

# What decides trained weights: the kit's files, and what computes beneath them
_CODE = (
    *("device.py", "data/*.py", "models/*.py", "losses/*.py", "train/*.py"),
    *("evaluate/embed.py", "evaluate/protocol.py", "evaluate/retrieval.py"),  # they select
)
_PACKAGES = ("torch", "open_clip_torch", "timm", "kornia", "pytorch-metric-learning")


@dataclass(frozen=True)
class Trained:
    """What a stage leaves. history: a row an epoch; checkpoint: its weights file.

    facts: plain values: `images`, `persons`, `epochs` gone, `chosen_epoch`, `selected_by` (a
    history column, or empty: the last weights), `seconds` of training (since it was last resumed).
    """

    encoder: Encoder
    history: pd.DataFrame
    checkpoint: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training: what, with what, on what, and where its files go."""

    name: str
    settings: Training
    p: Params
    encoder: Encoder
    table: pd.DataFrame
    manifest: pd.DataFrame
    fabric: lf.Fabric
    folder: Path

    @property
    def store(self) -> Store:
        """Pixels as the encoder sees them."""
        return open_store(self.table, self.encoder.preprocess)

    @property
    def key(self) -> str:
        """Hash of all that decides the trained weights, code included."""
        parts = {
            "settings": self.settings.model_dump(mode="json", exclude={"save_seconds"}),
            "seed": self.p.seed,
            "device": self.p.device.model_dump(mode="json"),
            "feature": self.p.evaluation.feature,
            "manifest": splits.sha256(self.manifest),
            "pixels": self.store.key,
            "start": self.encoder.weights_sha256,
            "code": _code_sha256(),
            "versions": {name: version(name) for name in _PACKAGES},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def study_encoder(p: Params) -> Encoder:
    """The encoder that the study names, before any training: `random` weights come by `p.seed`."""
    seed_step(p.seed, 0)
    return encoder_of(p.model)


def train_job(job: Job) -> Trained:
    """Train, or take what was trained before with the same key; leaves checkpoints/<name>.pth."""
    folder = job.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, key, parent = folder / f"{job.name}.pth", job.key, job.encoder.weights_sha256
    with FileLock(folder / f".{job.name}.lock"):
        held = read_checkpoint(path) if path.is_file() else None
        if held and held["key"] == key:
            print(f"{job.name}: trained before, by the same parameters, data and code: {path}")
            load_weights(job.encoder, path)
            history = read_history(job.folder, job.name)
            return Trained(job.encoder.eval(), history, path, held["facts"])
        began = time.monotonic()
        history, facts = _fitted(job, key)
        facts["seconds"] = round(time.monotonic() - began, 2)
        params = job.p.model_dump(mode="json")
        save_checkpoint(path, job.encoder, params, parent, key, {"facts": facts})
    return Trained(job.encoder.eval(), history, path, facts)


def _fitted(job: Job, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train the job's encoder; its history and facts."""
    settings, fabric, store = job.settings, job.fabric, job.store
    people = sorted(job.manifest.loc[job.manifest["split"] == "train", "pid"].unique())
    classes = {int(pid): label for label, pid in enumerate(people)}
    data = pictures(job.manifest, "train", store, fabric, classes)
    criterion = build_loss(
        settings.losses, len(classes), job.encoder.dims, settings.loss_balance, settings.projection
    )
    check_losses(criterion, job.encoder.dims, len(classes))
    learner = Learner(job.encoder, criterion, len(classes), job.p.device.compile)
    fabric.to_device(learner)
    if criterion.has_centers:
        z = encode(learner, data.pixels, store.preprocess, fabric, job.p.evaluation.batch_size)
        criterion.start_centers(class_means(z, data.labels, len(classes)))
    validate, select = scorer(job.p, job.manifest, store, fabric, classes)
    recipe = make_recipe(job, learner, data, validate, select, key)
    history = fit(recipe, settings, fabric, job.folder)
    facts = {
        "images": len(data.images),
        "persons": len(classes),
        "epochs": len(history),
        "chosen_epoch": history.attrs["chosen_epoch"],
        "selected_by": select,
    }
    return history, facts


def make_recipe(
    job: Job,
    learner: Learner,
    data: Pictures,
    validate: Callable[[Learner], dict[str, float]] | None,
    select: str,
    key: str,
) -> Recipe:
    """What `fit` is told of a job; `data`: the training pictures, on the device.

    validate, select, key: as in Recipe.
    """
    settings, encoder = job.settings, job.encoder
    if settings.head_epochs and not any(w.requires_grad for w in learner.criterion.parameters()):
        print(f"{job.name}: these losses have no heads to learn first; the tower learns at once")
        settings = settings.model_copy(update={"head_epochs": 0})
    sampler = make_sampler(
        settings.sampler, data.labels.cpu().numpy(), data.aspects, settings.batch_size, job.p.seed
    )

    def begin_epoch(epoch: int) -> None:
        open_layers(encoder, settings, epoch)
        learner.criterion.set_epoch(epoch)
        if settings.sampler.type == "hard" and (epoch - 1) % settings.sampler.refresh == 0:
            _look_around(job, learner, data)

    return Recipe(
        name=job.name,
        learner=learner,
        optimizer=make_optimizer(encoder, learner.criterion, settings),
        step=_stepper(job, learner, data),
        weights=lambda: learner.criterion.weights,
        batches=lambda epoch: sampler.batches(epoch, learner.neighbours.cpu().numpy()),
        begin_epoch=begin_epoch,
        diagnostics=lambda: learner.criterion.diagnostics,
        validate=validate,
        select=select,
        key=key,
        seed=job.p.seed,
    )


def _stepper(
    job: Job, learner: Learner, data: Pictures
) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
    """From the indices of a batch to its loss terms: augmented and, where asked, mixed."""
    settings, fabric = job.settings, job.fabric
    augmenter, num_ids = (
        Augmenter(settings.augment, job.encoder.preprocess),
        len(learner.neighbours),
    )

    def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
        at = torch.from_numpy(batch).to(fabric.device)
        images, labels = augmenter(data.pixels[at]), data.labels[at]
        first = _unmixed(settings, len(batch))
        mixed = mix(images, labels, num_ids, settings.augment, first=first)
        images, soft = mixed or (images, None)
        with fabric.autocast():
            terms: dict[str, torch.Tensor] = learner(images, labels, soft, first if mixed else None)
        return terms

    return step


def _unmixed(settings: Training, size: int) -> int:
    """How many rows of a batch stay as they are where Mixup or CutMix is on.

    A mixed image has no identity: half of the batch, whole identities of it, is kept for the
    losses that need one. Cross-entropy alone needs none.
    """
    if all(spec.type == "cross_entropy" for spec in settings.losses):
        return 0
    group = 1 if settings.sampler.type == "shuffle" else settings.sampler.images
    return size // 2 // group * group


def _look_around(job: Job, learner: Learner, data: Pictures) -> None:
    """Which identities lie near each other by now, for batches of those that are confused."""
    z = encode(
        learner, data.pixels, job.encoder.preprocess, job.fabric, job.p.evaluation.batch_size
    )
    unit = retrieval_features({n: f.cpu().numpy() for n, f in z.items()}, job.p.evaluation.feature)
    nearest = nearest_identities(unit, data.labels.cpu().numpy())
    learner.neighbours.copy_(torch.from_numpy(nearest))


def _code_sha256() -> str:
    """Hash of the code that decides trained weights: what draws figures is not part of it."""
    library = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(file for part in _CODE for file in library.glob(part)):
        digest.update(f"{path.relative_to(library).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
