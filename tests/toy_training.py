"""A training small enough to be killed often: `python toy_training.py FOLDER` kills it six times.

Used by test_fit.py. Each attempt is a forked process that kills itself with SIGKILL, at a random
moment or half-way through the bytes of a file; the last one ends by itself.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from handclip_lib.schema_train import Training
from handclip_lib.train import history, resume
from handclip_lib.train.fit import Recipe, clear, fit

IMAGES, WIDTH, CLASSES, BATCH = 48, 6, 3, 4
PEAK = 100  # batches after which the toy scores best, in epoch 8 of 12
# (what, epoch): dies at a random moment from that epoch on, or inside that file's next write
KILLS = (("time", 1), ("resume", 3), ("time", 4), ("best", 6), ("history", 9), ("time", 10))


class Toy(nn.Module):
    """BatchNorm, dropout and a counter: everything that a resumed run could get wrong."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        noisy = (nn.Identity(),) if plain else (nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), *noisy, nn.Tanh())
        self.classifier = nn.Linear(8, CLASSES)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += self.training
        z = self.body(x)
        terms = {
            "ce": cross_entropy(self.classifier(z).float(), y),
            "size": z.float().square().mean(),
        }
        return terms


SETTINGS = Training(
    epochs=12, batch_size=BATCH, lr=1e-2, ema=0.9, accumulate=2, save_seconds=0, clip_norm=1.0
)
WEIGHTS = {"ce": 1.0, "size": 0.1}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, WIDTH, generator=generator)
    return x, torch.randint(CLASSES, (IMAGES,), generator=generator)


def make(plain: bool = False, noise: float = 0.1, seed: int = 0, sgd: float = 0.0) -> Recipe:
    """A recipe whose steps draw from all three generators. sgd: its rate, else AdamW at 1e-2."""
    x, y = data()
    torch.manual_seed(0)
    learner = Toy(plain)
    parameters = learner.parameters()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=SETTINGS.lr)
    if sgd:
        optimizer = torch.optim.SGD(learner.parameters(), lr=sgd)

    def step(rows: np.ndarray) -> dict[str, torch.Tensor]:
        draws = torch.randn(1) + np.random.standard_normal() + random.gauss(0, 1)
        return learner(x[rows] + noise * draws.float(), y[rows])

    def batches(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(IMAGES)
        return np.split(order, IMAGES // BATCH)

    return Recipe(
        name="toy",
        learner=learner,
        optimizer=optimizer,
        step=step,
        weights=lambda: WEIGHTS,
        batches=batches,
        begin_epoch=lambda epoch: None,
        diagnostics=lambda: {"seen": learner.seen.float(), "constant": 0.25},
        validate=lambda scored: {"nearness": -abs(float(scored.seen) - PEAK), "other": 0.5},
        select="nearness",
        key="key",
        seed=seed,
    )


def train(recipe: Recipe, folder: Path, settings: Training = SETTINGS) -> pd.DataFrame:
    history = fit(recipe, settings, lf.Fabric(accelerator="cpu", devices=1), folder)
    clear(folder, recipe.name)
    return history


def digest(module: nn.Module) -> str:
    blocks = [v.numpy().tobytes() for v in module.state_dict().values()]
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _breaking_off(name: str, due: Callable[[], bool]) -> Callable[[Path, bytes], Path]:
    """`write_whole`, which dies half-way through a file that has `name` in its own, once due."""

    def write(path: Path, whole: bytes) -> Path:
        if name in path.name and due():
            with path.with_name(f"{path.name}.{os.getpid()}.part").open("wb") as file:
                file.write(whole[: len(whole) // 2])
                file.flush()
                _die()
        return real(path, whole)

    real = resume.write_whole
    return write


def _doomed(recipe: Recipe, kind: str, since: int) -> Recipe:
    """The recipe, in a process that will die."""
    reached = threading.Event()

    def begin_epoch(epoch: int) -> None:
        if epoch >= since:
            reached.set()

    def at_random() -> None:
        reached.wait()
        time.sleep(random.SystemRandom().uniform(0, 0.03))
        _die()

    def slow(rows: np.ndarray) -> dict[str, torch.Tensor]:
        time.sleep(0.002)
        return recipe.step(rows)

    if kind == "time":
        threading.Thread(target=at_random, daemon=True).start()
    else:
        write = _breaking_off(kind, reached.is_set)
        resume.write_whole = history.write_whole = write  # type: ignore[assignment]
    return replace(recipe, begin_epoch=begin_epoch, step=slow)


def _attempt(folder: Path, kill: tuple[str, int] | None) -> int:
    """Train in a forked process; the signal that ended it, 0 for none."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    recipe = make()
    train(_doomed(recipe, *kill) if kill else recipe, folder)
    (folder / "weights.txt").write_text(digest(recipe.learner))
    os._exit(0)


def main(folder: Path) -> None:
    signals = [_attempt(folder, kill) for kill in KILLS]
    signals.append(_attempt(folder, None))
    print(json.dumps({"signals": signals, "weights": (folder / "weights.txt").read_text()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
