"""Which mask belongs to which image: right by name, or an error, or the natural order and a line that says so."""
from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ict.data import names, pairs
from ict.data.listing import FOLDER, LIST, Listing
from ict.errors import UserError


def listed(root: str, files: list[str], kind: str = FOLDER) -> Listing:
    """A listing as a scan gives it, without files on the disk."""
    files = files if kind == LIST else sorted(files)
    return Listing(Path(root), np.array([os.fsencode(name) for name in files], np.bytes_), kind=kind)


def matched(images: list[str], masks: list[str], kind: str = FOLDER) -> tuple[dict[str, str], list[str]]:
    """Names of images and of their masks, and what is said."""
    pictures, mask_files = listed('i', [f'{name}.jpg' for name in images], kind), \
        listed('m', [f'{name}.png' for name in masks], kind)
    pairing = pairs.match(pictures, mask_files, 'save/manifest.json')
    return {pictures.id(i): mask_files.id(n) for i, n in enumerate(pairing.numbers)}, pairing.notes


NUMBERS = [str(i) for i in range(1, 12)]
BY_NAME = {  # images, masks in the images' order
    'equal': ('b a', 'b a'),
    'equal, in other folders': ('x/b y/a', 'b a'),
    'suffix': ('1 10 2', '1_mask 10_mask 2_mask'),
    'prefix': ('photo1 photo10 photo2', 'mask_photo1 mask_photo10 mask_photo2'),
    'prefix and suffix': ('cat dog', 'a-cat.mask a-dog.mask'),
    'suffix in folders': ('x/1 y/1', 'x/1m y/1m'),
    'suffix without a border': ('cat catalogue', 'catmask cataloguemask'),
    'suffix that makes names of other images': ('photo photo_a', 'photo_mask photo_a_mask'),
    'padding': (' '.join(f'{int(n):04}' for n in NUMBERS), ' '.join(NUMBERS)),
    'padding of masks': ('8 9 10 11', '08 09 10 11'),
    'padding and suffix': ('img_007 img_70', 'img_7_mask img_070_mask'),
    'letter case': ('IMG_a Img_B', 'img_A img_b'),
    'letter case, padding and suffix': ('IMG_01 IMG_02', 'img_1_mask img_2_mask'),
    'Unicode forms': ('caf\u00e9 na\u00efve', unicodedata.normalize('NFD', 'caf\u00e9 na\u00efve')),
    'more masks than images': ('2 3', '2_mask 3_mask 1_mask 4_mask'),
}


@pytest.mark.parametrize('case', BY_NAME)
def test_pairs_go_by_name_wherever_names_tell(case):
    images, masks = (text.split() for text in BY_NAME[case])
    found, said = matched(images, masks)
    assert found == {image: masks[i] for i, image in enumerate(images)}
    assert not said or 'without a border' in case


@pytest.mark.parametrize(('images', 'masks', 'says'), [
    ('a b c', 'a_mask b_mask x', r'i/c\.jpg: no mask has this name, while i/a\.jpg has m/a_mask\.png'),
    ('1 2 3 4 5', '1 2 x y z', r'i/3\.jpg, i/4\.jpg, i/5\.jpg: no mask has this name'),
    ('a b c', 'a c', r'3 images but only 2 masks: i/b\.jpg has none'),
    ('a b c', 'x y', r'3 images but only 2 masks: i/c\.jpg has none'),
    ('1 2', '1_mask 1_edge 2_mask 2_edge', r'i/1\.jpg: its mask could be m/1_edge\.png or m/1_mask\.png'),
    ('x/a y/a', 'p/a q/a', r'i/x/a\.jpg: its mask could be m/p/a\.png or m/q/a\.png'),
    ('1 01', '001 x', r'i/01\.jpg: its mask could be m/001\.png, like that of another image'),
    ('a ab', 'ab abb', r'i/ab\.jpg: its mask could be m/ab\.png or m/abb\.png'),
    ('frame_1 frame_2 frame_3 frame_4', 'mask_2 mask_3 mask_4 mask_5', r'i/frame_1\.jpg: no mask has this name'),
])
def test_names_that_tell_for_some_images_alone_are_an_error_that_names_the_others(images, masks, says):
    with pytest.raises(UserError, match=says):
        matched(images.split(), masks.split())


def test_names_without_anything_in_common_go_in_the_natural_order_and_that_is_said():
    found, said = matched(['p1', 'p10', 'p2', 'p9'], ['b', 'a', 'd', 'c'])
    assert found == {'p1': 'a', 'p2': 'b', 'p9': 'c', 'p10': 'd'}
    assert said == ['images and masks: no names in common, so paired in their natural order: p1.jpg with a.png, p2.jpg '
                    'with b.png, p9.jpg with c.png and 1 more (all of them: save/manifest.json)']


def test_numbers_alone_pair_and_that_is_said():
    found, said = matched(['frame_02', 'frame_03'], ['mask_1', 'mask_2', 'mask_3'])
    assert found == {'frame_02': 'mask_2', 'frame_03': 'mask_3'}
    assert len(said) == 1 and 'paired by the numbers in their names: frame_02.jpg with mask_2.png' in said[0]


def test_names_of_a_data_set_and_numbered_masks_have_nothing_in_common():
    images = [f'n02410509_{i}' for i in (1234, 7, 100)]
    found, said = matched(images, [f'{i:05}' for i in range(2000)])
    assert found == {'n02410509_7': '00000', 'n02410509_100': '00001', 'n02410509_1234': '00002'}
    assert 'natural order' in said[0]


def test_a_single_mask_serves_all_and_a_name_of_one_of_them_is_said():
    assert matched(['b', 'a'], ['m']) == ({'a': 'm', 'b': 'm'}, [])
    found, said = matched(['b', 'a'], ['a_mask'])
    assert found == {'a': 'a_mask', 'b': 'a_mask'}
    assert said == ['m/a_mask.png: is the only mask, so it serves all 2 images, though by its name it is that of '
                    'i/a.jpg']


def test_lines_of_two_lists_belong_together_whatever_the_names():
    assert matched(['b', 'a', '10', '2'], ['a', 'b', 'x', 'b'], LIST) == (
        {'b': 'a', 'a': 'b', '10': 'x', '2': 'b'}, [])
    assert matched(['b', 'a'], ['a', 'c', 'b'], LIST) == ({'b': 'b', 'a': 'a'}, [])  # by name, then
    with pytest.raises(UserError, match='lists 2 images, m 3 masks; line n belongs to line n'):
        matched(['b', 'a'], ['x', 'y', 'z'], LIST)


def test_a_list_beside_a_folder_keeps_its_order():
    pictures, masks = listed('i', ['b.png', 'a.png'], LIST), listed('m', ['10.png', '9.png'])
    assert [masks.name(n) for n in pairs.match(pictures, masks).numbers] == ['9.png', '10.png']


# ---------------------------------------------------------------- any names

LETTERS = st.sampled_from('abABé01239_- .')
STEMS = st.text(LETTERS, min_size=1, max_size=5).filter(lambda name: name.strip(' .') == name)
NAMES = st.sets(st.one_of(STEMS, st.tuples(st.sampled_from('xy1'), STEMS).map('/'.join)), min_size=1, max_size=7)


def padded(name: str, draw) -> str:
    return re.sub('[0-9]+', lambda number: '0' * draw(st.integers(0, 3)) + (number[0].lstrip('0') or '0'), name)


@st.composite
def bijections(draw) -> dict[str, str]:
    """Names of images, and of their masks by a suffix, a prefix, other padding, letter case or Unicode form."""
    images = sorted(draw(NAMES))
    kind = draw(st.sampled_from(['suffix', 'prefix', 'padding', 'case', 'form', 'suffix and padding']))
    affix = draw(st.text(LETTERS, min_size=1, max_size=4))
    masks = []
    for name in images:
        folder, slash, stem = name.rpartition('/')
        stem = {'suffix': stem + affix, 'prefix': affix + stem, 'padding': padded(stem, draw),
                'case': ''.join(draw(st.sampled_from([c, c.upper(), c.lower()])) for c in stem),
                'form': unicodedata.normalize('NFD', stem), 'suffix and padding': f'{padded(stem, draw)}_{affix}'}[kind]
        masks.append(folder + slash + stem)
    assume(len(set(masks)) == len(masks) and all(mask.strip(' .') == mask for mask in masks))
    if 'fix' not in kind:  # nobody swaps the names of two images
        assume(all(mask == image or mask not in images for image, mask in zip(images, masks, strict=True)))
    return dict(zip(images, masks, strict=True))


@settings(max_examples=800, deadline=None)
@given(bijections(), st.randoms(use_true_random=False))
def test_any_bijection_comes_out_right_or_as_an_error(truth, order):
    masks = list(truth.values())
    order.shuffle(masks)
    try:
        found, _ = matched(list(truth), masks)
    except UserError:
        return
    assert found == truth


@settings(max_examples=300, deadline=None)
@given(bijections(), st.randoms(use_true_random=False), st.sets(st.sampled_from(['q', 'ww', 'z-z', 'wz']), max_size=3))
def test_with_masks_lost_and_others_added_nothing_wrong_comes_without_a_line(truth, order, others):
    kept = [mask for mask in truth.values() if order.random() < 0.8]
    masks = sorted({*kept, *others})
    assume(masks)
    try:
        found, said = matched(list(truth), masks)
    except UserError:
        return
    assert said or len(masks) == 1 or found == truth


@settings(max_examples=200, deadline=None)
@given(NAMES, st.text(st.sampled_from('ab_-m '), min_size=1, max_size=4), st.booleans())
def test_one_folder_for_both_is_split_right_or_not_at_all(images, affix, before):
    masks = {'/'.join([*name.split('/')[:-1], affix + _stem(name) if before else _stem(name) + affix])
             for name in images}
    assume(not masks & images)
    both = sorted(images | masks)
    halves = names.split(both)
    if halves is not None:
        assert {both[i] for i in halves[0]} == images and {both[i] for i in halves[1]} == masks


def _stem(name: str) -> str:
    return name.rpartition('/')[2]


def test_the_natural_order_counts():
    assert sorted(['b', 'a10', 'a2', 'a1', 'a02b', '10', '9'], key=names.natural_order) == [
        '9', '10', 'a1', 'a2', 'a02b', 'a10', 'b']


def test_lines_about_folders_and_pairs_reach_the_user_of_a_training(tmp_path, capsys):
    for name in ('i/a.png', 'i/b.png', 'i/notes.txt', 'm/1.png', 'm/2.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [pairs.listing(tmp_path / name, '--i') for name in 'im']
    assert pairs.masks_for(*found) == [0, 1]
    said = capsys.readouterr().err.splitlines()
    assert said == [f'{tmp_path}/i: passed over for their ending: 1 .txt',
                    'images and masks: no names in common, so paired in their natural order: a.png with 1.png, b.png '
                    'with 2.png']
