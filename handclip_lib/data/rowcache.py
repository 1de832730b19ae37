"""Rows computed once and kept on disk: decoded pixels, features."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from handclip_lib.data.atomic import write_whole

Block = tuple[np.ndarray, Mapping[str, np.ndarray]]  # row numbers (n,), field -> (n, *shape)
_PATIENCE = 5  # seconds before a wait for another process is mentioned


class CacheError(RuntimeError):
    """The cache folder cannot be used; the message says which and what to do."""


def key_of(made_by: Mapping[str, Any]) -> str:
    """Folder name of a cache: the hash of everything that made it (plain, JSON-able values)."""
    return sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class RowCache:
    """`rows` rows of several fields in `folder`, filled on demand, a sparse file a field.

    fields: name -> (shape of a row, dtype). A row counts as filled once `filled.npy` says so;
    that file is replaced after the data reached the disk, so a kill at any moment costs only the
    block in work. One process fills at a time; the others wait and see its rows. A full disk is
    an OSError, and what was written stays good.
    """

    folder: Path
    rows: int
    fields: Mapping[str, tuple[tuple[int, ...], str]]

    def filled(self) -> np.ndarray:
        """bool (rows,): which rows are there. Raises CacheError on a mask that is none of ours."""
        if not self._mask.is_file():
            return np.zeros(self.rows, dtype=bool)
        try:
            mask: np.ndarray = np.load(self._mask)
        except (OSError, EOFError, ValueError) as error:
            raise CacheError(
                f"{self._mask} cannot be read ({error}): delete the folder {self.folder}"
            ) from error
        if mask.shape != (self.rows,):
            raise CacheError(
                f"{self._mask} has {mask.shape} rows, not {self.rows}: delete the folder"
            )
        return mask

    def read(self, field: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), *shape) copy of filled rows, in the order asked."""
        if len(rows) == 0:
            shape, dtype = self.fields[field]
            return np.zeros((0, *shape), dtype=dtype)
        return np.array(self._mapped(field)[rows])

    def fill(self, rows: np.ndarray, compute: Callable[[np.ndarray], Iterable[Block]]) -> None:
        """Make `rows` be there. `compute` gets those missing, sorted, and yields them in blocks.

        What it yields before it raises stays. Raises CacheError on a folder that cannot be made
        or written.
        """
        wanted = np.unique(rows)
        if self.filled()[wanted].all():
            return  # needs no lock, so a full cache may lie on a read-only disk
        self._check_writable()
        with self._locked():
            mask = self.filled()
            missing = wanted[~mask[wanted]]
            if len(missing) == 0:
                return
            self._create()
            for numbers, values in compute(missing):
                self._write(numbers, values)
                mask[numbers] = True
                told = io.BytesIO()
                np.save(told, mask)
                write_whole(self._mask, told.getvalue())
            if not mask[missing].all():
                raise ValueError(f"{int((~mask[missing]).sum())} rows were not computed")

    @property
    def _mask(self) -> Path:
        return self.folder / "filled.npy"

    def _data(self, field: str) -> Path:
        return self.folder / f"{field}.bin"

    def _mapped(self, field: str) -> np.ndarray:
        shape, dtype = self.fields[field]
        try:
            return np.memmap(self._data(field), dtype=dtype, mode="r", shape=(self.rows, *shape))
        except ValueError as error:
            raise CacheError(f"{self._data(field)} is damaged; delete {self.folder}") from error

    def _check_writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise CacheError(
                f"cannot write the cache {self.folder} ({error.strerror}); set HANDCLIP_CACHE to a"
                " folder that can be written"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=_PATIENCE)
        except filelock.Timeout:
            print(f"waiting for another process that fills {self.folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _create(self) -> None:
        """Files of full length that take no room yet."""
        for field, (shape, dtype) in self.fields.items():
            path = self._data(field)
            length = self.rows * int(np.prod(shape)) * np.dtype(dtype).itemsize
            if path.is_file() and path.stat().st_size == length:
                continue
            if self._mask.is_file():
                raise CacheError(f"{path} is damaged: delete the folder {self.folder}")
            with path.open("wb") as file:
                file.truncate(length)

    def _write(self, numbers: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        # plain writes, not a writable map: on a full disk they raise where a map kills the process
        for field, (shape, dtype) in self.fields.items():
            block = np.ascontiguousarray(values[field], dtype=dtype)
            if block.shape != (len(numbers), *shape):
                raise ValueError(f"{field}: expected {(len(numbers), *shape)}, got {block.shape}")
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            with self._data(field).open("r+b") as file:
                for number, row in zip(numbers, block, strict=True):
                    file.seek(int(number) * size)
                    file.write(row.tobytes())
                file.flush()
                os.fsync(file.fileno())
