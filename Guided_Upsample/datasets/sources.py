"""From the paths of train.py's options to a ``Source``: listing, pairing, and checks of sampled priors."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Guided_Upsample.datasets.dataset import PAIRED_FILE, ExampleConfig, Source, priors_of
from ict.data import pairs
from ict.device import parallel
from ict.errors import UserError, require
from ict.log import log
from ict.runs import inputs, manifest
from ict.runs.config import Given
from ict.training import loop, mask_sources
from ict.training.mask_sources import MaskSource, PairedFile

_NOTHING = Given('', '')
_PROBES = 100  # pictures whose priors are looked for before a training starts



@dataclass(frozen=True)
class SourcePaths:
    """What a source is made of.

    Attributes:
        output_dir: is not searched.
        masks, priors: '' where there are none.
        cache: whether the listing of the pictures is kept there.
        invert_mask, dilate: how mask files are read, see ``MaskFiles``.
    """

    pictures: Given
    mask_type: type[MaskSource]
    output_dir: Path
    masks: Given = _NOTHING
    priors: Given = _NOTHING
    cache: bool = False
    invert_mask: bool = False
    dilate: int = 0


def find(paths: SourcePaths, centres: np.ndarray, config: ExampleConfig, is_held_back: bool = False) -> Source:
    """List and pair pictures, masks and priors.

    Args:
        centres: the palette, (V, 3) float32 in [-1, 1].
        is_held_back: look for the priors of all pictures. A training looks for some, and names what is missing of the
            others when it meets them; a validation must not fail hours later.

    Raises:
        UserError: see ``pairs.listing`` and ``pairs.masks_for``; or the priors are not those of the pictures and masks.
    """
    pictures = pairs.listing(paths.pictures.value, paths.pictures.option, without=[paths.output_dir],
                             cache=paths.output_dir / 'files.npz' if paths.cache else None, unique=False,
                             writes=parallel.is_writer())
    mask_files = mask_sources.find(paths.masks.value, paths.masks.option, paths.output_dir, paths.invert_mask,
                                   paths.dilate) if paths.mask_type.reads_files else None
    pictures, mask_files = mask_sources.apart(pictures, mask_files)
    prior_folders = pairs.condition_folders(paths.priors.value, paths.priors.option) if paths.priors.value else None
    source = Source(pictures, paths.mask_type(mask_files, pictures), prior_folders, centres, config)
    if prior_folders is not None:
        every = 1 if is_held_back else max(1, len(pictures) // _PROBES)
        _check_priors(source, prior_folders, range(0, len(pictures), every), paths)
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
            _require_same_files(made['pictures'].get(source.pictures.id(i), {}), source.pictures.path(i), masks.path(i),
                                culprit)


def _require_same_files(entry: dict[str, Any], picture: Path, mask: Path, culprit: str) -> None:
    """Raises a UserError unless stage 1's manifest says that a prior was made of this picture and this mask."""
    paths = {'image': picture, 'mask': mask}
    other = manifest.other_source(entry, {f'{key}_digest': manifest.file_digest(paths[key]) for key in paths})
    if other is not None:
        raise UserError(f'{culprit}: its prior of {picture} was made with another {other} than {paths[other]}; '
                        f'run stage 1 again')


def best_by(held_back: Source) -> str:
    """What decides 'best': a score with degraded pictures cannot be compared with one with stage 1's priors."""
    decides = loop.best_by(held_back.pictures, held_back.mask_source.files)
    if held_back.prior_folders is None:
        return decides
    digests = [manifest.file_digest(path) for i in range(len(held_back.pictures))
               for path in priors_of(held_back.prior_folders, held_back.pictures, i)]
    return f'{decides} with priors {hashlib.sha256("".join(digests).encode()).hexdigest()[:12]}'
