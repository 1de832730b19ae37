"""How far models can be trusted with bad photographs: scores, curves, and what was done to them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
from PIL import Image

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.spoil import KINDS, Picture, common, spoil
from handclip_lib.data.store import open_store
from handclip_lib.evaluate import embed, robustness
from handclip_lib.models.clip import Encoder
from handclip_lib.report.lineup import Contender
from handclip_lib.report.spaces import Space
from handclip_lib.schema import Params


@dataclass(frozen=True)
class _Tower:
    encoder: Encoder
    gallery_of: Callable[[Sequence[str]], np.ndarray]
    mirrored: frozenset[str]


def spoiled(
    models: Sequence[Contender],
    spaces: Mapping[str, Space],
    manifest: pd.DataFrame,
    table: pd.DataFrame,
    p: Params,
    fabric: lf.Fabric,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{model: {kind of `data.spoil.KINDS`: `robustness.curve`}} on the own gallery.

    `p.comparison.spoiled_queries` of each person are spoiled before a tower fits them to its size,
    so that every tower gets the same evidence; galleries stay as they are. A level also tells
    `hand_found`: the share of pictures in which `fit: hand` found one. A kind that can be done to
    the photographs of fewer than two persons is left out, which is printed.
    """
    asked = robustness.asked(manifest, p.comparison.spoiled_queries)
    names = asked.loc[asked["split"] == "query", "image"].unique().tolist()
    towers = {one.name: _tower(one, spaces[one.name], table, p) for one in models}
    boots = (p.evaluation.bootstrap, p.seed)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in towers}
    with ThreadPoolExecutor() as pool:
        pictures = dict(zip(names, pool.map(read, [_path(table, n) for n in names]), strict=True))
        clean = _answered(towers, asked, table, pictures, p, fabric, pool)
        for kind, told in KINDS.items():
            answers = {0: clean}
            for level in range(1, len(told.levels) + 1):
                some = _spoiled(pictures, kind, level, pool)
                if asked.loc[asked["image"].isin(set(some)), "pid"].nunique() < 2:
                    print(f"{told.words} is left out: it could be done to too few photographs")
                    break
                answers[level] = _answered(towers, asked, table, some, p, fabric, pool)
            else:
                for name in towers:
                    of_level = {at: frames[name] for at, frames in answers.items()}
                    found[name][kind] = robustness.curve(of_level, *boots)
    return found


def read(path: Path) -> Picture:
    """A photograph as it is before it is spoiled: `data.spoil.common`."""
    with Image.open(path) as image:
        return common(image)


def _path(table: pd.DataFrame, name: str) -> Path:
    return Path(table.attrs["root"]) / name


def _tower(one: Contender, space: Space, table: pd.DataFrame, p: Params) -> _Tower:
    encoder = one.encoder(p)
    return _Tower(encoder, space.of, open_store(table, encoder.preprocess).mirrored)


def _spoiled(
    pictures: Mapping[str, Picture], kind: str, level: int, pool: ThreadPoolExecutor
) -> dict[str, Picture]:
    """The pictures at a level of a kind, without those to which it cannot be done."""
    made = pool.map(lambda item: spoil(item[1], kind, level, item[0]), pictures.items())
    return {n: picture for n, picture in zip(pictures, made, strict=True) if picture is not None}


def _answered(
    towers: Mapping[str, _Tower],
    asked: pd.DataFrame,
    table: pd.DataFrame,
    pictures: Mapping[str, Picture],
    p: Params,
    fabric: lf.Fabric,
    pool: ThreadPoolExecutor,
) -> dict[str, pd.DataFrame]:
    """{model: `robustness.answers` of the pictures}."""
    names, told = list(pictures), p.evaluation
    rows = table.set_index("image", drop=False).loc[names]
    fitted: dict[Preprocess, tuple[np.ndarray, list[bool]]] = {}
    answers = {}
    for name, tower in towers.items():
        way = tower.encoder.preprocess
        if way not in fitted:
            seen = list(pool.map(way.fit_image, pictures.values()))
            left = [picture in tower.mirrored for picture in names]
            pixels = [
                s[:, ::-1] if is_left else s for (s, _), is_left in zip(seen, left, strict=True)
            ]
            fitted[way] = np.stack(pixels), [was_found for _, was_found in seen]
        pixels_, found = fitted[way]
        raw = embed.embed_pixels(tower.encoder, pixels_, rows, fabric, told.batch_size)
        z = embed.retrieval_features(raw, told.feature)
        answers[name] = robustness.answers(asked, tower.gallery_of, names, z, found)
    return answers


def examples(table: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, list[np.ndarray | None]]:
    """{kind: pixels (h, w, 3) uint8 at each level, from 0} of one query, for `sheet`.

    It is the first photograph, by name, of the first person who is asked for. None where a kind
    cannot be done to it.
    """
    queries = manifest[manifest["split"] == "query"].sort_values(["pid", "image"])
    name = str(queries["image"].iloc[0])
    picture = read(_path(table, name))
    made = {
        kind: [spoil(picture, kind, level, name) for level in range(len(told.levels) + 1)]
        for kind, told in KINDS.items()
    }
    return {kind: [None if m is None else np.asarray(m) for m in of] for kind, of in made.items()}
