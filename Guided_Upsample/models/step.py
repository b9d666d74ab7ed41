"""One optimizer step of stage 2: the discriminator first, then the generator against the updated discriminator."""
from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import ops

from Guided_Upsample.models import loss
from Guided_Upsample.models.networks import Discriminator, Generator
from Guided_Upsample.models.vgg import VGG19
from ict.device import precision
from ict.training import optimizers


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
    clip_norm: float = 0.0
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
        painter = precision.mixed_precision(generator, recipe.amp_level)
        judge = precision.mixed_precision(discriminator, recipe.amp_level)
        self.scaler = optimizers.loss_scaler(recipe.amp_level)
        scaler = self.scaler
        betas = recipe.beta1, recipe.beta2
        self.gen_optimizer = optimizers.adam(generator, recipe.lr, *betas, 'gen')
        self.dis_optimizer = optimizers.adam(discriminator, recipe.lr * recipe.D2G_lr, *betas, 'dis')
        move_generator, move_discriminator = (
            optimizers.Update(optimizer, recipe.clip_norm, 0.0, _none, recipe.distributed, scaler)
            for optimizer in (self.gen_optimizer, self.dis_optimizer))
        l1_weight, adv_weight = recipe.l1_loss_weight, recipe.inpaint_adv_loss_weight
        content_weight, style_weight = recipe.content_loss_weight, recipe.style_loss_weight
        D2G_lr, self.rate = recipe.D2G_lr, recipe.lr
        zero = ms.Tensor(0.0, ms.float32)
        over_ranks = optimizers.MeanOverRanks(recipe.distributed)
        self.names = ['gen_loss', 'l1', 'adv', 'content', 'style', 'dis_loss', 'dis_real', 'dis_fake']

        def judged(real: ms.Tensor, fake: ms.Tensor) -> tuple[ms.Tensor, ...]:
            real_scores, _ = judge(real)
            fake_scores, _ = judge(fake)
            total, parts = loss.discriminator_loss(ops.cast(real_scores, ms.float32),
                                                   ops.cast(fake_scores, ms.float32))
            return optimizers.scaled(scaler, total), total, parts['real'], parts['fake']

        def painted(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor) -> ms.Tensor:
            return ops.cast(painter(images, priors, masks), ms.float32)  # (B, 3, S, S)

        def scored(output: ms.Tensor, images: ms.Tensor, masks: ms.Tensor, weights: ms.Tensor) -> tuple[ms.Tensor, ...]:
            l1 = loss.masked_l1(output, images, masks, over_ranks, weights)
            adv, content, style = zero, zero, zero
            if adv_weight > 0:
                scores, _ = judge(output)
                adv = loss.adversarial(ops.cast(scores, ms.float32), True)
            if content_weight > 0:
                content = loss.content(vgg(output), vgg(images))
            if style_weight > 0:
                style = loss.style(vgg(output * masks), vgg(images * masks))
            total = l1_weight * l1 + adv_weight * adv + content_weight * content + style_weight * style
            return optimizers.scaled(scaler, total), total, l1, adv, content, style

        # Gradient boundaries: the discriminator learns from a finished picture, which carries no gradient; the
        # generator's losses are differentiated with respect to that picture, and it with respect to the generator.
        # The forward pass that MindSpore writes for the latter is the one above, so it runs once.
        of_discriminator = ms.value_and_grad(judged, None, self.dis_optimizer.parameters, has_aux=True)
        of_picture = ms.value_and_grad(scored, 0, None, has_aux=True)
        of_generator = ops.GradOperation(get_by_list=True, sens_param=True)
        generators = self.gen_optimizer.parameters

        @ms.jit
        def step(images: ms.Tensor, priors: ms.Tensor, masks: ms.Tensor, weights: ms.Tensor,
                 rate: ms.Tensor) -> tuple[ms.Tensor, ...]:
            output = painted(images, priors, masks)
            judgement = zero, zero, zero
            if adv_weight > 0:
                (_, total, real, false), gradients = of_discriminator(images, ops.stop_gradient(output))
                norm = move_discriminator(gradients, rate * D2G_lr)
                output = ops.depend(output, norm)
                judgement = total, real, false
            (_, *parts), slope = of_picture(output, images, masks, weights)
            move_generator(of_generator(painted, generators)(images, priors, masks, slope), rate)
            return *parts, *judgement, output

        self.step = step

    def __call__(self, images: np.ndarray, priors: np.ndarray, masks: np.ndarray, weights: np.ndarray | None = None,
                 rate: float | None = None) -> tuple[dict[str, float], np.ndarray]:
        """float32 NCHW in [0, 1] -> the losses' parts and the generator's pictures before this step (B, 3, S, S).

        Args:
            weights: how often each pixel counts in the L1 loss, (B, 1, S, S); None: once.
            rate: the generator's learning rate; None: the recipe's.
        """
        weights = np.ones_like(masks) if weights is None else weights
        *parts, output = self.step(*map(ms.Tensor, (images, priors, masks, weights)),
                                   ms.Tensor(self.rate if rate is None else rate, ms.float32))
        return dict(zip(self.names, map(float, parts), strict=True)), output.asnumpy()

    def extra(self) -> dict[str, ms.Parameter]:
        """Further state that a resume needs."""
        return optimizers.scaler_state(self.scaler)
