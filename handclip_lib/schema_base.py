"""What every branch of the parameter tree is made of."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Node(BaseModel):
    """A branch of the tree: frozen, and closed to keys that it does not name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


def no_bool(value: object) -> object:
    """Refuse true/false where a number is meant; pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got true/false")
    return value


def _empty(value: object) -> object:
    """An empty value of a YAML line, or of `--set KEY=`, is an empty text."""
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_empty)]
Count = Annotated[int, BeforeValidator(no_bool), Field(ge=1)]
Whole = Annotated[int, BeforeValidator(no_bool), Field(ge=0)]
Rate = Annotated[float, BeforeValidator(no_bool), Field(gt=0)]
Amount = Annotated[float, BeforeValidator(no_bool), Field(ge=0)]
Share = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=1)]


class Model(Node):
    """An image tower: any open_clip name, `tiny`, `tiny_rn`, or a path; and how it sees images."""

    name: str = "ViT-B-16-quickgelu"
    pretrained: Text = "openai"  # an open_clip tag, a weights file, or empty for what `name` holds
    # Pixels, or (height, width); None: the tower's own
    image_size: Count | tuple[Count, Count] | None = None
    mirror_left: bool | None = None  # left hands mirrored throughout; None: as its weights record
    fit: Literal["squash", "pad", "hand"] | None = None  # None: as its weights record, else squash


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
