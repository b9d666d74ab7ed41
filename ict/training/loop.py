"""The training loop of both stages."""
from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ict.device import parallel
from ict.errors import UserError
from ict.log import log
from ict.training.checkpointer import Checkpointer, Progress
from ict.training.epoch_sampler import EpochSampler
from ict.training.loader import DataLoader, Unreadable, WorkerDiedError
from ict.training.train_log import TrainLog

if TYPE_CHECKING:
    from ict.data.pairs import Listing


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


@dataclass(frozen=True)
class LoopConfig:
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


def fit(plan: LoopConfig, order: EpochSampler, feeder: DataLoader,
        take_step: Callable[[int, tuple[np.ndarray, ...]], dict[str, float]],
        keeper: Checkpointer, progress: Progress, loss_of: Callable[[tuple[np.ndarray, ...]], float],
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
    train_log = TrainLog(keeper.folder, keeper.name, progress, parallel.is_writer())
    unreadable = Unreadable(order.n_pictures)
    if parallel.is_writer():
        unreadable.seen.update(progress.unreadable)
    if progress.best_by != plan.best_by:
        if progress.best_by:
            log(f"'best' is now decided by {plan.best_by}, before by {progress.best_by}: it starts anew")
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
                train_log.add(progress.step, {'epoch': epoch,
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
                train_log.add(progress.step, {'epoch': epoch, **seen, 'seconds': time.perf_counter() - started})
                _keep_best(progress, score, keeper)
            if saves:
                if validate is None and (progress.step % plan.save_every == 0 or done):
                    _keep_best(progress, progress.window_sum / progress.window_count, keeper)
                    progress.window_sum, progress.window_count = 0.0, 0
                progress.unreadable = sorted(unreadable.seen)
                if parallel.is_writer():
                    keeper.save(progress)
                train_log.flush()
            elif scored or progress.step % plan.log_every == 0:
                train_log.flush()
            if asked and not done:
                parallel.wait_for_all(order.ranks > 1)  # msrun ends the others when one has left
                log(f'stopped at step {progress.step}, saved in {keeper.folder}; --ckpt_path continues from there')
                return 128 + (stop.signal or signal.SIGTERM)
    return 0


def _or_saved(feeder: DataLoader, keeper: Checkpointer,
              progress: Progress) -> Iterator[tuple[tuple[np.ndarray, ...], list[str]]]:
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


def _count(progress: Progress, figures: dict[str, float], plan: LoopConfig, order: EpochSampler) -> None:
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


def _keep_best(progress: Progress, score: float, keeper: Checkpointer) -> None:
    if score < progress.best:
        progress.best = score
        if parallel.is_writer():
            keeper.save_best(progress)
