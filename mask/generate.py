"""Fill a folder with free-form stroke masks (white = hole), as the published code draws them.

``python mask/generate.py --save_path masks --count 1000 --lowest 0.2 --highest 0.6``
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from ict import files, options
from ict.command import run
from ict.data import encode, images, masks
from ict.errors import UserError, require
from ict.options import positive


def mask(args: argparse.Namespace, i: int) -> np.ndarray:
    """Mask ``i``, (H, W) uint8, which depends on the options alone."""
    try:
        hole = masks.strokes_within(np.random.default_rng([args.seed, i]), args.lowest, args.highest, args.size)
    except ValueError as error:
        raise UserError(f'--lowest {args.lowest} --highest {args.highest}: {error}; widen the interval') from None
    return hole.astype(np.uint8) * 255


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='mask/generate.py', description='Fill a folder with free-form stroke masks.')
    parser.add_argument('--save_path', required=True, help='folder for 00000.png, 00001.png, ...')
    parser.add_argument('--count', type=int, default=100, help='how many')
    parser.add_argument('--lowest', type=float, default=0.0, help="smallest share of the picture in the hole")
    parser.add_argument('--highest', type=float, default=1.0, help="largest share of the picture in the hole")
    parser.add_argument('--size', type=int, default=masks.STROKE_CANVAS, help='side in pixels')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same masks')
    options.add_flag(parser, '--overwrite', 'replace masks that are there already')
    args = parser.parse_args(argv)
    positive(args, 'count')
    positive(args, 'size', least=8)
    positive(args, 'seed', least=0)
    require(0 <= args.lowest < args.highest <= 1, f'--lowest {args.lowest} --highest {args.highest}: must be an '
                                                  f'interval within 0 and 1')
    folder = files.output_folder(args.save_path, '--save_path')
    targets = [folder / f'{i:05d}.png' for i in range(args.count)]
    finished = [] if args.overwrite else [i for i, target in enumerate(targets) if os.path.exists(target)]
    for i in tqdm(finished, desc='checking', unit='mask', disable=None):
        require(np.array_equal(images.load(targets[i]).native, mask(args, i)),
                f'{targets[i]}: is there already, and another mask; use --overwrite or an empty folder')
    for i in tqdm(sorted({*range(args.count)} - {*finished}), unit='mask', disable=None):
        encode.write(targets[i], mask(args, i))
    print(f'{args.count} masks in {folder}')
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
