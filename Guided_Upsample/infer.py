"""Stage 2: paint the holes of pictures at 256 x 256, guided by stage 1's priors, and score the results.

``python Guided_Upsample/infer.py --ckpt_path ckpts_ICT/demo/InpaintingModel_gen.ckpt --input photos --mask masks
--prior priors --save_path results`` writes ``results/<id>_0.png`` ..., ``metrics.csv``, ``scores.jsonl`` and
``results.json``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from Guided_Upsample.datasets import compositing
from Guided_Upsample.datasets.dataset import PAIRED_FILE, published_view
from Guided_Upsample.models.config import PADDINGS, GeneratorConfig
from ict import checkpoint, files, options
from ict.command import run
from ict.data import encode, geometry, images, pairs
from ict.device import parallel, runtime
from ict.errors import UserError, require
from ict.lock import locked
from ict.options import positive
from ict.runs import inputs, manifest, metrics, report
from ict.runs.config import (
    ComputeConfig,
    Given,
    OutputConfig,
    Paths,
    SourceConfig,
    ViewFlags,
    add_compute,
    add_distributed,
)
from ict.runs.plan import Part, Result, Run, Task, sweep
from ict.runs.scores import Scores

TEST = 2
COMPARISON = 'comparison.png'
_COMPARISON_ROWS = 12
NAMES = ('ckpt_path', 'input', 'mask', 'save_path', 'condition_num')  # of ``Paths``


# ---- options


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Guided_Upsample/infer.py', description='Paint holes guided by priors (stage 2).')
    add = parser.add_argument
    add('--ckpt_path', required=True, help='generator checkpoint, or the folder that holds InpaintingModel_gen.ckpt')
    add('--input', required=True, help='images: folder (searched recursively), file, or list of paths')
    add('--mask', required=True, help='masks likewise, white = hole; a single file serves all images; alpha: what is '
                                      'transparent in the images')
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
    add('--seed', type=int, default=0, help='accepted: nothing here is random')
    add_painting(parser)
    inputs.add_options(parser)
    add_compute(parser)
    add_distributed(parser)
    args = parser.parse_args(argv)
    positive(args, 'condition_num', 'prior_size', 'batch_size')
    require(not (args.test_only and args.distributed),
            '--test_only keeps nothing that the ranks could share: leave --distributed out')
    require(args.image_size % 4 == 0 and args.image_size >= 32,
            f'--image_size {args.image_size}: must be a multiple of 4 and at least 32')
    check_painting(args)
    return args


def add_painting(parser: Any) -> None:
    """The options of ``PaintingFlags`` that run.py has too."""
    parser.add_argument('--padding', choices=PADDINGS, default=None,
                        help="for checkpoints that don't record it: reflect for the PyTorch original's "
                             '(default: symmetric)')
    options.add_flag(parser, '--keep_size',
                     "results in the input's size; known pixels are the input's bit for bit, the hole is enlarged and "
                     'joined to them without a seam (scores are those of the small picture)')
    options.add_flag(parser, '--visualize', f'write {COMPARISON}: original | masked | results, of the first '
                                            f'{_COMPARISON_ROWS} pictures')
    options.add_flag(parser, '--test_only', 'metrics only: no result pictures are kept')
    parser.add_argument('--save_format', choices=encode.FORMAT_ENDINGS, default='png',
                        help='of the results: png is lossless; jpeg and webp (quality 95) are smaller')


def check_painting(args: Any) -> None:
    """Raises a UserError for options that exclude each other."""
    require(not (args.test_only and (args.visualize or args.keep_size)),
            '--test_only keeps no pictures: leave --visualize and --keep_size out')


@dataclass(frozen=True)
class PaintingFlags:
    """How results are painted and what is kept of them."""

    padding: str | None = None
    keep_size: bool = False
    visualize: bool = False
    test_only: bool = False
    save_format: str = 'png'
    image_size: int = 256
    prior_size: int | None = None  # that the priors must have, if given


@dataclass(frozen=True)
class InferConfig:
    """Everything that one run of stage 2 is told."""

    ckpt: Given
    source: SourceConfig
    prior: Given
    output: OutputConfig
    painting: PaintingFlags
    compute: ComputeConfig


# ---- the model and what it makes of a picture


@dataclass(frozen=True)
class Model:
    """A checked checkpoint; nothing of MindSpore is loaded yet."""

    ckpt: checkpoint.Checkpoint
    config: GeneratorConfig

    @classmethod
    def from_checkpoint(cls, given: Given, padding: str | None) -> Model:
        """Read a checkpoint's header, from a file or a folder, and compare it with the flag.

        Raises:
            UserError: no generator, or a flag that contradicts it.
        """
        path, option = find_generator(given), given.option
        ckpt = checkpoint.read(path, option).expect('Generator', option)
        return cls(ckpt, GeneratorConfig.from_checkpoint(ckpt, padding))

    def load(self, batch_size: int, amp_level: str) -> Any:
        """The generator with its weights; imports MindSpore."""
        from Guided_Upsample.models.inpaint import Inpainter, load
        return Inpainter(load(self.ckpt, self.config), batch_size, amp_level)


def find_generator(given: Given) -> Path:
    """The checkpoint file itself, or InpaintingModel_gen.ckpt (_best, _latest) in a folder."""
    path = Path(given.value)
    if not os.path.isdir(path):
        return path
    found = checkpoint.saved_in(path, ('InpaintingModel_gen',))
    if found is None:
        raise UserError(f'{given}: the folder holds no InpaintingModel_gen.ckpt')
    return found[0]


class Frame(NamedTuple):
    """What stage 2 sees of a part of a picture, S being the network's side.

    Attributes:
        box, full_hole: the part of the picture and the hole in it at the picture's resolution (sealed only).
        image, hole: (S, S, 3) uint8 and (S, S) bool for the network.
        original: (S, S, 3) uint8, what results are scored against.
        prior: (S, S, 3) uint8, the enlarged prior.
        picture: what the part was cut from.
    """

    box: geometry.Box | None
    full_hole: np.ndarray | None
    image: np.ndarray
    hole: np.ndarray
    original: np.ndarray
    prior: np.ndarray | None = None
    picture: images.Picture | None = None


def frames_of(rgb: np.ndarray, grey: np.ndarray, view: inputs.View, image_size: int) -> list[Frame]:
    """The parts of a picture (H, W, 3) uint8 with mask (h, w) uint8 that are completed, still without priors."""
    if view.mask_mode == 'published':
        image, hole = published_view(rgb, grey, view.geometry, image_size)
        return [Frame(None, None, image, hole, image)]
    return [Frame(box, full_hole, *geometry.scored_view(geometry.cut(rgb, box), full_hole, image_size))
            for box, full_hole in geometry.frames_in(grey, *geometry.size_of(rgb), view.geometry)]


def small_result(frames: Sequence[Frame], painted: Sequence[np.ndarray]) -> np.ndarray:
    """Frames with their known pixels put back, one below the other: (n * S, S, 3) float32 in [0, 1]."""
    return np.concatenate([np.where(frame.hole[..., None], pixels, frame.image / np.float32(255))
                           for frame, pixels in zip(frames, painted, strict=True)])


def composed(native: np.ndarray, frames: Sequence[Frame], painted: Sequence[np.ndarray]) -> np.ndarray:
    """The picture at its own size, channels and depth with its hole filled; known pixels are its own, bit for bit."""
    for frame, pixels in zip(frames, painted, strict=True):
        assert frame.box is not None and frame.full_hole is not None  # ``keep_size`` is for sealed ones
        completed = compositing.blended(pixels, frame.image / np.float32(255), frame.hole)
        native = compositing.at_own_size(native, frame.box, frame.full_hole, completed)
    return native


# ---- a run over files


class PaintingStage:
    """Stage 2 as the steps of a ``Run``: pictures, masks and priors in, results and scores out."""

    def __init__(self, job: Job) -> None:
        self.pictures, self.view, self.output_dir = job.pictures, job.view, job.output_dir
        self.flags, self.conditions, self.made, self.priors = job.config.painting, job.conditions, job.made, job.priors
        self.inpainter: Any = None
        self._last: tuple[int, list[Frame]] | None = None

    def sources(self, task: Task, digests: dict[str, str]) -> dict[str, str]:
        """Picture, mask and prior.

        Raises:
            UserError: stage 1's manifest says that the prior was made of another picture or mask.
        """
        picture = self.pictures.id(task.i)
        if self.made is not None:
            entry = self.made['pictures'].get(picture)
            require(entry is not None, f'{self.pictures.pictures.path(task.i)}: stage 1 has made no prior of it')
            other = manifest.other_source(entry, digests)
            require(other is None, f'{self.pictures.pictures.path(task.i)}: its prior was made from another {other}; '
                                   f'run stage 1 again')
        n_frames = self.priors.lines.get((picture, task.k), {}).get('frames', 1)
        paths = self.prior_paths(task, n_frames)
        return {**digests, 'prior_digest': ' '.join(map(manifest.file_digest, paths))}

    def prior_paths(self, task: Task, n_frames: int) -> list[Path]:
        """Stage 1's files for a result."""
        picture = self.pictures.id(task.i)
        names = [picture] if n_frames == 1 else [f'{picture}@{number + 1}' for number in range(n_frames)]
        return [self.conditions[task.k] / f'{name}.png' for name in names]

    def paths(self, task: Task, n_frames: int = 1) -> list[Path]:
        """<id>_<k>.png, or what else --save_format asks for."""
        return [result_path(self.output_dir, self.pictures.id(task.i), task.k, self.flags.save_format)]

    def read(self, task: Task) -> list[Frame]:
        """The picture's frames, decoded once for all its results, with the priors of this one."""
        if self._last is None or self._last[0] != task.i:
            self._last = None
            self._last = task.i, self.decoded(task.i)
        frames = self._last[1]
        return [frame._replace(prior=read_prior(path, self.flags)) for frame, path in
                zip(frames, self.prior_paths(task, len(frames)), strict=True)]

    def decoded(self, i: int) -> list[Frame]:
        """The picture's frames, still without priors."""
        picture, grey = self.pictures.read(i, self.view)
        path, size = self.pictures.pictures.path(i), geometry.size_of(picture.rgb)
        keeps_size = self.flags.keep_size
        require(not (keeps_size and geometry.reaches_out(grey, *size, self.view.geometry)),
                f'{path}: the hole reaches out of the {self.view.geometry} frame; with --keep_size use --geometry '
                f'resize or hole')
        frames = frames_of(picture.rgb, grey, self.view, self.flags.image_size)
        require(len(frames) == 1 or keeps_size, f'{path}: has {len(frames)} holes far apart, each with a frame of its '
                                                f'own; add --keep_size')
        return [frame._replace(picture=picture) for frame in frames]

    def compute(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Painted pictures (S, S, 3) float32 in [0, 1], everywhere."""
        stacked = [np.stack([getattr(part.frame, name) for part in parts]) for name in ('image', 'prior', 'hole')]
        return list(self.inpainter.everywhere(*stacked))

    def result(self, task: Task, frames: Sequence[Frame], painted: Sequence[np.ndarray]) -> Result:
        """The result file and its scores; the bytes depend on nothing under the mask, so the scores are elsewhere."""
        result = small_result(frames, painted)
        original, hole = (np.concatenate([getattr(frame, name) for frame in frames]) for name in ('original', 'hole'))
        scores = {'hole': float(hole.mean()), **metrics.all_of(result, original / np.float32(255), hole)}
        [path] = self.paths(task)
        picture = frames[0].picture
        assert picture is not None  # ``decoded`` sets it
        pixels = composed(picture.native, frames, painted) if self.flags.keep_size else eight_bit(result)
        for lost in encode.losses(pixels, self.flags.save_format, picture.exif):
            self.pictures.say(f'{path}: {lost}')
        content = encode.encode(pixels, self.flags.save_format, picture.icc_profile, picture.exif)
        return Result(scores, {path: content})


def eight_bit(result: np.ndarray) -> np.ndarray:
    """Values in [0, 1] times 255, truncated as published."""
    return (result * 255).astype(np.uint8)


def enlarged(prior: np.ndarray, image_size: int) -> np.ndarray:
    """A prior (P, P, 3) uint8 at the network's size, bicubic as published."""
    return images.bicubic(prior, image_size, image_size)


def read_prior(path: Path, flags: PaintingFlags) -> np.ndarray:
    """A prior enlarged to (S, S, 3) uint8, bicubic as published.

    Raises:
        UserError: missing, unreadable or not square.
    """
    require(os.path.isfile(path), f'{path}: no such prior; run stage 1 on this picture')
    small = images.load_rgb(path)
    if small.shape[0] != small.shape[1] or (flags.prior_size and small.shape[0] != flags.prior_size):
        wanted = f'{flags.prior_size} x {flags.prior_size}' if flags.prior_size else 'square'
        raise UserError(f'{path}: a prior is {wanted}; this one is {small.shape[1]} x {small.shape[0]}')
    return enlarged(small, flags.image_size)


def result_path(output_dir: Path, picture: str, k: int, save_format: str) -> Path:
    """Where result ``k`` (from 0) of a picture goes."""
    return output_dir / f'{picture}_{k}{encode.FORMAT_ENDINGS[save_format]}'


@dataclass(frozen=True)
class Job:
    """A checked configuration.

    Attributes:
        conditions: where the priors are, a folder for each result of a picture; empty while there are none yet.
        made: stage 1's manifest, if there is one; priors: its scores.
    """

    config: InferConfig
    model: Model
    pictures: inputs.Inputs
    view: inputs.View
    output_dir: Path
    conditions: list[Path]
    made: dict[str, Any] | None
    priors: Scores
    manifest: manifest.Manifest


def prepare(config: InferConfig, with_priors: bool = True) -> Job:
    """Everything that can be wrong with options and files, before MindSpore is imported.

    Args:
        with_priors: False before stage 1 has made them; then nothing is written and their folder is not read.

    Raises:
        UserError: see above; nothing has been written then but the output folder.
    """
    model = Model.from_checkpoint(config.ckpt, config.painting.padding)
    output_dir, n_results = Path(config.output.folder.value), config.output.n_results.value
    conditions, made = [], None
    if with_priors:
        require(os.path.isdir(config.prior.value), f"{config.prior}: no such folder; give stage 1's --save_url")
        conditions = pairs.condition_folders(*config.prior)[:n_results]
        require(len(conditions) == n_results, f'{config.output.n_results}: {config.prior} holds only '
                                              f'{len(conditions)}')
        made = manifest.read(config.prior.value, manifest.STAGE_1)
    view = agreed_view(config, made)
    pictures = config.source.find(str(output_dir), *([config.prior.value] if with_priors else []))
    pictures.quiet = made is not None  # stage 1 has said what can't be represented
    keeps = not config.painting.test_only
    if keeps:
        pictures.refuse_to_overwrite(outputs(output_dir, pictures, config), str(config.output.folder),
                                     (place / f'{pictures.id(i)}.png' for place in conditions
                                      for i in range(len(pictures))))
    made_by = manifest.Manifest(output_dir, manifest.STAGE_2, {
        'checkpoint': model.ckpt.digest(), 'padding': model.config.padding, 'image_size': config.painting.image_size,
        **vars(view), 'keep_size': config.painting.keep_size,
        'save_format': config.painting.save_format, 'amp_level': config.compute.amp_level},
        config.output.overwrite)
    if keeps and not config.output.overwrite:
        made_by.refuse_leftovers(result_path(output_dir, pictures.id(i), 0, config.painting.save_format)
                                 for i in range(len(pictures)))
    if with_priors:
        files.output_folder(output_dir, config.output.folder.option)
    return Job(config, model, pictures, view, output_dir, conditions, made,
               Scores(Path(config.prior.value) if with_priors else None), made_by)


def agreed_view(config: InferConfig, made: dict[str, Any] | None) -> inputs.View:
    """How stage 1 saw the pictures, which stage 2 must do too.

    Raises:
        UserError: an option contradicts stage 1's manifest.
    """
    keep_size = config.painting.keep_size
    theirs = made['settings'] if made is not None else {}
    view = inputs.View.from_args(config.source.view, theirs.get('mask_mode') or 'sealed',
                          theirs.get('geometry') or ('resize' if keep_size else 'crop'))
    for key, value in vars(view).items():
        require(theirs.get(key) in (None, value),
                f'--{key} {value} contradicts the priors in {config.prior.value}, made with {key} {theirs.get(key)}; '
                f'make them anew or use the same')
    require(view.mask_mode == 'sealed' or not keep_size, '--keep_size is for --mask_mode sealed')
    return view


def outputs(output_dir: Path, pictures: inputs.Inputs, config: InferConfig) -> Iterator[Path]:
    """Every picture that may be written."""
    if config.painting.visualize:
        yield output_dir / COMPARISON
    for i in range(len(pictures)):
        for k in range(config.output.n_results.value):
            yield result_path(output_dir, pictures.id(i), k, config.painting.save_format)


def execute(job: Job, device_target: str) -> int:
    """Paint and score what is not finished yet; the exit status."""
    compute, flags, output_dir = job.config.compute, job.config.painting, job.output_dir
    rank, ranks = parallel.rank() if compute.distributed else (0, 1)
    keeps = not flags.test_only
    stage = PaintingStage(job)
    with locked(output_dir, job.config.output.folder.option):
        # plan
        if rank == 0:
            sweep(output_dir, lambda: iter({(output_dir / name).parent for name in job.pictures.ids()}))
        work = Run(job.pictures, stage, job.manifest, Scores(output_dir if keeps else None, rank),
                   job.config.output.n_results.value, keeps, rank, ranks)
        tasks = work.plan(job.config.output.overwrite, 'results')
        if rank == 0 and keeps:
            job.manifest.write()
        # paint
        try:
            if tasks or compute.distributed:
                runtime.start(device_target, compute.device_id, compute.distributed)
                work.require_same_on_all_ranks(job.config.source, job.config.ckpt)
                stage.inpainter = job.model.load(runtime.rows_at_once(compute.batch_size), compute.amp_level)
                with work.bar(tasks, 'result') as bar:
                    work.work(tasks, compute.batch_size, bar)
        finally:
            work.finish(compute.distributed)
            # report
            if rank == 0:
                write_metrics(work, job)
        if rank == 0 and flags.visualize and keeps:
            compare(work, stage)
        status = work.outcome.status()
        parallel.wait_for_all(compute.distributed)  # msrun ends the others when one has left
        return status


def write_metrics(work: Run, job: Job) -> None:
    """metrics.csv, metrics_by_hole.csv and the published console line, of new and kept results."""
    rows = []
    for task, line in work.finished():
        key = job.pictures.id(task.i), task.k
        rows.append({'id': key[0], 'result': task.k, **{name: line[name] for name in ('hole', *metrics.NAMES)},
                     'log_likelihood': job.priors.lines.get(key, {}).get('log_likelihood', '')})
    if not rows:
        return
    report.write_metrics(job.output_dir / 'metrics.csv', job.output_dir / 'metrics_by_hole.csv', rows)
    means = metrics.means(rows)
    print(f'PSNR: {means["psnr"]:.6f}, MAE: {means["mae"]:.9f}')
    print(f'SSIM: {means["ssim"]:.6f}, L1 in the hole: {means["l1_hole"]:.3f} levels, {len(rows)} results in '
          f'{job.output_dir}')
    if n_identical := metrics.n_identical(rows):
        print(f'{n_identical} of {len(rows)} results equal their originals and are left out of the mean PSNR')


def compare(work: Run, stage: PaintingStage) -> None:
    """The comparison picture of the first pictures whose results are all there."""
    rows: list[list[np.ndarray]] = []
    for i in range(len(work.inputs)):
        if len(rows) == _COMPARISON_ROWS:
            break
        if work.inputs.id(i) in work.outcome.failures:
            continue
        try:
            frames = stage.decoded(i)
            results = [images.load_rgb(stage.paths(Task(i, k))[0], work.inputs.max_pixels)
                       for k in range(work.n_results)]
        except UserError:  # it failed on another rank
            continue
        size = stage.flags.image_size
        for frame in frames[:_COMPARISON_ROWS - len(rows)]:
            box = frame.box if stage.flags.keep_size else None
            shown = [one if box is None else images.bicubic(geometry.cut(one, box), size, size) for one in results]
            rows.append([frame.original, np.where(frame.hole[..., None], np.uint8(255), frame.original), *shown])
    if rows:
        titles = ['original', 'masked', *('completed' if work.n_results == 1 else f'completed {k + 1}'
                                          for k in range(work.n_results))]
        images.write_png(stage.output_dir / COMPARISON, report.sheet(rows, titles))
        print(f'comparison: {stage.output_dir / COMPARISON}')


def main(argv: list[str]) -> int:
    args = arguments(argv)
    given = Paths.from_args(args, NAMES)
    job = prepare(InferConfig(
        given.ckpt, SourceConfig(given.images, given.masks, options.chosen(ViewFlags, args)),
        Given(args.prior, '--prior'), OutputConfig(given.output, given.n_results, args.overwrite),
        options.chosen(PaintingFlags, args), options.chosen(ComputeConfig, args)))
    return execute(job, runtime.choose(args.device_target, args.device_id, args.distributed))


if __name__ == '__main__':
    sys.exit(run(main))
