"""Train stage 2: the generator that paints a hole at 256 x 256, guided by a 32 x 32 prior.

``python Guided_Upsample/train.py --input ImageNet/train --mask masks --vgg_path VGG19.ckpt``
"""
from __future__ import annotations

import math
import os
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from Guided_Upsample.datasets import dataset, sources
from Guided_Upsample.datasets.sources import SourcePaths
from Guided_Upsample.models import config
from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook, encode
from ict.device import parallel, runtime
from ict.errors import UserError, require
from ict.log import log
from ict.options import Given, positive
from ict.runs import metrics, report
from ict.training import checkpointer, loader, loop, losses, train_options
from ict.training.epoch_sampler import EpochSampler
from ict.training.mask_sources import MASK_SOURCES, PairedFile, Strokes
from ict.training.schedule import Schedule

if TYPE_CHECKING:
    from Guided_Upsample.models.inpaint import Inpainter
    from Guided_Upsample.models.step import TrainStep

GEN, DIS = 'InpaintingModel_gen', 'InpaintingModel_dis'
TRAIN, TEST = 1, 2
_IGNORED = (*checkpointer.NOT_COMPARED, 'input', 'mask', 'prior', 'val_prior', 'vgg_path', 'mode', 'max_iteration')
_NETWORK_OPTIONS = ('padding', 'base_channels', 'residual_blocks')
_SHEET_ROWS = 8
_HIGHEST = 100.0  # PSNR in running means and validations; one picture without a hole would make them infinite


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
    add('--mask_type', type=int, choices=tuple(MASK_SOURCES), default=2,
        help=', '.join(f'{number}: {source.help}' for number, source in MASK_SOURCES.items()))
    add('--max_iteration', type=int, default=25000, help='optimizer steps in all')
    add('--batch_size', type=int, default=32, help='pictures a step and rank')
    add('--lr', type=float, default=1e-4, help="the generator's learning rate")
    add('--D2G_lr', type=float, default=0.1, help="the discriminator's learning rate over the generator's")
    add('--beta1', type=float, default=0.9, help="Adam's decay of the first moments")
    add('--beta2', type=float, default=0.9, help="Adam's decay of the second moments")
    add('--rim_weight', type=float, default=0.0,
        help='a pixel of the hole counts 1 + this x exp(-(d - 1) / 2.5) times in L1, d pixels from a known one')
    add('--padding', choices=config.PADDINGS, default=None,
        help="second pad of a residual block (default: the checkpoint's, else symmetric)")
    add('--base_channels', type=int, default=None,
        help="channels of the generator's first layer (default: the checkpoint's, else 64)")
    add('--residual_blocks', type=int, default=None,
        help="blocks in the middle of the generator (default: the checkpoint's, else 8)")
    add('--init', choices=('published', 'structured'), default='published',
        help='structured: starts as a network that paints the enlarged prior, shifted towards the pixels around')
    train_options.add_options(parser, config.LOSSES)
    args = parser.parse_args(argv)
    train_options.check_options(args, config.LOSSES)
    positive(args, 'image_size', 'prior_size', 'prior_random_degree', 'max_iteration', 'base_channels',
             'residual_blocks')
    positive(args, 'rim_weight', least=0)
    require(0 < args.lr < math.inf and 0 < args.D2G_lr < math.inf, '--lr and --D2G_lr must be above 0 and finite')
    require(args.image_size % 4 == 0 and args.image_size >= 32, f'--image_size {args.image_size}: must be a multiple '
                                                                'of 4 and at least 32')
    reads_files = MASK_SOURCES[args.mask_type].reads_files
    require(not reads_files or bool(args.mask) or (args.mode == TEST and bool(args.val_path)),
            f'--mask: needed for --mask_type {args.mask_type} (make some: python mask/generate.py --save_path masks)')
    require(not args.val_prior or bool(args.val_mask), '--val_prior: needs --val_mask, the masks it was made with')
    require(args.mode == TRAIN or bool(args.ckpt_path), '--ckpt_path: needed for --mode 2')
    require(args.mode == TRAIN or not args.distributed, '--mode 2 scores in one process: leave --distributed out')
    require(not (args.invert_mask or args.dilate) or reads_files or bool(args.val_mask),
            '--invert_mask, --dilate: are for mask files; give --mask with --mask_type 2 or 3, or --val_mask')
    return args


def starting_point(folder: str, resume: bool, adversarial: bool) -> checkpointer.StartingPoint:
    """The checkpoints to begin with, with the training state beside them.

    Args:
        folder: --ckpt_path, '' for none. Its files are taken in this order: ``_latest`` (only to resume, and where a
            training state is beside it), the plain names, ``_best``, ``_latest``.
        resume: continue the training; else the networks are only scored.
        adversarial: the discriminator is read as well.

    Raises:
        UserError: the folder does not hold them, or two that do not belong together.
    """
    if not folder:
        return checkpointer.StartingPoint()
    kinds = {GEN: 'Generator'} | ({DIS: 'Discriminator'} if adversarial else {})
    wanted = ', '.join(f'{name}.ckpt' for name in kinds)
    require(os.path.isdir(folder), f'--ckpt_path {folder}: no such folder (it must hold {wanted})')
    paths = checkpoint.saved_in(Path(folder), tuple(kinds))
    if resume and os.path.isfile(Path(folder) / checkpointer.state_name(GEN)):
        paths = [Path(folder) / f'{name}_latest.ckpt' for name in kinds]
    if paths is None:
        raise UserError(f'--ckpt_path {folder}: holds no {wanted} (nor _best, _latest)')
    start = checkpointer.StartingPoint.from_files(dict(zip(kinds, paths, strict=True)), kinds, with_state=resume)
    if adversarial:
        checkpoint.check(start.weights[DIS], config.DISCRIMINATOR)
        steps = [ckpt.metadata.get('step') for ckpt in start.weights.values()]
        require(start.state is not None or steps[0] == steps[1],
                f'--ckpt_path {folder}: the generator is of step {steps[0]}, the discriminator of step {steps[1]}; '
                f'bring two of one step together')
    return start


def palette(kmeans: str, start: checkpointer.StartingPoint, trains: bool) -> np.ndarray:
    """The colours (V, 3) float32 of degraded priors: ``--kmeans``, else the checkpoint's, else the repository's.

    A UserError where a training is resumed or scored with other colours than it began with.
    """
    weights = start.weights.get(GEN)
    if weights is not None and not (kmeans and trains and start.state is None):
        own = checkpoint.palette_of(weights, kmeans)
        if own is not None:
            return own
    return codebook.load(codebook.find_for_training(kmeans))


def network_config(flags: dict[str, Any], start: checkpointer.StartingPoint) -> config.GeneratorConfig:
    """The generator to train: the checkpoint's, or that of the flags and the published defaults.

    Args:
        flags: the options of ``_NETWORK_OPTIONS``; None where the user gave none.
    """
    if GEN in start.weights:
        return config.GeneratorConfig.from_checkpoint(start.weights[GEN], flags)
    return config.GeneratorConfig(**{name: value for name, value in flags.items() if value is not None})


@dataclass(frozen=True)
class Trainer:
    """Stage 2 as the training loop sees it, see ``loop.Trainer``."""

    step: TrainStep
    inpainter: Inpainter
    schedule: Schedule
    epoch_sampler: EpochSampler
    boundary_weight: float
    held_back: HeldBack | None

    def take_step(self, step: int, arrays: loop.Arrays) -> dict[str, float]:
        # Move both networks.
        rate = self.schedule.at(step)
        images, priors, masks = dataset.as_network_input(*arrays)
        pixel_weights = dataset.boundary_weights(arrays[2], self.boundary_weight)
        parts, output = self.step(images, priors, masks, pixel_weights, rate)

        # Score the pictures of before this step, with their known pixels.
        results = output * masks + images * (1.0 - masks)
        both = list(zip(results, images, strict=True))
        return parts | {'lr': rate, 'psnr': float(np.mean([min(metrics.psnr(*pair), _HIGHEST) for pair in both])),
                        'mae': float(np.mean([metrics.mae(*pair) for pair in both]))}

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics['psnr']

    def current_loss(self, arrays: loop.Arrays) -> float:
        return float(self.inpainter.everywhere(*arrays).mean())

    def validate(self, step: int) -> tuple[float, dict[str, float]]:
        assert self.held_back is not None
        means = self.held_back.score(self.inpainter, f'sample_{step:07d}.png', _HIGHEST)
        return -means['psnr'], {f'val_{name}': value for name, value in means.items()}

    def progress_line(self, epoch: int, steps: int, means: dict[str, float]) -> str:
        return (f'Epoch: [{epoch + 1}], step: [{steps} / {self.epoch_sampler.steps_per_epoch}], '
                f'psnr: {means["psnr"]:.6f}, mae: {means["mae"]:.8f}')


@dataclass(frozen=True)
class HeldBack:
    """What a validation scores."""

    source: dataset.Source
    batch_size: int
    output_dir: Path

    def score(self, inpainter: Inpainter, sheet: str, highest: float = math.inf) -> dict[str, float]:
        """Mean PSNR (each at most ``highest``), MAE and SSIM; writes the first pictures to the file ``sheet``."""
        scores: list[dict[str, float]] = []
        rows: list[list[np.ndarray]] = []
        for start in range(0, len(self.source.pictures), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(self.source.pictures)))
            batch = [np.stack(part) for part in zip(*map(self.source.held_back_example, numbers), strict=True)]
            for image, prior, hole, result in zip(*batch, inpainter(*batch), strict=True):
                scores.append(metrics.all_of(result, image / np.float32(255), hole))
                if len(rows) < _SHEET_ROWS:
                    masked = np.where(hole[..., None], np.uint8(255), image)
                    rows.append([image, masked, prior, metrics.truncated(result)])
        if parallel.is_writer():
            encode.write(self.output_dir / sheet, report.sheet(rows, ['original', 'masked', 'prior', 'result']))
        return {name: float(np.mean([min(score[name], highest) for score in scores]))
                for name in ('psnr', 'mae', 'ssim')}


def test(weights: checkpoint.Checkpoint, generator: config.GeneratorConfig, held_back: HeldBack,
         amp_level: str) -> int:
    """Score a generator (``--mode 2``)."""
    from Guided_Upsample.models.inpaint import Inpainter
    inpainter = Inpainter.from_checkpoint(weights, generator, runtime.rows_at_once(held_back.batch_size),
                                          amp_level)
    means = held_back.score(inpainter, 'sample_test.png')
    print(f'PSNR: {means["psnr"]:.6f}, MAE: {means["mae"]:.9g}, SSIM: {means["ssim"]:.6f}')
    return 0


def build(args: Any, gen_config: config.GeneratorConfig, vgg_weights: checkpoint.Checkpoint | None,
          structured: bool) -> tuple[TrainStep, dict[str, checkpointer.TrainedNetwork]]:
    """Both networks with their first weights, and the step that trains them; imports MindSpore."""
    from Guided_Upsample.models import networks, structured_init, vgg
    from Guided_Upsample.models.step import TrainConfig, TrainStep
    rng = np.random.default_rng([args.seed, 0])
    generator = networks.Generator(gen_config.residual_blocks, gen_config.base_channels, gen_config.padding, rng=rng)
    discriminator = networks.Discriminator(3, rng=rng)
    if structured:
        structured_init.start_structured(generator)
    step = TrainStep(generator, discriminator, vgg.load(vgg_weights) if vgg_weights is not None else None,
                     TrainConfig.from_args(args))
    metadata = {'network': 'Generator', 'architecture': gen_config.metadata()}
    return step, {GEN: checkpointer.TrainedNetwork(generator, step.gen_optimizer, metadata),
                  DIS: checkpointer.TrainedNetwork(discriminator, step.dis_optimizer, {'network': 'Discriminator'})}


def main(argv: list[str]) -> int:
    # Parse the options.
    args = arguments(argv)
    rank, n_ranks = parallel.rank() if args.distributed else (0, 1)
    trains = args.mode == TRAIN
    networks_needed = losses.networks_needed(config.LOSSES, losses.weights_of(config.LOSSES, args))

    # Check the palette, the checkpoints and the architecture.
    start = starting_point(args.ckpt_path, trains, trains and 'discriminator' in networks_needed)
    centres = palette(args.kmeans, start, trains)
    gen_config = network_config({name: getattr(args, name) for name in _NETWORK_OPTIONS}, start)
    require(args.init == 'published' or gen_config.base_channels >= config.STRUCTURED_CHANNELS,
            f'--init structured: needs --base_channels of {config.STRUCTURED_CHANNELS} or more')

    # Where pictures, masks and priors are.
    output_dir = files.output_folder(args.save_path, '--save_path')
    example_config = options.chosen(dataset.ExampleConfig, args)
    given = partial(Given.from_args, args)
    paths = partial(SourcePaths, output_dir=output_dir, invert_mask=args.invert_mask, dilate=args.dilate)
    training_paths = paths(given('input'), MASK_SOURCES[args.mask_type], masks=given('mask'), priors=given('prior'),
                           cache=trains)
    held_back_paths = paths(given('val_path'), PairedFile if args.val_mask else Strokes, masks=given('val_mask'),
                            priors=given('val_prior'))

    # Only score.
    if not trains:
        scored_paths = held_back_paths if args.val_path else training_paths
        scored = HeldBack(sources.find(scored_paths, centres, example_config, is_held_back=True), args.batch_size,
                          output_dir)
        runtime.start(args.device_target, args.device_id)
        return test(start.weights[GEN], gen_config, scored, args.amp_level)

    # Take the output folder.
    with ExitStack() as stack:
        stack.enter_context(checkpointer.taken(output_dir, [GEN, DIS], start.state, output_dir))

        if args.crop_scale < 1 and (args.prior or args.mask_type == dataset.PAIRED_FILE):
            log(f'--crop_scale: with --prior or --mask_type {dataset.PAIRED_FILE} pictures are not cropped at random')

        # Find VGG19, read the held-back pictures, list the training pictures.
        vgg_weights = config.find_vgg(args.vgg_path) if 'vgg' in networks_needed else None
        held_back = None if not args.val_path else HeldBack(
            sources.find(held_back_paths, centres, example_config, is_held_back=True), args.batch_size, output_dir)
        source = sources.find(training_paths, centres, example_config)
        epoch_sampler = EpochSampler(len(source.pictures), args.batch_size, args.seed, rank, n_ranks)
        last_step = args.max_iteration
        require(start.step < last_step, f'--ckpt_path {args.ckpt_path}: already has the {start.step} of {last_step} '
                                        f'steps; raise --max_iteration')

        # Start the workers, then MindSpore, whose threads must not be forked.
        device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
        batches = dataset.TrainingBatches(source, epoch_sampler, args.crop_scale)
        data_loader = stack.enter_context(closing(loader.DataLoader(batches, args.num_workers, start.step, last_step)))
        runtime.start(device_target, args.device_id, args.distributed)

        # Build the networks.
        from Guided_Upsample.models.inpaint import Inpainter
        step, trained = build(args, gen_config, vgg_weights, args.init == 'structured' and not start.weights)

        # Resume from the checkpoints.
        settings = checkpointer.compared_settings(vars(args) | gen_config.metadata(), _IGNORED, last_step)
        settings |= {'total_batch': epoch_sampler.pictures_per_step, 'pictures': len(source.pictures),
                     'masks': len(source.mask_source), 'priors': len(source.prior_folders or ()),
                     'palette': codebook.digest(centres), 'sampled_priors': bool(args.prior)}
        saver = checkpointer.Checkpointer(output_dir, trained, settings, centres, step.extra)
        if args.distributed:
            saver.require_same_on_all_ranks(
                {'--input': source.pictures.digest(), '--mask': source.mask_source.digest()},
                (last_step, args.save_every, args.val_every), start)
        progress = saver.start(start, last_step)

        # Train.
        trainer = Trainer(step, Inpainter(trained[GEN].net, runtime.rows_at_once(args.batch_size)),
                          Schedule(args.lr, args.lr_schedule, args.warmup_steps, last_step), epoch_sampler,
                          args.rim_weight, held_back)
        best_by = None if held_back is None else sources.best_by(held_back.source)
        loop_config = loop.LoopConfig.from_args(args, last_step, best_by)
        return loop.Loop(loop_config, trainer, epoch_sampler, saver, progress).fit(data_loader)


if __name__ == '__main__':
    sys.exit(run(main))
