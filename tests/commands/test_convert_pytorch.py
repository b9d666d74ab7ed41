"""ckpts_ICT/convert.py on PyTorch files: the network gives PyTorch's numbers, and nothing is guessed."""
from __future__ import annotations

import sys
import types

import mindspore as ms
import numpy as np
import pytest

from Guided_Upsample.models import config as generators
from Guided_Upsample.models import vgg
from Guided_Upsample.models.networks import Discriminator, Generator
from ict import checkpoint
from ict.errors import UserError
from tests.commands.conftest import TOLERANCE, VGG, Tensor, logits_of, pytorch, run, tensors
from tests.conftest import names, parity


@pytest.mark.parametrize(('gelu_2', 'wrap'), [(True, True), (False, False)])
def test_a_pytorch_transformer_gives_pytorchs_logits_without_a_flag(pth, tmp_path, kmeans, colours, capsys, gelu_2,
                                                                    wrap):
    arrays = parity(f'pytorch_transformer_gelu2_{int(gelu_2)}.npz')
    weights = pytorch('transformer')
    content = {'model': tensors(weights), 'epoch': 3, 'optimizer': {}} if wrap else tensors(weights, 'module.')
    out = tmp_path / 'out.ckpt'
    assert run(pth(content), out, '--n_head', 4, '--kmeans', kmeans, *(['--GELU_2'] if gelu_2 else [])) == 0
    found = checkpoint.read(out)
    assert found.metadata['architecture'] == {'n_layer': 3, 'n_embd': 48, 'n_head': 4, 'prior_size': 8,
                                              'vocab_size': 64,
                                            'GELU_2': gelu_2, 'gelu': 'tanh' if gelu_2 else 'erf'}
    np.testing.assert_array_equal(found.palette, colours[:64])
    np.testing.assert_allclose(logits_of(out, arrays), arrays['logits'], atol=TOLERANCE)
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'Transformer' in said and 'n_head 4' in said and '64 colours' in said
    assert f'{out.stat().st_size / 1e6:.1f} MB' in said


def test_a_pytorch_generator_paints_what_pytorch_paints_without_a_flag(pth, tmp_path):
    arrays = parity('pytorch_upsample.npz')
    out = tmp_path / 'out.ckpt'
    weights = tensors(pytorch('generator_residual_blocks_1'))
    assert run(pth({'iteration': 5, 'generator': weights}), out) == 0
    found = checkpoint.read(out).expect('Generator', '')
    shape = generators.GeneratorConfig.from_checkpoint(found, {})
    assert shape == generators.GeneratorConfig(1, 64, 'reflect') and found.palette is None
    net = Generator(shape.residual_blocks, shape.base_channels, shape.padding)
    checkpoint.load_into(net, found)
    painted = net(*(ms.Tensor(arrays[name]) for name in ('images', 'edges', 'masks'))).asnumpy()
    np.testing.assert_allclose(painted, arrays['output'], atol=TOLERANCE)


def test_a_pytorch_discriminator_scores_as_in_pytorch_with_its_spectral_norm_folded_in(pth, tmp_path):
    arrays = parity('pytorch_upsample.npz')
    out = tmp_path / 'out.ckpt'
    weights = pytorch('discriminator')
    assert any(name.startswith('features.') for name in weights)
    assert run(pth({'discriminator': tensors(weights)}), out) == 0
    net = Discriminator(3)
    checkpoint.load_into(net, checkpoint.read(out).expect('Discriminator', ''))
    score, _ = net(ms.Tensor(arrays['images']))
    np.testing.assert_allclose(score.asnumpy(), arrays['disc'], atol=TOLERANCE)


def test_torchvisions_vgg19_lands_in_the_right_layers(pth, tmp_path):
    shapes = names('names_upsample.json')['vgg19']
    weights = {'classifier.0.weight': np.zeros((4, 4), np.float32), 'classifier.0.bias': np.zeros(4, np.float32)}
    for i, (ours, number) in enumerate(VGG.items()):
        for part in ('weight', 'bias'):
            weights[f'features.{number}.{part}'] = np.broadcast_to(np.float32(i + 1), shapes[f'{ours}.{part}'])
    out = tmp_path / 'out.ckpt'
    assert run(pth(tensors(weights)), out) == 0
    net = vgg.load(generators.find_vgg(str(out)))
    for i, ours in enumerate(VGG):
        for part in ('weight', 'bias'):
            parameter = net.parameters_dict()[f'{ours}.{part}']
            assert parameter.shape == tuple(shapes[f'{ours}.{part}'])
            assert (parameter.asnumpy() == i + 1).all(), f'{ours}.{part}'


NETWORKS = {'transformer': ('blocks.2.attn.query.bias', ('--n_head', 4)),
            'generator_residual_blocks_1': ('middle.0.conv_block.4.bias', ()),
            'discriminator': ('conv5.0.weight_u', ())}


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('change', ['missing', 'surplus', 'shape'])
def test_a_pytorch_tensor_that_does_not_fit_is_named_and_nothing_is_written(pth, tmp_path, kmeans, network, change):
    culprit, flags = NETWORKS[network]
    weights = pytorch(network)
    if change == 'missing':
        del weights[culprit]
    elif change == 'surplus':
        culprit += '_more'
        weights[culprit] = np.zeros(3, np.float32)
    else:
        weights[culprit] = np.zeros(weights[culprit].size + 1, np.float32)
    flags = (*flags, '--kmeans', kmeans) if network == 'transformer' else flags
    with pytest.raises(UserError, match=rf'in\.pth.*{culprit}\b'):
        run(pth(tensors(weights)), tmp_path / 'out.ckpt', *flags)
    assert not list(tmp_path.glob('*out*')) and not list(tmp_path.glob('.part*'))


@pytest.mark.parametrize(('content', 'line'), [
    ([1, 2], 'holds a list, not a dictionary'),
    ({}, 'no network that this project knows; its first names are none'),
    ({'fc.weight': Tensor(np.zeros(1))}, r'no network .* fc\.weight'),
    ({'generator': {}, 'discriminator': {}}, 'generator and discriminator; save each in a file of its own'),
    ({'model': {'pos_emb': 3}}, 'pos_emb is a int, not a tensor'),
])
def test_a_pytorch_file_without_a_network_is_refused(pth, tmp_path, content, line):
    with pytest.raises(UserError, match=line):
        run(pth(content), tmp_path / 'out.ckpt')


def test_without_pytorch_one_line_says_what_to_install(pth, tmp_path, monkeypatch):
    path = pth({})
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(UserError, match=r'in\.pth: a PyTorch file.*pip install torch'):
        run(path, tmp_path / 'out.ckpt')


def test_a_real_pytorch_file_converts_whatever_its_format_and_name(tmp_path, kmeans):
    torch = pytest.importorskip('torch')
    arrays = parity('pytorch_transformer_gelu2_1.npz')
    content = {'model': {name: torch.from_numpy(values) for name, values in pytorch('transformer').items()}, 'epoch': 1}
    for new in (True, False):
        path = tmp_path / f'new_{new}.bin'
        torch.save(content, path, _use_new_zipfile_serialization=new)
        out = tmp_path / f'new_{new}.ckpt'
        assert run(path, out, '--n_head', 4, '--GELU_2', '--kmeans', kmeans) == 0
        np.testing.assert_allclose(logits_of(out, arrays), arrays['logits'], atol=TOLERANCE)


def test_a_pytorch_file_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip('torch')
    torch.save({'model': types.SimpleNamespace(a=1)}, tmp_path / 'in.pth')
    with pytest.raises(UserError, match=r'holds a types\.SimpleNamespace among its tensors'):
        run(tmp_path / 'in.pth', tmp_path / 'out.ckpt')
    (tmp_path / 'in.pth').write_bytes(b'PK\3\4 cut short')
    with pytest.raises(UserError, match=r'in\.pth'):
        run(tmp_path / 'in.pth', tmp_path / 'out.ckpt')
