"""Run tools/export.py as a user does."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from swinv2_mm.engine.console import import_library

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.fixture(scope='module')
def checkpoint(environment, tmp_path_factory):
    """A segmentor with random weights, as a training saves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SWINV2_MM_SHAPES', environment['SWINV2_MM_SHAPES'])
        cfg = Config.fromfile('configs/quickstart/swinv2-nano_upernet_shapes.py')
    cfg.model.backbone.arch.depths = (1, 1, 1, 1)
    import_library('mmseg')
    init_default_scope('mmseg')
    path = tmp_path_factory.mktemp('run') / 'iter_1.pth'
    torch.save(
        dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=dict(cfg=cfg.pretty_text)), path
    )
    return path


def test_the_file_is_checked_measured_and_described(run_tool, checkpoint, tmp_path):
    done = run_tool(
        *('tools/export.py', checkpoint, '--to', 'onnx', '--evaluate'),
        *('--out', tmp_path / 'new' / 'model.onnx'),
    )
    assert done.returncode == 0, done.stderr
    assert 'largest difference from PyTorch at 24x20, 150x203, 256x320' in done.stderr + done.stdout
    facts = json.loads((tmp_path / 'new' / 'model.onnx.json').read_text())
    assert len(facts['classes']) == 5 and facts['outputs'] == ['labels', 'logits']
    assert facts['largest_difference'] < 1e-4
    assert facts['metrics']['pytorch'] == pytest.approx(facts['metrics']['exported'], abs=0.2)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--to', 'torch'], 'name one with --size HxW'),
        (['--to', 'onnx', '--size', '64'], 'HEIGHTxWIDTH'),
        (['--to', 'onnx', '--precision', 'bf16'], 'bf16: export fp32'),
    ],
)
def test_what_does_not_work_ends_with_a_sentence(run_tool, checkpoint, options, message):
    done = run_tool('tools/export.py', checkpoint, *options)
    assert done.returncode == 2
    assert message in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.long
def test_int8_is_measured(run_tool, checkpoint, tmp_path):
    pytest.importorskip('nncf')
    done = run_tool(
        *('tools/export.py', checkpoint, '--to', 'openvino', '--precision', 'int8'),
        *('--out', tmp_path / 'model'),
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / 'model.xml.json').read_text())['metrics']) == {
        'pytorch',
        'exported',
    }
