"""What a search or a comparison found, in sentences: the same on the terminal and on the page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from handclip_lib.data.check import listed, quantity
from handclip_lib.report.calibrated import Population, factor, signed, two_digits, verbal
from handclip_lib.report.search import Comparison, Instrument, Search

_SHOWN = 5  # names in a sentence


def of_search(found: Search, instrument: Instrument) -> Iterator[str]:
    """What came out, what it is worth by which population, and what must be known beside it."""
    first, name = found.ranking.iloc[0], found.query["image"].iloc[0]
    whose = f" of {quantity(found.persons, 'person')}" if found.persons else ""
    yield (
        f"Among {quantity(found.entries, 'photograph')}{whose}, {entry_name(first)} resembles"
        f" {name} most: similarity {signed(first['similarity'], 3).lstrip('+')}."
    )
    if found.copies:
        names = ", ".join(listed(found.copies, _SHOWN))
        yield f"Left out of the ranking, since they are copies of the query: {names}."
    yield from _worth(found.withheld, _plain(first["llr"]), instrument)
    if first["llr"] > 0:
        chance = found.entries / 10 ** first["llr"]
        many = "less than one" if chance < 1 else f"up to {two_digits(chance)}"
        yield (
            f"Looking through {quantity(found.entries, 'photograph')} and taking the first weakens"
            f" that: of so many hands of other persons {many} would reach such a ratio by chance."
        )
    without = found.ranking[found.ranking["llr"].isna()]
    if len(without) and not found.withheld:
        names = ", ".join(listed([Path(image).name for image in without["image"]], _SHOWN))
        yield (
            f"No ratio for {names}: another aspect than the calibration's, no hand found, or a"
            " photograph that the model was trained on."
        )
    yield from _sentences(found.remarks)


def of_comparison(found: Comparison, instrument: Instrument) -> Iterator[str]:
    """As `of_search`, of two photographs."""
    names = [photograph["image"].iloc[0] for photograph in (found.first, found.second)]
    alike = signed(found.similarity, 3).lstrip("+")
    yield f"Similarity of {names[0]} and {names[1]}: {alike}."
    yield from _worth(found.withheld, found.llr, instrument)
    yield from _sentences(found.remarks)


def entry_name(row: pd.Series) -> str:
    """`person 12 (Hand_0000031.jpg)`, or the file alone."""
    file = Path(row["image"]).name
    return f"person {row['person']} ({file})" if row["person"] else file


def _plain(llr: float) -> float | None:
    return None if np.isnan(llr) else float(llr)


def _worth(withheld: str, llr: float | None, instrument: Instrument) -> Iterator[str]:
    """The ratio with its population, or why there is none."""
    if withheld:
        yield f"No likelihood ratio: {withheld}."
    if llr is not None and instrument.population is not None:
        yield from _ratio(llr, instrument.population)


def _ratio(llr: float, population: Population) -> Iterator[str]:
    told = population.calibration
    sides = ("pairs of one hand", "pairs of two persons' hands")
    more, less = sides if llr >= 0 else sides[::-1]
    yield f"log₁₀ likelihood ratio {signed(llr)}: {verbal(llr)} (verbal scale of ENFSI 2015)."
    yield f"Such a similarity is {factor(llr)} times as frequent in {more} as in {less}."
    if llr in (told.low, told.high):
        yield "That is the calibration's bound: its pairs are too few to show more."
    yield f"Calibration population: {population.words()}."


def _sentences(remarks: tuple[str, ...]) -> Iterator[str]:
    for remark in remarks:
        yield f"Note: {remark}."
