"""The networks are the published ones: names, shapes and outputs, in float32."""
from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from tests.conftest import made_up, names, parity, set_weights
from tests.parity.numpy_transformer import softmax
from Transformer.models import predict
from Transformer.models.config import GPTConfig
from Transformer.models.networks import GPT, Attention
from Transformer.models.sampling import log_prob
from Transformer.models.structured_init import start_structured

TOLERANCE = 2e-4


def shapes(net) -> dict[str, tuple[int, ...]]:
    return {p.name: tuple(p.shape) for p in net.get_parameters()}


def gpt_of(arrays: dict[str, np.ndarray], gelu_2: bool, gelu: str = 'tanh') -> GPT:
    vocab, n_embd, n_layer, n_head, block = (int(v) for v in arrays['config'])
    net = GPT(vocab, n_embd, n_layer, n_head, block, gelu_2, gelu=gelu)
    set_weights(net, made_up(shapes(net), 7))
    net.set_train(False)
    return net


def test_transformer_has_the_published_names_and_shapes():
    wanted = {k: tuple(v) for k, v in names('names_transformer.json').items() if not k.endswith('attn.mask')}
    assert GPTConfig(1, 1024, 8, 32, 512, True).shapes() == wanted
    assert shapes(GPT(64, 48, 3, 4, 64, True)) == GPTConfig(3, 48, 4, 8, 64, True).shapes()


@pytest.mark.parametrize('gelu_2', [False, True])
def test_transformer_logits_equal_the_published(gelu_2):
    arrays = parity(f'transformer_gelu2_{int(gelu_2)}.npz')
    logits = gpt_of(arrays, gelu_2)(ms.Tensor(arrays['idx']), ms.Tensor(arrays['masks'])).asnumpy()
    np.testing.assert_allclose(logits, arrays['logits'], atol=TOLERANCE)


@pytest.mark.parametrize('gelu_2', [False, True])
def test_transformer_logits_equal_pytorch(gelu_2):
    arrays = parity(f'pytorch_transformer_gelu2_{int(gelu_2)}.npz')
    vocab, n_embd, n_layer, n_head, block = (int(v) for v in arrays['config'])
    net = GPT(vocab, n_embd, n_layer, n_head, block, gelu_2, gelu='erf')
    # PyTorch's names sort differently, so the same seed gives other weights.
    to_pytorch = {name: name.replace('.gamma', '.weight').replace('.beta', '.bias').replace('embedding_table', 'weight')
                  for name in shapes(net)}
    pytorch_shapes = {to_pytorch[name]: shape for name, shape in shapes(net).items()}
    weights = made_up(pytorch_shapes, 7, norm_scale='\0')
    for name in weights:
        if '.ln' in f'.{name}' and name.endswith('.weight'):
            weights[name] += 1
    set_weights(net, {name: weights[to_pytorch[name]] for name in to_pytorch})
    net.set_train(False)
    logits = net(ms.Tensor(arrays['idx']), ms.Tensor(arrays['masks'])).asnumpy()
    np.testing.assert_allclose(logits, arrays['logits'], atol=TOLERANCE)


def test_a_seed_fixes_the_initial_weights_and_they_are_the_published_distribution():
    def weights(seed: int) -> dict[str, np.ndarray]:
        net = GPT(64, 48, 2, 4, 64, rng=np.random.default_rng(seed))
        return {p.name: p.asnumpy() for p in net.get_parameters()}
    one, same, other = weights(3), weights(3), weights(4)
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name])
        if name.endswith('.weight') or name.endswith('embedding_table'):
            assert abs(value.std() - 0.02) < 0.002 and abs(value.mean()) < 0.002
            assert (value != other[name]).any()
        elif name.endswith('gamma'):
            assert (value == 1).all()
        else:
            assert (value == 0).all(), name


def test_structured_start_puts_neighbours_near_each_other(colours):
    net = GPT(len(colours), 48, 1, 2, 64)
    start_structured(net, colours, 8, np.random.default_rng(0))
    place = net.pos_emb.asnumpy()[0].reshape(8, 8, 48)
    assert np.linalg.norm(place[3, 3] - place[3, 4]) < np.linalg.norm(place[3, 3] - place[3, 7])
    table = net.tok_emb.embedding_table.asnumpy()
    distance = np.linalg.norm(colours - colours[0], axis=1)
    near, far = np.argsort(distance)[[1, -1]]
    assert np.linalg.norm(table[near] - table[0]) < np.linalg.norm(table[far] - table[0])


@pytest.mark.parametrize(('n_layer', 'n_embd', 'n_head'), [(2, 64, 2), (3, 96, 8)])
def test_structured_start_guesses_the_colours_around_a_hole_before_any_training(n_layer, n_embd, n_head, colours):
    dark, light = np.argsort(colours.sum(1))[[20, -20]]
    picture = np.where(np.arange(16)[None] < 8, dark, light).repeat(16, 0).reshape(1, -1).astype(np.int32)
    hole = np.zeros((16, 16), np.float32)
    hole[5:9, 1:5] = hole[9:12, 11:15] = 1
    missing = hole.reshape(-1) > 0
    net = GPT(len(colours), n_embd, n_layer, n_head, 256, True)
    start_structured(net, colours, 16, np.random.default_rng(0))
    logits = net(ms.Tensor(picture), ms.Tensor(hole.reshape(1, -1))).asnumpy()[0, missing]
    right, other = picture[0, missing], dark + light - picture[0, missing]
    assert (logits[np.arange(len(right)), right] > logits[np.arange(len(right)), other]).all()
    assert -log_prob(logits, right).mean() < 0.7 * np.log(len(colours))


# Half precision: what float16's 11 bits leave of the parity tolerance, for logits of about 5.
HALF_LOGITS = 2e-2


@pytest.mark.parametrize('level', ['O2', 'O3'])
def test_half_precision_inference_stays_near_the_published(level):
    arrays = parity('transformer_gelu2_1.npz')
    vocab_size, n_embd, n_layer, n_head, block_size = (int(v) for v in arrays['config'])
    config = GPTConfig(n_layer, n_embd, n_head, int(block_size ** 0.5), vocab_size, True)
    model = predict.Predictor(made_up(config.shapes(), 7).__getitem__, config, 2, 'none', level)
    logits = model.logits_at(arrays['idx'], arrays['masks'], np.tile(np.arange(block_size), (2, 1)))
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - arrays['logits']).max() < HALF_LOGITS


def test_attention_has_the_gradient_of_the_softmax_in_float64():
    rng = np.random.default_rng(0)
    q, k, v = (3 * rng.standard_normal((2, 3, n, 5)) for n in (4, 7, 7))
    weight = rng.standard_normal((2, 3, 4, 5))
    core, factor = Attention(), ms.Tensor(weight.astype(np.float32))

    def total(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return (core(q, k, v) * factor).sum()

    own = ms.grad(total, (0, 1, 2))(*(ms.Tensor(x.astype(np.float32)) for x in (q, k, v)))

    # d softmax: p * (dp - sum(p * dp))
    def turned(x: np.ndarray) -> np.ndarray:
        return x.swapaxes(-1, -2)

    p = softmax(q @ turned(k))  # (2, 3, 4, 7)
    dp = weight @ turned(v)
    scores = p * (dp - (p * dp).sum(-1, keepdims=True))
    for gradient, wanted in zip(own, (scores @ k, turned(scores) @ q, turned(p) @ weight), strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), wanted, atol=1e-5 * np.abs(wanted).max())
