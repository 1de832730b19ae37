"""Stage 3: words learned for persons (3a), and image towers that texts guide (3b)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from handclip_lib.device import seed_step
from handclip_lib.models.adapters import adapt
from handclip_lib.models.prompts import attribute_words
from handclip_lib.models.promptsg import Composer
from handclip_lib.params import ParamError
from handclip_lib.schema import Params
from handclip_lib.schema_train import Stage3b, Training
from handclip_lib.train.guide import Guide, bank_of
from handclip_lib.train.job import Job, Past, Trained, job_of
from handclip_lib.train.prompting import Learnt, learn_prompts, people_of, prompt_template
from handclip_lib.train.training import train

Words = tuple[tuple[int, ...], torch.Tensor]  # whose, and (C, E) features of what was learnt


def stage3a(
    p: Params,
    start: Path | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
    name: str = "prompts",
) -> Learnt:
    """Learn a prompt for each training person, by `p.stage3a`; both towers stay as they are.

    start: weights to begin from, None is the study's own tower. Leaves checkpoints/<name>.pth and
    its rows of history.csv in `folder`; otherwise as stage 1.
    """
    return learn_prompts(job_of(name, p.stage3a, p, start, table, manifest, folder))


def stage3b(
    p: Params,
    name: str,
    settings: Stage3b,
    start: Path | None,
    learnt: Learnt | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
    past: Past | None = None,
) -> Trained:
    """Tune the image tower against texts, by `settings`, from the weights in `start`.

    learnt: stage 3a of the same start, for `text: prompts`. Leaves checkpoints/<name>.pth and its
    rows of history.csv in `folder`; otherwise as stage 1. Prompts, descriptions and pseudo-words
    guide the training alone: features of images never need them, nor a label. CLIP-ReID's second
    stage, Li et al. 2023, arXiv:2211.13977, section 3.3; PromptSG, Yang et al. 2024.
    """
    if settings.text == "prompts" and learnt is None:
        raise ParamError(f"{name}: text prompts needs those of stage 3a")
    words = None
    if learnt is not None:
        words = (learnt.pids, learnt.after if settings.similarity == "cosine" else learnt.raw)
    return train(_job(p, name, settings, start, words, table, manifest, folder, past))


def _job(
    p: Params,
    name: str,
    settings: Stage3b,
    start: Path | None,
    words: Words | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
    past: Past | None,
) -> Job[Training]:
    """Stage 3b's training: the encoder with its adapter, and what makes its texts."""
    again = partial(_job, p, name, settings, start, words, table, manifest, folder, past)
    job: Job[Training] = job_of(name, settings, p, start, table, manifest, folder, past)
    seed_step(p.seed, 0)
    view = settings.adapt.view
    if view != "none" and view not in table:
        raise ParamError(f"{name}: adapt.view {view} needs this column; the data has none")
    seen = table[table["image"].isin(manifest.loc[manifest["split"] == "train", "image"])]
    views = () if view == "none" else sorted(map(str, seen[view].dropna().unique()))
    mine = job.encoder.adapter
    if mine is None or mine.told != settings.adapt:
        job = replace(job, parent=job.encoder.weights_sha256)
        adapt(job.encoder, settings.adapt, views)
    return replace(job, guide=_guide(job, settings, words), again=again)


def _guide(job: Job[Training], settings: Stage3b, words: Words | None) -> Guide | None:
    """What makes the texts of a job; None where none are asked for."""
    scale, unit = job.encoder.logit_scale, settings.similarity == "cosine"
    if settings.text == "none":
        return None
    if settings.text == "pseudo":
        template = prompt_template(settings.template, job.p.aspect)
        composer = Composer(job.encoder, template, settings.style, settings.interact, unit)
        return Guide(settings, scale, composer=composer)
    people = people_of(job)
    if len(people) < len(job.classes):
        raise ParamError(
            f"{job.name}: there are texts for those who train here alone; with text"
            f" {settings.text} a chain has classes: step, and no replay"
        )
    if settings.text == "prompts":
        assert words is not None
        pids, bank = words
        if pids != tuple(people.index):
            raise ValueError(f"{job.name}: these prompts are of other training persons")
        return Guide(settings, scale, bank, torch.arange(len(bank)))
    numbers = [f"person {pid}" for pid in people.index]
    names = attribute_words(people) if settings.text == "attributes" else numbers
    texts = [
        prompt_template(settings.template, aspect).replace("{person}", word)
        for aspect, word in zip(people["aspect"], names, strict=True)
    ]
    return Guide(settings, scale, *bank_of(job.encoder, texts, unit))
