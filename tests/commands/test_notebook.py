"""The notebook runs from top to bottom on the CPU, and the committed one carries what it showed."""
from __future__ import annotations

import ast
import base64
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'ict.ipynb'
PACKAGES = ('ict', 'Transformer', 'Guided_Upsample')
CHECKPOINTS = [ROOT / 'ckpts_ICT' / 'demo' / name for name in ('Transformer.ckpt', 'InpaintingModel_gen.ckpt')]
LARGEST = 2_000_000  # bytes
LONGEST = 300  # seconds
LEAST_PICTURES = 8


@pytest.fixture
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed."""
    return ''.join(o.text for cell in code_of(notebook) for o in cell.outputs if o.output_type == 'stream')


def pictures_of(notebook: nbformat.NotebookNode) -> dict[str, np.ndarray]:
    """What the cells showed, by cell."""
    return {cell.id: np.asarray(Image.open(io.BytesIO(base64.b64decode(o.data['image/png']))))
            for cell in code_of(notebook) for o in cell.outputs if 'image/png' in o.get('data', {})}


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    """Every cell ran, in order and without a complaint, and what a reader came for is there."""
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [(o.output_type, o.get('name')) for cell in cells for o in cell.outputs]
    assert ('error', None) not in kinds and ('stream', 'stderr') not in kinds
    pictures = pictures_of(notebook)
    assert len(pictures) >= LEAST_PICTURES
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 2 for picture in pictures.values())
    text = text_of(notebook)
    for expected in ('the same tokens: True', 'the prior from above: True', 'PSNR', 'Epoch: [0 / 5]', 'Epoch: [1]'):
        assert expected in text, expected


def files_in_repository() -> set[Path]:
    """Without hidden folders, virtual environments and compiled modules."""
    return {path for path in ROOT.rglob('*') if not any(part.startswith('.') or part in ('__pycache__', 'venv')
                                                        for part in path.relative_to(ROOT).parts)}


@pytest.mark.skipif(not all(path.is_file() for path in CHECKPOINTS), reason='the demo checkpoints are not there')
def test_the_notebook_runs_from_top_to_bottom_and_leaves_nothing_behind(committed, tmp_path, monkeypatch):
    for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR'):
        monkeypatch.setenv(name, str(tmp_path / name))
    shown = set(pictures_of(committed))
    before = files_in_repository()
    for cell in code_of(committed):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(committed, timeout=LONGEST, kernel_name='python3',
                   resources={'metadata': {'path': str(ROOT)}}).execute()
    check_outputs(committed)
    assert set(pictures_of(committed)) == shown
    assert files_in_repository() == before


def test_the_committed_notebook_carries_its_outputs(committed):
    check_outputs(committed)
    seconds = re.search(r'from top to bottom in (\d+) s', text_of(committed))
    assert int(seconds[1]) < LONGEST
    assert NOTEBOOK.stat().st_size < LARGEST


def test_the_committed_notebook_names_no_place_of_a_machine(committed):
    for cell in code_of(committed):
        for output in cell.outputs:
            output.get('data', {}).pop('image/png', None)
    found = re.findall(r'/(?:work|root|home|tmp|mnt|Users)/[^"\s]*|\w:\\\\Users', json.dumps(committed))
    assert not found, found


def test_the_notebook_calls_the_packages_and_copies_nothing_from_them(committed):
    def definitions(source: str) -> set[str]:
        return {node.name for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef | ast.ClassDef)}

    source = '\n'.join(cell.source for cell in code_of(committed))
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split('.')[0] for alias in node.names}
    assert imported >= set(PACKAGES)
    assert not {'mindspore', 'matplotlib'} & imported
    theirs = set().union(*(definitions(path.read_text(encoding='utf-8'))
                           for package in PACKAGES for path in (ROOT / package).rglob('*.py')))
    assert not definitions(source) & theirs
