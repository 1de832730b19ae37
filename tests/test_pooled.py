"""Runs of several aspects and seeds as one comparison, whose unit is the person."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from handclip_lib.evaluate.statistics import paired_test
from handclip_lib.report.pooled import pooled, pooled_table
from handclip_lib.report.results import Finished

PERSONS = 12


def run(aspect: str, seed: int, gain: float = 0.1, tag: str = "") -> Finished:
    rng = np.random.default_rng([seed, len(aspect)])
    base = {str(k): [*rng.uniform(0.2, 0.6, 2).round(3), int(rng.integers(2, 9))]
            for k in range(PERSONS)}  # fmt: skip
    better = {k: [r + gain * rng.uniform(0, 2), a + gain, n] for k, (r, a, n) in base.items()}
    metrics = {
        **{"notebook": "02_stage1", "aspect": aspect, "seed": seed, "tag": tag, "data": "drawn"},
        "paired": {"reference": "zero_shot", "own": {"map": {"stage1": {}}}},
        "per_person": {"zero_shot": base, "stage1": better},
    }
    return Finished(Path(aspect), metrics, {})


def test_the_difference_is_that_of_all_queries_and_the_person_is_the_unit():
    runs = [run("dorsal_r", 0), run("palmar_l", 0, -0.02), run("dorsal_r", 1)]
    row = pooled(runs).set_index("metric").loc["rank1"]
    a, b, who = [], [], []
    for one in runs:  # written out query by query
        told = one.metrics["per_person"]
        for pid, (rank1, _, n) in told["zero_shot"].items():
            a += [rank1] * n
            b += [told["stage1"][pid][0]] * n
            who += [pid] * n
    wanted = paired_test(a, b, who)
    assert row["difference"] == pytest.approx(wanted["difference"])
    assert [row["difference_low"], row["difference_high"]] == pytest.approx(
        wanted["ci95"], abs=0.01
    )
    assert row["mean"] == pytest.approx(np.mean(b)) and row["low"] < row["mean"] < row["high"]
    assert (row["runs"], row["persons"], row["variant"]) == (3, PERSONS, "stage1")


def test_more_seeds_are_not_more_persons():
    one = pooled([run("dorsal_r", 0), run("dorsal_r", 0)])
    many = pooled([run("dorsal_r", 0)] * 8)
    width = [(t["difference_high"] - t["difference_low"]).to_numpy() for t in (one, many)]
    assert np.allclose(*width, rtol=0.15), "the same persons again tell nothing new"


def test_what_is_not_pooled():
    assert pooled([run("dorsal_r", 0)]).empty, "a single run"
    assert pooled([run("dorsal_r", 0), run("dorsal_l", 0, tag="lr")]).empty, "of other aspects"
    assert pooled([run("dorsal_r", 0), run("dorsal_r", 0, tag="lr")]).empty, "a single pair"
    assert pooled_table(pd.DataFrame()) == ""


def test_a_page_shows_it():
    html = pooled_table(pooled([run("dorsal_r", 0), run("palmar_l", 0)]))
    assert "against zero_shot" in html and "2 runs, 12 persons" in html and "stage1" in html


def test_runs_of_a_sweep_are_pooled_against_the_study_itself():
    plain = [run("dorsal_r", seed) for seed in (0, 1, 2)]
    swept = [
        run("dorsal_r", s, gain, tag) for tag, gain in (("b", 0.2), ("a", 0.1)) for s in (0, 1)
    ]
    alone = [run("dorsal_r", 1, 0.3, "alone"), run("palmar_l", 0, 0.3, "alone")]
    table = pooled([*plain, *swept, *alone]).set_index(["tag", "variant", "metric"])
    assert list(dict.fromkeys(table.index.droplevel("metric"))) == [
        ("", "stage1"), ("b", "stage1"), ("a", "stage1"),
    ], "what the sweep leaves as it is (zero_shot) is not shown"  # fmt: skip
    row = table.loc[("b", "stage1", "map")]
    of = [[r.metrics["per_person"]["stage1"] for r in runs] for runs in (plain[:2], swept[:2])]
    a, b = ([p[1] for one in runs for p in one.values() for _ in range(p[2])] for runs in of)
    who = [pid for one in of[0] for pid, p in one.items() for _ in range(p[2])]
    wanted = paired_test(a, b, who)
    assert row["difference"] == pytest.approx(wanted["difference"]) == pytest.approx(0.1)
    assert (row["p"], row["runs"], row["persons"]) == (wanted["p"], 2, PERSONS)
    assert table.loc[("a", "stage1", "map"), "difference"] == 0, "a tag that changed nothing stays"
    assert row["p_holm"] == pytest.approx(2 * row["p"])
    html = pooled_table(table.reset_index())
    assert "against stage1 of the study itself" in html and "stage1, b" in html


def test_a_sweep_with_other_queries_or_data_is_not_pooled():
    plain = [run("dorsal_r", seed) for seed in (0, 1)]
    swept = [run("dorsal_r", seed, 0.2, "split") for seed in (0, 1)]
    assert set(pooled([*plain, *swept])["tag"]) == {"", "split"}
    for one in swept:
        one.metrics["data"] = "drawn, other laboratory"
    assert set(pooled([*plain, *swept])["tag"]) == {""}
    for one in swept:
        one.metrics["data"] = "drawn"
        told = one.metrics["per_person"]["stage1"]  # as many in all, of other persons
        for person, more in (("0", 1), ("1", -1)):
            told[person] = [*told[person][:2], told[person][2] + more]
    assert set(pooled([*plain, *swept])["tag"]) == {""}
