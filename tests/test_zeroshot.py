"""Zero-shot classification with an encoder whose text features are known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from handclip_lib.evaluate.zeroshot import (
    classify_by_text,
    ensemble,
    text_classifier,
    zero_shot,
)

TEMPLATES = ("a photo of a {aspect} hand.", "a {aspect} view of a hand.")
CHAIN = ["dorsal_r", "dorsal_l", "palmar_r", "palmar_l"]


class WordEncoder:
    """Axes dorsal, palmar, right, left: a text's feature counts its words, at any length."""

    def __init__(self, scale=1.0):
        self.scale, self.asked = scale, []

    def encode_text(self, texts):
        self.asked += texts
        axes = (("dorsal", "back"), ("palmar", "palm"), ("right",), ("left",))
        rows = [[float(any(w in t.split() for w in axis)) for axis in axes] for t in texts]
        lengths = 1 + torch.arange(len(texts))[:, None] * self.scale  # must not matter
        return (torch.tensor(rows) * lengths).requires_grad_()


class TableEncoder:
    """Features by text, as given."""

    def __init__(self, table):
        self.table = table

    def encode_text(self, texts):
        return torch.tensor([self.table[t] for t in texts])


def hands(per_class=(6, 4, 5, 5), wrong=0):
    """Image features on their aspect's axes; the first `wrong` rows show another aspect."""
    axes = {"dorsal_r": (0, 2), "dorsal_l": (0, 3), "palmar_r": (1, 2), "palmar_l": (1, 3)}
    aspects = np.repeat(CHAIN, per_class)
    z = np.zeros((len(aspects), 4))
    for i, aspect in enumerate(aspects):
        z[i, list(axes["palmar_l" if i < wrong else aspect])] = 3.0
    frame = pd.DataFrame({"aspect": aspects, "pid": np.arange(len(aspects)) % 4 + 1})
    return z, frame


def test_aspects_are_told_by_their_words():
    z, frame = hands(wrong=3)
    encoder = WordEncoder()
    result = zero_shot(encoder, z, frame, TEMPLATES, bootstrap=200)
    assert result["classes"] == CHAIN
    assert (result["images"], result["persons"]) == (20, 4)
    assert (result["chance"], result["majority"]) == (1 / 4, 6 / 20)
    assert [t["template"] for t in result["templates"]] == list(TEMPLATES)
    assert result["ensemble"]["accuracy"] == pytest.approx(17 / 20)
    assert all(t["accuracy"] == pytest.approx(17 / 20) for t in result["templates"])
    low, high = result["ensemble"]["ci95"]
    assert low < 17 / 20 < high <= 1
    # rows are the truth: three of six dorsal right hands were called palmar left
    assert result["confusion"] == [[3, 0, 0, 3], [0, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]]
    assert result["per_class"] == {"dorsal_r": 0.5, "dorsal_l": 1, "palmar_r": 1, "palmar_l": 1}
    assert "a photo of a back of the right hand." in encoder.asked
    json.dumps(result, allow_nan=False)


def test_the_answer_is_one_of_four_however_few_the_data_shows():
    z, frame = hands((5, 0, 0, 0), wrong=2)
    among = zero_shot(WordEncoder(), z, frame, TEMPLATES, bootstrap=100)
    assert (among["classes"], among["chance"]) == (CHAIN, 1 / 4)
    assert among["ensemble"]["accuracy"] == pytest.approx(3 / 5)
    assert among["per_class"] == {"dorsal_r": pytest.approx(3 / 5)}
    assert np.array(among["confusion"]).shape == (4, 4)


def test_where_only_the_surface_is_known_only_the_surface_is_asked():
    z, frame = hands((3, 3, 2, 0), wrong=1)
    frame["aspect"] = frame["aspect"].replace({"dorsal_r": "dorsal", "dorsal_l": "dorsal"})
    result = zero_shot(WordEncoder(), z, frame, TEMPLATES, bootstrap=100)
    assert (result["classes"], result["chance"]) == (["dorsal", "palmar"], 1 / 2)
    assert result["confusion"] == [[5, 1], [0, 2]]
    assert result["ensemble"]["accuracy"] == pytest.approx(7 / 8)


def test_photographs_of_an_unknown_aspect_are_left_out():
    z, frame = hands(wrong=2)
    known = zero_shot(WordEncoder(), z, frame, TEMPLATES, bootstrap=100)
    more = pd.concat([frame, frame[:4].assign(aspect="hand")])
    z_more = np.concatenate([z, -z[:4]])
    assert zero_shot(WordEncoder(), z_more, more, TEMPLATES, bootstrap=100) == known
    assert zero_shot(WordEncoder(), z, frame.assign(aspect="hand"), TEMPLATES) is None


def test_class_vectors_average_normalised_outputs():
    table = {"one a": [3.0, 4.0], "one b": [0.0, 0.1], "two a": [1.0, 0.0], "two b": [-7.0, 0.0]}
    phrases, templates = [["a"], ["b"]], ["one {x}", "two {x}"]
    weights = text_classifier(TableEncoder(table), phrases, templates)
    np.testing.assert_allclose(weights, [[[0.6, 0.8], [0, 1]], [[1, 0], [-1, 0]]], atol=1e-7)
    root = np.sqrt(0.5)
    both = text_classifier(TableEncoder(table), [["a", "b"]], ["one {x}"])  # two spellings
    mean = np.array([0.3, 0.9])
    np.testing.assert_allclose(both[0, 0], mean / np.linalg.norm(mean), atol=1e-7)
    mean = np.array([0.8, 0.4])  # of (0.6, 0.8) and (1, 0)
    expected = [mean / np.linalg.norm(mean), [-root, root]]
    np.testing.assert_allclose(ensemble(weights), expected, atol=1e-7)


def test_ensemble_is_not_a_vote_and_templates_are_apart():
    # template one says a for x = (0, 1), template two says b; the ensemble decides by its mean
    table = {"one a": [0.0, 1.0], "one b": [1.0, 0.0], "two a": [1.0, 0.1], "two b": [1.0, 0.3]}
    result = classify_by_text(
        TableEncoder(table),
        np.array([[0.0, 1.0], [0.0, 2.0]]),
        ["a", "a"],
        [1, 2],
        {"a": ["a"], "b": ["b"]},
        ["one {x}", "two {x}"],
        bootstrap=100,
    )
    assert [t["accuracy"] for t in result["templates"]] == [1.0, 0.0]
    assert result["ensemble"]["accuracy"] == 1.0


def test_lengths_of_features_do_not_matter():
    z, frame = hands(wrong=2)
    one = zero_shot(WordEncoder(0.0), z, frame, TEMPLATES, bootstrap=100)
    other = zero_shot(WordEncoder(9.0), z * 100, frame, TEMPLATES, bootstrap=100)
    assert one == other


def test_any_attribute_can_be_asked():
    phrases = {"male": ["right"], "female": ["left", "palmar left"]}
    result = classify_by_text(
        WordEncoder(),
        np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1.0]]),
        pd.Series(["male", "female", "male"], index=[7, 8, 9]),
        pd.Series([1, 2, 3], index=[7, 8, 9]),
        phrases,
        ["a {gender} hand"],
        bootstrap=100,
    )
    assert result["confusion"] == [[1, 1], [0, 1]]
    assert result["majority"] == pytest.approx(2 / 3)


def test_an_empty_phrase_leaves_no_double_blank():
    encoder = WordEncoder()
    with pytest.raises(ValueError, match="text feature 0"):  # no word known: no direction
        text_classifier(encoder, [[""]], ["a photo of a {aspect} hand."])
    assert encoder.asked == ["a photo of a hand."]


def test_bad_input_is_refused():
    z, frame = hands()
    ask = WordEncoder()
    with pytest.raises(ValueError, match="unknown aspect 'thumb'"):
        zero_shot(ask, z, frame.replace("dorsal_r", "thumb"), TEMPLATES)
    phrases = {aspect: ["right"] for aspect in CHAIN[:3]}
    with pytest.raises(ValueError, match="'palmar_l' is none of the classes"):
        classify_by_text(ask, z, frame["aspect"], frame["pid"], phrases, TEMPLATES)
    with pytest.raises(ValueError, match="19 image features for 20 photographs"):
        zero_shot(ask, z[1:], frame, TEMPLATES)
    with pytest.raises(ValueError, match="19 image features for 20 labels"):
        every = dict.fromkeys(CHAIN, ["right"])
        classify_by_text(ask, z[1:], frame["aspect"], frame["pid"], every, TEMPLATES)
    with pytest.raises(ValueError, match="image feature 2 "):
        zero_shot(ask, np.where(np.arange(20)[:, None] == 2, 0, z), frame, TEMPLATES)
    with pytest.raises(ValueError, match="4 dimensions, images 3"):
        zero_shot(ask, z[:, :3], frame, TEMPLATES)
    with pytest.raises(ValueError, match="needs one slot"):
        zero_shot(ask, z, frame, ["a photo of a hand"])
    with pytest.raises(ValueError, match="at least one template"):
        zero_shot(ask, z, frame, [])
    with pytest.raises(ValueError, match="no photographs"):
        classify_by_text(ask, z[:0], [], [], phrases, TEMPLATES)
