"""The page in a real browser; the networks are a stand-in that fills holes with noise."""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ict.data import images
from ict.errors import UserError
from tests.app.conftest import BRUSH, distance, within
from tests.conftest import photograph

GROW = 4  # pixels, the page's first choice


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.fromarray(photograph(0, 120, 160)).save(path)
    return path


def save_photo(path, height, width, orientation):
    """A JPEG that is (height, width) once turned as its EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if orientation >= 5:
        height, width = width, height
    tile = photograph(1, 150, 200)
    Image.fromarray(np.tile(tile, (height // 150 + 1, width // 200 + 1, 1))[:height, :width]).save(path, exif=exif)


@pytest.mark.parametrize(('height', 'width', 'orientation', 'screen'), [
    (900, 601, 6, (1280, 900)), (150, 2400, 1, (1280, 900)), (3000, 4000, 1, (1280, 900)), (900, 601, 1, (390, 844))],
    ids=['portrait', 'very wide', '12 megapixels', 'on a phone'])
def test_every_pixel_outside_the_strokes_is_the_photos(open_tab, tmp_path, height, width, orientation, screen):
    path = tmp_path / 'été #1, 50 %.jpg'
    save_photo(path, height, width, orientation)
    tab = open_tab(width=screen[0], height=screen[1])
    tab.open_photo(path)
    strokes = [tab.stroke((0.3, 0.3), (0.6, 0.45)), tab.stroke((0.5, 0.7), (0.5, 0.7))]
    radius = BRUSH / 2 * width / tab.canvas.bounding_box()['width']
    tab.page.get_by_label('number input for How many completions').fill('3')
    tab.complete(3)
    tab.completions.nth(1).click()
    result = tab.download(tmp_path)
    assert result.name == 'été #1, 50 %_1.png'
    before, after = images.load(path).native, images.load(result).native
    changed = (before != after).any(-1)
    reach = np.minimum(*(distance([(x * width, y * height) for x, y in stroke], height, width) for stroke in strokes))
    assert not changed[reach > radius + GROW + 0.02].any()  # the page rounds to hundredths
    assert changed[reach < radius + GROW - 2].all()


def test_completions_come_with_the_likeliest_first_and_their_priors_on_request(open_tab, photo):
    tab = open_tab()
    tab.open_photo(photo)
    tab.stroke((0.3, 0.3), (0.6, 0.5))
    tab.complete()
    likelihoods = [float(text.split('=')[1]) for text in tab.completions.all_inner_texts()]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert len(set(likelihoods)) == 4
    priors = tab.completions.first.locator('.priors img')
    assert priors.count() == 2
    assert not priors.first.is_visible()
    tab.page.get_by_label('Show the priors').check()
    assert priors.first.is_visible()
    assert priors.first.evaluate('image => image.naturalWidth') == 32


def test_undo_eraser_invert_and_clear_change_what_is_painted(open_tab, photo):
    tab = open_tab()
    tab.open_photo(photo)
    one, two = (0.3, 0.3), (0.7, 0.7)
    tab.stroke(one, one)
    tab.stroke(two, two)
    seen = [(tab.painted(*one), tab.painted(*two))]
    for step in ('Undo', 'Invert', 'Eraser', 'Control+z', 'Control+z', 'Clear'):
        if step == 'Eraser':
            tab.press(step)
            tab.stroke(two, two)
        elif step == 'Control+z':
            tab.page.keyboard.press(step)
        else:
            tab.press(step)
        seen.append((tab.painted(*one), tab.painted(*two)))
    assert seen == [(True, True), (True, False), (False, True), (False, False), (False, True), (True, False),
                    (False, False)]


def test_a_mask_file_takes_the_place_of_painting(open_tab, photo, tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 40:60] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    tab = open_tab()
    tab.open_photo(photo)
    tab.stroke((0.1, 0.1), (0.2, 0.1))
    tab.page.locator('#canvas .mask-file').set_input_files(tmp_path / 'mask.png')
    within(5, lambda: tab.painted(0.6, 0.4))
    assert not tab.painted(0.15, 0.1)
    tab.complete()
    changed = (images.load_rgb(tab.download(tmp_path)) != images.load_rgb(photo)).any(-1)
    assert changed[40:60, 80:120].all()
    assert not changed[:40 - GROW].any()
    assert not changed[:, 120 + GROW:].any()


def test_a_chosen_completion_becomes_the_photo_for_the_next_hole(open_tab, photo, tmp_path):
    tab = open_tab()
    tab.open_photo(photo)
    tab.stroke((0.2, 0.2), (0.4, 0.2))
    tab.complete()
    first = images.load_rgb(tab.download(tmp_path))
    tab.press('Go on from this one')
    tab.completions.first.wait_for(state='detached')
    assert not tab.painted(0.3, 0.2)
    tab.stroke((0.8, 0.8), (0.8, 0.8))
    tab.complete()
    second = images.load_rgb(tab.download(tmp_path))
    assert (second[:60] == first[:60]).all()
    assert (second[60:] != first[60:]).any()


def test_a_calm_completion_is_one(open_tab, photo):
    tab = open_tab()
    tab.open_photo(photo)
    tab.stroke((0.3, 0.3), (0.6, 0.5))
    tab.page.get_by_text('More settings').click()
    tab.page.get_by_label('Calm').check()
    tab.complete(1)


@pytest.mark.parametrize('how', ['drop', 'paste'])
def test_a_photo_can_be_dropped_and_pasted(open_tab, photo, how):
    tab = open_tab()
    tab.page.get_by_text('Drop a photo here').wait_for()
    tab.page.evaluate('''([bytes, how]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'photo.png'));
        if (how === 'drop') {
            document.querySelector('#canvas .studio').dispatchEvent(new DragEvent('drop', {dataTransfer: data}));
        } else {
            document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
        }
    }''', [list(photo.read_bytes()), how])
    tab.canvas.wait_for()


def test_a_bundled_photo_can_be_completed_and_without_a_hole_a_line_says_so(open_tab):
    tab = open_tab()
    tab.page.get_by_alt_text('coffee').click()
    tab.canvas.wait_for()
    tab.press('Complete')
    tab.page.get_by_text('there is no hole').wait_for()
    tab.stroke((0.3, 0.3), (0.6, 0.5))
    tab.complete()


def test_a_broken_file_is_refused_with_the_commands_line_and_the_photo_stays(open_tab, photo, tmp_path):
    tab = open_tab()
    broken = tmp_path / 'broken <b>.png'
    broken.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(UserError) as refused:
        images.load(broken)
    tab.page.locator('#canvas .photo-file').set_input_files(broken)
    within(20, lambda: tab.message.inner_text().startswith('broken'))
    line = str(refused.value).replace(f'{tmp_path}/', '')
    assert tab.message.inner_text().partition(': ')[2] == line.partition(': ')[2]
    tab.open_photo(photo)
    tab.page.locator('#canvas .photo-file').set_input_files(broken)
    within(20, lambda: tab.message.inner_text().partition(': ')[2] == line.partition(': ')[2])
    tab.stroke((0.3, 0.3), (0.6, 0.5))
    tab.complete()
