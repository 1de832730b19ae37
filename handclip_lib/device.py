"""The one place for device, precision and seed: a Fabric object that everyone else is handed."""

import lightning_fabric as lf
import torch

from handclip_lib.schema import Params


def make_fabric(p: Params) -> lf.Fabric:
    """Fabric for this run: `p.device` chooses accelerator and precision, `p.seed` seeds all.

    Matrix products and convolutions stay in full float32 (no TF32), so that figures agree between
    machines.
    Raises a RuntimeError when the accelerator that was asked for is not there.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    fabric = lf.Fabric(accelerator=p.device.accelerator, devices=1, precision=p.device.precision)
    lf.seed_everything(p.seed, verbose=False)
    return fabric
