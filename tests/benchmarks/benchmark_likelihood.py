"""Measure how well each order of filling predicts the true tokens. Not part of the test suite.

``python tests/benchmarks/benchmark_likelihood.py --input FOLDER`` fills the holes of a few pictures with the tokens
that are really there, in the passes that each setting would take, and adds up what the model said of them: nats a
missing token, the lower the better. No sample is drawn, so a few pictures tell settings apart whose samples differ by
chance alone.

Prints a Markdown table and writes it, with benchmark.csv, to <save_place>/benchmark.md.
"""
from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np
from tqdm import tqdm

from ict import files, options
from ict.command import run
from ict.data import codebook, pairs
from ict.device import runtime
from ict.errors import require
from ict.options import positive
from ict.runs import inputs
from tests.benchmarks.benchmark import Columns, Row, drawn_masks, machine, markdown, scene_of, write
from Transformer import infer as stage_1
from Transformer.models import sampling

# run.py's options for each setting, by the name in the table
SETTINGS = {
    'one pass': '--sample_steps 1', 'halton, 4': '--sample_steps 4', 'halton, 8': '--sample_steps 8',
    'halton, 16': '--sample_steps 16', 'halton, 16, linear': '--sample_steps 16 --step_schedule linear',
    'halton, 32': '--sample_steps 32', 'halton, 64': '--sample_steps 64',
    'raster, 16': '--sample_steps 16 --schedule raster', 'raster, 64': '--sample_steps 64 --schedule raster',
    'halton, 64, window 3': '--sample_steps 64 --reuse_window 3',
    'raster, one by one, window 1': '--reuse_window 1', 'raster, one by one, window 3': '--reuse_window 3',
    'raster, one by one, window 7': '--reuse_window 7',
    'raster, one by one, window 3, refresh never': '--reuse_window 3 --refresh 0',
    'halton, one by one, window 3': '--reuse_window 3 --schedule halton',
    'raster, one by one': '', 'halton, one by one': '--schedule halton'}
COLUMNS: Columns = (('setting', 'setting', 0), ('passes a picture', 'passes', 1), ('seconds a picture', 'seconds', 2),
                    ('nats a missing token', 'nats', 4), ('− one by one', 'difference', 4),
                    ('± standard error', 'error', 4))
REFERENCE = 'raster, one by one'


class Forced(sampling.Sampler):
    """Fills in the true tokens instead of drawn ones."""

    truth: np.ndarray  # (T,) int32, of the picture that is filled

    def choose(self, places: np.ndarray, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        return self.truth[places]


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/benchmark_likelihood.py', description='Compare orders of filling.')
    add = parser.add_argument
    add('--ckpt_path', default=str(ROOT / 'ckpts_ICT' / 'demo' / 'Transformer.ckpt'))
    add('--input', required=True, help='images: folder (searched recursively), file, or list')
    add('--mask', default='', help='masks likewise (default: strokes drawn into <save_place>/masks)')
    add('--pictures', type=int, default=10, help='only so many of them')
    add('--settings', default=';'.join(SETTINGS), help='names, separated by semicolons')
    add('--save_place', default='./save/benchmark/likelihood')
    options.add_device(parser)
    args = parser.parse_args(argv)
    positive(args, 'pictures')
    chosen = list(filter(None, args.settings.split(';')))
    for name in chosen:
        require(name in SETTINGS, f'--settings {name}: is none of {"; ".join(SETTINGS)}')
    require(bool(chosen), '--settings: name at least one')
    place = files.output_folder(args.save_place, '--save_place')
    masks = args.mask or drawn_masks(place, len(pairs.listing(args.input, '--input', without=place)))
    own = stage_1.arguments(['--ckpt_path', args.ckpt_path, '--image_url', args.input, '--mask_url', masks,
                             '--save_url', str(place / 'AP')])
    job = stage_1.check(own)
    found, shape, work = job.found, job.shape, job.work
    quantise = codebook.Tokenizer(job.colours)
    scenes = [read(work, i, job.view, shape.prior_size, quantise) for i in range(min(args.pictures, len(work)))]
    args.device_target = runtime.choose(args.device_target, args.device_id)
    about = machine(args.device_target, os.getloadavg()[0])
    runtime.start(args.device_target, args.device_id)
    from Transformer.models import predict
    net, rows, nats = predict.load(found, shape), [], {}
    for name in tqdm(chosen, desc='settings', disable=None):
        settings = stage_1.settings_of(stage_1.arguments([
            '--ckpt_path', args.ckpt_path, '--image_url', args.input, '--mask_url', masks, *SETTINGS[name].split()]),
            found)
        model = predict.Predictor(net, 1, shape.prior_size ** 2)
        sampler = Forced(model, shape.prior_size, settings, quantise.codebook_rgb, model.after)
        nats[name], passes, seconds = [], [], []
        for number, (tokens, hole) in enumerate([scenes[0], *scenes]):  # the first time compiles
            sampler.truth, done = tokens, []
            start = time.perf_counter()
            sample, = sampler(tokens[None], hole[None], [np.random.default_rng(0)], lambda *p, d=done: d.append(p))
            if number:
                nats[name].append(-sample.log_likelihood / max(1, hole.sum()))
                passes.append(len(done))
                seconds.append(time.perf_counter() - start)
        rows.append(row_of(name, nats, passes, seconds))
    for row in rows:
        row |= difference(nats[row['setting']], nats.get(REFERENCE))
    holes = [float(hole.mean()) for _, hole in scenes]
    write(place, 'Likelihood of the true tokens', [
        f'{len(scenes)} pictures, {100 * min(holes):.0f} to {100 * max(holes):.0f} % of the tokens in the hole (mean '
        f'{100 * statistics.fmean(holes):.0f} %); {args.ckpt_path}. The difference is to "{REFERENCE}".', about,
        markdown(rows, COLUMNS)], rows)
    print((place / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
    return 0


def read(work: inputs.Inputs, i: int, view: inputs.View, prior_size: int,
         quantise: codebook.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The true tokens (T,) int32 of a picture and its hole (T,) bool."""
    picture, grey = work.read(i, view)
    scene = scene_of(picture.rgb, grey, view.geometry, prior_size, quantise)
    return quantise(scene.tokens).reshape(-1), scene.token_hole.reshape(-1)


def row_of(name: str, nats: dict[str, list[float]], passes: list[int], seconds: list[float]) -> Row:
    """Means over the pictures."""
    return {'setting': name, 'passes': statistics.fmean(passes), 'seconds': statistics.fmean(seconds),
            'nats': statistics.fmean(nats[name])}


def difference(ours: list[float], reference: list[float] | None) -> dict[str, Any]:
    """Mean difference over the same pictures, and its standard error."""
    if reference is None or len(ours) < 2:
        return {'difference': float('nan'), 'error': float('nan')}
    each = np.subtract(ours, reference)
    return {'difference': float(each.mean()), 'error': float(each.std(ddof=1) / len(each) ** 0.5)}


if __name__ == '__main__':
    sys.exit(run(main))
