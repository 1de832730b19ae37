"""What a killed run goes on from: one file beside the checkpoints, there whole or not at all."""

import glob
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from handclip_lib.data.atomic import write_whole

_FORMAT = 1


def write_state(path: Path, key: str, state: dict[str, Any]) -> Path:
    """Write tensors and plain values under `path`; `key` says whose they are.

    A kill at any moment leaves the file as it was before.
    """
    buffer = io.BytesIO()
    torch.save({"resume_format": _FORMAT, "key": key} | state, buffer)
    return write_whole(path, buffer.getbuffer())


def read_state(path: Path, key: str) -> dict[str, Any] | None:
    """What `write_state` wrote with this key, on the CPU; None where it is not there.

    A file that cannot be read, or has another key, is said in one line and not used.
    """
    if not path.is_file():
        return None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        told = (held["resume_format"], held["key"])
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        pickle.UnpicklingError,
    ) as bad:
        print(f"{path.name}: cannot be read ({type(bad).__name__}); starting anew")
        return None
    if told != (_FORMAT, key):
        print(f"{path.name}: of other parameters, data or code; starting anew")
        return None
    state: dict[str, Any] = held
    return state


def remove_files(*paths: Path) -> None:
    """Remove these files, where they are there, and what kills have left half-written of them."""
    for path in paths:
        for found in (path, *_parts(path)):
            found.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what kills have left half-written of `path`, not the file itself."""
    for found in _parts(path):
        found.unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*.part"))
