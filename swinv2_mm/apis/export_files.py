"""Write the file of an exported model, run it, compare it with the network, and measure both on the validation set."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_iou

from swinv2_mm.apis.export_graphs import ExportedModel
from swinv2_mm.engine.console import quiet, warn
from swinv2_mm.engine.errors import SetupError

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

    items = [to_array([image], graph) for image in validation_images(cfg, graph)]
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


Run = Callable[[np.ndarray], dict[str, np.ndarray]]
SIZES = ((24, 20), (150, 203), (256, 320))
"""Heights and widths that models of any size are checked at: smaller than a window, no multiple of anything."""


def open_model(path: str | Path, outputs: tuple[str, ...]) -> Run:
    """Return a function from images `(B, H, W, C)` to the outputs of an exported file by name."""
    path = str(path)
    if path.endswith('.onnx'):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # constants in fp16 are not folded on a CPU
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda image: dict(zip(outputs, session.run(None, {'image': image})))
    if path.endswith('.xml'):
        import openvino

        compiled = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        return lambda image: dict(zip(outputs, compiled(image).to_tuple()))
    if path.endswith('.pt2'):
        module: Any = torch.export.load(path).module()
    else:
        with quiet():  # TorchScript is deprecated; the alternative has no dynamic sizes
            module = torch.jit.load(path)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(torch.from_numpy(image))
        found = (found,) if isinstance(found, Tensor) else found
        return {name: value.numpy() for name, value in zip(outputs, found)}

    return run


def check_images(cfg: Config, graph: ExportedModel, size: Any) -> list[Tensor]:
    """Return images `(C, H, W)` as the exported model takes them: photographs of the data if they exist."""
    photographs: list[Tensor] = []
    try:
        photographs = [image for _, image in zip(SIZES, validation_images(cfg, graph))]
    except (SetupError, OSError) as error:
        warn(f'checking on generated patterns, since the validation set cannot be read: {error}')
    generator = torch.Generator().manual_seed(0)
    images = []
    for index, extent in enumerate([size] if size else SIZES):
        if photographs:
            image = photographs[index % len(photographs)].float()
        else:
            image = torch.rand(graph.channels, 6, 6, generator=generator) * 255
        image = F.interpolate(image[None], size=extent, mode='bicubic').clamp(0, 255)[0]
        images.append(image.round() if graph.channels == 3 else image)
    return images


def validation_images(cfg: Config, graph: ExportedModel) -> Iterator[Tensor]:
    """Yield the images of the validation set after its pipeline, `(C, H, W)`, as the exported model takes them."""
    if not cfg.get('val_dataloader'):
        raise SetupError('The config defines no val_dataloader.')
    init_default_scope(cfg.default_scope)
    with quiet():
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    for index in np.linspace(0, len(dataset) - 1, min(len(dataset), 300)).astype(int):
        image = dataset[int(index)]['inputs']
        yield image.flip(0) if graph.channels == 3 else image


def to_array(images: list[Tensor], graph: ExportedModel) -> np.ndarray:
    """Return the input of the exported model, `(B, H, W, C)`: uint8 for three channels, else fp32."""
    batch = torch.stack(images).permute(0, 2, 3, 1).contiguous()
    return batch.to(torch.uint8 if graph.channels == 3 else torch.float32).numpy()


@torch.inference_mode()
def expected_outputs(model: Any, image: Tensor, kind: str) -> dict[str, np.ndarray]:
    """Return what the network in PyTorch finds in an image `(C, H, W)`, by name of the output."""
    size = tuple(image.shape[1:])
    given = image.flip(0) if image.shape[0] == 3 else image
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    if kind == 'detector':
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=meta)
        found = model.test_step(dict(inputs=[given], data_samples=[sample]))[0].pred_instances
        names = dict(boxes='bboxes', scores='scores', labels='labels')
        return {name: found[key].numpy() for name, key in names.items()}
    inputs = model.data_preprocessor(dict(inputs=[given]))['inputs']
    if kind == 'backbone':
        maps = zip(model.backbone.out_indices, model.backbone(inputs))
        return {f'stage{stage + 1}': value.numpy() for stage, value in maps}
    if kind == 'classifier':
        return {'logits': model(inputs, mode='tensor').numpy()}
    logits = model.encode_decode(inputs, [dict(meta, pad_shape=tuple(inputs.shape[2:]))])
    return {'logits': logits[:, :, : size[0], : size[1]].numpy()}


def difference(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """Return the largest difference of maps, in units of the largest value if that is above 1."""
    worst = 0.0
    for name, value in expected.items():
        if value.shape != found[name].shape:
            return float('inf')
        error = np.abs(value - found[name]).max() / max(1.0, np.abs(value).max())
        worst = max(worst, float(error) if np.isfinite(error) else float('inf'))
    return worst


def unmatched_boxes(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], iou: float, score: float
) -> int:
    """Return the number of boxes without a counterpart of the same label, that IoU and score, in both directions."""
    one, two = ({k: torch.as_tensor(v) for k, v in item.items()} for item in (expected, found))
    same = box_iou(one['boxes'].float(), two['boxes'].float()) >= iou
    same &= one['labels'][:, None] == two['labels'][None]
    same &= (one['scores'][:, None] - two['scores'][None]).abs() <= score
    return max(int((~same.any(1)).sum()), int((~same.any(0)).sum())) if same.numel() else max(
        same.shape
    )  # fmt: skip


class Measured:
    """The model in an evaluation, with the exported file, if there is one, in place of the network."""

    def __init__(self, model: Any, run: Run | None, graph: ExportedModel) -> None:
        self.model, self.run, self.graph = model, run, graph

    @torch.inference_mode()
    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Return the data samples with predictions."""
        if self.run is None:
            return self.model.test_step(data)
        return [self._predict(*pair) for pair in zip(data['inputs'], data['data_samples'])]

    def _predict(self, image: Tensor, sample: Any) -> Any:
        assert self.run is not None
        array = to_array([image.flip(0) if self.graph.channels == 3 else image], self.graph)
        found = {name: torch.from_numpy(value.copy()) for name, value in self.run(array).items()}
        if 'boxes' not in found:
            if 'labels' in found:
                return self.model.postprocess_result(found['logits'], [sample])[0]
            return sample.set_pred_score(found['logits'][0].softmax(0)).set_pred_label(
                found['logits'][0].argmax(0, keepdim=True)
            )
        results = InstanceData(
            bboxes=found['boxes'], scores=found['scores'], labels=found['labels'].long()
        )
        head = self.model.roi_head
        if 'masks' not in found:
            results.bboxes /= results.bboxes.new_tensor(sample.scale_factor).repeat(2)
        else:
            classes = 1 if head.mask_head.class_agnostic else head.mask_head.num_classes
            masks = found['masks'][:, None].expand(-1, classes, -1, -1)
            results = head.mask_head.predict_by_feat(
                (masks,), [results], [sample.metainfo], head.test_cfg, rescale=True, activate_map=True
            )[0]  # fmt: skip
        sample.pred_instances = results
        return sample


def measure(cfg: Config, model: Measured) -> dict[str, float]:
    """Return the metrics of the validation set."""
    if not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
        raise SetupError('The config defines no val_dataloader or val_evaluator to measure on.')
    options = copy.deepcopy(cfg.val_dataloader)
    options.update(num_workers=0, persistent_workers=False, batch_size=1)
    init_default_scope(cfg.default_scope)
    with quiet():
        loader = Runner.build_dataloader(ConfigDict(options), seed=0)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
        for data in loader:
            evaluator.process(data_samples=model.test_step(data), data_batch=data)
        return evaluator.evaluate(len(loader.dataset))
