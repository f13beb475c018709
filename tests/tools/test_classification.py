"""tools/train.py and tools/test.py on a classifier, and a detector that starts from what it learnt."""

import json
import pickle
import sys
from pathlib import Path

import cv2
import pytest
from image_files import write_cifar10
from tool_runs import DETECTION, FAST, NOISE, ROOT, log_of

from swinv2_mm.datasets.digits import write_digits
from swinv2_mm.engine.launch import train

pytest.importorskip('mmpretrain')
pytest.importorskip('sklearn')

TRAIN, TEST = 'tools/train.py', 'tools/test.py'
DIGITS = str(next(ROOT.glob('configs/classification/*digits.py')))
CIFAR = str(next(ROOT.glob('configs/classification/*cifar10.py')))


def assert_ok(process):
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_digits(root / 'digits')
    write_cifar10(root / 'cifar10')
    return {'SWINV2_MM_DATA': str(root), 'SWINV2_MM_DIGITS': str(root / 'digits')}


@pytest.fixture(scope='module')
def classifier(run_tool, data, tmp_path_factory):
    """A work directory after two iterations of the digits config, and the process."""
    work_dir = tmp_path_factory.mktemp('classifier')
    process = run_tool(
        TRAIN, DIGITS, '--work-dir', work_dir, '--max-iters', 2, '--auto-scale-lr',
        '--cfg-options', *FAST, env=data,
    )  # fmt: skip
    return work_dir, process


def test_a_classifier_trains_and_says_what_matters(classifier):
    work_dir, process = classifier
    assert_ok(process)
    assert not process.stderr
    console = process.stdout
    assert 'schedule: 2 iterations instead of 30 epochs, then one validation' in console
    assert 'data: 1437 training images' in console
    assert 'learning rate: 0.000125, scaled (AdamW)' in console
    assert 'Iter(train) [2/2] ' in console
    assert 'accuracy/top1: ' in console
    for text in NOISE:
        assert text not in console, console
    assert len(console.splitlines()) < 20, console
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert metrics.keys() == {'top1', 'top5'}
    assert 0 <= metrics['top1'] <= metrics['top5'] <= 100.001
    assert 'accuracy/top1' in log_of(work_dir)


def test_a_classifier_is_evaluated_drawn_and_dumped(classifier, run_tool, data, tmp_path):
    work_dir, _ = classifier
    process = run_tool(
        TEST, DIGITS, work_dir, '--work-dir', tmp_path, '--show-dir', tmp_path / 'vis',
        '--show-max', 3, '--out', tmp_path / 'predictions.pkl', '--cfg-options', *FAST, env=data,
    )  # fmt: skip
    assert_ok(process)
    assert 'data: 360 test images' in process.stdout
    trained = json.loads((work_dir / 'metrics.json').read_text())
    assert json.loads((tmp_path / 'test_metrics.json').read_text()) == pytest.approx(trained)
    assert 'pictures: 3 in' in process.stdout
    pictures = sorted((tmp_path / 'vis').iterdir())
    assert len(pictures) == 3
    # the digit's own file name, and large enough for words
    assert (Path(data['SWINV2_MM_DIGITS']) / 'val/0' / pictures[0].name).is_file()
    assert min(cv2.imread(str(pictures[0])).shape[:2]) >= 200
    with (tmp_path / 'predictions.pkl').open('rb') as file:
        predictions = pickle.load(file)
    assert len(predictions) == 360
    assert predictions[0]['pred_score'].shape == (10,)


def test_a_classifier_on_pictures_without_files(run_tool, data, tmp_path):
    """CIFAR-10: from training to pictures and test-time augmentation."""
    config = tmp_path / 'small.py'
    config.write_text(
        f"_base_ = '{CIFAR}'\n"
        'model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=(1, 1, 1, 1), '
        'num_heads=(1, 1, 1, 1))), head=dict(in_channels=192))\n'
    )
    work_dir = tmp_path / 'run'
    process = run_tool(
        TRAIN, config, '--work-dir', work_dir, '--max-iters', 2, '--amp',
        '--cfg-options', *FAST, env=data,
    )  # fmt: skip
    assert_ok(process)
    assert 'data: 30 training images' in process.stdout
    process = run_tool(
        TEST, config, work_dir, '--work-dir', work_dir, '--tta', '--show-dir', work_dir / 'vis',
        '--cfg-options', *FAST, env=data,
    )  # fmt: skip
    assert_ok(process)
    assert 'test-time augmentation: horizontal flip' in process.stdout
    assert [path.name for path in sorted((work_dir / 'vis').iterdir())] == [
        f'{number:05d}.png' for number in range(6)
    ]


def test_a_detector_starts_from_a_classifier(classifier, run_tool, tmp_path):
    checkpoint = classifier[0] / 'iter_2.pth'
    process = run_tool(
        TRAIN, DETECTION, '--work-dir', tmp_path, '--max-iters', 1, '--cfg-options', *FAST,
        'model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={checkpoint}',
    )  # fmt: skip
    assert_ok(process)
    report = log_of(tmp_path).split(f'checkpoint {checkpoint}')[1].splitlines()[:11]
    rows = {line.strip().split('  ')[0]: line for line in report}
    assert "prefix 'backbone.'" in rows['layout']
    assert 'model runs at [8, 8, 8, 4], normalised by [8, 8, 8, 8]' in rows['trained at window']
    assert '2 (head.fc' in rows['dropped: outside the backbone']
    assert any(' 6 (norm0.bias' in line for line in report)  # a classifier has none of these
    for row in ('missing', 'unexpected', 'shape mismatch', 'NaN or infinite', 'allowed by name'):
        assert rows[row].endswith('  none'), report


def test_cifar_10_that_is_damaged_stops_the_run_with_a_sentence(
    data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('SWINV2_MM_DATA', str(tmp_path))
    write_cifar10(tmp_path / 'cifar10')
    broken = tmp_path / 'cifar10/cifar-10-batches-py/data_batch_3'
    broken.write_bytes(broken.read_bytes()[:100])
    assert train(CIFAR, work_dir=str(tmp_path / 'run'), cfg_options=FAST) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'{broken} is not a batch of CIFAR-10, or is damaged')
    assert len(error.splitlines()) == 1


def test_without_mmpretrain_the_tool_names_the_extra(environment, run_tool, tmp_path):
    """Python takes None in `sys.modules` for a module that is not installed."""
    program = tmp_path / 'without.py'
    program.write_text(
        'import runpy, sys\n'
        "sys.modules['mmpretrain'] = None\n"
        'sys.argv = sys.argv[1:]\n'
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    process = run_tool(sys.executable, program, TRAIN, DIGITS, '--work-dir', tmp_path / 'run')
    assert process.returncode == 2
    assert len(process.stderr.splitlines()) == 1
    assert 'is for image classification, which needs mmpretrain, and it is not' in process.stderr
    assert process.stderr.strip().endswith('pip install onedl-mmpretrain scikit-learn')
