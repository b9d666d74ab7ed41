"""Stage 2: paint the holes of pictures at 256 x 256, guided by stage 1's priors, and score the results.

``python Guided_Upsample/infer.py --ckpt_path ckpts_ICT/demo/InpaintingModel_gen.ckpt --input photos --mask masks
--prior priors --save_path results`` writes ``results/<id>_0.png`` ..., ``metrics.csv`` and ``results.json``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from Guided_Upsample.datasets import compositing
from Guided_Upsample.datasets.dataset import PAIRED_FILE, published_view
from Guided_Upsample.models import config
from ict import checkpoint, files, options
from ict.command import run
from ict.data import geometry, images, pairs
from ict.device import parallel, runtime
from ict.errors import UserError, not_written, require
from ict.log import log
from ict.options import positive
from ict.runs import inputs, manifest, metrics, report

TEST = 2
COMPARISON = 'comparison.png'
_COMPARISON_ROWS = 12


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Guided_Upsample/infer.py', description='Paint holes guided by priors (stage 2).')
    add = parser.add_argument
    add('--ckpt_path', required=True, help='generator checkpoint, or the folder that holds InpaintingModel_gen.ckpt')
    add('--input', required=True, help='images: folder (searched recursively), file, or list of paths')
    add('--mask', required=True, help='masks likewise, white = hole; a single file serves all images')
    add('--prior', required=True, help="stage 1's save_url")
    add('--save_path', default='./results', help='results go here')
    add('--kmeans', default='', help='accepted: the priors are colours already')
    add('--image_size', type=int, default=256,
        help='side of a completed picture; without effect on the size that --keep_size gives')
    add('--prior_size', type=int, default=None, help="(read from the priors' files)")
    add('--mask_type', type=int, choices=(PAIRED_FILE,), default=PAIRED_FILE,
        help='only 3, the mask that the prior was made for, makes sense')
    add('--mode', type=int, choices=(TEST,), default=TEST, help='accepted: only 2, testing, makes sense')
    add('--condition_num', type=int, default=1, help='priors an image')
    options.add_flag(parser, '--test_only', 'metrics only: no result pictures are kept')
    options.add_device(parser)
    add_painting(parser)
    add('--seed', type=int, default=0, help='accepted: nothing here is random')
    add('--batch_size', type=int, default=1, help='pictures in one forward pass (on a CPU one after another, '
                                                       'which is as fast); changes no result')
    add('--amp_level', choices=('O0', 'O2', 'O3'), default='O0', help='O2, O3: float16 on a GPU')
    inputs.add_options(parser)
    options.add_flag(parser, '--distributed', 'one process of several started by msrun, which share the images')
    args = parser.parse_args(argv)
    positive(args, 'condition_num', 'prior_size', 'batch_size')
    require(not (args.test_only and (args.visualize or args.keep_size)),
            '--test_only keeps no pictures: leave --visualize and --keep_size out')
    require(not (args.test_only and args.distributed),
            '--test_only keeps nothing that the ranks could share: leave --distributed out')
    require(args.image_size % 4 == 0 and args.image_size >= 32,
            f'--image_size {args.image_size}: must be a multiple of 4 and at least 32')
    return args


def add_painting(parser: Any) -> None:
    """The options of stage 2 that run.py has too."""
    parser.add_argument('--padding', choices=config.PADDINGS, default=None,
                        help="for checkpoints that don't record it: reflect for the PyTorch original's "
                             '(default: symmetric)')
    options.add_flag(parser, '--keep_size',
                     "results in the input's size; known pixels are the input's bit for bit, the hole is enlarged and "
                     'joined to them without a seam (scores are those of the small picture)')
    options.add_flag(parser, '--visualize', f'write {COMPARISON}: original | masked | results, of the first '
                                            f'{_COMPARISON_ROWS} pictures')


def find_generator(given: str) -> Path:
    """The checkpoint file itself, or InpaintingModel_gen.ckpt (_best, _latest) in a folder."""
    path = Path(given)
    if not os.path.isdir(path):
        return path
    found = checkpoint.saved_in(path, ('InpaintingModel_gen',))
    require(found is not None, f'--ckpt_path {given}: the folder holds no InpaintingModel_gen.ckpt')
    return found[0]


def check_model(args: Any) -> tuple[checkpoint.Checkpoint, config.Architecture]:
    """The checkpoint and what it holds."""
    found = checkpoint.read(find_generator(args.ckpt_path), '--ckpt_path').expect('Generator', '--ckpt_path')
    return found, config.of(found, args.padding)


class Job(NamedTuple):
    """What is to be painted.

    Attributes:
        folder: where the results go; conditions: where the priors are, a folder for each result of a picture.
        made: stage 1's manifest, if there is one.
        prior_size: that the priors must have, if given.
        own_size: results in the input's size; test_only: no result pictures, scores alone.
    """

    found: checkpoint.Checkpoint
    shape: config.Architecture
    folder: Path
    conditions: list[Path]
    made: dict[str, Any] | None
    view: inputs.View
    work: inputs.Inputs
    image_size: int
    prior_size: int | None
    own_size: bool
    test_only: bool


def check(args: Any) -> Job:
    """Everything that can be wrong with options and files, before MindSpore is imported."""
    found, shape = check_model(args)
    folder = Path(args.save_path)
    require(os.path.isdir(args.prior), f"--prior {args.prior}: no such folder; give stage 1's --save_url")
    conditions = pairs.condition_folders(args.prior, '--prior')
    require(len(conditions) >= args.condition_num, f'--condition_num {args.condition_num}: --prior {args.prior} holds '
                                                   f'only {len(conditions)}')
    made = manifest.read(args.prior, manifest.STAGE_1)
    view = agreed_view(args, made)
    work = inputs.find(args.input, '--input', args.mask, '--mask', args.max_pixels, folder, args.prior)
    work.quiet = made is not None  # stage 1 has said what can't be represented
    if not args.test_only:
        work.refuse_to_overwrite(outputs(folder, work, args.condition_num, args.visualize),
                                 f'--save_path {args.save_path}',
                                 (place / f'{work.id(i)}.png' for place in conditions for i in range(len(work))))
    files.output_folder(folder, '--save_path')
    return Job(found, shape, folder, conditions[:args.condition_num], made, view, work, args.image_size,
               args.prior_size, args.keep_size, args.test_only)


def check_before_stage_1(args: Any) -> None:
    """What can be wrong while there are no priors yet; run.py's check before stage 1 starts."""
    found, shape = check_model(args)
    work = inputs.find(args.input, '--input', args.mask, '--mask', args.max_pixels, args.save_path)
    folder = Path(args.save_path)
    if not args.test_only:
        work.refuse_to_overwrite(outputs(folder, work, args.condition_num, args.visualize),
                                 f'--save_path {args.save_path}')
    open_record(args, found, shape, agreed_view(args, None), folder, work)


def open_record(args: Any, found: checkpoint.Checkpoint, shape: config.Architecture, view: inputs.View,
                folder: Path, work: inputs.Inputs) -> manifest.Manifest:
    """results.json of the save place.

    Raises:
        UserError: what is there was made with other settings.
    """
    return manifest.Manifest(folder, manifest.STAGE_2, {
        'checkpoint': found.digest(), 'padding': shape.padding, 'image_size': args.image_size, **vars(view),
        'keep_size': args.keep_size, 'amp_level': args.amp_level},
        lambda: None if args.test_only else
        next((p for i in range(len(work)) if os.path.isfile(p := result_path(folder, work.id(i), 0))), None),
        args.overwrite)


def agreed_view(args: Any, made: dict[str, Any] | None) -> inputs.View:
    """How stage 1 saw the pictures, which stage 2 must do too.

    Raises:
        UserError: an option contradicts stage 1's manifest.
    """
    own_geometry = 'resize' if args.keep_size else 'crop'
    theirs = made['settings'] if made is not None else {}
    view = inputs.View.of(args, theirs.get('mask_mode') or 'sealed', theirs.get('geometry') or own_geometry)
    for key, value in vars(view).items():
        require(theirs.get(key) in (None, value),
                f'--{key} {value} contradicts the priors in {args.prior}, made with {key} {theirs.get(key)}; '
                f'make them anew or use the same')
    require(view.mask_mode == 'sealed' or not args.keep_size, '--keep_size is for --mask_mode sealed')
    return view


class Seen:
    """One picture as stage 2 works on it.

    Attributes:
        picture: as decoded.
        frame, full_hole: the part that is completed and its hole at the picture's resolution (sealed only).
        image, hole: (S, S, 3) uint8 and (S, S) bool for the network.
        original: (S, S, 3) uint8, what results are scored against.
    """

    def __init__(self, work: inputs.Inputs, i: int, view: inputs.View, image_size: int, own_size: bool) -> None:
        self.picture, grey = work.read(i, view)
        rgb = self.picture.rgb
        self.frame = self.full_hole = None
        if view.mask_mode == 'published':
            self.image, self.hole = published_view(rgb, grey, view.geometry, image_size)
            self.original = self.image
            return
        self.frame, self.full_hole = geometry.hole_in(grey, *rgb.shape[:2], view.geometry)
        if own_size and geometry.reaches_out(grey, *rgb.shape[:2], view.geometry):
            raise UserError(f'{work.pictures.path(i)}: the hole reaches out of the {view.geometry} frame; '
                            f'with --keep_size use --geometry resize or hole')
        self.image, self.hole, self.original = geometry.scored_view(geometry.cut(rgb, self.frame), self.full_hole,
                                                                    image_size)


def read_prior(path: Path, image_size: int, prior_size: int | None) -> np.ndarray:
    """A prior enlarged to (S, S, 3) uint8, bicubic as published.

    Raises:
        UserError: missing, unreadable or not square.
    """
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such prior; run stage 1 on this picture')
    small = images.load_rgb(path)
    if small.shape[0] != small.shape[1] or (prior_size and small.shape[0] != prior_size):
        wanted = f'{prior_size} x {prior_size}' if prior_size else 'square'
        raise UserError(f'{path}: a prior is {wanted}; this one is {small.shape[1]} x {small.shape[0]}')
    return images.bicubic(small, image_size, image_size)


def result_path(folder: Path, picture: str, k: int) -> Path:
    """Where result ``k`` (from 0) of a picture goes."""
    return folder / f'{picture}_{k}.png'


def outputs(folder: Path, work: inputs.Inputs, results: int, visualize: bool) -> Iterator[Path]:
    """Every picture that may be written, with ``results`` of each input."""
    if visualize:
        yield folder / COMPARISON
    for i in range(len(work)):
        for k in range(results):
            yield result_path(folder, work.id(i), k)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    job = check(args)
    record = open_record(args, job.found, job.shape, job.view, job.folder, job.work)
    args.device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
    rank, ranks = parallel.rank() if args.distributed else (0, 1)
    outcome = inputs.Outcome(job.work.ids())
    if rank == 0:
        names = map(job.work.id, range(len(job.work)))
        for place in {result_path(job.folder, name, 0).parent for name in names} | {job.folder}:
            files.sweep(place, below=False)
    if rank == 0 and args.overwrite and not job.test_only:
        manifest.forget_journals(job.folder)
    _take_journal(record, job.folder)
    todo = plan(job, record, args.overwrite, outcome, rank, ranks)
    if rank == 0 and not job.test_only:
        record.write()
    scores: dict[tuple[str, int], dict[str, float]] = {}
    try:
        if todo or args.distributed:
            runtime.start(args.device_target, args.device_id, args.distributed)
            if args.distributed:
                parallel.same_on_all_ranks('--input', job.work.pictures.digest())
                parallel.same_on_all_ranks('--mask', job.work.mask_files.digest())
                parallel.same_on_all_ranks('options or --ckpt_path', [record.settings, len(job.conditions)])
            from Guided_Upsample.models import inpaint
            painter = inpaint.Inpainter(inpaint.load(job.found, job.shape), runtime.rows_at_once(args.batch_size),
                                    args.amp_level)
            fill(job, painter.everywhere, todo, args.batch_size, outcome, scores, record, rank)
    finally:
        parallel.wait_for_all(args.distributed)
        if rank == 0:
            _collect(job, record, outcome, scores)
    if rank == 0 and args.visualize and not job.test_only:
        _compare(job, outcome)
    status = outcome.status()
    parallel.wait_for_all(args.distributed)  # msrun ends the others when one has left
    return status


def plan(job: Job, record: manifest.Manifest, overwrite: bool, outcome: inputs.Outcome, rank: int,
         ranks: int) -> list[tuple[int, int]]:
    """(picture, result from 0) still to be made by this rank; results of changed sources are removed."""
    todo, kept = [], 0
    for i in range(len(job.work)):
        picture, sources = job.work.id(i), job.work.sources(i)
        known = record.pictures.get(picture, {})
        same = not overwrite and record.unchanged(picture, sources)
        if rank == 0 and overwrite and not job.test_only:
            _remove_results(job, picture, record.replaced.get(picture, {}))
        try:
            _same_sources(job.work, i, sources, job.made)
        except UserError as error:
            outcome.fail(picture, error)
            continue
        priors = {f'prior_digest_{k}': manifest.file_digest(place / f'{picture}.png')
                  for k, place in enumerate(job.conditions)}
        if rank == 0 and not same and not job.test_only:
            _remove_results(job, picture, known)
        scored = dict(known.get('figures', {})) if same else {}
        for k in range(len(job.conditions)):
            path, key = result_path(job.folder, picture, k), f'prior_digest_{k}'
            if same and known.get(key) == priors[key] and str(k) in scored and os.path.isfile(path) \
                    and not job.test_only:
                kept += 1
                continue
            scored.pop(str(k), None)
            if rank == 0 and not job.test_only:
                files.remove(path)
            if i % ranks == rank:
                todo.append((i, k))
        record.set(picture, sources)
        record.pictures[picture].update(priors, figures=scored)
    if kept and rank == 0:
        log(f'{kept} finished results are kept')
    return todo


def _remove_results(job: Job, picture: str, entry: dict[str, Any]) -> None:
    """Remove all results that a picture's entry tells of, also more than are wanted now, but no picture to be read."""
    for k in range(len(entry)):
        path = result_path(job.folder, picture, k)
        if f'prior_digest_{k}' in entry and not job.work.reads(path):
            files.remove(path)


def _line_of(picture: str, k: int, entry: dict[str, Any]) -> str:
    """What the journal calls the figures of a result: its name, and digests of all that it was made of."""
    return f'{picture}_{k} {entry["image_digest"]} {entry["mask_digest"]} {entry[f"prior_digest_{k}"]}'


def _same_sources(work: inputs.Inputs, i: int, sources: dict[str, Any], made: dict[str, Any] | None) -> None:
    if made is None:
        return
    entry = made['pictures'].get(work.id(i))
    require(entry is not None, f'{work.pictures.path(i)}: stage 1 has made no prior of it')
    other = manifest.other_source(entry, sources)
    require(other is None, f'{work.pictures.path(i)}: its prior was made from another {other}; run stage 1 again')


def fill(job: Job, painter: Callable, todo: list[tuple[int, int]], batch_size: int, outcome: inputs.Outcome,
         scores: dict[tuple[str, int], dict[str, float]], record: manifest.Manifest, rank: int) -> None:
    """Paint, score and write the results that ``todo`` names; failures go to ``outcome``, figures to ``scores``.

    A result's figures are in the rank's journal before the result is there, so that one that is kept has its own.

    Args:
        painter: images and priors (B, S, S, 3) uint8, holes (B, S, S) bool -> pictures (B, S, S, 3) float32.
    """
    with tqdm(total=len(todo), desc='results', unit='result',
              disable=None if parallel.is_writer() else True) as bar:
        for batch in _batches(job, todo, batch_size, outcome, bar):
            places, seen, priors = zip(*batch, strict=True)
            image, hole = np.stack([s.image for s in seen]), np.stack([s.hole for s in seen])
            painted = painter(image, np.stack(priors), hole)
            for (i, k), one, picture in zip(places, seen, painted, strict=True):
                name = job.work.id(i)
                result, figures = _scored(one, picture)
                try:
                    if not job.test_only:
                        line = _line_of(name, k, record.pictures[name])
                        manifest.note_in_journal(job.folder, rank, line, _text(figures))
                        _write(job, result_path(job.folder, name, k), one, picture, result)
                    scores[name, k] = figures
                except OSError as error:
                    outcome.fail(name, not_written(result_path(job.folder, name, k), error))
                bar.update()


def _scored(seen: Seen, painted: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The picture with its known pixels put back, (S, S, 3) float32 in [0, 1], and its figures."""
    image = seen.image / np.float32(255)
    result = np.where(seen.hole[..., None], painted, image)
    return result, {'hole': float(seen.hole.mean()),
                    **metrics.all_of(result, seen.original / np.float32(255), seen.hole)}


def _text(figures: dict[str, float]) -> str:
    return ' '.join(repr(value) for value in figures.values())


def _write(job: Job, path: Path, seen: Seen, painted: np.ndarray, result: np.ndarray) -> None:
    """Write a result; its bytes depend on nothing under the mask, so its figures are kept elsewhere."""
    if job.own_size:
        completed = compositing.blended(painted, seen.image / np.float32(255), seen.hole)
        native = compositing.at_own_size(seen.picture.native, seen.frame, seen.full_hole, completed)
        images.write_png(path, native, seen.picture.icc_profile)
    else:
        images.write_png(path, (result * 255).astype(np.uint8))


def _batches(job: Job, todo: list[tuple[int, int]], batch_size: int, outcome: inputs.Outcome,
             bar: tqdm) -> Iterator[list]:
    """Lists of up to ``batch_size`` ((picture, result), seen, prior); pictures are read once, when they are due."""
    batch, last, seen = [], None, None
    for i, k in todo:
        try:
            if i != last:
                last, seen = i, None
                seen = Seen(job.work, i, job.view, job.image_size, job.own_size)
            if seen is not None:
                prior = read_prior(job.conditions[k] / f'{job.work.id(i)}.png', job.image_size, job.prior_size)
        except UserError as error:
            outcome.fail(job.work.id(i), error)
            seen = None
        if seen is None:
            bar.update()
            continue
        batch.append(((i, k), seen, prior))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _collect(job: Job, record: manifest.Manifest, outcome: inputs.Outcome,
             scores: dict[tuple[str, int], dict[str, float]]) -> None:
    """metrics.csv, metrics_by_hole.csv, results.json and the published console line, of new and kept results."""
    rows = []
    if not job.test_only:
        _take_journal(record, job.folder)
    for i in range(len(job.work)):
        picture = job.work.id(i)
        likelihoods = (job.made or {}).get('pictures', {}).get(picture, {}).get('log_likelihood', {})
        for k in range(len(job.conditions)):
            figures = scores.get((picture, k))
            there = not job.test_only and os.path.isfile(result_path(job.folder, picture, k))
            if figures is None and there and picture not in outcome.failures:
                text = record.pictures[picture]['figures'].get(str(k))
                figures = dict(zip(('hole', *metrics.NAMES), map(float, text.split()), strict=True)) if text else None
            if figures is not None:
                rows.append({'id': picture, 'result': k, **figures,
                             'log_likelihood': likelihoods.get(str(k + 1), '')})
    if not rows:
        return
    if not job.test_only:
        record.write()
        manifest.forget_journals(job.folder)
    report.write_metrics(job.folder / 'metrics.csv', job.folder / 'metrics_by_hole.csv', rows)
    means = {key: float(np.mean([row[key] for row in rows])) for key in metrics.NAMES}
    print(f'PSNR: {means["psnr"]:.6f}, MAE: {means["mae"]:.9f}')
    print(f'SSIM: {means["ssim"]:.6f}, L1 in the hole: {means["l1_hole"]:.3f} levels, {len(rows)} results in '
          f'{job.folder}')


def _take_journal(record: manifest.Manifest, folder: Path) -> None:
    """Put the journals' figures into the record, those of pictures that this run doesn't work on too."""
    journal = manifest.read_journals(folder)
    for picture, entry in record.pictures.items():
        figures = entry.get('figures', {})
        for key in list(entry):
            k = key.removeprefix('prior_digest_')
            if k != key and k not in figures and (text := journal.get(_line_of(picture, int(k), entry))):
                figures[k] = text
        entry['figures'] = dict(sorted(figures.items()))  # the same bytes after an interruption, too


def _compare(job: Job, outcome: inputs.Outcome) -> None:
    """The comparison picture of the first pictures."""
    rows = []
    for i in range(len(job.work)):
        if len(rows) == _COMPARISON_ROWS:
            break
        if job.work.id(i) in outcome.failures:
            continue
        try:
            seen = Seen(job.work, i, job.view, job.image_size, job.own_size)
            painted = [images.load_rgb(result_path(job.folder, job.work.id(i), k), job.work.max_pixels)
                       for k in range(len(job.conditions))]
        except UserError:  # it failed on another rank
            continue
        if job.own_size:
            painted = [images.bicubic(geometry.cut(one, seen.frame), job.image_size, job.image_size) for one in painted]
        rows.append([seen.original, np.where(seen.hole[..., None], np.uint8(255), seen.original), *painted])
    if rows:
        results = len(job.conditions)
        titles = ['original', 'masked', *('completed' if results == 1 else f'completed {k + 1}'
                                          for k in range(results))]
        images.write_png(job.folder / COMPARISON, report.sheet(rows, titles))
        print(f'comparison: {job.folder / COMPARISON}')


if __name__ == '__main__':
    sys.exit(run(main))
