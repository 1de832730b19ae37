"""What trains, how fast and from when; and that nothing which asks for a gradient is forgotten."""

import json
import math

import open_clip
import pytest
import torch
from torch import nn

from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.schema_train import Training
from handclip_lib.train import optim
from handclip_lib.train.ladder import ladder_of
from handclip_lib.train.optim import Schedule, check_optimizer, make_optimizer, open_layers

TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 77, "vocab_size": 49408}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16}
RN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TIMM = {"timm_pool": "", "image_size": 160}
CONFIGS = {
    "optim-vit": {"vision_cfg": VIT | {"layers": 3}},
    "optim-vit-12": {"vision_cfg": VIT | {"layers": 12}},
    "optim-rn": {"vision_cfg": RN},
    "optim-timm": {"vision_cfg": TIMM | {"timm_model_name": "test_vit"}, "custom_text": True},
    "optim-timm-rn": {"vision_cfg": TIMM | {"timm_model_name": "test_resnet", "timm_pool": "avg"}},
}
VIT_STEPS = ["stem", "block 1", "block 2", "block 3", "projection"]


@pytest.fixture(scope="module", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, told in CONFIGS.items():
        config = {"embed_dim": 16, "text_cfg": TEXT, "custom_text": False} | told
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {name: load_encoder(name, "random") for name in CONFIGS}


def heads() -> nn.Module:
    neck = nn.BatchNorm1d(16)
    neck.bias.requires_grad_(False)
    return nn.ModuleDict({"neck": neck, "classifier": nn.Linear(16, 5, bias=False)})


# --- groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_tower_and_heads_is_in_one_group_and_none_of_the_text(encoders, name):
    encoder, own = encoders[name], heads()
    encoder.requires_grad_(False)  # as an earlier stage may have left it: may train, all the same
    groups = optim.param_groups(encoder, own, Training())
    held = [id(p) for group in groups for p in group["params"]]
    wanted = [*encoder.visual.parameters(), *(p for p in own.parameters() if p.requires_grad)]
    assert sorted(held) == sorted(id(p) for p in wanted)
    assert id(encoder.model.logit_scale) not in held
    assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_has_trained_is_what_has_opened(encoders, name):
    """Heads alone while the tower is closed, then all; with blocks to open, those alone."""
    encoder, own = encoders[name], heads()
    heads_only = sum(p.numel() for p in own.parameters() if p.requires_grad)
    tower = sum(p.numel() for p in encoder.visual.parameters())
    late = Training(epochs=5, head_epochs=2)
    assert optim.opened(encoder, own, late, 2) == heads_only
    assert optim.opened(encoder, own, late, 3) == heads_only + tower
    some = optim.opened(encoder, own, Training(unfreeze_blocks=1), 5)
    assert heads_only < some < heads_only + tower


def test_a_vit_of_12_blocks_has_28_groups_by_depth_and_decay(encoders):
    settings = Training(lr=1.0, layer_decay=0.5, head_lr=10.0, weight_decay=0.1)
    encoder = encoders["optim-vit-12"]
    groups = optim.param_groups(encoder, nn.Identity(), settings)
    assert len(groups) == 28
    visual, depth = encoder.visual, {}
    for group in groups:
        for p in group["params"]:
            depth[id(p)] = (13 + math.log2(group["lr"]), group["weight_decay"])
    block = visual.transformer.resblocks[4]
    expected = {
        visual.conv1.weight: (0, 0.1),
        visual.class_embedding: (0, 0),
        visual.positional_embedding: (0, 0),
        visual.ln_pre.bias: (0, 0),
        block.attn.in_proj_weight: (5, 0.1),
        block.ln_1.weight: (5, 0),
        visual.transformer.resblocks[11].mlp.c_fc.weight: (12, 0.1),
        visual.ln_post.weight: (13, 0),
        visual.proj: (13, 0.1),
    }
    for parameter, where in expected.items():
        assert depth[id(parameter)] == pytest.approx(where)


def test_heads_have_their_own_rate(encoders):
    own = heads()
    groups = optim.param_groups(encoders["optim-vit"], own, Training(lr=1e-3, head_lr=7.0))
    found = {g["name"]: g for g in groups if g["name"].startswith("heads")}
    assert [g["lr"] for g in found.values()] == [7e-3, 7e-3]
    assert found["heads"]["params"] == [own["classifier"].weight]
    assert found["heads, no decay"]["params"] == [own["neck"].weight]
    assert found["heads, no decay"]["weight_decay"] == 0


def test_tables_do_not_decay(encoders):
    own = nn.Module()
    own.centers, own.proxies = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    for name, module in (("optim-timm", nn.Identity()), ("optim-vit", own)):
        groups = optim.param_groups(encoders[name], module, Training(weight_decay=0.1))
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        named = [*encoders[name].visual.named_parameters(), *module.named_parameters()]
        tables = {n for n, p in named if p.ndim > 1 and not decay[id(p)]}
        assert tables == {
            "optim-timm": {"trunk.pos_embed", "trunk.cls_token"},
            "optim-vit": {"positional_embedding", "centers"},
        }[name] | ({"trunk.reg_token"} & tables)


def test_resnet_and_timm_towers_are_grouped_by_their_stages(encoders):
    resnet = ladder_of(encoders["optim-rn"].visual)
    assert resnet.steps[0] == "stem" and resnet.steps[-1] == "attention pool" and resnet.top == 5
    assert resnet.depth["bn3.weight"] == 0 and resnet.depth["layer3.0.conv1.weight"] == 3
    assert resnet.depth["attnpool.positional_embedding"] == 5
    timm = ladder_of(encoders["optim-timm"].visual)
    assert timm.depth["trunk.pos_embed"] == 0 and timm.depth["trunk.blocks.0.norm1.bias"] == 1
    assert timm.depth["head.proj.weight"] == timm.top >= 3
    staged = ladder_of(encoders["optim-timm-rn"].visual)
    depths = [staged.depth[f"trunk.layer{i}.0.conv1.weight"] for i in range(1, 5)]
    assert depths == sorted(set(depths))


def test_a_timm_tower_without_stages_is_one_step(encoders, monkeypatch):
    visual = encoders["optim-timm"].visual
    monkeypatch.setattr(type(visual.trunk), "group_matcher", None)
    assert ladder_of(visual).steps == ["stage 0"]


def test_optimizers(encoders):
    encoder = encoders["optim-vit"]
    adamw = make_optimizer(encoder, heads(), Training())
    adam = make_optimizer(encoder, heads(), Training(optimizer="adam", weight_decay=5e-4))
    assert type(adamw) is torch.optim.AdamW and type(adam) is torch.optim.Adam
    assert {g["weight_decay"] for g in adam.param_groups} == {0.0, 5e-4}


def test_table_says_what_trains_and_from_when(encoders):
    encoder = encoders["optim-vit"]
    settings = Training(head_epochs=2, unfreeze_blocks=1, lr=1e-3, layer_decay=0.5)
    table = optim.trainable_table(encoder, heads(), settings).set_index("group")
    assert table["parameters"].sum() == sum(p.numel() for p in encoder.parameters()) + 16 * 5 + 16
    assert table.loc["block 3", "open_from"] == 3 and table.loc["block 3", "lr"] == 5e-4
    assert table.loc["block 2", "open_from"] == 0 and math.isnan(table.loc["block 2", "lr"])
    assert table.loc["heads", "open_from"] == 1
    assert table.index[-1] == "text tower" and table["open_from"].iloc[-1] == 0
    held = make_optimizer(encoder, heads(), settings).param_groups
    assert {g["name"] for g in held} == set(table.index[table["open_from"] > 0])


# --- what is open -----------------------------------------------------------------------------


def open_steps(encoder: Encoder) -> set[int]:
    """Depths at which anything asks for a gradient; none of the text may."""
    assert not any(p.requires_grad for p in encoder.model.transformer.parameters())
    assert not encoder.model.logit_scale.requires_grad
    ladder = ladder_of(encoder.visual)
    named = encoder.visual.named_parameters()
    found = {name: p.requires_grad for name, p in named}
    depths = {ladder.depth[name] for name, there in found.items() if there}
    for name, there in found.items():
        assert there == (ladder.depth[name] in depths), f"{name}: half of a step is open"
    return depths


@pytest.mark.parametrize(
    ("told", "epochs"),
    [
        ({}, {1: {0, 1, 2, 3, 4}}),
        ({"head_epochs": 2}, {1: set(), 2: set(), 3: {0, 1, 2, 3, 4}}),
        ({"unfreeze_blocks": 0}, {1: set(), 9: set()}),
        ({"unfreeze_blocks": 2, "head_epochs": 1}, {1: set(), 2: {2, 3, 4}, 9: {2, 3, 4}}),
        ({"unfreeze_blocks": 3}, {1: {1, 2, 3, 4}}),
        ({"unfreeze_blocks": 4}, {1: {0, 1, 2, 3, 4}}),
        (
            {"gradual": {"start": 2, "every": 3}, "head_epochs": 1},
            {1: set(), 2: {3, 4}, 4: {3, 4}, 5: {2, 3, 4}, 11: {0, 1, 2, 3, 4}},
        ),
    ],
)
def test_layers_open_when_they_are_told_to(encoders, told, epochs):
    encoder, settings = encoders["optim-vit"], Training(**told)
    for epoch, expected in epochs.items():
        names = open_layers(encoder, settings, epoch)
        assert open_steps(encoder) == expected
        assert names == [VIT_STEPS[depth] for depth in sorted(expected)]


def test_more_blocks_than_there_are_is_an_error(encoders):
    with pytest.raises(
        ValueError, match="unfreeze_blocks 5: this tower has 4 steps above its stem"
    ):
        open_layers(encoders["optim-vit"], Training(unfreeze_blocks=5), 1)


def test_closed_batchnorms_keep_their_statistics(encoders):
    encoder = encoders["optim-rn"]
    settings = Training(unfreeze_blocks=1)

    def moved() -> set[str]:
        before = {n: b.clone() for n, b in encoder.visual.named_buffers() if "running_mean" in n}
        encoder.features(torch.randn(4, 3, 64, 64) + 3)
        return {
            n for n, b in encoder.visual.named_buffers() if n in before and (b != before[n]).any()
        }

    encoder.train()
    open_layers(encoder, settings, 1)
    assert moved() and all(name.startswith("layer4.") for name in moved())
    encoder.train()
    open_layers(encoder, settings.model_copy(update={"freeze_bn": True}), 1)
    assert not moved()
    encoder.train()
    open_layers(encoder, Training(), 1)
    assert any(name.startswith("bn1.") for name in moved())
    encoder.eval()
    open_layers(encoder, Training(), 1)  # opens nothing that its user has put in eval mode
    assert not moved()


def test_a_trainable_parameter_outside_the_optimizer_is_named(encoders):
    encoder, own = encoders["optim-vit"], heads()
    both = nn.ModuleDict({"encoder": encoder, "heads": own})
    encoder.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"not in the optimiser: .*logit_scale"):
        check_optimizer(both, make_optimizer(encoder, own, Training()))
    open_layers(encoder, Training(), 1)
    check_optimizer(both, make_optimizer(encoder, own, Training()))
    with pytest.raises(AssertionError, match=r"heads\.classifier\.weight$"):
        check_optimizer(both, make_optimizer(encoder, nn.Identity(), Training()).__class__(
            [*encoder.visual.parameters(), own["neck"].weight]
        ))  # fmt: skip
    twice = torch.optim.SGD([own["neck"].weight], lr=1.0)
    twice.param_groups.append(dict(twice.param_groups[0]))
    with pytest.raises(AssertionError, match="more than once: weight"):
        own["neck"].bias.requires_grad_(False)
        check_optimizer(own["neck"], twice)


# --- schedules --------------------------------------------------------------------------------


def rates(steps: int, **told) -> list[list[float]]:
    """The rates of two groups, (steps, 2)."""
    settings = Training(lr=1.0, **told)
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [one], "lr": 1.0}, {"params": [two], "lr": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = Schedule(optimizer, settings, steps)
    found = []
    for step in range(steps):
        assert schedule.set(step) == optimizer.param_groups[0]["lr"]
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "multistep", "constant"])
def test_every_group_keeps_its_ratio(schedule):
    for first, second in rates(50, schedule=schedule, min_lr=0.01):
        assert second == pytest.approx(first / 4)


def test_cosine_after_a_linear_warm_up():
    curve = [first for first, _ in rates(110, schedule="cosine", warmup=1 / 11, min_lr=0.2)]
    assert curve[:11] == pytest.approx([0.01 + 0.099 * i for i in range(11)])
    assert curve[10] == 1 and curve[60] == pytest.approx(0.6)
    assert curve[35] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert curve[-1] == pytest.approx(0.2, abs=1e-3) and min(curve[10:]) >= 0.2


def test_one_cycle_goes_up_and_down_in_straight_lines():
    curve = [first for first, _ in rates(101, schedule="one_cycle", warmup=0.4, min_lr=0.01)]
    top = curve.index(max(curve))
    assert 38 <= top <= 41 and curve[top] == pytest.approx(1, abs=0.02)
    assert curve[0] == pytest.approx(1 / 25) and curve[-1] == pytest.approx(0.01)
    assert curve[top // 2] == pytest.approx((curve[0] + curve[top]) / 2, abs=0.03)
    middle = (top + 100) // 2
    assert curve[middle] == pytest.approx((curve[top] + curve[-1]) / 2, abs=0.02)


def test_multistep_falls_at_its_milestones():
    told = {"warmup": 0.1, "milestones": (0.5, 0.8), "gamma": 0.1}
    curve = [first for first, _ in rates(100, schedule="multistep", **told)]
    assert curve[:11] == pytest.approx([0.01 + 0.099 * i for i in range(11)])
    assert set(curve[10:50]) == {1.0}
    assert curve[50:80] == pytest.approx([0.1] * 30) and curve[80:] == pytest.approx([0.01] * 20)


def test_constant_and_no_warm_up():
    assert {first for first, _ in rates(7, schedule="constant", warmup=0.0)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "multistep", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_the_shortest_trainings_have_a_rate(schedule, steps, warmup):
    curve = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < first <= 1 + 1e-9 for first, _ in curve)


def test_the_rate_is_a_function_of_the_step_alone():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(optimizer, Training(lr=1.0), 20)
    there = [schedule.set(step) for step in (3, 17, 3, 19, 25)]
    assert there[0] == there[2] and there[3] == there[4] and there[1] < there[0]
