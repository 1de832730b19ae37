"""The chain of steps, each from the weights of the one before, and the models it is held against.

Lopez-Paz & Ranzato 2017, arXiv:1706.08840, has the measures; the user's plan has the order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import pandas as pd

from handclip_lib.aspects import CHAIN, CHAIN_FILES
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.models.weights import WeightsError
from handclip_lib.params import ChainStep, chain_finals, chain_recipe, chain_steps
from handclip_lib.schema import Params
from handclip_lib.schema_train import Stage3b
from handclip_lib.train import blends, remedies, stages
from handclip_lib.train.blends import Sweep
from handclip_lib.train.classes import classes_of
from handclip_lib.train.job import Past, Trained, encoder_from, job_of, study_encoder
from handclip_lib.train.states import State, Task
from handclip_lib.train.training import train

NOTEBOOK = "05_sequential_chain"  # whose run folders hold its steps


@dataclass(frozen=True)
class Chained:
    """A chain that has been trained. states: zero-shot, then one after each step.

    learned: for each task the first and the last step, from 1, that taught it; facts: of each
    step's training, by the name of its file; histories: a frame of each step that was trained here;
    sweep: of WiSE-FT alone.
    """

    states: tuple[State, ...]
    learned: tuple[tuple[int, int], ...]
    facts: Mapping[str, Mapping[str, Any]]
    histories: tuple[pd.DataFrame, ...] = ()
    sweep: Sweep | None = None

    @property
    def files(self) -> list[Path]:
        """The weights after each step, where all aspects share them."""
        return [state.file for state in self.states if state.file is not None]


def run_chain(
    p: Params,
    tasks: Mapping[str, Task],
    folder: Path,
    remedy: str = "",
    order: Sequence[str] = (),
    first: Path | None = None,
) -> Chained:
    """Train the steps of `p.chain` one after the other, or take what was trained before.

    folder: checkpoints/ and history.csv are there; a step whose file is there and was made by the
    same parameters, data, code and earlier steps is not touched. remedy: replay, lwf, l2_sp or ewc,
    from the second step on. order: names of the steps, by default the study's; first: weights of
    the first step, where another chain has made the same.
    """
    steps, earlier = ordered(p, order), list[remedies.Earlier]()
    states, facts, histories = [State("zero_shot")], dict[str, Any](), []
    asked = [m[m["split"].isin(("query", "gallery", "select"))] for m in _manifests(tasks)]
    tested = set(pd.concat(asked)["pid"])
    for k, (step, name) in enumerate(zip(steps, file_names(steps), strict=True)):
        task = tasks[step.name]
        if k == 0 and first is not None:
            path, facts[name] = first, read_checkpoint(first)["facts"]
        else:
            past = _past(p, tasks, k)
            past, manifest = remedies.remedied(p, remedy, task, earlier, past, tested)
            made = taught(step, task, name, states[-1].file, folder, past, manifest)
            path, facts[name] = made.checkpoint, made.facts
            histories.append(made.history)
        earlier.append((step, task, path))
        states.append(State(f"{k + 1} {step.name}", step.name, path))
    learned = learned_in([step.name for step in steps], list(tasks))
    return Chained(tuple(states), learned, facts, tuple(histories))


def own_models(
    p: Params, tasks: Mapping[str, Task], folder: Path, remedy: str = "", first: Path | None = None
) -> Chained:
    """Each step from the study's tower, by the chain's recipe: an aspect has weights of its own.

    remedy: lora or vpt, which train an adapter on the frozen tower; otherwise the recipe trains.
    first: weights of the chain's first step, taken where that had the same settings and classes.
    """
    recipe, steps, own = chain_recipe(p), ordered(p), dict[str, Path]()
    settings = remedies.per_aspect(recipe, p.chain, remedy) if remedy else recipe.settings
    states, facts, histories = [State("zero_shot")], dict[str, Any](), []
    alike = p.chain.classes == "step"
    for k, step in enumerate(steps):
        task, name = tasks[step.name], step.name.replace(" ", "_")
        if k == 0 and alike and first is not None and step.settings == settings:
            own[step.name], facts[name] = first, read_checkpoint(first)["facts"]
        elif step.name not in own:
            alone = replace(recipe, settings=settings)
            made = taught(alone, task, name, None, folder, Past(), task.manifest)
            own[step.name], facts[name] = made.checkpoint, made.facts
            histories.append(made.history)
        states.append(State(f"{k + 1} {step.name}", step.name, None, dict(own)))
    learned = learned_in([step.name for step in steps], list(tasks))
    return Chained(tuple(states), learned, facts, tuple(histories))


def taught(
    step: ChainStep,
    task: Task,
    name: str,
    start: Path | None,
    folder: Path,
    past: Past,
    manifest: pd.DataFrame,
) -> Trained:
    """One step, by its recipe, on the rows of a manifest; leaves checkpoints/<name>.pth."""
    settings, p, table = step.settings, task.p, task.table
    past = replace(past, lenient=p.split.mode == "published")
    if not isinstance(settings, Stage3b):
        return train(job_of(name, settings, p, start, table, manifest, folder, past))
    learnt = None
    if settings.text == "prompts":
        learnt = stages.stage3a(p, start, table, task.manifest, folder, f"{name}_prompts")
    return stages.stage3b(p, name, settings, start, learnt, table, manifest, folder, past)


def ordered(p: Params, order: Sequence[str] = ()) -> list[ChainStep]:
    """The steps of the chain; with an order, what they teach comes in that one.

    Recipes and settings stay in their places, such as layers that open from step to step.
    """
    steps = list(chain_steps(p))
    taught = list(steps)
    for name in order:  # a name that comes twice takes the steps of that name in their order
        place = next(i for i, step in enumerate(taught) if step.name == name)
        taught.append(taught.pop(place))
    return [
        replace(to, kind=of.kind, settings=of.settings)
        for to, of in zip(taught, steps, strict=True)
    ]


def second_order(p: Params) -> list[str]:
    """Names of the steps in the order to compare with; empty for none."""
    if p.chain.second == "none":
        return []
    names = [step.name for step in chain_steps(p)]
    return names[::-1] if p.chain.second == "reversed" else list(p.chain.second)


def file_names(steps: Sequence[ChainStep]) -> list[str]:
    """The names of the steps' files, without ending: the user's own where the order is."""
    names = [step.name for step in steps]
    if tuple(names) == CHAIN:
        return list(CHAIN_FILES)
    return [f"step{k}_{name.replace(' ', '_')}" for k, name in enumerate(names, 1)]


def learned_in(steps: Sequence[str], tasks: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """For each task the first and the last step, counted from 1, that taught it."""
    places = [[k for k, name in enumerate(steps, 1) if name == task] for task in tasks]
    return tuple((found[0], found[-1]) for found in places)


def compared(p: Params, tasks: Mapping[str, Task], folder: Path, first: Path) -> dict[str, Chained]:
    """What the study holds its chain against: another order, a model for each aspect, one for all.

    folder: each has its own in it; first: weights of the chain's first step.
    """
    found: dict[str, Chained] = {}
    order = second_order(p)
    if order:
        found["second_order"] = run_chain(p, tasks, folder / "second", order=order)
    if "single" in p.chain.bounds:
        each = own_models(p, tasks, folder / "single", first=first)
        single = replace(each.states[-1], name="single")
        found["single"] = Chained((each.states[0], single), _at_once(tasks), each.facts)
    joint = joint_model(p, tasks, folder / "joint") if "joint" in p.chain.bounds else None
    return found | ({"joint": joint} if joint else {})


def with_remedies(
    p: Params, tasks: Mapping[str, Task], chained: Chained, folder: Path, fabric: lf.Fabric
) -> dict[str, Chained]:
    """The chain again with each of `p.chain.remedies`, by name; those of weights train nothing."""
    found: dict[str, Chained] = {}
    for remedy in p.chain.remedies:
        here, learned = folder / remedy, chained.learned
        if remedy == "wise_ft":
            states, sweep = blends.wise_ft(p, tasks, chained.states, here, fabric)
            found[remedy] = Chained(states, learned, {}, (), sweep)
        elif remedy == "soup":
            states = blends.checkpoint_soup(p, tasks, chained.states, here)
            found[remedy] = Chained(states, learned, {})
        elif remedy in ("lora", "vpt"):
            found[remedy] = own_models(p, tasks, here, remedy)
        else:
            found[remedy] = run_chain(p, tasks, here, remedy, first=chained.files[0])
    return found


def joint_model(p: Params, tasks: Mapping[str, Task], folder: Path) -> Chained | None:
    """One model for all tasks at once, by the chain's recipe.

    None, which is said, where the recipe learns prompts, which are of one aspect, and where the
    tasks are of several data sets, whose persons have the same numbers.
    """
    step, told = chain_recipe(p), ""
    if isinstance(step.settings, Stage3b):
        told = step.settings.text
    if told in ("prompts", "pseudo") or len({task.p.data for task in tasks.values()}) > 1:
        print("no joint model: the chain has texts for each aspect, or several data sets")
        return None
    kind = "aspect_hand" if told in ("attributes", "number") else p.split.identity
    return _together(step, _all(tasks, kind), "joint", None, folder, tasks)


def final_tunings(
    p: Params, tasks: Mapping[str, Task], folder: Path, start: Path
) -> dict[str, Chained]:
    """The chained model tuned on all aspects at once by each of `chain.finals`.

    Each view of a hand is a class here, with a text that names it.
    """
    task, found = _all(tasks, "aspect_hand"), {}
    for name, settings in chain_finals(p).items():
        step = ChainStep("all", task.p.aspect, "stage3b", settings, task.p.data)
        found[name] = _together(step, task, name, start, folder, tasks)
    return found


def _together(
    step: ChainStep,
    task: Task,
    name: str,
    start: Path | None,
    folder: Path,
    tasks: Mapping[str, Task],
) -> Chained:
    """One training on all aspects at once."""
    made = taught(step, task, name, start, folder, Past(), task.manifest)
    states = (State("zero_shot"), State(name, "", made.checkpoint))
    return Chained(states, _at_once(tasks), {name: made.facts}, (made.history,))


def _at_once(tasks: Mapping[str, Task]) -> tuple[tuple[int, int], ...]:
    return tuple((1, 1) for _ in tasks)


def lineage(p: Params, files: Sequence[Path]) -> pd.DataFrame:
    """Whose child each file of a chain is: columns `file, sha256, parent` (first 16 of each).

    The hash of every file's tensors is taken anew. Raises WeightsError where it is not the one the
    file records, or where the file was not trained from the one before it.
    """
    before, rows = study_encoder(p).weights_sha256, []
    for path in files:
        held = read_checkpoint(path)
        real = encoder_from(p, path).weights_sha256
        if real != held["sha256"]:
            raise WeightsError(f"{path}: its tensors are not those whose hash it records")
        if held["parent"] != before:
            raise WeightsError(f"{path} was not trained from the weights of the step before it")
        rows.append({"file": path.name, "sha256": real[:16], "parent": before[:16]})
        before = real
    return pd.DataFrame(rows).set_index("file")


def _past(p: Params, tasks: Mapping[str, Task], k: int) -> Past:
    """The classifier's classes: a step's own, or those of all steps, whose heads go on."""
    if p.chain.classes == "step":
        return Past()
    classes = classes_of(p.split.identity, _manifests(tasks))
    return Past(classes=classes, inherits=k > 0)


def _manifests(tasks: Mapping[str, Task]) -> list[pd.DataFrame]:
    return [task.manifest for task in tasks.values()]


def _all(tasks: Mapping[str, Task], identity: str) -> Task:
    """The training rows of all tasks as one; identity: what a class is then."""
    first = next(iter(tasks.values()))
    split = first.p.split.model_copy(update={"identity": identity})
    rows = pd.concat(_manifests(tasks), ignore_index=True)
    rows = rows[rows["split"].isin(("train", "val", "select"))]
    return Task("all", first.p.model_copy(update={"split": split}), first.table, rows)
