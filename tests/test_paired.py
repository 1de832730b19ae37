"""Paired tests of two models: against loops and scipy, under the null, where nothing differs."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from handclip_lib.evaluate.statistics import holm, paired_test, person_bootstrap


def queries(rng, persons, effect=0.0, spread=0.2):
    """Scores of two models: persons differ in how many queries they have and what they gain."""
    who = np.repeat(np.arange(persons), rng.integers(2, 9, persons))
    gain = effect + spread * rng.normal(size=persons)
    before = rng.normal(size=len(who))
    return before, before + gain[who] + 0.1 * rng.normal(size=len(who)), who


def test_few_persons_are_enumerated_as_by_a_loop():
    before, after, who = queries(np.random.default_rng(0), 7, effect=0.1)
    sums = np.array([(after - before)[who == p].sum() for p in range(7)])
    flips = [abs((np.array(s) * sums).sum()) for s in product((1, -1), repeat=7)]
    expected = np.mean(np.array(flips) >= abs(sums.sum()) - 1e-9)
    found = paired_test(before, after, who)
    assert found["p"] == expected  # no seed, no sampling
    assert 2 / 2**7 <= found["p"] < 1
    assert found["difference"] == pytest.approx(after.mean() - before.mean(), abs=1e-12)
    assert tuple(found["ci95"]) == pytest.approx(
        person_bootstrap(after - before, who, 10_000), abs=1e-12
    )


@pytest.mark.parametrize("persons", [12, 40])
def test_one_query_a_person_is_scipys_permutation_test(persons):
    rng = np.random.default_rng(1)
    before = rng.normal(size=persons)
    after = before + 0.2 + 0.6 * rng.normal(size=persons)
    found = paired_test(before, after, np.arange(persons))
    known = stats.permutation_test(
        (after, before), lambda x, y: np.mean(x - y), permutation_type="samples",
        n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    assert found["p"] == pytest.approx(known.pvalue, abs=1e-12 if persons == 12 else 0.01)


def test_sampled_p_has_the_observed_one_among_it_and_the_seed_decides():
    before, after, who = queries(np.random.default_rng(3), 30, effect=0.05)
    first = paired_test(before, after, who, samples=500)
    assert first == paired_test(before, after, who, samples=500)
    assert first["p"] != paired_test(before, after, who, samples=500, seed=1)["p"]
    certain = paired_test(np.zeros(30), np.ones(30), np.arange(30), samples=500)
    assert certain["p"] == pytest.approx(1 / 501) and certain["ci95"] == [1.0, 1.0]


def test_order_of_queries_and_names_of_persons_do_not_matter():
    before, after, who = queries(np.random.default_rng(4), 9, effect=0.1)
    order = np.random.default_rng(5).permutation(len(who))
    named = np.array([f"person {w}" for w in who])
    one = paired_test(before, after, who)
    two = paired_test(before[order], after[order], named[order])
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-12), key


def test_swapping_the_models_changes_the_sign_and_nothing_else():
    before, after, who = queries(np.random.default_rng(6), 10, effect=0.1)
    one, two = paired_test(before, after, who), paired_test(after, before, who)
    assert two["difference"] == pytest.approx(-one["difference"])
    assert two["p"] == one["p"] and two["detectable"] == pytest.approx(one["detectable"])
    assert two["ci95"] == pytest.approx([-one["ci95"][1], -one["ci95"][0]], abs=0.01)


def test_no_difference_at_all_is_no_evidence():
    scores, who = np.random.default_rng(7).random(20), np.repeat(np.arange(5), 4)
    expected = {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "detectable": 0.0}
    assert paired_test(scores, scores, who) == expected


def test_ties_count_as_extreme():
    """+1, +1, -1 and -1: every sum is at least as far from 0 as the observed 0."""
    after = np.array([1.0, 1.0, -1.0, -1.0])
    assert paired_test(np.zeros(4), after, np.arange(4))["p"] == 1.0
    three = paired_test(np.zeros(4), np.array([0.1, 0.2, 0.3, 0.0]), np.arange(4))
    assert three["p"] == 2 / 2**3  # 0.1 + 0.2 + 0.3 is reached from either side; the fourth is none


def test_the_photographs_of_one_person_are_one_piece_of_evidence():
    """One person of many gains in thirty queries; nobody else changes."""
    who = np.r_[np.zeros(30, int), np.arange(1, 31)]
    after = np.r_[np.ones(30), np.zeros(30)]
    assert paired_test(np.zeros(60), after, who)["p"] == 1.0


@pytest.mark.parametrize("persons", [8, 25])
def test_p_is_calibrated_when_the_models_are_alike(persons):
    rng = np.random.default_rng(8)
    p = np.array(
        [paired_test(*queries(rng, persons), samples=300, seed=s)["p"] for s in range(500)]
    )
    for level in (0.05, 0.1, 0.5):
        assert abs((p <= level).mean() - level) < 3.5 * np.sqrt(level * (1 - level) / len(p))


def test_the_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(9)
    told = np.median([paired_test(*queries(rng, 30), samples=50)["detectable"] for _ in range(60)])
    found = [
        paired_test(*queries(rng, 30, effect=told), samples=400, seed=s)["p"] <= 0.05
        for s in range(300)
    ]
    assert 0.73 <= np.mean(found) <= 0.87
    values = np.random.default_rng(10).normal(size=25)
    error = values.std(ddof=1) / 5  # one query a person: the textbook's formula
    t = stats.t(24)
    told = paired_test(np.zeros(25), values, np.arange(25))["detectable"]
    assert told == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) * error)


@pytest.mark.parametrize(
    ("a", "b", "persons", "message"),
    [
        ([1.0, 2.0], [1.0], [1, 2], "the same queries"),
        ([[1.0], [2.0]], [[1.0], [2.0]], [1, 2], "the same queries"),
        ([1.0, 2.0], [1.0, np.nan], [1, 2], "NaN"),
        ([1.0, 2.0], [1.0, 3.0], [1, 1], "at least two persons, got 1"),
        ([1.0, 2.0], [1.0, 3.0], [1, 2, 3], "one score"),
    ],
)
def test_bad_input_is_refused(a, b, persons, message):
    with pytest.raises(ValueError, match=message):
        paired_test(a, b, persons)


def test_holm_by_hand():
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"d": 0.02, "b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2} and holm({}) == {}


def test_holm_keeps_false_alarms_of_a_table_below_the_level():
    rng = np.random.default_rng(11)
    tables = rng.random((2000, 6))
    alarms = [min(holm(dict(enumerate(row))).values()) <= 0.05 for row in tables]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.015)
    assert np.mean(tables.min(axis=1) <= 0.05) > 0.2  # what no correction would give
