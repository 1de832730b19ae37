"""The stages of fine-tuning: each takes an encoder, a manifest and parameters, and trains it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from handclip_lib.data.atomic import write_whole
from handclip_lib.device import make_fabric
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.params import resolve
from handclip_lib.schema import Params
from handclip_lib.schema_train import LossSpec
from handclip_lib.train.fit import clear, fit, read_history
from handclip_lib.train.job import Job, Trained, check_start, study_encoder
from handclip_lib.train.learner import Learner, check_losses, class_means, encode, pictures
from handclip_lib.train.recipe import make_recipe, prepared
from handclip_lib.train.selection import scorer

__all__ = ["Trained", "stage1", "stage1_weights", "stage2"]


def stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Trained:
    """Fine-tune the image tower on identities, by `p.stage1`; the text tower stays as it is.

    folder: the run folder; history.csv and checkpoints/stage1.pth are written there. A killed run
    goes on where it was; weights that are there already, made by the same parameters, data and
    code, are taken. CLIP-ReID's baseline, Li et al. 2023, arXiv:2211.13977, section 3.
    """
    return _train(_stage1(p, table, manifest, folder))


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
    key = _stage1(p, table, manifest, Path()).key
    paths = [folder / "checkpoints" / "stage1.pth" for folder in folders]
    for path in (path for path in paths if path.is_file()):
        if read_checkpoint(path)["key"] == key:
            return path
    print(f"no stage 1 of study {p.study} with these parameters, data and code: training it first")
    home = folders[0] if paths[-1].is_file() else folders[-1]
    return stage1(p, table, manifest, home).checkpoint


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
    encoder = study_encoder(p)
    load_weights(encoder, start)
    settings = p.stage2.model_copy(update={"losses": tuple(losses)})
    fabric = make_fabric(p, training=True)
    trained = _train(Job(name, settings, p, encoder, table, manifest, fabric, folder, start))
    if p.stage2.save_dir:
        target = resolve(p.stage2.save_dir)
        target.mkdir(parents=True, exist_ok=True)
        words = (p.experiment or p.study, p.tag, p.aspect, f"seed{p.seed}", name)
        own = "_".join(filter(None, words)) + ".pth"
        write_whole(target / own, trained.checkpoint.read_bytes())
    return trained


def _stage1(p: Params, table: pd.DataFrame, manifest: pd.DataFrame, folder: Path) -> Job:
    fabric = make_fabric(p, training=True)
    return Job("stage1", p.stage1, p, study_encoder(p), table, manifest, fabric, folder)


def _train(job: Job) -> Trained:
    """Train, or take what was trained before with the same key; leaves checkpoints/<name>.pth."""
    folder = job.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, key, parent = folder / f"{job.name}.pth", job.key, job.encoder.weights_sha256
    with FileLock(folder / f".{job.name}.lock"):
        taught = check_start(job)
        held = read_checkpoint(path) if path.is_file() else None
        if held and held["key"] == key:
            print(f"{job.name}: trained before, by the same parameters, data and code: {path}")
            load_weights(job.encoder, path)
            history = read_history(job.folder, job.name)
            return Trained(job.encoder.eval(), history, path, held["facts"])
        began = time.monotonic()
        history, facts = _fitted(job, key)
        facts["seconds"] = round(time.monotonic() - began, 2)
        params = job.p.model_dump(mode="json")
        more = {"facts": facts, "taught": taught}
        save_checkpoint(path, job.encoder, params, parent, key, more)
        clear(job.folder, job.name)
    return Trained(job.encoder.eval(), history, path, facts)


def _fitted(job: Job, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train the job's encoder; its history and facts."""
    fabric, store = job.fabric, job.store
    people = sorted(job.manifest.loc[job.manifest["split"] == "train", "pid"].unique())
    classes = {int(pid): label for label, pid in enumerate(people)}
    data = pictures(job.manifest, "train", store, fabric, classes)
    criterion, settings = prepared(job.settings, job.encoder, len(classes))
    job = replace(job, settings=settings)
    check_losses(criterion, job.encoder.dims, len(classes))
    learner = Learner(job.encoder, criterion, len(classes), job.p.device.compile)
    fabric.to_device(learner)
    if criterion.has_centers:
        z = encode(learner, data.pixels, store.preprocess, fabric, job.p.evaluation.batch_size)
        criterion.start_centers(class_means(z, data.labels, len(classes)))
    validate, select = scorer(job.p, job.manifest, store, fabric, classes)
    recipe = make_recipe(job, learner, data, validate, select, key)
    history = fit(recipe, settings, fabric, job.folder)
    facts = {
        "images": len(data.images),
        "persons": len(classes),
        "epochs": len(history),
        "chosen_epoch": history.attrs["chosen_epoch"],
        "selected_by": select,
    }
    return history, facts
