"""What made the files of an output folder, so that a run is continued, and never with other settings."""
from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from ict import files
from ict.errors import UserError

STAGE_1, STAGE_2 = 'manifest.json', 'results.json'


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, '' when it can't be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ''


class Manifest:
    """``settings`` and one entry per picture, in a JSON file of the output folder.

    Args:
        name: STAGE_1 or STAGE_2.
        settings: what all results depend on, also Futures of it; a UserError where those that are there were made
            with others.
        overwrite: forget what is there.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], overwrite: bool) -> None:
        self.path, self._settings = folder / name, settings
        self.pictures: dict[str, dict[str, Any]] = {}
        before = None if overwrite else read(folder, name)
        self.is_new = before is None
        if before is None:
            return
        theirs, own = before['settings'], self.settings
        changed = [f'{key} {_short(theirs.get(key))}, now {_short(own.get(key))}'
                   for key in sorted(theirs.keys() | own.keys()) if theirs.get(key) != own.get(key)]
        if changed:
            raise UserError(f'{folder}: holds results made with other settings ({"; ".join(changed)}); '
                            f'use --overwrite or another save place')
        self.pictures = before['pictures']

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all results depend on, JSON values; waits for those that were given as a Future."""
        return {key: value.result() if isinstance(value, Future) else value for key, value in self._settings.items()}

    def digests(self, picture: str) -> dict[str, str]:
        """Digests of a picture and its mask."""
        return {key: self.pictures[picture][key] for key in ('image_digest', 'mask_digest')}

    def write(self) -> None:
        """Write the file, crash-safe, in a fixed order."""
        pictures = {key: self.pictures[key] for key in sorted(self.pictures)}
        files.write_json(self.path, {'settings': self.settings, 'pictures': pictures})


def read(folder: str | Path, name: str) -> dict[str, Any] | None:
    """The manifest of a save place, None when it has none; a UserError where the file is none."""
    path = Path(folder) / name
    if not os.path.isfile(path):
        return None
    content = files.read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get('settings'), dict)
            and isinstance(content.get('pictures'), dict)
            and all(isinstance(entry, dict) for entry in content['pictures'].values())):
        raise UserError(f'{path}: not a manifest of this project; use --overwrite or another save place')
    return content


def other_source(entry: dict[str, Any], sources: dict[str, Any]) -> str | None:
    """Which of a picture's sources, 'image' or 'mask', is another than its entry in a manifest names; None: neither."""
    return next((key for key in ('image', 'mask') if entry.get(f'{key}_digest') != sources[f'{key}_digest']), None)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
