"""The chain: aspects that are learnt one after the other, and what helps against forgetting."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from handclip_lib.aspects import CHAIN
from handclip_lib.schema_base import Amount, Count, Node, Rate, Share, no_bool

Remedy = Literal["replay", "lwf", "l2_sp", "ewc", "wise_ft", "soup", "lora", "vpt"]
REMEDIES: tuple[str, ...] = get_args(Remedy)


def _named(value: object) -> object:
    """An aspect's name alone is a step of it."""
    return {"aspect": value} if isinstance(value, str) else value


class Step(Node):
    """One step of the chain."""

    aspect: str
    recipe: str = ""  # stage1, stage2/<variant> or stage3b/<variant>; empty: the chain's
    settings: dict[str, Any] = {}  # what differs from the chain's settings here, e.g. {"lr": 1e-5}
    data: dict[str, Any] = {}  # another data set: what differs from the study's `data`


class Replay(Node):
    """Photographs of earlier steps, shown again."""

    images: Count = 2  # kept of an identity
    choose: Literal["herding", "random"] = "herding"
    share: Annotated[float, BeforeValidator(no_bool), Field(ge=0, lt=1)] = 0.25  # of each batch


class Lwf(Node):
    """Learning without forgetting: features stay near those that the step before gave."""

    weight: Amount = 5.0
    on: Literal["cosine", "relations"] = "cosine"
    temperature: Rate = 0.1  # of relations


class Ewc(Node):
    """Elastic weight consolidation: weights that earlier steps needed stay where they were."""

    weight: Amount = 1.0  # of importance whose mean over all parameters is 1
    images: Count = 500  # that importance is measured on, at each step
    decay: Share = 0.9  # of the importance of earlier steps


class PerAspect(Node):
    """LoRA or visual prompts for each aspect on its own, on the tower as it was."""

    rank: Count = 8  # of LoRA
    tokens: Count = 8  # visual prompts a block
    lr: Rate = 1e-3


class Chain(Node):
    """Notebook 05: each step starts from the weights of the one before."""

    steps: tuple[Annotated[Step, BeforeValidator(_named)], ...] = tuple(
        Step(aspect=aspect) for aspect in CHAIN
    )
    recipe: str = "stage1"  # as a step's
    settings: dict[str, Any] = {}  # what differs from the recipe's own settings at every step
    mode: Literal["person_disjoint", "published"] = "person_disjoint"  # in place of `split.mode`
    classes: Literal["step", "union"] = "step"  # a new classifier a step, or one over all steps
    # Another order of the same steps, by their names, to compare with
    second: Literal["reversed", "none"] | tuple[str, ...] = "reversed"
    bounds: tuple[Literal["single", "joint"], ...] = ("single", "joint")  # models to compare with
    finals: dict[str, dict[str, Any]] = {}  # by name: files of params/guided/, after the last step
    final_epochs: Count | None = None  # of these; None: stage 3b's, over all aspects at once
    remedies: tuple[Remedy, ...] = ("wise_ft", "soup")
    replay: Replay = Replay()
    lwf: Lwf = Lwf()
    l2_sp: Amount = 0.01
    ewc: Ewc = Ewc()
    wise_ft: tuple[Share, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    per_aspect: PerAspect = PerAspect()

    @field_validator("steps")
    @classmethod
    def _two(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        if len(value) < 2:
            raise ValueError("a chain has two steps or more")
        return value

    @field_validator("wise_ft")
    @classmethod
    def _both_ends(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not {0.0, 1.0} <= set(value):
            raise ValueError("shares from 0 (the start) to 1 (the end), both among them")
        return value

    @field_validator("wise_ft", "remedies", "bounds")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each is named once")
        return value
