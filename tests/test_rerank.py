"""Sparse re-ranking against loops from the paper, and searches that know nothing of each other."""

import numpy as np
import pytest

from handclip_lib.evaluate import rerank
from handclip_lib.evaluate.rerank import inductive, k_reciprocal


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def features(kind, n, seed=0, width=8):
    """`random`, `clustered` around few points, or `duplicates`: half as many rows as there are."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, width))
    if kind == "clustered":
        z = rng.standard_normal((5, width))[rng.integers(0, 5, n)] + 0.3 * z
    if kind == "duplicates":
        z = np.concatenate([z[:2], z])[rng.permutation(n) // 2]
    return unit(z)


def loops(query, gallery, k1, k2, lam):
    """Zhong et al. 2017, one row at a time; equal distances in the order of rows."""
    z = np.concatenate([query, gallery]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(query), len(z)
    distance = np.round([[((a - b) ** 2).sum() for b in z] for a in z], 10)
    largest = distance.max(axis=1)
    distance /= np.where(largest > 0, largest, 1)[:, None]
    rank = np.argsort(distance, axis=1, kind="stable")
    k1 = min(k1, total - 1)

    def mutual(i, k):
        return {int(j) for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    weights = np.zeros((total, total))
    for i in range(total):
        near = mutual(i, k1)
        members = set(near)
        for j in near:
            theirs = mutual(j, int(np.around(k1 / 2)))
            if len(theirs & near) > 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            weights[i, j] = np.exp(-distance[i, j])
        weights[i] /= max(weights[i].sum(), 1e-30)  # a row with many copies may have no member
    weights = np.array([weights[rank[i, :k2]].mean(axis=0) for i in range(total)])
    final = np.empty((n, total - n))
    for i in range(n):
        for j in range(n, total):
            least = np.minimum(weights[i], weights[j]).sum()
            most = np.maximum(weights[i], weights[j]).sum()
            final[i, j - n] = (1 - lam) * (1 - least / most) + lam * distance[i, j]
    return final


KINDS = ["random", "clustered", "duplicates"]
SIZES = [  # queries, gallery, k1, k2
    (40, 30, 20, 6),
    (30, 40, 10, 3),  # k1 / 2 is whole
    (40, 30, 7, 3),  # 3.5 rounds to 4
    (30, 30, 5, 9),  # 2.5 rounds to 2; k2 above k1
    (40, 3, 6, 2),  # a gallery smaller than k1
    (1, 30, 6, 2),
    (30, 1, 6, 1),
    (20, 20, 100, 70),  # both above N
    (20, 20, 1, 1),  # 0.5 rounds to 0
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_it_equals_loops_from_the_paper(kind, sizes):
    q, g, k1, k2 = sizes
    z = features(kind, q + g, seed=q + k1)
    found = k_reciprocal(z[:q], z[q:], k1, k2, 0.3)
    assert found.dtype == np.float32 and found.shape == (q, g)
    np.testing.assert_allclose(found, loops(z[:q], z[q:], k1, k2, 0.3), atol=1e-5)


@pytest.mark.parametrize("q, g", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("k1, k2", [(1, 1), (20, 6), (1, 3)])
def test_tiny_inputs(q, g, k1, k2):
    for kind in KINDS:
        z = features(kind, q + g)
        found = k_reciprocal(z[:q], z[q:], k1, k2)
        np.testing.assert_allclose(found, loops(z[:q], z[q:], k1, k2, 0.3), atol=1e-5)


def test_known_value():
    # Angles 0° (query), 60°, 90°. Squared distances are 2 - 2 cos: 0-60 1, 60-90 2 - √3, 0-90 2.
    # The largest of each row: 2, 1, 2. k1 = 1, so two nearest each: 0 {0, 60}, 60 {60, 90},
    # 90 {90, 60}. Mutual: 0 {0}, 60 {60, 90}, 90 {90, 60}; expansion (k 0) adds nothing.
    a = np.radians([0, 60, 90])
    z = np.stack([np.cos(a), np.sin(a)], axis=1).astype(np.float32)
    one, other = np.exp(-(2 - 3**0.5)), np.exp(-(2 - 3**0.5) / 2)
    weights = np.array([[1, 0, 0], [0, 1, one], [0, other, 1]])
    weights /= weights.sum(axis=1, keepdims=True)
    # alone nothing is shared: Jaccard distance 1; distances to the query 1/2 and 2/2
    plain = k_reciprocal(z[:1], z[1:], k1=1, k2=1, lam=0.3)
    np.testing.assert_allclose(plain, [[0.7 + 0.3 / 2, 1.0]], atol=1e-6)
    # k2 = 2 averages 0 with 60, 60 with 90 and 90 with 60: the last two become equal
    query, both = weights[[0, 1]].mean(axis=0), weights[[1, 2]].mean(axis=0)
    shared = min(query[1], both[1]) + min(query[2], both[2])
    jaccard = 1 - shared / (2 - shared)
    wanted = [[0.7 * jaccard + 0.3 / 2, 0.7 * jaccard + 0.3]]
    np.testing.assert_allclose(k_reciprocal(z[:1], z[1:], 1, 2, 0.3), wanted, atol=1e-6)


def test_lam_one_is_the_distance_alone():
    z = features("clustered", 60)
    query, gallery = z[:40], z[40:]
    distance = 2 - 2 * query @ gallery.T
    everyone = (2 - 2 * query @ z.T).max(axis=1, keepdims=True)  # queries count too
    found = k_reciprocal(query, gallery, lam=1.0)
    np.testing.assert_allclose(found, distance / everyone, atol=1e-6)
    np.testing.assert_array_equal(found.argsort(axis=1), distance.argsort(axis=1))


def test_blocks_change_nothing(monkeypatch):
    z = features("clustered", 120)
    whole = k_reciprocal(z[:70], z[70:], 10, 3)
    monkeypatch.setattr(rerank, "_CELLS", 500)
    monkeypatch.setattr(rerank, "_PAIRS", 300)
    np.testing.assert_allclose(k_reciprocal(z[:70], z[70:], 10, 3), whole, atol=1e-6)
    monkeypatch.setattr(rerank, "_FEW", 1000)  # nearest ones without maxima of a few
    np.testing.assert_allclose(k_reciprocal(z[:70], z[70:], 10, 3), whole, atol=1e-6)


def test_ties_go_to_the_earlier_row():
    z = features("random", 60, width=301)
    z[3:50:2] = z[3]
    near, _ = rerank._neighbours(z, 9)
    for row in range(3, 50, 2):
        np.testing.assert_array_equal(near[row], range(3, 20, 2))


def test_a_query_comes_before_its_copies_in_the_gallery():
    z = features("random", 8)[[0, 1, 0, 2, 0, 3, 4, 5]]
    for k1 in (1, 2, 3):
        pooled = k_reciprocal(z[:1], z[1:], k1, 2)
        np.testing.assert_allclose(pooled, loops(z[:1], z[1:], k1, 2, 0.3), atol=1e-5)
        np.testing.assert_allclose(inductive(z[:1], z[1:], k1, 2), pooled, atol=1e-5)


def test_rows_too_alike_for_float32_are_told_apart():
    angle = np.array([0.0, 3e-5, 2e-5, 1e-5, 1.0])  # cosines of the first four are 1 in float32
    z = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    near, _ = rerank._neighbours(z, 4)
    np.testing.assert_array_equal(near[0], [0, 3, 2, 1])


def test_all_rows_alike_give_numbers():
    z = np.repeat(features("random", 1), 30, axis=0)
    for found in (k_reciprocal(z[:10], z[10:]), inductive(z[:10], z[10:])):
        assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("g, k1, k2", [(40, 20, 6), (40, 7, 3), (5, 20, 6), (1, 3, 2), (30, 3, 7)])
def test_inductive_is_each_query_alone(kind, g, k1, k2):
    z = features(kind, 30 + g, seed=k1)
    query, gallery = z[:30], z[30:]
    alone = [k_reciprocal(query[i : i + 1], gallery, k1, k2)[0] for i in range(30)]
    np.testing.assert_allclose(inductive(query, gallery, k1, k2), alone, atol=1e-5)


def test_inductive_does_not_depend_on_other_queries():
    z = features("clustered", 70)
    query, gallery = z[:40], z[40:]
    found, order = inductive(query, gallery), np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(inductive(query[order], gallery), found[order], atol=1e-6)
    np.testing.assert_allclose(inductive(query[3:5], gallery), found[3:5], atol=1e-6)
    pooled = k_reciprocal(query, gallery)
    assert np.abs(pooled - found).max() > 0.01  # which the pooled one does


@pytest.mark.parametrize("ranked", [k_reciprocal, inductive])
def test_what_can_not_be_ranked_is_refused(ranked):
    z = features("random", 6)
    query, gallery = z[:2], z[2:]
    bad = gallery.copy()
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match="gallery row 3 is not of unit length"):
        ranked(query, bad)
    with pytest.raises(ValueError, match="query row 0 is not of unit length"):
        ranked(2 * query, gallery)
    for name, value in {"k1": 0, "k2": 0, "lam": 1.1}.items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            ranked(query, gallery, **{name: value})
    with pytest.raises(ValueError, match="lam=nan"):
        ranked(query, gallery, lam=float("nan"))
    with pytest.raises(ValueError, match="gallery features must be"):
        ranked(query, gallery[:0])
    with pytest.raises(ValueError, match="query features must be"):
        ranked(query[0], gallery)
    with pytest.raises(ValueError, match="width: 8 and 7"):
        ranked(query, gallery[:, :7])
