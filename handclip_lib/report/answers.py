"""What a study's models answer to each question of notebook 06, and how a run file keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.data.leaks import TESTING
from handclip_lib.data.store import open_store
from handclip_lib.evaluate import calibration, openset, verification
from handclip_lib.evaluate.expansion import fit_whitening, whiten
from handclip_lib.evaluate.explanation import Explanation, agreements, explanation, faced, look
from handclip_lib.evaluate.pairs import by_kind, distinct, pairs_of
from handclip_lib.evaluate.protocol import evaluate
from handclip_lib.evaluate.ways import ways
from handclip_lib.report.calibrated import calibrated
from handclip_lib.report.errors import plain
from handclip_lib.report.lineup import Contender
from handclip_lib.report.spaces import Space, images_of, space_of
from handclip_lib.schema import Params

_SAMPLES = 500  # of persons, where each costs a pass over all pairs
PerModel = Mapping[str, Mapping[str, Any]]


def embedded(
    models: Sequence[Contender],
    manifests: Sequence[pd.DataFrame],
    table: pd.DataFrame,
    p: Params,
    fabric: lf.Fabric,
) -> tuple[list[str], dict[str, Space]]:
    """Every photograph that the manifests name, and each model's features of them."""
    images = images_of(*manifests)
    return images, {one.name: space_of(one, p, table, images, fabric) for one in models}


@dataclass(frozen=True)
class Verified:
    """One-to-one comparisons of every model. pairs: of queries and own gallery over all draws, each
    two photographs once; rates: `verification_metrics` with their curves; spans:
    `person_intervals`; made_by: `Space.made_by`; each by model.
    """

    pairs: dict[str, pd.DataFrame]
    rates: dict[str, dict[str, Any]]
    spans: dict[str, dict[str, Any]]
    made_by: dict[str, Mapping[str, Any]]

    @property
    def kinds(self) -> dict[str, dict[str, np.ndarray]]:
        """{model: similarities of the pairs by kind}, for histograms."""
        return {name: by_kind(found) for name, found in self.pairs.items()}


def verified(
    models: Sequence[Contender], spaces: Mapping[str, Space], manifest: pd.DataFrame, p: Params
) -> Verified:
    """Are two photographs, of one aspect, of one hand?"""
    found = Verified({}, {}, {}, {})
    for one in models:
        space = spaces[one.name]
        pairs = distinct(pairs_of(space.z, space.images, manifest))
        both = pairs["similarity"], pairs["genuine"]
        sides = pairs["query_person"], pairs["gallery_person"]
        found.pairs[one.name], found.made_by[one.name] = pairs, space.made_by
        found.rates[one.name] = verification.verification_metrics(*both)
        found.spans[one.name] = verification.person_intervals(*both, *sides, _SAMPLES, p.seed)
    return found


def open_set(
    models: Sequence[Contender], spaces: Mapping[str, Space], manifest: pd.DataFrame, p: Params
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """{model: `open_set_metrics`}, {model: `open_set_intervals`}, some persons being left out."""
    part = openset.leave_out(manifest, p.comparison.open_share, p.split.seed)
    found = {
        one.name: openset.searches(spaces[one.name].z, spaces[one.name].images, part)
        for one in models
    }
    spans = {n: openset.open_set_intervals(f, _SAMPLES, p.seed) for n, f in found.items()}
    return {name: openset.open_set_metrics(f) for name, f in found.items()}, spans


def ranked(
    one: Contender,
    space: Space,
    manifest: pd.DataFrame,
    table: pd.DataFrame,
    p: Params,
    fabric: lf.Fabric,
) -> dict[str, dict[str, Any]]:
    """{way: {gallery: scores}}: cosine, the `ways` of re-ranking, flip summing and whitening.

    Whitening is fitted to training photographs.
    """
    images, boots = list(space.images), (p.evaluation.bootstrap, p.seed)
    found = {
        way: evaluate(space.z, images, manifest, *boots, compare)
        for way, compare in ways(p.comparison).items()
    }
    training = manifest.loc[manifest["split"] == "train", "image"].unique().tolist()
    whitening = fit_whitening(space.of(training), p.comparison.whiten)
    tested = images_of(manifest[manifest["split"].isin(TESTING)])
    flipped = space_of(one, p, table, tested, fabric, flipped=True).z
    found["flipped, added"] = evaluate(flipped, tested, manifest, *boots)
    found["whitened"] = evaluate(whiten(space.z, whitening), images, manifest, *boots)
    return found


def evidence(
    found: Verified, population: str, folds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What `calibration.evidence` gives: {model: values}, {model: log10 ratios by kind}.

    Ratios are those of genuine (n,) and of impostor (m,) pairs, each by a calibration that knows
    neither person. A model with too few persons has none, and its values say why. Among the values
    is `calibration`, for photographs of others: what `calibrated` gives, where there are ratios.
    """
    worth, ratios = {}, {}
    for name, pairs in found.pairs.items():
        worth[name], llr = calibration.evidence(pairs, population, folds)
        if llr is not None:
            ratios[name] = (llr[pairs["genuine"]], llr[~pairs["genuine"]])
            worth[name]["calibration"] = calibrated(pairs, population, found.made_by[name])
    return worth, ratios


def explained(
    models: Sequence[Contender],
    spaces: Mapping[str, Space],
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    p: Params,
    fabric: lf.Fabric,
) -> dict[str, Explanation]:
    """What each model looks at in the first query of each person, in draw 0.

    The reference of a photograph is the person's gallery photograph.
    """
    first = manifest[manifest["draw"] == 0]
    queries = first[first["split"] == "query"].sort_values(["pid", "image"])
    queries = queries.drop_duplicates("pid").reset_index(drop=True)
    gallery = first[first["split"] == "gallery"].set_index("pid")["image"]
    others = gallery.loc[queries["pid"]].tolist()
    told, feature = p.comparison, p.evaluation.feature
    found = {}
    for one in models:
        encoder, references = one.encoder(p), spaces[one.name].of(others)
        store = open_store(table, encoder.preprocess)
        seen = look(encoder, store, queries["image"].tolist(), references, fabric, feature)
        found[one.name] = explanation(seen, queries, told.deleted, p.seed)
    return found


@dataclass(frozen=True)
class Pair:
    """One person's query and gallery photograph by one model. facing: `explanation.faced`; alike:
    `explanation.agreements` of both; None where the tower has no such maps: `why`.
    """

    facing: tuple[np.ndarray, np.ndarray, pd.DataFrame, str] | None
    alike: dict[str, dict[str, np.ndarray]] | None
    why: str


def one_pair(
    one: Contender,
    space: Space,
    table: pd.DataFrame,
    manifest: pd.DataFrame,
    p: Params,
    fabric: lf.Fabric,
) -> Pair:
    """The first query of draw 0 against the gallery photograph of its person, and the reverse."""
    first = manifest[manifest["draw"] == 0].sort_values(["pid", "image"])
    query = first[first["split"] == "query"].iloc[0]
    entries = first[(first["split"] == "gallery") & (first["pid"] == query["pid"])]
    both = [str(query["image"]), str(entries["image"].iloc[0])]
    encoder, others = one.encoder(p), space.of(both[::-1])
    store, facing, alike, why = open_store(table, encoder.preprocess), None, None, ""
    seen = look(encoder, store, both, others, fabric, p.evaluation.feature)
    try:
        facing, alike = faced(seen, p.seed), agreements(seen, p.seed)
    except TypeError as error:  # of a tower that cannot be looked into
        why = f"{one.name}: {error}"
    return Pair(facing, alike, why)


def kept(
    scenarios: PerModel,
    ranked_: PerModel,
    found: Verified,
    points: PerModel,
    worth: PerModel,
    strangers: PerModel,
    sliced: Mapping[str, Any],
    wrong: Mapping[str, Any],
    shown: Mapping[str, Explanation],
) -> dict[str, Any]:
    """The answers as metrics.json holds them: plain values, without curves and pictures."""
    return {
        "scenarios": scenarios,
        "reranking": ranked_,
        "verification": {n: plain(e) | {"ci95": found.spans[n]} for n, e in found.rates.items()},
        "operating_points": points,
        "evidence": worth,
        "open_set": {name: plain(told) for name, told in strangers.items()},
        "slices": sliced,
        "group_errors": wrong,
        "explanation": {name: _looked(told) for name, told in shown.items()},
    }


def _looked(told: Explanation) -> dict[str, Any]:
    known = np.isfinite(told.on_hand["hand"])
    means = {
        kind: float(np.nanmean(share[known])) if np.isfinite(share[known]).any() else None
        for kind, share in told.on_hand.items()
    }
    return {"blanked": told.blanked, "left_out": told.left_out, "on_hand": means}
