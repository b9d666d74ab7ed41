"""A page in the browser on which one paints the hole and picks the completion: ``python -m ict.app``."""
from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ict import options
from ict.command import run
from ict.errors import UserError, require
from ict.log import log
from ict.pretrained import DEMO, PAIRS, available

FIRST_PORT = 7860  # Gradio's own
LOCAL = ('127.0.0.1', 'localhost', '::1')
# For Gradio, before it is imported: no analytics, and nothing from the Hugging Face Hub.
ENVIRONMENT = {'GRADIO_ANALYTICS_ENABLED': 'False', 'HF_HUB_OFFLINE': '1', 'HF_HUB_DISABLE_TELEMETRY': '1'}


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='python -m ict.app', description='Complete photographs on a page in the browser.')
    add = parser.add_argument
    add('--model', choices=PAIRS, default=DEMO, help='the model that is chosen first')
    add('--host', default='127.0.0.1', help='address to listen on; with 0.0.0.0 other computers can use the page')
    add('--port', type=int, default=0, help=f'port to listen on (default: the first free one from {FIRST_PORT})')
    options.add_device(parser)
    args = parser.parse_args(argv)
    require(0 <= args.port < 65536, f'--port {args.port}: must be below 65536')
    return args


def serve(load_model: Callable[[str], Any], models: list[str], host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM; nothing of what visitors uploaded is left then.

    Args:
        load_model: an ``ict.pipeline.Pipeline`` by the model's name.
        models: names to choose from, the first is chosen.
        port: 0: the first free one.
    """
    with tempfile.TemporaryDirectory(prefix='ict-app-') as folder:
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=os.path.realpath(folder))
        from ict.page import layout
        from ict.page.actions import Actions
        from ict.page.session import Sessions
        sessions = Sessions(Path(folder).resolve())
        page = layout.build(Actions(sessions, load_model), models)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port or None, prevent_thread_lock=True, quiet=True, share=False,
                inbrowser=False, run_history=False, enable_monitoring=False, footer_links=[], pwa=False,
                mcp_server=False, ssr_mode=False, **layout.look())
        except OSError as error:
            raise UserError(f'--host {host}, --port {port or "(any)"}: cannot be listened on ({error}); name '
                            f'others') from None
        if host not in LOCAL:
            log(f'--host {host}: whoever can reach this computer can use the page')
        log(f'the page is at {address} (Ctrl+C ends it)')
        wait_for_signal()
        sessions.close_all()
        page.close(verbose=False)


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    stop = threading.Event()
    waiting = True
    while waiting:
        for number in (signal.SIGINT, signal.SIGTERM):  # again and again: MindSpore takes SIGINT when it compiles
            signal.signal(number, lambda *_: stop.set())
        waiting = not stop.wait(timeout=1)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    require(importlib.util.find_spec('gradio') is not None,
            'gradio is missing; install it: pip install -r ict/requirements-app.txt')
    from ict.pipeline import Pipeline
    load_model = functools.lru_cache(maxsize=1)(functools.partial(
        Pipeline.load, device_target=args.device_target, device_id=args.device_id))
    load_model(args.model)  # an error of it comes before the page
    serve(load_model, [args.model, *(name for name in available() if name != args.model)], args.host, args.port)
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
