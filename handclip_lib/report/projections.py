"""Features to two dimensions for pictures: seeded, the same on every call."""

from collections.abc import Sequence

import numpy as np
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
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 4:
        raise ValueError(f"features {features.shape}: at least 4 rows of features are needed")
    unknown = set(methods) - set(TITLES)
    if unknown:
        raise ValueError(f"unknown projection '{min(unknown)}'; one of {', '.join(TITLES)}")
    unit = normalize(features)
    reduced = _pca(unit, min(50, len(unit) - 1, unit.shape[1]), seed)
    make = {"pca": _first_two, "tsne": _tsne, "umap": _umap}
    return {TITLES[name]: make[name](reduced, seed).astype(np.float32) for name in methods}


def _pca(unit: np.ndarray, components: int, seed: int) -> np.ndarray:
    return PCA(components, svd_solver="full", random_state=seed).fit_transform(unit)


def _first_two(reduced: np.ndarray, _seed: int) -> np.ndarray:
    return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))


def _tsne(reduced: np.ndarray, seed: int) -> np.ndarray:
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=seed, n_jobs=1)
    return model.fit_transform(reduced)


def _umap(reduced: np.ndarray, seed: int) -> np.ndarray:
    # the import compiles for seconds, and the package is optional
    from umap import UMAP

    neighbours = min(15, len(reduced) - 1)
    start = "random" if len(reduced) < 12 else "spectral"  # the spectral start needs more points
    model = UMAP(n_neighbors=neighbours, metric="cosine", init=start, random_state=seed, n_jobs=1)
    return model.fit_transform(reduced)
