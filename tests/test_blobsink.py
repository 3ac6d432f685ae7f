"""A run's files in an Azure container: whole or not at all, and the same as on disk."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)

from das_gpu import blobsink, outcome
from das_gpu.credentials import Credential
from das_gpu.errors import AccessDeniedError, DestinationError, IdentityError, UsageError
from das_gpu.ledger import Ledger
from das_gpu.patience import Patience
from das_gpu.sink import LocalSink, open_sink
from das_gpu.store import Access
from tests.azurite import ACCOUNT, KEY
from tests.proxy import Answer, FaultProxy, Hang, Latency, Reset
from tests.test_ledger import HEADER, IDENTITY, make_segment

CONTAINER = "blobsink"
IMAGE = "images/2021-11-01/23/a.png"
IN_SHORT = Patience(total_s=1.4, connect_s=0.5, stall_s=0.5)
"""Time for a second attempt, after about a second."""

_prefixes = (f"run-{number}" for number in itertools.count())


@pytest.fixture
def prefix():
    """A place that no other test writes to."""
    return next(_prefixes)


@pytest.fixture(scope="module")
def container(azurite):
    """A server with a private container."""
    azurite.create_container(CONTAINER)
    return azurite


@pytest.fixture
def owner(azurite, monkeypatch):
    """How the owner writes: with the connection string that an environment variable holds."""
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    return Access(Credential("connection-string", "CONNECTION"))


@pytest.fixture
def sink(container, prefix, owner):
    return open_sink(container.url(CONTAINER, prefix), owner)


@pytest.fixture
def proxy(container):
    with FaultProxy(container.port) as proxy:
        yield proxy


@pytest.fixture
def signed(container, monkeypatch):
    """How somebody writes who was given a shared access signature with some rights."""

    def access(rights, *, hours=1, key=KEY):
        signature = generate_container_sas(
            ACCOUNT,
            CONTAINER,
            account_key=key,
            permission=ContainerSasPermissions.from_string(rights),
            expiry=datetime.now(UTC) + timedelta(hours=hours),
        )
        monkeypatch.setenv("SIGNATURE", signature)
        return Access(Credential("sas", "SIGNATURE"), patience=IN_SHORT)

    return access


def hurried(access):
    return Access(access.credential, patience=IN_SHORT)


def stored(azurite, prefix):
    """Every blob below a prefix, with its content."""
    with azurite.service() as service:
        client = service.get_container_client(CONTAINER)
        names = client.list_blob_names(name_starts_with=f"{prefix}/")
        return {
            name.removeprefix(f"{prefix}/"): client.download_blob(name).readall() for name in names
        }


# Where files go, and as what


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (IMAGE, "image/png"),
        ("images/a.npy", "application/octet-stream"),
        ("run.json", "application/json"),
        ("metadata.jsonl", "application/x-ndjson"),
        ("report.html", "text/html; charset=utf-8"),
        ("manifest.parquet", "application/vnd.apache.parquet"),
    ],
)
def test_browsers_and_tools_are_told_what_a_file_is(
    container, prefix, sink, monkeypatch, key, kind
):
    monkeypatch.setattr(blobsink, "_SINGLE_BYTES", 4)
    sink.put(key, b"tiny")
    with sink.open_writer(f"more/{key}") as file:
        file.write(b"in a block")
    with container.service() as service:
        for name in (key, f"more/{key}"):
            blob = service.get_blob_client(CONTAINER, f"{prefix}/{name}")
            assert blob.get_blob_properties().content_settings.content_type == kind


def test_files_go_below_the_prefix_and_neighbours_are_not_seen(container, prefix, owner):
    for name in (prefix, f"{prefix}-b", f"{prefix}/inner"):
        open_sink(container.url(CONTAINER, name), owner).put("run.json", name.encode())

    sink = open_sink(container.url(CONTAINER, prefix), owner)
    assert sink.location == container.url(CONTAINER, prefix)
    assert sink.list() == ["inner/run.json", "run.json"]
    assert sink.get("run.json") == prefix.encode()


def test_a_run_may_have_a_whole_container(azurite, owner):
    sink = open_sink(azurite.url(azurite.create_container("whole")), owner)
    sink.put(IMAGE, b"x")
    assert azurite.keys("whole") == [IMAGE] == sink.list()


def test_the_account_of_a_short_address_is_the_connection_strings(container, prefix, owner):
    open_sink(f"az://{CONTAINER}/{prefix}", owner).put("run.json", b"{}")
    assert stored(container, prefix) == {"run.json": b"{}"}


def test_a_listing_reads_no_more_pages_than_it_needs(proxy, prefix, owner, monkeypatch):
    monkeypatch.setattr(blobsink, "_LISTED", 4)
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    keys = [f"images/{number}.png" for number in range(10)]
    for key in keys:
        sink.put(key, b"")

    def pages(**how):
        before = proxy.count(method="GET")
        found = sink.list("images/", **how)
        return found, proxy.count(method="GET") - before

    assert pages() == (keys, 3)
    assert pages(limit=3) == (keys[:3], 1)
    assert pages(limit=6) == (keys[:6], 2)
    assert pages(limit=0) == ([], 0)


@pytest.mark.slow
def test_a_page_that_fails_is_asked_for_again_and_not_the_whole_listing(
    proxy, prefix, owner, monkeypatch
):
    monkeypatch.setattr(blobsink, "_LISTED", 4)
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    keys = [f"{number}.png" for number in range(8)]
    for key in keys:
        sink.put(key, b"")
    before = proxy.count(method="GET")
    lister = threading.Thread(target=lambda: found.append(sink.list()))
    found: list[list[str]] = []
    proxy.inject(Answer(503), method="GET", times=1)
    lister.start()
    lister.join()
    assert found == [keys]
    assert proxy.count(method="GET") == before + 3


# Whole or not at all


@pytest.mark.slow
def test_a_large_file_goes_in_blocks_and_appears_with_the_last_request(proxy, prefix, owner):
    content = os.urandom(20 << 20)
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    with sink.open_writer("metadata.jsonl") as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
        assert proxy.count(method="PUT") == 0

    puts = [request.query.get("comp") for request in proxy.requests if request.method == "PUT"]
    assert puts == ["block", "block", "block", "blocklist"]
    assert sink.get("metadata.jsonl") == content


@pytest.mark.slow
def test_only_the_block_that_failed_is_sent_again(proxy, prefix, owner):
    content = os.urandom(20 << 20)
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    proxy.inject(Answer(503), method="PUT", times=1)
    sink.put("images/a.npy", content)
    assert sink.get("images/a.npy") == content
    assert proxy.count(method="PUT") == 3 + 1 + 1


def test_a_writer_that_fails_sends_nothing(proxy, prefix, owner):
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    with suppress(ZeroDivisionError), sink.open_writer("metadata.jsonl") as file:
        file.write(bytes(20 << 20))
        raise ZeroDivisionError
    assert proxy.count(method="PUT") == 0


class Cutter:
    """Pass TCP through to a server, slowly, or cutting it off when so many bytes have passed.

    With several numbers, again after the second so many, and so on. The fault proxy touches
    answers only; this is for uploads that do not arrive whole.
    """

    def __init__(self, port, *cuts, bytes_per_s=math.inf):
        self.port, self.cuts, self.bytes_per_s = port, list(cuts), bytes_per_s
        self.passed = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}/{ACCOUNT}"
        self.sockets = [self.listener]
        self.threads = [threading.Thread(target=self.accept)]

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, *_):
        self.cut(*self.sockets)
        for thread in self.threads:
            thread.join()
        for each in self.sockets:
            each.close()

    def accept(self):
        with suppress(OSError):
            while True:
                pair = self.listener.accept()[0], socket.create_connection(("127.0.0.1", self.port))
                self.sockets += pair
                for ends in (pair, pair[::-1]):
                    self.threads.append(threading.Thread(target=self.carry, args=ends))
                    self.threads[-1].start()

    def carry(self, source, sink):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(len(data) / self.bytes_per_s)
                self.passed += len(data)
                if self.cuts and self.passed > self.cuts[0]:
                    self.passed, self.cuts = 0, self.cuts[1:]
                    break
                sink.sendall(data)
        self.cut(source, sink)

    def cut(self, *sockets):
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("size", [500_000, 12 << 20], ids=["one request", "blocks"])
@pytest.mark.slow
def test_an_upload_that_never_arrives_leaves_what_was_there(container, prefix, sink, owner, size):
    sink.put("metadata.jsonl", b"earlier")
    with (
        Cutter(container.port, int(size * 0.9), *[100_000] * 9) as bad,
        pytest.raises(DestinationError, match=r"metadata.jsonl: .*Tried 2 times") as caught,
    ):
        open_sink(f"{bad.endpoint}/{CONTAINER}/{prefix}", hurried(owner)).put(
            "metadata.jsonl", os.urandom(size)
        )
    assert caught.value.exit_code == 6
    assert stored(container, prefix) == {"metadata.jsonl": b"earlier"}


@pytest.mark.parametrize("size", [500_000, 12 << 20], ids=["one request", "blocks"])
@pytest.mark.slow
def test_an_upload_cut_once_arrives_whole_at_the_second_attempt(container, prefix, owner, size):
    content = os.urandom(size)
    with Cutter(container.port, int(size * 0.9)) as bad:
        sink = open_sink(f"{bad.endpoint}/{CONTAINER}/{prefix}", owner)
        sink.put("images/a.npy", content)
    assert not bad.cuts, "nothing was cut"
    assert stored(container, prefix) == {"images/a.npy": content}


@pytest.mark.slow
def test_an_answer_that_is_lost_is_asked_for_again(proxy, prefix, owner):
    """The first attempt did its work; the second meets that."""
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    proxy.inject(Reset(after=None), method="PUT", times=1)
    proxy.inject(Reset(after=None), method="DELETE", times=1)
    sink.put(IMAGE, b"x")
    assert sink.get(IMAGE) == b"x"
    sink.delete(IMAGE)
    assert sink.get(IMAGE) is None
    assert (proxy.count(method="PUT"), proxy.count(method="DELETE")) == (2, 2)


def test_an_upload_that_goes_too_slowly_is_given_up(container, prefix, owner):
    patience = Patience(total_s=0.5, slow_s=0.3, slow_rate=1e9)
    with Cutter(container.port, bytes_per_s=1e6) as bad:
        url = f"{bad.endpoint}/{CONTAINER}/{prefix}"
        sink = open_sink(url, Access(owner.credential, patience=patience))
        with pytest.raises(DestinationError, match=r"only \d+ of 8388608 bytes could be sent"):
            sink.put("images/a.npy", bytes(8 << 20))
    assert stored(container, prefix) == {}


def test_a_full_disk_for_temporary_files_is_explained(sink, monkeypatch):
    """Refused by the real device that is always full."""
    full = partial(Path("/dev/full").open, "w+b")
    monkeypatch.setattr(blobsink.tempfile, "SpooledTemporaryFile", lambda _: full(buffering=0))
    with pytest.raises(DestinationError, match="TMPDIR"), sink.open_writer("run.json") as file:
        file.write(b"x")
    assert sink.list() == []


# At once


def test_eight_uploads_take_about_the_time_of_one(proxy, prefix, owner, caplog):
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    with ThreadPoolExecutor(sink.writers) as pool, caplog.at_level(logging.WARNING):

        def put(names):
            start_s = time.monotonic()
            list(pool.map(lambda name: sink.put(f"images/{name}.png", bytes(60_000)), names))
            return time.monotonic() - start_s

        put("abcdefgh")  # makes the connections
        proxy.inject(Latency(0.2))
        one_s, eight_s = put("i"), put("jklmnopq")

    assert sink.writers == 8
    # One after the other they would take eight times as long; the rest is for a busy machine.
    assert eight_s < 5 * one_s
    assert proxy.peak_of("images/[j-q]") == 8
    assert "Connection pool is full" not in caplog.text


# Refusals


def test_a_container_must_be_there(azurite, owner):
    with pytest.raises(DestinationError, match=r"'nowhere'.*owner's decision") as caught:
        open_sink(azurite.url("nowhere", "x"), owner)
    assert caught.value.exit_code == 6


def test_a_container_that_goes_away_is_missed_by_the_next_upload(azurite, owner):
    azurite.create_container("passing")
    sink = open_sink(azurite.url("passing"), owner)
    with azurite.service() as service:
        service.delete_container("passing")
    with pytest.raises(DestinationError, match="no container 'passing'"):
        sink.put(IMAGE, b"x")


def test_nobody_writes_without_a_credential(container, prefix):
    access = Access(Credential("anonymous"))
    with pytest.raises(AccessDeniedError, match="--out-credential") as caught:
        open_sink(container.url(CONTAINER, prefix), access)
    assert caught.value.exit_code == 5


def test_a_variable_that_is_not_set_is_named(container, prefix):
    with pytest.raises(UsageError, match="NO_SUCH_VARIABLE"):
        open_sink(container.url(CONTAINER, prefix), Access(Credential("sas", "NO_SUCH_VARIABLE")))


@pytest.mark.parametrize(
    ("rights", "act", "said"),
    [
        ("rl", "put", "Writing to .* the right to create and write"),
        ("rl", "put a large file", "Writing to .* the right to create and write"),
        ("rcwl", "delete", "Writing to .* the right to delete"),
        ("cwl", "get", "Reading .* access is denied"),
    ],
)
def test_a_signature_without_a_right_is_refused_by_the_name_of_the_right(
    container, prefix, sink, signed, rights, act, said
):
    sink.put(IMAGE, b"earlier")
    guest = open_sink(container.url(CONTAINER, prefix), signed(rights))
    acts = {
        "put": lambda: guest.put(IMAGE, b"x"),
        "put a large file": lambda: guest.put(IMAGE, bytes(2 << 20)),
        "get": lambda: guest.get(IMAGE),
        "delete": lambda: guest.delete(IMAGE),
    }
    with pytest.raises(AccessDeniedError, match=f"{said} .*sas:SIGNATURE") as caught:
        acts[act]()
    shown = "".join(traceback.format_exception(caught.value))
    assert re.search("sig=(?!.secret)", shown) is None
    assert stored(container, prefix) == {IMAGE: b"earlier"}


def test_a_signature_that_may_not_list_is_refused_before_any_work(container, prefix, signed):
    with pytest.raises(AccessDeniedError, match="the right to list"):
        open_sink(container.url(CONTAINER, prefix), signed("rcwd"))


def test_a_signature_for_blobs_is_enough_for_a_run(container, prefix, signed):
    """It may not ask for the container's properties, and need not."""
    sink = open_sink(container.url(CONTAINER, prefix), signed("rcwdl"))
    Ledger.open(sink, IDENTITY, HEADER, n_segments=1).finish_segment(0, make_segment(0))
    Ledger.open(sink, {}, HEADER, overwrite=True, n_segments=1)
    assert sink.list() == ["run.json"]


def test_a_signature_of_the_account_is_enough_for_a_run(container, prefix, monkeypatch):
    signature = generate_account_sas(
        ACCOUNT,
        KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions.from_string("rwdlc"),
        datetime.now(UTC) + timedelta(hours=1),
    )
    monkeypatch.setenv("SIGNATURE", f"?{signature}")
    sink = open_sink(container.url(CONTAINER, prefix), Access(Credential("sas", "SIGNATURE")))
    sink.put(IMAGE, b"x")
    assert sink.list() == [IMAGE]


@pytest.mark.parametrize("how", [{"hours": -1}, {"key": "d3Jvbmc="}], ids=["expired", "wrong key"])
def test_a_signature_that_is_not_valid_is_refused_before_any_work(container, prefix, signed, how):
    with pytest.raises(AccessDeniedError, match=r"access is denied .*403"):
        open_sink(container.url(CONTAINER, prefix), signed("rcwdl", **how))


def test_a_server_that_is_not_there_is_not_waited_for(prefix, owner):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    start_s = time.monotonic()
    with pytest.raises(DestinationError, match=r"No connection .*refused.*account's name"):
        open_sink(f"http://127.0.0.1:{port}/{ACCOUNT}/{CONTAINER}/{prefix}", owner)
    assert time.monotonic() - start_s < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [Answer(503), Answer(500), Answer(429), Hang(), Reset(after=None)], ids=repr
)
def test_a_server_that_keeps_failing_is_given_up_in_the_end(proxy, prefix, owner, fault):
    sink = open_sink(proxy.url(CONTAINER, prefix), hurried(owner))
    proxy.inject(fault)
    start_s = time.monotonic()
    acts = [
        lambda: sink.put(IMAGE, b"x"),
        lambda: sink.get(IMAGE),
        sink.list,
        lambda: sink.delete(IMAGE),
    ]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(act) for act in acts]:
            with pytest.raises(DestinationError, match=r"Tried (once|2 times)"):
                future.result()
    assert time.monotonic() - start_s < 3


# Runs


def finish(sink, segment, statuses=("ok", "edge", "gap")):
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=4)
    records = make_segment(segment, statuses)
    for record in records:
        if record.file_name is not None:
            sink.put(record.file_name, record.file_name.encode(), durable=False)
    ledger.finish_segment(segment, records)


def run_again_and_again(sink):
    """A run's life: begun, resumed, tried again, refused, published; what it answers."""
    finish(sink, 2)
    finish(sink, 0, ["ok", "missing", "edge"])
    finish(sink, 3)
    finish(sink, 0, ["ok", "ok", "error"])
    sink.put("segments/00003.jsonl", b'{"torn')
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=4)
    with pytest.raises(IdentityError, match=re.escape(sink.location)):
        Ledger.open(sink, {"recipe": "other"}, HEADER, n_segments=4)
    return ledger.resumed, ledger.pending(), ledger.pending([]), ledger.publish()


def test_a_run_in_a_container_has_the_same_files_as_on_disk(container, prefix, sink, tmp_path):
    assert run_again_and_again(sink) == run_again_and_again(LocalSink(tmp_path))

    on_disk = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert len(on_disk) == 3 + 3 + 6
    assert stored(container, prefix) == on_disk


def test_overwriting_deletes_the_run_and_nothing_else(sink):
    run_again_and_again(sink)
    sink.put("images/labels.csv", b"precious")
    ledger = Ledger.open(sink, {"recipe": "other"}, HEADER, overwrite=True, n_segments=4)
    assert sink.list() == ["images/labels.csv", "run.json"]
    assert not ledger.resumed


def test_a_prefix_with_something_else_is_left_alone(sink):
    sink.put("notes.txt", b"precious")
    with pytest.raises(DestinationError, match=r"holds something else.*notes\.txt"):
        Ledger.open(sink, IDENTITY, HEADER, n_segments=1)
    assert sink.list() == ["notes.txt"]


@pytest.mark.slow
def test_a_run_of_many_segments_is_resumed_in_seconds_over_a_slow_line(proxy, sink, prefix, owner):
    n_segments = 200
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=2 * n_segments)
    with ThreadPoolExecutor(sink.writers) as pool:
        for _ in pool.map(lambda i: ledger.finish_segment(i, make_segment(i)), range(n_segments)):
            pass
    proxy.inject(Latency(0.05))

    start_s = time.monotonic()
    distant = open_sink(proxy.url(CONTAINER, prefix), owner)
    again = Ledger.open(distant, IDENTITY, HEADER, n_segments=2 * n_segments)
    pending = again.pending()
    taken_s = time.monotonic() - start_s

    assert pending == list(range(n_segments, 2 * n_segments))
    assert taken_s < 6, "one after the other they take 10 s"
    # What is not there is not asked for: the check, run.json, three listings, the segments.
    assert len(proxy.requests) == 5 + n_segments
    assert proxy.peak == 8


@pytest.mark.slow
def test_a_ledger_reads_a_bounded_number_of_segments_ahead(sink):
    """However slowly they are taken, and however many there are."""
    ledger = Ledger.open(sink, IDENTITY, HEADER, n_segments=40)
    with ThreadPoolExecutor(sink.writers) as pool:
        list(pool.map(lambda i: ledger.finish_segment(i, make_segment(i)), range(40)))
    asked = []
    get = sink.get
    sink.get = lambda key: (asked.append(key), get(key))[1]

    finished = outcome.finished(sink, 40)
    assert [number for number, _, _ in itertools.islice(finished, 3)] == [0, 1, 2]
    time.sleep(0.3)
    assert len(asked) == 3 + 2 * sink.writers
    finished.close()
