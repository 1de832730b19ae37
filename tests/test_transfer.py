"""What a chain keeps and passes on, by hand, with intervals; and galleries across aspects."""

import json

import numpy as np
import pandas as pd
import pytest

from handclip_lib.data.manifest import SplitError, order
from handclip_lib.evaluate.cross import cross_manifest, cross_scores
from handclip_lib.evaluate.protocol import evaluate, per_query
from handclip_lib.evaluate.statistics import percentiles, person_bootstrap
from handclip_lib.evaluate.transfer import (
    Cells,
    cells,
    compare,
    from_plain,
    intervals,
    matrix,
    pool,
    to_plain,
    transfer,
)

CHAIN = [(1, 1), (2, 2), (3, 3), (4, 4)]
# Rows: zero-shot, then four steps; columns: tasks. Tenths, so that sums are plain.
R = np.array(
    [
        [0.5, 0.4, 0.7, 0.2],
        [0.9, 0.6, 0.3, 0.3],
        [0.8, 0.8, 0.4, 0.4],
        [0.6, 0.9, 0.6, 0.5],
        [0.7, 0.6, 0.5, 0.9],
    ]
)


def make_frame(pids, score, draws=1):
    """A per-query frame: one query for each pid given, with its score."""
    rows = [(d, f"{i}.jpg", pid) for d in range(draws) for i, pid in enumerate(pids)]
    frame = pd.DataFrame(rows, columns=["draw", "image", "pid"])
    return frame.assign(rank1=np.resize(np.asarray(score, dtype=float), len(rows)), ap=0.5)


def make_cells(rows=3, tasks=("a", "b"), persons=20, seed=0):
    """Cells of random scores: every person is asked for one to five times in every task."""
    rng = np.random.default_rng(seed)
    pids = {task: np.repeat(np.arange(persons), rng.integers(1, 6, persons)) for task in tasks}
    frames = {
        f"row {i}": {t: make_frame(who, rng.random(len(who))) for t, who in pids.items()}
        for i in range(rows)
    }
    return cells(frames, "rank1")


def with_sums(of, sums):
    return Cells(of.rows, of.tasks, of.persons, np.asarray(sums), of.counts)


def test_a_matrix_worked_by_hand():
    got = transfer(R, CHAIN)
    # the last row: (.7 + .6 + .5 + .9) / 4
    assert got["average"] == pytest.approx(0.675)
    # last row less the task's own step: (.7 - .9) + (.6 - .8) + (.5 - .6) = -.5, of three tasks
    assert got["backward"] == pytest.approx(-0.5 / 3)
    # the row before the task's own step less row 0: (.6 - .4) + (.4 - .7) + (.5 - .2) = .2
    assert got["forward"] == pytest.approx(0.2 / 3)
    # best of rows 0 to 3 less the last: .9 - .7, .9 - .6, .7 - .5 (row 0), .5 - .9
    assert got["forgetting_by_task"] == pytest.approx([0.2, 0.3, 0.2, -0.4])
    assert got["forgetting"] == pytest.approx(0.7 / 3)  # the last task was not followed
    json.dumps(got, allow_nan=False)


def test_a_task_that_is_taught_twice_counts_from_its_first_and_its_last_step():
    got = transfer(R[:4, :2], [(1, 3), (2, 2)])
    assert got["backward"] == pytest.approx(0.9 - 0.8)  # only the second task was followed
    assert got["forward"] == pytest.approx(0.6 - 0.4)  # only the second was first taught later
    assert got["forgetting"] == pytest.approx(0.8 - 0.9)
    assert got["forgetting_by_task"] == pytest.approx([0.9 - 0.6, 0.8 - 0.9])
    later = transfer(R[:4, :2], [(2, 3), (1, 1)])
    assert later["forward"] == pytest.approx(0.9 - 0.5)
    assert later["backward"] == pytest.approx(0.9 - 0.6)
    followed = transfer(R[:, :2], [(1, 3), (4, 4)])
    assert followed["backward"] == pytest.approx(0.7 - 0.6)  # against row 3, not row 1


def test_without_a_task_of_the_kind_there_is_no_number():
    of = make_cells(rows=2)
    joint = transfer(matrix(of), [(1, 1), (1, 1)])
    assert joint["average"] == pytest.approx(matrix(of)[1].mean())
    assert [joint[n] for n in ("backward", "forward", "forgetting")] == [None] * 3
    assert len(joint["forgetting_by_task"]) == 2
    assert intervals(of, [(1, 1), (1, 1)], 50)["forward"] is None
    change = compare(of, of, [(1, 1), (1, 1)], [(1, 1), (1, 1)], 50)
    assert change["forgetting"] == {"difference": None, "ci95": None}


@pytest.mark.parametrize("learned", [CHAIN[:3], [(0, 1)] * 4, [(1, 5)] * 4, [(3, 2)] * 4, []])
def test_steps_that_are_no_rows_are_refused(learned):
    with pytest.raises(ValueError, match="names no rows of a matrix of 5 x 4"):
        transfer(R, learned)


def test_matrix_has_the_means_of_the_protocol():
    tested = {aspect: make_manifest(aspect, range(3, 12)) for aspect in "ab"}
    frames, expected = {}, []
    for row in range(2):
        told = {aspect: (*embed(m, noise=2.0, seed=row), m) for aspect, m in tested.items()}
        frames[f"row {row}"] = {aspect: per_query(*of) for aspect, of in told.items()}
        expected.append([evaluate(*of, bootstrap=10)["own"] for of in told.values()])
    for metric in ("rank1", "map"):
        means = [[scores[metric]["mean"] for scores in row] for row in expected]
        assert matrix(cells(frames, metric)) == pytest.approx(np.array(means), abs=1e-12)
        assert 0.05 < np.min(means) < np.max(means) < 0.95


def test_a_pid_is_one_person_in_all_tasks_of_a_data_set():
    one = {"a": make_frame([7, 7, 8], [1, 0, 1]), "b": make_frame([8, 9], [0, 1])}
    of = cells({"zero_shot": one}, "rank1")
    assert of.persons == ("7", "8", "9")
    assert of.counts.tolist() == [[2, 1, 0], [0, 1, 1]]
    assert of.sums.tolist() == [[[1, 1, 0], [0, 0, 1]]]
    apart = cells({"zero_shot": one}, "rank1", {"a": "11k", "b": "HD"})
    assert apart.persons == ("11k 7", "11k 8", "HD 8", "HD 9")
    assert matrix(apart).tolist() == matrix(of).tolist()


def test_rows_that_did_not_answer_the_same_queries_are_refused():
    frame = make_frame([1, 1, 2, 3], [0, 1, 1, 0])
    for other in (frame.iloc[[1, 0, 2, 3]], frame.iloc[:3], frame.assign(pid=[1, 2, 2, 3])):
        with pytest.raises(ValueError, match="row step did not answer the queries of a"):
            cells({"zero_shot": {"a": frame}, "step": {"a": other}}, "rank1")
    for tasks in ({}, {"a": frame, "b": frame}):
        with pytest.raises(ValueError, match="row step has the tasks"):
            cells({"zero_shot": {"a": frame}, "step": tasks}, "rank1")


def test_intervals_equal_a_loop_over_resamples_of_persons():
    of, learned = make_cells(persons=6), [(1, 1), (2, 2)]
    got = intervals(of, learned, samples=100, seed=3)
    tables = []
    for times in np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=100):
        who = np.repeat(np.arange(6), times)  # one draw of persons for all cells
        tables.append(of.sums[..., who].sum(-1) / of.counts[:, who].sum(-1))
    ends = percentiles((of.counts > 0).sum(axis=1).min())
    expected = np.quantile(tables, ends, axis=0)
    np.testing.assert_allclose(got["matrix"], np.moveaxis(expected, 0, -1), atol=1e-12)
    for name in ("average", "backward", "forward", "forgetting"):
        values = [transfer(table, learned)[name] for table in tables]
        assert got[name] == pytest.approx(np.quantile(values, ends), abs=1e-12), name


def test_one_task_has_the_interval_of_the_protocol():
    frame = make_frame(np.repeat(np.arange(10, 40), 4), np.random.default_rng(0).random(120))
    of = cells({"zero_shot": {"a": frame}, "step": {"a": frame}}, "rank1")
    expected = person_bootstrap(frame["rank1"], frame["pid"], 500, 4)
    assert intervals(of, [(1, 1)], 500, 4)["average"] == pytest.approx(expected, abs=1e-12)


def test_cells_without_an_error_have_the_interval_of_the_protocol():
    frame = make_frame(np.repeat(np.arange(10, 40), 4), np.ones(120))
    other = make_frame(np.repeat(np.arange(10, 40), 4), np.random.default_rng(0).random(120))
    row = {"a": frame, "b": frame}
    of = cells({"zero_shot": {"a": frame, "b": other}, "step": row}, "rank1")
    got = intervals(of, [(1, 1), (1, 1)], 200)
    sure = person_bootstrap(frame["rank1"], frame["pid"])
    for one in (got["matrix"][0, 0], got["matrix"][1, 1], got["averages"][1], got["average"]):
        assert tuple(one) == pytest.approx(sure, abs=1e-12) and sure[0] < 0.9
    assert got["averages"][0][1] < 1


def test_resamples_of_all_cells_are_tied():
    of, learned = make_cells(), [(1, 1), (2, 2)]
    one, count = of.sums[0, 0], of.counts[0]
    alike = Cells(of.rows, of.tasks, of.persons, of.sums, np.stack([count, count]))
    same = with_sums(alike, np.broadcast_to(one, of.sums.shape))
    got = intervals(same, learned, 200)
    assert got["backward"] == got["forward"] == got["forgetting"] == (0, 0)
    # two tasks that are one: their mean is as uncertain as either
    assert got["average"] == pytest.approx(got["matrix"][2, 0], abs=1e-12)
    assert got["average"][1] - got["average"][0] > 0.05
    # what one task gains the other loses
    against = with_sums(alike, [[one, count - one]] * 3)
    assert intervals(against, learned, 200)["average"] == pytest.approx((0.5, 0.5), abs=1e-12)


def test_a_task_is_never_left_without_a_person():
    wide = make_frame(np.arange(40), 0.5)
    frames = {"a": wide, "b": make_frame([1, 2], [0, 1]), "c": make_frame([90, 91], [1, 0])}
    of = cells({"zero_shot": frames, "step": frames}, "rank1")
    got = intervals(of, [(1, 1)] * 3, 300)
    assert np.isfinite(got["matrix"]).all()
    assert got["matrix"][1, 2].tolist() == [0, 1]
    few = {"a": wide, "b": make_frame([1, 1], [0, 1])}
    with pytest.raises(ValueError, match="b: an interval over persons needs at least two, got 1"):
        intervals(cells({"zero_shot": few, "step": few}, "rank1"), [(1, 1)] * 2)
    with pytest.raises(ValueError, match="must be at least 1"):
        intervals(of, [(1, 1)] * 3, samples=0)


def test_the_same_persons_are_resampled_for_both_of_a_comparison():
    a, learned = make_cells(rows=3), [(1, 1), (2, 2)]
    shift = 0.1 * np.arange(3)[:, None, None] * a.counts  # row i is 0.1 i better everywhere
    b = with_sums(a, a.sums + shift)
    got = compare(a, b, learned, learned, 200)
    assert got["average"]["difference"] == pytest.approx(0.2)
    assert got["average"]["ci95"] == pytest.approx((0.2, 0.2), abs=1e-12)
    before, after = (transfer(matrix(of), learned)["forgetting"] for of in (a, b))
    assert got["forgetting"]["difference"] == pytest.approx(after - before)
    # the same tasks in another order, taught in that order
    turned = Cells(b.rows, b.tasks[::-1], b.persons, b.sums[:, ::-1], b.counts[::-1])
    again = compare(a, turned, learned, learned[::-1], 200)
    for name in got:
        assert again[name]["ci95"] == pytest.approx(got[name]["ci95"], abs=1e-12)
    with pytest.raises(ValueError, match="same tasks, persons and queries"):
        compare(a, make_cells(rows=3, seed=1), learned, learned)


def test_seeds_pool_by_person():
    of = make_cells()
    twice = pool([of, of])
    np.testing.assert_array_equal(twice.counts, 2 * of.counts)
    np.testing.assert_allclose(matrix(twice), matrix(of), atol=1e-12)
    learned = [(1, 1), (2, 2)]
    # two seeds are no further persons: no interval narrows
    for name in ("average", "forgetting"):
        got, alone = (intervals(c, learned, 100)[name] for c in (twice, of))
        assert got == pytest.approx(alone, abs=1e-12)
    one = cells({"r": {"a": make_frame([10, 9], [1, 0])}}, "rank1")
    other = cells({"r": {"a": make_frame([9, 11, 11], [1, 0, 1])}}, "rank1")
    both = pool([one, other])
    assert both.persons == ("10", "11", "9")
    assert both.counts.tolist() == [[1, 2, 2]] and both.sums.tolist() == [[[1, 1, 1]]]
    with pytest.raises(ValueError, match="same rows and tasks"):
        pool([of, one])


def test_cells_come_back_from_json_as_they_were():
    of = make_cells()
    back = from_plain(json.loads(json.dumps(to_plain(of), allow_nan=False)))
    assert (back.rows, back.tasks, back.persons) == (of.rows, of.tasks, of.persons)
    np.testing.assert_array_equal(back.sums, of.sums)
    np.testing.assert_array_equal(back.counts, of.counts)
    assert back.counts.dtype == of.counts.dtype


# -- galleries across aspects ---------------------------------------------------------------------


def make_manifest(aspect, persons, shots=4, draws=3, single=()):
    """One gallery photograph a person and draw; persons in `single` have no other."""
    rows = []
    for draw in range(draws):
        for pid in persons:
            own = [f"{aspect}/{pid:03d}_{s}.jpg" for s in range(1 if pid in single else shots)]
            chosen = (pid + draw) % len(own)
            kinds = ("gallery" if s == chosen else "query" for s in range(len(own)))
            rows += [(kind, draw, pid, aspect, i) for kind, i in zip(kinds, own, strict=True)]
            rows.append(("gallery_all", draw, pid, aspect, own[chosen]))
    rows.append(("train", -1, 999, aspect, f"{aspect}/never_embedded.jpg"))
    return order(rows)


def embed(manifest, noise, seed=0):
    """Unit features of the images tested, around a centre of each person."""
    images = list(manifest.loc[manifest["split"] != "train", "image"].unique())
    return features_of(noise, seed)(images), images


def features_of(noise, seed=0):
    def asked(images):
        assert not any("never" in image for image in images)
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(100, 16))
        z = centres[[int(image[2:5]) for image in images]]
        z = z + noise * rng.normal(size=z.shape)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    return asked


def test_a_manifest_with_itself_is_its_own_gallery():
    manifest = make_manifest("a", range(3, 15), single=(5,))
    again = cross_manifest(manifest, manifest)
    own = manifest[manifest["split"].isin(("query", "gallery"))].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, own, check_flags=False)
    assert again.attrs == {"left_out": 0}
    z, images = embed(manifest, noise=1.5)
    expected = evaluate(z, images, manifest, bootstrap=200, seed=5)["own"]
    feature = dict(zip(images, z, strict=True))
    told = cross_scores(
        lambda wanted: np.array([feature[i] for i in wanted]), {"a": manifest}, "map", 200, 5
    )
    assert told["mean"][0, 0] == pytest.approx(expected["map"]["mean"], abs=1e-12)
    assert [told["low"][0, 0], told["high"][0, 0]] == pytest.approx(expected["map"]["ci95"])
    assert told["persons"].tolist() == [[expected["persons"]]] == [[11]]
    assert 0.05 < told["mean"][0, 0] < 0.95


def test_persons_of_one_aspect_only():
    a, b = make_manifest("a", (1, 2, 3, 4)), make_manifest("b", (3, 4, 5), single=(3,))
    cross = cross_manifest(a, b)
    asked = cross[cross["split"] == "query"]
    entries = cross[cross["split"] == "gallery"]
    assert set(asked["pid"]) == {3, 4} and set(asked["aspect"]) == {"a"}
    assert set(entries["pid"]) == {3, 4, 5} and set(entries["aspect"]) == {"b"}
    assert len(entries) == 3 * 3 and len(asked) == 3 * 2 * 3  # draws x persons (x photographs)
    assert cross.attrs == {"left_out": 2}
    wanted = b[b["split"] == "gallery"]
    assert list(entries["image"]) == list(wanted["image"])  # each draw its own entries
    assert list(entries["draw"]) == list(wanted["draw"])
    # person 3 has one photograph in b: found there, but not asked for from there
    with pytest.raises(SplitError, match="1 of the 2 persons asked for"):
        cross_manifest(b, a)


def test_a_draw_that_one_manifest_lacks_is_not_asked():
    cross = cross_manifest(make_manifest("a", (1, 2)), make_manifest("b", (1, 2), draws=2))
    assert sorted(set(cross["draw"])) == [0, 1]
    fewer = cross_manifest(make_manifest("a", (1, 2), draws=2), make_manifest("b", (1, 2)))
    assert sorted(set(fewer["draw"])) == [0, 1]


def test_cross_scores_of_perfect_features_and_a_pair_without_persons(capsys):
    manifests = {
        "a": make_manifest("a", range(1, 9)),
        "b": make_manifest("b", range(5, 13)),
        "c": make_manifest("c", range(8, 30)),
    }
    got = cross_scores(features_of(1e-3), manifests, "rank1", 50)
    assert got["persons"].tolist() == [[8, 4, 0], [4, 8, 5], [0, 5, 22]]
    expected = np.ones((3, 3))
    expected[0, 2] = expected[2, 0] = np.nan  # they share person 8 alone
    least = expected * 0.025 ** (1 / np.maximum(got["persons"], 1))  # Clopper & Pearson
    for name, of in (("mean", expected), ("low", least), ("high", expected)):
        np.testing.assert_allclose(got[name], of)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out")[0] for line in printed] == ["a in c", "c in a"]
    assert "1 of the 8 persons asked for" in printed[0]


def test_cross_scores_are_by_query_row_and_gallery_column():
    a, b = make_manifest("a", range(1, 30)), make_manifest("b", range(1, 60))
    calls = []

    def counted(images):
        calls.append(len(images))
        return features_of(3.0)(images)

    got = cross_scores(counted, {"a": a, "b": b}, "rank1", 50)
    assert calls == [29 * 4 + 59 * 4]
    assert got["persons"].tolist() == [[29, 29], [29, 59]]
    # the larger gallery is the harder one
    assert got["mean"][0, 1] < got["mean"][1, 0]
    assert (got["low"] <= got["mean"]).all() and (got["mean"] <= got["high"]).all()
