"""What one open tab works on: its photo, the hole, and the completions."""
from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ict.data import geometry, images, masks
from ict.errors import UserError, require
from ict.page.marks import Mark, hole_of
from ict.pipeline import Cancelled

PATIENCE = 3600.0  # seconds without a call after which a tab whose connection has ended is closed
PREVIEW_SIDE = 1600  # longest side of what the page shows; the photo itself keeps its size
_PREVIEW_QUALITY = 92


class Photo(NamedTuple):
    """A photo as its file holds it.

    Attributes:
        path: the file that was uploaded, or a chosen completion.
        name: stem of the first upload's name; the noise depends on it, and downloads start with it.
        preview: a file that shows it on the page.
        height, width: upright. orientation: see ``images.Picture``.
    """

    path: Path
    name: str
    preview: Path
    height: int
    width: int
    orientation: int


class Session:
    """The work in one tab. All its files lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cancel = threading.Event()
        self.left: threading.Timer | None = None  # deletes the files, once the connection has ended
        self.photo: Photo | None = None
        self.masks: list[np.ndarray] = []  # holes (H, W) bool of the mask files
        self.mask_previews: list[Path] = []
        self.hole: np.ndarray | None = None  # (H, W) uint8, 255 = hole
        self.completions: list[Any] = []  # ict.pipeline.Completion, the likeliest first
        self.previews: list[Path] = []

    def receive(self, upload: Path, name: str) -> Path:
        """Take over a file that was uploaded, as ``name``."""
        path = self._file(name)
        shutil.move(upload, path)
        return path

    def open_photo(self, path: Path, name: str = '') -> list[str]:
        """Work on the photo in a file, unless it can't be read; what of it can't be represented, one line each."""
        picture = _read(images.load, path)
        self.photo = Photo(path, name or path.stem, self._preview(picture.rgb), *geometry.size_of(picture.rgb),
                           picture.orientation)
        self.masks, self.mask_previews, self.completions, self.previews = [], [], [], []
        self.cancel.set()  # completions of another photo are not wanted any more
        return [_named(line, path) for line in picture.notes]

    def open_mask(self, path: Path) -> list[str]:
        """Add a mask file (white = hole), as the commands see it; what was taken for granted, one line each."""
        photo = self._photo()
        grey, notes = _read(lambda path: masks.read(path, False, 0, images.MAX_PIXELS), path)
        fitted = masks.fitted(grey, photo.height, photo.width, photo.orientation)
        hole = geometry.touched(fitted > geometry.HOLE_LEVEL, photo.height, photo.width)
        layer = Image.fromarray(hole.astype(np.uint8) * 255)
        layer.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        self.masks.append(hole)
        self.mask_previews.append(self._file('mask.png'))
        Image.merge('LA', (layer, layer)).save(self.mask_previews[-1])
        if fitted is not grey:
            notes = [*notes, f'{path}: lies as the photo does before it is turned upright; turned with it']
        elif not masks.same_proportions(grey, photo.height, photo.width):
            notes = [*notes, f'{path}: has other proportions than the photo and is stretched over it']
        return [_named(line, path) for line in notes]

    def prepare(self, marks: Sequence[Mark], grow: int) -> None:
        """Take the hole that the marks make, grown by ``grow`` pixels, for the next ``complete``."""
        photo = self._photo()
        hole = hole_of(marks, photo.height, photo.width, self.masks)
        require(bool(hole.any()), 'there is no hole: paint over what is to be completed, or take a mask file')
        self.hole = masks.grown(hole.astype(np.uint8) * 255, grow)
        self.cancel = threading.Event()  # a computation that was cancelled may not have seen it yet

    def complete(self, pipeline: Callable[..., list[Any]], **options: Any) -> None:
        """Keep ``pipeline``'s completions of the photo; ``options`` and errors are those of ``Pipeline.__call__``."""
        photo, cancel = self._photo(), self.cancel
        completions = pipeline(photo.path, self.hole, name=photo.name, cancel=cancel, **options)
        completions.sort(key=lambda one: -one.log_likelihood)
        previews = []
        for one in completions:
            if cancel.is_set():  # after the last pass
                raise Cancelled
            previews.append(self._preview(images.to_rgb(one.picture)))
        self.completions, self.previews = completions, previews

    def saved(self, number: int) -> Path:
        """A PNG of a completion at the photo's size, unpainted pixels bit for bit the photo's."""
        require(0 <= number < len(self.completions), 'this completion is no longer here; complete the photo again')
        path = self.folder / self.previews[number].parent.name / f'{self._photo().name}_{number}.png'
        if not path.exists():
            self.completions[number].save(path)
        return path

    def go_on(self, number: int) -> None:
        """A completion becomes the photo."""
        self.open_photo(self.saved(number), self._photo().name)

    def _photo(self) -> Photo:
        if self.photo is None:
            raise UserError('there is no photo: drop one on the page, or choose a file')
        return self.photo

    def _file(self, name: str) -> Path:
        """A new path that ends in ``name``."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

    def _preview(self, rgb: np.ndarray) -> Path:
        small = Image.fromarray(rgb)
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        path = self._file('preview.jpg')
        small.save(path, quality=_PREVIEW_QUALITY)
        return path


def _read(load: Callable[[Path], Any], path: Path) -> Any:
    """``load(path)``, whose errors name the file as its owner does."""
    try:
        return load(path)
    except UserError as error:
        raise UserError(_named(str(error), path)) from None


def _named(line: str, path: Path) -> str:
    return line.replace(str(path), path.name)


class Sessions:
    """The open tabs, by the session that Gradio gives each."""

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """The tab's session, a new one at its first call."""
        with self._lock:
            if key not in self._open:
                self._open[key] = Session(Path(tempfile.mkdtemp(dir=self.folder)))
            session = self._open[key]
            if session.left is not None:  # its end is not told a second time
                self._wait(key, session)
            return session

    def leave(self, key: str) -> None:
        """The tab's connection has ended: end what it computes, and delete its files once it was silent for long."""
        with self._lock:
            session = self._open.get(key)
            if session is None:
                return
            session.cancel.set()
            self._wait(key, session)

    def _wait(self, key: str, session: Session) -> None:
        if session.left is not None:
            session.left.cancel()
        session.left = threading.Timer(self.patience, self._close, [key, session])
        session.left.daemon = True
        session.left.start()

    def _close(self, key: str, session: Session) -> None:
        with self._lock:
            if session.left is not threading.current_thread():
                return
            del self._open[key]
        shutil.rmtree(session.folder, ignore_errors=True)

    def close_all(self) -> None:
        """End every computation."""
        for session in list(self._open.values()):
            session.cancel.set()
