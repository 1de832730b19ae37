"""Pseudo-words of images: they reach the prompt, train through frozen text, and start at CLIP."""

import copy

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from handclip_lib.models import towers
from handclip_lib.models.clip import load_encoder
from handclip_lib.models.joint import joint_tokens
from handclip_lib.models.promptsg import Composer, Interaction, Inversion

TEMPLATE = "a photo of a {person} dorsal right hand."
STYLES = ("promptsg", "clip_handid")
each_style = pytest.mark.parametrize("style", STYLES)


@pytest.fixture(scope="module", params=["tiny", "tiny_rn"])
def seen(request):
    """A frozen encoder and what it makes of five images."""
    torch.manual_seed(0)
    encoder = load_encoder(request.param, "").requires_grad_(False)
    return encoder, encoder.features(torch.randn(5, 3, *encoder.preprocess.size))


def composer_of(encoder, style="promptsg", interact=True):
    torch.manual_seed(1)
    return Composer(encoder, TEMPLATE, style, interact)


def unfold(interaction):
    """Projections that start at zero, as if they had learnt."""
    torch.manual_seed(2)
    for value in interaction.parameters():
        if value.dim() == 2:
            nn.init.normal_(value, std=0.2)


def rows(features, keep):
    names = ("penult", "pool", "proj", "tokens")
    return features._replace(**{name: getattr(features, name)[keep] for name in names})


# -- places in the joint space --------------------------------------------------------------------


def test_the_whole_comes_first_then_each_place(seen):
    encoder, features = seen
    joint = joint_tokens(encoder.visual, features)
    assert joint.shape == (5, 1 + features.grid[0] * features.grid[1], encoder.dims["proj"])
    assert torch.equal(joint[:, 0], features.proj)
    swapped = joint_tokens(encoder.visual, features._replace(tokens=features.tokens.flip(1)))
    torch.testing.assert_close(swapped[:, 1:], joint[:, 1:].flip(1), rtol=0, atol=1e-5)


def test_a_patch_takes_the_way_of_the_class_token():
    encoder = load_encoder("tiny", "").requires_grad_(False)
    features = encoder.features(torch.randn(2, 3, *encoder.preprocess.size))
    joint = joint_tokens(encoder.visual, features._replace(tokens=features.pool[:, None]))
    torch.testing.assert_close(joint[:, 1], features.proj)


def test_a_resnets_place_gives_what_a_picture_of_it_alone_would():
    """Where all places are alike, attention has no choice; positions are left out."""
    visual = copy.deepcopy(load_encoder("tiny_rn", "").visual).requires_grad_(False)
    visual.attnpool.positional_embedding.zero_()
    one = torch.randn(2, 512)
    pooled = visual.attnpool(one[:, :, None, None].expand(-1, -1, 4, 4))
    features = towers.Features(one, one, pooled, one[:, None].expand(-1, 16, -1), (4, 4))
    joint = joint_tokens(visual, features)
    torch.testing.assert_close(joint, pooled[:, None].expand(-1, 17, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("late", [False, True])
def test_a_mean_of_one_patch_is_that_patch(late):
    visual = VisionTransformer(
        16, 16, 32, 2, 2, 4.0, output_dim=24, pool_type="avg", final_ln_after_pool=late
    )
    nn.init.normal_(visual.ln_post.bias)
    features = towers.features(visual, torch.randn(2, 3, 16, 16))
    joint = joint_tokens(visual, features)
    torch.testing.assert_close(joint[:, 1], features.proj)


def test_towers_whose_places_have_no_way_to_texts_are_refused(seen):
    pooling = VisionTransformer(16, 16, 32, 2, 2, 4.0, attentional_pool=True, output_dim=24)
    for visual in (pooling, nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="no way into the space of texts"):
            joint_tokens(visual, seen[1])


# -- the inversion network ------------------------------------------------------------------------


@each_style
def test_pseudo_words_differ_and_are_about_as_long_as_words(style):
    torch.manual_seed(0)
    inversion, z = Inversion(48, 64, 0.37, style).requires_grad_(False), 7 * torch.randn(32, 48)
    words = inversion(z)
    assert float(words.norm(dim=1).mean()) == pytest.approx(0.37, rel=0.1)
    assert torch.pdist(words).min() > 0.01 * 0.37
    inversion.eval()  # without dropout, and each image for itself
    assert torch.pdist(inversion(z)).min() > 0.01 * inversion(z).norm(dim=1).mean()
    torch.testing.assert_close(inversion(9 * z), inversion(z))


def test_batch_norm_learns_to_serve_images_alone():
    torch.manual_seed(0)
    inversion = Inversion(48, 64, 0.37, "promptsg").requires_grad_(False)
    for _ in range(60):
        inversion(torch.randn(32, 48))
    words = inversion.eval()(torch.randn(32, 48))
    assert float(words.norm(dim=1).mean()) == pytest.approx(0.37, rel=0.15)


@pytest.mark.parametrize(
    ("style", "shapes", "last"),
    [
        ("promptsg", [(512, 48), (512, 512), (64, 512)], nn.BatchNorm1d),
        ("clip_handid", [(192, 48), (192, 192), (64, 192)], nn.LayerNorm),
    ],
)
def test_layers_are_the_papers(style, shapes, last):
    layers = Inversion(48, 64, 0.37, style).layers
    assert [tuple(m.weight.shape) for m in layers if isinstance(m, nn.Linear)] == shapes
    assert isinstance(layers[-1], last)
    dropped = [m.p for m in layers if isinstance(m, nn.Dropout)]
    assert dropped == ([0.5, 0.5] if style == "clip_handid" else [])


# -- what a text finds in its image ---------------------------------------------------------------


def test_the_interaction_starts_at_the_images_own_feature():
    torch.manual_seed(0)
    interaction, text, joint = Interaction(24), torch.randn(3, 24), 9 * torch.randn(3, 11, 24)
    fused = interaction(text, joint)
    assert torch.equal(fused, joint[:, 0])
    (fused * torch.randn(3, 24)).sum().backward()
    ends = [b.attn.out_proj for b in interaction.blocks] + [
        b.mlp.c_proj for b in interaction.blocks
    ]
    assert all(end.weight.grad.abs().sum() > 0 for end in (interaction.look.out_proj, *ends))


def test_it_leaves_its_start_within_a_hundred_steps():
    """A zero that hardly moves would be an interaction in name only."""
    torch.manual_seed(0)
    interaction, text, joint = Interaction(64), torch.randn(8, 64), 3 * torch.randn(8, 17, 64)
    text, wanted = functional.normalize(text, dim=1), torch.randn(8, 64)
    adam = torch.optim.Adam(interaction.parameters(), lr=5e-5)
    for _ in range(100):
        adam.zero_grad()
        (-(interaction(text, joint) * wanted).sum()).backward()
        adam.step()
    moved = (interaction(text, joint) - joint[:, 0]).norm() / joint[:, 0].norm()
    assert moved > 0.1


def test_what_is_added_is_attention_of_the_text_over_the_places():
    """softmax(q kᵀ / √d) v of each head, in float64 and one image at a time."""
    torch.manual_seed(0)
    interaction = Interaction(12, heads=3).double()
    nn.init.normal_(interaction.look.out_proj.weight)
    text, joint = torch.randn(4, 12).double(), torch.randn(4, 6, 12).double()
    w_q, w_k, w_v = interaction.look.in_proj_weight.chunk(3)
    for i, fused in enumerate(interaction(text, joint)):
        q = w_q @ functional.layer_norm(text[i], (12,))
        seen = functional.layer_norm(joint[i, 1:], (12,))
        k, v, heads = seen @ w_k.T, seen @ w_v.T, []
        for at in (slice(0, 4), slice(4, 8), slice(8, 12)):
            share = torch.softmax(k[:, at] @ q[at] / 2, dim=0)  # √d = 2
            heads.append(share @ v[:, at])
        wanted = joint[i, 0] + interaction.look.out_proj.weight @ torch.cat(heads)
        torch.testing.assert_close(fused, wanted)


def test_a_text_sees_its_own_image_alone():
    torch.manual_seed(0)
    interaction, text, joint = Interaction(24), torch.randn(3, 24), torch.randn(3, 11, 24)
    unfold(interaction)
    fused = interaction(text, joint)
    assert (fused - joint[:, 0]).abs().max() > 0.1
    for i in range(3):
        alone = interaction(text[i : i + 1], joint[i : i + 1])
        torch.testing.assert_close(fused[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    other = interaction(text.roll(1, 0), joint)
    assert (other - fused).norm(dim=1).min() > 0.01 * fused.norm(dim=1).mean()


@pytest.mark.parametrize(("width", "heads"), [(64, 8), (12, 6), (7, 7), (11, 1)])
def test_heads_are_the_largest_number_that_divides_the_width(width, heads):
    interaction = Interaction(width)
    assert [interaction.look.num_heads, interaction.blocks[0].attn.num_heads] == [heads] * 2


# -- prompts --------------------------------------------------------------------------------------


@each_style
def test_texts_of_images_differ_and_are_unit_rows(seen, style):
    encoder, features = seen
    text, fused = composer_of(encoder, style, interact=False)(features)
    assert text.shape == (5, encoder.dims["proj"]) and text.dtype == torch.float32 and fused is None
    torch.testing.assert_close(text.norm(dim=1), torch.ones(5))
    apart = torch.pdist(text)
    assert apart.max() > 0.01 and apart.min() > 0.003, "an inert pseudo-word"


class Says(nn.Module):
    """An inversion network that makes the same word of every image."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def forward(self, z):
        return self.word.expand(len(z), -1)


def test_a_pseudo_word_that_is_a_word_gives_the_text_of_that_word(seen):
    encoder, features = seen
    composer = composer_of(encoder)
    token = encoder.tokenizer(["person"])[0, 1]
    composer.inversion = Says(encoder.model.token_embedding.weight[token])
    plain = functional.normalize(encoder.encode_text([TEMPLATE.format(person="person")]), dim=1)
    text, _ = composer(features)
    torch.testing.assert_close(text, plain.expand(5, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(composer.fixed(), plain, rtol=0, atol=1e-5)


@each_style
def test_the_inversion_network_trains_through_the_frozen_text_tower(seen, style):
    encoder, features = seen
    composer, before = composer_of(encoder, style), encoder.weights_sha256
    wanted = functional.normalize(torch.randn(5, encoder.dims["proj"]), dim=1)
    adam = torch.optim.Adam(composer.parameters(), lr=1e-3)
    said = []
    for _ in range(20):
        adam.zero_grad()
        text, _ = composer(features)
        loss = -(text * wanted).sum(dim=1).mean()
        loss.backward()
        said.append(float(loss.detach()))
        first = composer.inversion.layers[0].weight.grad
        assert first.isfinite().all() and first.abs().sum() > 0
        adam.step()
    assert said[-1] < said[0] - 0.02
    assert encoder.weights_sha256 == before


def test_the_towers_are_no_part_of_it(seen):
    encoder, _ = seen
    composer = composer_of(encoder)
    tops = {name.partition(".")[0] for name in composer.state_dict()}
    assert tops == {"inversion", "interaction"}
    assert not {id(p) for p in composer.parameters()} & {id(p) for p in encoder.parameters()}
    assert all(p.requires_grad for p in composer.parameters())


def test_a_copy_looks_at_the_copied_tower():
    visual = (encoder := load_encoder("tiny", "").requires_grad_(False)).visual
    features = encoder.features(torch.randn(2, 3, *encoder.preprocess.size))
    both = nn.ModuleList([visual, composer_of(encoder).eval()])
    twin = copy.deepcopy(both)
    twin[0].proj.mul_(3)
    before, after = (composer.joint(features)[:, 1:] for composer in (both[1], twin[1]))
    torch.testing.assert_close(after, 3 * before)
    torch.testing.assert_close(twin[1](features)[0], both[1](features)[0])


def test_it_starts_at_the_images_own_feature(seen):
    encoder, features = seen
    for composed in (True, False):
        _, fused = composer_of(encoder)(features, composed)
        assert torch.equal(fused, features.proj)


@pytest.mark.parametrize("composed", [True, False])
@each_style
def test_an_image_says_the_same_among_any_others(seen, style, composed):
    encoder, features = seen
    composer = composer_of(encoder, style).eval()
    unfold(composer.interaction)
    everything = composer(features, composed)
    for keep in ([3], [1, 3, 0]):
        some = composer(rows(features, keep), composed)
        for of_all, of_some in zip(everything, some, strict=True):
            torch.testing.assert_close(of_some, of_all[keep], rtol=1e-4, atol=1e-4)


def test_one_text_serves_all_images_without_pseudo_words(seen):
    encoder, features = seen
    composer = composer_of(encoder).eval()
    unfold(composer.interaction)
    text, fused = composer(features, composed=False)
    torch.testing.assert_close(text, composer.fixed().expand(5, -1))
    assert (fused - composer(features)[1]).norm(dim=1).min() > 1e-3, "the composed text is read"


def test_it_runs_in_bfloat16(seen):
    encoder, features = seen
    composer = composer_of(encoder)
    exact, _ = composer(features)
    with torch.autocast("cpu", torch.bfloat16):
        text, fused = composer(features)
    assert text.dtype == torch.float32 and fused.isfinite().all()
    assert (text * exact).sum(dim=1).min() > 0.99
