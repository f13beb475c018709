"""Files that try to run code when they are loaded, which would write a marker file."""

import pickle
import struct
import zipfile
from pathlib import Path

import torch


class Runs:
    """Object whose pickle calls `exec`."""

    def __init__(self, marker):
        self.code = f'open({str(marker)!r}, "w").close()'

    def __reduce__(self):
        return exec, (self.code,)


def _call(function, *arguments):
    """Return pickle opcodes that call a global with a tuple of arguments."""
    return function + b'(' + b''.join(arguments) + b'tR'


def _global(module, name):
    return b'c' + f'{module}\n{name}\n'.encode()


def _text(text):
    raw = text.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def through_getattr(marker):
    """Return a pickle that uses `getattr` and globals that torch allows, and sets `exec` in a module of torch."""
    code = f'open({str(marker)!r}, "w").close()'
    getattr_ = _global('builtins', 'getattr')
    rebuild = _global('torch._utils', '_rebuild_device_tensor_from_numpy')
    builtins = _call(getattr_, getattr_, _text('__self__'))
    planted = _call(getattr_, builtins, _text('exec'))
    namespace = _call(getattr_, rebuild, _text('__globals__'))
    plant = namespace + _text('_get_restore_location') + planted + b's'
    fire = _call(rebuild, b'N', b'N', _text(code), b'N')
    return b'\x80\x02(' + plant + fire + b't.'


def reaching_for(module, name, attribute):
    """Return a pickle that reads an attribute of an allowed global."""
    found = _call(_global('builtins', 'getattr'), _global(module, name), _text(attribute))
    return b'\x80\x02}' + _text('state_dict') + found + b's.'


def forged_numpy(kind):
    """Return a pickle that makes numpy interpret data of the file as other types, such as object addresses."""
    address = _call(_global('_codecs', 'encode'), _text('A' * 8), _text('latin1'))
    array, dtype = _global('numpy', 'ndarray'), _global('numpy', 'dtype')
    size = b'(K\x01t'
    empty = _call(_global('numpy.core.multiarray', '_reconstruct'), array, b'(K\x00t', _text('b'))
    real = _call(dtype, _text('f8'), b'\x89', b'\x88')
    fields = b'}' + _text('a') + b'(' + _call(dtype, _text('O'), b'\x89', b'\x88') + b'K\x00ts'
    state = {
        'fields': b'(K\x03' + _text('<') + b'N(' + _text('a') + b't' + fields + b'K\x08K\x08K\x00t',
        'flags': b'(K\x03' + _text('<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x05t',
        'honest': b'(K\x03' + _text('<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t',
    }
    filled = b'(K\x01' + size + real + state.get(kind, state['honest']) + b'b\x89' + address + b't'
    made = {
        'object': _call(array, size, _text('O'), address),
        'strided': _call(array, size, _text('f8'), address, b'K\x00', b'(M\xff\xfft'),
        'object_number': _call(
            _global('numpy.core.multiarray', 'scalar'),
            _call(dtype, _text('O'), b'\x89', b'\x88'),
            address,
        ),
        'twice': empty + filled + b'b' + filled + b'b',
        'negative': empty + filled.replace(size, b'(J\xff\xff\xff\xffJ\xff\xff\xff\xfft') + b'b',
    }.get(kind, empty + filled + b'b')
    return b'\x80\x02}' + _text('state_dict') + made + b's.'


def write_hostile(folder: Path, marker: Path) -> dict[str, Path]:
    """Write one file of each kind."""
    weights = {'patch_embed.proj.weight': torch.zeros(8, 3, 4, 4)}
    files = {}

    def new(name):
        files[name] = folder / f'{name}.pth'
        return files[name]

    torch.save({'state_dict': weights, 'meta': Runs(marker)}, new('zip'))
    torch.save(
        {'model': weights, 'config': Runs(marker)},
        new('legacy'),
        _use_new_zipfile_serialization=False,
    )
    new('plain_pickle').write_bytes(pickle.dumps({'state_dict': Runs(marker)}, protocol=2))
    new('modern_pickle').write_bytes(pickle.dumps({'state_dict': Runs(marker)}, protocol=5))
    new('getattr').write_bytes(through_getattr(marker))
    with zipfile.ZipFile(new('getattr_zip'), 'w') as archive:
        archive.writestr('archive/data.pkl', through_getattr(marker))
        archive.writestr('archive/version', '3\n')
    disguised = folder / 'disguised.safetensors'
    disguised.write_bytes(pickle.dumps(Runs(marker)))
    files['disguised'] = disguised
    return files


KINDS = ('zip', 'legacy', 'plain_pickle', 'modern_pickle', 'getattr', 'getattr_zip', 'disguised')
