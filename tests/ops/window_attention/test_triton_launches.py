"""Test how Triton kernels are launched and when they are chosen, without a GPU."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
import torch._dynamo.testing
from test_backends import case
from test_triton import CPU, triton
from test_triton_on_gpus import CUDA
from triton_runs import outside

from swinv2_mm.ops import execution
from swinv2_mm.ops.execution import BACKENDS
from swinv2_mm.ops.window_attention import WindowPartition, choose_backend
from swinv2_mm.ops.window_attention import triton_backend as backend


@contextmanager
def launches_recorded(monkeypatch, guarded):
    """Record launched kernels with grid, arguments and current device, without running them."""
    from triton.runtime.jit import JITFunction

    found = []

    def record(self, *args, grid, warmup, **kwargs):
        grid = grid(kwargs) if callable(grid) else grid
        found.append((self.__name__, tuple(grid), (*args, *kwargs.values()), bool(guarded)))

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, 'run', record)
        patch.setattr(execution, 'why_not_triton_on', lambda device: None)
        yield found


@pytest.fixture
def guarded(monkeypatch):
    """Not empty while the device of a tensor is current."""
    depth = []
    device_of = torch.cuda.device_of

    @contextmanager
    def watched(tensor):
        depth.append(tensor)
        with device_of(tensor):
            yield
        depth.pop()

    monkeypatch.setattr(torch.cuda, 'device_of', watched)
    return depth


@outside
@pytest.mark.parametrize(('side', 'window'), [(300, 1), (8 * 257, 8), (12 * 257, 12)])
def test_grids_grow_along_their_first_axis_only(monkeypatch, guarded, side, window):
    """The other axes are limited to 65,535. Kernels run on the device of their tensors, not the current one."""
    pytest.importorskip('triton')
    partition = WindowPartition.fit((side, side), (window, window), (0, 0))
    qkv = torch.empty(1, side, side, 48, dtype=torch.float16).requires_grad_()  # without memory
    scale = torch.ones(1, 1, 1)
    table = torch.zeros(1, 2 * window - 1, 2 * window - 1).requires_grad_()
    with launches_recorded(monkeypatch, guarded) as launches:
        out = triton(qkv, scale, table, partition)
        torch.autograd.grad(out, (qkv, table), out.detach())
    assert len(launches) >= 2
    windows = partition.grid[0] * partition.grid[1]
    assert windows > 2**16
    for name, grid, _, on_its_device in launches:
        assert grid[0] < 2**31 and all(length == 1 for length in grid[1:]), name
        assert on_its_device, name


@outside
def test_fp32_is_multiplied_as_either_setting_says(monkeypatch):
    pytest.importorskip('triton')
    tensors, _, partition = case((4, 4), (4, 4), False)
    matmul = torch.backends.cuda.matmul
    settings = [('allow_tf32', True, False)]
    if hasattr(matmul, 'fp32_precision'):
        settings.append(('fp32_precision', 'tf32', 'none'))
    for name, on, off in settings:
        for value, precision in ((on, 'tf32'), (off, 'ieee')):
            setattr(matmul, name, value)
            try:
                with launches_recorded(monkeypatch, []) as launches:
                    triton(*tensors, partition)
            finally:
                setattr(matmul, name, off)
            assert all(precision in arguments for _, _, arguments, _ in launches)
            assert launches


@pytest.fixture
def two_gpus(monkeypatch):
    """Simulate two GPUs of capability 9.0 and 7.5."""
    pytest.importorskip('triton')
    capabilities = {0: (9, 0), 1: (7, 5)}
    current = [0]

    def index(device):
        return current[0] if device is None or device.index is None else device.index

    for name, function in dict(
        is_available=lambda: True,
        current_device=lambda: current[0],
        get_device_capability=lambda device=None: capabilities[index(device)],
        get_device_name=lambda device=None: ('H100', 'Tesla T4')[index(device)],
    ).items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setenv('CC', 'cc')

    def forget():
        execution.why_not_triton_on.cache_clear()
        for function in vars(backend).values():
            getattr(function, 'cache_clear', lambda: None)()

    forget()
    yield current
    forget()


@outside
def test_cards_without_bf16_take_the_fused_backend(two_gpus):
    old = torch.device('cuda', 1)
    assert choose_backend('auto', CUDA) == 'triton'
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert choose_backend('auto', old, dtype=dtype) == 'fused'
    reason = execution.why_not_triton(old)
    assert 'capability 8.0' in reason and 'Tesla T4 has 7.5' in reason
    with pytest.raises(ValueError, match=r"'triton' cannot run here, because .*Tesla T4 has 7\.5"):
        choose_backend('triton', old)


@outside
def test_a_device_without_index_is_the_current_one(two_gpus):
    for two_gpus[0], name in ((0, 'triton'), (1, 'fused'), (0, 'triton')):
        assert choose_backend('auto', torch.device('cuda')) == name


@outside
def test_where_it_cannot_run_it_says_why():
    assert BACKENDS == ('auto', 'reference', 'fused', 'llvm', 'triton')
    with pytest.raises(ValueError, match=r"'triton' cannot run here, because .*(GPU|triton)"):
        choose_backend('triton', CPU)
    with pytest.raises(ValueError, match=r'fp16, bf16 or fp32, not in torch\.float64'):
        choose_backend('triton', CPU, dtype=torch.float64)
    with pytest.raises(ValueError, match='heads have 1 to 128 channels, not 160'):
        choose_backend('triton', CPU, head_dim=160)
    with pytest.raises(ValueError, match=r"'triton' cannot drop.*dropout_p is 0\.1"):
        choose_backend('triton', CPU, dropout_p=0.1)


@outside
def test_the_package_imports_without_triton():
    code = (
        'import sys; sys.modules["triton"] = None\n'
        'import torch\n'
        'from swinv2_mm.ops.window_attention import choose_backend\n'
        'from swinv2_mm.ops.execution import why_not_triton\n'
        'cpu = torch.device("cpu")\n'
        'assert "not installed" in why_not_triton(cpu), why_not_triton(cpu)\n'
        'assert choose_backend("auto", cpu) in ("llvm", "fused")\n'
        'assert choose_backend("auto", torch.device("cuda")) == "fused"\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@outside
def test_importing_the_package_leaves_triton_alone():
    code = (
        'import sys, swinv2_mm.ops.window_attention\n'
        'assert "swinv2_mm.ops.window_attention.triton_kernels" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
