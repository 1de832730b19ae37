"""Models side by side: tests agree with the tables, and the figures show what they should."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from handclip_lib.evaluate.statistics import holm, paired_test
from handclip_lib.report import compare, curves, projections
from handclip_lib.report.canvas import BAD, DPI, GOOD, INK
from handclip_lib.report.page import p_text

RNG = np.random.default_rng(0)
PERSONS = 9


def _queries(gain):
    """Ranks of 9 persons with 4 queries in each of 3 draws; `gain` of each person's queries hit."""
    rows = [(d, f"{p}_{k}.jpg", p) for d in range(3) for p in range(PERSONS) for k in range(4)]
    frame = pd.DataFrame(rows, columns=["draw", "image", "pid"])
    hit = np.random.default_rng(1).random(len(frame)) < gain
    rank = np.where(hit, 1, 2 + frame["pid"] % 3)
    return frame.assign(rank=rank, rank1=(rank == 1).astype(float), ap=1 / rank)


QUERIES = {"stage1": _queries(0.3), "ce": _queries(0.31), "better": _queries(0.9)}
TESTS = compare.paired_tests(QUERIES, "stage1")


def _scores(frame):
    values = {"rank1": frame["rank1"], "map": frame["ap"]}
    return {"own": {m: {"mean": v.mean(), "ci95": [v.min(), v.max()]} for m, v in values.items()}}


def _history(name, losses, epochs=5):
    rows = [
        {"variant": name, "epoch": e, "step": 3 * e, "lr": 1e-5 / e, "total": 2.0 / e,
         **{loss: (2.0 if len(losses) == 1 else 1.0) / e for loss in losses},
         "spread": 0.1, "val_accuracy": e / epochs, "select_rank1": 0.5, "select_map": 0.6}
        for e in range(1, epochs + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _planes(models=("zero_shot", "stage1"), ways=("pca", "tsne")):
    rng = np.random.default_rng(2)
    return projections.project_together({m: rng.normal(size=(24, 6)) for m in models}, ways)


WHO = np.repeat(np.arange(6), 4)
HISTORIES = [
    _history("ce", ["cross_entropy"]),
    _history("ce_triplet", ["cross_entropy", "triplet"]),
]
FIGURES = {
    "curves": lambda t: curves.training_curves(HISTORIES, t, {"ce": 4, "ce_triplet": 5}),
    "curves of two epochs": lambda t: curves.training_curves([_history("a", ["x"], 2)], t),
    "curves of nothing": lambda t: curves.training_curves([], t),
    "forest": lambda t: compare.difference_forest(TESTS, "stage 1", t),
    "forest of nothing": lambda t: compare.difference_forest({"rank1": {}, "map": {}}, "a", t),
    "persons": lambda t: compare.person_changes(QUERIES, "stage1", "ce", t),
    "spaces": lambda t: compare.feature_spaces(_planes(), WHO, t),
    "spaces of six models": lambda t: compare.feature_spaces(_planes("abcdef", ["pca"]), WHO, t, 3),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, tmp_path):
    fig = FIGURES[name]("dorsal right, n = 40")
    assert fig.get_suptitle() == "dorsal right, n = 40"
    assert fig.dpi == DPI and max(fig.get_size_inches()) <= 12
    assert not plt.get_fignums(), "an open figure is shown twice in a notebook"
    fig.savefig(tmp_path / "a.png")


def test_tests_are_of_the_frames_columns_and_corrected_within_a_metric():
    assert list(TESTS) == ["rank1", "map"] and list(TESTS["rank1"]) == ["ce", "better"]
    base, other = QUERIES["stage1"], QUERIES["better"]
    alone = paired_test(base["ap"], other["ap"], base["pid"])
    corrected = holm({name: test["p"] for name, test in TESTS["map"].items()})
    assert TESTS["map"]["better"] == alone | {"holm": corrected["better"]}
    rise = other["rank1"].mean() - base["rank1"].mean()
    assert TESTS["rank1"]["better"]["difference"] == pytest.approx(rise)
    assert TESTS["rank1"]["better"]["holm"] > TESTS["rank1"]["better"]["p"]
    json.dumps(TESTS)


def test_queries_in_another_order_are_refused():
    other = QUERIES["ce"].sample(frac=1, random_state=0).reset_index(drop=True)
    with pytest.raises(ValueError, match="other and stage1 did not answer the same queries"):
        compare.paired_tests({"stage1": QUERIES["stage1"], "other": other}, "stage1")


def test_no_variant_no_test():
    alone = {"stage1": QUERIES["stage1"]}
    assert compare.paired_tests(alone, "stage1") == {"rank1": {}, "map": {}}
    table = compare.comparison_table(
        {"stage1": _scores(QUERIES["stage1"])}, {"own": {"rank1": {}, "map": {}}}
    )
    assert table["p"].tolist() == ["–", "–"]


def test_table_says_what_was_measured():
    scores = {name: _scores(frame) for name, frame in QUERIES.items()}
    table = compare.comparison_table(scores, {"own": TESTS})
    assert len(table) == 6 and table.index.names == ["gallery", "metric", "variant"]
    row = table.loc[("own gallery", "rank-1", "better")]
    test = TESTS["rank1"]["better"]
    assert row["difference (points)"].startswith(f"+{100 * test['difference']:.1f} [")
    assert row["p (Holm)"] == p_text(test["holm"])
    assert row["detectable (points)"] == f"{100 * test['detectable']:.1f}"
    same = compare.paired_tests({"a": QUERIES["ce"], "b": QUERIES["ce"]}, "a")
    shown = compare.comparison_table({"b": scores["ce"]}, {"own": same})
    assert shown["detectable (points)"].tolist() == ["–", "–"]  # no spread to tell it by


@pytest.mark.parametrize(("p", "text"), [(0.0312, "0.031"), (1.0, "1.000"), (0.0001, "< 0.001")])
def test_p_in_words(p, text):
    assert p_text(p) == text


def test_persons_means_give_back_the_mean_over_queries():
    kept = compare.per_person(QUERIES["better"])
    assert len(kept) == PERSONS and list(kept)[0] == "0"
    counts = [n for _, _, n in kept.values()]
    assert counts == [12] * PERSONS
    weighted = sum(ap * n for _, ap, n in kept.values()) / sum(counts)
    assert weighted == pytest.approx(QUERIES["better"]["ap"].mean(), abs=1e-6)
    assert sum(r for r, _, _ in kept.values()) / PERSONS == pytest.approx(
        QUERIES["better"]["rank1"].mean(), abs=1e-6
    )
    json.dumps(kept)


def test_geometry_says_which_way_is_better():
    space = dict.fromkeys(
        ("intra_cosine", "inter_cosine", "alignment", "uniformity", "silhouette", "effective_rank"),
        0.12345,
    )
    table = compare.geometry_table({"before": space, "after": space})
    assert table.loc["intra cosine", "before"] == 0.123
    assert table["better"].tolist() == ["higher", *["lower"] * 3, *["higher"] * 2]


def test_only_sure_differences_are_coloured():
    shape = {"ci95": [-0.1, 0.1], "p": 0.0, "detectable": 0.1}
    values = {"up": (0.05, 0.01), "down": (-0.05, 0.01), "unsure": (0.05, 0.06)}
    tests = {"rank1": {n: shape | {"difference": d, "holm": h} for n, (d, h) in values.items()}}
    ax = compare.difference_forest(tests, "stage 1", "t").axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [to_hex(line.get_color()) for line in dots] == [c.lower() for c in (GOOD, BAD, INK)]
    np.testing.assert_allclose([float(line.get_xdata()[0]) for line in dots], [0.05, -0.05, 0.05])


def test_changes_are_counted():
    fig = compare.person_changes(QUERIES, "ce", "ce", "t")
    assert "0 better, 9 the same, 0 worse" in fig.axes[1].get_title("left")
    fig = compare.person_changes(QUERIES, "stage1", "better", "t")
    assert "9 better" in fig.axes[1].get_title("left")


def test_curves_ring_the_epoch_that_was_kept():
    fig = FIGURES["curves"]("t")
    titles = [ax.get_title("left") for ax in fig.axes]
    assert titles[:3] == ["total loss", "cross entropy", "triplet"] and "select rank1" not in titles
    rings = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in rings] == [[4.0], [5.0]]
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), 2.0 / np.arange(1, 6))
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["ce", "ce_triplet"]


@pytest.mark.parametrize("loss", [3.4, 0.0])
def test_a_flat_loss_lies_below_the_upper_edge(loss):
    flat = _history("a", ["x"], 5).assign(total=loss)
    top = curves.training_curves([flat], "t").axes[0].get_ylim()[1]
    assert top > loss + 0.05 * top


def test_a_single_loss_of_weight_one_is_drawn_once():
    titles = [ax.get_title("left") for ax in FIGURES["curves of two epochs"]("t").axes]
    assert titles[0] == "x" and "total loss" not in titles


def test_models_share_a_projection_and_its_axes():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(20, 5))
    same = projections.project_together({"a": z, "b": 3 * z}, ("pca",))["PCA"]
    np.testing.assert_allclose(same["a"], same["b"], atol=1e-6)  # unit rows of one direction
    turned = projections.project_together({"a": z, "b": -z}, ("pca",))["PCA"]
    np.testing.assert_allclose(turned["a"], -turned["b"], atol=1e-6)  # apart, they could agree
    axes = compare.feature_spaces(_planes(), WHO, "t").axes
    assert axes[0].get_xlim() == axes[1].get_xlim() and axes[2].get_ylim() == axes[3].get_ylim()
    assert axes[0].get_xlim() != axes[2].get_xlim()


def test_neighbours_are_sought_within_a_model():
    """Two models that agree show the same persons together: not each photograph by its copy."""
    rng = np.random.default_rng(5)
    z = np.repeat(rng.normal(size=(6, 8)), 8, axis=0) + 0.1 * rng.normal(size=(48, 8))
    models = {name: z + 1e-3 * rng.normal(size=z.shape) for name in "abcd"}
    planes = projections.project_together(models, ("tsne",))["t-SNE"]
    for points in planes.values():
        far = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag([np.inf] * 48)
        assert (far.argmin(axis=1) // 8 == np.arange(48) // 8).all()
        middle = points.reshape(6, 8, 2).mean(axis=1)  # a person is found where the first has them
        distance = np.linalg.norm(middle[:, None] - planes["a"].reshape(6, 8, 2).mean(1), axis=2)
        assert (distance.argmin(axis=1) == np.arange(6)).all()


def test_a_shift_of_everything_does_not_set_models_apart():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(30, 5)) + 8 * np.eye(5)[0]
    moved = np.roll(z, 1, axis=1)
    points = projections.project_together({"a": z, "b": moved}, ("pca",))["PCA"]
    for cloud in points.values():
        np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-5)


def test_spaces_of_other_photographs_are_refused():
    z = RNG.normal(size=(8, 5))
    with pytest.raises(ValueError, match="of the same photographs"):
        projections.project_together({"a": z, "b": z[:7]})


def test_a_space_of_other_width_is_turned_onto_the_first():
    z = np.random.default_rng(5).normal(size=(12, 5))
    wider = np.concatenate([z[:, ::-1], np.zeros((12, 3))], axis=1)  # the same distances
    points = projections.project_together({"a": z, "b": wider}, ("pca",))["PCA"]
    np.testing.assert_allclose(points["b"], points["a"], atol=1e-5)
    alone = projections.project_together({"a": z}, ("pca",))["PCA"]["a"]
    np.testing.assert_allclose(points["a"], alone, atol=1e-5)


def test_curves_that_lie_under_others_are_named():
    """The same training by two names, as of a pre-training that is kept whole."""
    first, other = _history("a", ["x"], 3), _history("c", ["x"], 3).assign(x=0.5)
    fig = curves.training_curves([first, first.assign(variant="b"), other], "t")
    assert "Equal curves: a = b." in fig.legends[0].get_title().get_text()
