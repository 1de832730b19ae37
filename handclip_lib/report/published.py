"""Published results with their protocol: to be read beside the kit's own, in a table of their own.

`published.csv` holds them as printed, per cent. The draws of no publication are known, so that none
of these numbers was measured on the galleries of this kit. Figures of MBA-Net and the methods it
compares with were taken from a transcription of the paper's tables.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.report.page import GALLERIES

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


def published_table(dataset: str, aspect: str) -> pd.DataFrame:
    """`published` for readers: a row a method, by gallery, the best rank-1 first, in per cent.

    Below them what was trained on that data set and tested on another, any aspect. An mAP that was
    derived is in brackets. Of a method with versions (`… v5, …`) the best stands for all, with
    their number and their range in the notes.
    """
    away = _rows()
    away = away[away["trained"].str.startswith(f"{dataset} ") & (away["dataset"] != dataset)]
    both = (
        part.sort_values(["gallery", "rank1"], ascending=[True, False], kind="stable")
        for part in (published(dataset, aspect), away)
    )
    frame = pd.concat(both)
    frame["family"] = frame["method"].str.replace(r" v\d+", "", regex=True)
    rows = []
    for _, versions in frame.groupby(["dataset", "gallery", "trained", "family"], sort=False):
        row: dict[Any, Any] = versions.iloc[0].to_dict()
        elsewhere = f"{row['dataset']}, " * (row["dataset"] != dataset)
        rows.append(
            {
                "gallery": f"{elsewhere}{GALLERIES[row['gallery']]} ({row['entries']:,})",
                "method": row["method"],
                "trained on": row["trained"] or "–",
                **{f"rank-{k}": _percent(row[f"rank{k}"]) for k in (1, 5, 10)},
                "mAP": _percent(row["map"], row["ap"] != "standard"),
                "mAP (trapezoid)": _percent(row["map_trapezoid"], row["ap"] == "standard"),
                "source": row["source"],
                "notes": _versions(versions["rank1"]) + row["notes"] or "–",
            }
        )
    return pd.DataFrame(rows).set_index(["gallery", "method"]) if rows else pd.DataFrame()


def _versions(rank1: pd.Series) -> str:
    if len(rank1) == 1:
        return ""
    low, high = _percent(rank1.min()), _percent(rank1.max())
    return f"best of {len(rank1)} versions, rank-1 from {low} to {high}; "


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


def _percent(value: float, derived: bool = False) -> str:
    if np.isnan(value):
        return "–"
    return f"[{100 * value:.2f}]" if derived else f"{100 * value:.2f}"
