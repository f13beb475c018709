"""The report on the installation, in processes of their own: healthy, and with what is known to break it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_mm.apis import doctor
from swinv2_mm.ops import mmcv_ext

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'doctor.py'


def examine(*path, code=0, options=('--json',)):
    """Run the tool with folders in front of the path, and return its report."""
    path = os.pathsep.join(map(str, (*path, ROOT)))
    done = subprocess.run(
        [sys.executable, TOOL, *options],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    return json.loads(done.stdout) if '--json' in options else done.stdout


def package(folder, name, content, distributions=()):
    """Write a package, and the metadata of distributions that own it."""
    (folder / name).mkdir()
    (folder / name / '__init__.py').write_text(content)
    for distribution, version, requires in distributions:
        info = folder / f'{distribution.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        lines = ['Metadata-Version: 2.1', f'Name: {distribution}', f'Version: {version}']
        lines += [f'Requires-Dist: {item}' for item in requires]
        (info / 'METADATA').write_text('\n'.join(lines) + '\n')
        (info / 'top_level.txt').write_text(f'{name}\n')


def test_a_healthy_installation():
    report = examine()
    assert [item for item in report['problems'] if item['severity'] == 'error'] == []
    assert re.match(r'torch \d', report['versions']['torch'])
    cpu = report['devices']['cpu']
    assert cpu['attention'] in ('llvm', 'fused')
    assert (cpu['attention'] == 'llvm') == (cpu['why'] is None)
    assert 0 <= cpu['difference'] < 1e-4
    names = {*report['mmcv']['supported'], *report['mmcv']['missing']}
    assert len(names) > 100 and {'nms', 'roi_align_forward'} <= set(report['mmcv']['supported'])
    if not report['mmcv']['compiled']:
        assert set(report['mmcv']['supported']) == set(mmcv_ext._PROVIDERS)
        assert 'psamask_forward' in report['mmcv']['missing']


@pytest.mark.parametrize(
    ('name', 'content', 'remedy'),
    [
        (
            'torchvision',
            'raise RuntimeError("operator torchvision::nms does not exist")',
            r'--force-reinstall torch==[\d.]+ torchvision==',
        ),
        ('mmengine', 'raise ImportError("a bug")', "--no-deps 'onedl-mmengine"),
    ],
)
def test_a_library_that_cannot_be_imported(name, content, remedy, tmp_path):
    """mmengine is what the package itself cannot be imported without."""
    package(tmp_path, name, content)
    problems = [
        item for item in examine(tmp_path, code=2)['problems'] if item['severity'] == 'error'
    ]
    assert len(problems) == 1
    assert problems[0]['problem'].startswith(f'{name} cannot be imported: ')
    assert re.search(remedy, problems[0]['remedy'])


def test_two_owners_missing_packages_and_versions_that_do_not_fit(tmp_path):
    originals = [('mmcv', '2.2.0', ()), ('onedl-mmcv', '9.0', ['numpy<2'])]
    package(tmp_path, 'mmcv', 'raise ImportError("half of each")', originals)
    package(tmp_path, 'llvmlite', 'raise ImportError("no libLLVM")')
    problems = examine(tmp_path, code=2)['problems']
    text = '\n'.join(f'{item["problem"]} -> {item["remedy"]}' for item in problems)
    assert 'mmcv 2.2.0, onedl-mmcv 9.0 own the same folder mmcv' in text
    assert 'pip uninstall -y mmcv onedl-mmcv; pip install onedl-mmcv' in text
    assert re.search(r"onedl-mmcv requires numpy<2, and 2\..*pip install 'numpy<2'", text)


@pytest.mark.long
def test_transformers_5_beside_mmpretrain():
    peers = Path(os.environ.get('SWINV2_MM_PEERS', ROOT / '.venv' / 'peers'), 'transformers')
    if not peers.is_dir():
        pytest.skip(f'no transformers in {peers}: make test installs it')
    text = examine(peers, code=2, options=())
    assert 'mmpretrain.models cannot be imported' in text
    assert (
        "remedy: mmpretrain does not work with transformers 5: pip install 'transformers<5'" in text
    )


def test_the_tables_agree_with_the_metadata():
    tomllib = pytest.importorskip('tomllib')

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']

    def bare(names):
        return {re.split('[>=<]', name)[0] for name in names}

    optional = project['optional-dependencies']
    assert {*optional} == {*doctor.EXTRAS, 'test', 'lint'}
    for name, packages in doctor.EXTRAS.items():
        assert bare(optional[name]) == set(packages.values())
    implied = {'opencv-python', 'numpy', 'swinv2-mm'}
    assert bare(doctor.LIBRARIES.values()) - implied <= bare(project['dependencies'])


def test_every_operator_is_in_the_docs():
    page = (ROOT / 'docs' / 'limits.md').read_text()
    for name in mmcv_ext._PROVIDERS:
        assert f'`{re.sub("_(forward|backward)(_.*)?$", "", name)}`' in page, name
