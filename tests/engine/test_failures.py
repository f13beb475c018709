"""A crash is reported in four lines; the traceback is in the log file."""

from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader

from swinv2_mm.engine.console import (
    continue_logging,
    find_hint,
    find_outside_cause,
    report_failure,
    was_interrupted,
)
from swinv2_mm.models.backbones.arch import resolve_arch


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise KeyError('no such picture')


def reported(error, tmp_path, capsys):
    continue_logging(MMLogger.get_instance(tmp_path.name, log_file=str(tmp_path / 'run.log')))
    report_failure(error, rank=0)
    return capsys.readouterr().err.splitlines()


def test_console_gets_message_place_and_log_and_the_log_gets_the_traceback(tmp_path, capsys):
    with pytest.raises(ValueError) as caught:
        resolve_arch('enormous')
    lines = reported(caught.value, tmp_path, capsys)
    assert lines[0].startswith('ValueError: ')
    assert 'enormous' in lines[0]
    assert 'arch.py:' in lines[1]
    assert lines[-1] == f'  full traceback: {tmp_path / "run.log"}'
    assert not any('Traceback' in line for line in lines)
    assert 'Traceback (most recent call last)' in (tmp_path / 'run.log').read_text()


def test_the_error_of_a_data_loading_process_is_told_as_it_happened(tmp_path, capsys):
    with pytest.raises(KeyError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    lines = reported(caught.value, tmp_path, capsys)
    assert 'no such picture' in lines[0]
    assert 'in a data loading process' in lines[0]
    assert len(lines[0]) < 200


@pytest.mark.parametrize(
    ('error', 'hint'),
    [
        (
            torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB'),
            'with_cp=True',
        ),
        (FloatingPointError('the loss is nan'), 'learning rate'),
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 'num_workers'),
        (RuntimeError('unable to allocate shared memory(shm) for file'), '--shm-size'),
        (RuntimeError('CUDA error: device-side assert triggered'), '--device cpu'),
        (RuntimeError('The server socket has failed: EADDRINUSE'), 'PORT='),
        (OSError(28, 'No space left on device'), 'disk is full'),
        (ValueError('Expected more than 1 value per channel when training'), 'drop_last=True'),
        (RuntimeError('stack expects each tensor to be equal size, but got'), 'batch_size of that'),
        (ValueError('num_channels must be divisible by num_groups'), 'num_groups'),
    ],
)
def test_known_troubles_come_with_a_remedy(error, hint):
    assert hint in find_hint(error)


@pytest.mark.parametrize(
    'error', [ConnectionResetError(104, 'Connection reset by peer'), EOFError()]
)
def test_a_lost_connection_is_a_lost_worker_only_inside_of_a_data_loader(error):
    def lost(samples):
        raise error

    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader([0], collate_fn=lost)))
    assert 'num_workers' in find_hint(caught.value)
    assert find_hint(type(error)(*error.args)) is None


def test_unknown_troubles_come_without_one():
    assert find_hint(ValueError('something new')) is None


def test_an_interruption_is_known_under_another_name():
    with pytest.raises(SyntaxError) as caught:
        try:
            raise KeyboardInterrupt
        except:  # noqa: E722  as mmengine does
            raise SyntaxError('Failed to format the config file') from None
    assert was_interrupted(caught.value)
    assert was_interrupted(KeyboardInterrupt())
    assert not was_interrupted(ValueError())


def test_a_folder_of_the_run_that_is_gone_means_that_the_run_was_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run/1').mkdir(parents=True)
    MMLogger.get_instance('removed', log_file=str(tmp_path / 'run/1/1.log'))
    with pytest.raises(FileNotFoundError) as caught:
        Path('run/1/vis_data/scalars.json').write_text('')  # relative, as a work directory may be
    assert 'was removed' in find_outside_cause(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        Path('run/1/missing').read_text()
    assert find_outside_cause(caught.value) is None
    with pytest.raises(FileNotFoundError) as caught:
        Path('data/1.jpg').read_bytes()
    assert find_outside_cause(caught.value) is None
