"""Attention modules against loops over places, and what each may depend on."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from handclip_lib.models import attention
from handclip_lib.models.attention import ChannelAttention, Rpe, SelfAttention, SpatialAttention

CHANNELS = 16


def make(kind: str, size: tuple[int, int] = (3, 3), gamma: float = 0.0) -> nn.Module:
    """A module in eval mode with BatchNorms that do something."""
    torch.manual_seed(0)
    kinds: dict[str, Rpe] = {"axial": "axial", "released": "released", "none": "none"}
    if kind == "channel":
        module: nn.Module = ChannelAttention()
    elif kind == "self":
        module = SelfAttention(CHANNELS)
    else:
        module = SpatialAttention(CHANNELS, size, kinds[kind])
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.5, 1.5)
    module.gamma.data.fill_(gamma)
    return module.eval()


def maps(size: tuple[int, int], scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def normed(norm: nn.BatchNorm2d, x: np.ndarray) -> np.ndarray:
    """x: (C, h, w)."""
    mean, var, weight, bias = (
        numbers(t)[:, None, None]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def embedded(layers: nn.Module, x: np.ndarray) -> np.ndarray:
    """A linear map at each place, then, where there are, BatchNorm and ReLU."""
    parts = list(layers) if isinstance(layers, nn.Sequential) else [layers]
    weight = numbers(parts[0].weight)[:, :, 0, 0]
    out = np.einsum("oc,cxy->oxy", weight, x)
    if len(parts) > 1:
        out = np.maximum(normed(parts[1], out + numbers(parts[0].bias)[:, None, None]), 0)
    return out


def softmax(energy: np.ndarray) -> np.ndarray:
    powers = np.exp(energy - energy.max())
    return powers / powers.sum()


def naive_channel(x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for c in range(len(x)):
        energy = np.array([(x[c] * x[d]).sum() for d in range(len(x))])
        weights = softmax(energy.max() - energy)
        out[c] = sum(weight * x[d] for d, weight in enumerate(weights))
    return out


def naive_places(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Each place's weighted mean of v over all places."""
    out, places = np.zeros_like(v), list(np.ndindex(v.shape[1:]))
    for x, y in places:
        weights = softmax(np.array([q[:, x, y] @ k[:, i, j] for i, j in places]))
        for weight, (i, j) in zip(weights, places, strict=True):
            out[:, x, y] += weight * v[:, i, j]
    return out


def naive_positions(
    rpe: str, q: np.ndarray, v: np.ndarray, table_h: np.ndarray, table_w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """E_h and E_w, place by place."""
    h, w = v.shape[1:]
    over_h, over_w = np.zeros_like(v), np.zeros_like(v)
    for x, y in np.ndindex(h, w):
        if rpe == "axial":
            for i in range(h):
                over_h[:, x, y] += q[:, x, y] @ table_h[i - x + h - 1] * v[:, i, y]
            for j in range(w):
                over_w[:, x, y] += q[:, x, y] @ table_w[j - y + w - 1] * v[:, x, j]
        else:
            for i, j in np.ndindex(h, w):
                over_h[:, x, y] += q[:, x, y] @ table_h[j - i + h - 1] * v[:, i, j]
                over_w[:, x, y] += q[:, x, y] @ table_w[j - i + h - 1] * v[:, i, j]
    return over_h, over_w


def naive_spatial(module: SpatialAttention, x: np.ndarray) -> np.ndarray:
    q, k, v = (embedded(part, x) for part in (module.query, module.key, module.value))
    out = naive_places(q, k, v)
    if module.rpe != "none":
        tables = numbers(module.table_h), numbers(module.table_w)
        over_h, over_w = naive_positions(module.rpe, q, v, *tables)
        out += normed(module.norm_h, over_h) + normed(module.norm_w, over_w)
    return out


KINDS = ("channel", "self", "axial", "released", "none")
SIZES = [(kind, (3, 3)) for kind in KINDS] + [(kind, (2, 4)) for kind in KINDS if kind[0] != "r"]


@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_equal_to_loops_over_places(kind: str, size: tuple[int, int]) -> None:
    module, x = make(kind, size, gamma=0.7), maps(size, 0.5)
    found = numbers(module(x))
    for image, one in zip(found, numbers(x), strict=True):
        if isinstance(module, SpatialAttention):
            attended = naive_spatial(module, one)
        elif isinstance(module, SelfAttention):
            q, k, v = (embedded(part, one) for part in (module.query, module.key, module.value))
            attended = embedded(module.out, naive_places(q, k, v))
        else:
            attended = naive_channel(one)
        assert np.abs(attended).max() > 0.05
        np.testing.assert_allclose(image, 0.7 * attended + one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_until_trained(kind: str) -> None:
    module, x = make(kind), maps((3, 3))
    assert torch.equal(module(x), x)
    assert torch.equal(module.train()(x), x)


@pytest.mark.parametrize("kind", ["channel", "self"])
def test_energies_beyond_half_precision(kind: str) -> None:
    module, x = make(kind, gamma=0.1), maps((3, 3), 1500.0)
    assert float(x.square().sum()) > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        out = module(x)
    assert out.dtype == x.dtype and out.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_gamma_first_then_the_rest(kind: str) -> None:
    module, x = make(kind).train(), maps((3, 3))
    for gamma in (0.0, 0.5):
        module.gamma.data.fill_(gamma)
        module.zero_grad()
        module(x).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            if name == "gamma":
                assert parameter.grad.abs() > 0
            elif not name.endswith("0.bias"):  # a bias before a BatchNorm does nothing
                assert (parameter.grad.abs().max() > 0) == (gamma > 0), name


@pytest.mark.parametrize("kind", ["released", "axial"])
def test_what_a_position_term_depends_on(kind: str) -> None:
    """One place with a value, queries all alike: who is told of it, and what."""
    size, width = 4, 2
    torch.manual_seed(0)
    table_h, table_w = torch.randn(2, 2 * size - 1, width)
    q = torch.ones(1, width, size, size)
    for i, j in itertools.product(range(size), repeat=2):
        v = torch.zeros(1, 1, size, size)
        v[..., i, j] = 1.0
        if kind == "released":  # every query the same, by the column minus the row of the value
            term = attention._released(q, v, table_h)[0, 0]
            assert torch.allclose(term, table_h[j - i + size - 1].sum().expand(size, size))
        else:  # those of the same column by the rows between, those of the same row likewise
            over_rows, over_columns = (t[0, 0] for t in attention._axial(q, v, table_h, table_w))
            down = torch.stack([table_h[i - x + size - 1].sum() for x in range(size)])
            along = torch.stack([table_w[j - y + size - 1].sum() for y in range(size)])
            assert torch.allclose(over_rows[:, j], down)
            assert torch.allclose(over_columns[i], along)
            assert over_rows.count_nonzero() == over_columns.count_nonzero() == size


def test_channels_attend_to_those_unlike_them() -> None:
    module = ChannelAttention()
    module.gamma.data.fill_(1.0)
    x = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0]]).view(1, 3, 1, 2)
    # E = [[9, 9, 0], [9, 9, 0], [0, 0, 1]]: the first two turn to the third, it turns to them
    own, other = 1 / (2 + np.e**9), np.e**9 / (2 + np.e**9)
    first = [3 + own * 6, other]
    third = [3 * 2 * np.e / (2 * np.e + 1), 1 + 1 / (2 * np.e + 1)]
    expected = torch.tensor([first, first, third]).view(1, 3, 1, 2)
    assert torch.allclose(module(x), expected.float())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="as high as wide"):
        SpatialAttention(CHANNELS, (2, 3), "released")
    with pytest.raises(ValueError, match="not 'relative'"):
        SpatialAttention(CHANNELS, (3, 3), "relative")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected \(h, w\) = \(2, 3\), got \(3, 2\)"):
        make("axial", (2, 3))(maps((3, 2)))
    assert make("none", (2, 3))(maps((3, 2))).shape == (2, CHANNELS, 3, 2)
