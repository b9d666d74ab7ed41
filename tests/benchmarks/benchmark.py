"""Measure speed, memory and quality. Not part of the test suite; the machine should have nothing else to do.

``python tests/benchmarks/benchmark.py quality --input FOLDER`` has run.py complete a folder of pictures with each of
several sampling settings and compares them: quality, diversity, seconds, memory. The same command continues an
interrupted one. ``python tests/benchmarks/benchmark.py speed`` measures networks of the published ImageNet size, with
made-up weights. ``python tests/benchmarks/benchmark.py end_to_end`` says what the seconds of one run.py go into.

Each prints a Markdown table and writes it, with benchmark.csv, to <save_place>/benchmark.md.
"""
from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ict.log import log

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image
from tqdm import tqdm

from Guided_Upsample import infer as stage_2
from ict import checkpoint, command, evaluate, files, options
from ict.command import run
from ict.data import codebook, geometry, images, pairs
from ict.device import gpu, runtime
from ict.errors import (
    UserError,
    require,
)
from ict.options import positive
from ict.runs import inputs, metrics, report
from Transformer import infer as stage_1
from Transformer.models import config, sampling

PHOTOGRAPH, ITS_MASK = ROOT / 'images' / 'samples' / 'astronaut.png', ROOT / 'mask' / 'testing_mask_dataset/00000.png'
SETTINGS = ('sequential', 'sequential-reuse', 'halton-4', 'halton-8', 'halton-16', 'halton-32', 'halton-64',
            'raster-16', 'confidence-16', 'halton-16-linear', 'deterministic')
SEQUENTIAL, DETERMINISTIC = 'sequential', 'deterministic'
ONE_BY_ONE = {'schedule': 'raster', 'sample_steps': 0, 'deterministic': False}
REUSE = ['--reuse_window', '3']
RECOMMENDED = f'halton-{stage_1.RECOMMENDED_STEPS}'
QUALITYS_OWN = ('--input_image', '--input_mask', '--save_place', '--sample_num', '--sample_steps', '--schedule',
                '--step_schedule', '--deterministic', '--reuse_window', '--refresh', '--keep_size', '--test_only',
                '--visualize')
PLAIN = 'stage 2 as a plain graph'
HOLE = 0.4  # of the tokens, in the photograph of `speed`
SMALLEST_HOLE, LARGEST_HOLE = 0.2, 0.6  # of the masks that `quality` draws
IMAGE_SIZE = 256  # run.py knows no other
FIGURES = (*metrics.NAMES, 'prior_l1', 'diversity', 'diversity_ssim')

Row = dict[str, Any]
Columns = Sequence[tuple[str, str, int]]  # title, key, decimals

QUALITY_COLUMNS: Columns = (
    ('setting', 'setting', 0), ('pictures', 'pictures', 0), ('passes a sample', 'passes', 1), ('PSNR', 'psnr', 2),
    ('PSNR − the first\'s', 'psnr_difference', 2), ('± standard error', 'psnr_error', 2), ('MAE', 'mae', 5),
    ('MAE − the first\'s', 'mae_difference', 5), ('± standard error', 'mae_error', 5),
    ('SSIM', 'ssim', 4), ('L1 in the hole', 'l1_hole', 2), ('L1 of the prior', 'prior_l1', 2),
    ('diversity, L1', 'diversity', 2), ('diversity, 1 - SSIM', 'diversity_ssim', 4))
TIME_COLUMNS: Columns = (
    ('setting', 'setting', 0), ('s a pass', 'pass_seconds', 3), ('stage 1, s a sample', 'stage_1_seconds', 2),
    ('start-up, s', 'stage_1_start', 1), ('peak memory, MB', 'stage_1_peak_mb', 0),
    ('stage 2, s a sample', 'stage_2_seconds', 2), ('start-up, s', 'stage_2_start', 1),
    ('peak memory, MB', 'stage_2_peak_mb', 0))
SPEED_COLUMNS: Columns = (
    ('', 'name', 0), ('positions read', 'positions', 0), ('check, digest', 'check', 2), ('import', 'import', 2),
    ('load', 'load', 2), ('compile', 'compile', 2), ('a pass', 'pass', 3), ('passes', 'passes', 0),
    ('a photograph', 'photograph', 2), ('', 'how', 0), ('with start-up', 'whole', 1),
    ('MB after loading', 'loaded_mb', 0), ('peak MB', 'peak_mb', 0))
END_COLUMNS: Columns = (('seconds', 'part', 0), ('stage 1', 'stage_1', 2), ('stage 2', 'stage_2', 2))


# ---------------------------------------------------------------- clocks

class Clock:
    """Seconds of the parts of a process, the first call of each apart, because it compiles."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self.seen: set[tuple[str, Any]] = set()

    def add(self, part: str, seconds: float, rows: int = 1, shape: Any = None) -> None:
        """One more call, which worked on ``rows`` pictures; each ``shape`` is compiled by itself."""
        entry = self.parts.setdefault(part, {'first': 0.0, 'first_rows': 0, 'later': 0.0, 'later_rows': 0})
        when = 'later' if (part, shape) in self.seen else 'first'
        self.seen.add((part, shape))
        entry[when] += seconds
        entry[f'{when}_rows'] += rows

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Adds every call of a function of a module, or of a method whose first argument is a batch."""
        inner = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            self.add(part, time.perf_counter() - start, len(args[1]) if isinstance(owner, type) else 1,
                     (name, *(array.shape[1:] for array in args if isinstance(array, np.ndarray))))
            return result

        setattr(owner, name, watched)


def memory_mb() -> tuple[float, float]:
    """(now, at most) of this process. Linux's ru_maxrss would begin with what the parent process had."""
    try:
        text = Path('/proc/self/status').read_text()
    except OSError:
        unit = 1 if sys.platform == 'darwin' else 1024
        return math.nan, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    found = {key: float(value.split()[0]) * 1024 / 1e6 for line in text.splitlines()
             for key, _, value in [line.partition(':')] if key in ('VmRSS', 'VmHWM')}
    return found['VmRSS'], found['VmHWM']


def child(*argv: object) -> int:
    """Run this script again with one of the INNER commands; its exit status."""
    return command.call(Path(__file__).resolve(), [*map(str, argv)])


def clock_path(save_place: Path, name: str) -> Path:
    """Where the clocks of a stage's runs lie, in run.py's save place."""
    return save_place / f'clock_{name}.json'


def timed(argv: list[str]) -> int:
    """run.py, whose stages note their seconds in clock_path."""
    import run as whole
    args = whole.arguments(argv)
    place, call = Path(args.save_place), whole.call
    if args.overwrite:
        for name in ('Transformer', 'Guided_Upsample'):
            clock_path(place, name).unlink(missing_ok=True)
    whole.call = lambda script, own: call(
        Path(__file__).resolve(), ['stage', script.parent.name, str(clock_path(place, script.parent.name)), *own])
    return whole.main(argv)


def stage(argv: list[str]) -> int:
    """A stage's own ``main``, with clocks: argv is its folder, the file for the clocks, its arguments."""
    name, path, own = argv[0], Path(argv[1]), argv[2:]
    clock, start = Clock(), runtime.start

    def watched_start(*args: Any) -> None:
        with clock.part('import'):
            start(*args)
            model = importlib.import_module(f'{name}.models.{"predict" if name == "Transformer" else "paint"}')
        clock.watch(model, 'load', 'load')
        if name == 'Transformer':
            clock.watch(model.Predictor, '__call__', 'pass')
            clock.watch(model.Predictor, 'after', 'pass')
            clock.watch(sampling.Sampler, '__call__', 'work')
        else:
            clock.watch(model.Painter, 'everywhere', 'pass')

    runtime.start = watched_start
    with clock.part('main'):
        status = {'Transformer': stage_1, 'Guided_Upsample': stage_2}[name].main(own)
    if 'pass' in clock.parts:  # else nothing was left to do
        import mindspore as ms
        before = files.read_json(path) if path.is_file() else []
        files.write_json(path, [*before, {'device': ms.get_context('device_target'), 'parts': clock.parts,
                                          'peak_mb': memory_mb()[1]}])
    return status


def seconds_of(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the clocks of a stage's runs tell.

    Returns:
        passes: forward passes a result. pass: seconds of one, the first of each process left out.
        result: seconds of a result, without start-up. start: import, loading and compilation of a process.
        peak_mb: of the largest process. What can't be known is nan.
    """
    if not runs:
        return dict.fromkeys(('passes', 'pass', 'result', 'start', 'peak_mb'), math.nan)

    def total(part: str, *keys: str) -> float:
        return sum(record['parts'][part][key] for record in runs for key in keys)

    work = 'work' if 'work' in runs[0]['parts'] else 'pass'
    results, passes = (total(part, 'first_rows', 'later_rows') for part in (work, 'pass'))
    one = total('pass', 'later') / later if (later := total('pass', 'later_rows')) else math.nan
    compiling = total('pass', 'first') - total('pass', 'first_rows') * one
    return {'passes': passes / results, 'pass': one, 'result': (total(work, 'first', 'later') - compiling) / results,
            'start': (total('import', 'first') + total('load', 'first') + compiling) / len(runs),
            'peak_mb': max(record['peak_mb'] for record in runs)}


# ---------------------------------------------------------------- tables

def shown(value: Any, digits: int) -> str:
    """A cell: numbers with so many decimals, a dash for what is unknown."""
    if not isinstance(value, float):
        return str(value)
    return '–' if math.isnan(value) else f'{value:.{digits}f}'


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """A Markdown table."""
    lines = ['| ' + ' | '.join(title for title, _, _ in columns) + ' |', '|---' * len(columns) + '|']
    lines += ['| ' + ' | '.join(shown(row[key], digits) for _, key, digits in columns) + ' |' for row in rows]
    return '\n'.join(lines)


def machine(target: str, load: float) -> str:
    """One line on what was measured on; ``load`` is the system's before anything was started."""
    cards = gpu.this_machine().cards if target == 'GPU' else ()
    return (f'{", ".join([target, *(card.name for card in cards)])}; {os.cpu_count()} cores, {platform.machine()}; '
            f'MindSpore {metadata.version("mindspore")}, Python {platform.python_version()}; load {load:.1f} before.')


def write(place: Path, title: str, paragraphs: Sequence[str], rows: Sequence[Row]) -> None:
    """benchmark.md and benchmark.csv."""
    text = '\n\n'.join([f'# {title}', *paragraphs]) + '\n'
    files.write_bytes(place / 'benchmark.md', text.encode('utf-8', 'surrogateescape'))
    write_rows(place / 'benchmark.csv', rows)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV in which unknown figures are empty."""
    report.write_csv(path, [{key: '' if isinstance(value, float) and math.isnan(value) else value
                             for key, value in row.items()} for row in rows])


# ---------------------------------------------------------------- quality

class Scene(NamedTuple):
    """What the results of a picture are scored with.

    Attributes:
        hole: (256, 256) bool, stage 2's.
        tokens: (P, P, 3) uint8, the original in palette colours at the prior's size.
        token_hole: (P, P) bool, stage 1's.
    """

    hole: np.ndarray
    tokens: np.ndarray
    token_hole: np.ndarray


def scene_of(rgb: np.ndarray, grey: np.ndarray, geometry_name: str, prior_size: int,
             quantise: codebook.Tokenizer) -> Scene:
    """From a picture (H, W, 3) uint8 and its mask (h, w) uint8."""
    frame, full_hole = geometry.hole_in(grey, *rgb.shape[:2], geometry_name)
    part = geometry.cut(rgb, frame)
    small = geometry.resize_visible(part, np.zeros_like(full_hole), prior_size, Image.BILINEAR)
    return Scene(geometry.touched(full_hole, IMAGE_SIZE, IMAGE_SIZE), quantise.codebook_rgb[quantise(small)],
                 geometry.touched(full_hole, prior_size, prior_size))


def setting_options(name: str) -> list[str]:
    """run.py's options for ``sequential``, ``deterministic`` or ``<schedule>-<steps>[-<step schedule>]``.

    Raises:
        UserError: it is none of these.
    """
    if name.endswith('-reuse') and not name.startswith((DETERMINISTIC, 'confidence')):
        return [*setting_options(name.removesuffix('-reuse')), *REUSE]
    if name == SEQUENTIAL:
        return ['--sample_steps', '0', '--schedule', 'raster']
    if name == DETERMINISTIC:
        return ['--deterministic', 'True']
    found = re.fullmatch(rf'({"|".join(sampling.SCHEDULES)})-(\d+)(?:-({"|".join(sampling.STEP_SCHEDULES)}))?', name)
    require(found is not None, f'setting {name}: is neither {SEQUENTIAL} nor {DETERMINISTIC} nor like {RECOMMENDED} or '
                               f'{RECOMMENDED}-linear (schedules: {", ".join(sampling.SCHEDULES)}; -reuse may follow '
                               f'all but confidence)')
    return ['--sample_steps', found[2], '--schedule', found[1], '--step_schedule',
            found[3] or sampling.STEP_SCHEDULES[0]]


def drawn_masks(place: Path, count: int) -> str:
    """A folder with stroke masks for ``count`` pictures, always the same ones."""
    from mask import generate
    folder = place / 'masks'
    if len(list(folder.glob('?????.png'))) < count:
        generate.main(['--save_path', str(folder), '--count', str(count), '--lowest', str(SMALLEST_HOLE), '--highest',
                       str(LARGEST_HOLE), '--overwrite', 'True'])
    return str(folder)


def scored(place: Path, setting: str, samples: int, scenes: dict[str, Scene]) -> list[Row]:
    """A row for each picture that the setting completed: means over its samples.

    Args:
        scenes: by picture.
    """
    figures = evaluate.read_figures(place / setting / 'metrics.csv')
    rows = []
    for picture, scene in scenes.items():
        if any((picture, k) not in figures for k in range(samples)):
            continue  # it failed; run.py has said so
        results = np.stack([images.load_rgb(stage_2.result_path(place / setting, picture, k))
                            for k in range(samples)])  # (n, 256, 256, 3)
        priors = [images.load_rgb(stage_1.prior_path(place / setting / 'AP', k + 1, picture)) for k in range(samples)]
        rows.append({'setting': setting, 'id': picture, 'hole': float(scene.hole.mean()),
                     **{key: float(np.mean([figures[picture, k][key] for k in range(samples)]))
                        for key in metrics.NAMES},
                     'prior_l1': float(np.mean([metrics.l1_in_hole(prior / 255, scene.tokens / 255, scene.token_hole)
                                                for prior in priors])),
                     **evaluate.diversity(results, scene.hole)})
    return rows


def paired(rows: Sequence[Row], reference: Sequence[Row], key: str) -> tuple[float, float]:
    """(mean, its standard error) of the differences picture by picture; infinite values are left out."""
    theirs = {row['id']: row[key] for row in reference}
    difference = [row[key] - theirs[row['id']] for row in rows if row['id'] in theirs
                  and math.isfinite(row[key]) and math.isfinite(theirs[row['id']])]
    if len(difference) < 2:
        return (difference[0] if difference else math.nan), math.nan
    return statistics.fmean(difference), statistics.stdev(difference) / math.sqrt(len(difference))


def summary(setting: str, rows: Sequence[Row], reference: Sequence[Row], first: Sequence[dict[str, Any]],
            second: Sequence[dict[str, Any]]) -> Row:
    """The line of a setting: means over the pictures, and what the clocks of both stages tell."""
    differences = {}
    for key in ('psnr', 'mae'):
        differences[f'{key}_difference'], differences[f'{key}_error'] = paired(rows, reference, key)
    one, two = seconds_of(first), seconds_of(second)
    return {'setting': setting, 'pictures': len(rows), 'passes': one['passes'],
            **{key: float(np.mean([row[key] for row in rows])) for key in FIGURES},
            **differences, 'pass_seconds': one['pass'],
            'stage_1_seconds': one['result'], 'stage_1_start': one['start'], 'stage_1_peak_mb': one['peak_mb'],
            'stage_2_seconds': two['result'], 'stage_2_start': two['start'], 'stage_2_peak_mb': two['peak_mb']}


def clocks_of(save_place: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The clocks of stage 1 and stage 2, a record for each process that made something."""
    found = [clock_path(save_place, name) for name in ('Transformer', 'Guided_Upsample')]
    return tuple(files.read_json(path) if path.is_file() else [] for path in found)


def quality(args: argparse.Namespace, further: list[str]) -> int:
    """Every setting completes the folder through run.py, then the files are scored."""
    import run as whole
    load = os.getloadavg()[0]
    chosen = {name: setting_options(name) for name in filter(None, args.settings.split(','))}
    require(bool(chosen), '--settings: name at least one')
    positive(args, 'samples')
    for name in QUALITYS_OWN:
        require(not any(text.split('=')[0] == name for text in further),
                f'{name}: is chosen by the benchmark; leave it out')
    for name in ('input', 'mask'):
        given = Path(getattr(args, name)).resolve()
        require(not getattr(args, name) or not Path(args.save_place).resolve().is_relative_to(given),
                f'--save_place {args.save_place}: lies in --{name}, where its pictures would count; name another place')
    place = files.output_folder(args.save_place, '--save_place')
    masks = args.mask or drawn_masks(place, len(pairs.listing(args.input, '--input', without=place)))
    common = ['--input_image', args.input, '--input_mask', masks, *further]
    plan = whole.arguments([*common, '--save_place', str(place)])
    for name in ('mask_mode', 'geometry'):
        require(getattr(plan, name) != 'published', f'--{name} published: only sealed pictures are scored here')
    view = inputs.View.from_args(plan)
    work = inputs.find(args.input, '--input', plan.input_mask, '--mask', plan.max_pixels, place)
    scenes = read_scenes(plan, work, view)
    all_rows: dict[str, list[Row]] = {}
    lines: list[Row] = []
    worst = 0
    for name, own in chosen.items():
        samples = 1 if name == DETERMINISTIC else args.samples
        log(f'{name}: {samples} sample(s) of {len(work)} pictures')
        status = child('timed', *common, '--save_place', place / name, '--sample_num', samples, *own)
        if status not in (0, command.SOME_FAILED):
            return status
        worst = max(worst, status)
        all_rows[name] = scored(place, name, samples, scenes)
        if not all_rows[name]:
            continue
        clocks = clocks_of(place / name)
        lines.append(summary(name, all_rows[name], next(iter(all_rows.values())), *clocks))
        devices = sorted({record['device'] for runs in clocks for record in runs})
        about = machine(', '.join(devices) or 'nothing was computed now', load)
        write_quality(place, plan, args.samples, scenes, about, lines,
                      [row for rows in all_rows.values() for row in rows])
    if lines:
        print((place / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
    return worst


def read_scenes(plan: argparse.Namespace, work: inputs.Inputs, view: inputs.View) -> dict[str, Scene]:
    """The scene of each readable picture; run.py names the others."""
    found = checkpoint.read(plan.transformer_ckpt, '--transformer_ckpt').expect('Transformer', '--transformer_ckpt')
    shape = config.of(found, {})
    quantise = codebook.Tokenizer(stage_1.palette_of(found, plan.kmeans, shape.vocab_size))
    scenes = {}
    for i in tqdm(range(len(work)), desc='reading', unit='picture', disable=None):
        try:
            picture, grey = work.read(i, view)
        except UserError:
            continue
        scenes[work.id(i)] = scene_of(picture.rgb, grey, view.geometry, shape.prior_size, quantise)
    return scenes


def write_quality(place: Path, plan: argparse.Namespace, samples: int, scenes: dict[str, Scene],
                  about: str, lines: Sequence[Row], rows: Sequence[Row]) -> None:
    """Both tables, and pictures.csv with a line for each picture and setting."""
    holes = [float(scene.hole.mean()) for scene in scenes.values()]
    write(place, 'Sampling settings compared', [
        f'{len(scenes)} pictures, {100 * min(holes):.0f} to {100 * max(holes):.0f} % in the hole (mean '
        f'{100 * statistics.fmean(holes):.0f} %), {samples} sample(s) each, seed {plan.seed}; '
        f'{plan.transformer_ckpt}, {plan.upsample_ckpt}.',
        about,
        'PSNR and MAE as published, of the 256 x 256 results; L1 in levels of 255. Differences to the first '
        'setting are means over the same pictures. L1 of the prior: stage 1\'s output against the original\'s '
        'palette colours, both at the prior\'s size, in the hole. Diversity: how much two samples of a picture '
        'differ in the hole.',
        markdown(lines, QUALITY_COLUMNS),
        'Seconds a pass and a sample leave out what a process does once: its start-up (import, loading, compilation).',
        markdown(lines, TIME_COLUMNS)], lines)
    write_rows(place / 'pictures.csv', rows)


# ---------------------------------------------------------------- speed

def weights(argv: list[str]) -> int:
    """Write made-up checkpoints of both stages: argv is a folder and the architectures as JSON."""
    from Guided_Upsample.models.config import Architecture as Painter
    from tests.conftest import made_up
    folder, shapes = Path(argv[0]), json.loads(argv[1])
    colours = np.random.default_rng(0).uniform(-1, 1, (shapes['Transformer']['vocab_size'], 3)).astype(np.float32)
    for kind, build in (('Transformer', config.Architecture), ('Generator', Painter)):
        shape = build(**shapes[kind])
        checkpoint.write(folder / f'{kind}.ckpt', made_up(shape.shapes(), 0),
                         {'network': kind, 'architecture': shape.metadata()}, colours)
    return 0


def measured(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(the first call's seconds, the median of further ones)."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def transformer(argv: list[str]) -> int:
    """A fresh process that samples as stage 1 does: argv is the task as JSON and the file for the answer."""
    task, clock = json.loads(argv[0]), Clock()
    with clock.part('check'):
        found = checkpoint.read(task['path'])
        shape = config.of(found, {})
        found.digest()
    with clock.part('import'):
        runtime.start(task['device_target'], task['device_id'])
        from Transformer.models import predict
    with clock.part('load'):
        net = predict.load(found, shape)
    loaded = memory_mb()[0]
    positions = shape.prior_size ** 2
    model = predict.Predictor(net, 1, positions, task['amp_level'])
    sampler = sampling.Sampler(model, shape.prior_size, sampling.Settings(**task['settings']),
                               codebook.to_rgb(found.palette), model.after)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, shape.vocab_size, (1, positions)).astype(np.int32)  # (1, T)
    hole = rng.permutation(positions)[None] < task['tokens']  # (1, T)
    if task['settings'].get('reuse_window'):
        two = np.arange(positions)[None] < 2  # a pass over everything and one over a window
        first, one = measured(lambda: sampler(tokens, two, [rng]), task['repeats'])
    else:
        where = np.arange(sampler.read_at_once, dtype=np.int32)[None]  # (1, P)
        first, one = measured(lambda: model(tokens, hole.astype(np.float32), where), task['repeats'])
    answer = {'positions': sampler.read_at_once, 'compile': first - one, 'pass': one, 'passes': task['tokens'],
              'photograph': task['tokens'] * one, 'how': 'extrapolated'}
    if task['settings'] != ONE_BY_ONE:
        start, times = time.perf_counter(), []
        sampler(tokens, hole, [rng], lambda *_: times.append(time.perf_counter()))
        answer |= {'photograph': time.perf_counter() - start, 'passes': len(times), 'how': 'measured'}
        if task['settings'].get('reuse_window'):
            answer['pass'] = statistics.median(np.diff(times))
    return reply(argv[1], clock, loaded, answer)


def generator(argv: list[str]) -> int:
    """A fresh process that paints as stage 2 does, or with MindSpore's own last layer; argv as in ``transformer``."""
    from Guided_Upsample.models import config as painters
    task, clock = json.loads(argv[0]), Clock()
    with clock.part('check'):
        found = checkpoint.read(task['path'])
        shape = painters.of(found, None)
        found.digest()
    with clock.part('import'):
        runtime.start(task['device_target'], task['device_id'])
        from Guided_Upsample.models import inpaint
    with clock.part('load'):
        net = inpaint.load(found, shape)
    loaded = memory_mb()[0]
    if task['plain']:
        from mindspore import nn
        last = net.decoder[-1]
        net.decoder[-1] = nn.Conv2d(last.in_channels, last.out_channels, last.kernel_size, pad_mode='valid',
                                    has_bias=True, weight_init=last.weight, bias_init=last.bias)
    painter = inpaint.Painter(net, 1, task['amp_level'])
    rng = np.random.default_rng(0)
    image, prior = rng.integers(0, 256, (2, 1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)  # (1, S, S, 3) each
    hole = rng.random((1, IMAGE_SIZE, IMAGE_SIZE)) < HOLE
    first, one = measured(lambda: painter.everywhere(image, prior, hole), task['repeats'])
    return reply(argv[1], clock, loaded, {'positions': '', 'compile': first - one, 'pass': one, 'passes': 1,
                                          'photograph': one, 'how': 'measured'})


def pytorch(argv: list[str]) -> int:
    """A fresh process that runs both networks in plain PyTorch; argv as in ``transformer``, with the shapes."""
    task = json.loads(argv[0])
    import torch

    from tests.parity import pytorch_networks
    shape, painter = task['shapes']['Transformer'], task['shapes']['Generator']
    positions = shape['prior_size'] ** 2
    with torch.inference_mode():
        if task['stage'] == 1:
            net = pytorch_networks.GPT(shape['vocab_size'], shape['n_embd'], shape['n_layer'], shape['n_head'],
                                       positions)
            inputs = torch.zeros(1, positions, dtype=torch.long), torch.zeros(1, positions)
        else:
            net = pytorch_networks.generator(**painter)
            inputs = (torch.rand(1, 6, IMAGE_SIZE, IMAGE_SIZE),)
        loaded = memory_mb()[0]
        first, one = measured(lambda: net(*inputs), task['repeats'])
    return reply(argv[1], Clock(), loaded, {
        'check': math.nan, 'import': math.nan, 'load': math.nan, 'compile': first - one, 'pass': one,
        'positions': positions if task['stage'] == 1 else '', 'passes': 1, 'photograph': math.nan,
        'how': 'a pass only'})


def reply(path: str, clock: Clock, loaded_mb: float, answer: Row) -> int:
    """Write the answer of ``transformer`` or ``generator``."""
    once = {part: entry['first'] for part, entry in clock.parts.items()}
    whole = sum(once.values()) + answer['compile'] + answer['photograph']
    files.write_json(path, {**once, **answer, 'whole': whole, 'loaded_mb': loaded_mb, 'peak_mb': memory_mb()[1]})
    return 0


def speed(args: argparse.Namespace, further: list[str]) -> int:
    """Sequential, with reuse, in few steps and a single full pass, each in a process of its own; then stage 2."""
    require(not further, f'{" ".join(further)}: not known (see tests/benchmarks/benchmark.py speed --help)')
    positive(args, 'n_layer', 'n_embd', 'n_head', 'prior_size', 'tokens', 'sample_steps', 'repeats', 'vocab_size',
             'base_channels', 'residual_blocks')
    require(args.n_embd % args.n_head == 0, f'--n_head {args.n_head}: does not divide --n_embd {args.n_embd}')
    positions = args.prior_size ** 2
    tokens = round(HOLE * positions) if args.tokens is None else args.tokens
    require(tokens <= positions, f'--tokens {tokens}: the prior has only {positions}')
    place = files.output_folder(args.save_place, '--save_place')
    args.device_target = runtime.choose(args.device_target, args.device_id)
    shapes = {'Transformer': {'n_layer': args.n_layer, 'n_embd': args.n_embd, 'n_head': args.n_head,
                              'prior_size': args.prior_size, 'vocab_size': args.vocab_size, 'GELU_2': True},
              'Generator': {'residual_blocks': args.residual_blocks, 'base_channels': args.base_channels}}
    few = f'{args.sample_steps} steps'
    reuse = f'{SEQUENTIAL}, reuse'
    plans = {f'stage 1, {SEQUENTIAL}': ONE_BY_ONE,
             f'stage 1, {reuse}': {**ONE_BY_ONE, 'reuse_window': 3, 'refresh': 64},
             f'stage 1, {few}': {'schedule': 'halton', 'sample_steps': args.sample_steps, 'deterministic': False},
             f'stage 1, {DETERMINISTIC}': {**ONE_BY_ONE, 'deterministic': True},
             'stage 2': None, PLAIN: None}
    if args.amp_level != 'O0':
        del plans[f'stage 1, {reuse}']  # works in float32 alone
    about = machine(args.device_target, os.getloadavg()[0])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=place) as folder:
        log(f'writing made-up weights to {folder}')
        if status := child('weights', folder, json.dumps(shapes)):
            return status
        for name, settings in plans.items():
            log(f'measuring {name}')
            task = {'path': str(Path(folder) / ('Generator.ckpt' if settings is None else 'Transformer.ckpt')),
                    'settings': settings, 'plain': name == PLAIN, 'tokens': tokens, 'repeats': args.repeats,
                    'amp_level': args.amp_level, 'device_target': args.device_target, 'device_id': args.device_id}
            answer = Path(folder) / 'answer.json'
            if status := child('generator' if settings is None else 'transformer', json.dumps(task), answer):
                return status
            rows.append({'name': name, **files.read_json(answer)})
        for number in (1, 2) if args.pytorch else ():
            log(f'measuring stage {number} in PyTorch')
            task = {'shapes': shapes, 'stage': number, 'repeats': args.repeats}
            if status := child('pytorch', json.dumps(task), answer):
                return status
            rows.append({'name': f'stage {number}, plain PyTorch', **files.read_json(answer)})
    table = markdown(rows, SPEED_COLUMNS)
    one = dict(zip(plans, (row['whole'] for row in rows), strict=False))
    totals = ', '.join(f'{one[f"stage 1, {how}"] + one["stage 2"]:.0f} s ({how})'
                       for how in (SEQUENTIAL, reuse, few, DETERMINISTIC) if f'stage 1, {how}' in plans)
    write(place, 'Speed and memory', [
        f'Made-up weights: transformer of {args.n_layer} layers x {args.n_embd}, {args.n_head} heads, '
        f'{args.prior_size} x {args.prior_size} tokens; generator of {args.base_channels} channels, '
        f'{args.residual_blocks} blocks, 256 x 256. A photograph has {tokens} tokens in the hole '
        f'({100 * tokens / positions:.0f} %). {args.amp_level}, one picture at a time.', about,
        'Seconds; a process for each row. check, digest: reading the checkpoint\'s index and its SHA-256. The file is '
        'in the system\'s cache. extrapolated: passes x seconds a pass.', table,
        f'One photograph through both stages, start-up included: {totals}.'], rows)
    print((place / 'benchmark.md').read_text())
    return 0


# ---------------------------------------------------------------- end to end

def breakdown(wall: float, runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Where the seconds of a run.py went, from the clocks of its two stages."""
    def of(part: str, key: str) -> list[float]:
        return [record['parts'].get(part, {}).get(key, 0.0) for record in runs]

    rows = {'import of MindSpore': of('import', 'first'), 'loading the weights': of('load', 'first'),
            'first pass, with compilation': of('pass', 'first'), 'further passes': of('pass', 'later'),
            'drawing of tokens': [sum(record['parts']['work'][key] - record['parts']['pass'][key]
                                      for key in ('first', 'later')) if 'work' in record['parts'] else 0.0
                                  for record in runs]}
    main = of('main', 'first')
    rows['files: reading, checking, scoring, writing'] = [
        whole - sum(known) for whole, known in zip(main, zip(*rows.values(), strict=True), strict=True)]
    rows['together'] = main
    table = [{'part': part, 'stage_1': one, 'stage_2': two} for part, (one, two) in rows.items()]
    return [*table, {'part': 'run.py itself, starts and ends of the processes', 'stage_1': wall - sum(main),
                     'stage_2': ''}, {'part': 'all', 'stage_1': wall, 'stage_2': ''}]


def end_to_end(args: argparse.Namespace, further: list[str]) -> int:
    """run.py on one photograph."""
    own = setting_options(args.setting)
    require(not any(text.split('=')[0] in ('--save_place', '--overwrite') for text in further),
            '--save_place and --overwrite: are for the tables here; leave them out after it')
    place = files.output_folder(args.save_place, '--save_place')
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=place) as folder:
        start = time.perf_counter()
        status = child('timed', '--input_image', args.input_image, '--input_mask', args.input_mask, '--save_place',
                       folder, *own, *further)
        wall = time.perf_counter() - start
        if status:
            return status
        runs = [record for found in clocks_of(Path(folder)) for record in found]
    require(len(runs) == 2, '--input_image: nothing of it lies in a hole, so nothing was measured')
    rows = breakdown(wall, runs)
    passes = int(seconds_of(runs[:1])['passes'])
    write(place, 'One photograph from end to end', [
        f'run.py, {args.setting} ({passes} passes), {Path(args.input_image).name} with {Path(args.input_mask).name}'
        f'{" " + " ".join(further) if further else ""}.', machine(runs[0]['device'], load), markdown(rows, END_COLUMNS),
        f'Peak memory: {runs[0]["peak_mb"]:.0f} MB in stage 1, {runs[1]["peak_mb"]:.0f} MB in stage 2.'], rows)
    print((place / 'benchmark.md').read_text(encoding='utf-8', errors='surrogateescape'))
    return 0


# ---------------------------------------------------------------- command line

INNER = {'timed': timed, 'stage': stage, 'weights': weights, 'transformer': transformer, 'generator': generator,
         'pytorch': pytorch}


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command with its options, and those that are left to run.py."""
    parser = options.Parser(prog='tests/benchmarks/benchmark.py', description='Measure speed, memory and quality.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='quality | speed | end_to_end')
    passed_on = 'All other options of run.py (--seed, --top_k, --batch_size, --device_target, ...) are passed on to it.'

    one = commands.add_parser('quality', help='compare sampling settings on a folder of pictures', epilog=passed_on)
    one.add_argument('--input', required=True, help='images: folder (searched recursively), file, or list')
    one.add_argument('--mask', default='', help=f'masks likewise (default: strokes drawn into <save_place>/masks, '
                                                f'{SMALLEST_HOLE} to {LARGEST_HOLE} of a picture)')
    one.add_argument('--settings', default=','.join(SETTINGS), help='others are compared with the first')
    one.add_argument('--samples', type=int, default=2, help='samples a picture')
    one.add_argument('--save_place', default='./save/benchmark/quality')
    one.set_defaults(act=quality)

    two = commands.add_parser('speed', help='networks of the published ImageNet size, made-up weights')
    for name, default in (('n_layer', 35), ('n_embd', 1024), ('n_head', 8), ('prior_size', 32), ('vocab_size', 512),
                          ('base_channels', 64), ('residual_blocks', 8),
                          ('sample_steps', stage_1.RECOMMENDED_STEPS), ('repeats', 3)):
        two.add_argument(f'--{name}', type=int, default=default)
    two.add_argument('--tokens', type=int, default=None, help=f'in the hole (default: {HOLE} of all)')
    two.add_argument('--amp_level', choices=('O0', 'O2', 'O3'), default='O0')
    options.add_flag(two, '--pytorch', 'also a pass of each network in plain PyTorch on the CPU (pip install torch)')
    options.add_device(two)
    two.add_argument('--save_place', default='./save/benchmark/speed')
    two.set_defaults(act=speed)

    three = commands.add_parser('end_to_end', help='what the seconds of run.py go into', epilog=passed_on)
    three.add_argument('--input_image', default=str(PHOTOGRAPH))
    three.add_argument('--input_mask', default=str(ITS_MASK))
    three.add_argument('--setting', default=RECOMMENDED)
    three.add_argument('--save_place', default='./save/benchmark/end_to_end')
    three.set_defaults(act=end_to_end)
    return parser.parse_known_args(argv)


def main(argv: list[str]) -> int:
    if argv and argv[0] in INNER:
        return INNER[argv[0]](argv[1:])
    args, further = arguments(argv)
    return args.act(args, further)


if __name__ == '__main__':
    sys.exit(run(main))
