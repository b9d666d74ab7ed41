"""Which files a folder option names: the user's photographs, and nothing that programs and systems put beside them."""
from __future__ import annotations

import codecs
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict import files
from ict.data import listing, pairs
from ict.errors import UserError
from tests.conftest import photograph


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(seed, 16, 16)).save(path)
    return path


def ids(found: listing.Listing) -> list[str]:
    return [found.id(i) for i in range(len(found))]


def test_twins_the_save_place_and_lists(tmp_path):
    save(tmp_path / 'i' / 'sub' / 'a.png')
    save(tmp_path / 'i' / 'save' / 'a_0.png')
    assert ids(listing.find(tmp_path / 'i', '--i', without=tmp_path / 'i' / 'save')) == ['sub/a']
    text = tmp_path / 'list.txt'
    text.write_text(f'{tmp_path}/i/sub/a.png\n\n')
    assert ids(listing.find(text, '--i')) == ['i/sub/a']
    save(tmp_path / 'i' / 'sub' / 'a.bmp')
    for given in (tmp_path / 'i', text):
        text.write_text('\n'.join(f'{tmp_path}/i/{name}' for name in ('sub/a.png', 'save/a_0.png', 'sub/a.bmp')))
        with pytest.raises(UserError, match='would have the same results'):
            listing.find(given, '--i', without=tmp_path / 'i' / 'save')


def test_a_scan_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / 'i' / f'{i}' / 'a.png')
    (tmp_path / 'i' / 'a.heic').touch()
    cache = tmp_path / 'scan.npz'
    first = listing.find(tmp_path / 'i', '--i', cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(listing.os, 'scandir', lambda _: pytest.fail('scanned again'))
        again = listing.find(tmp_path / 'i', '--i', cache=cache)
    np.testing.assert_array_equal(first.names, again.names)
    assert first.notes == again.notes and 'HEIC' in again.notes[0]
    save(tmp_path / 'i' / '1' / 'b.png')
    assert len(listing.find(tmp_path / 'i', '--i', cache=cache)) == 4


def test_results_of_earlier_runs_and_what_systems_make_are_passed_over_and_said(tmp_path):
    photos = tmp_path / 'photos'
    for name in ('a.png', 'sub/b.jpg', 'other/manifest/c.png'):
        save(photos / name)
    for place, record in (('save', 'results.json'), ('old/priors', 'manifest.json')):
        save(photos / place / 'a_0.png')
        save(photos / place / 'condition_1' / 'a.png')
        files.write_json(photos / place / record, {'settings': {}, 'pictures': {}})
    (photos / 'sub' / 'manifest.json').write_text('{"name": "of a web page"}')
    (photos / 'other' / 'results.json').write_text('no JSON')
    for name in ('@eaDir/a.png/SYNOPHOTO_THUMB_XL.png', '#recycle/x.png', '$RECYCLE.BIN/y.png', '.thumbnails/z.png',
                 '__MACOSX/a.png', 'sub/.hidden.png', 'sub/._b.jpg'):
        save(photos / name.removesuffix('._b.jpg')) if not name.endswith('.jpg') else (photos / name).touch()
    for name in ('Thumbs.db', 'sub/notes.txt', 'a.txt', 'b.CR2', 'c.HEIC', 'sub/d.heif', 'README'):
        (photos / name).touch()
    found = listing.find(photos, '--input')
    assert ids(found) == ['a', 'other/manifest/c', 'sub/b']
    notes = [note.replace(str(photos), 'P') for note in found.notes]
    assert len(notes) == 3
    assert notes[0].startswith('P: passed over 2 folders of earlier results (') and 'save' in notes[0]
    assert "4 folders of the system's own (" in notes[0]
    assert notes[1] == 'P: passed over for their ending: 2 .json, 2 .txt, 1 without one, 1 .cr2'
    assert notes[2].startswith('P: passed over c.HEIC, sub/d.heif: HEIC cannot be read here; convert it')


def test_results_beside_the_photographs_are_passed_over_unless_there_is_nothing_else(tmp_path):
    for name in ('a.png', 'sub/b_7.png', 'a_0.png', 'a_1.png', 'sub/b_7_0.png', 'comparison.png', 'condition_1/a.png'):
        save(tmp_path / name)
    for record in ('results.json', 'manifest.json'):
        files.write_json(tmp_path / record, {'settings': {}, 'pictures': {'a': {}, 'sub/b_7': {}}})
    found = listing.find(tmp_path, '--input')
    assert ids(found) == ['a', 'sub/b_7'] and '5 results of an earlier run' in found.notes[0]
    for name in ('a.png', 'sub/b_7.png'):
        (tmp_path / name).unlink()
    assert ids(listing.find(tmp_path, '--input')) == ['a_0', 'a_1', 'comparison', 'condition_1/a', 'sub/b_7_0']


def test_photographs_beside_which_results_were_put_are_still_found_from_above(tmp_path):
    for name in ('2020/a.png', '2020/b.png', '2020/a_0.png', '2020/AP/condition_1/a.png', '2021/c.png'):
        save(tmp_path / name)
    for record in ('2020/results.json', '2020/AP/manifest.json'):
        files.write_json(tmp_path / record, {'settings': {}, 'pictures': {'a': {}}})
    found = listing.find(tmp_path, '--input')
    assert ids(found) == ['2020/a', '2020/b', '2021/c']
    assert '1 folder of earlier results (2020/AP), 1 result of an earlier run' in found.notes[0]


def test_a_sub_folder_that_may_not_be_read_is_a_line_and_the_folder_itself_an_error(tmp_path, monkeypatch):
    save(tmp_path / 'i' / 'a.png')
    save(tmp_path / 'i' / 'secret' / 'b.png')
    scandir, closed = os.scandir, tmp_path / 'i' / 'secret'

    def refused(folder):
        if Path(folder) == closed:
            raise PermissionError(13, 'Permission denied', str(folder))
        return scandir(folder)
    monkeypatch.setattr(listing.os, 'scandir', refused)
    found = listing.find(tmp_path / 'i', '--i', cache=tmp_path / 'scan.npz')
    assert ids(found) == ['a'] and found.notes == (f'{closed}: cannot be read (Permission denied); passed over',)
    assert not (tmp_path / 'scan.npz').exists()  # permissions may change
    closed = tmp_path / 'i'
    with pytest.raises(UserError, match='not readable'):
        listing.find(tmp_path / 'i', '--i')


@pytest.mark.parametrize(('given', 'says'), [('photo.heic', 'HEIC cannot be read here; convert it'),
                                             ('only heic', r'has no images .*passed over a\.heic: HEIC cannot'),
                                             ('binary.bin', 'neither an image'), ('odd', 'it lists gone.png')])
def test_what_holds_no_pictures_is_an_error_with_the_remedy(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    Path('photo.heic').touch()
    Path('only heic').mkdir()
    Path('only heic/a.heic').touch()
    Path('binary.bin').write_bytes(b'\0\1\2')
    Path('odd').write_text('gone.png\n')
    with pytest.raises(UserError, match=says):
        listing.find(given, '--i')


@pytest.mark.parametrize('encoding', ['plain', 'UTF-8 BOM', 'UTF-16 LE', 'UTF-16 BE', 'CRLF'])
def test_lists_keep_their_order_and_are_read_as_editors_write_them(tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    for name in ('b é.png', 'a.png', "it's.png", '#1.png'):
        save(tmp_path / 'in' / name)
    save(Path('#2.png'))
    text = '# a comment\n"in/b é.png"\n\n  in/a.png\n\'in/it\'s.png\'\n# in/a.png\n./in/#1.png\n#2.png\n'
    content = {'UTF-8 BOM': codecs.BOM_UTF8 + text.encode(), 'CRLF': text.replace('\n', '\r\n').encode(),
               'UTF-16 LE': codecs.BOM_UTF16_LE + text.encode('utf-16-le'),
               'UTF-16 BE': codecs.BOM_UTF16_BE + text.encode('utf-16-be')}.get(encoding, text.encode())
    Path('list.txt').write_bytes(content)
    found = listing.find('list.txt', '--i')
    assert ids(found) == ['in/b é', 'in/a', "in/it's", 'in/#1', '#2'] and found.kind == listing.LIST
    assert found.path(0).read_bytes() == (tmp_path / 'in' / 'b é.png').read_bytes()


def test_a_file_is_an_image_or_a_mask_never_both(tmp_path):
    def apart(images: str, masks: str) -> tuple[list[str], list[str]]:
        found = [listing.find(tmp_path / given, '--i', unique=i == 0) for i, given in enumerate((images, masks))]
        return tuple(ids(one) for one in pairs.apart(*found))

    for name in ('both/b_mask.png', 'both/a.jpg', 'both/b.jpg', 'both/sub/c.jpg', 'both/a_mask.png',
                 'both/sub/c_mask.png', 'one/a.png', 'one/masks/a.png', 'one/masks/b.png', 'mixed/a.png',
                 'mixed/b_mask.png'):
        save(tmp_path / name)
    assert apart('both', 'both') == (['a', 'b', 'sub/c'], ['a_mask', 'b_mask', 'sub/c_mask'])
    assert apart('one', 'one/masks') == (['a'], ['a', 'b'])
    assert apart('one/masks', 'one') == (['a', 'b'], ['a'])
    assert apart('both/a.jpg', 'both/a_mask.png') == (['a'], ['a_mask'])
    (tmp_path / 'link').symlink_to('both')
    assert apart('both', 'link') == (['a', 'b', 'sub/c'], ['a_mask', 'b_mask', 'sub/c_mask'])
    (tmp_path / 'all.txt').write_text(''.join(f'{tmp_path}/both/{name}\n' for name in (
        'b.jpg', 'a_mask.png', 'a.jpg', 'b_mask.png')))
    assert apart('all.txt', 'all.txt') == (['both/b', 'both/a'], ['both/a_mask', 'both/b_mask'])
    for images, masks in (('mixed', 'mixed'), ('one/a.png', 'one/a.png')):
        with pytest.raises(UserError, match=r'is given as an image and as a mask; give images and masks folders'):
            apart(images, masks)
