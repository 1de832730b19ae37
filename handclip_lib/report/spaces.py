"""Features of every photograph by each of several models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.data.store import open_store
from handclip_lib.evaluate import embed
from handclip_lib.evaluate.ways import both_ways
from handclip_lib.models.clip import Encoder
from handclip_lib.report.lineup import Contender
from handclip_lib.schema import Params


@dataclass(frozen=True)
class Space:
    """A model's features. images: in order; z: (N, D) unit rows; made_by: `maker`."""

    images: tuple[str, ...]
    z: np.ndarray
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def of(self, images: Sequence[str]) -> np.ndarray:
        """Rows (n, D) of some of the images."""
        place = pd.Index(self.images).get_indexer(pd.Index(images))
        if (place < 0).any():
            raise ValueError(f"no feature of {images[int(np.argmin(place))]}")
        rows: np.ndarray = self.z[place]
        return rows


def maker(encoder: Encoder, feature: Sequence[str]) -> dict[str, Any]:
    """All that a feature depends on but the photograph, in plain values."""
    return {
        "weights_sha256": encoder.weights_sha256,
        "preprocess": encoder.preprocess.as_dict(),
        "feature": list(feature),
    }


def space_of(
    one: Contender,
    p: Params,
    table: pd.DataFrame,
    images: Sequence[str],
    fabric: lf.Fabric,
    flipped: bool = False,
) -> Space:
    """A model's retrieval features of images of a table, as `p.evaluation` has them.

    flipped: with those of the mirror images added.
    """
    encoder, told = one.encoder(p), p.evaluation
    store = open_store(table, encoder.preprocess)
    raw = embed.embed(encoder, store, images, fabric, told.batch_size)
    if flipped:
        other = embed.embed(encoder, store, images, fabric, told.batch_size, mirrored=True)
        raw = both_ways(raw, other)
    z = embed.retrieval_features(raw, told.feature)
    return Space(tuple(images), z, maker(encoder, told.feature))


def images_of(*manifests: pd.DataFrame) -> list[str]:
    """Every photograph that manifests name, each once."""
    names: list[str] = pd.concat([m["image"] for m in manifests]).unique().tolist()
    return names
