"""What a training step does with gradients: reduction over ranks, loss scale, clipping, decoupled decay, update."""
from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import amp, communication, nn, ops

_LEAST_BETA = 1e-20  # nn.Adam refuses 0.0, which this is in float32 arithmetic


def adam(net: nn.Cell, rate: float, beta1: float, beta2: float, name: str = '') -> nn.Adam:
    """Adam as published, everything else off.

    Args:
        name: put before ``global_step`` and the like, with a colon; in one compiled function all names must differ.
    """
    optimizer = nn.Adam(net.trainable_params(), learning_rate=rate, beta1=max(beta1, _LEAST_BETA),
                        beta2=max(beta2, _LEAST_BETA), eps=1e-8, use_nesterov=False, weight_decay=0.0, loss_scale=1.0)
    if name:
        for count in (optimizer.global_step, optimizer.learning_rate, optimizer.beta1_power, optimizer.beta2_power):
            count.name = f'{name}:{count.name}'
    return optimizer


class MeanOverRanks(nn.Cell):
    """A scalar's mean over the ranks, without a gradient; itself where there is only this process.

    Losses that are divided by a batch's mask use it, so that the same total batch gives the same training on any
    number of ranks.
    """

    def __init__(self, distributed: bool) -> None:
        super().__init__(auto_prefix=False)
        self.ranks = communication.get_group_size() if distributed else 1
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM) if distributed else None

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        if self.reduce is None:
            return x
        return ops.stop_gradient(self.reduce(x.reshape(1))).reshape(()) / self.ranks


def loss_scaler(level: str) -> amp.LossScaler | None:
    """A dynamic loss scale for float16 gradients, None in float32."""
    return None if level == 'O0' else amp.DynamicLossScaler(scale_value=2 ** 15, scale_factor=2, scale_window=1000)


def scaler_state(scaler: amp.LossScaler | None) -> dict[str, ms.Parameter]:
    """The loss scale's parameters, for an exact resume."""
    return {} if scaler is None else {'scale': scaler.scale_value, 'counter': scaler.counter}


def scaled(scaler: amp.LossScaler | None, loss: ms.Tensor) -> ms.Tensor:
    """The loss as it is differentiated."""
    return loss if scaler is None else scaler.scale(loss)


class Update(nn.Cell):
    """(gradients, learning rate) -> the gradients' norm, after having moved the weights.

    With a loss scale, gradients that overflowed leave the weights alone and lower the scale; the norm is then 0.

    Args:
        clip_norm: largest norm of all gradients together; 0 = no clipping.
        weight_decay: decoupled: w <- w - rate * weight_decay * w before Adam's own step, for ``decayed`` names.
    """

    def __init__(self, optimizer: nn.Optimizer, clip_norm: float, weight_decay: float,
                 decayed: Callable[[str], bool], distributed: bool, scaler: amp.LossScaler | None) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.weight_decay = weight_decay
        self.decayed = ms.ParameterTuple([p for p in optimizer.parameters if decayed(p.name)])
        self.reduce = nn.DistributedGradReducer(optimizer.parameters, mean=True) if distributed else None
        self.rate = optimizer.learning_rate
        self.scaler = scaler
        self.zero = ms.Tensor(0.0, ms.float32)
        self.one = ms.Tensor(1.0, ms.float32)

    def construct(self, gradients: tuple[ms.Tensor, ...], rate: ms.Tensor) -> ms.Tensor:
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.scaler is None:
            return self.move(gradients, rate)
        finite = amp.all_finite(gradients)
        gradients = self.scaler.unscale(gradients)
        self.scaler.adjust(finite)
        norm = self.zero
        if finite:
            norm = self.move(gradients, rate)
        return norm

    def move(self, gradients: tuple[ms.Tensor, ...], rate: ms.Tensor) -> ms.Tensor:
        """Clip, decay, step."""
        norm = global_norm(gradients)
        if self.clip_norm > 0:
            factor = ops.minimum(self.one, self.clip_norm / (norm + 1e-6))
            gradients = ops.HyperMap()(ops.partial(_times, factor), gradients)
        if self.weight_decay > 0:
            ops.HyperMap()(ops.partial(_shrink, 1.0 - rate * self.weight_decay), self.decayed)
        ops.assign(self.rate, rate)
        self.optimizer(gradients)
        return norm


# A loop over hundreds of tensors would exceed the depth that MindSpore compiles; a map does not.

_times = ops.MultitypeFuncGraph('times')
_shrink = ops.MultitypeFuncGraph('shrink')
_square_sum = ops.MultitypeFuncGraph('square_sum')


@_times.register('Tensor', 'Tensor')
def _times_tensor(factor: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return gradient * factor


@_shrink.register('Tensor', 'Tensor')
def _shrink_parameter(factor: ms.Tensor, parameter: ms.Tensor) -> bool:
    return ops.depend(True, ops.assign(parameter, parameter * factor))


@_square_sum.register('Tensor')
def _square_sum_tensor(gradient: ms.Tensor) -> ms.Tensor:
    if gradient.ndim > 1:  # on a CPU sums of rows take an eighth of the time of a sum over everything
        return ops.square(gradient.reshape(gradient.shape[0], -1)).sum(1).sum()
    return ops.square(gradient).sum()


def global_norm(gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
    """Euclidean norm of all gradients together."""
    return ops.sqrt(ops.addn(ops.HyperMap()(_square_sum, gradients)))
