"""A tiny tower that learns who is who among drawn persons: the yardstick of `drawn_check`."""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from handclip_lib.models.clip import Encoder, load_encoder
from handclip_lib.params import cache_dir
from handclip_lib.train.tiny_model import augment
from handclip_lib.train.tiny_pool import Pool, is_deep

TAUGHT = 300  # persons whose hands the probe learns, at most
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Setting:
    """How the probe is trained. start: `tiny` goes on from the shipped weights, or `random`."""

    tower: str = "tiny_rn"
    start: str = "tiny"
    minutes: float = 25.0
    batch: int = 64
    lr: float = 2e-3
    scale: float = 16.0  # of the cosines before the softmax
    seed: int = 0


class Probe(nn.Module):
    """A tower, a BatchNorm neck and a normalised softmax over hands."""

    def __init__(self, encoder: Encoder, classes: int, scale: float) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        width = encoder.dims["pool"] + encoder.dims["proj"]
        self.neck = nn.BatchNorm1d(width)
        self.classes = nn.Linear(width, classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, H, W) -> logits (B, classes)."""
        told = self.encoder.features(images)
        z = self.neck(torch.cat([told.pool, told.proj], dim=1).float())
        weight = functional.normalize(self.classes.weight)
        return self.scale * functional.linear(functional.normalize(z), weight)


class ProbeTrainer:
    """Identity cross-entropy on the pool's deep persons; a class is one aspect of a person."""

    def __init__(self, setting: Setting, pool: Pool, fabric: lf.Fabric) -> None:
        torch.manual_seed(setting.seed)
        self.setting, self.pool, self.fabric = setting, pool, fabric
        persons = np.array([k for k in np.unique(pool.person) if is_deep(int(k))][:TAUGHT])
        self.rows = pool.rows(persons)
        hands = 4 * pool.person[self.rows] + pool.aspect[self.rows]
        self.labels = np.unique(hands, return_inverse=True)[1]
        start = "random" if setting.start == "random" else None
        encoder = load_encoder(setting.tower, start, fit="hand")
        self.key = [asdict(setting), pool.key, encoder.weights_sha256 if not start else ""]
        self.probe = Probe(encoder, int(self.labels.max()) + 1, setting.scale).to(fabric.device)
        self.optimizer = torch.optim.AdamW(
            self.probe.parameters(), lr=setting.lr, weight_decay=0.05
        )
        self.count, self.seconds = 0, 0.0

    @property
    def gone(self) -> float:
        """The share of the time that is used up, 0..1."""
        return min(self.seconds / (60 * self.setting.minutes), 1.0)

    def step(self) -> float:
        """One optimiser step; the loss."""
        begun, setting = time.perf_counter(), self.setting
        rate = min(self.gone / 0.1, 1.0) * (0.5 + 0.5 * float(np.cos(np.pi * self.gone)))
        for group in self.optimizer.param_groups:
            group["lr"] = setting.lr * rate + 1e-7
        rng = np.random.default_rng([setting.seed, self.count])
        chosen = np.sort(rng.choice(len(self.rows), setting.batch, replace=False))
        pixels = torch.from_numpy(self.pool.pixels[self.rows[chosen]]).to(self.fabric.device)
        labels = torch.from_numpy(self.labels[chosen]).to(self.fabric.device)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = augment(pixels, self.probe.encoder.preprocess.size[0], generator)
        self.probe.train()
        with self.fabric.autocast(), sdpa_kernel(SDPBackend.MATH):
            logits = self.probe(images)
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count, self.seconds = self.count + 1, self.seconds + time.perf_counter() - begun
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Everything that a resumed run needs, whole or not at all."""
        state = {
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "count": self.count,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def resume(self, path: Path) -> None:
        """Go on from a file of `save`."""
        state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.count, self.seconds = state["count"], state["seconds"]


def train_probe(setting: Setting, pool: Pool, fabric: lf.Fabric) -> Encoder:
    """The tower after its training, which is kept in the cache folder and goes on when stopped."""
    trainer = ProbeTrainer(setting, pool, fabric)
    key = hashlib.sha256(json.dumps(trainer.key).encode()).hexdigest()[:16]
    path = cache_dir() / "probe" / f"{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        trainer.resume(path)
    saved = trainer.seconds
    while trainer.gone < 1:
        loss = trainer.step()
        if trainer.seconds - saved > SAVE_EVERY or trainer.gone >= 1:
            saved = trainer.seconds
            trainer.save(path)
            minutes = trainer.seconds / 60
            print(f"probe: step {trainer.count}, {minutes:.1f} min, loss {loss:.3f}", flush=True)
    return trainer.probe.encoder.eval()
