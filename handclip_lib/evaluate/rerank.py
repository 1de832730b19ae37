"""k-reciprocal re-ranking (Zhong et al. 2017, arXiv:1701.08398), exact and sparse.

The published algorithm fills several N × N matrices. Here similarities are made a block of rows
at a time, of which each row's nearest entries and its farthest one are kept; all that follows is
sparse.

Similarities are compared in float64 and to ten decimals, so that copies of a photograph tie
whatever block they come in. Ties have one rule: the earlier row comes first, and queries come
before the gallery.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

_CELLS = 1 << 21  # similarities made at a time: 8 MB
_PAIRS = 1 << 19  # pairs of weights compared at a time: some 20 MB
_FEW = 8  # entries of a row that share one maximum
_DECIMALS = 10
_DOUBT = 1e-5  # by which float32 similarities may be wrong
_Singles = npt.NDArray[np.float32]
_Floats = npt.NDArray[np.float64]
_Whole = npt.NDArray[np.intp]


def k_reciprocal(
    query: npt.ArrayLike, gallery: npt.ArrayLike, k1: int = 20, k2: int = 6, lam: float = 0.3
) -> npt.NDArray[np.float32]:
    """Final distances (Q, G), smaller is closer, of all queries and the gallery taken together.

    query: (Q, D), gallery: (G, D), unit rows; N = Q + G. Distances are squared Euclidean ones,
    each row divided by its largest. A row's members are its mutual k1-nearest neighbours (itself
    one of them) and, of each such neighbour, its mutual k1/2-nearest ones (rounded, half to even)
    where more than two thirds of those are among the first (sec. 3.2). Members weigh
    exp(-distance), with sum 1 (3.3); weights are averaged over a row's nearest k2 rows, of which
    it is the first (3.4, local query expansion). The Jaccard distance of weights (3.3) and the
    distance itself are mixed as (1 - lam) and lam (3.5).

    k1 above N - 1 counts as N - 1, k2 above N as N. Each distance depends on the other queries:
    a gain that a single search does not have; see `inductive`. Memory beside the result is
    O(N k1), time O(N² D). Raises ValueError on sides that are empty or of unequal width, rows that
    are not of unit length or hold NaN, k1 or k2 below 1, and lam outside 0-1.
    """
    z, n = _checked(query, gallery, k1, k2, lam)  # (N, D)
    k1 = min(k1, len(z) - 1)
    near, farthest = _neighbours(z, min(max(k1 + 1, k2), len(z)))
    member = _members(near, k1)
    weights = _weighted(member, _similarities(z, member), farthest)
    weights = _averaging(near, k2) @ weights
    final = np.empty((n, len(z) - n), dtype=np.float32)
    for rows, overlap in _overlaps(weights[:n], weights[n:]):
        final[rows] = _mixed(overlap, z[rows] @ z[n:].T, farthest[rows, None], lam)
    return final


def inductive(
    query: npt.ArrayLike, gallery: npt.ArrayLike, k1: int = 20, k2: int = 6, lam: float = 0.3
) -> npt.NDArray[np.float32]:
    """Final distances (Q, G) of searches that know nothing of each other.

    Row i is that of `k_reciprocal(query[i:i + 1], gallery, k1, k2, lam)`: one query and the
    gallery, as where photographs are identified one at a time. Arguments and errors as there. The
    gallery's similarities and neighbours are found once, and each query is put into its place
    among them. A search works on dense tables, quicker than sparse ones up to some thousand
    rows; memory is O(G²).
    """
    single, n = _checked(query, gallery, k1, k2, lam)
    z = single.astype(np.float64) / _lengths(single)[:, None]
    found, told = z[:n] @ z[n:].T, z[n:] @ z[n:].T  # (Q, G), (G, G)
    size = len(told) + 1  # rows of a search: its query, then the gallery
    k1, k2 = min(k1, size - 1), min(k2, size)
    k = max(k1 + 1, k2)
    others, mine = _falling(told)[:, :k] + 1, _falling(found)[:, : k - 1] + 1
    kept = np.round(np.take_along_axis(told, others - 1, axis=1), _DECIMALS)  # (G, k)
    similarity = np.pad(told, ((1, 0), (1, 0)), constant_values=1.0)
    final = np.empty(found.shape, dtype=np.float32)
    near = np.zeros((size, k), dtype=np.intp)
    for i, row in enumerate(found):
        similarity[0, 1:] = similarity[1:, 0] = row
        near[0, 1:], near[1:] = mine[i], _inserted(others, kept, row, k)
        final[i] = _search(similarity, near, k1, k2, lam)
    return final


def _inserted(others: _Whole, kept: _Floats, similarity: _Floats, k: int) -> _Whole:
    """Gallery rows' neighbours (G, k) once row 0 is put in its place among `others`."""
    place = (kept > np.round(similarity, _DECIMALS)[:, None]).sum(axis=1)[:, None]
    rank = np.arange(k)
    shifted = np.minimum(rank - (rank > place), others.shape[1] - 1)
    return np.where(rank == place, 0, np.take_along_axis(others, shifted, axis=1))


def _search(
    similarity: _Floats, near: _Whole, k1: int, k2: int, lam: float
) -> npt.NDArray[np.floating]:
    """Final distances (G,) from row 0 to the others: similarity (G + 1, G + 1), near (G + 1, k)."""
    farthest = _span(similarity.min(axis=1))
    row, column = np.nonzero(_member_table(near, k1))
    weight = np.exp((2 * similarity[row, column] - 2) / farthest[row])
    total = np.bincount(row, weight, len(near))
    weights = np.zeros(similarity.shape)
    weights[row, column] = weight / total[row]
    query = weights[near[0, :k2]].mean(axis=0)
    shared = np.flatnonzero(query)  # all that can overlap
    averaged = weights[:, shared][near[1:, :k2]].mean(axis=1)
    overlap = np.minimum(averaged, query[shared]).sum(axis=1)
    return _mixed(overlap, similarity[0, 1:], farthest[0], lam)


def _member_table(near: _Whole, k1: int) -> npt.NDArray[np.bool_]:
    """The entries of `_members`, as a dense table (n, n)."""
    n, half_k = len(near), int(np.around(k1 / 2))
    row, wide = np.arange(n), near[:, : k1 + 1].T  # (k1 + 1, n): NumPy is quicker along long rows
    half = wide[: half_k + 1]
    place = np.full((n, n), n, dtype=np.int32)
    place[row, wide] = np.arange(k1 + 1)[:, None]
    mutual, mutual_half = place[wide, row] <= k1, place[half, row] <= half_k
    member = np.zeros((n, n), dtype=bool)
    member[row, wide] = mutual
    at, of = np.nonzero(mutual)
    candidate = wide[at, of]  # (p,): each a mutual neighbour of row `of`
    theirs, known = half[:, candidate], mutual_half[:, candidate]  # (h + 1, p)
    among = np.add.reduce(member[of, theirs] & known, axis=0, dtype=np.int32)
    enough = 3 * among > 2 * np.add.reduce(known, axis=0, dtype=np.int32)
    known &= enough
    at, pair = np.nonzero(known)
    member[of[pair], theirs[at, pair]] = True
    return member


def _neighbours(z: _Singles, k: int) -> tuple[_Whole, _Floats]:
    """Each row's nearest k rows (N, k), itself among them, and its largest distance (N,)."""
    near = np.empty((len(z), k), dtype=np.intp)
    least = np.empty(len(z))
    length = _lengths(z)
    step = max(1, _CELLS // len(z))
    for start in range(0, len(z), step):
        part = slice(start, start + step)
        similarity = z[part] @ z.T  # (b, N), of single precision
        likely = similarity >= _bound(similarity, k) - _DOUBT
        row, column = np.divmod(np.flatnonzero(likely), len(z))  # k in a row, or some more
        value = similarity[row, column].astype(np.float64)
        first = np.searchsorted(row, np.arange(len(similarity) + 1))
        for i in _unclear(row, value):
            few = slice(first[i], first[i + 1])
            value[few] = _cosine(z, length, start + i, column[few])
        order = np.lexsort((-np.round(value, _DECIMALS), row))  # stable: columns rise
        near[part] = column[order[first[:-1, None] + np.arange(k)]]
        least[part] = similarity.min(axis=1)
    return near, _span(least)


def _bound(similarity: _Singles, k: int) -> _Singles:
    """What at least k entries of each row reach, (b, 1): by the maxima of every few entries."""
    rows, n = similarity.shape
    if n >= _FEW * k:
        similarity = similarity[:, : n - n % _FEW].reshape(rows, _FEW, -1).max(axis=1)
    return np.partition(similarity, -k, axis=1)[:, -k, None]


def _unclear(row: _Whole, value: _Floats) -> _Whole:
    """Rows of which two entries are too much alike for single precision to order them."""
    order = np.lexsort((value, row))
    row, value = row[order], value[order]
    return np.unique(row[1:][(np.diff(value) < _DOUBT) & (np.diff(row) == 0)])


def _cosine(z: _Singles, length: _Floats, row: int, columns: _Whole) -> _Floats:
    """Similarities of a row and others, in float64."""
    product = z[columns].astype(np.float64) @ z[row].astype(np.float64)
    return product / (length[columns] * length[row])


def _falling(similarity: _Floats) -> _Whole:
    """Positions from the largest to the smallest along the last axis; among equals in order."""
    return np.argsort(-np.round(similarity, _DECIMALS), axis=-1, kind="stable")


def _span(least: _Floats) -> _Floats:
    """Largest distances from smallest similarities; 1 where all rows are the same one."""
    distance = np.round(2 - 2 * least, _DECIMALS)
    return np.where(distance > 0, distance, 1.0)


def _members(near: _Whole, k1: int) -> sparse.csr_array:
    """Members of every row, expanded: (N, N) whose non-zero entries they are."""
    wide, half = _mutual(near, k1), _mutual(near, int(np.around(k1 / 2)))
    shared = (wide @ half.T.tocsr()).multiply(wide).tocsr()
    of = np.diff(half.indptr)[shared.indices]
    shared.data = (3 * shared.data > 2 * of).astype(np.int32)
    shared.eliminate_zeros()
    member = shared @ half + wide
    member.sort_indices()
    return member


def _mutual(near: _Whole, k: int) -> sparse.csr_array:
    """Ones where each of two rows is among the k nearest of the other, or they are one row."""
    among = _chosen(near[:, : k + 1], np.int32(1))
    return among.multiply(among.T.tocsr()).tocsr()


def _averaging(near: _Whole, k2: int) -> sparse.csr_array:
    """(N, N) that puts in a row's place the mean of its nearest k2."""
    few = near[:, :k2]
    return _chosen(few, np.float32(1 / few.shape[1]))


def _chosen(columns: _Whole, value: np.generic) -> sparse.csr_array:
    """(N, N) with one value at the given columns (N, k) of each row."""
    n, k = columns.shape
    starts = np.arange(0, n * k + 1, k)
    return sparse.csr_array((np.full(n * k, value), columns.ravel(), starts), shape=(n, n))


def _similarities(z: _Singles, member: sparse.csr_array) -> _Floats:
    """Similarity of each row and each of its members, in the order of the non-zero entries."""
    found = np.empty(member.nnz)
    for row, (start, stop) in enumerate(zip(member.indptr, member.indptr[1:], strict=False)):
        found[start:stop] = z[member.indices[start:stop]] @ z[row]
    return found


def _weighted(member: sparse.csr_array, similarity: _Floats, farthest: _Floats) -> sparse.csr_array:
    """Members' weights: exp(-distance), with sum 1 in each row."""
    row = np.repeat(np.arange(len(farthest)), np.diff(member.indptr))
    weight = np.exp((2 * similarity - 2) / farthest[row])
    weight /= np.bincount(row, weight, len(farthest))[row]
    entries = (weight.astype(np.float32), member.indices, member.indptr)
    return sparse.csr_array(entries, shape=member.shape)


def _overlaps(
    query: sparse.csr_array, gallery: sparse.csr_array
) -> Iterator[tuple[slice, _Floats]]:
    """Sums of the smaller of two weights (b, G), for one slice of queries after another."""
    columns = gallery.T.tocsr()  # (N, G)
    met = np.diff(columns.indptr)  # gallery rows that weigh each column
    pairs = np.concatenate([[0], np.cumsum(met[query.indices])])[query.indptr]  # up to a query
    cost = pairs + gallery.shape[0] * np.arange(len(pairs))
    start = 0
    while start < query.shape[0]:
        stop = max(start + 1, int(np.searchsorted(cost, cost[start] + _PAIRS, "right")) - 1)
        rows = slice(start, stop)
        yield rows, _overlap(query[rows], columns)
        start = stop


def _overlap(query: sparse.csr_array, columns: sparse.csr_array) -> _Floats:
    """(b, G) of queries (b, N) and the gallery's weights by column (N, G)."""
    shape = (query.shape[0], columns.shape[1])
    other = columns[query.indices]  # a row for each weight of a query
    times = np.diff(other.indptr)
    row = np.repeat(np.arange(shape[0]), np.diff(query.indptr))
    cell = np.repeat(row * shape[1], times) + other.indices
    least = np.minimum(np.repeat(query.data, times), other.data)
    return np.bincount(cell, least, shape[0] * shape[1]).reshape(shape)


def _mixed(
    overlap: _Floats,
    similarity: npt.NDArray[np.floating],
    farthest: _Floats | np.float64,
    lam: float,
) -> npt.NDArray[np.floating]:
    """Jaccard distance of weights with sum 1, and the distance itself."""
    jaccard = 1 - overlap / (2 - overlap)
    return (1 - lam) * jaccard + lam * (2 - 2 * similarity) / farthest


def _checked(
    query: npt.ArrayLike, gallery: npt.ArrayLike, k1: int, k2: int, lam: float
) -> tuple[_Singles, int]:
    """All rows, of unit length as far as float32 goes, and how many of them are queries."""
    sides = {"query": np.asarray(query), "gallery": np.asarray(gallery)}
    for name, side in sides.items():
        if side.ndim != 2 or side.size == 0:
            raise ValueError(f"{name} features must be (n, D) and not empty, got {side.shape}")
    if sides["query"].shape[1] != sides["gallery"].shape[1]:
        widths = " and ".join(str(side.shape[1]) for side in sides.values())
        raise ValueError(f"query and gallery features differ in width: {widths}")
    if k1 < 1 or k2 < 1 or not 0 <= lam <= 1:
        raise ValueError(f"k1={k1} and k2={k2} must be at least 1, lam={lam} in 0-1")
    z = np.concatenate(list(sides.values()), dtype=np.float32)
    length = _lengths(z)
    off = np.flatnonzero(~(np.abs(length - 1) < 1e-3))  # NaN too
    if off.size:
        n = len(sides["query"])
        where = f"query row {off[0]}" if off[0] < n else f"gallery row {off[0] - n}"
        raise ValueError(f"{where} is not of unit length ({off.size} such rows)")
    z /= length[:, None].astype(np.float32)
    return z, len(sides["query"])


def _lengths(z: _Singles) -> _Floats:
    return np.sqrt(np.einsum("nd,nd->n", z, z, dtype=np.float64))
