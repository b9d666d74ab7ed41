"""Every wrong input ends with the specified exit status and one line that names the culprit, and costs nothing."""
from __future__ import annotations

import importlib
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict import checkpoint
from ict.command import run
from ict.device import gpu
from tests.conftest import DEVICE, command, files_of, photograph

STAGES = {'1': 'Transformer.infer', '2': 'Guided_Upsample.infer', 'run': 'run', 'train 1': 'Transformer.train',
          'train 2': 'Guided_Upsample.train', 'mask': 'mask.generate', 'palette': 'ict.palette'}


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that would decode to a huge picture."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    pixels = chunk(b'IDAT', zlib.compress(bytes(100)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + pixels + chunk(b'IEND', b'')


@pytest.fixture
def place(tiny, folders, tmp_path, colours) -> dict[str, str]:
    """Paths of good and bad things by name."""
    found = {**tiny, **folders, 'tmp': tmp_path}
    names = ('empty', 'missing', 'a_file', 'not_image', 'cut_ckpt', 'other_palette', 'small_palette', 'float_txt',
             'fewer_masks', 'only_bad', 'prior', 'bad_prior', 'pth', 'tiny_image', 'bomb', 'pickled')
    found |= {name: tmp_path / name for name in names}
    found['empty'].mkdir()
    found['a_file'].write_text('x')
    found['not_image'] = tmp_path / 'not_image.png'
    found['not_image'].write_bytes(b'hello')
    found['cut_ckpt'].write_bytes(tiny['transformer'].read_bytes()[:5000])
    np.save(tmp_path / 'other_palette.npy', -colours)
    np.save(tmp_path / 'small_palette.npy', colours[:100])
    np.save(tmp_path / 'ints.npy', np.arange(6))
    np.save(tmp_path / 'pickled.npy', np.array([{'a': 1}], object), allow_pickle=True)
    for name in ('other_palette', 'small_palette', 'pickled', 'ints'):
        found[name] = tmp_path / f'{name}.npy'
    found['fewer_masks'].mkdir()
    for name in ('p0.png', 'p2.png'):
        shutil.copy(folders['masks'] / name, found['fewer_masks'] / name)
    found['only_bad'].mkdir()
    (found['only_bad'] / 'p0.png').write_bytes(b'hello')
    (found['prior'] / 'condition_1').mkdir(parents=True)
    (found['bad_prior'] / 'condition_1').mkdir(parents=True)
    for i in range(3):
        Image.fromarray(photograph(i, 8, 8)).save(found['prior'] / 'condition_1' / f'p{i}.png')
        Image.fromarray(photograph(i, 8, 9)).save(found['bad_prior'] / 'condition_1' / f'p{i}.png')
    found['pth'] = tmp_path / 'original.pth'
    found['pth'].write_bytes(b'PK\x03\x04')
    found['tiny_image'] = tmp_path / 'small.png'
    Image.fromarray(photograph(0, 7, 30)).save(found['tiny_image'])
    found['bomb'] = tmp_path / 'bomb.png'
    found['bomb'].write_bytes(png_that_claims(20000, 20000))
    found['twins'] = tmp_path / 'twins'
    shutil.copytree(folders['images'], found['twins'])
    Image.fromarray(photograph(0, 20, 20)).save(found['twins'] / 'p0.bmp')
    found['some_masks'] = tmp_path / 'some_masks'
    found['some_masks'].mkdir()
    shutil.copy(folders['masks'] / 'p0.png', found['some_masks'] / '00005.png')
    found['list'] = tmp_path / 'list.txt'
    found['list'].write_text('nowhere/x.png\n')
    found['twice'] = tmp_path / 'twice.txt'
    found['twice'].write_text(''.join(f'{folders["masks"] / name}.png\n' for name in ('p0', 'p0', 'p1')))
    found['nan_ckpt'] = tmp_path / 'odd.ckpt'
    checkpoint.write(found['nan_ckpt'], {'w': np.ones(3, np.float32)}, {'network': 'Something'})
    return {k: str(v) for k, v in found.items()}


GOOD = {
    '1': '--ckpt_path {transformer} --image_url {images} --mask_url {masks} --save_url {save} '
         f'--device_target {DEVICE}',
    '2': '--ckpt_path {generator} --input {images} --mask {masks} --prior {prior} --save_path {save} --image_size 64 '
         f'--device_target {DEVICE}',
    'run': '--transformer_ckpt {transformer} --upsample_ckpt {generator} --input_image {images} --input_mask {masks} '
           '--save_place {save}',
    'train 1': '--data_path {images} --mask_path {masks} --save_path {save} --n_layer 2 --n_embd 16 --n_head 2 '
               f'--prior_size 8 --GELU_2 --kmeans {{kmeans}} --max_steps 1 --device_target {DEVICE}',
    'train 2': '--input {images} --mask {masks} --save_path {save} --base_channels 4 --residual_blocks 1 '
               '--image_size 32 --prior_size 8 --style_loss_weight 0 --content_loss_weight 0 --max_iteration 1 '
               f'--device_target {DEVICE}',
    'mask': '--save_path {save} --count 1',
    'palette': '--data_path {images} --save_path {tmp}/k.npy --colours 8',
}
# (command, options that replace or add to the good ones, what the line says)
TABLE = [
    ('1', '--ckpt_path {missing}', 'missing: no such checkpoint'),
    ('1', '--ckpt_path {empty}', 'empty: is a folder'),
    ('1', '--ckpt_path {a_file}', 'a_file: damaged, or not a MindSpore checkpoint'),
    ('1', '--ckpt_path {cut_ckpt}', 'cut_ckpt: damaged'),
    ('1', '--ckpt_path {generator}', 'holds a Generator, not a Transformer'),
    ('1', '--ckpt_path {nan_ckpt}', 'holds a Something'),
    ('1', '--ckpt_path {pth}', 'a PyTorch file; convert it first'),
    ('1', '--ckpt_path {published} --n_head 2', 'carries no palette; give the kmeans_centers.npy'),
    ('1', '--ckpt_path {published} --n_head 3 --kmeans {kmeans}', '--n_head 3'),
    ('1', '--ckpt_path {published} --n_head 2 --kmeans {small_palette}', '512 tokens, its palette 100 colours'),
    ('1', '--kmeans {other_palette}', 'not the palette that'),
    ('1', '--kmeans {missing}', 'missing: no such palette file'),
    ('1', '--kmeans {pth}', 'not a readable .npy palette'),
    ('1', '--save_url {tmp}/' + 300 * 'x', 'cannot be made'),
    ('1', '--ckpt_path ' + 300 * 'x', 'no such checkpoint'),
    ('1', '--kmeans {ints}', 'a palette is a float array'),
    ('1', '--kmeans {pickled}', 'not a readable .npy palette'),
    ('1', '--kmeans {not_image}', 'not a readable .npy palette'),
    ('1', '--n_layer 3', '--n_layer 3 contradicts'),
    ('1', '--n_embd 32', '--n_embd 32 contradicts'),
    ('1', '--n_head 4', '--n_head 4 contradicts'),
    ('1', '--prior_size 32', '--prior_size 32 contradicts'),
    ('1', '--GELU_2 False', '--GELU_2 False contradicts'),
    ('1', '--image_url {missing}', '--image_url'),
    ('1', '--image_url {empty}', 'empty: has no images'),
    ('1', '--image_url {a_file}', '--image_url {a_file}: it lists x, which is no file'),
    ('1', '--image_url {list}', 'it lists nowhere/x.png, which is no file'),
    ('1', '--image_url {twins}', 'would have the same results; rename one'),
    ('1', '--image_url {not_image} --mask_url {masks}/p0.png', 'no picture could be completed'),
    ('1', '--image_url {only_bad} --mask_url {masks}/p0.png', 'p0.png: unreadable image'),
    ('1', '--image_url {tiny_image} --mask_url {masks}/p0.png', '30 x 7 pixels; the shorter side'),
    ('1', '--image_url {bomb} --mask_url {masks}/p0.png', 'over the limit of 64000000; --max_pixels 0 lifts it'),
    ('1', '--mask_url {missing}', '--mask_url'),
    ('1', '--mask_url {empty}', 'empty: has no images'),
    ('1', '--mask_url {fewer_masks}', '3 images but only 2 masks: {images}/p1.png has none'),
    ('1', '--mask_url {not_image}', 'not_image.png: unreadable image'),
    ('1', '--save_url {images}', '{images}: is the save place, which is never searched'),
    ('1', '--mask_url {bomb}', 'over the limit of 64000000; --max_pixels 0 lifts it'),
    ('1', '--save_url {a_file}', 'a_file is a file, not a folder'),
    ('1', '--save_url {a_file}/deeper', 'a_file is a file, not a folder'),
    ('1', '--top_k 0', '--top_k 0: must be at least 1'),
    ('1', '--temperature 0', '--temperature 0.0: must be above 0'),
    ('1', '--sample_steps -1', '--sample_steps -1: must be at least 0'),
    ('1', '--condition_num 0', '--condition_num 0'),
    ('1', '--schedule spiral', "invalid choice: 'spiral'"),
    ('1', '--geometry published', 'add --mask_mode published'),
    ('1', '--geometry hole --mask_mode published', '--geometry hole is for --mask_mode sealed'),
    ('1', '--dilate -1', '--dilate -1'),
    ('1', '--no_such_option 1', 'unrecognized arguments: --no_such_option'),
    ('1', '--device_target GPU', 'GPU'),
    ('1', '--device_target Ascend', 'Ascend'),
    ('2', '--ckpt_path {missing}', 'missing: no such checkpoint'),
    ('2', '--ckpt_path {empty}', 'the folder holds no InpaintingModel_gen.ckpt'),
    ('2', '--ckpt_path {transformer}', 'holds a Transformer, not a Generator'),
    ('2', '--ckpt_path {discriminator}', 'holds a Discriminator, not a Generator'),
    ('2', '--padding reflect', '--padding reflect contradicts'),
    ('2', '--input {empty}', 'empty: has no images'),
    ('2', '--mask {fewer_masks}', '3 images but only 2 masks'),
    ('2', '--prior {missing}', 'missing: no such folder'),
    ('2', '--prior {empty}', 'holds no condition_1'),
    ('2', '--prior {bad_prior}', 'a prior is square; this one is 9 x 8'),
    ('2', '--prior_size 16', 'a prior is 16 x 16; this one is 8 x 8'),
    ('2', '--condition_num 2', 'holds only 1'),
    ('2', '--test_only --distributed', 'leave --distributed out'),
    ('2', '--image_size 30', '--image_size 30'),
    ('2', '--mask_type 1', 'invalid choice: 1'),
    ('2', '--mode 1', 'invalid choice: 1'),
    ('2', '--save_path {a_file}', 'a_file is a file'),
    ('2', '--save_path {images}', '{images}: is the save place, which is never searched'),
    ('2', '--keep_size --mask_mode published', '--keep_size is for --mask_mode sealed'),
    ('2', '--device_target GPU', 'GPU'),
    ('run', '--transformer_ckpt {missing}', '--transformer_ckpt {missing}: no such checkpoint'),
    ('run', '--upsample_ckpt {missing}', '--upsample_ckpt {missing}: no such checkpoint'),
    ('run', '--input_image {missing}', '--input_image {missing}'),
    ('run', '--input_mask {missing}', '--input_mask {missing}'),
    ('run', '--input_mask {twice}', 'p0.png: is listed twice'),
    ('run', '--input_mask {twins}', 'have the same name, so nothing tells whose masks they are'),
    ('run', '--test_only --visualize', '--test_only keeps no pictures'),
    ('run', '--upsample_ckpt {transformer}', 'holds a Transformer, not a Generator'),
    ('run', '--input_image {empty}', 'empty: has no images'),
    ('run', '--input_mask {fewer_masks}', '3 images but only 2 masks'),
    ('run', '--save_place {a_file}', 'a_file is a file'),
    ('run', '--n_head 5', '--n_head 5 contradicts'),
    ('run', '--keep_size --mask_mode published', '--keep_size is for --mask_mode sealed'),
    ('run', '--save_place {images}', '{images}: is the save place, which is never searched'),
    ('train 1', '--data_path {empty}', 'empty: has no images'),
    ('train 1', '--mask_path {missing}', '--mask_path'),
    ('train 1', '--ckpt_path {missing}', 'missing: no such checkpoint'),
    ('train 1', '--ckpt_path .', '.: is a folder; name the .ckpt file'),
    ('train 1', '--ckpt_path {generator}', 'holds a Generator, not a Transformer'),
    ('train 1', '--ckpt_path {published} --kmeans=', 'carries no palette; give the kmeans_centers.npy'),
    ('train 1', '--ckpt_path {transformer} --n_layer 3', '--n_layer 3 contradicts'),
    ('train 1', '--ckpt_path {transformer} --kmeans {other_palette}', 'was trained with another palette'),
    ('train 1', '--n_head 3', '--n_head 3 does not divide'),
    ('train 1', '--init structured --n_embd 4 --n_head 2', '--init structured: needs'),
    ('train 1', '--crop_scale 0', '--crop_scale 0'),
    ('train 1', '--learning_rate 0', '--learning_rate 0'),
    ('train 1', '--save_path {a_file}', 'a_file is a file'),
    ('train 2', '--input {empty}', 'empty: has no images'),
    ('train 2', '--mask {missing}', '--mask'),
    ('train 2', '--ckpt_path {empty}', 'holds no InpaintingModel_gen.ckpt, InpaintingModel_dis.ckpt'),
    ('train 2', '--style_loss_weight 250', 'VGG19.ckpt'),
    ('train 2', '--style_loss_weight 250 --vgg_path {generator}', 'holds a Generator, not a VGG19'),
    ('train 2', '--prior {prior}', None),  # good: a run that trains on sampled priors
    ('train 2', '--prior ' + 300 * 'x', 'holds no condition_1'),
    ('train 2', '--style_loss_weight 250 --vgg_path ' + 300 * 'x', 'no VGG19 checkpoint'),
    ('train 2', '--prior {empty}', 'holds no condition_1'),
    ('train 2', '--val_path {images} --val_prior {prior}', '--val_prior: needs --val_mask'),
    ('train 2', '--val_path {images} --val_mask {masks} --val_prior {empty}', '--val_prior'),
    ('train 2', '--mode 2', '--ckpt_path: needed for --mode 2'),
    ('train 2', '--image_size 30', '--image_size 30'),
    ('train 2', '--init structured --base_channels 29', '--init structured: needs --base_channels of 30'),
    ('mask', '--lowest 0.5 --highest 0.4', 'must be an interval'),
    ('mask', '--lowest 0.999', 'widen the interval'),
    ('mask', '--save_path {a_file}', 'a_file is a file'),
    ('mask', '--save_path {some_masks} --count 6', '00005.png: is there already'),
    ('palette', '--data_path {only_bad}', 'none of 1 images could be read'),
    ('palette', '--seed -1', '--seed -1: must be at least 0'),
    ('palette', '--data_path {twins}', None),
    ('palette', '--colours 1', 'a palette has 2 to 32767 colours'),
    ('palette', '--save_path {empty}', 'is a folder; name a file'),
    ('palette', '--save_path {other_palette}', 'is there already, and checkpoints may need it'),
]


def merged(good: str, change: str, place: dict[str, str]) -> list[str]:
    """The good options with those of ``change`` replaced or added."""
    def parse(text: str) -> dict[str, list[str]]:
        options: dict[str, list[str]] = {}
        for word in text.format(**place).split():
            if word.startswith('--'):
                options[word] = []
            else:
                options[list(options)[-1]].append(word)
        return options
    return [word for name, values in (parse(good) | parse(change)).items() for word in (name, *values)]


@pytest.mark.parametrize(('name', 'change', 'says'), TABLE, ids=[f'{n} {c}' for n, c, _ in TABLE])
def test_wrong_input(place, monkeypatch, capfd, name, change, says):
    monkeypatch.delenv('RANK_ID', raising=False)
    if change == '--device_target GPU' and not gpu.this_machine().problems(0):
        pytest.skip('there is a GPU')
    argv = merged(GOOD[name], change, place)
    module = importlib.import_module(STAGES[name])
    monkeypatch.setattr(sys, 'argv', [name, *argv])
    monkeypatch.chdir(place['tmp'])
    before = files_of(Path(place['tmp']))
    status = run(module.main)
    said = capfd.readouterr().err
    if says is None:
        assert status == 0, said
        return
    assert status == 2, said
    lines = [line for line in said.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and says.format(**place) in lines[0], said
    assert 'Traceback' not in said
    after = files_of(Path(place['tmp']))
    assert {k: after.get(k) for k in before} == before  # nothing lost


def test_stage_2s_save_place_is_checked_before_stage_1_starts(place):
    """Priors may take an hour a picture: nothing must be made of them that can't be painted then."""
    save = Path(place['save'])
    arguments = merged(GOOD['run'], '--geometry resize --sample_steps 2', place)
    save.mkdir()
    Path(save / 'p0_0.png').write_bytes(Path(place['images'], 'p0.png').read_bytes())
    done = command('run.py', *arguments)
    assert done.returncode == 2 and 'p0_0.png: is there already' in done.stderr and not (save / 'AP').exists()
    (save / 'p0_0.png').unlink()
    assert command('run.py', *arguments).returncode == 0
    done = command('run.py', *arguments, '--keep_size', '--sample_num', 2)
    assert done.returncode == 2 and 'other settings (keep_size False, now True)' in done.stderr
    assert not (save / 'AP' / 'condition_2').exists()


def test_nothing_is_left_of_a_command_that_could_not_begin(place):
    assert command('run.py', *merged(GOOD['run'], '--input_image {missing}', place)).returncode == 2
    assert not Path(place['save']).exists()


def test_through_the_shell_it_is_one_line_and_status_2(place):
    done = command('run.py', *merged(GOOD['run'], '--input_mask {missing}', place))
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and 'missing' in done.stderr


@pytest.mark.parametrize('error', [
    MemoryError(), RuntimeError("Device(id:0) memory isn't enough and alloc failed, kernel name: Conv2D-op1")])
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['x'])

    def main(argv):
        raise error

    assert run(main) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and '--batch_size' in said and 'Traceback' not in said


def test_a_bug_keeps_its_traceback_and_is_told_from_some_failed_pictures(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['x'])
    assert run(lambda argv: 1 / 0) not in (0, 1, 2)
    said = capsys.readouterr().err
    assert 'Traceback' in said and 'ZeroDivisionError' in said
