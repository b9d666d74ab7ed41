"""Two hosts on one machine: network namespaces with addresses of their own, joined by a switch, and one disk."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT

SECONDS = 600  # that anything here may take


def ip(*argv: str) -> str:
    """What ``ip`` from iproute2 prints."""
    return subprocess.run(['ip', *argv], check=True, capture_output=True, text=True).stdout


@dataclass
class Hosts:
    """Hosts 0 and 1, each with one rank; host 0 is msrun's master."""

    name: str
    started: list[subprocess.Popen] = field(default_factory=list)

    def connect(self) -> None:
        """Make the namespaces, and wires from both to the switch."""
        ip('netns', 'add', self._switch)
        ip('-n', self._switch, 'link', 'add', 'name', 'switch', 'type', 'bridge')
        ip('-n', self._switch, 'link', 'set', 'switch', 'up')
        for host in (0, 1):
            ip('netns', 'add', self._namespace(host))
            ip('-n', self._namespace(host), 'link', 'add', 'name', 'wire', 'type', 'veth',
               'peer', 'name', f'port{host}', 'netns', self._switch)
            ip('-n', self._namespace(host), 'addr', 'add', f'{self.address(host)}/24', 'dev', 'wire')
            for link in ('lo', 'wire'):
                ip('-n', self._namespace(host), 'link', 'set', link, 'up')
            ip('-n', self._switch, 'link', 'set', f'port{host}', 'up')
            self.reconnect(host)

    @property
    def _switch(self) -> str:
        return f'{self.name}-switch'

    def _namespace(self, host: int) -> str:
        return f'{self.name}-{host}'

    @staticmethod
    def address(host: int) -> str:
        return f'10.77.0.{host + 1}'

    def cut_off(self, host: int) -> None:
        """From now on what the host sends is lost without a word, as is what is sent to it."""
        ip('-n', self._switch, 'link', 'set', f'port{host}', 'nomaster')

    def reconnect(self, host: int) -> None:
        ip('-n', self._switch, 'link', 'set', f'port{host}', 'master', 'switch')

    def processes(self, host: int) -> list[int]:
        return [int(pid) for pid in ip('netns', 'pids', self._namespace(host)).split()]

    def kill(self, host: int) -> None:
        """End everything on a host at once."""
        for pid in self.processes(host):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, host: int, argv: list[str], output: Path) -> subprocess.Popen:
        """Start a command on a host; what it prints goes to a file."""
        output.parent.mkdir(parents=True, exist_ok=True)
        path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'  # msrun starts 'python'
        with open(output, 'wb') as stream:
            one = subprocess.Popen(['ip', 'netns', 'exec', self._namespace(host), *argv], cwd=output.parent,
                                   stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, 'PATH': path})
        self.started.append(one)
        return one

    def msrun(self, host: int, script: str, argv: list[str], logs: Path, *options: str) -> subprocess.Popen:
        """Start a script's rank on a host; what msrun prints, which is what the rank prints, goes to logs/host<i>."""
        return self.run(host, [
            str(Path(sys.executable).with_name('msrun')), '--worker_num=2', '--local_worker_num=1',
            f'--master_addr={self.address(0)}', '--master_port=8118', f'--node_rank={host}', '--join=True',
            f'--log_dir={logs / f"logs{host}"}', *options, str(ROOT / script), *argv, '--distributed'],
            logs / f'host{host}')

    def both(self, script: str, argv: list[str], logs: Path, late: float = 0.0) -> None:
        """Run a script to its end on both hosts, started ``late`` seconds later on host 1."""
        first = self.msrun(0, script, argv, logs)
        time.sleep(late)
        second = self.msrun(1, script, argv, logs)
        assert [one.wait(SECONDS) for one in (first, second)] == [0, 0], said(logs)

    def close(self) -> None:
        """End what runs, and remove the namespaces."""
        for host in (0, 1) if self.started else ():
            self.kill(host)
        for one in self.started:
            one.wait()
        for name in (self._namespace(0), self._namespace(1), self._switch):
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True)


def rank_said(logs: Path, host: int) -> str:
    """What the rank of a host printed."""
    return (logs / f'logs{host}' / f'worker_{host}.log').read_text(errors='replace')


def said(logs: Path) -> str:
    """The ends of what both hosts printed."""
    return '\n'.join(f'--- {path}\n{path.read_text(errors="replace")[-3000:]}'
                     for path in sorted([*logs.glob('host?'), *logs.glob('logs?/*.log')]))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if sys.platform != 'linux' or shutil.which('ip') is None:
        pytest.skip("needs Linux and Debian's iproute2")
    two = Hosts(f'ict{os.getpid()}')
    try:
        try:
            two.connect()
        except subprocess.CalledProcessError as error:
            pytest.skip(f'no network namespaces here: {error.stderr.strip()}')
        yield two
    finally:
        two.close()
