"""Score a pair of checkpoints on a folder of pictures, beside OpenCV's inpainting on the same pictures and holes.

``python -m ict.evaluate --input photos --mask masks --save_place scores --sample_steps 16`` has run.py complete the
pictures twice, with samples (``scores/samples``) and in the deterministic mode (``scores/deterministic``), and scores
the files. The same command continues an interrupted evaluation. It writes ``evaluation.csv`` (a line for each picture
and method), ``evaluation.md`` (means by hole ratio), ``sheet.png`` (the best, the median and the worst picture), and
for an outside scorer folders of pictures with the same names and sizes: ``originals/<id>_<k>.png`` beside
``results/<id>_<k>.png``, k from 0, and ``mean``, ``telea`` and ``navier_stokes`` with ``<id>_0.png`` each.

The figures of single samples, of the best one and of the deterministic completion are stage 2's own (metrics.csv): MAE
and L1 of the float values, as published. Those of the mean picture and of OpenCV are of 8-bit pictures; the mean
picture is that of the result files, whose values stage 2 has truncated, so it is up to one level too dark.
"""
from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ict import files, options
from ict.command import SOME_FAILED, call, run
from ict.data import geometry, images
from ict.errors import UserError, require
from ict.log import log
from ict.options import positive
from ict.runs import inputs, manifest, metrics, report

RUN = Path(__file__).resolve().parents[1] / 'run.py'
OF_SAMPLES = ('--resample', '--reuse_window')  # --deterministic refuses them
RUNS_OWN = ('--input_image', '--input_mask', '--deterministic', '--keep_size', '--test_only')
SAMPLES, DETERMINISTIC, PRIORS = 'samples', 'deterministic', 'AP'
ORIGINALS, RESULTS, MEAN, TELEA, NAVIER_STOKES = 'originals', 'results', 'mean', 'telea', 'navier_stokes'
SINGLE = 'single sample'
FIGURES = (*metrics.NAMES, 'diversity', 'diversity_ssim')
OPENCV_RADIUS = 3
SHEET_SAMPLES = 3

_COLUMNS = (('PSNR', 'psnr', 2), ('SSIM', 'ssim', 4), ('MAE', 'mae', 5), ('L1 in the hole', 'l1_hole', 2),
            ('diversity, L1', 'diversity', 2), ('diversity, 1 - SSIM', 'diversity_ssim', 4))

Rows = list[dict[str, Any]]
Figures = dict[tuple[str, int], dict[str, float]]


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that are left to run.py."""
    parser = options.Parser(prog='python -m ict.evaluate', description='Score a pair of checkpoints on a folder.',
                            epilog='All other options of run.py (--sample_steps, --schedule, --top_k, --batch_size, '
                                   '--device_target, ...) are passed on to it.')
    add = parser.add_argument
    add('--input', required=True, help='images: folder (searched recursively), file, or list of paths')
    add('--mask', required=True, help='masks likewise, white = hole; a single file serves all images')
    add('--save_place', required=True, help='tables, scored pictures and the completions go here')
    add('--transformer_ckpt', default=None, help="stage 1's checkpoint (default: --model's)")
    add('--upsample_ckpt', default=None, help="stage 2's checkpoint, or the folder that holds it (default: --model's)")
    add('--model', default=None, help="a pair of checkpoints by name, see run.py (default: run.py's)")
    add('--sample_num', type=int, default=8, help='samples a picture')
    add('--seed', type=int, default=0, help='of the samples')
    inputs.add_options(parser)
    args, further = parser.parse_known_args(argv)
    positive(args, 'sample_num')
    for name in RUNS_OWN:
        require(not any(text.split('=')[0] == name for text in further),
                f'{name}: is not for ict.evaluate, which chooses it; leave it out')
    for name in ('mask_mode', 'geometry'):
        require(getattr(args, name) != 'published', f'--{name} published: only sealed pictures are scored here; leave '
                                                    f'it out, or take the metrics.csv that run.py writes')
    return args, further


def command(args: argparse.Namespace, further: list[str], folder: Path, own: list[str]) -> list[str]:
    """The arguments of the call of run.py that fills ``folder``."""
    shared = [text for name in ('transformer_ckpt', 'upsample_ckpt', 'model', 'seed', 'mask_mode', 'geometry',
                                'invert_mask', 'dilate', 'max_pixels', 'overwrite')
              if (value := getattr(args, name)) is not None for text in (f'--{name}', str(value))]
    return ['--input_image', args.input, '--input_mask', args.mask,
            '--save_place', str(folder), *own, *shared, *further]


def without(further: Sequence[str], names: Sequence[str]) -> list[str]:
    """Options, each with one value (``--name value`` or ``--name=value``), but for those of these names."""
    kept, skip = [], False
    for text in further:
        name, equals, _ = text.partition('=')
        if not skip and name not in names:
            kept.append(text)
        skip = not skip and name in names and not equals
    return kept


def scored_view(rgb: np.ndarray, grey: np.ndarray, geometry_name: str, size: int) -> geometry.ScoredView:
    """A picture (H, W, 3) uint8 and its mask (h, w) uint8 at the model's size, known pixels as stage 2 keeps them."""
    frame, full_hole = geometry.hole_in(grey, *rgb.shape[:2], geometry_name)
    return geometry.scored_view(geometry.cut(rgb, frame), full_hole, size)


def opencv(image: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    """cv2.inpaint (INPAINT_TELEA or INPAINT_NS) of (S, S, 3) uint8 in a hole (S, S) bool; no pixel in it is used."""
    known = np.where(hole[..., None], np.uint8(0), image)  # at a border OpenCV reads what is under the mask
    return cv2.inpaint(known, hole.astype(np.uint8), OPENCV_RADIUS, method)


def mean_picture(samples: np.ndarray) -> np.ndarray:
    """The pixelwise mean of (n, S, S, 3) uint8, rounded to levels: (S, S, 3) uint8."""
    return np.rint(samples.mean(axis=0, dtype=np.float64)).astype(np.uint8)


def diversity(samples: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """How much (n, S, S, 3) uint8 samples differ, mean over all pairs; nan for a single sample.

    Returns:
        diversity: mean absolute difference in the hole, in levels; diversity_ssim: 1 - SSIM of the whole pictures.
    """
    pairs = [(a / 255, b / 255) for a, b in itertools.combinations(samples, 2)]
    if not pairs:
        return {'diversity': math.nan, 'diversity_ssim': math.nan}
    return {'diversity': float(np.mean([metrics.l1_in_hole(a, b, hole) for a, b in pairs])),
            'diversity_ssim': float(np.mean([1 - metrics.ssim(a, b) for a, b in pairs]))}


def read_figures(path: Path) -> Figures:
    """Stage 2's metrics.csv: {(picture, result from 0): figures}.

    Raises:
        UserError: unreadable, or not such a table.
    """
    try:
        with open(path, encoding='utf-8', errors='surrogateescape', newline='') as stream:
            return {(row['id'], int(row['result'])): {key: float(row[key]) for key in metrics.NAMES}
                    for row in csv.DictReader(stream)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a metrics.csv of Guided_Upsample/infer.py ({error}); use --overwrite') from None


def score(view: geometry.ScoredView, samples: np.ndarray, sample_figures: Sequence[dict[str, float]],
          deterministic_figures: dict[str, float], derived: dict[str, np.ndarray]) -> Rows:
    """A row for each method on one picture: method, hole, FIGURES.

    Args:
        samples: (n, S, S, 3) uint8, the result files.
        sample_figures: stage 2's figures of the n samples.
        derived: other pictures (S, S, 3) uint8 by method, scored here.
    """
    of_method = {
        SINGLE: {**{key: float(np.mean([one[key] for one in sample_figures])) for key in metrics.NAMES},
                 **diversity(samples, view.hole)},
        f'best of {len(samples)} by PSNR': max(sample_figures, key=lambda one: one['psnr']),
        'deterministic': deterministic_figures,
        **{method: metrics.all_of(picture / 255, view.original / 255, view.hole)
           for method, picture in derived.items()}}
    return [{'method': method, 'hole': float(view.hole.mean()), **{key: figures.get(key, math.nan) for key in FIGURES}}
            for method, figures in of_method.items()]


def path_of(place: Path, folder: str, picture: str, k: int) -> Path:
    """Where result ``k`` (from 0) of a picture lies."""
    return place / folder / f'{picture}_{k}.png'


def expected(picture: str, sample_num: int) -> list[tuple[str, str, int]]:
    """(folder, picture, number) of the files that are written of a picture."""
    return [(folder, picture, k) for folder in (ORIGINALS, RESULTS) for k in range(sample_num)] + [
        (folder, picture, 0) for folder in (MEAN, TELEA, NAVIER_STOKES)]


def refuse_strangers(place: Path, work: inputs.Inputs, sample_num: int) -> None:
    """Raises a UserError for a PNG that an outside scorer would take for one of this evaluation."""
    ours = {path_of(place, *one) for i in range(len(work)) for one in expected(work.id(i), sample_num)}
    for folder in (ORIGINALS, RESULTS, MEAN, TELEA, NAVIER_STOKES):
        files.sweep(place / folder)
        for path in sorted((place / folder).rglob('*.png')):
            require(path in ours, f'{path}: is not of this evaluation (other pictures, or fewer samples, now); '
                                  f'remove it, or name another --save_place')


def score_picture(place: Path, work: inputs.Inputs, i: int, view: inputs.View, sample_num: int, sampled: Figures,
                  deterministic: Figures) -> Rows:
    """Write the scored files of a picture; its rows.

    Raises:
        UserError: a result is missing, or the picture can't be read.
    """
    picture = work.id(i)
    for folder, figures, count in ((SAMPLES, sampled, sample_num), (DETERMINISTIC, deterministic, 1)):
        for k in range(count):
            require((picture, k) in figures, f'{work.pictures.path(i)}: {place / folder} has no result of it')
    samples = [images.load_rgb(path_of(place, SAMPLES, picture, k)) for k in range(sample_num)]
    size = samples[0].shape[0]
    for k, one in enumerate(samples):
        require(one.shape == (size, size, 3), f'{path_of(place, SAMPLES, picture, k)}: is not {size} x {size} pixels '
                                              f'like the others; use --overwrite')
    samples = np.stack(samples)  # (n, S, S, 3)
    loaded, grey = work.read(i, view)
    seen = scored_view(loaded.rgb, grey, view.geometry, size)
    require(bool(seen.hole.any()), f'{work.mask_path(i)}: no hole in the part of {work.pictures.path(i)} that is '
                                   f'completed, so nothing to score')
    derived = {MEAN: mean_picture(samples), TELEA: opencv(seen.image, seen.hole, cv2.INPAINT_TELEA),
               NAVIER_STOKES: opencv(seen.image, seen.hole, cv2.INPAINT_NS)}
    rows = score(seen, samples, [sampled[picture, k] for k in range(sample_num)], deterministic[picture, 0],
                 {f'mean of {sample_num} samples': derived[MEAN], 'OpenCV, Telea': derived[TELEA],
                  'OpenCV, Navier-Stokes': derived[NAVIER_STOKES]})
    for k in range(sample_num):
        images.write_png(path_of(place, ORIGINALS, picture, k), seen.original)
        images.write_png(path_of(place, RESULTS, picture, k), samples[k])
    for folder, pixels in derived.items():
        images.write_png(path_of(place, folder, picture, 0), pixels)
    return [{'id': picture, **row} for row in rows]


def score_all(place: Path, work: inputs.Inputs, view: inputs.View, sample_num: int, sampled: Figures,
              deterministic: Figures, outcome: inputs.Outcome) -> Rows:
    """The rows of all pictures; those that can't be scored are noted in ``outcome``."""
    rows = []
    for i in tqdm(range(len(work)), desc='scores', unit='picture', disable=None):
        try:
            rows += score_picture(place, work, i, view, sample_num, sampled, deterministic)
        except UserError as error:
            outcome.fail(work.id(i), error)
            for one in expected(work.id(i), sample_num):
                path_of(place, *one).unlink(missing_ok=True)
    return rows


def table(rows: Rows) -> str:
    """A Markdown table of the methods' means by hole ratio."""
    methods = list(dict.fromkeys(row['method'] for row in rows))
    means = {method: report.by_hole([row for row in rows if row['method'] == method], FIGURES) for method in methods}
    lines = ['| hole | pictures | method | ' + ' | '.join(title for title, _, _ in _COLUMNS) + ' |',
             '|---|---|---|' + '---|' * len(_COLUMNS)]
    for by_bin in zip(*means.values(), strict=True):
        for method, mean in zip(methods, by_bin, strict=True):
            figures = ['–' if math.isnan(mean[key]) else f'{mean[key]:.{digits}f}' for _, key, digits in _COLUMNS]
            lines.append(f'| {mean["hole"]} | {mean["results"]} | {method} | ' + ' | '.join(figures) + ' |')
    return '\n'.join(lines)


def best_median_worst(ids: Sequence[str], sampled: Figures) -> list[str]:
    """Three pictures (fewer of fewer), ranked by the PSNR of their first sample."""
    ranked = sorted(ids, key=lambda picture: -sampled[picture, 0]['psnr'])
    return list(dict.fromkeys((ranked[0], ranked[len(ranked) // 2], ranked[-1])))


def sheet(place: Path, work: inputs.Inputs, view: inputs.View, shown: Sequence[str], sample_num: int) -> np.ndarray:
    """original | masked | Telea | Navier-Stokes | samples | mean | deterministic of the pictures ``shown``."""
    numbers = {work.id(i): i for i in range(len(work))}
    samples = min(sample_num, SHEET_SAMPLES)
    rows = []
    for picture in shown:
        original, telea, navier_stokes, mean = (images.load_rgb(path_of(place, folder, picture, 0))
                                                for folder in (ORIGINALS, TELEA, NAVIER_STOKES, MEAN))
        loaded, grey = work.read(numbers[picture], view)
        hole = scored_view(loaded.rgb, grey, view.geometry, len(original)).hole
        rows.append([original, np.where(hole[..., None], np.uint8(255), original), telea, navier_stokes,
                     *(images.load_rgb(path_of(place, RESULTS, picture, k)) for k in range(samples)), mean,
                     images.load_rgb(path_of(place, DETERMINISTIC, picture, 0))])
    return report.sheet(rows, ['original', 'masked', 'Telea', 'Navier-Stokes',
                               *(f'sample {k + 1}' for k in range(samples)), f'mean of {sample_num}',
                               'deterministic'])


def document(place: Path, scores: str, shown: Sequence[str], sampled: Figures) -> str:
    """evaluation.md: the table, what the sheet shows, and what made the results."""
    lines = ['# Evaluation', '', 'Means over the pictures, by the share of the picture in the hole. PSNR and MAE as '
             'published; L1 in levels of 255. Diversity: how much two samples of a picture differ, L1 in the hole. The '
             'best sample is chosen by its PSNR against the original.', '', scores, '', '`sheet.png` from top to '
             'bottom (best, median and worst by the PSNR of the first sample): '
             + ', '.join(f'{picture} ({sampled[picture, 0]["psnr"]:.2f} dB)' for picture in shown) + '.', '']
    for stage, folder, name in (('Stage 1', place / SAMPLES / PRIORS, manifest.STAGE_1),
                                ('Stage 2', place / SAMPLES, manifest.STAGE_2)):
        made = manifest.read(folder, name)
        if made is not None:
            lines += [f'{stage}: ' + ', '.join(f'{key} {str(value)[:12]}' for key, value in made['settings'].items())
                      + '.', '']
    return '\n'.join(lines)


def write(place: Path, work: inputs.Inputs, view: inputs.View, sample_num: int, rows: Rows, sampled: Figures) -> None:
    """evaluation.csv, evaluation.md and sheet.png; the table is printed too."""
    shown = best_median_worst(list(dict.fromkeys(row['id'] for row in rows)), sampled)
    scores = table(rows)
    report.write_csv(place / 'evaluation.csv', [
        {key: '' if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in rows])
    images.write_png(place / 'sheet.png', sheet(place, work, view, shown, sample_num))
    files.write_bytes(place / 'evaluation.md',
                      document(place, scores, shown, sampled).encode('utf-8', 'surrogateescape'))
    print(scores)
    print(f'evaluation: {place / "evaluation.md"}, {place / "evaluation.csv"}, {place / "sheet.png"}')


def main(argv: list[str]) -> int:
    args, further = arguments(argv)
    view = inputs.View.from_args(args)
    for name in ('input', 'mask'):
        given = Path(getattr(args, name)).resolve()
        require(not (os.path.isdir(given) and Path(args.save_place).resolve().is_relative_to(given)),
                f'--save_place {args.save_place}: lies in --{name}, where its pictures would count; name another place')
    place = files.output_folder(args.save_place, '--save_place')
    work = inputs.find(args.input, '--input', args.mask, '--mask', args.max_pixels, place,
                       allow_truncated=args.allow_truncated)
    refuse_strangers(place, work, args.sample_num)
    worst = 0
    for folder, own, passed, what in (
            (SAMPLES, ['--sample_num', str(args.sample_num)], further, f'{args.sample_num} samples'),
            (DETERMINISTIC, ['--deterministic', 'True'], without(further, OF_SAMPLES), 'the deterministic completion')):
        log(f'{what} of {len(work)} pictures')
        status = call(RUN, command(args, passed, place / folder, own))
        if status not in (0, SOME_FAILED):
            return status
        worst = max(worst, status)
    sampled, deterministic = (read_figures(place / folder / 'metrics.csv') for folder in (SAMPLES, DETERMINISTIC))
    outcome = inputs.Outcome(work.ids())
    rows = score_all(place, work, view, args.sample_num, sampled, deterministic, outcome)
    if rows:
        write(place, work, view, args.sample_num, rows, sampled)
    return max(worst, outcome.status())


if __name__ == '__main__':
    sys.exit(run(main))
