"""Photographs of which little need be known: a folder, a CSV, or one file by its path."""

from pathlib import Path

import pandas as pd

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data.check import (
    TableError,
    aspect_of,
    check_images,
    finish,
    listed,
    pictures,
    read_rows,
    relative,
    repeated,
)
from handclip_lib.data.tables import read_11k
from handclip_lib.schema_base import did_you_mean


def read_photographs(path: Path) -> pd.DataFrame:
    """Photographs whose persons need not be known: columns `image`, `person`, `aspect`, as text.

    path: a folder, read with all its folders; or a CSV with a column `image` (relative to the
    CSV) and perhaps `pid` and `aspect`. A folder with HandInfo.csv is read as 11k Hands. In any
    other one the innermost folder that no aspect is named after is the person, where each
    photograph has one and they are several; a folder named after an aspect says so.
    Raises FileNotFoundError, or TableError with all problems together.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"no photographs at {path}: give a folder or a CSV")
    if (path / "HandInfo.csv").is_file():
        table = read_11k(path)
        return table.assign(person=table["pid"].astype(str))[["image", "person", "aspect"]]
    root = path.parent if path.is_file() else path
    rows, problems = _from_csv(path) if path.is_file() else (_from_folder(root), [])
    problems = problems + check_images(root, [("", row["image"]) for row in rows])
    if not rows and not problems:
        raise TableError(f"{path}: no photographs in it")
    return finish(rows, root, "", problems)


def _from_csv(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    rows, lines, problems = [], [], []
    for line, cells in read_rows(path, ("image",)):
        told = cells.get("aspect", "")
        if told and not aspect_of(told):
            problems.append(f"row {line}: unknown aspect '{told}'{did_you_mean(told, ASPECTS)}")
        if not cells["image"]:
            problems.append(f"row {line}: the cell 'image' is empty")
            continue
        image, person = relative(cells["image"], path.parent), cells.get("pid", "")
        rows.append({"image": image, "person": person, "aspect": aspect_of(told) or ""})
        lines.append(line)
    twice = repeated(zip(lines, (row["image"] for row in rows), strict=True))
    return rows, problems + twice


def _from_folder(root: Path) -> list[dict[str, str]]:
    rows = []
    for image in pictures(root):
        folders = image.split("/")[:-1]
        others = [folder for folder in folders if not aspect_of(folder)]
        aspects = [name for folder in folders if (name := aspect_of(folder))]
        person, aspect = "".join(others[-1:]), "".join(aspects[-1:])
        rows.append({"image": image, "person": person, "aspect": aspect})
    persons = {row["person"] for row in rows}
    if "" in persons or len(persons) < 2:
        rows = [row | {"person": ""} for row in rows]
    return rows


def check_sides(table: pd.DataFrame) -> None:
    """A model whose left hands are mirrored has to be told which these are, or TableError."""
    unknown = table.loc[~table["aspect"].isin(CHAIN), "image"].tolist()
    if unknown:
        raise TableError(
            f"this model mirrors left hands (mirror_left), and of {len(unknown)} of {len(table)}"
            f" photographs nothing says which hand it is: put them in folders named"
            f" {', '.join(CHAIN)}, or give a CSV with the columns image and aspect",
            listed(unknown, 10),
        )


def one_photograph(path: Path, aspect: str = "") -> pd.DataFrame:
    """A photograph as a table of one row, with the columns of `read_photographs`.

    aspect: what it shows, where neither a HandInfo.csv above its folder nor the name of its folder
    says so. Raises FileNotFoundError, or TableError on what is no whole picture, and where they
    contradict.
    """
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        raise TableError(f"{path} is a folder: name one photograph in it")
    if not path.exists():
        raise FileNotFoundError(f"no photograph {path}")
    person, told = _told(path)
    told = "" if told == "hand" else told
    if not (told.startswith(aspect) or aspect.startswith(told)):
        raise TableError(f"{path} shows {told} by its data or folder, not {aspect}")
    row = {"image": path.name, "person": person, "aspect": max(told, aspect, key=len)}
    return finish([row], path.parent, "", check_images(path.parent, [("", path.name)]))


def _told(path: Path) -> tuple[str, str]:
    """Person and aspect by 11k's table above the folder, or by the folder's name."""
    root = path.parent.parent
    if path.parent.name == "Hands" and (root / "HandInfo.csv").is_file():
        table = read_11k(root, check_files=False)
        rows = table[table["image"] == f"Hands/{path.name}"]
        if len(rows):
            return str(rows["pid"].iloc[0]), str(rows["aspect"].iloc[0])
    return "", aspect_of(path.parent.name) or ""
