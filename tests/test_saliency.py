"""Maps and their checks: against loops written from the papers, and on towers small enough."""

import json
from dataclasses import replace
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from toy_hands import small_towers

from handclip_lib.aspects import CHAIN
from handclip_lib.data import drawn
from handclip_lib.data.masks import hand_masks
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.store import open_store
from handclip_lib.data.tables import read_11k
from handclip_lib.evaluate import explanation, faithfulness, saliency
from handclip_lib.evaluate.embed import embed, retrieval_features
from handclip_lib.evaluate.saliency import Held
from handclip_lib.models import watch
from handclip_lib.models.adapters import adapt, adapter_parameters
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.joint import joint_tokens
from handclip_lib.schema_train import Adapt

TOWERS = ("toy-vit", "toy-rn")
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}
TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
MEAN = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
MEAN |= {"pool_type": "avg"}
PLAIN = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
ADAPTED = {
    "plain": None,
    "shallow prompts": Adapt(prompts=3),
    "deep prompts": Adapt(prompts=3, deep=True),
    "all": Adapt(view="aspect", prompts=2, deep=True, lora=2, stride=4),
}
each_adapter = pytest.mark.parametrize("told", ADAPTED.values(), ids=ADAPTED)
CASES = {f"toy-vit, {key}": ("toy-vit", told) for key, told in ADAPTED.items()}
CASES["toy-rn"] = ("toy-rn", None)
each_case = pytest.mark.parametrize(("name", "told"), CASES.values(), ids=CASES)


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    small_towers(folder)
    told = {"embed_dim": 16, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True}
    (folder / "watch-timm.json").write_text(json.dumps(told))
    told = {"embed_dim": 16, "vision_cfg": MEAN, "text_cfg": TEXT}
    (folder / "watch-mean.json").write_text(json.dumps(told))
    open_clip.add_model_config(folder)


def make(
    name: str, told: Adapt | None = None, size: int | tuple[int, int] | None = None
) -> Encoder:
    """A tower with random weights, its adapters as after training; attention is not uniform."""
    torch.manual_seed(0)
    encoder = load_encoder(name, "random", size)
    if told is not None:
        adapt(encoder, told, ("dorsal_r", "palmar_r"))
        for parameter in adapter_parameters(encoder):
            parameter.data.normal_(std=0.1)
    for name, parameter in encoder.visual.named_parameters():
        if "in_proj_weight" in name or "q_proj.weight" in name or "k_proj.weight" in name:
            parameter.data.mul_(4)
    return encoder


def inputs(encoder: Encoder, count: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, *encoder.preprocess.size, generator=draw)


def reference(encoder: Encoder, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        told = encoder.eval().features(images)
    joined = torch.cat([told.pool, told.proj], dim=1)
    return torch.nn.functional.normalize(joined, dim=1).numpy()


def hooks(encoder: Encoder) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.visual.modules())


# -- what is seen inside --------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@each_case
def test_outputs_are_the_same_to_the_bit_while_watched_and_after(name, told, grad):
    encoder = make(name, told).eval()
    images, before = inputs(encoder), hooks(encoder)
    with torch.set_grad_enabled(grad):
        plain = encoder.features(images)
        with watch.attention_weights(encoder.visual) as weights:
            seen = encoder.features(images)
        with watch.last_stage(encoder.visual):
            also = encoder.features(images)
        after = encoder.features(images)
    for other in (seen, also, after):
        assert all(torch.equal(getattr(plain, k), getattr(other, k)) for k in plain._fields[:4])
    assert hooks(encoder) == before
    for block in weights:
        assert not block.requires_grad and block.min() >= 0
        torch.testing.assert_close(block.sum(dim=-1), torch.ones(block.shape[:-1]))


def test_an_error_inside_leaves_no_watcher_behind():
    for name in TOWERS:
        encoder = make(name)
        before = hooks(encoder)
        for watcher in (watch.attention_weights, watch.last_stage):
            with pytest.raises(RuntimeError, match="inside"), watcher(encoder.visual):
                raise RuntimeError("inside")
        assert hooks(encoder) == before


def test_weights_of_a_vit_are_those_of_its_projections():
    encoder = make("toy-vit").eval()
    images = inputs(encoder)
    inner = []
    block = encoder.visual.transformer.resblocks[1]
    handle = block.ln_1.register_forward_hook(lambda _, args, out: inner.append(out))
    with torch.no_grad(), watch.attention_weights(encoder.visual) as weights:
        encoder.features(images)
    handle.remove()
    q, k, _ = (inner[0] @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=2)
    assert len(weights) == 2
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        naive = (q[..., part] @ k[..., part].transpose(1, 2) / 4).softmax(dim=2)
        torch.testing.assert_close(weights[1][:, head], naive, atol=1e-5, rtol=1e-4)


def test_weights_of_an_attention_pool_give_its_output():
    encoder = make("toy-rn", size=(64, 96)).eval()
    images = inputs(encoder)
    with torch.no_grad(), watch.attention_weights(encoder.visual) as weights:
        told = encoder.features(images)
    pool = encoder.visual.attnpool
    x = torch.cat([told.tokens.mean(dim=1, keepdim=True), told.tokens], 1)
    values = pool.v_proj(x + pool.positional_embedding).unflatten(2, (pool.num_heads, -1))
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights[0], values).flatten(2)[:, 0]
    torch.testing.assert_close(pool.c_proj(mixed), told.proj, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_shown_is_an_error():
    encoder = make("watch-timm", size=160)
    images = inputs(encoder, 1)
    with pytest.raises(TypeError, match="attention of a TimmModel"):
        saliency.rollout(encoder, images)
    with pytest.raises(TypeError, match="last stage of a TimmModel"):
        saliency.similarity_cam(Held(encoder, images, reference(encoder, images)))
    with pytest.raises(TypeError, match="TimmModel"):
        next(faithfulness.randomised(encoder))
    pairs = saliency.pair_evidence(encoder, images[0], images[0], top=3)  # places have features
    assert pairs["similarity"].to_numpy() == pytest.approx(1, abs=1e-5)


# -- rollout --------------------------------------------------------------------------------------


def naive_rollout(weights: list[np.ndarray], fresh: int) -> np.ndarray:
    """(L, L) of one image, heads joined: what each token is made of, block by block."""
    size = len(weights[0])
    made = np.eye(size)
    for block in weights:
        for token in range(size - fresh, size):
            made[token] = np.eye(size)[token]
        new = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                new[i] += 0.5 * block[i, j] * made[j]
            new[i] += 0.5 * made[i]
        made = new
    return made


@each_adapter
def test_rollout_is_that_of_the_paper_without_class_token_and_prompts(told):
    encoder = make("toy-vit", told).eval()
    images = inputs(encoder, 2)
    with torch.no_grad(), watch.attention_weights(encoder.visual) as weights:
        height, width = encoder.features(images).grid
    maps = saliency.rollout(encoder, images)
    assert maps.shape == (2, height, width)
    fresh = told.prompts if told is not None and told.deep else 0
    joined = [block.mean(dim=1) for block in weights]
    rolled = saliency.roll(joined, fresh)
    torch.testing.assert_close(rolled.sum(dim=2), torch.ones(rolled.shape[:2]))
    for i in range(2):
        made = naive_rollout([block[i].double().numpy() for block in joined], fresh)
        np.testing.assert_allclose(rolled[i], made, atol=1e-6)
        np.testing.assert_allclose(
            maps[i].ravel(), made[0, 1 : 1 + height * width], atol=1e-6, rtol=1e-5
        )


def test_rollout_of_a_tower_that_averages_reads_every_place():
    encoder = make("watch-mean").eval()
    images = inputs(encoder, 2)
    with torch.no_grad(), watch.attention_weights(encoder.visual) as weights:
        encoder.features(images)
    rolled = saliency.roll([block.mean(dim=1) for block in weights])
    expected = rolled[:, 1:].mean(dim=1)[:, 1:].reshape(2, 4, 4)
    np.testing.assert_allclose(saliency.rollout(encoder, images), expected, rtol=1e-5)


def test_rollout_of_a_resnet_is_its_pools_query():
    encoder = make("toy-rn", size=(64, 96)).eval()
    images = inputs(encoder)
    with torch.no_grad(), watch.attention_weights(encoder.visual) as weights:
        encoder.features(images)
    maps = saliency.rollout(encoder, images)
    assert maps.shape == (3, 2, 3)
    np.testing.assert_allclose(maps.reshape(3, -1), weights[0].mean(dim=1)[:, 0, 1:], rtol=1e-5)


# -- the gradient's map ---------------------------------------------------------------------------


@each_case
def test_a_similarity_map_depends_on_the_reference_and_leaves_no_trace(name, told):
    encoder = make(name, told, None if name == "toy-vit" else (64, 96))
    images = inputs(encoder)
    width = reference(encoder, images).shape[1]
    refs = np.random.default_rng(0).normal(size=(3, width))
    maps, turned = (saliency.similarity_cam(Held(encoder, images, r)) for r in (refs, -refs))
    with torch.no_grad():
        grid = encoder.features(images).grid
    assert maps.shape == (3, *grid)
    assert (np.minimum(maps, turned) == 0).all()  # what raises one cosine lowers the other
    assert (np.maximum(maps, turned) > 0).mean() > 0.9
    assert all(p.grad is None for p in encoder.parameters())
    with pytest.raises(ValueError, match="references"):
        saliency.similarity_cam(Held(encoder, images, refs[:2]))


def test_places_have_a_gradient_before_the_last_block_and_none_behind_it():
    encoder = make("toy-vit").eval()
    images = inputs(encoder)
    behind = []
    last = encoder.visual.transformer.resblocks[-1]
    handle = last.register_forward_hook(lambda _, args, out: behind.append(out))
    with watch.last_stage(encoder.visual) as taken:
        told = encoder.features(images.requires_grad_())
    handle.remove()
    held = Held(encoder, images, reference(encoder, inputs(encoder).flip(0)))
    score = held.cosines(told)
    before, after = torch.autograd.grad(score.sum(), [taken[0], behind[0]])
    assert before[:, 1:].abs().amax(dim=2).min() > 0
    assert after[:, 1:].abs().max() == 0 and after[:, 0].abs().max() > 0


# -- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOWERS)
def test_evidence_is_what_is_mutually_nearest(name):
    encoder = make(name, size=64).eval()
    query, gallery = inputs(encoder, 2)
    mask = np.zeros((2, 64, 64))
    mask[:, :, 32:] = 1
    with torch.no_grad():
        told = encoder.features(torch.stack([query, gallery]))
        places = torch.nn.functional.normalize(joint_tokens(encoder.visual, told)[:, 1:], dim=2)
    sim = (places[0] @ places[1].T).numpy()
    width = told.grid[1]
    for masks in (None, mask):
        allowed = [k for k in range(len(sim)) if masks is None or k % width >= width // 2]
        naive = [
            (sim[i, j], i, j)
            for i in allowed
            for j in allowed
            if sim[i, j] == max(sim[i, k] for k in allowed) == max(sim[k, j] for k in allowed)
        ]
        found = saliency.pair_evidence(encoder, query, gallery, top=4, masks=masks)
        expected = sorted(naive, reverse=True)[:4]
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found["similarity"], [s for s, _, _ in expected], atol=1e-5)
        at = found["query_row"] * width + found["query_column"]
        to = found["gallery_row"] * width + found["gallery_column"]
        assert at.tolist() == [i for _, i, _ in expected]
        assert to.tolist() == [j for _, _, j in expected]
    assert saliency.pair_evidence(encoder, query, gallery, masks=0 * mask).empty


# -- whether maps tell the truth ------------------------------------------------------------------


def planted(encoder: Encoder) -> tuple[torch.Tensor, np.ndarray]:
    """Empty pictures with one place (row 2, column 1 of 4 x 4) that says who it is, and maps."""
    images = torch.full((3, 3, 32, 32), 0.8)
    images[:, :, 16:24, 8:16] = inputs(encoder)[:, :, :8, :8]
    maps = np.zeros((3, 4, 4), np.float32)
    maps[:, 2, 1] = 1
    return images, maps


def test_blanking_the_planted_place_hurts_more_than_others():
    encoder = make("toy-vit")
    images, maps = planted(encoder)
    held = Held(encoder, images, reference(encoder, images))
    found = faithfulness.deletion(held, maps, share=1 / 16)
    assert found["cosine"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (found["top"] < -0.01).all()
    assert found["lowest"].to_numpy() == pytest.approx(0, abs=1e-6)  # empty as before
    hit = found["random"] / found["top"]  # how often a random place was the planted one
    assert (hit * 8).to_numpy() == pytest.approx((hit * 8).round(), abs=0.01)
    assert (found["random"] > 0.5 * found["top"]).all()
    again = faithfulness.deletion(held, maps, share=1 / 16)
    pd.testing.assert_frame_equal(found, again)
    score = faithfulness.faithfulness(found, [1, 2, 3])
    assert score["top_less_random"]["ci95"][1] < 0
    assert score["top"]["mean"] == pytest.approx(found["top"].mean())
    wrong = faithfulness.deletion(held, 1 - maps, share=1 / 16)
    assert wrong["lowest"].to_numpy() == pytest.approx(found["top"].to_numpy())


def test_only_places_that_are_named_are_blanked_in_the_pictures_own_colour():
    encoder = make("toy-vit")
    images, maps = planted(encoder)
    held = Held(encoder, images, reference(encoder, images))
    among = maps > 0
    found = faithfulness.deletion(held, -maps, 1 / 16, among=among)
    assert found["top"].to_numpy() == pytest.approx(found["random"].to_numpy())
    assert (found["lowest"] < -0.01).all()
    empty = faithfulness.deletion(held, maps, 1 / 16, among=~among)
    assert empty["top"].to_numpy() == pytest.approx(0, abs=1e-6)  # the empty picture's own colour
    for told in ({"share": 0.0}, {"share": 1.1}, {"among": among & ~among}):
        with pytest.raises(ValueError, match="share|among"):
            faithfulness.deletion(held, maps, **told)


@pytest.mark.parametrize("told", [None, Adapt(view="aspect")], ids=["plain", "codes"])
def test_what_two_photographs_share_is_checked_by_blanking_it(hands, tmp_path, told):
    encoder = make("toy-vit", told, 64)
    store = open_store(hands, encoder.preprocess, tmp_path)
    plain = hands[hands["accessories"] == 0].groupby("aspect")["image"].first()
    both = plain[["dorsal_r", "palmar_r"]].tolist()
    fabric = lf.Fabric(accelerator="cpu")
    z = retrieval_features(embed(encoder, store, both, fabric))
    pixels, maps, places, note = explanation.faced(
        explanation.look(encoder, store, both, z[[1, 0]], fabric)
    )
    assert pixels.shape[0] == 2 and maps.shape == (2, 8, 8) and len(places)
    images = encoder.preprocess.normalise(torch.from_numpy(pixels))
    blanked = images.clone()
    edge = [images[0, :, 0], images[0, :, -1], images[0, :, :, 0], images[0, :, :, -1]]
    colour = torch.cat(edge, dim=1).median(dim=1).values[:, None, None]
    for row, column in zip(places["query_row"], places["query_column"], strict=True):
        blanked[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = colour
    codes = encoder.codes_of(hands.set_index("image", drop=False).loc[both])
    with torch.no_grad():
        seen = encoder.eval().features(blanked, codes)
    other = torch.nn.functional.normalize(torch.cat([seen.pool, seen.proj], dim=1), dim=1)[0]
    cosine = float(z[0] @ z[1])
    change = float(other.numpy() @ z[1]) - cosine
    expected = f"cosine {cosine:.3f}; with these places of the query blanked {change:+.3f}, "
    expected = expected.replace("-", "−") + "with as many random ones of its hand "
    assert note.startswith(expected) and float(note.split()[-1].replace("−", "-")) != 0


def test_a_pair_without_known_hands_is_checked_on_the_whole_picture(hands, tmp_path, monkeypatch):
    encoder = make("toy-vit", size=64)
    store = open_store(hands, encoder.preprocess, tmp_path)
    both = hands["image"].tolist()[:2]
    fabric = lf.Fabric(accelerator="cpu")
    z = retrieval_features(embed(encoder, store, both, fabric))
    unknown = np.full((2, 64, 64), np.nan)
    monkeypatch.setattr(explanation, "hand_masks", lambda *_: unknown)
    _, _, places, note = explanation.faced(
        explanation.look(encoder, store, both, z[[1, 0]], fabric)
    )
    assert len(places) and "random ones of the picture" in note
    monkeypatch.setattr(explanation, "hand_masks", lambda *_: 0 * np.ones((2, 64, 64)))
    _, _, places, note = explanation.faced(
        explanation.look(encoder, store, both, z[[1, 0]], fabric)
    )
    assert places.empty and note == f"cosine {float(z[0] @ z[1]):.3f}".replace("-", "−")


def test_share_on_hand():
    maps = np.array([[[1, 0], [0, 3]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]], np.float32)
    masks = np.zeros((3, 4, 4), np.float32)
    masks[:, 2:, 2:] = 1
    masks[0, 0, 0] = 1  # a quarter of the first place
    found = saliency.on_hand(maps, masks)
    assert found[[0, 2]] == pytest.approx([(0.25 + 3) / 4, 0.25])
    assert np.isnan(found[1])
    masks[2] = np.nan
    assert np.isnan(saliency.on_hand(maps, masks)[2])


def test_ranks_of_maps_are_compared_image_by_image():
    one = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 1], [1, 1]]], np.float32)
    two = np.array([[[10, 20], [30, 99]], [[4, 3], [2, 1]], [[1, 2], [3, 4]]], np.float32)
    found = faithfulness.agreement(one, two)
    assert found[:2] == pytest.approx([1, -1]) and np.isnan(found[2])


@pytest.fixture(scope="module")
def shots() -> list[Image.Image]:
    """Two drawn photographs of each of three persons."""
    people = [drawn.make_person(drawn.person_seed("maps", 0, k)) for k in range(3)]
    arrays = [drawn.draw_hand(p, CHAIN[0], s, size=(160, 120)) for p in people for s in (0, 1)]
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("name", ["tiny", "tiny_rn"])
def test_maps_come_from_what_was_learned(name, shots):
    encoder = load_encoder(name)
    pixels = [encoder.preprocess.fit_image(shot)[0] for shot in shots]
    images = encoder.preprocess.normalise(torch.from_numpy(np.stack(pixels)))
    kept = encoder.weights_sha256
    refs = reference(encoder, images)[[1, 0, 3, 2, 5, 4]]
    held = Held(encoder, images, refs)
    before = saliency.rollout(encoder, images), saliency.similarity_cam(held)
    stages, others = zip(*faithfulness.randomised(encoder), strict=True)
    other = others[-1]
    assert stages[0] == "output" and stages[-1] == "input" and len(stages) == len(set(stages))
    assert encoder.weights_sha256 == kept != other.weights_sha256
    shuffled = dict(other.visual.named_parameters())
    for key, value in encoder.visual.named_parameters():
        assert torch.equal(value.flatten().sort().values, shuffled[key].flatten().sort().values)
        assert value.numel() < 9 or value.unique().numel() == 1 or not value.equal(shuffled[key])
    after = saliency.rollout(other, images), saliency.similarity_cam(replace(held, encoder=other))
    for one, two in zip(before, after, strict=True):
        assert np.nanmean(faithfulness.agreement(one, two)) < 0.5
        assert np.nanmean(faithfulness.agreement(one, one)) == pytest.approx(1)


# -- masks ----------------------------------------------------------------------------------------


@each_adapter
def test_a_similarity_map_is_the_gradient_times_the_place(told):
    encoder = make("toy-vit", told).eval()
    images, refs = inputs(encoder), reference(encoder, inputs(encoder)).take([1, 2, 0], axis=0)
    block, taken = encoder.visual.transformer.resblocks[-1], []
    handle = block.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    seen = encoder.features(images)
    handle.remove()
    height, width = seen.grid
    cosines = torch.cat([seen.pool, seen.proj], dim=1)
    cosines = (torch.nn.functional.normalize(cosines, dim=1) * torch.tensor(refs)).sum(dim=1)
    (slope,) = torch.autograd.grad(cosines.sum(), taken[0])
    values = taken[0].detach()
    maps = saliency.similarity_cam(Held(encoder, images, refs))
    for i in range(3):
        for place in range(height * width):
            value = max(0.0, float(slope[i, 1 + place] @ values[i, 1 + place]))
            assert maps[i, place // width, place % width] == pytest.approx(value, abs=1e-5)


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("masks") / "hands"
    drawn.draw_dataset(root, persons=1, seed=3, shots=(1, 1), workers=1, progress=False)
    return read_11k(root)


@pytest.mark.parametrize("fit", ["squash", "pad", "hand"])
def test_the_mask_lies_on_the_hand_that_the_model_sees(hands, fit, tmp_path):
    size = (96, 64) if fit == "pad" else (96, 96)
    preprocess = Preprocess(size, fit, **PLAIN, mirror_left=True)
    store = open_store(hands, preprocess, tmp_path)
    plain = hands[hands["accessories"] == 0]["image"].tolist()
    pixels, masks = store.pixels(plain).numpy(), hand_masks(store, plain)
    assert masks.shape == pixels.shape[:3] and masks.min() >= 0 and masks.max() <= 1
    assert store.mirrored & set(plain)
    for picture, mask in zip(pixels.astype(int), masks, strict=True):
        below = np.flatnonzero((mask > 0.5).any(axis=1))
        skin = picture[..., 0] - picture[..., 2] > 28  # red above blue; the table is white
        part = slice(below[0] + len(below) // 3, None)  # fingers; an arm may lie beside the palm
        both = (skin & (mask > 0.5))[part].sum()
        assert both / (skin | (mask > 0.5))[part].sum() > 0.88
        assert 0.05 < mask.mean() < 0.6


def test_the_hand_ends_at_the_wrist_and_the_mask_is_of_the_pictures_size():
    arms = []
    for k in range(8):
        person = drawn.make_person(drawn.person_seed("drawn", 0, k))
        mask = drawn.draw_mask(person, "dorsal_r", 0, size=(160, 120))
        assert mask.shape == (120, 160) and mask.dtype == np.float32
        assert not mask[-1].any()
        arms.append(mask[0].any())
    assert not all(arms)  # every arm goes on to the picture's edge, not every hand


def test_masks_of_photographs_are_their_foreground(hands, tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    names = hands[hands["accessories"] == 0]["image"].tolist()[:2]
    for k, name in enumerate(names):
        with Image.open(Path(hands.attrs["root"]) / name) as picture:
            picture.save(root / f"{k}.png")
    Image.new("RGB", (64, 48), (90, 90, 90)).save(root / "empty.png")
    table = pd.DataFrame({"image": ["0.png", "1.png", "empty.png"]})
    table.attrs = {"root": str(root)}
    spec = Preprocess((96, 96), "squash", **PLAIN)
    masks = hand_masks(open_store(table, spec, tmp_path / "a"), table["image"].tolist())
    told = hand_masks(open_store(hands, spec, tmp_path / "b"), names)
    assert np.isnan(masks[2]).all()
    for seen, known in zip(masks, told, strict=False):
        assert (seen[known > 0.9] > 0.5).mean() > 0.9  # all of the hand, and the arm
        assert seen.mean() < 0.7


def test_masks_of_unknown_pictures_are_an_error(hands):
    root = Path(hands.attrs["root"])
    with pytest.raises(ValueError, match="no picture Hands/Hand_9"):
        drawn.masks_of(root, ["Hands/Hand_9.jpg"])
    with pytest.raises(ValueError, match="mask"):
        picture = Image.new("RGB", (40, 30))
        Preprocess((32, 32), "pad", **PLAIN).fit_mask(picture, np.zeros((40, 30)))


def test_what_an_adapter_brought_is_lost_too_and_attention_put_on_has_no_rollout() -> None:
    encoder = load_encoder("tiny", "")
    adapt(encoder, Adapt(attention="self"))
    with pytest.raises(TypeError, match="attention put before the last stage"):
        saliency.rollout(encoder, torch.zeros(1, 3, 112, 112))
    stage, other = next(faithfulness.randomised(encoder))
    pairs = zip(encoder.adapter.parameters(), other.adapter.parameters(), strict=True)
    assert stage == "output"
    assert any(not torch.equal(own, lost) for own, lost in pairs if own.numel() > 1)
