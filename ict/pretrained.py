"""Pairs of checkpoints by name."""
from __future__ import annotations

from pathlib import Path

from ict.errors import UserError, require

FOLDER = Path(__file__).resolve().parents[1] / 'ckpts_ICT'
DEMO = 'demo'
PAIRS = (DEMO, 'ImageNet', 'FFHQ', 'Places2_Nature')


def paths(name: str) -> tuple[Path, Path]:
    """Where the transformer and the generator of a pair belong, whether or not they are there."""
    if name == DEMO:
        return FOLDER / DEMO / 'Transformer.ckpt', FOLDER / DEMO / 'InpaintingModel_gen.ckpt'
    return (FOLDER / 'origin' / 'Transformer' / f'{name}.ckpt',
            FOLDER / 'origin' / 'Upsample' / name / 'InpaintingModel_gen.ckpt')


def pair(name: str) -> tuple[Path, Path]:
    """The transformer and the generator of a pair; a UserError where one is missing says how to fetch it."""
    require(name in PAIRS, f'--model {name}: is none of {", ".join(PAIRS)}')
    for path in paths(name):
        if not path.is_file():
            remedy = 'restore it with git checkout' if name == DEMO else \
                f'fetch it: python ckpts_ICT/download.py {name}'
            raise UserError(f'--model {name}: {path} is missing; {remedy}')
    return paths(name)


def available() -> list[str]:
    """Names of the pairs that are there."""
    return [name for name in PAIRS if all(path.is_file() for path in paths(name))]
