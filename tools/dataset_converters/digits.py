"""Write scikit-learn's handwritten digits as image files for the classification config."""

import argparse
import os
import sys

from swinv2_mm.datasets.digits import write_digits


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'root',
        nargs='?',
        default=os.environ.get('SWINV2_MM_DIGITS', 'data/digits'),
        help='folder of the set; its default is SWINV2_MM_DIGITS or data/digits, as in the config',
    )
    root = parser.parse_args().root
    try:
        written = write_digits(root)
    except ModuleNotFoundError as error:
        sys.exit(f"digits: {error}; pip install -c constraints.txt '.[classification]'")
    except OSError as error:
        sys.exit(f'digits: {error}')
    if written:
        print(f'Wrote 1437 training and 360 validation pictures of 32 x 32 to {root}')
    else:
        print(f'The digits in {root} are complete; nothing to do')


if __name__ == '__main__':
    main()
