"""A folder of drawn hands in the layout of 11k Hands (HandInfo.csv, Hands/*.jpg) or of HD."""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from handclip_lib.aspects import ASPECTS
from handclip_lib.data.atomic import write_whole
from handclip_lib.data.drawn.draw import draw_hand, draw_mask
from handclip_lib.data.drawn.laboratory import LABORATORIES
from handclip_lib.data.drawn.person import stream
from handclip_lib.data.drawn.plan import Picture, plan

GENERATOR = 1  # raise it whenever a pixel changes: a folder of another version is refused
MARKER = "drawn.json"
BEGUN = "drawn.begun.json"
COMMENT = b"drawn by HandCLIP, not a photograph"  # in every picture, wherever it is taken
COLUMNS = (
    "id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName",
    "irregularities",
)  # fmt: skip
QUOTED = ("id", "gender", "skinColor", "aspectOfHand", "imageName")
README_HD = """Hands drawn by HandCLIP, no photographs, in the folders of HKPolyU Hand Dorsal.

Every picture shows the back of a right hand; its name begins with the number of the person.
"""


def draw_dataset(
    root: Path,
    persons: int = 40,
    seed: int = 0,
    shots: tuple[int, int] = (8, 12),
    workers: int | None = None,
    progress: bool = True,
    layout: str = "11k",
    laboratory: str = "white_table",
) -> Path:
    """Draws `persons` people into root and returns root; does nothing where that is done.

    shots: fewest and most plain pictures per person and aspect; pictures with accessories come
    besides. A run that was stopped goes on where it stopped. workers: processes (None: one per
    CPU). layout: 11k or hd, see `plan`; laboratory: one of LABORATORIES. ValueError where root
    holds another set, or anything that isn't drawn hands.
    """
    root = Path(root)
    spec: dict[str, Any] = {"kind": "drawn hands", "generator": GENERATOR, "seed": seed}
    spec |= {"persons": persons, "shots": list(shots)}
    spec |= {"layout": layout} if layout != "11k" else {}
    spec |= {"laboratory": laboratory} if laboratory != "white_table" else {}
    if persons < 1 or not 1 <= shots[0] <= shots[1]:
        raise ValueError(
            f"persons={persons}, shots={shots}: at least one person, and photographs of a hand from"
            " 1 on, the fewest before the most"
        )
    if _is_this(root / MARKER, spec):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):  # two notebooks may want it at once
        if not _is_done(root, spec):
            _draw_missing(root, spec, workers, progress)
    return root


def _draw_missing(root: Path, spec: dict[str, Any], workers: int | None, progress: bool) -> None:
    """Everything of the set that is not on disk yet; the marker last."""
    rows = _planned(spec)
    root.mkdir(exist_ok=True)
    write_whole(root / BEGUN, json.dumps(spec).encode())  # first: it says whose folder this is
    for folder in {(root / row.image).parent for row in rows}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [row for row in rows if not (root / row.image).exists()]
    draw = partial(_save, root, laboratory_of(spec))
    _save_all(draw, missing, workers or os.cpu_count() or 1, progress)
    if "layout" in spec:
        write_whole(root / "README.txt", README_HD.encode())
    else:
        _write_table(root, rows)
    os.replace(root / BEGUN, root / MARKER)


def masks_of(root: Path, images: Sequence[str]) -> list[np.ndarray]:
    """Where the hand is in pictures of a drawn set: (H, W) float32 each, as `draw_mask` says.

    images: names as in the table; nothing is stored. Raises FileNotFoundError where root is no
    drawn set, ValueError on another generator's and on names that the set has not.
    """
    spec = json.loads((root / MARKER).read_text(encoding="utf-8"))
    if spec["generator"] != GENERATOR:
        raise ValueError(f"{root} was drawn by another generator: {spec}; draw it again")
    rows = {row.image: row for row in _planned(spec)}
    unknown = [image for image in images if image not in rows]
    if unknown:
        raise ValueError(f"{root} has no picture {unknown[0]} ({len(unknown)} unknown)")
    mask = partial(draw_mask, laboratory=laboratory_of(spec))
    told = [rows[image] for image in images]
    return [mask(r.person, r.aspect, r.shot, accessories=r.accessories) for r in told]


def laboratory_of(spec: Mapping[str, Any]) -> str:
    """The laboratory of a set by what its marker holds; the white table where it says none."""
    return str(spec.get("laboratory", "white_table"))


def _planned(spec: Mapping[str, Any]) -> list[Picture]:
    """The pictures of the set that a marker tells."""
    told = spec["persons"], spec["seed"], tuple(spec["shots"])
    return plan(*told, spec.get("layout", "11k"), laboratory_of(spec))


def _is_done(root: Path, spec: dict[str, Any]) -> bool:
    """True if root holds this very set; ValueError if it holds anything but a part of it."""
    if _is_this(root / MARKER, spec):
        return True
    if _is_this(root / BEGUN, spec) or not root.exists():
        return False
    if any(path.suffix != ".part" for path in root.iterdir()):
        raise ValueError(
            f"{root} isn't empty and holds no drawn hands; name another folder, or empty this one"
        )
    return False


def _is_this(path: Path, spec: dict[str, Any]) -> bool:
    """Whether this marker is there; ValueError if it is another set's."""
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != spec:
        raise ValueError(
            f"{path.parent} holds other drawn hands: {found}, asked for: {spec}; "
            "name another folder, or delete this one"
        )
    return True


def _save_all(
    draw: Callable[[Picture], None], rows: list[Picture], workers: int, progress: bool
) -> None:
    """Draws the rows, in this process if there is one worker."""

    def bar(done: Iterable[Any]) -> Iterable[Any]:
        return tqdm(done, total=len(rows), desc="drawing hands", disable=not progress)

    if workers == 1 or len(rows) < 2:
        for row in bar(rows):
            draw(row)
        return
    # A forked worker starts at once; a spawned one imports all of torch for a few pictures.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(rows)), mp_context=context) as pool:
        for _ in bar(pool.map(draw, rows, chunksize=4)):
            pass


def _save(root: Path, laboratory: str, row: Picture) -> None:
    """Draws one picture and writes it under a temporary name first."""
    pixels = draw_hand(
        row.person,
        row.aspect,
        row.shot,
        accessories=row.accessories,
        nail_polish=row.nail_polish,
        irregular=row.irregular,
        laboratory=laboratory,
    )
    between = LABORATORIES[laboratory].quality
    quality = int(stream(row.person.seed, row.aspect, row.shot, "jpeg").integers(*between))
    part = root / f"{row.image.replace('/', ' ')}.part"
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(part, format="JPEG", quality=quality, comment=COMMENT)
    os.replace(part, root / row.image)


def _write_table(root: Path, rows: list[Picture]) -> None:
    """HandInfo.csv with 11k's columns, quoting, zero-padded ids and line ends."""
    lines = [",".join(COLUMNS)]
    for row in rows:
        person = row.person
        values = (f"{row.pid:07d}", person.age, person.gender, person.skin_color)
        flags = (int(row.accessories), int(row.nail_polish))
        rest = (ASPECTS[row.aspect].metadata, row.name, int(row.irregular))
        cells = zip(COLUMNS, (*values, *flags, *rest), strict=True)
        lines.append(",".join(f'"{v}"' if name in QUOTED else str(v) for name, v in cells))
    write_whole(root / "HandInfo.csv", ("\r\n".join(lines) + "\r\n").encode())
