"""What happens at each event of the page: the visitor's values in, the canvas's new value out."""
from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np

from ict.data import encode
from ict.errors import UserError, require
from ict.page.marks import Mark
from ict.page.session import Session, Sessions
from ict.pipeline import Cancelled

SAMPLES = Path(__file__).resolve().parents[2] / 'images' / 'samples'
Value = dict[str, Any]  # the canvas's, see canvas.js
NOTHING: Value = {'photo': None, 'masks': [], 'results': [], 'message': '', 'download': '', 'answer': 0}


class Actions:
    """The functions behind the page.

    Args:
        load_model: an ``ict.pipeline.Pipeline`` by the model's name.
    """

    def __init__(self, sessions: Sessions, load_model: Callable[[str], Any]) -> None:
        self.sessions, self.load_model = sessions, load_model
        self._answers = itertools.count(1)

    def photo(self, event: gr.EventData, request: gr.Request) -> Value:
        """A photo was uploaded."""
        return self._answer(request, lambda session: session.open_photo(self._received(session, event.path)))

    def sample(self, event: gr.EventData, request: gr.Request) -> Value:
        """One of the bundled photos was chosen."""
        return self._answer(request, lambda session: session.open_photo(SAMPLES / Path(event.name).name))

    def mask(self, event: gr.EventData, request: gr.Request) -> Value:
        """A mask file was uploaded."""
        return self._answer(request, lambda session: session.open_mask(self._received(session, event.path)))

    def go_on(self, event: gr.EventData, request: gr.Request) -> Value:
        """A completion becomes the photo."""
        return self._answer(request, lambda session: session.go_on(event.number))

    def download(self, event: gr.EventData, request: gr.Request) -> Value:
        """A completion's file is wanted."""
        saved: list[Path] = []
        answer = self._answer(request, lambda session: saved.append(session.saved(event.number)))
        return answer | {'download': address(saved[0])} if saved else answer

    def prepare(self, marks: list[Mark], grow: int, request: gr.Request) -> None:
        """Before a computation waits for its turn; a gr.Error where there is nothing to complete."""
        try:
            self._session(request).prepare(marks, grow)
        except UserError as error:
            raise shown(error) from None

    def complete(self, model: str, options: dict[str, Any], request: gr.Request) -> Value:
        """The photo with its completions; ``options`` are those of ``ict.pipeline.Pipeline.__call__``."""
        session = self._session(request)
        try:
            session.complete(self.load_model(model), **options)
        except Cancelled:
            return self._value(session, 'Cancelled.')
        except UserError as error:
            raise shown(error) from None
        return self._value(session)

    def cancel(self, request: gr.Request) -> Value:
        """The visitor doesn't want to wait."""
        session = self._session(request)
        session.cancel.set()
        return self._value(session, 'Cancelled.')

    def close(self, request: gr.Request) -> None:
        """The tab was closed, or its connection has ended."""
        self.sessions.leave(request.session_hash)

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.of(request.session_hash)

    def _received(self, session: Session, upload: str) -> Path:
        """The file that canvas.js sent, which put a number before its name."""
        path = Path(upload).resolve()
        require(path.is_relative_to(self.sessions.folder) and path.is_file(), 'the file did not arrive; send it again')
        return session.receive(path, path.name.partition('-')[2])

    def _answer(self, request: gr.Request, act: Callable[[Session], list[str] | None]) -> Value:
        """The canvas after ``act``, with the lines that it returns or its error."""
        session = self._session(request)
        try:
            lines = act(session) or []
        except UserError as error:
            lines = [str(error)]
        return self._value(session, ' '.join(lines))

    def _value(self, session: Session, message: str = '') -> Value:
        photo = session.photo
        return {'photo': photo and {'url': address(photo.preview), 'width': photo.width, 'height': photo.height},
                'masks': [address(path) for path in session.mask_previews],
                'results': [{'url': address(path), 'priors': [png_address(prior) for prior in one.priors],
                             'caption': f'{i + 1} · log p = {one.log_likelihood:.0f}'}
                            for i, (path, one) in enumerate(zip(session.previews, session.completions, strict=True))],
                'message': message, 'download': '', 'answer': next(self._answers)}


def address(path: Path) -> str:
    """Where the page finds a file of its session."""
    return f'gradio_api/file={quote(str(path))}'


def png_address(pixels: np.ndarray) -> str:
    """An address that holds a small picture (H, W, 3) uint8."""
    return f'data:image/png;base64,{base64.b64encode(encode.encode(pixels)).decode()}'


def shown(error: UserError) -> gr.Error:
    """The error as the page shows it."""
    return gr.Error(html.escape(str(error)), title='This did not work', print_exception=False)
