"""A short training by `tools/train.py`'s own code, which ends with a metric."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.benchmarks import memory
from swinv2_mm.benchmarks.gpu.part import PartOptions, Sink
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.launch import train
from swinv2_mm.engine.metrics import METRICS_FILE

ROOT = Path(__file__).resolve().parents[3]
_TRIAL = 20  # iterations of the run that measures how long one takes
_QUICK_TRIAL = 3
_SHARE = 0.8  # of the time left that the training is planned to take
_AGAIN = 0.7  # of the time for start and validation: kernels are compiled by then
_LOG = 5  # iterations from one line of the log to the next


@dataclass(frozen=True)
class Recipe:
    """A config and its data.

    Attributes:
        config: File below `configs`, whose loop counts iterations.
        data: Name of the data.
        variable: Environment variable that says where configs find it.
        folder: Its value.
    """

    config: str
    data: str
    variable: str
    folder: Path


def run(options: PartOptions, sink: Sink) -> None:
    """Train for a few iterations, then for as many as there is time for."""
    if not options.is_cuda:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    with tempfile.TemporaryDirectory(prefix='swinv2_mm_gpu_') as folder:
        recipe = _choose(Path(folder), options.quick)
        os.environ[recipe.variable] = str(recipe.folder)
        begin = time.monotonic()
        trial = _QUICK_TRIAL if options.quick else _TRIAL
        row = _train(recipe, trial, Path(folder) / 'trial', options)
        sink.add(row)
        per_iteration = row['batch'] / row['images_per_s']
        rest = time.monotonic() - begin - trial * per_iteration  # start and validation
        fitting = int((_SHARE * options.left - _AGAIN * rest) / per_iteration)
        iterations = min(fitting, row['planned_iterations'])
        if options.quick:
            return
        if iterations < 2 * trial:
            sink.fail('training', f'no time for more than the first {trial} iterations')
            return
        sink.add(_train(recipe, iterations, Path(folder) / 'run', options))


def _choose(folder: Path, quick: bool) -> Recipe:
    """CamVid or Penn-Fudan where there is one of them, else generated shapes."""
    places = [os.environ.get('SWINV2_MM_DATA'), ROOT / 'data']
    for place in [] if quick else [Path(place).resolve() for place in places if place]:
        if (place / 'camvid/images/val').is_dir():
            config = 'upernet/swinv2-t-p4-w8_upernet_1xb8-10k_camvid-360x480.py'
            return Recipe(config, 'CamVid', 'SWINV2_MM_DATA', place)
        if (place / 'pennfudan/val').is_dir():
            config = 'mask_rcnn/mask-rcnn_swinv2-t-p4-w8_fpn_1xb8-6k_pennfudan.py'
            return Recipe(config, 'Penn-Fudan', 'SWINV2_MM_DATA', place)
    shapes = folder / 'shapes'
    generate_shapes(shapes, *((8, 2) if quick else (1200, 150)))
    config = 'quickstart/swinv2-nano_upernet_shapes.py'
    return Recipe(config, 'generated shapes', 'SWINV2_MM_SHAPES', shapes)


def _train(recipe: Recipe, iterations: int, work_dir: Path, options: PartOptions) -> dict[str, Any]:
    """Train and validate; returns the row.

    Raises:
        RuntimeError: The tool failed.
    """
    config = str(ROOT / 'configs' / recipe.config)
    batch, planned, changes = _fit(config, iterations, options.quick)
    if options.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    code = train(
        config,
        work_dir=str(work_dir),
        amp=True,
        device=options.device,
        # Visualizers of one name are the same, and would write into the folder of the first run.
        cfg_options=[*changes, f'visualizer.name={work_dir.name}'],
    )
    seconds = time.monotonic() - begin
    if code != 0:
        raise RuntimeError(f'the training ended with exit code {code}: see the log')
    peak = torch.cuda.max_memory_allocated() if options.is_cuda else memory.lifetime_peak()
    return {
        'config': recipe.config,
        'data': recipe.data,
        'batch': batch,
        'iterations': iterations,
        'planned_iterations': planned,
        'seconds': round(seconds, 1),
        'images_per_s': batch / (_iteration_seconds(work_dir) or seconds / iterations),
        'dtype': 'fp16' if options.is_cuda else 'bf16',
        'metrics': json.loads((work_dir / METRICS_FILE).read_text(encoding='utf-8')),
        'peak_mb': peak / 2**20,
    }


def _fit(config: str, iterations: int, quick: bool) -> tuple[int, int, list[str]]:
    """What makes the schedule of a config `iterations` long, with no checkpoint and one validation at the end.

    Returns:
        Batch size, iterations that the config plans, and options for `--cfg-options`.
    """
    cfg = load_config(config)
    planned = cfg.train_cfg.max_iters
    changes = {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'default_hooks.logger.interval': min(_LOG, iterations),
        'default_hooks.checkpoint.interval': -1,
        'default_hooks.checkpoint.save_best': None,
        'default_hooks.checkpoint.save_last': False,
    }
    for number, scheduler in enumerate(cfg.param_scheduler):
        for key in ('begin', 'end', 'T_max'):
            if scheduler.get(key):
                scaled = max(2, round(scheduler[key] * iterations / planned))
                changes[f'param_scheduler.{number}.{key}'] = scaled
    batch = 2 if quick else cfg.train_dataloader.batch_size
    workers = 0 if quick else max(1, min(8, (os.cpu_count() or 1) - 2))
    for loader in ('train_dataloader', 'val_dataloader'):
        changes[f'{loader}.num_workers'] = workers
        changes[f'{loader}.persistent_workers'] = workers > 0
    changes['train_dataloader.batch_size'] = batch
    return batch, planned, [f'{key}={value}' for key, value in changes.items()]


def _iteration_seconds(work_dir: Path) -> float | None:
    """Median time of an iteration in the log, without the first lines if there are more; None if there is no log."""
    times = []
    for path in work_dir.glob('*/vis_data/scalars.json'):
        lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        times += [line['time'] for line in lines if 'loss' in line]
    return statistics.median(times[2:] or times) if times else None
