"""Error rates at every threshold: what verification and open-set identification are counted with.

A score at or above the threshold is accepted. Scores that tie are accepted together: they make one
operating point. Rates of few pairs are no rates: the rules of 30 and of 3 say when.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handclip_lib.evaluate.statistics import percentiles

RULE_OF_30 = 30  # errors that must be expected before a rate is given (Doddington et al. 2000)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ladder:
    """Scores sorted into operating points.

    thresholds: (T + 1,) the distinct scores, ascending, then infinity, where nothing is accepted;
    step: (n,) the place of each score among them; genuine: (n,) bool, who should be accepted.
    """

    thresholds: Floats
    step: npt.NDArray[np.intp]
    genuine: npt.NDArray[np.bool_]


def ladder(scores: npt.ArrayLike, is_genuine: npt.ArrayLike) -> Ladder:
    """The operating points of scores (n,), higher is more alike, and of whom they are, (n,) bool.

    Minus infinity is a score that no threshold accepts. Raises ValueError on shapes that do not
    agree, on NaN and plus infinity, on labels that are not bool, and on one kind only.
    """
    values, genuine = np.asarray(scores, dtype=np.float64), np.asarray(is_genuine)
    if values.ndim != 1 or values.shape != genuine.shape:
        raise ValueError(
            f"one label for each score is needed: got {values.shape} and {genuine.shape}"
        )
    if genuine.dtype != np.bool_:
        if not np.isin(genuine, (0, 1)).all():
            raise ValueError("is_genuine must be true or false for each score")
        genuine = genuine.astype(bool)
    if not (values < np.inf).all():
        raise ValueError("scores hold NaN or infinity")
    if genuine.all() or not genuine.any():
        kind = "genuine" if genuine.any() else "impostor" if genuine.size else "no"
        raise ValueError(f"both genuine and impostor scores are needed: there are {kind} ones only")
    distinct, step = np.unique(values, return_inverse=True)
    return Ladder(np.append(distinct, np.inf), step, genuine)


def merged(at: Ladder) -> Ladder:
    """The ladder with neighbouring steps of impostor scores alone made one, their lowest.

    `equal_error`, `area` and genuine errors at any rate of false matches stay as they are, whatever
    the weights: between two genuine scores nothing more is missed. For counting many times over.
    """
    holds = np.bincount(at.step[at.genuine], minlength=len(at.thresholds) - 1) > 0  # (T,)
    starts = holds | np.append(True, holds[:-1])
    place = np.cumsum(starts) - 1
    thresholds = np.append(at.thresholds[:-1][starts], np.inf)
    return Ladder(thresholds, place[at.step], at.genuine)


def tally(at: Ladder, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """How many genuine and impostor scores each distinct score has, both (T,); weighted if asked.

    weights: (n,) how often each score counts; once each by default.
    """
    size, yes = len(at.thresholds) - 1, at.genuine
    some, others = (None, None) if weights is None else (weights[yes], weights[~yes])
    genuine = np.bincount(at.step[yes], some, size)
    return genuine.astype(np.float64), np.bincount(at.step[~yes], others, size).astype(np.float64)


def error_rates(genuine: Floats, impostor: Floats) -> tuple[Floats, Floats]:
    """False match and false non-match rate (T + 1,) at each threshold, of a `tally`.

    FMR: share of impostor scores at or above the threshold, falling from 1 to 0; FNMR: share of
    genuine scores below it, rising from 0 to 1. ISO/IEC 19795-1.
    """
    matched = impostor.sum() - np.append(0.0, np.cumsum(impostor))
    missed = np.append(0.0, np.cumsum(genuine))
    return matched / impostor.sum(), missed / genuine.sum()


def equal_error(fmr: Floats, fnmr: Floats) -> float:
    """The rate at which both errors are equal, on the straight line between operating points."""
    gap = fmr - fnmr
    k = int(np.argmax(gap <= 0))  # at 0 the gap is 1, at the end -1
    part = gap[k - 1] / (gap[k - 1] - gap[k])
    return float(fmr[k - 1] + part * (fmr[k] - fmr[k - 1]))


def area(genuine: Floats, impostor: Floats) -> float:
    """Area under the ROC curve: how often a genuine score is the higher one, a tie counting half.

    genuine, impostor: a `tally`. Equals Mann & Whitney's U over the number of pairs.
    """
    below = np.cumsum(impostor) - impostor
    return float(genuine @ (below + impostor / 2) / (genuine.sum() * impostor.sum()))


def first_at(fmr: Floats, level: float) -> int:
    """Place of the lowest threshold whose rate of false matches is `level` at most."""
    return int(np.argmax(fmr <= level))


def supported(level: float, n: int) -> bool:
    """Whether n trials bear out an error rate of `level`: 30 errors are to be expected among them.

    The rule of 30: then the rate is known to ±30 % with 90 % confidence, were trials independent.
    """
    return n >= round(RULE_OF_30 / level)


def at_levels(
    fmr: Floats, values: Floats, levels: Mapping[str, float], n: int
) -> dict[str, float | None]:
    """{name: the curve's value at the lowest threshold whose FMR is that level at most}.

    fmr, values: (T + 1,) of the same thresholds; n: impostor trials. None at a level that they do
    not bear out (`supported`).
    """
    return {
        name: float(values[first_at(fmr, level)]) if supported(level, n) else None
        for name, level in levels.items()
    }


def upper_bound(rate: float, n: int) -> float | None:
    """What no error among n trials leaves possible at 95 %, 3 / n; None where there were errors.

    The rule of 3. Pairs that share persons are not independent, so the true bound lies higher.
    """
    return min(1.0, 3 / n) if rate == 0 else None


def resampled(persons: int, samples: int, seed: int | tuple[int, int]) -> Iterator[Floats]:
    """How often each person, (P,), is drawn: `samples` times P draws with replacement.

    Raises ValueError on fewer than two persons or one sample.
    """
    if persons < 2 or samples < 1:
        raise ValueError(
            f"an interval needs two persons and one sample at least, got {persons} and {samples}"
        )
    rng = np.random.default_rng(seed)
    yield from rng.multinomial(persons, np.full(persons, 1 / persons), size=samples).astype(float)


def resampled_means(
    times: Floats, values: Floats, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]
) -> Floats:
    """Means (B,) of the values (n,) of pairs, or of photographs, whose persons were drawn anew.

    times: (B, P), of `resampled`; first, second: (n,) places of both persons among the P, the same
    where there is one. A value of two persons counts as often as both were drawn, multiplied, one
    of a single person as often as that one (Owen 2007). NaN where nothing of it was drawn.
    """
    size, one = times.shape[1], first == second

    def total(weights: Floats) -> Floats:
        alone = np.bincount(first[one], weights[one], size)
        place = (first * size + second)[~one]
        pairs = np.bincount(place, weights[~one], size * size).reshape(size, size)
        found: Floats = times @ alone + ((times @ pairs) * times).sum(axis=1)
        return found

    count = total(np.ones(len(values)))
    return np.divide(total(values), count, out=np.full(len(times), np.nan), where=count > 0)


def intervals(drawn: Sequence[Sequence[float]], persons: int) -> list[list[float]]:
    """Expanded 95 % percentile interval [low, high] of each of K numbers, from B samples, (B, K).

    persons: how many were resampled, at least 2; `statistics.percentiles` says what their number
    asks for. Raises ValueError where there is no sample.
    """
    if not drawn:
        raise ValueError("no sample of persons has both kinds")
    return np.quantile(np.asarray(drawn), percentiles(persons), axis=0).T.tolist()
