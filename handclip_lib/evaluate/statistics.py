"""How sure a mean is: intervals whose unit is the person, not the photograph and not the draw."""

from typing import Any

import numpy as np
import numpy.typing as npt


def person_bootstrap(
    values: npt.ArrayLike,
    persons: npt.ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Any, Any]:
    """Percentile interval of a mean over queries, from resampling whole persons.

    values: (Q,) or (Q, K) per-query scores, finite; persons: (Q,) who each query shows. Persons are
    drawn with replacement and bring all their queries (of every draw), so that the photographs of
    one hand do not pass for independent evidence. Returns (low, high), numbers or arrays (K,), in
    the units of `values`; the same seed gives the same interval. With fewer than some 20 persons
    a percentile interval is too short: read it as a rough one. Cameron, Gelbach & Miller 2008.

    Raises ValueError with fewer than two persons: their spread cannot be seen.
    """
    scores, who = np.asarray(values, dtype=np.float64), np.asarray(persons)
    if who.ndim != 1 or scores.shape[:1] != who.shape or scores.ndim > 2:
        raise ValueError(
            f"need one score (or one row of scores) for each query: got values "
            f"{scores.shape} and persons {who.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; no interval can be given")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples={samples} must be at least 1 and level={level} in (0, 1)")
    names, code = np.unique(who, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an interval over persons needs at least two persons, got {len(names)}")
    columns = scores.reshape(len(who), -1)  # (Q, K)
    sums = np.stack([np.bincount(code, c) for c in columns.T], axis=1)  # (P, K)
    count = np.bincount(code).astype(np.float64)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    means = (times @ sums) / (times @ count)[:, None]  # (B, K)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(scores.shape[1:])[()], high.reshape(scores.shape[1:])[()]
