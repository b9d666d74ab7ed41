"""Training: the published trajectory, options against NumPy, and resumes that nobody can tell from no stop at all."""
from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from PIL import Image

from Guided_Upsample import infer as infer_2
from Guided_Upsample import train as train_2
from ict import checkpoint
from ict.data import images
from ict.errors import UserError
from ict.training import checkpointer, epoch_sampler, loop, optimizers, schedule
from tests.conftest import DEVICE, ROOT, command, files_of, made_up, parity, photograph, set_weights
from Transformer import train as train_1
from Transformer.models import networks
from Transformer.models.networks import GPT
from Transformer.models.step import Recipe, TrainStep, is_decayed


class PublishedNorm(nn.LayerNorm):
    """nn.LayerNorm with the gradient of the MindSpore that made the arrays: its kernel took 1e-12 for the epsilon.

    Missing positions begin with a variance of 3e-4, where 1e-5 more or less is 2 % of the gradient.
    """

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return _Normalised()(x, self.gamma, self.beta)


class _Normalised(nn.Cell):
    def construct(self, x, gamma, beta):
        centred = x - x.mean(-1, keep_dims=True)
        return centred / ops.sqrt((centred * centred).mean(-1, keep_dims=True) + 1e-5) * gamma + beta

    def bprop(self, x, gamma, beta, out, dout):
        centred = x - x.mean(-1, keep_dims=True)
        scale = 1 / ops.sqrt((centred * centred).mean(-1, keep_dims=True) + 1e-12)
        normal, d = centred * scale, dout * gamma
        dx = scale * (d - d.mean(-1, keep_dims=True) - normal * (d * normal).mean(-1, keep_dims=True))
        return dx, (dout * normal).sum((0, 1)), dout.sum((0, 1))


@pytest.mark.parametrize('gelu_2', [False, True])
@pytest.mark.parametrize('recompute', [False, True])
def test_three_adam_steps_equal_the_published(gelu_2, recompute, monkeypatch):
    monkeypatch.setattr(networks.nn, 'LayerNorm', PublishedNorm)
    arrays = parity(f'transformer_gelu2_{int(gelu_2)}.npz')
    vocab, n_embd, n_layer, n_head, block = (int(v) for v in arrays['config'])
    net = GPT(vocab, n_embd, n_layer, n_head, block, gelu_2)
    set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, 7))
    step = TrainStep(net, Recipe(recompute=recompute))
    losses = [step(arrays['idx'], arrays['masks'], 3e-4)['loss'] for _ in range(3)]
    np.testing.assert_allclose(losses, arrays['losses'], rtol=1e-6)
    net.set_train(False)
    after = net(ms.Tensor(arrays['idx']), ms.Tensor(arrays['masks'])).asnumpy()
    np.testing.assert_allclose(after, arrays['logits_after_3_steps'], atol=2e-5)


def toy_step(**changed) -> tuple[GPT, TrainStep, np.ndarray, np.ndarray]:
    net = GPT(16, 8, 1, 2, 16, True, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    return (net, TrainStep(net, Recipe(**changed)), rng.integers(0, 16, (2, 16)).astype(np.int32),
            (rng.random((2, 16)) < 0.5).astype(np.float32))


def values(net) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


def test_dynamic_weight_is_the_loss_per_missing_token():
    _, plain, tokens, masks = toy_step()
    _, dynamic, _, _ = toy_step(dynamic_weight=True)
    published, per_token = plain(tokens, masks, 1e-3), dynamic(tokens, masks, 1e-3)
    assert per_token['loss'] == pytest.approx(per_token['nll'], rel=1e-6)
    assert published['loss'] == pytest.approx(per_token['loss'] * masks.mean(), rel=1e-5)


def test_weight_decay_is_decoupled_and_spares_biases_norms_and_embeddings():
    rate, decay = 1e-2, 0.5
    plain_net, plain, tokens, masks = toy_step()
    net, step, _, _ = toy_step(weight_decay=decay)
    before = values(net)
    plain(tokens, masks, rate)
    step(tokens, masks, rate)
    without, with_ = values(plain_net), values(net)
    for name in before:
        extra = rate * decay * before[name] if is_decayed(name) else 0
        np.testing.assert_allclose(with_[name], without[name] - extra, atol=1e-6)
    assert {n for n in before if is_decayed(n)} == {n for n in before if n.endswith('.weight')}


def test_clipping_scales_all_gradients_together():
    # Adam's first step hides the scale, so its first moment is looked at: (1 - beta1) * gradient.
    _, plain, tokens, masks = toy_step()
    _, clipped, _, _ = toy_step(clip_norm=0.01)
    norm = plain(tokens, masks, 1e-3)['grad_norm']
    assert clipped(tokens, masks, 1e-3)['grad_norm'] == pytest.approx(norm, rel=1e-5)

    def moments(step: TrainStep) -> dict[str, np.ndarray]:
        return {p.name: p.asnumpy() / 0.1 for p in step.optimizer.moment1}
    full, small = moments(plain), moments(clipped)
    total = math.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in full.values()))
    assert total == pytest.approx(norm, rel=1e-4)
    for name, value in full.items():
        np.testing.assert_allclose(small[name], value * (0.01 / norm), rtol=2e-3, atol=1e-8)


def test_a_step_over_as_many_parameters_as_35_layers_have_compiles():
    count, rate, decay = 600, ms.Tensor(0.1, ms.float32), 0.5
    weights = [ms.Parameter(np.full(2, i, np.float32), name=f'{i}.weight') for i in range(count)]
    optimizer = nn.SGD(weights, learning_rate=0.1)
    update = optimizers.Update(optimizer, 1.0, decay, is_decayed, False, None)

    @ms.jit
    def step(gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
        return update(gradients, rate)

    assert float(step((ms.Tensor([3.0, 4.0], ms.float32),) * count)) == pytest.approx(5 * math.sqrt(count), rel=1e-5)
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(weight.asnumpy(),
                                   0.95 * i - 0.1 * np.array([3.0, 4.0]) / (5 * math.sqrt(count)), atol=1e-4)


@pytest.mark.parametrize('stage', [1, 2])
def test_mixed_precision_trains_near_float32_and_its_loss_scale_is_resumed(stage, pictures, masks, tiny, tmp_path):
    for level in ('O0', 'O2'):
        more = ('--amp_level', level, '--clip_norm', 0) if stage == 1 else ('--amp_level', level)
        argv = argv_1(pictures, tmp_path / level, tiny['kmeans'], '--max_steps', 4, *more) if stage == 1 else \
            argv_2(pictures, masks, tmp_path / level, tiny['kmeans'], '--max_iteration', 4, *more)
        assert (train_1 if stage == 1 else train_2).main(argv) == 0
    one, two = log_without_seconds(tmp_path / 'O0'), log_without_seconds(tmp_path / 'O2')
    key = 'loss' if stage == 1 else 'gen_loss'
    for a, b in zip(one, two, strict=True):
        assert float(b[key]) == pytest.approx(float(a[key]), rel=0.02)
    state = next((tmp_path / 'O2').glob('*_state.ckpt'))
    assert checkpoint.read(state).array('extra/scale') > 1


def test_schedules_by_hand():
    warm = [schedule.lr_at(s, 1.0, 'constant', 4, 100) for s in range(6)]
    np.testing.assert_allclose(warm, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    cosine = [schedule.lr_at(s, 2.0, 'cosine', 0, 4) for s in range(5)]
    half = math.cos(math.pi / 4)
    np.testing.assert_allclose(cosine, [2.0, 1 + half, 1.0, 1 - half, 0.0], atol=1e-12)
    both = [schedule.lr_at(s, 1.0, 'cosine', 2, 6) for s in (0, 1, 2, 4, 6)]
    np.testing.assert_allclose(both, [0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-12)


def test_order_is_a_permutation_every_epoch_and_the_same_for_any_ranks():
    alone = epoch_sampler.EpochSampler(10, 4, seed=3)
    seen = [n for step in range(alone.steps_per_epoch) for n, _, _ in alone.places(step)]
    assert len(seen) == 12 and set(seen) == set(range(10))  # filled up, since a network is compiled for four
    assert epoch_sampler.EpochSampler(1281167, 32, 0).steps_per_epoch == 40037  # the published log's
    assert [n for n, _, _ in alone.places(0)] != [n for n, _, _ in alone.places(alone.steps_per_epoch)]
    for step in range(7):
        whole = [(n, p, rng.random()) for n, p, rng in alone.places(step)]
        split = [(n, p, rng.random()) for r in range(2)
                 for n, p, rng in epoch_sampler.EpochSampler(10, 2, 3, r, 2).places(step)]
        assert whole == split


# ---------------------------------------------------------------- whole runs

@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for i in range(10):
        Image.fromarray(photograph(i, 40 + i, 40)).save(folder / f'{i}.png')
    return folder


@pytest.fixture
def masks(tmp_path) -> Path:
    folder = tmp_path / 'masks'
    done = command('mask/generate.py', '--save_path', folder, '--count', 3, '--lowest', 0.1, '--highest', 0.5)
    assert done.returncode == 0
    return folder


def argv_1(pictures: Path, save: Path, kmeans: Path, *more: object) -> list[str]:
    return [str(a) for a in ('--data_path', pictures, '--random_stroke', '--save_path', save, '--kmeans', kmeans,
                             '--n_layer', 1, '--n_embd', 16, '--n_head', 2, '--prior_size', 8, '--GELU_2',
                             '--batch_size', 2, '--log_every', 2, '--save_every', 3, '--num_workers', 0,
                             '--device_target', DEVICE, '--learning_rate', 1e-2, '--lr_schedule', 'cosine',
                             '--warmup_steps', 3, '--clip_norm', 1, '--weight_decay', 0.01, *more)]


def argv_2(pictures: Path, masks: Path, save: Path, kmeans: Path, *more: object) -> list[str]:
    return [str(a) for a in ('--input', pictures, '--mask', masks, '--save_path', save, '--kmeans', kmeans,
                             '--base_channels', 4, '--residual_blocks', 1, '--image_size', 32, '--prior_size', 8,
                             '--prior_random_degree', 3, '--batch_size', 2, '--log_every', 2, '--save_every', 3,
                             '--num_workers', 0, '--device_target', DEVICE, '--lr', 1e-3, '--style_loss_weight', 0,
                             '--content_loss_weight', 0, *more)]


def trained(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if name.endswith('.ckpt')}


def log_without_seconds(folder: Path) -> list[dict[str, str]]:
    [log] = folder.glob('*_log.csv')
    with open(log, newline='') as stream:
        return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(stream)]


def test_stage_1_trains_logs_and_its_checkpoint_infers(pictures, tiny, tmp_path, capsys):
    assert train_1.main(argv_1(pictures, tmp_path / 'a', tiny['kmeans'], '--max_steps', 12, '--dynamic_weight',
                               '--val_path', pictures, '--val_every', 6)) == 0
    said = capsys.readouterr()
    assert 'Epoch: [0 / 5], step: [4 / 10], loss: ' in said.out + said.err
    rows = log_without_seconds(tmp_path / 'a')
    scores = [float(row['val_nll']) for row in rows if row.get('val_nll')]
    assert len(scores) == 2 and scores[1] < scores[0] < math.log(512) + 1
    done = 0
    for row in rows:
        if row['lr']:  # each row is the mean over the steps since the one before
            steps = range(done, int(row['step']))
            done = steps.stop
            rates = [schedule.lr_at(i, 1e-2, 'cosine', 3, 12) for i in steps]
            assert float(row['lr']) == pytest.approx(np.mean(rates), rel=1e-4)
    assert done == 12
    assert images.load_rgb(tmp_path / 'a' / 'ImageNet_curves.png').shape[2] == 3
    best = checkpoint.read(tmp_path / 'a' / 'ImageNet_best.ckpt')
    assert best.kind == 'Transformer' and best.metadata['step'] == 12 and best.palette is not None
    from Transformer import infer
    (tmp_path / 'm').mkdir()
    Image.new('L', (20, 20), 255).save(tmp_path / 'm' / 'all.png')
    assert infer.main([str(a) for a in ('--ckpt_path', best.path, '--image_url', pictures / '0.png', '--mask_url',
                                        tmp_path / 'm', '--save_url', tmp_path / 'p', '--device_target', DEVICE)]) == 0
    assert (tmp_path / 'p' / 'condition_1' / '0.png').is_file()


def test_stage_1_trains_and_is_scored_with_masks_from_files(pictures, masks, tiny, tmp_path):
    scores = {}
    for name in ('00000', '00001'):
        argv = argv_1(pictures, tmp_path / name, tiny['kmeans'], '--mask_path', masks, '--max_steps', 1, '--val_path',
                      pictures, '--val_mask', masks / f'{name}.png')
        assert train_1.main([word for word in argv if word != '--random_stroke']) == 0
        (scores[name],) = (row['val_nll'] for row in log_without_seconds(tmp_path / name) if row['val_nll'])
    assert scores['00000'] != scores['00001']


def test_stage_2_trains_logs_scores_and_its_checkpoint_resumes_weights_only(pictures, masks, tiny, tmp_path, capsys):
    argv = argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 12, '--val_path', pictures,
                  '--val_every', 6)
    assert train_2.main(argv) == 0
    said = capsys.readouterr()
    assert 'Epoch: [1], step: [2 / 5], psnr: ' in said.out + said.err
    rows = log_without_seconds(tmp_path / 'a')
    assert {'gen_loss', 'l1', 'adv', 'dis_real', 'dis_fake', 'content', 'style', 'val_psnr', 'val_ssim'} <= set(rows[0])
    scores = [float(row['val_psnr']) for row in rows if row.get('val_psnr')]
    assert scores[1] > scores[0]
    assert (tmp_path / 'a' / 'sample_0000012.png').is_file()
    assert train_2.main([*argv_2(pictures, masks, tmp_path / 'b', tiny['kmeans']), '--mode', '2', '--ckpt_path',
                         str(tmp_path / 'a')]) == 0
    assert 'PSNR: ' in capsys.readouterr().out
    (tmp_path / 'a' / checkpointer.state_name(train_2.GEN)).unlink()
    assert train_2.main(argv_2(pictures, masks, tmp_path / 'c', tiny['kmeans'], '--ckpt_path', tmp_path / 'a',
                               '--max_iteration', 1)) == 0
    assert 'weights only, from step 0' in capsys.readouterr().err


@pytest.mark.parametrize('stage', [1, 2])
def test_a_resumed_run_ends_with_the_same_bytes_as_an_undisturbed_one(stage, pictures, masks, tiny, tmp_path):
    """Stops in the middle of an epoch, between two saves of an undisturbed run; two worker processes against none."""
    def run(save: Path, *more: object) -> int:
        if stage == 1:
            return train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 12, '--val_path', pictures,
                                       '--val_every', 4, *more))
        return train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 12, '--val_path', pictures,
                                   '--val_every', 4, *more))
    assert run(tmp_path / 'whole') == 0
    resume = tmp_path / 'parts' / ('ImageNet_latest.ckpt' if stage == 1 else '')
    with stopping_after(7):
        assert run(tmp_path / 'parts') == 128 + signal.SIGTERM
    assert run(tmp_path / 'parts', '--ckpt_path', resume, '--num_workers', 2) == 0
    assert_same_but_previous_save(tmp_path)
    assert log_without_seconds(tmp_path / 'parts') == log_without_seconds(tmp_path / 'whole')


def assert_same_but_previous_save(tmp_path: Path) -> None:
    """The states' record may name another previous save; every tensor and everything else is equal."""
    whole, parts = trained(tmp_path / 'whole'), trained(tmp_path / 'parts')
    assert whole.keys() == parts.keys()
    for name in whole:
        one, two = checkpoint.read(tmp_path / 'whole' / name), checkpoint.read(tmp_path / 'parts' / name)
        assert one.entries.keys() == two.entries.keys()
        for tensor in one.entries:
            assert one.array(tensor).tobytes() == two.array(tensor).tobytes(), (name, tensor)
        records = [dict(f.metadata) for f in (one, two)]
        for record in records:
            record.get('progress', {}).pop('previous_save', None)
        assert records[0] == records[1]


class stopping_after:  # noqa: N801
    """Sends this process SIGTERM once a training has taken so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __enter__(self) -> None:
        count, limit, self.before = [0], self.steps, loop._count

        def counting(*args) -> None:
            self.before(*args)
            count[0] += 1
            if count[0] == limit:
                os.kill(os.getpid(), signal.SIGTERM)
        loop._count = counting

    def __exit__(self, *_: object) -> None:
        loop._count = self.before


@pytest.mark.parametrize('stage', [1, 2])
def test_kill_9_at_any_moment_leaves_whole_files_and_a_training_that_ends_the_same(stage, pictures, masks, tiny,
                                                                                   tmp_path):
    """Also during a save: with --save_every 1 the process saves most of the time."""
    script, name, weights, steps = (('Transformer/train.py', train_1.NAME, 'ImageNet_latest.ckpt', 120) if stage == 1
                                    else ('Guided_Upsample/train.py', train_2.GEN, '', 80))

    def argv(save: Path, *more: object) -> list[str]:
        if stage == 1:
            return argv_1(pictures, save, tiny['kmeans'], '--max_steps', steps, *more)
        return argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', steps, *more)
    save = tmp_path / 'parts'
    state = save / checkpointer.state_name(name)
    last = 0
    for i, extra in enumerate((0.05, 0.31)):
        child = subprocess.Popen([sys.executable, str(ROOT / script), *argv(
            save, '--save_every', 1, *(['--ckpt_path', save / weights] if i else []))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while not (state.is_file() and _step(state) >= last + 3):
            assert time.time() < deadline and child.poll() is None
            time.sleep(0.01)
        time.sleep(extra)
        child.send_signal(signal.SIGKILL)
        child.wait()
        last = _step(state)
    assert 6 <= last < steps
    (save / '.part-1-0.ckpt').write_bytes(b'what a kill during a save may leave')
    main = train_1.main if stage == 1 else train_2.main
    assert main(argv(save, '--save_every', 1000, '--ckpt_path', save / weights)) == 0
    assert main(argv(tmp_path / 'whole', '--save_every', 1000)) == 0
    assert not list(save.glob('.part-*'))
    one, two = (checkpoint.read(folder / checkpointer.state_name(name)) for folder in (tmp_path / 'whole', save))
    assert one.entries.keys() == two.entries.keys()
    for tensor in one.entries:
        assert one.array(tensor).tobytes() == two.array(tensor).tobytes(), tensor


@pytest.mark.parametrize('stage', [1, 2])
def test_the_state_alone_continues_when_a_kill_came_before_the_weights_were_renamed(stage, pictures, masks, tiny,
                                                                                   tmp_path):
    save = tmp_path / 'a'
    if stage == 1:
        assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 3)) == 0
        (save / 'ImageNet_latest.ckpt').unlink()
        assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 4, '--ckpt_path',
                                   save / 'ImageNet_latest.ckpt')) == 0
        assert checkpoint.read(save / 'ImageNet_latest.ckpt').metadata['step'] == 4
        return
    assert train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 3)) == 0
    (save / 'InpaintingModel_dis_latest.ckpt').unlink()
    assert train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 4, '--ckpt_path', save)) == 0
    assert checkpoint.read(save / 'InpaintingModel_dis_latest.ckpt').metadata['step'] == 4


def test_a_resume_and_scoring_need_no_architecture(pictures, masks, tiny, tmp_path, capsys):
    def without(argv: list[str], *names: str) -> list[str]:
        return [word for before, word in zip(['', *argv], argv, strict=False)
                if word not in names and (before not in names or word.startswith('--'))]
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert train_1.main(argv_1(pictures, one, tiny['kmeans'], '--max_steps', 2)) == 0
    assert train_2.main(argv_2(pictures, masks, two, tiny['kmeans'], '--max_iteration', 2)) == 0
    assert train_1.main(without(argv_1(pictures, one, tiny['kmeans'], '--max_steps', 3, '--ckpt_path',
                                       one / 'ImageNet_latest.ckpt'), '--n_layer', '--n_embd', '--n_head',
                                '--prior_size', '--GELU_2')) == 0
    argv = without(argv_2(pictures, masks, two, tiny['kmeans'], '--max_iteration', 3, '--ckpt_path', two),
                   '--base_channels', '--residual_blocks')
    assert train_2.main(argv) == 0
    with pytest.raises(UserError, match='--residual_blocks 2 contradicts'):
        train_2.main([*argv, '--residual_blocks', '2'])
    (two / checkpointer.state_name(train_2.GEN)).unlink()
    (two / 'InpaintingModel_dis_latest.ckpt').unlink()  # scoring needs the generator alone, and no masks beside strokes
    (two / 'InpaintingModel_dis_best.ckpt').unlink()
    capsys.readouterr()
    assert train_2.main(without([*argv, '--mode', '2', '--val_path', str(pictures)], '--mask')) == 0
    assert 'PSNR: ' in capsys.readouterr().out


def test_what_decides_best_starts_anew_when_it_changes(pictures, tiny, tmp_path, capsys):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6)) == 0
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 9, '--val_path', pictures, '--val_every',
                               3, '--ckpt_path', save / 'ImageNet_latest.ckpt')) == 0
    assert "'best' is now decided by 10 pictures" in capsys.readouterr().err
    assert checkpoint.read(save / 'ImageNet_best.ckpt').metadata['step'] == 9


def test_a_killed_worker_costs_nothing(pictures, tiny, tmp_path):
    import multiprocessing
    save = tmp_path / 'a'
    real = loop._count

    def count(progress, *args) -> None:
        real(progress, *args)
        if progress.step == 5:
            for child in multiprocessing.active_children():
                child.kill()
    loop._count = count
    try:
        with pytest.raises(UserError, match='a data worker died'):
            train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 400, '--save_every', 300,
                                '--num_workers', 1))
    finally:
        loop._count = real
    assert checkpoint.read(save / 'ImageNet_latest.ckpt').metadata['step'] >= 5


def test_the_save_place_is_no_training_data(pictures, masks, tiny, tmp_path):
    runs = pictures / 'runs'
    for more in ((), ('--ckpt_path', runs, '--max_iteration', 4)):  # the second time there are curves and samples
        assert train_2.main(argv_2(pictures, masks, runs, tiny['kmeans'], '--max_iteration', 2, '--val_path', pictures,
                                   '--val_every', 1, *more)) == 0
    state = checkpoint.read(pictures / 'runs' / checkpointer.state_name(train_2.GEN))
    assert state.metadata['settings']['pictures'] == 10


@pytest.mark.parametrize('stage', [1, 2])
def test_a_training_is_not_written_over_by_another(stage, pictures, masks, tiny, tmp_path):
    save = tmp_path / 'a'
    one = argv_1(pictures, save, tiny['kmeans']) if stage == 1 else argv_2(pictures, masks, save, tiny['kmeans'])
    length = '--max_steps' if stage == 1 else '--max_iteration'
    main, latest = (train_1.main, save / 'ImageNet_latest.ckpt') if stage == 1 else (train_2.main, save)
    assert main([*one, length, '3']) == 0
    before = files_of(save)
    elsewhere = tmp_path / 'b'
    shutil.copytree(save, elsewhere)
    for given in ([], ['--ckpt_path', str(elsewhere / latest.relative_to(save))]):
        with pytest.raises(UserError, match=f'has taken 3 steps; go on with --ckpt_path {latest}'):
            main([*one, length, '4', *given])
    assert files_of(save) == before
    assert main([*one, length, '4', '--ckpt_path', str(latest)]) == 0


def test_both_stages_train_in_one_save_place(pictures, masks, tiny, tmp_path):
    assert train_1.main(argv_1(pictures, tmp_path / 'a', tiny['kmeans'], '--max_steps', 2)) == 0
    before = files_of(tmp_path / 'a')
    assert train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 2)) == 0
    assert {k: v for k, v in files_of(tmp_path / 'a').items() if k in before} == before


def test_scoring_takes_the_weights_that_inference_takes(pictures, masks, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 2)) == 0
    argv = argv_2(pictures, masks, save, tiny['kmeans'], '--mode', 2, '--ckpt_path', save)
    given, state = train_2.given_networks(train_2.arguments(argv))
    assert state is None and given[0].path == infer_2.find_generator(str(save))
    assert given[0].path.name == 'InpaintingModel_gen_best.ckpt'


def test_an_unreadable_held_back_picture_is_named_before_the_training_begins(pictures, masks, tiny, tmp_path,
                                                                             monkeypatch):
    monkeypatch.setattr(train_2.runtime, 'start', lambda *_: pytest.fail('begun'))
    held = tmp_path / 'held'
    held.mkdir()
    (held / 'bad.png').write_bytes(b'no')
    Image.fromarray(photograph(0, 40, 40)).save(held / 'good.png')
    with pytest.raises(UserError, match=r'held-back .*bad\.png'):
        train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 1, '--val_path', held))


def test_only_what_changes_the_course_is_no_exact_continuation(pictures, masks, tiny, tmp_path, capsys):
    def said(main, argv: list[str]) -> str:
        assert main(argv) == 0
        return capsys.readouterr().err

    save = tmp_path / 'one'
    one = argv_1(pictures, save, tiny['kmeans'], '--lr_schedule', 'constant', '--ckpt_path',
                 save / 'ImageNet_latest.ckpt')
    assert train_1.main([*one[:-2], '--max_steps', '2']) == 0
    assert 'not an exact' not in said(train_1.main, [*one, '--max_steps', '3', '--val_every', '7', '--use_ImageFolder'])
    assert 'lr_schedule constant -> cosine' in said(train_1.main, [*one, '--max_steps', '4', '--lr_schedule', 'cosine'])
    changed = said(train_1.main, [*one, '--max_steps', '5', '--lr_schedule', 'cosine'])
    assert 'not an exact continuation: last_step 4 -> 5' in changed
    save = tmp_path / 'two'
    assert train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 2)) == 0
    two = argv_2(pictures, masks, save, tiny['kmeans'], '--ckpt_path', save)
    assert 'not an exact' not in said(train_2.main, [*two, '--max_iteration', '3'])
    assert 'not an exact continuation: lr 0.001 -> 0.002' in said(train_2.main, [*two, '--max_iteration', '4', '--lr',
                                                                                '0.002'])


def test_zero_betas_and_another_precision_on_a_resume_work(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    argv = argv_1(pictures, save, tiny['kmeans'], '--beta1', 0, '--beta2', 0)
    assert train_1.main([*argv, '--max_steps', '2']) == 0
    more = ['--ckpt_path', str(save / 'ImageNet_latest.ckpt')]
    assert train_1.main([*argv, *more, '--max_steps', '3', '--amp_level', 'O2']) == 0
    assert train_1.main([*argv, *more, '--max_steps', '4']) == 0


def _step(state: Path) -> int:
    try:
        return checkpoint.read(state).metadata['progress']['step']
    except UserError:
        return -1


def test_a_save_that_fails_leaves_the_last_one_whole(pictures, tiny, tmp_path, monkeypatch):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 3)) == 0
    before = trained(save)
    real = checkpoint.save

    def failing(temporary: Path, *args: object) -> None:
        real(temporary, *args)
        temporary.write_bytes(temporary.read_bytes()[:100])
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoint, 'save', failing)
    with pytest.raises(UserError, match=r'cannot save \(No space left on device\).*whole, the latest of step 3'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt'))
    assert trained(save) == before


def test_a_loss_that_is_not_a_number_stops_before_a_good_checkpoint_is_overwritten(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 3)) == 0
    before = trained(save)
    with pytest.raises(UserError, match=r'step \d+: .*nan; stopped, the checkpoints of step \d+ are whole'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 900, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt', '--learning_rate', 1e30, '--save_every', 1000))
    assert trained(save) == before


def test_unreadable_pictures_are_skipped_and_named_and_more_than_one_percent_stops(pictures, tiny, tmp_path, capfd):
    many = tmp_path / 'list.txt'
    (pictures / 'bad.png').write_bytes(b'no')
    lines = [str(pictures / f'{i % 10}.png') for i in range(150)] + [str(pictures / 'bad.png')]
    many.write_text('\n'.join(lines))
    assert train_1.main(argv_1(many, tmp_path / 'a', tiny['kmeans'], '--max_steps', 80, '--num_workers', 1,
                               '--save_every', 80)) == 0
    assert 'skipped (1 so far)' in (said := capfd.readouterr().err) and 'bad.png: unreadable image' in said
    with pytest.raises(UserError, match=r'1 of 11 images are unreadable, more than 1 %.*bad\.png'):
        train_1.main(argv_1(pictures, tmp_path / 'b', tiny['kmeans'], '--max_steps', 20))


def test_a_state_of_other_weights_is_refused(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6)) == 0
    found = checkpoint.read(save / 'ImageNet_latest.ckpt')
    checkpoint.write(save / 'ImageNet_latest.ckpt', {n: found.array(n) for n in found.entries},
                     {**found.metadata, 'step': 99}, found.palette)
    with pytest.raises(UserError, match=r'is of step 6, ImageNet_latest\.ckpt of step 99'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 9, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt'))


def test_training_on_sampled_priors_and_with_paired_masks(pictures, masks, tiny, tmp_path):
    from Transformer import infer
    assert infer.main([str(a) for a in ('--ckpt_path', tiny['transformer'], '--image_url', pictures, '--mask_url',
                                        masks / '00000.png', '--save_url', tmp_path / 'AP', '--sample_steps', 2,
                                        '--condition_num', 2, '--device_target', DEVICE)]) == 0
    assert train_2.main(argv_2(pictures, masks / '00000.png', tmp_path / 'a', tiny['kmeans'], '--max_iteration', 2,
                               '--mask_type', 3, '--prior', tmp_path / 'AP', '--use_degradation_2')) == 0
    assert (tmp_path / 'a' / 'InpaintingModel_dis_latest.ckpt').is_file()
    manifest = tmp_path / 'AP' / 'manifest.json'
    made = manifest.read_text()
    for before, after, says in (('"geometry": "crop"', '"geometry": "resize"', '--geometry resize'),
                                ('"invert_mask": false', '"invert_mask": true', '--invert_mask True')):
        assert before in made
        manifest.write_text(made.replace(before, after))
        with pytest.raises(UserError, match=f'made with {says}'):
            train_2.main(argv_2(pictures, masks / '00000.png', tmp_path / 'b', tiny['kmeans'], '--max_iteration', 2,
                                '--mask_type', 3, '--prior', tmp_path / 'AP'))


def test_validation_on_the_priors_that_stage_1_sampled(pictures, masks, tiny, tmp_path):
    """Black ones score otherwise than degraded pictures, with the same weights and masks.

    The weights given are the generator's alone: without its loss, a discriminator isn't asked for.
    """
    black = tmp_path / 'AP' / 'condition_1'
    black.mkdir(parents=True)
    for path in pictures.iterdir():
        images.write_png(black / f'{path.stem}.png', np.zeros((8, 8, 3), np.uint8))
    given = tmp_path / 'given'
    given.mkdir()
    (given / 'InpaintingModel_gen.ckpt').write_bytes(tiny['generator'].read_bytes())
    own = ('--ckpt_path', given, '--inpaint_adv_loss_weight', 0, '--max_iteration', 1, '--val_every', 1,
           '--val_path', pictures, '--val_mask', masks / '00000.png')
    found = {}
    for name, more in {'degraded': (), 'black': ('--val_prior', tmp_path / 'AP')}.items():
        assert train_2.main(argv_2(pictures, masks, tmp_path / name, tiny['kmeans'], *own, *more)) == 0
        (found[name],) = (row['val_psnr'] for row in log_without_seconds(tmp_path / name) if row['val_psnr'])
    assert found['black'] != found['degraded']


def test_priors_are_those_of_the_pictures_and_masks_and_each_validation_has_its_own(pictures, masks, tiny, tmp_path):
    from Transformer import infer
    assert infer.main([str(a) for a in ('--ckpt_path', tiny['transformer'], '--image_url', pictures, '--mask_url',
                                        masks / '00000.png', '--save_url', tmp_path / 'AP', '--sample_steps', 1,
                                        '--device_target', DEVICE)]) == 0
    own = ('--max_iteration', 1, '--val_path', pictures, '--val_prior', tmp_path / 'AP', '--val_mask')
    with pytest.raises(UserError, match=r'was made with another mask than .*00001\.png; run stage 1 again'):
        train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], *own, masks / '00001.png'))
    deciders = []
    for seed in (0, 1):
        prior = next((tmp_path / 'AP' / 'condition_1').iterdir())
        Image.fromarray(photograph(seed, 8, 8)).save(prior)
        assert train_2.main(argv_2(pictures, masks, tmp_path / str(seed), tiny['kmeans'], *own,
                                   masks / '00000.png')) == 0
        deciders.append(checkpoint.read(tmp_path / str(seed) / 'InpaintingModel_gen_latest_state.ckpt')
                        .metadata['progress']['best_by'])
    assert deciders[0] != deciders[1]
    prior.unlink()
    with pytest.raises(UserError, match='has no prior of'):
        train_2.main(argv_2(pictures, masks, tmp_path / 'b', tiny['kmeans'], *own, masks / '00000.png'))


def test_stage_2_steps_the_discriminator_first_then_the_generator_by_its_weighted_losses():
    """Adam's first moments after one step are (1 - beta1) times the gradients that the step took."""
    from Guided_Upsample.models import loss, networks, vgg
    from Guided_Upsample.models.step import Recipe as Recipe2
    from Guided_Upsample.models.step import TrainStep as TrainStep2
    rate, shares = 1e-2, {'l1': 2.0, 'adv': 0.7, 'content': 0.3, 'style': 50.0}

    def nets() -> tuple[nn.Cell, nn.Cell, nn.Cell]:
        found = networks.Generator(1, 4), networks.Discriminator(3), vgg.VGG19()
        for seed, net in zip((7, 17, 27), found, strict=True):
            set_weights(net, made_up({p.name: p.shape for p in net.get_parameters()}, seed))
        return found
    rng = np.random.default_rng(0)
    arrays = (*rng.random((2, 2, 3, 32, 32), np.float32), (rng.random((2, 1, 32, 32)) < 0.4).astype(np.float32))
    step = TrainStep2(*nets(), Recipe2(
        lr=rate, D2G_lr=0.5, beta1=0.5, beta2=0.9, l1_loss_weight=shares['l1'], style_loss_weight=shares['style'],
        content_loss_weight=shares['content'], inpaint_adv_loss_weight=shares['adv']))
    step(*arrays)

    painter, judge, features = nets()
    pictures, priors, holes = map(ms.Tensor, arrays)

    def of_judge(fake: ms.Tensor) -> ms.Tensor:
        return loss.discriminator_loss(judge(pictures)[0], judge(fake)[0])[0]

    def of_painter() -> ms.Tensor:
        output = painter(pictures, priors, holes)
        return (shares['l1'] * loss.masked_l1(output, pictures, holes, lambda mean: mean)
                + shares['adv'] * loss.adversarial(judge(output)[0], True)
                + shares['content'] * loss.content(features(output), features(pictures))
                + shares['style'] * loss.style(features(output * holes), features(pictures * holes)))

    def gradients(function, net: nn.Cell, *inputs: ms.Tensor) -> dict[str, np.ndarray]:
        parameters = net.trainable_params()
        found = ms.grad(function, None, ms.ParameterTuple(parameters))(*inputs)
        return {p.name: g.asnumpy() for p, g in zip(parameters, found, strict=True)}

    def taken(optimizer: nn.Adam) -> dict[str, np.ndarray]:
        return {p.name.removeprefix('moment1.'): 2 * p.asnumpy() for p in optimizer.moment1}

    def distance(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
        assert one.keys() == two.keys()
        return max(float(np.abs(one[k] - two[k]).max() / np.abs(two[k]).max()) for k in two)
    judged = gradients(of_judge, judge, painter(pictures, priors, holes))
    assert distance(taken(step.dis_optimizer), judged) < 1e-3
    against_the_old = gradients(of_painter, painter)
    for parameter in judge.trainable_params():
        g = judged[parameter.name]  # Adam's first step; its epsilon counts where a gradient is tiny
        root = np.sqrt(0.1) * np.abs(g)
        moved = parameter.asnumpy() - 0.5 * rate * np.sqrt(1 - 0.9) / (1 - 0.5) * 0.5 * g / (root + 1e-8)
        parameter.set_data(ms.Tensor(moved.astype(np.float32)))
    assert distance(taken(step.gen_optimizer), gradients(of_painter, painter)) < 1e-2
    assert distance(taken(step.gen_optimizer), against_the_old) > 5e-2


@pytest.mark.parametrize('kind', ['adversarial', 'vgg'])
def test_each_loss_moves_the_generator_and_vgg_stays_as_it_is(kind, pictures, masks, tiny, tmp_path):
    """Only the one loss is on, so the generator moves because of it; VGG is neither trained nor saved."""
    from Guided_Upsample.models.vgg import VGG19
    from tests.parity.test_networks import shapes
    checkpoint.write(tmp_path / 'VGG19.ckpt', made_up(shapes(VGG19()), 27), {'network': 'VGG19'})
    weights = {'adversarial': ('--inpaint_adv_loss_weight', 1, '--l1_loss_weight', 0),
               'vgg': ('--inpaint_adv_loss_weight', 0, '--l1_loss_weight', 0, '--content_loss_weight', 1,
                       '--style_loss_weight', 1, '--vgg_path', tmp_path / 'VGG19.ckpt')}[kind]
    assert train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 1, *weights)) == 0
    gen = checkpoint.read(tmp_path / 'a' / 'InpaintingModel_gen_latest.ckpt')
    from Guided_Upsample.models.networks import Generator
    start = {p.name: p.asnumpy() for p in Generator(1, 4, rng=np.random.default_rng([0, 0])).get_parameters()}
    assert max(np.abs(gen.array(n) - v).max() for n, v in start.items()) > 1e-5
    assert not any('relu' in n for f in (tmp_path / 'a').glob('*.ckpt') for n in checkpoint.read(f).entries)


def test_the_rim_of_a_hole_counts_more():
    from Guided_Upsample.datasets.dataset import rim_weights
    from Guided_Upsample.models import loss
    hole = np.zeros((2, 9, 9), bool)
    hole[0, 1:8, 2:7] = True
    hole[1, :, 3:] = True
    assert (rim_weights(hole, 0.0) == 1).all() and (rim_weights(hole, 4.0)[:, 0][~hole] == 1).all()
    weights = rim_weights(hole, 4.0)  # (B, 1, S, S) float32
    np.testing.assert_allclose(weights[1, 0, 4], [1, 1, 1, *(1 + 4 * np.exp(-(d - 1) / 2.5) for d in range(1, 7))],
                               rtol=1e-5)
    assert weights[0, 0, 4].tolist() == weights[0, 0, 4, ::-1].tolist() and weights[0, 0, 4, 4] < weights[0, 0, 4, 3]
    assert (rim_weights(np.ones((1, 9, 9), bool), 4.0) == pytest.approx(1.0))  # nothing is known
    output, images = np.random.default_rng(0).random((2, 2, 3, 9, 9), np.float32)
    found = loss.masked_l1(*map(ms.Tensor, (output, images, hole[:, None].astype(np.float32))), lambda mean: mean,
                           ms.Tensor(weights))
    assert float(found) == pytest.approx((np.abs(output - images) * weights).mean() / hole.mean(), rel=1e-5)


def test_stage_2_has_stage_1s_schedule_and_clipping_and_weighs_the_rim(pictures, masks, tiny, tmp_path):
    def log(name: str, *more: object) -> list[dict[str, str]]:
        assert train_2.main(argv_2(pictures, masks, tmp_path / name, tiny['kmeans'], '--max_iteration', 6,
                                   '--log_every', 1, *more)) == 0
        return log_without_seconds(tmp_path / name)
    plain = log('plain')
    rates = [float(row['lr']) for row in log('cosine', '--lr_schedule', 'cosine', '--warmup_steps', 2)]
    assert rates == [pytest.approx(schedule.lr_at(step, 1e-3, 'cosine', 2, 6), rel=1e-5) for step in range(6)]
    weighed = log('rim', '--rim_weight', 4)
    assert float(weighed[0]['l1']) > 1.2 * float(plain[0]['l1']) and weighed[0]['mae'] == plain[0]['mae']
    clipped = log('clipped', '--clip_norm', 1e-6, '--beta1', 0, '--beta2', 0)
    loose = log('loose', '--clip_norm', 1e6, '--beta1', 0, '--beta2', 0)
    assert clipped[0]['l1'] == loose[0]['l1'] and clipped[-1]['l1'] != loose[-1]['l1']
    for name in ('gen', 'dis'):
        state = checkpoint.read(tmp_path / 'clipped' / checkpointer.state_name(train_2.GEN))
        moments = [state.array(k) for k in state.entries if k.startswith(f'InpaintingModel_{name}/moments/moment1.')]
        norm = math.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in moments))
        assert norm == pytest.approx(1e-6, rel=1e-2)
