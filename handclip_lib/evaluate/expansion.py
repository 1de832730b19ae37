"""Better features without training: query expansion, gallery augmentation and whitening.

What comes out are unit rows, to be ranked by cosine as any others.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handclip_lib.evaluate.retrieval import rank_gallery

_CELLS = 1 << 22  # similarities, or numbers of neighbours' features, dealt with at a time
_Rows = npt.NDArray[np.floating]
_Doubles = npt.NDArray[np.float64]


def expand_queries(query: _Rows, gallery: _Rows, k: int, alpha: float = 0.0) -> _Rows:
    """Each query and its k nearest gallery rows, averaged: (Q, D) unit rows.

    query: (Q, D), gallery: (G, D), unit rows; the k nearest are all where G is smaller. The query
    weighs 1, a neighbour its similarity to the power of alpha >= 0; one of negative similarity
    weighs nothing, whatever alpha, so that a sum of rows can't vanish. alpha 0 is the plain mean
    (average query expansion; Chum et al. 2007, ICCV), alpha 3 usual (alpha-weighted; Radenović et
    al. 2018, arXiv:1711.02512). No query looks at another one.

    Raises ValueError on shapes that do not agree, rows that are not unit, k < 1, alpha < 0.
    """
    _check(query, gallery, k, alpha)
    step = _rows_at_a_time(gallery, k)
    parts = [
        _averaged(part, gallery, part @ gallery.T, k, alpha)
        for part in np.split(query, range(step, len(query), step))
    ]
    return np.concatenate(parts)


def augment_gallery(gallery: _Rows, k: int, alpha: float = 0.0) -> _Rows:
    """Each gallery row and its k nearest others, averaged as in `expand_queries`: (G, D).

    Made once for a gallery, before any search: database-side feature augmentation, Arandjelović &
    Zisserman 2012 (CVPR). Arguments and errors as there.
    """
    _check(gallery, gallery, k, alpha)
    step = _rows_at_a_time(gallery, k)
    parts = []
    for start in range(0, len(gallery), step):
        part = gallery[start : start + step]
        similarity = part @ gallery.T  # (b, G)
        at = np.arange(len(part))
        similarity[at, start + at] = -np.inf  # a row is no neighbour of its own
        parts.append(_averaged(part, gallery, similarity, min(k, len(gallery) - 1), alpha))
    return np.concatenate(parts)


def _rows_at_a_time(gallery: _Rows, k: int) -> int:
    entries, width = gallery.shape
    return max(1, _CELLS // max(entries, min(k, entries) * width))


def _averaged(own: _Rows, others: _Rows, similarity: _Rows, k: int, alpha: float) -> _Rows:
    """(b, D) unit rows of `own` (b, D) and the k of `others` (G, D) with most similarity (b, G)."""
    near = rank_gallery(similarity)[:, :k]  # (b, k)
    told = np.take_along_axis(similarity, near, axis=1)
    weight = np.where(told < 0, 0, np.maximum(told, 0) ** alpha).astype(own.dtype)
    return _unit(own + np.einsum("bk,bkd->bd", weight, others[near]))


@dataclass(frozen=True)
class Whitening:
    """What `fit_whitening` found: x becomes the unit row of (x - mean) @ projection."""

    mean: _Doubles  # (D,)
    projection: _Doubles  # (D, d)


def fit_whitening(features: _Rows, dims: int | None = None, shrink: float = 0.1) -> Whitening:
    """Directions in which features vary, each to be divided by its spread.

    features: (N, D) of training persons. Fitted on the persons who are searched for it would know
    them: whose features these are is for the caller to see to. dims: how many directions are
    kept, those of most variance first; None: all that the features span, at most N - 1. shrink:
    share in 0-1 by which each variance goes towards the mean of all D (Ledoit & Wolf 2004): 0 is
    plain PCA whitening (Jégou & Chum 2012), which with N near D or below blows up directions that
    few photographs decide; 1 only removes the mean and keeps what is spanned.

    Raises ValueError on shapes, NaN, shrink outside 0-1, dims beyond what the features span, and
    features that are all alike.
    """
    z = np.asarray(features, dtype=np.float64)
    if z.ndim != 2 or len(z) < 2 or not np.isfinite(z).all():
        raise ValueError(f"need two finite features (N, D) or more, got shape {z.shape}")
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink={shrink} must be in 0-1")
    mean = z.mean(axis=0)
    _, spread, directions = np.linalg.svd(z - mean, full_matrices=False)
    rank = int((spread > spread[0] * max(z.shape) * np.finfo(np.float32).eps).sum())
    if rank == 0 or not spread[0] > np.finfo(np.float32).eps:
        raise ValueError(f"the {len(z)} features are all alike: there is nothing to whiten")
    kept = rank if dims is None else dims
    if not 1 <= kept <= rank:
        raise ValueError(f"dims={dims}: the {len(z)} features span {rank} directions")
    variance = spread**2 / (len(z) - 1)  # (min(N, D),), falling
    shrunk = (1 - shrink) * variance[:kept] + shrink * variance.sum() / z.shape[1]
    return Whitening(mean, directions[:kept].T / np.sqrt(shrunk))


def whiten(features: _Rows, whitening: Whitening) -> _Rows:
    """Whitened features: (N, D) to (N, d) unit rows, of the type of `features`.

    Raises ValueError on another width than was fitted and on a feature that is the mean itself.
    """
    if features.ndim != 2 or features.shape[1] != len(whitening.mean):
        raise ValueError(f"fitted on width {len(whitening.mean)}, got features {features.shape}")
    found = (features - whitening.mean) @ whitening.projection
    return _unit(found).astype(features.dtype)


def _unit(rows: _Rows) -> _Rows:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (length > 0).all():  # NaN too
        raise ValueError("a feature has no direction: it is zero or holds NaN")
    return rows / length


def _check(query: _Rows, gallery: _Rows, k: int, alpha: float) -> None:
    if k < 1 or not alpha >= 0:
        raise ValueError(f"k={k} must be at least 1 and alpha={alpha} at least 0")
    for side in (query, gallery):
        if side.ndim != 2 or not len(side) or side.shape[1] != query.shape[-1]:
            raise ValueError(f"need features of one width, got {query.shape} and {gallery.shape}")
        if not (np.abs(np.linalg.norm(side, axis=1) - 1) < 1e-3).all():  # NaN too
            raise ValueError("features must be of unit length")
