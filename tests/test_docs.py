"""Test the README, docs and packaging."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

import swinv2_mm_cli
from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR

ROOT = Path(__file__).parents[1]
METHODS = sorted((ROOT / 'configs').glob('*/README.md'))
DOCS = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *METHODS,
]


def snippet(name: str) -> str:
    """Return the code block of the README after the comment `test: name`."""
    found = re.findall(rf'<!-- test: {name} -->\n```python\n(.*?)```', README, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


README = (ROOT / 'README.md').read_text()
USERS_CONFIG = {
    'mmdet': (mmdet, 'mask_rcnn'),
    'mmseg': (mmseg, 'upernet'),
}


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_the_lines_for_a_config_of_ones_own_build_and_run(scope, tmp_path):
    library, folder = USERS_CONFIG[scope]
    shutil.copytree(Path(library.__file__).parent / '.mim/configs', tmp_path / 'configs')
    config = tmp_path / 'configs' / folder / 'mine.py'
    config.write_text(snippet(scope))
    cfg = Config.fromfile(config)
    import_modules_from_strings([f'{scope}.models'])
    with DefaultScope.overwrite_default_scope(scope):
        registry = sys.modules[f'{scope}.registry'].MODELS
        model = registry.build(cfg.model)
    assert isinstance(model.backbone, SwinTransformerV2)
    model = revert_sync_batchnorm(model).eval()
    with torch.no_grad():
        features = model.extract_feat(torch.randn(1, 3, 70, 90))
        if scope == 'mmseg':
            assert model.decode_head(features).shape[1] == cfg.model.decode_head.num_classes
            assert model.auxiliary_head(features).shape[2:] == (5, 6)
        else:
            assert [tuple(item.shape[1:]) for item in features[:2]] == [(256, 18, 23), (256, 9, 12)]


def test_the_torch_example_runs():
    exec(compile(snippet('torch'), 'README.md', 'exec'), {})


def test_the_features_example_runs():
    names = {}
    exec(compile(snippet('features'), 'README.md', 'exec'), names)
    assert type(names['features']) is list and names['model'].window_sizes == ((16, 16),) * 4


def test_the_examples_of_the_backbone_page_run():
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/backbone.md').read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {'images': torch.randn(1, 3, 64, 64)}
    for block in blocks[:2]:
        exec(compile(block, 'docs/backbone.md', 'exec'), names)
    assert names['maps'][0].isfinite().all()
    assert "with torch.device('meta')" in blocks[2]
    small = blocks[2].replace("'giant'", 'dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)')
    names = {'torch': torch, 'SwinTransformerV2': SwinTransformerV2}
    exec(compile(small, 'docs/backbone.md', 'exec'), names)
    assert names['backbone'](torch.randn(1, 3, 9, 9))[0].isfinite().all()


def test_every_option_of_the_backbone_is_in_its_table():
    import inspect

    page = (ROOT / 'docs/backbone.md').read_text()
    options = list(inspect.signature(SwinTransformerV2).parameters)
    options += [
        name for name in inspect.signature(SwinTransformerV2CR).parameters if name != 'options'
    ]
    assert len(options) > 25
    for option in options:
        assert f'`{option}`' in page, option


def test_links_and_files_named_in_the_docs_exist():
    checked = 0
    for page in DOCS:
        text = page.read_text()
        for target in re.findall(r'\]\((?!http)([^)#]+)\)', text):
            assert (page.parent / target).exists(), f'{page.name}: {target}'
            checked += 1
        for name in re.findall(r'(?:configs|tools)/[\w./-]+\.(?:py|sh)', text):
            assert (ROOT / name).exists(), f'{page.name}: {name}'
            checked += 1
    assert checked > 20


def test_every_config_is_in_its_readme_and_the_model_index():
    leaves = sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').rglob('*.py')
        if not {'_base_', 'comparison'} & set(path.parts)  # the latter are of other backbones
    )
    assert len(leaves) > 12
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [yaml.safe_load((ROOT / name).read_text()) for name in index['Import']]
    assert sorted(model['Config'] for file in files for model in file['Models']) == leaves
    table = (ROOT / 'docs/configs.md').read_text()
    for leaf in map(Path, leaves):
        page = leaf.with_name('README.md')
        assert f'](../{page})' in table, leaf
        assert f']({leaf.name})' in (ROOT / page).read_text(), leaf


def test_commands_and_options_in_the_docs_exist():
    """Every line `swinv2-mm ...` of a code block; others write about options in tables."""
    checked = 0
    for page in DOCS:
        for block in re.findall(r'^```\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace('\\\n', ' ').splitlines():
                if not line.startswith('swinv2-mm ') or line.split()[1] == 'COMMAND':
                    continue
                words = line.split('#')[0].split()
                names = [n for n in (' '.join(words[1:3]), words[1]) if n in swinv2_mm_cli.COMMANDS]
                assert names, f'{page.name}: {line}'
                source = (ROOT / 'tools' / swinv2_mm_cli.COMMANDS[names[0]]).read_text()
                source += (ROOT / 'swinv2_mm_cli.py').read_text()
                for option in re.findall(r'(?<![\w-])(--?[a-z][a-z-]*)', line.split('#')[0]):
                    assert f"'{option}'" in source, f'{page.name}: {line}'
                    checked += 1
    assert checked > 20


def test_the_config_for_a_coco_json_builds(tmp_path):
    page = (ROOT / 'docs/training.md').read_text()
    (code,) = re.findall(r'<!-- test: own-coco -->\n```python\n(.*?)```', page, re.DOTALL)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    (tmp_path / 'configs/mask_rcnn/mine.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'configs/mask_rcnn/mine.py')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')
    assert cfg.train_dataloader.dataset.data_root == 'data/pets/'
    assert cfg.model.roi_head.mask_head.num_classes == 2 and cfg.model.backbone


def test_a_build_carries_configs_tools_and_the_index(tmp_path):
    """OpenMMLab packaging convention; the source tree must not change."""
    done = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shipped = tmp_path / 'swinv2_mm' / '.mim'
    for name in ('configs', 'tools'):
        ours = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / name).rglob('*')
            if path.is_file()
            and '__pycache__' not in path.parts
            and not path.name.startswith(('benchmark_', 'gpu_report'))  # these need the checkout
        }
        assert len(ours) > 5
        assert ours == {
            path.relative_to(shipped).as_posix()
            for path in (shipped / name).rglob('*')
            if path.is_file()
        }
    assert (shipped / 'model-index.yml').is_file()
    assert not (ROOT / 'swinv2_mm' / '.mim').exists()
