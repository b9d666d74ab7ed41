"""Damaged checkpoints, manifests and scores, found by fuzzing, are an error for the user or passed over."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from ict import checkpoint
from ict.errors import UserError
from ict.runs import manifest, scores
from ict.runs.scores import Scores
from ict.training.checkpointer import StartingPoint


def field(number: int, content: bytes | int) -> bytes:
    """A protobuf field: of a length and so many bytes, or a number."""
    return varint(number << 3) + varint(content) if isinstance(content, int) else \
        varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def value(tag: str, *tensor: bytes) -> bytes:
    return field(1, field(1, tag.encode()) + field(2, b''.join(tensor)))


def record(text: str) -> bytes:
    return value('record', field(2, b'str'), field(3, text.encode('utf-32-le')))


WEIGHT = value('head.weight', field(1, 2), field(2, b'Float32'), field(3, bytes(8)))
DAMAGED = {
    'a length without its bytes': value('a', field(1, 1), field(2, 1 << 60), field(3, b'')),
    'a side over what is counted': value('a', field(1, 0), field(1, 1 << 64), field(2, b'Float32'), field(3, b'')),
    'sides whose product overflows': value('a', *[field(1, 1 << 32)] * 2, field(2, b'Float32'), field(3, b'')),
    'more sides than arrays have': value('a', *[field(1, 1)] * 99, field(2, b'Float32'), field(3, bytes(4))),
    'a record that is a list': WEIGHT + record('[1]'),
    'a kind that is a list': WEIGHT + record('{"network": ["Transformer"]}'),
    'a record as deep as no program reads': WEIGHT + record('[' * 100_000),
}


@pytest.mark.parametrize('what', DAMAGED)
def test_a_damaged_checkpoint_is_named(what, tmp_path):
    path = tmp_path / 'a.ckpt'
    path.write_bytes(DAMAGED[what])
    with pytest.raises(UserError, match=f'^--ckpt_path {path}: .*damaged'):
        checkpoint.read(path, '--ckpt_path')


@pytest.mark.parametrize('progress', [None, 3, {'step': '3'}, {'step': 3, 'speed': 1}])
def test_a_training_state_that_says_no_step_is_named(progress, tmp_path):
    path = tmp_path / 'ImageNet_latest_state.ckpt'
    metadata = {'network': 'state'} | ({} if progress is None else {'progress': progress})
    path.write_bytes(WEIGHT + record(json.dumps(metadata)))
    with pytest.raises(UserError, match=f'^{path}: damaged, it does not say at which step'):
        StartingPoint.from_files({'ImageNet': tmp_path / 'ImageNet_latest.ckpt'}, {'ImageNet': 'Transformer'})


def test_text_in_a_weights_place_has_not_the_weights_shape(tmp_path):
    path = tmp_path / 'a.ckpt'
    path.write_bytes(value('head.weight', field(1, 2), field(1, 3), field(2, b'str'), field(3, b'text')))
    with pytest.raises(UserError, match=r'head\.weight has shape'):
        checkpoint.check(checkpoint.read(path), {'head.weight': (2, 3)})
    path.write_bytes(WEIGHT)
    checkpoint.check(checkpoint.read(path), {'head.weight': (2,)})


@pytest.mark.parametrize('text', ['[' * 100_000, '[]', '{"settings": {}, "pictures": {"a": 3}}'])
def test_a_damaged_manifest_is_named(text, tmp_path):
    (tmp_path / manifest.STAGE_1).write_text(text)
    with pytest.raises(UserError, match=f'^{tmp_path / manifest.STAGE_1}: not '):
        manifest.read(tmp_path, manifest.STAGE_1)


def test_damaged_lines_of_scores_are_passed_over(tmp_path: Path):
    Scores(tmp_path, scores.STAGE_1).add(('a', 0), {'psnr': 1.5})
    with open(tmp_path / 'scores.jsonl', 'a') as stream:
        stream.write('["b", "3\n7\n["c"]\n{"id": ["d"], "result": 4}\n{"id": "e"}\n' + '[' * 100_000 + '\n')
    Scores(tmp_path, scores.STAGE_1).add(('f', 1), {'psnr': 2.5})
    assert Scores(tmp_path, scores.STAGE_1).lines == {('a', 0): {'psnr': 1.5}, ('f', 1): {'psnr': 2.5}}
