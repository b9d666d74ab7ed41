"""One optimizer step of stage 2: the discriminator first, then the generator against the updated discriminator."""
from __future__ import annotations

import argparse
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import amp, ops

from Guided_Upsample.models import config, loss
from Guided_Upsample.models.networks import Discriminator, Generator
from Guided_Upsample.models.vgg import VGG19
from ict import options
from ict.training import losses, optimizers


@dataclass(frozen=True)
class TrainConfig:
    """What a step does: the options of the same names, and the weight of each loss."""

    lr: float
    D2G_lr: float
    beta1: float
    beta2: float
    loss_weights: dict[str, float]
    clip_norm: float = 0.0
    amp_level: str = 'O0'
    recompute: bool = False
    distributed: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TrainConfig:
        """From the options of train.py."""
        return options.chosen(cls, args, loss_weights=losses.weights_of(config.LOSSES, args))


class TrainStep:
    """Both networks' losses, gradients and updates, compiled."""

    def __init__(self, generator: Generator, discriminator: Discriminator, vgg: VGG19 | None,
                 train_config: TrainConfig) -> None:
        # Networks.
        if train_config.recompute:
            for block in generator.middle:
                block.recompute()
        generator.set_train(True)
        discriminator.set_train(True)
        generator_net = amp.auto_mixed_precision(generator, train_config.amp_level)
        discriminator_net = amp.auto_mixed_precision(discriminator, train_config.amp_level)

        # Optimizers.
        scaler = optimizers.loss_scaler(train_config.amp_level)
        betas = train_config.beta1, train_config.beta2
        self.rate, D2G_lr = train_config.lr, train_config.D2G_lr
        self.gen_optimizer = optimizers.adam(generator, self.rate, *betas, 'gen')
        self.dis_optimizer = optimizers.adam(discriminator, self.rate * D2G_lr, *betas, 'dis')
        update_generator, update_discriminator = (
            optimizers.Update(optimizer, train_config.clip_norm, 0.0, lambda name: False, train_config.distributed,
                              scaler)
            for optimizer in (self.gen_optimizer, self.dis_optimizer))

        # Losses.
        weights = train_config.loss_weights
        trains_discriminator = 'discriminator' in losses.networks_needed(config.LOSSES, weights)
        networks = loss.Networks(discriminator_net, vgg, optimizers.MeanOverRanks(train_config.distributed))
        generator_loss = loss.generator_loss(
            [(getattr(loss, entry.name) if losses.is_computed(entry, weights) else None, weights[entry.name])
             for entry in config.LOSSES], networks)
        self.columns = ('gen_loss', *(entry.name for entry in config.LOSSES), 'dis_loss', 'dis_real', 'dis_fake')
        zero = ms.Tensor(0.0, ms.float32)

        def discriminated(real: ms.Tensor, fake: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
            real_scores, _ = discriminator_net(real)
            fake_scores, _ = discriminator_net(fake)
            total, parts = loss.discriminator_loss(ops.cast(real_scores, ms.float32),
                                                   ops.cast(fake_scores, ms.float32))
            return optimizers.scaled(scaler, total), total, parts

        def generated(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return ops.cast(generator_net(images, priors, masks), ms.float32)  # (B, 3, S, S)

        def compared(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor,
                     pixel_weights: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
            total, parts = generator_loss(output, images, masks, pixel_weights)
            return optimizers.scaled(scaler, total), total, parts

        # Gradient boundaries: the discriminator learns from a finished picture, which carries no gradient; the
        # generator's losses are differentiated with respect to that picture, and it with respect to the generator.
        # The forward pass that MindSpore writes for the latter is the one above, so it runs once.
        of_discriminator = ms.value_and_grad(discriminated, None, self.dis_optimizer.parameters, has_aux=True)
        of_image = ms.value_and_grad(compared, 0, None, has_aux=True)
        of_generator = ops.GradOperation(get_by_list=True, sens_param=True)
        generator_weights = self.gen_optimizer.parameters

        @ms.jit
        def step(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor, pixel_weights: ms.Tensor,
                 rate: ms.Tensor) -> tuple[ms.Tensor, ...]:
            output = generated(images, priors, masks)
            dis_loss, dis_parts = zero, (zero, zero)
            if trains_discriminator:
                (_, dis_loss, dis_parts), gradients = of_discriminator(images, ops.stop_gradient(output))
                norm = update_discriminator(gradients, rate * D2G_lr)
                output = ops.depend(output, norm)
            (_, gen_loss, gen_parts), grad_image = of_image(output, images, masks, pixel_weights)
            update_generator(of_generator(generated, generator_weights)(images, priors, masks, grad_image), rate)
            return gen_loss, *gen_parts, dis_loss, *dis_parts, output

        self.step = step
        self.extra = optimizers.scaler_state(scaler)  # further state that a resume needs

    def __call__(self, images: np.ndarray, priors: np.ndarray, masks: np.ndarray,
                 pixel_weights: np.ndarray | None = None,
                 rate: float | None = None) -> tuple[dict[str, float], np.ndarray]:
        """One step of both networks.

        Args:
            images, priors, masks: float32 in [0, 1], (B, 3, S, S) and (B, 1, S, S).
            pixel_weights: how often each pixel counts in the L1 loss, (B, 1, S, S); None: once.
            rate: the generator's learning rate; None: the config's.

        Returns:
            The losses and their parts, and the generator's pictures before this step, (B, 3, S, S).
        """
        pixel_weights = np.ones_like(masks) if pixel_weights is None else pixel_weights
        *values, output = self.step(*map(ms.Tensor, (images, priors, masks, pixel_weights)),
                                    ms.Tensor(self.rate if rate is None else rate, ms.float32))
        return dict(zip(self.columns, map(float, values), strict=True)), output.asnumpy()
