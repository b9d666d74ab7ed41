"""Train stage 2: the generator that paints a hole at 256 x 256, guided by a 32 x 32 prior.

``python Guided_Upsample/train.py --input ImageNet/train --mask masks --vgg_path VGG19.ckpt``
"""
from __future__ import annotations

import hashlib
import math
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from Guided_Upsample.datasets import dataset
from Guided_Upsample.models import config, vgg_file
from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook, images, pairs
from ict.device import parallel, runtime
from ict.errors import require
from ict.log import log
from ict.options import positive
from ict.runs import inputs, manifest, metrics, report
from ict.training import checkpointer, epoch_sampler, loader, loop, schedule, train_options

GEN, DIS = 'InpaintingModel_gen', 'InpaintingModel_dis'
TRAIN, TEST = 1, 2
_COURSE_FREE = (*checkpointer.NOT_COMPARED, 'input', 'mask', 'prior', 'val_prior', 'vgg_path', 'mode', 'max_iteration')
_SHEET_ROWS = 8
_HIGHEST = 100.0  # PSNR in running means and validations; one picture without a hole would make them infinite
_PROBES = 100  # pictures whose priors are looked for before a training starts


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Guided_Upsample/train.py', description='Train the guided upsampler (stage 2).')
    add = parser.add_argument
    add('--input', required=True, help='training images: folder, or text file with one path a line')
    add('--mask', default='', help='masks (white = hole), for --mask_type 2 and 3')
    add('--prior', default='', help="stage 1's save_url; default: the degraded image")
    add('--val_prior', default='', help="stage 1's save_url of --val_path and --val_mask; default: degraded images")
    add('--ckpt_path', default='', help='resume from this folder')
    add('--save_path', default='./checkpoint', help='checkpoints, log and samples go here')
    add('--vgg_path', default='', help='VGG19 checkpoint (default: ./VGG19.ckpt, else ckpts_ICT/VGG19.ckpt)')
    add('--image_size', type=int, default=256, help='side of the pictures')
    add('--prior_size', type=int, default=32, help='side of the priors')
    add('--prior_random_degree', type=int, default=1, help='a prior pixel is one of its so many nearest colours')
    options.add_flag(parser, '--use_degradation_2', 'shrink the image for its prior bilinearly, as stage 1 does')
    add('--mode', type=int, choices=(TRAIN, TEST), default=TRAIN, help='1 trains, 2 only scores')
    add('--mask_type', type=int, choices=(1, 2, 3), default=2,
        help="1: random square block, 2: random file of --mask, 3: the image's own file of --mask")
    add('--max_iteration', type=int, default=25000, help='optimizer steps in all')
    add('--batch_size', type=int, default=32, help='pictures a step and rank')
    add('--lr', type=float, default=1e-4, help="the generator's learning rate")
    add('--D2G_lr', type=float, default=0.1, help="the discriminator's learning rate over the generator's")
    add('--beta1', type=float, default=0.9, help="Adam's decay of the first moments")
    add('--beta2', type=float, default=0.9, help="Adam's decay of the second moments")
    add('--l1_loss_weight', type=float, default=1.0,
        help='weight of the mean absolute error, divided by the share of the hole')
    add('--rim_weight', type=float, default=0.0,
        help='a pixel of the hole counts 1 + this x exp(-(d - 1) / 2.5) times in that error, d pixels from a known one')
    add('--style_loss_weight', type=float, default=250.0,
        help='weight of the differences between Gram matrices of VGG19 features')
    add('--content_loss_weight', type=float, default=0.1, help='weight of the differences between VGG19 features')
    add('--inpaint_adv_loss_weight', type=float, default=0.1, help="weight of the discriminator's verdict")
    add('--padding', choices=config.PADDINGS, default=None,
        help="second pad of a residual block (default: the checkpoint's, else symmetric)")
    add('--base_channels', type=int, default=None,
        help="channels of the generator's first layer (default: the checkpoint's, else 64)")
    add('--residual_blocks', type=int, default=None,
        help="blocks in the middle of the generator (default: the checkpoint's, else 8)")
    add('--init', choices=('published', 'structured'), default='published',
        help='structured: starts as a network that paints the enlarged prior, shifted towards the pixels around')
    train_options.add_options(parser)
    args = parser.parse_args(argv)
    train_options.check_options(args)
    positive(args, 'image_size', 'prior_size', 'prior_random_degree', 'max_iteration', 'base_channels',
             'residual_blocks')
    positive(args, 'l1_loss_weight', 'rim_weight', 'style_loss_weight', 'content_loss_weight',
             'inpaint_adv_loss_weight', least=0)
    require(0 < args.lr < math.inf and 0 < args.D2G_lr < math.inf, '--lr and --D2G_lr must be above 0 and finite')
    require(args.image_size % 4 == 0 and args.image_size >= 32, f'--image_size {args.image_size}: must be a multiple '
                                                                'of 4 and at least 32')
    require(args.mask_type == dataset.BLOCK or bool(args.mask) or (args.mode == TEST and bool(args.val_path)),
            f'--mask: needed for --mask_type {args.mask_type} (make some: python mask/generate.py --save_path masks)')
    require(not args.val_prior or bool(args.val_mask), '--val_prior: needs --val_mask, the masks it was made with')
    require(args.mode == TRAIN or bool(args.ckpt_path), '--ckpt_path: needed for --mode 2')
    return args


def find_checkpoints(folder: str, names: tuple[str, ...], resume: bool) -> list[Path]:
    """The networks' files in a folder: to resume the latest where there is a state, else plain, _best, _latest."""
    place = Path(folder)
    wanted = ', '.join(f'{name}.ckpt' for name in names)
    require(os.path.isdir(place), f'--ckpt_path {folder}: no such folder (it must hold {wanted})')
    if resume and os.path.isfile(place / checkpointer.state_name(GEN)):
        return [place / f'{name}_latest.ckpt' for name in names]
    found = checkpoint.saved_in(place, names)
    require(found is not None, f'--ckpt_path {folder}: holds no {wanted} (nor _best, _latest)')
    return found


def given_networks(args: Any) -> tuple[list[checkpoint.Checkpoint], checkpoint.Checkpoint | None]:
    """Generator (and, to train against it, discriminator) that --ckpt_path gives, and the training's state beside."""
    adversarial = args.mode == TRAIN and args.inpaint_adv_loss_weight > 0
    kinds = {GEN: 'Generator'} | ({DIS: 'Discriminator'} if adversarial else {})
    paths = find_checkpoints(args.ckpt_path, tuple(kinds), args.mode == TRAIN)
    state = checkpointer.find_state(paths[0]) if args.mode == TRAIN else None
    given = [(checkpointer.weights_in(state, name) if state is not None and not path.is_file() else
              checkpoint.read(path, '--ckpt_path')).expect(kind, '--ckpt_path')
             for path, (name, kind) in zip(paths, kinds.items(), strict=True)]
    if adversarial:
        checkpoint.check(given[1], config.DISCRIMINATOR)
        steps = [one.metadata.get('step') for one in given]
        require(state is not None or steps[0] == steps[1], f'--ckpt_path {args.ckpt_path}: the generator is of step '
                f'{steps[0]}, the discriminator of step {steps[1]}; bring two of one step together')
    return given, state


def shape_of(args: Any, given: checkpoint.Checkpoint | None) -> config.Architecture:
    """The generator to train: the checkpoint's, or the flags' and the published defaults; noted in ``args``.

    Raises:
        UserError: a flag contradicts the checkpoint, or the numbers fit no network.
    """
    default = config.of(given, args.padding) if given is not None else config.Architecture()
    for name, value in default.metadata().items():
        own = getattr(args, name)
        require(given is None or own in (None, value), f'--{name} {own} contradicts {args.ckpt_path}, which has '
                                                       f'{value}; leave the flag out')
        setattr(args, name, value if own is None else own)
    require(args.init == 'published' or args.base_channels >= config.STRUCTURED_CHANNELS,
            f'--init structured: needs --base_channels of {config.STRUCTURED_CHANNELS} or more')
    return config.Architecture(args.residual_blocks, args.base_channels, args.padding)


def source_of(args: Any, centres: np.ndarray, folder: Path, input_path: str, input_option: str, mask_path: str,
              mask_option: str, mask_type: int, prior: str, prior_option: str,
              cache: str | None = None) -> dataset.Source:
    """Listings and pairs of images, masks and priors."""
    pictures = pairs.listing(input_path, input_option, without=[folder], cache=folder / cache if cache else None,
                             unique=False, writes=parallel.is_writer())
    mask_files, numbers = None, None
    if mask_type in (dataset.RANDOM_FILE, dataset.PAIRED_FILE):
        mask_files = pairs.listing(mask_path, mask_option, without=[folder], unique=False)
        if mask_type == dataset.PAIRED_FILE:
            numbers = pairs.masks_for(pictures, mask_files)
    priors = None
    if prior:
        priors = pairs.condition_folders(prior, prior_option)
        made = manifest.read(prior, manifest.STAGE_1)
        for name, wanted in vars(inputs.View()).items() if made is not None else ():
            seen = made['settings'].get(name)
            require(seen == wanted, f'{prior_option} {prior}: made with --{name} {seen}; training sees pictures and '
                                    f'masks with --{name} {wanted}, make the priors so')
        if numbers is None:
            log(f'{prior_option} {prior}: without --mask_type {dataset.PAIRED_FILE} the holes are other ones '
                         f'than those the priors were made for, so that priors show true colours in them')
        # Workers name what is missing of the others; a validation has none and must not fail hours later.
        for i in range(0, len(pictures), 1 if prior_option == '--val_prior' else max(1, len(pictures) // _PROBES)):
            dataset.priors_of(priors, pictures, i)
            if numbers is not None and made is not None:
                _same_sources(made['pictures'].get(pictures.id(i)), pictures.path(i), mask_files.path(numbers[i]),
                              f'{prior_option} {prior}')
    return dataset.Source(pictures, mask_type, mask_files, numbers, priors, centres, args.image_size, args.prior_size,
                          args.prior_random_degree, args.use_degradation_2)


def _same_sources(entry: dict[str, Any] | None, picture: Path, mask: Path, prior: str) -> None:
    """A UserError unless stage 1's manifest says that a prior was made of this picture and this mask."""
    paths = {'image': picture, 'mask': mask}
    other = manifest.other_source(entry or {}, {f'{key}_digest': manifest.file_digest(paths[key]) for key in paths})
    require(other is None, f'{prior}: its prior of {picture} was made with another {other} than {paths.get(other)}; '
                           f'run stage 1 again')


def validation_source(args: Any, centres: np.ndarray, folder: Path) -> dataset.Source | None:
    """The held-back part: --val_path, or --input itself for --mode 2.

    Raises:
        UserError: one of its files can't be read, which is said now and not hours later.
    """
    if args.val_path and args.val_mask:
        source = source_of(args, centres, folder, args.val_path, '--val_path', args.val_mask, '--val_mask',
                           dataset.PAIRED_FILE, args.val_prior, '--val_prior')
    elif args.val_path:
        source = source_of(args, centres, folder, args.val_path, '--val_path', '', '', dataset.STROKES, '', '')
    elif args.mode == TEST:
        source = source_of(args, centres, folder, args.input, '--input', args.mask, '--mask', args.mask_type,
                           args.prior, '--prior')
    else:
        return None
    for i in range(len(source.pictures) if args.mode == TRAIN else 0):
        example_of(source, i)
    return source


def example_of(source: dataset.Source, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Example ``i`` of a held-back part, always with the same hole: see ``Source.example``.

    Raises:
        UserError: one of its files can't be read.
    """
    failures: list[str] = []
    example = source.example(i, np.random.default_rng([i, 3]), 1.0, False, failures)
    require(not failures, f'held-back pictures must all be readable: {"; ".join(failures[:1])}')
    return example


def best_by(held_back: dataset.Source | None) -> str:
    """What decides 'best', kept with it: a score of degraded pictures says nothing about one of stage 1's priors."""
    if held_back is None:
        return loop.best_by(None, None)
    decides = loop.best_by(held_back.pictures, held_back.mask_files)
    if held_back.prior_folders is None:
        return decides
    digests = [manifest.file_digest(path) for i in range(len(held_back.pictures))
               for path in dataset.priors_of(held_back.prior_folders, held_back.pictures, i)]
    return f'{decides} with priors {hashlib.sha256("".join(digests).encode()).hexdigest()[:12]}'


def main(argv: list[str]) -> int:
    args = arguments(argv)
    rank, ranks = parallel.rank() if args.distributed else (0, 1)
    centres = codebook.load(codebook.find_for_training(args.kmeans))
    given, state = given_networks(args) if args.ckpt_path else (None, None)
    shape = shape_of(args, given[0] if given else None)
    folder = files.output_folder(args.save_path, '--save_path')
    if args.mode == TRAIN:
        checkpointer.require_free(folder, GEN, state, folder)
    if parallel.is_writer():
        files.sweep(folder, below=False)
    vgg_checkpoint = None
    if args.mode == TRAIN and (args.content_loss_weight > 0 or args.style_loss_weight > 0):
        vgg_checkpoint = vgg_file.find(args.vgg_path)
    held_back = validation_source(args, centres, folder)
    feeder = order = None
    if args.mode == TRAIN:
        source = source_of(args, centres, folder, args.input, '--input', args.mask, '--mask', args.mask_type,
                           args.prior, '--prior', 'files.npz')
        order = epoch_sampler.EpochSampler(len(source.pictures), args.batch_size, args.seed, rank, ranks)
        first_step = state.metadata['progress']['step'] if state is not None else 0
        require(first_step < args.max_iteration, f'--ckpt_path {args.ckpt_path}: already has the {first_step} of '
                f'{args.max_iteration} steps; raise --max_iteration')
        args.device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
        feeder = loader.DataLoader(dataset.TrainingBatches(source, order, args.crop_scale), args.num_workers,
                                 first_step, args.max_iteration)
    try:
        return _work(args, folder, centres, shape, given, state, vgg_checkpoint, order, feeder, held_back)
    finally:
        if feeder is not None:
            feeder.close()


def _work(args: Any, folder: Path, centres: np.ndarray, shape: config.Architecture,
          given: list[checkpoint.Checkpoint] | None, state: checkpoint.Checkpoint | None,
          vgg_checkpoint: checkpoint.Checkpoint | None, order: epoch_sampler.EpochSampler | None,
          feeder: loader.DataLoader | None, held_back: dataset.Source | None) -> int:
    runtime.start(args.device_target, args.device_id, args.distributed)
    from Guided_Upsample.models import networks
    from Guided_Upsample.models.inpaint import Inpainter

    rng = np.random.default_rng([args.seed, 0])
    generator = networks.Generator(shape.residual_blocks, shape.base_channels, shape.padding, rng=rng)
    discriminator = networks.Discriminator(3, rng=rng)
    if args.init == 'structured' and given is None:
        networks.start_structured(generator)
    painter = Inpainter(generator, runtime.rows_at_once(args.batch_size))

    def validate(step: int) -> tuple[float, dict[str, float]]:
        means, sheet = score(held_back, painter, args.batch_size, _HIGHEST)
        if parallel.is_writer():
            images.write_png(folder / f'sample_{step:07d}.png', sheet)
        return -means['psnr'], {f'val_{k}': v for k, v in means.items()}

    if args.mode == TEST:
        checkpoint.load_into(generator, given[0])
        means, sheet = score(held_back, painter, args.batch_size)
        if parallel.is_writer():
            images.write_png(folder / 'sample_test.png', sheet)
            print(f'PSNR: {means["psnr"]:.6f}, MAE: {means["mae"]:.9g}, SSIM: {means["ssim"]:.6f}')
        return 0

    from Guided_Upsample.models.step import Recipe, TrainStep
    vgg = vgg_file.load(vgg_checkpoint) if vgg_checkpoint is not None else None
    step = TrainStep(generator, discriminator, vgg, options.chosen(Recipe, args))
    settings = checkpointer.compared_settings(args, _COURSE_FREE, args.max_iteration) | {
        'total_batch': order.pictures_per_step, 'pictures': order.n_pictures, 'palette': codebook.digest(centres),
        'sampled_priors': bool(args.prior)}
    if args.distributed:
        source = feeder.dataset.source
        for option, listing in (('--input', source.pictures), ('--mask', source.mask_files),
                                ('--val_path', held_back and held_back.pictures)):
            parallel.same_on_all_ranks(option, listing and listing.digest())
        parallel.same_on_all_ranks('options or --ckpt_path', [
            settings, args.max_iteration, args.save_every, args.val_every,
            state.metadata if state is not None else None])
    keeper = checkpointer.Checkpointer(folder, {
        GEN: checkpointer.TrainedNetwork(generator, step.gen_optimizer, {'network': 'Generator',
                                                              'architecture': shape.metadata()}),
        DIS: checkpointer.TrainedNetwork(discriminator, step.dis_optimizer, {'network': 'Discriminator'})},
        settings, centres, step.extra())
    progress = checkpointer.Progress()
    if state is not None:
        checkpointer.log_changes(state.metadata['settings'], settings)
        progress = keeper.restore(state)
        log(f'resuming at step {progress.step} of {args.max_iteration}')
    elif given is not None:
        for network, one in zip((generator, discriminator), given, strict=False):  # without its loss, one starts anew
            checkpoint.load_into(network, one)
        log(f'{given[0].path}: weights only, from step 0 (no training state beside it)'
                     f'{"" if len(given) > 1 else "; the discriminator starts anew"}')

    def take_step(number: int, arrays: tuple[np.ndarray, ...]) -> dict[str, float]:
        inputs = dataset.as_network_input(*arrays)
        rate = schedule.lr_at(number, args.lr, args.lr_schedule, args.warmup_steps, args.max_iteration)
        figures, output = step(*inputs, dataset.rim_weights(arrays[2], args.rim_weight), rate)
        result = output * inputs[2] + inputs[0] * (1.0 - inputs[2])
        pairs_ = list(zip(result, inputs[0], strict=True))
        return figures | {'lr': rate, 'psnr': float(np.mean([min(metrics.psnr(*p), _HIGHEST) for p in pairs_])),
                          'mae': float(np.mean([metrics.mae(*p) for p in pairs_]))}

    def console(epoch: int, within: int, means: dict[str, float]) -> str:
        return (f'Epoch: [{epoch + 1}], step: [{within} / {order.steps_per_epoch}], psnr: {means["psnr"]:.6f}, '
                f'mae: {means["mae"]:.8f}')

    plan = loop.LoopConfig(args.max_iteration, args.log_every, args.save_every, args.val_every, console, ('psnr', -1.0),
                         best_by(held_back))
    return loop.fit(plan, order, feeder, take_step, keeper, progress,
                        lambda arrays: float(painter.everywhere(*arrays).mean()), validate if held_back else None)


def score(source: dataset.Source, painter: Any, batch_size: int,
          highest: float = math.inf) -> tuple[dict[str, float], np.ndarray]:
    """Mean PSNR (each at most ``highest``), MAE and SSIM over a held-back part, and a sheet of its first pictures."""
    scores, rows = [], []
    for start in range(0, len(source.pictures), batch_size):
        numbers = range(start, min(start + batch_size, len(source.pictures)))
        stacked = [np.stack(part) for part in zip(*(example_of(source, i) for i in numbers), strict=True)]
        results = painter(*stacked)
        for image, prior, hole, result in zip(*stacked, results, strict=True):
            scores.append(metrics.all_of(result, image / np.float32(255), hole))
            if len(rows) < _SHEET_ROWS:
                masked = np.where(hole[..., None], np.uint8(255), image)
                rows.append([image, masked, prior, (result * 255).astype(np.uint8)])
    means = {k: float(np.mean([min(s[k], highest) for s in scores])) for k in ('psnr', 'mae', 'ssim')}
    return means, report.sheet(rows, ['original', 'masked', 'prior', 'result'])


if __name__ == '__main__':
    sys.exit(run(main))
