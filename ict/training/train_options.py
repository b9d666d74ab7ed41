"""Options that both training scripts have with the same defaults."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from ict import options
from ict.errors import require
from ict.options import positive
from ict.training import losses


def add_options(parser: argparse.ArgumentParser, table: Sequence[losses.Loss]) -> None:
    """Add them, and those of a table of losses, to a script's own."""
    add = parser.add_argument
    for loss in table:
        if loss.option:
            add(f'--{loss.option}', type=float, default=loss.weight, help=f'weight of {loss.help}')
    options.add_device(parser)
    add('--kmeans', default='', help="palette (default: stage 2's checkpoint's, ./kmeans_centers.npy, the "
                                     "repository's)")
    add('--seed', type=int, default=0, help='of data order, crops, masks and initial weights')
    add('--val_path', default='', help='held-back images, scored every --val_every steps; decide "best"')
    add('--val_mask', default='', help='their masks (default: fixed strokes)')
    options.add_flag(parser, '--invert_mask', 'black is the hole in the mask files')
    add('--dilate', type=int, default=0, help='grow the hole by so many mask pixels')
    add('--val_every', type=int, default=1000, help='steps from one validation to the next')
    add('--log_every', type=int, default=100, help='steps from one line to the next')
    add('--save_every', type=int, default=1000,
        help='steps from one save to the next: the most that a power cut can cost')
    add('--lr_schedule', choices=('constant', 'cosine'), default='constant',
        help='of the learning rate after the warm-up; cosine: down to 0 at the last step')
    add('--warmup_steps', type=int, default=0, help='over which the learning rate rises from 0')
    add('--clip_norm', type=float, default=0.0, help="largest norm of all of a network's gradients together; 0 = off")
    add('--num_workers', type=int, default=2, help='processes that make batches; 0 = none')
    add('--crop_scale', type=float, default=1.0, help='smallest random crop, in shorter sides of the picture')
    options.add_flag(parser, '--distributed', 'one process of several started by msrun')
    add('--amp_level', choices=('O0', 'O2', 'O3'), default='O0',
        help='O0: float32, O2: float16 but for the norms, O3: all float16')
    options.add_flag(parser, '--recompute', 'recompute activations in the backward pass: less memory, more time')


def check_options(args: argparse.Namespace, table: Sequence[losses.Loss]) -> None:
    """Raises a UserError for values out of range."""
    positive(args, *(loss.option for loss in table if loss.option), least=0)
    positive(args, 'batch_size', 'val_every', 'log_every', 'save_every')
    positive(args, 'num_workers', 'seed', 'warmup_steps', 'clip_norm', 'dilate', least=0)
    require(0 <= args.beta1 < 1 and 0 <= args.beta2 < 1, '--beta1 and --beta2 must be at least 0 and below 1')
    require(0 < args.crop_scale <= 1, f'--crop_scale {args.crop_scale}: must be above 0 and at most 1')
    require(not args.val_mask or bool(args.val_path), '--val_mask: needs --val_path')
