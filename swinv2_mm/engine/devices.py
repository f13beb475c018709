"""Which device a run uses, and how its processes find each other."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import mmengine.device.utils
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_distributed
from torch import distributed

from swinv2_mm.engine.console import warn
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.ops.private import has_all_threads

_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
"""Variables in which the launchers pytorch, slurm and mpi tell a process its number."""
_KINDS = ('npu', 'cuda', 'mlu', 'mps', 'musa', 'xpu')
"""Kinds of accelerators of torch or its plug-ins, in the order in which mmengine prefers them."""
GPU_KINDS = ('cuda', 'npu', 'mlu', 'musa')
"""Kinds for which mmengine has mixed precision and distributed training."""


def process_rank(launcher: str) -> int:
    """Return the number of this process, before the processes have met."""
    if launcher == 'none':
        return 0
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def available_devices() -> list[str]:
    """Return the devices that torch can use, e.g. `['cpu', 'cuda:0', 'cuda:1']`."""
    found = ['cpu']
    for kind in _KINDS:
        module = getattr(torch, kind, None)
        checked: Any = torch.backends.mps if kind == 'mps' else module
        if module is not None and checked.is_available():
            count = module.device_count()
            found += [kind] if kind == 'mps' else [f'{kind}:{index}' for index in range(count)]
    return found


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products and convolutions of a device run in fp32, bf16 or fp16.

    Raises:
        SetupError: The device cannot, or there is no such precision.
    """
    dtypes = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    if precision not in dtypes:
        raise SetupError(f'precision {precision!r}: expected {", ".join(dtypes)}.')
    if precision == 'fp32':
        return nullcontext()
    if precision == 'fp16' and device.type == 'cpu':
        raise SetupError('precision fp16 is for GPUs: use bf16 on a CPU.')
    if device.type == 'cpu' and not torch.backends.cpu.get_cpu_capability().startswith('AVX512'):
        warn('this processor has no bf16 products: bf16 takes many times as long as fp32')
    try:
        return torch.autocast(device.type, dtypes[precision])
    except RuntimeError as error:
        raise SetupError(f'precision {precision} on {device}: {error}') from error


def has_bf16(device: torch.device) -> bool:
    """Return whether a GPU computes in bf16 without emulation; False for other devices than those of CUDA."""
    if device.type != 'cuda' or not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def restored_device() -> Iterator[None]:
    """Restore mmengine's device at the end of a run."""
    before = mmengine.device.utils.DEVICE
    try:
        yield
    finally:
        mmengine.device.utils.DEVICE = before


def use_device(name: str, launcher: str) -> torch.device:
    """Make mmengine run on a device of torch, such as `'cuda:1'`, or on its own choice for `'auto'`."""
    available = available_devices()
    device = _choose(name, available)
    if launcher != 'none':
        _require_processes(device, launcher, available)
    # Runner, loops and autocast ask `get_device()`, which otherwise returns an accelerator wherever there is one.
    mmengine.device.utils.DEVICE = device.type
    if device.index is not None and device.type != 'mps':
        torch.get_device_module(device.type).set_device(device.index)
    if not has_all_threads():
        warn(
            'torch runs on one thread: with OMP_THREAD_LIMIT, OMP_DYNAMIC or OMP_MAX_ACTIVE_LEVELS, OpenMP may start '
            'fewer threads than torch counts on, and oneDNN then computes wrong values'
        )
        torch.set_num_threads(1)
    return device


def _choose(name: str, available: list[str]) -> torch.device:
    """Return the device of that name; for `auto` the first accelerator, or the CPU."""
    listed = f'available: {", ".join(available)}'
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if name == 'auto' and (len(available) > 1 or visible in ('', '-1')):
        return torch.device(available[1].partition(':')[0] if len(available) > 1 else 'cpu')
    asks = f'CUDA_VISIBLE_DEVICES={visible}' if name == 'auto' else f'--device {name}'
    try:
        device = torch.device('cuda' if name == 'auto' else name)
    except RuntimeError as error:
        raise SetupError(f'{asks} is not a device of torch; {listed}.') from error
    index = device.index or 0
    if f'{device.type}:{index}' in available or (index == 0 and device.type in available):
        return device
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise SetupError(
            f'{asks} asks for a GPU, but torch {torch.__version__} sees none ({_why_no_gpu()}): use --device cpu to '
            f'run on the CPU ({listed}).'
        )
    raise SetupError(f'{asks} is not available; {listed}.')


def _require_processes(device: torch.device, launcher: str, available: list[str]) -> None:
    """Check that several processes can run on devices of this kind."""
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise SetupError(
            '--launcher pytorch is for processes started by torchrun: use tools/dist_train.sh.'
        )
    if device.type != 'cpu' and (device.index is not None or device.type not in GPU_KINDS):
        raise SetupError(
            f'--device {device} is for a single process: several run on {", ".join(GPU_KINDS)} (without an index, '
            'each process takes its own) or on cpu.'
        )
    if launcher in ('slurm', 'mpi') and device.type == 'cpu':
        raise SetupError(
            f'--launcher {launcher} needs a GPU on every node, and this one has none that torch can use.'
        )
    count = sum(name.startswith(device.type) for name in available)
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if launcher == 'pytorch' else 1
    if device.type != 'cpu' and processes > count:
        raise SetupError(
            f'{processes} processes on this machine need as many GPUs, and it has {count}.'
        )


def is_sharded(model_wrapper_cfg: Mapping[str, Any] | None) -> bool:
    """Return whether a config's `model_wrapper_cfg` asks for `swinv2_mm.engine.sharded.FullyShardedModel`."""
    kind = (model_wrapper_cfg or {}).get('type', '')
    return getattr(kind, '__name__', kind).rpartition('.')[2] == 'FullyShardedModel'


def join_processes(cfg: Config, device: torch.device) -> None:
    """Connect the processes of a distributed run on CPUs, with gloo.

    On accelerators mmengine does it. It would pick a GPU for each process, so what needs a GPU is taken out of the
    config.
    """
    if device.type != 'cpu' or cfg.launcher == 'none':
        return
    cfg.pop('sync_bn', None)
    given = cfg.get('model_wrapper_cfg') or {}
    if not is_sharded(given):
        cfg.model_wrapper_cfg = ConfigDict(
            {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': cfg.get('find_unused_parameters', False),
                **given,
                'device_ids': None,
            }
        )
    if not distributed.is_initialized():
        dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
        timeout = timedelta(seconds=dist_cfg.get('timeout', 1800))
        distributed.init_process_group('gloo', timeout=timeout)


def leave_processes(code: int) -> None:
    """Take this process out of its group, if there is one; with gloo, end it at once.

    Threads of gloo may still hold tensors then. If they release them while Python shuts down, for which they need the
    interpreter, the process dies of SIGABRT after all its work is done. Code 0 says that the others have got here.
    """
    if not is_distributed():
        return
    uses_gloo = distributed.get_backend() == 'gloo'
    if code == 0:
        distributed.destroy_process_group()
    if uses_gloo:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == 'cuda':
        return f'{device}, {torch.cuda.get_device_name(device)}'
    if device.type != 'cpu':
        return str(device)
    return f'CPU, {torch.get_num_threads()} thread{"s" if torch.get_num_threads() > 1 else ""}'


def _why_no_gpu() -> str:
    """Return the likely reason why torch sees no GPU."""
    if torch.version.cuda is None:
        return 'this build of torch is for CPUs'
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return 'CUDA_VISIBLE_DEVICES hides all of them'
    return (
        f'it is built for CUDA {torch.version.cuda}; is there a GPU, and does nvidia-smi list it?'
    )
