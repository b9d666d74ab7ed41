"""Stage 2's networks are the published ones: names, shapes, outputs and losses, in float32."""
from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import amp

from Guided_Upsample.models import loss
from Guided_Upsample.models.config import DISCRIMINATOR, LOSSES, GeneratorConfig
from Guided_Upsample.models.networks import Discriminator, Generator
from Guided_Upsample.models.structured_init import start_structured
from Guided_Upsample.models.vgg import VGG19
from ict.training import optimizers
from tests.conftest import made_up, names, parity, set_weights

TOLERANCE = 2e-4
HALF_TOLERANCE = 2e-3  # what float16's 11 bits leave of it, for pictures in [0, 1]


def shapes(net) -> dict[str, tuple[int, ...]]:
    return {p.name: tuple(p.shape) for p in net.get_parameters()}


def test_upsampler_has_the_published_names_and_shapes():
    wanted = {part: {k: tuple(v) for k, v in tensors.items()} for part, tensors in names('names_upsample.json').items()}
    assert shapes(Generator()) == GeneratorConfig().shapes() == wanted['generator']
    assert shapes(Discriminator(3)) == DISCRIMINATOR == wanted['discriminator']
    assert shapes(VGG19()) == wanted['vgg19']


def upsampler(arrays: dict[str, np.ndarray], padding: str) -> Generator:
    net = Generator(int(arrays['config'][0]), 64, padding)
    set_weights(net, made_up(shapes(net), 7))
    return net


@pytest.mark.parametrize(('file', 'padding'), [('upsample.npz', 'symmetric'), ('pytorch_upsample.npz', 'reflect')])
def test_generator_equals_the_published(file, padding):
    arrays = parity(file)
    output = upsampler(arrays, padding)(*[ms.Tensor(arrays[k]) for k in ('images', 'edges', 'masks')]).asnumpy()
    np.testing.assert_allclose(output, arrays['output'], atol=TOLERANCE)


def test_generator_accepts_one_mask_channel():
    arrays = parity('upsample.npz')
    net = upsampler(arrays, 'symmetric')
    output = net(ms.Tensor(arrays['images']), ms.Tensor(arrays['edges']), ms.Tensor(arrays['masks'][:, :1])).asnumpy()
    np.testing.assert_allclose(output, arrays['output'], atol=TOLERANCE)


def test_discriminator_and_all_losses_equal_the_published():
    arrays = parity('upsample.npz')
    images, masks = ms.Tensor(arrays['images']), ms.Tensor(arrays['masks'])
    discriminator, vgg = Discriminator(3), VGG19()
    set_weights(discriminator, made_up(shapes(discriminator), 17))
    set_weights(vgg, made_up(shapes(vgg), 27))
    output = upsampler(arrays, 'symmetric')(images, ms.Tensor(arrays['edges']), masks)
    real_scores, features = discriminator(images)
    fake_scores, _ = discriminator(output)
    np.testing.assert_allclose(real_scores.asnumpy(), arrays['disc'], atol=TOLERANCE)
    assert [f.shape[1] for f in features] == [64, 128, 256, 512, 1]
    once = ms.Tensor(np.ones_like(arrays['masks'][:, :1]))
    networks = loss.Networks(discriminator, vgg, optimizers.MeanOverRanks(False))
    terms = {entry.name: float(getattr(loss, entry.name)(output, images, masks, once, networks)) for entry in LOSSES}
    for name in ('adv', 'l1', 'content', 'style'):
        assert terms[name] == pytest.approx(float(arrays[f'loss_{name}']), rel=1e-4), name
    assert sum(entry.weight * terms[entry.name] for entry in LOSSES) == pytest.approx(float(arrays['loss_g']), rel=1e-4)
    total, _ = loss.discriminator_loss(real_scores, fake_scores)
    assert float(total) == pytest.approx(float(arrays['loss_d']), rel=1e-4)


@pytest.mark.parametrize('level', ['O2', 'O3'])
def test_half_precision_inference_stays_near_the_published(level):
    arrays = parity('upsample.npz')
    net = amp.auto_mixed_precision(upsampler(arrays, 'symmetric'), level)
    output = net(*[ms.Tensor(arrays[k]) for k in ('images', 'edges', 'masks')]).asnumpy()
    assert 0 < np.abs(output - arrays['output']).max() < HALF_TOLERANCE


def test_structured_generator_shifts_the_prior_towards_the_pixels_around_before_any_training():
    y, x = np.mgrid[:64, :64] / 64
    image = np.stack([0.2 + 0.5 * y, 0.9 - 0.6 * x * y, 0.5 + 0.3 * np.sin(3 * x)])[None].astype(np.float32)
    prior = image + np.float32(0.08)  # too light by 20 levels
    hole = np.zeros((1, 1, 64, 64), np.float32)
    hole[..., 20:32, 16:34] = 1
    net = Generator(4, 30)
    start_structured(net)
    error = np.abs(net(ms.Tensor(image), ms.Tensor(prior), ms.Tensor(hole)).asnumpy() - image)
    inside = np.broadcast_to(hole > 0, error.shape)
    assert error[~inside].mean() < 0.02
    assert error[inside].mean() < 0.6 * 0.08
