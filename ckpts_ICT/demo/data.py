"""Pictures, palette and masks of the demo pair's training, in PyTorch; everything lies on the device."""
from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ict.data import codebook
from ict.errors import require

PHOTO_SIDE, IMAGE_SIZE, PRIOR_SIZE = 272, 256, 32  # of a stored photograph, what stage 2 completes, and a prior
PALETTE_ROWS_AT_ONCE = 1 << 17


def pictures_in(path: Path) -> Iterator[np.ndarray]:
    """The pictures of a tar file, (H, W, 3) uint8."""
    with tarfile.open(path) as archive:
        files = [stream.read() for member in archive if (stream := archive.extractfile(member)) is not None]
    with ThreadPoolExecutor() as threads:
        yield from threads.map(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert('RGB')), files)


def enlarged(priors: torch.Tensor) -> torch.Tensor:
    """Priors (B, 3, P, P) in levels as stage 2 gets them: (B, 3, S, S) in [0, 1], bicubic as Pillow has it."""
    large = functional.interpolate(priors, (IMAGE_SIZE, IMAGE_SIZE), mode='bicubic', antialias=True,
                                   align_corners=False)
    return large.round().clamp(0, 255) / 255


def touched(hole: torch.Tensor) -> torch.Tensor:
    """The tokens that a hole touches: (B, S, S) bool -> (B, T) bool."""
    return functional.max_pool2d(hole[:, None].float(), IMAGE_SIZE // PRIOR_SIZE).flatten(1) > 0


def random_number(stop: int) -> int:
    """From 0 to ``stop`` - 1."""
    return int(torch.randint(stop, ()).item())


class Data:
    """What both stages are trained on.

    Args:
        folder: ``photos*.tar`` (photographs of 272 x 272), ``small*.tar`` (pictures of 32 x 32, many below each other
            in a file), ``heldback.tar`` (pictures of 256 x 256) and ``masks.npz`` (``packed``: bits of (K, 256 * 256),
            the first ones belong to the held-back pictures).

    Attributes:
        photos: (N, 272, 272, 3) uint8. small: (M, 32, 32, 3) uint8.
        holes: (K, 256, 256) bool.
        held_back, held_back_holes: (V, 3, 256, 256) float32 in levels and (V, 256, 256) bool.
        codebook_rgb: (512, 3) float32 levels, the repository's palette.

    Raises:
        UserError: one of the files is missing.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        for pattern in ('photos*.tar', 'small*.tar', 'heldback.tar', 'masks.npz'):
            require(any(folder.glob(pattern)), f'--data {folder}: holds no {pattern}')
        self.photos = self._on_device(np.stack([photo for path in sorted(folder.glob('photos*.tar'))
                                                for photo in pictures_in(path)]))
        strips = np.concatenate([strip for path in sorted(folder.glob('small*.tar')) for strip in pictures_in(path)])
        self.small = self._on_device(strips.reshape(-1, PRIOR_SIZE, PRIOR_SIZE, 3))
        held_back = np.stack(list(pictures_in(folder / 'heldback.tar')))
        self.held_back = self._on_device(held_back).permute(0, 3, 1, 2).float()
        holes = np.unpackbits(np.load(folder / 'masks.npz')['packed'], axis=1).reshape(-1, IMAGE_SIZE, IMAGE_SIZE) > 0
        self.held_back_holes = self._on_device(holes[:len(held_back)])
        self.holes = self._on_device(holes[len(held_back):])
        palette = codebook.load(codebook.REPOSITORY_PALETTE)
        self.codebook_rgb = self._on_device(codebook.to_rgb(palette).astype(np.float32))

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def tokens_of(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in levels -> (B, T) int64."""
        return self.quantised(functional.interpolate(pictures, (PRIOR_SIZE, PRIOR_SIZE), mode='bilinear',
                                                     antialias=True, align_corners=False).round())

    def quantised(self, small: torch.Tensor) -> torch.Tensor:
        """(B, 3, P, P) in levels -> (B, T) int64, the nearest colours."""
        pixels = small.permute(0, 2, 3, 1).reshape(-1, 3)
        # a matrix product in TF32 would choose other colours
        tokens = [torch.cdist(part, self.codebook_rgb, compute_mode='donot_use_mm_for_euclid_dist').argmin(1)
                  for part in pixels.split(PALETTE_ROWS_AT_ONCE)]
        return torch.cat(tokens).view(len(small), -1)

    def priors_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, 3, P, P) in levels."""
        return self.codebook_rgb[tokens].view(-1, PRIOR_SIZE, PRIOR_SIZE, 3).permute(0, 3, 1, 2)

    def true_priors(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, 3, P, P), both in levels."""
        return self.priors_of(self.tokens_of(pictures))

    def random_holes(self, count: int) -> torch.Tensor:
        """(B, 256, 256) bool, free-form strokes, all of them in one of the eight orientations."""
        hole = self.holes[torch.randint(len(self.holes), (count,), device=self.device)]
        if torch.rand(()) < 0.5:
            hole = hole.transpose(1, 2)
        return hole.flip([axis for axis in (1, 2) if torch.rand(()) < 0.5])

    def random_wide_holes(self, count: int) -> torch.Tensor:
        """(B, 256, 256) bool: an ellipse or a rectangle, rotated, its axes or sides 24 to 160 pixels long."""

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, 1, 1, device=self.device)

        y, x = torch.meshgrid(*2 * [torch.arange(IMAGE_SIZE, device=self.device)], indexing='ij')
        y, x, angle = y - uniform(40, 216), x - uniform(40, 216), uniform(0, math.pi)
        along = (x * angle.cos() + y * angle.sin()).abs() / uniform(12, 80)  # 1 at the side
        across = (y * angle.cos() - x * angle.sin()).abs() / uniform(12, 80)
        return torch.where(uniform(0, 1) < 0.5, along.square() + across.square(), torch.maximum(along, across)) < 1

    def random_crops(self, count: int, smallest: float) -> torch.Tensor:
        """(B, 3, 256, 256) in levels: squares of photographs with sides of ``smallest`` to 1, half of them mirrored."""
        crops = []
        for number in torch.randint(len(self.photos), (count,)).tolist():
            side = int(PHOTO_SIDE * (smallest + (1 - smallest) * torch.rand(()).item()))
            top, left = (random_number(PHOTO_SIDE - side + 1) for _ in range(2))
            crop = self.photos[number, top:top + side, left:left + side].permute(2, 0, 1)[None].float()
            crops.append(functional.interpolate(crop, (IMAGE_SIZE, IMAGE_SIZE), mode='bilinear',
                                                antialias=side > IMAGE_SIZE, align_corners=False))
        mirrored = torch.rand(count, device=self.device) < 0.5
        pictures = torch.cat(crops)
        return torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures).round()

    def toned(self, pictures: torch.Tensor, share: float) -> torch.Tensor:
        """A ``share`` of pictures (B, 3, S, S) in levels with other brightness (gamma 0.5 to 2) and colours."""
        gamma = torch.exp(math.log(2) * (2 * torch.rand(len(pictures), 1, 1, 1, device=self.device) - 1))
        gain = torch.exp(0.3 * (2 * torch.rand(len(pictures), 3, 1, 1, device=self.device) - 1))
        changed = ((pictures / 255) ** gamma * gain * 255).round().clamp(0, 255)
        chosen = torch.rand(len(pictures), device=self.device) < share
        return torch.where(chosen[:, None, None, None], changed, pictures)

    def random_tokens(self, count: int) -> torch.Tensor:
        """(B, T) int64: half of crops of photographs, half of the small pictures."""
        n_photos = count // 2
        small = self.small[torch.randint(len(self.small), (count - n_photos,), device=self.device)]
        small = small.permute(0, 3, 1, 2).float()
        if torch.rand(()) < 0.5:
            small = small.flip(3)
        return torch.cat((self.tokens_of(self.random_crops(n_photos, 0.45)), self.quantised(small)))
