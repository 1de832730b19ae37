"""Speed as ratios: each row times two ways to the same result, in turn, on one machine."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from handclip_lib.bench import evaluation, gpu, rerank, text, training
from handclip_lib.bench.row import Row
from handclip_lib.data import tables
from handclip_lib.params import load

COLUMNS = ["kit", "other", "ratio", "goal", "images_per_s", "kit_mb", "other_mb"]


def bench(study: str = "smoke", repeats: int = 3) -> pd.DataFrame:
    """A row a comparison: `kit`, `other` (seconds), `ratio`, `goal`, `images_per_s`, megabytes.

    Seconds are the best of `repeats`, in which both ways take turns; ratio = kit / other, so that
    below 1 the kit's way is the faster one; images_per_s is the kit's. `kit_mb` and `other_mb`,
    the most memory beside the inputs, are there where a row is about memory. The photographs are
    those of `study`, which are drawn when they are missing. The caches that the user has are left
    alone. Rows of a GPU are there where one is.
    """
    p = load(study=study)
    table = tables.read(p)
    timed = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [*evaluation.rows(p, table, folder), *training.rows(p, table, folder)]
        rows = [*images, *text.rows(p), *rerank.rows()]
        for row in rows:
            timed[row.name] = [*_timed(row, repeats), *_memory(row)]
        if torch.cuda.is_available():
            for row in gpu.rows(p, folder):
                timed[row.name] = [*_timed(row, repeats), *_memory(row)]
    return pd.DataFrame.from_dict(timed, orient="index", columns=COLUMNS)


def _timed(row: Row, repeats: int) -> list[float | str]:
    if row.other is None:
        kit = other = _seconds(row.kit)
    else:
        pairs = [(_seconds(row.other), _seconds(row.kit)) for _ in range(repeats)]
        other, kit = (min(seconds) for seconds in zip(*pairs, strict=True))
    none = float("nan")
    alone = row.other is None
    rate = row.images / kit if row.images else none
    return [kit, none if alone else other, none if alone else kit / other, row.goal, rate]


def _memory(row: Row) -> list[float]:
    return [most() for most in row.memory] if row.memory else [float("nan")] * 2


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    """Until the device has done what it was told; a CPU has, always."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
