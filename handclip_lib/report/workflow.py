"""A study's runs carried out by Snakemake: the plan it is given, the call, and what came of it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from handclip_lib.params import ROOT, ParamError, cache_dir
from handclip_lib.report.estimate import levels
from handclip_lib.report.plan import Task
from handclip_lib.report.runs import read_json, replace_text
from handclip_lib.schema import Params

_HERE = Path(__file__).parent
_ENDING_S = 40  # for jobs to end their runs before all are killed
_SHOWN = 12  # lines of a failed run; of Snakemake, which says more around them, thrice as many
_FLAGS = ("--keep-going", "--nolock", "--nocolor", "--scheduler", "greedy", "--rerun-triggers")
LOCAL = ("local", "gpus")  # profiles whose jobs run on this machine


@dataclass(frozen=True)
class How:
    """With what a study is run. profile: a folder; jobs: runs at a time, 0 as the profile says.

    threads: of a run; gpus: those to share, each to one run at a time, empty where none are dealt.
    """

    profile: Path
    jobs: int
    threads: int = 1
    gpus: tuple[str, ...] = ()


@dataclass
class Done:
    """What has ended of `total` runs so far, by key."""

    total: int
    started: set[str] = field(default_factory=set)
    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def count(self) -> str:
        """`k/n` for a line on the terminal."""
        return f"{len(self.finished) + len(self.failed)}/{self.total}"


def check_installed(how: How) -> None:
    """Raises ParamError with what to type where Snakemake or the profile's part is missing."""
    parts = ["snakemake"]
    if how.profile.name in ("slurm", "kubernetes"):
        parts.append(f"snakemake_executor_plugin_{how.profile.name}")
    missing = [part for part in parts if find_spec(part) is None]
    if missing:
        raise ParamError(
            f"studies are run by {missing[0].replace('_', '-')}, which is not installed;"
            " in the project's folder: pip install -c constraints.txt -e '.[cluster]'"
        )


def find_profile(name: str) -> Path:
    """The folder of a profile in profiles/, or at a path. ParamError names those there are."""
    for folder in (ROOT / "profiles" / name, Path(name).expanduser().absolute()):
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(sorted(f.parent.name for f in ROOT.glob("profiles/*/config.yaml")))
    raise ParamError(f"--executor {name}: one of {known}, or a folder with a config.yaml")


@contextmanager
def working_folder(study: Path) -> Iterator[Path]:
    """A folder of this call alone, below the study's reports: plan, logs and texts of its runs.

    It stays for reading until the next call, which removes those that are not under way.
    """
    root = study / ".study"
    root.mkdir(parents=True, exist_ok=True)
    for old in (folder for folder in root.iterdir() if folder.is_dir()):
        try:
            with FileLock(old / ".lock", timeout=0):
                pass
        except Timeout:
            continue
        shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    (folder / "runs").mkdir(parents=True)
    with FileLock(folder / ".lock"):
        yield folder


def carry_out(
    folder: Path,
    tasks: Sequence[Task],
    before: Mapping[str, Sequence[str]],
    study: str,
    how: How,
) -> list[Task]:
    """Run all tasks in a working folder, none before those it waits for; returns what failed.

    before: {key: keys}; study: its name or file. A run whose forerunner failed is run when all
    others are done: it makes what it needs, or fails by itself. Raises RuntimeError with
    Snakemake's last words where that did not start what it could.
    """
    done, left = Done(len(tasks)), list(tasks)
    while left:
        keys = {task.key for task in left}
        order = {t.key: [b for b in before[t.key] if b in keys] for t in left}
        _write_plan(folder, left, order, study, how)
        depth = levels(order)
        ends = [key for key in depth if depth[key] == max(depth.values()) > 1]
        _call(folder, _words(folder, ends, how), left, done)
        gone = {*done.finished, *done.failed}
        waiting = [task for task in left if task.key not in gone]
        if any(not set(order[task.key]) & (keys - set(done.finished)) for task in waiting):
            raise RuntimeError(_last_words(folder, waiting))
        for task in waiting:
            print(f"in spite of  what failed: {task.name}")
        left = waiting
    return [task for task in tasks if task.key in done.failed]


def _write_plan(
    folder: Path,
    tasks: Sequence[Task],
    order: Mapping[str, Sequence[str]],
    study: str,
    how: How,
) -> None:
    runs = {
        task.key: {
            "folder": str(task.folder.absolute()),
            "command": command(task, study),
            "before": list(order[task.key]),
            "gpu": gpus_of(task.params),
        }
        for task in tasks
    }
    plan = {"threads": how.threads, "gpus": how.gpus, "locks": str(cache_dir() / "gpus")}
    replace_text(folder / "plan.json", json.dumps(plan | {"runs": runs}, indent=1))


def command(task: Task, study: str) -> list[str]:
    """The words that run one notebook, whatever its own parameters cell says."""
    p = task.params
    words = [sys.executable, "-u", "-m", "handclip_lib.cli", "run", str(task.notebook)]
    words += ["--aspect", p.aspect, "--study", study, "--seed", str(p.seed)]
    return [*words, "--tag", p.tag, "--no-index"]


def _words(folder: Path, first: Sequence[str], how: How) -> list[str]:
    """Snakemake's command; first: runs to come before others, with all that they wait for."""
    words = [
        sys.executable,
        "-P",
        str(_HERE / "watched.py"),
        "--snakefile",
        str(ROOT / "Snakefile"),
    ]
    words += ["--directory", str(folder), "--workflow-profile", str(how.profile), *_FLAGS, "mtime"]
    if how.profile.name in LOCAL:
        words += ["--cores", str(how.jobs * how.threads)]
    elif how.jobs:
        words += ["--jobs", str(how.jobs)]
    if first:
        words += ["--prioritize", *(f"runs/{key}.json" for key in first)]
    return words


def _call(folder: Path, words: Sequence[str], tasks: Sequence[Task], done: Done) -> None:
    """One Snakemake over the plan; whatever interrupts this ends the runs under way, in order."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "snakemake.log").open("ab") as log:
        child = subprocess.Popen(
            words,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ctrl-C reaches us alone, and we end the jobs in order
        )
        try:
            while child.poll() is None:
                _tell(folder, tasks, done)
                time.sleep(0.2)
            _tell(folder, tasks, done)
            _tell_lost(folder, tasks, done)
        finally:
            _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None
    child.stdin.close()  # which it takes for the word to stop
    try:
        child.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        child.wait()


def _tell(folder: Path, tasks: Sequence[Task], done: Done) -> None:
    """Say what started and ended since the last look."""
    there = set(os.listdir(folder / "runs"))
    gone = {*done.finished, *done.failed}
    for task in (task for task in tasks if task.key not in gone):
        if f"{task.key}.start" in there and task.key not in done.started:
            done.started.add(task.key)
            print(f"start        {task.name}")
        for ending in (e for e in ("json", "failed") if f"{task.key}.{e}" in there):
            told = read_json(folder / "runs" / f"{task.key}.{ending}")
            _tell_end(folder, task, ending == "failed", f"{told['seconds']:.0f} s", done)


def _tell_end(folder: Path, task: Task, failed: bool, words: str, done: Done) -> None:
    (done.failed if failed else done.finished).append(task.key)
    print(f"{'FAILED' if failed else 'done':6s} {done.count:5s} {task.name}  {words}")
    text = folder / "runs" / f"{task.key}.log"
    if failed and text.is_file():
        print(_tail(text))


def _tell_lost(folder: Path, tasks: Sequence[Task], done: Done) -> None:
    """Runs that started and left no word were killed from outside, by a batch system's limits."""
    lost = [t for t in tasks if t.key in done.started - {*done.finished, *done.failed}]
    for task in lost:
        _tell_end(folder, task, True, "killed (memory or time of its job?)", done)


def _tail(path: Path, shown: int = _SHOWN) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in [x for x in lines if x.strip()][-shown:])


def _last_words(folder: Path, waiting: Sequence[Task]) -> str:
    log = folder / "snakemake.log"
    return f"Snakemake left out {waiting[0].name} and ended ({log}):\n{_tail(log, 3 * _SHOWN)}"


def gpus_of(p: Params) -> int:
    """How many GPUs a run takes, where there are any."""
    return 0 if p.device.accelerator == "cpu" else p.device.devices


def gpus_here(asked: str | None, count: int) -> tuple[str, ...]:
    """GPU ids to share: those asked for, `0,1`, else those of CUDA_VISIBLE_DEVICES, else all."""
    told: Any = asked if asked is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = range(count) if told is None else [word.strip() for word in told.split(",")]
    found = tuple(dict.fromkeys(str(one) for one in ids if str(one)))
    if not found:
        raise ParamError("no GPU is seen here; name those to use: --gpus 0,1")
    return found
