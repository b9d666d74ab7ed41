"""Train the demo pair in PyTorch: stage 1, priors that it makes, stage 2. Resumed from its state; hours on a CPU.

``python ckpts_ICT/demo/train.py --start START --data DATA --save_path OUT --stage1_hours 9 --stage2_hours 9
--lite0 efficientnet-lite0-57934424.pth`` writes OUT/gpt.pth and OUT/generator.pth, of which ``ckpts_ICT/convert.py``
makes checkpoints, OUT/log.txt and OUT/sheet.jpg, a picture of held-back results.
"""
from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from PIL import Image
from torch.nn import functional

from ckpts_ICT.demo.data import Data, enlarged, random_number, touched
from ckpts_ICT.demo.networks import GPT, Features, Generator
from ckpts_ICT.demo.priors import Pool, priors, random_views
from ict import checkpoint, files, options
from ict.command import run
from ict.errors import require
from ict.runs.perceptual import SHORTEST_LENGTH

GRID = 8  # pixels


class EMA:
    """Exponential moving averages of a network's weights, with a shorter memory in the first steps."""

    def __init__(self, net: torch.nn.Module, decay: float) -> None:
        self.decay, self.n_steps = decay, 0
        self.weights = {name: value.detach().clone() for name, value in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: torch.nn.Module) -> None:
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        torch._foreach_lerp_(list(self.weights.values()), list(net.state_dict().values()), 1 - decay)

    @contextlib.contextmanager
    def inside(self, net: torch.nn.Module) -> Iterator[None]:
        """The averages in place of the network's own weights."""
        own = {name: value.detach().clone() for name, value in net.state_dict().items()}
        net.load_state_dict(self.weights)
        try:
            yield
        finally:
            net.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.n_steps = state['weights'], state['n_steps']


class Training:
    """What both stages share: the state on disk, the time, the log.

    Args:
        parts: by name, what has a ``state_dict``.
    """

    def __init__(self, stage: str, hours: float, args: argparse.Namespace, parts: dict[str, Any]) -> None:
        self.stage, self.hours, self.args, self.parts = stage, hours, args, parts
        self.path, self.pictures, self.step = args.save_path / f'{stage}_state.pt', 0, 0
        if self.path.exists():
            state = torch.load(self.path, map_location=args.device, weights_only=False)
            self.pictures = state.pop('pictures')
            for name, part in parts.items():
                part.load_state_dict(state[name])
        self.started = self.said = time.time()
        self.values: dict[str, list[torch.Tensor]] = {}

    def goes_on(self) -> bool:
        """Whether some of this run's hours are left."""
        return time.time() - self.started < 3600 * self.hours

    def rate(self, base: float, warmup: int) -> float:
        """The learning rate: a linear warm-up, then constant; in the last ``decay_share`` of the hours down to 0."""
        left = max(0.0, 1 - (time.time() - self.started) / (3600 * self.hours))
        return base * min(1.0, (self.step + 1) / warmup, left / max(self.args.decay_share, 1e-9))

    def done(self, count: int, losses: dict[str, torch.Tensor]) -> bool:
        """Note a step; whether it is time for ``report``."""
        self.step, self.pictures = self.step + 1, self.pictures + count
        for name, value in losses.items():
            self.values.setdefault(name, []).append(value.detach())
        return time.time() - self.said > self.args.log_seconds or not self.goes_on()

    def report(self, held_back: str) -> None:
        """Log the mean losses and write the state."""
        means = ', '.join(f'{name} {torch.stack(values).mean().item():.4f}' for name, values in self.values.items())
        log(self.args.save_path, f'{self.stage}: {self.pictures} pictures, {means}; held back: {held_back}')
        state = {'pictures': self.pictures, **{name: part.state_dict() for name, part in self.parts.items()}}
        with files.replacing(self.path) as temporary:
            torch.save(state, temporary)
        self.said, self.values = time.time(), {}


def log(folder: Path, line: str) -> None:
    print(line, flush=True)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as stream:
        stream.write(line + '\n')


def half(device: str) -> Any:
    """bfloat16 where it is fast."""
    flags = Path('/proc/cpuinfo').read_text() if device == 'cpu' else ''
    return torch.autocast(device, torch.bfloat16, enabled=device != 'cpu' or 'amx' in flags or 'avx512_bf16' in flags)


def compiled(net: torch.nn.Module, args: argparse.Namespace) -> Any:
    return torch.compile(net) if args.compile else net


def start_with(net: torch.nn.Module, folder: Path, written: str, bundled: str, hours: float) -> None:
    """Take the weights that this script has ``written`` or those of a ``bundled`` checkpoint."""
    ours, theirs = folder / written, folder / bundled
    require(not (ours.exists() and theirs.exists()), f'--start {folder}: holds {written} and {bundled}; remove one')
    if ours.exists():
        [weights] = torch.load(ours, map_location='cpu').values()
        net.load_state_dict({name: value.float() for name, value in weights.items()})
    elif theirs.exists():
        entries = checkpoint.read(theirs)
        # MindSpore calls an embedding's weight embedding_table, a layer norm's weight and bias gamma and beta
        net.load_state_dict({re.sub('embedding_table|gamma', 'weight', name).replace('beta', 'bias'):
                             torch.from_numpy(entries.array(name)) for name in entries.entries})
    else:
        require(hours > 0, f'--start {folder}: holds neither {written} nor {bundled}, and there are no hours to train '
                           f'from nothing')


# ---- stage 1


def train_gpt(args: argparse.Namespace, data: Data) -> GPT:
    """Cross-entropy of the missing tokens; writes gpt.pth and returns the network with averaged weights."""
    net = GPT(args.n_layer, args.n_embd, args.n_head).to(args.device)
    start_with(net, args.start, 'gpt.pth', 'Transformer.ckpt', args.stage1_hours)
    decays = {name for name, p in net.named_parameters() if p.ndim == 2 and 'emb' not in name}
    optimizer = torch.optim.AdamW([
        {'params': [p for name, p in net.named_parameters() if name in decays], 'weight_decay': 0.05},
        {'params': [p for name, p in net.named_parameters() if name not in decays], 'weight_decay': 0.0}],
        lr=args.lr1, betas=(0.9, 0.95))
    ema = EMA(net, args.ema_decay1)
    training = Training('gpt', args.stage1_hours, args, {'net': net, 'optimizer': optimizer, 'ema': ema})
    fast_net = compiled(net, args)
    while training.goes_on():
        tokens, mask = data.random_tokens(args.batch1), touched(data.random_holes(args.batch1))
        for group in optimizer.param_groups:
            group['lr'] = training.rate(args.lr1, warmup=100)
        with half(args.device):
            logits = net.logits(fast_net(tokens, mask)[mask])
        loss = functional.cross_entropy(logits.float(), tokens[mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update(net)
        if training.done(args.batch1, {'nats': loss}):
            with ema.inside(net):
                training.report(f'{held_back_nats(net, data, args.device):.4f} nats')
    net.load_state_dict(ema.weights)
    torch.save({'model': {name: value.half().cpu() for name, value in net.state_dict().items()}},
               args.save_path / 'gpt.pth')
    return net.eval()


@torch.no_grad()
def held_back_nats(net: GPT, data: Data, device: str) -> float:
    """Cross-entropy of the missing tokens of the held-back pictures."""
    tokens, mask = data.tokens_of(data.held_back), touched(data.held_back_holes)
    total = 0.0
    for some, hole in zip(tokens.split(16), mask.split(16), strict=True):
        with half(device):
            logits = net.logits(net(some, hole)[hole])
        total += functional.cross_entropy(logits.float(), some[hole], reduction='sum').item()
    return total / int(mask.sum())


# ---- stage 2


def perceptual_distance(maps: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    """As LPIPS without its learned heads: squared distance of maps whose pixels have length 1, summed over the maps."""
    unit = [[functional.normalize(x.float(), dim=1, eps=SHORTEST_LENGTH) for x in some] for some in (maps, wanted)]
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(*unit, strict=True)]).sum()


def pixel_weights(hole: torch.Tensor) -> torch.Tensor:
    """1 in the hole, up to 3 at its boundary, 0.05 outside: (B, 1, S, S)."""
    known_nearby = functional.avg_pool2d(1 - hole, 9, 1, 4)
    return torch.where(hole > 0, 1 + 4 * known_nearby, torch.full_like(hole, 0.05))


def generator_losses(painted: torch.Tensor, image: torch.Tensor, hole: torch.Tensor, features: Features,
                     start: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Losses by name, not yet weighted: pixels, means of 16 x 16 and of 64 x 64 pixels, features.

    Args:
        start: where the features' grid begins, each below GRID. The generator would learn a grid that never moves.
    """
    losses = {'l1': ((painted - image).abs() * pixel_weights(hole)).sum() / hole.sum().clamp(min=1) / 3}
    errors = [functional.avg_pool2d((painted - image) * hole, size).abs().mean() for size in (16, 64)]
    losses['coarse'] = torch.stack(errors).mean() / hole.mean().clamp(min=1e-3)
    y, x = start
    real, fake = (view[..., y:view.shape[2] - GRID + y, x:view.shape[3] - GRID + x]
                  for view in (image, painted * hole + image * (1 - hole)))
    with torch.no_grad():
        wanted = features(real)
    losses['perceptual'] = perceptual_distance(features(fake), wanted)
    return losses


def train_generator(args: argparse.Namespace, data: Data, gpt: GPT) -> None:
    """L1 and perceptual losses on crops; writes generator.pth."""
    net = Generator()
    start_with(net, args.start, 'generator.pth', 'InpaintingModel_gen.ckpt', args.stage2_hours)
    net.to(args.device, memory_format=torch.channels_last)
    features = Features(args.lite0).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr2, betas=(0.5, 0.99))
    ema = EMA(net, args.ema_decay2)
    training = Training('generator', args.stage2_hours, args, {'net': net, 'optimizer': optimizer, 'ema': ema})
    weights = {name: getattr(args, f'{name}_weight') for name in ('l1', 'coarse', 'perceptual')}
    fast_net, fast_features = compiled(net, args), compiled(features, args)
    pool, made = None, 0.0
    while training.goes_on():
        if pool is None or time.time() - made > 3600 * args.pool_hours:
            pool, made = pool_on_disk(args, data, gpt, anew=pool is not None), time.time()
        image, prior, hole = random_views(*pool.batch(data, args.batch2), args.crop)
        optimizer.param_groups[0]['lr'] = training.rate(args.lr2, warmup=150)
        start = random_number(GRID), random_number(GRID)
        with half(args.device):
            losses = generator_losses(fast_net(image, prior, hole).float(), image, hole, fast_features, start)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update(net)
        if training.done(args.batch2, losses):
            with ema.inside(net):
                training.report(held_back_results(net, gpt, data, features, args))
    net.load_state_dict(ema.weights)
    torch.save({'generator': {name: value.float().cpu().contiguous() for name, value in net.state_dict().items()}},
               args.save_path / 'generator.pth')


def pool_on_disk(args: argparse.Namespace, data: Data, gpt: GPT, anew: bool) -> Pool:
    """The pool of the run before, or a new one. A GPU makes it in the time in which it could be read."""
    path = args.save_path / 'pool.pt'
    if path.exists() and not anew:
        return Pool(**torch.load(path, map_location=args.device))
    with half(args.device):
        pool = Pool.made(gpt, data, args.pool_size, args.pool_at_once, args.toned)
    if args.device == 'cpu':
        torch.save(vars(pool), path)
    return pool


@torch.no_grad()
def held_back_results(net: Generator, gpt: GPT, data: Data, features: Features, args: argparse.Namespace) -> str:
    """PSNR and perceptual distance with priors of three kinds; the results' picture goes to sheet.jpg."""
    image, hole = data.held_back[:args.scored] / 255, data.held_back_holes[:args.scored]
    columns, scores = [image, torch.where(hole[:, None], 1.0, image)], []
    wanted = [features(some) for some in image.split(10)]
    for title, n_passes in (('sample', 16), ('deterministic', 0), ('true prior', None)):
        results = []
        for some, some_hole in zip(image.split(10), hole.split(10), strict=True):
            with half(args.device):
                prior = (data.true_priors(some * 255) if n_passes is None else
                         priors(gpt, data, some * 255, some_hole, n_passes, 0.6))
                painted = net(some, enlarged(prior), some_hole[:, None].float()).float()
            results.append(torch.where(some_hole[:, None], painted, some))
        result = torch.cat(results)
        psnr = -10 * (result - image).square().mean((1, 2, 3)).log10().mean().item()
        distance = torch.stack([perceptual_distance(features(some), maps) for some, maps in
                                zip(result.split(10), wanted, strict=True)]).mean().item()
        scores.append(f'{title} {psnr:.2f} dB, perceptual {distance:.4f}')
        columns.append(result)
    sheet = torch.cat([torch.cat(row, 2) for row in zip(*[list(column[:12]) for column in columns], strict=True)], 1)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()).save(
        args.save_path / 'sheet.jpg', quality=90)
    return '; '.join(scores)


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='ckpts_ICT/demo/train.py', description='Train the demo pair.')
    add = parser.add_argument
    add('--start', type=Path, required=True, help='palette, masks, held-back pictures and first weights')
    add('--data', type=Path, required=True, help='photos*.tar and small*.tar')
    add('--save_path', type=Path, required=True)
    add('--lite0', type=Path, required=True, help='efficientnet-lite0-57934424.pth')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--seed', type=int, default=0)
    add('--log_seconds', type=float, default=420)
    add('--decay_share', type=float, default=0.0, help="of a stage's hours in which its learning rate falls to 0")
    add('--compile', action='store_true', help='torch.compile: half a minute at first, faster on a GPU')
    add('--scored', type=int, default=20, help='held-back pictures that are painted for the log')
    # stage 1
    add('--stage1_hours', type=float, default=1)
    add('--n_layer', type=int, default=6)
    add('--n_embd', type=int, default=192)
    add('--n_head', type=int, default=2)
    add('--batch1', type=int, default=8)
    add('--lr1', type=float, default=1.5e-3)
    add('--ema_decay1', type=float, default=0.9995)
    # priors
    add('--pool_size', type=int, default=1200, help='priors that stage 1 makes at a time')
    add('--pool_at_once', type=int, default=16)
    add('--toned', type=float, default=0.5, help='share of the pictures whose brightness and colours are changed')
    add('--pool_hours', type=float, default=1, help='how long they are used')
    # stage 2
    add('--stage2_hours', type=float, default=1)
    add('--crop', type=int, default=128)
    add('--batch2', type=int, default=8)
    add('--lr2', type=float, default=1e-4)
    add('--ema_decay2', type=float, default=0.998)
    add('--l1_weight', type=float, default=1.0)
    add('--coarse_weight', type=float, default=2.0)
    add('--perceptual_weight', type=float, default=1.0)
    args = parser.parse_args(argv)
    args.save_path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    data = Data(args.start, args.data, args.device)
    log(args.save_path, f'{len(data.photos)} photographs, {len(data.small)} small pictures, '
                        f'{len(data.held_back)} held back')
    train_generator(args, data, train_gpt(args, data))
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
