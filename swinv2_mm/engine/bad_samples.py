"""Samples that cannot be read: one costs itself, not the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from swinv2_mm.datasets.checks.read_files import data_info
from swinv2_mm.datasets.checks.samples import untouched_randomness
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.registry import HOOKS

_TRIES = 10
"""Samples in a row that are tried before the cause must be another than the data."""
_NAMED = 20
"""Samples that the summary names."""


class ReplacingPreparation:
    """Stands for `prepare_data` of a data set: prepare the next sample where one raises an error.

    Messages call the data set `place`; `allowed` of its samples may be replaced.
    """

    def __init__(self, dataset: Any, place: str, allowed: int) -> None:
        self.dataset, self.place, self.allowed = dataset, place, allowed
        self.prepare = dataset.prepare_data
        # Data loading processes mark samples here, and the main process reads it.
        self.bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __call__(self, index: int) -> Any:
        """Return the sample `index`, or the next that can be prepared."""
        for step in range(_TRIES):
            position = (index + step) % len(self.bad)
            try:
                return self.prepare(position)
            except MemoryError:
                raise
            except Exception as broken:
                self.bad[position] = 1
                last = broken
        raise RuntimeError(
            f'{_TRIES} samples of {self.place} in a row cannot be prepared, the first is {self.name(index)}: {last}'
        ) from last

    def name(self, index: int) -> str:
        """Return the file of a sample."""
        try:
            return str(data_info(self.dataset, index).get('img_path') or f'sample {index}')
        except Exception:  # the sample is bad
            return f'sample {index}'

    def reason(self, index: int) -> str:
        """Return why a sample cannot be prepared."""
        try:
            with untouched_randomness():
                self.prepare(index)
        except Exception as broken:
            return f'{type(broken).__name__}: {broken}'
        return 'it could be read the second time'


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Replace samples of training and validation that cannot be read or transformed by the next one, and name them.

    A test stops at the first such sample, with its name.

    Args:
        max_bad_samples: Samples of each data set that may be replaced before the run stops: a number, or a share
            below 1, which is rounded up; 0 to stop at the first.
    """

    def __init__(self, max_bad_samples: float = 0.01) -> None:
        self.max_bad_samples = max_bad_samples
        self._prepared: dict[str, list[ReplacingPreparation]] = {}
        self._named: set[tuple[str, int]] = set()

    def before_run(self, runner: Runner) -> None:
        """Take over the data sets of the loops that run, before their data loading processes start."""
        for part in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{part}_loop')
            if isinstance(loop, BaseLoop) and part not in self._prepared:
                self._prepared[part] = []
                for dataset in _leaves(loop.dataloader.dataset):
                    share = self.max_bad_samples if part != 'test' else 0
                    allowed = share if share >= 1 else math.ceil(share * len(dataset))
                    replacing = ReplacingPreparation(dataset, part, int(allowed))
                    dataset.prepare_data = replacing
                    self._prepared[part].append(replacing)

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        self._report(runner, mode)

    def after_train(self, runner: Runner) -> None:
        """Log which samples were replaced."""
        self._report(runner, 'train')
        for part, preparations in self._prepared.items():
            names = [
                replacing.name(index)
                for replacing in preparations
                for index in replacing.bad.nonzero().flatten().tolist()
            ]
            if names:
                more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
                runner.logger.warning(
                    f'{len(names)} samples of {part} were replaced: {", ".join(names[:_NAMED])}{more}'
                )

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        self._report(runner, mode)

    def _report(self, runner: Runner, part: str) -> None:
        """Name new bad samples, and stop when there are too many."""
        for number, replacing in enumerate(self._prepared.get(part, ())):
            count = int(replacing.bad.sum())
            if not count:
                continue
            for index in replacing.bad.nonzero().flatten().tolist():
                key = (f'{part}.{number}', index)
                if key in self._named:
                    continue
                self._named.add(key)
                what = (
                    f'{replacing.name(index)} (sample {index} of {part}): {replacing.reason(index)}'
                )
                if count > replacing.allowed:
                    raise SetupError(
                        f'{what}. {count} samples cannot be read and max_bad_samples='
                        f'{self.max_bad_samples if part != "test" else 0} allows {replacing.allowed}.'
                    )
                runner.logger.warning(f'{what}; the next sample takes its place')


def _leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets of mmengine inside wrappers."""
    if hasattr(dataset, 'prepare_data'):
        yield dataset
    elif hasattr(dataset, 'dataset'):
        yield from _leaves(dataset.dataset)
    else:
        for inner in getattr(dataset, 'datasets', ()):
            yield from _leaves(inner)
