"""Compare sampling settings on a folder of pictures. Not part of the test suite; nothing else should run beside it.

``python tests/benchmarks/quality.py --input FOLDER`` has run.py complete a folder of pictures with each of several
settings and compares them: quality, diversity, seconds, memory. The same command continues an interrupted one.

It prints two Markdown tables and writes them, with benchmark.csv (a row for each setting) and pictures.csv (a row for
each picture and setting), to <save_place>/benchmark.md.
"""
from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image
from tqdm import tqdm

from ict import checkpoint, files, options
from ict.command import SOME_FAILED, run
from ict.data import geometry, images, pairs
from ict.data.codebook import Tokenizer
from ict.errors import UserError, require
from ict.log import log
from ict.options import Given, positive
from ict.runs import inputs, metrics, report
from ict.runs.evaluation import read_metrics
from tests.benchmarks import clock
from tests.benchmarks.tables import Columns, Row, machine, markdown, show, write
from Transformer import infer as stage_1
from Transformer.models import sampling
from Transformer.models.config import GPTConfig

SEQUENTIAL, DETERMINISTIC = 'sequential', 'deterministic'
RECOMMENDED = f'halton-{stage_1.RECOMMENDED_STEPS}'
SETTINGS = (SEQUENTIAL, f'{SEQUENTIAL}-hole', 'halton-4', 'halton-8', 'halton-16', 'halton-16-none', 'halton-32',
            'halton-64', 'raster-16', 'confidence-16', DETERMINISTIC)
CHOSEN_HERE = ('--input_image', '--input_mask', '--save_place', '--sample_num', '--sample_steps', '--schedule',
               '--reuse', '--deterministic', '--keep_size', '--test_only', '--visualize')
SMALLEST_HOLE, LARGEST_HOLE = 0.2, 0.6  # of the masks that are drawn
IMAGE_SIZE = 256  # run.py knows no other
NAMES = (*metrics.NAMES, 'prior_l1', 'diversity', 'diversity_ssim')

QUALITY_COLUMNS: Columns = (
    ('setting', 'setting', 0), ('pictures', 'pictures', 0), ('passes a sample', 'passes', 1), ('PSNR', 'psnr', 2),
    ('PSNR − the first\'s', 'psnr_difference', 2), ('± standard error', 'psnr_error', 2), ('MAE', 'mae', 5),
    ('MAE − the first\'s', 'mae_difference', 5), ('± standard error', 'mae_error', 5),
    ('SSIM', 'ssim', 4), ('L1 in the hole', 'l1_hole', 2), ('L1 of the prior', 'prior_l1', 2),
    ('diversity, L1', 'diversity', 2), ('diversity, 1 - SSIM', 'diversity_ssim', 4))
TIME_COLUMNS: Columns = (
    ('setting', 'setting', 0), ('s a pass', 'pass_seconds', 3), ('stage 1, s a sample', 'stage_1_seconds', 2),
    ('start-up, s', 'stage_1_start', 1), ('stage 2, s a sample', 'stage_2_seconds', 2),
    ('start-up, s', 'stage_2_start', 1), ('peak memory, MB', 'peak_mb', 0))


class Scene(NamedTuple):
    """What the results of a picture are scored with.

    Attributes:
        hole: (256, 256) bool, stage 2's.
        tokens: (P, P, 3) uint8, the original in the codebook's colours at the prior's size.
        token_hole: (P, P) bool, stage 1's.
    """

    hole: np.ndarray
    tokens: np.ndarray
    token_hole: np.ndarray


def scene_of(rgb: np.ndarray, grey: np.ndarray, geometry_name: str, prior_size: int, tokenizer: Tokenizer) -> Scene:
    """From a picture (H, W, 3) uint8 and its mask (h, w) uint8."""
    frames = geometry.frames_in(grey, *rgb.shape[:2], geometry_name)
    require(len(frames) == 1, f'--geometry {geometry_name}: parts of a hole that lie far apart have a prior each; use '
                              '--geometry resize')
    box, full_hole = frames[0]
    part = geometry.cut(rgb, box)
    small = geometry.resize_visible(part, np.zeros_like(full_hole), prior_size, Image.BILINEAR)  # (P, P, 3)
    return Scene(geometry.touched(full_hole, IMAGE_SIZE, IMAGE_SIZE), tokenizer.codebook_rgb[tokenizer(small)],
                 geometry.touched(full_hole, prior_size, prior_size))


def setting_options(name: str) -> list[str]:
    """run.py's options for a setting: ``sequential``, ``deterministic`` or ``<schedule>-<passes>``.

    All but ``deterministic`` may end in ``-<what is reused>``.

    Raises:
        UserError: it is none of these.
    """
    if name == DETERMINISTIC:
        return ['--deterministic', 'True']
    schedules, reuses = '|'.join(sampling.ORDERS), '|'.join(stage_1.REUSES)
    found = re.fullmatch(rf'(?:{SEQUENTIAL}|({schedules})-(\d+))(?:-({reuses}))?', name)
    require(found is not None, f'setting {name}: is neither {SEQUENTIAL} nor {DETERMINISTIC} nor like {RECOMMENDED} or '
                               f'{RECOMMENDED}-none (schedules: {", ".join(sampling.ORDERS)}; all but '
                               f'{DETERMINISTIC} may end in -{", -".join(stage_1.REUSES)})')
    schedule, passes, reuse = found.groups()
    return ['--sample_steps', passes or '0', '--schedule', schedule or 'raster',
            *(['--reuse', reuse] if reuse else [])]


def drawn_masks(output_dir: Path, count: int) -> str:
    """A folder with stroke masks for ``count`` pictures, always the same ones."""
    from mask import generate
    folder = output_dir / 'masks'
    if len(list(folder.glob('?????.png'))) < count:
        generate.main(['--save_path', str(folder), '--count', str(count), '--lowest', str(SMALLEST_HOLE), '--highest',
                       str(LARGEST_HOLE), '--overwrite', 'True'])
    return str(folder)


def read_scenes(plan: argparse.Namespace, work: inputs.Inputs, view: inputs.View) -> dict[str, Scene]:
    """The scene of each readable picture; run.py names the others."""
    ckpt = checkpoint.read(plan.transformer_ckpt, '--transformer_ckpt').expect('Transformer', '--transformer_ckpt')
    config = GPTConfig.from_checkpoint(ckpt, {})
    tokenizer = Tokenizer(checkpoint.transformer_palette(ckpt, plan.kmeans, config.vocab_size))
    scenes = {}
    for i in tqdm(range(len(work)), desc='reading', unit='picture', disable=None):
        try:
            picture, grey = work.read(i, view)
        except UserError:
            continue
        scenes[work.id(i)] = scene_of(picture.rgb, grey, view.geometry, config.prior_size, tokenizer)
    return scenes


def scored(output_dir: Path, setting: str, samples: int, scenes: dict[str, Scene]) -> list[Row]:
    """A row for each picture that the setting has completed into its folder: means over its samples.

    Args:
        scenes: by picture.
    """
    made = read_metrics(output_dir / setting / 'metrics.csv')
    rows = []
    for picture, scene in scenes.items():
        if any((picture, k) not in made for k in range(samples)):
            continue  # it failed; run.py has said so
        results = np.stack([images.load_rgb(output_dir / setting / f'{picture}_{k}.png')
                            for k in range(samples)])  # (n, 256, 256, 3)
        priors = [images.load_rgb(output_dir / setting / 'AP' / f'condition_{k + 1}' / f'{picture}.png')
                  for k in range(samples)]
        rows.append({'setting': setting, 'id': picture, 'hole': float(scene.hole.mean()),
                     **metrics.means([made[picture, k] for k in range(samples)]),
                     'prior_l1': float(np.mean([metrics.l1_in_hole(prior / 255, scene.tokens / 255, scene.token_hole)
                                                for prior in priors])),
                     **metrics.diversity(results, scene.hole)})
    return rows


def paired(rows: Sequence[Row], reference: Sequence[Row], key: str) -> tuple[float, float]:
    """(mean, its standard error) of the differences picture by picture; infinite values are left out."""
    theirs = {row['id']: row[key] for row in reference}
    difference = [row[key] - theirs[row['id']] for row in rows if row['id'] in theirs
                  and math.isfinite(row[key]) and math.isfinite(theirs[row['id']])]
    if len(difference) < 2:
        return (difference[0] if difference else math.nan), math.nan
    return statistics.fmean(difference), statistics.stdev(difference) / math.sqrt(len(difference))


def summary(setting: str, rows: Sequence[Row], reference: Sequence[Row], clock_file: Path) -> Row:
    """The row of a setting: means over the pictures, and what the clocks of both stages tell."""
    differences = {}
    for key in ('psnr', 'mae'):
        differences[f'{key}_difference'], differences[f'{key}_error'] = paired(rows, reference, key)
    one, two = (clock.seconds_of(clock.of_stage(clock_file, stage)) for stage in clock.STAGES)
    return {'setting': setting, 'pictures': len(rows), 'passes': one['passes'], **metrics.means(rows, NAMES),
            **differences, 'pass_seconds': one['pass'], 'stage_1_seconds': one['result'],
            'stage_1_start': one['start'], 'stage_2_seconds': two['result'], 'stage_2_start': two['start'],
            'peak_mb': max(one['peak_mb'], two['peak_mb'])}


def write_tables(output_dir: Path, about: Sequence[str], lines: Sequence[Row], rows: Sequence[Row]) -> None:
    """Both tables of the settings' ``lines``, and pictures.csv of ``rows``; ``about``: paragraphs on the conditions."""
    write(output_dir, 'Sampling settings compared', [
        *about, 'PSNR and MAE as published, of the 256 x 256 results; L1 in levels of 255. Differences to the first '
        'setting are means over the same pictures. L1 of the prior: stage 1\'s output against the original in the '
        'codebook\'s colours, both at the prior\'s size, in the hole. Diversity: how much two samples of a picture '
        'differ in the hole.', markdown(lines, QUALITY_COLUMNS),
        'Seconds a pass and a sample leave out the first result of a process. Start-up: import, loading, compilation.',
        markdown(lines, TIME_COLUMNS)], lines)
    report.write_csv(output_dir / 'pictures.csv', rows)


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that are left to run.py."""
    parser = options.Parser(prog='tests/benchmarks/quality.py', description='Compare sampling settings on a folder.',
                            epilog='All other options of run.py (--seed, --top_k, --batch_size, --device_target, ...) '
                                   'are passed on to it.')
    add = parser.add_argument
    add('--input', required=True, help='images: folder (searched recursively), file, or list')
    add('--mask', default='', help=f'masks likewise (default: strokes drawn into <save_place>/masks, {SMALLEST_HOLE} '
                                   f'to {LARGEST_HOLE} of a picture)')
    add('--settings', default=','.join(SETTINGS), help='others are compared with the first')
    add('--samples', type=int, default=2, help='samples a picture')
    add('--save_place', default='./save/benchmark/quality')
    args, further = parser.parse_known_args(argv)
    positive(args, 'samples')
    for name in CHOSEN_HERE:
        require(not any(text.split('=')[0] == name for text in further),
                f'{name}: is chosen by the benchmark; leave it out')
    for name in ('input', 'mask'):
        given = Path(getattr(args, name)).resolve()
        require(not getattr(args, name) or not Path(args.save_place).resolve().is_relative_to(given),
                f'--save_place {args.save_place}: lies in --{name}, where its pictures would count; name another place')
    return args, further


def main(argv: list[str]) -> int:
    import run as both_stages
    load = os.getloadavg()[0]

    # Options and inputs
    args, further = arguments(argv)
    chosen = {name: setting_options(name) for name in filter(None, args.settings.split(','))}
    require(bool(chosen), '--settings: name at least one')
    output_dir = files.output_folder(args.save_place, '--save_place')
    masks = args.mask or drawn_masks(output_dir, len(pairs.listing(args.input, '--input', without=output_dir)))
    common = ['--input_image', args.input, '--input_mask', masks, *further]
    plan = both_stages.arguments([*common, '--save_place', str(output_dir)])
    for name in ('mask_mode', 'geometry'):
        require(getattr(plan, name) != 'published', f'--{name} published: only sealed pictures are scored here')
    flags = options.chosen(inputs.ViewFlags, plan)
    view = inputs.View.from_flags(flags)
    work = inputs.find(Given(args.input, '--input'), Given(plan.input_mask, '--mask'), flags, output_dir)
    scenes = read_scenes(plan, work, view)
    holes = [float(scene.hole.mean()) for scene in scenes.values()]

    # Each setting, then the tables so far
    rows: dict[str, list[Row]] = {}
    lines: list[Row] = []
    worst = 0
    for name, own in chosen.items():
        samples = 1 if name == DETERMINISTIC else args.samples
        log(f'{name}: {samples} sample(s) of {len(work)} pictures')
        clock_file = output_dir / f'{name}.json'
        if plan.overwrite:
            clock_file.unlink(missing_ok=True)
        status = clock.timed_run(clock_file, *common, '--save_place', output_dir / name, '--sample_num', samples, *own)
        if status not in (0, SOME_FAILED):
            return status
        worst = max(worst, status)
        rows[name] = scored(output_dir, name, samples, scenes)
        if not rows[name]:
            continue
        lines.append(summary(name, rows[name], next(iter(rows.values())), clock_file))
        devices = {record['device'] for stage in clock.STAGES for record in clock.of_stage(clock_file, stage)}
        write_tables(output_dir, [
            f'{len(scenes)} pictures, {100 * min(holes):.0f} to {100 * max(holes):.0f} % in the hole (mean '
            f'{100 * statistics.fmean(holes):.0f} %), {args.samples} sample(s) each, seed {plan.seed}; '
            f'{plan.transformer_ckpt}, {plan.upsample_ckpt}.',
            machine(', '.join(sorted(devices)) or 'nothing was computed now', load)],
            lines, [row for own in rows.values() for row in own])
    if lines:
        show(output_dir)
    return worst


if __name__ == '__main__':
    sys.exit(run(main))
