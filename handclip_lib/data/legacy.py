"""Folder trees of earlier scripts, `train_val_test_split_<aspect>/{train,val,query0,…}/<id>/`.

They are read as they are into a manifest; a manifest can be written as such a tree of links.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from handclip_lib.aspects import ASPECTS, OFFSETS
from handclip_lib.data.check import image_suffixes, listed
from handclip_lib.data.leaks import annotated, check_leaks, parts, persons
from handclip_lib.data.manifest import TESTING, TRAINING, SplitError, order


def import_tree(
    tree: str | Path, table: pd.DataFrame, aspect: str, draws: int | None = None
) -> pd.DataFrame:
    """The manifest of a legacy tree; images are found by person, aspect and file name.

    draws: how many of the tree's to take (None: all). Raises FileNotFoundError without a tree;
    SplitError, naming them, for files that the table has not, or more than once, under those,
    for a person asked for with several gallery images in a draw, and for whatever
    `check_leaks` refuses.
    """
    tree = Path(tree)
    if not tree.is_dir():
        raise FileNotFoundError(f"no folder {tree}; split.legacy_tree names a split made earlier")
    known: dict[tuple[int, str], dict[str, list[str]]] = {}  # person, name -> aspect -> images
    for pid, image, of in zip(table["pid"], table["image"], table["aspect"], strict=True):
        of_name = known.setdefault((int(pid), str(image).rpartition("/")[2]), {})
        of_name.setdefault(str(of), []).append(str(image))
    rows, problems = [], []
    for split, draw, label, path in _files(tree, draws):
        person, of = _person_and_aspect(label, aspect)
        found = known.get((person, path.name), {})
        images = found.get(of, [])
        where = path.relative_to(tree)
        if not found:
            problems.append(f"{where}: the table has no such image of person {person}")
        elif not images:
            problems.append(f"{where}: this image is {', '.join(found)}, not {of}")
        elif len(images) > 1:
            problems.append(f"{where}: the table has several such images: {', '.join(images)}")
        rows.append((split, draw, label, of, "".join(images)))
    if problems:
        message = [f"{tree} does not fit the data:", *listed(problems, 20)]
        raise SplitError("\n  ".join(message))
    manifest = order(rows)
    _check(tree, manifest, draws)
    return annotated(manifest, table)


def _person_and_aspect(label: int, aspect: str) -> tuple[int, str]:
    """Whom a label means, and which hand: offsets stand for the other aspects in their order."""
    person = int(persons(pd.Series([label])).iloc[0])
    others = dict(zip(OFFSETS, ASPECTS[aspect].distractors, strict=False))
    return person, others.get(label - person, aspect)


def _files(tree: Path, draws: int | None) -> Iterator[tuple[str, int, int, Path]]:
    """(split, draw, label, file) of a tree; folders that are no part of a split are passed by."""
    suffixes = image_suffixes()
    for folder in sorted(f for f in tree.iterdir() if f.is_dir()):
        split, draw = _part(folder.name)
        if split and (draws is None or draw < draws):
            for path in sorted(folder.glob("*/*")):
                if path.suffix.lower() in suffixes:
                    yield split, draw, _label(path.parent), path


def _part(name: str) -> tuple[str, int]:
    """Split and draw that a folder is named for, as gallery3_all is; ("", -1) for neither."""
    match = re.fullmatch(r"([a-z]+)(\d*)(_all)?", name)
    if match:
        split = match[1] + (match[3] or "")
        if split in (TESTING if match[2] else TRAINING):
            return split, int(match[2] or -1 + (split == "select"))
    return "", -1


def _label(folder: Path) -> int:
    text = folder.name.strip()  # a stray blank in 11k's metadata became a folder's name
    if not (text.isascii() and text.isdecimal()):
        raise SplitError(f"{folder}: a person's folder is named by a number")
    return int(text)


def _check(tree: Path, manifest: pd.DataFrame, draws: int | None) -> None:
    split = manifest["split"]
    asked, gallery = manifest[split == "query"], manifest[split == "gallery"]
    found = sorted(set(asked["draw"]))
    wanted = draws or len(found)
    if not found or found != list(range(wanted)) or not (split == "train").any():
        raise SplitError(
            f"{tree} needs train/ and query0/ to query{max(wanted, 1) - 1}/ with a gallery each"
            f" (split.draws); it has queries {', '.join(map(str, found)) or 'none'}"
        )
    many = gallery[gallery.duplicated(["draw", "pid"]) & gallery["pid"].isin(asked["pid"])]
    if len(many):
        first = many.iloc[0]
        raise SplitError(
            f"{tree}/gallery{first['draw']}: several images of person {first['pid']}"
            f" ({Path(first['image']).name} …); the split was probably made twice into one folder"
        )
    check_leaks(manifest)


def export_tree(manifest: pd.DataFrame, root: str | Path, out: str | Path) -> Path:
    """Write the manifest as a legacy tree of links to the images under root; returns the tree.

    Folders train_all, train, val, test, query0 …, gallery0 …, gallery0_all …, one folder for each
    person (seven digits). Raises SplitError when out is not empty, an image is missing, or two
    images of a person have one file name.
    """
    root, out = Path(root).resolve(), Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SplitError(f"{out} is not an empty folder; a tree is never written into another")
    lost = [image for image in dict.fromkeys(manifest["image"]) if not (root / image).is_file()]
    if lost:
        raise SplitError(f"{root} has no {', '.join(listed(lost, 5))} ({len(lost)} images missing)")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for name, draw, rows in parts(manifest):
            stem, _, every = name.partition("_")
            folder = name if draw < 0 else f"{stem}{draw}{every and '_all'}"
            for pid, image in zip(rows["pid"], rows["image"], strict=True):
                link = tree / folder / f"{pid:07d}" / Path(image).name
                link.parent.mkdir(parents=True, exist_ok=True)
                if link.is_symlink():
                    raise SplitError(f"person {pid} has two images named {link.name}: {image}")
                link.symlink_to(root / image)
        os.replace(tree, out)
    return out
