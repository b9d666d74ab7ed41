"""Train stage 1: the transformer that says which palette tokens are likely in a hole.

``python Transformer/train.py --data_path ImageNet/train --random_stroke --GELU_2``
"""
from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook, pairs
from ict.device import parallel, runtime
from ict.errors import require
from ict.log import log
from ict.options import positive
from ict.training import checkpointer, epoch_sampler, loader, loop, schedule, train_options
from Transformer.datasets.dataset import TrainingBatches, validation_set
from Transformer.models import config

NAME = 'ImageNet'
_ARCHITECTURE = {'n_layer': 35, 'n_head': 8, 'n_embd': 1024, 'prior_size': 32, 'GELU_2': False}
_COURSE_FREE = (*checkpointer.NOT_COMPARED, 'data_path', 'mask_path', 'use_ImageFolder', 'train_epoch', 'max_steps')


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Transformer/train.py', description='Train the transformer (stage 1).')
    add = parser.add_argument
    add('--data_path', required=True, help='training images: folder, or text file with one path a line')
    add('--mask_path', default='', help='masks to draw from (white = hole); required without --random_stroke')
    add('--ckpt_path', default='', help='resume from this checkpoint')
    add('--save_path', default='./checkpoint', help='checkpoints and log go here')
    add('--batch_size', type=int, default=2, help='pictures a step and rank')
    add('--train_epoch', type=int, default=5, help='passes over all pictures')
    options.add_flag(parser, '--random_stroke', 'draw free-form masks instead of reading them')
    options.add_flag(parser, '--use_ImageFolder', 'images lie in class sub-folders (folders are always searched)')
    add('--prior_size', type=int, default=None, help="side of the priors (default: the checkpoint's, else 32)")
    add('--learning_rate', type=float, default=3e-4, help='after the warm-up')
    add('--beta1', type=float, default=0.9, help="Adam's decay of the first moments")
    add('--beta2', type=float, default=0.95, help="Adam's decay of the second moments")
    add('--n_layer', type=int, default=None, help="transformer blocks (default: the checkpoint's, else 35)")
    add('--n_head', type=int, default=None, help="attention heads (default: the checkpoint's, else 8)")
    add('--n_embd', type=int, default=None, help="width (default: the checkpoint's, else 1024)")
    options.add_flag(parser, '--GELU_2', "x * sigmoid(1.702 x) in the MLP, as in the published models (default: the "
                                         "checkpoint's, else False)", default=None)
    add('--max_steps', type=int, default=0, help='optimizer steps in all; 0 = --train_epoch epochs')
    add('--weight_decay', type=float, default=0.0, help='decoupled; not for biases, norms and embeddings')
    options.add_flag(parser, '--dynamic_weight', 'mean loss per missing token instead of over all positions')
    add('--init', choices=('published', 'structured'), default='published',
        help='structured: starts as a network that fills a hole with the colours around it; several times faster')
    train_options.add_options(parser)
    args = parser.parse_args(argv)
    train_options.check_options(args)
    positive(args, 'train_epoch', 'prior_size', 'n_layer', 'n_head', 'n_embd')
    positive(args, 'max_steps', 'weight_decay', least=0)
    require(0 < args.learning_rate < math.inf, f'--learning_rate {args.learning_rate}: must be above 0 and finite')
    require(args.random_stroke or bool(args.mask_path), '--mask_path: give masks, or --random_stroke')
    return args


def shape_of(args: Any, given: checkpoint.Checkpoint | None, vocab_size: int) -> config.Architecture:
    """The network to train: the checkpoint's, or the flags' and the published defaults; noted in ``args``.

    Raises:
        UserError: a flag contradicts the checkpoint, the palette doesn't fit it, or the numbers fit no network.
    """
    if given is not None:
        shape = config.of(given, {name: getattr(args, name) for name in _ARCHITECTURE})
        checkpoint.check(given, shape.shapes())
        require(shape.vocab_size == vocab_size, f'--kmeans: a palette of {vocab_size} colours; {args.ckpt_path} has '
                                                f'{shape.vocab_size} tokens')
    else:
        shape = config.Architecture(**{name: default if getattr(args, name) is None else getattr(args, name)
                                             for name, default in _ARCHITECTURE.items()}, vocab_size=vocab_size)
    for name in _ARCHITECTURE:
        setattr(args, name, getattr(shape, name))
    require(args.n_embd % args.n_head == 0, f'--n_head {args.n_head} does not divide --n_embd {args.n_embd}')
    require(args.init == 'published' or (args.n_embd >= 8 and args.n_embd // args.n_head >= 2),
            '--init structured: needs an --n_embd of 8 or more and 2 or more of it for each head')
    return shape


def main(argv: list[str]) -> int:
    args = arguments(argv)
    rank, ranks = parallel.rank() if args.distributed else (0, 1)
    colours = codebook.load(codebook.find_for_training(args.kmeans))
    given = state = None
    if args.ckpt_path:
        state = checkpointer.find_state(Path(args.ckpt_path))
        given = checkpoint.read(args.ckpt_path, '--ckpt_path') if state is None or Path(args.ckpt_path).is_file() else \
            checkpointer.weights_in(state, NAME)
        given.expect('Transformer', '--ckpt_path')
        require(given.palette is not None or state is not None or bool(args.kmeans),
                f'--kmeans: {args.ckpt_path} carries no palette; give the kmeans_centers.npy that it was trained with')
        require(given.palette is None or codebook.digest(given.palette) == codebook.digest(colours),
                f'--kmeans: {args.ckpt_path} was trained with another palette than '
                f'{codebook.find_for_training(args.kmeans)}')
    shape = shape_of(args, given, len(colours))
    folder = files.output_folder(args.save_path, '--save_path')
    checkpointer.require_free(folder, NAME, state, folder / f'{NAME}_latest.ckpt')
    if parallel.is_writer():
        files.sweep(folder, below=False)
    pictures = pairs.listing(args.data_path, '--data_path', without=[folder], unique=False,
                             cache=folder / 'files.npz', writes=parallel.is_writer())
    mask_files = None if args.random_stroke else pairs.listing(args.mask_path, '--mask_path', without=[folder],
                                                               unique=False)
    quantise = codebook.Tokenizer(colours)
    order = epoch_sampler.EpochSampler(len(pictures), args.batch_size, args.seed, rank, ranks)
    last_step = args.max_steps or args.train_epoch * order.steps_per_epoch
    first_step = state.metadata['progress']['step'] if state is not None else 0
    require(first_step < last_step, f'--ckpt_path {args.ckpt_path}: already has the {first_step} of {last_step} steps; '
                                    f'raise --train_epoch or --max_steps')
    held_back = held = held_masks = None
    if args.val_path:
        held = pairs.listing(args.val_path, '--val_path', without=[folder], unique=False)
        numbers = None
        if args.val_mask:
            held_masks = pairs.listing(args.val_mask, '--val_mask', without=[folder], unique=False)
            numbers = pairs.masks_for(held, held_masks)
        held_back = validation_set(held, held_masks, numbers, quantise, args.prior_size)
    batches = TrainingBatches(pictures, mask_files, quantise, args.prior_size, order, args.crop_scale)
    args.device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
    feeder = loader.DataLoader(batches, args.num_workers, first_step, last_step)
    try:
        return _train(args, folder, colours, shape, given, state, order, feeder, held_back,
                      loop.best_by(held, held_masks), last_step, {
                          '--data_path': pictures, '--mask_path': mask_files, '--val_path': held,
                          '--val_mask': held_masks})
    finally:
        feeder.close()


def _train(args: Any, folder: Path, colours: np.ndarray, shape: config.Architecture,
           given: checkpoint.Checkpoint | None, state: checkpoint.Checkpoint | None, order: epoch_sampler.EpochSampler,
           feeder: loader.DataLoader, held_back: tuple[np.ndarray, np.ndarray] | None, best_by: str,
           last_step: int, listings: dict[str, pairs.Listing | None]) -> int:
    runtime.start(args.device_target, args.device_id, args.distributed)
    if args.distributed:
        for option, listing in listings.items():
            parallel.same_on_all_ranks(option, listing and listing.digest())
    from Transformer.models import networks
    from Transformer.models.step import Recipe, TrainStep, mean_nll

    rng = np.random.default_rng([args.seed, 0])
    net = networks.GPT(shape.vocab_size, shape.n_embd, shape.n_layer, shape.n_head, shape.prior_size ** 2,
                       shape.GELU_2, gelu=shape.gelu, rng=rng)
    if args.init == 'structured':
        networks.start_structured(net, colours, shape.prior_size, rng)
    step = TrainStep(net, options.chosen(Recipe, args))
    settings = checkpointer.compared_settings(args, _COURSE_FREE, last_step) | {'total_batch': order.pictures_per_step,
                                                                      'pictures': order.n_pictures}
    if args.distributed:
        parallel.same_on_all_ranks('options or --ckpt_path', [
            settings, last_step, args.save_every, args.val_every, state.metadata if state is not None else None])
    keeper = checkpointer.Checkpointer(folder, {NAME: checkpointer.TrainedNetwork(
        net, step.optimizer, {'network': 'Transformer', 'architecture': shape.metadata()})}, settings, colours,
        step.extra())
    progress = checkpointer.Progress()
    if state is not None:
        checkpointer.log_changes(state.metadata['settings'], settings)
        progress = keeper.restore(state)
        log(f'resuming at step {progress.step} of {last_step}')
    elif given is not None:
        checkpoint.load_into(net, given)
        log(f'{args.ckpt_path}: weights only, from step 0 (no training state beside it)')

    def take_step(number: int, arrays: tuple[np.ndarray, ...]) -> dict[str, float]:
        rate = schedule.lr_at(number, args.learning_rate, args.lr_schedule, args.warmup_steps, last_step)
        return step(*arrays, rate) | {'lr': rate}

    validate = None
    if held_back is not None:
        def validate(_: int) -> tuple[float, dict[str, float]]:
            score = mean_nll(step.logits, *held_back, args.batch_size)
            return score, {'val_nll': score}

    def console(epoch: int, within: int, means: dict[str, float]) -> str:
        step = f'{min(within * order.pictures_per_step, order.n_pictures)} / {order.n_pictures}'
        return f'Epoch: [{epoch} / {args.train_epoch}], step: [{step}], loss: {means["loss"]:.5f}'

    plan = loop.LoopConfig(last_step, args.log_every, args.save_every, args.val_every, console, ('loss', 1.0),
                         best_by)
    return loop.fit(plan, order, feeder, take_step, keeper, progress,
                        lambda arrays: mean_nll(step.logits, *arrays, args.batch_size), validate)


if __name__ == '__main__':
    sys.exit(run(main))
