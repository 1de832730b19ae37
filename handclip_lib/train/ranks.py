"""What several processes of one training share: a batch's features, gradients, how they begin.

Every rank is given the same batches, and computes the tower for its share of each. Features are
gathered with their gradients, so that all ranks see the loss of the whole batch. The backward of
gathering sums over ranks and `average` divides: the gradient is that of one process.
"""

from collections.abc import Callable

import lightning_fabric as lf
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from handclip_lib.models.clip import Encoder
from handclip_lib.models.towers import Features
from handclip_lib.params import ParamError


def spread(
    tower: Callable[[Tensor, Tensor | None], Features],
    images: Tensor,
    codes: Tensor | None,
    fabric: lf.Fabric | None,
    tokens: bool = False,
) -> Features:
    """The tower's features of normalised images (B, 3, H, W), a share of them on each rank.

    All ranks are given all images and get all features, with gradients. codes: (B,), as the tower
    takes them; tokens: gathered, too; otherwise they are of this rank's share. What is random
    inside the tower is drawn by each rank for itself, and draws nothing from what follows. A rank
    for which a batch is too small computes its first image in vain. fabric: None, or of one
    device: the tower's own call.
    """
    if fabric is None or fabric.world_size == 1:
        return tower(images, codes)
    shares = torch.arange(len(images)).tensor_split(fabric.world_size)
    mine = shares[fabric.global_rank]
    mine = (mine if len(mine) else shares[0][:1]).to(images.device)
    own = [] if images.device.type == "cpu" else [images.device]
    with torch.random.fork_rng(devices=own):
        torch.manual_seed((torch.initial_seed() + 1 + fabric.global_rank) % 2**63)
        told = tower(images[mine], None if codes is None else codes[mine])
    sizes = [len(share) for share in shares]

    def whole(z: Tensor) -> Tensor:
        return _gathered(z, sizes, fabric)

    return Features(
        whole(told.penult),
        whole(told.pool),
        whole(told.proj),
        whole(told.tokens) if tokens else told.tokens,
        told.grid,
        {name: whole(z) for name, z in told.parts.items()},
    )


def _gathered(z: Tensor, sizes: list[int], fabric: lf.Fabric) -> Tensor:
    """(B, …) of each rank's (size, …); what was computed in vain is left out."""
    most = max(sizes)
    even = functional.pad(z, (0, 0) * (z.ndim - 1) + (0, most - len(z)))
    every = fabric.all_gather(even, sync_grads=True)  # (ranks, most, …)
    assert isinstance(every, Tensor)
    return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])


def average(module: nn.Module, fabric: lf.Fabric) -> None:
    """Replace every gradient by its mean over the ranks, in one exchange.

    By hand, not by a wrapper around the learner: layers open and close between epochs, and learnt
    weights of losses are used outside of its forward, neither of which a wrapper allows for.
    """
    if fabric.world_size == 1:
        return
    grads = [w.grad for w in module.parameters() if w.grad is not None]
    flat = fabric.all_reduce(torch.cat([grad.reshape(-1) for grad in grads]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def begin_alike(module: nn.Module, fabric: lf.Fabric) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if fabric.world_size > 1:
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, 0)


def sync_norms(encoder: Encoder, frozen: bool, fabric: lf.Fabric) -> None:
    """Let BatchNorms of the image tower and its adapter see the batch of all ranks.

    frozen: those of the tower keep their statistics, whatever the batch. Necks need nothing: they
    see gathered features. Raises ParamError on a CPU, where torch has no such BatchNorm.
    """
    parts = [part for part in (None if frozen else encoder.visual, encoder.adapter) if part]
    found = any(isinstance(module, _BatchNorm) for part in parts for module in part.modules())
    if fabric.world_size == 1 or not found:
        return
    if fabric.device.type == "cpu":
        raise ParamError(
            "device.devices: this image tower has BatchNorms, which on a CPU cannot see the batch"
            " of all processes; set device.devices=1, or take a ViT, or set freeze_bn of the stage"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
