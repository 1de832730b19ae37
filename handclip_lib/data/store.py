"""Every photograph decoded once ever: one array of uint8 pixels on disk for a table and a fit."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from handclip_lib import params
from handclip_lib.aspects import LEFT
from handclip_lib.data.check import listed
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.rowcache import Block, RowCache, key_of

_VERSION = 1  # counts up when the same photograph would give other pixels
_BLOCK = 64  # images a write
_SHOWN = 20  # names in a message
# what Pillow raises on files that are no pictures, or only half of one
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class StoreError(ValueError):
    """Photographs that cannot be read, all of them, or names that the table has not."""


@dataclass(frozen=True)
class Store:
    """Pixels of a table's images at one size and fit. `images` are the names, `root` their folder.

    key: hash of root, names, file sizes, times of change, fit and what is mirrored; cache: the
    folder of all caches; mirrored: the images that are.
    """

    root: Path
    images: tuple[str, ...]
    preprocess: Preprocess
    key: str
    cache: Path
    _rows: dict[str, int] = field(repr=False)
    mirrored: frozenset[str] = field(repr=False)
    table: pd.DataFrame = field(repr=False)  # what else is known of them, a row each
    _asked: np.ndarray = field(repr=False)  # bool (N,): what this object was asked for

    def pixels(self, images: Sequence[str]) -> torch.Tensor:
        """uint8 (N, H, W, 3) in the order asked; decodes what no run has decoded before.

        Raises StoreError with every image that cannot be read, CacheError without a cache.
        """
        return torch.from_numpy(self._cache.read("pixels", self.prepare(images)))

    def prepare(self, images: Sequence[str]) -> np.ndarray:
        """Decode what is missing, with a progress bar; row numbers (N,) of the images."""
        rows = self.rows(images)
        self._cache.fill(rows, self._decoded)
        return rows

    def digest(self, images: Sequence[str]) -> list[str]:
        """sha256 of each image's pixels: equal for equal pictures, whatever their names."""
        digests = self._cache.read("digest", self.prepare(images))
        return [bytes(row).hex() for row in digests]

    def rows(self, images: Sequence[str]) -> np.ndarray:
        """Row numbers (N,) of images. Raises StoreError on names that are not in the table."""
        unknown = [name for name in images if name not in self._rows]
        if unknown:
            raise StoreError(f"{len(unknown)} images are not in the table: {_listed(unknown)}")
        rows = np.array([self._rows[name] for name in images], dtype=np.int64)
        self._asked[rows] = True
        return rows

    @property
    def fallbacks(self) -> int:
        """How many of the images asked for so far have no believable hand (`fit: hand` only).

        They were fitted whole, as by `fit: pad`.
        """
        asked = np.flatnonzero(self._asked & self._cache.filled())
        return int((~self._cache.read("found", asked)).sum())

    @property
    def _cache(self) -> RowCache:
        fields: dict[str, tuple[tuple[int, ...], str]] = {
            "pixels": ((*self.preprocess.size, 3), "uint8"),
            "digest": ((32,), "uint8"),
            "found": ((), "bool"),
        }
        return RowCache(self.cache / "pixels" / self.key, len(self.images), fields)

    def _decoded(self, rows: np.ndarray) -> Iterator[Block]:
        """Decode in threads (Pillow works outside the interpreter's lock), a block at a time."""
        bad: list[str] = []
        names = [self.images[row] for row in rows]
        with ThreadPoolExecutor(_threads()) as pool, _progress(len(rows)) as bar:
            for start in range(0, len(rows), _BLOCK):
                part = slice(start, start + _BLOCK)
                good, results = [], []
                tried = pool.map(self._try, names[part])
                for row, result in zip(rows[part], tried, strict=True):
                    bar.update()
                    if isinstance(result, str):
                        bad.append(f"{self.images[row]}: {result}")
                    else:
                        good.append(row)
                        results.append(result)
                if good:
                    yield np.array(good), _stacked(results)
        if bad:
            raise StoreError(
                f"{len(bad)} of {len(rows)} images in {self.root} cannot be read:\n"
                + "\n".join(bad)
                + "\nmend or remove them (and their rows in the table)"
            )

    def _try(self, name: str) -> tuple[np.ndarray, bool] | str:
        try:
            pixels, found = decode(self.root / name, self.preprocess)
        except _UNREADABLE as error:
            return f"{type(error).__name__}: {error}"
        return (np.ascontiguousarray(pixels[:, ::-1]) if name in self.mirrored else pixels), found


def open_store(table: pd.DataFrame, preprocess: Preprocess, cache: Path | None = None) -> Store:
    """The store of a table (column `image`, `attrs["root"]`) for one Preprocess; decodes nothing.

    cache: the folder of all caches, None is $HANDCLIP_CACHE or the user's. The data root is only
    read. Give the whole table, so that every part of a study shares one store. A changed
    photograph (size or time of change) or a moved folder gives another key, hence fresh pixels.
    Raises StoreError on an image that the table names twice, and where left hands are to be
    mirrored but the table has no column `aspect`.
    """
    root = Path(table.attrs["root"])
    images = tuple(str(name) for name in table["image"])
    rows = {name: row for row, name in enumerate(images)}
    if len(rows) != len(images):
        twice = table.loc[table["image"].duplicated(), "image"].tolist()
        raise StoreError(f"the table names images twice: {_listed(twice)}")
    mirrored = _left_hands(table) if preprocess.mirror_left else []
    key = key_of(
        {
            "version": _VERSION,
            "root": str(root.resolve()),
            "images": [[name, *_stamp(root / name)] for name in images],
            "fit": preprocess.pixel_spec(),
            "mirrored": mirrored,
        }
    )
    where = Path(cache) if cache else params.cache_dir()
    asked = np.zeros(len(images), dtype=bool)
    return Store(root, images, preprocess, key, where, rows, frozenset(mirrored), table, asked)


def decode(path: Path, preprocess: Preprocess) -> tuple[np.ndarray, bool]:
    """One photograph -> uint8 (H, W, 3), and whether `fit: hand` found a hand."""
    with Image.open(path) as image:
        return preprocess.fit_image(image)


def _left_hands(table: pd.DataFrame) -> list[str]:
    if "aspect" not in table:
        raise StoreError("mirror_left: the table has no column aspect, which says what is left")
    return [str(name) for name in table.loc[table["aspect"].isin(LEFT), "image"]]


def _stacked(results: list[tuple[np.ndarray, bool]]) -> dict[str, np.ndarray]:
    pixels = np.stack([picture for picture, _ in results])
    digests = [np.frombuffer(sha256(picture.tobytes()).digest(), np.uint8) for picture in pixels]
    found = np.array([seen for _, seen in results], dtype=bool)
    return {"pixels": pixels, "digest": np.stack(digests), "found": found}


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; a photograph that is not there is reported when it is asked for."""
    try:
        told = path.stat()
    except OSError:
        return -1, -1
    return told.st_size, told.st_mtime_ns


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(total: int) -> tqdm:
    return tqdm(total=total, desc="decoding", unit="image", leave=False, disable=total < _BLOCK)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(listed(names, _SHOWN))
