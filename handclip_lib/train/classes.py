"""What a class is, where a classifier tells identities apart: a person, a hand, or a view of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from handclip_lib.aspects import CHAIN, LEFT

_Name = tuple[int, str]  # the person, and which part of him


@dataclass(frozen=True)
class Classes:
    """The identities of a classifier in the order of their labels, 0 … C - 1.

    kind: `split.identity`; names: (person, ""), (person, side) or (person, aspect), rising.
    """

    kind: str
    names: tuple[_Name, ...]

    def __len__(self) -> int:
        return len(self.names)

    def labels(self, rows: pd.DataFrame) -> np.ndarray:
        """(N,) int: the class of each row of a manifest, -1 for who is none of them."""
        place = {name: label for label, name in enumerate(self.names)}
        return np.array([place.get(name, -1) for name in _names(self.kind, rows)], dtype=np.int64)


def classes_of(kind: str, manifests: Iterable[pd.DataFrame]) -> Classes:
    """The classes that the training images of some manifests have, with those shown again."""
    names = set[_Name]()
    for manifest in manifests:
        names |= set(_names(kind, manifest[manifest["split"].isin(("train", "replay"))]))
    return Classes(kind, tuple(sorted(names)))


def _names(kind: str, rows: pd.DataFrame) -> list[_Name]:
    people, aspects = rows["pid"].tolist(), rows["aspect"].tolist()
    return [(int(pid), _part(kind, str(a))) for pid, a in zip(people, aspects, strict=True)]


def _part(kind: str, aspect: str) -> str:
    if kind == "person":
        return ""
    if kind == "aspect_hand" or aspect not in CHAIN:
        return aspect
    return "left" if aspect in LEFT else "right"
