"""Conversion: PyTorch's weights give PyTorch's numbers, stamped checkpoints need no flag, wrong files are named."""
from __future__ import annotations

import math
import shutil
import sys
import types
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from ckpts_ICT import convert
from Guided_Upsample.models import config as generators
from Guided_Upsample.models import vgg
from Guided_Upsample.models.networks import Discriminator, Generator
from ict import checkpoint
from ict.errors import UserError
from tests.conftest import command, made_up, names, parity
from Transformer import infer as stage_1
from Transformer.models import config as transformers
from Transformer.models import predict

TOLERANCE = 2e-4
SCALES = ('ln1.weight', 'ln2.weight', 'ln_f.weight')  # PyTorch's names of what MindSpore calls gamma
VGG = {'relu1_1.0': 0, 'relu1_2.0': 2, 'relu2_1.1': 5, 'relu2_2.0': 7, 'relu3_1.1': 10, 'relu3_2.0': 12,
       'relu3_3.0': 14, 'relu3_4.0': 16, 'relu4_1.1': 19, 'relu4_2.0': 21, 'relu4_3.0': 23, 'relu4_4.0': 25,
       'relu5_1.1': 28, 'relu5_2.0': 30, 'relu5_3.0': 32, 'relu5_4.0': 34}  # torchvision's table of layers


def pytorch(network: str) -> dict[str, np.ndarray]:
    """A PyTorch dictionary with the parity weights and everything else that such a file holds."""
    shapes = names('names_pytorch.json')[network]
    arrays = made_up(shapes, 17 if network == 'discriminator' else 7, SCALES)
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in arrays}
    if network == 'discriminator':
        for name, values in parity('pytorch_upsample.npz').items():
            if name.startswith('conv'):
                stem, part = name.split('_0_')
                arrays[f'{stem}.0.{part}'] = values
    return arrays


class Tensor:
    """Stands in for torch.Tensor."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self):
        return self

    def to(self, dtype):
        return Tensor(self.values.astype(dtype))

    def numpy(self):
        return self.values


@pytest.fixture
def pth(tmp_path, monkeypatch):
    """Writes a file that begins like PyTorch's, and a torch that finds ``content`` in it, in safe mode only."""
    kept = {}

    def load(path, map_location, weights_only, mmap):
        assert (map_location, weights_only, mmap) == ('cpu', True, True)
        return kept[Path(path)]

    torch = types.SimpleNamespace(__version__='2.13.0+cpu', load=load, Tensor=Tensor, float32=np.float32)
    monkeypatch.setitem(sys.modules, 'torch', torch)

    def make(content, name: str = 'in.pth') -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/version', '3')
        kept[path] = content
        return path

    return make


def tensors(arrays: dict[str, np.ndarray], prefix: str = '') -> dict[str, Tensor]:
    return {prefix + name: Tensor(values) for name, values in arrays.items()}


@pytest.fixture
def kmeans(tmp_path, colours) -> Path:
    """A palette for the 64 tokens of the parity transformer."""
    np.save(tmp_path / 'kmeans64.npy', colours[:64])
    return tmp_path / 'kmeans64.npy'


@pytest.fixture
def published_row(monkeypatch):
    """Makes the tiny 'published' transformer one of the published models."""
    monkeypatch.setattr(transformers, 'PUBLISHED', {(2, 16, 8): ('Tiny', 2, True)})


def run(*argv: object) -> int:
    return convert.main([str(a) for a in argv])


def logits_of(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    found = checkpoint.read(path)
    model = predict.Predictor.from_checkpoint(found, transformers.GPTConfig.from_checkpoint(found, {}), 1, 'none')
    return model.logits_at(arrays['idx'], arrays['masks'], np.tile(np.arange(64), (2, 1)))


# ---------------------------------------------------------------- PyTorch

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
    shape = generators.GeneratorConfig.from_checkpoint(found, None)
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


# ---------------------------------------------------------------- MindSpore

@pytest.mark.parametrize('in_place', [True, False])
def test_a_published_transformer_is_stamped_with_its_row_and_palette(tiny, tmp_path, colours, published_row, in_place):
    before = checkpoint.read(tiny['published'])
    source = shutil.copy(tiny['published'], tmp_path / 'in.ckpt')
    out = source if in_place else tmp_path / 'new' / 'out.ckpt'
    assert run(source, out, '--kmeans', tiny['kmeans']) == 0
    found = checkpoint.read(out)
    assert stage_1.palette_of(found, '', 512) is found.palette
    np.testing.assert_array_equal(found.palette, colours)
    assert found.metadata == {'network': 'Transformer', 'architecture': {
        'n_layer': 2, 'n_embd': 16, 'n_head': 2, 'prior_size': 8, 'vocab_size': 512, 'GELU_2': True, 'gelu': 'tanh'}}
    assert found.entries.keys() == before.entries.keys()
    for name in before.entries:
        np.testing.assert_array_equal(found.array(name), before.array(name))
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == sorted({source, out})
    assert b'attn.mask' not in out.read_bytes()


def test_the_repositorys_own_palette_is_refused_for_published_weights(tiny, tmp_path, published_row, monkeypatch):
    """It lies where one who is told to give kmeans_centers.npy finds it, and its colours are others."""
    monkeypatch.setattr(convert.codebook, 'REPOSITORY_PALETTE', tiny['kmeans'])
    with pytest.raises(UserError, match=r"this repository's own palette.*raywzy/ICT"):
        run(tiny['published'], tmp_path / 'out.ckpt', '--kmeans', tiny['kmeans'])
    assert not (tmp_path / 'out.ckpt').exists()


def test_a_damaged_pth_is_not_sent_to_the_converter(tmp_path):
    (tmp_path / 'x.pth').write_bytes(b'<html>')
    with pytest.raises(UserError, match=r'x\.pth: damaged.*fetch or copy it again$'):
        convert.convert(tmp_path / 'x.pth', tmp_path / 'x.ckpt', convert.Flags())


def test_nothing_about_a_transformer_is_guessed(tiny, tmp_path, published_row, monkeypatch):
    out = tmp_path / 'out.ckpt'
    with pytest.raises(UserError, match=r'--kmeans.*no palette'):
        run(tiny['published'], out)
    with pytest.raises(UserError, match='--n_head 4 contradicts'):
        run(tiny['published'], out, '--kmeans', tiny['kmeans'], '--n_head', 4)
    monkeypatch.setattr(transformers, 'PUBLISHED', {})
    with pytest.raises(UserError, match=r'--n_head: .*none of the published models'):
        run(tiny['published'], out, '--kmeans', tiny['kmeans'])
    assert not out.exists()
    assert run(tiny['published'], out, '--kmeans', tiny['kmeans'], '--n_head', 4) == 0
    shape = transformers.GPTConfig.from_checkpoint(checkpoint.read(out), {})
    assert (shape.n_head, shape.GELU_2) == (4, False)


def test_our_record_is_kept_and_a_flag_or_palette_that_contradicts_it_is_refused(tiny, tmp_path):
    colours = checkpoint.read(tiny['transformer']).palette
    known = {**checkpoint.read(tiny['transformer']).metadata, 'step': 7, 'settings': {'seed': 1}}
    source, out = tmp_path / 'in.ckpt', tmp_path / 'out.ckpt'
    opened = checkpoint.read(tiny['transformer'])
    checkpoint.write(source, {name: opened.array(name) for name in opened.entries}, known, colours)
    assert run(source, out, '--top_k', 20) == 0
    assert checkpoint.read(out).metadata == {**known, 'sampling': {'top_k': 20}}
    assert run(out, out, '--temperature', 0.8) == 0
    found = checkpoint.read(out)
    assert found.metadata == {**known, 'sampling': {'top_k': 20, 'temperature': 0.8}}
    settings = stage_1.SamplingFlags().config(found.metadata)
    assert (settings.top_k, settings.temperature) == (20, 0.8)
    np.save(tmp_path / 'other.npy', colours[::-1])
    with pytest.raises(UserError, match='not the palette'):
        run(source, tmp_path / 'new.ckpt', '--kmeans', tmp_path / 'other.npy')
    with pytest.raises(UserError, match='--GELU_2 False contradicts'):
        run(source, tmp_path / 'new.ckpt', '--GELU_2', 'False')


def test_float16_halves_the_file_and_stays(tiny, tmp_path, capsys):
    small, again = tmp_path / 'small.ckpt', tmp_path / 'again.ckpt'
    assert run(tiny['transformer'], small, '--float16') == 0
    assert run(small, again, '--top_k', 5) == 0
    whole, found = checkpoint.read(tiny['transformer']), checkpoint.read(again)
    weights = 4 * sum(math.prod(entry.shape) for entry in whole.entries.values())
    assert tiny['transformer'].stat().st_size - small.stat().st_size > 0.49 * weights
    np.testing.assert_array_equal(found.palette, whole.palette)
    for name in whole.entries:
        assert found.entries[name].dtype == 'Float16'
        np.testing.assert_array_equal(found.array(name), whole.array(name).astype(np.float16))
    net = predict.Predictor.from_checkpoint(found, transformers.GPTConfig.from_checkpoint(found, {}), 1, 'none').network
    assert all(weight.dtype == ms.float32 for weight in net.layers[0])


def test_a_value_beyond_float16_is_refused_and_the_old_file_is_whole(tiny, tmp_path):
    opened = checkpoint.read(tiny['generator'])
    weights = {name: opened.array(name).copy() for name in opened.entries}
    weights['decoder.5.bias'][0] = 1e5
    path = tmp_path / 'gen.ckpt'
    checkpoint.write(path, weights, opened.metadata)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r'--float16.*decoder\.5\.bias'):
        run(path, path, '--float16')
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_generator_without_record_gets_a_padding_only_when_it_is_told(tiny, tmp_path, colours):
    opened = checkpoint.read(tiny['generator'])
    source = tmp_path / 'in.ckpt'
    ms.save_checkpoint([{'name': n, 'data': ms.Tensor(opened.array(n))} for n in opened.entries], str(source))
    assert run(source, tmp_path / 'plain.ckpt', '--kmeans', tiny['kmeans']) == 0
    plain = checkpoint.read(tmp_path / 'plain.ckpt')
    assert plain.metadata == {'network': 'Generator', 'architecture': {'residual_blocks': 1, 'base_channels': 4}}
    np.testing.assert_array_equal(plain.palette, colours)
    assert generators.GeneratorConfig.from_checkpoint(plain, 'reflect').padding == 'reflect'
    assert run(source, tmp_path / 'told.ckpt', '--padding', 'reflect') == 0
    told = checkpoint.read(tmp_path / 'told.ckpt')
    assert generators.GeneratorConfig.from_checkpoint(told, None).padding == 'reflect' and told.palette is None
    with pytest.raises(UserError, match='--padding symmetric contradicts'):
        run(tmp_path / 'told.ckpt', tmp_path / 'new.ckpt', '--padding', 'symmetric')


@pytest.mark.parametrize(('network', 'flags', 'line'), [
    ('generator', ['--n_head', '2'], '--n_head.*Generator'),
    ('generator', ['--GELU_2', 'False'], '--GELU_2.*Generator'),
    ('transformer', ['--padding', 'reflect'], '--padding.*Transformer'),
    ('discriminator', ['--kmeans', 'x.npy'], '--kmeans.*Discriminator'),
    ('transformer', ['--temperature', '0'], '--temperature 0'),
    ('transformer', ['--top_k', '0'], '--top_k 0'),
])
def test_an_option_without_effect_is_refused(tiny, tmp_path, network, flags, line):
    with pytest.raises(UserError, match=line):
        run(tiny[network], tmp_path / 'out.ckpt', *flags)
    assert not (tmp_path / 'out.ckpt').exists()


def test_tensors_that_do_not_fit_and_training_states_are_refused(tiny, tmp_path):
    opened = checkpoint.read(tiny['discriminator'])
    weights = {name: opened.array(name) for name in opened.entries if name != 'conv3.0.weight'}
    checkpoint.write(tmp_path / 'dis.ckpt', weights, {})
    with pytest.raises(UserError, match=r'dis\.ckpt: tensor conv3\.0\.weight .* is missing'):
        run(tmp_path / 'dis.ckpt', tmp_path / 'out.ckpt')
    checkpoint.write(tmp_path / 'state.ckpt', weights, {'network': 'state'})
    with pytest.raises(UserError, match="a training's state"):
        run(tmp_path / 'state.ckpt', tmp_path / 'out.ckpt')
    checkpoint.write(tmp_path / 'other.ckpt', {'w': np.zeros(2, np.float32)}, {})
    with pytest.raises(UserError, match='no network that this project knows'):
        run(tmp_path / 'other.ckpt', tmp_path / 'out.ckpt')


def test_another_file_is_replaced_only_with_overwrite(tiny, tmp_path):
    out = tmp_path / 'out.ckpt'
    out.write_bytes(b'precious')
    with pytest.raises(UserError, match=r'OUT .*out\.ckpt: is there already; use --overwrite'):
        run(tiny['generator'], out)
    assert out.read_bytes() == b'precious'
    assert run(tiny['generator'], out, '--overwrite') == 0
    assert checkpoint.read(out).kind == 'Generator'


def test_a_write_that_fails_leaves_the_old_file_and_one_line(tiny, tmp_path, monkeypatch):
    path = shutil.copy(tiny['transformer'], tmp_path / 'a.ckpt')
    before = path.read_bytes()

    def full(temporary, weights, *_):
        temporary.write_bytes(next(iter(weights.values())).tobytes())
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint, 'save', full)
    with pytest.raises(UserError, match=r'a\.ckpt: cannot be written \(No space left on device\)'):
        run(path, path, '--top_k', 3)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_weights_are_read_one_at_a_time(tiny):
    opened = checkpoint.read(tiny['transformer'])
    alive = []

    class Watched(np.ndarray):
        def __del__(self):
            alive.pop()

    class Source:
        path, entries = opened.path, opened.entries

        def array(self, name):
            assert len(alive) < 2, 'an earlier array is still held'
            alive.append(name)
            return opened.array(name).view(Watched)

    total = sum(values.size for _, values in convert._Weights(Source(), False).items())
    assert total == sum(math.prod(entry.shape) for entry in opened.entries.values())


@pytest.mark.parametrize(('argv', 'line'), [
    (['missing.ckpt', 'out.ckpt'], 'IN missing.ckpt: no such file'),
    (['.', 'out.ckpt'], 'IN .: is a folder'),
    (['text.ckpt', 'out.ckpt'], 'not a MindSpore checkpoint'),
    (['text.ckpt', 'out.pth'], 'OUT out.pth: the name must end in .ckpt'),
])
def test_wrong_files_end_with_one_line_and_status_2_from_any_folder(tmp_path, argv, line):
    (tmp_path / 'text.ckpt').write_text('hello')
    done = command('ckpts_ICT/convert.py', *argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and line in done.stderr
