"""Train the demo pair in PyTorch: stage 1, priors that it makes, stage 2. Minutes on a GPU, hours on a CPU.

``python ckpts_ICT/demo/train.py --data DATA --save_path OUT --stage1_hours 9 --stage2_hours 9`` writes OUT/gpt.pth and
OUT/generator.pth, which ``ckpts_ICT/convert.py`` turns into checkpoints. OUT/log.txt and OUT/sheet.jpg show scores and
results of held-back pictures. The same command continues an interrupted training.
"""
from __future__ import annotations

import argparse
import contextlib
import re
import signal
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
from ict.runs.perceptual import SHORTEST_LENGTH, weights_file

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
        hours: of the whole stage, with the runs before that were interrupted.
        parts: by name, what has a ``state_dict``.
    """

    def __init__(self, stage: str, hours: float, args: argparse.Namespace, parts: dict[str, Any]) -> None:
        self.stage, self.hours, self.args, self.parts = stage, hours, args, parts
        self.path = state_file(args, stage)
        self.pictures = self.step = 0
        spent = 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=args.device, weights_only=False)
            self.pictures, self.step, spent = (state.pop(name) for name in ('pictures', 'step', 'seconds'))
            restore_random_state(state.pop('random'))
            for name, part in parts.items():
                part.load_state_dict(state[name])
        self.said = time.time()
        self.started = self.said - spent
        self.values: dict[str, list[torch.Tensor]] = {}

    def __enter__(self) -> Training:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            self.save()

    def left(self) -> float:
        """The share of the stage's hours that is left, at most 1."""
        return 1 - (time.time() - self.started) / (3600 * self.hours) if self.hours > 0 else 0.0

    def rate(self, base: float, warmup: int) -> float:
        """The learning rate: a linear warm-up, then constant; in the last ``decay_share`` of the hours down to 0."""
        return base * min(1.0, (self.step + 1) / warmup, max(0.0, self.left()) / max(self.args.decay_share, 1e-9))

    def done(self, count: int, losses: dict[str, torch.Tensor]) -> bool:
        """Note a step; whether it is time for ``report``."""
        self.step, self.pictures = self.step + 1, self.pictures + count
        for name, value in losses.items():
            self.values.setdefault(name, []).append(value.detach())
        return time.time() - self.said > self.args.log_seconds or self.left() <= 0

    def report(self, held_back: str) -> None:
        """Log the mean losses and write the state."""
        means = ', '.join(f'{name} {torch.stack(values).mean().item():.4f}' for name, values in self.values.items())
        log(self.args.save_path, f'{self.stage}: {self.pictures} pictures, {means}; held back: {held_back}')
        self.save()
        self.said, self.values = time.time(), {}

    def save(self) -> None:
        save({'pictures': self.pictures, 'step': self.step, 'seconds': time.time() - self.started,
              'random': random_state(), **{name: part.state_dict() for name, part in self.parts.items()}}, self.path)


def state_file(args: argparse.Namespace, stage: str) -> Path:
    return args.save_path / f'{stage}_state.pt'


def save(content: Any, path: Path) -> None:
    with files.replacing(path) as temporary:
        torch.save(content, temporary)


def random_state() -> list[torch.Tensor]:
    """The states of PyTorch's generators: the CPU's and each GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def restore_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    torch.cuda.set_rng_state_all([state.cpu() for state in states[1:]])


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


def first_weights(args: argparse.Namespace, stage: str, hours: float, bundled: str) -> Path | None:
    """The file in --weights with which a stage begins: this script's own (gpt.pth) or a ``bundled`` checkpoint."""
    names = (f'{stage}.pth', bundled)
    found = [args.weights / name for name in names if args.weights and (args.weights / name).exists()]
    require(len(found) < 2, f'--weights {args.weights}: holds {" and ".join(names)}; remove one')
    require(bool(found) or not args.weights, f'--weights {args.weights}: holds neither {names[0]} nor {names[1]}')
    require(bool(found) or hours > 0 or state_file(args, stage).exists(),
            f'{stage}: no hours to train it from nothing; give its weights by --weights')
    return found[0] if found else None


def load(net: torch.nn.Module, path: Path | None) -> None:
    """Load weights of ``first_weights``; without a file the network keeps its initial ones."""
    if path is None:
        return
    if path.suffix == '.ckpt':
        entries = checkpoint.read(path)
        # MindSpore calls an embedding's weight embedding_table, a layer norm's weight and bias gamma and beta
        weights = {re.sub('embedding_table|gamma', 'weight', name).replace('beta', 'bias'):
                   torch.from_numpy(entries.array(name)) for name in entries.entries}
    else:
        [weights] = torch.load(path, map_location='cpu').values()
    own = {name: value.shape for name, value in net.state_dict().items()}
    require({name: value.shape for name, value in weights.items()} == own, f'{path}: a network of another shape')
    net.load_state_dict({name: value.float() for name, value in weights.items()})


# ---- stage 1


def train_gpt(args: argparse.Namespace, data: Data, weights: Path | None) -> GPT:
    """Cross-entropy of the missing tokens; writes gpt.pth and returns the network with averaged weights."""
    net = GPT(args.n_layer, args.n_embd, args.n_head).to(args.device)
    load(net, weights)
    decays = {name for name, p in net.named_parameters() if p.ndim == 2 and 'emb' not in name}
    optimizer = torch.optim.AdamW([
        {'params': [p for name, p in net.named_parameters() if name in decays], 'weight_decay': 0.05},
        {'params': [p for name, p in net.named_parameters() if name not in decays], 'weight_decay': 0.0}],
        lr=args.lr1, betas=(0.9, 0.95))
    ema = EMA(net, args.ema_decay1)
    training = Training('gpt', args.stage1_hours, args, {'net': net, 'optimizer': optimizer, 'ema': ema})
    fast_net = compiled(net, args)
    with training:
        while training.left() > 0:
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
                    held_back = f'{held_back_nats(net, data, args.device):.4f} nats'
                training.report(held_back)
    net.load_state_dict(ema.weights)
    save({'model': {name: value.half().cpu() for name, value in net.state_dict().items()}}, args.save_path / 'gpt.pth')
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
    """1 in the hole, more towards its boundary (3 at a straight one, 5 at most), 0.05 outside: (B, 1, S, S)."""
    known_nearby = functional.avg_pool2d(1 - hole, 9, 1, 4)
    return torch.where(hole > 0, 1 + 4 * known_nearby, torch.full_like(hole, 0.05))


def generator_losses(painted: torch.Tensor, image: torch.Tensor, hole: torch.Tensor, features: Features,
                     start: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Losses by name, not yet weighted: pixels, means of 16 x 16 and of 64 x 64 pixels, features.

    Args:
        start: where the features' grid begins, each below GRID. The generator would learn a grid that never moves.
    """
    hole_size = hole.sum().clamp(min=hole.numel() / 100)
    losses = {'l1': ((painted - image).abs() * pixel_weights(hole)).sum() / hole_size / 3}
    errors = [functional.avg_pool2d((painted - image) * hole, size).abs().mean() for size in (16, 64)]
    losses['coarse'] = torch.stack(errors).mean() / hole.mean().clamp(min=1e-3)
    y, x = start
    real, fake = (view[..., y:view.shape[2] - GRID + y, x:view.shape[3] - GRID + x]
                  for view in (image, painted * hole + image * (1 - hole)))
    with torch.no_grad():
        wanted = features(real)
    losses['perceptual'] = perceptual_distance(features(fake), wanted)
    return losses


def train_generator(args: argparse.Namespace, data: Data, gpt: GPT, features: Features, weights: Path | None) -> None:
    """L1 and perceptual losses on crops; writes generator.pth."""
    net = Generator()
    load(net, weights)
    net.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr2, betas=(0.5, 0.99))
    ema = EMA(net, args.ema_decay2)
    training = Training('generator', args.stage2_hours, args, {'net': net, 'optimizer': optimizer, 'ema': ema})
    factors = {name: getattr(args, f'{name}_weight') for name in ('l1', 'coarse', 'perceptual')}
    fast_net, fast_features = compiled(net, args), compiled(features, args)
    pool, made = None, 0.0
    with training:
        while training.left() > 0:
            if pool is None or time.time() - made > 3600 * args.pool_hours:
                pool, made = pool_on_disk(args, data, gpt, anew=pool is not None), time.time()
            image, prior, hole = random_views(*pool.batch(data, args.batch2), args.crop)
            optimizer.param_groups[0]['lr'] = training.rate(args.lr2, warmup=150)
            start = random_number(GRID), random_number(GRID)
            with half(args.device):
                losses = generator_losses(fast_net(image, prior, hole).float(), image, hole, fast_features, start)
            optimizer.zero_grad(set_to_none=True)
            torch.stack([factors[name] * loss for name, loss in losses.items()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            ema.update(net)
            if training.done(args.batch2, losses):
                with ema.inside(net):
                    held_back = held_back_results(net, gpt, data, features, args)
                training.report(held_back)
    net.load_state_dict(ema.weights)
    save({'generator': {name: value.float().cpu().contiguous() for name, value in net.state_dict().items()}},
         args.save_path / 'generator.pth')


def pool_on_disk(args: argparse.Namespace, data: Data, gpt: GPT, anew: bool) -> Pool:
    """The pool of an interrupted run, or a new one. A GPU makes it in the time in which it could be read."""
    path = args.save_path / 'pool.pt'
    made_with = args.pool_size, args.toned, sum(value.double().sum().item() for value in gpt.state_dict().values())
    if path.exists() and not anew:
        content = torch.load(path, map_location=args.device)
        if content.pop('made_with') == made_with:
            return Pool(**content)
    with half(args.device):
        pool = Pool.made(gpt, data, args.pool_size, args.pool_at_once, args.toned)
    if args.device == 'cpu':
        save({'made_with': made_with, **vars(pool)}, path)
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
    add('--data', type=Path, required=True, help='photos*.tar, small*.tar, heldback.tar and masks.npz')
    add('--save_path', type=Path, required=True)
    add('--weights', type=Path, help='a folder with the weights to begin with: gpt.pth and generator.pth, or '
                                     'Transformer.ckpt and InpaintingModel_gen.ckpt; default: from nothing')
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
    require(args.pool_size >= 12 * args.pool_at_once,
            '--pool_size: at least 12 times --pool_at_once, so that each kind of prior meets each kind of hole')
    gpt_weights = first_weights(args, 'gpt', args.stage1_hours, 'Transformer.ckpt')
    generator_weights = first_weights(args, 'generator', args.stage2_hours, 'InpaintingModel_gen.ckpt')
    features = Features(weights_file('lite0')).to(args.device, memory_format=torch.channels_last)
    files.output_folder(args.save_path, '--save_path')
    torch.manual_seed(args.seed)
    try:
        data = Data(args.data, args.device)
        log(args.save_path, f'{len(data.photos)} photographs, {len(data.small)} small pictures, '
                            f'{len(data.held_back)} held back')
        train_generator(args, data, train_gpt(args, data, gpt_weights), features, generator_weights)
    except KeyboardInterrupt:
        log(args.save_path, 'interrupted; the same command continues')
        return 128 + signal.SIGINT
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
