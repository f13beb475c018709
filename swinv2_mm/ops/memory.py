"""What the C library does with memory that torch gives back."""

from functools import cache

import torch


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what a call frees, up to 64 MB, for the next one.

    Otherwise it hands memory back to the system and gets it anew, to be cleared page by page, during every call: 3 to
    10 % of the time. It keeps twice the largest block that it has seen freed, if that was below 32 MB; this frees one,
    which nobody used.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device='cpu')
