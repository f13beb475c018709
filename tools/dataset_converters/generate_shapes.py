"""Write the generated shapes dataset of the quickstart configs."""

import argparse
import os
import sys

from swinv2_mm.datasets import generate_shapes


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'root',
        nargs='?',
        default=os.environ.get('SWINV2_MM_SHAPES', 'data/shapes'),
        help='folder of the set; its default is SWINV2_MM_SHAPES or data/shapes, as in the configs',
    )
    parser.add_argument('--num-train', type=int, default=1200, help='number of training pictures')
    parser.add_argument('--num-val', type=int, default=150, help='number of validation pictures')
    parser.add_argument(
        '--image-size',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the pictures, in pixels',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of all randomness')
    args = parser.parse_args()
    try:
        written = generate_shapes(**vars(args))
    except (OSError, ValueError) as error:
        sys.exit(f'generate_shapes: {error}')
    if written:
        print(
            f'Wrote {args.num_train} training and {args.num_val} validation pictures to {args.root}'
        )
    else:
        print(f'The set of shapes in {args.root} is complete; nothing to do')


if __name__ == '__main__':
    main()
