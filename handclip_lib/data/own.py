"""Reader of one's own photographs: a CSV, or a folder for each person."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.check import (
    TableError,
    aspect_of,
    check_images,
    empty_cells,
    finish,
    pictures,
    read_rows,
    relative,
    repeated,
    sample,
)
from handclip_lib.schema_base import did_you_mean

LARGEST_PID = 9_999_999  # the distractors of gallery_all lie above
# Cameras' own formats: the check of the files says that they can't be read
_UNREAD = {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
_FLAGS = ("accessories", "distractor")  # 1: left out of a split; 1: only ever in the gallery


def read_own(path: str | Path, check_files: bool = True) -> pd.DataFrame:
    """Own photographs as one table: `image`, `pid`, `aspect`, `dataset`, and what the CSV has.

    path: a CSV with columns `image` (relative to the CSV's folder) and `pid`, optionally `aspect`
    (`dorsal_r`, …; missing: `hand`), `camera`, `accessories`, anything; or a folder
    `<person>/<photograph>`, with the aspect as a folder above or below the person's if wanted.
    Persons may have names: these map to 0, 1, … in sorted order and stay in the column `name`, so
    that a new name gives other numbers to those after it, and they other draws; ids that are all
    whole numbers below 10,000,000 are kept.
    Raises FileNotFoundError, or TableError with all problems together.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(
            f"no own data at {path}: data.root names a CSV (image, pid, …) or a folder"
            " with one folder for each person"
        )
    a_csv = path.is_file()
    root = path.parent if a_csv else path
    lines, rows, problems = _from_csv(path) if a_csv else _from_folder(root)
    problems += repeated(zip(lines, (row["image"] for row in rows), strict=True))
    named = not _are_numbers({row["pid"] for row in rows})
    problems += _number_persons(rows) + _number_columns(rows)
    if check_files:
        where = [f"row {line}: " if a_csv else "" for line in lines]
        problems += check_images(root, list(zip(where, (r["image"] for r in rows), strict=True)))
    name = path.stem if a_csv else path.name
    title = f"own hands: {name} ({sample(rows)})"
    if not (rows or problems):
        expected = (
            "has no rows" if a_csv else "holds no photographs; expected <person>/<photograph>"
        )
        raise TableError(f"{path} {expected}")
    read_as = f", read as own: {name}"
    table = finish(rows, root if not problems else path, title, problems, read_as)
    table.attrs |= {"source": str(path), "named": named}
    return table


_Read = tuple[list[int], list[dict[str, Any]], list[str]]  # line numbers, rows, problems


def _from_csv(path: Path) -> _Read:
    lines, rows, problems = [], [], []
    for line, cells in read_rows(path, ("image", "pid")):
        if "dataset" in cells:
            raise TableError(f"{path}: {_taken('dataset')}")
        wrong = empty_cells(line, cells, [c for c in ("image", "pid", "aspect") if c in cells])
        told = cells.pop("aspect", "hand")
        aspect = aspect_of(told)
        if told and not aspect:
            near = did_you_mean(told.lower(), ASPECTS)
            wrong.append(f"row {line}: unknown aspect '{told}'{near}; one of {', '.join(ASPECTS)}")
        problems += wrong
        if not wrong:
            image = relative(cells.pop("image"), path.parent)
            fixed = {"image": image, "pid": cells.pop("pid"), "aspect": aspect, "dataset": "own"}
            lines.append(line)
            rows.append(fixed | {k: v for k, v in cells.items() if k not in fixed})
    return lines, rows, problems


def _from_folder(root: Path) -> _Read:
    rows: list[dict[str, Any]] = []
    problems = []
    for image in pictures(root, _UNREAD):
        folders = image.split("/")[:-1]
        persons = [f for f in folders if not aspect_of(f)]
        if len(persons) != 1 or len(folders) > 2:
            problems.append(f"{image} is not at <person>/ or with one aspect folder beside that")
            continue
        aspects = [aspect_of(f) for f in folders if aspect_of(f)]
        aspect = aspects[0] if aspects else "hand"
        rows.append({"image": image, "pid": persons[0], "aspect": aspect, "dataset": "own"})
    if len({len(row["image"].split("/")) for row in rows}) > 1:
        flat = [row["image"] for row in rows if row["image"].count("/") == 1]
        problems += [f"{image} lies in no aspect folder, unlike others" for image in flat]
    return list(range(1, len(rows) + 1)), rows, problems


def _taken(column: str) -> str:
    return f"column '{column}' is ours in the table, and yours would be lost: rename it"


def _number_persons(rows: list[dict[str, Any]]) -> list[str]:
    """Turn every row's `pid` from text to a number, in place; returns the problems."""
    for row in rows:
        row["pid"] = unicodedata.normalize("NFC", row["pid"])  # macOS writes ü as two letters
    names = sorted({row["pid"] for row in rows})
    if not _are_numbers(names):
        taken = any("name" in row for row in rows)
        alike = _alike(names)
        number = {name: i for i, name in enumerate(names)}
        for row in rows:
            row["name"] = row["pid"]
            row["pid"] = number[row["name"]]
        return alike + ([_taken("name")] if taken else [])
    written: dict[int, str] = {}
    twice = [n for n in names if written.setdefault(int(n), n) != n]
    for row in rows:
        row["pid"] = int(row["pid"])
    return [f"persons '{written[int(n)]}' and '{n}' have the same number" for n in twice]


def _are_numbers(ids: Iterable[str]) -> bool:
    """Whether persons keep the ids they were given."""
    return all(n.isascii() and n.isdecimal() and int(n) <= LARGEST_PID for n in ids)


def _alike(names: Sequence[str]) -> list[str]:
    """A problem for each two names that a person may be written by: anna and ANNA, 1 and 01."""
    seen: dict[str, str] = {}
    problems = []
    for name in names:
        plain = name.casefold()
        if re.fullmatch(r"[0-9]+(\.0*)?", plain):
            plain = str(int(plain.partition(".")[0]))
        if seen.setdefault(plain, name) != name:
            problems.append(f"'{seen[plain]}' and '{name}' look like one person: write them alike")
    return problems


def _number_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Turn the text columns that hold only whole numbers into numbers; flags must be 0 or 1."""
    texts = [c for c in (rows[0] if rows else {}) if c not in ("image", "aspect", "name")]
    problems = []
    for column in texts:
        cells = [str(row[column]) for row in rows]
        if column in _FLAGS and set(cells) - {"0", "1"}:
            wrong = min(set(cells) - {"0", "1"})
            problems.append(f"column '{column}' must be 0 or 1 everywhere, not '{wrong}'")
        elif all(cell.isascii() and cell.isdecimal() for cell in cells):
            for row, cell in zip(rows, cells, strict=True):
                row[column] = int(cell)
    return problems
