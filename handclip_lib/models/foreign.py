"""Weights files of others: plain state_dicts, wrapped in one way or another."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from handclip_lib.models.weights import WeightsError

if TYPE_CHECKING:
    from handclip_lib.models.clip import Encoder

_WRAPPINGS = ("state_dict", "model_state_dict", "model")  # where others put their tensors
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's files hold them
_SHOWN = 6  # names in a message


def kind_of(held: Any) -> str:
    """In words, what a file that is not ours holds."""
    if not isinstance(held, Mapping):
        return f"a {type(held).__name__}"
    if "resume_format" in held:
        return "what a killed training goes on from"
    return f"somebody's weights file with the keys {_listed(map(str, held))}"


def load_foreign(encoder: "Encoder", held: Any, path: Path) -> None:
    """Put a foreign state_dict, by open_clip's names, into an encoder, or leave that as it is.

    held: what the file at `path` holds: the tensors, perhaps wrapped as `state_dict`, perhaps with
    `module.` before each name, of the whole model or of its image tower alone (`visual.*`).
    Raises WeightsError naming missing, unexpected and misshapen tensors.
    """
    state = _tensors(held, path)
    target: nn.Module = encoder.model
    if all(name.startswith("visual.") for name in state):
        target = encoder.visual
        state = {name.removeprefix("visual."): value for name, value in state.items()}
    own = target.state_dict()
    counts = {name for name in own if name.endswith("num_batches_tracked")}  # old files lack them
    missing, unexpected = own.keys() - state.keys() - counts, state.keys() - own.keys()
    if missing or unexpected:
        both = {"missing": missing, "unexpected": unexpected}
        told = "; ".join(f"{word}: {_listed(names)}" for word, names in both.items() if names)
        raise WeightsError(f"{path} is not of a {encoder.name}: {told}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise WeightsError(
                f"{path}: {name} is {tuple(value.shape)}, {encoder.name} at"
                f" {encoder.preprocess.size} has {tuple(own[name].shape)}"
            )
    if isinstance(held, Mapping) and held.get("quick_gelu") not in (None, encoder.quick_gelu):
        raise WeightsError(f"{path} records another activation than {encoder.name} has")
    target.load_state_dict(own | state)


def _tensors(held: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a foreign file by name, without the wrappings people save them in."""
    state = held
    for word in _WRAPPINGS:
        if isinstance(state, Mapping) and isinstance(state.get(word), Mapping):
            state = state[word]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} is {kind_of(held)}: no state_dict")
    named = {str(name).removeprefix("module."): value for name, value in state.items()}
    odd = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise WeightsError(f"{path} is no state_dict: {_listed(odd)} are no tensors")
    return {name: value for name, value in named.items() if name not in _NO_WEIGHTS}


def _listed(names: Any) -> str:
    told = sorted(names)
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more
