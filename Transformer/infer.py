"""Stage 1: sample appearance priors for the holes of pictures.

``python Transformer/infer.py --ckpt_path ckpts_ICT/demo/Transformer.ckpt --image_url photos --mask_url masks
--save_url priors`` writes ``priors/condition_1/<id>.png`` ..., ``priors/manifest.json`` and ``priors/scores.jsonl``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image
from tqdm import tqdm

from ict import checkpoint, files, options
from ict.command import NOTHING_DONE, run
from ict.data import codebook, geometry, images
from ict.data.codebook import Tokenizer
from ict.device import parallel, runtime
from ict.errors import UserError, require
from ict.lock import locked
from ict.options import positive
from ict.runs import inputs, manifest
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
from Transformer.datasets.dataset import published_view
from Transformer.models import sampling
from Transformer.models.config import GPTConfig
from Transformer.models.sampling import Sample, SamplingConfig

TOP_K, TEMPERATURE = 40, 1.0
RECOMMENDED_STEPS = 16
REUSES = ('none', 'hole', 'window')
NAMES = ('ckpt_path', 'image_url', 'mask_url', 'save_url', 'condition_num')  # of ``Paths``


# ---- options


def arguments(argv: list[str]) -> Any:
    parser = options.Parser(prog='Transformer/infer.py', description='Sample appearance priors (stage 1).')
    add = parser.add_argument
    add('--ckpt_path', required=True, help='transformer checkpoint; it tells the architecture')
    add('--image_url', required=True, help='images: folder (searched recursively), file, or list of paths')
    add('--mask_url', required=True, help='masks likewise, white = hole; a single file serves all images; alpha: what '
                                          'is transparent in the images')
    add('--save_url', default='./', help='where condition_1 ... and manifest.json go')
    add('--skip', default='', help='a further folder that is not searched: where stage 2 puts its results')
    add('--condition_num', type=int, default=1, help='samples an image')
    add_model(parser)
    add_sampling(parser, sample_steps=0)
    add('--n_layer', type=int, default=None, help='(read from the checkpoint)')
    add('--n_embd', type=int, default=None, help='(read from the checkpoint)')
    options.add_flag(parser, '--use_ImageFolder', 'accepted: folders are searched recursively anyway')
    inputs.add_options(parser)
    add_compute(parser)
    add_distributed(parser)
    args = parser.parse_args(argv)
    positive(args, 'condition_num', 'n_layer', 'n_embd')
    check_sampling(args)
    return args


def add_model(parser: Any) -> None:
    """The options of ``ModelFlags`` that run.py has too."""
    add = parser.add_argument
    add('--prior_size', type=int, default=None, help='(read from the checkpoint)')
    add('--n_head', type=int, default=None, help='(read from the checkpoint where it is recorded, else 8)')
    options.add_flag(parser, '--GELU_2', '(read from the checkpoint where it is recorded)', default=None)
    add('--kmeans', default='', help="palette of a checkpoint that doesn't carry its own (published ones)")


def add_sampling(parser: Any, sample_steps: int) -> None:
    """The options of ``SamplingFlags``."""
    add = parser.add_argument
    add('--top_k', type=int, default=None, help=f"draw among so many likeliest colours (default: the checkpoint's, "
                                                f'else {TOP_K})')
    add('--temperature', type=float, default=None, help=f"flatter above 1, sharper below (default: the checkpoint's, "
                                                        f'else {TEMPERATURE})')
    add('--seed', type=int, default=0,
        help='the noise of a sample depends on it, the picture and the sample number alone')
    add('--sample_steps', type=int, default=sample_steps,
        help=f'forward passes an image; 0: one a missing token, as published; {RECOMMENDED_STEPS} is recommended')
    add('--schedule', choices=sampling.SCHEDULES, default=None,
        help='which tokens a pass fills (default: raster with --sample_steps 0, else halton)')
    add('--reuse', choices=REUSES, default=None,
        help='what passes after the first compute: none: everything, as published; hole: missing and newly filled '
             'tokens, with the keys and values of all others kept; window: 3 x 3 tokens around those filled last '
             '(default: none with --sample_steps 0, else hole)')
    options.add_flag(parser, '--deterministic',
                     'the mean colour that the model expects, from a single pass, instead of a sample; top_k, '
                     'temperature, steps and schedule have no effect then')


def check_sampling(args: Any) -> None:
    """Raises a UserError for values out of range."""
    positive(args, 'top_k', 'prior_size', 'n_head', 'batch_size')
    positive(args, 'sample_steps', 'seed', least=0)
    require(args.temperature is None or args.temperature > 0, f'--temperature {args.temperature}: must be above 0')
    require(args.reuse != 'window' or args.schedule != 'confidence', '--reuse window: is for the schedules raster and '
                                                                     'halton; confidence looks everywhere')


@dataclass(frozen=True)
class ModelFlags:
    """Architecture and palette where the user gives them; None or '' where the checkpoint tells."""

    n_layer: int | None = None
    n_embd: int | None = None
    n_head: int | None = None
    prior_size: int | None = None
    GELU_2: bool | None = None
    kmeans: str = ''


@dataclass(frozen=True)
class SamplingFlags:
    """How to sample where the user says so; None: the checkpoint's own, else the default."""

    top_k: int | None = None
    temperature: float | None = None
    sample_steps: int = 0
    schedule: str | None = None
    reuse: str | None = None
    deterministic: bool = False
    seed: int = 0

    def config(self, metadata: dict[str, Any]) -> SamplingConfig:
        """Complete settings. What has no effect is the default's, so that equal priors have equal settings."""
        if self.deterministic:
            return SamplingConfig(deterministic=True)
        own = metadata.get('sampling', {})
        return SamplingConfig(
            top_k=self.top_k or own.get('top_k', TOP_K), temperature=self.temperature or own.get('temperature',
                                                                                                TEMPERATURE),
            sample_steps=self.sample_steps, schedule=self.schedule or ('halton' if self.sample_steps else 'raster'))


@dataclass(frozen=True)
class InferConfig:
    """Everything that one run of stage 1 is told."""

    ckpt: Given
    source: SourceConfig
    output: OutputConfig
    model: ModelFlags
    sampling: SamplingFlags
    compute: ComputeConfig


# ---- the model and what it makes of a picture


@dataclass(frozen=True)
class Model:
    """A checked checkpoint and how it is sampled; nothing of MindSpore is loaded yet."""

    ckpt: checkpoint.Checkpoint
    config: GPTConfig
    tokenizer: Tokenizer
    sampling_config: SamplingConfig
    reuse: str
    seed: int

    @classmethod
    def from_checkpoint(cls, given: Given, flags: ModelFlags, how: SamplingFlags) -> Model:
        """Read a checkpoint's header and compare it with the flags.

        Raises:
            UserError: no transformer, a flag that contradicts it, or no palette.
        """
        path, option = given
        ckpt = checkpoint.read(path, option).expect('Transformer', option)
        architecture = {name: value for name, value in vars(flags).items() if name != 'kmeans'}
        config = GPTConfig.from_checkpoint(ckpt, architecture)
        checkpoint.check(ckpt, config.shapes())
        centres = palette_of(ckpt, flags.kmeans, config.vocab_size)
        reuse = how.reuse or ('hole' if how.sample_steps else 'none')
        return cls(ckpt, config, Tokenizer(centres), how.config(ckpt.metadata),
                   'none' if how.deterministic else reuse, 0 if how.deterministic else how.seed)

    def settings(self) -> dict[str, Any]:
        """What the priors depend on, for the manifest."""
        return {'checkpoint': self.ckpt.digest(), 'palette': codebook.digest(self.tokenizer.centres),
                'seed': self.seed, 'reuse': self.reuse, **vars(self.sampling_config),
                'prior_size': self.config.prior_size, 'n_head': self.config.n_head, 'GELU_2': self.config.GELU_2}

    def predictor(self, batch_size: int, amp_level: str) -> Any:
        """The network with its weights; imports MindSpore."""
        from Transformer.models.predict import Predictor
        return Predictor.from_checkpoint(self.ckpt, self.config, batch_size, self.reuse, amp_level)

    def sampler(self, predictor: Any) -> sampling.Sampler:
        """How priors are drawn from a predictor."""
        return sampling.Sampler(predictor.logits_at, self.config.prior_size, self.sampling_config,
                                self.tokenizer.codebook_rgb)

    def noise(self, name: str, k: int) -> np.random.Generator:
        """The random generator of sample ``k`` (from 0) of a picture, or of one frame of it."""
        return sampling.noise_generator(self.seed, name, k + 1)

    def prior(self, frame: Frame, sample: Sample) -> np.ndarray:
        """A prior (P, P, 3) uint8 in palette colours; in the hole in expected colours where the sample has them."""
        pixels = self.tokenizer.codebook_rgb[sample.tokens]  # (T, 3)
        if sample.expected is not None:
            pixels = np.where(frame.hole[:, None], np.rint(sample.expected), pixels).astype(np.uint8)
        return pixels.reshape(self.config.prior_size, self.config.prior_size, 3)


class Frame(NamedTuple):
    """What stage 1 sees of a part of a picture: tokens (T,) int32, hole (T,) bool."""

    tokens: np.ndarray
    hole: np.ndarray


def palette_of(ckpt: checkpoint.Checkpoint, kmeans: str, vocab_size: int) -> np.ndarray:
    """The colours (V, 3) float32 that the checkpoint's tokens mean: its own, else --kmeans.

    Raises:
        UserError: neither is there, they differ, or they don't fit the vocabulary.
    """
    given = codebook.load(kmeans) if kmeans else None
    if ckpt.palette is not None and given is not None:
        require(codebook.digest(given) == codebook.digest(ckpt.palette),
                f'--kmeans {kmeans}: not the palette that {ckpt.path} carries; leave the flag out')
    centres = ckpt.palette if ckpt.palette is not None else given
    if centres is None:
        raise UserError(f'--kmeans: {ckpt.path} carries no palette; give the kmeans_centers.npy that it was trained '
                        f'with (another one gives wrong colours)')
    require(len(centres) == vocab_size, f'{ckpt.path}: has {vocab_size} tokens, its palette {len(centres)} colours')
    return centres


def frames_of(rgb: np.ndarray, grey: np.ndarray, view: inputs.View, model: Model) -> list[Frame]:
    """The parts of a picture (H, W, 3) uint8 with mask (h, w) uint8 that are completed, as tokens."""
    size = model.config.prior_size
    if view.mask_mode == 'published':
        seen = [published_view(rgb, grey, view.geometry, size)]
    else:
        seen = [geometry.sealed(geometry.cut(rgb, box), hole, size, Image.Resampling.BILINEAR)
                for box, hole in geometry.frames_in(grey, *geometry.size_of(rgb), view.geometry)]
    return [Frame(model.tokenizer(small).reshape(-1), hole.reshape(-1)) for small, hole in seen]


# ---- a run over files


class PriorStage:
    """Stage 1 as the steps of a ``Run``: pictures and masks in, prior files out."""

    def __init__(self, model: Model, pictures: inputs.Inputs, view: inputs.View, output_dir: Path) -> None:
        self.model, self.pictures, self.view, self.output_dir = model, pictures, view, output_dir
        self.sampler: sampling.Sampler | None = None
        self.on_pass: Callable[[int, int], None] = lambda done, total: None
        self._last: tuple[int, list[Frame]] | None = None

    def sources(self, task: Task, digests: dict[str, str]) -> dict[str, str]:
        """Picture and mask."""
        return digests

    def paths(self, task: Task, n_frames: int = 1) -> list[Path]:
        """condition_<k>/<id>.png, or <id>@1.png ... of several frames."""
        return prior_paths(self.output_dir, self.pictures.id(task.i), task.k, n_frames)

    def read(self, task: Task) -> list[Frame]:
        """The picture's frames, decoded once for all its samples."""
        if self._last is None or self._last[0] != task.i:
            self._last = None
            picture, grey = self.pictures.read(task.i, self.view)
            frames = frames_of(picture.rgb, grey, self.view, self.model)
            require(any(frame.hole.any() for frame in frames),
                    f'{self.pictures.mask_path(task.i)}: nothing to fill in the part of '
                    f'{self.pictures.pictures.path(task.i)} that is completed; use --geometry resize (run.py: or '
                    f'--keep_size)')
            if self.view.mask_mode == 'sealed' and geometry.reaches_out(grey, *geometry.size_of(picture.rgb),
                                                                        self.view.geometry):
                self.pictures.say(f'{self.pictures.pictures.path(task.i)}: the part of the hole outside the middle '
                                  f'square is not filled; use --geometry resize (run.py: or --keep_size)')
            self._last = task.i, frames
        return self._last[1]

    def compute(self, parts: Sequence[Part]) -> list[Sample]:
        """A sample of each frame."""
        rngs = [self.model.noise(frame_name(self.pictures.id(part.task.i), part.number, len(part.frames)), part.task.k)
                for part in parts]
        assert self.sampler is not None  # ``execute`` has loaded it
        return self.sampler(np.stack([part.frame.tokens for part in parts]),
                            np.stack([part.frame.hole for part in parts]), rngs, self.on_pass)

    def result(self, task: Task, frames: Sequence[Frame], samples: Sequence[Sample]) -> Result:
        """The prior files and their log-likelihood."""
        paths = self.paths(task, len(frames))
        contents = {path: images.encode_png(self.model.prior(frame, sample))
                    for path, frame, sample in zip(paths, frames, samples, strict=True)}
        return Result({'log_likelihood': sum(sample.log_likelihood for sample in samples)}, contents)


def frame_name(picture: str, number: int, count: int) -> str:
    """What a frame (from 0) of ``count`` frames of a picture is called: the id, or ``<id>@1`` ... of several."""
    return picture if count == 1 else f'{picture}@{number + 1}'


def prior_paths(output_dir: Path, picture: str, k: int, n_frames: int) -> list[Path]:
    """Where sample ``k`` (from 0) of a picture goes."""
    return [output_dir / f'condition_{k + 1}' / f'{frame_name(picture, number, n_frames)}.png'
            for number in range(n_frames)]


def refuse_names_of_frames(pictures: inputs.Inputs) -> None:
    """Raises a UserError for a picture that is called like a frame of another one."""
    ids = set(pictures.ids())
    for i in range(len(pictures)):
        picture, _, number = pictures.id(i).rpartition('@')
        require(not (number.isdecimal() and picture in ids),
                f'{pictures.pictures.path(i)}: with --geometry hole its priors may have the same names as those of '
                f'{picture}; rename it')


@dataclass(frozen=True)
class Job:
    """A checked configuration."""

    config: InferConfig
    model: Model
    pictures: inputs.Inputs
    view: inputs.View
    output_dir: Path
    manifest: manifest.Manifest


def prepare(config: InferConfig) -> Job:
    """Everything that can be wrong with options and files, before MindSpore is imported.

    Raises:
        UserError: see above; nothing has been written then but the output folder.
    """
    model = Model.from_checkpoint(config.ckpt, config.model, config.sampling)
    output_dir, n_results = Path(config.output.folder.value), config.output.n_results.value
    view = inputs.View.from_args(config.source.view)
    pictures = config.source.find(str(output_dir))
    if view.geometry == 'hole':
        refuse_names_of_frames(pictures)
    every_prior = [path for i in range(len(pictures)) for k in range(n_results)
                   for path in prior_paths(output_dir, pictures.id(i), k, 1)]
    pictures.refuse_to_overwrite(every_prior, str(config.output.folder))
    made_by = manifest.Manifest(output_dir, manifest.STAGE_1, {
        **model.settings(), **vars(view), 'amp_level': config.compute.amp_level}, config.output.overwrite)
    if not config.output.overwrite and os.path.isdir(output_dir):
        made_by.refuse_leftovers(output_dir.glob('condition_*/**/*.png'))
    files.output_folder(output_dir, config.output.folder.option)
    return Job(config, model, pictures, view, output_dir, made_by)


def execute(job: Job, device_target: str) -> int:
    """Sample what is not finished yet; the exit status."""
    compute, output_dir = job.config.compute, job.output_dir
    rank, ranks = parallel.rank() if compute.distributed else (0, 1)
    stage = PriorStage(job.model, job.pictures, job.view, output_dir)
    with locked(output_dir, job.config.output.folder.option):
        # plan
        if rank == 0:
            sweep(output_dir, lambda: output_dir.glob('condition_*'))
        work = Run(job.pictures, stage, job.manifest, Scores(output_dir, rank), job.config.output.n_results.value,
                   rank=rank, ranks=ranks)
        tasks = work.plan(job.config.output.overwrite, 'priors')
        if rank == 0:
            job.manifest.write()
        # sample
        try:
            if tasks or compute.distributed:
                runtime.start(device_target, compute.device_id, compute.distributed)
                work.require_same_on_all_ranks(job.config.source, job.config.ckpt)
                batch_size = runtime.rows_at_once(compute.batch_size)
                stage.sampler = job.model.sampler(job.model.predictor(batch_size, compute.amp_level))
                with work.bar(tasks, 'prior') as bar, _pass_bar(stage):
                    work.work(tasks, batch_size, bar)
        finally:
            work.finish(compute.distributed)
        # report
        status = work.outcome.status()
        if status != NOTHING_DONE and rank == 0:
            n_done = len(list(work.finished())) // work.n_results
            print(f'{n_done} pictures with {work.n_results} prior(s) each in {output_dir}')
        parallel.wait_for_all(compute.distributed)  # msrun ends the others when one has left
        return status


def _pass_bar(stage: PriorStage) -> tqdm:
    """A bar over the passes of one sample, fed by the sampler."""
    bar = tqdm(desc='tokens', unit='pass', leave=False, disable=None if parallel.is_writer() else True)

    def on_pass(done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.refresh()

    stage.on_pass = on_pass
    return bar


def main(argv: list[str]) -> int:
    args = arguments(argv)
    given = Paths.from_args(args, NAMES)
    job = prepare(InferConfig(
        given.ckpt, SourceConfig(given.images, given.masks, options.chosen(ViewFlags, args), (args.skip,)),
        OutputConfig(given.output, given.n_results, args.overwrite), options.chosen(ModelFlags, args),
        options.chosen(SamplingFlags, args), options.chosen(ComputeConfig, args)))
    return execute(job, runtime.choose(args.device_target, args.device_id, args.distributed))


if __name__ == '__main__':
    sys.exit(run(main))
