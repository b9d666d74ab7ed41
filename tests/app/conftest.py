"""The page with a stand-in for the networks, in a real browser."""
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which('chromium')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
BRUSH = 40  # diameter on the screen that the page begins with
WAIT = 20_000  # milliseconds

Point = tuple[float, float]


def within(seconds: float, true: Callable[[], Any]) -> Any:
    """What ``true()`` returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)
    return value


class Server:
    """``python -m module`` in a process of its own; ``folder`` is all that it knows as temporary."""

    def __init__(self, folder: Path, module: str, *argv: object) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, '-m', module, *map(str, argv)], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env={**os.environ, 'TMPDIR': str(folder)})
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()
        self.address = self.said(r'the page is at (\S+)')[1]

    def said(self, pattern: str) -> re.Match[str]:
        """Waits for a line on standard error."""
        return within(60, lambda: re.search(pattern, ''.join(self.lines)))

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob('*') if path.is_file()]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture(scope='session')
def start_server(tmp_path_factory):
    """Starts servers, which end with the tests."""
    pytest.importorskip('gradio', reason='the page needs ict/requirements-app.txt')
    servers = []

    def start(*command: object) -> Server:
        servers.append(Server(tmp_path_factory.mktemp('server'), *command))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()
    assert not [line for server in servers for line in server.lines if line.startswith('asks ')]


@pytest.fixture(scope='session')
def server(start_server) -> Server:
    return start_server('tests.app.stand_in', 0.05)


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    """A Chromium that notes the hosts it asks for something."""
    playwright = pytest.importorskip('playwright.sync_api', reason='a browser is driven by playwright')
    if CHROMIUM is None:
        pytest.skip('there is no chromium')
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp('browser'), executable_path=CHROMIUM, args=FLAGS, headless=True,
            viewport={'width': 1280, 'height': 900})
        context.set_default_timeout(WAIT)
        yield context
        context.close()


@pytest.fixture
def open_tab(browser, server):
    """Opens tabs, which must ask no other host for anything and stumble over no error of their own."""
    asked, errors, pages = [], [], []
    note = lambda request: asked.append(request.url)  # noqa: E731
    browser.on('request', note)

    def open_one(address: str = server.address, width: int = 1280, height: int = 900) -> Tab:
        page = browser.new_page()
        pages.append(page)
        page.on('pageerror', lambda error: errors.append(error))
        page.set_viewport_size({'width': width, 'height': height})
        page.goto(address)
        return Tab(page)

    yield open_one
    for page in pages:
        page.close()
    browser.remove_listener('request', note)
    assert {urlparse(url).hostname for url in asked if not url.startswith(('data:', 'blob:'))} <= {'127.0.0.1'}
    assert not errors


class Tab:
    """The page as a visitor handles it."""

    def __init__(self, page: Any) -> None:
        self.page, self.canvas = page, page.locator('#canvas canvas')
        self.completions = page.locator('#canvas .strip button:has(.priors img)')
        self.message = page.locator('#canvas .message')

    def open_photo(self, path: Path) -> None:
        self.page.locator('#canvas .photo-file').set_input_files(path)
        self.canvas.wait_for()
        self.page.wait_for_selector('#canvas .studio:not(.busy)')

    def press(self, name: str) -> None:
        self.page.get_by_role('button', name=name, exact=True).click()

    def stroke(self, start: Point, end: Point) -> tuple[Point, Point]:
        """Paint a straight line between two points of the photo, (0, 0) to (1, 1); these as they are on the screen."""
        box = self.canvas.bounding_box()
        (x0, y0), (x1, y1) = ends = [(round(box['x'] + x * box['width']), round(box['y'] + y * box['height']))
                                     for x, y in (start, end)]
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=7)
        self.page.mouse.up()
        return tuple(((x - box['x']) / box['width'], (y - box['y']) / box['height']) for x, y in ends)

    def painted(self, x: float, y: float) -> bool:
        """Whether the layer over the photo covers a point, (0, 0) to (1, 1)."""
        return self.canvas.evaluate('(c, [x, y]) => c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1)'
                                    '.data[3] > 127', [x, y])

    def complete(self, count: int = 4) -> None:
        self.press('Complete')
        self.completions.nth(count - 1).wait_for()
        self.page.wait_for_selector('#complete:not([disabled])')
        assert self.completions.count() == count

    def download(self, folder: Path) -> Path:
        """The chosen completion's file."""
        with self.page.expect_download() as download:
            self.press('Download')
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path


def distance(points: list[Point], height: int, width: int) -> np.ndarray:
    """From every pixel's centre to the broken line through ``points``, in pixels: (height, width) float64."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    squares = []
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        dx, dy = x1 - x0, y1 - y0
        along = ((x - x0) * dx + (y - y0) * dy).clip(0, dx ** 2 + dy ** 2) / (dx ** 2 + dy ** 2 or 1)
        squares.append((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)
    return np.sqrt(np.minimum.reduce(squares))
