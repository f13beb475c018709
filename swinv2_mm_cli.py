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
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

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
    'web': 'web.py',
    'convert': 'model_converters/convert_checkpoint.py',
    'doctor': 'doctor.py',
    'benchmark backbone': 'analysis_tools/benchmark_backbone.py',
    'benchmark model': 'analysis_tools/benchmark_model.py',
}
"""Scripts in `tools` by the name of the command; the first line of the docstring of a script describes it."""
EXIT_SETUP = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The command and its arguments; default: those of this process.
    """
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


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option `--device`."""
    parser.add_argument(
        '--device',
        default='auto',
        metavar='DEV',
        help='cpu, cuda, cuda:1, mps, ...; auto: an accelerator if there is one (default: auto)',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the option `--launcher`."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; the scripts dist_*.sh and slurm_*.sh set it',
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option `--config` of commands that take a trained model."""
    parser.add_argument(
        '--config',
        metavar='F',
        help='config file of a checkpoint that has none inside or beside it',
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trust-checkpoint`."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='accept checkpoints as they are, with code to run or NaN weights: only for files that you trust',
    )


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the option `--cfg-options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help=f'override the config, e.g. {example}',
    )


def require_paths(what: str, *names: str | None) -> None:
    """Leave with exit code 2 and a sentence if an input is missing, before torch is imported, which takes seconds.

    Args:
        what: What the inputs are, for the message: `'input'`, `'checkpoint'`, ...
        names: Files, folders, patterns or URLs; None is passed over.
    """
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
    """Do the same for a config: a file, with or without `.py`, or the name of one that comes with the package."""
    if name is None:
        return
    stem = name.removesuffix('.py')
    configs = (TOOLS.parent / 'configs').rglob('*.py')
    shipped = [file.stem for file in configs if '_base_' not in file.parts]
    if not (os.path.isfile(name) or os.path.isfile(f'{stem}.py') or Path(stem).name in shipped):
        own = [file.stem for file in Path(name).parent.glob('*.py')]
        sys.exit(_refuse(_missing('config', name, [*shipped, *own])))


def prepare_process(device: str = 'auto') -> None:
    """Set what torch reads as it is loaded, and let Ctrl-C end the process. Call it before torch is imported.

    Args:
        device: With `'cpu'`, GPUs are hidden.
    """
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
    close = difflib.get_close_matches(near, dict.fromkeys(known), n=3, cutoff=0.7)
    meant = f'; did you mean {" or ".join(close)}?' if close else '.'
    return f'The {what} {name} does not exist{meant}'


def _refuse(message: str) -> int:
    """Print a message about wrong use and return its exit code."""
    print(message, file=sys.stderr)
    return EXIT_SETUP


if __name__ == '__main__':
    sys.exit(main())
