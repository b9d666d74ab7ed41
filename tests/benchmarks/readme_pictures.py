"""The pictures of the readme, made anew with the bundled pair.

``python tests/benchmarks/readme_pictures.py`` writes to <save_place>: result.jpg (``python run.py``), wide_holes.jpg
(four completions of each hole in mask/wide), object_removed.jpg (mask/helmet.png), best_median_worst.jpg (``python -m
ict.evaluate`` on the bundled photographs, each with four of the bundled masks).
"""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image

from ict import files, options
from ict.command import run
from ict.data import geometry, images
from ict.errors import require
from ict.runs import report

SAMPLES, MASKS = ROOT / 'images' / 'samples', ROOT / 'mask' / 'testing_mask_dataset'
WIDE, OBJECT = ROOT / 'mask' / 'wide', ROOT / 'mask' / 'helmet.png'
SCENES_EACH = 4  # masks for each photograph
QUALITY = 85  # of the pictures, as JPEG


def called(output_dir: Path, *words: str) -> None:
    """Run one of the project's commands."""
    require(subprocess.run([sys.executable, *words, '--save_place', str(output_dir)], cwd=ROOT).returncode == 0,
            f'{" ".join(words)}: failed')


def run_py(output_dir: Path, *words: str) -> None:
    called(output_dir, str(ROOT / 'run.py'), *words)


def scenes(folder: Path) -> None:
    """Each photograph with ``SCENES_EACH`` masks, as files of equal names."""
    masks = sorted(MASKS.glob('*.png'))
    for i, photo in enumerate(sorted(SAMPLES.glob('*.png'))):
        for k in range(SCENES_EACH):
            mask = masks[(i + 3 * k) % len(masks)]
            for kind, path in (('photos', photo), ('masks', mask)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                (folder / kind / f'{photo.stem}_{k}.png').write_bytes(path.read_bytes())


def object_removed(output_dir: Path) -> np.ndarray:
    """The photograph with its reflections, with the holes, and without the reflections."""
    photo = images.load_rgb(SAMPLES / 'astronaut.png')
    hole = geometry.touched(images.load_rgb(OBJECT)[..., 0] > geometry.HOLE_LEVEL, *geometry.size_of(photo))
    return report.sheet([[photo, np.where(hole[..., None], np.uint8(255), photo),
                          images.load_rgb(output_dir / 'astronaut_0.png')]], ['original', 'masked', 'completed'])


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/readme_pictures.py', description='Make the pictures of the readme.')
    parser.add_argument('--save_place', default='./save/benchmark/readme_pictures')
    args = parser.parse_args(argv)
    output_dir = files.output_folder(args.save_place, '--save_place').resolve()
    runs = output_dir / 'runs'

    # Runs
    run_py(runs / 'result', '--sample_num', '3', '--visualize')
    run_py(runs / 'wide', '--input_image', str(SAMPLES), '--input_mask', str(WIDE), '--sample_num', '4', '--visualize')
    run_py(runs / 'object', '--input_image', str(SAMPLES / 'astronaut.png'), '--input_mask', str(OBJECT),
           '--keep_size', '--geometry', 'hole', '--dilate', '2')
    scenes(runs / 'scenes')
    called(runs / 'evaluation', '-m', 'ict.evaluate', '--input', str(runs / 'scenes' / 'photos'), '--mask',
           str(runs / 'scenes' / 'masks'), '--sample_num', '3')

    # Pictures
    for name, picture in (('result', images.load_rgb(runs / 'result' / 'comparison.png')),
                          ('wide_holes', images.load_rgb(runs / 'wide' / 'comparison.png')),
                          ('object_removed', object_removed(runs / 'object')),
                          ('best_median_worst', images.load_rgb(runs / 'evaluation' / 'sheet.png'))):
        Image.fromarray(picture).save(output_dir / f'{name}.jpg', quality=QUALITY)
        print(output_dir / f'{name}.jpg')
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
