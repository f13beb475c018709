"""SwinV2 of several libraries and runtimes, with the same weights and the same four feature maps.

Each function imports its library when it is called, in the process of its contestant.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import SIZES, Case
from benchmarks.contestants import CONSTANT, RUNTIMES, SEQUENTIAL
from benchmarks.task import Task, autocast
from benchmarks.weights import load_weights
from swinv2_mm.ops.linear import constant_weights

Maps = Callable[[Tensor], Any]  # from images to feature maps
_HELD = ExitStack()  # until the process ends


def build(case: Case, options: Mapping[str, Any]) -> Task:
    """Build a forward pass, in `'train'` mode with the backward pass of the mean square of all maps.

    Args:
        case: The case.
        options: `library`: a key of `_MODELS`; `weights`: the file; `compile`; `backend` of our attention.
    """
    library = options['library']
    if library in RUNTIMES and (case.mode, case.device) != ('eval', 'cpu'):
        raise ValueError(f'{library} runs inference on a CPU only')
    model, maps = _MODELS[library](case, options)
    load_weights(model, options['weights'], 'native' if library in RUNTIMES else library)
    model.train(case.mode == 'train')  # not chained: mmpretrain's method returns None
    model.to(case.device)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(case.batch, 3, *case.input, generator=generator).to(case.device)
    if options.get('compile') and case.mode == 'eval' and case.device == 'cpu':
        from torch._inductor import config

        config.freezing = True  # weights are constants, in the layout of the products
    call = torch.compile(maps) if options.get('compile') else maps

    def look() -> list[Tensor]:
        with torch.no_grad(), autocast(case.device, case.dtype):
            return list(call(image))

    def step() -> None:
        with autocast(case.device, case.dtype):
            found = call(image)
        torch.stack([x.float().square().mean() for x in found]).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    return Task(step if case.mode == 'train' else look, case.device, look)


def _ours(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    from swinv2_mm import SwinTransformerV2

    backend = options['backend']
    if backend == CONSTANT:  # a process has one contestant
        _HELD.enter_context(constant_weights())
    model = SwinTransformerV2(
        vars(SIZES[case.arch]),
        window_size=case.window,
        drop_path_rate=0.0,
        norm_cfg=None,
        attn_backend='auto' if backend in (SEQUENTIAL, CONSTANT) else backend,
        sequential_self_attention=backend == SEQUENTIAL,
    )
    return model, model


def _timm(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build timm's model: windows shrink to smaller maps; the training window stays that of the case."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    size = SIZES[case.arch]
    model = SwinTransformerV2(
        img_size=case.input,
        embed_dim=size.embed_dims,
        depths=size.depths,
        num_heads=size.num_heads,
        window_size=case.window,
        pretrained_window_sizes=(case.window,) * len(size.depths),
        drop_path_rate=0.0,
        num_classes=0,
    )
    return model, lambda image: model.forward_intermediates(image, intermediates_only=True)


def _torchvision(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build torchvision's model: smaller maps are padded to the window."""
    from torchvision.models import swin_transformer as library

    size = SIZES[case.arch]
    model = library.SwinTransformer(
        [4, 4],
        size.embed_dims,
        list(size.depths),
        list(size.num_heads),
        [case.window, case.window],
        stochastic_depth_prob=0.0,
        num_classes=1,
        block=library.SwinTransformerBlockV2,
        downsample_layer=library.PatchMergingV2,
    )

    def maps(image: Tensor) -> list[Tensor]:
        x, found = image, []
        for index, module in enumerate(model.features):
            x = module(x)
            if index % 2:  # the even layers embed and merge
                found.append(x.permute(0, 3, 1, 2).contiguous())
        return found

    return model, maps


def _hf(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build the model of transformers: windows shrink to maps of smaller height."""
    from transformers import Swinv2Backbone, Swinv2Config

    size = SIZES[case.arch]
    config = Swinv2Config(
        image_size=case.input,
        embed_dim=size.embed_dims,
        depths=list(size.depths),
        num_heads=list(size.num_heads),
        window_size=case.window,
        pretrained_window_sizes=[case.window] * len(size.depths),
        drop_path_rate=0.0,
        out_features=[f'stage{stage + 1}' for stage in range(len(size.depths))],
    )
    model = Swinv2Backbone(config)
    return model, lambda image: [x.contiguous() for x in model(image).feature_maps]


def _mmpretrain(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build mmpretrain's model: windows are limited to the size of the map."""
    from mmpretrain.models.backbones import SwinTransformerV2

    size = SIZES[case.arch]
    model = SwinTransformerV2(
        arch=vars(size),
        img_size=case.input,
        window_size=[
            min(case.window, *(-(-side // s) for side in case.input)) for s in (4, 8, 16, 32)
        ],
        pretrained_window_sizes=[case.window] * len(size.depths),
        drop_path_rate=0.0,
        out_indices=tuple(range(len(size.depths))),
        norm_cfg=None,
    )
    return model, model


def _onnxruntime(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build our model, exported to ONNX at the size of the case."""
    if case.dtype != 'fp32':
        raise ValueError(f'ONNX Runtime computes in fp32 on a CPU, not in {case.dtype}')
    model, _ = _ours(case, {'backend': 'reference'})

    @functools.cache
    def session() -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        content, providers = _as_onnx(model, case), ['CPUExecutionProvider']
        return onnxruntime.InferenceSession(content, settings, providers=providers)

    def maps(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session().run(None, {'image': image.numpy()})]

    return model, maps


def _openvino(case: Case, options: Mapping[str, Any]) -> tuple[nn.Module, Maps]:
    """Build our model, exported to OpenVINO at the size of the case; it computes in the dtype of the case."""
    model, _ = _ours(case, {'backend': 'reference'})
    precision = {'fp32': 'f32', 'bf16': 'bf16', 'fp16': 'f16'}[case.dtype]

    @functools.cache
    def compiled() -> Any:
        import openvino

        settings = {
            'INFERENCE_PRECISION_HINT': precision,
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        }
        core = openvino.Core()
        return core.compile_model(core.read_model(_as_onnx(model, case)), 'CPU', settings)

    def maps(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x.copy()) for x in compiled()(image.numpy()).to_tuple()]

    return model, maps


def _as_onnx(model: nn.Module, case: Case) -> bytes:
    """Return a model as an ONNX file for images of the size of the case."""
    from swinv2_mm.apis.export_files import OPSET

    example = torch.zeros(case.batch, 3, *case.input)
    fp32 = torch.autocast('cpu', enabled=False)  # the runtime converts the file to its own dtype
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), fp32:
        path = Path(folder) / 'model.onnx'
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=False,
            input_names=['image'],
            opset_version=OPSET,
        )
        return path.read_bytes()


_MODELS = {
    'native': _ours,
    'timm': _timm,
    'torchvision': _torchvision,
    'hf': _hf,
    'mmpretrain': _mmpretrain,
    'onnxruntime': _onnxruntime,
    'openvino': _openvino,
}
"""Functions that build a model and its function from images to feature maps, by weight layout."""
