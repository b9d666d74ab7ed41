"""Ten small holes in a photograph of 12 megapixels: details of what --geometry hole makes of them, before and now.

``git worktree add ../before a8695d9 && python tests/benchmarks/holes_apart.py --before ../before`` has run.py of both
versions fill the same holes with the bundled pair: then one frame went around all of them, now each has its own. It
prints the seconds and the mean error and draws ``<save_place>/holes_apart.jpg``, a part of the photograph around each
hole at its own resolution: the photograph, the hole, before, now. The photograph is a bundled one, enlarged.
"""
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import cv2
import numpy as np

from ict import files, options, pretrained
from ict.command import run
from ict.data import encode, geometry, images
from ict.errors import require
from ict.runs import metrics, report
from tests.benchmarks import versions

PHOTOGRAPH = ROOT / 'images' / 'samples' / 'rocket.png'
WIDTH, HEIGHT = 4240, 2829
# x, y and radius in the photograph: sky three times, masts and girders five times, the rocket and its tip
HOLES = ((940, 520, 30), (1680, 1760, 40), (3500, 1100, 45), (2128, 880, 36), (2150, 1650, 40),
         (400, 1330, 36), (3990, 980, 40), (2966, 1120, 34), (1245, 2010, 40), (3050, 2250, 36))
DETAIL = 150  # pixels, side of a part that is shown
TITLES = ['photograph', 'hole', 'before', 'now']


def hole() -> np.ndarray:
    """The ten discs: (HEIGHT, WIDTH) bool."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y, radius in HOLES:
        cv2.circle(canvas, (x, y), radius, (255,), -1)
    return canvas > 0


def details(pictures: list[np.ndarray]) -> np.ndarray:
    """A sheet of the parts around all holes, two holes a row."""
    parts = [[geometry.cut(picture, geometry.Box(y - DETAIL // 2, x - DETAIL // 2, DETAIL, DETAIL))
              for picture in pictures] for x, y, _ in HOLES]
    return report.sheet([one + other for one, other in zip(parts[::2], parts[1::2], strict=True)], 2 * TITLES)


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/holes_apart.py', description='Small holes in a large photograph.')
    parser.add_argument('--before', required=True, help='a checkout of the other version')
    parser.add_argument('--save_place', default='./save/benchmark/holes_apart')
    args = parser.parse_args(argv)
    before = Path(args.before).resolve()
    require((before / 'run.py').is_file(), f'--before {args.before}: holds no run.py')
    output_dir = files.output_folder(args.save_place, '--save_place').resolve()

    # Photograph and mask
    photo, mask = images.bicubic(images.load_rgb(PHOTOGRAPH), WIDTH, HEIGHT), hole()
    encode.write(output_dir / 'photo.png', photo)
    encode.write(output_dir / 'mask.png', mask * np.uint8(255))

    # Both versions
    pair = pretrained.pair('demo')
    results = []
    for name, root in (('before', before), ('now', ROOT)):
        seconds, _ = versions.timed(root, [
            '--input_image', str(output_dir / 'photo.png'), '--input_mask', str(output_dir / 'mask.png'),
            '--transformer_ckpt', str(pair[0]), '--upsample_ckpt', str(pair[1]),
            '--geometry', 'hole', '--keep_size', '--sample_steps', '16'], output_dir / name)
        results.append(images.load_rgb(output_dir / name / 'save' / 'photo_0.png'))
        print(f'{name}: {seconds:.0f} s, {metrics.l1_in_hole(results[-1] / 255, photo / 255, mask):.1f} levels off in '
              f'the holes')

    # Their details
    path = output_dir / 'holes_apart.jpg'
    encode.write(path, details([photo, np.where(mask[..., None], np.uint8(255), photo), *results]), 'jpeg')
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
