"""From the paths of train.py's options to a ``Source``: listing, pairing, and checks of sampled priors."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Guided_Upsample.datasets.dataset import PAIRED_FILE, ExampleConfig, Source, priors_of
from ict.data import pairs
from ict.errors import require
from ict.log import log
from ict.options import NOT_GIVEN, Given
from ict.runs import inputs, manifest
from ict.training import loop
from ict.training.mask_sources import PairedFile, PicturePaths

_PROBES = 100  # pictures whose priors are looked for before a training starts


@dataclass(frozen=True)
class SourcePaths(PicturePaths):
    """``PicturePaths``, and stage 1's folder of priors; '' for degraded pictures."""

    priors: Given = NOT_GIVEN


def find(paths: SourcePaths, centres: np.ndarray, config: ExampleConfig, is_held_back: bool = False) -> Source:
    """List and pair pictures, masks and priors.

    Args:
        centres: the palette, (V, 3) float32 in [-1, 1].
        is_held_back: check all priors and read all files now, because a validation must not fail hours later. Otherwise
            some priors are checked, and a training reports what is missing of a picture when it comes to it.

    Raises:
        UserError: as ``PicturePaths.find``; priors are missing, or were made of other pictures or masks; a held-back
            file cannot be read.
    """
    pictures, mask_source = paths.find()
    prior_folders = pairs.condition_folders(*paths.priors) if paths.priors.value else None
    source = Source(pictures, mask_source, prior_folders, centres, config)
    if prior_folders is not None:
        every = 1 if is_held_back else max(1, len(pictures) // _PROBES)
        _check_priors(source, prior_folders, range(0, len(pictures), every), paths)
    if is_held_back:
        source.require_readable()
    return source


def _check_priors(source: Source, folders: list[Path], numbers: range, paths: SourcePaths) -> None:
    """Raises a UserError unless sampled priors belong to the pictures and masks; looks at some pictures."""
    culprit = str(paths.priors)
    made = manifest.read(paths.priors.value, manifest.STAGE_1)
    if made is not None:
        for name, wanted in vars(inputs.View(invert_mask=paths.invert_mask, dilate=paths.dilate)).items():
            seen = made['settings'].get(name)
            require(seen == wanted, f'{culprit}: made with --{name} {seen}; training sees pictures and masks with '
                                    f'--{name} {wanted}, make the priors so')
    masks = source.mask_source if isinstance(source.mask_source, PairedFile) else None
    if masks is None:
        log(f'{culprit}: without --mask_type {PAIRED_FILE} the holes are other ones than those the priors were made '
            f'for, so that priors show true colours in them')
    for i in numbers:
        priors_of(folders, source.pictures, i)
        if masks is not None and made is not None:
            used = {'image': source.pictures.path(i), 'mask': masks.path(i)}
            other = manifest.other_source(made['pictures'].get(source.pictures.id(i), {}),
                                          {f'{key}_digest': manifest.file_digest(path) for key, path in used.items()})
            require(other is None, f'{culprit}: its prior of {used["image"]} was made with another {other} than '
                                   f'{used.get(other or "")}; run stage 1 again')


def best_by(held_back: Source) -> str:
    """What decides 'best': a score with degraded pictures cannot be compared with one with stage 1's priors."""
    decides = loop.best_by(held_back.pictures, held_back.mask_source)
    if held_back.prior_folders is None:
        return decides
    digests = [manifest.file_digest(path) for i in range(len(held_back.pictures))
               for path in priors_of(held_back.prior_folders, held_back.pictures, i)]
    return f'{decides} with priors {hashlib.sha256("".join(digests).encode()).hexdigest()[:12]}'
