"""Speed as ratios: each row times two ways to the same result, in one run on one machine."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from handclip_lib.data import splits, tables
from handclip_lib.data.store import open_store
from handclip_lib.evaluate.retrieval import retrieval_metrics
from handclip_lib.models.clip import load_encoder
from handclip_lib.params import load
from handclip_lib.schema import Params

QUERIES, GALLERY = 2000, 1000
_Work = Callable[[], object]


def bench(study: str = "smoke", repeats: int = 3) -> pd.DataFrame:
    """Columns `plain`, `kit` (seconds, best of `repeats`) and `ratio`; a row a comparison.

    The photographs are those of `study`, which are drawn when they are missing. The caches that
    the user has are left alone.
    """
    p = load(study=study)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plain, kit in [_retrieval(), *_data_path(p, Path(folder))]:
            seconds = [min(_seconds(work) for _ in range(repeats)) for work in (plain, kit)]
            rows[name] = [*seconds, seconds[0] / seconds[1]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["plain", "kit", "ratio"])


def _seconds(work: _Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _retrieval() -> tuple[str, _Work, _Work]:
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
    return name, one_by_one, lambda: retrieval_metrics(sim, query, gallery)


def _data_path(p: Params, cache: Path) -> list[tuple[str, _Work, _Work]]:
    table = tables.read(p)
    manifest = splits.manifest_for(p, table)
    encoder = load_encoder(p.model.name, p.model.pretrained, p.model.image_size, p.model.fit)
    store = open_store(table, encoder.preprocess, cache)
    root, asked = Path(table.attrs["root"]), manifest[manifest["draw"] >= 0]
    images = asked["image"].unique().tolist()
    draws = [part["image"].unique().tolist() for _, part in asked.groupby("draw")]
    store.prepare(images)

    def decode() -> None:
        for name in images:
            with Image.open(root / name) as picture:
                encoder.preprocess.fit_image(picture)

    def forward(names: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            return encoder.features(encoder.preprocess.normalise(store.pixels(names))).proj

    return [
        (
            f"pixels of {len(images)} photographs, against decoding and fitting them",
            decode,
            lambda: store.pixels(images),
        ),
        (
            f"features for {len(draws)} draws, each photograph once, against draw by draw",
            lambda: [forward(names) for names in draws],
            lambda: forward(images),
        ),
    ]
