"""Weights between trained weights: interpolation, averages, and the statistics they then need."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from handclip_lib.models import towers

State = dict[str, torch.Tensor]

UNCHOSEN = 0.5  # alpha where no training persons are held out to choose it


def interpolate(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], alpha: float
) -> State:
    """(1 - alpha) start + alpha end, computed in float32; what is the same in both keeps its bits.

    alpha 0 and 1 give clones of the very tensors. Integers, which only count, are those of `end`,
    at alpha 0 of `start`. Raises ValueError on an alpha beyond 0 … 1 and on states that disagree.
    WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903, eq. 1.
    """
    check_alike(start, end)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: from 0 to 1, not {alpha}")
    if alpha in (0, 1):
        return {name: value.detach().clone() for name, value in (end if alpha else start).items()}
    mixed: State = {}
    for name, last in end.items():
        value = last.detach()
        if value.is_floating_point():
            between = torch.lerp(start[name].detach().float(), value.float(), alpha)
            mixed[name] = between.to(value.dtype)
        else:
            mixed[name] = value.clone()
    return mixed


def best(alphas: Sequence[float], scores: Iterable[float]) -> float:
    """The alpha with the highest score, of equals the larger; scores in the order of the alphas."""
    return max(zip(scores, alphas, strict=True))[1]


def average(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """The uniform mean of weights, their order being nothing to it; of one state its bits.

    Integers, which only count, are those of the last state. Raises ValueError without a state and
    on states that disagree. Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup).
    """
    if not states:
        raise ValueError("no weights to average")
    for other in states[1:]:
        check_alike(states[0], other)
    last, mean = states[-1], {}
    for name, value in last.items():
        if value.is_floating_point() and len(states) > 1:
            # In float64 the mean of equal float32 numbers is that number
            total = torch.zeros_like(value, dtype=torch.float64)
            for state in states:
                total += state[name].detach()
            mean[name] = (total / len(states)).to(value.dtype)
        else:
            mean[name] = value.detach().clone()
    return mean


def check_alike(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> None:
    """ValueError that names the tensors which only one of them has, or in another shape or type."""
    one_sided = sorted(start.keys() ^ end.keys())
    if one_sided:
        raise ValueError(f"weights of two kinds: only one of them has {', '.join(one_sided)}")
    for name, first in start.items():
        told = [f"{v.dtype} {tuple(v.shape)}".removeprefix("torch.") for v in (first, end[name])]
        if told[0] != told[1]:
            raise ValueError(f"weights of two kinds: {name} is {told[0]} in one, {told[1]} in one")


def reestimate_bn(visual: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Take the statistics of every BatchNorm anew from images; returns how many there are.

    batches: normalised images (B, 3, H, W) on the tower's device, each with the same say, so of
    one size but for the last. Nothing else changes, modes are restored. With no BatchNorm nothing
    is done, the images are not even asked for. Raises ValueError where there are no images: the
    statistics are then as they were. Izmailov et al. 2018, arXiv:1803.05407, section 3.
    """
    norms = [m for m in visual.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    images = iter(batches)
    batch = next(images, None)
    if batch is None:
        raise ValueError("no images to take the statistics of BatchNorm from")
    modes = [(part, part.training) for part in visual.modules()]
    momenta = [norm.momentum for norm in norms]
    visual.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain mean over the batches
    try:
        with torch.no_grad():
            while batch is not None:
                towers.features(visual, batch)
                batch = next(images, None)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
    return len(norms)
