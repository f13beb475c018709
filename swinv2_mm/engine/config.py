"""Reading a config and applying what the command line says about it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction

from swinv2_mm.engine.console import Console
from swinv2_mm.engine.errors import SetupError

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')
CLASSIFICATION_EXTRA = "pip install -c constraints.txt '.[classification]'"
"""How to get what a config for classification needs."""


def load_config(path: str, options: Sequence[str] = (), console: Console | None = None) -> Config:
    """Reads a config file and merges `--cfg-options` into it.

    Args:
        path: The config file.
        options: Strings `KEY=VALUE`; dots in the key step into dicts and lists.
        console: Told about options that the config did not have, which often are misspelt.

    Raises:
        SetupError: There is no such file, it does not parse, an option cannot be merged, or it is no config for
            detection, segmentation or classification, or for a library that cannot be imported.
    """
    if not Path(path).is_file():
        raise SetupError(f'The config {path} does not exist{_similar(Path(path))}.')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise SetupError(f'The config {path} cannot be read: {_described(error)}') from error
    _merge_options(cfg, options, console)
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise SetupError(
            f'The config {path} has default_scope={scope!r}: expected one of {", ".join(map(repr, SCOPES))}.'
        )
    if scope == 'mmpretrain':
        _require_mmpretrain(path)
    if 'model' not in cfg:
        raise SetupError(
            f'The config {path} defines no model: name a config that can be run, not a part of one.'
        )
    if 'runner_type' in cfg:
        raise SetupError(
            f"The config {path} asks for runner_type={cfg.runner_type!r}: run it with its library's own tool."
        )
    return cfg


def _require_mmpretrain(path: str) -> None:
    """Checks that mmpretrain is there, which is an extra."""
    try:
        importlib.import_module('mmpretrain')
    except ModuleNotFoundError as error:
        if error.name == 'mmpretrain':
            raise SetupError(
                f'The config {path} is for image classification, which needs mmpretrain, and it is not installed: '
                f'{CLASSIFICATION_EXTRA}'
            ) from error
        raise SetupError(
            f'The config {path} needs mmpretrain, which lacks the package {error.name}: {CLASSIFICATION_EXTRA}'
        ) from error
    except Exception as error:  # an incompatible library can fail in any way
        raise SetupError(
            f'The config {path} needs mmpretrain, which is installed and cannot be imported ({_described(error)}). '
            f'Beside transformers 5 it cannot; otherwise: {CLASSIFICATION_EXTRA}'
        ) from error


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Sets `cfg.work_dir`: the argument, else the config's own, else `work_dirs/<name of the config>`.

    Raises:
        SetupError: The folder cannot be made or written to.
    """
    if work_dir is None:
        work_dir = cfg.get('work_dir') or os.path.join('work_dirs', Path(cfg.filename).stem)
    folder = Path(str(work_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.write_test_{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f'The work directory {folder} cannot be written to ({error.strerror}): name another with --work-dir.'
        ) from error
    cfg.work_dir = str(folder)


def enable_amp(cfg: Config, on_gpu: bool) -> None:
    """Switches the optimizer wrapper to mixed precision: fp16 with loss scaling on a GPU, bfloat16 on a CPU.

    Raises:
        SetupError: The config's optimizer wrapper is of a kind that has no counterpart in mixed precision.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        raise SetupError(f'--amp works with optim_wrapper.type OptimWrapper, not with {kind!r}.')
    if on_gpu:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    wrapper.type = 'CpuAmpOptimWrapper'
    for gpu_only in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(gpu_only, None)


def drop_pretrained(cfg: Any) -> int:
    """Removes the pre-trained weights that parts of a model start from.

    Args:
        cfg: The config of a model.

    Returns:
        How many there were.
    """
    if isinstance(cfg, (list, tuple)):
        return sum(drop_pretrained(value) for value in cfg)
    if not isinstance(cfg, dict):
        return 0
    dropped = sum(drop_pretrained(value) for key, value in cfg.items() if key != 'init_cfg')
    given = cfg.get('init_cfg')
    kept = [item for item in _as_list(given) if item.get('type') != 'Pretrained']
    if len(kept) < len(_as_list(given)):
        dropped += len(_as_list(given)) - len(kept)
        cfg['init_cfg'] = kept or None
    return dropped


def enable_lr_scaling(cfg: Config) -> None:
    """Turns the linear scaling of the learning rate on.

    Raises:
        SetupError: The config does not say for which batch size its learning rate is.
    """
    if not cfg.get('auto_scale_lr') or 'base_batch_size' not in cfg.auto_scale_lr:
        raise SetupError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config: '
            'the batch size for which its learning rate was chosen.'
        )
    cfg.auto_scale_lr.enable = True


def limit_iterations(cfg: Config, num_iters: int) -> str:
    """Makes the config run exactly `num_iters` training iterations, then save and validate once.

    The learning rate follows the first `num_iters` iterations of the config's own schedule: schedules by epoch are
    converted to iterations at the true length of an epoch, not squeezed.

    Args:
        cfg: A config with a training loop by epochs or by iterations.
        num_iters: Number of iterations, at least 1.

    Returns:
        What was changed, in words.

    Raises:
        SetupError: `num_iters` < 1, or the training loop is of an unknown kind.
    """
    if num_iters < 1:
        raise SetupError(f'--max-iters {num_iters}: expected at least 1.')
    loop = dict(cfg.train_cfg)
    by_epoch = loop.get('by_epoch', loop.get('type') == 'EpochBasedTrainLoop')
    planned = loop.get('max_epochs' if by_epoch else 'max_iters')
    if planned is None or loop.get('type') not in (
        None,
        'EpochBasedTrainLoop',
        'IterBasedTrainLoop',
    ):
        raise SetupError(f'--max-iters does not know how to shorten train_cfg={loop}.')
    for scheduler in _as_list(cfg.get('param_scheduler')):
        if by_epoch and scheduler.get('by_epoch', True):
            scheduler.update(by_epoch=True, convert_to_iter_based=True)
            scheduler.setdefault('end', planned)
        elif not by_epoch:
            scheduler.setdefault('end', planned)
    cfg.train_cfg = ConfigDict(
        type='IterBasedTrainLoop', max_iters=num_iters, val_begin=1, val_interval=num_iters
    )
    if by_epoch:
        cfg.log_processor = ConfigDict(cfg.get('log_processor') or {}, by_epoch=False)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.get('checkpoint') or ConfigDict(type='CheckpointHook')
    hooks.checkpoint = ConfigDict(checkpoint, by_epoch=False, interval=num_iters)
    logger = hooks.get('logger') or ConfigDict(type='LoggerHook')
    interval = min(logger.get('interval', 10), max(1, num_iters // 10))
    hooks.logger = ConfigDict(logger, interval=interval, log_metric_by_epoch=False)
    instead = f'{planned} epochs' if by_epoch else str(planned)
    plural = 's' if num_iters > 1 else ''
    return f'{num_iters} iteration{plural} instead of {instead}, then one validation'


def _merge_options(cfg: Config, options: Sequence[str], console: Console | None) -> None:
    """Merges strings `KEY=VALUE` into `cfg`."""
    merged: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not equals or not key:
            raise SetupError(
                f'--cfg-options {option}: expected KEY=VALUE, e.g. train_dataloader.batch_size=4.'
            )
        try:
            merged[key] = DictAction._parse_iterable(value)
        except AssertionError as error:
            raise SetupError(f'--cfg-options {option}: the brackets do not match.') from error
    new = [key for key in merged if not _has(cfg, key)]
    try:
        cfg.merge_from_dict(merged)
    except Exception as error:
        raise SetupError(f'--cfg-options {" ".join(options)}: {_described(error)}') from error
    if new and console is not None:
        console.warn(f'--cfg-options {", ".join(new)}: not in the config so far, added.')


def _has(cfg: Any, key: str) -> bool:
    """Says whether the dotted `key` is in `cfg`."""
    for part in key.split('.'):
        if isinstance(cfg, (list, tuple)):
            if not part.isdigit() or int(part) >= len(cfg):
                return False
            cfg = cfg[int(part)]
        elif isinstance(cfg, (dict, Config)) and part in cfg:
            cfg = cfg[part]
        else:
            return False
    return True


def _as_list(value: Any) -> list[Any]:
    """Returns `value` as a list; None is an empty one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _described(error: Exception) -> str:
    """Returns kind, message and place of an error in one line."""
    text = ' '.join(str(error).split()) or 'no message'
    if isinstance(error, SyntaxError) and error.lineno is not None and 'line' not in text:
        text = f'{text} (line {error.lineno})'
    return f'{type(error).__name__}: {text}'


def _similar(path: Path) -> str:
    """Returns a half-sentence that names configs with a similar name, for messages."""
    import difflib

    names = {str(file): file.name for file in Path('configs').rglob('*.py')}
    close = difflib.get_close_matches(path.name, names.values(), n=1, cutoff=0.7)
    similar = [file for file, name in names.items() if name in close]
    return f'; did you mean {similar[0]}?' if similar else ''
