"""What a user's own code prints, and how a debugger of it works, under the tools."""

import subprocess
import sys

import pytest
from tool_runs import FAST, ROOT, SEGMENTATION

MODULE = """
import sys
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
from tqdm import tqdm

@TRANSFORMS.register_module()
class Printing:
    def __init__(self, **_):
        pass

    def __call__(self, results):
        print('a transform sees', results['img'].shape)
        return results

@HOOKS.register_module()
class Talking(Hook):
    def before_train(self, runner):
        print('a hook prints')
        sys.stdout.buffer.write(b'bytes of a hook\\n')
        sys.stdout.flush()
        for _ in tqdm(range(3), desc='a bar'):
            pass
        if {debug}:
            breakpoint()
        print('end of the hook')
"""
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['swinv2_mm', 'user_code'], allow_failed_imports=False)
custom_hooks = [dict(type='mmengine.Talking')]
"""


@pytest.fixture
def command(tmp_path, environment):
    """Return a function that prepares a run of a config with a user's code."""

    def prepare(debug):
        (tmp_path / 'user_code.py').write_text(MODULE.replace('{debug}', str(debug)))
        config = tmp_path / 'config.py'
        config.write_text(CONFIG.format(base=SEGMENTATION))
        path = f'{tmp_path}:{environment["PYTHONPATH"]}'
        words = [
            sys.executable,
            'tools/train.py',
            config,
            '--work-dir',
            tmp_path / 'run',
            '--max-iters',
            '1',
        ]
        options = [*FAST, 'train_dataloader.dataset.pipeline.2.type=mmengine.Printing']
        return [*map(str, words), '--cfg-options', *options], dict(environment, PYTHONPATH=path)

    return prepare


def test_prints_bytes_and_bars_reach_the_terminal(command):
    words, env = command(debug=False)
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'a transform sees (' in done.stdout
    assert 'a hook prints\nbytes of a hook\n' in done.stdout
    assert 'a bar: 100%' in done.stderr


def test_a_breakpoint_can_be_used(command):
    words, env = command(debug=True)
    done = subprocess.run(
        words, env=env, cwd=ROOT, input='p 6 * 7\nc\n', capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '(Pdb) 42\n' in done.stdout
    assert 'end of the hook' in done.stdout
