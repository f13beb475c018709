"""Batches whose order and random numbers are functions of the seed and the position in the training.

The generators of data loading processes cannot be saved: the processes are ahead of the training. So each sample is
read with generators that are seeded by its position, whichever process reads it, and a resumed run reads the samples
that an uninterrupted one would read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from torch.utils.data import DataLoader, Dataset, IterableDataset


class PlacedSample(NamedTuple):
    """The index of a sample and what its generators are seeded by."""

    index: Any
    key: tuple[int, ...]


class PlacedBatches:
    """A batch sampler that knows the position of its samples and can begin in the middle.

    The position of a sample is its place in the order that all processes draw from, so that it does not depend on the
    number of processes if they share a global batch as mmengine's samplers do.

    Args:
        inner: The batch sampler that gives the order.
        rank: Number of this process.
        world_size: Number of processes.
        endless: Begin the next pass over the data set where one ends, as iteration-based loops need it.

    Attributes:
        seed: Seed of the training; the same in all processes.
        epoch: Number of the pass that begins next.
        skip: Batches to pass over at the beginning of the next pass, without reading their samples.
    """

    def __init__(self, inner: Any, rank: int, world_size: int, endless: bool) -> None:
        self.inner, self.rank, self.world_size, self.endless = inner, rank, world_size, endless
        self.seed = self.epoch = self.skip = 0

    @classmethod
    def of(
        cls, loader: DataLoader, rank: int, world_size: int, endless: bool
    ) -> PlacedBatches | None:
        """Give a data loader placed batches and return them, or None if its data set has no indices."""
        batches, dataset = loader.batch_sampler, loader.dataset
        if batches is None or isinstance(dataset, IterableDataset):
            return None
        if not isinstance(batches, cls):
            batches = cls(batches, rank, world_size, endless)
            object.__setattr__(loader, 'batch_sampler', batches)  # torch's own setter refuses
            dataset.__getitems__ = _SeededItems(dataset)  # type: ignore[attr-defined]
        return batches

    def __iter__(self) -> Iterator[list[PlacedSample]]:
        skip, self.skip = self.skip, 0
        epoch = self.epoch
        while True:
            start = 0
            seed_generators('pass', self.seed, epoch)  # for samplers such as torch's RandomSampler
            for batch in self.inner:
                if skip:
                    skip -= 1
                else:
                    places = range(start, start + len(batch))
                    yield [
                        PlacedSample(index, (self.seed, epoch, place * self.world_size + self.rank))
                        for index, place in zip(batch, places)
                    ]
                start += len(batch)
            if not self.endless or not start:
                return
            epoch += 1
            if hasattr(getattr(self.inner, 'sampler', None), 'set_epoch'):
                self.inner.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['inner'], name)


class _SeededItems:
    """Reads the samples of a batch; torch's data loaders look for it under the name `__getitems__` of a data set."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        return [self._read(item) for item in batch]

    def _read(self, item: Any) -> Any:
        if not isinstance(item, PlacedSample):
            return self.dataset[item]
        seed_generators('sample', *item.key)
        return self.dataset[item.index]


_PURPOSES = ('sample', 'pass', 'step', 'validation')


def seed_generators(purpose: str, *key: int) -> None:
    """Seed the generators of python, numpy and torch by a purpose and numbers.

    Between two steps, which are seeded themselves, the order of the calls does not matter.
    """
    sequence = np.random.SeedSequence([_PURPOSES.index(purpose), *key])
    seed = int(sequence.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed takes long where there is a GPU that is not in use.
    if purpose in ('sample', 'pass') or get_device() == 'cpu':
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
