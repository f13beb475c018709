"""What the tools call: `train` and `evaluate` run a config from the checks before the start to the last line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from swinv2_mm.checkpoints import (
    CheckpointError,
    CheckpointUnavailableError,
    guard_mmengine,
    trust_checkpoints,
)
from swinv2_mm.datasets.checks import ConfiguredData, check_data
from swinv2_mm.engine.checkpoint_files import newest_checkpoint, require_checkpoint
from swinv2_mm.engine.config import (
    complete_config,
    dicts_in,
    drop_pretrained,
    enable_amp,
    enable_lr_scaling,
    limit_iterations,
    load_config,
    set_work_dir,
)
from swinv2_mm.engine.console import fail, log_file, say, start_logging, warn
from swinv2_mm.engine.devices import (
    GPU_KINDS,
    describe_device,
    join_processes,
    leave_processes,
    process_rank,
    restored_device,
    use_device,
)
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import add_drawing, dump_predictions, use_tta
from swinv2_mm.engine.failures import find_outside_cause, report_failure, was_interrupted
from swinv2_mm.engine.interrupts import EXIT_INTERRUPTED, ignore_signals, raise_interrupts
from swinv2_mm.engine.runner import EvaluationRunner, TrainingRunner
from swinv2_mm.engine.workers import ignore_lost_workers

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_SETUP = 2
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
    """Train the model of a config and write `metrics.json` of the last validation.

    Args:
        config: The config file.
        work_dir: Folder for checkpoints, logs and metrics; default: the config's, else `work_dirs/<config>`.
        resume: A checkpoint to go on from, `'auto'` for the newest of the work directory, or None to begin anew.
        amp: Train in mixed precision.
        auto_scale_lr: Scale the learning rate by the effective batch size.
        max_iters: Run this many iterations, then validate; default: as long as the config says.
        no_pretrained: Start from scratch where the config would start from pre-trained weights.
        trust_checkpoint: Accept checkpoints as they are, with code to run or NaN weights.
        device: A device of torch such as `'cpu'`, `'cuda:1'` or `'mps'`, or `'auto'`.
        launcher: How the processes were started: `'none'`, `'pytorch'`, `'slurm'` or `'mpi'`.
        cfg_options: Strings `KEY=VALUE` that override the config.

    Returns:
        The exit code: 0, 1 after a crash, 2 if something outside the program is wrong, 130 if interrupted, 143 if
        ended by SIGTERM or SIGUSR1.
    """

    def run() -> int:
        cfg, on = _prepare(config, cfg_options, work_dir, device, launcher)
        keys = ('train_dataloader', 'train_cfg', 'optim_wrapper')
        _require_keys(cfg, keys, 'it cannot be trained')
        on_gpu = on.type in GPU_KINDS
        if no_pretrained and (dropped := drop_pretrained(cfg.model)):
            say(f'pre-trained weights: {dropped} left out')
        _prepare_checkpoints(cfg, resume)
        if amp or cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            enable_amp(cfg, on_gpu)
            say(f'mixed precision: {"fp16" if on_gpu else "bfloat16"}')
        if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
            enable_lr_scaling(cfg)
        if max_iters is not None:
            say(f'schedule: {limit_iterations(cfg, max_iters)}')
        parts = ('train', 'val') if cfg.get('val_cfg') else ('train',)
        runner = checked_runner(cfg, on, TrainingRunner, parts)
        raise_interrupts()
        started = time.time()
        try:
            runner.train()
        except BaseException as error:
            # Once another process has stopped, this one may fail to reach it.
            if not was_interrupted(error) and not _asked_to_stop(runner):
                if isinstance(error, CheckpointUnavailableError) and not cfg.get('load_from'):
                    raise SetupError(f'{error} To start from scratch: --no-pretrained.') from error
                raise
            ignore_signals()  # a second one would cut the message short
            _say_how_to_resume(runner, getattr(error, 'iteration', None))
            return _asked_to_stop(runner) or EXIT_INTERRUPTED
        elapsed = timedelta(seconds=int(time.time() - started))
        say(f'finished at iteration {runner.iter}, after {elapsed}')
        if runner.rank == 0:
            say(f'checkpoint: {newest_checkpoint(runner.work_dir)}; log: {log_file()}')
        return EXIT_OK

    return guarded(run, launcher, trust_checkpoint)


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
    """Evaluate a checkpoint on the test set of a config and write `metrics.json`.

    Args:
        config: The config file.
        checkpoint: The checkpoint, or a work directory for its newest one.
        tta: Use test-time augmentation.
        out: Where to keep the predictions: a pickle file for a detector, a folder of label PNGs for a segmentor.
        show_dir: Folder for pictures of ground truth and prediction side by side.
        show_max: Number of pictures at most.

    For the other arguments and the exit code, see `train`.
    """

    def run() -> int:
        cfg, on = _prepare(config, cfg_options, work_dir, device, launcher)
        keys = ('test_dataloader', 'test_cfg', 'test_evaluator')
        _require_keys(cfg, keys, 'there is nothing to evaluate on')
        cfg.load_from, cfg.resume = require_checkpoint(checkpoint), False
        say(f'checkpoint: {cfg.load_from}')
        if tta:
            say(f'test-time augmentation: {use_tta(cfg)}')
        if out:
            dump_predictions(cfg, out)
        if show_dir:
            add_drawing(cfg, show_dir, show_max)
        runner = checked_runner(cfg, on, EvaluationRunner, ('test',))
        say(f'data: {len(runner.test_dataloader.dataset)} test images')
        runner.test()
        if out:
            say(f'predictions: {out}')
        if runner.rank == 0:
            say(f'log: {log_file()}')
        return EXIT_OK

    return guarded(run, launcher, trust_checkpoint)


def guarded(run: Callable[[], int], launcher: str = 'none', trust: bool = False) -> int:
    """Run the body of a tool; report what goes wrong and return the exit code.

    Args:
        run: Returns the exit code.
        launcher: See `train`.
        trust: Whether to accept checkpoints as they are.
    """
    rank = process_rank(launcher)
    start_logging(rank)
    with restored_device(), guard_mmengine(), trust_checkpoints(trust):
        code = _exit_code(run, rank)
    leave_processes(code)
    return code


def _exit_code(run: Callable[[], int], rank: int) -> int:
    """Run `run` and report what goes wrong."""
    try:
        return run()
    except (SetupError, CheckpointError) as error:
        # Usually every process finds the same. The first one says so, and its launcher ends the others while they wait.
        if rank:
            time.sleep(_GRACE)
        fail(find_outside_cause(error) or str(error), rank)
        return EXIT_SETUP
    except BaseException as error:
        if was_interrupted(error):
            say('interrupted')
            return EXIT_INTERRUPTED
        if not isinstance(error, Exception):
            raise
        if cause := find_outside_cause(error):
            fail(cause, rank)
            return EXIT_SETUP
        ignore_lost_workers()
        report_failure(error, rank)
        return EXIT_CRASH


def _prepare(
    config: str, options: Sequence[str], work_dir: str | None, device: str, launcher: str
) -> tuple[Config, torch.device]:
    """Return the config of a run, and the device that it runs on."""
    cfg = load_config(config, options)
    cfg.launcher = launcher
    complete_config(cfg)
    used = use_device(device, launcher)
    set_work_dir(cfg, work_dir)
    say(f'config: {config}; device: {describe_device(used)}')
    return cfg, used


def _require_keys(cfg: Config, keys: tuple[str, ...], otherwise: str) -> None:
    """Check that the config defines what a run needs."""
    for key in keys:
        if not cfg.get(key):
            raise SetupError(f'The config {cfg.filename} defines no {key}: {otherwise}.')


def checked_runner(
    cfg: Config, device: torch.device, kind: type[Runner], parts: tuple[str, ...]
) -> Runner:
    """Return the runner of a config whose data have been checked.

    It is built when the checks ask for a data set, so that they look at what the run uses and nothing is read twice.
    """

    @functools.cache
    def runner() -> Runner:
        join_processes(cfg, device)
        return kind.from_cfg(cfg)

    data = ConfiguredData(
        cfg,
        parts,
        build_dataset=lambda part: getattr(runner(), f'{part}_dataloader').dataset,
        build_model=lambda: runner().model,
    )
    findings = list(check_data(data))
    errors = [str(finding) for finding in findings if finding.severity == 'error']
    if errors:
        raise SetupError('\n'.join(errors))
    for finding in findings:
        warn(str(finding))
    return runner()


def _prepare_checkpoints(cfg: Config, resume: str | None) -> None:
    """Set what the run loads before it starts, and check that it exists."""
    if resume == 'auto':
        resume = newest_checkpoint(cfg.work_dir)
        if resume is None:
            warn(
                f'--resume: no checkpoint in {cfg.work_dir} yet, so the training begins from the start.'
            )
    elif resume is None and not cfg.get('resume') and any(Path(cfg.work_dir).glob('*.pth')):
        warn(
            f'{cfg.work_dir} has checkpoints of an earlier training. This one begins from the start and replaces them: '
            'pass --resume to continue, or another --work-dir.'
        )
    if resume is not None:
        cfg.load_from, cfg.resume = require_checkpoint(resume), True
        drop_pretrained(cfg.model)  # the checkpoint would overwrite them
        say(f'resuming from {cfg.load_from}')
    elif cfg.get('load_from'):
        cfg.load_from = require_checkpoint(cfg.load_from)
        say(f'starting from the weights of {cfg.load_from}')
    for part in dicts_in(cfg.model):
        named = part.get('checkpoint') if part.get('type') == 'Pretrained' else None
        # A folder is a model of transformers.
        if isinstance(named, str) and not Path(named).is_dir():
            require_checkpoint(named)


def _asked_to_stop(runner: Runner) -> int:
    """Return the exit code that a signal asked for during the training, or 0."""
    return max(getattr(hook, 'requested', 0) for hook in runner.hooks)


def _say_how_to_resume(runner: Runner, iteration: int | None) -> None:
    """Say where an interrupted training stands."""
    at = runner.iter if iteration is None else iteration
    say(f'interrupted at iteration {at}; log: {log_file()}')
    newest = newest_checkpoint(runner.work_dir)
    if newest:
        say(f'to continue from {newest}: the same command with --resume')
    else:
        say('no checkpoint was written yet: the next run begins from the start')
