"""Which photographs of an earlier step of a chain are kept, to be shown again."""

import hashlib

import numpy as np
import pandas as pd

from handclip_lib.data.manifest import SplitError
from handclip_lib.schema_chain import Replay


def exemplars(
    rows: pd.DataFrame, features: np.ndarray, settings: Replay, seed: int
) -> pd.DataFrame:
    """The rows that are kept: `settings.images` of each person in each aspect, or all there are.

    rows: of a manifest, of one earlier step, split `train` alone; features: (N, D) unit rows that
    follow them. The rows stay in their order, on which the choice does not depend. herding: one
    after the other the image with which the mean of those chosen is nearest to the mean of all
    (iCaRL, Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4, as it is written: means are not
    brought to unit length); of equals the first by name. random: by a hash of seed and name.
    Raises SplitError, a ValueError, on rows of another split, ValueError on lengths that differ.
    """
    others = sorted({*rows["split"]} - {"train"})
    if others:
        raise SplitError(f"replay shows training images alone, not those of {', '.join(others)}")
    if len(features) != len(rows):
        raise ValueError(f"{len(features)} features for {len(rows)} rows")
    names = rows["image"].tolist()
    kept = np.zeros(len(rows), dtype=bool)
    for group in rows.groupby(["pid", "aspect"]).indices.values():
        by_name = sorted(np.asarray(group).tolist(), key=lambda row: names[row])
        if settings.choose == "random":
            chosen = sorted(by_name, key=lambda row: _hashed(seed, names[row]))[: settings.images]
        else:
            chosen = [by_name[k] for k in _herded(features[by_name], settings.images)]
        kept[chosen] = True
    return rows[kept]


def _herded(z: np.ndarray, count: int) -> list[int]:
    """Which of (N, D) features are chosen, in the order of the choice."""
    z = z.astype(np.float64)
    mean, total = z.mean(axis=0), np.zeros(z.shape[1])
    chosen: list[int] = []
    for k in range(1, min(count, len(z)) + 1):
        away = np.linalg.norm(mean - (total + z) / k, axis=1)
        away[chosen] = np.inf
        chosen.append(int(np.argmin(away)))
        total = total + z[chosen[-1]]
    return chosen


def _hashed(seed: int, image: str) -> str:
    return hashlib.sha256(f"{seed}|replay|{image}".encode()).hexdigest()
