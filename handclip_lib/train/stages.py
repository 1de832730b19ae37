"""The stages of fine-tuning: each takes an encoder, a manifest and parameters, and trains it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from handclip_lib.data.atomic import write_whole
from handclip_lib.device import make_fabric, seed_step
from handclip_lib.models.adapters import adapt
from handclip_lib.models.checkpoint import load_weights, read_checkpoint
from handclip_lib.models.clip import Encoder
from handclip_lib.models.prompts import attribute_words
from handclip_lib.models.promptsg import Composer
from handclip_lib.params import ParamError, loss_variants, resolve
from handclip_lib.schema import Params
from handclip_lib.schema_train import LossSpec, Stage3b, Training
from handclip_lib.train.guide import Guide, bank_of
from handclip_lib.train.job import Job, Settings, Trained, study_encoder
from handclip_lib.train.prompting import Learnt, learn_prompts, people_of, prompt_template
from handclip_lib.train.training import train

__all__ = [
    "Learnt",
    "Trained",
    "best_stage2",
    "encoder_from",
    "stage1",
    "stage1_weights",
    "stage2",
    "stage3_start",
    "stage3a",
    "stage3b",
]


def stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Trained:
    """Fine-tune the image tower on identities, by `p.stage1`; the text tower stays as it is.

    folder: the run folder; history.csv and checkpoints/stage1.pth are written there. A killed run
    goes on where it was; weights that are there already, made by the same parameters, data and
    code, are taken. CLIP-ReID's baseline, Li et al. 2023, arXiv:2211.13977, section 3.
    """
    return train(_stage1(p, table, manifest, folder))


def stage1_weights(
    p: Params,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folders: Sequence[Path],
) -> Path:
    """The weights that stage 2 starts from: `p.stage2.resume_from`, else the study's stage 1.

    folders: where stage 1 of this study may lie (`run.beside("02_stage1")`), the last one being
    the study's own. Where it is in none of them it is trained, and kept where notebook 02 would
    have left it. Raises FileNotFoundError on a file that was named and is missing.
    """
    if p.stage2.resume_from:
        path = resolve(p.stage2.resume_from)
        if not path.is_file():
            raise FileNotFoundError(
                f"stage2.resume_from: no file {path}; leave it empty to have stage 1 trained here"
            )
        return path
    job = _stage1(p, table, manifest, Path())
    folder = _home(job, folders)
    path = folder / "checkpoints" / "stage1.pth"
    if path.is_file() and read_checkpoint(path)["key"] == job.key:
        return path
    print(f"no stage 1 of study {p.study} with these parameters, data and code: training it first")
    return stage1(p, table, manifest, folder).checkpoint


def stage2(
    p: Params,
    name: str,
    losses: Sequence[LossSpec],
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Trained:
    """One variant of stage 2: `p.stage2` with these losses, from the weights in `start`.

    Leaves checkpoints/<name>.pth and its rows of history.csv in `folder`; otherwise as stage 1.
    """
    trained = train(_stage2(p, name, losses, start, table, manifest, folder))
    if p.stage2.save_dir:
        target = resolve(p.stage2.save_dir)
        target.mkdir(parents=True, exist_ok=True)
        words = (p.experiment or p.study, p.tag, p.aspect, f"seed{p.seed}", name)
        own = "_".join(filter(None, words)) + ".pth"
        write_whole(target / own, trained.checkpoint.read_bytes())
    return trained


def encoder_from(p: Params, path: Path) -> Encoder:
    """The study's encoder with the weights of a file."""
    encoder = study_encoder(p)
    load_weights(encoder, path)
    return encoder


def best_stage2(
    p: Params,
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folders: Sequence[Path],
) -> dict[str, Trained]:
    """The variant of stage 2 that held-out training persons prefer, by its name.

    folders: as in `stage1_weights`, of notebook 03; variants that are in none of them are trained,
    and kept where that notebook would have left them. Without held-out persons nothing may choose:
    then it is the first, which is said. Empty where the study trains no variant.
    """
    found: dict[str, Trained] = {}
    for name, losses in loss_variants(p).items():
        folder = _home(_stage2(p, name, losses, start, table, manifest, Path()), folders)
        found[name] = stage2(p, name, losses, start, table, manifest, folder)
    if not found:
        return {}

    def score(name: str) -> float:
        column = found[name].facts["selected_by"]
        return float(found[name].history[column].max()) if column else 0.0

    best = max(found, key=score)  # of equals the first
    if not found[best].facts["selected_by"]:
        print("no training persons are held out to choose a variant of stage 2: the first is taken")
    return {best: found[best]}


def stage3_start(
    p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folders: Sequence[Path]
) -> Path | None:
    """The weights that all of stage 3 starts from, by `stage3a.start`; None: the tower as it is.

    folders: as in `stage1_weights`.
    """
    if p.stage3a.start == "pretrained":
        return None
    return stage1_weights(p, table, manifest, folders)


def stage3a(
    p: Params, start: Path | None, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path
) -> Learnt:
    """Learn a prompt for each training person, by `p.stage3a`; both towers stay as they are.

    start: weights to begin from, None is the study's own tower. Leaves checkpoints/prompts.pth and
    its rows of history.csv in `folder`; otherwise as stage 1.
    """
    return learn_prompts(_job("prompts", p.stage3a, p, start, table, manifest, folder))


def stage3b(
    p: Params,
    name: str,
    settings: Stage3b,
    start: Path | None,
    learnt: Learnt | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Trained:
    """Tune the image tower against texts, by `settings`, from the weights in `start`.

    learnt: stage 3a of the same start, for `text: prompts`. Leaves checkpoints/<name>.pth and its
    rows of history.csv in `folder`; otherwise as stage 1. Prompts, descriptions and pseudo-words
    guide the training alone: features of images never need them, nor a label. CLIP-ReID's second
    stage, Li et al. 2023, arXiv:2211.13977, section 3.3; PromptSG, Yang et al. 2024.
    """
    job: Job[Training] = _job(name, settings, p, start, table, manifest, folder)
    seed_step(p.seed, 0)
    view = settings.adapt.view
    if view != "none" and view not in table:
        raise ParamError(f"{name}: adapt.view {view} needs this column; the data has none")
    seen = table[table["image"].isin(manifest.loc[manifest["split"] == "train", "image"])]
    views = () if view == "none" else sorted(map(str, seen[view].dropna().unique()))
    adapt(job.encoder, settings.adapt, views)
    return train(replace(job, guide=_guide(job, settings, learnt)))


def _guide(job: Job[Training], settings: Stage3b, learnt: Learnt | None) -> Guide | None:
    """What makes the texts of a job; None where none are asked for."""
    scale, unit = job.encoder.logit_scale, settings.similarity == "cosine"
    template = prompt_template(settings.template, job.p.aspect)
    if settings.text == "none":
        return None
    if settings.text == "pseudo":
        composer = Composer(job.encoder, template, settings.style, settings.interact, unit)
        return Guide(settings, scale, composer=composer)
    if settings.text == "prompts":
        if learnt is None:
            raise ParamError(f"{job.name}: text prompts needs those of stage 3a")
        if learnt.pids != tuple(people_of(job).index):
            raise ValueError(f"{job.name}: these prompts are of other training persons")
        bank = learnt.after if unit else learnt.raw
        return Guide(settings, scale, bank, torch.arange(len(bank)))
    people = people_of(job)
    numbers = [f"person {pid}" for pid in people.index]
    words = attribute_words(people) if settings.text == "attributes" else numbers
    texts = [template.replace("{person}", word) for word in words]
    return Guide(settings, scale, *bank_of(job.encoder, texts, unit))


def _stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Job[Training]:
    return _job("stage1", p.stage1, p, None, table, manifest, folder)


def _stage2(
    p: Params,
    name: str,
    losses: Sequence[LossSpec],
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Job[Training]:
    settings = p.stage2.model_copy(update={"losses": tuple(losses)})
    return _job(name, settings, p, start, table, manifest, folder)


def _home(job: Job[Training], folders: Sequence[Path]) -> Path:
    """Which of these folders holds what the job would make; else where it belongs.

    That is the last one, the study's own, unless that has other weights by this name.
    """
    paths = [folder / "checkpoints" / f"{job.name}.pth" for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if path.is_file() and read_checkpoint(path)["key"] == job.key:
            return folder
    return folders[0] if paths[-1].is_file() else folders[-1]


def _job(
    name: str,
    settings: Settings,
    p: Params,
    start: Path | None,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Job[Settings]:
    """A training of the study's tower, filled from `start` where there is one."""
    encoder = study_encoder(p) if start is None else encoder_from(p, start)
    fabric = make_fabric(p, training=True)
    return Job(name, settings, p, encoder, table, manifest, fabric, folder, start)
