"""The fault proxy: what a client sees of each fault, by raw HTTP."""

from __future__ import annotations

import gc
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

import pytest
from azure.core.exceptions import ServiceResponseError
from azure.storage.blob import BlobClient

from tests.azurite import KEY, Azurite, BlobServer, serve_blobs
from tests.proxy import (
    Answer,
    Bandwidth,
    Corrupt,
    Drip,
    FaultProxy,
    Hang,
    Latency,
    Reset,
    Short,
    Truncate,
)

QUICK_S = 2.0
"""More than leaving takes on a busy machine, less than any of the waits that it ends."""
BODY = bytes(index * index % 251 for index in range(100_000))
BLOBS: dict[str, bytes | int] = {
    "RawData/0.0": BODY,
    "RawData/0.1": BODY,
    "big": b"wave" * 2_000_000,
}


@pytest.fixture(scope="module")
def served() -> Iterator[BlobServer]:
    """A container of three blobs."""
    with serve_blobs(lambda key: BLOBS.get(key, 404)) as server:
        yield server


@pytest.fixture
def proxy(served: BlobServer) -> Iterator[FaultProxy]:
    with FaultProxy(port_of(served.url), "account") as proxy:
        yield proxy


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


class Client:
    """One keep-alive connection, with a short patience."""

    def __init__(self, proxy: FaultProxy, timeout: float = 5, container: str = "container") -> None:
        self.base = urlsplit(proxy.url(container)).path
        self.http = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(
        self, key: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.http.request(method, f"{self.base}/{key}", body, named)
        return self.http.getresponse()


def get(proxy: FaultProxy, key: str = "RawData/0.0", method: str = "GET") -> tuple[int, bytes]:
    with Client(proxy) as client:
        answer = client.ask(key, method)
        return answer.status, answer.read()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def eventually(truth: Callable[[], object]) -> bool:
    """Whether it comes true before long; a busy machine may take its time."""
    end = time.monotonic() + 20
    while not truth() and time.monotonic() < end:
        time.sleep(0.002)
    return bool(truth())


def test_without_a_fault_everything_passes(proxy: FaultProxy) -> None:
    assert get(proxy) == (200, BODY)
    assert get(proxy, "nowhere") == (404, b"<Error><Code>Code404</Code></Error>")
    with Client(proxy) as client:
        head = client.ask("RawData/0.0", "HEAD")
        assert (head.status, head.read(), head.headers["Content-Length"]) == (200, b"", "100000")
        assert client.ask("big").read() == BLOBS["big"]


def test_requests_are_noted_in_order(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.ask("RawData/0%2E0?comp=block&blockid=QQ%3D%3D", Range="bytes=5-9").read()
        client.ask("big", "HEAD", x_ms_range="bytes=0-").read()
    first, second = proxy.requests
    assert (first.method, first.key) == ("GET", "container/RawData/0.0")
    assert first.query == {"comp": "block", "blockid": "QQ=="}
    assert (first.range, second.range) == ("bytes=5-9", "bytes=0-")
    assert first.ended_s is not None
    assert 0 < first.at_s < first.ended_s < second.at_s < proxy.now_s
    assert (proxy.count(), proxy.count(r"RawData/0\.0$"), proxy.count(method="HEAD")) == (2, 1, 1)


def test_a_rule_holds_for_its_keys_method_times_and_seconds(proxy: FaultProxy) -> None:
    proxy.inject(Answer(503), key=r"/0\.1$", times=2)
    proxy.inject(Answer(500), key=r"/0\.1$", method="HEAD")
    assert [get(proxy, "RawData/0.1")[0] for _ in range(3)] == [503, 503, 200]
    assert get(proxy, "RawData/0.1", "HEAD") == (500, b"")
    assert get(proxy, "RawData/0.0")[0] == 200
    proxy.clear()
    assert get(proxy, "RawData/0.1", "HEAD")[0] == 200
    proxy.inject(Answer(503), seconds=0.1)
    assert get(proxy)[0] == 503
    time.sleep(0.1)
    assert get(proxy)[0] == 200


def test_of_two_faults_the_first_is_applied_and_the_other_is_not_used_up(
    proxy: FaultProxy,
) -> None:
    proxy.inject(Answer(503), times=1)
    proxy.inject(Answer(429), times=1)
    assert [get(proxy)[0] for _ in range(3)] == [503, 429, 200]


def test_answer_stands_in_for_the_server(proxy: FaultProxy, served: BlobServer) -> None:
    proxy.inject(Answer(429, {"Retry-After": "7"}, b"slow down"))
    asked = len(served.requests)
    with Client(proxy) as client:
        for _ in range(2):  # on one connection, and behind a body that nobody wanted
            answer = client.ask("RawData/0.0", "PUT", BODY)
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
            assert answer.read() == b"slow down"
    assert len(served.requests) == asked


def test_latency_comes_before_the_head(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        plain_s = min(seconds(lambda: client.ask("RawData/0.0").read()) for _ in range(5))
        proxy.inject(Latency(0.03))
        proxy.inject(Latency(0.02))
        late_s = min(seconds(lambda: client.ask("RawData/0.0").read()) for _ in range(5))
    assert 0.05 < late_s < 0.09 + plain_s  # waited for twice, it would be 0.1 s


def test_bandwidth_limits_the_body(proxy: FaultProxy) -> None:
    proxy.inject(Bandwidth(1_000_000))
    with Client(proxy) as client:
        took_s = [seconds(lambda: client.ask("RawData/0.0").read()) for _ in range(5)]
    assert 0.1 < min(took_s) < 0.18  # at half the rate it would be 0.2 s


def test_the_lowest_rate_counts_and_own_answers_are_paced_too(proxy: FaultProxy) -> None:
    proxy.inject(Latency(0.05))
    proxy.inject(Bandwidth(10_000))
    proxy.inject(Bandwidth(1_000))
    proxy.inject(Answer(500, body=bytes(100)))
    assert 0.15 < min(seconds(lambda: get(proxy)) for _ in range(3)) < 0.19


def test_drip_sends_byte_by_byte(proxy: FaultProxy) -> None:
    proxy.inject(Drip(200))
    with Client(proxy) as client:
        answer = client.ask("RawData/0.0")
        began = time.perf_counter()
        pieces = [answer.read1(1000) for _ in range(20)]
        took_s = time.perf_counter() - began
    assert BODY.startswith(b"".join(pieces))
    # A machine that is busy elsewhere may let two bytes meet, but not all of them.
    assert [len(piece) for piece in pieces].count(1) > 10
    assert 0.09 < took_s < 2


def test_reset_before_the_head(proxy: FaultProxy) -> None:
    proxy.inject(Reset(None))
    with pytest.raises(ConnectionResetError):
        get(proxy)


@pytest.mark.parametrize("after", [0, 1000, 2_000_000])
def test_reset_behind_some_bytes(proxy: FaultProxy, after: int) -> None:
    proxy.inject(Reset(after))
    found = b""
    with Client(proxy) as client:
        answer = client.ask("big")
        assert answer.headers["Content-Length"] == "8000000"
        time.sleep(0.05)  # what was sent arrives, however late it is read
        while len(found) < after:
            found += answer.read1(65536)
        with pytest.raises(ConnectionResetError):
            answer.read1()
    assert len(found) == after


def test_hang_before_the_head(proxy: FaultProxy) -> None:
    proxy.inject(Hang())
    with Client(proxy, timeout=0.1) as client, pytest.raises(TimeoutError):
        client.ask("RawData/0.0")
    assert eventually(lambda: proxy.requests[0].hung_up_s)


def test_hang_behind_some_bytes(proxy: FaultProxy) -> None:
    proxy.inject(Hang(after=1000))
    with Client(proxy, timeout=0.1) as client:
        answer = client.ask("RawData/0.0")
        assert answer.read(1000) == BODY[:1000]
        with pytest.raises(TimeoutError):
            answer.read(1)


@pytest.mark.parametrize(("after", "left"), [(0.25, 25_000), (10, 10), (0, 0)])
def test_truncate_promises_more_than_it_sends(proxy: FaultProxy, after: float, left: int) -> None:
    proxy.inject(Truncate(after))
    with Client(proxy) as client:
        answer = client.ask("RawData/0.0")
        assert answer.headers["Content-Length"] == "100000"
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
    assert caught.value.partial == BODY[:left]


def test_short_looks_like_a_shorter_object(proxy: FaultProxy) -> None:
    proxy.inject(Short(0.25))
    with Client(proxy) as client:
        assert client.ask("RawData/0.0").read() == BODY[:25_000]
        head = client.ask("RawData/0.0", "HEAD")
        assert (head.read(), head.headers["Content-Length"]) == (b"", "25000")
        assert client.ask("nowhere").read() == b"<Error><Code>Code404</Code></Error>"


@pytest.mark.parametrize(("at", "start", "stop"), [("head", 0, 16), ("middle", 49_968, 50_032)])
def test_corrupt_flips_some_bytes(
    proxy: FaultProxy, at: Literal["head", "middle"], start: int, stop: int
) -> None:
    proxy.inject(Corrupt(at))
    status, found = get(proxy)
    assert (status, len(found)) == (200, len(BODY))
    assert [i for i in range(len(BODY)) if found[i] != BODY[i]] == list(range(start, stop))


def test_a_client_that_hangs_up_is_noted(proxy: FaultProxy) -> None:
    proxy.inject(Bandwidth(1_000_000), key="big")
    with Client(proxy) as client:
        client.ask("RawData/0.0").read()
        answer = client.ask("big")
        answer.read(1000)
        assert proxy.requests[1].hung_up_s is None
        closed_s = proxy.now_s
        answer.close()
    assert eventually(lambda: proxy.requests[1].hung_up_s)
    first, second = proxy.requests
    assert first.hung_up_s is None
    assert second.hung_up_s is not None
    assert second.hung_up_s - closed_s < 0.3


def test_a_client_that_hangs_up_at_full_speed_is_noted(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.ask("big").close()
    assert eventually(lambda: proxy.requests[0].hung_up_s)


def test_peak_counts_requests_in_work_at_once(proxy: FaultProxy) -> None:
    proxy.inject(Latency(0.1), key="RawData")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda key: get(proxy, key), ["RawData/0.0", "RawData/0.1"] * 3))
    get(proxy)
    assert (proxy.peak, proxy.peak_of(r"/0\.1"), proxy.peak_of("big")) == (6, 3, 0)


def test_a_request_that_follows_another_does_not_overlap_it(proxy: FaultProxy) -> None:
    """Else a reader of two connections would now and then seem to have three."""
    turns = threading.Semaphore(2)

    def ask(key: str) -> None:
        with Client(proxy) as client:
            for _ in range(30):
                with turns:
                    client.ask(key).read()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, ["RawData/0.0", "RawData/0.1", "nowhere", "RawData/0.0"]))
    assert (proxy.count(), proxy.peak) == (120, 2)


@contextmanager
def chunked_server() -> Iterator[int]:
    """The port of a server that answers every GET in two chunks, without a length."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nHello\r\n7\r\n, world\r\n0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_chunked_answers() -> None:
    with chunked_server() as port, FaultProxy(port) as proxy:
        with Client(proxy) as client:
            for _ in range(2):
                answer = client.ask("a")
                assert answer.headers["Transfer-Encoding"] == "chunked"
                assert answer.read() == b"Hello, world"
        proxy.inject(Reset(after=7), key="reset")
        with Client(proxy) as client:
            answer = client.ask("reset")
            assert [answer.read(5), answer.read(2)] == [b"Hello", b", "]
            with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
                answer.read()
        proxy.inject(Truncate(0.5), key="half")
        with pytest.raises(http.client.IncompleteRead, match="6 bytes read, 6 more expected"):
            get(proxy, "half")
        proxy.inject(Short(0.5), key="short")
        assert get(proxy, "short") == (200, b"Hello,")
        proxy.inject(Corrupt("head"), key="corrupt")
        assert get(proxy, "corrupt") == (200, bytes(byte ^ 255 for byte in b"Hello, world"))


def test_a_server_that_is_not_there_is_a_502() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with FaultProxy(port) as proxy:
        status, text = get(proxy)
    assert status == 502
    assert re.search(rf"port {port} does not answer: .*refused", text.decode())


def test_leaving_is_quick_and_leaves_nothing_behind(served: BlobServer) -> None:
    before = set(threading.enumerate())
    with ExitStack() as clients:
        with FaultProxy(port_of(served.url), "account") as proxy:
            proxy.inject(Hang(), key="never")
            proxy.inject(Drip(), key=r"0\.0$")
            proxy.inject(Bandwidth(10_000), key=r"0\.1$")
            for key in ["never", "RawData/0.0", "RawData/0.1", "idle"] * 5:
                client = clients.enter_context(Client(proxy))
                client.http.request("GET", f"{client.base}/{key}")
            assert eventually(lambda: proxy.count() == 20)
            leaving = time.perf_counter()
        assert time.perf_counter() - leaving < QUICK_S
        # The server's own threads are daemons.
        assert {t for t in threading.enumerate() if not t.daemon} <= before
    # What a client did not do is not laid at its door.
    assert [request for request in proxy.requests if request.hung_up_s is not None] == []
    gc.collect()  # a socket left open would warn now, and warnings are errors


def test_a_silent_server_holds_up_neither_leaving_nor_hang_ups(proxy: FaultProxy) -> None:
    proxy.inject(Hang(), key="never")
    proxy.inject(Hang(after=1000), key="RawData")
    with ExitStack() as stay, FaultProxy(proxy.port, "account") as outer:
        with Client(outer, timeout=0.1) as client, pytest.raises(TimeoutError):
            client.ask("never")
        assert eventually(lambda: outer.requests[0].hung_up_s)
        client = stay.enter_context(Client(outer))
        assert client.ask("RawData/0.0").read(1000) == BODY[:1000]
        leaving = time.perf_counter()
    assert time.perf_counter() - leaving < QUICK_S


def test_azure_storage_blob_through_the_proxy(azurite: Azurite) -> None:
    """Up and down, a range of a damaged object, and a put whose answer is lost."""
    container = azurite.create_container("proxied", public="container")
    data = BODY * 50
    with FaultProxy(azurite.port) as proxy:
        with BlobClient.from_blob_url(
            proxy.url(container, "a/b.bin"), credential=KEY, retry_total=0
        ) as blob:
            blob.upload_blob(data, overwrite=True)
            assert blob.download_blob().readall() == data
            assert proxy.count(r"^proxied/a/b\.bin$", "PUT") > 0

            proxy.inject(Reset(None), method="PUT")
            with pytest.raises(ServiceResponseError):
                blob.upload_blob(b"stored all the same", overwrite=True)
            proxy.clear()
            assert blob.download_blob().readall() == b"stored all the same"
            blob.upload_blob(BODY, overwrite=True)

        proxy.inject(Corrupt("middle"), key="b.bin", times=1)
        with Client(proxy, container=container) as client:
            found = client.ask("a/b.bin", Range="bytes=50000-50099").read()
            assert [i for i in range(100) if found[i] != BODY[50_000 + i]] == list(range(32))

            proxy.inject(Short(1000), key="b.bin")
            answer = client.ask("a/b.bin", Range="bytes=900-1099")
            assert (answer.status, answer.read()) == (206, BODY[900:1000])
            assert answer.headers["Content-Range"] == "bytes 900-999/1000"
            answer = client.ask("a/b.bin", Range="bytes=1000-1099")
            assert (answer.status, answer.read()) == (416, b"")
