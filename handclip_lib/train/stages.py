"""The stages of fine-tuning: each takes an encoder, a manifest and parameters, and trains it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from handclip_lib.data.atomic import write_whole
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.clip import load_comparator
from handclip_lib.params import resolve, stage2_variants
from handclip_lib.schema import Params
from handclip_lib.schema_train import Stage2, Training
from handclip_lib.train.guided import Learnt, stage3a, stage3b
from handclip_lib.train.job import (
    Job,
    Trained,
    comparator_job,
    encoder_from,
    home_of,
    job_of,
    study_encoder,
)
from handclip_lib.train.pretrain import pretrained_weights, pretraining_folders
from handclip_lib.train.training import train

__all__ = [
    "Learnt",
    "Trained",
    "best_stage2",
    "encoder_from",
    "stage1",
    "stage1_start",
    "stage1_weights",
    "stage2",
    "stage3_start",
    "stage3a",
    "stage3b",
    "study_encoder",
    "trainable",
]


def stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Trained:
    """Fine-tune the image tower on identities, by `p.stage1`; the text tower stays as it is.

    It starts from the weights that `p.stage1.pretrain` names, which are made where they are
    missing, else from the study's own.
    folder: the run folder; history.csv and checkpoints/stage1.pth are written there. A killed run
    goes on where it was; weights that are there already, made by the same parameters, data and
    code, are taken. CLIP-ReID's baseline, Li et al. 2023, arXiv:2211.13977, section 3.
    """
    return train(_stage1(p, table, manifest, folder))


def stage1_start(p: Params, table: pd.DataFrame, folder: Path) -> Path | None:
    """The weights that `p.stage1.pretrain` names, found or made; None: the tower as it is.

    folder: a run folder of this study, aspect and seed, beside which they lie.
    """
    if not p.stage1.pretrain:
        return None
    return pretrained_weights(p, table, pretraining_folders(p, folder))


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
    job = _stage1(p, table, manifest, folders[-1])
    folder = home_of(job, folders)
    path = folder / "checkpoints" / "stage1.pth"
    if path.is_file() and read_checkpoint(path)["key"] == job.key:
        return path
    print(f"no stage 1 of study {p.study} with these parameters, data and code: training it first")
    return stage1(p, table, manifest, folder).checkpoint


def stage2(
    p: Params,
    name: str,
    settings: Stage2,
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Trained:
    """One variant of stage 2, by `settings`, from the weights in `start`.

    The comparator starts from its own. Leaves checkpoints/<name>.pth and its rows of history.csv in
    `folder`; otherwise as stage 1.
    """
    trained = train(_stage2(p, name, settings, start, table, manifest, folder))
    if p.stage2.save_dir:
        target = resolve(p.stage2.save_dir)
        target.mkdir(parents=True, exist_ok=True)
        words = (p.experiment or p.study, p.tag, p.aspect, f"seed{p.seed}", name)
        own = "_".join(filter(None, words)) + ".pth"
        write_whole(target / own, trained.checkpoint.read_bytes())
    return trained


def trainable(p: Params) -> dict[str, Stage2]:
    """The variants of stage 2 that can be trained here.

    MBA-Net's are left out, which is printed with what to do, where the weights that it starts from
    are not on this machine and cannot be fetched: before any other has been trained.
    """
    told = stage2_variants(p)
    others = [name for name, settings in told.items() if settings.tower == "comparator"]
    if not others:
        return told
    try:
        load_comparator(p.comparator)
    except ConnectionError as error:
        print(f"{', '.join(others)} left out: {error}")
        return {name: settings for name, settings in told.items() if name not in others}
    return told


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
    then it is the first, which is said. Empty where the study trains no variant of its tower.
    """
    found: dict[str, Trained] = {}
    own = {n: told for n, told in stage2_variants(p).items() if told.tower == "study"}
    for name, settings in own.items():
        folder = home_of(_stage2(p, name, settings, start, table, manifest, Path()), folders)
        found[name] = stage2(p, name, settings, start, table, manifest, folder)
    if not found:
        return {}

    def score(name: str) -> float:
        column = found[name].facts["selected_by"]
        return float(found[name].history[column].max()) if column else 0.0

    best = max(found, key=score)  # of equals the first
    if not found[best].facts["selected_by"]:
        print("too few persons are held out to choose a variant of stage 2: the first is taken")
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


def _stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Job[Training]:
    start = stage1_start(p, table, folder)
    return job_of("stage1", p.stage1, p, start, table, manifest, folder)


def _stage2(
    p: Params,
    name: str,
    settings: Stage2,
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Job[Training]:
    if settings.tower == "comparator":
        return comparator_job(name, settings, p, table, manifest, folder)
    return job_of(name, settings, p, start, table, manifest, folder)
