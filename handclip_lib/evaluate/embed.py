"""Features of images, each computed once for given weights, preprocessing and pixels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning_fabric as lf
import numpy as np
import numpy.typing as npt
import open_clip
import pandas as pd
import timm
import torch
from torch import nn
from tqdm.auto import tqdm

from handclip_lib.data.check import listed
from handclip_lib.data.rowcache import Block, RowCache, key_of
from handclip_lib.data.store import Store
from handclip_lib.models.clip import Encoder

NAMES = ("penult", "pool", "proj")
_VERSION = 1  # counts up when the same weights and pixels would give other features
_CHUNK = 1024  # images on the device at a time: 154 MB at 224 x 224
_SHOWN = 10  # names in a message


def embed(
    encoder: Encoder,
    store: Store,
    images: Sequence[str],
    fabric: lf.Fabric,
    batch_size: int = 64,
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """Raw float32 features {"penult", "pool", "proj"}, each (N, W), rows in the order asked.

    Under the fabric's device and precision, in eval mode. Rows are kept on disk and found again
    for the same weights, architecture, adapter and what it is told of the photographs,
    preprocessing, photographs, precision, kind of device and versions of what computes them.
    mirrored: of every photograph's mirror image, to be added to those of itself.
    Raises ValueError where the store was fitted for another Preprocess, or where features are not
    finite, naming the images; ParamError where the table does not say what the adapter asks for.
    """
    if store.preprocess != encoder.preprocess:
        raise ValueError(
            f"the store holds pixels for {store.preprocess}, the encoder wants"
            f" {encoder.preprocess}: open the store with encoder.preprocess"
        )
    cache = _cache(encoder, store, fabric, mirrored)
    rows = store.rows(images)
    with evaluating(encoder):
        cache.fill(rows, lambda some: _computed(encoder, store, some, fabric, batch_size, mirrored))
    return {name: cache.read(name, rows) for name in NAMES}


def embed_pixels(
    encoder: Encoder,
    pixels: npt.NDArray[np.uint8],
    rows: pd.DataFrame,
    fabric: lf.Fabric,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Features as of `embed`, of pixels (N, H, W, 3) that no store holds; nothing is kept.

    rows: N rows of the table of the photographs that they were made of: `image`, and what the
    encoder's adapter is told. Raises ValueError where features are not finite.
    """
    fabric.to_device(encoder)
    given, codes = torch.from_numpy(pixels).to(fabric.device), encoder.codes_of(rows)
    with evaluating(encoder), tqdm(disable=True) as bar:
        values = _batched(encoder, given, codes, fabric, batch_size, bar)
    _check_finite(values, rows["image"].tolist())
    return values


def retrieval_features(
    features: Mapping[str, np.ndarray], names: Sequence[str] = ("pool", "proj")
) -> np.ndarray:
    """(N, D) unit rows: the named features side by side as they are, then one L2 norm.

    Raises ValueError on a row without length, and on names that are not there.
    """
    unknown = [name for name in names if name not in features]
    if unknown or not names:
        raise ValueError(f"no features {unknown or names}: there are {', '.join(features)}")
    joined = np.concatenate([features[name] for name in names], axis=1)
    norms = np.linalg.norm(joined.astype(np.float64), axis=1, keepdims=True)
    zero = np.flatnonzero(~(norms[:, 0] > 0))
    if len(zero):
        raise ValueError(
            f"features of {len(zero)} images are zero or not numbers: rows {zero[:10]}"
        )
    unit: np.ndarray = (joined / norms).astype(np.float32)
    return unit


def _cache(encoder: Encoder, store: Store, fabric: lf.Fabric, mirrored: bool) -> RowCache:
    parts: dict[str, Any] = {
        "version": [_VERSION, torch.__version__, open_clip.__version__, timm.__version__],
        "pixels": store.key,
        "preprocess": encoder.preprocess.as_dict(),
        "weights": encoder.weights_sha256,
        "model": encoder.model_cfg,
        "precision": str(fabric.strategy.precision.precision),
        "device": fabric.device.type,
    }
    if encoder.adapter is not None:
        view, table = encoder.adapter.told.view, store.table
        told = table[view].astype(str).tolist() if view in table else []
        parts |= {"adapter": encoder.adapter.settings, "views": told}
    if mirrored:
        parts["mirrored"] = True
    fields: dict[str, tuple[tuple[int, ...], str]] = {
        name: ((encoder.dims[name],), "float32") for name in NAMES
    }
    return RowCache(store.cache / "features" / key_of(parts), len(store.images), fields)


def _computed(
    encoder: Encoder,
    store: Store,
    rows: np.ndarray,
    fabric: lf.Fabric,
    batch_size: int,
    mirrored: bool,
) -> Iterator[Block]:
    codes = encoder.codes_of(store.table.iloc[rows])
    store.prepare([store.images[row] for row in rows])
    fabric.to_device(encoder)
    with tqdm(
        total=len(rows), desc="features", unit="image", leave=False, disable=len(rows) < _CHUNK // 8
    ) as bar:
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            names = [store.images[row] for row in part]
            pixels = store.pixels(names).to(fabric.device)
            pixels = pixels.flip(2) if mirrored else pixels
            told = None if codes is None else codes[start : start + len(part)]
            values = _batched(encoder, pixels, told, fabric, batch_size, bar)
            _check_finite(values, names)
            yield part, values


def _batched(
    encoder: Encoder,
    pixels: torch.Tensor,
    codes: torch.Tensor | None,
    fabric: lf.Fabric,
    batch_size: int,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    batches = []
    for at in torch.arange(len(pixels)).split(batch_size):
        told = None if codes is None else codes[at].to(fabric.device)
        batches.append(_forward(encoder, pixels[at], told, fabric))
        bar.update(len(at))
    return {name: np.concatenate([b[name] for b in batches]) for name in NAMES}


@torch.inference_mode()
def _forward(
    encoder: Encoder, pixels: torch.Tensor, codes: torch.Tensor | None, fabric: lf.Fabric
) -> dict[str, np.ndarray]:
    with fabric.autocast():
        features = encoder.features(encoder.preprocess.normalise(pixels), codes)
    return {name: getattr(features, name).float().cpu().numpy() for name in NAMES}


def _check_finite(values: Mapping[str, np.ndarray], images: Sequence[str]) -> None:
    finite = np.all([np.isfinite(block).all(axis=1) for block in values.values()], axis=0)
    if not finite.all():
        bad = [image for image, good in zip(images, finite, strict=True) if not good]
        names = ", ".join(listed(bad, _SHOWN))
        raise ValueError(f"features of {len(bad)} images are not finite: {names}")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part is in the mode it had (some stay frozen)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
