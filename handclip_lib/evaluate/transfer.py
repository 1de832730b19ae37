"""What a chain of tasks keeps and passes on: scores of every task after every step.

A task is an aspect that is learnt at some step; row 0 of all matrices here is the model before the
first step, row i the model after step i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.evaluate.statistics import percentiles, without_error

Floats = npt.NDArray[np.float64]
Learned = Sequence[Sequence[int]]  # of each task: the first and the last row that taught it
_QUERY = ["draw", "image", "pid"]


@dataclass(frozen=True, eq=False)
class Cells:
    """Scores by row, task and person: all that matrices and their intervals are made of.

    rows: names, the first of the start, then of the steps; persons: of all tasks, sorted; sums:
    (R, T, P) of a score over a person's queries in a task; counts: (T, P) of those queries, 0 for
    who is not asked for in it.
    """

    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    persons: tuple[str, ...]
    sums: Floats
    counts: npt.NDArray[np.int64]


def cells(
    frames: Mapping[str, Mapping[str, pd.DataFrame]],
    metric: str,
    datasets: Mapping[str, str] | None = None,
) -> Cells:
    """Cells of one metric (a key of `retrieval.METRICS`) from frames by row and task.

    frames: of `protocol.per_query`; tasks in the order of the first row. datasets: of each task,
    where there are several: a pid is one person in all tasks of a data set. Raises ValueError where
    rows have other tasks, or did not answer the same queries in the same order.
    """
    rows = tuple(frames)
    tasks = tuple(frames[rows[0]])
    for row in rows:
        _check_asked(frames[rows[0]], frames[row], row)
    who = {}
    for task in tasks:
        asked = frames[rows[0]][task]
        prefix = f"{datasets[task]} " if datasets else ""
        who[task] = prefix + asked["pid"].astype(str)
    persons, code = np.unique(np.concatenate([who[t] for t in tasks]), return_inverse=True)
    parts = np.split(code, np.cumsum([len(who[t]) for t in tasks])[:-1])
    size, column = len(persons), METRICS[metric]
    sums = [
        [np.bincount(p, frames[r][t][column], size) for t, p in zip(tasks, parts, strict=True)]
        for r in rows
    ]
    counts = [np.bincount(p, minlength=size) for p in parts]
    names = tuple(str(person) for person in persons)
    return Cells(rows, tasks, names, np.array(sums, dtype=np.float64), np.array(counts))


def pool(several: Sequence[Cells]) -> Cells:
    """Cells of several seeds as one: a person brings what every seed asked him.

    Persons are matched by name. Raises ValueError where rows or tasks are not the same.
    """
    first = several[0]
    for other in several[1:]:
        if (other.rows, other.tasks) != (first.rows, first.tasks):
            raise ValueError(
                f"only cells of the same rows and tasks are pooled, not {first.rows} of"
                f" {first.tasks} with {other.rows} of {other.tasks}"
            )
    persons = tuple(sorted({person for one in several for person in one.persons}))
    sums = np.zeros((*first.sums.shape[:2], len(persons)))
    counts = np.zeros((len(first.tasks), len(persons)), dtype=np.int64)
    for one in several:
        place = np.searchsorted(persons, one.persons)
        sums[..., place] += one.sums
        counts[:, place] += one.counts
    return Cells(first.rows, first.tasks, persons, sums, counts)


def to_plain(of: Cells) -> dict[str, Any]:
    """Cells as lists, for JSON."""
    names = {"rows": list(of.rows), "tasks": list(of.tasks), "persons": list(of.persons)}
    return {**names, "sums": of.sums.tolist(), "counts": of.counts.tolist()}


def from_plain(told: Mapping[str, Any]) -> Cells:
    """The very cells that `to_plain` wrote."""
    rows, tasks, persons = (tuple(told[name]) for name in ("rows", "tasks", "persons"))
    sums = np.array(told["sums"], dtype=np.float64)
    return Cells(rows, tasks, persons, sums, np.array(told["counts"], dtype=np.int64))


def matrix(of: Cells) -> Floats:
    """R (R, T): the mean over queries of every task after every row, 0–1."""
    means: Floats = of.sums.sum(axis=-1) / of.counts.sum(axis=-1)
    return means


def transfer(r: npt.ArrayLike, learned: Learned) -> dict[str, Any]:
    """What the last row keeps and passes on, in the units of r (R, T), whose row 0 is the start.

    learned: of each task the first and the last row (from 1) that taught it: (j + 1, j + 1) for
    task j of a plain chain. None stands where there is no such task.

    * `average`: mean of the last row;
    * `backward`: mean of last row less the row that last taught a task, over tasks that a later row
      followed: below 0 where later steps harm;
    * `forward`: mean of the row before a task was first taught less row 0, over tasks taught first
      in row 2 or later;
    * `forgetting_by_task`: the best of all earlier rows less the last row; `forgetting` its mean
      over the tasks of `backward`. What the start could do can be lost as well: row 0 counts.

    Lopez-Paz & Ranzato 2017, arXiv:1706.08840, section 3, whose forward transfer is against a model
    of random weights; Chaudhry et al. 2018, arXiv:1801.10112, section 3, where the maximum begins
    at the first step. Raises ValueError on pairs that are no rows of r.
    """
    table = np.asarray(r, dtype=np.float64)
    told = {name: None if v is None else float(v) for name, v in _scalars(table, learned).items()}
    return {**told, "forgetting_by_task": _lost(table).tolist()}


def intervals(of: Cells, learned: Learned, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of `matrix` and of each number of `transfer`, over persons.

    Persons are drawn with replacement from those of all tasks, once for each resample, and bring
    their queries of every task and row: cells share persons, so that they vary together. A resample
    that leaves a task without a person is drawn again. Their ends are `statistics.percentiles` for
    the persons of the task that has fewest; `without_error` widens those of scores. Returns
    `matrix` (R, T, 2), `averages` (R, 2) of its rows, and (low, high) by name, None where
    `transfer` has None. As `statistics.person_bootstrap`, rough below some 10 persons. `forgetting`
    holds a maximum of uncertain numbers, which chance raises, and in a resample once more: where
    rows are close its interval lies too high and may miss a true 0; `backward` has no such lean.
    Raises ValueError with fewer than two persons in a task.
    """
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    means = _means(of, _times(of, samples, seed))  # (B, R, T)
    ends = percentiles(_fewest(of))
    r, persons = matrix(of), (of.counts > 0).sum(axis=1)
    averages = without_error(
        r.mean(axis=-1), _fewest(of), *np.quantile(means.mean(axis=-1), ends, axis=0)
    )
    found: dict[str, Any] = {
        "matrix": np.stack(without_error(r, persons, *np.quantile(means, ends, axis=0)), axis=-1),
        "averages": np.stack(averages, axis=-1),
    }
    for name, values in _scalars(means, learned).items():
        found[name] = None if values is None else _pair(np.quantile(values, ends))
    return found | {"average": _pair(found["averages"][-1])}


def judged(of: Cells, learned: Learned, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """`matrix` with `ci95` and `transfer` with `transfer_ci95` of a chain, as plain lists."""
    r, spread = matrix(of), intervals(of, learned, samples, seed)
    return {
        "rows": list(of.rows),
        "tasks": list(of.tasks),
        "matrix": r.tolist(),
        "ci95": spread.pop("matrix").tolist(),
        "averages_ci95": spread.pop("averages").tolist(),
        "transfer": transfer(r, learned),
        "transfer_ci95": spread,
    }


def compare(
    a: Cells, b: Cells, learned_a: Learned, learned_b: Learned, samples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """How much b differs from a: `average` and `forgetting`, each `difference` and `ci95`.

    b less a, over the same resampled persons for both, as in `intervals`; both None where one of
    the two has no such number. Tasks may stand in another order in b. Raises ValueError where the
    two did not answer the same queries.
    """
    same = (a.persons, sorted(a.tasks)) == (b.persons, sorted(b.tasks))
    if not same or not np.array_equal(a.counts, b.counts[[b.tasks.index(t) for t in a.tasks]]):
        raise ValueError("only cells of the same tasks, persons and queries can be compared")
    times, ends = _times(a, samples, seed), percentiles(_fewest(a))
    points = [_scalars(matrix(of), told) for of, told in ((a, learned_a), (b, learned_b))]
    spread = [_scalars(_means(of, times), told) for of, told in ((a, learned_a), (b, learned_b))]
    found: dict[str, dict[str, Any]] = {}
    for name in ("average", "forgetting"):
        found[name] = {"difference": None, "ci95": None}
        if points[0][name] is not None and points[1][name] is not None:
            found[name]["difference"] = float(points[1][name] - points[0][name])
            change = spread[1][name] - spread[0][name]  # (B,)
            found[name]["ci95"] = _pair(np.quantile(change, ends))
    return found


def _check_asked(
    first: Mapping[str, pd.DataFrame], mine: Mapping[str, pd.DataFrame], row: str
) -> None:
    if set(mine) != set(first):
        raise ValueError(f"row {row} has the tasks {', '.join(mine)}, not {', '.join(first)}")
    for task, asked in first.items():
        told = mine[task][_QUERY].reset_index(drop=True)
        if not told.equals(asked[_QUERY].reset_index(drop=True)):
            raise ValueError(f"row {row} did not answer the queries of {task} that row 0 did")


def _scalars(r: Floats, learned: Learned) -> dict[str, Any]:
    """The numbers of `transfer` of matrices (..., R, T), each (...) or None."""
    rows, tasks = r.shape[-2:]
    first, last = np.array(learned).reshape(-1, 2).T
    if len(first) != tasks or not ((first >= 1) & (first <= last) & (last < rows)).all():
        raise ValueError(f"learned={learned} names no rows of a matrix of {rows} x {tasks}")
    j, end = np.arange(tasks), r[..., -1, :]
    followed = last < rows - 1
    return {
        "average": end.mean(axis=-1),
        "backward": _mean(end - r[..., last, j], followed),
        "forward": _mean(r[..., first - 1, j] - r[..., 0, :], first >= 2),
        "forgetting": _mean(_lost(r), followed),
    }


def _lost(r: Floats) -> Floats:
    """(..., R, T) to (..., T): the best of all rows but the last, less the last."""
    lost: Floats = r[..., :-1, :].max(axis=-2) - r[..., -1, :]
    return lost


def _mean(values: Floats, chosen: npt.NDArray[np.bool_]) -> Any:
    return values[..., chosen].mean(axis=-1) if chosen.any() else None


def _times(of: Cells, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """(B, P) how often each person is in each resample; no task is without one."""
    size = len(of.persons)
    for task, asked in zip(of.tasks, (of.counts > 0).sum(axis=1), strict=True):
        if asked < 2:
            raise ValueError(f"{task}: an interval over persons needs at least two, got {asked}")
    rng = np.random.default_rng(seed)
    kept = np.zeros((0, size), dtype=np.int64)
    while len(kept) < samples:
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=samples)
        kept = np.concatenate([kept, drawn[(drawn @ of.counts.T > 0).all(axis=1)]])
    return kept[:samples]


def _fewest(of: Cells) -> int:
    """Persons of the task that has fewest."""
    return int((of.counts > 0).sum(axis=1).min())


def _means(of: Cells, times: npt.NDArray[np.int64]) -> Floats:
    """(B, R, T): the matrix of every resample (B, P)."""
    rows, tasks, size = of.sums.shape
    sums = times.astype(np.float64) @ of.sums.reshape(-1, size).T  # (B, R * T)
    means: Floats = sums.reshape(-1, rows, tasks) / (times @ of.counts.T)[:, None]
    return means


def _pair(ends: Floats) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])
