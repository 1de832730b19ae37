"""Tables of a report: scores with their intervals, what each tower is, what losses taught it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from handclip_lib.losses import tried
from handclip_lib.models.clip import Encoder
from handclip_lib.params import guided_variants, pretrain_variants, stage2_variants
from handclip_lib.report.page import WORDS
from handclip_lib.schema import Params
from handclip_lib.schema_train import Pretrain, Stage2, Stage3b, Training

STAGE1, CHAINED = "stage1", "chain"  # models
_PROSE = 40  # letters: longer values are sentences, and may break
_STAYS = "\u00a0"  # a space at which no line breaks


def score_table(variants: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A column a variant and gallery, in per cent with 95 % intervals: `61.2 [50.1, 70.3]`.

    variants: {name: {"own" | "all": scores of `evaluate.protocol.evaluate`}}.
    """
    columns = {
        (name, gallery): {label: percent(scores[key]) for key, label in WORDS.items()}
        | {word: scores[word] for word in ("queries", "gallery", "persons")}
        for name, galleries in variants.items()
        for gallery, scores in galleries.items()
    }
    index = [*WORDS.values(), "queries", "gallery", "persons"]
    names = (
        pd.MultiIndex.from_tuples(list(columns), names=["model", "gallery"])
        if columns
        else (pd.MultiIndex.from_arrays([[], []], names=["model", "gallery"]))
    )
    return pd.DataFrame(columns, index).set_axis(names, axis=1)


def whole(table: pd.DataFrame, empty: str = "Nothing to show.") -> Styler:
    """A table with all its rows and words, as a report shows it; pandas alone cuts long ones.

    Short values stay on one line, columns of prose are wide. empty: what stands for a table without
    rows.
    """
    if table.empty:
        told: Styler = pd.DataFrame([[empty]]).style
        return told.hide(axis="index").hide(axis="columns")
    looks: list[Any] = [
        _look("th, td", "text-align: left; vertical-align: top"),
        _look("th", "white-space: nowrap"),
    ]
    for i in range(table.shape[1]):
        longest = table.iloc[:, i].astype(str).str.len().max()
        prose = "white-space: normal; min-width: 24em"
        looks.append(_look(f"td.col{i}", prose if longest > _PROSE else "white-space: nowrap"))
    return table.style.set_table_styles(looks)


def _look(selector: str, css: str) -> dict[str, Any]:
    return {"selector": selector, "props": css}


def percent(score: Mapping[str, Any]) -> str:
    """`61.2 [50.1, 70.3]`: mean and 95 % interval of a 0–1 metric, in per cent."""
    return spanned(score["mean"], score["ci95"])


def spanned(value: float, span: Sequence[float]) -> str:
    """A share (0–1) in per cent with its interval, in one piece that no line breaks."""
    low, high = span
    return f"{100 * value:.1f}{_STAYS}[{100 * low:.1f},{_STAYS}{100 * high:.1f}]"


def tower_table(towers: Mapping[str, Encoder]) -> pd.DataFrame:
    """A column a tower: parameters (millions), input, features, and the hash of its weights."""
    facts = {}
    for name, tower in towers.items():
        height, width = tower.preprocess.size
        image = sum(p.numel() for p in tower.visual.parameters())
        facts[name] = {
            "image tower": f"{image / 1e6:.1f} M parameters",
            "whole model": f"{sum(p.numel() for p in tower.parameters()) / 1e6:.1f} M parameters",
            "activation": "QuickGELU" if tower.quick_gelu else "GELU",
            "input": f"{width}×{height} px, fit {tower.preprocess.fit}"
            + ", left hands mirrored" * tower.preprocess.mirror_left,
            "features": ", ".join(f"{k} {v}" for k, v in tower.dims.items()),
            "weights": tower.weights_sha256[:16],
        }
    return pd.DataFrame(facts)


def loss_table(variants: Mapping[str, Stage2]) -> pd.DataFrame:
    """A row a loss of every variant: its weight, the features it is on, its settings.

    Raises ParamError on settings that no loss takes, before anything is trained.
    """
    rows = {}
    for name, told in variants.items():
        terms: Any = tried(f"stage2, variant {name}", told).terms
        for loss, term in terms.items():
            settings = ", ".join(f"{key} {value}" for key, value in term.told.items())
            rows[name, loss] = {"weight": term.weight, "on": ", ".join(term.on), "with": settings}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["weight", "on", "with"])
    frame.index = pd.MultiIndex.from_tuples(rows, names=["variant", "loss"])
    return frame


def losses_of(p: Params, name: str) -> str:
    """By what losses a study trains the model of this name; a dash: none of its own."""
    if name == CHAINED:
        return f"chain of {p.chain.recipe}"
    stages: dict[str, Training] = {STAGE1: p.stage1, **pretrain_variants(p)}
    stages |= {**stage2_variants(p), **guided_variants(p)}
    if name not in stages:
        return "–"
    told = stages[name]
    if isinstance(told, Pretrain):
        return "contrast of views" + " and identities" * bool(told.labelled)
    words = [loss.type.replace("_", "-") for loss in told.losses]
    if isinstance(told, Stage3b) and told.text != "none":
        words.append(f"text ({told.text})")
    before = f"{p.stage1.pretrain}, then " if name == STAGE1 and p.stage1.pretrain else ""
    return before + " + ".join(words)
