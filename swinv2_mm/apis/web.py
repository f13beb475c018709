"""The command `web`: a page in the browser that predicts on photographs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.apis.pictures import import_supervision
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.apis.web_page import build_page
from swinv2_mm.engine.console import say, warn
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.interrupts import raise_interrupts
from swinv2_mm.engine.launch import guarded

_LARGEST_FILE = '50mb'
_QUEUE = 16
"""Requests that may wait; one runs at a time."""


def web(
    model: str,
    *,
    port: int = 7860,
    host: str = '127.0.0.1',
    config: str | None = None,
    device: str = 'auto',
    trust_checkpoint: bool = False,
    cfg_options: Sequence[str] = (),
) -> int:
    """Serve a page that predicts on photographs, until Ctrl-C.

    Args:
        port: Port of the server; 0 takes any free one.
        host: Address that the server listens at. The default admits this computer only.
        trust_checkpoint: Accept a checkpoint as it is, with code to run or NaN weights.

    For the other arguments see `Predictor`.

    Returns:
        The exit code: 130 after Ctrl-C or SIGTERM; 2 if something outside the program is wrong; 1.
    """

    started = False

    def run() -> int:
        nonlocal started
        free = _require_port(host, port)
        gradio = _import_gradio(host)
        import_supervision()
        predictor = Predictor(model, device, config=config, cfg_options=cfg_options)
        if predictor.multiband is not None:
            raise SetupError(
                'The model predicts on files with several bands, which browsers do not show: use swinv2-mm predict.'
            )
        classes = len(predictor.categories.names)
        say(f'model: {predictor.model.checkpoint}, {classes} class{"es" * (classes > 1)}')
        predictor(np.zeros((480, 640, 3), np.uint8))  # compiles kernels
        raise_interrupts()  # the folder is removed before the process ends
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        started = True
        with tempfile.TemporaryDirectory(prefix='swinv2-mm-web-') as folder:
            os.environ['GRADIO_TEMP_DIR'] = os.path.join(folder, 'files')
            _launch(gradio, build_page(gradio, predictor, Path(folder)), host, free)
            while True:
                time.sleep(3600)

    code = guarded(run, trust=trust_checkpoint)
    if started:  # an interpreter that shuts down aborts if another thread is predicting
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _launch(gradio: Any, page: Any, host: str, port: int) -> None:
    """Start the server in a thread.

    Raises:
        SetupError: If the port was taken in the meantime.
    """
    fonts = dict(font=['system-ui'], font_mono=['monospace'])
    try:
        page.queue(max_size=_QUEUE).launch(
            server_name=host,
            server_port=port,
            max_file_size=_LARGEST_FILE,
            theme=gradio.themes.Default(**fonts),  # the default ones may be downloaded
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            footer_links=[],
        )
    except OSError as error:
        raise SetupError(_unusable(host, port)) from error
    if host != 'localhost' and not host.startswith('127.'):
        warn(
            'everyone who reaches this computer over the network can open the page, without a password or encryption'
        )
    say(
        f'open http://{"localhost" if host == "0.0.0.0" else host}:{port} in a browser; Ctrl-C ends'
    )


def _require_port(host: str, port: int) -> int:
    """Return a port that a server can be started at: `port`, or any free one for 0.

    Raises:
        SetupError: If there is none.
    """
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise SetupError(_unusable(host, port)) from error


def _unusable(host: str, port: int) -> str:
    return f'Port {port} of {host} is in use or not available: name another one with --port.'


def _import_gradio(host: str) -> Any:
    """Return the module `gradio`, without its reports and without a proxy for this computer.

    Raises:
        SetupError: If it is not installed.
    """
    os.environ |= {'GRADIO_ANALYTICS_ENABLED': 'False', 'GRADIO_RUN_HISTORY': 'False'}
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), 'localhost', host]))
    try:
        import gradio
    except ImportError as error:
        raise SetupError(f"The web page needs gradio: pip install '.[web]' ({error}).") from error
    return gradio
