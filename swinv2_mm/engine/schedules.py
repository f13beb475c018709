"""What a training has at a position: its batches and random numbers, its learning rate and hyperparameters.

The generators of data loading processes cannot be saved: the processes are ahead of the training. So each sample is
read with generators that are seeded by its position, whichever process reads it, and a resumed run reads the samples
that an uninterrupted one would read. The schedule follows the config.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapperDict, ReduceOnPlateauParamScheduler
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset

from swinv2_mm.engine.errors import SetupError


class PlacedSample(NamedTuple):
    """The index of a sample and what its generators are seeded by."""

    index: Any
    key: tuple[int, ...]


class PlacedBatches:
    """A batch sampler that knows the position of its samples and can begin in the middle.

    The position of a sample is its place in the order that all processes draw from, so that it does not depend on the
    number of processes if they share a global batch as mmengine's samplers do.

    Attributes:
        endless: Whether the next pass over the data set begins where one ends, as iteration-based loops need it.
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
            # torch's loaders look for this name.
            dataset.__getitems__ = partial(_read_batch, dataset)  # type: ignore[attr-defined]
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


def _read_batch(dataset: Dataset, batch: Sequence[Any]) -> list[Any]:
    """Read the samples of a batch."""
    return [_read(dataset, item) for item in batch]


def _read(dataset: Dataset, item: Any) -> Any:
    if not isinstance(item, PlacedSample):
        return dataset[item]
    seed_generators('sample', *item.key)
    return dataset[item.index]


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


_RESTART = 'To start anew from its weights: --cfg-options load_from=CHECKPOINT without --resume.'


class Pace(NamedTuple):
    """What an iteration of a training is.

    Attributes:
        by_epoch: 1 if the loop counts epochs, else 0.
        length: Iterations of an epoch.
        batch: Images of an iteration in a process.
        world_size: Number of processes.
        accumulation: Iterations of a step of the optimizer.
    """

    by_epoch: int
    length: int
    batch: int
    world_size: int
    accumulation: int

    @classmethod
    def of(cls, runner: Runner) -> Pace:
        """Return the pace of a runner whose training loop has been built."""
        loader = runner.train_dataloader
        return cls(
            int(isinstance(runner.train_loop, EpochBasedTrainLoop)),
            len(loader),
            int(np.sum(getattr(loader.batch_sampler, 'batch_size', None) or 1)),
            runner.world_size,
            getattr(runner.optim_wrapper, '_accumulative_counts', 1),
        )

    @property
    def images(self) -> int:
        """Images of an iteration in all processes."""
        return self.batch * self.world_size

    def __str__(self) -> str:
        return (
            f'{self.batch} images per process x {self.world_size} x {self.accumulation} accumulation, '
            f'{self.length} iterations per epoch'
        )

    def position(self, before: Pace, epoch: int, iteration: int) -> tuple[int, int]:
        """Return the epoch and iteration of this pace at which as much has been seen as at those of another."""
        if not self.by_epoch:
            return 0, iteration * before.images // self.images
        if before[:4] == self[:4]:
            return epoch, iteration
        done, extra = divmod(iteration, before.length)
        if done > epoch and not extra and before.by_epoch:  # what follows an epoch is still to come
            return done - 1, done * self.length
        return done, done * self.length + min(extra * before.images // self.images, self.length)


def fingerprint(runner: Runner) -> str:
    """Return a hash of the schedulers and settings that a runner has just built, or nothing for several optimizers."""
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return ''
    schedulers = [(type(one).__name__, one.state_dict()) for one in _schedulers(runner)]
    groups = [_settings(group) for group in runner.optim_wrapper.param_groups]
    return hashlib.sha256(repr([schedulers, groups]).encode()).hexdigest()


def check_optimizer(runner: Runner, checkpoint: dict[str, Any], kind: str | None) -> None:
    """Check that the state in a checkpoint is of the runner's optimizer; `kind` is its class, if it is known."""
    optimizer = runner.optim_wrapper.optimizer
    own, groups = type(optimizer).__name__, len(optimizer.param_groups)
    saved = len(checkpoint['optimizer']['param_groups'])
    if (kind or own) != own or saved != groups:
        raise SetupError(
            f'The checkpoint {runner._load_from} is of {kind or "an optimizer"} with {saved} parameter groups and the '
            f'config defines {own} with {groups}: the training cannot be resumed. {_RESTART}'
        )


def needs_metrics(runner: Runner) -> bool:
    """Return whether a scheduler depends on results of validations."""
    return any(isinstance(one, ReduceOnPlateauParamScheduler) for one in _schedulers(runner))


def follow_config(runner: Runner, checkpoint: dict[str, Any], epoch: int, iteration: int) -> None:
    """Set schedulers and hyperparameters to what the config's schedule has at a position.

    The checkpoint keeps the state of each parameter (momenta) and loses the state of the schedulers.
    """
    if needs_metrics(runner):
        raise SetupError(
            'The schedule or the batch size has changed, and a schedule with ReduceOnPlateau cannot be recomputed: '
            f'resume with what the checkpoint {runner._load_from} was trained with. {_RESTART}'
        )
    checkpoint.pop('param_schedulers', None)
    _replay(runner, epoch, iteration)
    if 'optimizer' in checkpoint:
        wrapper, saved = runner.optim_wrapper, checkpoint['optimizer']
        for group, own in zip(saved['param_groups'], wrapper.optimizer.param_groups):
            group.update(_settings(own))
        if wrapper.base_param_settings is not None:
            saved['base_param_settings'] = wrapper.base_param_settings
    for one in _schedulers(runner):
        if getattr(one, 'T_max', one.end) < one.end - one.begin:
            runner.logger.warning(
                f'{type(one).__name__} ends its half cosine after T_max={one.T_max} of {one.end - one.begin} steps and '
                'then rises: remove T_max from param_scheduler, or set it to the new length.'
            )


def _replay(runner: Runner, epoch: int, iteration: int) -> None:
    """Step the schedulers as a training does until a position.

    Groups with the same settings, of which a model has hundreds, are stepped once.
    """
    wrapper, schedulers = runner.optim_wrapper, _schedulers(runner)
    optimizer, groups, base = wrapper.optimizer, wrapper.param_groups, wrapper.base_param_settings
    kinds = [repr(_settings(group)) for group in groups]
    first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
    values = [one.base_values for one in schedulers]
    all_groups = optimizer.param_groups
    optimizer.param_groups = [groups[number] for number in first.values()]
    wrapper.base_param_settings = None
    for one in schedulers:
        one.base_values = [one.base_values[number] for number in first.values()]
    wrapper._global_step = 0  # mmengine warns of schedulers that step before the optimizer
    length = len(runner.train_dataloader)
    for done in range(1, min(iteration, runner.train_loop.max_iters) + 1):
        for one in schedulers:
            if not one.by_epoch:
                one.step()
        if done % length == 0 and done // length <= epoch:
            for one in schedulers:
                if one.by_epoch:
                    one.step()
    optimizer.param_groups, wrapper.base_param_settings = all_groups, base
    for group, kind in zip(groups, kinds):
        group.update(_settings(groups[first[kind]]))
    for one, own in zip(schedulers, values):
        one.base_values = own
        one._last_value = [group[one.param_name] for group in groups]


def schedule_faults(runner: Runner) -> Iterator[str]:
    """Yield what of the schedule the training is too short for."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    for one in _schedulers(runner):
        name, unit = type(one).__name__, 'epoch' if one.by_epoch else 'iteration'
        total = runner.max_epochs if one.by_epoch else runner.max_iters
        late = [step for step in getattr(one, 'milestones', ()) if step >= total]
        if one.by_epoch and not by_epoch:
            yield f'{name} counts epochs and the training iterations, so it never steps: set by_epoch=False.'
        elif one.begin >= total:
            yield f'{name} begins at {unit} {one.begin}, and the training ends at {total}.'
        elif late:
            yield f'{name} has a milestone at {unit} {late[0]}, and the training ends at {total}.'
        elif total < one.end < INF:
            yield f'{name} ends at {unit} {one.end}, and the training at {total}: its last value is not reached.'
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            total = runner.max_epochs if hook.by_epoch else runner.max_iters
            if hook.interval > total > 1:
                unit = 'epochs' if hook.by_epoch else 'iterations'
                due = f'a checkpoint is due every {hook.interval} {unit}'
                yield f'{due}, and the training has {total}: the only one is saved at the end.'
        if isinstance(hook, EMAHook) and hook.ema_cfg['type'] == 'ExponentialMovingAverage':
            momentum, total = hook.ema_cfg.get('momentum', 0.0002), runner.max_iters
            if (
                1 < total < 3 / momentum
            ):  # the first weights still have a share of exp(-3) = 5 % then
                yield (
                    f'EMAHook averages over about {1 / momentum:,.0f} iterations, and the training has {total:,}: '
                    'the averaged weights, which are validated, stay close to the first ones. Set '
                    f'momentum={10 / total:.2g}.'
                )


def _schedulers(runner: Runner) -> list[Any]:
    """Return the schedulers of a runner."""
    return list(runner.param_schedulers or [])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a parameter group."""
    return {key: value for key, value in group.items() if key not in ('params', 'param_names')}
