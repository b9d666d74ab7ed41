"""One optimizer step of stage 2: the discriminator first, then the generator against the updated discriminator."""
from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ops

from Guided_Upsample.models import loss
from Guided_Upsample.models.networks import Discriminator, Generator
from Guided_Upsample.models.vgg import VGG19
from ict import optimizers


def _none(name: str) -> bool:
    """No weight is decayed."""
    return False


@dataclass(frozen=True)
class Recipe:
    """What a step does; the options of the same names."""

    lr: float
    D2G_lr: float
    beta1: float
    beta2: float
    l1_loss_weight: float
    style_loss_weight: float
    content_loss_weight: float
    inpaint_adv_loss_weight: float
    amp_level: str = 'O0'
    recompute: bool = False
    distributed: bool = False


class TrainStep:
    """Both networks' losses, gradients and updates, compiled."""

    def __init__(self, generator: Generator, discriminator: Discriminator, vgg: VGG19 | None,
                 recipe: Recipe) -> None:
        if recipe.recompute:
            for block in generator.middle:
                block.recompute()
        generator.set_train(True)
        discriminator.set_train(True)
        painter = optimizers.mixed_precision(generator, recipe.amp_level)
        judge = optimizers.mixed_precision(discriminator, recipe.amp_level)
        self.scaler = optimizers.loss_scaler(recipe.amp_level)
        scaler = self.scaler
        self.gen_optimizer = optimizers.adam(generator, recipe.lr, recipe.beta1, recipe.beta2)
        self.dis_optimizer = optimizers.adam(discriminator, recipe.lr * recipe.D2G_lr, recipe.beta1, recipe.beta2)
        move_generator = optimizers.Update(self.gen_optimizer, 0.0, 0.0, _none, recipe.distributed, scaler)
        move_discriminator = optimizers.Update(self.dis_optimizer, 0.0, 0.0, _none, recipe.distributed, scaler)
        l1_weight, adv_weight = recipe.l1_loss_weight, recipe.inpaint_adv_loss_weight
        content_weight, style_weight = recipe.content_loss_weight, recipe.style_loss_weight
        rates = (ms.Tensor(recipe.lr, ms.float32), ms.Tensor(recipe.lr * recipe.D2G_lr, ms.float32))
        zero = ms.Tensor(0.0, ms.float32)
        over_ranks = optimizers.MeanOverRanks(recipe.distributed)
        self.names = ['gen_loss', 'l1', 'adv', 'content', 'style', 'dis_loss', 'dis_real', 'dis_fake']

        def judged(real: ms.Tensor, fake: ms.Tensor) -> tuple[ms.Tensor, ...]:
            real_scores, _ = judge(real)
            fake_scores, _ = judge(fake)
            total, parts = loss.discriminator_loss(ops.cast(real_scores, ms.float32),
                                                   ops.cast(fake_scores, ms.float32))
            return optimizers.scaled(scaler, total), total, parts['real'], parts['fake']

        def painted(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, ...]:
            output = ops.cast(painter(images, priors, masks), ms.float32)  # (B, 3, S, S)
            l1 = loss.masked_l1(output, images, masks, over_ranks)
            adv, content, style = zero, zero, zero
            if adv_weight > 0:
                scores, _ = judge(output)
                adv = loss.adversarial(ops.cast(scores, ms.float32), True)
            if content_weight > 0:
                content = loss.content(vgg(output), vgg(images))
            if style_weight > 0:
                style = loss.style(vgg(output * masks), vgg(images * masks))
            total = l1_weight * l1 + adv_weight * adv + content_weight * content + style_weight * style
            return optimizers.scaled(scaler, total), total, l1, adv, content, style, output

        # Gradient boundaries: the discriminator learns from a finished picture, which carries no gradient; the
        # generator's losses are differentiated with respect to the generator alone.
        of_discriminator = ms.value_and_grad(judged, None, self.dis_optimizer.parameters, has_aux=True)
        of_generator = ms.value_and_grad(painted, None, self.gen_optimizer.parameters, has_aux=True)

        @ms.jit
        def discriminator_step(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, ...]:
            fake = ops.stop_gradient(ops.cast(painter(images, priors, masks), ms.float32))
            (_, total, real, false), gradients = of_discriminator(images, fake)
            move_discriminator(gradients, rates[1])
            return total, real, false

        @ms.jit
        def generator_step(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor) -> tuple[ms.Tensor, ...]:
            (_, total, l1, adv, content, style, output), gradients = of_generator(images, priors, masks)
            move_generator(gradients, rates[0])
            return total, l1, adv, content, style, output

        self.discriminator_step, self.generator_step = discriminator_step, generator_step
        self.adversarial = adv_weight > 0

    def __call__(self, images: np.ndarray, priors: np.ndarray,
                 masks: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """float32 NCHW in [0, 1] -> the losses' parts and the generator's pictures before this step (B, 3, S, S)."""
        tensors = ms.Tensor(images), ms.Tensor(priors), ms.Tensor(masks)
        judged = [0.0, 0.0, 0.0]
        if self.adversarial:
            judged = [float(x) for x in self.discriminator_step(*tensors)]
        *painted, output = self.generator_step(*tensors)
        return dict(zip(self.names, [float(x) for x in painted] + judged, strict=True)), output.asnumpy()

    def extra(self) -> dict[str, ms.Parameter]:
        """Further state that a resume needs."""
        return optimizers.scaler_state(self.scaler)
