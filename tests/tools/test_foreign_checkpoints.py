"""Checkpoints made by somebody else: `tools/train.py --resume` and `tools/test.py` in processes of their own."""

import copy
import re

import pytest
import torch
from tool_runs import FAST, SEGMENTATION

from swinv2_mm.apis.models import load_model


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
