"""A text tower from the inside: embeddings in, the tower's own features out, whole or cut."""

import copy
import json

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from torch import nn

from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.text import TextTower

TEXT = {"width": 32, "heads": 2, "layers": 2, "context_length": 20, "vocab_size": 49408}
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
CONFIGS = {
    "text-flat": {},
    "text-flat-eos": {"text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "text-custom": {"custom_text": True, "text_cfg": {"proj_bias": True}},
    "text-custom-none": {"custom_text": True, "text_cfg": {"proj_type": "none"}},
    "text-custom-last": {
        "custom_text": True,
        "text_cfg": {"pool_type": "last", "no_causal_mask": True},
    },
    "text-custom-argmax": {"custom_text": True, "text_cfg": {"no_causal_mask": True}},
    "text-custom-eos": {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "text-class": {"custom_text": True, "text_cfg": {"embed_cls": True}},
}
SERVED = [name for name in CONFIGS if name != "text-class"]
CAUSAL = ["text-flat", "text-flat-eos", "text-custom", "text-custom-none", "text-custom-eos"]
TEXTS = ["a hand", "a photo of the palm of a left hand.", ""]


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, told in CONFIGS.items():
        config = {"embed_dim": 32, "vision_cfg": VISION} | told
        config["text_cfg"] = TEXT | told.get("text_cfg", {})
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def encoder_named(name: str) -> Encoder:
    torch.manual_seed(0)
    encoder = load_encoder(name, "random")
    with torch.no_grad():  # unlike each other, or a shifted position would go unseen
        side = getattr(encoder.model, "text", encoder.model)
        side.positional_embedding.normal_()
        side.ln_final.bias.normal_()
        side.token_embedding.weight.normal_()
        if isinstance(side.text_projection, nn.Linear):
            side.text_projection.bias.normal_()
    return encoder


@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_equals_the_towers_own_features(name):
    encoder = encoder_named(name)
    tower = TextTower(encoder)
    tokens = tower.tokens(TEXTS)
    expected = encoder.model.encode_text(tokens)
    found = tower.encode(tower.embed(tokens), tower.end(tokens))
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-5) and found.dtype == torch.float32
    assert torch.equal(encoder.encode_text(TEXTS), expected), "both read the same tokens"


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_cut_changes_nothing_in_a_causal_tower(name):
    tower = TextTower(encoder_named(name))
    tokens = tower.tokens(TEXTS)
    ends = tower.end(tokens)
    whole = tower.encode(tower.embed(tokens), ends)
    assert tower.causal and ends.tolist() == [3, 11, 1]
    length = int(ends.max()) + 1
    assert torch.allclose(tower.encode(tower.embed(tokens[:, :length]), ends), whole, atol=1e-5)
    for row, end in enumerate(ends.tolist()):  # each at its own shortest
        alone = tower.embed(tokens[row : row + 1, : end + 1])
        assert torch.allclose(tower.encode(alone, ends[row : row + 1])[0], whole[row], atol=1e-5)


@pytest.mark.parametrize("name", ["text-custom-last", "text-custom-argmax"])
def test_a_tower_that_sees_all_is_served_at_full_length_only(name):
    tower = TextTower(encoder_named(name))
    tokens = tower.tokens(TEXTS)
    assert not tower.causal
    assert tower.end(tokens).tolist() == ([19, 19, 19] if name.endswith("last") else [3, 11, 1])
    with pytest.raises(ValueError, match="12 tokens for a context of 20.*nothing can be cut"):
        tower.encode(tower.embed(tokens[:, :12]), tower.end(tokens))


def test_more_than_the_context_is_refused():
    tower = TextTower(encoder_named("text-flat"))
    with pytest.raises(ValueError, match="21 tokens for a context of 20"):
        tower.encode(torch.zeros(1, 21, tower.width), torch.tensor([3]))


def test_other_libraries_and_class_tokens_are_refused():
    encoder = encoder_named("text-custom")
    foreign = HFTextEncoder.__new__(HFTextEncoder)
    nn.Module.__init__(foreign)
    encoder.model.text = foreign
    with pytest.raises(TypeError, match="text-custom: .* HFTextEncoder, not open_clip's own"):
        TextTower(encoder)
    with pytest.raises(TypeError, match="text-class: .* class token"):
        TextTower(load_encoder("text-class", "random"))


@pytest.mark.parametrize("pool", ["none", "avg"])
def test_a_tower_without_a_pooled_row_is_refused(pool):
    encoder = encoder_named("text-flat")
    encoder.model.text_pool_type = pool
    with pytest.raises(TypeError, match=f"pools by '{pool}'"):
        TextTower(encoder)


def test_what_a_tower_tells():
    encoder = encoder_named("text-custom")
    tower = TextTower(encoder)
    weight = encoder.model.text.token_embedding.weight
    assert (tower.width, tower.context) == (32, 20)
    assert tower.typical_norm == pytest.approx(weight.norm(dim=1).median().item())
    assert not isinstance(tower, nn.Module) and not tower.table.requires_grad
    assert tower.fits("a " * 18) and not tower.fits("a " * 19)


def test_gradient_reaches_embeddings_through_frozen_weights():
    encoder = encoder_named("text-flat").requires_grad_(False)
    tower = TextTower(encoder)
    tokens = tower.tokens(TEXTS)
    embedded = tower.embed(tokens).requires_grad_()
    tower.encode(embedded, tower.end(tokens))[:, 0].sum().backward()
    reached = embedded.grad.abs().sum(dim=2) > 0
    at = torch.arange(tower.context)
    assert torch.equal(reached, at[None] <= tower.end(tokens)[:, None]), "none flows from behind"


@torch.no_grad()
def test_autocast_gives_float32_and_about_the_same():
    tower = TextTower(encoder_named("text-flat"))
    tokens = tower.tokens(TEXTS)
    whole = tower.encode(tower.embed(tokens), tower.end(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        half = tower.encode(tower.embed(tokens), tower.end(tokens))
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert torch.cosine_similarity(half, whole).min() > 0.999


@torch.no_grad()
def test_it_follows_the_encoder():
    """Weights that change later, or move, are the ones it uses; a copy looks at the copy."""
    encoder = encoder_named("text-flat")
    tower = TextTower(encoder)
    tokens = tower.tokens(TEXTS)
    both = copy.deepcopy(nn.ModuleDict({"encoder": encoder})), copy.deepcopy(tower)
    encoder.model.text_projection.mul_(2)
    expected = encoder.model.encode_text(tokens)
    assert torch.allclose(tower.encode(tower.embed(tokens), tower.end(tokens)), expected, atol=1e-5)
    old = both[1].encode(both[1].embed(tokens), both[1].end(tokens))
    assert torch.allclose(2 * old, expected, atol=1e-5)
