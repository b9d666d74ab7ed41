"""Frames around the groups of a hole: nothing of the hole is left out, no two frames overlap."""
from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ict.data import geometry


def covered(boxes: list[geometry.Box], shape: tuple[int, int]) -> np.ndarray:
    count = np.zeros(shape, int)
    for box in boxes:
        geometry.cut(count, box)[:] += 1
    return count


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 400), st.integers(30, 400), st.data())
def test_frames_cover_the_hole_lie_in_the_picture_and_do_not_overlap(height, width, data):
    hole = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(1, 8))):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        hole[top:top + data.draw(st.integers(1, 60)), left:left + data.draw(st.integers(1, 60))] = True
    boxes = geometry.boxes_around(hole)
    count = covered(boxes, hole.shape)
    assert (count[hole] == 1).all() and count.max() == 1
    for box in boxes:
        assert box.top >= 0 and box.left >= 0 and box.top + box.height <= height and box.left + box.width <= width
        assert geometry.cut(hole, box).any()


def test_specks_far_apart_have_small_frames_and_neighbours_share_one():
    hole = np.zeros((3000, 4000), bool)
    for top, left in itertools.product((400, 1500, 2600), (500, 2000, 3500)):
        hole[top:top + 20, left:left + 30] = True
    boxes = geometry.boxes_around(hole)
    assert len(boxes) == 9 and all(box.height == box.width == 256 for box in boxes)
    hole[630:650, 540:560] = True
    assert len(geometry.boxes_around(hole)) == 9


def test_one_group_has_the_frame_of_the_whole_hole():
    hole = np.zeros((200, 300), bool)
    hole[50:90, 100:220] = True
    [frame] = geometry.frames_in(hole.astype(np.uint8) * 255, 200, 300, 'hole')
    assert frame.box == geometry.around(geometry.Box(50, 100, 40, 120), 200, 300)
    assert (frame.hole == geometry.cut(hole, frame.box)).all() and frame.hole.sum() == hole.sum()


def test_without_a_hole_it_is_the_middle_square():
    assert geometry.boxes_around(np.zeros((20, 30), bool)) == [geometry.Box(0, 5, 20, 20)]
