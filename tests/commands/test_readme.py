"""The readmes and the model card: their commands, options and links exist, and what they show runs."""
from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.conftest import ROOT, photograph

DOCUMENTS = ('readme.md', 'Transformer/readme.md', 'Guided_Upsample/readme.md', 'ict/readme.md',
             'ckpts_ICT/demo/model_card.md')
CHECKED = ('Transformer.train', 'Transformer.infer', 'Guided_Upsample.train', 'Guided_Upsample.infer', 'run',
           'ict.evaluate')  # their options are parsed and checked without a look at files


def typed(text: str) -> list[str]:
    """The command lines in a document's shell blocks and in its running text."""
    blocks = re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
    spans = re.findall(r'`([^`]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [re.sub(r'\s+#.*|\s*&&.*|^\s+', '', line) for line in [*lines, *(' '.join(span.split()) for span in spans)]]


def split(line: str) -> tuple[str, list[str]] | None:
    """A command of ours as (module, arguments); msrun's options are left out."""
    words = shlex.split(line)
    if words[:1] not in (['python'], ['msrun']) or len(words) < 2:
        return None
    if words[1] == '-m':
        return words[2], words[3:]
    first = next((i for i, word in enumerate(words) if word.endswith('.py')), None)
    return None if first is None else (words[first].removesuffix('.py').replace('/', '.'), words[first + 1:])


COMMANDS = sorted({(found[0], tuple(found[1])) for name in DOCUMENTS for line in typed((ROOT / name).read_text())
                   if (found := split(line)) is not None and found[0] != 'pytest'})


def module_of(name: str) -> ModuleType:
    module = importlib.import_module(name)
    return importlib.import_module(f'{name}.__main__') if hasattr(module, '__path__') else module


def helped(name: str, argv: list[str], capsys: pytest.CaptureFixture) -> set[str]:
    """The options that a command's --help names."""
    subcommand = argv[:1] if argv and re.fullmatch('[a-z_]+', argv[0]) and name.startswith('tests.') else []
    with pytest.raises(SystemExit):
        module_of(name).main([*subcommand, '--help'])
    return set(re.findall(r'^  (--\w+)', capsys.readouterr().out, re.M))


@pytest.mark.parametrize(('name', 'argv'), COMMANDS, ids=[f'{name} {" ".join(argv)}'[:80] for name, argv in COMMANDS])
def test_every_option_that_is_shown_exists(name, argv, capsys, monkeypatch):
    if name == 'ckpts_ICT.demo.train':
        pytest.importorskip('torch')
    known = helped(name, list(argv), capsys)
    if name == 'ict.evaluate':
        known |= helped('run', [], capsys)
    assert {word for word in argv if word.startswith('--')} <= known
    if name in CHECKED and '...' not in argv:
        from ict import pretrained
        monkeypatch.setattr(pretrained, 'pair', lambda model: ('published', 'weights'))  # not in this repository
        module_of(name).arguments(list(argv))


def tables(document: str) -> dict[str, set[str]]:
    """The options in the first column of each table whose head says 'option', by the heading above it."""
    found: dict[str, set[str]] = {}
    heading = ''
    inside = False
    for line in (ROOT / document).read_text().splitlines():
        if line.startswith('#'):
            heading = line.lstrip('# ')
        inside = line.startswith('| option |') or (inside and line.startswith('|'))
        if inside and not line.startswith(('| option |', '|---')):
            cell = line.split('|')[1].replace('*', '')
            found.setdefault(heading, set()).update(re.findall(r'[A-Za-z]\w+', re.sub(r' \d+', '', cell)))
    return found


@pytest.mark.parametrize('stage', ['Transformer', 'Guided_Upsample'])
@pytest.mark.parametrize(('script', 'heading', 'shared'), [('infer', 'Options', 'Options of both stages'),
                                                           ('train', 'Training', 'Training runs')])
def test_the_option_tables_name_every_option_of_a_script_and_no_other(stage, script, heading, shared, capsys):
    own, common = tables(f'{stage}/readme.md')[heading], tables('ict/readme.md')[shared]
    options = {name.removeprefix('--') for name in helped(f'{stage}.{script}', [], capsys)} - {'help'}
    device = {'device_target', 'device_id'}
    assert own <= options, own - options
    assert common <= options, common - options
    assert options <= own | common | device, options - own - common


def test_the_options_that_run_py_shares_are_marked_so(capsys):
    marked = set()
    for stage in ('Transformer', 'Guided_Upsample'):
        text = (ROOT / stage / 'readme.md').read_text().split('## Options')[1].split('## ')[0]
        marked |= set(re.findall(r'\*(\w+)\*', ''.join(line.split('|')[1] for line in text.splitlines()
                                                       if line.startswith('| *'))))
    renamed = {'ckpt_path', 'image_url', 'mask_url', 'save_url', 'condition_num', 'input', 'mask', 'save_path'}
    options = {name.removeprefix('--') for name in helped('run', [], capsys)}
    assert marked - renamed <= options, marked - renamed - options


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_link_to_a_file_or_a_heading_leads_somewhere(document):
    def anchors(path: Path) -> set[str]:
        heads = re.findall(r'^#+ (.+)$', path.read_text(), re.M)
        return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}

    for target in re.findall(r'\]\(([^)]+)\)', (ROOT / document).read_text()):
        if not target.startswith('http'):
            name, _, anchor = target.partition('#')
            path = (ROOT / document).parent / name if name else ROOT / document
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def test_the_first_page_is_short():
    assert (ROOT / 'readme.md').stat().st_size <= 15_000


def test_the_documents_show_every_script():
    assert {name for name, _ in COMMANDS} >= {*CHECKED, 'mask.generate', 'ict.palette', 'ict.device',
                                              'ckpts_ICT.convert', 'ckpts_ICT.download', 'ict.app'}


def test_the_first_command_gives_the_figures_beside_it(tmp_path):
    """Another processor rounds otherwise, so that some tokens differ."""
    text = (ROOT / 'readme.md').read_text()
    wanted = re.search(r'`python run\.py` .*?\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)', text)
    done = subprocess.run([sys.executable, str(ROOT / 'run.py')], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    psnr, mae, ssim, level, results = re.search(
        r'PSNR: ([\d.]+), MAE: ([\d.]+)\nSSIM: ([\d.]+), L1 in the hole: ([\d.]+) levels, (\d+) results',
        done.stdout).groups()
    assert results == wanted[1] and (tmp_path / 'save' / 'comparison.png').is_file()
    for value, shown, tolerance in zip((psnr, mae, ssim, level), wanted.groups()[1:], (0.2, 0.001, 0.003, 0.4),
                                       strict=True):
        assert float(value) == pytest.approx(float(shown), abs=tolerance)


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    """A folder with all that the commands name, and with small pictures instead of ImageNet."""
    folder = tmp_path_factory.mktemp('typed')
    for name, count in (('ImageNet/train/n01440764', 3), ('photos', 1)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(photograph(i)).save(folder / name / f'{i}.png')
    for name in ('ckpts_ICT', 'images', 'mask'):
        (folder / name).symlink_to(ROOT / name)
    return folder


SMALL = {  # in the order of the readme; what is appended to a command that would take a day, or weights from elsewhere
    'mask.generate --save_path masks --count 10000': '--count 3',
    'ict.palette --data_path': '--colours 8 --prior_size 8',
    'Transformer.train --data_path ImageNet/train': '--n_layer 1 --n_embd 16 --n_head 2 --prior_size 8 --max_steps 1',
    'Guided_Upsample.train --input ImageNet': '--max_iteration 1 --batch_size 2 --base_channels 4 --image_size 32 '
                                              '--prior_size 8 --content_loss_weight 0 --style_loss_weight 0',
    'Transformer.infer --ckpt_path ckpts_ICT/demo': '--sample_steps 2',
    'Guided_Upsample.infer --ckpt_path ckpts_ICT/demo': '',
    'ict.evaluate --input photos --mask masks --model demo': '--sample_num 2 --sample_steps 2',
}


@pytest.mark.parametrize('beginning', SMALL)
def test_the_commands_of_training_and_scoring_run(beginning, place):
    """Each uses what those before it have made."""
    text = '\n'.join((ROOT / name).read_text() for name in DOCUMENTS[:4])
    argv = next(found for line in typed(text) if (found := split(line)) is not None
               and f'{found[0]} {" ".join(found[1])}'.startswith(beginning))
    script = ['-m', argv[0]] if argv[0].startswith('ict.') else [str(ROOT / (argv[0].replace('.', '/') + '.py'))]
    done = subprocess.run([sys.executable, *script, *argv[1], *SMALL[beginning].split()], cwd=place,
                          capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
