"""CMC, AP, trapezoid AP and mINP against hand-worked values and a loop from the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip_lib.evaluate import retrieval
from handclip_lib.evaluate.retrieval import METRICS, rank_gallery, retrieval_metrics

# Four queries, five gallery entries; persons 1 and 2 have two entries each, 3 has one.
GALLERY = np.array([1, 2, 3, 1, 2])
QUERY = np.array([1, 2, 3, 1])
SIMILARITY = np.array(
    [
        # order g0 g2 g3 g4 g1, matches at ranks 1, 3: AP (1/1 + 2/3)/2 = 5/6, INP 2/3,
        # trapezoid ((1 + 1)/2 + (1/2 + 2/3)/2)/2 = 19/24
        [0.9, 0.1, 0.8, 0.3, 0.2],
        # order g0 g2 g1 g3 g4, matches at ranks 3, 5: AP (1/3 + 2/5)/2 = 11/30, INP 2/5,
        # trapezoid ((0 + 1/3)/2 + (1/4 + 2/5)/2)/2 = 59/240
        [0.7, 0.5, 0.6, 0.1, 0.05],
        # all equal, so gallery order g0 g1 g2 g3 g4, match at rank 3: AP 1/3, INP 1/3,
        # trapezoid (0 + 1/3)/2 = 1/6
        [0.5, 0.5, 0.5, 0.5, 0.5],
        # g1 and g3 tie, g1 comes first: order g1 g3 g0 g2 g4, matches at ranks 2, 3:
        # AP (1/2 + 2/3)/2 = 7/12, INP 2/3, trapezoid ((0 + 1/2)/2 + (1/2 + 2/3)/2)/2 = 5/12
        [0.2, 0.9, 0.1, 0.9, 0.0],
    ]
)
AP = [5 / 6, 11 / 30, 1 / 3, 7 / 12]
TRAPEZOID = [19 / 24, 59 / 240, 1 / 6, 5 / 12]
INP = [2 / 3, 2 / 5, 1 / 3, 2 / 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hand_worked_example(dtype):
    scores = retrieval_metrics(SIMILARITY.astype(dtype), QUERY, GALLERY)
    rows = scores["per_query"]
    np.testing.assert_array_equal(rows["rank"], [1, 3, 3, 2])
    np.testing.assert_array_equal(rows["rank1"], [1, 0, 0, 0])
    np.testing.assert_array_equal(rows["rank5"], [1, 1, 1, 1])
    np.testing.assert_allclose(rows["ap"], AP, atol=1e-12)
    np.testing.assert_allclose(rows["ap_trapezoid"], TRAPEZOID, atol=1e-12)
    np.testing.assert_allclose(rows["inp"], INP, atol=1e-12)
    means = {m: scores[m] for m in METRICS}
    assert means == pytest.approx(
        {
            "rank1": 1 / 4,
            "rank5": 1.0,
            "rank10": 1.0,  # a gallery of five counts whole
            "map": 127 / 240,
            "map_trapezoid": 389 / 960,
            "minp": 31 / 60,
        },
        abs=1e-12,
    )
    assert all(type(value) is float for value in means.values())


def test_cut_offs_count_from_one():
    # query i finds its only match at rank RANKS[i] of twelve
    ranks = np.array([1, 2, 5, 6, 10, 11])
    sim = np.tile(np.arange(12, 0, -1.0), (6, 1))
    gallery = np.arange(12)
    scores = retrieval_metrics(sim, ranks - 1, gallery)
    np.testing.assert_array_equal(scores["per_query"]["rank"], ranks)
    assert [scores[k] for k in ("rank1", "rank5", "rank10")] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    np.testing.assert_allclose(scores["per_query"]["ap"], 1 / ranks)
    np.testing.assert_allclose(
        scores["per_query"]["ap_trapezoid"], np.where(ranks == 1, 1, 1 / (2 * ranks))
    )


def by_loop(sim, query, gallery):
    """The definitions, one query and one gallery entry at a time."""
    rows = []
    for scores, pid in zip(sim, query, strict=True):
        order = sorted(range(len(gallery)), key=lambda g, s=scores: (-s[g], g))
        ranks = [r for r, g in enumerate(order, start=1) if gallery[g] == pid]
        ap = trapezoid = 0.0
        for j, r in enumerate(ranks):
            after = (j + 1) / r
            before = j / (r - 1) if r > 1 else 1.0
            ap += after / len(ranks)
            trapezoid += (before + after) / 2 / len(ranks)
        rows.append(
            {
                "rank": ranks[0],
                "rank1": float(ranks[0] <= 1),
                "rank5": float(ranks[0] <= 5),
                "rank10": float(ranks[0] <= 10),
                "ap": ap,
                "ap_trapezoid": trapezoid,
                "inp": len(ranks) / ranks[-1],
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@st.composite
def problems(draw, single=False):
    """Similarities with many ties; every query has one match (single) or some."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    persons = draw(st.integers(1, 12))
    extra = 0 if single else draw(st.integers(0, 15))
    gallery = rng.permutation(np.concatenate([np.arange(persons), rng.integers(0, persons, extra)]))
    query = rng.integers(0, persons, draw(st.integers(1, 9)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    return rng.integers(0, levels, (len(query), len(gallery))) / levels, query, gallery


@settings(deadline=None, max_examples=150)
@given(problems())
def test_equals_the_loop(problem):
    scores, rows = retrieval_metrics(*problem), by_loop(*problem)
    assert set(scores["per_query"]) == set(rows)
    for name, values in rows.items():
        np.testing.assert_allclose(scores["per_query"][name], values, atol=1e-12, err_msg=name)
    for metric, column in METRICS.items():
        assert scores[metric] == pytest.approx(rows[column].mean(), abs=1e-12)
        assert 0 <= scores[metric] <= 1


@settings(deadline=None)
@given(problems(single=True))
def test_one_match_makes_trapezoid_the_mean_of_rank1_and_map(problem):
    scores = retrieval_metrics(*problem)
    assert scores["map_trapezoid"] == pytest.approx((scores["rank1"] + scores["map"]) / 2, abs=1e-9)
    assert scores["minp"] == pytest.approx(scores["map"], abs=1e-12)


@settings(deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_queries_changes_nothing(problem, random):
    sim, query, gallery = problem
    order = random.sample(range(len(query)), len(query))
    a, b = (
        retrieval_metrics(sim, query, gallery),
        retrieval_metrics(sim[order], query[order], gallery),
    )
    assert all(a[m] == pytest.approx(b[m], abs=1e-12) for m in METRICS)
    np.testing.assert_array_equal(a["per_query"]["rank"][order], b["per_query"]["rank"])


def test_perfect_and_inverted_ranking():
    pids = np.arange(20)
    perfect = retrieval_metrics(np.eye(20), pids, pids)
    assert all(perfect[m] == 1.0 for m in METRICS)
    inverted = retrieval_metrics(-np.eye(20), pids, pids)
    assert [inverted[m] for m in METRICS] == pytest.approx([0, 0, 0, 1 / 20, 1 / 40, 1 / 20])


def test_random_similarity_is_at_chance():
    rng = np.random.default_rng(0)
    pids = np.tile(np.arange(50), 80)
    scores = retrieval_metrics(rng.random((4000, 50)), pids, np.arange(50))
    assert [scores[k] for k in ("rank1", "rank5", "rank10")] == pytest.approx(
        [1 / 50, 5 / 50, 10 / 50], abs=0.02
    )
    assert scores["map"] == pytest.approx(np.mean(1 / np.arange(1, 51)), abs=0.01)


def test_ties_keep_the_order_of_the_gallery():
    sim = np.ones((3, 40))  # more than a small sort's insertion limit, which is stable by luck
    scores = retrieval_metrics(sim, [7, 0, 39], np.arange(40))
    np.testing.assert_array_equal(scores["per_query"]["rank"], [8, 1, 40])
    np.testing.assert_array_equal(rank_gallery(sim), np.tile(np.arange(40), (3, 1)))
    two_levels = np.tile([0.0, 1.0], 20)[None, :]
    np.testing.assert_array_equal(rank_gallery(two_levels)[0], [*range(1, 40, 2), *range(0, 40, 2)])


def test_blocks_of_queries_give_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    sim, query = rng.random((23, 11)), rng.integers(0, 5, 23)
    gallery = np.concatenate([np.arange(5), rng.integers(0, 5, 6)])
    whole = retrieval_metrics(sim, query, gallery)
    monkeypatch.setattr(retrieval, "_CELLS", 33)  # three queries at a time
    parts = retrieval_metrics(sim, query, gallery)
    for name, values in whole.pop("per_query").items():
        np.testing.assert_array_equal(parts["per_query"][name], values)
    assert all(parts[m] == whole[m] for m in METRICS)
    sim[17, 4] = np.nan
    with pytest.raises(ValueError, match="query 17 "):
        retrieval_metrics(sim, query, gallery)


def test_names_are_identities_too():
    scores = retrieval_metrics(np.array([[1, 2], [2, 1]]), ["ann", "bo"], ["ann", "bo"])
    np.testing.assert_array_equal(scores["per_query"]["rank"], [2, 2])


def test_a_query_without_a_match_is_refused_by_name():
    with pytest.raises(ValueError, match="query 1: identity 1051 has no match"):
        retrieval_metrics(np.ones((3, 2)), [1, 1051, 1051], [1, 2])


@pytest.mark.parametrize(
    ("sim", "query", "gallery", "message"),
    [
        (np.array([[np.nan, 1.0]]), [1], [1, 2], "NaN or infinity"),
        (np.array([[np.inf, 1.0]]), [1], [1, 2], "NaN or infinity"),
        (np.array([[-np.inf, 1.0]]), [1], [1, 2], "NaN or infinity"),
        (np.ones((2, 2)), [1], [1, 2], "shape"),
        (np.ones((2, 1)), [1], [1, 2], "shape"),
        (np.ones(2), [1], [1, 2], "shape"),
        (np.ones((1, 2)), [[1]], [1, 2], "one-dimensional"),
        (np.ones((0, 2)), [], [1, 2], "nothing to rank"),
        (np.ones((1, 0)), [1], [], "nothing to rank"),
        (np.ones((1, 2)), [1.0], [1, 2], "whole numbers or names"),
        (np.ones((1, 2)), ["1"], [1, 2], "differ in kind"),
    ],
)
def test_bad_input_is_refused(sim, query, gallery, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(sim, query, gallery)
