"""Both stages as one Python call: ``Pipeline.load('demo')(photo, mask)`` -> completions.

It stands above both stages, as run.py does, and gives the same bytes: run.py hands priors over through files, which
hold the same 8-bit colours that are handed over in memory here.
"""
from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from Guided_Upsample import infer as stage_2
from ict import files, pretrained
from ict.data import encode, geometry, images, masks
from ict.device import runtime
from ict.errors import UserError, require
from ict.options import Given
from ict.runs import inputs, metrics
from ict.runs.stage import frame_names
from Transformer import infer as stage_1

Picture = str | Path | Image.Image | np.ndarray


class Cancelled(Exception):  # noqa: N818
    """The caller's ``cancel`` event was set."""


@dataclass(frozen=True)
class Completion:
    """One way to fill the hole.

    Attributes:
        picture: (H, W) or (H, W, 2 | 3 | 4), uint8 or uint16: at the photo's size, channels and depth, every known
            pixel the photo's own, bit for bit; with ``keep_size=False`` (S, S, 3) uint8.
        priors: (P, P, 3) uint8 for each frame: what stage 1 sampled.
        log_likelihood: of the sampled tokens under stage 1, in nats.
        icc_profile, exif: the photo's colour profile and EXIF data (without rotation and thumbnail).
    """

    picture: np.ndarray
    priors: list[np.ndarray]
    log_likelihood: float
    icc_profile: bytes | None = None
    exif: bytes | None = None

    @property
    def prior(self) -> np.ndarray:
        """The prior of the first frame."""
        return self.priors[0]

    def png(self) -> bytes:
        """The content of a PNG file, the same that run.py writes."""
        return encode.encode(self.picture, icc_profile=self.icc_profile, exif=self.exif)

    def save(self, path: str | Path) -> None:
        """Write a picture, crash-safe, in the format of the path's ending: .png, .jpg or .webp.

        JPEG and WebP change known pixels and hold 8 bits, JPEG no transparency. A UserError for another ending.
        """
        ending = Path(path).suffix.lower()
        name = next((name for name, known in encode.FORMAT_ENDINGS.items() if ending in (known, f'.{name}')), None)
        if name is None:
            raise UserError(f'save {path}: has none of the endings {" ".join(encode.FORMAT_ENDINGS.values())}')
        content = encode.encode(self.picture, name, self.icc_profile, self.exif)
        files.write_bytes(files.output_file(path, 'save'), content)

    def image(self) -> Image.Image:
        """8-bit RGB, to look at."""
        return Image.fromarray(images.to_rgb(self.picture))


@dataclass(frozen=True)
class CompletionConfig:
    """How a picture is completed; the options of run.py of the same names, and its defaults unless said.

    Attributes:
        name: of the picture: with ``seed`` and the number of the sample it decides the noise. run.py takes the
            path below the input folder without its ending.
        geometry: None: 'resize' with ``keep_size``, else 'crop'.
        keep_size: complete at the picture's own size (run.py: off).
    """

    name: str = 'image'
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    schedule: str | None = None
    reuse: str | None = None
    deterministic: bool = False
    geometry: str | None = None
    keep_size: bool = True
    invert_mask: bool = False
    dilate: int = 0


class Pipeline:
    """A pair of checkpoints, loaded once. Calls from several threads are computed one after another."""

    def __init__(self, transformer: Given, generator: Given, device_target: str | None = None,
                 device_id: int = 0) -> None:
        self._transformer = transformer
        self._painting = stage_2.Model.from_checkpoint(generator, None)
        stage_1.Model.from_checkpoint(transformer, stage_1.ModelFlags(), stage_1.SamplingFlags())  # refuse it now
        self._device = runtime.choose(device_target, device_id), device_id
        self._lock = threading.Lock()
        self._inpainter: Any = None
        self._predictors: dict[str, Any] = {}  # by what is reused between passes

    @classmethod
    def load(cls, model: str = 'demo', *, transformer_ckpt: str | Path = '', upsample_ckpt: str | Path = '',
             device_target: str | None = None, device_id: int = 0) -> Pipeline:
        """A named pair, or two checkpoint files; a UserError where they or the device cannot be used."""
        require(bool(transformer_ckpt) == bool(upsample_ckpt), 'transformer_ckpt and upsample_ckpt: give both, they '
                                                               'belong together')
        transformer, generator = (transformer_ckpt, upsample_ckpt) if transformer_ckpt else pretrained.pair(model)
        return cls(Given(str(transformer), 'transformer_ckpt'), Given(str(generator), 'upsample_ckpt'), device_target,
                   device_id)

    def __call__(self, image: Picture, mask: Picture, *, samples: int = 1, steps: int = stage_1.RECOMMENDED_STEPS,
                 progress: Callable[[int, int], None] | None = None, cancel: threading.Event | None = None,
                 **how: Any) -> list[Completion]:
        """Complete a picture in several ways.

        Args:
            image, mask: path, PIL picture or array; the mask's bright part is the hole, as in the commands, and
                'alpha' stands for what is transparent in the image.
            samples: completions. steps: passes of stage 1 each; 0: one a missing token, as published.
            progress: called with (passes done, passes in all).
            cancel: when set, the call ends before the next pass.
            how: fields of ``CompletionConfig``.

        Raises:
            UserError: a picture or mask that can't be used, or a value out of range.
            Cancelled: ``cancel`` was set.
        """
        config = CompletionConfig(**how)
        require(samples >= 1 and steps >= 0, f'samples {samples}, steps {steps}: must be at least 1 and 0')
        flags = stage_1.SamplingFlags(config.top_k, config.temperature, steps, config.schedule, config.reuse,
                                      config.deterministic, config.seed)
        stage_1.check_sampling(flags)
        model = stage_1.Model.from_checkpoint(self._transformer, stage_1.ModelFlags(), flags)
        require(config.geometry in (None, 'crop', 'resize', 'hole'), f'geometry {config.geometry}: is none of crop, '
                                                                     'resize, hole')
        view = inputs.View.from_flags(inputs.ViewFlags(
            geometry=config.geometry, invert_mask=config.invert_mask, dilate=config.dilate),
            geometry_name='resize' if config.keep_size else 'crop')
        # decode
        picture = decoded(image, 'image')
        grey = levels_of(mask, picture, view)
        tokens = stage_1.frames_of(picture.rgb, grey, view, model)
        frames = stage_2.frames_of(picture.rgb, grey, view, stage_2.PaintingFlags.image_size)
        stage_2.refuse_incomplete('image', grey, geometry.size_of(picture.rgb), view.geometry, frames,
                                  config.keep_size)
        require(any(frame.hole.any() for frame in tokens), 'mask: nothing of the picture is to be filled')
        n_drawn, cancelled = itertools.count(), cancel or threading.Event()

        def report(before: int, done: int, total: int) -> None:
            """``done`` of the ``total`` passes of a frame's sample, after ``before`` other samples."""
            if progress is not None:
                progress(before * total + done, samples * len(tokens) * total)
            if cancelled.is_set():
                raise Cancelled

        completions = []
        with self._lock:
            if cancelled.is_set():
                raise Cancelled
            sampler, inpainter = self._start(model)
            for k in range(samples):
                # sample
                drawn = [sampler(frame.tokens[None], frame.hole[None], [model.noise(name, k)],
                                 partial(report, next(n_drawn)))[0]
                         for frame, name in zip(tokens, frame_names(config.name, len(tokens)), strict=True)]
                priors = [model.prior(frame, sample) for frame, sample in zip(tokens, drawn, strict=True)]
                # paint
                painted = [inpainter.everywhere(frame.image[None], images.bicubic(prior, *frame.hole.shape)[None],
                                                frame.hole[None])[0]
                           for frame, prior in zip(frames, priors, strict=True)]
                whole = stage_2.composed(picture.native, frames, painted) if config.keep_size else \
                    metrics.truncated(stage_2.small_result(frames, painted))
                completions.append(Completion(whole, priors, sum(sample.log_likelihood for sample in drawn),
                                              picture.icc_profile, picture.exif))
        return completions

    def _start(self, model: stage_1.Model) -> tuple[Any, Any]:
        """Sampler and inpainter; networks are loaded at the first call."""
        target, device_id = self._device
        runtime.start(target, device_id)
        if self._inpainter is None:
            self._inpainter = self._painting.load(1, 'O0')
        reuse = 'hole' if model.sampling_config.deterministic else model.reuse  # a single pass computes everything
        if reuse not in self._predictors:
            self._predictors[reuse] = replace(model, reuse=reuse).predictor(1, 'O0')
        return model.sampler(self._predictors[reuse]), self._inpainter


def decoded(picture: Picture, what: str, background: int = images.WHITE) -> images.Picture:
    """A picture as the commands decode its file; a UserError where it is none."""
    if isinstance(picture, str | Path):
        return images.load(picture, background)
    if isinstance(picture, Image.Image) and picture.mode[0] not in 'IF':  # more than 8 bits are refused below
        return images.of_pil(picture, what, background)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UserError(f'{what}: an array of {array.dtype} {array.shape}; give uint8 (H, W), (H, W, 3) or (H, W, 4)')
    return images.Picture(array, images.to_rgb(array, background))


def levels_of(mask: Picture, picture: images.Picture, view: inputs.View) -> np.ndarray:
    """A mask as the commands read it: grey levels (h, w) uint8, hole above 127; a UserError where it is none."""
    if isinstance(mask, str) and mask == inputs.ALPHA:
        return masks.of_alpha('image', picture, view.invert_mask, view.dilate)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.uint8) * 255
    name = str(mask) if isinstance(mask, str | Path) else 'mask'
    read = decoded(mask, 'mask', images.WHITE if view.invert_mask else images.BLACK)
    levels = masks.interpreted(read, name, view.invert_mask, view.dilate)
    return masks.fitted(levels, *geometry.size_of(picture.rgb), picture.orientation)
