"""Fetch published checkpoints to where the scripts look for them, with the palette that they mean.

``python ckpts_ICT/download.py ImageNet``; a download that was cut short goes on where it stopped.
"""
from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from ckpts_ICT import convert
from ict import checkpoint, files, options
from ict.command import NOTHING_DONE, SOME_FAILED, run
from ict.data import codebook
from ict.errors import UserError, require
from ict.log import log

URL = 'https://download.mindspore.cn/vision/ict/'
PALETTE_URL = 'https://raw.githubusercontent.com/raywzy/ICT/main/Transformer/kmeans_centers.npy'
PALETTE = 'kmeans_centers.npy'
NAMES = ('ImageNet', 'FFHQ', 'Places2_Nature', 'ms_train', 'VGG19')
ATTEMPTS = 3  # in a row that bring nothing
WAIT_S, TIMEOUT_S = 1.0, 30.0
_BLOCK = 1 << 20
_TEMPORARY = (408, 425, 429)  # like all from 500 on, HTTP errors that may be gone a little later


def published(name: str) -> dict[str, str]:
    """Path below the published folder, and below ckpts_ICT, -> what lies there."""
    if name == 'VGG19':
        return {'VGG19.ckpt': 'VGG19'}
    if name == 'ms_train':
        upsample, ending = 'ms_train/Upsample', '_best'
        transformer = 'ms_train/Transformer/ImageNet_best.ckpt'
    else:
        upsample, ending = f'origin/Upsample/{name}', ''
        transformer = f'origin/Transformer/{name}.ckpt'
    return {transformer: 'Transformer', f'{upsample}/InpaintingModel_gen{ending}.ckpt': 'Generator',
            f'{upsample}/InpaintingModel_dis{ending}.ckpt': 'Discriminator'}


# ---------------------------------------------------------------- one file

class _TryAgainError(Exception):
    """Something that may go well when it is tried again."""


def fetch(url: str, target: Path, check: Callable[[Path], Any]) -> None:
    """Download to ``.part-<name>`` beside ``target`` and rename when it is whole; goes on with what is there.

    Args:
        check: raises a UserError for a file that is not what it should be.

    Raises:
        UserError: not there, not reachable, or not what it should be; the target is then as before.
    """
    partial = target.with_name(files.TEMPORARY + target.name)
    version_file = partial.with_name(partial.name + '.json')
    by_hand = f'or fetch it by hand and save it as {target}'
    failures, furthest = 0, _size(partial)
    while True:
        try:
            _attempt(url, partial, version_file)
            break
        except HTTPError as error:
            raise UserError(f'{url}: {_reason(error)}; it is not published there; give a mirror with --url, '
                            f'{by_hand}') from None
        except _TryAgainError as reason:
            failures = 0 if _size(partial) > furthest else failures + 1
            furthest = max(furthest, _size(partial))
            if failures == ATTEMPTS:
                raise UserError(f'{url}: {reason}; check the network and repeat the command, which goes on where it '
                                f'stopped, {by_hand}') from None
            log(f'{url}: {reason}; trying again')
            time.sleep(WAIT_S * 2 ** failures)
    try:
        check(partial)
    except UserError as error:
        partial.unlink()
        version_file.unlink(missing_ok=True)
        raise UserError(f'{url}: what came from there is not right ({error}); try another mirror with --url, '
                        f'{by_hand}') from None
    with _writing(target):
        files.commit(partial, target)
        version_file.unlink(missing_ok=True)


def _attempt(url: str, partial: Path, version_file: Path) -> None:
    """Fetch what is missing; raises ``_TryAgainError`` when that isn't all, HTTPError when trying again is no use."""
    before = _read_version(version_file, url)
    headers = {'User-Agent': 'ict-download', 'Accept-Encoding': 'identity'}
    # of a whole file the last byte again, to hear that it is still the same
    start = int(min(_size(partial), (before['size'] or math.inf) - 1)) if before else 0
    if before and start > 0:
        strong_etag = before['etag'] if before['etag'] and not before['etag'].startswith('W/') else None
        headers['Range'] = f'bytes={start}-'
        if condition := strong_etag or before['modified']:
            headers['If-Range'] = condition
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            _receive(response, url, partial, version_file, start, before)
    except HTTPError as error:
        if error.code == 416:
            raise _anew(partial) from None
        if error.code in _TEMPORARY or error.code >= 500:
            raise _TryAgainError(_reason(error)) from None
        raise
    except (ValueError, InvalidURL) as error:
        raise UserError(f'{url}: no address to fetch from ({error}); mend --url') from None
    except URLError as error:
        raise _TryAgainError(f'not reachable ({error.reason})') from None
    except (OSError, HTTPException) as error:
        raise _broken(error) from None


def _receive(response: HTTPResponse, url: str, partial: Path, version_file: Path, start: int,
             before: dict[str, Any] | None) -> None:
    """Write what comes, from byte ``start`` on where the server has understood that."""
    headers, resumed = response.headers, response.status == 206
    size = response.length
    if resumed:
        content_range = re.fullmatch(rf'bytes {start}-\d+/(\d+)', headers['Content-Range'] or '')
        size = int(content_range[1]) if content_range else None
    version = {'url': url, 'size': size, 'etag': headers['ETag'], 'modified': headers['Last-Modified']}
    if resumed and (size is None or before is None or not _is_same(version, before)):
        raise _anew(partial)
    with _writing(partial), open(partial, 'r+b' if resumed else 'wb') as stream:
        stream.seek(start if resumed else 0)
        stream.truncate()
        if not resumed:
            files.write_json(version_file, version)
        with tqdm(total=size, initial=stream.tell(), unit='B', unit_scale=True,
                  desc=partial.name.removeprefix(files.TEMPORARY), disable=None) as bar:
            for block in _blocks(response):
                stream.write(block)
                bar.update(len(block))
        end = stream.tell()
    if size is not None and end != size:
        raise _TryAgainError(f'only {end} of {size} bytes came')


def _is_same(version: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether nothing tells two versions apart; a partial answer needn't repeat all that a whole one said."""
    return all(None in (value, before[name]) or value == before[name] for name, value in version.items())


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    try:  # told here from a full disk, which is an OSError too
        while block := response.read(_BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _broken(error) from None


def _anew(partial: Path) -> _TryAgainError:
    partial.unlink(missing_ok=True)
    return _TryAgainError('has changed since a part of it was fetched, starting anew')


def _broken(error: Exception) -> _TryAgainError:
    return _TryAgainError(f'the connection broke ({error or type(error).__name__})')


def _reason(error: HTTPError) -> str:
    return f'HTTP {error.code} {error.reason}'.strip()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_version(version_file: Path, url: str) -> dict[str, Any] | None:
    """What tells the file's version of which a part is here; None when that is not known, or of another ``url``."""
    try:
        version = files.read_json(version_file)
        return version if version['url'] == url and version.keys() == {'url', 'size', 'etag', 'modified'} else None
    except (UserError, TypeError, KeyError):
        return None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); make room and repeat the command, which goes '
                        f'on where it stopped') from None


# ---------------------------------------------------------------- a published model

def get(url: str, target: Path, check: Callable[[Path], Any], overwrite: bool) -> None:
    """``fetch``, unless the file is there and right; says so."""
    if target.exists() and not overwrite:
        try:
            check(target)
        except UserError as error:
            raise UserError(f'{error}; --overwrite fetches it anew') from None
        print(f'{target}: is there already (--overwrite fetches it anew)')
        return
    files.output_folder(target.parent, '--save_path')
    fetch(url, target, check)
    print(f'{target}: {target.stat().st_size / 1e6:.1f} MB')


def add_palette(transformer: Path, kmeans: str, url: str, overwrite: bool) -> None:
    """Stamp a published transformer with the palette that it was trained with, unless it carries one.

    Raises:
        UserError: the palette can't be had, or is not this transformer's; says how to stamp it later.
    """
    found = checkpoint.read(transformer)
    if found.palette is not None:
        checkpoint.transformer_palette(found, kmeans, len(found.palette))
        return
    centres = Path(kmeans) if kmeans else transformer.with_name(PALETTE)
    try:
        if not kmeans:
            get(url, centres, codebook.load, overwrite)
        print(convert.convert(transformer, transformer, convert.Flags(kmeans=str(centres))))
    except UserError as error:
        raise UserError(f'{transformer}: is there, but without its palette ({error}); add it later with: '
                        f'python ckpts_ICT/convert.py {transformer} {transformer} --kmeans {centres}') from None


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='ckpts_ICT/download.py', description='Fetch published checkpoints.')
    parser.add_argument('NAME', choices=NAMES, help="ImageNet, FFHQ, Places2_Nature: the original's; ms_train: "
                                                    'trained with MindSpore; VGG19: for the training of stage 2')
    parser.add_argument('--url', default=URL, help='where they are published, or a mirror with the same paths')
    parser.add_argument('--palette_url', default=PALETTE_URL, help='the palette that the transformers mean')
    parser.add_argument('--kmeans', default='', help='the palette as a file, instead')
    parser.add_argument('--save_path', default=str(Path(__file__).resolve().parent), help='where they go')
    options.add_flag(parser, '--overwrite', 'fetch what is there already anew')
    args = parser.parse_args(argv)
    wanted = published(args.NAME)
    require(not args.kmeans or 'Transformer' in wanted.values(), f'--kmeans: {args.NAME} has no palette')
    for option in ('url', 'palette_url'):
        address = getattr(args, option)
        require(address.startswith(('http://', 'https://')), f'--{option} {address}: must begin with http:// or https://')
    if args.kmeans:
        codebook.load(args.kmeans)
    done, failed = 0, []
    for path, kind in wanted.items():
        def check(file: Path, kind: str = kind) -> None:
            checkpoint.read(file).expect(kind, args.NAME)

        target = Path(args.save_path) / path
        try:
            get(f'{args.url.rstrip("/")}/{path}', target, check, args.overwrite)
            done += 1
            if kind == 'Transformer':
                add_palette(target, args.kmeans, args.palette_url, args.overwrite)
        except UserError as error:
            failed.append(error)
            log(f'error: {error}')
    if failed:
        return SOME_FAILED if done else NOTHING_DONE
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
