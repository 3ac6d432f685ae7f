"""The fault proxy's connections: answers passed on, late, damaged or cut."""

from __future__ import annotations

import fcntl
import math
import re
import select
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from email.message import Message
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

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

_BLOCK = 1 << 18
_PACE_S = 0.01  # a limited body goes out in pieces of this length at most
_CATCH_UP_S = 0.02  # so much lateness of a timer is made good; a link saves up no idle time
_IDLE_S = 1.0  # servers close idle connections after a few seconds: use none near that age
_NOT_SENT = 0x894B  # Linux's SIOCOUTQNSD: bytes that wait for room at the receiver
_OWN_HEADERS = {"connection", "keep-alive", "proxy-connection", "transfer-encoding"}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_Headers = list[tuple[str, str]]


class Owner(Protocol):
    """What the connections want of the proxy they belong to."""

    upstream_port: int

    @property
    def now_s(self) -> float:
        """Seconds since the proxy started."""

    def note(self, method: str, target: str, headers: Message) -> tuple[Request, list[Fault]]:
        """Enter a request; with it the faults that it meets."""


class _HungUpError(Exception):
    """The client has closed its connection."""


class _CutError(Exception):
    """The client's connection is to be closed in mid-answer."""


class Server(ThreadingHTTPServer):
    """A thread per connection; all of them are joined by ``server_close``."""

    request_queue_size = 512
    daemon_threads = False

    def __init__(self, proxy: Owner) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.proxy = proxy
        self.closing = False
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def adopt(self, sock: socket.socket) -> None:
        """Have a socket cut when the proxy closes."""
        with self._lock:
            self._sockets.add(sock)
        if self.closing:
            self.cut()

    def cut(self) -> None:
        """Wake every thread that waits for a peer; closing alone would not."""
        with self._lock:
            self.closing = True
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Let pytest see it."""
        raise RuntimeError("the fault proxy is at fault") from sys.exception()

    def shutdown_request(self, request: object) -> None:
        """Close without a farewell: a FIN before it would hide the RST."""
        assert isinstance(request, socket.socket)
        request.close()


@dataclass(frozen=True)
class _Reply:
    """An answer to pass on; ``length`` None: not known before the body's end."""

    status: int
    reason: str
    headers: _Headers
    length: int | None
    blocks: Iterable[bytes]

    @classmethod
    def own(cls, answer: Answer, method: str) -> _Reply:
        headers = [*answer.headers.items(), ("Content-Length", str(len(answer.body)))]
        body = answer.body if _has_body(method, answer.status) else b""
        reason = HTTPStatus(answer.status).phrase
        return cls(answer.status, reason, headers, len(body), [body])

    def with_headers(self, **values: str) -> _Reply:
        """The same with other values; underscores stand for hyphens."""
        new = {name.replace("_", "-"): value for name, value in values.items()}
        kept = [(name, value) for name, value in self.headers if name.title() not in new]
        return replace(self, headers=[*kept, *new.items()])

    def measured(self) -> _Reply:
        """The same with a known length, collected if need be."""
        if self.length is not None:
            return self
        body = b"".join(self.blocks)
        known = self.with_headers(Content_Length=str(len(body)))
        return replace(known, length=len(body), blocks=[body])

    def damaged(self, fault: Short | Corrupt, method: str) -> _Reply:
        """The same from a store that holds a damaged object."""
        if self.status not in (200, 206):
            return self
        known = self.measured()
        told = {name.title(): value for name, value in known.headers}
        if "Content-Length" not in told:
            return self  # a HEAD, of which the server didn't say it
        length = int(told["Content-Length"])
        first, whole = 0, length
        if match := _RANGE.match(told.get("Content-Range", "")):
            first, whole = int(match[1]), int(match[3])
        if isinstance(fault, Corrupt):
            start, size = (0, 16) if fault.at == "head" else (max(0, whole // 2 - 32), 64)
            return replace(known, blocks=_flipped(known.blocks, start - first, size))
        whole = min(whole, _bytes_of(fault.after, whole))
        kept = max(0, min(length, whole - first))
        if match and not kept:
            headers = {"Content-Range": f"bytes */{whole}", "x-ms-error-code": "InvalidRange"}
            return _Reply.own(Answer(416, headers), method)
        known = known.with_headers(Content_Length=str(kept))
        if match:
            known = known.with_headers(Content_Range=f"bytes {first}-{first + kept - 1}/{whole}")
        left = min(kept, known.length or 0)
        return replace(known, length=left, blocks=_first(known.blocks, left))


class _Connection(BaseHTTPRequestHandler):
    """One connection of a client, and the one to the server that goes with it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.adopt(self.connection)
        self._upstream = HTTPConnection("127.0.0.1", self.server.proxy.upstream_port)
        self._idle_since: float | None = None

    def handle(self) -> None:
        with suppress(OSError):  # the client left between two requests
            super().handle()

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        proxy = self.server.proxy
        request, faults = proxy.note(self.command, self.path, self.headers)
        try:
            self._answer(request, faults)
        except _HungUpError:
            if not self.server.closing:
                request.hung_up_s = proxy.now_s
            self.close_connection = True
        except _CutError:
            self.close_connection = True
        finally:
            request.ended_s = request.ended_s or proxy.now_s
            if self._idle_since is None:
                self._upstream.close()

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815  # http.server's names

    def _answer(self, request: Request, faults: list[Fault]) -> None:
        fault = next((f for f in faults if isinstance(f, Ending)), None)
        if isinstance(fault, Answer):
            for _ in self._request_body():
                pass
            reply = _Reply.own(fault, self.command)
        else:
            reply = self._ask()
        self._wait(sum(f.seconds for f in faults if isinstance(f, Latency)))
        stop: float = math.inf
        if isinstance(fault, Short | Corrupt):
            reply = reply.damaged(fault, self.command)
        elif isinstance(fault, Truncate):
            reply = reply.measured()
            stop = _bytes_of(fault.after, reply.length or 0)
        elif isinstance(fault, Reset | Hang):
            stop = -1 if fault.after is None else fault.after
        if stop >= 0:
            self._pour(request, reply, faults, stop)
        if isinstance(fault, Hang):
            self._wait(math.inf)
        if isinstance(fault, Reset):
            self._have_reset()
        if stop < math.inf:
            request.ended_s = self.server.proxy.now_s
            raise _CutError

    def _request_body(self) -> Iterator[bytes]:
        if "transfer-encoding" in self.headers:
            raise ValueError("the fault proxy takes no chunked requests: send a Content-Length")
        left = int(self.headers.get("content-length", 0))
        while left:
            try:
                block = self.rfile.read1(min(left, _BLOCK))
            except OSError as error:
                raise _HungUpError from error
            if not block:
                raise _HungUpError
            left -= len(block)
            yield block

    def _ask(self) -> _Reply:
        """Pass the request on; the server's answer, or a 502 in its absence."""
        try:
            server = self._connected()
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OWN_HEADERS:
                    server.putheader(name, value)
            server.endheaders()
            for block in self._request_body():
                server.send(block)
            self._wait(math.inf, server.sock)
            answer = server.getresponse()
        except (OSError, HTTPException) as error:
            text = f"port {self._upstream.port} does not answer: {error}"
            return _Reply.own(Answer(502, body=text.encode()), self.command)
        headers = [pair for pair in answer.getheaders() if pair[0].lower() not in _OWN_HEADERS]
        length = answer.length if _has_body(self.command, answer.status) else 0
        blocks = self._response_body(answer, length)
        return _Reply(answer.status, answer.reason, headers, length, blocks)

    def _connected(self) -> HTTPConnection:
        """The connection to the server: the last request's if it is fit, else a new one."""
        idle_since, self._idle_since = self._idle_since, None
        if idle_since is None or time.monotonic() - idle_since > _IDLE_S:
            self._upstream.close()
            # Known before it connects: a server with a full queue keeps one waiting for a second.
            sock = self._upstream.sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.server.adopt(sock)
            sock.connect((self._upstream.host, self._upstream.port))
        return self._upstream

    def _response_body(self, answer: HTTPResponse, length: int | None) -> Iterator[bytes]:
        left = math.inf if length is None else length
        while left:
            try:
                block = answer.read1(int(min(left, _BLOCK)))
            except (OSError, HTTPException) as error:
                raise _CutError from error
            if not block and left < math.inf:
                raise _CutError
            if not block:
                break
            left -= len(block)
            yield block
        if not answer.will_close:
            self._idle_since = time.monotonic()
        answer.close()

    def _pour(self, request: Request, reply: _Reply, faults: list[Fault], stop: float) -> None:
        """Send the head and, at its pace, the body up to byte ``stop``."""
        rates = [f.bytes_per_s for f in faults if isinstance(f, Bandwidth | Drip)]
        rate = min(rates, default=math.inf)
        step = _BLOCK if rate == math.inf else max(1, int(rate * _PACE_S))
        if any(isinstance(f, Drip) for f in faults):
            step = 1
        # Only a whole answer ends with its last byte; one that is cut, with the cut.
        last = reply.length if stop == math.inf else None
        chunked = reply.length is None
        if last == 0:
            request.ended_s = self.server.proxy.now_s
        self._send_head(reply, chunked)
        sent = 0
        due = time.monotonic()
        for whole in reply.blocks:
            block = memoryview(whole)
            while block and sent < stop:
                piece = block[: int(min(step, stop - sent))]
                block = block[len(piece) :]
                if rate < math.inf:
                    due = max(due, time.monotonic() - _CATCH_UP_S) + len(piece) / rate
                    self._wait(due - time.monotonic())
                sent += len(piece)
                if sent == last:
                    request.ended_s = self.server.proxy.now_s
                self._send(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece)
            if sent >= stop:
                return
        if chunked:
            request.ended_s = self.server.proxy.now_s
            self._send(b"0\r\n\r\n")

    def _send_head(self, reply: _Reply, chunked: bool) -> None:
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.headers:
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        try:
            self.end_headers()
        except OSError as error:
            raise _HungUpError from error

    def _send(self, piece: bytes | memoryview) -> None:
        try:
            self.connection.sendall(piece)
        except OSError as error:
            raise _HungUpError from error

    def _wait(self, seconds: float, server: socket.socket | None = None) -> None:
        """Sleep until the time is over, the server speaks, or the client hangs up."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        if server is not None:
            poll.register(server, select.POLLIN)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for number, _ in poll.poll(None if left == math.inf else left * 1000):
                if number == self.connection.fileno():
                    raise _HungUpError
                return

    def _have_reset(self) -> None:
        """Let all that was sent go out, and closing send RST."""
        while struct.unpack("i", fcntl.ioctl(self.connection, _NOT_SENT, bytes(4)))[0]:
            self._wait(0.001)
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _has_body(method: str, status: int) -> bool:
    return method != "HEAD" and status not in (204, 304)


def _bytes_of(after: float, length: int) -> int:
    return int(after * length) if isinstance(after, float) else after


def _first(blocks: Iterable[bytes], length: int) -> Iterator[bytes]:
    for block in blocks:
        yield block[:length]
        length -= len(block)
        if length <= 0:
            return


def _flipped(blocks: Iterable[bytes], start: int, size: int) -> Iterator[bytes]:
    """Blocks with every bit of ``size`` bytes from ``start`` on turned over."""
    for block in blocks:
        low, high = max(0, start), max(0, start + size)
        turned = bytes(byte ^ 0xFF for byte in block[low:high])
        yield block[:low] + turned + block[low + len(turned) :] if turned else block
        start -= len(block)
