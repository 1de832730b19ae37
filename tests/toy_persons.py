"""Persons without photographs: manifests and features for tests of what follows the tower."""

import numpy as np
import pandas as pd

from handclip_lib.data.leaks import persons
from handclip_lib.report.spaces import Space

COLUMNS = ["split", "draw", "pid", "image"]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(manifest: pd.DataFrame, noise: float = 0.5, seed: int = 0) -> Space:
    """Features of a manifest's images: a direction for each person, and noise."""
    rng = np.random.default_rng(seed)
    rows = manifest.drop_duplicates("image")
    who = persons(rows["pid"]).to_numpy()
    centres = rng.normal(size=(who.max() + 1, 6))
    z = unit(centres[who] + rng.normal(0, noise, (len(rows), 6)))
    return Space(tuple(rows["image"]), z)


def people(count: int, shots: int = 3) -> pd.DataFrame:
    """A manifest of persons alone: each with two queries and an entry in two draws."""
    rows = [
        (split, draw, pid, f"{pid}_{(shot + draw) % shots}")
        for draw in range(2)
        for pid in range(count)
        for shot, split in enumerate(("gallery", *["query"] * (shots - 1)))
    ]
    return _aspect(rows)


def held_out(count: int = 6) -> pd.DataFrame:
    """Two photographs of each of so many `select` persons: 60 impostor pairs of six."""
    rows = [("select", 0, pid, f"s{pid}_{k}") for pid in range(100, 100 + count) for k in range(2)]
    return _aspect(rows)


def _aspect(rows: list[tuple[str, int, int, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({"pid": int, "draw": int}).assign(aspect="dorsal_r")
