"""Stage 1's optimizer step: the published trajectory, and its options against NumPy."""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from ict.training import optimizers
from ict.training.losses import Loss
from tests.conftest import made_up, parity, set_weights
from Transformer import train as train_1
from Transformer.models import config, loss, networks
from Transformer.models.networks import GPT, Attention
from Transformer.models.step import TrainConfig, TrainStep, is_decayed


class PublishedNorm(nn.LayerNorm):
    """nn.LayerNorm with the gradient of the MindSpore that made the arrays: its kernel took 1e-12 for the epsilon.

    Missing positions begin with a variance of 3e-4, where 1e-5 more or less is 2 % of the gradient.
    """

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return _Normalised()(x, self.gamma, self.beta)


class _Normalised(nn.Cell):
    def construct(self, x, gamma, beta):
        centred = x - x.mean(-1, keep_dims=True)
        return centred / ops.sqrt((centred * centred).mean(-1, keep_dims=True) + 1e-5) * gamma + beta

    def bprop(self, x, gamma, beta, out, dout):
        centred = x - x.mean(-1, keep_dims=True)
        scale = 1 / ops.sqrt((centred * centred).mean(-1, keep_dims=True) + 1e-12)
        normal, d = centred * scale, dout * gamma
        dx = scale * (d - d.mean(-1, keep_dims=True) - normal * (d * normal).mean(-1, keep_dims=True))
        return dx, (dout * normal).sum((0, 1)), dout.sum((0, 1))


@pytest.mark.parametrize('gelu_2', [False, True])
@pytest.mark.parametrize('recompute', [False, True])
def test_three_adam_steps_equal_the_published(gelu_2, recompute, monkeypatch):
    monkeypatch.setattr(networks.nn, 'LayerNorm', PublishedNorm)
    arrays = parity(f'transformer_gelu2_{int(gelu_2)}.npz')
    vocab, n_embd, n_layer, n_head, block = (int(v) for v in arrays['config'])
    net = GPT(vocab, n_embd, n_layer, n_head, block, gelu_2)
    set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, 7))
    step = TrainStep(net, TrainConfig(recompute=recompute))
    losses = [step(arrays['idx'], arrays['masks'], 3e-4)['loss'] for _ in range(3)]
    np.testing.assert_allclose(losses, arrays['losses'], rtol=1e-6)
    net.set_train(False)
    after = net(ms.Tensor(arrays['idx']), ms.Tensor(arrays['masks'])).asnumpy()
    np.testing.assert_allclose(after, arrays['logits_after_3_steps'], atol=2e-5)


def toy_step(**changed) -> tuple[GPT, TrainStep, np.ndarray, np.ndarray]:
    net = GPT(16, 8, 1, 2, 16, True, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    return (net, TrainStep(net, TrainConfig(**changed)), rng.integers(0, 16, (2, 16)).astype(np.int32),
            (rng.random((2, 16)) < 0.5).astype(np.float32))


def values(net) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


def test_dynamic_weight_is_the_loss_per_missing_token():
    _, plain, tokens, masks = toy_step()
    _, dynamic, _, _ = toy_step(dynamic_weight=True)
    published, per_token = plain(tokens, masks, 1e-3), dynamic(tokens, masks, 1e-3)
    assert per_token['loss'] == pytest.approx(per_token['nll'], rel=1e-6)
    assert published['loss'] == pytest.approx(per_token['loss'] * masks.mean(), rel=1e-5)


def test_weight_decay_is_decoupled_and_spares_biases_norms_and_embeddings():
    rate, decay = 1e-2, 0.5
    plain_net, plain, tokens, masks = toy_step()
    net, step, _, _ = toy_step(weight_decay=decay)
    before = values(net)
    plain(tokens, masks, rate)
    step(tokens, masks, rate)
    without, with_ = values(plain_net), values(net)
    for name in before:
        extra = rate * decay * before[name] if is_decayed(name) else 0
        np.testing.assert_allclose(with_[name], without[name] - extra, atol=1e-6)
    assert {n for n in before if is_decayed(n)} == {n for n in before if n.endswith('.weight')}


def test_clipping_scales_all_gradients_together():
    # Adam's first step hides the scale, so its first moment is looked at: (1 - beta1) * gradient.
    _, plain, tokens, masks = toy_step()
    _, clipped, _, _ = toy_step(clip_norm=0.01)
    norm = plain(tokens, masks, 1e-3)['grad_norm']
    assert clipped(tokens, masks, 1e-3)['grad_norm'] == pytest.approx(norm, rel=1e-5)

    def moments(step: TrainStep) -> dict[str, np.ndarray]:
        return {p.name: p.asnumpy() / 0.1 for p in step.optimizer.moment1}
    full, small = moments(plain), moments(clipped)
    total = math.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in full.values()))
    assert total == pytest.approx(norm, rel=1e-4)
    for name, value in full.items():
        np.testing.assert_allclose(small[name], value * (0.01 / norm), rtol=2e-3, atol=1e-8)


def test_a_step_over_as_many_parameters_as_35_layers_have_compiles():
    count, rate, decay = 600, ms.Tensor(0.1, ms.float32), 0.5
    weights = [ms.Parameter(np.full(2, i, np.float32), name=f'{i}.weight') for i in range(count)]
    optimizer = nn.SGD(weights, learning_rate=0.1)
    update = optimizers.Update(optimizer, 1.0, decay, is_decayed, False, None)

    @ms.jit
    def step(gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
        return update(gradients, rate)

    assert float(step((ms.Tensor([3.0, 4.0], ms.float32),) * count)) == pytest.approx(5 * math.sqrt(count), rel=1e-5)
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(weight.asnumpy(),
                                   0.95 * i - 0.1 * np.array([3.0, 4.0]) / (5 * math.sqrt(count)), atol=1e-4)


def brier(logits: ms.Tensor, tokens: ms.Tensor) -> ms.Tensor:
    """Squared error of the probability of the right token."""
    probability = ops.softmax(logits, -1).gather_elements(1, tokens.expand_dims(1))  # (N, 1)
    return ops.square(1.0 - probability).reshape(-1)


def test_a_new_loss_is_a_function_and_an_entry_of_the_table(monkeypatch):
    """The option, the column of the log and the sum follow from these two."""
    monkeypatch.setattr(loss, 'brier', brier, raising=False)
    monkeypatch.setattr(config, 'LOSSES', (*config.LOSSES, Loss('brier', 'brier_weight', 0.0, 'the squared error')))
    args = train_1.arguments(['--data_path', '.', '--random_stroke', '--brier_weight', '3', '--dynamic_weight'])
    net, _, tokens, masks = toy_step()
    logits = net(ms.Tensor(tokens), ms.Tensor(masks)).asnumpy().astype(np.float64)
    metrics = TrainStep(net, TrainConfig.from_args(args))(tokens, masks, 1e-3)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right = np.take_along_axis(shares, tokens[..., None], -1)[..., 0]
    assert metrics['brier'] == pytest.approx(((1 - right) ** 2)[masks > 0].mean(), rel=1e-5)
    assert metrics['loss'] == pytest.approx(metrics['nll'] + 3 * metrics['brier'], rel=1e-6)


def attention_gradients(q: np.ndarray, k: np.ndarray, v: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of ``(softmax(q k^T) v * weight).sum()`` with respect to q, k and v."""
    scores = q @ k.swapaxes(-1, -2)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    of_shares = weight @ v.swapaxes(-1, -2)
    of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdims=True))
    return of_scores @ k, of_scores.swapaxes(-1, -2) @ q, shares.swapaxes(-1, -2) @ weight


def test_attention_has_the_gradient_of_the_plain_softmax():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, n, 5)).astype(np.float32) for n in (4, 7, 7, 4)]
    *inputs, weight = map(ms.Tensor, arrays)
    core = Attention()

    def total(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return (core(q, k, v) * weight).sum()

    wanted = attention_gradients(*(array.astype(np.float64) for array in arrays))
    for own, right in zip(ms.grad(total, (0, 1, 2))(*inputs), wanted, strict=True):
        np.testing.assert_allclose(own.asnumpy(), right, atol=1e-5)
