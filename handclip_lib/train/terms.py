"""What the batches of an epoch gave: their total, their means, and whether they are finite."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def weighted_total(
    terms: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor | float]
) -> torch.Tensor:
    """Σ weight · term, a scalar with gradient.

    Raises ValueError on a term without a weight or the other way round, RuntimeError where no
    gradient reaches anything.
    """
    unpaired = sorted(terms.keys() ^ weights.keys())
    if unpaired or not terms:
        raise ValueError(f"losses without a weight, or weights without a loss: {unpaired}")
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    if not total.requires_grad:
        raise RuntimeError(
            "nothing here trains: no parameter of these losses is open in this epoch"
        )
    return total


def detached(
    total: torch.Tensor,
    terms: Mapping[str, torch.Tensor],
    diagnostics: Mapping[str, float | torch.Tensor],
) -> dict[str, Any]:
    """What a batch gave, without graph, on the device. Raises ValueError on a name used twice."""
    clash = sorted(terms.keys() & diagnostics.keys())
    if clash:
        raise ValueError(f"both a loss and a diagnostic: {clash}")
    told = {"total": total, **terms, **diagnostics}
    # a copy where it is a buffer that the next step writes to
    return {n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in told.items()}


def means(done: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every column over the batches that have it."""
    names = dict.fromkeys(name for row in done for name in row)
    return {name: _mean([row[name] for row in done if name in row]) for name in names}


def _mean(values: list[Any]) -> float:
    if isinstance(values[0], torch.Tensor):
        return float(torch.stack(values).cpu().double().mean())
    return float(np.mean(values))


def check_finite(done: list[dict[str, Any]], training: str, epoch: int, first: int) -> None:
    """Look at what some batches gave (this waits for the device); `first`: the first one's number.

    Raises FloatingPointError that names the losses of the first batch whose total is not finite.
    """
    finite = torch.stack([row["total"] for row in done]).isfinite().tolist()
    if all(finite):
        return
    bad_row = finite.index(False)
    values = {n: float(v) for n, v in done[bad_row].items() if n != "total"}
    bad = [name for name, value in values.items() if not math.isfinite(value)] or ["a weight"]
    raise FloatingPointError(
        f"{training}: not finite in epoch {epoch}, batch {first + bad_row}: {', '.join(bad)}"
        f" ({', '.join(f'{name} {value:.4g}' for name, value in values.items())});"
        " a lower lr, or clip_norm, may help"
    )
