"""Own photographs, searched in a gallery or held against each other, with what that is worth."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handclip_lib.data.check import TableError, quantity
from handclip_lib.data.photographs import check_sides, one_photograph, read_photographs
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.evaluate.calibration import apply
from handclip_lib.evaluate.embed import embed, retrieval_features
from handclip_lib.evaluate.protocol import cosine
from handclip_lib.evaluate.retrieval import rank_gallery
from handclip_lib.models.checkpoint import is_ours, read_checkpoint
from handclip_lib.models.clip import Encoder, encoder_of, load_encoder
from handclip_lib.models.run_weights import find_weights
from handclip_lib.params import ParamError, load
from handclip_lib.report.calibrated import Met, Population, find_population, read_population
from handclip_lib.report.outside import (
    beyond,
    entries_met,
    fits,
    has_hand,
    is_drawn,
    need_hands,
    outside,
)
from handclip_lib.report.runs import reports_root, run_folder
from handclip_lib.report.spaces import maker
from handclip_lib.schema import Params

STUDY = "demo"
COPY = "a copy is no evidence that two photographs show one hand"


@dataclass(frozen=True)
class Instrument:
    """What compares: a tower, the feature whose cosine is the similarity, and its calibration.

    source: where the tower comes from; taught: whom, in words; population: None, and then why.
    """

    encoder: Encoder
    feature: tuple[str, ...]
    source: str
    taught: str
    population: Population | None
    why: str

    def features(self, table: pd.DataFrame) -> np.ndarray:
        """(N, D) unit rows of a table of `data.photographs`, kept on disk for the next time.

        Raises TableError where the tower has to be told left from right, and is not.
        """
        if self.encoder.preprocess.mirror_left:
            check_sides(table)
        store = open_store(table, self.encoder.preprocess)
        raw = embed(self.encoder, store, table["image"].tolist(), make_fabric(Params()))
        return retrieval_features(raw, self.feature)

    def pixels_seen(self, table: pd.DataFrame) -> list[str]:
        """sha256 of what the tower sees of each photograph: equal for copies."""
        store = open_store(table, self.encoder.preprocess)
        return store.digest(table["image"].tolist())


@dataclass(frozen=True)
class Search:
    """A ranked gallery. ranking: the first ones, columns `rank, similarity, person, aspect, image`
    (absolute), `hand` (whether one is found), `llr` (log10, NaN where withheld).

    entries: photographs in the ranking; copies: those of the query, left out of it; withheld: why
    there is no ratio; remarks: what else must be known.
    """

    query: pd.DataFrame
    ranking: pd.DataFrame
    entries: int
    persons: int
    copies: tuple[str, ...]
    withheld: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two photographs, a row of `data.photographs` each. llr: log10, None where withheld, and why;
    remarks: what else must be known.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    similarity: float
    llr: float | None
    withheld: str
    remarks: tuple[str, ...]


def open_instrument(
    model: str = "",
    pretrained: str = "",
    variant: str = "",
    study: str = "",
    aspect: str = "",
    calibration: str = "",
) -> Instrument:
    """The tower that is asked for, with its calibration, where a study has left one.

    model: whatever `find_weights` takes; empty: stage 1 of the study (`demo` unless told), or its
    tower where there is none. calibration: a run folder of notebook 06; empty: what the model's own
    study, or the one told, holds for the aspect. Raises as these do, and ParamError on a study or
    an aspect that is not there.
    """
    p = load(None if model else aspect or None, study or STUDY)
    path, encoder = _tower(p, model, pretrained, variant)
    held = read_checkpoint(path) if path is not None and is_ours(path) else {}
    told = Params.model_validate(held["params"]) if held else p
    feature = tuple(told.evaluation.feature)
    made_by = maker(encoder, feature)
    population, why = None, ""
    if calibration:
        population = read_population(Path(calibration).expanduser().resolve(), made_by)
    else:
        theirs = None if study or path is None else _study_of(path)
        population, why = find_population(made_by, theirs or reports_root(p) / p.study, aspect)
    source = str(path) if path is not None else model or f"the tower of study {p.study}"
    return Instrument(encoder, feature, source, _taught(held, path), population, why)


def search(
    instrument: Instrument,
    query: Path,
    gallery: Path,
    top: int = 10,
    aspect: str = "",
    force: bool = False,
) -> Search:
    """Rank a gallery's photographs by their similarity to the query.

    gallery: a folder or CSV, as `read_photographs` takes it; aspect: what photographs show of which
    nothing else says it; force: go on where the query shows no hand. Photographs whose pixels are
    the query's are left out of the ranking. Raises NoHand, FileNotFoundError, TableError,
    StoreError, and ParamError on top < 1.
    """
    if top < 1:
        raise ParamError(f"--top {top}: at least 1")
    asked, table = one_photograph(query, aspect), _told_aspect(read_photographs(gallery), aspect)
    if not force:
        need_hands(_paths(asked))
    z, own = instrument.features(asked), instrument.pixels_seen(asked)[0]
    others = instrument.features(table)
    copy = np.array([seen == own for seen in instrument.pixels_seen(table)])
    if copy.all():
        raise TableError(f"{gallery} holds nothing but the query itself: there is nothing to rank")
    left = table[~copy].reset_index(drop=True)
    ranking = _ranking(left, cosine(z, others[~copy])[0], top)
    withheld, remarks = _judged(instrument, [asked], ranking["similarity"].iloc[0], table)
    ranking["llr"] = np.nan
    if instrument.population is not None and not withheld:
        known = instrument.population.met([Path(image) for image in ranking["image"]])
        ranking["llr"] = _ratios(instrument.population, ranking, known)
        remarks += entries_met(known.values())
    people = int(left.loc[left["person"] != "", "person"].nunique())
    copies = tuple(table.loc[copy, "image"])
    return Search(asked, ranking, len(left), people, copies, withheld, tuple(remarks))


def compare(
    instrument: Instrument, first: Path, second: Path, aspect: str = "", force: bool = False
) -> Comparison:
    """Hold two photographs against each other.

    aspect: what they show, where nothing else says it; force: go on where one shows no hand. Raises
    as `search`.
    """
    both = [one_photograph(path, aspect) for path in (first, second)]
    paths = [path for photograph in both for path in _paths(photograph)]
    if not force:
        need_hands(paths)
    z = [instrument.features(photograph) for photograph in both]
    similarity = float(cosine(*z)[0, 0])
    withheld, remarks = _judged(instrument, both, similarity)
    if paths[0].samefile(paths[1]):
        withheld, remarks = f"both are one file: {COPY}", []
    elif len({instrument.pixels_seen(photograph)[0] for photograph in both}) == 1:
        withheld = f"both are one picture, pixel by pixel as the model sees them: {COPY}"
        remarks = []
    llr = None
    if instrument.population is not None and not withheld:
        llr = float(apply(instrument.population.calibration, similarity))
    return Comparison(both[0], both[1], similarity, llr, withheld, tuple(remarks))


def _tower(p: Params, model: str, pretrained: str, variant: str) -> tuple[Path | None, Encoder]:
    """The weights file, where there is one, and the encoder."""
    if not model:
        file = run_folder("02_stage1", p) / "checkpoints" / "stage1.pth"
        return (file, load_encoder(str(file))) if file.is_file() else (None, encoder_of(p.model))
    source = find_weights(model, pretrained, variant)
    file = Path(pretrained or source).expanduser()
    return (file.resolve() if file.is_file() else None), load_encoder(source, pretrained)


def _study_of(file: Path) -> Path | None:
    """reports/<study> of a weights file in a run folder, by its parents' names."""
    seeds = [folder for folder in file.parents if re.fullmatch(r"seed\d+", folder.name)]
    return seeds[0].parent if seeds else None


def _taught(held: Mapping[str, Any], path: Path | None) -> str:
    if not held:
        return "not recorded" if path is not None else "nobody by this kit's notebooks"
    places: dict[str, set[int | str]] = {}
    for data, who in held["taught"].items():  # a folder that changed is there by each content
        places.setdefault(re.sub(r" #[0-9a-f]{16}$", "", data), set()).update(who)
    counts = [f"{quantity(len(who), 'person')} of {data}" for data, who in places.items()]
    return ", ".join(counts) or "nobody"


def _told_aspect(table: pd.DataFrame, aspect: str) -> pd.DataFrame:
    return table.assign(aspect=table["aspect"].where(table["aspect"] != "", aspect))


def _paths(table: pd.DataFrame) -> list[Path]:
    return [Path(table.attrs["root"]) / image for image in table["image"]]


def _ranking(table: pd.DataFrame, similarity: np.ndarray, top: int) -> pd.DataFrame:
    """The first rows of a gallery by their similarities (N,), without ratios."""
    order = rank_gallery(similarity[None])[0][:top]
    shown = table.iloc[order].reset_index(drop=True)
    paths = _paths(shown)
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "similarity": similarity[order],
            "person": shown["person"],
            "aspect": shown["aspect"],
            "image": [str(path) for path in paths],
            "hand": [has_hand(path) for path in paths],
        }
    )


def _judged(
    instrument: Instrument,
    asked: Sequence[pd.DataFrame],
    similarity: float,
    gallery: pd.DataFrame | None = None,
) -> tuple[str, list[str]]:
    """Why there is no ratio for these photographs (empty: there is one), and remarks."""
    population = instrument.population
    if population is None:
        return instrument.why, []
    without = [path.name for one in asked for path in _paths(one) if not has_hand(path)]
    if without:
        return f"no hand was found in {' and '.join(without)}", []
    reasons, remarks = outside(population, asked)
    if gallery is not None and is_drawn(gallery) != is_drawn(asked[0]):
        reasons.append("either the query or the gallery is drawn hands, the other one is not")
    if not reasons:
        remarks += beyond(population, similarity)
    return "; ".join(reasons), remarks


def _ratios(population: Population, ranking: pd.DataFrame, known: Mapping[Path, Met]) -> np.ndarray:
    """log10 ratios; NaN for entries that show another aspect or no hand, or trained the model."""
    trained = {str(path) for path, met in known.items() if met.trained and met.certain}
    usable = ranking["hand"] & ~ranking["image"].isin(trained)
    usable &= ranking["aspect"].map(lambda aspect: fits(population, aspect))
    return np.where(usable, apply(population.calibration, ranking["similarity"]), np.nan)
