"""Time whole commands of this version against those of another one, in turns. Nothing else should run.

``git worktree add ../before COMMIT && python tests/benchmarks/versions.py --before ../before`` times run.py on one
photograph and without arguments, with the bundled pairs; ``--published`` adds made-up weights of the published ImageNet
size (1.8 GB). It prints a Markdown table of medians and writes it to <save_place>/benchmark.md.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image
from tqdm import tqdm

from Guided_Upsample.models.config import GeneratorConfig
from ict import command, files, options
from ict.errors import require
from ict.options import positive
from tests.benchmarks import speed
from tests.benchmarks.tables import Columns, Row, machine, markdown, show, write
from Transformer.models.config import GPTConfig

PHOTOGRAPH, ITS_MASK = 'images/samples/astronaut.png', 'mask/testing_mask_dataset/00000.png'
TOKENS = 410  # in the hole of the made-up mask, of 1,024
COLUMNS: Columns = (('command', 'command', 0), ('before, s', 'before', 1), ('now, s', 'now', 1), ('ratio', 'ratio', 2),
                    ('peak before, MB', 'before_mb', 0), ('peak now, MB', 'now_mb', 0))


class Case(NamedTuple):
    """Options of run.py, for the version before where they differ."""

    now: list[str]
    before: list[str] | None = None


def cases(args: argparse.Namespace, output_dir: Path) -> dict[str, Case]:
    """Commands by what they are called in the table."""
    one = ['--input_image', str(ROOT / PHOTOGRAPH), '--input_mask', str(ROOT / ITS_MASK)]
    steps = ['--sample_steps', '16']
    found = {'one photograph': Case([*one, *steps]),
             'run.py without arguments (12 completions)': Case([])}
    if args.published:
        made_up = published(output_dir)
        found |= {f'published size, {TOKENS} tokens, 16 passes': Case([*made_up, *steps]),
                  'the same, 4 samples': Case([*made_up, *steps, '--sample_num', '4'])}
    return found


def published(output_dir: Path) -> list[str]:
    """run.py's options for made-up weights of the published size and a picture with a hole of ``TOKENS`` tokens."""
    gpt, generator = GPTConfig(35, 1024, 8, 32, 512, True), GeneratorConfig()
    pair = output_dir / 'Transformer.ckpt', output_dir / 'Generator.ckpt'
    if not all(path.is_file() for path in pair):
        configs = {'Transformer': gpt.metadata(), 'Generator': generator.metadata()}
        require(subprocess.run([sys.executable, str(Path(speed.__file__)), 'weights', json.dumps(configs),
                                str(output_dir)]).returncode == 0, f'{output_dir}: no weights were written')
    hole = np.zeros(1024, np.uint8)
    hole[300:300 + TOKENS] = 255
    Image.fromarray(np.kron(hole.reshape(32, 32), np.ones((8, 8), np.uint8))).save(output_dir / 'mask.png')
    Image.fromarray(np.asarray(Image.open(ROOT / PHOTOGRAPH).convert('RGB').resize((256, 256)))).save(
        output_dir / 'photo.png')
    return ['--input_image', str(output_dir / 'photo.png'), '--input_mask', str(output_dir / 'mask.png'),
            '--transformer_ckpt', str(pair[0]), '--upsample_ckpt', str(pair[1])]


def timed(root: Path, argv: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB (of the largest process) of a run.py in an empty folder."""
    shutil.rmtree(cwd, ignore_errors=True)
    cwd.mkdir(parents=True)
    started = time.perf_counter()
    # a process of its own, whose children's memory is then that of this run alone
    watch = ('import resource, subprocess, sys; status = subprocess.run(sys.argv[1:], stdout=2).returncode; '
             'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(status)')
    done = subprocess.run([sys.executable, '-c', watch, sys.executable, str(root / 'run.py'), *argv], cwd=cwd,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds = time.perf_counter() - started
    require(done.returncode == 0, f'{root / "run.py"} {" ".join(argv)}: ended with status {done.returncode}')
    return seconds, float(done.stdout.split()[-1])


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='tests/benchmarks/versions.py', description='Compare two versions.')
    parser.add_argument('--before', required=True, help='a checkout of the other version')
    parser.add_argument('--repeats', type=int, default=3, help='of each command and version')
    options.add_flag(parser, '--published', 'with the published size, too')
    parser.add_argument('--only', default='', help='commands whose names hold this text')
    parser.add_argument('--save_place', default='./save/benchmark/versions')
    args = parser.parse_args(argv)
    positive(args, 'repeats')
    before = Path(args.before).resolve()
    require((before / 'run.py').is_file(), f'--before {args.before}: holds no run.py')
    output_dir = files.output_folder(args.save_place, '--save_place').resolve()
    about = machine('CPU', os.getloadavg()[0])
    chosen = {name: case for name, case in cases(args, output_dir).items() if args.only in name}
    require(bool(chosen), f'--only {args.only}: no command is called so')
    rows: list[Row] = []
    for name, case in tqdm(chosen.items(), unit='command', disable=None):
        seconds: dict[str, list[float]] = {'before': [], 'now': []}
        memory: dict[str, list[float]] = {'before': [], 'now': []}
        for _ in range(args.repeats):
            for version, root, words in (('before', before, case.before or case.now), ('now', ROOT, case.now)):
                taken, peak = timed(root, words, output_dir / 'work')
                seconds[version].append(taken)
                memory[version].append(peak)
        row = {version: statistics.median(values) for version, values in seconds.items()}
        rows.append({'command': name, **row, 'ratio': row['now'] / row['before'],
                     **{f'{version}_mb': statistics.median(values) for version, values in memory.items()}})
    write(output_dir, 'Two versions', [about, f'Medians of {args.repeats}, in turns.', markdown(rows, COLUMNS)], rows)
    show(output_dir)
    return 0


if __name__ == '__main__':
    sys.exit(command.run(main))
