"""What `make gpu-wheels` collects and `make gpu` runs; nothing is fetched."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile

import pytest
from tool_runs import ROOT

# What the machine has by itself, or by timm, and what the report does not use: the CPU kernels, predict, new-config.
ELSEWHERE = {'torch', 'torchvision', 'timm', 'safetensors', 'huggingface-hub', 'llvmlite'}
ELSEWHERE |= {'supervision', 'defusedxml', 'tensorboard'}
EXTRAS = {
    'scikit-learn',
    'opencv-python',
}  # the first only for data sets; the second comes headless


def make(*arguments):
    """Run make in the checkout; returns the finished process."""
    command = ['make', '-C', str(ROOT), f'PYTHON={sys.executable}', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def normal(requirement):
    """The normalised name of a requirement."""
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


def collected(*arguments):
    """Names on the command lines of `make gpu-wheels`."""
    done = make('-n', 'gpu-wheels', *arguments)
    assert done.returncode == 0, done.stderr
    return {normal(word) for word in done.stdout.split() if re.match(r'[a-z]', word)}


def pinned():
    """Names and versions of constraints.txt."""
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pairs = [line.split('==') for line in lines if line and not line.startswith('#')]
    return {normal(name): version for name, version in pairs}


def needs(distribution):
    """Names that a distribution requires on this platform, without its extras."""
    found = importlib.metadata.requires(distribution) or []
    return {normal(line) for line in found if 'extra ==' not in line and 'win32' not in line}


def test_the_wheels_cover_what_the_project_and_the_openmmlab_libraries_require():
    names = collected('GPU_WHEELS_ALL=1')
    libraries = {name for name in pinned() if name.startswith('onedl-')}
    assert len(libraries) == 5 and libraries <= names
    # mmpretrain imports neither of these two; the others come with torch, timm or pytest.
    present = {'numpy', 'pillow', 'pyyaml', 'packaging', 'tqdm', 'importlib-metadata', 'modelindex'}
    required = set().union(needs('swinv2-mm'), *map(needs, libraries))
    assert required - present - ELSEWHERE - EXTRAS <= names
    assert 'opencv-python-headless' in names
    assert 'transformers' not in names


def test_only_the_small_set_is_collected_unless_asked_otherwise():
    assert collected('GPU_WHEELS_ALL=1') > collected() > {'onedl-mmcv', 'addict', 'pycocotools'}
    assert not collected() & {'scipy', 'opencv-python-headless', 'matplotlib', 'torch'}


def test_versions_are_those_of_the_constraints():
    """No version beside a name, and both commands read the pins."""
    commands = make('-n', 'gpu-wheels', 'GPU_WHEELS_ALL=1').stdout
    assert not re.findall(r'\s[\w-]+[=<>~]=\S+', commands)
    assert commands.count('-c constraints.txt') == 2
    assert 'MMCV_WITH_OPS=0' in commands


def wheel(folder, name, code):
    """Write a wheel of one module."""
    info = f'{name}-1.dist-info'
    with zipfile.ZipFile(folder / f'{name}-1-py3-none-any.whl', 'w') as file:
        file.writestr(f'{name}.py', code)
        file.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1\n')
        file.writestr(
            f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        )
        file.writestr(f'{info}/RECORD', '')


@pytest.mark.parametrize('openmmlab', [True, False])
def test_wheels_are_installed_only_where_the_libraries_are_missing(tmp_path, openmmlab):
    wheel(tmp_path, 'carried_module', '')
    python = tmp_path / 'python'
    # An interpreter that finds the libraries or does not, and runs no report.
    python.write_text(
        '#!/bin/sh\n'
        f'case "$1" in -c) exit {int(not openmmlab)};; tools/*) echo "path $PYTHONPATH run $*";;\n'
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    python.chmod(0o755)
    site = tmp_path / 'site'
    done = make(
        f'PYTHON={python}', 'gpu', f'GPU_WHEELS={tmp_path}', f'GPU_SITE={site}', 'MINUTES=2'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (site / 'carried_module.py').exists() is not openmmlab
    assert ('site' in done.stdout.partition('path ')[2]) is not openmmlab
    assert 'run tools/gpu_report.py --minutes 2 --out work_dirs/gpu' in done.stdout
