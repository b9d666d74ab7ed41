"""The training loop of both stages."""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
    from ict.training.mask_sources import MaskSource

Arrays = tuple[np.ndarray, ...]


class Trainer(Protocol):
    """A stage's network and losses as the loop sees them."""

    def take_step(self, step: int, arrays: Arrays) -> dict[str, float]:
        """One optimizer step, numbered from 0 -> its metrics, which must be finite."""

    def score(self, metrics: dict[str, float]) -> float:
        """A step's score by the published rule for 'best', used without validation; lower is better."""

    def current_loss(self, arrays: Arrays) -> float:
        """A loss of the current weights; must be finite before anything is saved."""

    def validate(self, step: int) -> tuple[float, dict[str, float]]:
        """After so many steps: a score (lower is better) and metrics of the held-back part."""

    def progress_line(self, epoch: int, steps: int, means: dict[str, float]) -> str:
        """The published line for an epoch (from 0) after so many of its steps, with the epoch's means."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how often; steps are optimizer steps.

    Attributes:
        val_every: steps from one validation to the next; 0: there is nothing to validate on.
        best_by: what decides 'best', so that scores of different things are never compared.
    """

    last_step: int
    log_every: int
    save_every: int
    val_every: int = 0
    best_by: str = 'training'

    @classmethod
    def from_args(cls, args: argparse.Namespace, last_step: int, best_by: str | None) -> LoopConfig:
        """From the options of train.py; without validation ``best_by`` is None."""
        validation = {} if best_by is None else {'val_every': args.val_every, 'best_by': best_by}
        return cls(last_step, args.log_every, args.save_every, **validation)


def best_by(pictures: Listing, mask_source: MaskSource) -> str:
    """What decides 'best' in a validation: its pictures and masks by name."""
    masks = mask_source.files
    listings = [pictures] if masks is None else [pictures, masks.listing]
    content = [[listing.id(i) for i in range(len(listing))] for listing in listings]
    if masks is not None and (masks.invert or masks.dilate):
        content.append([str(masks.invert), str(masks.dilate)])
    return f'{len(pictures)} pictures {hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}'


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


class Loop:
    """Trains, saves, validates and logs."""

    def __init__(self, config: LoopConfig, trainer: Trainer, epoch_sampler: EpochSampler, checkpointer: Checkpointer,
                 progress: Progress) -> None:
        self.config, self.trainer, self.epoch_sampler = config, trainer, epoch_sampler
        self.checkpointer, self.progress = checkpointer, progress
        self.train_log = TrainLog(checkpointer.folder, checkpointer.name, progress, parallel.is_writer())
        self.unreadable = Unreadable(epoch_sampler.n_pictures)
        if parallel.is_writer():
            self.unreadable.seen.update(progress.unreadable)
        self.started = time.perf_counter()
        if not checkpointer.has_best():  # it was lost, or another folder's
            progress.best = math.inf
        if progress.best_by != config.best_by:
            if progress.best_by:
                log(f"'best' is now decided by {config.best_by}, before by {progress.best_by}: it starts anew")
            progress.best, progress.best_by = math.inf, config.best_by
            progress.window_sum, progress.window_count = 0.0, 0

    def fit(self, data_loader: DataLoader) -> int:
        """Train from ``progress.step`` to ``config.last_step``.

        Returns:
            Exit status: 0, or 128 + the signal that asked for a stop.

        Raises:
            UserError: a metric or weight that is not finite, or too many unreadable files.
        """
        config, progress = self.config, self.progress
        bar = tqdm(total=config.last_step, initial=progress.step, unit='step',
                   disable=None if parallel.is_writer() else True)
        with StopRequest() as stop, bar:
            for arrays in self.batches(data_loader):
                self.take_step(arrays)
                bar.update()

                # What is due after this step.
                done = progress.step == config.last_step
                stopping = parallel.any_rank(bool(stop.signal))
                logs = done or self.is_due(config.log_every) or self.is_due(self.epoch_sampler.steps_per_epoch)
                validates = config.val_every > 0 and (done or self.is_due(config.val_every))
                closes_window = done or self.is_due(config.save_every)
                saves = closes_window or stopping

                if logs:
                    self.log_means()
                if validates or saves:
                    self.require_finite_weights(arrays)
                if validates:
                    self.validate()
                if validates or saves or self.is_due(config.log_every):
                    self.train_log.flush()  # before the state: a resume drops rows after it, but can't add missing ones
                if saves:
                    self.save(closes_window)
                if stopping and not done:
                    log(f'stopped at step {progress.step}, saved in {self.checkpointer.folder}; --ckpt_path continues '
                        f'from there')
                    return 128 + (stop.signal or signal.SIGTERM)
        return 0

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 0."""
        return (self.progress.step - 1) // self.epoch_sampler.steps_per_epoch

    def is_due(self, every: int) -> bool:
        """Whether something is due that is done every so many steps."""
        return self.progress.step % every == 0

    def batches(self, data_loader: DataLoader) -> Iterator[Arrays]:
        """The batches; when a worker dies or too many files are unreadable, what was learnt is saved first."""
        progress = self.progress
        try:
            for arrays, failures in data_loader:
                self.unreadable.add(failures)
                self.unreadable.check()
                yield arrays
        except UserError as error:
            if not isinstance(error, WorkerDiedError):
                self.unreadable.seen.clear()  # they are to be mended, and count no longer
            if parallel.is_writer() and progress.step > progress.previous_save and not self.checkpointer.broken():
                self.train_log.flush()
                self._save_latest()
            raise

    def take_step(self, arrays: Arrays) -> None:
        """One optimizer step, with metrics that are the ranks' means."""
        progress = self.progress
        metrics = parallel.mean_over_ranks(self.trainer.take_step(progress.step, arrays))
        self._require_finite(metrics, progress.step + 1)
        progress.add_step(metrics, self.trainer.score(metrics), self.epoch_sampler.steps_per_epoch)

    def log_means(self) -> None:
        """The published line of progress, and a row of the log."""
        if parallel.is_writer():
            steps = (self.progress.step - 1) % self.epoch_sampler.steps_per_epoch + 1
            tqdm.write(self.trainer.progress_line(self.epoch, steps, self.progress.epoch_means()))
        self._add_row(self.progress.take_log_means())

    def require_finite_weights(self, arrays: Arrays) -> None:
        """Look at the current weights; the step's metrics are of those before it."""
        weight = self.checkpointer.broken()
        found = {weight: math.nan} if weight else {'loss': self.trainer.current_loss(arrays)}
        self._require_finite(parallel.mean_over_ranks(found), self.progress.step)

    def validate(self) -> None:
        """Score the held-back part; keep the weights when they are the best so far."""
        score, metrics = self.trainer.validate(self.progress.step)
        if parallel.is_writer():
            tqdm.write(f'step {self.progress.step}: ' + ', '.join(f'{k} {v:.5g}' for k, v in metrics.items()))
        self._add_row(metrics)
        self._keep_best(score)

    def save(self, closes_window: bool) -> None:
        """Save the latest weights and state; without validation also the best, when a window of steps is over."""
        if not self.config.val_every and closes_window:
            self._keep_best(self.progress.take_window_mean())
        if self.progress.previous_save != self.progress.step:  # else with the first best weights
            self._save_latest()

    def _save_latest(self) -> None:
        self.progress.unreadable = sorted(self.unreadable.seen)
        if parallel.is_writer():
            self.checkpointer.save(self.progress)

    def _add_row(self, metrics: dict[str, float]) -> None:
        self.train_log.add(self.progress.step, {'epoch': self.epoch, **metrics,
                                                'seconds': time.perf_counter() - self.started})

    def _keep_best(self, score: float) -> None:
        if score < self.progress.best:
            self.progress.best = score
            if parallel.is_writer():
                if not self.progress.previous_save:  # no weights without a state that goes on from them
                    self.train_log.flush()
                    self._save_latest()
                self.checkpointer.save_best(self.progress)

    def _require_finite(self, metrics: dict[str, float], step: int) -> None:
        wrong = ', '.join(f'{name} is {value}' for name, value in metrics.items() if not math.isfinite(value))
        if wrong:
            raise UserError(f'step {step}: {wrong}; stopped, the checkpoints of step {self.progress.previous_save} are '
                            f'whole; try a lower learning rate or --clip_norm')
