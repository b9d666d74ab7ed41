"""``python -m ict.device`` says what this machine can use and why not; ``--try`` also computes something there."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

from ict import options
from ict.command import run
from ict.device.gpu import FIRST_COMPILED_CARD, NEEDED, ROOT, Machine, dotted, this_machine


def table(machine: Machine) -> Iterator[str]:
    """Lines for people: every part, then whether the GPU can be used."""
    def row(name: str, text: str) -> str:
        return f'{name:<19} {text}'

    try:
        version = importlib.metadata.version('mindspore')
    except importlib.metadata.PackageNotFoundError:
        version = 'missing'
    yield row('CPU', f'{os.cpu_count()} cores, {platform.machine()}')
    yield row('MindSpore', version)
    yield row('its GPU plugin', str(machine.plugin or 'missing'))
    known = f'knows CUDA up to {dotted(machine.cuda)}' if machine.cuda else machine.fault or 'missing'
    yield row('NVIDIA driver', f'{machine.driver}, {known}' if machine.driver else known)
    for i, card in enumerate(machine.cards):
        slow = '; compiles its kernels at the first use, which takes minutes' \
            if card.capability >= FIRST_COMPILED_CARD else ''
        yield row(f'GPU {i}', f'{card.name}, compute capability {dotted(card.capability)}{slow}')
    if not machine.cards:
        yield row('GPU', 'none')
    for name, file in machine.libraries.items():
        yield row(name, file or f'missing{f" ({NEEDED[name]})" if name in NEEDED else ""}')
    problems = machine.problems()
    yield 'GPU can be used' if not problems else 'GPU cannot be used; the CPU is:'
    for problem in problems:
        yield f'  {problem}'


_TRIAL = """
import sys
sys.path[0] = sys.argv.pop(1)
import numpy as np
from ict.command import run
from ict.device import runtime
from ict.errors import require

def trial(argv):
    runtime.start(argv[0], 0)
    import mindspore as ms
    a = np.random.default_rng(0).random((256, 256), np.float32)
    dense = ms.nn.Dense(256, 256, weight_init=ms.Tensor(a), has_bias=False)
    off = np.abs(dense(ms.Tensor(a)).asnumpy() - a @ a.T).max() / (a @ a.T).max()
    conv = ms.nn.Conv2d(3, 4, 3, pad_mode='valid', has_bias=False, weight_init='ones')
    sums = conv(ms.Tensor(np.ones((1, 3, 8, 8), np.float32))).asnumpy()
    require(off < 1e-4 and np.allclose(sums, 27), f'{argv[0]}: it computes wrong numbers (off by {off:.1e})')
    print(f'tried on the {argv[0]}: a matrix product (off by {off:.1e}) and a convolution')

sys.exit(run(trial))
"""

def main(argv: list[str]) -> int:
    parser = options.Parser(prog='python -m ict.device', description='What MindSpore can use on this machine.')
    parser.add_argument('--try', dest='trial', action='store_true', help='import MindSpore and compute something')
    args = parser.parse_args(argv)
    machine = this_machine()
    print('\n'.join(table(machine)), flush=True)
    if args.trial:
        target = 'CPU' if machine.problems() else 'GPU'
        if subprocess.run([sys.executable, '-c', _TRIAL, str(ROOT), target]).returncode:
            print(f'trying the {target} failed')
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
