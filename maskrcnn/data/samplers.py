"""In which order pictures come, on any number of processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that follows from (seed, epoch) alone, one rank's share of it.

    The order is filled up from its own start to a multiple of the global batch, so that every step is full.

    Args:
        num_images: How many pictures there are.
        batch_size: Pictures per rank and step.
        seed: With the epoch, the source of every draw.
        rank, world_size: Which share.
        repeats: float [num_images], how often a picture comes per epoch on average; once each by default.
        portrait: bool [num_images]; where given, a global batch holds pictures of one kind (but for one batch).

    Attributes:
        epoch: Whose order comes.
        start: Batches at the beginning of the epoch that are left out; the length stays the whole epoch's.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        repeats: np.ndarray | None = None,
        portrait: np.ndarray | None = None,
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        self.portrait = portrait
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        expected = num_images if repeats is None else float(repeats.sum())
        self.total = int(np.ceil(expected / self.global_batch)) * self.global_batch
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # With num_images where a sample has its index: no sample draws from the same stream.
        rng = np.random.default_rng([self.seed, self.epoch, self.num_images])
        order = np.arange(self.num_images)
        if self.repeats is not None:
            # Rounded so that their sum is rounded too: an epoch has a fixed length.
            until = np.floor(rng.random() + np.cumsum(np.append(0, self.repeats)))
            order = np.repeat(order, np.diff(until).astype(int))
        order = np.resize(rng.permutation(order), self.total)
        if self.portrait is not None:
            order = self._grouped(order, self.portrait[order], rng)
        share = order[self.rank :: self.world_size][self.start * self.batch_size :]
        return iter([(self.epoch, int(index)) for index in share])

    def _grouped(self, order: np.ndarray, portrait: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The order with global batches of one kind each, in random order; what is left over shares the last."""
        groups = [order[portrait], order[~portrait]]
        whole = [len(group) // self.global_batch * self.global_batch for group in groups]
        uniform = np.concatenate([group[:end] for group, end in zip(groups, whole, strict=True)])
        mixed = np.concatenate([group[end:] for group, end in zip(groups, whole, strict=True)])
        batches = rng.permutation(uniform.reshape(-1, self.global_batch))
        return np.concatenate((batches.ravel(), mixed))


def repeat_factors(labels: np.ndarray, first_instance: np.ndarray, *, threshold: float) -> np.ndarray:
    """How often each picture should come so that rare classes are seen (Gupta et al. 2019, LVIS, section 5.1).

    A class in a share f of the pictures has factor max(1, sqrt(threshold / f)); a picture has the largest
    factor of its classes.

    Args:
        labels: int [M], 1..K, sorted by picture.
        first_instance: int [N + 1]; picture i has instances first_instance[i] to first_instance[i + 1].
        threshold: Share of pictures below which a class counts as rare.

    Returns:
        float [N], at least 1.
    """
    num_images = len(first_instance) - 1
    image = np.repeat(np.arange(num_images), np.diff(first_instance))
    seen = np.unique(np.stack((image, labels)), axis=1)  # a class counts once in a picture
    share = np.bincount(seen[1], minlength=1) / num_images
    factor = np.sqrt(np.maximum(threshold / np.maximum(share, 1 / num_images), 1.0))
    factors = np.ones(num_images)
    np.maximum.at(factors, seen[0], factor[seen[1]])
    return factors


def dealt_batches(num_images: int, *, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """One rank's evaluation batches: formed once from the data set and dealt whole, so that none is repeated.

    But for a rank that would go without: Lightning's loop needs a batch, so it gets the first, which counts once.
    """
    batches = [list(range(first, min(first + batch_size, num_images))) for first in range(0, num_images, batch_size)]
    return batches[rank::world_size] or batches[:1]
