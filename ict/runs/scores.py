"""What is known of every finished result: a line each in a file of its stage, on disk before the result itself is.

A result counts as finished when its file is there and its line names the same sources. So a kill at any moment loses
no score. A file without a line is somebody else's; an empty line stands for a result of other settings.
"""
from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ict import files

STAGE_1, STAGE_2 = 'scores.jsonl', 'results.jsonl'  # both may lie in one folder

Key = tuple[str, int]  # (id of the picture, number of the result from 0)


class Scores:
    """The lines of an output folder, by (picture id, result number).

    Args:
        output_dir: None keeps them in memory only.
        name: STAGE_1 or STAGE_2.
        rank: of this process; each rank appends to a file of its own.
    """

    def __init__(self, output_dir: Path | None, name: str, rank: int = 0) -> None:
        self.path, self.rank = output_dir and output_dir / name, rank
        self.lines: dict[Key, dict[str, Any]] = {}
        if self.path is not None:
            parts = self._read(self._parts())  # first: rank 0 may be removing them
            self.lines = self._read([self.path]) | parts

    def _part(self, rank: int | str) -> Path:
        """What a further rank has added in this run."""
        assert self.path is not None
        return self.path.with_suffix(f'.{rank}.jsonl')

    def _parts(self) -> list[Path]:
        pattern = self._part('*')
        return sorted(path for path in pattern.parent.glob(pattern.name) if path.suffixes[-2][1:].isdecimal())

    @staticmethod
    def _read(paths: list[Path]) -> dict[Key, dict[str, Any]]:
        """The lines of these files; one that a kill cut short is left out."""
        lines = {}
        for path in filter(os.path.isfile, paths):
            with suppress(FileNotFoundError):  # removed meanwhile
                for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
                    with suppress(ValueError, RecursionError):
                        match json.loads(text):
                            case {'id': str(picture), 'result': int(k), **line}:
                                lines[picture, k] = {str(name): value for name, value in line.items()}
        return lines

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
        if self.path is not None:
            with open(self._part(self.rank) if self.rank else self.path, 'a', encoding='utf-8') as stream:
                stream.write('\n' + _text(key, line))  # after what a kill cut short
                stream.flush()
                files.sync(stream)

    def forget_all(self) -> None:
        """Leave empty lines, for results of other pictures too."""
        self.lines = {key: {} for key in self.lines}

    def files(self) -> list[Path]:
        """What is read, and replaced or removed by ``write``, unless it is empty."""
        found = [] if self.path is None else [self.path, *self._parts()]
        return [path for path in found if os.path.isfile(path) and os.path.getsize(path)]

    def write(self) -> None:
        """Rank 0, before any rank adds a line: write the lines as one file in a fixed order, and remove the parts."""
        if self.path is None:
            return
        files.write_bytes(self.path, ''.join(_text(key, self.lines[key]) for key in sorted(self.lines)).encode())
        for path in self._parts():
            files.remove(path)

    def finish(self) -> None:
        """Rank 0, when the others have ended: write the lines of all ranks as one file."""
        if self.path is not None:
            self.lines |= self._read(self._parts())
        self.write()


def _text(key: Key, line: dict[str, Any]) -> str:
    return json.dumps({'id': key[0], 'result': key[1], **line}) + '\n'
