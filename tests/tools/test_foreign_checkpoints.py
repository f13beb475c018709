"""Checkpoints made by somebody else: `tools/train.py --resume` and `tools/test.py` in processes of their own."""

import copy
import re

import pytest
import torch
from tool_runs import FAST, SEGMENTATION

from swinv2_mm.apis import models
from swinv2_mm.apis.models import load_model
from swinv2_mm.checkpoints import CheckpointError
from swinv2_mm.engine.errors import SetupError


@pytest.fixture(scope='module')
def trained(run_tool, tmp_path_factory):
    """The content of a checkpoint after one iteration."""
    work_dir = tmp_path_factory.mktemp('trained')
    run = ['tools/train.py', SEGMENTATION, '--work-dir', work_dir, '--device', 'cpu']
    done = run_tool(*run, '--max-iters', 1, '--cfg-options', *FAST)
    assert done.returncode == 0, done.stderr
    return torch.load(work_dir / 'iter_1.pth', weights_only=False)


def test_resuming_runs_and_removes_nothing_of_others(trained, run_tool, tmp_path):
    marker, photo = tmp_path / 'marker', tmp_path / 'best_photo.jpg'
    photo.touch()
    program = f'open({str(marker)!r}, "w").close()\n'
    content = copy.deepcopy(trained)
    content['meta'].update(config=program, cfg=program)
    info = content['message_hub']['runtime_info']
    info.update(cfg=program, best_score=-1.0, keep_ckpt_ids=['../x'])
    info.update(dict.fromkeys(['last_ckpt', 'best_ckpt', 'best_ckpt_mIoU'], str(photo)))
    torch.save(content, tmp_path / 'foreign.pth')
    run = ['tools/train.py', SEGMENTATION, '--resume', tmp_path / 'foreign.pth', '--device', 'cpu']
    save_best = ['default_hooks.checkpoint.save_best=mIoU', 'default_hooks.checkpoint.rule=greater']
    run += ['--work-dir', tmp_path / 'work', '--max-iters', 2]
    done = run_tool(*run, '--cfg-options', *FAST, *save_best)
    assert done.returncode == 0, done.stderr
    assert photo.exists() and not marker.exists()
    assert (tmp_path / 'work/iter_2.pth').exists() and list((tmp_path / 'work').glob('best_*.pth'))
    written = torch.load(tmp_path / 'work/iter_2.pth', weights_only=False)
    assert program not in (written['meta']['cfg'], written['message_hub']['runtime_info']['cfg'])


def test_weights_that_are_not_numbers_stop_with_one_sentence(trained, run_tool, tmp_path):
    content = copy.deepcopy(trained)
    content['state_dict']['backbone.patch_embed.proj.bias'][0] = float('nan')
    file = tmp_path / 'nan.pth'
    torch.save(content, file)
    work_dir = ['--work-dir', tmp_path / 'work', '--device', 'cpu', '--cfg-options', *FAST]
    for run in (
        ['tools/test.py', SEGMENTATION, file, *work_dir],
        ['tools/train.py', SEGMENTATION, '--resume', file, *work_dir],
        ['tools/train.py', SEGMENTATION, '--max-iters', 1, *work_dir, f'load_from={file}'],
    ):
        done = run_tool(*run)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert 'state_dict.backbone.patch_embed.proj.bias' in line and 'nan.pth' in line


def test_names_of_a_compiled_model_load_everywhere(trained, run_tool, tmp_path):
    content = copy.deepcopy(trained)
    content['state_dict'] = {
        re.sub('^(backbone|decode_head)', r'module._orig_mod.\1._orig_mod', key): value
        for key, value in trained['state_dict'].items()
    }
    file = tmp_path / 'compiled.pth'
    torch.save(content, file)
    place = ['--work-dir', tmp_path / 'work', '--device', 'cpu']
    train = ['tools/train.py', SEGMENTATION, *place]
    anew = [f'load_from={file}', 'optim_wrapper.optimizer.lr=0.0']
    for run in (
        ['tools/test.py', SEGMENTATION, file, *place, '--cfg-options', *FAST],
        [*train, '--resume', file, '--max-iters', 2, '--cfg-options', *FAST],
        [*train, '--max-iters', 1, '--cfg-options', *FAST, *anew],
    ):
        done = run_tool(*run)
        assert done.returncode == 0, done.stderr
        assert 'lacks' not in done.stdout + done.stderr
    # Without a learning rate, the weights are those of the file.
    written = torch.load(tmp_path / 'work/iter_1.pth', weights_only=False)['state_dict']
    for name, value in trained['state_dict'].items():
        assert 'running_' in name or torch.equal(written[name], value) or 'batches' in name, name
    model = load_model(file, 'cpu', config=SEGMENTATION)
    assert torch.equal(
        model.state_dict()['decode_head.conv_seg.weight'],
        trained['state_dict']['decode_head.conv_seg.weight'],
    )


def test_other_classes_start_new_classifiers_with_a_sentence(trained, run_tool, tmp_path):
    content = copy.deepcopy(trained)
    state, stored = content['state_dict'], content['meta']['dataset_meta']
    names = [name for name in state if 'conv_seg' in name]
    for name in names:
        state[name] = torch.cat([state[name], state[name][:1]])
    stored['classes'] = (*stored['classes'], 'another')
    torch.save(content, tmp_path / 'other.pth')
    run = ['tools/train.py', SEGMENTATION, '--max-iters', 1, '--work-dir', tmp_path / 'work']
    options = [*FAST, f'load_from={tmp_path / "other.pth"}', 'optim_wrapper.optimizer.lr=0.0']
    done = run_tool(*run, '--device', 'cpu', '--cfg-options', *options)
    assert done.returncode == 0, done.stderr
    told = ' '.join((done.stdout + done.stderr).split())
    count = len(stored['classes'])
    assert f'lacks {len(names)} of the' in told and 'they start from their initialisation' in told
    assert f'is of {count} classes and the data have {count - 1}' in told
    written = torch.load(tmp_path / 'work/iter_1.pth', weights_only=False)['state_dict']
    assert torch.equal(
        written['backbone.patch_embed.proj.weight'], state['backbone.patch_embed.proj.weight']
    )


def load_trained(content, tmp_path):
    torch.save(content, tmp_path / 'file.pth')
    return load_model(tmp_path / 'file.pth', 'cpu', config=SEGMENTATION)


def test_averaged_weights_of_a_whole_model_go_before_raw_ones(trained, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(models, 'warn', told.append)
    content = copy.deepcopy(trained)
    content['state_dict_ema'] = {
        key: value + 1 if value.is_floating_point() else value
        for key, value in trained['state_dict'].items()
    }
    model = load_trained(content, tmp_path)
    name = 'decode_head.conv_seg.bias'
    assert torch.equal(model.get_parameter(name), trained['state_dict'][name] + 1)
    assert len(told) == 1 and "under 'state_dict_ema' are loaded, not state_dict" in told[0]
    del content['state_dict_ema']
    content['model'] = content.pop('state_dict')
    model = load_trained(content, tmp_path)
    assert torch.equal(model.get_parameter(name), trained['state_dict'][name])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.long(), 'holds torch.int64 for .* where the model has real numbers'),
        (lambda x: x.to_sparse() if x.dim() == 2 else x, 'a tensor without plain values'),
        (lambda x: x > 0, 'torch.bool'),
        (lambda x: x + 0j, 'torch.complex64'),
    ],
)
def test_other_kinds_of_numbers_are_not_cast(trained, tmp_path, change, message):
    content = copy.deepcopy(trained)
    state = content['state_dict']
    for key, value in state.items():
        state[key] = change(value) if value.is_floating_point() else value
    with pytest.raises(SetupError, match=message):
        load_trained(content, tmp_path)


def with_state(trained, **changes):
    return {**trained, 'state_dict': {**trained['state_dict'], **changes}}


def test_contents_that_are_no_weights_by_name(trained, tmp_path):
    name = 'decode_head.conv_seg.bias'
    for content, message in (
        ({**trained, 'state_dict': 0.5}, 'its state_dict is a float, not a dict'),
        ({**trained, 'ema_state_dict': None}, 'its ema_state_dict is a NoneType'),
        (
            {**trained, 'state_dict': {**trained['state_dict'], 5: torch.ones(2)}},
            '5 in its state_dict is not a name',
        ),
        (with_state(trained, **{name: 'text'}), f'{name} in its state_dict is a str, not a tensor'),
        (
            with_state(trained, **{f'module.{name}': torch.ones(5)}),
            f'holds both {name} and module.{name}',
        ),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_trained(content, tmp_path)


def test_a_whole_model_that_does_not_tell_its_window(trained, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(models, 'warn', told.append)
    content = copy.deepcopy(trained)
    load_trained(content, tmp_path)
    assert not told
    del content['state_dict']['backbone.pretrained_window_sizes']
    load_trained(content, tmp_path)
    assert len(told) == 1 and 'does not tell at which window it was trained' in told[0]
