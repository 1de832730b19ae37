"""From an entry of the YAML list to checked settings of one loss."""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError, create_model

from handclip_lib.params import ParamError
from handclip_lib.schema_base import Node, did_you_mean
from handclip_lib.schema_train import LossSpec


def read(told: LossSpec | Mapping[str, Any], where: str) -> LossSpec:
    """One entry; ParamError, which begins with `where`, when it isn't one."""
    if isinstance(told, LossSpec):
        return told
    try:
        return LossSpec.model_validate(told)
    except ValidationError as error:
        raise ParamError(_explain(error, where, ("type", "weight", "on"))) from None


def of(
    make: Callable[..., Any], given: Mapping[str, Any], where: str, also: Iterable[str] = ()
) -> dict[str, Any]:
    """The keyword-only arguments of a loss: `given`, checked against its annotations.

    Raises ParamError with the nearest known key or value; `also`: further keys an entry may have.
    """
    init = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    hints = typing.get_type_hints(init, include_extras=True)
    told = inspect.signature(init).parameters.values()
    fields: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is one.empty else one.default)
        for one in told
        if one.kind is one.KEYWORD_ONLY
    }
    try:
        checked = create_model("Settings", __base__=Node, **fields).model_validate(dict(given))
    except ValidationError as error:
        raise ParamError(_explain(error, where, (*fields, *also, "weight", "on"))) from None
    return {name: getattr(checked, name) for name in fields}


def _explain(error: ValidationError, where: str, known: Iterable[str]) -> str:
    lines = []
    for one in error.errors():
        path = ".".join((where, *map(str, one["loc"])))
        if one["type"] == "extra_forbidden":
            key = str(one["loc"][-1])
            lines.append(f"unknown parameter '{path}'{did_you_mean(key, known)}")
            continue
        near = ""
        if one["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", str(one.get("ctx", {}).get("expected")))
            near = did_you_mean(str(one["input"]), choices)
        message = one["msg"].removeprefix("Value error, ")
        lines.append(f"{path}: {message} (got {one['input']!r}){near}")
    return "\n".join(lines)
