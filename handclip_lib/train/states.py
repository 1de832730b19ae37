"""What a chain teaches, and what embeds photographs after each of its steps."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import pandas as pd

from handclip_lib.data import leaks, splits, tables
from handclip_lib.data.samplers import replay_parts
from handclip_lib.data.store import open_store
from handclip_lib.evaluate import embed
from handclip_lib.evaluate.cross import cross_scores
from handclip_lib.evaluate.protocol import per_query
from handclip_lib.models.clip import Encoder
from handclip_lib.params import ChainStep, ParamError, chain_steps
from handclip_lib.schema import Data, Params
from handclip_lib.train.job import encoder_from


@dataclass(frozen=True)
class Task:
    """An aspect of a data set: what a step teaches, and a column of the matrix.

    name: `dorsal_r`, or `HD dorsal_r` on another data set than the study's; p: the study's
    parameters with this aspect and data; table: of the whole data set.
    """

    name: str
    p: Params
    table: pd.DataFrame
    manifest: pd.DataFrame

    @property
    def dataset(self) -> str:
        """Whose persons its numbers count: those of another set are others."""
        return f"{self.p.data.dataset} {self.table.attrs['root']}"

    @property
    def images(self) -> list[str]:
        """Queries and galleries, each once."""
        testing = self.manifest["split"].isin(leaks.TESTING)
        names: list[str] = self.manifest.loc[testing, "image"].unique().tolist()
        return names


@dataclass(frozen=True)
class State:
    """What embeds photographs at one time.

    task: what the step before it taught, empty for the start; file: weights, None is the study's
    tower as it is; own: those of single tasks by name, where each has its own.
    """

    name: str
    task: str = ""
    file: Path | None = None
    own: Mapping[str, Path] = field(default_factory=dict)


Look = dict[str, tuple[list[str], np.ndarray]]  # task -> images (its own among them), unit rows


def tasks_of(p: Params) -> dict[str, Task]:
    """What the steps of `p.chain` teach, by name, in their order.

    Raises SplitError, naming them, where a person who trains in one aspect is tested in another;
    under `chain.mode: published`, where the literature's splits have such persons, it warns.
    """
    if p.split.legacy_tree:
        raise ParamError("split.legacy_tree is of one aspect; a chain needs a manifest of each")
    found: dict[str, Task] = {}
    read: dict[Data, pd.DataFrame] = {}
    mine = in_chain(p)
    for step in chain_steps(p):
        told = mine.model_copy(update={"aspect": step.aspect, "data": step.data})
        if step.data not in read:
            read[step.data] = tables.read(told)
        _check_step(p, step, read[step.data])
        if step.name not in found:
            manifest = splits.manifest_for(told, read[step.data])
            found[step.name] = Task(step.name, told, read[step.data], manifest)
    if p.aspect not in found:
        raise ParamError(
            f"aspect {p.aspect} is not taught by this chain, so that nothing can be shown of it;"
            f" pass one of {', '.join(found)}"
        )
    for data in read:
        _check([task for task in found.values() if task.p.data == data])
    return found


def _check_step(p: Params, step: ChainStep, table: pd.DataFrame) -> None:
    """What can be known before the chain has begun."""
    if not (table["aspect"] == step.aspect).any():
        raise ParamError(
            f"chain.steps: the data has no photographs of {step.aspect}; name those that it has:"
            f" chain.steps=[{', '.join(sorted(set(table['aspect'])))}]"
        )
    if "replay" in p.chain.remedies:
        settings = step.settings
        replay_parts(settings.sampler, settings.batch_size, p.chain.replay.share)


def in_chain(p: Params) -> Params:
    """The parameters by which an aspect is split where it is one of several: `chain.mode`."""
    return p.model_copy(update={"split": p.split.model_copy(update={"mode": p.chain.mode})})


def _check(tasks: Sequence[Task]) -> None:
    manifests = [task.manifest for task in tasks]
    if tasks[0].p.split.mode == "person_disjoint":
        leaks.check_leaks(*manifests, across=True)
        return
    table = leaks.leak_table(manifests)
    found = [f"{aspect}: {who}" for aspect, who in table["who"].items() if who]
    if found:
        warnings.warn(
            "chain.mode published: these test persons train in other aspects of the chain, so that"
            f" its scores are too good ({'; '.join(found)}); person_disjoint has none",
            stacklevel=3,
        )


def look(
    state: State, tasks: Mapping[str, Task], fabric: lf.Fabric, mirrored: bool | None = None
) -> Look:
    """The retrieval features of every task's test photographs, distractors among them.

    Where tasks have weights of their own, a task's whole gallery is seen by these. mirrored: left
    hands are shown mirrored, as if they were right ones, or not; None: as the weights are used to.
    """
    alike: dict[tuple[str, Data], list[Task]] = {}
    for task in tasks.values():
        file = state.own.get(task.name, state.file)
        alike.setdefault((str(file or ""), task.p.data), []).append(task)
    seen: Look = {}
    for (path, _), together in alike.items():
        names = list(dict.fromkeys(name for task in together for name in task.images))
        encoder = encoder_from(together[0].p, Path(path) if path else None)
        if mirrored is not None:
            encoder.preprocess = replace(encoder.preprocess, mirror_left=mirrored)
        z = unit_features(encoder, together[0], names, fabric)
        seen |= {task.name: (names, z) for task in together}
    return {name: seen[name] for name in tasks}


def unit_features(
    encoder: Encoder, task: Task, images: Sequence[str], fabric: lf.Fabric
) -> np.ndarray:
    """(N, D) unit rows of images of a task's data set, as `p.evaluation` has them."""
    store, told = open_store(task.table, encoder.preprocess), task.p.evaluation
    raw = embed.embed(encoder, store, images, fabric, told.batch_size)
    return embed.retrieval_features(raw, told.feature)


def answered(
    chains: Mapping[str, Sequence[State]],
    tasks: Mapping[str, Task],
    fabric: lf.Fabric,
) -> dict[str, dict[str, dict[str, pd.DataFrame]]]:
    """{chain: {state: {task: `per_query` of it}}}, own galleries; equal states count once."""
    known: dict[str, dict[str, pd.DataFrame]] = {}
    found: dict[str, dict[str, dict[str, pd.DataFrame]]] = {}
    for name, states in chains.items():
        found[name] = {}
        for state in states:
            key = f"{state.file} {sorted(state.own.items())}"
            if key not in known:
                known[key] = answers(look(state, tasks, fabric), tasks)
            found[name][state.name] = known[key]
    return found


def across(
    p: Params,
    state: State,
    tasks: Mapping[str, Task],
    fabric: lf.Fabric,
    mirrored: bool = False,
) -> dict[str, np.ndarray]:
    """`cross_scores`, by mAP, of a state with one file among aspects of the study's own data."""
    mine = {name: task for name, task in tasks.items() if task.p.data == p.data}
    images, z = next(iter(look(state, mine, fabric, mirrored).values()))
    place = {image: row for row, image in enumerate(images)}
    return cross_scores(
        lambda names: z[[place[name] for name in names]],
        {task.p.aspect: task.manifest for task in mine.values()},
        "map",
        p.evaluation.bootstrap,
        p.seed,
    )


def answers(seen: Look, tasks: Mapping[str, Task]) -> dict[str, pd.DataFrame]:
    """{task: `per_query` of it} in own galleries: what matrices and intervals are made of."""
    return {name: per_query(z, images, tasks[name].manifest) for name, (images, z) in seen.items()}
