"""Pictures and masks to train on."""
from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import command, photograph


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for i in range(10):
        Image.fromarray(photograph(i, 40 + i, 40)).save(folder / f'{i}.png')
    return folder


@pytest.fixture
def masks(tmp_path) -> Path:
    folder = tmp_path / 'masks'
    done = command('mask/generate.py', '--save_path', folder, '--count', 3, '--lowest', 0.1, '--highest', 0.5)
    assert done.returncode == 0
    return folder
