"""Whether photographs belong to the population of a calibration, and what no comparison can say."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from handclip_lib.aspects import ASPECTS, CHAIN
from handclip_lib.data.check import DRAWN, quantity
from handclip_lib.data.foreground import find_hand
from handclip_lib.data.preprocess import to_rgb
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.embed import embed
from handclip_lib.evaluate.zeroshot import ensemble, text_classifier
from handclip_lib.models.clip import load_encoder
from handclip_lib.report.calibrated import Met, Population, signed
from handclip_lib.schema import Params

UNKNOWN = ("", "hand")  # aspects that say nothing
LIMITS = (
    "A similarity is the cosine of two feature vectors. It is no probability, and figures of two"
    " models cannot be held against each other.",
    "A likelihood ratio weighs one finding. It is not the probability that both photographs show"
    " one person: that takes what else is known of the case.",
    "A ratio holds for photographs like those of its population. Most data sets were taken in one"
    " session, with one camera and light; photographs of a case were not, and then it overstates.",
    "A picture that somebody mirrored passes for one of the other hand. Left and right hand of a"
    " person count as two hands.",
    "Who the model was trained on is known here by files alone. Another photograph of such a person"
    " passes for a stranger's, and its ratio is not to be trusted.",
    "Whatever lies on a plain background passes for a hand. That a hand was found does not say it"
    " is one.",
    "Maps and lines show where this network's cosine comes from. They are no characteristics such"
    " as an examiner marks.",
    "No part of this has been validated for casework.",
)
CLOSED = (
    "Every ranking has a first. Nothing here says that the person asked for is in the gallery at"
    " all: the first may be a stranger who resembles, and often is where the gallery is large.",
)


class NoHand(ValueError):
    """A picture in which no hand is found; the message says what to do."""


def has_hand(path: Path) -> bool:
    """Whether something of a hand's size stands out from the picture's background."""
    with Image.open(path) as opened:
        return find_hand(to_rgb(opened)) is not None


def need_hands(paths: Sequence[Path]) -> None:
    """Raise NoHand naming the pictures without one."""
    without = [str(path) for path in paths if not has_hand(path)]
    if without:
        raise NoHand(
            f"no hand found in {' and '.join(without)}: nothing there stands out from the"
            " background as a hand on a plain one does. Photograph or crop the hand on a plain"
            " background; --force compares the picture as it is, without a likelihood ratio"
        )


def outside(
    population: Population, photographs: Sequence[pd.DataFrame]
) -> tuple[list[str], list[str]]:
    """Why photographs are not of the population, and what else a reader must know of them.

    photographs: tables of `data.photographs`, a row each. Anything in the first list forbids a
    ratio; the second is said beside it.
    """
    reasons: list[str] = []
    remarks: list[str] = []
    for photograph in photographs:
        name, aspect = photograph["image"].iloc[0], photograph["aspect"].iloc[0]
        other = is_drawn(photograph) != population.data.startswith(DRAWN)
        if other:
            what = "a drawn hand" if is_drawn(photograph) else "none of them"
            reasons.append(f"the calibration is of {population.data}, and {name} is {what}")
        if not fits(population, aspect):
            shows, there = ASPECTS[aspect].title, ASPECTS[population.aspect].title
            reasons.append(f"{name} shows {shows}, and the calibration is of {there}")
        elif aspect in UNKNOWN and population.aspect not in UNKNOWN and not other:
            remarks.append(_unknown(population, photograph))
        known = _met(population, Path(photograph.attrs["root"]) / name)
        reasons, remarks = reasons + known[0], remarks + known[1]
    return list(dict.fromkeys(reasons)), list(dict.fromkeys(remarks))


def fits(population: Population, aspect: str) -> bool:
    """Whether photographs of this aspect may be of the population: none is known to be of another.

    A surface, `dorsal`, fits both of its sides.
    """
    there = population.aspect
    if aspect in UNKNOWN or there in UNKNOWN:
        return True
    return there.startswith(aspect) or aspect.startswith(there)


def beyond(population: Population, similarity: float) -> Iterator[str]:
    """What to say of a similarity that none of the population's pairs had."""
    low, high = population.scores
    if similarity > high:
        yield (
            f"the similarity lies above all of the population's ({high:.3f} at most): the"
            " photographs may be copies of one, saved again, or not be of that population"
        )
    if similarity < low:
        yield (
            f"the similarity lies below all of the population's ({signed(low, 3)} at least): the"
            " photographs may not be of that population"
        )


def entries_met(known: Iterable[Met]) -> Iterator[str]:
    """What to say of a ranking with photographs that the population's study knows."""
    sorts = Counter((met.trained, met.certain) for met in known)
    if count := sorts[True, True]:
        told = "that the model was trained or chosen by"
        yield f"without a ratio: {quantity(count, 'photograph')} {told}"
    if count := sorts[True, False]:
        told = "named as in the model's training set: if it is that one, their ratios mean nothing"
        yield f"{quantity(count, 'photograph')} {told}"
    if count := sorts[False, True] + sorts[False, False]:
        told = "that made the calibration, by file or by name, which flatters the ratios"
        yield f"{quantity(count, 'photograph')} {told}"


def is_drawn(table: pd.DataFrame) -> bool:
    """Whether a table's photographs are drawn hands."""
    return str(table.attrs["title"]).startswith(DRAWN)


def looks_like(photograph: pd.DataFrame) -> str:
    """The aspect of a drawn hand by the words of the shipped tower `tiny`, which may be wrong."""
    encoder = load_encoder("tiny")
    store = open_store(photograph, encoder.preprocess)
    image = embed(encoder, store, photograph["image"].tolist(), make_fabric(Params()))["proj"][0]
    phrases = [ASPECTS[name].words for name in CHAIN]
    words = ensemble(text_classifier(encoder, phrases, Params().baseline.templates))  # (4, E)
    return CHAIN[int(np.argmax(words @ image))]


def _unknown(population: Population, photograph: pd.DataFrame) -> str:
    name, there = photograph["image"].iloc[0], ASPECTS[population.aspect].title
    told = f"nothing says which aspect {name} shows; the ratio is one for {there} (--aspect)"
    guess = looks_like(photograph) if is_drawn(photograph) else population.aspect
    if guess != population.aspect:
        told += f"; by the words of the tower tiny it looks {ASPECTS[guess].title}"
    return told


def _met(population: Population, photograph: Path) -> tuple[list[str], list[str]]:
    """Reasons and remarks that follow from the study's knowing this photograph already."""
    found = population.met([photograph]).get(photograph)
    if found is None:
        return [], []
    name = photograph.name
    if found.trained and found.certain:
        return [f"{name} is one of the photographs that the model was trained or chosen by"], []
    if found.trained:
        told = "of the model's training set: if it is that one, ratio and similarity mean nothing"
        return [], [f"{name} has the name of a photograph {told}"]
    is_one = "is" if found.certain else "has the name of"
    return [], [
        f"{name} {is_one} a photograph that the calibration was made with, which flatters the ratio"
    ]
