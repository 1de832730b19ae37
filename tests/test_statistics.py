"""The person bootstrap: against a loop, its coverage, and what a spread over draws misses."""

import numpy as np
import pytest
from scipy.stats import binomtest

from handclip_lib.evaluate.retrieval import retrieval_metrics
from handclip_lib.evaluate.statistics import person_bootstrap


def test_equals_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    persons = rng.integers(0, 6, 40)
    values = rng.random(40)
    low, high = person_bootstrap(values, persons, samples=150, seed=3, level=0.9)
    draws = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=150)
    means = []
    for times in draws:  # a person who was drawn twice brings each query twice
        pool = [v for p in range(6) for v in list(values[persons == p]) * times[p]]
        means.append(np.mean(pool))
    # 5 % of a normal's tail, by t with 5 degrees of freedom: 1 - cdf(sqrt(6 / 5) * 2.0150484)
    ends = [0.0136439, 0.9863561]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, ends)), abs=1e-6)
    assert isinstance(low, float)


def test_same_seed_same_interval_whatever_the_order_and_names():
    rng = np.random.default_rng(1)
    persons, values = np.repeat(np.arange(20), 5), rng.random(100)
    first = person_bootstrap(values, persons)
    assert first == person_bootstrap(values, persons)
    assert first != person_bootstrap(values, persons, seed=1)
    order = rng.permutation(100)
    named = np.array([f"person {p:02d}" for p in persons])
    assert person_bootstrap(values[order], named[order]) == pytest.approx(first, abs=1e-12)


def test_several_columns_are_resampled_together():
    rng = np.random.default_rng(2)
    persons, values = rng.integers(0, 9, 60), rng.random((60, 3))
    low, high = person_bootstrap(values, persons, seed=5)
    assert low.shape == high.shape == (3,)
    for k in range(3):
        assert (low[k], high[k]) == pytest.approx(person_bootstrap(values[:, k], persons, seed=5))


def test_interval_holds_the_mean_and_widens_with_the_level():
    rng = np.random.default_rng(3)
    persons, values = np.repeat(np.arange(30), 4), rng.random(120)
    low, high = person_bootstrap(values, persons, level=0.8)
    wide = person_bootstrap(values, persons, level=0.99)
    assert wide[0] < low < values.mean() < high < wide[1]


def test_persons_without_an_error_leave_one_possible():
    """As many hits as trials: Clopper & Pearson's interval, whatever the number of photographs."""
    persons = np.repeat(np.arange(20), 3)
    low, high = person_bootstrap(np.ones(60), persons)
    exact = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high)) and 0.83 < low < 0.84
    assert person_bootstrap(np.zeros(60), persons) == pytest.approx((0, 1 - low))
    both = person_bootstrap(np.stack([np.ones(60), persons % 2], axis=1), persons)
    assert both[0][0] == low and both[1][0] == 1 and 0 < both[0][1] < both[1][1] < 1
    assert person_bootstrap(np.zeros(60), persons, bounded=False) == (0, 0)
    nearly = person_bootstrap(np.full(60, 1 - 1e-15), persons)  # a sum of shares that make 1
    assert nearly == pytest.approx((low, 1))
    assert person_bootstrap(np.r_[np.ones(59), 1 - 1e-6], persons)[0] > 0.99
    wide = person_bootstrap(np.ones(60), persons, level=0.99)
    assert wide[0] == pytest.approx(binomtest(20, 20).proportion_ci(0.99, "exact").low)


def test_four_persons_will_do_and_one_will_not():
    low, high = person_bootstrap([0, 0, 1, 1, 1, 0], [1, 1, 2, 2, 3, 4])
    assert 0 <= low < 0.5 < high <= 1
    with pytest.raises(ValueError, match="at least two persons, got 1"):
        person_bootstrap([0.0, 1.0], [5, 5])


@pytest.mark.parametrize(
    ("values", "persons", "options", "message"),
    [
        ([1.0, 2.0], [1], {}, "one score"),
        ([[1.0], [2.0]], [[1], [2]], {}, "one score"),
        ([1.0, np.nan], [1, 2], {}, "NaN"),
        ([1.0, 2.0], [1, 2], {"samples": 0}, "samples"),
        ([1.0, 2.0], [1, 2], {"level": 95}, "level"),
    ],
)
def test_bad_input_is_refused(values, persons, options, message):
    with pytest.raises(ValueError, match=message):
        person_bootstrap(values, persons, **options)


def test_coverage_is_near_its_level():
    """Of 600 studies with 60 persons each, about 95 % of the intervals hold the true rate."""
    rng = np.random.default_rng(4)
    covered = as_if_independent = 0
    for study in range(600):
        rate = rng.beta(2, 1, 60)  # persons differ; their mean rate is 2/3
        persons = np.repeat(np.arange(60), rng.integers(5, 20, 60))
        hits = (rng.random(len(persons)) < rate[persons]).astype(float)
        low, high = person_bootstrap(hits, persons, samples=300, seed=study)
        covered += low <= 2 / 3 <= high
        half = 1.96 * hits.std() / np.sqrt(len(hits))
        as_if_independent += abs(hits.mean() - 2 / 3) <= half
    assert 0.91 <= covered / 600 <= 0.98
    assert as_if_independent / 600 < 0.85  # what ignoring the person would give


def test_spread_over_ten_draws_is_no_error_bar():
    """71 persons, 15 photographs each: draws share the persons, who are what differs."""
    rng = np.random.default_rng(5)
    centre = rng.normal(size=(71, 16))
    blur = rng.uniform(0.3, 2.5, 71)  # some hands are hard
    z = centre[:, None] + blur[:, None, None] * rng.normal(size=(71, 15, 16))
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    pids, per_draw, hits = np.arange(71), [], []
    for _ in range(10):
        chosen = rng.integers(0, 15, 71)
        gallery = z[pids, chosen]
        asked = np.ones((71, 15), dtype=bool)
        asked[pids, chosen] = False
        queries = np.repeat(pids, 14)
        scores = retrieval_metrics(z[asked] @ gallery.T, queries, pids)
        per_draw.append(scores["rank1"])
        hits.append(scores["per_query"]["rank1"])
    of_draws = np.std(per_draw, ddof=1) / np.sqrt(10)
    low, high = person_bootstrap(np.concatenate(hits), np.tile(queries, 10))
    assert (high - low) / (2 * 1.96) > 4 * of_draws
