"""Pre-training on the training persons' photographs of all aspects, before stage 1."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.leaks import check_leaks, persons
from handclip_lib.data.manifest import COLUMNS, TESTING, TRAINING, TooFew, order
from handclip_lib.data.splits import all_aspects
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.params import ParamError, pretrain_variants
from handclip_lib.schema import Params
from handclip_lib.schema_train import Pretrain, Training
from handclip_lib.train.job import Job, Trained, home_of, job_of
from handclip_lib.train.training import train
from handclip_lib.train.views import fit_views

NOTEBOOK = "08_pretrain"  # whose run folders hold the weights


def pretrain_manifest(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    """The photographs to learn from, of all aspects, in one manifest without query and gallery.

    split: `train`, `val` and `select` of the study's own splits, without whoever is tested in any
    aspect, whatever `p.split.mode` says; those who are learnt from bring their photographs with
    accessories along, as `train`. It does not depend on the aspect. Raises TooFew where nobody is
    left to learn from.
    """
    own = all_aspects(p, table, p.split.mode).values()
    rows = pd.concat(own)[list(COLUMNS)] if own else pd.DataFrame(columns=list(COLUMNS))
    tested = set(persons(rows.loc[rows["split"].isin(TESTING), "pid"]))
    pool = rows[rows["split"].isin(TRAINING) & ~rows["pid"].isin(tested)]
    learnt = set(pool.loc[pool["split"] != "select", "pid"])
    if len(learnt) < 2:
        raise TooFew(f"{len(learnt)} person to learn from: two are needed who are tested nowhere")
    worn = _with_accessories(table, learnt)
    return order([*pool.itertuples(index=False, name=None), *worn])


def check_pool(p: Params, table: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Raise SplitError, with names, where a manifest trains on who is tested in any aspect."""
    for told in all_aspects(p, table, p.split.mode).values():
        check_leaks(manifest, told[told["split"].isin(TESTING)], across=True)


def _with_accessories(
    table: pd.DataFrame, people: set[int]
) -> Iterator[tuple[str, int, int, str, str]]:
    """Rows of these persons' photographs that every split leaves out."""
    if "accessories" in table:
        worn = table[(table["accessories"] != 0) & table["pid"].isin(people)]
        for pid, aspect, image in zip(worn["pid"], worn["aspect"], worn["image"], strict=True):
            yield "train", -1, int(pid), str(aspect), str(image)


def pretrain(
    p: Params,
    name: str,
    settings: Pretrain,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Trained:
    """Train one of `pretrain_variants(p)` from the study's tower; leaves checkpoints/<name>.pth.

    manifest: of `pretrain_manifest`; SplitError on one that shows a test person. What is kept is
    start + alpha · (end - start); held-out training persons choose its epoch and alpha. A killed
    run goes on; what is there, made by the same parameters, data and code, is taken. It runs on
    one device, whatever `p.device.devices` says.
    facts: those of a stage, and `alpha`, `held` ({alpha: mAP of held-out persons}, empty without
    any), `labelled` (persons), `queue` (keys), `manifest_sha256`. Interpolation: Wortsman et al.
    2022, arXiv:2109.01903.
    """
    check_pool(p, table, manifest)
    return train(_job(p, name, settings, table, manifest, folder), partial(fit_views, settings))


def pretrained_weights(p: Params, table: pd.DataFrame, folders: Sequence[Path]) -> Path:
    """The weights that `p.stage1.pretrain` names, found in one of these run folders or made.

    folders: as of `pretraining_folders`. Raises ParamError where the study has no such variant.
    """
    name = p.stage1.pretrain
    settings, manifest = pretrain_variants(p)[name], pretrain_manifest(p, table)
    job = _job(p, name, settings, table, manifest, Path())
    folder = home_of(job, folders)
    path = folder / "checkpoints" / f"{name}.pth"
    if path.is_file() and read_checkpoint(path)["key"] == job.key:
        return path
    told = "with these parameters, data and code: training it first, for all aspects"
    print(f"no pre-training {name} of study {p.study} {told}")
    return pretrain(p, name, settings, table, manifest, folder).checkpoint


def pretraining_folders(p: Params, folder: Path) -> list[Path]:
    """Where pre-training of the same study and seed lies or would lie: one serves all aspects.

    folder: a run folder, <seed>/<aspect>/<notebook>[/<tag>]. First its own aspect's with its tag,
    last that without, between them what other aspects and tags have. A folder that is no run's is
    its own place.
    """
    above = [up for up in folder.absolute().parents[:2] if up.name in ASPECTS]
    if not above:
        return [folder]
    mine = above[0] / NOTEBOOK
    there = sorted(found.parent for found in above[0].parent.glob(f"*/{NOTEBOOK}/**/checkpoints"))
    return [mine / p.tag, *there, mine]


def _job(
    p: Params,
    name: str,
    settings: Training,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
) -> Job[Training]:
    """The training of one variant: the study's tower, of no aspect, on one device."""
    alone = p.model_copy(update={"device": p.device.model_copy(update={"devices": 1})})
    job = job_of(name, settings, alone, None, table, manifest, folder)
    if job.encoder.adapter is not None:
        raise ParamError("model: pre-training is for a tower without prompts, views, LoRA or parts")
    return job
