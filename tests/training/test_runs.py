"""Whole trainings: what they say, log and save, and that inference takes it."""
from __future__ import annotations

import math
import os

import numpy as np
import pytest
from PIL import Image

from Guided_Upsample import infer as infer_2
from Guided_Upsample import train as train_2
from ict import checkpoint, lock
from ict.data import images
from ict.options import Given
from ict.training import checkpointer
from ict.training.schedule import Schedule
from tests.conftest import DEVICE, command, files_of
from tests.training.runs import argv_1, argv_2, log_without_seconds
from Transformer import train as train_1


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
            rates = [Schedule(1e-2, 'cosine', 3, 12).at(i) for i in steps]
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


def test_stage_2_has_stage_1s_schedule_and_clipping_and_weighs_the_boundary(pictures, masks, tiny, tmp_path):
    def log(name: str, *more: object) -> list[dict[str, str]]:
        assert train_2.main(argv_2(pictures, masks, tmp_path / name, tiny['kmeans'], '--max_iteration', 6,
                                   '--log_every', 1, *more)) == 0
        return log_without_seconds(tmp_path / name)
    plain = log('plain')
    rates = [float(row['lr']) for row in log('cosine', '--lr_schedule', 'cosine', '--warmup_steps', 2)]
    assert rates == [pytest.approx(Schedule(1e-3, 'cosine', 2, 6).at(step), rel=1e-5) for step in range(6)]
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


def test_the_save_place_is_no_training_data(pictures, masks, tiny, tmp_path):
    runs = pictures / 'runs'
    for more in ((), ('--ckpt_path', runs, '--max_iteration', 4)):  # the second time there are curves and samples
        assert train_2.main(argv_2(pictures, masks, runs, tiny['kmeans'], '--max_iteration', 2, '--val_path', pictures,
                                   '--val_every', 1, *more)) == 0
    state = checkpoint.read(pictures / 'runs' / checkpointer.state_name(train_2.GEN))
    assert state.metadata['settings']['pictures'] == 10


def test_both_stages_train_in_one_save_place(pictures, masks, tiny, tmp_path):
    assert train_1.main(argv_1(pictures, tmp_path / 'a', tiny['kmeans'], '--max_steps', 2)) == 0
    before = files_of(tmp_path / 'a')
    assert train_2.main(argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--max_iteration', 2)) == 0
    assert {k: v for k, v in files_of(tmp_path / 'a').items() if k in before} == before


def test_scoring_takes_the_weights_that_inference_takes(pictures, masks, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_2.main(argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 2)) == 0
    start = train_2.starting_point(str(save), resume=False, adversarial=False)
    path = start.weights[train_2.GEN].path
    model = infer_2.Model.from_checkpoint(Given(str(save), '--ckpt_path'), None)
    assert start.state is None and path == model.ckpt.path
    assert path.name == 'InpaintingModel_gen_best.ckpt'


@pytest.mark.parametrize('stage', [1, 2])
def test_a_second_training_in_the_same_folder_is_refused_and_scoring_is_not(stage, pictures, masks, tiny, tmp_path):
    save = tmp_path / 'a'
    argv = argv_1(pictures, save, tiny['kmeans'], '--max_steps', 1) if stage == 1 else \
        argv_2(pictures, masks, save, tiny['kmeans'], '--max_iteration', 1)
    script = 'Transformer/train.py' if stage == 1 else 'Guided_Upsample/train.py'
    save.mkdir()
    with lock.locked(save, '--save_path'):
        done = command(script, *argv)
        assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stdout == ''
        assert f'error: --save_path {save}: is in use by another run (process {os.getpid()} on ' in done.stderr
        if stage == 2:
            (tmp_path / 'given').mkdir()
            (tmp_path / 'given' / 'InpaintingModel_gen.ckpt').write_bytes(tiny['generator'].read_bytes())
            assert command(script, *argv, '--mode', 2, '--ckpt_path', tmp_path / 'given').returncode == 0
    assert not list(save.glob('.*'))
