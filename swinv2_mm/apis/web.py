"""The command `web`: a page in the browser that predicts on photographs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from swinv2_mm.apis.inputs import ImageError
from swinv2_mm.apis.maps import draw_stage, find_backbone
from swinv2_mm.apis.pictures import write
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.engine.console import say, warn
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.interrupts import raise_interrupts
from swinv2_mm.engine.launch import guarded
from swinv2_mm.ops.linear import constant_weights

_LARGEST_FILE = '50mb'
_QUEUE = 16
"""Requests that may wait; one runs at a time."""


def web(
    model: str,
    *,
    port: int = 7860,
    host: str = '127.0.0.1',
    trust_checkpoint: bool = False,
    **options: Any,
) -> int:
    """Serve a page that predicts on photographs, until Ctrl-C.

    The arguments are the options of `tools/web.py`; `options` are those of `Predictor`.

    Returns:
        The exit code: 130 after Ctrl-C or SIGTERM; 2 if something outside the program is wrong; 1.
    """

    started = False

    def run() -> int:
        nonlocal started
        free = _require_port(host, port)
        gradio = _import_gradio(host)
        predictor = Predictor(model, **options)
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
        with constant_weights(), tempfile.TemporaryDirectory(prefix='swinv2-mm-web-') as folder:
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
    """Start the server in a thread."""
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
    """Return a port that a server can be started at: `port`, or any free one for 0."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise SetupError(_unusable(host, port)) from error


def _unusable(host: str, port: int) -> str:
    return f'Port {port} of {host} is in use or not available: name another one with --port.'


def _import_gradio(host: str) -> Any:
    """Return the module `gradio`, without its reports and without a proxy for this computer."""
    os.environ |= {'GRADIO_ANALYTICS_ENABLED': 'False', 'GRADIO_RUN_HISTORY': 'False'}
    for name in ('NO_PROXY', 'no_proxy'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), 'localhost', host]))
    try:
        import gradio
        from gradio import Blocks  # noqa: F401  not there if only a rest of the package is
    except ImportError as error:
        raise SetupError(f"The web page needs gradio: pip install '.[web]' ({error}).") from error
    return gradio


FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
LARGEST_IMAGE = 50_000_000
"""Pixels of a photo. Only its header is read before it is refused."""
LARGEST_MAP = 2048
"""Width or height to which larger photos are reduced for maps."""
_AGE = 24 * 3600
"""Seconds after which uploaded photos are removed."""
_MAPS = {
    'attention': 'Attention of the point',
    'similarity': 'Similarity to the point',
    'features': 'Principal components',
}


def build_page(gradio: Any, predictor: Predictor, folder: Path) -> Any:
    """Return the page, a `gradio.Blocks`.

    The last prediction is written into `folder`. Gradio copies files that are outside of its own folder, so that each
    has its own address.
    """

    def predict(photo: str | None, score: float, tile: float) -> tuple[str | None, str]:
        if photo is None:
            return None, ''
        predictor.score_thr, predictor.tile = score, round(tile) or None
        try:
            return predict_photo(predictor, photo, folder / 'prediction.jpg')
        except ImageError as error:
            return None, str(error)

    def choose(event: Any) -> list[float]:
        return list(event.index)

    def show_maps(
        photo: str | None, picture: str | None, stage: int, point: list[float] | None
    ) -> list[np.ndarray | None]:
        if photo is None or picture is None or point is None:
            return [None] * len(_MAPS)
        try:
            return [*draw_maps(predictor, photo, picture, stage, point)]
        except SetupError as error:  # a point that the test pipeline cuts off
            gradio.Warning(str(error))
            return [None] * len(_MAPS)

    choose.__annotations__['event'] = gradio.SelectData  # by which gradio passes it
    place = '/'.join(Path(predictor.model.checkpoint).parts[-2:])
    with gradio.Blocks(
        title='swinv2-mm', analytics_enabled=False, delete_cache=(_AGE // 24, _AGE)
    ) as page:
        gradio.Markdown(f'Model: `{place}`')
        with gradio.Row():
            with gradio.Column():
                photo = gradio.Image(
                    type='filepath',
                    label='Photo',
                    buttons=[],
                    webcam_options=gradio.WebcamOptions(mirror=False),
                )
                # gradio would decode the photo before it can be refused.
                photo.preprocess = lambda payload: payload and payload.path
                score = gradio.Slider(
                    *(0.05, 1, 0.3),
                    step=0.01,
                    label='Score threshold',
                    info='Objects with a lower score are left out.',
                    visible=predictor.scope == 'mmdet',
                )
                tile = gradio.Slider(
                    *(0, 2048, 0),
                    step=64,
                    label='Tile size in pixels',
                    info='0: predict on the whole photo. Otherwise on overlapping tiles, for small objects.',
                    visible=predictor.scope != 'mmpretrain',
                )
            with gradio.Column():
                result = _picture(
                    gradio,
                    'result',
                    'Prediction',
                    type='filepath',
                    image_mode=None,
                    show_label=False,  # which would cover the legend
                )
                text = gradio.Textbox(label='Result', interactive=False, lines=4, elem_id='text')
        point = gradio.State()
        stages = _count_stages(predictor)
        with gradio.Column(visible=stages > 0):
            gradio.Markdown('Click on the prediction to see maps of the clicked point.')
            stage = gradio.Radio(
                list(range(stages)),
                value=stages - 1,
                label='Stage of the backbone',
                info='From the finest map to the coarsest; numbers as in `out_indices`.',
            )
            with gradio.Row():
                maps = [
                    _picture(gradio, *item, format='jpeg', min_width=200) for item in _MAPS.items()
                ]
        hidden: dict[str, Any] = dict(api_visibility='private')
        one: dict[str, Any] = dict(concurrency_limit=1, concurrency_id='model', **hidden)
        changes = [photo.change, score.change, tile.change]
        slow: dict[str, Any] = dict(show_progress='minimal', trigger_mode='always_last', **one)
        gradio.on(changes, predict, [photo, score, tile], [result, text], **slow)
        clear = lambda: [None] * (1 + len(_MAPS))  # noqa: E731
        photo.change(clear, None, [point, *maps], queue=False, **hidden)
        shown = dict(inputs=[photo, result, stage, point], outputs=maps)
        chosen = result.select(choose, None, point, queue=False, **hidden)
        chosen.then(show_maps, **shown, **one)
        stage.input(show_maps, **shown, **slow)
    return page


def predict_photo(predictor: Predictor, photo: str, file: Path) -> tuple[str, str]:
    """Write the picture of a prediction; return its path and a description with the times."""
    check_photo(photo)
    times = [time.perf_counter()]
    try:
        image = predictor.load(photo)
    except ImageError as error:
        raise ImageError(str(error).replace(photo, Path(photo).name)) from error
    times.append(time.perf_counter())
    prediction = predictor.predict([image])[0]
    times.append(time.perf_counter())
    write(file, prediction.plot())
    times.append(time.perf_counter())
    height, width = image.pixels.shape[:2]
    read, run, draw = (f'{1000 * seconds:.0f} ms' for seconds in np.diff(times))
    device = next(predictor.model.parameters()).device
    lines = [
        f'{width} x {height} pixels',
        f'prediction {run} on {device}; read {read}, draw {draw}',
    ]
    if predictor.scope == 'mmdet':
        names = Counter(row['class'] for row in prediction.rows())
        found = ', '.join(f'{name}: {count}' for name, count in names.most_common())
        lines.insert(0, found or 'no object above the score threshold')
    return str(file), '\n'.join(lines)


def check_photo(photo: str) -> None:
    """Check the format and size of a photo by its header."""
    name = Path(photo).name
    try:
        with Image.open(photo, formats=FORMATS) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = LARGEST_IMAGE + 1
    except (OSError, SyntaxError, ValueError) as error:
        kinds = f'{", ".join(FORMATS[:-1])} or {FORMATS[-1]}'
        raise ImageError(f'{name} is not a picture that can be read: choose {kinds}.') from error
    if pixels > LARGEST_IMAGE:
        raise ImageError(
            f'{name} has more than {LARGEST_IMAGE // 10**6} million pixels: use swinv2-mm predict --tile 1024.'
        )


def draw_maps(
    predictor: Predictor, photo: str, picture: str, stage: int, point: Sequence[float]
) -> list[np.ndarray]:
    """Return pictures in RGB for `_MAPS`, for a point in pixels of the drawn prediction `picture`."""
    image = predictor.load(photo).picture
    if max(image.shape) > LARGEST_MAP:
        factor = LARGEST_MAP / max(image.shape)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    with Image.open(picture) as drawn:
        scale = image.shape[1] / drawn.width
    x, y = (min(int(value * scale), side - 1) for value, side in zip(point, image.shape[1::-1]))
    maps = draw_stage(predictor, image, image, (x, y), stage)
    return [maps[name][..., ::-1] for name in _MAPS]


def _picture(gradio: Any, name: str, label: str, **options: Any) -> Any:
    buttons = ['download', 'fullscreen']
    return gradio.Image(label=label, elem_id=name, buttons=buttons, interactive=False, **options)


def _count_stages(predictor: Predictor) -> int:
    """Return the number of stages that maps can be drawn of."""
    try:
        return len(find_backbone(predictor).layers)
    except SetupError:  # the backbone of another package
        return 0
