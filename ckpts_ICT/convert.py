"""Make a checkpoint that needs no flag afterwards: weights, architecture and, for stage 1, the palette in one file.

``python ckpts_ICT/convert.py IN OUT`` reads the original's PyTorch files, torchvision's VGG19, the published MindSpore
checkpoints and this project's own; which network IN holds is found from its content.
"""
from __future__ import annotations

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from Guided_Upsample.models import config as generators
from ict import checkpoint, files, options
from ict.checkpoint import Checkpoint, Entry
from ict.command import run
from ict.data import codebook
from ict.errors import UserError, require
from ict.options import positive
from Transformer.models import config as transformers

PALETTE_SOURCE = 'the public repository raywzy/ICT'
_WRAPPERS = ('model', 'generator', 'discriminator')
_DATA_PARALLEL = 'module.'
_PYTORCH_KINDS = {'tok_emb.weight': 'Transformer', 'encoder.1.weight': 'Generator',
                  'conv1.0.weight_orig': 'Discriminator', 'features.0.weight': 'VGG19'}
# What PyTorch's files hold besides: an unread buffer, a second name of the first layer, layers that are not used.
_SURPLUS = {'Transformer': r'.*\.attn\.mask', 'Discriminator': r'features\..*', 'VGG19': r'classifier\..*'}
_OPTIONS = {'Transformer': ('n_head', 'GELU_2', 'kmeans', 'top_k', 'temperature'), 'Generator': ('padding', 'kmeans'),
            'Discriminator': (), 'VGG19': ()}


@dataclass(frozen=True)
class Flags:
    """What the user tells about a checkpoint, None or '' where nothing, and how it is to be stored."""

    n_head: int | None = None
    GELU_2: bool | None = None
    kmeans: str = ''
    padding: str | None = None
    top_k: int | None = None
    temperature: float | None = None
    float16: bool = False


@dataclass(frozen=True)
class Converted(Checkpoint):
    """A PyTorch network under MindSpore's names, not yet in a file of its own."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]


# ---------------------------------------------------------------- PyTorch

def read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """float32 arrays by name; float32 ones stay in the file until they are used.

    Raises:
        UserError: PyTorch is missing or too old, or the file holds something else than tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f'{path}: a PyTorch file; to convert it (and for nothing else here) PyTorch is needed: '
                        f'pip install torch') from None
    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 1):
        raise UserError(f'{path}: this PyTorch is {torch.__version__}; 2.1 or newer is needed: pip install -U torch')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        what = f'holds a {found[1]} among its tensors, which could run code' if found else 'damaged'
        raise UserError(f'{path}: {what}; fetch it again, or save its state_dict alone') from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f'{path}: not a readable PyTorch file ({str(error).split(". ")[0]}); '
                        f'fetch or copy it again') from None
    arrays = {}
    for name, value in unwrapped(content, path).items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f'{path}: {name} is a {type(value).__name__}, not a tensor')
        arrays[name] = value.detach().to(torch.float32).numpy()
    return arrays


def unwrapped(content: Any, path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch file by name, without wrapping key and DataParallel's prefix."""
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: holds a {type(content).__name__}, not a dictionary of tensors')
    inner = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
    if len(inner) > 1:
        raise UserError(f'{path}: holds {" and ".join(inner)}; save each in a file of its own')
    tensors = content[inner[0]] if inner else content
    return {str(name).removeprefix(_DATA_PARALLEL): value for name, value in tensors.items()}


def from_pytorch(path: Path, arrays: Mapping[str, np.ndarray], flags: Flags) -> Converted:
    """The network under MindSpore's names, checked in every name and shape.

    Args:
        arrays: float32 by PyTorch's names.

    Raises:
        UserError: no known network, a tensor is missing, left over or of another shape (by PyTorch's name), or a flag
            contradicts the file.
    """
    kind = next((kind for name, kind in _PYTORCH_KINDS.items() if name in arrays), None)
    if kind is None:
        raise UserError(f'{path}: holds no network that this project knows; its first names are '
                        f'{", ".join(list(arrays)[:3]) or "none"}')
    surplus = re.compile(_SURPLUS.get(kind, '(?!)'))
    given = Checkpoint(path, {name: Entry('Float32', tuple(values.shape)) for name, values in arrays.items()
                              if not surplus.fullmatch(name)}, kind, {}, None)
    metadata: dict[str, Any] = {'network': kind}
    if kind == 'Generator':
        known = replace(given, metadata={'architecture': {'padding': flags.padding or 'reflect'}})
        generator = generators.GeneratorConfig.from_checkpoint(known, {'padding': flags.padding})
        metadata['architecture'] = generator.metadata()
        tensors = {name: arrays[name] for name in given.entries}
    elif kind == 'Discriminator':
        tensors = _folded(given, arrays)
    else:
        if kind == 'Transformer':
            embedding = {'tok_emb.embedding_table': given.entries['tok_emb.weight']}  # the name that is asked for
            shape = transformer_of(replace(given, entries=given.entries | embedding), flags)
            shape = shape if shape.GELU_2 else replace(shape, gelu='erf')
            metadata['architecture'] = shape.metadata()
            names = {name: (name.replace('embedding_table', 'weight').replace('gamma', 'weight')
                            .replace('beta', 'bias'), dims) for name, dims in shape.shapes().items()}
        else:
            names = vgg_names()
        checkpoint.check(given, dict(names.values()))
        tensors = {name: arrays[theirs] for name, (theirs, _) in names.items()}
    entries = {name: Entry('Float32', tuple(values.shape)) for name, values in tensors.items()}
    return Converted(path, entries, kind, metadata, None, tensors)


def _folded(given: Checkpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The discriminator's effective weights: spectral norm divides each by ``u . (W v)``."""
    stems = {name: f'{name.split(".")[0]}.0.weight' for name in generators.DISCRIMINATOR}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, dims in generators.DISCRIMINATOR.items():
        shapes |= {f'{stems[name]}_orig': dims, f'{stems[name]}_u': dims[:1],
                   f'{stems[name]}_v': (int(np.prod(dims[1:])),)}
    checkpoint.check(given, shapes)
    tensors = {}
    for name, stem in stems.items():
        weight, u, v = (arrays[f'{stem}_{part}'].astype(np.float64) for part in ('orig', 'u', 'v'))
        tensors[name] = (weight / (u @ (weight.reshape(len(u), -1) @ v))).astype(np.float32)
    return tensors


def vgg_names() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Parameter -> (torchvision's name, shape); there every layer, ReLUs and poolings too, has a number."""
    from Guided_Upsample.models.vgg import STAGES
    names: dict[str, tuple[str, tuple[int, ...]]] = {}
    number, before = 0, 3
    for stage, (channels, count) in enumerate(STAGES, 1):
        for i in range(1, count + 1):
            ours = f'relu{stage}_{i}.{int(i == 1 and stage > 1)}'  # a pooling comes first in these
            names[f'{ours}.weight'] = f'features.{number}.weight', (channels, before, 3, 3)
            names[f'{ours}.bias'] = f'features.{number}.bias', (channels,)
            number, before = number + 2, channels
        number += 1
    return names


# ---------------------------------------------------------------- any checkpoint

class _Weights(Mapping[str, np.ndarray]):
    """A checkpoint's arrays as they are to be stored, each made when it is asked for.

    What is stored in float16 stays so.
    """

    def __init__(self, source: Checkpoint, float16: bool) -> None:
        self.source, self.float16 = source, float16

    def __len__(self) -> int:
        return len(self.source.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.entries)

    def __getitem__(self, name: str) -> np.ndarray:
        values = self.source.array(name)
        if not self.float16 and self.source.entries[name].dtype != 'Float16':
            return np.ascontiguousarray(values, np.float32)
        with np.errstate(over='ignore'):
            small = np.ascontiguousarray(values, np.float16)
        require(bool(np.isfinite(small).all()), f'--float16: {self.source.path}: tensor {name} has values that float16 '
                                                f'cannot hold; leave the flag out')
        return small


def transformer_of(source: Checkpoint, flags: Flags) -> transformers.GPTConfig:
    """The architecture; a UserError where neither metadata, nor a published model's shapes, nor a flag tells n_head."""
    shape = transformers.GPTConfig.from_checkpoint(source, {'n_head': flags.n_head, 'GELU_2': flags.GELU_2})
    require(bool(source.metadata.get('architecture')) or _is_published(shape) or flags.n_head is not None,
            f"--n_head: {source.path} has the shapes of none of the published models and doesn't say it; give the "
            f'--n_head it was trained with, and --GELU_2 if that was')
    return shape


def _is_published(shape: transformers.GPTConfig) -> bool:
    return (shape.n_layer, shape.n_embd, shape.prior_size) in transformers.PUBLISHED


def stamp(source: Checkpoint, flags: Flags) -> tuple[dict[str, Any], np.ndarray | None]:
    """Metadata and palette that the checkpoint is to carry; what it carries already is kept.

    Raises:
        UserError: it is no whole network, a flag contradicts it or has no effect on it, or the palette is missing.
    """
    kind = source.kind
    if kind not in _OPTIONS:
        what = "a training's state; convert the weights beside it" if kind == 'state' else \
            'no network that this project knows'
        raise UserError(f'{source.path}: holds {what}')
    for name, value in vars(flags).items():
        require(name == 'float16' or value in (None, '') or name in _OPTIONS[kind],
                f'--{name}: has no effect on {source.path}, which holds a {kind}; leave the option out')
    metadata = {**source.metadata, 'network': kind}
    palette = source.palette
    if kind == 'Transformer':
        shape = transformer_of(source, flags)
        checkpoint.check(source, shape.shapes())
        metadata['architecture'] = shape.metadata()
        palette = checkpoint.transformer_palette(source, flags.kmeans, shape.vocab_size)
        require(source.palette is not None or not _is_published(shape)
                or codebook.digest(palette) != codebook.digest(codebook.load(codebook.REPOSITORY_PALETTE)),
                f"--kmeans {flags.kmeans}: this repository's own palette; {source.path} has the shapes of a published "
                f"model, whose colours are others: give Transformer/kmeans_centers.npy of {PALETTE_SOURCE}")
        given = {name: getattr(flags, name) for name in ('top_k', 'temperature')}
        sampling = metadata.get('sampling', {}) | {name: value for name, value in given.items() if value is not None}
        if sampling:
            metadata['sampling'] = sampling
    elif kind == 'Generator':
        found = generators.GeneratorConfig.from_checkpoint(source, {'padding': flags.padding}).metadata()
        if flags.padding is None and 'padding' not in source.metadata.get('architecture', {}):
            del found['padding']  # the file doesn't tell, and Guided_Upsample/infer.py --padding still may
        metadata['architecture'] = found
        palette = checkpoint.palette_of(source, flags.kmeans)
    elif kind == 'Discriminator':
        checkpoint.check(source, generators.DISCRIMINATOR)
    else:
        checkpoint.check(source, {name: dims for name, (_, dims) in vgg_names().items()})
    return metadata, palette


def convert(source: Path, target: Path, flags: Flags) -> str:
    """Write ``target``, which may be ``source``, crash-safe; returns a line that says what it is."""
    try:
        with open(source, 'rb') as stream:
            from_elsewhere = checkpoint.is_pytorch(stream)
    except OSError as error:
        raise UserError(f'IN {source}: not readable ({error.strerror})') from None
    if from_elsewhere:
        opened: Checkpoint = from_pytorch(source, read_pytorch(source), flags)
    else:
        opened = checkpoint.read(source, 'IN')
    metadata, palette = stamp(opened, flags)
    weights = _Weights(opened, flags.float16)
    try:
        checkpoint.write(target, weights, metadata, palette)
    except OSError as error:
        raise UserError(f'{target}: cannot be written ({error.strerror}); what was there is whole') from None
    facts = metadata.get('architecture', {}) | metadata.get('sampling', {})
    said = [metadata['network'], *(f'{name} {value}' for name, value in facts.items()),
            *([] if palette is None else [f'palette of {len(palette)} colours'])]
    return f'{target}: {", ".join(said)}, {target.stat().st_size / 1e6:.1f} MB'


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='ckpts_ICT/convert.py', description='Convert a checkpoint to one that needs no flags.')
    add = parser.add_argument
    add('IN', help="PyTorch's .pth (transformer, generator, discriminator, torchvision's VGG19), or a MindSpore .ckpt")
    add('OUT', help='MindSpore checkpoint to write; may be IN')
    add('--n_head', type=int, default=None, help="transformer: needed unless IN records it or has a published model's "
                                                 'shapes')
    options.add_flag(parser, '--GELU_2', 'transformer: likewise', default=None)
    add('--kmeans', default='', help="palette that the transformer was trained with; needed unless IN carries it")
    add('--padding', choices=generators.PADDINGS, default=None,
        help="generator: what it was trained with (PyTorch's: reflect); not recorded when neither IN nor this tells")
    options.add_flag(parser, '--float16', 'store the weights in half the space; they are computed with in float32')
    add('--top_k', type=int, default=None, help="transformer: what Transformer/infer.py takes when it isn't told")
    add('--temperature', type=float, default=None, help='transformer: likewise')
    options.add_flag(parser, '--overwrite', 'replace an OUT that is there already')
    args = parser.parse_args(argv)
    positive(args, 'n_head', 'top_k')
    require(args.temperature is None or args.temperature > 0, f'--temperature {args.temperature}: must be above 0')
    source, target = Path(args.IN), Path(args.OUT)
    require(os.path.isfile(source),
            f'IN {source}: {"is a folder; name a file" if os.path.isdir(source) else "no such file"}')
    require(target.suffix == '.ckpt', f'OUT {target}: the name must end in .ckpt')
    require(args.overwrite or not os.path.exists(target) or target.samefile(source),
            f'OUT {target}: is there already; use --overwrite or another name')
    files.output_file(target, 'OUT')
    print(convert(source, target, options.chosen(Flags, args)))
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
