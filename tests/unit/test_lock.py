"""One run at a time in an output folder, whatever way the one before it has ended."""
from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ict import lock
from ict.errors import UserError
from tests.conftest import ROOT

HOLD = '''
import os, sys, time
from pathlib import Path
from ict.lock import locked
with locked(Path(sys.argv[1]), '--save_path'):
    if os.fork() == 0:  # as workers are
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print('held', os.getpid(), flush=True)
    sys.stdin.read()
'''
TAKE_TURNS = '''
import os, sys
from pathlib import Path
from ict.errors import UserError
from ict.lock import locked
folder, done = Path(sys.argv[1]), 0
while done < 30:
    try:
        with locked(folder, '--save_path'):
            os.close(os.open(folder / 'alone', os.O_CREAT | os.O_EXCL))
            (folder / 'alone').unlink()
            done += 1
    except UserError:
        pass
'''


@contextmanager
def holder(folder: Path, worker_seconds: float = 0.0) -> Iterator[subprocess.Popen]:
    """A process that holds a folder until it is killed or its standard input is closed."""
    with subprocess.Popen([sys.executable, '-c', HOLD, str(folder), str(worker_seconds)], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == f'held {process.pid}\n'
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_folder_until_it_ends(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=rf'^--save_path {tmp_path}: is in use by another run \(process '
                                            rf'{process.pid} on .+\); wait for it or name another folder$'), \
                lock.locked(tmp_path, '--save_path'):
            pytest.fail('both hold it')
        process.stdin.close()
        process.wait(20)
    with lock.locked(tmp_path, '--save_path'):
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_lock_even_while_its_workers_live(tmp_path):
    with holder(tmp_path, worker_seconds=3.0) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / lock.NAME).is_file()
        with lock.locked(tmp_path, '--save_path'):
            pass
    assert not list(tmp_path.iterdir())


def test_no_two_hold_a_folder_while_locks_come_and_go(tmp_path):
    """A lock file is removed while others have opened it."""
    processes = [subprocess.Popen([sys.executable, '-c', TAKE_TURNS, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    end = time.monotonic() + 60
    try:
        assert [process.wait(end - time.monotonic()) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch, number):
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(lock.fcntl, 'lockf', refuses)
    with lock.locked(tmp_path, '--save_path'), lock.locked(tmp_path, '--save_path'):
        assert not list(tmp_path.iterdir())


def test_of_several_ranks_the_first_holds_the_folder_for_all(tmp_path, monkeypatch):
    with holder(tmp_path):
        monkeypatch.setenv('RANK_ID', '1')
        with lock.locked(tmp_path, '--save_path'):
            pass
