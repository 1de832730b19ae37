"""What every reader checks: the shape of a CSV, and that each photograph is there and whole."""

import csv
import io
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from PIL import Image, UnidentifiedImageError

from handclip_lib.aspects import ASPECTS, BY_METADATA
from handclip_lib.data.drawn.dataset import COMMENT, MARKER, laboratory_of
from handclip_lib.schema_base import did_you_mean

DRAWN = "drawn hands (demonstration)"
MAX_LINES = 50  # of a list of problems that a message shows; the exception holds all


class TableError(ValueError):
    """A data set that can't be used as it is. `problems`: every finding, one line each."""

    def __init__(self, summary: str, problems: Iterable[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__("\n  ".join([summary, *listed(self.problems, MAX_LINES)]))


def listed(names: Iterable[object], n: int) -> list[str]:
    """The first n names, and how many more there are: to be joined into a message."""
    texts = [str(name) for name in names]
    return texts[:n] + ([f"… and {len(texts) - n} more"] if len(texts) > n else [])


def source_of(table: pd.DataFrame) -> Path:
    """What a table was read from: its folder, or the CSV of own photographs."""
    return Path(table.attrs.get("source", table.attrs["root"])).resolve()


def finish(
    rows: Sequence[Mapping[str, object]],
    root: Path,
    title: str,
    problems: Sequence[str] = (),
    read_as: str = "",
) -> pd.DataFrame:
    """The table of `rows` with its root and title, or TableError with all problems together.

    Drawn hands never pass for photographs: their title is DRAWN, their laboratory where it is not
    the white table, and `read_as`; their `dataset` is `drawn`, but stays `own` in an own set.
    """
    if problems:
        raise TableError(f"{root}: {quantity(len(problems), 'problem')}", problems)
    if not rows:
        raise TableError(f"{root}: no photographs in it")
    table = pd.DataFrame(rows)
    if _is_drawn(root, table["image"]):
        title = DRAWN + _where(root) + read_as
        # Their numbers are no persons of 11k or HD; own ones are numbered by whoever wrote them
        table = table.replace({"dataset": {"11k": "drawn", "HD": "drawn"}})
    table.attrs = {"root": str(root), "title": title}
    return table


def _is_drawn(root: Path, images: Iterable[str]) -> bool:
    """Whether our generator's marker lies in root, or its comment in the first readable image."""
    if (root / MARKER).is_file():
        return True
    for image in images:
        try:
            with Image.open(root / image) as picture:
                return picture.info.get("comment") == COMMENT
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # what is wrong with it is said by check_images
    return False


def _where(root: Path) -> str:
    """`, other laboratory` of hands that were not drawn on the white table."""
    spec = json.loads((root / MARKER).read_text("utf-8")) if (root / MARKER).is_file() else {}
    return f", {laboratory_of(spec)} laboratory" if "laboratory" in spec else ""


def sample(rows: Sequence[Mapping[str, object]]) -> str:
    """`12 persons, 80 photographs`: how much of a data set this is."""
    persons = len({row["pid"] for row in rows})
    return f"{quantity(persons, 'person')}, {quantity(len(rows), 'photograph')}"


def quantity(n: int, word: str) -> str:
    """`1 person`, `2 persons`."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def image_suffixes() -> set[str]:
    """Lower-case suffixes of the picture formats that Pillow reads."""
    return {s for s, form in Image.registered_extensions().items() if form in Image.OPEN}


def aspect_of(text: str) -> str | None:
    """The aspect meant by `dorsal_r` or 11k's `dorsal right`; None for neither."""
    name = text.strip().lower()
    return name if name in ASPECTS else BY_METADATA.get(name)


def read_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV (comma, semicolon or tab; BOM, quotes, CRLF or LF) with their line numbers.

    Cells come stripped. Raises TableError for an empty file, a column that is missing, a row
    with more cells than columns, and text that is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    first = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    columns = [cell.strip() for cell in next(lines, [])]
    for column in needed:
        if column not in columns:
            raise TableError(
                f"{path}: no column '{column}'{did_you_mean(column, columns)};"
                f" it has {', '.join(columns) or 'nothing'}, and {', '.join(needed)} are needed"
            )
    for cells in lines:
        if len(cells) > len(columns):
            raise TableError(
                f"{path} row {lines.line_num}: {len(cells)} cells for {len(columns)} columns;"
                " quote cells that contain the separator"
            )
        if cells:
            padded = [c.strip() for c in cells] + [""] * (len(columns) - len(cells))
            yield lines.line_num, dict(zip(columns, padded, strict=True))


def relative(image: str, root: Path) -> str:
    """A path of a table as one from root, absolute ones and those with backslashes, too."""
    return Path(os.path.relpath(root / image.replace("\\", "/"), root)).as_posix()


def pictures(root: Path, more: Collection[str] = ()) -> list[str]:
    """Paths under root with a picture's suffix, folders so named included, sorted.

    Hidden ones are left out; links are followed, but not in circles. more: suffixes, besides those
    that Pillow reads.
    """
    suffixes = {*image_suffixes(), *more}
    found = (path for path in _below(root) if path.suffix.lower() in suffixes)
    return [path.relative_to(root).as_posix() for path in found]


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    within = above | {os.path.realpath(folder)}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        yield path
        if path.is_dir() and os.path.realpath(path) not in within:
            yield from _below(path, within)


def empty_cells(row: int, cells: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    """A problem for each of `columns` that this row leaves empty."""
    return [f"row {row}: the cell '{c}' is empty" for c in columns if not cells[c]]


def repeated(rows: Iterable[tuple[int, str]]) -> list[str]:
    """A problem for each image that an earlier row already named."""
    seen: dict[str, int] = {}
    return [
        f"row {row}: image {image} is there twice, first in row {seen[image]}"
        for row, image in rows
        if seen.setdefault(image, row) != row
    ]


def check_images(root: Path, images: Sequence[tuple[str, str]]) -> list[str]:
    """Problems of (where, image path under root): missing, empty, unreadable, cut off.

    Reads header and end of each file, and decodes only what ends oddly: 11,000 photographs take
    seconds. Damage in the middle of a file shows when the pixels are decoded.
    """
    Image.init()  # the plugins, before several threads would load them
    with ThreadPoolExecutor(max_workers=16) as pool:
        faults = pool.map(lambda item: _fault(root / item[1]), images)
        return [
            f"{where}{image} {fault}"
            for (where, image), fault in zip(images, faults, strict=True)
            if fault
        ]


def _fault(path: Path) -> str | None:
    if path.is_dir():
        return "is a folder, not a photograph"
    try:
        with path.open("rb") as file:
            return _damage(file)
    except FileNotFoundError:
        return "is missing"
    except PermissionError:
        return "can't be read: check its permissions"


def _damage(file: BinaryIO) -> str | None:
    try:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return "is empty (0 bytes)"
        file.seek(max(0, size - 12))
        end = file.read()
        file.seek(0)
        with Image.open(file) as image:
            if not _ends_well(image.format, end):
                image.load()
    except UnidentifiedImageError:
        return "is not a picture that Pillow can read"
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        return f"is cut off or damaged ({error})"
    except Image.DecompressionBombError as error:
        return f"is too large ({error})"
    return None


def _ends_well(form: str | None, end: bytes) -> bool:
    if form in ("JPEG", "MPO"):
        return end.endswith(b"\xff\xd9")  # end-of-image marker
    return form == "PNG" and b"IEND" in end
