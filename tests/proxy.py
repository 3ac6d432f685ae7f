"""A bad network for the tests: an HTTP/1.1 proxy that delays, damages and cuts answers.

It stands in front of Azurite, :func:`tests.azurite.serve_blobs` or any other blob server::

    with FaultProxy(azurite.port) as proxy:
        proxy.inject(Latency(0.05))                                     # every answer
        proxy.inject(Answer(503), key=r"RawData/0\\.0$", seconds=2.0)    # a storm on one chunk
        proxy.inject(Reset(after=1000), key="RawData", method="GET", times=1)
        read(proxy.url("container", "recording.zarr"))
    assert proxy.count(r"RawData/0\\.0$") < 15

*What is touched.* Only answers. A request always reaches the server whole, unless an
:class:`Answer` stands in for it; so a put whose answer is lost has been stored. Bodies are
streamed; only when a fault must know a length that the server didn't announce is one collected.

*Several rules on one request.* Latencies add up and the lowest rate counts. Of the other
faults the one injected first is applied; a rule that stands back keeps its ``times``.

*Threads.* One for each of the client's connections, with a server connection of its own.
A client that only closes its sending half counts as one that has hung up.

Not modelled: losses, and what the handshake of a connection costs. Chunked requests
are refused; HTTP/1.0 clients and pipelining are not understood. Linux only.
"""

from __future__ import annotations

import math
import re
import threading
import time
from dataclasses import dataclass
from email.message import Message
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.azurite import ACCOUNT
from tests.faults import (
    Answer,
    Bandwidth,
    Corrupt,
    Drip,
    Ending,
    Fault,
    Hang,
    Latency,
    Request,
    Reset,
    Short,
    Truncate,
)
from tests.wire import Server

__all__ = [
    "Answer",
    "Bandwidth",
    "Corrupt",
    "Drip",
    "FaultProxy",
    "Hang",
    "Latency",
    "Request",
    "Reset",
    "Short",
    "Truncate",
]


@dataclass
class _Rule:
    fault: Fault
    key: re.Pattern[str]
    method: str | None
    left: float
    until_s: float

    def matches(self, request: Request) -> bool:
        return (
            self.left > 0
            and request.at_s < self.until_s
            and self.method in (None, request.method)
            and self.key.search(request.key) is not None
        )


class FaultProxy:
    """Stand between a client and the server at ``127.0.0.1:upstream_port`` (see the module).

    ``account`` is the first part of the server's paths. Leaving the ``with`` block cuts
    every connection and takes well under a second; requests and counts stay readable.
    """

    def __init__(self, upstream_port: int, account: str = ACCOUNT) -> None:
        self.upstream_port = upstream_port
        self.account = account
        self.port = 0
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._server = Server(self)
        self.port = self._server.server_port
        self._began = time.monotonic()
        self._accepting = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.cut()
        self._server.server_close()
        self._accepting.join()

    def url(self, container: str, prefix: str = "") -> str:
        """What a user would give as SOURCE or OUT."""
        parts = (f"http://127.0.0.1:{self.port}/{self.account}", container, prefix)
        return "/".join(part for part in parts if part)

    def inject(
        self,
        fault: Fault,
        *,
        key: str = "",
        method: str | None = None,
        times: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Apply a fault to requests whose key contains the regular expression ``key``.

        Only with this method, only the first ``times`` of them, only for ``seconds`` from now.
        """
        until_s = math.inf if seconds is None else self.now_s + seconds
        left = math.inf if times is None else times
        with self._lock:
            self._rules.append(_Rule(fault, re.compile(key), method, left, until_s))

    def clear(self) -> None:
        """Forget all rules; answers already under way keep their faults."""
        with self._lock:
            self._rules.clear()

    @property
    def now_s(self) -> float:
        """Seconds since the proxy started."""
        return time.monotonic() - self._began

    @property
    def requests(self) -> list[Request]:
        """What was asked for so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    def count(self, key: str = "", method: str | None = None) -> int:
        """Requests so far whose key contains this regular expression."""
        return sum(1 for r in self.requests if re.search(key, r.key) and method in (None, r.method))

    @property
    def peak(self) -> int:
        """The most requests that were in work at once."""
        return self.peak_of("")

    def peak_of(self, key: str) -> int:
        """The same, of requests whose key contains this regular expression.

        One given up by its client counts until the proxy sees it, about a millisecond later.
        """
        steps = []
        for request in self.requests:
            if re.search(key, request.key):
                ended_s = math.inf if request.ended_s is None else request.ended_s
                steps += [(request.at_s, 1), (ended_s, -1)]
        at_work = most = 0
        for _, step in sorted(steps):
            at_work += step
            most = max(most, at_work)
        return most

    def note(self, method: str, target: str, headers: Message) -> tuple[Request, list[Fault]]:
        """Enter a request; with it the faults that it meets."""
        parts = urlsplit(target)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        asked = headers.get("x-ms-range") or headers.get("range")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        faults: list[Fault] = []
        with self._lock:
            agent = headers.get("user-agent", "")
            request = Request(method, key, self.now_s, asked, query, agent)
            self._requests.append(request)
            for rule in self._rules:
                if not rule.matches(request):
                    continue
                if isinstance(rule.fault, Ending) and any(isinstance(f, Ending) for f in faults):
                    continue
                rule.left -= 1
                faults.append(rule.fault)
        return request, faults
