"""How sure means and differences are: the unit is the person, not the photograph or the draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

_EXACT = 12  # persons up to whom every combination of signs is tried


def person_bootstrap(
    values: npt.ArrayLike,
    persons: npt.ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    bounded: bool = True,
) -> tuple[Any, Any]:
    """Interval of a mean over queries, from resampling whole persons: expanded percentiles.

    values: (Q,) or (Q, K) per-query scores, finite; persons: (Q,) who each query shows. Persons are
    drawn with replacement and bring all their queries (of every draw), so that the photographs of
    one hand do not pass for independent evidence. bounded: False of differences, which are no
    scores from 0 to 1. Returns (low, high), numbers or arrays (K,), in the units of `values`; the
    same seed gives the same interval, in the range of what persons scored but for `without_error`.
    Rough below some ten persons; `percentiles` allows for few. Cameron, Gelbach & Miller 2008.

    Raises ValueError with fewer than two persons: their spread cannot be seen.
    """
    scores, who = np.asarray(values, dtype=np.float64), np.asarray(persons)
    if who.ndim != 1 or scores.shape[:1] != who.shape or scores.ndim > 2:
        shapes = f"got values {scores.shape} and persons {who.shape}"
        raise ValueError(f"need one score (or one row of scores) for each query: {shapes}")
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
    low, high = np.quantile(means, percentiles(len(names), level), axis=0)
    if bounded:
        low, high = without_error(sums.sum(axis=0) / count.sum(), len(names), low, high, level)
    return low.reshape(scores.shape[1:])[()], high.reshape(scores.shape[1:])[()]


def without_error(
    mean: npt.ArrayLike,
    persons: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    level: float = 0.95,
) -> tuple[Any, Any]:
    """(low, high) of means of scores from 0 to 1, also where every person scored 1, or every one 0.

    Persons drawn anew agree then, and resampling gives no width. But where n persons are without an
    error others may still have some: with n = 20 one in six, with 71 one in twenty. Arrays that go
    together, means exact to 1e-12. Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404: n of n.
    """
    least = ((1 - level) / 2) ** (1 / np.asarray(persons, dtype=np.float64))
    at = np.asarray(mean)
    lows = np.where(at > 1 - 1e-12, np.minimum(least, low), low)
    return lows, np.where(at < 1e-12, np.maximum(1 - least, high), high)


def percentiles(persons: int, level: float = 0.95) -> tuple[float, float]:
    """Which two quantiles (0–1) of resampled means are the ends of an interval of that level.

    Resampling n persons gives too small a spread, by sqrt((n - 1) / n), and knows nothing of how
    uncertain that spread is. The expanded percentile interval mends both: its tails are those of a
    normal at -sqrt(n / (n - 1)) times Student's t with n - 1 degrees of freedom. 2.5 % become 1.6
    with 20 persons and 2.2 with 71. persons: at least 2. Hesterberg 2015, arXiv:1411.5279.
    """
    t = stats.t.ppf((1 - level) / 2, persons - 1)
    tail = float(stats.norm.cdf(np.sqrt(persons / (persons - 1)) * t))
    return tail, 1 - tail


def paired_test(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    persons: npt.ArrayLike,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether two models that answered the same queries differ, persons being the sample.

    a, b: (Q,) finite scores of the same queries in one order; persons: (Q,) who each query shows.

    * `difference`: mean of b less mean of a, over queries, so that it agrees with the means shown;
    * `ci95`: [low, high] of it, from `person_bootstrap` of the queries' differences;
    * `p`: two-sided, of a sign-flip test. Were the models alike, each person's summed difference
      would be as likely with the other sign. All 2^n signs of the n persons that differ are tried
      where n is 12 at most, else `samples` seeded ones, the observed one counted among them
      (Phipson & Smyth 2010). It can't be below 2^(1 - n); 1 where no query differs;
    * `detectable`: the true difference that such a test (5 %, two-sided) would find four times in
      five, from the spread of persons: 80 % power, Bloom 1995. 0 where no query differs: there is
      no spread to tell it by.

    Raises ValueError on shapes that do not agree, on what is not finite, and with one person.
    """
    before, after = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(
            f"scores of the same queries are needed: got {before.shape}, {after.shape}"
        )
    change = after - before
    low, high = person_bootstrap(change, persons, samples, seed, bounded=False)  # checks them all
    _, code = np.unique(np.asarray(persons), return_inverse=True)
    sums, count = np.bincount(code, change).astype(np.float64), np.bincount(code)  # (P,)
    mean = float(change.mean())
    return {
        "difference": mean,
        "ci95": [float(low), float(high)],
        "p": _sign_flips(sums, samples, seed),
        "detectable": _detectable(sums - mean * count, len(change)),
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several tests, adjusted so that any false alarm among all stays below the level.

    Keys keep their order; values are at least as large as before and at most 1. Holm 1979.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for k, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        highest = max(highest, min(1.0, (len(p_values) - k) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _sign_flips(sums: npt.NDArray[np.float64], samples: int, seed: int) -> float:
    """Two-sided p of a sum of persons' differences (P,) under random signs."""
    size = np.abs(sums)
    size = size[size > 1e-12 * max(1.0, size.max())]  # who does not differ has no sign
    if not size.size:
        return 1.0
    if len(size) <= _EXACT:
        bits = np.arange(2 ** len(size))[:, None] >> np.arange(len(size)) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (samples, len(size)))
    flipped = np.abs((1 - 2 * bits) @ size)
    # sums that are equal but for rounding are ties, and ties count
    extreme = int((flipped >= abs(sums.sum()) - 1e-9 * size.sum()).sum())
    exact = len(size) <= _EXACT
    return extreme / len(bits) if exact else (extreme + 1) / (len(bits) + 1)


def _detectable(residuals: npt.NDArray[np.float64], queries: int) -> float:
    """Minimum detectable difference: (t of 97.5 % + t of 80 %) standard errors over persons."""
    persons = len(residuals)
    error = np.sqrt(persons / (persons - 1) * (residuals**2).sum()) / queries
    return float((stats.t.ppf(0.975, persons - 1) + stats.t.ppf(0.8, persons - 1)) * error)
