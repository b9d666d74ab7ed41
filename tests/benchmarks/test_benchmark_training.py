"""The data pipelines run in the benchmark as they do in training; no number is looked at."""
from __future__ import annotations

from ict.data import encode
from tests.benchmarks import benchmark_training
from tests.conftest import photograph


def test_the_data_pipelines_run_with_the_trainings_defaults(tmp_path, capsys):
    (tmp_path / 'photos').mkdir()
    for i in range(3):
        encode.write(tmp_path / 'photos' / f'{i}.png', photograph(i))
    assert benchmark_training.main(['data', '--input', str(tmp_path / 'photos'), '--pictures', '3', '--workers', '0',
                                    '--save_place', str(tmp_path / 'save')]) == 0
    said = capsys.readouterr().out
    assert said.count('| stage 1: decode') == said.count('| stage 2: decode') == 1
