"""Stage 1: sample appearance priors for the holes of pictures.

``python Transformer/infer.py --ckpt_path ckpts_ICT/demo/Transformer.ckpt --image_url photos --mask_url masks
--save_url priors`` writes ``priors/condition_1/<id>.png`` ... and ``priors/manifest.json``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image
from tqdm import tqdm

from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook, geometry, images
from ict.device import parallel, runtime
from ict.errors import UserError, not_written, require
from ict.log import log
from ict.options import positive
from ict.runs import inputs, manifest
from Transformer.datasets.dataset import published_view
from Transformer.models import config, sampling

TOP_K, TEMPERATURE = 40, 1.0
RECOMMENDED_STEPS = 16
LIKELIHOOD = 'log_likelihood'


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Transformer/infer.py', description='Sample appearance priors (stage 1).')
    add = parser.add_argument
    add('--ckpt_path', required=True, help='transformer checkpoint; it tells the architecture')
    add('--image_url', required=True, help='images: folder (searched recursively), file, or list of paths')
    add('--mask_url', required=True, help='masks likewise, white = hole; a single file serves all images; alpha: what '
                                          'is transparent in the images')
    add('--save_url', default='./', help='where condition_1 ... and manifest.json go')
    add('--skip', default='', help='a further folder that is not searched: where stage 2 puts its results')
    options.add_device(parser)
    add_sampling(parser)
    add('--condition_num', type=int, default=1, help='samples an image')
    add('--n_layer', type=int, default=None, help='(read from the checkpoint)')
    add('--n_embd', type=int, default=None, help='(read from the checkpoint)')
    options.add_flag(parser, '--use_ImageFolder', 'accepted: folders are searched recursively anyway')
    inputs.add_options(parser)
    options.add_flag(parser, '--distributed', 'one process of several started by msrun, which share the images')
    args = parser.parse_args(argv)
    positive(args, 'condition_num', 'n_layer', 'n_embd')
    check_sampling(args)
    return args


def add_sampling(parser: Any) -> None:
    """The options of stage 1's model and sampling."""
    add = parser.add_argument
    add('--top_k', type=int, default=None, help=f"draw among so many likeliest colours (default: the checkpoint's, "
                                                f'else {TOP_K})')
    add('--temperature', type=float, default=None, help=f"flatter above 1, sharper below (default: the checkpoint's, "
                                                        f'else {TEMPERATURE})')
    add('--prior_size', type=int, default=None, help='(read from the checkpoint)')
    add('--n_head', type=int, default=None, help='(read from the checkpoint where it is recorded, else 8)')
    options.add_flag(parser, '--GELU_2', '(read from the checkpoint where it is recorded)', default=None)
    add('--kmeans', default='', help="palette of a checkpoint that doesn't carry its own (published ones)")
    add('--seed', type=int, default=0,
        help='the noise of a sample depends on it, the picture and the sample number alone')
    add('--sample_steps', type=int, default=0,
        help=f'forward passes an image; 0: one a missing token, as published; {RECOMMENDED_STEPS} is recommended')
    add('--schedule', choices=sampling.SCHEDULES, default=None,
        help='which tokens a pass fills (default: raster with --sample_steps 0, else halton)')
    add('--step_schedule', choices=sampling.STEP_SCHEDULES, default='cosine', help='how many tokens a pass fills')
    add('--resample', type=float, default=0.0,
        help='share of the tokens that is filled a second time: the least likely ones, in this share of further passes')
    add('--reuse_window', type=int, default=0,
        help='after the first pass compute only square windows of this side around the tokens filled last, and reuse '
             'keys and values of all others: 3 is nearly exact and many times faster; 0 = compute everything'
             ' (an odd number; in float32, with the schedules raster and halton)')
    add('--refresh', type=int, default=64,
        help='with --reuse_window: compute everything every so many passes; 0 = only in the first')
    options.add_flag(parser, '--deterministic',
                     'the mean colour that the model expects, from a single pass, instead of a sample; top_k, '
                     'temperature, steps and schedules have no effect then')
    add('--batch_size', type=int, default=1, help='images x samples in one forward pass (on a CPU one after '
                                                       'another, which is as fast); changes no result')
    add('--amp_level', choices=('O0', 'O2', 'O3'), default='O0', help='O2, O3: float16 on a GPU')


def check_sampling(args: Any) -> None:
    """Raises a UserError for values out of range."""
    positive(args, 'top_k', 'prior_size', 'n_head', 'batch_size')
    positive(args, 'sample_steps', 'seed', 'reuse_window', 'refresh', least=0)
    require(0 <= args.resample <= 1, f'--resample {args.resample}: must be from 0 to 1')
    require(args.resample == 0 or not args.deterministic, '--resample: is for samples, not for --deterministic')
    require(args.reuse_window == 0 or args.reuse_window % 2 == 1, f'--reuse_window {args.reuse_window}: must be odd, '
                                                                   'the token filled last is its middle')
    require(args.reuse_window == 0 or args.amp_level == 'O0', '--reuse_window: works in float32 alone; use '
                                                              '--amp_level O0')
    require(args.reuse_window == 0 or (args.schedule != 'confidence' and not args.deterministic),
            '--reuse_window: is for the schedules raster and halton; confidence and --deterministic look everywhere')
    require(args.temperature is None or args.temperature > 0, f'--temperature {args.temperature}: must be above 0')


def settings_of(args: Any, found: checkpoint.Checkpoint) -> sampling.Settings:
    """Sampling settings from the options, else the checkpoint's record, else the published ones.

    What doesn't matter is the default's, so that equal priors have equal settings.
    """
    if args.deterministic:
        return sampling.Settings(deterministic=True)
    own = found.metadata.get('sampling', {})
    return sampling.Settings(
        top_k=args.top_k or own.get('top_k', TOP_K),
        temperature=args.temperature or own.get('temperature', TEMPERATURE),
        sample_steps=args.sample_steps, schedule=args.schedule or ('halton' if args.sample_steps else 'raster'),
        step_schedule=args.step_schedule if args.sample_steps else sampling.Settings.step_schedule,
        resample=args.resample, reuse_window=args.reuse_window, refresh=args.refresh if args.reuse_window else 0)


def palette_of(found: checkpoint.Checkpoint, kmeans: str, vocab_size: int) -> np.ndarray:
    """The colours that the checkpoint's tokens mean: its own, else --kmeans.

    Raises:
        UserError: neither is there, they differ, or they don't fit the vocabulary.
    """
    given = codebook.load(kmeans) if kmeans else None
    if found.palette is not None and given is not None:
        require(codebook.digest(given) == codebook.digest(found.palette),
                f'--kmeans {kmeans}: not the palette that {found.path} carries; leave the flag out')
    colours = found.palette if found.palette is not None else given
    if colours is None:
        raise UserError(f'--kmeans: {found.path} carries no palette; give the kmeans_centers.npy that it was trained '
                        f'with (another one gives wrong colours)')
    require(len(colours) == vocab_size, f'{found.path}: has {vocab_size} tokens, its palette {len(colours)} colours')
    return colours


class Job(NamedTuple):
    """What is to be sampled.

    Attributes:
        colours: (V, 3) float32, the palette's centres.
        folder: where the priors go; samples: of each picture.
    """

    found: checkpoint.Checkpoint
    shape: config.Architecture
    colours: np.ndarray
    folder: Path
    samples: int
    view: inputs.View
    work: inputs.Inputs


def check(args: Any) -> Job:
    """Everything that can be wrong with options and files, before MindSpore is imported."""
    found = checkpoint.read(args.ckpt_path, '--ckpt_path').expect('Transformer', '--ckpt_path')
    flags = {name: getattr(args, name) for name in ('n_layer', 'n_embd', 'n_head', 'prior_size', 'GELU_2')}
    shape = config.of(found, flags)
    checkpoint.check(found, shape.shapes())
    colours = palette_of(found, args.kmeans, shape.vocab_size)
    folder = Path(args.save_url)
    view = inputs.View.from_args(args)
    work = inputs.find(args.image_url, '--image_url', args.mask_url, '--mask_url', args.max_pixels, folder,
                       *([args.skip] if args.skip else []), allow_truncated=args.allow_truncated)
    work.refuse_to_overwrite((prior_path(folder, k, work.id(i)) for i in range(len(work))
                              for k in range(1, args.condition_num + 1)), f'--save_url {args.save_url}')
    files.output_folder(folder, '--save_url')
    return Job(found, shape, colours, folder, args.condition_num, view, work)


def prior_path(folder: Path, condition: int, picture: str) -> Path:
    """Where sample ``condition`` (from 1) of a picture goes."""
    return folder / f'condition_{condition}' / f'{picture}.png'


def prepare(work: inputs.Inputs, i: int, view: inputs.View, prior_size: int,
            quantise: codebook.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """tokens (T,) int32 and hole (T,) bool of a picture."""
    picture, grey = work.read(i, view)
    if view.mask_mode == 'published':
        small, hole = published_view(picture.rgb, grey, view.geometry, prior_size)
    else:
        if geometry.reaches_out(grey, *picture.rgb.shape[:2], view.geometry):
            work.say(f'{work.pictures.path(i)}: the part of the hole outside the middle square is not filled; use '
                     f'--geometry resize (run.py: or --keep_size)')
        frame, full = geometry.hole_in(grey, *picture.rgb.shape[:2], view.geometry)
        small, hole = geometry.sealed(geometry.cut(picture.rgb, frame), full, prior_size, Image.BILINEAR)
    require(hole.any(), f'{work.mask_path(i)}: nothing to fill in the part of {work.pictures.path(i)} that is '
                        f'completed; use --geometry resize (run.py: or --keep_size)')
    return quantise(small).reshape(-1), hole.reshape(-1)


def write_prior(path: Path, tokens: np.ndarray, sample: sampling.Sample, hole: np.ndarray, colours: np.ndarray,
                prior_size: int) -> None:
    """A prior as PNG in palette colours (in expected colours in the hole, when the sample has them)."""
    pixels = colours[sample.tokens]
    if sample.expected is not None:
        pixels = np.where(hole[:, None], np.rint(sample.expected), pixels).astype(np.uint8)
    images.write_png(path, pixels.reshape(prior_size, prior_size, 3), text={LIKELIHOOD: repr(sample.log_likelihood)})


def main(argv: list[str]) -> int:
    args = arguments(argv)
    job = check(args)
    settings = settings_of(args, job.found)
    record = manifest.Manifest(job.folder, manifest.STAGE_1, {
        'checkpoint': job.found.digest(), 'palette': codebook.digest(job.colours),
        'seed': 0 if settings.deterministic else args.seed, **vars(job.view), **vars(settings),
        'prior_size': job.shape.prior_size, 'n_head': job.shape.n_head, 'GELU_2': job.shape.GELU_2,
        'amp_level': args.amp_level}, lambda: next(job.folder.glob('condition_*/**/*.png'), None), args.overwrite)
    args.device_target = runtime.choose(args.device_target, args.device_id, args.distributed)
    rank, ranks = parallel.rank() if args.distributed else (0, 1)
    outcome = inputs.Outcome(job.work.ids())
    if rank == 0:
        for place in (job.folder, *(p for p in job.folder.glob('condition_*') if p.is_dir())):
            files.sweep(place, below=place != job.folder)
    todo = plan(job, record, args.overwrite, rank, ranks)
    if rank == 0:
        record.write()
    try:
        if todo or args.distributed:
            runtime.start(args.device_target, args.device_id, args.distributed)
            quantise, at_once = codebook.Tokenizer(job.colours), runtime.rows_at_once(args.batch_size)
            sampler = sampler_of(job, settings, quantise, at_once, args.amp_level)
            sample(job, sampler, quantise, todo, args.seed, at_once, outcome)
    finally:
        parallel.wait_for_all(args.distributed)
        if rank == 0:
            for i in range(len(job.work)):
                collect_likelihoods(record, job.folder, job.work.id(i), job.samples)
            record.write()
    status = outcome.status()
    if status != 2 and rank == 0:
        done = sum(all(os.path.isfile(prior_path(job.folder, k, job.work.id(i))) for k in range(1, job.samples + 1))
                   for i in range(len(job.work)))
        print(f'{done} pictures with {job.samples} prior(s) each in {job.folder}')
    parallel.wait_for_all(args.distributed)  # msrun ends the others when one has left
    return status


def plan(job: Job, record: manifest.Manifest, overwrite: bool, rank: int, ranks: int) -> list[tuple[int, int]]:
    """(picture, sample from 1) still to be made by this rank; results of changed pictures are removed."""
    todo = []
    for i in range(len(job.work)):
        picture, sources = job.work.id(i), job.work.sources(i)
        keep = not overwrite and record.unchanged(picture, sources)
        if not keep and rank == 0:
            for old in job.folder.glob('condition_*'):
                files.remove(old / f'{picture}.png')
        record.set(picture, sources)
        if i % ranks == rank:
            todo += [(i, k) for k in range(1, job.samples + 1)
                     if not (keep and os.path.isfile(prior_path(job.folder, k, picture)))]
    kept = len(job.work) * job.samples - len(todo)
    if kept and ranks == 1:
        log(f'{kept} finished priors are kept')
    return todo


def sampler_of(job: Job, settings: sampling.Settings, quantise: codebook.Tokenizer, at_once: int,
               amp_level: str) -> sampling.Sampler:
    """The checkpoint's network, loaded, behind a sampler of ``at_once`` rows a pass; imports MindSpore."""
    from Transformer.models import predict
    model = predict.Predictor(predict.load(job.found, job.shape), at_once, job.shape.prior_size ** 2, amp_level)
    return sampling.Sampler(model, job.shape.prior_size, settings, quantise.codebook_rgb, model.after)


def sample(job: Job, sampler: sampling.Sampler, quantise: codebook.Tokenizer, todo: list[tuple[int, int]], seed: int,
           at_once: int, outcome: inputs.Outcome) -> None:
    """Sample and write the priors that ``todo`` names, ``at_once`` of them in a pass; failures go to ``outcome``."""
    writes = parallel.is_writer()
    with tqdm(total=len(todo), desc='priors', unit='prior', disable=None if writes else True) as bar, \
            tqdm(desc='tokens', unit='pass', leave=False, disable=None if writes else True) as inner:

        def on_pass(done: int, total: int) -> None:
            inner.total, inner.n = total, done
            inner.refresh()

        for batch in _batches(job, quantise, todo, at_once, outcome, bar):
            places, tokens, holes = zip(*batch, strict=True)
            rngs = [sampling.generator_of(seed, job.work.id(i), k) for i, k in places]
            samples = sampler(np.stack(tokens), np.stack(holes), rngs, on_pass)
            for (i, k), row, hole, one in zip(places, tokens, holes, samples, strict=True):
                path = prior_path(job.folder, k, job.work.id(i))
                try:
                    write_prior(path, row, one, hole, quantise.codebook_rgb, job.shape.prior_size)
                except OSError as error:
                    outcome.fail(job.work.id(i), not_written(path, error))
                bar.update()


def _batches(job: Job, quantise: codebook.Tokenizer, todo: list[tuple[int, int]], batch_size: int,
             outcome: inputs.Outcome, bar: tqdm) -> Iterator[list]:
    """Lists of up to ``batch_size`` ((picture, sample), tokens, hole); pictures are read once, when they are due."""
    batch, last, prepared = [], None, None
    for i, k in todo:
        if i != last:
            try:
                last, prepared = i, prepare(job.work, i, job.view, job.shape.prior_size, quantise)
            except UserError as error:
                last, prepared = i, None
                outcome.fail(job.work.id(i), error)
        if prepared is None:
            bar.update()
            continue
        batch.append(((i, k), *prepared))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def collect_likelihoods(record: manifest.Manifest, folder: Path, picture: str, condition_num: int) -> None:
    """Put the log-likelihoods that the prior files carry into the manifest."""
    found = {}
    for k in range(1, condition_num + 1):
        path = prior_path(folder, k, picture)
        if os.path.isfile(path) and (text := images.png_text(path).get(LIKELIHOOD)) is not None:
            found[str(k)] = float(text)
    entry = record.pictures[picture]
    entry[LIKELIHOOD] = {**entry.get(LIKELIHOOD, {}), **found}


if __name__ == '__main__':
    sys.exit(run(main))
