"""What both training scripts share: feeding batches, the loop, exact resume, the log that a person can look at."""
from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from ict import checkpoint, files, images, options, parallel, report
from ict.errors import UserError, note
from ict.options import positive, require

if TYPE_CHECKING:
    from mindspore import nn

    from ict.pairs import Listing

MOST_UNREADABLE = 0.01
# Options that a training's course doesn't depend on, depends on otherwise (the batch through the total of all ranks,
# the palette through its colours), or that name files, which may have moved (the pictures' number is compared).
COURSE_FREE = ('ckpt_path', 'save_path', 'device_id', 'device_target', 'num_workers', 'log_every', 'save_every',
               'val_path', 'val_mask', 'val_every', 'kmeans', 'distributed', 'batch_size', 'recompute', 'init')


# ---------------------------------------------------------------- options

def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both training scripts have with the same defaults."""
    add = parser.add_argument
    options.add_device(parser)
    add('--kmeans', default='', help="palette (default: ./kmeans_centers.npy, else the repository's)")
    add('--seed', type=int, default=0, help='of data order, crops, masks and initial weights')
    add('--val_path', default='', help='held-back images, scored every --val_every steps; decide "best"')
    add('--val_mask', default='', help='their masks (default: fixed strokes)')
    add('--val_every', type=int, default=1000, help='steps from one validation to the next')
    add('--log_every', type=int, default=100, help='steps from one line to the next')
    add('--save_every', type=int, default=1000,
        help='steps from one save to the next: the most that a power cut can cost')
    add('--lr_schedule', choices=('constant', 'cosine'), default='constant',
        help='of the learning rate after the warm-up; cosine: down to 0 at the last step')
    add('--warmup_steps', type=int, default=0, help='over which the learning rate rises from 0')
    add('--clip_norm', type=float, default=0.0, help="largest norm of all of a network's gradients together; 0 = off")
    add('--num_workers', type=int, default=2, help='processes that make batches; 0 = none')
    add('--crop_scale', type=float, default=1.0, help='smallest random crop, in shorter sides of the picture')
    options.add_flag(parser, '--distributed', 'one process of several started by msrun')
    add('--amp_level', choices=('O0', 'O2', 'O3'), default='O0',
        help='O0: float32, O2: float16 but for the norms, O3: all float16')
    options.add_flag(parser, '--recompute', 'recompute activations in the backward pass: less memory, more time')


def check_options(args: argparse.Namespace) -> None:
    """Raises a UserError for values out of range."""
    positive(args, 'batch_size', 'val_every', 'log_every', 'save_every')
    positive(args, 'num_workers', 'seed', 'warmup_steps', 'clip_norm', least=0)
    require(0 <= args.beta1 < 1 and 0 <= args.beta2 < 1, '--beta1 and --beta2 must be at least 0 and below 1')
    require(0 < args.crop_scale <= 1, f'--crop_scale {args.crop_scale}: must be above 0 and at most 1')
    require(not args.val_mask or bool(args.val_path), '--val_mask: needs --val_path')


def lr_at(step: int, base: float, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then constant or a cosine down to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == 'constant':
        return base
    passed = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))


# ---------------------------------------------------------------- data

@dataclass(frozen=True)
class Order:
    """Which picture is where in a training, whatever the number of workers, ranks or resumes.

    A step takes ``batch_size`` pictures on each of ``ranks`` ranks; every epoch has its own permutation, whose last
    step is filled up from its beginning, since a network is compiled for one size of batch.
    """

    n_pictures: int
    batch_size: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def pictures_per_step(self) -> int:
        return self.batch_size * self.ranks

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_pictures // self.pictures_per_step)

    def places(self, step: int) -> list[tuple[int, int, np.random.Generator]]:
        """(picture number, place in the epoch, its random generator) for this rank's part of a step (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        permutation = _permutation(self.n_pictures, self.seed, epoch)
        first = within * self.pictures_per_step + self.rank * self.batch_size
        return [(int(permutation[place % self.n_pictures]), place, np.random.default_rng([self.seed, 2, epoch, place]))
                for place in range(first, first + self.batch_size)]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


class Dataset(Protocol):
    """Makes the batch of a step; runs in worker processes and needs no MindSpore."""

    def __call__(self, step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """Arrays of this step's batch, and a line for each picture that could not be read."""


def read_or_replace(n_pictures: int, wanted: int, rng: np.random.Generator, read: Callable[[int], Any],
                    failures: list[str]) -> Any:
    """``read(wanted)``, or another picture drawn from ``rng`` when that one is unreadable; the line is kept."""
    for _ in range(100):
        try:
            return read(wanted)
        except UserError as error:
            failures.append(str(error))
            wanted = int(rng.integers(n_pictures))
    raise UserError('100 images drawn one after another were unreadable; the last: ' + failures[-1])


_dataset: Dataset | None = None


def _begin_worker(dataset: Dataset, parent: int) -> None:
    global _dataset
    _dataset = dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import cv2
    cv2.setNumThreads(0)

    def watch() -> None:  # a killed parent can't end its workers
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _make_batch(step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
    return _dataset(step)


class WorkerDiedError(UserError):
    """A process that makes batches is gone."""


class Feeder:
    """Batches in order, made ahead in worker processes.

    The workers are forked at once, so make it before MindSpore is imported: they then share the file list with
    this process and start no threads of the framework.
    """

    def __init__(self, dataset: Dataset, workers: int, first_step: int, last_step: int) -> None:
        self.dataset = dataset
        self.steps = iter(range(first_step, last_step))
        self.waiting: deque[Future] = deque()
        self.pool = None
        if workers > 0:
            self.pool = ProcessPoolExecutor(workers, get_context('fork'), _begin_worker, (dataset, os.getpid()))
            for _ in range(2 * workers):
                self._ask()

    def _ask(self) -> None:
        step = next(self.steps, None)
        if step is not None:
            self.waiting.append(self.pool.submit(_make_batch, step))

    def __iter__(self) -> Iterator[tuple[tuple[np.ndarray, ...], list[str]]]:
        if self.pool is None:
            for step in self.steps:
                yield self.dataset(step)
            return
        while self.waiting:
            try:
                ready = self.waiting.popleft().result()
                self._ask()
            except BrokenProcessPool:
                raise WorkerDiedError('a data worker died (out of memory?); --ckpt_path continues, perhaps with a '
                                      'smaller --num_workers') from None
            yield ready

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


class Unreadable:
    """Counts and names the unreadable pictures that this rank has met; more than 1 % on all ranks stops the run."""

    def __init__(self, n_pictures: int) -> None:
        self.n_pictures = n_pictures
        self.seen: set[str] = set()

    def add(self, failures: list[str]) -> None:
        for line in failures:
            if line not in self.seen:
                self.seen.add(line)
                tqdm.write(f'skipped ({len(self.seen)} so far): {line}', file=sys.stderr)

    def check(self, count: int) -> None:
        """Stop when ``count`` on all ranks together is too many."""
        if count > MOST_UNREADABLE * self.n_pictures:
            raise UserError(f'{count} of {self.n_pictures} images are unreadable, more than 1 %; '
                            f'mend or remove them: {min(self.seen, default="see the other ranks")}')


# ---------------------------------------------------------------- what is kept

@dataclass
class Progress:
    """Where a training is; goes into its state.

    Attributes:
        step: optimizer steps done.
        best: the best score so far (lower is better); best_by: what is scored, see ``Plan``.
        sums, count: of the running means of this epoch, which the console shows.
        log_sums, log_count: of the steps since the last row of the log.
        window_sum, window_count: of the published rule for 'best', since the last save.
        unreadable: lines of pictures that were skipped.
    """

    step: int = 0
    previous_save: int = 0
    best: float = math.inf
    best_by: str = ''
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    log_sums: dict[str, float] = field(default_factory=dict)
    log_count: int = 0
    window_sum: float = 0.0
    window_count: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass
class Network:
    """A trained network: its parameters, its optimizer's, and what its checkpoints record."""

    net: nn.Cell
    optimizer: nn.Optimizer
    record: dict[str, Any]

    def weights(self) -> dict[str, Any]:
        return {p.name: p for p in self.net.get_parameters()}

    def moments(self) -> dict[str, Any]:
        own = {id(p) for p in self.net.get_parameters()}
        return {p.name.rpartition(':')[2]: p for p in self.optimizer.get_parameters() if id(p) not in own}


class Keeper:
    """Writes ``latest`` and ``best`` checkpoints and the state that an exact resume needs.

    One save is one commit point: everything is written beside first, and the state, which holds the weights too, is
    renamed before the exported weights. A resume reads the state alone. A kill between the renames of two ``best``
    files leaves a pair of two steps, which their records tell and which is refused.
    """

    def __init__(self, folder: Path, networks: dict[str, Network], settings: dict[str, Any],
                 colours: np.ndarray | None, extra: dict[str, Any] | None = None) -> None:
        self.folder, self.networks, self.settings, self.colours = folder, networks, settings, colours
        self.extra = extra or {}  # further parameters of the training, by name
        self.name = next(iter(networks))  # of its files
        self.state = folder / state_name(self.name)

    def save(self, progress: Progress) -> None:
        """The latest weights and state."""
        tensors = {f'extra/{name}': p for name, p in self.extra.items()}
        for name, network in self.networks.items():
            tensors |= {f'{name}/weights/{k}': v for k, v in network.weights().items()}
            tensors |= {f'{name}/moments/{k}': v for k, v in network.moments().items()}
        record = {'network': 'state', 'progress': vars(progress), 'settings': self.settings,
                  'networks': {name: network.record for name, network in self.networks.items()}}
        self._write('latest', progress, [(self.state, tensors, record, None)])
        progress.previous_save = progress.step

    def save_best(self, progress: Progress) -> None:
        """The weights as they are now, as the best."""
        self._write('best', progress, [])

    def _write(self, which: str, progress: Progress, first: list) -> None:
        jobs = first + [(self.folder / f'{name}_{which}.ckpt', network.weights(),
                         {**network.record, 'step': progress.step, 'settings': self.settings}, self.colours)
                        for name, network in self.networks.items()]
        temporaries = []
        try:
            for i, (path, tensors, record, colours) in enumerate(jobs):
                temporary = path.with_name(f'{files.TEMPORARY}{os.getpid()}-{i}.ckpt')
                temporaries.append(temporary)
                checkpoint.save(temporary, tensors, record, colours)
            for temporary in temporaries:
                files.flush(temporary)
            for temporary, (path, *_) in zip(temporaries, jobs, strict=True):
                os.replace(temporary, path)
        except OSError as error:
            raise UserError(f'{self.folder}: cannot save ({error.strerror}); the checkpoints there are whole, the '
                            f'latest of step {progress.previous_save}') from None
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)

    def broken(self) -> str:
        """Name of a weight that is not finite, '' when all are."""
        for network in self.networks.values():
            for name, weight in network.weights().items():
                if not np.isfinite(weight.asnumpy()).all():
                    return name
        return ''

    def restore(self, state: checkpoint.Checkpoint) -> Progress:
        """Set everything from a state; a loss scale only where both have one (--amp_level may change)."""
        import mindspore as ms
        scale = {f'extra/{name}': p for name, p in self.extra.items()}
        targets = {name: p for name, p in scale.items() if name in state.entries}
        state = replace(state, entries={name: entry for name, entry in state.entries.items()
                                        if name in targets or not name.startswith('extra/')})
        for name, network in self.networks.items():
            targets |= {f'{name}/weights/{k}': v for k, v in network.weights().items()}
            targets |= {f'{name}/moments/{k}': v for k, v in network.moments().items()}
        checkpoint.check(state, {name: tuple(p.shape) for name, p in targets.items()})
        for name, parameter in targets.items():
            parameter.set_data(ms.Tensor(state.array(name), parameter.dtype))
        progress = Progress(**state.record['progress'])
        progress.previous_save = progress.step
        return progress


def state_name(network: str) -> str:
    """File name of the training state beside ``<network>_latest.ckpt``."""
    return f'{network}_latest_state.ckpt'


def find_state(weights: Path) -> checkpoint.Checkpoint | None:
    """The training state that belongs to a weights file, or None.

    Raises:
        UserError: the state beside it belongs to other weights.
    """
    path = weights.parent / f'{weights.stem}_state.ckpt'
    if not os.path.isfile(path):
        return None
    state = checkpoint.read(path, '--ckpt_path').expect('state', '--ckpt_path')
    progress = state.record['progress']
    if weights.is_file():
        step = checkpoint.read(weights).record.get('step')
        if step not in (progress['step'], progress['previous_save']):
            raise UserError(f'{path}: is of step {progress["step"]}, {weights.name} of step {step}; '
                            f'remove the state to go on from the weights alone, or bring the weights back')
    return state


def require_free(folder: Path, network: str, state: checkpoint.Checkpoint | None, resume_from: Path) -> None:
    """A UserError where a training would write over another one than it continues; names ``resume_from``."""
    there = folder / state_name(network)
    if not os.path.isfile(there) or (state is not None and os.path.samefile(state.path, there)):
        return
    step = checkpoint.read(there, '--save_path').expect('state', '--save_path').record['progress']['step']
    raise UserError(f'--save_path {folder}: holds a training that has taken {step} steps; go on with --ckpt_path '
                    f'{resume_from}, or name another --save_path')


def weights_in(state: checkpoint.Checkpoint, network: str) -> checkpoint.Checkpoint:
    """A network's weights as its state has them, for when a kill left no file of their own."""
    start = f'{network}/weights/'
    entries = {name.removeprefix(start): entry for name, entry in state.entries.items() if name.startswith(start)}
    record = state.record.get('networks', {}).get(network, {})
    return checkpoint.Checkpoint(state.path, entries, record.get('network'), record, None)


def say_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A line when a resumed training has other settings, which makes it no exact continuation."""
    changed = [f'{key} {before[key]} -> {now[key]}' for key in sorted(before.keys() & now.keys())
               if before[key] != now[key]]  # a setting that only one of them knows is no change of it
    if changed:
        note('resuming with other settings, so not an exact continuation: ' + ', '.join(changed))


# ---------------------------------------------------------------- the log

class Log:
    """``<network>_log.csv``, whose rows are means over the steps since the row before, and ``<network>_curves.png``."""

    def __init__(self, folder: Path, network: str, progress: Progress, writes: bool) -> None:
        self.path, self.picture = folder / f'{network}_log.csv', folder / f'{network}_curves.png'
        self.writes = writes
        self.rows: list[dict[str, str]] = []
        if progress.step and self.path.is_file():
            with open(self.path, newline='', encoding='utf-8') as stream:
                self.rows = [row for row in csv.DictReader(stream) if int(row['step']) <= progress.step]

    def add(self, step: int, values: dict[str, float]) -> None:
        """A row of figures of one step."""
        self.rows.append({'step': str(step), **{k: f'{v:.6g}' for k, v in values.items()}})

    def flush(self) -> None:
        """Write the table and the picture of the curves."""
        if not self.writes or not self.rows:
            return
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator='\n')
        table.writeheader()
        table.writerows(self.rows)
        files.write_bytes(self.path, text.getvalue().encode())
        series = {}
        for key in columns:
            if key not in ('step', 'epoch', 'seconds'):
                points = [(int(row['step']), float(row[key])) for row in self.rows if row.get(key)]
                if any(value for _, value in points):  # a loss that is switched off is no curve
                    series[key] = points
        images.write_png(self.picture, report.curves(series))


class StopRequest:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopRequest:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


# ---------------------------------------------------------------- the loop

@dataclass(frozen=True)
class Plan:
    """How long and how often; steps are optimizer steps.

    Attributes:
        console: the published line for (epoch from 0, steps done in the epoch, running means of the epoch).
        best_of: the figure whose window mean decides 'best' without validation, and its sign (+1: lower is better).
        best_by: what decides 'best', so that scores of different things are never compared.
    """

    last_step: int
    log_every: int
    save_every: int
    val_every: int
    console: Callable[[int, int, dict[str, float]], str]
    best_of: tuple[str, float]
    best_by: str


def best_by(held_back: Listing | None, held_masks: Listing | None) -> str:
    """What decides 'best': the validation pictures and masks by name, or the training itself."""
    if held_back is None:
        return 'training'
    names = [[listing.id(i) for i in range(len(listing))] for listing in (held_back, held_masks) if listing is not None]
    return f'{len(held_back)} pictures {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}'


def fit(plan: Plan, order: Order, feeder: Feeder, take_step: Callable[[int, tuple[np.ndarray, ...]], dict[str, float]],
        keeper: Keeper, progress: Progress, loss_of: Callable[[tuple[np.ndarray, ...]], float],
        validate: Callable[[int], tuple[float, dict[str, float]]] | None) -> int:
    """Train until ``plan.last_step``.

    Args:
        take_step: (step from 0, arrays) -> figures of the step; 'loss' and whatever else must be finite.
        loss_of: arrays -> what the network as it is now makes of them; must be finite before anything is saved.
        validate: steps done -> (score, lower is better; figures for the log).

    Returns:
        Exit status: 0, or 128 + the signal that asked for a stop.

    Raises:
        UserError: a figure that is not finite, or too many unreadable pictures.
    """
    log = Log(keeper.folder, keeper.name, progress, parallel.is_writer())
    unreadable = Unreadable(order.n_pictures)
    if parallel.is_writer():
        unreadable.seen.update(progress.unreadable)
    if progress.best_by != plan.best_by:
        if progress.best_by:
            say(f"'best' is now decided by {plan.best_by}, before by {progress.best_by}: it starts anew")
        progress.best, progress.best_by = math.inf, plan.best_by
        progress.window_sum, progress.window_count = 0.0, 0
    bar = tqdm(total=plan.last_step, initial=progress.step, unit='step', disable=None if parallel.is_writer() else True)
    started = time.perf_counter()
    with StopRequest() as stop, bar:
        for arrays, failures in _or_saved(feeder, keeper, progress):
            unreadable.add(failures)
            unreadable.check(parallel.sum_over_ranks(len(unreadable.seen)))
            figures = parallel.mean_over_ranks(take_step(progress.step, arrays))
            _require_finite(figures, progress.step + 1, progress)
            _count(progress, figures, plan, order)
            epoch, within = divmod(progress.step - 1, order.steps_per_epoch)
            done = progress.step == plan.last_step
            bar.update()
            if progress.step % plan.log_every == 0 or within + 1 == order.steps_per_epoch or done:
                means = {k: v / progress.count for k, v in progress.sums.items()}
                if parallel.is_writer():
                    tqdm.write(plan.console(epoch, within + 1, means))
                log.add(progress.step, {'epoch': epoch,
                                        **{k: v / progress.log_count for k, v in progress.log_sums.items()},
                                        'seconds': time.perf_counter() - started})
                progress.log_sums, progress.log_count = {}, 0
            scored = validate is not None and (progress.step % plan.val_every == 0 or done)
            asked = parallel.any_rank(bool(stop.signal))
            saves = progress.step % plan.save_every == 0 or done or asked
            if scored or saves:  # the figures above are of the weights before this step
                weight = keeper.broken()
                after = {weight: math.nan} if weight else {'loss': loss_of(arrays)}
                _require_finite(parallel.mean_over_ranks(after), progress.step, progress)
            if scored:
                score, seen = validate(progress.step)
                if parallel.is_writer():
                    tqdm.write(f'step {progress.step}: ' + ', '.join(f'{k} {v:.5g}' for k, v in seen.items()))
                log.add(progress.step, {'epoch': epoch, **seen, 'seconds': time.perf_counter() - started})
                _keep_best(progress, score, keeper)
            if saves:
                if validate is None and (progress.step % plan.save_every == 0 or done):
                    _keep_best(progress, progress.window_sum / progress.window_count, keeper)
                    progress.window_sum, progress.window_count = 0.0, 0
                progress.unreadable = sorted(unreadable.seen)
                if parallel.is_writer():
                    keeper.save(progress)
                log.flush()
            elif scored or progress.step % plan.log_every == 0:
                log.flush()
            if asked and not done:
                parallel.wait_for_all(order.ranks > 1)  # msrun ends the others when one has left
                note(f'stopped at step {progress.step}, saved in {keeper.folder}; --ckpt_path continues from there')
                return 128 + (stop.signal or signal.SIGTERM)
    return 0


def _or_saved(feeder: Feeder, keeper: Keeper, progress: Progress) -> Iterator[tuple[tuple[np.ndarray, ...], list[str]]]:
    """The feeder's batches; when it breaks, what was learnt is saved first."""
    try:
        yield from feeder
    except WorkerDiedError:
        if parallel.is_writer() and progress.step > progress.previous_save and not keeper.broken():
            keeper.save(progress)
        raise


def _require_finite(figures: dict[str, float], step: int, progress: Progress) -> None:
    wrong = {k: v for k, v in figures.items() if not math.isfinite(v)}
    if wrong:
        said = ', '.join(f'{k} is {v}' for k, v in wrong.items())
        raise UserError(f'step {step}: {said}; stopped, the checkpoints of step {progress.previous_save} are whole; '
                        f'try a lower learning rate or --clip_norm')


def _count(progress: Progress, figures: dict[str, float], plan: Plan, order: Order) -> None:
    if progress.step % order.steps_per_epoch == 0:
        progress.sums, progress.count = {}, 0
    progress.step += 1
    progress.count += 1
    progress.log_count += 1
    for key, value in figures.items():
        progress.sums[key] = progress.sums.get(key, 0.0) + value
        progress.log_sums[key] = progress.log_sums.get(key, 0.0) + value
    key, sign = plan.best_of
    progress.window_sum += sign * figures[key]
    progress.window_count += 1


def _keep_best(progress: Progress, score: float, keeper: Keeper) -> None:
    if score < progress.best:
        progress.best = score
        if parallel.is_writer():
            keeper.save_best(progress)


def say(message: str) -> None:
    """A line from the rank that writes."""
    if parallel.is_writer():
        note(message)


def settings_of(args: Any, without: tuple[str, ...], last_step: int) -> dict[str, Any]:
    """The options that a training's course depends on, as JSON values; on its end only a cosine depends."""
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in without}
    return json.loads(json.dumps(settings | ({'last_step': last_step} if args.lr_schedule == 'cosine' else {})))
