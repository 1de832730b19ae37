"""Rows that need a GPU: ViT-B/16 at full size, on noise for photographs, with random weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from handclip_lib.bench.row import Row, in_precision
from handclip_lib.bench.training import BATCH, Trainer, data_path, make_trainer, precision
from handclip_lib.device import make_fabric
from handclip_lib.schema import Params
from handclip_lib.schema_base import Model
from handclip_lib.schema_train import Training
from handclip_lib.train.fit import fit
from handclip_lib.train.learner import Pictures

TOWER = Model(name="ViT-B-16-quickgelu", pretrained="random")
IMAGES, PERSONS, SIDE = 890, 72, 224  # dorsal_r of 11k Hands, published split
EPOCHS = 60
_MATRIX = 8192  # rows and columns of the product that shows what the chip can do


def rows(p: Params, folder: Path) -> Iterator[Row]:
    """Rows for stages 1 and 2 with ViT-B/16 and usual settings, in the order of their timing.

    The stage comes first and has to be timed before the next row is asked for: its time includes
    compilation, unless the compiler finds in its cache on disk what an earlier run compiled.
    """
    p = p.model_copy(update={"model": TOWER})
    data, usual = _noise(p), Params()
    compiled, half = (in_precision(p, "bf16-mixed", told) for told in (True, False))
    whole = usual.stage1.model_copy(update={"epochs": EPOCHS, "batch_size": BATCH})
    yield _stage(make_trainer(compiled, whole, data, folder), whole, folder)
    steps = usual.stage2.model_copy(update={"batch_size": BATCH})
    fast, eager = (make_trainer(told, steps, data, folder) for told in (compiled, half))
    full = make_trainer(in_precision(p, "32-true"), steps, data, folder)
    name = "training step, ViT-B/16"
    yield from [  # all compared before any is timed: that trains them
        data_path(f"{name} compiled, bf16", fast, "≤ 1.05; on an H200 ≥ 3,000 images/s"),
        Row(
            f"{name}: compiled, against as it is",
            fast.from_batches,
            eager.from_batches,
            images=fast.images,
        ),
        precision(name, eager, full),
        _peak(f"{name} compiled, bf16", fast, eager),
    ]


def _noise(p: Params) -> Pictures:
    """Photographs of nothing on the device, as many and as large as a real stage has."""
    fabric = make_fabric(p)
    labels = torch.arange(IMAGES) % PERSONS
    pixels = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8)
    return Pictures(
        images=tuple(f"{k}.jpg" for k in range(IMAGES)),
        pixels=pixels.to(fabric.device),
        pids=labels.numpy(),
        aspects=np.full(IMAGES, p.aspect),
        labels=labels.to(fabric.device),
    )


def _stage(trainer: Trainer, settings: Training, folder: Path) -> Row:
    """A whole stage 1, as `fit` runs it, without scoring."""
    return Row(
        f"stage 1, {EPOCHS} epochs of {IMAGES} images, ViT-B/16 at {SIDE}², compiled, bf16",
        lambda: fit(trainer.recipe, settings, trainer.fabric, folder),
        None,
        "< 30 s on an H200",
        EPOCHS * IMAGES,
    )


def _peak(name: str, trainer: Trainer, eager: Trainer) -> Row:
    """Steps against one matrix product repeated until it has made as many operations.

    The operations of a step are counted in matrix products, convolutions and attention, forward
    and backward, before compilation: the same for both trainers.
    """
    with FlopCounterMode(display=False) as counter:
        eager.from_batches()
    side = (_MATRIX, _MATRIX)
    a, b = (torch.randn(side, device=trainer.fabric.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    times = max(1, round(counter.get_total_flops() / (2 * _MATRIX**3)))

    def products() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    words = "against bf16 matrix products of as many operations (1 / ratio: the share of the peak)"
    return Row(f"{name}, {words}", trainer.from_batches, products, images=trainer.images)
