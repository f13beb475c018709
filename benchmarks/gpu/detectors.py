"""Part `detectors`: inference and training step of Mask R-CNN and UperNet, with our backbone and those of peers."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.cases import MODES, Case
from benchmarks.contestants import whole_model
from benchmarks.gpu.part import PartOptions
from benchmarks.results import Results
from benchmarks.rounds import Contest, Entry
from benchmarks.weights import write_weights

_ROUNDS = 15
_LEAST = 3  # seconds per case
_RESERVE = 3  # seconds reserved for the end of the part
_QUICK = {
    'mask_rcnn': {
        'model.train_cfg.rpn_proposal.max_per_img': 40,
        'model.train_cfg.rcnn.sampler.num': 16,
        'model.test_cfg.rpn.max_per_img': 40,
        'model.test_cfg.rcnn.max_per_img': 4,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        'model.roi_head.mask_head.num_convs': 1,
    },
    'upernet': {'model.decode_head.channels': 32, 'model.auxiliary_head.channels': 32},
}


def run(options: PartOptions, results: Results) -> None:
    """Measure inference, then training, of each task."""
    cases = _cases(options)
    with options.pool() as pool:
        weights = write_weights(cases[0].arch, pool.folder / 'weights.pth')
        given = {'weights': str(weights), 'heads': str(pool.folder)}
        for number, case in enumerate(cases):
            end = time.monotonic() + (options.left - _RESERVE) / (len(cases) - number)
            if options.left < _LEAST + _RESERVE:
                results.fail(str(case), 'no time was left')
                continue
            overrides = _QUICK[case.task] if options.quick else {}
            contestants = [
                whole_model(name, overrides=overrides)
                for name in ('ours:auto', 'mmpretrain', 'swin_v1')
            ]
            entries = [Entry(contestant, case) for contestant in contestants]
            contest = Contest(pool, entries, results, given, 0.0)
            contest.prepare()
            contest.measure([case], 1 if options.quick else _ROUNDS, end)
            row = contest.row(case)
            if row and row['ours']:
                row |= contest.ask(entries[0], 'info') or {}
            results.add(row)
            pool.release()


def _cases(options: PartOptions) -> list[Case]:
    common: dict[str, Any] = {'dtype': 'bf16', 'device': options.device}
    sizes = [('mask_rcnn', (800, 1344), 2), ('upernet', (512, 512), 16)]
    if options.quick:
        common |= {'dtype': 'fp32', 'arch': 'nano'}  # convolutions in bf16 are slow on many CPUs
        sizes = [('mask_rcnn', (64, 96), 1), ('upernet', (64, 64), 2)]
    return [
        Case(size, 8, mode, task=task, batch=batch, **common)
        for task, size, batch in sizes
        for mode in MODES
    ]
