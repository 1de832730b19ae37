"""A folder of drawn hands in the layout of 11k Hands: HandInfo.csv and Hands/*.jpg."""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data.atomic import write_whole
from handclip_lib.data.drawn.draw import draw_hand, draw_mask
from handclip_lib.data.drawn.person import Person, make_person, person_seed, stream

GENERATOR = 1  # raise it whenever a pixel changes: a folder of another version is refused
MARKER = "drawn.json"
BEGUN = "drawn.begun.json"
COMMENT = b"drawn by HandCLIP, not a photograph"  # in every picture, wherever it is taken
COLUMNS = (
    "id", "age", "gender", "skinColor", "accessories", "nailPolish", "aspectOfHand", "imageName",
    "irregularities",
)  # fmt: skip
QUOTED = ("id", "gender", "skinColor", "aspectOfHand", "imageName")


@dataclass(frozen=True)
class Picture:
    """One row of HandInfo.csv and what it takes to draw it."""

    pid: int
    person: Person
    aspect: str
    shot: int
    number: int
    accessories: bool
    nail_polish: bool
    irregular: bool

    @property
    def name(self) -> str:
        """The file name, as 11k Hands numbers its own."""
        return f"Hand_{self.number:07d}.jpg"


def draw_dataset(
    root: Path,
    persons: int = 40,
    seed: int = 0,
    shots: tuple[int, int] = (8, 12),
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draws `persons` people into root and returns root; does nothing where that is done.

    shots: fewest and most plain pictures per person and aspect; pictures with accessories come
    besides. A run that was stopped goes on where it stopped. workers: processes (None: one per
    CPU). ValueError where root holds another set, or anything that isn't drawn hands.
    """
    root = Path(root)
    spec = {"kind": "drawn hands", "generator": GENERATOR, "seed": seed}
    spec |= {"persons": persons, "shots": list(shots)}
    if persons < 1 or not 1 <= shots[0] <= shots[1]:
        raise ValueError(
            f"persons={persons}, shots={shots}: need persons >= 1 and 1 <= low <= high"
        )
    if _is_this(root / MARKER, spec):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):  # two notebooks may want it at once
        if not _is_done(root, spec):
            _draw_missing(root, spec, plan(persons, seed, shots), workers, progress)
    return root


def _draw_missing(
    root: Path,
    spec: dict[str, object],
    rows: list[Picture],
    workers: int | None,
    progress: bool,
) -> None:
    """Everything of the set that is not on disk yet; the marker last."""
    root.mkdir(exist_ok=True)
    write_whole(root / BEGUN, json.dumps(spec).encode())  # first: it says whose folder this is
    (root / "Hands").mkdir(exist_ok=True)
    missing = [row for row in rows if not (root / "Hands" / row.name).exists()]
    _save_all(root, missing, workers or os.cpu_count() or 1, progress)
    _write_table(root, rows)
    os.replace(root / BEGUN, root / MARKER)


def plan(persons: int, seed: int, shots: tuple[int, int]) -> list[Picture]:
    """All pictures of a set in the order of the table; a person's don't depend on later ones."""
    rows: list[Picture] = []
    pid, number = 0, 1
    for index in range(persons):
        person = make_person(person_seed("drawn", seed, index))
        rng = stream(person.seed, "plan", *shots)
        pid += int(rng.integers(1, 9)) + (400 if rng.random() < 0.04 else 0)
        polish = person.gender == "female" and rng.random() < 0.25
        wears, irregular = rng.random() < 0.75, rng.random() < 0.03
        for aspect in CHAIN:
            plain = int(rng.integers(shots[0], shots[1] + 1))
            worn = max(1, round(plain * rng.uniform(0.2, 0.5))) if wears else 0
            for shot in range(plain + worn):
                number += 1 + (int(rng.integers(1, 5)) if rng.random() < 0.05 else 0)
                rows.append(
                    Picture(pid, person, aspect, shot, number, shot >= plain, polish, irregular)
                )
    return rows


def masks_of(root: Path, images: Sequence[str]) -> list[np.ndarray]:
    """Where the hand is in pictures of a drawn set: (H, W) float32 each, as `draw_mask` says.

    images: names as in the table; nothing is stored. Raises FileNotFoundError where root is no
    drawn set, ValueError on another generator's and on names that the set has not.
    """
    spec = json.loads((root / MARKER).read_text(encoding="utf-8"))
    if spec["generator"] != GENERATOR:
        raise ValueError(f"{root} was drawn by another generator: {spec}; draw it again")
    rows = {row.name: row for row in plan(spec["persons"], spec["seed"], tuple(spec["shots"]))}
    unknown = [image for image in images if Path(image).name not in rows]
    if unknown:
        raise ValueError(f"{root} has no picture {unknown[0]} ({len(unknown)} unknown)")
    told = [rows[Path(image).name] for image in images]
    return [draw_mask(r.person, r.aspect, r.shot, accessories=r.accessories) for r in told]


def _is_done(root: Path, spec: dict[str, object]) -> bool:
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


def _is_this(path: Path, spec: dict[str, object]) -> bool:
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


def _save_all(root: Path, rows: list[Picture], workers: int, progress: bool) -> None:
    """Draws the rows, in this process if there is one worker."""

    def bar(done: Iterable[Any]) -> Iterable[Any]:
        return tqdm(done, total=len(rows), desc="drawing hands", disable=not progress)

    if workers == 1 or len(rows) < 2:
        for row in bar(rows):
            _save(root, row)
        return
    # A forked worker starts at once; a spawned one imports all of torch for a few pictures.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(rows)), mp_context=context) as pool:
        for _ in bar(pool.map(_save, [root] * len(rows), rows, chunksize=4)):
            pass


def _save(root: Path, row: Picture) -> None:
    """Draws one picture and writes it under a temporary name first."""
    pixels = draw_hand(
        row.person,
        row.aspect,
        row.shot,
        accessories=row.accessories,
        nail_polish=row.nail_polish,
        irregular=row.irregular,
    )
    quality = int(stream(row.person.seed, row.aspect, row.shot, "jpeg").integers(80, 96))
    part = root / f"{row.name}.part"
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(part, format="JPEG", quality=quality, comment=COMMENT)
    os.replace(part, root / "Hands" / row.name)


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
