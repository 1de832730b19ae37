"""What a study's variants and the chain's steps are, with all their settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from handclip_lib.aspects import ASPECTS
from handclip_lib.schema import Data, Params, leaves
from handclip_lib.schema_base import Node, did_you_mean
from handclip_lib.schema_chain import Chain
from handclip_lib.schema_train import Adapt, LossSpec, Pretrain, Stage2, Stage3b, Training
from handclip_lib.study_file import FILE_KEYS, ParamError, layer, nested


def pretrain_variants(p: Params) -> dict[str, Pretrain]:
    """Pre-training's settings by name: each variant laid over `pretrain`; without any, that alone.

    Raises ParamError with the path of the bad key, and where `stage1.pretrain` is none of them.
    """
    usual, found = p.pretrain.model_copy(update={"variants": {}}), dict[str, Pretrain]()
    for name, told in (p.pretrain.variants or {"pretrain": {}}).items():
        where = f"pretrain.variants.{name}"
        if "variants" in told:
            raise ParamError(f"{where}: a variant has no variants of its own")
        found[name] = _laid(usual, told, where)
    asked = p.stage1.pretrain
    if asked and asked not in found:
        raise ParamError(
            f"stage1.pretrain: pretrain.variants has no '{asked}'{did_you_mean(asked, found)};"
            f" it has {', '.join(found)}"
        )
    return found


def stage2_variants(p: Params) -> dict[str, Stage2]:
    """Stage 2's settings by name: each variant laid over `stage2`; without any, that alone.

    It then has the name of its losses' types: cross-entropy is `ce` in it, and a loss of
    pytorch-metric-learning goes by its own. `stage2.variant: baseline` trains none. Raises
    ParamError with the path of the bad key.
    """
    if p.stage2.variant == "baseline":
        return {}
    usual = p.stage2.model_copy(update={"variants": {}})
    if not p.stage2.variants:
        return {"_".join(_short(loss) for loss in usual.losses): usual}
    for name, told in p.stage2.variants.items():
        taken = sorted({"variants", "variant", "resume_from", "save_dir"} & told.keys())
        if taken:
            where = f"stage2.variants.{name}.{taken[0]}"
            raise ParamError(f"{where}: belongs to stage 2 as a whole, not to a variant")
    told = p.stage2.variants
    return {n: _laid(usual, change, f"stage2.variants.{n}") for n, change in told.items()}


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


def other_data(p: Params) -> dict[str, Params]:
    """The study with each of the data sets in `comparison.others`, by name, and its aspect there.

    Raises ParamError with the path of the bad key.
    """
    found = {}
    for name, told in p.comparison.others.items():
        where = f"comparison.others.{name}"
        aspect = str(told.get("aspect", p.aspect))
        if aspect not in ASPECTS:
            raise ParamError(f"{where}.aspect: unknown '{aspect}'{did_you_mean(aspect, ASPECTS)}")
        own = {key: value for key, value in told.items() if key != "aspect"}
        data = _laid(p.data, own, where)
        found[name] = p.model_copy(update={"data": data, "aspect": aspect})
    return found


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
        "finals need a tower without prompts, views, overlap, attention and parts": lasting
        and told.finals,
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
        known: dict[str, Training] = {
            n: told for n, told in stage2_variants(p).items() if told.tower == "study"
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
        words = (f"{where}: {explain(e, type(branch).__name__.lower())}" for e in error.errors())
        raise ParamError("\n".join(words)) from None


def _short(loss: LossSpec) -> str:
    if loss.type == "pml":
        return str((loss.model_extra or {}).get("name", loss.type))
    return "ce" if loss.type == "cross_entropy" else loss.type


def explain(error: Any, *above: str) -> str:
    """One of pydantic's errors in words, with the path of the key, beneath the branches `above`."""
    path = ".".join(str(part) for part in (*above, *error["loc"]))
    if error["type"] != "extra_forbidden":
        got = "" if isinstance(error["input"], Mapping) else f" (got {error['input']!r})"
        return f"{path}: {error['msg'].removeprefix('Value error, ')}{got}"
    if path in FILE_KEYS:
        return f"{path}: belongs at the top of a study file, not here"
    known = [
        *(key for key, _ in leaves(Params().model_dump())),
        "pretrain.variants",
        "stage2.variants",
        "stage3b.variants",
        "chain.finals",
        *FILE_KEYS,
    ]
    leaf = path.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    return f"unknown parameter '{path}'{did_you_mean(path, same or known)}"
