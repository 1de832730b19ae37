"""Groups of persons and photographs: who is in which, their scores, when there is no number."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from handclip_lib.evaluate.slices import group_errors, groups_of, sliced
from handclip_lib.evaluate.statistics import percentiles, person_bootstrap
from handclip_lib.report.groups import (
    error_table,
    identity_accuracy,
    intervals,
    scenario_name,
    slice_intervals,
    slice_table,
)


def make_table(persons=20):
    """Two aspects, three photographs each; persons 1, 5, 9 … wear polish in one photograph."""
    rows = [
        {
            "image": f"{pid}_{aspect}_{shot}.jpg", "pid": pid, "aspect": aspect,
            "gender": "male" if pid % 2 else "female", "age": 18 + pid,
            "skinColor": "medium", "nailPolish": int(pid % 4 == 1 and shot == 0),
            "irregularities": int(pid == 2),
        }
        for pid in range(1, persons + 1) for aspect in ("a", "b") for shot in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_frame(table, seed=0):
    """Scores of every photograph as a query of two draws, women's the better ones."""
    rng, rows = np.random.default_rng(seed), []
    for draw in range(2):
        for image, pid, gender in zip(table["image"], table["pid"], table["gender"], strict=True):
            ap = rng.random() * (1.0 if gender == "female" else 0.6)
            rows.append((draw, image, pid, float(ap > 0.5), ap))
    return pd.DataFrame(rows, columns=["draw", "image", "pid", "rank1", "ap"])


def persons_of(groups):
    """{person: group} of {image: group} by names such as 7_a_0.jpg; nobody is in two."""
    found = {int(image.partition("_")[0]): group for image, group in groups.items()}
    assert all(found[int(image.partition("_")[0])] == group for image, group in groups.items())
    return found


def test_a_person_is_in_one_group_whatever_a_photograph_says():
    table = make_table()
    table.loc[(table["pid"] == 4) & table["image"].str.endswith("2.jpg"), "gender"] = "male"
    groups = groups_of(table, list(table["image"]))
    assert list(groups) == ["gender", "age", "nailPolish", "irregularities"]  # one tone of skin
    men = {p: "male" if p % 2 else "female" for p in range(1, 21)}
    assert persons_of(groups["gender"]) == men and set(groups["gender"]) == set(table["image"])
    tied = table[(table["pid"] < 6) & table["image"].str.endswith(("1.jpg", "2.jpg"))]
    told = persons_of(groups_of(table, list(tied["image"]))["gender"])
    assert told[4] == "female"  # one photograph in two: the first name is taken


def test_polish_is_a_photographs_own():
    table = make_table()
    groups = groups_of(table, list(table["image"]))
    first = {f"{p}_{a}_0.jpg" for p in (1, 5, 9, 13, 17) for a in "ab"}
    assert {i for i, g in groups["nailPolish"].items() if g == "yes"} == first
    assert set(groups["nailPolish"]) == set(table["image"])
    assert persons_of(groups["irregularities"]) == {
        p: "yes" if p == 2 else "no" for p in range(1, 21)
    }
    plain = list(table.loc[~table["image"].str.endswith("0.jpg"), "image"])
    assert "nailPolish" not in groups_of(table, plain)


def test_ages_are_banded_in_their_order_and_gaps_are_nobodys_group():
    table = make_table().astype({"age": "object"})
    table.loc[table["pid"] == 7, ["age", "gender"]] = ["", None]
    groups = groups_of(table, list(table["image"]), ages=(21, 30, 31))
    bands, ages = dict.fromkeys(groups["age"].values()), persons_of(groups["age"])
    assert list(bands) == ["below 21", "21 to 29", "30 to 30", "from 31"]
    assert ages[2] == "below 21" and ages[3] == "21 to 29"
    assert ages[12] == "30 to 30" and ages[20] == "from 31"
    assert 7 not in ages and 7 not in persons_of(groups["gender"])
    assert groups_of(table.drop(columns=["gender", "age", "irregularities"]), ["1_a_0.jpg"]) == {}


def test_scores_are_those_of_the_groups_persons():
    table = make_table()
    frame = make_frame(table)
    groups = groups_of(table, list(frame["image"]))
    found = sliced(frame, groups, bootstrap=300, seed=5)
    json.dumps(found, allow_nan=False)
    women = frame[frame["pid"] % 2 == 0]
    got = found["gender"]["groups"]["female"]
    assert (got["persons"], got["queries"]) == (10, len(women)) == (10, 120)
    for metric, column in (("rank1", "rank1"), ("map", "ap")):
        assert got[metric]["mean"] == pytest.approx(women[column].mean())
        known = person_bootstrap(women[column], women["pid"], 300, 5)
        assert got[metric]["ci95"] == pytest.approx(known, abs=1e-12)
    counts = [g["queries"] for g in found["irregularities"]["groups"].values()]
    assert sum(counts) == len(frame)


def test_a_query_with_polish_is_scored_with_others_that_have_it():
    """Persons who have photographs of both kinds are drawn for both groups at once."""
    table = make_table(12)
    first = table["image"].str.endswith("0.jpg")
    table["nailPolish"] = (first & (table["pid"] <= 8)).astype(int)
    frame = make_frame(table)
    frame["ap"] += 0.8 * (frame["pid"] % 3 == 0)  # a person's photographs are alike
    found = sliced(frame, groups_of(table, list(frame["image"])), bootstrap=400, seed=1)
    with_, without = (found["nailPolish"]["groups"][g] for g in ("yes", "no"))
    mine = frame["image"].isin(table.loc[table["nailPolish"] == 1, "image"])
    assert (with_["persons"], with_["queries"]) == (8, 8 * 2 * 2)
    assert (without["persons"], without["queries"]) == (12, len(frame) - 32)
    assert with_["map"]["mean"] == pytest.approx(frame.loc[mine, "ap"].mean())
    known = person_bootstrap(frame.loc[mine, "ap"], frame.loc[mine, "pid"], 400, 1)
    assert with_["map"]["ci95"] == pytest.approx(known, abs=1e-12)
    between, draws = found["nailPolish"]["between"]["map"], []
    for times in np.random.default_rng((1, 0)).multinomial(12, np.full(12, 1 / 12), 400):
        weights = times[frame["pid"] - 1]
        means = [np.average(frame["ap"][at], weights=weights[at]) for at in (mine, ~mine)]
        draws.append(means[0] - means[1])
    span = np.quantile(draws, percentiles(8))
    sign = 1 if between["best"] == "yes" else -1
    np.testing.assert_allclose(sorted(sign * np.array(between["ci95"])), span)


def test_few_persons_have_no_number_but_are_counted():
    table = make_table(9)
    frame = make_frame(table)
    groups = groups_of(table, list(frame["image"]))
    found = sliced(frame, groups, bootstrap=50)
    one = found["irregularities"]["groups"]["yes"]
    assert one == {"persons": 1, "queries": 12, "rank1": None, "map": None}
    assert found["irregularities"]["between"] == {"rank1": None, "map": None}
    assert found["gender"]["groups"]["female"]["rank1"] is None  # four
    assert sliced(frame, groups, minimum=4, bootstrap=50)["gender"]["between"]["map"] is not None
    alone = sliced(frame, groups, minimum=1, bootstrap=50)["irregularities"]["groups"]["yes"]
    assert alone["rank1"] is None  # one person has no interval


def test_difference_of_best_and_worst_with_persons_resampled_within():
    table = make_table()
    frame = make_frame(table)
    groups = groups_of(table, list(frame["image"]), ["gender"])
    between = sliced(frame, groups, bootstrap=4000)["gender"]["between"]["map"]
    means = {g: frame.loc[frame["image"].map(groups["gender"]) == g, "ap"].mean()
             for g in ("male", "female")}  # fmt: skip
    assert (between["best"], between["worst"]) == ("female", "male")
    assert between["difference"] == pytest.approx(means["female"] - means["male"])
    low, high = between["ci95"]
    assert 0 < low < between["difference"] < high
    # two independent means: variances add
    of = {g: frame[frame["image"].map(groups["gender"]) == g] for g in means}
    widths = [np.subtract(*person_bootstrap(f["ap"], f["pid"], 4000)) for f in of.values()]
    assert high - low == pytest.approx(np.hypot(*widths), rel=0.08)


# -- errors at a threshold ------------------------------------------------------------------------


def make_pairs(shots=5):
    """Six persons, each with queries against every person: a's are alike, b's are not."""
    rows = []
    for q in range(6):
        for g in range(6):
            alike = 0.8 if q == g else (0.6 if q < 3 and g < 3 else 0.2)
            rows += [(q, g, alike - 0.4 * (q == g == 5 and k == 0), q == g) for k in range(shots)]
    columns = ["query_person", "gallery_person", "similarity", "genuine"]
    return named(pd.DataFrame(rows, columns=columns))


def named(pairs):
    """With the names of photographs, each person's two: one as a query and one in the gallery."""
    sides = {side: pairs[f"{side}_person"].map(str) + f"_{side}" for side in ("query", "gallery")}
    return pairs.assign(**sides)


def by_person(of):
    return {"kind": {f"{p}_{side}": g for p, g in of.items() for side in ("query", "gallery")}}


def test_errors_of_pairs_within_a_group_at_a_threshold():
    groups = by_person({p: "a" if p < 3 else "b" for p in range(6)})
    found = group_errors(make_pairs(10), groups, threshold=0.6, minimum=3)["kind"]["groups"]
    a, b = found["a"], found["b"]
    assert (a["persons"], a["n_genuine"], a["n_impostor"]) == (3, 30, 60)
    assert a["fmr"] == 1.0 and a["fmr_upper"] is None  # at the threshold is above it
    assert a["fnmr"] == 0.0 and a["fnmr_upper"] == pytest.approx(3 / 30)
    assert b["fmr"] == 0.0 and b["fmr_upper"] == pytest.approx(3 / 60)
    assert b["fnmr"] == pytest.approx(1 / 30) and b["fnmr_upper"] is None


def test_error_rates_of_few_persons_or_pairs_are_withheld():
    groups = by_person({p: "a" if p < 3 else "b" for p in range(6)})
    few = group_errors(make_pairs(), groups, threshold=0.5)["kind"]["groups"]["a"]
    assert few["fmr"] is None and few["fnmr"] is None and few["n_impostor"] == 30
    assert few["fmr_upper"] is None and few["fnmr_upper"] is None
    told = group_errors(make_pairs(), groups, threshold=0.5, minimum=3)["kind"]["groups"]["a"]
    assert told["fmr"] == 1.0 and told["fnmr"] is None  # 30 impostor pairs, 15 genuine ones


def noisy_pairs(persons=16, shots=6, seed=0):
    """The first half resembles each other more than the second does, and some persons anybody."""
    rng, half = np.random.default_rng(seed), persons // 2
    alike = rng.normal(0, 0.7, persons) + 1.5 * (np.arange(persons) < half)
    q, g = (side.ravel() for side in np.meshgrid(np.arange(persons), np.arange(persons)))
    q, g = np.repeat(q, shots), np.repeat(g, shots)
    scores = rng.normal(alike[q] + alike[g] + 3 * (q == g), 1)
    columns = {"query_person": q, "gallery_person": g, "similarity": scores, "genuine": q == g}
    return named(pd.DataFrame(columns)), by_person(
        {p: "a" if p < half else "b" for p in range(persons)}
    )


def written_out(pairs, times, genuine):
    """The error rate of one resampled study, every pair written out as often as it counts."""
    wrong = total = 0.0
    for q, g, score, same in pairs[
        ["query_person", "gallery_person", "similarity", "genuine"]
    ].to_numpy():
        if same == genuine:
            weight = times[int(q)] * (1 if q == g else times[int(g)])
            wrong, total = wrong + weight * ((score >= 2.0) != same), total + weight
    return wrong / total if total else np.nan


def test_error_rates_of_groups_have_intervals_over_persons_on_both_sides():
    pairs, groups = noisy_pairs()
    found = group_errors(pairs, groups, threshold=2.0, bootstrap=40, seed=3)["kind"]
    json.dumps(found, allow_nan=False)
    draws = {}
    for side, (name, low) in enumerate((("a", 0), ("b", 8))):
        part = pairs[pairs["query_person"].between(low, low + 7)]
        part = part[part["gallery_person"].between(low, low + 7)]
        for seed, key in ((3, name), ((3, side), f"{name} apart")):
            times = np.random.default_rng(seed).multinomial(8, np.full(8, 1 / 8), 40)
            padded = np.pad(times, ((0, 0), (low, 8 - low)))
            draws[key] = {g: [written_out(part, t, g) for t in padded] for g in (True, False)}
        for rate, genuine in (("fnmr", True), ("fmr", False)):
            span = np.quantile(draws[name][genuine], percentiles(8))
            np.testing.assert_allclose(found["groups"][name]["ci95"][rate], span, atol=1e-9)
    between = found["between"]["fmr"]
    rates = {g: found["groups"][g]["fmr"] for g in "ab"}
    assert (between["best"], between["worst"]) == ("b", "a")  # fewer errors are better
    assert between["difference"] == pytest.approx(rates["a"] - rates["b"]) and rates["a"] > 0.1
    apart = np.subtract(draws["a apart"][False], draws["b apart"][False])
    np.testing.assert_allclose(between["ci95"], np.quantile(apart, percentiles(8)), atol=1e-9)
    table = error_table({"kind": found})
    assert table.loc[("kind", "difference"), "FMR (%)"].startswith("a over b: ")
    low, high = (100 * end for end in found["groups"]["a"]["ci95"]["fmr"])
    shown = f"{100 * rates['a']:.1f}\u00a0[{low:.1f},\u00a0{high:.1f}]"
    assert table.loc[("kind", "a"), "FMR (%)"] == shown


def test_a_rate_without_a_number_has_no_interval_and_no_difference():
    groups = by_person({p: "a" if p < 3 else "b" for p in range(6)})
    found = group_errors(make_pairs(), groups, threshold=0.5)["kind"]
    assert found["groups"]["a"]["ci95"] == {"fnmr": None, "fmr": None}
    assert found["between"] == {"fnmr": None, "fmr": None}
    assert error_table({"kind": found}).loc[("kind", "difference"), "FNMR (%)"] == "–"


def test_a_genuine_pair_is_in_the_group_of_its_query_and_an_impostor_of_both_sides():
    pairs = make_pairs(10)
    groups = by_person({p: "a" if p < 5 else "b" for p in range(6)})
    groups["kind"]["0_gallery"] = "b"  # another kind of photograph of the same person
    a = group_errors(pairs, groups, threshold=0.7, minimum=2)["kind"]["groups"]["a"]
    asked, met = pairs["query_person"] < 5, pairs["gallery_person"].between(1, 4)
    assert a["n_genuine"] == 50 and a["persons"] == 5
    assert a["n_impostor"] == (asked & met & ~pairs["genuine"]).sum() == 160


# -- figures and tables ---------------------------------------------------------------------------


def test_tables_say_where_there_is_no_number():
    table = make_table(16)
    frame = make_frame(table)
    found = sliced(frame, groups_of(table, list(frame["image"])), bootstrap=50)
    shown = slice_table(found)
    assert shown.loc[("irregularities", "yes"), "mAP"] == "no number"
    assert shown.loc[("gender", "female"), "persons"] == 8
    assert "female over male" in shown.loc[("gender", "difference"), "mAP"]
    assert slice_table({}).empty
    groups = {"nailPolish": by_person({p: "no" if p < 3 else "yes" for p in range(6)})["kind"]}
    errors = error_table(group_errors(make_pairs(), groups, threshold=0.7, minimum=3))
    assert errors.loc[("nail polish", "no"), "FMR (%)"] == "0.0 (< 10)"
    assert errors.loc[("nail polish", "no"), "FNMR (%)"] == "no number"


def test_a_group_of_which_nobody_was_asked_for_is_left_out():
    frame = make_frame(make_table(8))
    half = dict(zip(frame["image"], frame["pid"].map(lambda p: "ab"[p > 4]), strict=True))
    found = sliced(frame, {"kind": half | {"other.jpg": "nobody asked"}}, 2, bootstrap=20)
    assert found["kind"]["groups"]["nobody asked"]["persons"] == 0
    assert slice_table(found).index.get_level_values(1).tolist() == ["a", "b", "difference"]
    labels = [t.get_text() for t in slice_intervals(found, "t").axes[0].get_yticklabels()]
    assert labels == ["kind", "a (4 persons)", "b (4 persons)"]
    of = by_person({p: "ab"[p > 2] for p in range(6)})["kind"] | {"other.jpg": "nobody asked"}
    wrong = group_errors(make_pairs(), {"kind": of}, threshold=0.7, minimum=2)
    assert error_table(wrong).index.get_level_values(1).tolist() == ["a", "b", "difference"]


def test_figures_are_of_fixed_size_and_show_every_group():
    table = make_table(16)
    frame = make_frame(table)
    found = sliced(frame, groups_of(table, list(frame["image"])), bootstrap=50)
    fig = slice_intervals(found, "drawn hands, n = 16")
    left, right = fig.axes
    labels = [t.get_text() for t in left.get_yticklabels()]
    assert labels[:3] == ["gender", "female (8 persons)", "male (8 persons)"]
    assert "yes (1 person)" in labels and not any(t.get_text() for t in right.get_yticklabels())
    words = [t.get_text() for t in right.texts]
    assert words.count("no number") == sum(
        g["map"] is None for of in found.values() for g in of["groups"].values()
    )
    means = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert found["gender"]["groups"]["female"]["rank1"]["mean"] in means
    assert slice_intervals({}, "none").axes
    assert not plt.get_fignums()


def test_scenarios_and_persons_are_drawn():
    score = {m: {"mean": 0.5, "ci95": [0.4, 0.6]} for m in ("rank1", "map")}
    score |= {"persons": 20, "queries": 90, "gallery": 80}
    models = {"one": {"own": score, "cross_dorsal_l": score}, "two": {"cross_dorsal_l": score}}
    fig = intervals(models, "scenarios")
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert labels == [
        "own gallery\n20 persons, gallery of 80", "in dorsal left\n20 persons, gallery of 80"
    ]  # fmt: skip
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["one", "two"]
    assert scenario_name("person_level") == "any hand of the person"
    assert intervals({}, "none").get_supxlabel() == "no scenario could be scored"
    columns = {"rank1": [0.2, 1.0], "low": [0.1, 0.7], "high": [0.4, 1.0], "photographs": [9, 4]}
    fig = identity_accuracy(pd.DataFrame(columns, index=[7, 3]), "persons")
    dots = fig.axes[0].collections[1].get_offsets()
    np.testing.assert_allclose(dots, [[0, 0.2], [1, 1.0]])
    assert "44.6 %" in fig.axes[0].get_xlabel()
