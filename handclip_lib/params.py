"""How a study and overrides fill the parameter tree (`schema.py`), its errors, and the paths.

A study (a YAML in `params/` or any path) holds differences.
Relative paths in a study are relative to the project root, wherever the study lies.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from pydantic import ValidationError

from handclip_lib.schema import Params, leaves
from handclip_lib.schema_base import did_you_mean

ROOT = Path(__file__).resolve().parent.parent  # the project: notebooks/, params/, reports/ lie here


class ParamError(ValueError):
    """A parameter that is unknown, malformed or out of range; the message says where and what."""


# What the user's own stage-2 files call things -> where they live here
_LEGACY = {
    "dataset": "data.dataset",
    "variant": "stage2.variant",
    "resume_from": "stage2.resume_from",
    "batch_size": "stage2.batch_size",
    "epochs": "stage2.epochs",
    "lr": "stage2.lr",
    "losses": "stage2.losses",
    "save_dir": "stage2.save_dir",
    "output_dir": "reports",
}
_LEGACY_MARKS = {"experiment", "variant", "resume_from", "losses", "output_dir", "save_dir"}
MODEL_ALIASES = {
    "vitb16": {"name": "ViT-B-16-quickgelu", "pretrained": "openai"},
    "rn50": {"name": "RN50-quickgelu", "pretrained": "openai"},
}


def load(
    aspect: str | None = None,
    study: str = "demo",
    seed: int = 0,
    tag: str = "",
    overrides: Mapping[str, Any] | str | None = None,
) -> Params:
    """Resolve defaults < study < overrides into one frozen tree.

    aspect: None takes the study's own, else dorsal_r; study: a name in `params/` or a path to a
    YAML; overrides: nested mapping, dotted keys (`stage2.lr`) or YAML text of either.
    Raises ParamError with the path of the bad key and the nearest good one.
    """
    path = study_path(study)
    told = _from_legacy(_read(path.read_text(encoding="utf-8"), str(path)))
    _refuse_own_keys(told, ("study", "seed", "tag"), path.name)
    own = told.get("aspect")
    if aspect and own and aspect != own:
        raise ParamError(
            f"aspect: study '{path.stem}' is for {own}, but {aspect} was asked for;"
            f" pass aspect {own}, or remove the line from {path.name}"
        )
    change = _read(overrides, "overrides") if isinstance(overrides, str) else dict(overrides or {})
    _refuse_own_keys(change, ("aspect", "study", "seed", "tag"), "overrides")
    _merge(told, _with_model(_nested(change)))
    told |= {"study": path.stem, "seed": seed, "tag": tag}
    told["aspect"] = aspect or own or "dorsal_r"
    try:
        return Params.model_validate(told)
    except ValidationError as error:
        raise ParamError("\n".join(_explain(e) for e in error.errors())) from None


def own_aspect(study: str) -> str:
    """The one aspect that a study says it is for, else an empty string."""
    path = study_path(study)
    return str(_from_legacy(_read(path.read_text(encoding="utf-8"), str(path))).get("aspect") or "")


def study_path(study: str) -> Path:
    """The YAML behind a study's name or path; ParamError with a suggestion when there is none."""
    text = str(study)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        for candidate in (path, ROOT / path):
            if candidate.is_file():
                return candidate.resolve()
        raise ParamError(f"no study file {path.absolute()}")
    path = ROOT / "params" / f"{text}.yaml"
    if not path.is_file():
        known = sorted(f.stem for f in (ROOT / "params").glob("*.yaml"))
        raise ParamError(
            f"no study '{text}'{did_you_mean(text, known)}; params/ has {', '.join(known)}"
        )
    return path


def resolve(path: str) -> Path:
    """An absolute path: `~` and $VARIABLES expanded, relative ones from the project root."""
    return ROOT / Path(os.path.expandvars(path)).expanduser()


def cache_dir() -> Path:
    """Where decoded pixels and features are kept: $HANDCLIP_CACHE, else the user's cache."""
    told = os.environ.get("HANDCLIP_CACHE")
    return resolve(told) if told else Path(platformdirs.user_cache_dir("handclip"))


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamError(f"{where} is not valid YAML: {error}") from None
    if told is not None and not isinstance(told, dict):
        raise ParamError(f"{where}: expected 'key: value' lines, got {type(told).__name__}")
    return dict(told or {})


def _refuse_own_keys(told: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """These say which run it is, and are arguments of their own: in a file they would be lost."""
    for key in keys:
        if key in told:
            raise ParamError(f"{key}: pass it as an argument of its own, not in {where}")


def _with_model(told: dict[str, Any]) -> dict[str, Any]:
    """`model: vitb16`, as the user's own files say it, or any other name, as a branch."""
    if isinstance(told.get("model"), str):
        name = told["model"]
        told["model"] = MODEL_ALIASES.get(name.lower(), {"name": name, "pretrained": ""})
    return told


def _from_legacy(told: dict[str, Any]) -> dict[str, Any]:
    if not _LEGACY_MARKS & set(told):
        return _with_model(_nested(told))
    renamed = {_LEGACY.get(str(key), str(key)): value for key, value in told.items()}
    return _with_model(_nested(renamed))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(str(key).split(".")):
            value = {part: _nested(value) if isinstance(value, Mapping) else value}
        _merge(tree, value)
    return tree


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{path}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"
    known = [key for key, _ in leaves(Params().model_dump())]
    leaf = path.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    return f"unknown parameter '{path}'{did_you_mean(path, same or known)}"
