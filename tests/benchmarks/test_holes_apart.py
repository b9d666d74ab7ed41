"""The benchmark's holes lie so far apart that each has a frame, and every detail shows one."""
from __future__ import annotations

import numpy as np

from ict.data import geometry
from tests.benchmarks import holes_apart


def test_each_of_the_ten_holes_has_a_frame_and_a_row_of_details():
    hole = holes_apart.hole()
    boxes = geometry.boxes_around(hole)
    assert len(boxes) == len(holes_apart.HOLES) == 10
    grey = hole[..., None].repeat(3, axis=2) * np.uint8(255)
    sheet = holes_apart.details([grey, grey, grey, grey])
    side, gap, head = holes_apart.DETAIL, 6, 22
    for row in range(5):
        for column in range(8):
            part = sheet[head + row * (side + gap):, gap + column * (side + gap):][:side, :side]
            assert part[side // 2, side // 2].min() == 255 and not part[[0, 0, -1, -1], [0, -1, 0, -1]].any()
