"""Files that try to run code when they are loaded: each would write a marker file."""

import pickle
import struct
import zipfile
from pathlib import Path

import torch


class Runs:
    """Pickles into a call of `exec`."""

    def __init__(self, marker):
        self.code = f'open({str(marker)!r}, "w").close()'

    def __reduce__(self):
        return exec, (self.code,)


def _call(function, *arguments):
    """Pickle opcodes: a global, its arguments in a tuple, and the call."""
    return function + b'(' + b''.join(arguments) + b'tR'


def _global(module, name):
    return b'c' + f'{module}\n{name}\n'.encode()


def _text(text):
    raw = text.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def through_getattr(marker):
    """A pickle that needs `getattr` alone besides what torch deems safe: it plants `exec` in torch's own module."""
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
    """A pickle that takes one attribute of something that may be named."""
    found = _call(_global('builtins', 'getattr'), _global(module, name), _text(attribute))
    return b'\x80\x02}' + _text('state_dict') + found + b's.'


def write_hostile(folder: Path, marker: Path) -> dict[str, Path]:
    """Writes one file of each kind."""
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
