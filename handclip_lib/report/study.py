"""A whole study: its notebooks, in order, for every aspect and seed, several at a time.

What is done is not done again: a finished run stays that had today's parameters, notebook,
library and manifest.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data import splits, tables
from handclip_lib.data.leaks import SplitError
from handclip_lib.params import ROOT, load, own_aspect, read_study, study_path
from handclip_lib.report.index import write_index
from handclip_lib.report.notebook import find_notebook
from handclip_lib.report.runs import differences, read_json, run_folder
from handclip_lib.report.stamp import library_sha256
from handclip_lib.schema import Params
from handclip_lib.train.states import in_chain

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_ACROSS = ("05_sequential_chain",)  # of all aspects at once
_ENDING_S = 20  # for a run to end its kernel before it is killed


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
    def name(self) -> str:
        """For the terminal."""
        p = self.params
        tag = f"  {p.tag}" if p.tag else ""
        return f"{self.notebook.stem}  {p.aspect}  seed {p.seed}{tag}"


@dataclass(frozen=True)
class _Work:
    """What the worker threads share; `lock` guards the rest."""

    study: str
    total: int
    threads: int
    say: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    children: set["subprocess.Popen[str]"] = field(default_factory=set)
    finished: list[Task] = field(default_factory=list)
    failed: list[Task] = field(default_factory=list)


def run_study(
    study: str,
    notebooks: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    others: Sequence[str] | None = None,
) -> int:
    """Run what is missing of a study and write its index; 0 when nothing failed, else 1.

    notebooks: names or paths, by default the study's, else the numbered ones; aspects: by default
    all that the data has; seeds: by default the study's, else 0; others: the notebooks of all
    aspects but the first, by default the same. A sweep is run as it is and with
    each of its variants. The runs of one aspect and seed follow each other, since later ones use
    what earlier ones leave; `jobs` such chains run at a time (by default one a core, one on a
    GPU). A run that fails does not stop the others. dry_run only says what would be run.
    """
    chains = plan(study, notebooks, aspects, seeds, others)
    todo = _remaining(chains, force, dry_run, say)
    if dry_run:
        for task in (task for chain in todo for task in chain):
            say(f"would run    {task.name}")
        return 0
    first = chains[0][0].params
    jobs = min(jobs or _default_jobs(first), max(1, len(todo)))
    threads = max(1, _cores() // jobs)
    work = _Work(_portable(study), sum(map(len, todo)), threads, say)
    _run_chains(work, todo, jobs)
    if any((task.folder / "metrics.json").is_file() for chain in chains for task in chain):
        say(f"index: {write_index(first)}")
    if work.failed:
        say(f"{len(work.failed)} of {work.total} runs failed:")
        for task in work.failed:
            say(f"  {task.name}: {task.folder}")
    return 1 if work.failed else 0


def plan(
    study: str,
    notebooks: Sequence[str] | None,
    aspects: Sequence[str] | None,
    seeds: Sequence[int] | None,
    others: Sequence[str] | None = None,
) -> list[list[Task]]:
    """A list of runs for each seed and aspect; notebooks of all aspects are with the first."""
    told = read_study(study)
    files = list(dict.fromkeys(find_notebook(name) for name in notebooks or told.notebooks))
    files = files or sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise FileNotFoundError(f"{ROOT / 'notebooks'} has no numbered notebooks")
    brief = files if others is None else [find_notebook(name) for name in others]
    chosen = list(dict.fromkeys(aspects or _aspects(study)))
    return [
        [
            Task(f, load(aspect, study, seed, tag))
            for tag in ("", *told.sweep)
            for f in (brief if place else files)
            if not place or f.stem not in _ACROSS
        ]
        for seed in dict.fromkeys(seeds or told.seeds or (0,))
        for place, aspect in enumerate(chosen)
    ]


def _aspects(study: str) -> list[str]:
    """All aspects that the study's data has and the study is for."""
    p = load(study=study)
    known = CHAIN if p.data.dataset in ("11k", "drawn") else set(tables.read(p)["aspect"])
    own = own_aspect(study)
    return [aspect for aspect in ASPECTS if aspect in known and own in ("", aspect)]


def _remaining(
    chains: list[list[Task]], force: bool, dry_run: bool, say: Callable[[str], None]
) -> list[list[Task]]:
    """The chains without what is done; the data is read here, so that a missing set is drawn."""
    finished = {t.folder: t for c in chains for t in c if not force and _is_finished(t)}
    if dry_run and not finished:
        return chains
    library = library_sha256()
    read = {t.params.data: t.params for chain in chains for t in chain}
    found = {data: tables.read(p) for data, p in read.items()}
    done = set()
    for task in finished.values():
        if not _same_source(task, library):
            say(f"again        {task.name}: notebook or library changed")
        elif _same_data(task, found[task.params.data]):
            say(f"done before  {task.name}")
            done.add(task.folder)
    todo = [[task for task in chain if task.folder not in done] for chain in chains]
    return [chain for chain in todo if chain]


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


def _digest(task: Task, table: pd.DataFrame) -> str | None:
    p = in_chain(task.params) if task.notebook.stem in _ACROSS else task.params
    try:
        return splits.sha256(splits.manifest_for(p, table))
    except (SplitError, FileNotFoundError):  # the run itself will say it, in its own report
        return None


def _same_data(task: Task, table: pd.DataFrame) -> bool:
    saved = read_json(task.folder / "metrics.json")
    if saved["data"] != table.attrs["title"]:
        return False
    return saved["manifest_sha256"] in (None, _digest(task, table))


def _run_chains(work: _Work, chains: list[list[Task]], jobs: int) -> None:
    """All chains, `jobs` at a time; whatever interrupts this ends the runs under way."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(_run_chain, work, c) for c in chains]):
                future.result()
        except BaseException:
            work.stop.set()
            with work.lock:
                for child in work.children:
                    child.terminate()
            raise


def _run_chain(work: _Work, chain: list[Task]) -> None:
    for task in chain:
        started = time.monotonic()
        child = _start(work, task)
        if child is None:
            return
        text = _finish(work, child)
        if work.stop.is_set():
            return
        _tell(work, task, child.returncode, time.monotonic() - started, text)


def _start(work: _Work, task: Task) -> "subprocess.Popen[str] | None":
    p = task.params
    command = [sys.executable, "-m", "handclip_lib.cli", "run", str(task.notebook)]
    command += ["--aspect", p.aspect, "--study", work.study, "--seed", str(p.seed)]
    command += ["--tag", p.tag, "--no-index"]  # whatever the notebook's own cell says
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {name: str(work.threads) for name in _THREADS} | os.environ | {"PYTHONPATH": path}
    with work.lock:
        if work.stop.is_set():
            return None
        work.say(f"start        {task.name}")
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # ctrl-C reaches us alone, and we end the children in order
        )
        work.children.add(child)
    return child


def _finish(work: _Work, child: "subprocess.Popen[str]") -> str:
    stopper = threading.Thread(target=_kill_late, args=(work, child), daemon=True)
    stopper.start()
    text, _ = child.communicate()
    with work.lock:
        work.children.discard(child)
    return text


def _kill_late(work: _Work, child: "subprocess.Popen[str]") -> None:
    """Kill a child that is still there some seconds after everything was to stop."""
    while child.poll() is None and not work.stop.wait(1.0):
        pass
    try:
        child.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _tell(work: _Work, task: Task, status: int, seconds: float, text: str) -> None:
    with work.lock:
        (work.failed if status else work.finished).append(task)
        number = f"{len(work.failed) + len(work.finished)}/{work.total}"
        word = "FAILED" if status else "done"
        work.say(f"{word:6s} {number:5s} {task.name}  {seconds:.0f} s")
        if status:
            lines = [line for line in text.splitlines() if line.strip()]
            work.say("\n".join(f"    {line}" for line in lines[-12:]))


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
