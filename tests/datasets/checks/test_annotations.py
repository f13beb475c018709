"""Faults of COCO annotation files, each written into a file without faults."""

import copy
import json
import time

import numpy as np
import pycocotools.mask
import pytest
from mmengine.config import Config

from swinv2_mm.datasets.checks import ConfiguredData, check_data
from swinv2_mm.datasets.checks.annotations import check_json
from swinv2_mm.datasets.checks.classes import check_categories
from swinv2_mm.datasets.checks.coco_file import CocoFile, sum_of_runs

SQUARE = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]
CLEAN = dict(
    images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=80) for i in range(1, 21)],
    categories=[dict(id=3, name='cat', supercategory='pet'), dict(id=7, name='dog')],
    annotations=[
        dict(
            id=i + 1,
            image_id=1 + i % 20,
            category_id=(3, 7)[i % 2],
            bbox=[10.0, 10.0, 30.0, 20.0],
            area=600.0,
            iscrowd=0,
            segmentation=[SQUARE],
        )
        for i in range(40)
    ],
)
INF, NAN = float('inf'), float('nan')


@pytest.fixture
def found(tmp_path):
    """Return a function that edits the clean file and returns the findings about it."""

    def look(edit=lambda coco: None, part='train', masks=True):
        coco = copy.deepcopy(CLEAN)
        coco = edit(coco) or coco
        path = tmp_path / 'coco.json'
        path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
        dataset = dict(
            type='CocoDataset',
            ann_file=str(path),
            metainfo=dict(classes=('cat', 'dog')),
            data_prefix=dict(img=str(tmp_path)),
            pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)],
        )
        cfg = Config({'default_scope': 'mmdet', f'{part}_dataloader': dict(dataset=dataset)})
        data = ConfiguredData(cfg, (part,))
        return list(check_data(data, [(check_categories,), (check_json,)]))

    return look


def one(**fields):
    """Change the fields of one annotation; None removes them."""
    return lambda coco: change(coco['annotations'][4], fields)


def every(**fields):
    """Change the fields of all annotations."""
    return lambda coco: [change(annotation, fields) for annotation in coco['annotations']] and None


def image(**fields):
    """Change the fields of one image."""
    return lambda coco: change(coco['images'][2], fields)


def change(item, fields):
    for key, value in fields.items():
        item.pop(key) if value is None else item.update({key: value})


def rle(text, size=(80, 100)):
    return one(segmentation=dict(size=list(size), counts=text))


WHOLE = pycocotools.mask.encode(np.asfortranarray(np.eye(80, 100, dtype=np.uint8)))[
    'counts'
].decode()
FAULTS = {
    'annotation-id': one(id=None),
    'annotation-id-repeated': one(id=1),
    'image-id': image(id=None),
    'image-id-repeated': image(id=1),
    'image-id-missing': one(image_id=None),
    'category-id-missing': one(category_id=[3]),
    'image-id-type': every(image_id='1'),
    'category-id-type': one(category_id='3'),
    'category-id-unknown': one(category_id=8),
    'file-name': image(file_name=None),
    'image-size-missing': image(height=None),
    'box-missing': one(bbox=None),
    'box-not-finite': one(bbox=[NAN, 10, 30, 20]),
    'box-not-finite ': one(bbox=[10, 10, INF, 20]),
    'box-not-finite  ': one(bbox=[10, 10, 30]),
    'box-not-finite   ': one(bbox=['10', 10, 30, 20]),
    'box-negative': one(bbox=[40, 10, -30, 20]),
    'box-empty': every(bbox=[0.1, 0.1, 0.3, 0.2]),
    'box-outside': every(bbox=[200, 10, 30, 20]),
    'box-beyond': every(bbox=[60, 50, 90, 75]),
    'area-missing': one(area=None),
    'area-missing ': one(area='600'),
    'area-zero': every(area=0),
    'all-crowd': every(iscrowd=1),
    'mask-missing': one(segmentation=None),
    'mask-missing ': one(segmentation=[]),
    'polygon-malformed': one(segmentation=[[[10, 10], [40, 10], [40, 30]]]),
    'polygon-malformed ': one(segmentation=SQUARE),
    'polygon-not-finite': one(segmentation=[[NAN, *SQUARE[1:]]]),
    'polygon-not-finite ': one(segmentation=[[INF, *SQUARE[1:]]]),
    'polygon-far': one(segmentation=[[2.0**70, *SQUARE[1:]]]),
    'polygon-short': every(segmentation=[SQUARE[:4]]),
    'polygon-short ': every(segmentation=[SQUARE[:7]]),
    'polygon-beyond': every(segmentation=[[x * 5 for x in SQUARE]]),
    'polygon-flat': every(segmentation=[[10, 10, 20, 10, 30, 10]]),
    'rle-broken': rle([100, 50]),
    'rle-broken ': rle([9000, -1000]),
    'rle-broken  ': rle(WHOLE[:-3]),
    'rle-broken   ': rle('~~~'),
    'rle-broken    ': rle(None),
    'rle-size': rle([4000, 4000], (100, 80)),
    'no-annotations': lambda coco: dict(coco, annotations=[]),
}


def test_a_clean_file(found):
    assert found() == []
    assert found(part='val') == []
    assert found(rle(WHOLE)) == found(rle([4000, 4000])) == []


@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_stops_the_training(found, kind):
    findings = {finding.kind: finding for finding in found(FAULTS[kind])}
    finding = findings[kind.strip()]
    assert finding.severity == 'error'
    assert 'coco.json' in str(finding) and '\n' not in str(finding)


@pytest.mark.parametrize(
    ('kind', 'edit'),
    [
        ('image-id-unknown', one(image_id=99)),
        ('box-empty', one(bbox=[10, 10, 0, 20])),
        ('box-outside', one(bbox=[200, 10, 30, 20])),
        ('box-beyond', one(bbox=[60, 50, 90, 75])),
        ('area-zero', one(area=0)),
        ('polygon-short', one(segmentation=[SQUARE[:4], SQUARE])),
        ('polygon-beyond', one(segmentation=[[x * 5 for x in SQUARE]])),
        ('image-repeated', image(file_name='1.jpg')),
        ('class-unused', every(category_id=3)),
    ],
)
def test_what_costs_a_few_annotations_is_a_warning_with_their_ids(found, kind, edit):
    (finding,) = [finding for finding in found(edit) if finding.kind == kind]
    assert finding.severity == 'warning'
    assert set(finding.items) & {'5', '1.jpg', 'dog'}


def test_ids_are_named_up_to_three_and_kept(found):
    (finding,) = found(every(area=None))
    assert '40 of 40 annotations in ' in str(finding) and '; ids: 1, 2, 3, ....' in str(finding)
    assert finding.items == tuple(str(i) for i in range(1, 41))


def test_what_only_the_evaluation_needs(found):
    assert found(one(iscrowd=None)) == found(one(id=0)) == []
    assert [finding.kind for finding in found(one(iscrowd=None), 'val')] == ['crowd-missing']
    assert [finding.kind for finding in found(one(id=0), 'val')] == ['annotation-id-zero']


def test_masks_are_not_needed_by_a_detector_of_boxes(found):
    assert found(one(segmentation=None), masks=False) == []


def test_a_parent_category_of_roboflow_is_not_proposed_as_a_class(found):
    def edit(coco):
        coco['categories'].insert(0, dict(id=0, name='pet', supercategory='none'))
        coco['categories'][2]['name'] = 'hound'

    (finding,) = found(edit)
    assert "metainfo=dict(classes=('cat', 'hound')) and num_classes=2" in finding.remedy


def test_categories_that_share_a_name_or_id(found):
    for field in (dict(id=3), dict(name='cat')):
        found_here = found(
            lambda coco, field=field: coco['categories'].append({**dict(id=9, name='x'), **field})
        )
        assert f'share the {next(iter(field))} ' in str(found_here[0])


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('', 'it is empty'),
        ('no json', 'Expecting value'),
        (json.dumps(CLEAN)[:-40], 'Expecting'),
        ('{"images": []}', "it has no key 'categories'"),
        (json.dumps(dict(data=CLEAN)), r"no key 'images' \(there: data\)"),
        ('{"images": [], "categories": ["cat"]}', 'not a list of'),
        ('{"images": {"1": {}}, "categories": []}', '"images" are not a list of dicts'),
        ('[1, 2]', 'it holds a list'),
        ('[' * 100000, 'nested too deeply'),
        ('{"images": [{"id": 1, "height": 1' + '0' * 400 + '}], "categories": []}', 'too large'),
        ('\x80', "can't decode|invalid start"),
    ],
)
def test_a_file_that_is_not_a_coco_json(tmp_path, found, text, reason):
    path = tmp_path / 'coco.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=f'coco.json is not a COCO json: .*{reason}'):
        CocoFile(path)
    if text and ord(text[0]) < 128:
        (finding,) = found(lambda coco: text)
        assert finding.severity == 'error' and finding.kind == 'categories'


def test_totals_of_compressed_masks_are_those_of_pycocotools():
    random = np.random.default_rng(0)
    masks = [
        random.random((h, w)) < p
        for h, w, p in ((1, 1, 1), (7, 9, 0.5), (60, 300, 0.02), (90, 90, 0))
    ]
    texts = [
        pycocotools.mask.encode(np.asfortranarray(m, np.uint8))['counts'].decode() for m in masks
    ]
    assert [sum_of_runs(text) for text in texts] == [mask.size for mask in masks]


def test_random_damage_never_raises(found):
    """Every field of the file is replaced by values of every type."""
    values = [None, [], {}, '', 'x', -1, 1e308, NAN, [None], [[]], {'size': [1, 2]}, True]
    for section in ('images', 'annotations', 'categories'):
        for key in CLEAN[section][0]:
            for value in values:
                found(lambda coco, s=section, k=key, v=value: coco[s][1].update({k: v}))


@pytest.mark.slow
def test_a_tenth_of_coco_is_read_in_seconds(tmp_path):
    """The whole has 118,000 images and 860,000 annotations."""
    images = [dict(CLEAN['images'][0], id=i, file_name=f'{i}.jpg') for i in range(11800)]
    polygon = np.linspace([10, 10], [40, 30], 20).round(2).ravel().tolist()
    annotations = [
        dict(CLEAN['annotations'][i % 40], id=i, image_id=i % 11800, segmentation=[polygon])
        for i in range(86000)
    ]
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps(dict(CLEAN, images=images, annotations=annotations)))
    start = time.process_time()
    assert len(CocoFile(path).ids) == 86000
    assert time.process_time() - start < 5  # slow machines, and no orjson
