"""Mask R-CNN and UperNet, a training step and inference, beside the same model on the peers' backbones.

All contestants live in this process and take turns in every round.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.benchmarks import memory
from swinv2_mm.benchmarks.cases import Case
from swinv2_mm.benchmarks.gpu.model_parts import part_times, wall_milliseconds
from swinv2_mm.benchmarks.gpu.part import PartOptions, Sink
from swinv2_mm.benchmarks.summary import fastest, median, pairwise_ratio, quartiles
from swinv2_mm.benchmarks.task import autocast
from swinv2_mm.benchmarks.training import TASKS, Trainee, build_trainee
from swinv2_mm.benchmarks.weights import write_weights

OURS = 'ours'
BACKBONES = {OURS: 'ours:auto', 'mmpretrain': 'mmpretrain', 'swin_v1': 'swin_v1'}
"""Name of `benchmarks.training` for the backbone of each contestant."""

_ROUNDS, _QUICK_ROUNDS, _PART_ROUNDS = 15, 2, 5
_LEAST = 3  # seconds that a case needs
_RESERVE = 3  # seconds that are left at the end of the part
_CONFIDENCE = 6.0
_QUICK = {
    'mask_rcnn': {
        'model.train_cfg.rpn_proposal.max_per_img': 40,
        'model.train_cfg.rcnn.sampler.num': 16,
        'model.test_cfg.rpn.max_per_img': 40,
        'model.test_cfg.rcnn.max_per_img': 4,
        'model.roi_head.mask_head.num_convs': 1,
    },
    'upernet': {'model.decode_head.channels': 32, 'model.auxiliary_head.channels': 32},
}

Calls = Mapping[str, Callable[[], Any]]


def run(options: PartOptions, sink: Sink) -> None:
    """Measure inference, then training, of each task."""
    cases = _cases(options)
    with tempfile.TemporaryDirectory(prefix='swinv2_mm_gpu_') as folder:
        weights = Path(folder) / 'weights.pth'
        write_weights(cases[0].arch, weights)
        for number, case in enumerate(cases):
            if options.left < _LEAST + _RESERVE:
                sink.fail(f'{case.mode} {case.size}', 'no time was left')
                continue
            seconds = (options.left - _RESERVE) / (len(cases) - number)
            given: dict[str, Any] = {'weights': str(weights), 'heads': f'{folder}/{case.mode}.pth'}
            if options.quick:
                given['overrides'] = _QUICK[case.mode]
            _Contest(case, options, sink, time.monotonic() + seconds).run(given)
            gc.collect()
            if options.is_cuda:
                torch.cuda.empty_cache()


def _cases(options: PartOptions) -> list[Case]:
    device = options.device
    if options.quick:
        small: dict[str, Any] = dict(arch='nano', device=device, batch=2)
        dtype = 'bf16' if options.is_cuda else 'fp32'  # convolutions in bf16 are slow on many CPUs
        return [
            Case((96, 128), 8, 'mask_rcnn', dtype=dtype, **small),
            Case((64, 64), 8, 'upernet', dtype='bf16', **small),
        ]
    return [
        Case((800, 1344), 8, 'mask_rcnn', batch=2, dtype='bf16', device=device),
        Case((512, 512), 8, 'upernet', batch=16, dtype='bf16', device=device),
    ]


class _Contest:
    """All contestants in one task.

    Args:
        case: The task and its size.
        options: How the part runs.
        sink: Where rows go.
        end: When to be done, by `time.monotonic`.
    """

    def __init__(self, case: Case, options: PartOptions, sink: Sink, end: float) -> None:
        self.case, self.options, self.sink, self.end = case, options, sink, end
        self.trainees: dict[str, Trainee] = {}

    def run(self, given: Mapping[str, Any]) -> None:
        """Build everybody, then measure both modes.

        Args:
            given: Options of `build_trainee` for all.
        """
        torch.backends.cudnn.benchmark = TASKS[self.case.mode][0] == 'mmseg'  # as in our configs
        for name, backbone in BACKBONES.items():
            try:
                torch.manual_seed(0)
                options = {'backbone': backbone, **given}
                self.trainees[name] = build_trainee(self.case.to_dict(), options)
            except Exception as error:  # whatever a library raises: the others go on
                self._fail(name, 'build', error)
        self._measure_inference()
        self._measure_training()

    def _measure_inference(self) -> None:
        calls = {}
        for name, trainee in self.trainees.items():
            trainee.model.eval()
            _raise_confidence(trainee.model, _CONFIDENCE)
            calls[name] = self._predictor(trainee)
        halfway = (time.monotonic() + self.end) / 2
        row = self._compare('eval', calls, halfway)
        if row and OURS in row['ms'] and time.monotonic() < self.end - _LEAST:
            try:
                rounds = _QUICK_ROUNDS if self.options.quick else _PART_ROUNDS
                model = self.trainees[OURS].model
                row['parts_ms'] = part_times(model, calls[OURS], self.options, rounds)
                found = [len(x.pred_instances) for x in calls[OURS]() if 'pred_instances' in x]
                if found:
                    row['detections'] = sum(found) / len(found)
            except Exception as error:
                self._fail(OURS, 'eval, parts', error)
        if row:
            self.sink.add(row)

    def _measure_training(self) -> None:
        for trainee in self.trainees.values():
            trainee.model.train()
            _raise_confidence(trainee.model, -_CONFIDENCE)
        calls = {name: trainee.step for name, trainee in self.trainees.items()}
        row = self._compare('train', calls, self.end)
        if row:
            row['losses'] = {name: self.trainees[name].info['loss'] for name in row['ms']}
            self.sink.add(row)

    def _predictor(self, trainee: Trainee) -> Callable[[], Any]:
        """From a preprocessed batch to boxes, labels and masks, or to label maps."""
        data = trainee.model.data_preprocessor(trainee.batch, False)

        def predict() -> Any:
            with torch.no_grad(), autocast(self.case.device, self.case.dtype):
                return trainee.model(**data, mode='predict')

        return predict

    def _compare(self, mode: str, calls: Calls, end: float) -> dict[str, Any] | None:
        """Measure everybody in interleaved rounds; returns the row, None if there was no time for one round."""
        peaks, seconds = {}, 0.0  # those that a round takes
        for name, call in calls.items():
            try:
                if time.monotonic() > end:
                    raise TimeoutError('no time was left')
                call()  # compiles kernels
                begin = time.monotonic()
                peaks[name] = self._peak(call)
                seconds += time.monotonic() - begin
            except Exception as error:  # whatever a library raises: the others go on
                self._fail(name, mode, error)
        samples: dict[str, list[float]] = {name: [] for name in peaks}
        order, shuffle = list(peaks), random.Random(0).shuffle
        for _ in range(_QUICK_ROUNDS if self.options.quick else _ROUNDS):
            has_one = any(samples.values())
            last = end if has_one else self.options.deadline - _RESERVE
            if time.monotonic() + seconds > last:
                break
            shuffle(order)
            for name in order:
                samples[name].append(wall_milliseconds(calls[name], self.options))
        if any(samples.values()):
            return _row(self.case, mode, samples, peaks)
        if order:
            self._fail('all', mode, TimeoutError(f'a round takes {seconds:.0f} s'))
        return None

    def _peak(self, call: Callable[[], Any]) -> float | None:
        """Peak memory of a call above that before it, in MB; None where the system cannot tell."""
        if self.options.is_cuda:
            return memory.peak_on_gpu(call)
        return memory.peak_on_cpu(call) if memory.can_reset_peak() else None

    def _fail(self, name: str, what: str, error: Exception) -> None:
        self.sink.fail(f'{name}: {self.case.mode} {self.case.size} {what}', error)


def _row(
    case: Case, mode: str, samples: Mapping[str, Sequence[float]], peaks: Mapping[str, float | None]
) -> dict[str, Any]:
    peers = [name for name in samples if name != OURS] if OURS in samples else []
    ratios = {name: pairwise_ratio(samples[name], samples[OURS]) for name in peers}
    first = fastest(ratios)
    return {
        'task': case.mode,
        'mode': mode,
        'input': case.size,
        'batch': case.batch,
        'window': case.window,
        'arch': case.arch,
        'dtype': case.dtype,
        'rounds': len(next(iter(samples.values()))),
        'ms': {name: median(found) for name, found in samples.items()},
        'quartiles_ms': {name: quartiles(found) for name, found in samples.items()},
        'peak_mb': dict(peaks),
        'fastest_peer': first,
        'ratio_to_fastest': ratios[first] if first else None,
    }


def _raise_confidence(model: Any, by: float) -> None:
    """Raise the score of a detector's first class: random weights find nothing that would need processing."""
    if hasattr(model, 'roi_head'):
        with torch.no_grad():
            model.roi_head.bbox_head.fc_cls.bias[0] += by
