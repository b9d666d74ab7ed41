"""What a training is given: unreadable files, masks, sampled priors."""
from __future__ import annotations

import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Guided_Upsample import train as train_2
from Guided_Upsample.datasets.dataset import ExampleConfig, Source
from ict import checkpoint
from ict.data import encode, images
from ict.data import masks as data_masks
from ict.data.codebook import Tokenizer
from ict.device import parallel
from ict.errors import UserError
from ict.options import Given
from ict.training.loader import HeldBackFiles, Unreadable
from ict.training.mask_sources import PairedFile, PicturePaths
from tests.conftest import DEVICE, photograph
from tests.training.runs import argv_1, argv_2, log_without_seconds
from Transformer import train as train_1
from Transformer.datasets.dataset import validation_set


@pytest.mark.parametrize('stage', [1, 2])
def test_held_back_files_that_cannot_be_read_are_named_together_before_the_training_begins(stage, tmp_path, tiny,
                                                                                          monkeypatch, pictures):
    main = train_1 if stage == 1 else train_2
    monkeypatch.setattr(main.runtime, 'start', lambda *_: pytest.fail('begun'))
    held = {name: tmp_path / name for name in ('images', 'masks', 'AP/condition_1')}
    for folder, size in zip(held.values(), (40, 40, 8), strict=True):
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(photograph(i, size, size)[..., :1].repeat(3, 2) // 128 * 255).save(folder / f'{i}.png')
    for folder, number in zip(held.values(), '012', strict=True):
        (folder / f'{number}.png').write_bytes(b'no')
    own = ('--val_path', held['images'], '--val_mask', held['masks'])
    if stage == 1:
        argv, count = argv_1(pictures, tmp_path / 'a', tiny['kmeans'], *own), 2
    else:
        argv, count = argv_2(pictures, held['masks'], tmp_path / 'a', tiny['kmeans'], *own, '--val_prior',
                             tmp_path / 'AP'), 3
    with pytest.raises(UserError) as error:
        main.main(argv)
    said = str(error.value)
    assert said.startswith(f'held-back files that cannot be read: {count} (')
    assert [name in said for name in ('images/0.png', 'masks/1.png', 'condition_1/2.png')] == [True, True, stage == 2]


def test_of_many_broken_held_back_files_the_first_are_named(tmp_path):
    held_back = HeldBackFiles()
    for i in (*range(5), 0):  # a mask that several pictures have in common counts once
        assert held_back.read(images.load_rgb, tmp_path / f'{i}.png') is None
    with pytest.raises(UserError, match=r'cannot be read: 5 \(.*0\.png: .*1\.png: .*2\.png: [^;]*; \.\.\.\); mend'):
        held_back.require_all()


def test_unreadable_pictures_are_skipped_and_named(pictures, tiny, tmp_path, capfd):
    for i in range(3):
        (pictures / f'bad{i}.png').write_bytes(b'no')
    assert train_1.main(argv_1(pictures, tmp_path / 'a', tiny['kmeans'], '--max_steps', 7, '--num_workers', 1)) == 0
    assert 'skipped (3 so far)' in (said := capfd.readouterr().err)
    assert all(f'bad{i}.png: unreadable image' in said for i in range(3))
    (pictures / 'bad3.png').write_bytes(b'no')
    one = argv_1(pictures, tmp_path / 'b', tiny['kmeans'], '--max_steps', 20)
    with pytest.raises(UserError, match=r'4 files of 14 pictures are unreadable, more than 1 %.*bad0\.png'):
        train_1.main(one)


def test_what_was_learnt_before_too_many_files_were_unreadable_is_kept(pictures, tiny, tmp_path, monkeypatch):
    one = argv_1(pictures, tmp_path / 'a', tiny['kmeans'], '--max_steps', 9, '--num_workers', 0)
    load = images.load

    def one_more_fails(path: Path) -> images.Picture:
        if (tmp_path / 'a' / 'away').exists():
            raise UserError(f'{path}: no such image')
        return load(path)
    monkeypatch.setattr(images, 'load', one_more_fails)
    add, steps = Unreadable.add, []

    def count(self: Unreadable, failures: list[str]) -> None:
        steps.append(failures)
        if len(steps) == 3:
            (tmp_path / 'a' / 'away').touch()
        add(self, failures)
    monkeypatch.setattr(Unreadable, 'add', count)
    with pytest.raises(UserError, match='unreadable'):
        train_1.main(one)
    (tmp_path / 'a' / 'away').unlink()
    latest = tmp_path / 'a' / 'ImageNet_latest.ckpt'
    assert checkpoint.read(latest).metadata['step'] == 3
    assert train_1.main([*one, '--ckpt_path', str(latest)]) == 0
    assert train_1.main(argv_1(pictures, tmp_path / 'b', tiny['kmeans'], '--max_steps', 9)) == 0
    assert log_without_seconds(tmp_path / 'a')[-1] == log_without_seconds(tmp_path / 'b')[-1]


@pytest.mark.parametrize('stage', [1, 2])
def test_masks_of_the_stored_pixels_are_turned_with_their_pictures_in_training_too(stage, tmp_path):
    """A photograph of 48 x 64 that is stored lying, with a mask made for the stored pixels: a hole on their left."""
    folders = [tmp_path / 'photos', tmp_path / 'masks']
    for folder in folders:
        folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    hole = np.zeros((48, 64), np.uint8)
    hole[:, :20] = 255
    Image.fromarray(photograph(0, 48, 64)).save(folders[0] / 'a.jpg', exif=exif)
    Image.fromarray(hole).save(folders[1] / 'a.png')
    found = PicturePaths(Given(str(folders[0]), '--input'), PairedFile, tmp_path / 'save',
                         Given(str(folders[1]), '--mask')).find()
    upright = np.zeros((48, 48), bool)
    upright[:12] = True  # of the middle square
    if stage == 1:
        [seen] = validation_set(*found, Tokenizer(np.zeros((2, 3), np.float32)), 48)[1]
        assert np.array_equal(seen.reshape(48, 48), upright)
    else:
        source = Source(*found, None, np.zeros((2, 3), np.float32), ExampleConfig(48, 8))
        assert np.array_equal(source.held_back_example(0)[2], upright)
        assert np.array_equal(source.training_example(0, np.random.default_rng(0), 1.0, [])[2], upright)


@pytest.mark.parametrize(('n_pictures', 'broken', 'stops'), [(20, 3, False), (20, 4, True), (1000, 10, False),
                                                             (1000, 11, True)])
def test_more_than_one_percent_and_more_than_three_files_stop_a_training(n_pictures, broken, stops):
    unreadable = Unreadable(n_pictures)
    unreadable.add([f'{i}.png: unreadable image' for i in range(broken)])
    with pytest.raises(UserError) if stops else nullcontext():
        unreadable.check()


def test_a_file_that_several_ranks_have_met_counts_once(monkeypatch):
    """In the end every rank meets every file."""
    ranks = [Unreadable(20) for _ in range(4)]

    def over_ranks(flags: list[bool]) -> list[bool]:
        seen = {zlib.crc32(line.encode()) % len(flags) for rank in ranks for line in rank.seen}
        return [i in seen for i in range(len(flags))]
    monkeypatch.setattr(parallel, 'sum_over_ranks', lambda _: sum(len(rank.seen) for rank in ranks))
    monkeypatch.setattr(parallel, 'on_any_rank', over_ranks)
    for rank in ranks:
        rank.add(['a.png: broken', 'b.png: broken', 'c.png: broken'])
        rank.check()
    ranks[0].add(['d.png: broken'])
    with pytest.raises(UserError, match='4 files of 20 pictures'):
        ranks[1].check()


@pytest.fixture
def black_and_white(tmp_path) -> tuple[Path, Path]:
    """Masks of which black is the hole; the same with the hole grown by 3 pixels, and white."""
    black, white = tmp_path / 'black', tmp_path / 'white'
    for folder in (black, white):
        folder.mkdir()
    for i in range(4):
        hole = np.zeros((96, 96), np.uint8)
        hole[10 + 5 * i:50, 20:40 + 5 * i] = 255
        Image.fromarray(255 - hole).save(black / f'{i}.png')
        Image.fromarray(hole).save(white / f'{i}.png')
        Image.fromarray(data_masks.load(white / f'{i}.png', dilate=3)).save(white / f'{i}.png')
    return black, white


@pytest.mark.parametrize('stage', [1, 2])
def test_masks_are_inverted_and_grown_in_training_and_validation(stage, pictures, black_and_white, tiny, tmp_path,
                                                                 capsys):
    black, white = black_and_white

    def run(name: str, masks: Path, *more: object) -> str:
        own = ('--val_path', pictures, '--val_mask', masks / '0.png', '--save_every', 9, *more)
        if stage == 1:
            argv = argv_1(pictures, tmp_path / name, tiny['kmeans'], '--mask_path', masks, '--max_steps', 3, *own)
            assert train_1.main([word for word in argv if word != '--random_stroke']) == 0
        else:
            assert train_2.main(argv_2(pictures, masks, tmp_path / name, tiny['kmeans'], '--max_iteration', 3,
                                       *own)) == 0
        return capsys.readouterr().err
    assert 'hole covers' not in run('a', white)
    assert 'hole covers' not in run('b', black, '--invert_mask', '--dilate', 3)
    assert log_without_seconds(tmp_path / 'a') == log_without_seconds(tmp_path / 'b')
    option = '--mask_path' if stage == 1 else '--mask'
    said = run('c', black)
    assert f'{option}: the hole covers 91% of a picture' in said and 'add --invert_mask if black is the hole' in said
    assert '--val_mask: the hole covers' in said
    assert log_without_seconds(tmp_path / 'a') != log_without_seconds(tmp_path / 'c')


def test_a_resume_with_masks_read_otherwise_is_no_exact_continuation(pictures, black_and_white, tiny, tmp_path, capsys):
    argv = argv_2(pictures, black_and_white[0], tmp_path / 'a', tiny['kmeans'], '--invert_mask')
    assert train_2.main([*argv, '--max_iteration', '1']) == 0
    assert train_2.main([*argv, '--max_iteration', '2', '--ckpt_path', str(tmp_path / 'a'), '--invert_mask', 'False',
                         '--dilate', '2']) == 0
    assert 'not an exact continuation: dilate 0 -> 2, invert_mask True -> False' in capsys.readouterr().err


def test_a_resume_with_more_masks_or_priors_is_no_exact_continuation(pictures, masks, tiny, tmp_path, capsys):
    for k in (1, 2):
        (tmp_path / 'AP' / f'condition_{k}').mkdir(parents=True)
        for i in range(10):
            Image.fromarray(photograph(i, 8, 8)).save(tmp_path / 'AP' / f'condition_{k}' / f'{i}.png')
        if k == 1:
            assert train_2.main([*(argv := argv_2(pictures, masks, tmp_path / 'a', tiny['kmeans'], '--prior', tmp_path /
                                                  'AP')), '--max_iteration', '1']) == 0
    (masks / 'more.png').write_bytes((masks / '00000.png').read_bytes())
    assert train_2.main([*argv, '--max_iteration', '2', '--ckpt_path', str(tmp_path / 'a')]) == 0
    assert 'not an exact continuation: masks 3 -> 4, priors 1 -> 2' in capsys.readouterr().err


def test_stage_2_is_resumed_and_scored_with_the_palette_it_was_trained_with(pictures, masks, tiny, tmp_path, capsys):
    colours = np.load(tiny['kmeans'])
    np.save(tmp_path / 'own.npy', np.roll(colours, 1, 1) * 0.5)
    one = argv_2(pictures, masks, tmp_path / 'a', tmp_path / 'own.npy', '--max_iteration', 1)
    assert train_2.main(one) == 0
    scored = ['--mode', '2', '--ckpt_path', str(tmp_path / 'a')]
    with pytest.raises(UserError, match=r'--kmeans .*: not the palette that'):
        train_2.main([*argv_2(pictures, masks, tmp_path / 'b', tiny['kmeans']), *scored])
    said = []
    for more in ([], ['--kmeans', str(tmp_path / 'own.npy')]):
        where = one.index('--kmeans')
        capsys.readouterr()
        assert train_2.main([*one[:where], *one[where + 2:], *scored, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and 'PSNR: ' in said[0]


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
        encode.write(black / f'{path.stem}.png', np.zeros((8, 8, 3), np.uint8))
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
