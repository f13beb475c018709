"""Random changes of annotation files, label maps and image files: the checks find what would end a training."""

import copy
import json
import multiprocessing
import os
import random
import resource
import shutil
import traceback
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from swinv2_mm.datasets.checks import FILE_STAGES, READING_STAGES, ConfiguredData, check_data

ODD = (
    *(None, True, '', 'x', '7', -1, 0, 0.5, 1e308, 2**70, float('nan'), float('inf')),
    *([], {}, [[]], [None], [1.0], [[1.0, 2.0]], {'size': [4, 4], 'counts': 'x'}, 'é' * 300),
)


def places(tree, path=()):
    """Yield the paths of all values of a json document."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def change_json(content, draw):
    """Return a json with one to three values that are replaced, removed or repeated, and what changed."""
    document, done = json.loads(content), []
    for _ in range(draw.randint(1, 3)):
        *parents, key = draw.choice(list(places(document)))
        parent = document
        for step in parents:
            parent = parent[step]
        how = draw.choice(('replace', 'replace', 'remove', 'repeat'))
        value = draw.choice(ODD)
        if how == 'replace':
            parent[key] = value
        elif how == 'remove':
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        done.append((how, (*parents, key), value))
    return json.dumps(document).encode(), done


def change_bytes(content, draw):
    """Return bytes of which some are cut off, overwritten, removed or repeated."""
    content = bytearray(content)
    at, length = draw.randrange(len(content)), draw.randint(1, 64)
    how = draw.choice(('cut', 'overwrite', 'remove', 'repeat', 'empty'))
    if how == 'cut':
        del content[at:]
    elif how == 'overwrite':
        content[at : at + length] = draw.randbytes(length)
    elif how == 'remove':
        del content[at : at + length]
    elif how == 'repeat':
        content[at:at] = content[at : at + length]
    else:
        content.clear()
    return bytes(content), (how, at, length)


def trains_or_is_found(config, part, name):
    """Return the errors that the checks find, and what they say about a file; without any, read all samples."""
    cfg = Config.fromfile(config, use_environment_variables=True)
    init_default_scope(cfg.default_scope)
    data = ConfiguredData(cfg, (part,))
    found = check_data(data, FILE_STAGES + READING_STAGES)
    errors = [finding for finding in found if finding.severity == 'error' or name in str(finding)]
    if errors:
        return errors
    dataset = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
    for index in range(len(dataset)):
        dataset[index]
    return []


def try_changes(file, change, content, config, count, env, log):
    """Apply changes to a file one by one; exit with 1 if one is neither found nor harmless, 2 if few are found."""
    os.environ.update(env)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    limit = used + 2**33  # a fault may ask for any amount
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    draw, found = random.Random(0), 0
    for _ in range(count):
        changed, how = change(content, draw)
        file.write_bytes(changed)
        log.write_text(f'{how}: ends the process')
        try:
            found += bool(trains_or_is_found(config, 'train', file.name))
        except Exception:
            log.write_text(f'{how}\n{traceback.format_exc()[-2500:]}')
            os._exit(1)
    os._exit(0 if found > count // 8 else 2)


def check_changes(file, change, content, config, count):
    """Apply changes to a file in a process of its own, since a library may end it; fail if one is not found."""
    env = {'SWINV2_MM_SHAPES': os.environ['SWINV2_MM_SHAPES']}
    log = Path(env['SWINV2_MM_SHAPES']) / 'log.txt'
    # Not forked from this process, which has many threads.
    process = multiprocessing.get_context('forkserver').Process(
        target=try_changes, args=(file, change, content, config, count, env, log)
    )
    process.start()
    process.join(10 * count + 120)
    process.kill()
    process.join()
    assert process.exitcode == 0, f'exit {process.exitcode}\n{log.read_text()}'


@pytest.fixture
def data(shapes_root, tmp_path, monkeypatch):
    root = tmp_path / 'set'
    shutil.copytree(shapes_root, root)
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root))
    return root


@pytest.mark.parametrize('count', [8, pytest.param(300, marks=pytest.mark.long)])
def test_changed_annotations_are_found_or_harmless(data, detection_config, monkeypatch, count):
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(data))
    file = data / 'annotations' / 'instances_training.json'
    check_changes(file, change_json, file.read_bytes(), detection_config, count)


@pytest.mark.parametrize('count', [4, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize('folder', ['images', 'annotations'])
def test_changed_files_are_found_or_harmless(data, segmentation_config, monkeypatch, folder, count):
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(data))
    file = sorted((data / folder / 'training').glob('*.png'))[2]
    check_changes(file, change_bytes, file.read_bytes(), segmentation_config, count)
