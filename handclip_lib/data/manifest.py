"""A manifest: the rows of a split in one fixed order, its digest and its file."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from handclip_lib.data.atomic import write_whole

COLUMNS = ("split", "draw", "pid", "aspect", "image")
TRAINING = ("train", "val", "select")
TESTING = ("query", "gallery", "gallery_all")
SPLITS = TRAINING + TESTING


class SplitError(ValueError):
    """A split that can't be made, or that leaks; the message names persons and images."""


class TooFew(SplitError):
    """Not enough persons or images of an aspect to make a split of it."""


def order(rows: Iterable[tuple[str, int, int, str, str]]) -> pd.DataFrame:
    """A manifest of rows (split, draw, pid, aspect, image) in the one order that it has."""
    ranked = sorted(rows, key=lambda row: (SPLITS.index(row[0]), row[1], row[2], row[4]))
    return pd.DataFrame(ranked, columns=list(COLUMNS))


def sha256(manifest: pd.DataFrame) -> str:
    """Hex digest of the manifest as `write_manifest` writes it: one on every platform."""
    return hashlib.sha256(_text(manifest)).hexdigest()


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> Path:
    """Write the manifest as CSV, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, _text(manifest))


def read_manifest(path: str | Path) -> pd.DataFrame:
    """The manifest in a CSV, as it was written but for its attrs; SplitError if it is none."""
    numbers = {"draw": "int64", "pid": "int64"}
    types = defaultdict(lambda: "str", numbers)  # an aspect or image may look like a number
    try:
        manifest = pd.read_csv(path, dtype=types, keep_default_na=False)
    except ValueError as error:
        raise SplitError(f"{path} is no manifest: {error}") from None
    if list(manifest) != list(COLUMNS):
        raise SplitError(f"{path} is no manifest: its columns are {', '.join(manifest.columns)}")
    return manifest


def _text(manifest: pd.DataFrame) -> bytes:
    text = manifest.to_csv(index=False, columns=list(COLUMNS), lineterminator="\n")
    return text.encode("utf-8", "surrogateescape")
