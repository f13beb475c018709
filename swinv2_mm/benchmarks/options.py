"""Options that both benchmarks have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swinv2_mm.benchmarks.cases import DTYPES, SIZES
from swinv2_mm.benchmarks.contestants import why_absent
from swinv2_mm.benchmarks.processes import Pool


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: Number of rounds.
        min_seconds: What a sample lasts at least.
        threads: Threads of every contestant.
        device: `'cpu'` or `'cuda'`.
        timeout: Longest time of one request, in seconds.
        arch: A key of `cases.SIZES`.
        batch: Images per call.
        dtype: One of `cases.DTYPES`.
    """

    rounds: int
    min_seconds: float
    threads: int
    device: str
    timeout: float
    arch: str
    batch: int
    dtype: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> Settings:
        """From the command line.

        Raises:
            ValueError: A number is out of range, or there is no GPU.
        """
        for name in ('rounds', 'batch'):
            if getattr(args, name) < 1:
                raise ValueError(f'--{name} {getattr(args, name)}: expected at least 1')
        if args.threads is not None and args.threads < 1:
            raise ValueError(f'--threads {args.threads}: expected at least 1')
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError('--device cuda: torch sees no GPU; use --device cpu')
        return cls(
            args.rounds,
            args.min_time,
            args.threads or torch.get_num_threads(),
            args.device,
            args.timeout,
            args.arch,
            args.batch,
            args.dtype,
        )

    def pool(self) -> Pool:
        """The processes of a run."""
        return Pool(self.threads, self.device, self.timeout)

    def common(self) -> dict[str, Any]:
        """What all cases share."""
        return {
            'arch': self.arch,
            'batch': self.batch,
            'dtype': self.dtype,
            'device': self.device,
        }


def add_options(parser: argparse.ArgumentParser, batch: int) -> None:
    """Adds the options that both benchmarks have.

    Args:
        parser: The parser of a tool.
        batch: Default of `--batch`.
    """
    parser.add_argument('--arch', choices=list(SIZES), default='tiny')
    parser.add_argument('--batch', type=int, default=batch, help=f'images per call ({batch})')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='fp32', help='bf16 and fp16 by autocast (fp32)'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=11, help='interleaved rounds (11)')
    parser.add_argument('--threads', type=int, help="threads of each contestant (torch's default)")
    parser.add_argument(
        '--min-time',
        type=float,
        default=0.3,
        metavar='S',
        help='repeat shorter calls for this long in every round (0.3)',
    )
    parser.add_argument(
        '--timeout', type=float, default=1800, metavar='S', help='give up on a call after (1800)'
    )
    parser.add_argument('--json', metavar='F', help='write all figures; rewritten after every case')
    parser.add_argument('--markdown', metavar='F', help='write the tables')
    parser.add_argument('--plot', metavar='F', help='draw time and memory (.png, .svg, .pdf)')
    parser.add_argument(
        '--from-json', metavar='F', help='measure nothing: tables and figure of an earlier run'
    )


def sort_out(names: Sequence[str], libraries: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Divides peers into those that are installed and those that are not.

    Args:
        names: The peers asked for.
        libraries: Library of each peer.

    Returns:
        The names of the first, and of the others with how to get them.
    """
    absent = {name: why for name in dict.fromkeys(names) if (why := why_absent(libraries[name]))}
    return [name for name in dict.fromkeys(names) if name not in absent], absent
