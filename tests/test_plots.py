"""Figures: made from arrays, of fixed size, the same every time; and each shows what it should."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from handclip_lib.data.augment import Augmenter
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.evaluate.retrieval import METRICS
from handclip_lib.report import galleries, overview, plots, projections
from handclip_lib.report.canvas import DPI, GOOD, canvas, identity_marks
from handclip_lib.schema_train import Augment

ASPECTS = ("dorsal_r", "dorsal_l")
RNG = np.random.default_rng(0)


def _score(mean):
    return {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "per_draw": [mean]}


def _gallery(mean):
    metrics = {m: _score(mean) for m in METRICS}
    return metrics | {"queries": 20, "gallery": 5, "persons": 5}


def _manifest(aspect):
    rows = [("train", -1, 1, aspect, f"{aspect}a"), ("val", -1, 1, aspect, f"{aspect}b")]
    for draw in (0, 1):
        rows += [("query", draw, 2, aspect, f"{aspect}{draw}")]
        rows += [("gallery", draw, 2, aspect, f"{aspect}{1 - draw}")]
    return pd.DataFrame(rows, columns=["split", "draw", "pid", "aspect", "image"])


def _table():
    return pd.DataFrame(
        {
            "image": [f"{i}.jpg" for i in range(8)],
            "pid": np.repeat([1, 2], 4),
            "aspect": list(ASPECTS) * 4,
            "gender": np.repeat(["male", "female"], 4),
            "age": np.repeat([20, 31], 4),
            "skinColor": "medium",
            "accessories": [0, 1] * 4,
            "nailPolish": 0,
        }
    )


def _leaks():
    return pd.DataFrame([[0, 3], [2, 0]], index=ASPECTS, columns=ASPECTS)


def _ranking():
    rows = [
        {"query": f"q{q}", "pid": q, "rank": r + 1, "gallery": f"g{r}", "gallery_pid": r,
         "similarity": 0.9 - r / 10, "rank_of_first_match": q + 1, "correct": r == q}
        for q in range(4) for r in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _pixels(images):
    return np.zeros((len(images), 8, 8, 3), np.uint8)


def _hands(images):
    return np.stack([np.full((8, 8, 3), 40 * i, np.uint8) for i in images])


AUGMENTER = Augmenter(
    Augment(erasing=0, colour=0), Preprocess((8, 8), "squash", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
)
PANELS = {"PCA": RNG.normal(size=(40, 2)), "t-SNE": RNG.normal(size=(40, 2))}
PIDS = np.repeat(np.arange(10), 4)
ZERO_SHOT = {
    "templates": [{"template": "a {aspect} hand.", "accuracy": 0.5, "ci95": [0.4, 0.6]}],
    "ensemble": {"accuracy": 0.6, "ci95": [0.5, 0.7]},
    "chance": 0.25,
    "images": 8,
    "persons": 2,
}
FIGURES = {
    "images_per_identity": lambda t: overview.images_per_identity(
        {a: _manifest(a) for a in ASPECTS}, t
    ),
    "metadata": lambda t: overview.metadata(_table(), t),
    "metadata without columns": lambda t: overview.metadata(_table()[["pid", "aspect"]], t),
    "overlap": lambda t: overview.overlap(_leaks(), t),
    "bars": lambda t: plots.retrieval_bars({"a": {"own": _gallery(0.6), "all": _gallery(0.4)}}, t),
    "rows": lambda t: plots.retrieval_bars(
        {n: {"own": _gallery(0.6), "all": _gallery(0.4)} for n in "abcd"}, t
    ),
    "cmc": lambda t: plots.cmc({"a": pd.DataFrame({"draw": [0, 0, 1], "rank": [1, 3, 2]})}, t),
    "similarity": lambda t: plots.similarity_distributions(
        {"own": (RNG.random(50), RNG.random(400)), "all": (RNG.random(2), RNG.random(3))}, t
    ),
    "feature_space": lambda t: plots.feature_space(PANELS, PIDS, t, identities=3),
    "zero_shot": lambda t: plots.zero_shot_bars(ZERO_SHOT, t),
    "confusion": lambda t: plots.confusion([[3, 1], [0, 0]], ASPECTS, t),
    "grid": lambda t: galleries.identity_grid(range(40), PIDS, _pixels, t, rows=3, columns=6),
    "augmented": lambda t: galleries.augmented([1, 2], [5, 7], _hands, AUGMENTER, t, times=3),
    "ranked": lambda t: galleries.ranked(_ranking(), _pixels, t, queries=2, top=3),
    "best": lambda t: galleries.best_and_worst(_ranking(), ["q0", "q1"], ["q3"], _pixels, t),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, tmp_path):
    fig = FIGURES[name]("dorsal right, n = 40")
    assert fig.get_suptitle() == "dorsal right, n = 40"
    assert fig.dpi == DPI and max(fig.get_size_inches()) <= 12
    assert not plt.get_fignums(), "an open figure is shown twice in a notebook"
    fig.savefig(tmp_path / "a.png")
    FIGURES[name]("dorsal right, n = 40")  # and a second time in the same process


def test_bars_show_the_values():
    fig = FIGURES["bars"]("t")
    assert [t.get_text() for t in fig.axes[0].texts] == ["60"] * 4
    assert "20 queries" in fig.axes[0].get_title("left")


def test_many_models_have_rows_and_a_colour_a_gallery():
    few = {n: {"own": _gallery(i / 20), "all": _gallery(0.4)} for i, n in enumerate("abcdefgh")}
    fig = plots.retrieval_bars(few, "t", ("rank1", "map"))
    one, other = fig.axes
    assert [t.get_text() for t in one.get_yticklabels()] == list("abcdefgh")
    assert not any(t.get_text() for t in other.get_yticklabels())
    own, others = one.lines
    np.testing.assert_allclose(own.get_xdata(), [i / 20 for i in range(8)])
    assert own.get_color() != others.get_color() and len(one.patches) == 0
    assert [t.get_text() for t in one.texts] == [f"{5 * i}" for i in range(8)] + ["40"] * 8
    del few["h"]["all"]  # one model was asked in one gallery alone
    others = plots.retrieval_bars(few, "t", ("rank1", "map")).axes[0].lines[1]
    np.testing.assert_allclose(others.get_ydata(), np.arange(7) + 0.2)


def test_cmc_is_the_mean_of_draws():
    line = FIGURES["cmc"]("t").axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata()[:3], [0.25, 0.75, 1.0])


def test_right_answers_are_framed_green():
    fig = galleries.ranked(_ranking(), _pixels, "t", queries=["q1"], top=3)
    colours = [to_hex(ax.spines["top"].get_edgecolor()) for ax in fig.axes[1:]]
    assert [c == GOOD.lower() for c in colours] == [False, True, False]


def test_only_shown_photographs_are_read():
    asked = []
    galleries.ranked(_ranking(), lambda i: asked.append(i) or _pixels(i), "t", ["q1"], top=2)
    assert asked == [["q1", "g0", "g1"]]
    asked.clear()
    names, people = [f"{i}.jpg" for i in range(7)], [5, 5, 2, 5, 2, 9, 9]
    fig = galleries.identity_grid(
        names, people, lambda i: asked.append(i) or _pixels(i), "t", rows=2, columns=2
    )
    assert asked == [["0.jpg", "1.jpg", "2.jpg", "4.jpg"]]
    assert [ax.get_ylabel() for ax in fig.axes] == ["5", "", "2", ""]


def test_augmented_photographs_are_shown_in_the_colours_they_have():
    fig = FIGURES["augmented"]("t")
    shown = [ax.images[0].get_array() for ax in fig.axes]
    assert len(shown) == 8 and [ax.get_ylabel() for ax in fig.axes[::4]] == ["5", "7"]
    for i, picture in enumerate(shown):  # one colour, however it is turned
        assert np.ptp(picture) == 0 and picture[0, 0, 0] == (40 if i < 4 else 80)


def test_augmented_photographs_are_drawn_by_the_seed():
    given = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)
    a, b, c = (
        galleries.augmented([1], [5], lambda _: given, AUGMENTER, "t", 2, seed).axes[1].images[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a.get_array(), b.get_array())
    assert (a.get_array() != c.get_array()).any()


def test_distractors_are_named_by_person():
    frame = _ranking().replace({"gallery_pid": {3: 11_000_003}})
    fig = galleries.ranked(frame, _pixels, "t", ["q0"], top=4)
    assert fig.axes[4].get_title() == "3*" and "another aspect" in fig.get_suptitle()


def test_unknown_query_is_an_error():
    with pytest.raises(ValueError, match="no query q9"):
        galleries.ranked(_ranking(), _pixels, "t", ["q9"])


def test_marks_are_fixed_and_distinct():
    marks = identity_marks(PIDS.tolist()[::-1], 20)
    assert marks == identity_marks(PIDS.tolist(), 20) and len(set(marks.values())) == 10
    assert len(identity_marks(list(range(300)), 20)) == 20
    with pytest.raises(ValueError, match="1 to 21"):
        identity_marks(PIDS.tolist(), 22)


@pytest.mark.parametrize("n", [4, 7, 60])
def test_projections_are_repeatable(n):
    features = np.random.default_rng(n).normal(size=(n, 70))
    first = projections.project(features, ("pca", "tsne"), seed=1)
    again = projections.project(features, ("pca", "tsne"), seed=1)
    assert list(first) == ["PCA", "t-SNE"]
    for name, points in first.items():
        assert points.shape == (n, 2) and np.isfinite(points).all()
        np.testing.assert_array_equal(points, again[name])


def test_projection_errors():
    with pytest.raises(ValueError, match="unknown projection 'som'"):
        projections.project(np.ones((5, 3)), ("som",))
    with pytest.raises(ValueError, match="at least 4 rows"):
        projections.project(np.ones((3, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 30])
def test_umap_is_repeatable(n):
    features = np.random.default_rng(n).normal(size=(n, 70))
    first, again = (projections.project(features, ("umap",))["UMAP"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_title_is_read_letter_by_letter(tmp_path):
    fig, _ = canvas("one$hand_$, two^")
    fig.savefig(tmp_path / "sheet.png")  # as mathematics it would be refused
    assert fig.get_suptitle() == "one$hand_$, two^"
