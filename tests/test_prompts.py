"""Learned prompts: slots found by token, the right row pooled, and nothing learns but the words."""

import json

import open_clip
import pandas as pd
import pytest
import torch
from torch.nn import functional

from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.prompts import (
    PromptLearner,
    attribute_words,
    find_slots,
    nearest_words,
    start_vectors,
)
from handclip_lib.models.text import TextTower

TEMPLATE = "a photo of a {person} dorsal right hand."
PLACE = 343  # "X", in either case
PEOPLE = pd.DataFrame(
    {
        "gender": ["male", "female", "female"],
        "age": [24, 25, 70],
        "skinColor": ["fair", "very fair", "dark"],
        "nailPolish": [0, 1, 0],
    },
    index=[7, 3, 12],
)
SEES_ALL = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "head_width": 16,
        "layers": 1,
    },
    "text_cfg": {
        "width": 32,
        "heads": 2,
        "layers": 2,
        "context_length": 20,
        "no_causal_mask": True,
    },
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("tiny", "").requires_grad_(False)


@pytest.fixture(scope="module")
def tower(encoder) -> TextTower:
    return TextTower(encoder)


@pytest.fixture(scope="module")
def sees_all(tmp_path_factory) -> Encoder:
    path = tmp_path_factory.mktemp("configs") / "prompts-sees-all.json"
    path.write_text(json.dumps(SEES_ALL))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    return load_encoder("prompts-sees-all", "random").requires_grad_(False)


@pytest.fixture
def learner(tower) -> PromptLearner:
    torch.manual_seed(0)
    return PromptLearner(tower, [find_slots(tower, TEMPLATE, 4)] * 2, 5)


@pytest.mark.parametrize("count", [1, 4, 8, 12, 16])
@pytest.mark.parametrize(
    "template",
    [
        "{person}",
        TEMPLATE,
        "the palm of somebody's left hand, in one word: {person}!",
        "{person}'s hand, a close-up photo of the whole of it, on white paper.",
    ],
)
def test_slots_and_end_of_any_template(tower, template, count):
    slots = find_slots(tower, template, count)
    ids = tower.tokens([template.replace("{person}", "X " * count)])[0]
    assert slots.at.tolist() == [k for k, token in enumerate(ids) if token == PLACE]
    assert (slots.at.diff() == 1).all() and len(slots.at) == count
    assert slots.tokens[slots.end] == 49407 == slots.tokens.max()
    assert len(slots.tokens) == slots.end + 1 and torch.equal(ids[: slots.end + 1], slots.tokens)
    assert not ids[slots.end + 1 :].any(), "nothing but padding is cut"


def test_slots_stand_in_a_row(tower):
    """One slot that melts into the next word, and a word that looks like one, make up the count."""
    with pytest.raises(ValueError, match="no 4 slots in a row"):
        find_slots(tower, "a photo of a {person}palmar hand x.", 4)


@pytest.mark.parametrize("count", [4, 8, 12, 16])
@torch.no_grad()
def test_texts_are_those_of_the_whole_tower(tower, encoder, count):
    """Cut and full length alike give what the model itself gives for the words that are there."""
    text = TEMPLATE.replace("{person}", "thin " * count)
    expected = functional.normalize(encoder.encode_text([text]), dim=1)
    word = tower.table[tower.tokens(["thin"])[0, 1]]
    slots = find_slots(tower, TEMPLATE, count)
    start = word.expand(2, count, -1)
    found = PromptLearner(tower, [slots], 2, start)()
    assert torch.allclose(found, expected.expand(2, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("template", "count", "words"),
    [
        ("a photo of a hand.", 4, "must be there once"),
        ("a {person} and a {person}", 4, "must be there once"),
        ("a {person} {aspect} hand", 4, "no other brace"),
        (TEMPLATE, 0, "at least one word"),
        ("an x of a {person} hand", 4, "no 4 slots in a row; .* 'X' or 'x' must be no word"),
        ("a {person}shaped hand", 4, "no 4 slots in a row; .* stand by itself"),
        (TEMPLATE, 67, "67 words .* does not fit 77 tokens; 66 words do"),
        ("hand " * 80 + "{person}", 2, "0 words do"),
    ],
)
def test_templates_that_cannot_be(tower, template, count, words):
    with pytest.raises(ValueError, match=words):
        find_slots(tower, template, count)


def test_the_longest_that_fits(tower):
    slots = find_slots(tower, TEMPLATE, 66)
    assert slots.end == 76 == len(slots.tokens) - 1


def test_texts_of_two_identities_differ_at_init(learner):
    for texts in (*learner.each(), learner()):
        apart = torch.pdist(texts)
        assert apart.min() > 1e-3 and torch.allclose(texts.norm(dim=1), torch.ones(5))
    both = learner.each()
    assert (both[0] - both[1]).norm(dim=1).min() > 1e-3, "prompts of an identity are its own"
    assert learner.ctx.shape == (2, 5, 4, 64) and learner.ctx.dtype == torch.float32
    assert learner.ctx.std().item() == pytest.approx(0.02, rel=0.05)


def test_labels_choose_identities(learner):
    labels = torch.tensor([3, 0, 3])
    assert torch.allclose(learner(labels), learner()[labels], atol=1e-6)
    mean = functional.normalize(learner.each().mean(0), dim=1)
    assert torch.allclose(learner(), mean, atol=1e-6)
    raw = learner.each(labels, unit=False)
    assert raw.norm(dim=2).min() > 1.2 and torch.allclose(learner(labels, False), raw.mean(0))
    assert torch.allclose(functional.normalize(raw, dim=2), learner.each(labels), atol=1e-6)


def test_prompts_of_different_lengths_are_averaged_after_the_tower(tower):
    short, long = (find_slots(tower, text, 2) for text in ("a {person} hand", TEMPLATE))
    learner = PromptLearner(tower, [short, long], 3)
    alone = []
    for r, slots in enumerate((short, long)):
        one = PromptLearner(tower, [slots], 3, learner.ctx[r])
        alone.append(one())
    assert torch.allclose(learner.each(), torch.stack(alone), atol=1e-6)


def test_only_the_words_learn(encoder, tower, learner):
    before = encoder.weights_sha256
    assert list(learner.state_dict()) == ["ctx"] and [*learner.parameters()] == [learner.ctx]
    adam = torch.optim.Adam(learner.parameters(), lr=0.01)
    target = functional.normalize(torch.randn(5, 128), dim=1)
    losses = []
    for _ in range(4):
        adam.zero_grad()
        loss = -(learner() * target).sum()
        loss.backward()
        assert (learner.ctx.grad.abs().amax(dim=3) > 0).all(), "every word of every prompt"
        adam.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[-1] > 0.05
    assert encoder.weights_sha256 == before and all(p.grad is None for p in encoder.parameters())


def test_another_identity_gets_no_gradient(learner):
    learner(torch.tensor([1, 4])).sum().backward()
    assert (learner.ctx.grad.abs().sum((0, 2, 3)) > 0).tolist() == [False, True, False, False, True]


def test_state_goes_round(learner, tower):
    other = PromptLearner(tower, [find_slots(tower, TEMPLATE, 4)] * 2, 5)
    assert not torch.equal(other(), learner())
    other.load_state_dict(learner.state_dict())
    assert torch.equal(other(), learner())


def test_dropout_drops_whole_words_and_only_in_training(tower, monkeypatch):
    slots = find_slots(tower, TEMPLATE, 8)
    learner = PromptLearner(tower, [slots], 40, dropout=0.25)
    seen = []
    encode = tower.encode
    monkeypatch.setattr(tower, "encode", lambda x, ends: seen.append(x) or encode(x, ends))
    trained = learner.train()()
    words = seen[0][:, slots.at]
    gone = (words == 0).all(dim=2)
    assert torch.equal(gone, (words == 0).any(dim=2)), "all of a word or nothing"
    assert 0.15 < gone.float().mean() < 0.35
    assert torch.allclose(words[~gone], learner.ctx[0][~gone] / 0.75)
    assert not (seen[0][:, : int(slots.at[0])] == 0).any(), "the template stays"
    assert not torch.equal(trained, learner.eval()())
    assert torch.equal(learner(), learner())


def test_diversity_is_the_mean_cosine_of_pairs():
    each = functional.normalize(torch.randn(4, 6, 8), dim=2)
    pairs = [(each[r] * each[s]).sum(1).mean() for r in range(4) for s in range(r)]
    assert torch.allclose(PromptLearner.diversity(each), torch.stack(pairs).mean(), atol=1e-6)
    assert PromptLearner.diversity(each[:1].double()).abs() < 1e-9


def test_diversity_drives_prompts_apart(tower):
    start = torch.zeros(3, 4, 64)
    learner = PromptLearner(tower, [find_slots(tower, TEMPLATE, 4)] * 3, 3, start)
    assert torch.equal(learner.ctx[0], start) and learner.ctx[1:].std() > 0.015
    before = learner.diversity(learner.each())
    adam = torch.optim.Adam(learner.parameters(), lr=0.02)
    for _ in range(5):
        adam.zero_grad()
        learner.diversity(learner.each()).backward()
        adam.step()
    assert learner.diversity(learner.each()) < before - 1e-3


def test_what_a_learner_refuses(tower):
    slots = [find_slots(tower, TEMPLATE, count) for count in (2, 3)]
    with pytest.raises(ValueError, match=r"one number of words, not \[2, 3\]"):
        PromptLearner(tower, slots, 5)
    with pytest.raises(ValueError, match=r"start: expected \(5, 2, 64\), got \(5, 3, 64\)"):
        PromptLearner(tower, slots[:1], 5, torch.zeros(5, 3, 64))


def test_nearest_words(encoder, tower, learner):
    tokens = tower.tokens(["thin long brown fingers"])[0, 1:5]
    with torch.no_grad():
        learner.ctx[0, 2] = 3 * tower.table[tokens] + 1e-3
        learner.ctx[0, 2, 0] = tower.table[49407]  # the end of a text is no word
    found = nearest_words(learner, encoder.tokenizer, 2, 3)
    assert [len(words) for words in found] == [3] * 4
    assert [words[0] for words in found[1:]] == ["long", "brown", "fingers"]
    assert not any("<" in word for words in found for word in words)


def test_a_tower_that_sees_all_is_given_all(sees_all):
    """Nothing is cut after the pooled row: what is behind it has its say."""
    tower = TextTower(sees_all)
    slots = find_slots(tower, "a {person} hand.", 2)
    assert len(slots.tokens) == 20 and slots.end == 6 and slots.at.tolist() == [2, 3]
    word = tower.table[tower.tokens(["thin"])[0, 1]]
    found = PromptLearner(tower, [slots], 1, word.expand(1, 2, -1))()
    expected = functional.normalize(sees_all.encode_text(["a thin thin hand."]), dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_start_of_words_and_of_nothing(tower):
    slots = find_slots(tower, TEMPLATE, 5)
    assert start_vectors("random", tower, slots, PEOPLE, None, ("person",), 0) is None
    found = start_vectors("words", tower, slots, PEOPLE, None, ("slim", "person"), 0)
    slim, person = tower.table[tower.tokens(["slim person"])[0, 1:3]]
    expected = torch.stack([slim, person, slim, person, slim])
    assert found.shape == (3, 5, 64) and not found.requires_grad
    moved = (found - expected).norm(dim=2) / tower.typical_norm
    assert moved.min() > 0.05 and moved.max() < 0.2, "near the words, and no two alike"
    again, other = (
        start_vectors("words", tower, slots, PEOPLE, None, ("slim", "person"), s) for s in (0, 1)
    )
    assert torch.equal(found, again) and not torch.equal(found, other)
    with pytest.raises(ValueError, match="'' has no token"):
        start_vectors("words", tower, slots, PEOPLE, None, (), 0)


def test_start_of_attributes(tower):
    assert attribute_words(PEOPLE) == [
        "male young fair skin bare nails",
        "female adult very fair skin nail polish",
        "female elderly dark skin bare nails",
    ]
    slots = find_slots(tower, TEMPLATE, 4)
    found = start_vectors("attributes", tower, slots, PEOPLE, None, ("person",), 0)
    for row, text in enumerate(("male young fair skin", "female adult very fair")):
        expected = tower.table[tower.tokens([text])[0, 1:5]]
        assert (found[row] - expected).norm(dim=1).max() < 0.2 * tower.typical_norm
    without = PEOPLE.drop(columns=["age", "skinColor"])
    with pytest.raises(ValueError, match="columns age, skinColor .* gender, nailPolish"):
        start_vectors("attributes", tower, slots, without, None, ("person",), 0)


def test_start_of_images(encoder, tower):
    slots = find_slots(tower, TEMPLATE, 4)
    told = (tower, slots, PEOPLE)
    aims = functional.normalize(encoder.encode_text(["a palm", "an old man", "a hand"]), dim=1)
    near = start_vectors("image", *told, aims, ("person",), 0)
    words = start_vectors("words", *told, None, ("person",), 0)
    cosines = [(PromptLearner(tower, [slots], 3, s)() * aims).sum(1) for s in (words, near)]
    assert ((cosines[1] - cosines[0]) > 0.05).all() and not near.requires_grad
    with pytest.raises(ValueError, match="mean image features"):
        start_vectors("image", *told, None, ("person",), 0)
