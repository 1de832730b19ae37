"""What holds a step of a chain to those before it: photographs, features, weights."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.losses import build_loss
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.towers import Features
from handclip_lib.params import ChainStep, ParamError
from handclip_lib.schema import Params
from handclip_lib.schema_chain import Chain
from handclip_lib.schema_train import Adapt, Stage3b, Training
from handclip_lib.train.classes import classes_of
from handclip_lib.train.job import Past, encoder_from
from handclip_lib.train.replay import exemplars
from handclip_lib.train.retain import Retain, ewc, fisher, l2_sp, lwf, normalised, online
from handclip_lib.train.states import Task, unit_features

Earlier = tuple[ChainStep, Task, Path]  # a step that is done, and its weights


def remedied(
    p: Params,
    remedy: str,
    task: Task,
    earlier: Sequence[Earlier],
    past: Past,
    tested: Collection[int] = (),
) -> tuple[Past, pd.DataFrame]:
    """What a step brings along under a remedy, and the rows it trains on.

    At the first step there is nothing to forget, and nothing is done. replay: photographs of
    earlier steps are added (split `replay`), none of this step's own and none of persons who are
    `tested`; lwf, l2_sp, ewc: a bond to the weights it starts from.
    """
    if not remedy or not earlier:
        return past, task.manifest
    told = p.chain
    if remedy == "replay" and not told.replay.share:
        return past, task.manifest
    if remedy == "replay":
        again = pd.concat([_kept(p, step, one, path) for step, one, path in earlier])
        again = again[~again["image"].isin(task.manifest["image"]) & ~again["pid"].isin(tested)]
        words = f"replay {told.replay.model_dump_json()}"
        rows = pd.concat([task.manifest, again.drop_duplicates("image")], ignore_index=True)
        return replace(past, remedy=words), rows
    keys = [read_checkpoint(path)["key"] for _, _, path in earlier]
    words = f"{remedy} {told.model_dump_json(include={remedy})} {keys}"
    bond = partial(_bond, p, remedy, earlier, past)  # other processes take it, too
    return replace(past, remedy=words, retain=bond), task.manifest


def per_aspect(step: ChainStep, chain: Chain, remedy: str) -> Stage3b:
    """A step's settings where each aspect has LoRA (`lora`) or deep prompts (`vpt`) of its own.

    The tower is frozen; losses, epochs and batches are the recipe's.
    """
    told = chain.per_aspect
    usual = {name: getattr(step.settings, name) for name in Training.model_fields}
    adapt = Adapt(lora=told.rank) if remedy == "lora" else Adapt(prompts=told.tokens)
    frozen = {"unfreeze_blocks": 0, "gradual": None, "head_epochs": 0, "weight_decay": 0.0}
    return Stage3b(
        **usual | frozen | {"lr": told.lr, "head_lr": 1.0, "text": "none", "adapt": adapt}
    )


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

    each = (
        (
            encoder.preprocess.normalise(pixels[i : i + 1].to(fabric.device)),
            labels[i : i + 1].to(fabric.device),
        )
        for i in range(len(rows))
    )
    return {n: v.cpu() for n, v in fisher(encoder.visual, loss_of, each).items()}
