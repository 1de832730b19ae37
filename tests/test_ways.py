"""Ways to hold queries against a gallery: they reach the ranking, and are what they are called."""

import numpy as np
import pandas as pd
import pytest

from handclip_lib.evaluate.expansion import augment_gallery, expand_queries
from handclip_lib.evaluate.protocol import cosine, evaluate, per_query
from handclip_lib.evaluate.rerank import inductive, k_reciprocal
from handclip_lib.evaluate.ways import both_ways, ways
from handclip_lib.schema_eval import Comparison, Reranking


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 8))
    rows = unit(np.repeat(centres, 4, 0) + rng.normal(0, 0.6, (24, 8))).astype(np.float32)
    return rows[::2], rows[1::2]


@pytest.fixture(scope="module")
def protocol() -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Three persons in one draw, and in the gallery of all aspects a fourth hand."""
    at = np.radians([0, 10, 60, 35, 80, 55, 20])
    z = np.stack([np.cos(at), np.sin(at)], 1)
    names = ["q0", "q1", "q2", "g0", "g1", "g2", "h3"]
    rows = [("query", name, i) for i, name in enumerate(names[:3])]
    rows += [("gallery", name, i) for i, name in enumerate(names[3:6])]
    rows += [("gallery_all", name, i) for i, name in enumerate(names[3:])]
    frame = pd.DataFrame(rows, columns=["split", "image", "pid"])
    return z, names, frame.assign(draw=0, aspect="dorsal_r")


@pytest.mark.parametrize("gallery", ["own", "all"])
def test_a_way_that_turns_the_order_round_turns_the_ranking_round(protocol, gallery):
    size = {"own": 3, "all": 4}[gallery]
    plain = per_query(*protocol, gallery)
    turned = per_query(*protocol, gallery, lambda q, g: -cosine(q, g))
    expected = {"own": [1, 3, 1], "all": [2, 4, 1]}[gallery]
    assert plain["rank"].tolist() == expected
    assert turned["rank"].tolist() == [size + 1 - rank for rank in expected]


def test_evaluate_hands_the_way_on_to_both_galleries(protocol):
    usual = evaluate(*protocol, bootstrap=100)
    assert evaluate(*protocol, bootstrap=100, compare=cosine) == usual
    turned = evaluate(*protocol, bootstrap=100, compare=lambda q, g: -cosine(q, g))
    rank1 = {name: found["rank1"]["mean"] for name, found in usual.items()}
    assert rank1 == {"own": pytest.approx(2 / 3), "all": pytest.approx(1 / 3)}
    found = {name: scores["rank1"]["mean"] for name, scores in turned.items()}
    assert found == {"own": pytest.approx(1 / 3), "all": pytest.approx(1 / 3)}
    assert all(turned[name]["map"] != usual[name]["map"] for name in usual)


def test_names_and_number():
    told = Comparison(reranking=(Reranking(k1=4, k2=2), Reranking(k1=7, k2=1)), expand=2)
    assert list(ways(told)) == [
        "cosine",
        "re-ranked 4/2",
        "re-ranked 4/2, one by one",
        "re-ranked 7/1",
        "re-ranked 7/1, one by one",
        "query expansion 2",
        "query expansion 2, alpha 3",
        "gallery augmented 2, alpha 3",
    ]
    assert len(ways(Comparison(reranking=()))) == 4
    twice = ways(Comparison(reranking=(Reranking(), Reranking(lam=0.5))))
    assert len(twice) == 8 and "re-ranked 10/3, lambda 0.5, one by one" in twice
    with pytest.raises(ValueError, match="each is named once"):
        Comparison(reranking=(Reranking(), Reranking()))


def test_each_way_is_what_it_is_called(sides):
    query, gallery = sides
    told = Comparison(
        reranking=(Reranking(k1=4, k2=2, lam=0.5), Reranking(k1=7, k2=1)), expand=2,
        expand_alpha=1.5,
    )  # fmt: skip
    found = {name: way(query, gallery) for name, way in ways(told).items()}
    some = {"k1": 4, "k2": 2, "lam": 0.5}, {"k1": 7, "k2": 1, "lam": 0.3}
    expected = {
        "cosine": cosine(query, gallery),
        "re-ranked 4/2, lambda 0.5": -k_reciprocal(query, gallery, **some[0]),
        "re-ranked 4/2, lambda 0.5, one by one": -inductive(query, gallery, **some[0]),
        "re-ranked 7/1": -k_reciprocal(query, gallery, **some[1]),
        "re-ranked 7/1, one by one": -inductive(query, gallery, **some[1]),
        "query expansion 2": cosine(expand_queries(query, gallery, 2), gallery),
        "query expansion 2, alpha 1.5": cosine(expand_queries(query, gallery, 2, 1.5), gallery),
        "gallery augmented 2, alpha 1.5": cosine(query, augment_gallery(gallery, 2, 1.5)),
    }
    assert list(found) == list(expected)
    for name, sim in found.items():
        np.testing.assert_array_equal(sim, expected[name], err_msg=name)
        assert sim.shape == (12, 12)
        # higher is closer: the nearest by it is near by cosine as well
        near = np.take_along_axis(expected["cosine"], sim.argmax(1)[:, None], 1).mean()
        assert near > expected["cosine"].mean() + 0.3, name
    tables = [sim.tobytes() for sim in found.values()]
    assert len(set(tables)) == len(tables)  # no two ways are one


def test_query_expansion_with_one_neighbour_by_hand():
    """A query at 0 degrees whose nearest entry stands at 60 moves to 30, the middle."""
    at = np.radians([60, 100])
    query, gallery = np.array([[1.0, 0.0]]), np.stack([np.cos(at), np.sin(at)], 1)
    found = ways(Comparison(expand=1))
    plain = found["query expansion 1"](query, gallery)
    np.testing.assert_allclose(plain, np.cos(np.radians([[30, 70]])), atol=1e-6)
    # alpha 3: the neighbour weighs cos(60)^3 = 1/8
    moved = unit(query + gallery[:1] / 8)
    np.testing.assert_allclose(
        found["query expansion 1, alpha 3"](query, gallery), moved @ gallery.T, atol=1e-6
    )
    # the gallery's two entries, 40 apart, move towards each other and stay on their sides
    weight = np.cos(np.radians(40)) ** 3
    both = unit(gallery + weight * gallery[::-1])
    np.testing.assert_allclose(
        found["gallery augmented 1, alpha 3"](query, gallery), query @ both.T, atol=1e-6
    )


def test_both_ways_are_the_sum_of_each_feature():
    one, other = ({"pool": np.full((2, 3), v), "proj": np.full((2, 1), -v)} for v in (2.0, 5.0))
    found = both_ways(one, other)
    assert {n: z.tolist() for n, z in found.items()} == {
        "pool": [[7.0] * 3] * 2,
        "proj": [[-7.0]] * 2,
    }
    assert one["pool"][0, 0] == 2.0
