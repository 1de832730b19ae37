"""Where a tower's architecture and weights come from: names, tags, files, folders, the hub."""

import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from handclip_lib import params
from handclip_lib.schema_base import did_you_mean

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
RANDOM = "random"  # the explicit word for weights that nobody trained
TINY = ("tiny", "tiny_rn")
_TINY_ROOT = Path(__file__).resolve().parent / "tiny"
_HUB_WEIGHTS = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz")
_PROBE_SECONDS = 5


class WeightsError(ValueError):
    """A model name, tag, folder or file that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """What open_clip builds a tower from. `weights` is None for random weights."""

    name: str  # as its user calls it
    build: str  # a built-in name, or local-dir:FOLDER
    tokenizer: str  # by what open_clip finds the tokenizer
    model_cfg: dict[str, Any]
    weights: Path | None
    preprocess: dict[str, Any] = field(default_factory=dict)  # mean, std, interpolation, fit


def find_source(model: str, pretrained: str | None) -> Source:
    """Resolve a model's name and `pretrained` (as `load_encoder` takes them) into a Source.

    Raises WeightsError (a ValueError) on what is unknown or contradictory, FileNotFoundError on
    what is missing, ConnectionError on weights that are not here and cannot be fetched.
    """
    if model in TINY:
        folder = _TINY_ROOT / model
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"no weights of '{model}' in {folder}: run `make tiny`")
        return _from_folder(model, folder, pretrained)
    if model.startswith("hf-hub:"):
        return _from_folder(model, _hub_folder(model.removeprefix("hf-hub:")), pretrained, model)
    folder_path = _as_folder(model)
    if folder_path is not None:
        return _from_folder(folder_path.name, folder_path, pretrained)
    alias = params.MODEL_ALIASES.get(model.lower())
    if alias:
        model, pretrained = alias["name"], pretrained or alias["pretrained"]
    return _from_name(model.replace("/", "-"), pretrained)


def _as_folder(model: str) -> Path | None:
    """The open_clip local-dir that `model` names, if it names one."""
    text = model.removeprefix("local-dir:")
    for path in (Path(text).expanduser(), params.resolve(text)):
        if path.is_dir():
            if not (path / CONFIG).is_file():
                raise FileNotFoundError(f"{path} has no {CONFIG}: not a model folder")
            return path.resolve()
        if path.is_file():
            raise WeightsError(
                f"{path} is a file: give the architecture's name as the model and the file as"
                " `pretrained`"
            )
    if text != model or text.startswith((".", "~")) or Path(text).is_absolute():
        raise FileNotFoundError(f"no model folder {text}")
    return None


def _from_folder(
    name: str, folder: Path, pretrained: str | None, tokenizer: str | None = None
) -> Source:
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if "model_cfg" not in told:
        raise WeightsError(f"{folder / CONFIG} has no model_cfg: not an open_clip model folder")
    if pretrained not in (None, "", RANDOM):
        raise WeightsError(
            f"'{name}' brings its own weights; pretrained must be empty or '{RANDOM}',"
            f" not '{pretrained}'"
        )
    weights = next((folder / w for w in _HUB_WEIGHTS if (folder / w).is_file()), None)
    if weights is None and pretrained != RANDOM:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(_HUB_WEIGHTS)}")
    build = f"local-dir:{folder}"
    weights = None if pretrained == RANDOM else weights
    preprocess = told.get("preprocess_cfg", {})
    return Source(name, build, tokenizer or build, told["model_cfg"], weights, preprocess)


def _from_name(name: str, pretrained: str | None) -> Source:
    known = open_clip.list_models()
    if name not in known:
        raise WeightsError(
            f"unknown model '{name}'{did_you_mean(name, [*known, *TINY])}; an open_clip name,"
            f" {', '.join(TINY)}, hf-hub:ORG/NAME, a weights file, or a folder with {CONFIG}; there"
            " is no file or folder of this name here, either"
        )
    if pretrained is None:  # open_clip's own convention; a study, which says "", never gets here
        warnings.warn(f"{name} gets random weights: nobody trained them", stacklevel=4)
        pretrained = RANDOM
    if not pretrained:
        raise WeightsError(f"{name} needs weights: {_choices(name)}")
    path = None if pretrained == RANDOM else _as_file(pretrained)
    if path is not None or pretrained == RANDOM:
        usual = _usual_cfg(name, path)
        return Source(name, name, name, open_clip.get_model_config(name), path, usual)
    if _quick_tag(name, pretrained):
        print(f"{name}: '{pretrained}' was trained with QuickGELU; taking {name}-quickgelu")
        name += "-quickgelu"
    cfg = open_clip.get_pretrained_cfg(name, pretrained)
    if not cfg:
        plain = name.removesuffix("-quickgelu")
        if plain != name and open_clip.get_pretrained_cfg(plain, pretrained):
            raise WeightsError(
                f"'{pretrained}' was not trained with QuickGELU: name the model {plain}"
            )
        raise WeightsError(f"{name} has no weights '{pretrained}': {_choices(name)}")
    weights = _tag_file(name, pretrained, cfg)
    return Source(name, name, name, open_clip.get_model_config(name), weights, cfg)


def _as_file(pretrained: str) -> Path | None:
    if "/" not in pretrained and not pretrained.endswith(_SUFFIXES):
        return None
    candidates = (Path(pretrained).expanduser(), params.resolve(pretrained))
    found = next((path.resolve() for path in candidates if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights file {candidates[0].absolute()}")
    return found


def _quick_tag(name: str, tag: str) -> bool:
    """Whether these weights want QuickGELU and the named architecture has not got it."""
    told = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return bool(told) and f"{name}-quickgelu" in open_clip.list_models()


def _usual_cfg(name: str, path: Path | None) -> dict[str, Any]:
    """Mean, std and filter that all of a model's published weights agree on.

    Where they do not agree random weights take open_clip's own; a file is a WeightsError: nothing
    in it says which it was trained with.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    keys = ("mean", "std", "interpolation")
    cfgs = [{k: open_clip.get_pretrained_cfg(name, t)[k] for k in keys} for t in tags]
    if all(cfg == cfgs[0] for cfg in cfgs):
        return cfgs[0] if cfgs else {}
    if path is None:
        return {}
    raise WeightsError(
        f"the published weights of {name} differ in mean and std, and {path} does not say which it"
        f" wants: put it at {_own_folder()}/{name}.TAG{path.suffix} with pretrained TAG (one of"
        f" {', '.join(tags)}), or load it as a model folder (open_clip local-dir) that records them"
    )


def _own_folder() -> Path:
    """Where weights that were fetched by hand lie, as `<name>.<tag>.<suffix>`."""
    return params.cache_dir() / "weights"


def _choices(name: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    listed = f"one of {', '.join(tags)}, " if tags else ""
    return f"set pretrained to {listed}a weights file, or the word '{RANDOM}'"


def _tag_file(name: str, tag: str, cfg: dict[str, Any]) -> Path:
    """The weights of a tag: from our folder, the hub's cache, or the hub."""
    own = _own_folder()
    for suffix in _SUFFIXES:
        if (own / f"{name}.{tag}{suffix}").is_file():
            return own / f"{name}.{tag}{suffix}"
    repo, _, filename = cfg["hf_hub"].rpartition("/")
    names = (filename,) if filename else _HUB_WEIGHTS
    hint = (
        f"put it at {own}/{name}.{tag}.safetensors (or {', '.join(_SUFFIXES[:3])}, as the file is),"
        f" or pass its path as `pretrained`; `pretrained={RANDOM}` tries things out untrained"
    )
    return _hub_file(repo, names, f"the weights '{tag}' of {name}", hint)


def _hub_folder(repo: str) -> Path:
    what, hint = f"the files of hf-hub:{repo}", "put all files in a folder and name it as the model"
    config = _hub_file(repo, (CONFIG,), what, hint)
    _hub_file(repo, _HUB_WEIGHTS, what, hint)
    return config.parent


def _hub_file(repo: str, names: Sequence[str], what: str, hint: str) -> Path:
    """The first of `names` that the hub's cache, else the hub, has."""
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    _probe(repo, names, what, hint)
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name))
        except LocalEntryNotFoundError as error:
            raise ConnectionError(f"the hub broke off while sending {what}: {error}") from error
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{repo} on the hub holds none of {', '.join(names)}")


def _probe(repo: str, names: Sequence[str], what: str, hint: str) -> None:
    """Fail in seconds where the hub cannot be reached; its client would retry for a long while."""
    url = f"{hub_constants.ENDPOINT}/{repo}/resolve/main/{names[0]}"
    try:
        if hub_constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = urllib.request.Request(hub_constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise ConnectionError(
            f"{what} are not on this machine and {hub_constants.ENDPOINT} cannot be reached"
            f" ({error}).\nFetch {url} elsewhere and {hint}."
        ) from error
