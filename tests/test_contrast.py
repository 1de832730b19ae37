"""What pre-training compares: losses against loops from the papers, the copy, the queue, masks."""

import math
from collections import deque

import numpy as np
import open_clip
import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import nn
from toy_hands import small_towers

from handclip_lib.models.clip import load_encoder
from handclip_lib.schema_train import Pretrain
from handclip_lib.train import contrast
from handclip_lib.train.contrast import Contrast, first_convolution, info_nce, related

B = 6
WIDTH = 16


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    small_towers(tmp_path_factory.mktemp("configs"))


def tower(name: str = "toy-vit", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return open_clip.create_model(name).visual.train()


def learner(name: str = "toy-vit", queue: int = 0, steps: int = 10, **told: object) -> Contrast:
    usual = {"projector": "plain", "predictor": False, "hidden": 12, "projection": 8}
    settings = Pretrain.model_validate(usual | told)
    return Contrast(tower(name), settings, WIDTH, steps, queue).train()


def views(seed: int = 1, count: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 3, 32, 32, generator=rng)
    return first, first + 0.5 * torch.randn(count, 3, 32, 32, generator=rng)


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


ROWS, NOBODY = torch.arange(B), torch.full((B,), -1)


def as_rows(z: torch.Tensor) -> np.ndarray:
    return z.detach().numpy().astype(np.float64)


def one_loss(q: np.ndarray, keys: list[np.ndarray], positives: list[int], tau: float) -> float:
    """A query's loss against a list of keys: a loop over sums of exponentials."""
    total = sum(math.exp(float(q @ k) / tau) for k in keys)
    each = [-math.log(math.exp(float(q @ keys[j]) / tau) / total) for j in positives]
    return sum(each) / len(each)


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [{}, {"projector": "norm", "predictor": True}])
def test_moco_v3_is_symmetric_and_equals_a_loop(told: dict):
    made = learner(temperature=0.2, **told)
    first, second = views()
    got = made(first, second, ROWS, NOBODY)["contrast"].item()
    (q1, q2), (k1, k2) = (
        [as_rows(f(v)) for v in (first, second)] for f in (made._queries, made._keys)
    )
    sides = [(q1, k2), (q2, k1)]
    losses = [one_loss(a[i], list(b), [i], 0.2) for a, b in sides for i in range(B)]
    assert got == pytest.approx(2 * 0.2 * sum(losses) / B, rel=1e-4)
    swapped = learner(temperature=0.2, **told)(second, first, ROWS, NOBODY)["contrast"].item()
    assert swapped == pytest.approx(got, rel=1e-5)


def test_moco_v2_equals_a_loop_over_a_queue():
    made = learner(queue=8, temperature=0.2, momentum=(0.9, 0.9))
    remembered: deque[np.ndarray] = deque(maxlen=8)
    for step in range(3):
        first, second = views(step)
        images = ROWS + B * step  # never the same image again
        got = made(first, second, images, NOBODY)["contrast"].item()
        q, k = as_rows(made._queries(first)), as_rows(made._keys(second))
        told = [one_loss(q[i], [k[i], *remembered], [0], 0.2) for i in range(B)]
        assert got == pytest.approx(float(np.mean(told)), rel=1e-4, abs=1e-6), step
        remembered.extend(k)
        with torch.no_grad():
            made.heads[0][0].weight.mul_(1.05)  # the copy has something to follow


def test_supcon_equals_a_loop_and_the_library():
    made = learner(keys="tower", temperature=0.1, labelled=1)
    labels = ids(0, 0, 1, 1, 1, 2)
    first, second = views()
    got = made(first, second, ROWS, labels)["contrast"].item()
    z, who = made._queries(torch.cat([first, second])), labels.repeat(2)
    rows, told = as_rows(z), []
    for i in range(2 * B):
        others = [j for j in range(2 * B) if j != i]
        positives = [place for place, j in enumerate(others) if who[j] == who[i]]
        told.append(one_loss(rows[i], [rows[j] for j in others], positives, 0.1))
    assert got == pytest.approx(float(np.mean(told)), rel=1e-4)
    assert got == pytest.approx(SupConLoss(temperature=0.1)(z, who).item(), rel=1e-4)


def test_a_constant_space_gives_the_logarithm_of_its_size():
    there = torch.ones(3, 7, dtype=torch.bool)
    positive = torch.zeros_like(there)
    positive[:, 2] = True
    assert info_nce(torch.full((3, 7), 4.0), positive, there).item() == pytest.approx(math.log(7))
    there[:, 5:] = False
    assert info_nce(torch.full((3, 7), 4.0), positive, there).item() == pytest.approx(math.log(5))


def test_the_order_of_a_batch_is_nothing_to_it_and_duplicates_are_finite():
    first, second = views()
    order = torch.randperm(B)
    for told in ({}, {"keys": "tower"}):
        one = learner(**told)(first, second, ROWS, NOBODY)["contrast"]
        two = learner(**told)(first[order], second[order], ROWS, NOBODY)["contrast"]
        assert one.item() == pytest.approx(two.item(), rel=1e-5)
        same = learner(**told)
        same(*(view[:1].repeat(B, 1, 1, 1) for view in (first, second)), ROWS, NOBODY)[
            "contrast"
        ].backward()
        grads = [w.grad for w in same.parameters() if w.grad is not None]
        assert grads and all(grad.isfinite().all() for grad in grads)


# -- the copy -------------------------------------------------------------------------------------


def test_the_copy_follows_by_its_momentum():
    made = learner(momentum=(0.9, 1.0), steps=4)
    assert made.followers is not None
    pairs = [("visual", made.visual), ("projector", made.heads[0])]
    held = {(n, k): v.detach().numpy().copy() for n, m in pairs for k, v in m.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for weight in (*made.visual.parameters(), *made.heads[0].parameters()):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
        share = 1 - 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        made(*views(), ROWS, NOBODY)
        for name, module in pairs:
            for key, weight in module.named_parameters():
                old, new = held[name, key], weight.detach().numpy()
                held[name, key] = share * old + (1 - share) * new
                copied = made.followers[name].get_parameter(key).detach().numpy()
                np.testing.assert_allclose(copied, held[name, key], rtol=1e-5, atol=1e-6)
    assert made.diagnostics["momentum"] == pytest.approx(1 - 0.1 * (1 + math.cos(1.5708)) / 2)


def test_momentum_goes_from_its_first_to_its_last_value():
    made = learner(momentum=(0.99, 1.0), steps=100)
    values = [made.momentum(step) for step in range(101)]
    assert values[0] == pytest.approx(0.99) and values[50] == pytest.approx(0.995)
    assert values[100] == pytest.approx(1.0) and values == sorted(values)
    assert learner(momentum=(0.999, 0.999)).momentum(7) == 0.999


@pytest.mark.parametrize("queue", [0, 5])
def test_keys_get_no_gradient(queue: int):
    made = learner(queue=queue)
    for _ in range(2):
        made(*views(), ROWS, NOBODY)["contrast"].backward()
    assert made.followers is not None
    for weight in made.followers.parameters():
        assert not weight.requires_grad and weight.grad is None
    assert not made._keys(views()[0].requires_grad_()).requires_grad
    assert not made.queue.requires_grad
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in made.heads.parameters())
    asking = {n for n, w in made.named_parameters() if w.requires_grad}
    assert not any(name.startswith("followers") for name in asking)


def test_without_a_copy_both_views_have_a_gradient():
    made = learner(keys="tower")
    assert made.followers is None
    first, second = (view.requires_grad_() for view in views())
    made(first, second, ROWS, NOBODY)["contrast"].backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0


@pytest.mark.parametrize("frozen", [True, False])
def test_batchnorms_of_the_copy_have_the_towers_statistics(frozen: bool):
    made = learner("toy-rn")
    for module in made.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(not frozen)
    for _ in range(2):
        made(*views(), ROWS, NOBODY)
    assert made.followers is not None
    copied = made.followers["visual"]
    assert not any(m.training for m in copied.modules())
    both = zip(made.visual.modules(), copied.modules(), strict=True)
    norms = [(ours, its) for ours, its in both if isinstance(ours, nn.BatchNorm2d)]
    means = [(ours.running_mean, its.running_mean) for ours, its in norms]
    assert means and all(bool(ours.abs().sum() > 0) != frozen for ours, _ in means)
    before = [mean.clone() for mean, _ in means]
    made(*views(), ROWS, NOBODY)
    assert all(torch.equal(old, its) for old, (_, its) in zip(before, means, strict=True))


# -- the queue ------------------------------------------------------------------------------------


def test_the_queue_keeps_its_order_and_wraps_around():
    made = learner(queue=7)
    held: list[tuple[tuple[float, ...], int, int]] = [((0.0,) * 8, -1, -1)] * 7
    at = 0
    for batch in range(4):
        keys = torch.randn(3, 8, generator=torch.Generator().manual_seed(batch))
        images, labels = 3 * batch + torch.arange(3), ids(batch, -1, 5)
        made._enqueue(keys, images, labels)
        for k, image, label in zip(keys.tolist(), images.tolist(), labels.tolist(), strict=True):
            held[at] = (tuple(k), image, label)
            at = (at + 1) % 7
        assert made.pointer.item() == at
        assert made.queue.tolist() == [list(k) for k, _, _ in held]
        assert made.queue_images.tolist() == [image for _, image, _ in held]
        assert made.queue_labels.tolist() == [label for _, _, label in held]


def test_of_a_batch_larger_than_the_queue_the_last_keys_stay():
    made = learner(queue=4)
    keys = torch.randn(6, 8)
    made._enqueue(keys, ROWS, NOBODY)
    assert torch.equal(made.queue, keys[2:]) and made.queue_images.tolist() == [2, 3, 4, 5]


def seen(made: Contrast, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the loss is given at each step: positives, and what is there."""
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(logits, positive, there):
        asked.append((positive.clone(), there.clone()))
        return info_nce(logits, positive, there)

    monkeypatch.setattr(contrast, "info_nce", spy)
    return asked


def test_the_queue_never_gives_a_querys_own_image_as_a_negative(monkeypatch):
    made = learner(queue=5)
    asked, rng, met = seen(made, monkeypatch), np.random.default_rng(0), 0
    for _ in range(4):  # epochs of seven images in batches of three: keys of the last one are near
        for rows in np.array_split(rng.permutation(7), 3):
            before = made.queue_images.clone()
            images = torch.from_numpy(rows)
            some = [view[: len(rows)] for view in views()]
            made(*some, images, torch.full((len(rows),), -1))
            positive, there = asked[-1]
            own = images[:, None] == before[None, :]
            met += int(own.sum())
            assert not there[:, 1:][own].any() and positive[:, 0].all() and there[:, 0].all()
            assert not positive[:, 1:].any()
            assert torch.equal(there[:, 1:], ~own & (before >= 0)), "all others are negatives"
    assert met > 5, "keys of the query's own image were in the queue"


def test_in_the_queue_an_identity_is_a_positive_where_it_is_known(monkeypatch):
    made = learner(queue=4)
    asked = seen(made, monkeypatch)
    some = [view[:4] for view in views()]
    made(*some, ids(0, 1, 2, 3), ids(7, 7, -1, -1))
    made(*some, ids(0, 4, 2, 5), ids(7, 7, -1, -1))
    positive, there = asked[-1]
    queue = [[True, True, False, False], [True, True, False, False], [False] * 4, [False] * 4]
    assert positive[:, 1:].tolist() == queue
    assert there[:, 1:].tolist() == [[True] * 4, [True] * 4, [True, True, False, True], [True] * 4]


# -- positives ------------------------------------------------------------------------------------


def test_positives_of_the_hybrid_lie_between_supcon_and_moco(monkeypatch):
    images, all_known = ids(3, 4, 5, 6, 7, 8), ids(0, 0, 1, 1, 2, 0)
    half = torch.where(all_known == 1, -1, all_known)
    found = []
    for labels in (NOBODY, half, all_known):
        made = learner()
        asked = seen(made, monkeypatch)
        made(*views(), images, labels)
        assert len(asked) == 2 and torch.equal(asked[0][0], asked[1][0]) and asked[0][1].all()
        found.append(asked[0][0])
    none, some, every = found
    assert torch.equal(none, torch.eye(B, dtype=torch.bool))
    assert torch.equal(every, all_known[:, None] == all_known[None, :])
    supcon = learner(keys="tower")
    asked = seen(supcon, monkeypatch)
    supcon(*views(), images, all_known)
    positive, there = asked[0]
    diagonal = torch.eye(2 * B, dtype=torch.bool)
    assert torch.equal(positive | diagonal, every.repeat(2, 2)) and torch.equal(there, ~diagonal)
    assert some.sum() == none.sum() + 6 and (some <= every).all()


def test_an_image_that_is_in_a_batch_twice_is_no_negative_of_itself():
    same, alike = related(ids(1, 1, 2), ids(-1, -1, -1), ids(1, 1, 2), ids(-1, -1, -1))
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert not alike.any()


# -- towers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_rn"])
@pytest.mark.parametrize(("queue", "keys"), [(0, "momentum"), (4, "momentum"), (0, "tower")])
def test_steps_on_a_batch_lower_its_loss_with_the_shipped_towers(name: str, queue: int, keys: str):
    encoder = load_encoder(name)
    told = {"projector": "plain", "predictor": False, "hidden": 32, "projection": 16, "keys": keys}
    torch.manual_seed(0)
    made = Contrast(
        encoder.visual, Pretrain.model_validate(told), encoder.dims["proj"], 10, queue
    ).train()
    encoder.visual.eval()  # as freeze_bn
    optimizer = torch.optim.Adam([w for w in made.parameters() if w.requires_grad], lr=1e-4)
    first = torch.randn(4, 3, *encoder.preprocess.size)
    second = first + 0.3 * torch.randn_like(first)
    others = nn.functional.normalize(torch.randn(queue, 16))
    images, labels, losses = torch.arange(4), torch.full((4,), -1), []
    for _ in range(4):
        if queue:  # the same negatives again
            made._enqueue(others, images + 9, labels)
        loss = made(first, second, images, labels)["contrast"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize(("name", "held"), [("tiny", "conv1.weight"), ("tiny_rn", "conv1.weight")])
def test_the_first_convolution_is_the_patch_projection(name: str, held: str):
    visual = load_encoder(name).visual
    assert first_convolution(visual).weight is visual.get_parameter(held)
