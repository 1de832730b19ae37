"""The pre-training pool: drawn persons of their own set, as pixels and attribute codes in RAM.

A person is a shard in the cache folder, so that drawing goes on where it was stopped; the shards
are joined to one memory map. The folder's name is the hash of what decides the pixels.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from PIL import Image
from tqdm.auto import tqdm

import handclip_lib.data.drawn as drawn
from handclip_lib.aspects import CHAIN
from handclip_lib.data.drawn.dataset import GENERATOR
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.params import cache_dir
from handclip_lib.train.captions import codes

PERSONS = 1040  # 1,000 train, 40 judge the settings
SET = "pretrain"  # its persons are nobody else's: see `check_disjoint`
SIZE = 144  # pixels: larger than any tower's, so that augmentation may crop and turn
FRAME = (400, 300)  # pixels the hand is drawn at, 4:3; the crop shrinks it to SIZE anyway


@dataclass(frozen=True)
class Pool:
    """pixels (N, 144, 144, 3) uint8 memory map; codes (N, 7) int8; person and aspect (N,) int.

    key: hash of what decided them.
    """

    key: str
    pixels: np.ndarray
    codes: np.ndarray
    person: np.ndarray
    aspect: np.ndarray

    def rows(self, persons: np.ndarray) -> np.ndarray:
        """Indices of these persons' pictures."""
        return np.flatnonzero(np.isin(self.person, persons))


def shots_of(index: int) -> list[tuple[int, bool, bool]]:
    """(shot, accessories, nail polish) of a person's pictures of one aspect: eight, or three.

    Three persons in ten have eight: variety of persons and variety within a person.
    """
    if is_deep(index):
        return [(k, k in (5, 6), k in (4, 6)) for k in range(8)]
    worn, polished = index % 8 in (1, 2, 3), index % 8 in (3, 5)
    return [(0, False, False), (1, worn, polished), (2, False, polished and not worn)]


def is_deep(index: int) -> bool:
    """Whether this person has eight pictures of an aspect, enough to learn an identity from."""
    return index % 10 < 3


def check_disjoint(persons: int) -> None:
    """ValueError if a pool person is a person of a data set (seeds 0-9, 2,000 each)."""
    mine = {drawn.person_seed(SET, 0, k) for k in range(persons)}
    for seed in range(10):
        theirs = {drawn.person_seed("drawn", seed, k) for k in range(2000)}
        if mine & theirs or len(mine) != persons:
            raise ValueError(f"pre-training persons are also in the drawn data set, seed {seed}")


def open_pool(persons: int, workers: int = 2) -> Pool:
    """The pool of so many persons, drawn into the cache folder where it isn't there yet."""
    check_disjoint(persons)
    key = _key(persons)
    folder = cache_dir() / "pretrain" / key
    if not (folder / "pixels.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        missing = [k for k in range(persons) if not _shard(folder, k).is_file()]
        jobs = (delayed(_draw_person)(_shard(folder, k), k) for k in missing)
        done = Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
        for _ in tqdm(done, total=len(missing), desc="drawing the pre-training pool"):
            pass
        _join(folder, persons)
    table = np.load(folder / "table.npz")
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Pool(key, pixels, table["codes"], table["person"], table["aspect"])


def _key(persons: int) -> str:
    """Hash of the plan, the sizes and the generator's version."""
    plan = [shots_of(k) for k in range(10)]
    told = json.dumps([SET, SIZE, FRAME, plan, GENERATOR, persons])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _shard(folder: Path, index: int) -> Path:
    return folder / f"person{index:05d}.npz"


def _draw_person(path: Path, index: int) -> None:
    person = drawn.make_person(drawn.person_seed(SET, 0, index))
    fit = Preprocess((SIZE, SIZE), "hand", (0.5,) * 3, (0.5,) * 3)
    pixels, rows, aspects = [], [], []
    for number, aspect in enumerate(CHAIN):
        for shot, worn, polish in shots_of(index):
            picture = drawn.draw_hand(
                person, aspect, shot, accessories=worn, nail_polish=polish, size=FRAME
            )
            pixels.append(fit.fit_image(Image.fromarray(picture))[0])
            rows.append(codes(drawn.caption_attributes(person, aspect, worn, polish)))
            aspects.append(number)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, pixels=np.stack(pixels), codes=np.stack(rows), aspect=np.array(aspects))
    os.replace(part, path)


def _join(folder: Path, persons: int) -> None:
    """One memory map of all shards; the shards go when it is whole."""
    tables = [np.load(_shard(folder, k)) for k in range(persons)]
    counts = [len(t["aspect"]) for t in tables]
    part = folder / "pixels.part"
    shape = (sum(counts), SIZE, SIZE, 3)
    pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    for start, table in zip(np.cumsum([0, *counts]), tables, strict=False):
        pixels[start : start + len(table["aspect"])] = table["pixels"]
    pixels.flush()
    with (folder / "table.part").open("wb") as file:
        np.savez(
            file,
            codes=np.concatenate([t["codes"] for t in tables]),
            aspect=np.concatenate([t["aspect"] for t in tables]),
            person=np.repeat(np.arange(persons), counts),
        )
    os.replace(folder / "table.part", folder / "table.npz")
    os.replace(part, folder / "pixels.npy")
    for k in range(persons):
        _shard(folder, k).unlink()
