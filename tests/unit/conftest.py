"""A made-up installation of NVIDIA's driver and libraries, for the tests of the device."""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ict.device import gpu
from ict.device.gpu import Card, Machine

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
                            {gpu.ZLIB: '/lib/libz.so.1'} if system is None else system, load, tmp_path / 'proc')
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


USABLE = Machine(Path('plugin'), {name: f'/lib/{name}' for name in (*gpu.NEEDED, gpu.ZLIB)}, '', '535.104.05',
                 (12, 2), '', (H200,), (11, 8), (8, 9))
