"""Scores of one picture's completions, their means and tables, against NumPy."""
from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from Guided_Upsample import infer
from ict import evaluate
from ict.errors import UserError
from ict.runs import evaluation, inputs, metrics, report

S = 40
NAMES = ('psnr', 'mae', 'ssim', 'l1', 'l1_hole')


def random_picture(seed: int, height: int = S, width: int = S) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def random_metrics(seed: int) -> dict[str, float]:
    return dict(zip(NAMES, np.random.default_rng(seed).uniform(1, 30, 5).tolist(), strict=True))


@pytest.fixture
def top_hole() -> np.ndarray:
    hole = np.zeros((S, S), bool)
    hole[:12] = True
    return hole


@pytest.mark.parametrize('geometry', ['crop', 'resize'])
@pytest.mark.parametrize('mask_shape', [(90, 130), (64, 64)])
def test_scored_view_is_what_stage_2_scores_against(geometry, mask_shape):
    rgb, grey = random_picture(0, 90, 130), np.zeros(mask_shape, np.uint8)
    grey[20:33, 25:60] = 255
    frame, = infer.frames_of(rgb, grey, inputs.View(geometry=geometry), 64)
    image, hole, original = evaluation.scored_view(rgb, grey, geometry, 64)
    assert 0 < hole.mean() < 1
    np.testing.assert_array_equal(image, frame.image)
    np.testing.assert_array_equal(hole, frame.hole)
    np.testing.assert_array_equal(original, frame.original)


@pytest.mark.parametrize('method', [cv2.INPAINT_TELEA, cv2.INPAINT_NS])
def test_opencv_is_cv2_inpaint_of_radius_3_and_no_hole_pixel_reaches_it(top_hole, method):
    image = random_picture(1)
    other = np.where(top_hole[..., None], random_picture(2), image)
    painted = evaluation.opencv(image, top_hole, method)
    masked = np.where(top_hole[..., None], np.uint8(0), image)
    np.testing.assert_array_equal(painted, cv2.inpaint(masked, top_hole.astype(np.uint8) * 255, 3, method))
    np.testing.assert_array_equal(painted, evaluation.opencv(other, top_hole, method))
    np.testing.assert_array_equal(painted[~top_hole], image[~top_hole])
    assert not evaluation.opencv(image, np.ones_like(top_hole), method).any()  # nothing known: not the original


def test_mean_picture_rounds_to_the_nearest_level():
    samples = np.array([[10, 0, 255], [11, 0, 255], [11, 1, 254]], np.uint8).reshape(3, 1, 1, 3)
    assert evaluation.mean_picture(samples).tolist() == [[[11, 0, 255]]]


def test_diversity_is_the_mean_over_all_pairs_and_its_l1_is_of_the_hole_alone(top_hole):
    samples = np.stack([random_picture(seed) for seed in range(3)])
    found = metrics.diversity(samples, top_hole)
    pairs = list(itertools.combinations(samples.astype(int), 2))
    assert found['diversity'] == pytest.approx(np.mean([np.abs(a - b)[top_hole].mean() for a, b in pairs]))
    assert found['diversity_ssim'] == pytest.approx(np.mean(
        [1 - structural_similarity(a, b, win_size=7, data_range=255, channel_axis=-1) for a, b in pairs]))
    assert all(math.isnan(value) for value in metrics.diversity(samples[:1], top_hole).values())


def test_rows_have_the_samples_mean_the_best_sample_and_what_is_given_of_other_methods():
    samples = [{'psnr': 20.0, 'mae': 0.3, 'ssim': 0.9, 'l1': 1.0, 'l1_hole': 4.0, 'perceptual': 1.0},
               {'psnr': 23.0, 'mae': 0.2, 'ssim': 0.5, 'l1': 2.0, 'l1_hole': 9.0, 'perceptual': 3.0},
               {'psnr': 20.0, 'mae': 0.1, 'ssim': 0.7, 'l1': 6.0, 'l1_hole': 2.0, 'perceptual': 5.0}]
    deterministic, other = ({**random_metrics(seed), 'perceptual': 0.5} for seed in (5, 6))
    rows = {row.pop('method'): row for row in evaluation.rows_of(samples, {'diversity': 7.0}, deterministic,
                                                                 {'another': other})}
    assert list(rows) == ['single sample', 'best of 3 by PSNR', 'deterministic', 'another']
    assert rows['single sample'] == pytest.approx(
        {'psnr': 21.0, 'mae': 0.2, 'ssim': 0.7, 'l1': 3.0, 'l1_hole': 5.0, 'perceptual': 3.0, 'diversity': 7.0})
    for method, expected in (('best of 3 by PSNR', samples[1]), ('deterministic', deterministic), ('another', other)):
        assert math.isnan(rows[method].pop('diversity'))
        assert rows[method] == expected


def test_perceptual_metric_is_the_distance_of_the_networks_maps_from_the_originals():
    def features(picture):
        return [picture.transpose(2, 0, 1).astype(np.float32)]

    measure = evaluation.perceptual_metric(features, random_picture(0))
    assert measure(random_picture(0)) == {'perceptual': 0.0}
    a, b = (random_picture(seed) / np.linalg.norm(random_picture(seed), axis=-1, keepdims=True) for seed in (0, 1))
    assert measure(random_picture(1)) == {'perceptual': pytest.approx(((a - b) ** 2).sum(-1).mean(), rel=1e-5)}
    assert evaluation.perceptual_metric(None, random_picture(0))(random_picture(1)) == {}


@pytest.mark.parametrize('content', ['id,result\na,0\n', 'id,result,psnr,mae,ssim,l1_hole\na,0,x,1,1,1\n', None])
def test_a_damaged_metrics_file_is_a_user_error(tmp_path, content):
    if content is not None:
        (tmp_path / 'metrics.csv').write_text(content)
    with pytest.raises(UserError, match=r'metrics\.csv'):
        evaluation.read_metrics(tmp_path / 'metrics.csv')


# What a picture that equals its original does to means

def test_mean_psnr_leaves_out_identical_pictures_and_other_means_do_not():
    rows = [{'psnr': psnr, 'mae': mae} for psnr, mae in ((20.0, 0.3), (math.inf, 0.0), (30.0, 0.6))]
    assert metrics.means(rows, ('psnr', 'mae')) == pytest.approx({'psnr': 25.0, 'mae': 0.3})
    assert metrics.n_identical(rows) == 1
    assert metrics.means(rows[1:2], ('psnr',)) == {'psnr': math.inf}  # no other is left


def test_means_by_hole_say_how_many_results_are_identical():
    rows = [{'hole': hole, 'psnr': psnr} for hole, psnr in ((0.15, math.inf), (0.19, 20.0), (0.2, 30.0), (1.0, 10.0))]
    assert report.means_by_hole(rows, ('psnr',)) == [
        {'hole': '10-20 %', 'results': 2, 'identical': 1, 'psnr': 20.0},
        {'hole': '20-40 %', 'results': 1, 'identical': 0, 'psnr': 30.0},
        {'hole': '60-100 %', 'results': 1, 'identical': 0, 'psnr': 10.0},
        {'hole': 'all', 'results': 4, 'identical': 1, 'psnr': 20.0}]


def test_stage_2_prints_a_finite_psnr_and_how_many_results_are_left_out(tmp_path, capsys):
    infer.write_metrics(tmp_path, [{'id': 'a', 'result': k, **dict.fromkeys(('hole', *NAMES), 0.0), 'psnr': psnr}
                                   for k, psnr in enumerate((math.inf, 21.5))])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith('PSNR: 21.500000, MAE: 0.000000000')
    assert said[2] == '1 of 2 results equal their originals and are left out of the mean PSNR'


def test_an_evaluation_says_which_methods_results_were_identical():
    rows = [{'method': 'one', 'psnr': math.inf}, {'method': 'two', 'psnr': 3.0}, {'method': 'one', 'psnr': math.inf}]
    assert evaluate.identical_line(rows).endswith(': 2 of one.')
    assert evaluate.identical_line(rows[1:2]) == ''


# Tables

def table_rows(**further: float) -> list[dict]:
    return [{'id': str(i), 'method': method, 'hole': hole, 'psnr': psnr + bonus, 'mae': 0.5, 'ssim': 0.25, 'l1': 1.5,
             'l1_hole': 3.0, **further, 'diversity': math.nan if bonus else 2.0, 'diversity_ssim': math.nan}
            for i, (hole, psnr) in enumerate([(0.15, 20.0), (0.2, 30.0), (0.39, 31.0), (0.4, 10.0)])
            for method, bonus in (('one', 0), ('two', 5))]


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]


def test_table_has_the_means_of_each_bin_and_of_all():
    cells = cells_of(evaluate.table(table_rows()))
    assert cells[0][:5] == ['hole', 'pictures', 'method', 'PSNR', 'SSIM'] and 'perceptual' not in cells[0]
    assert [row[:4] for row in cells[2:]] == [
        ['10-20 %', '1', 'one', '20.00'], ['10-20 %', '1', 'two', '25.00'],
        ['20-40 %', '2', 'one', '30.50'], ['20-40 %', '2', 'two', '35.50'],
        ['40-60 %', '1', 'one', '10.00'], ['40-60 %', '1', 'two', '15.00'],
        ['all', '4', 'one', '22.75'], ['all', '4', 'two', '27.75']]
    assert cells[2][4:] == ['0.2500', '0.50000', '3.00', '2.00', '–']
    assert cells[3][-2:] == ['–', '–']
    assert len({len(row) for row in cells}) == 1


def test_table_has_a_perceptual_column_when_it_was_measured():
    cells = cells_of(evaluate.table(table_rows(perceptual=1.2345)))
    column = cells[0].index('perceptual')
    assert {row[column] for row in cells[2:]} == {'1.234'}


def test_unknown_values_are_dashes_in_markdown_and_empty_in_csv(tmp_path):
    rows = [{'a': 'x', 'b': 1.23456}, {'a': 3, 'b': math.nan}]
    assert report.markdown(rows, (('A', 'a', 0), ('B', 'b', 2))) == '| A | B |\n|---|---|\n| x | 1.23 |\n| 3 | – |'
    report.write_csv(tmp_path / 'rows.csv', rows)
    assert (tmp_path / 'rows.csv').read_text() == 'a,b\nx,1.23456\n3,\n'


def test_best_median_and_worst_are_ranked_by_psnr():
    assert evaluate.best_median_worst({'a': 21.0, 'b': 25.0, 'c': 19.0, 'd': 23.0, 'e': 30.0}) == ['e', 'd', 'c']
    assert evaluate.best_median_worst({'a': 21.0, 'c': 19.0}) == ['a', 'c']
    assert evaluate.best_median_worst({'a': math.inf}) == ['a']


def test_a_constant_rate_is_not_drawn_as_none():
    drawn = [report.curves({'lr': [(step, rate) for step in range(9)]}) for rate in (3e-4, 0.0)]
    assert not np.array_equal(*drawn)
