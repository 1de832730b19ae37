"""Rows on reading, embedding and scoring photographs."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.bench.row import PHOTOGRAPHS, Row, in_precision
from handclip_lib.data import splits
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.store import Store, decode, open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed, evaluating
from handclip_lib.evaluate.retrieval import retrieval_metrics
from handclip_lib.models.clip import Encoder
from handclip_lib.schema import Params
from handclip_lib.train.job import study_encoder

QUERIES, GALLERY = 2000, 1000


def rows(p: Params, table: pd.DataFrame, folder: Path) -> list[Row]:
    """Rows for the study's tower and photographs; `folder` takes what is cached."""
    fabric = make_fabric(p)
    encoder = study_encoder(p)
    fabric.to_device(encoder)
    store = open_store(table, encoder.preprocess, folder / "evaluation")
    few = table.head(PHOTOGRAPHS)
    images = few["image"].tolist()
    return [
        _retrieval(),
        _decoding(few, replace(encoder.preprocess, mirror_left=False), folder / "evaluation"),
        _embedding(p, encoder, store, images, fabric),
        _draws(p, table, encoder, store, fabric),
        _precision(p, encoder, store, images, fabric),
    ]


def _retrieval() -> Row:
    rng = np.random.default_rng(0)
    sim = rng.random((QUERIES, GALLERY))
    gallery = np.arange(GALLERY) % 500  # two matches a query
    query = rng.integers(0, 500, QUERIES)

    def one_by_one() -> float:
        scores = []
        for row, pid in zip(sim, query, strict=True):
            rank = np.flatnonzero(gallery[np.argsort(-row, kind="stable")] == pid) + 1.0
            match = np.arange(1, len(rank) + 1)
            before = np.where(rank > 1, (match - 1) / np.maximum(rank - 1, 1), 1.0)
            average = (match / rank).mean(), ((match / rank + before) / 2).mean()
            scores.append([*(rank[0] <= k for k in (1, 5, 10)), *average, len(rank) / rank[-1]])
        return float(np.mean(scores, axis=0)[3])

    assert abs(one_by_one() - retrieval_metrics(sim, query, gallery)["map"]) < 1e-9
    name = f"metrics of {QUERIES} queries × {GALLERY} gallery images, against query by query"
    return Row(name, lambda: retrieval_metrics(sim, query, gallery), one_by_one)


def _decoding(table: pd.DataFrame, preprocess: Preprocess, cache: Path) -> Row:
    store, images = open_store(table, preprocess, cache), table["image"].tolist()
    paths = [store.root / name for name in images]

    def decoded() -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda path: decode(path, preprocess)[0], paths)
            return np.stack(list(found))

    assert np.array_equal(store.pixels(images).numpy(), decoded())
    name = f"an epoch's pixels of {len(images)} photographs, against decoding them each epoch"
    return Row(name, lambda: store.pixels(images), decoded, images=len(images))


def _embedding(
    p: Params, encoder: Encoder, store: Store, images: list[str], fabric: lf.Fabric
) -> Row:
    size = p.evaluation.batch_size
    ready = _ready(encoder, store, images, size, fabric)

    def kit() -> dict[str, np.ndarray]:
        shutil.rmtree(store.cache / "features", ignore_errors=True)
        return embed(encoder, store, images, fabric, size)

    def tower() -> np.ndarray:
        return _proj(encoder, ready, fabric)

    assert np.allclose(kit()["proj"], tower(), atol=1e-5)
    name = f"features of {len(images)} photographs, kept on disk, against the tower alone"
    return Row(name, kit, tower, images=len(images))


def _draws(
    p: Params, table: pd.DataFrame, encoder: Encoder, store: Store, fabric: lf.Fabric
) -> Row:
    asked = splits.manifest_for(p, table)
    asked = asked[asked["draw"] >= 0]
    draws = [part["image"].unique().tolist() for _, part in asked.groupby("draw")]
    every = asked["image"].unique().tolist()
    size = p.evaluation.batch_size
    ready = [_ready(encoder, store, names, size, fabric) for names in (every, *draws)]
    once, *each = ready
    at = [every.index(name) for name in draws[0]]
    z = _proj(encoder, once, fabric)[at]
    assert np.allclose(z, _proj(encoder, each[0], fabric), atol=1e-5)
    name = f"features for {len(draws)} draws, each photograph once, against draw by draw"
    return Row(
        name,
        lambda: _proj(encoder, once, fabric),
        lambda: [_proj(encoder, batches, fabric) for batches in each],
    )


def _precision(
    p: Params, encoder: Encoder, store: Store, images: list[str], fabric: lf.Fabric
) -> Row:
    half, full = (make_fabric(in_precision(p, told)) for told in ("bf16-mixed", "32-true"))
    ready = _ready(encoder, store, images, p.evaluation.batch_size, fabric)
    a, b = _proj(encoder, ready, half), _proj(encoder, ready, full)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.98, f"bf16 features are others: cosine {cosines.min()}"
    return Row(
        "the tower's features in bf16, against float32",
        lambda: _proj(encoder, ready, half),
        lambda: _proj(encoder, ready, full),
        images=len(images),
    )


def _ready(
    encoder: Encoder, store: Store, images: list[str], size: int, fabric: lf.Fabric
) -> list[torch.Tensor]:
    """Normalised batches on the device."""
    pixels = store.pixels(images).to(fabric.device)
    return [encoder.preprocess.normalise(batch) for batch in pixels.split(size)]


@torch.inference_mode()
def _proj(encoder: Encoder, batches: list[torch.Tensor], fabric: lf.Fabric) -> np.ndarray:
    """(N, E), on the CPU."""
    found = []
    with evaluating(encoder), fabric.autocast():
        for batch in batches:
            found.append(encoder.features(batch).proj.float().cpu().numpy())
    return np.concatenate(found)
