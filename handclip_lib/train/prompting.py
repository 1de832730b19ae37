"""Stage 3a: a prompt for each training person, learnt between two frozen towers."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from handclip_lib.device import make_fabric, seed_step
from handclip_lib.evaluate.embed import embed
from handclip_lib.losses.crossmodal import cross_modal
from handclip_lib.models.clip import sha256_of
from handclip_lib.models.prompts import PromptLearner, find_slots, start_vectors
from handclip_lib.models.text import TextTower
from handclip_lib.schema_train import Stage3a
from handclip_lib.train.fit import Recipe, clear, fit, read_history
from handclip_lib.train.job import Job


@dataclass(frozen=True)
class Learnt:
    """What stage 3a leaves.

    prompts: the learner, in eval mode; before, after: (C, E) unit text features of the training
    persons at the start and as learnt; raw: the same as learnt, not scaled; pids: (C,) whose;
    images: (C, E) unit means of their image features; history: a row an epoch; checkpoint: its
    file; facts: plain values, as those of `Trained`, with `val_i2t`, the accuracy on their unseen
    photographs.
    """

    prompts: PromptLearner
    before: torch.Tensor
    after: torch.Tensor
    raw: torch.Tensor
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


def learn_prompts(job: Job[Stage3a]) -> Learnt:
    """Learn the prompts of the job's training persons; or take what was learnt before.

    The images pass their tower once, for features that are kept on disk: while prompts learn it is
    never called. CLIP-ReID's first stage, Li et al. 2023, arXiv:2211.13977, section 3.2, with unit
    features and CLIP's own, fixed logit scale.
    """
    people = people_of(job)
    pids = tuple(map(int, people.index))
    images = {split: _features(job, split, pids) for split in ("train", "val")}
    member = functional.one_hot(images["train"].labels, len(pids)).T.float()
    means = functional.normalize(member @ images["train"].z, dim=1)
    job.encoder.eval().requires_grad_(False)
    job.fabric.to_device(job.encoder)
    learner = _learner(job, people, means)
    # the key leaves out what features are computed in, and words are learnt from features
    job = replace(job, words=f"{sha256_of(learner)} {job.p.device.precision}")
    with torch.no_grad():
        before = learner.eval()().cpu()
    path, history, facts = _learnt(job, learner, images, pids)
    with torch.no_grad():
        after = learner.eval()().cpu()
        raw = learner(unit=False).cpu()
    return Learnt(learner, before, after, raw, pids, means.cpu(), history, path, facts)


def _learnt(
    job: Job[Stage3a],
    learner: PromptLearner,
    images: dict[str, _Images],
    pids: tuple[int, ...],
) -> tuple[Path, pd.DataFrame, dict[str, Any]]:
    """Fill the learner, from its file where that was made by the same; file, history, facts."""
    folder = job.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, key = folder / f"{job.name}.pth", job.key
    with FileLock(folder / f".{job.name}.lock"):
        held = torch.load(path, weights_only=True) if path.is_file() else None
        if held and held["key"] == key:
            print(f"{job.name}: learnt before, by the same parameters, data and code: {path}")
            learner.load_state_dict(held["prompts"])
            return path, read_history(job.folder, job.name), held["facts"]
        history, facts = _fitted(job, learner, images, key)
        state = {n: v.cpu() for n, v in learner.state_dict().items()}
        told = {"key": key, "pids": list(pids), "prompts": state, "facts": facts}
        buffer = io.BytesIO()
        torch.save(told, buffer)
        write_whole(path, buffer.getbuffer())
        clear(job.folder, job.name)
    return path, history, facts


def prompt_template(template: str, aspect: str) -> str:
    """The template with the aspect's first phrase in its place, without double blanks."""
    return " ".join(template.replace("{aspect}", ASPECTS[aspect].words[0]).split())


def people_of(job: Job[Any]) -> pd.DataFrame:
    """A row of the table for each class of a training, in their order: the commonest of its values.

    The index says whose. Only photographs of the training split are asked.
    """
    mine = job.manifest[job.manifest["split"] == "train"]
    rows = job.table.set_index("image").loc[mine["image"]]
    found = rows.groupby(job.classes.labels(mine)).agg(_commonest)
    return found.set_index("pid", drop=False)


def _commonest(values: "pd.Series[Any]") -> Any:
    return values.mode(dropna=False).iloc[0]


def _features(job: Job[Stage3a], split: str, pids: tuple[int, ...]) -> _Images:
    rows = job.manifest[(job.manifest["split"] == split) & job.manifest["pid"].isin(pids)]
    names = rows["image"].tolist()
    size, fabric = job.p.evaluation.batch_size, make_fabric(job.p)
    z = embed(job.encoder, job.store, names, fabric, size)["proj"]
    labels = torch.tensor([pids.index(int(pid)) for pid in rows["pid"]], dtype=torch.long)
    device = job.fabric.device
    return _Images(torch.from_numpy(z).to(device), labels.to(device), rows["aspect"].to_numpy())


def _learner(job: Job[Stage3a], people: pd.DataFrame, means: torch.Tensor) -> PromptLearner:
    settings: Stage3a = job.settings
    tower = TextTower(job.encoder)
    slots = find_slots(tower, prompt_template(settings.template, job.p.aspect), settings.n_ctx)
    start = start_vectors(settings.init, tower, slots, people, means, settings.words, job.p.seed)
    seed_step(job.p.seed, 0)
    copies = [slots] * settings.prompts
    learner = PromptLearner(tower, copies, len(people), start=start, dropout=settings.dropout)
    job.fabric.to_device(learner)
    return learner


def _fitted(
    job: Job[Stage3a], learner: PromptLearner, images: dict[str, _Images], key: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    settings: Stage3a = job.settings
    train, seed = images["train"], job.p.seed
    labels = train.labels.cpu().numpy()
    sampler = make_sampler(settings.sampler, labels, train.aspects, settings.batch_size, seed)
    weights = {"i2t": 1.0, "t2i": 1.0}
    weights |= {"diversity": settings.diversity} if settings.prompts > 1 else {}
    adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    recipe = Recipe(
        name=job.name,
        learner=learner,
        optimizer=adam([learner.ctx], lr=settings.lr, weight_decay=settings.weight_decay),
        step=_stepper(job, learner, train),
        weights=lambda: weights,
        batches=lambda epoch: sampler.batches(epoch, None),
        begin_epoch=_no_layers,
        diagnostics=dict,
        validate=lambda scored: _accuracies(scored, images, settings.similarity == "cosine"),
        select="",
        key=key,
        seed=seed,
    )
    history = fit(recipe, settings, job.fabric, job.folder)
    last = history.iloc[-1]
    facts = {
        "images": len(train.z),
        "persons": learner.ctx.shape[1],
        "epochs": len(history),
        "chosen_epoch": history.attrs["chosen_epoch"],
        "seconds": round(history.attrs["seconds"], 2),
        "selected_by": "",
        "trained_parameters": learner.ctx.numel(),
        **{name: float(last[name]) for name in ("train_i2t", "val_i2t") if name in last},
    }
    return history, facts


def _no_layers(_epoch: int) -> None:
    """Both towers stay closed."""


def _stepper(
    job: Job[Stage3a], learner: PromptLearner, train: _Images
) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
    """From the indices of a batch to its loss terms, with the texts of all identities."""
    settings: Stage3a = job.settings
    ids = torch.arange(learner.ctx.shape[1], device=train.z.device)
    scale, how = job.encoder.logit_scale, settings.similarity

    def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
        at = torch.from_numpy(batch).to(train.z.device)
        z, y = train.z[at], train.labels[at]
        with job.fabric.autocast():
            each = learner.each(unit=how == "cosine")
        text = each.mean(dim=0)
        terms = {
            "i2t": cross_modal(z, text, y, ids, scale, 0.0, how),
            "t2i": cross_modal(text, z, ids, y, scale, 0.0, how),
        }
        if settings.prompts > 1:
            terms["diversity"] = learner.diversity(functional.normalize(each, dim=2))
        return terms

    return step


def _accuracies(learner: Any, images: dict[str, _Images], unit: bool) -> dict[str, float]:
    """How often the text likest to an image is its owner's, in each split that has images."""
    text = learner(unit=unit)
    return {
        f"{split}_i2t": float(((told.z @ text.T).argmax(1) == told.labels).float().mean())
        for split, told in images.items()
        if len(told.z)
    }
