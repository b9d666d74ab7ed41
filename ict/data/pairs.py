"""Which image, mask and prior belong together: by name wherever names tell, else in the natural order."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ict.data import names
from ict.data.listing import FOLDER, LIST, Listing, find, shown
from ict.errors import UserError
from ict.log import log

__all__ = ['Listing', 'Pairing', 'apart', 'condition_folders', 'listing', 'masks_for', 'match']

_LISTS = 'or give two list files, whose lines belong together'


class Pairing(NamedTuple):
    """For each image the number of its mask, and lines for the user about what was taken for granted."""

    numbers: list[int]
    notes: list[str]


def listing(given: str | Path, option: str, without: Path | Sequence[Path] = (), cache: Path | None = None,
            unique: bool = True, writes: bool = True) -> Listing:
    """``listing.find``, whose lines go to the user: the image files of a folder option."""
    found = find(given, option, without, cache, unique, writes)
    for line in found.notes:
        log(line)
    return found


def masks_for(images: Listing, masks: Listing) -> list[int]:
    """``match``, whose lines go to the user: for each image the number of its mask."""
    pairing = match(images, masks)
    for line in pairing.notes:
        log(line)
    return pairing.numbers


def match(images: Listing, masks: Listing, all_pairs: str = '') -> Pairing:
    """Which mask belongs to which image.

    A single mask serves all images; lines of two list files of equal length belong together; else names tell (see
    ``names.pair``); images and masks whose names have nothing in common go in the natural order.

    Args:
        all_pairs: the file in which the user finds all pairs.

    Raises:
        UserError: fewer masks than images, an image without a mask while others have one, or two that it could be.
    """
    image_ids, mask_ids = ([listed.id(i) for i in range(len(listed))] for listed in (images, masks))
    lists = images.kind == masks.kind == LIST
    if len(masks) == 1:
        return Pairing([0] * len(images), _name_of_one(images, masks, image_ids, mask_ids))
    if lists and len(images) == len(masks):
        return Pairing(list(range(len(images))), [])
    _refuse_doubles(masks, mask_ids)
    found = names.pair(image_ids, mask_ids)
    order, how = list(range(len(images))), found.how
    if len(found.pairs) == len(images):
        numbers = [found.pairs[i] for i in order]
    else:
        _refuse_partly(images, masks, found)
        if lists:
            raise UserError(f'{images.root} lists {len(images)} images, {masks.root} {len(masks)} masks; line n '
                            f'belongs to line n, so both must list as many')
        order, numbers = _in_order(images, image_ids), _in_order(masks, mask_ids)
        numbers = [mask for _, mask in sorted(zip(order, numbers, strict=False))]
        how = 'no names in common, so paired in their natural order'
    pairs = [f'{images.name(i)} with {masks.name(numbers[i])}' for i in order]
    where = f' (all of them: {all_pairs})' if all_pairs else ''
    return Pairing(numbers, [f'images and masks: {how}: {shown(pairs)}{where}'] if how else [])


def _in_order(listed: Listing, ids: Sequence[str]) -> list[int]:
    """A list file's own order, else the natural one."""
    numbers = range(len(listed))
    return list(numbers) if listed.kind == LIST else sorted(numbers, key=lambda i: names.natural_order(ids[i]))


def _name_of_one(images: Listing, masks: Listing, image_ids: list[str], mask_ids: list[str]) -> list[str]:
    """A line when the only mask of a folder has the name of one of several images."""
    if masks.kind != FOLDER or len(images) == 1:
        return []
    return [f'{masks.path(0)}: is the only mask, so it serves all {len(images)} images, though by its name it is that '
            f'of {images.path(i)}' for i in names.pair(image_ids, mask_ids).pairs]


def _refuse_doubles(masks: Listing, ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for i, own in enumerate(ids):
        if (other := first.setdefault(own, i)) == i:
            continue
        if masks.path(i) == masks.path(other):
            raise UserError(f'{masks.path(i)}: is listed twice; only a single mask file serves several images')
        raise UserError(f'{masks.path(other)} and {masks.path(i)} have the same name, so nothing tells whose masks '
                        f'they are; rename one')


def _refuse_partly(images: Listing, masks: Listing, found: names.Found) -> None:
    """Raises a UserError when some images have found their masks by name and others not, or masks are too few."""
    missing = [i for i in range(len(images)) if i not in found.pairs and i not in found.rivals]
    if len(masks) < len(images):
        first = missing[0] if missing and (found.pairs or found.rivals) else len(masks)
        raise UserError(f'{len(images)} images but only {len(masks)} masks: {images.path(first)} has none; add masks, '
                        f'or give a single mask file for all')
    for i, own in found.rivals.items():
        others = ' or '.join(str(masks.path(mask)) for mask in own[:2]) if len(own) > 1 else \
            f'{masks.path(own[0])}, like that of another image'
        raise UserError(f'{images.path(i)}: its mask could be {others}; rename them, {_LISTS}')
    for i, mask in found.pairs.items():
        raise UserError(f'{shown([str(images.path(m)) for m in missing])}: no mask has this name, while '
                        f'{images.path(i)} has {masks.path(mask)}; rename masks, {_LISTS}')


def apart(images: Listing, masks: Listing) -> tuple[Listing, Listing]:
    """Images and masks without the files that both options lead to, because no image is its own mask.

    One folder for both is split by the common prefix or suffix of its masks; a folder of masks in the folder of images
    holds no images, and the other way round.

    Raises:
        UserError: the files can't be told apart.
    """
    roots = [os.path.realpath(listed.root) for listed in (images, masks)]
    if LIST not in (images.kind, masks.kind) and os.path.commonpath(roots) not in roots:
        return images, masks
    paths = [[os.path.join(root, listed.path(i) if listed.absolute is not None else listed.name(i))
              for i in range(len(listed))] for root, listed in zip(roots, (images, masks), strict=True)]
    common = set(map(str, paths[0])) & set(map(str, paths[1]))
    if not common:
        return images, masks
    images_alone, masks_alone = ([i for i, path in enumerate(own) if str(path) not in common] for own in paths)
    if images_alone and not masks_alone:
        return images.only(images_alone), masks
    if masks_alone and not images_alone:
        return images, masks.only(masks_alone)
    halves = None if images_alone else names.split([images.id(i) for i in range(len(images))])
    if halves is None:
        raise UserError(f'{min(common)}: is given as an image and as a mask; give images and masks folders of their '
                        f'own, or masks one common ending, like photo1.jpg and photo1_mask.png')
    return images.only(halves[0]), images.only(halves[1])


def condition_folders(prior: str | Path, option: str) -> list[Path]:
    """condition_1, condition_2, ... in stage 1's save place.

    Raises:
        UserError: there are none.
    """
    found: list[Path] = []
    while os.path.isdir(folder := Path(prior) / f'condition_{len(found) + 1}'):
        found.append(folder)
    if not found:
        raise UserError(f"{option} {prior}: holds no condition_1; give stage 1's --save_url")
    return found
