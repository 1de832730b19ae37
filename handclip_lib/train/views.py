"""A training by views of photographs: its batches, who judges it, what is kept of its weights."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from handclip_lib.data import splits
from handclip_lib.data.augment import Augmenter
from handclip_lib.data.samplers import make_sampler
from handclip_lib.device import seed_step
from handclip_lib.losses.criterion import Criterion
from handclip_lib.models import soup
from handclip_lib.schema_train import Pretrain, Training
from handclip_lib.train.contrast import Contrast, first_convolution
from handclip_lib.train.fit import Recipe, fit
from handclip_lib.train.job import Job
from handclip_lib.train.learner import Learner, Pictures, pictures
from handclip_lib.train.optim import make_optimizer, open_layers
from handclip_lib.train.selection import SELECT, scorer
from handclip_lib.train.training import Fitted, facts_of

Judge = Callable[[], dict[str, float]]  # scores of the job's encoder as it is


def fit_views(settings: Pretrain, job: Job[Training], key: str) -> Fitted:
    """Train the job's tower by `settings`; the encoder then holds what is kept of it."""
    encoder = job.encoder
    data = pictures(job.manifest, "train", job.store, job.fabric, job.classes)
    labels = labels_of(data, settings.labelled)
    job.fabric.to_device(encoder)
    start = _copied(encoder.visual)
    queue = _keys_held(settings, len(data.images))
    judge, select = _judge(job)
    recipe = _recipe(settings, job, data, labels, queue)
    recipe = replace(recipe, validate=lambda _: judge(), select=select, key=key)
    history = fit(recipe, settings, job.fabric, job.folder)
    recipe.begin_epoch(len(history))  # what was open in the end
    learnt = sum(w.numel() for w in recipe.learner.parameters() if w.requires_grad)
    alpha, held = _kept(settings, job, start, data, judge if select else None)
    facts = facts_of(job, data, history, select, learnt) | {
        "shown_again": len(data.images),  # each by a second view
        "alpha": alpha,
        "held": held,
        "labelled": len(set(data.pids[(labels >= 0).cpu().numpy()])),
        "queue": queue,
        "manifest_sha256": splits.sha256(job.manifest),
    }
    return history, facts, {}


def labels_of(data: Pictures, share: float) -> torch.Tensor:
    """(N,) int: labels of the pictures, -1 where their person counts as unlabelled.

    share: of the persons who are labelled, 0 to 1; by a hash, so that a larger share has all of a
    smaller one's.
    """
    people = sorted(
        {int(pid) for pid in data.pids},
        key=lambda pid: hashlib.sha256(f"labelled|{pid}".encode()).hexdigest(),
    )
    known = np.isin(data.pids, people[: round(share * len(people))])
    return data.labels.masked_fill(torch.from_numpy(~known).to(data.labels.device), -1)


def _keys_held(settings: Pretrain, images: int) -> int:
    """Length of the queue: at most a quarter of the images, so that few keys are of a query's."""
    most = min(settings.queue, images // 4)
    if most < settings.queue:
        print(f"queue {settings.queue}: {most} keys, a quarter of the {images} photographs")
    return most


def _recipe(
    settings: Pretrain, job: Job[Training], data: Pictures, labels: torch.Tensor, queue: int
) -> Recipe:
    """What `fit` is told, but for who judges."""
    sampler = make_sampler(
        settings.sampler, data.labels.cpu().numpy(), data.aspects, settings.batch_size, job.p.seed
    )
    encoder, steps = job.encoder, settings.epochs * len(sampler.batches(1))
    seed_step(job.p.seed, 0)
    learner = Contrast(
        encoder.visual, settings, encoder.dims["proj"], steps, queue, job.p.device.compile
    )
    job.fabric.to_device(learner)
    return Recipe(
        name=job.name,
        learner=learner,
        optimizer=make_optimizer(encoder, learner.heads, settings),
        step=_stepper(settings, job, learner, data, labels),
        weights=lambda: {"contrast": 1.0},
        batches=sampler.batches,
        begin_epoch=partial(_begin, settings, job),
        diagnostics=lambda: learner.diagnostics,
        validate=None,
        select="",
        key="",
        seed=job.p.seed,
        closed=settings.head_epochs,
    )


def _begin(settings: Pretrain, job: Job[Training], epoch: int) -> None:
    open_layers(job.encoder, settings, epoch)
    if settings.freeze_stem:
        first_convolution(job.encoder.visual).requires_grad_(False)


def _stepper(
    settings: Pretrain,
    job: Job[Training],
    learner: Contrast,
    data: Pictures,
    labels: torch.Tensor,
) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
    """From the indices of a batch to its loss: two views of each image, augmented apart."""
    augmenter = Augmenter(settings.augment, job.encoder.preprocess)

    def step(batch: np.ndarray) -> dict[str, torch.Tensor]:
        at = torch.from_numpy(batch).to(job.fabric.device, non_blocking=True)
        first, second = augmenter(data.pixels[torch.cat([at, at])]).chunk(2)
        with job.fabric.autocast():
            terms: dict[str, torch.Tensor] = learner(first, second, at, labels[at])
        return terms

    return step


def _judge(job: Job[Training]) -> tuple[Judge, str]:
    """What scores the encoder on held-out training persons, and by which score; else "" ."""
    held = job.manifest[job.manifest["split"] == "select"]
    validate, select = scorer(job.p, held, job.store, job.fabric, job.classes)
    plain = Learner(job.encoder, Criterion({}, job.encoder.dims, "fixed"), 2)
    job.fabric.to_device(plain)
    return lambda: validate(plain), select


def _kept(
    settings: Pretrain,
    job: Job[Training],
    start: Mapping[str, torch.Tensor],
    data: Pictures,
    judge: Judge | None,
) -> tuple[float, dict[str, float]]:
    """Fill the tower between start and end; the share of the end, and the scores it is chosen by.

    judge: None where nobody is held out: `soup.UNCHOSEN` is taken then, or the one share there is.
    """
    end, held = _copied(job.encoder.visual), dict[str, float]()
    if judge is None:
        alpha = soup.UNCHOSEN if len(settings.wise_ft) > 1 else settings.wise_ft[0]
        print(f"{job.name}: nobody is held out to choose alpha: {alpha:g} of the end is kept")
    else:
        for share in settings.wise_ft:
            _blend(settings, job, start, end, share, data)
            held[f"{share:g}"] = judge()[SELECT]
        alpha = soup.best(settings.wise_ft, held.values())
        if not alpha:
            print(f"{job.name}: held-out persons are found best by its start, which is kept")
    _blend(settings, job, start, end, alpha, data)
    return alpha, held


def _blend(
    settings: Pretrain,
    job: Job[Training],
    start: Mapping[str, torch.Tensor],
    end: Mapping[str, torch.Tensor],
    alpha: float,
    data: Pictures,
) -> None:
    """Fill the tower; BatchNorms that have learnt take their statistics anew between the ends."""
    visual = job.encoder.visual
    visual.load_state_dict(soup.interpolate(start, end, alpha))
    if not settings.freeze_bn and 0 < alpha < 1:
        soup.reestimate_bn(visual, _batches(settings, job, data))


def _batches(settings: Pretrain, job: Job[Training], data: Pictures) -> Iterator[torch.Tensor]:
    """Normalised training photographs, all aspects mixed, in batches of the training's size."""
    order = np.random.default_rng(job.p.seed).permutation(len(data.images))
    size = min(settings.batch_size, len(order))
    for i in range(0, len(order) - size + 1, size):
        at = torch.from_numpy(order[i : i + size]).to(data.pixels.device)
        yield job.encoder.preprocess.normalise(data.pixels[at])


def _copied(visual: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in visual.state_dict().items()}
