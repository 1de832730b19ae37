"""Necks, classifiers and projection heads."""

import torch

from handclip_lib.models import heads


def test_the_neck_normalises_and_its_bias_never_trains() -> None:
    neck = heads.bn_neck(3)
    z = torch.tensor([[1.0, 10.0, -2.0], [3.0, 30.0, -2.0], [5.0, 20.0, -8.0]])
    out = neck(z)
    wanted = (z - z.mean(0)) / (z.var(0, correction=0) + neck.eps).sqrt()
    torch.testing.assert_close(out, wanted)
    assert not neck.bias.requires_grad and neck.bias.abs().sum() == 0
    assert neck.weight.requires_grad and (neck.weight == 1).all()


def test_the_classifier_has_no_bias_and_starts_small() -> None:
    torch.manual_seed(0)
    linear = heads.classifier(200, 100)
    assert linear.bias is None and linear.weight.shape == (100, 200)
    assert abs(float(linear.weight.std()) - 0.001) < 5e-5
    assert abs(float(linear.weight.mean())) < 5e-5


def test_the_projection_head_is_two_linear_maps_with_a_bend_between() -> None:
    torch.manual_seed(0)
    head, z = heads.projection_head(6, 4), torch.randn(8, 6)
    first, norm, bend, last = head
    assert head(z).shape == (8, 4)
    torch.testing.assert_close(head(z), last(torch.relu(norm(first(z)))))
    assert isinstance(bend, torch.nn.ReLU)
    assert len([m for m in head if isinstance(m, torch.nn.Linear)]) == 2
