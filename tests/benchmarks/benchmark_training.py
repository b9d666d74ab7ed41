"""Measure training: steps and their memory, data pipelines. Not part of the test suite; nothing else should run.

``python tests/benchmarks/benchmark_training.py steps`` times one optimizer step of each stage, each in a process of
its own. ``python tests/benchmarks/benchmark_training.py data --input FOLDER`` counts the pictures a second that each
stage's data pipeline delivers alone.

``steps --pytorch`` takes the same steps in plain PyTorch too (pip install torch; only for this comparison). Each
prints a Markdown table and writes it, with benchmark.csv, to <save_place>/benchmark.md.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np

from Guided_Upsample import train as train_2
from Guided_Upsample.datasets import dataset as data_2
from Guided_Upsample.datasets import sources
from ict import command, files, options
from ict.command import run
from ict.data import codebook
from ict.device import runtime
from ict.errors import require
from ict.log import log
from ict.options import Given, positive
from ict.training import loader
from ict.training.epoch_sampler import EpochSampler
from ict.training.mask_sources import Block, Strokes
from tests.benchmarks.clock import memory_mb
from tests.benchmarks.tables import Columns, Row, machine, markdown, write
from Transformer import train as train_1
from Transformer.datasets import dataset as data_1

PALETTE_SIZE, PRIOR_SIZE = 512, 32
HOLE = 0.4  # of the tokens, or pixels
STEP_COLUMNS: Columns = (
    ('', 'name', 0), ('batch', 'batch', 0), ('compile, s', 'compile', 1), ('a step, s', 'step', 2),
    ('a picture, s', 'picture', 2), ('peak MB', 'peak_mb', 0))
DATA_COLUMNS: Columns = (('', 'name', 0), ('workers', 'workers', 0), ('pictures a second', 'rate', 1))

# name, what takes the step, options of its train.py
CASES = (
    ('stage 1, 8 layers x 192, 4 heads', 'stage_1', '--n_layer 8 --n_embd 192 --n_head 4 --batch_size 4'),
    ('stage 1, 35 layers x 1024, 8 heads', 'stage_1', '--n_layer 35 --n_embd 1024 --n_head 8 --batch_size 1'),
    ('the same, --recompute', 'stage_1', '--n_layer 35 --n_embd 1024 --n_head 8 --batch_size 1 --recompute'),
    ('stage 2, published size, adversarial and L1', 'stage_2', '--batch_size 1'),
)
PYTORCH_CASES = tuple((f'{name}, PyTorch', kind.replace('stage', 'pytorch'), own) for name, kind, own in
                      (*CASES[:2], CASES[3]))


# ---------------------------------------------------------------- steps

def stage_1(own: list[str]) -> tuple[Callable[[], Any], int]:
    """A step of stage 1 with made-up tokens, and its batch size."""
    args = train_1.arguments(['--data_path', '.', '--random_stroke', '--GELU_2', *own])
    runtime.start(args.device_target, args.device_id)
    from Transformer.models.networks import GPT
    from Transformer.models.step import TrainConfig, TrainStep
    net = GPT(PALETTE_SIZE, args.n_embd, args.n_layer, args.n_head, PRIOR_SIZE ** 2, True, rng=np.random.default_rng(0))
    step = TrainStep(net, TrainConfig.from_args(args))
    tokens, holes = made_up_tokens(args.batch_size)
    return lambda: step(tokens, holes, args.learning_rate), args.batch_size


def stage_2(own: list[str]) -> tuple[Callable[[], Any], int]:
    """A step of stage 2, discriminator and generator, with made-up pictures, and its batch size."""
    args = arguments_2(own)
    runtime.start(args.device_target, args.device_id)
    from Guided_Upsample.models import networks
    from Guided_Upsample.models.step import TrainConfig, TrainStep
    rng = np.random.default_rng(0)
    generator = networks.Generator(args.residual_blocks, args.base_channels, args.padding, rng=rng)
    step = TrainStep(generator, networks.Discriminator(3, rng=rng), None, TrainConfig.from_args(args))
    inputs = made_up_pictures(args.batch_size, args.image_size)
    return lambda: step(*inputs), args.batch_size


def arguments_2(own: list[str]) -> argparse.Namespace:
    """Options of stage 2's training without VGG's losses."""
    return train_2.arguments(['--input', '.', '--mask', '.', '--content_loss_weight', '0', '--style_loss_weight', '0',
                              '--padding', 'symmetric', '--base_channels', '64', '--residual_blocks', '8', *own])


def pytorch_2(own: list[str]) -> tuple[Callable[[], Any], int]:
    """The step of ``stage_2`` in plain PyTorch on the CPU, and its batch size."""
    from tests.parity import pytorch_networks
    args = arguments_2(own)
    step = pytorch_networks.adversarial_step(
        pytorch_networks.generator(args.residual_blocks, args.base_channels), pytorch_networks.discriminator(),
        made_up_pictures(args.batch_size, args.image_size), args.lr, args.lr * args.D2G_lr,
        args.inpaint_adv_loss_weight)
    return step, args.batch_size


def pytorch_1(own: list[str]) -> tuple[Callable[[], Any], int]:
    """The step of ``stage_1`` in plain PyTorch on the CPU, and its batch size."""
    from tests.parity import pytorch_networks
    args = train_1.arguments(['--data_path', '.', '--random_stroke', *own])
    net = pytorch_networks.GPT(PALETTE_SIZE, args.n_embd, args.n_layer, args.n_head, PRIOR_SIZE ** 2)
    step = pytorch_networks.training_step(net, *made_up_tokens(args.batch_size), args.learning_rate)
    return step, args.batch_size


def made_up_pictures(batch_size: int, side: int) -> tuple[np.ndarray, ...]:
    """images and priors (B, 3, S, S), masks (B, 1, S, S), float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    shape = batch_size, side, side
    return data_2.as_network_input(*rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8), rng.random(shape) < HOLE)


def made_up_tokens(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """tokens (B, T) int32 and holes (B, T) float32."""
    rng = np.random.default_rng(0)
    shape = batch_size, PRIOR_SIZE ** 2
    return rng.integers(0, PALETTE_SIZE, shape).astype(np.int32), (rng.random(shape) < HOLE).astype(np.float32)


STEPS = {'stage_1': stage_1, 'stage_2': stage_2, 'pytorch_1': pytorch_1, 'pytorch_2': pytorch_2}


def one_case(argv: list[str]) -> int:
    """A fresh process: argv is the kind of step, how often to take it, the file for the answer, the step's options."""
    call, batch = STEPS[argv[0]](argv[3:])
    seconds = []
    for _ in range(int(argv[1]) + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    files.write_json(Path(argv[2]), {'batch': batch, 'compile': seconds[0] - step, 'step': step,
                                     'picture': step / batch, 'peak_mb': memory_mb()[1]})
    return 0


def steps(args: argparse.Namespace) -> int:
    """A table of CASES."""
    positive(args, 'repeats')
    cases = [*CASES, *(PYTORCH_CASES if args.pytorch else ())]
    if args.only:
        cases = [case for case in cases if args.only in case[0]]
        require(bool(cases), f'--only {args.only}: is in no name of {", ".join(name for name, _, _ in CASES)}')
    output_dir = files.output_folder(args.save_place, '--save_place')
    args.device_target = runtime.choose(args.device_target, args.device_id)
    about, rows = machine(args.device_target, os.getloadavg()[0]), []
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=output_dir) as folder:
        for name, kind, own in cases:
            log(f'measuring {name}: {own}')
            answer = Path(folder) / 'answer.json'
            if status := command.call(Path(__file__).resolve(), [
                    'one_case', kind, str(args.repeats), str(answer), *own.split(), '--device_target',
                    args.device_target, '--device_id', str(args.device_id)]):
                return status
            rows.append({'name': name, **files.read_json(answer)})
    return finish(output_dir, 'Training steps', [
        f'Median of {args.repeats} steps after the first, whose further seconds are compilation; each case in a '
        'process of its own. Batches are made up and ready; the data pipelines are measured apart.'], about, rows,
        STEP_COLUMNS)


# ---------------------------------------------------------------- data

def data(args: argparse.Namespace) -> int:
    """Pictures a second of both stages' pipelines, by the number of workers."""
    positive(args, 'pictures')
    require(args.workers.replace(',', '').isdigit(), f'--workers {args.workers}: numbers, separated by commas')
    output_dir = files.output_folder(args.save_place, '--save_place')
    about, rows = machine('CPU', os.getloadavg()[0]), []
    centres = codebook.load(codebook.find_for_training(''))
    own_1 = train_1.arguments(['--data_path', args.input, '--random_stroke'])
    own_2 = train_2.arguments(['--input', args.input, '--mask_type', '1'])
    source = sources.find(sources.SourcePaths(Given(args.input, '--input'), Block, output_dir), centres,
                          options.chosen(data_2.ExampleConfig, own_2))
    epoch_sampler = EpochSampler(len(source.pictures), 1, 0)
    pipelines = {
        'stage 1: decode, crop, flip, strokes, tokens': data_1.TrainingBatches(
            source.pictures, Strokes(), codebook.Tokenizer(centres), PRIOR_SIZE, epoch_sampler, own_1.crop_scale),
        'stage 2: decode, crop, flip, block, degraded prior': data_2.TrainingBatches(
            source, epoch_sampler, own_2.crop_scale)}
    for name, batches in pipelines.items():
        for workers in map(int, args.workers.split(',')):
            log(f'measuring {name}, {workers} workers')
            data_loader = loader.DataLoader(batches, workers, 0, args.pictures + 1)
            try:
                ready = iter(data_loader)
                next(ready)  # the first waits for the start of the workers
                start = time.perf_counter()
                count = sum(1 for _ in ready)
                rows.append({'name': name, 'workers': workers, 'rate': count / (time.perf_counter() - start)})
            finally:
                data_loader.close()
    return finish(output_dir, 'Data pipelines', [
        f'{args.pictures} pictures of {len(source.pictures)} in {Path(args.input).name}, without any training; '
        '0 workers: in the process itself.'], about, rows, DATA_COLUMNS)


def finish(output_dir: Path, title: str, paragraphs: list[str], about: str, rows: list[Row], columns: Columns) -> int:
    """Write and print a table."""
    write(output_dir, title, [*paragraphs, about, markdown(rows, columns)], rows)
    print((output_dir / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
    return 0


def main(argv: list[str]) -> int:
    if argv[:1] == ['one_case']:
        return one_case(argv[1:])
    parser = options.Parser(prog='tests/benchmarks/benchmark_training.py', description='Measure training.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='steps | data')
    one = commands.add_parser('steps', help='seconds and memory of a training step')
    one.add_argument('--repeats', type=int, default=3)
    one.add_argument('--only', default='', help='cases whose name contains this')
    options.add_flag(one, '--pytorch', 'also the same steps in plain PyTorch, which must be installed')
    options.add_device(one)
    one.add_argument('--save_place', default='./save/benchmark/steps')
    one.set_defaults(act=steps)
    two = commands.add_parser('data', help='pictures a second of the data pipelines')
    two.add_argument('--input', required=True, help='images: folder (searched recursively), file, or list')
    two.add_argument('--pictures', type=int, default=400, help='how many to make')
    two.add_argument('--workers', default='0,1,2')
    two.add_argument('--save_place', default='./save/benchmark/data')
    two.set_defaults(act=data)
    args = parser.parse_args(argv)
    return args.act(args)


if __name__ == '__main__':
    sys.exit(run(main))
