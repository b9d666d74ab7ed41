"""Folders of pictures through both stages: odd names, links, one mask for all, damaged files, results beside inputs."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Guided_Upsample import infer as stage_2
from ict import errors, files, options
from ict.command import run
from ict.data import geometry, pairs
from ict.errors import UserError
from ict.log import one_line
from tests.conftest import files_of, photograph
from tests.pictures import complete, encoded, grown, noise, places, tiff, usual_mask
from Transformer import infer as stage_1

ODD_NAMES = [
    b'with space.png', 'Übergröße 写真.png'.encode(), b'-dash.png', b'--overwrite.png', b'a.b.c.png', b'new\nline.png',
    b'\xff\xfe not utf-8.png', b'tab\t.png', b'colour \x1b[31m.png', b'quote\'".png', b'*?[x].png', b'%s{0}.png',
    b'semi;rm -rf $HOME.png', b'x' * 240 + b'.png', b'sub/deeper/a.png', b'sub/a.png', b'sub.png/inner.png',
    b'UPPER.PNG', b'trailing .png', b'a..png', b'\\back\\slash.png']


def test_odd_file_names_links_and_folders(tiny, tmp_path, capfd):
    place = places(tmp_path)
    picture = encoded(Image.fromarray(noise(0, 20, 24)), 'PNG')
    for name in ODD_NAMES:
        path = os.path.join(os.fsencode(place['images']), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(picture)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'linked.png').write_bytes(picture)
    (place['images'] / 'link.png').symlink_to(tmp_path / 'elsewhere' / 'linked.png')
    (place['images'] / 'folder').symlink_to(tmp_path / 'elsewhere')
    (place['images'] / 'round').symlink_to(place['images'])
    (place['images'] / 'sub' / 'up').symlink_to('..')
    (place['images'] / 'nowhere.png').symlink_to('gone.png')
    (place['images'] / 'itself.png').symlink_to('itself.png')
    os.mkfifo(place['images'] / 'pipe.png')  # which would wait for ever
    (place['images'] / ('y' * 251 + '.png')).write_bytes(picture)  # its result's name would be too long
    (place['images'] / '.hidden.png').write_bytes(b'not looked at')
    (place['images'] / 'notes.txt').write_text('not looked at')
    Image.fromarray(usual_mask(20, 24)).save(place['masks'] / 'm.png')
    before = files_of(place['images'])
    assert complete(tiny, place) == (1, 1)
    said = capfd.readouterr().err
    results = {os.fsencode(p.relative_to(place['save'])) for p in place['save'].rglob('*_0.png')}
    good = [name[:-4] for name in [*ODD_NAMES, b'link.png', b'folder/linked.png']]
    assert results == {name + b'_0.png' for name in good}
    assert f'3 of {len(good) + 3} pictures failed' in said
    for name, why in (('nowhere', 'no such image'), ('itself', 'unreadable image'), ('y' * 251, 'cannot be written')):
        assert any(name in line and why in line for line in said.splitlines()), said
    assert '\x1b[31m' not in said
    assert files_of(place['images']) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['elsewhere', 'images', 'masks', 'save']
    listed = tmp_path / 'list.txt'
    listed.write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join(os.fsencode(place['images']) + b'/' + n for n in ODD_NAMES
                                                        if b'\n' not in n and n.strip() == n))
    assert len(pairs.listing(listed, '--i')) == len(ODD_NAMES) - 1


def test_messages_stay_on_one_line_whatever_a_file_is_called():
    assert one_line('a\nb\r\x1b[2J\u2028c') == 'a\\nb\\r\\x1b[2J\\u2028c'


def test_a_single_mask_for_a_folder_inverted_and_grown(tiny, tmp_path):
    place = places(tmp_path)
    sizes = {'a': (40, 40), 'b': (40, 60), 'c': (30, 20)}
    for name, size in sizes.items():
        Image.fromarray(noise(0, *size)).save(place['images'] / f'{name}.png')
    mask = np.full((40, 40), 255, np.uint8)
    mask[20, 20] = 0
    Image.fromarray(mask).save(place['masks'] / 'm.png')
    assert complete(tiny, {**place, 'masks': place['masks'] / 'm.png'},
                    common=('--invert_mask', '--dilate', 3)) == (0, 0)
    y, x = np.mgrid[0:40, 0:40] - 20
    disc = x ** 2 + y ** 2 <= 9
    for name, size in sizes.items():
        before, after = (np.asarray(Image.open(place[p] / f)) for p, f in (('images', f'{name}.png'),
                                                                        ('save', f'{name}_0.png')))
        hole = grown(disc, *size)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert (after[hole] != before[hole]).any(-1).mean() > 0.9


def test_geometry_hole_works_on_a_square_around_the_hole(tiny, tmp_path):
    """The far part of the picture has no influence, so a small hole in a large picture is done in detail."""
    place = places(tmp_path)
    picture = noise(0, 400, 700)
    mask = np.zeros((400, 700), np.uint8)
    mask[380:395, 20:60] = 255
    other = picture.copy()
    other[:, 300:] = 7
    for name, pixels in (('a', picture), ('b', other)):
        Image.fromarray(pixels).save(place['images'] / f'{name}.png')
    Image.fromarray(mask).save(place['masks'] / 'm.png')
    assert complete(tiny, place, 'hole') == (0, 0)
    one, two = (np.asarray(Image.open(place['save'] / f'{name}_0.png')) for name in 'ab')
    hole = mask > 127
    np.testing.assert_array_equal(one[~hole], picture[~hole])
    assert (two[~hole] == other[~hole]).all() and (one[hole] != picture[hole]).any()
    # same seed, other name: the priors differ, so compare what the network sees instead
    seen = []
    for pixels in (picture, other):
        [(frame, inside)] = geometry.frames_in(mask, 400, 700, 'hole')
        assert frame.height == frame.width == 256
        seen.append(geometry.sealed(geometry.cut(pixels, frame), inside, 32, Image.BICUBIC)[0].tobytes())
    assert seen[0] == seen[1]


def test_crop_with_a_square_mask_and_keep_size_fills_the_middle(tiny, tmp_path):
    place = places(tmp_path)
    Image.fromarray(noise(0, 30, 50)).save(place['images'] / 'a.png')
    Image.fromarray(usual_mask(24, 24)).save(place['masks'] / 'a.png')
    assert complete(tiny, place, 'crop') == (0, 0)
    before, after = (np.asarray(Image.open(place[p] / f)) for p, f in (('images', 'a.png'), ('save', 'a_0.png')))
    hole = np.zeros((30, 50), bool)
    hole[:, 10:40] = grown(usual_mask(24, 24) > 127, 30, 30)
    np.testing.assert_array_equal(after[~hole], before[~hole])
    assert (after[hole] != before[hole]).any()


def test_one_bad_picture_of_each_kind_is_listed_and_the_others_are_done(tiny, tmp_path, capfd):
    place = places(tmp_path)
    good = encoded(Image.fromarray(photograph(0, 40, 50)), 'PNG')
    sound = {'png': good, **{kind: encoded(Image.fromarray(photograph(0, 40, 50)), name) for kind, name in (
        ('jpg', 'JPEG'), ('webp', 'WEBP'), ('bmp', 'BMP'), ('tif', 'TIFF'))}}
    bad = {f'cut {kind}.{kind}': content[:len(content) // 2] for kind, content in sound.items()}
    bad |= {f'start {kind}.{kind}': content[:6] for kind, content in sound.items()}
    bad |= {'empty.png': b'', 'text.jpg': b'hello', 'planes.tif': tiff(noise(0, 9, 9, 3, np.uint16), separate=True),
            'float.tif': encoded(Image.fromarray(np.ones((9, 9), np.float32)), 'TIFF'), 'small.png': encoded(
                Image.new('L', (7, 90)), 'PNG'), 'gif.png': encoded(Image.new('P', (9, 9)), 'GIF')}
    for name, content in (*bad.items(), ('fine.png', good), ('wrong ending.jpg', good)):
        (place['images'] / name).write_bytes(content)
    (place['images'] / 'no mask.png').write_bytes(good)
    for name in (*bad, 'fine.png', 'wrong ending.jpg'):
        Image.fromarray(usual_mask(40, 50)).save(place['masks'] / f'{Path(name).stem}.png')
    (place['masks'] / 'no mask.png').write_bytes(good[:90])
    assert complete(tiny, place) == (1, 1)
    said = capfd.readouterr().err
    assert f'{len(bad) + 1} of {len(bad) + 3} pictures failed' in said
    for name in (*bad, 'no mask.png'):
        assert f'{name}: ' in said, name
    assert 'save it with interleaved channels' in said and 'Traceback' not in said
    assert {p.name for p in place['save'].glob('*.png')} == {'fine_0.png', 'wrong ending_0.png'}


def test_a_result_never_replaces_an_input(tiny, tmp_path, monkeypatch):
    """A list with paths beside the save place could lead there."""
    monkeypatch.chdir(tmp_path)
    for name in ('a.png', 'a_0.png', 'm.png', 'condition_1/a.png'):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(0, 20, 20)).save(name)
    before = files_of(tmp_path)
    Path('list.txt').write_text('a.png\na_0.png\n')
    ckpt = {'1': str(tiny['transformer']), '2': str(tiny['generator'])}
    with pytest.raises(UserError, match=r'condition_1/a\.png would be written, and is an input'):
        stage_1.main(['--ckpt_path', ckpt['1'], '--image_url', 'condition_1', '--mask_url', 'm.png', '--overwrite'])
    with pytest.raises(UserError, match=r'a_0\.png would be written, and is an input'):
        stage_2.main(['--ckpt_path', ckpt['2'], '--input', 'list.txt', '--mask', 'm.png', '--prior', '.',
                      '--save_path', '.', '--overwrite'])
    with pytest.raises(UserError, match='is the save place, which is never searched'):
        stage_1.main(['--ckpt_path', ckpt['1'], '--image_url', '.', '--mask_url', 'm.png'])
    assert {k: v for k, v in files_of(tmp_path).items() if k != 'list.txt'} == before


def test_a_full_disk_ends_the_run_with_one_line_and_a_name_that_cannot_be_written_does_not(monkeypatch, capsys):
    import errno

    monkeypatch.setattr('sys.argv', ['x'])
    full = OSError(errno.ENOSPC, 'No space left on device')

    def main(_: list[str]) -> int:
        raise errors.not_written(Path('a.png'), full)
    assert run(main) == 2
    assert capsys.readouterr().err == ('error: nothing more can be written (No space left on device); finished files '
                                       'are whole, and once there is room the same command continues '
                                       '(a training: with --ckpt_path)\n')
    for words, says in ((['x', '--overwrite'], 'begins anew'), (['x', '--overwrite', 'False', 'y'], 'continues'),
                        (['x', '--overwrite=True'], 'begins anew'), (['x', '--overwrite', 'no.png'], 'begins anew')):
        monkeypatch.setattr('sys.argv', words)
        assert f'the same command {says}' in options.how_to_go_on()
    line = errors.not_written(Path('a.png'), OSError(errno.ENAMETOOLONG, 'File name too long'))
    assert isinstance(line, UserError) and str(line) == 'a.png: cannot be written (File name too long)'


def test_unfinished_files_are_swept_and_others_left(tmp_path):
    for name in ('.part-x.png', 'sub/.part-y.png', 'a.png', '.other'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    files.sweep(tmp_path, below=False)
    assert set(files_of(tmp_path)) == {'sub/.part-y.png', 'a.png', '.other'}
    files.sweep(tmp_path)
    assert set(files_of(tmp_path)) == {'a.png', '.other'}
    files.sweep(tmp_path / 'missing')
