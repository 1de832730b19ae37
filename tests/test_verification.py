"""Verification: error rates against closed forms, scikit-learn and naive loops; thresholds."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from handclip_lib.evaluate import verification
from handclip_lib.evaluate.pairs import KINDS, by_kind, distinct, pairs_of, select_pairs
from handclip_lib.evaluate.protocol import pair_scores
from handclip_lib.evaluate.statistics import percentiles
from handclip_lib.evaluate.verification import (
    TooFewPairs,
    cross_thresholds,
    operating_intervals,
    operating_point,
    person_intervals,
    threshold_at,
    verification_metrics,
)

OTHER_HAND = 11_000_000
GENUINE, IMPOSTOR = [0.9, 0.6, 0.5], [0.6, 0.4, 0.2, 0.1]


def joined(genuine, impostor):
    labels = np.repeat([True, False], [len(genuine), len(impostor)])
    return np.concatenate([genuine, impostor]), labels


def gaussian(distance, genuine, impostor, seed=0):
    rng = np.random.default_rng(seed)
    return joined(rng.normal(distance, 1, genuine), rng.normal(0, 1, impostor))


def crossed(persons, rng, effect=1.0, shots=2):
    """Scores of every person's queries with everybody's gallery entry, persons' effects in both."""
    asked = np.repeat(np.arange(persons), shots)
    query, gallery = np.repeat(asked, persons), np.tile(np.arange(persons), len(asked))
    lamb, wolf = rng.normal(0, effect, (2, persons))
    own = rng.normal(0, effect, persons)  # how like themselves persons are
    scores = rng.normal(size=len(query)) + lamb[query] + wolf[gallery]
    genuine = query == gallery
    scores[genuine] += 2 + own[query[genuine]]
    return scores, genuine, query, gallery


def test_curves_by_hand():
    told = verification_metrics(*joined(GENUINE, IMPOSTOR))
    np.testing.assert_array_equal(told["thresholds"], [0.1, 0.2, 0.4, 0.5, 0.6, 0.9, np.inf])
    np.testing.assert_allclose(told["fmr"], [1, 0.75, 0.5, 0.25, 0.25, 0, 0])
    np.testing.assert_allclose(told["fnmr"], [0, 0, 0, 0, 1 / 3, 2 / 3, 1])
    assert told["eer"] == pytest.approx(0.25)
    assert told["auc"] == pytest.approx(10.5 / 12)  # of 12 comparisons one is lost, one a tie
    assert (told["n_genuine"], told["n_impostor"]) == (3, 4)
    spread = np.sqrt((np.var(GENUINE) + np.var(IMPOSTOR)) / 2)
    assert told["d_prime"] == pytest.approx((np.mean(GENUINE) - np.mean(IMPOSTOR)) / spread)


def test_equal_error_lies_on_the_line_between_operating_points():
    # from FMR 0.5, FNMR 0.25 to FMR 0, FNMR 0.75: both are equal half way, at 0.375
    told = verification_metrics(*joined([0.3, 0.6, 0.6, 0.9], [0.6, 0.1]))
    assert told["eer"] == pytest.approx(0.375)


@pytest.mark.parametrize("distance", [0.5, 2.0, 3.0])
def test_gaussian_scores_have_their_closed_form(distance):
    told = verification_metrics(*gaussian(distance, 40_000, 400_000))
    assert told["eer"] == pytest.approx(norm.cdf(-distance / 2), abs=0.004)
    assert told["auc"] == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.005)
    assert told["d_prime"] == pytest.approx(distance, abs=0.02)
    for name, tolerance in (("1e-1", 0.01), ("1e-2", 0.015), ("1e-3", 0.03), ("1e-4", 0.06)):
        exact = norm.cdf(norm.isf(float(name)) - distance)
        assert told["fnmr_at_fmr"][name] == pytest.approx(exact, abs=tolerance), name


def test_curves_equal_scikit_learn_with_ties():
    scores, genuine = gaussian(1.0, 200, 900)
    scores = np.round(scores, 1)
    told = verification_metrics(scores, genuine)
    fmr, tmr, thresholds = roc_curve(genuine, scores, drop_intermediate=False)
    np.testing.assert_array_equal(told["thresholds"], thresholds[::-1])
    np.testing.assert_allclose(told["fmr"], fmr[::-1])
    np.testing.assert_allclose(told["fnmr"], 1 - tmr[::-1], atol=1e-15)
    assert told["auc"] == pytest.approx(roc_auc_score(genuine, scores))


def test_order_and_scale_of_scores_do_not_matter():
    scores, genuine = gaussian(1.0, 100, 400)
    told = verification_metrics(scores, genuine)
    mixed = np.random.default_rng(1).permutation(500)
    again = verification_metrics(np.exp(scores[mixed]), genuine[mixed].astype(int))
    for name in ("eer", "auc", "fnmr_at_fmr"):
        assert again[name] == told[name]


def test_scores_that_tell_nothing_or_everything():
    same = verification_metrics(*joined([0.5] * 3, [0.5] * 5))
    assert (same["eer"], same["auc"], same["d_prime"]) == (0.5, 0.5, None)
    right = verification_metrics(*joined([0.9, 0.8], np.linspace(0, 0.7, 300)))
    assert (right["eer"], right["auc"], right["fnmr_at_fmr"]["1e-1"]) == (0, 1, 0)
    assert right["eer_upper"] == right["fnmr_upper"]["1e-1"] == 1.0  # 3 of 2 pairs is all of them
    wrong = verification_metrics(*joined([0.1, 0.2], [0.8, 0.9]))
    assert (wrong["eer"], wrong["auc"], wrong["eer_upper"]) == (1, 0, None)


def test_rates_of_too_few_impostors_are_withheld():
    for impostors, known in ((299, 0), (300, 1), (2999, 1), (3000, 2), (30_000, 3), (300_000, 4)):
        told = verification_metrics(*joined([2.0] * 60, np.linspace(0, 1, impostors)))
        given = [rate for rate in told["fnmr_at_fmr"].values() if rate is not None]
        assert given == [0.0] * known and told["n_impostor"] == impostors
        bounds = list(told["fnmr_upper"].values())
        assert bounds == [3 / 60] * known + [None] * (4 - known)
        assert told["eer_upper"] == 3 / 60


def test_the_threshold_of_a_level_is_the_lowest_that_keeps_it():
    impostor = np.arange(300) / 300
    for second, missed in ((269, 2 / 3), (269.5, 1 / 3)):  # 31 and 30 of 300 at or above
        told = verification_metrics(*joined([0.8, second / 300, 1.0], impostor))
        assert told["fnmr_at_fmr"]["1e-1"] == pytest.approx(missed)


@pytest.mark.parametrize(
    ("scores", "genuine", "words"),
    [
        ([0.1, np.nan], [True, False], "NaN"),
        ([0.1, np.inf], [True, False], "infinity"),
        ([0.1, -np.inf], [True, False], "infinity"),
        ([0.1, 0.2], [True, True], "genuine ones only"),
        ([0.1, 0.2], [False, False], "impostor ones only"),
        ([], [], "both"),
        ([0.1, 0.2], [True], "one label for each score"),
        ([[0.1, 0.2]], [[True, False]], "one label for each score"),
        ([0.1, 0.2], [1, 2], "true or false"),
    ],
)
def test_what_is_no_set_of_pairs_is_refused(scores, genuine, words):
    with pytest.raises(ValueError, match=words):
        verification_metrics(scores, genuine)


# -- intervals ------------------------------------------------------------------------------------


def test_intervals_equal_those_of_pairs_written_out():
    """Each sample's pairs repeated as often as their persons were drawn, and scored anew."""
    rng = np.random.default_rng(2)
    scores, genuine, query, gallery = crossed(18, rng)
    scores = np.round(scores, 1)
    names = np.array([f"p{i:02d}" for i in range(18)])
    got = person_intervals(scores, genuine, names[query], names[gallery], samples=40, seed=3)
    found = []
    for times in np.random.default_rng(3).multinomial(18, np.full(18, 1 / 18), size=40):
        often = [
            times[q] * (times[g] if q != g else 1) for q, g in zip(query, gallery, strict=True)
        ]
        told = verification_metrics(np.repeat(scores, often), np.repeat(genuine, often))
        at = np.argmax(told["fmr"] <= 0.1)
        found.append((told["eer"], told["auc"], told["fnmr"][at]))
    low, high = np.quantile(found, percentiles(18), axis=0)
    measures = (got["eer"], got["auc"], got["fnmr_at_fmr"]["1e-1"])
    np.testing.assert_allclose(measures, np.stack([low, high], axis=1), atol=1e-12)
    assert got["fnmr_at_fmr"]["1e-2"] is None and got["persons"] == 18


def test_entries_nobody_asks_for_make_no_interval_narrower():
    """Distractors have impostor pairs alone, and few persons who are asked for stay few."""
    rng = np.random.default_rng(7)
    alone = crossed(6, rng, shots=4)
    query, entry = np.repeat(np.arange(6), 4), np.arange(6, 40)
    far = rng.normal(-9, 0.1, (len(query), len(entry))).ravel()
    more = (far, np.zeros(len(far), bool), np.repeat(query, len(entry)), np.tile(entry, len(query)))
    both = tuple(np.concatenate(two) for two in zip(alone, more, strict=True))
    got = [person_intervals(*pairs, samples=4000) for pairs in (alone, both)]
    assert [one["persons"] for one in got] == [6, 6]
    at = np.median(alone[0][alone[1]])
    widths = [
        np.diff(operating_intervals(p[0], p[1], np.full(len(p[0]), at), *p[2:])["fnmr"])
        for p in (alone, both)
    ]
    assert widths[1] > 0.95 * widths[0]


def test_intervals_cover_other_persons():
    """Persons have effects on both sides; nominally 95 %, less some points for 25 persons."""
    rng = np.random.default_rng(4)
    spread = np.sqrt(2 * (1 + 2) + 1)  # of a genuine less an impostor score
    exact, covered = norm.cdf(2 / spread), 0
    for trial in range(150):
        got = person_intervals(*crossed(25, rng, shots=1), samples=120, seed=trial)["auc"]
        covered += got[0] <= exact <= got[1]
    assert 0.87 <= covered / 150 <= 0.99


def test_intervals_refuse_what_gives_none():
    scores, genuine, query, gallery = crossed(6, np.random.default_rng(5))
    assert person_intervals(scores, genuine, query, gallery, samples=20) == person_intervals(
        scores, genuine, query, gallery, samples=20
    )
    with pytest.raises(ValueError, match="one person a side"):
        person_intervals(scores, genuine, query[:-1], gallery)
    with pytest.raises(ValueError, match="a genuine pair has two persons"):
        person_intervals(scores, genuine, query, np.roll(gallery, 1))
    with pytest.raises(ValueError, match="two with genuine pairs, got 1"):
        one = query == 0
        person_intervals(scores[one], genuine[one], query[one], gallery[one])
    with pytest.raises(ValueError, match="one sample"):
        person_intervals(scores, genuine, query, gallery, samples=0)


# -- thresholds -----------------------------------------------------------------------------------


def test_a_threshold_learned_on_some_persons_holds_on_others():
    chosen = threshold_at(*gaussian(2.0, 2000, 100_000, seed=6), fmr=0.01)
    assert chosen == pytest.approx(norm.isf(0.01), abs=0.05)
    there = operating_point(*gaussian(2.0, 2000, 100_000, seed=7), chosen)
    assert there["fmr"] == pytest.approx(0.01, abs=0.002)
    assert there["fnmr"] == pytest.approx(norm.cdf(chosen - 2), abs=0.03)
    assert (there["n_genuine"], there["n_impostor"]) == (2000, 100_000)


def test_a_score_at_the_threshold_is_accepted():
    there = operating_point(*joined(GENUINE, IMPOSTOR), 0.6)
    assert (there["fmr"], there["fnmr"]) == (0.25, pytest.approx(1 / 3))
    assert (there["fmr_upper"], there["fnmr_upper"]) == (None, None)
    strict = operating_point(*joined(GENUINE, IMPOSTOR), 0.95)
    assert (strict["fmr"], strict["fnmr"], strict["fmr_upper"]) == (0, 1, 3 / 4)
    impostor = np.arange(300) / 300
    chosen = threshold_at(*joined([1.0], impostor), 0.1)
    assert chosen == 270 / 300 and operating_point(*joined([1.0], impostor), chosen)["fmr"] == 0.1


def test_thresholds_that_cannot_be_learned_are_refused():
    with pytest.raises(
        ValueError, match="1 % needs 3,000 impostor pairs to choose it on; there are 400"
    ):
        threshold_at(*gaussian(1, 10, 400), fmr=0.01)
    with pytest.raises(ValueError, match="too many pairs share one score"):
        threshold_at(*joined([0.1], [0.5] * 400), fmr=0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_at(*gaussian(1, 10, 400), fmr=0)
    with pytest.raises(ValueError, match="threshold is NaN"):
        operating_point(*gaussian(1, 10, 400), float("nan"))


def crosswise(persons=20, shots=6, seed=0):
    """Every photograph of a person with an entry of each; hard persons resemble all others."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.repeat(np.arange(persons), shots), persons)
    gallery = np.tile(np.arange(persons), persons * shots)
    alike = rng.normal(size=persons)[query] + rng.normal(size=persons)[gallery]
    scores = rng.normal(size=len(query)) + alike + 3 * (query == gallery)
    columns = {"query_person": query, "gallery_person": gallery, "similarity": scores}
    return pd.DataFrame({**columns, "genuine": query == gallery})


def test_crosswise_thresholds_know_neither_person(monkeypatch):
    pairs, seen = crosswise(shots=8), []
    owners = pairs.set_index("similarity")[["query_person", "gallery_person"]]

    def watched(scores, genuine, fmr):
        seen.append(
            (set(owners.loc[scores].to_numpy().ravel()), threshold_at(scores, genuine, fmr))
        )
        return len(seen) - 1  # a threshold that tells which it is

    monkeypatch.setattr(verification, "threshold_at", watched)
    number = cross_thresholds(pairs, 0.05, folds=4).astype(int)
    monkeypatch.undo()
    for of, query, gallery in zip(
        number, pairs["query_person"], pairs["gallery_person"], strict=True
    ):
        assert not {query, gallery} & seen[of][0]
    assert len(seen) == 10 and {len(known) for known, _ in seen} == {10, 15}
    chosen = cross_thresholds(pairs, 0.05, folds=4)
    np.testing.assert_array_equal(chosen, [seen[of][1] for of in number])
    there = operating_point(pairs["similarity"], pairs["genuine"], chosen)
    passed = pairs["similarity"] >= chosen
    assert there["fmr"] == passed[~pairs["genuine"]].mean() == pytest.approx(0.05, abs=0.02)
    assert there["fnmr"] == (~passed[pairs["genuine"]]).mean()
    assert there["threshold_span"] == [chosen.min(), chosen.max()]
    assert there["threshold"] == np.median(chosen)


def test_an_operating_point_has_intervals_over_persons_on_both_sides():
    pairs = crosswise(persons=8, shots=3)
    sides = pairs["query_person"].to_numpy(), pairs["gallery_person"].to_numpy()
    chosen = np.where(sides[0] % 2, 1.0, 2.0)  # of each pair its own
    scores, genuine = pairs["similarity"].to_numpy(), pairs["genuine"].to_numpy()
    got = operating_intervals(scores, genuine, chosen, *sides, samples=50, seed=4)
    passed, rates = scores >= chosen, []
    for times in np.random.default_rng(4).multinomial(8, np.full(8, 1 / 8), 50):
        weights = times[sides[0]] * np.where(genuine, 1, times[sides[1]])
        fmr = np.average(passed[~genuine], weights=weights[~genuine])
        rates.append((fmr, np.average(~passed[genuine], weights=weights[genuine])))
    low, high = np.quantile(rates, percentiles(8), axis=0)
    np.testing.assert_allclose(got["fmr"], [low[0], high[0]])
    np.testing.assert_allclose(got["fnmr"], [low[1], high[1]])


def test_crosswise_thresholds_of_too_few_pairs_are_withheld():
    pairs = crosswise(persons=9, shots=2)  # three of nine are left where two folds of three go
    with pytest.raises(
        TooFewPairs, match="50 % needs 60 impostor pairs to choose it on; there are 12"
    ):
        cross_thresholds(pairs, 0.5, folds=3)
    with pytest.raises(ValueError, match="folds=2"):
        cross_thresholds(pairs, 0.5, folds=2)


# -- pairs ----------------------------------------------------------------------------------------


@pytest.fixture
def hands():
    """Features, images and a manifest of 4 test and 3 select persons, two draws, both hands."""
    rows = []
    for draw in range(2):
        for pid in range(1, 5):
            shots = [f"r{pid}_{shot}.jpg" for shot in range(3)]
            rows += [
                ("gallery" if k == draw else "query", draw, pid, "dorsal_r", image)
                for k, image in enumerate(shots)
            ]
            rows.append(("gallery_all", draw, pid, "dorsal_r", shots[draw]))
            rows.append(("gallery_all", draw, pid + OTHER_HAND, "dorsal_l", f"l{pid}.jpg"))
    rows += [("select", 0, p, "dorsal_r", f"s{p}_{k}.jpg") for p in (7, 8, 9) for k in range(2)]
    manifest = pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])
    images = sorted(set(manifest["image"]))
    z = np.random.default_rng(8).normal(size=(len(images), 12))
    return z / np.linalg.norm(z, axis=1, keepdims=True), images, manifest


def test_pairs_are_every_query_with_every_entry_of_its_draw(hands):
    z, images, manifest = hands
    pairs = pairs_of(*hands, gallery="all")
    assert len(pairs) == 2 * 8 * 8 and pairs["genuine"].sum() == 2 * 8
    feature = dict(zip(images, z, strict=True))
    for row in pairs.sample(20, random_state=0).itertuples():
        assert row.similarity == pytest.approx(feature[row.query] @ feature[row.gallery], abs=1e-6)
        chosen = manifest.query(f"draw == {row.draw} and pid == {row.gallery_pid}")
        assert row.gallery in set(chosen.loc[chosen["split"] == "gallery_all", "image"])
        assert row.genuine == (row.query_pid == row.gallery_pid)
        assert row.gallery_person == row.gallery_pid % OTHER_HAND == int(row.gallery[1])
    first = pairs_of(*hands, draws=1)
    genuine, impostor = pair_scores(*hands)
    np.testing.assert_array_equal(first.loc[first["genuine"], "similarity"], genuine)
    np.testing.assert_array_equal(first.loc[~first["genuine"], "similarity"], impostor)
    assert set(first["draw"]) == {0} and not set(first["gallery"]) & set(first["query"])


def test_a_pair_of_photographs_counts_once(hands):
    pairs = pairs_of(*hands, gallery="all")
    alone = distinct(pairs)
    seen = [frozenset(p) for p in zip(pairs["query"], pairs["gallery"], strict=True)]
    assert len(alone) == len(set(seen)) < len(pairs)
    assert len({frozenset(p) for p in zip(alone["query"], alone["gallery"], strict=True)}) == len(
        alone
    )
    first = pairs[pairs["draw"] == 0]
    pd.testing.assert_frame_equal(alone[alone["draw"] == 0], first)


def test_kinds_of_pairs(hands):
    kinds = by_kind(pairs_of(*hands, gallery="all"))
    assert {kind: len(found) for kind, found in kinds.items()} == dict(
        zip(KINDS, (16, 16, 96), strict=True)
    )
    assert list(by_kind(pairs_of(*hands))) == [KINDS[0], KINDS[2]]


def test_pairs_of_select_persons_are_all_of_them_once(hands):
    z, images, manifest = hands
    pairs = select_pairs(*hands)
    assert len(pairs) == 6 * 5 // 2 and pairs["genuine"].sum() == 3
    assert set(pairs["query_person"]) | set(pairs["gallery_person"]) == {7, 8, 9}
    assert len({frozenset(p) for p in zip(pairs["query"], pairs["gallery"], strict=True)}) == 15
    with pytest.raises(ValueError, match="no select rows"):
        select_pairs(z, images, manifest[manifest["split"] != "select"])
