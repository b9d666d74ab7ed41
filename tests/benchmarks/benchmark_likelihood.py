"""Measure how well each order of filling predicts the true tokens. Not part of the test suite.

``python tests/benchmarks/benchmark_likelihood.py --input FOLDER`` fills the holes of a few pictures with the tokens
that are really there, in the passes that each setting would take, and adds up what the model said of them: nats a
missing token, the lower the better. No sample is drawn, so a few pictures tell settings apart whose samples differ by
chance alone. With "reuse" the passes after the first compute only some rows (see Transformer/models/predict.py).

Prints a Markdown table and writes it, with benchmark.csv, to <save_place>/benchmark.md.
"""
from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

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
from ict.options import Given, positive
from ict.runs import inputs
from tests.benchmarks.quality import drawn_masks, scene_of
from tests.benchmarks.tables import Columns, machine, markdown, write
from Transformer import infer as stage_1
from Transformer.models import sampling

REUSE = ', reuse '  # between a setting's name and what its predictor reuses


def settings() -> dict[str, tuple[sampling.SamplingConfig, str]]:
    """(how to sample, what to reuse) by the name in the table."""
    found = {'one pass': (1, 'halton')}
    found |= {f'halton, {steps}': (steps, 'halton') for steps in (4, 8, 16, 32, 64)}
    found |= {f'{schedule}, 16': (16, schedule) for schedule in ('raster', 'confidence')}
    found |= {f'{schedule}, one by one': (0, schedule) for schedule in ('raster', 'halton')}
    return {name + end: (sampling.SamplingConfig(sample_steps=steps, schedule=schedule), reuse)
            for name, (steps, schedule) in found.items()
            for end, reuse in (('', 'none'), (REUSE + 'hole', 'hole')) if steps != 1 or reuse == 'none'}


SETTINGS = settings()
COLUMNS: Columns = (('setting', 'setting', 0), ('passes a picture', 'passes', 1), ('seconds a picture', 'seconds', 2),
                    ('nats a missing token', 'nats', 4), ('− without reuse', 'reused', 4),
                    ('± standard error', 'reused_error', 4), ('− one by one', 'difference', 4),
                    ('± standard error', 'error', 4))
REFERENCE = 'raster, one by one'


class Forced(sampling.Sampler):
    """Fills in the true tokens instead of drawn ones."""

    truth: np.ndarray  # (T,) int32, of the picture that is filled

    def choose(self, positions: np.ndarray, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        return self.truth[positions]


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
    model = stage_1.Model.from_checkpoint(Given(args.ckpt_path, '--ckpt_path'), stage_1.ModelFlags(),
                                          stage_1.SamplingFlags())
    work = inputs.find(Given(args.input, '--input'), Given(masks, '--mask'), inputs.ViewFlags(), place)
    scenes = [read(work, i, inputs.View(), model.config.prior_size, model.tokenizer)
              for i in range(min(args.pictures, len(work)))]
    args.device_target = runtime.choose(args.device_target, args.device_id)
    about = machine(args.device_target, os.getloadavg()[0])
    runtime.start(args.device_target, args.device_id)
    from Transformer.models import predict
    models = {reuse: predict.Predictor.from_checkpoint(model.ckpt, model.config, 1, reuse)
              for reuse in sorted({SETTINGS[name][1] for name in chosen})}
    rows, nats = [], {}
    for name in tqdm(chosen, desc='settings', disable=None):
        config, reuse = SETTINGS[name]
        sampler = Forced(models[reuse].logits_at, model.config.prior_size, config)
        nats[name], passes, seconds = [], [], []
        for number, (tokens, hole) in enumerate([scenes[-1], *scenes]):  # the first time compiles
            sampler.truth, done = tokens, []
            start = time.perf_counter()
            sample, = sampler(tokens[None], hole[None], [np.random.default_rng(0)], lambda *p, d=done: d.append(p))
            if number:
                nats[name].append(-sample.log_likelihood / max(1, hole.sum()))
                passes.append(len(done))
                seconds.append(time.perf_counter() - start)
        rows.append({'setting': name, 'passes': statistics.fmean(passes), 'seconds': statistics.fmean(seconds),
                     'nats': statistics.fmean(nats[name])})
    for row in rows:
        name = row['setting']
        row['difference'], row['error'] = difference(nats[name], nats.get(REFERENCE))
        row['reused'], row['reused_error'] = difference(nats[name], nats.get(name.split(REUSE)[0])) \
            if REUSE in name else ('', '')
    holes = [float(hole.mean()) for _, hole in scenes]
    write(place, 'Likelihood of the true tokens', [
        f'{len(scenes)} pictures, {100 * min(holes):.0f} to {100 * max(holes):.0f} % of the tokens in the hole (mean '
        f'{100 * statistics.fmean(holes):.0f} %); {args.ckpt_path}. The difference is to "{REFERENCE}".', about,
        markdown(rows, COLUMNS)], rows)
    print((place / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
    return 0


def read(work: inputs.Inputs, i: int, view: inputs.View, prior_size: int,
         tokenizer: codebook.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The true tokens (T,) int32 of a picture and its hole (T,) bool."""
    picture, grey = work.read(i, view)
    scene = scene_of(picture.rgb, grey, view.geometry, prior_size, tokenizer)
    return tokenizer(scene.tokens).reshape(-1), scene.token_hole.reshape(-1)


def difference(ours: list[float], reference: list[float] | None) -> tuple[float, float]:
    """Mean difference over the same pictures, and its standard error."""
    if reference is None or len(ours) < 2:
        return float('nan'), float('nan')
    each = np.subtract(ours, reference)
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


if __name__ == '__main__':
    sys.exit(run(main))
