"""metrics.json has plain keys and is plain json."""

import json

import numpy as np

from swinv2_mm.engine.metrics import format_metrics, plain_metrics, write_metrics


def test_prefixes_go_unless_two_keys_would_become_one():
    assert plain_metrics({'coco/bbox_mAP': 0.5, 'mIoU': 3}) == {'bbox_mAP': 0.5, 'mIoU': 3.0}
    assert plain_metrics({'a/mAP': 0.5, 'b/mAP': 0.25}) == {'a/mAP': 0.5, 'b/mAP': 0.25}


def test_the_file_is_json_whatever_the_values(tmp_path):
    path = write_metrics({'mIoU': np.float32(40.119998931884766), 'mAcc': float('nan')}, tmp_path)
    assert path == tmp_path / 'metrics.json'
    assert json.loads(path.read_text()) == {'mIoU': 40.119999, 'mAcc': None}


def test_lines_are_grouped_by_kind():
    metrics = {'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25, 'coco/bbox_mAP_l': -1.0}
    assert format_metrics(metrics) == ['bbox: mAP 0.5  mAP_l -', 'segm: mAP 0.25']
    assert format_metrics({'aAcc': 80.0, 'mIoU': 40.5}) == ['aAcc 80  mIoU 40.5']
