"""Several ranks under msrun: who writes, what they agree on, and what happens when one of them is lost.

``ict.device.runtime.start`` joins them; without it, or without msrun, a process is the only rank.
"""
from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from ict.errors import UserError, require
from ict.options import how_to_go_on
from ict.process import end_with_parent, shell_status

# Without a sign of life for this long a rank is lost: MindSpore's scheduler then ends, which ends the others.
LOST_AFTER = 30.0
_LOOK_EVERY = 5.0  # seconds
_GONE_AFTER = 1.0  # seconds without a connection and a living rank of this machine after which all ranks have left
_WAIT = 7 * 24 * 3600  # seconds that a rank waits for another that lives: it may be writing, or have more pictures
_LOST = 'another rank has ended, or its machine is out of reach; finished files are whole, and on all machines '
_LOST_STATUS = 2
_SAYS_LOST = ('cluster', 'meta server', 'AllReduce')  # of MindSpore's errors when a collective broke
_left = threading.Event()


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


def mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Each metric's mean over the ranks."""
    ranks = rank()[1]
    if ranks == 1:
        return metrics
    return dict(zip(metrics, (total / ranks for total in _sum_over_ranks(list(metrics.values()))), strict=True))


def same_on_all_ranks(name: str, value: Any) -> None:
    """A UserError on every rank where one has another value than rank 0; all of them must call this.

    Args:
        name: of the option that gave it.
        value: JSON values, of large ones a digest.
    """
    own, ranks = rank()
    digest = np.frombuffer(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint16)
    slots = np.zeros((ranks, digest.size))  # sixteen bits a number: float32 sums them up without rounding
    slots[own] = digest
    slots = np.reshape(_sum_over_ranks(slots.ravel().tolist()), slots.shape)
    others = np.flatnonzero((slots != slots[0]).any(1))
    require(not others.size, f'{name}: not the same on all ranks (another one than on rank 0 on rank '
                             f'{", ".join(map(str, others))}); give all machines the same files and options')


def wait_for_all(distributed: bool) -> None:
    """Return when every rank has come here; at once in a process that hasn't joined the others."""
    if distributed:
        _sum_over_ranks([0.0])


def is_scheduler() -> bool:
    """Whether msrun runs this process only to bring the ranks together."""
    return os.environ.get('MS_ROLE') == 'MS_SCHED'


def check_launch(distributed: bool) -> None:
    """A UserError where msrun and ``--distributed`` do not come together, or msrun's port is another program's."""
    started = 'MS_ROLE' in os.environ
    require(started or not distributed, f'--distributed: start it with msrun --worker_num=2 --local_worker_num=2 '
                                        f'--join=True {shlex.join(sys.argv)}')
    require(distributed or not started, 'started by msrun without --distributed: every process would do all of the '
                                        'work; add --distributed (run.py has none: start the two infer.py)')
    require('RANK_ID' in os.environ or not distributed, '--distributed: msrun needs --node_rank on several machines')
    if 'MS_SCHED_PORT' in os.environ:
        _check_port(*_scheduler())


def _scheduler() -> tuple[str, int]:
    return os.environ['MS_SCHED_HOST'], int(os.environ['MS_SCHED_PORT'])


def _check_port(host: str, port: int) -> None:
    """A UserError where the scheduler can't listen: MindSpore would wait for it for ten minutes."""
    try:
        with socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:  # the master is another machine
        return
    import psutil
    for one in psutil.net_connections('tcp'):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.laddr.ip in (host, '0.0.0.0', '::'):
            with suppress(psutil.NoSuchProcess):
                ours = one.pid is not None and psutil.Process(os.getppid()) in psutil.Process(one.pid).parents()
                require(ours, f'--master_port {port}: another program listens there; give msrun another one, the same '
                              f'on all machines')


def serve() -> NoReturn:
    """Be msrun's scheduler until the ranks are done, then leave; a UserError where they did not come together.

    MindSpore's scheduler is a child of this process, which ends it.
    """
    scheduler = os.fork()
    if scheduler:
        sys.exit(_status_of(scheduler))
    end_with_parent()
    os.environ.setdefault('GLOG_v', '3')
    import mindspore as ms
    from mindspore import communication
    ms.set_device('CPU')
    try:
        communication.init()
    except RuntimeError as error:
        raise UserError(f'the scheduler of msrun ends: {str(error).splitlines()[0]}') from None
    sys.exit(0)


def _status_of(scheduler: int) -> int:
    """Exit status of MindSpore's scheduler, a child of this process; kills it once no rank is left.

    By itself it would wait for hours for ranks that ended before they joined, and msrun for it; and it would take
    ranks that leave without a goodbye for lost. That a rank is lost it finds out by itself, and ends.
    """
    import psutil
    launcher = psutil.Process(os.getppid())
    rank_seen = connection_seen = None  # when a rank of this machine was alive last, and any rank connected
    while True:
        ended, status = os.waitpid(scheduler, os.WNOHANG)
        if ended:
            return shell_status(os.waitstatus_to_exitcode(status))
        now = time.monotonic()
        if any(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == _scheduler()[1]
               for one in psutil.net_connections('tcp')):
            connection_seen = now
        with suppress(psutil.NoSuchProcess):  # msrun has ended
            if any(child.pid != os.getpid() and _is_alive(child) for child in launcher.children()):
                rank_seen = now
        # a rank that is ending may have closed its connections, and waits for the scheduler's answer
        are_done = connection_seen is not None and now - max(connection_seen, rank_seen or 0.0) > _GONE_AFTER
        patience = 2 * LOST_AFTER if connection_seen is not None else _GONE_AFTER  # for joined ranks at most; see above
        if are_done or (rank_seen is not None and now - rank_seen > patience):
            os.kill(scheduler, signal.SIGKILL)
            os.waitpid(scheduler, 0)
            return 0 if are_done else _LOST_STATUS
        time.sleep(0.5)


def _is_alive(process: Any) -> bool:
    import psutil
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def join() -> None:
    """Join the other ranks; from then on this process ends with a line when one of them is lost.

    MindSpore's collectives on CPUs give up after 30 seconds, in which another rank may just be writing a checkpoint,
    and those on GPUs never do. So here a rank waits for a week, but looks whether the scheduler is still there, which
    ends when a rank shows no sign of life for ``LOST_AFTER`` seconds.
    """
    from mindspore import communication
    os.environ['MS_NODE_TIMEOUT'] = str(_WAIT)
    try:
        communication.init()  # nccl on GPUs, mccl on CPUs
    except RuntimeError:
        host, port = _scheduler()
        raise UserError(f'--distributed: the {rank()[1]} ranks did not come together at {host}:{port} within '
                        f'{os.environ.get("MS_TOPO_TIMEOUT", "600")} seconds; start all of them in that time (msrun '
                        f'--cluster_time_out), with one --master_addr and --master_port') from None
    signal.signal(signal.SIGTERM, _on_sigterm)
    threading.Thread(target=_watch, daemon=True).start()


def has_joined() -> bool:
    """Whether this process is one of several ranks that have joined."""
    communication = sys.modules.get('mindspore.communication')
    return communication is not None and communication.GlobalComm.INITED and not is_scheduler()


def leave_if_joined(status: int) -> None:
    """End a rank without MindSpore's goodbye.

    A rank that failed alone would wait in it for the others, and once in some thirty runs it ends by signal 11: a
    connection that the scheduler closes is read after it was freed.
    """
    if has_joined():
        _left.set()
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.5)  # others may still read what this rank sent last
        os._exit(status)


def lost(error: BaseException) -> str:
    """The line for the user where MindSpore's error means that another rank is lost; else ''."""
    broken = has_joined() and isinstance(error, RuntimeError) and any(word in str(error) for word in _SAYS_LOST)
    return _LOST + how_to_go_on() if broken else ''


def _watch() -> None:
    """End this process when the scheduler has ended or can't be reached; works while a collective hangs."""
    reached = time.monotonic()
    while not _left.wait(_LOOK_EVERY):
        try:
            socket.create_connection(_scheduler(), _LOOK_EVERY).close()
            reached = time.monotonic()
        except OSError as error:
            if isinstance(error, ConnectionRefusedError) or time.monotonic() - reached > LOST_AFTER:
                _end(_LOST + how_to_go_on(), _LOST_STATUS)


def _on_sigterm(number: int, _: object) -> None:
    """MindSpore sends it to its own process when it has found out that a rank is lost; so may others."""
    _end(f'ended by SIGTERM: by hand, or {_LOST}{how_to_go_on()}', 128 + number)


def _end(line: str, status: int) -> None:
    if not _left.is_set():
        tqdm.write(f'error: {line}', file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)


def _sum_over_ranks(values: list[float]) -> list[float]:
    """Sums of the ranks' values; ``values`` themselves where ``join`` has joined no others."""
    if not has_joined():
        return values
    import mindspore as ms
    total = ms.ops.AllReduce(ms.ops.ReduceOp.SUM)(ms.Tensor(values, ms.float32))  # all that the CPU's backend has
    return total.asnumpy().tolist()
