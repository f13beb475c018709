"""Trainings of several configs and seeds, and the configs of other backbones that they compare with."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from tool_runs import FAST, ROOT, SEGMENTATION

from benchmarks.zoo import compare
from swinv2_mm.apis.complexity import count_parts
from swinv2_mm.apis.models import build_model
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.errors import SetupError

PEERS = sorted((ROOT / 'configs/comparison').glob('*.py'))


def backbone_macs(path):
    parts = count_parts(build_model(load_config(str(path)), path.name), (192, 256))
    return sum(part.macs for part in parts if part.name.startswith('backbone'))


@pytest.mark.parametrize('path', PEERS, ids=lambda path: path.name)
def test_backbones_that_are_compared_compute_about_as_much(path):
    (own,) = ROOT.glob(f'configs/*/*swinv2-nano*{path.name.split("_1x")[1]}')
    assert 0.9 < backbone_macs(path) / backbone_macs(own) < 1.1


@pytest.mark.slow
def test_each_config_is_trained_with_each_seed_once(root, capfd):
    train = f'{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "tools/train.py"))} {{config}}'
    settings = dict(seeds=(0, 1), out='zoo', max_iters=2, cfg_options=FAST)
    assert compare([SEGMENTATION], command=train, **settings) == 0
    name = Path(SEGMENTATION).stem
    runs = json.loads(Path('zoo/results.json').read_text())['runs']
    assert set(runs) == {f'{name}/seed_0', f'{name}/seed_1'}
    first, second = (runs[f'{name}/seed_{seed}'] for seed in (0, 1))
    assert first == json.loads(Path(f'zoo/{name}/seed_0/metrics.json').read_text()) != second
    table = Path('zoo/results.md').read_text()
    mean = (first['aAcc'] + second['aAcc']) / 2
    assert f'| {mean:.4g} ± ' in table and f'({first["aAcc"]:.4g}, {second["aAcc"]:.4g})' in table
    assert Path('zoo/curves.png').stat().st_size > 10_000
    assert table in capfd.readouterr().out
    # Finished trainings are not repeated, others are started by the command; its exit code is that of the tool.
    assert compare([SEGMENTATION], command='false', **settings) == 0
    settings['seeds'] = (0, 1, 2)
    assert compare([SEGMENTATION], command='false', **settings) == 1
    settings['max_iters'] = 3
    with pytest.raises(SetupError, match='trainings with the options'):
        compare([SEGMENTATION], command='false', **settings)


def test_commands_and_configs_that_cannot_be_used(tmp_path):
    settings = dict(seeds=(0,), out=str(tmp_path))
    broken = tmp_path / 'broken.py'
    broken.write_text('1 / 0')
    for configs, command, message in (
        (['nope'], 'true', 'The config nope does not exist'),
        ([SEGMENTATION, str(broken)], 'false', 'broken.py cannot be read'),
        ([SEGMENTATION, SEGMENTATION], 'true', 'the same file name'),
        ([SEGMENTATION], 'true {nope}', "'true {nope}' cannot be read"),
        ([SEGMENTATION], 'true "', 'cannot be read'),
        ([SEGMENTATION], 'true', 'it must wait for the end of the training'),
    ):
        with pytest.raises(SetupError, match=message):
            compare(configs, command=command, **settings)
