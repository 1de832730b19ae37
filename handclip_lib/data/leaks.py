"""What may not happen in a manifest, and what is in it: leaks, missing matches, counts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from handclip_lib.aspects import OFFSETS
from handclip_lib.data.check import listed
from handclip_lib.data.manifest import COLUMNS, SPLITS, TESTING, TRAINING, SplitError

if TYPE_CHECKING:  # it brings torch along
    from handclip_lib.data.store import Store


def persons(pids: "pd.Series[int]") -> "pd.Series[int]":
    """The persons behind a manifest's labels: gallery_all's offsets taken off."""
    plain = pids.copy()
    for offset in reversed(OFFSETS):
        plain = plain.where(plain < offset, plain - offset)
    return plain


def check_leaks(*manifests: pd.DataFrame, across: bool | None = None) -> None:
    """Raise SplitError, naming the culprits, when training and test share an image or identity.

    Also for a repeated row, an image under two persons, and a query without a match in its draw.
    manifests: of one data set. across: compare persons behind all hands, not one manifest's
    labels; so it is by default when several manifests are given, as for training on them all.
    """
    for manifest in manifests:
        _check_rows(manifest)
        _check_matches(manifest)
    rows = pd.concat([m[list(COLUMNS)] for m in manifests], ignore_index=True)
    rows["person"] = persons(rows["pid"])
    if across is None:
        across = len(manifests) > 1
    owners = rows.drop_duplicates(["image", "person"])
    _refuse(owners.loc[owners["image"].duplicated(), "image"], "image under two persons")
    training, testing = (rows[rows["split"].isin(side)] for side in (TRAINING, TESTING))
    shared = training.loc[training["image"].isin(testing["image"]), "image"]
    _refuse(shared, "image in training and in test")
    label = "person" if across else "pid"
    shared = training.loc[training[label].isin(testing[label]), label]
    _refuse(shared, "person in training and in test")
    held = rows["split"] == "select"
    trained = rows["split"].isin(("train", "val"))
    shared = rows.loc[held & rows["person"].isin(rows.loc[trained, "person"]), "person"]
    _refuse(shared, "person held out for selection and trained on")


def _check_rows(manifest: pd.DataFrame) -> None:
    strange = manifest.loc[~manifest["split"].isin(SPLITS), "split"]
    _refuse(strange, f"unknown split (known: {', '.join(SPLITS)})")
    again = manifest.duplicated(["split", "draw", "image"])
    _refuse(manifest.loc[again, "image"], "image twice in the same split and draw")
    training = manifest[manifest["split"].isin(TRAINING)]
    again = training["image"].duplicated()
    _refuse(training.loc[again, "image"], "image in two of train, val and select")


def _check_matches(manifest: pd.DataFrame) -> None:
    query = manifest[manifest["split"] == "query"]
    for name in ("gallery", "gallery_all"):
        gallery = manifest[manifest["split"] == name]
        if gallery.empty and name == "gallery_all":
            continue
        known = pd.MultiIndex.from_frame(gallery[["draw", "pid"]])
        asked = pd.MultiIndex.from_frame(query[["draw", "pid"]])
        lost = query[~asked.isin(known)]
        where = [
            f"{pid} in draw {draw}" for pid, draw in zip(lost["pid"], lost["draw"], strict=True)
        ]
        _refuse(where, f"query person without a match in {name}")
        known = pd.MultiIndex.from_frame(gallery[["draw", "image"]])
        asked = pd.MultiIndex.from_frame(query[["draw", "image"]])
        _refuse(query.loc[asked.isin(known), "image"], f"image in query and {name} of a draw")


def _refuse(culprits: Iterable[object], what: str) -> None:
    """Raise SplitError when there are culprits: the first five are named, the rest counted."""
    names = list(dict.fromkeys(str(c) for c in culprits))
    if names:
        raise SplitError(f"{what}: {', '.join(listed(names, 5))}")


def same_pixels(manifest: pd.DataFrame, store: "Store") -> pd.DataFrame:
    """Exact copies in a manifest: one row for each set of images with equal pixels.

    Columns `images` (names, in words), `persons` (how many; other hands count as the person's),
    `leak`: "training and test", "query and gallery" (of one draw), or nothing. Decodes every image
    of the manifest; pixels are compared as the store fits them. Near copies stay unseen.
    """
    rows = manifest.assign(person=persons(manifest["pid"]))
    images = list(dict.fromkeys(rows["image"]))
    rows["pixels"] = rows["image"].map(dict(zip(images, store.digest(images), strict=True)))
    copied = rows.groupby("pixels", sort=False)["image"].transform("nunique") > 1
    found = [
        {
            "images": ", ".join(dict.fromkeys(part["image"])),
            "persons": part["person"].nunique(),
            "leak": _leak(part),
        }
        for _, part in rows[copied].groupby("pixels", sort=False)
    ]
    return pd.DataFrame(found, columns=["images", "persons", "leak"])


def _leak(copies: pd.DataFrame) -> str:
    """Which sides the rows of equal pictures lie on that must not share one."""
    testing = copies[copies["split"].isin(TESTING)]
    if 0 < len(testing) < len(copies):
        return "training and test"
    asked = testing["split"] == "query"
    both = set(testing.loc[asked, "draw"]) & set(testing.loc[~asked, "draw"])
    return "query and gallery" if both else ""


def leak_table(manifests: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Which test persons of an aspect are training persons of another, or of any.

    One row for each manifest's aspect: `test` persons, how many of them each aspect trains on,
    how many any does (`any`), and `who` (their numbers, in words). All 0 in person_disjoint mode.
    """
    sides = {}
    for manifest in manifests:
        trained = manifest.loc[manifest["split"].isin(TRAINING), "pid"]
        aspect = manifest.loc[manifest["split"] == "query", "aspect"].iloc[0]
        sides[str(aspect)] = (set(trained), _test_persons(manifest))
    rows = []
    for _, tested in sides.values():
        leaks = {aspect: len(tested & trained) for aspect, (trained, _) in sides.items()}
        who = sorted(tested & set().union(*(trained for trained, _ in sides.values())))
        text = ", ".join(map(str, who))
        rows.append({"test": len(tested)} | leaks | {"any": len(who), "who": text})
    return pd.DataFrame(rows, index=pd.Index(sides, name="tested"))


def _test_persons(manifest: pd.DataFrame) -> set[int]:
    """Persons asked for, and those whose one image is in the gallery; no distractors."""
    gallery = manifest[manifest["split"] == "gallery"]
    single = gallery[~gallery.duplicated(["draw", "pid"], keep=False)]
    single = single[~single["pid"].isin(manifest.attrs.get("distractors", ()))]
    asked = manifest.loc[manifest["split"] == "query", "pid"]
    return {int(pid) for pid in (*asked.unique(), *single["pid"].unique())}


def annotated(manifest: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The manifest with its attrs: `distractors` and `singletons`, both lists of persons."""
    manifest.attrs = {"distractors": distractors(table)}
    manifest.attrs["singletons"] = singletons(manifest)
    return manifest


def distractors(table: pd.DataFrame) -> list[int]:
    """The persons that a table marks as distractors: only ever in a gallery, never asked for.

    Raises SplitError on a person who is one in some rows and none in others.
    """
    if "distractor" not in table:
        return []
    aside = table.groupby("pid")["distractor"].agg(["min", "max"]).astype(bool)
    _refuse(aside.index[aside["min"] != aside["max"]], "person a distractor in some rows only")
    return [int(pid) for pid in aside.index[aside["max"]]]


def singletons(manifest: pd.DataFrame) -> list[int]:
    """Persons with one image: no val (training), nothing to be asked for (test)."""
    single = manifest[manifest["split"].isin(TRAINING)]
    single = single[~single["pid"].duplicated(keep=False)]
    asked = manifest.loc[manifest["split"] == "query", "pid"]
    return sorted({int(pid) for pid in single["pid"]} | _test_persons(manifest) - set(asked))


def counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Persons and images of each part: `ids, images, min, n_min, max, n_max` (images a person).

    Rows: train_all (train and val), train, val, select, test, query,
    gallery, gallery_all; one row for all draws when they agree, else one for each that differs.
    """
    rows = []
    for name, draw, part in parts(manifest):
        sizes = part.groupby("pid").size().to_numpy()
        row = {"part": name, "draw": draw, "ids": len(sizes), "images": len(part)}
        for end, n in (("min", int(sizes.min())), ("max", int(sizes.max()))):
            row |= {end: n, f"n_{end}": int((sizes == n).sum())}
        rows.append(row)
    frame = pd.DataFrame(rows)
    alike = [column for column in frame if column != "draw"]
    return frame.drop_duplicates(alike).set_index("part")


def parts(manifest: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """The manifest's (part, draw, rows), with train_all and test of the literature's folders."""
    split = manifest["split"]
    first = manifest["draw"] == manifest.loc[split == "query", "draw"].min()
    tests = split.isin(("query", "gallery")) & first & manifest["pid"].isin(_test_persons(manifest))
    for name, chosen in (
        ("train_all", split.isin(("train", "val"))),
        *((name, split == name) for name in TRAINING),
        ("test", tests),
    ):
        if chosen.any():
            yield name, -1, manifest[chosen]
    for name in TESTING:
        for draw, part in manifest[split == name].groupby("draw"):
            yield name, int(str(draw)), part
