"""Downloads from a server on this machine: resumed exactly, checked, never in place, and failures say what to do."""
from __future__ import annotations

import io
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ckpts_ICT import convert, download
from ict import checkpoint, pretrained
from ict.errors import UserError
from tests.conftest import command
from Transformer.models import config as transformers

TRANSFORMER = 'origin/Transformer/FFHQ.ckpt'
GEN, DIS = (f'origin/Upsample/FFHQ/InpaintingModel_{part}.ckpt' for part in ('gen', 'dis'))


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes) and can misbehave.

    Attributes:
        ranges, condition: whether it knows Range, and If-Range.
        early: how many bytes before the range asked for it begins.
        cuts: bytes after which the next answers break off, None for a whole one.
        errors: HTTP statuses of the next answers.
        announced: Content-Length to claim, instead of the right one.
        etag, modified: what it says of every file, or None.
        asked: (path, Range header) of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}/ict/'
        self.files: dict[str, bytes] = {}
        self.ranges = self.condition = True
        self.terse = False  # a part comes without what the whole file came with
        self.early = 0
        self.cuts: list[int | None] = []
        self.errors: list[int] = []
        self.announced = None
        self.etag, self.modified = '"one"', 'Mon, 01 Jan 2024 00:00:00 GMT'
        self.asked: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        path = self.path.removeprefix('/ict/')
        server.asked.append((path, self.headers['Range']))
        if server.errors or path not in server.files:
            self.send_error(server.errors.pop(0) if server.errors else 404)
            return
        content = server.files[path]
        start = 0
        wanted = self.headers['If-Range']
        if server.ranges and self.headers['Range'] and \
                (not server.condition or wanted in (None, server.etag, server.modified)):
            start = int(re.fullmatch(r'bytes=(\d+)-', self.headers['Range'])[1]) - server.early
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(server.announced or len(content) - start))
        for name, value in (('ETag', server.etag), ('Last-Modified', server.modified)):
            if value and not (server.terse and start):
                self.send_header(name, value)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(content[start:][:cut])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, 'WAIT_S', 0.0)
    monkeypatch.setenv('no_proxy', '*')
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def content(server) -> bytes:
    """A megabyte at ``f``."""
    server.files['f'] = np.random.default_rng(0).bytes(1_000_003)
    return server.files['f']


@pytest.fixture
def model(server, tiny, monkeypatch) -> Server:
    """A server with the tiny networks as the published FFHQ and its palette."""
    monkeypatch.setattr(transformers, 'PUBLISHED', {(2, 16, 8): ('FFHQ', 2, True)})
    server.files = {TRANSFORMER: tiny['published'].read_bytes(), GEN: tiny['generator'].read_bytes(),
                    DIS: tiny['discriminator'].read_bytes(), 'k.npy': tiny['kmeans'].read_bytes()}
    return server


def anything(_: Path) -> None:
    """No check."""


def fetch(server: Server, target: Path, check=anything) -> None:
    download.fetch(server.url + 'f', target, check)


def leave_a_part(server: Server, target: Path, length: int) -> None:
    """What a download leaves that was cut off for good after ``length`` bytes."""
    server.cuts = [length, 0, 0, 0]
    with pytest.raises(UserError):
        fetch(server, target)
    assert target.with_name('.part-' + target.name).stat().st_size == length
    server.cuts, server.asked = [], []


def run(server: Server, place: Path, name: str, *more: object) -> int:
    return download.main([name, '--url', server.url, '--palette_url', server.url + 'k.npy', '--save_path', str(place),
                          *map(str, more)])


# ---------------------------------------------------------------- one file

def test_a_file_arrives_whole_and_leaves_nothing_beside(server, content, tmp_path):
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.ckpt']
    assert server.asked == [('f', None)]


def test_a_dropped_connection_goes_on_at_the_byte_where_it_broke(server, content, tmp_path):
    server.cuts = [400_000, 300_000]
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content
    assert server.asked == [('f', None), ('f', 'bytes=400000-'), ('f', 'bytes=700000-')]


def test_a_later_command_goes_on_with_what_is_there(server, content, tmp_path):
    leave_a_part(server, tmp_path / 'a.ckpt', 123_456)
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content
    assert server.asked == [('f', 'bytes=123456-')]
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.ckpt']


def test_a_part_that_does_not_repeat_what_the_whole_file_said_is_gone_on_with(server, content, tmp_path):
    server.terse, server.cuts = True, [400_000, 300_000]
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content
    assert server.asked == [('f', None), ('f', 'bytes=400000-'), ('f', 'bytes=700000-')]


def test_a_length_that_is_no_number_is_no_length(server, content, tmp_path):
    server.announced = 'many'
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content


def test_a_server_without_ranges_is_asked_anew(server, content, tmp_path):
    leave_a_part(server, tmp_path / 'a.ckpt', 123_456)
    server.ranges = False
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content


@pytest.mark.parametrize('condition', [True, False])
@pytest.mark.parametrize('sign', ['etag', 'modified', 'size'])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, content, tmp_path, sign, condition):
    server.condition = condition
    if sign != 'etag':
        server.etag = None
    if sign == 'size':
        server.modified = None
    leave_a_part(server, tmp_path / 'a.ckpt', 123_456)
    changed = content[::-1] + (b'more' if sign == 'size' else b'')
    server.files['f'] = changed
    if sign == 'etag':
        server.etag = '"two"'
    elif sign == 'modified':
        server.modified = 'Tue, 02 Jan 2024 00:00:00 GMT'
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == changed
    assert len(server.asked) == (1 if condition and sign != 'size' else 2)


def test_a_server_that_sends_another_range_than_asked_for_is_asked_anew(server, content, tmp_path):
    leave_a_part(server, tmp_path / 'a.ckpt', 123_456)
    server.early = 5
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content


def test_a_part_longer_than_the_file_now_is_dropped(server, content, tmp_path):
    server.condition = False
    leave_a_part(server, tmp_path / 'a.ckpt', 123_456)
    server.files['f'] = content[:1000]
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content[:1000]


def test_a_part_from_another_place_or_of_unknown_origin_is_not_continued(server, content, tmp_path):
    leave_a_part(server, tmp_path / 'a.ckpt', 1000)
    server.files['g'] = content[::-1]
    download.fetch(server.url + 'g', tmp_path / 'a.ckpt', anything)
    assert (tmp_path / 'a.ckpt').read_bytes() == content[::-1]
    (tmp_path / '.part-b.ckpt').write_bytes(b'x' * 1000)
    download.fetch(server.url + 'f', tmp_path / 'b.ckpt', anything)
    assert (tmp_path / 'b.ckpt').read_bytes() == content
    assert all(wanted is None for _, wanted in server.asked)


@pytest.mark.parametrize('tail', [b'', b'of another process'])
def test_a_whole_part_costs_one_byte_more(server, content, tmp_path, tail):
    leave_a_part(server, tmp_path / 'a.ckpt', 1000)
    (tmp_path / '.part-a.ckpt').write_bytes(content + tail)
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content
    assert server.asked == [('f', f'bytes={len(content) - 1}-')]


def test_fewer_bytes_than_announced_are_not_taken_for_the_file(server, content, tmp_path):
    (tmp_path / 'a.ckpt').write_bytes(b'before')
    server.announced, server.ranges = len(content) + 5, False
    with pytest.raises(UserError, match=f'only {len(content)} of {len(content) + 5} bytes came.*by hand.*a.ckpt'):
        fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == b'before'
    assert len(server.asked) == 1 + download.ATTEMPTS


def test_a_server_that_is_busy_is_asked_again(server, content, tmp_path):
    server.errors = [503, 429]
    fetch(server, tmp_path / 'a.ckpt')
    assert (tmp_path / 'a.ckpt').read_bytes() == content


def test_a_file_that_is_not_there_is_an_error_at_once_with_its_url_and_the_way_by_hand(server, tmp_path):
    with pytest.raises(UserError, match=rf'{server.url}f: HTTP 404 .*by hand and save it as {tmp_path / "a.ckpt"}'):
        fetch(server, tmp_path / 'a.ckpt')
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_without_a_network_the_url_and_the_way_by_hand_are_named(server, tmp_path):
    server.server_close()
    target = tmp_path / 'a.ckpt'
    with pytest.raises(UserError, match=rf'{server.url}f: not reachable .*by hand and save it as {target}'):
        fetch(server, target)


def test_what_is_no_checkpoint_is_not_put_in_place(server, tmp_path):
    server.files['f'] = b'<html>please log in</html>'
    with pytest.raises(UserError, match=r'/f: what came from there is not right .*not a MindSpore checkpoint'):
        fetch(server, tmp_path / 'a.ckpt', checkpoint.read)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_from_a_broken_connection(server, content, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(download.files, 'write_json', full)
    with pytest.raises(UserError, match=r'cannot be written \(No space left on device\)'):
        fetch(server, tmp_path / 'a.ckpt')
    assert len(server.asked) == 1


# ---------------------------------------------------------------- a published model

def test_the_published_paths_are_those_that_the_scripts_look_for(tmp_path, monkeypatch):
    from Guided_Upsample.models.config import VGG_URL
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path)
    for name in pretrained.PAIRS[1:]:
        with pytest.raises(UserError) as missing:
            pretrained.pair(name)
        assert next(iter(download.published(name))) in str(missing.value)
        assert f'origin/Upsample/{name}/InpaintingModel_gen.ckpt' in download.published(name)
    assert download.published('ms_train') == {
        'ms_train/Transformer/ImageNet_best.ckpt': 'Transformer',
        'ms_train/Upsample/InpaintingModel_gen_best.ckpt': 'Generator',
        'ms_train/Upsample/InpaintingModel_dis_best.ckpt': 'Discriminator'}
    assert [download.URL + path for path in download.published('VGG19')] == [VGG_URL]


def test_a_model_comes_with_its_palette_and_then_needs_no_flag(model, tmp_path, colours, tiny):
    assert run(model, tmp_path, 'FFHQ') == 0
    found = checkpoint.read(tmp_path / TRANSFORMER)
    np.testing.assert_array_equal(checkpoint.transformer_palette(found, '', 512), colours)
    assert found.metadata['architecture']['n_head'] == 2 and found.metadata['architecture']['GELU_2'] is True
    original = checkpoint.read(tiny['published'])
    for name in original.entries:
        np.testing.assert_array_equal(found.array(name), original.array(name))
    assert (tmp_path / GEN).read_bytes() == model.files[GEN]
    assert (tmp_path / DIS).read_bytes() == model.files[DIS]
    assert not list(tmp_path.rglob('.part*'))


def test_what_is_there_is_said_and_kept_unless_overwrite(model, tmp_path, capsys):
    assert run(model, tmp_path, 'FFHQ') == 0
    before = (tmp_path / TRANSFORMER).read_bytes()
    model.asked.clear()
    capsys.readouterr()
    assert run(model, tmp_path, 'FFHQ') == 0
    assert model.asked == [] and (tmp_path / TRANSFORMER).read_bytes() == before
    assert capsys.readouterr().out.count('is there already') == 3
    (tmp_path / GEN).write_bytes(b'damaged')
    assert run(model, tmp_path, 'FFHQ') == 1
    assert 'not a MindSpore checkpoint' in (said := capsys.readouterr().err) and '--overwrite' in said
    assert (tmp_path / GEN).read_bytes() == b'damaged' and model.asked == []
    assert run(model, tmp_path, 'FFHQ', '--overwrite') == 0
    assert (tmp_path / GEN).read_bytes() == model.files[GEN]
    assert [path for path, _ in model.asked] == [TRANSFORMER, 'k.npy', GEN, DIS]


@pytest.mark.parametrize('trouble', ['missing', 'no palette', 'too small'])
def test_without_the_palette_the_checkpoint_is_kept_and_a_line_says_how_to_add_it(model, tmp_path, capsys, trouble,
                                                                                  colours, tiny):
    if trouble == 'missing':
        del model.files['k.npy']
    elif trouble == 'no palette':
        model.files['k.npy'] = b'<html>'
    else:
        buffer = io.BytesIO()
        np.save(buffer, colours[:8])
        model.files['k.npy'] = buffer.getvalue()
    assert run(model, tmp_path, 'FFHQ') == 1
    path = tmp_path / TRANSFORMER
    assert path.read_bytes() == model.files[TRANSFORMER] and (tmp_path / GEN).is_file()
    said = capsys.readouterr().err
    assert said.count('error: ') == 1
    hint = re.search(r'python ckpts_ICT/convert\.py (\S+) (\S+) --kmeans', said)
    assert hint and set(hint.groups()) == {str(path)}
    assert convert.main([hint[1], hint[2], '--kmeans', str(tiny['kmeans'])]) == 0
    assert checkpoint.read(path).palette is not None


def test_the_palette_is_added_later_by_the_same_command_or_from_a_file(model, tmp_path, tiny, colours):
    kept = model.files.pop('k.npy')
    assert run(model, tmp_path, 'FFHQ') == 1
    by_hand = shutil.copytree(tmp_path, tmp_path / 'again')
    assert run(model, by_hand, 'FFHQ', '--kmeans', tiny['kmeans']) == 0
    np.testing.assert_array_equal(checkpoint.read(by_hand / TRANSFORMER).palette, colours)
    model.files['k.npy'] = kept
    model.asked.clear()
    assert run(model, tmp_path, 'FFHQ') == 0
    np.testing.assert_array_equal(checkpoint.read(tmp_path / TRANSFORMER).palette, colours)
    assert [path for path, _ in model.asked] == ['k.npy']


def test_one_missing_file_does_not_keep_the_others_away(model, tmp_path, capsys):
    del model.files[TRANSFORMER]
    assert run(model, tmp_path, 'FFHQ') == 1
    assert f'{model.url}{TRANSFORMER}: HTTP 404' in capsys.readouterr().err
    assert (tmp_path / GEN).is_file() and (tmp_path / DIS).is_file()
    assert run(model, tmp_path / 'other', 'ImageNet') == 2


def test_a_mirror_that_mixes_up_files_is_found_out(model, tmp_path, capsys):
    model.files[GEN] = model.files[DIS]
    assert run(model, tmp_path, 'FFHQ') == 1
    assert 'holds a Discriminator, not a Generator' in capsys.readouterr().err
    assert not (tmp_path / GEN).exists()


@pytest.mark.parametrize(('argv', 'line'), [
    (['ImageNet', '--kmeans', 'missing.npy'], 'missing.npy: no such palette'),
    (['VGG19', '--kmeans', 'missing.npy'], '--kmeans: VGG19 has no palette'),
    (['VGG19', '--url', 'download.example'], '--url download.example: must begin with http'),
    (['Paris'], 'Paris'),
])
def test_wrong_options_end_with_one_line_and_status_2_before_anything_is_fetched(tmp_path, argv, line):
    done = command('ckpts_ICT/download.py', *argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and line in done.stderr
