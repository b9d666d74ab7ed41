"""Finding a GPU in made-up folders with a made-up driver, the choice, msrun's ranks. None of it needs a card."""
import ctypes
import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ict.device import gpu, parallel, runtime
from ict.device.__main__ import table
from ict.device.gpu import Card, Machine, Problem
from ict.errors import UserError
from tests.conftest import command, files_of

ROOT = Path(__file__).resolve().parents[2]
H200 = Card('NVIDIA H200', (9, 0))


class Driver:
    """libcuda.so.1 as ctypes would show it."""

    def __init__(self, version=12020, cards=(H200,), error=0):
        self.version, self.cards, self.error = version, cards, error

    def cuDriverGetVersion(self, number):  # noqa: N802
        number._obj.value = self.version
        return 0

    def cuInit(self, flags):  # noqa: N802
        return self.error

    def cuGetErrorName(self, error, name):  # noqa: N802
        name._obj.value = b'CUDA_ERROR_NO_DEVICE' if error == 100 else None

    def cuDeviceGetCount(self, number):  # noqa: N802
        number._obj.value = len(self.cards)
        return 0

    def cuDeviceGet(self, handle, i):  # noqa: N802
        handle._obj.value = 40 + i

    def cuDeviceGetName(self, name, length, handle):  # noqa: N802
        name.value = self.cards[handle.value - 40].name.encode()[:length - 1]

    def cuDeviceGetAttribute(self, value, attribute, handle):  # noqa: N802
        value._obj.value = self.cards[handle.value - 40].capability[{75: 0, 76: 1}[attribute]]


class Runtime:
    """Any other library."""

    version, cudnn = 11080, 8906

    def __init__(self, file):
        self.file = file

    def cudaRuntimeGetVersion(self, number):  # noqa: N802
        number._obj.value = self.version
        return 0

    def cudnnGetVersion(self):  # noqa: N802
        return self.cudnn


@pytest.fixture
def made_up(tmp_path):
    """A complete installation to take parts away from: (folder, look(driver, runtime, system) -> Machine)."""
    (tmp_path / 'plugin').mkdir()
    (tmp_path / 'plugin' / gpu.PLUGIN).touch()
    for name, wheel in gpu.NEEDED.items():
        folder = tmp_path / 'nvidia' / wheel.removeprefix('nvidia-').removesuffix('-cu11').replace('-', '_') / 'lib'
        folder.mkdir(parents=True)
        (folder / name).touch()
    version = tmp_path / 'proc' / 'driver' / 'nvidia' / 'version'
    version.parent.mkdir(parents=True)
    version.write_text('NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n'
                       'GCC version:  gcc version 11.4.0\n')

    def look(driver=Driver, runtime=Runtime, system=None):
        def load(file, mode=ctypes.DEFAULT_MODE):
            if file != 'libcuda.so.1':
                return runtime(file)
            if driver is None:
                raise OSError('libcuda.so.1: cannot open shared object file')
            return driver()
        return gpu.discover(tmp_path / 'plugin', gpu.library_folders([str(tmp_path)], ''),
                               lambda: {gpu.ZLIB: '/lib/libz.so.1'} if system is None else system, load,
                               tmp_path / 'proc')
    return tmp_path, look


@pytest.fixture
def no_msrun(monkeypatch):
    for name in ('MS_ROLE', 'RANK_ID', 'MS_WORKER_NUM', 'DEVICE_ID'):
        monkeypatch.delenv(name, raising=False)


def python(code, *arguments, **environment):
    """Run code in a fresh process, from the repository's root."""
    inherited = {k: v for k, v in os.environ.items() if k not in ('GLOG_v', 'MS_ROLE', 'RANK_ID', 'CUDA_HOME')}
    return subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env=inherited | environment)


# ---------------------------------------------------------------- discovery

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
    without = gpu.discover(None, [], dict, lambda file: ctypes.CDLL('/nowhere'))
    assert 'MindSpore' in without.problems()[0].what


def test_libraries_are_looked_for_in_wheels_then_library_path_then_the_system(made_up):
    folder, look = made_up
    name = 'libcufft.so.10'
    (folder / 'other').mkdir()
    (folder / 'other' / name).touch()
    places = gpu.library_folders([str(folder)], f'/nowhere:{folder / "other"}')
    first = gpu.discover(None, places, dict, ctypes.CDLL).libraries[name]
    assert first == str(folder / 'nvidia' / 'cufft' / 'lib' / name)
    Path(first).unlink()
    assert gpu.discover(None, places, dict, ctypes.CDLL).libraries[name] == str(folder / 'other' / name)
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


# ---------------------------------------------------------------- the choice

USABLE = Machine(Path('plugin'), {name: f'/lib/{name}' for name in (*gpu.NEEDED, gpu.ZLIB)}, '', '535.104.05',
                 (12, 2), '', (H200,), (11, 8), (8, 9))


def test_without_a_gpu_the_default_is_the_cpu_with_one_line(monkeypatch, capsys, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', lambda: Machine(libraries=USABLE.libraries, plugin=Path('plugin')))
    assert runtime.choose(None) == 'CPU'
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err == 'running on the CPU: no NVIDIA driver (libcuda.so.1); python -m ict.device says more\n'


def test_who_has_a_card_but_not_the_libraries_is_told_how_to_get_them(monkeypatch, capsys, no_msrun):
    bare = Machine(Path('plugin'), {gpu.ZLIB: '/lib/libz.so.1'}, '', '', (12, 2), '', (H200,))
    monkeypatch.setattr(runtime, 'this_machine', lambda: bare)
    assert runtime.choose(None) == 'CPU'
    line, = capsys.readouterr().err.splitlines()
    assert 'libcudnn.so.8' in line and 'pip install -r ict/requirements-gpu.txt' in line


def test_only_rank_0_says_that_the_cpu_is_used(monkeypatch, capsys, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', Machine)
    for name, value in (('MS_ROLE', 'MS_WORKER'), ('RANK_ID', '1'), ('MS_WORKER_NUM', '2')):
        monkeypatch.setenv(name, value)
    assert runtime.choose(None, distributed=True) == 'CPU'
    assert capsys.readouterr().err == ''


def test_a_gpu_that_can_be_used_is_the_default_without_a_word(monkeypatch, capsys, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', lambda: USABLE)
    assert runtime.choose(None) == runtime.choose('GPU') == 'GPU'
    assert capsys.readouterr() == ('', '')


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error_that_says_all_that_is_missing(monkeypatch, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', lambda: Machine(Path('plugin')))
    with pytest.raises(UserError, match=r'--device_target GPU: no NVIDIA driver .*450\.80\.02.*libcublas\.so\.11.*'
                                        r'requirements-gpu\.txt'):
        runtime.choose('GPU')


def test_a_rank_needs_a_card_of_its_own(monkeypatch, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', lambda: USABLE)
    for name, value in (('MS_ROLE', 'MS_WORKER'), ('RANK_ID', '3'), ('MS_WORKER_NUM', '4'), ('DEVICE_ID', '1')):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='there is no GPU 1'):
        runtime.choose('GPU', distributed=True)


def test_the_cpu_that_was_asked_for_is_used_without_looking_for_anything(monkeypatch, capsys, no_msrun):
    monkeypatch.setattr(runtime, 'this_machine', lambda: 1 / 0)
    assert runtime.choose('CPU', device_id=3) == 'CPU'
    assert capsys.readouterr() == ('', '')


def test_an_ascend_that_is_not_there_is_an_error_that_says_what_is_missing(monkeypatch, tmp_path, no_msrun):
    monkeypatch.setenv('LD_LIBRARY_PATH', str(tmp_path))
    assert [p.what for p in runtime.ascend_problems(tmp_path)] == [
        'no Ascend card (/dev/davinci0)', 'no CANN toolkit (libge_runner.so)']
    (tmp_path / 'davinci0').touch()
    (tmp_path / 'libge_runner.so').touch()
    assert runtime.ascend_problems(tmp_path) == []
    monkeypatch.setattr(runtime, 'ascend_problems', lambda: [Problem('no Ascend card', 'buy one')])
    with pytest.raises(UserError, match='--device_target Ascend: no Ascend card: buy one'):
        runtime.choose('Ascend')


def test_a_negative_device_id_is_an_error(no_msrun):
    with pytest.raises(UserError, match='--device_id -1'):
        runtime.choose('CPU', -1)


# ---------------------------------------------------------------- starting

def test_the_cpu_starts_in_graph_mode_without_a_word_whatever_its_number():
    ran = python('from ict.device import gpu, runtime\nruntime.start("CPU", 3)\nimport os, mindspore as ms\n'
                 'print(ms.get_context("device_target"), ms.get_context("mode") == ms.GRAPH_MODE, '
                 'os.environ["GLOG_v"])')
    assert (ran.stdout, ran.stderr) == ('CPU True 3\n', '')


def test_the_libraries_are_loaded_in_order_and_cuda_home_is_restored(made_up, monkeypatch):
    folder, look = made_up
    loaded = []
    monkeypatch.setenv('CUDA_HOME', '/usr/local/cuda-13')
    monkeypatch.setenv('LD_LIBRARY_PATH', '/mine')
    with gpu.gpu_libraries(look(), lambda file, mode: loaded.append((Path(file).name, mode))):
        inside = Path(os.environ['CUDA_HOME'])
        said = subprocess.run([inside / 'bin' / 'nvcc', '--version'], capture_output=True, text=True).stdout
    assert loaded == [(name, ctypes.RTLD_GLOBAL) for name in gpu.NEEDED]
    assert 'release 11.6,' in said and not inside.exists() and os.environ['CUDA_HOME'] == '/usr/local/cuda-13'
    places = os.environ['LD_LIBRARY_PATH'].split(':')
    assert str(folder / 'nvidia' / 'cudnn' / 'lib') in places and places[-1] == '/mine'


def test_a_temporary_folder_where_programs_cannot_run_is_an_error_that_names_the_remedy(made_up, monkeypatch):
    monkeypatch.setattr(gpu.os, 'access', lambda path, mode: False)
    with pytest.raises(UserError, match='TMPDIR'), gpu.gpu_libraries(made_up[1](), lambda file, mode: None):
        pass


def test_the_installed_mindspore_goes_for_the_plugin_that_was_checked():
    """Without our CUDA_HOME it doesn't even look at its GPU plugins."""
    code = ('import sys\nfrom ict.device import gpu, runtime\nfrom contextlib import nullcontext\n'
            'machine = gpu.Machine(libraries=dict.fromkeys(gpu.NEEDED, "/nowhere/lib"))\n'
            'with gpu.gpu_libraries(machine, lambda *a, **k: None) if sys.argv[1:] else nullcontext():\n'
            '    import mindspore as ms\n'
            'try:\n    ms.set_device("GPU", 0)\n    print(open("/proc/self/maps").read())\n'
            'except RuntimeError as error:\n    print(error)\n')  # names the plugins that it could not load
    assert [gpu.PLUGIN in python(code, *given, GLOG_v='4').stdout for given in (['ours'], [])] == [True, False]


OWNERS = {'cuda': 'libcudart.so.11.0', 'nvrtc': 'libnvrtc.so.11.2', 'cublas': 'libcublas.so.11',
          'cudnn': 'libcudnn.so.8', 'cufft': 'libcufft.so.10', 'curand': 'libcurand.so.10',
          'cusparse': 'libcusparse.so.11', 'cusolver': 'libcusolver.so.11', 'cu': 'libcuda.so.1'}
ANSWERS = """
int cudaRuntimeGetVersion(int *v) { *v = 11080; return 0; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
unsigned long cudnnGetVersion(void) { return 8906; }
int cuInit(int flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 12020; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *handle, int i) { *handle = i; return 0; }
int cuDeviceGetName(char *name, int length, int handle) { name[0] = 'T'; name[1] = 0; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int handle) { *value = attribute == 75 ? 8 : 0; return 0; }
"""


def stand_ins(folder: Path, plugins: Path) -> None:
    """Libraries that do nothing, with all names that MindSpore's plugin asks for, and a driver with a card."""
    asked: dict[str, set[str]] = {name: set() for name in OWNERS.values()}
    for plugin in (plugins / gpu.PLUGIN, plugins / 'gpu' / 'libcuda_ops.so.11'):
        listing = subprocess.run(['nm', '-D', '--undefined-only', plugin], capture_output=True, text=True, check=True)
        for symbol, owner in re.findall(r' U (\w+)(?:@+(\S+))?$', listing.stdout, re.MULTILINE):
            start = next((start for start in sorted(OWNERS, key=len, reverse=True)
                          if re.match(f'{start}[A-Z]', symbol)), None)
            if owner in asked or (not owner and start):
                asked[owner or OWNERS[start]].add(symbol)
    answers = {re.search(r'(\w+)\(', line)[1]: line for line in ANSWERS.split('\n') if line}
    for library, symbols in asked.items():
        source, versions = folder / 'x.c', folder / 'x.map'
        source.write_text('\n'.join(answers.get(symbol, f'int {symbol}(void) {{ return 0; }}') for symbol in
                                    sorted(symbols | {a for a in answers if re.match(
                                        next(k for k, v in OWNERS.items() if v == library) + '[A-Z]', a)})))
        versions.write_text(f'{library} {{ global: *; }};')
        place = folder / ('driver' if library == 'libcuda.so.1' else 'nvidia/all/lib')
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(['gcc', '-shared', '-fPIC', '-w', '-o', place / library, f'-Wl,-soname,{library}', source,
                        *([] if library == 'libcuda.so.1' else [f'-Wl,--version-script={versions}'])], check=True)


@pytest.fixture(scope='module')
def stood_in(tmp_path_factory):
    """Stand-ins with which MindSpore's own GPU plugin loads: the environment that finds them, and their folder."""
    import importlib.util
    if sys.platform != 'linux' or not (shutil.which('gcc') and shutil.which('nm')):
        pytest.skip('needs Linux, gcc and nm')
    place = Path(importlib.util.find_spec('mindspore').submodule_search_locations[0])
    folder = tmp_path_factory.mktemp('stand-ins')
    stand_ins(folder, place / 'lib' / 'plugin')
    return {'PYTHONPATH': str(folder), 'LD_LIBRARY_PATH': str(folder / 'driver')}, str(folder)


def test_mindspores_own_plugin_loads_with_what_is_found_and_the_device_is_the_gpu(stood_in):
    environment, folder = stood_in
    code = ('import sys\nfrom ict.device import gpu, runtime\nruntime.start(None, 0)\nimport mindspore as ms\n'
            'print(ms.get_context("device_target"), sys.argv[1] in open("/proc/self/maps").read())')
    ran = python(code, folder, **environment)
    assert ran.stdout.split() == ['GPU', 'True'], ran.stdout + ran.stderr


def test_the_cpus_bytes_are_the_same_beside_a_gpu(stood_in, tiny, folders):
    made = []
    for name, environment in (('alone', {}), ('beside', stood_in[0])):
        ran = command('Transformer/infer.py', '--ckpt_path', tiny['transformer'], '--image_url', folders['images'],
                      '--mask_url', folders['masks'], '--save_url', folders['save'] / name, '--device_target', 'CPU',
                      '--sample_steps', 3, env=os.environ | environment)
        assert ran.returncode == 0, ran.stderr
        made.append(files_of(folders['save'] / name))
    assert made[0] == made[1] and len(made[0]) > 3


# ---------------------------------------------------------------- several ranks

def test_distributed_without_msrun_is_an_error_that_shows_the_command(monkeypatch, no_msrun):
    monkeypatch.setattr(sys, 'argv', ['Transformer/train.py', '--data_path', 'my photos', '--distributed'])
    with pytest.raises(UserError, match=r'msrun --worker_num=2 --local_worker_num=2 --join=True Transformer/train\.py '
                                        r"--data_path 'my photos' --distributed$"):
        runtime.choose('CPU', distributed=True)


def test_msrun_without_distributed_or_without_ranks_is_an_error(monkeypatch, no_msrun):
    monkeypatch.setenv('MS_ROLE', 'MS_WORKER')
    with pytest.raises(UserError, match='add --distributed'):
        runtime.choose('CPU')
    with pytest.raises(UserError, match='--node_rank'):
        runtime.choose('CPU', distributed=True)


def test_a_single_process_is_the_writer_and_its_own_maximum(monkeypatch, no_msrun):
    assert parallel.rank() == (0, 1) and parallel.is_writer()
    assert parallel.any_rank(True) is True and parallel.any_rank(False) is False
    assert parallel.on_any_rank([True, False]) == [True, False]
    parallel.wait_for_all(False)
    monkeypatch.setenv('MS_ROLE', 'MS_SCHED')
    assert not parallel.is_writer()


RANK = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ict.device import parallel, runtime
target = runtime.choose('CPU', 0, True)
rank, ranks = parallel.rank()
Path(f'before-{rank}.txt').open('a').write('x')
assert parallel.any_rank(rank == 0) == (rank == 0)
parallel.wait_for_all(True)
runtime.start(target, 0, True)
import mindspore as ms
seen = {'ranks': ranks, 'writer': parallel.is_writer(), 'any': parallel.any_rank(rank == 1),
        'none': parallel.any_rank(False), 'each': parallel.on_any_rank([rank == 0, rank == 1, False]),
        'mode': ms.get_auto_parallel_context('parallel_mode'),
        'mean': ms.get_auto_parallel_context('gradients_mean'),
        'broadcast': ms.get_auto_parallel_context('parameter_broadcast')}
if rank == 0:
    time.sleep(1.0)
    Path('slow.txt').touch()
parallel.wait_for_all(True)
seen['waited'] = Path('slow.txt').is_file()
Path(f'rank-{rank}.json').write_text(json.dumps(seen))
"""


def test_two_ranks_under_msrun_agree_wait_for_each_other_and_leave_the_scheduler_out(tmp_path):
    (tmp_path / 'rank.py').write_text(RANK)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'  # msrun starts 'python'
    ran = subprocess.run([sys.executable, '-m', 'mindspore.parallel.cluster.run', '--worker_num=2',
                          '--local_worker_num=2', f'--master_port={port}', '--join=True', '--log_dir=log', 'rank.py',
                          str(ROOT)], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {'PATH': path},
                         timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for rank in (0, 1):
        assert (tmp_path / f'before-{rank}.txt').read_text() == 'x'  # the scheduler, rank 0 by name, wrote nothing
        assert json.loads((tmp_path / f'rank-{rank}.json').read_text()) == {
            'ranks': 2, 'writer': rank == 0, 'any': True, 'none': False, 'each': [True, True, False],
            'mode': 'data_parallel', 'mean': True, 'broadcast': True, 'waited': True}


# ---------------------------------------------------------------- python -m ict.device

def test_the_table_names_every_part_and_the_verdict():
    text = '\n'.join(table(USABLE))
    assert 'NVIDIA H200, compute capability 9.0; compiles' in text and '535.104.05, knows CUDA up to 12.2' in text
    assert all(f'/lib/{name}' in text for name in gpu.NEEDED) and text.endswith('GPU can be used')
    older = Machine(cards=(Card('Tesla T4', (7, 5)),))
    assert 'compiles' not in '\n'.join(table(older))
    text = '\n'.join(table(Machine(libraries=dict.fromkeys((*gpu.NEEDED, gpu.ZLIB), ''))))
    assert all(f'missing ({wheel})' in text for wheel in gpu.NEEDED.values()) and 'GPU cannot be used' in text


def test_the_command_ends_well_and_can_try_what_it_recommends():
    ran = subprocess.run([sys.executable, '-m', 'ict.device', '--try'], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and 'GPU can' in ran.stdout
    tried = r'^tried on the [CG]PU: a matrix product \(off by \d\.\d+e[-+]\d+\) and a convolution$'
    assert re.search(tried, ran.stdout, re.MULTILINE), ran.stdout + ran.stderr


def test_the_suite_runs_on_the_device_that_it_is_told():
    """An Ascend is in none of the machines that this runs on; a test that fell back to the CPU would prove nothing."""
    ran = subprocess.run([sys.executable, '-m', 'pytest', 'tests/parity/test_transformer.py', '--collect-only'],
                         cwd=ROOT, capture_output=True, text=True, env=os.environ | {'ICT_TEST_DEVICE': 'Ascend'})
    assert ran.returncode == 2
    assert 'ICT_TEST_DEVICE=Ascend: --device_target Ascend: ' in ran.stdout + ran.stderr
