"""From a table to a manifest: which image trains, which is asked for, which is in a gallery.

The identity split is the literature's (MBA-Net, arXiv:2108.02234). The draws are hashed, so that
they depend on nothing but their key: not on the platform, row order, other aspects or persons.
(Named persons of own data have numbers by the order of all names: there a new name moves others.)
"""

import hashlib
from collections.abc import Iterable, Mapping
from math import ceil

import pandas as pd

from handclip_lib.aspects import ASPECTS, OFFSETS
from handclip_lib.data.leaks import annotated, check_leaks, distractors
from handclip_lib.data.legacy import import_tree
from handclip_lib.data.manifest import (
    SplitError,
    TooFew,
    order,
    read_manifest,
    sha256,
    write_manifest,
)
from handclip_lib.data.own import LARGEST_PID
from handclip_lib.params import resolve
from handclip_lib.schema import Params
from handclip_lib.schema_base import did_you_mean

__all__ = [
    "SplitError",
    "all_aspects",
    "make_manifest",
    "manifest_for",
    "pick",
    "read_manifest",
    "sha256",
    "write_manifest",
]

MODES = ("published", "person_disjoint")
_Images = dict[int, list[str]]  # person -> images in the order of their names
_Row = tuple[str, int, int, str, str]  # split, draw, pid, aspect, image


def make_manifest(
    table: pd.DataFrame,
    aspect: str,
    mode: str = "published",
    split_seed: int = 0,
    draws: int = 10,
    select: str = "none",
) -> pd.DataFrame:
    """The manifest of one aspect: rows `split, draw, pid, aspect, image` in a fixed order.

    split: train, val (draw -1), select (draw 0), query, gallery, gallery_all (draws 0 …). Images
    with accessories are dropped. Of an aspect's n persons in numeric order the first ceil(n/2)
    train; mode person_disjoint takes from them whoever is tested in any aspect. One image of a
    training person is val, one of a test person is the gallery, another in each draw. gallery_all
    adds the other aspects' galleries, their pids offset: another hand is another identity.
    Every image of a person marked `distractor` is in the galleries of its aspect.
    select="persons": one training person in five is held out whole. attrs: `distractors` (those
    persons) and `singletons`: persons with one image, who have no val (training) or no query
    (test). Raises SplitError; TooFew, which is one, where the aspect has too few persons.
    """
    _check_request(aspect, mode, draws, select)
    _check_table(table)
    hands, extra = _hands(table)
    if aspect not in hands:
        raise TooFew(_no_aspect(aspect, hands))
    key = f"{split_seed}|{table['dataset'].iloc[0]}"
    train, test = _halves(hands, mode)
    mine, held = hands[aspect], set[int]()
    _check_sizes(aspect, train[aspect], test[aspect], mine)
    if select == "persons":
        held = _held_out(key, set().union(*train.values())) & train[aspect]
        _check_held(aspect, held, train[aspect], mine)
    rows = _training_rows(key, aspect, mine, train[aspect], held)
    for draw in range(draws):
        rows += _testing_rows(key, aspect, mine, test[aspect], draw)
        rows += [("gallery", draw, pid, aspect, i) for pid, of, i in extra if of == aspect]
        rows += _other_hands(key, aspect, hands, test, draw)
    manifest = _tidy(rows)
    check_leaks(manifest, across=mode == "person_disjoint")
    return annotated(manifest, table)


def manifest_for(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    """The manifest that `p.split` asks for, of `p.aspect`.

    Raises TooFew where fewer than two persons are asked for: an interval over persons needs two.
    """
    split = p.split
    if split.legacy_tree:
        manifest = _imported(p, table)
    else:
        manifest = make_manifest(table, p.aspect, split.mode, split.seed, split.draws, split.select)
    asked = manifest.loc[manifest["split"] == "query", "pid"].nunique()
    if asked < 2:
        raise TooFew(
            f"{p.aspect}: {asked} test person has two images or more; two such persons are needed"
        )
    return manifest


def _imported(p: Params, table: pd.DataFrame) -> pd.DataFrame:
    split = p.split
    if split.mode != "published" or split.select != "none":
        raise SplitError(
            "split.legacy_tree is taken as it is: it needs split.mode published and"
            f" split.select none, not {split.mode} and {split.select}"
        )
    return import_tree(resolve(split.legacy_tree), table, p.aspect, split.draws)


def all_aspects(p: Params, table: pd.DataFrame, mode: str) -> dict[str, pd.DataFrame]:
    """{aspect: manifest} of every aspect of the data under one mode, for looking across aspects.

    An aspect with too few persons to be split is left out, and printed. `p.split.legacy_tree` is
    the manifest of `p.aspect` under its own mode.
    """
    split, manifests = p.split, {}
    for aspect in (a for a in ASPECTS if (table["aspect"] == a).any()):
        if split.legacy_tree and (aspect, mode) == (p.aspect, split.mode):
            manifests[aspect] = manifest_for(p, table)
            continue
        try:
            manifests[aspect] = make_manifest(
                table, aspect, mode, split.seed, split.draws, split.select
            )
        except TooFew as error:
            print(f"{aspect} is left out: {error}")
    return manifests


def _hands(table: pd.DataFrame) -> tuple[dict[str, _Images], list[tuple[int, str, str]]]:
    """Images by aspect and person, without accessories; and the distractor persons' rows."""
    aside = set(distractors(table))
    if "accessories" in table:
        table = table[table["accessories"] == 0]
    whole_path = set(table["dataset"]) == {"own"}  # own names need not be unique without folders
    hands: dict[str, _Images] = {}
    extra = []
    columns = (table["pid"], table["aspect"], table["image"])
    for pid, aspect, image in zip(*columns, strict=True):
        if pid in aside:
            extra.append((int(pid), str(aspect), str(image)))
        else:
            hands.setdefault(str(aspect), {}).setdefault(int(pid), []).append(str(image))
    for people in hands.values():
        for images in people.values():
            images.sort(key=lambda i: (i if whole_path else i.rpartition("/")[2], i))
    return hands, extra


def _halves(
    hands: Mapping[str, _Images], mode: str
) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Training and test persons of every aspect."""
    train, test = {}, {}
    for aspect, people in hands.items():
        pids = sorted(people)
        half = ceil(len(pids) / 2)
        train[aspect], test[aspect] = set(pids[:half]), set(pids[half:])
    if mode == "person_disjoint":
        tested = set().union(*test.values())
        train = {aspect: pids - tested for aspect, pids in train.items()}
    return train, test


def pick(key: str, images: list[str]) -> str:
    """One of a person's images, by the hash of a key: on every machine the same."""
    return images[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(images)]


def _gallery(key: str, aspect: str, mine: _Images, test: set[int], draw: int) -> dict[int, str]:
    return {pid: pick(f"{key}|{aspect}|run{draw}|{pid}", mine[pid]) for pid in test}


def _held_out(key: str, train: set[int]) -> set[int]:
    """One training person in five, the same in every aspect."""
    ranked = sorted(
        train, key=lambda pid: hashlib.sha256(f"{key}|select|{pid}".encode()).hexdigest()
    )
    return set(ranked[: ceil(len(ranked) / 5)])


def _training_rows(
    key: str, aspect: str, mine: _Images, train: set[int], held: set[int]
) -> list[_Row]:
    rows: list[_Row] = []
    for pid in train - held:
        images = mine[pid]
        val = pick(f"{key}|{aspect}|val|{pid}", images) if len(images) > 1 else ""
        rows += [("val" if i == val else "train", -1, pid, aspect, i) for i in images]
    return rows + [("select", 0, pid, aspect, i) for pid in held for i in mine[pid]]


def _testing_rows(key: str, aspect: str, mine: _Images, test: set[int], draw: int) -> list[_Row]:
    rows: list[_Row] = []
    for pid, chosen in _gallery(key, aspect, mine, test, draw).items():
        kinds = ((image, "gallery" if image == chosen else "query") for image in mine[pid])
        rows += [(kind, draw, pid, aspect, image) for image, kind in kinds]
    return rows


def _other_hands(
    key: str, aspect: str, hands: Mapping[str, _Images], test: Mapping[str, set[int]], draw: int
) -> list[_Row]:
    rows: list[_Row] = []
    for offset, other in zip(OFFSETS, ASPECTS[aspect].distractors, strict=False):
        if other in hands:
            chosen = _gallery(key, other, hands[other], test[other], draw)
            rows += [("gallery_all", draw, pid + offset, other, i) for pid, i in chosen.items()]
    return rows


def _tidy(rows: list[_Row]) -> pd.DataFrame:
    if any(row[0] == "gallery_all" for row in rows):
        rows = rows + [("gallery_all", *row[1:]) for row in rows if row[0] == "gallery"]
    return order(rows)


def _check_request(aspect: str, mode: str, draws: int, select: str) -> None:
    for name, value, known in (
        ("aspect", aspect, tuple(ASPECTS)),
        ("mode", mode, MODES),
        ("select", select, ("none", "persons")),
    ):
        if value not in known:
            near = did_you_mean(str(value), known)
            raise SplitError(f"unknown {name} '{value}'{near}; one of {', '.join(known)}")
    if not 1 <= draws <= 100:
        raise SplitError(f"draws must be from 1 to 100, not {draws}")


def _check_table(table: pd.DataFrame) -> None:
    missing = [c for c in ("image", "pid", "aspect", "dataset") if c not in table]
    if missing or table.empty:
        raise SplitError(f"no table of photographs: {', '.join(missing) or 'rows'} missing")
    again = table.loc[table["image"].duplicated(), "image"]
    if len(again):
        raise SplitError(f"image {again.iloc[0]} is in the table twice")
    datasets = sorted(set(table["dataset"]))
    if len(datasets) > 1:
        raise SplitError(f"a manifest is of one data set, not of {', '.join(datasets)}")
    strange = table.loc[~table["pid"].between(0, LARGEST_PID), "pid"]
    if len(strange):
        raise SplitError(f"pid {strange.iloc[0]}: persons' numbers are 0 to {LARGEST_PID}")


def _no_aspect(aspect: str, hands: Iterable[str]) -> str:
    known = sorted(hands)
    return (
        f"no photographs of {aspect} without accessories; the data has {', '.join(known) or 'none'}"
        + (f": pass aspect {known[0]} (handclip run … --aspect {known[0]})" if known else "")
    )


def _check_sizes(aspect: str, train: set[int], test: set[int], mine: _Images) -> None:
    asked = sum(len(mine[pid]) > 1 for pid in test)
    if not train or not asked:
        raise TooFew(
            f"{aspect}: {len(train)} training persons, and {asked} of {len(test)} test persons can"
            f" be asked for, having two images or more (the data has {len(mine)} persons of it)"
        )


def _check_held(aspect: str, held: set[int], train: set[int], mine: _Images) -> None:
    if not any(len(mine[pid]) > 1 for pid in held):
        raise TooFew(
            f"{aspect}: none of the persons held out by split.select has two images of it;"
            " set split.select none, another split.seed, or take more persons"
        )
    if len(train - held) < 2:
        raise TooFew(
            f"{aspect}: {len(train - held)} training person is left beside {len(held)} held out;"
            " set split.select none, or take more persons"
        )
