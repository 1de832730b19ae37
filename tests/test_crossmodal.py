"""Images against texts: the loss equals a double loop over pairs, each item's own among them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from handclip_lib.losses.crossmodal import cross_modal


def naive(a, b, y_a, y_b, scale, smoothing=0.0, similarity="cosine"):
    """Row by row, in float64; None where no row has a positive."""
    total, rows = 0.0, 0
    for i in range(len(a)):
        positives = [p for p in range(len(b)) if y_b[p] == y_a[i]]
        if not positives:
            continue
        logits = []
        for j in range(len(b)):
            product = (a[i] * b[j]).sum()
            if similarity == "cosine":
                product = scale * product / a[i].norm() / b[j].norm()
            logits.append(product)
        norm = torch.stack(logits).logsumexp(0)
        for j in range(len(b)):
            target = (1 - smoothing) * (j in positives) / len(positives) + smoothing / len(b)
            total = total - target * (logits[j] - norm)
        rows += 1
    return total / rows if rows else None


def drawn(seed, rows=5, columns=4, ids=3):
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (rows, columns)
    )
    y_a, y_b = (torch.randint(ids, (n,), generator=generator) for n in (rows, columns))
    return a, b, y_a, y_b


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from(["cosine", "dot"]),
)
def test_equals_the_double_loop(seed, rows, columns, smoothing, similarity):
    a, b, y_a, y_b = drawn(seed, rows, columns)
    told = (y_a, y_b, 10.0, smoothing, similarity)
    ours, expected = cross_modal(a, b, *told), naive(a, b, *told)
    ours.backward()
    if expected is None:
        assert ours == 0 and not a.grad.any() and not b.grad.any()
        return
    assert ours.dtype == torch.float64 and torch.allclose(ours, expected)
    gradients = torch.autograd.grad(expected, (a, b))
    assert torch.allclose(a.grad, gradients[0]) and torch.allclose(b.grad, gradients[1])


def test_known_values_and_the_own_pair():
    eye, y = torch.eye(3), torch.arange(3)
    assert cross_modal(eye, eye, y, y, 2.0) == pytest.approx(math.log(math.exp(2) + 2) - 2)
    same = torch.zeros(3, dtype=torch.long)  # y_a and y_b are one tensor: its diagonal counts
    value = cross_modal(eye, eye, same, same, 2.0)
    assert value == pytest.approx(math.log(math.exp(2) + 2) - 2 / 3)


def test_length_counts_for_dot_alone():
    a, b, y_a, y_b = drawn(0)
    assert torch.allclose(cross_modal(3 * a, b, y_a, y_b, 7), cross_modal(a, b, y_a, y_b, 7))
    dot = [cross_modal(k * a, b, y_a, y_b, s, 0.0, "dot") for k, s in ((1, 7), (1, 8), (3, 7))]
    assert dot[0] == dot[1] != dot[2], "raw products, scale not applied"


def test_rows_without_a_positive_are_left_out():
    a, b, _, _ = drawn(1, 4, 3)
    y_a, y_b = torch.tensor([0, 1, 9, 9]), torch.tensor([0, 0, 1])
    for smoothing in (0.0, 0.2):
        alone = cross_modal(a[:2], b, y_a[:2], y_b, 5.0, smoothing)
        assert torch.allclose(cross_modal(a, b, y_a, y_b, 5.0, smoothing), alone)
        none = cross_modal(a[2:], b, y_a[2:], y_b, 5.0, smoothing)
        none.backward()
        assert none == 0 and a.grad is not None and not a.grad.any()
        a.grad = None


def test_order_changes_nothing():
    a, b, y_a, y_b = drawn(2)
    rows, columns = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 0, 1])
    moved = cross_modal(a[rows], b[columns], y_a[rows], y_b[columns], 5.0)
    assert torch.allclose(moved, cross_modal(a, b, y_a, y_b, 5.0))


def test_float32_under_autocast():
    a, b, y_a, y_b = drawn(3)
    a, b = a.detach().bfloat16(), functional.normalize(b.detach().float(), dim=1)
    expected = cross_modal(a.double(), b.double(), y_a, y_b, 100.0, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_modal(a, b, y_a, y_b, 100.0, 0.1)
    assert found.dtype == torch.float32 and found == pytest.approx(expected.item(), rel=1e-4)
