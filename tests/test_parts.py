"""Attention and part features on CLIP's towers: shapes, values, training, files, refusals."""

import copy
import json
from collections.abc import Callable
from typing import Any

import lightning_fabric as lf
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import toy_hands as toy
from torch.nn import functional

from handclip_lib import params
from handclip_lib.data.splits import make_manifest
from handclip_lib.data.store import open_store
from handclip_lib.evaluate.embed import embed
from handclip_lib.losses.criterion import check_lists
from handclip_lib.models import towers
from handclip_lib.models.adapters import adapt, adapter_parameters, copies_of, merge_lora
from handclip_lib.models.checkpoint import load_weights, save_checkpoint
from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.models.parts import Jpm, Mgn, Pcb, in_retrieval, jigsaw, part_names, part_widths
from handclip_lib.models.towers import Features
from handclip_lib.params import ParamError, load
from handclip_lib.schema_train import Adapt, Stage3b, Training
from handclip_lib.train import stages
from handclip_lib.train.job import Trained
from handclip_lib.train.optim import make_optimizer, open_layers, trainable_table

TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}
MEAN = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
NAMES = ("penult", "pool", "proj", "tokens")
GUIDED = ("attn_channel", "attn_spatial", "attn_self", "pcb", "mgn", "jpm")
EVERY = [
    (tower, Adapt(parts=kind))
    for tower in ("toy-vit", "toy-rn")
    for kind in ("pcb", "mgn", "jpm")
    if (tower, kind) != ("toy-rn", "jpm")
]


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    toy.small_towers(folder)
    timm = {"embed_dim": 16, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True}
    (folder / "parts-timm.json").write_text(json.dumps(timm))
    for name, more in {"mean": {"pool_type": "avg"}, "drop": {"patch_dropout": 0.5}}.items():
        told = {"embed_dim": 16, "vision_cfg": MEAN | more, "text_cfg": TEXT}
        (folder / f"parts-{name}.json").write_text(json.dumps(told))
    open_clip.add_model_config(folder)


def make(name: str, told: Adapt | None = None, size: Any = None, views=("a", "b")) -> Encoder:
    torch.manual_seed(0)
    encoder = load_encoder(name, "random", size)
    for module in encoder.visual.modules():  # open_clip starts a ResNet's last BatchNorms at zero
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(1.0)
    if told is not None:
        adapt(encoder, told, views)
    return encoder.eval()


def images(encoder: Encoder, count: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, *encoder.preprocess.size, generator=draw)


@torch.inference_mode()
def seen(encoder: Encoder) -> Features:
    return encoder.eval().features(images(encoder))


def entered(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    """What goes into the last stage, seen by a hook of the test's own."""
    found: list[torch.Tensor] = []
    visual = encoder.visual
    vit = hasattr(visual, "transformer")
    stage = visual.transformer.resblocks[-1] if vit else visual.layer4
    hook = stage.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    visual(x)
    hook.remove()
    return found[0]


def taught(encoder: Encoder) -> Encoder:
    """As after training: nothing that is new has its value of the start."""
    torch.manual_seed(1)
    for parameter in [*adapter_parameters(encoder), *copies_of(encoder).parameters()]:
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (32, 64)])
@pytest.mark.parametrize("kind", ["channel", "spatial", "self"])
@pytest.mark.parametrize("name", ["toy-vit", "toy-rn"])
def test_attention_starts_as_the_plain_tower_and_then_acts(name, kind, size):
    plain, encoder = make(name, size=size), make(name, Adapt(attention=kind), size)
    before, start = seen(plain), seen(encoder)
    assert all(torch.equal(getattr(before, n), getattr(start, n)) for n in NAMES)
    assert encoder.dims == plain.dims and not start.parts
    encoder.adapter.attention.gamma.data.fill_(1.0)
    after = seen(encoder)
    assert torch.equal(after.penult, before.penult), "the map before the last stage stays"
    assert not torch.allclose(after.proj, before.proj, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("toy-vit", (32, 64)), ("toy-rn", (64, 32))])
@torch.no_grad()
def test_attention_sees_the_map_and_leaves_class_token_and_prompts(name, size):
    prompts = 2 if name == "toy-vit" else 0
    encoder = make(name, Adapt(attention="spatial", prompts=prompts), size)
    x, attention = images(encoder), encoder.adapter.attention
    before = entered(encoder, x)  # gamma is 0: as it comes
    attention.gamma.data.fill_(1.0)
    after = entered(encoder, x)
    if name == "toy-rn":
        assert torch.equal(after, attention(before)) and before.shape[2:] == (4, 2)
        return
    assert torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 33:], after[:, 33:])
    assert before.shape[1] == 1 + 32 + 2
    fmap = torch.stack([before[:, 1 + 8 * r : 9 + 8 * r] for r in range(4)], 1)  # (B, 4, 8, W)
    expected = attention(fmap.permute(0, 3, 1, 2))
    for r in range(4):
        for c in range(8):
            assert torch.allclose(after[:, 1 + 8 * r + c], expected[:, :, r, c], atol=1e-5)


def test_a_spatial_attention_is_for_the_size_of_its_tables(tmp_path):
    encoder = taught(make("toy-vit", Adapt(attention="spatial"), (32, 64)))
    path = save_checkpoint(tmp_path / "ours.pth", encoder, {}, "parent", "key")
    other = load_encoder(str(path))
    assert torch.equal(seen(other).proj, seen(encoder).proj)
    smaller = make("toy-vit")  # of 32 x 32 pixels
    load_weights(smaller, path)
    assert smaller.weights_sha256 != make("toy-vit").weights_sha256
    with pytest.raises(ValueError, match=r"expected \(h, w\) = \(4, 8\), got \(4, 4\)"):
        seen(smaller)


# --- parts: values ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "told"), EVERY)
@pytest.mark.parametrize("size", [None, (32, 96)])
def test_parts_leave_the_tower_and_join_its_pool(name, told, size):
    plain, encoder = make(name, size=size), make(name, told, size)
    before, after = seen(plain), seen(encoder)
    for feature in ("penult", "proj", "tokens"):
        assert torch.equal(getattr(before, feature), getattr(after, feature))
    assert torch.equal(after.parts["whole"], before.pool)
    scale = 0.25 if told.parts == "jpm" else 1.0
    behind = [scale * z for n, z in after.parts.items() if n != "whole" and in_retrieval(n)]
    assert torch.equal(after.pool, torch.cat([before.pool, *behind], dim=1))
    widths = {"penult": after.penult, "pool": after.pool, "proj": after.proj, **after.parts}
    assert encoder.dims == {n: z.shape[1] for n, z in widths.items()}
    assert part_names(told) == tuple(after.parts)
    assert torch.equal(encoder.visual(images(encoder)), plain.visual(images(plain)))
    count = {"pcb": 3, "mgn": 8, "jpm": 4}[told.parts]
    assert len(behind) == count
    wide = 256 if told.parts != "jpm" else encoder.dims["whole"]
    assert encoder.dims["pool"] == encoder.dims["whole"] + count * wide


@pytest.mark.parametrize("grid", [(3, 1), (2, 2), (1, 3), (5, 2)])
@pytest.mark.parametrize("name", ["toy-vit", "toy-rn"])
@torch.no_grad()
def test_pcbs_parts_are_means_of_cells_row_by_row(name, grid):
    encoder = make(name, Adapt(parts="pcb", part_grid=grid), (64, 96))
    told = seen(encoder)
    height, width = told.grid
    fmap = torch.stack(list(told.tokens.split(width, dim=1)), 1)  # (B, h, w, W)
    assert fmap.shape[1] == height
    cells = functional.adaptive_avg_pool2d(fmap.permute(0, 3, 1, 2), grid)  # (B, W, *grid)
    pcb = encoder.adapter.parts
    assert isinstance(pcb, Pcb) and len(pcb.heads) == grid[0] * grid[1]
    for r in range(grid[0]):
        for c in range(grid[1]):
            k = r * grid[1] + c
            linear, norm, _ = pcb.heads[k]
            z = functional.batch_norm(
                cells[:, :, r, c] @ linear.weight.T, norm.running_mean, norm.running_var,
                norm.weight, norm.bias,
            )  # fmt: skip
            assert torch.allclose(told.parts[f"part{k + 1}"], z.clamp(min=0), atol=1e-5)


@pytest.mark.parametrize("name", ["toy-vit", "toy-rn"])
@torch.no_grad()
def test_mgns_branches_are_maxima_over_copies_of_the_last_stage(name):
    encoder = taught(make(name, Adapt(parts="mgn"), (64, 96)))
    told, x = seen(encoder), entered(encoder, images(encoder))
    mgn = encoder.adapter.parts
    assert isinstance(mgn, Mgn)
    expected, part = {}, 0
    for branch, stage in enumerate(mgn.copies, 2):
        if name == "toy-vit":
            block, norm = stage
            out = norm(block(x))
            expected[f"global{branch}"] = out[:, 0]
            rows = out[:, 1:].reshape(3, 8, 12, -1)  # (B, h, w, W)
        else:
            out = stage(x)
            assert out.shape[2:] == x.shape[2:] == (4, 6), "stride 1"
            rows = out.permute(0, 2, 3, 1)
            expected[f"global{branch}"] = rows.amax((1, 2))
        height = rows.shape[1]
        for k in range(branch):
            part += 1
            first, last = k * height // branch, -(-(k + 1) * height // branch)
            expected[f"part{part}"] = rows[:, first:last].amax((1, 2))
    vit = name == "toy-vit"
    expected["global1"] = told.parts["whole"] if vit else told.tokens.amax(1)
    assert len(expected) == 8
    for key, z in expected.items():
        assert torch.allclose(told.parts[key], mgn.heads[key](z), atol=1e-5), key
    for key, parts in {"stripes2": "12", "stripes3": "345"}.items():
        together = torch.cat([told.parts[f"part{k}"] for k in parts], 1)
        assert torch.equal(told.parts[key], together)


@pytest.mark.parametrize("size", [None, (32, 96), (8, 24), (8, 56)])
@torch.no_grad()
def test_jpms_parts_are_the_class_token_with_a_group_of_patches(size):
    encoder = taught(make("toy-vit", Adapt(parts="jpm", prompts=2, attention="channel"), size))
    told, x = seen(encoder), entered(encoder, images(encoder))
    count = told.tokens.shape[1]
    order = [*range(5 % count, count), *range(5 % count)]  # the first five at the end
    half = (count + 1) // 2
    dealt = [order[i] for pair in range(half) for i in (pair, pair + half) if i < count]
    jpm = encoder.adapter.parts
    assert isinstance(jpm, Jpm)
    ((block, norm),) = jpm.copies
    first = 0
    for k in range(4):
        own = dealt[first : first + count // 4 + (k < count % 4)]
        first += len(own)
        row = torch.cat([x[:, :1], *[x[:, 1 + i : 2 + i] for i in own], x[:, -2:]], dim=1)
        assert torch.allclose(told.parts[f"part{k + 1}"], norm(block(row))[:, 0], atol=1e-5)
    assert first == count


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 49, 196])
def test_every_patch_is_in_one_group_of_the_jigsaw(count):
    groups = jigsaw(count)
    assert len(groups) == 4
    assert sorted(torch.cat(groups).tolist()) == list(range(count))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    if count == 196:  # by hand: 5 … 195, 0 … 4; of 98 pairs the first is (5, 5 + 98)
        assert groups[0][:4].tolist() == [5, 103, 6, 104]
        assert groups[3][-1] == 4


def test_a_copy_is_not_the_towers():
    for name, told in EVERY:
        encoder = make(name, told)
        before, own = seen(encoder), {id(p) for p in encoder.visual.parameters()}
        assert not own & {id(p) for p in encoder.adapter.parameters()}
        for parameter in copies_of(encoder).parameters():
            parameter.data.add_(0.5)
        after = seen(encoder)
        assert torch.equal(before.proj, after.proj)
        changed = {n for n, z in before.parts.items() if not torch.equal(z, after.parts[n])}
        assert bool(changed) == (told.parts != "pcb") and "whole" not in changed


def test_a_scale_that_is_told_takes_the_papers_place():
    first = seen(make("toy-vit", Adapt(parts="jpm")))
    second = seen(make("toy-vit", Adapt(parts="jpm", part_scale=2.0)))
    assert torch.equal(second.pool[:, :32], first.pool[:, :32])
    assert torch.allclose(second.pool[:, 32:], 8 * first.pool[:, 32:])


# --- beside other adapters --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pcb", "mgn", "jpm"])
def test_parts_stand_beside_prompts_views_lora_overlap_and_attention(kind, tmp_path):
    told = Adapt(view="aspect", prompts=2, lora=2, stride=6, attention="spatial", parts=kind)
    encoder = taught(make("toy-vit", told))
    before = seen(encoder)
    assert before.grid == (5, 5)
    assert not any("parametrizations" in name for name, _ in encoder.adapter.named_parameters())
    path = save_checkpoint(tmp_path / "ours.pth", encoder, {}, "parent", "key")
    again = seen(load_encoder(str(path)))
    filled = make("toy-vit")
    load_weights(filled, path)
    twin = copy.deepcopy(encoder)
    for other in (again, seen(filled), seen(twin)):
        assert torch.equal(before.pool, other.pool) and torch.equal(before.proj, other.proj)
    for parameter in twin.adapter.parameters():
        parameter.data.zero_()
    assert torch.equal(seen(encoder).pool, before.pool), "a deep copy works by itself"
    merge_lora(encoder)
    merged = seen(encoder)
    assert torch.allclose(before.pool, merged.pool, atol=1e-5)
    assert encoder.adapter.told.parts == kind


def test_a_compiled_tower_has_its_parts_too():
    encoder = make("toy-vit", Adapt(attention="channel", parts="mgn", prompts=1))
    x = images(encoder)
    compiled = torch.compile(towers.features, backend="eager", dynamic=False)
    one = encoder.adapter.features(encoder.visual, x, None, compiled)
    other = encoder.features(x)
    assert torch.allclose(one.pool, other.pool, atol=1e-6)
    one.pool.sum().backward()
    assert encoder.visual.conv1.weight.grad is not None
    copy.deepcopy(encoder)  # nothing of the batch is kept


def test_parts_of_an_image_do_not_depend_on_its_batch_mates():
    for name, told in EVERY:
        encoder = taught(make(name, told))
        given, whole = images(encoder), seen(encoder).pool
        with torch.inference_mode():
            alone = torch.cat([encoder.features(x[None]).pool for x in given])
        assert torch.allclose(alone, whole, atol=1e-4)


# --- learning rates, what is open -------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy-vit", "toy-rn"])
def test_copies_learn_with_the_stage_that_they_copy_and_new_layers_at_head_lr(name):
    encoder = make(name, Adapt(parts="mgn", attention="self"))
    told = Training(lr=1e-3, head_lr=5.0, layer_decay=0.5, head_epochs=2, weight_decay=0.1)
    groups = {g["name"]: g for g in make_optimizer(encoder, torch.nn.Identity(), told).param_groups}
    stage = "block 2" if name == "toy-vit" else "layer 4"
    copied = groups[f"{stage}, copies"]
    assert copied["lr"] == groups[stage]["lr"] == pytest.approx(5e-4)
    assert copied["weight_decay"] == 0.1
    assert groups["adapter"]["lr"] == pytest.approx(5e-3)
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert len(held) == len(set(held))
    assert {id(p) for p in encoder.adapter.parameters()} <= set(held)
    table = trainable_table(encoder, torch.nn.Identity(), told).set_index("group")
    assert table.loc[f"{stage}, copies", "open_from"] == 3
    assert table.loc["adapter", "open_from"] == 1


@pytest.mark.parametrize("told", [{"unfreeze_blocks": 0}, {"head_epochs": 1}])
def test_with_a_closed_tower_copies_and_their_batch_norms_rest(told):
    encoder = make("toy-rn", Adapt(parts="mgn"))
    settings = Training(lr=1e-3, **({"head_epochs": 0} | told))
    optimizer = make_optimizer(encoder, torch.nn.Identity(), settings)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    open_layers(encoder, settings, 1)
    encoder.features(images(encoder)).pool.square().sum().backward()
    optimizer.step()
    moved = {n for n, v in encoder.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(name.startswith("adapter.parts.heads.") for name in moved)
    if "head_epochs" in told:
        encoder.train()
        open_layers(encoder, settings, 2)
        assert all(p.requires_grad for p in copies_of(encoder).parameters())
        norms = [m for m in copies_of(encoder).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and all(norm.training for norm in norms)
        open_layers(encoder, settings.model_copy(update={"freeze_bn": True}), 2)
        assert not any(norm.training for norm in norms)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told", "words"),
    [
        ("toy-rn", Adapt(parts="jpm"), r"adapt.parts jpm: .*ViT towers.*ModifiedResNet"),
        ("parts-timm", Adapt(parts="pcb"), r"adapt.parts pcb: .*ViT and ResNet.*not TimmModel"),
        ("parts-timm", Adapt(attention="self"), r"adapt.attention self: .*not TimmModel"),
        ("parts-mean", Adapt(parts="jpm"), "class token"),
        ("parts-mean", Adapt(parts="mgn"), "class token"),
        ("parts-drop", Adapt(attention="channel"), "drops patches"),
    ],
)
def test_towers_that_cannot_take_it_say_so(name, told, words):
    encoder = make(name)
    state = encoder.weights_sha256
    with pytest.raises(ParamError, match=words):
        adapt(encoder, told)
    assert encoder.adapter is None and encoder.weights_sha256 == state
    if name == "parts-mean":
        adapt(encoder, Adapt(parts="pcb"))
        assert len(seen(encoder).parts) == 4


def test_losses_know_the_parts_that_are_told_before_a_run(tmp_path):
    told = {"text": "none", "adapt": {"parts": "pcb"}}
    good = told | {"losses": [{"type": "cross_entropy", "on": ["part3_bn", "whole"]}]}
    check_lists(load(overrides={"stage3b.variants": {"mine": good}}))
    for change in ({"adapt": {}}, {"adapt": {"parts": "pcb", "part_grid": [2, 1]}}):
        with pytest.raises(ParamError, match=r"stage3b, variant mine: .*no feature 'part3_bn'"):
            check_lists(load(overrides={"stage3b.variants": {"mine": good | change}}))
    grid = part_widths(Adapt(parts="pcb", part_grid=(2, 3)), 10)
    assert grid["pool"] == 10 + 6 * 256 and "part6" in grid and "part7" not in grid
    assert part_widths(Adapt(), 10) == {}


# --- training and features on disk ------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return toy.squares(tmp_path_factory.mktemp("hands"), 10, 4)


@pytest.fixture
def tune(table, tmp_path) -> Callable[..., Trained]:
    """Stage 3b by a file of params/guided/, on a toy tower, in a folder of its own."""
    manifest = make_manifest(table, "dorsal_r", select="persons", draws=2)

    def run(name: str, model: str, **more: Any) -> Trained:
        study = tmp_path / "squares.yaml"
        tuned = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "head_lr": 3.0, "save_seconds": 0}
        tuned |= {"schedule": "constant", "warmup": 0, "augment": {"erasing": 0.0}} | more
        told = {
            "data": {"dataset": "own"},
            "split": {"mode": "published", "select": "persons", "draws": 2},
            "model": {"name": model, "pretrained": "random"},
            "baseline": {"beside": None},
            "device": {"accelerator": "cpu"},
            "stage3b": tuned | {"variants": [name]},
        }
        study.write_text(json.dumps(told))
        p = load("dorsal_r", str(study))
        check_lists(p)
        settings: Stage3b = params.guided_variants(p)[name]
        return stages.stage3b(p, name, settings, None, None, table, manifest, tmp_path / name)

    return run


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, "toy-vit") for name in GUIDED] + [("mgn", "toy-rn"), ("attn_spatial", "toy-rn")],
)
def test_each_file_trains_and_is_found_again(name, model, tune, table, tmp_path, capsys):
    one = tune(name, model, epochs=2)
    total = one.history["total"]
    assert len(total) == 2 and total.iloc[1] < total.iloc[0]
    start = make(model).model.visual.state_dict()
    encoder, other = one.encoder, load_encoder(str(one.checkpoint))
    assert any(not torch.equal(v, start[n]) for n, v in encoder.visual.state_dict().items())
    assert encoder.adapter is not None and other.adapter.told == encoder.adapter.told
    if encoder.adapter.attention is not None:
        assert encoder.adapter.attention.gamma.abs() > 0
    fabric = lf.Fabric(accelerator="cpu", devices=1)
    found = []
    for k, each in enumerate((encoder, other)):
        store = open_store(table, each.preprocess, tmp_path / f"cache{k}")
        found.append(embed(each, store, table["image"].tolist()[:6], fabric))
    for feature in ("penult", "pool", "proj"):
        assert np.array_equal(found[0][feature], found[1][feature])
    assert found[0]["pool"].shape[1] == encoder.dims["pool"]
    capsys.readouterr()
    again = tune(name, model, epochs=2)
    assert "trained before" in capsys.readouterr().out
    assert again.encoder.weights_sha256 == encoder.weights_sha256


def test_a_cache_tells_scale_and_grid_of_the_same_weights_apart(table, tmp_path):
    fabric = lf.Fabric(accelerator="cpu", devices=1)
    asked = table["image"].tolist()[:3]

    def pool(told: Adapt) -> np.ndarray:
        encoder = make("toy-vit", told)
        store = open_store(table, encoder.preprocess, tmp_path / "cache")
        return embed(encoder, store, asked, fabric)["pool"]

    for first, second in (
        (Adapt(parts="jpm"), Adapt(parts="jpm", part_scale=1.0)),
        (Adapt(parts="pcb"), Adapt(parts="pcb", part_grid=(1, 3))),
    ):
        one, other = pool(first), pool(second)
        assert make("toy-vit", first).weights_sha256 == make("toy-vit", second).weights_sha256
        assert one.shape == other.shape and not np.allclose(one, other, atol=1e-3)
