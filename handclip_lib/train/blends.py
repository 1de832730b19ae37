"""Weights between those of a chain: WiSE-FT and soups; nothing is trained."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch

from handclip_lib.data import splits
from handclip_lib.data.store import open_store
from handclip_lib.device import make_fabric
from handclip_lib.models import soup
from handclip_lib.models.checkpoint import read_checkpoint, save_checkpoint
from handclip_lib.models.clip import Encoder
from handclip_lib.params import ParamError
from handclip_lib.schema import Data, Params
from handclip_lib.train.job import encoder_from, study_encoder
from handclip_lib.train.selection import SELECT, held_manifests, held_scores
from handclip_lib.train.states import State, Task, answers, unit_features


@dataclass(frozen=True)
class Sweep:
    """WiSE-FT's weights between start (0) and end (1). alpha: the one that is kept; how: in words.

    held: by alpha, mAP of held-out training persons, NaN without; answers: {alpha: {task:
    `per_query`}} of the test's queries, which choose nothing.
    """

    alpha: float
    how: str
    held: Mapping[str, float]
    answers: Mapping[str, Mapping[str, pd.DataFrame]]


def wise_ft(
    p: Params,
    tasks: Mapping[str, Task],
    states: Sequence[State],
    folder: Path,
    fabric: lf.Fabric,
) -> tuple[tuple[State, ...], Sweep]:
    """Each step's weights, drawn towards those before the chain; nothing is trained.

    alpha is the one that the `sweep` to the last step's weights keeps.
    """
    swept = sweep(p, tasks, states[-1].file, fabric)
    return _all_steps(p, tasks, states, folder, swept.alpha), swept


def sweep(p: Params, tasks: Mapping[str, Task], end: Path | None, fabric: lf.Fabric) -> Sweep:
    """What weights between the study's tower and those of a file answer; none are kept.

    alpha, the share of the file's weights, is the one of `p.chain.wise_ft` with the best mean mAP
    of held-out training persons over the tasks (of equals the larger); without such persons
    `soup.UNCHOSEN`. Raises ParamError where the file has an adapter, WeightsError where it is of
    another tower. Wortsman et al. 2022, arXiv:2109.01903.
    """
    encoder, ends = study_encoder(p), _ends(p, [None, end])
    held, found = dict[str, float](), dict[str, dict[str, pd.DataFrame]]()
    for alpha in p.chain.wise_ft:
        _blend(p, encoder, ends, alpha, tasks)
        seen = {
            n: (t.images, unit_features(encoder, t, t.images, fabric)) for n, t in tasks.items()
        }
        found[f"{alpha:g}"] = answers(seen, tasks)
        held[f"{alpha:g}"] = _held(encoder, tasks, fabric)
    if np.isfinite(list(held.values())).all():
        alpha = soup.best(p.chain.wise_ft, held.values())
        how = "by the mAP of held-out training persons"
    else:
        alpha = soup.UNCHOSEN
        how = "beforehand: too few training persons are held out to choose it"
    return Sweep(alpha, how, held, found)


def checkpoint_soup(
    p: Params, tasks: Mapping[str, Task], states: Sequence[State], folder: Path
) -> tuple[State, ...]:
    """After each step the mean of the weights of all steps so far; nothing is trained."""
    return _all_steps(p, tasks, states, folder, None)


def _all_steps(
    p: Params,
    tasks: Mapping[str, Task],
    states: Sequence[State],
    folder: Path,
    alpha: float | None,
) -> tuple[State, ...]:
    """The blend after each step, as files; without alpha a soup. It knows no later step."""
    made = [states[0]]
    for k, state in enumerate(states[1:], 1):
        so_far = [one.file for one in states[1 : k + 1]]
        files = so_far if alpha is None else [None, state.file]
        seen = {name: tasks[name] for name in [one.task for one in states[1 : k + 1]]}
        path = _kept_as(p, seen, files, alpha, folder / f"step{k}.pth")
        made.append(State(state.name, state.task, path))
    return tuple(made)


def _ends(p: Params, files: Sequence[Path | None]) -> list[dict[str, torch.Tensor]]:
    """The weights of some files, None being the study's own tower."""
    ends = [encoder_from(p, file) for file in files]
    if any(end.adapter is not None for end in ends):
        raise ParamError("chain.remedies: wise_ft and soup are for towers without an adapter")
    return [end.model.state_dict() for end in ends]


def _blend(
    p: Params,
    encoder: Encoder,
    ends: Sequence[dict[str, torch.Tensor]],
    alpha: float | None,
    tasks: Mapping[str, Task],
) -> None:
    """Fill the encoder between the first and the last of some weights; without alpha by their mean.

    BatchNorms take their statistics anew from the training photographs, but at the two ends.
    """
    mean = alpha is None
    encoder.model.load_state_dict(
        soup.average(ends) if alpha is None else soup.interpolate(ends[0], ends[-1], alpha)
    )
    if (mean and len(ends) > 1) or (not mean and alpha not in (0, 1)):
        fabric = make_fabric(p)
        fabric.to_device(encoder)
        soup.reestimate_bn(encoder.visual, _training_batches(p, encoder, tasks, fabric))


def _training_batches(
    p: Params, encoder: Encoder, tasks: Mapping[str, Task], fabric: lf.Fabric
) -> Iterator[torch.Tensor]:
    """Normalised training photographs of all tasks mixed, in batches of one size."""
    tables = {task.p.data: task.table for task in tasks.values()}
    stores = {data: open_store(table, encoder.preprocess) for data, table in tables.items()}
    shown = [
        (task.p.data, name)
        for task in tasks.values()
        for name in task.manifest.loc[task.manifest["split"] == "train", "image"]
    ]
    order = np.random.default_rng(p.seed).permutation(len(shown))
    size = min(p.evaluation.batch_size, len(shown))
    for start in range(0, len(shown) - size + 1, size):
        groups: dict[Data, list[str]] = {}
        for data, name in (shown[i] for i in order[start : start + size]):
            groups.setdefault(data, []).append(name)
        pixels = torch.cat([stores[data].pixels(names) for data, names in groups.items()])
        yield encoder.preprocess.normalise(pixels.to(fabric.device))


def _kept_as(
    p: Params,
    tasks: Mapping[str, Task],
    files: Sequence[Path | None],
    alpha: float | None,
    path: Path,
) -> Path:
    """The blend as a weights file, made anew where it was made of others."""
    keys = [read_checkpoint(file)["key"] if file else "" for file in files]
    shown = [splits.sha256(task.manifest) for task in tasks.values()]  # for BatchNorms
    told = [*keys, alpha, *shown, p.evaluation.batch_size, p.seed]
    key = hashlib.sha256(str(told).encode()).hexdigest()
    if path.is_file() and read_checkpoint(path)["key"] == key:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    taught: dict[str, Any] = {}
    for file in filter(None, files):
        for dataset, people in read_checkpoint(file)["taught"].items():
            taught[dataset] = sorted({*taught.get(dataset, []), *people}, key=str)
    encoder = study_encoder(p)
    _blend(p, encoder, _ends(p, files), alpha, tasks)
    parent = read_checkpoint(files[-1])["sha256"] if files[-1] else ""
    more = {"taught": taught, "facts": {"alpha": alpha}}
    return save_checkpoint(path, encoder, p.model_dump(mode="json"), parent, key, more)


def _held(encoder: Encoder, tasks: Mapping[str, Task], fabric: lf.Fabric) -> float:
    """mAP among the held-out training persons, a mean over tasks; NaN without any."""
    found = []
    for task in tasks.values():
        rows = held_manifests(task.manifest)
        if rows:
            images = task.manifest.loc[task.manifest["split"] == "select", "image"].tolist()
            z = unit_features(encoder, task, images, fabric)
            found.append(held_scores(z, images, rows)[SELECT])
    return float(np.mean(found)) if found else float("nan")
