"""Complete photographs: stage 1 samples priors into <save_place>/AP, stage 2 paints them into <save_place>.

``python run.py`` completes the bundled samples; ``python run.py --input_image photo.jpg --input_mask mask.png``
completes one's own with the bundled demo checkpoints.
"""
from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
if not __package__:
    sys.path[0] = str(ROOT)

from Guided_Upsample import infer as stage_2
from ict import options, pretrained
from ict.command import SOME_FAILED, run, supervised, working_on
from ict.device import runtime
from ict.errors import require
from ict.lock import locked
from ict.options import Given, positive
from ict.runs import inputs
from ict.runs.config import ComputeConfig, add_options
from Transformer import infer as stage_1

SAMPLES, SAMPLE_MASKS = ROOT / 'images' / 'samples', ROOT / 'mask' / 'testing_mask_dataset'
DEMO_SAMPLES = 3
PRIORS = 'AP'


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='run.py', description='Complete photographs with both stages.')
    add = parser.add_argument
    add('--transformer_ckpt', default='', help="stage 1's checkpoint (default: --model's)")
    add('--upsample_ckpt', default='', help="stage 2's checkpoint, or the folder that holds it (default: --model's)")
    add('--model', choices=pretrained.PAIRS, default='demo', help='a pair of checkpoints by name')
    add('--input_image', default='', help='images: folder (searched recursively), file, or list of paths '
                                          '(default: the bundled samples)')
    add('--input_mask', default='', help='masks likewise, white = hole; a single file serves all images; alpha: what '
                                         'is transparent in the images (default where each has such a part)')
    add('--save_place', default='./save', help='results, priors (AP) and metrics go here')
    add('--sample_num', type=int, default=None, help=f'completions an image (default: 1; of the bundled samples '
                                                     f'{DEMO_SAMPLES}, with --visualize)')
    stage_1.add_model(parser)
    stage_1.add_sampling(parser, stage_1.RECOMMENDED_STEPS)
    stage_2.add_painting(parser)
    add_options(parser, with_ranks=False)
    parser.set_defaults(visualize=None)
    args = parser.parse_args(argv)
    positive(args, 'sample_num', 'n_head', 'prior_size', 'batch_size')
    stage_1.check_sampling(args)
    stage_2.check_painting(args)
    require(bool(args.input_image) or not args.input_mask, '--input_image and --input_mask: give both')
    require(bool(args.transformer_ckpt) == bool(args.upsample_ckpt), '--transformer_ckpt and --upsample_ckpt: give '
                                                                     'both, they belong together')
    bundled = not args.input_image
    if args.sample_num is None:
        args.sample_num = DEMO_SAMPLES if bundled and not args.deterministic else 1
    if args.visualize is None:
        args.visualize = bundled and not args.test_only
    if bundled:
        args.input_image, args.input_mask = str(SAMPLES), str(SAMPLE_MASKS)
    if not args.input_mask:
        args.input_mask = inputs.without_masks(Given.from_args(args, 'input_image'), '--input_mask',
                                               options.chosen(inputs.ViewFlags, args), args.save_place)
    if args.keep_size and args.geometry is None:
        args.geometry = 'resize'
    if not args.transformer_ckpt:
        args.transformer_ckpt, args.upsample_ckpt = map(str, pretrained.pair(args.model))
    return args


def configs(args: Any) -> tuple[stage_1.InferConfig, stage_2.InferConfig]:
    """The configuration of each stage."""
    given = partial(Given.from_args, args)
    shared: dict[str, Any] = {
        'images': given('input_image'), 'masks': given('input_mask'), 'n_results': given('sample_num'),
        'view': options.chosen(inputs.ViewFlags, args), 'overwrite': args.overwrite, 'skip': (args.save_place,),
        'compute': options.chosen(ComputeConfig, args, distributed=False)}
    priors = Given(str(Path(args.save_place) / PRIORS), '--save_place')
    return (stage_1.InferConfig(ckpt=given('transformer_ckpt'), output=priors,
                                model=options.chosen(stage_1.ModelFlags, args, n_layer=None, n_embd=None),
                                sampling=options.chosen(stage_1.SamplingFlags, args), **shared),
            stage_2.InferConfig(ckpt=given('upsample_ckpt'), output=given('save_place'), prior=priors,
                                painting=options.chosen(stage_2.PaintingFlags, args, image_size=256), **shared))


def main(argv: list[str]) -> int:
    args = arguments(argv)
    first, second = configs(args)
    # check both stages before either starts; the last check makes the output folder
    stage_2.prepare(second, with_priors=False)
    sampling = stage_1.prepare(first)
    device_target = runtime.choose(args.device_target, args.device_id)
    # stage 1
    working_on('stage 1')
    with locked(Path(args.save_place), '--save_place'):  # stage 2 of another run may be reading the priors
        status = sampling.execute(device_target)
    # stage 2
    if status in (0, SOME_FAILED):
        working_on('stage 2')
        status = max(status, stage_2.prepare(second).execute(device_target))
    if status in (0, SOME_FAILED) and not args.test_only:
        print(f'results: {Path(args.save_place).resolve()}')
    return status


if __name__ == '__main__':
    sys.exit(supervised(lambda: run(main)))
