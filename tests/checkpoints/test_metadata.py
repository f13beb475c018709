"""Test which metadata of a checkpoint is loaded: harmless values, and no forged ones."""

import argparse
import collections
import datetime
import types
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hostile import forged_numpy, reaching_for
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer

from swinv2_mm.checkpoints import (
    CheckpointError,
    UntrustedCheckpointError,
    read_checkpoint_file,
)

NOW = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    'value',
    [
        Config(dict(model=dict(type='FPN', scales=[1, 2]))),
        ConfigDict(optimizer=dict(lr=0.1), hooks=[dict(type='EMAHook')]),
        {'date': NOW.date(), 'time': NOW.time(), 'now': NOW, 'took': datetime.timedelta(hours=2)},
        collections.OrderedDict(a=1),
        collections.Counter('aab'),
        argparse.Namespace(lr=0.1),
        types.SimpleNamespace(lr=0.1),
        np.float64(0.5),
        [range(3), slice(1, 2), frozenset([1]), {1, 2}, 2**70, 1j, b'bytes', None, True],
        torch.__version__,
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_metadata_is_loaded_as_it_was(value, tmp_path):
    torch.save({'weight': torch.ones(2), 'meta': value}, tmp_path / 'file.pth')
    loaded = read_checkpoint_file(tmp_path / 'file.pth')['meta']
    assert type(loaded) is type(value)
    if isinstance(value, Config):
        loaded, value = loaded.to_dict(), value.to_dict()
    assert loaded == value


def test_metadata_that_is_loaded_as_something_plainer(tmp_path):
    content = {
        'where': Path('/tmp/x'),
        'losses': collections.defaultdict(list, box=[0.5]),
        'history': np.arange(3),
        'buffer': HistoryBuffer([1.0], [1]),
    }
    torch.save(content, tmp_path / 'file.pth')
    loaded = read_checkpoint_file(tmp_path / 'file.pth')
    assert loaded['where'] == PurePosixPath('/tmp/x')  # no access to files
    assert type(loaded['losses']) is dict and loaded['losses'] == {'box': [0.5]}
    assert loaded['history'].tolist() == [0, 1, 2]
    assert loaded['buffer'].statistics('mean') == 1.0


@pytest.mark.parametrize(
    ('module', 'name', 'attribute'),
    [
        ('mmengine.logging.history_buffer', 'HistoryBuffer', '__init__'),
        ('mmengine.logging.history_buffer', 'HistoryBuffer', 'register_statistics'),
        ('torch._utils', '_rebuild_tensor_v2', '__globals__'),
        ('numpy._core.multiarray', 'scalar', '__globals__'),
        ('collections', 'OrderedDict', 'fromkeys'),
        ('builtins', 'getattr', '__self__'),
    ],
)
def test_the_getattr_of_the_log_gives_nothing_else(module, name, attribute, tmp_path):
    file = tmp_path / 'file.pth'
    write_pickle(file, reaching_for(module, name, attribute))
    with pytest.raises(UntrustedCheckpointError, match=f"getattr asks for '{attribute}'"):
        read_checkpoint_file(file)


def write_pickle(file, content):
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data.pkl', content)
        archive.writestr('archive/version', '3\n')


@pytest.mark.parametrize(
    'kind', ['object', 'strided', 'object_number', 'fields', 'twice', 'negative']
)
def test_numpy_is_not_told_what_the_bytes_of_a_file_are(kind, tmp_path):
    """numpy crashes on some of these files when the result is accessed or freed."""
    write_pickle(tmp_path / 'file.pth', forged_numpy(kind))
    with pytest.raises(UntrustedCheckpointError, match=r'\(Unsupported [^/]* numpy'):
        read_checkpoint_file(tmp_path / 'file.pth')


@pytest.mark.parametrize('kind', ['honest', 'flags'])
def test_the_forged_arrays_differ_from_an_honest_one_in_what_is_forged(kind, tmp_path):
    write_pickle(tmp_path / 'file.pth', forged_numpy(kind))
    array = read_checkpoint_file(tmp_path / 'file.pth')['state_dict']
    assert array.tolist() == [np.frombuffer(b'A' * 8)[0]]
    assert array.dtype.flags == 0  # not controlled by the file


def test_arrays_are_written_again_as_they_were(tmp_path):
    """A resumed training writes the log that it has read."""
    content = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype='>i4'),
        np.array(['a', 'bc']),
        np.array([True, False]),
        np.float32(0.5),
        np.int64(-3),
        np.zeros((0, 2)),
    ]
    torch.save(content, tmp_path / 'file.pth')
    loaded = read_checkpoint_file(tmp_path / 'file.pth')
    torch.save(loaded, tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=False)
    for was, read, now in zip(content, loaded, again):
        assert type(now) is type(was)
        for item in (read, now):
            assert item.dtype == was.dtype.newbyteorder('=')  # so does numpy
            assert item.shape == was.shape
            assert item.tolist() == was.tolist()


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'value',
    [
        Calls(bytes, 10**12),
        Calls(list, Calls(range, 10**12)),
        Calls(Config, {}, None, '/dev/zero'),
    ],
    ids=['bytes', 'range', 'Config'],
)
def test_calls_that_would_fill_the_memory_or_read_a_file(value, tmp_path):
    torch.save({'weight': torch.ones(2), 'meta': value}, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match='Unsupported'):
        read_checkpoint_file(tmp_path / 'file.pth')
