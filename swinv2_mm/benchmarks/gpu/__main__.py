"""One part of the report: `python -m swinv2_mm.benchmarks.gpu PART --seconds S --out F --device D [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

from swinv2_mm.benchmarks.gpu.environment import hide_transformers
from swinv2_mm.benchmarks.gpu.part import PARTS, PartOptions, Sink


def main() -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('part', choices=PARTS)
    parser.add_argument('--device', required=True)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--seconds', type=float, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--early', action='store_true', help='prepare, then read from stdin')
    parser.add_argument('--command', default='', help='command line of the report')
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    options = PartOptions(args.device, args.quick, deadline, args.early, args.command)
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # by way of `finally`
    sink = Sink(args.out, options)
    try:
        hide_transformers()  # mmdet imports mmpretrain, which does not work beside transformers 5
        part = importlib.import_module(f'swinv2_mm.benchmarks.gpu.{args.part}')
        part.run(options, sink)
    except Exception as error:
        sink.fail(args.part, error)
        raise
    sink.finish()


if __name__ == '__main__':
    main()
