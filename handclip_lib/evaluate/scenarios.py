"""Ways of asking beyond the protocol's: manifests made of manifests, and the scores of them all."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from handclip_lib.data.check import quantity
from handclip_lib.data.leaks import check_leaks, persons
from handclip_lib.data.manifest import COLUMNS, TRAINING, TooFew, order
from handclip_lib.evaluate.cross import cross_manifest
from handclip_lib.evaluate.protocol import evaluate


def scenarios(
    manifests: Mapping[str, pd.DataFrame], aspect: str, table: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """{name: manifest} of every way to test a model of `aspect` that this data allows.

    manifests: of one data set by aspect, under one mode; table: the photographs they were made of.

    * `own`, `all`: the protocol's two galleries;
    * `multi_shot`: one photograph is asked for and the person's others are the gallery;
    * `person_level`: the gallery of all aspects, any hand of the person being right;
    * `accessories`: photographs with rings, watches or sleeves are asked for;
    * `cross_<aspect>`: hands asked for in this aspect are searched in the gallery of another.

    Each holds query and gallery rows alone, to be scored as `own`, and was checked for leaks
    against the persons that train `aspect`. attrs: `note`, a sentence with its counts, and
    `left_out`, the persons not asked for. What this data does not allow is printed with the reason.
    Raises SplitError on a leak.
    """
    mine = manifests[aspect]
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "own": partial(_protocol, mine, "gallery"),
        "all": partial(_protocol, mine, "gallery_all"),
        "multi_shot": partial(multi_shot, mine),
        "person_level": partial(person_level, mine),
        "accessories": partial(accessories, table, mine),
    }
    for other in (name for name in manifests if name != aspect):
        makers[f"cross_{other}"] = partial(_cross, mine, manifests[other])
    trained = mine[mine["split"].isin(TRAINING)]
    found = {}
    for name, make in makers.items():
        try:
            manifest = make()
        except TooFew as error:
            print(f"{name} is left out: {error}")
            continue
        check_leaks(pd.concat([trained, manifest], ignore_index=True))
        found[name] = manifest
    return found


def counts(scenarios: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a scenario: its sentence, persons asked for, and persons left out."""
    rows = {
        name: {
            "what": manifest.attrs["note"],
            "persons": manifest.loc[manifest["split"] == "query", "pid"].nunique(),
            "left out": manifest.attrs["left_out"],
        }
        for name, manifest in scenarios.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scenario")


def multi_shot(manifest: pd.DataFrame) -> pd.DataFrame:
    """The protocol turned round: the gallery's pick of a draw asks, the person's others answer.

    N photographs of a person give one query and N - 1 gallery entries. A person with one
    photograph is left out, a distractor's entries stay. Raises TooFew.
    """
    asked = manifest[manifest["split"] == "query"]
    entries = manifest[manifest["split"] == "gallery"]
    key = ["draw", "pid"]
    mine = pd.MultiIndex.from_frame(entries[key]).isin(pd.MultiIndex.from_frame(asked[key]))
    aside = entries["pid"].isin(manifest.attrs.get("distractors", ()))
    aside |= entries.duplicated(key, keep=False)  # where nothing says who is a distractor
    rows = [
        entries[mine].assign(split="query"),
        asked.assign(split="gallery"),
        entries[~mine & aside],
    ]
    single = entries.loc[~mine & ~aside, "pid"].nunique()
    return _made(pd.concat(rows), single, "all but one photograph of a person in the gallery")


def person_level(manifest: pd.DataFrame) -> pd.DataFrame:
    """The gallery of all aspects without its offsets: another hand of the person is right as well.

    Hands of persons who train this aspect leave the gallery. Raises TooFew where the manifest has
    no gallery_all.
    """
    entries = manifest[manifest["split"] == "gallery_all"]
    if entries.empty:
        raise TooFew("the data has one aspect, so no other hand of a person")
    entries = entries.assign(split="gallery", pid=persons(entries["pid"]))
    entries, gone = _untrained(entries, manifest)
    rows = pd.concat([manifest[manifest["split"] == "query"], entries])
    note = "any hand of the person is right"
    return _made(rows, 0, note + _gone(gone))


def accessories(table: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """The test persons' photographs with accessories, which manifests leave out, asked for.

    The galleries are the manifest's, without accessories; every draw asks for the same
    photographs. Raises TooFew where the table knows of no such photographs of two persons.
    """
    if "accessories" not in table:
        raise TooFew("the data does not say who wears accessories")
    entries = manifest[manifest["split"] == "gallery"]
    asked = manifest.loc[manifest["split"] == "query", "aspect"].unique()
    worn = table[(table["accessories"] != 0) & table["aspect"].isin(asked)]
    tested = entries[~entries["pid"].isin(manifest.attrs.get("distractors", ()))]
    query = tested[["draw", "pid"]].merge(worn[["pid", "aspect", "image"]], on="pid")
    gone = tested["pid"].nunique() - query["pid"].nunique()
    rows = pd.concat([query.assign(split="query"), entries])
    return _made(rows, gone, "photographs with accessories, searched among those without")


def in_smaller_gallery(frame: pd.DataFrame, manifest: pd.DataFrame, size: int) -> pd.DataFrame:
    """A `per_query` frame of the own gallery as if it held `size` entries: columns pid, rank1, ap.

    So that two data sets can be compared: a larger gallery is harder for any model. Which of the
    others' entries stay is left to chance, and values are means over all choices: of the k that
    stood above the person's one entry, a hypergeometric number stays. manifest: whose gallery it
    was; ValueError where that holds fewer entries in a draw.
    """
    entries = manifest.loc[manifest["split"] == "gallery", "draw"].value_counts()
    if not 1 <= size <= entries.min():
        raise ValueError(f"a gallery of {entries.min()} has no choice of {size}")
    parts = []
    for draw, part in frame.groupby("draw", sort=False):
        others, stay = int(entries[draw]) - 1, np.arange(size)
        above, place = np.unique(part["rank"].to_numpy() - 1, return_inverse=True)
        chance = stats.hypergeom.pmf(stay, others, above[:, None], size - 1)  # (K, size)
        scores = {"rank1": chance[place, 0], "ap": (chance @ (1 / (1 + stay)))[place]}
        parts.append(part[["draw", "pid"]].assign(**scores))
    return pd.concat(parts)


def evaluate_all(
    features_of: Callable[[list[str]], npt.NDArray[np.floating]],
    scenarios: Mapping[str, pd.DataFrame],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{scenario: scores}: each manifest's `own` entry of `protocol.evaluate`, ready for a file.

    features_of: unit rows (N, D) of the images named, in their order; called once, with every image
    that any scenario asks for or searches, each named once. Manifests of several data sets are
    scored together where features_of knows the images of them all.
    """
    tests = {name: _tests(manifest) for name, manifest in scenarios.items()}
    if not tests:
        return {}
    images = list(dict.fromkeys(pd.concat([t["image"] for t in tests.values()])))
    features = features_of(images)
    return {
        name: evaluate(features, images, manifest, bootstrap, seed)["own"]
        for name, manifest in tests.items()
    }


def _tests(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[manifest["split"].isin(("query", "gallery"))]


def _protocol(manifest: pd.DataFrame, gallery: str) -> pd.DataFrame:
    """The manifest's own queries against one of its two galleries, as the gallery."""
    entries = manifest[manifest["split"] == gallery]
    if entries.empty:
        raise TooFew("the data has one aspect, so no hands of others to add")
    rows = pd.concat([manifest[manifest["split"] == "query"], entries.assign(split="gallery")])
    others = ", the other aspects' hands being distractors" * (gallery == "gallery_all")
    return _made(rows, 0, f"the gallery of a draw{others}")


def _cross(query: pd.DataFrame, gallery: pd.DataFrame) -> pd.DataFrame:
    """`cross_manifest` without the gallery's hands of persons who train the query's aspect."""
    entries, gone = _untrained(gallery[gallery["split"] == "gallery"], query)
    manifest = cross_manifest(query, entries)
    note = "hands of one aspect searched among those of another"
    return _made(manifest, manifest.attrs["left_out"], note + _gone(gone))


def _untrained(entries: pd.DataFrame, manifest: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Gallery entries without persons whom the manifest trains on, and how many those are."""
    trained = manifest.loc[manifest["split"].isin(TRAINING), "pid"]
    leak = entries["pid"].isin(trained)
    return entries[~leak], entries.loc[leak, "pid"].nunique()


def _gone(persons: int) -> str:
    return f"; {quantity(persons, 'training person')} taken from the gallery" * (persons > 0)


def _made(rows: pd.DataFrame, left_out: int, note: str) -> pd.DataFrame:
    """The rows as a manifest in its one order, with what its attrs tell; TooFew to be scored."""
    asked = rows.loc[rows["split"] == "query", "pid"].nunique()
    if asked < 2:
        raise TooFew(f"{quantity(asked, 'person')} can be asked for; two are needed")
    manifest = order(rows[list(COLUMNS)].itertuples(index=False, name=None))
    told = f"{note}: {quantity(asked, 'person')} asked for"
    if left_out:
        told += f", {left_out} left out"
    manifest.attrs = {"note": told, "left_out": left_out}
    return manifest
