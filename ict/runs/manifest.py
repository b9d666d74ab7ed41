"""What made the files of a save place, so that a run can be continued, and one never continued with other settings."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
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
    """``settings`` and one entry per picture, in a JSON file of the save place.

    Args:
        folder: the save place.
        name: STAGE_1 or STAGE_2.
        settings: what all results depend on.
        leftovers: results that are there; without a manifest nobody knows what made them.
        overwrite: forget what is there, but for ``replaced``, its entries.

    Raises:
        UserError: what is there was made with other settings.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], leftovers: Callable[[], Path | None],
                 overwrite: bool) -> None:
        self.path, self.settings = folder / name, settings
        self.pictures: dict[str, dict[str, Any]] = {}
        self.replaced: dict[str, dict[str, Any]] = {}
        if overwrite:
            with suppress(UserError):  # no manifest is replaced, too
                self.replaced = (read(folder, name) or {}).get('pictures', {})
            return
        before = read(folder, name)
        if before is None:
            left = leftovers()
            if left is not None:
                raise UserError(f'{left}: is there already, and no {name} tells what made it; '
                                f'use --overwrite or another save place')
            return
        changed = [f'{key} {_short(before["settings"].get(key))}, now {_short(settings.get(key))}'
                   for key in sorted(before['settings'].keys() | settings.keys())
                   if before['settings'].get(key) != settings.get(key)]
        if changed:
            raise UserError(f'{folder}: holds results made with other settings ({"; ".join(changed)}); '
                            f'use --overwrite or another save place')
        self.pictures = before['pictures']

    def unchanged(self, picture: str, sources: dict[str, Any]) -> bool:
        """Whether the picture's results were made from just these sources."""
        entry = self.pictures.get(picture, {})
        return all(entry.get(key) == value for key, value in sources.items())

    def set(self, picture: str, sources: dict[str, Any]) -> None:
        """Note what a picture's results are made from; forgets figures of older ones."""
        if not self.unchanged(picture, sources):
            self.pictures[picture] = dict(sources)

    def write(self) -> None:
        """Write the file, crash-safe, in a fixed order."""
        pictures = {key: self.pictures[key] for key in sorted(self.pictures)}
        files.write_json(self.path, {'settings': self.settings, 'pictures': pictures})


def read(folder: str | Path, name: str) -> dict[str, Any] | None:
    """The manifest of a save place, None when it has none.

    Raises:
        UserError: the file is no manifest.
    """
    path = Path(folder) / name
    if not os.path.isfile(path):
        return None
    content = files.read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get('settings'), dict)
            and isinstance(content.get('pictures'), dict)
            and all(isinstance(entry, dict) and isinstance(entry.get('figures', {}), dict)
                    and isinstance(entry.get('log_likelihood', {}), dict) for entry in content['pictures'].values())):
        raise UserError(f'{path}: not a manifest of this project; use --overwrite or another save place')
    return content


# Figures of finished results that no manifest holds yet: a line each, in a file of each rank; a kill loses none.

_JOURNAL = '.figures-{}.jsonl'


def note_in_journal(folder: Path, rank: int, name: str, figures: str) -> None:
    """Add a line to a rank's journal."""
    with open(folder / _JOURNAL.format(rank), 'a', encoding='utf-8') as journal:
        journal.write('\n' + json.dumps([name, figures]) + '\n')  # after what a kill cut short


def read_journals(folder: Path) -> dict[str, str]:
    """The lines of all ranks' journals; one that a kill cut short is left out."""
    lines = {}
    for path in folder.glob(_JOURNAL.format('*')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            with suppress(ValueError, RecursionError):
                match json.loads(line):
                    case [str(name), str(metrics)]:
                        lines[name] = metrics
    return lines


def forget_journals(folder: Path) -> None:
    """Remove the ranks' journals."""
    for path in folder.glob(_JOURNAL.format('*')):
        files.remove(path)


def other_source(entry: dict[str, Any], sources: dict[str, Any]) -> str | None:
    """Which of a picture's sources, 'image' or 'mask', is another than its entry in a manifest names; None: neither."""
    return next((key for key in ('image', 'mask') if entry.get(f'{key}_digest') != sources[f'{key}_digest']), None)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
