"""Whom weights were taught, as a checkpoint of ours records it: persons by data set."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from handclip_lib.data.check import source_of

# By data set: `11k`, `HD`, `drawn ROOT #DIGEST`; persons by number, own ones by digest of their id
Taught = dict[str, list[int | str]]


def persons_taught(taught: Mapping[str, Any], table: pd.DataFrame) -> set[int]:
    """Whom of a table's data set weights of ours were taught, by `taught` of their checkpoint.

    A folder is known again where it was moved or copied as it is, and where it changed in place;
    its persons by what their owner calls them, since a new name moves the numbers of others.
    """
    here = _own(table)
    found = {here.get(who, who) for who in _recorded(taught, table)}
    return {pid for pid in found if isinstance(pid, int)}  # the rest are no longer here


def also_taught(taught: Taught, table: pd.DataFrame, pids: Iterable[int]) -> Taught:
    """What is recorded of weights that were taught these persons of a table, too."""
    called = {pid: name for name, pid in _own(table).items()}
    everybody = {*_recorded(taught, table), *(called.get(pid, pid) for pid in pids)}
    return taught | {_population(table): sorted(everybody, key=str)}


def _recorded(taught: Mapping[str, Any], table: pd.DataFrame) -> set[int | str]:
    here = _names(_population(table))
    return {who for data, people in taught.items() if _names(data) & here for who in people}


def _own(table: pd.DataFrame) -> dict[str | int, int]:
    """{digest of what own photographs call a person: pid}; of other data sets nobody."""
    if table["dataset"].iloc[0] != "own":
        return {}
    people = table.drop_duplicates("pid")
    words = people["name" if table.attrs.get("named") else "pid"].astype(str)
    digests = [hashlib.sha256(word.encode()).hexdigest()[:16] for word in words]
    return dict(zip(digests, people["pid"].tolist(), strict=True))


def _population(table: pd.DataFrame) -> str:
    """The data set whose persons a table's numbers count: its name, or `own ROOT #DIGEST`."""
    dataset = str(table["dataset"].iloc[0])
    if dataset not in ("own", "drawn"):
        return dataset
    root = Path(table.attrs["root"])
    files = sorted(zip(table["image"], table["pid"], strict=True))
    rows = [f"{image} {pid} {_bytes(root / image)}\n" for image, pid in files]
    # Others have other persons by the same numbers
    return (
        f"{dataset} {source_of(table)} #{hashlib.sha256(''.join(rows).encode()).hexdigest()[:16]}"
    )


def _bytes(photograph: Path) -> int:
    return photograph.stat().st_size if photograph.is_file() else 0  # its pixels may be kept


def _names(population: str) -> set[str]:
    """What a data set goes by: of a folder each is enough, where it lies and what it holds."""
    place, mark, digest = population.rpartition(" #")
    return {place, digest} if mark else {population}
