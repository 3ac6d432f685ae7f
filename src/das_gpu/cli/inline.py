"""Pictures inside a terminal, where it says by its environment that it can show them.

Two protocols: kitty's graphics protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol/) and
iTerm2's inline images (https://iterm2.com/documentation-images.html).
"""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import TextIO

_PIECE = 4096
"""Most characters of data that kitty's protocol has in one piece."""
_PROGRAMS = {"iterm.app": "iterm2", "wezterm": "iterm2", "ghostty": "kitty"}


def protocol(environment: Mapping[str, str]) -> str | None:
    """How a terminal with this environment shows pictures: ``kitty``, ``iterm2`` or not at all."""
    if environment.get("TMUX") or environment.get("TERM", "").startswith(("screen", "tmux")):
        return None  # a multiplexer between us and the terminal swallows pictures
    if environment.get("KITTY_WINDOW_ID") or environment.get("TERM") == "xterm-kitty":
        return "kitty"
    return _PROGRAMS.get(environment.get("TERM_PROGRAM", "").lower())


def show(png: bytes, stream: TextIO) -> str | None:
    """Show a picture on a stream that is a terminal which can; return the protocol, or None."""
    way = protocol(os.environ) if stream.isatty() else None
    if way is not None:
        stream.write(_SEQUENCES[way](png) + "\n")
        stream.flush()
    return way


def _kitty(png: bytes) -> str:
    """As many columns wide as the terminal; no answer is asked for (``q=2``)."""
    data = b64encode(png).decode("ascii")
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    first = f"a=T,f=100,q=2,c={shutil.get_terminal_size().columns},"
    return "".join(
        f"\x1b_G{first if number == 0 else ''}m={int(number < len(pieces) - 1)};{piece}\x1b\\"
        for number, piece in enumerate(pieces)
    )


def _iterm2(png: bytes) -> str:
    data = b64encode(png).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(png)};width=100%;preserveAspectRatio=1:{data}\x07"


_SEQUENCES: Mapping[str, Callable[[bytes], str]] = {"kitty": _kitty, "iterm2": _iterm2}
