"""Blob servers for the tests: Azurite as a pytest fixture, and one that counts requests.

Loaded by ``pytest_plugins = ["tests.azurite"]``. Each test process runs its own server on a
port that the system chooses. The program is ``node_modules/.bin/azurite-blob`` of the
repository (``npm install``), else what the environment variable ``AZURITE_BLOB`` names, else
``azurite-blob`` on the PATH. Without it, tests that ask for it are skipped, except under
``CI=true``, where its absence is a failure.

:func:`serve_blobs` answers from a function, for archives too large to exist and for failures
that Azurite does not have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from tests.absent import absent

REPOSITORY = Path(__file__).resolve().parents[1]
ACCOUNT = "devstoreaccount1"
# The key of every Azure emulator, printed in Microsoft's documentation; it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_START_S = 60
_LISTENING = re.compile(r"listen\w* (?:at|on) http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Azurite:
    """A running server."""

    port: int
    folder: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.endpoint};"
        )

    def url(self, container: str, prefix: str = "") -> str:
        """What a user would give as SOURCE or OUT."""
        return "/".join(part for part in (self.endpoint, container, prefix) if part)

    def service(self) -> BlobServiceClient:
        """An owner's client; use it in a ``with`` block."""
        return BlobServiceClient.from_connection_string(self.connection_string)

    def create_container(
        self, name: str, public: Literal["container", "blob"] | None = None
    ) -> str:
        """Make a container if it isn't there.

        ``public``: anybody may list and read ("container"), read only ("blob"), or neither.
        """
        with self.service() as service:
            try:
                service.create_container(name, public_access=public)
            except ResourceExistsError:
                service.get_container_client(name).set_container_access_policy(
                    {}, public_access=public
                )
        return name

    def upload_folder(self, folder: Path, container: str, prefix: str = "") -> int:
        """Put every file of a folder below ``prefix``, from 8 threads; how many there were."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        with self.service() as service, ThreadPoolExecutor(8) as pool:
            client = service.get_container_client(container)

            def put(path: Path) -> None:
                key = "/".join(
                    part for part in (prefix, path.relative_to(folder).as_posix()) if part
                )
                client.upload_blob(key, path.read_bytes(), overwrite=True)

            list(pool.map(put, files))
        return len(files)

    def keys(self, container: str, prefix: str = "") -> list[str]:
        """Names of the blobs below a prefix."""
        with self.service() as service:
            client = service.get_container_client(container)
            return sorted(client.list_blob_names(name_starts_with=prefix))


def find_azurite() -> str | None:
    """The program to run, if there is one."""
    own = REPOSITORY / "node_modules" / ".bin" / "azurite-blob"
    return str(own) if own.exists() else os.environ.get("AZURITE_BLOB") or shutil.which(own.name)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    program = find_azurite()
    if program is None:
        absent("azurite-blob is not installed: run npm install")
    folder = tmp_path_factory.mktemp("azurite")
    log = folder / "azurite.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [
                *(program, "--blobHost", "127.0.0.1", "--blobPort", "0"),
                *("--location", str(folder / "blobs"), "--silent"),
                *("--skipApiVersionCheck", "--disableTelemetry"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Azurite(_port_of(server, log), folder)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _port_of(server: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the server says where it listens."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        if match := _LISTENING.search(log.read_text()):
            return int(match[1])
        time.sleep(0.05)
    pytest.fail(f"azurite-blob does not start: {log.read_text()[-2000:]}")


@dataclass
class BlobServer:
    """What a server made by :func:`serve_blobs` was asked for."""

    url: str
    requests: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve_blobs(answer: Callable[[str], bytes | int]) -> Iterator[BlobServer]:
    """Serve a container over HTTP as Azure would; ``url`` is the container's.

    ``answer`` turns a key into its bytes or into an HTTP status. Each request is noted as
    ``"GET key"`` or ``"HEAD key"``.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in two packets would wait for each other's acknowledgement.
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            key = self.path.partition("?")[0].removeprefix("/account/container").lstrip("/")
            served.requests.append(f"{self.command} {key}")
            served.targets.append(self.path)
            served.headers.append({name.lower(): text for name, text in self.headers.items()})
            found = answer(key)
            if isinstance(found, bytes):
                body = found
            else:
                body = f"<Error><Code>Code{found}</Code></Error>".encode()
            self.send_response(200 if isinstance(found, bytes) else found)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Mon, 01 Nov 2021 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  # the name http.server looks for

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # Connections beyond the usual 5 in the queue would be tried again after a second.
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            # That a reader left in the middle is no news.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        served = BlobServer(f"http://127.0.0.1:{server.server_port}/account/container")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
