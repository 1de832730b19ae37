"""How a study and overrides fill the parameter tree (`schema.py`), its errors, and the paths.

A study (a YAML in `params/` or any path, see `study_file.py`) holds differences.
Relative paths in a study are relative to the project root, wherever the study lies.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from pydantic import ValidationError

from handclip_lib.aspects import ASPECTS
from handclip_lib.schema import Data, Params, leaves
from handclip_lib.schema_base import Node, did_you_mean
from handclip_lib.schema_chain import Chain
from handclip_lib.schema_train import Adapt, LossSpec, Stage3b, Training
from handclip_lib.study_file import (
    FILE_KEYS,
    MODEL_ALIASES,
    ROOT,
    ParamError,
    StudyFile,
    differences_of,
    layer,
    merge,
    name_variants,
    nested,
    read_study,
    study_path,
)

__all__ = [
    "MODEL_ALIASES",
    "ROOT",
    "ChainStep",
    "ParamError",
    "cache_dir",
    "chain_finals",
    "chain_recipe",
    "chain_steps",
    "guided_variants",
    "load",
    "loss_variants",
    "own_aspect",
    "read_study",
    "resolve",
    "study_path",
]


def load(
    aspect: str | None = None,
    study: str = "demo",
    seed: int = 0,
    tag: str = "",
    overrides: Mapping[str, Any] | str | None = None,
) -> Params:
    """Resolve defaults < study < its variant `tag` < overrides into one frozen tree.

    aspect: None takes the study's own, else dorsal_r; study: a name in `params/` or a path to a
    YAML; tag: a variant of the study's sweep, or the name of a run with overrides of its own;
    overrides: nested mapping, dotted keys (`stage2.lr`) or YAML text of either.
    Raises ParamError with the path of the bad key and the nearest good one.
    """
    file = read_study(study)
    told, own = file.values, file.values.get("aspect")
    if aspect and own and aspect != own:
        raise ParamError(
            f"aspect: study '{file.path.stem}' is for {own}, but {aspect} was asked for;"
            f" pass aspect {own}, or remove the line from {file.path.name}"
        )
    change = differences_of(overrides or {}, "overrides")
    _check_variant(file, tag, bool(change))
    layer(told, file.sweep.get(tag, {}), f"sweep.{tag}")
    layer(told, change, "overrides")
    name_variants(told)
    told |= {"study": file.path.stem, "seed": seed, "tag": tag}
    told["aspect"] = aspect or own or "dorsal_r"
    tree = Params().model_dump()  # a branch that is told in part keeps its stage's own defaults
    merge(tree, told)
    try:
        p = Params.model_validate(tree)
    except ValidationError as error:
        raise ParamError("\n".join(_explain(e) for e in error.errors())) from None
    guided_variants(p)  # its errors now
    chain_steps(p)
    chain_finals(p)
    return p


def own_aspect(study: str) -> str:
    """The one aspect that a study says it is for, else an empty string."""
    return str(read_study(study).values.get("aspect") or "")


def loss_variants(p: Params) -> dict[str, tuple[LossSpec, ...]]:
    """Stage 2's lists of losses by name: its variants, else `losses` by the name of their types.

    Cross-entropy is `ce` in a name, and a loss of pytorch-metric-learning goes by its own.
    `stage2.variant: baseline` trains none.
    """
    if p.stage2.variant == "baseline":
        return {}
    if p.stage2.variants:
        return dict(p.stage2.variants)
    return {"_".join(_short(loss) for loss in p.stage2.losses): p.stage2.losses}


def guided_variants(p: Params) -> dict[str, Stage3b]:
    """Stage 3b's settings by name: each variant laid over `stage3b`; without variants that alone.

    Raises ParamError with the path of the bad key.
    """
    told = p.stage3b.variants or {"stage3b": {}}
    return {n: _guided(p, n, change, "stage3b.variants") for n, change in told.items()}


@dataclass(frozen=True)
class ChainStep:
    """A step of the chain, resolved. name: of what it teaches, `dorsal_r` or `HD dorsal_r`.

    kind: the stage whose way it is trained: stage1, stage2 or stage3b.
    """

    name: str
    aspect: str
    kind: str
    settings: Training
    data: Data


def chain_steps(p: Params) -> tuple[ChainStep, ...]:
    """The steps of `p.chain`, each with all its settings.

    A recipe's own settings, then `chain.settings`, then the step's. Raises ParamError with the
    place: an unknown aspect, recipe or key, and a second order that has other steps.
    """
    made = []
    for i, step in enumerate(p.chain.steps):
        where = f"chain.steps.{i}"
        if step.aspect not in ASPECTS:
            near = did_you_mean(step.aspect, ASPECTS)
            raise ParamError(f"{where}.aspect: unknown aspect '{step.aspect}'{near}")
        kind, settings = _recipe(p, step.recipe or p.chain.recipe, where)
        settings = _laid(settings, p.chain.settings, "chain.settings")
        settings = _laid(settings, step.settings, f"{where}.settings")
        data = _laid(p.data, step.data, f"{where}.data")
        apart = "" if data == p.data else f"{data.dataset} "
        made.append(ChainStep(f"{apart}{step.aspect}", step.aspect, kind, settings, data))
    _check_chain(p.chain, made)
    second, names = p.chain.second, [step.name for step in made]
    if not isinstance(second, str) and sorted(second) != sorted(names):
        raise ParamError(f"chain.second: {', '.join(second)} are not the steps {', '.join(names)}")
    return tuple(made)


def chain_finals(p: Params) -> dict[str, Stage3b]:
    """What the chained model is tuned by at the end, by name: each laid over `stage3b`."""
    found = {}
    for name, told in p.chain.finals.items():
        found[name] = _guided(p, name, told, "chain.finals")
        if p.chain.final_epochs:
            found[name] = found[name].model_copy(update={"epochs": p.chain.final_epochs})
        if found[name].text in ("prompts", "pseudo"):
            raise ParamError(
                f"chain.finals.{name}: text {found[name].text} is of one aspect; attributes, number"
                " or none are for all"
            )
    return found


def chain_recipe(p: Params) -> ChainStep:
    """The chain's recipe and settings, without those of single steps, on the study's own data."""
    first = chain_steps(p)[0]
    kind, settings = _recipe(p, p.chain.recipe, "chain")
    settings = _laid(settings, p.chain.settings, "chain.settings")
    return ChainStep("all", first.aspect, kind, settings, p.data)


def _check_chain(told: Chain, steps: Sequence[ChainStep]) -> None:
    """Refuse what a recipe, or several data sets, can't have, before anything is trained."""
    guided = [step.settings for step in steps if isinstance(step.settings, Stage3b)]
    texts, adapts = {one.text for one in guided} - {"none"}, [one.adapt for one in guided]
    several, usual = len({step.data for step in steps}) > 1, Adapt()
    lasting = [adapt for adapt in adapts if adapt != usual.model_copy(update={"lora": adapt.lora})]
    losses = all(step.settings.losses for step in steps)
    known = {step.name: step.data for step in steps}
    clashes = {
        "with texts take replay out of chain.remedies, and set chain.classes to step": texts
        and (told.classes == "union" or "replay" in told.remedies),
        "ewc, lora and vpt need a recipe with losses of its own": not losses
        and {"ewc", "lora", "vpt"} & {*told.remedies},
        "a recipe with `adapt` needs chain.remedies without lwf, l2_sp, ewc, wise_ft and soup": any(
            adapt != usual for adapt in adapts
        )
        and {"lwf", "l2_sp", "ewc", "wise_ft", "soup"} & {*told.remedies},
        "a recipe's adapt has LoRA, or other things without LoRA": any(a.lora for a in lasting),
        "finals need a tower without prompts, views and overlap": lasting and told.finals,
        "several data sets have no replay, finals or classes union": several
        and ("replay" in told.remedies or told.finals or told.classes == "union"),
        "two other data sets have one name": any(known[s.name] != s.data for s in steps),
    }
    found = [words for words, clash in clashes.items() if clash]
    if found:
        raise ParamError(f"chain: {found[0]}")


def _recipe(p: Params, told: str, where: str) -> tuple[str, Training]:
    kind, _, name = told.partition("/")
    if told == "stage1":
        return kind, p.stage1
    if kind == "stage2":
        lists = loss_variants(p)
        known: dict[str, Training] = {
            n: p.stage2.model_copy(update={"losses": lists[n]}) for n in lists
        }
    elif kind == "stage3b":
        known = {**guided_variants(p)}
    else:
        raise ParamError(
            f"{where}.recipe: '{told}' is none of stage1, stage2/<variant>, stage3b/<variant>"
        )
    if name not in known:
        raise ParamError(
            f"{where}.recipe: {kind}.variants has no '{name}'{did_you_mean(name, known)};"
            f" it has {', '.join(known) or 'none'}"
        )
    return kind, known[name]


def _guided(p: Params, name: str, told: Mapping[str, Any], where: str) -> Stage3b:
    if "variants" in told:
        raise ParamError(f"{where}.{name}: a variant has no variants of its own")
    usual = p.stage3b.model_copy(update={"variants": {}})
    return _laid(usual, told, f"{where}.{name}")


_Branch = TypeVar("_Branch", bound=Node)


def _laid(branch: _Branch, told: Mapping[str, Any], where: str) -> _Branch:
    """A branch of the tree with what is told laid over it; ParamError begins with `where`."""
    if not told:
        return branch
    tree = branch.model_dump()
    layer(tree, nested(told), where)
    try:
        return type(branch).model_validate(tree)
    except ValidationError as error:
        words = (f"{where}: {_explain(e, type(branch).__name__.lower())}" for e in error.errors())
        raise ParamError("\n".join(words)) from None


def _short(loss: LossSpec) -> str:
    if loss.type == "pml":
        return str((loss.model_extra or {}).get("name", loss.type))
    return "ce" if loss.type == "cross_entropy" else loss.type


def resolve(path: str) -> Path:
    """An absolute path: `~` and $VARIABLES expanded, relative ones from the project root."""
    return ROOT / Path(os.path.expandvars(path)).expanduser()


def cache_dir() -> Path:
    """Where decoded pixels and features are kept: $HANDCLIP_CACHE, else the user's cache."""
    told = os.environ.get("HANDCLIP_CACHE")
    return resolve(told) if told else Path(platformdirs.user_cache_dir("handclip"))


def _check_variant(file: StudyFile, tag: str, changed: bool) -> None:
    """A tag without overrides means a variant, where a study has variants."""
    if tag and file.sweep and tag not in file.sweep and not changed:
        raise ParamError(
            f"tag: study '{file.path.stem}' has no variant '{tag}'{did_you_mean(tag, file.sweep)};"
            f" its sweep has {', '.join(file.sweep)}; a run of your own needs overrides"
        )


def _explain(error: Any, *above: str) -> str:
    path = ".".join(str(part) for part in (*above, *error["loc"]))
    if error["type"] != "extra_forbidden":
        got = "" if isinstance(error["input"], Mapping) else f" (got {error['input']!r})"
        return f"{path}: {error['msg'].removeprefix('Value error, ')}{got}"
    if path in FILE_KEYS:
        return f"{path}: belongs at the top of a study file, not here"
    known = [
        *(key for key, _ in leaves(Params().model_dump())),
        "stage2.variants",
        "stage3b.variants",
        "chain.finals",
        *FILE_KEYS,
    ]
    leaf = path.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    return f"unknown parameter '{path}'{did_you_mean(path, same or known)}"
