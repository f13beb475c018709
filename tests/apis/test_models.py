import os
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from swinv2_mm.apis.models import find_model, load_model, parse_config
from swinv2_mm.engine.console import import_library
from swinv2_mm.engine.errors import SetupError

CONFIG = 'configs/quickstart/swinv2-nano_upernet_shapes.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A segmentor with random weights, and its checkpoint as a Runner writes it."""
    cfg = Config.fromfile(CONFIG)
    import_library('mmseg')
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    path = tmp_path_factory.mktemp('run') / 'iter_1.pth'
    meta = dict(
        cfg=cfg.pretty_text, iter=1, epoch=0, dataset_meta=dict(classes=('a', 'b', 'c', 'd', 'e'))
    )
    torch.save(dict(state_dict=model.state_dict(), meta=meta, message_hub={}), path)
    return model, path


def with_text(path, target, text):
    content = torch.load(path, weights_only=True)
    content['meta'] = {} if text is None else dict(content['meta'], cfg=text)
    torch.save(content, target)
    return target


def test_a_checkpoint_is_enough(trained):
    model, path = trained
    for given in (path, path.parent):
        loaded = load_model(str(given), 'cpu')
        assert not loaded.training
        assert loaded.checkpoint == str(path)
        assert loaded.dataset_meta['classes'] == ('a', 'b', 'c', 'd', 'e')
        assert len(loaded.dataset_meta['palette']) == 5
        image = torch.rand(1, 3, 64, 96)
        torch.testing.assert_close(loaded(image)[0], model(image)[0])


def test_the_stored_config_equals_the_file(trained):
    cfg, _ = find_model(trained[1])
    expected = Config.fromfile(CONFIG)
    assert cfg.to_dict() == expected.to_dict()


def test_detectors_name_operators_of_mmcv(tmp_path, monkeypatch):
    cfg = Config.fromfile('configs/quickstart/mask-rcnn_swinv2-nano_fpn_shapes.py')
    import_library('mmdet')
    init_default_scope('mmdet')
    state = MODELS.build(cfg.model).state_dict()
    for kind in ('nms', "__import__('os').mkdir('made')"):  # mmcv evaluates it
        cfg.model.test_cfg.rcnn.nms.type = kind
        torch.save(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text)), tmp_path / 'a.pth')
        if kind == 'nms':
            assert load_model(tmp_path / 'a.pth', 'cpu').cfg.model.type == 'MaskRCNN'
    with pytest.raises(SetupError, match='which is not registered'):
        load_model(tmp_path / 'a.pth', 'cpu')


def test_options_change_the_stored_config(trained):
    loaded = load_model(trained[1], 'cpu', ['model.test_cfg.mode=slide'])
    assert loaded.cfg.model.test_cfg.mode == 'slide'


@pytest.mark.parametrize(
    'line',
    [
        'import os',
        "a = __import__('os').mkdir('made')",
        "a = dict(**__import__('os').environ)",
        "a = dict(b=[open('made', 'w')])",
        'a = [i for i in (1, 2)]',
        "a = {**{'b': 1}}",
        'a = f"{1}"',
        'a, b = 1, 2',
        'a.b = 1',
        'a = -"text"',
        'a = {[]: 1}',
        'a = ' + '(' * 400 + ')' * 400,
        'a = ' + '-' * 100000 + '1',
        'a =',
    ],
)
def test_the_text_of_a_config_is_not_executed(trained, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match='name the config file with --config'):
        parse_config(f"default_scope = 'mmseg'\nmodel = dict()\n{line}\n", 'file.pth')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('name', ['os.mkdir', 'antigravity', 'mmdet.apis.init_detector', 'mkdir'])
def test_only_registered_classes_are_built(trained, tmp_path, monkeypatch, name):
    cfg = Config.fromfile(CONFIG)
    cfg.model.decode_head = dict(type=name, path='made')
    file = with_text(trained[1], tmp_path / 'a.pth', cfg.pretty_text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=f"names '{name}', which is not registered"):
        load_model(file, 'cpu')
    assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize('file', ['weights.pkl', 'https://example.com/w', 'W.NPY'])
def test_the_model_reads_no_files(trained, tmp_path, file):
    cfg = Config.fromfile(CONFIG)
    cfg.model.decode_head.loss_decode.class_weight = file  # mmseg unpickles it
    path = with_text(trained[1], tmp_path / 'a.pth', cfg.pretty_text)
    with pytest.raises(SetupError, match=f"reads the file class_weight='{file}'"):
        load_model(path, 'cpu')


def test_a_config_beside_the_checkpoint(trained, tmp_path):
    file = with_text(trained[1], tmp_path / 'a.pth', None)
    with pytest.raises(SetupError, match='contains no config, and its folder has no config file'):
        find_model(file)
    Config.fromfile(CONFIG).dump(tmp_path / 'b.py')
    assert find_model(file)[0].model.type == 'EncoderDecoder'
    shutil.copy(tmp_path / 'b.py', tmp_path / 'c.py')
    with pytest.raises(SetupError, match='2 config files'):
        find_model(file)
    assert find_model(file, str(tmp_path / 'c.py'))[0].model.type == 'EncoderDecoder'


def test_weights_of_another_model_are_refused(trained, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    del content['state_dict']['decode_head.conv_seg.bias']
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(SetupError, match='lacks 1 of the model'):
        load_model(tmp_path / 'a.pth', 'cpu')
