"""Sheets for a blind judgement: which of two completions of a picture does a person prefer?

``python tests/benchmarks/side_by_side.py --first A --second B --save_place SHEETS`` takes two folders that
``python -m ict.evaluate`` has filled from the same pictures and masks. It draws some of the pictures and writes
``SHEETS/01.png`` ...: original, masked, and a sample of each evaluation, left and right by chance. ``key.csv`` tells
which is which, and is not to be looked at before all answers are written down.

``python tests/benchmarks/side_by_side.py --save_place SHEETS --answers LRR=L`` counts them: L and R for the preferred
side, = for neither, in the order of the sheets.
"""
from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np

from ict import files, options
from ict.command import run
from ict.data import encode, images
from ict.errors import UserError, require
from ict.options import positive
from ict.runs import report
from ict.runs.evaluation import ORIGINALS, RESULTS

KEY = 'key.csv'
SIDES = {'L': 'left', 'R': 'right'}


def common(first: Path, second: Path) -> list[str]:
    """The pictures whose first sample both evaluations have, as file names below their folders.

    Raises:
        UserError: there is none, or they were made of other originals.
    """
    names = [{path.relative_to(folder / RESULTS).as_posix() for path in (folder / RESULTS).rglob('*_0.png')}
             for folder in (first, second)]
    both = sorted(names[0] & names[1])
    require(bool(both), f'--first {first}, --second {second}: have no picture in common; both must be save places of '
                        f'python -m ict.evaluate')
    for name in both:
        one, other = (images.load_rgb(folder / ORIGINALS / name) for folder in (first, second))
        require(np.array_equal(one, other), f'--second {second}: {name} was made of another original than in {first}')
    return both


def row_of(original: np.ndarray, left: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
    """original | masked | left | right, (S, S, 3) uint8 each. The hole is where a completion differs."""
    hole = ((left != original) | (right != original)).any(-1, keepdims=True)  # (S, S, 1)
    return [original, np.where(hole, np.uint8(255), original), left, right]


def write_sheets(first: Path, second: Path, output_dir: Path, pictures: int, rng: np.random.Generator) -> int:
    """The sheets and their key; how many there are. A UserError where others are that may have been judged."""
    require(not (output_dir / KEY).exists(), f'{output_dir / KEY}: is there already; name another --save_place')
    names = common(first, second)
    chosen = rng.permutation(names)[:pictures].tolist()
    swapped = rng.permutation(np.arange(len(chosen)) % 2 == 1).tolist()  # each half of the time on the left
    key = []
    for number, (name, swap) in enumerate(zip(chosen, swapped, strict=True), 1):
        sides = (second, first) if swap else (first, second)
        row = row_of(images.load_rgb(first / ORIGINALS / name),
                     *(images.load_rgb(folder / RESULTS / name) for folder in sides))
        encode.write(output_dir / f'{number:02d}.png', report.sheet([row], ['original', 'masked', 'left', 'right']))
        key.append({'sheet': number, 'picture': name, 'left': str(sides[0]), 'right': str(sides[1])})
    report.write_csv(output_dir / KEY, key)
    return len(chosen)


def count(output_dir: Path, answers: str) -> dict[str, int]:
    """How often each evaluation is preferred, and 'neither'.

    Raises:
        UserError: no key there, or not as many answers as sheets.
    """
    try:
        with open(output_dir / KEY, encoding='utf-8', errors='surrogateescape', newline='') as stream:
            key = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f'{output_dir / KEY}: {error.strerror}; make sheets first, with --first and --second') from None
    require(len(answers) == len(key) and set(answers) <= {*SIDES, '='},
            f'--answers {answers}: must be L, R or = for each of the {len(key)} sheets')
    counts = dict.fromkeys([*sorted({row[side] for row in key for side in SIDES.values()}), 'neither'], 0)
    for row, answer in zip(key, answers, strict=True):
        counts[row[SIDES[answer]] if answer in SIDES else 'neither'] += 1
    return counts


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/side_by_side.py', description='Sheets for a blind judgement.')
    add = parser.add_argument
    add('--first', default='', help='save place of an evaluation')
    add('--second', default='', help='save place of another evaluation of the same pictures and masks')
    add('--pictures', type=int, default=20, help='how many are drawn')
    add('--seed', type=int, default=0, help='of the drawing and of the sides')
    add('--save_place', required=True, help='sheets and key go here')
    add('--answers', default='', help='L, R or = for each sheet: counts them instead of making sheets')
    args = parser.parse_args(argv)
    positive(args, 'pictures')
    if args.answers:
        for name, number in count(Path(args.save_place), args.answers).items():
            print(f'{number} of {len(args.answers)}: {name}')
        return 0
    require(bool(args.first and args.second), '--first and --second: give both, or --answers')
    output_dir = files.output_folder(args.save_place, '--save_place')
    n_sheets = write_sheets(Path(args.first), Path(args.second), output_dir, args.pictures,
                            np.random.default_rng(args.seed))
    print(f'{n_sheets} sheets in {output_dir}; answer with --answers, then look at {KEY}')
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
