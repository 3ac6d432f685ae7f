"""A cheap blob server in a process of its own, for benchmarks of readers.

    python bench/blob_server.py FOLDER                                 # as fast as loopback is
    python bench/blob_server.py FOLDER --latency-ms 50 --rate-mb 30    # as a distant one is

The files of FOLDER become blobs of an Azure container, whose URL is the one line on stdout.
It answers what obstore and azure-storage-blob ask when they read: GET and HEAD of a blob,
whole or a range of it, and the container's listing and properties. It ends on SIGTERM or
when its standard input closes, so it never outlives whoever started it.

Each connection has a thread. ``sendfile`` moves bodies from the page cache to the socket
without a copy through this process, so that the reader has the machine to itself.

Latency is waited before the head of every answer. The rate limits each blob's body for
itself: byte k leaves k/rate after the head, in slices of about 4 ms, however many streams
there are. When this process wakes late the next slices make up for it; time during which the
reader takes nothing and all buffers are full is lost, as it is on a wire.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CONTAINER = "/account/container"
START_S = 30.0
_SLICE_S = 0.004
_PAGE_BYTES = 4096
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_XML = '<?xml version="1.0" encoding="utf-8"?>'


@contextmanager
def serve(folder: Path, latency_ms: float = 0.0, rate_mb: float | None = None) -> Iterator[str]:
    """Run the server as a process of its own while the block lasts.

    Parameters
    ----------
    folder : Path
        Its files are the blobs; their paths below it are the keys.
    latency_ms : float
        Milliseconds before the head of each answer.
    rate_mb : float, optional
        Limit of each blob's body in 10^6 bytes per second; none by default.

    Yields
    ------
    str
        The container's URL, ``http://127.0.0.1:PORT/account/container``.

    Raises
    ------
    RuntimeError
        The server doesn't start; it has said why on stderr.
    """
    command = [sys.executable, __file__, str(folder), "--latency-ms", str(latency_ms)]
    command += [] if rate_mb is None else ["--rate-mb", str(rate_mb)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        try:
            said = process.stdout
            url = said.readline() if said and select.select([said], [], [], START_S)[0] else b""
            if not url:
                raise RuntimeError(
                    f"The blob server for {folder} gave no URL within {START_S:.0f} s. What it "
                    f"says is on stderr; to see it alone, run: {' '.join(command)}"
                )
            yield url.decode().strip()
        finally:
            # It holds nothing that has to be put in order.
            process.kill()


def path_of(folder: Path, key: str) -> Path | None:
    """Where a key's file would be; None for a key that no file below the folder can have."""
    return None if {"", ".."} & set(key.split("/")) else folder / key


def properties(stat: os.stat_result) -> dict[str, str]:
    """Headers that tell one state of a file or folder from another."""
    return {
        "ETag": f'"0x{stat.st_mtime_ns:X}{stat.st_size:X}"',
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
    }


def listing(folder: Path, prefix: str, delimiter: str) -> str:
    """Keys that begin with a prefix, in one page of Azure's XML.

    With a delimiter, whichever it is, what lies deeper is summed up as at a ``/``.
    """
    above = prefix.rpartition("/")[0]
    parent = path_of(folder, above) if above else folder
    entries: dict[str, str] = {}
    for path in parent.glob("*" if delimiter else "**/*") if parent else ():
        key = path.relative_to(folder).as_posix()
        if not key.startswith(prefix):
            continue
        if path.is_file():
            stat = path.stat()
            about = properties(stat)
            entries[key] = (
                f"<Blob><Name>{escape(key)}</Name><Properties>"
                f"<Etag>{about['ETag']}</Etag><Last-Modified>{about['Last-Modified']}</Last-Modified>"
                f"<Content-Length>{stat.st_size}</Content-Length><BlobType>BlockBlob</BlobType>"
                "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            )
        elif delimiter:
            entries[f"{key}/"] = f"<BlobPrefix><Name>{escape(key)}/</Name></BlobPrefix>"
    return (
        f'{_XML}<EnumerationResults ContainerName="container"><Prefix>{escape(prefix)}</Prefix>'
        f"<Blobs>{''.join(entries[key] for key in sorted(entries))}</Blobs><NextMarker/>"
        "</EnumerationResults>"
    )


class Server(ThreadingTCPServer):
    """Listens on a loopback port that the system chooses."""

    daemon_threads = True
    # Readers connect in bursts, and one turned away comes back only after a second.
    request_queue_size = 256

    def __init__(self, folder: Path, latency_s: float, bytes_per_s: float | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s


class Handler(BaseHTTPRequestHandler):
    """One connection: answers until the reader hangs up."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        """Answer request after request; a reader may leave at any time."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer with a blob, the container's listing or properties, or an error."""
        url = urlsplit(self.path)
        path = unquote(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if path.startswith(f"{CONTAINER}/"):
            self._answer_blob(path.removeprefix(f"{CONTAINER}/"))
        elif path != CONTAINER:
            self._refuse(404, "ContainerNotFound")
        elif query.get("comp") == "list":
            names = listing(self.server.folder, query.get("prefix", ""), query.get("delimiter", ""))
            self._answer_xml(200, names, {})
        else:
            self._head(200, 0, properties(self.server.folder.stat()))

    do_HEAD = do_GET  # noqa: N815  # the name http.server looks for

    def _answer_blob(self, key: str) -> None:
        path = path_of(self.server.folder, key)
        if path is None or not path.is_file():
            self._refuse(404, "BlobNotFound")
            return
        with path.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            headers = {"x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes", **properties(stat)}
            status, begin, end = 200, 0, stat.st_size
            wanted = self.headers.get("x-ms-range") or self.headers.get("Range") or ""
            if match := _RANGE.fullmatch(wanted):
                status, begin = 206, int(match[1])
                end = min(end, int(match[2]) + 1) if match[2] else end
                if begin >= end:
                    self._refuse(416, "InvalidRange")
                    return
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{stat.st_size}"
            self._head(status, end - begin, headers)
            if self.command == "HEAD":
                return
            if self.server.bytes_per_s is None:
                self._send(file.fileno(), begin, end)
            else:
                self._send_shaped(file.fileno(), begin, end, self.server.bytes_per_s)

    def _refuse(self, status: int, code: str) -> None:
        body = f"{_XML}<Error><Code>{code}</Code><Message>{escape(self.path)}</Message></Error>"
        self._answer_xml(status, body, {"x-ms-error-code": code})

    def _answer_xml(self, status: int, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self._head(status, len(body), {"Content-Type": "application/xml", **headers})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        """Wait out the latency, then send the head, in one packet."""
        time.sleep(self.server.latency_s)
        self.send_response(status)
        headers = {"Content-Type": "application/octet-stream", **headers}
        for name, text in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, text)
        self.end_headers()

    def _send(self, file: int, begin: int, end: int) -> None:
        """Send a file's bytes ``[begin, end)`` as fast as the reader takes them."""
        while begin < end:
            sent = os.sendfile(self.connection.fileno(), file, begin, end - begin)
            if sent == 0:
                raise ConnectionAbortedError("the file became shorter while it was sent")
            begin += sent

    def _send_shaped(self, file: int, begin: int, end: int, bytes_per_s: float) -> None:
        """Send a file's bytes ``[begin, end)``, each slice when its last byte is due."""
        step = max(_PAGE_BYTES, int(bytes_per_s * _SLICE_S) // _PAGE_BYTES * _PAGE_BYTES)
        writable = select.poll()
        writable.register(self.connection, select.POLLOUT)
        start_s = time.monotonic()
        for first in range(begin, end, step):
            last = min(first + step, end)
            # Counted from the start, so that waking late delays one slice, not all that follow.
            time.sleep(max(0.0, start_s + (last - begin) / bytes_per_s - time.monotonic()))
            if not writable.poll(0):
                full_s = time.monotonic()
                writable.poll()
                start_s += time.monotonic() - full_s
            self._send(file, first, last)


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description="Serve a folder as Azure Blob Storage does.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--rate-mb", type=float, help="limit of each body, 10^6 bytes/s")
    options = parser.parse_args()
    rate_mb: float | None = options.rate_mb
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder; give the one whose files to serve")
    if options.latency_ms < 0 or (rate_mb is not None and rate_mb <= 0):
        parser.error("--latency-ms must be 0 or more, and --rate-mb more than 0")
    bytes_per_s = None if rate_mb is None else rate_mb * 1e6
    server = Server(options.folder, options.latency_ms / 1000, bytes_per_s)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}{CONTAINER}", flush=True)
    with suppress(KeyboardInterrupt):
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
