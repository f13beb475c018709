"""NaN and infinite values in training: which tensors have them, and a report file that names the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from swinv2_mm.engine.checkpoint_files import replace_file

REPORT_FILE = 'invalid_values.json'


def invalid_tensors(model: nn.Module) -> list[str]:
    """Return the names of the parameters that have a NaN or infinite value, and of the buffers that have a NaN."""
    inner: Any = model.module if is_model_wrapper(model) else model
    names = [name for name, value in inner.named_parameters() if not value.isfinite().all()]
    return names + [name for name, value in inner.named_buffers() if value.isnan().any()]


def write_report(runner: Runner, iteration: int, outputs: Any = None, batch: Any = None) -> Path:
    """Write `invalid_values.json`, or `invalid_values_rank1.json` and so on, into the work directory.

    It stays as it is if a hook with an attribute `invalid` above 0 has reported an earlier iteration.

    Args:
        runner: The run.
        iteration: Number of the iteration, from 1.
        outputs: The dict of losses of the iteration.
        batch: What the data loader returned for it.

    Returns:
        The path of the report.
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
