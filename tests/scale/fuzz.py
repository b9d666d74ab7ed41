"""Coverage-guided fuzzing of everything that reads a user's file: nothing but a UserError may come out.

``pip install atheris``, then ``python -m tests.scale.fuzz TARGET CORPUS -max_total_time=3600``, with TARGET one of
image, mask, checkpoint, list, manifest, scores; CORPUS is a folder that keeps what was found between runs. Further
options are libFuzzer's. An input that broke something is written to the current folder (``-artifact_prefix``), and
``... TARGET FILE`` runs it once more.
"""
from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import atheris
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

with atheris.instrument_imports(include=['ict', 'PIL', 'json']):
    from ict import checkpoint
    from ict.data import encode, images, masks, pairs
    from ict.errors import UserError
    from ict.runs import manifest, scores

MEMORY = '/dev/shm' if os.path.isdir('/dev/shm') else None
MOST_PIXELS = 100_000  # so that no input takes seconds


def image(path: Path) -> None:
    images.load(path, max_pixels=MOST_PIXELS)


def mask(path: Path) -> None:
    masks.read(path, True, 3, MOST_PIXELS)


def checkpoint_(path: Path) -> None:
    opened = checkpoint.read(path, '--ckpt_path')
    for name in opened.entries:
        opened.array(name)
    opened.expect('Transformer', '--ckpt_path')
    checkpoint.check(opened, {'head.weight': (4, 3)})


def list_(path: Path) -> None:
    listing = pairs.listing(path, '--input')
    assert all(listing.path(i).is_file() and listing.id(i) for i in range(len(listing)))
    pairs.masks_for(listing, listing)


def manifest_(path: Path) -> None:
    """The manifest of an output folder, as a continued run and stage 2 read it."""
    folder = path.parent
    shutil.copyfile(path, folder / manifest.STAGE_1)
    opened = manifest.Manifest(folder, manifest.STAGE_1, {'seed': 0}, False)
    for entry in opened.pictures.values():
        manifest.other_source(entry, {'image_digest': 'a', 'mask_digest': 'b'})
    opened.write()
    assert opened.pictures.keys() == manifest.Manifest(folder, manifest.STAGE_1, {'seed': 0}, False).pictures.keys()


def scores_(path: Path) -> None:
    """The scores of two ranks; what is read of them is still there after the run."""
    folder = path.parent
    for name in (scores.STAGE_1, 'scores.1.jsonl'):
        shutil.copyfile(path, folder / name)
    opened = scores.Scores(folder, scores.STAGE_1)
    for picture, _ in opened.lines:
        opened.of_picture(picture, 2)
    opened.add(('new', 0), {'psnr': 1.5})
    opened.finish()
    assert opened.lines.keys() == scores.Scores(folder, scores.STAGE_1).lines.keys()


TARGETS: dict[str, tuple[Callable[[Path], None], str]] = {
    'image': (image, '.png'), 'mask': (mask, '.png'), 'checkpoint': (checkpoint_, '.ckpt'), 'list': (list_, '.txt'),
    'manifest': (manifest_, '.json'), 'scores': (scores_, '.jsonl')}


def pictures() -> Iterator[bytes]:
    """Small pictures of every format and mode that is read."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (9, 10, 4), np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (9, 10), np.uint16))
    for form, more in (('PNG', {}), ('JPEG', {}), ('WEBP', {}), ('WEBP', {'lossless': True}), ('BMP', {}), ('TIFF', {}),
                       ('TIFF', {'compression': 'tiff_lzw'}), ('TIFF', {'compression': 'tiff_adobe_deflate'})):
        for mode in ('1', 'L', 'P', 'LA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16'):
            buffer = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            with suppress(OSError, ValueError, KeyError):  # a format that has no such mode
                (wide if mode == 'I;16' else colour.convert(mode)).save(buffer, form, exif=exif, **more)
                yield buffer.getvalue()
    yield encode.encode(rng.integers(0, 65536, (9, 10, 3), np.uint16), icc_profile=b'profile')
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text('Title', 'a picture')
    colour.save(buffer, 'PNG', pnginfo=text)
    yield buffer.getvalue()


def checkpoints() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'a.ckpt'
        checkpoint.write(path, {'head.weight': rng.random((4, 3), np.float32), 'half': rng.random(3).astype(np.float16),
                                'count': np.arange(2)}, {'network': 'Transformer', 'step': 3},
                         rng.uniform(-1, 1, (4, 3)).astype(np.float32))
        yield path.read_bytes()
        checkpoint.write(path, {'encoder.1.weight': rng.random((2, 1, 2, 2), np.float32)}, {'network': 'Generator'})
        yield path.read_bytes()


def manifests() -> Iterator[bytes]:
    entry = {'image': 'a.png', 'image_digest': 'a', 'mask': 'a.png', 'mask_digest': 'b'}
    yield json.dumps({'settings': {'seed': 0}, 'pictures': {'a': entry, 'b/c': {}}}).encode()
    yield json.dumps({'settings': {'seed': 1}, 'pictures': {}}).encode()


def lines_of_scores() -> Iterator[bytes]:
    line = {'image_digest': 'a', 'mask_digest': 'b', 'frames': 2, 'log_likelihood': -3.5}
    yield '\n'.join(json.dumps({'id': 'a/b', 'result': k, **line}) for k in range(3)).encode()
    yield b'\n{"id": "a", "result": 0, "psnr": 20.5, "hole": 0.25}\n\n{"id": "b", "resu'


def lists() -> Iterator[bytes]:
    yield f'{__file__}\n\n{os.path.relpath(__file__)} \n'.encode()
    yield b'\xef\xbb\xbf' + os.fsencode(sys.executable) + b'\r\n'


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    'image': pictures, 'mask': pictures, 'checkpoint': checkpoints, 'list': lists, 'manifest': manifests,
    'scores': lines_of_scores}


def write_seeds(target: str, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(SEEDS[target]()):
        (corpus / f'seed-{i:03d}').write_bytes(content)


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    (read, ending), corpus = TARGETS[sys.argv[1]], Path(sys.argv[2])
    if not corpus.is_file():  # in a process of its own, because MindSpore, which writes checkpoints, starts threads
        seeding = multiprocessing.get_context('fork').Process(target=write_seeds, args=(sys.argv[1], corpus))
        seeding.start()
        seeding.join()
    folder = Path(tempfile.mkdtemp(prefix='ict-fuzz-', dir=MEMORY))
    path = folder / f'input{ending}'

    def once(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(UserError):
            read(path)

    random.seed(0)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
