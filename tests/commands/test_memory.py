"""Memory stays flat over a thousand pictures, and a picture of fifty megapixels fits into a laptop's."""
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict.data import encode
from tests.conftest import DEVICE, ROOT, photograph

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')]
COUNT, FIRST = 1000, 50


def peak_of(pid: int) -> int:
    """The largest memory that a process has had so far, in KiB; 0 when it has ended."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM')), 0)


def watched(argv: list[str], results: Path, pattern: str) -> tuple[int, int, int]:
    """Exit status of a command, its peak memory after the first pictures and at the end, in KiB."""
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    early = late = 0
    while run.poll() is None:
        late = max(late, peak_of(run.pid))
        if not early and len(list(results.glob(pattern))) >= FIRST:
            early = peak_of(run.pid)
        time.sleep(0.05)
    return run.returncode, early, late


def test_peak_memory_after_1000_pictures_is_that_after_50(tiny, tmp_path):
    (tmp_path / 'images').mkdir()
    for i in range(COUNT):
        Image.fromarray(photograph(i, 48 + i % 17, 64 - i % 13)).save(tmp_path / 'images' / f'p{i}.png')
    mask = np.zeros((48, 64), np.uint8)
    mask[12:30, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    save, shared = tmp_path / 'save', ['--geometry', 'resize', '--device_target', DEVICE]
    stages = {
        'Transformer': ('--ckpt_path', tiny['transformer'], '--image_url', tmp_path / 'images', '--mask_url',
                        tmp_path / 'mask.png', '--save_url', save / 'AP', '--sample_steps', 4),
        'Guided_Upsample': ('--ckpt_path', tiny['generator'], '--input', tmp_path / 'images', '--mask',
                            tmp_path / 'mask.png', '--prior', save / 'AP', '--save_path', save, '--keep_size',
                            '--image_size', 64),
    }
    for (folder, options), pattern in zip(stages.items(), ('AP/condition_1/*.png', '*_0.png'), strict=True):
        status, early, late = watched([sys.executable, str(ROOT / folder / 'infer.py'), *map(str, options), *shared],
                                      save, pattern)
        assert status == 0 and len(list(save.glob(pattern))) == COUNT
        print(f'{folder}: {early} KiB after {FIRST} pictures, {late} KiB after {COUNT}')
        assert late <= 1.1 * early


LARGE = '''
import json, os, sys, time
import numpy as np
from PIL import Image
from Guided_Upsample.datasets import compositing
from ict.data import encode, geometry, images, masks
from tests.commands.test_memory import peak_of
seconds, last = {}, time.perf_counter()
def lap(name):
    global last
    seconds[name], last = round(time.perf_counter() - last, 2), time.perf_counter()
before = peak_of(os.getpid())
picture, grey = images.load(sys.argv[1]), masks.load(sys.argv[2], dilate=5)
lap('read')
frame, hole = geometry.hole_in(grey, *grey.shape, 'resize')
small, _ = geometry.sealed(picture.rgb, hole, 32, Image.BILINEAR)
lap('stage 1')
image, small_hole = geometry.sealed(picture.rgb, hole, 256, Image.BICUBIC)
lap('stage 2')
image = image / np.float32(255)
completed = compositing.blended(1 - image, image, small_hole)
result = compositing.at_own_size(picture.native, frame, hole, completed)
lap('enlarge')
encode.write(sys.argv[3], result)
lap('write')
seconds['MB'] = (peak_of(os.getpid()) - before) // 1024
seconds['kept'] = bool((result[~hole] == picture.native[~hole]).all())
print(json.dumps(seconds))
'''


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_fifty_megapixels(tmp_path, kind):
    height, width = 6000, 8300
    y, x = np.ogrid[0:height, 0:width]
    top = np.iinfo(kind).max
    native = np.stack([(np.sin(x / 900 + c) * np.cos(y / (500 + 90 * c)) * 0.4 + 0.5) * top for c in range(3)], -1)
    encode.write(tmp_path / 'large.png', native.astype(kind))
    mask = np.zeros((height, width), np.uint8)
    mask[1000:3000, 2000:5000] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    paths = [str(tmp_path / f'{name}.png') for name in ('large', 'mask', 'done')]
    done = subprocess.run([sys.executable, '-c', LARGE, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    figures = json.loads(done.stdout)
    assert figures['kept'] and figures['MB'] < (1500 if kind == np.uint8 else 2500)
