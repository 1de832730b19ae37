"""A job done: trained, or found where it was done before; its weights and facts kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning_fabric as lf
import pandas as pd
import torch
from filelock import FileLock
from torch import nn

from handclip_lib.models.adapters import merge_lora
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.schema_train import Training
from handclip_lib.train.fit import clear, fit, read_history
from handclip_lib.train.guide import check_guide
from handclip_lib.train.job import Job, Trained, check_start
from handclip_lib.train.launch import in_ranks
from handclip_lib.train.learner import (
    Learner,
    Pictures,
    check_losses,
    class_means,
    encode,
    pictures,
)
from handclip_lib.train.optim import opened
from handclip_lib.train.ranks import sync_norms
from handclip_lib.train.recipe import make_recipe, prepared
from handclip_lib.train.selection import scorer

# The history of a training, its facts and what its heads have learnt
Fitted = tuple[pd.DataFrame, dict[str, Any], dict[str, torch.Tensor]]


def train(
    job: Job[Training], fitted: Callable[[Job[Training], str], Fitted] | None = None
) -> Trained:
    """Train, or take what was trained before with the same key; leaves checkpoints/<name>.pth.

    fitted: fills the job's encoder with what is kept, given the key; None: by the job's losses.
    """
    folder = job.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, key = folder / f"{job.name}.pth", job.key
    parent = job.parent or job.encoder.weights_sha256
    with FileLock(folder / f".{job.name}.lock"):
        taught = check_start(job)
        held = read_checkpoint(path) if path.is_file() else None
        if held and held["key"] == key:
            print(f"{job.name}: trained before, by the same parameters, data and code: {path}")
            merge_lora(job.encoder)  # as it was kept
            load_weights(job.encoder, path)
            if job.guide is not None:
                job.guide.load_state_dict(held["guide"])
            history = read_history(job.folder, job.name)
            return Trained(job.encoder.eval(), history, path, held["facts"], job.guide)
        if fitted is None:
            fitted = _fitted if job.p.device.devices == 1 else _fitted_in_ranks
        history, facts, heads = fitted(job, key)
        if job.pretrained_on:
            facts["pretrained_on"] = job.pretrained_on
        params = job.p.model_dump(mode="json")
        more = {"facts": facts, "taught": taught, "heads": heads}
        if job.guide is not None:
            more["guide"] = {n: v.cpu() for n, v in job.guide.state_dict().items()}
        merge_lora(job.encoder)
        save_checkpoint(path, job.encoder, params, parent, key, more)
        clear(job.folder, job.name)
    return Trained(job.encoder.eval(), history, path, facts, job.guide)


def _fitted(job: Job[Training], key: str) -> Fitted:
    """Train the job's encoder; its history, its facts and what its heads have learnt."""
    fabric, store, classes = job.fabric, job.store, job.classes
    data = pictures(job.manifest, "train", store, fabric, classes, job.codes)
    criterion, settings = prepared(job.settings, job.encoder, len(classes), job.guide)
    job = replace(job, settings=settings)
    if job.heads:
        criterion.load_state_dict(job.heads["heads"])
    check_losses(criterion, job.dims, len(classes))
    if job.guide is not None:
        check_guide(job.guide, job.dims, len(classes))
    fabric.to_device(job.encoder)  # its texts, too
    retain = job.past.retain().to(fabric.device) if job.past.retain else None
    mine = len(data.labels[: len(data.images) - data.old].unique())  # with union there are more
    learner = Learner(job.encoder, criterion, mine, job.p.device.compile, job.guide, retain)
    fabric.to_device(learner)
    if criterion.has_centers and not job.heads:
        z = encode(learner, data, store.preprocess, fabric, job.p.evaluation.batch_size)
        criterion.start_centers(class_means(z, data.labels, len(classes)))
    validate, select = scorer(job.p, job.manifest, store, fabric, classes, job.codes)
    recipe = make_recipe(job, learner, data, validate, select, key)
    history = fit(recipe, settings, fabric, job.folder)
    learnt = opened(job.encoder, learner.heads, settings, len(history))
    heads = {n: v.cpu() for n, v in criterion.state_dict().items()}
    return history, facts_of(job, data, history, select, learnt), heads


def facts_of(
    job: Job[Training], data: Pictures, history: pd.DataFrame, select: str, learnt: int
) -> dict[str, Any]:
    """What a training leaves as `Trained.facts`.

    data: what it was shown; select: the history's column that chose; learnt: numbers that trained.
    """
    return {
        "images": len(data.images) - data.old,
        "shown_again": data.old,
        "persons": len(set(data.pids)),
        "identities": len(job.classes),
        "epochs": len(history),
        "chosen_epoch": history.attrs["chosen_epoch"],
        "seconds": round(history.attrs["seconds"], 2),
        "selected_by": select,
        "trained_parameters": learnt,
    }


def _fitted_in_ranks(job: Job[Training], key: str) -> Fitted:
    """The same by a process for each device; the job's encoder and guide take over the weights."""
    if job.again is None:
        raise ValueError(f"{job.name}: nothing says how another process makes this training")
    folder = job.folder / "checkpoints" / f"{job.name}.ranks"
    made = in_ranks(job.p, partial(_in_rank, job.again, key), folder)
    job.encoder.load_state_dict(made["encoder"])
    if job.guide is not None:
        job.guide.load_state_dict(made["guide"])
    return read_history(job.folder, job.name), made["facts"], made["heads"]


def _in_rank(again: Callable[[], Job[Training]], key: str, fabric: lf.Fabric) -> dict[str, Any]:
    """A rank's part of a job; what it has learnt."""
    job = replace(again(), fabric=fabric)
    sync_norms(job.encoder, job.settings.freeze_bn, fabric)
    _, facts, heads = _fitted(job, key)
    made = {"facts": facts, "heads": heads, "encoder": job.encoder, "guide": job.guide}
    modules = {name: part for name, part in made.items() if isinstance(part, nn.Module)}
    states = {name: part.state_dict() for name, part in modules.items()}
    return made | {n: {k: v.cpu() for k, v in s.items()} for n, s in states.items()}
