"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview) -> Path:
    """Write `data` under a name of its own, to the disk, then rename it to `path`.

    A kill at any moment leaves the old file, or none; at worst a `NAME.<process>.part` beside it.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path
