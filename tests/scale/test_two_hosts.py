"""Two hosts, each with one rank, train and infer as one process does, and survive what happens to hosts."""
from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ict import checkpoint
from ict.device import parallel
from tests.conftest import DEVICE, ROOT, command, files_of
from tests.scale.hosts import SECONDS, Hosts, hosts, rank_said, said  # noqa: F401
from tests.scale.tiny_runs import checkpoints, data, inference, resumed_from, training  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.skipif(DEVICE != 'CPU', reason='needs a card for each rank')]
TOLERANCE = 2e-5  # sums of gradients in another order, grown by Adam's first steps
ENDS_AFTER = 2 * parallel.LOST_AFTER  # seconds, at most, for all processes of both hosts
LOST = 'error: another rank has ended, or its machine is out of reach'


def until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize('stage', [1, 2])
def test_two_hosts_train_as_one_process_with_the_double_batch(stage, hosts, data, tiny, tmp_path):  # noqa: F811
    script, alone = training(stage, data, tmp_path / 'alone', tiny['kmeans'], 4, '--batch_size', 4)
    assert command(script, *alone).returncode == 0
    script, both = training(stage, data, tmp_path / 'both', tiny['kmeans'], 4, '--batch_size', 2)
    hosts.both(script, both, tmp_path / 'said')
    names = sorted(path.name for path in (tmp_path / 'alone').glob('*_latest.ckpt'))
    assert len(names) == stage
    for name in names:
        one, two = (checkpoint.read(tmp_path / folder / name) for folder in ('alone', 'both'))
        for tensor in one.entries:
            np.testing.assert_allclose(one.array(tensor), two.array(tensor), atol=TOLERANCE, err_msg=tensor)


def test_two_hosts_share_the_pictures_out_and_make_the_same_files(hosts, data, tiny, tmp_path):  # noqa: F811
    for script, argv in inference(data, tmp_path / 'one', tiny):
        assert command(script, *argv).returncode == 0
    for script, argv in inference(data, tmp_path / 'two', tiny):
        hosts.both(script, argv, tmp_path / f'said {Path(script).parent}')
    made = files_of(tmp_path / 'one')
    assert sum(name.endswith('.png') for name in made) == 20 and files_of(tmp_path / 'two') == made


@pytest.mark.parametrize('fault', ['host 1 cut off', 'host 1 killed', 'host 0 killed'])
def test_a_host_is_lost_the_other_ends_with_a_line_and_both_resume_exactly(fault, hosts, data, tiny,  # noqa: F811
                                                                           tmp_path):
    steps, every = 120, 20
    script, argv = training(1, data, tmp_path / 'whole', tiny['kmeans'], steps, '--save_every', every)
    hosts.both(script, argv, tmp_path / 'said whole')
    save, logs = tmp_path / 'lost', tmp_path / 'said lost'
    script, argv = training(1, data, save, tiny['kmeans'], steps, '--save_every', every)
    running = [hosts.msrun(host, script, argv, logs) for host in (0, 1)]
    until(lambda: (save / 'ImageNet_latest.ckpt').exists(), SECONDS, 'nothing is saved')
    if fault == 'host 1 cut off':
        hosts.cut_off(1)
    else:
        hosts.kill(int(fault[5]))
    started = time.monotonic()
    until(lambda: all(one.poll() is not None for one in running), ENDS_AFTER, f'still running: {said(logs)}')
    assert all(one.returncode for one in running)
    print(f'{fault}: the others ended {time.monotonic() - started:.0f} s later')
    for host in {'host 1 cut off': (0, 1), 'host 1 killed': (0,), 'host 0 killed': (1,)}[fault]:
        assert LOST in rank_said(logs, host) and 'Traceback' not in rank_said(logs, host)
    step = checkpoint.read(save / 'ImageNet_latest_state.ckpt').metadata['progress']['step']
    assert 0 < step < steps and checkpoint.read(save / 'ImageNet_latest.ckpt').metadata['step'] in (step, step - every)
    hosts.reconnect(1)
    hosts.both(script, argv + resumed_from(1, save), tmp_path / 'said resumed')
    assert checkpoints(save) == checkpoints(tmp_path / 'whole')


def test_the_second_host_may_come_a_minute_late(hosts, data, tiny, tmp_path):  # noqa: F811
    for name, late in (('together', 0.0), ('late', 60.0)):
        script, argv = training(2, data, tmp_path / name, tiny['kmeans'], 4)
        hosts.both(script, argv, tmp_path / f'said {name}', late)
    assert checkpoints(tmp_path / 'late') == checkpoints(tmp_path / 'together')


@pytest.mark.parametrize('stage', [1, 2])
def test_another_version_of_the_data_is_said_before_the_first_step(stage, hosts, data, tiny, tmp_path):  # noqa: F811
    other = {**data, 'pictures': tmp_path / 'other'}
    other['pictures'].mkdir()
    for path in data['pictures'].iterdir():
        (other['pictures'] / path.name).write_bytes(path.read_bytes())
    (other['pictures'] / '3.png').write_bytes((data['pictures'] / '4.png').read_bytes())  # of the same names
    logs, save = tmp_path / 'said', tmp_path / 'save'
    running = [hosts.msrun(host, *training(stage, seen, save, tiny['kmeans'], 4), logs)
               for host, seen in enumerate((data, other))]
    until(lambda: all(one.poll() is not None for one in running), SECONDS, f'still running: {said(logs)}')
    option = '--data_path' if stage == 1 else '--input'
    for host in (0, 1):
        assert f'error: {option}: not the same on all ranks' in rank_said(logs, host), said(logs)
        assert 'Traceback' not in rank_said(logs, host)
    assert not checkpoints(save)


def test_a_taken_port_is_said_with_its_option(hosts, data, tiny, tmp_path):  # noqa: F811
    taken = hosts.run(0, [sys.executable, '-c', 'import socket, time\nlistening = socket.create_server(("", 8118))\n'
                                                'print("listening", flush=True)\ntime.sleep(600)'], tmp_path / 'taken')
    until((tmp_path / 'taken').read_text, SECONDS, 'nothing listens')
    script, argv = training(1, data, tmp_path / 'save', tiny['kmeans'], 4)
    assert hosts.msrun(0, script, argv, tmp_path / 'said').wait(ENDS_AFTER) and taken.poll() is None
    assert 'error: --master_port 8118: another program listens there' in rank_said(tmp_path / 'said', 0)


RANK = """
import os, sys, time
sys.path.insert(0, os.environ['ROOT'])
from ict.command import run
from ict.device import parallel, runtime
from ict.errors import UserError

def main(argv):
    runtime.start('CPU', 0, True)
    parallel.wait_for_all(True)
    if parallel.rank()[0] == 1:
        {rank_1}
    parallel.wait_for_all(True)
    print('both are here')

sys.exit(run(main))
"""


def test_a_rank_waits_for_another_that_takes_longer_than_mindspores_half_minute(hosts, tmp_path,  # noqa: F811
                                                                                monkeypatch):
    monkeypatch.setenv('ROOT', str(ROOT))
    (tmp_path / 'rank.py').write_text(RANK.format(rank_1='time.sleep(45)'))
    hosts.both(str(tmp_path / 'rank.py'), [], tmp_path / 'said')
    assert all('both are here' in rank_said(tmp_path / 'said', host) for host in (0, 1))


def test_a_rank_that_fails_alone_ends_the_other_hosts_too(hosts, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv('ROOT', str(ROOT))
    (tmp_path / 'rank.py').write_text(RANK.format(rank_1='raise UserError("its disk is full")'))
    logs = tmp_path / 'said'
    running = [hosts.msrun(host, str(tmp_path / 'rank.py'), [], logs) for host in (0, 1)]
    until(lambda: all(one.poll() is not None for one in running), SECONDS, f'still running: {said(logs)}')
    assert all(one.returncode for one in running)
    assert 'error: its disk is full' in rank_said(logs, 1) and LOST in rank_said(logs, 0), said(logs)
