"""Hooks that `configs/_base_/default_runtime.py` adds to every run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from swinv2_mm.checkpoints import WINDOWS_KEY, CheckpointError
from swinv2_mm.checkpoints.detect import COMPILED, prefer_averaged
from swinv2_mm.engine.checkpoint_files import replace_file
from swinv2_mm.engine.checkpoint_hook import write_report
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.schedules import schedule_faults
from swinv2_mm.ops.winograd import use_winograd
from swinv2_mm.registry import HOOKS

METRICS_FILE = 'metrics.json'


@HOOKS.register_module()
class BatchSizeHook(Hook):
    """Log the effective batch size and the learning rate before the first step."""

    def before_train(self, runner: Runner) -> None:
        """Log both, and warn if they do not belong together."""
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        batch = runner.cfg.train_dataloader.get('batch_size', 1)
        effective = batch * runner.world_size * accumulation
        scaling = runner.cfg.get('auto_scale_lr') or {}
        base = scaling.get('base_batch_size')
        scaled = bool(base and scaling.get('enable'))
        optimizer = runner.optim_wrapper.optimizer
        rate = max(group.get('initial_lr', group['lr']) for group in optimizer.param_groups)
        plural = 's' if runner.world_size > 1 else ''
        runner.logger.info(
            f'data: {len(runner.train_dataloader.dataset)} training images; '
            f'batch: {batch} per device x {runner.world_size} device{plural} x {accumulation} accumulation = '
            f'{effective}; learning rate: {rate:.4g}{", scaled" if scaled else ""} ({type(optimizer).__name__})'
        )
        if base and not scaled and effective != base:
            runner.logger.warning(
                f'the learning rate is for a batch of {base}, this run has {effective}: use --auto-scale-lr '
                'or set optim_wrapper.optimizer.lr.'
            )
        if runner.iter >= runner.max_iters:
            runner.logger.warning(
                f'the checkpoint is at iteration {runner.iter} and the training ends at {runner.max_iters}: '
                'nothing is left to do.'
            )


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop a run whose loss stays NaN or infinite, and name losses, weights and samples in a file.

    mmdet's `CheckInvalidLossHook` also stops a run of which a single loss is invalid, from which fp16 with dynamic loss
    scaling recovers.

    Args:
        patience: Iterations in a row whose loss may be invalid before the run is stopped.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.invalid = 0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Count invalid losses."""
        found = (outputs or {}).get('loss', 0.0)
        loss = float(found.detach() if isinstance(found, torch.Tensor) else found)
        if math.isfinite(loss):
            self.invalid = 0
            return
        if not self.invalid:
            report = write_report(runner, runner.iter + 1, outputs, data_batch)
            runner.logger.warning(
                f'the loss is {loss} at iteration {runner.iter + 1}; report: {report}'
            )
        self.invalid += 1
        if self.invalid >= self.patience:
            raise FloatingPointError(
                f'the loss is {loss} for {self.patience} iterations in a row, up to iteration {runner.iter + 1}'
            )


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Write the metrics of the last validation to `metrics.json` in the work directory, and of a test to
    `test_metrics.json`.
    """

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the metrics of a validation."""
        self._write(runner, metrics, METRICS_FILE)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the metrics of a test."""
        self._write(runner, metrics, f'test_{METRICS_FILE}')

    @staticmethod
    def _write(runner: Runner, metrics: dict[str, float] | None, name: str) -> None:
        if runner.rank == 0:
            path = Path(runner.work_dir) / name
            replace_file(path, f'{json.dumps(plain_metrics(metrics or {}), indent=2)}\n'.encode())
            runner.logger.info(f'metrics written to {path}')


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics without the evaluator's prefix, unless two keys would become one; NaN and infinity as None."""
    short = [key.rsplit('/', 1)[-1] for key in metrics]
    plain: dict[str, float | None] = {}
    for (key, value), name in zip(metrics.items(), short):
        finite = round(float(value), 6) if math.isfinite(value) else None
        plain[name if short.count(name) == 1 else key] = finite
    return plain


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Compare the model with the checkpoint that it is loaded from."""

    priority = 'VERY_HIGH'  # other hooks get the names of the model

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Warn if tensors are missing; refuse a checkpoint that holds none, or not all when testing.

        Names in the checkpoint lose what wrappers add; see `unwrap_names`.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # the model inside one for test-time augmentation
        state = model.state_dict()
        choice = '' if runner._resume else prefer_averaged(checkpoint)
        if choice:
            runner.logger.warning(f'{runner._load_from}: {choice}.')
        unwrap_names(checkpoint, state)
        loaded = checkpoint.get('state_dict', checkpoint)
        if window := unknown_window(state, loaded):
            runner.logger.warning(f'{runner._load_from} {window}')
        problem, none_fits = compare_state(state, loaded)
        if problem:
            problem = f'The checkpoint {runner._load_from} {problem}'
            testing = not isinstance(runner._train_loop, BaseLoop)
            if none_fits:
                raise SetupError(f'{problem}.')
            if testing:
                raise SetupError(f'{problem}: was it trained with another config?')
            runner.logger.warning(
                f'{problem}; they start from their initialisation.{_other_classes(runner, checkpoint)}'
            )


@HOOKS.register_module()
class WinogradHook(Hook):
    """Let 3 x 3 convolutions of a model on a CPU use Winograd's algorithm; see `swinv2_mm.ops.winograd`."""

    def before_run(self, runner: Runner) -> None:
        """Change the convolutions of the model."""
        use_winograd(runner.model)


class ScheduleHook(Hook):
    """Warn of a schedule that the training is too short for."""

    def before_train(self, runner: Runner) -> None:
        """Log what does not fit."""
        for sentence in schedule_faults(runner):
            runner.logger.warning(sentence)


@HOOKS.register_module()
class HeadOutputsHook(Hook):
    """Let the heads of a model return fp32 under autocast; see `return_fp32`."""

    def before_run(self, runner: Runner) -> None:
        """Change the heads of the model."""
        return_fp32(runner.model)


def return_fp32(model: nn.Module) -> None:
    """Let what the heads of a detector or segmentor compute under autocast be converted to fp32.

    mmdet gives anchors the type of the scores, and bf16 has 8 bits: boxes beyond 256 pixels would move by pixels.
    """
    for module in model.modules():
        if hasattr(module, 'loss_by_feat') or hasattr(module, 'loss_and_target'):
            # Heads of mmseg call their own `forward`, and this layer last.
            last = getattr(module, 'conv_seg', module)
            last.register_forward_hook(lambda module, inputs, outputs: _as_fp32(outputs))


def _as_fp32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return type(value)(map(_as_fp32, value)) if type(value) in (list, tuple) else value


def _other_classes(runner: Runner, checkpoint: Mapping[str, Any]) -> str:
    """Return a sentence about the classes of a checkpoint, if the training has a different number of them."""
    stored = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    theirs = {key.lower(): stored[key] for key in stored}.get('classes')
    ours = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes')
    if not theirs or not ours or len(theirs) == len(ours):
        return ''
    return (
        f' The checkpoint is of {len(theirs)} classes and the data have {len(ours)}, so classifiers '
        'are among them.'
    )


def unwrap_names(checkpoint: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Remove `module.` of DDP and `_orig_mod.` of `torch.compile` from the names of the weights in a checkpoint.

    The latter stays if the model with the weights `state` is compiled, too. In EMA weights, `module.` is mmengine's.
    """
    compiled = any(COMPILED in key for key in state)
    weights = checkpoint.get('state_dict', checkpoint)
    for content in (weights, checkpoint.get('ema_state_dict') or {}):
        for key in [key for key in content if isinstance(key, str)]:
            short = key if compiled else key.replace(COMPILED, '')
            short = short.removeprefix('module.') if content is weights else short
            if short != key:
                if short in content:
                    raise CheckpointError(f'The checkpoint holds both {short} and {key}.')
                content[short] = content.pop(key)


def unknown_window(state: Mapping[str, Any], loaded: Mapping[str, Any]) -> str:
    """Return a sentence if a checkpoint of a whole model does not tell the window of its backbone, else ''."""
    keys = [key for key in state if key.endswith(WINDOWS_KEY) and key not in loaded]
    if not keys or not any(key in loaded for key in state):
        return ''
    windows = state[keys[0]].tolist()
    return f'does not tell at which window it was trained: taken as that of the model, {windows}.'


def _kind(tensor: Any) -> str:
    """Return what a tensor holds, for messages; kinds that differ are not cast into each other."""
    if not isinstance(tensor, torch.Tensor):
        return f'a {type(tensor).__name__}'
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
        return 'a tensor without plain values'
    return 'real numbers' if tensor.is_floating_point() else str(tensor.dtype)


def compare_state(state: Mapping[str, Any], loaded: Mapping[str, Any]) -> tuple[str, bool]:
    """Return how the tensors of a checkpoint fall short of a model's, in words, and whether it cannot be used."""
    wanted = {
        key: value
        for key, value in state.items()
        if not key.endswith(('num_batches_tracked', WINDOWS_KEY))
    }
    missing = [key for key in wanted if key not in loaded]
    for key in wanted.keys() & loaded.keys():
        if (kind := _kind(loaded[key])) != _kind(wanted[key]):
            return f'holds {kind} for {key}, where the model has {_kind(wanted[key])}', True
    unlike = [
        key
        for key in wanted
        if key in loaded
        and loaded[key].shape != wanted[key].shape
        and not loaded[key].numel() == wanted[key].numel() == 1  # (1,) instead of () under FSDP2
    ]
    lacking = len(missing) + len(unlike)
    if not lacking:
        return '', False
    example = f'{missing[0]} is not in it' if missing else ''
    if unlike:
        shapes = tuple(loaded[unlike[0]].shape), tuple(wanted[unlike[0]].shape)
        example = f'{unlike[0]} is {shapes[0]} there and {shapes[1]} in the model'
    if lacking == len(wanted):
        return f"holds none of the model's {len(wanted)} tensors ({example})", True
    return f"lacks {lacking} of the model's {len(wanted)} tensors ({example})", False
