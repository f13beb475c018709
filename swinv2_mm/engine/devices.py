"""Which device a run uses, and how its processes find each other."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta

import torch
from mmengine.config import Config
from torch import distributed

from swinv2_mm.engine.errors import SetupError

_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
"""Variables in which the launchers pytorch, slurm and mpi tell a process its number."""


def process_rank(launcher: str) -> int:
    """Returns the number of this process, before the processes have met."""
    if launcher == 'none':
        return 0
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def require_device(device: str, launcher: str) -> bool:
    """Checks that the devices asked for are there.

    Args:
        device: `'auto'` for the GPU if there is one, `'cuda'` to insist on it, `'cpu'`.
        launcher: `'none'`, `'pytorch'`, `'slurm'` or `'mpi'`.

    Returns:
        Whether the run uses GPUs.

    Raises:
        SetupError: A GPU is asked for and none is usable, there are more processes than GPUs, or the launcher has not
            set up its environment.
    """
    has_gpu = torch.cuda.is_available()
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if device == 'cuda' and not has_gpu:
        raise SetupError(
            f'--device cuda, but torch {torch.__version__} sees no GPU ({_why_no_gpu()}): '
            'use --device cpu to run on the CPU.'
        )
    if device == 'auto' and not has_gpu and visible not in ('', '-1'):
        raise SetupError(
            f'CUDA_VISIBLE_DEVICES={visible} asks for a GPU, but torch {torch.__version__} sees none '
            f'({_why_no_gpu()}): use --device cpu to run on the CPU.'
        )
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise SetupError(
            '--launcher pytorch is for processes started by torchrun: use tools/dist_train.sh.'
        )
    if launcher in ('slurm', 'mpi') and not has_gpu:
        raise SetupError(
            f'--launcher {launcher} needs a GPU on every node, and this one has none that torch can use.'
        )
    local_processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if launcher == 'pytorch' else 1
    if has_gpu and local_processes > torch.cuda.device_count():
        raise SetupError(
            f'{local_processes} processes on this machine need as many GPUs, and it has {torch.cuda.device_count()}.'
        )
    return has_gpu


def join_processes(cfg: Config, on_gpu: bool) -> None:
    """Connects the processes of a distributed run that has no GPU.

    With GPUs mmengine does it. It would pick a GPU for each process and speak NCCL, so on CPUs the processes are joined
    here, with gloo, and what needs a GPU is taken out of the config.
    """
    if on_gpu:
        return
    cfg.pop('sync_bn', None)
    if cfg.launcher == 'none' or distributed.is_initialized():
        return
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    timeout = timedelta(seconds=dist_cfg.get('timeout', 1800))
    distributed.init_process_group('gloo', timeout=timeout)


def leave_processes(code: int) -> None:
    """Takes this process out of its group, if there is one; with gloo, ends it here and now.

    Threads of gloo may still hold tensors then. If they let go of them while Python shuts down, which they need the
    interpreter for, the process dies of SIGABRT after all its work is done.

    Args:
        code: The exit code; 0 if the other processes have got here, too.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    uses_gloo = distributed.get_backend() == 'gloo'
    if code == 0:
        distributed.destroy_process_group()
    if uses_gloo:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def describe_device(on_gpu: bool) -> str:
    """Returns the device in words."""
    if on_gpu:
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} thread{"s" if torch.get_num_threads() > 1 else ""}'


def _why_no_gpu() -> str:
    """Returns the likely reason why torch sees no GPU."""
    if torch.version.cuda is None:
        return 'this build of torch is for CPUs'
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return 'CUDA_VISIBLE_DEVICES hides all of them'
    return (
        f'it is built for CUDA {torch.version.cuda}; is there a GPU, and does nvidia-smi list it?'
    )
