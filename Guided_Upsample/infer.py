"""Stage 2: paint the holes of pictures at 256 x 256, guided by stage 1's priors, and score the results.

``python Guided_Upsample/infer.py --ckpt_path ckpts_ICT/demo/InpaintingModel_gen.ckpt --input photos --mask masks
--prior priors --save_path results`` writes ``results/<id>_0.png`` ..., ``metrics.csv``, ``results.jsonl``
and ``results.json``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from ict.device import runtime
from ict.errors import UserError, require
from ict.options import Given, positive
from ict.runs import inputs, manifest, metrics, report, scores
from ict.runs.config import ComputeConfig, RunConfig, add_options
from ict.runs.scores import Key, Scores
from ict.runs.stage import Part, Result, Stage, Task, frame_names

TEST = 2
TABLES = {'metrics.csv': 'id,result,', 'metrics_by_hole.csv': 'hole,results,'}  # and how they begin
COMPARISON = 'comparison.png'
_COMPARISON_ROWS = 12


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
    add_options(parser)
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
class InferConfig(RunConfig):
    """A run of stage 2."""

    prior: Given
    painting: PaintingFlags


# ---- the model and what it makes of a picture


@dataclass(frozen=True)
class Model:
    """A checked checkpoint; nothing of MindSpore is loaded yet."""

    ckpt: checkpoint.Checkpoint
    config: GeneratorConfig

    @classmethod
    def from_checkpoint(cls, given: Given, padding: str | None) -> Model:
        """Read a checkpoint's header, from a file or a folder; a UserError where it is none, or of other padding."""
        path = Path(given.value)
        if os.path.isdir(path):
            found = checkpoint.saved_in(path, ('InpaintingModel_gen',))
            if found is None:
                raise UserError(f'{given}: the folder holds no InpaintingModel_gen.ckpt')
            [path] = found
        ckpt = checkpoint.read(path, given.option).expect('Generator', given.option)
        return cls(ckpt, GeneratorConfig.from_checkpoint(ckpt, {'padding': padding}))

    def load(self, batch_size: int, amp_level: str) -> Any:
        """The generator with its weights; imports MindSpore."""
        from Guided_Upsample.models.inpaint import Inpainter
        return Inpainter.from_checkpoint(self.ckpt, self.config, batch_size, amp_level)


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


def refuse_incomplete(path: Path | str, grey: np.ndarray, size: tuple[int, int], geometry_name: str,
                      frames: Sequence[Frame], keeps_size: bool) -> None:
    """Raises a UserError where ``frames`` leave out a part of the hole that is kept, or are several small pictures.

    Args:
        size: (height, width) of the picture in the file ``path``.
    """
    require(not (keeps_size and geometry.reaches_out(grey, *size, geometry_name)),
            f'{path}: the hole reaches out of the {geometry_name} frame; with --keep_size use --geometry resize or '
            f'hole')
    require(len(frames) == 1 or keeps_size, f'{path}: has {len(frames)} holes far apart, each with a frame of its '
                                            f'own; add --keep_size')


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


@dataclass(frozen=True)
class Priors:
    """What stage 1 has made.

    Attributes:
        folders: condition_1, ...: one for each result of a picture; none before stage 1 has run.
        manifest: stage 1's, if there is one.
        lines: what stage 1 has noted of each result.
    """

    folders: Sequence[Path] = ()
    manifest: dict[str, Any] | None = None
    lines: dict[Key, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def find(cls, given: Given, n_results: Given) -> Priors:
        """What is in stage 1's folder; a UserError where that are not priors for ``n_results``."""
        require(os.path.isdir(given.value), f"{given}: no such folder; give stage 1's --save_url")
        folders = pairs.condition_folders(*given)
        require(len(folders) >= n_results.value, f'{n_results}: {given} holds only {len(folders)}')
        return cls(folders[:n_results.value], manifest.read(given.value, manifest.STAGE_1),
                   Scores(Path(given.value), scores.STAGE_1).lines)

    def paths(self, picture: str, k: int, n_frames: int) -> list[Path]:
        """The prior of each frame."""
        return [self.folders[k] / f'{name}.png' for name in frame_names(picture, n_frames)]


class PaintingStage(Stage):
    """Stage 2 as a run over files: pictures, masks and priors in, results and scores out."""

    noun, scores_name = 'result', scores.STAGE_2

    def __init__(self, config: InferConfig, model: Model, pictures: inputs.Inputs, view: inputs.View,
                 made_by: manifest.Manifest, priors: Priors) -> None:
        super().__init__(config, pictures, view, made_by, keeps=not config.painting.test_only)
        self.flags, self.model, self.priors = config.painting, model, priors

    def sources(self, task: Task, digests: dict[str, str]) -> dict[str, str]:
        """Picture, mask and prior; a UserError where stage 1 has made the prior of another picture or mask."""
        picture, path = self.pictures.id(task.i), self.pictures.pictures.path(task.i)
        if self.priors.manifest is not None:
            entry = self.priors.manifest['pictures'].get(picture)
            require(entry is not None, f'{path}: stage 1 has made no prior of it')
            other = manifest.other_source(entry, digests)
            require(other is None, f'{path}: its prior was made from another {other}; run stage 1 again')
        paths = self.priors.paths(picture, task.k, self.priors.lines.get((picture, task.k), {}).get('frames', 1))
        return {**digests, 'prior_digest': ' '.join(map(manifest.file_digest, paths))}

    def paths(self, task: Task, n_frames: int = 1) -> list[Path]:
        """<id>_<k>.png, or what else --save_format asks for."""
        ending = encode.FORMAT_ENDINGS[self.flags.save_format]
        return [self.output_dir / f'{self.pictures.id(task.i)}_{task.k}{ending}']

    def all_paths(self) -> Iterator[Path]:
        yield from super().all_paths()
        yield from (self.output_dir / name for name in TABLES)
        if self.flags.visualize:
            yield self.output_dir / COMPARISON

    def decode(self, i: int) -> list[Frame]:
        """The picture's frames, still without priors."""
        picture, grey = self.pictures.read(i, self.view)
        path, size = self.pictures.pictures.path(i), geometry.size_of(picture.rgb)
        keeps_size = self.flags.keep_size
        if keeps_size:
            encode.require_fitting(*size, self.flags.save_format)
        frames = frames_of(picture.rgb, grey, self.view, self.flags.image_size)
        refuse_incomplete(path, grey, size, self.view.geometry, frames, keeps_size)
        return [frame._replace(picture=picture) for frame in frames]

    def read(self, task: Task) -> list[Frame]:
        """The picture's frames with the priors of this result."""
        frames = super().read(task)
        paths = self.priors.paths(self.pictures.id(task.i), task.k, len(frames))
        return [frame._replace(prior=read_prior(path, self.flags)) for frame, path in zip(frames, paths, strict=True)]

    def load(self, batch_size: int) -> None:
        self.inpainter = self.model.load(batch_size, self.config.compute.amp_level)

    def compute(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Painted pictures (S, S, 3) float32 in [0, 1], everywhere."""
        stacked = [np.stack([getattr(part.frame, name) for part in parts]) for name in ('image', 'prior', 'hole')]
        return list(self.inpainter.everywhere(*stacked))

    def result(self, task: Task, frames: Sequence[Frame], painted: Sequence[np.ndarray]) -> Result:
        """The result file and its scores, which are not stored in it: its bytes depend on nothing under the mask."""
        result = small_result(frames, painted)
        original, hole = (np.concatenate([getattr(frame, name) for frame in frames]) for name in ('original', 'hole'))
        scores = {'hole': float(hole.mean()), **metrics.all_of(result, original / np.float32(255), hole)}
        [path] = self.paths(task)
        picture = frames[0].picture
        assert picture is not None  # ``decode`` sets it
        pixels = composed(picture.native, frames, painted) if self.flags.keep_size else metrics.truncated(result)
        for lost in encode.losses(pixels, self.flags.save_format, picture.icc_profile, picture.exif):
            self.pictures.tell(f'{path}: {lost}')
        return Result(scores, {path: partial(encode.encode, pixels, self.flags.save_format, picture.icc_profile,
                                             picture.exif)})

    def report(self) -> None:
        """metrics.csv, metrics_by_hole.csv, the published console line and the comparison, of new and kept results."""
        rows = []
        for task, line in self.finished():
            picture = self.pictures.id(task.i)
            rows.append({'id': picture, 'result': task.k, **{name: line[name] for name in ('hole', *metrics.NAMES)},
                         'log_likelihood': self.priors.lines.get((picture, task.k), {}).get('log_likelihood', '')})
        if rows:
            write_metrics(self.output_dir, rows)
            if self.pictures.from_alpha:
                print('the scores compare with white, not with an original: the holes are transparent')
        if self.flags.visualize:
            self.compare()

    def compare(self) -> None:
        """The comparison picture of the first pictures whose results are all there."""
        size = self.flags.image_size
        rows: list[list[np.ndarray]] = []
        for i in range(len(self.pictures)):
            if len(rows) == _COMPARISON_ROWS:
                break
            if self.pictures.id(i) in self.outcome.failures:
                continue
            try:
                frames = self.decode(i)
                results = [images.load_rgb(self.paths(Task(i, k))[0], self.config.view.max_pixels)
                           for k in range(self.n_results)]
            except UserError:  # it failed on another rank
                continue
            for frame in frames[:_COMPARISON_ROWS - len(rows)]:
                box = frame.box if self.flags.keep_size else None
                shown = [one if box is None else images.bicubic(geometry.cut(one, box), size, size) for one in results]
                rows.append([frame.original, np.where(frame.hole[..., None], np.uint8(255), frame.original), *shown])
        if rows:
            titles = ['original', 'masked', *('completed' if self.n_results == 1 else f'completed {k + 1}'
                                              for k in range(self.n_results))]
            encode.write(self.output_dir / COMPARISON, report.sheet(rows, titles))
            print(f'comparison: {self.output_dir / COMPARISON}')


def write_metrics(output_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.csv, metrics_by_hole.csv and the published console line."""
    for name, table in zip(TABLES, (rows, report.means_by_hole(rows)), strict=True):
        report.write_csv(output_dir / name, table)
    means = metrics.means(rows)
    print(f'PSNR: {means["psnr"]:.6f}, MAE: {means["mae"]:.9f}')
    print(f'SSIM: {means["ssim"]:.6f}, L1 in the hole: {means["l1_hole"]:.3f} levels, {len(rows)} results in '
          f'{output_dir}')
    if n_identical := metrics.n_identical(rows):
        print(f'{n_identical} of {len(rows)} results equal their originals and are left out of the mean PSNR')


def read_prior(path: Path, flags: PaintingFlags) -> np.ndarray:
    """A prior enlarged to (S, S, 3) uint8; a UserError where it is missing, unreadable or not square."""
    require(os.path.isfile(path), f'{path}: no such prior; run stage 1 on this picture')
    small = images.load_rgb(path)
    height, width = geometry.size_of(small)
    if height != width or (flags.prior_size and height != flags.prior_size):
        wanted = f'{flags.prior_size} x {flags.prior_size}' if flags.prior_size else 'square'
        raise UserError(f'{path}: a prior is {wanted}; this one is {width} x {height}')
    return images.bicubic(small, flags.image_size, flags.image_size)


def prepare(config: InferConfig, with_priors: bool = True) -> PaintingStage:
    """Everything that can be wrong with options and files, before MindSpore is imported.

    Args:
        with_priors: False before stage 1 has made them; then nothing is written and their folder is not read.
    """
    output_dir, flags = Path(config.output.value), config.painting
    model = Model.from_checkpoint(config.ckpt, flags.padding)
    priors = Priors.find(config.prior, config.n_results) if with_priors else Priors()
    view = agreed_view(config, priors.manifest)
    pictures = config.find_inputs(*([config.prior.value] if with_priors else []))
    pictures.quiet = priors.manifest is not None  # stage 1 has said what can't be represented
    made_by = manifest.Manifest(output_dir, manifest.STAGE_2, {
        'checkpoint': model.ckpt.digest(), 'padding': model.config.padding, 'image_size': flags.image_size,
        **vars(view), 'keep_size': flags.keep_size, 'save_format': flags.save_format,
        'amp_level': config.compute.amp_level}, config.overwrite)
    stage = PaintingStage(config, model, pictures, view, made_by, priors)
    if stage.keeps:
        stage.refuse_folder((path for k in range(len(priors.folders)) for picture in pictures.ids()
                             for path in priors.paths(picture, k, 1)),
                            [output_dir / COMPARISON] if flags.visualize else ())
    for name, start in TABLES.items() if not config.overwrite else ():
        files.refuse_foreign(output_dir / name, start)
    if with_priors:
        files.output_folder(*config.output)
    return stage


def agreed_view(config: InferConfig, made: dict[str, Any] | None) -> inputs.View:
    """How stage 1 saw the pictures, which stage 2 must do too; a UserError where an option contradicts its manifest."""
    keep_size = config.painting.keep_size
    theirs = made['settings'] if made is not None else {}
    view = inputs.View.from_flags(config.view, theirs.get('mask_mode') or 'sealed',
                                  theirs.get('geometry') or ('resize' if keep_size else 'crop'))
    for key, value in vars(view).items():
        require(theirs.get(key) in (None, value),
                f'--{key} {value} contradicts the priors in {config.prior.value}, made with {key} {theirs.get(key)}; '
                f'make them anew or use the same')
    require(view.mask_mode == 'sealed' or not keep_size, '--keep_size is for --mask_mode sealed')
    return view


def main(argv: list[str]) -> int:
    args = arguments(argv)
    given = partial(Given.from_args, args)
    stage = prepare(InferConfig(
        ckpt=given('ckpt_path'), images=given('input'), masks=given('mask'), output=given('save_path'),
        n_results=given('condition_num'), overwrite=args.overwrite, skip=(),
        view=options.chosen(inputs.ViewFlags, args), compute=options.chosen(ComputeConfig, args), prior=given('prior'),
        painting=options.chosen(PaintingFlags, args)))
    return stage.execute(runtime.choose(args.device_target, args.device_id, args.distributed))


if __name__ == '__main__':
    sys.exit(run(main))
