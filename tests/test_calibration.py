"""Likelihood ratios: closed forms of Gaussian systems, PAV against loops, folds by person."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from handclip_lib.evaluate import calibration, pairs
from handclip_lib.evaluate.calibration import (
    TooFewPersons,
    apply,
    cllr,
    cllr_min,
    cross_fit,
    evidence,
    fit_logistic,
    tippett,
)

LN10 = np.log(10)


def calibrated(distance, genuine, impostor, seed=0):
    """log10 ratios that are what they say: natural ones are N(±d² / 2, d²)."""
    rng, mean = np.random.default_rng(seed), distance**2 / 2
    return rng.normal(mean, distance, genuine) / LN10, rng.normal(-mean, distance, impostor) / LN10


def joined(genuine, impostor, persons=20):
    labels = np.repeat([True, False], [len(genuine), len(impostor)])
    return np.concatenate([genuine, impostor]), labels, np.arange(len(labels)) % persons


def toy_pairs(persons=20, shots=4, distance=2.0, seed=0):
    """One gallery entry a person; the score of a pair is its own number, a little apart."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.repeat(np.arange(persons), shots), persons)
    gallery = np.tile(np.arange(persons), persons * shots)
    scores = rng.normal(size=len(query)) + distance * (query == gallery)
    columns = {"query_person": query, "gallery_person": gallery, "similarity": scores}
    return pd.DataFrame({**columns, "genuine": query == gallery})


# -- costs ----------------------------------------------------------------------------------------


def test_cost_by_hand():
    assert cllr([1.0], [-1.0]) == pytest.approx(np.log2(1.1))
    assert cllr([1.0, -1.0], [0.0]) == pytest.approx((np.log2(1.1) / 2 + np.log2(11) / 2 + 1) / 2)
    assert cllr(np.zeros(3), np.zeros(50)) == pytest.approx(1)  # ratios of 1 say nothing
    assert cllr([np.inf], [-np.inf]) == 0 and cllr([-np.inf], [0.0]) == np.inf


@pytest.mark.parametrize("distance", [1.0, 2.0, 4.0])
def test_a_calibrated_gaussian_system_costs_its_closed_form(distance):
    genuine, impostor = calibrated(distance, 20_000, 60_000)
    mean = distance**2 / 2
    # by symmetry both halves are E[log2(1 + exp(-x))], x ~ N(d² / 2, d²)
    exact = quad(
        lambda x: np.logaddexp(0, -x) / np.log(2) * norm.pdf(x, mean, distance), -60, 60, points=[0]
    )[0]
    assert cllr(genuine, impostor) == pytest.approx(exact, abs=0.012)
    assert cllr_min(genuine, impostor) == pytest.approx(exact, abs=0.015)
    assert cllr_min(genuine, impostor) <= cllr(genuine, impostor)


def test_the_least_cost_knows_order_alone():
    genuine, impostor = calibrated(1.5, 500, 2000)
    least = cllr_min(genuine, impostor)
    assert cllr_min(3 * genuine + 7, 3 * impostor + 7) == pytest.approx(least)
    assert cllr(genuine + 1, impostor + 1) > cllr(genuine, impostor) > least
    assert cllr_min([1.0, 2.0], [-1.0, 0.5]) == 0
    assert cllr_min([0.0, 0.0], [0.0]) == pytest.approx(1)
    assert cllr_min([-1.0], [1.0]) == pytest.approx(1)  # the wrong way round: best said nothing


def test_useless_scores_cost_one_bit():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(size=3000), rng.normal(size=30_000)
    fitted = fit_logistic(*joined(genuine, impostor), "none")
    fresh = rng.normal(size=3000), rng.normal(size=30_000)
    assert cllr(*(apply(fitted, s) for s in fresh)) == pytest.approx(1, abs=0.005)
    assert 0.98 < cllr_min(genuine, impostor) < 1


def test_costs_refuse_what_has_none():
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="without NaN"):
            cllr(bad, [0.0])
        with pytest.raises(ValueError, match="without NaN"):
            cllr_min([0.0], bad)


def test_tippett_curves_by_hand():
    told = tippett([2.0, -1.0, 0.0, 2.0], [-2.0, 1.0])
    np.testing.assert_array_equal(told["llr"], [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(told["genuine"], [1, 1, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(told["impostor"], [1, 0.5, 0.5, 0.5, 0])
    assert (told["misleading_genuine"], told["misleading_impostor"]) == (0.25, 0.5)


# -- fits -----------------------------------------------------------------------------------------


def test_logistic_fit_finds_ratios_whatever_the_numbers_of_pairs():
    genuine, impostor = calibrated(2.0, 4000, 100_000)
    fitted = fit_logistic(*joined(5 * genuine - 3, 5 * impostor - 3), "Gaussian scores")
    assert fitted.slope == pytest.approx(0.2, abs=0.01)
    assert fitted.offset == pytest.approx(0.6, abs=0.04)  # log10(25) off, were the prior left in
    llr = apply(fitted, [[2.0, -3.0]])
    assert llr.shape == (1, 2) and llr[0] == pytest.approx([1, 0], abs=0.05)
    assert (fitted.persons, fitted.genuine, fitted.impostor) == (20, 4000, 100_000)


def test_logistic_fit_is_the_least_cost_of_any_line():
    scores, labels, persons = joined(*calibrated(1.5, 400, 3000, seed=1))
    fitted = fit_logistic(scores, labels, persons, "")

    def cost(slope, offset):
        llr = slope * scores + offset
        return cllr(llr[labels], llr[~labels])

    best = cost(fitted.slope, fitted.offset)
    for step in (-0.02, 0.02):
        assert cost(fitted.slope + step, fitted.offset) > best
        assert cost(fitted.slope, fitted.offset + step) > best


def test_kinds_that_do_not_overlap_give_bounded_ratios():
    scores = joined(np.linspace(5, 6, 40), np.linspace(-6, -5, 900))
    fitted = fit_logistic(*scores, "apart")
    llr = apply(fitted, [-1e9, -5.5, 5.5, 1e9])
    assert np.isfinite(llr).all() and (np.diff(llr) >= 0).all()
    assert llr[[0, -1]] == pytest.approx([-np.log10(41), np.log10(901)])
    assert llr[1] < -1 and llr[2] > 1


def naive_pav(labels, weights):
    """Pool adjacent violators, one block after another (Ayer et al. 1955)."""
    blocks = []
    for label, weight in zip(labels, weights, strict=True):
        blocks.append([label * weight, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return np.concatenate([[total / weight] * n for total, weight, n in blocks])


def test_the_least_cost_is_that_of_pooling_by_hand():
    rng = np.random.default_rng(4)
    labels = rng.random(50) < np.linspace(0.1, 0.9, 50)
    posterior = naive_pav(
        labels.astype(float), np.where(labels, 1 / labels.sum(), 1 / (~labels).sum())
    )
    with np.errstate(divide="ignore"):
        llr = np.log10(posterior / (1 - posterior))
    got = cllr_min(np.flatnonzero(labels), np.flatnonzero(~labels))
    assert got == pytest.approx(cllr(llr[labels], llr[~labels]))


def test_a_calibration_is_frozen_and_names_its_population():
    fitted = fit_logistic(*joined(*calibrated(1.0, 100, 500)), "20 drawn persons, select")
    assert fitted.population == "20 drawn persons, select" and fitted.persons == 20
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.slope = 1.0
    with pytest.raises(ValueError, match="NaN"):
        apply(fitted, [np.nan])


def test_nothing_is_fitted_on_too_little():
    with pytest.raises(TooFewPersons, match="4 persons with genuine pairs"):
        fit_logistic(*joined([1.0, 2.0] * 8, [0.0] * 40, persons=4), "")
    with pytest.raises(ValueError, match="genuine ones only"):
        fit_logistic(np.arange(9.0), np.ones(9, bool), np.arange(9), "")
    with pytest.raises(ValueError, match="NaN"):
        fit_logistic(*joined([1.0] * 9 + [np.nan], [0.0]), "")
    with pytest.raises(ValueError, match="one person for each score"):
        fit_logistic([1.0, 2.0], [True, False], [1], "")


# -- folds ----------------------------------------------------------------------------------------


def test_cross_fitting_never_uses_a_person_of_the_pair(monkeypatch):
    pairs = toy_pairs(persons=23)
    owners = pairs.set_index("similarity")[["query_person", "gallery_person"]]
    seen = []

    def watched(scores, genuine, persons, population):
        known = owners.loc[scores]
        np.testing.assert_array_equal(known["query_person"], persons)
        seen.append(set(known.to_numpy().ravel().tolist()))
        made = fit_logistic(scores, genuine, persons, population)
        # a calibration that answers with its own number
        return dataclasses.replace(made, slope=0.0, offset=float(len(seen) - 1), high=99.0)

    monkeypatch.setattr(calibration, "fit_logistic", watched)
    llr, made = cross_fit(pairs, "toys", folds=5)
    assert len(made) == len(seen) == 15 and np.isfinite(llr).all()
    assert {c.persons for c in made} <= {len(s) for s in seen}
    for number, query, gallery in zip(
        llr.astype(int), pairs["query_person"], pairs["gallery_person"], strict=True
    ):
        assert not {query, gallery} & seen[number]
    assert min(map(len, seen)) >= 23 - 2 * 5  # two folds of five at most are kept back


def test_folds_are_the_same_on_every_machine():
    dealt = pairs._dealt(list(range(1, 11)), 3, 0)
    assert [p for p in dealt if dealt[p] == 0] == [4, 8, 1, 5]
    sizes = np.bincount(list(dealt.values()))
    assert sizes.max() - sizes.min() <= 1
    assert dealt == pairs._dealt(list(range(10, 0, -1)), 3, 0)


def test_cross_fitted_ratios_are_calibrated():
    pairs = toy_pairs(persons=60, shots=4, distance=2.0)
    told, llr = evidence(pairs, "60 toys")
    np.testing.assert_array_equal(llr, cross_fit(pairs, "60 toys")[0])
    assert told["cllr"] == cllr(llr[pairs["genuine"]], llr[~pairs["genuine"]])
    assert told["loss"] == pytest.approx(told["cllr"] - told["cllr_min"])
    assert 0 < told["loss"] < 0.05 and 0.4 < told["cllr"] < 0.7
    assert (told["persons"], told["n_genuine"], told["n_impostor"]) == (60, 240, 240 * 59)
    assert told["fitted_on"] == 36 and told["withheld"] == ""
    assert 0.05 < told["misleading_genuine"] < 0.3 and 0.05 < told["misleading_impostor"] < 0.3
    assert told["strongest"][1] == pytest.approx(np.log10(36 * 4 * 35 + 1), abs=0.01)
    assert json.loads(json.dumps(told)) == told


def test_useless_scores_cost_a_bit_when_cross_fitted():
    told, _ = evidence(toy_pairs(persons=60, distance=0.0), "60 toys")
    assert told["cllr"] == pytest.approx(1, abs=0.03)


def test_evidence_of_too_few_persons_is_withheld_with_the_reason():
    told, llr = evidence(toy_pairs(persons=7), "seven toys")
    assert llr is None
    assert told["cllr"] is told["cllr_min"] is told["strongest"] is None
    assert "persons with genuine pairs" in told["withheld"] and told["persons"] == 7
    with pytest.raises(TooFewPersons):
        cross_fit(toy_pairs(persons=7), "")
    with pytest.raises(ValueError, match="folds=2"):
        cross_fit(toy_pairs(), "", folds=2)
