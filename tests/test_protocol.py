"""Draws, galleries, intervals and ranked lists of synthetic manifests."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_tables import make_hd

from handclip_lib import params
from handclip_lib.data import splits, tables
from handclip_lib.evaluate.embed import retrieval_features
from handclip_lib.evaluate.protocol import (
    best_and_worst,
    cosine,
    evaluate,
    pair_scores,
    per_query,
    ranking,
)
from handclip_lib.evaluate.retrieval import METRICS, retrieval_metrics
from handclip_lib.evaluate.statistics import person_bootstrap
from handclip_lib.models.clip import load_encoder

OTHER_HAND = 11_000_000


def make_manifest(persons=12, shots=6, draws=3, others=True):
    """One gallery photograph a person and draw; `gallery_all` adds the person's other hand."""
    rng = np.random.default_rng(0)
    rows = []
    for draw in range(draws):
        for pid in range(1, persons + 1):
            own = [f"Hands/r{pid:03d}_{shot}.jpg" for shot in range(shots)]
            chosen = own[rng.integers(shots)]
            rows += [("query", draw, pid, "dorsal_r", i) for i in own if i != chosen]
            rows.append(("gallery", draw, pid, "dorsal_r", chosen))
            if others:
                rows.append(("gallery_all", draw, pid, "dorsal_r", chosen))
        if others:
            rows += [
                ("gallery_all", draw, p + OTHER_HAND, "dorsal_l", f"Hands/l{p:03d}.jpg")
                for p in range(1, persons + 1)
            ]
    rows.append(("train", -1, 99, "dorsal_r", "Hands/never_embedded.jpg"))
    return pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])


def embed(manifest, dims=24, noise=1.0, seed=0):
    """Unit features around a centre of each person; a left hand has a centre of its own."""
    rng = np.random.default_rng(seed)
    shown = manifest[manifest["split"] != "train"].drop_duplicates("image")
    centres = {pid: rng.normal(size=dims) for pid in sorted(set(shown["pid"]))}
    z = np.stack([centres[p] for p in shown["pid"]]) + noise * rng.normal(size=(len(shown), dims))
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z.astype(np.float32), list(shown["image"])


def test_perfect_features_score_one_everywhere():
    manifest = make_manifest()
    scores = evaluate(*embed(manifest, noise=0.01), manifest, bootstrap=100)
    assert set(scores) == {"own", "all"}
    for gallery in scores.values():
        for metric in METRICS:
            least = pytest.approx(0.025 ** (1 / 12))  # Clopper & Pearson, 12 persons of 12
            assert gallery[metric] == {"mean": 1.0, "ci95": [least, 1.0], "per_draw": [1.0] * 3}
    assert {k: scores["own"][k] for k in ("queries", "gallery", "persons")} == {
        "queries": 60,
        "gallery": 12,
        "persons": 12,
    }
    assert scores["all"]["gallery"] == 24
    json.dumps(scores, allow_nan=False)  # plain values only


def test_random_features_are_near_chance():
    manifest = make_manifest(persons=50, shots=12, draws=10)
    scores = evaluate(*embed(manifest, noise=1e6), manifest, bootstrap=100)
    assert scores["own"]["rank1"]["mean"] == pytest.approx(1 / 50, abs=0.01)
    assert scores["all"]["rank1"]["mean"] == pytest.approx(1 / 100, abs=0.01)
    assert scores["own"]["rank10"]["mean"] == pytest.approx(10 / 50, abs=0.03)


def test_scores_are_those_of_each_draw_by_hand():
    manifest = make_manifest()
    z, images = embed(manifest, noise=2.0)
    row = {image: i for i, image in enumerate(images)}
    scores = evaluate(z, images, manifest, bootstrap=200, seed=7)
    for name, split in (("own", "gallery"), ("all", "gallery_all")):
        expected, ap, who = [], [], []
        for draw in range(3):
            part = manifest[manifest["draw"] == draw]
            q, g = part[part["split"] == "query"], part[part["split"] == split]
            sim = z[[row[i] for i in q["image"]]] @ z[[row[i] for i in g["image"]]].T
            of_draw = retrieval_metrics(sim, q["pid"], g["pid"])
            expected.append([of_draw[m] for m in METRICS])
            ap.append(of_draw["per_query"]["ap"])
            who.append(q["pid"])
        got = np.array([scores[name][m]["per_draw"] for m in METRICS]).T
        np.testing.assert_allclose(got, expected, atol=1e-12)
        means = [scores[name][m]["mean"] for m in METRICS]
        np.testing.assert_allclose(means, np.mean(expected, axis=0), atol=1e-12)
        assert 0.05 < scores[name]["rank1"]["mean"] < 0.95  # neither end of the scale
        # one resample carries a person's queries of all draws
        interval = person_bootstrap(np.concatenate(ap), np.concatenate(who), 200, 7)
        assert scores[name]["map"]["ci95"] == pytest.approx(interval, abs=1e-12)
    assert scores["own"]["rank1"]["mean"] > scores["all"]["rank1"]["mean"]


def test_one_match_relates_the_two_average_precisions():
    manifest = make_manifest()
    for gallery in evaluate(*embed(manifest, noise=2.0), manifest, bootstrap=100).values():
        for i in range(3):
            rank1, ap, trapezoid = (
                gallery[m]["per_draw"][i] for m in ("rank1", "map", "map_trapezoid")
            )
            assert trapezoid == pytest.approx((rank1 + ap) / 2, abs=1e-9)


def test_the_other_hand_of_the_same_person_is_a_wrong_answer():
    manifest = make_manifest(draws=1)
    z, images = embed(manifest, noise=0.01)
    row = {image: i for i, image in enumerate(images)}
    queries = manifest[manifest["split"] == "query"]
    for pid, group in queries.groupby("pid"):  # the left hand looks just like the right one's query
        z[row[f"Hands/l{pid:03d}.jpg"]] = z[row[group["image"].iloc[0]]]
    scores = evaluate(z, images, manifest, bootstrap=100)
    assert scores["own"]["rank1"]["mean"] == 1.0
    assert scores["all"]["rank1"]["mean"] <= 0.8
    assert scores["all"]["rank5"]["mean"] == 1.0


def test_persons_are_compared_by_identity_not_by_position():
    manifest = make_manifest(others=False)
    z, images = embed(manifest, noise=1.5)
    scores = evaluate(z, images, manifest, bootstrap=100)
    assert set(scores) == {"own"}
    rng = np.random.default_rng(0)
    shuffled = manifest.sample(frac=1, random_state=1)
    order = rng.permutation(len(images))
    again = evaluate(z[order], [images[i] for i in order], shuffled, bootstrap=100)
    renamed = manifest.assign(pid=1051 - manifest["pid"])
    renumbered = evaluate(z, images, renamed, bootstrap=100)
    for metric in METRICS:
        assert again["own"][metric]["per_draw"] == pytest.approx(scores["own"][metric]["per_draw"])
        assert renumbered["own"][metric]["per_draw"] == scores["own"][metric]["per_draw"]


@pytest.fixture(scope="module")
def hd(tmp_path_factory):
    """Queries and galleries of a tree with HD's names and counts, by the study that is HD's."""
    root = make_hd(tmp_path_factory.mktemp("hd"))
    p = params.load("dorsal", "hd_vitb16", overrides={"data.root": str(root)})
    return splits.manifest_for(p, tables.read(p))


def numbers(images):
    """(N,) who is in a photograph of HD by its name; an extra person is none of the main ones."""
    names = pd.Series(images).str.extract(r"/([^/]+)/(\d+)_\d+\.")
    return names[1].astype(int) + 1000 * (names[0] == "502-712")


def test_perfect_features_find_everybody_of_hd(hd):
    shown = hd[hd["split"].isin(("query", "gallery"))].drop_duplicates("image")
    order, people = np.unique(numbers(shown["image"]), return_inverse=True)
    assert len(order) == 251 + 213
    scores = evaluate(np.eye(len(order), dtype=np.float32)[people], list(shown["image"]), hd)
    assert set(scores) == {"own"}  # HD has no gallery of other aspects
    found = scores["own"]
    assert (found["gallery"], found["queries"], found["persons"]) == (1593, 1992, 251)
    least = pytest.approx(0.025 ** (1 / 251))  # Clopper & Pearson
    for metric in METRICS:
        assert found[metric] == {"mean": 1.0, "ci95": [least, 1.0], "per_draw": [1.0] * 10}
    by_place = {pid: k for k, pid in enumerate(sorted(set(hd["pid"]), key=str))}  # as folders sort
    queries = hd["split"] == "query"
    wrong = hd.assign(pid=hd["pid"].where(queries, hd["pid"].map(by_place)))
    with pytest.raises(ValueError, match="gallery"):
        evaluate(np.eye(len(order), dtype=np.float32)[people], list(shown["image"]), wrong)


def test_random_features_are_near_chance_among_the_1593_of_hd(hd):
    found = evaluate(*embed(hd, dims=64, noise=1e6), hd, bootstrap=100)["own"]
    assert (found["gallery"], found["queries"]) == (1593, 1992)
    assert found["rank1"]["mean"] == pytest.approx(1 / 1593, abs=0.001)
    assert found["rank10"]["mean"] == pytest.approx(10 / 1593, abs=0.003)
    assert found["map"]["mean"] == pytest.approx(np.mean(1 / np.arange(1, 1594)), abs=0.001)


def test_copies_of_a_photograph_tie_whatever_the_matrix_product_does():
    manifest = make_manifest(persons=71, shots=14, draws=2)
    z, images = embed(manifest, dims=1280)
    z[:] = z[0]
    frame = per_query(z, images, manifest, "all")
    np.testing.assert_array_equal(frame["rank"], frame["pid"])  # the order of the gallery
    assert len(np.unique(cosine(z, z[:290]))) == 1


def test_copies_embedded_in_other_batches_tie_as_well():
    encoder = load_encoder("tiny_rn", "random")
    images = torch.randn(
        24, 3, *encoder.preprocess.size, generator=torch.Generator().manual_seed(0)
    )

    def features(batch):
        with torch.inference_mode():
            parts = [encoder.features(part) for part in images.split(batch)]
        names = ("pool", "proj")
        raw = {n: np.concatenate([getattr(part, n).numpy() for part in parts]) for n in names}
        return retrieval_features(raw)

    once, again = features(24), features(7)
    exact = once.astype(float) @ once.T.astype(float)
    np.testing.assert_allclose(cosine(once, once), exact, atol=5.1e-7)
    tied = cosine(once, once) == cosine(again, once)
    assert tied.mean() > 0.95  # a rounding step may part a few


def test_per_query_frame():
    manifest = make_manifest()
    frame = per_query(*embed(manifest), manifest)
    assert list(frame.columns) == [
        *("draw", "image", "pid", "rank", "rank1", "rank5", "rank10"),
        *("ap", "ap_trapezoid", "inp"),
    ]
    assert len(frame) == 3 * 60
    queries = manifest[manifest["split"] == "query"]
    assert list(frame["image"]) == list(queries["image"])
    assert list(frame["draw"]) == list(queries["draw"])


def test_ranking_agrees_with_the_scores():
    manifest = make_manifest()
    z, images = embed(manifest, noise=2.0)
    lists = ranking(z, images, manifest, draw=1, gallery="all", top=24)
    scores = per_query(z, images, manifest, "all").query("draw == 1").set_index("image")
    assert len(lists) == 60 * 24
    for query, part in lists.groupby("query"):
        assert list(part["rank"]) == list(range(1, 25))
        assert part["similarity"].is_monotonic_decreasing
        assert list(part["correct"]) == list(part["pid"] == part["gallery_pid"])
        hit = part.loc[part["correct"], "rank"]
        assert list(hit) == [scores.loc[query, "rank"]] == [part["rank_of_first_match"].iloc[0]]
    top = ranking(z, images, manifest, draw=1, gallery="all", top=3)
    np.testing.assert_array_equal(
        top["gallery"].to_numpy(), lists[lists["rank"] <= 3]["gallery"].to_numpy()
    )
    assert len(ranking(z, images, manifest, draw=1, top=99)) == 60 * 12  # all there is
    with pytest.raises(ValueError, match="no queries of draw 3"):
        ranking(z, images, manifest, draw=3)


def test_best_and_worst_queries_are_of_different_persons_and_fixed():
    frame = pd.DataFrame(
        [
            (0, "b.jpg", 1, 1, 1.0),
            (0, "a.jpg", 1, 1, 1.0),
            (0, "c.jpg", 2, 9, 1 / 9),
            (0, "d.jpg", 2, 8, 1 / 8),
            (0, "f.jpg", 3, 2, 1 / 2),
            (0, "e.jpg", 4, 2, 1 / 2),
        ],
        columns=["draw", "image", "pid", "rank", "ap"],
    )
    best, worst = best_and_worst(frame, 3)
    assert list(best["image"]) == ["a.jpg", "e.jpg", "f.jpg"]
    assert list(worst["image"]) == ["c.jpg", "e.jpg", "f.jpg"]
    again = best_and_worst(frame.sample(frac=1, random_state=0), 3)
    pd.testing.assert_frame_equal(again[0], best)
    pd.testing.assert_frame_equal(again[1], worst)
    assert len(best_and_worst(frame, 10)[0]) == 4


def test_errors_name_the_culprit():
    manifest = make_manifest()
    z, images = embed(manifest)
    gone = images.index("Hands/r003_2.jpg")
    with pytest.raises(ValueError, match=r"no feature of image 'Hands/r003_2\.jpg' \(1 of"):
        evaluate(np.delete(z, gone, 0), images[:gone] + images[gone + 1 :], manifest)
    with pytest.raises(ValueError, match="do not follow"):
        evaluate(z[1:], images, manifest)
    with pytest.raises(ValueError, match="more than one feature"):
        evaluate(z, [images[1], *images[1:]], manifest)
    for bad in (2.0, np.nan):
        raw = z.copy()
        raw[4] *= bad
        with pytest.raises(ValueError, match=f"'{images[4]}' is not of unit length"):
            evaluate(raw, images, manifest)
    with pytest.raises(ValueError, match="no query rows"):
        evaluate(z, images, manifest[manifest["split"] != "query"])
    with pytest.raises(ValueError, match="draw 2 has queries but no gallery rows"):
        evaluate(z, images, manifest.query("not (split == 'gallery' and draw == 2)"))
    with pytest.raises(ValueError, match="unknown gallery 'other'"):
        per_query(z, images, manifest, "other")
    with pytest.raises(ValueError, match="identity 5 has no match"):
        evaluate(z, images, manifest.query("not (split == 'gallery' and pid == 5)"))


def test_pair_scores_split_every_pair_of_a_draw_into_genuine_and_impostor():
    manifest = make_manifest(persons=5, shots=4)
    z, images = embed(manifest)
    for gallery, entries in (("own", 5), ("all", 10)):
        genuine, impostor = pair_scores(z, images, manifest, gallery)
        assert len(genuine) == 5 * 3 and len(impostor) == 5 * 3 * (entries - 1)
        assert genuine.mean() > impostor.mean()
