"""Manifests made of manifests, one evaluation of them all, measures beside the protocol's."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from handclip_lib.aspects import CHAIN, OFFSETS
from handclip_lib.data.drawn.dataset import plan
from handclip_lib.data.leaks import persons
from handclip_lib.data.manifest import SplitError, TooFew, sha256
from handclip_lib.data.splits import make_manifest
from handclip_lib.evaluate.measures import (
    at_ranks,
    confused,
    per_identity_accuracy,
    precision_recall_at,
    wilson,
)
from handclip_lib.evaluate.protocol import evaluate, per_query, ranking
from handclip_lib.evaluate.scenarios import (
    accessories,
    evaluate_all,
    in_smaller_gallery,
    multi_shot,
    person_level,
    scenarios,
)
from handclip_lib.report import groups

RIGHT, LEFT = "dorsal_r", "dorsal_l"


def drawn(persons_=4, seed=0, shots=(3, 5)):
    """The table of a drawn set; nothing needs to be drawn to ask of whom a photograph is."""
    rows = [
        {
            "image": f"Hands/{row.name}", "pid": row.pid, "aspect": row.aspect, "dataset": "drawn",
            "accessories": int(row.accessories), "gender": row.person.gender,
        }
        for row in plan(persons_, seed, shots)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def toy_features(table, noise=1.0):
    """features_of: unit rows around a centre of each person, nudged for each hand."""
    rows = table.set_index("image")

    def features_of(images):
        z = []
        for i, image in enumerate(images):
            pid, aspect = rows.loc[image, ["pid", "aspect"]]
            hand = np.random.default_rng([pid, CHAIN.index(aspect)])
            z.append(np.random.default_rng(pid).normal(size=12) + 0.5 * hand.normal(size=12))
            z[-1] = z[-1] + noise * np.random.default_rng([7, i]).normal(size=12)
        z = np.array(z)
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)

    return features_of


@pytest.fixture(scope="module")
def table():
    return drawn(16)


@pytest.fixture(scope="module")
def manifests(table):
    return {aspect: make_manifest(table, aspect, "person_disjoint", draws=3) for aspect in CHAIN}


def of_draw(manifest, split, draw=0):
    return manifest[(manifest["split"] == split) & (manifest["draw"] == draw)]


# -- multi-shot -----------------------------------------------------------------------------------


def test_multi_shot_asks_for_the_gallerys_pick_and_searches_the_rest(manifests):
    manifest = manifests[RIGHT]
    turned = multi_shot(manifest)
    assert set(turned["split"]) == {"query", "gallery"}
    for draw in range(3):
        query, gallery = (of_draw(turned, split, draw) for split in ("query", "gallery"))
        assert set(query["image"]) == set(of_draw(manifest, "gallery", draw)["image"])
        assert set(gallery["image"]) == set(of_draw(manifest, "query", draw)["image"])
        assert not set(query["image"]) & set(gallery["image"])
        assert (query.groupby("pid").size() == 1).all()
        everything = set(query["image"]) | set(gallery["image"])
        tests = manifest[manifest["split"].isin(["query", "gallery"])]
        assert everything == set(tests["image"])


def test_who_has_one_photograph_is_left_out_and_who_distracts_stays():
    rows = [("dorsal", pid, shot, False) for pid in range(1, 7) for shot in range(3)]
    rows = [row for row in rows if row[1:3] not in ((6, 1), (6, 2))]  # person 6 has one
    rows += [("dorsal", 1502, 0, True), ("dorsal", 1503, 0, True), ("dorsal", 1503, 1, True)]
    table = pd.DataFrame(rows, columns=["aspect", "pid", "shot", "distractor"])
    table["image"] = [f"{pid}_{s}.jpg" for pid, s in zip(table["pid"], table["shot"], strict=True)]
    manifest = make_manifest(table.assign(dataset="HD"), "dorsal", draws=2)
    turned = multi_shot(manifest)
    assert turned.attrs["left_out"] == 1 and "1 left out" in turned.attrs["note"]
    assert 6 not in set(turned["pid"])
    assert set(of_draw(turned, "query")["pid"]) == {4, 5}
    assert sorted(of_draw(turned, "gallery")["pid"]) == [4, 4, 5, 5, 1502, 1503, 1503]
    manifest.attrs = {}  # as read from a file: an entry that is alone might be of either kind
    assert 1503 in set(multi_shot(manifest)["pid"])


# -- any hand of a person -------------------------------------------------------------------------


def test_person_level_takes_the_offsets_off(manifests):
    manifest = manifests[RIGHT]
    level = person_level(manifest)
    assert level["pid"].max() < min(OFFSETS) < manifest["pid"].max()
    gallery = of_draw(level, "gallery")
    assert len(gallery) == len(of_draw(manifest, "gallery_all"))
    pid = gallery["pid"].value_counts().index[0]
    assert set(gallery.loc[gallery["pid"] == pid, "aspect"]) == set(CHAIN)
    assert len(of_draw(level, "query")) == len(of_draw(manifest, "query"))


def test_another_hand_of_the_person_is_right_there_and_wrong_among_all(table, manifests):
    """Every query looks just like the person's left hand."""
    manifest = manifests[RIGHT]
    images = list(dict.fromkeys(manifest["image"]))
    rows = table.set_index("image").loc[images]
    towards = {pid: i for i, pid in enumerate(sorted(set(rows["pid"])))}
    z = np.zeros((len(images), 2 * len(towards)))
    right = set(of_draw(manifest, "gallery")["image"])
    for i, (image, pid, aspect) in enumerate(zip(images, rows["pid"], rows["aspect"], strict=True)):
        alike = aspect == LEFT or (aspect == RIGHT and image not in right)
        z[i, towards[pid] + len(towards) * (not alike)] = 1.0
    first = manifest[manifest["draw"].isin([-1, 0])]
    has_left = set(persons(of_draw(first, "gallery_all").query("aspect == @LEFT")["pid"]))
    asked = of_draw(first, "query")
    share = asked["pid"].isin(has_left).mean()
    assert share > 0.9
    level = evaluate(z, images, person_level(first), bootstrap=50)["own"]
    among_all = evaluate(z, images, first, bootstrap=50)["all"]
    assert level["rank1"]["mean"] == pytest.approx(share) and among_all["rank1"]["mean"] < 0.2


def test_hands_of_persons_who_train_leave_the_galleries():
    """As in 11k Hands, aspects cut at different persons: 8 trains left, and is tested right."""
    people = {RIGHT: range(4, 11), LEFT: range(5, 12)}
    rows = [(pid, a, f"{pid}_{a}_{s}.jpg") for a in people for pid in people[a] for s in range(3)]
    table = pd.DataFrame(rows, columns=["pid", "aspect", "image"]).assign(dataset="own")
    manifests = {aspect: make_manifest(table, aspect) for aspect in (RIGHT, LEFT)}
    trained = {
        a: set(m.loc[m["split"].isin(["train", "val"]), "pid"]) for a, m in manifests.items()
    }
    assert trained == {RIGHT: {4, 5, 6, 7}, LEFT: {5, 6, 7, 8}}
    found = scenarios(manifests, LEFT, table)
    for name in ("person_level", f"cross_{RIGHT}"):
        assert 8 not in set(found[name]["pid"])
        assert "1 training person taken from the gallery" in found[name].attrs["note"]
    assert 8 in set(persons(of_draw(found["all"], "gallery")["pid"]))  # the published protocol


# -- accessories ----------------------------------------------------------------------------------


def test_accessories_are_asked_for_and_never_searched(table, manifests):
    manifest = manifests[RIGHT]
    worn = accessories(table, manifest)
    wears = table[(table["accessories"] == 1) & (table["aspect"] == RIGHT)]
    tested = set(manifest.loc[manifest["split"] == "gallery", "pid"])
    query, gallery = (of_draw(worn, split) for split in ("query", "gallery"))
    assert set(query["image"]) == set(wears.loc[wears["pid"].isin(tested), "image"])
    assert list(gallery["image"]) == list(of_draw(manifest, "gallery")["image"])
    assert worn.attrs["left_out"] == len(tested) - query["pid"].nunique()
    assert not set(query["image"]) & set(manifest["image"])
    with pytest.raises(TooFew, match="0 persons can be asked for"):
        accessories(table.assign(accessories=0), manifest)
    with pytest.raises(TooFew, match="does not say"):
        accessories(table.drop(columns="accessories"), manifest)


# -- all of them ----------------------------------------------------------------------------------


def test_scenarios_of_a_whole_data_set(table, manifests, capsys):
    found = scenarios(manifests, RIGHT, table)
    names = ["own", "all", "multi_shot", "person_level", "accessories"]
    assert list(found) == names + [f"cross_{aspect}" for aspect in CHAIN if aspect != RIGHT]
    assert not capsys.readouterr().out
    for name, manifest in found.items():
        asked = manifest.loc[manifest["split"] == "query", "pid"].nunique()
        assert f"{asked} persons asked for" in manifest.attrs["note"], name
        assert set(manifest["split"]) == {"query", "gallery"}
    cross = found[f"cross_{LEFT}"]
    assert set(of_draw(cross, "query")["aspect"]) == {RIGHT}
    assert set(of_draw(cross, "gallery")["aspect"]) == {LEFT}


def test_they_are_the_same_whatever_the_order_of_the_table(table, manifests):
    shuffled = table.sample(frac=1, random_state=3)
    again = {a: make_manifest(shuffled, a, "person_disjoint", draws=3) for a in reversed(CHAIN)}
    first, second = scenarios(manifests, RIGHT, table), scenarios(again, RIGHT, shuffled)
    assert {n: sha256(m) for n, m in first.items()} == {n: sha256(m) for n, m in second.items()}


def test_what_the_data_does_not_allow_is_printed(table, capsys):
    alone = table[table["aspect"] == RIGHT].drop(columns="accessories")
    found = scenarios({RIGHT: make_manifest(alone, RIGHT)}, RIGHT, alone)
    assert list(found) == ["own", "multi_shot"]
    printed = capsys.readouterr().out
    for words in ("all is left out: the data has one aspect", "accessories is left out: the data"):
        assert words in printed


def test_a_leak_is_an_error_and_not_a_scenario_left_out(table, manifests):
    manifest = manifests[RIGHT]
    leak = of_draw(manifest, "query").iloc[[0]].assign(split="train", draw=-1)
    leaky = pd.concat([manifest, leak], ignore_index=True)
    with pytest.raises(SplitError, match="image in training and in test") as caught:
        scenarios({RIGHT: leaky}, RIGHT, table)
    assert not isinstance(caught.value, TooFew)


def test_every_image_is_embedded_once_and_scores_are_the_protocols(table, manifests):
    found, asked = scenarios(manifests, RIGHT, table), []

    def features_of(images):
        asked.append(list(images))
        return toy_features(table)(images)

    scores = evaluate_all(features_of, found, bootstrap=100, seed=3)
    (images,) = asked
    assert len(images) == len(set(images))
    assert set(images) == set(pd.concat([m["image"] for m in found.values()]))
    z = toy_features(table)(images)
    known = evaluate(z, images, manifests[RIGHT], bootstrap=100, seed=3)
    assert scores["own"] == known["own"] and scores["all"] == known["all"]
    assert set(scores) == set(found)
    assert scores["multi_shot"]["persons"] == scores["multi_shot"]["queries"]
    assert evaluate_all(features_of, {}) == {}


def test_another_data_set_is_another_table_and_its_features(capsys):
    """Two drawn sets of four persons: a model of the first is asked of the second."""
    one, two = drawn(4, seed=1), drawn(4, seed=2)
    trained = make_manifest(one, RIGHT, draws=2)
    manifests = {aspect: make_manifest(two, aspect, draws=2) for aspect in CHAIN}
    found = scenarios(manifests, RIGHT, two)
    scores = evaluate_all(toy_features(two, noise=0.1), found, bootstrap=50)
    assert scores["own"]["rank1"]["mean"] == 1.0 and scores["own"]["persons"] == 2
    both = {
        "same": scenarios({RIGHT: trained}, RIGHT, one)["own"],
        "other": found["own"].assign(image="two/" + found["own"]["image"]),
    }
    tables = pd.concat([one, two.assign(image="two/" + two["image"])])
    told = evaluate_all(toy_features(tables, noise=0.1), both, bootstrap=50)
    assert set(told) == {"same", "other"}


# -- measures at k --------------------------------------------------------------------------------

SIM = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
GALLERY = np.array([5, 7, 5, 5])


def test_a_smaller_gallery_is_the_mean_over_all_its_choices():
    """Every way to leave out two of five others, by hand."""
    rng, size = np.random.default_rng(0), 4
    rows = [("gallery", draw, pid, f"g{draw}_{pid}") for draw in (0, 1) for pid in range(6)]
    rows += [("query", draw, pid, f"q{pid}") for draw in (0, 1) for pid in range(5)]
    manifest = pd.DataFrame(rows, columns=["split", "draw", "pid", "image"])
    images = manifest["image"].unique().tolist()
    z = rng.normal(size=(len(images), 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    frame = per_query(z, images, manifest)
    found = in_smaller_gallery(frame, manifest, size)
    assert found[["draw", "pid"]].equals(frame[["draw", "pid"]])
    expected = []
    for row in frame.itertuples():
        others = [pid for pid in range(6) if pid != row.pid]
        kept = manifest["split"] == "query"
        each = []
        for chosen in combinations(others, size - 1):
            some = manifest[kept | manifest["pid"].isin((*chosen, row.pid))]
            asked = some[(some["split"] == "gallery") | (some["image"] == row.image)]
            again = per_query(z, images, asked[asked["draw"] == row.draw])
            each.append(again[["rank1", "ap"]].iloc[0].to_numpy(dtype=float))
        expected.append(np.mean(each, axis=0))
    np.testing.assert_allclose(found[["rank1", "ap"]], expected)
    whole = in_smaller_gallery(frame, manifest, 6)
    np.testing.assert_allclose(whole[["rank1", "ap"]], frame[["rank1", "ap"]])
    assert (in_smaller_gallery(frame, manifest, 1)[["rank1", "ap"]] == 1).all(axis=None)
    with pytest.raises(ValueError, match="a gallery of 6 has no choice of 7"):
        in_smaller_gallery(frame, manifest, 7)


def test_measures_at_k_by_hand():
    found = precision_recall_at(SIM, [5, 7], GALLERY, ks=(1, 2, 3, 9))
    # person 5 finds 5 7 5 5, person 7 finds 5 5 7 5
    np.testing.assert_allclose(found["precision"], [[1, 1 / 2, 2 / 3, 3 / 4], [0, 0, 1 / 3, 1 / 4]])
    np.testing.assert_allclose(found["recall"], [[1 / 3, 1 / 3, 2 / 3, 1], [0, 0, 1, 1]])
    np.testing.assert_allclose(found["f1"], [[1 / 2, 2 / 5, 2 / 3, 6 / 7], [0, 0, 1 / 2, 2 / 5]])
    third, second = 1 / np.log2(4), 1 / np.log2(3)  # the discounts of ranks 3 and 2
    all_three = (1 + third + 1 / np.log2(5)) / (1 + second + third)
    expected = [
        [1, 1 / (1 + second), (1 + third) / (1 + second + third), all_three],
        [0, 0, third, third],
    ]
    np.testing.assert_allclose(found["ndcg"], expected)


def test_measures_at_k_equal_a_loop_and_scikit_learn():
    rng = np.random.default_rng(0)
    gallery = np.concatenate([np.arange(6), rng.integers(0, 6, 14)])
    query, sim = rng.integers(0, 6, 30), rng.random((30, 20))
    ks = (1, 3, 10, 20)
    found = precision_recall_at(sim, query, gallery, ks)
    for i, (row, pid) in enumerate(zip(sim, query, strict=True)):
        hit = [gallery[g] == pid for g in sorted(range(20), key=lambda g, r=row: -r[g])]
        for j, k in enumerate(ks):
            p, r = sum(hit[:k]) / k, sum(hit[:k]) / sum(hit)
            f1 = 2 * p * r / (p + r) if p + r else 0.0
            got = [found[name][i, j] for name in ("precision", "recall", "f1")]
            assert got == pytest.approx([p, r, f1], abs=1e-12)
            known = ndcg_score([gallery == pid], [row], k=k)
            assert found["ndcg"][i, j] == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize(
    ("sim", "query", "ks", "message"),
    [
        (SIM, [5, 8], (1,), "query 1 has no match"),
        (SIM, [5, 7], (0, 1), "count ranks from 1"),
        (SIM, [5], (1,), "need finite similarities"),
        (np.where(SIM > 0.8, np.nan, SIM), [5, 7], (1,), "need finite similarities"),
    ],
)
def test_measures_at_k_refuse(sim, query, ks, message):
    with pytest.raises(ValueError, match=message):
        precision_recall_at(sim, query, GALLERY, ks)


def test_with_one_match_recall_at_k_is_rank_k(table, manifests):
    manifest = manifests[RIGHT]
    images = list(dict.fromkeys(manifest["image"]))
    z = toy_features(table)(images)
    frame, got = per_query(z, images, manifest, "all"), at_ranks(z, images, manifest, "all")
    for k in (1, 5, 10):
        assert got.loc[(k, "recall"), "mean"] == pytest.approx(frame[f"rank{k}"].mean())
        precision = got.loc[(k, "precision"), "mean"]
        assert precision == pytest.approx(frame[f"rank{k}"].mean() / k)
    assert (got["low"] <= got["mean"] + 1e-9).all() and (got["mean"] <= got["high"] + 1e-9).all()


# -- persons --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (40, 50)])
def test_wilson_is_scipys(hits, n):
    known = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert tuple(map(float, wilson(hits / n, n))) == pytest.approx(
        (known.low, known.high), abs=1e-12
    )


def test_a_photograph_that_several_draws_ask_for_counts_once():
    rows = [(d, f"{p}{s}", p, float(p == 1)) for d in range(5) for p in (1, 2) for s in "abc"]
    frame = pd.DataFrame(rows, columns=["draw", "image", "pid", "rank1"])
    table = per_identity_accuracy(frame)
    assert list(table.index) == [2, 1] and list(table["photographs"]) == [3, 3]
    assert table.loc[1, "low"] == pytest.approx(float(wilson(1.0, 3)[0]))


def test_the_worst_pairs_of_identities():
    offset = OFFSETS[0]
    rows = [  # asked for, found first, similarity
        *[(1, 2, 0.5), (1, 2, 0.7), (1, 1, 0.9), (1, 3, 0.8)],
        *[(2, 2 + offset, 0.4), (2, 2 + offset, 0.6), (3, 3, 0.9)],
    ]
    lists = pd.DataFrame(rows, columns=["pid", "gallery_pid", "similarity"])
    lists = lists.assign(rank=1, correct=lists["pid"] == lists["gallery_pid"])
    lists = pd.concat([lists, lists.assign(rank=2, gallery_pid=9, correct=False)])
    found = confused(lists)
    assert found[["pid", "found", "count"]].to_numpy().tolist() == [
        [1, 2, 2], [2, 2 + offset, 2], [1, 3, 1]
    ]  # fmt: skip
    assert list(found["same_person"]) == [False, True, False]
    assert list(found["share"]) == [0.5, 1.0, 0.25]
    assert found["similarity"].tolist() == pytest.approx([0.6, 0.5, 0.8])
    assert len(confused(lists, 1)) == 1
    assert list(groups.confusions(found)["the same person's other hand"]) == ["no", "yes", "no"]
    nobody = groups.confusions(confused(lists[lists["correct"]]))
    assert nobody.to_numpy().tolist() == [["nobody: each query found its person first"]]


def test_confused_reads_ranked_lists(table, manifests):
    manifest = manifests[RIGHT]
    images = list(dict.fromkeys(manifest["image"]))
    z = toy_features(table, noise=2.0)(images)
    lists = [ranking(z, images, manifest, draw, "all", top=1) for draw in range(3)]
    found, frame = confused(pd.concat(lists), 10_000), per_query(z, images, manifest, "all")
    assert found["count"].sum() == (frame["rank1"] == 0).sum() > 0
