"""Weights from a file that PyTorch has saved, without PyTorch."""
from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

_N_HEADERS = 3  # a magic number, a version, and the sizes of types
_COUNT_BYTES = 8


class _TensorUnpickler(pickle.Unpickler):
    """Reads a dictionary of tensors as arrays and refuses everything else."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {('collections', 'OrderedDict'): OrderedDict, ('torch._utils', '_rebuild_tensor_v2'): _tensor,
                 ('torch', 'FloatStorage'): np.float32, ('torch', 'LongStorage'): np.int64}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f'holds a {module}.{name} among its tensors')
        return known[module, name]

    def persistent_load(self, pid: tuple[Any, ...]) -> np.ndarray:
        _, dtype, key, _, count, _ = pid
        return self.storages.setdefault(key, np.empty(count, dtype))  # its elements come after the dictionary


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, tuple(size * stride for stride in strides))


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name of a state_dict with float32 and int64 tensors, as PyTorch before 1.6 has saved it.

    After three headers the file holds the dictionary, whose tensors refer to storages, a list of the storages, and of
    each storage the number of its elements (int64) and the elements. All but the latter is pickled.

    Raises:
        pickle.UnpicklingError: it holds something else.
    """
    with open(path, 'rb') as stream:
        for _ in range(_N_HEADERS):
            _TensorUnpickler(stream).load()
        unpickler = _TensorUnpickler(stream)
        arrays = unpickler.load()
        for key in _TensorUnpickler(stream).load():
            storage = unpickler.storages[key]
            stream.seek(_COUNT_BYTES, 1)
            storage[:] = np.frombuffer(stream.read(storage.nbytes), storage.dtype)
    return dict(arrays)
