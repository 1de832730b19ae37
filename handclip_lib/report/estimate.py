"""How long a study will take, by what its runs took before, or those of other studies."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from handclip_lib.data.check import quantity
from handclip_lib.report.plan import Task
from handclip_lib.report.runs import read_json, reports_root

_START_S = 4.0  # of the command and of Snakemake
_AROUND_S = 12.0  # imports, the runner and the report, beside what a notebook's stamp counts


def seconds_of(tasks: Sequence[Task]) -> dict[str, float]:
    """{key: seconds from start to report}, of those whose notebook was run before.

    The median over this study's runs of the notebook, else over runs on the same kind of data
    (drawn, 11k, …) in other studies' folders beside it.
    """
    kinds = {(t.notebook.stem, t.params.study, t.params.data.dataset): t for t in tasks}
    known = {kind: _of_notebook(task) for kind, task in kinds.items()}
    times = {t.key: (t.notebook.stem, t.params.study, t.params.data.dataset) for t in tasks}
    return {key: median(known[kind]) for key, kind in times.items() if known[kind]}


def simulated(
    before: Mapping[str, Iterable[str]], seconds: Mapping[str, float], jobs: int
) -> float:
    """Seconds until the last of these runs ends, `jobs` at a time, the first in order first.

    before: {run: those it waits for, all among the keys}; seconds: of each run, 0 where unknown.
    """
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    now = 0.0
    while len(ends) < len(before):
        waiting = [k for k in before if k not in ends and k not in running]
        ready = [k for k in waiting if all(b in ends for b in before[k])]
        for key in ready[: jobs - len(running)]:
            running[key] = now + seconds.get(key, 0.0)
        key = min(running, key=lambda k: running[k])
        now = ends[key] = running.pop(key)
    return now


def levels(before: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """{run: how many stand in the longest line up to it, itself among them}."""
    found: dict[str, int] = {}
    while len(found) < len(before):
        for key in (k for k in before if k not in found and all(b in found for b in before[k])):
            found[key] = 1 + max((found[b] for b in before[key]), default=0)
    return found


def widest(before: Mapping[str, Iterable[str]]) -> int:
    """About the most runs that can be under way at a time: those of one level."""
    found = list(levels(before).values())
    return max((found.count(level) for level in set(found)), default=1)


def in_words(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def told(
    tasks: Sequence[Task], before: Mapping[str, Iterable[str]], jobs: int
) -> tuple[dict[str, str], str]:
    """Each run's seconds in words, by its key, and one line on the whole."""
    seconds = seconds_of(tasks)
    words = {t.key: in_words(seconds[t.key]) if t.key in seconds else "unknown" for t in tasks}
    unknown = len(tasks) - len(seconds)
    line = f"{quantity(len(tasks), 'run')}, {jobs} at a time: "
    if not seconds:
        return words, f"{line}unknown, {unknown} not timed before" if tasks else "nothing to do"
    line += f"about {in_words(_START_S + simulated(before, seconds, jobs))}"
    return words, line + (f", and unknown, {unknown} not timed before" if unknown else "")


def _of_notebook(task: Task) -> list[float]:
    root, stem, p = reports_root(task.params), task.notebook.stem, task.params
    own = [_seconds(path) for path in _stamps(root / p.study, stem)]
    if own or not root.is_dir():
        return own
    studies = [folder for folder in root.iterdir() if folder.is_dir() and folder.name != p.study]
    stamps = [path for folder in studies for path in _stamps(folder, stem)]
    return [_seconds(path) for path in stamps if _dataset(path) == p.data.dataset]


def _stamps(study: Path, stem: str) -> list[Path]:
    """Of runs that finished."""
    found = [*study.glob(f"seed*/*/{stem}/stamp.json"), *study.glob(f"seed*/*/{stem}/*/stamp.json")]
    return [path for path in found if path.with_name("metrics.json").is_file()]


def _seconds(path: Path) -> float:
    told = read_json(path)
    return float(told["whole_seconds"] if "whole_seconds" in told else told["seconds"] + _AROUND_S)


def _dataset(path: Path) -> str | None:
    params = path.with_name("params.json")
    return str(read_json(params)["data"]["dataset"]) if params.is_file() else None
