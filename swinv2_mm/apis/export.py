"""Export a trained model to ONNX, OpenVINO, TorchScript or a program of torch.export, and check the file."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2_mm.apis import export_files as check
from swinv2_mm.apis.export_files import files_of, quantize, write
from swinv2_mm.apis.export_graphs import (
    ExportedBackbone,
    ExportedClassifier,
    ExportedDetector,
    ExportedModel,
    ExportedSegmentor,
)
from swinv2_mm.apis.models import load_model
from swinv2_mm.engine.console import say, warn
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import tested_data
from swinv2_mm.engine.launch import EXIT_OK, guarded

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torchscript': '.ts', 'torch': '.pt2'}
PRECISIONS = {
    'onnx': ('fp32', 'fp16'),
    'openvino': ('fp32', 'fp16', 'int8'),
    'torchscript': ('fp32', 'bf16'),
    'torch': ('fp32', 'bf16'),
}
_WHY_NOT = {
    'bf16': 'export fp32 and let the runtime compute in bf16 (OpenVINO: INFERENCE_PRECISION_HINT=bf16)',
    'fp16': 'torch computes in fp16 on GPUs only, for which model.half() is enough',
    'int8': 'quantised models are files of OpenVINO (--to openvino)',
}
_PACKAGES = {
    'onnx': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
    'int8': ('nncf',),
}
# Largest difference of maps; smallest IoU, largest difference of scores and share of boxes that may differ.
TOLERANCES = {
    'fp32': (1e-4, 0.99, 0.001, 0.01),
    'fp16': (0.03, 0.9, 0.05, 0.1),
    'bf16': (0.2, 0.8, 0.1, 0.2),
}
MOST_LOSS = 0.02
"""How much of an AP or IoU of 1 a quantised model may lose."""


def export_model(
    model: str,
    to: str,
    *,
    part: str = 'model',
    precision: str = 'fp32',
    size: tuple[int, int] | None = None,
    out: str | None = None,
    evaluate: bool = False,
    config: str | None = None,
    trust_checkpoint: bool = False,
    cfg_options: Sequence[str] = (),
) -> int:
    """Export a trained model, write a json beside it, and compare the file with PyTorch.

    The arguments are the options of `tools/export.py`; `size` is height and width, None for any size and batch.

    Returns:
        The exit code: 0, 1 after a crash, 2 if something outside is wrong or the file differs too much.
    """

    def run() -> int:
        require_possible(to, part, precision, size, evaluate)
        built: Any = load_model(model, 'cpu', cfg_options, config)
        kind = 'backbone' if part == 'backbone' else kind_of(built)
        dtype = {'fp16': torch.float16, 'bf16': torch.bfloat16}.get(precision, torch.float32)
        if to == 'torch' and kind == 'detector':
            raise SetupError(
                '--to torch: torch.export cannot trace a detector, whose number of boxes depends on the image: use '
                '--to torchscript, or --part backbone.'
            )
        graph = build_graph(built, kind, torch.float32 if to == 'openvino' else dtype)
        target = Path(out or Path(built.checkpoint).with_suffix(''))
        if target.suffix != SUFFIXES[to]:
            target = target.with_name(target.name + SUFFIXES[to])
        description = target.with_name(f'{target.name}.json')
        target.parent.mkdir(parents=True, exist_ok=True)
        say(f'exporting the {kind} of {built.checkpoint} to {target}')
        images = check.check_images(built.cfg, graph, size)
        write(graph, to, precision, check.to_array(images[-1:], graph), size, target)
        if precision == 'int8':
            quantize(target, built.cfg, graph)
        file_run = check.open_model(target, graph.outputs)
        facts = describe(built, graph, kind, to, precision, size)
        if precision != 'int8':
            facts['largest_difference'] = compare(built, graph, kind, file_run, images, precision)
        if evaluate or precision == 'int8':
            facts['metrics'] = measure(built, graph, file_run, precision)
        description.write_text(json.dumps(facts, indent=2) + '\n')
        megabytes = sum(file.stat().st_size for file in files_of(target)) / 1e6
        say(f'exported: {target} ({megabytes:.1f} MB), described in {description}')
        return EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def require_possible(to: str, part: str, precision: str, size: Any, evaluate: bool) -> None:
    """Check that these options work together and the packages are there."""
    if precision not in PRECISIONS[to]:
        raise SetupError(f'--to {to} --precision {precision}: {_WHY_NOT[precision]}.')
    if to == 'torch' and size is None:
        raise SetupError(
            '--to torch: torch.export cannot trace windows of any size, so name one with --size HxW; --to torchscript '
            'takes any size.'
        )
    if (evaluate or precision == 'int8') and (size or part == 'backbone'):
        raise SetupError(
            'Metrics, which int8 needs, are those of the whole model on images of any size: leave out --size and '
            '--part.'
        )
    missing = []
    for name in (*_PACKAGES.get(to, ()), *_PACKAGES.get(precision, ())):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise SetupError(
            f'--to {to} --precision {precision} needs {", ".join(missing)}: pip install {" ".join(missing)}.'
        )


def kind_of(model: Any) -> str:
    """Return `'detector'`, `'segmentor'` or `'classifier'`."""
    if model.cfg.default_scope == 'mmdet':
        return 'detector'
    kinds = {'EncoderDecoder': 'segmentor', 'ImageClassifier': 'classifier'}
    name = type(model).__name__
    if name not in kinds:
        raise SetupError(f'A {name} cannot be exported whole, only its backbone: --part backbone.')
    if kinds[name] == 'segmentor' and model.test_cfg.get('mode') != 'whole':
        warn('the exported model looks at the whole image, not at crops as test_cfg.mode=slide')
    return kinds[name]


def build_graph(model: nn.Module, kind: str, dtype: torch.dtype = torch.float32) -> ExportedModel:
    """Return the module to export."""
    if any(type(part).__name__ == 'DeformableSwinBlock' for part in model.modules()):
        raise SetupError('A backbone with deformable blocks cannot be exported.')
    kinds: dict[str, Callable[..., ExportedModel]] = dict(
        backbone=ExportedBackbone,
        segmentor=ExportedSegmentor,
        classifier=ExportedClassifier,
        detector=ExportedDetector,
    )
    return kinds[kind](model, dtype).eval()


def compare(
    model: Any, graph: ExportedModel, kind: str, run: check.Run, images: Any, precision: str
) -> float:
    """Return the largest difference of maps between file and PyTorch, or the share of boxes that differ."""
    most, iou, score, share = TOLERANCES[precision]
    worst, boxes, apart = 0.0, 0, 0
    for image in images:
        expected = check.expected_outputs(model, image, kind)
        found = run(check.to_array([image], graph))
        if kind == 'detector':
            boxes += len(expected['boxes'])
            apart += check.unmatched_boxes(expected, found, iou, score)
        else:
            worst = max(worst, check.difference(expected, found))
    sizes = ', '.join(f'{image.shape[1]}x{image.shape[2]}' for image in images)
    if kind == 'detector':
        if not boxes:
            warn('PyTorch finds no object in the check images, so boxes could not be compared')
        worst, most = apart / max(1, boxes), share
        say(f'{apart} of {boxes} boxes at {sizes} differ from PyTorch (IoU below {iou})')
    else:
        if len(images) > 1:
            pair = run(check.to_array([images[1], images[1].flip(2)], graph))
            expected = check.expected_outputs(model, images[1].flip(2), kind)
            second = {name: pair[name][1:] for name in expected}
            worst = max(worst, check.difference(expected, second))
        say(f'largest difference from PyTorch at {sizes}: {worst:.2g} (tolerance {most:g})')
    if not worst <= most:
        raise SetupError(
            f'The exported model differs from PyTorch by {worst:.3g}, more than {most:g}: do not use it.'
        )
    return worst


def measure(
    model: Any, graph: ExportedModel, run: check.Run, precision: str
) -> dict[str, dict[str, float]]:
    """Measure PyTorch and the file on the validation set."""
    found = {}
    for name, runner in (('pytorch', None), ('exported', run)):
        metrics = check.measure(model.cfg, check.Measured(model, runner, graph))
        keep = re.compile(r'(bbox_mAP|segm_mAP|mIoU|accuracy/top1)$')
        found[name] = {key: float(metrics[key]) for key in metrics if keep.search(key)}
        say(f'{name}: ' + ', '.join(f'{key} {value:.4g}' for key, value in found[name].items()))
    for key, before in found['pytorch'].items():
        scale = 1 if 'mAP' in key else 100
        allowed = MOST_LOSS if precision != 'fp32' else MOST_LOSS / 10
        if before - found['exported'][key] > allowed * scale:
            raise SetupError(
                f'The exported model has {key} {found["exported"][key]:.4g} where PyTorch has {before:.4g}: more '
                f'than {allowed * scale:g} is lost, do not use it.'
            )
    return found


def describe(
    model: Any, graph: ExportedModel, kind: str, to: str, precision: str, size: Any
) -> dict[str, Any]:
    """Return the content of the json beside the file: what a program needs to use it."""
    steps = tested_data(model.cfg).get('pipeline') or []
    resize = next((step for step in steps if step.get('type') == 'Resize'), None)
    given = model.data_preprocessor
    values = {name: getattr(given, name).flatten().tolist() for name in ('mean', 'std')} if (
        graph.normalizes
    ) else None  # fmt: skip
    return dict(
        task=kind,
        format=to,
        precision=precision,
        classes=list(model.dataset_meta.get('classes', ())),
        palette=[list(color) for color in model.dataset_meta.get('palette') or ()],
        input=dict(
            name='image',
            layout='BHWC',
            channels='RGB' if graph.channels == 3 else graph.channels,
            dtype='uint8' if graph.channels == 3 else 'float32',
            size=list(size) if size else None,
        ),
        resize=None
        if resize is None
        else dict(scale=resize.get('scale'), keep_ratio=bool(resize.get('keep_ratio'))),
        normalization=dict(inside=True, values=values, bgr=graph.takes_bgr),
        outputs=list(graph.outputs),
    )
