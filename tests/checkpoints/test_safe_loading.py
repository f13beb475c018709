"""Test that checkpoints cannot run code, and that harmless metadata is loaded."""

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hostile import KINDS, write_hostile
from mmengine.config import Config
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    _load_checkpoint,
    _load_checkpoint_with_prefix,
    load_checkpoint,
)
from torch import nn
from toy_runs import Toy, toy_runner

from swinv2_mm.checkpoints import (
    CheckpointError,
    UntrustedCheckpointError,
    guard_mmengine,
    load_pretrained,
    read_checkpoint_file,
    trust_checkpoints,
)
from swinv2_mm.checkpoints.convert import convert_checkpoint, publish_checkpoint
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.launch import evaluate, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=KINDS)
def hostile(request, tmp_path):
    """Return a hostile file, and the marker that its code would write."""
    marker = tmp_path / 'marker'
    file = write_hostile(tmp_path, marker)[request.param]
    yield str(file)
    assert not marker.exists(), 'the code in the checkpoint ran'


@pytest.fixture
def guarded():
    with guard_mmengine():
        yield


def test_the_hostile_files_are_hostile(tmp_path):
    """Make sure that each of these files runs code without protection."""
    marker = tmp_path / 'marker'
    files = write_hostile(tmp_path, marker)
    for kind in ('zip', 'legacy', 'plain_pickle', 'modern_pickle', 'getattr', 'getattr_zip'):
        try:
            torch.load(files[kind], weights_only=False)
        except Exception as error:  # some fail after running code
            assert not isinstance(error, FileNotFoundError)
        assert marker.exists(), kind
        marker.unlink()


def test_our_own_ways(hostile, nano, tmp_path):
    for load in (
        read_checkpoint_file,
        functools.partial(read_checkpoint_file, mmap=True),
        functools.partial(load_pretrained, nano()),
        functools.partial(convert_checkpoint, target=tmp_path / 'out.pth'),
        functools.partial(publish_checkpoint, target=tmp_path / 'out.safetensors'),
    ):
        with pytest.raises(CheckpointError):
            load(hostile)


@pytest.mark.usefixtures('guarded')
def test_the_ways_of_mmengine(hostile, nano):
    for load in (
        _load_checkpoint,
        CheckpointLoader.load_checkpoint,
        functools.partial(load_checkpoint, nn.Linear(2, 2)),
        functools.partial(_load_checkpoint_with_prefix, 'backbone.'),
    ):
        with pytest.raises(CheckpointError):
            load(hostile)


def test_init_cfg_of_the_backbone_needs_no_guard(hostile, nano):
    for prefix in (None, 'backbone.'):
        backbone = nano(init_cfg=dict(type='Pretrained', checkpoint=hostile, prefix=prefix))
        with pytest.raises(CheckpointError):
            backbone.init_weights()


@pytest.mark.usefixtures('guarded')
def test_a_runner(hostile, tmp_path):
    """Test `load_from`, `resume` and `init_cfg` of a model, which OpenMMLab tools use."""
    for options in (dict(load_from=hostile), dict(load_from=hostile, resume=True)):
        with pytest.raises(CheckpointError):
            toy_runner(tmp_path, **options).train()
    with pytest.raises(CheckpointError):
        toy_runner(tmp_path, load_from=hostile).test()
    with pytest.raises(CheckpointError):
        toy_runner(tmp_path, Toy(dict(type='Pretrained', checkpoint=hostile))).train()


@pytest.mark.usefixtures('guarded')
def test_over_http(tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    files = write_hostile(tmp_path, marker)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for kind in KINDS:
                address = f'http://127.0.0.1:{server.server_port}/{files[kind].name}'
                with pytest.raises(CheckpointError):
                    _load_checkpoint(address)
        finally:
            server.shutdown()
            thread.join()
    assert not marker.exists()


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, num_train=4, num_val=2, image_size=(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SWINV2_MM_SHAPES', str(root))
        cfg = Config.fromfile(next((ROOT / 'configs').glob('quickstart/mask-rcnn_*.py')))
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.dump(str(root / 'config.py'))
    return root, str(root / 'config.py')


def test_our_tools_stop_with_one_plain_sentence(quickstart, tmp_path, monkeypatch, capsys):
    root, config = quickstart
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root))
    marker = tmp_path / 'marker'
    file = str(write_hostile(tmp_path, marker)['getattr_zip'])
    work_dir = str(tmp_path / 'work')
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=file)
    cfg.dump(str(tmp_path / 'init.py'))
    for run in (
        lambda: evaluate(config, file, work_dir=work_dir, device='cpu'),
        lambda: train(config, resume=file, work_dir=work_dir, device='cpu', max_iters=1),
        lambda: train(
            config, cfg_options=[f'load_from={file}'], work_dir=work_dir, device='cpu', max_iters=1
        ),
        lambda: train(str(tmp_path / 'init.py'), work_dir=work_dir, device='cpu', max_iters=1),
    ):
        assert run() == 2
        err = capsys.readouterr().err.strip()
        assert 'runs code from the file' in err and '--trust-checkpoint' in err
        assert len(err.splitlines()) == 1
    assert not marker.exists()


@pytest.mark.parametrize('tool', ['convert_checkpoint.py', 'publish_model.py'])
def test_the_converters_refuse_and_trust_when_told(tool, tmp_path, run_tool):
    marker = tmp_path / 'marker'
    file = write_hostile(tmp_path, marker)['zip']
    done = run_tool(tool, file, tmp_path / 'out.pth')
    assert done.returncode == 2
    assert 'runs code from the file' in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not marker.exists()
    run_tool(tool, file, tmp_path / 'out.pth', '--trust-checkpoint')
    assert marker.exists()


@pytest.mark.usefixtures('guarded')
def test_trust_is_given_for_a_while_only(tmp_path):
    marker = tmp_path / 'marker'
    file = write_hostile(tmp_path, marker)['zip']
    with trust_checkpoints(False), pytest.raises(UntrustedCheckpointError):
        _load_checkpoint(str(file))
    with trust_checkpoints():
        _load_checkpoint(str(file))
    assert marker.exists()
    with pytest.raises(UntrustedCheckpointError, match='exec'):
        _load_checkpoint(str(file))


@pytest.mark.usefixtures('guarded')
def test_a_training_resumes_with_its_log_and_optimizer(tmp_path):
    """Checkpoints of mmengine contain its log, which pickles methods with `getattr`, and numpy numbers."""
    runner = toy_runner(tmp_path)
    runner.train()
    again = toy_runner(tmp_path, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    again.train()
    assert again.epoch == 2 and again.iter == 4
    for key, value in runner.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[key], value)
    losses = again.message_hub.get_scalar('train/loss')
    assert len(losses.data[0]) == 4
    assert losses.statistics('mean', 2) == pytest.approx(losses.data[0][-2:].mean())


def test_what_others_allow_does_not_replace_our_getattr(tmp_path):
    """Allowing `getattr` is common advice for checkpoints of mmengine."""
    marker = tmp_path / 'marker'
    file = write_hostile(tmp_path, marker)['getattr_zip']
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([getattr])
    try:
        with pytest.raises(UntrustedCheckpointError):
            read_checkpoint_file(file)
        assert getattr in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert not marker.exists()


def test_the_guard_replaces_every_loader_of_mmengine_and_gives_it_back():
    before = dict(CheckpointLoader._schemes)
    assert len(before) > 8
    with guard_mmengine():
        for scheme, loader in CheckpointLoader._schemes.items():
            assert loader.__module__ == 'swinv2_mm.checkpoints.guard', scheme
        with guard_mmengine():
            pass
        assert CheckpointLoader._schemes[''].__module__ == 'swinv2_mm.checkpoints.guard'
    assert dict(CheckpointLoader._schemes) == before


@pytest.mark.parametrize(
    ('imported', 'owner'),
    [
        ('swinv2_mm.checkpoints.convert, swinv2_mm.models, swinv2_mm.engine', 'mmengine.runner'),
        ('swinv2_mm.checkpoints.guarded', 'swinv2_mm.checkpoints.guard'),
    ],
)
def test_only_the_module_for_configs_guards_mmengine_on_import(imported, owner):
    code = (
        f'import {imported}\n'
        'from mmengine.runner.checkpoint import CheckpointLoader\n'
        'print({loader.__module__ for loader in CheckpointLoader._schemes.values()})\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    owners = eval(done.stdout.splitlines()[-1])
    assert len(owners) == 1 and owners.pop().startswith(owner)


def test_nothing_stays_allowed_after_a_load(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'weight': torch.ones(2)}, tmp_path / 'file.pth')
    read_checkpoint_file(tmp_path / 'file.pth')
    assert set(torch.serialization.get_safe_globals()) == before
