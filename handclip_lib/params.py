"""How a study and overrides fill the parameter tree (`schema.py`), its errors, and the paths.

A study (a YAML in `params/` or any path, see `study_file.py`) holds differences.
Relative paths in a study are relative to the project root, wherever the study lies.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from handclip_lib.schema import Params
from handclip_lib.schema_base import did_you_mean
from handclip_lib.study_file import (
    MODEL_ALIASES,
    ROOT,
    ParamError,
    StudyFile,
    differences_of,
    layer,
    merge,
    name_variants,
    read_study,
    study_path,
)
from handclip_lib.variants import (
    ChainStep,
    chain_finals,
    chain_recipe,
    chain_steps,
    explain,
    guided_variants,
    other_data,
    pretrain_variants,
    stage2_variants,
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
    "other_data",
    "own_aspect",
    "pretrain_variants",
    "read_study",
    "resolve",
    "stage2_variants",
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
        raise ParamError("\n".join(explain(e) for e in error.errors())) from None
    parts = (pretrain_variants, stage2_variants, guided_variants)
    for part in (*parts, chain_steps, chain_finals, other_data):
        part(p)  # their errors now
    return p


def own_aspect(study: str) -> str:
    """The one aspect that a study says it is for, else an empty string."""
    return str(read_study(study).values.get("aspect") or "")


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
