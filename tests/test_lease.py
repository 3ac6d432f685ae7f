"""One run at a time writes below a prefix of a container, and a dead one bars nobody for long."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.storage.blob import (
    BlobClient,
    BlobLeaseClient,
    ContainerSasPermissions,
    generate_container_sas,
)

from das_gpu.blobsink import BlobSink
from das_gpu.credentials import Credential
from das_gpu.errors import AccessDeniedError, DestinationError, DestinationInUseError
from das_gpu.lease import Terms, hold_prefix
from das_gpu.ledger import Ledger
from das_gpu.lock import LOCK_KEY, SOMEBODY, Hold, Holder
from das_gpu.patience import Patience
from das_gpu.sink import open_sink
from das_gpu.store import Access
from tests.azurite import ACCOUNT, KEY, Azurite
from tests.proxy import Answer, FaultProxy, Reset
from tests.test_ledger import HEADER, IDENTITY, make_segment

CONTAINER = "leases"
AT_ONCE = Terms(length_s=15, renew_s=60, wait_s=0)
"""For who comes second: don't wait. For who comes first: don't renew."""
LIVELY = Terms(length_s=15, renew_s=0.1, wait_s=0, poll_s=0.1)
AWAY = Holder("theirs", "another-machine", 7, "2026-11-23T02:15:00Z")

_prefixes = (f"run-{number}" for number in itertools.count())


@pytest.fixture
def prefix() -> str:
    """A place that no other test writes to."""
    return next(_prefixes)


@pytest.fixture(scope="module")
def server(azurite: Azurite) -> Azurite:
    azurite.create_container(CONTAINER)
    return azurite


@pytest.fixture
def owner(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setenv("CONNECTION", azurite.connection_string)
    return Access(Credential("connection-string", "CONNECTION"))


@pytest.fixture
def sink(server: Azurite, prefix: str, owner: Access) -> BlobSink:
    sink = open_sink(server.url(CONTAINER, prefix), owner)
    assert isinstance(sink, BlobSink)
    return sink


@pytest.fixture
def proxy(server: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def blob(server: Azurite, prefix: str) -> Iterator[BlobClient]:
    """The lock's blob, as its owner sees it."""
    with server.service() as service:
        yield service.get_blob_client(CONTAINER, f"{prefix}/{LOCK_KEY}")


def hold(sink: BlobSink, run: str = "mine", terms: Terms = AT_ONCE) -> AbstractContextManager[Hold]:
    return hold_prefix(sink._lock, sink._ask, sink.location, run, terms)


def lease_to(blob: BlobClient, holder: bytes) -> BlobLeaseClient:
    """Give the prefix to somebody who does not renew."""
    blob.upload_blob(holder)
    return blob.acquire_lease(15)


def until(happens: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert happens()


@pytest.fixture
def dead() -> Holder:
    """A process of this machine that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return replace(AWAY, host=socket.gethostname(), process=child.pid)


# --- holding ------------------------------------------------------------------------------


def test_a_prefix_is_held_by_whom_the_lock_names(sink: BlobSink, blob: BlobClient) -> None:
    assert sink.holder() is None
    with sink.hold("mine") as held:
        assert (held.run, held.lost.is_set(), held.why) == ("mine", False, "")
        found = sink.holder()
        assert found is not None
        assert (found.run, found.host) == ("mine", socket.gethostname())
    assert sink.holder() is None
    assert not blob.exists()


def test_the_lock_is_not_shown_and_hinders_no_other_file(sink: BlobSink) -> None:
    with hold(sink):
        assert sink.list() == []
        assert sink.list(limit=1) == []
        sink.put("run.json", b"{}")
        sink.put(f"images/{LOCK_KEY}", b"a file like any other")
        sink.put("z.json", b"{}")
        assert sink.list() == [f"images/{LOCK_KEY}", "run.json", "z.json"]
        assert len(sink.list(limit=3)) == 3
        sink.delete("z.json")
    assert sink.list() == [f"images/{LOCK_KEY}", "run.json"]


def test_a_run_begins_in_a_prefix_that_holds_nothing_but_its_lock(sink: BlobSink) -> None:
    with hold(sink):
        Ledger.open(sink, IDENTITY, HEADER, n_segments=1).finish_segment(0, make_segment(0))
    assert Ledger.open(sink, IDENTITY, HEADER, n_segments=1).resumed


@pytest.mark.slow
def test_the_second_run_is_refused_and_told_who_is_first(
    sink: BlobSink, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(sink, "first") as first:
        text = rf"{re.escape(sink.location)}: process \d+ on {socket.gethostname()}, since .*status"
        with pytest.raises(DestinationInUseError, match=text) as caught, hold(sink, "second"):
            pytest.fail("two runs hold one prefix")
        assert caught.value.exit_code == 11
        with pytest.raises(DestinationInUseError), hold(sink, "third", replace(AT_ONCE, wait_s=2)):
            pytest.fail("two runs hold one prefix")
        assert not first.lost.is_set()
        found = sink.holder()
        assert found is not None
        assert found.run == "first"
    assert caplog.text.count("waiting up to 2 s") == 1


def test_another_prefix_is_another_place(server: Azurite, sink: BlobSink, owner: Access) -> None:
    other = open_sink(server.url(CONTAINER, next(_prefixes)), owner)
    assert isinstance(other, BlobSink)
    with hold(sink), hold(other) as held:
        assert not held.lost.is_set()


def test_of_many_that_begin_at_once_one_at_a_time_holds(sink: BlobSink) -> None:
    holding: list[int] = []
    most: list[int] = []

    def work(number: int) -> int:
        held = 0
        for _ in range(4):
            with suppress(DestinationInUseError), hold(sink, str(number)):
                holding.append(number)
                most.append(len(holding))
                held += 1
                holding.remove(number)
        return held

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 0
    assert max(most) == 1


def test_a_lock_that_is_left_without_a_lease_is_nobodys(sink: BlobSink, blob: BlobClient) -> None:
    """As after the end of a killed run's lease."""
    blob.upload_blob(AWAY.to_json())
    assert sink.holder() is None
    with hold(sink):
        found = sink.holder()
        assert found is not None
        assert found.run == "mine"


def test_an_unreadable_lock_that_is_held_is_somebodys(sink: BlobSink, blob: BlobClient) -> None:
    lease_to(blob, b"")
    assert sink.holder() == SOMEBODY
    with (
        pytest.raises(DestinationInUseError, match="a process that has not said which it is"),
        hold(sink),
    ):
        pass


def test_a_blob_of_that_name_that_is_not_ours_is_left_alone(
    sink: BlobSink, blob: BlobClient
) -> None:
    blob.upload_blob(b"precious")
    with pytest.raises(DestinationError, match=r"has not written.* Move that file"), hold(sink):
        pass
    assert blob.download_blob().readall() == b"precious"
    assert blob.get_blob_properties().lease.state == "available"


def test_a_credential_that_may_not_delete_is_enough(
    server: Azurite, prefix: str, blob: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = generate_container_sas(
        ACCOUNT,
        CONTAINER,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string("rcwl"),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    monkeypatch.setenv("SIGNATURE", signature)
    sink = open_sink(server.url(CONTAINER, prefix), Access(Credential("sas", "SIGNATURE")))
    assert isinstance(sink, BlobSink)
    for _ in range(2):
        with hold(sink):
            assert sink.holder() is not None
        assert blob.get_blob_properties().lease.state == "available"
    assert sink.list() == []


def test_a_container_that_is_not_there_is_told_as_ever(server: Azurite, owner: Access) -> None:
    server.create_container("leases-gone")
    sink = open_sink(server.url("leases-gone"), owner)
    with server.service() as service:
        service.delete_container("leases-gone")
    with pytest.raises(DestinationError, match="no container 'leases-gone'"), sink.hold("mine"):
        pass


# --- dead holders -------------------------------------------------------------------------


def test_a_dead_process_of_this_machine_is_taken_over_from_at_once(
    sink: BlobSink, blob: BlobClient, dead: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    lease_to(blob, dead.to_json())
    with hold(sink):
        found = sink.holder()
        assert found is not None
        assert found.run == "mine"
    assert f"over from process {dead.process} on" in caplog.text


def test_a_process_of_another_machine_is_not_judged_by_ours(
    sink: BlobSink, blob: BlobClient, dead: Holder
) -> None:
    lease_to(blob, replace(dead, host="another-machine").to_json())
    with pytest.raises(DestinationInUseError, match="on another-machine"), hold(sink):
        pass


def test_of_two_that_find_a_dead_holder_the_slower_breaks_nobodys_lease(
    sink: BlobSink, blob: BlobClient, dead: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it makes up its mind, the quicker one has taken over."""
    lease_to(blob, dead.to_json())
    quicker = hold(sink, "quicker", LIVELY)
    broke = BlobLeaseClient.break_lease
    held: list[Hold] = []

    def break_late(*args: Any, **how: Any) -> int:
        monkeypatch.setattr(BlobLeaseClient, "break_lease", broke)
        held.append(quicker.__enter__())
        return broke(*args, **how)

    monkeypatch.setattr(BlobLeaseClient, "break_lease", break_late)
    with pytest.raises(DestinationInUseError), hold(sink, "slower"):
        pass
    time.sleep(0.3)  # three renewals
    assert not held[0].lost.is_set()
    quicker.__exit__(None, None, None)


@pytest.mark.slow
def test_a_killed_run_of_another_machine_bars_others_until_its_lease_ends(
    sink: BlobSink, blob: BlobClient, caplog: pytest.LogCaptureFixture
) -> None:
    lease_to(blob, AWAY.to_json())
    start_s = time.monotonic()
    with hold(sink, terms=replace(LIVELY, wait_s=20)):
        assert 13 < time.monotonic() - start_s < 18
    assert caplog.text.count(str(AWAY)) == 1


# --- keeping ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hold_is_kept_beyond_the_length_of_its_lease(sink: BlobSink) -> None:
    with hold(sink, terms=replace(LIVELY, renew_s=4)) as held:
        time.sleep(17)
        with pytest.raises(DestinationInUseError), hold(sink, "second"):
            pass
        assert not held.lost.is_set()


def test_a_hold_is_lost_to_who_breaks_its_lease(sink: BlobSink, blob: BlobClient) -> None:
    with hold(sink, terms=LIVELY) as held:
        BlobLeaseClient(blob).break_lease(0)
        assert held.lost.wait(5)
        assert "somebody broke its lease" in held.why
        with hold(sink, "second"):
            pass


def test_a_hold_is_lost_to_the_run_that_has_taken_it(sink: BlobSink, blob: BlobClient) -> None:
    with hold(sink, terms=LIVELY) as held:
        BlobLeaseClient(blob).break_lease(0)
        lease = blob.acquire_lease(15)
        blob.upload_blob(AWAY.to_json(), overwrite=True, lease=lease)
        assert held.lost.wait(5)
    assert re.search("to process 7 on another-machine|broke its lease", held.why)
    assert blob.download_blob().readall() == AWAY.to_json(), "the loser took it away"
    assert sink.holder() == AWAY


def test_a_hold_is_lost_when_somebody_else_has_had_it_meanwhile(
    sink: BlobSink, blob: BlobClient
) -> None:
    """Even though nobody has the lease any more: that run may have changed everything."""
    with hold(sink, terms=replace(LIVELY, renew_s=0.5)) as held:
        BlobLeaseClient(blob).break_lease(0)
        blob.upload_blob(AWAY.to_json(), overwrite=True)
        assert held.lost.wait(5)
    assert "process 7 on another-machine" in held.why


def test_a_hold_whose_lock_somebody_else_has_written_is_lost(
    sink: BlobSink, blob: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a holder writes it: even where its lease is renewed, another run has been there."""
    ids: list[str] = []
    acquire = BlobLeaseClient.acquire

    def note(self: BlobLeaseClient, *args: Any, **how: Any) -> None:
        ids.append(self.id)
        acquire(self, *args, **how)

    monkeypatch.setattr(BlobLeaseClient, "acquire", note)
    with hold(sink, terms=LIVELY) as held:
        blob.upload_blob(AWAY.to_json(), overwrite=True, lease=ids[0])
        assert held.lost.wait(5)
    assert "to process 7 on another-machine" in held.why


def test_a_hold_whose_lock_is_deleted_is_lost(sink: BlobSink, blob: BlobClient) -> None:
    with hold(sink, terms=LIVELY) as held:
        BlobLeaseClient(blob).break_lease(0)
        with suppress(Exception):
            blob.delete_blob()
        assert held.lost.wait(5)
    assert re.search("was deleted|broke its lease", held.why)


@pytest.mark.slow
def test_trouble_on_the_network_loses_no_hold(
    proxy: FaultProxy, prefix: str, owner: Access, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    assert isinstance(sink, BlobSink)
    proxy.inject(Reset(after=None), method="PUT", times=1)  # done, but not answered
    with hold(sink, terms=LIVELY) as held:
        proxy.inject(Answer(503), key=LOCK_KEY, times=1)
        before = proxy.count(LOCK_KEY)
        until(lambda: proxy.count(LOCK_KEY) > before + 5)
        assert not held.lost.is_set()
    assert sink.holder() is None


@pytest.mark.parametrize("meanwhile", ["nobody", "another run"])
@pytest.mark.slow
def test_a_hold_that_ran_out_is_taken_again_unless_somebody_has_had_it(
    sink: BlobSink, blob: BlobClient, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """As when the service could not be reached for longer than a lease lasts."""
    with hold(sink, terms=replace(LIVELY, renew_s=1)) as held:
        BlobLeaseClient(blob).break_lease(0)
        if meanwhile == "another run":
            blob.upload_blob(AWAY.to_json(), overwrite=True)
        monkeypatch.setattr(time, "monotonic", _later(60))
        until(lambda: held.lost.is_set() or blob.get_blob_properties().lease.state == "leased")
        assert held.lost.is_set() == (meanwhile == "another run")
        assert (sink.holder() is None) == (meanwhile == "another run")


def _later(seconds: float) -> Callable[[], float]:
    now = time.monotonic
    return lambda: now() + seconds


def test_a_credential_that_expires_loses_the_hold_with_the_lease(
    proxy: FaultProxy, prefix: str, owner: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(proxy.url(CONTAINER, prefix), owner)
    assert isinstance(sink, BlobSink)
    with hold(sink, terms=LIVELY) as held:
        proxy.inject(Answer(403), key=LOCK_KEY)
        assert not held.lost.wait(0.3)
        monkeypatch.setattr(time, "monotonic", _later(60))
        assert held.lost.wait(5)
    assert "cannot be renewed" in held.why
    with pytest.raises(AccessDeniedError), hold(sink):
        pass


def test_no_thread_is_left_behind_and_the_end_is_not_waited_for(sink: BlobSink) -> None:
    start_s = time.monotonic()
    with hold(sink, terms=Terms()):
        assert "das-gpu-lease" in [thread.name for thread in threading.enumerate()]
    assert time.monotonic() - start_s < 2
    assert "das-gpu-lease" not in [thread.name for thread in threading.enumerate()]


def test_a_server_that_is_gone_at_the_end_spoils_no_run(
    proxy: FaultProxy, prefix: str, owner: Access, caplog: pytest.LogCaptureFixture
) -> None:
    short = Access(owner.credential, patience=Patience.within(0.5))
    sink = open_sink(proxy.url(CONTAINER, prefix), short)
    assert isinstance(sink, BlobSink)
    with hold(sink):
        proxy.inject(Answer(404), key=LOCK_KEY)
    assert "was not given back" in caplog.text
