"""Open-set search: who is left out, hand-worked rates, intervals over persons."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from handclip_lib.data.leaks import check_leaks
from handclip_lib.data.manifest import SplitError
from handclip_lib.evaluate.openset import (
    leave_out,
    open_set_intervals,
    open_set_metrics,
    searches,
)
from handclip_lib.evaluate.statistics import percentiles

OTHER_HAND = 11_000_000


def make_manifest(persons=10, shots=3, draws=2):
    rows = []
    for draw in range(draws):
        for pid in range(1, persons + 1):
            images = [f"r{pid}_{shot}.jpg" for shot in range(shots)]
            rows += [
                ("gallery" if k == draw else "query", draw, pid, "dorsal_r", image)
                for k, image in enumerate(images)
            ]
            rows.append(("gallery_all", draw, pid, "dorsal_r", images[draw]))
            rows.append(("gallery_all", draw, pid + OTHER_HAND, "dorsal_l", f"l{pid}.jpg"))
        rows.append(("gallery", draw, 99, "dorsal_r", "never_asked.jpg"))
    rows.append(("train", -1, 50, "dorsal_r", "train.jpg"))
    return pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])


def unit(rows):
    z = np.asarray(rows, dtype=float)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def told(rows):
    """Searches of (pid, mated, correct, similarity), each of a photograph of its own."""
    frame = pd.DataFrame(rows, columns=["pid", "mated", "correct", "similarity"])
    return frame.assign(image=[f"{k}.jpg" for k in range(len(frame))])


# four searches with a mate, three without: see the rates below
HAND = told(
    [
        (1, True, True, 0.9),
        (2, True, True, 0.5),
        (3, True, False, 0.95),  # somebody else is nearer
        (4, True, True, 0.7),
        (5, False, False, 0.8),
        (6, False, False, 0.5),
        (7, False, False, 0.2),
    ]
)


def test_rates_by_hand():
    got = open_set_metrics(HAND)
    np.testing.assert_array_equal(got["thresholds"], [0.2, 0.5, 0.7, 0.8, 0.9, np.inf])
    np.testing.assert_allclose(got["fpir"], [1, 2 / 3, 1 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(got["fnir"], [0.25, 0.25, 0.5, 0.75, 0.75, 1])
    assert (got["rank1"], got["n_mated"], got["n_non_mated"]) == (0.75, 4, 3)
    assert got["dir_at_fpir"] == {"1e-1": None, "1e-2": None}


def test_detection_rates_and_their_withholding():
    mates = [(i, True, i % 5 > 0, 0.5 + i / 400) for i in range(100)]
    for strangers, known in ((299, 0), (300, 1), (2999, 1), (3000, 2)):
        lower = [(i, False, False, s) for i, s in enumerate(np.linspace(0, 0.6, strangers))]
        got = open_set_metrics(told(mates + lower))
        rates = list(got["dir_at_fpir"].values())
        assert [rate is not None for rate in rates] == [True] * known + [False] * (2 - known)
        for rate, level in zip(rates[:known], (0.1, 0.01), strict=False):
            line = np.sort([s for *_, s in lower])[-int(level * strangers) - 1]
            exact = np.mean([right and s > line for _, _, right, s in mates])
            assert rate == pytest.approx(exact, abs=0.011)


def test_a_photograph_that_is_searched_in_three_draws_is_one_trial():
    mates = [(i, True, True, 0.9) for i in range(10)]
    lower = [(i, False, False, s) for i, s in enumerate(np.linspace(0, 0.6, 299))]
    three = pd.concat([told(mates + lower)] * 3, ignore_index=True)  # 897 searches without a mate
    got = open_set_metrics(three)
    assert (got["n_mated"], got["n_non_mated"]) == (10, 299)
    assert got["dir_at_fpir"]["1e-1"] is None
    assert open_set_intervals(three, samples=5)["dir_at_fpir"]["1e-1"] is None
    more = pd.concat([three, told([(300, False, False, 0.1)]).assign(image="new.jpg")])
    assert open_set_metrics(more)["dir_at_fpir"]["1e-1"] == 1
    least = 0.025 ** (1 / 10)  # ten persons of ten: Clopper & Pearson, as of rank-1
    got = open_set_intervals(more, samples=5)
    assert got["dir_at_fpir"]["1e-1"] == got["rank1"] == pytest.approx([least, 1])


def test_a_threshold_that_varies_is_no_certainty():
    """Everybody is accepted, but by a hair: a few strangers more would move the threshold above."""
    mates = [(i, True, True, 0.5 + i / 1000) for i in range(10)]
    high = [(100 + i, False, False, 0.55) for i in range(3) for _ in range(10)]
    lower = [(110 + i, False, False, 0.3) for i in range(27) for _ in range(10)]
    found = told(mates + high + lower)
    found["image"] = [f"{i}.jpg" for i in range(len(found))]
    assert open_set_metrics(found)["dir_at_fpir"]["1e-1"] == 1
    assert open_set_intervals(found, samples=400)["dir_at_fpir"]["1e-1"] == [0, 1]


def test_searches_find_the_nearest_and_say_whether_it_can_be_right():
    rows = [("gallery", 0, 1, "dorsal_r", "g1"), ("gallery", 0, 2, "dorsal_r", "g2")]
    rows += [("query", 0, p, "dorsal_r", f"q{p}") for p in (1, 2, 3)]
    manifest = pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])
    z = unit([[1, 0], [0, 1], [1, 0.1], [1, 0.2], [1, 1]])  # q3 lies between both
    got = searches(z, ["g1", "g2", "q1", "q2", "q3"], manifest)
    assert got["pid"].tolist() == [1, 2, 3] and got["found"].tolist() == [1, 1, 1]
    assert got["mated"].tolist() == [True, True, False]
    assert got["correct"].tolist() == [True, False, False]
    np.testing.assert_allclose(got["similarity"], [0.995037, 0.980581, 0.707107])


def test_those_left_out_keep_their_queries_and_lose_their_mates():
    manifest = make_manifest()
    opened = leave_out(manifest, share=0.3)
    with pytest.raises(SplitError, match="without a match"):
        check_leaks(opened)
    for draw in range(2):
        before, after = (m[m["draw"] == draw] for m in (manifest, opened))
        kept = set(after.loc[after["split"] == "gallery", "pid"])
        assert len(kept) == 8 and 99 in kept  # seven of ten, and who is never asked for
        alike = [m[m["split"] == "query"].reset_index(drop=True) for m in (before, after)]
        pd.testing.assert_frame_equal(*alike)
        everyone = set(after.loc[after["split"] == "gallery_all", "pid"])
        assert everyone == (kept - {99}) | {p + OTHER_HAND for p in range(1, 11)}
    assert (opened["split"] == "train").sum() == 1
    images = sorted(set(manifest["image"]))
    z = unit(np.random.default_rng(0).normal(size=(len(images), 8)))
    for gallery in ("own", "all"):
        found = searches(z, images, opened, gallery)
        assert len(found) == 40 and (~found["mated"]).sum() == 2 * 3 * 2


def test_the_same_are_left_out_on_every_machine():
    opened = leave_out(make_manifest(), share=0.3)
    for draw, expected in enumerate([[1, 4, 9], [3, 5, 10]]):
        entries = opened[(opened["split"] == "gallery") & (opened["draw"] == draw)]
        assert sorted(set(range(1, 11)) - set(entries["pid"])) == expected
        keys = {p: f"0|dorsal_r|open|run{draw}|{p}" for p in range(1, 11)}
        ranked = sorted(keys, key=lambda p: hashlib.sha256(keys[p].encode()).hexdigest())
        assert sorted(ranked[:3]) == expected
    shuffled = leave_out(make_manifest().sample(frac=1, random_state=0), share=0.3)
    assert set(map(tuple, shuffled.to_numpy())) == set(map(tuple, opened.to_numpy()))
    assert not leave_out(make_manifest(), split_seed=1).equals(opened)
    more = leave_out(make_manifest(), share=0.5)
    assert len(more) < len(opened)


def test_somebody_always_goes_and_somebody_stays():
    for share, left in ((0.001, 9), (0.999, 1)):
        opened = leave_out(make_manifest(draws=1), share)
        assert len(opened[(opened["split"] == "gallery") & (opened["pid"] < 99)]) == left
    with pytest.raises(ValueError, match="share=1"):
        leave_out(make_manifest(), 1)
    with pytest.raises(ValueError, match="draw 0 asks for one identity"):
        leave_out(make_manifest(persons=1))
    with pytest.raises(ValueError, match="no query rows"):
        leave_out(make_manifest().query("split != 'query'"))
    for one_kind in (HAND[HAND["mated"]], HAND[~HAND["mated"]]):
        with pytest.raises(ValueError, match="with and without a mate"):
            open_set_metrics(one_kind)


def test_intervals_equal_those_of_searches_written_out():
    rng = np.random.default_rng(1)
    pid = np.repeat(np.arange(30), 40)
    mated = rng.random(1200) < 0.6
    correct = mated & (rng.random(1200) < 0.8)
    found = told(list(zip(pid, mated, correct, np.round(rng.normal(mated, 1), 1), strict=True)))
    got = open_set_intervals(found, samples=30, seed=2)
    rates = []
    for times in np.random.default_rng(2).multinomial(30, np.full(30, 1 / 30), size=30):
        sample = found.loc[found.index.repeat(times[pid])]
        anew = open_set_metrics(sample)
        at = np.argmax(anew["fpir"] <= 0.1)
        rates.append((anew["rank1"], 1 - anew["fnir"][at]))
    low, high = np.quantile(rates, percentiles(30), axis=0)
    np.testing.assert_allclose(got["rank1"], [low[0], high[0]])
    np.testing.assert_allclose(got["dir_at_fpir"]["1e-1"], [low[1], high[1]])
    assert got["dir_at_fpir"]["1e-2"] is None and got["persons"] == 30
    with pytest.raises(ValueError, match="two persons"):
        open_set_intervals(found.assign(pid=1))
