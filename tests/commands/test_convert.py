"""ckpts_ICT/convert.py on MindSpore checkpoints: what is stamped, kept and refused."""
from __future__ import annotations

import math
import shutil

import mindspore as ms
import numpy as np
import pytest

from ckpts_ICT import convert
from Guided_Upsample.models import config as generators
from ict import checkpoint
from ict.errors import UserError
from tests.commands.conftest import run
from tests.conftest import command
from Transformer import infer as stage_1
from Transformer.models import config as transformers
from Transformer.models import predict


@pytest.mark.parametrize('in_place', [True, False])
def test_a_published_transformer_is_stamped_with_its_row_and_palette(tiny, tmp_path, colours, published_row, in_place):
    before = checkpoint.read(tiny['published'])
    source = shutil.copy(tiny['published'], tmp_path / 'in.ckpt')
    out = source if in_place else tmp_path / 'new' / 'out.ckpt'
    assert run(source, out, '--kmeans', tiny['kmeans']) == 0
    found = checkpoint.read(out)
    assert checkpoint.transformer_palette(found, '', 512) is found.palette
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


def test_a_flag_may_stand_before_the_files(tiny, tmp_path):
    convert.main(['--float16', str(tiny['generator']), '--overwrite', str(tmp_path / 'a.ckpt')])
    convert.main([str(tiny['generator']), str(tmp_path / 'b.ckpt'), '--float16', 'True'])
    assert (tmp_path / 'a.ckpt').read_bytes() == (tmp_path / 'b.ckpt').read_bytes()


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
    assert generators.GeneratorConfig.from_checkpoint(plain, {'padding': 'reflect'}).padding == 'reflect'
    assert run(source, tmp_path / 'told.ckpt', '--padding', 'reflect') == 0
    told = checkpoint.read(tmp_path / 'told.ckpt')
    assert generators.GeneratorConfig.from_checkpoint(told, {}).padding == 'reflect' and told.palette is None
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
