"""What is painted, replayed in the photo's own pixels."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict.errors import UserError
from ict.page.marks import hole_of
from tests.app.conftest import distance

HEIGHT, WIDTH = 40, 60
coordinates = st.floats(-20, 80, width=32)


def brush(*points, radius=3.0, tool='brush'):
    return {'tool': tool, 'radius': radius, 'points': [c for point in points for c in point]}


def hole(*marks, masks=()):
    return hole_of(marks, HEIGHT, WIDTH, masks)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5), st.floats(0.25, 30, width=32))
def test_a_stroke_covers_the_pixels_whose_centres_are_within_its_radius(points, radius):
    reach = distance(points, HEIGHT, WIDTH)
    painted = hole(brush(*points, radius=radius))
    assert painted[reach < radius - 1e-4].all()
    assert not painted[reach > radius + 1e-4].any()


def test_marks_are_replayed_in_their_order():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :10] = True
    dot, same_dot = brush((30, 20)), brush((30, 20), tool='eraser')
    assert not hole(dot, same_dot).any()
    assert (hole(same_dot, dot) == hole(dot)).all()
    assert (hole(dot, {'tool': 'invert'}) == ~hole(dot)).all()
    assert (hole(dot, {'tool': 'mask', 'number': 0}, masks=[mask]) == mask).all()
    assert (hole({'tool': 'mask', 'number': 0}, dot, masks=[mask]) == mask | hole(dot)).all()


def test_a_mask_file_stays_what_it_was_under_later_strokes():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    hole({'tool': 'mask', 'number': 0}, brush((30, 20)), masks=[mask])
    assert not mask.any()


@pytest.mark.parametrize('mark', [
    {}, 7, {'tool': 'spray'}, {'tool': 'mask', 'number': 0}, {'tool': 'mask', 'number': -1},
    brush((1, float('nan'))), brush((1e300, 1)), brush(), {'tool': 'brush', 'radius': 'wide', 'points': [1, 2]},
    {'tool': 'brush', 'radius': 3, 'points': [1, 2, 3]}, {**brush((1, 1)), 'tool': 'pen'}], ids=str)
def test_what_is_no_mark_is_refused_with_a_line(mark):
    with pytest.raises(UserError, match='load the page anew'):
        hole(mark)
