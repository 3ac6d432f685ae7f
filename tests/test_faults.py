"""What a bad network does to a run: what is delivered, what the user is told, and when.

The tables are the documentation. Each row is met by both transports at once, each through a
proxy of its own before Azurite. The archive is 40 channels x 20 s in chunks of 16 x 2.5 s; the
tiles are 4 rows of 5 s by 2 bands, so the struck chunk lies in one tile and in the halo of the
next.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from das_gpu import Recipe, extract
from das_gpu.errors import (
    AccessDeniedError,
    ChunkCorruptError,
    ChunkMissingError,
    ChunkUnreadableError,
    DasGpuError,
    InterruptedRunError,
    SourceError,
    SourceNotFoundError,
)
from das_gpu.patience import Patience
from das_gpu.run import Progress, Summary
from das_gpu.store import Access, TransportName
from tests.archives import random_walk, write_archive
from tests.azurite import Azurite
from tests.faults import (
    Answer,
    Bandwidth,
    Corrupt,
    Drip,
    Fault,
    Hang,
    Latency,
    Reset,
    Short,
    Truncate,
)
from tests.outputs import files, lines, records, statuses
from tests.proxy import FaultProxy

pytestmark = pytest.mark.slow  # most of it is waiting

RECIPE = Recipe().with_settings({"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 2})
CHUNK = r"RawData/0\.3$"
"""Channels 0 to 16, samples 1500 to 2000: in tile (1, 0) and in the halo of tile (2, 0)."""

PATIENCE = Patience(total_s=2.5, stall_s=1, slow_s=1)
ENOUGH = Patience(total_s=10, stall_s=1, slow_s=1)
"""For what passes: on a busy machine, too, nothing but the fault is to be given up."""
FIRST_WAIT_S = 0.75
"""The shortest wait before a request is made again: 1 s and a quarter less."""
LATE_S = 4.0
"""How much later than it should be something may come on a machine that is busy elsewhere."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = random_walk(40, 4000, seed=2)
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, (16, 500))


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert extract(store, out, RECIPE).exit_code == 0
    return out


@pytest.fixture(scope="module")
def container(azurite: Azurite, store: Path) -> Azurite:
    azurite.create_container("faults", public="container")
    azurite.upload_folder(store, "faults", "a.zarr")
    return azurite


@dataclass(frozen=True)
class Net:
    """A transport, the bad network it reads through, and a place for what comes of it."""

    transport: TransportName
    proxy: FaultProxy
    out: Path

    @property
    def url(self) -> str:
        return self.proxy.url("faults", "a.zarr")

    def access(self, patience: Patience) -> Access:
        return Access(transport=self.transport, patience=patience)

    def run(self, patience: Patience = ENOUGH, recipe: Recipe = RECIPE, **options: Any) -> Summary:
        return extract(self.url, self.out, recipe, access=self.access(patience), **options)


@pytest.fixture(params=["obstore", "azure-sdk"])
def net(request: pytest.FixtureRequest, container: Azurite, tmp_path: Path) -> Iterator[Net]:
    with FaultProxy(container.port) as proxy:
        yield Net(request.param, proxy, tmp_path / "out")


@pytest.fixture
def nets(container: Azurite, tmp_path: Path) -> Iterator[list[Net]]:
    """Both transports."""
    with FaultProxy(container.port) as one, FaultProxy(container.port) as other:
        yield [
            Net("obstore", one, tmp_path / "obstore"),
            Net("azure-sdk", other, tmp_path / "azure-sdk"),
        ]


def at_once(nets: list[Net], work: Callable[[Net], T]) -> list[tuple[Net, T, float]]:
    """Do the same through each; what came of it, and after how many seconds."""

    def timed(net: Net) -> tuple[Net, T, float]:
        began = time.monotonic()
        result = work(net)
        return net, result, time.monotonic() - began

    with ThreadPoolExecutor(len(nets)) as pool:
        return list(pool.map(timed, nets))


@pytest.fixture
def short_throttling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let obstore's 5 s after a 429 or a 503, which show no ``Retry-After``, be as any wait."""
    monkeypatch.setattr("das_gpu.patience._THROTTLED_WAIT_S", 1.0)


def by_tile(out: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Records by tile row and band."""
    return {(r["sample_start"] // 1000, r["channel_start"] // 20): r for r in records(out)}


# --- one chunk --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnChunk:
    """A fault on one chunk, and what follows.

    Attributes
    ----------
    fault, times
        The first so many requests for the chunk meet it; ``None`` is for ever.
    status, said
        What becomes of the chunk's tile, and why. Without, the run is as if nothing had been.
    requests
        For the chunk: at least and at most.
    seconds
        The whole run takes so long: at least, and at most on an idle machine.
    """

    fault: Fault
    times: int | None = None
    status: str = ""
    said: str = ""
    requests: tuple[int, int] = (1, 1)
    seconds: tuple[float, float] = (0, 1)


PASSING = (FIRST_WAIT_S, 3)
GIVEN_UP = (FIRST_WAIT_S, 5)
GONE = Answer(404, {"x-ms-error-code": "BlobNotFound"})
ARCHIVED = Answer(409, {"x-ms-error-code": "BlobArchived"}, b"<Code>BlobArchived</Code>")
ODD = Answer(400, {"x-ms-error-code": "InvalidInput"}, b"<Code>InvalidInput</Code>")

ON_CHUNK = {
    # What passes costs nothing but time.
    "500 once": OnChunk(Answer(500), 1, requests=(2, 2), seconds=PASSING),
    "503 once": OnChunk(Answer(503), 1, requests=(2, 2), seconds=PASSING),
    "429 once": OnChunk(Answer(429), 1, requests=(2, 2), seconds=PASSING),
    "reset once": OnChunk(Reset(None), 1, requests=(2, 2), seconds=PASSING),
    "broken off once": OnChunk(Truncate(), 1, requests=(2, 2), seconds=PASSING),
    "silent once": OnChunk(Hang(), 1, requests=(2, 2), seconds=(1 + FIRST_WAIT_S, 3)),
    "flipped on the way once": OnChunk(Corrupt("head"), 1, requests=(2, 2)),
    "cut on the way once": OnChunk(Short(), 1, requests=(2, 2)),
    "slow to begin": OnChunk(Latency(0.6), seconds=(0.6, 1.6)),
    "slow, at 60 kB/s": OnChunk(Bandwidth(60_000), seconds=(0.2, 1.2)),
    # What does not costs one tile. The store is alive, so this is said of the chunk.
    "500": OnChunk(Answer(500), None, "error", "HTTP status 500", (2, 3), GIVEN_UP),
    "503": OnChunk(Answer(503), None, "error", "HTTP status 503", (2, 3), GIVEN_UP),
    "429": OnChunk(Answer(429), None, "error", "HTTP status 429", (2, 3), GIVEN_UP),
    "reset": OnChunk(Reset(None), None, "error", "cannot be reached", (2, 3), GIVEN_UP),
    "reset in the body": OnChunk(Reset(1000), None, "error", "not whole", (1, 3), GIVEN_UP),
    "broken off": OnChunk(Truncate(), None, "error", "not whole", (1, 3), GIVEN_UP),
    "silent": OnChunk(Hang(), None, "error", "cannot be reached", (1, 2), (1, 4.5)),
    "silent in the body": OnChunk(Hang(1000), None, "error", "not whole", (1, 3), (1, 4.5)),
    "20 bytes a second": OnChunk(Drip(20), None, "error", "not whole", (1, 2), (1, 4.5)),
    # Refused for this object alone: asking again would not help.
    "in the archive tier": OnChunk(ARCHIVED, None, "error", "409, BlobArchived"),
    "refused": OnChunk(ODD, None, "error", "HTTP status 400"),
    # What the store itself holds or lacks is not waited for.
    "not there": OnChunk(GONE, None, "missing", "holds no object RawData/0.3"),
    "cut": OnChunk(Short(), None, "corrupt", "cannot be decoded", (2, 2)),
    "corrupt header": OnChunk(Corrupt("head"), None, "corrupt", "cannot be decoded", (2, 2)),
    # Asked for a range of an empty blob, Azure answers 416, and the library asks for all of it.
    "empty": OnChunk(Short(0), None, "corrupt", "the object is empty", (2, 4)),
}


@pytest.mark.parametrize("row", ON_CHUNK.values(), ids=ON_CHUNK.keys())
@pytest.mark.usefixtures("short_throttling")
def test_a_fault_on_one_chunk_costs_the_tiles_it_touches_and_no_more(
    row: OnChunk, nets: list[Net], undisturbed: Path
) -> None:
    for net in nets:
        net.proxy.inject(row.fault, key=CHUNK, times=row.times)
    patience = PATIENCE if row.status == "error" else ENOUGH
    for net, summary, took_s in at_once(nets, lambda net: net.run(patience)):
        least, most = row.requests
        assert least <= net.proxy.count(CHUNK) <= most, net.transport
        assert row.seconds[0] <= took_s <= row.seconds[1] + LATE_S, net.transport
        if row.status:
            assert summary.exit_code == 3
            expect_lost_chunk(net.out, undisturbed, row.status, row.said)
        else:
            assert summary.exit_code == 0
            assert files(net.out) == files(undisturbed)


def expect_lost_chunk(out: Path, undisturbed: Path, status: str, said: str) -> None:
    """One tile lost, the next one's halo cut, and all others as if nothing had been."""
    assert statuses(out) == [
        "edge", "edge",
        status, "ok",
        "edge", "ok",
        "edge", "edge",
    ]  # fmt: skip
    (lost,) = lines(out / "undelivered.jsonl")
    assert said in lost["reason"]
    assert "RawData/0.3" in lost["reason"]
    assert untouched(out) == untouched(undisturbed)


def untouched(out: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Records, by row and band, of tiles that the struck chunk has no part in."""
    found = by_tile(out)
    return {tile: found[tile] for tile in found.keys() - {(1, 0), (2, 0)}}


def test_bytes_flipped_inside_a_block_are_not_noticed(net: Net, undisturbed: Path) -> None:
    """Blosc keeps no checksum of its blocks: what still decodes is delivered, asked for once."""
    net.proxy.inject(Corrupt("middle"), key=CHUNK)
    assert net.run().exit_code == 0
    assert net.proxy.count(CHUNK) == 1
    assert by_tile(net.out)[1, 0]["sha256"] != by_tile(undisturbed)[1, 0]["sha256"]
    assert untouched(net.out) == untouched(undisturbed)


# --- the store, when it is opened -------------------------------------------------------------


@dataclass(frozen=True)
class AtOpening:
    """A fault on every answer, and how opening the archive ends.

    Attributes
    ----------
    fault
        Every request meets it.
    error, exit_code
        What is raised, and what the command returns.
    said
        What the message says, besides the address.
    requests
        For any one object: at least and at most.
    seconds
        Until then: at least, and at most on an idle machine.
    """

    fault: Fault
    error: type[DasGpuError]
    exit_code: int
    said: str
    requests: tuple[int, int] = (1, 1)
    seconds: tuple[float, float] = (0, 1)


SEVERAL = (2, 3)
NO_SUCH = Answer(404, {"x-ms-error-code": "ContainerNotFound"})
SWITCHED_OFF = Answer(
    409, {"x-ms-error-code": "PublicAccessNotPermitted"}, b"<Code>PublicAccessNotPermitted</Code>"
)
PORTAL = Answer(200, {"Content-Type": "text/html"}, b"<html>Please accept our terms</html>")
BUSY = Answer(429, {"Retry-After": "3600"})

AT_OPENING = {
    "503": AtOpening(Answer(503), SourceError, 4, "HTTP status 503", SEVERAL, GIVEN_UP),
    "429 for an hour": AtOpening(BUSY, SourceError, 4, "HTTP status 429", (1, 3), (0, 5)),
    "reset": AtOpening(Reset(None), SourceError, 4, "cannot be reached", SEVERAL, GIVEN_UP),
    "broken off": AtOpening(Truncate(), SourceError, 4, "Tried", (1, 3), GIVEN_UP),
    "silent": AtOpening(Hang(), SourceError, 4, "cannot be reached", (1, 2), (1, 4.5)),
    "silent in the body": AtOpening(Hang(10), SourceError, 4, "Tried", (1, 3), (1, 4.5)),
    "20 bytes a second": AtOpening(Drip(20), SourceError, 4, "Tried", (1, 3), (1, 4.5)),
    "401": AtOpening(Answer(401), AccessDeniedError, 5, "not valid"),
    "403": AtOpening(Answer(403), AccessDeniedError, 5, "give --credential"),
    "public access switched off": AtOpening(SWITCHED_OFF, AccessDeniedError, 5, "is denied"),
    "no such container": AtOpening(NO_SUCH, SourceNotFoundError, 4, "nothing is stored there"),
    "cut": AtOpening(Short(), SourceError, 4, "cannot be understood"),
    "corrupt": AtOpening(Corrupt(), SourceError, 4, "cannot be understood"),
    "somebody else answers": AtOpening(PORTAL, SourceError, 4, "Azure"),
}


@pytest.mark.parametrize("row", AT_OPENING.values(), ids=AT_OPENING.keys())
@pytest.mark.usefixtures("short_throttling")
def test_a_store_that_fails_at_opening_is_an_error_in_time_and_nothing_is_written(
    row: AtOpening, nets: list[Net]
) -> None:
    def refused(net: Net) -> DasGpuError:
        with pytest.raises(DasGpuError) as caught:
            net.run(PATIENCE)
        return caught.value

    for net in nets:
        net.proxy.inject(row.fault)
    for net, error, took_s in at_once(nets, refused):
        assert (type(error), error.exit_code) == (row.error, row.exit_code), net.transport
        assert net.url in str(error)
        assert row.said in str(error)
        least, most = row.requests
        asked = Counter(request.key for request in net.proxy.requests)
        assert least <= max(asked.values()) <= most, (net.transport, asked)
        assert row.seconds[0] <= took_s <= row.seconds[1] + LATE_S, net.transport
        assert not net.out.exists()


# --- the store, during the run ----------------------------------------------------------------


@dataclass(frozen=True)
class WhileRunning:
    """A fault on every answer once the archive is open, and what becomes of the tiles: of all.

    Attributes as in :class:`OnChunk`; ``requests`` for any one object.
    """

    fault: Fault
    status: str
    said: str
    requests: tuple[int, int] = (1, 1)
    seconds: tuple[float, float] = (0, 1)


WHILE_RUNNING = {
    # The store is given up with the first chunk, not with each of them in turn.
    "503": WhileRunning(Answer(503), "error", "HTTP status 503", SEVERAL, GIVEN_UP),
    "reset": WhileRunning(Reset(None), "error", "cannot be reached", SEVERAL, GIVEN_UP),
    "silent": WhileRunning(Hang(), "error", "cannot be reached", (1, 2), (1, 4.5)),
    "broken off": WhileRunning(Truncate(), "error", "not whole", (1, 3), GIVEN_UP),
    "20 bytes a second": WhileRunning(Drip(20), "error", "not whole", (1, 2), (1, 4.5)),
    "gone": WhileRunning(GONE, "missing", "holds no object"),
    "cut": WhileRunning(Short(), "corrupt", "cannot be decoded", (2, 2)),
}


@pytest.mark.parametrize("row", WHILE_RUNNING.values(), ids=WHILE_RUNNING.keys())
@pytest.mark.usefixtures("short_throttling")
def test_a_store_that_fails_during_the_run_costs_its_tiles_and_is_given_up_in_time(
    row: WhileRunning, nets: list[Net], undisturbed: Path
) -> None:
    opened: dict[str, int] = {}

    def run(net: Net) -> Summary:
        def strike(*_: object) -> None:
            opened[net.transport] = net.proxy.count()
            net.proxy.inject(row.fault)

        return net.run(PATIENCE, on_start=strike)

    for net, summary, took_s in at_once(nets, run):
        assert summary.exit_code == 3
        assert statuses(net.out) == [row.status] * 8
        assert all(row.said in one["reason"] for one in lines(net.out / "undelivered.jsonl"))
        asked = Counter(request.key for request in net.proxy.requests[opened[net.transport] :])
        least, most = row.requests
        assert least <= max(asked.values()) <= most, (net.transport, asked)
        assert row.seconds[0] <= took_s <= row.seconds[1] + LATE_S, net.transport

        net.proxy.clear()
        assert net.run().exit_code == 0
        assert files(net.out) == files(undisturbed)


def test_a_chunk_is_told_from_the_store_when_nothing_else_is_left_to_read(
    net: Net, undisturbed: Path
) -> None:
    """The last chunk of all, read by one loader: no other answer shows that the store is alive."""
    net.proxy.inject(Answer(500), key=r"RawData/2\.7$")
    assert net.run(PATIENCE, loaders=1).exit_code == 3
    assert statuses(net.out) == ["edge", "edge", "ok", "ok", "ok", "ok", "edge", "error"]
    ours, theirs = by_tile(net.out), by_tile(undisturbed)
    last = {(2, 1), (3, 1)}
    assert {t: ours[t] for t in ours.keys() - last} == {t: theirs[t] for t in theirs.keys() - last}


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Answer(500), "error"), (GONE, "missing")],
    ids=["500", "not there"],
)
def test_a_chunk_of_the_time_axis_costs_the_rows_it_touches(
    fault: Fault, status: str, net: Net, undisturbed: Path
) -> None:
    """Samples 1500 to 2000: in row 1 and in the halo of row 2."""
    net.proxy.inject(fault, key=r"RawDataTime/3$")
    assert net.run(PATIENCE if status == "error" else ENOUGH).exit_code == 3
    assert statuses(net.out) == ["edge"] * 2 + [status] * 2 + ["edge"] * 4
    assert "RawDataTime/3" in lines(net.out / "undelivered.jsonl")[0]["reason"]
    ours, theirs = by_tile(net.out), by_tile(undisturbed)
    beside = [(row, band) for row in (0, 3) for band in (0, 1)]
    assert [ours[tile] for tile in beside] == [theirs[tile] for tile in beside]


# --- lost chunks that are to be filled in, or to stop the run ---------------------------------


def test_fill_does_not_forgive_a_chunk_that_a_rerun_may_find_readable(net: Net) -> None:
    net.proxy.inject(Answer(500), key=CHUNK)
    net.proxy.inject(GONE, key=r"RawData/2\.7$")
    assert net.run(PATIENCE, on_missing="fill").exit_code == 3
    assert statuses(net.out) == ["edge", "edge", "error", "ok", "edge", "ok", "edge", "edge"]
    assert by_tile(net.out)[3, 1]["dead_channels"] == 8
    net.proxy.clear()
    net.proxy.inject(GONE, key=r"RawData/2\.7$")
    assert net.run(on_missing="fill").exit_code == 0
    assert statuses(net.out) == ["edge", "edge", "ok", "ok", "ok", "ok", "edge", "edge"]


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        (GONE, ChunkMissingError, (1, 1)),
        (Corrupt(), ChunkCorruptError, (2, 2)),
        (Answer(500), ChunkUnreadableError, SEVERAL),
    ],
    ids=["missing", "corrupt", "unreadable"],
)
def test_a_run_that_must_be_whole_ends_at_the_first_lost_chunk(
    fault: Fault, error: type[DasGpuError], requests: tuple[int, int], net: Net
) -> None:
    net.proxy.inject(fault, key=CHUNK)
    with pytest.raises(DasGpuError, match=r"RawData/0\.3") as caught:
        net.run(PATIENCE, on_missing="error")
    assert (type(caught.value), caught.value.exit_code) == (error, 4)
    assert requests[0] <= net.proxy.count(CHUNK) <= requests[1]


# --- the first fatal error --------------------------------------------------------------------

EXPIRED = Answer(403, {"x-ms-error-code": "AuthenticationFailed"})


def test_access_that_ends_in_the_middle_ends_the_run_and_what_is_finished_stays(
    net: Net, store: Path, tmp_path: Path
) -> None:
    """A signature expires. Segments are rows; the third needs the seventh column of chunks."""
    net.proxy.inject(EXPIRED, key=r"RawData/\d\.6$")
    with pytest.raises(AccessDeniedError, match=r"403.*give --credential") as caught:
        net.run(segment_minutes=5 / 60)
    assert caught.value.exit_code == 5
    assert 1 <= net.proxy.count(r"RawData/\d\.6$") <= 3  # one chunk each, none of them again
    assert [path.name for path in sorted((net.out / "segments").iterdir())] == [
        "00000.jsonl",
        "00001.jsonl",
    ]
    assert statuses(net.out) == ["edge", "edge", "ok", "ok"]

    net.proxy.clear()
    again = net.run()
    assert (again.exit_code, again.made) == (0, 4)
    extract(store, tmp_path / "whole", RECIPE, segment_minutes=5 / 60)
    assert files(net.out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "elsewhere",
    [Bandwidth(2000), Hang(), Hang(1000), Answer(500), Answer(429, {"Retry-After": "100"})],
    ids=["in a slow body", "before the head", "in a silent body", "in a wait", "in a long wait"],
)
def test_the_first_fatal_error_ends_all_other_reading(elsewhere: Fault, net: Net) -> None:
    """Wherever the other loaders are; only a silent connection is left to its own time limit."""
    patience = Patience(stall_s=1.5, slow_rate=0)
    first = r"RawData/0\.0$"
    net.proxy.inject(Latency(1.0), key=first)
    net.proxy.inject(EXPIRED, key=first)
    net.proxy.inject(elsewhere, key="RawData/")
    with pytest.raises(AccessDeniedError):
        net.run(patience)
    returned_s = net.proxy.now_s
    (struck,) = [r for r in net.proxy.requests if r.key.endswith("RawData/0.0")]
    assert struck.ended_s is not None
    assert returned_s - struck.ended_s < patience.stall_s + 1
    time.sleep(0.05)
    others = [r for r in net.proxy.requests if "RawData/" in r.key and r is not struck]
    assert others
    assert all(request.ended_s is not None for request in others)
    assert not any(request.at_s > struck.ended_s + 0.5 for request in others)
    if not isinstance(elsewhere, Answer):
        assert all(request.hung_up_s is not None for request in others)


def test_no_further_segment_is_begun_after_a_fatal_error(net: Net) -> None:
    """Segments are rows of two columns of chunks, and read one more on either side."""
    net.proxy.inject(GONE, key=r"RawData/0\.0$")
    with pytest.raises(ChunkMissingError):
        net.run(segment_minutes=5 / 60, on_missing="error")
    assert net.proxy.count(r"RawData/\d\.[3-7]$") == 0


@pytest.mark.parametrize("where", [Bandwidth(2000), Answer(500)], ids=["in a body", "in a wait"])
def test_an_interrupted_run_hangs_up(where: Fault, net: Net) -> None:
    net.proxy.inject(where, key="RawData/")
    threading.Timer(1.5, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(InterruptedRunError, match="same command continues"):
        net.run(Patience(slow_rate=0))
    assert 1.5 <= net.proxy.now_s <= 2.5 + LATE_S
    time.sleep(0.05)
    assert all(r.ended_s is not None for r in net.proxy.requests)
    if isinstance(where, Bandwidth):
        assert any(r.hung_up_s is not None for r in net.proxy.requests)


# --- being asked to wait ----------------------------------------------------------------------


def attempts_s(net: Net) -> list[float]:
    return [r.at_s for r in net.proxy.requests if r.key.endswith("RawData/0.3")]


@pytest.mark.parametrize("status", [429, 503])
def test_azure_sdk_waits_as_long_as_the_server_asks(
    status: int, nets: list[Net], undisturbed: Path
) -> None:
    net = nets[1]
    net.proxy.inject(Answer(status, {"Retry-After": "2"}), key=CHUNK, times=1)
    assert net.run(Patience(total_s=8)).exit_code == 0
    first_s, second_s = attempts_s(net)
    assert 2 <= second_s - first_s <= 2.5 + LATE_S
    assert files(net.out) == files(undisturbed)


def test_obstore_waits_5_s_and_then_as_long_as_the_server_asks(
    nets: list[Net], undisturbed: Path
) -> None:
    """It does not show the header; so the attempts that follow are azure-storage-blob's."""
    net = nets[0]
    net.proxy.inject(Answer(429, {"Retry-After": "4"}), key=CHUNK, times=2)
    assert net.run(Patience(total_s=20)).exit_code == 0
    first_s, second_s, third_s = attempts_s(net)
    assert 5 <= second_s - first_s <= 5 + LATE_S
    assert 4 <= third_s - second_s <= 4 + LATE_S
    agents = ["azsdk" in r.agent for r in net.proxy.requests if r.key.endswith("RawData/0.3")]
    assert agents == [False, True, True]
    assert files(net.out) == files(undisturbed)


# --- how many at once -------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "loaders"), [(40, 3), (40, 8), (16, 3), (16, 8)])
def test_as_many_requests_are_in_flight_as_there_are_loaders(
    channels: int, loaders: int, net: Net
) -> None:
    """Also where one row of chunks is selected, so that each column is a single chunk."""
    net.proxy.inject(Latency(0.1), key="RawData")
    net.run(recipe=RECIPE.with_settings({"selection.channel_stop": channels}), loaders=loaders)
    assert net.proxy.count("RawData/") == 8 * -(-channels // 16)
    assert net.proxy.peak_of("RawData") == loaders


# --- a storm ----------------------------------------------------------------------------------


def test_a_minute_of_503s_is_waited_out(nets: list[Net], undisturbed: Path) -> None:
    """Everything fails for 60 s, from the middle of a run on, with the default patience."""

    def run(net: Net) -> Summary:
        # So slow that the storm meets a run that has begun and is not at its end.
        net.proxy.inject(Latency(0.3), key=r"RawData/")
        began: list[float] = []

        def strike(progress: Progress) -> None:
            if progress.done_tiles and not began:
                began.append(net.proxy.now_s)
                net.proxy.inject(Answer(503), seconds=60)

        return net.run(Patience(), on_progress=strike, loaders=2)

    for net, summary, took_s in at_once(nets, run):
        assert summary.exit_code == 0
        assert files(net.out) == files(undisturbed)
        asked = Counter(request.key for request in net.proxy.requests)
        assert 5 <= max(asked.values()) < 15, net.transport
        assert 60 <= took_s <= 90, net.transport
