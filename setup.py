"""Build step of the OpenMMLab packaging convention; all metadata is in pyproject.toml.

A wheel carries configs, tools and the model index in `swinv2_mm/.mim`, where `swinv2-mm`, `swinv2_mm.shipped` and `mim`
look for them.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ('configs', 'tools', 'model-index.yml')
# The tools that need the folder `benchmarks`, which only a checkout has.
LEFT_OUT = ('__pycache__', 'benchmark_*.py', 'gpu_report.py')


class BuildWithMim(build_py):
    """Copy what users start from into the package that is being built (never into the source tree)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'swinv2_mm', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copy2(source, target / name)


setup(cmdclass={'build_py': BuildWithMim})
