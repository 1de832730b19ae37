"""Weights files of our own, which say what they are; and those of others, read with care."""

import copy
import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import load_file
from torch import nn

from handclip_lib import params
from handclip_lib.data.atomic import write_whole
from handclip_lib.data.preprocess import Preprocess
from handclip_lib.models import comparator, files, resize, weights
from handclip_lib.models.adapters import Adapter, attach
from handclip_lib.models.foreign import kind_of, load_foreign
from handclip_lib.models.weights import CONFIG, Source, WeightsError
from handclip_lib.schema_train import Adapt

if TYPE_CHECKING:
    from handclip_lib.models.clip import Encoder

_FORMAT, _VERSION = "handclip", 1


def save_checkpoint(
    path: Path,
    encoder: "Encoder",
    params: Mapping[str, Any],
    parent: str,
    key: str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the encoder and what must be known to use it, whole or not at all; returns the path.

    Tensors and plain values only: `torch.load(weights_only=True)`. `state_dict` is open_clip's
    own; beside it: `model` (how it was asked for), `tokenizer`, `model_cfg`, `quick_gelu`, `grid`
    (height, width of the table of positions), `preprocess`, `params`, `parent` (sha256 of the
    weights it started from), `sha256` (its own), `key` (fingerprint of what made it), `adapter`
    (`told`, `views` and its `state`, or None; LoRA's matrices are in `state_dict`), and `extra`.
    Raises TypeError on parameters that are not plain, ValueError on an `extra` that replaces one.
    """
    tokenizer, adapter = encoder.tokenizer_name, encoder.adapter
    held: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": encoder.name,
        "tokenizer": "" if tokenizer.startswith("local-dir:") else tokenizer,
        "model_cfg": copy.deepcopy(encoder.model_cfg),
        "quick_gelu": encoder.quick_gelu,
        "grid": resize.grid_of(encoder.visual),
        "preprocess": encoder.preprocess.as_dict(),
        "params": json.loads(json.dumps(dict(params))),
        "parent": parent,
        "sha256": encoder.weights_sha256,
        "key": key,
        "state_dict": _tensors(encoder.model),
        "adapter": adapter and adapter.settings | {"state": _tensors(adapter)},
    }
    if extra and held.keys() & extra.keys():
        raise ValueError(f"extra: {sorted(held.keys() & extra.keys())} are the file's own")
    buffer = io.BytesIO()
    torch.save(held | dict(extra or {}), buffer)
    return write_whole(Path(path), buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; its tensors are read from the disk when they are used.

    Raises FileNotFoundError, and WeightsError on what is not such a file, with what it is.
    """
    held = _read(Path(path))
    if not _is_ours(held):
        raise WeightsError(
            f"{path} is {kind_of(held)}, no checkpoint of this kit: give the architecture's name as"
            " the model and the file as `pretrained`"
        )
    if held["version"] != _VERSION:
        raise WeightsError(f"{path}: version {held['version']}; this kit reads {_VERSION}: update")
    told: dict[str, Any] = held
    return told


def load_weights(encoder: "Encoder", path: Path) -> None:
    """Put the weights of a file into an encoder, which keeps its image size and preprocessing.

    The file is one of ours (a table of positions of another size is resampled from the grid that
    was stored), or a foreign state_dict by open_clip's names, of the whole model or of its image
    tower alone (`visual.*`). Afterwards optimisers must be made anew: tables may be new parameters.
    An adapter comes along; the encoder has none, or the same. Raises WeightsError naming what
    disagrees: architecture, activation, adapter, mean and std, missing, unexpected or misshapen
    tensors. The encoder is then as it was.
    """
    held = read_checkpoint(path) if is_ours(path) else {}
    _check_adapter(held, encoder.adapter, path)
    if not held:
        load_foreign(encoder, _read(Path(path)), Path(path))
        return
    _check_agrees(held, encoder.model_cfg, encoder.name, path)
    _check_pixels(Preprocess.from_dict(held["preprocess"]), encoder.preprocess, path)
    size = encoder.preprocess.size
    if encoder.adapter is None:
        encoder.adapter = _attached(encoder.visual, held)
    _fill(encoder.model, held, encoder.adapter)
    resize.set_image_size(encoder.visual, size)


def find_checkpoint(model: str, pretrained: str | None) -> dict[str, Any] | None:
    """The file of ours that `load_encoder(model, pretrained)` means, if it means one.

    Raises WeightsError where `model` is a file that is not ours, or is another architecture than
    that of the checkpoint `pretrained`.
    """
    path = _file(model)
    if path is not None:
        if pretrained:
            raise WeightsError(f"{path} brings its own weights; pretrained must be empty")
        return read_checkpoint(path)
    path = _file(pretrained) if pretrained else None
    if path is None or not _may_be_ours(path):
        return None
    held = read_checkpoint(path)
    named = weights.find_source(model, weights.RANDOM)
    _check_agrees(held, named.model_cfg, model, path)
    return held


def source_of(held: Mapping[str, Any]) -> Source:
    """What open_clip builds a checkpoint's tower from: its own description, kept in our cache.

    The model folder that it came from is not needed; `rebuild` then brings the weights.
    """
    cfg = copy.deepcopy(held["model_cfg"])
    if isinstance(cfg["vision_cfg"].get("layers"), list):
        cfg["vision_cfg"]["image_size"] = held["preprocess"]["size"][0]  # it builds squares only
    text = json.dumps({"model_cfg": cfg, "preprocess_cfg": {}}, indent=2)
    folder = params.cache_dir() / "towers" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CONFIG, text.encode())
    build = f"local-dir:{folder}"
    name, tokenizer = held["model"], held["tokenizer"] or ("" if "mba" in cfg else build)
    return Source(name, build, tokenizer, held["model_cfg"], None, held["preprocess"])


def rebuild(source: Source, held: Mapping[str, Any]) -> tuple[Any, Adapter | None]:
    """The checkpoint's model, at the image size that it was saved at, and its adapter.

    source: of `source_of`.
    """
    if "mba" in held["model_cfg"]:
        net = comparator.build(held["model_cfg"])
        _fill(net, held, None)
        return net, None
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip would say that the weights are random
    try:
        model = open_clip.create_model(source.build, load_weights=False, pretrained_text=False)
    finally:
        logging.disable(before)
    adapter = _attached(model.float().visual, held)
    _fill(model, held, adapter)
    return model, adapter


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _attached(visual: nn.Module, held: Mapping[str, Any]) -> Adapter | None:
    """The adapter that a checkpoint tells of, on the tower, before its tensors are loaded."""
    told = held.get("adapter")  # the first files have no such key
    if told:  # an attention has tables for the size of its map
        resize.set_image_size(visual, tuple(held["preprocess"]["size"]))
    return attach(visual, Adapt(**told["told"]), told["views"]) if told else None


def _check_adapter(held: Mapping[str, Any], adapter: Adapter | None, path: Path) -> None:
    """Raise WeightsError where an encoder's adapter is not the one of the file that is loaded."""
    told = held.get("adapter") or {}
    same = told and adapter and Adapt(**told["told"]) == adapter.told
    if adapter is None or (same and tuple(told["views"]) == adapter.views):
        return
    raise WeightsError(
        f"{path} has {'another' if told else 'no'} adapter, the encoder has one already: load the"
        " weights before you adapt it"
    )


def _fill(model: Any, held: Mapping[str, Any], adapter: Adapter | None) -> None:
    """Load the tensors; the model then has the image size that they were saved at."""
    visual, size = model.visual, tuple(held["preprocess"]["size"])
    if isinstance(visual, TimmModel) and resize.native_size(visual) == size:
        visual.set_input_size(size)  # it may say so of a trunk that was built at another one
    resize.set_image_size(visual, size)
    grid = resize.grid_of(visual)
    if grid != held["grid"]:
        raise WeightsError(f"positions: stored grid {held['grid']}, at size {size} it is {grid}")
    try:
        model.load_state_dict(held["state_dict"])
        if adapter is not None:
            adapter.load_state_dict(held["adapter"]["state"])
    except RuntimeError as error:
        raise WeightsError(f"the checkpoint is not of a {held['model']}: {error}") from error


def _read(path: Path) -> Any:
    """Whatever a weights file holds, on the CPU."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path.absolute()}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            plain = files.plain(path, Path(folder))
            files.check_whole(plain)
            if plain.suffix == ".safetensors":
                return load_file(plain)
            return torch.load(plain, map_location="cpu", weights_only=True, mmap=_is_zip(plain))
        except Exception as error:
            raise WeightsError(
                f"{path} is damaged, or no weights file: name one, such as a run's checkpoints/"
                "stage1.pth; where it is a run's own, delete it, and it is trained anew"
            ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"  # what torch wrote since 1.6; older files cannot be mapped


def is_ours(path: Path) -> bool:
    """Whether a weights file is of this kit. Raises WeightsError where it can't be read."""
    return _is_ours(_read(Path(path)))


def _is_ours(held: Any) -> bool:
    return isinstance(held, dict) and held.get("format") == _FORMAT


def _may_be_ours(path: Path) -> bool:
    """Whether the file is ours; one that cannot be read is left to the loader of foreign files."""
    try:
        return path.suffix not in (".safetensors", ".npz") and _is_ours(_read(path))
    except WeightsError:
        return False


def _file(text: str) -> Path | None:
    candidates = (Path(text).expanduser(), params.resolve(text))
    return next((path.resolve() for path in candidates if path.is_file()), None)


def _check_agrees(
    held: Mapping[str, Any], described: Mapping[str, Any], name: str, path: Path
) -> None:
    """Raise WeightsError where a checkpoint is not of the architecture that is `described`."""
    quick = bool(described.get("quick_gelu", False))
    if held["quick_gelu"] != quick:
        words = {True: "with QuickGELU", False: "without QuickGELU"}
        raise WeightsError(
            f"{path} was trained {words[not quick]}, {name} is {words[quick]}: load it as"
            f" {held['model']}"
        )
    ours, theirs = _architecture(held["model_cfg"]), _architecture(described)
    if ours != theirs:
        differ = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise WeightsError(
            f"{path} is a {held['model']}, not a {name}: they differ in {', '.join(differ)}"
        )


def _architecture(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A description without image size and activation, its branches flat."""
    flat = {k: v for k, v in cfg.items() if k != "quick_gelu" and not isinstance(v, Mapping)}
    for branch, values in ((k, v) for k, v in cfg.items() if isinstance(v, Mapping)):
        flat |= {f"{branch}.{k}": v for k, v in values.items() if k != "image_size"}
    told: dict[str, Any] = json.loads(json.dumps(flat))  # lists and tuples alike
    return told


def _check_pixels(stored: Preprocess, now: Preprocess, path: Path) -> None:
    """Another mean or std is an error; another way to fit or mirror changes less, and is said."""
    for name in ("mean", "std"):
        was, is_now = getattr(stored, name), getattr(now, name)
        if was != is_now:
            raise WeightsError(f"{path} was trained with {name} {was}, the encoder has {is_now}")
    was, is_now = stored.as_dict(), now.as_dict()
    for name in sorted(was.keys() - {"mean", "std", "size"}):
        if was[name] != is_now[name]:
            warnings.warn(
                f"{path} was trained with {name} '{was[name]}' and is used with '{is_now[name]}'",
                stacklevel=4,
            )
