"""Several visitors, visitors who change their mind, and what is left afterwards."""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ict.data import images
from tests.conftest import photograph


@pytest.fixture(scope='module')
def slow_server(start_server):
    return start_server('tests.app.stand_in', 0.5)


@pytest.fixture
def open_painted(open_tab, slow_server, tmp_path):
    """Opens a tab with a photo of that name, painted over in its middle."""
    def open_one(name):
        path = tmp_path / f'{name}.png'
        Image.fromarray(photograph(len(name), 120, 160)).save(path)
        tab = open_tab(slow_server.address)
        tab.open_photo(path)
        tab.stroke((0.3, 0.5), (0.7, 0.5))
        return tab

    return open_one


def test_a_cancelled_computation_ends_and_the_next_one_works(open_painted, slow_server):
    tab = open_painted('first')
    tab.press('Complete')
    tab.page.get_by_text('/5 passes').wait_for()
    tab.press('Cancel')
    slow_server.said('cancelled first after [1-4] passes')
    assert tab.message.inner_text() == 'Cancelled.'
    assert tab.completions.count() == 0
    assert tab.painted(0.5, 0.5)
    tab.complete()


def test_a_second_visitor_sees_the_place_in_the_queue_and_gets_the_completions_of_the_own_photo(
        open_painted, tmp_path):
    one, two = open_painted('one'), open_painted('the second')
    one.press('Complete')
    one.page.get_by_text('/5 passes').wait_for()
    two.press('Complete')
    two.page.get_by_text('queue: 1/1').wait_for()
    for tab, name in ((one, 'one'), (two, 'the second')):
        tab.completions.nth(3).wait_for()
        result = tab.download(tmp_path)
        photo, changed = images.load_rgb(tmp_path / f'{name}.png'), images.load_rgb(result)
        assert result.name.startswith(name)
        assert (photo[:30] == changed[:30]).all()
        assert np.any(photo != changed)


def test_a_closed_tab_ends_its_computation(open_painted, slow_server):
    left, stays = open_painted('left'), open_painted('stays')
    left.press('Complete')
    left.page.get_by_text('/5 passes').wait_for()
    stays.press('Complete')
    stays.page.get_by_text('queue: 1/1').wait_for()
    left.page.close()
    slow_server.said('cancelled left after [1-4] passes')
    stays.completions.nth(3).wait_for()


def test_nothing_is_left_when_the_page_ends(open_painted, slow_server):
    tab = open_painted('last')
    tab.press('Complete')
    tab.page.get_by_text('/5 passes').wait_for()
    assert slow_server.end() == 0
    assert slow_server.files() == []
    assert list(slow_server.folder.iterdir()) == []
