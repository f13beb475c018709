"""Recognise the data in a folder and write a config that trains a model on them."""

from __future__ import annotations

import sys

from swinv2_mm_cli import make_parser, require_paths, run


def _share(text: str) -> float:
    """Return a number between 0 and 1."""
    value = float(text)
    if not 0 < value < 1:
        raise ValueError
    return value


_share.__name__ = 'share between 0 and 1'


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(
        __doc__, 'Exit code 0, or 2 if nothing was written or training on the data would suffer.'
    )
    parser.add_argument('folder', help='folder with the data; nothing in it is changed')
    parser.add_argument(
        '--model',
        help='mask-rcnn_swinv2-SIZE, faster-rcnn_swinv2-SIZE, upernet_swinv2-SIZE, fpn_swinv2-SIZE or swinv2-SIZE, '
        'where SIZE is nano, t, s, b or l (default: what fits the data, of size t)',
    )
    parser.add_argument(
        '-o', '--out', metavar='FILE', help='config to write (default: MODEL_FOLDER.py)'
    )
    parser.add_argument(
        '--split',
        type=_share,
        metavar='SHARE',
        help='share of the training images to validate on, where there is no validation set',
    )
    parser.add_argument(
        '--layout',
        choices=['coco', 'yolo', 'voc', 'labelme', 'cvat', 'masks', 'classes'],
        help='layout to read, where the folder has several',
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite what an earlier call has written'
    )
    args = parser.parse_args()
    require_paths('folder', args.folder)
    return run('swinv2_mm.apis.new_config:new_config', args)


if __name__ == '__main__':
    sys.exit(main())
