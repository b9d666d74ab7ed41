"""The commands as users type them: both stages and run.py, sealed, repeatable, resumable."""
from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Guided_Upsample import infer as stage_2
from ict import options
from ict.data import codebook, geometry, images, masks
from ict.device import parallel, runtime
from ict.errors import UserError
from ict.runs import inputs, stage
from tests.conftest import DEVICE, command, files_of, module, photograph
from Transformer import infer as stage_1
from Transformer.datasets.dataset import published_view


def sample(tiny, folders, save: Path, *more: object, ckpt: str = 'transformer') -> int:
    return stage_1.main([str(a) for a in (
        '--ckpt_path', tiny[ckpt], '--image_url', folders['images'], '--mask_url', folders['masks'], '--save_url', save,
        '--sample_steps', 6, '--device_target', DEVICE, *more)])


def paint(tiny, folders, prior: Path, save: Path, *more: object) -> int:
    return stage_2.main([str(a) for a in (
        '--ckpt_path', tiny['generator'], '--input', folders['images'], '--mask', folders['masks'], '--prior', prior,
        '--save_path', save, '--image_size', 64, '--device_target', DEVICE, *more)])


def both(tiny, folders, save: Path, first: tuple = (), second: tuple = ()) -> dict[str, bytes]:
    assert sample(tiny, folders, save / 'AP', *first) == 0
    assert paint(tiny, folders, save / 'AP', save, *second) == 0
    return files_of(save)


def pixels_of(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in found.items() if name.endswith('.png')}


def test_the_files_between_the_stages_are_as_specified(tiny, folders, colours, capsys):
    found = both(tiny, folders, folders['save'], ('--condition_num', 2), ('--condition_num', 2, '--visualize'))
    assert set(found) == {
        *(f'AP/condition_{k}/p{i}.png' for k in (1, 2) for i in range(3)), 'AP/manifest.json',
        'AP/scores.jsonl', *(f'p{i}_{k}.png' for k in (0, 1) for i in range(3)), 'results.json', 'results.jsonl',
        'metrics.csv', 'metrics_by_hole.csv', 'comparison.png'}
    assert re.search(r'^PSNR: \d+\.\d{6}, MAE: 0\.\d{9}$', capsys.readouterr().out, re.M)
    manifest = json.loads(found['AP/manifest.json'])
    assert manifest['settings']['palette'] == codebook.digest(colours)
    assert manifest['settings']['checkpoint'] == hashlib.sha256(tiny['transformer'].read_bytes()).hexdigest()
    lines = [json.loads(line) for line in found['AP/scores.jsonl'].decode().splitlines()]
    assert [(line['id'], line['result']) for line in lines] == [(f'p{i}', k) for i in range(3) for k in (0, 1)]
    assert all(line['log_likelihood'] < 0 for line in lines)
    levels = {tuple(k) for k in codebook.to_rgb(colours).tolist()}
    for k in (1, 2):
        with Image.open(folders['save'] / f'AP/condition_{k}/p0.png') as prior:
            assert prior.size == (8, 8) and prior.mode == 'RGB'
            assert {tuple(p) for p in np.asarray(prior).reshape(-1, 3).tolist()} <= levels
    assert found['AP/condition_1/p0.png'] != found['AP/condition_2/p0.png']
    rows = list(csv.DictReader((folders['save'] / 'metrics.csv').open()))
    assert [(row['id'], row['result']) for row in rows] == [(f'p{i}', str(k)) for i in range(3) for k in (0, 1)]
    result = images.load_rgb(folders['save'] / 'p0_0.png')
    assert result.shape == (64, 64, 3)


def test_known_pixels_come_through_unchanged(tiny, folders):
    both(tiny, folders, folders['save'])
    picture = images.load_rgb(folders['images'] / 'p1.png')  # 64 x 64: no resize on the way
    mask = images.load_rgb(folders['masks'] / 'p1.png')[..., 0] > 127
    result = images.load_rgb(folders['save'] / 'p1_0.png')
    np.testing.assert_array_equal(result[~mask], picture[~mask])
    assert (result[mask] != picture[mask]).any()


@pytest.mark.parametrize('geometry', ['crop', 'resize', 'hole'])
def test_sealed_nothing_under_the_mask_changes_any_byte(tiny, folders, tmp_path, geometry):
    """Also for a stroke one pixel wide and pictures that are not square (see the folders fixture)."""
    other = {**folders, 'images': tmp_path / 'others'}
    other['images'].mkdir()
    for path in folders['images'].iterdir():
        picture = images.load_rgb(path)
        hole = images.load_rgb(folders['masks'] / path.name)[..., 0] > 127
        picture = picture.copy()
        picture[hole] = np.random.default_rng(1).integers(0, 256, (int(hole.sum()), 3))
        Image.fromarray(picture).save(other['images'] / path.name)
    one = both(tiny, folders, tmp_path / 'one', ('--geometry', geometry))
    two = both(tiny, other, tmp_path / 'two', ('--geometry', geometry))
    names = [name for name in one if name.endswith('.png')]
    assert len(names) == 6 and [one[name] for name in names] == [two[name] for name in names]


def test_published_mode_lets_colours_under_thin_strokes_through_as_published(tiny, folders, tmp_path):
    """The counterpart: the published path is leaky, so sealed and published differ."""
    sealed = both(tiny, folders, tmp_path / 'a')
    published = both(tiny, folders, tmp_path / 'b', ('--mask_mode', 'published', '--geometry', 'published'))
    assert pixels_of(sealed) != pixels_of(published)
    picture = images.load_rgb(folders['images'] / 'p0.png')
    tokens, hole = published_view(picture, images.load_rgb(folders['masks'] / 'p0.png')[..., 0], 'published', 8)
    np.testing.assert_array_equal(tokens, images.shrink(picture, 8))
    assert hole.shape == (8, 8)


def test_the_same_seed_gives_the_same_bytes_and_batch_size_and_order_change_nothing(tiny, folders, tmp_path):
    one = both(tiny, folders, tmp_path / 'one', ('--condition_num', 2), ('--condition_num', 2))
    two = both(tiny, folders, tmp_path / 'two', ('--condition_num', 2, '--batch_size', 4),
               ('--condition_num', 2, '--batch_size', 3))
    assert one == two
    alone = {**folders, 'images': tmp_path / 'alone'}
    alone['images'].mkdir()
    shutil.copy(folders['images'] / 'p2.png', alone['images'])
    three = both(tiny, alone, tmp_path / 'three')
    assert three['AP/condition_1/p2.png'] == one['AP/condition_1/p2.png'] and three['p2_0.png'] == one['p2_0.png']
    seeded = both(tiny, folders, tmp_path / 'four', ('--seed', 1))
    assert seeded['AP/condition_1/p0.png'] != one['AP/condition_1/p0.png']


def test_several_pictures_in_a_forward_pass_as_on_a_gpu_give_the_same_results(tiny, folders, tmp_path, monkeypatch):
    one = pixels_of(both(tiny, folders, tmp_path / 'one', ('--condition_num', 2), ('--condition_num', 2)))
    monkeypatch.setattr(runtime, 'rows_at_once', lambda batch_size: batch_size)
    four = pixels_of(both(tiny, folders, tmp_path / 'four', ('--condition_num', 2, '--batch_size', 4),
                          ('--condition_num', 2, '--batch_size', 4)))
    assert one.keys() == four.keys()
    for name in one:
        ours, theirs = (images.load_rgb(tmp_path / folder / name).astype(int) for folder in ('one', 'four'))
        assert np.abs(ours - theirs).max() <= (0 if name.startswith('AP/') else 1)  # sums of floats in another order


def test_every_option_of_every_command_has_a_help_text(monkeypatch):
    seen = []

    def look(parser, argv):
        seen.append(parser.prog)
        for action in parser._actions:
            text = (action.help or '') and parser._get_formatter()._expand_help(action)
            assert text and 'None' not in text and text.count('default') <= 1, (parser.prog, action.option_strings)
        raise UserError('seen')

    monkeypatch.setattr(options.Parser, 'parse_args', look)
    for name in ('run', 'Transformer.train', 'Transformer.infer', 'Guided_Upsample.train', 'Guided_Upsample.infer',
                 'mask.generate', 'ckpts_ICT.convert', 'ckpts_ICT.download', 'ict.palette',
                 'ict.device.__main__'):
        with pytest.raises(UserError, match='seen'):
            importlib.import_module(name).main([])
    assert len(seen) == 10


def test_a_second_run_keeps_what_is_finished_and_makes_what_is_not(tiny, folders, tmp_path, capsys):
    save = tmp_path / 'one'
    first = both(tiny, folders, save)
    before = (save / 'AP/condition_1/p0.png').stat().st_mtime_ns
    for name in ('AP/condition_1/p1.png', 'p1_0.png', 'p2_0.png'):
        (save / name).unlink()
    (save / 'AP/condition_1/.part-abc.png').write_bytes(b'half')
    both(tiny, folders, save)
    again = {k: v for k, v in files_of(save).items() if '.part-' not in k}
    assert again == first
    assert (save / 'AP/condition_1/p0.png').stat().st_mtime_ns == before
    assert '2 finished priors are kept' in capsys.readouterr().err


def test_other_settings_are_refused_and_overwrite_makes_anew(tiny, folders, tmp_path):
    both(tiny, folders, tmp_path / 'one')
    with pytest.raises(UserError, match=r'other settings \(seed 0, now 1\).*--overwrite'):
        sample(tiny, folders, tmp_path / 'one' / 'AP', '--seed', 1)
    assert sample(tiny, folders, tmp_path / 'one' / 'AP', '--seed', 1, '--overwrite') == 0


def test_overwrite_leaves_no_result_of_the_run_before(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    before = both(tiny, folders, save, ('--condition_num', 3), ('--condition_num', 3))
    assert 'p0_2.png' in before
    anew = both(tiny, folders, save, ('--seed', 1, '--overwrite'), ('--overwrite',))
    assert [name for name in anew if re.fullmatch(r'p\d_\d\.png', name)] == ['p0_0.png', 'p1_0.png', 'p2_0.png']


def test_overwrite_of_some_pictures_lets_no_other_count_as_made_with_the_new_settings(tiny, folders, tmp_path):
    save, alone = tmp_path / 'one', {**folders, 'images': folders['images'] / 'p0.png'}
    both(tiny, folders, save)
    assert sample(tiny, alone, save / 'AP', '--seed', 1, '--overwrite') == 0
    for folder in (save / 'AP', tmp_path / 'anew'):
        assert sample(tiny, folders, folder, '--seed', 1) == 0
    assert files_of(save / 'AP') == files_of(tmp_path / 'anew')


def test_both_stages_may_write_into_one_folder(tiny, folders, tmp_path, capsys):
    save = tmp_path / 'one'
    assert sample(tiny, folders, save) == 0
    assert paint(tiny, folders, save, save) == 0
    first = files_of(save)
    capsys.readouterr()
    assert paint(tiny, folders, save, save) == 0
    assert sample(tiny, folders, save) == 0
    said = capsys.readouterr().err
    assert '3 finished results are kept' in said and '3 finished priors are kept' in said
    assert files_of(save) == first
    assert all(float(row['log_likelihood']) < 0 for row in csv.DictReader((save / 'metrics.csv').open()))


@pytest.mark.parametrize('name', ['p1_0.png', 'p0_1.png', 'metrics.csv', 'metrics_by_hole.csv', 'comparison.png'])
def test_a_file_that_no_run_made_is_not_replaced(tiny, folders, tmp_path, name):
    assert sample(tiny, folders, tmp_path / 'AP', '--condition_num', 2) == 0
    (tmp_path / name).write_bytes(b'mine')
    with pytest.raises(UserError, match=f'{name}: is there already'):
        paint(tiny, folders, tmp_path / 'AP', tmp_path, '--condition_num', 2, '--visualize')
    assert (tmp_path / name).read_bytes() == b'mine'


def test_a_photograph_called_like_a_result_is_not_replaced_after_another_run(tiny, folders, tmp_path):
    save, alone = tmp_path / 'one', {**folders, 'images': tmp_path / 'alone'}
    alone['images'].mkdir()
    shutil.copy(folders['images'] / 'p0.png', alone['images'])
    both(tiny, alone, save, ('--condition_num', 2), ('--condition_num', 2))
    assert sample(tiny, folders, save / 'AP', '--condition_num', 2) == 0
    for own, n_results in (('p1_1.png', 2), ('p0_2.png', 3)):  # of another picture, of one that has results
        (save / own).write_bytes(b'mine')
        with pytest.raises(UserError, match=f'{own}: is there already'):
            sample(tiny, folders, save / 'AP', '--condition_num', n_results)
            paint(tiny, folders, save / 'AP', save, '--condition_num', n_results)
        assert (save / own).read_bytes() == b'mine'
        (save / own).unlink()


def test_results_whose_manifest_is_gone_are_not_taken_for_those_of_other_settings(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    both(tiny, folders, save)
    (save / 'results.json').unlink()
    with pytest.raises(UserError, match='is there already, and was not made here'):
        paint(tiny, folders, save / 'AP', save, '--image_size', 32)
    assert not (save / 'results.json').exists()


def test_lines_of_others_are_neither_read_nor_lost(tiny, folders, tmp_path):
    save = tmp_path / 'AP'
    assert sample(tiny, folders, save) == 0
    copy = save / 'scores.copy.jsonl'
    copy.write_text((save / 'scores.jsonl').read_text().replace('"log_likelihood": ', '"log_likelihood": 1'))
    first = files_of(save)
    assert sample(tiny, folders, save) == 0
    assert files_of(save) == first
    for name in ('scores.jsonl', 'scores.7.jsonl'):
        (tmp_path / name).write_text('{"mine": 1}\n')
        with pytest.raises(UserError, match=f'{name}: is there already'):
            sample(tiny, folders, tmp_path)
        assert (tmp_path / name).read_text() == '{"mine": 1}\n'
        (tmp_path / name).unlink()


def test_what_a_result_file_cannot_hold_is_said(tiny, folders, tmp_path, capsys):
    grey = Image.open(folders['images'] / 'p0.png').convert('L')
    grey.save(folders['images'] / 'p0.png', icc_profile=bytes(16) + b'GRAY' + bytes(108))
    both(tiny, folders, tmp_path / 'one')
    assert 'p0_0.png: its colour profile is not one for these pixels' in capsys.readouterr().err


def test_scores_alone_do_not_replace_a_table_of_others(tiny, folders, tmp_path):
    assert sample(tiny, folders, tmp_path / 'AP') == 0
    (tmp_path / 'metrics.csv').write_text('a;b\n')
    with pytest.raises(UserError, match=r'metrics\.csv: is there already'):
        paint(tiny, folders, tmp_path / 'AP', tmp_path, '--test_only')
    assert (tmp_path / 'metrics.csv').read_text() == 'a;b\n'


def test_a_result_that_is_to_be_completed_further_is_no_surplus(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    both(tiny, folders, save, ('--condition_num', 2), ('--condition_num', 2))
    chosen = tmp_path / 'chosen.txt'
    chosen.write_text(f'{folders["images"]}/p1.png\n{save}/p1_1.png\n')
    shutil.copy(folders['masks'] / 'p1.png', folders['masks'] / 'p1_1.png')
    again = {**folders, 'images': chosen}
    assert sample(tiny, again, save / 'AP', '--overwrite') == 0
    assert paint(tiny, again, save / 'AP', save, '--overwrite') == 0
    assert (save / 'p1_1.png').is_file()


def test_fewer_results_with_the_same_settings_keep_the_others(tiny, folders, tmp_path, capsys):
    save = tmp_path / 'one'
    first = both(tiny, folders, save, ('--condition_num', 2), ('--condition_num', 2))
    assert paint(tiny, folders, save / 'AP', save) == 0
    capsys.readouterr()
    assert paint(tiny, folders, save / 'AP', save, '--condition_num', 2) == 0
    assert '6 finished results are kept' in capsys.readouterr().err
    assert files_of(save) == first


def test_lines_that_a_killed_run_of_more_ranks_left_do_not_come_back(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    assert sample(tiny, folders, save / 'AP') == 0
    lines = [json.loads(line) for line in (save / 'AP' / 'scores.jsonl').read_text().splitlines()]
    stale = [{**line, 'image_digest': 'of another picture', 'log_likelihood': 1.0} for line in lines]
    (save / 'AP' / 'scores.3.jsonl').write_text('\n'.join(map(json.dumps, stale)))
    assert sample(tiny, folders, save / 'AP') == 0
    assert [json.loads(line) for line in (save / 'AP' / 'scores.jsonl').read_text().splitlines()] == lines
    assert not (save / 'AP' / 'scores.3.jsonl').exists()


def test_a_killed_run_loses_no_scores(tiny, folders, tmp_path, monkeypatch, capsys):
    save, whole = tmp_path / 'one', both(tiny, folders, tmp_path / 'whole')
    assert sample(tiny, folders, save / 'AP') == 0
    with monkeypatch.context() as patch:  # killed when all is painted and nothing collected
        patch.setattr(stage.Stage, 'finish', lambda *_: None)
        paint(tiny, folders, save / 'AP', save)
    lines = (save / 'results.jsonl').read_text()
    assert lines.count('"psnr"') == 3
    (save / 'results.jsonl').write_text(lines[:-30])  # of the third line a part, and not yet its result
    (save / 'p2_0.png').unlink()
    capsys.readouterr()
    alone = {**folders, 'images': tmp_path / 'alone'}
    alone['images'].mkdir()
    shutil.copy(folders['images'] / 'p1.png', alone['images'])
    assert paint(tiny, alone, save / 'AP', save) == 0
    assert '1 finished results are kept' in capsys.readouterr().err
    assert paint(tiny, folders, save / 'AP', save) == 0
    assert '2 finished results are kept' in capsys.readouterr().err  # the one whose line was cut short is made again
    assert files_of(save) == whole


def test_scores_alone_never_replace_those_of_other_results(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    first = both(tiny, folders, save)
    with pytest.raises(UserError, match=r'other settings \(image_size 64, now 32\)'):
        paint(tiny, folders, save / 'AP', save, '--image_size', 32, '--test_only')
    assert paint(tiny, folders, save / 'AP', save, '--test_only') == 0
    assert files_of(save) == first


def test_options_of_samples_make_no_other_deterministic_priors(tiny, folders, tmp_path, capsys):
    assert sample(tiny, folders, tmp_path, '--deterministic') == 0
    capsys.readouterr()
    assert sample(tiny, folders, tmp_path, '--deterministic', '--seed', 1, '--temperature', 0.5, '--top_k', 3,
                  '--sample_steps', 2, '--schedule', 'raster', '--reuse', 'hole') == 0
    assert '3 finished priors are kept' in capsys.readouterr().err


def test_a_picture_that_fails_on_another_rank_counts(monkeypatch, capsys):
    outcome = inputs.Outcome(['a', 'b', 'c'])
    outcome.fail('a', UserError('a.png: unreadable'))
    assert outcome.status() == 1
    for elsewhere, status in (([False, True, False], 1), ([False, True, True], 2)):
        monkeypatch.setattr(parallel, '_sum_over_ranks', lambda own, more=elsewhere: [a + b for a, b in
                                                                                       zip(own, more, strict=True)])
        assert outcome.status() == status
    assert '2 of 3 pictures failed' in (said := capsys.readouterr().err) and '  b: on another rank' in said
    monkeypatch.setattr(parallel, '_sum_over_ranks', lambda own: [1.0] * len(own))
    assert inputs.Outcome(['a', 'b', 'c']).status() == 2
    assert 'no picture could be completed: a.png: unreadable' in said


def test_a_changed_picture_is_made_anew_and_more_pictures_are_no_other_settings(tiny, folders, tmp_path):
    save = tmp_path / 'one'
    first = both(tiny, folders, save)
    Image.fromarray(photograph(9, 64, 64)).save(folders['images'] / 'p1.png')
    shutil.copy(folders['images'] / 'p0.png', folders['images'] / 'p3.png')
    shutil.copy(folders['masks'] / 'p0.png', folders['masks'] / 'p3.png')
    second = both(tiny, folders, save)
    assert second['p1_0.png'] != first['p1_0.png'] and second['p0_0.png'] == first['p0_0.png']
    assert 'p3_0.png' in second


def test_stage_2_refuses_priors_of_another_picture_and_takes_a_folder_without_manifest(tiny, folders, tmp_path, capsys):
    assert sample(tiny, folders, tmp_path / 'AP') == 0
    Image.fromarray(photograph(9, 64, 64)).save(folders['images'] / 'p1.png')
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'out') == 1
    assert 'p1.png: its prior was made from another image' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'p0_0.png').is_file() and not (tmp_path / 'out' / 'p1_0.png').exists()
    (tmp_path / 'AP' / 'manifest.json').unlink()
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'out2') == 0


def test_published_weights_go_through_both_stages_with_their_palette(tiny, folders, tmp_path):
    """Names as published, no record, no palette inside: the same pictures as from our own checkpoint."""
    flags = ('--n_head', 2, '--GELU_2', '--kmeans', tiny['kmeans'])
    assert sample(tiny, folders, tmp_path / 'ours') == 0
    assert sample(tiny, folders, tmp_path / 'published', *flags, ckpt='published') == 0
    for i in range(3):
        name = f'condition_1/p{i}.png'
        assert (tmp_path / 'ours' / name).read_bytes() == (tmp_path / 'published' / name).read_bytes()


def test_sequential_raster_is_the_default_and_equals_the_many_step_case(tiny, folders, tmp_path):
    common = [str(a) for a in ('--ckpt_path', tiny['transformer'], '--image_url', folders['images'] / 'p0.png',
                               '--mask_url', folders['masks'] / 'p0.png', '--device_target', DEVICE)]
    assert stage_1.main([*common, '--save_url', str(tmp_path / 'a')]) == 0
    assert stage_1.main([*common, '--save_url', str(tmp_path / 'b'), '--sample_steps', '64', '--schedule',
                         'raster', '--reuse', 'none']) == 0
    assert json.loads((tmp_path / 'a/manifest.json').read_text())['settings']['schedule'] == 'raster'
    assert (tmp_path / 'a/condition_1/p0.png').read_bytes() == (tmp_path / 'b/condition_1/p0.png').read_bytes()


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'I;16'])
def test_keep_size_keeps_known_pixels_bit_for_bit(tiny, folders, tmp_path, mode):
    place = {**folders, 'images': tmp_path / 'big'}
    place['images'].mkdir()
    rng = np.random.default_rng(0)
    channels = {'L': (), 'LA': (2,), 'RGB': (3,), 'RGBA': (4,), 'I;16': ()}[mode]
    kind = np.uint16 if mode == 'I;16' else np.uint8
    for i in range(3):
        native = rng.integers(0, np.iinfo(kind).max, (150 + i, 110, *channels), dtype=kind)
        Image.fromarray(native).save(place['images'] / f'p{i}.png')
    assert sample(tiny, place, tmp_path / 'AP', '--geometry', 'resize') == 0
    assert paint(tiny, place, tmp_path / 'AP', tmp_path / 'out', '--keep_size') == 0
    for i in range(3):
        before = np.asarray(Image.open(place['images'] / f'p{i}.png'))
        after = np.asarray(Image.open(tmp_path / 'out' / f'p{i}_0.png'))
        assert after.dtype == before.dtype and after.shape == before.shape
        grey = masks.load(place['masks'] / f'p{i}.png')
        _, hole = geometry.hole_in(grey, *before.shape[:2], 'resize')
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert (after[hole] != before[hole]).any()


def test_keep_size_with_a_hole_out_of_the_crop_is_said_and_the_others_go_on(tiny, folders, tmp_path, capsys):
    assert sample(tiny, folders, tmp_path / 'AP') == 0
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :12] = 255
    Image.fromarray(mask).save(folders['masks'] / 'p0.png')
    assert sample(tiny, folders, tmp_path / 'AP') == 0
    assert paint(tiny, folders, tmp_path / 'AP', tmp_path / 'out', '--keep_size', '--geometry', 'crop') == 1
    assert 'p0.png: the hole reaches out of the crop frame' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'p1_0.png').is_file()


def test_run_py_completes_resumes_and_passes_options_on(tiny, folders, tmp_path):
    call = ('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'], '--input_image',
            'images', '--input_mask', 'masks', '--save_place', 'out', '--sample_num', 2, '--sample_steps', 4)
    done = command(*call, cwd=tmp_path)  # relative to where the user stands
    assert done.returncode == 0, done.stderr
    first = files_of(tmp_path / 'out')
    assert {'p0_0.png', 'p0_1.png', 'p2_1.png', 'AP/condition_2/p1.png', 'metrics.csv'} <= first.keys()
    assert 'PSNR: ' in done.stdout
    again = command(*call, cwd=tmp_path)
    assert again.returncode == 0 and '6 finished results are kept' in again.stderr
    assert files_of(tmp_path / 'out') == first


def test_run_py_does_not_take_its_own_results_for_pictures(tiny, folders, tmp_path):
    shutil.copy(folders['masks'] / 'p0.png', tmp_path / 'mask.png')
    call = ('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'], '--input_image',
            '.', '--input_mask', tmp_path / 'mask.png', '--save_place', 'save', '--sample_steps', 4)
    for _ in range(2):
        done = command(*call, cwd=folders['images'])
        assert done.returncode == 0, done.stderr
        assert {p.name for p in (folders['images'] / 'save').glob('*.png')} == {f'p{i}_0.png' for i in range(3)}


def test_run_py_goes_on_with_what_stage_1_could_do_and_exits_with_1(tiny, folders, tmp_path):
    (folders['images'] / 'p1.png').write_bytes(b'no picture')
    done = command('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                   '--input_image', folders['images'], '--input_mask', folders['masks'], '--save_place',
                   tmp_path / 'out', '--sample_steps', 4)
    assert done.returncode == 1, done.stderr
    assert 'p1.png: unreadable image' in done.stderr and 'Traceback' not in done.stderr
    assert {p.name for p in (tmp_path / 'out').glob('*.png')} == {'p0_0.png', 'p2_0.png'}


def test_run_py_completes_the_bundled_photographs_in_three_ways_whatever_else_is_said():
    import run
    for argv, wanted in (([], (3, True)), (['--overwrite'], (3, True)), (['--deterministic'], (1, True)),
                         (['--test_only'], (3, False)), (['--sample_num', '2', '--visualize', 'False'], (2, False)),
                         (['--input_image', 'a', '--input_mask', 'b'], (1, False))):
        args = run.arguments(argv)
        assert (args.sample_num, args.visualize) == wanted, argv


def test_run_py_test_only_keeps_no_pictures_and_never_touches_the_inputs(tiny, folders, tmp_path):
    before = files_of(folders['images'])
    done = command('run.py', '--transformer_ckpt', tiny['transformer'], '--upsample_ckpt', tiny['generator'],
                   '--input_image', folders['images'], '--input_mask', folders['masks'], '--save_place',
                   tmp_path / 'out', '--sample_steps', 4, '--test_only')
    assert done.returncode == 0 and 'PSNR' in done.stdout
    assert not list((tmp_path / 'out').glob('*.png')) and (tmp_path / 'out' / 'metrics.csv').is_file()
    assert files_of(folders['images']) == before


def test_scripts_work_from_their_own_folder(tiny, folders, tmp_path):
    from tests.conftest import ROOT
    for script in ('Transformer/infer.py', 'Guided_Upsample/infer.py', 'Transformer/train.py',
                   'Guided_Upsample/train.py', 'mask/generate.py'):
        done = command(script, '--help', cwd=(ROOT / script).parent)
        assert done.returncode == 0 and 'usage:' in done.stdout


def test_mask_generator_fills_a_folder_repeatably(tmp_path):
    for name in ('a', 'b'):
        done = command('mask/generate.py', '--save_path', tmp_path / name, '--count', 4, '--lowest', 0.2, '--highest',
                       0.3, '--size', 128, '--seed', 7)
        assert done.returncode == 0
    whole = files_of(tmp_path / 'a')
    assert whole == files_of(tmp_path / 'b')
    assert sorted(whole) == [f'{i:05d}.png' for i in range(4)]
    (tmp_path / 'b' / '00001.png').unlink()  # an interruption
    again = ('mask/generate.py', '--save_path', tmp_path / 'b', '--count', 4, '--lowest', 0.2, '--highest', 0.3,
             '--size', 128, '--seed')
    assert command(*again, 7).returncode == 0 and files_of(tmp_path / 'b') == whole
    done = command(*again, 8)
    assert done.returncode == 2 and '00000.png: is there already, and another mask' in done.stderr
    assert files_of(tmp_path / 'b') == whole
    for path in (tmp_path / 'a').iterdir():
        mask = np.asarray(Image.open(path))
        assert set(np.unique(mask)) == {0, 255} and 0.2 <= (mask > 0).mean() <= 0.3 and mask.shape == (128, 128)


def test_palette_command_fits_ones_own_images(folders, tmp_path):
    done = module('ict.palette', '--data_path', folders['images'], '--save_path', tmp_path / 'k.npy', '--colours',
                   16, '--prior_size', 16)
    assert done.returncode == 0, done.stderr
    assert codebook.load(tmp_path / 'k.npy').shape == (16, 3)
