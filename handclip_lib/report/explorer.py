"""What notebook 07 looks around in: photographs as points, and what a search of them answers.

Arrays and tables in, arrays and tables out; `report.explorer_widgets` shows them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
from matplotlib.path import Path as Outline

from handclip_lib.data.preprocess import Preprocess
from handclip_lib.data.store import Store, StoreError, open_store
from handclip_lib.evaluate import embed, protocol
from handclip_lib.evaluate.explanation import held_against, maps_of
from handclip_lib.models.clip import Encoder
from handclip_lib.report.lineup import Contender, finished_models, lineup
from handclip_lib.report.projections import TITLES, project
from handclip_lib.report.runs import Run
from handclip_lib.report.spaces import Space, images_of, space_of
from handclip_lib.schema import Params

_ENCODERS = 2  # kept in memory: two models are compared at a time
_NOBODY = -1  # the person of a photograph that nobody has named
_CLICK = 0.01  # of the plane: a line that spans less is a click


@dataclass(frozen=True)
class Scene:
    """One model's view of an aspect's test photographs. gallery: `own` or `all`, as `protocol`."""

    aspect: str
    gallery: str
    model: str


@dataclass(frozen=True)
class Answer:
    """What a search found. ranking: rows as `protocol.ranking` has them, of one query; `correct` is
    missing (NA) where nobody knows who is in the query, and `rank_of_first_match` is 0 where the
    gallery holds no match. pixels: (1 + k, H, W, 3) uint8, the query first; maps: {kind: (1 + k,
    h, w)}, the query against its first answer, each answer against the query; left_out: {kind: why
    this tower has none}; note: what a reader has to know of this search.
    """

    ranking: pd.DataFrame
    pixels: np.ndarray
    maps: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    note: str


@dataclass(frozen=True)
class Explored:
    """A study to look around in. manifests, models: by aspect. Features, projections and the last
    encoders are kept once they were made.
    """

    params: Params
    table: pd.DataFrame
    manifests: Mapping[str, pd.DataFrame]
    models: Mapping[str, Mapping[str, Contender]]
    fabric: lf.Fabric
    _spaces: dict[Scene, Space] = field(default_factory=dict, repr=False)
    _planes: dict[tuple[Scene, str], np.ndarray] = field(default_factory=dict, repr=False)
    _encoders: dict[tuple[str, str], Encoder] = field(default_factory=dict, repr=False)
    _stores: dict[Preprocess, Store] = field(default_factory=dict, repr=False)

    def rows(self, scene: Scene) -> pd.DataFrame:
        """The manifest's rows that a scene searches: queries and entries of its gallery."""
        manifest = self.manifests[scene.aspect]
        return manifest[manifest["split"].isin(("query", protocol.GALLERIES[scene.gallery]))]

    def space(self, scene: Scene) -> Space:
        """Features of a scene's photographs, each of them once."""
        if scene not in self._spaces:
            one, images = self.models[scene.aspect][scene.model], images_of(self.rows(scene))
            self._spaces[scene] = space_of(one, self.params, self.table, images, self.fabric)
        return self._spaces[scene]

    def plane(self, scene: Scene, method: str) -> np.ndarray:
        """(N, 2) of a scene's photographs, in the order of its space; method: as `project`."""
        if (scene, method) not in self._planes:
            z, seed = self.space(scene).z, self.params.seed
            self._planes[scene, method] = project(z, (method,), seed)[TITLES[method]]
        return self._planes[scene, method]

    def encoder(self, scene: Scene) -> Encoder:
        """The tower of a scene's model; the last few stay loaded."""
        key = scene.aspect, scene.model
        if key not in self._encoders:
            while len(self._encoders) >= _ENCODERS:
                del self._encoders[next(iter(self._encoders))]
            self._encoders[key] = self.models[scene.aspect][scene.model].encoder(self.params)
        return self._encoders[key]

    def store(self, scene: Scene) -> Store:
        """The photographs as a scene's model sees them."""
        wanted = self.encoder(scene).preprocess
        if wanted not in self._stores:  # opening one looks at every file
            self._stores[wanted] = open_store(self.table, wanted)
        return self._stores[wanted]

    def facts(self, images: Sequence[str]) -> pd.DataFrame:
        """What the table tells of photographs, in their order."""
        return self.table.set_index("image", drop=False).loc[list(images)].reset_index(drop=True)

    def photograph(self, image: str) -> bytes:
        """The file of a photograph, as somebody would drop it in."""
        return (Path(self.table.attrs["root"]) / image).read_bytes()


def explored(
    run: Run, table: pd.DataFrame, manifests: Mapping[str, pd.DataFrame], fabric: lf.Fabric
) -> Explored:
    """A study's models of one seed, aspect by aspect; the run's own aspect is never empty.

    manifests: of `lineup.manifests`. Where the study trained nothing yet on the run's aspect, stage
    1 is trained first, as for notebook 06; other aspects have what their runs have left.
    """
    models = {}
    for aspect, manifest in manifests.items():
        p = run.params.model_copy(update={"aspect": aspect})
        own = aspect == run.params.aspect
        found = lineup(run, table, manifest) if own else finished_models(p, table, manifest)
        models[aspect] = {one.name: one for one in found}
    return Explored(run.params, table, manifests, models, fabric)


def coloured_by(facts: pd.DataFrame) -> list[str]:
    """What photographs can be coloured by: person, aspect, and columns that tell some apart.

    facts: rows of a table. Left out is what is the same everywhere or different everywhere.
    """
    others = [c for c in facts.columns if c not in ("image", "pid", "aspect")]
    counts = facts.astype(str).nunique()
    return ["pid", "aspect", *(c for c in others if 1 < counts[c] < len(facts))]


def inside(points: np.ndarray, outline: Sequence[tuple[float, float]]) -> np.ndarray:
    """Positions of the points (N, 2) that a line drawn by hand encloses, rising.

    A line without extent is a click, and takes the nearest point.
    """
    line = np.asarray(outline, dtype=float)
    if (np.ptp(line, axis=0) < _CLICK * np.ptp(points, axis=0)).all():
        return np.array([np.linalg.norm(points - line.mean(axis=0), axis=1).argmin()])
    return np.flatnonzero(Outline(line).contains_points(points))


def answer(known: Explored, scene: Scene, image: str, top: int = 5, maps: bool = True) -> Answer:
    """The `top` most alike photographs of a scene's gallery, as the evaluator ranks them.

    In the first draw in which the photograph is a query. One that never is (another aspect's hand,
    a person's only photograph) is held against the first draw's gallery without itself, where any
    hand of the person is right; `note` says so.
    """
    rows, space = known.rows(scene), known.space(scene)
    entries = rows[rows["split"] != "query"]
    asked = rows[(rows["split"] == "query") & (rows["image"] == image)].sort_values("draw")[:1]
    draw = int((asked if len(asked) else entries)["draw"].min())
    entries = entries[entries["draw"] == draw]
    note = f"gallery of draw {draw}"
    if asked.empty:
        note += ", without itself: never a query; any hand of the person is right"
        asked = known.facts([image])
        entries = entries[entries["image"] != image]
        entries = entries.assign(pid=known.facts(entries["image"].tolist())["pid"].to_numpy())
    ranking = ranked(space.z, space.images, asked, entries, top)
    z = space.of([image, *ranking["gallery"]])
    return _answer(known, scene, ranking, z, known.store(scene), note, maps)


def answer_own(
    known: Explored, scene: Scene, content: bytes, top: int = 5, maps: bool = True
) -> Answer:
    """The same for a photograph that the study does not know, given as the bytes of its file.

    It is taken for one of the scene's aspect, and nothing of it is kept. Raises ValueError where it
    is no picture.
    """
    rows, space, encoder = known.rows(scene), known.space(scene), known.encoder(scene)
    entries = rows[rows["split"] != "query"]
    entries = entries[entries["draw"] == entries["draw"].min()]
    own = pd.DataFrame([{"image": "yours", "pid": _NOBODY, "aspect": scene.aspect}])
    with tempfile.TemporaryDirectory(prefix="handclip-own-") as folder:
        own.attrs = {"root": folder}
        Path(folder, "yours").write_bytes(content)
        store, told = open_store(own, encoder.preprocess, Path(folder)), known.params.evaluation
        try:
            raw = embed.embed(encoder, store, ["yours"], known.fabric)
        except StoreError as error:
            raise ValueError("this file is no picture that can be read: try a JPEG") from error
        mine = embed.retrieval_features(raw, told.feature)
        features = np.concatenate([mine, space.z])
        ranking = ranked(features, ["yours", *space.images], own, entries, top)
        z = np.concatenate([mine, space.of(ranking["gallery"].tolist())])
        note = f"gallery of draw {int(entries['draw'].min())}; nobody here knows who this is"
        if store.fallbacks:
            note += "; no hand was found in it, and it was taken whole"
        unknown = ranking.assign(correct=pd.Series(pd.NA, index=ranking.index))
        return _answer(known, scene, unknown, z, store, note, maps)


def ranked(
    features: np.ndarray,
    images: Sequence[str],
    query: pd.DataFrame,
    entries: pd.DataFrame,
    top: int = 5,
) -> pd.DataFrame:
    """One photograph's first answers, with the columns of `protocol.ranking`.

    features: (N, D) unit rows that follow `images`; query: one row `image, pid`; entries: the
    gallery's. By the evaluator's similarity and rule for ties; `rank_of_first_match` is 0 without a
    match.
    """
    both = pd.concat([query.assign(split="query"), entries.assign(split="gallery")])
    _, _, _, sim = next(protocol.similarities(features, images, both.assign(draw=0)))
    return protocol.first_answers(query, entries, sim, top)


def same_lists(asked: Sequence[pd.DataFrame], ranking: pd.DataFrame) -> bool:
    """Whether lists of `ranked` are those of `protocol.ranking`, of the same queries and length."""
    columns = ["query", "rank", "gallery", "similarity", "correct", "rank_of_first_match"]
    mine = pd.concat(asked, ignore_index=True)[columns]
    theirs = ranking[columns].reset_index(drop=True)
    alike = mine.drop(columns="similarity").equals(theirs.drop(columns="similarity"))
    return alike and np.allclose(mine["similarity"], theirs["similarity"], rtol=0, atol=2e-6)


def disagreements(rankings: Mapping[str, pd.DataFrame], most: int = 10) -> pd.DataFrame:
    """Queries that one of two models answers at once and the other does not, the widest first.

    rankings: {model: `protocol.ranking`} of the same queries. Columns: the person, and each
    model's rank of the first right answer; at most `most` rows.
    """
    ranks = {
        name: frame.drop_duplicates("query").set_index("query")["rank_of_first_match"]
        for name, frame in rankings.items()
    }
    found = pd.DataFrame(ranks)
    persons = next(iter(rankings.values())).drop_duplicates("query").set_index("query")["pid"]
    found.insert(0, "person", persons)
    names = list(ranks)  # one name alone: it agrees with itself
    one, other = found[names[0]], found[names[-1]]
    apart = found[(one == 1) != (other == 1)]
    wide = (one - other).abs().loc[apart.index].sort_values(ascending=False, kind="stable")
    return apart.loc[wide.index].head(most)


def _answer(
    known: Explored,
    scene: Scene,
    ranking: pd.DataFrame,
    z: np.ndarray,
    store: Store,
    note: str,
    maps: bool,
) -> Answer:
    """With pictures and maps. z: (1 + k, D) of the query and its answers; store: the query's."""
    encoder, others = known.encoder(scene), known.store(scene)
    query, entries = ranking["query"].iloc[0], ranking["gallery"].tolist()
    if not maps:
        both = [store.pixels([query]).numpy(), others.pixels(entries).numpy()]
        return Answer(ranking, np.concatenate(both), {}, {}, note)
    how: tuple[Any, ...] = known.fabric, known.params.evaluation.feature
    pixels, asked = held_against(encoder, store, [query], z[1:2], *how)
    against = np.repeat(z[:1], len(entries), 0)
    theirs, answers = held_against(encoder, others, entries, against, *how)
    (mine, left_out), (found, _) = maps_of(asked), maps_of(answers)
    joined = {kind: np.concatenate([mine[kind], found[kind]]) for kind in mine}
    return Answer(ranking, np.concatenate([pixels, theirs]), joined, left_out, note)
