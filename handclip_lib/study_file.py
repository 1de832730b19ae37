"""What a study file says: its differences, the study it extends, its variants, losses by name.

Beside parameters a study may hold `extends` (a study whose values count where it says nothing),
`sweep` ({variant: overrides}), `notebooks` (those of its runs) and `seeds`. What is extended brings
these, too; a key of the child replaces them whole.
"""

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from handclip_lib.schema_base import did_you_mean
from handclip_lib.schema_chain import REMEDIES

ROOT = Path(__file__).resolve().parent.parent  # the project: notebooks/, params/, reports/ lie here
FILE_KEYS = ("extends", "sweep", "notebooks", "seeds")
_TAKEN = {
    "pretrain.variants": ("zero_shot", "stage1", "prompts"),
    "stage2.variants": ("zero_shot", "stage1", "prompts"),
    "stage3b.variants": ("zero_shot", "stage1", "prompts"),
    "chain.finals": ("zero_shot", "chain", "second_order", "single", "joint", *REMEDIES),
}
_FOLDERS = {
    "pretrain.variants": "pretrain",
    "stage2.variants": "losses",
    "stage3b.variants": "guided",
    "chain.finals": "guided",
}
_NAMED = ("aspect", "study", "seed", "tag")  # arguments of their own


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


@dataclass(frozen=True)
class StudyFile:
    """A study with all that it extends. values: nested as the tree is; the rest: the file's keys.

    sweep: variant -> nested overrides, empty for a plain study; notebooks: empty means the
    numbered ones; seeds: empty means 0.
    """

    path: Path
    values: dict[str, Any]
    sweep: dict[str, dict[str, Any]] = field(default_factory=dict)
    notebooks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def read_study(study: str) -> StudyFile:
    """The study of this name or path. Raises ParamError that names the file and the key."""
    path = study_path(study)
    values: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for file, told in reversed(_lineage(path).items()):
        keys |= {key: told.pop(key) for key in FILE_KEYS if key in told}
        own = _from_legacy(told)
        refuse(own, _NAMED[1:], file.name)
        layer(values, own, file.name)
    return StudyFile(
        path,
        values,
        _sweep(keys.get("sweep"), path.name),
        tuple(str(name) for name in _list(keys, "notebooks", str, path.name)),
        tuple(_list(keys, "seeds", int, path.name)),
    )


def study_path(study: str, beside: Path | None = None) -> Path:
    """The YAML behind a name (in params/ or params/ablations/) or a path.

    A relative path counts from `beside` (by default the working folder), then from the project.
    Raises ParamError with a suggestion when there is none.
    """
    text = str(study)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        for candidate in ((beside or Path()) / path, ROOT / path):
            if candidate.is_file():
                return candidate.resolve()
        raise ParamError(f"no study file {((beside or Path()) / path).absolute()}")
    folders = (ROOT / "params", ROOT / "params" / "ablations")
    known = {f.stem: f for folder in reversed(folders) for f in sorted(folder.glob("*.yaml"))}
    if text not in known:
        plain, sweeps = (", ".join(sorted(f.stem for f in d.glob("*.yaml"))) for d in folders)
        raise ParamError(
            f"no study '{text}'{did_you_mean(text, known)}; params/ has {plain};"
            f" params/ablations/ has {sweeps or 'none'}"
        )
    return known[text]


def differences_of(told: Mapping[str, Any] | str, where: str) -> dict[str, Any]:
    """Overrides (nested, dotted, or YAML text of either) as a nested tree of their own."""
    change = read_yaml(told, where) if isinstance(told, str) else _worded(told)
    refuse(change, _NAMED, where)
    return _with_model(nested(change))


def layer(base: dict[str, Any], change: Mapping[str, Any], where: str) -> None:
    """Put differences over what is there, in place: branches merge, lists and values replace.

    Losses and variants say the same thing, so the later one counts: `stage2.losses` takes away the
    variants beneath it, and `stage2.variants` those of before. Both at once is an error. Variants
    and `comparison.others` are replaced whole.
    """
    stage2 = change.get("stage2")
    told = stage2 if isinstance(stage2, Mapping) else {}
    if told.get("losses") and told.get("variants"):
        raise ParamError(
            f"stage2: {where} gives both losses and variants, which are lists of losses by name:"
            " keep one of them"
        )
    beneath = base.get("stage2")
    if isinstance(beneath, dict) and ("losses" in told or "variants" in told):
        beneath.pop("variants", None)
    whole = [*(place for place in _FOLDERS if place != "stage2.variants"), "comparison.others"]
    for branch, key in (place.split(".") for place in whole):
        new = change.get(branch)
        if isinstance(new, Mapping) and key in new and branch in base:
            base[branch].pop(key, None)
    merge(base, change)


def name_variants(values: dict[str, Any]) -> None:
    """Replace names by what their files hold, in place.

    Those in `pretrain.variants` by the files of params/pretrain/, in `stage2.variants` by those of
    params/losses/, in `stage3b.variants` and `chain.finals` by those of params/guided/. A list may
    hold {name: what differs from the file}; a variant by another name says which it `extends`.
    """
    for place, folder in _FOLDERS.items():
        branch, key = place.split(".")
        stage = values.get(branch)
        told = stage.get(key) if isinstance(stage, dict) else None
        if isinstance(told, str):
            told = [told]
        if isinstance(told, list):
            told = dict(_of_file(one, place) for one in told)
        if isinstance(stage, dict) and isinstance(told, dict):
            _check_names(told, place)
            stage[key] = {n: _extended(change, folder, place) for n, change in told.items()}


def _of_file(told: Any, where: str) -> tuple[str, dict[str, Any]]:
    """A file's name, or {name: what differs from the file}, as a variant that extends it."""
    if not isinstance(told, Mapping):
        return str(told), {"extends": str(told)}
    if len(told) != 1 or not isinstance(next(iter(told.values())), Mapping):
        raise ParamError(f"{where}: expected a name, or {{name: {{key: value}}}}, got {told}")
    ((name, change),) = told.items()
    return str(name), {"extends": str(name), **change}


def _extended(told: Any, folder: str, where: str) -> Any:
    """A variant's settings over those of the file that it extends, if it does."""
    if not isinstance(told, Mapping) or "extends" not in told:
        return told
    name = str(told["extends"])
    files = {f.stem: f for f in sorted((ROOT / "params" / folder).glob("*.yaml"))}
    if name not in files:
        raise ParamError(
            f"{where}: no {folder} '{name}'{did_you_mean(name, files)};"
            f" params/{folder}/ has {', '.join(files) or 'none'}"
        )
    held = read_yaml(files[name].read_text(encoding="utf-8"), str(files[name]))
    merge(held, nested({key: value for key, value in told.items() if key != "extends"}))
    return held


def _check_names(told: Mapping[str, Any], where: str) -> None:
    for name in told:
        if name in _TAKEN[where]:
            raise ParamError(f"{where}: '{name}' is the name of another row or file")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*", str(name)):
            raise ParamError(
                f"{where}: '{name}' becomes part of file names: letters, digits and _ . + = - only"
            )


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; ParamError that begins with `where` if it does not."""
    told = read_value(text, where)
    if told is not None and not isinstance(told, dict):
        raise ParamError(f"{where}: expected 'key: value' lines, got {type(told).__name__}")
    return told or {}


def read_value(text: str, where: str) -> Any:
    """What a YAML text holds, of any kind; ParamError that begins with `where` if it is none."""
    try:
        return _worded(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ParamError(f"{where} is not valid YAML: {error}") from None


def _worded(value: Any) -> Any:
    """The same with `on`, the key for a loss's features, which YAML 1.1 takes for true."""
    if isinstance(value, Mapping):
        return {"on" if key is True else key: _worded(inner) for key, inner in value.items()}
    return [_worded(inner) for inner in value] if isinstance(value, list) else value


def refuse(told: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Keys that say which run it is are arguments of their own: in a file they would be lost."""
    for key in keys:
        if key in told:
            raise ParamError(f"{key}: pass it as an argument of its own, not in {where}")


def _lineage(path: Path) -> dict[Path, dict[str, Any]]:
    """A study file and all that it extends, itself first, with what each says."""
    found: dict[Path, dict[str, Any]] = {}
    while True:
        found[path] = read_yaml(path.read_text(encoding="utf-8"), str(path))
        parent = found[path].pop("extends", None)
        if parent is None:
            return found
        try:
            above = study_path(str(parent), path.parent)
        except ParamError as error:
            raise ParamError(f"{path.name}, extends: {error}") from None
        if above in found:
            circle = " → ".join(file.name for file in [*found, above])
            raise ParamError(f"extends: {circle} goes in a circle")
        path = above


def _sweep(told: Any, where: str) -> dict[str, dict[str, Any]]:
    if told is None:
        return {}
    if not isinstance(told, dict) or not all(isinstance(v, dict) and v for v in told.values()):
        raise ParamError(f"sweep: {where} must give {{variant: {{parameter: value}}}}")
    return {str(k): differences_of(v, f"sweep.{k} of {where}") for k, v in told.items()}


def _list(keys: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any]:
    told = keys.get(key) or []
    if not isinstance(told, list) or any(type(item) is not kind for item in told):
        raise ParamError(f"{key}: {where} must give a list of {kind.__name__}, got {told!r}")
    return told


def _from_legacy(told: Mapping[str, Any]) -> dict[str, Any]:
    if not _LEGACY_MARKS & set(told):
        return _with_model(nested(told))
    return _with_model(nested({_LEGACY.get(str(k), str(k)): v for k, v in told.items()}))


def _with_model(told: dict[str, Any]) -> dict[str, Any]:
    """`model: vitb16`, as the user's own files say it, or any other name, as a branch."""
    if isinstance(told.get("model"), str):
        name = told["model"]
        told["model"] = MODEL_ALIASES.get(name.lower(), {"name": name, "pretrained": ""})
    return told


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as branches: `{"a.b": 1}` is `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(str(key).split(".")):
            value = {part: nested(value) if isinstance(value, Mapping) else value}
        merge(tree, value)
    return tree


def merge(base: dict[str, Any], change: Mapping[str, Any]) -> None:
    """Put a nested tree over another, in place: branches merge, lists and values replace."""
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = deepcopy(value)
