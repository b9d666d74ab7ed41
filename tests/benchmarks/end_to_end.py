"""Where the seconds of one run.py go. Not part of the test suite; the machine should have nothing else to do.

``python tests/benchmarks/end_to_end.py`` completes a bundled photograph, or ``--input_image`` with ``--input_mask``,
prints a Markdown table and writes it, with benchmark.csv, to <save_place>/benchmark.md.
"""
from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

from ict import files, options
from ict.command import run
from ict.errors import require
from tests.benchmarks import clock
from tests.benchmarks.quality import RECOMMENDED, setting_options
from tests.benchmarks.tables import Columns, Row, machine, markdown, show, write

PHOTOGRAPH, ITS_MASK = ROOT / 'images' / 'samples' / 'astronaut.png', ROOT / 'mask' / 'testing_mask_dataset/00000.png'
COLUMNS: Columns = (('seconds', 'part', 0), ('stage 1', 'stage_1', 2), ('stage 2', 'stage_2', 2))


def breakdown(wall: float, records: list[dict[str, Any]]) -> list[Row]:
    """Where the ``wall`` seconds of a run.py went, from the records of its two stages."""
    def seconds(record: dict[str, Any], part: str, which: slice = slice(None)) -> float:
        return sum(seconds for seconds, _ in record['calls'].get(part, [])[which])

    def parts(record: dict[str, Any]) -> dict[str, float]:
        known = {'import of MindSpore': seconds(record, clock.IMPORT),
                 'loading the weights': seconds(record, clock.LOAD),
                 'first pass, with compilation': seconds(record, clock.PASS, slice(1)),
                 'further passes': seconds(record, clock.PASS, slice(1, None)),
                 'drawing of tokens, preparing of arrays': seconds(record, clock.RESULT) - seconds(record, clock.PASS)}
        together = seconds(record, clock.MAIN)
        return known | {'files: reading, checking, scoring, writing': together - sum(known.values()),
                        'together': together}

    one, two = map(parts, records)
    table = [{'part': part, 'stage_1': one[part], 'stage_2': two[part]} for part in one]
    others = wall - one['together'] - two['together']
    return [*table, {'part': 'run.py itself: imports, checks, start and end', 'stage_1': others, 'stage_2': ''},
            {'part': 'all', 'stage_1': wall, 'stage_2': ''}]


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/end_to_end.py', description='Where the seconds of run.py go.',
                            epilog='All other options of run.py are passed on to it.')
    parser.add_argument('--input_image', default=str(PHOTOGRAPH))
    parser.add_argument('--input_mask', default=str(ITS_MASK))
    parser.add_argument('--setting', default=RECOMMENDED, help='see quality.py')
    parser.add_argument('--save_place', default='./save/benchmark/end_to_end')
    args, further = parser.parse_known_args(argv)
    own = setting_options(args.setting)
    require('--overwrite' not in ' '.join(further), '--overwrite: everything is made anew here; leave it out')
    output_dir = files.output_folder(args.save_place, '--save_place')
    load = os.getloadavg()[0]

    # One run.py
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=output_dir) as folder:
        path, start = Path(folder) / 'clock.json', time.perf_counter()
        status = clock.timed_run(path, '--input_image', args.input_image, '--input_mask', args.input_mask,
                                 '--save_place', Path(folder) / 'save', *own, *further)
        wall = time.perf_counter() - start
        if status:
            return status
        records = [record for name in clock.STAGES for record in clock.of_stage(path, name)]
    require(len(records) == 2, '--input_image: nothing of it lies in a hole, so nothing was measured')

    # Its table
    rows = breakdown(wall, records)
    write(output_dir, 'One photograph from end to end', [
        f'run.py, {args.setting} ({len(records[0]["calls"][clock.PASS])} passes), {Path(args.input_image).name} with '
        f'{Path(args.input_mask).name}{" " + " ".join(further) if further else ""}.',
        machine(records[0]['device'], load), markdown(rows, COLUMNS),
        f'Peak memory: {records[0]["peak_mb"]:.0f} MB in stage 1, {records[1]["peak_mb"]:.0f} MB in all.'], rows)
    show(output_dir)
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
