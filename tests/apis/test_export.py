"""Export models with random weights and compare the files with the libraries' own predictions."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from swinv2_mm.apis import export_files as check
from swinv2_mm.apis.export import build_graph, require_possible
from swinv2_mm.apis.export_files import write
from swinv2_mm.engine.console import import_library
from swinv2_mm.engine.errors import SetupError

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

QUICK = 'configs/quickstart/'
SIZES = [(24, 20), (50, 71), (96, 64)]


def build(config, randomize, **parts):
    """Return a small model with random weights; `parts` replace parts of its config."""
    cfg = Config.fromfile(QUICK + config).model
    cfg.backbone.arch.depths = (2, 1, 1, 1)
    for name, part in parts.items():
        cfg.pop(name, None)
        cfg[name] = part
    scope = 'mmdet' if 'rpn_head' in cfg else 'mmseg'
    import_library(scope)
    init_default_scope(scope)
    return randomize(MODELS.build(cfg)).eval()


def photographs(sizes=SIZES):
    """Return smooth random images."""
    generator = torch.Generator().manual_seed(3)
    coarse = [torch.rand(1, 3, 5, 7, generator=generator) * 255 for _ in sizes]
    pairs = zip(coarse, sizes)
    return [torch.nn.functional.interpolate(image, size)[0].round() for image, size in pairs]


def exported(graph, tmp_path, to='onnx', size=None):
    path = (
        tmp_path
        / f'model{dict(onnx=".onnx", openvino=".xml", torchscript=".ts", torch=".pt2")[to]}'
    )
    write(graph, to, 'fp32', check.to_array(photographs()[1:2], graph), size, path)
    return check.open_model(path, graph.outputs)


def test_segmentor_of_any_size_and_batch(randomize, tmp_path):
    model = build('swinv2-nano_upernet_shapes.py', randomize)
    graph = build_graph(model, 'segmentor')
    run = exported(graph, tmp_path)
    for image in photographs():
        expected = check.expected_outputs(model, image, 'segmentor')
        found = run(check.to_array([image.flip(2), image], graph))
        second = {'logits': found['logits'][1:]}
        assert check.difference(expected, second) < 1e-4
        assert (found['labels'] == found['logits'].argmax(1)).all()
        assert check.difference(expected, {'logits': found['logits'][:1]}) > 0.01


def test_semantic_fpn_as_torchscript(randomize, tmp_path):
    head = dict(
        type='FPNHead',
        in_channels=[16] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=16,
        num_classes=5,
        align_corners=False,
    )
    neck = dict(type='FPN', in_channels=[32, 64, 128, 256], out_channels=16, num_outs=4)
    model = build('swinv2-nano_upernet_shapes.py', randomize, neck=neck, decode_head=head)
    graph = build_graph(model, 'segmentor')
    run = exported(graph, tmp_path, 'torchscript')
    for image in photographs():
        expected = check.expected_outputs(model, image, 'segmentor')
        assert check.difference(expected, run(check.to_array([image], graph))) < 1e-4


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    torch.manual_seed(0)
    model = build('mask-rcnn_swinv2-nano_fpn_shapes.py', lambda given: given)
    graph = build_graph(model, 'detector')
    path = tmp_path_factory.mktemp('detector') / 'model.onnx'
    write(graph, 'onnx', 'fp32', check.to_array(photographs()[1:2], graph), None, path)
    return model, graph, path


def boxes_agree(model, graph, run):
    total = 0
    for image in photographs():
        expected = check.expected_outputs(model, image, 'detector')
        found = run(check.to_array([image], graph))
        total += len(expected['boxes'])
        assert check.unmatched_boxes(expected, found, 0.99, 1e-3) == 0
        assert found['masks'].shape == (len(found['boxes']), 28, 28)
        pair = run(check.to_array([image.flip(2), image], graph))
        second = pair['batch_index'] == 1
        second = {name: value[second] for name, value in pair.items()}
        assert check.unmatched_boxes(expected, second, 0.99, 1e-3) == 0
    assert total > 10


def test_detector_of_any_size_and_batch(detector):
    model, graph, path = detector
    boxes_agree(model, graph, check.open_model(path, graph.outputs))


def test_masks_are_those_of_the_library(detector):
    from mmdet.structures import DetDataSample

    model, graph, path = detector
    image = photographs()[2]
    size = tuple(image.shape[1:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    masks = []
    for run in (None, check.open_model(path, graph.outputs)):
        data = dict(inputs=[image.flip(0)], data_samples=[DetDataSample(metainfo=meta)])
        found = check.Measured(model, run, graph).test_step(data)[0].pred_instances
        assert len(found) > 3
        masks.append(found[found.scores.argsort(descending=True)].masks.numpy())
    assert masks[0].any()
    assert (masks[0] != masks[1]).mean() < 1e-3


@pytest.mark.long
def test_detector_in_openvino(detector, tmp_path):
    pytest.importorskip('openvino')
    model, graph, _ = detector
    boxes_agree(model, graph, exported(graph, tmp_path, 'openvino'))


@pytest.mark.long
def test_backbone_as_a_program_of_one_size(randomize, tmp_path):
    model = build('swinv2-nano_upernet_shapes.py', randomize)
    graph = build_graph(model, 'backbone')
    run = exported(graph, tmp_path, 'torch', (50, 71))
    image = photographs()[1]
    expected = check.expected_outputs(model, image, 'backbone')
    found = run(check.to_array([image], graph))
    assert list(found) == ['stage1', 'stage2', 'stage3', 'stage4']
    assert check.difference(expected, found) < 1e-4


def test_a_wrong_file_is_noticed():
    same = dict(boxes=np.array([[0, 0, 10, 10]]), scores=np.array([0.9]), labels=np.array([1]))
    assert check.unmatched_boxes(same, same, 0.99, 1e-3) == 0
    for name, value in (('boxes', [[0, 0, 10, 9]]), ('scores', [0.8]), ('labels', [0])):
        other = dict(same, **{name: np.array(value)})
        assert check.unmatched_boxes(same, other, 0.99, 1e-3) == 1
    none = {name: value[:0] for name, value in same.items()}
    assert check.unmatched_boxes(same, none, 0.99, 1e-3) == 1
    assert check.unmatched_boxes(none, none, 0.99, 1e-3) == 0
    maps = {'logits': np.zeros((1, 2, 3, 3), np.float32)}
    assert check.difference(maps, {'logits': np.full((1, 2, 3, 3), np.nan)}) == float('inf')
    assert check.difference(maps, {'logits': np.zeros((1, 2, 3, 4))}) == float('inf')


@pytest.mark.parametrize(
    'options, message',
    [
        (('torch', 'model', 'fp32', None, False), 'name one with --size'),
        (('onnx', 'model', 'bf16', None, False), 'INFERENCE_PRECISION_HINT'),
        (('onnx', 'model', 'int8', None, False), '--to openvino'),
        (('openvino', 'backbone', 'int8', None, False), 'leave out --size and --part'),
        (('onnx', 'model', 'fp32', (64, 64), True), 'leave out --size and --part'),
    ],
)
def test_what_cannot_be_exported_is_said(options, message):
    with pytest.raises(SetupError, match=message):
        require_possible(*options)


def test_other_detectors_are_refused(detector):
    model = detector[0]
    before, model.roi_head.test_cfg.nms.type = model.roi_head.test_cfg.nms.type, 'soft_nms'
    try:
        with pytest.raises(SetupError, match='--part backbone'):
            build_graph(model, 'detector')
    finally:
        model.roi_head.test_cfg.nms.type = before


def test_the_lines_of_the_docs_run_without_this_package(detector, tmp_path):
    """In a process that has numpy, onnxruntime and OpenCV only."""
    import json
    import re
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    from PIL import Image

    page = (Path(__file__).parents[2] / 'docs/export.md').read_text()
    code = re.findall(r'<!-- test: onnx -->\n```python\n(.*?)```', page, re.DOTALL)
    assert len(code) == 1
    shutil.copy(detector[2], tmp_path / 'model.onnx')
    facts = dict(classes=['a', 'b', 'c', 'd'], resize=dict(scale=[96, 64], keep_ratio=True))
    (tmp_path / 'model.onnx.json').write_text(json.dumps(facts))
    Image.fromarray(photographs([(120, 200)])[0].byte().permute(1, 2, 0).numpy()).save(
        tmp_path / 'photo.jpg'
    )
    lines = code[0].replace('>= 0.3', '>= 0.05')
    assert lines != code[0]
    lines += "\nimport sys\nassert not {'torch', 'mmdet', 'swinv2_mm'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, '-c', lines], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 'pixels' in done.stdout
