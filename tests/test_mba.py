"""MBA-Net: its branches on either kind of ResNet, its size, and that it learns."""

import copy

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from handclip_lib.models.clip import load_encoder
from handclip_lib.models.mba import BRANCHES, MBANet, make_mba

SIZE = (64, 64)  # maps of 4 x 4 after layer3
ATTENTION = ("spatial3", "spatial4", "channel3", "channel4")


def backbone(kind: str) -> nn.Module:
    """A small ResNet in eval mode whose every block does something."""
    torch.manual_seed(0)
    if kind == "clip":
        tower: nn.Module = ModifiedResNet([1, 1, 1, 2], 16, 4, image_size=64, width=8)
    else:
        tower = ResNet(Bottleneck, [1, 1, 1, 2], width_per_group=8)
    for norm in tower.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.5, 1.5)
    return tower.eval()


def images(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def plain(tower: nn.Module, x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of layer3 and layer4, layer4 without its stride."""
    first = copy.deepcopy(tower.layer4[0])
    if kind == "clip":
        first.avgpool = first.downsample[0] = nn.Identity()
        x = tower.stem(x)
    else:
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        x = tower.maxpool(tower.relu(tower.bn1(tower.conv1(x))))
    third = tower.layer3(tower.layer2(tower.layer1(x)))
    return third, tower.layer4[1:](first(third))


def open_gates(net: MBANet) -> None:
    for i, name in enumerate(ATTENTION):
        net.attention[name].gamma.data.fill_(0.3 + 0.2 * i)


both = pytest.mark.parametrize("kind", ["clip", "torchvision"])
shared_or_not = pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])


@both
@shared_or_not
@torch.inference_mode()
def test_every_branch_starts_as_the_plain_backbone(kind: str, share: bool) -> None:
    tower, x = backbone(kind), images()
    before = tower(x)
    net = make_mba(tower, 64, share_layer4=share).eval()
    out, (third, fourth) = net(x), plain(tower, x, kind)
    assert out["map"].shape[2:] == third.shape[2:] == (4, 4)
    assert torch.equal(out["map"], fourth)
    assert torch.equal(out["layer3"], third.mean((2, 3)))
    for branch in BRANCHES:
        assert torch.equal(out[branch], fourth.mean((2, 3)))
    assert {name: out[name].shape[1] for name in net.dims} == net.dims
    assert list(out) == ["layer3", *BRANCHES, "map"]
    assert torch.equal(tower(x), before)  # it is as it was, stride and all


@both
@shared_or_not
@torch.inference_mode()
def test_branches_with_open_gates(kind: str, share: bool) -> None:
    tower, x = backbone(kind), images()
    net = make_mba(tower, 64, "axial", share).eval()
    open_gates(net)
    out, (third, fourth) = net(x), plain(tower, x, kind)
    layer4 = net.layer4[0]
    for branch in ("spatial", "channel"):
        before, after = net.attention[f"{branch}3"], net.attention[f"{branch}4"]
        expected = after(layer4(before(third))).mean((2, 3))
        assert torch.allclose(out[branch], expected, atol=1e-6)
        assert not torch.allclose(out[branch], out["global"], atol=1e-2)
    assert torch.equal(out["map"], fourth) and torch.equal(out["global"], fourth.mean((2, 3)))


def test_one_layer4_for_all_or_one_for_each() -> None:
    tower = backbone("clip")
    of_layer4 = sum(p.numel() for p in tower.layer4.parameters())
    shared, separate = make_mba(tower, 64), make_mba(tower, 64, share_layer4=False)
    counts = [sum(p.numel() for p in net.parameters()) for net in (shared, separate)]
    assert counts[1] - counts[0] == 2 * of_layer4
    with torch.inference_mode():
        start = separate.eval()(images())
        for i, branch in enumerate(BRANCHES):
            net = copy.deepcopy(separate)
            net.layer4[i][0].conv1.weight.mul_(2)
            out = net(images())
            changed = {name for name in BRANCHES if not torch.equal(out[name], start[name])}
            assert changed == {branch}


@shared_or_not
def test_copies_and_files_give_the_same_network(share: bool) -> None:
    net = make_mba(backbone("clip"), 64, share_layer4=share).eval()
    open_gates(net)
    state = net.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)  # nothing twice
    fresh = make_mba(ModifiedResNet([1, 1, 1, 2], 16, 4, 64, 8), 64, share_layer4=share).eval()
    fresh.load_state_dict(state)
    with torch.inference_mode():
        out, copied, loaded = (m(images()) for m in (net, copy.deepcopy(net), fresh))
    for name, value in out.items():
        assert torch.equal(copied[name], value) and torch.equal(loaded[name], value)


@both
@shared_or_not
def test_which_parameters_are_new(kind: str, share: bool) -> None:
    tower = backbone(kind)
    net = make_mba(tower, 64, share_layer4=share)
    steps, named = net.steps(), dict(net.named_parameters())
    assert list(steps) == list(named)
    assert set(steps.values()) == {"stem", "layer1", "layer2", "layer3", "layer4", "attention"}
    for layer in ("layer1", "layer2", "layer3"):
        told = sum(p.numel() for name, p in named.items() if steps[name] == layer)
        assert told == sum(p.numel() for p in getattr(tower, layer).parameters())
    new = {id(p) for p in net.attention.parameters()}
    assert {id(named[name]) for name, step in steps.items() if step == "attention"} == new


def losses_of(net: MBANet, x: torch.Tensor, y: torch.Tensor, lr: float, steps: int) -> list[float]:
    """Of one head on the published feature, before each step of gradient descent."""
    head = nn.Linear(sum(net.dims[branch] for branch in BRANCHES), int(y.max()) + 1)
    optimizer, losses = torch.optim.SGD([*net.parameters(), *head.parameters()], lr), []
    for _ in range(steps):
        out = net(x)
        loss = functional.cross_entropy(head(torch.cat([out[b] for b in BRANCHES], dim=1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@shared_or_not
def test_a_step_lowers_the_loss_and_opens_the_gates(share: bool) -> None:
    net, y = make_mba(backbone("clip"), 64, share_layer4=share).train(), torch.tensor([0, 1, 2, 1])
    first, second = losses_of(net, images(4), y, lr=1e-4, steps=2)
    assert second < first
    for name in ATTENTION:
        assert net.attention[name].gamma.abs() > 0
    for table in (net.attention["spatial3"].table_h, net.attention["spatial4"].table_w):
        assert table.grad.any()  # of the second step


# ResNet-50 without its classifier: 25,557,032 - 2,049,000 = 23,508,032; its layer4: 14,964,736.
# SpatialAttention with K = C / 8 and L = 21: query and key 2 (C K + K), their BatchNorms 4 K;
# value C C + C, its BatchNorm 2 C; two tables 2 (2 L - 1) K; their BatchNorms 4 C; gamma 1.
# C = 1024, K = 128: 262,400 + 512 + 1,049,600 + 2,048 + 10,496 + 4,096 + 1 = 1,329,153.
# C = 2048, K = 256: 1,049,088 + 1,024 + 4,196,352 + 4,096 + 20,992 + 8,192 + 1 = 5,279,745.
# ChannelAttention: 1 each.
SHARED = 23_508_032 + 1_329_153 + 5_279_745 + 2
LAYER4 = 14_964_736


@torch.inference_mode()
def test_full_size() -> None:
    net = make_mba("resnet50", 324).eval()
    assert sum(p.numel() for p in net.parameters()) == SHARED == 30_116_932
    out = net(images(2, (324, 324)))
    assert torch.cat([out[branch] for branch in BRANCHES], dim=1).shape == (2, 6144)
    assert out["map"].shape == (2, 2048, 21, 21) and out["layer3"].shape == (2, 1024)


def test_full_size_with_separate_layers() -> None:
    net = make_mba("resnet50", 324, share_layer4=False)
    assert sum(p.numel() for p in net.parameters()) == SHARED + 2 * LAYER4 == 60_046_404


@pytest.mark.slow
def test_full_size_learns() -> None:
    torch.manual_seed(0)
    net, y = make_mba("resnet50", 324).train(), torch.tensor([0, 1])
    first, second = losses_of(net, images(2, (324, 324)), y, lr=3e-5, steps=2)
    assert second < first


@torch.inference_mode()
def test_on_the_kits_own_tower() -> None:
    tower = load_encoder("tiny_rn").visual
    net = make_mba(tower, 128).eval()
    assert net.dims == {"layer3": 256, "global": 512, "spatial": 512, "channel": 512}
    out = net(images(1, (128, 128)))
    assert torch.equal(out["map"], plain(tower, images(1, (128, 128)), "clip")[1])
    assert out["map"].shape == (1, 512, 8, 8)


@torch.inference_mode()
def test_images_that_are_not_square() -> None:
    net = make_mba(backbone("torchvision"), (96, 64), "axial").eval()
    assert net(images(1, (96, 64)))["map"].shape[2:] == (6, 4)
    with pytest.raises(ValueError, match=r"expected \('B', 3, 96, 64\), got \(1, 3, 64, 96\)"):
        net(images(1, (64, 96)))
    with pytest.raises(ValueError, match="as high as wide"):
        make_mba(backbone("torchvision"), (96, 64))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="'resnet50' or a module, not 'resnet18'"):
        make_mba("resnet18", 64)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ModifiedResNet, not Identity"):
        make_mba(nn.Identity(), 64)
