"""What pre-training trains: a tower and its projector, which tell views of images apart by keys."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from handclip_lib.models import towers
from handclip_lib.schema_train import Pretrain
from handclip_lib.train.learner import compiled_features


class Contrast(nn.Module):
    """A tower with its projector and predictor, and where its keys come from: all state of it.

    With `keys: momentum` these are a copy of tower and projector that follows them at each step,
    without gradient, and, with `queue`, the keys of earlier batches, beside which lie the image
    and label each is of. Nothing else is remembered, so that its state_dict goes on with a killed
    run. MoCo v3: Chen, Xie & He 2021, arXiv:2104.02057, algorithm 1; MoCo v2: He et al. 2020,
    arXiv:1911.05722, algorithm 1; SupCon: Khosla et al. 2020, arXiv:2004.11362, eq. 2.

    width: of the tower's `proj`; steps: of the whole training; queue: keys that it holds; `heads`:
    projector and predictor, all that learns beside the tower and is dropped afterwards.
    """

    queue: Tensor  # (K, D) unit rows
    queue_images: Tensor  # (K,) int, -1: no key yet
    queue_labels: Tensor  # (K,) int, -1: unlabelled
    pointer: Tensor  # () int: the oldest key, where the next one goes
    step: Tensor  # () int: batches so far

    def __init__(
        self,
        visual: nn.Module,
        settings: Pretrain,
        width: int,
        steps: int,
        queue: int = 0,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.steps = settings, steps
        out, hidden = settings.projection, settings.hidden
        self.visual = visual
        self.features = compiled_features() if compiled else towers.features
        if settings.projector == "norm":
            projector = _normed(width, hidden, hidden, out)
        else:
            projector = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
            )
        predictor = _normed(out, hidden, out) if settings.predictor else nn.Identity()
        self.heads = nn.Sequential(projector, predictor)
        self.followers: nn.ModuleDict | None = None
        if settings.keys == "momentum":
            both = {"visual": visual, "projector": projector}
            self.followers = nn.ModuleDict({n: copy.deepcopy(m) for n, m in both.items()})
            self.followers.requires_grad_(False)
        self.register_buffer("queue", torch.zeros(queue, out))
        self.register_buffer("queue_images", torch.full((queue,), -1))
        self.register_buffer("queue_labels", torch.full((queue,), -1))
        self.register_buffer("pointer", torch.tensor(0))
        self.register_buffer("step", torch.tensor(0))
        self.diagnostics: dict[str, Tensor | float] = {}

    def train(self, mode: bool = True) -> "Contrast":
        """As every module's; the tower of the keys stays in eval mode."""
        super().train(mode)
        if self.followers is not None:
            self.followers["visual"].eval()
        return self

    def forward(
        self, first: Tensor, second: Tensor, images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Two views (B, 3, H, W) of each image -> {"contrast": scalar}; moves copy and queue.

        images: (B,) int, which photographs they are; labels: (B,) int, -1 for unlabelled ones.
        """
        if self.followers is None:
            z = self._queries(torch.cat([first, second]))
            loss = self._all_views(z, images.repeat(2), labels.repeat(2))
        elif len(self.queue):
            self._follow()
            z, keys = self._queries(first), self._keys(second)
            loss = self._queued(z, keys, images, labels)
            self._enqueue(keys, images, labels)
        else:
            self._follow()
            views = (first, second)  # apart: BatchNorms of the heads see one view of an image
            (z1, z2), (k1, k2) = map(self._queries, views), map(self._keys, views)
            both = self._batch(z1, k2, images, labels) + self._batch(z2, k1, images, labels)
            loss = 2 * self.settings.temperature * both
        self.step += 1
        return {"contrast": loss}

    def momentum(self, step: int) -> float:
        """Share of itself that the copy keeps before batch `step` (0-based)."""
        first, last = self.settings.momentum
        return last - (last - first) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _queries(self, views: Tensor) -> Tensor:
        """(B, D) unit rows, float32."""
        z = self.heads(self.features(self.visual, views).proj)
        return functional.normalize(z.float(), dim=1)

    @torch.no_grad()
    def _keys(self, views: Tensor) -> Tensor:
        """(B, D) unit rows, float32, without gradient."""
        assert self.followers is not None
        z = self.followers["projector"](towers.features(self.followers["visual"], views).proj)
        return functional.normalize(z.float(), dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the copy a little towards the tower and projector as they are now."""
        assert self.followers is not None
        share = self.momentum(int(self.step))
        both = zip(self.followers.values(), (self.visual, self.heads[0]), strict=True)
        for copied, told in both:
            get_ema_multi_avg_fn(share)([*copied.parameters()], [*told.parameters()], 0)
        its, ours = self.visual.buffers(), self.followers["visual"].buffers()
        for mine, other in zip(ours, its, strict=True):
            mine.copy_(other)  # statistics of BatchNorm
        self.diagnostics["momentum"] = share

    def _all_views(self, z: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Each view against all others of the batch, with gradient on both sides."""
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        same, alike = related(images, labels, images, labels)
        return self._loss(_cosines(z, z), (same | alike) & others, others)

    def _batch(self, z: Tensor, keys: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Each query against the keys of the batch's other views."""
        same, alike = related(images, labels, images, labels)
        return self._loss(_cosines(z, keys), same | alike, torch.ones_like(same))

    def _queued(self, z: Tensor, keys: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Each query against its own key, the first column, and the queue's.

        An older key of the query's own image is no negative.
        """
        same, alike = related(images, labels, self.queue_images, self.queue_labels)
        own = torch.ones_like(same[:, :1])
        there = (self.queue_images >= 0) & (alike | ~same)
        mine = (z * keys).sum(
            dim=1, keepdim=True
        )  # the queue moves on before the gradient is asked
        cosine = torch.cat([mine, _cosines(z, self.queue.clone())], dim=1)
        return self._loss(cosine, torch.cat([own, alike], 1), torch.cat([own, there], 1))

    def _loss(self, cosine: Tensor, positive: Tensor, there: Tensor) -> Tensor:
        best = cosine.detach().masked_fill(~there, -2).argmax(dim=1, keepdim=True)
        self.diagnostics["top1"] = positive.gather(1, best).float().mean()
        return info_nce(cosine / self.settings.temperature, positive, there)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, images: Tensor, labels: Tensor) -> None:
        """Put the batch's keys over the oldest ones; of more than the queue holds the last."""
        size = len(self.queue)
        kept = slice(max(0, len(keys) - size), None)
        at = (self.pointer + torch.arange(len(keys[kept]), device=keys.device)) % size
        self.queue[at], self.queue_images[at] = keys[kept], images[kept]
        self.queue_labels[at] = labels[kept]
        self.pointer.copy_((self.pointer + len(keys[kept])) % size)


def related(
    images: Tensor, labels: Tensor, other_images: Tensor, other_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Two bool masks (Q, K): of the same image, and of the same identity, where that is known.

    images, labels: (Q,) int; the others' (K,); a label of -1 is nobody's.
    """
    same = images[:, None] == other_images[None, :]
    alike = (labels[:, None] == other_labels[None, :]) & (labels[:, None] >= 0)
    return same, alike


def info_nce(logits: Tensor, positive: Tensor, there: Tensor) -> Tensor:
    """Mean over queries of -log softmax at their positives, the mean of each query's.

    logits (Q, K): cosines over the temperature; positive, there: bool (Q, K), at least one
    positive in each row, and all of them there; what is not there is in no sum. With one positive
    InfoNCE, van den Oord et al. 2018, arXiv:1807.03748, eq. 4; with several Khosla et al. 2020,
    arXiv:2004.11362, eq. 2.
    """
    left = logits.masked_fill(~there, -math.inf)
    chance = left - left.logsumexp(dim=1, keepdim=True)
    told = torch.where(positive, chance, 0).sum(dim=1) / positive.sum(dim=1)
    return -told.mean()


def first_convolution(visual: nn.Module) -> nn.Conv2d:
    """The patch projection of a ViT, the first convolution of another tower.

    MoCo v3 keeps it as it is for stability: arXiv:2104.02057, section 4.2.
    """
    found = next((part for part in visual.modules() if isinstance(part, nn.Conv2d)), None)
    if found is None:
        raise TypeError(f"a tower without a convolution: {type(visual).__name__}")
    return found


def _cosines(z: Tensor, other: Tensor) -> Tensor:
    """(Q, K) of unit rows, in their own precision."""
    with torch.autocast(z.device.type, enabled=False):
        return z @ other.T


def _normed(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between; the last has a BatchNorm without weights."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        last = i == len(widths) - 2
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
