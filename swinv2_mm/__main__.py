"""`python -m swinv2_mm` is the command `swinv2-mm`."""

import sys

from swinv2_mm_cli import main

if __name__ == '__main__':
    sys.exit(main())
