"""Fixtures of a small backbone and the converters."""

import contextlib
import functools
import http.server
import io
import runpy
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from swinv2_mm import SwinTransformerV2


@pytest.fixture
def nano():
    """Build a backbone with unequal depths, to detect mixed-up stages or blocks."""

    def build(**options):
        arch = dict(embed_dims=8, depths=[2, 1, 3], num_heads=[1, 2, 4])
        options = {'window_size': 4, 'out_indices': (0, 1, 2), **options}
        return SwinTransformerV2(arch, **options)

    return build


@pytest.fixture
def run_tool(monkeypatch):
    """Run a converter as a program in this process, to avoid importing torch again."""

    def run(tool, *arguments):
        path = str(Path(__file__).parents[2] / 'tools/model_converters' / tool)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as stopped,
        ):
            runpy.run_path(path, run_name='__main__')
        code = stopped.value.code
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch'


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / 'served'
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f'http://127.0.0.1:{running.server_port}', asked
        running.shutdown()
        thread.join()
