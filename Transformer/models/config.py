"""Which transformer a checkpoint holds; needs no MindSpore, so that files are checked first."""
from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from ict.checkpoint import Checkpoint
from ict.device import parallel
from ict.errors import UserError
from ict.log import log
from ict.training.losses import Loss

# A loss is a function of that name in loss.py and an entry here.
LOSSES = (Loss('nll'),)
DEFAULT_HEADS = 8
# (n_layer, n_embd, prior_size) -> (name, n_head, GELU_2) of the published models.
PUBLISHED = {(35, 1024, 32): ('ImageNet', 8, True), (30, 512, 48): ('FFHQ', 8, True),
             (35, 512, 32): ('Places2_Nature', 8, True)}


@dataclass(frozen=True)
class Architecture:
    """What ``GPT`` is built from."""

    n_layer: int
    n_embd: int
    n_head: int
    prior_size: int
    vocab_size: int
    GELU_2: bool
    gelu: str = 'tanh'

    def metadata(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        c, v = self.n_embd, self.vocab_size
        shapes: dict[str, tuple[int, ...]] = {
            'pos_emb': (1, self.prior_size ** 2, c), 'tok_emb.embedding_table': (v, c), 'head.weight': (v, c),
            'ln_f.gamma': (c,), 'ln_f.beta': (c,)}
        for i in range(self.n_layer):
            block = f'blocks.{i}.'
            for norm in ('ln1', 'ln2'):
                shapes |= {f'{block}{norm}.gamma': (c,), f'{block}{norm}.beta': (c,)}
            for part in ('key', 'query', 'value', 'proj'):
                shapes |= {f'{block}attn.{part}.weight': (c, c), f'{block}attn.{part}.bias': (c,)}
            shapes |= {f'{block}mlp.0.weight': (4 * c, c), f'{block}mlp.0.bias': (4 * c,),
                       f'{block}mlp.2.weight': (c, 4 * c), f'{block}mlp.2.bias': (c,)}
        return shapes


def of(checkpoint: Checkpoint, given: dict[str, Any]) -> Architecture:
    """The architecture that a checkpoint's shapes and record tell.

    Args:
        given: flags that the user passed (others None): n_layer, n_embd, n_head, prior_size, GELU_2.

    Raises:
        UserError: a flag contradicts the checkpoint, or its shapes fit no transformer.
    """
    positions, n_embd = checkpoint.shape('pos_emb')[-2:]
    prior_size = math.isqrt(positions)
    blocks = {int(m[1]) for name in checkpoint.entries if (m := re.match(r'blocks\.(\d+)\.', name))}
    if prior_size ** 2 != positions or blocks != set(range(len(blocks))) or not blocks:
        raise UserError(f'{checkpoint.path}: {positions} positions and blocks {sorted(blocks)} fit no transformer')
    found: dict[str, Any] = {'n_layer': len(blocks), 'n_embd': n_embd, 'prior_size': prior_size,
                             'vocab_size': checkpoint.shape('tok_emb.embedding_table')[0]}
    known = checkpoint.metadata.get('architecture', {})
    if known:
        found |= {key: known[key] for key in ('n_head', 'GELU_2', 'gelu') if key in known}
    elif row := PUBLISHED.get((len(blocks), n_embd, prior_size)):
        name, found['n_head'], found['GELU_2'] = row
        if parallel.is_writer() and None in (given.get('n_head'), given.get('GELU_2')):
            log(f'{checkpoint.path.name}: has the shapes of the published {name} model: '
                 f'n_head {row[1]}, GELU_2 {row[2]}')
    for key, value in given.items():
        if value is None:
            continue
        if key in found and found[key] != value:
            raise UserError(f'--{key} {value} contradicts {checkpoint.path}, which has {key} {found[key]}; '
                            f'leave the flag out')
        found[key] = value
    found.setdefault('n_head', DEFAULT_HEADS)
    found.setdefault('GELU_2', False)
    if n_embd % found['n_head']:
        raise UserError(f'--n_head {found["n_head"]}: {checkpoint.path} has n_embd {n_embd}, which it does not divide')
    return Architecture(**found)
