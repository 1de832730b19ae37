"""A whole study: its notebooks for every aspect, seed and variant, several at a time.

Snakemake runs what is to be done, in an order in which a run finds what it takes from others; the
pages and tables are made in the end.
"""

import os
from collections.abc import Sequence

import torch

from handclip_lib.params import ParamError, study_path
from handclip_lib.report import estimate, workflow
from handclip_lib.report.index import write_index
from handclip_lib.report.plan import Task, needed, plan, remaining
from handclip_lib.report.runs import reports_root
from handclip_lib.schema import Params


def run_study(
    study: str,
    notebooks: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    others: Sequence[str] | None = None,
    executor: str = "local",
    gpus: str | None = None,
) -> int:
    """Run what is missing of a study and write its index; 0 when nothing failed, else 1.

    notebooks: names or paths, by default the study's, else the numbered ones; aspects: by default
    all that the data has; seeds: by default the study's, else 0; others: the notebooks of all
    aspects but the first, by default the same. A sweep is run as it is and with
    each of its variants. `jobs` runs at a time (by default one a core, one on a GPU, one a GPU with
    `gpus`); a run that takes what another leaves waits for it. A run that fails does not stop the
    others. dry_run only says what would be run, and how long it may take. executor: a profile of
    Snakemake, by name or folder; gpus: ids such as `0,1`, each of which one run has at a time.
    """
    tasks = plan(study, notebooks, aspects, seeds, others)
    todo = remaining(tasks, force, dry_run)
    before = {t.key: [other.key for other in needed(t, todo)] for t in todo}
    first = tasks[0].params
    each = max(1, *(workflow.gpus_of(task.params) for task in tasks))
    how = _how(executor, gpus, jobs, first, each, estimate.widest(before))
    if dry_run:
        return _tell(todo, before, how.jobs or max(1, len(todo)))
    try:
        failed = _run(todo, before, how, _portable(study)) if todo else []
    finally:  # what was done before Ctrl-C is shown, too
        if any((task.folder / "metrics.json").is_file() for task in tasks):
            print(f"index: {write_index(first)}")
    if failed:
        print(f"{len(failed)} of {len(todo)} runs failed:")
        for task in failed:
            print(f"  {task.name}: {task.folder}")
    return 1 if failed else 0


def _tell(todo: Sequence[Task], before: dict[str, list[str]], jobs: int) -> int:
    words, whole = estimate.told(todo, before, jobs)
    for task in todo:
        print(f"would run    {task.name}  {words[task.key]}")
    print(whole)
    return 0


def _run(
    todo: Sequence[Task], before: dict[str, list[str]], how: workflow.How, study: str
) -> list[Task]:
    workflow.check_installed(how)
    p = todo[0].params
    with workflow.working_folder(reports_root(p).absolute() / p.study) as folder:
        return workflow.carry_out(folder, todo, before, study, how)


def _how(
    executor: str, gpus: str | None, jobs: int | None, p: Params, each: int, widest: int
) -> workflow.How:
    """What a study is run with; each: the most GPUs that a run takes; widest: the most runs that
    can be under way at a time.
    """
    executor = "gpus" if gpus is not None and executor == "local" else executor
    profile = workflow.find_profile(executor)
    if gpus is not None and profile.name != "gpus":
        raise ParamError(f"--gpus is for this machine's; --executor {executor} deals its own")
    if profile.name not in workflow.LOCAL:
        return workflow.How(profile, jobs or 0)
    ids = workflow.gpus_here(gpus, torch.cuda.device_count()) if profile.name == "gpus" else ()
    if ids and len(ids) < each:
        raise ParamError(f"device.devices: a run takes {each} GPUs, and there are {len(ids)}")
    places = len(ids) // each or _default_jobs(p)
    most = max(1, min(jobs or places, widest, places if ids else widest))
    return workflow.How(profile, most, max(1, _cores() // most), ids)


def _portable(study: str) -> str:
    """The study as a child started from any folder finds it."""
    is_path = study.endswith((".yaml", ".yml")) or os.sep in study
    return str(study_path(study)) if is_path else study


def _default_jobs(p: Params) -> int:
    is_gpu = p.device.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    return 1 if is_gpu else _cores()


def _cores() -> int:
    counted = getattr(os, "sched_getaffinity", None)  # Linux; a container may have few of many
    return len(counted(0)) if counted else os.cpu_count() or 1
