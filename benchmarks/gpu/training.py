"""Part `training`: a short training with the code of `tools/train.py`, followed by validation."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import PartOptions
from benchmarks.processes import ROOT
from benchmarks.results import Results, median
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.hooks import METRICS_FILE
from swinv2_mm.engine.launch import train

_TRIAL, _QUICK_TRIAL = 20, 2  # iterations of the run that measures the iteration time
_SHARE = 0.8  # planned share of the remaining time
_AGAIN = 0.7  # share of the time for start and validation, when kernels are compiled
_DATA = {
    'camvid/images/val': 'upernet/swinv2-t-p4-w8_upernet_1xb8-10k_camvid-360x480.py',
    'pennfudan/val': 'mask_rcnn/mask-rcnn_swinv2-t-p4-w8_fpn_1xb8-6k_pennfudan.py',
}
"""Config by data folder, in order of preference."""


def run(options: PartOptions, results: Results) -> None:
    """Train for a few iterations, then for as many as the time allows."""
    with tempfile.TemporaryDirectory(prefix='swinv2_mm_gpu_') as name:
        folder = Path(name)
        config = _choose(folder, options.quick)
        begin = time.monotonic()
        trial = _QUICK_TRIAL if options.quick else _TRIAL
        row = _train(config, trial, folder / 'trial', options)
        results.add(row)
        if options.quick:
            return
        per_iteration = row['batch'] / row['images_per_s']
        rest = time.monotonic() - begin - trial * per_iteration  # start and validation
        fitting = int((_SHARE * options.left - _AGAIN * rest) / per_iteration)
        iterations = min(fitting, row['planned_iterations'])
        if iterations < 2 * trial:
            results.fail('training', f'no time for more than the first {trial} iterations')
        else:
            results.add(_train(config, iterations, folder / 'run', options))


def _choose(folder: Path, quick: bool) -> str:
    """Return the config for CamVid or Penn-Fudan if available, otherwise for shapes, generated below `folder`."""
    places = [Path(place) for place in (os.environ.get('SWINV2_MM_DATA'), ROOT / 'data') if place]
    for place in [] if quick else places:
        for data, config in _DATA.items():
            if (place / data).is_dir():
                os.environ['SWINV2_MM_DATA'] = str(place.resolve())
                return config
    generate_shapes(folder / 'shapes', *((8, 2) if quick else (1200, 150)))
    os.environ['SWINV2_MM_SHAPES'] = str(folder / 'shapes')
    return 'quickstart/swinv2-nano_upernet_shapes.py'


def _train(config: str, iterations: int, work_dir: Path, options: PartOptions) -> dict[str, Any]:
    """Train and validate; return the row.

    Raises:
        RuntimeError: The tool failed.
    """
    path = str(ROOT / 'configs' / config)
    cfg = load_config(path)
    planned = cfg.train_cfg.max_iters
    batch = 2 if options.quick else cfg.train_dataloader.batch_size
    workers = 0 if options.quick else max(1, min(8, (os.cpu_count() or 1) - 2))
    # Visualizers with the same name are shared and would write into the folder of the first run.
    changes = {'visualizer.name': work_dir.name, 'train_dataloader.batch_size': batch}
    for loader in ('train_dataloader', 'val_dataloader'):
        changes[f'{loader}.num_workers'] = workers
        changes[f'{loader}.persistent_workers'] = workers > 0
    for number, scheduler in enumerate(cfg.param_scheduler):  # the whole schedule, but shorter
        for key in ('begin', 'end', 'T_max'):
            if scheduler.get(key):
                scaled = max(2, round(scheduler[key] * iterations / planned))
                changes[f'param_scheduler.{number}.{key}'] = scaled
    if options.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    code = train(
        path,
        work_dir=str(work_dir),
        amp='auto',
        max_iters=iterations,
        device=options.device,
        cfg_options=[f'{key}={value}' for key, value in changes.items()],
    )
    seconds = time.monotonic() - begin
    if code != 0:
        raise RuntimeError(f'the training ended with exit code {code}: see the log')
    return {
        'config': config,
        'batch': batch,
        'iterations': iterations,
        'planned_iterations': planned,
        'seconds': round(seconds, 1),
        'images_per_s': batch / _iteration_seconds(work_dir),
        'dtype': 'fp16' if options.is_cuda else 'bf16',
        'metrics': json.loads((work_dir / METRICS_FILE).read_text(encoding='utf-8')),
        'peak_mb': torch.cuda.max_memory_allocated() / 2**20 if options.is_cuda else None,
    }


def _iteration_seconds(work_dir: Path) -> float:
    """Return the median iteration time in the log, without the first lines if there are more."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    times = [line['time'] for line in lines if 'loss' in line]
    return median(times[2:] or times)
