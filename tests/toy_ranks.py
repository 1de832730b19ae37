"""Works for the processes of a training, and what each step of it is compared by."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.data.splits import make_manifest
from handclip_lib.models.adapters import adapt
from handclip_lib.models.promptsg import Composer
from handclip_lib.models.towers import Features
from handclip_lib.schema import Params
from handclip_lib.schema_chain import Lwf
from handclip_lib.schema_train import Adapt, LossSpec, Stage1, Stage3b, Training
from handclip_lib.train import history, resume
from handclip_lib.train.fit import Recipe, fit
from handclip_lib.train.guide import Guide
from handclip_lib.train.job import Job, job_of
from handclip_lib.train.learner import Learner, pictures
from handclip_lib.train.ranks import average, spread
from handclip_lib.train.recipe import make_recipe, prepared
from handclip_lib.train.retain import lwf
from handclip_lib.train.terms import weighted_total

FOUND = "found.pt"
TWO = Params.model_validate({"device": {"accelerator": "cpu", "devices": 2}})
LOSSES = tuple(
    LossSpec.model_validate({"type": name, **more})
    for name, more in (
        ("cross_entropy", {}),
        ("triplet", {"margin": 0.3}),
        ("supcon", {}),
        ("center", {}),
        ("arcface", {"weight": 0.1}),
    )
)
SETTINGS = Stage1.model_validate({
    "epochs": 4, "batch_size": 12, "lr": 0.02, "head_epochs": 1, "accumulate": 2, "ema": 0.5,
    "save_seconds": 0, "warmup": 0, "sampler": {"type": "pk", "images": 3}, "losses": LOSSES,
})  # fmt: skip
# of a step: how many images, and what is different about it
STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "even": (12, {}),
    "odd": (7, {}),
    "texts of persons": (9, {"text": "prompts", "i2t": 1.0, "t2i": 1.0}),
    "texts of images": (9, {"text": "pseudo", "i2t": 1.0, "t2i": 1.0, "interact": True}),
    "before": (9, {"lwf": True}),
    "mixed": (13, {"mixup": 0.5, "mix": 1.0}),
    "views": (9, {"adapt": Adapt(view="camera", prompts=2, lora=2)}),
}


class Made:
    """A training of the toy tower on squares, on any fabric."""

    def __init__(self, p: Params, table: pd.DataFrame, folder: Path, fabric: lf.Fabric) -> None:
        manifest = make_manifest(table, "dorsal_r", select="persons", draws=2)
        self.folder, self.fabric = folder, fabric
        self.job: Job[Training] = replace(
            job_of("toy", SETTINGS, p, None, table, manifest, folder), fabric=fabric
        )
        found = pictures(manifest, "train", self.job.store, fabric, self.job.classes)
        views = table.set_index("image").loc[list(found.images), "camera"].eq("b")
        self.data = replace(found, codes=torch.tensor(views.to_numpy(int)))

    def recipe(self, told: dict[str, Any] | None = None) -> Recipe:
        """What `fit` is told, with what one step differs in."""
        told, settings, job = dict(told or {}), SETTINGS, self.job
        augment = {k: told.pop(k) for k in ("mixup", "mix") if k in told}
        settings = settings.model_copy(
            update={"augment": settings.augment.model_copy(update=augment)}
        )
        torch.manual_seed(0)
        if "adapt" in told:
            adapt(job.encoder, told.pop("adapt"), ("a", "b"))
        before = told.pop("lwf", False)
        guide = self.guide(told) if told else None
        criterion, settings = prepared(settings, job.encoder, len(job.classes), guide)
        kept = lwf(job.encoder.visual, Lwf(on="relations")) if before else None
        if before:  # where it begins there is nothing to learn from it
            with torch.no_grad():
                for weight in job.encoder.visual.parameters():
                    weight.add_(0.05 * torch.randn_like(weight))
        learner = Learner(job.encoder, criterion, len(job.classes), guide=guide, retain=kept)
        job = replace(job, settings=settings, guide=guide)
        data = self.data if job.encoder.adapter else replace(self.data, codes=None)
        return make_recipe(job, learner, data, None, "", "key")

    def guide(self, told: dict[str, Any]) -> Guide:
        """Texts of a step: a fixed bank, or a composer."""
        settings, encoder = Stage3b.model_validate(told), self.job.encoder
        torch.manual_seed(1)
        if settings.text == "pseudo":
            words = "a photo of a {person} hand."
            return Guide(
                settings, 20.0, composer=Composer(encoder, words, "clip_handid", True, True)
            )
        bank = torch.nn.functional.normalize(torch.randn(len(self.job.classes), 16), dim=1)
        return Guide(settings, 20.0, bank, torch.arange(len(bank)))

    def gradients(self, size: int, told: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Of the first images of the data, after a step's backward and its exchange."""
        learner = (recipe := self.recipe(told)).learner.train()
        recipe.begin_epoch(2)
        torch.manual_seed(2)
        terms = recipe.step(np.arange(0, 3 * size, 3) % len(self.data.images))
        weighted_total(terms, recipe.weights()).backward()
        average(learner, self.fabric)
        grads = {n: w.grad.clone() for n, w in learner.named_parameters() if w.grad is not None}
        learner.zero_grad()
        return grads | {name: term.detach() for name, term in terms.items()}

    def trained(self, name: str, stumbles: int = 0) -> dict[str, torch.Tensor]:
        """Weights after a training by plain descent; rank 1 is told nonsense, and may not write.

        stumbles: the epoch at whose beginning all ranks break off, by an InterruptedError.
        """
        recipe, other = self.recipe(), self.fabric.global_rank > 0
        optimizer = torch.optim.SGD(recipe.learner.parameters(), lr=SETTINGS.lr)

        def validate(_: Any) -> dict[str, float]:
            assert not other, "rank 1 validates"
            return {"score": 1.0}

        recipe = replace(recipe, optimizer=optimizer, validate=validate, select="score")
        if other:
            with torch.no_grad():
                next(recipe.learner.parameters()).add_(1.0)
            batches = recipe.batches
            recipe = replace(recipe, batches=lambda epoch: batches(epoch)[::-1])
            history.write_whole = resume.write_whole = _refused  # type: ignore[assignment]
        recipe = _stumbling(recipe, stumbles) if stumbles else recipe
        told = fit(recipe, SETTINGS, self.fabric, self.folder / name)
        state = {n: v.clone() for n, v in recipe.learner.state_dict().items()}
        return state | {"history": torch.tensor(told.drop(columns="variant").to_numpy(float))}


def _refused(path: Path, data: bytes) -> Path:
    raise AssertionError(f"rank 1 writes {path}")


def _stumbling(recipe: Recipe, epoch: int) -> Recipe:
    def begin(now: int) -> None:
        if now == epoch:
            raise InterruptedError
        recipe.begin_epoch(now)

    return replace(recipe, begin_epoch=begin)


def shares(made: Made) -> list[list[list[int]]]:
    """For each batch of an epoch the rows that each rank's tower is shown."""
    seen: list[list[int]] = []

    def tower(rows: torch.Tensor, _: torch.Tensor | None) -> Features:
        seen.append(rows.flatten().int().tolist())
        z = rows.flatten(1)
        return Features(z, z, z, z[:, None], (1, 1))

    batches = made.recipe().batches(1)
    for batch in batches:
        rows = torch.from_numpy(batch).float().view(-1, 1, 1, 1)
        told = spread(tower, rows, None, made.fabric, tokens=True)
        assert torch.equal(told.proj[:, 0], rows.flatten()), "gathered in another order"
        assert torch.equal(told.tokens.flatten(), rows.flatten())
    every: list[Any] = [None] * made.fabric.world_size
    torch.distributed.all_gather_object(every, seen)
    return [list(rows) for rows in zip(*every, strict=True)]


def alone(made: Made) -> torch.Tensor:
    """The gradient of a batch of one image, which one rank computes in vain."""
    tower = made.job.encoder.visual.requires_grad_(True)
    learner = Learner(made.job.encoder, prepared(SETTINGS, made.job.encoder, 2)[0], 2).eval()
    images = torch.ones(1, 3, 32, 32)
    spread(learner.tower, images, None, made.fabric).proj.square().sum().backward()
    average(tower, made.fabric)
    grad: torch.Tensor = tower.conv1.weight.grad.clone()
    tower.zero_grad()
    return grad


def everything(p: Params, table: pd.DataFrame, folder: Path, fabric: lf.Fabric) -> dict[str, Any]:
    """All that a rank is looked at for, in one start; on one device what there is of it."""
    folder.mkdir(exist_ok=True)
    make: Callable[[], Made] = partial(Made, p, table, folder, fabric)
    told: dict[str, Any] = {
        name: make().gradients(size, changes) for name, (size, changes) in STEPS.items()
    }
    told |= {"alone": alone(make()), "trained": make().trained("whole")}
    if fabric.world_size > 1:
        with contextlib.suppress(InterruptedError):
            make().trained("broken", stumbles=3)
        told |= {"again": make().trained("broken"), "shares": shares(make())}
        print(f"rank {fabric.global_rank} is done")
    return told


def everything_and_stumble(p: Params, table: pd.DataFrame, folder: Path, fabric: lf.Fabric) -> None:
    """`everything`, into a file; then rank 1 fails while rank 0 waits for it."""
    found = everything(p, table, folder, fabric)
    if fabric.is_global_zero:
        torch.save(found, folder / FOUND)
    fabric.barrier()
    if not fabric.is_global_zero:
        raise ValueError("the second rank stumbled")
    fabric.barrier()


def linger(folder: Path, fabric: lf.Fabric) -> None:
    """Say who one is, then wait: rank 0 for rank 1, which sleeps."""
    (folder / f"{fabric.global_rank}.part").write_text(str(os.getpid()))
    (folder / f"{fabric.global_rank}.part").rename(folder / f"{fabric.global_rank}.pid")
    if fabric.global_rank:
        time.sleep(600)
    fabric.barrier()
