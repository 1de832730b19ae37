"""What numbers promise: intervals and tests in many simulated studies, mAP by another program."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from handclip_lib.evaluate.retrieval import retrieval_metrics
from handclip_lib.evaluate.statistics import paired_test, percentiles, person_bootstrap

BLOCK = 100  # studies that share their numbers of queries, columns of one call


def studies(rng, persons, shape):
    """Hits (Q, BLOCK) of studies of as many persons, who each shows (Q,), and the true rate.

    A person's rate is beta distributed (some hands are hard) and 2 to 46 queries are asked for
    them, 11 in the median, as in 11k Hands.
    """
    queries = np.exp(rng.normal(np.log(11), 0.6, persons)).round().clip(2, 46).astype(int)
    who = np.repeat(np.arange(persons), queries)
    rate = rng.beta(*shape, (persons, BLOCK))
    hits = (rng.random((len(who), BLOCK)) < rate[who]).astype(float)
    return hits, who, shape[0] / sum(shape)


@pytest.mark.parametrize("persons", [20, 71])
@pytest.mark.parametrize("shape", [(2, 1), (6, 1.5)], ids=["rate 67 %", "rate 80 %"])
def test_95_of_100_intervals_hold_the_true_rate(persons, shape):
    covered = []
    for seed in range(30):  # 3,000 studies
        hits, who, true = studies(np.random.default_rng(1000 * persons + seed), persons, shape)
        low, high = person_bootstrap(hits, who, samples=1000, seed=seed)
        covered += list((low <= true) & (true <= high))
    assert 0.92 <= np.mean(covered) <= 0.97


def test_few_persons_are_allowed_for():
    """At 20 persons plain percentiles miss the mark: what the expansion is for."""
    covered: dict[float, list[bool]] = {0.025: [], percentiles(20)[0]: []}
    for seed in range(30):
        hits, who, true = studies(np.random.default_rng(20_000 + seed), 20, (6, 1.5))
        sums = np.stack([hits[who == p].sum(axis=0) for p in range(20)])
        times = np.random.default_rng(seed).multinomial(20, np.full(20, 1 / 20), 1000)
        means = (times @ sums) / (times @ np.bincount(who))[:, None]
        for tail, inside in covered.items():
            low, high = np.quantile(means, [tail, 1 - tail], axis=0)
            inside += list((low <= true) & (true <= high))
    plain, expanded = map(np.mean, covered.values())
    assert expanded > plain + 0.01
    assert abs(expanded - 0.95) < abs(plain - 0.95)


def test_percentiles_are_those_of_students_t_and_go_back_to_the_normal():
    low, high = percentiles(20)  # t of 97.5 % with 19 degrees is 2.0930
    assert low == pytest.approx(0.01588, abs=1e-5) and high == 1 - low
    assert percentiles(10**6)[0] == pytest.approx(0.025, abs=1e-5)
    assert percentiles(2)[0] == pytest.approx(0, abs=1e-9)  # two persons: the whole range
    assert percentiles(30, 0.5)[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("persons", [20, 71])
def test_one_in_twenty_tests_of_equal_models_is_below_5_percent(persons):
    rng, p = np.random.default_rng(persons), []
    for seed in range(1200):
        queries = rng.integers(2, 12, persons)
        who = np.repeat(np.arange(persons), queries)
        rate = rng.beta(2, 1, (2, persons))[:, who]  # a person may suit one model: which, is chance
        a, b = (rng.random((2, len(who))) < rate).astype(float)
        p.append(paired_test(a, b, who, samples=199, seed=seed)["p"])
    size = np.mean(np.array(p) <= 0.05)
    assert abs(size - 0.05) < 3 * np.sqrt(0.05 * 0.95 / len(p))


def test_average_precision_is_scikit_learns_where_nothing_ties():
    rng = np.random.default_rng(0)
    gallery = np.concatenate([np.arange(8), rng.integers(0, 8, 40)])
    query, sim = rng.integers(0, 8, 60), rng.random((60, 48))
    found = retrieval_metrics(sim, query, gallery)
    known = [average_precision_score(gallery == q, s) for q, s in zip(query, sim, strict=True)]
    np.testing.assert_allclose(found["per_query"]["ap"], known, atol=1e-12)
    assert found["map"] == pytest.approx(np.mean(known), abs=1e-12)
