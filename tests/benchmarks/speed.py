"""Speed and memory of networks of a published size, with made-up weights. Not part of the test suite; nothing else
should run beside it.

``python tests/benchmarks/speed.py`` measures stage 1 sequential, with reuse, in few passes and in a single one, then
stage 2, each in a process of its own, prints a Markdown table and writes it, with benchmark.csv, to
<save_place>/benchmark.md. ``--pytorch`` adds a pass of each network in plain PyTorch.
"""
from __future__ import annotations

import argparse
import itertools
import json
import math
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

from Guided_Upsample.models.config import GeneratorConfig
from ict import checkpoint, command, files, options
from ict.command import run
from ict.data import codebook
from ict.device import runtime
from ict.errors import require
from ict.log import log
from ict.options import positive
from tests.benchmarks.clock import IMPORT, LOAD, Clock, memory_mb
from tests.benchmarks.tables import Columns, Row, machine, markdown, show, write
from Transformer import infer as stage_1
from Transformer.models import sampling
from Transformer.models.config import GPTConfig

CHECK = 'check'
HOLE = 0.4  # of the tokens
IMAGE_SIZE = 256
ONE_BY_ONE = {'schedule': 'raster', 'sample_steps': 0}
COLUMNS: Columns = (
    ('', 'name', 0), ('check, digest', CHECK, 2), ('import', IMPORT, 2), ('load', LOAD, 2), ('compile', 'compile', 2),
    ('a pass', 'pass', 3), ('passes', 'passes', 0), ('a photograph', 'photograph', 2), ('', 'how', 0),
    ('with start-up', 'whole', 1), ('MB after loading', 'loaded_mb', 0), ('peak MB', 'peak_mb', 0))


# ---- in a process of its own; argv: a task as JSON, and where the answer goes

def weights(argv: list[str]) -> int:
    """Write Transformer.ckpt and Generator.ckpt with made-up weights; argv: the configurations as JSON, the folder."""
    from tests.conftest import made_up
    configs, folder = json.loads(argv[0]), Path(argv[1])
    palette = np.random.default_rng(0).uniform(-1, 1, (configs['Transformer']['vocab_size'], 3)).astype(np.float32)
    for kind, build in (('Transformer', GPTConfig), ('Generator', GeneratorConfig)):
        config = build(**configs[kind])
        checkpoint.write(folder / f'{kind}.ckpt', made_up(config.shapes(), 0),
                         {'network': kind, 'architecture': config.metadata()}, palette)
    return 0


def transformer(argv: list[str]) -> int:
    """Sample one picture as stage 1 does, or extrapolate from single passes where it would take too long."""
    task, clock = json.loads(argv[0]), Clock()
    with clock.part(CHECK):
        ckpt = checkpoint.read(task['path'])
        config = GPTConfig.from_checkpoint(ckpt, {})
        ckpt.digest().result()
    with clock.part(IMPORT):
        runtime.start(task['device_target'], task['device_id'])
        from Transformer.models.predict import Predictor
    with clock.part(LOAD):
        predictor = Predictor.from_checkpoint(ckpt, config, 1, task['reuse'], task['amp_level'])
    loaded = memory_mb()[0]

    # One pass over everything, each time with other tokens: what the same ones gave is kept
    rng, n_positions = np.random.default_rng(0), config.prior_size ** 2
    tokens = rng.integers(0, config.vocab_size, (1, n_positions)).astype(np.int32)  # (1, T)
    hole = rng.permutation(n_positions)[None] < task['tokens']  # (1, T)
    positions, numbers = np.arange(n_positions, dtype=np.int32)[None], itertools.count()  # (1, T)
    compilation, one = measured(lambda: predictor.logits_at((tokens + next(numbers)) % config.vocab_size,
                                                            hole.astype(np.float32), positions), task['repeats'])
    answer = {'compile': compilation, 'pass': one, 'passes': task['tokens'], 'photograph': task['tokens'] * one,
              'how': 'extrapolated'}

    # A whole sample
    if task['sampling'] != ONE_BY_ONE or task['reuse'] != 'none':
        sampler = sampling.Sampler(predictor.logits_at, config.prior_size, sampling.SamplingConfig(**task['sampling']),
                                   codebook.to_rgb(ckpt.palette))
        start, times = time.perf_counter(), []
        sampler(tokens, hole, [rng], lambda *_: times.append(time.perf_counter()))
        answer |= {'photograph': time.perf_counter() - start, 'passes': len(times), 'how': 'measured'}
        if len(times) > 1:
            answer['pass'] = statistics.median(np.diff(times))
    return reply(argv[1], clock, loaded, answer)


def generator(argv: list[str]) -> int:
    """Paint one picture as stage 2 does, or (``plain``) with MindSpore's own last layer."""
    task, clock = json.loads(argv[0]), Clock()
    with clock.part(CHECK):
        ckpt = checkpoint.read(task['path'])
        config = GeneratorConfig.from_checkpoint(ckpt, {})
        ckpt.digest().result()
    with clock.part(IMPORT):
        runtime.start(task['device_target'], task['device_id'])
        from Guided_Upsample.models import inpaint
    with clock.part(LOAD):
        net = inpaint.Inpainter.from_checkpoint(ckpt, config, 1).generator
    loaded = memory_mb()[0]
    if task['plain']:
        from mindspore import nn
        last = net.decoder[-1]
        net.decoder[-1] = nn.Conv2d(last.in_channels, last.out_channels, last.kernel_size, pad_mode='valid',
                                    has_bias=True, weight_init=last.weight, bias_init=last.bias)
    inpainter = inpaint.Inpainter(net, 1, task['amp_level'])
    rng = np.random.default_rng(0)
    image, prior = rng.integers(0, 256, (2, 1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)  # (1, S, S, 3) each
    hole = rng.random((1, IMAGE_SIZE, IMAGE_SIZE)) < HOLE
    compilation, one = measured(lambda: inpainter.everywhere(image, prior, hole), task['repeats'])
    return reply(argv[1], clock, loaded, {'compile': compilation, 'pass': one, 'passes': 1, 'photograph': one,
                                          'how': 'measured'})


def pytorch(argv: list[str]) -> int:
    """One pass of either network in plain PyTorch; the task has the configurations."""
    task = json.loads(argv[0])
    import torch

    from tests.parity import pytorch_networks
    gpt, n_positions = task['configs']['Transformer'], task['configs']['Transformer']['prior_size'] ** 2
    with torch.inference_mode():
        if task['stage'] == 1:
            net = pytorch_networks.GPT(gpt['vocab_size'], gpt['n_embd'], gpt['n_layer'], gpt['n_head'], n_positions)
            inputs = torch.zeros(1, n_positions, dtype=torch.long), torch.zeros(1, n_positions)
        else:
            net = pytorch_networks.generator(**task['configs']['Generator'])
            inputs = (torch.rand(1, 6, IMAGE_SIZE, IMAGE_SIZE),)
        loaded = memory_mb()[0]
        compilation, one = measured(lambda: net(*inputs), task['repeats'])
    return reply(argv[1], Clock(), loaded, {
        CHECK: math.nan, IMPORT: math.nan, LOAD: math.nan, 'compile': compilation, 'pass': one, 'passes': 1,
        'photograph': math.nan, 'how': 'a pass only'})


def measured(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(seconds that the first call took longer, at least 0; median of the further ones)."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    one = statistics.median(seconds[1:])
    return max(0.0, seconds[0] - one), one


def reply(path: str, clock: Clock, loaded_mb: float, answer: Row) -> int:
    """Write the answer of one of these processes."""
    once = {part: calls[0][0] for part, calls in clock.calls.items()}
    whole = sum(once.values()) + answer['compile'] + answer['photograph']
    files.write_json(path, {**once, **answer, 'whole': whole, 'loaded_mb': loaded_mb, 'peak_mb': memory_mb()[1]})
    return 0


PROCESSES = {'weights': weights, 'transformer': transformer, 'generator': generator, 'pytorch': pytorch}


# ---- the table

def arguments(argv: list[str]) -> argparse.Namespace:
    parser = options.Parser(prog='tests/benchmarks/speed.py', description='Speed and memory of published sizes.')
    add = parser.add_argument
    for name, default in (('n_layer', 35), ('n_embd', 1024), ('n_head', 8), ('prior_size', 32), ('vocab_size', 512),
                          ('base_channels', 64), ('residual_blocks', 8),
                          ('sample_steps', stage_1.RECOMMENDED_STEPS), ('repeats', 3)):
        add(f'--{name}', type=int, default=default)
    add('--tokens', type=int, default=None, help=f'in the hole (default: {HOLE} of all)')
    add('--amp_level', choices=('O0', 'O2', 'O3'), default='O0')
    options.add_flag(parser, '--pytorch', 'also a pass of each network in plain PyTorch on the CPU (pip install torch)')
    options.add_device(parser)
    add('--save_place', default='./save/benchmark/speed')
    args = parser.parse_args(argv)
    positive(args, 'n_layer', 'n_embd', 'n_head', 'prior_size', 'tokens', 'sample_steps', 'repeats', 'vocab_size',
             'base_channels', 'residual_blocks')
    require(args.n_embd % args.n_head == 0, f'--n_head {args.n_head}: does not divide --n_embd {args.n_embd}')
    positions = args.prior_size ** 2
    args.tokens = round(HOLE * positions) if args.tokens is None else args.tokens
    require(args.tokens <= positions, f'--tokens {args.tokens}: the prior has only {positions}')
    return args


def tasks(args: argparse.Namespace, folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """(process, task) of each row of the table, by its name."""
    common = {'repeats': args.repeats, 'amp_level': args.amp_level, 'device_target': args.device_target,
              'device_id': args.device_id, 'tokens': args.tokens}
    few = {'schedule': 'halton', 'sample_steps': args.sample_steps}
    result = {f'stage 1, {how}': ('transformer', {**common, 'path': str(folder / 'Transformer.ckpt'),
                                                  'sampling': config, 'reuse': reuse})
              for how, config, reuse in (('sequential', ONE_BY_ONE, 'none'),
                                         ('sequential, reuse hole', ONE_BY_ONE, 'hole'),
                                         (f'{args.sample_steps} passes, reuse none', few, 'none'),
                                         (f'{args.sample_steps} passes', few, 'hole'),
                                         ('deterministic', {'deterministic': True}, 'none'))}
    result |= {name: ('generator', {**common, 'path': str(folder / 'Generator.ckpt'), 'plain': plain})
               for name, plain in (('stage 2', False), ('stage 2 as a plain graph', True))}
    if args.pytorch:
        result |= {f'stage {stage}, plain PyTorch': ('pytorch', {**common, 'configs': configs(args), 'stage': stage})
                   for stage in (1, 2)}
    return result


def configs(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What GPTConfig and GeneratorConfig are made of."""
    return {'Transformer': {'n_layer': args.n_layer, 'n_embd': args.n_embd, 'n_head': args.n_head,
                            'prior_size': args.prior_size, 'vocab_size': args.vocab_size, 'GELU_2': True},
            'Generator': {'residual_blocks': args.residual_blocks, 'base_channels': args.base_channels}}


def main(argv: list[str]) -> int:
    if argv and argv[0] in PROCESSES:
        return PROCESSES[argv[0]](argv[1:])
    args = arguments(argv)
    output_dir = files.output_folder(args.save_place, '--save_place')
    args.device_target = runtime.choose(args.device_target, args.device_id)
    about, rows = machine(args.device_target, os.getloadavg()[0]), []

    # A process for each row
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=output_dir) as name:
        folder = Path(name)
        log(f'writing made-up weights to {folder}')
        if status := command.call(Path(__file__).resolve(), ['weights', json.dumps(configs(args)), name]):
            return status
        for title, (process, task) in tasks(args, folder).items():
            log(f'measuring {title}')
            answer = folder / 'answer.json'
            if status := command.call(Path(__file__).resolve(), [process, json.dumps(task), str(answer)]):
                return status
            rows.append({'name': title, **files.read_json(answer)})

    # The table
    whole = {row['name']: row['whole'] for row in rows}
    totals = ', '.join(f'{seconds + whole["stage 2"]:.0f} s ({title.removeprefix("stage 1, ")})'
                       for title, seconds in whole.items() if title.startswith('stage 1') and 'PyTorch' not in title)
    write(output_dir, 'Speed and memory', [
        f'Made-up weights: transformer of {args.n_layer} layers x {args.n_embd}, {args.n_head} heads, '
        f'{args.prior_size} x {args.prior_size} tokens; generator of {args.base_channels} channels, '
        f'{args.residual_blocks} blocks, 256 x 256. A photograph has {args.tokens} tokens in the hole '
        f'({100 * args.tokens / args.prior_size ** 2:.0f} %). {args.amp_level}, one picture at a time.', about,
        'Seconds; a process for each row. check, digest: reading the checkpoint\'s index and its SHA-256. The file is '
        'in the system\'s cache. extrapolated: passes x seconds a pass.', markdown(rows, COLUMNS),
        f'One photograph through both stages, start-up included: {totals}.'], rows)
    show(output_dir)
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
