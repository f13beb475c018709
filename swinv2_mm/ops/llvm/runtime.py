"""Compilation for this processor, and execution on the threads of torch."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from typing import Any

import torch

from swinv2_mm.ops.llvm import objects
from swinv2_mm.ops.optional import unusable
from swinv2_mm.ops.private import parallel_region

# fp32 numbers per vector, by the instruction set that torch uses.
LANES = {'AVX2': 8, 'AVX512': 16}
_TUNING = {'speed_level': 2}


@functools.cache
def why_not_here() -> str | None:
    """Return why this machine cannot run kernels, as a clause that follows "because"; `None` if it can."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in LANES:
        return f'it needs a processor with AVX2 or AVX-512, and torch uses {capability} here'
    try:
        _compiler()
    except Exception as error:  # a broken or conflicting package can raise any error
        return unusable('llvmlite', error)
    if parallel_region() is None:
        return "it runs on the threads of GNU's OpenMP, and this build of torch has none"
    return None


def lanes() -> int:
    """Return the fp32 numbers per vector."""
    return LANES[torch.backends.cpu.get_cpu_capability()]


@functools.cache
def _compiler() -> Any:
    from llvmlite import binding

    if not hasattr(binding, 'create_pass_builder'):
        raise ImportError('it is older than version 0.45')
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


_engines: list[Any] = []  # the owners of the machine code


def compile_function(module: Any) -> int:
    """Compile an `ir.Module`, or load it from disk, and return the address of the function with its name."""
    binding = _compiler()
    text = str(module)
    parsed = binding.parse_assembly(text)
    parsed.verify()
    features = binding.get_host_cpu_features()
    if lanes() == 8:
        features.update({name: False for name in features if name.startswith('avx512')})
    target = {'cpu': binding.get_host_cpu_name(), 'features': features.flatten(), 'opt': 3}
    machine = binding.Target.from_default_triple().create_target_machine(**target, jit=True)
    about = repr((text, machine.triple, target, _TUNING, binding.llvm_version_info))
    key = hashlib.sha256(about.encode()).hexdigest()
    code = objects.load(key)
    if code is None:
        builder = binding.create_pass_builder(machine, binding.PipelineTuningOptions(**_TUNING))
        builder.getModulePassManager().run(parsed, builder)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.set_object_cache(lambda _, made: objects.store(key, made), lambda _: code)
    engine.finalize_object()
    _engines.append(engine)
    return engine.get_function_address(module.name)


def run(address: int, arguments: list[int], threads: int) -> None:
    """Call a compiled function in `threads` threads, including this one."""
    parallel = parallel_region()
    if parallel is None:
        raise RuntimeError(f'a compiled kernel cannot run here, because {why_not_here()}')
    values = (ctypes.c_int64 * len(arguments))(*arguments)
    parallel(address, ctypes.addressof(values), threads, 0)
