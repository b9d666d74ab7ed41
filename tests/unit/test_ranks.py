"""What msrun's ranks check before they join."""
from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from ict.device import parallel
from ict.errors import UserError
from tests.conftest import ROOT, free_port

CHECK = 'from ict.device import parallel; parallel.check_launch(True)'


def started_by_msrun(port: int, host: str = '127.0.0.1') -> dict[str, str]:
    return {'MS_ROLE': 'MS_WORKER', 'RANK_ID': '0', 'MS_SCHED_HOST': host, 'MS_SCHED_PORT': str(port)}


def test_a_port_that_another_program_listens_at_is_an_error(monkeypatch):
    listen = 'import socket; at = socket.create_server(("", 0)); print(at.getsockname()[1], flush=True); input()'
    with subprocess.Popen([sys.executable, '-c', listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        port = int(other.stdout.readline())
        monkeypatch.setattr(os, 'getppid', lambda: other.pid)  # msrun, of whose descendants it is none
        for name, value in started_by_msrun(port).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f'--master_port {port}: another program listens there'):
            parallel.check_launch(True)
        monkeypatch.setenv('MS_SCHED_HOST', '192.0.2.1')  # another machine's
        parallel.check_launch(True)
        other.communicate(b'\n')
    monkeypatch.setenv('MS_SCHED_HOST', '127.0.0.1')
    parallel.check_launch(True)


def test_msruns_own_scheduler_may_listen_already():
    port = free_port()
    listen = f'import socket; server = socket.create_server(("127.0.0.1", {port})); print("listening", flush=True); ' \
             'input()'
    launcher = f'''
import subprocess, sys
scheduler = subprocess.Popen([sys.executable, '-c', {listen!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
scheduler.stdout.readline()
rank = subprocess.run([sys.executable, '-c', {CHECK!r}])
scheduler.communicate(b'\\n')
sys.exit(rank.returncode)
'''
    ran = subprocess.run([sys.executable, '-c', launcher], cwd=ROOT, env={**os.environ, **started_by_msrun(port)},
                         capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(('values', 'others'), [('abac', r'rank 1, 3\)'), ('aaaa', None)])
def test_ranks_that_have_different_things_are_told_which(values, others, monkeypatch):
    sent = []
    monkeypatch.setenv('MS_WORKER_NUM', '4')
    monkeypatch.setattr(parallel, '_sum_over_ranks', lambda own: sent.append(own) or own)
    for number, value in enumerate(values):
        monkeypatch.setenv('RANK_ID', str(number))
        with pytest.raises(UserError):  # so far each has only zeros of the others
            parallel.same_on_all_ranks('--data_path', value)
    monkeypatch.setattr(parallel, '_sum_over_ranks', lambda _: [sum(parts) for parts in zip(*sent, strict=True)])
    told = pytest.raises(UserError, match=f'^--data_path: not the same .* {others}') if others else nullcontext()
    with told:
        parallel.same_on_all_ranks('--data_path', values[-1])


FAILS = """
import os, sys
sys.path.insert(0, os.environ['ROOT'])
from ict.command import run
from ict.device import runtime
from ict.errors import UserError

def main(argv):
    runtime.choose('CPU', 0, True)  # the scheduler stays here
    raise UserError('the folder is locked')

sys.exit(run(main))
"""


def test_ranks_that_fail_before_they_join_do_not_leave_msrun_waiting_for_its_scheduler(tmp_path):
    (tmp_path / 'fails.py').write_text(FAILS)
    launcher = Path(sys.executable).with_name('msrun')
    ran = subprocess.run([str(launcher), '--worker_num=2', '--local_worker_num=2', f'--master_port={free_port()}',
                          '--join=True', '--log_dir=log', 'fails.py'], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, 'ROOT': str(ROOT), 'PATH': f'{launcher.parent}:{os.environ["PATH"]}'},
                         timeout=60)  # MindSpore's own patience is ten minutes
    assert ran.returncode == 1 and 'error: the folder is locked' in (tmp_path / 'log' / 'worker_0.log').read_text()


LAUNCHER = """
import os, socket, subprocess, sys, time
from ict.device import parallel

server = socket.create_server(('127.0.0.1', 0))
os.environ['MS_SCHED_PORT'] = str(server.getsockname()[1])
watcher = os.fork()
if watcher == 0:
    scheduler = os.fork()
    if scheduler == 0:  # keeps the socket open at which MindSpore's scheduler would listen
        time.sleep(60)
        os._exit(0)
    server.close()
    os._exit(parallel._status_of(scheduler))
server.close()
rank = 'import os, socket, time; at = "127.0.0.1", int(os.environ["MS_SCHED_PORT"])\\n' \\
       'with socket.create_connection(at): time.sleep(1.5)\\n' \\
       'time.sleep(3); socket.create_connection(at).close()'
ended = subprocess.run([sys.executable, '-c', rank]).returncode
sys.exit(ended or os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]))
"""


def test_the_scheduler_stays_until_a_rank_that_has_closed_its_connections_has_ended():
    ran = subprocess.run([sys.executable, '-c', LAUNCHER], cwd=ROOT, env={**os.environ, **started_by_msrun(0)},
                         capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
