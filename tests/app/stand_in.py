"""Serves the page with a stand-in for the networks: ``python -m tests.app.stand_in SECONDS_A_PASS [PORT]``."""
from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ict import app
from ict.data import images
from ict.pipeline import Cancelled, Completion

PASSES = 5
_one_at_a_time = threading.Lock()


def fill_with_noise(image: Path, mask: np.ndarray, *, samples: int, seed: int, name: str, cancel: threading.Event,
                    progress: Callable[[int, int], None], pass_seconds: float = 0, **_: object) -> list[Completion]:
    """Like a Pipeline, but every sample is noise."""
    with _one_at_a_time:
        photo = images.load(image)
        for done in range(PASSES):
            if cancel.is_set():
                print(f'cancelled {name} after {done} passes', file=sys.stderr, flush=True)
                raise Cancelled
            time.sleep(pass_seconds)
            progress(done + 1, PASSES)
        completions = []
        for k in range(samples):
            rng = np.random.default_rng([seed, k])
            picture = photo.native.copy()
            picture[mask > 127] = rng.integers(0, np.iinfo(picture.dtype).max, picture[mask > 127].shape)
            prior = np.array(Image.fromarray(photo.rgb).resize((32, 32)))
            completions.append(Completion(picture, [prior, prior[::-1]], -100.0 + 10 * (k * 3 % 5), photo.icc_profile))
        return completions


def tell_of_hosts(event: str, arguments: tuple) -> None:
    """An audit hook: a line for every other host that this process looks up or connects to."""
    host = {'socket.getaddrinfo': lambda: arguments[0], 'socket.connect': lambda: arguments[1][0]}.get(event, str)()
    if host and host not in ('127.0.0.1', 'localhost', '::1', b'127.0.0.1'):
        print(f'asks {host!r}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.addaudithook(tell_of_hosts)
    pass_seconds, port = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    app.serve(lambda model: partial(fill_with_noise, pass_seconds=pass_seconds), ['demo'], '127.0.0.1', port)
