"""Persons of four coloured squares in four aspects, and chains that learn them in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from handclip_lib.aspects import CHAIN
from handclip_lib.models.checkpoint import read_checkpoint
from handclip_lib.params import load
from handclip_lib.schema import Params
from handclip_lib.train import chain, states
from handclip_lib.train.chain import Chained
from handclip_lib.train.states import Task

PERSONS, SHOTS = 20, 4  # of ten training persons two are held out
FAST: dict[str, Any] = {
    "epochs": 2, "batch_size": 12, "lr": 3e-3, "head_epochs": 0, "save_seconds": 0, "warmup": 0,
    "schedule": "constant", "layer_decay": 1.0, "augment": {"erasing": 0.0, "degrees": 5.0},
}  # fmt: skip
TWO = ["dorsal_r", "dorsal_l"]
_ABOUT = ("gender", "age", "skinColor", "nailPolish")


def squares(root: Path, first: int = 0, persons: int = PERSONS, seed: int = 0) -> Path:
    """A CSV of own photographs of persons first, first + 1, … in all four aspects."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [",".join(("image", "pid", "aspect", *_ABOUT))]
    for pid in range(first, first + persons):
        traits = rng.integers(40, 216, (2, 2, 3)).repeat(16, 0).repeat(16, 1)
        about = (("male", "female")[pid % 2], 20 + 5 * (pid % 9), ("fair", "dark")[pid // 2 % 2])
        for place, aspect in enumerate(CHAIN):
            turned = np.roll(traits, place, axis=2)  # the same person in other colours
            for shot in range(SHOTS):
                noisy = (turned + rng.normal(0, 25, turned.shape)).clip(0, 255).astype(np.uint8)
                name = f"{aspect}_{pid:02d}_{shot}.png"
                Image.fromarray(noisy).save(root / name)
                lines.append(",".join(map(str, (name, pid, aspect, *about, pid // 4 % 2))))
    path = root / "hands.csv"
    path.write_text("\n".join(lines))
    return path


def roughen(csv: Path) -> None:
    """The same photographs with much noise: persons who are hard to tell apart."""
    rng = np.random.default_rng(0)
    for path in sorted(csv.parent.glob("*.png")):
        pixels = np.asarray(Image.open(path)).astype(float)
        noisy = (pixels + rng.normal(0, 150, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path)


def told(csv: Path, aspect: str = "dorsal_r", **changes: Any) -> Params:
    """The study of the squares in `csv`; changes: of branches of the tree."""
    study: dict[str, Any] = {
        "data": {"dataset": "own", "root": str(csv)},
        "split": {"mode": "person_disjoint", "select": "persons", "draws": 1},
        "model": {"name": "toy-vit", "pretrained": "random"},
        "device": {"accelerator": "cpu"},
        "evaluation": {"bootstrap": 100},
        "stage1": FAST,
        "stage2": FAST,
        "stage3a": {"epochs": 1, "batch_size": 12, "save_seconds": 0},
        "stage3b": FAST,
    }
    for branch, change in changes.items():
        study[branch] = study.get(branch, {}) | change
    path = csv.with_name("squares.yaml")
    path.write_text(json.dumps(study))
    return load(aspect, str(path))


def run(p: Params, folder: Path, remedy: str = "", **more: Any) -> tuple[Chained, dict[str, Task]]:
    """The chain of a study and its tasks."""
    tasks = states.tasks_of(p)
    return chain.run_chain(p, tasks, folder, remedy, **more), tasks


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file."""
    state: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors of two states are bit for bit the same."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance of two states of a tower."""
    mine = [name for name in one if name.startswith("visual.")]
    return float(sum((one[n].double() - other[n].double()).square().sum() for n in mine) ** 0.5)
