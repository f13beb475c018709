"""The command `swinv2-mm`, in processes of their own and outside of any checkout."""

import os
import re
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
import torch

import swinv2_mm_cli
from swinv2_mm.checkpoints.convert import WRITABLE
from swinv2_mm.datasets import generate_shapes

ROOT = Path(__file__).parents[1]
NAME = 'mask-rcnn_swinv2-nano_fpn_shapes'
THERE = [name for name, file in swinv2_mm_cli.COMMANDS.items() if (ROOT / 'tools' / file).is_file()]


def start(
    *arguments, code='import swinv2_mm_cli; raise SystemExit(swinv2_mm_cli.main())', **options
):
    """Start the command as the entry point does, or another program."""
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **options.pop('env', {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments, **options):
    process = start(*arguments, **options)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def test_alone_it_lists_the_commands_without_importing_torch():
    code = (
        'import sys, swinv2_mm_cli; swinv2_mm_cli.main([]); code = swinv2_mm_cli.main(["--help"])\n'
        'loaded = {"torch", "numpy", "mmengine", "swinv2_mm"} & set(sys.modules)\n'
        'raise SystemExit(f"loaded {loaded}" if loaded else code)'
    )
    status, out, error = run(code=code)
    assert status == 0, error
    for name, file in swinv2_mm_cli.COMMANDS.items():
        line = re.search(rf'^  {name}  +(\S.*)$', out, re.MULTILINE)[1]
        assert line.endswith('.'), line
        assert name not in THERE or line in (ROOT / 'tools' / file).read_text()


def test_every_command_is_in_the_docs():
    page = (ROOT / 'docs' / 'commands.md').read_text()
    assert [name for name in swinv2_mm_cli.COMMANDS if f'`swinv2-mm {name}' not in page] == []


@pytest.mark.parametrize('name', [name for name in THERE if not name.startswith('benchmark')])
def test_help_of_a_command_is_instant_and_names_it(name):
    code = (
        'import sys, swinv2_mm_cli\n'
        'try: swinv2_mm_cli.main()\n'
        'finally: print(sorted({"torch", "mmengine", "swinv2_mm"} & set(sys.modules)))'
    )
    status, out, error = run(name, '--help', code=code)
    assert status == 0, error
    assert out.startswith(f'usage: swinv2-mm {name} ') and out.endswith('[]\n')


def test_the_scripts_are_the_same_commands(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', '--help'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    _, out, _ = run('train', '--help')
    assert done.stdout.startswith('usage: train.py ')
    assert done.stdout.split('positional')[1] == out.split('positional')[1]


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        (('trian',), 2, "no command 'trian'; did you mean train"),
        (('xyz', '--help'), 2, "no command 'xyz'; swinv2-mm --help lists all"),
        (('benchmark',), 2, 'is incomplete: use benchmark backbone or benchmark model'),
        (('train',), 2, 'usage: swinv2-mm train'),
        (('train', 'mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco'), 2, 'instances_train2017.json'),
        (('convert', 'none.pth', 'out.pth'), 2, 'none.pth'),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, status, message, tmp_path):
    """The right name gets as far as the data, which do not exist here."""
    env = {'SWINV2_MM_DATA': str(tmp_path)}
    found, _, error = run(*arguments, cwd=tmp_path, env=env)
    assert found == status and message in error and 'Traceback' not in error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('train', f'{NAME[:-1]}.py'), f'does not exist; did you mean {NAME}'),
        (('test', NAME, 'none/last_checkpoint'), 'The checkpoint none/last_checkpoint does not'),
        (('train', 'mask-rcnn_swinv2-s'), 'did you mean mask-rcnn_swinv2-s-p4-w8_fpn_1x_coco or '),
        (('check-data', 'none'), 'The config none does not exist.'),
        (('inspect', 'none'), 'The model none does not exist.'),
        (('new-config', 'photo'), 'The folder photo does not exist; did you mean photos?'),
        (('export', 'photos', '--to', 'onnx', '--config', 'x'), 'The config x does not exist.'),
        (('predict', 'https://a/b.jpg', '0', 'photos', 'x[1].jpg', '--model', 'm'), 'checkpoint m'),
        (('predict', 'photos/*.png', '--model', 'm'), 'The input photos/*.png matches no file.'),
    ],
)
def test_missing_files_are_said_at_once(arguments, message, tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'x[1].jpg').touch()
    code = (
        'import sys, swinv2_mm_cli\n'
        'try: swinv2_mm_cli.main()\n'
        'finally: print({"torch", "numpy", "swinv2_mm"} & set(sys.modules))'
    )
    status, out, error = run(*arguments, cwd=tmp_path, code=code)
    assert (status, out) == (2, 'set()\n')
    assert message in error and len(error.splitlines()) == 1


def test_python_m_and_the_version(tmp_path):
    command = [sys.executable, '-m', 'swinv2_mm', 'train', '--help']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    out = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    assert out.startswith('usage: swinv2-mm train ')
    assert (
        run('--version')[1].strip()
        == swinv2_mm_cli.runpy.run_path(str(ROOT / 'swinv2_mm/version.py'))['__version__']
    )


def test_a_command_of_the_checkout_and_a_missing_package(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(swinv2_mm_cli, 'TOOLS', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['swinv2-mm'])
    assert swinv2_mm_cli.main(['benchmark', 'backbone']) == 2
    assert 'swinv2-mm benchmark backbone needs a checkout' in capsys.readouterr().err
    (tmp_path / 'train.py').write_text('def main():\n    import no_such_package\n')
    assert swinv2_mm_cli.main(['train']) == 2
    assert 'The package no_such_package is not installed' in capsys.readouterr().err
    (tmp_path / 'train.py').write_text('def main():\n    import swinv2_mm.no_such_module\n')
    with pytest.raises(ModuleNotFoundError):
        swinv2_mm_cli.main(['train'])


def test_ctrl_c_ends_a_command_with_130(tmp_path):
    code = (  # what a shell starts in the background ignores SIGINT
        'import pathlib, signal, sys, swinv2_mm_cli\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'swinv2_mm_cli.TOOLS = pathlib.Path(sys.argv.pop(1))\n'
        'raise SystemExit(swinv2_mm_cli.main())'
    )
    (tmp_path / 'train.py').write_text(
        'import time\ndef main():\n    print("started", flush=True)\n    time.sleep(60)\n'
    )
    process = start(tmp_path, 'train', code=code)
    assert process.stdout.readline() == 'started\n'
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, 'interrupted\n')


def test_exit_codes_pass_through(monkeypatch, tmp_path):
    monkeypatch.setattr(swinv2_mm_cli, 'TOOLS', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['swinv2-mm'])
    (tmp_path / 'train.py').write_text('import sys\ndef main():\n    return len(sys.argv[1:])\n')
    assert [swinv2_mm_cli.main(['train', *'abc'[:count]]) for count in (0, 1, 3)] == [0, 1, 3]


def test_settings_that_torch_reads_when_it_is_loaded(monkeypatch):
    monkeypatch.setattr(os, 'environ', {})
    swinv2_mm_cli.prepare_process('cuda:0')
    assert os.environ == {'GOMP_SPINCOUNT': '20000'}
    monkeypatch.setattr(os, 'environ', {'OMP_WAIT_POLICY': 'ACTIVE'})
    swinv2_mm_cli.prepare_process('cpu')
    assert os.environ == {'OMP_WAIT_POLICY': 'ACTIVE', 'CUDA_VISIBLE_DEVICES': ''}


def test_the_layouts_of_convert_are_those_that_can_be_written():
    tool = swinv2_mm_cli.load_file(ROOT / 'tools/model_converters/convert_checkpoint.py')
    assert tool.LAYOUTS == WRITABLE


@pytest.mark.long
def test_a_wheel_outside_of_the_checkout(tmp_path):
    """Build it, install it beside the libraries of this environment, and train by the name of a config."""

    def call(*command, cwd=tmp_path, **env):
        started = time.time()
        done = subprocess.run(
            [str(part) for part in command],
            env={**{k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}, **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
        )
        print(f'{command[0]} {command[1]}: {time.time() - started:.1f} s')
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    wheels, home = tmp_path / 'wheels', tmp_path / 'home'
    source = tmp_path / 'source'
    copy_sources(source)
    pip = ('-m', 'pip', '--disable-pip-version-check', '--quiet')
    call(
        *(sys.executable, *pip, 'wheel', '--no-deps', '--no-build-isolation'),
        *('--no-index', '--wheel-dir', wheels, source),
    )
    venv.create(home, with_pip=False)
    site = next(home.glob('lib/python*/site-packages'))
    # The libraries, behind the packages of the wheel, and without the path of an editable installation.
    (site / 'libraries.pth').write_text(f'{Path(torch.__file__).parents[1]}\n')
    python = home / 'bin' / 'python'
    (wheel,) = wheels.glob('swinv2_mm-*.whl')
    call(python, *pip, 'install', '--no-deps', '--no-index', '--ignore-installed', wheel)
    command = home / 'bin' / 'swinv2-mm'

    where = call(python, '-c', 'import swinv2_mm; print(swinv2_mm.__file__)')
    assert where.startswith(str(site))
    assert '"problems"' in call(command, 'doctor', '--json')
    assert call(command, 'train', NAME, '--help').startswith('usage: swinv2-mm train')
    generate_shapes(tmp_path / 'shapes', num_train=6, num_val=4, image_size=(64, 64))
    loaders = [f'{part}_dataloader.num_workers=0' for part in ('train', 'val', 'test')]
    options = ('--max-iters', 1, '--device', 'cpu', '--cfg-options', *loaders)
    call(command, 'train', NAME, *options, SWINV2_MM_SHAPES=str(tmp_path / 'shapes'))
    run_dir = tmp_path / 'work_dirs' / NAME
    assert (run_dir / 'iter_1.pth').is_file() and (run_dir / 'metrics.json').is_file()
    listed = call(python, '-m', 'swinv2_mm')
    assert 'Only in a checkout' in listed and 'Train the detector' in listed


def copy_sources(target):
    """Copy what git knows, and what is new, without build products."""
    names = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split('\0')
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
