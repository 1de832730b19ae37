"""Splits: the literature's counts, the fixed draws, no leak, and legacy trees."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_tables import make_hd

from handclip_lib import params
from handclip_lib.aspects import CHAIN
from handclip_lib.data import leaks, legacy, splits
from handclip_lib.data import manifest as files
from handclip_lib.data.drawn.dataset import plan
from handclip_lib.data.hd import read_hd
from handclip_lib.data.manifest import SplitError, TooFew
from handclip_lib.data.own import read_own
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.splits import make_manifest
from handclip_lib.data.store import open_store
from handclip_lib.data.tables import read_11k

# persons, images, fewest (of so many persons), most (of so many): protocol of the literature
PUBLISHED = {
    "dorsal_r": {
        "train_all": (72, 962, 3, 1, 41, 2), "train": (72, 890, 2, 1, 40, 2),
        "val": (72, 72, 1, 72, 1, 72), "test": (71, 1042, 2, 1, 46, 1),
        "gallery": (71, 71, 1, 71, 1, 71), "query": (71, 971, 1, 1, 45, 1),
        "gallery_all": (290, 290, 1, 290, 1, 290),
    },
    "dorsal_l": {
        "train_all": (73, 808, 2, 1, 42, 1), "train": (73, 735, 1, 1, 41, 1),
        "val": (73, 73, 1, 73, 1, 73), "test": (73, 1061, 4, 1, 52, 1),
        "gallery": (73, 73, 1, 73, 1, 73), "query": (73, 988, 3, 1, 51, 1),
        "gallery_all": (290, 290, 1, 290, 1, 290),
    },
    "palmar_r": {
        "train_all": (72, 977, 4, 4, 71, 1), "train": (72, 905, 3, 4, 70, 1),
        "val": (72, 72, 1, 72, 1, 72), "test": (71, 988, 4, 2, 54, 1),
        "gallery": (71, 71, 1, 71, 1, 71), "query": (71, 917, 3, 2, 53, 1),
        "gallery_all": (290, 290, 1, 290, 1, 290),
    },
    "palmar_l": {
        "train_all": (76, 1004, 2, 2, 56, 1), "train": (76, 928, 1, 2, 55, 1),
        "val": (76, 76, 1, 76, 1, 76), "test": (75, 1023, 4, 1, 39, 1),
        "gallery": (75, 75, 1, 75, 1, 75), "query": (75, 948, 3, 1, 38, 1),
        "gallery_all": (290, 290, 1, 290, 1, 290),
    },
}  # fmt: skip
# first 16 hex of sha256 over train_all, test ("pid,name"), val ("pid,name"), galleries
# ("draw,pid,name") in ascending order
DIGESTS = {
    "dorsal_r": ("74b92f9b37efe92a", "a89f2b8730bc5c31", "a609b94dcbbd6559", "7568ac77f018e9c0"),
    "dorsal_l": ("4b9703b03f21c158", "b4edda8ec94fb9dd", "18c3c81cf275570b", "911430a809ad84a0"),
    "palmar_r": ("487a6ddb47f2a94c", "703d1c6df6eb53dd", "d3c30985ec98c334", "b5b05ca3fcd866a3"),
    "palmar_l": ("aeb34b1cb391ecdd", "8aa715d6bd68449f", "d8b75284988dd47c", "580fa46643ebd934"),
}
DISJOINT = {  # persons, images (train and val)
    "dorsal_r": (68, 874), "dorsal_l": (73, 808), "palmar_r": (67, 843), "palmar_l": (74, 964),
}  # fmt: skip
OFFSETS = {
    "dorsal_r": {"dorsal_l": 11_000_000, "palmar_r": 21_000_000, "palmar_l": 31_000_000},
    "dorsal_l": {"dorsal_r": 11_000_000, "palmar_r": 21_000_000, "palmar_l": 31_000_000},
    "palmar_r": {"dorsal_l": 11_000_000, "dorsal_r": 21_000_000, "palmar_l": 31_000_000},
    "palmar_l": {"palmar_r": 11_000_000, "dorsal_r": 21_000_000, "dorsal_l": 31_000_000},
}


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


def name(image: str) -> str:
    return image.rpartition("/")[2]


def people(rows: pd.DataFrame) -> list[str]:
    pairs = {(int(pid), name(image)) for pid, image in zip(rows["pid"], rows["image"], strict=True)}
    return [f"{pid},{image}" for pid, image in sorted(pairs)]


def part(manifest: pd.DataFrame, *splits: str, draw: int | None = None) -> pd.DataFrame:
    rows = manifest[manifest["split"].isin(splits)]
    return rows if draw is None else rows[rows["draw"] == draw]


def hands(
    persons: int = 12,
    shots: tuple[int, int] = (2, 5),
    aspects: Iterable[str] = CHAIN,
    seed: int = 0,
) -> pd.DataFrame:
    """A small made-up table; a person may lack an aspect, some images have accessories."""
    rng = np.random.default_rng(seed)
    rows = []
    for pid in range(3, 3 + 7 * persons, 7):
        for aspect in aspects:
            if rng.random() < 0.1:
                continue
            for _ in range(int(rng.integers(shots[0], shots[1] + 1))):
                image = f"Hands/Hand_{len(rows):07d}.jpg"
                worn = int(rng.random() < 0.2)
                rows.append((image, pid, aspect, "11k", worn))
    return pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset", "accessories"])


def check_galleries_of_all_hands(manifests: dict[str, pd.DataFrame]) -> None:
    for aspect, manifest in manifests.items():
        for draw in (0, 9):
            every = part(manifest, "gallery_all", draw=draw)
            own = every[every["aspect"] == aspect]
            assert people(own) == people(part(manifest, "gallery", draw=draw))
            assert list(every["aspect"].unique()) == [aspect, *OFFSETS[aspect]]
            for other, offset in OFFSETS[aspect].items():
                rows = every[every["aspect"] == other]
                theirs = part(manifests[other], "gallery", draw=draw)
                assert people(rows.assign(pid=rows["pid"] - offset)) == people(theirs)


# --- the real metadata -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("11k")
    shutil.copy(test_data / "HandInfo_full.csv", root / "HandInfo.csv")
    return read_11k(root, check_files=False)


@pytest.mark.parametrize("aspect", CHAIN)
def test_published_counts_and_digests(real: pd.DataFrame, aspect: str) -> None:
    manifest = make_manifest(real, aspect)
    counts = leaks.counts(manifest)
    assert counts.index.is_unique  # all ten draws have the same counts
    found = {row.Index: tuple(row)[2:] for row in counts.itertuples()}
    assert found == PUBLISHED[aspect]
    train_all, test = part(manifest, "train", "val"), part(manifest, "query", "gallery", draw=0)
    val, gallery = part(manifest, "val"), part(manifest, "gallery")
    drawn = sorted((r.draw, r.pid, name(r.image)) for r in gallery.itertuples())
    found = (people(train_all), people(test), people(val), [f"{d},{p},{n}" for d, p, n in drawn])
    assert tuple(map(digest, found)) == DIGESTS[aspect]
    assert manifest.attrs["singletons"] == []


def test_own_other_hands_are_distractors_of_the_real_data(real: pd.DataFrame) -> None:
    manifests = {aspect: make_manifest(real, aspect) for aspect in CHAIN}
    check_galleries_of_all_hands(manifests)
    tested = set(part(manifests["dorsal_r"], "query")["pid"])
    shared = [len(tested & set(part(manifests[a], "gallery")["pid"])) for a in CHAIN[1:]]
    assert shared == [56, 70, 58]


def test_person_disjoint_counts(real: pd.DataFrame) -> None:
    manifests = {aspect: make_manifest(real, aspect, "person_disjoint") for aspect in CHAIN}
    leaks.check_leaks(*manifests.values())
    for aspect, manifest in manifests.items():
        training = part(manifest, "train", "val")
        assert (training["pid"].nunique(), len(training)) == DISJOINT[aspect]
        tests = ("query", "gallery", "gallery_all")
        published = part(make_manifest(real, aspect), *tests)
        pd.testing.assert_frame_equal(
            part(manifest, *tests).reset_index(drop=True), published.reset_index(drop=True)
        )
    assert not leaks.leak_table(list(manifests.values()))["any"].any()


def test_the_published_mode_leaks_across_aspects_and_says_so(real: pd.DataFrame) -> None:
    manifests = [make_manifest(real, aspect) for aspect in CHAIN]
    table = leaks.leak_table(manifests)
    found = [tuple(row) for row in table[["any", "test"]].to_numpy().tolist()]
    assert found == [(1, 71), (6, 73), (0, 71), (4, 75)]
    assert table.loc["dorsal_r", "who"] == "1051"
    assert table.loc["dorsal_l", "who"] == "1039, 1042, 1043, 1046, 1050, 1051"
    assert (table.loc["dorsal_r", "palmar_r"], table.loc["dorsal_r", "dorsal_r"]) == (1, 0)
    with pytest.raises(SplitError, match=r"person in training and in test: .*1051"):
        leaks.check_leaks(manifests[0], manifests[2])


def test_the_selected_persons_of_the_real_data(real: pd.DataFrame) -> None:
    manifests = [make_manifest(real, a, "person_disjoint", select="persons") for a in CHAIN]
    leaks.check_leaks(*manifests)
    trained = set().union(*(part(m, "train", "val")["pid"] for m in manifests))
    held = set().union(*(part(m, "select")["pid"] for m in manifests))
    assert (len(trained), len(held)) == (65, 17)


# --- fixed draws without the real metadata -----------------------------------------------------


def by_formula() -> pd.DataFrame:
    """A table in which nothing comes from a random generator, so that its digests stay."""
    rows = [
        (
            f"Hands/{(pid * 31 + k * 7 + a * 13) % 997:03d}_{pid}_{k}_{aspect}.jpg",
            pid,
            aspect,
            "11k",
        )
        for a, aspect in enumerate(CHAIN)
        for pid in range(1, 100, 5 + a % 2)
        for k in range(2 + (pid // 5 * 3 + a) % 5)
    ]
    return pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset"])


def test_the_draws_are_these() -> None:
    manifest = make_manifest(by_formula(), "dorsal_r", "person_disjoint", select="persons")
    assert digest(people(part(manifest, "train"))) == "7080a173b013650c"
    assert digest(people(part(manifest, "val"))) == "31a89456daee7359"
    assert digest(people(part(manifest, "select"))) == "c419c070000ecaf4"
    gallery = part(manifest, "gallery")
    assert (
        digest(f"{r.draw},{r.pid},{name(r.image)}" for r in gallery.itertuples())
        == "185ab86467c81079"
    )
    assert files.sha256(manifest)[:16] == "a4d24739eed1f17e"


@pytest.mark.parametrize("mode", splits.MODES)
def test_a_gallery_of_all_hands_is_the_four_aspects_galleries(mode: str) -> None:
    table = by_formula()
    check_galleries_of_all_hands({a: make_manifest(table, a, mode) for a in CHAIN})


def test_images_are_drawn_from_the_order_of_their_names() -> None:
    table = by_formula()
    folders = [f"{'zyx'[n % 3]}/" for n in range(len(table))]
    moved = table.assign(image=folders + table["image"].str.removeprefix("Hands/"))
    plain, there = (make_manifest(t, "dorsal_l") for t in (table, moved))
    assert people(part(there, "gallery")) == people(part(plain, "gallery"))
    own = make_manifest(moved.assign(dataset="own"), "dorsal_l")  # here folders are part of a name
    mine = moved[moved["aspect"] == "dorsal_l"]
    for row in part(own, "val").itertuples():
        images = sorted(mine.loc[mine["pid"] == row.pid, "image"])
        key = f"0|own|dorsal_l|val|{row.pid}"
        assert row.image == images[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(images)]


def test_a_draw_is_what_its_key_says() -> None:
    table = hands()
    manifest = make_manifest(table, "palmar_l", split_seed=7)
    mine = table[(table["aspect"] == "palmar_l") & (table["accessories"] == 0)]
    for row in manifest[manifest["split"].isin(("gallery", "val"))].itertuples():
        images = sorted(mine.loc[mine["pid"] == row.pid, "image"])
        word = "val" if row.split == "val" else f"run{row.draw}"
        key = f"7|11k|palmar_l|{word}|{row.pid}"
        k = int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(images)
        assert row.image == images[k]


def test_the_selected_persons_are_what_their_key_says() -> None:
    table = hands(persons=30)
    kept = table[table["accessories"] == 0]
    pids = {a: sorted(set(kept.loc[kept["aspect"] == a, "pid"])) for a in CHAIN}
    trained = set().union(*(p[: -(-len(p) // 2)] for p in pids.values()))
    ranked = sorted(trained, key=lambda p: hashlib.sha256(f"0|11k|select|{p}".encode()).hexdigest())
    held = set(ranked[: -(-len(ranked) // 5)])
    for aspect in CHAIN:
        manifest = make_manifest(table, aspect, select="persons")
        half = set(pids[aspect][: -(-len(pids[aspect]) // 2)])
        assert set(part(manifest, "select")["pid"]) == held & half
        assert set(part(manifest, "train")["pid"]) == half - held
        rows = part(manifest, "select")
        assert (
            len(rows) == kept[(kept["aspect"] == aspect) & kept["pid"].isin(held & half)].shape[0]
        )
        assert set(rows["draw"]) == {0}


# --- properties --------------------------------------------------------------------------------

few = settings(max_examples=20, deadline=None)
tables = st.builds(
    hands,
    persons=st.integers(8, 16),
    shots=st.tuples(st.integers(2, 3), st.integers(3, 6)),
    aspects=st.sampled_from([CHAIN, CHAIN[:1], CHAIN[1:3], ("hand",), ("dorsal", "palmar_r")]),
    seed=st.integers(0, 10_000),
)
modes = st.sampled_from(splits.MODES)


@few
@given(tables, modes, st.sampled_from(["none", "persons"]), st.integers(0, 5))
def test_sides_are_disjoint_and_every_query_has_a_match(
    table: pd.DataFrame, mode: str, select: str, split_seed: int
) -> None:
    aspect = table["aspect"].iloc[0]
    try:
        manifest = make_manifest(table, aspect, mode, split_seed, 3, select)
    except TooFew:
        return
    sides = [part(manifest, "train", "val", "select"), part(manifest, "query", "gallery")]
    for column in ("pid", "image"):
        assert not set(sides[0][column]) & set(sides[1][column])
    kept = table[(table["aspect"] == aspect) & (table["accessories"] == 0)]
    assert set(kept["image"]) >= set(sides[0]["image"]) | set(sides[1]["image"])
    for draw in range(3):
        query, gallery = (part(manifest, s, draw=draw) for s in ("query", "gallery"))
        assert gallery["pid"].is_unique and set(query["pid"]) <= set(gallery["pid"])
        assert not set(query["image"]) & set(gallery["image"])
        assert set(query["image"]) | set(gallery["image"]) == set(sides[1]["image"])
    assert not manifest.duplicated(["split", "draw", "image"]).any()


@few
@given(tables, modes, st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing(table: pd.DataFrame, mode: str, seed: int) -> None:
    aspect = table["aspect"].iloc[-1]
    shuffled = table.sample(frac=1, random_state=seed)
    try:
        manifest = make_manifest(table, aspect, mode)
    except TooFew:
        return
    again = make_manifest(shuffled, aspect, mode)
    assert files.sha256(manifest) == files.sha256(again)
    assert manifest.attrs == again.attrs


@few
@given(st.integers(0, 1000))
def test_draws_depend_on_no_other_aspect_or_person(seed: int) -> None:
    table = hands(persons=20, seed=seed)
    columns = ["split", "draw", "pid", "image"]
    kinds = ("train", "val", "query", "gallery")
    whole = part(make_manifest(table, "dorsal_r"), *kinds)
    alone = part(make_manifest(table[table["aspect"] == "dorsal_r"], "dorsal_r"), *kinds)
    assert whole[columns].to_numpy().tolist() == alone[columns].to_numpy().tolist()
    last = whole["pid"].max()
    fewer = part(make_manifest(table[table["pid"] != last], "dorsal_r"), "gallery")
    same = whole[(whole["split"] == "gallery") & whole["pid"].isin(fewer["pid"])]
    mine = fewer[fewer["pid"].isin(same["pid"])]
    assert people(same) == people(mine) and len(mine)


# --- cases -------------------------------------------------------------------------------------


def test_persons_with_one_image_are_kept_and_listed() -> None:
    table = hands(persons=8, shots=(3, 3), aspects=["hand"]).assign(accessories=0, dataset="own")
    pids = sorted(set(table["pid"]))
    single = [pids[0], pids[-1]]
    once = ~(table["pid"].isin(single) & table.duplicated("pid"))
    manifest = make_manifest(table[once], "hand")
    assert manifest.attrs["singletons"] == single
    assert single[0] in set(part(manifest, "train")["pid"]) - set(part(manifest, "val")["pid"])
    assert single[1] in set(part(manifest, "gallery")["pid"]) - set(part(manifest, "query")["pid"])


def test_the_shipped_drawn_studies_can_be_split() -> None:
    for path in sorted((params.ROOT / "params").glob("*.yaml")):
        told = params.load(study=path.stem).data
        if told.dataset != "drawn" or told.drawn.layout != "11k":
            continue
        pictures = plan(told.drawn.persons, told.drawn.seed, told.drawn.shots)
        rows = [(r.image, r.pid, r.aspect, "drawn", int(r.accessories)) for r in pictures]
        table = pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset", "accessories"])
        manifests = [splits.manifest_for(params.load(a, path.stem), table) for a in CHAIN]
        leaks.check_leaks(*manifests)
        for manifest in manifests:
            assert set(leaks.counts(manifest).index) >= {"train", "val", "select", "gallery_all"}
        p = params.load(study=path.stem)
        assert tuple(splits.all_aspects(p, table, "published")) == CHAIN


def test_the_other_drawn_sets_of_the_demo_and_the_study_of_hds_folders_can_be_split() -> None:
    p = params.load(study="demo_hd")
    for told in (p, *params.other_data(p).values(), *params.other_data(params.load()).values()):
        drawn = told.data.drawn
        pictures = plan(drawn.persons, drawn.seed, drawn.shots, drawn.layout, drawn.laboratory)
        rows = [(r.image, r.pid, r.aspect, "drawn", "502-712" in r.image) for r in pictures]
        table = pd.DataFrame(rows, columns=["image", "pid", "aspect", "dataset", "distractor"])
        table["pid"] += 1000 * table["distractor"]
        manifest = splits.manifest_for(told, table.assign(accessories=0))
        assert part(manifest, "query")["pid"].nunique() >= 12
        assert set(leaks.counts(manifest).index) >= {"train", "val", "select", "gallery"}
    for aspect in CHAIN:  # `drawn_hd` has one aspect, and models of all are tested on it
        others = params.other_data(params.load(aspect))
        assert {name: other.aspect for name, other in others.items()} == {
            "drawn_other": aspect,
            "drawn_hd": "dorsal_r",
        }


def test_an_aspect_that_cannot_be_split_is_left_out_aloud(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = hands()
    first = table["pid"].min()
    few = table[(table["aspect"] != "palmar_r") | (table["pid"] == first)]
    manifests = splits.all_aspects(params.load(study="11k_vitb16"), few, "published")
    assert list(manifests) == ["dorsal_r", "dorsal_l", "palmar_l"]
    assert (
        "palmar_r is left out: palmar_r: 1 training persons, and 0 of 0 test"
        in capsys.readouterr().out
    )


def test_photographs_with_accessories_are_dropped() -> None:
    table = hands()
    worn = set(table.loc[table["accessories"] == 1, "image"])
    assert worn and not worn & set(make_manifest(table, "dorsal_r")["image"])
    free = make_manifest(table.drop(columns="accessories"), "dorsal_r")
    assert worn & set(free["image"])


def test_only_other_aspects_that_are_there_become_distractors() -> None:
    manifest = make_manifest(hands(aspects=["dorsal_r", "palmar_l"]), "dorsal_r")
    assert set(part(manifest, "gallery_all")["aspect"]) == {"dorsal_r", "palmar_l"}
    assert part(manifest, "gallery_all")["pid"].max() > 31_000_000
    assert part(make_manifest(hands(aspects=["dorsal_r"]), "dorsal_r"), "gallery_all").empty
    assert part(make_manifest(hands(aspects=["hand"]), "hand"), "gallery_all").empty


@pytest.fixture(scope="module")
def hd(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return read_hd(make_hd(tmp_path_factory.mktemp("hd")), check_files=False)


@pytest.mark.parametrize("mode", splits.MODES)
def test_hd_has_the_published_counts(hd: pd.DataFrame, mode: str) -> None:
    manifest = make_manifest(hd, "dorsal", mode)
    counts = leaks.counts(manifest)
    found = {row.Index: tuple(row)[2:] for row in counts.itertuples()}
    assert found == {
        "train_all": (251, 2407, 6, 4, 18, 1), "train": (251, 2156, 5, 4, 17, 1),
        "val": (251, 251, 1, 251, 1, 251), "test": (251, 2243, 3, 1, 43, 1),
        "query": (251, 1992, 2, 1, 42, 1), "gallery": (464, 1593, 1, 251, 13, 2),
    }  # fmt: skip
    train = part(manifest, "train", "val")
    assert train["pid"].max() == 447 and part(manifest, "query")["pid"].min() == 448
    for draw in range(10):  # labels are the persons themselves: 1502 must not push 448 aside
        gallery = part(manifest, "gallery", draw=draw)
        real = gallery["image"].str.extract(r"/(\d+)_\d+\.", expand=False).astype(int)
        extra = gallery["image"].str.contains("502-712")
        assert (gallery["pid"] == real + 1000 * extra).all() and extra.sum() == 1342
    assert leaks.leak_table([manifest]).loc["dorsal", "test"] == 251


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aspect": "dorsel_r"}, r"unknown aspect 'dorsel_r'; did you mean 'dorsal_r'\?"),
        ({"aspect": "dorsal"}, r"no photographs of dorsal .*has dorsal_l, .*--aspect dorsal_l"),
        ({"mode": "disjoint"}, r"unknown mode 'disjoint'.*; one of published, person_disjoint"),
        ({"select": "person"}, r"unknown select 'person'; did you mean 'persons'\?"),
        ({"draws": 0}, r"draws must be from 1 to 100, not 0"),
        ({"draws": 101}, r"draws must be from 1 to 100, not 101"),
    ],
)
def test_a_bad_request_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        make_manifest(hands(), **({"aspect": "dorsal_r"} | change))  # type: ignore[arg-type]


def test_a_bad_table_is_refused() -> None:
    table = hands(aspects=["hand"]).assign(accessories=0)
    with pytest.raises(TooFew, match=r"0 of \d+ test persons can be asked for"):
        make_manifest(table.drop_duplicates("pid"), "hand")
    with pytest.raises(TooFew, match="0 of 0 test persons"):
        make_manifest(hands(persons=1, aspects=["hand"]).assign(accessories=0), "hand")
    with pytest.raises(SplitError, match=r"image .*0000\.jpg is in the table twice"):
        make_manifest(pd.concat([table, table[:1]]), "hand")
    with pytest.raises(SplitError, match=r"of one data set, not of 11k, own"):
        make_manifest(table.assign(dataset=["own"] + ["11k"] * (len(table) - 1)), "hand")
    with pytest.raises(SplitError, match=r"pid 10000003: persons' numbers are 0 to 9999999"):
        make_manifest(table.assign(pid=table["pid"] + 10_000_000), "hand")
    with pytest.raises(SplitError, match=r"pid missing"):
        make_manifest(table.drop(columns="pid"), "hand")
    few = hands(persons=4, aspects=["hand"]).assign(accessories=0)
    with pytest.raises(SplitError, match=r"1 training person is left beside 1 held out"):
        make_manifest(few, "hand", select="persons")
    one = table.assign(keep=False)
    held = set(part(make_manifest(table, "hand", select="persons"), "select")["pid"])
    one = table[~(table["pid"].isin(held) & table.duplicated("pid"))]
    with pytest.raises(SplitError, match=r"none of the persons held out .* two images"):
        make_manifest(one, "hand", select="persons")


def test_a_distractor_is_one_in_all_rows_and_never_a_test_person() -> None:
    table = hands(persons=20, aspects=["dorsal"]).assign(accessories=0, distractor=0)
    pids = sorted(set(table["pid"]))
    aside = pids[2::5]
    table.loc[table["pid"].isin(aside), "distractor"] = 1
    table = table[~(table["pid"].isin(aside[:2]) & table.duplicated("pid"))]  # two have one image
    manifest = make_manifest(table, "dorsal")
    assert manifest.attrs == {"distractors": aside, "singletons": []}
    tested = set(part(manifest, "query")["pid"])
    assert leaks.counts(manifest).loc["test", "ids"] == len(tested)
    assert leaks.leak_table([manifest]).loc["dorsal", "test"] == len(tested)
    assert leaks.singletons(manifest) == [] and not tested & set(aside)
    everyone = set(part(manifest, "gallery", draw=3)["image"])
    assert set(table.loc[table["distractor"] == 1, "image"]) <= everyone
    several = table.index[(table["pid"] == aside[-1])][0]
    table.loc[several, "distractor"] = 0
    with pytest.raises(SplitError, match=rf"distractor in some rows only: {aside[-1]}"):
        make_manifest(table, "dorsal")


def plant(manifest: pd.DataFrame, **row: object) -> pd.DataFrame:
    return pd.concat([manifest, pd.DataFrame([row])], ignore_index=True)


def test_every_leak_is_named() -> None:
    clean = make_manifest(hands(), "dorsal_r")
    leaks.check_leaks(clean)
    train, val = part(clean, "train").iloc[0], part(clean, "val").iloc[0]
    query = part(clean, "query", draw=2).iloc[0]
    fixed = {"aspect": "dorsal_r", "draw": -1}
    for row, message in (
        (fixed | {"split": "train", "pid": query.pid, "image": "new.jpg"}, f"person .*{query.pid}"),
        (fixed | {"split": "train", "pid": 1, "image": query.image}, "image under two persons"),
        (fixed | {"split": "train", "pid": query.pid, "image": query.image}, "image in training"),
        (fixed | {"split": "train", "pid": val.pid, "image": val.image}, "two of train, val"),
        (dict(train), f"twice in the same split and draw: {train.image}"),
        (dict(query) | {"split": "gallery"}, f"image in query and gallery .*{query.image}"),
        (dict(query) | {"split": "test"}, "unknown split"),
        (fixed | {"split": "select", "pid": train.pid, "image": "new.jpg"}, "held out"),
        (dict(query) | {"draw": 11}, f"without a match in gallery: {query.pid} in draw 11"),
    ):
        with pytest.raises(SplitError, match=message):
            leaks.check_leaks(plant(clean, **row))
    lost = (clean["split"] == "gallery") & (clean["pid"] == query.pid) & (clean["draw"] == 2)
    with pytest.raises(SplitError, match=f"{query.pid} in draw 2"):
        leaks.check_leaks(clean[~lost])


def test_a_manifest_file_is_the_manifest(tmp_path: Path) -> None:
    manifest = make_manifest(hands(), "palmar_r", select="persons")
    manifest["image"] = manifest["image"].str.replace("Hand_", 'NA, "Händ"_')
    path = files.write_manifest(manifest, tmp_path / "run" / "manifest.csv")
    assert b"\r" not in path.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == files.sha256(manifest)
    assert [f.name for f in path.parent.iterdir()] == ["manifest.csv"]
    again = files.read_manifest(path)
    pd.testing.assert_frame_equal(again, manifest)
    path.write_text("split,draw,pid,aspect,image\ntrain,-1,x,hand,a.jpg\n")
    with pytest.raises(SplitError, match=r"manifest\.csv is no manifest"):
        files.read_manifest(path)
    path.write_text("split,draw\ntrain,-1\n")
    with pytest.raises(SplitError, match=r"its columns are split, draw"):
        files.read_manifest(path)


# --- legacy trees ------------------------------------------------------------------------------


def test_own_data_with_equal_names_in_aspect_folders_survives_a_tree(tmp_path: Path) -> None:
    for pid in range(8):
        for aspect in CHAIN:
            for shot in range(3):
                path = tmp_path / "data" / str(pid) / aspect / f"{shot}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"a photograph")
    table = read_own(tmp_path / "data", check_files=False)
    for aspect in ("dorsal_r", "palmar_l"):
        manifest = make_manifest(table, aspect, draws=2)
        folder = legacy.export_tree(manifest, tmp_path / "data", tmp_path / aspect)
        pd.testing.assert_frame_equal(legacy.import_tree(folder, table, aspect), manifest)
    more = table.assign(image="more/" + table["image"])
    with pytest.raises(SplitError, match=r"several such images: .*0\.jpg, more/.*0\.jpg"):
        legacy.import_tree(folder, pd.concat([table, more]), "palmar_l")


def photographs(root: Path, table: pd.DataFrame) -> Path:
    for image in table["image"]:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(b"a photograph")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    table = hands()
    root = photographs(tmp_path / "data", table)
    manifest = make_manifest(table, "dorsal_r", draws=3)
    return legacy.export_tree(manifest, root, tmp_path / "tree"), table, manifest


def test_a_tree_has_the_layout_of_the_literature(tree: tuple[Path, ...]) -> None:
    folder, _, manifest = tree
    counted = {f.name: len(list(f.glob("*/*"))) for f in folder.iterdir()}
    draws = [f"{s}{d}{e}" for d in range(3) for s, e in (("query", ""), ("gallery", ""))]
    every = [f"gallery{d}_all" for d in range(3)]
    assert set(counted) == {"train_all", "train", "val", "test", *draws, *every}
    assert counted["train_all"] == counted["train"] + counted["val"]
    assert counted["test"] == counted["query1"] + counted["gallery1"]
    first = part(manifest, "gallery_all", draw=2).iloc[-1]
    link = folder / "gallery2_all" / f"{first.pid:07d}" / name(first.image)
    assert link.is_symlink() and link.resolve().as_posix().endswith(first.image)


def test_a_tree_comes_back_as_the_manifest(tree: tuple[Path, pd.DataFrame, pd.DataFrame]) -> None:
    folder, table, manifest = tree
    (folder / "train" / "Thumbs.db").write_text("")
    (folder / "logs").mkdir()
    pd.testing.assert_frame_equal(legacy.import_tree(folder, table, "dorsal_r"), manifest)
    p = params.load(
        overrides={"split": {"legacy_tree": str(folder), "draws": 2}}, study="11k_vitb16"
    )
    fewer = splits.manifest_for(p, table)
    pd.testing.assert_frame_equal(fewer, manifest[manifest["draw"] < 2].reset_index(drop=True))


def test_a_tree_tells_the_persons_with_one_image(tmp_path: Path) -> None:
    table = hands(aspects=["dorsal_r"]).assign(accessories=0)
    last = table["pid"].max()
    table = table[(table["pid"] != last) | ~table["pid"].duplicated()]
    manifest = make_manifest(table, "dorsal_r", draws=2)
    folder = legacy.export_tree(manifest, photographs(tmp_path / "data", table), tmp_path / "tree")
    assert legacy.import_tree(folder, table, "dorsal_r").attrs == manifest.attrs
    assert manifest.attrs == {"singletons": [last], "distractors": []}


def test_hd_and_selected_persons_survive_a_tree(tmp_path: Path) -> None:
    table = hands(persons=20, aspects=["dorsal"]).assign(accessories=0, distractor=False)
    table.loc[table["pid"] > 100, "distractor"] = True
    root = photographs(tmp_path / "data", table)
    manifest = make_manifest(table, "dorsal", draws=2, select="persons")
    folder = legacy.export_tree(manifest, root, tmp_path / "tree")
    assert (folder / "select").is_dir()
    pd.testing.assert_frame_equal(legacy.import_tree(folder, table, "dorsal"), manifest)


def test_a_folder_with_something_in_it_is_never_written_into(
    tree: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    folder, _, manifest = tree
    with pytest.raises(SplitError, match="is not an empty folder"):
        legacy.export_tree(manifest, tmp_path / "data", folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (legacy.export_tree(manifest, tmp_path / "data", empty) / "train").is_dir()
    with pytest.raises(SplitError, match=r"has no Hands/Hand_.*images missing"):
        legacy.export_tree(manifest, tmp_path / "nowhere", tmp_path / "other")
    twice = plant(manifest, **(dict(part(manifest, "train").iloc[0]) | {"image": "more/x.jpg"}))
    twice["image"] = twice["image"].str.replace(r"Hand_\d+", "x", regex=True)
    photographs(tmp_path / "same", twice)
    with pytest.raises(SplitError, match=r"has two images named x\.jpg"):
        legacy.export_tree(twice, tmp_path / "same", tmp_path / "other")
    assert not (tmp_path / "other").exists()  # all of a tree, or nothing


def test_a_tree_that_does_not_fit_is_refused(
    tree: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    folder, table, manifest = tree
    gallery = next((folder / "gallery1").glob("*/*"))
    pid = int(gallery.parent.name)
    query = next((folder / "query1" / gallery.parent.name).iterdir())

    with pytest.raises(FileNotFoundError, match=r"split\.legacy_tree"):
        legacy.import_tree(tmp_path / "gone", table, "dorsal_r")
    with pytest.raises(SplitError, match=r"this image is dorsal_r, not dorsal_l"):
        legacy.import_tree(folder, table, "dorsal_l")
    with pytest.raises(SplitError, match=r"the table has no such image of person"):
        legacy.import_tree(folder, table[table["image"].map(name) != query.name], "dorsal_r")
    with pytest.raises(SplitError, match=r"needs .*query0/ to query9/.*it has queries 0, 1, 2"):
        legacy.import_tree(folder, table, "dorsal_r", draws=10)

    again = gallery.with_name(query.name)  # the script was run twice into one folder
    shutil.copy(query, again, follow_symlinks=False)
    with pytest.raises(SplitError, match=rf"gallery1: several images of person {pid}.*made twice"):
        legacy.import_tree(folder, table, "dorsal_r")
    os.replace(again, gallery)
    gallery.rename(gallery.with_name(query.name))
    with pytest.raises(SplitError, match=rf"image in query and gallery of a draw: .*{query.name}"):
        legacy.import_tree(folder, table, "dorsal_r")
    (folder / "train" / "ann").mkdir()
    shutil.copy(query, folder / "train" / "ann" / query.name, follow_symlinks=False)
    with pytest.raises(SplitError, match=r"train/ann: a person's folder is named by a number"):
        legacy.import_tree(folder, table, "dorsal_r")
    assert json.loads(manifest.to_json())  # attrs stay plain


def test_the_aspects_beside_a_tree_are_split_as_ever_and_its_faults_are_errors(
    tree: tuple[Path, pd.DataFrame, pd.DataFrame],
) -> None:
    folder, table, manifest = tree
    told = {"split": {"legacy_tree": str(folder), "draws": 3, "seed": 5}}
    p = params.load("dorsal_r", study="11k_vitb16", overrides=told)
    found = splits.all_aspects(p, table, "published")
    pd.testing.assert_frame_equal(found["dorsal_r"], manifest)  # made with another seed
    made = make_manifest(table, "palmar_l", split_seed=5, draws=3)
    pd.testing.assert_frame_equal(found["palmar_l"], made)
    assert list(splits.all_aspects(p, table, "person_disjoint")) == list(CHAIN)
    with pytest.raises(SplitError, match="twice"):
        splits.all_aspects(p, pd.concat([table, table]), "person_disjoint")
    shutil.rmtree(folder / "train")
    with pytest.raises(SplitError, match="needs train/"):
        splits.all_aspects(p, table, "published")


def test_exact_copies_are_found_and_where_they_leak(tmp_path: Path) -> None:
    table = hands(persons=6, shots=(4, 4), aspects=["hand"]).assign(accessories=0)
    table.attrs = {"root": str(tmp_path)}
    for n, image in enumerate(table["image"]):
        path = tmp_path / image
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (9 * n, 250 - 9 * n, 30)).save(path, format="PNG")
    manifest = make_manifest(table, "hand", draws=2)
    store = open_store(table, Preprocess((8, 8), "squash", (0.5,) * 3, (0.5,) * 3), tmp_path / "c")
    assert leaks.same_pixels(manifest, store).empty
    assert list(leaks.same_pixels(manifest, store)) == ["images", "persons", "leak"]
    train, query = part(manifest, "train").iloc[0], part(manifest, "query", draw=1).iloc[0]
    match = part(manifest, "gallery", draw=1).set_index("pid").loc[query.pid]
    val = part(manifest, "val").iloc[1]
    for copy, of in ((train.image, val.image), (match.image, query.image)):
        shutil.copy(tmp_path / of, tmp_path / copy)
    store = open_store(table, store.preprocess, tmp_path / "c")
    found = leaks.same_pixels(manifest, store)
    assert found["leak"].tolist() == ["", "query and gallery"]
    assert found["persons"].tolist() == [2, 1]
    assert {query.image, match.image} == set(found["images"][1].split(", "))
    shutil.copy(tmp_path / query.image, tmp_path / train.image)
    store = open_store(table, store.preprocess, tmp_path / "c")
    assert leaks.same_pixels(manifest, store)["leak"].tolist() == ["training and test"]


def test_a_legacy_tree_is_taken_as_it_is_or_not_at_all() -> None:
    p = params.load(study="demo", overrides={"split.legacy_tree": "somewhere"})
    with pytest.raises(SplitError, match=r"needs split\.mode published .*not person_disjoint"):
        splits.manifest_for(p, hands())
    p = params.load(study="11k_vitb16", overrides={"split": {"seed": 3, "draws": 2}})
    made = splits.manifest_for(p, hands())
    expected = make_manifest(hands(), "dorsal_r", split_seed=3, draws=2)
    assert files.sha256(made) == files.sha256(expected)


def test_a_run_needs_two_persons_to_ask_for_and_a_manifest_one() -> None:
    table = hands(aspects=["hand"]).assign(accessories=0)
    others = sorted(set(table["pid"]))[:-1]
    single = table[~(table["pid"].isin(others) & table.duplicated("pid"))]
    assert part(make_manifest(single, "hand"), "query")["pid"].nunique() == 1
    p = params.load("hand", "smoke", overrides={"split": {"select": "none", "mode": "published"}})
    with pytest.raises(TooFew, match="1 test person has two images"):
        splits.manifest_for(p, single)
