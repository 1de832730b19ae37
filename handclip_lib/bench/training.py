"""Rows on training steps: what the way from photographs to a batch adds to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.bench.row import PHOTOGRAPHS, Row, in_precision
from handclip_lib.data.augment import Augmenter
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric, seed_step
from handclip_lib.losses import build_loss
from handclip_lib.schema import Params
from handclip_lib.schema_train import Training
from handclip_lib.train.classes import Classes
from handclip_lib.train.fit import Recipe
from handclip_lib.train.job import Job, Past, study_encoder
from handclip_lib.train.learner import Learner, Pictures
from handclip_lib.train.recipe import make_recipe
from handclip_lib.train.terms import weighted_total

BATCH = 64  # images a step
_Batch = tuple[torch.Tensor, torch.Tensor]  # normalised images (B, 3, H, W), labels (B,)


@dataclass(frozen=True)
class Trainer:
    """A stage's own recipe with its optimiser, and the same steps on batches that are ready."""

    settings: Training
    fabric: lf.Fabric
    recipe: Recipe
    optimizer: Any
    data: Pictures
    batches: list[np.ndarray]  # of an epoch
    ready: list[_Batch]  # the same ones, augmented and normalised; the first one after seed 0

    @property
    def images(self) -> int:
        """How many images the batches of an epoch have together."""
        return sum(len(batch) for batch in self.batches)

    def terms(self, k: int) -> dict[str, torch.Tensor]:
        """Unweighted losses of ready batch k."""
        images, labels = self.ready[k]
        with self.fabric.autocast():
            found: dict[str, torch.Tensor] = self.recipe.learner(images, labels)
        return found

    def from_pixels(self) -> None:
        """An epoch with all that a stage does: sampler, index, augmentation, normalisation."""
        for batch in self.recipe.batches(1):
            self._step(dict(self.recipe.step(batch)))

    def from_batches(self) -> None:
        """The same steps on the batches that are ready."""
        for k in range(len(self.ready)):
            self._step(self.terms(k))

    def total(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is minimised."""
        return weighted_total(terms, self.recipe.weights())

    def _step(self, terms: dict[str, torch.Tensor]) -> None:
        self.fabric.backward(self.total(terms))
        if self.settings.clip_norm:
            self.fabric.clip_gradients(
                self.recipe.learner,
                self.optimizer,
                max_norm=self.settings.clip_norm,
                error_if_nonfinite=False,  # as in `fit`: the check would wait for the device
            )
        self.optimizer.step()
        self.optimizer.zero_grad()


def rows(p: Params, table: pd.DataFrame, folder: Path) -> list[Row]:
    """Rows for stage 2 of the study on some of its photographs; `folder` takes what is cached."""
    settings = p.stage2.model_copy(update={"batch_size": BATCH})
    data = _pictures(p, table.head(PHOTOGRAPHS), folder)
    full = make_trainer(in_precision(p, "32-true"), settings, data, folder)
    half = make_trainer(in_precision(p, "bf16-mixed"), settings, data, folder)
    name = f"training step, {p.model.name}"
    return [data_path(name, full, "≤ 1.10"), sampling(full), precision(name, half, full)]


def _pictures(p: Params, table: pd.DataFrame, folder: Path) -> Pictures:
    """A table's photographs on the device; a class is an aspect of a person, as in a stage."""
    fabric, encoder = make_fabric(p), study_encoder(p)
    images = table["image"].tolist()
    pixels = open_store(table, encoder.preprocess, folder / "training").pixels(images)
    labels = torch.tensor(table.groupby(["pid", "aspect"]).ngroup().tolist())
    return Pictures(
        tuple(images),
        pixels.to(fabric.device),
        table["pid"].to_numpy(),
        table["aspect"].to_numpy(),
        labels.to(fabric.device),
    )


def make_trainer(p: Params, settings: Training, data: Pictures, folder: Path) -> Trainer:
    """A stage with `settings` on these pictures, under `p.device`, with its last epoch's layers.

    Without Mixup and CutMix, whose batches could not be made beforehand.
    """
    fabric, encoder = make_fabric(p, training=True), study_encoder(p)
    names = sorted(set(zip(data.pids.tolist(), data.aspects.tolist(), strict=True)))
    past, num_ids = Past(Classes("aspect_hand", tuple(names))), len(names)
    plain = settings.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    settings = settings.model_copy(update={"augment": plain})
    losses, balance = settings.losses, settings.loss_balance
    criterion = build_loss(losses, num_ids, encoder.dims, balance, settings.projection)
    learner = Learner(encoder, criterion, num_ids, p.device.compile)
    fabric.to_device(learner)
    empty = pd.DataFrame()
    job = Job("bench", settings, p, encoder, empty, empty, fabric, folder, past=past)
    recipe = make_recipe(job, learner, data, None, "", "")
    learner.train()
    recipe.begin_epoch(settings.epochs)
    augmenter = Augmenter(settings.augment, encoder.preprocess)
    batches, ready = recipe.batches(1), []
    for batch in batches:
        at = torch.from_numpy(batch).to(fabric.device)
        seed_step(0, 0)
        ready.append((augmenter(data.pixels[at]), data.labels[at]))
    optimizer = fabric.setup_optimizers(recipe.optimizer)
    return Trainer(settings, fabric, recipe, optimizer, data, batches, ready)


def data_path(name: str, trainer: Trainer, goal: str) -> Row:
    """Steps from stored pixels, against the same ones on ready batches."""
    seed_step(0, 0)
    ours = trainer.total(dict(trainer.recipe.step(trainer.batches[0])))
    assert torch.allclose(ours, trainer.total(trainer.terms(0)), rtol=1e-4), "other batches"
    words = f"{name}: sampler, augmentation and all, against ready batches of {_size(trainer)}"
    return Row(words, trainer.from_pixels, trainer.from_batches, goal, trainer.images)


def sampling(trainer: Trainer) -> Row:
    """An epoch's batches from the sampler, against its steps."""
    name = f"drawing the batches of an epoch, {trainer.settings.sampler.type}, against its steps"
    return Row(name, lambda: trainer.recipe.batches(1), trainer.from_batches)


def precision(name: str, half: Trainer, full: Trainer) -> Row:
    """Steps in bf16 against steps in float32, on ready batches."""
    a, b = (trainer.total(trainer.terms(0)).item() for trainer in (half, full))
    assert abs(a - b) < 0.1 * abs(b), f"bf16 gives another loss: {a} for {b}"
    words = f"{name}: bf16, against float32"
    return Row(words, half.from_batches, full.from_batches, images=half.images)


def _size(trainer: Trainer) -> str:
    sizes = sorted({len(batch) for batch in trainer.batches})
    return " or ".join(str(size) for size in sizes)
