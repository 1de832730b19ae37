"""The one place for device, precision and seed: a Fabric object that everyone else is handed."""

import random
import warnings
from datetime import timedelta
from pathlib import Path

import lightning_fabric as lf
import numpy as np
import torch
from lightning_fabric.plugins.environments import LightningEnvironment

from handclip_lib.schema import Params


def make_fabric(p: Params, training: bool = False) -> lf.Fabric:
    """Fabric for this run: `p.device` chooses accelerator and precision, `p.seed` seeds all.

    training: with the precision that `p.device` has for it; else with that of features.

    Matrix products and convolutions stay in full float32 (no TF32), so that figures agree between
    machines.
    Raises a RuntimeError when the accelerator that was asked for is not there.
    """
    _full_precision()
    precision = p.device.training if training else p.device.precision
    fabric = lf.Fabric(accelerator=p.device.accelerator, devices=1, precision=precision)
    lf.seed_everything(p.seed, verbose=False)
    return fabric


def join_fabric(p: Params, meet: Path) -> lf.Fabric:
    """The Fabric of one of the `p.device.devices` processes that train together on this machine.

    $LOCAL_RANK says which of them this is; `meet`: a file that is not there yet, by which they
    find each other. Waiting for another one has no end: whoever started them ends them.
    """
    _full_precision()
    told = "torch.distributed.nn.functional.all_gather is deprecated"  # Fabric's to mend
    warnings.filterwarnings("ignore", told, FutureWarning)
    fabric = lf.Fabric(
        accelerator=p.device.accelerator,
        devices=p.device.devices,
        strategy="ddp",
        precision=p.device.training,
        plugins=[LightningEnvironment()],  # not what a cluster's own variables say
    )
    torch.distributed.init_process_group(
        "nccl" if fabric.device.type == "cuda" else "gloo",
        init_method=meet.resolve().as_uri(),
        timeout=timedelta(days=7),
        world_size=p.device.devices,
        rank=fabric.local_rank,
    )
    fabric.launch()
    lf.seed_everything(p.seed, verbose=False)
    return fabric


def _full_precision() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def seed_step(seed: int, step: int) -> None:
    """Seed Python, NumPy and torch (every device) for one step of a run with this seed.

    Whatever is random in a step depends on these two numbers alone, so that a run which was killed
    goes on as if nothing had happened, without any generator's state in a file.
    """
    python, numpy, torch_high, torch_low = np.random.SeedSequence([seed, step]).generate_state(4)
    random.seed(int(python))
    np.random.seed(int(numpy))
    word = int(torch_high) << 32 | int(torch_low)
    torch.default_generator.manual_seed(word)
    # torch.manual_seed reaches devices that are not there, too, at a millisecond a call
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(word)
