"""An inference run of a stage: which results are still to be made, making them, what failed, the end."""
from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ict import files
from ict.device import parallel, runtime
from ict.errors import UserError, not_written
from ict.lock import locked
from ict.log import log
from ict.runs.config import RunConfig
from ict.runs.inputs import Inputs, Outcome, View
from ict.runs.manifest import Manifest
from ict.runs.scores import Scores


class Task(NamedTuple):
    """Result ``k`` (from 0) of picture number ``i``."""

    i: int
    k: int


class Part(NamedTuple):
    """One frame of a task: number ``number`` (from 0) of ``frames``."""

    task: Task
    frames: list[Any]
    number: int

    @property
    def frame(self) -> Any:
        return self.frames[self.number]


class Result(NamedTuple):
    """What a stage makes of one task: its line for ``Scores``, and for each file a function that returns its bytes."""

    scores: dict[str, Any]
    encoders: Mapping[Path, Callable[[], bytes]]


_MOST_WAITING = 2  # results that are encoded or written while the next is computed; 12 million pixels take 2 s


def frame_names(picture: str, n_frames: int) -> list[str]:
    """What the frames of a picture are called: its id, or ``<id>@1``, ``<id>@2``, ... of several."""
    return [picture] if n_frames == 1 else [f'{picture}@{number + 1}' for number in range(n_frames)]


class Stage(ABC):
    """What the runs of both stages have in common. A stage says what it does with one picture.

    A picture has one frame, or several where its holes lie far apart.

    Args:
        keeps: whether results are written; without, everything is computed and only scored.
    """

    noun: str  # what a result is called
    scores_name: str  # of the file with a line for each
    scores: Scores

    def __init__(self, config: RunConfig, pictures: Inputs, view: View, manifest: Manifest, keeps: bool = True) -> None:
        self.config, self.pictures, self.view, self.manifest, self.keeps = config, pictures, view, manifest, keeps
        self.output_dir, self.n_results = Path(config.output.value), config.n_results.value
        self.rank, self.ranks = parallel.rank() if config.compute.distributed else (0, 1)
        self.outcome = Outcome(pictures.ids())
        self._decoded: tuple[int, list[Any]] | None = None

    @abstractmethod
    def paths(self, task: Task, n_frames: int = 1) -> list[Path]:
        """The files of a result."""

    @abstractmethod
    def decode(self, i: int) -> list[Any]:
        """A picture's frames as arrays; raises a UserError when one of its files is unusable."""

    @abstractmethod
    def load(self, batch_size: int) -> None:
        """Load the network, for up to ``batch_size`` frames at once; MindSpore has been started."""

    @abstractmethod
    def compute(self, parts: Sequence[Part]) -> list[Any]:
        """What the network makes of each of some frames."""

    @abstractmethod
    def result(self, task: Task, frames: Sequence[Any], computed: Sequence[Any]) -> Result:
        """Scores and encoders of a task whose frames have all been computed; encoders are called on another thread."""

    @abstractmethod
    def report(self) -> None:
        """Tell the user about the results that are there now; on the rank that writes."""

    def sources(self, task: Task, digests: dict[str, str]) -> dict[str, str]:
        """``digests`` of picture and mask, and of all else that the result is made of; a UserError for a misfit."""
        return digests

    def read(self, task: Task) -> list[Any]:
        """The frames of a task's picture, decoded once for all its results; raises as ``decode``."""
        if self._decoded is None or self._decoded[0] != task.i:
            self._decoded = None  # never two pictures in memory
            self._decoded = task.i, self.decode(task.i)
        return self._decoded[1]

    def all_paths(self) -> Iterator[Path]:
        """All files that are written for the user, of pictures with one frame."""
        return (path for task in self.all_tasks() for path in self.paths(task))

    def all_tasks(self) -> Iterator[Task]:
        """Every result of every picture."""
        return (Task(i, k) for i in range(len(self.pictures)) for k in range(self.n_results))

    def refuse_folder(self, inputs: Iterable[Path], leftovers: Iterable[Path] = ()) -> None:
        """Raises a UserError where results would replace pictures, masks or ``inputs``.

        Also, without ``--overwrite``, where a file that would be replaced is not known to be made here.

        Args:
            leftovers: files that are foreign where there is no manifest.
        """
        self.pictures.refuse_to_overwrite(self.all_paths(), str(self.config.output), inputs)
        if self.config.overwrite or not os.path.isdir(self.output_dir):
            return
        made = Scores(self.output_dir, self.scores_name)
        for path in chain(leftovers, made.files()) if self.manifest.is_new else ():
            files.refuse_foreign(path)
        known = {} if self.manifest.is_new else made.lines
        for task in self.all_tasks():
            if (self.pictures.id(task.i), task.k) not in known:
                for path in self.paths(task):
                    files.refuse_foreign(path)

    def execute(self, device_target: str) -> int:
        """Make what is not finished yet; the exit status."""
        compute = self.config.compute
        with locked(self.output_dir, self.config.output.option):
            # what is still to be made
            self.scores = Scores(self.output_dir if self.keeps else None, self.scores_name, self.rank)
            if self.rank == 0:
                for folder in {self.output_dir, *(path.parent for path in self.all_paths())}:
                    files.sweep(folder, below=False)
            tasks = self.unfinished()
            if self.config.overwrite:
                self.scores.forget_all()
            # Ranks must find the manifest before any result, and --overwrite must not leave the old one. Otherwise
            # MindSpore starts while the checkpoint's digest is computed.
            manifest_first = compute.distributed or self.config.overwrite
            if manifest_first:
                self.write_records()

            # make it
            try:
                if tasks or compute.distributed:
                    runtime.start(device_target, compute.device_id, compute.distributed)
                    self._require_same_on_all_ranks()
                    batch_size = runtime.rows_at_once(compute.batch_size)
                    self.load(batch_size)
                    if not manifest_first:
                        self.write_records()
                    self.work(tasks, batch_size)
            finally:
                self.finish()
            return self.outcome.status()

    def write_records(self) -> None:
        """Rank 0, before any result is written: the manifest, and the lines of the results that are left."""
        if self.rank == 0 and self.keeps:
            self.manifest.write()
            self.scores.write()

    def unfinished(self) -> list[Task]:
        """This rank's tasks. Finished results of the same sources are kept, others removed by rank 0."""
        tasks: list[Task] = []
        n_kept = 0
        overwrite = self.config.overwrite
        for i in range(len(self.pictures)):
            picture = self.pictures.id(i)
            self.manifest.pictures[picture] = self.pictures.sources(i)
            digests = self.manifest.digests(picture)
            try:
                sources = [self.sources(Task(i, k), digests) for k in range(self.n_results)]
            except UserError as error:
                self.outcome.fail(picture, error)
                continue
            finished = self.scores.of_picture(picture, self.n_results)
            kept = {k for k in range(self.n_results) if not overwrite and self.keeps and
                    k in finished and _holds(finished[k], sources[k]) and self._is_there(Task(i, k), finished[k])}
            other_picture = overwrite or any(not _holds(line, digests) for line in finished.values())
            for k in range(self.n_results):
                if k not in kept:
                    self._forget(Task(i, k), finished.get(k))
                    if i % self.ranks == self.rank:
                        tasks.append(Task(i, k))
            for k in finished.keys() - set(range(self.n_results)) if other_picture else ():
                self._forget(Task(i, k), finished[k])  # more results than are wanted now
            n_kept += len(kept)
        if n_kept:
            log(f'{n_kept} finished {self.noun}s are kept')
        return tasks

    def _is_there(self, task: Task, line: dict[str, Any]) -> bool:
        return all(map(os.path.isfile, self.paths(task, line.get('frames', 1))))

    def _forget(self, task: Task, line: dict[str, Any] | None) -> None:
        """Remove a result that is there, unless it is a picture to be read."""
        if not self.keeps:
            return
        self.scores.lines.pop((self.pictures.id(task.i), task.k), None)
        if self.rank == 0:
            for path in self.paths(task, (line or {}).get('frames', 1)):
                if not self.pictures.reads(path):
                    files.remove(path)

    def _require_same_on_all_ranks(self) -> None:
        """Raises a UserError where the ranks have other pictures, masks, settings or weights than each other."""
        if self.ranks > 1:
            parallel.same_on_all_ranks(self.config.images.option, self.pictures.pictures.digest())
            parallel.same_on_all_ranks(self.config.masks.option, self.pictures.mask_files.digest())
            parallel.same_on_all_ranks(f'options or {self.config.ckpt.option}', [self.manifest.settings,
                                                                                self.n_results])

    def work(self, tasks: Sequence[Task], batch_size: int) -> None:
        """Read, compute and write ``tasks``, up to ``batch_size`` frames at once; failures go to the outcome.

        Results are encoded on other threads while the next ones are computed, and written in the order of the tasks.
        """
        waiting: dict[Task, list[Any]] = {}  # what has been computed of pictures with several frames
        writing: deque[Future[None]] = deque()
        with tqdm(total=len(tasks), desc=f'{self.noun}s', unit=self.noun,
                  disable=None if parallel.is_writer() else True) as bar, \
                ThreadPoolExecutor(_MOST_WAITING) as threads:
            for batch in self._batches(tasks, batch_size, bar):
                while writing and writing[0].done():  # an error ends the run now
                    writing.popleft().result()
                for (task, frames, _), computed in zip(batch, self.compute(batch), strict=True):
                    done = waiting.setdefault(task, [])
                    done.append(computed)
                    if len(done) == len(frames):
                        if len(writing) == _MOST_WAITING:
                            writing.popleft().result()
                        before = writing[-1] if writing else None
                        writing.append(threads.submit(
                            self._write, task, self._with_sources(task, frames, waiting.pop(task)), before, bar))
                del batch, frames, computed, done  # before the next picture is read
            for future in writing:
                future.result()

    def _batches(self, tasks: Sequence[Task], batch_size: int, bar: tqdm) -> Iterator[list[Part]]:
        """Lists of up to ``batch_size`` frames; a picture is read when its turn comes."""
        batch: list[Part] = []
        unreadable: set[int] = set()
        for task in tasks:
            frames = []
            if task.i not in unreadable:
                try:
                    frames = self.read(task)
                except UserError as error:
                    unreadable.add(task.i)
                    self.outcome.fail(self.pictures.id(task.i), error)
            if not frames:
                bar.update()
            for number in range(len(frames)):
                batch.append(Part(task, frames, number))
                if len(batch) == batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _with_sources(self, task: Task, frames: list[Any], computed: list[Any]) -> Result:
        """The task's result with the digests of its sources, and how many frames it has, in its line."""
        result = self.result(task, frames, computed)
        sources = self.sources(task, self.manifest.digests(self.pictures.id(task.i)))
        return result._replace(scores={**sources, **({'frames': len(frames)} if len(frames) > 1 else {}),
                                       **result.scores})

    def _write(self, task: Task, result: Result, before: Future[None] | None, bar: tqdm) -> None:
        """Encode a result, wait until the one ``before`` it is written, then write its line and its files."""
        picture = self.pictures.id(task.i)
        contents = {path: encode() for path, encode in result.encoders.items() if self.keeps}
        if before is not None:
            before.result()
        self.scores.add((picture, task.k), result.scores)
        for path, content in contents.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, content)
            except OSError as error:
                self.outcome.fail(picture, not_written(path, error))
        bar.update()

    def finish(self) -> None:
        """Wait for the other ranks, then write manifest and scores, and report."""
        parallel.wait_for_all(self.config.compute.distributed)
        if self.rank == 0:
            if self.keeps:
                self.scores.finish()
                self.manifest.write()
            self.report()

    def finished(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """The results that are there now, in the pictures' order, with their lines."""
        for i in range(len(self.pictures)):
            picture = self.pictures.id(i)
            for k in range(self.n_results):
                line = self.scores.lines.get((picture, k))
                if line and picture not in self.outcome.failures and \
                        (not self.keeps or self._is_there(Task(i, k), line)):
                    yield Task(i, k), line


def _holds(line: dict[str, Any], sources: dict[str, str]) -> bool:
    return all(line.get(key) == value for key, value in sources.items())
