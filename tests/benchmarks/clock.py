"""Seconds and memory of a process, by parts; as a script, those of a run.py.

``python tests/benchmarks/clock.py FILE OPTIONS`` does what ``python run.py OPTIONS`` does and adds what each stage took
to FILE, a JSON list.
"""
from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[0] = str(ROOT)

from Guided_Upsample import infer as stage_2
from ict import command, files
from ict.device import runtime
from Transformer import infer as stage_1

STAGES = {'stage_1': stage_1, 'stage_2': stage_2}
# Parts of a stage's process: importing MindSpore, reading the weights, a forward pass, a batch of results (its passes
# and, in stage 1, the drawing of tokens), everything.
IMPORT, LOAD, PASS, RESULT, MAIN = 'import', 'load', 'pass', 'result', 'main'

Call = tuple[float, int]  # seconds, pictures in it


@dataclass
class Clock:
    """The calls of each part, in order.

    Attributes:
        n_first: how many calls of each part had been made when the first results were there. These are the ones that
            compile.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    n_first: dict[str, int] = field(default_factory=dict)

    def add(self, part: str, seconds: float, pictures: int = 1) -> None:
        """Note a call."""
        self.calls.setdefault(part, []).append((seconds, pictures))
        if part == RESULT and not self.n_first:
            self.n_first = {name: len(calls) for name, calls in self.calls.items()}

    @contextmanager
    def part(self, name: str, pictures: int = 1) -> Iterator[None]:
        """Notes the seconds of a block."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start, pictures)

    def timed(self, function: Callable, part: str, pictures: Callable[..., int] = lambda *args: 1) -> Callable:
        """The function, whose calls are noted; ``pictures`` tells from its arguments how many a call works on."""
        def wrapped(*args: Any) -> Any:
            with self.part(part, pictures(*args)):
                return function(*args)
        return wrapped


def memory_mb() -> tuple[float, float]:
    """(now, at most) of this process. Linux's ru_maxrss would begin with what the parent process had."""
    try:
        text = Path('/proc/self/status').read_text()
    except OSError:
        unit = 1 if sys.platform == 'darwin' else 1024
        return math.nan, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    values = {key: float(value.split()[0]) * 1024 / 1e6 for line in text.splitlines()
              for key, _, value in [line.partition(':')] if key in ('VmRSS', 'VmHWM')}
    return values['VmRSS'], values['VmHWM']


# ---- run.py under the clock

def watch(name: str, clock: Clock) -> Callable[[], None]:
    """Time the parts of a stage of this process; returns what ends that."""
    stage = STAGES[name]
    places = [(runtime, 'start'),
              *([(stage_1.Model, 'predictor'), (stage_1.PriorStage, 'compute')] if stage is stage_1 else
                [(stage_2.Model, 'load'), (stage_2.PaintingStage, 'compute')])]
    before = [getattr(owner, attribute) for owner, attribute in places]
    start, load, compute = before

    def watched_load(*args: Any) -> Any:
        network = clock.timed(load, LOAD)(*args)
        if stage is stage_1:
            return SimpleNamespace(logits_at=clock.timed(network.logits_at, PASS, lambda tokens, *_: len(tokens)))
        return SimpleNamespace(everywhere=clock.timed(network.everywhere, PASS, lambda images, *_: len(images)))

    watched = (clock.timed(start, IMPORT), watched_load, clock.timed(compute, RESULT, lambda _, parts: len(parts)))
    for (owner, attribute), function in zip(places, watched, strict=True):
        setattr(owner, attribute, function)

    def end() -> None:
        for (owner, attribute), function in zip(places, before, strict=True):
            setattr(owner, attribute, function)

    return end


def main(argv: list[str]) -> int:
    import run
    path, own = Path(argv[0]), argv[1:]
    records = files.read_json(path) if path.is_file() else []

    def execute(name: str, inner: Callable, *args: Any) -> int:
        clock = Clock()
        end = watch(name, clock)
        with clock.part(MAIN):
            status = inner(*args)
        end()
        if RESULT in clock.calls:  # else nothing was left to do
            import mindspore as ms
            records.append({'stage': name, 'device': ms.get_context('device_target'), 'calls': clock.calls,
                            'n_first': clock.n_first, 'peak_mb': memory_mb()[1]})
        return status

    for name, stage in (('stage_1', stage_1.PriorStage), ('stage_2', stage_2.PaintingStage)):
        stage.execute = lambda *args, name=name, inner=stage.execute: execute(name, inner, *args)
    status = run.main(own)
    files.write_json(path, records)
    return status


def timed_run(path: Path, *options: object) -> int:
    """run.py with these options in a process of its own; its exit status. What it took is added to ``path``."""
    return command.call(Path(__file__).resolve(), [str(path), *map(str, options)])


def of_stage(path: Path, name: str) -> list[dict[str, Any]]:
    """The records in such a file of one of STAGES, one for each process that made something."""
    return [record for record in (files.read_json(path) if path.is_file() else []) if record['stage'] == name]


def seconds_of(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the records of a stage tell.

    Returns:
        passes: forward passes a result. pass, result: seconds of one, without the first results of each process, which
        compile. start: import, loading and compilation of a process. peak_mb: of the largest process; in stage 2 it
        still has what stage 1 left. What can't be known is nan.
    """
    if not records:
        return dict.fromkeys(('passes', 'pass', 'result', 'start', 'peak_mb'), math.nan)

    def total(part: str, of_first: bool | None = None) -> tuple[float, int]:
        """(seconds, pictures) of a part's calls, of the first results' alone or of all others."""
        calls = []
        for record in records:
            first = record['n_first'].get(part, 0)
            own = record['calls'].get(part, [])
            calls += own if of_first is None else own[:first] if of_first else own[first:]
        return sum(seconds for seconds, _ in calls), sum(pictures for _, pictures in calls)

    def mean(part: str) -> float:
        seconds, pictures = total(part, of_first=False)
        return seconds / pictures if pictures else math.nan

    first_seconds, first_pictures = total(RESULT, of_first=True)
    compiling = first_seconds - first_pictures * mean(RESULT)
    return {'passes': total(PASS)[1] / total(RESULT)[1], 'pass': mean(PASS), 'result': mean(RESULT),
            'start': (total(IMPORT)[0] + total(LOAD)[0] + compiling) / len(records),
            'peak_mb': max(record['peak_mb'] for record in records)}


if __name__ == '__main__':
    sys.exit(command.supervised(lambda: command.run(main)))
