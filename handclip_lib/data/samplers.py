"""Which images make a batch, as lists of row numbers: a pure function of seed and epoch."""

import warnings
from dataclasses import dataclass

import numpy as np

from handclip_lib.schema_train import Sampler

_IMAGES, _TURNS, _ORDER = range(3)  # streams of random numbers that must not meet


@dataclass(frozen=True)
class Batches:
    """Batches of one sampler over N images; see `make_sampler`, which checks what goes in.

    groups: (N,) int, the identity of each image, counted from 0; kinds: (N,) int, its aspect.
    """

    settings: Sampler
    groups: np.ndarray
    kinds: np.ndarray
    batch_size: int
    seed: int

    def batches(self, epoch: int, neighbours: np.ndarray | None = None) -> list[np.ndarray]:
        """Row numbers of each batch of an epoch (counted from 1), two images or more in each.

        neighbours: (C, k) int, of each identity the nearest others, for `hard` alone, which is
        plain PK without them. Raises ValueError where they are too few for a batch.
        """
        if self.settings.type == "shuffle":
            return self._shuffled(epoch)
        if self.settings.type == "identity":
            return self._grouped(epoch)
        if self.settings.type == "two_level":
            return self._two_level(epoch)
        return self._pk(epoch, neighbours if self.settings.type == "hard" else None)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        order = self._rng(_ORDER, epoch).permutation(len(self.groups))
        parts = np.split(order, range(self.batch_size, len(order), self.batch_size))
        return [part for part in parts if len(part) > 1]

    def _grouped(self, epoch: int) -> list[np.ndarray]:
        """Bunches of an identity's images in random order; a batch is closed when one won't fit."""
        rng, each = self._rng(_ORDER, epoch), min(self.settings.images, self.batch_size)
        rows, starts, counts = _by_group(self.groups, rng)
        # As even as can be, and no bunch of one where the identity has two
        bunches = np.minimum(-(-counts // each), np.maximum(1, counts // min(each, 2)))
        place = np.arange(len(rows)) - np.repeat(starts, counts)
        first = np.cumsum(bunches) - bunches
        bunch = np.repeat(first, counts) + place * np.repeat(bunches, counts) // np.repeat(
            counts, counts
        )
        rank = rng.permutation(bunches.sum())[bunch]
        rows = rows[np.argsort(rank, kind="stable")]
        cuts, size, done = [], 0, 0
        for more in np.bincount(rank).tolist():
            if size > 1 and size + more > self.batch_size:
                cuts.append(done)
                size = 0
            size, done = size + more, done + more
        if cuts and len(rows) - cuts[-1] == 1:
            cuts.pop()  # the last image alone goes with the batch before it
        return np.split(rows, cuts)

    def _pk(self, epoch: int, neighbours: np.ndarray | None) -> list[np.ndarray]:
        identities = _fitting(self.groups, self.batch_size // self.settings.images)
        count = self._count(identities * self.settings.images)
        chosen = self._turns(int(self.groups.max()) + 1, identities, count, epoch)
        if neighbours is not None:
            self._near(chosen, np.asarray(neighbours), epoch)
        return list(self._images(self.groups, chosen, epoch).reshape(count, -1))

    def _near(self, chosen: np.ndarray, neighbours: np.ndarray, epoch: int) -> None:
        """Replace a share of the batches' identities (n, P), in place, by one and those near it."""
        others = chosen.shape[1] - 1
        if neighbours.shape[0] != self.groups.max() + 1 or neighbours.shape[1] < others:
            raise ValueError(
                f"neighbours: expected ({self.groups.max() + 1}, {others} or more) for batches of"
                f" {others + 1} identities, got {neighbours.shape}"
            )
        hard = len(chosen) - round(self.settings.random * len(chosen))
        if hard:
            seeds = self._turns(len(neighbours), 1, hard, epoch)[:, 0]
            which = self._rng(_ORDER, epoch).permutation(len(chosen))[:hard]
            chosen[which] = np.column_stack([seeds, neighbours[seeds, :others]])

    def _two_level(self, epoch: int) -> list[np.ndarray]:
        slots, aspects = self.batch_size // self.settings.images, int(self.kinds.max()) + 1
        at_once = min(slots, aspects)
        parts = [np.flatnonzero(self.kinds == kind) for kind in range(aspects)]
        groups = [np.unique(self.groups[rows], return_inverse=True)[1] for rows in parts]
        sizes = [_fitting(group, slots // at_once) for group in groups]
        count = self._count(sum(sizes) * self.settings.images * at_once / aspects)
        # Where a batch has no room for all aspects, they take turns
        turns = (epoch * count + np.arange(count))[:, None] * at_once + np.arange(at_once)
        made: list[list[np.ndarray]] = [[] for _ in range(count)]
        for kind, (rows, group, size) in enumerate(zip(parts, groups, sizes, strict=True)):
            batches = np.flatnonzero((turns % aspects == kind).any(axis=1))
            chosen = self._turns(int(group.max()) + 1, size, len(batches), epoch, kind)
            images = rows[self._images(group, chosen, epoch, kind)]
            for batch, part in zip(batches, images, strict=True):
                made[batch].append(part.reshape(-1))
        return [np.concatenate(parts) for parts in made]

    def _count(self, batch: float) -> int:
        """How many batches of that size show about N images."""
        return max(1, round(len(self.groups) / batch))

    def _turns(self, total: int, size: int, count: int, epoch: int, kind: int = 0) -> np.ndarray:
        """(count, size) of `total` identities: each row distinct, each identity in its turn.

        A cycle of ceil(total / size) rows shows all of them; its last row is filled up with some
        of its first. An epoch that is longer begins a cycle, a shorter one goes on with the last.
        """
        cycle = -(-total // size)
        start = epoch * (count if count < cycle else cycle * -(-count // cycle))
        first, last = start // cycle, (start + count - 1) // cycle
        orders = [
            self._rng(_TURNS, size, kind, k).permutation(total) for k in range(first, last + 1)
        ]
        rows = [np.resize(order, (cycle, size)) for order in orders]
        return np.concatenate(rows or [np.empty((0, size), int)])[start % cycle :][:count]

    def _images(
        self, groups: np.ndarray, chosen: np.ndarray, epoch: int, kind: int = 0
    ) -> np.ndarray:
        """(n, P, K) rows: K images of each of (n, P) identities, going round through all it has."""
        each = self.settings.images
        rows, starts, counts = _by_group(groups, self._rng(_IMAGES, epoch, kind))
        flat = chosen.reshape(-1)
        order = np.argsort(flat, kind="stable")
        seen = np.bincount(flat, minlength=len(counts))
        before = np.empty(len(flat), dtype=int)  # how often the identity came earlier
        before[order] = np.arange(len(flat)) - np.repeat(np.cumsum(seen) - seen, seen)
        at = (before[:, None] * each + np.arange(each)) % counts[flat][:, None]
        return rows[starts[flat][:, None] + at].reshape(*chosen.shape, each)


def make_sampler(
    settings: Sampler, labels: np.ndarray, aspects: np.ndarray, batch_size: int, seed: int
) -> Batches:
    """The batches of N images: labels (N,) int, aspects (N,) str; K is `settings.images`.

    shuffle: each image once an epoch, but for a last batch of one, which is left out.
    identity: each image once an epoch, an identity's about K at a time (two at least, where it has
    two); batches are a little smaller than asked, so that no such bunch is torn.
    pk: P = batch_size // K identities, K images each; about N images an epoch. Identities come in
    turn, all equally often, and go round through their images: one with fewer than K is shown with
    repetition, one of many images not with all of them in each epoch (Hermans et al. 2017).
    two_level: the same, with the P identities of a batch spread evenly over the aspects.
    hard: pk, but a share 1 - `random` of the batches is an identity with its P - 1 nearest ones
    (Graph Sampling, Liao & Shao 2022, arXiv:2104.01546).
    Warns where there are fewer than P identities, of which batches then are. Raises ValueError on
    lengths that differ and on batches that would hold a single image or identity.
    """
    labels, aspects = np.asarray(labels), np.asarray(aspects)
    if labels.ndim != 1 or labels.shape != aspects.shape:
        raise ValueError(
            f"labels {labels.shape} and aspects {aspects.shape}: expected one an image"
        )
    if len(labels) < 2 or batch_size < 2:
        raise ValueError(f"{len(labels)} images in batches of {batch_size}: two are the fewest")
    groups = np.unique(labels, return_inverse=True)[1]
    kinds = np.unique(aspects, return_inverse=True)[1]
    made = Batches(settings, groups, kinds, batch_size, seed)
    if settings.type in ("pk", "hard", "two_level"):
        _check_identities(made)
    return made


@dataclass(frozen=True)
class Replayed:
    """Batches of new images, each followed by one of old images; see `replayed`."""

    main: Batches
    old: Batches
    count: int

    def batches(self, epoch: int, neighbours: np.ndarray | None = None) -> list[np.ndarray]:
        """As of `Batches`, epochs counted from 1; neighbours: of the new identities."""
        shift, start = len(self.main.groups), (epoch - 1) * self.count
        new = _walked(self.main, start, self.count, neighbours)
        old = _walked(self.old, start, self.count)
        return [np.concatenate([a, shift + b]) for a, b in zip(new, old, strict=True)]


def replayed(main: Batches, old: Batches, count: int) -> Replayed:
    """`count` batches an epoch, each of new images and then of old ones shown again.

    Rows of old images are numbered on from those of the new. Both samplers' batches are taken in
    turn, epoch after epoch of theirs, whatever ends meanwhile: what an epoch has no room for opens
    the next, so that in the long run each sampler shows its images as it would alone.
    Raises ValueError on a count below 1.
    """
    if count < 1:
        raise ValueError(f"{count} batches an epoch: one is the fewest")
    return Replayed(main, old, count)


def replay_parts(settings: Sampler, batch_size: int, share: float) -> tuple[int, int]:
    """How many of a batch's images are new and how many old, where `share` of them is to be old.

    The old part is rounded to whole identities of `settings.images` (types pk, two_level and
    hard). Share 0: (batch_size, 0). Raises ValueError where a part has no room for two
    identities, or images.
    """
    each = settings.images if settings.type in ("pk", "two_level", "hard") else 1
    old = round(share * batch_size / each) * each
    if share and min(old, batch_size - old) < 2 * each:
        raise ValueError(
            f"replay.share {share} of a batch of {batch_size} is {old} images and leaves"
            f" {batch_size - old}: each part needs {2 * each} or more; raise batch_size"
        )
    return batch_size - old, old


def nearest_identities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C-1) int: of each identity all others, by the cosine of class means, nearest first.

    features: (N, D) unit rows; labels: (N,) int. Identities are numbered in the order of their
    labels.
    """
    _, groups = np.unique(np.asarray(labels), return_inverse=True)
    sums = np.zeros((groups.max() + 1, features.shape[1]))
    np.add.at(sums, groups, features)
    means = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype("f4")
    sim = means @ means.T
    np.fill_diagonal(sim, np.inf)  # itself comes first, and is cut off
    return np.argsort(-sim, axis=1, kind="stable")[:, 1:]


def _check_identities(made: Batches) -> None:
    """Say where a batch holds fewer identities than asked; ValueError where it holds only one."""
    each, total = made.settings.images, int(made.groups.max()) + 1
    slots = made.batch_size // each
    if slots < 2 or total < 2:
        raise ValueError(
            f"batch_size {made.batch_size}, sampler.images {each}, {total} training identities: a"
            " batch needs at least two identities; raise batch_size, or lower sampler.images"
        )
    pairs = np.unique(np.stack([made.kinds, made.groups]), axis=1)
    there, wanted = total, slots
    if made.settings.type == "two_level":
        counts = np.bincount(pairs[0])
        there, wanted = int(counts.min()), slots // min(slots, len(counts))
    if there < wanted:
        where = " of an aspect" if made.settings.type == "two_level" else ""
        warnings.warn(
            f"sampler {made.settings.type}: {there} identities{where} where a batch of"
            f" {made.batch_size} has room for {wanted}: batches are smaller",
            stacklevel=3,
        )


def _walked(
    sampler: Batches, start: int, count: int, neighbours: np.ndarray | None = None
) -> list[np.ndarray]:
    """Batches start … start + count - 1 (from 0) of a sampler's epochs, laid end to end."""
    found: list[np.ndarray] = []
    epoch = passed = 0
    while len(found) < count:
        epoch += 1
        batches = sampler.batches(epoch, neighbours)
        found += batches[max(start - passed, 0) :][: count - len(found)]
        passed += len(batches)
    return found


def _fitting(groups: np.ndarray, wanted: int) -> int:
    """As many identities as wanted, or as there are."""
    return min(wanted, int(groups.max()) + 1)


def _by_group(
    groups: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers by group, in random order within; where each group starts, and its size."""
    order = rng.permutation(len(groups))
    rows = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    return rows, np.cumsum(counts) - counts, counts
