"""Resumed trainings that equal uninterrupted ones, or follow a config that has changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.schedules import (
    Pace,
    PlacedBatches,
    check_optimizer,
    fingerprint,
    follow_config,
    needs_metrics,
    seed_generators,
)
from swinv2_mm.registry import HOOKS

KEY = 'resume_state'
"""Key of a checkpoint under which the state of this hook is."""
_COUNTERS = {'InvalidLossHook': ('invalid',), 'EarlyStoppingHook': ('wait_count', 'best_score')}
"""Attributes of hooks that count."""


@HOOKS.register_module()
class ResumeStateHook(Hook):
    """Continue a resumed training as if it had not been interrupted.

    Model, optimizer, averaged weights and logged values are mmengine's part. This hook adds:

    - Random numbers of a step and of a sample are functions of the seed and the position, in every process.
    - The training continues at the same batch, also in the middle of an epoch. Batches before it are not read.
    - Accumulated gradients (of a training in one process), and counters of hooks: those of `InvalidLossHook` and
      `EarlyStoppingHook`, and what a hook names in an attribute `resumed`, a tuple of names of numbers.
    - A validation that follows the checkpoint is repeated.
    - If the schedule, the batch size, the number of processes or the optimizer's settings have changed, position,
      learning rate and settings are those that the config has for the images seen so far.
    """

    priority = 'LOWEST'  # after the others are ready

    def __init__(self) -> None:
        self._batches: PlacedBatches | None = None
        self._fingerprint = ''
        self._resumed: dict[str, Any] | None = None
        self._skip = 0
        self._before_val: list[Any] | None = None

    def before_run(self, runner: Runner) -> None:
        """Place the batches of the training."""
        loop = runner._train_loop
        if not isinstance(loop, BaseLoop):
            return
        self._fingerprint = fingerprint(runner)
        self._batches = PlacedBatches.of(
            loop.dataloader,
            runner.rank,
            runner.world_size,
            endless=isinstance(loop, IterBasedTrainLoop),
        )
        if self._batches is not None and isinstance(loop, IterBasedTrainLoop):
            # mmengine's reads the batches that it skips, unless the sampler is an InfiniteSampler.
            loop.dataloader_iterator.skip_iter = self._skip_batches
        if isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            loop.run_iter = partial(self._run_iter, runner, loop.run_iter)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Set the position and the schedule of a training that is resumed."""
        state = checkpoint.pop(KEY, None)
        if not runner._resume or not isinstance(runner._train_loop, BaseLoop):
            return
        meta = checkpoint.get('meta')
        if not isinstance(meta, dict) or not {'epoch', 'iter'} <= meta.keys():
            raise SetupError(
                f'The checkpoint {runner._load_from} does not say where a training stood: use it as load_from, '
                'without --resume.'
            )
        pace = Pace.of(runner)
        state = state if is_sound(state) else None
        if state is None:
            runner.logger.warning(
                'the checkpoint was written without ResumeStateHook: the order of the samples may differ from that of '
                'an uninterrupted training.'
            )
        before = Pace(*state['pace']) if state else pace
        saved = meta['epoch'], meta['iter']
        meta['epoch'], meta['iter'] = pace.position(before, *saved)
        moved = meta['iter'] != saved[1] or before.by_epoch != pace.by_epoch
        if before != pace:
            runner.logger.warning(
                f'the checkpoint is from iteration {saved[1]} with {before}; now {pace}: continuing at iteration '
                f'{meta["iter"]}.'
            )
        last = runner.train_loop.max_iters
        if moved and saved[1] < last <= meta['iter']:
            raise SetupError(
                f'The checkpoint is from iteration {saved[1]} with {before.images} images per iteration; with '
                f'{pace.images} that is iteration {meta["iter"]}, and the training ends at {last}. Pass --cfg-options '
                f'train_cfg.max_iters=N, or a batch size with {before.images} images per iteration.'
            )
        self._skip = max(0, meta['iter'] - meta['epoch'] * pace.length) if pace.by_epoch else 0
        self._resumed = state and {**state, 'in_place': before == pace and not moved}
        self._resume_optimizer(runner, checkpoint, state, moved)

    def before_train(self, runner: Runner) -> None:
        """Restore what mmengine does not, and repeat a validation that may have been cut."""
        if self._batches is not None:
            self._batches.seed = _seed(runner)
        state, self._resumed = self._resumed, None
        if state is not None:
            sampler = getattr(self._batches, 'sampler', None)
            if hasattr(sampler, 'seed') and state['sampler_seed'] is not None:
                sampler.seed = state['sampler_seed']  # type: ignore[union-attr]
            _restore_counters(runner, state['counters'])
            if state['gradients'] and state['in_place']:
                _restore_gradients(runner, state['gradients'])
                runner.logger.info('gradients accumulated before the checkpoint: restored')
            if not self._skip and _validates_here(runner):
                runner.logger.info(f'validation at iteration {runner.iter}')
                runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Skip the batches of a resumed epoch."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop) or self._batches is None:
            return
        self._batches.epoch = runner.epoch
        self._skip_batches(self._skip)

    def after_train_epoch(self, runner: Runner) -> None:
        """Count the batches of the next epoch from its beginning."""
        self._skip = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Seed the generators by the position; counters are saved as they are before a validation."""
        if isinstance(runner._train_loop, BaseLoop):
            seed_generators('validation', _seed(runner), runner.iter, runner.rank)
            self._before_val = _counters(runner)

    def after_val(self, runner: Runner) -> None:
        """Save current counters again."""
        self._before_val = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the state to a checkpoint."""
        seed = getattr(getattr(self._batches, 'sampler', None), 'seed', None)
        counters = _counters(runner) if self._before_val is None else self._before_val
        checkpoint[KEY] = dict(
            pace=list(Pace.of(runner)),
            fingerprint=self._fingerprint,
            optimizer=type(getattr(runner.optim_wrapper, 'optimizer', None)).__name__,
            sampler_seed=seed if isinstance(seed, int) else None,
            counters=counters,
            gradients=_gradients(runner),
        )

    def _run_iter(self, runner: Runner, run_iter: Callable[..., None], *given: Any) -> None:
        """Run an iteration with generators that are seeded by its position, and with its true number in the epoch."""
        seed_generators('step', _seed(runner), runner.iter, runner.rank)
        *number, data_batch = given  # a loop by epoch passes the number of the batch
        run_iter(*(index + self._skip for index in number), data_batch)

    def _skip_batches(self, count: int) -> None:
        if self._batches is not None:
            self._batches.skip = count

    def _resume_optimizer(
        self,
        runner: Runner,
        checkpoint: dict[str, Any],
        state: dict[str, Any] | None,
        moved: bool,
    ) -> None:
        """Let schedule and optimizer follow the config if it differs from the checkpoint's."""
        if not self._fingerprint:
            return  # several optimizers
        if 'optimizer' not in checkpoint:
            runner.logger.warning('the checkpoint holds no state of the optimizer: it starts anew.')
        else:
            check_optimizer(runner, checkpoint, state['optimizer'] if state else None)
        if state is None:
            changed = not needs_metrics(runner)
        else:
            changed = moved or state['fingerprint'] != self._fingerprint
        if changed or not {'optimizer', 'param_schedulers'} <= checkpoint.keys():
            position = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
            follow_config(runner, checkpoint, *position)
            if state is not None:
                rate = max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)
                runner.logger.warning(
                    "the schedule or the optimizer's settings differ from the checkpoint's: they follow the config, "
                    f'with a learning rate of {rate:.4g} at iteration {position[1]}.'
                )


def _seed(runner: Runner) -> int:
    """Return the seed that all processes share."""
    return runner.seed - (runner.rank if runner._randomness_cfg.get('diff_rank_seed') else 0)


def is_sound(state: Any) -> bool:
    """Return whether the state in a checkpoint has the types that this hook writes."""
    kinds: dict[str, Any] = dict(
        pace=list,
        fingerprint=str,
        optimizer=str,
        sampler_seed=(int, type(None)),
        counters=list,
        gradients=dict,
    )
    return (
        isinstance(state, dict)
        and all(isinstance(state.get(key, ...), kind) for key, kind in kinds.items())
        and len(state['pace']) == len(Pace._fields)
        and all(type(number) is int for number in state['pace'])
        and min(state['pace'][1:]) > 0
        and all(
            isinstance(one, list) and list(map(type, one)) == [str, dict]
            for one in state['counters']
        )
        and all(isinstance(one, torch.Tensor) for one in state['gradients'].values())
    )


def _validates_here(runner: Runner) -> bool:
    """Return whether a training validates at its position."""
    loop = runner.train_loop
    if runner._val_loop is None or not hasattr(loop, '_decide_current_val_interval'):
        return False
    loop._decide_current_val_interval()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return done >= max(1, loop.val_begin) and (done % loop.val_interval == 0 or done == end)


def _counters(runner: Runner) -> list[Any]:
    """Return name and counters of each hook that has some."""
    found = []
    for hook in runner.hooks:
        name = type(hook).__name__
        named = getattr(hook, 'resumed', _COUNTERS.get(name, ()))
        if named:
            values = {key: getattr(hook, key) for key in named if hasattr(hook, key)}
            # Metrics may be numbers of numpy.
            found.append(
                [name, {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}]
            )
    return found


def _restore_counters(runner: Runner, saved: list[Any]) -> None:
    """Set the counters of hooks; those of a class are told apart by their order."""
    saved = list(saved)
    for hook in runner.hooks:
        name = type(hook).__name__
        named = getattr(hook, 'resumed', _COUNTERS.get(name, ()))
        entry = next((one for one in saved if named and one[0] == name), None)
        if entry is not None:
            saved.remove(entry)
            for key, value in entry[1].items():
                if key in named and isinstance(value, (int, float)):
                    setattr(hook, key, value)


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _gradients(runner: Runner) -> dict[str, torch.Tensor]:
    """Return gradients that the optimizer has not used yet; only those of one process can be saved."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict) or wrapper.should_update() or runner.world_size > 1:
        return {}
    return {
        name: parameter.grad.cpu()
        for name, parameter in _model(runner).named_parameters()
        if parameter.grad is not None and not hasattr(parameter.grad, 'to_local')
    }


def _restore_gradients(runner: Runner, saved: dict[str, torch.Tensor]) -> None:
    """Set the gradients of the parameters that have some."""
    for name, parameter in _model(runner).named_parameters():
        if name in saved and saved[name].shape == parameter.shape:
            parameter.grad = saved[name].to(parameter.device, parameter.dtype)
