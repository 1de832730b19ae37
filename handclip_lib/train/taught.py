"""Whom weights were taught, as a checkpoint of ours records it: persons by data set."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

# By data set: `11k`, `HD`, or `own ROOT #DIGEST`; its persons' numbers, or digests of their names
Taught = dict[str, list[int | str]]


def persons_taught(held: Mapping[str, Any], table: pd.DataFrame) -> set[int]:
    """Whom of a table's data set the weights of a checkpoint of ours were taught.

    A folder is known again where it was moved or copied as it is, and where it changed in place;
    its persons by their names where they have some, since a new one moves the numbers of others.
    """
    here = _named(table)
    found = {here.get(who, who) for who in _recorded(held["taught"], table)}
    return {pid for pid in found if isinstance(pid, int)}  # the rest are no longer here


def also_taught(taught: Taught, table: pd.DataFrame, pids: Iterable[int]) -> Taught:
    """What is recorded of weights that were taught these persons of a table, too."""
    called = {pid: name for name, pid in _named(table).items()}
    everybody = {*_recorded(taught, table), *(called.get(pid, pid) for pid in pids)}
    return taught | {_population(table): sorted(everybody, key=str)}


def _recorded(taught: Mapping[str, Any], table: pd.DataFrame) -> set[int | str]:
    here = _names(_population(table))
    return {who for data, people in taught.items() if _names(data) & here for who in people}


def _named(table: pd.DataFrame) -> dict[str | int, int]:
    """{digest of a name: pid}, where each person has one of his own; else nobody."""
    people = table[["pid", "name"]].drop_duplicates() if "name" in table else pd.DataFrame()
    if people.empty or not (people["pid"].is_unique and people["name"].is_unique):
        return {}
    digests = [hashlib.sha256(str(name).encode()).hexdigest()[:16] for name in people["name"]]
    return dict(zip(digests, people["pid"].tolist(), strict=True))


def _population(table: pd.DataFrame) -> str:
    """The data set whose persons a table's numbers count: its name, or `own ROOT #DIGEST`."""
    dataset = str(table["dataset"].iloc[0])
    if dataset not in ("own", "drawn"):
        return dataset
    root = Path(table.attrs["root"]).resolve()  # others have other persons by the same numbers
    files = sorted(zip(table["image"], table["pid"], strict=True))
    rows = [f"{image} {pid} {_bytes(root / image)}\n" for image, pid in files]
    return f"{dataset} {root} #{hashlib.sha256(''.join(rows).encode()).hexdigest()[:16]}"


def _bytes(photograph: Path) -> int:
    return photograph.stat().st_size if photograph.is_file() else 0  # its pixels may be kept


def _names(population: str) -> set[str]:
    """What a data set goes by: of a folder each is enough, where it lies and what it holds."""
    place, mark, digest = population.rpartition(" #")
    return {place, digest} if mark else {population}
