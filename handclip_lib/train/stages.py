"""The stages of fine-tuning: each takes an encoder, a manifest and parameters, and trains it."""

from collections.abc import Sequence
from pathlib import Path

import lightning_fabric as lf
import pandas as pd

from handclip_lib.data.atomic import write_whole
from handclip_lib.models.checkpoint import load_weights, read_checkpoint
from handclip_lib.params import resolve
from handclip_lib.schema import Params
from handclip_lib.schema_train import LossSpec
from handclip_lib.train.job import Job, Trained, study_encoder, train_job

__all__ = ["Trained", "stage1", "stage1_weights", "stage2"]


def stage1(
    p: Params, table: pd.DataFrame, manifest: pd.DataFrame, fabric: lf.Fabric, folder: Path
) -> Trained:
    """Fine-tune the image tower on identities, by `p.stage1`; the text tower stays as it is.

    folder: the run folder; history.csv and checkpoints/stage1.pth are written there. A killed run
    goes on where it was; weights that are there already, made by the same parameters, data and
    code, are taken. CLIP-ReID's baseline, Li et al. 2023, arXiv:2211.13977, section 3.
    """
    encoder = study_encoder(p)
    return train_job(Job("stage1", p.stage1, p, encoder, table, manifest, fabric, folder))


def stage1_weights(
    p: Params,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    fabric: lf.Fabric,
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
    key = Job("stage1", p.stage1, p, study_encoder(p), table, manifest, fabric, Path()).key
    paths = [folder / "checkpoints" / "stage1.pth" for folder in folders]
    for path in (path for path in paths if path.is_file()):
        if read_checkpoint(path)["key"] == key:
            return path
    print(f"no stage 1 of study {p.study} with these parameters, data and code: training it first")
    home = folders[0] if paths[-1].is_file() else folders[-1]
    return stage1(p, table, manifest, fabric, home).checkpoint


def stage2(
    p: Params,
    name: str,
    losses: Sequence[LossSpec],
    start: Path,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    fabric: lf.Fabric,
    folder: Path,
) -> Trained:
    """One variant of stage 2: `p.stage2` with these losses, from the weights in `start`.

    Leaves checkpoints/<name>.pth and its rows of history.csv in `folder`; otherwise as stage 1.
    """
    encoder = study_encoder(p)
    load_weights(encoder, start)
    settings = p.stage2.model_copy(update={"losses": tuple(losses)})
    trained = train_job(Job(name, settings, p, encoder, table, manifest, fabric, folder))
    if p.stage2.save_dir:
        target = resolve(p.stage2.save_dir)
        target.mkdir(parents=True, exist_ok=True)
        own = f"{p.experiment or p.study}_{p.aspect}_seed{p.seed}_{name}.pth"
        write_whole(target / own, trained.checkpoint.read_bytes())
    return trained
