"""Batches, made ahead in worker processes."""
from __future__ import annotations

import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
from tqdm import tqdm

from ict.device import parallel
from ict.errors import UserError
from ict.process import end_with_parent

MOST_UNREADABLE, ALWAYS_TOLERATED = 0.01, 3  # a share of the pictures, a number of files; more than both stops a run
_NAMED = 3  # of the held-back files that cannot be read
_BINS = 1 << 16  # in which the ranks count together what each has met

Batch = tuple[tuple[np.ndarray, ...], list[str]]  # arrays, and a line for each picture that could not be read
Dataset = Callable[[int], Batch]  # makes the batch of a step; runs in worker processes and needs no MindSpore


def read_or_replace(n_pictures: int, wanted: int, rng: np.random.Generator, read: Callable[[int], Any],
                    failures: list[str]) -> Any:
    """``read(wanted)``, or another picture drawn from ``rng`` when that one is unreadable; the line is kept."""
    for _ in range(100):
        try:
            return read(wanted)
        except UserError as error:
            failures.append(str(error))
            wanted = int(rng.integers(n_pictures))
    raise UserError('100 files drawn one after another were unreadable; the last: ' + failures[-1])


class HeldBackFiles:
    """Reads files of a held-back part, all of which are needed, and names those that cannot be read together."""

    def __init__(self) -> None:
        self.failures: dict[str, None] = {}  # each line once, in order

    def read(self, read: Callable[..., Any], *args: Any) -> Any:
        """``read(*args)``, or None when that raises a UserError."""
        try:
            return read(*args)
        except UserError as error:
            self.failures[str(error)] = None
            return None

    def require_all(self) -> None:
        """Raises a UserError when a file could not be read."""
        if self.failures:
            count = len(self.failures)
            more = '; ...' if count > _NAMED else ''
            raise UserError(f'held-back files that cannot be read: {count} ({"; ".join(list(self.failures)[:_NAMED])}'
                            f'{more}); mend or remove them')


_dataset: Dataset  # of a worker process


def _begin_worker(dataset: Dataset) -> None:
    global _dataset
    _dataset = dataset
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import cv2
    cv2.setNumThreads(0)


def _make_batch(step: int) -> tuple[tuple[np.ndarray, ...], list[str]]:
    return _dataset(step)


class WorkerDiedError(UserError):
    """A process that makes batches is gone."""


class DataLoader:
    """Batches in order, made ahead in worker processes.

    The workers are forked at once, so make it before MindSpore is imported: they then share the file list with
    this process and start no threads of the framework.
    """

    def __init__(self, dataset: Dataset, workers: int, first_step: int, last_step: int) -> None:
        self.dataset = dataset
        self.steps = iter(range(first_step, last_step))
        self.waiting: deque[Future] = deque()
        self.pool: ProcessPoolExecutor | None = None
        if workers > 0:
            self.pool = ProcessPoolExecutor(workers, get_context('fork'), _begin_worker, (dataset,))
            for _ in range(2 * workers):
                self._ask(self.pool)

    def _ask(self, pool: ProcessPoolExecutor) -> None:
        step = next(self.steps, None)
        if step is not None:
            self.waiting.append(pool.submit(_make_batch, step))

    def __iter__(self) -> Iterator[tuple[tuple[np.ndarray, ...], list[str]]]:
        if self.pool is None:
            for step in self.steps:
                yield self.dataset(step)
            return
        while self.waiting:
            try:
                ready = self.waiting.popleft().result()
                self._ask(self.pool)
            except BrokenProcessPool:
                raise WorkerDiedError('a data worker died (out of memory?); --ckpt_path continues, perhaps with a '
                                      'smaller --num_workers') from None
            yield ready

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


class Unreadable:
    """Counts and names the unreadable files that this rank has met.

    More than 1 % of the pictures and more than 3 files, on all ranks together, stop the run.
    """

    def __init__(self, n_pictures: int) -> None:
        self.n_pictures = n_pictures
        self.seen: set[str] = set()
        self.checked = 0

    def add(self, failures: list[str]) -> None:
        """Note the lines of a step; new ones are printed."""
        for line in failures:
            if line not in self.seen:
                self.seen.add(line)
                tqdm.write(f'skipped ({len(self.seen)} so far): {line}', file=sys.stderr)

    def check(self) -> None:
        """Raises a UserError when there are too many; all ranks call it together."""
        limit = max(ALWAYS_TOLERATED, MOST_UNREADABLE * self.n_pictures)
        count = parallel.sum_over_ranks(len(self.seen))
        if count <= limit or count == self.checked:
            return
        self.checked = count
        count = min(count, self._different_on_all_ranks())
        if count > limit:
            raise UserError(f'{count} files of {self.n_pictures} pictures are unreadable, more than 1 %; mend or '
                            f'remove them: {min(self.seen, default="see the other ranks")}')

    def _different_on_all_ranks(self) -> int:
        """How many files the ranks have met, one that several met counted once (about, where there are thousands)."""
        bins = [False] * _BINS
        for line in self.seen:
            bins[zlib.crc32(os.fsencode(line)) % _BINS] = True
        return sum(parallel.on_any_rank(bins))
