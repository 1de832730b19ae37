"""A row on re-ranking: the sparse way of the kit against N × N matrices.

Run as a module it does one of the two in a process of its own and prints how many bytes that took
at its peak: `python -m handclip_lib.bench.rerank kit 7000 1000 512`.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from handclip_lib.bench.row import Row
from handclip_lib.evaluate.rerank import k_reciprocal

QUERIES, GALLERY, WIDTH, PERSONS = 7000, 1000, 512, 500
_Singles = npt.NDArray[np.float32]


def rows() -> list[Row]:
    """Re-ranking of noise around as many points as there are persons, with usual settings."""
    query, gallery = _features(QUERIES, GALLERY, WIDTH)
    few = query[:100], gallery[:100]
    assert np.allclose(k_reciprocal(*few), dense(*few), atol=1e-5), "distances are others"
    n = QUERIES + GALLERY
    return [
        Row(
            f"re-ranking {QUERIES} queries × {GALLERY} gallery images, against {n} × {n} matrices",
            lambda: k_reciprocal(query, gallery),
            lambda: dense(query, gallery),
            "≤ 0.20; of the memory ≤ 0.10",
            QUERIES,
            memory=(partial(_peak_elsewhere, "kit"), partial(_peak_elsewhere, "dense")),
        )
    ]


def dense(
    query: _Singles, gallery: _Singles, k1: int = 20, k2: int = 6, lam: float = 0.3
) -> _Singles:
    """What `k_reciprocal` returns, from (N, N) matrices of float32; k1 < N.

    Whole matrices at a time, but for the three steps where looking only at a row's non-zero
    entries takes less time than a product of matrices.
    """
    z, n = np.concatenate([query, gallery]), len(query)
    distance = z @ z.T
    distance *= -2
    distance += 2
    distance /= distance.max(axis=1, keepdims=True)
    k = max(k1 + 1, k2)
    near = np.argpartition(distance, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distance, near, axis=1), axis=1)
    near = np.take_along_axis(near, order, axis=1)  # and the (N, N) of positions is let go
    original = distance[:n, n:].copy()
    weights = np.exp(np.negative(distance, out=distance), out=distance)
    weights *= _members(near, k1)
    weights /= weights.sum(axis=1, keepdims=True)
    averaged = np.empty_like(weights)
    for i, few in enumerate(near[:, :k2]):
        weights[few].mean(axis=0, out=averaged[i])
    columns = np.ascontiguousarray(averaged[n:].T)  # (N, G)
    final = np.empty((n, len(gallery)), dtype=np.float32)
    for i, row in enumerate(averaged[:n]):
        own = np.flatnonzero(row)
        np.minimum(columns[own], row[own, None]).sum(axis=0, out=final[i])
    final = (1 - lam) * (1 - final / (2 - final))
    final += lam * original
    return final


def _members(near: npt.NDArray[np.intp], k1: int) -> npt.NDArray[np.bool_]:
    member, half = (_mutual(near[:, : k + 1]) for k in (k1, int(np.around(k1 / 2))))
    size = half.sum(axis=1)
    for row in member:
        found = np.flatnonzero(row)
        theirs = half[found]  # (p, N)
        enough = 3 * (theirs & row).sum(axis=1) > 2 * size[found]
        row |= theirs[enough].any(axis=0)
    return member


def _mutual(near: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    among = np.zeros((len(near), len(near)), dtype=bool)
    np.put_along_axis(among, near, True, axis=1)
    return among & among.T


def _features(queries: int, gallery: int, width: int) -> tuple[_Singles, _Singles]:
    rng = np.random.default_rng(0)
    who = rng.integers(0, PERSONS, queries + gallery)
    z = rng.standard_normal((PERSONS, width), dtype=np.float32)[who]
    z += rng.standard_normal(z.shape, dtype=np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z[:queries], z[queries:]


def _peak_elsewhere(way: str) -> float:
    """Megabytes that a way took in a process of its own; not a number where none can tell."""
    told = [way, *map(str, (QUERIES, GALLERY, WIDTH))]
    command = [sys.executable, "-m", "handclip_lib.bench.rerank", *told]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout)


def peak_of(way: str, queries: int, gallery: int, width: int) -> float:
    """Megabytes of this process's largest memory above what it had once the features were made.

    The largest one is the kernel's record since the program began (VmHWM, which, unlike
    ru_maxrss, a large parent's memory does not enter); not a number where there is no such record.
    """
    ways = {"kit": k_reciprocal, "dense": dense}
    query_gallery = _features(queries, gallery, width)
    before = psutil.Process().memory_info().rss
    ways[way](*query_gallery)
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return (int(line.split()[1]) * 1024 - before) / 1e6


if __name__ == "__main__":
    print(peak_of(sys.argv[1], *map(int, sys.argv[2:])))
