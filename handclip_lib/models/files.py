"""Weights files: what a foreign one holds, and open_clip folders of our own."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from handclip_lib.data.atomic import write_whole
from handclip_lib.models.weights import CONFIG, WEIGHTS, WeightsError

if TYPE_CHECKING:
    from handclip_lib.models.clip import Encoder

_TABLE = "visual.positional_embedding"
_RESIZE_MODES = {"squash": "squash", "pad": "longest", "hand": "longest"}  # the nearest it has


def plain(path: Path, folder: Path) -> Path:
    """`path` itself, or a safetensors copy in `folder` where it is a TorchScript archive.

    OpenAI's own files are such archives, in half precision; open_clip no longer reads them.
    """
    if not _is_torchscript(path):
        return path
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    copy = folder / "weights.safetensors"
    float32 = {k: v.float().contiguous() for k, v in state.items() if v.is_floating_point()}
    rest = {k: v.contiguous() for k, v in state.items() if not v.is_floating_point()}
    save_file(float32 | rest, copy, metadata={"quick_gelu": "true"})
    return copy


def check_whole(path: Path) -> None:
    """Raise ValueError where a checksum inside a zip is wrong; an unchanged file is read once."""
    if zipfile.is_zipfile(path) and _first_damaged(path, path.stat().st_mtime_ns):
        raise ValueError(f"{path}: the checksum of a tensor is wrong")


@cache
def _first_damaged(path: Path, _written: int) -> str | None:
    with zipfile.ZipFile(path) as entries:
        return entries.testzip()


def check(path: Path, name: str, model_cfg: dict[str, Any]) -> None:
    """Refuse a weights file that `name` would load without complaint, and wrongly.

    Raises WeightsError where the file records another activation than the architecture has, or
    where its table of positions has another length: open_clip would resample it as a square,
    and the file does not say whether it is one.
    """
    rows, quick = _facts(path)
    wanted = bool(model_cfg.get("quick_gelu", False))
    if quick is not None and quick != wanted:
        other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise WeightsError(f"{path} was trained {_gelu(quick)}, {name} is {_gelu(wanted)}: {other}")
    vision = model_cfg["vision_cfg"]
    if rows is None or "timm_model_name" in vision or isinstance(vision["layers"], list):
        return  # a ResNet's table of another length does not load at all
    size, patch = vision["image_size"], vision["patch_size"]
    height, width = (size, size) if isinstance(size, int) else size
    expected = 1 + (height // patch) * (width // patch)
    if rows != expected:
        raise WeightsError(
            f"{path} holds {rows} positions, {name} at {height}x{width} has {expected}; which grid"
            " they form is not recorded: load it as a model folder (open_clip local-dir)"
        )


def save_local_dir(
    encoder: "Encoder",
    folder: Path,
    dtype: torch.dtype = torch.float32,
    trial: Callable[[Path], object] | None = None,
) -> Path:
    """Write the encoder as an open_clip local-dir, all or nothing; returns the folder.

    `open_clip.create_model_and_transforms("local-dir:FOLDER")` gives the same features, bit for
    bit in float32; float16 halves the size. Any fit but `squash` has only a near relative in
    open_clip's own transforms; ours is recorded beside. An older model folder is replaced; where
    `trial`, called with the new one before it has its name, raises, the older one stays.
    Raises FileExistsError on a folder with other things in it, ValueError on an image size at
    which open_clip cannot build the tower, and on an adapter, of which it knows nothing.
    """
    _check_rebuildable(encoder)
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and no model folder: choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(encoder, new, dtype)
        if trial is not None:
            trial(new)
        new.chmod(0o755)
        old = new.with_name(f"{new.name}.old")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _check_rebuildable(encoder: "Encoder") -> None:
    if "mba" in encoder.model_cfg:
        raise ValueError("open_clip builds no MBA-Net: keep this encoder as a checkpoint")
    if encoder.adapter is not None:
        raise ValueError(
            "open_clip knows no side information, visual prompts, overlapping patches, attention"
            " or parts, and LoRA once merge_lora has added it to the weights: keep this encoder as"
            " a checkpoint"
        )
    vision, size = encoder.model_cfg["vision_cfg"], encoder.preprocess.size
    if isinstance(vision.get("layers"), list) and size[0] != size[1]:
        raise ValueError(f"open_clip builds ResNet towers for square images only, not {size}")
    trunk: Any = getattr(encoder.visual, "trunk", None)
    if getattr(trunk, "pos_embed", None) is not None:
        own = tuple(trunk.default_cfg["input_size"][1:])
        if size != own:
            raise ValueError(f"open_clip builds {encoder.name} for {own} only, not {size}")


def _write(encoder: "Encoder", folder: Path, dtype: torch.dtype) -> None:
    fit = encoder.preprocess.fit
    preprocess = {
        "size": list(encoder.preprocess.size),
        "mean": list(encoder.preprocess.mean),
        "std": list(encoder.preprocess.std),
        "interpolation": encoder.preprocess.interpolation,
        "resize_mode": _RESIZE_MODES[fit],
        "fit": fit,
        "mirror_left": encoder.preprocess.mirror_left,
    }
    config = {"model_cfg": encoder.model_cfg, "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
        for name, value in encoder.model.state_dict().items()
    }
    quick = json.dumps(encoder.quick_gelu)
    contiguous = {name: value.clone().contiguous() for name, value in state.items()}
    metadata = {"format": "pt", "quick_gelu": quick}
    write_whole(folder / WEIGHTS, save(contiguous, metadata=metadata))


def _facts(path: Path) -> tuple[int | None, bool | None]:
    """Rows of the image tower's table of positions, and the recorded activation, if any."""
    if path.suffix == ".npz":
        return None, None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            told = (tensors.metadata() or {}).get("quick_gelu")
            found = _TABLE in tensors.keys()  # noqa: SIM118 (no mapping: it has no __contains__)
            rows = tensors.get_slice(_TABLE).get_shape()[0] if found else None
        return rows, None if told is None else told == "true"
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} is no weights file: {error}") from error
    state = held.get("state_dict", held)
    table = state.get(_TABLE, state.get(f"module.{_TABLE}"))
    return None if table is None else table.shape[0], held.get("quick_gelu")


def _gelu(quick: bool) -> str:
    return "with QuickGELU" if quick else "without QuickGELU"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
