"""Complete photographs: stage 1 samples priors into <save_place>/AP, stage 2 paints them into <save_place>.

``python run.py`` completes the bundled samples; ``python run.py --input_image photo.jpg --input_mask mask.png``
completes one's own with the bundled demo checkpoints.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
if not __package__:
    sys.path[0] = str(ROOT)

from Guided_Upsample import infer as stage_2
from ict import (
    options,
)
from ict.command import (
    SOME_FAILED,
    call,
    run,
)
from ict.device import runtime
from ict.errors import (
    UserError,
    require,
)
from ict.options import positive
from ict.runs import inputs
from Transformer import infer as stage_1

PUBLISHED = ('ImageNet', 'FFHQ', 'Places2_Nature')
SAMPLES, SAMPLE_MASKS = ROOT / 'images' / 'samples', ROOT / 'mask' / 'testing_mask_dataset'
DEMO_SAMPLES = 3
# How each stage calls run.py's options.
FIRST_NAMES = {'--ckpt_path': '--transformer_ckpt', '--image_url': '--input_image', '--mask_url': '--input_mask',
               '--save_url': '--save_place', '--condition_num': '--sample_num'}
SECOND_NAMES = {'--ckpt_path': '--upsample_ckpt', '--input': '--input_image', '--mask': '--input_mask',
                '--save_path': '--save_place', '--condition_num': '--sample_num'}


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='run.py', description='Complete photographs with both stages.')
    add = parser.add_argument
    add('--transformer_ckpt', default='', help="stage 1's checkpoint (default: --model's)")
    add('--upsample_ckpt', default='', help="stage 2's checkpoint, or the folder that holds it (default: --model's)")
    add('--model', choices=('demo', *PUBLISHED), default='demo', help='a pair of checkpoints by name')
    add('--input_image', default='', help='images: folder (searched recursively), file, or list of paths '
                                          '(default: the bundled samples)')
    add('--input_mask', default='', help='masks likewise, white = hole; a single file serves all images; alpha: what '
                                         'is transparent in the images (default where each has such a part)')
    add('--save_place', default='./save', help='results, priors (AP) and metrics go here')
    add('--sample_num', type=int, default=1, help='completions an image')
    options.add_flag(parser, '--test_only', 'metrics only: no result pictures are kept')
    options.add_device(parser)
    stage_1.add_sampling(parser)
    stage_2.add_painting(parser)
    inputs.add_options(parser)
    args = parser.parse_args(argv)
    positive(args, 'sample_num')
    stage_1.check_sampling(args)
    require(bool(args.input_image) or not args.input_mask, '--input_image and --input_mask: give both')
    require(bool(args.transformer_ckpt) == bool(args.upsample_ckpt), '--transformer_ckpt and --upsample_ckpt: give '
                                                                     'both, they belong together')
    if not argv:
        args.sample_num, args.sample_steps, args.visualize = DEMO_SAMPLES, stage_1.RECOMMENDED_STEPS, True
    if not args.input_image:
        args.input_image, args.input_mask = str(SAMPLES), str(SAMPLE_MASKS)
    if not args.input_mask:
        args.input_mask = inputs.without_masks(args.input_image, '--input_image', '--input_mask', args.max_pixels,
                                               args.save_place)
    if args.keep_size and args.geometry is None:
        args.geometry = 'resize'
    if not args.transformer_ckpt:
        args.transformer_ckpt, args.upsample_ckpt = checkpoints_of(args.model)
    return args


def checkpoints_of(model: str) -> tuple[str, str]:
    """Where a named pair lies.

    Raises:
        UserError: it is not there; says how to fetch it.
    """
    place = ROOT / 'ckpts_ICT'
    if model == 'demo':
        pair = place / 'demo' / 'Transformer.ckpt', place / 'demo' / 'InpaintingModel_gen.ckpt'
    else:
        pair = (place / 'origin' / 'Transformer' / f'{model}.ckpt',
                place / 'origin' / 'Upsample' / model / 'InpaintingModel_gen.ckpt')
    for path in pair:
        if not path.is_file():
            remedy = 'restore it with git checkout' if model == 'demo' else \
                f'fetch it: python ckpts_ICT/download.py {model}'
            raise UserError(f'--model {model}: {path} is missing; {remedy}')
    return str(pair[0]), str(pair[1])


def commands(args: Any) -> tuple[list[str], list[str]]:
    """Argument lists of the two stages, but for the device."""
    def given(*names: str) -> list[str]:
        return [f'--{name}={value}' for name in names if (value := getattr(args, name)) not in (None, '')]

    shared = given('mask_mode', 'geometry', 'invert_mask', 'dilate', 'max_pixels', 'allow_truncated', 'overwrite',
                   'prior_size', 'kmeans', 'seed', 'batch_size', 'amp_level', 'device_id')
    priors = str(Path(args.save_place) / 'AP')
    first = [f'--ckpt_path={args.transformer_ckpt}', f'--image_url={args.input_image}',
             f'--mask_url={args.input_mask}', f'--save_url={priors}', f'--skip={args.save_place}',
             f'--condition_num={args.sample_num}', *shared,
             *given('top_k', 'temperature', 'n_head', 'GELU_2', 'sample_steps', 'schedule', 'step_schedule',
                    'resample', 'reuse_window', 'refresh', 'deterministic')]
    second = [f'--ckpt_path={args.upsample_ckpt}', f'--input={args.input_image}', f'--mask={args.input_mask}',
              f'--prior={priors}', f'--save_path={args.save_place}', f'--condition_num={args.sample_num}', *shared,
              *given('padding', 'keep_size', 'visualize', 'test_only')]
    return first, second


@contextmanager
def our_names(names: dict[str, str]) -> Iterator[None]:
    """Errors in here name the options as they are called in run.py."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub('|'.join(rf'{name}\b' for name in names), lambda found: names[found[0]],
                               str(error))) from None


def main(argv: list[str]) -> int:
    args = arguments(argv)
    first, second = commands(args)
    with our_names(SECOND_NAMES):
        stage_2.check_before_stage_1(stage_2.arguments(second))
    with our_names(FIRST_NAMES):  # the last of it makes the save place
        shape = stage_1.check(stage_1.arguments(first)).shape
    first += [f'--n_head={shape.n_head}', f'--GELU_2={shape.GELU_2}']  # so that what they were taken from is said once
    target = f'--device_target={runtime.choose(args.device_target, args.device_id)}'
    worst = call(ROOT / 'Transformer' / 'infer.py', [*first, target])
    if worst in (0, SOME_FAILED):
        worst = max(worst, call(ROOT / 'Guided_Upsample' / 'infer.py', [*second, target]))
    if worst in (0, SOME_FAILED) and not args.test_only:
        print(f'results: {Path(args.save_place).resolve()}')
    return worst


if __name__ == '__main__':
    sys.exit(run(main))
