"""Which mask an image's name tells: pure functions on names (paths without extension, with '/')."""
from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

_PART = re.compile(r'[0-9]+|[^\W\d_]+|(?:(?![0-9])[\W\d_])+')  # a number, a word, or what separates them


@dataclass
class Found:
    """What one rule finds.

    Attributes:
        pairs: image number -> mask number.
        rivals: image number -> the masks that the rule can't decide between; a single one is another image's, too.
        tells: some images that find their masks by this rule say that the others have none.
        how: what the user is told of a rule that isn't beyond doubt.
    """

    pairs: dict[int, int] = field(default_factory=dict)
    rivals: dict[int, list[int]] = field(default_factory=dict)
    tells: bool = True
    how: str = ''


def pair(images: Sequence[str], masks: Sequence[str]) -> Found:
    """What the first rule finds that gives every image a mask of its own.

    From the strict to the loose: equal names; one common prefix or suffix on all masks; the same with other padding of
    numbers; in other letter case; all that whatever the folders are; an affix that ends inside a word or number; equal
    numbers alone. A rule never changes a pair of a stricter one. Where none serves all images: what the rule finds that
    serves most of them, and nothing where names tell nothing.
    """
    best = Found()
    certain: dict[int, int] = {}
    for found in _rules(images, masks):
        if len(found.pairs) == len(images):
            changed = {i: [certain[i], mask] for i, mask in found.pairs.items() if certain.get(i, mask) != mask}
            if not changed:
                return found
            found = Found({i: mask for i, mask in found.pairs.items() if i not in changed}, changed)
        if found.tells:
            certain = found.pairs | certain
            if len(found.pairs) + len(found.rivals) > len(best.pairs) + len(best.rivals):
                best = found
    return best


def split(names: Sequence[str]) -> tuple[list[int], list[int]] | None:
    """Numbers of the images and of the masks among ``names``, when all masks are an image's name with one affix."""
    for form in _FORMS:
        keys = [form(name) for name in names]
        known = set(keys)
        if len(known) < len(keys):
            continue
        shortest = min(keys, key=len)  # which must be an image
        splits: set[frozenset[str]] = set()
        for affix in (*_affixes_at_borders(known, keys), *(_affixes_of(shortest, keys) if len(keys) > 2 else ())):
            masks = frozenset(affix.around(key) for key in keys) & known
            if {affix.around(key) for key in known - masks} == masks:
                splits.add(masks)
        if len(splits) == 1:
            masks = splits.pop()
            return ([i for i, key in enumerate(keys) if key not in masks],
                    [i for i, key in enumerate(keys) if key in masks])
    return None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [(0, int(part), '') if part.isascii() and part.isdigit() else (1, 0, part)
            for part in re.split('([0-9]+)', _normal(name)) if part]


# What may differ between names

def _normal(name: str) -> str:
    """In one Unicode form, whatever an editor or file system made of an accent."""
    return unicodedata.normalize('NFC', name)


def _unpadded(name: str) -> str:
    return re.sub('[0-9]+', lambda number: number[0].lstrip('0') or '0', _normal(name))


def _folded(name: str) -> str:
    return _normal(_normal(name).casefold())


_FORMS: tuple[Callable[[str], str], ...] = (_normal, _unpadded, _folded, lambda name: _unpadded(_folded(name)))


def _numbers(name: str) -> str:
    """The folder and the numbers of a name, '' where it has none."""
    folder, _, stem = _unpadded(name).rpartition('/')
    numbers = ' '.join(re.findall('[0-9]+', stem))
    return numbers and f'{folder}/{numbers}'


def _path(name: str) -> str:
    return name


def _stem(name: str) -> str:
    return name.rpartition('/')[2]


# Rules

def _rules(images: Sequence[str], masks: Sequence[str]) -> Iterator[Found]:
    def keys(form: Callable[[str], str], part: Callable[[str], str]) -> tuple[list[str], list[str]]:
        return [form(part(name)) for name in images], [form(part(name)) for name in masks]

    for part, form, rule in product((_path, _stem), _FORMS, (_equal, _with_affix)):
        yield rule(*keys(form, part))
    for part in (_path, _stem):
        yield _with_any_affix(*keys(_normal, part))
    for part in (_path, _stem):
        yield _with_numbers(*keys(_numbers, part))


def _equal(images: Sequence[str], masks: Sequence[str]) -> Found:
    by_key: dict[str, list[int]] = defaultdict(list)
    for mask, key in enumerate(masks):
        by_key[key].append(mask)
    times, found = Counter(images), Found()
    for i, key in enumerate(images):
        if key and (own := by_key.get(key)):
            if len(own) == 1 and times[key] == 1:
                found.pairs[i] = own[0]
            else:
                found.rivals[i] = own
    return found


class Affix(NamedTuple):
    """What stands before and after an image's file name in its mask's."""

    before: str
    after: str

    def around(self, name: str) -> str:
        """The mask's name."""
        folder, slash, stem = name.rpartition('/')
        return f'{folder}{slash}{self.before}{stem}{self.after}'


def _with_affix(images: Sequence[str], masks: Sequence[str]) -> Found:
    """One affix on all masks, which ends where a word or number does."""
    served = _affixes_at_borders(set(images), masks)
    most = max(served.values(), default=0)
    return _by_affixes(images, masks, [affix for affix, count in served.items() if count == most])


def _affixes_at_borders(images: set[str], masks: Sequence[str]) -> Counter[Affix]:
    """How many masks are an image's name with something before or after it, for each such prefix and suffix."""
    served: Counter[Affix] = Counter()
    images = {name for name in images if any(map(str.isalnum, _stem(name)))}
    for name in masks:
        folder, slash, stem = name.rpartition('/')
        borders = [0, *(part.end() for part in _PART.finditer(stem))]
        for first, last in product(borders, borders):
            if first < last and (first, last) != (0, len(stem)) and f'{folder}{slash}{stem[first:last]}' in images:
                served[Affix(stem[:first], stem[last:])] += 1
    return served


def _with_any_affix(images: Sequence[str], masks: Sequence[str]) -> Found:
    """One affix on all masks, wherever it ends; on two images or more, because one proves nothing."""
    known = set(masks)
    affixes = _affixes_of(max(images, key=len), masks) if len(images) > 1 else []
    found = _by_affixes(images, masks, [a for a in affixes if all(a.around(name) in known for name in images)])
    found.tells, found.how = bool(found.rivals), 'paired by what their names have in common'
    return found


def _affixes_of(image: str, masks: Sequence[str]) -> list[Affix]:
    """Every affix by which one of the masks is this image's."""
    folder, slash, stem = image.rpartition('/')
    inside = re.compile(f'(?={re.escape(stem)})')
    found: dict[Affix, None] = {}
    for name in masks:
        if stem and name != image and name.rpartition('/')[:2] == (folder, slash):
            own = _stem(name)
            found |= {Affix(own[:at.start()], own[at.start() + len(stem):]): None for at in inside.finditer(own)}
    return list(found)


def _by_affixes(images: Sequence[str], masks: Sequence[str], affixes: Iterable[Affix]) -> Found:
    """What the affix finds that serves most images; where several serve all and differ, none is right for certain."""
    by_affix = [_equal([affix.around(name) for name in images], masks) for affix in affixes]
    best = max(by_affix, key=lambda found: len(found.pairs) + len(found.rivals), default=Found())
    if len(best.pairs) < len(images):
        return best
    candidates = [{found.pairs[i] for found in by_affix if len(found.pairs) == len(images)} for i in range(len(images))]
    return Found({i: min(own) for i, own in enumerate(candidates) if len(own) == 1},
                 {i: sorted(own) for i, own in enumerate(candidates) if len(own) > 1})


def _with_numbers(images: Sequence[str], masks: Sequence[str]) -> Found:
    """Equal numbers, whatever else the names are; chance when they serve less than half of the images."""
    found = _equal(images, masks)
    found.tells, found.how = 2 * len(found.pairs) > len(images), 'paired by the numbers in their names'
    return found
