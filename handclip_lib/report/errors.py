"""Tables of errors, of evidence and of open-set searches: what forensic readers ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.evaluate.verification import LEVELS
from handclip_lib.report.summary import spanned

_FEW, _FEW_SEARCHES = "too few pairs", "too few photographs"


def errors_table(
    errors: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """A row a model: EER, AUC and FNMR at each false match rate, per cent, with 95 % intervals.

    errors: {model: `verification_metrics`}; intervals: {model: `person_intervals`} of the same
    pairs. A rate that the number of impostor pairs does not carry is withheld. `0.0 (< x)`: nothing
    failed, and x is the bound of the rule of three.
    """
    rows = {}
    for name, told in errors.items():
        spans = intervals[name]
        row = {
            "EER (%)": share(told["eer"], spans["eer"], told["eer_upper"]),
            "AUC (%)": share(told["auc"], spans["auc"]),
            "d′": "–" if told["d_prime"] is None else f"{told['d_prime']:.2f}",
        }
        for level, fmr in LEVELS.items():
            rate, bound = told["fnmr_at_fmr"][level], told["fnmr_upper"][level]
            shown = _FEW if rate is None else share(rate, spans["fnmr_at_fmr"][level], bound)
            row[f"FNMR at FMR {100 * fmr:g} %"] = shown
        row |= {"genuine pairs": f"{told['n_genuine']:,}", "persons": spans["persons"]}
        rows[name] = row | {"impostor pairs": f"{told['n_impostor']:,}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def operating_table(points: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row a model: the threshold, or thresholds, that other persons gave, and its errors here.

    With 95 % intervals over persons, who were not drawn anew for choosing the threshold.
    points: {model: of `operating.operating_points`}; without any, one line that points to the
    reason, which `operating.thresholds` prints.
    """
    if not points:
        return pd.DataFrame({"thresholds": ["none (the reason is printed above)"]})
    rows = {
        name: {
            "threshold (cosine)": _spanned(told["threshold_span"]),
            "chosen for FMR (%)": f"{100 * told['aim']:g}",
            "FMR (%)": share(told["fmr"], told["ci95"]["fmr"], told["fmr_upper"]),
            "FNMR (%)": share(told["fnmr"], told["ci95"]["fnmr"], told["fnmr_upper"]),
            "chosen on": told["chosen_on"],
        }
        for name, told in points.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def evidence_table(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row a model: what its cross-fitted likelihood ratios are worth.

    found: {model: `calibration.evidence`}. Cllr: 0 is perfect, 1 is worth nothing; its least is
    what discrimination alone leaves, the rest is lost by calibration. Misleading: pairs whose ratio
    points the wrong way. Bounds: no ratio passes them, for want of pairs.
    """
    rows = {}
    for name, told in found.items():
        counts = {"persons": told["persons"], "fitted on": told["fitted_on"] or "–"}
        if told["withheld"]:
            rows[name] = {"Cllr (bits)": told["withheld"]} | counts
            continue
        low, high = told["strongest"]
        rows[name] = {
            "Cllr (bits)": f"{told['cllr']:.3f}",
            "least Cllr": f"{told['cllr_min']:.3f}",
            "misleading, genuine (%)": f"{100 * told['misleading_genuine']:.1f}",
            "misleading, impostor (%)": f"{100 * told['misleading_impostor']:.1f}",
            "bounds of ratios (log₁₀)": f"{low:.2f} to {high:.2f}".replace("-", "−"),
        } | counts
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("model")


def open_set_table(
    found: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """A row a model: mates found first, and found above thresholds that strangers seldom pass.

    A photograph may be searched with a mate in one draw and without in another.
    found: {model: `open_set_metrics`}; intervals: {model: `open_set_intervals`}.
    """
    rows = {}
    for name, told in found.items():
        spans = intervals[name]
        row = {"rank-1 of mated searches (%)": share(told["rank1"], spans["rank1"])}
        for level, rate in told["dir_at_fpir"].items():
            shown = _FEW_SEARCHES if rate is None else share(rate, spans["dir_at_fpir"][level])
            row[f"found at FPIR {100 * float(level):g} %"] = shown
        counts = {"photographs, mated": told["n_mated"], "others": told["n_non_mated"]}
        rows[name] = row | {key: f"{n:,}" for key, n in counts.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _spanned(span: Sequence[float]) -> str:
    """`0.712`, or `0.712 to 0.731` where thresholds differ."""
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in span)).replace("-", "−")


def plain(errors: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json keeps of `verification_metrics` or `open_set_metrics`: all but curves."""
    return {key: value for key, value in errors.items() if not isinstance(value, np.ndarray)}


def share(rate: float, span: Sequence[float] | None = None, bound: float | None = None) -> str:
    """A rate (0–1) in per cent: with its 95 % interval `1.2 [0.8, 1.9]`, or `0.0 (< x)`.

    bound: the upper bound x of a rate of which no error was seen; given, it stands for the span.
    """
    words = f"{100 * rate:.1f}"
    if bound is not None:
        return f"{words} (< {100 * bound:.2g})"
    return words if span is None else spanned(rate, span)
