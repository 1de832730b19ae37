"""Thresholds: from persons held out, crosswise where these are too few, and why there is none."""

import json

import numpy as np
import pandas as pd
import pytest
from toy_persons import drawn, held_out, people

from handclip_lib.evaluate.slices import group_errors as sliced_errors
from handclip_lib.evaluate.verification import cross_thresholds
from handclip_lib.params import load
from handclip_lib.report.answers import Verified, verified
from handclip_lib.report.lineup import Contender
from handclip_lib.report.operating import Chosen, group_errors, operating_points, thresholds
from handclip_lib.schema import Params

MODEL = Contender("m")
TABLE = pd.DataFrame({"dataset": ["HD"]})  # whose persons numbers count


def told(fmr: float = 0.5, folds: int = 3) -> Params:
    return load(study="smoke", overrides={"comparison": {"fmr": fmr, "folds": folds}})


def asked(
    manifest: pd.DataFrame, p: Params, model: Contender = MODEL, noise: float = 1.0
) -> tuple[dict[str, Chosen], Verified]:
    spaces = {"m": drawn(manifest, noise)}
    found = verified([model], spaces, manifest, p)
    return thresholds([model], spaces, TABLE, manifest, found, p), found


def test_a_threshold_is_learned_on_persons_held_out():
    manifest, p = pd.concat([people(4), held_out()], ignore_index=True), told()
    chosen, found = asked(manifest, p)
    points = operating_points(found, chosen, p)
    names = held_out()["image"].tolist()
    z, who = drawn(manifest, 1.0).of(names).astype(float), np.repeat(np.arange(6), 2)
    sim = np.round(z @ z.T, 6)
    first, second = np.triu_indices(12, 1)
    scores, genuine = sim[first, second], who[first] == who[second]
    assert (~genuine).sum() == 60
    threshold = next(t for t in np.sort(scores) if (scores[~genuine] >= t).mean() <= 0.5)
    assert points["m"]["threshold"] == pytest.approx(threshold)
    assert points["m"]["chosen_on"] == "6 persons held out of training"
    tested = found.pairs["m"]
    passed = tested["similarity"] >= threshold
    assert points["m"]["fmr"] == pytest.approx(passed[~tested["genuine"]].mean())
    assert points["m"]["fnmr"] == pytest.approx((~passed[tested["genuine"]]).mean())
    low, high = points["m"]["ci95"]["fmr"]
    assert low < points["m"]["fmr"] < high
    json.dumps(points, allow_nan=False)


def test_whom_a_model_was_taught_choose_no_threshold_for_it(capsys):
    manifest, p = pd.concat([people(4), held_out()], ignore_index=True), told()
    assert asked(manifest, p, Contender("m", taught={"HD": [103, 5000]}))[0] == {}
    assert "no threshold for m: it was taught persons" in capsys.readouterr().out
    assert "m" in asked(manifest, p, Contender("m", taught={"11k": [103]}))[0]


def test_where_nobody_is_held_out_test_persons_choose_for_each_other():
    manifest, p = people(40), told(0.1, folds=4)
    chosen, found = asked(manifest, p)
    pairs = found.pairs["m"]
    np.testing.assert_array_equal(chosen["m"].at, cross_thresholds(pairs, 0.1, 4))
    points = operating_points(found, chosen, p)["m"]
    assert points["chosen_on"] == "cross-fitted over 40 test persons in 4 folds"
    low, high = points["threshold_span"]
    assert low < points["threshold"] < high and points["fmr"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize(
    ("held", "fmr"),
    [
        (held_out(6), 0.49),  # 60 impostor pairs, of 61
        (held_out(1), 0.1),
        (held_out(40).drop_duplicates("pid"), 0.5),  # 780 impostor pairs, none genuine
    ],
    ids=["pairs", "one person", "one photograph each"],
)
def test_so_they_do_where_those_held_out_have_too_few_pairs(held, fmr):
    """Also for a model that was taught some of these: they have no say."""
    manifest, p = pd.concat([people(40), held], ignore_index=True), told(fmr, folds=4)
    chosen, found = asked(manifest, p, Contender("m", taught={"HD": [100]}))
    np.testing.assert_array_equal(chosen["m"].at, cross_thresholds(found.pairs["m"], fmr, 4))
    why = f" (the {held['pid'].nunique()} held out have too few pairs)"
    assert chosen["m"].origin == f"cross-fitted over 40 test persons in 4 folds{why}"


@pytest.mark.parametrize("held", [0, 1])
def test_why_there_is_no_threshold(capsys, held):
    manifest = pd.concat([people(6), held_out(held)], ignore_index=True)
    assert asked(manifest, told(0.1))[0] == {}
    words = "no threshold for m: a false match rate of 10 % needs 300 impostor pairs to choose it"
    assert f"{words} on; there are " in capsys.readouterr().out


def test_groups_are_tried_at_the_same_thresholds():
    p = told(0.1, folds=4)
    chosen, found = asked(people(40), p)
    images = people(40).drop_duplicates("image")
    kinds = ["a" if pid < 20 else "b" for pid in images["pid"]]
    groups = {"kind": dict(zip(images["image"], kinds, strict=True))}
    got = group_errors(found.pairs["m"], groups, chosen["m"], p)
    boots = p.evaluation.bootstrap, p.seed
    assert got == sliced_errors(found.pairs["m"], groups, chosen["m"].at, 5, *boots)
    assert got["kind"]["groups"]["a"]["fmr"] > 0
    assert group_errors(pd.DataFrame(), {}, None, p) == {}
