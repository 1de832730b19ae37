"""The runs of a study: which there are, which need others first, and which are still to be done.

What is done is not done again: a finished run stays that had today's parameters, notebook,
library and manifests, unless what it took from another run is to be made again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data import splits, tables
from handclip_lib.data.check import TableError
from handclip_lib.data.leaks import SplitError
from handclip_lib.params import ROOT, load, own_aspect, read_study
from handclip_lib.report.notebook import find_notebook
from handclip_lib.report.others import places
from handclip_lib.report.runs import differences, read_json, run_folder
from handclip_lib.report.stamp import library_sha256
from handclip_lib.schema import Params
from handclip_lib.train import chain, pretrain
from handclip_lib.train.states import in_chain

_FIRST = "00_splits"  # seconds, and it says what is wrong with the data
_ALONE = (_FIRST, "01_baseline")  # nothing of theirs is taken by others
_WEIGHTS = {"03_stage2_losses": "02_stage1", "04_prompt_learning": "02_stage1"}
_TAKE_ALL = ("06_eval_rerank", "07_explorer")  # whatever the others of an aspect and seed left
_ACROSS = (chain.NOTEBOOK, pretrain.NOTEBOOK)  # of all aspects at once
_LATER = {"stage1", "stage2", "stage3a", "stage3b", "chain", "comparison"}  # than pre-training


@dataclass(frozen=True)
class Task:
    """One notebook for one aspect, seed and variant."""

    notebook: Path
    params: Params

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return run_folder(self.notebook.stem, self.params)

    @property
    def key(self) -> str:
        """Its name in files, `02_stage1.dorsal_r.seed0.wide`."""
        p = self.params
        return ".".join(filter(None, (self.notebook.stem, p.aspect, f"seed{p.seed}", p.tag)))

    @property
    def name(self) -> str:
        """For the terminal."""
        p = self.params
        tag = f"  {p.tag}" if p.tag else ""
        return f"{self.notebook.stem}  {p.aspect}  seed {p.seed}{tag}"


def plan(
    study: str,
    notebooks: Sequence[str] | None,
    aspects: Sequence[str] | None,
    seeds: Sequence[int] | None,
    others: Sequence[str] | None = None,
) -> list[Task]:
    """All runs by seed, aspect, variant and notebook; those of all aspects are with the first.

    A variant that differs in later stages alone has no pre-training of its own. Arguments as of
    `study.run_study`. Raises ParamError and FileNotFoundError as `load` and `find_notebook` do,
    ValueError where two notebooks have one name.
    """
    told = read_study(study)
    files = list(dict.fromkeys(find_notebook(name) for name in notebooks or told.notebooks))
    files = files or sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise FileNotFoundError(f"{ROOT / 'notebooks'} has no numbered notebooks")
    brief = files if others is None else [find_notebook(name) for name in others]
    chosen = list(dict.fromkeys(aspects or _aspects(study)))
    tasks = [
        Task(f, load(aspect, study, seed, tag))
        for seed in dict.fromkeys(seeds or told.seeds or (0,))
        for place, aspect in enumerate(chosen)
        for tag in ("", *told.sweep)
        for f in (brief if place else files)
        if not (place and f.stem in _ACROSS)
        and not (tag and f.stem == pretrain.NOTEBOOK and told.sweep[tag].keys() <= _LATER)
    ]
    if len({task.folder for task in tasks}) < len(tasks):
        raise ValueError("two notebooks of one name would share their run folders; rename one")
    return tasks


def taken(task: Task, tasks: Sequence[Task]) -> list[Task]:
    """The runs among `tasks` that leave what this one takes: weights, or their results."""
    stem, p = task.notebook.stem, task.params
    of_seed = [other for other in tasks if other.params.seed == p.seed]
    if stem in _TAKE_ALL:
        left = [t for t in of_seed if t.notebook.stem not in (*_ALONE, *_TAKE_ALL)]
        return [t for t in left if t.params.aspect == p.aspect or t.notebook.stem in _ACROSS]
    makers = [t for t in of_seed if t.notebook.stem == _WEIGHTS.get(stem)]
    makers = [t for t in makers if t.params.aspect == p.aspect]
    if p.stage1.pretrain and not makers and stem in (*_WEIGHTS, *_WEIGHTS.values()):
        makers = [t for t in of_seed if t.notebook.stem == pretrain.NOTEBOOK]
    return [t for t in makers if t.params.tag == p.tag] or [t for t in makers if not t.params.tag]


def needed(task: Task, tasks: Sequence[Task]) -> list[Task]:
    """The runs among `tasks` to wait for: what it takes is theirs; else the splits come first."""
    stem, p = task.notebook.stem, task.params
    own = (p.aspect, p.seed, p.tag)
    return taken(task, tasks) or [
        t
        for t in tasks
        if t.notebook.stem == _FIRST != stem
        and (t.params.aspect, t.params.seed, t.params.tag) == own
    ]


def remaining(tasks: Sequence[Task], force: bool, dry_run: bool) -> list[Task]:
    """The runs to be done; the data is read here, so that a missing set is drawn."""
    finished = [task for task in tasks if not force and _is_finished(task)]
    if dry_run and not finished:
        return list(tasks)
    library = library_sha256()
    read = {task.params.data: task.params for task in tasks}
    found = {data: tables.read(p) for data, p in read.items()}
    why = {task.folder: "" for task in tasks}
    for task in finished:
        if not _same_source(task, library):
            why[task.folder] = "notebook or library changed"
        elif _same_data(task, found[task.params.data]):
            del why[task.folder]
    for task in finished:
        newer = [m for m in taken(task, tasks) if _is_newer(m, task)]
        if newer and task.folder not in why:
            why[task.folder] = f"{newer[0].notebook.stem} is newer"
    _with_dependents(tasks, why)
    for task in finished:
        told = why.get(task.folder)
        again = f"again        {task.name}: {told or 'other data'}"
        print(f"done before  {task.name}" if told is None else again)
    return [task for task in tasks if task.folder in why]


def _is_newer(maker: Task, taker: Task) -> bool:
    """Whether a maker's results, or its weights where these are taken, are younger than a run."""
    since = (taker.folder / "metrics.json").stat().st_mtime_ns
    made = [maker.folder / "metrics.json"]
    if taker.notebook.stem not in _TAKE_ALL:  # it may have made the weights itself, before
        made = list((maker.folder / "checkpoints").glob("*.pth"))
    return any(file.is_file() and file.stat().st_mtime_ns > since for file in made)


def _with_dependents(tasks: Sequence[Task], why: dict[Path, str]) -> None:
    """Add whatever takes what is made again. What never was made may have been made by the taker.

    A run that takes all results takes new ones, too.
    """
    makers = {task.folder: taken(task, tasks) for task in tasks}
    grown = True
    while grown:
        grown = False
        for task in (task for task in tasks if task.folder not in why):
            of_all = task.notebook.stem in _TAKE_ALL
            for maker in (m for m in makers[task.folder] if m.folder in why):
                if of_all or (maker.folder / "metrics.json").is_file():
                    why[task.folder] = f"{maker.notebook.stem} is run"
                    grown = True
                    break


def _aspects(study: str) -> list[str]:
    """All aspects that the study's data has and the study is for."""
    p = load(study=study)
    whole = p.data.dataset == "11k" or (p.data.dataset, p.data.drawn.layout) == ("drawn", "11k")
    known = CHAIN if whole else set(tables.read(p)["aspect"])
    own = own_aspect(study)
    return [aspect for aspect in ASPECTS if aspect in known and own in ("", aspect)]


def _is_finished(task: Task) -> bool:
    """Whether all is there, by these parameters, and the report shows the metrics there are."""
    names = ("metrics.json", "report.html", "params.json")
    metrics, report, params = (task.folder / name for name in names)
    if not all(path.is_file() for path in (metrics, report, params)):
        return False
    if report.stat().st_mtime_ns < metrics.stat().st_mtime_ns:
        return False  # the notebook was run again without the runner, which makes the report
    return not differences(read_json(params), task.params)


def _same_source(task: Task, library: str) -> bool:
    """Whether the run had today's library, and its executed notebook is today's."""
    executed = task.folder / "report.ipynb"
    if read_json(task.folder / "stamp.json").get("library_sha256") != library:
        return False
    return executed.is_file() and _sources(executed) == _sources(task.notebook)


def _sources(notebook: Path) -> list[str]:
    cells = read_json(notebook)["cells"]
    own = [c for c in cells if "injected-parameters" not in c["metadata"].get("tags", [])]
    return ["".join(cell["source"]) for cell in own]


def _same_data(task: Task, table: pd.DataFrame) -> bool:
    """Whether the run was shown what it would be shown today."""
    saved: Mapping[str, Any] = read_json(task.folder / "metrics.json")
    if saved["data"] != table.attrs["title"]:
        return False
    try:
        return all(kept == splits.sha256(today) for kept, today in _shown(saved, task, table))
    except (SplitError, TableError, FileNotFoundError):  # the run will say it in its own report
        return False


def _shown(
    saved: Mapping[str, Any], task: Task, table: pd.DataFrame
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The digest of each manifest that a run has kept, with what that manifest is today."""
    p = task.params
    if saved["manifest_sha256"] is not None:
        own = in_chain(p) if task.notebook.stem == chain.NOTEBOOK else p
        yield saved["manifest_sha256"], splits.manifest_for(own, table)
    name = "manifest_sha256" if task.notebook.stem == pretrain.NOTEBOOK else "pretrained_on"
    pools = {facts[name] for facts in saved.get("training", {}).values() if name in facts}
    if pools:
        today = pretrain.pretrain_manifest(p, table)
        yield from ((pool, today) for pool in pools)
    if elsewhere := saved.get("abroad"):
        found = places(p, table, table, ())
        yield from ((told["manifest_sha256"], found[n].manifest) for n, told in elsewhere.items())
