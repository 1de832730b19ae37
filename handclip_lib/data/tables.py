"""From a data set on disk to one pandas table with all its rows.

Columns: `image` (posix path relative to the root), `pid` (int), `aspect`, `dataset`, and the
metadata that the data set has. `table.attrs` says where it lies (`root`) and what it is (`title`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data.check import (
    TableError,
    check_images,
    empty_cells,
    finish,
    read_rows,
    repeated,
    sample,
)
from handclip_lib.data.drawn.dataset import MARKER, draw_dataset
from handclip_lib.data.hd import read_hd
from handclip_lib.data.own import read_own
from handclip_lib.params import resolve
from handclip_lib.schema import Data, Params
from handclip_lib.schema_base import did_you_mean

SOURCE_11K = "https://sites.google.com/view/11khands (HandInfo.csv and Hands.zip)"
_ROOTS = {"11k": "data/11k", "HD": "data/HD"}
_DRAWN = {  # by layout and laboratory
    ("11k", "white_table"): "data/drawn_hands",
    ("hd", "white_table"): "data/drawn_hd",
    ("11k", "other"): "data/drawn_other",
    ("hd", "other"): "data/drawn_other_hd",
}
_COMPLETE = 11_076  # rows of 11k Hands
_NEEDED = ("id", "accessories", "aspectOfHand", "imageName")
_FLAGS = ("accessories", "nailPolish", "irregularities")
_NUMBERS = ("age", *_FLAGS)
_BY_METADATA = {ASPECTS[name].metadata: name for name in CHAIN}


def read(p: Params) -> pd.DataFrame:
    """The table of `p.data`; a drawn set that isn't there yet is drawn first.

    Raises FileNotFoundError when there is no data at the root, TableError when it is broken.
    """
    data = p.data
    if data.dataset == "own" and not data.root:
        raise FileNotFoundError(
            "data.dataset is own, but data.root is empty: it names a CSV (image, pid, …) or a"
            " folder with one folder for each person"
        )
    if data.dataset == "own":
        return read_own(resolve(data.root))
    if data.dataset == "drawn":
        root = draw(data)
        return read_hd(root) if data.drawn.layout == "hd" else read_11k(root)
    root = resolve(data.root or _ROOTS[data.dataset])
    return read_hd(root) if data.dataset == "HD" else read_11k(root)


def draw(data: Data, workers: int | None = None) -> Path:
    """The folder of the set `data.drawn`, drawn where it isn't there yet.

    Without `data.root` each layout and laboratory has its own in data/. workers: processes, None
    being one per CPU. Raises ValueError if something else lies there.
    """
    told = data.drawn
    root = resolve(data.root or _DRAWN[told.layout, told.laboratory])
    if not (root / MARKER).is_file():
        print(f"drawing the hands of {told.persons} persons in {root}")
    return draw_dataset(
        root,
        persons=told.persons,
        seed=told.seed,
        shots=told.shots,
        workers=workers,
        layout=told.layout,
        laboratory=told.laboratory,
    )


def read_11k(root: str | Path, check_files: bool = True) -> pd.DataFrame:
    """11k Hands, or a set in its layout: all rows of `root/HandInfo.csv`, images in `root/Hands/`.

    pid = int(id); metadata columns keep their names (age, gender, skinColor, accessories,
    nailPolish, irregularities). check_files=False reads the metadata alone.
    Raises FileNotFoundError or TableError, all problems of rows and photographs together.
    Afifi 2019, doi:10.1007/s11042-019-7424-8.
    """
    root = Path(root).expanduser().resolve()
    path = root / "HandInfo.csv"
    if not path.is_file():
        raise FileNotFoundError(_no_11k(root))
    if check_files and not (root / "Hands").is_dir():
        raise FileNotFoundError(f"{path} is there, but no folder Hands/ with the photographs")
    rows, lines, problems = [], [], []
    for line, cells in read_rows(path, _NEEDED):
        wrong = _wrong_cells(line, cells)
        problems += wrong
        if not wrong:
            lines.append(line)
            rows.append(_row(cells))
    if not (rows or problems):
        raise TableError(f"{path} has no rows")
    images = [str(row["image"]) for row in rows]
    problems += repeated(zip(lines, images, strict=True))
    if check_files:
        where = [f"row {line}: " for line in lines]
        problems += check_images(root, list(zip(where, images, strict=True)))
    title = "11k Hands" if len(rows) == _COMPLETE else f"11k Hands (sample: {sample(rows)})"
    return finish(rows, path if problems else root, title, problems)


def _wrong_cells(line: int, cells: Mapping[str, str]) -> list[str]:
    wrong = empty_cells(line, cells, list(cells))
    aspect = cells["aspectOfHand"]
    if aspect and aspect not in _BY_METADATA:
        near = did_you_mean(aspect, _BY_METADATA)
        wrong.append(f"row {line}: unknown aspectOfHand '{aspect}'{near}")
    for column in ("id", *_NUMBERS):
        text = cells.get(column, "")
        if text and not (text.isascii() and text.isdecimal()):
            wrong.append(f"row {line}: {column} '{text}' is not a whole number")
        elif text and column in _FLAGS and int(text) > 1:
            wrong.append(f"row {line}: {column} must be 0 or 1, not '{text}'")
    return wrong


def _row(cells: Mapping[str, str]) -> dict[str, Any]:
    fixed = {
        "image": f"Hands/{cells['imageName']}",
        "pid": int(cells["id"]),
        "aspect": _BY_METADATA[cells["aspectOfHand"]],
        "dataset": "11k",
    }
    rest = {k: v for k, v in cells.items() if k not in ("id", "aspectOfHand", "imageName")}
    return fixed | {k: int(v) if k in _NUMBERS else v for k, v in rest.items() if k not in fixed}


def _no_11k(root: Path) -> str:
    deeper = sorted(root.glob("*/HandInfo.csv"))
    if deeper:
        return f"no HandInfo.csv in {root}, but one in {deeper[0].parent}: set data.root to that"
    return (
        f"no HandInfo.csv in {root}: get 11k Hands from {SOURCE_11K},"
        " or say with data.root where it lies"
    )
