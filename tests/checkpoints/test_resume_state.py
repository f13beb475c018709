"""Test that nothing in a checkpoint from which a Runner of mmengine resumes is executed or used as a path."""

from collections import OrderedDict

import pytest
import torch
from mmengine.infer import BaseInferencer
from mmengine.logging import HistoryBuffer
from toy_runs import toy_runner

from swinv2_mm.checkpoints import (
    CheckpointError,
    guard_mmengine,
    read_checkpoint_file,
    trust_checkpoints,
)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Return a function that changes a checkpoint of one epoch, and the file that it writes."""
    (tmp_path / 'trained').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    toy_runner(tmp_path / 'trained').train()

    def change(in_meta=(), info=(), **content):
        found = torch.load(tmp_path / 'trained/epoch_1.pth', weights_only=False)
        found['meta'].update(in_meta)
        found['message_hub']['runtime_info'].update(info)
        torch.save({**found, **content}, tmp_path / 'foreign.pth')
        return str(tmp_path / 'foreign.pth')

    return change


def resumed(folder, file, **options):
    folder.mkdir(exist_ok=True)
    with guard_mmengine():
        runner = toy_runner(folder, load_from=file, resume=True, **options)
        runner.train()
    return runner


PROGRAMS = {
    'code': 'import pathlib\npathlib.Path({marker!r}).touch()\n',
    'import': 'custom_imports = dict(imports=["planted"])\n',
    'base': '_base_ = [{planted!r}]\n',
    'behind gpu_ids': 'gpu_ids = range(0, 1)\nopen({marker!r}, "w").close()\n',
    'in gpu_ids': 'gpu_ids = [open({marker!r}, "w").close()]\n',
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_the_text_of_a_config_is_not_executed(program, foreign, tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'planted.py').write_text(f'open({str(marker)!r}, "w").close()\n')
    text = PROGRAMS[program].format(marker=str(marker), planted=str(tmp_path / 'planted.py'))
    file = foreign(in_meta=dict(config=text, cfg=text), info=dict(cfg=text))
    assert resumed(tmp_path / 'work', file).epoch == 2
    with guard_mmengine(), pytest.raises(ValueError, match='Cannot find the config'):
        BaseInferencer._init_model(None, {}, file)
    assert not marker.exists()


def test_the_numbers_of_processes_are_compared(foreign, tmp_path):
    for text in ('gpu_ids = range(0, 8)', 'model = 1\ngpu_ids = [0, 1]\n'):
        with pytest.raises(RuntimeError, match='Number of GPUs'):
            resumed(tmp_path / 'work', foreign(in_meta=dict(config=text)))


@pytest.mark.parametrize(
    'path',
    ['{victim}/best_a.pth', '{victim}', '../victim/best_a.pth', '..', '../here', 'best_b.pth', 7],
)
@pytest.mark.parametrize('keys', [['score'], ['score', 'other']])
def test_no_file_outside_of_the_work_directory_is_removed(path, keys, foreign, tmp_path):
    for name in ('victim/best_a.pth', 'victim/photo.jpg', 'here/best_b.pth', 'epoch_x.pth'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = {file for file in tmp_path.rglob('*') if file.is_file()}
    path = path.format(victim=tmp_path / 'victim') if isinstance(path, str) else path
    info = dict.fromkeys(['last_ckpt', 'best_ckpt', 'best_ckpt_score', 'best_ckpt_other'], path)
    info['keep_ckpt_ids'] = ['/../../epoch_x', 1.5, 'x']
    hook = dict(type='CheckpointHook', save_best=keys, rule='greater', max_keep_ckpts=1)
    runner = resumed(tmp_path / 'work', foreign(info=info), default_hooks=dict(checkpoint=hook))
    best = sorted((tmp_path / 'work').glob('best_*.pth'))
    assert len(best) == len(keys)
    info = runner.message_hub.runtime_info
    assert str(best[-1]) == info['best_ckpt' if len(keys) == 1 else 'best_ckpt_score']
    assert before <= set(tmp_path.rglob('*')) | {tmp_path / 'foreign.pth'}


def test_the_previous_best_checkpoint_of_the_work_directory_is_replaced(tmp_path):
    """Also in a work directory that was moved."""
    hook = dict(type='CheckpointHook', interval=1, save_best='score', rule='greater')
    (tmp_path / 'work').mkdir()
    runner = toy_runner(tmp_path / 'work', default_hooks=dict(checkpoint=hook))
    runner.train()
    (tmp_path / 'work').rename(tmp_path / 'moved')
    (best,) = (tmp_path / 'moved').glob('best_*.pth')
    best = best.rename(best.with_name('best_score_epoch_9.pth'))
    content = torch.load(tmp_path / 'moved/epoch_1.pth', weights_only=False)
    path = str(tmp_path / 'work' / best.name)
    content['message_hub']['runtime_info'].update(best_score=-1, best_ckpt=path)
    torch.save(content, tmp_path / 'moved/epoch_1.pth')
    file = str(tmp_path / 'moved/epoch_1.pth')
    resumed(tmp_path / 'moved', file, default_hooks=dict(checkpoint=hook))
    assert [file.name for file in (tmp_path / 'moved').glob('best_*')] == ['best_score_epoch_2.pth']


def test_what_mmengine_does_not_write_is_an_error_in_one_sentence(foreign, tmp_path):
    for change in (
        dict(in_meta=dict(epoch='1')),
        dict(in_meta=dict(iter=None)),
        dict(meta=[1]),
        dict(message_hub=[1]),
    ):
        file = foreign(**change)
        with pytest.raises(CheckpointError, match=r'foreign\.pth: ') as caught:
            resumed(tmp_path / 'work', file)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('where', ['state_dict', 'ema_state_dict', 'optimizer'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(where, value, foreign, tmp_path):
    state = {'layer.weight': torch.tensor([[1.0, value]]), 'layer.bias': torch.zeros(1)}
    file = foreign(**{where: state})
    for resume in (True, False):
        with guard_mmengine(), pytest.raises(CheckpointError, match=rf'{where}\.layer\.weight'):
            toy_runner(tmp_path / 'trained', load_from=file, resume=resume).train()
    with guard_mmengine(), pytest.raises(CheckpointError, match=rf'{where}\.layer\.weight'):
        toy_runner(tmp_path / 'trained', load_from=file).test()
    with guard_mmengine(), trust_checkpoints():
        toy_runner(tmp_path / 'trained', load_from=foreign(state_dict=state)).test()


def test_masks_single_numbers_and_gradients_may_be_infinite(foreign, tmp_path):
    state = {
        'layer.weight': torch.ones(1, 2),
        'layer.bias': torch.zeros(1),
        'attn_mask': torch.full((2, 2), float('-inf')),
        'best': torch.tensor(float('inf')),
    }
    file = foreign(state_dict=state, gradients={'layer.bias': torch.tensor([float('inf')])})
    with guard_mmengine():
        toy_runner(tmp_path / 'trained', load_from=file).test()


def test_the_log_does_not_replace_methods(tmp_path, monkeypatch):
    """mmengine pickles the methods of its log and puts those of a file into the class."""
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    with monkeypatch.context() as patch:
        patch.setitem(HistoryBuffer._statistics_methods, 'mean', OrderedDict)
        patch.setitem(HistoryBuffer._statistics_methods, 'planted', OrderedDict)
        torch.save({'log': buffer}, tmp_path / 'file.pth')
    read = read_checkpoint_file(tmp_path / 'file.pth')['log']
    assert type(read) is HistoryBuffer and read.statistics('mean') == 2
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean
    assert 'planted' not in HistoryBuffer._statistics_methods
