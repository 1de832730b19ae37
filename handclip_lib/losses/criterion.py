"""A list of losses as one module: what is computed is what is summed is what is logged."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handclip_lib.losses import metric, settings
from handclip_lib.losses.balance import Balance
from handclip_lib.losses.center import Center
from handclip_lib.losses.classify import CrossEntropy
from handclip_lib.losses.guards import MarginGuard, PairGuard, TripletGuard
from handclip_lib.losses.term import Term
from handclip_lib.models import heads
from handclip_lib.models.mba import BRANCHES
from handclip_lib.models.parts import part_names
from handclip_lib.models.towers import Features
from handclip_lib.params import ParamError, guided_variants, stage2_variants
from handclip_lib.schema import Params
from handclip_lib.schema_train import LossSpec, Stage2, Stage3b, Training

_BASES = ("penult", "pool", "proj")
_TRIED = 8  # width of features, where a list is built for its errors alone
_EVERY = 10  # steps between two looks at the guards, which wait for the device


def build_loss(
    specs: Sequence[LossSpec | Mapping[str, Any]],
    num_ids: int,
    dims: int | Mapping[str, int],
    balance: str = "fixed",
    projection: int = 0,
) -> "Criterion":
    """The criterion of a list of losses, as in a study's `losses`.

    num_ids: identities C of the training set; dims: width of penult, pool and proj, by name or all
    the same; balance: fixed, uncertainty or ema; projection: width of a 2-layer head on proj, for
    losses on `head`. Raises ParamError with the place and the nearest known word.
    """
    if num_ids < 1:
        raise ValueError(f"num_ids: expected at least 1, got {num_ids}")
    if not specs:
        raise ParamError("losses: the list is empty; the usual one is [{type: cross_entropy}]")
    widths = dict.fromkeys(_BASES, dims) if isinstance(dims, int) else dict(dims)
    widths |= {f"{name}_bn": width for name, width in widths.items()}
    if projection:
        widths["head"] = projection
    terms: dict[str, Term] = {}
    for i, told in enumerate(specs):
        spec = settings.read(told, f"losses.{i}")
        same = sum(name.rpartition("_")[0] == spec.type or name == spec.type for name in terms)
        name = f"{spec.type}_{same + 1}" if same else spec.type
        terms[name] = Term(spec, f"losses.{i}", num_ids, widths, alone=len(specs) == 1)
    return Criterion(terms, widths, balance)


def check_lists(p: Params) -> None:
    """Build every list of losses of a study, for nothing but its errors.

    Raises ParamError with the stage, the variant and the place: before a run has begun.
    """
    tried("stage1", p.stage1)
    for name, stage in stage2_variants(p).items():
        tried(f"stage2, variant {name}", stage)
    for name, told in guided_variants(p).items():
        if told.losses or told.text == "none":
            tried(f"stage3b, variant {name}", told)


def tried(where: str, told: Training) -> "Criterion":
    """The losses of a stage's settings on features of a few dimensions, for errors and tables.

    Raises ParamError that begins with `where`.
    """
    further: tuple[str, ...] = ()
    if isinstance(told, Stage2) and told.tower == "comparator":
        further = BRANCHES
    if isinstance(told, Stage3b):
        further = part_names(told.adapt)
        further += ("fused",) if told.text == "pseudo" and told.interact else ()
    widths = dict.fromkeys((*_BASES, *further), _TRIED)
    try:
        return build_loss(told.losses, 2, widths, told.loss_balance, told.projection)
    except ParamError as error:
        raise ParamError(f"{where}: {error}") from None


class Criterion(nn.Module):
    """Losses by name, with the necks, classifiers, heads, proxies and centres that they need.

    `weights` are what each weighs in the total: total = Σ weights[k] · terms[k]. `diagnostics` are
    detached scalars of the last forward, those that apply: `valid_triplets` (share of anchors with
    a positive and a negative in the batch), `spread` (mean over dimensions of the standard
    deviation over the batch of unit features that pair losses see, 1/√W when they are even, 0 when
    they collapsed), of margin heads `target_cosine`, `confidence` and `margin` (radians), and,
    where weights are not fixed, each as `weight_<term>`.
    State moves in training mode only: memories, centres, running means.
    """

    def __init__(self, terms: Mapping[str, Term], widths: Mapping[str, int], balance: str) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.balance = Balance(balance, {name: term.weight for name, term in terms.items()})
        reads = {name for term in terms.values() for name in term.on}
        necked = sorted(name.removesuffix("_bn") for name in reads if name.endswith("_bn"))
        self.necks = nn.ModuleDict({name: heads.bn_neck(widths[name]) for name in necked})
        used = "head" in reads
        self.head = heads.projection_head(widths["proj"], widths["head"]) if used else None
        self.pairs = PairGuard()
        self.diagnostics: dict[str, Tensor] = {}
        self._steps = 0

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The features that each loss reads."""
        return {name: term.on for name, term in self._terms()}

    @property
    def weights(self) -> dict[str, Tensor | float]:
        """What each term weighs in the total; under `uncertainty` with a gradient."""
        return self.balance.weights()

    def forward(
        self,
        features: Features | Mapping[str, Tensor],
        labels: Tensor,
        soft: Tensor | None = None,
        clean: int | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted scalars by name of the loss, float32 also under autocast.

        features: (B, W) each, raw; labels: (B,) int, 0 … C - 1; soft: (B, C) targets of mixed
        images, for cross_entropy alone; clean: the first so many rows are not mixed, and only
        these have an identity that metric losses see.
        """
        if labels.ndim != 1:
            raise ValueError(f"labels: expected (B,), got {tuple(labels.shape)}")
        y = labels.long()
        rows = len(y) if clean is None else clean
        with torch.autocast(y.device.type, enabled=False):
            z = self._read(features, len(y))
            terms = {name: term(z, y, soft, rows) for name, term in self._terms()}
            terms = self.balance(terms)
        self.diagnostics = self._diagnose(z, y, rows)
        if self.training:
            self._look(y.device)
        return terms

    def logits(self, features: Features | Mapping[str, Tensor]) -> Tensor | None:
        """(B, C): the sum of the classifiers', else a margin head's, else None.

        For accuracy on known identities; in training mode it would move the BatchNorms.
        """
        found: dict[bool, list[Tensor]] = {True: [], False: []}
        with torch.autocast(self.pairs.total.device.type, enabled=False):
            z = self._read(features)
            for _, term in self._terms():
                for name, part in term.parts.items():
                    classify = getattr(part, "logits", None)
                    logits = classify(z[name]) if classify else None
                    if logits is not None:
                        found[isinstance(part, CrossEntropy)].append(logits)
        chosen = found[True] or found[False]
        return torch.stack(chosen).sum(dim=0) if chosen else None

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch begins (from 1): margins grow, memories open."""
        for module in self.modules():
            tell = getattr(module, "set_epoch", None)
            if tell is not None and module is not self:
                tell(epoch)

    @property
    def has_centers(self) -> bool:
        """Whether a loss wants `start_centers`."""
        return any(isinstance(module, Center) for module in self.modules())

    def start_centers(self, means: Mapping[str, Tensor]) -> None:
        """Put the centres where the starting model has them: (C, W) class means by feature name.

        Means of features before their BatchNorm; centres on other features start where their
        identity is first seen.
        """
        for _, term in self._terms():
            for name, part in term.parts.items():
                if isinstance(part, Center) and name in means:
                    part.start(means[name])

    def _terms(self) -> Iterator[tuple[str, Term]]:
        return ((name, cast(Term, term)) for name, term in self.terms.items())

    def _pick(self, features: Features | Mapping[str, Tensor], name: str) -> Tensor:
        picked: Tensor
        if not isinstance(features, Mapping):
            features = features._asdict() | dict(features.parts)
        picked = features[name]
        return picked

    def _read(
        self, features: Features | Mapping[str, Tensor], rows: int | None = None
    ) -> dict[str, Tensor]:
        """Each feature that a loss names, once, in float32."""
        read: dict[str, Tensor] = {}
        for name in dict.fromkeys(n for on in self.needs.values() for n in on):
            base = "proj" if name == "head" else name.removesuffix("_bn")
            z = self._pick(features, base).float()
            if rows is not None and len(z) != rows:
                raise ValueError(f"{base}: {len(z)} rows for {rows} labels")
            if name == "head" and self.head is not None:
                z = self.head(z)
            read[name] = self.necks[base](z) if name.endswith("_bn") else z
        return read

    @torch.no_grad()
    def _diagnose(self, z: Mapping[str, Tensor], y: Tensor, rows: int) -> dict[str, Tensor]:
        told: dict[str, Tensor] = {}
        seen = {name for _, term in self._terms() if term.compares for name in term.on}
        if seen and rows:
            told["valid_triplets"] = metric.valid_anchors(y[:rows])
            spreads = [F.normalize(z[n][:rows]).std(0, correction=0).mean() for n in sorted(seen)]
            told["spread"] = torch.stack(spreads).mean()
            if self.training:
                self.pairs(told["valid_triplets"])
        parts: list[Any] = [part for part in self.modules() if hasattr(part, "seen")]
        margins: list[dict[str, Tensor]] = [part.seen for part in parts]
        for key in margins[0] if margins and rows else ():
            told[key] = torch.stack([one[key] for one in margins]).mean()
        if self.balance.kind != "fixed":
            told |= {f"weight_{k}": torch.as_tensor(w).detach() for k, w in self.weights.items()}
        return told

    def _look(self, device: torch.device) -> None:
        """Warn of what guards have seen: at once on the CPU, now and then where it costs time."""
        self._steps += 1
        if device.type != "cpu" and self._steps % _EVERY:
            return
        for module in self.modules():
            if isinstance(module, TripletGuard | MarginGuard | PairGuard):
                message = module.message()
                if message:
                    warnings.warn(message, stacklevel=3)
