"""Compiler versions for mmcv's environment report."""


def get_compiler_version() -> str:
    """Return the compiler of mmcv's operators, for environment reports."""
    return 'none (torchvision kernels through swinv2_mm)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version that mmcv's operators were compiled with, for environment reports."""
    return 'not available'
