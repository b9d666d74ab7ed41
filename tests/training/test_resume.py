"""Resumes that nobody can tell from no stop at all, and what one is compared with."""
from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from Guided_Upsample import train as train_2
from ict import checkpoint
from ict.errors import UserError
from ict.training import checkpointer
from ict.training.checkpointer import Progress
from tests.conftest import files_of
from tests.training.runs import argv_1, argv_2, log_without_seconds, trained
from Transformer import train as train_1


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
        count, limit, before = [0], self.steps, Progress.add_step

        def counting(*args) -> None:
            before(*args)
            count[0] += 1
            if count[0] == limit:
                os.kill(os.getpid(), signal.SIGTERM)
        self.before, Progress.add_step = before, counting

    def __exit__(self, *_: object) -> None:
        Progress.add_step = self.before


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


@pytest.mark.parametrize('stage', [1, 2])
def test_weights_without_a_state_are_not_replaced(stage, pictures, masks, tiny, tmp_path):
    save = tmp_path / 'a'
    save.mkdir()
    name = 'ImageNet_best.ckpt' if stage == 1 else 'InpaintingModel_gen.ckpt'
    shutil.copy(tiny['transformer' if stage == 1 else 'generator'], save / name)
    main, argv = (train_1.main, argv_1(pictures, save, tiny['kmeans'])) if stage == 1 else \
        (train_2.main, argv_2(pictures, masks, save, tiny['kmeans']))
    before = files_of(save)
    with pytest.raises(UserError, match=f'holds {name}, and no training that it is of; name another --save_path'):
        main(argv)
    assert files_of(save) == before


def test_a_log_that_was_edited_is_an_error_before_anything_is_trained(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    one = argv_1(pictures, save, tiny['kmeans'], '--ckpt_path', save / 'ImageNet_latest.ckpt')
    assert train_1.main([*one[:-2], '--max_steps', '3']) == 0
    table = (save / 'ImageNet_log.csv').read_text()
    for edited in (table.replace(',', ';'), table.replace('.', '|')):
        (save / 'ImageNet_log.csv').write_text(edited)
        with pytest.raises(UserError, match=r'ImageNet_log\.csv: is no longer the table'):
            train_1.main([*one, '--max_steps', '4'])
    (save / 'ImageNet_log.csv').unlink()
    assert train_1.main([*one, '--max_steps', '4']) == 0


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


def test_a_state_of_other_weights_is_refused(pictures, tiny, tmp_path):
    save = tmp_path / 'a'
    assert train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 6)) == 0
    found = checkpoint.read(save / 'ImageNet_latest.ckpt')
    checkpoint.write(save / 'ImageNet_latest.ckpt', {n: found.array(n) for n in found.entries},
                     {**found.metadata, 'step': 99}, found.palette)
    with pytest.raises(UserError, match=r'is of step 6, ImageNet_latest\.ckpt of step 99'):
        train_1.main(argv_1(pictures, save, tiny['kmeans'], '--max_steps', 9, '--ckpt_path',
                            save / 'ImageNet_latest.ckpt'))
