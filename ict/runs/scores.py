"""What is known of every finished result: a line each in ``scores.jsonl``, on disk before the result itself is.

A result counts as finished when its file is there and its line names the same sources. So a kill at any moment loses
no score, and a result whose line is missing is made again.
"""
from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ict import files

NAME = 'scores.jsonl'
_PART = 'scores.{}.jsonl'  # what a further rank has added in this run

Key = tuple[str, int]  # (id of the picture, number of the result from 0)


class Scores:
    """The lines of an output folder, by (picture id, result number).

    Args:
        output_dir: None keeps them in memory only.
        rank: of this process; each rank appends to a file of its own.
    """

    def __init__(self, output_dir: Path | None, rank: int = 0) -> None:
        self.output_dir, self.rank = output_dir, rank
        self.lines: dict[Key, dict[str, Any]] = {}
        if output_dir is not None:
            self._read([output_dir / NAME, *_parts(output_dir)])

    def _read(self, paths: list[Path]) -> None:
        """Take the lines of these files; one that a kill cut short is left out."""
        for path in filter(Path.is_file, paths):
            for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
                with suppress(ValueError, RecursionError):
                    match json.loads(text):
                        case {'id': str(picture), 'result': int(k), **line}:
                            self.lines[picture, k] = {str(name): value for name, value in line.items()}

    def of_picture(self, picture: str, n_results: int) -> dict[int, dict[str, Any]]:
        """The lines of the first ``n_results`` results of a picture and of the further ones that follow them."""
        found, k = {}, 0
        while k < n_results or (picture, k) in self.lines:
            if (picture, k) in self.lines:
                found[k] = self.lines[picture, k]
            k += 1
        return found

    def add(self, key: Key, line: dict[str, Any]) -> None:
        """Note a result that is about to be written."""
        self.lines[key] = line
        if self.output_dir is not None:
            path = self.output_dir / (NAME if self.rank == 0 else _PART.format(self.rank))
            with open(path, 'a', encoding='utf-8') as stream:
                stream.write('\n' + _text(key, line))  # after what a kill cut short

    def finish(self) -> None:
        """Rewrite the lines of all ranks as one file in a fixed order; for rank 0, when the others have ended."""
        if self.output_dir is None:
            return
        self._read(_parts(self.output_dir))
        text = ''.join(_text(key, self.lines[key]) for key in sorted(self.lines))
        files.write_bytes(self.output_dir / NAME, text.encode())
        for path in _parts(self.output_dir):
            files.remove(path)


def _parts(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob(_PART.format('*')))


def _text(key: Key, line: dict[str, Any]) -> str:
    return json.dumps({'id': key[0], 'result': key[1], **line}) + '\n'
