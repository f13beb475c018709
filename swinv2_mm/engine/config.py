"""Reading a config, and the options of the command line that change it."""

from __future__ import annotations

import ast
import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import Runner

from swinv2_mm import shipped
from swinv2_mm.datasets.checks.configured import as_list
from swinv2_mm.engine.console import import_library, warn
from swinv2_mm.engine.devices import GPU_KINDS, has_bf16
from swinv2_mm.engine.errors import SetupError
from swinv2_mm_cli import find_config

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')
_AUTOCAST = 'swinv2_mm.AutocastOptimWrapper'
_RUNTIME = '_base_/default_runtime.py'
# Other braces occur in strings, such as '{}.pth'.
_DICT = re.compile(r"""\bdict\(\s*\w+\s*=|\{\s*['"]|^\s*(\{\}|dict\(\))\s*$""")


def load_config(path: str, options: Sequence[str] = ()) -> Config:
    """Read a config and merge `--cfg-options` into it; warn about options that the config does not have.

    Raises:
        SetupError: It is not a config for detection, segmentation or classification that can be run here.
    """
    try:
        path = find_config(path)
    except FileNotFoundError as missing:
        raise SetupError(str(missing)) from missing
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        reason = _described(error).rstrip('.')
        raise SetupError(
            f'The config {path} cannot be read: {reason}.{_shipped_remedy(error)}'
        ) from error
    _localise(cfg)
    merge_options(cfg, options)
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise SetupError(
            f'The config {path} has default_scope={scope!r}: expected one of {", ".join(map(repr, SCOPES))}.'
        )
    _require_library(path, scope)
    if 'model' not in cfg:
        raise SetupError(
            f'The config {path} defines no model: name a config that can be run, not a part of one.'
        )
    if 'runner_type' in cfg:
        raise SetupError(
            f"The config {path} asks for runner_type={cfg.runner_type!r}: run it with its library's own tool."
        )
    return cfg


def _shipped_remedy(error: Exception) -> str:
    """Return what to write instead of a `swinv2_mm::...` that mmengine does not find."""
    if '.mim' not in str(error) or 'swinv2_mm' not in str(error):
        return ''
    if shipped.folder().name != '.mim':
        return (
            ' swinv2_mm::... is for an installed package: pip install it, or, in a checkout, write '
            f'the path of the config in {shipped.folder() / "configs"}.'
        )
    name = re.search(r'configs/(?:[^\s\']*/)?([^\s\'/]+)\.py', str(error))
    try:
        found = find_config(name[1]) if name else ''
    except FileNotFoundError as missing:
        return f' {missing}'
    folder = Path(found).parent.name
    return f' The config is swinv2_mm::{folder}/{name[1]}.py.' if name else ''


def _localise(cfg: Config) -> None:
    """Look for data of configs of other libraries where this package's configs do, below SWINV2_MM_DATA.

    mmengine marks what a config takes from `swinv2_mm::...` as this package's, whose registries do not have the
    classes of MMDetection and MMSegmentation: the mark is removed.
    """
    root = os.environ.get('SWINV2_MM_DATA', '')
    for part in dicts_in(cfg._cfg_dict):
        if part.get('_scope_') == 'swinv2_mm':
            del part['_scope_']
        for key, value in part.items() if root else ():
            if isinstance(value, str) and value.startswith('data/'):
                part[key] = os.path.join(root, value.removeprefix('data/'))


def _require_library(path: str, scope: str) -> None:
    """Import the library of a config; mmpretrain is an optional dependency."""
    try:
        import_library(scope)
    except Exception as error:  # an incompatible library can fail in any way
        if scope != 'mmpretrain':
            raise SetupError(f'The config {path} needs {scope}: {_described(error)}') from error
        reason = f'is installed and cannot be imported ({_described(error)})'
        if isinstance(error, ModuleNotFoundError):
            reason = (
                'is not installed' if error.name == scope else f'lacks the package {error.name}'
            )
        raise SetupError(
            f'The config {path} is for image classification, which needs mmpretrain, and it {reason}. It cannot be '
            f'imported beside transformers 5; otherwise: pip install onedl-mmpretrain scikit-learn'
        ) from error


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Set `cfg.work_dir`: the argument, else the config's own, else `work_dirs/<name of the config>`."""
    if work_dir is None:
        work_dir = cfg.get('work_dir') or os.path.join('work_dirs', Path(cfg.filename).stem)
    cfg.work_dir = str(work_dir)
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=cfg.work_dir).close()
    except OSError as error:
        raise SetupError(
            f'The work directory {cfg.work_dir} cannot be written to ({error.strerror}): name another with --work-dir.'
        ) from error


def enable_amp(cfg: Config, device: torch.device, precision: str = 'auto') -> str:
    """Switch the optimizer wrapper to mixed precision, and return which.

    `'auto'` is what the wrapper says if it is mmengine's `AmpOptimWrapper` on a GPU; else bf16, and fp16 with loss
    scaling on GPUs without bf16.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', _AUTOCAST):
        raise SetupError(f'--amp works with optim_wrapper.type OptimWrapper, not with {kind!r}.')
    on_gpu = device.type in GPU_KINDS
    if precision == 'fp16' and not on_gpu:
        raise SetupError('--amp fp16 is for GPUs: use --amp bf16.')
    if precision == 'auto':
        stated = kind == 'AmpOptimWrapper' and wrapper.get('dtype') != 'bfloat16'
        precision = 'fp16' if on_gpu and (stated or not has_bf16(device)) else 'bf16'
    if precision == 'fp16':
        wrapper.update(type='AmpOptimWrapper', dtype='float16')
        wrapper.setdefault('loss_scale', 'dynamic')
        return precision
    wrapper.type = (
        _AUTOCAST  # the exponents of bf16 are those of fp32, so the loss needs no scaling
    )
    for of_fp16 in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(of_fp16, None)
    return precision


def complete_config(cfg: Config) -> None:
    """Add this package's hooks, and drop settings of data loaders that do not fit together.

    A config of another library has none of the hooks, or mmengine's CheckpointHook. `num_workers=0` is often set on the
    command line, with `persistent_workers=True` in the config, which torch refuses together.
    """
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if checkpoint and checkpoint.get('type') == 'CheckpointHook':
        checkpoint.type = 'swinv2_mm.AtomicCheckpointHook'
    for name, hook in Config.fromfile(shipped.config(_RUNTIME)).default_hooks.items():
        if hooks.setdefault(name, hook) is None:
            del hooks[name]
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader')
        if loader and not loader.get('num_workers'):
            loader.pop('persistent_workers', None)
            loader.pop('prefetch_factor', None)


def drop_pretrained(cfg: Any) -> int:
    """Remove the pre-trained weights that parts of a model's config start from, and return how many there were."""
    dropped = 0
    for part in list(dicts_in(cfg)):
        given = as_list(part.get('init_cfg'))
        kept = [item for item in given if item.get('type') != 'Pretrained']
        if len(kept) < len(given):
            part['init_cfg'] = kept or None
            dropped += len(given) - len(kept)
        if isinstance(
            part.get('pretrained'), str
        ):  # MMSegmentation's older key, of a model or backbone
            part['pretrained'] = None
            dropped += 1
    return dropped


def dicts_in(cfg: Any) -> Iterator[Any]:
    """Yield the dicts inside a config, at any depth."""
    if isinstance(cfg, dict):
        yield cfg
        cfg = list(cfg.values())
    for value in cfg if isinstance(cfg, (list, tuple)) else ():
        yield from dicts_in(value)


def enable_lr_scaling(cfg: Config) -> None:
    """Turn the linear scaling of the learning rate on, by the images of one step of the optimizer.

    mmengine counts those of one backward pass, so the base is divided by the number of passes that are accumulated.
    """
    if not cfg.get('auto_scale_lr') or 'base_batch_size' not in cfg.auto_scale_lr:
        raise SetupError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config: '
            'the batch size for which its learning rate was chosen.'
        )
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.auto_scale_lr.update(
        enable=True, base_batch_size=cfg.auto_scale_lr.base_batch_size / accumulation
    )


def limit_iterations(cfg: Config, num_iters: int) -> str:
    """Make the config run exactly `num_iters` training iterations, then save and validate once; return words about it.

    The learning rate follows the first `num_iters` iterations of the config's own schedule: schedules by epoch are
    converted to iterations at the true length of an epoch.
    """
    if num_iters < 1:
        raise SetupError(f'--max-iters {num_iters}: expected at least 1.')
    loop = dict(cfg.train_cfg)
    by_epoch = loop.get('by_epoch', loop.get('type') == 'EpochBasedTrainLoop')
    planned = loop.get('max_epochs' if by_epoch else 'max_iters')
    known = (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop')
    if planned is None or loop.get('type') not in known:
        raise SetupError(f'--max-iters does not know how to shorten train_cfg={loop}.')
    for scheduler in as_list(cfg.get('param_scheduler')):
        if by_epoch and scheduler.get('by_epoch', True):
            scheduler.update(by_epoch=True, convert_to_iter_based=True)
        if scheduler.get('by_epoch', True) or not by_epoch:
            scheduler.setdefault('end', planned)
    cfg.train_cfg = ConfigDict(
        type='IterBasedTrainLoop', max_iters=num_iters, val_begin=1, val_interval=num_iters
    )
    if by_epoch:
        cfg.log_processor = ConfigDict(cfg.get('log_processor') or {}, by_epoch=False)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.get('checkpoint') or ConfigDict(type='swinv2_mm.AtomicCheckpointHook')
    own = num_iters if checkpoint.get('by_epoch', True) else checkpoint.get('interval', num_iters)
    hooks.checkpoint = ConfigDict(checkpoint, by_epoch=False, interval=min(own, num_iters))
    logger = hooks.get('logger') or ConfigDict(type='LoggerHook')
    interval = min(logger.get('interval', 10), max(1, num_iters // 10))
    hooks.logger = ConfigDict(logger, interval=interval, log_metric_by_epoch=False)
    instead = f'{planned} epochs' if by_epoch else str(planned)
    plural = 's' if num_iters > 1 else ''
    return f'{num_iters} iteration{plural} instead of {instead}, then one validation'


def merge_options(cfg: Config, options: Sequence[str]) -> None:
    """Merge strings `KEY=VALUE`, with dots for steps into dicts and lists, into `cfg`; warn about new keys."""
    merged: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not equals or not key:
            raise SetupError(
                f'--cfg-options {option}: expected KEY=VALUE, e.g. train_dataloader.batch_size=4.'
            )
        try:
            merged[key] = _parse(value)
        except AssertionError as error:
            raise SetupError(f'--cfg-options {option}: the brackets do not match.') from error
        except (SyntaxError, TypeError, ValueError, RecursionError) as error:
            raise SetupError(
                f'--cfg-options {option}: expected a value in Python, such as "[dict(type=\'EMAHook\', momentum=0.1)]".'
            ) from error
    new = [key for key in merged if not _has(cfg, key)]
    used = {key: place for key in merged if (place := _used_already(cfg, key))}
    try:
        cfg.merge_from_dict(merged)
    except Exception as error:
        raise SetupError(f'--cfg-options {" ".join(options)}: {_described(error)}') from error
    if new:
        warn(f'--cfg-options {", ".join(new)}: not in the config so far, added.')
    for key, place in used.items():
        warn(
            f'--cfg-options {key} changes a variable whose value is already in {place}: change that.'
        )


def _parse(text: str) -> Any:
    """Return the value of an option: as mmengine's `DictAction`, which reads no dicts, or as a literal of Python.

    In literals `dict(key=value)` is allowed, too.
    """
    if not text.lstrip().startswith(('[', '(', '{', 'dict(')) or not _DICT.search(text):
        return DictAction._parse_iterable(text)

    class Calls(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            names = [keyword.arg for keyword in node.keywords]
            is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict'
            if not is_dict or node.args or None in names:
                return node
            return ast.Dict([*map(ast.Constant, names)], [word.value for word in node.keywords])

    return ast.literal_eval(Calls().visit(ast.parse(text.strip(), mode='eval')))


def _used_already(cfg: Config, key: str) -> str:
    """Return where the value of a variable of a config is that no runner reads, as far as it can be found."""
    name, *rest = key.split('.')
    value = cfg.get(name)
    if name in inspect.signature(Runner.__init__).parameters or not isinstance(value, (list, dict)):
        return ''
    places = (place for part in cfg if part != name for place in _places(cfg[part], value, part))
    return next(('.'.join([place, *rest]) for place in places), '')


def _places(cfg: Any, value: Any, place: str) -> Iterator[str]:
    """Yield the keys in a config that have a value."""
    if cfg == value:
        yield place
    items = (
        cfg.items()
        if isinstance(cfg, dict)
        else enumerate(cfg)
        if isinstance(cfg, (list, tuple))
        else ()
    )
    for key, part in items:
        yield from _places(part, value, f'{place}.{key}')


def _has(cfg: Any, key: str) -> bool:
    """Return whether the dotted `key` is in `cfg`."""
    try:
        for part in key.split('.'):
            cfg = cfg[int(part) if isinstance(cfg, (list, tuple)) else part]
    except (LookupError, TypeError, ValueError):
        return False
    return True


def _described(error: Exception) -> str:
    """Return kind, message and place of an error in one line."""
    text = ' '.join(str(error).split()) or 'no message'
    if isinstance(error, SyntaxError) and error.lineno is not None and 'line' not in text:
        text = f'{text} (line {error.lineno})'
    return f'{type(error).__name__}: {text}'
