"""Whether `torch.export` is at work."""

import torch


def is_exporting() -> bool:
    """Whether a program is being exported, which has to be made of operators that exist where it will run.

    `torch.compiler.is_exporting` says so under `torch.compile` as well in torch 2.7 to 2.13. Earlier versions have
    neither it nor the flag.
    """
    return bool(getattr(torch.compiler, '_is_exporting_flag', False))
