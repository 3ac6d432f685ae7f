"""What can go wrong with an answer, and what was asked for: the nouns of the fault proxy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Latency:
    """The answer's head waits this long after the server gave it."""

    seconds: float


@dataclass(frozen=True)
class Bandwidth:
    """Each answer's body comes at this rate at most, in pieces of at most 10 ms."""

    bytes_per_s: float


@dataclass(frozen=True)
class Drip:
    """Each answer's body comes byte by byte, the first one after ``1 / bytes_per_s``."""

    bytes_per_s: float = 1.0


@dataclass(frozen=True)
class Answer:
    """This is answered in the server's place; the server isn't asked."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Reset:
    """TCP's RST before the head (``None``), or behind so many bytes of the body."""

    after: int | None = 0


@dataclass(frozen=True)
class Hang:
    """Silence on an open connection instead of the head (``None``), or behind so many bytes."""

    after: int | None = None


@dataclass(frozen=True)
class Truncate:
    """The connection is closed in good order inside the body.

    Its whole length was promised. ``after`` is a number of bytes, or as a float the part of
    the body that still comes.
    """

    after: int | float = 0.5


@dataclass(frozen=True)
class Short:
    """The stored object was cut: a whole, well-formed answer with fewer bytes.

    ``after`` as in :class:`Truncate`, but counted in the object, also when a range is asked
    for: Content-Range tells the new size, and a range behind the end gets a 416.
    """

    after: int | float = 0.5


@dataclass(frozen=True)
class Corrupt:
    """Bytes of the stored object were flipped: its first 16, or 64 in its middle."""

    at: Literal["head", "middle"] = "head"


Pacing = Latency | Bandwidth | Drip
Ending = Answer | Reset | Hang | Truncate | Short | Corrupt
Fault = Pacing | Ending


@dataclass(eq=False)
class Request:
    """What a client asked for. Times are seconds since the proxy started.

    ``key`` is the decoded path below the account (``"container/prefix/RawData/0.0"``),
    ``range`` the text of Range or of Azure's x-ms-range, ``agent`` that of User-Agent.
    ``ended_s`` is taken just before the answer's last bytes leave, so no request that follows
    from them overlaps this one; ``hung_up_s`` is when the client was seen to close the
    connection before that; what fits into the sockets' buffers (some MB) counts as sent.
    """

    method: str
    key: str
    at_s: float
    range: str | None
    query: dict[str, str]
    agent: str = ""
    ended_s: float | None = None
    hung_up_s: float | None = None
