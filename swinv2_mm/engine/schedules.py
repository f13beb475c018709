"""The schedule of a resumed training: position, learning rate and hyperparameters follow the config."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from mmengine.optim import OptimWrapperDict, ReduceOnPlateauParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from swinv2_mm.engine.errors import SetupError

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
    """Check that the state of the optimizer in a checkpoint is of the runner's.

    Args:
        kind: Name of the class of the optimizer that wrote the state, if it is known.

    Raises:
        SetupError: It is of another one.
    """
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

    Raises:
        SetupError: A scheduler depends on results of validations, which are not known here.
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


def _schedulers(runner: Runner) -> list[Any]:
    """Return the schedulers of a runner."""
    return list(runner.param_schedulers or [])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a parameter group."""
    return {key: value for key, value in group.items() if key not in ('params', 'param_names')}
