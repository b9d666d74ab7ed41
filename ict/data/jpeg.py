"""JPEG files whose end is missing: whether all of the picture is there all the same."""
from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image

_END = b'\xff\xd9'
_FRAMES, _SCAN, _WITHOUT_LENGTH = range(0xC0, 0xC3), 0xDA, (0x01, *range(0xD0, 0xD9))
_ZEROS = 16  # so many at the end are no picture data: a download that made room for what never came
# Data that no file goes on with, of which the first bits differ: what depends on them is missing.
_STRANGE = (b'\x00' * 64, b'\xaa' * 64)


def with_end(content: bytes) -> tuple[bytes, int | None]:
    """The file with an end that decoders accept, and the first row of pixels (as stored) that is missing.

    The row is None when all rows are there; 0 when a progressive file lacks a part of every row.
    """
    kept = content.rstrip(b'\0')
    kept = (kept if len(content) - len(kept) >= _ZEROS else content).rstrip(b'\xff')  # or half of a marker
    return kept + _END, _first_missing_row(kept)


def _first_missing_row(content: bytes) -> int | None:
    if not _all_scans_are_there(content):
        return 0
    seen = []
    for strange in _STRANGE:
        with Image.open(io.BytesIO(content + strange + _END), formats=('JPEG',)) as opened:
            seen.append(np.asarray(opened))
    differs = (seen[0] != seen[1]).reshape(len(seen[0]), -1).any(1)
    return int(differs.argmax()) if differs.any() else None


def _all_scans_are_there(content: bytes) -> bool:
    """Whether the scans begun so far hold all coefficients of all components to the last bit."""
    missing: dict[int, np.ndarray] = {}  # component: lowest bit that is there yet of each coefficient
    at = 2
    while (found := re.compile(rb'\xff+([^\0\xff])').search(content, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        body = content[at + 2:at + struct.unpack_from('>H', content.ljust(at + 2, b'\0'), at)[0]]
        if marker in _FRAMES:
            missing = {body[6 + 3 * c]: np.full(64, 99) for c in range(body[5])}
        elif marker == _SCAN and body and len(body) == 4 + 2 * body[0]:
            first, last, bits = body[-3], body[-2], body[-1] & 15
            for component in body[1:-3:2]:
                missing[component][first:last + 1] = bits
        at += 2 + len(body)
    return bool(missing) and all((left == 0).all() for left in missing.values())
