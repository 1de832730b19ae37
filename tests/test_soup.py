"""Weights between weights: ends to the bit, means, and BatchNorm's statistics taken anew."""

import copy

import pytest
import torch
from torch import nn

from handclip_lib.models import towers
from handclip_lib.models.clip import load_encoder
from handclip_lib.models.soup import average, best, interpolate, reestimate_bn

State = dict[str, torch.Tensor]


def state_of(seed: int) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 4, generator=rng),
        "zero": torch.tensor([-0.0, 1e-40, float("inf")]) if seed else torch.tensor([1.0, 2, 3]),
        "half": torch.randn(5, generator=rng).half(),
        "same": torch.linspace(0.1, 0.7, 5),
        "count": torch.tensor(7 + seed),
    }


def same_bits(a: State, b: State) -> bool:
    def bits(value: torch.Tensor) -> bytes:
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1), (0, 0), (1, 1)])
def test_the_ends_of_an_interpolation_are_the_two_weights_bit_for_bit(alpha, end):
    states = [state_of(0), state_of(1)]
    told = interpolate(*states, alpha)
    assert same_bits(told, states[end])
    told["weight"] += 1
    assert same_bits(states[end], state_of(end))  # a clone: it is nobody else's


def test_the_ends_are_those_of_a_tower_too():
    start = load_encoder("tiny_rn", "").visual.state_dict()
    end = {n: v + 1 if v.is_floating_point() else v + 9 for n, v in start.items()}
    assert same_bits(interpolate(start, end, 0.0), dict(start))
    assert same_bits(interpolate(start, end, 1.0), end)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.7])
def test_between_the_ends_it_is_a_share_of_each(alpha):
    start, end = state_of(0), state_of(1)
    told = interpolate(start, end, alpha)
    wanted = (1 - alpha) * start["weight"].double() + alpha * end["weight"].double()
    torch.testing.assert_close(told["weight"].double(), wanted, rtol=0, atol=1e-6)
    assert told["half"].dtype == torch.half and told["count"] == 8
    assert torch.equal(told["same"], start["same"])  # what did not move does not


def test_weights_of_two_kinds_are_refused_by_name():
    start = state_of(0)
    shorter = {n: v for n, v in start.items() if n != "half"}
    for other, told in [(shorter, "half"), (start | {"weight": torch.zeros(4, 3)}, r"\(4, 3\)")]:
        with pytest.raises(ValueError, match=told):
            interpolate(start, other, 0.5)
        with pytest.raises(ValueError, match=told):
            average([start, other])
    with pytest.raises(ValueError, match="alpha"):
        interpolate(start, start, 1.5)
    with pytest.raises(ValueError, match="no weights"):
        average([])


def test_the_best_share_is_that_of_the_highest_score_and_of_equals_the_larger():
    assert best([0, 0.3, 1], [0.2, 0.9, 0.1]) == 0.3
    assert best([0, 0.3, 1], [0.9, 0.9, 0.1]) == 0.3 and best([1, 0.3], [0.5, 0.5]) == 1


def test_an_average_is_uniform_and_has_no_order():
    states = [{"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(k)} for k in range(3)]
    states[2]["w"] = torch.tensor([4.0, 10.0])
    assert average(states)["w"].tolist() == [2.0, 6.0] and average(states)["n"] == 2
    assert torch.equal(average(states[::-1])["w"], average(states)["w"])
    one = state_of(1)
    assert same_bits(average([one]), one)
    assert torch.equal(average([one] * 3)["same"], one["same"])


# --- BatchNorm --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(12, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def test_batchnorm_gets_the_statistics_of_the_images_and_nothing_else_moves(images):
    visual = load_encoder("tiny_rn", "").visual
    visual.layer2.train()  # some modes, to be found again
    modes = [part.training for part in visual.modules()]
    before, seen = copy.deepcopy(visual.state_dict()), []
    handle = visual.bn1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    norms = [m for m in visual.modules() if isinstance(m, nn.BatchNorm2d)]
    assert reestimate_bn(visual, iter(images.split(4))) == len(norms) > 10
    handle.remove()
    assert [part.training for part in visual.modules()] == modes
    assert all(norm.momentum == 0.1 for norm in norms)
    after = visual.state_dict()
    told = ("running_mean", "running_var", "num_batches_tracked")
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and all(name.endswith(told) for name in moved)
    # by hand: the plain mean over the batches, of means and of unbiased variances
    assert len(seen) == 3
    means = torch.stack([x.double().mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.double().var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(visual.bn1.running_mean.double(), means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(visual.bn1.running_var.double(), variances, rtol=1e-4, atol=1e-5)


def test_deep_statistics_are_those_of_a_tower_that_normalises_by_the_batch(images):
    visual = load_encoder("tiny_rn", "").visual
    reestimate_bn(visual, [images])
    plain, batch = towers.features(visual, images), towers.features(visual.train(), images)
    torch.testing.assert_close(plain.pool, batch.pool, rtol=0.05, atol=0.02)


def test_everything_but_batchnorm_is_as_in_use(images):
    """Dropout, were there any, would change the statistics of all that follows it."""
    plain, dropping = load_encoder("tiny_rn", "").visual, load_encoder("tiny_rn", "").visual
    dropping.layer1.append(nn.Dropout(0.5))
    for visual in (plain, dropping):
        reestimate_bn(visual.train(), [images[:4]])
    torch.testing.assert_close(
        dropping.layer2[0].bn1.running_mean, plain.layer2[0].bn1.running_mean
    )


def test_a_tower_without_batchnorm_asks_for_no_images():
    def images():
        raise AssertionError("asked for")
        yield

    assert reestimate_bn(load_encoder("tiny", "").visual, images()) == 0


def test_without_images_the_statistics_stay_as_they_are():
    visual = load_encoder("tiny_rn", "").visual
    before = copy.deepcopy(visual.state_dict())
    with pytest.raises(ValueError, match="no images"):
        reestimate_bn(visual, [])
    assert same_bits(dict(visual.state_dict()), dict(before))
