"""MindSpore checkpoint files: read without MindSpore and one tensor at a time, checked strictly, written crash-safe.

Published checkpoints hold tensors only. Ours also hold metadata, a JSON text (network, architecture, what trained it)
that is called ``record`` in the file, and ``palette``, the colours that the tokens mean.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ict import files
from ict.data import codebook
from ict.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

METADATA, PALETTE = 'record', 'palette'  # names in the file
ENDINGS = '', '_best', '_latest'  # of the files of networks, the preferred one first
UNUSED = '.attn.mask'  # a buffer of the published transformers that no computation reads
_TYPES = {'Float32': 'f4', 'Float16': 'f2', 'Float64': 'f8', 'Int8': 'i1', 'Int16': 'i2', 'Int32': 'i4',
          'Int64': 'i8', 'UInt8': 'u1', 'UInt16': 'u2', 'UInt32': 'u4', 'UInt64': 'u8', 'Bool': '?'}
_DIGESTS = ThreadPoolExecutor(1)  # 1.8 GB take two seconds. A process forked meanwhile must not wait for them
_MOST_SIDES, _LONGEST_SIDE = 8, 2 ** 31 - 1  # of a tensor
_KINDS = {'tok_emb.embedding_table': 'Transformer', 'encoder.1.weight': 'Generator',
          'conv1.0.weight': 'Discriminator', 'relu1_1.0.weight': 'VGG19'}


@dataclass
class Entry:
    """Where one tensor lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    pieces: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: names, shapes, metadata and palette; tensors are read on demand.

    Attributes:
        path: the file.
        entries: tensors by name, without metadata, palette and unused buffers.
        kind: 'Transformer', 'Generator', 'Discriminator', 'VGG19', 'state' or None.
        metadata: what wrote it, {} in published files.
        palette: (V, 3) float32 or None.
    """

    path: Path
    entries: dict[str, Entry]
    kind: str | None
    metadata: dict[str, Any]
    palette: np.ndarray | None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; a UserError where the file doesn't hold it."""
        if name not in self.entries:
            raise UserError(f'{self.path}: has no tensor {name}')
        return self.entries[name].shape

    def array(self, name: str) -> np.ndarray:
        """A tensor's values, float16 widened to float32."""
        values = _read_values(self.path, self.entries[name])
        return values.astype(np.float32) if values.dtype == np.float16 else values

    def merged(self, told: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint tells of its network, and flags (None: not given) for what it leaves open.

        Raises:
            UserError: a flag contradicts the checkpoint.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        for name, value in given.items():
            if told.get(name, value) != value:
                raise UserError(f'--{name} {value} contradicts {self.path}, which has {name} {told[name]}; leave the '
                                f'flag out')
        return given | told

    def digest(self) -> Future[str]:
        """A Future of the file's SHA-256, which a thread computes; kept by path, size and modification time."""
        state = os.stat(self.path)
        return _digest(self.path, state.st_size, state.st_mtime_ns)

    def expect(self, kind: str, option: str) -> Checkpoint:
        """Itself; a UserError where it holds another network."""
        if self.kind != kind:
            raise UserError(f'{option} {self.path}: holds a {self.kind or "network that this project does not know"}, '
                            f'not a {kind}; give the {kind} checkpoint')
        return self


def palette_of(ckpt: Checkpoint, kmeans: str) -> np.ndarray | None:
    """The tokens' colours (V, 3) float32: the checkpoint's own, else ``--kmeans``; a UserError where they differ."""
    given = codebook.load(kmeans) if kmeans else None
    if given is not None and ckpt.palette is not None and codebook.digest(given) != codebook.digest(ckpt.palette):
        raise UserError(f'--kmeans {kmeans}: not the palette that {ckpt.path} carries; leave the flag out')
    return given if ckpt.palette is None else ckpt.palette


def transformer_palette(ckpt: Checkpoint, kmeans: str, vocab_size: int) -> np.ndarray:
    """``palette_of``; a UserError where there is none, or one of another size than the vocabulary."""
    palette = palette_of(ckpt, kmeans)
    if palette is None:
        raise UserError(f'--kmeans: {ckpt.path} carries no palette; give the kmeans_centers.npy that it was trained '
                        f'with (another one gives wrong colours)')
    if len(palette) != vocab_size:
        raise UserError(f'{ckpt.path}: has {vocab_size} tokens, its palette {len(palette)} colours')
    return palette


@lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed: int) -> Future[str]:
    return _DIGESTS.submit(_sha256, path)


def _sha256(path: Path) -> str:
    with open(path, 'rb') as stream:
        total = hashlib.sha256()
        while block := stream.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def is_pytorch(stream: BinaryIO) -> bool:
    """Whether a file begins as PyTorch's do: a ZIP, or before version 1.6 a bare pickle."""
    return stream.read(2).startswith((b'PK', b'\x80'))


def saved_in(folder: Path, names: Sequence[str]) -> list[Path] | None:
    """The files of networks in a folder: the plain names, else ``_best``, else ``_latest``; None: none is complete."""
    for ending in ENDINGS:
        found = [folder / f'{name}{ending}.ckpt' for name in names]
        if all(map(os.path.isfile, found)):
            return found
    return None


def read(path: str | Path, option: str = '') -> Checkpoint:
    """Open a checkpoint; no tensor is read yet; a UserError where it is missing, damaged or no checkpoint."""
    path = Path(path)
    culprit = f'{option} {path}'.strip()
    if not os.path.isfile(path):
        what = 'is a folder; name the .ckpt file' if os.path.isdir(path) else 'no such checkpoint'
        raise UserError(f'{culprit}: {what}')
    try:
        with open(path, 'rb') as stream:
            if is_pytorch(stream):
                raise UserError(f'{culprit}: a PyTorch file; convert it first: python ckpts_ICT/convert.py {path} '
                                f'{path.with_suffix(".ckpt").name} (for a transformer with --kmeans)')
            stream.seek(0)
            entries = _index(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise UserError(f'{culprit}: not readable ({error.strerror})') from None
    except (ValueError, IndexError) as error:
        raise UserError(f'{culprit}: damaged, or not a MindSpore checkpoint ({error}); '
                        f'fetch or copy it again') from None
    metadata: dict[str, Any] = {}
    palette = None
    try:
        if METADATA in entries:
            metadata = json.loads(_read_values(path, entries.pop(METADATA)).tobytes().decode('utf-32-le'))
            if not isinstance(metadata, dict) or not isinstance(metadata.get('network', ''), str):
                raise ValueError('it is no record')
        if PALETTE in entries:
            palette = codebook.checked(_read_values(path, entries.pop(PALETTE)), f'{culprit}: its palette')
    except (ValueError, RecursionError) as error:
        raise UserError(f'{culprit}: its record is damaged ({error}); fetch or copy it again') from None
    entries = {name: entry for name, entry in entries.items() if not name.endswith(UNUSED)}
    kind = metadata.get('network') or next((k for name, k in _KINDS.items() if name in entries), None)
    return Checkpoint(path, entries, kind, metadata, palette)


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte or shift > 63:
            raise ValueError('cut short')
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7


def _fields(stream: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, wire value or content length) of a protobuf message; leaves skipped contents unread."""
    while stream.tell() < end:
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, wire, _varint(stream)
        elif wire == 2:
            length = _varint(stream)
            start = stream.tell()
            if start + length > end:
                raise ValueError('cut short')
            yield number, wire, length
            stream.seek(start + length)
        else:
            raise ValueError('not the expected layout')


def _index(stream: BinaryIO, size: int) -> dict[str, Entry]:
    """Tensors of ``Checkpoint { repeated Value { string tag = 1; Tensor { dims = 1; type = 2; content = 3 } = 2 } }``.

    A large tensor is written in several values of the same name.
    """
    entries: dict[str, Entry] = {}
    for number, wire, length in _fields(stream, size):
        if (number, wire) != (1, 2):
            raise ValueError('not the expected layout')
        tag, tensor = '', None
        for inner, inner_wire, inner_length in _fields(stream, stream.tell() + length):
            if inner_wire != 2:
                raise ValueError('not the expected layout')
            if inner == 1:
                tag = stream.read(inner_length).decode()
            elif inner == 2:
                tensor = _tensor(stream, stream.tell() + inner_length)
        if not tag or tensor is None:
            raise ValueError('not the expected layout')
        if tag in entries:
            entries[tag].pieces += tensor.pieces
        else:
            entries[tag] = tensor
    if not entries:
        raise ValueError('empty')
    for name, entry in entries.items():
        length = sum(length for _, length in entry.pieces)
        if entry.dtype == 'str':
            entry.shape = (length,)  # of its bytes, whatever the file says
            continue
        if entry.dtype not in _TYPES or len(entry.shape) > _MOST_SIDES or max(entry.shape, default=0) > _LONGEST_SIDE:
            raise ValueError(f'{name} has type {entry.dtype} and shape {entry.shape}')
        if length != math.prod(entry.shape) * np.dtype(_TYPES[entry.dtype]).itemsize:
            raise ValueError(f'{name} is cut short')
    return entries


def _tensor(stream: BinaryIO, end: int) -> Entry:
    dims, dtype, pieces = [], '', []
    for number, wire, value in _fields(stream, end):
        if number == 1 and wire == 0:
            dims.append(value)
        elif wire == 0:
            raise ValueError('not the expected layout')
        elif number == 1:
            stop = stream.tell() + value
            while stream.tell() < stop:
                dims.append(_varint(stream))
        elif number == 2:
            dtype = stream.read(value).decode()
        elif number == 3:
            pieces.append((stream.tell(), value))
    return Entry(dtype, tuple(dims), pieces)


def _read_values(path: Path, entry: Entry) -> np.ndarray:
    total = sum(length for _, length in entry.pieces)
    content = np.empty(total, np.uint8)
    filled = 0
    with open(path, 'rb') as stream:
        for offset, length in entry.pieces:
            stream.seek(offset)
            if stream.readinto(content[filled:filled + length].data) != length:
                raise UserError(f'{path}: cut short while it was read')
            filled += length
    if entry.dtype == 'str':
        return content
    return content.view('<' + _TYPES[entry.dtype] if entry.dtype != 'Bool' else '?').reshape(entry.shape)


def load_into(net: nn.Cell, checkpoint: Checkpoint) -> None:
    """Set every parameter of ``net``, one at a time, so that the weights are in memory once.

    Raises:
        UserError: a name that only one of the two has, or two shapes for one name.
    """
    import mindspore as ms
    from mindspore.common.initializer import initializer
    parameters = {p.name: p for p in net.get_parameters()}
    check(checkpoint, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        values = checkpoint.array(name)
        if getattr(parameter, 'has_init', False):
            parameter.set_data(initializer('zeros', parameter.shape, parameter.dtype))  # nothing is drawn at random
            parameter.init_data()
        parameter.set_data(ms.Tensor(values.astype(np.float32, copy=False)))


def check(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's tensors with what a network needs; raises as ``load_into``."""
    have = {name: entry.shape for name, entry in checkpoint.entries.items()}
    for name, shape in shapes.items():
        if name not in have:
            raise UserError(f'{checkpoint.path}: tensor {name} {shape} is missing')
        if have[name] != shape:
            raise UserError(f'{checkpoint.path}: tensor {name} has shape {have[name]}, the network needs {shape}')
    for name in have:
        if name not in shapes:
            raise UserError(f'{checkpoint.path}: tensor {name} {have[name]} belongs to no part of the network')


def write(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any],
          palette: np.ndarray | None = None) -> None:
    """Write a checkpoint crash-safe.

    Args:
        tensors: arrays, tensors or parameters by name.
        metadata: JSON values; ``network`` names the kind.
        palette: (V, 3).
    """
    with files.replacing(path) as temporary:
        save(temporary, tensors, metadata, palette)


def save(temporary: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any],
         palette: np.ndarray | None = None) -> None:
    """``write`` to a temporary file that somebody else renames."""
    import mindspore as ms
    values = [{'name': name, 'data': ms.Tensor(value) if isinstance(value, np.ndarray) else value}
              for name, value in tensors.items()]
    if palette is not None:
        values.append({'name': PALETTE, 'data': ms.Tensor(np.ascontiguousarray(palette, np.float32))})
    try:
        ms.save_checkpoint(values, str(temporary), append_dict={METADATA: json.dumps(dict(metadata), sort_keys=True)})
    except BaseException:
        temporary.with_suffix('.tmp').unlink(missing_ok=True)  # MindSpore writes there before it renames
        raise
