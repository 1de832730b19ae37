"""The one training loop: sums losses, steps, logs, validates, keeps the best, survives a kill."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm

from handclip_lib.device import seed_step
from handclip_lib.schema_train import Loop
from handclip_lib.train.history import FILE, read_history, write_history
from handclip_lib.train.optim import Schedule, check_optimizer
from handclip_lib.train.ranks import average, begin_alike
from handclip_lib.train.resume import read_state, remove_files, remove_parts, write_state
from handclip_lib.train.terms import check_finite, detached, means, weighted_total

__all__ = ["Recipe", "fit", "read_history"]

_LOOK = 50  # batches between two looks at whether losses are finite: a look waits for the device


@dataclass(frozen=True)
class Recipe:
    """What `fit` is told of a training. Epochs count from 1.

    name: the history's `variant`; learner: all state that trains, its state_dict is what is kept;
    optimizer: over every parameter that may ever train; step: indices of a batch -> {loss:
    unweighted scalar}, with its forward in the fabric's autocast; on several ranks the whole
    batch's on each, with gradients whose mean is the batch's; weights: {loss: factor}, asked for
    after each step; batches: the index arrays of an epoch; begin_epoch: called when the learner is
    in training mode, opens and closes layers; diagnostics: scalars of the last step, logged only;
    validate: scores a learner in eval mode (the averaged one under EMA), or None; select: the score
    that chooses the weights, higher is better, or "" for the last ones; key: fingerprint of all
    that decides the result; seed: of every random draw; closed: epochs at first in which nothing
    that is scored learns, and which try nobody's patience.
    """

    name: str
    learner: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[np.ndarray], Mapping[str, torch.Tensor]]
    weights: Callable[[], Mapping[str, torch.Tensor | float]]
    batches: Callable[[int], list[np.ndarray]]
    begin_epoch: Callable[[int], None]
    diagnostics: Callable[[], Mapping[str, float | torch.Tensor]]
    validate: Callable[[Any], dict[str, float]] | None
    select: str
    key: str
    seed: int
    closed: int = 0


@dataclass
class _Progress:
    """Where a training stands; plain values, kept with the weights."""

    epoch: int = 0
    batches: int = 0
    steps: int = 0  # of the optimiser
    best: float = -math.inf
    best_epoch: int = 0
    worse: int = 0  # validations since the best one
    seconds: float = 0.0  # those before a kill included
    rows: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Run:
    recipe: Recipe
    settings: Loop
    fabric: lf.Fabric
    folder: Path
    learner: nn.Module  # itself, unwrapped
    optimizer: Any
    schedule: Schedule
    epoch_steps: int  # optimiser steps of an epoch
    ema: ModelEmaV3 | None
    at: _Progress
    saved: float

    @property
    def key(self) -> str:
        return f"{self.recipe.key} {self.recipe.seed}"

    @property
    def scored(self) -> nn.Module:
        """What is validated and kept: the averaged learner, or the learner."""
        return self.learner if self.ema is None else self.ema.module

    def file(self, kind: str) -> Path:
        return self.folder / "checkpoints" / f"{self.recipe.name}.{kind}.pt"


def fit(recipe: Recipe, settings: Loop, fabric: lf.Fabric, folder: Path) -> pd.DataFrame:
    """Train; returns the history, a row an epoch. The learner then holds the chosen weights.

    Columns: `variant`, `epoch`, `step` (of the optimiser), `lr` (of the tower's last layers),
    `total`, one a loss, one a diagnostic (means over the epoch's batches), one a score. Chosen are
    the weights with the best `recipe.select`, the latest of equals, read back from their file, else
    the last ones; with `settings.ema` the averaged ones; attrs: `chosen_epoch`, `seconds`. The
    learner is left in eval mode. All randomness comes from `seed_step(seed, batch number)`, so
    that a run which was killed goes on from folder/checkpoints/<name>.resume.pt, at most
    `save_seconds` and an epoch back, and on the same machine ends with the same bits as one
    that was not. Its files stay until `clear`: a kill before the result is kept elsewhere costs
    no more than any other. Of several ranks all get here with the same recipe; rank 0 alone
    validates and writes.
    Raises FloatingPointError naming the losses that are not finite, AssertionError naming the
    parameters that ask for a gradient and are not in the optimiser, ValueError without batches.
    """
    run = _start(recipe, settings, fabric, folder)
    _resume(run)
    total = settings.epochs * len(recipe.batches(1))
    with tqdm(total=total, initial=run.at.batches, desc=recipe.name, unit="batch") as bar:
        while not _ended(run):
            began = time.monotonic()
            row = _train(run, bar) | _validate(run)
            run.at.seconds += time.monotonic() - began
            run.at.rows.append(row)
            if fabric.is_global_zero:
                write_history(folder, recipe.name, run.at.rows)
            _show(run, bar, row)
            _save(run)
    chosen = _finish(run)
    history = read_history(folder, recipe.name)
    history.attrs |= {"chosen_epoch": chosen, "seconds": run.at.seconds}
    return history


def clear(folder: Path, name: str) -> None:
    """Remove what only a killed training needs; once its result is kept elsewhere."""
    remove_files(*(folder / "checkpoints" / f"{name}.{kind}.pt" for kind in ("best", "resume")))


def _start(recipe: Recipe, settings: Loop, fabric: lf.Fabric, folder: Path) -> _Run:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    learner: Any = fabric.to_device(recipe.learner)
    begin_alike(learner, fabric)
    optimizer: Any = recipe.optimizer
    if not lf.is_wrapped(optimizer):
        optimizer = fabric.setup_optimizers(optimizer)
    if not (batches := len(recipe.batches(1))):
        raise ValueError(f"{recipe.name}: no batch in an epoch: fewer images than a batch holds?")
    epoch_steps = math.ceil(batches / settings.accumulate)
    schedule = Schedule(optimizer, settings, settings.epochs * epoch_steps)
    ema = ModelEmaV3(learner, decay=settings.ema, use_warmup=True) if settings.ema else None
    return _Run(
        recipe, settings, fabric, folder, learner, optimizer, schedule, epoch_steps, ema,
        _Progress(), time.monotonic(),
    )  # fmt: skip


def _ended(run: _Run) -> bool:
    patience = run.settings.patience
    tired = bool(run.recipe.select and patience and run.at.worse >= patience)
    return tired or run.at.epoch >= run.settings.epochs


def _train(run: _Run, bar: Any) -> dict[str, float]:
    """One epoch; its row of the history, without scores."""
    recipe, at = run.recipe, run.at
    at.epoch += 1
    bar.set_description(f"{recipe.name} {at.epoch}/{run.settings.epochs}", refresh=False)
    seed_step(recipe.seed, at.batches)
    run.learner.train()
    recipe.begin_epoch(at.epoch)
    check_optimizer(run.learner, run.optimizer)
    batches, size = run.fabric.broadcast(recipe.batches(at.epoch)), run.settings.accumulate
    groups = [batches[i : i + size] for i in range(0, len(batches), size)]
    done: list[dict[str, Any]] = []  # what each batch gave, left on the device
    lr, checked = 0.0, 0
    for i, group in enumerate(groups):
        before = (at.epoch - 1) * run.epoch_steps
        lr = run.schedule.set(before + i * run.epoch_steps // len(groups))
        done += _update(run, group)
        bar.update(len(group))
        if len(done) - checked >= _LOOK or i == len(groups) - 1:
            number = at.batches - len(done) + checked + 1
            check_finite(done[checked:], recipe.name, at.epoch, number)
            checked = len(done)
    return {"epoch": at.epoch, "step": at.steps, "lr": lr} | means(done)


def _update(run: _Run, group: list[np.ndarray]) -> list[dict[str, Any]]:
    """One optimiser step on the mean gradient over the images of some batches."""
    fabric, images, done = run.fabric, sum(len(batch) for batch in group), []
    for batch in group:
        seed_step(run.recipe.seed, run.at.batches)
        run.at.batches += 1
        terms = run.recipe.step(batch)
        total = weighted_total(terms, run.recipe.weights())
        fabric.backward(total * (len(batch) / images))
        done.append(detached(total, terms, run.recipe.diagnostics()))
    average(run.learner, fabric)
    if run.settings.clip_norm:
        norm = run.settings.clip_norm
        fabric.clip_gradients(run.learner, run.optimizer, max_norm=norm, error_if_nonfinite=False)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.at.steps += 1
    if run.ema is not None:
        run.ema.update(run.learner, step=run.at.steps)
    return done


def _validate(run: _Run) -> dict[str, float]:
    """Scores of this epoch, none where it is not validated; the best weights go to their file."""
    recipe, at = run.recipe, run.at
    due = at.epoch % run.settings.validate_every == 0 or at.epoch == run.settings.epochs
    if recipe.validate is None or not due:
        return {}
    scores: dict[str, float] = {}
    if run.fabric.is_global_zero:
        with torch.no_grad():
            scores = {name: float(v) for name, v in recipe.validate(run.scored.eval()).items()}
    scores = run.fabric.broadcast(scores)
    if recipe.select:
        score = scores[recipe.select]
        if not math.isfinite(score):
            raise FloatingPointError(f"{recipe.name}: {recipe.select} is {score}")
        if at.epoch > recipe.closed:  # before, it can't improve
            at.worse = 0 if score > at.best else at.worse + 1
        if score >= at.best:  # of equals the later one: it has learnt for longer
            at.best, at.best_epoch = score, at.epoch
            state = {"epoch": at.epoch, "learner": run.scored.state_dict()}
            if run.fabric.is_global_zero:
                write_state(run.file("best"), run.key, state)
    return scores


def _show(run: _Run, bar: Any, row: Mapping[str, float]) -> None:
    shown = {name: row[name] for name in ("total", run.recipe.select) if name in row}
    bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)


def _save(run: _Run) -> None:
    """Write what a killed run goes on from, unless that was just done or nothing is left to do."""
    fresh = time.monotonic() - run.saved < run.settings.save_seconds
    if _ended(run) or fresh or not run.fabric.is_global_zero:
        return
    state = {
        "learner": run.learner.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "precision": run.fabric.strategy.precision.state_dict(),
        "progress": asdict(run.at),
    }
    write_state(run.file("resume"), run.key, state)
    run.saved = time.monotonic()


def _resume(run: _Run) -> None:
    """Go on from the file that a killed run left, where it is of the same training."""
    state = read_state(run.file("resume"), run.key)
    if state is None:
        return
    at = _Progress(**state["progress"])
    if at.best_epoch and read_state(run.file("best"), run.key) is None:
        print(f"{run.recipe.name}: its best weights are gone; starting anew")
        return
    run.learner.load_state_dict(state["learner"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.ema is not None:
        run.ema.module.load_state_dict(state["ema"])
    run.fabric.strategy.precision.load_state_dict(state["precision"])
    run.at = at
    print(f"{run.recipe.name}: goes on after epoch {at.epoch}")


def _finish(run: _Run) -> int:
    """Put the chosen weights into the learner; their epoch."""
    run.fabric.barrier()  # rank 0 has written its files
    chosen = run.at.epoch
    if run.at.best_epoch:
        held = read_state(run.file("best"), run.key)
        if held is None:
            raise FileNotFoundError(f"the best weights are gone: {run.file('best')}")
        if held["epoch"] != run.at.best_epoch:  # a later epoch, before a kill, that did not repeat
            warnings.warn(
                f"{run.recipe.name}: the weights are of epoch {held['epoch']}, the best score of"
                f" {run.at.best_epoch}: this device does not repeat itself exactly",
                stacklevel=3,
            )
        run.learner.load_state_dict(held["learner"])
        chosen = int(held["epoch"])
    elif run.ema is not None:
        run.learner.load_state_dict(run.ema.module.state_dict())
    remove_parts(run.folder / FILE)
    run.learner.eval()
    seed_step(run.recipe.seed, run.at.batches)
    return chosen
