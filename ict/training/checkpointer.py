"""Checkpoints of a training: weights, and the state that an exact resume needs, committed together."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ict import checkpoint, files, lock
from ict.device import parallel
from ict.errors import UserError, require
from ict.log import log

if TYPE_CHECKING:
    from mindspore import nn

# Ignored when the settings of a resume are compared: options without effect on the result, options that are compared
# in another form (the total batch of all ranks, the palette's digest), and paths, since files may have moved (the
# number of pictures is compared).
NOT_COMPARED = ('ckpt_path', 'save_path', 'device_id', 'device_target', 'num_workers', 'log_every', 'save_every',
               'val_path', 'val_mask', 'val_every', 'kmeans', 'distributed', 'batch_size', 'recompute', 'init')


@dataclass
class Progress:
    """How far a training is; saved in its state.

    Attributes:
        step: optimizer steps done.
        best, best_by: the best score so far (lower is better), and what is scored, see ``LoopConfig``.
        sums, count: running sums of this epoch's metrics, whose means the console shows.
        log_sums, log_count: the same for the steps since the last row of the log.
        window_sum, window_count: the same for the score of the published rule for 'best', since the last save.
        unreadable: a line for each file that was skipped.
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

    def add_step(self, metrics: dict[str, float], score: float, steps_per_epoch: int) -> None:
        """Count an optimizer step with its metrics and its score (lower is better)."""
        if self.step % steps_per_epoch == 0:
            self.sums, self.count = {}, 0
        self.step += 1
        self.count += 1
        self.log_count += 1
        self.window_count += 1
        self.window_sum += score
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.log_sums[name] = self.log_sums.get(name, 0.0) + value

    def epoch_means(self) -> dict[str, float]:
        """Means of this epoch's metrics so far."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take_log_means(self) -> dict[str, float]:
        """Means of the metrics since they were last taken."""
        means = {name: total / self.log_count for name, total in self.log_sums.items()}
        self.log_sums, self.log_count = {}, 0
        return means

    def take_window_mean(self) -> float:
        """Mean score since it was last taken."""
        mean = self.window_sum / self.window_count
        self.window_sum, self.window_count = 0.0, 0
        return mean


@dataclass(frozen=True)
class StartingPoint:
    """What a training begins with.

    Attributes:
        weights: the checkpoint of each network, by the name of its files; a network without one starts anew.
        state: the state that an exact resume needs; None: weights only.
    """

    weights: dict[str, checkpoint.Checkpoint] = field(default_factory=dict)
    state: checkpoint.Checkpoint | None = None

    @classmethod
    def from_files(cls, paths: dict[str, Path], kinds: dict[str, str], with_state: bool = True) -> StartingPoint:
        """The checkpoints of networks of these kinds, and the training state beside the first; both by name.

        Raises:
            UserError: a file is missing or holds another network, or the state belongs to other weights.
        """
        state = _find_state(next(iter(paths.values()))) if with_state else None
        weights = {}
        for name, path in paths.items():
            ckpt = checkpoint.read(path, '--ckpt_path') if state is None or path.is_file() else _weights_in(state, name)
            weights[name] = ckpt.expect(kinds[name], '--ckpt_path')
        return cls(weights, state)

    @property
    def step(self) -> int:
        """Optimizer steps already done."""
        return progress_of(self.state).step if self.state is not None else 0


@dataclass
class TrainedNetwork:
    """A network with its optimizer, and the metadata of its checkpoints."""

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

    One save is one commit point: all files are written under temporary names first, and the state, which holds the
    weights too, is renamed before the exported weights. A resume reads the state alone. A kill between the renames of
    two ``best`` files leaves files of two steps; their metadata tells so, and the pair is refused.

    Args:
        networks: by the name of their files; the first name is also that of the state and the log.
        settings: what a resume is compared with.
        centres: the palette, (V, 3) float32 in [-1, 1].
        extra: further parameters of the training, by name.
    """

    def __init__(self, folder: Path, networks: dict[str, TrainedNetwork], settings: dict[str, Any],
                 centres: np.ndarray, extra: dict[str, Any]) -> None:
        self.folder, self.networks, self.settings, self.centres, self.extra = folder, networks, settings, centres, extra
        self.name = next(iter(networks))
        self.state = folder / state_name(self.name)

    def require_same_on_all_ranks(self, digests: Mapping[str, str | None], rhythm: Sequence[int],
                                  point: StartingPoint) -> None:
        """Raises a UserError where a rank has other files, options or weights; all ranks must call this.

        Args:
            digests: of listings, by the option that named them.
            rhythm: numbers of steps: the last one, and those between saves and validations.
        """
        for option, digest in digests.items():
            parallel.same_on_all_ranks(option, digest)
        parallel.same_on_all_ranks('options or --ckpt_path', [
            self.settings, list(rhythm), point.state.metadata if point.state is not None else None])

    def start(self, point: StartingPoint, last_step: int) -> Progress:
        """Set weights and moments to those of a starting point, and say so in a line."""
        if point.state is not None:
            before = point.state.metadata['settings']
            changed = ', '.join(f'{key} {before[key]} -> {self.settings[key]}' for key in
                                sorted(before.keys() & self.settings.keys()) if before[key] != self.settings[key])
            if changed:
                log(f'resuming with other settings, so not an exact continuation: {changed}')
            progress = self.restore(point.state)
            log(f'resuming at step {progress.step} of {last_step}')
            return progress
        for name, weights in point.weights.items():
            checkpoint.load_into(self.networks[name].net, weights)
        if point.weights:
            first = next(iter(point.weights.values()))
            anew = ''.join(f'; the {network.metadata["network"].lower()} starts anew'
                           for name, network in self.networks.items() if name not in point.weights)
            log(f'{first.path}: weights only, from step 0 (no training state beside it){anew}')
        return Progress()

    def save(self, progress: Progress) -> None:
        """The latest weights and state."""
        metadata = {'network': 'state', 'progress': vars(progress), 'settings': self.settings,
                    'networks': {name: network.metadata for name, network in self.networks.items()}}
        self._write('latest', progress, [(self.state, self._parameters(), metadata, self.centres)])
        progress.previous_save = progress.step

    def _parameters(self) -> dict[str, Any]:
        """All that the state holds."""
        parameters = {f'extra/{name}': p for name, p in self.extra.items()}
        for name, network in self.networks.items():
            parameters |= {f'{name}/weights/{k}': v for k, v in network.weights().items()}
            parameters |= {f'{name}/moments/{k}': v for k, v in network.moments().items()}
        return parameters

    def save_best(self, progress: Progress) -> None:
        """The current weights as the best."""
        self._write('best', progress, [])

    def has_best(self) -> bool:
        """Whether there are best weights."""
        return all((self.folder / f'{name}_best.ckpt').is_file() for name in self.networks)

    def _write(self, which: str, progress: Progress, first: list) -> None:
        jobs = first + [(self.folder / f'{name}_{which}.ckpt', network.weights(),
                         {**network.metadata, 'step': progress.step, 'settings': self.settings}, self.centres)
                        for name, network in self.networks.items()]
        temporaries = []
        try:
            for i, (path, tensors, metadata, centres) in enumerate(jobs):
                temporary = path.with_name(f'{files.TEMPORARY}{os.getpid()}-{i}.ckpt')
                temporaries.append(temporary)
                checkpoint.save(temporary, tensors, metadata, centres)
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
        """Name of a weight that is not finite; '' when all are finite."""
        return next((name for network in self.networks.values() for name, weight in network.weights().items()
                     if not np.isfinite(weight.asnumpy()).all()), '')

    def restore(self, state: checkpoint.Checkpoint) -> Progress:
        """Set all parameters from a state; a loss scale only where both have one (--amp_level may change)."""
        import mindspore as ms
        own = self._parameters()
        only_one = {name for name in own.keys() ^ state.entries.keys() if name.startswith('extra/')}
        parameters = {name: p for name, p in own.items() if name not in only_one}
        entries = {name: entry for name, entry in state.entries.items() if name not in only_one}
        checkpoint.check(replace(state, entries=entries), {name: tuple(p.shape) for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.set_data(ms.Tensor(state.array(name), parameter.dtype))
        progress = progress_of(state)
        progress.previous_save = progress.step
        return progress


def state_name(network: str) -> str:
    """File name of the training state beside ``<network>_latest.ckpt``."""
    return f'{network}_latest_state.ckpt'


def progress_of(state: checkpoint.Checkpoint) -> Progress:
    """How far a state's training was; a UserError where it doesn't say it."""
    try:
        progress = Progress(**state.metadata['progress'])
        if {type(progress.step), type(progress.previous_save)} == {int}:
            return progress
    except (KeyError, TypeError):
        pass
    raise UserError(f'{state.path}: damaged, it does not say at which step it was saved; remove it to go on from the '
                    f'weights alone, with another --save_path')


def _find_state(weights: Path) -> checkpoint.Checkpoint | None:
    """The training state beside a weights file; a UserError where it belongs to other weights."""
    path = weights.parent / f'{weights.stem}_state.ckpt'
    if not os.path.isfile(path):
        return None
    state = checkpoint.read(path, '--ckpt_path').expect('state', '--ckpt_path')
    progress = progress_of(state)
    if weights.is_file():
        step = checkpoint.read(weights).metadata.get('step')
        if step not in (progress.step, progress.previous_save):
            raise UserError(f'{path}: is of step {progress.step}, {weights.name} of step {step}; '
                            f'remove the state to go on from the weights alone, with another --save_path, or bring the '
                            f'weights back')
    return state


def _weights_in(state: checkpoint.Checkpoint, network: str) -> checkpoint.Checkpoint:
    """A network's weights as the state has them, for when a kill left no file of their own."""
    prefix = f'{network}/weights/'
    entries = {name.removeprefix(prefix): entry for name, entry in state.entries.items() if name.startswith(prefix)}
    metadata = state.metadata.get('networks', {}).get(network, {})
    return checkpoint.Checkpoint(state.path, entries, metadata.get('network'), metadata, state.palette)


@contextmanager
def taken(folder: Path, networks: Sequence[str], state: checkpoint.Checkpoint | None,
          resume_from: Path) -> Iterator[None]:
    """Keep an output folder for one training, see ``lock.locked``; what an interrupted run left unfinished is removed.

    Args:
        networks: what is trained, by the names of their files.

    Raises:
        UserError: it holds another training than the one that ``state`` continues (names ``resume_from``), or weights
            without a state, which would be replaced or, with a plain name, be taken for the trained ones.
    """
    path = folder / state_name(networks[0])
    with lock.locked(folder, '--save_path'):
        if os.path.isfile(path):
            there = checkpoint.read(path, '--save_path').expect('state', '--save_path')
            if state is None or not os.path.samefile(state.path, path):
                raise UserError(f'--save_path {folder}: holds a training that has taken {progress_of(there).step} '
                                f'steps; go on with --ckpt_path {resume_from}, or name another --save_path')
            if there.metadata != state.metadata:
                raise UserError(f'--ckpt_path {path}: another run has just saved it anew; start this one again')
        else:
            for weights in (folder / f'{name}{ending}.ckpt' for name in networks for ending in checkpoint.ENDINGS):
                require(not os.path.isfile(weights), f'--save_path {folder}: holds {weights.name}, and no training '
                                                     f'that it is of; name another --save_path')
        if parallel.is_writer():
            files.sweep(folder, below=False)
        yield


def compared_settings(options: dict[str, Any], ignored: tuple[str, ...], last_step: int) -> dict[str, Any]:
    """The settings that the result of a training depends on, as JSON values.

    Args:
        options: all options by name.
        ignored: those that are left out.
        last_step: compared for a cosine schedule only, which ends there.
    """
    settings = {name: value for name, value in sorted(options.items()) if name not in ignored}
    return json.loads(json.dumps(settings | ({'last_step': last_step} if options['lr_schedule'] == 'cosine' else {})))
