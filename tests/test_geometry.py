"""Feature-space figures at values known in closed form."""

import numpy as np
import pytest

from handclip_lib.evaluate.geometry import geometry, knn_accuracy


def test_two_orthogonal_persons():
    z = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    # six pairs: two of one person (distance 0), four of two persons (squared distance 2)
    assert geometry(z, [5, 5, 9, 9]) == pytest.approx(
        {
            "intra_cosine": 1.0,
            "inter_cosine": 0.0,
            "alignment": 0.0,
            "uniformity": np.log((2 + 4 * np.exp(-4)) / 6),
            "silhouette": 1.0,
            "effective_rank": 2.0,
        },
        abs=1e-6,
    )


def test_against_loops_over_pairs():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 6))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    who = rng.integers(0, 5, 30)
    pairs = [(i, j) for i in range(30) for j in range(i)]
    squared = {(i, j): np.sum((z[i] - z[j]) ** 2) for i, j in pairs}
    same = [k for k in pairs if who[k[0]] == who[k[1]]]
    got = geometry(z, who)
    assert got["alignment"] == pytest.approx(np.mean([squared[k] for k in same]))
    kernel = [np.exp(-2 * d) for d in squared.values()]
    assert got["uniformity"] == pytest.approx(np.log(np.mean(kernel)))
    assert got["intra_cosine"] == pytest.approx(np.mean([z[i] @ z[j] for i, j in same]))
    others = [k for k in pairs if k not in same]
    assert got["inter_cosine"] == pytest.approx(np.mean([z[i] @ z[j] for i, j in others]))


def test_effective_rank_counts_directions():
    who = np.arange(16) % 8
    assert geometry(np.eye(8)[who], who)["effective_rank"] == pytest.approx(8)
    tilted = np.tile([[0.6, 0.8]], (16, 1))
    assert geometry(tilted, who)["effective_rank"] == pytest.approx(1)


def test_large_sets_are_sampled_the_same_way_each_time():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(300, 8))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    who = np.arange(300) % 10
    part = geometry(z, who, limit=100)
    assert part == geometry(z, who, limit=100)
    assert part != geometry(z, who, limit=100, seed=1)
    assert part["uniformity"] == pytest.approx(geometry(z, who)["uniformity"], abs=0.1)


@pytest.mark.parametrize("who", [[1, 1, 1], [1, 2, 3]])
def test_needs_pairs_of_both_kinds(who):
    with pytest.raises(ValueError, match="two persons"):
        geometry(np.eye(3), who)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unit rows"):
        geometry(2 * np.eye(3), [1, 1, 2])
    with pytest.raises(ValueError, match="do not agree"):
        geometry(np.eye(3), [1, 1])


def directions(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_nearest_neighbours_vote_and_the_nearer_breaks_a_tie():
    train, labels = directions(0, 10, 20, 90, 100), [1, 2, 2, 3, 3]
    asked = directions(2, 8, 95)
    assert knn_accuracy(train, labels, asked, [1, 2, 3], k=1) == 1.0
    assert knn_accuracy(train, labels, asked, [2, 2, 3], k=3) == 1.0  # two votes against one
    assert knn_accuracy(train, labels, asked, [1, 2, 3], k=2) == 1.0  # 1 and 2: the nearer one's
    assert knn_accuracy(train, labels, asked, [1, 1, 3], k=3) == pytest.approx(1 / 3)
    assert knn_accuracy(train, labels, asked, [2, 2, 3], k=99) == 1.0  # all vote: the nearer of two


def test_nearest_neighbours_against_a_loop():
    rng = np.random.default_rng(0)
    train, asked = (rng.normal(size=(n, 4)) for n in (40, 25))
    train, asked = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (train, asked))
    known, labels, right = rng.integers(0, 4, 40), rng.integers(0, 4, 25), 0
    for z, label in zip(asked, labels, strict=True):
        order = sorted(range(40), key=lambda i: -float(train[i] @ z))[:7]
        votes = [int(known[i]) for i in order]
        most = max(votes.count(v) for v in votes)
        right += next(v for v in votes if votes.count(v) == most) == label
    assert knn_accuracy(train, known, asked, labels, k=7) == right / 25


def test_nearest_neighbours_need_rows_and_labels_that_agree():
    z = directions(0, 90)
    for told in ((z, [1], z, [1, 2]), (z[:0], [], z, [1, 2]), (z, [1, 2], z[:0], [])):
        with pytest.raises(ValueError, match="cannot answer"):
            knn_accuracy(*told)
