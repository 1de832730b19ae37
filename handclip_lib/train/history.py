"""history.csv: a row an epoch, a column a number, several trainings in one file."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock

from handclip_lib.data.atomic import write_whole

FILE = "history.csv"
_WHOLE = ("epoch", "step")


def write_history(folder: Path, variant: str, rows: Sequence[Mapping[str, float]]) -> Path:
    """Write a training's rows so far; those of other variants stay as they are, to the letter.

    rows: a mapping of column to value each. The file is there whole or not at all.
    """
    path = folder / FILE
    frame = pd.DataFrame(list(rows))
    frame.insert(0, "variant", variant)
    own = _text(io.StringIO(frame.to_csv(index=False)))
    with FileLock(folder / f".{FILE}.lock"):  # two runs may train variants of one folder at once
        if path.is_file():
            others = _text(path)
            own = pd.concat([others[others["variant"] != variant], own]).fillna("")
        return write_whole(path, own.to_csv(index=False).encode())


def read_history(folder: Path, variant: str) -> pd.DataFrame:
    """A training's rows: `variant`, `epoch`, `step`, `lr`, `total`, then its own columns.

    Raises FileNotFoundError where there is no history, KeyError where there is none of `variant`.
    """
    path = folder / FILE
    told = _text(path)
    mine = told[told["variant"] == variant].reset_index(drop=True)
    if mine.empty:
        raise KeyError(f"{path} has no '{variant}', only {', '.join(told['variant'].unique())}")
    columns = {name: cells for name, cells in mine.items() if (cells != "").any()}
    numbers = {n: [float(c or "nan") for c in columns[n]] for n in columns if n != "variant"}
    kinds = {name: int for name in _WHOLE if name in numbers}
    return pd.DataFrame({"variant": columns["variant"]} | numbers).astype(kinds)


def _text(source: Path | io.StringIO) -> pd.DataFrame:
    return pd.read_csv(source, dtype=str, keep_default_na=False)
