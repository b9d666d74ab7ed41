"""Every row of the table of tests/benchmarks/speed.py is filled, with tiny networks; its numbers are not looked at."""
from __future__ import annotations

import json

import pytest

from ict import files
from tests.benchmarks import speed
from tests.conftest import DEVICE

TINY = ('--n_layer', '1', '--n_embd', '8', '--n_head', '2', '--prior_size', '4', '--base_channels', '2',
        '--residual_blocks', '1', '--repeats', '1', '--sample_steps', '2', '--device_target', DEVICE)


@pytest.mark.parametrize('name', [*(f'stage 1, {how}' for how in ('sequential', 'sequential, reuse hole',
                                                                  '2 passes, reuse none', '2 passes', 'deterministic')),
                                  'stage 2', 'stage 2 as a plain graph'])
def test_a_row_has_all_columns(tmp_path, name):
    args = speed.arguments(list(TINY))
    assert speed.weights([json.dumps(speed.configs(args)), str(tmp_path)]) == 0
    rows = speed.tasks(args, tmp_path)
    process, task = rows[name]
    assert len(rows) == 7
    assert speed.PROCESSES[process]([json.dumps(task), str(tmp_path / 'answer.json')]) == 0
    row = {'name': name, **files.read_json(tmp_path / 'answer.json')}
    assert all(isinstance(row[key], str) or row[key] >= 0 for _, key, _ in speed.COLUMNS)
    passes = {'stage 1, sequential': args.tokens, 'stage 1, 2 passes': 2, 'stage 1, deterministic': 1, 'stage 2': 1}
    assert row['passes'] == passes.get(name, row['passes'])
