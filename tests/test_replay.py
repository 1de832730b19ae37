"""Photographs that are shown again: which are kept, and the batches that they come back in."""

import itertools

import numpy as np
import pandas as pd
import pytest

from handclip_lib.data.manifest import SPLITS, order
from handclip_lib.data.samplers import make_sampler, replay_parts, replayed
from handclip_lib.schema_chain import Replay
from handclip_lib.schema_train import Sampler
from handclip_lib.train.replay import exemplars

RIGHT, LEFT = "dorsal_r", "dorsal_l"


def rows_of(counts: dict[tuple[int, str], int], split: str = "train") -> pd.DataFrame:
    return order(
        (split, 0, pid, aspect, f"{aspect}_{pid}_{k:02d}.jpg")
        for (pid, aspect), count in counts.items()
        for k in range(count)
    )


def unit(total: int, width: int = 4, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(total, width)) + 0.7
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))


MANY = rows_of({(1, RIGHT): 6, (1, LEFT): 3, (2, RIGHT): 1, (7, RIGHT): 9})


@pytest.mark.parametrize("choose", ["herding", "random"])
def test_so_many_images_are_kept_of_each_person_in_each_aspect(choose):
    z = unit(len(MANY))
    kept = exemplars(MANY, z, Replay(images=4, choose=choose), seed=0)
    sizes = kept.groupby(["pid", "aspect"]).size().to_dict()
    assert sizes == {(1, RIGHT): 4, (1, LEFT): 3, (2, RIGHT): 1, (7, RIGHT): 4}
    assert kept["image"].is_unique and kept.index.is_monotonic_increasing
    shuffled = np.random.default_rng(1).permutation(len(MANY))
    again = exemplars(MANY.iloc[shuffled], z[shuffled], Replay(images=4, choose=choose), seed=0)
    assert {*again["image"]} == {*kept["image"]}
    first = exemplars(MANY, z, Replay(images=2, choose=choose), seed=0)
    assert {*first["image"]} < {*kept["image"]}  # fewer are the first of more


def test_random_choice_is_the_seeds_and_looks_at_no_feature():
    kept = [
        {*exemplars(MANY, unit(len(MANY), seed=z), Replay(choose="random"), seed)["image"]}
        for z, seed in [(0, 0), (1, 0), (0, 1), (0, 2)]
    ]
    assert kept[0] == kept[1] and (kept[0] != kept[2] or kept[0] != kept[3])


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_the_greedy_choice_of_the_paper(seed):
    rows, z = rows_of({(1, RIGHT): 5}), unit(5, seed=seed)
    mean, chosen = z.mean(axis=0), []
    for k in range(1, 4):  # Rebuffi et al. 2017, algorithm 4, candidate by candidate
        left = [i for i in range(5) if i not in chosen]
        far = {i: np.linalg.norm(mean - (sum(z[j] for j in chosen) + z[i]) / k) for i in left}
        chosen.append(min(far, key=lambda i: far[i]))
        kept = exemplars(rows, z, Replay(images=k), seed=0)
        assert {*kept.index} == {*chosen}


def test_herding_begins_with_the_image_next_to_the_mean_and_keeps_the_mean():
    rows, z = rows_of({(1, RIGHT): 5}), unit(5)
    first = exemplars(rows, z, Replay(images=1), seed=0).index[0]
    assert first == np.argmin(np.linalg.norm(z - z.mean(axis=0), axis=1))
    three = z[exemplars(rows, z, Replay(images=3), seed=0).index].mean(axis=0)
    means = [z[list(some)].mean(axis=0) for some in itertools.combinations(range(5), 3)]
    far = [np.linalg.norm(z.mean(axis=0) - mean) for mean in means]
    assert np.linalg.norm(z.mean(axis=0) - three) <= np.quantile(far, 0.3)


def test_of_equal_images_the_first_by_name_is_kept():
    rows, z = rows_of({(1, RIGHT): 4}), np.tile(unit(1), (4, 1))
    for at in ([0, 1, 2, 3], [3, 1, 0, 2]):
        kept = exemplars(rows.iloc[at], z, Replay(images=2), seed=0)
        assert sorted(kept["image"]) == [f"{RIGHT}_1_00.jpg", f"{RIGHT}_1_01.jpg"]


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "train"])
@pytest.mark.parametrize("choose", ["herding", "random"])
def test_no_image_of_another_split_is_ever_kept(split, choose):
    mixed = pd.concat([MANY, rows_of({(40, RIGHT): 2}, split)], ignore_index=True)
    with pytest.raises(ValueError, match=f"those of {split}"):
        exemplars(mixed, unit(len(mixed)), Replay(choose=choose), seed=0)


def test_features_must_follow_the_rows():
    with pytest.raises(ValueError, match="features for"):
        exemplars(MANY, unit(3), Replay(), seed=0)


# --- batches ----------------------------------------------------------------------------------


def sampler_of(kind: str, total: int, size: int, seed: int = 0, images: int = 2):
    labels = np.arange(total) // 4
    return make_sampler(
        Sampler(type=kind, images=images), labels, np.full(total, "hand"), size, seed
    )


KINDS = ("shuffle", "identity", "pk", "two_level", "hard")


@pytest.mark.parametrize("kind", KINDS)
def test_each_batch_is_one_of_new_and_then_one_of_old_images(kind):
    main, old = sampler_of(kind, 40, 12), sampler_of(kind, 16, 4, seed=1)
    both = replayed(main, old, 3)
    for epoch in (1, 2, 5):
        batches = both.batches(epoch)
        assert len(batches) == 3
        for batch in batches:
            new = batch < 40
            assert batch.min() >= 0 and 40 <= batch.max() < 56
            assert (np.diff(new.astype(int)) <= 0).all() and 2 <= new.sum() < len(batch) - 1
    rows = [b.tolist() for b in both.batches(4)]
    assert rows == [b.tolist() for b in replayed(main, old, 3).batches(4)]
    assert rows != [b.tolist() for b in both.batches(3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 11])
def test_both_samplers_are_walked_through_without_a_gap(kind, count):
    main, old = sampler_of(kind, 40, 12), sampler_of(kind, 16, 4, seed=1)
    shown = [b for epoch in range(1, 9) for b in replayed(main, old, count).batches(epoch)]
    for sampler, part in [
        (main, [b[b < 40] for b in shown]),
        (old, [b[b >= 40] - 40 for b in shown]),
    ]:
        alone = [b.tolist() for epoch in range(1, 90) for b in sampler.batches(epoch)]
        assert [b.tolist() for b in part] == alone[: len(shown)]


def test_every_new_image_is_shown_equally_often():
    main, old = sampler_of("shuffle", 40, 12), sampler_of("shuffle", 16, 4, seed=1)
    both = replayed(main, old, 3)  # of main's four: three of its epochs in four
    seen = np.bincount(np.concatenate([b for e in range(1, 5) for b in both.batches(e)]))
    assert len(seen) == 56 and (seen[:40] == 3).all() and (seen[40:] == 3).all()


def test_neighbours_are_those_of_the_new_images():
    main, old = sampler_of("hard", 40, 8), sampler_of("hard", 16, 4, seed=1)
    ring = (np.arange(10)[:, None] + np.arange(1, 10)) % 10  # old ones: four identities
    both = replayed(main, old, 5)
    near = [b[b < 40].tolist() for b in both.batches(1, ring)]
    assert near == [b.tolist() for b in main.batches(1, ring)]
    assert near != [b[b < 40].tolist() for b in both.batches(1)]


def test_a_count_below_one_is_refused():
    with pytest.raises(ValueError, match="one is the fewest"):
        replayed(sampler_of("pk", 40, 12), sampler_of("pk", 16, 4), 0)


@pytest.mark.parametrize(
    ("kind", "size", "share", "parts"),
    [
        ("shuffle", 64, 0.25, (48, 16)),
        ("identity", 30, 0.25, (22, 8)),
        ("pk", 64, 0.25, (48, 16)),
        ("pk", 32, 0.25, (24, 8)),
        ("pk", 36, 0.3, (24, 12)),
        ("two_level", 40, 0.3, (28, 12)),
        ("hard", 64, 0.5, (32, 32)),
        ("pk", 8, 0.0, (8, 0)),
    ],
)
def test_a_batch_is_split_by_whole_identities(kind, size, share, parts):
    assert replay_parts(Sampler(type=kind), size, share) == parts


@pytest.mark.parametrize(
    ("kind", "size", "share"),
    [("shuffle", 8, 0.1), ("shuffle", 8, 0.9), ("pk", 16, 0.25), ("hard", 32, 0.9)],
)
def test_a_part_without_room_for_two_is_refused(kind, size, share):
    with pytest.raises(ValueError, match="raise batch_size"):
        replay_parts(Sampler(type=kind), size, share)
