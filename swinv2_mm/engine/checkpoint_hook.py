"""mmengine's CheckpointHook, with which a kill, a full disk or NaN weights leave the last good checkpoint whole."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from swinv2_mm.engine.checkpoint_files import (
    INTERRUPTED,
    POINTER,
    move_aside,
    newest_checkpoint,
    remove_temporary_files,
    replace_file,
)
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.registry import HOOKS

_OUTDATED = 'outdated_ckpt_ids'
"""Key of the message hub for steps whose files are removed after a checkpoint."""


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, which replaces a file only by a whole one."""

    def put(self, obj: bytes, filepath: Any) -> None:
        """Write a file; see `replace_file`."""
        try:
            replace_file(filepath, obj)
        except OSError as error:
            raise SetupError(
                f'{filepath} cannot be written ({error.strerror}); earlier checkpoints are unchanged.'
            ) from None


register_backend('swinv2_mm.AtomicLocalBackend', AtomicLocalBackend, force=True)


class _RemovesLater:
    """A file backend that notes what to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Save checkpoints like mmengine's hook, and keep at least one whole checkpoint at any moment.

    - On a local file system a checkpoint is written to a temporary file, synced and renamed. Then `last_checkpoint`
      is replaced, then outdated files are removed. Other file backends write as they do, in the same order.
    - Weights that are NaN or infinite are not saved, and nothing is removed for them.
    - A resumed run without a given path continues from the newest whole checkpoint of the work directory.
    - Of the paths in a loaded checkpoint, only names of files in the folder of the checkpoints are used.

    The arguments are those of `mmengine.hooks.CheckpointHook`.
    """

    file_backend: Any
    saved_at = -1
    """Finished iterations at the last checkpoint."""
    invalid = 0
    """How often in a row the weights were not saved."""
    _batch: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:  # otherwise a wrong name is an error at the first checkpoint
            inspect.signature(Runner.save_checkpoint).bind_partial(**self.args)
        except TypeError as error:
            raise TypeError(f'{type(self).__name__} {error}') from None

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint of a resumed run."""
        if runner._resume and runner._load_from is None:
            runner._load_from = newest_checkpoint(runner.work_dir)
            runner._resume = runner._load_from is not None

    def before_train(self, runner: Runner) -> None:
        """Choose the file backend, and remove temporary files of killed runs."""
        info = runner.message_hub.runtime_info
        for key in ('keep_ckpt_ids', _OUTDATED):
            info[key] = [step for step in info.get(key, []) if isinstance(step, int)]
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and not self.file_client_args:
            self.backend_args = {'backend': 'swinv2_mm.AtomicLocalBackend'}
            if is_main_process():
                os.makedirs(self.out_dir, exist_ok=True)
                remove_temporary_files(self.out_dir)
                remove_temporary_files(runner.work_dir)
                self._move_aside(runner)
                self._remove([self.filename_tmpl.format(step) for step in info[_OUTDATED]])
        if self.save_best and len(self.key_indicators) == 1:
            self.best_ckpt_path = self._own_path(info.get('best_ckpt'))
        elif self.save_best:
            for key in self.key_indicators:
                self.best_ckpt_path_dict[key] = self._own_path(info.get(f'best_ckpt_{key}'))
        self.saved_at = runner.iter

    def _move_aside(self, runner: Runner) -> None:
        """Move checkpoints of another training, or of later steps than this one begins at, into a subfolder."""
        folder, begins = Path(self.out_dir).resolve(), Path(runner._load_from or '').resolve()
        here = runner._resume and begins.parent == folder
        name = f'earlier_{runner.timestamp}'
        if moved := move_aside(folder, begins.name if here else None, name):
            runner.logger.warning(f'moved to {folder / name}: {", ".join(moved)}')

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Save if it is due."""
        self._batch = data_batch
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train(self, runner: Runner) -> None:
        """Save the last weights of a training that a hook such as `EarlyStoppingHook` has stopped."""
        stopped = getattr(runner.train_loop, 'stop_training', False)
        if stopped and self.save_last and self.saved_at != runner.iter:
            meta = {'epoch': runner.epoch, 'iter': runner.iter}
            step = runner.epoch if self.by_epoch else runner.iter
            self._save_checkpoint_with_step(runner, step, meta)
        super().after_train(runner)

    def save_now(self, runner: Runner, epoch: int, iteration: int) -> None:
        """Save on all processes if nothing was saved since the last iteration; return when the file is complete.

        `epoch` and `iteration` are the numbers of finished ones.
        """
        meta = {'epoch': epoch, 'iter': iteration}
        if self.saved_at != iteration:
            if not self.by_epoch:
                self._save_checkpoint_with_step(runner, iteration, meta)
            elif not self._refuses(runner, iteration):
                self._save(runner, INTERRUPTED, meta)
        barrier()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if self._refuses(runner, meta['iter']):
            return
        outdated: list[int] = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta, outdated)

    def _save(
        self, runner: Runner, name: str, meta: dict[str, Any], outdated: Sequence[int] = ()
    ) -> None:
        """Write a checkpoint, then the pointer, then remove the files of the outdated steps."""
        runner.message_hub.update_info(_OUTDATED, list(outdated))  # for a run that is killed before
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.saved_at = meta['iter']
        if is_main_process():
            pointer = Path(runner.work_dir) / POINTER
            AtomicLocalBackend().put(str(self.last_ckpt).encode(), pointer)
            self._remove([self.filename_tmpl.format(step) for step in outdated])
            if name != INTERRUPTED:
                self._remove([INTERRUPTED])

    def _remove(self, names: Sequence[str]) -> None:
        """Remove files from the folder of the checkpoints if they are there."""
        for name in names:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best or self._refuses(runner, runner.iter):
            return
        self.file_backend = later = _RemovesLater(self.file_backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = later.backend
        kept = {getattr(self, 'best_ckpt_path', None), self.last_ckpt}
        kept.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in later.outdated:
            if path not in kept:
                self.file_backend.remove(path)

    def _refuses(self, runner: Runner, iteration: int) -> bool:
        """Return whether the weights of any process are NaN or infinite, and report them."""
        invalid = invalid_tensors(runner.model)
        found = torch.tensor(float(bool(invalid)))
        all_reduce(found, 'max')
        if invalid:
            report = write_report(runner, iteration, batch=self._batch)
            runner.logger.error(
                f'the checkpoint of iteration {iteration} is not saved: {len(invalid)} tensors are NaN or infinite, '
                f'e.g. {invalid[0]}; earlier checkpoints are unchanged; report: {report}'
            )
        self.invalid = self.invalid + 1 if found else 0
        return bool(found)

    def _own_path(self, path: Any) -> str | None:
        """Return the path in this run's folder of a best checkpoint that a loaded checkpoint names."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        return self.file_backend.join_path(self.out_dir, name) if name.startswith('best_') else None


REPORT_FILE = 'invalid_values.json'


def invalid_tensors(model: nn.Module) -> list[str]:
    """Return the names of the parameters that have a NaN or infinite value, and of the buffers that have a NaN."""
    inner: Any = model.module if is_model_wrapper(model) else model
    names = [name for name, value in inner.named_parameters() if not _own(value).isfinite().all()]
    return names + [name for name, value in inner.named_buffers() if value.isnan().any()]


def _own(value: Any) -> torch.Tensor:
    """Return the part of a parameter that is in this process."""
    return value.to_local() if hasattr(value, 'to_local') else value


def write_report(runner: Runner, iteration: int, outputs: Any = None, batch: Any = None) -> Path:
    """Write `invalid_values.json`, or `invalid_values_rank1.json` and so on, into the work directory; return its path.

    It stays as it is if a hook with an attribute `invalid` above 0 has reported an earlier iteration.
    """
    name = REPORT_FILE.replace('.', f'_rank{runner.rank}.') if runner.rank else REPORT_FILE
    path = Path(runner.work_dir) / name
    if not any(getattr(hook, 'invalid', 0) for hook in runner.hooks):
        losses = {
            key: str(value.detach().flatten().tolist()[:10])  # json has no NaN
            for key, value in (outputs or {}).items()
            if isinstance(value, torch.Tensor)
        }
        report = {
            'iteration': iteration,
            'epoch': runner.epoch,
            'losses': losses,
            'weights': invalid_tensors(runner.model),
            'samples': list(_samples(batch)),
        }
        replace_file(path, f'{json.dumps(report, indent=2, default=str)}\n'.encode())
    return path


def _samples(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the meta information of the samples in a batch that identifies them."""
    if isinstance(batch, BaseDataElement):
        yield {key: batch.get(key) for key in ('img_id', 'sample_idx', 'img_path') if key in batch}
    elif isinstance(batch, (dict, list, tuple)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _samples(part)
