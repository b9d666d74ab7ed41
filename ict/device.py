"""Where MindSpore runs."""
from __future__ import annotations

import os


def rank() -> tuple[int, int]:
    """(this process's rank, number of ranks) as msrun gave them; (0, 1) without it."""
    return int(os.environ.get('RANK_ID', '0')), int(os.environ.get('MS_WORKER_NUM', '1'))


def is_writer() -> bool:
    """Whether this process writes files and lines: rank 0."""
    return rank()[0] == 0


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` holds on any rank."""
    return flag


def start(target: str | None, device_id: int, distributed: bool = False) -> None:
    os.environ.setdefault('GLOG_v', '3')
    import mindspore as ms
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device('CPU')


def wait_for_all(distributed: bool) -> None:
    """Return when every rank has come here."""


def worst_status(status: int, distributed: bool) -> int:
    """The highest exit status of all ranks."""
    return status
