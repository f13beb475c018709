"""The command `swinv2-mm`, and what the scripts in `tools` share.

It imports neither torch nor this package: help is instant, and `prepare_process` can set what torch reads as it is
loaded.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import glob
import importlib.util
import os
import pkgutil
import re
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HOME = Path(__file__).resolve().parent
"""The checkout, or the folder that the wheel is installed into."""
_INSTALLED = HOME / 'swinv2_mm' / '.mim' / 'tools'
TOOLS = _INSTALLED if _INSTALLED.is_dir() else HOME / 'tools'
COMMANDS = {
    'train': 'train.py',
    'test': 'test.py',
    'predict': 'predict.py',
    'new-config': 'new_config.py',
    'check-data': 'check_data.py',
    'export': 'export.py',
    'analyze': 'analyze.py',
    'inspect': 'inspect_model.py',
    'plan': 'plan.py',
    'web': 'web.py',
    'convert': 'model_converters/convert_checkpoint.py',
    'doctor': 'doctor.py',
    'benchmark backbone': 'analysis_tools/benchmark_backbone.py',
    'benchmark model': 'analysis_tools/benchmark_model.py',
}
"""Scripts in `tools` by the name of the command; the first line of the docstring of a script describes it."""
OPTIONS: dict[str, dict[str, Any]] = {
    '--config': dict(
        metavar='F', help='config file of a checkpoint that has none inside or beside it'
    ),
    '--trust-checkpoint': dict(
        action='store_true',
        help='accept checkpoints as they are, with code to run or NaN weights: only for files that you trust',
    ),
    '--device': dict(
        default='auto',
        metavar='DEV',
        help='cpu, cuda, cuda:1, mps, ...; auto: an accelerator if there is one (default: auto)',
    ),
    '--precision': dict(
        choices=['fp32', 'bf16', 'fp16'],
        default='fp32',
        help='of matrix products and convolutions; bf16 is faster where the processor has it (default: fp32)',
    ),
    '--launcher': dict(
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; the scripts dist_*.sh and slurm_*.sh set it',
    ),
}
"""Options that several scripts have."""
EXIT_SETUP = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default the one of this process, and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_overview())
        return 0
    if argv[0] in ('-V', '--version'):
        print(runpy.run_path(str(HOME / 'swinv2_mm' / 'version.py'))['__version__'])
        return 0
    name = next((name for name in (' '.join(argv[:2]), argv[0]) if name in COMMANDS), None)
    if name is None:
        return _refuse(_unknown(argv[0]))
    script = TOOLS / COMMANDS[name]
    if not script.is_file():
        return _refuse(f'swinv2-mm {name} needs a checkout of the repository: run it there.')
    sys.argv = [f'swinv2-mm {name}', *argv[len(name.split()) :]]
    try:
        return int(load_file(script).main())
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith('swinv2_mm'):
            raise
        return _refuse(
            f'The package {error.name} is not installed: swinv2-mm doctor shows what is missing.'
        )


def make_parser(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose usage names the script, or the command `swinv2-mm NAME`."""
    return argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]), description=description, epilog=epilog
    )


def add_options(parser: argparse.ArgumentParser, *names: str, example: str = '') -> None:
    """Add keys of `OPTIONS`, and `--cfg-options` if there is an example of its use."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])
    if example:
        parser.add_argument(
            '--cfg-options',
            nargs='+',
            default=[],
            metavar='KEY=VALUE',
            help=f'override the config, e.g. {example}',
        )


def image_size(text: str) -> tuple[int, int]:
    """Read `HxW`."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH in pixels, e.g. 512x768')
    return int(match[1]), int(match[2])


def require_paths(what: str, *names: str | None) -> None:
    """Leave with exit code 2 and a sentence if a file, folder or pattern is missing, before torch is imported."""
    for name in filter(None, names):
        folder, last = os.path.split(name)
        path = folder or '.' if last == 'last_checkpoint' else name  # which means its folder
        if '://' in name or os.path.exists(path) or glob.glob(name, recursive=True):
            continue
        if glob.has_magic(name):
            sys.exit(_refuse(f'The {what} {name} matches no file.'))
        beside = glob.glob(os.path.join(glob.escape(folder), '*'))
        sys.exit(_refuse(_missing(what, name, [Path(file).name for file in beside])))


def require_config(name: str | None) -> None:
    """Do the same for a config; see `find_config`."""
    if name is not None:
        try:
            find_config(name)
        except FileNotFoundError as missing:
            sys.exit(_refuse(str(missing)))


def find_config(name: str) -> str:
    """Return the path of a config: a file, or the name of one that comes with the package; `.py` may be left out.

    Raises:
        FileNotFoundError: There is no such config; the message names similar ones.
    """
    stem = name.removesuffix('.py')
    for path in (name, f'{stem}.py'):
        if os.path.isfile(path):
            return path
    configs = TOOLS.parent / 'configs'
    known = [file for file in sorted(configs.rglob('*.py')) if '_base_' not in file.parts]
    end = f'/{stem.removeprefix("configs/")}.py'
    found = [
        str(file) for file in known if f'/{file.relative_to(configs).as_posix()}'.endswith(end)
    ]
    if len(found) == 1:
        return found[0]
    near = [file.stem for file in (*known, *Path(name).parent.glob('*.py'))]
    raise FileNotFoundError(_missing('config', name, near))


def run(function: str, args: argparse.Namespace) -> int:
    """Call a function such as `'swinv2_mm.apis.web:web'` with the arguments, on the CPU unless they have a device."""
    prepare_process(getattr(args, 'device', 'cpu'))
    return int(pkgutil.resolve_name(function)(**vars(args)))


def prepare_process(device: str = 'auto') -> None:
    """Set what torch reads as it is loaded, without GPUs for `'cpu'`, and let Ctrl-C end the process."""
    # Threads that wait by spinning for long are several times slower as soon as they share their cores with other
    # work; threads that sleep at once lose a fifth on idle cores. A short spin is good at both.
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '20000')
    if device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    # Libraries catch KeyboardInterrupt in places while they are imported, and go on.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    """End the process at once on Ctrl-C; `swinv2_mm.engine.launch.train` handles it from the first step on."""
    os.write(2, b'interrupted\n')
    os._exit(EXIT_INTERRUPTED)


def load_file(path: Path) -> ModuleType:
    """Execute a Python file and return it as a module."""
    spec = importlib.util.spec_from_file_location(f'swinv2_mm_tool_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ImportError(f'{path} cannot be imported', name=path.stem)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _overview() -> str:
    """Return the list of commands with one line each."""
    width = max(map(len, COMMANDS))
    lines = [
        'usage: swinv2-mm COMMAND ...',
        '',
        'Swin Transformer V2 for detection and segmentation.',
        '',
    ]
    lines += [f'  {name:{width}}  {_described(TOOLS / file)}' for name, file in COMMANDS.items()]
    lines += ['', 'swinv2-mm COMMAND --help shows the options of a command.']
    return '\n'.join(lines)


def _described(script: Path) -> str:
    """Return the first line of the docstring of a script."""
    if not script.is_file():
        return 'Only in a checkout of the repository.'
    return (ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))) or '').split('\n')[0]


def _unknown(name: str) -> str:
    """Return the message for a command that does not exist."""
    longer = [command for command in COMMANDS if command.startswith(f'{name} ')]
    if longer:
        return f'swinv2-mm {name} is incomplete: use {" or ".join(longer)}.'
    close = difflib.get_close_matches(name, COMMANDS, n=2)
    meant = f'did you mean {" or ".join(close)}?' if close else 'swinv2-mm --help lists all.'
    return f'swinv2-mm has no command {name!r}; {meant}'


def _missing(what: str, name: str, known: Sequence[str]) -> str:
    """Return the message for an input that does not exist."""
    near = Path(name).name.removesuffix('.py' if what == 'config' else '')
    begun = sorted({other for other in known if len(near) > 3 and other.startswith(near)})
    close = begun or difflib.get_close_matches(near, dict.fromkeys(known), n=3, cutoff=0.7)
    if not close and len(near) > 3:
        words = re.split('[-_ ]+', near)
        close = [one for one in dict.fromkeys(known) if all(word in one for word in words)][:9]
    meant = f'; did you mean {" or ".join(close)}?' if close else '.'
    return f'The {what} {name} does not exist{meant}'


def _refuse(message: str) -> int:
    """Print a message about wrong use and return its exit code."""
    print(message, file=sys.stderr)
    return EXIT_SETUP


if __name__ == '__main__':
    sys.exit(main())
