"""What a training keeps: weights, and the state that an exact resume needs, in one commit point."""
from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ict import checkpoint, files
from ict.errors import UserError
from ict.log import log

if TYPE_CHECKING:
    from mindspore import nn

# Options that a training's course doesn't depend on, depends on otherwise (the batch through the total of all ranks,
# the palette through its colours), or that name files, which may have moved (the pictures' number is compared).
NOT_COMPARED = ('ckpt_path', 'save_path', 'device_id', 'device_target', 'num_workers', 'log_every', 'save_every',
               'val_path', 'val_mask', 'val_every', 'kmeans', 'distributed', 'batch_size', 'recompute', 'init')


@dataclass
class Progress:
    """Where a training is; goes into its state.

    Attributes:
        step: optimizer steps done.
        best: the best score so far (lower is better); best_by: what is scored, see ``Plan``.
        sums, count: of the running means of this epoch, which the console shows.
        log_sums, log_count: of the steps since the last row of the log.
        window_sum, window_count: of the published rule for 'best', since the last save.
        unreadable: lines of pictures that were skipped.
    """

    step: int = 0
    previous_save: int = 0
    best: float = math.inf
    best_by: str = ''
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    log_sums: dict[str, float] = field(default_factory=dict)
    log_count: int = 0
    window_sum: float = 0.0
    window_count: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass
class TrainedNetwork:
    """A trained network: its parameters, its optimizer's, and what its checkpoints record."""

    net: nn.Cell
    optimizer: nn.Optimizer
    metadata: dict[str, Any]

    def weights(self) -> dict[str, Any]:
        return {p.name: p for p in self.net.get_parameters()}

    def moments(self) -> dict[str, Any]:
        own = {id(p) for p in self.net.get_parameters()}
        return {p.name.rpartition(':')[2]: p for p in self.optimizer.get_parameters() if id(p) not in own}


class Checkpointer:
    """Writes ``latest`` and ``best`` checkpoints and the state that an exact resume needs.

    One save is one commit point: everything is written beside first, and the state, which holds the weights too, is
    renamed before the exported weights. A resume reads the state alone. A kill between the renames of two ``best``
    files leaves a pair of two steps, which their records tell and which is refused.
    """

    def __init__(self, folder: Path, networks: dict[str, TrainedNetwork], settings: dict[str, Any],
                 colours: np.ndarray | None, extra: dict[str, Any] | None = None) -> None:
        self.folder, self.networks, self.settings, self.colours = folder, networks, settings, colours
        self.extra = extra or {}  # further parameters of the training, by name
        self.name = next(iter(networks))  # of its files
        self.state = folder / state_name(self.name)

    def save(self, progress: Progress) -> None:
        """The latest weights and state."""
        tensors = {f'extra/{name}': p for name, p in self.extra.items()}
        for name, network in self.networks.items():
            tensors |= {f'{name}/weights/{k}': v for k, v in network.weights().items()}
            tensors |= {f'{name}/moments/{k}': v for k, v in network.moments().items()}
        record = {'network': 'state', 'progress': vars(progress), 'settings': self.settings,
                  'networks': {name: network.metadata for name, network in self.networks.items()}}
        self._write('latest', progress, [(self.state, tensors, record, None)])
        progress.previous_save = progress.step

    def save_best(self, progress: Progress) -> None:
        """The weights as they are now, as the best."""
        self._write('best', progress, [])

    def _write(self, which: str, progress: Progress, first: list) -> None:
        jobs = first + [(self.folder / f'{name}_{which}.ckpt', network.weights(),
                         {**network.metadata, 'step': progress.step, 'settings': self.settings}, self.colours)
                        for name, network in self.networks.items()]
        temporaries = []
        try:
            for i, (path, tensors, record, colours) in enumerate(jobs):
                temporary = path.with_name(f'{files.TEMPORARY}{os.getpid()}-{i}.ckpt')
                temporaries.append(temporary)
                checkpoint.save(temporary, tensors, record, colours)
            for temporary in temporaries:
                files.flush(temporary)
            for temporary, (path, *_) in zip(temporaries, jobs, strict=True):
                os.replace(temporary, path)
        except OSError as error:
            raise UserError(f'{self.folder}: cannot save ({error.strerror}); the checkpoints there are whole, the '
                            f'latest of step {progress.previous_save}') from None
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)

    def broken(self) -> str:
        """Name of a weight that is not finite, '' when all are."""
        for network in self.networks.values():
            for name, weight in network.weights().items():
                if not np.isfinite(weight.asnumpy()).all():
                    return name
        return ''

    def restore(self, state: checkpoint.Checkpoint) -> Progress:
        """Set everything from a state; a loss scale only where both have one (--amp_level may change)."""
        import mindspore as ms
        scale = {f'extra/{name}': p for name, p in self.extra.items()}
        targets = {name: p for name, p in scale.items() if name in state.entries}
        state = replace(state, entries={name: entry for name, entry in state.entries.items()
                                        if name in targets or not name.startswith('extra/')})
        for name, network in self.networks.items():
            targets |= {f'{name}/weights/{k}': v for k, v in network.weights().items()}
            targets |= {f'{name}/moments/{k}': v for k, v in network.moments().items()}
        checkpoint.check(state, {name: tuple(p.shape) for name, p in targets.items()})
        for name, parameter in targets.items():
            parameter.set_data(ms.Tensor(state.array(name), parameter.dtype))
        progress = Progress(**state.metadata['progress'])
        progress.previous_save = progress.step
        return progress


def state_name(network: str) -> str:
    """File name of the training state beside ``<network>_latest.ckpt``."""
    return f'{network}_latest_state.ckpt'


def find_state(weights: Path) -> checkpoint.Checkpoint | None:
    """The training state that belongs to a weights file, or None.

    Raises:
        UserError: the state beside it belongs to other weights.
    """
    path = weights.parent / f'{weights.stem}_state.ckpt'
    if not os.path.isfile(path):
        return None
    state = checkpoint.read(path, '--ckpt_path').expect('state', '--ckpt_path')
    progress = state.metadata['progress']
    if weights.is_file():
        step = checkpoint.read(weights).metadata.get('step')
        if step not in (progress['step'], progress['previous_save']):
            raise UserError(f'{path}: is of step {progress["step"]}, {weights.name} of step {step}; '
                            f'remove the state to go on from the weights alone, or bring the weights back')
    return state


def require_free(folder: Path, network: str, state: checkpoint.Checkpoint | None, resume_from: Path) -> None:
    """A UserError where a training would write over another one than it continues; names ``resume_from``."""
    there = folder / state_name(network)
    if not os.path.isfile(there) or (state is not None and os.path.samefile(state.path, there)):
        return
    step = checkpoint.read(there, '--save_path').expect('state', '--save_path').metadata['progress']['step']
    raise UserError(f'--save_path {folder}: holds a training that has taken {step} steps; go on with --ckpt_path '
                    f'{resume_from}, or name another --save_path')


def weights_in(state: checkpoint.Checkpoint, network: str) -> checkpoint.Checkpoint:
    """A network's weights as its state has them, for when a kill left no file of their own."""
    start = f'{network}/weights/'
    entries = {name.removeprefix(start): entry for name, entry in state.entries.items() if name.startswith(start)}
    record = state.metadata.get('networks', {}).get(network, {})
    return checkpoint.Checkpoint(state.path, entries, record.get('network'), record, None)


def log_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A line when a resumed training has other settings, which makes it no exact continuation."""
    changed = [f'{key} {before[key]} -> {now[key]}' for key in sorted(before.keys() & now.keys())
               if before[key] != now[key]]  # a setting that only one of them knows is no change of it
    if changed:
        log('resuming with other settings, so not an exact continuation: ' + ', '.join(changed))


def compared_settings(args: Any, without: tuple[str, ...], last_step: int) -> dict[str, Any]:
    """The options that a training's course depends on, as JSON values; on its end only a cosine depends."""
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in without}
    return json.loads(json.dumps(settings | ({'last_step': last_step} if args.lr_schedule == 'cosine' else {})))
