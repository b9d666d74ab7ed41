"""The choice of a device, starting MindSpore there, several ranks, and ``python -m ict.device``."""
from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ict.device import gpu, parallel, runtime
from ict.device.__main__ import table
from ict.device.gpu import Card, Machine, Problem
from ict.errors import UserError
from tests.conftest import command, files_of, free_port
from tests.unit.conftest import H200, ROOT, USABLE, python


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
parallel.leave_if_joined(0)
"""


def test_two_ranks_under_msrun_agree_wait_for_each_other_and_leave_the_scheduler_out(tmp_path):
    (tmp_path / 'rank.py').write_text(RANK)
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'  # msrun starts 'python'
    ran = subprocess.run([sys.executable, '-m', 'mindspore.parallel.cluster.run', '--worker_num=2',
                          '--local_worker_num=2', f'--master_port={free_port()}', '--join=True', '--log_dir=log',
                          'rank.py', str(ROOT)], cwd=tmp_path, capture_output=True, text=True,
                         env=os.environ | {'PATH': path}, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for rank in (0, 1):
        assert (tmp_path / f'before-{rank}.txt').read_text() == 'x'  # the scheduler, rank 0 by name, wrote nothing
        assert json.loads((tmp_path / f'rank-{rank}.json').read_text()) == {
            'ranks': 2, 'writer': rank == 0, 'any': True, 'none': False, 'each': [True, True, False],
            'mode': 'data_parallel', 'mean': True, 'broadcast': True, 'waited': True}


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
