"""Pre-training in a report: who is counted, what is measured on photographs that taught nothing."""

import numpy as np
import pandas as pd
import pytest

from handclip_lib.params import load, pretrain_variants
from handclip_lib.report import pretraining


@pytest.fixture
def pool() -> pd.DataFrame:
    """Persons 1 and 2 train on two aspects, 3 is held out; one photograph shows a ring."""
    rows = [
        *[("train", -1, pid, a, f"{a}{pid}_{i}") for pid in (1, 2) for a in "dp" for i in (0, 1)],
        ("train", -1, 1, "d", "ring"),
        *[("val", -1, pid, a, f"{a}{pid}_v") for pid in (1, 2) for a in "dp"],
        *[("select", 0, 3, "d", f"d3_{i}") for i in (0, 1)],
    ]
    frame = pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])
    return frame.replace({"aspect": {"d": "dorsal_r", "p": "palmar_r"}})


@pytest.fixture
def table(pool: pd.DataFrame) -> pd.DataFrame:
    return pool[["image"]].assign(accessories=(pool["image"] == "ring").astype(int))


def test_the_pool_is_counted_by_aspect_and_use(pool, table):
    told = pretraining.pool_table(pool, table)
    assert list(told.index) == ["dorsal right", "palmar right", "all"]
    assert told["learnt from", "persons"].tolist() == [2, 2, 2]
    assert told["learnt from", "photographs"].tolist() == [5, 4, 9]
    assert told["learnt from", "with accessories"].tolist() == [1, 0, 1]
    assert told["kept back", "photographs"].tolist() == [2, 2, 4]
    assert told["held out", "persons"].tolist() == [1, 0, 1]
    assert told["held out", "photographs"].tolist() == [2, 0, 2]
    plain = pretraining.pool_table(pool, table.drop(columns="accessories"))
    assert plain["learnt from", "with accessories"].tolist() == [0, 0, 0]


def _unit(rows: list[tuple[float, float]]) -> np.ndarray:
    z = np.array(rows)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_what_is_known_is_told_by_photographs_that_taught_nothing(pool):
    place = {1: (1.0, 0.0), 2: (0.0, 1.0), 3: (-1.0, 0.0)}
    right = _unit([place[pid] for pid in pool["pid"]])
    wrong = right.copy()
    wrong[(pool["split"] == "val") & (pool["pid"] == 1)] = place[2]
    known = pretraining.known_persons({"right": right, "wrong": wrong}, pool, "hand", k=3)
    assert known["right"]["knn"] == 1 and known["wrong"]["knn"] == 0.5
    assert known["right"]["alignment"] == pytest.approx(0)
    spoiled = right.copy()
    spoiled[pool["split"] == "train"] = (0.0, -1.0)  # what was learnt from has no say in these
    again = pretraining.known_persons({"x": spoiled}, pool, "hand", k=3)["x"]
    shown = ("alignment", "uniformity", "effective_rank")
    assert [again[n] for n in shown] == [known["right"][n] for n in shown]
    told = pretraining.known_table(known)
    assert told["nearest neighbours right (%)"].tolist() == ["100.0", "50.0"]
    assert list(told)[1:] == ["alignment", "uniformity", "effective rank"]


def test_without_two_photographs_of_an_identity_kept_back_neighbours_alone_are_told(pool):
    alone = pool[(pool["aspect"] == "dorsal_r") & (pool["split"] != "select")]
    z = _unit([(pid, 1.0) for pid in alone["pid"]])
    known = pretraining.known_persons({"x": z}, alone, "hand", k=1)
    assert known == {"x": {"knn": 1.0}}
    assert list(pretraining.known_table(known)) == ["nearest neighbours right (%)"]


def test_methods_say_in_what_they_differ():
    p = load(study="smoke", overrides={"pretrain.variants": ["moco_v3", "moco_v2", "supcon"]})
    told = pretraining.methods_table(pretrain_variants(p))
    assert list(told.index) == ["moco_v3", "moco_v2", "supcon"]
    assert told["labelled"].tolist() == ["0.0", "0.0", "1.0"]
    assert told["keys"].tolist() == ["momentum", "momentum", "tower"]
    assert told["queue"].tolist() == ["0", "4096", "0"]
    assert told.loc["moco_v2", "momentum"] == "(0.999, 0.999)"


def test_a_ring_marks_the_share_that_is_kept():
    facts = {
        "moco": {"alpha": 0.2, "held": {"0": 0.5, "0.2": 0.7, "1": 0.6}},
        "supcon": {"alpha": 0.0, "held": {"0": 0.5, "0.2": 0.4, "1": 0.3}},
    }
    ax = pretraining.share_curves(facts, "title").axes[0]
    lines = [line.get_xydata().tolist() for line in ax.lines]
    assert lines == [
        [[0, 0.5], [0.2, 0.7], [1, 0.6]],
        [[0.2, 0.7]],
        [[0, 0.5], [0.2, 0.4], [1, 0.3]],
        [[0, 0.5]],
    ]


def test_where_nobody_is_held_out_the_share_is_said():
    fig = pretraining.share_curves({"moco": {"alpha": 0.5, "held": {}}}, "title")
    assert "nobody is held out" in fig.get_supxlabel() and "moco 0.5" in fig.get_supxlabel()
