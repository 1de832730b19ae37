"""Zero-shot classification: what a CLIP says in words about a hand (its aspect; not its owner)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.evaluate.statistics import person_bootstrap


class TextEncoder(Protocol):
    """What zero-shot classification asks of an encoder."""

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Features (N, E) of N texts."""
        ...


def zero_shot(
    encoder: TextEncoder,
    proj: npt.NDArray[np.floating],
    frame: pd.DataFrame,
    templates: Sequence[str],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Aspect of each photograph by its nearest prompt, with the words of `aspects.ASPECTS`.

    proj: (N, E) joint-space image features of any length; frame: N rows in the same order with
    columns `aspect` and `pid`: rows of a table (a manifest's draws repeat photographs). The answer
    is one of the four aspects, however many the data shows; where photographs are `dorsal` (it is
    not known of which hand) one of the surfaces, dorsal or palmar. Photographs of an unknown aspect
    (`hand`) are left out; None when no others are there. Result as `classify_by_text`.
    """
    unknown = sorted(set(frame["aspect"]) - set(ASPECTS))
    if unknown:
        raise ValueError(f"unknown aspect '{unknown[0]}'; one of {', '.join(ASPECTS)}")
    if len(proj) != len(frame):
        raise ValueError(f"{len(proj)} image features for {len(frame)} photographs")
    told = (frame["aspect"] != "hand").to_numpy()
    if not told.any():
        return None
    labels, persons = frame.loc[told, "aspect"], frame.loc[told, "pid"]
    phrases: dict[str, tuple[str, ...]] = {a: ASPECTS[a].words for a in CHAIN}
    if (labels == "dorsal").any():
        labels = labels.str.partition("_")[0]
        phrases = {
            surface: tuple(w for a in CHAIN if a.startswith(surface) for w in ASPECTS[a].words)
            for surface in ("dorsal", "palmar")
        }
    return classify_by_text(
        encoder, proj[told], labels, persons, phrases, templates, bootstrap, seed
    )


def classify_by_text(
    encoder: TextEncoder,
    proj: npt.NDArray[np.floating],
    labels: Sequence[str] | pd.Series,
    persons: npt.ArrayLike,
    phrases: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Zero-shot accuracy on any attribute: labels (N,) are keys of `phrases` (class: spellings).

    Returns plain values, 0–1: `classes`; `images`, `persons` counts; `chance` (1 / classes);
    `majority` (share of the commonest label); `templates`, a list of {`template`, `accuracy`,
    `ci95`}, and `ensemble` {`accuracy`, `ci95`} of their mean, with intervals over persons;
    `confusion` (counts of the ensemble, rows the truth, columns the answer, in the order of
    `classes`) and `per_class` accuracy of the classes that occur. Raises ValueError on labels
    without phrases, and on shapes that do not agree.
    """
    names = list(phrases)
    truth = _codes(labels, names)
    z = _unit(proj, "image feature")
    if len(z) != len(truth):
        raise ValueError(f"{len(z)} image features for {len(truth)} labels")
    weights = text_classifier(encoder, list(phrases.values()), templates)  # (T, C, E)
    answers = _answers(z, weights)
    right = (answers == truth[:, None]).astype(np.float64)  # (N, T + 1), the ensemble last
    low, high = person_bootstrap(right, persons, bootstrap, seed)
    rows = [
        {"accuracy": float(right[:, i].mean()), "ci95": [float(low[i]), float(high[i])]}
        for i in range(right.shape[1])
    ]
    return {
        "classes": names,
        "images": len(truth),
        "persons": len(np.unique(np.asarray(persons))),
        "templates": [{"template": t, **row} for t, row in zip(templates, rows, strict=False)],
        "ensemble": rows[-1],
        **_by_class(truth, answers[:, -1], names),
    }


def _answers(z: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Nearest class of each image (N, T + 1): one column a template, the ensemble's last."""
    if weights.shape[2] != z.shape[1]:
        raise ValueError(f"texts have {weights.shape[2]} dimensions, images {z.shape[1]}")
    return np.stack([(z @ w.T).argmax(axis=1) for w in (*weights, ensemble(weights))], axis=1)


def _by_class(
    truth: npt.NDArray[np.intp], answer: npt.NDArray[np.intp], names: list[str]
) -> dict[str, Any]:
    """What guessing would reach, and how the answers fall on the classes."""
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (truth, answer), 1)
    count = confusion.sum(axis=1)
    return {
        "chance": 1 / len(names),
        "majority": float(count.max() / count.sum()),
        "confusion": confusion.tolist(),
        "per_class": {
            c: float(confusion[i, i] / count[i]) for i, c in enumerate(names) if count[i]
        },
    }


def text_classifier(
    encoder: TextEncoder, phrases: Sequence[Sequence[str]], templates: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Class vectors (T, C, E) of each template: unit rows, to be compared by dot product.

    phrases: the spellings of each class; a template holds one slot in braces, whatever its name.
    A class vector is the mean of its spellings' normalised output features, normalised again
    (Radford et al. 2021, arXiv:2103.00020, 3.1.4).
    """
    if not templates or not phrases or not all(phrases):
        raise ValueError("need at least one template, one class, and one phrase for every class")
    spelled = [p for spellings in phrases for p in spellings]
    texts = [_fill(t, p) for t in templates for p in spelled]
    with torch.no_grad():
        raw = encoder.encode_text(texts).float().cpu().numpy()
    z = _unit(raw, "text feature").reshape(len(templates), len(spelled), -1)  # (T, W, E)
    ends = np.cumsum([len(spellings) for spellings in phrases])[:-1]
    means = [part.mean(axis=1) for part in np.split(z, ends, axis=1)]  # C times (T, E)
    return np.stack([_unit(m, "mean of spellings") for m in means], axis=1)


def ensemble(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Class vectors (C, E) of all templates together: the mean of (T, C, E), normalised again."""
    return _unit(weights.mean(axis=0), "mean of templates")


def _fill(template: str, phrase: str) -> str:
    """The template with the phrase in its slot; an empty phrase leaves no double blank."""
    text, slots = re.subn(r"\{\w*\}", lambda _: phrase, template)
    if slots != 1:
        raise ValueError(f"template '{template}' needs one slot such as {{aspect}}, has {slots}")
    return re.sub(r"\s+", " ", text).strip()


def _codes(labels: Sequence[str] | pd.Series, names: list[str]) -> npt.NDArray[np.intp]:
    values = pd.Index(labels)
    codes = pd.Index(names).get_indexer(values)
    if (codes < 0).any():
        raise ValueError(
            f"label '{values[codes < 0][0]}' is none of the classes {', '.join(names)}"
        )
    if not len(codes):
        raise ValueError("no photographs to classify")
    return codes


def _unit(rows: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    """Rows of length one, in float64; a row without direction is an error, not a NaN."""
    z = np.asarray(rows, dtype=np.float64)
    if z.ndim != 2:
        raise ValueError(f"{what}s must be a matrix, got shape {z.shape}")
    length = np.linalg.norm(z, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if bad.size:
        raise ValueError(f"{what} {bad[0]} is zero, NaN or infinite: it has no direction")
    return z / length
