"""Any loss of pytorch-metric-learning by its name, with its own arguments and defaults."""

import inspect
import math
from typing import Any

import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor, nn

from handclip_lib.losses.metric import Bank, partners
from handclip_lib.params import ParamError
from handclip_lib.schema_base import did_you_mean

# Those that can't serve, and why; the rest of the package is served.
_ONE_BATCH = "is no loss of one batch of features and identities"
UNFIT = {
    **dict.fromkeys(("MultipleLosses", "SelfSupervisedLoss", "VICRegLoss"), _ONE_BATCH),
    "DynamicSoftMarginLoss": "keeps a histogram that no weights file would hold",
    "HistogramLoss": "fails on two equal features",
    "ManifoldLoss": "draws proxies anew that no weights file would hold",
    "TupletMarginLoss": "has no finite gradient on two equal features",
}
_BASES = {"BaseMetricLossFunction", "BaseLossWrapper", "CrossBatchMemory", "GenericPairLoss"}
_OBJECTS = {"distance", "reducer", "collect_stats"}  # and *_regularizer, *_init_func: no YAML
_IN_DEGREES = {"ArcFaceLoss", "SubCenterArcFaceLoss"}
# Only the directions of their weights count. The library starts these at about unit length a
# coordinate, where Adam at a fine-tuning rate would never turn them.
_DIRECTIONS = {
    *("ArcFaceLoss", "CosFaceLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss"),
    *("SoftTripleLoss", "SubCenterArcFaceLoss"),
}
_SHORT = 0.01  # standard deviation of their coordinates


def names() -> list[str]:
    """Every loss that `type` (or `name` of `type: pml`) may name."""
    return sorted(
        name
        for name, found in vars(pml).items()
        if inspect.isclass(found) and issubclass(found, nn.Module) and name.endswith("Loss")
        if name not in _BASES and name not in UNFIT
    )


def remembers(name: str) -> bool:
    """Whether the loss can compare a batch with a memory of earlier ones."""
    return name in pml.CrossBatchMemory.supported_losses()


class ByName(nn.Module):
    """A loss of pytorch-metric-learning; proxies and class weights are its parameters.

    args: as its documentation names them (margins of ArcFaceLoss are in degrees); the number of
    identities and the width of the features are filled in.
    Raises ParamError on an unknown name or argument, with the nearest known one.
    """

    def __init__(
        self, num_ids: int, width: int, *, name: str, args: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        known = names()
        if name in UNFIT:
            raise ParamError(f"name: {name} {UNFIT[name]}")
        if name not in known:
            raise ParamError(f"name: no loss '{name}'{did_you_mean(name, known)}")
        self.name = name
        self.loss = _build(name, dict(args or {}), num_ids, width)

    def forward(self, z: Tensor, y: Tensor, bank: Bank | None = None) -> Tensor:
        """z: (B, W) float32, for the loss casts its weights to the features' type; y: (B,)."""
        if self.name == "NCALoss" and len(y.unique()) == len(y):
            return z.sum() * 0.0  # the mean over anchors with a positive, of which there is none
        if bank is None:
            loss: Tensor = self.loss(z, y)
        else:
            others, positive, negative = partners(z, y, bank)
            pairs = (*torch.where(positive), *torch.where(negative))
            loss = self.loss(z, y, pairs, others, torch.cat((y, bank[1])))
        return loss + z.sum() * 0.0  # a constant where there is no pair, in some

    def logits(self, z: Tensor) -> Tensor | None:
        """(B, C) of a loss with a weight an identity, else None."""
        found = getattr(self.loss, "get_logits", None)
        logits: Tensor | None = found(z) if found else None
        return logits


def _build(name: str, args: dict[str, Any], num_ids: int, width: int) -> nn.Module:
    cls = getattr(pml, name)
    takes = _arguments(cls)
    ours = {"num_classes": num_ids, "embedding_size": width, "descriptors_dim": width}
    filled = {key: value for key, value in ours.items() if key in takes}
    free = [key for key in takes if key not in filled and _plain(key)]
    for key in args:
        if key not in free:
            raise ParamError(f"{key}: {name} has no such setting{did_you_mean(key, free)}")
    missing = [k for k in free if takes[k] is inspect.Parameter.empty and k not in args]
    if missing:
        raise ParamError(f"{name} needs {', '.join(missing)}")
    if name in _IN_DEGREES and 0 < args.get("margin", math.pi) < math.pi / 2:
        raise ParamError(
            f"margin: {name} counts in degrees, and {args['margin']} looks like radians;"
            f" write {math.degrees(args['margin']):.1f}, or take type: arcface"
        )
    try:
        built: nn.Module = cls(**filled, **args)
    except (TypeError, ValueError, AssertionError) as error:
        raise ParamError(f"{name} does not take {args}: {error}") from error
    if name in _DIRECTIONS:
        with torch.no_grad():
            for weight in built.parameters():
                weight.mul_(_SHORT / weight.std())
    return built


def _arguments(cls: type) -> dict[str, Any]:
    """{name: default} over the constructors of the class and what it is made of."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        if base.__module__.startswith("pytorch_metric_learning") and "__init__" in vars(base):
            for key, told in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
                if told.kind not in (told.VAR_POSITIONAL, told.VAR_KEYWORD) and key != "self":
                    found.setdefault(key, told.default)
    return found


def _plain(key: str) -> bool:
    """Whether a YAML value can be meant: not a distance, a reducer, a regularizer."""
    ends = ("_regularizer", "_init_func", "_reg_weight")
    return key not in _OBJECTS | {"mat_based_loss"} and not key.endswith(ends)
