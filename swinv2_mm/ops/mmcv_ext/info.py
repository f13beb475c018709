"""What mmcv's environment report says in the place of its compilers."""


def get_compiler_version() -> str:
    """The compiler of mmcv's operators, for environment reports."""
    return 'none (torchvision kernels through swinv2_mm)'


def get_compiling_cuda_version() -> str:
    """The CUDA version that mmcv's operators were compiled with, for environment reports."""
    return 'not available'
