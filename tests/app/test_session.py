"""What a tab works on, without a browser."""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from ict.data import encode, images
from ict.errors import UserError
from ict.page.session import Session, Sessions
from ict.pipeline import Cancelled
from tests.app.conftest import within
from tests.app.stand_in import fill_with_noise
from tests.conftest import photograph

DOT = [{'tool': 'brush', 'radius': 5.0, 'points': [30, 24]}]


@pytest.fixture
def session(tmp_path):
    folder = tmp_path / 'session'
    folder.mkdir()
    return Session(folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.fromarray(photograph(0)).save(path)
    return path


def complete(session, pipeline=fill_with_noise, **options):
    session.complete(pipeline, **{'samples': 3, 'seed': 0, 'progress': lambda done, total: None, **options})


def test_a_saved_completion_has_the_photos_depth_channels_and_colour_profile(session, tmp_path):
    native = np.random.default_rng(0).integers(0, 65536, (48, 64, 4)).astype(np.uint16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    encode.write(tmp_path / 'deep.png', native, icc_profile=profile)
    session.open_photo(tmp_path / 'deep.png')
    session.prepare(DOT, 0)
    complete(session)
    saved = images.load(session.saved(2))
    assert saved.native.dtype == np.uint16
    assert saved.icc_profile == profile
    assert ((saved.native != native).any(-1) == (session.hole > 0)).all()


def test_the_hole_grows_by_exactly_so_many_pixels(session, photo):
    session.open_photo(photo)
    sizes = []
    for grow in (0, 4):
        session.prepare([{'tool': 'brush', 'radius': 0.6, 'points': [30.5, 24.5]}], grow)
        rows, columns = np.nonzero(session.hole)
        sizes.append((rows.min(), rows.max(), columns.min(), columns.max()))
    assert sizes == [(24, 24, 30, 30), (20, 28, 26, 34)]


def test_a_mask_of_another_size_grows_to_every_pixel_that_it_touches(session, photo, tmp_path):
    mask = np.zeros((12, 32), np.uint8)
    mask[3, 5] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    session.open_photo(photo)
    lines = session.open_mask(tmp_path / 'mask.png')
    assert lines == ['mask.png: has other proportions than the photo and is stretched over it']
    session.prepare([{'tool': 'mask', 'number': 0}], 0)
    expected = np.zeros((48, 64), np.uint8)
    expected[12:16, 10:12] = 255
    assert (session.hole == expected).all()


def test_a_mask_for_the_stored_pixels_of_a_turned_photo_is_turned_with_it(session, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph(0)).save(tmp_path / 'photo.png', exif=exif)
    mask = np.zeros((48, 64), np.uint8)
    mask[5:9, 20:30] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    session.open_photo(tmp_path / 'photo.png')
    assert session.open_mask(tmp_path / 'mask.png') == [
        'mask.png: lies as the photo does before it is turned upright; turned with it']
    session.prepare([{'tool': 'mask', 'number': 0}], 0)
    assert (session.hole == np.rot90(mask, -1)).all()


def test_a_photo_that_cannot_be_read_leaves_everything_as_it_was(session, photo, tmp_path):
    session.open_photo(photo)
    session.prepare(DOT, 0)
    complete(session)
    before = (session.photo, session.completions)
    (tmp_path / 'text.png').write_text('no picture')
    for read in (session.open_photo, session.open_mask):
        with pytest.raises(UserError, match=r'^text.png: unreadable image'):
            read(tmp_path / 'text.png')
    assert (session.photo, session.completions) == before


def test_without_photo_hole_or_completion_a_line_says_what_to_do(session, photo, tmp_path):
    for act in (lambda: session.prepare(DOT, 0), lambda: session.open_mask(photo)):
        with pytest.raises(UserError, match='there is no photo'):
            act()
    session.open_photo(photo)
    with pytest.raises(UserError, match='there is no hole'):
        session.prepare([], 4)
    for number in (0, -1):
        with pytest.raises(UserError, match='complete the photo again'):
            session.saved(number)


@pytest.mark.parametrize('late', ['cancel', 'another photo', 'closed'])
def test_completions_that_nobody_waits_for_any_more_are_dropped(late, tmp_path, photo):
    sessions = Sessions(tmp_path)
    session = sessions.of('tab')

    def pipeline(*args, **options):
        completions = fill_with_noise(*args, **options)
        {'cancel': session.cancel.set, 'another photo': lambda: session.open_photo(photo),
         'closed': lambda: sessions.leave('tab')}[late]()
        return completions

    session.open_photo(photo)
    session.prepare(DOT, 0)
    with pytest.raises(Cancelled):
        complete(session, pipeline)
    assert session.completions == []


def test_a_tab_whose_connection_broke_keeps_its_files_while_it_is_used(tmp_path, photo):
    sessions = Sessions(tmp_path, patience=1)
    for key in ('back', 'away'):
        sessions.of(key).open_photo(photo)
        sessions.leave(key)
    session = sessions.of('back')
    within(9, lambda: sessions.of('back') is session and list(tmp_path.glob('tmp*')) == [session.folder])
    assert session.photo is not None
    within(9, lambda: not list(tmp_path.glob('tmp*')))


def test_a_cancelled_computation_stays_cancelled_when_the_next_one_begins(session, photo):
    session.open_photo(photo)
    session.prepare(DOT, 0)

    def pipeline(*args, cancel, **options):
        session.cancel.set()
        session.prepare(DOT, 0)  # the visitor asks again before the first computation has looked
        return fill_with_noise(*args, cancel=cancel, **options)

    with pytest.raises(Cancelled):
        complete(session, pipeline)
    complete(session)
    assert len(session.completions) == 3


def test_the_noise_is_that_of_run_py_for_the_photos_file(session, photo):
    """It depends on the name, which stays when a completion becomes the photo."""
    seen = []

    def pipeline(path, mask, *, name, **options):
        seen.append((path.read_bytes(), name))
        return fill_with_noise(path, mask, name=name, **options)

    session.open_photo(session.receive(photo, 'holiday.png'))
    for _ in range(2):
        session.prepare(DOT, 0)
        complete(session, pipeline)
        saved = session.saved(0).read_bytes()
        session.go_on(0)
    first, second = seen
    assert first[1] == second[1] == 'holiday'
    assert second[0] != first[0]
    assert saved == session.photo.path.read_bytes()
