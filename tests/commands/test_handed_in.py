"""What people hand in, in one table: the exact pairs, holes and lines that must come out of each, or the error."""
from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Guided_Upsample import infer as stage_2
from Guided_Upsample.datasets import sources
from Guided_Upsample.datasets.dataset import ExampleConfig
from ict.data import geometry
from ict.errors import UserError
from ict.lock import locked
from ict.options import Given
from ict.runs import inputs
from ict.training import mask_sources
from run import arguments
from tests.conftest import DEVICE, command, module, photograph
from tests.pictures import GREY, RGB, encoded, exif, noise, places, png, upright
from Transformer import infer as stage_1

H, W = 32, 48
HOLE = np.zeros((H, W), bool)
HOLE[10:20, 12:30] = True
LEFT = np.indices((H, W))[1] < W // 2
RISING = np.linspace(20, 230, W).astype(np.uint8)
CLEAR = np.where(HOLE, np.uint8(0), np.uint8(255))
PHOTO = photograph(0, H, W)


def picture(pixels: np.ndarray, kind: str = 'PNG', **more: object) -> bytes:
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), kind, **more)


IMAGE, JPEG, MASK = picture(PHOTO), picture(PHOTO, 'JPEG'), picture(HOLE * np.uint8(255))
DRAWN = picture(np.dstack([np.zeros_like(CLEAR), 255 - CLEAR]))
CLEAR_HOLE = picture(np.dstack([np.zeros_like(CLEAR), CLEAR]))
CUT_OUT = picture(np.dstack([PHOTO, CLEAR]))
RESIZE = inputs.View(geometry='resize')
RECORD = json.dumps({'settings': {}, 'pictures': {}}).encode()
TURNED = picture(PHOTO, 'JPEG', exif=exif(6))


@dataclass(frozen=True)
class Case:
    """Files, what is typed, and what comes out.

    Attributes:
        pairs: file of the mask of each picture.
        hole: of every picture, in its own pixels.
        says: patterns of the lines, all of them and no others.
        error: pattern of the error instead; failed: of the error of the only picture.
    """

    files: dict[str, bytes]
    pairs: dict[str, str] = field(default_factory=dict)
    images: str = 'i'
    masks: str = 'm'
    view: inputs.View = RESIZE
    hole: np.ndarray | None = None
    says: tuple[str, ...] = ()
    error: str = ''
    failed: str = ''
    allow_truncated: bool = False


def named(images: str, masks: str, **more: object) -> Case:
    """Pictures and masks of these names in two folders, in the order in which they belong together."""
    first, second = images.split(), masks.split()
    made = {f'i/{name}.png': IMAGE for name in first} | {f'm/{name}.png': MASK for name in second}
    wanted = {} if 'error' in more else dict(zip(first, (f'{name}.png' for name in second), strict=False))
    return Case(made, wanted, **more)


def masked(mask: bytes, image: bytes = IMAGE, **more: object) -> Case:
    """One picture and its mask."""
    return Case({'i/a.png': image, 'm/a.png': mask}, **{'hole': HOLE, **more})


def beside(files: dict[str, bytes], *says: str) -> Case:
    """Other things in the folder of two photographs."""
    return Case({'i/a.png': IMAGE, 'i/s/b.png': IMAGE, 'm/a.png': MASK, 'm/b.png': MASK, **files},
                {'a': 'a.png', 's/b': 'b.png'}, says=says)


def lists(images: bytes, masks: bytes, **more: object) -> Case:
    made = {f'p/{name}.png': IMAGE for name in ('b', 'a', '10', '2')} | {f'q/{name}.png': MASK for name in ('a', 'b')}
    return Case({**made, 'i.txt': images, 'm.txt': masks}, images='i.txt', masks='m.txt', **more)


ELEVEN = [str(i) for i in range(1, 12)]
LINES = {'p/b': 'q/a.png', 'p/a': 'q/b.png', 'p/10': 'q/a.png'}
CASES = {
    # pairing
    'equal names': named('a b', 'a b'),
    'a suffix, and 10 before 2': named('1 10 2', '1_mask 10_mask 2_mask'),
    'a prefix': named('photo1 photo2', 'mask_photo1 mask_photo2'),
    'padded images': named(' '.join(f'{int(n):04}' for n in ELEVEN), ' '.join(ELEVEN)),
    'letter case': named('IMG_a IMG_b', 'img_A img_B'),
    'Unicode forms': named('\u00e9 \u00e8', unicodedata.normalize('NFD', '\u00e9 \u00e8')),
    'some without': named('a b c', 'a b x', error=r'i/c\.png: no mask has this name, while i/a\.png has m/a\.png'),
    'one mask with the name of one': Case(
        {'i/a.png': IMAGE, 'i/b.png': IMAGE, 'm/a.png': MASK}, {'a': 'a.png', 'b': 'a.png'}, says=(
            'm/a.png: is the only mask, so it serves all 2 images, though by its name it is that of i/a.png',)),
    'too few': named('a b c', 'a c', error=r'3 images but only 2 masks: i/b\.png has none'),
    'no names in common': named('p1 p2 p10', 'a b c', says=(
        'images and masks: no names in common, so paired in their natural order: p1.png with a.png, p2.png with b.png, '
        'p10.png with c.png .all of them: s/manifest.json.',)),
    'one folder for both': Case({'i/a.jpg': JPEG, 'i/a_mask.png': MASK, 'i/b.jpg': JPEG, 'i/b_mask.png': MASK},
                                {'a': 'a_mask.png', 'b': 'b_mask.png'}, masks='i'),
    'one folder that cannot be split': Case({'i/a.png': IMAGE, 'i/b.png': MASK}, masks='i',
                                            error=r'i/a\.png: is given as an image and as a mask'),
    'one file for both': Case({'i/a.png': IMAGE}, images='i/a.png', masks='i/a.png', error='is given as an image and'),
    'masks in the folder of pictures': Case({'i/a.png': IMAGE, 'i/m/a.png': MASK}, {'a': 'a.png'}, masks='i/m'),
    'two lists': lists(b'p/b.png\np/a.png\np/10.png\n', b'q/a.png\nq/b.png\nq/a.png\n', pairs=LINES),
    'two lists as editors write them': lists(
        b'\xef\xbb\xbf# pictures\r\n"p/b.png"\r\n\r\np/a.png\r\np/10.png\r\n',
        "q/a.png\n'q/b.png'\n# again\nq/a.png".encode('utf-16'), pairs=LINES),
    'two lists of different lengths': lists(b'p/b.png\np/10.png\n', b'q/a.png\nq/b.png\nq/a.png\n',
                                            error=r'q/a\.png: is listed twice'),
    'a list with paths that start at itself': Case({'p/a.png': IMAGE, 'm/a.png': MASK, 'p/i.txt': b'a.png'},
                                                   images='p/i.txt', error=r'p/i\.txt: it lists a\.png, which is no '
                                                   'file; paths start in the folder that the command runs in'),
    'a single mask for all': Case({'i/a.png': IMAGE, 'i/b.png': IMAGE, 'x.png': MASK}, {'a': 'x.png', 'b': 'x.png'},
                                  masks='x.png'),
    # masks
    '0 and 1': masked(picture(HOLE.astype(np.uint8))),
    '0 and 127': masked(picture(HOLE * np.uint8(127))),
    '0 and 1 in 16 bits': masked(png(HOLE.astype(np.uint16), 16, GREY)),
    'black and red': masked(picture(HOLE[..., None] * np.uint8([255, 0, 0]))),
    'black and red as JPEG': masked(picture(HOLE[..., None] * np.uint8([255, 0, 0]), 'JPEG', subsampling=0)),
    'black strokes on transparent ground': masked(DRAWN),
    'black with a transparent hole, not said': masked(CLEAR_HOLE, hole=~HOLE, says=(
        'm/a.png: 88% of it is hole; if the transparent part is the hole, add --invert_mask',)),
    'black with a transparent hole': masked(CLEAR_HOLE, view=inputs.View('sealed', 'resize', invert_mask=True)),
    'the transparent part': Case({'i/a.png': CUT_OUT}, {'a': 'a.png'}, masks='alpha', hole=HOLE),
    'an object cut out': Case({'i/a.png': picture(np.dstack([PHOTO, 255 - CLEAR]))}, {'a': 'a.png'}, masks='alpha',
                              hole=~HOLE, says=('i/a.png: 88% of it is hole; if the rest is the hole, add',)),
    'no transparent part': Case({'i/a.png': IMAGE}, masks='alpha', failed=r'i/a\.png: has no transparent part'),
    'a photograph': masked(picture(photograph(7, H, W)), failed=r'm/a\.png: has many colours or shades, so it is no'),
    'a marked photograph': masked(picture(np.where(HOLE[..., None], np.uint8([255, 0, 0]), PHOTO)),
                                  failed=r'm/a\.png: has many colours or shades, so it is no mask'),
    'nothing to fill': masked(picture(np.full((H, W), 9, np.uint8)),
                              failed=r'm/a\.png: nothing to fill; its brightest level is 9'),
    'nothing black to fill': masked(picture(np.full((H, W), 201, np.uint8)), view=inputs.View(invert_mask=True),
                                    failed=r'm/a\.png: nothing to fill; its darkest level is 201'),
    'black is the hole, not said': masked(picture(CLEAR), hole=~HOLE, says=('m/a.png: 88% of it is hole; if black is '
                                                                            'the hole, add --invert_mask',)),
    'black is the hole': masked(picture(CLEAR), view=inputs.View('sealed', 'resize', invert_mask=True)),
    'other proportions': masked(picture(np.indices((H, H))[1] < H // 2), hole=LEFT, says=(
        'm/a.png: 32 x 32 on a picture of 48 x 32 has other proportions; it is stretched',)),
    'of the stored pixels': masked(MASK, TURNED, hole=np.rot90(HOLE, -1), says=(
        'm/a.png: 48 x 32, which is how i/a.png lies before it is turned upright; turned with it',)),
    'of the upright pixels': masked(picture(np.rot90(HOLE, -1) * np.uint8(255)), TURNED, hole=np.rot90(HOLE, -1)),
    'a soft brush': masked(picture(HOLE * RISING), hole=HOLE & (RISING > 127), says=(
        'm/a.png: 100% of the pixels that it touches are between black and white; .*--dilate 3',)),
    # folders
    'earlier results': beside({'i/save/results.json': RECORD, 'i/save/a_0.png': IMAGE, 'i/save/AP/condition_1/a.png':
                               IMAGE, 'i/x/manifest.json': RECORD, 'i/x/condition_1/a.png': IMAGE},
                              r'i: passed over 2 folders of earlier results \((save, x|x, save)\)'),
    'thumbnails and recycle bins': beside({f'i/{name}/a.png': IMAGE for name in ('@eaDir', '#recycle', '__MACOSX',
                                                                                 '.thumbnails')} | {'i/Thumbs.db': b''},
                                          r"i: passed over 3 folders of the system's own \("),
    'other files': beside({'i/a.txt': b'', 'i/b.txt': b'', 'i/c.CR2': b'', 'm/x.psd': b''},
                          r'i: passed over for their ending: 2 \.txt, 1 \.cr2',
                          r'm: passed over for their ending: 1 \.psd'),
    'pictures of a telephone': beside({'i/c.HEIC': b''}, r'i: passed over c\.HEIC: HEIC cannot be read here; convert'),
    # files
    'a JPEG without its end': masked(MASK, JPEG[:-2], says=('i/a.png: lacks its end, but no row of its pixels',)),
    'a JPEG without its last rows': masked(MASK, JPEG[:-20], failed=r'i/a\.png: incomplete, .*add --allow_truncated'),
    'the same, allowed': masked(MASK, JPEG[:-20], allow_truncated=True, says=(
        'i/a.png: incomplete, its rows from 1. on are missing and filled as the decoder leaves them',)),
    '12 bits': masked(MASK, png(noise(0, H, W, 3, np.uint16) >> 4, 16, RGB),
                      says=('i/a.png: its values use 12 of 16 bits, and are scaled to all of them',)),
}


def holes(work: inputs.Inputs, view: inputs.View) -> list[np.ndarray]:
    """The hole of each picture in its own pixels, as stage 2 takes it."""
    found = []
    for i in range(len(work)):
        read, levels = work.read(i, view)
        frame, hole = geometry.hole_in(levels, *read.rgb.shape[:2], view.geometry)
        assert (frame.height, frame.width) == read.rgb.shape[:2]
        found.append(hole)
    return found


@pytest.mark.parametrize('name', CASES)
def test_what_is_handed_in_comes_out_as_it_was_meant_or_as_an_error(tmp_path, monkeypatch, name):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    for path, content in case.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    said: list[str] = []
    monkeypatch.setattr('tqdm.tqdm.write', lambda line, file=None: said.append(line))

    def find() -> inputs.Inputs:
        flags = inputs.ViewFlags(max_pixels=10 ** 6, allow_truncated=case.allow_truncated)
        return inputs.find(Given(case.images, '--input'), Given(case.masks, '--mask'), flags, 's')
    if case.error:
        with pytest.raises(UserError, match=case.error):
            find()
        return
    work = find()
    if case.failed:
        with pytest.raises(UserError, match=case.failed):
            work.read(0, case.view)
        return
    if case.pairs:
        assert {work.id(i): work.mask_files.name(work.numbers[i]) for i in range(len(work))} == case.pairs
    assert said == []  # finding says nothing yet: run.py does it several times
    for hole in holes(work, case.view):
        np.testing.assert_array_equal(hole, HOLE if case.hole is None else case.hole)
    assert len(said) == len(case.says), said
    for line, pattern in zip(said, case.says, strict=True):
        assert re.match(pattern, line), line


def test_a_training_takes_no_mask_for_a_picture_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('i').mkdir()
    for name, content in CASES['one folder for both'].files.items():
        Path(name).write_bytes(content)

    def find(mask_type: type[mask_sources.MaskSource]) -> sources.Source:
        return sources.find(sources.SourcePaths(Given('i', '--input'), mask_type, Path('s'), Given('i', '--mask')),
                            np.zeros((2, 3), np.float32), ExampleConfig(32, 8))
    paired = find(mask_sources.PairedFile)
    assert [paired.pictures.id(i) for i in range(len(paired.pictures))] == ['a', 'b']
    assert [paired.mask_source.path(i).name for i in range(2)] == ['a_mask.png', 'b_mask.png']
    assert len(find(mask_sources.RandomFile).pictures) == 2
    Path('i/c.jpg').write_bytes(JPEG)
    with pytest.raises(UserError, match='is given as an image and as a mask'):
        find(mask_sources.RandomFile)


# ---------------------------------------------------------------- through both stages

def both(tiny, place: dict[str, Path], masks: object, *options: str) -> tuple[int, int]:
    shared = ['--geometry', 'resize', '--device_target', DEVICE, *options]
    return (stage_1.main(['--ckpt_path', str(tiny['transformer']), '--image_url', str(place['images']), '--mask_url',
                          str(masks), '--save_url', str(place['save'] / 'AP'), '--sample_steps', '1', *shared]),
            stage_2.main(['--ckpt_path', str(tiny['generator']), '--input', str(place['images']), '--mask', str(masks),
                          '--prior', str(place['save'] / 'AP'), '--save_path', str(place['save']),
                          '--image_size', '32', '--keep_size', *shared]))


def test_results_keep_what_files_hold_beside_their_pixels_and_lines_come_once(tiny, tmp_path, capfd):
    place = places(tmp_path)
    facts = Image.Exif()
    facts[0x010F] = 'Maker'
    (place['images'] / 'p1.jpg').write_bytes(picture(PHOTO, 'JPEG', exif=facts.tobytes()))
    (place['images'] / 'p10.png').write_bytes(IMAGE)
    (place['images'] / 'p2.jpg').write_bytes(JPEG[:-2])
    (place['images'] / 'notes.txt').touch()
    for i, mask in enumerate((MASK, MASK, picture(np.zeros((H, W), np.uint8)))):
        (place['masks'] / f'{"abc"[i]}.png').write_bytes(mask)
    assert both(tiny, place, place['masks']) == (1, 1)
    said = capfd.readouterr().err.splitlines()
    for line in ('1 .txt', 'lacks its end', 'p1.jpg with a.png, p2.jpg with b.png, p10.png with c.png (all of them: '
                 f'{place["save"] / "AP" / "manifest.json"})'):
        assert sum(line in one for one in said) == 1, said
    assert any('c.png: nothing to fill; its brightest level is 0' in line for line in said)
    record = json.loads((place['save'] / 'AP' / 'manifest.json').read_text())['pictures']
    assert {name: entry['mask'] for name, entry in record.items()} == {'p1': 'a.png', 'p2': 'b.png', 'p10': 'c.png'}
    assert {path.name for path in place['save'].glob('*.png')} == {'p1_0.png', 'p2_0.png'}
    with Image.open(place['save'] / 'p1_0.png') as result:
        assert result.getexif()[0x010F] == 'Maker'
    for name, content in (('p1', (place['images'] / 'p1.jpg').read_bytes()), ('p2', JPEG)):
        result = np.asarray(Image.open(place['save'] / f'{name}_0.png'))
        np.testing.assert_array_equal(result[~HOLE], upright(content, 'RGB')[~HOLE])
        assert (result[HOLE] != upright(content, 'RGB')[HOLE]).any()


def test_transparent_parts_are_filled_and_opaque_afterwards(tiny, tmp_path, capfd):
    place = places(tmp_path)
    (place['images'] / 'a.png').write_bytes(CUT_OUT)
    assert both(tiny, place, 'alpha') == (0, 0)
    assert 'the scores compare with white' in capfd.readouterr().out
    result = np.asarray(Image.open(place['save'] / 'a_0.png'))
    np.testing.assert_array_equal(result[~HOLE], np.dstack([PHOTO, CLEAR])[~HOLE])
    assert (result[..., 3] == 255).all()


def test_run_takes_the_transparent_part_by_itself_and_only_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'i').mkdir()
    (tmp_path / 'i' / 'a.png').write_bytes(CUT_OUT)
    assert arguments(['--input_image', 'i']).input_mask == 'alpha'
    (tmp_path / 'i' / 'b.png').write_bytes(IMAGE)
    with pytest.raises(UserError, match=r'--input_mask: i/b\.png: has no transparent part that could be'):
        arguments(['--input_image', 'i'])
    (tmp_path / 'i' / 'b.png').write_bytes(CUT_OUT[:-30])  # said by the run, which completes the other
    assert arguments(['--input_image', 'i']).input_mask == 'alpha'
    (tmp_path / 'alpha').mkdir()
    with pytest.raises(UserError, match=r'--mask alpha: is the name of a file or folder here; write \./alpha for it'):
        inputs.find(Given('i', '--input'), Given('alpha', '--mask'), inputs.ViewFlags(), 's')


def test_a_second_run_or_evaluation_in_a_save_place_ends_before_it_changes_anything(tiny, tmp_path):
    place = places(tmp_path)
    (place['images'] / 'a.png').write_bytes(IMAGE)
    (place['masks'] / 'a.png').write_bytes(MASK)
    unfinished = place['save'] / 'results' / '.part-a.png'  # of the first
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    shared = ['--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'], '--save_place',
              place['save']]
    with locked(place['save'], '--save_place'):  # as a run in its stage 2 does
        for done in (command('run.py', '--input_image', place['images'], '--input_mask', place['masks'], *shared),
                     module('ict.evaluate', '--input', place['images'], '--mask', place['masks'], *shared)):
            assert done.returncode == 2
            assert f'error: --save_place {place["save"]}: is in use by another run' in done.stderr
        assert unfinished.exists() and not list(place['save'].rglob('a*.png'))
