"""Each loss against a loop written from its paper: values and gradients, also of poor batches."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from handclip_lib.losses import metric
from handclip_lib.losses.center import Center
from handclip_lib.losses.classify import CrossEntropy
from handclip_lib.losses.margin import ArcFace
from handclip_lib.losses.memory import Memory

MININGS = ("batch_hard", "semi_hard", "hard", "all")
# Images of each identity in the batch, and the width of the features.
SHAPES = [((2, 2), 3), ((4, 4, 4), 5), ((1, 3, 2), 2), ((5, 1, 1), 7), ((2, 1), 1), ((3,) * 6, 16)]
POOR = [((6,), 4), ((1,) * 5, 4), ((1,), 4), ((1, 1), 4)]
shapes = pytest.mark.parametrize(("counts", "width"), SHAPES + POOR, ids=str)


def batch(counts: tuple[int, ...], width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shuffled float64 features with a gradient, and identities that are not 0, 1, 2, …"""
    rng = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((n,), 3 * i + 1) for i, n in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=rng)]
    z = torch.randn(len(y), width, generator=rng, dtype=torch.float64) + 0.1 * y[:, None]
    return (0.3 * z).requires_grad_(), y


def agree(one: Tensor, two: Tensor, z: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    for_one, for_two = (torch.autograd.grad(v, z, allow_unused=True)[0] for v in (one, two))
    for_two = torch.zeros_like(z) if for_two is None else for_two
    torch.testing.assert_close(for_one, for_two, rtol=1e-7, atol=1e-10)


def mean(values: list[Tensor], z: Tensor) -> Tensor:
    return sum(values, z.sum() * 0) / max(len(values), 1)


def dist(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b)


def unit(z: Tensor) -> Tensor:
    return torch.stack([row / row.square().sum().sqrt() for row in z])


def hinge(gap: Tensor, margin: float | None) -> Tensor:
    return torch.log(1 + torch.exp(gap)) if margin is None else (gap + margin).clamp(min=0)


def triplets(y: Tensor) -> Iterator[tuple[int, int, int]]:
    n = range(len(y))
    for a in n:
        for p in n:
            for q in n:
                if a != p and y[a] == y[p] and y[a] != y[q]:
                    yield a, p, q


def naive_triplet(
    z: Tensor, y: Tensor, margin: float | None, mining: str, anchors: int | None = None
) -> Tensor:
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for a, p, q in (t for t in triplets(y) if t[0] < (anchors or len(y))):
        found.setdefault(a, []).append((dist(z[a], z[p]), dist(z[a], z[q])))
    if mining == "batch_hard":
        hardest = [(max(p for p, _ in f), min(q for _, q in f)) for f in found.values()]
        return mean([hinge(p - q, margin) for p, q in hardest], z)
    band = math.inf if margin is None else margin
    keep: dict[str, Callable[[Tensor, Tensor], Tensor | bool]] = {
        "all": lambda p, q: True,
        "hard": lambda p, q: q <= p,
        "semi_hard": lambda p, q: (p < q) & (q <= p + band),
    }
    chosen = [(p, q) for f in found.values() for p, q in f if keep[mining](p, q)]
    return mean([hinge(p - q, margin) for p, q in chosen], z)


@shapes
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize(("margin", "normalize"), [(0.3, False), (None, False), (0.2, True)])
def test_triplet(
    counts: tuple[int, ...], width: int, mining: str, margin: float | None, normalize: bool
) -> None:
    z, y = batch(counts, width)
    got = metric.triplet(z, y, margin=margin, mining=mining, normalize=normalize)  # type: ignore
    agree(got, naive_triplet(unit(z) if normalize else z, y, margin, mining), z)


def test_triplet_at_a_known_point() -> None:
    # On a line: persons A at 0 and 3, B at 4 and 8. Hardest: 3-4, 3-1, 4-1, 4-5.
    z, y = torch.tensor([[0.0], [3.0], [4.0], [8.0]]), torch.tensor([0, 0, 1, 1])
    assert float(metric.triplet(z, y, margin=2.0)) == pytest.approx((1 + 4 + 5 + 1) / 4)
    # All: each anchor with its one partner and both others.
    gaps = [3 - 4, 3 - 8, 3 - 1, 3 - 5, 4 - 4, 4 - 1, 4 - 8, 4 - 5]
    told = sum(max(0, 2 + g) for g in gaps) / 8
    assert float(metric.triplet(z, y, margin=2.0, mining="all")) == pytest.approx(told)
    assert float(metric.triplet(z, y, margin=2.0, mining="hard")) == pytest.approx((4 + 2 + 5) / 3)
    assert float(metric.triplet(z, y, margin=2.0, mining="semi_hard")) == pytest.approx(2 / 3)


@pytest.mark.parametrize("margin", [0.3, None])
def test_batch_hard_is_the_library_s_when_that_is_told_everything(margin: float | None) -> None:
    z, y = batch((4, 3, 2, 1), 6)
    flat = LpDistance(normalize_embeddings=False)
    loss = pml.TripletMarginLoss(
        margin=margin or 0, smooth_loss=margin is None, distance=flat, reducer=MeanReducer()
    )
    mined = miners.BatchHardMiner(distance=flat)(z, y)
    torch.testing.assert_close(metric.triplet(z, y, margin=margin), loss(z, y, mined).to(z))


def naive_contrastive(z: Tensor, y: Tensor, margin: float, anchors: int | None = None) -> Tensor:
    values = []
    for i in range(anchors or len(y)):
        for j in set(range(len(y))) - {i}:
            d = dist(z[i], z[j])
            values.append(d**2 / 2 if y[i] == y[j] else (margin - d).clamp(min=0) ** 2 / 2)
    return mean(values, z)


@shapes
@pytest.mark.parametrize(("margin", "normalize"), [(1.0, True), (0.4, False)])
def test_contrastive(counts: tuple[int, ...], width: int, margin: float, normalize: bool) -> None:
    z, y = batch(counts, width)
    got = metric.contrastive(z, y, margin=margin, normalize=normalize)
    agree(got, naive_contrastive(unit(z) if normalize else z, y, margin), z)


def naive_supcon(z: Tensor, y: Tensor, temperature: float, anchors: int | None = None) -> Tensor:
    values = []
    for i in range(anchors or len(y)):
        others = [a for a in range(len(y)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        if positives:  # anchors without one are no part of the mean
            scores = {a: torch.exp(z[i] @ z[a] / temperature) for a in others}
            logs = [torch.log(scores[p] / sum(scores.values())) for p in positives]
            values.append(-sum(logs) / len(positives))
    return mean(values, z)


@shapes
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_supcon(counts: tuple[int, ...], width: int, temperature: float) -> None:
    z, y = batch(counts, width)
    got = metric.supcon(z, y, temperature=temperature)
    agree(got, naive_supcon(unit(z), y, temperature), z)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_cross_entropy(smoothing: float, mixed: bool) -> None:
    torch.manual_seed(0)
    z, y = batch((2, 3, 1), 4)
    loss = CrossEntropy(8, 4, label_smoothing=smoothing).double()
    torch.nn.init.normal_(loss.classifier.weight)
    soft = torch.rand(6, 8, dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True)
    values = []
    for i in range(6):
        scores = torch.exp(torch.stack([loss.classifier.weight[k] @ z[i] for k in range(8)]))
        for k in range(8):
            told = soft[i, k] if mixed else float(k == y[i])
            q = (1 - smoothing) * told + smoothing / 8
            values.append(-q * torch.log(scores[k] / scores.sum()) / 6)
    got = loss(z, y, soft) if mixed else loss(z, y)
    agree(got, sum(values, z.sum() * 0), z)


def naive_arcface(z: Tensor, y: Tensor, w: Tensor, scale: float, margin: float) -> Tensor:
    values, z, w = [], unit(z), unit(w)
    for i in range(len(y)):
        logits = []
        for k in range(len(w)):
            angle = torch.acos((z[i] @ w[k]).clamp(-1, 1))
            if k == y[i]:
                inside = float(angle.detach()) + margin <= math.pi
                cosine = torch.cos(angle + margin) if inside else 0
                logits.append(cosine if inside else torch.cos(angle) - margin * math.sin(margin))
            else:
                logits.append(torch.cos(angle))
        scores = torch.exp(scale * torch.stack(logits))
        values.append(-torch.log(scores[y[i]] / scores.sum()))
    return mean(values, z)


@pytest.mark.parametrize(("counts", "width"), [*SHAPES[:2], *SHAPES[3:4], *POOR[:3]], ids=str)
@pytest.mark.parametrize(("scale", "margin"), [(20.0, 0.3), (5.0, 1.0), (30.0, 0.0)])
def test_arcface(counts: tuple[int, ...], width: int, scale: float, margin: float) -> None:
    torch.manual_seed(0)
    z, y = batch(counts, width)
    loss = ArcFace(20, width, scale=scale, margin=margin).double()
    agree(loss(z, y), naive_arcface(z, y, loss.weight, scale, margin), z)
    (mine,) = torch.autograd.grad(loss(z, y), loss.weight)
    (theirs,) = torch.autograd.grad(naive_arcface(z, y, loss.weight, scale, margin), loss.weight)
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_arcface_beyond_pi_minus_m_keeps_falling() -> None:
    loss = ArcFace(2, 2, scale=1.0, margin=0.5).double()
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    angles = torch.linspace(0.01, math.pi - 0.01, 200, dtype=torch.float64)
    told = []
    for angle in angles:
        z = torch.stack((angle.cos(), -angle.sin()))[None]
        told.append(naive_arcface(z, torch.tensor([0]), loss.weight, 1.0, 0.5).detach())
        torch.testing.assert_close(loss(z, torch.tensor([0])).detach(), told[-1])
    assert (angles > math.pi - 0.5).sum() > 20


@pytest.mark.parametrize(
    "scale, margin, start", [(20, 0.3, 10.2), (30, 0.5, 18.7), (35, 0.4, 17.9)]
)
def test_arcface_starts_where_the_formula_says(scale: float, margin: float, start: float) -> None:
    """72 identities, cosines of 0: the margin is in radians (in degrees it would be near ln 72)."""
    loss = ArcFace(72, 73, scale=scale, margin=margin)
    loss.weight.data = torch.eye(72, 73)
    z = torch.eye(73)[72:].repeat(8, 1)
    got = float(loss(z, torch.arange(8)).detach())
    lift = scale * math.sin(margin)
    assert got == pytest.approx(lift + math.log(math.exp(-lift) + 71), abs=1e-3)
    assert got == pytest.approx(start, abs=0.06)


def test_arcface_is_the_library_s_in_degrees() -> None:
    z, y = batch((3, 2, 2), 5)
    theirs = pml.ArcFaceLoss(10, 5, margin=math.degrees(0.3), scale=20).double()
    ours = ArcFace(10, 5, scale=20, margin=0.3).double()
    ours.weight.data = theirs.W.data.T.clone()
    torch.testing.assert_close(ours(z, y), theirs(z, y))


@pytest.mark.parametrize("kind", ["aligned", "opposite", "zero", "equal"])
def test_arcface_has_a_finite_gradient_everywhere(kind: str) -> None:
    torch.manual_seed(0)
    loss, y = ArcFace(4, 3), torch.arange(4)
    loss.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 4]])
    signs = {"aligned": 2.0, "opposite": -2.0, "zero": 0.0}
    z = loss.weight.detach() * signs[kind] if kind in signs else torch.ones(4, 3)
    z.requires_grad_()
    value = loss(z, y)
    grads = torch.autograd.grad(value, [z, loss.weight])
    assert value.isfinite() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("update", ["ema", "sgd"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("counts", "width"), [SHAPES[1], SHAPES[3], POOR[0], POOR[1]], ids=str)
def test_center(counts: tuple[int, ...], width: int, normalize: bool, update: str) -> None:
    z, y = batch(counts, width)
    loss = Center(20, width, update=update, alpha=0.3, normalize=normalize).double()  # type: ignore
    means = torch.randn(20, width, dtype=torch.float64)
    loss.start(means)
    centers = unit(means) if normalize else means
    torch.testing.assert_close(loss.centers.detach(), centers)
    told = unit(z) if normalize else z
    values = [(told[i] - centers[y[i]]).square().sum() / 2 for i in range(len(y))]
    agree(loss(z, y), mean(values, z), z)
    for j in range(20):  # the rule, an identity at a time
        mine = [told[i].detach() for i in range(len(y)) if y[i] == j]
        step = sum((centers[j] - f for f in mine), torch.zeros(width)) / (1 + len(mine))
        wanted = centers[j] - 0.3 * step if update == "ema" else centers[j]
        torch.testing.assert_close(loss.centers[j].detach(), wanted)


def test_a_centre_without_a_start_is_put_where_its_identity_is_first_seen() -> None:
    z, y = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([2, 2, 0])
    loss = Center(4, 2, normalize=False).eval()
    assert float(loss(z, y)) == 0 and not loss.known.any(), "it learns in training only"
    loss.train()
    assert float(loss(z, y)) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert loss.known.tolist() == [True, False, True, False]
    assert loss.centers.tolist() == [[0, 2], [0, 0], [2, 0], [0, 0]]


def test_means_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Center(4, 2).start(torch.zeros(3, 2))


PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": metric.contrastive,
    "supcon": metric.supcon,
    **{m: lambda z, y, m=m: metric.triplet(z, y, mining=m) for m in MININGS},  # type: ignore
    "soft": lambda z, y: metric.triplet(z, y, margin=None),
}


@pytest.mark.parametrize("name", PAIRWISE)
class TestPairs:
    def test_the_order_of_a_batch_means_nothing(self, name: str) -> None:
        z, y = batch((4, 3, 2, 1), 6)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(PAIRWISE[name](z, y), PAIRWISE[name](z[order], y[order]))

    @pytest.mark.parametrize("counts", [(8,), (1,) * 8, (4, 4), (1, 3, 4), (1,)], ids=str)
    @pytest.mark.parametrize("kind", ["equal", "twins", "zero"])
    def test_exact_duplicates_leave_all_finite(
        self, name: str, counts: tuple[int, ...], kind: str
    ) -> None:
        z, y = batch(counts, 4)
        told = z.detach().float()
        told = {"equal": told[:1].expand_as(told), "zero": told * 0, "twins": told}[kind].clone()
        if kind == "twins":
            told[: len(told) // 2 * 2 : 2] = told[1::2]
        told.requires_grad_()
        value = PAIRWISE[name](told, y)
        (grad,) = torch.autograd.grad(value, told)
        assert value.isfinite() and grad.isfinite().all()

    def test_where_there_is_no_pair_there_is_nothing(self, name: str) -> None:
        singles = ((1,),) if name == "contrastive" else ((1,), (1,) * 6)
        lonely = () if name in ("contrastive", "supcon") else ((6,),)  # no negative
        for counts in (*singles, *lonely):
            z, y = batch(counts, 4)
            value = PAIRWISE[name](z, y)
            (grad,) = torch.autograd.grad(value, z)
            assert float(value) == 0 and grad.abs().sum() == 0, counts

    def test_a_bank_adds_partners_and_no_anchors(self, name: str) -> None:
        z, y = batch((2, 2, 1), 3)
        more, theirs = (t.detach() for t in batch((1, 2, 3), 3, seed=5))
        both, all_y = torch.cat((z, more)), torch.cat((y, theirs))
        if name == "contrastive":
            got = metric.contrastive(z, y, (more, theirs))
            wanted = naive_contrastive(unit(both), all_y, 1.0, len(y))
        elif name == "supcon":
            got = metric.supcon(z, y, (more, theirs))
            wanted = naive_supcon(unit(both), all_y, 0.1, len(y))
        else:
            margin, mining = (None, "batch_hard") if name == "soft" else (0.3, name)
            got = metric.triplet(z, y, (more, theirs), margin=margin, mining=mining)  # type: ignore
            wanted = naive_triplet(both, all_y, margin, mining, len(y))
        agree(got, wanted, z)


def test_valid_anchors_have_both() -> None:
    for counts, share in {(2, 2): 1.0, (4,): 0.0, (1, 1, 1): 0.0, (3, 1): 0.75}.items():
        assert float(metric.valid_anchors(batch(counts, 2)[1])) == share


class TestMemory:
    def test_it_holds_the_last_and_forgets_the_oldest(self) -> None:
        memory = Memory(5, 1, start=0)
        assert [len(t) for t in memory()] == [0, 0]
        for first in (0, 3, 6):
            rows = torch.arange(first, first + 3)
            memory.push(rows[:, None].float(), rows)
        features, identities = memory()
        assert sorted(identities.tolist()) == [4, 5, 6, 7, 8]
        assert torch.equal(features[:, 0].long(), identities)
        rows = torch.arange(20, 30)  # more than it holds
        memory.push(rows[:, None].float(), rows)
        assert sorted(memory()[1].tolist()) == [25, 26, 27, 28, 29]

    def test_it_opens_after_its_epochs(self) -> None:
        memory, y = Memory(5, 1, start=2), torch.arange(3)
        for epoch, held in ((1, 0), (2, 0), (3, 3)):
            memory.set_epoch(epoch)
            memory.push(y[:, None].float(), y)
            assert len(memory()[1]) == held
