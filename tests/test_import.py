"""Test the effects of `import swinv2_mm`."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SMALL = 'arch=dict(embed_dims=32, depths=[2], num_heads=[1]), window_size=4, out_indices=(0,)'


def run(code, *path):
    """Run code in a new process; return the value of its last line of output, and its standard error."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (*path, ROOT)))}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ast.literal_eval(done.stdout.splitlines()[-1]), done.stderr


def test_the_import_loads_nothing_but_registries():
    """Importing mmengine.model takes as long as `import mmengine`, and torch's compiler longer."""
    before = 'import sys, torch, mmengine.registry, mmcv; before = set(sys.modules); '
    loaded, _ = run(before + 'import swinv2_mm; print(sorted(set(sys.modules) - before))')
    assert set(loaded) <= {
        'mmcv._ext',
        'swinv2_mm',
        'swinv2_mm.ops',
        'swinv2_mm.ops.mmcv_ext',
        'swinv2_mm.registry',
        'swinv2_mm.version',
    }


def test_a_backbone_loads_neither_the_compiler_nor_other_libraries():
    loaded, _ = run(
        f'import sys, torch, swinv2_mm; model = swinv2_mm.SwinTransformerV2({SMALL}).eval()\n'
        'with torch.no_grad(): model(torch.ones(1, 3, 40, 40))\n'
        'print(sorted({name.partition(".")[0] for name in sys.modules} | {\n'
        '    name for name in sys.modules if name == "torch._dynamo"}))'
    )
    unwanted = {'mmdet', 'mmseg', 'mmpretrain', 'numba', 'timm', 'torch._dynamo', 'torchvision'}
    assert 'swinv2_mm' in loaded and not unwanted & set(loaded)


def test_attributes_that_are_imported_when_they_are_used():
    found, _ = run(
        'import swinv2_mm\n'
        'print([swinv2_mm.SwinTransformerV2CR.__name__, swinv2_mm.checkpoints.load_pretrained.__name__,\n'
        '    swinv2_mm.models.swin_transformer_v2_t.func.__name__, hasattr(swinv2_mm, "SwinTransformerV3")])'
    )
    assert found == ['SwinTransformerV2CR', 'load_pretrained', 'swin_transformer_v2', False]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_what_the_names_build_in_every_scope(scope):
    """Plain names first, before the class is imported. MMPretrain's class keeps its name."""
    plain = ['SwinTransformerV2', 'SwinTransformerV2CR']
    prefixed = [f'swinv2_mm.{name}' for name in plain]
    found, _ = run(
        f'import swinv2_mm\nfrom {scope}.registry import MODELS\nfound = []\n'
        f'for name in {[*plain, *prefixed, *plain]}:\n'
        '    model = MODELS.build(dict(type=name, arch="tiny", window_size=8))\n'
        '    found.append(type(model).__module__.partition(".")[0])\n'
        'print(found)'
    )
    first = 'mmpretrain' if scope == 'mmpretrain' else 'swinv2_mm'
    assert found == [first, 'swinv2_mm', 'swinv2_mm', 'swinv2_mm', first, 'swinv2_mm']


def test_the_prefixed_name_needs_no_import():
    found, _ = run(
        'from mmengine.registry import MODELS\n'
        f'model = MODELS.build(dict(type="swinv2_mm.SwinTransformerV2", {SMALL}))\n'
        'print([type(model).__module__.partition(".")[0]])'
    )
    assert found == ['swinv2_mm']


def test_a_class_of_somebody_else_keeps_its_name():
    found, _ = run(
        'from mmengine.registry import MODELS\n'
        '@MODELS.register_module()\n'
        'class SwinTransformerV2: pass\n'
        'import swinv2_mm.models\n'
        'print([MODELS.get("SwinTransformerV2") is SwinTransformerV2,\n'
        '    MODELS.get("swinv2_mm.SwinTransformerV2") is swinv2_mm.SwinTransformerV2])'
    )
    assert found == [True, True]


@pytest.mark.parametrize(
    ('package', 'content', 'reason'),
    [
        ('llvmlite', 'raise ImportError("no libLLVM")', 'no libLLVM'),
        ('llvmlite', 'raise OSError("wrong ELF class")', 'wrong ELF class'),
        ('llvmlite', 'class binding: pass', 'older than version 0.45'),
        ('triton', 'raise RuntimeError("needs another driver")', 'needs another driver'),
        ('triton', 'raise ImportError("no libcuda")', None),
        ('numba', 'raise ImportError("Numba needs NumPy 2.0 or less")', None),
    ],
)
def test_broken_packages_are_replaced_with_one_warning(package, content, reason, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(content)
    same, error = run(
        f'import torch, swinv2_mm\nmodel = swinv2_mm.SwinTransformerV2({SMALL}).eval()\n'
        'image = torch.randn(1, 3, 40, 40)\n'
        'with torch.no_grad(): maps = [model(image)[0] for _ in range(2)]\n'
        'model.layers[0].blocks[0].attn.backend = "reference"\n'
        'with torch.no_grad(): maps.append(model(image)[0])\n'
        'print([torch.allclose(maps[0], item, atol=1e-5) for item in maps])',
        tmp_path,
    )
    assert same == [True] * 3
    warned = [line for line in error.splitlines() if 'UserWarning' in line]
    asked = package != 'llvmlite' or torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
    assert len(warned) == (1 if reason and asked else 0)
    assert 'Traceback' not in error
    for line in warned:
        assert f'package {package} is not installed, or cannot be imported' in line
        assert reason in line


def test_a_broken_triton_is_named_where_it_is_asked_for(tmp_path):
    (tmp_path / 'triton').mkdir()
    (tmp_path / 'triton' / '__init__.py').write_text('raise ImportError("no libcuda")')
    found, _ = run(
        f'import torch, swinv2_mm\nmodel = swinv2_mm.SwinTransformerV2({SMALL}, attn_backend="triton")\n'
        'try: model(torch.randn(1, 3, 40, 40))\n'
        'except ValueError as error: print([str(error)])',
        tmp_path,
    )
    assert 'no libcuda' in found[0] and "'triton' cannot run" in found[0]
