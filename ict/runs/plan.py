"""One inference run of a stage: which results are still to be made, making them, what failed, the end."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from ict import files
from ict.device import parallel
from ict.errors import UserError, not_written
from ict.log import log
from ict.runs.config import Given, SourceConfig
from ict.runs.inputs import Inputs, Outcome
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
    """What a stage makes of one task: its line in scores.jsonl, and the content of each file."""

    scores: dict[str, Any]
    contents: dict[Path, bytes]


class Stage(Protocol):
    """What a stage does with one picture; a picture has one frame, or several where its holes lie far apart."""

    def sources(self, task: Task, digests: dict[str, str]) -> dict[str, str]:
        """``digests`` of picture and mask, and of all else that the result is made of; a UserError when that does
        not fit together."""

    def paths(self, task: Task, n_frames: int) -> list[Path]:
        """The files of a result."""

    def read(self, task: Task) -> list[Any]:
        """The picture's frames as arrays; raises a UserError when one of its files is unusable."""

    def compute(self, parts: Sequence[Part]) -> list[Any]:
        """What the network makes of each of some frames."""

    def result(self, task: Task, frames: Sequence[Any], computed: Sequence[Any]) -> Result:
        """Files and scores of a task whose frames have all been computed."""


@dataclass
class Run:
    """The results of one stage in its output folder.

    Attributes:
        n_results: of each picture.
        keeps: whether results are written; without, everything is computed and only scored.
        rank, ranks: of this process; the ranks share the pictures.
    """

    inputs: Inputs
    stage: Stage
    manifest: Manifest
    scores: Scores
    n_results: int
    keeps: bool = True
    rank: int = 0
    ranks: int = 1
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.inputs.ids())

    def plan(self, overwrite: bool, noun: str) -> list[Task]:
        """This rank's tasks. Finished results of the same sources are kept, others removed by rank 0.

        Args:
            noun: what the results are called in the line that tells how many are kept.
        """
        tasks: list[Task] = []
        n_kept = 0
        for i in range(len(self.inputs)):
            picture = self.inputs.id(i)
            self.manifest.pictures[picture] = self.inputs.sources(i)
            digests = self.manifest.digests(picture)
            try:
                sources = [self.stage.sources(Task(i, k), digests) for k in range(self.n_results)]
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
            log(f'{n_kept} finished {noun} are kept')
        return tasks

    def _is_there(self, task: Task, line: dict[str, Any]) -> bool:
        return all(map(os.path.isfile, self.stage.paths(task, line.get('frames', 1))))

    def _forget(self, task: Task, line: dict[str, Any] | None) -> None:
        """Remove a result that is there, unless it is a picture to be read."""
        if not self.keeps:
            return
        self.scores.lines.pop((self.inputs.id(task.i), task.k), None)
        if self.rank == 0:
            for path in self.stage.paths(task, (line or {}).get('frames', 1)):
                if not self.inputs.reads(path):
                    files.remove(path)

    def work(self, tasks: Sequence[Task], batch_size: int, bar: tqdm) -> None:
        """Read, compute and write ``tasks``, up to ``batch_size`` frames at once; failures go to the outcome."""
        waiting: dict[Task, tuple[list[Any], list[Any]]] = {}  # frames, and what has been computed of them
        for batch in self._batches(tasks, batch_size, bar):
            for (task, frames, _), computed in zip(batch, self.stage.compute(batch), strict=True):
                done = waiting.setdefault(task, (frames, []))[1]
                done.append(computed)
                if len(done) == len(frames):
                    self._write(task, *waiting.pop(task))
                    bar.update()

    def _write(self, task: Task, frames: list[Any], computed: list[Any]) -> None:
        picture = self.inputs.id(task.i)
        result = self.stage.result(task, frames, computed)
        line = {**self.stage.sources(task, self.manifest.digests(picture)),
                **({'frames': len(frames)} if len(frames) > 1 else {}), **result.scores}
        self.scores.add((picture, task.k), line)
        for path, content in result.contents.items() if self.keeps else ():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, content)
            except OSError as error:
                self.outcome.fail(picture, not_written(path, error))

    def _batches(self, tasks: Sequence[Task], batch_size: int, bar: tqdm) -> Iterator[list[Part]]:
        """Lists of up to ``batch_size`` frames; pictures are read when they are due."""
        batch: list[Part] = []
        for task in tasks:
            picture = self.inputs.id(task.i)
            if picture in self.outcome.failures:
                bar.update()
                continue
            try:
                frames = self.stage.read(task)
            except UserError as error:
                self.outcome.fail(picture, error)
                bar.update()
                continue
            for number in range(len(frames)):
                batch.append(Part(task, frames, number))
                if len(batch) == batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def require_same_on_all_ranks(self, source: SourceConfig, ckpt: Given) -> None:
        """Raises a UserError where the ranks have other pictures, masks, settings or weights than each other."""
        if self.ranks > 1:
            parallel.same_on_all_ranks(source.images.option, self.inputs.pictures.digest())
            parallel.same_on_all_ranks(source.masks.option, self.inputs.mask_files.digest())
            parallel.same_on_all_ranks(f'options or {ckpt.option}', [self.manifest.settings, self.n_results])

    def finish(self, distributed: bool) -> None:
        """Wait for the other ranks, then write manifest and scores."""
        parallel.wait_for_all(distributed)
        if self.rank == 0 and self.keeps:
            self.scores.finish()
            self.manifest.write()

    def finished(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """The results that are there now, in the pictures' order, with their lines."""
        for i in range(len(self.inputs)):
            picture = self.inputs.id(i)
            for k in range(self.n_results):
                line = self.scores.lines.get((picture, k))
                if line and picture not in self.outcome.failures and \
                        (not self.keeps or self._is_there(Task(i, k), line)):
                    yield Task(i, k), line

    def bar(self, tasks: Sequence[Task], noun: str) -> tqdm:
        """A progress bar over results, on the rank that writes."""
        return tqdm(total=len(tasks), desc=f'{noun}s', unit=noun, disable=None if parallel.is_writer() else True)


def _holds(line: dict[str, Any], sources: dict[str, str]) -> bool:
    return all(line.get(key) == value for key, value in sources.items())


def sweep(folder: Path, below: Callable[[], Iterator[Path]]) -> None:
    """Remove what an interrupted run left unfinished in the output folder and in the folders ``below`` it."""
    for place in {folder, *below()}:
        files.sweep(place, below=False)
