"""Published results with their protocol: to be read beside the kit's own, in a table of their own.

`published.csv` holds them as printed, per cent. The draws of no publication are known, so that none
of these numbers was measured on the galleries of this kit. Figures of MBA-Net and the methods it
compares with were taken from a transcription of the paper's tables.
"""

from functools import cache
from pathlib import Path

import pandas as pd

_FILE = Path(__file__).with_name("published.csv")
_PRINTED = ["rank1", "rank5", "rank10", "map"]
_COLUMNS = [
    *("method", "trained", "dataset", "aspect", "gallery", "entries", "ap"),
    *(*_PRINTED, "map_trapezoid", "source", "notes"),
]


def published(dataset: str, aspect: str) -> pd.DataFrame:
    """Published results on one aspect of a data set; no rows where there are none.

    Columns `method`, `trained` (data and aspect, empty: not trained on hands), `dataset, aspect`,
    `gallery` (own or all) with `entries`, `ap` (the definition of average precision it was
    published under), `rank1, rank5, rank10` (0–1, NaN: not given), `map` and `map_trapezoid`, one
    of which is as printed and the other derived from it, `source`, `notes`. With one match a query
    the trapezoid's mean is exactly (rank-1 + mAP) / 2; elsewhere the other definition is NaN. A row
    without an aspect is of the whole data set. dataset: as in tables (`11k`, `HD`).
    """
    frame = _rows()
    chosen = (frame["dataset"] == dataset) & frame["aspect"].isin((aspect, ""))
    return frame[chosen].reset_index(drop=True)


def elsewhere(dataset: str) -> pd.DataFrame:
    """As `published`: what was trained on that data set and tested on another, any aspect."""
    frame = _rows()
    chosen = frame["trained"].str.startswith(f"{dataset} ") & (frame["dataset"] != dataset)
    return frame[chosen].reset_index(drop=True)


@cache
def _rows() -> pd.DataFrame:
    """All rows of the file, 0–1, with both definitions of mAP."""
    frame = pd.read_csv(_FILE, keep_default_na=False, na_values={c: "" for c in _PRINTED})
    frame[_PRINTED] /= 100
    first, printed = frame["rank1"], frame["map"]
    standard = frame["ap"] == "standard"
    other = (2 * printed - first).where(~standard, (first + printed) / 2)
    other = other.where(frame["matches"] == 1)
    frame["map"] = printed.where(standard, other)
    frame["map_trapezoid"] = other.where(standard, printed)
    return frame[_COLUMNS]
