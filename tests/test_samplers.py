"""Batches: who is in them, how often, with whom; the same for the same seed and epoch."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip_lib.data.samplers import Batches, make_sampler, nearest_identities
from handclip_lib.schema_train import Sampler

TYPES = ("shuffle", "identity", "pk", "two_level", "hard")
COUNTS = (1, 1, 2, 3, 4, 5, 7, 12, 30, 71)  # images of each identity


def labels_of(counts: tuple[int, ...] = COUNTS) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def made(kind: str, labels: np.ndarray, size: int = 16, seed: int = 0, **told: object) -> Batches:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        aspects = np.where(np.arange(len(labels)) % 2, "palmar_r", "dorsal_r")
        return make_sampler(Sampler(type=kind, **told), labels, aspects, size, seed)


def neighbours_of(total: int) -> np.ndarray:
    ring = (np.arange(total)[:, None] + np.arange(1, total)) % total
    return np.asarray(ring)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(TYPES),
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    size=st.integers(2, 20),
    each=st.integers(1, 6),
    epoch=st.integers(0, 5),
)
def test_every_batch_can_be_trained_on(kind, counts, size, each, epoch):
    labels = labels_of(tuple(counts))
    if kind not in ("shuffle", "identity") and size < 2 * each:
        with pytest.raises(ValueError, match="two identities"):
            made(kind, labels, size, images=each)
        return
    sampler = made(kind, labels, size, images=each)
    batches = sampler.batches(epoch, neighbours_of(len(counts)))
    rows = np.concatenate(batches)
    assert min(map(len, batches)) >= 2 and rows.min() >= 0 and rows.max() < len(labels)
    if kind == "identity":
        assert sorted(rows) == list(range(len(labels)))
    elif kind == "shuffle":
        assert len(set(rows)) == len(rows) >= len(labels) - 1
    else:
        assert max(map(len, batches)) <= size


@pytest.mark.parametrize("kind", TYPES)
def test_a_pure_function_of_seed_and_epoch(kind):
    labels = labels_of()
    near = neighbours_of(len(COUNTS))

    def told(seed: int, epoch: int) -> list[list[int]]:
        return [b.tolist() for b in made(kind, labels, 16, seed).batches(epoch, near)]

    used = made(kind, labels)
    np.random.seed(1)
    used.batches(0, near)
    assert [b.tolist() for b in used.batches(3, near)] == told(0, 3)
    assert told(0, 3) != told(0, 4) and told(0, 3) != told(1, 3)


def test_shuffle_leaves_out_at_most_a_last_image_alone():
    batches = made("shuffle", np.arange(33), 16).batches(0)
    assert [len(b) for b in batches] == [16, 16]
    missing = {*range(33)} - {*np.concatenate(batches)}
    again = {*range(33)} - {*np.concatenate(made("shuffle", np.arange(33), 16).batches(1))}
    assert len(missing) == 1 and missing != again
    assert [len(b) for b in made("shuffle", np.arange(34), 16).batches(0)] == [16, 16, 2]


def test_identity_gives_company_to_all_who_have_some():
    labels = labels_of()
    for each in (2, 3, 4):
        batches = made("identity", labels, 16, images=each).batches(0)
        alone = [(b, k) for b in batches for k in labels[b] if (labels[b] == k).sum() == 1]
        assert {k for _, k in alone} <= {0, 1}  # who have one image
        sizes = [len(b) for b in batches]
        assert max(sizes) <= 17 and min(sizes[:-1]) >= 16 - each
    even = np.repeat(np.arange(40), 8)
    mixed = [len(set(even[b])) for b in made("identity", even).batches(0)]
    assert np.mean(mixed) > 3  # an identity's images are spread over the epoch


def test_pk_batches_are_p_identities_with_k_images_each():
    labels = labels_of()
    for batch in made("pk", labels, 16).batches(0):
        names, counts = np.unique(labels[batch], return_counts=True)
        assert len(names) == 4 and (counts == 4).all()
        for name in names:
            shown = batch[labels[batch] == name]
            assert len(set(shown)) == min(4, COUNTS[name])  # repeated only where there are fewer


def test_pk_shows_every_identity_equally_often_and_about_n_images():
    labels = labels_of()
    batches = made("pk", labels, 16).batches(0)
    assert abs(16 * len(batches) - len(labels)) <= 8
    seen = np.bincount(labels[np.concatenate(batches)]) / 4
    assert seen.min() >= 1 and seen.max() - seen.min() <= len(batches) * 4 / 10


def test_pk_goes_round_through_the_images_of_an_identity():
    labels = np.repeat(np.arange(4), 24)
    rows = np.concatenate(made("pk", labels, 16).batches(0))  # each identity 6 times
    assert sorted(rows) == list(range(96))
    some = {*np.concatenate([made("pk", labels_of(), 16).batches(e) for e in range(30)]).ravel()}
    assert some == {*range(len(labels_of()))}


def test_pk_of_singletons_shows_all_of_them_in_turn():
    labels = np.arange(50)
    sampler = made("pk", labels, 8)  # 6 batches an epoch of 2 identities: 25 for all
    epochs = [np.concatenate(sampler.batches(e)).tolist() for e in range(5)]
    assert len(epochs[0]) == 48 and all(epochs[0].count(row) == 4 for row in {*epochs[0]})
    assert {*sum(epochs, [])} == {*range(50)}
    assert not {*epochs[0]} & {*epochs[1]}


def test_pk_mixes_the_company_anew_in_every_cycle():
    labels = np.repeat(np.arange(20), 8)
    batches = [b for e in range(4) for b in made("pk", labels, 16).batches(e)]
    assert len({frozenset(labels[b]) for b in batches}) == len(batches) == 40


def test_too_few_identities_are_said_and_make_smaller_batches():
    labels = np.repeat([3, 5, 9], 10)  # labels with gaps, too
    aspects = np.array(["hand"] * 30)
    with pytest.warns(UserWarning, match="3 identities where a batch of 64 has room for 16"):
        sampler = make_sampler(Sampler(type="pk"), labels, aspects, 64, 0)
    assert all(set(labels[b]) == {3, 5, 9} and len(b) == 12 for b in sampler.batches(0))
    with pytest.raises(ValueError, match="1 training identities"):
        make_sampler(Sampler(type="pk"), np.zeros(30), aspects, 64, 0)
    with pytest.raises(ValueError, match="two are the fewest"):
        make_sampler(Sampler(), np.zeros(1), aspects[:1], 64, 0)
    with pytest.raises(ValueError, match="one an image"):
        make_sampler(Sampler(), labels, aspects[:5], 64, 0)


def test_two_level_covers_aspects_evenly_then_identities():
    rng = np.random.default_rng(0)
    names = np.array(["dorsal_l", "dorsal_r", "palmar_r"])
    aspects = names[rng.choice(3, 900, p=[0.8, 0.15, 0.05])]
    labels = rng.integers(0, 20, 900)
    sampler = make_sampler(Sampler(type="two_level", images=2), labels, aspects, 32, 0)
    batches = sampler.batches(0)
    assert abs(sum(map(len, batches)) - 900) < 30
    for batch in batches:
        pairs, counts = np.unique(
            [f"{a} {k}" for a, k in zip(aspects[batch], labels[batch], strict=True)],
            return_counts=True,
        )
        assert (counts == 2).all() and len(pairs) == 15
        assert {a: sum(p.startswith(a) for p in pairs) for a in names} == dict.fromkeys(names, 5)
    shown = np.concatenate(batches)
    assert {*zip(aspects[shown], labels[shown], strict=True)} == {
        *zip(aspects, labels, strict=True)
    }


def test_two_level_takes_turns_where_a_batch_has_no_room_for_all_aspects():
    aspects = np.repeat(["a", "b", "c"], 40)
    labels = np.tile(np.repeat(np.arange(10), 4), 3)
    batches = make_sampler(Sampler(type="two_level"), labels, aspects, 8, 0).batches(1)
    assert all(len(set(aspects[b])) == 2 for b in batches)
    counts = np.unique(aspects[np.concatenate(batches)], return_counts=True)[1]
    assert counts.tolist() == [40, 40, 40]


# --- hard ---------------------------------------------------------------------------------------


def near_pairs(batches: list[np.ndarray], labels: np.ndarray, near: np.ndarray) -> float:
    """Mean over batches: pairs of identities that are among each other's ten nearest."""
    close = np.zeros((len(near), len(near)), bool)
    close[np.arange(len(near))[:, None], near[:, :10]] = True
    close &= close.T
    present = [np.unique(labels[b]) for b in batches]
    return float(np.mean([close[np.ix_(u, u)].sum() / 2 for u in present]))


def test_hard_batches_hold_five_times_the_near_pairs_of_pk():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 10)
    z = rng.normal(size=(100, 4))[labels] + 0.3 * rng.normal(size=(1000, 4))
    near = nearest_identities(z / np.linalg.norm(z, axis=1, keepdims=True), labels)

    def mean(kind: str, share: float) -> float:
        sampler = made(kind, labels, 32, random=share)
        return near_pairs(sum((sampler.batches(e, near) for e in range(5)), []), labels, near)

    plain = mean("pk", 0)
    assert mean("hard", 0) > 5 * plain
    assert 2 * plain < mean("hard", 0.5) < mean("hard", 0)
    assert mean("hard", 1) == plain


def test_hard_batches_are_a_seed_with_its_nearest_and_seeds_take_turns():
    labels, near = np.repeat(np.arange(12), 8), neighbours_of(12)
    batches = made("hard", labels, 16, random=0.5).batches(0, near)
    plain = made("pk", labels, 16).batches(0)
    same = [np.array_equal(a, b) for a, b in zip(batches, plain, strict=True)]
    first = [labels[b[0]] for b in batches]
    ring = [
        set(labels[b]) == {(seed + k) % 12 for k in range(4)}
        for b, seed in zip(batches, first, strict=True)
    ]
    assert len(batches) == 6 and sum(ring) >= 3 and sum(same) <= 3
    seeds = [
        int(labels[b[0]])
        for e in range(2)
        for b in made("hard", labels, 16, random=0).batches(e, near)
    ]
    assert sorted(seeds) == list(range(12))


def test_hard_without_neighbours_is_pk_and_too_few_are_refused():
    labels = labels_of()
    hard, plain = (made(kind, labels).batches(2) for kind in ("hard", "pk"))
    assert [b.tolist() for b in hard] == [b.tolist() for b in plain]
    with pytest.raises(ValueError, match="neighbours"):
        made("hard", labels).batches(0, neighbours_of(10)[:, :2])
    with pytest.raises(ValueError, match="neighbours"):
        made("hard", labels).batches(0, neighbours_of(9))


def test_nearest_identities_by_class_means():
    angles = np.radians([0, 4, 10, 14, 180, 184, 40, 44])
    z = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = np.array([7, 7, 2, 2, 5, 5, 9, 9])  # sorted: 2, 5, 7, 9 at 12°, 182°, 2°, 42°
    assert nearest_identities(z, labels).tolist() == [[2, 3, 1], [3, 0, 2], [0, 3, 1], [0, 2, 1]]
    twins = nearest_identities(np.ones((4, 1)), np.arange(4))
    assert all(row not in others for row, others in enumerate(twins.tolist()))


@pytest.mark.parametrize("kind", TYPES)
def test_a_hundred_thousand_images_cost_nothing(kind):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9000, 100_000)
    total = len(np.unique(labels))
    sampler, near = made(kind, labels, 64), rng.integers(0, total, (total, 20))
    seconds = []
    for epoch in range(3):
        begun = time.perf_counter()
        sampler.batches(epoch, near)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.2
