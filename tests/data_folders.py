"""Folders of real photographs, or generated ones, in the layouts that people have, each with the same objects."""

import atexit
import base64
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from mmdet.structures.mask import PolygonMasks
from PIL import Image

from swinv2_mm.datasets import generate_shapes


def _generated():
    """Return a folder with generated shapes in the layouts of the real data."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    generate_shapes(root / 'shapes', num_train=16, num_val=6, image_size=(96, 128))
    for part, split in (('train', 'training'), ('val', 'validation')):
        for kind, targets in (
            ('images', (f'coco/{part}2017', f'pennfudan/{part}', f'camvid/images/{part}')),
            ('annotations', (f'camvid/annotations/{part}',)),
        ):
            for file in (root / 'shapes' / kind / split).iterdir():
                for target in targets:  # no two photographs have the same name
                    (root / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, root / target / f'{part}_{file.name}')
        content = (root / f'shapes/annotations/instances_{split}.json').read_text()
        content = content.replace('"file_name":"', f'"file_name":"{part}_')
        for target in (
            f'coco/annotations/instances_{part}2017',
            f'pennfudan/annotations/instances_{part}',
        ):
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            (root / f'{target}.json').write_text(content)
    return str(root)


REAL_DATA = os.environ.get('SWINV2_MM_DATA') or _generated()


class Source:
    """A few photographs of COCO with objects of one polygon each.

    Attributes:
        classes: Names of the classes.
        parts: By part, the path, size and objects (class, box `x0 y0 x1 y1`, polygon) of each photograph.
    """

    def __init__(self, counts=(('train', 5), ('val', 2))):
        root = Path(REAL_DATA, 'coco')
        self.parts = {}
        used = set()
        for part, count in counts:
            coco = json.loads((root / f'annotations/instances_{part}2017.json').read_text())
            names = {item['id']: item['name'] for item in coco['categories']}
            photos = []
            for image in coco['images']:
                objects = [
                    (
                        names[item['category_id']],
                        np.array(item['segmentation'][0], float).reshape(-1, 2),
                    )
                    for item in coco['annotations']
                    if item['image_id'] == image['id']
                    and not item['iscrowd']
                    and len(item['segmentation']) == 1
                    and min(item['bbox'][2:]) > 8
                ]
                if 2 <= len(objects) <= 6 and len(photos) < count:
                    boxes = [(*points.min(0), *points.max(0)) for _, points in objects]
                    objects = [(name, box, ring) for (name, ring), box in zip(objects, boxes)]
                    path = root / f'{part}2017' / image['file_name']
                    photos.append((path, (image['width'], image['height']), objects))
                    used.update(name for name, *_ in objects)
            self.parts[part] = photos
        self.classes = sorted(used)

    def photos(self):
        """Yield part, path, size and objects of each photograph."""
        for part, photos in self.parts.items():
            for photo in photos:
                yield part, *photo

    def expected(self, part):
        """Return the objects of a part as `objects_of` does."""
        return sorted(
            (path.stem, name, *np.round(box, 1))
            for path, _, objects in self.parts[part]
            for name, box, _ in objects
        )


def objects_of(dataset):
    """Return name of the image, class and box of each object that a data set of mmdet reads."""
    classes = dataset.metainfo['classes']
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return sorted(
        (Path(info['img_path']).stem, classes[item['bbox_label']], *np.round(item['bbox'], 1))
        for info in infos
        for item in info['instances']
    )


def same_objects(found, expected, tolerance=1.0):
    """Return whether two lists of objects are the same up to `tolerance` pixels."""
    return (
        len(found) == len(expected)
        and all(one[:2] == other[:2] for one, other in zip(found, expected))
        and all(
            np.abs(np.subtract(one[2:], other[2:])).max() <= tolerance
            for one, other in zip(found, expected)
        )
    )


def _place(path, folder, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / (name or path.name))
    return folder / (name or path.name)


def coco_content(source, part, start=1):
    """Return a COCO json; ids are far from 1."""
    content = dict(images=[], annotations=[], categories=[])
    for index, name in enumerate(source.classes):
        content['categories'].append(dict(id=index + start, name=name, supercategory='things'))
    for number, (path, (width, height), objects) in enumerate(source.parts[part]):
        entry = dict(id=number + 70, file_name=path.name, width=width, height=height)
        content['images'].append(entry)
        for name, (x0, y0, x1, y1), ring in objects:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=entry['id'],
                    category_id=source.classes.index(name) + start,
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    area=float(PolygonMasks([[ring.ravel()]], height, width).areas[0]),
                    iscrowd=0,
                    segmentation=[ring.ravel().tolist()],
                )
            )
    return content


def write_coco(source, root):
    for part in source.parts:
        for path, *_ in source.parts[part]:
            _place(path, root / f'{part}2017')
        target = root / f'annotations/instances_{part}2017.json'
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(coco_content(source, part)))
        (target.parent / f'captions_{part}2017.json').write_text(
            '{"images": [], "annotations": [], "info": {}}'
        )


def write_roboflow(source, root):
    for part, folder in (('train', 'train'), ('val', 'valid')):
        for path, *_ in source.parts[part]:
            _place(path, root / folder)
        content = coco_content(source, part)
        for category in content['categories']:
            category['supercategory'] = 'my-things'
        content['categories'].insert(0, dict(id=0, name='my-things', supercategory='none'))
        (root / folder / '_annotations.coco.json').write_text(json.dumps(content))


def _yolo_settings(source, root, **more):
    lines = [f'{key}: {value}' for key, value in more.items()]
    lines += ['names:', *(f'  {index}: {name}' for index, name in enumerate(source.classes))]
    (root / 'data.yaml').write_text('\n'.join(lines))


def write_yolo(source, root, polygons=False):
    """The layout of Ultralytics, made on another machine."""
    for part, path, size, objects in source.photos():
        _place(path, root / 'images' / part)
        lines = []
        for name, box, ring in objects:
            values = (
                (ring / size).ravel()
                if polygons
                else np.divide(
                    [
                        (box[0] + box[2]) / 2,
                        (box[1] + box[3]) / 2,
                        box[2] - box[0],
                        box[3] - box[1],
                    ],
                    [*size, *size],
                )
            )
            numbers = ' '.join(f'{value:.6f}' for value in values)
            lines.append(f'{source.classes.index(name)} {numbers}')
        labels = root / 'labels' / part / f'{path.stem}.txt'
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text('\n'.join(lines))
    _yolo_settings(source, root, path='/elsewhere/things', train='images/train', val='images/val')


def write_yolo_segments(source, root):
    write_yolo(source, root, polygons=True)


def write_yolo_roboflow(source, root):
    """`train/images`, `train/labels`; written by supervision."""
    import supervision

    coco = root / 'coco'
    coco.mkdir()
    for part, folder in (('train', 'train'), ('val', 'valid')):
        for path, *_ in source.parts[part]:
            _place(path, coco / part)
        (coco / f'{part}.json').write_text(json.dumps(coco_content(source, part)))
        dataset = supervision.DetectionDataset.from_coco(
            str(coco / part), str(coco / f'{part}.json')
        )
        dataset.as_yolo(
            str(root / folder / 'images'),
            str(root / folder / 'labels'),
            str(root / 'data.yaml'),
        )
    settings = (root / 'data.yaml').read_text()
    (root / 'data.yaml').write_text(f'train: ../train/images\nval: ../valid/images\n{settings}')
    shutil.rmtree(coco)


def write_voc(source, root):
    """The layout of the VOC devkit, with its lists of the parts."""
    for part, path, (width, height), objects in source.photos():
        _place(path, root / 'JPEGImages')
        items = ''.join(
            f'<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{box[0] + 1}</xmin>'
            f'<ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>'
            for name, box, _ in objects
        )
        text = (
            f'<annotation><folder>x</folder><filename>{path.name}</filename><size><width>{width}</width>'
            f'<height>{height}</height><depth>3</depth></size>{items}</annotation>'
        )
        lists = f'ImageSets/Main/{part}.txt'
        for file, content in ((f'Annotations/{path.stem}.xml', text), (lists, f'{path.stem}\n')):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            with open(root / file, 'a') as stream:
                stream.write(content)


def write_labelme(source, root):
    """Polygons, and one object of each image as a mask."""
    for part, path, (width, height), objects in source.photos():
        _place(path, root / part)
        shapes = []
        for number, (name, _, ring) in enumerate(objects):
            shape = dict(label=name, points=ring.tolist(), group_id=None, shape_type='polygon')
            if number == 0:
                mask = np.zeros((height, width), np.uint8)
                cv2.fillPoly(mask, [np.floor(ring).astype(np.int32)], 1)
                x0, y0, w, h = cv2.boundingRect(mask)
                png = io.BytesIO()
                Image.fromarray(mask[y0 : y0 + h, x0 : x0 + w].astype(bool)).save(png, 'PNG')
                points = [[x0, y0], [x0 + w - 1, y0 + h - 1]]
                code = base64.b64encode(png.getvalue()).decode()
                shape = dict(label=name, points=points, shape_type='mask', mask=code)
            shapes.append(shape)
        content = dict(
            version='5.5.0', flags={}, shapes=shapes, imagePath=f'..\\{part}\\{path.name}'
        )
        content |= dict(imageData=None, imageWidth=width, imageHeight=height)
        (root / part / f'{path.stem}.json').write_text(json.dumps(content))


def write_cvat(source, root):
    """Polygons, and one object of each image as a mask."""
    labels = ''.join(f'<label><name>{name}</name></label>' for name in source.classes)
    items = []
    for number, (part, path, (width, height), objects) in enumerate(source.photos()):
        _place(path, root / 'images')
        shapes = []
        for index, (name, _, ring) in enumerate(objects):
            points = ';'.join(f'{x:.2f},{y:.2f}' for x, y in ring)
            shape = f'<polygon label={quoteattr(name)} points="{points}"/>'
            if index == 0:
                mask = np.zeros((height, width), np.uint8)
                cv2.fillPoly(mask, [np.floor(ring).astype(np.int32)], 1)
                x, y, w, h = cv2.boundingRect(mask)
                flat = mask[y : y + h, x : x + w].ravel()
                changes = (
                    np.flatnonzero(np.diff(np.concatenate([[0], flat]))) if flat[0] == 0 else None
                )
                changes = np.flatnonzero(np.diff(flat)) + 1 if changes is None else changes
                counts = np.diff([0, *changes, len(flat)])
                counts = [0, *counts] if flat[0] else counts
                code = ','.join(map(str, counts))
                place = f'left="{x}" top="{y}" width="{w}" height="{h}"'
                shape = f'<mask label={quoteattr(name)} rle="{code}" {place}/>'
            shapes.append(shape)
        items.append(
            f'<image id="{number}" name="{path.name}" subset="{part}" width="{width}" height="{height}">'
            f'{"".join(shapes)}</image>'
        )
    (root / 'annotations.xml').write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><job><labels>'
        f'{labels}</labels></job></meta>{"".join(items)}</annotations>'
    )


INSTANCES = {
    'coco': (write_coco, 'mask-rcnn'),
    'roboflow': (write_roboflow, 'mask-rcnn'),
    'yolo': (write_yolo, 'faster-rcnn'),
    'yolo-segments': (write_yolo_segments, 'mask-rcnn'),
    'yolo-roboflow': (write_yolo_roboflow, 'mask-rcnn'),
    'voc': (write_voc, 'faster-rcnn'),
    'labelme': (write_labelme, 'mask-rcnn'),
    'cvat': (write_cvat, 'mask-rcnn'),
}


def write_masks(root, counts=(('train', 4), ('val', 2)), suffix='.png', change=None):
    """Photographs of CamVid with their label maps; `change` maps values to what is written instead."""
    for part, count in counts:
        for path in sorted(Path(REAL_DATA, 'camvid/images', part).iterdir())[:count]:
            _place(path, root / 'images' / part)
            mask = Path(REAL_DATA, 'camvid/annotations', part, f'{path.stem}.png')
            target = root / 'masks' / part
            target.mkdir(parents=True, exist_ok=True)
            values = np.asarray(Image.open(mask))
            values = values if change is None else change(values)
            Image.fromarray(values).save(target / f'{path.stem}{suffix}')


def write_classes(root, counts=(('train', 6), ('val', 2))):
    """Crops of pedestrians and of the road beside them."""
    for part, count in counts:
        coco = json.loads(
            Path(REAL_DATA, f'pennfudan/annotations/instances_{part}.json').read_text()
        )
        names = {item['id']: item['file_name'] for item in coco['images']}
        for number, item in enumerate(coco['annotations'][:count]):
            image = cv2.imread(str(Path(REAL_DATA, 'pennfudan', part, names[item['image_id']])))
            x, y, w, h = map(int, item['bbox'])
            for name, crop in (
                ('person', image[y : y + h, x : x + w]),
                ('ground', image[-h // 2 :, :w]),
            ):
                target = root / part / name / f'{number} of {part}.jpg'
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), crop)
