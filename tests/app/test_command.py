"""The command ``python -m ict.app``."""
from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ict import app
from ict.data import images
from ict.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(app.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError) as refused:
        app.main([])
    lines = (ROOT / str(refused.value).partition('pip install -r ')[2]).read_text().splitlines()
    assert any(line.startswith('gradio') for line in lines)
    assert '-r ../requirements.txt' in lines  # with its limits: alone it would bring a NumPy that MindSpore refuses


@pytest.mark.parametrize('argv', [['--port', '65536'], ['--port', '-1'], ['--hots', 'x'], ['--device_target', 'TPU']])
def test_wrong_options_are_refused_with_a_line_that_names_them(argv):
    with pytest.raises(UserError, match=argv[0]):
        app.main(argv)


def test_a_port_in_use_is_named():
    pytest.importorskip('gradio', reason='the page needs ict/requirements-app.txt')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf'^--host 127.0.0.1, --port {port}: '):
            app.serve(lambda model: None, ['demo'], '127.0.0.1', port)


def test_the_page_listens_on_this_computer_alone(server):
    port = int(server.address.rstrip('/').rpartition(':')[2])
    socket.create_connection(('127.0.0.1', port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', port))


def test_the_bundled_pair_completes_a_bundled_photo_and_ctrl_c_ends_the_page(start_server, open_tab, tmp_path):
    server = start_server('ict.app')
    tab = open_tab(server.address)
    tab.page.set_default_timeout(120_000)
    tab.page.get_by_alt_text('coffee').click()
    tab.canvas.wait_for()
    tab.stroke((0.4, 0.4), (0.5, 0.5))
    tab.page.get_by_text('More settings').click()
    tab.page.get_by_label('Calm').check()
    tab.complete(1)
    photo, completed = (images.load_rgb(path) for path in (ROOT / 'images' / 'samples' / 'coffee.png',
                                                           tab.download(tmp_path)))
    height, width = photo.shape[:2]
    changed = (photo != completed).any(-1)
    assert changed[int(0.45 * height), int(0.45 * width)]
    assert changed.mean() < 0.05
    assert server.end() == 0
    assert list(server.folder.glob('ict-app-*')) == []
