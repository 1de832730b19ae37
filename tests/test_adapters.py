"""Adapters act on nothing before they have learnt, and are kept, told and cached afterwards."""

import copy
import json
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from handclip_lib.data.store import Store, open_store
from handclip_lib.evaluate.embed import embed
from handclip_lib.export import export_model
from handclip_lib.models.adapters import adapt, adapter_parameters, merge_lora
from handclip_lib.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.files import save_local_dir
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ParamError
from handclip_lib.schema_train import Adapt, Training
from handclip_lib.train.optim import make_optimizer, open_layers, trainable_table

TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
RN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}
CONFIGS = {
    "adapt-vit": {"vision_cfg": VIT},
    "adapt-vit-mean": {"vision_cfg": VIT | {"pool_type": "avg", "no_ln_pre": True}},
    "adapt-rn": {"vision_cfg": RN},
    "adapt-timm": {"vision_cfg": TIMM, "custom_text": True},
}
VIEWS = ("dorsal_l", "dorsal_r", "palmar_r")
EVERYTHING = Adapt(view="aspect", view_scale=2.0, prompts=2, lora=2, stride=6)
NAMES = ("penult", "pool", "proj", "tokens")


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, told in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "text_cfg": TEXT} | told))
    open_clip.add_model_config(folder)


def make(name: str = "adapt-vit", told: Adapt | None = None, size: int | None = None) -> Encoder:
    torch.manual_seed(0)
    encoder = load_encoder(name, "random", size)
    if told is not None:
        adapt(encoder, told, VIEWS)
    return encoder


def taught(encoder: Encoder) -> Encoder:
    """As after training: the adapter's parameters have other values than at the start."""
    torch.manual_seed(1)
    for parameter in adapter_parameters(encoder):
        parameter.data.normal_(std=0.2)
    return encoder


def images(encoder: Encoder, count: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, *encoder.preprocess.size, generator=draw)


@torch.inference_mode()
def seen(encoder: Encoder, codes: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    told = encoder.eval().features(images(encoder), codes)
    return {name: getattr(told, name) for name in NAMES}


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in NAMES)


def settings(**told) -> Training:
    return Training(lr=1e-3, **told)


# --- nothing acts at the start ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adapt-vit", Adapt(view="aspect")),
        ("adapt-vit", Adapt(lora=2)),
        ("adapt-vit", Adapt(stride=8)),
        ("adapt-vit-mean", Adapt(view="aspect", lora=2)),
        ("adapt-rn", Adapt(lora=2)),
    ],
)
def test_at_the_start_the_towers_function_is_what_it_was(name, told):
    plain, encoder = make(name), make(name, told)
    codes = torch.tensor([2, 0, 1]) if told.view != "none" else None
    assert differ(seen(plain), seen(encoder, codes)) == 0
    assert encoder.adapter is not None and encoder.adapter.told == told


def test_what_asks_for_nothing_leaves_nothing():
    encoder = make(told=Adapt(view_scale=3.0, deep=False))
    assert encoder.adapter is None
    assert encoder.weights_sha256 == make().weights_sha256
    with pytest.raises(ValueError, match="told no views"):
        encoder.features(images(encoder), torch.zeros(3, dtype=torch.long))


def test_a_second_adapter_is_refused():
    encoder = make(told=Adapt(lora=1))
    with pytest.raises(ParamError, match="has an adapter"):
        adapt(encoder, Adapt(lora=1))


# --- side information -------------------------------------------------------------------------


def test_a_view_acts_on_the_class_token_alone_and_the_unknown_is_the_mean():
    encoder, entered = make(told=Adapt(view="aspect", view_scale=2.0)), []
    table = encoder.adapter.sie
    table.data.normal_()
    encoder.visual.ln_pre.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    plain = make()
    plain.visual.ln_pre.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    codes = torch.tensor([2, 0, 2])
    seen(encoder, codes), seen(encoder), seen(plain)
    told, unknown, before = entered
    assert torch.allclose(told[:, 0] - before[:, 0], 2 * table[codes], atol=1e-5)
    mean = 2 * table.mean(0).expand(3, -1)
    assert torch.allclose(unknown[:, 0] - before[:, 0], mean, atol=1e-5)
    assert torch.equal(told[:, 1:], before[:, 1:])


def test_codes_come_from_the_column_and_what_was_never_seen_is_the_mean():
    encoder = make(told=Adapt(view="camera"))
    rows = pd.DataFrame({"camera": ["palmar_r", "dorsal_l"], "aspect": ["a", "b"]})
    assert encoder.codes_of(rows).tolist() == [2, 0]
    codes = encoder.codes_of(pd.DataFrame({"camera": ["dorsal_l", "phone"]}))
    assert codes.tolist() == [0, len(encoder.adapter.views)]
    encoder.adapter.sie.data.normal_()
    x = images(encoder)[:1]
    unknown = encoder.eval().features(x, codes[1:]).proj
    assert torch.equal(unknown, encoder.features(x).proj)
    assert not torch.allclose(unknown, encoder.features(x, codes[:1]).proj, atol=1e-4)
    with pytest.raises(ParamError, match="no column camera, but aspect"):
        encoder.codes_of(rows[["aspect"]])
    with pytest.raises(ValueError, match="2 views for 3 images"):
        encoder.features(images(encoder), torch.tensor([0, 1]))
    assert make(told=Adapt(lora=1)).codes_of(rows) is None
    with pytest.raises(ParamError, match="its values"):
        adapt(make(), Adapt(view="camera"), ())


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapt-vit", "adapt-vit-mean"])
@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_seen_by_every_block_and_by_nobody_behind_them(name, deep):
    plain, encoder = make(name), make(name, Adapt(prompts=4, deep=deep))
    assert encoder.adapter.prompts.shape == (3 if deep else 1, 4, 32)
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert 0.8 * bound < encoder.adapter.prompts.abs().max() <= bound
    lengths = []
    for block in encoder.visual.transformer.resblocks:
        block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    before, after = seen(plain), seen(encoder)
    assert lengths == [1 + 16 + 4] * 3
    assert {n: z.shape for n, z in before.items()} == {n: z.shape for n, z in after.items()}
    assert encoder.features(images(encoder)).grid == (4, 4)
    assert differ(before, after) > 1e-3
    towers = (e.visual.state_dict() for e in (plain, encoder))
    assert [v.tolist() for v in next(towers).values()] == [
        v.tolist() for v in next(towers).values()
    ]


@pytest.mark.parametrize("name", ["adapt-vit", "adapt-vit-mean"])
@torch.no_grad()
def test_prompts_do_what_a_loop_over_the_blocks_does(name):
    encoder = taught(make(name, Adapt(prompts=2)))
    given, visual, prompts = images(encoder), encoder.visual, encoder.adapter.prompts
    plain = make(name).visual
    x = plain.conv1(given).flatten(2).transpose(1, 2)
    x = torch.cat([plain.class_embedding.expand(3, 1, -1), x], dim=1) + plain.positional_embedding
    x = plain.ln_pre(torch.cat([x, prompts[0].expand(3, -1, -1)], dim=1))
    for depth, block in enumerate(plain.transformer.resblocks):
        if depth:
            x = torch.cat([x[:, :17], prompts[depth].expand(3, -1, -1)], dim=1)
        before, x = x[:, :17], block(x)
    told = encoder.eval().features(given)
    after = plain.ln_post(x[:, :17])
    pooled = [z[:, 0] if name == "adapt-vit" else z[:, 1:].mean(1) for z in (before, after)]
    assert torch.allclose(told.penult, pooled[0], atol=1e-5)
    assert torch.allclose(told.tokens, after[:, 1:], atol=1e-5)
    assert torch.allclose(told.proj, pooled[1] @ plain.proj, atol=1e-5)
    assert torch.equal(visual(given), told.proj)  # open_clip's own forward picks them up, too


def test_prompts_of_every_block_learn_and_only_they():
    encoder = make(told=Adapt(prompts=2))
    open_layers(encoder, settings(unfreeze_blocks=0, head_epochs=0), 1)
    encoder.features(images(encoder)).proj.square().sum().backward()
    assert (encoder.adapter.prompts.grad.abs().sum(dim=2) > 0).all()
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_dropout_of_prompts_is_for_training_only():
    encoder = make(told=Adapt(prompts=2, prompt_dropout=0.5))
    assert differ(seen(encoder), seen(encoder)) == 0
    encoder.train()
    first, second = (encoder.features(images(encoder)).proj for _ in range(2))
    assert not torch.allclose(first, second)


# --- LoRA -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("adapt-vit", 3 * 4), ("adapt-rn", 4)])
def test_lora_is_merged_into_plain_weights_without_a_change(name, count):
    encoder = make(name, Adapt(lora=3))
    start = seen(encoder)
    assert len(adapter_parameters(encoder)) == 2 * count
    learnt = seen(taught(encoder))
    assert differ(start, learnt) > 1e-3
    merge_lora(encoder)
    assert differ(learnt, seen(encoder)) <= 1e-6
    assert encoder.adapter is None and not adapter_parameters(encoder)
    plain = make(name)
    assert plain.state_dict().keys() == encoder.state_dict().keys()
    assert type(encoder.visual) is type(plain.visual)
    for (_, ours), (_, theirs) in zip(encoder.named_modules(), plain.named_modules(), strict=True):
        assert type(ours) is type(theirs)


def test_merging_keeps_the_rest_of_the_adapter():
    encoder = taught(make(told=EVERYTHING))
    codes = torch.tensor([0, 1, 2])
    before = seen(encoder, codes)
    merge_lora(encoder)
    assert encoder.adapter.told == EVERYTHING.model_copy(update={"lora": 0})
    assert differ(before, seen(encoder, codes)) <= 1e-6
    merge_lora(encoder)  # nothing left to merge


def test_lora_is_float32_under_autocast():
    encoder = taught(make(told=Adapt(lora=2)))
    layer = encoder.visual.transformer.resblocks[0].mlp.c_fc
    expected = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight.detach(), expected)


# --- overlapping patches, other towers --------------------------------------------------------


def test_overlapping_patches_have_a_finer_grid_of_their_own_positions():
    encoder = make(told=Adapt(stride=6))
    told = encoder.features(images(encoder))
    assert told.grid == (5, 5) and told.tokens.shape == (3, 25, 32)
    assert encoder.visual.positional_embedding.shape == (26, 32)
    assert encoder.visual.conv1.weight.shape == make().visual.conv1.weight.shape
    with pytest.raises(ParamError, match="leave pixels out"):
        make(told=Adapt(stride=9))


@pytest.mark.parametrize("name", ["adapt-rn", "adapt-timm"])
@pytest.mark.parametrize("told", [Adapt(view="aspect"), Adapt(prompts=2), Adapt(stride=4, lora=2)])
def test_towers_without_tokens_refuse_what_works_on_tokens(name, told):
    encoder = make(name)
    state = encoder.weights_sha256
    with pytest.raises(ParamError, match=r"adapt\.(view|prompts|stride): .*ViT towers"):
        adapt(encoder, told, VIEWS)
    assert encoder.adapter is None and encoder.weights_sha256 == state


def test_lora_on_a_timm_tower_is_refused():
    with pytest.raises(ParamError, match="not TimmModel"):
        make("adapt-timm", Adapt(lora=2))


# --- each image by itself, each copy by itself ------------------------------------------------


def test_features_of_an_image_do_not_depend_on_its_batch_mates():
    encoder, codes = taught(make(told=EVERYTHING)), torch.tensor([0, 2, 1])
    given = images(encoder)
    whole = seen(encoder, codes)
    with torch.inference_mode():
        for i in range(3):
            alone = encoder.features(given[i : i + 1], codes[i : i + 1])
            for name in NAMES:
                assert torch.allclose(getattr(alone, name)[0], whole[name][i], atol=1e-5)


def test_a_deep_copy_works_by_itself():
    encoder, codes = taught(make(told=EVERYTHING)), torch.tensor([0, 2, 1])
    before = seen(encoder, codes)
    other = copy.deepcopy(encoder)
    assert differ(before, seen(other, codes)) == 0
    own = [p.data for p in adapter_parameters(other)] + [other.adapter.prompts.data[1:]]
    for values in own[1:]:  # one after the other; the last: prompts of later blocks alone
        last = seen(other, codes)
        values.normal_()
        assert differ(last, seen(other, codes)) > 1e-4
    assert differ(before, seen(encoder, codes)) == 0
    part = nn.ModuleDict({"adapter": encoder.adapter, "visual": encoder.visual})  # as a learner has
    part = copy.deepcopy(part)
    part["adapter"].sie.data.zero_()
    part["adapter"].codes = codes
    assert not torch.allclose(part["visual"](images(encoder)), before["proj"], atol=1e-4)


# --- kept in files ----------------------------------------------------------------------------


def saved(encoder: Encoder, folder: Path) -> Path:
    return save_checkpoint(folder / "ours.pth", encoder, {}, "parent", "key")


@pytest.mark.parametrize(
    ("name", "told"),
    [("adapt-vit", EVERYTHING), ("adapt-vit", Adapt(prompts=2)), ("adapt-rn", Adapt(lora=2))],
)
def test_comes_back_with_its_adapter_bit_for_bit(name, told, tmp_path):
    encoder = taught(make(name, told))
    path = saved(encoder, tmp_path)
    codes = torch.tensor([0, 2, 1]) if told.view != "none" else None
    filled, again = make(name), taught(make(name, told))
    again.adapter.load_state_dict({k: v + 1 for k, v in again.adapter.state_dict().items()})
    for fresh in (filled, again):
        load_weights(fresh, path)
    for other in (load_encoder(str(path)), load_encoder(name, str(path)), filled, again):
        assert other.weights_sha256 == encoder.weights_sha256
        assert other.adapter.told == told and other.adapter.views == encoder.adapter.views
        assert differ(seen(encoder, codes), seen(other, codes)) == 0


def test_overlap_goes_to_another_image_size_and_back(tmp_path):
    encoder = taught(make(told=EVERYTHING))
    larger = load_encoder(str(saved(encoder, tmp_path)), image_size=64)
    assert larger.features(images(larger)).grid == (10, 10)
    other = make(size=64)
    load_weights(other, tmp_path / "ours.pth")
    assert other.weights_sha256 == larger.weights_sha256
    assert other.features(images(other)).grid == (10, 10)


def test_a_file_with_another_adapter_or_none_is_refused(tmp_path):
    path = saved(make(), tmp_path)
    encoder = make(told=Adapt(prompts=2))
    state = encoder.weights_sha256
    with pytest.raises(WeightsError, match="no adapter, the encoder has one"):
        load_weights(encoder, path)
    path = saved(make(told=Adapt(prompts=2, deep=False)), tmp_path)
    with pytest.raises(WeightsError, match="another adapter"):
        load_weights(encoder, path)
    torch.save(make().model.state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(WeightsError, match="no adapter, the encoder has one"):
        load_weights(encoder, tmp_path / "foreign.pt")
    assert encoder.weights_sha256 == state


def test_a_file_from_before_adapters_loads(tmp_path):
    encoder = make()
    held = read_checkpoint(saved(encoder, tmp_path))
    del held["adapter"]
    torch.save(held, tmp_path / "old.pth")
    other = load_encoder(str(tmp_path / "old.pth"))
    assert other.adapter is None and other.weights_sha256 == encoder.weights_sha256


def test_open_clip_gets_lora_merged_and_refuses_the_rest(tmp_path):
    encoder = taught(make(told=Adapt(lora=2)))
    state = encoder.weights_sha256
    with pytest.raises(ValueError, match="merge_lora"):
        save_local_dir(encoder, tmp_path / "raw")
    assert "bit-equal" in export_model(encoder, tmp_path / "merged")
    again = load_encoder(str(tmp_path / "merged"))
    assert differ(seen(encoder), seen(again)) <= 1e-6
    assert encoder.weights_sha256 == state
    for told in (Adapt(view="aspect"), Adapt(prompts=1, lora=2), Adapt(stride=6)):
        with pytest.raises(ValueError, match="keep this encoder as a checkpoint"):
            export_model(make(told=told), tmp_path / "refused")
        assert not (tmp_path / "refused").exists()


# --- features on disk -------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    draw, root = np.random.default_rng(0), tmp_path / "data"
    root.mkdir()
    table = pd.DataFrame({"image": [f"{k}.png" for k in range(4)], "aspect": [*VIEWS, "hand"]})
    for name in table["image"]:
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(root / name)
    table.attrs = {"root": str(root)}
    return open_store(table, make().preprocess, tmp_path / "cache")


def test_embedding_tells_the_views_and_keeps_adapters_apart(store, tmp_path):
    fabric = lf.Fabric(accelerator="cpu", devices=1)
    encoder, asked = taught(make(told=EVERYTHING)), ["2.png", "0.png"]
    with torch.inference_mode():
        pixels = encoder.preprocess.normalise(store.pixels(asked))
        expected = encoder.eval().features(pixels, torch.tensor([2, 0])).proj.numpy()
    first = embed(encoder, store, asked, fabric, batch_size=1)["proj"]
    assert np.allclose(first, expected, atol=1e-5)
    encoder.adapter.sie.data.neg_()
    assert not np.allclose(embed(encoder, store, asked, fabric)["proj"], first, atol=1e-3)
    encoder.adapter.sie.data.neg_()
    encoder.adapter.told = EVERYTHING.model_copy(update={"view_scale": 0.0})
    assert not np.allclose(embed(encoder, store, asked, fabric)["proj"], first, atol=1e-3)
    encoder.adapter.told = EVERYTHING
    table = store.table.assign(aspect=list(reversed(store.table["aspect"])))
    table.attrs = store.table.attrs
    other = open_store(table, encoder.preprocess, tmp_path / "cache")
    assert other.key == store.key  # the pixels are the same, what is told of them is not
    assert not np.allclose(embed(encoder, other, ["2.png"], fabric)["proj"], first[:1], atol=1e-3)
    with torch.inference_mode():
        pixels = encoder.preprocess.normalise(store.pixels(["3.png"]))  # of no view in training
        expected = encoder.eval().features(pixels).proj.numpy()
    assert np.allclose(embed(encoder, store, ["3.png"], fabric)["proj"], expected, atol=1e-5)


# --- training ---------------------------------------------------------------------------------


def test_the_adapter_has_a_group_of_its_own_that_never_closes():
    encoder, heads = make(told=EVERYTHING), nn.Linear(4, 2)
    told = settings(unfreeze_blocks=0, head_lr=5.0, head_epochs=2)
    groups = {g["name"]: g for g in make_optimizer(encoder, heads, told).param_groups}
    assert groups.keys() == {"adapter", "heads", "heads, no decay"}
    group = groups["adapter"]
    assert group["lr"] == pytest.approx(5e-3) and group["weight_decay"] == 0
    assert {id(p) for p in group["params"]} == {id(p) for p in adapter_parameters(encoder)}
    assert open_layers(encoder, told, 1) == []
    asking = {id(p) for p in encoder.parameters() if p.requires_grad}
    assert asking == {id(p) for p in adapter_parameters(encoder)}
    row = trainable_table(encoder, heads, told).set_index("group").loc["adapter"]
    assert row["open_from"] == 1
    assert row["parameters"] == sum(p.numel() for p in adapter_parameters(encoder))


def test_the_towers_own_groups_stay_as_they_were():
    plain, encoder = make(), make(told=Adapt(lora=2, prompts=1, view="aspect"))
    told = settings(head_epochs=0)
    tables = [trainable_table(e, nn.Identity(), told).set_index("group") for e in (plain, encoder)]
    assert tables[0].equals(tables[1].drop("adapter"))
    open_layers(encoder, told, 1)
    assert all(p.requires_grad for p in [*encoder.visual.parameters(), encoder.adapter.sie])


def test_with_a_closed_tower_a_step_moves_the_adapter_alone():
    encoder = make(told=EVERYTHING)
    told = settings(unfreeze_blocks=0, head_epochs=0)
    optimizer = make_optimizer(encoder, nn.Identity(), told)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for _ in range(2):  # LoRA's a has no gradient while its b is zero
        open_layers(encoder, told, 1)
        encoder.features(images(encoder), torch.tensor([0, 1, 2])).proj.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, v in encoder.state_dict().items() if not torch.equal(v, before[n])}
    own = {id(p) for p in adapter_parameters(encoder)}
    assert moved == {name for name, p in encoder.named_parameters() if id(p) in own}
