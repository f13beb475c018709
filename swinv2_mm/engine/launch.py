"""What the tools call: `train` and `evaluate` run a config from the checks before the start to the last line."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from mmengine.config import Config

from swinv2_mm.checkpoints import CheckpointError, CheckpointUnavailableError, trust_checkpoints
from swinv2_mm.engine import cpu_amp  # noqa: F401  registers the wrapper that --amp uses on a CPU
from swinv2_mm.engine.checkpoint_files import newest_checkpoint, require_checkpoint
from swinv2_mm.engine.class_agreement import check_classes
from swinv2_mm.engine.config import (
    drop_pretrained,
    enable_amp,
    enable_lr_scaling,
    limit_iterations,
    load_config,
    set_work_dir,
)
from swinv2_mm.engine.console import Console
from swinv2_mm.engine.dataset_files import check_dataset_files
from swinv2_mm.engine.devices import (
    describe_device,
    join_processes,
    leave_processes,
    process_rank,
    require_device,
)
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import add_drawing, dump_predictions, use_tta
from swinv2_mm.engine.failures import report_failure, was_interrupted
from swinv2_mm.engine.metrics import write_metrics
from swinv2_mm.engine.progress import describe_metrics
from swinv2_mm.engine.runner import ConsoleRunner

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_SETUP = 2
EXIT_INTERRUPTED = 130
_GRACE = 20.0
"""Seconds that the other processes leave the first one to report what all of them found wrong."""


def train(
    config: str,
    *,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    max_iters: int | None = None,
    no_pretrained: bool = False,
    trust_checkpoint: bool = False,
    device: str = 'auto',
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
) -> int:
    """Trains the model of a config and writes `metrics.json` of the last validation.

    Args:
        config: The config file.
        work_dir: Folder for checkpoints, logs and metrics; default: the config's, else `work_dirs/<config>`.
        resume: A checkpoint to go on from, `'auto'` for the newest of the work directory, or None to begin anew.
        amp: Trains in mixed precision.
        auto_scale_lr: Scales the learning rate by the effective batch size.
        max_iters: Runs this many iterations, then validates; default: as long as the config says.
        no_pretrained: Starts from scratch where the config would start from pre-trained weights.
        trust_checkpoint: Runs the code in checkpoints that need it.
        device: `'auto'`, `'cuda'` or `'cpu'`.
        launcher: How the processes were started: `'none'`, `'pytorch'`, `'slurm'` or `'mpi'`.
        cfg_options: Strings `KEY=VALUE` that override the config.

    Returns:
        The exit code: 0, 1 after a crash, 2 if something outside the program is wrong, 130 if interrupted.
    """

    def run(console: Console) -> int:
        cfg = load_config(config, cfg_options, console)
        cfg.launcher = launcher
        on_gpu = require_device(device, launcher)
        _require_training(cfg, config)
        set_work_dir(cfg, work_dir)
        console.say(f'config: {config}; device: {describe_device(on_gpu)}')
        if no_pretrained:
            console.say(f'pre-trained weights: {drop_pretrained(cfg.model)} left out')
        _prepare_checkpoints(cfg, resume, console)
        if amp or cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            enable_amp(cfg, on_gpu)
            console.say(f'mixed precision: {"fp16" if on_gpu else "bfloat16"}')
        if auto_scale_lr:
            enable_lr_scaling(cfg)
        parts = ('train', 'val') if cfg.get('val_cfg') else ('train',)
        check_dataset_files(cfg, parts)
        check_classes(cfg, parts)
        if max_iters is not None:
            console.say(f'schedule: {limit_iterations(cfg, max_iters)}')
        join_processes(cfg, on_gpu)
        runner = ConsoleRunner.build(cfg, console, on_gpu)
        try:
            runner.train()
        except BaseException as error:
            # Once another process has stopped, this one may fail to reach it.
            if not was_interrupted(error) and not runner.interrupts.requested:
                if isinstance(error, CheckpointUnavailableError) and not cfg.get('load_from'):
                    raise SetupError(f'{error} To start from scratch: --no-pretrained.') from error
                raise
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would cut the message short
            _say_how_to_resume(runner, console)
            return EXIT_INTERRUPTED
        _finish_training(runner, console)
        return EXIT_OK

    return _guarded(run, launcher, trust_checkpoint)


def evaluate(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    tta: bool = False,
    out: str | None = None,
    show_dir: str | None = None,
    show_max: int | None = None,
    trust_checkpoint: bool = False,
    device: str = 'auto',
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
) -> int:
    """Evaluates a checkpoint on the test set of a config and writes `metrics.json`.

    Args:
        config: The config file.
        checkpoint: The checkpoint, or a work directory for its newest one.
        work_dir: Folder for log and metrics; default: the config's, else `work_dirs/<config>`.
        tta: Test-time augmentation.
        out: Where to keep the predictions: a pickle file for a detector, a folder of label PNGs for a segmenter.
        show_dir: Folder for pictures of annotation and prediction side by side.
        show_max: Number of pictures at most.
        trust_checkpoint: Runs the code in the checkpoint if it needs that.
        device: `'auto'`, `'cuda'` or `'cpu'`.
        launcher: How the processes were started: `'none'`, `'pytorch'`, `'slurm'` or `'mpi'`.
        cfg_options: Strings `KEY=VALUE` that override the config.

    Returns:
        The exit code, as of `train`.
    """

    def run(console: Console) -> int:
        cfg = load_config(config, cfg_options, console)
        cfg.launcher = launcher
        on_gpu = require_device(device, launcher)
        for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
            if not cfg.get(key):
                raise SetupError(
                    f'The config {config} defines no {key}: there is nothing to evaluate on.'
                )
        cfg.load_from, cfg.resume = require_checkpoint(checkpoint), False
        set_work_dir(cfg, work_dir)
        check_dataset_files(cfg, ('test',))
        check_classes(cfg, ('test',))
        console.say(f'config: {config}; device: {describe_device(on_gpu)}')
        console.say(f'checkpoint: {cfg.load_from}')
        if tta:
            console.say(f'test-time augmentation: {use_tta(cfg)}')
        join_processes(cfg, on_gpu)
        kept = dump_predictions(cfg, out) if out else None
        runner = ConsoleRunner.build(cfg, console, on_gpu, testing=True)
        drawing = add_drawing(runner, show_dir, show_max) if show_dir else None
        console.say(f'data: {len(runner.test_dataloader.dataset)} test images')
        runner.test()
        _report_metrics(runner, console)
        if kept:
            console.say(f'predictions: {kept}')
        if drawing:
            console.say(f'pictures: {drawing.num_drawn} in {drawing.folder}')
        console.say(f'log: {console.log_path}')
        return EXIT_OK

    return _guarded(run, launcher, trust_checkpoint)


def _guarded(run: Callable[[Console], int], launcher: str, trust: bool) -> int:
    """Runs `run` with a console and turns what goes wrong into words and an exit code."""
    rank = process_rank(launcher)
    name = f'rank {rank}' if launcher != 'none' else ''
    with trust_checkpoints(trust), Console(speaks=rank == 0, name=name) as console:
        code = _exit_code(run, console)
    leave_processes(code)
    return code


def _exit_code(run: Callable[[Console], int], console: Console) -> int:
    """Runs `run`; says what goes wrong."""
    try:
        return run(console)
    except (SetupError, CheckpointError) as error:
        # Mostly every process finds the same. The first one says so, and its launcher ends the others while they wait.
        if not console.speaks:
            time.sleep(_GRACE)
        console.fail(str(error))
        return EXIT_SETUP
    except BaseException as error:
        if was_interrupted(error):
            console.say('interrupted')
            return EXIT_INTERRUPTED
        if not isinstance(error, Exception):
            raise
        report_failure(error, console)
        return EXIT_CRASH


def _require_training(cfg: Config, config: str) -> None:
    """Checks that the config says how to train."""
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(key):
            raise SetupError(f'The config {config} defines no {key}: it cannot be trained.')


def _prepare_checkpoints(cfg: Config, resume: str | None, console: Console) -> None:
    """Sets what the run loads before it starts, and checks that it is there."""
    if resume == 'auto':
        newest = newest_checkpoint(cfg.work_dir)
        if newest is None:
            console.warn(
                f'--resume: no checkpoint in {cfg.work_dir} yet, so the training begins from the start.'
            )
            resume = None
        else:
            resume = newest
    if resume is not None:
        cfg.load_from, cfg.resume = require_checkpoint(resume), True
        drop_pretrained(cfg.model)  # the checkpoint would overwrite them
        console.say(f'resuming from {cfg.load_from}')
    elif cfg.get('load_from'):
        cfg.load_from = require_checkpoint(cfg.load_from)
        console.say(f'starting from the weights of {cfg.load_from}')
    _check_init_cfg(cfg.model)


def _check_init_cfg(cfg: object) -> None:
    """Checks the checkpoints that parts of the model initialise themselves from."""
    if isinstance(cfg, dict):
        named = cfg.get('checkpoint') if cfg.get('type') == 'Pretrained' else None
        if (
            isinstance(named, str) and not Path(named).is_dir()
        ):  # a folder is a model of transformers
            require_checkpoint(named)
        for value in cfg.values():
            _check_init_cfg(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            _check_init_cfg(value)


def _say_how_to_resume(runner: ConsoleRunner, console: Console) -> None:
    """Says where an interrupted training stands."""
    console.say(f'interrupted at iteration {runner.progress.iteration}; log: {console.log_path}')
    try:
        newest = newest_checkpoint(runner.work_dir)
    except SetupError as error:
        console.say(str(error))
        return
    if newest is None:
        console.say('no checkpoint was written yet: the next run begins from the start')
    else:
        console.say(f'to go on from {newest}: the same command with --resume')


def _finish_training(runner: ConsoleRunner, console: Console) -> None:
    """Writes the metrics and says what there is now."""
    elapsed = timedelta(seconds=int(time.time() - runner.progress.started))
    console.say(f'finished at iteration {runner.progress.iteration}, after {elapsed}')
    _report_metrics(runner, console)
    newest = newest_checkpoint(runner.work_dir) if runner.rank == 0 else None
    if newest:
        console.say(f'checkpoint: {newest}')
    best = runner.message_hub.runtime_info.get('best_ckpt')
    if best and Path(best).is_file():
        console.say(f'best checkpoint: {best}')
    console.say(f'log: {console.log_path}')


def _report_metrics(runner: ConsoleRunner, console: Console) -> None:
    """Says the metrics of the last evaluation and writes them to the work directory."""
    metrics = runner.progress.metrics
    for line in describe_metrics(metrics):
        console.say(f'metrics: {line}')
    if metrics is not None and runner.rank == 0:
        console.say(f'metrics written to {write_metrics(metrics, runner.work_dir)}')
