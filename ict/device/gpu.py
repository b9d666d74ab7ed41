"""Finding what MindSpore needs for an NVIDIA GPU: driver, cards, libraries, its own plugin.

MindSpore's wheels carry GPU plugins but not NVIDIA's libraries. ``ict/requirements-gpu.txt`` installs these as wheels;
``gpu_libraries`` loads them into the process before MindSpore is imported, so that the plugin finds them by name and
neither LD_LIBRARY_PATH nor a second start of the process is needed.
"""
from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ict.errors import require

# What `readelf -d libmindspore_gpu.so.11.6` of MindSpore 2.8.0 asks for, in an order in which each finds what it needs
# itself, and the wheel that has it. libz is not NVIDIA's: cuDNN loads it at the first convolution.
NEEDED = {
    'libcudart.so.11.0': 'nvidia-cuda-runtime-cu11',
    'libnvrtc.so.11.2': 'nvidia-cuda-nvrtc-cu11',
    'libcublas.so.11': 'nvidia-cublas-cu11',
    'libcudnn.so.8': 'nvidia-cudnn-cu11',
    'libcufft.so.10': 'nvidia-cufft-cu11',
    'libcurand.so.10': 'nvidia-curand-cu11',
    'libcusparse.so.11': 'nvidia-cusparse-cu11',
    'libcusolver.so.11': 'nvidia-cusolver-cu11',
}
RUNTIME, CUDNN, ZLIB = 'libcudart.so.11.0', 'libcudnn.so.8', 'libz.so.1'
CUDA = '11.6'  # of the plugin that is used; there is one for 11.1 too
PLUGIN = f'libmindspore_gpu.so.{CUDA}'
# NVIDIA, 'CUDA Compatibility': whatever is built with any CUDA 11 runs on driver 450.80.02 and all later ones.
OLDEST_DRIVER, OLDEST_DRIVER_CUDA = '450.80.02', (11, 0)
OLDEST_RUNTIME, OLDEST_CUDNN = (11, 6), (8, 5)  # MindSpore's own requirement
OLDEST_CARD = (6, 0)  # libcuda_ops.so.11 has code for 6.0 ... 8.0 and PTX for 6.0 and 8.6, which
FIRST_COMPILED_CARD = (9, 0)  # later cards compile at the first use
INSTALL_LIBRARIES = 'pip install -r ict/requirements-gpu.txt'
INSTALL_MINDSPORE = 'pip install -r requirements.txt, on Linux on x86-64'
SAYS_MORE = 'python -m ict.device says more'
ANSWER_SECONDS = 60.0  # a sleeping card takes a few
ROOT = Path(__file__).resolve().parents[2]


class Card(NamedTuple):
    """A GPU by its name and compute capability."""

    name: str
    capability: tuple[int, int]


class Problem(NamedTuple):
    """Why the GPU can't be used, and what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f'{self.what}: {self.remedy}'


@dataclass(frozen=True)
class Machine:
    """What was found of all that MindSpore needs for a GPU.

    Attributes:
        plugin: MindSpore's GPU plugin; None where its wheel has none, or MindSpore isn't installed.
        libraries: file of each library in NEEDED, and libz; '' where missing.
        broken: what happened when these were loaded, '' when all went well.
        driver: version of the driver, '' where it doesn't say; cuda: the newest CUDA that it knows, None without a
            driver; fault: what it answered instead of naming cards.
        cards: GPUs, in the order of --device_id.
        runtime, cudnn: versions of the CUDA runtime and cuDNN that were found.
    """

    plugin: Path | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    broken: str = ''
    driver: str = ''
    cuda: tuple[int, int] | None = None
    fault: str = ''
    cards: tuple[Card, ...] = ()
    runtime: tuple[int, int] | None = None
    cudnn: tuple[int, int] | None = None

    def problems(self, device_id: int = 0) -> list[Problem]:
        """Everything that keeps MindSpore from using card ``device_id``, the gravest first; empty when it can."""
        return list(self._problems(device_id))

    def _problems(self, device_id: int) -> Iterator[Problem]:
        # MindSpore's plugin
        if self.plugin is None:
            yield Problem(f'MindSpore 2.8 with its GPU plugin ({PLUGIN}) is not installed', INSTALL_MINDSPORE)

        # Driver
        install = f"install NVIDIA's driver {OLDEST_DRIVER} or later"
        if self.fault:
            yield Problem(f'the NVIDIA driver finds no GPU ({self.fault})',
                          'nvidia-smi must list the card, and CUDA_VISIBLE_DEVICES must not hide it')
        elif self.cuda is None:
            yield Problem('no NVIDIA driver (libcuda.so.1)', f'{install}; a container needs --gpus all')
        elif self.cuda < OLDEST_DRIVER_CUDA or (self.driver and _numbers(self.driver) < _numbers(OLDEST_DRIVER)):
            yield Problem(f'the NVIDIA driver {self.driver or "for CUDA " + dotted(self.cuda)} is too old', install)

        # Card
        if self.cards and device_id >= len(self.cards):
            yield Problem(f'there is no GPU {device_id}', f'--device_id goes from 0 to {len(self.cards) - 1}')
        elif self.cards and self.cards[device_id].capability < OLDEST_CARD:
            name, capability = self.cards[device_id]
            yield Problem(f'GPU {device_id} ({name}, compute capability {dotted(capability)}) is too old',
                          f'MindSpore needs {dotted(OLDEST_CARD)} or later')

        # Libraries
        if missing := [name for name in NEEDED if not self.libraries.get(name)]:
            yield Problem(f'{", ".join(missing)} not found', INSTALL_LIBRARIES)
        if self.broken:
            yield Problem(f'a library cannot be loaded ({self.broken})', f'{INSTALL_LIBRARIES} --force-reinstall')
        if not self.libraries.get(ZLIB):
            yield Problem(f'{ZLIB} not found', "install zlib from the system's packages (zlib1g)")
        for name, has, oldest in (('CUDA runtime', self.runtime, OLDEST_RUNTIME), ('cuDNN', self.cudnn, OLDEST_CUDNN)):
            if has is not None and has < oldest:
                yield Problem(f'{name} {dotted(has)} is too old ({dotted(oldest)} or later is needed)',
                              INSTALL_LIBRARIES)


def dotted(version: Sequence[int]) -> str:
    return '.'.join(map(str, version))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split('.'))


@functools.cache
def this_machine() -> Machine:
    """What this machine has; found once a process, without importing MindSpore or starting CUDA in it."""
    spec = importlib.util.find_spec('mindspore')
    folders = spec.submodule_search_locations if spec is not None else None
    plugins = Path(folders[0]) / 'lib' / 'plugin' if folders else None
    return discover(plugins, library_folders(sys.path, os.environ.get('LD_LIBRARY_PATH', '')), loader_cache())


def library_folders(python_path: Sequence[str], library_path: str) -> list[Path]:
    """Folders that may hold NVIDIA's libraries: those of the wheels, LD_LIBRARY_PATH's, the plugin's own."""
    wheels = [folder for entry in python_path for folder in sorted(Path(entry or '.').glob('nvidia/*/lib'))]
    return [*wheels, *map(Path, filter(None, library_path.split(':'))), Path(f'/usr/local/cuda-{CUDA}/lib64')]


def loader_cache() -> dict[str, str]:
    """File of each library that the system's loader knows by name."""
    try:
        listing = subprocess.run(['ldconfig', '-p'], capture_output=True, text=True, check=True,
                                 env={**os.environ, 'PATH': os.environ.get('PATH', '') + ':/sbin:/usr/sbin'}).stdout
    except (OSError, subprocess.CalledProcessError):  # a system without glibc's loader
        return {}
    return parse_loader_cache(listing)


def parse_loader_cache(listing: str) -> dict[str, str]:
    """Name -> file of the 64-bit libraries in what ``ldconfig -p`` prints; the first of a name wins."""
    found: dict[str, str] = {}
    for name, kind, file in re.findall(r'^\s+(\S+) \((.*?)\) => (.+)$', listing, re.MULTILINE):
        if platform.machine().replace('_', '-') in kind:
            found.setdefault(name, file)
    return found


def discover(plugins: Path | None, folders: Sequence[Path], system: dict[str, str],
             load: Callable[[str], Any] = ctypes.CDLL, proc: Path = Path('/proc')) -> Machine:
    """Look for everything.

    Args:
        plugins: MindSpore's plugin folder, None where MindSpore isn't installed.
        folders: where libraries are looked for first.
        system: file of each library that the system's loader knows by name.
        load: opens a library.
        proc: the system's /proc.
    """
    plugin = plugins / PLUGIN if plugins is not None and (plugins / PLUGIN).is_file() else None
    libraries = {name: str(next((file for folder in folders if (file := folder / name).is_file()),
                                system.get(name, ''))) for name in (*NEEDED, ZLIB)}
    answer = _apart(lambda: _ask_driver(load), 'fault')
    if answer.get('cards'):
        answer |= _apart(lambda: _ask_libraries(libraries, load), 'broken')
    return Machine(plugin, libraries, driver=_driver_version(proc) if answer.get('cuda') else '', **answer)


def _driver_version(proc: Path) -> str:
    try:
        text = (proc / 'driver' / 'nvidia' / 'version').read_text()
    except OSError:  # Windows' Linux has none
        return ''
    found = re.search(r'Kernel Module.*?\s(\d+(?:\.\d+)+)\s', text)
    return found[1] if found else ''


def _apart(ask: Callable[[], dict[str, Any]], otherwise: str) -> dict[str, Any]:
    """``ask()`` in a forked process, because a process in which CUDA was started can't fork CUDA's own.

    A crash or a hang becomes the answer ``otherwise``.
    """
    from multiprocessing import get_context
    fork = get_context('fork')
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: send.send(ask()))
    child.start()
    send.close()
    try:
        return receive.recv() if receive.poll(ANSWER_SECONDS) else {otherwise: 'it does not answer'}
    except EOFError:
        return {otherwise: 'it crashed'}
    finally:
        child.kill()
        child.join()


def _ask_libraries(libraries: dict[str, str], load: Callable[..., Any]) -> dict[str, Any]:
    """Versions of the CUDA runtime and cuDNN, and whether everything that was found can be loaded."""
    answer: dict[str, Any] = {}
    number = ctypes.c_int()
    for name in NEEDED:
        if not libraries[name]:
            continue
        try:
            library = load(libraries[name], mode=ctypes.RTLD_GLOBAL)
            if name == RUNTIME and library.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
                answer['runtime'] = number.value // 1000, number.value % 1000 // 10
            elif name == CUDNN:
                version = library.cudnnGetVersion()
                answer['cudnn'] = version // 1000, version % 1000 // 100
        except (OSError, AttributeError) as error:
            answer.setdefault('broken', str(error))
    return answer


def _ask_driver(load: Callable[..., Any]) -> dict[str, Any]:
    """The driver's own answers, as fields of ``Machine``; nothing without a driver."""
    number = ctypes.c_int()
    try:
        driver = load('libcuda.so.1')
    except OSError:
        return {}
    answer: dict[str, Any] = {}
    driver.cuDriverGetVersion(ctypes.byref(number))
    answer['cuda'] = number.value // 1000, number.value % 1000 // 10
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    if error:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(error, ctypes.byref(name))
        return answer | {'fault': (name.value or b'error %d' % error).decode()}
    if number.value == 0:
        return answer | {'fault': 'CUDA_ERROR_NO_DEVICE'}
    return answer | {'cards': tuple(_card(driver, i) for i in range(number.value))}


def _card(driver: Any, i: int) -> Card:
    handle, major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), i)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)  # ..._MINOR
    return Card(name.value.decode(errors='replace'), (major.value, minor.value))


@contextmanager
def gpu_libraries(machine: Machine, load: Callable[..., Any] = ctypes.CDLL) -> Iterator[None]:
    """In here an import of MindSpore loads its GPU plugin.

    Raises:
        UserError: no program can be started from the folder for temporary files.
    """
    files = [machine.libraries[name] for name in NEEDED]
    for file in files:
        load(file, mode=ctypes.RTLD_GLOBAL)
    folders = list(dict.fromkeys(str(Path(file).parent) for file in files))
    before = os.environ.get('LD_LIBRARY_PATH')  # MindSpore looks for the libraries once more, with ldd
    os.environ['LD_LIBRARY_PATH'] = ':'.join([*folders, *filter(None, [before])])
    home = os.environ.get('CUDA_HOME')
    try:
        with tempfile.TemporaryDirectory(prefix='ict-cuda-') as folder:
            # MindSpore loads no GPU plugin unless $CUDA_HOME/bin/nvcc names its version, and the wheels have no nvcc.
            # A CUDA_HOME of the user's may be of a version for which there is no plugin.
            nvcc = Path(folder) / 'bin' / 'nvcc'
            nvcc.parent.mkdir()
            nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {CUDA}, V{CUDA}.0"\n')
            nvcc.chmod(0o755)
            require(os.access(nvcc, os.X_OK), f'{folder}: programs cannot run there; set TMPDIR to a folder where '
                                              f'they can')
            os.environ['CUDA_HOME'] = folder
            yield
    finally:
        os.environ.pop('CUDA_HOME', None)
        if home is not None:
            os.environ['CUDA_HOME'] = home
