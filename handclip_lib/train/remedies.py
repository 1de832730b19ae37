"""What a chain does against forgetting: at each step, and with its weights afterwards."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.losses import build_loss
from handclip_lib.models import soup
from handclip_lib.models.checkpoint import read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder
from handclip_lib.models.towers import Features
from handclip_lib.params import ChainStep, ParamError
from handclip_lib.schema import Params
from handclip_lib.schema_chain import Chain
from handclip_lib.schema_train import Adapt, Stage3b, Training
from handclip_lib.train.classes import classes_of
from handclip_lib.train.job import Past, encoder_from, study_encoder
from handclip_lib.train.replay import exemplars
from handclip_lib.train.retain import Retain, ewc, fisher, l2_sp, lwf, normalised, online
from handclip_lib.train.selection import SELECT, held_manifests, held_scores
from handclip_lib.train.states import State, Task, answers, unit_features

Earlier = tuple[ChainStep, Task, Path]  # a step that is done, and its weights


def remedied(
    p: Params, remedy: str, task: Task, earlier: Sequence[Earlier], past: Past
) -> tuple[Past, pd.DataFrame]:
    """What a step brings along under a remedy, and the rows it trains on.

    At the first step there is nothing to forget, and nothing is done. replay: photographs of
    earlier steps are added (split `replay`); lwf, l2_sp, ewc: a bond to the weights it starts from.
    """
    if not remedy or not earlier:
        return past, task.manifest
    told = p.chain
    if remedy == "replay" and not told.replay.share:
        return past, task.manifest
    if remedy == "replay":
        again = [_kept(p, step, one, path) for step, one, path in earlier if _same(one, task)]
        words = f"replay {told.replay.model_dump_json()}"
        return replace(past, remedy=words), pd.concat([task.manifest, *again], ignore_index=True)
    keys = [read_checkpoint(path)["key"] for _, _, path in earlier]
    words = f"{remedy} {told.model_dump_json(include={remedy})} {keys}"
    return replace(
        past, remedy=words, retain=lambda: _bond(p, remedy, earlier, past)
    ), task.manifest


def per_aspect(step: ChainStep, chain: Chain, remedy: str) -> Stage3b:
    """A step's settings where each aspect has LoRA (`lora`) or deep prompts (`vpt`) of its own.

    The tower is frozen; losses, epochs and batches are the recipe's.
    """
    told = chain.per_aspect
    usual = {name: getattr(step.settings, name) for name in Training.model_fields}
    if not step.settings.losses:
        raise ParamError(f"chain.remedies: {remedy} needs a recipe with losses of its own")
    adapt = Adapt(lora=told.rank) if remedy == "lora" else Adapt(prompts=told.tokens)
    frozen = {"unfreeze_blocks": 0, "gradual": None, "head_epochs": 0, "weight_decay": 0.0}
    return Stage3b(
        **usual | frozen | {"lr": told.lr, "head_lr": 1.0, "text": "none", "adapt": adapt}
    )


@dataclass(frozen=True)
class Sweep:
    """WiSE-FT's weights between start (0) and end (1). alpha: the one that is kept; how: in words.

    held: by alpha, mAP of held-out training persons, NaN without; answers: {alpha: {task:
    `per_query`}} of the test's queries, which choose nothing.
    """

    alpha: float
    how: str
    held: Mapping[str, float]
    answers: Mapping[str, Mapping[str, pd.DataFrame]]


def wise_ft(
    p: Params,
    tasks: Mapping[str, Task],
    states: Sequence[State],
    folder: Path,
    fabric: lf.Fabric,
) -> tuple[tuple[State, ...], Sweep]:
    """Each step's weights, drawn towards those before the chain; nothing is trained.

    alpha, the share of the trained weights, is the one of `p.chain.wise_ft` with the best mean mAP
    of held-out training persons over the tasks after the last step (of equals the larger); without
    such persons 0.5. Wortsman et al. 2022, arXiv:2109.01903.
    """
    encoder, ends = study_encoder(p), _ends(p, [None, states[-1].file])
    held, found = dict[str, float](), dict[str, dict[str, pd.DataFrame]]()
    for alpha in p.chain.wise_ft:
        _blend(p, encoder, ends, alpha, tasks)
        seen = {
            n: (t.images, unit_features(encoder, t, t.images, fabric)) for n, t in tasks.items()
        }
        found[f"{alpha:g}"] = answers({"": seen}, tasks)[""]
        held[f"{alpha:g}"] = _held(encoder, tasks, fabric)
    if np.isfinite(list(held.values())).all():
        alpha = max(p.chain.wise_ft, key=lambda a: (held[f"{a:g}"], a))
        how = "by the mAP of held-out training persons"
    else:
        alpha, how = 0.5, "beforehand: no training persons are held out to choose it"
    made = [states[0]]
    for k, state in enumerate(states[1:], 1):
        path = _kept_as(p, tasks, [None, state.file], alpha, folder / f"step{k}.pth")
        made.append(State(state.name, path))
    return tuple(made), Sweep(alpha, how, held, found)


def checkpoint_soup(
    p: Params, tasks: Mapping[str, Task], states: Sequence[State], folder: Path
) -> tuple[State, ...]:
    """After each step the mean of the weights of all steps so far; nothing is trained."""
    made, files = [states[0]], []
    for k, state in enumerate(states[1:], 1):
        files.append(state.file)
        path = _kept_as(p, tasks, files, None, folder / f"step{k}.pth")
        made.append(State(state.name, path))
    return tuple(made)


def _same(one: Task, other: Task) -> bool:
    return one.p.data == other.p.data


def _kept(p: Params, step: ChainStep, task: Task, path: Path) -> pd.DataFrame:
    """The photographs of a step that are shown again, chosen by the features after it."""
    rows = task.manifest[task.manifest["split"] == "train"]
    encoder, fabric = encoder_from(task.p, path), make_fabric(task.p)
    z = unit_features(encoder, task, rows["image"].tolist(), fabric)
    return exemplars(rows, z, p.chain.replay, p.seed).assign(split="replay")


def _bond(p: Params, remedy: str, earlier: Sequence[Earlier], past: Past) -> Retain:
    """What holds a step to the weights that the last earlier one left."""
    _, task, path = earlier[-1]
    visual = encoder_from(task.p, path).visual
    if remedy == "lwf":
        return lwf(visual, p.chain.lwf, p.evaluation.feature)
    if remedy == "l2_sp":
        return l2_sp(visual, p.chain.l2_sp)
    total = None
    for step, one, file in earlier:
        found = normalised(_importance(p, step, one, file, past))
        total = online(total, found, p.chain.ewc.decay)
    assert total is not None
    return ewc(visual, total, p.chain.ewc.weight)


def _importance(
    p: Params, step: ChainStep, task: Task, path: Path, past: Past
) -> dict[str, torch.Tensor]:
    """How much each weight of a step's tower matters to telling its training persons apart."""
    fabric, settings = make_fabric(task.p, training=True), step.settings
    encoder, held = encoder_from(task.p, path), read_checkpoint(path)
    classes = past.classes or classes_of(p.split.identity, [task.manifest])
    if not settings.losses:
        raise ParamError("chain.remedies: ewc needs a recipe with a classifier")
    criterion = build_loss(
        settings.losses, len(classes), encoder.dims, settings.loss_balance, settings.projection
    )
    criterion.load_state_dict(held["heads"])
    fabric.to_device(encoder)
    fabric.to_device(criterion.eval())
    rows = task.manifest[task.manifest["split"] == "train"]
    order = np.random.default_rng(p.seed).permutation(len(rows))[: p.chain.ewc.images]
    rows = rows.iloc[np.sort(order)]
    store = open_store(task.table, encoder.preprocess)
    pixels, labels = store.pixels(rows["image"].tolist()), torch.from_numpy(classes.labels(rows))

    def loss_of(told: Features, label: torch.Tensor) -> torch.Tensor:
        logits = criterion.logits(told)
        if logits is None:
            raise ParamError("chain.remedies: ewc needs a recipe with a classifier")
        return functional.cross_entropy(logits, label)

    images = (
        (encoder.preprocess.normalise(pixels[i : i + 1].to(fabric.device)), labels[i : i + 1])
        for i in range(len(rows))
    )
    each = ((image, label.to(fabric.device)) for image, label in images)
    return {n: v.cpu() for n, v in fisher(encoder.visual, loss_of, each).items()}


def _ends(p: Params, files: Sequence[Path | None]) -> list[dict[str, torch.Tensor]]:
    """The weights of some files, None being the study's own tower."""
    ends = [encoder_from(p, file) for file in files]
    if any(end.adapter is not None for end in ends):
        raise ParamError("chain.remedies: wise_ft and soup are for towers without an adapter")
    return [end.model.state_dict() for end in ends]


def _blend(
    p: Params,
    encoder: Encoder,
    ends: Sequence[dict[str, torch.Tensor]],
    alpha: float | None,
    tasks: Mapping[str, Task],
) -> None:
    """Fill the encoder between the first and the last of some weights; without alpha by their mean.

    BatchNorms take their statistics anew from the training photographs, but at the two ends.
    """
    mean = alpha is None
    encoder.model.load_state_dict(
        soup.average(ends) if alpha is None else soup.interpolate(ends[0], ends[-1], alpha)
    )
    if (mean and len(ends) > 1) or (not mean and alpha not in (0, 1)):
        fabric = make_fabric(p)
        fabric.to_device(encoder)
        soup.reestimate_bn(encoder.visual, _training_batches(p, encoder, tasks, fabric))


def _training_batches(
    p: Params, encoder: Encoder, tasks: Mapping[str, Task], fabric: lf.Fabric
) -> Any:
    """Normalised training photographs of all tasks of the study's data, a batch at a time."""
    for task in (task for task in tasks.values() if task.p.data == p.data):
        names = task.manifest.loc[task.manifest["split"] == "train", "image"].tolist()
        store = open_store(task.table, encoder.preprocess)
        for at in range(0, len(names), p.evaluation.batch_size):
            pixels = store.pixels(names[at : at + p.evaluation.batch_size])
            yield encoder.preprocess.normalise(pixels.to(fabric.device))


def _kept_as(
    p: Params,
    tasks: Mapping[str, Task],
    files: Sequence[Path | None],
    alpha: float | None,
    path: Path,
) -> Path:
    """The blend as a weights file, made anew where it was made of others."""
    keys = [read_checkpoint(file)["key"] if file else "" for file in files]
    key = hashlib.sha256(f"{keys} {alpha}".encode()).hexdigest()
    if path.is_file() and read_checkpoint(path)["key"] == key:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    taught: dict[str, Any] = {}
    for file in filter(None, files):
        for dataset, people in read_checkpoint(file)["taught"].items():
            taught[dataset] = sorted({*taught.get(dataset, []), *people})
    encoder = study_encoder(p)
    _blend(p, encoder, _ends(p, files), alpha, tasks)
    parent = read_checkpoint(files[-1])["sha256"] if files[-1] else ""
    more = {"taught": taught, "facts": {"alpha": alpha}}
    return save_checkpoint(path, encoder, p.model_dump(mode="json"), parent, key, more)


def _held(encoder: Encoder, tasks: Mapping[str, Task], fabric: lf.Fabric) -> float:
    """mAP among the held-out training persons, a mean over tasks; NaN without any."""
    found = []
    for task in tasks.values():
        rows = held_manifests(task.manifest)
        if rows:
            images = task.manifest.loc[task.manifest["split"] == "select", "image"].tolist()
            z = unit_features(encoder, task, images, fabric)
            found.append(held_scores(z, images, rows)[SELECT])
    return float(np.mean(found)) if found else float("nan")
