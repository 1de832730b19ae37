"""Stage 3a: a prompt for each training person, learnt between two frozen towers."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch.nn import functional

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.atomic import write_whole
from handclip_lib.data.samplers import make_sampler
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed
from handclip_lib.losses.crossmodal import cross_modal
from handclip_lib.models.prompts import PromptLearner, find_slots, start_vectors
from handclip_lib.models.text import TextTower
from handclip_lib.schema_train import Stage3a
from handclip_lib.train.fit import Recipe, clear, fit, read_history
from handclip_lib.train.job import Job

NAME = "prompts"


@dataclass(frozen=True)
class Learnt:
    """What stage 3a leaves. prompts: the learner, in eval mode; before, after: (C, E) unit text
    features of the training persons at the start and as learnt; bank: the same as stage 3b wants
    them (raw, where similarity is dot); pids: (C,) whose; images: (C, E) unit means of their image
    features; history: a row an epoch; checkpoint: its file; facts: plain values, as those of
    `Trained`, with `val_i2t`, accuracy on their unseen photographs.
    """

    prompts: PromptLearner
    before: torch.Tensor
    after: torch.Tensor
    bank: torch.Tensor
    pids: tuple[int, ...]
    images: torch.Tensor
    history: pd.DataFrame
    checkpoint: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Images:
    """Image features of a split, in the joint space, on the device: (N, E), and whose (N,)."""

    z: torch.Tensor
    labels: torch.Tensor
    aspects: np.ndarray


def learn_prompts(job: Job) -> Learnt:
    """Learn the prompts of the job's training persons; or take what was learnt before.

    The images pass their tower once, for features that are kept on disk: while prompts learn it is
    never called. CLIP-ReID's first stage, Li et al. 2023, arXiv:2211.13977, section 3.2, with unit
    features and CLIP's own, fixed logit scale.
    """
    settings = job.settings
    assert isinstance(settings, Stage3a)
    people = people_of(job)
    pids = tuple(map(int, people.index))
    train, val = (_features(job, split, pids) for split in ("train", "val"))
    means = torch.stack([train.z[train.labels == c].mean(0) for c in range(len(pids))])
    images = functional.normalize(means.float(), dim=1)
    job.encoder.eval().requires_grad_(False)
    learner = _learner(job, settings, people, images)
    folder = job.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, key = folder / f"{job.name}.pth", job.key
    with torch.no_grad():
        before = learner.eval()().cpu()
    with FileLock(folder / f".{job.name}.lock"):
        held = torch.load(path, weights_only=True) if path.is_file() else None
        if held and held["key"] == key:
            print(f"{job.name}: learnt before, by the same parameters, data and code: {path}")
            learner.load_state_dict(held["prompts"])
            history, facts = read_history(job.folder, job.name), held["facts"]
        else:
            began = time.monotonic()
            history, facts = _fitted(job, settings, learner, train, val, key)
            facts["seconds"] = round(time.monotonic() - began, 2)
            state = {n: v.cpu() for n, v in learner.state_dict().items()}
            told = {"key": key, "pids": list(pids), "prompts": state, "facts": facts}
            buffer = io.BytesIO()
            torch.save(told, buffer)
            write_whole(path, buffer.getbuffer())
            clear(job.folder, job.name)
    with torch.no_grad():
        after = learner.eval()().cpu()
        bank = learner(unit=settings.similarity == "cosine").cpu()
    return Learnt(learner, before, after, bank, pids, images.cpu(), history, path, facts)


def prompt_template(template: str, aspect: str) -> str:
    """The template with the aspect's first phrase in its place, without double blanks."""
    return " ".join(template.replace("{aspect}", ASPECTS[aspect].words[0]).split())


def people_of(job: Job) -> pd.DataFrame:
    """A row of the table for each training person, by pid, rising: the commonest of its values.

    Only photographs of the training split are asked.
    """
    names = job.manifest.loc[job.manifest["split"] == "train", "image"]
    rows = job.table[job.table["image"].isin(names)]
    return rows.groupby("pid").agg(lambda values: values.mode(dropna=False).iloc[0])


def _features(job: Job, split: str, pids: tuple[int, ...]) -> _Images:
    rows = job.manifest[(job.manifest["split"] == split) & job.manifest["pid"].isin(pids)]
    names = rows["image"].tolist()
    size, fabric = job.p.evaluation.batch_size, make_fabric(job.p)
    z = embed(job.encoder, job.store, names, fabric, size)["proj"]
    labels = torch.tensor([pids.index(int(pid)) for pid in rows["pid"]], dtype=torch.long)
    device = job.fabric.device
    return _Images(torch.from_numpy(z).to(device), labels.to(device), rows["aspect"].to_numpy())


def _learner(
    job: Job, settings: Stage3a, people: pd.DataFrame, images: torch.Tensor
) -> PromptLearner:
    job.fabric.to_device(job.encoder)
    tower = TextTower(job.encoder)
    text = prompt_template(settings.template, job.p.aspect)
    slots = find_slots(tower, text, settings.n_ctx)
    start = start_vectors(settings.init, tower, slots, people, images, settings.words, job.p.seed)
    learner = PromptLearner(
        tower, [slots] * settings.prompts, len(people), start=start, dropout=settings.dropout
    )
    job.fabric.to_device(learner)
    return learner


def _fitted(
    job: Job, settings: Stage3a, learner: PromptLearner, train: _Images, val: _Images, key: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    sampler = make_sampler(
        settings.sampler,
        train.labels.cpu().numpy(),
        train.aspects,
        settings.batch_size,
        job.p.seed,
    )
    all_ids = torch.arange(learner.ctx.shape[1], device=train.z.device)
    scale, unit = job.encoder.logit_scale, settings.similarity == "cosine"

    def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
        at = torch.from_numpy(batch).to(train.z.device)
        z, y = train.z[at], train.labels[at]
        with job.fabric.autocast():
            each = learner.each(unit=unit)
        text = each.mean(dim=0)
        terms = {
            "i2t": cross_modal(z, text, y, all_ids, scale, 0.0, settings.similarity),
            "t2i": cross_modal(text, z, all_ids, y, scale, 0.0, settings.similarity),
        }
        return terms | (
            {"diversity": learner.diversity(functional.normalize(each, dim=2))}
            if settings.prompts > 1
            else {}
        )

    weights = {"i2t": 1.0, "t2i": 1.0}
    weights |= {"diversity": settings.diversity} if settings.prompts > 1 else {}
    adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    recipe = Recipe(
        name=job.name,
        learner=learner,
        optimizer=adam([learner.ctx], lr=settings.lr, weight_decay=settings.weight_decay),
        step=step,
        weights=lambda: weights,
        batches=lambda epoch: sampler.batches(epoch, None),
        begin_epoch=lambda epoch: None,
        diagnostics=dict,
        validate=lambda scored: _accuracies(scored, train, val),
        select="",
        key=key,
        seed=job.p.seed,
    )
    history = fit(recipe, settings, job.fabric, job.folder)
    last = history.iloc[-1]
    facts = {
        "images": len(train.z),
        "persons": len(all_ids),
        "epochs": len(history),
        "chosen_epoch": history.attrs["chosen_epoch"],
        "selected_by": "",
        "trained_parameters": learner.ctx.numel(),
        **{name: float(last[name]) for name in ("train_i2t", "val_i2t") if name in last},
    }
    return history, facts


def _accuracies(learner: Any, train: _Images, val: _Images) -> dict[str, float]:
    """How often an image's own person has the nearest text: `train` photographs, and unseen ones."""
    text = learner()
    return {
        f"{name}_i2t": float(((told.z @ text.T).argmax(1) == told.labels).float().mean())
        for name, told in (("train", train), ("val", val))
        if len(told.z)
    }
