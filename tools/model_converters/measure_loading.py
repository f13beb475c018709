"""Measure the peak memory of loading a checkpoint of about 1 GB, in addition to that of the model."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import load_pretrained
from swinv2_mm.checkpoints.convert import convert_checkpoint

ARCH = dict(embed_dims=224, depths=[2, 2, 18, 2], num_heads=[7, 14, 28, 56])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--layouts', nargs='+', default=['native', 'hf', 'torchvision'])
    parser.add_argument('--one', help=argparse.SUPPRESS)  # a file, measured in a separate process
    return parser.parse_args()


def peak_megabytes() -> float:
    """Return the peak memory of this process, including mapped files (Linux).

    `getrusage` also counts the peak of the parent process.
    """
    status = Path('/proc/self/status').read_text(encoding='utf-8')
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024


def measure(file: Path) -> None:
    """Print the increase of peak memory when `file` is loaded into the model."""
    backbone = SwinTransformerV2(ARCH, norm_cfg=None, pretrained_window_sizes=8)
    before = peak_megabytes()
    load_pretrained(backbone, file, logger='silent')
    rise = peak_megabytes() - before
    size = file.stat().st_size / 2**20
    print(
        f'{file.name:24} {size:6.0f} MB; peak above the model {rise:6.0f} MB = {rise / size:.2f} x'
    )


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    if args.one:
        measure(Path(args.one))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'native.pth'
        torch.save(SwinTransformerV2(ARCH, norm_cfg=None).state_dict(), source)
        for layout in args.layouts:
            for suffix in ('.pth', '.safetensors'):
                file = Path(folder) / f'{layout}{suffix}'
                if file != source:
                    convert_checkpoint(source, file, layout)
                # A new process, since the peak of a process never falls.
                subprocess.run([sys.executable, __file__, '--one', str(file)], check=True)
                if file != source:
                    file.unlink()
    return 0


if __name__ == '__main__':
    sys.exit(main())
