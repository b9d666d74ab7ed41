"""Stage 1: sample appearance priors for the holes of pictures.

``python Transformer/infer.py --ckpt_path ckpts_ICT/demo/Transformer.ckpt --image_url photos --mask_url masks
--save_url priors`` writes ``priors/condition_1/<id>.png`` ..., ``priors/manifest.json`` and ``priors/scores.jsonl``.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image
from tqdm import tqdm

from ict import checkpoint, files, options
from ict.command import run
from ict.data import codebook, encode, geometry
from ict.data.codebook import Tokenizer
from ict.device import parallel, runtime
from ict.errors import require
from ict.options import Given, positive
from ict.runs import inputs, manifest, scores
from ict.runs.config import ComputeConfig, RunConfig, add_options
from ict.runs.stage import Part, Result, Stage, Task, frame_names
from Transformer.datasets.dataset import published_view
from Transformer.models import sampling
from Transformer.models.config import GPTConfig
from Transformer.models.sampling import Sample, SamplingConfig

TOP_K, TEMPERATURE = 40, 1.0
RECOMMENDED_STEPS = 16
REUSES = ('none', 'hole')


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
    add_options(parser)
    args = parser.parse_args(argv)
    positive(args, 'condition_num', 'n_layer', 'n_embd', 'n_head', 'prior_size', 'batch_size')
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
    add('--schedule', choices=tuple(sampling.ORDERS), default=None,
        help='which tokens a pass fills (default: raster with --sample_steps 0, else halton)')
    add('--reuse', choices=REUSES, default=None,
        help='what passes after the first compute: none: everything, as published; hole: the tokens to fill, newly '
             'filled ones, and the other missing ones in turns, with kept keys and values of the rest (default: none '
             'with --sample_steps 0, else hole)')
    options.add_flag(parser, '--deterministic',
                     'the mean colour that the model expects, from a single pass, instead of a sample; top_k, '
                     'temperature, steps and schedule have no effect then')


def check_sampling(args: Any) -> None:
    """Raises a UserError for fields of ``SamplingFlags`` that are out of range."""
    positive(args, 'top_k')
    positive(args, 'sample_steps', 'seed', least=0)
    for name, values in (('schedule', sampling.ORDERS), ('reuse', REUSES)):
        require(getattr(args, name) in (None, *values), f'--{name} {getattr(args, name)}: is none of '
                                                        f'{", ".join(values)}')
    require(args.temperature is None or args.temperature > 0, f'--temperature {args.temperature}: must be above 0')


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
class InferConfig(RunConfig):
    """A run of stage 1."""

    model: ModelFlags
    sampling: SamplingFlags


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
        """Read a checkpoint's header and compare it with the flags; a UserError where they do not fit."""
        path, option = given
        ckpt = checkpoint.read(path, option).expect('Transformer', option)
        architecture = {name: value for name, value in vars(flags).items() if name != 'kmeans'}
        config = GPTConfig.from_checkpoint(ckpt, architecture)
        checkpoint.check(ckpt, config.shapes())
        centres = checkpoint.transformer_palette(ckpt, flags.kmeans, config.vocab_size)
        reuse = how.reuse or ('hole' if how.sample_steps else 'none')
        return cls(ckpt, config, Tokenizer(centres), how.config(ckpt.metadata),
                   'none' if how.deterministic else reuse, 0 if how.deterministic else how.seed)

    def settings(self) -> dict[str, Any]:
        """What the priors depend on, for the manifest; the checkpoint's digest is a Future."""
        reuse = 'turns' if self.reuse == 'hole' else self.reuse  # manifests with 'hole' are of another rule
        return {'checkpoint': self.ckpt.digest(), 'palette': codebook.digest(self.tokenizer.centres),
                'seed': self.seed, 'reuse': reuse, **vars(self.sampling_config),
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


class PriorStage(Stage):
    """Stage 1 as a run over files: pictures and masks in, prior files out."""

    noun, scores_name = 'prior', scores.STAGE_1

    def __init__(self, config: InferConfig, model: Model, pictures: inputs.Inputs, view: inputs.View,
                 made_by: manifest.Manifest) -> None:
        super().__init__(config, pictures, view, made_by)
        self.model = model

    def paths(self, task: Task, n_frames: int = 1) -> list[Path]:
        """condition_<k>/<id>.png, or <id>@1.png ... of several frames."""
        return [self.output_dir / f'condition_{task.k + 1}' / f'{name}.png'
                for name in frame_names(self.pictures.id(task.i), n_frames)]

    def decode(self, i: int) -> list[Frame]:
        picture, grey = self.pictures.read(i, self.view)
        path = self.pictures.pictures.path(i)
        frames = frames_of(picture.rgb, grey, self.view, self.model)
        require(any(frame.hole.any() for frame in frames),
                f'{self.pictures.mask_path(i)}: nothing to fill in the part of {path} that is completed; use '
                f'--geometry resize (run.py: or --keep_size)')
        if self.view.mask_mode == 'sealed' and geometry.reaches_out(grey, *geometry.size_of(picture.rgb),
                                                                    self.view.geometry):
            self.pictures.say(f'{path}: the part of the hole outside the middle square is not filled; use --geometry '
                              f'resize (run.py: or --keep_size)')
        return frames

    def load(self, batch_size: int) -> None:
        self.sampler = self.model.sampler(self.model.predictor(batch_size, self.config.compute.amp_level))

    def compute(self, parts: Sequence[Part]) -> list[Sample]:
        """A sample of each frame; a bar shows the passes."""
        rngs = [self.model.noise(frame_names(self.pictures.id(part.task.i), len(part.frames))[part.number], part.task.k)
                for part in parts]
        with tqdm(desc='tokens', unit='pass', leave=False, disable=None if parallel.is_writer() else True) as bar:
            def on_pass(done: int, total: int) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            return self.sampler(np.stack([part.frame.tokens for part in parts]),
                                np.stack([part.frame.hole for part in parts]), rngs, on_pass)

    def result(self, task: Task, frames: Sequence[Frame], samples: Sequence[Sample]) -> Result:
        """The prior files and their log-likelihood."""
        encoders = {path: partial(encode.encode, self.model.prior(frame, sample))
                    for path, frame, sample in zip(self.paths(task, len(frames)), frames, samples, strict=True)}
        return Result({'log_likelihood': sum(sample.log_likelihood for sample in samples)}, encoders)

    def report(self) -> None:
        if n_done := len(list(self.finished())) // self.n_results:
            print(f'{n_done} pictures with {self.n_results} prior(s) each in {self.output_dir}')


def refuse_names_of_frames(pictures: inputs.Inputs) -> None:
    """Raises a UserError for a picture that is called like a frame of another one."""
    ids = set(pictures.ids())
    for i in range(len(pictures)):
        picture, _, number = pictures.id(i).rpartition('@')
        require(not (number.isdecimal() and picture in ids),
                f'{pictures.pictures.path(i)}: with --geometry hole its priors may have the same names as those of '
                f'{picture}; rename it')


def prepare(config: InferConfig) -> PriorStage:
    """Everything that can be wrong with options and files, before MindSpore is imported."""
    model = Model.from_checkpoint(config.ckpt, config.model, config.sampling)
    output_dir = Path(config.output.value)
    view = inputs.View.from_flags(config.view)
    pictures = config.find_inputs()
    if view.geometry == 'hole':
        refuse_names_of_frames(pictures)
    made_by = manifest.Manifest(output_dir, manifest.STAGE_1, {
        **model.settings(), **vars(view), 'amp_level': config.compute.amp_level}, config.overwrite)
    stage = PriorStage(config, model, pictures, view, made_by)
    stage.refuse_folder((), output_dir.glob('condition_*/**/*.png'))
    files.output_folder(*config.output)
    return stage


def main(argv: list[str]) -> int:
    args = arguments(argv)
    given = partial(Given.from_args, args)
    stage = prepare(InferConfig(
        ckpt=given('ckpt_path'), images=given('image_url'), masks=given('mask_url'), output=given('save_url'),
        n_results=given('condition_num'), overwrite=args.overwrite, skip=(args.skip,),
        view=options.chosen(inputs.ViewFlags, args), compute=options.chosen(ComputeConfig, args),
        model=options.chosen(ModelFlags, args), sampling=options.chosen(SamplingFlags, args)))
    return stage.execute(runtime.choose(args.device_target, args.device_id, args.distributed))


if __name__ == '__main__':
    sys.exit(run(main))
