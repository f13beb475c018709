"""Writes scikit-learn's handwritten digits as pictures for the classification config."""

from __future__ import annotations

import argparse
import os
import sys

from swinv2_mm.datasets.digits import DIGIT_SPLITS, SIDE, write_digits


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'root',
        nargs='?',
        default=os.environ.get('SWINV2_MM_DIGITS', 'data/digits'),
        help='folder of the set; its default is SWINV2_MM_DIGITS or data/digits, as in the config',
    )
    return parser.parse_args()


def main() -> None:
    """Runs the tool."""
    args = parse_args()
    try:
        written = write_digits(args.root)
    except (OSError, ModuleNotFoundError) as error:
        sys.exit(f'digits: {error}')
    if written:
        print(
            f'Wrote {DIGIT_SPLITS["train"]} training and {DIGIT_SPLITS["val"]} validation pictures of '
            f'{SIDE} x {SIDE} to {args.root}'
        )
    else:
        print(f'The digits in {args.root} are complete; nothing to do')


if __name__ == '__main__':
    main()
