"""Stage 2's optimizer step and losses."""
from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from Guided_Upsample import train as train_2
from Guided_Upsample.datasets.dataset import boundary_weights
from Guided_Upsample.models import config, loss
from Guided_Upsample.models.networks import Discriminator, Generator
from Guided_Upsample.models.step import TrainConfig, TrainStep
from Guided_Upsample.models.vgg import VGG19
from ict import checkpoint
from ict.training import optimizers
from ict.training.losses import Loss
from tests.conftest import made_up, set_weights
from tests.training.runs import argv_2

RATE = 1e-2
WEIGHTS = {'l1': 2.0, 'adv': 0.7, 'content': 0.3, 'style': 50.0}


def networks() -> tuple[nn.Cell, nn.Cell, nn.Cell]:
    """A tiny generator, a discriminator and VGG19, always with the same made-up weights."""
    found = Generator(1, 4), Discriminator(3), VGG19()
    for seed, net in zip((7, 17, 27), found, strict=True):
        set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, seed))
    return found


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images and priors (B, 3, S, S), masks (B, 1, S, S)."""
    rng = np.random.default_rng(0)
    return *rng.random((2, 2, 3, 32, 32), np.float32), (rng.random((2, 1, 32, 32)) < 0.4).astype(np.float32)


def test_stage_2_steps_the_discriminator_first_then_the_generator_by_its_weighted_losses():
    """Adam's first moments after one step are (1 - beta1) times the gradients that the step took."""
    arrays = batch()
    step = TrainStep(*networks(), TrainConfig(lr=RATE, D2G_lr=0.5, beta1=0.5, beta2=0.9, loss_weights=WEIGHTS))
    step(*arrays)

    generator, discriminator, vgg = networks()
    images, priors, holes = map(ms.Tensor, arrays)
    once = ms.Tensor(np.ones_like(arrays[2]))
    used = loss.Networks(discriminator, vgg, optimizers.MeanOverRanks(False))

    def of_discriminator(fake: ms.Tensor) -> ms.Tensor:
        return loss.discriminator_loss(discriminator(images)[0], discriminator(fake)[0])[0]

    def of_generator() -> ms.Tensor:
        output = generator(images, priors, holes)
        return sum(weight * getattr(loss, name)(output, images, holes, once, used) for name, weight in WEIGHTS.items())

    def gradients(function, net: nn.Cell, *inputs: ms.Tensor) -> dict[str, np.ndarray]:
        parameters = net.trainable_params()
        found = ms.grad(function, None, ms.ParameterTuple(parameters))(*inputs)
        return {p.name: g.asnumpy() for p, g in zip(parameters, found, strict=True)}

    def taken(optimizer: nn.Adam) -> dict[str, np.ndarray]:
        return {p.name.removeprefix('moment1.'): 2 * p.asnumpy() for p in optimizer.moment1}

    def distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
        assert one.keys() == two.keys()
        return max(float(np.abs(one[k] - two[k]).max() / np.abs(two[k]).max()) for k in two)
    discriminated = gradients(of_discriminator, discriminator, generator(images, priors, holes))
    assert distance(taken(step.dis_optimizer), discriminated) < 1e-3
    against_the_old = gradients(of_generator, generator)
    for parameter in discriminator.trainable_params():
        g = discriminated[parameter.name]  # Adam's first step; its epsilon counts where a gradient is tiny
        root = np.sqrt(0.1) * np.abs(g)
        moved = parameter.asnumpy() - 0.5 * RATE * np.sqrt(1 - 0.9) / (1 - 0.5) * 0.5 * g / (root + 1e-8)
        parameter.set_data(ms.Tensor(moved.astype(np.float32)))
    assert distance(taken(step.gen_optimizer), gradients(of_generator, generator)) < 1e-2
    assert distance(taken(step.gen_optimizer), against_the_old) > 5e-2


def roughness(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
              networks: loss.Networks) -> ms.Tensor:
    """Mean difference of neighbouring rows."""
    return (output[:, :, 1:] - output[:, :, :-1]).abs().mean()


def test_a_new_loss_is_a_function_and_an_entry_of_the_table(monkeypatch):
    """The option, the column of the log and the sum follow from these two."""
    monkeypatch.setattr(loss, 'roughness', roughness, raising=False)
    monkeypatch.setattr(config, 'LOSSES', (*config.LOSSES, Loss('roughness', 'rough_weight', 0.0, 'the differences')))
    args = train_2.arguments(['--input', '.', '--mask', '.', '--rough_weight', '3', '--style_loss_weight', '0',
                              '--content_loss_weight', '0', '--inpaint_adv_loss_weight', '0'])
    generator, discriminator, _ = networks()
    step = TrainStep(generator, discriminator, None, TrainConfig.from_args(args))
    metrics, output = step(*batch())
    assert metrics['roughness'] == pytest.approx(np.abs(np.diff(output.astype(np.float64), axis=2)).mean(), rel=1e-5)
    assert metrics['gen_loss'] == pytest.approx(metrics['l1'] + 3 * metrics['roughness'], rel=1e-6)
    assert metrics['style'] == metrics['dis_loss'] == 0


@pytest.mark.parametrize('kind', ['adversarial', 'vgg'])
def test_each_loss_moves_the_generator_and_vgg_stays_as_it_is(kind, pictures, masks, tiny, tmp_path):
    """Only the one loss is on, so the generator moves because of it; VGG is neither trained nor saved."""
    shapes = {p.name: p.shape for p in VGG19().get_parameters()}
    checkpoint.write(tmp_path / 'VGG19.ckpt', made_up(shapes, 27), {'network': 'VGG19'})
    weights = {'adversarial': ('--inpaint_adv_loss_weight', 1, '--l1_loss_weight', 0),
               'vgg': ('--inpaint_adv_loss_weight', 0, '--l1_loss_weight', 0, '--content_loss_weight', 1,
                       '--style_loss_weight', 1, '--vgg_path', tmp_path / 'VGG19.ckpt')}[kind]
    assert train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 1, *weights)) == 0
    gen = checkpoint.read(tmp_path / 'a' / 'InpaintingModel_gen_latest.ckpt')
    start = {p.name: p.asnumpy() for p in Generator(1, 4, rng=np.random.default_rng([0, 0])).get_parameters()}
    assert max(np.abs(gen.array(n) - v).max() for n, v in start.items()) > 1e-5
    assert not any('relu' in n for f in (tmp_path / 'a').glob('*.ckpt') for n in checkpoint.read(f).entries)


def test_the_boundary_of_a_hole_counts_more():
    hole = np.zeros((2, 9, 9), bool)
    hole[0, 1:8, 2:7] = True
    hole[1, :, 3:] = True
    assert (boundary_weights(hole, 0.0) == 1).all() and (boundary_weights(hole, 4.0)[:, 0][~hole] == 1).all()
    weights = boundary_weights(hole, 4.0)  # (B, 1, S, S) float32
    np.testing.assert_allclose(weights[1, 0, 4], [1, 1, 1, *(1 + 4 * np.exp(-(d - 1) / 2.5) for d in range(1, 7))],
                               rtol=1e-5)
    assert weights[0, 0, 4].tolist() == weights[0, 0, 4, ::-1].tolist() and weights[0, 0, 4, 4] < weights[0, 0, 4, 3]
    assert (boundary_weights(np.ones((1, 9, 9), bool), 4.0) == pytest.approx(1.0))  # nothing is known
    output, images = np.random.default_rng(0).random((2, 2, 3, 9, 9), np.float32)
    found = loss.l1(*map(ms.Tensor, (output, images, hole[:, None].astype(np.float32), weights)),
                    loss.Networks(None, None, optimizers.MeanOverRanks(False)))
    assert float(found) == pytest.approx((np.abs(output - images) * weights).mean() / hole.mean(), rel=1e-5)
