"""Several ranks under msrun: who writes, what they agree on.

MindSpore joins them in ``ict.device.start``; without it, or without msrun, a process is the only rank.
"""
from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path

from ict.errors import require


def rank() -> tuple[int, int]:
    """(this process's rank, number of ranks) as msrun gave them; (0, 1) without it."""
    return int(os.environ.get('RANK_ID', '0')), int(os.environ.get('MS_WORKER_NUM', '1'))


def is_writer() -> bool:
    """Whether this process writes files and lines: rank 0."""
    return rank()[0] == 0 and not is_scheduler()


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` holds on any rank."""
    return on_any_rank([flag])[0]


def on_any_rank(flags: list[bool]) -> list[bool]:
    """Which of the flags hold on any rank."""
    return [total > 0 for total in _sum_over_ranks([float(flag) for flag in flags])]


def sum_over_ranks(count: int) -> int:
    """The ranks' counts together."""
    return round(_sum_over_ranks([float(count)])[0])


def mean_over_ranks(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's mean over the ranks."""
    ranks = rank()[1]
    if ranks == 1:
        return figures
    return dict(zip(figures, (total / ranks for total in _sum_over_ranks(list(figures.values()))), strict=True))


def wait_for_all(distributed: bool) -> None:
    """Return when every rank has come here; at once in a process that hasn't joined the others."""
    if distributed:
        _sum_over_ranks([0.0])


def is_scheduler() -> bool:
    """Whether msrun runs this process only to bring the ranks together."""
    return os.environ.get('MS_ROLE') == 'MS_SCHED'


def check_launch(distributed: bool) -> None:
    """A UserError where msrun and ``--distributed`` do not come together."""
    started = 'MS_ROLE' in os.environ
    require(started or not distributed, f'--distributed: start it with msrun --worker_num=2 --local_worker_num=2 '
                                        f'--join=True {shlex.join(sys.argv)}')
    require(distributed or not started, 'started by msrun without --distributed: every process would do all of the '
                                        'work; add --distributed')
    require('RANK_ID' in os.environ or not distributed, '--distributed: msrun needs --node_rank on several machines')


def serve() -> None:
    """Be msrun's scheduler until the ranks are done, then leave."""
    os.environ.setdefault('GLOG_v', '3')
    _end_without_ranks()
    import mindspore as ms
    from mindspore import communication
    ms.set_device('CPU')
    communication.init()
    sys.exit(0)


def _end_without_ranks() -> None:
    """Have a process end this one, the scheduler, when msrun has no other left.

    It would wait for hours for ranks that ended before they joined, and msrun would wait for it.
    """
    scheduler, launcher = os.getpid(), os.getppid()
    children = Path(f'/proc/{launcher}/task/{launcher}/children')
    if not children.is_file() or os.fork():
        return
    have_been = False
    while os.getppid() == scheduler:
        others = [child for child in children.read_text().split() if child != str(scheduler) and _is_alive(child)]
        if have_been and not others:
            os.kill(scheduler, signal.SIGKILL)
        have_been = have_been or bool(others)
        time.sleep(0.5)
    os._exit(0)


def _is_alive(process: str) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def _sum_over_ranks(values: list[float]) -> list[float]:
    """Sums of the ranks' values; ``values`` themselves where ``ict.device.start`` has joined no others."""
    communication = sys.modules.get('mindspore.communication')
    if communication is None or not communication.GlobalComm.INITED:
        return values
    import mindspore as ms
    total = ms.ops.AllReduce(ms.ops.ReduceOp.SUM)(ms.Tensor(values, ms.float32))  # all that the CPU's backend has
    return total.asnumpy().tolist()
