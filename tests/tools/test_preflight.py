"""What usually goes wrong stops a run before it starts, with one sentence and exit code 2.

In one process, through the function that the tool calls; one test runs the tool itself.
"""

import json
import shutil
from pathlib import Path

import torch
from tool_runs import DETECTION, FAST, SEGMENTATION

from swinv2_mm.engine.launch import evaluate, train


def refused(capsys, function, *args, **kwargs):
    """Runs the tool's function and returns the one line that it stopped with."""
    assert function(*args, **kwargs) == 2
    seen = capsys.readouterr()
    lines = seen.err.splitlines()
    assert len(lines) == 1, seen.out + seen.err
    assert 'Traceback' not in seen.out + seen.err
    return lines[0]


def test_the_tool_itself_stops_with_a_sentence(run_tool, tmp_path):
    process = run_tool(
        'tools/train.py',
        DETECTION,
        '--work-dir',
        tmp_path,
        env={'SWINV2_MM_SHAPES': '/nowhere/at/all'},
    )
    assert process.returncode == 2
    assert process.stderr.startswith(
        'The data root /nowhere/at/all/ of train_dataloader.dataset (CocoDataset) does not'
    )
    assert 'generate_shapes.py /nowhere/at/all' in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert 'Traceback' not in process.stdout


def test_missing_config(root, capsys):
    assert 'The config configs/none.py does not exist' in refused(capsys, train, 'configs/none.py')


def test_missing_checkpoints(root, capsys):
    assert 'none.pth does not exist' in refused(capsys, evaluate, DETECTION, 'none.pth')
    assert 'none.pth does not exist' in refused(capsys, train, DETECTION, resume='none.pth')
    assert 'none.pth does not exist' in refused(
        capsys, train, DETECTION, cfg_options=['load_from=none.pth']
    )
    pretrained = [
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=none.pth',
    ]
    assert 'none.pth does not exist' in refused(capsys, train, DETECTION, cfg_options=pretrained)


def test_missing_annotations(root, capsys):
    (root / 'annotations' / 'instances_validation.json').unlink()
    assert 'instances_validation.json of val_dataloader' in refused(capsys, train, DETECTION)


def test_disagreeing_classes(root, capsys):
    options = ['model.roi_head.bbox_head.num_classes=80']
    assert 'num_classes is 80' in refused(capsys, train, DETECTION, cfg_options=options)
    options = ['model.decode_head.num_classes=150']
    Path('other.pth').touch()
    line = refused(capsys, evaluate, SEGMENTATION, 'other.pth', cfg_options=options)
    assert 'num_classes is 150' in line


def test_nothing_reaches_the_model(root, capsys):
    path = root / 'annotations' / 'instances_training.json'
    coco = json.loads(path.read_text())
    for instance in coco['annotations']:
        instance['segmentation'] = dict(size=[64, 64], counts=[64 * 64])
    path.write_text(json.dumps(coco))
    options = [*FAST, 'train_dataloader.dataset.pipeline.1.poly2mask=False']
    assert 'set poly2mask=True' in refused(capsys, train, DETECTION, cfg_options=options)


def test_empty_training_set(root, capsys):
    path = root / 'annotations' / 'instances_training.json'
    coco = json.loads(path.read_text())
    path.write_text(json.dumps(dict(coco, annotations=[])))
    assert 'has no annotations' in refused(capsys, train, DETECTION, cfg_options=FAST)


def test_broken_annotation_file(root, capsys):
    path = root / 'annotations' / 'instances_training.json'
    path.write_text(path.read_text()[:-20] + '!' * 20)
    line = refused(capsys, train, DETECTION, cfg_options=FAST)
    assert 'instances_training.json' in line
    assert 'json' in line


def test_no_label_in_range(root, capsys):
    shutil.rmtree(root / 'annotations' / 'training')
    shutil.copytree(
        root / 'images' / 'training', root / 'annotations' / 'training'
    )  # photographs as labels
    assert 'expected one channel' in refused(capsys, train, SEGMENTATION, cfg_options=FAST)


def test_a_checkpoint_of_another_model(root, capsys):
    torch.save({'state_dict': {'fc.weight': torch.zeros(2, 2)}}, 'other.pth')
    line = refused(capsys, evaluate, DETECTION, 'other.pth', cfg_options=FAST)
    assert "holds none of the model's" in line
    head = {
        'rpn_head.rpn_cls.weight': torch.zeros(7, 64, 1, 1),
        'rpn_head.rpn_cls.bias': torch.zeros(2),
    }
    torch.save({'state_dict': head}, 'other.pth')
    line = refused(capsys, evaluate, DETECTION, 'other.pth', cfg_options=FAST)
    assert 'rpn_head.rpn_cls.weight is (7, 64, 1, 1) there and (2, 64, 1, 1) in the model' in line
    assert 'was it trained with another config?' in line


def test_options_that_make_no_sense(root, capsys):
    assert '--max-iters 0' in refused(capsys, train, DETECTION, max_iters=0)
    assert 'expected KEY=VALUE' in refused(capsys, train, DETECTION, cfg_options=['lr'])
    assert 'tools/dist_train.sh' in refused(capsys, train, DETECTION, launcher='pytorch')
    (root / 'file').touch()
    assert 'cannot be written to' in refused(capsys, train, DETECTION, work_dir=str(root / 'file'))
    line = refused(capsys, evaluate, DETECTION, str(root / 'file'), out='predictions')
    assert 'predictions.json' in line
