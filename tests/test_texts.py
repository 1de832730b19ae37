"""Texts of identities: the figures show the cosines that they name, the tables what they hold."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from handclip_lib.report import summary, texts
from handclip_lib.report.canvas import BAD, DPI, GOOD

NAMES = ["a", "b", "c"]
AXES = np.eye(3)
# unit rows whose cosines are 0.6 (a, b), 0 (a, c) and 0.8 (b, c)
TURNED = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0]])
MANY = np.random.default_rng(0).normal(size=(70, 8))
FIGURES = {
    "cosines": lambda t: texts.cosine_matrices(AXES, TURNED, NAMES, t),
    "cosines of many": lambda t: texts.cosine_matrices(MANY, -MANY, [str(i) for i in range(70)], t),
    "cosines of one": lambda t: texts.cosine_matrices(AXES[:1], AXES[:1], NAMES[:1], t),
    "cosines of equals": lambda t: texts.cosine_matrices(AXES[[0, 0]], AXES[[0, 0]], ["a", "b"], t),
    "images": lambda t: texts.text_image_matrix(TURNED, AXES, NAMES, t),
    "images of many": lambda t: texts.text_image_matrix(MANY, MANY, [str(i) for i in range(70)], t),
    "images of one": lambda t: texts.text_image_matrix(AXES[:1], AXES[:1], NAMES[:1], t),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, tmp_path):
    fig = FIGURES[name]("dorsal right, n = 3")
    assert fig.get_suptitle() == "dorsal right, n = 3"
    assert fig.dpi == DPI and max(fig.get_size_inches()) <= 12
    assert not plt.get_fignums(), "an open figure is shown twice in a notebook"
    fig.savefig(tmp_path / "a.png")


def test_cosines_before_and_after_are_on_one_scale_without_the_diagonal():
    left, right = FIGURES["cosines"]("t").axes[:2]
    images = [ax.images[0] for ax in (left, right)]
    assert [image.get_clim() for image in images] == [(0.0, 0.8)] * 2
    shown = np.ma.filled(images[1].get_array(), np.nan)
    np.testing.assert_allclose(shown, [[np.nan, 0.6, 0], [0.6, np.nan, 0.8], [0, 0.8, np.nan]])
    assert left.get_title("left").endswith("between two identities 0.000 (0.000 to 0.000)")
    assert right.get_title("left").endswith("between two identities 0.467 (0.000 to 0.800)")
    assert [label.get_text() for label in left.get_yticklabels()] == NAMES


def test_a_text_is_right_where_its_own_image_is_nearest():
    """Texts a and b lie nearest to their own image; c lies at b's: lengths of rows are nothing."""
    lengths = np.array([[1.0], [9.0], [0.2]])
    ax = texts.text_image_matrix(lengths * TURNED, lengths * AXES, NAMES, "t").axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), TURNED)
    assert "2 of 3 texts (67 %); by chance 33 %" in ax.get_title("left")
    boxes, dots = ax.collections
    np.testing.assert_allclose(boxes.get_offsets(), [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_allclose(dots.get_offsets(), [[0, 0], [1, 1], [1, 2]])  # x, y
    wanted = [to_rgba(colour) for colour in (GOOD, GOOD, BAD)]
    np.testing.assert_allclose(dots.get_facecolors(), wanted)


def test_rows_are_texts_and_columns_images():
    ax = texts.text_image_matrix(AXES, TURNED, NAMES, "t").axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), TURNED.T)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mean image feature of", "text of")


def test_texts_that_are_all_alike_are_not_right_by_their_order():
    ax = texts.text_image_matrix(AXES, AXES[[0, 0, 0]], NAMES, "t").axes[0]
    assert "0 of 3 texts (0 %)" in ax.get_title("left")


def test_labels_of_many_identities_are_thinned():
    ax = FIGURES["images of many"]("t").axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(i) for i in range(0, 70, 3)]


def test_words_stand_by_identity_and_slot():
    table = texts.words_table([[["ring", "gold"], ["nail"]], [["old"], ["man", "men"]]], ["7", "9"])
    assert table.index.name == "identity" and table.columns.tolist() == ["slot 1", "slot 2"]
    assert table.loc["7"].tolist() == ["ring, gold", "nail"]
    assert table.loc["9", "slot 2"] == "man, men"


@pytest.mark.parametrize("words", [[[["a"]]], [[["a"]], [["a"], ["b"]]]])
def test_words_of_other_identities_or_slots_are_refused(words):
    with pytest.raises(ValueError, match="for 2 identities"):
        texts.words_table(words, ["7", "9"])


def test_cost_table():
    facts = {"trained_parameters": 147_456, "seconds": 12.34, "chosen_epoch": 4}
    table = texts.cost_table({"prompts": facts}, 86_192_640)
    assert table.index.tolist() == ["prompts"]
    assert table.loc["prompts"].tolist() == ["147,456", "0.17", "12.3", "4"]


def test_a_table_of_no_models_has_its_rows():
    """Where no variant composes a text, the notebook's table of those that do is empty."""
    table = summary.score_table({}).T[["rank-1", "mAP"]]
    assert table.shape == (0, 2) and table.index.names == ["model", "gallery"]
