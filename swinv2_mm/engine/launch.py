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
from swinv2_mm.engine.console import (
    fail,
    find_outside_cause,
    log_file,
    report_failure,
    say,
    start_logging,
    warn,
    was_interrupted,
)
from swinv2_mm.engine.devices import (
    autocast,
    describe_device,
    join_processes,
    leave_processes,
    process_rank,
    restored_device,
    use_device,
)
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import add_drawing, dump_predictions, join_json, use_tta
from swinv2_mm.engine.hooks import ScheduleHook
from swinv2_mm.engine.interrupts import (
    EXIT_INTERRUPTED,
    ignore_lost_workers,
    ignore_signals,
    raise_interrupts,
)
from swinv2_mm.engine.runner import EvaluationRunner, TrainingRunner
from swinv2_mm.ops.linear import constant_weights

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
    amp: str | None = None,
    auto_scale_lr: bool = False,
    max_iters: int | None = None,
    no_pretrained: bool = False,
    trust_checkpoint: bool = False,
    device: str = 'auto',
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
) -> int:
    """Train the model of a config and write `metrics.json` of the last validation.

    The arguments are the options of `tools/train.py`; `resume='auto'` is the newest checkpoint of the work directory.

    Returns:
        The exit code: 0, 1 after a crash, 2 if something outside the program is wrong, 130 if interrupted, 143 if
        ended by SIGTERM or SIGUSR1.
    """

    def run() -> int:
        cfg, on = _prepare(config, cfg_options, work_dir, device, launcher)
        keys = ('train_dataloader', 'train_cfg', 'optim_wrapper')
        _require_keys(cfg, keys, 'it cannot be trained')
        if no_pretrained and (dropped := drop_pretrained(cfg.model)):
            say(f'pre-trained weights: {dropped} left out')
        _prepare_checkpoints(cfg, resume)
        if amp or cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            say(f'mixed precision: {enable_amp(cfg, on, amp or "auto")}')
        if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
            enable_lr_scaling(cfg)
        if max_iters is not None:
            say(f'schedule: {limit_iterations(cfg, max_iters)}')
        parts = ('train', 'val') if cfg.get('val_cfg') else ('train',)
        runner = checked_runner(cfg, on, TrainingRunner, parts)
        if max_iters is None:
            runner.register_hook(ScheduleHook())
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
        early = ', stopped early' if getattr(runner.train_loop, 'stop_training', False) else ''
        say(f'finished at iteration {runner.iter}{early}, after {elapsed}')
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
    tta_scales: Sequence[float] = (),
    out: str | None = None,
    show_dir: str | None = None,
    show_max: int | None = None,
    trust_checkpoint: bool = False,
    device: str = 'auto',
    precision: str = 'fp32',
    launcher: str = 'none',
    cfg_options: Sequence[str] = (),
) -> int:
    """Evaluate a checkpoint on the test set of a config and write `test_metrics.json`.

    The arguments are the options of `tools/test.py`; for the exit code, see `train`.
    """

    def run() -> int:
        cfg, on = _prepare(config, cfg_options, work_dir, device, launcher)
        keys = ('test_dataloader', 'test_cfg', 'test_evaluator')
        _require_keys(cfg, keys, 'there is nothing to evaluate on')
        cfg.load_from, cfg.resume = require_checkpoint(checkpoint), False
        say(f'checkpoint: {cfg.load_from}')
        if tta or tta_scales:
            say(f'test-time augmentation: {use_tta(cfg, tta_scales)}')
        if out:
            dump_predictions(cfg, out)
        if show_dir:
            add_drawing(cfg, show_dir, show_max)
        half = autocast(precision, on)
        cfg.test_cfg.fp16 = precision != 'fp32'  # of the type that `half` sets
        runner = checked_runner(cfg, on, EvaluationRunner, ('test',))
        say(f'data: {len(runner.test_dataloader.dataset)} test images')
        with half, constant_weights():
            runner.test()
        if out:
            if runner.rank == 0:
                join_json(out)
            say(f'predictions: {out}')
        if runner.rank == 0:
            say(f'log: {log_file()}')
        return EXIT_OK

    return guarded(run, launcher, trust_checkpoint)


def guarded(run: Callable[[], int], launcher: str = 'none', trust: bool = False) -> int:
    """Run the body of a tool, report what goes wrong, and return the exit code."""
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
    """Return the runner of a config whose data have been checked, with the data sets that the checks have looked at."""

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
            earlier = sorted(str(folder) for folder in Path(cfg.work_dir).glob('earlier_*'))
            others = f' Those of earlier trainings are in {", ".join(earlier)}.' if earlier else ''
            warn(
                f'--resume: no checkpoint in {cfg.work_dir} yet, so the training begins from the start.{others}'
            )
    elif resume is None and not cfg.get('resume') and any(Path(cfg.work_dir).glob('*.pth')):
        warn(
            f'{cfg.work_dir} has checkpoints of an earlier training. This one begins from the start and moves them '
            'into a subfolder: pass --resume to continue, or another --work-dir.'
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
