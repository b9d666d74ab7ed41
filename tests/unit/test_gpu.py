"""What this machine has: each missing or unusable part of a GPU installation is named, with its remedy."""
from __future__ import annotations

import ctypes
import mmap
import os
import re
import time
from pathlib import Path

import pytest

from ict.device import gpu
from ict.device.gpu import Card
from tests.unit.conftest import H200, ROOT, Driver, Runtime, python


def test_a_complete_installation_has_no_problems_and_is_described(made_up):
    folder, look = made_up
    found = look(lambda: Driver(cards=(Card('Tesla T4', (7, 5)), H200)))
    assert found.problems(0) == found.problems(1) == []
    assert found.cards == (Card('Tesla T4', (7, 5)), H200)
    assert (found.driver, found.cuda, found.runtime, found.cudnn) == ('535.104.05', (12, 2), (11, 8), (8, 9))
    assert found.libraries['libcublas.so.11'] == str(folder / 'nvidia' / 'cublas' / 'lib' / 'libcublas.so.11')


@pytest.mark.parametrize('name', gpu.NEEDED)
def test_each_missing_library_is_named_with_the_command_that_installs_it(made_up, name):
    folder, look = made_up
    next(folder.glob(f'nvidia/*/lib/{name}')).unlink()
    assert [str(problem) for problem in look().problems()] == [
        f'{name} not found: pip install -r ict/requirements-gpu.txt']


def test_without_the_wheels_all_libraries_are_named_in_one_problem(made_up):
    folder, look = made_up
    for file in folder.glob('nvidia/*/lib/*'):
        file.unlink()
    (problem,) = look().problems()
    assert all(name in problem.what for name in gpu.NEEDED) and 'requirements-gpu.txt' in problem.remedy


def test_a_missing_zlib_is_not_blamed_on_the_wheels(made_up):
    (problem,) = made_up[1](system={}).problems()
    assert 'libz.so.1' in problem.what and 'requirements-gpu' not in problem.remedy


def test_without_a_driver_the_oldest_that_will_do_is_named(made_up):
    (problem,) = made_up[1](driver=None).problems()
    assert 'no NVIDIA driver' in problem.what and '450.80.02' in problem.remedy


@pytest.mark.parametrize(('cuda', 'version', 'fine'), [
    (10020, '440.33.01', False), (11000, '450.66', False), (11000, '450.80.02', True), (11040, '470.57.02', True),
    (13000, '580.65.06', True), (10020, '', False), (11000, '', True)])
def test_a_driver_before_450_80_02_is_too_old_even_where_it_does_not_tell_its_version(made_up, cuda, version, fine):
    folder, look = made_up
    file = folder / 'proc' / 'driver' / 'nvidia' / 'version'
    if version:
        file.write_text(f'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n')
    else:
        file.unlink()
    problems = look(lambda: Driver(cuda)).problems()
    assert [('driver' in p.what and 'too old' in p.what and '450.80.02' in p.remedy) for p in problems] == \
        ([] if fine else [True])


@pytest.mark.parametrize(('driver', 'words'), [
    (lambda: Driver(error=100), 'CUDA_ERROR_NO_DEVICE'), (lambda: Driver(error=999), 'error 999'),
    (lambda: Driver(cards=()), 'CUDA_ERROR_NO_DEVICE'), (lambda: os._exit(1), 'crashed')])
def test_a_driver_that_finds_no_card_or_crashes_is_one_problem_that_quotes_it(made_up, driver, words):
    (problem,) = made_up[1](driver).problems()
    assert 'driver finds no GPU' in problem.what and words in problem.what and 'nvidia-smi' in problem.remedy


def test_a_driver_that_hangs_is_given_up(made_up, monkeypatch):
    monkeypatch.setattr(gpu, 'ANSWER_SECONDS', 0.3)
    (problem,) = made_up[1](lambda: time.sleep(30)).problems()
    assert 'does not answer' in problem.what


def test_a_card_too_old_and_a_number_without_a_card_are_told_apart(made_up):
    found = made_up[1](lambda: Driver(cards=(H200, Card('GeForce GTX 980', (5, 2)))))
    assert found.problems(0) == []
    (old,), (none,) = found.problems(1), found.problems(2)
    assert 'GeForce GTX 980' in old.what and '5.2' in old.what and '6.0' in old.remedy
    assert 'no GPU 2' in none.what and 'from 0 to 1' in none.remedy


@pytest.mark.parametrize(('part', 'value', 'words'), [('version', 11010, 'CUDA runtime 11.1'),
                                                      ('cudnn', 8005, 'cuDNN 8.0')])
def test_a_library_that_is_too_old_is_a_problem(made_up, part, value, words):
    (problem,) = made_up[1](runtime=type('Old', (Runtime,), {part: value})).problems()
    assert words in problem.what and 'too old' in problem.what and 'requirements-gpu.txt' in problem.remedy


def broken(file):
    if file.endswith('libcublas.so.11'):
        raise OSError(f'{file}: file too short')
    return Runtime(file)


def crashing(file):
    if file.endswith('libcudnn.so.8'):
        os._exit(1)
    return Runtime(file)


@pytest.mark.parametrize(('runtime', 'words'), [(broken, 'libcublas.so.11: file too short'), (crashing, 'crashed')])
def test_a_library_that_cannot_be_loaded_is_not_blamed_on_the_driver(made_up, runtime, words):
    (problem,) = made_up[1](runtime=runtime).problems()
    assert 'cannot be loaded' in problem.what and words in problem.what and '--force-reinstall' in problem.remedy


def test_a_mindspore_without_the_plugin_is_named_before_everything_else(made_up):
    folder, look = made_up
    (folder / 'plugin' / gpu.PLUGIN).unlink()
    problems = look(driver=None).problems()
    assert gpu.PLUGIN in problems[0].what and 'requirements.txt' in problems[0].remedy and len(problems) == 2
    without = gpu.discover(None, [], {}, lambda file: ctypes.CDLL('/nowhere'))
    assert 'MindSpore' in without.problems()[0].what


def test_libraries_are_looked_for_in_wheels_then_library_path_then_the_system(made_up):
    folder, look = made_up
    name = 'libcufft.so.10'
    (folder / 'other').mkdir()
    (folder / 'other' / name).touch()
    places = gpu.library_folders([str(folder)], f'/nowhere:{folder / "other"}')
    first = gpu.discover(None, places, {}, ctypes.CDLL).libraries[name]
    assert first == str(folder / 'nvidia' / 'cufft' / 'lib' / name)
    Path(first).unlink()
    assert gpu.discover(None, places, {}, ctypes.CDLL).libraries[name] == str(folder / 'other' / name)
    assert look(system={name: '/usr/lib/a', gpu.ZLIB: '/usr/lib/z'}).problems() == []


def test_the_loaders_listing_gives_64_bit_files(monkeypatch):
    monkeypatch.setattr(gpu.platform, 'machine', lambda: 'x86_64')
    assert gpu.parse_loader_cache(
        '812 libs found in cache `/etc/ld.so.cache\'\n'
        '\tlibz.so.1 (libc6) => /lib/i386-linux-gnu/libz.so.1\n'
        '\tlibz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1\n'
        '\tlibz.so.1 (libc6,x86-64, OS ABI: Linux 3.2.0) => /usr/old/libz.so.1\n') == {
            'libz.so.1': '/lib/x86_64-linux-gnu/libz.so.1'}


def test_looking_is_quick_and_neither_imports_mindspore_nor_loads_cuda():
    seconds = []
    for _ in range(3):  # other work on the machine may slow one of them
        ran = python('import sys, time\nfrom ict.device import gpu\nbefore = time.perf_counter()\ngpu.this_machine()\n'
                     'maps = open("/proc/self/maps").read()\n'
                     'print(time.perf_counter() - before, "mindspore" in sys.modules, "libcuda" in maps)')
        taken, *imported = ran.stdout.split()
        assert imported == ['False', 'False']
        seconds.append(float(taken))
    assert min(seconds) < 0.2


def test_what_is_looked_for_is_what_the_installed_plugin_asks_for():
    import importlib.util
    place = Path(importlib.util.find_spec('mindspore').submodule_search_locations[0])
    with open(place / 'lib' / 'plugin' / gpu.PLUGIN, 'rb') as file, \
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as binary:
        asked = set(re.findall(rb'\0(lib(?:cu|nv)\w+\.so\.[\d.]+)(?=\0)', binary))
    assert {name.decode() for name in asked} == {*gpu.NEEDED, 'libcuda.so.1', 'libcuda_ops.so.11'}


def test_every_library_comes_from_a_wheel_that_the_requirements_pin():
    lines = (ROOT / 'ict' / 'requirements-gpu.txt').read_text().splitlines()
    pinned = dict(line.split('==') for line in lines if not line.startswith('#'))
    assert sorted(pinned) == sorted(gpu.NEEDED.values())
    assert all(re.fullmatch(r'[\d.]+', version) for version in pinned.values())
