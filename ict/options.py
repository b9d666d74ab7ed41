"""Command-line options that several scripts share, and checks of their values."""
from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from ict.errors import UserError, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar('_Record', bound='DataclassInstance')


class Given(NamedTuple):
    """A value and the option that gave it, so that error lines name what the user typed."""

    value: Any
    option: str

    @classmethod
    def from_args(cls, args: argparse.Namespace, name: str) -> Given:
        """The value of an option."""
        return cls(getattr(args, name), f'--{name}')

    def __str__(self) -> str:
        return f'{self.option} {self.value}'


NOT_GIVEN = Given('', '')
_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no')


def boolean(text: str) -> bool:
    """``--flag``, ``--flag True`` and ``--flag False`` all work, as people have typed them for the published code."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f'{text} is neither True nor False')


def how_to_go_on() -> str:
    """What the command that was typed does when it is typed again."""
    if re.search(rf' --overwrite\b(?![= ]({"|".join(_FALSE)})( |$))', ' '.join(sys.argv).lower()):
        return 'with --overwrite the same command begins anew'
    return 'the same command continues (a training: with --ckpt_path)'


def add_flag(parser: argparse.ArgumentParser, name: str, text: str, default: bool | None = False) -> None:
    """A flag that may be followed by True or False."""
    parser.add_argument(name, type=boolean, nargs='?', const=True, default=default, metavar='BOOL', help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device_target and --device_id."""
    parser.add_argument('--device_target', choices=('GPU', 'CPU', 'Ascend'), default=None,
                        help='default: GPU where MindSpore can use one, else CPU')
    parser.add_argument('--device_id', type=int, default=0, help="the GPU's number")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says an option's default where there is one and its help doesn't say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, '', False) or 'default' in (action.help or ''):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and exit status 2, like every other wrong input here."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; where files are given without an option, a flag takes the next word only if it is a boolean."""
        has_files = not all(action.option_strings for action in self._actions)
        flags = {option for action in self._actions if action.type is boolean for option in action.option_strings}
        words = list(args)
        for i, word in enumerate(words):
            if has_files and word in flags and not (i + 1 < len(words) and words[i + 1].lower() in _TRUE + _FALSE):
                words[i] = f'{word}=True'
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (see {self.prog} --help)')


def chosen(kind: type[_Record], args: argparse.Namespace, **others: object) -> _Record:
    """A dataclass whose fields have the names of options, filled with these options, and with ``others`` by name."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)
                   if field.name not in others}, **others)


def positive(args: object, *names: str, least: float = 1) -> None:
    """Each of these options must be at least ``least``; a UserError names the first that is not."""
    for name in names:
        value = getattr(args, name)
        require(value is None or value >= least, f'--{name} {value}: must be at least {least:g}')
