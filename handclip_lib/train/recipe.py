"""From a job to what the loop is told: losses with their heads, batches, steps, open layers."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from handclip_lib.data.augment import Augmenter, mix
from handclip_lib.data.samplers import (
    Batches,
    Replayed,
    make_sampler,
    nearest_identities,
    replay_parts,
    replayed,
)
from handclip_lib.evaluate.embed import retrieval_features
from handclip_lib.losses import Criterion, build_loss
from handclip_lib.models.clip import Encoder
from handclip_lib.schema_train import Training
from handclip_lib.train.fit import Recipe
from handclip_lib.train.guide import Guide
from handclip_lib.train.job import Job
from handclip_lib.train.learner import Learner, Pictures, encode
from handclip_lib.train.optim import make_optimizer, open_layers


def prepared(
    settings: Training, encoder: Encoder, num_ids: int, guide: Guide | None = None
) -> tuple[Criterion, Training]:
    """The losses of a stage with their heads, and the settings that count with these heads."""
    dims = encoder.dims if guide is None else encoder.dims | guide.dims(encoder.dims["proj"])
    if guide is not None and not settings.losses:
        criterion = Criterion({}, dims, settings.loss_balance)  # texts alone teach
    else:
        criterion = build_loss(
            settings.losses, num_ids, dims, settings.loss_balance, settings.projection
        )
    if settings.projection and criterion.head is None:
        print(
            f"projection {settings.projection}: none of these losses is on `head`, so there is none"
        )
    beside = nn.ModuleList(part for part in (criterion, guide, encoder.adapter) if part is not None)
    if settings.head_epochs and not any(w.requires_grad for w in beside.parameters()):
        print("these losses have no heads that could learn first; the tower learns at once")
        settings = settings.model_copy(update={"head_epochs": 0})
    if settings.head_epochs >= settings.epochs and settings.unfreeze_blocks != 0:
        print(
            f"only heads learn: head_epochs {settings.head_epochs} of {settings.epochs} epochs, and"
            " the tower never opens"
        )
    return criterion, settings


def make_recipe(
    job: Job[Training],
    learner: Learner,
    data: Pictures,
    validate: Callable[[Learner], dict[str, float]] | None,
    select: str,
    key: str,
) -> Recipe:
    """What `fit` is told of a job; `data`: the training pictures, on the device.

    validate, select, key: as in Recipe.
    """
    settings, encoder = job.settings, job.encoder
    sampler = _sampler(job, data)

    def begin_epoch(epoch: int) -> None:
        open_layers(encoder, settings, epoch)
        learner.criterion.set_epoch(epoch)
        if settings.sampler.type == "hard" and (epoch - 1) % settings.sampler.refresh == 0:
            _look_around(job, learner, data)

    return Recipe(
        name=job.name,
        learner=learner,
        optimizer=make_optimizer(encoder, learner.heads, settings),
        step=_stepper(job, learner, data),
        weights=lambda: learner.weights,
        batches=lambda epoch: sampler.batches(epoch, learner.neighbours.cpu().numpy()),
        begin_epoch=begin_epoch,
        diagnostics=lambda: learner.criterion.diagnostics,
        validate=validate,
        select=select,
        key=key,
        seed=job.p.seed,
        closed=0 if encoder.adapter is not None else settings.head_epochs,
    )


def _sampler(job: Job[Training], data: Pictures) -> Batches | Replayed:
    """The batches of the training pictures; those that are shown again take their share of each.

    An epoch has as many batches as without them, so that as many images pass.
    """
    settings, seed, new = job.settings, job.p.seed, len(data.images) - data.old
    labels, size = data.labels.cpu().numpy(), settings.batch_size
    alone = make_sampler(settings.sampler, labels[:new], data.aspects[:new], size, seed)
    if not data.old or not job.p.chain.replay.share:
        return alone
    sizes = replay_parts(settings.sampler, size, job.p.chain.replay.share)
    parts = zip((slice(new), slice(new, None)), sizes, strict=True)
    main, old = (
        make_sampler(settings.sampler, labels[rows], data.aspects[rows], part, seed)
        for rows, part in parts
    )
    return replayed(main, old, len(alone.batches(1)))


def _stepper(
    job: Job[Training], learner: Learner, data: Pictures
) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
    """From the indices of a batch to its loss terms: augmented and, where asked, mixed."""
    settings, fabric = job.settings, job.fabric
    augmenter, num_ids = (
        Augmenter(settings.augment, job.encoder.preprocess),
        len(job.classes),
    )

    def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
        at = torch.from_numpy(batch).to(fabric.device, non_blocking=True)
        images, labels = augmenter(data.pixels[at]), data.labels[at]
        first = _unmixed(settings, len(batch), learner.guide is not None)
        mixed = mix(images, labels, num_ids, settings.augment, first=first)
        images, soft = mixed or (images, None)
        codes = None if data.codes is None else data.codes[at]
        clean = first if mixed else None
        with fabric.autocast():
            terms: dict[str, torch.Tensor] = learner(images, labels, soft, clean, codes, fabric)
        return terms

    return step


def _unmixed(settings: Training, size: int, guided: bool) -> int:
    """How many rows of a batch stay as they are where Mixup or CutMix is on.

    A mixed image has no identity: half of the batch, whole identities of it, is kept for the
    losses that need one, and for texts. Cross-entropy alone needs none.
    """
    if not guided and all(spec.type == "cross_entropy" for spec in settings.losses):
        return 0
    group = 1 if settings.sampler.type == "shuffle" else settings.sampler.images
    first = size // 2 // group * group
    if first < 2 * group and (settings.augment.mixup or settings.augment.cutmix):
        raise ValueError(
            f"a batch of {size} is too small to mix half of it and keep two identities for the"
            f" other losses: batch_size {4 * group} or more, or mixup and cutmix 0"
        )
    return first


def _look_around(job: Job[Training], learner: Learner, data: Pictures) -> None:
    """Which identities lie near each other by now, for batches of those that are confused."""
    z = encode(learner, data, job.encoder.preprocess, job.fabric, job.p.evaluation.batch_size)
    unit = retrieval_features({n: f.cpu().numpy() for n, f in z.items()}, job.p.evaluation.feature)
    new = len(data.images) - data.old
    nearest = nearest_identities(unit[:new], data.labels[:new].cpu().numpy())
    learner.neighbours.copy_(torch.from_numpy(nearest))
