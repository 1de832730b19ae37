"""The recipe of the shipped tiny CLIPs: `python -m handclip_lib.train.tiny --tower both`.

Contrastive learning on true captions of drawn hands, plus a classification of the captions'
attributes whose heads are thrown away: right against left is the XOR of surface and thumb side,
which contrast alone is slow to find. No identity is ever supervised. The length is a time
(`--minutes` a tower), the schedule follows it, and a stopped run goes on from its checkpoint.
What ships took 50 minutes (`tiny`, 5,886 steps) and 28 (`tiny_rn`, 2,909) of about half a core of
a Xeon with AMX each; a machine with more time for it makes more steps of the same minutes.
`--evaluate` measures what is in `--out` and prints Markdown. Figures: reports/README.md.
"""

import argparse
import csv
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import numpy as np
import torch
from open_clip import get_tokenizer
from open_clip.transformer import PatchDropout
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from handclip_lib.models.files import save_local_dir
from handclip_lib.params import ROOT, cache_dir
from handclip_lib.train.captions import caption, true_of
from handclip_lib.train.tiny_eval import accuracy, report
from handclip_lib.train.tiny_model import (
    NAMES,
    TOKENIZER,
    VISION,
    Pretraining,
    as_encoder,
    attribute_loss,
    augment,
    contrastive,
    encode_short,
    fast_fabric,
    shrink,
)
from handclip_lib.train.tiny_pool import PERSONS, Pool, open_pool

OUT = ROOT / "handclip_lib" / "models" / "tiny"
HELD_OUT = 40  # the pool's last persons judge the settings, they never train
SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Recipe:
    """One tower's training: how long, and the optimiser's settings."""

    tower: str  # vit | rn
    minutes: float
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the time
    attributes: float = 1.0  # weight of the classification beside the contrast
    masked: float = 0.5  # share of the patches a ViT does not see, until the last fifth: 1.7x
    seed: int = 0


class Trainer:
    """Model, optimiser and clock of one tower."""

    def __init__(self, recipe: Recipe, pool: Pool, fabric: lf.Fabric) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.pool, self.fabric = recipe, pool, fabric
        self.size = int(VISION[recipe.tower]["image_size"])
        self.model = Pretraining(recipe.tower).to(fabric.device)
        self.model.clip.visual.to(memory_format=torch.channels_last)  # CPU convolutions: 1.4x
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        if recipe.tower == "vit":  # as FLIP, arXiv:2212.00794
            self.model.clip.visual.patch_dropout = PatchDropout(recipe.masked)
        self.tokenise = get_tokenizer(TOKENIZER)
        persons = np.unique(pool.person)
        self.held_out = pool.rows(persons[-min(HELD_OUT, len(persons) // 4) :])
        self.train_rows = np.setdiff1d(np.arange(len(pool.person)), self.held_out)
        self.count, self.seconds = 0, 0.0

    @property
    def gone(self) -> float:
        """The share of the time that is used up, 0..1."""
        return min(self.seconds / (60 * self.recipe.minutes), 1.0)

    def rate(self) -> float:
        """Learning rate by the share of the time: warm-up, then half a cosine."""
        rise = min(self.gone / self.recipe.warmup, 1.0) if self.recipe.warmup else 1.0
        return self.recipe.lr * rise * (0.5 + 0.5 * float(np.cos(np.pi * self.gone))) + 1e-7

    def step(self) -> dict[str, float]:
        """One optimiser step; its batch depends on seed and step number alone."""
        begun = time.perf_counter()
        images, codes, tokens, fits = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        if self.recipe.tower == "vit":
            self.model.clip.visual.patch_dropout.prob = self.recipe.masked * (self.gone < 0.8)
        self.model.train()
        with sdpa_kernel(SDPBackend.MATH):  # 1.6x as fast as the CPU's flash backward
            with self.fabric.autocast():
                z = self.model.clip.encode_image(images).float()
            t = encode_short(self.model.clip, tokens)  # so narrow that bfloat16 would cost time
        terms = {
            "contrastive": contrastive(z, t, fits, self.model.clip.logit_scale.exp()),
            "attributes": attribute_loss(self.model, z, codes),
        }
        self.optimizer.zero_grad()
        (terms["contrastive"] + self.recipe.attributes * terms["attributes"]).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(0, np.log(100))
        self.count += 1
        self.seconds += time.perf_counter() - begun
        return {name: float(value.detach()) for name, value in terms.items()}

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S), codes (B, 7), tokens (B, 77), fits (B, B) of the next step."""
        rng = np.random.default_rng([self.recipe.seed, self.count])
        seed = int(rng.integers(2**31))
        torch.manual_seed(seed)  # which patches are masked
        generator = torch.Generator().manual_seed(seed)
        rows = np.sort(rng.choice(self.train_rows, self.recipe.batch, replace=False))
        codes, device = self.pool.codes[rows], self.fabric.device
        told = [caption(row, rng) for row in codes]
        fits = torch.from_numpy(true_of(np.stack([said for _, said in told]), codes))
        images = augment(torch.from_numpy(self.pool.pixels[rows]).to(device), self.size, generator)
        tokens = self.tokenise([text for text, _ in told]).to(device)
        return images, torch.from_numpy(codes).long().to(device), tokens, fits.to(device)

    @torch.no_grad()
    def embed(self, rows: np.ndarray) -> np.ndarray:
        """(N, 128) raw image embeddings of pictures of the pool."""
        self.model.eval()
        parts = []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            images = shrink(torch.from_numpy(self.pool.pixels[part]), self.size)
            with self.fabric.autocast():
                parts.append(self.model.clip.encode_image(images.to(self.fabric.device)).float())
        return torch.cat(parts).cpu().numpy()

    def judge(self) -> dict[str, float]:
        """Zero-shot accuracy on the held-out persons, by attribute."""
        rows = self.held_out
        encoder = as_encoder(self.model.clip, self.recipe.tower)
        with torch.no_grad():
            told = accuracy(
                encoder, self.embed(rows), self.pool.codes[rows], self.pool.person[rows]
            )
        return {name: row["accuracy"] for name, row in told.items()}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and plain values."""
        return {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "count": self.count,
            "seconds": self.seconds,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state()` of a run with the same recipe (the folder's name sees to that)."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.count, self.seconds = state["count"], state["seconds"]


def train(recipe: Recipe, pool: Pool, out: Path, fabric: lf.Fabric) -> Path:
    """Train one tower, or go on with it, and write `out/tiny` or `out/tiny_rn`; that folder."""
    key = hashlib.sha256(json.dumps([asdict(recipe), pool.key]).encode()).hexdigest()[:12]
    folder = cache_dir() / "tiny" / f"{recipe.tower}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    trainer, checkpoint = Trainer(recipe, pool, fabric), folder / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.resume(torch.load(checkpoint, map_location=fabric.device, weights_only=True))
        print(f"{recipe.tower}: goes on at step {trainer.count} ({folder})", flush=True)
    saved, seen = trainer.seconds, []
    while trainer.gone < 1:
        seen.append(trainer.step())
        if trainer.seconds - saved >= SAVE_EVERY or trainer.gone >= 1:
            saved = trainer.seconds
            _log(trainer, seen, folder / "history.csv")
            seen = []
            _save(trainer.state(), checkpoint)
            export(trainer, out, folder / "history.csv")
    return export(trainer, out, folder / "history.csv")


def export(trainer: Trainer, out: Path, history: Path) -> Path:
    """The open_clip local-dir of the weights as they are, float16, with the history beside."""
    encoder = as_encoder(trainer.model.clip, trainer.recipe.tower)
    folder = save_local_dir(encoder, out / encoder.name, torch.float16)
    if history.is_file():
        (folder / "history.csv").write_text(history.read_text())
    return folder


def _log(trainer: Trainer, seen: list[dict[str, float]], path: Path) -> None:
    """One line of history: the mean of every term since the last, and the held-out accuracies."""
    row: dict[str, float] = {"step": trainer.count, "minutes": trainer.seconds / 60}
    row |= {name: float(np.mean([terms[name] for terms in seen])) for name in seen[0]}
    row |= trainer.judge()
    begun = path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if not begun:
            writer.writeheader()
        writer.writerow({name: round(value, 4) for name, value in row.items()})
    print(trainer.recipe.tower, " ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)


def _save(state: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def main(argv: list[str] | None = None) -> None:
    """Train (`--tower vit|rn|both`) or, with `--evaluate`, print the README's table."""
    parser = argparse.ArgumentParser(prog="python -m handclip_lib.train.tiny", description=__doc__)
    parser.add_argument("--tower", choices=("vit", "rn", "both"), default="both")
    parser.add_argument("--persons", type=int, default=PERSONS, help="drawn persons of the pool")
    parser.add_argument("--minutes", type=float, default=50.0, help="training time of a tower")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--out", type=Path, default=OUT, help="where tiny/ and tiny_rn/ go")
    parser.add_argument("--evaluate", action="store_true", help="only measure what is in --out")
    told = parser.parse_args(argv)
    if told.evaluate:
        print(report({name: told.out / name for name in NAMES.values()}))
        return
    pool, fabric = open_pool(told.persons, told.workers), fast_fabric()
    for tower in ("vit", "rn") if told.tower == "both" else (told.tower,):
        print("wrote", train(Recipe(tower, told.minutes), pool, told.out, fabric), flush=True)


if __name__ == "__main__":
    main()
