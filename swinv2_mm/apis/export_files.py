"""Write the files of an exported model."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.apis import export_check as check
from swinv2_mm.apis.export_graphs import ExportedModel

OPSET = 18


def write(
    graph: ExportedModel, to: str, precision: str, image: Any, size: Any, target: Path
) -> None:
    """Write the file of a graph; `image` is an example of its input."""
    example = torch.from_numpy(image)
    if size is None and to != 'torch':
        example = example.repeat(2, 1, 1, 1)  # a batch of one would be taken for a constant
    with contextlib.ExitStack() as stack, torch.no_grad(), quiet():
        if to == 'torch':
            program = torch.export.export(graph, (example,), strict=False)
            return torch.export.save(program, target)
        if to == 'torchscript':
            return torch.jit.trace(graph, (example,), check_trace=False).save(str(target))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        onnx = target if to == 'onnx' else Path(folder, 'model.onnx')
        axes = {'image': {0: 'batch', 1: 'height', 2: 'width'}} if size is None else None
        torch.onnx.export(
            graph,
            (example,),
            str(onnx),
            dynamo=False,
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(graph.outputs),
            dynamic_axes=axes,
        )
        if to == 'openvino':
            import openvino

            openvino.save_model(
                openvino.convert_model(onnx), target, compress_to_fp16=precision == 'fp16'
            )


def quantize(target: Path, cfg: Any, graph: ExportedModel) -> None:
    """Quantise a file of OpenVINO to int8 by NNCF, calibrated on the validation images."""
    import nncf
    import openvino

    items = [check.to_array([image], graph) for image in check.validation_images(cfg, graph)]
    core = openvino.Core()
    core.set_property({'ENABLE_MMAP': False})  # the file is replaced
    with quiet():
        result = nncf.quantize(
            core.read_model(target),
            nncf.Dataset(items),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(items),
            # NNCF wants one scale for the inputs of a concatenation, and fails where some are never negative.
            ignored_scope=nncf.IgnoredScope(types=['Concat'], validate=False),
        )
    openvino.save_model(result, target, compress_to_fp16=False)


def files_of(target: Path) -> list[Path]:
    """Return the files of an exported model."""
    weights = target.with_suffix('.bin')
    return [target, *([weights] if target.suffix == '.xml' and weights.exists() else [])]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages of exporters about their own work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)
