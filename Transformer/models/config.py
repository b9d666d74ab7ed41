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
LAYER_NORM_EPSILON = 1e-5
# (n_layer, n_embd, prior_size) -> (name, n_head, GELU_2) of the published models.
PUBLISHED = {(35, 1024, 32): ('ImageNet', 8, True), (30, 512, 48): ('FFHQ', 8, True),
             (35, 512, 32): ('Places2_Nature', 8, True)}


@dataclass(frozen=True)
class GPTConfig:
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

    @classmethod
    def from_checkpoint(cls, ckpt: Checkpoint, flags: dict[str, Any]) -> GPTConfig:
        """The architecture that a checkpoint's shapes and metadata tell.

        Args:
            flags: what the user passed (others None): n_layer, n_embd, n_head, prior_size, GELU_2.

        Raises:
            UserError: a flag contradicts the checkpoint, or its shapes fit no transformer.
        """
        # What the shapes tell
        n_positions, n_embd = ckpt.shape('pos_emb')[-2:]
        prior_size = math.isqrt(n_positions)
        blocks = {int(m[1]) for name in ckpt.entries if (m := re.match(r'blocks\.(\d+)\.', name))}
        if prior_size ** 2 != n_positions or blocks != set(range(len(blocks))) or not blocks:
            raise UserError(f'{ckpt.path}: {n_positions} positions and blocks {sorted(blocks)} fit no transformer')
        values: dict[str, Any] = {'n_layer': len(blocks), 'n_embd': n_embd, 'prior_size': prior_size,
                                  'vocab_size': ckpt.shape('tok_emb.embedding_table')[0]}

        # What they don't: from the metadata, or the published model of these shapes
        recorded = ckpt.metadata.get('architecture', {})
        if recorded:
            values |= {key: recorded[key] for key in ('n_head', 'GELU_2', 'gelu') if key in recorded}
        elif row := PUBLISHED.get((len(blocks), n_embd, prior_size)):
            name, values['n_head'], values['GELU_2'] = row
            if parallel.is_writer() and None in (flags.get('n_head'), flags.get('GELU_2')):
                log(f'{ckpt.path.name}: has the shapes of the published {name} model: '
                    f'n_head {row[1]}, GELU_2 {row[2]}')

        values = ckpt.merged(values, flags)
        values.setdefault('n_head', DEFAULT_HEADS)
        values.setdefault('GELU_2', False)
        if n_embd % values['n_head']:
            raise UserError(f'--n_head {values["n_head"]}: {ckpt.path} has n_embd {n_embd}, which it does not divide')
        return cls(**values)
