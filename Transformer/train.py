"""Train stage 1: the transformer that says which palette tokens are likely in a hole.

``python Transformer/train.py --data_path ImageNet/train --random_stroke --GELU_2``
"""
from __future__ import annotations

import math
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook
from ict.device import parallel, runtime
from ict.errors import require
from ict.log import log
from ict.options import Given, positive
from ict.training import checkpointer, loader, loop, train_options
from ict.training.epoch_sampler import EpochSampler
from ict.training.mask_sources import PairedFile, PicturePaths, RandomFile, Strokes
from ict.training.schedule import Schedule
from Transformer.datasets.dataset import TrainingBatches, validation_set
from Transformer.models import config

if TYPE_CHECKING:
    from Transformer.models.step import TrainStep

NAME = 'ImageNet'
_NETWORK_OPTIONS = {'n_layer': 35, 'n_head': 8, 'n_embd': 1024, 'prior_size': 32, 'GELU_2': False}
_IGNORED = (*checkpointer.NOT_COMPARED, 'data_path', 'mask_path', 'use_ImageFolder', 'train_epoch', 'max_steps')


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
    train_options.add_options(parser, config.LOSSES)
    args = parser.parse_args(argv)
    train_options.check_options(args, config.LOSSES)
    positive(args, 'train_epoch', 'prior_size', 'n_layer', 'n_head', 'n_embd')
    positive(args, 'max_steps', 'weight_decay', least=0)
    require(0 < args.learning_rate < math.inf, f'--learning_rate {args.learning_rate}: must be above 0 and finite')
    require(args.random_stroke or bool(args.mask_path), '--mask_path: give masks, or --random_stroke')
    require(not (args.invert_mask or args.dilate) or not args.random_stroke or bool(args.val_mask),
            '--invert_mask, --dilate: are for mask files; give --mask_path without --random_stroke, or --val_mask')
    return args


def starting_point(ckpt_path: str, kmeans: str, centres: np.ndarray) -> checkpointer.StartingPoint:
    """The checkpoint to resume from, with the training state beside it.

    Args:
        kmeans: the option; the palette ``centres`` (V, 3) is the one that it stands for, and must be the checkpoint's.
    """
    if not ckpt_path:
        return checkpointer.StartingPoint()
    start = checkpointer.StartingPoint.from_files({NAME: Path(ckpt_path)}, {NAME: 'Transformer'})
    weights = start.weights[NAME]
    require(weights.palette is not None or start.state is not None or bool(kmeans),
            f'--kmeans: {ckpt_path} carries no palette; give the kmeans_centers.npy that it was trained with')
    require(weights.palette is None or codebook.digest(weights.palette) == codebook.digest(centres),
            f'--kmeans: {ckpt_path} was trained with another palette than {codebook.find_for_training(kmeans)}')
    return start


def network_config(flags: dict[str, Any], start: checkpointer.StartingPoint, vocab_size: int) -> config.GPTConfig:
    """The network to train: the checkpoint's, or that of the flags and the published defaults.

    Args:
        flags: the options of ``_NETWORK_OPTIONS``; None where the user gave none.
    """
    if NAME in start.weights:
        weights = start.weights[NAME]
        gpt = config.GPTConfig.from_checkpoint(weights, flags)
        checkpoint.check(weights, gpt.shapes())
        require(gpt.vocab_size == vocab_size, f'--kmeans: a palette of {vocab_size} colours; {weights.path} has '
                                                f'{gpt.vocab_size} tokens')
        return gpt
    given = {name: value for name, value in flags.items() if value is not None}
    gpt = config.GPTConfig(**_NETWORK_OPTIONS | given, vocab_size=vocab_size)
    require(gpt.n_embd % gpt.n_head == 0, f'--n_head {gpt.n_head} does not divide --n_embd {gpt.n_embd}')
    return gpt


@dataclass(frozen=True)
class Trainer:
    """Stage 1 as the training loop sees it, see ``loop.Trainer``; ``held_back`` as ``validation_set`` gives it."""

    step: TrainStep
    schedule: Schedule
    epoch_sampler: EpochSampler
    epochs: int
    batch_size: int
    held_back: tuple[np.ndarray, np.ndarray] | None

    def take_step(self, step: int, arrays: loop.Arrays) -> dict[str, float]:
        tokens, masks = arrays
        rate = self.schedule.at(step)
        return self.step(tokens, masks, rate) | {'lr': rate}

    def score(self, metrics: dict[str, float]) -> float:
        return metrics['loss']

    def current_loss(self, arrays: loop.Arrays) -> float:
        tokens, masks = arrays
        return self.step.mean_nll(tokens, masks, self.batch_size)

    def validate(self, step: int) -> tuple[float, dict[str, float]]:
        assert self.held_back is not None
        nll = self.step.mean_nll(*self.held_back, self.batch_size)
        return nll, {'val_nll': nll}

    def progress_line(self, epoch: int, steps: int, means: dict[str, float]) -> str:
        n_pictures = self.epoch_sampler.n_pictures
        seen = min(steps * self.epoch_sampler.pictures_per_step, n_pictures)
        return f'Epoch: [{epoch} / {self.epochs}], step: [{seen} / {n_pictures}], loss: {means["loss"]:.5f}'


def build(args: Any, gpt_config: config.GPTConfig,
          centres: np.ndarray) -> tuple[TrainStep, dict[str, checkpointer.TrainedNetwork]]:
    """The network with its first weights, and the step that trains it; imports MindSpore."""
    from Transformer.models import networks, structured_init
    from Transformer.models.step import TrainConfig, TrainStep
    rng = np.random.default_rng([args.seed, 0])
    net = networks.GPT(gpt_config.vocab_size, gpt_config.n_embd, gpt_config.n_layer, gpt_config.n_head,
                       gpt_config.prior_size ** 2, gpt_config.GELU_2, gelu=gpt_config.gelu, rng=rng)
    if args.init == 'structured':
        structured_init.start_structured(net, centres, gpt_config.prior_size, rng)
    step = TrainStep(net, TrainConfig.from_args(args))
    metadata = {'network': 'Transformer', 'architecture': gpt_config.metadata()}
    return step, {NAME: checkpointer.TrainedNetwork(net, step.optimizer, metadata)}


def main(argv: list[str]) -> int:
    # Parse the options.
    args = arguments(argv)
    given = partial(Given.from_args, args)
    rank, n_ranks = parallel.rank() if args.distributed else (0, 1)

    # Check the palette, the checkpoint and the architecture.
    centres = codebook.load(codebook.find_for_training(args.kmeans))
    start = starting_point(args.ckpt_path, args.kmeans, centres)
    gpt_config = network_config({name: getattr(args, name) for name in _NETWORK_OPTIONS}, start, len(centres))
    require(args.init == 'published' or (gpt_config.n_embd >= 8 and gpt_config.n_embd // gpt_config.n_head >= 2),
            '--init structured: needs an --n_embd of 8 or more and 2 or more of it for each head')

    # Take the output folder.
    output_dir = files.output_folder(args.save_path, '--save_path')
    with ExitStack() as stack:
        stack.enter_context(checkpointer.taken(output_dir, [NAME], start.state, output_dir / f'{NAME}_latest.ckpt'))

        # List the pictures and masks.
        if args.random_stroke and args.mask_path:
            log('--random_stroke: holes are drawn, and the masks of --mask_path are not read')
        paths = partial(PicturePaths, output_dir=output_dir, invert_mask=args.invert_mask, dilate=args.dilate)
        pictures, masks = paths(given('data_path'), Strokes if args.random_stroke else RandomFile,
                                masks=given('mask_path'), cache=True).find()
        epoch_sampler = EpochSampler(len(pictures), args.batch_size, args.seed, rank, n_ranks)
        last_step = args.max_steps or args.train_epoch * epoch_sampler.steps_per_epoch
        require(start.step < last_step, f'--ckpt_path {args.ckpt_path}: already has the {start.step} of {last_step} '
                                        f'steps; raise --train_epoch or --max_steps')

        # Read the held-back pictures.
        tokenizer, held_back, best_by = codebook.Tokenizer(centres), None, None
        if args.val_path:
            found = paths(given('val_path'), PairedFile if args.val_mask else Strokes, masks=given('val_mask')).find()
            held_back, best_by = validation_set(*found, tokenizer, gpt_config.prior_size), loop.best_by(*found)

        # Start the workers, then MindSpore, whose threads must not be forked.
        device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
        batches = TrainingBatches(pictures, masks, tokenizer, gpt_config.prior_size, epoch_sampler, args.crop_scale)
        data_loader = stack.enter_context(closing(loader.DataLoader(batches, args.num_workers, start.step, last_step)))
        runtime.start(device_target, args.device_id, args.distributed)

        # Build the network.
        step, trained = build(args, gpt_config, centres)

        # Resume from the checkpoint.
        settings = checkpointer.compared_settings(
            vars(args) | {name: getattr(gpt_config, name) for name in _NETWORK_OPTIONS}, _IGNORED, last_step)
        settings |= {'total_batch': epoch_sampler.pictures_per_step, 'pictures': len(pictures), 'masks': len(masks)}
        saver = checkpointer.Checkpointer(output_dir, trained, settings, centres, step.extra)
        if args.distributed:
            saver.require_same_on_all_ranks({'--data_path': pictures.digest(), '--mask_path': masks.digest()},
                                            (last_step, args.save_every, args.val_every), start)
        progress = saver.start(start, last_step)

        # Train.
        schedule = Schedule(args.learning_rate, args.lr_schedule, args.warmup_steps, last_step)
        trainer = Trainer(step, schedule, epoch_sampler, args.train_epoch, args.batch_size, held_back)
        loop_config = loop.LoopConfig.from_args(args, last_step, best_by)
        return loop.Loop(loop_config, trainer, epoch_sampler, saver, progress).fit(data_loader)


if __name__ == '__main__':
    sys.exit(run(main))
