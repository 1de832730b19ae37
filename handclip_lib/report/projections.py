"""Features to two dimensions for pictures: seeded, the same on every call."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def project(
    features: np.ndarray, methods: Sequence[str] = ("pca", "tsne"), seed: int = 0
) -> dict[str, np.ndarray]:
    """{title: (N, 2) float32} for features (N, D), N ≥ 4, in the order of `methods`.

    methods: pca, tsne (van der Maaten & Hinton 2008), umap (McInnes et al. 2018,
    arXiv:1802.03426; needs umap-learn). t-SNE and UMAP see unit rows reduced to at most 50
    principal components. Distances in a t-SNE or UMAP panel are not to scale.
    """
    return _planes([_unit(features)], methods, seed)[0]


def project_together(
    models: Mapping[str, np.ndarray], methods: Sequence[str] = ("pca", "tsne"), seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """{title: {model: (N, 2) float32}}: the same N photographs by several models, to be compared.

    models: {name: features (N, D)}, rows in one order; methods as in `project`. One PCA is fitted
    to the unit rows of all models of one width, after each model's own mean is taken away: what
    a model adds to every photograph alike would only set the panels apart. t-SNE and UMAP are
    fitted to each model by itself, from its points in that PCA, and then turned onto the first
    model's (their axes mean nothing; distances stay), so that a person is found again in about the
    same place. (Fitted to all at once, they would take the copies of one photograph for its nearest
    neighbours, and show little else.) Models of another width than the first share no axes with
    it: their PCA is their own, and turned in the same way.
    Raises ValueError where the numbers of photographs differ.
    """
    shapes = {name: np.shape(features) for name, features in models.items()}
    if len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"features of the same photographs are needed: got {shapes}")
    alike: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        alike.setdefault(shape[-1], []).append(name)
    planes: dict[str, dict[str, np.ndarray]] = {}
    for names in alike.values():
        unit = [_unit(models[name]) for name in names]
        blocks = _planes([z - z.mean(axis=0) for z in unit], methods, seed)
        planes |= dict(zip(names, blocks, strict=True))
    first, *_ = models
    shared, together = alike[shapes[first][-1]], {}
    for title in planes[first]:
        kept = shared if title == TITLES["pca"] else []
        together[title] = {
            name: planes[name][title]
            if name in kept
            else _turned(planes[name][title], planes[first][title])
            for name in models
        }
    return together


def _turned(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Points (N, 2) rotated, mirrored and moved as near to others as that brings them."""
    mine, others = points - points.mean(axis=0), onto - onto.mean(axis=0)
    turn, _ = orthogonal_procrustes(mine, others)
    return (mine @ turn).astype(np.float32)


def _planes(
    blocks: Sequence[np.ndarray], methods: Sequence[str], seed: int
) -> list[dict[str, np.ndarray]]:
    """{title: (N, 2)} of each block of rows (N, D), from one PCA of all blocks."""
    unknown = set(methods) - set(TITLES)
    if unknown:
        raise ValueError(f"unknown projection '{min(unknown)}'; one of {', '.join(TITLES)}")
    rows = np.concatenate(blocks)
    reduced = _pca(rows, min(50, len(rows) - 1, rows.shape[1]), seed)
    make = {"pca": _first_two, "tsne": _tsne, "umap": _umap}
    return [
        {TITLES[way]: make[way](block, seed, len(blocks) > 1).astype(np.float32) for way in methods}
        for block in np.split(reduced, len(blocks))
    ]


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 4:
        raise ValueError(f"features {features.shape}: at least 4 rows of features are needed")
    return normalize(features)


def _pca(unit: np.ndarray, components: int, seed: int) -> np.ndarray:
    return PCA(components, svd_solver="full", random_state=seed).fit_transform(unit)


def _first_two(reduced: np.ndarray, _seed: int, _given: bool) -> np.ndarray:
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _tsne(reduced: np.ndarray, seed: int, given: bool) -> np.ndarray:
    """given: start from the first two columns, which are points of a PCA of several models."""
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    start = reduced[:, :2] / reduced[:, 0].std() * 1e-4 if given else "pca"  # as init="pca" scales
    model = TSNE(2, perplexity=perplexity, init=start, metric="cosine", random_state=seed, n_jobs=1)
    return model.fit_transform(reduced)


def _umap(reduced: np.ndarray, seed: int, given: bool) -> np.ndarray:
    # the import compiles for seconds, and the package is optional
    from umap import UMAP

    neighbours = min(15, len(reduced) - 1)
    start = "random" if len(reduced) < 12 else "spectral"  # the spectral start needs more points
    first = reduced[:, :2].astype(np.float32) if given else start
    model = UMAP(n_neighbors=neighbours, metric="cosine", init=first, random_state=seed, n_jobs=1)
    return model.fit_transform(reduced)
