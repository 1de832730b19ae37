"""How a study and overrides fill the parameter tree (`schema.py`), its errors, and the paths.

A study (a YAML in `params/` or any path, see `study_file.py`) holds differences.
Relative paths in a study are relative to the project root, wherever the study lies.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from handclip_lib.schema import Params, leaves
from handclip_lib.schema_base import did_you_mean
from handclip_lib.schema_train import LossSpec, Stage3b
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
    "ParamError",
    "cache_dir",
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
    usual = p.stage3b.model_dump(exclude={"variants"})
    found = {}
    for name, told in (p.stage3b.variants or {"stage3b": {}}).items():
        if "variants" in told:
            raise ParamError(f"variant {name}: stage3b.variants has no variants of its own")
        tree = deepcopy(usual)
        layer(tree, nested(told), f"stage3b.variants.{name}")
        try:
            found[name] = Stage3b.model_validate(tree)
        except ValidationError as error:
            words = (f"variant {name}: {_explain(e, 'stage3b')}" for e in error.errors())
            raise ParamError("\n".join(words)) from None
    return found


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
        *FILE_KEYS,
    ]
    leaf = path.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    return f"unknown parameter '{path}'{did_you_mean(path, same or known)}"
