"""What holds a training to the weights it began with: terms beside its losses, and importance.

Plain values, no part of any state: the tower that they look back at never trains.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning_fabric as lf
import torch
from torch import nn
from torch.nn import functional

from handclip_lib.evaluate.embed import evaluating
from handclip_lib.models import towers
from handclip_lib.models.soup import check_alike
from handclip_lib.models.towers import Features
from handclip_lib.schema_chain import Lwf
from handclip_lib.train.ranks import spread

Named = dict[str, torch.Tensor]  # of a tower's parameters


@dataclass(frozen=True)
class Likeness:
    """How far a batch's features are from those that the tower gave before, on the same images.

    before: its frozen copy; settings: which distance; feature: of what.
    """

    before: nn.Module
    settings: Lwf
    feature: tuple[str, ...]

    def __call__(
        self,
        visual: nn.Module,
        images: torch.Tensor,
        told: Features,
        fabric: lf.Fabric | None = None,
    ) -> torch.Tensor:
        """Scalar >= 0 of normalised images (B, 3, H, W) and the `told` that `visual` gave them.

        The copy's forward runs under the caller's autocast, the rest in float32. fabric: of ranks
        that share it.
        """
        with torch.no_grad():
            then = spread(lambda x, _: towers.features(self.before, x), images, None, fabric)
        with torch.autocast(images.device.type, enabled=False):
            new = [getattr(told, name).float() for name in self.feature]
            old = [getattr(then, name).float() for name in self.feature]
            if self.settings.on == "cosine":
                pairs = zip(new, old, strict=True)
                near = torch.stack([functional.cosine_similarity(z, was) for z, was in pairs])
                return 1 - near.mean()
            return _relations(torch.cat(new, 1), torch.cat(old, 1), self.settings.temperature)

    def to(self, device: torch.device) -> "Likeness":
        """The same on a device."""
        self.before.to(device)
        return self


@dataclass(frozen=True)
class Pull:
    """How far the parameters are from an anchor, squared; factor: of each square, None: 1."""

    anchor: Named
    factor: Named | None = None

    def __call__(
        self,
        visual: nn.Module,
        images: torch.Tensor,
        told: Features,
        fabric: lf.Fabric | None = None,
    ) -> torch.Tensor:
        """Scalar >= 0 over the parameters that ask for a gradient now: others cannot move."""
        total = torch.zeros((), device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            for name, parameter in visual.named_parameters():
                if parameter.requires_grad:
                    squares = (parameter.float() - self.anchor[name]).square()
                    each = squares if self.factor is None else self.factor[name] * squares
                    total = total + each.sum()
        return total

    def to(self, device: torch.device) -> "Pull":
        """The same on a device."""
        moved = None if self.factor is None else _moved(self.factor, device)
        return Pull(_moved(self.anchor, device), moved)


@dataclass(frozen=True)
class Retain:
    """Terms (visual, images, told) -> scalar by name, with the weight of each in the total.

    No module: whoever copies or saves a learner that has it, leaves it alone.
    """

    terms: Mapping[str, Likeness | Pull]
    weights: Mapping[str, float]

    def to(self, device: torch.device) -> "Retain":
        """The same on a device."""
        return replace(self, terms={name: term.to(device) for name, term in self.terms.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Retain":
        return self


def lwf(visual: nn.Module, settings: Lwf, feature: tuple[str, ...] = ("pool", "proj")) -> Retain:
    """Learning without forgetting, on features: term `lwf` towards a frozen copy of `visual`.

    cosine: the mean over features and images of 1 - cos(new, old). relations: KL divergence, a
    mean over images, of the softmax over a batch's other images of new similarities / temperature
    from that of the old ones, on unit features as retrieval takes them. Either is 0 for the same
    weights in eval mode; a BatchNorm that learns differs from the copy's at once.
    Raises ValueError on a tower with side information or visual prompts: the copy is told nothing
    of them. Li & Hoiem 2016, arXiv:1606.09282, eq. 2, with features in place of the old tasks'
    outputs; relations after Park et al. 2019, arXiv:1904.05068, section 3.2.
    """
    if any(part._forward_pre_hooks for part in visual.modules()):
        raise ValueError("lwf: its copy of a tower cannot be told of side information or prompts")
    before = copy.deepcopy(visual).eval().requires_grad_(False)
    return Retain({"lwf": Likeness(before, settings, feature)}, {"lwf": settings.weight})


def l2_sp(visual: nn.Module, weight: float) -> Retain:
    """Term `l2_sp`: squared distance of the parameters from where they are now.

    Those that do not ask for a gradient at a step do not count. Li et al. 2018, arXiv:1802.01483,
    eq. 2, without its second part: heads are new at every step of a chain.
    """
    return Retain({"l2_sp": Pull(_anchor(visual))}, {"l2_sp": weight})


def ewc(visual: nn.Module, importance: Mapping[str, torch.Tensor], weight: float) -> Retain:
    """Term `ewc`: 1/2 Σ F (parameter - anchor)², the anchor being where `visual` is now.

    importance: F by parameter. Raises ValueError where it is of another tower.
    Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3.
    """
    anchor = _anchor(visual)
    check_alike(anchor, importance)
    half = {name: value.detach() / 2 for name, value in importance.items()}
    return Retain({"ewc": Pull(anchor, half)}, {"ewc": weight})


def fisher(
    visual: nn.Module,
    loss_of: Callable[[Features, torch.Tensor], torch.Tensor],
    pixels: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> Named:
    """Mean over images of the squared gradient of each image's loss, by parameter of the tower.

    loss_of: features and labels (1,) of one image -> scalar, so what it brings is in eval mode;
    pixels: normalised images (B, 3, H, W) with labels (B,). The tower is in eval mode, all of it
    open; its modes, what is open and its gradients are afterwards as before. Raises ValueError
    without images. The diagonal of the empirical Fisher information (true labels), Kirkpatrick et
    al. 2017, arXiv:1612.00796, section 2.1.
    """
    named = dict(visual.named_parameters())
    was_open = {name: parameter.requires_grad for name, parameter in named.items()}
    sums, count = {name: torch.zeros_like(p) for name, p in named.items()}, 0
    try:
        visual.requires_grad_(True)
        with evaluating(visual), torch.enable_grad():
            for images, labels in pixels:
                for image, label in zip(images.split(1), labels.split(1), strict=True):
                    loss = loss_of(towers.features(visual, image), label)
                    _add_squares(sums, named, loss)
                    count += 1
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(was_open[name])
    if not count:
        raise ValueError("no images to measure the importance of weights on")
    return {name: total / count for name, total in sums.items()}


def normalised(importance: Mapping[str, torch.Tensor]) -> Named:
    """Importance divided by its mean over all parameters, so that a weight means the same for all.

    Raises ValueError where that mean is no number above 0.
    """
    count = sum(value.numel() for value in importance.values())
    mean = float(sum(value.double().sum() for value in importance.values())) / max(count, 1)
    if not 0 < mean < float("inf"):
        raise ValueError(f"the importance of weights has the mean {mean}: nothing to hold them by")
    return {name: value / mean for name, value in importance.items()}


def online(
    old: Mapping[str, torch.Tensor] | None, new: Mapping[str, torch.Tensor], decay: float
) -> Named:
    """decay · old + new; new alone where there is nothing older.

    Raises ValueError where they are of two towers. Schwarz et al. 2018, arXiv:1805.06370, section
    4.1.
    """
    if old is None:
        return dict(new)
    check_alike(old, new)
    return {name: decay * old[name] + value for name, value in new.items()}


def _relations(new: torch.Tensor, old: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(old || new) of each image's similarities to the others, from (B, D) features."""
    others = ~torch.eye(len(new), dtype=torch.bool, device=new.device)
    logs = []
    for z in (new, old):
        unit = functional.normalize(z, dim=1)
        sim = (unit @ unit.T)[others].view(len(z), -1)  # (B, B - 1)
        logs.append(functional.log_softmax(sim / temperature, dim=1))
    return functional.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)


def _add_squares(sums: Named, named: Mapping[str, nn.Parameter], loss: torch.Tensor) -> None:
    """Add the squared gradient of one image's loss, in place."""
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for total, grad in zip(sums.values(), found, strict=True):
        if grad is not None:
            total += grad.square()


def _anchor(visual: nn.Module) -> Named:
    return {name: p.detach().clone() for name, p in visual.named_parameters()}


def _moved(named: Named, device: torch.device) -> Named:
    return {name: value.to(device) for name, value in named.items()}
