"""Losses of pytorch-metric-learning by name: values, weights in the optimiser, poor batches."""

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor

from handclip_lib.losses import build_loss, by_name
from handclip_lib.params import ParamError

WIDTH, NUM_IDS = 6, 8
# name -> settings, and whether it has weights of its own
NAMES: dict[str, tuple[dict[str, Any], bool]] = {
    "CircleLoss": ({"m": 0.25, "gamma": 64}, False),
    "MultiSimilarityLoss": ({"alpha": 2, "beta": 40}, False),
    "NTXentLoss": ({"temperature": 0.2}, False),
    "ContrastiveLoss": ({"neg_margin": 0.8}, False),
    "TripletMarginLoss": ({"margin": 0.2, "smooth_loss": True}, False),
    "NCALoss": ({"softmax_scale": 2}, False),
    "ProxyAnchorLoss": ({"margin": 0.2}, True),
    "ProxyNCALoss": ({"softmax_scale": 3}, True),
    "SoftTripleLoss": ({"centers_per_class": 2}, True),
    "CosFaceLoss": ({"margin": 0.2, "scale": 16}, True),
    "SubCenterArcFaceLoss": ({"margin": math.degrees(0.3), "sub_centers": 2}, True),
    "NormalizedSoftmaxLoss": ({"temperature": 0.1}, True),
}
each = pytest.mark.parametrize("name", NAMES)


def features(seed: int = 0) -> Tensor:
    return torch.randn(12, WIDTH, generator=torch.manual_seed(seed)).requires_grad_()


def criterion(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return build_loss([{"type": name, **NAMES[name][0], **more}], NUM_IDS, WIDTH)


@each
def test_it_is_the_library_s_with_our_settings(name: str) -> None:
    args, weighted = NAMES[name]
    filled = {"num_classes": NUM_IDS, "embedding_size": WIDTH} if weighted else {}
    torch.manual_seed(0)
    theirs = getattr(pml, name)(**filled, **args)
    z, y = features(), torch.arange(12) // 3
    wanted = theirs(z, y)
    (grad,) = torch.autograd.grad(wanted, z)
    for told in ({"type": name, **args}, {"type": "pml", "name": name, "args": args}):
        torch.manual_seed(0)
        built = build_loss([told], NUM_IDS, WIDTH)
        (got,) = built({"proj": z}, y).values()
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(torch.autograd.grad(got, z)[0], grad)
    plain = getattr(pml, name)(**filled)
    assert abs(plain(z, y) - wanted) > 1e-4, "the settings don't reach it"


@each
def test_its_weights_learn(name: str) -> None:
    built, weighted = criterion(name), NAMES[name][1]
    before = [p.detach().clone() for p in built.parameters()]
    assert bool(before) == weighted
    if weighted:
        step = torch.optim.AdamW(built.parameters(), lr=0.01)
        built({"proj": features()}, torch.arange(12) // 3)[name].backward()
        step.step()
        assert all(not torch.equal(b, p) for b, p in zip(before, built.parameters(), strict=True))
        assert any(key.startswith(f"terms.{name}.parts.proj.loss") for key in built.state_dict())


@each
@pytest.mark.parametrize("kind", ["one identity", "singletons", "one image", "pairs"])
@pytest.mark.parametrize("equal", [False, True])
def test_poor_batches_leave_all_finite(name: str, kind: str, equal: bool) -> None:
    y = {
        "one identity": torch.full((8,), 3),
        "singletons": torch.arange(8),
        "one image": torch.tensor([2]),
        "pairs": torch.arange(8) // 2,
    }[kind]
    z = features().detach()[: len(y)]
    z = (z[:1].expand_as(z) if equal else z).clone().requires_grad_()
    built = criterion(name)
    value = built({"proj": z}, y)[name]
    grads = torch.autograd.grad(value, [z, *built.parameters()], allow_unused=True)
    assert value.isfinite() and value.requires_grad
    assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.filterwarnings("ignore:Values of Tp or Tn", "ignore:__array_wrap__")
@pytest.mark.parametrize("name", by_name.names())
def test_every_name_builds_and_pulls(name: str) -> None:
    args = {"RankedListLoss": {"margin": 0.4, "Tn": 10.0}}.get(name, {})
    torch.manual_seed(0)
    z = features()
    built = build_loss([{"type": name, **args}], NUM_IDS, WIDTH)
    built({"proj": z}, torch.arange(12) // 3)[name].backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [n for n in NAMES if by_name.remembers(n)])
def test_a_memory_adds_partners(name: str) -> None:
    built, y = criterion(name, memory=12, memory_start=0), torch.arange(12) // 3
    first, second = features(), features(1)
    built({"proj": first}, y)
    got = built({"proj": second}, y)[name]
    theirs = getattr(pml, name)(**NAMES[name][0])
    others, whose = torch.cat((second, first)), torch.cat((y, y))
    same = y[:, None] == whose[None]
    different = ~same
    same[:, :12].fill_diagonal_(False)
    pairs = (*same.nonzero(as_tuple=True), *different.nonzero(as_tuple=True))
    torch.testing.assert_close(got, theirs(second, y, pairs, others, whose))
    assert abs(got - criterion(name)({"proj": second}, y)[name]) > 1e-5


def test_unfit_names_say_why() -> None:
    for name, reason in by_name.UNFIT.items():
        assert hasattr(pml, name), "no longer in the library: take it off the list"
        with pytest.raises(ParamError, match=reason):
            build_loss([{"type": "pml", "name": name}], NUM_IDS, WIDTH)


def test_values_that_the_library_refuses_say_where() -> None:
    told = {"type": "PNPLoss", "variant": "Dz"}
    with pytest.raises(ParamError, match=r"losses\.0\.PNPLoss does not take"):
        build_loss([told], NUM_IDS, WIDTH)
