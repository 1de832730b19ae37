"""Query expansion, gallery augmentation and whitening against loops and by hand."""

import numpy as np
import pytest

from handclip_lib.evaluate import expansion
from handclip_lib.evaluate.expansion import (
    augment_gallery,
    expand_queries,
    fit_whitening,
    whiten,
)

RNG = np.random.default_rng(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def around(n, width=8, spread=0.5, seed=0):
    """Rows around one direction, most of which are alike."""
    rng = np.random.default_rng(seed)
    return unit(np.eye(width)[0] + spread * rng.standard_normal((n, width)))


def averaged(own, others, k, alpha):
    """One row at a time."""
    similarity = others @ own
    total = own.copy()
    for j in np.argsort(-similarity, kind="stable")[:k]:
        total += max(similarity[j], 0) ** alpha * others[j] if similarity[j] >= 0 else 0
    return unit(total)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_expansion_equals_a_loop(alpha, k):
    query, gallery = around(7, seed=1), around(20, seed=2)
    wanted = [averaged(row, gallery, k, alpha) for row in query]
    np.testing.assert_allclose(expand_queries(query, gallery, k, alpha), wanted, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_augmentation_takes_a_row_s_neighbours_and_not_itself(alpha):
    gallery = np.concatenate([around(12), around(12)[:3]])  # with copies
    others = [np.delete(gallery, i, axis=0) for i in range(len(gallery))]
    wanted = [averaged(row, rest, 4, alpha) for row, rest in zip(gallery, others, strict=True)]
    np.testing.assert_allclose(augment_gallery(gallery, 4, alpha), wanted, atol=1e-12)
    np.testing.assert_allclose(augment_gallery(gallery[:1], 4), gallery[:1])  # it has none


def test_by_hand():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    mean = expand_queries(query, gallery, 1)
    np.testing.assert_allclose(mean, unit(np.array([[1.6, 0.8]])))
    weighted = expand_queries(query, gallery, 2, alpha=2.0)  # 0.36 and 0
    np.testing.assert_allclose(weighted, unit(np.array([[1 + 0.6 * 0.36, 0.8 * 0.36]])))
    # what looks the other way weighs nothing, even in the plain mean
    np.testing.assert_allclose(expand_queries(query, gallery[2:], 1), query)


def test_blocks_and_other_queries_change_nothing(monkeypatch):
    query, gallery = around(30, seed=1), around(20, seed=2)
    whole, made = expand_queries(query, gallery, 5, 3.0), augment_gallery(gallery, 5, 3.0)
    np.testing.assert_allclose(expand_queries(query[4:6], gallery, 5, 3.0), whole[4:6], atol=1e-12)
    monkeypatch.setattr(expansion, "_CELLS", 100)
    np.testing.assert_allclose(expand_queries(query, gallery, 5, 3.0), whole, atol=1e-12)
    np.testing.assert_allclose(augment_gallery(gallery, 5, 3.0), made, atol=1e-12)


def test_float32_stays_float32():
    z = around(10).astype(np.float32)
    assert expand_queries(z, z, 3, 3.0).dtype == np.float32
    assert augment_gallery(z, 3, 3.0).dtype == np.float32
    assert whiten(z, fit_whitening(z)).dtype == np.float32


def test_expansion_refuses_what_has_no_meaning():
    z = around(5)
    for k, alpha in [(0, 0.0), (1, -1.0), (1, float("nan"))]:
        with pytest.raises(ValueError, match="must be at least 1"):
            expand_queries(z, z, k, alpha)
    with pytest.raises(ValueError, match="of one width"):
        expand_queries(z, z[:, :3], 1)
    with pytest.raises(ValueError, match="unit length"):
        augment_gallery(2 * z, 1)


def test_whitened_training_features_have_no_covariance():
    z = RNG.standard_normal((500, 6)) @ RNG.standard_normal((6, 6)) + 3
    told = fit_whitening(z, shrink=0.0)
    found = (z - told.mean) @ told.projection
    np.testing.assert_allclose(np.cov(found.T), np.eye(6), atol=1e-9)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(whiten(z, told), unit(found))


def test_shrinking_is_towards_the_mean_variance():
    z = RNG.standard_normal((300, 5)) * [5, 3, 2, 1, 0.1]
    variance = np.linalg.eigvalsh(np.cov(z.T))[::-1]
    told = fit_whitening(z, dims=3, shrink=0.4)
    spread = ((z - told.mean) @ told.projection).var(axis=0, ddof=1)
    wanted = variance / (0.6 * variance + 0.4 * variance.mean())
    np.testing.assert_allclose(spread, wanted[:3])
    # wholly shrunk, only the mean is gone: cosines are those of centred features
    centred = unit(z - z.mean(axis=0))
    plain = whiten(z, fit_whitening(z, shrink=1.0))
    np.testing.assert_allclose(plain @ plain.T, centred @ centred.T, atol=1e-9)


def test_fewer_photographs_than_dimensions():
    z = unit(RNG.standard_normal((12, 40)))
    told = fit_whitening(z, shrink=0.2)
    assert told.projection.shape == (40, 11)  # what 12 centred rows span
    new = whiten(unit(RNG.standard_normal((9, 40))), told)
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1)
    with pytest.raises(ValueError, match="span 11 directions"):
        fit_whitening(z, dims=12)


def test_whitening_helps_where_one_direction_drowns_persons():
    persons = RNG.standard_normal((40, 8))
    light = np.eye(9)[0] * 20
    z = [np.pad(persons, ((0, 0), (1, 0))) + light * RNG.standard_normal((40, 1)) for _ in "ab"]
    train = np.concatenate([part[:20] for part in z])
    told = fit_whitening(train, shrink=0.01)
    first, second = (unit(part[20:]) for part in z)

    def right(a, b):
        return ((a @ b.T).argmax(axis=1) == np.arange(20)).mean()

    plain = right(first, second)
    white = right(*(whiten(part[20:], told) for part in z))
    assert white > plain + 0.3


def test_whitening_refuses_what_it_can_not_use():
    z = RNG.standard_normal((10, 4))
    with pytest.raises(ValueError, match="all alike"):
        fit_whitening(np.ones((5, 4)))
    with pytest.raises(ValueError, match="finite"):
        fit_whitening(np.full((5, 4), np.nan))
    with pytest.raises(ValueError, match="shrink"):
        fit_whitening(z, shrink=1.5)
    with pytest.raises(ValueError, match="width 4"):
        whiten(z[:, :3], fit_whitening(z))
    with pytest.raises(ValueError, match="no direction"):
        whiten(z.mean(axis=0, keepdims=True), fit_whitening(z))
