"""What the help of a command says below its options: examples, exit codes, files, environment.

It is set for 80 columns, the least that a terminal has, as the pages of a manual are.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_WIDTH = 80
_NAMES = 24
"""Columns of the names that stand beside their meaning; longer ones stand above it."""
_INDENT = "  "
_OPTION = re.compile(r"(-[-a-z]+) (?=[^-])")
_GLUE = "\0"

CODES: Mapping[int, str] = {
    0: "All is as asked.",
    1: "An unexpected error, or workers, a cluster or a GPU that failed.",
    2: "The command line or the recipe cannot be met; nothing was done.",
    3: "Finished, and tiles are missing, corrupt or in error.",
    4: "SOURCE is not found or not readable.",
    5: "Access is denied.",
    6: "The destination cannot be written, or is not what it should be.",
    10: "The run is not finished.",
    11: "Another run is writing there.",
    12: "Something is damaged.",
    130: "Interrupted; the same command again continues.",
}
"""Exit codes of all commands."""


@dataclass(frozen=True)
class Page:
    """What the help of one command has besides its options.

    Attributes
    ----------
    examples : dict of str to str
        Command lines, and what each does.
    codes : dict of int to str
        Exit codes and their meanings; see `codes`.
    files, environment : dict of str to str
        Names and meanings.
    see : sequence of str
        Commands that go before or after.
    """

    examples: Mapping[str, str]
    codes: Mapping[int, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    see: Sequence[str] = ()

    def text(self) -> str:
        """The page, set for 80 columns."""
        meanings = {str(code): self.codes[code] for code in sorted(self.codes)}
        sections = [
            ("Examples", _examples(self.examples)),
            ("Exit codes", _beside(meanings, 5)),
            ("Files", _beside(self.files, _NAMES)),
            ("Environment", _beside(self.environment, _NAMES)),
            ("See also", _wrapped(", ".join(f"das-gpu {name}" for name in self.see), _INDENT)),
        ]
        return "\n\n".join("\n".join([title, *lines]) for title, lines in sections if lines)


def codes(*more: int) -> dict[int, str]:
    """Exit codes that every command has, and others, with what they mean everywhere."""
    return {code: CODES[code] for code in (0, 1, 2, *more, 130)}


def description(command: Callable[..., object]) -> str:
    """What a command does, by its docstring: paragraphs, for the terminal to break into lines."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _examples(examples: Mapping[str, str]) -> list[str]:
    lines = []
    for command, text in examples.items():
        kept = _OPTION.sub(rf"\1{_GLUE}", command)  # an option and its value stay in one line
        lines += [line.replace(_GLUE, " ") for line in _wrapped(kept, _INDENT, _INDENT * 2, " \\")]
        lines += _wrapped(text, f"{_INDENT * 3}")
    return lines


def _beside(rows: Mapping[str, str], width: int) -> list[str]:
    """Names, and beside each, or below a long one, its meaning."""
    lines = []
    for name, text in rows.items():
        hanging = " " * (width + len(_INDENT))
        lead = f"{_INDENT}{name:<{width}}"
        if len(name) >= width:
            lines.append(f"{_INDENT}{name}")
            lead = hanging
        lines += _wrapped(text, lead, hanging)
    return lines


def _wrapped(text: str, first: str, then: str | None = None, end: str = "") -> list[str]:
    """Lines of a text, behind ``first`` and then ``then``; all but the last one have an end."""
    lines = textwrap.wrap(
        text,
        _WIDTH - len(end),
        initial_indent=first,
        subsequent_indent=first if then is None else then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line}{end}" for line in lines[:-1]] + lines[-1:]
