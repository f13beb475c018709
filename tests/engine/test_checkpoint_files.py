"""What a user may type where a checkpoint is wanted, and which checkpoint of a work directory is the newest."""

import os

import pytest
import torch
from mmengine.logging import MMLogger

from swinv2_mm.engine.checkpoint_files import (
    move_aside,
    newest_checkpoint,
    replace_file,
    require_checkpoint,
)
from swinv2_mm.engine.errors import SetupError


@pytest.fixture
def work_dir(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    for iteration in (1, 2):
        content = {
            'meta': {'iter': iteration},
            'message_hub': {},
            'state_dict': {'a': torch.ones(64)},
        }
        torch.save(content, folder / f'iter_{iteration}.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    return folder


def spoil(path, damage):
    """Damage a checkpoint as a crash, a full disk or a bad copy does."""
    data = bytearray(path.read_bytes())
    if damage == 'cut off':
        data = data[: len(data) // 2]
    elif damage == 'empty':
        data = bytearray()
    elif damage == 'one byte':
        data[data.index(torch.ones(64).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('damage', ['cut off', 'empty', 'one byte'])
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(work_dir, damage, capfd):
    spoil(work_dir / 'iter_2.pth', damage)
    MMLogger.get_instance(work_dir.parent.name)
    assert newest_checkpoint(work_dir) == str(work_dir / 'iter_1.pth')
    captured = capfd.readouterr()
    assert 'iter_2.pth is passed over: ' in captured.out + captured.err
    spoil(work_dir / 'iter_1.pth', damage)
    assert newest_checkpoint(work_dir) is None


@pytest.mark.parametrize(
    'pointer', ['', 'garbage', 'a\0b', '/gone/iter_9.pth', 'x' * 5000, 'iter_1.pth']
)
def test_a_pointer_that_is_wrong_is_not_needed(work_dir, pointer):
    (work_dir / 'last_checkpoint').write_text(pointer)
    assert newest_checkpoint(work_dir) == str(work_dir / 'iter_2.pth')


def test_the_pointer_may_name_another_folder_or_a_server(work_dir, tmp_path):
    other = tmp_path / 'elsewhere' / 'run'
    work_dir.rename(other.parent.mkdir() or other)
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(other / 'iter_1.pth'))
    assert newest_checkpoint(work_dir) == str(other / 'iter_2.pth')
    (work_dir / 'last_checkpoint').write_text('s3://bucket/run/iter_7.pth')
    assert newest_checkpoint(work_dir) == 's3://bucket/run/iter_7.pth'


@pytest.mark.parametrize(
    ('times', 'newest'),
    [((None, None), 'epoch_1.pth'), (('20250101_120001', '20250101_120000'), 'iter_1.pth')],
)
def test_what_the_file_says_counts_and_not_its_name_or_date(work_dir, times, newest):
    (work_dir / 'iter_2.pth').rename(work_dir / 'epoch_1.pth')
    for name, time in zip(('iter_1.pth', 'epoch_1.pth'), times, strict=True):
        content = torch.load(work_dir / name)
        content['meta'].update({'time': time} if time else {})
        torch.save(content, work_dir / name)
    os.utime(work_dir / 'epoch_1.pth', (0, 0))
    assert newest_checkpoint(work_dir) == str(work_dir / newest)


@pytest.mark.parametrize(
    ('begins', 'stays'),
    [
        (None, []),
        ('iter_2.pth', ['iter_1.pth', 'iter_2.pth']),
        (
            'interrupted.pth',
            ['best_loss_iter_3.pth', 'interrupted.pth', 'iter_1.pth', 'iter_2.pth'],
        ),
    ],
)
def test_checkpoints_of_another_training_are_moved_aside(work_dir, begins, stays):
    others = [
        work_dir / name for name in ('swin_256.pth', 'interrupted.pth', 'best_loss_iter_3.pth')
    ]
    for file in others:
        file.touch()
    (work_dir / 'metrics.json').touch()
    moved = move_aside(work_dir, begins, 'earlier')
    assert (work_dir / 'metrics.json').exists() == (begins is not None)
    assert sorted(file.name for file in work_dir.glob('*.pth')) == [*stays, 'swin_256.pth']
    assert sorted(file.name for file in work_dir.glob('earlier/*.pth')) == moved


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    replace_file(path, b'old')
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(28, 'full')))
    with pytest.raises(OSError, match='full'):
        replace_file(path, b'new')
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b'old']


def test_a_file_a_pointer_and_a_work_directory_all_mean_a_checkpoint(work_dir):
    assert require_checkpoint(work_dir / 'iter_1.pth') == str(work_dir / 'iter_1.pth')
    assert require_checkpoint(work_dir / 'last_checkpoint') == str(work_dir / 'iter_2.pth')
    assert require_checkpoint(work_dir) == str(work_dir / 'iter_2.pth')


def test_an_address_is_left_alone():
    assert require_checkpoint('https://example.org/a.pth') == 'https://example.org/a.pth'


def test_a_work_directory_may_have_been_moved(work_dir):
    moved = work_dir.rename(work_dir.parent / 'elsewhere')
    assert newest_checkpoint(moved) == str(moved / 'iter_2.pth')


def test_a_missing_file_is_reported_with_what_is_there(work_dir):
    with pytest.raises(
        SetupError, match=r'iter_3\.pth does not exist; .* holds iter_1\.pth, iter_2\.pth'
    ):
        require_checkpoint(work_dir / 'iter_3.pth')


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(SetupError, match='neither does the folder'):
        require_checkpoint(tmp_path / 'no' / 'iter_3.pth')


def test_a_folder_without_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(SetupError, match='holds no whole checkpoint'):
        require_checkpoint(tmp_path)


def test_a_pointer_to_a_deleted_checkpoint(work_dir):
    (work_dir / 'iter_2.pth').unlink()
    assert newest_checkpoint(work_dir) == str(work_dir / 'iter_1.pth')


def test_a_config_is_no_checkpoint(tmp_path):
    (tmp_path / 'my.py').write_text('model = dict()')
    with pytest.raises(SetupError, match=r'my\.py is a config: name a checkpoint or a work'):
        require_checkpoint(tmp_path / 'my.py')
