"""Figures of maps and pairs: that they show what they were given, and the right pairs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import ConnectionPatch, Rectangle

from handclip_lib.report import explain


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def test_maps_lie_over_their_photographs():
    maps = {"rollout": np.ones((3, 2, 4)), "CAM": np.zeros((3, 2, 4))}
    maps["rollout"][1, 0, 3] = 5.0
    fig = explain.map_grid(pictures(3), maps, "Title", ["1", "2", "3"])
    axes = np.array(fig.axes).reshape(3, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["photograph", "rollout", "CAM"]
    layer = axes[1, 1].images[1].get_array()
    assert layer.shape == (24, 32) and np.unravel_index(layer.argmax(), layer.shape)[1] > 24
    np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), pictures(3)[1])
    grey = axes[1, 1].images[0].get_array()
    assert (grey[..., 0] == grey[..., 2]).all()


def test_lines_join_the_places_that_agree():
    evidence = pd.DataFrame(
        {
            "query_row": [1], "query_column": [3], "gallery_row": [0], "gallery_column": [1],
            "similarity": [0.9],
        }
    )  # fmt: skip
    shown = pictures(2), np.ones((2, 2, 4))
    fig = explain.pair_board((*shown, evidence, "cosine 0.900"), "Title")
    left, right = fig.axes[:2]
    (frame,) = [p for p in left.patches if isinstance(p, Rectangle)]
    assert frame.get_xy() == (3 * 8 - 0.5, 12 - 0.5) and frame.get_width() == 8
    (line,) = [a for a in right.get_children() if isinstance(a, ConnectionPatch)]
    assert line.xy1 == (27.5, 17.5) and line.xy2 == (11.5, 5.5)
    assert left.get_xlabel() == "1 place agrees, cosine 0.90"
    assert fig.get_supxlabel() == "cosine 0.900"
    none = explain.pair_board((*shown, evidence[:0], "cosine 0.900"), "Title")
    assert none.axes[0].get_xlabel() == "no place agrees"


def test_the_hardest_pairs_are_one_of_each_two_persons():
    rows = [
        ("a", 1, "x", 2, 0.90), ("y", 2, "b", 1, 0.95), ("a", 1, "z", 3, 0.70),
        ("a", 1, "b", 1, 0.99), ("c", 2, "d", 2, 0.20), ("c", 2, "e", 2, 0.10),
    ]  # fmt: skip
    pairs = pd.DataFrame(rows, columns=["query", "pid", "gallery", "gallery_pid", "similarity"])
    asked: list[str] = []

    def pixels(names):
        asked.extend(names)
        return pictures(len(names))

    fig = explain.hardest_pairs(pairs, pixels, "Title", most=2, threshold=0.8)
    axes = np.array(fig.axes).reshape(2, 2)
    assert [ax.get_xlabel() for ax in axes.flat] == ["0.950", "0.700", "0.100", "0.990"]
    words = [ax.get_title() for ax in axes.flat]
    assert words == ["2 and 1", "1 and 3", "2", "1"]
    red = [ax.spines["left"].get_visible() for ax in axes.flat]
    assert red == [True, False, True, False]
    own = np.array([0.9, 0.99, 0.6, 0.995, 0.05, 0.05])  # each pair's threshold
    fig = explain.hardest_pairs(pairs, lambda n: pictures(len(n)), "Title", 2, own)
    red = [ax.spines["left"].get_visible() for ax in np.array(fig.axes)]
    assert red == [False, True, False, True]
    assert sorted(asked) == sorted(set(asked)) and set(asked) == {"a", "b", "c", "e", "y", "z"}
    only = explain.hardest_pairs(pairs[pairs["pid"] == pairs["gallery_pid"]], pixels, "Title")
    assert len(only.axes) == 4


def test_agreement_starts_at_one_and_may_be_unknown():
    values = {"output": np.array([0.5, np.nan]), "input": np.array([np.nan, np.nan])}
    fig = explain.randomisation({"CAM": values, "rollout": values}, "Title")
    lines = [line for line in fig.axes[0].lines if line.get_label() in ("CAM", "rollout")]
    assert [line.get_ydata()[0] for line in lines] == [1, 1]
    assert lines[0].get_ydata()[1] == 0.5 and np.isnan(lines[0].get_ydata()[2])


def test_deletions_stand_beside_each_other():
    score = {n: {"mean": m, "ci95": [m - 0.1, m + 0.1]} for n, m in
             (("top", -0.3), ("random", -0.1), ("lowest", 0.0))}  # fmt: skip
    fig = explain.deletions({"rollout": score, "CAM": score}, "Title", share=0.1)
    bars = fig.axes[0].patches
    assert [b.get_height() for b in bars[::2]] == pytest.approx([-0.3, -0.1, 0.0])
    assert fig.legends[0].get_texts()[0].get_text() == "top 10 %"


def test_names_below_the_bars_never_overlap():
    score = {n: {"mean": -0.1, "ci95": [-0.2, 0.0]} for n in ("top", "random", "lowest")}
    names = [f"stage3b_of_a_long_run_{k}\nraises the cosine" for k in range(6)]
    fig = explain.deletions(dict.fromkeys(names, score), "Title", share=0.1)
    fig.draw_without_rendering()
    boxes = [label.get_window_extent() for label in fig.axes[0].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    inside = fig.bbox
    assert boxes[0].x0 >= inside.x0 and boxes[-1].x1 <= inside.x1 and boxes[0].y0 >= inside.y0
