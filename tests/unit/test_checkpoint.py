"""Checkpoints: published and our own are read exactly, all else is refused by name, a crash leaves the old file."""
from __future__ import annotations

import os

import mindspore as ms
import numpy as np
import pytest

from ict import checkpoint, files
from ict.errors import UserError
from tests.conftest import made_up
from Transformer.models import config, predict
from Transformer.models.networks import GPT


def test_our_checkpoint_comes_back_with_record_and_palette(tiny, colours):
    found = checkpoint.read(tiny['transformer'])
    shape = config.GPTConfig.from_checkpoint(found, {})
    assert (shape.n_layer, shape.n_embd, shape.n_head, shape.prior_size, shape.GELU_2) == (2, 16, 2, 8, True)
    np.testing.assert_array_equal(found.palette, colours)
    for name, value in made_up(shape.shapes(), 7).items():
        np.testing.assert_array_equal(found.array(name), value)


def test_published_checkpoint_loads_into_the_network_without_its_unused_mask(tiny):
    found = checkpoint.read(tiny['published'])
    assert found.kind == 'Transformer' and found.palette is None and found.metadata == {}
    net = GPT(512, 16, 2, 2, 64, True)
    checkpoint.load_into(net, found)
    weights = made_up({p.name: p.shape for p in net.get_parameters()}, 7)
    for parameter in net.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name])


def test_mindspore_reads_what_we_write(tiny):
    loaded = ms.load_checkpoint(str(tiny['transformer']))
    net = GPT(512, 16, 2, 2, 64, True)
    missing, _ = ms.load_param_into_net(net, loaded)
    assert missing == []


def test_a_tensor_in_several_pieces_is_put_together(tmp_path, monkeypatch):
    from mindspore.train import serialization
    monkeypatch.setattr(serialization, 'SLICE_SIZE', 1)  # kilobytes; half a gigabyte in earnest
    value = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
    checkpoint.write(tmp_path / 'a.ckpt', {'big': value}, {'network': 'x'})
    found = checkpoint.read(tmp_path / 'a.ckpt')
    assert len(found.entries['big'].pieces) > 1
    np.testing.assert_array_equal(found.array('big'), value)


def test_float16_is_widened(tmp_path):
    value = np.linspace(-1, 1, 9).astype(np.float16)
    checkpoint.write(tmp_path / 'a.ckpt', {'w': value}, {})
    read = checkpoint.read(tmp_path / 'a.ckpt').array('w')
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value.astype(np.float32))


@pytest.mark.parametrize('change', ['missing', 'surplus', 'shape'])
def test_strict_in_every_key_and_shape(tiny, tmp_path, change):
    found = checkpoint.read(tiny['transformer'])
    tensors = {name: found.array(name) for name in found.entries}
    if change == 'missing':
        del tensors['blocks.1.mlp.0.bias']
    elif change == 'surplus':
        tensors['blocks.1.mlp.9.bias'] = np.zeros(3, np.float32)
    else:
        tensors['blocks.1.mlp.0.bias'] = np.zeros(3, np.float32)
    checkpoint.write(tmp_path / 'a.ckpt', tensors, found.metadata)
    with pytest.raises(UserError, match=r'a\.ckpt: tensor blocks\.1\.mlp\.[09]\.bias') as error:
        changed = checkpoint.read(tmp_path / 'a.ckpt')
        predict.Predictor.from_checkpoint(changed, config.GPTConfig.from_checkpoint(changed, {}), 1, 'none')
    if change == 'shape':
        assert '(3,)' in str(error.value) and '(64,)' in str(error.value)


@pytest.mark.parametrize('flag', [{'n_layer': 3}, {'n_embd': 32}, {'n_head': 4}, {'prior_size': 16}, {'GELU_2': False}])
def test_a_flag_that_contradicts_the_checkpoint_is_named(tiny, flag):
    with pytest.raises(UserError, match=f'--{next(iter(flag))} .* contradicts'):
        config.GPTConfig.from_checkpoint(checkpoint.read(tiny['transformer']), flag)


def test_published_shapes_bring_their_heads_and_activation(tmp_path, capsys):
    # The FFHQ row, with empty tensors except those that tell the sizes.
    shape = config.GPTConfig(30, 512, 8, 48, 4, True)
    tensors = {name: np.zeros((1,), np.float32) for name in shape.shapes()}
    tensors |= {'pos_emb': np.zeros((1, 48 * 48, 512), np.float32),
                'tok_emb.embedding_table': np.zeros((4, 512), np.float32)}
    checkpoint.write(tmp_path / 'FFHQ.ckpt', tensors, {})
    found = config.GPTConfig.from_checkpoint(checkpoint.read(tmp_path / 'FFHQ.ckpt'), {})
    assert found == shape
    assert 'published FFHQ model' in capsys.readouterr().err


@pytest.mark.parametrize('content', [b'', b'hello', b'\n\x05\n\x03abc', b'\x80' * 100, os.urandom(300), b'PK\x03\x04'])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / 'bad.ckpt'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'bad\.ckpt: (damaged|a PyTorch file)'):
        checkpoint.read(path)


def test_every_cut_is_noticed(tiny, tmp_path):
    whole = tiny['generator'].read_bytes()
    path = tmp_path / 'cut.ckpt'
    for length in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r'cut\.ckpt'):
            found = checkpoint.read(path)
            from Guided_Upsample.models.config import GeneratorConfig
            GeneratorConfig.from_checkpoint(found, {})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.ckpt'
    checkpoint.write(path, {'w': np.ones(3, np.float32)}, {})
    before = path.read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        checkpoint.write(path, {'w': np.zeros(3, np.float32)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.ckpt']


def test_files_have_the_usual_rights(tmp_path):
    files.write_bytes(tmp_path / 'a', b'1')
    (tmp_path / 'b').write_bytes(b'1')
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode
